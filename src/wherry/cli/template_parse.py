"""Go's text/template language: source text into a tree.

All of the language but `define`, `template` and `block`, which need several named templates and one `--format` has
no use for. Errors are TemplateError in Go's words.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
SPACES = " \t\r\n"
KEYWORDS = frozenset({"if", "else", "end", "range", "with", "break", "continue", "define", "template", "block"})


class TemplateError(Exception):
    """The template cannot be parsed or executed."""


class Node:
    """`kind` says what `parts` holds; `source` and `at` (line, column) are for messages.

    text: str · action: pipe · if, with: pipe, body, otherwise · range: pipe, body, otherwise · break · continue
    pipe: names, declares, commands · command: operands
    field: names · chain: operand, names · variable: name, names · dot · nil · constant: value · function: name
    """

    __slots__ = ("at", "kind", "parts", "source")

    def __init__(self, kind: str, at: tuple[int, int], source: str, *parts: object) -> None:
        self.kind = kind
        self.at = at
        self.source = source
        self.parts = parts


class Token:
    __slots__ = ("kind", "position", "space", "text", "value")

    def __init__(self, kind: str, text: str, position: int, *, space: bool, value: object = None) -> None:
        self.kind = kind  # field, variable, identifier, string, number, char, bool, nil, dot, or the sign itself
        self.text = text
        self.position = position
        self.space = space  # was there white space before it?
        self.value = value


def split_actions(source: str) -> list[tuple[str, str, int]]:
    """`("text", …)` and `("action", …)` pieces with their offsets; trim markers applied, comments dropped."""
    pieces: list[tuple[str, str, int]] = []
    at = 0
    trim_next = False
    while True:
        start = source.find("{{", at)
        text = source[at:] if start < 0 else source[at:start]
        if trim_next:
            text = text.lstrip(SPACES)
        if start < 0:
            if text:
                pieces.append(("text", text, at))
            return pieces
        inside = start + 2
        if source[inside : inside + 1] == "-" and source[inside + 1 : inside + 2] in tuple(SPACES):
            text = text.rstrip(SPACES)
            inside += 2
        if text:
            pieces.append(("text", text, at))
        body = source[inside:].lstrip(SPACES) if source[inside:].lstrip(SPACES).startswith("/*") else ""
        if body:
            stop = source.find("*/", inside)
            if stop < 0:
                raise TemplateError(f"template: :{_line(source, start)}: unclosed comment")
            tail = source[stop + 2 :]
            trim_next = tail.startswith((" -}}", "\n-}}", "\t-}}"))
            end = stop + 2 + (2 if trim_next else 0)
            if source[end : end + 2] != "}}":
                raise TemplateError(f"template: :{_line(source, start)}: comment ends before closing delimiter")
            at = end + 2
            continue
        end = _action_end(source, inside, start)
        content = source[inside:end]
        trim_next = len(content) > 1 and content.endswith("-") and content[-2] in SPACES
        pieces.append(("action", content[:-2] if trim_next else content, inside))
        at = end + 2


def _line(source: str, position: int) -> int:
    return source.count("\n", 0, position) + 1


def _action_end(source: str, at: int, start: int) -> int:
    """Where the `}}` is that closes the action, strings skipped."""
    while at < len(source):
        char = source[at]
        if source.startswith("}}", at):
            return at
        if char in "\"'":
            at += 1
            while at < len(source) and source[at] != char:
                if source[at] == "\n":
                    break
                at += 2 if source[at] == "\\" else 1
            if at >= len(source) or source[at] == "\n":
                kind = "quoted string" if char == '"' else "character constant"
                raise TemplateError(f"template: :{_line(source, start)}: unterminated {kind}")
        elif char == "`":
            stop = source.find("`", at + 1)
            if stop < 0:
                raise TemplateError(f"template: :{_line(source, start)}: unterminated raw quoted string")
            at = stop
        at += 1
    raise TemplateError(f"template: :{_line(source, start)}: unclosed action")


def _word_end(text: str, at: int) -> int:
    while at < len(text) and (text[at].isalnum() or text[at] == "_"):
        at += 1
    return at


def unquote(body: str) -> str:
    """A Go interpreted string's content."""
    if "\\" not in body:
        return body
    out: list[str] = []
    at = 0
    while at < len(body):
        char = body[at]
        at += 1
        if char != "\\":
            out.append(char)
            continue
        code = body[at : at + 1]
        at += 1
        if code in ESCAPES and code:
            out.append(ESCAPES[code])
            continue
        digits = {"x": 2, "u": 4, "U": 8}.get(code, 3 if code.isdigit() else 0)
        start = at - 1 if code.isdigit() else at
        try:
            out.append(chr(int(body[start : start + digits], 8 if code.isdigit() else 16)))
        except (ValueError, OverflowError):
            raise TemplateError("invalid syntax") from None
        at = start + digits
    return "".join(out)


