"""Graphs that no Dockerfile makes: differences, merges, steps with several outputs."""

from pathlib import Path
from typing import Any

import pytest

from wherry.builder.graph import (
    Copy,
    Diff,
    Exec,
    ExecMount,
    Files,
    FileStep,
    ImageSource,
    MakeDirectory,
    MakeFile,
    Merge,
    NetworkMode,
    Output,
    Remove,
    ResolveMode,
    Vertex,
)
from wherry.builder.trees import Tree
from wherry.errors import InvalidParameter
from wherry.kernel.mount import detached
from wherry.spec.image import host_platform
from wherry.storage.tree import walk


def busybox() -> Output:
    source = ImageSource(reference="docker.io/library/busybox:latest", mode=ResolveMode.LOCAL)
    return Output(Vertex(op=source, name="busybox", platform=host_platform()))


def run(script: str, *inputs: Output, mounts: tuple[ExecMount, ...] = ()) -> Vertex:
    root = ExecMount(target="/", input=0, output=0)
    op = Exec(args=("/bin/sh", "-c", script), mounts=(root, *mounts), network=NetworkMode.NONE)
    return Vertex(op=op, inputs=inputs, name=script, platform=host_platform())


def files(*actions: Any, on: Output | None = None) -> Output:
    steps = tuple(
        FileStep(
            action=action,
            input=0 if number == 0 else number,
            output=0 if number == len(actions) - 1 else -1,
        )
        for number, action in enumerate(actions)
    )
    return Output(Vertex(op=Files(steps=steps), inputs=(on,), name="files"))


async def solve(site: Any, *outputs: Output | None) -> list[Tree]:
    job = await site.begin()
    try:
        built = await job.solve([(host_platform(), output) for output in outputs])
    finally:
        await job.end()
    return [each.result for each in built.platforms]


def paths(site: Any, tree: Tree) -> set[str]:
    with detached(site.world.snapshots.view(tree.chain)) as root:
        return {
            (listing.path + b"/" + name).decode().lstrip("/") for listing in walk(root) for name, _ in listing.entries
        }


async def test_a_difference_is_what_was_added_changed_and_deleted(either: Any) -> None:
    one = files(MakeFile(path="/gone", data=b"x"), MakeFile(path="/kept", data=b"y"))
    two = files(Remove(path="/gone"), MakeFile(path="/new", data=b"z"), on=one)
    difference = Output(Vertex(op=Diff(), inputs=(one, two), name="diff"))
    again = Output(Vertex(op=Merge(), inputs=(one, difference), name="merge"))
    found, merged = await solve(either, difference, again)
    assert paths(either, found) == {"new"}
    assert paths(either, merged) == {"kept", "new"}


async def test_a_difference_of_strangers_is_refused(site: Any) -> None:
    one, two = files(MakeFile(path="/a", data=b"x")), files(MakeFile(path="/b", data=b"y"))
    with pytest.raises(InvalidParameter, match="made on the lower one"):
        await solve(site, Output(Vertex(op=Diff(), inputs=(one, two), name="diff")))


async def test_the_later_tree_of_a_merge_wins(either: Any) -> None:
    one = files(MakeDirectory(path="/d"), MakeFile(path="/d/f", data=b"one"), MakeFile(path="/d/g", data=b"g"))
    two = files(MakeDirectory(path="/d"), MakeFile(path="/d/f", data=b"two"))
    (merged,) = await solve(either, Output(Vertex(op=Merge(), inputs=(one, two), name="merge")))
    assert paths(either, merged) == {"d", "d/f", "d/g"}
    with detached(either.world.snapshots.view(merged.chain)) as root:
        assert Path(f"/proc/self/fd/{root}/d/f").read_text() == "two"


async def test_a_program_may_write_to_several_trees(either: Any) -> None:
    data = files(MakeFile(path="/old", data=b"x"))
    step = run(
        "echo root > /r; echo more > /m/new",
        busybox(),
        data,
        mounts=(ExecMount(target="/m", input=1, output=1),),
    )
    root, other = await solve(either, Output(step, 0), Output(step, 1))
    assert "r" in paths(either, root)
    assert "m" not in paths(either, root)
    assert paths(either, other) == {"old", "new"}


async def test_what_stands_between_actions_may_be_used_too(site: Any) -> None:
    steps = (
        FileStep(action=MakeFile(path="/a", data=b"x"), output=0),
        FileStep(action=MakeFile(path="/b", data=b"y"), input=0, output=1),
        FileStep(action=Copy(source="/a", target="/c"), input=1, secondary=0, output=2),
    )
    vertex = Vertex(op=Files(steps=steps), name="files")
    trees = await solve(site, *(Output(vertex, number) for number in range(3)))
    assert [paths(site, tree) for tree in trees] == [{"a"}, {"a", "b"}, {"a", "b", "c"}]


async def test_an_output_there_is_not_is_told(site: Any) -> None:
    with pytest.raises(InvalidParameter, match="no output 7"):
        await solve(site, Output(run("true", busybox()), 7))
