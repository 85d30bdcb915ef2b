"""Removing images: `rmi`, with Docker's rules of what is untagged, deleted or refused.

What is removed is a row (`views/rows.py`): with a name the platforms go that nothing else names, and so does what the
ID of a row stands for. The ID of a mere further platform, or `platforms`, removes just that, and the names go on.
Which containers use which image is known above this room and handed in. Layers a container stands on are kept by
`garbage`, whatever was removed here.
"""

import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from wherry.digest import ChainID, Digest
from wherry.errors import Conflict, NotFound
from wherry.ids import short
from wherry.images.deps import Deps
from wherry.images.garbage import collect
from wherry.images.record import Image, Target
from wherry.images.store import ImageStore
from wherry.images.views.rows import row_of
from wherry.reference import Reference, parse
from wherry.spec.image import Platform, normalize

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ContainerUse:
    """A container made from an image."""

    id: str
    running: bool  # or paused, or about to be restarted


InUse = Mapping[str, Sequence[ContainerUse]]  # image ID -> its containers; may change while images are removed


async def remove(
    deps: Deps,
    name: str,
    *,
    force: bool = False,
    prune: bool = True,
    platforms: Sequence[Platform] = (),
    in_use: InUse,
) -> list[dict[str, str]]:
    """Remove a reference, and the image when it was the last; or, by ID, the image. What happened, in Docker's form.

    With `platforms` only those of a name's platforms are removed. With `prune` untagged parents go too. Raises
    NotFound, and Conflict (before anything is touched) in Docker's words.
    """
    async with removing(deps, f"remove {name}", in_use=in_use, prune=prune) as work:
        if platforms:
            await _remove_platforms(work, name, platforms, force=force)
        elif deps.store.is_id(image := deps.store.get(name), name):
            await _remove_image(work, image, force=force)
        else:
            await _remove_reference(work, image, name, force=force)
    return work.records()


async def _remove_reference(work: "Removal", image: Image, name: str, *, force: bool) -> None:
    references = references_of(image)
    gone = _taken_along(parse(name).tagged(), references)
    falling = images_left_nameless(work.deps.store, gone)
    if not force:
        for each in (*([image] if _single(references) else []), *falling):
            if uses := work.in_use.get(each.id):
                raise Conflict(
                    f'conflict: unable to remove repository reference "{name}" (must force) - container '
                    f"{short(uses[0].id)} is using its referenced image {short(each.id)}"
                )
    await work.untag(image, gone, announced=1)
    for each in falling:  # one that a container or a child needs stays, without a name; as in Docker that is no error
        if work.conflict(each, force=force) is None:
            await work.delete(each)


def _taken_along(wanted: Reference, references: Sequence[Reference]) -> list[str]:
    """The names that removing `wanted` takes away; with a repository's last tag its digests go too."""
    if wanted.digest is not None:
        return [wanted.with_digest(wanted.digest).familiar]
    rest = [each for each in references if each.name == wanted.name and each.familiar != wanted.familiar]
    if any(each.digest is None for each in rest):
        return [wanted.familiar]
    return [wanted.familiar, *(each.familiar for each in rest)]


async def _remove_image(work: "Removal", image: Image, *, force: bool) -> None:
    store = work.deps.store
    row = row_of(store, image)
    gone = [target.name for target in row.targets]
    falling = [image, *(each for each in images_left_nameless(store, gone) if each.id != image.id)]
    several = bool(gone) and not _single([parse(name) for name in gone])
    for each in falling:
        if (conflict := work.conflict(each, force=force, several=several and each is image)) is not None:
            raise conflict
    await work.untag(image, [reference.familiar for reference in references_of(image) if reference.familiar in gone])
    going_on = len(gone) < len(references_of(image))  # names of which it is a further platform
    for each in falling:
        await work.delete(each, named=going_on and each is image)


async def _remove_platforms(work: "Removal", name: str, platforms: Sequence[Platform], *, force: bool) -> None:
    store = work.deps.store
    held = store.platforms(name)
    by_name = None if store.is_id(held[0], name) else store.target(parse(name))
    going = {_of_platform(held, platform, name).id for platform in platforms}
    falling = [image for image in held if image.id in going]
    for image in falling:
        others = [each for each in _targets(store, image) if by_name and each.descriptor != by_name.descriptor]
        if (conflict := work.conflict(image, force=force, several=bool(others))) is not None:
            raise conflict
    for image in falling:
        await work.untag(image, [each.name for each in _targets(store, image) if going.issuperset(each.images)])
        await work.delete(image, named=True)


def _of_platform(held: Sequence[Image], platform: Platform, name: str) -> Image:
    for image in held:
        if str(normalize(image.config.platform)) == str(platform):
            return image
    raise NotFound(
        f"image with reference {name} was found but does not provide the specified platform ({platform}); "
        f"held are: {', '.join(str(normalize(image.config.platform)) for image in held)}"
    )


def _targets(store: ImageStore, image: Image) -> list[Target]:
    found = (store.target(reference) for reference in references_of(image))
    return [target for target in found if target is not None]


def references_of(image: Image) -> list[Reference]:
    """In the order in which Docker names them: that of the complete references."""
    return sorted(map(parse, (*image.repo_tags, *image.repo_digests)), key=str)


