"""Pull-through cache: repositories of other registries, brought when they are asked for and kept.

Upstream `docker.io` appears as the repositories `docker.io/…`; as a mirror (`?ns=docker.io`, as containerd asks), and
with `default` also plain (`library/alpine`, as dockerd's registry-mirrors ask). What is kept is an ordinary repository
of the store that clients cannot write to.

    manifest by tag      kept for `ttl` seconds, then asked for by HEAD; the old one serves while upstream is down
    manifest by digest   never changes
    blob                 goes to the client while it is stored; see `relay`
    list of tags         upstream's; what is kept of them while it is down

A tag or manifest that is in use is marked as pushed anew once a day, so that retention rules by age or number remove
what nobody asks for any more.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from wherry.aio import Background, KeyedLock
from wherry.digest import Digest, is_digest
from wherry.distribution.config import RegistryConfig
from wherry.distribution.errors import Refused, Unreachable
from wherry.distribution.repository import Repository
from wherry.distribution.source import Source
from wherry.errors import InvalidParameter, WherryError
from wherry.reference import DEFAULT_DOMAIN
from wherry.registry import catalog
from wherry.registry.cache.relay import Connections, Downloads, Upstream, relay
from wherry.registry.call import HEADERS
from wherry.registry.errors import Code, Problem, manifest_unknown
from wherry.registry.folder import FolderStore
from wherry.registry.store import RegistryStore
from wherry.registry.telling.metrics import Family, gauge, labelled
from wherry.spec.distribution import ANONYMOUS, Auth
from wherry.spec.image import ACCEPT, Descriptor, Manifest, decode_manifest

log = logging.getLogger(__name__)

NEGATIVE = 30.0  # seconds an upstream's "there is none" is believed
AWAY = 10.0  # seconds an upstream that did not answer is not asked for what is here
MAX_REMEMBERED = 10_000  # tags
ASK_TIME = 60.0  # seconds upstream may take to answer for a manifest …
IMPATIENT = 10.0  # … when there is an older one
TOUCH = 24 * 3600 * 10**9  # ns after which what is used is marked as such again
STALE = web.RequestKey("stale", bool)  # of a request whose answer may be older than upstream's


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


class Upstreams:
    """The hooks `locate`, `before_manifest`, `tags` and `missing_blob`."""

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        store: FolderStore,
        background: Background,
        *,
        default: str = "",
        served: RegistryStore | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`store` keeps what is brought; `served`, when there is more, is what has precedence over `default`."""
        self._upstreams = upstreams
        self._by_prefix = {each.prefix: each for each in upstreams.values()}
        self._default = default
        self._store = store
        self._served: RegistryStore = served or store
        self._clock = clock
        self._locks = KeyedLock()
        self._checked: dict[tuple[str, str], float] = {}  # repository and tag -> when upstream said so
        self._absent: dict[tuple[str, str], float] = {}  # … -> until when it is believed
        self._tags: dict[str, tuple[list[str], float]] = {}  # repository -> upstream's list, until when
        self._away: dict[str, float] = {}  # upstream -> until when
        self._connections = Connections(clock=clock)
        self._downloads = Downloads(store, self._connections, background)
        self._counts = {"hit": 0, "miss": 0, "renewed": 0, "stale": 0}
        background.spawn(self._connections.keep(), name="connections to upstream registries")

    def families(self) -> list[Family]:
        """How the cache does, for the metrics."""
        return [
            labelled("cache_requests_total", "Requests for what upstreams have.", "result", self._counts),
            gauge("cache_downloads", "Blobs on their way from an upstream.", len(self._downloads)),
        ]

    async def locate(self, request: web.Request, repository: str) -> str:
        """Which repository of the store a request is about."""
        upstream = self._upstreams.get(request.query.get("ns", ""))
        if (found := self._of(repository)) is not None:
            return _place(*found)
        if upstream is not None:
            return _place(upstream, repository)
        if self._default and request.method in ("GET", "HEAD") and not await self._is_ours(request, repository):
            return _place(self._upstreams[self._default], repository)
        return repository

    async def _is_ours(self, request: web.Request, repository: str) -> bool:
        """Whether a request by a plain name is about what was, or is being, pushed here."""
        if "/blobs/uploads/" in request.path:
            return True
        try:
            await self._served.tags(repository, after="", limit=1)
        except Problem:  # a first push asks for blobs, too; of upstream's only those are known whose manifest is here
            place = _place(self._upstreams[self._default], repository)
            return "/blobs/" in request.path and self._store.catalog.find(place) is None
        return True

    def check_write(self, repository: str) -> None:
        """DENIED for a repository that is another registry's."""
        if (found := self._of(repository)) is not None:
            name = found[0].name
            raise Problem(Code.DENIED, f"repository {repository} is a copy of one of {name}: push there instead")

    def _of(self, repository: str) -> tuple[Upstream, str] | None:
        """The upstream behind a repository, and what it calls it."""
        for prefix, upstream in self._by_prefix.items():
            if repository.startswith(f"{prefix}/"):
                return upstream, repository.removeprefix(f"{prefix}/")
        return None

    # --- manifests ----------------------------------------------------------------------------------------------------

    async def before_manifest(self, request: web.Request, repository: str, name: str) -> bool:
        if (found := self._of(repository)) is None:
            return False
        upstream, path = found
        async with self._locks((repository, name)):
            known = self._known(repository, name)
            if known is not None and (is_digest(name) or self._is_fresh(upstream, repository, name)):
                self._counts["hit"] += 1
                await self._touch(repository, name, known)
                return False
            if self._absent.get((repository, name), 0.0) > self._clock():
                raise manifest_unknown(repository, name)
            if known is not None and self._away.get(upstream.name, 0.0) > self._clock():
                self._serve_stale(request, repository, name, f"{upstream.name} did not answer a moment ago")
                return False
            try:
                async with asyncio.timeout(ASK_TIME if known is None else IMPATIENT):
                    return await self._renew(upstream, repository, path, name, known)
            except (WherryError, TimeoutError) as exc:
                await self._do_without(exc, request, upstream, repository, name, known)
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

    async def _touch(self, repository: str, name: str, digest: Digest) -> None:
        """Mark as used."""
        now = self._store.now()
        async with self._store.editing(repository):
            here = self._store.catalog.find(repository)
            if here is None:
                return
            if not is_digest(name):
                if name in here.tags and here.tags[name].pushed < now - TOUCH:
                    tag = here.tags[name]
                    await self._store.write(catalog.put_tag(repository, name, digest=tag.digest, pushed=now))
            elif (named := here.manifests.get(digest)) is not None and named.pushed < now - TOUCH:
                await self._store.write(catalog.put_manifest(repository, replace(named, pushed=now)))

    async def _renew(self, upstream: Upstream, repository: str, path: str, name: str, known: Digest | None) -> bool:
        async with self._connections.use(upstream, path) as remote:
            unchanged = known is not None and await _digest_of(remote, name) == known
            raw = None if unchanged else await Source(remote).manifest(name)
        self._away.pop(upstream.name, None)
        self._remember(self._checked, repository, name, self._clock())
        if raw is None:
            self._counts["renewed"] += 1
            if known is not None:
                await self._touch(repository, name, known)
            return False
        self._counts["miss"] += 1
        await self._store.put_manifest(repository, raw, tag=None if is_digest(name) else name, complete=True)
        return True

    async def _do_without(
        self,
        exc: WherryError | TimeoutError,
        request: web.Request,
        upstream: Upstream,
        repository: str,
        name: str,
        known: Digest | None,
    ) -> None:
        """Upstream has no answer, or a bad one: what is here must do, or say what is wrong."""
        why = exc.message if isinstance(exc, WherryError) else "no answer in time"
        if isinstance(exc, Unreachable | TimeoutError):
            self._away[upstream.name] = self._clock() + AWAY
        if isinstance(exc, Refused) and exc.status == 404:
            self._remember(self._absent, repository, name, self._clock() + NEGATIVE)
            if known is not None:
                log.info("%s:%s is gone at %s", repository, name, upstream.name)
                await self._store.delete_tag(repository, name)
            raise manifest_unknown(repository, name) from exc
        if known is not None:
            self._serve_stale(request, repository, name, why)
            return
        self._counts["miss"] += 1
        if isinstance(exc, Refused) and exc.status in (401, 403):
            raise Problem(Code.DENIED, f"{upstream.name} refuses {repository}: {why}") from exc
        if isinstance(exc, Refused) and exc.status == 429:
            wait = {"Retry-After": f"{exc.retry_after:.0f}"} if exc.retry_after is not None else {}
            raise Problem(Code.TOOMANYREQUESTS, f"{upstream.name}: {why}", headers=wait) from exc
        raise Problem(Code.UNAVAILABLE, f"{upstream.name} cannot be asked for {repository}: {why}") from exc

    def _serve_stale(self, request: web.Request, repository: str, name: str, why: str) -> None:
        self._counts["stale"] += 1
        request[STALE] = True
        log.warning("%s:%s is served as it was: %s", repository, name, why)

    async def mark_stale(self, request: web.Request, answer: web.StreamResponse) -> None:
        """Say in the answer's head when it may be older than upstream's: a signal of the application."""
        if STALE in request:
            answer.headers["Warning"] = '110 - "Response is Stale"'

    @staticmethod
    def _remember(memory: dict[tuple[str, str], float], repository: str, name: str, until: float) -> None:
        if len(memory) >= MAX_REMEMBERED:
            memory.pop(next(iter(memory)))
        memory[repository, name] = until

    async def tags(self, request: web.Request, repository: str) -> list[str] | None:
        """Upstream's tags, sorted; None when the store's are to be listed."""
        if (found := self._of(repository)) is None:
            return None
        upstream, path = found
        async with self._locks((repository, "")):
            listed, until = self._tags.get(repository, ([], 0.0))
            if until > self._clock():
                return listed
            try:
                async with asyncio.timeout(ASK_TIME), self._connections.use(upstream, path) as remote:
                    listed = sorted(await Source(remote).tags())
            except (WherryError, TimeoutError) as exc:
                why = exc.message if isinstance(exc, WherryError) else "no answer in time"
                self._serve_stale(request, repository, "", why)
                return None
            if len(self._tags) >= MAX_REMEMBERED // 100:  # lists are long
                self._tags.pop(next(iter(self._tags)))
            self._tags[repository] = listed, self._clock() + upstream.ttl
            return listed

    # --- blobs --------------------------------------------------------------------------------------------------------

    async def missing_blob(
        self, request: web.Request, repository: str, digest: Digest
    ) -> web.StreamResponse | bool | None:
        """An answer; True when the blob is in the store now; None when it is nowhere."""
        if (found := self._of(repository)) is None:
            return None
        upstream, path = found
        descriptor = await self._described(repository, digest)
        if descriptor is None:
            return None
        if request.method == "HEAD":
            head = {**HEADERS, "Content-Length": str(descriptor.size), "Docker-Content-Digest": digest}
            return web.Response(headers=head)
        for holder in await self._store.holders(digest):
            # only from the same upstream, which let nobody name a blob in a manifest that he could not have got there
            if holder.startswith(f"{upstream.prefix}/") and await self._store.mount_blob(repository, digest, holder):
                self._counts["hit"] += 1
                return True
        self._counts["miss"] += 1
        download = await self._downloads.begin(upstream, path, repository, descriptor)
        if "Range" in request.headers:
            await download.wait()
            return True
        try:
            return await relay(request, download, digest)
        except FileNotFoundError:  # it has just ended
            await download.wait()
            return True

    async def _described(self, repository: str, digest: Digest) -> Descriptor | None:
        """The descriptor some manifest of the repository has for it: nothing else is fetched."""
        here = self._store.catalog.find(repository)
        for named in list(here.manifests.values()) if here else ():
            if digest in named.blobs:
                raw = await self._store.manifest(repository, named.digest)
                document = decode_manifest(raw.data, raw.media_type)
                assert isinstance(document, Manifest)
                return next(each for each in (document.config, *document.layers) if each.digest == digest)
        return None


def _place(upstream: Upstream, path: str) -> str:
    """Where a repository of an upstream is kept. Docker Hub's own images have one name here, as there."""
    if upstream.name == DEFAULT_DOMAIN and "/" not in path:
        path = f"library/{path}"
    return f"{upstream.prefix}/{path}"


async def _digest_of(remote: Repository, name: str) -> str:
    """What the upstream's tag names now; "" when it does not say."""
    async with remote.request("HEAD", f"manifests/{name}", headers={"Accept": ", ".join(ACCEPT)}) as response:
        return response.headers.get("Docker-Content-Digest", "")
