"""What is wrong with a Dockerfile, and where."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace

from wherry.builder.graph import Location, Range
from wherry.errors import InvalidParameter

LONGEST_QUOTE = 200  # characters of the user's text that a message repeats
AROUND = 2  # lines of an excerpt before and after a single line; one before and after several


class DockerfileError(InvalidParameter):
    """A Dockerfile, or an instruction in one, that can never be built."""

    def __init__(self, message: str, location: Location | None = None, *, near: str = "") -> None:
        """`near` is the word at fault, as the file has it: it makes the column."""
        super().__init__(message)
        self.location = location
        self.near = near

    @property
    def filename(self) -> str:
        return self.location.filename if self.location is not None else ""

    @property
    def rendered(self) -> str:
        """The message with the excerpt, for where no client draws it."""
        return self.message if self.location is None else f"{excerpt(self.location)}\n{self.message}"


@contextlib.contextmanager
def located(location: Location, prefix: str = "") -> Iterator[None]:
    """Errors from within get the place and the prefix if they have no place yet."""
    try:
        yield
    except DockerfileError as error:
        if error.location is not None:
            raise
        raise DockerfileError(prefix + error.message, pinpoint(location, error.near)) from None


def pinpoint(location: Location, word: str) -> Location:
    """The line and column of `word` within the location; the location itself if it is not there."""
    if not word:
        return location
    for part in location.ranges:
        lines = location.data.split(b"\n", part.end)[part.start - 1 : part.end]
        for number, line in enumerate(lines, part.start):
            column = line.decode(errors="replace").find(word)
            if column >= 0:
                return replace(location, ranges=(Range(number, number, column + 1),))
    return location


def excerpt(location: Location, *, column: bool = True) -> str:
    """`Dockerfile:3:5` and the lines around, those meant marked with `>>>`, as BuildKit's clients print it."""
    if not location.ranges:
        return location.filename
    first, last = location.ranges[0], location.ranges[-1]
    lines = [_printable(line) for line in location.data.decode(errors="replace").split("\n")]
    marked = {line for part in location.ranges for line in range(part.start, min(part.end, len(lines)) + 1)}
    around = AROUND if first.start == last.end else 1
    shown = range(max(1, first.start - around), min(len(lines), last.end + around) + 1)
    place = f"{location.filename}:{first.start}" + (f":{first.column}" if column and first.column else "")
    rule = "-" * 20
    body = [f" {line:3d} | {'>>>' if line in marked else '   '} {lines[line - 1]}" for line in shown]
    return "\n".join([place, rule, *body, rule])


def _printable(line: str) -> str:
    """Nothing that a terminal would act upon."""
    return "".join(letter if letter.isprintable() or letter == "\t" else "\ufffd" for letter in line.rstrip())


def quoted(text: str) -> str:
    """`text` in double quotes, escaped, and shortened when it is long."""
    return json.dumps(shortened(text), ensure_ascii=False)


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST_QUOTE else text[:LONGEST_QUOTE] + "…"
