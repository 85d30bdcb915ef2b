"""BuildKit's frontend attributes, parsed into `Options`. Pure.

They come as one flat map of texts from every client that speaks gRPC (buildx, Compose, bake, buildctl): what concerns
one thing has its name after a colon, `build-arg:VERSION`, `context:base`. Attributes nobody knows are ignored, as
BuildKit does. Source: moby/buildkit, frontend/dockerui.
"""

import csv
import enum
import ipaddress
from collections.abc import Iterable, Mapping
from typing import TypeVar

import msgspec

from wherry.builder.dockerfile.directives import check_frontend
from wherry.builder.graph import Limits, NetworkMode, Output, ResolveMode, Ulimit
from wherry.builder.options import CacheTransfer, Call, NamedContext, Options
from wherry.errors import InvalidParameter, NotSupported
from wherry.spec.image import Platform, parse_platform

CAPABILITIES = frozenset(
    {
        "moby.buildkit.frontend.inputs",
        "moby.buildkit.frontend.subrequests",
        "moby.buildkit.frontend.contexts",
        "moby.buildkit.frontend.gitquerystring",
    }
)  # that a client may demand of a frontend

_ULIMITS = frozenset(
    "core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack".split()
)
_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})  # Go's strconv.ParseBool
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})
_LIMITS = {  # attribute -> field of Limits, all numbers
    "shm-size": "shm_size",
    "memory": "memory",
    "memswap": "memory_swap",
    "cpushares": "cpu_shares",
    "cpuperiod": "cpu_period",
    "cpuquota": "cpu_quota",
}
_BELOW_ZERO = frozenset({"memswap", "cpuquota"})  # where -1 says "no limit"

_Choice = TypeVar("_Choice", bound=enum.StrEnum)


class _CacheImport(msgspec.Struct, frozen=True):
    type: str = msgspec.field(name="Type", default="registry")
    attributes: dict[str, str] | None = msgspec.field(name="Attrs", default=None)


def from_attributes(
    attrs: Mapping[str, str], *, inputs: Mapping[str, Output] | None = None, entitlements: Iterable[str] = ()
) -> Options:
    """What `attrs` ask for. `inputs` are the trees that came with the request, by name.

    Raises InvalidParameter naming the attribute and its value, NotSupported for a frontend or request not built in.
    """
    _check_frontend(attrs)
    inputs = dict(inputs or {})
    build_args = _group(attrs, "build-arg:")
    platforms = _platforms(attrs.get("platform", ""))
    no_cache = attrs.get("no-cache")
    context_key = attrs.get("contextkey", "context")
    attestations = {name: _attestation(name, value) for name, value in _group(attrs, "attest:").items()}
    return Options(
        filename=attrs.get("filename") or "Dockerfile",
        context=attrs.get(context_key, ""),
        context_subdirectory=attrs.get("contextsubdir", ""),
        dockerfile_local=attrs.get("dockerfilekey") or "dockerfile",
        local_dockerfile="dockerfilekey" in attrs,
        sessions=_group(attrs, "local-sessionid:"),
        shared_keys=_group(attrs, "sharedkey:localdir:"),
        contexts=_contexts(attrs, inputs),
        inputs=inputs,
        target=attrs.get("target", ""),
        platforms=platforms,
        multi_platform=_multi_platform(attrs, build_args, len(platforms)),
        build_args=build_args,
        labels=_group(attrs, "label:"),
        no_cache=no_cache == "",
        no_cache_stages=tuple(no_cache.split(",")) if no_cache else (),
        resolve=_choice(ResolveMode, "image-resolve-mode", attrs.get("image-resolve-mode") or "default"),
        extra_hosts=_extra_hosts(attrs.get("add-hosts", "")),
        hostname=build_args.get("BUILDKIT_SANDBOX_HOSTNAME") or attrs.get("hostname", ""),
        network=_choice(NetworkMode, "force-network-mode", attrs.get("force-network-mode") or "sandbox"),
        limits=_limits(attrs),
        entitlements=frozenset(entitlements),
        cache_imports=_cache_imports(attrs),
        provenance=attestations.get("provenance"),
        sbom=attestations.get("sbom"),
        epoch=_number("build-arg:SOURCE_DATE_EPOCH", build_args.get("SOURCE_DATE_EPOCH", "")),
        call=_call(attrs.get("requestid", "")),
    )


