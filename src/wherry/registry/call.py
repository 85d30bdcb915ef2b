"""One request to the registry, as its handlers see it."""

import asyncio
from dataclasses import dataclass

from aiohttp import web

from wherry.digest import Digest, is_digest
from wherry.registry.errors import Code, Problem
from wherry.registry.hooks import Access, Happening, Hooks
from wherry.registry.store import RegistryStore

MAX_PAGE = 10_000  # names in one answer; more are to be asked for by `last`
HEADERS = {"Docker-Distribution-Api-Version": "registry/2.0", "X-Content-Type-Options": "nosniff"}  # of every answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    request: web.Request
    repository: str
    name: str  # tag, digest or upload id of the path
    actor: str
    store: RegistryStore
    hooks: Hooks
    stall: float  # seconds without a byte either way after which the client counts as gone

    def digest(self, text: str) -> Digest:
        """DIGEST_INVALID."""
        if not is_digest(text):
            raise Problem(
                Code.DIGEST_INVALID,
                f"invalid digest {text[:200]!r}: want sha256: and 64 lower-case hex digits",
                detail={"digest": text[:200]},
            )
        return Digest(text)

    async def may(self, access: Access) -> bool:
        """Whether who asks may do something else, too."""
        try:
            await self.hooks.authorise(self.request, [access])
        except Problem:
            return False
        return True

    def query(self, name: str) -> str:
        return self.request.query.get(name, "")

    def page_size(self) -> int:
        """`n` of a listing. PAGINATION_NUMBER_INVALID."""
        text = self.query("n")
        if not text:
            return MAX_PAGE
        if not text.isascii() or not text.isdigit():
            raise Problem(Code.PAGINATION_NUMBER_INVALID, f"invalid number of results: n={text[:50]!r}")
        return min(int(text[:9]), MAX_PAGE)

    async def read(self) -> bytes:
        """The next piece of the request's body; b"" at its end. ConnectionError when the client is gone or stalls."""
        try:
            async with asyncio.timeout(self.stall):
                return await self.request.content.readany()
        except TimeoutError:
            raise ConnectionAbortedError(f"nothing was sent for {self.stall:g} s") from None

    def answer(
        self,
        status: int,
        *,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        content_type: str = "application/octet-stream",
    ) -> web.Response:
        return web.Response(
            status=status, body=body, headers={**HEADERS, "Content-Type": content_type, **(headers or {})}
        )

    def happened(self, action: str, *, digest: str = "", tag: str = "", media_type: str = "", size: int = 0) -> None:
        request = self.request
        self.hooks.happened(
            Happening(
                action=action,
                repository=self.repository,
                digest=digest,
                tag=tag,
                media_type=media_type,
                size=size,
                actor=self.actor,
                address=request.remote or "",
                method=request.method,
                user_agent=request.headers.get("User-Agent", ""),
            )
        )
