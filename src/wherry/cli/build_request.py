"""From the command line of `build` to the request, and to what the engine may ask for while it works on it.

The request carries what BuildKit's clients send: attributes of the frontend, outputs, cache exports, entitlements.
"""

from __future__ import annotations

import os

from wherry.cli.build_flags import CALLS
from wherry.cli.console import Failure
from wherry.cli.names import InvalidReference, parse_name
from wherry.cli.run_values import split_csv
from wherry.client.jsontext import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from wherry.cli.command import CLI
    from wherry.cli.flags import Flags

ARCHIVES = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
TAR_MAGIC, TAR_MAGIC_AT = b"ustar", 257
SESSION_URL = "http://buildkit-session/context"  # stands for the archive on standard input
REMOTE = ("http://", "https://", "git://", "ssh://", "git@", "github.com/")
ELSEWHERE = (*REMOTE, "docker-image://", "target:")  # a named context that is not here
IMAGES = ("image", "docker", "registry", "moby")
EXPORT = "export"  # the content store of an OCI layout that is written
BYTE_STREAMS = ("tar", "oci", "docker")
NUMBERS = {
    "memory": "memory",
    "memory-swap": "memswap",
    "cpu-shares": "cpushares",
    "cpu-period": "cpuperiod",
    "cpu-quota": "cpuquota",
    "shm-size": "shm-size",
}
TEXTS = {"cpuset-cpus": "cpusetcpus", "cpuset-mems": "cpusetmems", "cgroup-parent": "cgroup-parent", "target": "target"}
PROXIES = {
    "httpProxy": "HTTP_PROXY",
    "httpsProxy": "HTTPS_PROXY",
    "ftpProxy": "FTP_PROXY",
    "noProxy": "NO_PROXY",
    "allProxy": "ALL_PROXY",
}


class Output:
    """Where the result of one `--output` goes: a directory, a file, standard output (`-`), or nowhere here ("")."""

    __slots__ = ("attributes", "path", "type")

    def __init__(self, type_: str, attributes: dict[str, str], path: str = "") -> None:
        self.type = type_
        self.attributes = attributes
        self.path = path

    @property
    def is_layout(self) -> bool:
        """An OCI layout in a directory."""
        return self.type == "oci" and self.attributes.get("tar") == "false"


class Secret:
    """A file's content, or a variable's."""

    __slots__ = ("path", "variable")

    def __init__(self, *, path: str = "", variable: str = "") -> None:
        self.path = path
        self.variable = variable


class Plan:
    """The request, and what this command line allows the engine to ask for."""

    def __init__(self) -> None:
        self.attributes: dict[str, str] = {}
        self.entitlements: list[str] = []
        self.outputs: list[Output] = []
        self.cache_exports: list[dict[str, Any]] = []
        self.directories: dict[str, str] = {}  # name -> path
        self.files: dict[str, dict[str, bytes]] = {}  # name -> files of a directory that is only here
        self.secrets: dict[str, Secret] = {}
        self.agents: dict[str, str] = {}  # id -> socket
        self.keys: dict[str, list[str]] = {}  # id -> files, for an agent of this build's own
        self.stores: dict[str, str] = {}  # content store -> OCI layout
        self.archive: bytes | None = None  # beginning of the context on standard input
        self.call = ""
        self.squash = self.shell = self.verify = False

    def head(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "type": "build",
            "node": os.uname().nodename,
            "attributes": self.attributes,
            "entitlements": self.entitlements,
            "exports": [{"type": each.type, "attributes": each.attributes} for each in self.outputs],
            "cache_exports": self.cache_exports,
        }
        found.update({name: True for name in ("squash", "shell", "verify") if getattr(self, name)})
        return found


