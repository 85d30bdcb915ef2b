"""What a pull reads from a repository: documents verified, blobs streamed, tags listed."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TypeVar
from urllib.parse import parse_qs, urlsplit

import aiohttp
import msgspec

from wherry.digest import Digest, is_digest, of
from wherry.distribution.config import RegistryConfig
from wherry.distribution.endpoint import Connection, read_limited
from wherry.distribution.errors import BadRange, mismatch
from wherry.distribution.repository import Repository, insist, open_repository
from wherry.errors import Failed, WherryError
from wherry.reference import Reference
from wherry.spec.distribution import Auth, TagList
from wherry.spec.image import ACCEPT, DOCKER_SCHEMA1, MAX_DOCUMENT, Descriptor, Raw

MAX_TAGS = 100_000  # of one repository, with all pages
PAGE = 1000  # tags asked for at a time
MAX_PAGE = 8 << 20  # bytes of one page of tags
_RANGE = re.compile(r"bytes (\d{1,20})-\d{1,20}/(\d{1,20}|\*)\Z")
_NEXT = re.compile(r"<([^<>]*)>\s*;\s*rel=\"?next\"?")

T = TypeVar("T")


class Source:
    """Made by `open_source`; valid inside that block."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._path = repository.path

    async def _anywhere(self, ask: Callable[[Connection], Awaitable[T]]) -> T:
        """What `ask` answers at the first endpoint, from the one in use on, where it does not fail."""
        while True:
            here = self._repository.connection
            try:
                return await insist(partial(ask, here))
            except WherryError as exc:
                await self._repository.leave(here, exc)

    async def manifest(self, name: str) -> Raw:
        """The manifest or index called `name` (tag or digest), verified."""
        return await self._anywhere(lambda here: self._manifest(here, name))

    async def _manifest(self, here: Connection, name: str) -> Raw:
        accept = {"Accept": ", ".join((*ACCEPT, *sorted(DOCKER_SCHEMA1)))}  # schema 1 too: to be refused in words
        async with self._repository.request("GET", f"manifests/{name}", connection=here, headers=accept) as response:
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
        return await self._anywhere(lambda here: self._document(here, descriptor))

    async def _document(self, here: Connection, descriptor: Descriptor) -> bytes:
        async with self._repository.request("GET", f"blobs/{descriptor.digest}", connection=here) as response:
            data = await read_limited(response, MAX_DOCUMENT, f"blob {descriptor.digest}")
        if of(data) != descriptor.digest:
            raise mismatch("blob", descriptor.digest, of(data))
        if len(data) != descriptor.size:
            raise Failed(f"blob {descriptor.digest} is {len(data)} bytes long, the manifest says {descriptor.size}")
        return data

    @asynccontextmanager
    async def blob(
        self, descriptor: Descriptor, *, offset: int = 0, url: str = ""
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, int]]:
        """An open answer with the blob's bytes, and where they really begin: 0 when the server ignores ranges.

        From the registry, or from `url`, one of the descriptor's own. Raises Refused, Unreachable, BadRange.
        """
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        async with AsyncExitStack() as undo:
            if url:
                other = await undo.enter_async_context(self._repository.elsewhere(url))
                answer = other.request("GET", url, headers=headers)
            else:
                answer = self._repository.request("GET", f"blobs/{descriptor.digest}", headers=headers)
            response = await undo.enter_async_context(answer)
            yield response, _start(response, offset, descriptor.size)

    async def held(self, name: str) -> Digest | None:
        """The digest of what `name` is now, without its bytes (rate limits do not count that); None: ask for them."""
        accept = {"Accept": ", ".join(ACCEPT)}
        try:
            async with self._repository.request("HEAD", f"manifests/{name}", headers=accept) as response:
                said = response.headers.get("Docker-Content-Digest", "")
        except WherryError:
            return None
        return Digest(said) if is_digest(said) else None

    @property
    def connection(self) -> Connection:
        """The one in use, to be told of in `leave`."""
        return self._repository.connection

    async def leave(self, connection: Connection, cause: WherryError) -> None:
        """Pass over the mirror behind `connection`; raises `cause` when it is the registry itself."""
        await self._repository.leave(connection, cause)

    async def tags(self) -> list[str]:
        """All tags, in the registry's order."""
        return await self._anywhere(self._tags)

    async def _tags(self, here: Connection) -> list[str]:
        found: list[str] = []
        what = f"tags/list?n={PAGE}"
        while what:
            async with self._repository.request("GET", what, connection=here) as response:
                raw = await read_limited(response, MAX_PAGE, f"list of tags of {self._path}")
                link = _NEXT.search(response.headers.get("Link", ""))
            try:
                found += msgspec.json.decode(raw, type=TagList).tags or []
            except msgspec.MsgspecError as exc:
                raise Failed(f"list of tags of {self._path} cannot be read: {exc}") from exc
            if len(found) > MAX_TAGS:
                raise Failed(f"repository {self._path} has more than {MAX_TAGS} tags")
            what = _page(link[1], what) if link else ""
        return found


def _start(response: aiohttp.ClientResponse, offset: int, size: int) -> int:
    if response.status != 206:
        return 0
    said = response.headers.get("Content-Range", "")
    match = _RANGE.match(said)
    if match is None or int(match[1]) != offset or match[2] not in ("*", str(size)):
        raise BadRange(f"registry answered a request for bytes {offset} to {size} with {said[:100]!r}")
    return offset


def _page(link: str, before: str) -> str:
    """The path of the next page; a page that does not move on ends the list."""
    try:
        parts = urlsplit(link)
    except ValueError:
        return ""
    last = parse_qs(parts.query).get("last")
    base = before.partition("?")[0]
    following = f"{base}?{parts.query}"
    return following if last and following != before else ""


@asynccontextmanager
async def open_source(config: RegistryConfig, reference: Reference, auth: Auth) -> AsyncIterator[Source]:
    """Find a registry that serves `reference`'s domain. Raises Unreachable or Refused in Docker's words."""
    async with open_repository(config, reference, auth) as repository:
        yield Source(repository)
