"""Pull-through cache: repositories of other registries, brought when they are asked for and kept.

Upstream `docker.io` appears as the repositories `docker.io/…`; as a mirror (`?ns=docker.io`, as containerd asks), and
with `default` also plain (`library/alpine`, as dockerd's registry-mirrors ask). What is kept is an ordinary repository
of the store that clients cannot write to.

    manifest by tag      kept for `ttl` seconds, then asked for by HEAD; the old one serves while upstream is down
    manifest by digest   never changes
    blob                 goes to the client while it is stored, once for all who want it at the same time; the last byte
                         is held back until its digest is known to be right
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from wherry.aio import Background, KeyedLock, settle
from wherry.digest import Digest, is_digest
from wherry.distribution.config import RegistryConfig
from wherry.distribution.errors import Refused
from wherry.distribution.fetch import fetch
from wherry.distribution.repository import Repository, open_repository
from wherry.distribution.source import Source
from wherry.errors import Failed, InvalidParameter, NotFound, WherryError
from wherry.reference import DEFAULT_DOMAIN, Reference
from wherry.registry.errors import Code, Problem, manifest_unknown
from wherry.registry.folder import FolderStore, FolderUpload
from wherry.registry.metrics import Family, gauge, labelled
from wherry.spec.distribution import ANONYMOUS, Auth
from wherry.spec.image import ACCEPT, Descriptor, Manifest, decode_manifest

log = logging.getLogger(__name__)

CHUNK = 1 << 20  # bytes sent at a time
NEGATIVE = 30.0  # seconds an upstream's "there is none" is believed
MAX_REMEMBERED = 10_000  # tags
ASK_TIME = 60.0  # seconds upstream may take to answer for a manifest


class UpstreamConfig(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    url: str = ""  # https://host[:port], or http://…; default: the upstream's name
    prefix: str = ""  # of its repositories here; default: the upstream's name
    username: str = ""
    password_file: str = ""
    ttl: int = 3600  # seconds a tag is believed
    default: bool = False  # also without the prefix: a mirror for dockerd


def check(config: Mapping[str, UpstreamConfig]) -> None:
    """InvalidParameter."""
    for name, each in config.items():
        if each.url and urlsplit(each.url).scheme not in ("http", "https"):
            raise InvalidParameter(f"upstreams: {name}: invalid url {each.url!r}: want http(s)://host[:port]")
        if bool(each.username) != bool(each.password_file):
            raise InvalidParameter(f"upstreams: {name}: username and password-file go together")
        if each.ttl < 0:
            raise InvalidParameter(f"upstreams: {name}: ttl cannot be negative")
    if sum(each.default for each in config.values()) > 1:
        raise InvalidParameter("upstreams: only one can be the default")


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    name: str
    domain: str
    prefix: str
    auth: Auth
    ttl: float
    registry: RegistryConfig


def make(name: str, config: UpstreamConfig, registry: RegistryConfig) -> Upstream:
    """Read what its configuration names (blocking). InvalidParameter."""
    auth = ANONYMOUS
    if config.username:
        try:
            password = Path(config.password_file).read_text().rstrip("\n")
        except OSError as exc:
            raise InvalidParameter(f"upstreams: {name}: cannot read {config.password_file}: {exc.strerror}") from exc
        auth = Auth(username=config.username, password=password)
    domain = urlsplit(config.url).netloc if config.url else name
    if config.url.startswith("http:"):
        registry = replace(registry, insecure=[*registry.insecure, domain])
    prefix = (config.prefix or name).replace(":", "_")  # a repository's name has no colon
    return Upstream(name=name, domain=domain, prefix=prefix, auth=auth, ttl=config.ttl, registry=registry)


@dataclass(slots=True)
class _Fetching:
    """A blob on its way from upstream; several clients may follow it."""

    size: int
    path: Path
    offset: int = 0  # bytes in the file
    done: bool = False  # and right
    error: WherryError | None = None
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self) -> None:
        self.moved.set()
        self.moved = asyncio.Event()


class Upstreams:
    """The hooks `locate`, `before_manifest` and `missing_blob`."""

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        store: FolderStore,
        background: Background,
        *,
        default: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._upstreams = upstreams
        self._by_prefix = {each.prefix: each for each in upstreams.values()}
        self._default = default
        self._store = store
        self._background = background
        self._clock = clock
        self._locks = KeyedLock()
        self._checked: dict[tuple[str, str], float] = {}
        self._absent: dict[tuple[str, str], float] = {}
        self._fetching: dict[Digest, _Fetching] = {}
        self._counts = {"hit": 0, "miss": 0, "renewed": 0, "stale": 0}

    def families(self) -> list[Family]:
        """How the cache does, for the metrics."""
        return [
            labelled("cache_requests_total", "Requests for manifests and blobs of upstreams.", "result", self._counts),
            gauge("cache_fetching", "Blobs on their way from an upstream.", len(self._fetching)),
        ]

    def locate(self, request: web.Request, repository: str) -> str:
        """Which repository of the store a request is about."""
        namespace = request.query.get("ns", "")
        if namespace in self._upstreams:
            return f"{self._upstreams[namespace].prefix}/{repository}"
        if self._default and request.method in ("GET", "HEAD") and self._of(repository) is None:
            known = self._store.catalog.find(repository)
            if known is None or not known.manifests:
                return f"{self._upstreams[self._default].prefix}/{repository}"
        return repository

    def check_write(self, repository: str) -> None:
        """DENIED for a repository that is another registry's."""
        if (found := self._of(repository)) is not None:
            raise Problem(
                Code.DENIED,
                f"repository {repository} is a copy of one of {found[0].name}: push there",
            )

    def _of(self, repository: str) -> tuple[Upstream, str] | None:
        """The upstream behind a repository, and what it calls it."""
        for prefix, upstream in self._by_prefix.items():
            if repository.startswith(f"{prefix}/"):
                return upstream, repository.removeprefix(f"{prefix}/")
        return None

    # --- manifests ----------------------------------------------------------------------------------------------------

    async def before_manifest(self, request: web.Request, repository: str, name: str) -> bool:
        if (found := self._of(repository)) is None or not name:
            return False
        upstream, path = found
        async with self._locks((repository, name)):
            known = self._known(repository, name)
            if known is not None and (is_digest(name) or self._is_fresh(upstream, repository, name)):
                return False
            if self._absent.get((repository, name), 0.0) > self._clock():
                raise manifest_unknown(repository, name)
            try:
                async with asyncio.timeout(ASK_TIME):
                    return await self._renew(upstream, repository, path, name, known)
            except (WherryError, TimeoutError) as exc:
                self._may_serve_stale(exc, upstream, repository, name, known)
                return False

    def _known(self, repository: str, name: str) -> Digest | None:
        here = self._store.catalog.find(repository)
        if here is None:
            return None
        if is_digest(name):
            return Digest(name) if Digest(name) in here.manifests else None
        return here.tags[name].digest if name in here.tags else None

    def _is_fresh(self, upstream: Upstream, repository: str, name: str) -> bool:
        checked = self._checked.get((repository, name))
        return checked is not None and checked + upstream.ttl > self._clock()

    def _may_serve_stale(
        self, exc: WherryError | TimeoutError, upstream: Upstream, repository: str, name: str, known: Digest | None
    ) -> None:
        why = exc.message if isinstance(exc, WherryError) else "no answer in time"
        absent = isinstance(exc, NotFound) or (isinstance(exc, Refused) and exc.status == 404)
        if absent and known is None:
            self._remember(self._absent, repository, name, self._clock() + NEGATIVE)
            raise manifest_unknown(repository, name) from exc
        if known is None:
            if isinstance(exc, Refused) and exc.status in (401, 403):
                raise Problem(Code.DENIED, f"{upstream.name} refuses {repository}: {why}") from exc
            raise Problem(Code.UNAVAILABLE, f"{upstream.name} cannot be asked for {repository}: {why}") from exc
        log.warning("%s:%s is served as it was: %s", repository, name, why)

    async def _renew(self, upstream: Upstream, repository: str, path: str, name: str, known: Digest | None) -> bool:
        async with self._open(upstream, path) as remote:
            if known is not None and await _digest_of(remote, name) == known:
                self._remember(self._checked, repository, name, self._clock())
                return False
            raw = await Source(remote).manifest(name)
        await self._store.put_manifest(repository, raw, tag=None if is_digest(name) else name, complete=True)
        self._remember(self._checked, repository, name, self._clock())
        return True

    @staticmethod
    def _open(upstream: Upstream, path: str) -> AbstractAsyncContextManager[Repository]:
        if upstream.domain == DEFAULT_DOMAIN and "/" not in path:
            path = f"library/{path}"
        return open_repository(upstream.registry, Reference(domain=upstream.domain, path=path), upstream.auth)

    @staticmethod
    def _remember(memory: dict[tuple[str, str], float], repository: str, name: str, until: float) -> None:
        if len(memory) >= MAX_REMEMBERED:
            memory.pop(next(iter(memory)))
        memory[repository, name] = until

    # --- blobs --------------------------------------------------------------------------------------------------------

    async def missing_blob(
        self, request: web.Request, repository: str, digest: Digest
    ) -> web.StreamResponse | bool | None:
        """An answer; True when the blob is in the store now; None when it is nowhere."""
        if (found := self._of(repository)) is None:
            return None
        descriptor = await self._described(repository, digest)
        if descriptor is None:
            return None
        if request.method == "HEAD":
            return web.Response(headers={"Content-Length": str(descriptor.size), "Docker-Content-Digest": digest})
        for holder in await self._store.holders(digest):
            if await self._store.mount_blob(repository, digest, holder):
                return True
        fetching = await self._begin(*found, repository, descriptor)
        if "Range" in request.headers:
            await _wait(fetching)
            return True
        return await _relay(request, fetching, digest)

    async def _described(self, repository: str, digest: Digest) -> Descriptor | None:
        """The descriptor some manifest of the repository has for it: nothing else is fetched."""
        here = self._store.catalog.find(repository)
        for named in here.manifests.values() if here else ():
            if digest in named.blobs:
                raw = await self._store.manifest(repository, named.digest)
                document = decode_manifest(raw.data, raw.media_type)
                assert isinstance(document, Manifest)
                return next(each for each in (document.config, *document.layers) if each.digest == digest)
        return None

    async def _begin(self, upstream: Upstream, path: str, repository: str, blob: Descriptor) -> _Fetching:
        """The fetching of a blob, begun when nobody does it yet."""
        async with self._locks(blob.digest):
            if (known := self._fetching.get(blob.digest)) is not None:
                return known
            upload = await self._store.start_upload(repository)
            fetching = self._fetching[blob.digest] = _Fetching(size=blob.size, path=upload.path)
        self._background.spawn(
            self._fetch(upstream, path, blob, upload, fetching), name=f"blob {blob.digest} of {repository}"
        )
        return fetching

    async def _fetch(
        self, upstream: Upstream, path: str, blob: Descriptor, upload: FolderUpload, fetching: _Fetching
    ) -> None:
        def received(_: int) -> None:
            """Counted as it is written."""

        try:
            async with self._open(upstream, path) as remote:
                sink = _Sink(upload, fetching)
                await fetch(Source(remote), blob, sink, received=received, pausing=received)
            await upload.commit(blob.digest)
            fetching.done = True
        except WherryError as exc:
            log.warning("blob %s cannot be brought from %s: %s", blob.digest, upstream.name, exc.message)
            fetching.error = exc
        except BaseException:
            fetching.error = Failed("the registry stops")
            raise
        finally:
            await upload.abort()
            self._fetching.pop(blob.digest, None)
            fetching.tell()


