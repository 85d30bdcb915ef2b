"""Steps that change files: what is there is kept, and one layer comes on top of it."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from wherry.aio import settle
from wherry.builder.deps import Deps
from wherry.builder.files.apply import apply
from wherry.builder.files.select import select
from wherry.builder.graph import NO_INPUT, NO_OUTPUT, Action, Copy, Files, FileStep
from wherry.builder.solve.seal import seal
from wherry.builder.trees import SCRATCH, Directory, Result, Tree, TreeLayer
from wherry.errors import InvalidParameter
from wherry.images.layers import unpack
from wherry.images.leases import Lease
from wherry.images.making.make import add_layer
from wherry.images.record import Layer
from wherry.kernel.mount import Mount, detached, open_detached
from wherry.spec.image import Descriptor
from wherry.storage.diff import write_layer


def view(deps: Deps, result: Result) -> list[Mount]:
    """A result's files, read-only; they must be on disk."""
    if isinstance(result, Directory):
        return [Mount(type="bind", source=os.fspath(result.path), options=("bind", "ro"))]
    return list(deps.snapshots.view(result.chain))


@dataclass(frozen=True, slots=True)
class Changes:
    """Those of one vertex."""

    deps: Deps
    lease: Lease
    epoch: int  # ns
    created_by: str

    async def files(self, op: Files, inputs: Sequence[Result]) -> dict[int, Tree]:
        """The outputs. Steps on one tree go into one layer, as long as nobody asks for what is between them."""
        made: dict[int, Result] = dict(enumerate(inputs))
        outputs: dict[int, Tree] = {}
        for chain in _chains(op, len(inputs)):
            parent = SCRATCH if chain[0][1].input == NO_INPUT else made[chain[0][1].input]
            if isinstance(parent, Directory):
                raise InvalidParameter("files of a local directory cannot be changed: copy them first")
            steps = [step for _, step in chain]
            change = functools.partial(self._apply, parent=parent, steps=steps, made=made, linked=op.linked)
            tree = await self._layer(parent, change)
            number, last = chain[-1]
            made[len(inputs) + number] = tree
            if last.output != NO_OUTPUT:
                outputs[last.output] = tree
        return outputs

    async def merge(self, inputs: Sequence[Result]) -> Tree:
        """All trees, the layers of the later ones over those of the earlier."""
        trees = [each for each in inputs if isinstance(each, Tree) and each.layers]
        merged = trees[0] if trees else SCRATCH
        for tree in trees[1:]:
            merged = await self._transplanted(tree.layers, merged)
        return merged

    async def difference(self, inputs: Sequence[Result]) -> Tree:
        """The layers that the second tree has on top of the first."""
        lower, upper = inputs
        if not isinstance(lower, Tree) or not isinstance(upper, Tree):
            raise InvalidParameter("a difference is one of two file trees")
        if [layer.chain for layer in upper.layers[: len(lower.layers)]] != [layer.chain for layer in lower.layers]:
            raise InvalidParameter("a difference needs an upper tree that was made on the lower one")
        return await self._transplanted(upper.layers[len(lower.layers) :], SCRATCH)

    async def _transplanted(self, layers: Sequence[TreeLayer], parent: Tree) -> Tree:
        """`layers` on top of another tree, what they delete included."""
        for layer in layers:
            made = await self._on_top(layer, parent)
            blob = Descriptor(media_type=made.media_type, digest=made.digest, size=made.size)
            added = replace(layer, chain=made.chain, diff_id=made.diff_id, blob=blob)
            parent = Tree((*parent.layers, added))
        return parent

    async def _on_top(self, layer: TreeLayer, parent: Tree) -> Layer:
        images = self.deps.images
        if layer.blob is not None and await settle(images.content.has, layer.blob.digest):
            # of a difference only the blob still knows what is deleted below
            return await unpack(images, self.lease, layer.blob, parent=parent.chain, diff_id=layer.diff_id)
        write = functools.partial(write_layer, images.snapshots, layer.chain)
        return await add_layer(images, self.lease, write, parent=parent.chain)

    async def _layer(self, parent: Tree, change: Callable[[str], None]) -> Tree:
        """`change` (blocking) is given the snapshot it works on."""
        snapshots, key = self.deps.snapshots, f"build-{os.urandom(12).hex()}"
        try:
            await settle(snapshots.prepare, key, parent.chain)
            await settle(change, key)
            return await seal(self.deps, self.lease, key, parent, epoch=self.epoch, created_by=self.created_by)
        except BaseException:
            await settle(snapshots.remove, key)
            raise

    def _apply(
        self, key: str, *, parent: Tree, steps: Sequence[FileStep], made: Mapping[int, Result], linked: bool
    ) -> None:
        with self._target(key, linked=linked) as target, detached(view(self.deps, parent)) as names:
            for step in steps:
                if step.secondary == NO_INPUT:
                    _do(target, step.action, None, self.epoch, names)
                    continue
                with detached(view(self.deps, made[step.secondary])) as source:
                    _do(target, step.action, source, self.epoch, names)

    @contextlib.contextmanager
    def _target(self, key: str, *, linked: bool) -> Iterator[int]:
        """The tree to write to; `linked`: the layer alone, whatever is below it."""
        if linked:
            upper = self.deps.snapshots.upper(key)
            target = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        else:
            target = open_detached(self.deps.snapshots.mounts(key))
        try:
            yield target
        finally:
            os.close(target)


def _do(target: int, action: Action, source: int | None, epoch: int, names: int | None) -> None:
    selection = select(source, action) if isinstance(action, Copy) and source is not None else None
    apply(target, action, source, selection, epoch_ns=epoch, name_lookup=names)


def _chains(op: Files, inputs: int) -> list[list[tuple[int, FileStep]]]:
    """Steps that follow one another on one tree, with their numbers."""
    chains: list[list[tuple[int, FileStep]]] = []
    users: dict[int, int] = {}
    for step in op.steps:
        for number in (step.input, step.secondary):
            users[number] = users.get(number, 0) + 1
    for number, step in enumerate(op.steps):
        before = inputs + number - 1
        if chains and step.input == before and users.get(before) == 1 and chains[-1][-1][1].output == NO_OUTPUT:
            chains[-1].append((number, step))
        else:
            chains.append([(number, step)])
    return chains
