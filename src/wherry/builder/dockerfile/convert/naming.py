"""The texts of progress and history, as BuildKit writes them. Pure.

    [linux/arm64 build  2/12] ONBUILD RUN make         progress: platform of several, stage of several, place, command
    RUN |1 VERSION=1.2 /bin/sh -c make # buildkit      history: the command as it ran

History speaks Go: lists as fmt's %v and %q print them, so that tools which read images find what they expect.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from wherry.builder.dockerfile.errors import DockerfileError
from wherry.builder.dockerfile.words import expand
from wherry.errors import InvalidParameter
from wherry.spec.image import Platform, parse_platform

COMMENT = "buildkit.dockerfile.v0"  # of a history entry
MARK = " # buildkit"  # at the end of what made a layer

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ESCAPES |= {"\v": "\\v"}
_UNITS = ((3600 * 10**9, "h"), (60 * 10**9, "m"))


def step_name(text: str, *, place: int, total: int, stage: str = "", platform: str = "", trigger: bool = False) -> str:
    """`stage` and `platform` are given where there are several."""
    where = "".join(f"{part} " for part in (platform, stage) if part)
    return f"[{where}{place:{len(str(total))}d}/{total}] {'ONBUILD ' if trigger else ''}{text}"


def shown_platform(platform: Platform, env: Mapping[str, str]) -> str:
    """`linux/amd64`, or `linux/amd64->arm64` for a step that runs on one to make something for another."""
    target = _target(platform, env)
    if target is None or (target.os, target.architecture) == (platform.os, platform.architecture):
        return str(platform)
    return f"{platform}->{str(target).removeprefix(platform.os + '/')}"


def _target(platform: Platform, env: Mapping[str, str]) -> Platform | None:
    parts = (env.get("TARGETOS") or platform.os, env.get("TARGETARCH"), env.get("TARGETVARIANT"))
    text = env.get("TARGETPLATFORM") or ("/".join(filter(None, parts)) if parts[1] else "")
    try:
        return parse_platform(text) if text else None
    except InvalidParameter:
        return None  # the file may set these to anything


def shown_command(original: str, env: Mapping[str, str], *, escape: str, shell: bool) -> str:
    """The instruction with its variables' values; what a `shell` will read keeps quotes and unknown variables."""
    try:
        text = expand(original, env, escape=escape, raw_quotes=shell, keep_unset=shell).text
    except DockerfileError:
        text = original  # quotes that only the shell understands
    keyword, *rest = re.split(r"(\s)", text, maxsplit=1)
    return keyword.upper() + "".join(rest)


def summary(document: str) -> str:
    """Of a here-document: its first line."""
    first, *rest = document.strip().splitlines() or [""]
    return first + ("..." if rest else "")


# --- as Go prints -----------------------------------------------------------------------------------------------------


def go_quote(text: str) -> str:
    """%q of a string."""

    def letter(char: str) -> str:
        if char in _ESCAPES or char == " " or char.isprintable():
            return _ESCAPES.get(char, char)
        code = ord(char)
        return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    return f'"{"".join(map(letter, text))}"'


def go_quoted_list(texts: Iterable[str]) -> str:
    """%q of a list: `["sh" "-c" "x"]`."""
    return f"[{' '.join(map(go_quote, texts))}]"


def go_list(texts: Iterable[str]) -> str:
    """%v of a list: `[a b]`."""
    return f"[{' '.join(texts)}]"


def go_duration(ns: int) -> str:
    """time.Duration's text: `1m30s`, `1.5s`, `100ms`, `0s`."""
    if ns < 10**9:
        for size, unit in ((10**6, "ms"), (10**3, "µs"), (1, "ns")):
            if ns >= size:
                return f"{_decimal(ns, size)}{unit}"
        return "0s"
    pieces: list[str] = []
    for size, unit in _UNITS:
        if ns >= size or pieces:
            pieces.append(f"{ns // size}{unit}")
        ns %= size
    return "".join(pieces) + f"{_decimal(ns, 10**9)}s"


def _decimal(number: int, unit: int) -> str:
    whole, rest = divmod(number, unit)
    digits = f"{rest:0{len(str(unit)) - 1}d}".rstrip("0") if rest else ""
    return f"{whole}.{digits}" if digits else str(whole)


def go_rune(number: int) -> str:
    """%q of a number: the character it is the code of."""
    char = chr(number) if number <= 0x10FFFF and not 0xD800 <= number < 0xE000 else "\ufffd"
    return "'\\''" if char == "'" else "'\"'" if char == '"' else f"'{go_quote(char)[1:-1]}'"


def ran(args: Sequence[str], build_args: Mapping[str, str]) -> str:
    """What history says of a RUN."""
    seen = [f"|{len(build_args)}", *(f"{name}={value}" for name, value in build_args.items())] if build_args else []
    return " ".join(("RUN", *seen, *args)) + MARK