def _single(references: Sequence[Reference]) -> bool:
    """At most one tag, and all within one repository."""
    tags = [reference for reference in references if reference.digest is None]
    return len(tags) <= 1 and len({reference.name for reference in references}) <= 1


def images_left_nameless(store: ImageStore, gone: Iterable[str]) -> list[Image]:
    """The images that have no name any more once the names `gone` are removed; what these mean comes first."""
    names = dict.fromkeys(gone)
    targets = [target for name in names if (target := store.target(parse(name))) is not None]
    ids = dict.fromkeys(image_id for target in targets for image_id in target.images)
    images = [image for image_id in ids if (image := store.find(image_id)) is not None]
    return [image for image in images if names.keys() >= {*image.repo_tags, *image.repo_digests}]


@dataclass(slots=True)
class Removal:
    """One piece of removing: what it did, in order, and what may be garbage now. Made by `removing`."""

    deps: Deps
    in_use: InUse
    prune: bool = field(kw_only=True)
    freed: int = 0  # bytes of unpacked layers
    _chains: list[ChainID] = field(default_factory=list)  # layers that went, top first
    _done: list[str | Image] = field(default_factory=list)  # names that were untagged, images that were deleted
    _blobs: set[Digest] = field(default_factory=set)

    def conflict(self, image: Image, *, force: bool, several: bool = False) -> Conflict | None:
        """Why `image` may not be deleted. `several`: it has names in several repositories."""
        if self.deps.store.children(image.id):
            return _conflict(image, "image has dependent child images", forcible=False)
        uses = self.in_use.get(image.id, ())
        if running := [use for use in uses if use.running]:
            return _conflict(image, f"image is being used by running container {short(running[0].id)}", forcible=False)
        if several and not force:
            return _conflict(image, "image is referenced in multiple repositories", forcible=True)
        if uses and not force:
            return _conflict(image, f"image is being used by stopped container {short(uses[0].id)}", forcible=True)
        return None

    async def untag(self, image: Image, names: Sequence[str], *, announced: int | None = None) -> None:
        """Remove names, for all their platforms; `image` is what they mean.

        Only the first `announced` are events: as in Docker there is none for digests that go with the last tag.
        """
        if not names:
            return
        self.loose(target for name in names if (target := self.deps.store.target(parse(name))) is not None)
        await self.deps.store.remove(image.id, names=names, record=False)
        self._done += names
        for _ in names[:announced]:
            self.deps.announce("untag", image, actor=image.id, name=image.id)

    def loose(self, targets: Iterable[Target]) -> None:
        """An index, and what was held with it, may not be needed any more."""
        for target in targets:
            self._blobs |= {target.descriptor.digest, *target.blobs}

    async def delete(self, image: Image, *, named: bool = False) -> None:
        """Forget an image and its untagged parents. One that got a name meanwhile stays, unless it may be `named`."""
        current: Image | None = image
        while current is not None:
            if not await self.deps.store.remove(current.id, names=(), record=True, unless_named=not named):
                return
            self._done.append(current)
            self.deps.announce("delete", current, actor=current.id, name=current.id)
            current, named = self._prunable_parent(current), False

    def _prunable_parent(self, image: Image) -> Image | None:
        parent = self.deps.store.find(image.parent) if self.prune and image.parent else None
        if parent is None or parent.repo_tags or parent.repo_digests:
            return None
        return parent if self.conflict(parent, force=False) is None else None

    async def sweep(self) -> None:
        """Drop what only the removed images needed."""
        deleted = self._deleted()
        if not deleted and not self._blobs:
            return
        sizes = {layer.chain: layer.unpacked for image in deleted for layer in image.layers}
        blobs = self._blobs.union(*(image.blobs for image in deleted))
        removed = await collect(self.deps, digests=blobs, chains=sizes)
        self._chains = removed.chains
        self.freed = sum(sizes[chain] for chain in removed.chains)

    def _deleted(self) -> list[Image]:
        return [each for each in self._done if isinstance(each, Image)]

    def records(self) -> list[dict[str, str]]:
        """What was done, in Docker's form; of a layer that several images had, the last one tells."""
        last = {layer.chain: image.id for image in self._deleted() for layer in image.layers}
        records: list[dict[str, str]] = []
        for each in self._done:
            if isinstance(each, Image):
                records.append({"Deleted": each.id})
                records += [{"Deleted": str(chain)} for chain in self._chains if last[chain] == each.id]
            else:
                records.append({"Untagged": each})
        return records


@asynccontextmanager
async def removing(deps: Deps, purpose: str, *, in_use: InUse, prune: bool) -> AsyncIterator[Removal]:
    """The only way to remove images: one at a time, so that a second one finds what is left. Swept at the end.

    A crash leaves nothing but garbage, which the next start sweeps, or an image without a name.
    """
    async with deps.locks(("images", "removal")), deps.leases.hold(purpose):
        work = Removal(deps, in_use, prune=prune)
        try:
            yield work
        except BaseException:
            try:
                await work.sweep()
            except Exception:  # never over the first error; the next start sweeps
                log.exception("cannot remove what is left of: %s", purpose)
            raise
        await work.sweep()


def _conflict(image: Image, why: str, *, forcible: bool) -> Conflict:
    remedy = "must be forced" if forcible else "cannot be forced"
    return Conflict(f"conflict: unable to delete {short(image.id)} ({remedy}) - {why}")
