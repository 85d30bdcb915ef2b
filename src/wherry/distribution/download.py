"""Downloading what a URL names, as a stream: what `docker import http://…` and builds read.

Any size; redirects are followed as browsers do; certificates and proxies are those of the registries' configuration.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urljoin, urlsplit, urlunsplit

import aiohttp
from yarl import URL

from wherry.aio import settle
from wherry.distribution.config import Endpoint, RegistryConfig, tls
from wherry.distribution.endpoint import CONNECT_TIME, IDLE_TIME, MAX_REDIRECTS, NETWORK_ERRORS, REDIRECTS, stream
from wherry.distribution.errors import SHOWN, unreachable
from wherry.distribution.proxy import masked
from wherry.errors import Failed, Forbidden, InvalidParameter, NotFound, Unauthorized, WherryError

_KINDS: dict[int, type[WherryError]] = {401: Unauthorized, 403: Forbidden, 404: NotFound}


@dataclass(frozen=True, slots=True)
class Download:
    url: str  # as asked for, to be shown
    size: int | None  # bytes, when the server says
    chunks: AsyncIterator[bytes]


def complete(url: str) -> str:
    """`url` with `http://` where there is no scheme, as Docker takes it. Raises InvalidParameter."""
    if "://" not in url:
        url = f"http://{url}"
    try:
        parts = urlsplit(url)
        good = bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise InvalidParameter(f"invalid URL {masked(url)[:200]!r}: want http(s)://host[:port]/path")
    if parts.scheme not in ("http", "https"):
        raise InvalidParameter(f'Get "{masked(url)[:200]}": unsupported protocol scheme "{parts.scheme}"')
    return urlunsplit(parts._replace(fragment=""))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered, whatever its status, but for redirects, which were followed."""

    status: int
    headers: Mapping[str, str]  # in any case of letters
    url: str  # where it came from in the end
    size: int | None  # bytes, when the server says
    chunks: AsyncIterator[bytes]


@asynccontextmanager
async def open_download(config: RegistryConfig, url: str) -> AsyncIterator[Download]:
    """Ask for `url` (see `complete`); the body is read by the caller.

    Raises Unreachable, or what fits the status of a refusal: NotFound, Unauthorized, Forbidden, InvalidParameter,
    Failed.
    """
    shown = masked(url)
    async with _followed(config, "GET", url, {}) as response:
        if response.status >= 400:
            raise await _refusal(shown, response)
        if response.status != 200:
            raise Failed(f"GET {shown}: the server answered {_phrase(response.status)} instead of a file")
        yield Download(shown, response.content_length, stream(response))


@asynccontextmanager
async def ask(
    config: RegistryConfig, url: str, *, method: str = "GET", headers: Mapping[str, str] | None = None
) -> AsyncIterator[Answer]:
    """Ask for `url` (see `complete`) with `headers`; Authorization goes to the first host only.

    Raises Unreachable; Failed for too many redirects.
    """
    async with _followed(config, method, url, headers or {}) as response:
        yield Answer(response.status, response.headers, str(response.url), response.content_length, stream(response))


@asynccontextmanager
async def _followed(
    config: RegistryConfig, method: str, url: str, headers: Mapping[str, str]
) -> AsyncIterator[aiohttp.ClientResponse]:
    shown = masked(url)
    origin = urlsplit(url)[:2]
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIME, sock_read=IDLE_TIME)
    async with aiohttp.ClientSession(
        timeout=timeout,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": config.user_agent, "Accept-Encoding": "identity"},
    ) as session:
        for _ in range(MAX_REDIRECTS + 1):
            if urlsplit(url)[:2] != origin:
                headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
            async with await _get(config, session, method, url, headers) as response:
                if response.status in REDIRECTS and "Location" in response.headers:
                    url = complete(urljoin(url, response.headers["Location"]))
                    continue
                yield response
                return
    raise Failed(f'{method.capitalize()} "{shown}": stopped after {MAX_REDIRECTS} redirects')


async def _get(
    config: RegistryConfig, session: aiohttp.ClientSession, method: str, url: str, headers: Mapping[str, str]
) -> aiohttp.ClientResponse:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    endpoint = Endpoint(base=f"{parts.scheme}://{host}", host=host)
    context = await settle(tls, config, endpoint) if parts.scheme == "https" else True
    try:
        return await session.request(
            method,
            URL(url),
            headers=headers,
            allow_redirects=False,
            proxy=config.proxy(endpoint, url),
            ssl=context if context else True,
        )
    except NETWORK_ERRORS as exc:
        raise unreachable(method.capitalize(), masked(url), exc) from exc


async def _refusal(shown: str, response: aiohttp.ClientResponse) -> WherryError:
    text = f"failed to GET {shown} with status {_phrase(response.status)}"
    try:
        body = await response.content.read(SHOWN)
    except NETWORK_ERRORS:
        body = b""
    if said := body.decode(errors="replace").strip():
        text = f"{text}: {said}"
    kind = _KINDS.get(response.status, InvalidParameter if response.status < 500 else Failed)
    return kind(text)


def _phrase(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
