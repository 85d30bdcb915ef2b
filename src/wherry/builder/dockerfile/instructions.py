"""Typed instructions, made from nodes. Texts are as in the file: variables are replaced when a stage is built.

Checks what can be checked without values. Errors have BuildKit's words and a location.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from wherry.builder.dockerfile.errors import DockerfileError, located, quoted, shortened
from wherry.builder.dockerfile.flags import parse_duration, parse_flags
from wherry.builder.dockerfile.mounts import Device, Expand, Mount, check_early, parse_device, parse_mount
from wherry.builder.dockerfile.parser import Heredoc, Node, heredoc_of, parse_line, split_instruction
from wherry.builder.dockerfile.suggest import hint
from wherry.builder.dockerfile.words import json_words, split_quoted
from wherry.builder.graph import Location

MAX_RETRIES = 2**31 - 1
SHORTEST_DURATION = 10**6  # ns

_SPACES = re.compile(r"[\t\v\f\r ]+")
_STAGE_NAME = re.compile(r"[a-z][a-z0-9-_.]*\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    node: Node

    @property
    def name(self) -> str:
        """RUN."""
        return self.node.keyword.upper()

    @property
    def location(self) -> Location:
        return self.node.location

    @property
    def original(self) -> str:
        return self.node.original


@dataclass(frozen=True, slots=True, kw_only=True)
class From(Instruction):
    base: str
    platform: str = ""
    stage: str = ""  # lower case; "" = none
    stage_spelled: str = ""
    as_spelled: str = ""  # the word AS as in the file


@dataclass(frozen=True, slots=True)
class ArgPair:
    name: str
    default: str | None = None
    description: str = ""  # from the comment above


@dataclass(frozen=True, slots=True, kw_only=True)
class Arg(Instruction):
    args: tuple[ArgPair, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    name: str
    value: str
    legacy: bool = False  # NAME VALUE without "="


@dataclass(frozen=True, slots=True, kw_only=True)
class Env(Instruction):
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Label(Instruction):
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Command(Instruction):
    """One of those with two forms: a list of words, or a line for the shell."""

    words: tuple[str, ...]  # one at most in the shell form
    shell: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Command):
    mount_texts: tuple[str, ...] = ()  # as they follow --mount=
    network: str = "default"  # none, host
    security: str = "sandbox"  # insecure
    devices: tuple[Device, ...] = ()
    heredocs: tuple[Heredoc, ...] = ()

    def mounts(self, expand: Expand) -> tuple[Mount, ...]:
        """With the variables of their values replaced. Raises DockerfileError."""
        with located(self.location):
            return tuple(parse_mount(text, expand) for text in self.mount_texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cmd(Command):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrypoint(Command):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Shell(Instruction):
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer(Instruction):
    """COPY and ADD. `sources` holds paths in order; a Heredoc among them is a file of its name with its text."""

    sources: tuple[str | Heredoc, ...]
    target: str
    chown: str = ""
    chmod: str = ""
    link: bool = False
    exclude: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(source for source in self.sources if isinstance(source, str))


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy(Transfer):
    source_stage: str = ""  # --from: a stage, image or named context
    parents: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Add(Transfer):
    checksum: str = ""
    keep_git_dir: bool | None = None  # None = not said
    unpack: bool | None = None  # None = as it is usual for the kind of source


@dataclass(frozen=True, slots=True, kw_only=True)
class Expose(Instruction):
    ports: tuple[str, ...]  # sorted


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume(Instruction):
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class User(Instruction):
    user: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Workdir(Instruction):
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopSignal(Instruction):
    signal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Healthcheck(Instruction):
    """Durations in ns; 0 = not given."""

    test: tuple[str, ...]  # as in the image config: NONE | CMD … | CMD-SHELL line
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Onbuild(Instruction):
    expression: str  # what the image config keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class Maintainer(Instruction):
    maintainer: str


def parse_instruction(node: Node, *, escape: str = "\\") -> Instruction:
    """Raises DockerfileError: `dockerfile parse error on line 3: …`."""
    with located(node.location, f"dockerfile parse error on line {node.range.start}: "):
        parser = _PARSERS.get(node.keyword)
        if parser is None:
            near = hint(node.spelled, KEYWORDS, any_case=True)
            raise DockerfileError(f"unknown instruction: {shortened(node.spelled)}{near}", near=node.spelled)
        return parser(node, escape)


def parse_trigger(expression: str, location: Location) -> Instruction:
    """A trigger of ONBUILD that an image brings; errors point at `location`. Raises DockerfileError."""
    node = parse_line(expression, location)
    with located(location, f"ONBUILD {shortened(expression)}: "):
        _check_trigger(node.spelled)
        parser = _PARSERS.get(node.keyword)
        if parser is None:
            raise DockerfileError(f"unknown instruction: {shortened(node.spelled)}")
        return parser(node, "\\")


# --- one function per instruction -------------------------------------------------------------------------------------


def _from(node: Node, escape: str) -> From:
    base, as_spelled, name = "", "", ""
    match _split(node.rest):
        case (base, as_spelled, name) if as_spelled.lower() == "as":
            if _STAGE_NAME.match(name.lower()) is None:
                raise DockerfileError(
                    f"invalid name for build stage: {quoted(name)}, name can't start with a number or contain symbols",
                    near=name,
                )
        case (base,):
            as_spelled = name = ""
        case _:
            raise DockerfileError("FROM requires either one or three arguments")
    return From(
        node=node,
        base=base,
        platform=parse_flags(node.flags, text=["platform"]).text("platform"),
        stage=name.lower(),
        stage_spelled=name,
        as_spelled=as_spelled,
    )


def _arg(node: Node, escape: str) -> Arg:
    parse_flags(node.flags)
    words = split_quoted(node.rest, escape)
    if not words:
        raise DockerfileError("ARG requires at least one argument")
    pairs = []
    for word in words:
        name, equals, default = word.partition("=")
        if not name:
            raise DockerfileError("ARG names can not be blank", near=word)
        pairs.append(ArgPair(name, default if equals else None, described(node, name)))
    return Arg(node=node, args=tuple(pairs))


def described(node: Node, name: str) -> str:
    """What the comments above the instruction say of `name`: `# name does this`."""
    for line in node.comments:
        if name and line.startswith(name + " "):
            return line[len(name) + 1 :]
    return ""


def _pairs(node: Node, escape: str) -> tuple[Pair, ...]:
    name = node.keyword.upper()
    parse_flags(node.flags)
    words = split_quoted(node.rest, escape)
    if not words:
        raise DockerfileError(f"{name} requires at least one argument")
    if "=" not in words[0]:
        parts = _SPACES.split(node.rest, maxsplit=1)
        if len(parts) < 2:
            raise DockerfileError(f"{name} must have two arguments", near=node.rest)
        return (Pair(parts[0], parts[1], legacy=True),)
    pairs = []
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise DockerfileError(
                f"Syntax error - can't find = in {quoted(word)}. Must be of the form: name=value", near=word
            )
        if not key:
            raise DockerfileError(f"{name} names can not be blank", near=word)
        pairs.append(Pair(key, text))
    return tuple(pairs)


def _env(node: Node, escape: str) -> Env:
    return Env(node=node, pairs=_pairs(node, escape))


def _label(node: Node, escape: str) -> Label:
    return Label(node=node, pairs=_pairs(node, escape))


def _command(rest: str) -> tuple[tuple[str, ...], bool]:
    """Words, and whether they are a line for the shell."""
    words = json_words(rest)
    if words is not None:
        return words, False
    return ((rest,) if rest else ()), True


def _run(node: Node, escape: str) -> Run:
    flags = parse_flags(node.flags, text=["network", "security"], lists=["mount", "device"])
    for text in flags.texts("mount"):
        check_early(text)
    network = flags.text("network", "default")
    if network not in ("default", "none", "host"):
        near = hint(network, ("default", "none", "host"))
        raise DockerfileError(f"invalid network mode {quoted(network)}{near}", near=network)
    security = flags.text("security", "sandbox")
    if security not in ("sandbox", "insecure"):
        near = hint(security, ("sandbox", "insecure"))
        raise DockerfileError(f"security {quoted(security)} is not valid{near}", near=security)
    words, shell = _command(node.rest)
    if not words and not shell:
        raise DockerfileError("RUN requires at least one argument")
    return Run(
        node=node,
        words=words or ("",),  # nothing is a line, too: the shell makes nothing of it
        shell=shell,
        mount_texts=flags.texts("mount"),
        network=network,
        security=security,
        devices=tuple(parse_device(text) for text in flags.texts("device")),
        heredocs=node.heredocs,
    )


def _cmd(node: Node, escape: str) -> Cmd:
    parse_flags(node.flags)
    words, shell = _command(node.rest)
    return Cmd(node=node, words=words, shell=shell)


def _entrypoint(node: Node, escape: str) -> Entrypoint:
    parse_flags(node.flags)
    words, shell = _command(node.rest)
    return Entrypoint(node=node, words=words, shell=shell)


def _shell(node: Node, escape: str) -> Shell:
    parse_flags(node.flags)
    words = json_words(node.rest)
    if not node.rest or words == ():
        raise DockerfileError("SHELL requires at least one argument")
    if words is None:
        raise DockerfileError("SHELL requires the arguments to be in JSON form")
    return Shell(node=node, words=words)


_TRANSFER_TEXT = ("chown", "chmod")


def _files(node: Node) -> tuple[tuple[str | Heredoc, ...], str]:
    """Sources and target."""
    name = node.keyword.upper()
    words = json_words(node.rest)
    listed = words is not None
    words = _split(node.rest) if words is None else words
    if len(words) < 2:
        count = "but only one was provided" if words else "but none was provided"
        raise DockerfileError(f"{name} requires at least two arguments, {count}. Destination could not be determined")
    if listed:
        return words[:-1], words[-1]
    if heredoc_of(words[-1]) is not None:
        raise DockerfileError(f"{name} cannot accept a heredoc as a destination", near=words[-1])
    contents = {heredoc.name: heredoc for heredoc in node.heredocs}
    sources: list[str | Heredoc] = []
    for word in words[:-1]:
        heredoc = heredoc_of(word)
        sources.append(word if heredoc is None else contents.get(heredoc.name, heredoc))
    return tuple(sources), words[-1]


def _copy(node: Node, escape: str) -> Copy:
    sources, target = _files(node)
    flags = parse_flags(node.flags, text=[*_TRANSFER_TEXT, "from"], bools=["link", "parents"], lists=["exclude"])
    return Copy(
        node=node,
        sources=sources,
        target=target,
        chown=flags.text("chown"),
        chmod=flags.text("chmod"),
        link=flags.on("link"),
        exclude=flags.texts("exclude"),
        source_stage=flags.text("from"),
        parents=flags.on("parents"),
    )


def _add(node: Node, escape: str) -> Add:
    sources, target = _files(node)
    flags = parse_flags(
        node.flags,
        text=[*_TRANSFER_TEXT, "checksum"],
        bools=["link", "keep-git-dir", "unpack"],
        lists=["exclude"],
    )
    return Add(
        node=node,
        sources=sources,
        target=target,
        chown=flags.text("chown"),
        chmod=flags.text("chmod"),
        link=flags.on("link"),
        exclude=flags.texts("exclude"),
        checksum=flags.text("checksum"),
        keep_git_dir=flags.on("keep-git-dir") if flags.given("keep-git-dir") else None,
        unpack=flags.on("unpack") if flags.given("unpack") else None,
    )


def _expose(node: Node, escape: str) -> Expose:
    parse_flags(node.flags)
    if not node.rest:
        raise DockerfileError("EXPOSE requires at least one argument")
    return Expose(node=node, ports=tuple(sorted(_split(node.rest))))


def _volume(node: Node, escape: str) -> Volume:
    parse_flags(node.flags)
    words = json_words(node.rest)
    words = _split(node.rest) if words is None else words
    if not words:
        raise DockerfileError("VOLUME requires at least one argument")
    paths = tuple(word.strip() for word in words)
    if not all(paths):
        raise DockerfileError("VOLUME specified can not be an empty string")
    return Volume(node=node, paths=paths)


def _one(node: Node) -> str:
    parse_flags(node.flags)
    if not node.rest:
        raise DockerfileError(f"{node.keyword.upper()} requires exactly one argument")
    return node.rest


def _user(node: Node, escape: str) -> User:
    return User(node=node, user=_one(node))


def _workdir(node: Node, escape: str) -> Workdir:
    return Workdir(node=node, path=_one(node))


def _stopsignal(node: Node, escape: str) -> StopSignal:
    return StopSignal(node=node, signal=_one(node))


def _maintainer(node: Node, escape: str) -> Maintainer:
    return Maintainer(node=node, maintainer=_one(node))


def _healthcheck(node: Node, escape: str) -> Healthcheck:
    kind, *tail = node.rest.split(maxsplit=1) or [""]
    rest = "".join(tail)
    if not kind:
        raise DockerfileError("HEALTHCHECK requires at least one argument")
    names = ("interval", "timeout", "start-period", "start-interval", "retries")
    flags = parse_flags(node.flags, text=names)
    if kind.upper() == "NONE":
        if rest:
            raise DockerfileError("HEALTHCHECK NONE takes no arguments")
        return Healthcheck(node=node, test=("NONE",))
    if kind.upper() != "CMD":
        raise DockerfileError(f"Unknown type {quoted(kind.upper())} in HEALTHCHECK (try CMD)", near=kind)
    words, shell = _command(rest)
    if not words:
        raise DockerfileError("Missing command after HEALTHCHECK CMD")
    interval, timeout, start_period, start_interval = (_interval(name, flags.text(name)) for name in names[:4])
    return Healthcheck(
        node=node,
        test=("CMD-SHELL" if shell else "CMD", *words),
        interval=interval,
        timeout=timeout,
        start_period=start_period,
        start_interval=start_interval,
        retries=_retries(flags.text("retries")),
    )


def _interval(name: str, value: str) -> int:
    duration = parse_duration(value) if value else 0
    if duration and duration < SHORTEST_DURATION:
        raise DockerfileError(f'Interval "{name}" cannot be less than 1ms', near=value)
    return duration


def _retries(value: str) -> int:
    if not value:
        return 0
    digits = value[1:] if value[0] in "+-" else value
    if not digits.isascii() or not digits.isdecimal():
        raise DockerfileError(f"strconv.ParseInt: parsing {quoted(value)}: invalid syntax", near=value)
    if len(digits) > 20 or int(digits) > MAX_RETRIES:
        raise DockerfileError(f"strconv.ParseInt: parsing {quoted(value)}: value out of range", near=value)
    if value[0] == "-" and int(digits):
        raise DockerfileError(f"--retries cannot be negative ({int(value)})", near=value)
    return int(digits)


def _onbuild(node: Node, escape: str) -> Onbuild:
    parse_flags(node.flags)
    spelled, flags, rest = split_instruction(node.rest)
    if not spelled:
        raise DockerfileError("ONBUILD requires at least one argument")
    _check_trigger(spelled)
    trigger = Node(
        keyword=spelled.lower(),
        spelled=spelled,
        original=node.rest,
        flags=flags,
        rest=rest,
        heredocs=node.heredocs,
        location=node.location,
    )
    parser = _PARSERS.get(trigger.keyword)
    if parser is None:
        near = hint(spelled, KEYWORDS, any_case=True)
        raise DockerfileError(f"unknown instruction: {shortened(spelled)}{near}", near=spelled)
    parser(trigger, escape)
    contents = "".join(f"\n{heredoc.content}{heredoc.name}" for heredoc in node.heredocs)
    return Onbuild(node=node, expression=node.rest + contents)


def _check_trigger(spelled: str) -> None:
    name = spelled.upper()
    if name == "ONBUILD":
        raise DockerfileError("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if name in ("MAINTAINER", "FROM"):
        raise DockerfileError(f"{name} isn't allowed as an ONBUILD trigger", near=spelled)


def _split(rest: str) -> tuple[str, ...]:
    return tuple(_SPACES.split(rest)) if rest else ()


_PARSERS: dict[str, Callable[[Node, str], Instruction]] = {
    "add": _add,
    "arg": _arg,
    "cmd": _cmd,
    "copy": _copy,
    "entrypoint": _entrypoint,
    "env": _env,
    "expose": _expose,
    "from": _from,
    "healthcheck": _healthcheck,
    "label": _label,
    "maintainer": _maintainer,
    "onbuild": _onbuild,
    "run": _run,
    "shell": _shell,
    "stopsignal": _stopsignal,
    "user": _user,
    "volume": _volume,
    "workdir": _workdir,
}
KEYWORDS = tuple(name.upper() for name in _PARSERS)