def plan_build(cli: CLI, flags: Flags, context: str) -> Plan:
    """Failure for what makes no sense, in docker's words where it has them."""
    plan = Plan()
    attributes = plan.attributes
    _add_context(plan, flags, context)
    _add_arguments(cli, plan, flags)
    for label in flags.texts("label"):
        name, _, value = label.partition("=")
        attributes[f"label:{name}"] = value
    for flag, attribute in TEXTS.items():
        if flags.text(flag):
            attributes[attribute] = flags.text(flag)
    for flag, attribute in NUMBERS.items():
        if flags.number(flag):
            attributes[attribute] = str(flags.number(flag))
    default = cli.environ.get("DOCKER_DEFAULT_PLATFORM", "")
    if platforms := flags.texts("platform") or [each for each in (default,) if each]:
        attributes["platform"] = ",".join(platforms)
    attributes["image-resolve-mode"] = "pull" if flags.on("pull") else "local"
    _add_steps(plan, flags)
    _add_named_contexts(plan, flags)
    _add_secrets(cli, plan, flags)
    _add_agents(cli, plan, flags)
    _add_caches(plan, flags)
    _add_attestations(plan, flags)
    _add_outputs(plan, flags)
    return plan


# --- the context ------------------------------------------------------------------------------------------------------


def is_remote(text: str) -> bool:
    return text.startswith(REMOTE)


def is_archive(data: bytes) -> bool:
    return data.startswith(ARCHIVES) or data[TAR_MAGIC_AT : TAR_MAGIC_AT + len(TAR_MAGIC)] == TAR_MAGIC


def _add_context(plan: Plan, flags: Flags, context: str) -> None:
    attributes, file = plan.attributes, flags.text("file")
    attributes["filename"] = "Dockerfile"
    if context == "-":
        if file == "-":
            raise Failure("invalid argument: can't use stdin for both build context and dockerfile")
        data = _read(0, 512)
        if is_archive(data):
            plan.archive = data
            attributes["context"] = SESSION_URL
            attributes["filename"] = file or "Dockerfile"
            return
        if file:
            raise Failure("ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles")
        if not data:
            raise Failure("build context is empty: standard input holds neither an archive nor a Dockerfile")
        plan.files["dockerfile"] = {"Dockerfile": data + _read(0)}
        plan.files["context"] = {}
    elif os.path.isdir(context):
        _add_directory(plan, "context", context)
        if file == "-":
            plan.files["dockerfile"] = {"Dockerfile": _read(0)}
        elif file:
            _add_directory(plan, "dockerfile", os.path.dirname(file) or ".")
            attributes["filename"] = os.path.basename(file)
            if not os.path.exists(file):
                raise Failure(f"failed to read dockerfile: open {file}: no such file or directory")
        else:
            plan.directories["dockerfile"] = plan.directories["context"]
            attributes["filename"] = _default_file(context)
    elif is_remote(context):
        attributes["context"] = context
        attributes["filename"] = file or "Dockerfile"
        if file == "-":
            attributes["filename"] = "Dockerfile"
            attributes["dockerfilekey"] = "dockerfile"
            plan.files["dockerfile"] = {"Dockerfile": _read(0)}
    else:
        raise Failure(f'unable to prepare context: path "{context}" not found')


def _default_file(context: str) -> str:
    """`Dockerfile`, or `dockerfile` where there is only that."""
    if not os.path.lexists(f"{context}/Dockerfile") and os.path.lexists(f"{context}/dockerfile"):
        return "dockerfile"
    return "Dockerfile"


def _add_directory(plan: Plan, name: str, path: str) -> None:
    full = os.path.realpath(path)
    plan.directories[name] = full
    plan.attributes[f"sharedkey:localdir:{name}"] = full


def _read(fd: int, least: int = 0) -> bytes:
    """To the end; or, with `least`, so many bytes as it takes to know what they are."""
    data = b""
    while piece := os.read(fd, 1 << 16):
        data += piece
        if least and len(data) >= least:
            break
    return data


