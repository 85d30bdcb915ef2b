"""`.dockerignore` and `--exclude`: which paths a list of patterns takes out.

    # comment
    *.md            ? * [a-z] within one name, \\ escapes
    **/node_modules ** any number of directories
    !README.md      puts back what an earlier line took out; the last line that matches decides
    docs            a directory takes everything below it with it

The rules are those of moby/patternmatcher. Paths are relative to the context, with slashes.
"""

import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from wherry.builder.dockerfile.errors import DockerfileError, quoted

MAX_SIZE = 1 << 20  # bytes of a .dockerignore
MAX_PATTERNS = 10_000
MAX_PATTERN = 4096  # characters
MAX_STARS = 50  # of one pattern
MAX_OPEN = 2  # "**" within a name, and classes behind a star that a slash is in: each multiplies the time of a match
MAX_REMEMBERED = 50_000  # directories


def read_ignore(data: bytes) -> tuple[str, ...]:
    """The patterns of a `.dockerignore`, cleaned. Raises DockerfileError."""
    if len(data) > MAX_SIZE:
        raise DockerfileError(f".dockerignore has {len(data)} bytes: more than {MAX_SIZE} are not read")
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    patterns = []
    for line in text.split("\n"):
        pattern = line.strip()
        if not pattern or line.startswith("#"):
            continue
        back = pattern.startswith("!")
        body = pattern[1:].strip() if back else pattern
        if body:
            body = _normal(body)
            body = body[1:] if len(body) > 1 and body.startswith("/") else body
        patterns.append("!" + body if back else body)
    return tuple(patterns)


@dataclass(frozen=True, slots=True)
class Pattern:
    text: str  # cleaned, without "!"
    back: bool  # "!": puts back
    matcher: re.Pattern[str]


class Patterns:
    """Compiled once; quick for many paths of the same directories."""

    def __init__(self, lines: Iterable[str]) -> None:
        """Raises DockerfileError for a malformed pattern."""
        self.patterns: Sequence[Pattern] = tuple(_compile(line.strip()) for line in lines if line.strip())
        if len(self.patterns) > MAX_PATTERNS:
            raise DockerfileError(f"{len(self.patterns)} patterns: more than {MAX_PATTERNS} are not read")
        self._directories: dict[str, tuple[bool, ...]] = {"": (False,) * len(self.patterns)}

    def __bool__(self) -> bool:
        return bool(self.patterns)

    @property
    def puts_back(self) -> bool:
        """There are exceptions: what is below a directory that is taken out may be wanted."""
        return any(pattern.back for pattern in self.patterns)

    def matches(self, path: str) -> bool:
        """Whether `path` is taken out, itself or by a directory above it."""
        path = _clean(path)
        if not path or not self.patterns:
            return False  # the root itself is never
        return self._match(path, self._directory(posixpath.dirname(path)))[0]

    def skips_below(self, directory: str) -> bool:
        """Nothing below a directory that is taken out can be put back: one need not look into it."""
        if not self.matches(directory):
            return False
        below = _clean(directory).split("/")
        return not any(pattern.back and _may_reach(pattern.text.split("/"), below) for pattern in self.patterns)

    def _match(self, path: str, above: tuple[bool, ...]) -> tuple[bool, tuple[bool, ...]]:
        """Whether `path` is taken out, and of each pattern whether it matched `path` or a directory above it.

        A pattern that could change nothing is not asked, and counts as one that did not match, also for what is below:
        docker's clients do so.
        """
        taken = False
        matched: list[bool] = []
        for pattern, inherited in zip(self.patterns, above, strict=True):
            found = inherited or (pattern.back == taken and pattern.matcher.match(path) is not None)
            matched.append(found)
            if found:
                taken = not pattern.back
        return taken, tuple(matched)

    def _directory(self, path: str) -> tuple[bool, ...]:
        """Of each pattern, whether it matches the directory or one above it."""
        missing = []
        while (known := self._directories.get(path)) is None:
            missing.append(path)
            path = posixpath.dirname(path)
        for each in reversed(missing):
            known = self._match(each, known)[1]
            if len(self._directories) < MAX_REMEMBERED:
                self._directories[each] = known
        return known


def _normal(path: str) -> str:
    """Without `.`, `..` and doubled slashes, as far as that goes."""
    return posixpath.normpath("/" + path.lstrip("/") if path.startswith("/") else path)


def _clean(path: str) -> str:
    cleaned = _normal(path).lstrip("/")
    return "" if cleaned == "." else cleaned


def _may_reach(pattern: list[str], directory: list[str]) -> bool:
    """Whether a pattern could match a path below `directory`, or the directory itself; rather yes than no."""
    for wanted, name in zip(pattern, directory, strict=False):
        if "**" in wanted:
            return True
        if wanted != name and not any(letter in wanted for letter in "*?[\\"):
            return False
    return True


