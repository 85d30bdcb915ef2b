"""One layer over the base; and what a layer is when all files have the same time."""

import os
from pathlib import Path

from imagekit.trees import files
from wherry.builder.export.outputs import export
from wherry.builder.export.squash import squash
from wherry.builder.options import Export
from wherry.builder.trees import SCRATCH
from wherry.spec.image import History


async def stored(bench, work):
    outcome = await export(work, Export(type="image"), 0)
    return bench.deps.images.store.find(outcome.results[0].image_id)


def aged(root: Path, **contents: str) -> None:
    """Written with the same time as everything before it."""
    for name, text in contents.items():
        (root / name).write_text(text)
        os.utime(root / name, (1, 1))


async def test_a_squashed_image_has_the_same_files_in_one_layer_over_its_base(bench):
    base = await bench.files(a="1", b="1", c="1")
    tree = await bench.layer(base, lambda root: (root / "a").unlink())
    tree = await bench.files(tree, b="2", d="2")
    tree = await bench.layer(tree, lambda root: (root / "d").unlink())

    def deep(root: Path) -> None:
        (root / "dir").mkdir(mode=0o700)
        (root / "dir" / "f").write_text("f")

    tree = await bench.layer(tree, deep)
    history = [
        History(created="2020-01-01T00:00:00Z", created_by="base"),
        History(created_by="ENV x", empty_layer=True),
        *(History(created_by=f"RUN {n}") for n in range(4)),
    ]
    plain = bench.work(bench.variant(tree, base=base, history=history))
    image = await stored(bench, await squash(plain))
    assert files(bench.world, image) == files(bench.world, await stored(bench, plain))
    assert len(image.layers) == 2
    assert image.layers[0].chain == base.chain
    assert [entry.empty_layer for entry in image.config.history] == [False, True, True, True, True, True, False]
    assert image.config.history[-1].comment == "merge of 4 layers"


async def test_squashing_sees_a_change_that_only_the_content_shows(bench):
    base = await bench.layer(SCRATCH, lambda root: aged(root, a="1", b="1"))
    tree = await bench.layer(base, lambda root: aged(root, a="2"))
    tree = await bench.layer(tree, lambda root: aged(root, c="2"))
    image = await stored(bench, await squash(bench.work(bench.variant(tree, base=base))))
    assert files(bench.world, image) == {"a": b"2", "b": b"1", "c": b"2"}


async def test_a_step_that_changes_only_the_content_has_a_layer_with_it(bench):
    base = await bench.layer(SCRATCH, lambda root: aged(root, a="1", b="1"))
    tree = await bench.layer(base, lambda root: aged(root, a="2"))
    image = await stored(bench, bench.work(bench.variant(tree)))
    assert files(bench.world, image) == {"a": b"2", "b": b"1"}
    assert tree.layers[1].diff_id != base.layers[0].diff_id
    names = os.listdir(bench.world.snapshots.layer(tree.chain))
    assert "a" in names


async def test_the_same_squash_on_another_machine_is_the_same_image(bench, other):
    ids = set()
    for each in (bench, other):
        base = await each.files(a="1", b="1")
        tree = await each.files(await each.files(base, b="2"), c="3")
        image = await stored(each, await squash(each.work(each.variant(tree, base=base))))
        ids.add(image.id)
    assert len(ids) == 1


async def test_what_is_undone_leaves_no_layer(bench):
    base = await bench.files(a="1")
    tree = await bench.files(base, b="2")
    tree = await bench.layer(tree, lambda root: (root / "b").unlink())
    image = await stored(bench, await squash(bench.work(bench.variant(tree, base=base))))
    assert len(image.layers) == 1
    assert image.config.history[-1].empty_layer


async def test_one_layer_is_squashed_already(bench):
    base = await bench.files(a="1")
    work = bench.work(bench.variant(await bench.files(base, b="2"), base=base))
    assert list((await squash(work)).variants) == list(work.variants)
