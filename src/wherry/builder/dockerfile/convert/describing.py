"""Targets as text, to be read by people: the graph, then what the image says. For debugging and tests."""

from collections.abc import Sequence
from dataclasses import MISSING, Field, fields, is_dataclass

from wherry.builder.dockerfile.convert.targets import Target
from wherry.builder.graph import Output, Vertex, walk
from wherry.spec.image import Platform, encode_container_config


def describe(targets: Sequence[Target]) -> str:
    """Each vertex once, inputs before their users, with what is not as usual; then config and history per target."""
    vertices = walk([target.output for target in targets])
    numbers = {id(vertex): number for number, vertex in enumerate(vertices, 1)}
    lines = []
    for number, vertex in enumerate(vertices, 1):
        lines += _vertex(number, vertex, numbers)
    for target in targets:
        lines += _target(target, numbers)
    return "\n".join(lines) + "\n"


def _reference(output: Output | None, numbers: dict[int, int]) -> str:
    if output is None:
        return "scratch"
    index = f".{output.index}" if output.index else ""
    return f"{numbers[id(output.vertex)]}{index}"


def _vertex(number: int, vertex: Vertex, numbers: dict[int, int]) -> list[str]:
    inputs = ", ".join(_reference(output, numbers) for output in vertex.inputs)
    lines = [f"{number}: {vertex.name}", f"    {type(vertex.op).__name__}" + (f" of {inputs}" if inputs else "")]
    lines += _fields(vertex.op, "        ")
    place = [f"{vertex.location.filename}:{part.start}" for part in vertex.location.ranges] if vertex.location else []
    facts = {
        "platform": str(vertex.platform),
        "slot": vertex.slot,
        "args": " ".join(f"{name}={value}" for name, value in vertex.args.items()),
        "ignore_cache": "yes" if vertex.ignore_cache else "",
        "location": " ".join(place),
    }
    return lines + [f"    {name}: {value}" for name, value in facts.items() if value]


def _fields(value: object, indent: str) -> list[str]:
    """One line a field; lists of compound things one line an entry."""
    lines = []
    for field, item in _unusual(value):
        if isinstance(item, tuple) and item and is_dataclass(item[0]):
            lines.append(f"{indent}{field.name}:")
            lines += [f"{indent}    {_inline(each)}" for each in item]
        else:
            lines.append(f"{indent}{field.name}: {_inline(item)}")
    return lines


def _unusual(value: object) -> list[tuple["Field[object]", object]]:
    """Fields that have not their default."""
    assert is_dataclass(value)
    assert not isinstance(value, type)
    found = []
    for field in fields(value):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if (item := getattr(value, field.name)) != default:
            found.append((field, item))
    return found


def _inline(value: object) -> str:
    if is_dataclass(value) and not isinstance(value, type):
        inner = ", ".join(f"{field.name}={_inline(item)}" for field, item in _unusual(value))
        return f"{type(value).__name__}({inner})"
    if isinstance(value, Platform | bool | int):
        return str(value)
    if isinstance(value, str):
        return repr(str(value))
    if isinstance(value, tuple):
        return f"[{', '.join(map(_inline, value))}]"
    return repr(value)


def _target(target: Target, numbers: dict[int, int]) -> list[str]:
    lines = ["", f"{target.platform} {target.stage}: {_reference(target.output, numbers)}"]
    if target.base is not None:
        lines.append(f"    base: {target.base.reference} {target.base.digest}")
    if target.author:
        lines.append(f"    author: {target.author}")
    lines += [f"    {name}: {value!r}" for name, value in sorted(encode_container_config(target.config).items())]
    for entry in target.history:
        made = "-" if entry.history.empty_layer else str(numbers[id(entry.vertex)]) if entry.vertex else "base"
        lines.append(f"    {made:>4}  {entry.history.created_by}")
    return lines