def _compile(line: str) -> Pattern:
    text = _normal(line)
    back = text.startswith("!")
    if back:
        text = text[1:]
        if not text:
            raise DockerfileError('illegal exclusion pattern: "!"')
    if len(text) > MAX_PATTERN or text.count("*") > MAX_STARS:
        raise DockerfileError(f"pattern {quoted(text)} is too long, or has too many stars")
    return Pattern(text, back, re.compile(_regex(_tokens(text), text), re.DOTALL))


# Kinds of tokens, besides the regular expression of one letter
_STAR = "*"  # within a name
_DEEP = "**"  # any number of whole names, each with its slash
_REST = "** at the end"  # anything


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    at = 0
    while at < len(text):
        letter = text[at]
        at += 1
        if text.startswith("**", at - 1):
            at += 1
            at += text.startswith("/", at)
            while tokens[-1:] == [_DEEP]:
                tokens.pop()  # two in a row are one
            tokens.append(_DEEP if at < len(text) else _REST)
        elif letter == "*":
            if tokens[-1:] != [_STAR]:
                tokens.append(_STAR)
        elif letter == "?":
            tokens.append("[^/]")
        elif letter == "[":
            token, at = _class(text, at)
            tokens.append(token)
        elif letter == "\\":
            if at == len(text):
                raise _malformed(text)
            tokens.append(re.escape(text[at]))
            at += 1
        else:
            tokens.append(re.escape(letter))
    return tokens


def _class(text: str, at: int) -> tuple[str, int]:
    """`[a-z]`, `[^ab]` from behind its bracket, as a regular expression, and where it ends."""
    negated = text.startswith("^", at)
    at += negated
    ranges: list[str] = []
    while not text.startswith("]", at) or not ranges:
        low, at = _member(text, at)
        high = low
        if text.startswith("-", at):
            high, at = _member(text, at + 1)
        if low <= high:  # another range is empty
            ranges.append(f"{re.escape(low)}-{re.escape(high)}")
        else:
            ranges.append("")
    inside = "".join(ranges)
    if negated:
        return (f"[^{inside}]" if inside else "."), at + 1
    return (f"[{inside}]" if inside else "(?!)"), at + 1


def _member(text: str, at: int) -> tuple[str, int]:
    """A letter of a class, and where the next begins."""
    letter = text[at : at + 1]
    if letter in ("", "-", "]"):
        raise _malformed(text)
    if letter != "\\":
        return letter, at + 1
    if at + 1 >= len(text):
        raise _malformed(text)
    return text[at + 1], at + 2


def _malformed(text: str) -> DockerfileError:
    return DockerfileError(f"syntax error in pattern: {quoted(text)}")


def _regex(tokens: list[str], text: str) -> str:
    """In atomic groups wherever the first way to match is as good as any, so that a match cannot take long.

    That is so of what stands before a star within a name, and of whole names before a `**`.
    """
    if tokens[:1] == [_DEEP] and not text.startswith("**/") and not any(map(_is_special, tokens[1:])):
        return "(?s:.*)" + "".join(tokens[1:]) + r"\Z"  # "**foo": any path that ends in it
    parts: list[list[str]] = [[]]
    crossing = 0
    for at, token in enumerate(tokens):
        if token == _DEEP and (at == 0 or tokens[at - 1] == "/"):
            parts.append([])
        elif token == _DEEP:
            crossing += 1
            parts[-1].append("(?:.*/)?")
        else:
            crossing += _STAR in tokens[:at] and _crosses(token)
            parts[-1].append(".*" if token == _REST else token)
    if crossing > MAX_OPEN:
        raise DockerfileError(f"pattern {quoted(text)} has too many ** or [^] within names")
    first, *others = [_names(part) for part in parts]
    if not others:
        return first + r"\Z"
    middle = "".join(f"(?>(?:.*?/)??{part})" for part in others[:-1])
    return f"{first}{middle}(?:.*/)?{others[-1]}\\Z"


def _is_special(token: str) -> bool:
    return token in (_STAR, _DEEP, _REST) or token.startswith("[") or token == "(?!)"


def _crosses(token: str) -> bool:
    """A class that a slash is in, as it is in most negated ones."""
    return token == "." or (token.startswith("[") and token != "[^/]" and re.match(token, "/") is not None)


def _names(tokens: list[str]) -> str:
    """Names without `**`: within each, what a star and the letters behind it take is not given back."""
    pieces: list[str] = []
    run: list[str] | None = None  # behind a star
    for token in tokens:
        if token == _STAR:
            if run is not None:
                pieces.append(f"(?>[^/]*?{''.join(run)})")
            run = []
        elif run is None:
            pieces.append(token)
        elif token == "/" or token.startswith((".*", "(?:")) or _crosses(token):
            pieces += ("[^/]*", *run, token)
            run = None
        else:
            run.append(token)
    if run is not None:
        pieces += ("[^/]*", *run)
    return "".join(pieces)
