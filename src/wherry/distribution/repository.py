"""A repository at the registry that answers for it: what pulls and pushes are made of.

The first endpoint that answers a ping is used; a mirror that cannot serve what is asked for is passed over for good. An
https endpoint that answered is never followed by http: credentials and images stay on the better channel.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar
from urllib.parse import quote, urlsplit

import aiohttp

from wherry.distribution.config import Endpoint, RegistryConfig, endpoints, is_insecure
from wherry.distribution.endpoint import Body, Connection, connect
from wherry.distribution.errors import Refused, Unreachable
from wherry.errors import Failed, WherryError
from wherry.reference import Reference
from wherry.spec.distribution import ANONYMOUS, Auth

PAUSES = (0.3, 1.0)  # seconds, give or take a half, before a short question is asked again

T = TypeVar("T")

log = logging.getLogger(__name__)


async def insist(ask: Callable[[], Awaitable[T]]) -> T:
    """What `ask` answers; it is asked again when the connection breaks off. For questions that may be repeated."""
    for pause in PAUSES:
        try:
            return await ask()
        except Unreachable as exc:
            if not exc.broken:
                raise
            log.debug("asking again: %s", exc.message)
        await asyncio.sleep(pause * random.uniform(0.5, 1.5))
    return await ask()


class Repository:
    """Made by `open_repository`; valid inside that block. Used by several tasks at once."""

    def __init__(
        self, config: RegistryConfig, reference: Reference, auth: Auth, undo: AsyncExitStack, *, push: bool
    ) -> None:
        self.path = reference.path
        self.domain = reference.domain
        self._config = config
        self._auth = auth
        self._undo = undo
        self._actions = "pull,push" if push else "pull"
        self._waiting: list[Endpoint] = []
        self._connection: Connection | None = None
        self._moving = asyncio.Lock()

    @property
    def connection(self) -> Connection:
        """To the endpoint in use; an answer's `location` is resolved by it."""
        assert self._connection is not None
        return self._connection

    async def start(self, choices: Sequence[Endpoint]) -> None:
        self._waiting = list(choices)
        await self._next(None)

    async def leave(self, connection: Connection, cause: WherryError) -> None:
        """`connection` cannot serve what is wanted: use the next endpoint from now on.

        Raises `cause` when it is not a mirror, or when no other endpoint answers. When somebody else has moved on
        meanwhile nothing happens.
        """
        async with self._moving:
            if connection is not self._connection:
                return
            if not connection.endpoint.mirror:
                raise cause
            log.info("mirror %s is passed over: %s", connection.endpoint.base, cause.message)
            await self._next(cause)

    async def _next(self, cause: WherryError | None) -> None:
        """Move to the next endpoint that answers; raises the last one's error when none does."""
        while self._waiting:
            endpoint = self._waiting.pop(0)
            connection = await self._undo.enter_async_context(connect(self._config, endpoint, self._auth))
            try:
                await insist(connection.ping)
            except (Unreachable, Refused) as exc:
                log.debug("registry endpoint %s is passed over: %s", endpoint.base, exc)
                cause = exc
                continue
            if not endpoint.mirror:
                self._waiting.clear()
            self._connection = connection
            return
        raise cause or Failed("no registry endpoint to ask")

    @asynccontextmanager
    async def request(
        self,
        method: str,
        what: str,
        *,
        connection: Connection | None = None,
        scopes: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
        data: Body | bytes | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """`Connection.request` for `what`: below this repository (`blobs/uploads/`), or a URL the registry gave.

        `scopes` are wanted besides this repository's own (`repository:other:pull`, for a mount).
        """
        here = connection or self.connection
        endpoint = here.endpoint
        path = endpoint.prefix + self.path
        if "://" not in what:
            what = f"/v2/{path}/{what}"
            if endpoint.namespace:
                what += f"{'&' if '?' in what else '?'}ns={quote(endpoint.namespace, safe=':')}"
        wanted = [f"repository:{path}:{self._actions}", *scopes]
        async with here.request(method, what, scope=wanted, headers=headers, data=data) as response:
            yield response

    @asynccontextmanager
    async def elsewhere(self, url: str) -> AsyncIterator[Connection]:
        """A connection without credentials to the host of `url`, which a manifest names. Raises Failed for no URL."""
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
        except ValueError:
            usable = False
        if not usable:
            raise Failed(f"the manifest names {url[:200]!r}, which is neither an http nor an https URL")
        verify = not await is_insecure(self._config, parts.netloc)
        endpoint = Endpoint(base=f"{parts.scheme}://{parts.netloc}", host=parts.netloc, verify=verify)
        async with connect(self._config, endpoint, ANONYMOUS) as connection:
            yield connection


@asynccontextmanager
async def open_repository(
    config: RegistryConfig, reference: Reference, auth: Auth, *, push: bool = False
) -> AsyncIterator[Repository]:
    """Find a registry that serves `reference`'s domain; to `push`, the registry itself and none of its mirrors.

    Raises Unreachable or Refused in Docker's words.
    """
    async with AsyncExitStack() as undo:
        repository = Repository(config, reference, auth, undo, push=push)
        await repository.start(await endpoints(config, reference.domain, mirrors=not push))
        yield repository
