"""search: repositories by a word, as `docker search` asks for them.

alpine              docker.io, by the search of its index
host:port/alpine    that registry, by the same protocol (`/v1/search`); one without it, by its `/v2/_catalog`
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlencode

import msgspec

from wherry.distribution.config import Endpoint, RegistryConfig, endpoints
from wherry.distribution.endpoint import Connection, connect, read_limited
from wherry.distribution.errors import Refused, Unreachable
from wherry.errors import Failed, InvalidParameter
from wherry.reference import DEFAULT_DOMAIN, LEGACY_DOMAIN, OFFICIAL
from wherry.spec.distribution import Auth, Catalog, SearchAnswer, SearchResult

DEFAULT_LIMIT = 25
MAX_LIMIT = 100
MAX_ANSWER = 4 << 20  # bytes of one answer
CATALOG_PAGES = 50  # of PAGE names: how far a catalog is looked through
PAGE = 1000
_NEXT = re.compile(r"<([^<>]*)>\s*;\s*rel=\"?next\"?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Which results count."""

    limit: int = DEFAULT_LIMIT
    official: bool | None = None  # None: both
    stars: int = 0  # at least

    def takes(self, result: SearchResult) -> bool:
        return (self.official is None or result.is_official == self.official) and result.star_count >= self.stars


async def search(config: RegistryConfig, term: str, wish: Wish, auth: Auth) -> list[SearchResult]:
    """In the order of the registry. Raises InvalidParameter, Unreachable, Failed (Refused among it)."""
    if not 1 <= wish.limit <= MAX_LIMIT:
        raise InvalidParameter(f"limit {wish.limit} is outside the range of [1, {MAX_LIMIT}]")
    domain, words = _split(term)
    first: Unreachable | None = None
    for endpoint in await _endpoints(config, domain):
        try:
            async with connect(config, endpoint, auth) as connection:
                found = await _ask(connection, words, wish.limit)
                return [result for result in found if wish.takes(result)]
        except Unreachable as exc:
            first = first or exc
    raise first or Failed(f"no registry at {domain}")


def _split(term: str) -> tuple[str, str]:
    """Domain and what is looked for. Raises InvalidParameter in Docker's words."""
    if not term:
        raise InvalidParameter("Search term is empty")
    if "://" in term:
        raise InvalidParameter(f"invalid repository name: repository name ({term[:200]}) should not have a scheme")
    first, slash, rest = term.partition("/")
    if not slash or ("." not in first and ":" not in first and first != "localhost"):
        return DEFAULT_DOMAIN, term.removeprefix(OFFICIAL)
    if any(char.isspace() or char in "@?#\\" for char in first):
        raise InvalidParameter(f"invalid registry address: {first[:200]!r}")
    if first in (DEFAULT_DOMAIN, LEGACY_DOMAIN):
        return DEFAULT_DOMAIN, rest.removeprefix(OFFICIAL)
    return first, rest


async def _endpoints(config: RegistryConfig, domain: str) -> Sequence[Endpoint]:
    if domain == DEFAULT_DOMAIN:
        return [Endpoint(base=f"https://{LEGACY_DOMAIN}", host=LEGACY_DOMAIN)]
    return await endpoints(config, domain, mirrors=False)


async def _ask(connection: Connection, words: str, limit: int) -> Sequence[SearchResult]:
    try:
        return (await _search_v1(connection, words, limit)).results
    except Refused as exc:
        if exc.status != 404:
            raise
    try:
        await connection.ping()  # what authorization the newer protocol wants
        return await _search_catalog(connection, words, limit)
    except Refused as exc:
        raise Failed(
            f"registry {connection.endpoint.host} cannot be searched: it has neither a search (/v1/search) nor a "
            f"catalog for us (/v2/_catalog): {exc.message}"
        ) from exc


async def _search_v1(connection: Connection, words: str, limit: int) -> SearchAnswer:
    query = urlencode({"q": words, "n": limit}, quote_via=quote)
    async with connection.request("GET", f"/v1/search?{query}") as response:
        raw = await read_limited(response, MAX_ANSWER, f"search result of {connection.endpoint.host}")
    try:
        return msgspec.json.decode(raw, type=SearchAnswer)
    except msgspec.MsgspecError as exc:
        raise Failed(f"error decoding registry search results: {exc}") from exc


async def _search_catalog(connection: Connection, words: str, limit: int) -> list[SearchResult]:
    found: list[str] = []
    path = f"/v2/_catalog?n={PAGE}"
    for _ in range(CATALOG_PAGES):
        async with connection.request("GET", path, scope="registry:catalog:*") as response:
            raw = await read_limited(response, MAX_ANSWER, f"catalog of {connection.endpoint.host}")
            link = _NEXT.search(response.headers.get("Link", ""))
        try:
            names = msgspec.json.decode(raw, type=Catalog).repositories or []
        except msgspec.MsgspecError as exc:
            raise Failed(f"catalog of {connection.endpoint.host} cannot be read: {exc}") from exc
        found += [name for name in names if words.lower() in name]
        if link is None or not names or len(found) >= limit:
            break
        path = f"/v2/_catalog?n={PAGE}&last={quote(names[-1], safe='')}"
    return [SearchResult(name=name) for name in found[:limit]]
