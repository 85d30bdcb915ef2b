"""Policies put together: from a registry's configuration to the server's hooks, and what runs beside it.

    auth, quota, read-only, upstreams, webhooks -> Hooks      auth.tokens -> /token
    retention, gc, webhooks -> tasks                          metrics -> /metrics      page -> /

`reload` follows a changed configuration: rules, quota, read-only mode, retention. The rest is read at the start.
"""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
from aiohttp import web

from wherry.aio import Background, settle
from wherry.distribution.config import RegistryConfig
from wherry.errors import InvalidParameter, WherryError
from wherry.registry.access.guard import Guard
from wherry.registry.access.passwords import Passwords
from wherry.registry.access.tokens import Tokens, load_key
from wherry.registry.cache.upstream import Upstreams, make
from wherry.registry.config import Config, TLSConfig
from wherry.registry.errors import Problem
from wherry.registry.folder import FolderStore
from wherry.registry.hooks import Access, Happening, Hooks, allow
from wherry.registry.store import RegistryStore
from wherry.registry.telling.metrics import Family, Metrics, gauge
from wherry.registry.telling.notify import Notifier
from wherry.registry.telling.notify import make as make_notifier
from wherry.registry.telling.page import Page, refusing
from wherry.registry.upkeep import collect, retention
from wherry.registry.upkeep.collect import Collected
from wherry.registry.upkeep.quota import Limits

log = logging.getLogger(__name__)

LOOK = 60.0  # seconds between looks at the certificate's files

Collector = Callable[[bool, float], Awaitable[Collected]]  # delete untagged manifests too; grace in seconds


class Policies:
    """Made by `open_policies`."""

    def __init__(self, config: Config, store: RegistryStore, folder: FolderStore, collector: Collector | None) -> None:
        self.config = config
        self.guard: Guard | None = None
        self.upstreams: Upstreams | None = None
        self.notifier: Notifier | None = None
        self.metrics = Metrics()
        self.limits = Limits(store.usage, quota=config.quota, read_only=config.read_only)
        self._store = store
        self._folder = folder
        self._collector = collector or self._collect_folder
        self._tidying = asyncio.Lock()

    def hooks(self) -> Hooks:
        guard, upstreams = self.guard, self.upstreams
        made = Hooks(
            authorise=guard.authorise if guard else allow, before_write=self._before_write, happened=self._happened
        )
        if upstreams is None:
            return made
        return Hooks(
            authorise=self._authorise,
            before_write=self._before_write,
            happened=self._happened,
            before_manifest=upstreams.before_manifest,
            missing_blob=upstreams.missing_blob,
            locate=self._locate,
            tags=upstreams.tags,
        )

    async def _authorise(self, request: web.Request, wanted: Sequence[Access]) -> str:
        actor = await self.guard.authorise(request, wanted) if self.guard else ""
        for each in wanted:
            if each.action in ("push", "delete") and self.upstreams is not None:
                self.upstreams.check_write(each.repository)
        return actor

    async def _locate(self, request: web.Request, repository: str) -> str:
        """A plain name is upstream's only for who may read there: others are told of their own."""
        assert self.upstreams is not None
        place = await self.upstreams.locate(request, repository)
        if self.guard is not None and place != repository and "ns" not in request.query:
            try:
                await self.guard.authorise(request, [Access(place, "pull", repository)])
            except Problem:
                return repository
        return place

    async def _before_write(self, repository: str, size: int) -> None:
        await self.limits.before_write(repository, size)

    def _happened(self, happening: Happening) -> None:
        if happening.action != "pull":
            self.limits.forget()
        self.metrics.happened(happening)
        if self.notifier is not None:
            self.notifier.happened(happening)

    def add_to(self, app: web.Application, hooks: Hooks) -> None:
        """The paths outside of /v2/, and the measuring of all."""
        if self.guard is not None and self.guard.issues_tokens:
            add_token_endpoint(app, self.guard)
        if self.upstreams is not None:
            app.on_response_prepare.append(self.upstreams.mark_stale)
        if self.config.page:
            Page(self._store, hooks).add_to(app)
        if self.config.metrics:

            async def get(request: web.Request) -> web.StreamResponse:
                await hooks.authorise(request, [Access("", "*")])
                return await self.metrics.get(request)

            self.metrics.look_at(self._look)
            app.middlewares.append(self.metrics.measure)
            app.router.add_get("/metrics", refusing(get))

    async def _look(self) -> list[Family]:
        """What is a state and not a count."""
        found = [
            gauge("storage_bytes", "Bytes of all blobs, each counted once.", await self._store.usage("")),
            gauge("uploads_open", "Uploads that were begun and not ended.", await self._folder.count_uploads()),
        ]
        if self.notifier is not None:
            found += self.notifier.families()
        if self.upstreams is not None:
            found += self.upstreams.families()
        return found

    def reload(self, config: Config) -> None:
        """Follow `config`, which was checked."""
        if self.guard is not None and config.auth is not None:
            self.guard.configure(config.auth)
        self.limits.configure(quota=config.quota, read_only=config.read_only)
        self.config = config

    # --- tidying ------------------------------------------------------------------------------------------------------

    async def collect(self, *, delete_untagged: bool, grace: float, dry_run: bool) -> Collected:
        """A garbage collection now."""
        async with self._tidying:
            if dry_run:
                return collect.preview(self._folder, delete_untagged=delete_untagged, grace=grace)
            await self._folder.expire_uploads()
            found = await self._collector(delete_untagged, grace)
            self.limits.forget()
            return found

    async def _collect_folder(self, delete_untagged: bool, grace: float) -> Collected:
        return await collect.collect(self._folder, delete_untagged=delete_untagged, grace=grace)

    async def retain(self, *, dry_run: bool) -> list[retention.Doomed]:
        """The retention rules now."""
        async with self._tidying:
            gone = await retention.retain(self._store, self.config.retention, dry_run=dry_run)
        for each in () if dry_run else gone:
            self._happened(Happening(action="delete", repository=each.repository, tag=each.tag, actor="retention"))
        return gone

    async def tidy(self) -> None:
        """For ever: retention and garbage collection at the configured interval."""
        while True:
            await asyncio.sleep(self.config.gc.interval)
            try:
                gone = await self.retain(dry_run=False)
                settings = self.config.gc
                found = await self.collect(
                    delete_untagged=settings.delete_untagged, grace=settings.grace, dry_run=False
                )
            except WherryError as exc:
                log.error("tidying the registry failed: %s", exc.message)
                continue
            log.info("%d tags had their time; %d blobs deleted, %d bytes free", len(gone), found.files, found.bytes)


