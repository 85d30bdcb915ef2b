"""A registry in process that is pushed to, and which can misbehave: the fake at the network seam."""

from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from imagekit.making import digest

SENT: web.RequestKey["Sent"] = web.RequestKey("sent", object)  # type: ignore[arg-type]
PLACE = "/v2/{repository:.+}/blobs/uploads/{id}"


@dataclass
class Sent:
    """A request that came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    received: int = 0  # bytes of its body


@dataclass
class PushRegistry:
    """Set fields before requests come; `log` tells what came."""

    blobs: dict[tuple[str, str], bytes] = field(default_factory=dict)
    manifests: dict[tuple[str, str], tuple[bytes, str]] = field(default_factory=dict)
    uploads: dict[str, bytearray] = field(default_factory=dict)
    log: list[Sent] = field(default_factory=list)
    failures: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))  # method -> statuses; 0: hang up
    cuts: list[int] = field(default_factory=list)  # bytes taken of the next PATCHes before the line breaks
    keeps: bool = True  # what came before the line broke
    mounts: bool = True
    relative: bool = False  # Locations
    limit: int = 0  # bytes of a body, more are a 413
    minimum: int = 0  # bytes of a chunk, said and checked
    range: Callable[[int], str] = lambda held: f"0-{max(0, held - 1)}"
    stores_as: str = ""  # the digest it claims to have stored
    delay: Callable[[], Awaitable[None]] | None = None
    headers: dict[str, str] = field(default_factory=dict)  # of failures
    grants: Callable[[str], bool] | None = None  # a token is wanted, which is good for the scopes this says yes to
    asked_scopes: list[list[str]] = field(default_factory=list)  # by each request for a token
    base: str = ""

    @property
    def host(self) -> str:
        return URL(self.base).authority

    def asked(self, method: str, part: str = "") -> list[Sent]:
        return [sent for sent in self.log if sent.method == method and part in sent.path]

    # --- serving ------------------------------------------------------------------------------------------------------

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._watch], client_max_size=0)
        app.router.add_get("/v2/", self._ping)
        app.router.add_get("/token", self._token)
        app.router.add_head("/v2/{repository:.+}/blobs/{digest}", self._has_blob)
        app.router.add_post("/v2/{repository:.+}/blobs/uploads/", self._begin)
        app.router.add_get(PLACE, self._status)
        app.router.add_patch(PLACE, self._patch)
        app.router.add_put(PLACE, self._put)
        app.router.add_delete(PLACE, self._cancel)
        app.router.add_put("/v2/{repository:.+}/manifests/{name}", self._manifest)
        app.router.add_head("/v2/{repository:.+}/manifests/{name}", self._has_manifest)
        return app

    @web.middleware
    async def _watch(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        sent = Sent(request.method, request.path, dict(request.query), dict(request.headers))
        request[SENT] = sent
        self.log.append(sent)
        if self.failures[request.method] and request.path != "/v2/":
            status = self.failures[request.method].pop(0)
            if not status:
                assert request.transport is not None
                request.transport.abort()
            return web.Response(status=status or 500, headers=self.headers)
        if self.delay is not None:
            await self.delay()
        if self.grants is not None and (refusal := self._check(request)) is not None:
            return refusal
        return await handler(request)

    def _check(self, request: web.Request) -> web.Response | None:
        granted = request.headers.get("Authorization", "").removeprefix("Bearer ").split("|")
        repository = request.match_info.get("repository")
        if request.path == "/token" or (granted != [""] and f"repository:{repository}:pull,push" in granted):
            return None
        challenge = f'Bearer realm="{self.base}/token",service="fake"'
        if granted != [""]:
            challenge += ',error="insufficient_scope"'
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})

    async def _token(self, request: web.Request) -> web.Response:
        scopes = request.query.getall("scope", [])
        self.asked_scopes.append(scopes)
        assert self.grants is not None
        granted = [scope for scope in scopes if self.grants(scope)]
        return web.json_response({"token": "|".join(granted) or "nothing"})

    async def _ping(self, request: web.Request) -> web.Response:
        return web.json_response({})

    async def _has_blob(self, request: web.Request) -> web.Response:
        key = (request.match_info["repository"], request.match_info["digest"])
        return web.Response(status=200 if key in self.blobs else 404)

    async def _begin(self, request: web.Request) -> web.Response:
        repository = request.match_info["repository"]
        wanted, source = request.query.get("mount", ""), request.query.get("from", "")
        if wanted and self.mounts and (source, wanted) in self.blobs:
            self.blobs[repository, wanted] = self.blobs[source, wanted]
            return web.Response(status=201, headers={"Location": f"/v2/{repository}/blobs/{wanted}"})
        number = str(len(self.log))
        self.uploads[number] = bytearray()
        headers = {"OCI-Chunk-Min-Length": str(self.minimum)} if self.minimum else {}
        return self._where(repository, number, 202, headers)

    def _where(self, repository: str, number: str, status: int, headers: dict[str, str] | None = None) -> web.Response:
        """The state of an upload is in its address: an old one is not accepted."""
        held = len(self.uploads[number])
        path = f"/v2/{repository}/blobs/uploads/{number}?state={held}"
        place = {"Location": path if self.relative else self.base + path, "Range": self.range(held)}
        return web.Response(status=status, headers={**place, **(headers or {})})

    def _upload(self, request: web.Request) -> bytearray | web.Response:
        found = self.uploads.get(request.match_info["id"])
        if found is None:
            return web.json_response({"errors": [{"code": "BLOB_UPLOAD_UNKNOWN", "message": "unknown"}]}, status=404)
        return found

    async def _status(self, request: web.Request) -> web.Response:
        found = self._upload(request)
        if isinstance(found, web.Response):
            return found
        return self._where(request.match_info["repository"], request.match_info["id"], 204)

    async def _patch(self, request: web.Request) -> web.Response:
        found = self._upload(request)
        if isinstance(found, web.Response):
            return found
        assert request.query["state"] == str(len(found)), "sent to an old address"
        assert request.content_length is not None
        if self.limit and request.content_length > self.limit:
            return web.Response(status=413)
        if wanted := request.headers.get("Content-Range"):
            assert wanted == f"{len(found)}-{len(found) + request.content_length - 1}"
        cut = self.cuts.pop(0) if self.cuts else None
        async for data in request.content.iter_any():
            found += data if cut is None else data[: cut - request[SENT].received]
            request[SENT].received += len(data)
            if cut is not None and request[SENT].received >= cut:
                if not self.keeps:
                    del self.uploads[request.match_info["id"]]
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
        return self._where(request.match_info["repository"], request.match_info["id"], 202)

    async def _put(self, request: web.Request) -> web.Response:
        found = self._upload(request)
        if isinstance(found, web.Response):
            return found
        data = await request.read()
        request[SENT].received = len(data)
        found += data
        wanted = request.query["digest"]
        del self.uploads[request.match_info["id"]]
        if digest(bytes(found)) != wanted:
            return web.json_response({"errors": [{"code": "DIGEST_INVALID", "message": "not so"}]}, status=400)
        self.blobs[request.match_info["repository"], wanted] = bytes(found)
        return web.Response(status=201, headers={"Docker-Content-Digest": self.stores_as or wanted})

    async def _cancel(self, request: web.Request) -> web.Response:
        return web.Response(status=204 if self.uploads.pop(request.match_info["id"], None) is not None else 404)

    async def _manifest(self, request: web.Request) -> web.Response:
        data = await request.read()
        for name in (request.match_info["name"], digest(data)):
            self.manifests[request.match_info["repository"], name] = data, request.content_type
        return web.Response(status=201, headers={"Docker-Content-Digest": self.stores_as or digest(data)})

    async def _has_manifest(self, request: web.Request) -> web.Response:
        key = (request.match_info["repository"], request.match_info["name"])
        return web.Response(status=200 if key in self.manifests else 404)


@asynccontextmanager
async def serve(registry: PushRegistry) -> AsyncIterator[PushRegistry]:
    server = TestServer(registry.app())
    await server.start_server(shutdown_timeout=0.1)
    registry.base = str(server.make_url("")).rstrip("/")
    try:
        yield registry
    finally:
        await server.close()
