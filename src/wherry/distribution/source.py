"""A repository to pull from: its endpoints tried in order, documents verified, blobs streamed.

The first endpoint that answers a ping is used; a mirror that cannot serve what is asked for is passed over. An https
endpoint that answered is never followed by http: credentials and images stay on the better channel.
"""

import logging
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import parse_qs, urlsplit

import aiohttp
import msgspec

from wherry.digest import Digest, is_digest, of
from wherry.distribution.config import Endpoint, RegistryConfig, endpoints
from wherry.distribution.endpoint import Connection, connect, read_limited
from wherry.distribution.errors import Refused, Unreachable, mismatch
from wherry.errors import Failed, WherryError
from wherry.reference import Reference
from wherry.spec.distribution import Auth, TagList
from wherry.spec.image import ACCEPT, DOCKER_SCHEMA1, MAX_DOCUMENT, Descriptor, Raw

log = logging.getLogger(__name__)

MAX_TAGS = 100_000  # of one repository, with all pages
PAGE = 1000  # tags asked for at a time
MAX_PAGE = 8 << 20  # bytes of one page of tags
_NEXT = re.compile(r"<([^<>]*)>\s*;\s*rel=\"?next\"?")


class Source:
    """Made by `open_source`; valid inside that block."""

    def __init__(self, config: RegistryConfig, reference: Reference, auth: Auth, undo: AsyncExitStack) -> None:
        self._config = config
        self._path = reference.path
        self._auth = auth
        self._undo = undo
        self._scope = f"repository:{reference.path}:pull"
        self._waiting: list[Endpoint] = []
        self._connection: Connection | None = None

    async def start(self, choices: Sequence[Endpoint]) -> None:
        self._waiting = list(choices)
        await self._next(None)

    async def _next(self, cause: WherryError | None) -> None:
        """Move to the next endpoint that answers; raises the first's error when none does."""
        while self._waiting:
            endpoint = self._waiting.pop(0)
            connection = await self._undo.enter_async_context(connect(self._config, endpoint, self._auth))
            try:
                await connection.ping()
            except (Unreachable, Refused) as exc:
                log.debug("registry endpoint %s is passed over: %s", endpoint.base, exc)
                cause = exc
                continue
            if not endpoint.mirror:
                self._waiting.clear()
            self._connection = connection
            return
        raise cause or Failed("no registry endpoint to ask")

    def _here(self) -> Connection:
        assert self._connection is not None
        return self._connection

    async def manifest(self, name: str) -> Raw:
        """The manifest or index called `name` (tag or digest), verified."""
        while True:
            here = self._here()
            try:
                return await self._manifest(here, name)
            except WherryError as exc:
                if not here.endpoint.mirror:
                    raise
                await self._next(exc)

    async def _manifest(self, here: Connection, name: str) -> Raw:
        accept = {"Accept": ", ".join((*ACCEPT, *sorted(DOCKER_SCHEMA1)))}  # schema 1 too: to be refused in words
        path = f"/v2/{self._path}/manifests/{name}"
        async with here.request("GET", path, scope=self._scope, headers=accept) as response:
            data = await read_limited(response, MAX_DOCUMENT, f"manifest {name} of {self._path}")
            said = response.headers.get("Docker-Content-Digest", "")
            media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
        found = of(data)
        for wanted in (name, said):
            if is_digest(wanted) and wanted != found:
                raise mismatch("manifest", wanted, found)
        return Raw(data, media_type, found)

    async def document(self, descriptor: Descriptor) -> bytes:
        """A small blob (an image config), verified."""
        if descriptor.size > MAX_DOCUMENT:
            raise Failed(f"blob {descriptor.digest} is {descriptor.size} bytes long; the limit is {MAX_DOCUMENT}")
        async with self.blob(descriptor.digest) as (response, _):
            data = await read_limited(response, MAX_DOCUMENT, f"blob {descriptor.digest}")
        if of(data) != descriptor.digest:
            raise mismatch("blob", descriptor.digest, of(data))
        if len(data) != descriptor.size:
            raise Failed(f"blob {descriptor.digest} is {len(data)} bytes long, the manifest says {descriptor.size}")
        return data

    @asynccontextmanager
    async def blob(self, digest: Digest, *, offset: int = 0) -> AsyncIterator[tuple[aiohttp.ClientResponse, int]]:
        """An open answer with the blob's bytes, and where they really begin: 0 when the registry ignores ranges."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        path = f"/v2/{self._path}/blobs/{digest}"
        async with self._here().request("GET", path, scope=self._scope, headers=headers) as response:
            yield response, _start(response, offset)

    async def tags(self) -> list[str]:
        """All tags, in the registry's order."""
        found: list[str] = []
        path = f"/v2/{self._path}/tags/list?n={PAGE}"
        while path:
            async with self._here().request("GET", path, scope=self._scope) as response:
                raw = await read_limited(response, MAX_PAGE, f"list of tags of {self._path}")
                link = _NEXT.search(response.headers.get("Link", ""))
            try:
                found += msgspec.json.decode(raw, type=TagList).tags or []
            except msgspec.MsgspecError as exc:
                raise Failed(f"list of tags of {self._path} cannot be read: {exc}") from exc
            if len(found) > MAX_TAGS:
                raise Failed(f"repository {self._path} has more than {MAX_TAGS} tags")
            path = _page(link[1], path) if link else ""
        return found


def _start(response: aiohttp.ClientResponse, offset: int) -> int:
    if response.status != 206:
        return 0
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    begin = rest.partition("-")[0]
    if unit != "bytes" or not begin.isdigit() or int(begin) != offset:
        raise Failed(f"registry answered a range of bytes from {offset} with {rest[:100]!r}")
    return offset


def _page(link: str, before: str) -> str:
    """The path of the next page; a page that does not move on ends the list."""
    parts = urlsplit(link)
    last = parse_qs(parts.query).get("last")
    base = before.partition("?")[0]
    following = f"{base}?{parts.query}"
    return following if last and following != before else ""


@asynccontextmanager
async def open_source(config: RegistryConfig, reference: Reference, auth: Auth) -> AsyncIterator[Source]:
    """Find a registry that serves `reference`'s domain. Raises Unreachable or Refused in Docker's words."""
    async with AsyncExitStack() as undo:
        source = Source(config, reference, auth, undo)
        await source.start(await endpoints(config, reference.domain))
        yield source
