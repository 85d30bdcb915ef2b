"""`--change`: a few Dockerfile instructions laid over an image's config, for commit and import. Pure.

Docker's grammar of each instruction; variables are those of the config's environment. Words of errors are Docker's.
"""

import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from wherry.errors import InvalidParameter
from wherry.images.making.words import expand, quoted, split
from wherry.spec.engine import ContainerConfig, HealthConfig, words

DEFAULT_SHELL = ["/bin/sh", "-c"]
MAX_PORT = 65535

_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?\Z", re.ASCII)
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)", re.ASCII)
_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_MILLISECOND = 10**6
_CONTINUED = re.compile(r"\\[ \t]*\Z")
_FLAG = re.compile(r"(--\S*)(?:\s+|\Z)")
_REAL_TIME = re.compile(r"RT(?:MIN(?:\+(\d{1,2}))?|MAX(?:-(\d{1,2}))?)\Z", re.ASCII)


def apply(config: ContainerConfig, changes: Sequence[str]) -> ContainerConfig:
    """`config` with all `changes`, in order. Raises InvalidParameter naming the instruction."""
    if not changes:
        return config
    instructions = [_parse(line) for line in _lines("\n".join(changes))]
    if not instructions:
        raise InvalidParameter("file with no instructions")
    names = [name for name, _ in instructions]
    for at, (name, rest) in enumerate(instructions):
        if name == "ENTRYPOINT" and "CMD" not in names[:at]:
            config = msgspec.structs.replace(config, cmd=None)  # the command that was there was for another one
        config = _APPLY[name](config, rest)
    return config


def _lines(text: str) -> Iterator[str]:
    """Instructions: backslash-newline continues, comments and empty lines are skipped, also between the two."""
    held = ""
    for line in text.split("\n"):
        if line.lstrip().startswith("#") or not line.strip():
            continue
        held += line.rstrip("\r") if held else line.strip()
        if (match := _CONTINUED.search(held)) is not None:
            held = held[: match.start()]
            continue
        yield held
        held = ""
    if held.strip():
        yield held


def _parse(line: str) -> tuple[str, str]:
    """Name and rest of one instruction."""
    name, *rest = line.strip().split(None, 1)
    if name.upper() not in _APPLY:
        raise InvalidParameter(f"{name[:100].lower()} is not a valid change command")
    text = rest[0].strip() if rest else ""
    if name.upper() != "HEALTHCHECK" and (flag := _FLAG.match(text)) is not None and flag[1] != "--":
        raise InvalidParameter(f"unknown flag: {flag[1].partition('=')[0][:100]}")
    return name.upper(), text


def _need(rest: str, name: str, what: str = "at least one argument") -> str:
    if not rest:
        raise InvalidParameter(f"{name} requires {what}")
    return rest


def _variables(config: ContainerConfig) -> dict[str, str]:
    return dict(entry.partition("=")[::2] for entry in config.env or [])


def _json_words(rest: str) -> list[str] | None:
    """The JSON form of a command, None when it is the shell form."""
    if not rest.startswith("["):
        return None
    try:
        found = msgspec.json.decode(rest, type=list[object])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    strings = [word for word in found if isinstance(word, str)]
    if len(strings) != len(found):
        raise InvalidParameter("when using JSON array syntax, arrays must be comprised of strings only")
    return strings


def _command(config: ContainerConfig, rest: str) -> list[str]:
    found = _json_words(rest)
    if found is not None:
        return found
    shell = config.shell if isinstance(config.shell, list) and config.shell else DEFAULT_SHELL
    return [*shell, rest] if rest else [*shell]


def _cmd(config: ContainerConfig, rest: str) -> ContainerConfig:
    return msgspec.structs.replace(config, cmd=_command(config, rest))


def _entrypoint(config: ContainerConfig, rest: str) -> ContainerConfig:
    found = _command(config, rest) if rest else []
    return msgspec.structs.replace(config, entrypoint=found or None)


def _env(config: ContainerConfig, rest: str) -> ContainerConfig:
    env = list(config.env or [])
    for name, value in _pairs(config, rest, "ENV"):
        env = [entry for entry in env if entry.partition("=")[0] != name]
        env.append(f"{name}={value}")
    return msgspec.structs.replace(config, env=env)


def _label(config: ContainerConfig, rest: str) -> ContainerConfig:
    return msgspec.structs.replace(config, labels={**(config.labels or {}), **dict(_pairs(config, rest, "LABEL"))})


def _expose(config: ContainerConfig, rest: str) -> ContainerConfig:
    ports = dict(config.exposed_ports or {})
    variables = _variables(config)
    for word in _need(rest, "EXPOSE").split():
        for spec in expand(word, variables).split():
            ports |= {port: {} for port in ports_of(spec)}
    return msgspec.structs.replace(config, exposed_ports=ports)


def ports_of(spec: str) -> list[str]:
    """`80`, `8000-8010/udp`; what stands before it, as `-p` has it, is left out."""
    container, slash, protocol = spec.rpartition(":")[2].partition("/")
    protocol = protocol.lower() if slash else "tcp"
    if protocol not in ("tcp", "udp", "sctp"):
        raise InvalidParameter(f"invalid proto: {protocol[:100]}")
    match = _PORT.match(container)
    if match is None or not 0 < int(match[1]) <= int(match[2] or match[1]) <= MAX_PORT:
        raise InvalidParameter(f"invalid containerPort: {container[:100]}")
    return [f"{port}/{protocol}" for port in range(int(match[1]), int(match[2] or match[1]) + 1)]


