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
MAX_INNER = 1  # "**" that are part of a name: each multiplies the time a match may take
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
        parent = self._directory(posixpath.dirname(path))
        taken = False
        for pattern, above in zip(self.patterns, parent, strict=True):
            if pattern.back == taken and (above or pattern.matcher.match(path) is not None):
                taken = not pattern.back
        return taken

    def skips_below(self, directory: str) -> bool:
        """Nothing below a directory that is taken out can be put back: one need not look into it."""
        if not self.matches(directory):
            return False
        below = _clean(directory).split("/")
        return not any(pattern.back and _may_reach(pattern.text.split("/"), below) for pattern in self.patterns)

    def _directory(self, path: str) -> tuple[bool, ...]:
        """Of each pattern, whether it matches the directory or one above it."""
        missing = []
        while (known := self._directories.get(path)) is None:
            missing.append(path)
            path = posixpath.dirname(path)
        for each in reversed(missing):
            known = tuple(
                above or pattern.matcher.match(each) is not None
                for pattern, above in zip(self.patterns, known, strict=True)
            )
            if len(self._directories) < MAX_REMEMBERED:
                self._directories[each] = known
        return known


def _normal(path: str) -> str:
    """Without `.`, `..` and doubled slashes, as far as that goes."""
    return posixpath.normpath(path[1:] if path.startswith("//") else path)


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
        return f"[^/{inside}]", at + 1
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
    inner = 0
    for at, token in enumerate(tokens):
        if token == _DEEP and (at == 0 or tokens[at - 1] == "/"):
            parts.append([])
        elif token == _DEEP:
            inner += 1
            parts[-1].append("(?:.*/)?")
        else:
            parts[-1].append(".*" if token == _REST else token)
    if inner > MAX_INNER:
        raise DockerfileError(f"pattern {quoted(text)} has too many **")
    first, *others = [_names(part) for part in parts]
    if not others:
        return first + r"\Z"
    middle = "".join(f"(?>(?:.*?/)??{part})" for part in others[:-1])
    return f"{first}{middle}(?:.*/)?{others[-1]}\\Z"


def _is_special(token: str) -> bool:
    return token in (_STAR, _DEEP, _REST) or token.startswith("[") or token == "(?!)"


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
        elif token == "/" or token.startswith((".*", "(?:")):
            pieces += ("[^/]*", *run, token)
            run = None
        else:
            run.append(token)
    if run is not None:
        pieces += ("[^/]*", *run)
    return "".join(pieces)
