"""Words as a shell would read them: quotes, escapes, variables, lists. Pure.

    $x ${x}          the value; "" when there is none
    ${x:-w} ${x-w}   w when x is unset (with ":" also when it is empty)
    ${x:+w} ${x+w}   w when x is set
    ${x:?w} ${x?w}   an error that says w when it is unset
    ${x#p} ${x##p}   without the shortest, longest beginning that matches p; ${x%p} ${x%%p}: end
    ${x/p/r} ${x//p/r}   the first, every match of p replaced by r

A text costs time linear in its length, in what it becomes and, for each pattern, in pattern times value; all are
bounded.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from wherry.builder.dockerfile.errors import DockerfileError, quoted, shortened

MAX_DEPTH = 50  # of ${a:-${b:-…}}
MAX_EXPANDED = 1 << 20  # characters that a text becomes, if it is not longer itself
MAX_PATTERN = 1000  # characters
MAX_WORK = 1 << 26  # characters of values times characters of patterns

_NAME = re.compile(r"\d+|\w+|[@*#?\-$!]")
_NONE: frozenset[str] = frozenset()
_JSON_SPACE = " \t\r\n\v\f"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expanded:
    text: str  # quotes off, variables replaced
    words: tuple[str, ...]  # the same, split where unquoted white space is, also that of a variable's value
    used: frozenset[str]  # variables that were asked for and are set
    unset: frozenset[str]  # and those that are not
    missed: frozenset[str]  # those of them for which the text does not say what then (as ${x:-w} does)


def expand(
    text: str,
    env: Mapping[str, str],
    *,
    escape: str = "\\",
    quotes: bool = True,
    raw_quotes: bool = False,
    raw_escapes: bool = False,
    keep_unset: bool = False,
) -> Expanded:
    """Raises DockerfileError.

    `quotes`: False takes quotes for ordinary letters, as within a here-document; `raw_quotes`, `raw_escapes`: they
    have their meaning and stay in the text; `keep_unset`: a variable without value stays as it is written.
    """
    if "$" not in text and escape not in text and '"' not in text and "'" not in text:
        return Expanded(text=text, words=tuple(text.split()), used=_NONE, unset=_NONE, missed=_NONE)
    lexer = _Lexer(text, env, escape)
    lexer.quotes, lexer.raw_quotes, lexer.keep_unset = quotes, raw_quotes, keep_unset
    try:
        whole, words = lexer.until("", raw_escapes)
    except DockerfileError as error:
        raise DockerfileError(f"failed to process {quoted(text)}: {error.message}") from None
    return Expanded(
        text=whole,
        words=tuple(words),
        used=frozenset(lexer.used),
        unset=frozenset(lexer.unset),
        missed=frozenset(lexer.missed),
    )


@dataclass(slots=True)
class _Words:
    """Collects words."""

    found: list[str] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        """White space in it ends a word."""
        if not text:
            return
        parts = text.split()
        if text[0].isspace():
            self.end()
        for part in parts[:-1]:
            self.pieces.append(part)
            self.end()
        self.pieces += parts[-1:]
        if text[-1].isspace():
            self.end()

    def end(self) -> None:
        if word := "".join(self.pieces):
            self.found.append(word)
        self.pieces = []


class _Lexer:
    def __init__(self, text: str, env: Mapping[str, str], escape: str) -> None:
        self.text = text
        self.env = env
        self.escape = escape
        self.quotes = True
        self.raw_quotes = False
        self.keep_unset = False
        self.used: set[str] = set()
        self.unset: set[str] = set()
        self.missed: set[str] = set()
        self._at = 0
        self._depth = 0
        self._budget = max(MAX_EXPANDED, 2 * len(text))
        self._work = MAX_WORK
        self._plain: dict[str, re.Pattern[str]] = {}  # by stop character: a run of letters without meaning

    def _peek(self) -> str:
        return self.text[self._at] if self._at < len(self.text) else ""

    def _take(self) -> str:
        letter = self._peek()
        self._at += 1
        return letter

    def _spend(self, size: int) -> None:
        self._budget -= size
        if self._budget < 0:
            raise DockerfileError(f"it becomes longer than {MAX_EXPANDED} characters")

    def _run(self, stop: str) -> str:
        """Letters up to the next that means something."""
        pattern = self._plain.get(stop)
        if pattern is None:
            pattern = self._plain[stop] = re.compile(f"[^{re.escape('$' + self.escape + stop)}\"']*")
        match = pattern.match(self.text, self._at)
        assert match is not None
        self._at = match.end()
        return match[0]

    def until(self, stop: str, raw: bool) -> tuple[str, list[str]]:
        """Text and words up to `stop`, which is taken; "" is the end of the text."""
        pieces: list[str] = []
        words = _Words()
        while letter := self._peek():
            if letter == stop:
                self._at += 1
                words.end()
                return "".join(pieces), words.found
            if letter == "$":
                piece = self._dollar()
                words.add(piece)
            elif self.quotes and letter in "\"'":
                piece = self._single() if letter == "'" else self._double(raw)
                words.pieces.append(piece)
            elif letter == self.escape:
                self._at += 1
                piece = (letter if raw else "") + self._take()
                words.pieces.append(piece)
            else:
                piece = self._run(stop) or self._take()
                words.add(piece)
            self._spend(len(piece))
            pieces.append(piece)
        if stop:
            raise DockerfileError(f"unexpected end of statement while looking for matching {stop}")
        words.end()
        return "".join(pieces), words.found

    def _single(self) -> str:
        """Everything up to the next ' as it is."""
        end = self.text.find("'", self._at + 1)
        if end < 0:
            self._at = len(self.text)
            raise DockerfileError("unexpected end of statement while looking for matching single-quote")
        inner = self.text[self._at + 1 : end]
        self._at = end + 1
        return f"'{inner}'" if self.raw_quotes else inner

    def _double(self, raw: bool) -> str:
        """Up to the next ": variables are replaced, and only quote, dollar and escape character can be escaped."""
        self._at += 1
        pieces = ['"'] if self.raw_quotes else []
        while letter := self._peek():
            if letter == '"':
                self._at += 1
                return "".join(pieces) + ('"' if self.raw_quotes else "")
            if letter == "$":
                pieces.append(self._dollar())
            elif letter == self.escape:
                self._at += 1
                pieces.append(self._escaped(raw))
            else:
                pieces.append(self._run("") or self._take())
            self._spend(len(pieces[-1]))
        raise DockerfileError("unexpected end of statement while looking for matching double-quote")

    def _escaped(self, raw: bool) -> str:
        following = self._peek()
        if following and following in '"$' + self.escape:
            self._at += 1
            return self.escape + following if raw else following
        return self.escape if following or raw else ""

    def _get(self, name: str, *, provided: bool = False) -> str | None:
        """`provided`: the text says what happens when there is no value."""
        value = self.env.get(name)
        (self.unset if value is None else self.used).add(name)
        if value is None and not provided:
            self.missed.add(name)
        return value

    def _name(self) -> str:
        match = _NAME.match(self.text, self._at)
        if match is None:
            return ""
        self._at = match.end()
        return match[0]

    def _dollar(self) -> str:
        self._at += 1
        if self._peek() == "{":
            self._at += 1
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise DockerfileError(f"${{}} is nested more than {MAX_DEPTH} times")
            value = self._braced()
            self._depth -= 1
            return value
        name = self._name()
        if not name:
            return "$"
        found = self._get(name)
        return f"${name}" if found is None and self.keep_unset else found or ""

    def _braced(self) -> str:
        """After `${`."""
        if not self._peek():
            raise DockerfileError("syntax error: missing '}'")
        if self._peek() in "{}:":
            raise DockerfileError("syntax error: bad substitution")
        name = self._name()
        modifier = self._take()
        if modifier == "}":
            found = self._get(name)
            return f"${{{name}}}" if found is None and self.keep_unset else found or ""
        if modifier == "/":
            return self._replaced(name)
        empty_counts = modifier == ":"
        if empty_counts:
            modifier = self._take()
        sign = ":" + modifier if empty_counts else modifier
        if not modifier:
            raise DockerfileError("syntax error: missing '}'")
        if modifier not in "-+?#%":
            raise DockerfileError(f"unsupported modifier ({sign}) in substitution")
        word = self._operand("}", raw=modifier in "#%", missing="'}'")
        value = self._get(name, provided=modifier in "-+?")
        if value is None and self.keep_unset:
            return f"${{{name}{sign}{word}}}"
        if modifier in "#%":
            return self._trimmed(value or "", word, modifier)
        return _chosen(name, value, word, modifier, empty_counts=empty_counts)

    def _operand(self, stop: str, *, raw: bool, missing: str) -> str:
        try:
            return self.until(stop, raw)[0]
        except DockerfileError as error:
            if self._at >= len(self.text) and "looking for matching" in error.message:
                raise DockerfileError(f"syntax error: missing {missing}") from None
            raise

    def _trimmed(self, value: str, word: str, sign: str) -> str:
        longest = word.startswith(sign)
        pattern = self._pattern(word[1:] if longest else word, value)
        if sign == "#":
            end = pattern.prefix(value, longest=longest)
            return value if end is None else value[end:]
        start = pattern.suffix(value, longest=longest)
        return value if start is None else value[:start]

    def _replaced(self, name: str) -> str:
        every = self._peek() == "/"
        if every:
            self._at += 1
        word = self._operand("/", raw=True, missing="'/' in ${}")
        by = self._operand("}", raw=True, missing="'}'")
        value = self._get(name)
        if value is None and self.keep_unset:
            return f"${{{name}{'//' if every else '/'}{word}/{by}}}"
        return self._pattern(word, value or "").replace(value or "", by, every=every, spend=self._spend)

    def _pattern(self, word: str, value: str) -> "_Glob":
        self._work -= len(word) * len(value)
        if len(word) > MAX_PATTERN or self._work < 0:
            raise DockerfileError(f"a pattern of {len(word)} characters in a substitution takes too long")
        return _Glob(word, self.escape)


