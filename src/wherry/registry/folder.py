"""A registry's store on a folder.

    <root>/blobs/sha256/<hex>   blobs and manifests, as the content store keeps them; each once, whoever names it
    <root>/uploads/<id>         being received; survives a restart, and expires UPLOAD_LIFE after its last byte
    <root>/state.db             the catalog's rows

Order of effects: a blob is durable before its row, a manifest's blobs before the manifest, the manifest before its tag;
a deletion removes rows only, and the sweep (`sweep`) the bytes later. A crash therefore leaves at most unnamed bytes.
The engine keeps its own registry in the same way, with its content store and its state instead.
"""

import asyncio
import hashlib
import os
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from wherry.aio import KeyedLock, SharedLock, acquire, finish, settle
from wherry.digest import Digest
from wherry.errors import Corrupt, Failed, NotFound
from wherry.registry import catalog
from wherry.registry.catalog import Catalog, Repository
from wherry.registry.errors import Code, Problem, blob_unknown, incomplete, manifest_unknown, upload_unknown
from wherry.registry.manifests import describe, read
from wherry.registry.store import MAX_MANIFEST, Named, Tag
from wherry.spec.image import Descriptor, Index, Manifest, Raw
from wherry.state import Change, State
from wherry.storage.content import ContentStore, Ingest

UPLOAD_LIFE = 24 * 3600  # seconds after the last byte
PROMISE = 600  # seconds a promise to keep a blob holds, so that not every one is a row to write
OPEN_UPLOADS = 256  # kept open between requests; others are read again when they go on
CACHED = 32 << 20  # bytes of manifests held in memory
BATCH = 100  # blobs the sweep deletes before it lets others go on
_UPLOAD = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}-[0-9a-f]{16}\Z")  # a UUID and its repository's mark


class FolderUpload:
    def __init__(self, store: "FolderStore", repository: str, id: str, ingest: Ingest) -> None:
        self._store = store
        self._repository = repository
        self._ingest = ingest
        self.id = id
        self.busy = True

    @property
    def offset(self) -> int:
        return self._ingest.offset

    async def write(self, data: bytes) -> None:
        await settle(self._ingest.write, data)

    @property
    def path(self) -> Path:
        """Where its bytes are until it is committed."""
        return self._ingest.path

    async def restart(self) -> None:
        """Throw away what was received."""
        await settle(self._ingest.reset)

    async def commit(self, digest: Digest) -> int:
        size = self._ingest.offset
        async with self._store.guard.shared():  # the sweep does not come between the blob and its row
            try:
                await settle(self._ingest.commit, digest, size)
            except Corrupt as exc:
                raise Problem(Code.DIGEST_INVALID, f"the content of the blob is not {digest}: {exc.message}") from exc
            finally:
                self._store.forget(self)
            await self._store.link(self._repository, digest, size)
        return size

    async def abort(self) -> None:
        self._store.forget(self)
        await settle(self._ingest.abort)

    async def release(self) -> None:
        self.busy = False
        if self._store.closing or len(self._store.open_uploads) > OPEN_UPLOADS:
            self._store.forget(self)
            await settle(self._ingest.close)

    async def close(self) -> None:
        await settle(self._ingest.close)


