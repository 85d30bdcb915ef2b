"""Words of Dockerfile instructions: quotes, backslashes and variables, as the Dockerfile reference has them. Pure.

word       'literal'   "with $VARIABLES and \\" escapes"   \\x   $NAME   ${NAME}
${NAME:-w} w when NAME is unset or empty    ${NAME-w} when it is unset
${NAME:+w} w when NAME is set and not empty ${NAME+w} when it is set
${NAME:?w} refused with w when ...          ${NAME?w}
"""

import re
from collections.abc import Mapping

from wherry.errors import InvalidParameter

MAX_DEPTH = 20  # substitutions within substitutions
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+|[@*#?!$-]", re.ASCII)


def split(text: str) -> list[str]:
    """Words at white space that is neither quoted nor escaped, as they stand."""
    found: list[str] = []
    word, quote, escaped = "", "", False
    for char in text:
        if not (quote or escaped) and char.isspace():
            if word:
                found.append(word)
            word = ""
            continue
        word += char
        if escaped:
            escaped = False
        elif char == "\\" and quote != "'":
            escaped = True
        elif quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
    return [*found, word] if word else found


def expand(word: str, variables: Mapping[str, str]) -> str:
    """`word` without quotes and backslashes, variables replaced. Raises InvalidParameter in Docker's words."""
    try:
        return _Word(word, variables).read("", 0)
    except InvalidParameter as exc:
        raise InvalidParameter(f"failed to process {quoted(word)}: {exc.message}") from exc


def quoted(text: str) -> str:
    """As Go's %q, for messages; of bounded length."""
    return '"' + text[:100].replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t") + '"'


class _Word:
    def __init__(self, text: str, variables: Mapping[str, str]) -> None:
        self._text = text
        self._at = 0
        self._variables = variables

    def _next(self) -> str:
        """The next character, which is taken; "" at the end."""
        char = self._text[self._at : self._at + 1]
        self._at += len(char)
        return char

    def read(self, stop: str, depth: int) -> str:
        """Up to the character `stop`, which is taken, or to the end."""
        if depth > MAX_DEPTH:
            raise InvalidParameter("substitutions are nested too deeply")
        out: list[str] = []
        while (char := self._next()) != stop:
            match char:
                case "":
                    raise InvalidParameter(f"unexpected end of statement while looking for matching {stop}")
                case "'":
                    out.append(self._single())
                case '"':
                    out.append(self._double(depth))
                case "\\":
                    out.append(self._next() or "\\")
                case "$":
                    out.append(self._dollar(depth))
                case _:
                    out.append(char)
        return "".join(out)

    def _single(self) -> str:
        end = self._text.find("'", self._at)
        if end < 0:
            raise InvalidParameter("unexpected end of statement while looking for matching single-quote")
        found, self._at = self._text[self._at : end], end + 1
        return found

    def _double(self, depth: int) -> str:
        out: list[str] = []
        while (char := self._next()) != '"':
            if not char:
                raise InvalidParameter("unexpected end of statement while looking for matching double-quote")
            if char == "$":
                out.append(self._dollar(depth))
            elif char == "\\":
                following = self._next()
                out.append(following if following and following in '"$\\' else char + following)
            else:
                out.append(char)
        return "".join(out)

    def _dollar(self, depth: int) -> str:
        if self._text[self._at : self._at + 1] == "{":
            self._at += 1
            return self._braces(depth)
        name = self._name()
        return self._variables.get(name, "") if name else "$"

    def _name(self) -> str:
        match = _NAME.match(self._text, self._at)
        if match is None:
            return ""
        self._at = match.end()
        return match[0]

    def _braces(self, depth: int) -> str:
        name = self._name()
        if not name:
            raise InvalidParameter("syntax error: bad substitution")
        value = self._variables.get(name)
        operator = self._next()
        if operator == "}":
            return value or ""
        colon = operator == ":"
        if colon:
            operator = self._next()
            value = value or None  # an empty one counts as unset
        if not operator:
            raise InvalidParameter("syntax error: missing '}' in substitution")
        if operator not in "-+?":
            raise InvalidParameter(f"unsupported modifier ({':' if colon else ''}{operator}) in substitution")
        word = self.read("}", depth + 1)
        if operator == "+":
            return "" if value is None else word
        if operator == "?" and value is None:
            raise InvalidParameter(f"{name}: {word or 'is not allowed to be unset'}")
        return word if value is None else value
