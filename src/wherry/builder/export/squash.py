"""Squash: all that a build changed, as one layer on the image it began from."""

from collections.abc import Callable
from dataclasses import replace

import msgspec

from wherry.builder.export.work import Variant, Work
from wherry.builder.trees import Tree, TreeLayer
from wherry.images.making.make import add_layer
from wherry.images.record import Layer
from wherry.spec.image import EMPTY_LAYER, Descriptor, History
from wherry.storage.diff import write_difference


async def squash(work: Work) -> Work:
    """The same results, each with one layer over its base; what had one layer there stays as it is."""
    return work.with_variants([await _squash(work, variant) for variant in work.variants])


async def _squash(work: Work, variant: Variant) -> Variant:
    tree = await work.bring(variant.tree)
    kept = _in_common(tree, variant.base)
    above = len(tree.layers) - kept
    if above < 2:
        return variant
    base = Tree(tree.layers[:kept])
    snapshots = work.deps.snapshots

    def write(out: Callable[[bytes], object]) -> None:
        write_difference(snapshots.view(tree.chain), snapshots.view(base.chain), out)

    made = await add_layer(work.deps.images, work.lease, write, parent=base.chain)
    layers = base.layers if made.diff_id == EMPTY_LAYER else (*base.layers, _tree_layer(made))
    return replace(variant, tree=Tree(layers), history=_history(variant, kept, above, empty=len(layers) == kept))


def _in_common(tree: Tree, base: Tree) -> int:
    """How many layers of the result are those of its base."""
    chains = [layer.chain for layer in base.layers]
    same = [layer.chain for layer in tree.layers[: len(chains)]] == chains
    return len(chains) if same else 0


def _tree_layer(layer: Layer) -> TreeLayer:
    return TreeLayer(
        chain=layer.chain,
        diff_id=layer.diff_id,
        size=layer.unpacked,
        blob=Descriptor(media_type=layer.media_type, digest=layer.digest, size=layer.size),
    )


def _history(variant: Variant, kept: int, above: int, *, empty: bool) -> list[History]:
    """As in Docker: the steps stay told of, without a layer; a last entry has it."""
    found: list[History] = []
    for entry in variant.history:
        kept -= not entry.empty_layer
        found.append(entry if kept >= 0 else msgspec.structs.replace(entry, empty_layer=True))
    return [*found, History(comment=f"merge of {above} layers", empty_layer=empty)]