class FolderStore:
    def __init__(
        self, content: ContentStore, state: State, uploads: Path, *, clock: Callable[[], int] = time.time_ns
    ) -> None:
        """Load the catalog and make the folders (blocking). The state stays the caller's; `clock` tells ns."""
        uploads.mkdir(parents=True, exist_ok=True)
        self.content = content
        self.catalog = Catalog(state)
        self.open_uploads: dict[str, FolderUpload] = {}
        self.closing = False
        self.guard = SharedLock()  # shared while rows appear for bytes that exist; the sweep deletes alone
        self._state = state
        self._uploads = uploads
        self._clock = clock
        self._locks = KeyedLock()
        self._writing = asyncio.Lock()
        self._cache: dict[Digest, bytes] = {}  # manifests, the least recently used first
        self._cached = 0  # bytes in it

    async def write(self, *changes: Change) -> None:
        """Rows to disk, then to memory; one after the other, so that both end alike."""

        async def both() -> None:
            async with self._writing:
                await settle(self._state.write, *changes)
                self.catalog.apply(changes)

        await finish(both())

    def now(self) -> int:
        """ns since the epoch, by the store's clock."""
        return self._clock()

    async def close(self) -> None:
        """Let go of uploads; they go on after the next start."""
        self.closing = True
        for upload in list(self.open_uploads.values()):
            self.forget(upload)
            await upload.close()

    # --- listing ------------------------------------------------------------------------------------------------------

    async def repositories(self, *, after: str, limit: int) -> list[str]:
        return self.catalog.page(after, limit)

    async def tags(self, repository: str, *, after: str, limit: int) -> list[str]:
        return catalog.page(self.catalog.get(repository).sorted_tags, after, limit)

    async def tag_list(self, repository: str) -> list[Tag]:
        found = self.catalog.get(repository)
        return [found.tags[name] for name in found.sorted_tags]

    async def described(self, repository: str, digest: Digest) -> Named:
        return self.catalog.manifest(repository, digest)

    # --- blobs --------------------------------------------------------------------------------------------------------

    async def blob_size(self, repository: str, digest: Digest) -> int:
        return self.catalog.blob(repository, digest).size

    async def promise_blob(self, repository: str, digest: Digest) -> int:
        async with self.guard.shared():
            blob = self.catalog.blob(repository, digest)
            if self._clock() - blob.pushed > PROMISE * 10**9:
                await self.link(repository, digest, blob.size)
            return blob.size

    async def open_blob(self, repository: str, digest: Digest) -> BinaryIO:
        self.catalog.blob(repository, digest)
        try:
            return await acquire(self.content.open, digest)
        except NotFound as exc:
            raise blob_unknown(repository, digest) from exc

    async def holders(self, digest: Digest) -> list[str]:
        return self.catalog.holders(digest)

    async def mount_blob(self, repository: str, digest: Digest, source: str) -> bool:
        async with self.guard.shared():
            found = self.catalog.find(source)
            if found is None or digest not in found.blobs:
                return False
            await self.link(repository, digest, found.blobs[digest].size)
            return True

    async def link(self, repository: str, digest: Digest, size: int) -> None:
        """Make a blob that is in the content store visible in `repository`."""
        await self.write(catalog.put_blob(repository, digest, size=size, pushed=self._clock()))

    @asynccontextmanager
    async def editing(self, repository: str) -> AsyncIterator[None]:
        """While rows of `repository` are looked at and changed: nobody else does, and no sweep comes between."""
        async with self.guard.shared(), self._locks(repository):
            yield

    async def usage(self, repository: str) -> int:
        """Bytes of the blobs visible in `repository`; "": of the whole registry, each counted once."""
        if repository:
            found = self.catalog.find(repository)
            return sum(blob.size for blob in found.blobs.values()) if found else 0
        sizes: dict[Digest, int] = {}
        for _, each in self.catalog:
            sizes.update((digest, blob.size) for digest, blob in each.blobs.items())
        return sum(sizes.values())

    async def delete_blob(self, repository: str, digest: Digest) -> None:
        async with self.editing(repository):
            self.catalog.blob(repository, digest)
            for named in self.catalog.get(repository).manifests.values():
                if digest in named.blobs:
                    raise Problem(
                        Code.UNSUPPORTED, f"blob {digest} is needed by manifest {named.digest}: delete that first"
                    )
            await self.write(catalog.drop_blob(repository, digest))

    async def start_upload(self, repository: str) -> FolderUpload:
        id = f"{uuid.uuid4()}-{_mark(repository)}"
        return await self._open_upload(repository, id)

    async def upload(self, repository: str, id: str) -> FolderUpload:
        if (upload := self.open_uploads.get(id)) is not None and id.endswith(_mark(repository)):
            if upload.busy:
                raise Problem(Code.TOOMANYREQUESTS, f"another request is working on upload {id}")
            upload.busy = True
            return upload
        if _UPLOAD.match(id) is None or not id.endswith(_mark(repository)):
            raise upload_unknown(repository, id)
        if not await settle((self._uploads / id).exists):
            raise upload_unknown(repository, id)
        return await self._open_upload(repository, id)

    async def _open_upload(self, repository: str, id: str) -> FolderUpload:
        async with self._locks(id):
            if (known := self.open_uploads.get(id)) is not None:
                raise Problem(Code.TOOMANYREQUESTS, f"another request is working on upload {known.id}")
            ingest = await acquire(self.content.ingest_at, self._uploads / id, f"upload {id} to {repository}")
            upload = self.open_uploads[id] = FolderUpload(self, repository, id, ingest)
            return upload

    def forget(self, upload: FolderUpload) -> None:
        self.open_uploads.pop(upload.id, None)

    async def count_uploads(self) -> int:
        """How many were begun and not ended."""
        return len(await settle(self._touched))

    async def expire_uploads(self) -> int:
        """Remove uploads nobody went on with; how many."""
        limit = self._clock() - UPLOAD_LIFE * 10**9
        expired = [name for name, touched in await settle(self._touched) if touched < limit]
        gone = 0
        for id in expired:
            upload = self.open_uploads.get(id)
            if upload is not None and upload.busy:
                continue
            if upload is not None:
                await upload.abort()
            else:
                await settle((self._uploads / id).unlink, True)
            gone += 1
        return gone

    def _touched(self) -> list[tuple[str, int]]:
        with os.scandir(self._uploads) as entries:
            return [(entry.name, entry.stat().st_mtime_ns) for entry in entries]

    # --- manifests ----------------------------------------------------------------------------------------------------

    async def resolve(self, repository: str, tag: str) -> Digest:
        return self.catalog.tag(repository, tag).digest

    async def manifest(self, repository: str, digest: Digest) -> Raw:
        named = self.catalog.manifest(repository, digest)
        if (data := self._cache.get(digest)) is None:
            try:
                data = await settle(lambda: self.content.read(digest, limit=MAX_MANIFEST))
            except NotFound as exc:
                raise manifest_unknown(repository, digest) from exc
        self._remember(digest, data)
        return Raw(data, named.media_type, digest)

    def _remember(self, digest: Digest, data: bytes) -> None:
        """The least recently used are forgotten first."""
        self._cached += len(data) - len(self._cache.pop(digest, b""))
        self._cache[digest] = data
        while self._cached > CACHED:
            self._cached -= len(self._cache.pop(next(iter(self._cache))))

    async def put_manifest(
        self, repository: str, raw: Raw, *, tag: str | None, complete: bool = False
    ) -> Descriptor | None:
        """`complete`: the caller knows that all it needs is here."""
        named, document = read(raw)
        named = replace(named, pushed=self._clock())
        async with self.editing(repository):
            if not complete:
                self._check_complete(repository, named, document)
            await settle(self.content.write, raw.data)
            changes: list[Change] = [catalog.put_manifest(repository, named)]
            if tag is not None:
                changes.append(catalog.put_tag(repository, tag, digest=raw.digest, pushed=named.pushed))
            await self.write(*changes)
        self._remember(raw.digest, raw.data)
        return document.subject

    def _check_complete(self, repository: str, named: Named, document: Manifest | Index) -> None:
        """All that a manifest needs is in its repository, and as long as it says."""
        here = self.catalog.find(repository) or Repository()
        entries = document.manifests if isinstance(document, Index) else [document.config, *document.layers]
        sizes = {digest: here.blobs[digest].size for digest in named.blobs if digest in here.blobs}
        sizes |= {digest: here.manifests[digest].size for digest in named.children if digest in here.manifests}
        if lacking := [digest for digest in (*named.blobs, *named.children) if digest not in sizes]:
            raise incomplete(repository, lacking)
        for entry in entries:
            if (size := sizes.get(entry.digest, entry.size)) != entry.size:
                raise Problem(
                    Code.SIZE_INVALID, f"the manifest says that {entry.digest} has {entry.size} bytes; it has {size}"
                )

    async def delete_manifest(self, repository: str, digest: Digest) -> None:
        async with self.editing(repository):
            self.catalog.manifest(repository, digest)
            tags = [tag.name for tag in self.catalog.get(repository).tags.values() if tag.digest == digest]
            await self.write(
                *(catalog.drop_tag(repository, tag) for tag in tags), catalog.drop_manifest(repository, digest)
            )

    async def delete_tag(self, repository: str, tag: str) -> None:
        async with self.editing(repository):
            self.catalog.tag(repository, tag)
            await self.write(catalog.drop_tag(repository, tag))

    async def referrers(self, repository: str, digest: Digest) -> list[Descriptor]:
        if (found := self.catalog.find(repository)) is None:
            return []
        return [describe(found.manifests[each]) for each in sorted(found.referrers.get(digest, ()))]

    # --- sweeping -----------------------------------------------------------------------------------------------------

    async def sweep(self) -> tuple[int, int]:
        """Delete bytes no row names; how many blobs, and how many bytes. Safe beside everything else."""
        live = self.catalog.live()
        candidates = [digest for digest in await settle(lambda: list(self.content.walk())) if digest not in live]
        blobs = freed = 0
        for start in range(0, len(candidates), BATCH):
            async with self.guard.alone():
                dead = [digest for digest in candidates[start : start + BATCH] if not self.catalog.names(digest)]
                freed += await settle(self._delete, dead)
            blobs += len(dead)
        return blobs, freed

    def _delete(self, dead: Sequence[Digest]) -> int:
        freed = 0
        for digest in dead:
            freed += self.content.size(digest)
            self.content.delete(digest)
        return freed


def _mark(repository: str) -> str:
    """Ties an upload's id to its repository."""
    return hashlib.sha256(repository.encode()).hexdigest()[:16]


class OwnFolderStore(FolderStore):
    """One that has its state for itself, and closes it."""

    async def close(self) -> None:
        await super().close()
        await settle(self._state.close)


def open_folder(root: Path, *, clock: Callable[[], int] = time.time_ns) -> OwnFolderStore:
    """The store below `root`, made when it is missing (blocking). The caller holds the folder's lock. Failed."""
    with ExitStack() as undo:
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            content = ContentStore(root)
            content.recover()
            state = State(root / "state.db")
            undo.callback(state.close)
            store = OwnFolderStore(content, state, root / "uploads", clock=clock)
        except OSError as exc:
            raise Failed(f"cannot use {root} as the registry's folder: {exc.filename}: {exc.strerror}") from exc
        undo.pop_all()
    return store
