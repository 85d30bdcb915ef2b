"""Where blobs that are not held can be had from, and bringing the layers of a tree when their files are needed.

Resolving an image or loading a cache names layers; it brings none. What a build comes to need is downloaded then, once
for all builds that want it at the same time, and unpacked base first while the rest still comes.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

from wherry.aio import settle
from wherry.builder.client import Client
from wherry.builder.trees import Tree, TreeLayer
from wherry.digest import ChainID, Digest, is_digest, of
from wherry.distribution.config import HUB
from wherry.distribution.errors import translate
from wherry.distribution.source import open_source
from wherry.errors import Corrupt, Failed, InvalidParameter, NotFound, WherryError, first_of
from wherry.images.deps import Deps
from wherry.images.layers import unpack
from wherry.images.leases import Lease
from wherry.images.progress import Bar, Progress, quiet
from wherry.images.transfer.bring import Errand, download
from wherry.reference import DEFAULT_DOMAIN, Reference
from wherry.spec.distribution import Auth
from wherry.spec.image import MAX_DOCUMENT, Descriptor, Raw

Credentials = Callable[[str], Awaitable[Auth]]  # for a host, as `Client.credentials`
Download = Callable[[Descriptor, Bar], Awaitable[None]]  # a blob into the content store, unless it is there


class Provider(Protocol):
    def open(self, deps: Deps, lease: Lease, progress: Progress) -> AbstractAsyncContextManager[Download]:
        """A connection for several downloads. What it brings the lease must protect already."""


class Providers:
    """Blob -> those who may have it, in the order to be asked. One of a build."""

    def __init__(self) -> None:
        self._known: dict[Digest, list[Provider]] = {}

    def add(self, blobs: Iterable[Digest], provider: Provider) -> None:
        for blob in blobs:
            known = self._known.setdefault(blob, [])
            if provider not in known:
                known.append(provider)

    def of(self, blob: Digest) -> Sequence[Provider]:
        return self._known.get(blob, ())


# --- kinds of providers -----------------------------------------------------------------------------------------------


def login_host(domain: str) -> str:
    """The host whose credentials are for a reference's domain."""
    return HUB if domain == DEFAULT_DOMAIN else domain


@dataclass(frozen=True, slots=True)
class Registry:
    """A repository at a registry."""

    reference: Reference
    credentials: Credentials

    @asynccontextmanager
    async def open(self, deps: Deps, lease: Lease, progress: Progress) -> AsyncIterator[Download]:
        auth = await self.credentials(login_host(self.reference.domain))
        with self._in_words():
            async with open_source(deps.registry, self.reference, auth) as source:
                errand = Errand(deps=deps, source=source, lease=lease, progress=progress)

                async def fetch(blob: Descriptor, bar: Bar) -> None:
                    with self._in_words():
                        await download(errand, blob, bar)

                yield fetch

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """Errors name the reference."""
        try:
            yield
        except WherryError as exc:
            if (translated := translate(exc, self.reference)) is exc:
                raise
            raise translated from exc


@dataclass(frozen=True, slots=True)
class ClientStore:
    """A content store of the client's: an OCI layout ("oci:name"), a local cache ("local:directory")."""

    client: Client
    store: str

    @asynccontextmanager
    async def open(self, deps: Deps, lease: Lease, progress: Progress) -> AsyncIterator[Download]:
        yield lambda blob, bar: self._download(deps, blob, bar)

    async def _download(self, deps: Deps, blob: Descriptor, bar: Bar) -> None:
        async with deps.locks(("blob", blob.digest)), deps.downloads:
            if not await settle(deps.content.has, blob.digest):
                await self._receive(deps, blob, bar)
        bar.say("Download complete")

    async def _receive(self, deps: Deps, blob: Descriptor, bar: Bar) -> None:
        with deps.content.ingest_new(f"blob {blob.digest} of {self.store}") as ingest:
            async for chunk in self.client.read_blob(self.store, blob.digest):
                if ingest.offset + len(chunk) > blob.size:
                    raise Corrupt(
                        f"blob {blob.digest} of {self.store} is longer than the {blob.size} bytes it should have"
                    )
                await settle(ingest.write, chunk)
                bar.show("Downloading", ingest.offset, blob.size)
            await settle(ingest.commit, blob.digest, blob.size)

    # As the documents of an image, like distribution's `Source`

    async def manifest(self, name: str) -> Raw:
        if not is_digest(name):
            raise InvalidParameter(f"{self.store}: a content store knows digests only, not {name!r}")
        data = await self._read(Digest(name))
        return Raw(data, "", Digest(name))

    async def document(self, descriptor: Descriptor) -> bytes:
        return await self._read(descriptor.digest)

    async def _read(self, digest: Digest) -> bytes:
        data = bytearray()
        async for chunk in self.client.read_blob(self.store, digest):
            data += chunk
            if len(data) > MAX_DOCUMENT:
                raise Failed(f"blob {digest} of {self.store} is larger than the {MAX_DOCUMENT} bytes of a document")
        if of(bytes(data)) != digest:
            raise Corrupt(f"blob {digest} of {self.store} is damaged: its content has the digest {of(bytes(data))}")
        return bytes(data)


# --- bringing ---------------------------------------------------------------------------------------------------------


