"""What comes from upstream: connections that several requests share, and blobs that several clients follow.

A blob is written to an upload of the store, once for all who want it at that time, and sent to each as the file grows.
The last byte is held back until the digest is known to be right: what is wrong never arrives whole.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from wherry.aio import Background, KeyedLock, finish, settle
from wherry.digest import Digest
from wherry.distribution.config import RegistryConfig
from wherry.distribution.errors import Unreachable
from wherry.distribution.fetch import fetch
from wherry.distribution.repository import Repository, open_repository
from wherry.distribution.source import Source
from wherry.errors import Failed, WherryError
from wherry.reference import Reference
from wherry.registry.call import HEADERS
from wherry.registry.errors import Code, Problem
from wherry.registry.folder import FolderStore, FolderUpload
from wherry.spec.distribution import Auth
from wherry.spec.image import Descriptor

log = logging.getLogger(__name__)

CHUNK = 1 << 20  # bytes sent at a time
KEPT = 60.0  # seconds an idle connection is kept
STALL = 300.0  # seconds a client may take nothing before it counts as gone


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    name: str
    domain: str
    prefix: str  # of its repositories here
    auth: Auth
    ttl: float  # seconds a tag is believed
    registry: RegistryConfig


@dataclass(slots=True)
class _Held:
    repository: Repository
    undo: AsyncExitStack
    users: int = 0
    idle_since: float = 0.0
    dropped: bool = False  # closed by its last user


class Connections:
    """To repositories of upstreams. An image's manifests and layers need one sign-in together."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: dict[tuple[str, str], _Held] = {}
        self._locks = KeyedLock()

    @asynccontextmanager
    async def use(self, upstream: Upstream, path: str) -> AsyncIterator[Repository]:
        """Unreachable, Refused; a connection that failed is not used again."""
        key = upstream.name, path
        async with self._locks(key):
            held = self._held.get(key) or await self._connect(upstream, path)
            self._held[key] = held
            held.users += 1
        try:
            yield held.repository
        except (Unreachable, TimeoutError):
            self._drop(key, held)
            raise
        finally:
            held.users -= 1
            held.idle_since = self._clock()
            if held.dropped and not held.users:
                await finish(held.undo.aclose())

    async def _connect(self, upstream: Upstream, path: str) -> _Held:
        async with AsyncExitStack() as undo:
            where = Reference(domain=upstream.domain, path=path)
            repository = await undo.enter_async_context(open_repository(upstream.registry, where, upstream.auth))
            return _Held(repository, undo.pop_all())

    def _drop(self, key: tuple[str, str], held: _Held) -> None:
        held.dropped = True
        if self._held.get(key) is held:
            del self._held[key]

    async def keep(self) -> None:
        """For ever: close what nobody used for a while; at the end, everything."""
        try:
            while True:
                await asyncio.sleep(KEPT)
                await self.close(idle=KEPT)
        finally:
            await self.close()

    async def close(self, *, idle: float = 0.0) -> None:
        """Close what nobody has used for `idle` seconds. Without: everything; what is in use by its last user."""
        limit = self._clock() - idle
        for key, held in list(self._held.items()):
            if idle and (held.users or held.idle_since > limit):
                continue
            self._drop(key, held)
            if not held.users:
                await held.undo.aclose()


@dataclass(slots=True)
class Download:
    """A blob on its way; its followers read the file."""

    size: int
    path: Path
    offset: int = 0  # bytes in the file
    done: bool = False  # and right
    error: WherryError | None = None
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self) -> None:
        self.moved.set()
        self.moved = asyncio.Event()

    async def wait(self) -> None:
        """To its end. UNAVAILABLE."""
        while not self.done:
            self._check()
            await self.moved.wait()

    async def wait_for_something(self) -> None:
        """Until there is something to send: up to then an answer can still be an error. UNAVAILABLE."""
        while not self.offset and not self.done:
            self._check()
            await self.moved.wait()

    def _check(self) -> None:
        if self.error is not None:
            raise Problem(Code.UNAVAILABLE, f"the blob cannot be brought: {self.error.message}")


class Downloads:
    def __init__(self, store: FolderStore, connections: Connections, background: Background) -> None:
        self._store = store
        self._connections = connections
        self._background = background
        self._locks = KeyedLock()
        self._running: dict[tuple[str, Digest], Download] = {}  # by repository and digest

    def __len__(self) -> int:
        return len(self._running)

    async def begin(self, upstream: Upstream, path: str, repository: str, blob: Descriptor) -> Download:
        """The download of a blob, begun when there is none yet. It goes on when all who wanted it have left."""
        key = repository, blob.digest
        async with self._locks(key):
            if (known := self._running.get(key)) is not None:
                return known
            upload = await self._store.start_upload(repository)
            made = self._running[key] = Download(size=blob.size, path=upload.path)
            self._background.spawn(
                self._fetch(upstream, path, blob, upload, made, key), name=f"blob {blob.digest} of {repository}"
            )
            return made

    async def _fetch(
        self,
        upstream: Upstream,
        path: str,
        blob: Descriptor,
        upload: FolderUpload,
        download: Download,
        key: tuple[str, Digest],
    ) -> None:
        def nobody(_: int) -> None:
            """Progress is told by the sink."""

        try:
            async with self._connections.use(upstream, path) as remote:
                await fetch(Source(remote), blob, _Sink(upload, download), received=nobody, pausing=nobody)
            await upload.commit(blob.digest)
            download.done = True
        except WherryError as exc:
            log.warning("blob %s cannot be brought from %s: %s", blob.digest, upstream.name, exc.message)
            download.error = exc
        except BaseException:
            download.error = Failed("the registry stops")
            raise
        finally:
            self._running.pop(key, None)
            download.tell()
            await finish(upload.abort())


@dataclass(slots=True)
class _Sink:
    """Where `fetch` writes: the upload, with its followers told."""

    upload: FolderUpload
    download: Download

    @property
    def offset(self) -> int:
        return self.upload.offset

    async def write(self, data: bytes | bytearray) -> None:
        await self.upload.write(bytes(data))
        self.download.offset = self.upload.offset
        self.download.tell()

    async def restart(self) -> None:
        await self.upload.restart()
        self.download.offset = 0


async def relay(request: web.Request, download: Download, digest: Digest) -> web.StreamResponse:
    """Answer with the file as it grows. UNAVAILABLE; ConnectionError when it ends before its time, on either side."""
    with await settle(open, download.path, "rb", 0) as file:
        await download.wait_for_something()
        headers = {
            **HEADERS,
            "Content-Type": "application/octet-stream",
            "Docker-Content-Digest": digest,
            "Content-Length": str(download.size),
        }
        answer = web.StreamResponse(headers=headers)
        await answer.prepare(request)
        sent = 0
        while sent < download.size:
            moved = download.moved
            there = download.size if download.done else min(download.offset, download.size - 1)
            if sent < there:
                data = await settle(file.read, min(CHUNK, there - sent))
                await _write(answer, data)
                sent += len(data)
            elif download.error is not None:
                raise ConnectionResetError(f"blob {digest} broke off: {download.error.message}")
            else:
                await moved.wait()
        await answer.write_eof()
    return answer


async def _write(answer: web.StreamResponse, data: bytes) -> None:
    try:
        async with asyncio.timeout(STALL):
            await answer.write(data)
    except TimeoutError:
        raise ConnectionAbortedError(f"nothing was taken for {STALL:g} s") from None
