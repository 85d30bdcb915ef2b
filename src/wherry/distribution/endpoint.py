"""One registry endpoint over HTTP: ping, authorization, redirects, request bodies, limits.

Answers are never decompressed and redirects never followed by the HTTP library: digests are of the bytes as sent, and
an Authorization header must not reach another host.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin, urlsplit

import aiohttp
from yarl import URL

from wherry.aio import settle
from wherry.distribution.auth import Authorizer, TokenRequest, parse_challenges
from wherry.distribution.config import Endpoint, RegistryConfig, tls
from wherry.distribution.errors import MAX_ERROR, Refused, Unreachable, refused, unreachable
from wherry.errors import Failed, WherryError
from wherry.spec.distribution import ANONYMOUS, Auth

CONNECT_TIME = 30  # seconds
IDLE_TIME = 60  # seconds without a byte
COMMIT_TIME = 600  # seconds a registry may think about what was uploaded
PATIENCE = 30  # seconds a registry may ask us to wait before we ask again; more is told to the user
WAITS = 3  # times it may ask so for one request
MAX_REDIRECTS = 10
MAX_TOKEN = 1 << 20  # bytes of a token server's answer
OCTETS = "application/octet-stream"
REDIRECTS = frozenset({301, 302, 303, 307, 308})
KEEPING_REDIRECTS = frozenset({307, 308})  # those after which method and body stay what they were

NETWORK_ERRORS = (aiohttp.ClientError, TimeoutError, OSError, ValueError)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Body:
    """What is sent with a request: `size` bytes, which `open` gives from the beginning, as often as it is called."""

    size: int
    open: Callable[[], AsyncIterator[bytes]]


def body_of(data: bytes) -> Body:
    """A body that is in memory."""

    async def once() -> AsyncIterator[bytes]:
        if data:
            yield data

    return Body(len(data), once)


class _Sending:
    """A body on its way: while the peer takes it the deadline moves on."""

    clock: asyncio.Timeout

    def __init__(self, body: Body) -> None:
        self._body = body
        self.failure: WherryError | None = None  # of our own side; the library would only say that it could not send

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._body.open():
                self._extend(IDLE_TIME)
                yield chunk
        except WherryError as exc:
            self.failure = exc
            raise
        self._extend(COMMIT_TIME)

    def _extend(self, seconds: float) -> None:
        with contextlib.suppress(RuntimeError):  # answered before all was sent: nobody waits any more
            self.clock.reschedule(asyncio.get_running_loop().time() + seconds)


class Connection:
    """An open client to one endpoint with one user's credentials; made by `connect`."""

    def __init__(
        self,
        config: RegistryConfig,
        endpoint: Endpoint,
        session: aiohttp.ClientSession,
        auth: Auth,
        *,
        offline: bool = False,
    ) -> None:
        self.endpoint = endpoint
        self._config = config
        self._session = session
        self._authorizer = Authorizer(
            ANONYMOUS if endpoint.mirror else auth, plain=endpoint.plain, ask=self._ask_token, offline=offline
        )

    @property
    def identity_token(self) -> str:
        """What the token server gave for later, when the connection was made with `offline`; else ""."""
        return self._authorizer.identity_token

    async def ping(self) -> None:
        """`GET /v2/`: is a registry there, and what authorization does it want. Raises Unreachable or Refused."""
        url = f"{self.endpoint.base}/v2/"
        async with self._send("GET", url, {}, None) as response:
            if response.status == 401:
                self._authorizer.learn(parse_challenges(response.headers.getall("WWW-Authenticate", [])))
            elif response.status != 200:
                raise await _refusal("GET", url, response)

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        *,
        scope: str | Sequence[str] = "",
        headers: Mapping[str, str] | None = None,
        data: Body | bytes | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Ask for `path` with authorization for `scope` (several: for all of them at once).

        `path` begins with /v2/, or is a URL that the registry gave (`location`); a host other than the registry's gets
        no credentials. Authorization is sought before a body is sent; when a token has expired, or the registry says
        how soon to ask again, the request is made again, its body opened anew.

        Yields a response of status 2xx, after redirects; its body is not read yet. Raises Unreachable, Refused.
        """
        url = self.endpoint.base + path if path.startswith("/") else path
        ours = _origin(url) == _origin(self.endpoint.base)
        scopes = (scope,) if isinstance(scope, str) else tuple(scope)
        body = body_of(data) if isinstance(data, bytes) else data
        renewed, waits = False, 0
        while True:
            wanted = dict(headers or {})
            if ours:
                wanted |= await self._authorization(method, url, scopes)
            async with self._send(method, url, wanted, body) as response:
                if response.status == 401 and ours and not renewed:
                    renewed = True
                    self._authorizer.forget(scopes)
                    self._authorizer.learn(parse_challenges(response.headers.getall("WWW-Authenticate", [])))
                    continue
                if 200 <= response.status < 300:
                    yield response
                    return
                refusal = await _refusal(method, url, response)
            waits += 1
            await _wait(refusal, waits)

    async def _authorization(self, method: str, url: str, scopes: tuple[str, ...]) -> dict[str, str]:
        if (authorization := await self._authorizer.header(scopes)) is not None:
            return {"Authorization": authorization}
        if self._authorizer.wants_password:
            said = "Head" if "/manifests/" in url and method == "GET" else method.capitalize()  # Docker asks so first
            raise Refused(f'{said} "{url}": no basic auth credentials', status=401, code="UNAUTHORIZED")
        return {}

    def location(self, response: aiohttp.ClientResponse) -> str:
        """The URL that `response` sends the client to, for `request`. Raises Failed when there is no good one."""
        said = response.headers.get("Location", "")
        if not said:
            raise Failed(f"registry {self.endpoint.host} sent no Location with its answer to {response.url.path}")
        return self._redirected(str(response.url), said)

    @asynccontextmanager
    async def _send(
        self, method: str, url: str, headers: dict[str, str], body: Body | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request, redirects followed; yields the last response with its body not read."""
        origin = _origin(url)
        for _ in range(MAX_REDIRECTS + 1):
            try:
                response = await self._once(method, url, headers, body)
            except NETWORK_ERRORS as exc:
                raise unreachable(method, url, exc) from exc
            async with response:
                follow = REDIRECTS if method in ("GET", "HEAD") else KEEPING_REDIRECTS
                if response.status not in follow or "Location" not in response.headers:
                    yield response
                    return
                url = self._redirected(url, response.headers["Location"])
            if _origin(url) != origin:
                headers = {name: value for name, value in headers.items() if name != "Authorization"}
        raise Failed(f'{method.capitalize()} "{url}": stopped after {MAX_REDIRECTS} redirects')

    async def _once(self, method: str, url: str, headers: dict[str, str], body: Body | None) -> aiohttp.ClientResponse:
        proxy = self._config.proxy(self.endpoint, url)
        target = URL(url, encoded=True)
        if body is None:
            return await self._session.request(method, target, headers=headers, allow_redirects=False, proxy=proxy)
        sending = _Sending(body)
        try:
            async with asyncio.timeout(CONNECT_TIME + IDLE_TIME) as sending.clock:
                return await self._session.request(
                    method,
                    target,
                    headers={"Content-Type": OCTETS, **headers, "Content-Length": str(body.size)},
                    data=sending.chunks() if body.size else None,
                    allow_redirects=False,
                    proxy=proxy,
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIME, sock_read=COMMIT_TIME),
                )
        except NETWORK_ERRORS:
            if sending.failure is not None:
                raise sending.failure from None
            raise

    def _redirected(self, url: str, location: str) -> str:
        try:
            target = urljoin(url, location)
            scheme = urlsplit(target).scheme
        except ValueError as exc:
            raise Failed(f"registry redirects {url} to {location[:200]!r}: {exc}") from exc
        if scheme not in ("http", "https"):
            raise Failed(f"registry redirects {url} to {target[:200]}, which is neither http nor https")
        if scheme == "http" and url.startswith("https:") and self.endpoint.verify:
            raise Failed(f"registry redirects {url} to {target[:200]}, which is not encrypted")
        return target

    async def _ask_token(self, request: TokenRequest) -> bytes:
        method = "GET" if request.form is None else "POST"
        shown = request.url.partition("?")[0]
        waits = 0
        while True:
            try:
                response = await self._session.request(
                    method,
                    URL(request.url, encoded=True),
                    headers=dict(request.headers),
                    data=request.form,
                    allow_redirects=False,
                    proxy=self._config.proxy(self.endpoint, request.url),
                )
            except NETWORK_ERRORS as exc:
                raise unreachable(method, request.url, exc) from exc
            async with response:
                if response.status == 200:
                    return await read_limited(response, MAX_TOKEN, f"answer of token server {shown}")
                refusal = await _refusal(method, shown, response)
            waits += 1
            await _wait(refusal, waits)


