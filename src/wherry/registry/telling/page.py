"""The web page: repositories, tags, layers and sizes, for people.

    GET /              one HTML file; its script and style are inline and named by hash in the Content-Security-Policy
    GET /page.json     ?last=&n=               {"repositories": [{"name", "tags", "bytes"}], "next"}
                       ?repository=&last=&n=   {"name", "tags": [{"name", "digest", "type", "bytes", "pushed"}], "next"}

The page holds nothing itself: all it shows it asks for by /page.json and /v2/, with the rights of who signs in on it.
"""

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable
from importlib.resources import files

import msgspec
from aiohttp import web

from wherry.errors import WherryError
from wherry.registry.errors import Code, Problem, problem_of
from wherry.registry.hooks import Access, Hooks
from wherry.registry.server import check_name, refuse
from wherry.registry.store import Named, RegistryStore, Tag

PAGE = 200  # rows in one answer when nothing else is asked for
MAX_PAGE = 1000
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Page:
    def __init__(self, store: RegistryStore, hooks: Hooks) -> None:
        self._store = store
        self._hooks = hooks
        self._html = files(__package__).joinpath("page.html").read_bytes()
        self._headers = {
            "Content-Security-Policy": policy(self._html.decode()),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        }

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/", self.get)
        app.router.add_get("/page.json", refusing(self.get_rows))

    async def get(self, request: web.Request) -> web.StreamResponse:
        """GET /."""
        return web.Response(body=self._html, content_type="text/html", charset="utf-8", headers=self._headers)

    async def get_rows(self, request: web.Request) -> web.StreamResponse:
        """GET /page.json."""
        repository = request.query.get("repository", "")
        last = request.query.get("last", "")
        limit = _limit(request.query.get("n", ""))
        if repository:
            check_name(repository)
            await self._hooks.authorise(request, [Access(repository, "pull")])
            document = await self._tags(repository, last, limit)
        else:
            await self._hooks.authorise(request, [Access("", "*")])
            document = await self._repositories(last, limit)
        headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        return web.Response(body=msgspec.json.encode(document), content_type="application/json", headers=headers)

    async def _repositories(self, last: str, limit: int) -> dict[str, object]:
        names = await self._store.repositories(after=last, limit=limit + 1)
        rows = []
        for name in names[:limit]:
            try:
                rows.append(
                    {
                        "name": name,
                        "tags": len(await self._store.tag_list(name)),
                        "bytes": await self._store.usage(name),
                    }
                )
            except Problem:  # it went meanwhile
                continue
        return {"repositories": rows, "next": names[limit - 1] if len(names) > limit else ""}

    async def _tags(self, repository: str, last: str, limit: int) -> dict[str, object]:
        names = await self._store.tags(repository, after=last, limit=limit + 1)
        tags = {tag.name: tag for tag in await self._store.tag_list(repository)}
        rows = [await self._row(repository, tags[name]) for name in names[:limit] if name in tags]
        return {"name": repository, "tags": rows, "next": names[limit - 1] if len(names) > limit else ""}

    async def _row(self, repository: str, tag: Tag) -> dict[str, object]:
        row: dict[str, object] = {"name": tag.name, "digest": tag.digest, "pushed": tag.pushed // 10**9}
        try:
            named = await self._store.described(repository, tag.digest)
            row |= {"type": named.media_type, "bytes": await self._weight(repository, named)}
        except Problem:  # it went meanwhile
            row |= {"type": "", "bytes": 0}
        return row

    async def _weight(self, repository: str, named: Named) -> int:
        """Bytes of what a manifest needs; of an index, of all its manifests that are here."""
        total = named.weight
        for child in set(named.children):
            try:
                total += (await self._store.described(repository, child)).weight
            except Problem:  # a platform that was not brought
                continue
        return total


def refusing(handler: Handler) -> Handler:
    """`handler` with the registry's own errors."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except WherryError as exc:
            return refuse(problem_of(exc), request)

    return answer


def _limit(text: str) -> int:
    if not text:
        return PAGE
    if not (text.isascii() and text.isdigit()) or int(text[:9]) < 1:
        raise Problem(Code.PAGINATION_NUMBER_INVALID, f"invalid number of results: n={text[:50]!r}")
    return min(int(text[:9]), MAX_PAGE)


def policy(html: str) -> str:
    """The Content-Security-Policy under which exactly the scripts and styles of `html` run, and nothing is loaded."""
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in _INLINE.findall(html):
        hashes[kind].append(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'")
    return (
        f"default-src 'none'; script-src {' '.join(hashes['script'])}; style-src {' '.join(hashes['style'])}; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