def tokenize(action: str, base: int, line: int) -> list[Token]:
    """The tokens of one action that begins at `base` of the source, in `line`."""
    tokens: list[Token] = []
    at = 0
    while at < len(action):
        if action[at] in SPACES:
            at += 1
            continue
        try:
            kind, stop, value = _scan(action, at)
        except TemplateError as exc:
            raise TemplateError(f"template: :{line}: {exc}") from None
        space = at == 0 or action[at - 1] in SPACES
        tokens.append(Token(kind, action[at:stop], base + at, space=space, value=value))
        at = stop
    return tokens


def _scan(action: str, start: int) -> tuple[str, int, object]:
    """Kind, end and value of the token at `start`. Quotes are known to be closed."""
    char, following = action[start], action[start + 1 : start + 2]
    if char == "." and not following.isdigit():
        stop = _word_end(action, start + 1)
        return ("field" if stop > start + 1 else "dot"), stop, None
    if char == "$":
        return "variable", _word_end(action, start + 1), None
    if char in "\"'":
        stop = start + 1
        while action[stop] != char:
            stop += 2 if action[stop] == "\\" else 1
        text = unquote(action[start + 1 : stop])
        if char == '"':
            return "string", stop + 1, text
        if len(text) != 1:
            raise TemplateError(f"malformed character constant: {action[start : stop + 1]}")
        return "number", stop + 1, ord(text)
    if char == "`":
        stop = action.index("`", start + 1) + 1
        return "string", stop, action[start + 1 : stop - 1]
    if char.isdigit() or char in ".+-":
        stop = start + 1
        while stop < len(action) and (action[stop].isalnum() or action[stop] in "._+-"):
            if action[stop] in "+-" and action[stop - 1] not in "eEpP":
                break
            stop += 1
        return "number", stop, _number(action[start:stop])
    if char.isalpha() or char == "_":
        stop = _word_end(action, start)
        word = action[start:stop]
        if word in ("true", "false"):
            return "bool", stop, word == "true"
        return ("nil" if word == "nil" else "identifier"), stop, None
    if action.startswith(":=", start):
        return ":=", start + 2, None
    if char in "|(),=":
        return char, start + 1, None
    raise TemplateError(f'unexpected "{char}" in command')


def _number(text: str) -> int | float:
    try:
        body = text.replace("_", "")
        digits = body.lstrip("+-")
        if len(digits) > 1 and digits[0] == "0" and digits.isdigit():
            return int(body, 8)
        return int(body, 0)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            raise TemplateError(f'bad number syntax: "{text}"') from None


