"""The OCI distribution API (1.1) over a `RegistryStore`.

    GET|HEAD       /v2/
    GET            /v2/_catalog
    GET|HEAD|DEL   /v2/<name>/blobs/<digest>
    POST           /v2/<name>/blobs/uploads/               ?digest= | ?mount=&from=
    GET|PATCH|PUT|DELETE  /v2/<name>/blobs/uploads/<id>
    GET|HEAD|PUT|DEL      /v2/<name>/manifests/<tag or digest>
    GET            /v2/<name>/tags/list
    GET            /v2/<name>/referrers/<digest>

A repository's name has slashes in it, so paths are taken apart from their end, by `parse_path`, and not by a router.
"""

import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import msgspec
from aiohttp import web

from wherry.errors import WherryError
from wherry.registry import blobs, documents, listing, uploads
from wherry.registry.call import HEADERS, Call
from wherry.registry.errors import Code, Problem, problem_of
from wherry.registry.hooks import Access, Hooks
from wherry.registry.store import RegistryStore

log = logging.getLogger(__name__)

MAX_FORM = 64 << 10  # bytes of a body that is read as one; manifests and blobs are streams with limits of their own
STALL = 300.0  # seconds a client may neither send nor take a byte before its connection is cut
MAX_NAME = 255  # characters of a repository's name
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*\Z")

Handler = Callable[[Call], Awaitable[web.StreamResponse]]

# kind of path -> method -> (what it is, the action it needs)
HANDLERS: dict[str, dict[str, tuple[Handler, str]]] = {
    "base": {"GET": (listing.base, ""), "HEAD": (listing.base, "")},
    "catalog": {"GET": (listing.catalog, "*")},
    "tags": {"GET": (listing.tags, "pull")},
    "referrers": {"GET": (listing.referrers, "pull")},
    "blob": {"GET": (blobs.get, "pull"), "HEAD": (blobs.head, "pull"), "DELETE": (blobs.delete, "delete")},
    "uploads": {"POST": (uploads.start, "push")},
    "upload": {
        "GET": (uploads.status, "push"),
        "PATCH": (uploads.append, "push"),
        "PUT": (uploads.finish, "push"),
        "DELETE": (uploads.cancel, "push"),
    },
    "manifest": {
        "GET": (documents.get, "pull"),
        "HEAD": (documents.get, "pull"),
        "PUT": (documents.put, "push"),
        "DELETE": (documents.delete, "delete"),
    },
}


@dataclass(frozen=True, slots=True)
class Place:
    kind: str
    repository: str = ""
    name: str = ""  # tag, digest or upload id


def parse_path(path: str) -> Place:
    """What a path below /v2/ names. NAME_INVALID; UNSUPPORTED (404) for what is no path of this API."""
    rest = path.removeprefix("/v2").removeprefix("/")
    if not rest:
        return Place("base")
    if rest == "_catalog":
        return Place("catalog")
    parts = rest.split("/")
    match parts:
        case [*name, "blobs", "uploads", ""] | [*name, "blobs", "uploads"]:
            place = Place("uploads", "/".join(name))
        case [*name, "blobs", "uploads", id]:
            place = Place("upload", "/".join(name), id)
        case [*name, "blobs", digest]:
            place = Place("blob", "/".join(name), digest)
        case [*name, "manifests", reference]:
            place = Place("manifest", "/".join(name), reference)
        case [*name, "tags", "list"]:
            place = Place("tags", "/".join(name))
        case [*name, "referrers", digest]:
            place = Place("referrers", "/".join(name), digest)
        case _:
            raise Problem(Code.UNSUPPORTED, f"no such path in the distribution API: /v2/{rest[:200]}", status=404)
    check_name(place.repository)
    return place


def check_name(repository: str) -> None:
    if len(repository) > MAX_NAME or _NAME.match(repository) is None:
        raise Problem(
            Code.NAME_INVALID,
            f"invalid repository name {repository[:300]!r}: want lower-case letters, digits and single . _ - between "
            f"them, parts separated by /, at most {MAX_NAME} characters",
            detail={"name": repository[:300]},
        )


def build_app(store: RegistryStore, *, hooks: Hooks | None = None, stall: float = STALL) -> web.Application:
    """The application that serves `store`; others may add paths outside /v2/ to it. `stall`: see STALL."""
    app = web.Application(client_max_size=MAX_FORM)
    serve = Server(store, hooks or Hooks(), stall).serve
    app.router.add_route("*", "/v2", serve)
    app.router.add_route("*", "/v2/{rest:.*}", serve)
    return app


class Server:
    def __init__(self, store: RegistryStore, hooks: Hooks, stall: float) -> None:
        self._store = store
        self._hooks = hooks
        self._stall = stall

    async def serve(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._answer(request)
        except web.HTTPException:  # somebody's who plugged in
            raise
        except ConnectionError as exc:
            log.debug("%s %s: the client is gone: %s", request.method, request.raw_path, exc)
            return cut(request)
        except Exception as exc:
            problem = _problem_of(exc)
            if isinstance(exc, Problem) and problem.status >= 500:  # foreseen: an upstream that is away, say
                log.warning("%s %s: %s", request.method, request.raw_path, problem.message)
            elif problem.status >= 500:
                log.exception("%s %s failed", request.method, request.raw_path)
            return cut(request) if request.writer.output_size else refuse(problem, request)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        place = parse_path(request.path)
        methods = HANDLERS[place.kind]
        if request.method not in methods:
            raise Problem(
                Code.UNSUPPORTED,
                f"{request.method} is not possible here, only {', '.join(methods)}",
                headers={"Allow": ", ".join(methods)},
            )
        handler, action = methods[request.method]
        asked = place.repository
        if asked:
            place = replace(place, repository=await self._hooks.locate(request, asked))
        alias = asked if asked != place.repository else ""
        actor = await self._hooks.authorise(request, _wanted(place, action, request, alias))
        return await handler(
            Call(
                request=request,
                repository=place.repository,
                name=place.name,
                actor=actor,
                store=self._store,
                hooks=self._hooks,
                stall=self._stall,
            )
        )


def _wanted(place: Place, action: str, request: web.Request, alias: str) -> Sequence[Access]:
    if not action:
        return ()
    wanted = [Access(place.repository, action, alias)]
    if action == "push":
        wanted.append(Access(place.repository, "pull", alias))
    source = request.query.get("from") if place.kind == "uploads" else None
    if source and request.query.get("mount"):
        check_name(source)
        wanted.append(Access(source, "pull"))
    return wanted


def _problem_of(exc: Exception) -> Problem:
    if isinstance(exc, WherryError):
        return problem_of(exc)
    if isinstance(exc, web.RequestPayloadError):
        return Problem(Code.BLOB_UPLOAD_INVALID, f"the body of the request is broken: {' '.join(str(exc).split())}")
    return Problem(Code.UNKNOWN, "the registry failed; its log tells why")


def cut(request: web.Request) -> web.Response:
    """End the connection: an answer that has begun must not end as if it were complete. The response goes nowhere."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=499)  # the access log's; nginx's word for it


def refuse(problem: Problem, request: web.Request) -> web.Response:
    """The specification's error document. A request's body that was not read ends the connection."""
    answer = web.Response(
        status=problem.status,
        body=b"" if request.method == "HEAD" else msgspec.json.encode(problem.document()),
        content_type="application/json",
        headers={**HEADERS, **problem.headers},
    )
    if request.can_read_body and not request.content.at_eof():
        answer.force_close()
    return answer
