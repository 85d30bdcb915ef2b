"""`POST /build`: its query and headers as what the builder understands.

Everything that can be refused is refused here, before the context is read: an ordinary HTTP error in Docker's words.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec

from wherry import reference
from wherry.api.call import Call
from wherry.builder.attributes import from_attributes
from wherry.builder.graph import Limits, NetworkMode, ResolveMode, Ulimit
from wherry.builder.options import CacheTransfer, Export, Options
from wherry.errors import InvalidParameter, NotSupported
from wherry.network.files import parse_extra_host
from wherry.reference import Reference
from wherry.spec.distribution import Auth

HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
IMAGES = frozenset({"moby", "image"})  # of `outputs`: what a client without a session can be given
NETWORKS = {
    "": NetworkMode.SANDBOX,
    "default": NetworkMode.SANDBOX,
    "bridge": NetworkMode.SANDBOX,
    "host": NetworkMode.HOST,
    "none": NetworkMode.NONE,
}
MAX_CONFIG = 1 << 20  # characters of an X-Registry-Config header

T = TypeVar("T")


class _Ulimit(msgspec.Struct, rename="pascal"):
    name: str
    soft: int = 0
    hard: int = 0


class _Output(msgspec.Struct, rename="pascal"):
    type: str = ""
    attrs: dict[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """What was asked for. The context is the body, or is fetched from `remote`."""

    options: Options
    attributes: Mapping[str, str]  # the same in the words of BuildKit's clients, for the record
    names: Sequence[Reference]
    export: Export
    remote: str = ""  # URL of a git repository, a tar or a Dockerfile
    quiet: bool = False
    force_remove: bool = False  # say that the container of a failed step is gone, too
    build_id: str = ""  # that `POST /build/cancel` names
    credentials: Mapping[str, Auth]  # by host


def read(call: Call) -> BuildRequest:
    """Raises InvalidParameter, and NotSupported for what no build here can do."""
    _check_builder(call)
    names = _names(call.texts("t"))
    network, on = _network(call.text("networkmode"))
    hosts = [_host(text) for text in call.texts("extrahosts") if text]
    attributes = _attributes(call, network)
    options = from_attributes(attributes, entitlements={"network.host"} if network is NetworkMode.HOST else ())
    attributes["context"] = call.text("remote")
    attributes["add-hosts"] = ",".join(f"{name}={address}" for name, address in hosts)
    return BuildRequest(
        options=replace(
            options,
            extra_hosts=hosts,
            on=on,
            limits=_limits(call),
            cache_imports=[
                CacheTransfer(type="registry", attributes={"ref": name})
                for name in _json(call.text("cachefrom"), list[str], "cache sources") or []
            ],
            squash=call.flag("squash"),
        ),
        attributes={name: value for name, value in attributes.items() if value or name == "no-cache"},
        names=names,
        export=_export(call.text("outputs"), names),
        remote=call.text("remote"),
        quiet=call.flag("q"),
        force_remove=call.flag("forcerm"),
        build_id=call.text("buildid"),
        credentials=registry_credentials(call.request.headers.get("X-Registry-Config")),
    )


def _attributes(call: Call, network: NetworkMode) -> dict[str, str]:
    """In the words of BuildKit's clients, some of whose build arguments mean something to the builder."""
    if "," in call.text("platform"):
        raise InvalidParameter("the classic builder builds for one platform at a time: use `wherry build`, or buildx")
    found = {
        "filename": call.text("dockerfile") or "Dockerfile",
        "target": call.text("target"),
        "platform": call.text("platform"),
        "image-resolve-mode": ResolveMode.PULL if call.flag("pull") else ResolveMode.LOCAL,
        "force-network-mode": "" if network is NetworkMode.SANDBOX else network,
    }
    if call.flag("nocache"):
        found["no-cache"] = ""
    found.update({f"build-arg:{name}": value for name, value in _build_args(call.text("buildargs")).items()})
    labels = _json(call.text("labels"), dict[str, str], "labels") or {}
    found.update({f"label:{name}": value for name, value in labels.items()})
    return found


def _check_builder(call: Call) -> None:
    version = call.text("version", "1") or "1"
    if version == "2":
        raise NotSupported(
            "this way to BuildKit (POST /build with version=2) is not offered: install the buildx plugin, with which "
            "`docker build` and `docker buildx build` talk to this engine, or set DOCKER_BUILDKIT=0 for the classic way"
        )
    if version != "1":
        raise InvalidParameter(f'invalid version "{version}"')
    if _json(call.text("securityopt"), list[str], "security options"):
        raise InvalidParameter("The daemon on this platform does not support setting security options on build")