async def open_policies(
    config: Config,
    store: RegistryStore,
    folder: FolderStore,
    background: Background,
    *,
    collector: Collector | None = None,
) -> Policies:
    """Read what the configuration names: passwords, the key of tokens, upstreams' credentials. InvalidParameter."""
    made = Policies(config, store, folder, collector)
    if config.auth is not None:
        passwords = await settle(Passwords, Path(config.auth.htpasswd))
        tokens = None
        if config.auth.tokens:
            key = await settle(load_key, Path(config.root) / "token.key")
            tokens = Tokens(key, service=config.name or "wherry", life=config.auth.token_life)
        made.guard = Guard(config.auth, passwords, tokens)
    if config.upstreams:
        registry = RegistryConfig()
        upstreams = {name: await settle(make, name, each, registry) for name, each in config.upstreams.items()}
        default = next((name for name, each in config.upstreams.items() if each.default), "")
        made.upstreams = Upstreams(upstreams, folder, background, default=default, served=store)
    if config.webhooks:
        made.notifier = await settle(lambda: make_notifier(config.webhooks, host=_base(config)))
        background.spawn(made.notifier.deliver(), name="webhooks of the registry")
    background.spawn(made.tidy(), name="retention and garbage collection of the registry")
    return made


def add_token_endpoint(app: web.Application, guard: Guard) -> None:
    """`/token`, with the registry's own errors."""
    app.router.add_get("/token", refusing(guard.get_token))
    app.router.add_post("/token", refusing(guard.post_token))


def _base(config: Config) -> str:
    """How clients reach the registry, as far as is known."""
    if config.auth is not None and config.auth.external_url:
        return config.auth.external_url.rstrip("/")
    return f"http{'s' if config.tls else ''}://{config.name or config.listen[0]}"


def server_context(config: TLSConfig) -> ssl.SSLContext:
    """InvalidParameter naming the file that cannot be used (blocking)."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(config.cert, config.key)
        if config.client_ca:
            context.load_verify_locations(config.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as exc:
        raise InvalidParameter(f"tls: cannot use {config.cert} with {config.key}: {exc}") from exc
    return context


async def follow_certificate(context: ssl.SSLContext, config: TLSConfig, *, look: float = LOOK) -> None:
    """For ever: new connections get the new certificate when its files change. `look`: seconds between looks."""

    def stamp() -> tuple[int, ...]:
        return tuple(Path(name).stat().st_mtime_ns for name in (config.cert, config.key))

    seen = await settle(stamp)
    while True:
        await asyncio.sleep(look)
        try:
            if (now := await settle(stamp)) == seen:
                continue
            fresh = await settle(server_context, config)
        except (OSError, InvalidParameter) as exc:
            log.error("the certificate %s cannot be read again: %s", config.cert, exc)
            continue
        context.sni_callback = _instead(fresh)  # not loaded into `context`: handshakes under way would see half of it
        seen = now
        log.info("the certificate %s was read again", config.cert)


def _instead(fresh: ssl.SSLContext) -> Callable[[ssl.SSLObject, str, ssl.SSLContext], None]:
    def choose(handshake: ssl.SSLObject, name: str, context: ssl.SSLContext) -> None:
        handshake.context = fresh

    return choose


def encode(found: Collected | list[retention.Doomed]) -> bytes:
    """As the admin socket and `--json` give them."""
    return msgspec.json.encode(found)
