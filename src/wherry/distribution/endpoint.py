"""One registry endpoint over HTTP: ping, authorization, redirects, limits.

Answers are never decompressed and redirects never followed by the HTTP library: digests are of the bytes as sent, and
an Authorization header must not reach another host.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urljoin, urlsplit

import aiohttp
from yarl import URL

from wherry.aio import settle
from wherry.distribution.auth import Authorizer, TokenRequest, parse_challenges
from wherry.distribution.config import Endpoint, RegistryConfig, tls
from wherry.distribution.errors import MAX_ERROR, Refused, refused, unreachable
from wherry.errors import Failed
from wherry.spec.distribution import ANONYMOUS, Auth

CONNECT_TIME = 30  # seconds
IDLE_TIME = 60  # seconds without a byte
MAX_REDIRECTS = 10
MAX_TOKEN = 1 << 20  # bytes of a token server's answer
REDIRECTS = frozenset({301, 302, 303, 307, 308})

NETWORK_ERRORS = (aiohttp.ClientError, TimeoutError, OSError, ValueError)


class Connection:
    """An open client to one endpoint with one user's credentials; made by `connect`."""

    def __init__(self, endpoint: Endpoint, session: aiohttp.ClientSession, auth: Auth) -> None:
        self.endpoint = endpoint
        self._session = session
        self._authorizer = Authorizer(ANONYMOUS if endpoint.mirror else auth, plain=endpoint.plain, ask=self._ask_token)

    async def ping(self) -> None:
        """`GET /v2/`: is a registry there, and what authorization does it want. Raises Unreachable or Refused."""
        url = f"{self.endpoint.base}/v2/"
        async with self._send("GET", url, {}) as response:
            if response.status == 401:
                self._authorizer.learn(parse_challenges(response.headers.getall("WWW-Authenticate", [])))
            elif response.status != 200:
                raise await _refusal("GET", url, response)

    @asynccontextmanager
    async def request(
        self, method: str, path: str, *, scope: str, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Ask for `path` (beginning with /v2/) with authorization for `scope`; a second time when a token has expired.

        Yields a response of status 2xx, after redirects; its body is not read yet. Raises Unreachable, Refused.
        """
        url = self.endpoint.base + path
        for attempt in (1, 2):
            wanted = dict(headers or {})
            if (authorization := await self._authorizer.header(scope)) is not None:
                wanted["Authorization"] = authorization
            elif self._authorizer.wants_password:
                said = "Head" if "/manifests/" in path else method.capitalize()  # Docker's client asks so first
                raise Refused(f'{said} "{url}": no basic auth credentials', status=401, code="UNAUTHORIZED")
            async with self._send(method, url, wanted) as response:
                if response.status == 401 and attempt == 1:
                    self._authorizer.forget(scope)
                    self._authorizer.learn(parse_challenges(response.headers.getall("WWW-Authenticate", [])))
                    continue
                if not 200 <= response.status < 300:
                    raise await _refusal(method, url, response)
                yield response
                return

    @asynccontextmanager
    async def _send(self, method: str, url: str, headers: dict[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request, redirects followed; yields the last response with its body not read."""
        origin = _origin(url)
        for _ in range(MAX_REDIRECTS + 1):
            try:
                response = await self._session.request(
                    method, URL(url, encoded=True), headers=headers, allow_redirects=False
                )
            except NETWORK_ERRORS as exc:
                raise unreachable(method, url, exc) from exc
            async with response:
                if response.status not in REDIRECTS or "Location" not in response.headers:
                    yield response
                    return
                url = self._redirected(url, response.headers["Location"])
            if _origin(url) != origin:
                headers = {name: value for name, value in headers.items() if name != "Authorization"}
        raise Failed(f'{method.capitalize()} "{url}": stopped after {MAX_REDIRECTS} redirects')

    def _redirected(self, url: str, location: str) -> str:
        target = urljoin(url, location)
        scheme = urlsplit(target).scheme
        if scheme not in ("http", "https"):
            raise Failed(f"registry redirects {url} to {target[:200]}, which is neither http nor https")
        if scheme == "http" and url.startswith("https:") and self.endpoint.verify:
            raise Failed(f"registry redirects {url} to {target[:200]}, which is not encrypted")
        return target

    async def _ask_token(self, request: TokenRequest) -> bytes:
        method = "GET" if request.form is None else "POST"
        shown = request.url.partition("?")[0]
        try:
            response = await self._session.request(
                method,
                URL(request.url, encoded=True),
                headers=dict(request.headers),
                data=request.form,
                allow_redirects=False,
            )
        except NETWORK_ERRORS as exc:
            raise unreachable(method, request.url, exc) from exc
        async with response:
            if response.status != 200:
                raise await _refusal(method, shown, response)
            return await read_limited(response, MAX_TOKEN, f"answer of token server {shown}")


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


async def stream(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The body as it comes. Raises Unreachable when it breaks off."""
    try:
        async for chunk in response.content.iter_any():
            yield chunk
    except NETWORK_ERRORS as exc:
        raise unreachable(response.method, str(response.url), exc) from exc


async def read_limited(response: aiohttp.ClientResponse, limit: int, what: str) -> bytes:
    """The whole body; raises Failed as soon as more than `limit` bytes are announced or come."""
    if response.content_length is not None and response.content_length > limit:
        raise Failed(f"{what} is {response.content_length} bytes long; the limit is {limit}")
    parts: list[bytes] = []
    left = limit
    async for chunk in stream(response):
        left -= len(chunk)
        if left < 0:
            raise Failed(f"{what} is longer than the limit of {limit} bytes")
        parts.append(chunk)
    return b"".join(parts)


async def _refusal(method: str, url: str, response: aiohttp.ClientResponse) -> Refused:
    challenges = parse_challenges(response.headers.getall("WWW-Authenticate", []))
    said = next((c.parameters["error"] for c in challenges if "error" in c.parameters), "")
    body = b""
    if method != "HEAD":
        async for chunk in stream(response):
            body += chunk
            if len(body) >= MAX_ERROR:
                break
    return refused(method, url, response.status, body[:MAX_ERROR], challenge_error=said)


@asynccontextmanager
async def connect(config: RegistryConfig, endpoint: Endpoint, auth: Auth) -> AsyncIterator[Connection]:
    """A client to `endpoint`; nothing is sent yet."""
    context = await settle(tls, config, endpoint)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIME, sock_read=IDLE_TIME)
    connector = aiohttp.TCPConnector(ssl=context, limit=16)
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=timeout,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": config.user_agent, "Accept-Encoding": "identity"},
        trust_env=not endpoint.loopback,  # proxies from the environment, but never to this machine
        max_line_size=32 << 10,
        max_field_size=32 << 10,
    ) as session:
        yield Connection(endpoint, session, auth)
