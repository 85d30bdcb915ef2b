"""A registry in process, which can misbehave: the fake at the network seam."""

import base64
import json
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from imagekit.making import Made, digest


@dataclass
class Request:
    method: str
    path: str
    authorization: str | None
    range: str | None
    query: dict[str, str]


@dataclass
class FakeRegistry:
    """Set fields before requests come; `log` tells what came."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[tuple[str, str], tuple[bytes, str]] = field(default_factory=dict)
    auth: str = ""  # "", basic or token
    user: str = "ann"
    password: str = "secret"
    cuts: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))  # digest -> bytes sent, per answer
    failures: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))  # path -> statuses, in order
    ranges: bool = True
    challenge: str = ""  # said instead of the true one
    next_page: str = ""  # said to be the next page of tags
    content_ranges: list[str] = field(default_factory=list)  # said instead of the true ones, in order
    redirect: str = ""  # where blobs really are
    headers: dict[str, str] = field(default_factory=dict)  # added to manifests
    token_life: int = 300
    log: list[Request] = field(default_factory=list)
    tokens: int = 0  # handed out
    expired: set[str] = field(default_factory=set)
    base: str = ""
    before_blob: Callable[[str], object] | None = None
    error_body: bytes | None = None
    error_headers: dict[str, str] = field(default_factory=dict)
    identity: str = ""  # handed out by the token server to whom asks for one with the password
    token_posts: int = 0  # status the token server answers a POST with; 0: it serves it

    @property
    def host(self) -> str:
        return URL(self.base).authority

    def add(self, repository: str, tag: str, made: Made) -> None:
        self.blobs.update(made.blobs)
        self.put(repository, tag, made.manifest, made.media_type)

    def put(self, repository: str, tag: str, document: bytes, media_type: str) -> None:
        for name in (tag, digest(document)):
            self.manifests[repository, name] = (document, media_type)

    def asked(self, part: str) -> list[Request]:
        return [request for request in self.log if part in request.path]

    # --- serving ------------------------------------------------------------------------------------------------------

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._watch])
        app.router.add_get("/v2/", self._ping)
        app.router.add_get("/token", self._token)
        app.router.add_post("/token", self._token)
        app.router.add_get("/v2/{repository:.+}/manifests/{name}", self._manifest)
        app.router.add_get("/v2/{repository:.+}/blobs/{digest}", self._blob)
        app.router.add_get("/v2/{repository:.+}/tags/list", self._tags)
        return app

    @web.middleware
    async def _watch(self, request: web.Request, handler: Callable[[web.Request], object]) -> web.StreamResponse:
        self.log.append(
            Request(
                request.method,
                request.path,
                request.headers.get("Authorization"),
                request.headers.get("Range"),
                dict(request.query),
            )
        )
        statuses = self.failures.get(request.path)
        if statuses:
            return web.Response(status=statuses.pop(0), body=self.error_body or b"", headers=self.error_headers)
        if request.path != "/token" and (refusal := self._check(request)) is not None:
            return refusal
        return await handler(request)  # type: ignore[misc]

    def _check(self, request: web.Request) -> web.Response | None:
        said = request.headers.get("Authorization", "")
        if self.auth == "basic" and said != self.basic():
            return self._challenge('Basic realm="here"')
        if self.auth == "token":
            token = said.removeprefix("Bearer ")
            good = token.startswith("token-") and token not in self.expired
            if not good:
                return self._challenge(f'Bearer realm="{self.base}/token",service="fake"')
            if request.path != "/v2/" and "pull" not in token:
                return self._challenge(f'Bearer realm="{self.base}/token",service="fake",error="insufficient_scope"')
        return None

    def _challenge(self, text: str) -> web.Response:
        body = {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required", "detail": None}]}
        return web.json_response(body, status=401, headers={"WWW-Authenticate": self.challenge or text})

    def basic(self) -> str:
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()

    async def _ping(self, request: web.Request) -> web.Response:
        return web.json_response({})

    async def _token(self, request: web.Request) -> web.Response:
        form = await request.post() if request.method == "POST" else {}
        said = request.headers.get("Authorization")
        if request.method == "POST" and self.token_posts:
            return web.Response(status=self.token_posts)
        by_password = form.get("grant_type") == "password"
        if by_password and (form.get("username"), form.get("password")) == (self.user, self.password):
            said = self.basic()
        if (by_password and said is None) or (said is not None and said != self.basic()):
            return web.json_response({"details": "incorrect username or password"}, status=401)
        refreshed = form.get("grant_type") == "refresh_token" and form.get("refresh_token") == "identity"
        self.tokens += 1
        scope = str(form.get("scope") or request.query.get("scope", ""))
        may_pull = said is not None or refreshed or not scope.startswith("repository:private/")
        kind = "pull" if may_pull and scope.endswith(":pull") else "none"
        answer = {"token": f"token-{kind}-{self.tokens}", "expires_in": self.token_life}
        offline = form.get("access_type") == "offline" or request.query.get("offline_token") == "true"
        if said is not None and offline and self.identity:
            answer["refresh_token"] = self.identity
        return web.json_response(answer)

    async def _manifest(self, request: web.Request) -> web.Response:
        key = (request.match_info["repository"], request.match_info["name"])
        if key not in self.manifests:
            known = any(repository == key[0] for repository, _ in self.manifests)
            code, message = ("MANIFEST_UNKNOWN", "manifest unknown") if known else ("NAME_UNKNOWN", "")
            return web.json_response({"errors": [{"code": code, "message": message}]}, status=404)
        body, media_type = self.manifests[key]
        headers = {"Docker-Content-Digest": digest(body), **self.headers}
        return web.Response(body=body, content_type=media_type, headers=headers)

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["digest"]
        if self.before_blob is not None:
            await self.before_blob(name)  # type: ignore[misc]
        if self.redirect:
            raise web.HTTPTemporaryRedirect(self.redirect + request.path)
        if name not in self.blobs:
            return web.json_response({"errors": [{"code": "BLOB_UNKNOWN", "message": "unknown"}]}, status=404)
        data = self.blobs[name]
        start, status, headers = 0, 200, {}
        if self.ranges and (wanted := request.headers.get("Range")):
            start, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
            headers["Content-Range"] = self.content_ranges.pop(0) if self.content_ranges else _range(start, len(data))
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = len(data) - start
        await response.prepare(request)
        cuts = self.cuts.get(name)
        if cuts:
            await response.write(data[start : start + cuts.pop(0)])
            assert request.transport is not None
            request.transport.close()
            return response
        await response.write(data[start:])
        return response

    async def _tags(self, request: web.Request) -> web.Response:
        repository = request.match_info["repository"]
        names = sorted(tag for name, tag in self.manifests if name == repository and not tag.startswith("sha256:"))
        last = request.query.get("last", "")
        page = [name for name in names if name > last][:2]
        headers = {}
        if page and page[-1] != names[-1]:
            headers["Link"] = f'</v2/{repository}/tags/list?last={page[-1]}&n=2>; rel="next"'
        if self.next_page:
            headers["Link"] = f'<{self.next_page}>; rel="next"'
        return web.json_response({"name": repository, "tags": page}, headers=headers)


def _range(start: int, size: int) -> str:
    return f"bytes {start}-{size - 1}/{size}"


@asynccontextmanager
async def serve(registry: FakeRegistry, *, context: ssl.SSLContext | None = None) -> AsyncIterator[FakeRegistry]:
    """On a loopback port; by TLS with a `context`."""
    server = TestServer(registry.app(), scheme="https" if context else "http")
    await server.start_server(ssl=context)
    registry.base = str(server.make_url("")).rstrip("/")
    try:
        yield registry
    finally:
        await server.close()


def lines(messages: list[dict[str, object]]) -> list[str]:
    """Statuses in order, for comparison."""
    return [json.dumps(message.get("status") or message.get("stream")) for message in messages]