def _chosen(name: str, value: str | None, word: str, modifier: str, *, empty_counts: bool) -> str:
    missing = value is None or (empty_counts and not value)
    match modifier:
        case "-":
            return word if missing else value or ""
        case "+":
            return "" if missing else word
        case _:
            if missing:
                usual = "is not allowed to be unset" if value is None else "is not allowed to be empty"
                raise DockerfileError(f"{name}: {word or usual}")
            return value or ""


class _Glob:
    """A pattern of letters, `?` and `*`. Matched segment by segment between the stars, so that it cannot explode."""

    def __init__(self, word: str, escape: str) -> None:
        segments: list[list[str]] = [[]]
        letters = iter(word)
        for letter in letters:
            if letter == "*":
                segments.append([])
            elif letter == "?":
                segments[-1].append(".")
            elif letter == escape:
                following = next(letters, "")
                if following not in ("}", "/", "*", "?", escape):
                    raise DockerfileError(
                        f"invalid pattern ({shortened(word)}) in substitution: invalid escape '{escape}{following}'"
                    )
                segments[-1].append(re.escape(following))
            else:
                segments[-1].append(re.escape(letter))
        self._first, *self._rest = [re.compile("".join(segment), re.DOTALL) for segment in segments]
        self._first_mirrored, *self._rest_mirrored = [
            re.compile("".join(reversed(segment)), re.DOTALL) for segment in reversed(segments)
        ]

    def prefix(self, value: str, *, longest: bool) -> int | None:
        """Where the shortest, longest beginning that matches ends."""
        return _ahead(self._first, self._rest, value, 0, longest=longest)

    def suffix(self, value: str, *, longest: bool) -> int | None:
        """Where the shortest, longest end that matches begins."""
        end = _ahead(self._first_mirrored, self._rest_mirrored, value[::-1], 0, longest=longest)
        return None if end is None else len(value) - end

    def replace(self, value: str, by: str, *, every: bool, spend: Callable[[int], None]) -> str:
        """Longest matches, from the left. An empty pattern matches nothing."""
        if not self._first.pattern and not self._rest:
            return value
        pieces: list[str] = []
        at = 0
        while (start := self._first.search(value, at)) is not None:
            end = _ahead(self._first, self._rest, value, start.start(), longest=True)
            if end is None or end == start.start():
                break  # no later start can do better; or only a star at the very end
            spend(len(by))
            pieces += (value[at : start.start()], by)
            at = end
            if not every:
                break
        return "".join([*pieces, value[at:]])


