"""`--change`: a few Dockerfile instructions laid over an image's config, for commit and import. Pure.

Docker's grammar of each instruction, one per text; no variables are expanded. Words of errors are Docker's.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import msgspec

from wherry.errors import InvalidParameter
from wherry.spec.engine import ContainerConfig, HealthConfig, words

ALLOWED = (
    "CMD",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "HEALTHCHECK",
    "LABEL",
    "ONBUILD",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
)
DEFAULT_SHELL = ["/bin/sh", "-c"]
MAX_PORTS = 65535

_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?\Z", re.IGNORECASE | re.ASCII)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", re.ASCII)
_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_MILLISECOND = 10**6


def apply(config: ContainerConfig, changes: Sequence[str]) -> ContainerConfig:
    """`config` with all `changes`, in order. Raises InvalidParameter naming the instruction."""
    for change in changes:
        for line in _lines(change):
            name, _, rest = line.partition(" ")
            instruction = name.upper()
            if instruction not in ALLOWED:
                raise InvalidParameter(f"{name[:100].lower()} is not a valid change command")
            config = _APPLY[instruction](config, rest.strip())
    return config


def _lines(text: str) -> list[str]:
    """Instructions of one change: backslash-newline continues, comments and empty lines are skipped."""
    joined = re.sub(r"\\[ \t]*\n", "", text)
    lines = (line.strip().replace("\t", " ", 1) for line in joined.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _need(rest: str, name: str, what: str = "at least one argument") -> str:
    if not rest:
        raise InvalidParameter(f"{name} requires {what}")
    return rest


def _json_words(rest: str) -> list[str] | None:
    """The JSON form of a command, None when it is the shell form."""
    if not rest.startswith("["):
        return None
    try:
        return msgspec.json.decode(rest, type=list[str])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def _command(config: ContainerConfig, rest: str) -> list[str]:
    found = _json_words(rest)
    if found is not None:
        return found
    shell = config.shell if isinstance(config.shell, list) and config.shell else DEFAULT_SHELL
    return [*shell, rest] if rest else []


def _cmd(config: ContainerConfig, rest: str) -> ContainerConfig:
    return msgspec.structs.replace(config, cmd=_command(config, rest))


def _entrypoint(config: ContainerConfig, rest: str) -> ContainerConfig:
    """Setting it drops a command that came from elsewhere only in a build; a change leaves the command."""
    return msgspec.structs.replace(config, entrypoint=_command(config, rest) or None)


def _env(config: ContainerConfig, rest: str) -> ContainerConfig:
    env = list(config.env or [])
    for name, value in pairs(rest, "ENV"):
        env = [entry for entry in env if entry.partition("=")[0] != name]
        env.append(f"{name}={value}")
    return msgspec.structs.replace(config, env=env)


def _label(config: ContainerConfig, rest: str) -> ContainerConfig:
    return msgspec.structs.replace(config, labels={**(config.labels or {}), **dict(pairs(rest, "LABEL"))})


def _expose(config: ContainerConfig, rest: str) -> ContainerConfig:
    ports = dict(config.exposed_ports or {})
    for word in _need(rest, "EXPOSE").split():
        match = _PORT.match(word)
        if match is None or not 0 < int(match[1]) <= int(match[2] or match[1]) <= MAX_PORTS:
            raise InvalidParameter(f"invalid containerPort: {word[:100]}")
        protocol = (match[3] or "tcp").lower()
        ports |= {f"{port}/{protocol}": {} for port in range(int(match[1]), int(match[2] or match[1]) + 1)}
    return msgspec.structs.replace(config, exposed_ports=ports)


def _volume(config: ContainerConfig, rest: str) -> ContainerConfig:
    found = _json_words(rest)
    paths = _need(rest, "VOLUME").split() if found is None else found
    if not all(path.strip() for path in paths):
        raise InvalidParameter("VOLUME specified can not be an empty string")
    return msgspec.structs.replace(config, volumes={**(config.volumes or {}), **{path: {} for path in paths}})


def _user(config: ContainerConfig, rest: str) -> ContainerConfig:
    return msgspec.structs.replace(config, user=_need(rest, "USER", "exactly one argument"))


def _workdir(config: ContainerConfig, rest: str) -> ContainerConfig:
    path = _need(rest, "WORKDIR", "exactly one argument")
    if not path.startswith("/"):
        path = f"{config.working_dir or '/'}/{path}"
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part and part != ".":
            parts.append(part)
    return msgspec.structs.replace(config, working_dir="/" + "/".join(parts))


def _on_build(config: ContainerConfig, rest: str) -> ContainerConfig:
    trigger = _need(rest, "ONBUILD").split()[0].upper()
    if trigger in ("ONBUILD", "FROM", "MAINTAINER"):
        chained = trigger == "ONBUILD"
        raise InvalidParameter(
            "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"
            if chained
            else f"{trigger} isn't allowed as an ONBUILD trigger"
        )
    return msgspec.structs.replace(config, on_build=[*(config.on_build or []), rest])


def _stop_signal(config: ContainerConfig, rest: str) -> ContainerConfig:
    return msgspec.structs.replace(config, stop_signal=_need(rest, "STOPSIGNAL", "exactly one argument"))


def _health_check(config: ContainerConfig, rest: str) -> ContainerConfig:
    options: dict[str, str] = {}
    while (match := re.match(r"--([a-z-]+)=(\S+)\s*", rest)) is not None:
        options[match[1]] = match[2]
        rest = rest[match.end() :]
    kind, _, command = _need(rest, "HEALTHCHECK").partition(" ")
    if kind.upper() == "NONE":
        if command.strip() or options:
            raise InvalidParameter("HEALTHCHECK NONE takes no arguments")
        return msgspec.structs.replace(config, healthcheck=HealthConfig(test=["NONE"]))
    if kind.upper() != "CMD":
        raise InvalidParameter(f"Unknown type {kind[:100]!r} in HEALTHCHECK (try CMD)")
    command = _need(command.strip(), "HEALTHCHECK CMD", "a command: missing command after HEALTHCHECK CMD")
    listed = _json_words(command)
    test = ["CMD", *listed] if listed is not None else ["CMD-SHELL", command]
    return msgspec.structs.replace(config, healthcheck=_health_config(test, options))


def _health_config(test: list[str], options: Mapping[str, str]) -> HealthConfig:
    known = {"interval", "timeout", "start-period", "start-interval", "retries"}
    for name in options.keys() - known:
        raise InvalidParameter(f"unknown flag: --{name}")
    retries = options.get("retries", "0")
    if not retries.isdigit():
        raise InvalidParameter(f"--retries must be a number of at least 0, not {retries!r}")
    return HealthConfig(
        test=test,
        interval=_duration(options, "interval"),
        timeout=_duration(options, "timeout"),
        start_period=_duration(options, "start-period"),
        start_interval=_duration(options, "start-interval"),
        retries=int(retries),
    )


def _duration(options: Mapping[str, str], name: str) -> int:
    text = options.get(name, "0s")
    if re.fullmatch(rf"(?:{_DURATION.pattern})+|0", text) is None:
        raise InvalidParameter(f"invalid duration {text[:100]!r} of --{name}")
    found = sum(int(float(number) * _UNITS[unit]) for number, unit in _DURATION.findall(text))
    if 0 < found < _MILLISECOND:
        raise InvalidParameter(f"Interval {name!r} cannot be less than 1ms")
    return found


def pairs(rest: str, name: str) -> list[tuple[str, str]]:
    """`k=v k2="v 2"`, or the old `k v with spaces`."""
    found = _split(_need(rest, name, "at least one argument"))
    if "=" not in found[0]:
        key, _, value = rest.partition(" ")
        if not value.strip():
            raise InvalidParameter(f"{name} must have two arguments")
        return [(key, value.strip())]
    result: list[tuple[str, str]] = []
    for word in found:
        key, equals, value = word.partition("=")
        if not equals:
            raise InvalidParameter(f"Syntax error - can't find = in {word[:100]!r}. Must be of the form: name=value")
        if not key:
            raise InvalidParameter(f"{name} names can not be blank")
        result.append((key, value))
    return result


def _split(text: str) -> list[str]:
    """Words, with quotes and backslashes taken away."""
    out: list[str] = []
    word: list[str] = []
    quote, started = "", False
    chars = iter(text)
    for char in chars:
        if char == "\\" and quote != "'":
            word.append(next(chars, ""))
            started = True
        elif quote:
            if char == quote:
                quote = ""
            else:
                word.append(char)
        elif char in "\"'":
            quote, started = char, True
        elif char.isspace():
            if started:
                out.append("".join(word))
            word, started = [], False
        else:
            word.append(char)
            started = True
    if quote:
        raise InvalidParameter(f"unexpected end of statement while looking for matching quote: {text[:100]}")
    return [*out, "".join(word)] if started else out


_APPLY: Mapping[str, Callable[[ContainerConfig, str], ContainerConfig]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _health_check,
    "LABEL": _label,
    "ONBUILD": _on_build,
    "STOPSIGNAL": _stop_signal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}


def merge(own: ContainerConfig, below: ContainerConfig) -> ContainerConfig:
    """A container's config as its image's: what it leaves open is as in the image it was made from."""
    fields: dict[str, object] = {}
    names = {entry.partition("=")[0] for entry in own.env or []}
    kept = [entry for entry in below.env or [] if entry.partition("=")[0] not in names]
    fields["env"] = [*(own.env or []), *kept] or None
    fields["labels"] = {**(below.labels or {}), **(own.labels or {})} or None
    fields["exposed_ports"] = {**(below.exposed_ports or {}), **(own.exposed_ports or {})} or None
    fields["volumes"] = {**(below.volumes or {}), **(own.volumes or {})} or None
    if not words(own.entrypoint):
        fields["entrypoint"] = below.entrypoint
        if not words(own.cmd):
            fields["cmd"] = below.cmd
    for name in ("user", "working_dir"):
        fields[name] = getattr(own, name) or getattr(below, name)
    if own.healthcheck is None:
        fields["healthcheck"] = below.healthcheck
    for name in ("stop_signal", "shell"):
        if getattr(own, name) is msgspec.UNSET:
            fields[name] = getattr(below, name)
    return msgspec.structs.replace(own, **fields)