def _add_named_contexts(plan: Plan, flags: Flags) -> None:
    for text in flags.texts("build-context"):
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise Failure(f"invalid context value: {text}, expected key=value")
        if value.startswith("oci-layout://"):
            value = _layout(plan, name, value.removeprefix("oci-layout://"))
        elif not value.startswith(ELSEWHERE):
            if not os.path.isdir(value):
                raise Failure(f'failed to get build context {name}: path "{value}" not found')
            local = f"_{name}" if name in ("context", "dockerfile") else name
            _add_directory(plan, local, value)
            value = f"local:{local}"
        plan.attributes[f"context:{name}"] = value


def _layout(plan: Plan, name: str, text: str) -> str:
    """`path[:tag][@digest]` of an OCI layout here, by digest for the engine."""
    from wherry.cli.build_layouts import LayoutError, digest_of

    path, _, digest = text.partition("@")
    tag = "latest"
    if not os.path.isdir(path) and ":" in path:
        path, _, tag = path.rpartition(":")
    try:
        digest = digest or digest_of(path, tag)
    except LayoutError as exc:
        raise Failure(f"failed to get build context {name}: {exc}") from None
    store = f"ctx-{len(plan.stores)}"
    plan.stores[f"oci:{store}"] = os.path.realpath(path)
    return f"oci-layout://{store}@{digest}"


# --- what steps see ---------------------------------------------------------------------------------------------------


def _add_arguments(cli: CLI, plan: Plan, flags: Flags) -> None:
    given: dict[str, str] = {}
    for text in flags.texts("build-arg"):
        name, equals, value = text.partition("=")
        if equals:
            given[name] = value
        elif name in cli.environ:
            given[name] = cli.environ[name]
    proxies = cli.config.get("proxies")
    if isinstance(proxies, dict):
        hosts = cli.globals.texts("host")
        chosen = proxies.get(hosts[0] if hosts else cli.environ.get("DOCKER_HOST", "")) or proxies.get("default") or {}
        for key, variable in PROXIES.items():
            if found := chosen.get(key):
                for word in (variable, variable.lower()):
                    given.setdefault(word, str(found))
    if epoch := cli.environ.get("SOURCE_DATE_EPOCH"):
        given.setdefault("SOURCE_DATE_EPOCH", epoch)
    for name, value in given.items():
        plan.attributes[f"build-arg:{name}"] = value


def _add_steps(plan: Plan, flags: Flags) -> None:
    attributes = plan.attributes
    if flags.on("no-cache"):
        if flags.texts("no-cache-filter"):
            raise Failure("--no-cache and --no-cache-filter cannot currently be used together")
        attributes["no-cache"] = ""
    elif flags.texts("no-cache-filter"):
        attributes["no-cache"] = ",".join(flags.texts("no-cache-filter"))
    plan.entitlements = list(flags.texts("allow"))
    network = flags.text("network")
    if network in ("host", "none"):
        attributes["force-network-mode"] = network
        if network == "host":
            plan.entitlements.append("network.host")
    elif network not in ("", "default", "bridge"):
        raise Failure(f'network mode "{network}" not supported by builds: they know default, host and none')
    if hosts := flags.texts("add-host"):
        attributes["add-hosts"] = ",".join(_quoted(host.replace(":", "=", 1)) for host in hosts)
    if ulimits := flags.texts("ulimit"):
        attributes["ulimit"] = ",".join(ulimits)
    plan.squash, plan.verify = flags.on("squash"), flags.on("verify")
    plan.shell = flags.text("on-error") == "shell"
    call, _, _ = flags.text("call").partition(",")
    if flags.on("check"):
        if call not in ("", "check", "lint"):
            raise Failure("--check and --call cannot be used together")
        call = "check"
    if plan_call := CALLS.get(call, ""):
        plan.call = call
        attributes["requestid"] = plan_call
        attributes["frontend.caps"] = "moby.buildkit.frontend.subrequests+forward"


def _quoted(field: str) -> str:
    return '"' + field.replace('"', '""') + '"' if "," in field or '"' in field else field


