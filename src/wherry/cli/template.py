"""Go's text/template language: execution over JSON values and rows, and docker's functions.

    render(parse("{{.Name}}\\t{{json .Ports}}"), row) -> str

A `Row` answers for its own fields. A dict is Go's struct or map, told apart by the name it was reached by: structs
print as `{a b}`, have the optional fields the engine leaves out, and are always true.
"""

from __future__ import annotations

from wherry.cli.listing import Row
from wherry.cli.template_functions import FUNCTIONS, OPTIONAL, GoMap, go_string, truth, typed
from wherry.cli.template_parse import Node, Parser, TemplateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

__all__ = ["Template", "TemplateError", "parse"]


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


class Template:
    """Parsed, ready to be executed any number of times."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes

    def render(self, data: Any, overrides: Mapping[str, Callable[..., Any]] | None = None) -> str:
        """TemplateError in Go's words. `overrides` replaces functions, as table headers do."""
        functions = {**FUNCTIONS, **overrides} if overrides else FUNCTIONS
        execution = _Execution(data, functions)
        execution.walk(self.nodes, data)
        return "".join(execution.out)


def parse(source: str) -> Template:
    return Template(Parser(source, frozenset({*FUNCTIONS, "and", "or"})).parse())


class _Execution:
    def __init__(self, root: Any, functions: Mapping[str, Callable[..., Any]]) -> None:
        self.functions = functions
        self.scopes: list[dict[str, Any]] = [{"$": root}]
        self.out: list[str] = []

    def fail(self, node: Node, message: str) -> TemplateError:
        return TemplateError(f'template: :{node.at[0]}:{node.at[1]}: executing "" at <{node.source}>: {message}')

    def walk(self, nodes: list[Node], dot: Any) -> None:
        for node in nodes:
            if node.kind == "text":
                self.out.append(str(node.parts[0]))
            elif node.kind == "action":
                pipe = node.parts[0]
                assert isinstance(pipe, Node)
                value = self.pipe(pipe, dot)
                if not pipe.parts[0]:
                    self.out.append(self.no_value(pipe) if value is None else go_string(value))
            elif node.kind == "range":
                self.range(node, dot)
            elif node.kind == "break":
                raise _Break
            elif node.kind == "continue":
                raise _Continue
            else:
                self.branch(node, dot)

    def no_value(self, pipe: Node) -> str:
        """A field that is null prints otherwise than nothing at all."""
        commands = pipe.parts[2]
        assert isinstance(commands, list)
        operands = commands[-1].parts[0]
        return "<nil>" if operands[0].kind in ("field", "chain") else "<no value>"

    def branch(self, node: Node, dot: Any) -> None:
        pipe, body, otherwise = node.parts
        assert isinstance(pipe, Node)
        assert isinstance(body, list)
        assert isinstance(otherwise, list)
        self.scopes.append({})
        value = self.pipe(pipe, dot)
        if truth(value):
            self.walk(body, value if node.kind == "with" else dot)
        else:
            self.walk(otherwise, dot)
        self.scopes.pop()

    def range(self, node: Node, dot: Any) -> None:
        pipe, body, otherwise = node.parts
        assert isinstance(pipe, Node)
        assert isinstance(body, list)
        assert isinstance(otherwise, list)
        depth = len(self.scopes)
        names = pipe.parts[0]
        assert isinstance(names, list)
        self.scopes.append({})
        value = self.pipe(pipe, dot)
        pairs: list[tuple[Any, Any]]
        if isinstance(value, list):
            pairs = list(enumerate(value))
        elif isinstance(value, dict):
            pairs = [(key, typed(key, value[key])) for key in sorted(value)]
        elif isinstance(value, int) and not isinstance(value, bool):
            pairs = [(number, number) for number in range(value)]
        elif value is None:
            pairs = []
        else:
            raise self.fail(pipe, f"range can't iterate over {go_string(value)}")
        if not pairs:
            self.walk(otherwise, dot)
        for key, item in pairs:
            scope: dict[str, Any] = {}
            if len(names) == 1:
                scope[names[0]] = item
            elif len(names) == 2:
                scope[names[0]], scope[names[1]] = key, item
            if names and not pipe.parts[1]:
                for name, assigned in scope.items():
                    self.assign(name, assigned)
                scope = {}
            self.scopes.append(scope)
            try:
                self.walk(body, item)
            except _Continue:
                pass
            except _Break:
                break
            finally:
                del self.scopes[depth + 1 :]
        del self.scopes[depth:]

    def assign(self, name: str, value: Any) -> None:
        for scope in reversed(self.scopes):
            if name in scope:
                scope[name] = value
                return

    def pipe(self, node: Node, dot: Any) -> Any:
        names, declares, commands = node.parts
        assert isinstance(names, list)
        assert isinstance(commands, list)
        value: Any = None
        for number, command in enumerate(commands):
            value = self.command(command, dot, [value] if number else [])
        for name in names:
            if declares:
                self.scopes[-1][name] = value
            else:
                self.assign(name, value)
        return value

    def command(self, node: Node, dot: Any, final: list[Any]) -> Any:
        operands = node.parts[0]
        assert isinstance(operands, list)
        first, arguments = operands[0], operands[1:]
        if first.kind == "function":
            return self.call(first, node, arguments, dot, final)
        if first.kind in ("field", "variable", "chain"):
            given = [self.argument(argument, dot) for argument in arguments] + final
            return self.operand(first, dot, given)
        if arguments or final:
            raise self.fail(first, f"can't give argument to non-function {first.source}")
        return self.operand(first, dot)

    def call(self, first: Node, node: Node, arguments: list[Node], dot: Any, final: list[Any]) -> Any:
        name = str(first.parts[0])
        if name in ("and", "or"):
            if not arguments and not final:
                raise self.fail(first, f"wrong number of args for {name}: want at least 1 got 0")
            value: Any = None
            for argument in arguments:
                value = self.argument(argument, dot)
                if truth(value) == (name == "or"):
                    return value
            return final[0] if final else value
        given = [self.argument(argument, dot) for argument in arguments] + final
        try:
            return self.functions[name](*given)
        except TemplateError as exc:
            raise self.fail(node if arguments else first, f"error calling {name}: {exc}") from None
        except TypeError:
            raise self.fail(first, f"wrong number of args for {name}: got {len(given)}") from None

    def argument(self, node: Node, dot: Any) -> Any:
        return None if node.kind == "nil" else self.operand(node, dot)

    def operand(self, node: Node, dot: Any, arguments: list[Any] | None = None) -> Any:
        kind = node.kind
        if kind == "field":
            names = node.parts[0]
            assert isinstance(names, list)
            return self.fields(node, dot, names, arguments)
        if kind == "constant":
            return node.parts[0]
        if kind == "dot":
            return dot
        if kind == "variable":
            names = node.parts[1]
            assert isinstance(names, list)
            return self.fields(node, self.lookup(str(node.parts[0])), names, arguments)
        if kind == "pipe":
            return self.pipe(node, dot)
        if kind == "chain":
            inner, names = node.parts
            assert isinstance(inner, Node)
            assert isinstance(names, list)
            return self.fields(node, self.operand(inner, dot), names, arguments)
        if kind == "function":
            return self.call(node, node, [], dot, [])
        raise self.fail(node, "nil is not a command")

    def lookup(self, name: str) -> Any:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        raise AssertionError(name)  # the parser knows every variable

    def fields(self, node: Node, value: Any, names: list[str], arguments: list[Any] | None) -> Any:
        for number, name in enumerate(names):
            given = arguments if number == len(names) - 1 else None
            if value is None and number and names[number - 1] in OPTIONAL:
                raise self.fail(node, f'map has no entry for key "{names[number - 1]}"')
            value = self.field(node, value, name, given or [])
        if not names and arguments:
            raise self.fail(node, f"can't give argument to non-function {node.source}")
        return value

    def field(self, node: Node, value: Any, name: str, arguments: list[Any]) -> Any:
        if isinstance(value, Row):
            try:
                found = value.get(name)
            except KeyError:
                raise self.fail(node, f"can't evaluate field {name} in type {value.type_name}") from None
            if callable(found):
                try:
                    return found(*arguments)
                except TypeError:
                    raise self.fail(node, f"wrong number of args for {name}: got {len(arguments)}") from None
            if arguments:
                raise self.fail(node, f"wrong number of args for {name}: want 0 got {len(arguments)}")
            return found
        if value is None:
            raise self.fail(node, f"nil pointer evaluating interface {{}}.{name}")
        if not isinstance(value, dict):
            raise self.fail(node, f"can't evaluate field {name} in type {_type_name(value)}")
        if arguments:
            raise self.fail(node, f"{name} is not a method but has arguments")
        if name in value:
            return typed(name, value[name])
        if not isinstance(value, GoMap):
            # Go's names differ from JSON's in their capitals only: ID and Id, APIVersion and ApiVersion, NanoCPUs
            lower = name.lower()
            for key in value:
                if key.lower() == lower and name[0].isupper():
                    return typed(key, value[key])
        if not isinstance(value, GoMap) and name in OPTIONAL:
            return typed(name, OPTIONAL[name])
        raise self.fail(node, f'map has no entry for key "{name}"')


def _type_name(value: Any) -> str:
    return "[]interface {}" if isinstance(value, list) else "interface {}"