class Parser:
    """Recursive descent over the pieces; `functions` are the names that may be called."""

    def __init__(self, source: str, functions: Collection[str]) -> None:
        self.source = source
        self.functions = functions
        self.pieces = split_actions(source)
        self.next_piece = 0
        self.tokens: list[Token] = []
        self.next_token = 0
        self.line = 1
        self.variables = [{"$"}]
        self.loops = 0

    def fail(self, message: str) -> TemplateError:
        return TemplateError(f"template: :{self.line}: {message}")

    def where(self, position: int) -> tuple[int, int]:
        start = self.source.rfind("\n", 0, position) + 1
        return _line(self.source, position), len(self.source[start:position].encode("utf-8", "surrogateescape"))

    # tokens of one action

    def peek(self) -> Token | None:
        return self.tokens[self.next_token] if self.next_token < len(self.tokens) else None

    def take(self) -> Token:
        token = self.tokens[self.next_token]
        self.next_token += 1
        return token

    def parse(self) -> list[Node]:
        body, ending = self.parse_body()
        if ending:
            raise self.fail(f"unexpected {{{{{ending}}}}}")
        return body

    def parse_body(self) -> tuple[list[Node], str]:
        """Nodes up to `end`, `else` or the end of the source; which of them it was ("" for the last)."""
        nodes: list[Node] = []
        self.variables.append(set())
        while self.next_piece < len(self.pieces):
            kind, text, position = self.pieces[self.next_piece]
            self.next_piece += 1
            self.line = _line(self.source, position)
            if kind == "text":
                nodes.append(Node("text", (0, 0), "", text))
                continue
            self.tokens, self.next_token = tokenize(text, position, self.line), 0
            first = self.peek()
            if first is None:
                raise self.fail("missing value for command")
            if first.kind == "identifier" and first.text in ("end", "else"):
                self.take()
                if first.text == "end" and (extra := self.peek()) is not None:
                    raise self.fail(f'unexpected "{extra.text}" in end')
                self.variables.pop()
                return nodes, first.text
            if first.kind == "identifier" and first.text in KEYWORDS:
                nodes.append(self.parse_control(self.take()))
            else:
                nodes.append(Node("action", self.where(first.position), text, self.parse_pipeline("command")))
        self.variables.pop()
        return nodes, ""

    def parse_control(self, keyword: Token) -> Node:
        at = self.where(keyword.position)
        if keyword.text in ("break", "continue"):
            if not self.loops:
                raise self.fail(f"{{{{{keyword.text}}}}} outside {{{{range}}}}")
            return Node(keyword.text, at, keyword.text)
        if keyword.text not in ("if", "with", "range"):
            raise self.fail(f"{{{{{keyword.text}}}}} is not supported")
        self.variables.append(set())
        pipe = self.parse_pipeline(keyword.text)
        self.loops += keyword.text == "range"
        body, ending = self.parse_body()
        self.loops -= keyword.text == "range"
        otherwise: list[Node] = []
        if ending == "else":
            following = self.peek()
            if following is not None and following.text == keyword.text and keyword.text != "range":
                otherwise = [self.parse_control(self.take())]
                self.variables.pop()
                return Node(keyword.text, at, keyword.text, pipe, body, otherwise)
            if following is not None:
                raise self.fail(f'unexpected "{following.text}" in else')
            otherwise, ending = self.parse_body()
        if ending != "end":
            raise self.fail("unexpected EOF" if not ending else f"unexpected {{{{{ending}}}}}")
        self.variables.pop()
        return Node(keyword.text, at, keyword.text, pipe, body, otherwise)

    def parse_pipeline(self, context: str) -> Node:
        """The rest of the action, or up to a closing parenthesis when `context` is "parenthesis"."""
        start = self.peek()
        if start is None:
            raise self.fail(f"missing value for {context}")
        names, declares = self.parse_declaration(context)
        commands: list[Node] = []
        while True:
            token = self.peek()
            if token is None or token.kind == ")":
                break
            commands.append(self.parse_command(context))
            token = self.peek()
            if token is None or token.kind == ")":
                break
            self.take()  # the |
        end = self.peek()
        if end is not None and end.kind == ")" and context != "parenthesis":
            raise self.fail("unexpected right paren")
        if not commands:
            raise self.fail(f"missing value for {context}")
        for command in commands[1:]:
            first = command.parts[0]
            assert isinstance(first, list)
            if first[0].kind in ("constant", "dot", "nil"):
                raise self.fail(f"non executable command in pipeline stage {commands.index(command) + 1}")
        if context == "parenthesis" and end is None:
            raise self.fail("unclosed left paren")
        stop = end.position if end is not None else self.tokens[-1].position + len(self.tokens[-1].text)
        source = self.source[start.position : stop].strip()
        return Node("pipe", self.where(start.position), source, names, declares, commands)

    def parse_declaration(self, context: str) -> tuple[list[str], bool]:
        """Leading `$x :=`, `$x =` or, in range, `$k, $v :=`."""
        saved = self.next_token
        names: list[str] = []
        while (token := self.peek()) is not None and token.kind == "variable":
            names.append(self.take().text)
            following = self.peek()
            if following is not None and following.kind in (":=", "="):
                sign = self.take().kind
                if sign == ":=":
                    self.variables[-1].update(names)
                else:
                    for name in names:
                        self.check_variable(name)
                return names, sign == ":="
            if following is not None and following.kind == "," and context == "range" and len(names) == 1:
                self.take()
                continue
            break
        self.next_token = saved
        return [], False

    def check_variable(self, name: str) -> None:
        if not any(name in scope for scope in self.variables):
            raise self.fail(f'undefined variable "{name}"')

    def parse_command(self, context: str) -> Node:
        start = self.peek()
        assert start is not None
        operands: list[Node] = []
        while (token := self.peek()) is not None and token.kind not in ("|", ")"):
            operands.append(self.parse_operand(context))
        if not operands:
            raise self.fail("empty command")
        stop = self.tokens[self.next_token - 1]
        source = self.source[start.position : stop.position + len(stop.text)]
        return Node("command", self.where(start.position), source, operands)

    def parse_operand(self, context: str) -> Node:
        token = self.take()
        at = self.where(token.position)
        if token.kind == "(":
            node = self.parse_pipeline("parenthesis")
            self.take()
        elif token.kind == "field":
            node = Node("field", at, token.text, [token.text[1:]])
        elif token.kind == "variable":
            self.check_variable(token.text)
            node = Node("variable", at, token.text, token.text, [])
        elif token.kind == "dot":
            node = Node("dot", at, ".")
        elif token.kind == "nil":
            node = Node("nil", at, "nil")
        elif token.kind in ("string", "number", "bool"):
            node = Node("constant", at, token.text, token.value)
        elif token.kind == "identifier":
            if token.text not in self.functions:
                raise self.fail(f'function "{token.text}" not defined')
            node = Node("function", at, token.text, token.text)
        elif token.kind == ")":
            raise self.fail("unexpected right paren")
        else:
            raise self.fail(f'unexpected "{token.text}" in {"operand" if context == "command" else context}')
        return self.parse_chain(node)

    def parse_chain(self, node: Node) -> Node:
        """Fields that follow an operand without space."""
        names: list[str] = []
        second: int | None = None
        while (token := self.peek()) is not None and token.kind == "field" and not token.space:
            if second is None:
                second = token.position
            names.append(self.take().text[1:])
        if second is None:
            return node
        at = self.where(second)
        source = node.source + "".join("." + name for name in names)
        if node.kind == "field":
            assert isinstance(node.parts[0], list)
            return Node("field", at, source, [*node.parts[0], *names])
        if node.kind == "variable":
            return Node("variable", at, source, node.parts[0], names)
        if node.kind in ("constant", "nil", "dot", "function"):
            raise self.fail(f"unexpected . after term {node.source!r}".replace("'", '"'))
        return Node("chain", at, source, node, names)