def _check_frontend(attrs: Mapping[str, str]) -> None:
    """A frontend from an image is never run; the language that nearly all of them are is built in."""
    for name in ("source", "build-arg:BUILDKIT_SYNTAX", "cmdline"):
        if value := attrs.get(name, "").strip():
            check_frontend(value)
    for wanted in filter(None, attrs.get("frontend.caps", "").split(",")):
        if wanted.partition("+")[0] not in CAPABILITIES:  # "+forward" is for frontends that hand on to others
            raise NotSupported(f"unsupported frontend capability {wanted[:100]}")


def _group(attrs: Mapping[str, str], prefix: str) -> dict[str, str]:
    """By name, sorted: clients send a map without an order, and the digest of an image must not depend on chance."""
    return {name[len(prefix) :]: attrs[name] for name in sorted(attrs) if name.startswith(prefix)}


def _choice(kind: type[_Choice], name: str, value: str) -> _Choice:
    try:
        return kind(value)
    except ValueError:
        raise _bad(name, value, f"want one of {', '.join(kind)}") from None


def _bad(name: str, value: str, why: str) -> InvalidParameter:
    return InvalidParameter(f"invalid {name} {value[:200]!r}: {why}")


def _number(name: str, value: str, *, below_zero: bool = False) -> int | None:
    """None for ""."""
    if not value:
        return None
    try:
        number = int(value)
    except ValueError:
        raise _bad(name, value, "want a whole number") from None
    if not -(below_zero) <= number < 1 << 63:
        raise _bad(name, value, "out of range")
    return number


def _boolean(name: str, value: str) -> bool:
    if value not in _TRUE | _FALSE:
        raise InvalidParameter(f"invalid boolean value for {name}: {value[:100]}")
    return value in _TRUE


def _fields(name: str, value: str) -> list[str]:
    """One line of comma separated values, with quotes as CSV has them."""
    if not value:
        return []
    try:
        return next(csv.reader([value], strict=True))
    except (csv.Error, StopIteration):
        raise _bad(name, value, "not a list of comma separated values") from None


def _pairs(name: str, value: str) -> list[tuple[str, str]]:
    pairs = [field.partition("=") for field in _fields(name, value)]
    for key, equals, _ in pairs:
        if not equals:
            raise _bad(name, value, f"invalid key-value pair {key!r}")
    return [(key, item) for key, _, item in pairs]


def _platforms(value: str) -> tuple[Platform, ...]:
    def parse(text: str) -> Platform:
        try:
            return parse_platform(text)
        except InvalidParameter as exc:
            raise InvalidParameter(f"failed to parse target platform {text[:100]}: {exc}") from None

    return tuple(dict.fromkeys(map(parse, value.split(",")))) if value else ()


def _multi_platform(attrs: Mapping[str, str], build_args: Mapping[str, str], count: int) -> bool:
    said = build_args.get("BUILDKIT_MULTI_PLATFORM") or attrs.get("multi-platform", "")
    if not said:
        return count > 1
    wanted = _boolean("multi-platform", said)
    if not wanted and count > 1:
        raise InvalidParameter("conflicting config: returning multiple target platforms is not allowed")
    return wanted


def _extra_hosts(value: str) -> tuple[tuple[str, str], ...]:
    hosts = [(host.lower(), address.lower()) for host, address in _pairs("add-hosts", value)]
    for _, address in hosts:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise InvalidParameter(f"failed to parse additional hosts: failed to parse IP {address[:100]}") from None
    return tuple(hosts)