def _add_secrets(cli: CLI, plan: Plan, flags: Flags) -> None:
    for text in flags.texts("secret"):
        fields = _fields(text, "secret")
        identifier, kind = fields.get("id", ""), fields.get("type", "")
        if not identifier:
            raise Failure(f"invalid secret {text!r}: it has no id")
        if unknown := fields.keys() - {"id", "type", "src", "source", "env"}:
            raise Failure(f"unexpected key '{min(unknown)}' in '{text}'")
        if kind not in ("", "file", "env"):
            raise Failure(f"unsupported secret type {kind!r}")
        path, variable = fields.get("src") or fields.get("source") or "", fields.get("env", "")
        if kind == "env" and path and not variable:
            path, variable = "", path
        if not path and not variable:
            if kind == "env" or (kind != "file" and identifier in cli.environ):
                variable = identifier
            else:
                path = identifier
        if path and not os.path.isfile(path):
            raise Failure(f"failed to stat {path}: stat {path}: no such file or directory")
        plan.secrets[identifier] = Secret(path=path, variable=variable)


def _add_agents(cli: CLI, plan: Plan, flags: Flags) -> None:
    """`id`, `id=socket`, `id=key,key`."""
    import stat

    for text in flags.texts("ssh"):
        identifier, _, given = text.partition("=")
        identifier = identifier or "default"
        paths = given.split(",") if given else [cli.environ.get("SSH_AUTH_SOCK", "")]
        if not paths[0]:
            raise Failure("invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set")
        sockets = 0
        for path in paths:
            try:
                sockets += stat.S_ISSOCK(os.stat(path).st_mode)
            except OSError as exc:
                raise Failure(f"failed to open {path}: {(exc.strerror or '').lower()}") from None
        if not sockets:
            plan.keys[identifier] = paths
        elif len(paths) > 1:
            raise Failure("only single socket allowed")
        else:
            plan.agents[identifier] = paths[0]


# --- caches, attestations, outputs ------------------------------------------------------------------------------------


def _fields(text: str, what: str) -> dict[str, str]:
    """`a=b,c=d`."""
    try:
        fields = split_csv(text)
    except ValueError as exc:
        raise Failure(f"invalid {what} {text!r}: {exc}") from None
    found = {}
    for field in fields:
        name, equals, value = field.partition("=")
        if not equals:
            raise Failure(f"invalid {what} {text!r}: invalid field '{field}' must be a key=value pair")
        found[name.strip().lower()] = value
    return found


def _cache(text: str, what: str) -> tuple[str, dict[str, str]]:
    if "=" not in text:
        return "registry", {"ref": text}
    fields = _fields(text, what)
    kind = fields.pop("type", "")
    if not kind:
        raise Failure(f"type required form> {text!r}")
    return kind, fields


def _add_caches(plan: Plan, flags: Flags) -> None:
    from wherry.cli.build_layouts import LayoutError, digest_of

    imports = []
    for text in flags.texts("cache-from"):
        kind, fields = _cache(text, "cache source")
        if kind == "local":
            source = fields.get("src", "")
            if not source:
                raise Failure("local cache importer requires src")
            if "digest" not in fields:
                try:
                    fields["digest"] = digest_of(source, fields.get("tag", "latest"))
                except LayoutError as exc:
                    from wherry.cli.console import warn

                    warn(f"WARNING: local cache import at {source} not found due to err: {exc}")
                    continue
            plan.stores[f"local:{source}"] = os.path.realpath(source)
        imports.append({"Type": kind, "Attrs": fields})
    if imports:
        plan.attributes["cache-imports"] = dumps(imports)
    for text in flags.texts("cache-to"):
        kind, fields = _cache(text, "cache export")
        if kind == "local":
            if not fields.get("dest"):
                raise Failure("local cache exporter requires dest")
            plan.stores[f"local:{fields['dest']}"] = os.path.realpath(fields["dest"])
        plan.cache_exports.append({"type": kind, "attributes": fields})