def _names(texts: Sequence[str]) -> list[Reference]:
    """As given, with a tag, each once."""
    found = {}
    for text in texts:
        if not text:
            continue
        name = reference.parse(text)
        if name.digest:
            raise InvalidParameter("refusing to create a tag with a digest reference")
        found[str(name.tagged())] = name.tagged()
    return list(found.values())


def _export(raw: str, names: Sequence[Reference]) -> Export:
    attributes = {"name": ",".join(str(name) for name in names)} if names else {}
    outputs = _json(raw, list[_Output], "outputs") or []
    if len(outputs) > 1:
        raise InvalidParameter("outputs: a build without a session has one output, an image")
    for output in outputs:
        if output.type not in IMAGES:
            raise NotSupported(
                f"output type {output.type!r} needs a client that can receive files: `wherry build -o`, or buildx"
            )
        attributes = {**(output.attrs or {}), **attributes}
    attributes.pop("type", None)
    return Export(type="image", attributes=attributes)


def _build_args(raw: str) -> dict[str, str]:
    """A name without a value (null) is as if it was not given."""
    given = _json(raw, dict[str, str | None], "build args") or {}
    return {name: value for name, value in given.items() if value is not None}


def _json(raw: str, kind: type[T], what: str) -> T | None:
    if not raw:
        return None
    try:
        return msgspec.json.decode(raw, type=kind | None)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as exc:
        raise InvalidParameter(f"error reading {what}: {exc}") from None


def _host(text: str) -> tuple[str, str]:
    """`name:address`; `name=address` as well. `host-gateway` is kept: the network knows it."""
    name, equals, address = text.partition("=")
    return parse_extra_host(f"{name}:{address}" if equals and ":" not in name else text)


def _network(mode: str) -> tuple[NetworkMode, str]:
    """What a step gets, and the network it is on when that is one that somebody made."""
    if mode in NETWORKS:
        return NETWORKS[mode], ""
    if mode.startswith("container:"):
        raise NotSupported(
            f'network mode "{mode}" is not supported by builds: they know default, host, none and networks by name'
        )
    return NetworkMode.SANDBOX, mode


def _limits(call: Call) -> Limits:
    ulimits = _json(call.text("ulimits"), list[_Ulimit], "ulimit settings") or []
    return Limits(
        memory=_amount(call, "memory"),
        memory_swap=call.number("memswap") or 0,
        cpu_shares=_amount(call, "cpushares"),
        cpu_period=_amount(call, "cpuperiod"),
        cpu_quota=call.number("cpuquota") or 0,
        cpuset_cpus=call.text("cpusetcpus"),
        cpuset_mems=call.text("cpusetmems"),
        ulimits=tuple(Ulimit(each.name, each.soft, each.hard) for each in ulimits),
        cgroup_parent=call.text("cgroupparent"),
        shm_size=_amount(call, "shmsize"),
    )


def _amount(call: Call, name: str) -> int:
    value = call.number(name) or 0
    if value < 0:
        raise InvalidParameter(f"{name} cannot be negative: {value}")
    return value


def registry_credentials(header: str | None) -> dict[str, Auth]:
    """An `X-Registry-Config` header (base64url of JSON: server -> credentials) by host, Docker Hub as docker.io.

    As in Docker one that cannot be read counts as none.
    """
    if not header or len(header) > MAX_CONFIG:
        return {}
    try:
        padded = header.strip().rstrip("=")
        raw = base64.b64decode(padded + "=" * (-len(padded) % 4), altchars=b"-_", validate=True)
        document = msgspec.json.decode(raw, type=dict[str, dict[str, object]] | None)
        found = {}
        for server, entry in (document or {}).items():
            given = {key: value for key, value in entry.items() if value is not None}
            found[host_of(server)] = msgspec.convert(given, Auth)
    except (ValueError, msgspec.MsgspecError, RecursionError):
        return {}
    return found


def host_of(server: str) -> str:
    """`https://index.docker.io/v1/` -> docker.io; `http://reg:5000/v2/` -> reg:5000."""
    host = server.removeprefix("https://").removeprefix("http://").partition("/")[0]
    return "docker.io" if host in HUB else host