async def bring(deps: Deps, lease: Lease, tree: Tree, providers: Providers, progress: Progress = quiet) -> Tree:
    """All layers of `tree` committed, missing ones downloaded and unpacked; the tree with their sizes.

    NotFound when nobody has a layer. What is brought before a failure stays as long as the lease does.
    """
    await _protect(lease, tree.layers)
    missing = await settle(_missing, deps, tree.layers)
    if not missing:
        return tree
    work = _Bringing(deps=deps, lease=lease, providers=providers, progress=progress)
    try:
        async with AsyncExitStack() as connections, asyncio.TaskGroup() as group:
            work.begin(connections, group, [_blob(layer) for layer in missing])
            done = {layer.chain: layer for layer in await work.unpack(tree.layers, missing)}
    except BaseExceptionGroup as errors:
        raise first_of(errors) from errors
    return Tree(tuple(done.get(layer.chain, layer) for layer in tree.layers))


async def bring_blobs(
    deps: Deps, lease: Lease, blobs: Iterable[Descriptor], providers: Providers, progress: Progress = quiet
) -> list[Descriptor]:
    """`blobs` into the content store: for a push or an archive. Answers those that nobody has."""
    wanted = {blob.digest: blob for blob in blobs}
    await lease.protect(digests=wanted)
    work = _Bringing(deps=deps, lease=lease, providers=providers, progress=progress)
    here = set(await settle(lambda: [digest for digest in wanted if deps.content.has(digest)]))
    lacking = [blob for digest, blob in wanted.items() if digest not in here and not providers.of(digest)]
    try:
        async with AsyncExitStack() as connections, asyncio.TaskGroup() as group:
            work.begin(connections, group, [blob for digest, blob in wanted.items() if providers.of(digest)])
    except BaseExceptionGroup as errors:
        raise first_of(errors) from errors
    await settle(work.forget)
    return lacking


async def _protect(lease: Lease, layers: Iterable[TreeLayer]) -> None:
    layers = list(layers)
    blobs = [layer.blob.digest for layer in layers if layer.blob is not None]
    await lease.protect(digests=blobs, chains=[layer.chain for layer in layers])


def _missing(deps: Deps, layers: Sequence[TreeLayer]) -> list[TreeLayer]:
    """Those above the highest one that is there."""
    for number in range(len(layers), 0, -1):
        if deps.snapshots.has(layers[number - 1].chain):
            return list(layers[number:])
    return list(layers)


@dataclass(slots=True, kw_only=True)
class _Bringing:
    deps: Deps
    lease: Lease
    providers: Providers
    progress: Progress
    _open: dict[int, Download] = field(default_factory=dict)  # by the provider's identity
    _opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    _downloads: dict[Digest, asyncio.Task[None]] = field(default_factory=dict)
    _bars: dict[Digest, Bar] = field(default_factory=dict)

    def begin(self, connections: AsyncExitStack, group: asyncio.TaskGroup, blobs: Iterable[Descriptor]) -> None:
        """Start all downloads."""
        for blob in blobs:
            if blob.digest not in self._downloads:
                self._downloads[blob.digest] = group.create_task(self._download(connections, blob))

    async def unpack(self, layers: Sequence[TreeLayer], missing: Sequence[TreeLayer]) -> list[TreeLayer]:
        """The missing ones, base first."""
        below = layers[: len(layers) - len(missing)]
        parent = below[-1].chain if below else None
        found: list[TreeLayer] = []
        for layer in missing:
            await self._downloads[_blob(layer).digest]
            made = await self._unpack(layer, parent)
            found.append(made)
            parent = made.chain
        await settle(self.forget)
        return found

    async def _unpack(self, layer: TreeLayer, parent: ChainID | None) -> TreeLayer:
        blob = _blob(layer)
        bar = self._bars.get(blob.digest)

        def extracting(current: int) -> None:
            if bar is not None:
                bar.show("Extracting", current, blob.size)

        made = await unpack(self.deps, self.lease, blob, parent=parent, diff_id=layer.diff_id, extracting=extracting)
        if bar is not None:
            bar.say("Pull complete")
        return replace(layer, size=made.unpacked)

    async def _download(self, connections: AsyncExitStack, blob: Descriptor) -> None:
        if await settle(self.deps.content.has, blob.digest):
            return
        bar = self._bars[blob.digest] = Bar(self.progress, blob.digest)
        bar.say("Pulling fs layer")
        failure: WherryError | None = None
        for provider in self.providers.of(blob.digest):
            try:
                fetch = await self._connect(connections, provider)
                await fetch(blob, bar)
                return
            except WherryError as exc:
                failure = failure or exc
        raise failure or _nowhere(blob.digest)

    async def _connect(self, connections: AsyncExitStack, provider: Provider) -> Download:
        async with self._opening:
            if id(provider) not in self._open:
                opened = provider.open(self.deps, self.lease, self.progress)
                self._open[id(provider)] = await connections.enter_async_context(opened)
            return self._open[id(provider)]

    def forget(self) -> None:
        """Nothing of what was downloaded will have to be gone on with."""
        for blob in self._bars:
            self.deps.content.forget_download(blob)


def _blob(layer: TreeLayer) -> Descriptor:
    if layer.blob is None:
        raise _nowhere(layer.diff_id)
    return layer.blob


def _nowhere(name: str) -> NotFound:
    return NotFound(f"layer {name} is not held, and nobody is known who has it: build it again")