def _add_attestations(plan: Plan, flags: Flags) -> None:
    for text in flags.texts("attest"):
        fields = split_csv(text)
        kinds = [field.partition("=")[2] for field in fields if field.startswith("type=")]
        if len(kinds) != 1 or not kinds[0]:
            raise Failure(f"attestation type not specified: {text}")
        plan.attributes[f"attest:{kinds[0]}"] = ",".join(field for field in fields if not field.startswith("type="))
    for kind in ("provenance", "sbom"):
        value = flags.text(kind)
        if not value:
            continue
        if value in ("false", "0"):
            plan.attributes[f"attest:{kind}"] = "disabled=true"
        else:
            plan.attributes[f"attest:{kind}"] = "" if value in ("true", "1") else value


def _tags(flags: Flags) -> str:
    names = []
    for text in flags.texts("tag"):
        try:
            name = parse_name(text).with_default_tag()
        except InvalidReference as exc:
            raise Failure(f'invalid tag "{text}": {exc}') from None
        names.append(name.repository + name.suffix)
    return ",".join(dict.fromkeys(names))


def _add_outputs(plan: Plan, flags: Flags) -> None:
    names = _tags(flags)
    if plan.call:
        return
    outputs = [_output(text) for text in flags.texts("output")]
    if flags.on("push"):
        pushed = [each for each in outputs if each.type == "image"] or [Output("image", {})]
        for each in pushed:
            each.attributes["push"] = "true"
        outputs += [each for each in pushed if each not in outputs]
    if not outputs or (flags.on("load") and not any(each.type == "image" for each in outputs)):
        outputs.append(Output("image", {}))
    for each in outputs:
        if names and each.type in (*IMAGES, "oci"):
            each.attributes.setdefault("name", names)
        if each.attributes.get("push") == "true" and not each.attributes.get("name"):
            raise Failure("tag is needed when pushing to registry")
        for text in flags.texts("annotation"):
            name, equals, value = text.partition("=")
            if not equals:
                raise Failure(f"invalid annotation {text!r}, expected key=value")
            kind, colon, key = name.partition(":")
            if each.type in (*IMAGES, "oci"):
                each.attributes[f"annotation-{kind}.{key}" if colon else f"annotation.{name}"] = value
    if sum(each.path == "-" for each in outputs) > 1:
        raise Failure("multiple outputs to stdout are not possible")
    plan.outputs = [each for each in outputs if each.type != "cacheonly"]
    layouts = [each for each in plan.outputs if each.is_layout]
    if len(layouts) > 1:
        raise Failure("only one output can be an OCI layout in a directory (tar=false)")
    for each in layouts:
        plan.stores[EXPORT] = os.path.realpath(each.path)


def _output(text: str) -> Output:
    if "=" not in text.partition(",")[0]:
        if text == "-":
            return _to_stream(Output("tar", {}, "-"))
        return Output("local", {}, text)
    fields = _fields(text, "output")
    kind, path = fields.pop("type", ""), fields.pop("dest", "")
    if not kind:
        raise Failure("type is required for output")
    if kind == "local":
        if not path or path == "-":
            raise Failure("dest is required for local output" if not path else "dest cannot be stdout for local output")
        return Output("local", fields, path)
    if kind == "registry":
        return Output("image", {**fields, "push": fields.get("push", "true")})
    if kind == "docker" and not path:
        return Output("image", fields)
    if kind in BYTE_STREAMS:
        if kind == "oci" and fields.get("tar") == "false":
            if not path:
                raise Failure("dest is required for oci output with tar=false")
            return Output("oci", fields, path)  # its blobs come into content store EXPORT
        return _to_stream(Output(kind, fields, path or "-"))
    if path:
        raise Failure(f"dest is not supported for {kind} output")
    if kind not in ("image", "moby", "cacheonly"):
        raise Failure(f"unknown type of output: {kind}: there are image, registry, local, tar, oci, docker, cacheonly")
    return Output("image" if kind == "moby" else kind, fields)


def _to_stream(output: Output) -> Output:
    if output.path == "-" and os.isatty(1):
        raise Failure("dest file is required for the exporter. refusing to write to console")
    if output.path != "-" and os.path.isdir(output.path):
        raise Failure(f"destination file {output.path} is a directory")
    return output