async def _wait(refusal: Refused, times: int) -> None:
    """Do as a busy registry says, when that is soon; else raise `refusal`."""
    if refusal.status != 429 or refusal.retry_after is None or refusal.retry_after > PATIENCE or times > WAITS:
        raise refusal
    log.info("registry asks for a pause of %d s: %s", refusal.retry_after, refusal.message)
    await asyncio.sleep(refusal.retry_after)


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
        try:
            async for chunk in stream(response):
                body += chunk
                if len(body) >= MAX_ERROR:
                    break
        except Unreachable:
            pass  # the status is known; the words are not
    found = refused(method, url, response.status, body[:MAX_ERROR], challenge_error=said)
    found.retry_after = retry_after(response.headers.get("Retry-After", ""), response.headers.get("Date", ""))
    return found


def retry_after(value: str, now: str) -> float | None:
    """Seconds a Retry-After header asks for: a number, or an HTTP date seen from the answer's own `Date`."""
    if value.strip().isdigit():
        return float(value[:12])
    try:
        return max(0.0, (parsedate_to_datetime(value) - parsedate_to_datetime(now)).total_seconds())
    except (TypeError, ValueError):
        return None


@asynccontextmanager
async def connect(
    config: RegistryConfig, endpoint: Endpoint, auth: Auth, *, offline: bool = False
) -> AsyncIterator[Connection]:
    """A client to `endpoint`; nothing is sent yet. `offline`: ask token servers for an identity token, too."""
    context = await settle(tls, config, endpoint)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIME, sock_read=IDLE_TIME)
    connector = aiohttp.TCPConnector(ssl=context, limit=16)
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=timeout,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": config.user_agent, "Accept-Encoding": "identity"},
        max_line_size=32 << 10,
        max_field_size=32 << 10,
    ) as session:
        yield Connection(config, endpoint, session, auth, offline=offline)