def _volume(config: ContainerConfig, rest: str) -> ContainerConfig:
    found = _json_words(rest)
    paths = _need(rest, "VOLUME").split() if found is None else found
    if not paths:
        raise InvalidParameter("VOLUME requires at least one argument")
    variables = _variables(config)
    paths = [expand(path, variables).strip() for path in paths]
    if not all(paths):
        raise InvalidParameter("VOLUME specified can not be an empty string")
    return msgspec.structs.replace(config, volumes={**(config.volumes or {}), **{path: {} for path in paths}})


def _user(config: ContainerConfig, rest: str) -> ContainerConfig:
    return msgspec.structs.replace(config, user=expand(_need(rest, "USER", "exactly one argument"), _variables(config)))


def _workdir(config: ContainerConfig, rest: str) -> ContainerConfig:
    path = expand(_need(rest, "WORKDIR", "exactly one argument"), _variables(config))
    if not path.startswith("/"):
        path = _clean(f"{config.working_dir or '/'}/{path}")
    return msgspec.structs.replace(config, working_dir=path)


def _clean(path: str) -> str:
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part and part != ".":
            parts.append(part)
    return "/" + "/".join(parts)


def _on_build(config: ContainerConfig, rest: str) -> ContainerConfig:
    trigger = _need(rest, "ONBUILD").split()[0].upper()
    if trigger == "ONBUILD":
        raise InvalidParameter("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if trigger in ("FROM", "MAINTAINER"):
        raise InvalidParameter(f"{trigger} isn't allowed as an ONBUILD trigger")
    return msgspec.structs.replace(config, on_build=[*(config.on_build or []), rest])


def _stop_signal(config: ContainerConfig, rest: str) -> ContainerConfig:
    if len(rest.split()) != 1:
        raise InvalidParameter("STOPSIGNAL requires exactly one argument")
    found = expand(rest, _variables(config))
    check_signal(found)
    return msgspec.structs.replace(config, stop_signal=found)


def check_signal(text: str) -> None:
    """Raises InvalidParameter unless `text` is a signal, by name or number."""
    name = text.upper().removeprefix("SIG")
    known = int(text) > 0 if text.isdecimal() and text.isascii() else f"SIG{name}" in signal.Signals.__members__
    if not known and _REAL_TIME.match(name) is None:
        raise InvalidParameter(f"invalid signal: {text[:100]}")


def _health_check(config: ContainerConfig, rest: str) -> ContainerConfig:
    options: dict[str, str] = {}
    while (match := _FLAG.match(rest)) is not None:
        name, _, options[name] = match[1].removeprefix("--").partition("=")
        rest = rest[match.end() :]
    kind, *command = _need(rest, "HEALTHCHECK").split(None, 1)
    text = command[0].strip() if command else ""
    if kind.upper() == "NONE":
        if text or options:
            raise InvalidParameter("HEALTHCHECK NONE takes no arguments")
        return msgspec.structs.replace(config, healthcheck=HealthConfig(test=["NONE"]))
    if kind.upper() != "CMD":
        raise InvalidParameter(f"Unknown type {quoted(kind)} in HEALTHCHECK (try CMD)")
    listed = _json_words(text)
    if not text or listed == []:
        raise InvalidParameter("Missing command after HEALTHCHECK CMD")
    test = ["CMD", *listed] if listed is not None else ["CMD-SHELL", text]
    return msgspec.structs.replace(config, healthcheck=_health_config(test, options))


def _health_config(test: list[str], options: Mapping[str, str]) -> HealthConfig:
    known = {"interval", "timeout", "start-period", "start-interval", "retries"}
    for name in options.keys() - known:
        raise InvalidParameter(f"unknown flag: --{name[:100]}")
    retries = options.get("retries", "") or "0"
    if re.fullmatch(r"[+-]?\d{1,18}", retries, re.ASCII) is None:
        raise InvalidParameter(f"strconv.ParseInt: parsing {quoted(retries)}: invalid syntax")
    if int(retries) < 0:
        raise InvalidParameter(f"--retries cannot be negative ({int(retries)})")
    return HealthConfig(
        test=test,
        interval=_duration(options, "interval"),
        timeout=_duration(options, "timeout"),
        start_period=_duration(options, "start-period"),
        start_interval=_duration(options, "start-interval"),
        retries=int(retries),
    )


def _duration(options: Mapping[str, str], name: str) -> int:
    """Nanoseconds."""
    text = options.get(name, "")
    if not text:
        return 0
    if re.fullmatch(rf"[+-]?(?:(?:{_DURATION.pattern})+|0)", text) is None:
        raise InvalidParameter(f"time: invalid duration {quoted(text)}")
    found = sum(int(float(number) * _UNITS[unit]) for number, unit in _DURATION.findall(text))
    if text.startswith("-") or 0 < found < _MILLISECOND:
        raise InvalidParameter(f"Interval {quoted(name)} cannot be less than 1ms")
    return found


def _pairs(config: ContainerConfig, rest: str, name: str) -> list[tuple[str, str]]:
    """`k=v k2="v 2"`, or the old `k v with spaces`; variables as they were before this instruction."""
    variables = _variables(config)
    found = split(_need(rest, name))
    if "=" not in found[0]:
        key, *value = rest.split(None, 1)
        if not value:
            raise InvalidParameter(f"{name} must have two arguments")
        return [(expand(key, variables), expand(value[0].strip(), variables))]
    result: list[tuple[str, str]] = []
    for word in found:
        key, equals, text = word.partition("=")
        if not equals:
            raise InvalidParameter(f"Syntax error - can't find = in {quoted(word)}. Must be of the form: name=value")
        if not key:
            raise InvalidParameter(f"{name} names can not be blank")
        result.append((expand(key, variables), expand(text, variables)))
    return result


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