def _ahead(first: re.Pattern[str], rest: list[re.Pattern[str]], value: str, start: int, *, longest: bool) -> int | None:
    """Match `first` at `start` and each of `rest` as soon as possible, the last one as late as possible if asked."""
    found = first.match(value, start)
    for number, segment in enumerate(rest):
        if found is None:
            return None
        if longest and number == len(rest) - 1:
            return _last(segment, value, found.end())
        found = segment.search(value, found.end())
    return None if found is None else found.end()


def _last(segment: re.Pattern[str], value: str, start: int) -> int | None:
    """The end of the last match."""
    for at in range(len(value), start - 1, -1):
        if (found := segment.match(value, at)) is not None:
            return found.end()
    return None


# --- words without variables ------------------------------------------------------------------------------------------


def split_quoted(rest: str, escape: str = "\\") -> list[str]:
    """Words at white space outside of quotes; quotes and escapes stay in them."""
    words: list[str] = []
    pieces: list[str] = []
    quote = ""
    at = 0
    while at < len(rest):
        letter = rest[at]
        at += 1
        if not quote and letter.isspace():
            if pieces:
                words.append("".join(pieces))
            pieces = []
            continue
        if letter == quote:
            quote = ""
        elif not quote and letter in "\"'":
            quote = letter
        elif letter == escape and quote != "'":
            if at == len(rest):
                break  # at the very end it says nothing
            letter += rest[at]
            at += 1
        pieces.append(letter)
    return [*words, "".join(pieces)] if pieces else words


def json_words(rest: str) -> tuple[str, ...] | None:
    """The JSON form of a command; None when it is the shell form. Raises DockerfileError for a list of other things."""
    text = rest.strip(_JSON_SPACE)
    if not text.startswith("["):
        return None
    try:
        found = msgspec.json.decode(text, type=list[object])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    strings = tuple(word for word in found if isinstance(word, str))
    if len(strings) != len(found):
        raise DockerfileError("when using JSON array syntax, arrays must be comprised of strings only")
    return strings
