"""What stands between an instruction and its arguments: `--name=value`; and values in the forms Go reads."""

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from wherry.builder.dockerfile.errors import DockerfileError, quoted, shortened
from wherry.builder.dockerfile.suggest import hint

MAX_SECONDS = 2**63 // 10**9

_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{0,15})?) ?([kKmMgGtTpP]?)(?:[iI]?[bB])?\Z", re.ASCII)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_DURATION = re.compile(r"(\d{1,18}(?:\.\d{0,18})?|\.\d{1,18})(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


@dataclass(frozen=True, slots=True)
class Flags:
    """Those that were given, by name. A flag that may stand once has one value; a bool has "true" or "false"."""

    values: dict[str, list[str]] = field(default_factory=dict)

    def text(self, name: str, default: str = "") -> str:
        return self.values.get(name, [default])[0]

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(self.values.get(name, ()))

    def on(self, name: str) -> bool:
        return self.text(name) == "true"

    def given(self, name: str) -> bool:
        return name in self.values


def parse_flags(
    flags: Sequence[str], *, text: Iterable[str] = (), bools: Iterable[str] = (), lists: Iterable[str] = ()
) -> Flags:
    """Raises DockerfileError for a flag that is not among those named, or is not as it should be."""
    text, bools, lists = tuple(text), tuple(bools), tuple(lists)
    known = (*text, *bools, *lists)
    found: dict[str, list[str]] = {}
    for flag in flags:
        name, equals, value = flag.removeprefix("--").partition("=")
        shown = f"--{shortened(name)}"
        if name not in known:
            raise DockerfileError(f"unknown flag: {shown}{hint(name, known)}", near=f"--{name}")
        if name in found and name not in lists:
            raise DockerfileError(f"duplicate flag specified: {shown}", near=flag)
        if name in bools:
            value = _switch(shown, equals, value)
        elif not equals:
            raise DockerfileError(f"missing a value on flag: {shown}", near=flag)
        found.setdefault(name, []).append(value)
    return Flags(found)


def _switch(shown: str, equals: str, value: str) -> str:
    if equals and not value:
        raise DockerfileError(f"missing a value on flag: {shown}", near=shown)
    lower = value.lower() or "true"
    if lower not in ("true", "false"):
        raise DockerfileError(f"expecting boolean value for flag {shown}, not: {shortened(value)}", near=shown)
    return lower


def csv_fields(value: str, what: str) -> list[str]:
    """`a=b,"c=d,e"` in its parts."""
    try:
        rows = list(csv.reader([value], strict=True))
    except csv.Error as error:
        raise DockerfileError(f"failed to parse csv {what}: {error}") from None
    if not rows or not rows[0]:
        raise DockerfileError(f"failed to parse csv {what}: EOF")
    return rows[0]


def parse_bool(value: str) -> bool | None:
    """None when it is neither true nor false."""
    return True if value in _TRUE else False if value in _FALSE else None


def parse_size(value: str) -> int | None:
    """Bytes of `64m`, `1.5GiB`, `100`; None when it is no size."""
    match = _SIZE.match(value)
    if match is None:
        return None
    size = int(float(match[1]) * 1024 ** _POWERS[match[2].lower()])
    return size if size < 2**63 else None


def parse_duration(value: str) -> int:
    """Nanoseconds of `1h5m`, `1.5s`, as Go writes them. Raises DockerfileError."""
    sign, body = (-1, value[1:]) if value.startswith("-") else (1, value.removeprefix("+"))
    if body == "0":
        return 0
    total = at = 0
    for match in _DURATION.finditer(body):
        if match.start() != at:
            break
        at = match.end()
        whole, _, fraction = match[1].partition(".")
        unit = _UNITS[match[2]]
        total += int(whole or "0") * unit + (int(fraction) * unit // 10 ** len(fraction) if fraction else 0)
    if not body or at != len(body) or total > MAX_SECONDS * 10**9:
        missing = body and body.replace(".", "", 1).isdecimal()
        reason = "missing unit in duration" if missing else "invalid duration"
        raise DockerfileError(f"time: {reason} {quoted(value)}", near=value)
    return sign * total
