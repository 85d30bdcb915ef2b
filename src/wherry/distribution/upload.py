"""Uploading: blobs and manifests into a repository, without sending what is there already.

    HEAD -> it is there
    POST ?mount=&from= -> it was in another repository of the registry
    POST, then PUT (small) or PATCH and PUT

What a broken connection delivered is asked for (GET on the upload) and not sent again, where the registry kept it;
docker-registry forgets an upload whose chunk broke off, then it begins anew. All is sent in one PATCH, as Docker does,
unless the registry, or a proxy before it, finds that too large: then in chunks.

Source: OCI distribution-spec 1.1, end-2, end-4 to end-7, end-11, end-13.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar
from urllib.parse import quote, urlencode

import aiohttp

from wherry.aio import finish
from wherry.digest import Digest, is_digest
from wherry.distribution.endpoint import Body
from wherry.distribution.errors import Refused, Unreachable
from wherry.distribution.fetch import ATTEMPTS, may_help, pause
from wherry.distribution.repository import Repository
from wherry.errors import Corrupt, WherryError
from wherry.spec.image import Descriptor, Raw

SMALL = 1 << 20  # bytes sent along with the request that ends the upload
CHUNK = 32 << 20  # bytes of a chunk, where one for all is too large; proxies that limit bodies allow 100 MB as a rule
MOUNTS = 3  # repositories a blob is looked for in
FAREWELL = 3  # seconds for telling the registry that an upload is given up
_RANGE = re.compile(r"(?:bytes=)?(\d+)-(\d+)\Z", re.ASCII)

Read = Callable[[int], AsyncGenerator[bytes, None]]  # the blob's bytes from an offset on

T = TypeVar("T")


class Outcome(StrEnum):
    EXISTS = "exists"
    MOUNTED = "mounted"
    PUSHED = "pushed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    digest: Digest
    size: int  # bytes
    read: Read
    sources: Sequence[str] = ()  # paths of repositories at the same registry that may have it


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """Whom an upload tells how it goes."""

    sent: Callable[[int], None] = lambda _: None  # bytes the registry has or is being sent
    pausing: Callable[[int], None] = lambda _: None  # seconds until the next attempt
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


class Tries:
    """Counts attempts that brought nothing, and waits between them."""

    def __init__(self, reports: Reports) -> None:
        self._reports = reports
        self.fruitless = 0

    def progress(self) -> None:
        self.fruitless = 0

    async def failed(self, error: Refused | Unreachable) -> None:
        """Wait before the next attempt; raises `error` when none would help, or there were enough."""
        self.fruitless += 1
        if self.fruitless >= ATTEMPTS or not may_help(error):
            raise error
        await pause(self.fruitless, self._reports.pausing, self._reports.sleep)

    async def run(self, work: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await work()
            except (Refused, Unreachable) as exc:
                error = exc
            await self.failed(error)


# --- manifests --------------------------------------------------------------------------------------------------------


async def has_manifest(repository: Repository, descriptor: Descriptor, reports: Reports) -> bool:
    """Raises Refused, Unreachable when attempts are used up."""
    what = f"manifests/{descriptor.digest}"
    return await Tries(reports).run(lambda: _exists(repository, what, accept=descriptor.media_type))


async def put_manifest(repository: Repository, raw: Raw, name: str, reports: Reports) -> None:
    """Push a manifest as `name` (a tag or its digest). Raises Corrupt when the registry understood something else."""

    async def put() -> str:
        async with repository.request(
            "PUT", f"manifests/{name}", headers={"Content-Type": raw.media_type}, data=raw.data
        ) as response:
            return response.headers.get("Docker-Content-Digest", "")

    _check_digest(await Tries(reports).run(put), raw.digest, "manifest")


def _check_digest(said: str, digest: Digest, what: str) -> None:
    if is_digest(said) and said != digest:
        raise Corrupt(f"the registry stored {what} {digest} as {said}")


async def _exists(repository: Repository, what: str, *, accept: str = "") -> bool:
    try:
        async with repository.request("HEAD", what, headers={"Accept": accept} if accept else None):
            return True
    except Refused as exc:
        if exc.status in (404, 405):  # a registry that does not know HEAD gets what it may have
            return False
        raise


# --- blobs ------------------------------------------------------------------------------------------------------------


async def upload(repository: Repository, blob: Blob, reports: Reports) -> tuple[Outcome, str]:
    """Bring `blob` into `repository`; what it took, and the repository it was mounted from.

    Raises Refused, Unreachable when attempts are used up, Corrupt when the blob's bytes are not as many as they should
    be here, or the registry got others. Given up, the registry is told so, that it need not keep what it has.
    """
    work = _Upload(repository, blob, reports)
    try:
        return await work.run()
    except BaseException:
        await finish(work.cancel())
        raise


class _Upload:
    def __init__(self, repository: Repository, blob: Blob, reports: Reports) -> None:
        self._repository = repository
        self._blob = blob
        self._reports = reports
        self._tries = Tries(reports)
        self._location = ""  # where it goes on; "" = nothing begun
        self._offset = 0  # bytes the registry is known to have
        self._most = 0  # … ever had: beginning anew is no progress until it gets further
        self._chunk = 0  # bytes sent by one PATCH; 0 = all there are
        self._minimum = 0  # bytes of a chunk that is not the last, as the registry wants
        self._began = False  # an upload was opened once

    async def run(self) -> tuple[Outcome, str]:
        return await self._tries.run(self._attempt)

    async def _attempt(self) -> tuple[Outcome, str]:
        if not await self._goes_on():
            if await _exists(self._repository, f"blobs/{self._blob.digest}"):
                # perhaps by us, and only the answer got lost
                return (Outcome.PUSHED if self._began else Outcome.EXISTS), ""
            if source := await self._begin():
                return Outcome.MOUNTED, source
        if self._tries.fruitless > 1:
            self._chunk = max(CHUNK, self._minimum)  # not everybody says 413: some only hang up
        while self._blob.size - self._offset > SMALL:
            await self._patch()
        await self._put()
        return Outcome.PUSHED, ""

    # --- beginning ----------------------------------------------------------------------------------------------------

    async def _goes_on(self) -> bool:
        """Find out how much of an upload that broke off the registry has; False when it has to begin anew."""
        if not self._location:
            return False
        try:
            async with self._repository.request("GET", self._location) as response:
                self._follow(response)
                self._offset = _held(response) or 0
        except Refused as exc:
            if may_help(exc) and exc.status != 416:
                raise
            self._forget()  # the registry did so, too
            return False
        if not 1 < self._offset <= self._blob.size:  # one byte is what registries say of none, too
            await self.cancel()
            self._offset = 0
            return False
        self._reached(self._offset)
        return True

    def _reached(self, offset: int) -> None:
        self._offset = offset
        if offset > self._most:
            self._most = offset
            self._tries.progress()

    def _forget(self) -> None:
        self._location, self._offset = "", 0

    async def _begin(self) -> str:
        """Open an upload, unless the blob can be mounted; the repository it came from."""
        for source in self._blob.sources[:MOUNTS]:
            await self.cancel()  # the last one did not have it: what was opened instead is not needed
            query = urlencode({"mount": self._blob.digest, "from": source})
            try:
                if await self._post(f"blobs/uploads/?{query}", [f"repository:{source}:pull"]):
                    return source
            except Refused as exc:  # we may not read there, as a rule
                if exc.transient:
                    raise
        if not self._location:
            await self._post("blobs/uploads/", [])
        return ""

    async def _post(self, what: str, scopes: Sequence[str]) -> bool:
        """True when the blob was mounted, else an upload is open."""
        async with self._repository.request("POST", what, scopes=scopes, data=b"") as response:
            if response.status == 201:
                return True
            self._location, self._offset = self._repository.connection.location(response), 0
            minimum = response.headers.get("OCI-Chunk-Min-Length", "")
        self._minimum = int(minimum) if minimum.isascii() and minimum.isdigit() and len(minimum) < 18 else 0
        self._began = True
        return False

    # --- sending ------------------------------------------------------------------------------------------------------

    async def _patch(self) -> None:
        """Send the next chunk: all that is left, as a rule."""
        begin = self._offset
        size = min(self._chunk or self._blob.size, self._blob.size - begin)
        # a stream from the beginning is what Docker sends, and known to every registry; else say where it belongs
        whole = begin == 0 and size == self._blob.size
        headers = {} if whole else {"Content-Range": f"{begin}-{begin + size - 1}"}
        body = Body(size, lambda: self._bytes(begin, size))
        try:
            async with self._repository.request("PATCH", self._location, headers=headers, data=body) as response:
                self._follow(response)
                held = _held(response)
        except Refused as exc:
            raise self._lost(exc, size) from exc
        if held not in (None, begin + size):
            raise Unreachable(f"the registry has {held} bytes of blob {self._blob.digest}, not {begin + size}")
        self._reached(begin + size)

    async def _put(self) -> None:
        """Send what is left, and end the upload."""
        begin, size = self._offset, self._blob.size - self._offset
        joint = "&" if "?" in self._location else "?"
        target = f"{self._location}{joint}digest={quote(self._blob.digest, safe=':')}"
        body = Body(size, lambda: self._bytes(begin, size)) if size else b""
        headers = {"Content-Range": f"{begin}-{begin + size - 1}"} if begin and size else {}
        try:
            async with self._repository.request("PUT", target, headers=headers, data=body) as response:
                said = response.headers.get("Docker-Content-Digest", "")
        except Refused as exc:
            raise self._lost(exc, size) from exc
        self._location = ""  # it has ended
        _check_digest(said, self._blob.digest, "blob")

    def _lost(self, error: Refused, size: int) -> Refused | Unreachable:
        """What a refusal of `size` bytes means: when beginning anew, or with less at a time, may help, Unreachable."""
        if error.status == 413 and size > max(CHUNK, self._minimum):
            self._chunk = max(CHUNK, self._minimum)
        elif error.status in (404, 416):
            self._forget()
        else:
            return error
        return Unreachable(f"the registry does not take the rest of blob {self._blob.digest}: {error.message}")

    def _follow(self, response: aiohttp.ClientResponse) -> None:
        """Every answer may say anew where the upload goes on."""
        if response.headers.get("Location"):
            self._location = self._repository.connection.location(response)

    async def _bytes(self, begin: int, size: int) -> AsyncGenerator[bytes, None]:
        """`size` bytes of the blob. Raises Corrupt when there are fewer."""
        at = begin
        self._reports.sent(at)
        async with contextlib.aclosing(self._blob.read(begin)) as chunks:
            async for data in chunks:
                piece = data[: begin + size - at]
                if not piece:
                    break
                yield piece
                at += len(piece)
                self._reports.sent(at)
        if at < begin + size:
            raise Corrupt(f"blob {self._blob.digest} is damaged on disk: it has {at} of {self._blob.size} bytes")

    async def cancel(self) -> None:
        """Tell the registry that an open upload is not gone on with. Never fails."""
        location, self._location = self._location, ""
        if location:
            with contextlib.suppress(WherryError, TimeoutError):
                async with asyncio.timeout(FAREWELL), self._repository.request("DELETE", location):
                    pass


def _held(response: aiohttp.ClientResponse) -> int | None:
    """Bytes of an upload that the registry says it has; None when it does not say."""
    match = _RANGE.match(response.headers.get("Range", ""))
    if match is None or len(match[2]) > 18:
        return None
    return int(match[2]) + 1
