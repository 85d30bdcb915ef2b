"""Blobs on their way from a registry: downloaded some at a time, layers unpacked base first while others still come.

A blob that two pulls want at once is downloaded by one of them. What was downloaded outlives a failure, a cancellation
and a restart (storage/content.py): the pull that comes next goes on there. A full disk is no such failure: then what
was downloaded is dropped, to make room.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from wherry.aio import settle
from wherry.digest import ChainID, DiffID, Digest
from wherry.distribution.fetch import fetch
from wherry.distribution.source import Source
from wherry.errors import Corrupt, first_of
from wherry.images.deps import Deps
from wherry.images.layers import short, unpack
from wherry.images.leases import Lease
from wherry.images.progress import Bar, Progress
from wherry.images.record import Layer
from wherry.spec.image import Descriptor
from wherry.storage.content import Ingest, download_ref

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """What one pull brings its blobs with."""

    deps: Deps
    source: Source
    lease: Lease
    progress: Progress


async def bring_blobs(errand: Errand, blobs: Iterable[Descriptor]) -> None:
    """Blobs as they are into the content store. The lease must protect them already."""
    wanted = {blob.digest: blob for blob in blobs}
    try:
        async with asyncio.TaskGroup() as group:
            for blob in wanted.values():
                bar = Bar(errand.progress, short(blob.digest))
                if await settle(errand.deps.content.has, blob.digest):
                    bar.say("Already exists")
                else:
                    bar.say("Pulling fs layer")
                    group.create_task(download(errand, blob, bar, last="Pull complete"))
    except BaseExceptionGroup as errors:
        raise first_of(errors) from errors


async def bring_layers(
    errand: Errand, blobs: Sequence[Descriptor], diff_ids: Sequence[DiffID], chains: Sequence[ChainID]
) -> list[Layer]:
    """An image's layers, downloaded and unpacked; base first. The lease must protect them already."""
    work = _Work(errand=errand, blobs=blobs, diff_ids=diff_ids, chains=chains)
    try:
        async with asyncio.TaskGroup() as group:
            return await work.run(group)
    except BaseExceptionGroup as errors:
        raise first_of(errors) from errors
    raise AssertionError("unreachable: a TaskGroup either returns or raises")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """One image's layers on their way."""

    errand: Errand
    blobs: Sequence[Descriptor]
    diff_ids: Sequence[DiffID]
    chains: Sequence[ChainID]
    bars: dict[Digest, Bar] = field(default_factory=dict)

    async def run(self, group: asyncio.TaskGroup) -> list[Layer]:
        downloads = await self._start(group)
        layers: list[Layer] = []
        for blob, diff_id in zip(self.blobs, self.diff_ids, strict=True):
            if (download := downloads.get(blob.digest)) is not None:
                await download
            layers.append(await self._unpack(blob, diff_id, layers[-1].chain if layers else None))
            if blob.digest in self.bars:
                self.bars.pop(blob.digest).say("Pull complete")
        return layers

    async def _start(self, group: asyncio.TaskGroup) -> Mapping[Digest, asyncio.Task[None]]:
        """Begin all downloads that are needed, in the order of the layers."""
        downloads: dict[Digest, asyncio.Task[None]] = {}
        seen: set[Digest] = set()
        for blob, chain in zip(self.blobs, self.chains, strict=True):
            if blob.digest in seen:
                continue
            seen.add(blob.digest)
            bar = Bar(self.errand.progress, short(blob.digest))
            if await settle(self._is_there, blob, chain):
                bar.say("Already exists")
                continue
            bar.say("Pulling fs layer")
            self.bars[blob.digest] = bar
            downloads[blob.digest] = group.create_task(download(self.errand, blob, bar))
        return downloads

    def _is_there(self, blob: Descriptor, chain: ChainID) -> bool:
        deps = self.errand.deps
        return deps.snapshots.has(chain) and deps.content.has(blob.digest)

    async def _unpack(self, blob: Descriptor, diff_id: DiffID, parent: ChainID | None) -> Layer:
        bar = self.bars.get(blob.digest)

        def extracting(current: int) -> None:
            if bar is not None:
                bar.show("Extracting", current, blob.size)

        errand = self.errand
        return await unpack(
            errand.deps, errand.lease, blob, parent=parent, diff_id=diff_id, extracting=extracting if bar else None
        )


async def download(errand: Errand, blob: Descriptor, bar: Bar, *, last: str = "Download complete") -> None:
    """A blob into the content store, unless it is there. The lease must protect it already."""
    deps = errand.deps
    if deps.downloads.locked():
        bar.say("Waiting")
    async with deps.locks(("blob", blob.digest)):  # another pull may be bringing it
        if not await settle(deps.content.has, blob.digest):
            async with deps.downloads:
                await _fetch(errand, blob, bar)
    bar.say(last)


async def _fetch(errand: Errand, blob: Descriptor, bar: Bar) -> None:
    """Into the content store. Bytes of a wrong digest that came in several pieces are asked for once more."""
    source = errand.source
    while True:
        connection = source.connection
        async with _ingest(errand.deps, blob) as ingest:
            resumed = ingest.offset > 0
            try:
                await fetch(
                    source,
                    blob,
                    _IngestSink(ingest),
                    received=lambda current: bar.show("Downloading", current, blob.size),
                    pausing=lambda left: bar.say(f"Retrying in {left} second{'s' if left != 1 else ''}"),
                )
                bar.say("Verifying Checksum")
                await settle(ingest.commit, blob.digest, blob.size, keep=True)
                return
            except Corrupt as exc:
                await settle(ingest.abort)
                if resumed or source.connection is not connection:
                    log.warning("what is held of layer %s is wrong, it is downloaded anew: %s", blob.digest, exc)
                else:
                    await source.leave(connection, exc)  # raises it again, unless that was a mirror


@asynccontextmanager
async def _ingest(deps: Deps, blob: Descriptor) -> AsyncIterator[Ingest]:
    """The download of `blob` so far; what is there of it in the end stays."""
    held: list[Ingest] = []  # filled by a thread whose answer a cancellation would lose
    try:
        await settle(lambda: held.append(deps.content.ingest(download_ref(blob.digest))))
        yield held[0]
    finally:
        for ingest in held:
            await settle(ingest.close if ingest.offset else ingest.abort)


class _IngestSink:
    """Writes go to a thread: the disk may be slow, the loop must not."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest

    @property
    def offset(self) -> int:
        return self._ingest.offset

    async def write(self, data: bytes | bytearray) -> None:
        await settle(self._ingest.write, data)

    async def restart(self) -> None:
        await settle(self._ingest.reset)
