"""Dockerfile text to nodes: one per instruction, with its lines, flags, here-documents and the comments before it.

    # syntax=docker/dockerfile:1        directives, only at the top
    # build the thing                   comments: those right above an instruction describe it
    RUN --mount=type=tmpfs,target=/x \\  keyword, flags, rest; a line that ends in the escape character goes on
        # comments and empty lines      … and these are skipped in between
        make <<EOF                      here-documents follow, for RUN, COPY and ADD
    EOF

Time is linear in the size of the text, which is bounded. Pure.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from wherry.builder.dockerfile.directives import Directive, DirectiveReader
from wherry.builder.dockerfile.errors import DockerfileError, located
from wherry.builder.dockerfile.words import expand, json_words
from wherry.builder.graph import Location, Range

MAX_SIZE = 4 << 20  # bytes of a Dockerfile
MAX_INSTRUCTIONS = 20_000
MAX_HEREDOCS = 1000  # of one instruction
SPACE = "\t\v\f\r "  # between words

_HEREDOC = re.compile(r"\d*<<(-?)([^<]+)\Z")
_WITH_HEREDOCS = frozenset({"run", "copy", "add"})
_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True, kw_only=True)
class Heredoc:
    name: str
    content: str = ""  # as in the file: neither chomped nor expanded
    expand: bool = True  # the name was not quoted: variables in it are replaced
    chomp: bool = False  # <<-EOF

    @property
    def text(self) -> str:
        """The content, leading tabs taken off when it is to be chomped."""
        return re.sub(r"^\t+", "", self.content, flags=re.MULTILINE) if self.chomp else self.content


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    keyword: str  # lower case
    spelled: str  # the keyword as in the file
    original: str  # the whole instruction in one line, without here-documents: what progress shows
    flags: tuple[str, ...] = ()  # --name or --name=value
    rest: str = ""  # what follows the flags, trimmed
    heredocs: tuple[Heredoc, ...] = ()
    comments: tuple[str, ...] = ()  # the lines right above
    empty_line: int = 0  # the first empty one among those that continue it
    location: Location

    @property
    def range(self) -> Range:
        return self.location.ranges[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    filename: str
    data: bytes
    escape: str = "\\"
    directives: Mapping[str, Directive] = field(default_factory=dict)
    instructions: tuple[Node, ...] = ()

    def line(self, number: int) -> Location:
        return Location(self.filename, self.data, (Range(number, number),))


def parse(data: bytes, filename: str = "Dockerfile") -> Parsed:
    """Raises DockerfileError, always with a location."""
    whole = Location(filename, data, (Range(1, 1),))
    with located(replace(whole, ranges=()) if data.startswith(_UTF16_BOMS) else whole):
        lines = _lines(data)
    reader = _Reader(lines, whole)
    instructions = tuple(reader.nodes())
    if not instructions:
        raise DockerfileError("file with no instructions", whole)
    return Parsed(
        filename=filename,
        data=data,
        escape=reader.escape,
        directives=reader.directives.found,
        instructions=instructions,
    )


def parse_line(text: str, location: Location) -> Node:
    """One instruction that stands outside a Dockerfile, as a trigger of ONBUILD; errors point at `location`."""
    with located(location):
        if not text.strip():
            raise DockerfileError("onbuild trigger should be a single expression")
        reader = _Reader(_lines(text.encode("utf-8", "surrogateescape")), location, outside=True)
        found = list(reader.nodes())
        if len(found) != 1:
            raise DockerfileError("onbuild trigger should be a single expression")
    return found[0]


def _lines(data: bytes) -> list[str]:
    """Lines with their ends; bytes that are no UTF-8 become surrogates."""
    if len(data) > MAX_SIZE:
        raise DockerfileError(f"the Dockerfile has {len(data)} bytes: more than {MAX_SIZE} are not read")
    if data.startswith(_UTF16_BOMS):
        raise DockerfileError("the Dockerfile is UTF-16, perhaps written by PowerShell's >: save it as UTF-8")
    if not data.strip():
        raise DockerfileError("the Dockerfile cannot be empty")
    text = data.removeprefix(_UTF8_BOM).decode("utf-8", "surrogateescape")
    return [line + "\n" for line in text.removesuffix("\n").split("\n")]


class _Reader:
    """Goes through the lines once."""

    def __init__(self, lines: list[str], whole: Location, *, outside: bool = False) -> None:
        self.directives = DirectiveReader()
        self._lines = lines
        self._whole = whole
        self._outside = outside
        self._at = 0  # lines read

    @property
    def escape(self) -> str:
        return self.directives.value("escape", "\\")

    def nodes(self) -> Iterator[Node]:
        comments: list[str] = []
        count = 0
        while self._at < len(self._lines):
            line = self._next().strip()
            if line.startswith("#"):
                self._comment(line, comments)
            elif not line:
                self.directives.close()
                comments = []
            elif (node := self._instruction(tuple(comments))) is not None:
                comments = []
                count += 1
                if count > MAX_INSTRUCTIONS:
                    raise DockerfileError(f"more than {MAX_INSTRUCTIONS} instructions", node.location)
                yield node

    def _next(self) -> str:
        self._at += 1
        return self._lines[self._at - 1]

    def _place(self, start: int, column: int = 0) -> Location:
        return self._whole if self._outside else replace(self._whole, ranges=(Range(start, self._at, column),))

    def _comment(self, line: str, comments: list[str]) -> None:
        """Adds it to those that stand together; a directive or an empty comment ends them."""
        with located(self._place(self._at)):
            directive = self.directives.take(line, self._at)
        said = line[1:].strip().encode("utf-8", "surrogateescape").decode(errors="replace")
        if directive or not said:
            comments.clear()
        else:
            comments.append(said)

    def _instruction(self, comments: tuple[str, ...]) -> Node | None:
        """The one that begins at the line just read. None when there is only an escape character."""
        start = self._at
        self.directives.close()
        first = self._lines[start - 1]
        column = len(first) - len(first.lstrip()) + 1
        line, empty_line = self._joined(first.rstrip("\r\n").lstrip())
        place = self._place(start, column)
        with located(place):
            _check_text(line)
            if not line.strip():
                return None
            spelled, flags, rest = split_instruction(line)
            heredocs = self._heredocs(spelled.lower(), rest, line)
        return Node(
            keyword=spelled.lower(),
            spelled=spelled,
            original=line.strip(),
            flags=flags,
            rest=rest,
            heredocs=heredocs,
            comments=comments,
            empty_line=empty_line,
            location=self._place(start, column),
        )

    def _joined(self, line: str) -> tuple[str, int]:
        """The line with those that continue it, and the number of the first empty one among them."""
        pieces = []
        empty = 0
        piece, more = self._continues(line)
        pieces.append(piece)
        while more and self._at < len(self._lines):
            line = self._next().rstrip("\r\n")
            if line.lstrip().startswith("#"):
                continue
            if not line.strip():
                empty = empty or self._at
                continue
            piece, more = self._continues(line)
            pieces.append(piece)
        return "".join(pieces), empty

    def _continues(self, line: str) -> tuple[str, bool]:
        """A doubled escape character at the end of a line stands for itself."""
        body = line.rstrip(" \t")
        if not body.endswith(self.escape) or body.endswith(self.escape * 2):
            return line, False
        return body[:-1], True

    def _heredocs(self, keyword: str, rest: str, line: str) -> tuple[Heredoc, ...]:
        if keyword == "onbuild":
            spelled, _, rest = split_instruction(rest)
            keyword = spelled.lower()
        if keyword not in _WITH_HEREDOCS or "<<" not in rest or json_words(rest) is not None:
            return ()
        return tuple(self._content(heredoc) for heredoc in find_heredocs(line))

    def _content(self, heredoc: Heredoc) -> Heredoc:
        lines: list[str] = []
        while self._at < len(self._lines):
            line = self._next()
            end = line.rstrip("\r\n")
            if (end.lstrip("\t") if heredoc.chomp else end) == heredoc.name:
                content = "".join(lines)
                _check_text(content)
                return replace(heredoc, content=content)
            lines.append(line)
        raise DockerfileError(f"unterminated heredoc: no line {heredoc.name!r} ends it", near="<<")


def split_instruction(line: str) -> tuple[str, tuple[str, ...], str]:
    """Keyword, flags, and the rest, trimmed."""
    head, *tail = re.split(f"[{SPACE}]+", line.strip(), maxsplit=1)
    if not tail:
        return head, (), ""
    flags, at = _flags(tail[0])
    return head, flags, tail[0][at:].strip()


def _flags(text: str) -> tuple[tuple[str, ...], int]:
    """Words at the beginning that start with "--", quotes taken off, and where what follows them begins."""
    words: list[str] = []
    at = 0
    while True:
        while at < len(text) and text[at].isspace():
            at += 1
        if not text.startswith("--", at):
            return tuple(words), at
        word, at = _flag(text, at)
        if word == "--":
            return tuple(words), at
        words.append(word)


def _flag(text: str, at: int) -> tuple[str, int]:
    """The word that begins at `at`, and where it ends."""
    pieces: list[str] = []
    quote = ""
    while at < len(text):
        letter = text[at]
        if not quote and letter.isspace():
            break
        at += 1
        if letter == quote:
            quote = ""
        elif not quote and letter in "\"'":
            quote = letter
        elif letter != "\\":
            pieces.append(letter)
        elif at < len(text):
            pieces.append(text[at])
            at += 1
    return "".join(pieces), at


def find_heredocs(line: str) -> list[Heredoc]:
    """Those a line announces, in order, without content."""
    try:
        words = expand(line, {}, raw_quotes=True, raw_escapes=True, keep_unset=True).words
    except DockerfileError:
        return []  # a quote that is not closed: the shell will say so
    found = [heredoc for word in words if (heredoc := heredoc_of(word)) is not None]
    if len(found) > MAX_HEREDOCS:
        raise DockerfileError(f"more than {MAX_HEREDOCS} heredocs")
    return found


def heredoc_of(word: str) -> Heredoc | None:
    """What `<<EOF` as a word means; None for any other word."""
    match = _HEREDOC.match(word)
    if match is None:
        return None
    try:
        plain = expand(match[2], {}, keep_unset=True).words
        raw = expand(match[2], {}, keep_unset=True, raw_quotes=True).words
    except DockerfileError:
        return None
    if len(plain) != 1 or len(raw) != 1:
        return None
    return Heredoc(name=plain[0], expand=_quotes(plain[0]) == _quotes(raw[0]), chomp=match[1] == "-")


def _quotes(text: str) -> int:
    return text.count("'") + text.count('"')


def _check_text(text: str) -> None:
    if "\0" in text:
        raise DockerfileError("a NUL character in an instruction")
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise DockerfileError("an instruction is not valid UTF-8: save the Dockerfile as UTF-8")
