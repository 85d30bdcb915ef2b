"""Store check: is everything there that the records name, unharmed, and nothing else? With `repair` it is mended.

Blobs are hashed. Each layer's directory is compared with its blob, entry by entry and, unless `quick`, byte by byte, in
a confined process; where that leaves a doubt, or a directory holds the layers below as well, the layer is extracted
anew, beside, and the directories are compared. A damaged layer is mended from its blob, a damaged blob from the layer
when that gives the very bytes (it was made here), else from the registry the image came from (`fetch`). Everything goes
on meanwhile: what is looked at is leased, and layers that containers run on are mended one file at a time.

Afterwards leftovers: blobs and layers that nothing needs, files of writers that are gone.
"""

import enum
import os
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field

from wherry.aio import settle
from wherry.digest import ChainID, Digest
from wherry.errors import Corrupt, WherryError
from wherry.images.deps import Deps
from wherry.images.garbage import EXTRACTION, collect_all, held, look
from wherry.images.layers import extract, verify
from wherry.images.making.convert import compression_of
from wherry.images.progress import Bar, Progress
from wherry.images.record import Image, ImageID, Layer, Unusable
from wherry.spec.image import Descriptor
from wherry.storage.compare import Difference, differences, flush, mend
from wherry.storage.compression import compressor
from wherry.storage.diff import write_layer
from wherry.storage.extract import Whiteouts
from wherry.storage.tree import remove_tree

SHOWN = 5  # differences of one layer that are told
REPAIR = "run `wherry system check --repair`"
PULL = "run `wherry system check --repair --pull`"
ORPHAN = f"{REPAIR}, which removes it"

Fetch = Callable[[str, str], Awaitable[None]]  # pull a reference for a platform ("" for this machine's)


class Kind(enum.StrEnum):
    MISSING_BLOB = "missing-blob"
    TRUNCATED_BLOB = "truncated-blob"
    ALTERED_BLOB = "altered-blob"
    MISSING_LAYER = "missing-layer"
    ALTERED_LAYER = "altered-layer"
    UNUSABLE_IMAGE = "unusable-image"
    LOST_TAG = "lost-tag"
    ORPHAN_BLOB = "orphan-blob"
    ORPHAN_LAYER = "orphan-layer"
    ORPHAN_SNAPSHOT = "orphan-snapshot"
    ORPHAN_FILE = "orphan-file"
    UNCHECKED = "unchecked"


_BLOBS = {"missing": Kind.MISSING_BLOB, "truncated": Kind.TRUNCATED_BLOB, "altered": Kind.ALTERED_BLOB}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    kind: Kind
    object: str  # digest, chainID, name or path
    detail: str  # what is wrong, and whom it concerns
    remedy: str = ""  # what the user may do; "" when it was repaired
    repaired: bool = False


@dataclass(slots=True)
class Report:
    blobs: int = 0
    bytes: int = 0  # of the blobs
    layers: int = 0
    images: int = 0
    problems: list[Problem] = field(default_factory=list)

    def document(self) -> dict[str, object]:
        """As the API tells it."""
        return {
            "checked": {"blobs": self.blobs, "bytes": self.bytes, "layers": self.layers, "images": self.images},
            "problems": [
                {
                    "kind": problem.kind.value,
                    "object": problem.object,
                    "detail": problem.detail,
                    "remedy": problem.remedy,
                    "repaired": problem.repaired,
                }
                for problem in self.problems
            ],
        }


async def check(
    deps: Deps,
    *,
    quick: bool = False,
    repair: bool = False,
    fetch: Fetch | None = None,
    snapshots: Callable[[], Collection[str]] | None = None,
    progress: Progress,
) -> Report:
    """Look at everything, once at a time. Finding damage is no error; Failed when the disk cannot even be read.

    `quick`: sizes instead of contents. `snapshots` tells the writable snapshots that belong to somebody (None: nobody
    knows); it is asked after they were listed, so who makes one must say so first.
    """
    async with deps.locks(("images", "check")):
        work = _Check(deps, quick=quick, repair=repair, fetch=fetch, progress=progress)
        await work.records()
        for image in deps.store.all():
            await work.image(image)
        await work.documents()
        await work.leftovers(snapshots)
        return work.report


