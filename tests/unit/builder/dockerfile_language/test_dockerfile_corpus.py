"""Every Dockerfile of the folder is read as its expected file says: valid ones into instructions, others into words."""

import dataclasses
import json
from pathlib import Path

import pytest

from wherry.builder.dockerfile.errors import DockerfileError
from wherry.builder.dockerfile.instructions import Arg, From, Instruction, Run
from wherry.builder.dockerfile.parser import Node
from wherry.builder.dockerfile.stages import parse_dockerfile

FOLDER = Path(__file__).parents[1] / "dockerfiles"
VALID = sorted((FOLDER / "valid").glob("*.Dockerfile"))
INVALID = sorted((FOLDER / "invalid").glob("*.Dockerfile"))


def shown(data: bytes) -> str:
    dockerfile = parse_dockerfile(data)
    document = {
        "directives": {name: directive.value for name, directive in dockerfile.parsed.directives.items()},
        "args": [_instruction(arg) for arg in dockerfile.args],
        "stages": [
            {
                "from": _instruction(stage.start) | {"description": stage.description},
                "instructions": [_instruction(instruction) for instruction in stage.instructions],
            }
            for stage in dockerfile.stages
        ],
    }
    return json.dumps(document, indent=1, ensure_ascii=False, default=str) + "\n"


def _instruction(instruction: Instruction) -> dict[str, object]:
    node = instruction.node
    lines = f"{node.range.start}-{node.range.end}:{node.range.column}"
    fields = {
        field.name: _plain(getattr(instruction, field.name))
        for field in dataclasses.fields(instruction)
        if field.name != "node" and getattr(instruction, field.name) != field.default
    }
    if isinstance(instruction, Run) and instruction.mount_texts:
        fields["mounts"] = [_plain(mount) for mount in instruction.mounts(lambda text: text.replace("$kind", "cache"))]
        del fields["mount_texts"]
    return {"": f"{lines} {node.original}", **_of_node(node), **fields}


def _of_node(node: Node) -> dict[str, object]:
    return {"empty_line": node.empty_line} if node.empty_line else {}


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if dataclasses.is_dataclass(value):
        fields = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {field.name: _plain(part) for field, part in fields if part != field.default}
    return value


def failure(data: bytes) -> str:
    with pytest.raises(DockerfileError) as caught:
        parse_dockerfile(data)
    assert caught.value.location is not None
    return caught.value.rendered


def test_the_folders_are_there():
    assert len(VALID) > 15
    assert len(INVALID) > 80


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_a_valid_dockerfile_is_read_as_expected(path):
    assert shown(path.read_bytes()) == path.with_suffix(".json").read_text()


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_an_invalid_dockerfile_is_refused_in_the_expected_words(path):
    assert failure(path.read_bytes()) + "\n" == path.with_suffix(".txt").read_text()


def test_the_filename_is_the_one_given():
    with pytest.raises(DockerfileError) as caught:
        parse_dockerfile(b"FROM a\nRNU x\n", "sub/app.Dockerfile")
    assert caught.value.filename == "sub/app.Dockerfile"
    assert caught.value.rendered.startswith("sub/app.Dockerfile:2:1\n")


def test_global_arguments_are_no_part_of_a_stage():
    dockerfile = parse_dockerfile(b"ARG a=1\nFROM x AS one\nARG a\nFROM y\n")
    assert [pair.name for arg in dockerfile.args for pair in arg.args] == ["a"]
    assert [(stage.number, stage.name, len(stage.instructions)) for stage in dockerfile.stages] == [
        (0, "one", 1),
        (1, "", 0),
    ]
    assert isinstance(dockerfile.stages[0].instructions[0], Arg)
    assert isinstance(dockerfile.stages[0].start, From)