def _limits(attrs: Mapping[str, str]) -> Limits:
    numbers = {
        field: _number(name, attrs.get(name, ""), below_zero=name in _BELOW_ZERO) or 0
        for name, field in _LIMITS.items()
    }
    return Limits(
        **numbers,
        cpuset_cpus=attrs.get("cpusetcpus", ""),
        cpuset_mems=attrs.get("cpusetmems", ""),
        ulimits=tuple(parse_ulimit(field) for field in _fields("ulimit", attrs.get("ulimit", ""))),
        cgroup_parent=attrs.get("cgroup-parent", ""),
    )


def parse_ulimit(text: str) -> Ulimit:
    """`name=soft[:hard]`; -1 is no limit. Raises InvalidParameter in Docker's words."""
    name, equals, values = text.partition("=")
    if not equals:
        raise InvalidParameter(f"invalid ulimit argument: {text[:100]}")
    if name not in _ULIMITS:
        raise InvalidParameter(f"invalid ulimit type: {name[:100]}")
    parts = values.split(":")
    if len(parts) > 2:
        raise InvalidParameter(f"too many limit values - {values[:100]}, can only have up to two, `soft[:hard]`")
    soft, hard = (_limit(text, part) for part in (parts[0], parts[-1]))
    if hard != -1 and (soft == -1 or soft > hard):
        raise InvalidParameter(f"ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}")
    return Ulimit(name, soft, hard)


def _limit(text: str, part: str) -> int:
    number = _number("ulimit", part, below_zero=True)
    if number is None:
        raise InvalidParameter(f"invalid ulimit argument: {text[:100]}")
    return number


def _contexts(attrs: Mapping[str, str], inputs: Mapping[str, Output]) -> dict[str, NamedContext]:
    found = {}
    for name, value in _group(attrs, "context:").items():
        kind, colon, key = value.partition(":")
        if not colon:
            raise InvalidParameter(f"invalid context specifier {value[:200]} for {name[:100]}")
        if kind != "input":
            found[name] = NamedContext(value=value)
            continue
        if key not in inputs:
            raise InvalidParameter(f"invalid input {key[:100]} for {name[:100]}")
        config = _input_config(key, attrs.get(f"input-metadata:{key}", ""))
        found[name] = NamedContext(value=value, output=inputs[key], config=config)
    return found


def _input_config(key: str, metadata: str) -> bytes:
    """The image config in an input's metadata, a JSON object of texts in base64."""
    if not metadata:
        return b""
    try:
        values = msgspec.json.decode(metadata, type=dict[str, bytes | None])
    except msgspec.DecodeError as exc:
        raise InvalidParameter(f"failed to parse input metadata of {key[:100]}: {exc}") from None
    return values.get("containerimage.config") or b""


def _cache_imports(attrs: Mapping[str, str]) -> tuple[CacheTransfer, ...]:
    imports = []
    if given := attrs.get("cache-imports", ""):
        try:
            entries = msgspec.json.decode(given, type=list[_CacheImport] | None)
        except msgspec.DecodeError as exc:
            raise _bad("cache-imports", given, str(exc)) from None
        imports = [CacheTransfer(type=entry.type, attributes=entry.attributes or {}) for entry in entries or []]
    older = filter(None, attrs.get("cache-from", "").split(","))
    return (*imports, *(CacheTransfer(type="registry", attributes={"ref": reference}) for reference in older))


def _attestation(name: str, value: str) -> dict[str, str] | None:
    """Attributes of one that is wanted; None for `disabled=true`."""
    attributes = dict(_pairs(f"attest:{name}", value))
    if _boolean(f"attest:{name} disabled", attributes.pop("disabled", "") or "false"):
        return None
    return attributes


def _call(request: str) -> Call:
    if not request:
        return Call.BUILD
    try:
        return Call(request)
    except ValueError:
        raise NotSupported(f"unsupported request {request[:100]}") from None