@dataclass(slots=True)
class _Sink:
    """Where `fetch` writes: the upload, with those told who follow it."""

    upload: FolderUpload
    fetching: _Fetching

    @property
    def offset(self) -> int:
        return self.upload.offset

    async def write(self, data: bytes | bytearray) -> None:
        await self.upload.write(bytes(data))
        self.fetching.offset = self.upload.offset
        self.fetching.tell()

    async def restart(self) -> None:
        await self.upload.restart()
        self.fetching.offset = 0


async def _digest_of(remote: Repository, name: str) -> str:
    """What the upstream's tag names now; "" when it does not say."""
    async with remote.request("HEAD", f"manifests/{name}", headers={"Accept": ", ".join(ACCEPT)}) as response:
        return response.headers.get("Docker-Content-Digest", "")


async def _wait(fetching: _Fetching) -> None:
    while not fetching.done:
        if fetching.error is not None:
            raise Problem(Code.UNAVAILABLE, f"the blob cannot be brought: {fetching.error.message}")
        await fetching.moved.wait()


async def _relay(request: web.Request, fetching: _Fetching, digest: Digest) -> web.StreamResponse:
    """Send the file as it grows, and its last byte when it is known to be right."""
    with await settle(open, fetching.path, "rb", 0) as file:
        while fetching.offset == 0 and not fetching.done and fetching.error is None:
            await fetching.moved.wait()
        if fetching.error is not None:
            raise Problem(Code.UNAVAILABLE, f"the blob cannot be brought: {fetching.error.message}")
        headers = {"Docker-Content-Digest": digest, "Content-Type": "application/octet-stream"}
        answer = web.StreamResponse(headers={**headers, "Content-Length": str(fetching.size)})
        await answer.prepare(request)
        sent = 0
        while sent < fetching.size:
            moved = fetching.moved
            there = fetching.size if fetching.done else min(fetching.offset, fetching.size - 1)
            if sent >= there:
                if fetching.error is not None:
                    raise ConnectionResetError(f"blob {digest} broke off: {fetching.error.message}")
                await moved.wait()
                continue
            data = await settle(file.read, min(CHUNK, there - sent))
            await answer.write(data)
            sent += len(data)
        await answer.write_eof()
    return answer
