"""The engine's images as a registry's store: what is pushed is an image at once, what is an image can be pulled.

Repository `x/y` of the registry called `localhost:5000` holds what the engine calls `localhost:5000/x/y`; reading falls
back to what an image is called elsewhere (`docker.io/library/alpine`, `alpine`). There is no second copy: blobs are
those of the content store, and what an image needs is kept alive by the image alone.

What is no image (artifacts, signatures, attestations pushed by themselves) and blobs not yet named by a manifest are
kept in a `FolderStore` over the same content store, whose catalog is a root of the engine's garbage collection.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from wherry.aio import settle
from wherry.daemon.promises import Promises
from wherry.digest import Digest
from wherry.errors import Conflict, Corrupt, InvalidParameter, NotFound, NotSupported, WherryError
from wherry.images.deps import Deps
from wherry.images.garbage import leased
from wherry.images.leases import Lease
from wherry.images.making.adopt import adopt, is_image
from wherry.images.record import Image, Target
from wherry.images.upkeep.remove import InUse, remove
from wherry.reference import Reference, parse
from wherry.registry import catalog
from wherry.registry.catalog import page
from wherry.registry.errors import Code, Problem, blob_unknown, incomplete, manifest_unknown, name_unknown
from wherry.registry.folder import FolderStore, FolderUpload
from wherry.registry.manifests import read
from wherry.registry.store import MAX_MANIFEST, Named, Tag
from wherry.spec.image import Descriptor, Index, Manifest, Raw, decode_manifest, media_type_of

log = logging.getLogger(__name__)


def keep_rest(deps: Deps, uploads: Path) -> FolderStore:
    """The store for what is no image, over the engine's own: a root of its garbage collection from now on (blocking).

    Also without a registry: what was pushed to one before stays.
    """
    rest = FolderStore(deps.content, deps.state, uploads)
    deps.roots.append(lambda: (rest.catalog.live(), set()))
    return rest


class EngineUpload:
    """An upload into the engine's content store, whose blob the engine's garbage collection does not take meanwhile."""

    def __init__(self, deps: Deps, inner: FolderUpload) -> None:
        self._deps = deps
        self._inner = inner
        self.id = inner.id

    @property
    def offset(self) -> int:
        return self._inner.offset

    async def write(self, data: bytes) -> None:
        await self._inner.write(data)

    async def commit(self, digest: Digest) -> int:
        with self._deps.leases.pin() as lease:
            await lease.protect(digests=[digest])
            return await self._inner.commit(digest)

    async def abort(self) -> None:
        await self._inner.abort()

    async def release(self) -> None:
        await self._inner.release()


class EngineStore:
    def __init__(self, deps: Deps, rest: FolderStore, *, domain: str, in_use: InUse) -> None:
        """`rest` keeps what is no image. `domain`: what references call the registry. `in_use`: who uses an image."""
        self._deps = deps
        self._domain = domain
        self._in_use = in_use
        self._rest = rest
        self._promises = Promises()
        deps.roots.append(lambda: (self._promises.digests(), set()))

    # --- names --------------------------------------------------------------------------------------------------------

    def _own(self, repository: str) -> Reference:
        return Reference(domain=self._domain, path=repository)

    def _places(self, repository: str) -> list[Reference]:
        """What the engine may call it: by this registry's name, or as an image from elsewhere."""
        try:
            return [self._own(repository), parse(repository)]
        except WherryError:
            return [self._own(repository)]

    def _targets(self, repository: str, *, own: bool = False) -> Iterator[tuple[Reference, Target]]:
        names = {place.familiar_name for place in (self._places(repository)[: 1 if own else None])}
        for target in self._deps.store.targets():
            head = target.name.partition("@")[0]
            if head in names or ("@" not in target.name and target.name.rpartition(":")[0] in names):
                yield parse(target.name), target

    # --- listing ------------------------------------------------------------------------------------------------------

    async def repositories(self, *, after: str, limit: int) -> list[str]:
        own = {reference.path for reference, _ in self._all_own()}
        return page(sorted(own | {name for name, _ in self._rest.catalog}), after, limit)

    async def tags(self, repository: str, *, after: str, limit: int) -> list[str]:
        return page([tag.name for tag in await self.tag_list(repository)], after, limit)

    async def tag_list(self, repository: str) -> list[Tag]:
        found: dict[str, Tag] = {}
        known = False
        if (rest := self._rest.catalog.find(repository)) is not None:
            known = True
            found.update(rest.tags)
        for reference, target in self._targets(repository):
            known = True
            if reference.tag:
                pushed = self._image(target).last_tagged
                found[reference.tag] = Tag(name=reference.tag, digest=target.descriptor.digest, pushed=pushed)
        if not known:
            raise name_unknown(repository)
        return [found[name] for name in sorted(found)]

    def _image(self, target: Target) -> Image:
        image = self._deps.store.find(target.default)
        assert image is not None  # targets name images that are there
        return image

    async def usage(self, repository: str) -> int:
        blobs: set[Digest] = set()
        for _, target in self._targets(repository, own=True) if repository else self._all_own():
            blobs |= target.blobs
            for image in filter(None, map(self._deps.store.find, target.images)):
                blobs |= image.blobs

        def measure() -> int:
            return sum(self._deps.content.size(digest) for digest in blobs if self._deps.content.has(digest))

        return await settle(measure) + await self._rest.usage(repository)

    def _all_own(self) -> Iterator[tuple[Reference, Target]]:
        for target in self._deps.store.targets():
            if (reference := parse(target.name)).domain == self._domain:
                yield reference, target

    async def described(self, repository: str, digest: Digest) -> Named:
        return read(await self.manifest(repository, digest))[0]

    # --- blobs --------------------------------------------------------------------------------------------------------

    def _holds(self, repository: str, digest: Digest) -> bool:
        for _, target in self._targets(repository):
            if digest in target.blobs:
                return True
            for image_id in target.images:
                image = self._deps.store.find(image_id)
                if image is not None and digest in image.blobs:
                    return True
        return False

    async def blob_size(self, repository: str, digest: Digest) -> int:
        if not self._holds(repository, digest) and not self._promises.holds(repository, digest):
            return await self._rest.blob_size(repository, digest)
        try:
            return await settle(self._deps.content.size, digest)
        except NotFound as exc:
            raise blob_unknown(repository, digest) from exc

    async def promise_blob(self, repository: str, digest: Digest) -> int:
        if not self._holds(repository, digest):
            return await self._rest.promise_blob(repository, digest)
        return await self._promise(repository, digest)

    async def _promise(self, repository: str, digest: Digest) -> int:
        """What an image holds stays for who pushes when that image goes; its bytes."""
        self._promises.make(repository, digest)
        async with self._deps.leases.guard:  # a removal that did not know of the promise is over
            pass
        try:
            return await self.blob_size(repository, digest)
        except Problem:
            self._promises.drop(repository, digest)
            raise

    async def open_blob(self, repository: str, digest: Digest) -> BinaryIO:
        if not self._holds(repository, digest):
            return await self._rest.open_blob(repository, digest)
        try:
            return await settle(self._deps.content.open, digest)
        except NotFound as exc:
            raise blob_unknown(repository, digest) from exc

    async def holders(self, digest: Digest) -> list[str]:
        return await self._rest.holders(digest)

    async def mount_blob(self, repository: str, digest: Digest, source: str) -> bool:
        if self._holds(repository, digest):
            try:
                await self._promise(repository, digest)
            except Problem:  # it went at this moment
                return False
            return True
        if not self._holds(source, digest):
            return await self._rest.mount_blob(repository, digest, source)
        with self._deps.leases.pin() as lease:
            await lease.protect(digests=[digest])
            try:
                size = await settle(self._deps.content.size, digest)
            except NotFound:
                return False
            await self._rest.link(repository, digest, size)
        return True

    async def delete_blob(self, repository: str, digest: Digest) -> None:
        if self._holds(repository, digest):
            raise Problem(Code.UNSUPPORTED, f"blob {digest} is needed by an image of {repository}: delete that first")
        await self._rest.delete_blob(repository, digest)

    async def start_upload(self, repository: str) -> EngineUpload:
        return EngineUpload(self._deps, await self._rest.start_upload(repository))

    async def upload(self, repository: str, id: str) -> EngineUpload:
        return EngineUpload(self._deps, await self._rest.upload(repository, id))

    # --- reading manifests --------------------------------------------------------------------------------------------

    async def resolve(self, repository: str, tag: str) -> Digest:
        for place in self._places(repository):
            if (target := self._deps.store.target(place.with_tag(tag))) is not None:
                return target.descriptor.digest
        self._check_known(repository, tag)
        return await self._rest.resolve(repository, tag)

    def _check_known(self, repository: str, name: str) -> None:
        """A repository of images only is one, although the other store knows nothing of it: it lacks a manifest."""
        if self._rest.catalog.find(repository) is None and any(self._targets(repository)):
            raise manifest_unknown(repository, name)

    async def manifest(self, repository: str, digest: Digest) -> Raw:
        if not self._is_document(repository, digest):
            self._check_known(repository, digest)
            return await self._rest.manifest(repository, digest)
        try:
            data = await settle(lambda: self._deps.content.read(digest, limit=MAX_MANIFEST))
            return Raw(data, media_type_of(decode_manifest(data)), digest)
        except WherryError as exc:
            raise manifest_unknown(repository, digest) from exc

    def _is_document(self, repository: str, digest: Digest) -> bool:
        for _, target in self._targets(repository):
            if target.descriptor.digest == digest or digest in target.blobs:
                return True
            images = [self._deps.store.find(image_id) for image_id in target.images]
            if any(each.digest == digest for image in images if image for each in image.manifests):
                return True
        return False

    async def referrers(self, repository: str, digest: Digest) -> list[Descriptor]:
        return await self._rest.referrers(repository, digest)

    # --- writing manifests --------------------------------------------------------------------------------------------

    async def put_manifest(self, repository: str, raw: Raw, *, tag: str | None) -> Descriptor | None:
        named, document = read(raw)
        raw = Raw(raw.data, named.media_type, raw.digest)
        async with leased(self._deps, f"push to {repository}") as lease:
            await lease.protect(digests=[raw.digest, *named.blobs, *named.children])
            lacking = [digest for digest in named.blobs if not await self._has_blob(repository, digest)]
            lacking += [digest for digest in named.children if not await self._has_manifest(repository, digest)]
            if lacking:
                raise incomplete(repository, lacking)
            if tag is None:
                self._promises.make(repository, raw.digest)  # until an index names it `image prune` leaves it alone
            own = self._own(repository)
            references = [own.with_digest(raw.digest), *([own.with_tag(tag)] if tag else [])]
            if document.subject is not None:
                taken = False  # one of its subject's referrers, which the other store knows
            elif isinstance(document, Index):
                taken = await self._put_index(repository, raw, document, references)
            else:
                taken = await self._put_image(raw, document, references, lease)
            if taken:
                await self._hand_over(repository, tag)
            else:
                await self._keep_apart(repository, raw, named, tag)
            self._promises.drop(repository, *named.blobs, *named.children)
        return document.subject

    async def _has_blob(self, repository: str, digest: Digest) -> bool:
        try:
            await self.blob_size(repository, digest)
        except Problem:
            return False
        return True

    async def _has_manifest(self, repository: str, digest: Digest) -> bool:
        try:
            await self.manifest(repository, digest)
        except Problem:
            return False
        return True

    async def _put_image(self, raw: Raw, document: Manifest, references: list[Reference], lease: Lease) -> bool:
        """Make it an image; False when it is none that can be held here."""
        if not is_image(document):
            return False
        try:
            await adopt(self._deps, lease, raw, document, references=references)
        except NotSupported as exc:
            log.debug("manifest %s is kept as it is: %s", raw.digest, exc.message)
            return False
        except (Corrupt, InvalidParameter) as exc:
            raise Problem(Code.MANIFEST_INVALID, f"this is no usable image: {exc.message}") from exc
        return True

    async def _put_index(self, repository: str, raw: Raw, index: Index, references: list[Reference]) -> bool:
        """Let the names stand for the index's images; False when none of its manifests is an image here."""
        images: list[Image] = []
        others: set[Digest] = {raw.digest}
        for child in dict.fromkeys(entry.digest for entry in index.manifests):
            child_raw = await self.manifest(repository, child)
            document = decode_manifest(child_raw.data, child_raw.media_type)
            image = self._deps.store.find(document.config.digest) if isinstance(document, Manifest) else None
            if image is not None and child in image.blobs:
                images.append(image)
                continue
            others.add(child)
            if isinstance(document, Manifest):
                others.update((document.config.digest, *(layer.digest for layer in document.layers)))
        if not images:
            return False
        await settle(self._deps.content.write, raw.data)
        await self._deps.store.put_all(images, references=references, target=raw.descriptor, blobs=others)
        return True

    async def _keep_apart(self, repository: str, raw: Raw, named: Named, tag: str | None) -> None:
        """No image: into the other store, with a hold of its own on what it needs."""
        for digest in named.blobs:
            await self._rest.link(repository, digest, await self.blob_size(repository, digest))
        await self._rest.put_manifest(repository, raw, tag=tag, complete=True)
        if tag:
            await self._untag(self._own(repository).with_tag(tag).familiar)

    async def _hand_over(self, repository: str, tag: str | None) -> None:
        """What an image holds now needs no other hold; a tag has one meaning."""
        if (rest := self._rest.catalog.find(repository)) is None:
            return
        held: set[Digest] = set()
        for _, target in self._targets(repository, own=True):
            held |= target.blobs
            for image in filter(None, map(self._deps.store.find, target.images)):
                held |= image.blobs
        kept = {digest for named in rest.manifests.values() if named.digest not in held for digest in named.blobs}
        await self._rest.write(
            *(catalog.drop_blob(repository, digest) for digest in rest.blobs if digest in held - kept),
            *(catalog.drop_manifest(repository, digest) for digest in rest.manifests if digest in held),
            *((catalog.drop_tag(repository, tag),) if tag and tag in rest.tags else ()),
        )

    # --- deleting -----------------------------------------------------------------------------------------------------

    async def delete_manifest(self, repository: str, digest: Digest) -> None:
        names = [target.name for _, target in self._targets(repository, own=True) if target.descriptor.digest == digest]
        rest = self._rest.catalog.find(repository)
        if rest is not None and digest in rest.manifests:
            await self._rest.delete_manifest(repository, digest)
        elif not names:
            if self._is_document(repository, digest):
                raise Problem(Code.UNSUPPORTED, f"manifest {digest} belongs to an index or to an image from elsewhere")
            raise manifest_unknown(repository, digest)
        self._promises.drop(repository, digest)
        await self._forget(names)

    async def _forget(self, names: list[str]) -> None:
        """Names of one document. The digest goes last: with a tag `rmi` would take the repository's other digests."""
        digests = [name for name in names if "@" in name]
        for name in names:
            if digests and name not in digests:
                await self._untag(name)
        for name in digests or names:
            await self._remove(name)

    async def _untag(self, name: str) -> None:
        if (target := self._deps.store.target(parse(name))) is not None:
            await self._deps.store.remove(target.default, names=[name], record=False)

    async def _remove(self, name: str) -> None:
        """Forget the name, and the image with its last one, unless a container uses it."""
        try:
            await remove(self._deps, name, force=True, in_use=self._in_use)
        except NotFound:  # with another of its names
            return
        except Conflict as exc:
            log.info("image %s is kept: %s", name, exc.message)
            await self._untag(name)

    async def delete_tag(self, repository: str, tag: str) -> None:
        target = self._deps.store.target(self._own(repository).with_tag(tag))
        if target is None:
            self._check_known(repository, tag)
            await self._rest.delete_tag(repository, tag)
            return
        await self._deps.store.remove(target.default, names=[target.name], record=False)