class _Check:
    def __init__(self, deps: Deps, *, quick: bool, repair: bool, fetch: Fetch | None, progress: Progress) -> None:
        self._deps = deps
        self._quick, self._repair, self._fetch = quick, repair, fetch
        self._blobs: dict[Digest, bool] = {}  # seen -> it is whole
        self._layers: set[ChainID] = set()
        self._damaged: set[ChainID | None] = set()  # layers, and those on them
        self._bar, self._layer_bar = Bar(progress, "blobs"), Bar(progress, "layers")
        self._compared = 0  # bytes of blobs whose layers were looked at
        self._total = sum({layer.digest: layer.size for image in deps.store.all() for layer in image.layers}.values())
        self.report = Report()

    def _tell(self, kind: Kind, what: str, detail: str, *, remedy: str = REPAIR, repaired: bool = False) -> None:
        self.report.problems.append(
            Problem(kind=kind, object=what, detail=detail, remedy="" if repaired else remedy, repaired=repaired)
        )

    # --- records ------------------------------------------------------------------------------------------------------

    async def records(self) -> None:
        """Images that cannot be used, names that stand for nothing."""
        store = self._deps.store
        for bad in list(store.unusable.values()):
            if self._repair and await self._revive(bad):
                self._tell(Kind.UNUSABLE_IMAGE, bad.name, f"{bad.why}; it was fetched anew", repaired=True)
            elif not self._repair:
                self._tell(Kind.UNUSABLE_IMAGE, bad.name, bad.why)
            elif digests := [name for name in bad.names if "@" in name]:
                self._tell(Kind.UNUSABLE_IMAGE, bad.name, bad.why, remedy=f"pull it again: `wherry pull {digests[0]}`")
            else:
                await store.forget(bad.id)
                detail = f"{bad.why}; no registry is known to have it, and it was removed"
                self._tell(Kind.UNUSABLE_IMAGE, bad.name, detail, repaired=True)
        for name, why in list(store.lost.items()):
            if self._repair:
                await store.forget_name(name)
            self._tell(Kind.LOST_TAG, name, why, repaired=self._repair)

    async def _revive(self, bad: Unusable) -> bool:
        config = Digest(bad.id)
        if await self._deps.store.revive(bad.id):
            return True
        if await settle(self._deps.content.examine, config):
            await settle(self._deps.content.delete, config)
        await self._fetch_any(bad.names, "")
        return bad.id not in self._deps.store.unusable or await self._deps.store.revive(bad.id)

    async def _fetch_any(self, names: Collection[str], platform: str) -> str:
        """Pull by the digests among `names` until one works; "" then, else why not."""
        why = ""
        for name in names if self._fetch is not None else ():
            if "@" in name:
                assert self._fetch is not None
                try:
                    await self._fetch(name, platform)
                    return ""
                except WherryError as exc:
                    why = f"; it could not be fetched: {exc.message}"
        return why

    # --- images -------------------------------------------------------------------------------------------------------

    async def image(self, image: Image) -> None:
        """Its blobs, then its layers, base first; nothing when it was removed meanwhile."""
        deps = self._deps
        async with held(deps, "check") as lease:
            await lease.protect(digests=image.blobs, chains=[layer.chain for layer in image.layers])
            current = deps.store.find(image.id)
            if current is None:
                return
            image = current
            sizes = {manifest.digest: manifest.size for manifest in image.manifests}
            sizes |= {layer.digest: layer.size for layer in image.layers}
            for digest in sorted(image.blobs):
                await self._blob(digest, sizes.get(digest), image.id)
            for below, layer in zip((None, *image.layers), image.layers, strict=False):
                await self._layer(image, layer, below.chain if below else None)
            self.report.images += 1

    async def documents(self) -> None:
        """What is no image's: indexes and what came with them, and what a registry keeps here."""
        deps = self._deps
        targets, kept = deps.store.targets(), {digest for root in deps.roots for digest in root()[0]}
        async with held(deps, "check") as lease:
            await lease.protect(digests=kept.union(*({each.descriptor.digest, *each.blobs} for each in targets)))
            for target in targets:
                await self._blob(target.descriptor.digest, target.descriptor.size, target.default, target.name)
                for digest in sorted(target.blobs):
                    await self._blob(digest, None, target.default, target.name)
            for digest in sorted(kept):
                await self._blob(digest, None, None, "the registry")

    # --- blobs --------------------------------------------------------------------------------------------------------

    async def _blob(self, digest: Digest, size: int | None, image_id: ImageID | None, whose: str = "") -> None:
        """One blob, which is leased. Nothing when it was seen already."""
        if digest in self._blobs:
            return
        content = self._deps.content
        what = await settle(content.examine, digest, size=size, quick=self._quick)
        if what and not self._needed(digest):
            return  # removed meanwhile
        self._blobs[digest] = not what
        self.report.blobs += 1
        if not what:
            self.report.bytes += await settle(content.size, digest)
            self._bar.show("Checking blobs", self.report.bytes, self._total)
            return
        image = self._deps.store.find(image_id) if image_id else None
        detail = f"blob {digest} of {whose or (image.name if image else image_id)} is {what} on disk"
        if not self._repair:
            self._tell(_BLOBS[what], digest, detail, remedy=PULL if image and image.repo_digests else REPAIR)
            return
        how, why = await self._mend_blob(digest, image)
        self._blobs[digest] = bool(how)
        self._tell(_BLOBS[what], digest, detail + (how or why), remedy=_again(image), repaired=bool(how))

    def _needed(self, digest: Digest) -> bool:
        return digest in self._deps.store.live()[0] or any(digest in root()[0] for root in self._deps.roots)

    async def _mend_blob(self, digest: Digest, image: Image | None) -> tuple[str, str]:
        """(how it was mended, why it could not be): one of them is empty. What is damaged goes in any case."""
        content = self._deps.content
        for layer in image.layers if image else ():
            if layer.digest == digest and await settle(self._rebuild, layer):
                return "; it was made anew from the layer's files", ""
        await settle(content.delete, digest)
        if image is None:
            return "", "; what was left of it is removed"
        why = await self._fetch_any(image.repo_digests, str(image.config.platform))
        if not await settle(content.examine, digest):
            return "; it was fetched anew", ""
        return "", f"; what was left of it is removed{why}"

    def _rebuild(self, layer: Layer) -> bool:
        """Pack a layer that was made here as it was packed then (blocking)."""
        kind = compression_of(Descriptor(media_type=layer.media_type, digest=layer.digest, size=layer.size))
        if kind is None or not self._deps.snapshots.has(layer.chain):
            return False
        packer = compressor(kind)
        try:
            with self._deps.content.ingest_new(f"layer {layer.digest} packed anew") as ingest:
                write_layer(self._deps.snapshots, layer.chain, lambda data: ingest.write(packer.compress(data)))
                ingest.write(packer.flush())
                ingest.commit(layer.digest)
        except WherryError:  # other bytes, or no room for them
            return False
        return True

    # --- layers -------------------------------------------------------------------------------------------------------

    async def _layer(self, image: Image, layer: Layer, parent: ChainID | None) -> None:
        if layer.chain in self._layers:
            return
        self._layers.add(layer.chain)
        self.report.layers += 1
        self._layer_bar.show("Checking layers", self._compared, self._total)
        self._compared += layer.size
        whose = f"layer {layer.chain} of {image.name}"
        what = await settle(self._deps.snapshots.examine, layer.chain, parent)
        if not what and self._quick and await settle(self._has_its_size, layer, parent):
            return
        if parent in self._damaged:  # what it should be like depends on that
            self._damaged.add(layer.chain)
            if not what:
                return
        if not self._blobs.get(layer.digest):
            if what:
                self._damaged.add(layer.chain)
                self._tell(Kind.MISSING_LAYER, layer.chain, f"{whose}: {what}, and its blob, too", remedy=_again(image))
            return
        try:
            async with self._deps.locks(("chain", layer.chain)), self._deps.extractions:
                await self._compare(layer, parent, what, whose)
        except WherryError as exc:
            self._damaged.add(layer.chain)
            kind = Kind.MISSING_LAYER if what else Kind.UNCHECKED
            detail = f"{whose}: {what or 'it could not be compared with its blob'}: {exc.message}"
            self._tell(kind, layer.chain, detail, remedy="see the reason given")

    def _has_its_size(self, layer: Layer, parent: ChainID | None) -> bool:
        """Whether it occupies what it did when it came. Where a directory holds the layers below, too, nobody knows."""
        snapshots = self._deps.snapshots
        if parent is not None and snapshots.whiteouts is Whiteouts.APPLY:
            return True
        return snapshots.usage(layer.chain).bytes == layer.unpacked

    async def _compare(self, layer: Layer, parent: ChainID | None, what: str, whose: str) -> None:
        """`what`: what is known to be wrong with it."""
        deps = self._deps
        alone = parent is None or deps.snapshots.whiteouts is Whiteouts.OVERLAY
        if alone and not what and not await verify(deps, layer, contents=not self._quick):
            return
        key = f"{EXTRACTION}check-{os.urandom(16).hex()}"
        blob = Descriptor(media_type=layer.media_type, digest=layer.digest, size=layer.size)
        try:
            await settle(deps.snapshots.prepare, key, parent)
            found, _ = await extract(deps, key, blob)
            if found != layer.diff_id:
                raise Corrupt(f"its blob {layer.digest} holds {found}, the image's configuration says {layer.diff_id}")
            wrong, count = await settle(self._differences, key, layer.chain)
            if what and self._repair:
                await settle(deps.snapshots.mend, key, layer.chain)
        finally:
            await settle(deps.snapshots.remove, key)
        if (what or count) and not self._repair:
            self._damaged.add(layer.chain)
        if what:
            self._tell(Kind.MISSING_LAYER, layer.chain, f"{whose}: {what}", repaired=self._repair)
        if count:
            detail = f"{whose}: {'; '.join(map(str, wrong))}{f'; and {count - SHOWN} more' if count > SHOWN else ''}"
            self._tell(Kind.ALTERED_LAYER, layer.chain, detail, repaired=self._repair)

    def _differences(self, key: str, chain: ChainID) -> tuple[list[Difference], int]:
        """The first differences of a layer and how many there are, all mended if wanted (blocking)."""
        snapshots = self._deps.snapshots
        if not snapshots.has(chain):
            return [], 0
        right, found = snapshots.upper(key), snapshots.layer(chain)
        wrong: list[Difference] = []
        count = 0
        for difference in differences(right, found, contents=not self._quick):
            count += 1
            if count <= SHOWN:
                wrong.append(difference)
            if self._repair:
                mend(right, found, difference.path)
        if count and self._repair:
            flush(found)
        return wrong, count

    # --- leftovers ----------------------------------------------------------------------------------------------------

    async def leftovers(self, owned: Callable[[], Collection[str]] | None) -> None:
        """What belongs to nobody. Files of writers are looked for only in a moment in which nobody writes."""
        deps = self._deps
        if self._repair:
            await settle(deps.content.expire)
        files = await settle(deps.content.unfinished)
        scratch = await settle(lambda: list(deps.work.iterdir()) if deps.work.exists() else [])
        keys = await settle(lambda: list(deps.snapshots.keys()))
        idle = deps.leases.idle
        orphans = [key for key in keys if (idle if key.startswith(EXTRACTION) else owned and key not in owned())]
        if deps.store.complete:
            garbage = await (collect_all if self._repair else look)(deps)
            for digest in garbage.digests:
                self._orphan(Kind.ORPHAN_BLOB, digest, "no image needs this blob")
            for chain in garbage.chains:
                self._orphan(Kind.ORPHAN_LAYER, chain, "no image and no container needs this layer")
        for key in orphans:
            if await settle(self._drop_snapshot, key):
                self._orphan(Kind.ORPHAN_SNAPSHOT, key, "this writable snapshot belongs to no container")
        for path in files if idle else ():
            if await settle(deps.content.is_left, path):
                await settle(self._drop, path)
                self._orphan(Kind.ORPHAN_FILE, str(path), "a part of a blob that nobody is writing any more")
        for path in scratch if idle else ():
            if await settle(path.exists):
                await settle(self._drop, path)
                self._orphan(Kind.ORPHAN_FILE, str(path), "scratch space of work that is over")

    def _orphan(self, kind: Kind, what: str, detail: str) -> None:
        self._tell(kind, what, detail, remedy=ORPHAN, repaired=self._repair)

    def _drop_snapshot(self, key: str) -> bool:
        """False when it was removed meanwhile (blocking)."""
        if key not in set(self._deps.snapshots.keys()):
            return False
        if self._repair:
            self._deps.snapshots.remove(key)
        return True

    def _drop(self, path: os.PathLike[str]) -> None:
        if self._repair:
            remove_tree(os.fspath(path))


def _again(image: Image | None) -> str:
    """The remedy where only a registry, or whoever made it, can help."""
    if image is None:
        return "push it again"
    if image.repo_digests:
        return f"pull it again: `wherry system check --repair --pull` or `wherry pull {image.repo_digests[0]}`"
    return f"no registry is known to have it: load or build {image.name} again"
