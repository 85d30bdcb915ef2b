"""Uploading: blobs and manifests into a repository, without sending what is there already.

    HEAD -> it is there
    POST ?mount=&from= -> it was in another repository of the registry
    POST, then PUT (small) or PATCH and PUT; what a broken connection delivered is not sent again

Source: OCI distribution-spec 1.1, end-2, end-4 to end-7, end-11, end-13.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import quote, urlencode

import aiohttp

from wherry.digest import Digest, is_digest
from wherry.distribution.endpoint import Body
from wherry.distribution.errors import Refused, Unreachable
from wherry.distribution.repository import Repository
from wherry.errors import Corrupt, Failed
from wherry.spec.image import Descriptor, Raw

ATTEMPTS = 5  # without any progress in between
PAUSE = 5  # seconds, more with every attempt, as in Docker
SMALL = 1 << 20  # bytes sent along with the request that ends the upload
MOUNTS = 3  # repositories a blob is looked for in
_RANGE = re.compile(r"(?:bytes=)?(\d+)-(\d+)\Z", re.ASCII)

Read = Callable[[int], AsyncIterator[bytes]]  # the blob's bytes from an offset on


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

    sent: Callable[[int], None]  # bytes the registry has or is being sent
    pausing: Callable[[int], None]  # seconds until the next attempt
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


async def has_blob(repository: Repository, digest: Digest) -> bool:
    return await _exists(repository, f"blobs/{digest}")


async def has_manifest(repository: Repository, descriptor: Descriptor) -> bool:
    return await _exists(repository, f"manifests/{descriptor.digest}", accept=descriptor.media_type)


async def _exists(repository: Repository, what: str, *, accept: str = "") -> bool:
    try:
        async with repository.request("HEAD", what, headers={"Accept": accept} if accept else None):
            return True
    except Refused as exc:
        if exc.status == 404:
            return False
        raise


async def put_manifest(repository: Repository, raw: Raw, name: str) -> None:
    """Push a manifest as `name` (a tag or its digest). Raises Corrupt when the registry understood something else."""
    async with repository.request(
        "PUT", f"manifests/{name}", headers={"Content-Type": raw.media_type}, data=raw.data
    ) as response:
        said = response.headers.get("Docker-Content-Digest", "")
    if is_digest(said) and said != raw.digest:
        raise Corrupt(f"the registry stored manifest {raw.digest} as {said}")


async def upload(repository: Repository, blob: Blob, reports: Reports) -> tuple[Outcome, str]:
    """Bring `blob` into `repository`; what it took, and the repository it was mounted from.

    Raises Refused, Unreachable when attempts are used up.
    """
    return await _Upload(repository, blob, reports).run()


class _Upload:
    def __init__(self, repository: Repository, blob: Blob, reports: Reports) -> None:
        self._repository = repository
        self._blob = blob
        self._reports = reports
        self._location = ""  # where it goes on; "" = nothing begun
        self._offset = 0  # bytes the registry is known to have

    async def run(self) -> tuple[Outcome, str]:
        attempt = 1
        while True:
            before = self._offset
            try:
                return await self._attempt()
            except Refused as exc:
                if not self._may_go_on(exc):
                    raise
                error: Refused | Unreachable = exc
            except Unreachable as exc:
                error = exc
            attempt = 1 if self._offset > before else attempt + 1
            if attempt > ATTEMPTS:
                raise error
            for left in range(PAUSE * (attempt - 1) or 1, 0, -1):
                self._reports.pausing(left)
                await self._reports.sleep(1)

    def _may_go_on(self, exc: Refused) -> bool:
        if exc.status in (404, 416) and self._location:  # the upload is forgotten, or stands elsewhere than we thought
            if exc.status == 404:
                self._location, self._offset = "", 0
            return True
        return exc.transient

    async def _attempt(self) -> tuple[Outcome, str]:
        if self._location:
            await self._ask_offset()
        else:
            if await has_blob(self._repository, self._blob.digest):
                return Outcome.EXISTS, ""
            if source := await self._begin():
                return Outcome.MOUNTED, source
        await self._send()
        return Outcome.PUSHED, ""

    async def _begin(self) -> str:
        """Open an upload, unless the blob can be mounted; the repository it came from."""
        for source in self._blob.sources[:MOUNTS]:
            query = urlencode({"mount": self._blob.digest, "from": source})
            try:
                if await self._post(f"blobs/uploads/?{query}", [f"repository:{source}:pull"]) == 201:
                    return source
            except Refused as exc:
                if exc.transient:
                    raise
                continue  # we may not read there
            return ""  # not mounted, but an upload is open
        await self._post("blobs/uploads/", [])
        return ""

    async def _post(self, what: str, scopes: Sequence[str]) -> int:
        async with self._repository.request("POST", what, scopes=scopes, data=b"") as response:
            if response.status != 201:
                self._location, self._offset = self._repository.connection.location(response), 0
            return response.status

    async def _ask_offset(self) -> None:
        """How much of the upload the registry has."""
        async with self._repository.request("GET", self._location) as response:
            self._follow(response)
            match = _RANGE.match(response.headers.get("Range", ""))
        # "0-0" is what registries say of nothing; of one byte, too: then that is sent again and refused, or not
        self._offset = int(match[2]) + 1 if match and int(match[2]) else 0
        if self._offset > self._blob.size:
            self._location, self._offset = "", 0
            raise Unreachable(f"the registry has more of blob {self._blob.digest} than there is: begin again")

    def _follow(self, response: aiohttp.ClientResponse) -> None:
        """Every answer may say anew where the upload goes on."""
        if response.headers.get("Location"):
            self._location = self._repository.connection.location(response)

    async def _send(self) -> None:
        rest = self._blob.size - self._offset
        if rest > SMALL:
            await self._patch(rest)
            rest = 0
        joint = "&" if "?" in self._location else "?"
        target = f"{self._location}{joint}digest={quote(self._blob.digest, safe=':')}"
        body = Body(rest, lambda: self._bytes(self._offset)) if rest else b""
        async with self._repository.request("PUT", target, data=body) as response:
            said = response.headers.get("Docker-Content-Digest", "")
        if is_digest(said) and said != self._blob.digest:
            raise Corrupt(f"the registry stored blob {self._blob.digest} as {said}")

    async def _patch(self, rest: int) -> None:
        begin = self._offset
        headers = {"Content-Range": f"{begin}-{begin + rest - 1}"}
        body = Body(rest, lambda: self._bytes(begin))
        async with self._repository.request("PATCH", self._location, headers=headers, data=body) as response:
            if response.status != 202:
                raise Failed(f"the registry answered {response.status} to a chunk of blob {self._blob.digest}")
            self._follow(response)
            match = _RANGE.match(response.headers.get("Range", ""))
        self._offset = int(match[2]) + 1 if match else begin + rest
        if self._offset != self._blob.size:
            raise Unreachable(
                f"the registry took {self._offset} of {self._blob.size} bytes of blob {self._blob.digest}"
            )

    async def _bytes(self, offset: int) -> AsyncIterator[bytes]:
        sent = offset
        self._reports.sent(sent)
        async for data in self._blob.read(offset):
            yield data
            sent += len(data)
            self._reports.sent(sent)
