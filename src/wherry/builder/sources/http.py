"""Files from the web: each a directory with one file.

    <root>/<sha256 of what was asked for>-<hex of content>/    see shelf.py; notes: etag, modified, digest, filename

The server is asked each time whether what is held is still current (ETag, Last-Modified), unless the checksum says what
it must be: then nothing is asked at all. Words of errors are BuildKit's (source/http).
"""

import hashlib
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from wherry.aio import settle
from wherry.builder.graph import HttpSource
from wherry.builder.sources.shelf import Draft, Shelf
from wherry.builder.trees import Directory
from wherry.digest import Digest
from wherry.distribution.config import RegistryConfig
from wherry.distribution.download import Answer, ask, complete
from wherry.distribution.proxy import masked
from wherry.errors import Failed, InvalidParameter, NotFound, Unauthorized

Secrets = Callable[[str], Awaitable[bytes | None]]
Transferred = Callable[[int, int], None]  # bytes so far, bytes in all (0: not known)

MAX_SIZE = 64 << 30  # bytes of one file
_CHUNK = 1 << 20  # bytes collected before they are written
_UNKNOWN = "download"  # name of a file that nobody names
_BAD_NAME = re.compile(r"[/\0]|\A\.{1,2}\Z")


async def _no_secret(name: str) -> bytes | None:
    return None


def _quiet(current: int, total: int) -> None: ...


class HttpStore:
    """Everything that was downloaded for builds, below `root` (<data root>/build/http). One of a daemon."""

    def __init__(self, root: Path, config: RegistryConfig) -> None:
        """Blocking."""
        self.files = Shelf(root)
        self._config = config

    @asynccontextmanager
    async def fetch(
        self,
        source: HttpSource,
        *,
        secret: Secrets = _no_secret,
        transferred: Transferred = _quiet,
        limit: int = MAX_SIZE,
    ) -> AsyncIterator[Directory]:
        """A directory with the file, which stays unchanged for the time of the block.

        Raises InvalidParameter (no URL, checksum), NotFound, Unauthorized, Failed, Unreachable.
        """
        url = complete(source.url)
        job = _Job(self.files, self._config, source, url, limit, transferred)
        async with AsyncExitStack() as held:
            thing = await job.held_by_checksum(held)
            if thing is None:
                thing = await job.current(held, await _headers(source, url, secret))
            yield thing


async def _headers(source: HttpSource, url: str, secret: Secrets) -> dict[str, str]:
    """Authorization: of the secret the source names, else of those the client has for this host."""
    host = urlsplit(url).netloc.rpartition("@")[2]
    if source.auth_header_secret:
        value = await secret(source.auth_header_secret)
        if value is None:
            raise NotFound(f"secret {source.auth_header_secret}: not found; the download of {masked(url)} needs it")
        return {"Authorization": _one_line(source.auth_header_secret, value)}
    if (value := await secret(f"HTTP_AUTH_HEADER_{host}")) is not None:
        return {"Authorization": _one_line(f"HTTP_AUTH_HEADER_{host}", value)}
    if (value := await secret(f"HTTP_AUTH_TOKEN_{host}")) is not None:
        return {"Authorization": f"Bearer {_one_line(f'HTTP_AUTH_TOKEN_{host}', value)}"}
    return {}


def _one_line(name: str, value: bytes) -> str:
    text = value.decode(errors="replace").strip()
    if any(c in text for c in "\0\r\n"):
        raise InvalidParameter(f"secret {name} cannot be sent as a header: it has several lines")
    return text


class _Job:
    """One download."""

    def __init__(
        self, shelf: Shelf, config: RegistryConfig, source: HttpSource, url: str, limit: int, transferred: Transferred
    ) -> None:
        self._shelf, self._config, self._source, self._url = shelf, config, source, url
        self._limit, self._transferred = limit, transferred
        self._shown = masked(url)
        asked = (url, source.filename, source.mode, source.uid, source.gid, source.auth_header_secret)
        self._prefix = hashlib.sha256("\0".join(map(str, asked)).encode()).hexdigest()[:32]

    async def held_by_checksum(self, held: AsyncExitStack) -> Directory | None:
        """What is held with the checksum that was asked for."""
        wanted = self._source.checksum
        if wanted is None:
            return None
        known = await settle(self._shelf.named, f"{self._prefix}-")
        for name, notes in known:
            if notes.get("digest") == wanted and (found := await self._again(held, name)) is not None:
                return found
        return None

    async def _again(self, held: AsyncExitStack, name: str) -> Directory | None:
        """What is held; None when it was removed in the moment before."""
        try:
            return await self._use(held, name, _vanished)
        except NotFound:
            return None

    async def current(self, held: AsyncExitStack, headers: Mapping[str, str]) -> Directory:
        """What the server has now."""
        known = await settle(self._shelf.named, f"{self._prefix}-")
        if known and self._source.checksum is None:
            name = await self._unchanged(known, headers)
            if name and (found := await self._again(held, name)) is not None:
                return found
        async with ask(self._config, self._url, headers=headers) as answer:
            self._check(answer)
            return await self._receive(held, answer)

    async def _unchanged(self, known: list[tuple[str, dict[str, str]]], headers: Mapping[str, str]) -> str:
        """The name of what is held and still current; "" for none. Asked by HEAD: many servers get conditions wrong."""
        conditions = dict(headers)
        if etags := [notes["etag"] for _, notes in known if notes.get("etag")]:
            conditions["If-None-Match"] = ", ".join(etags)
        elif modified := known[0][1].get("modified"):
            conditions["If-Modified-Since"] = modified
        else:
            return ""
        async with ask(self._config, self._url, method="HEAD", headers=conditions) as answer:
            etag, modified = answer.headers.get("ETag", ""), answer.headers.get("Last-Modified", "")
            if answer.status == 304 and len(known) == 1 and not etag:
                return known[0][0]
            if answer.status not in (200, 304):
                return ""
        for name, notes in known:
            if etag and _weakly(etag) == _weakly(notes.get("etag", "")):
                return name
            if not etag and not notes.get("etag") and modified and modified == notes.get("modified"):
                return name
        return ""

    def _check(self, answer: Answer) -> None:
        words = f"invalid response status {answer.status}"
        match answer.status:
            case status if 200 <= status < 300:
                return
            case 404 | 410:
                raise NotFound(f"{words}: {self._shown}")
            case 401 | 403:
                raise Unauthorized(f"{words}: {self._shown}")
            case _:
                raise Failed(f"{words}: {self._shown}")

    async def _receive(self, held: AsyncExitStack, answer: Answer) -> Directory:
        """Onto the shelf; its name there tells the content, so it is known only in the end."""
        async with AsyncExitStack() as undo:
            part = await undo.enter_async_context(self._shelf.scratch())
            digest = await self._write(part / "file", answer)
            if self._source.checksum is not None and digest != self._source.checksum:
                raise InvalidParameter(
                    f"digest mismatch for {self._shown}: {digest} (expected: {self._source.checksum})"
                )
            filename = self._source.filename or file_name(self._url, answer.headers)
            notes = {
                "etag": answer.headers.get("ETag", ""),
                "modified": answer.headers.get("Last-Modified", ""),
                "digest": digest,
                "filename": filename,
            }

            async def make(draft: Draft) -> None:
                draft.description = f"http url {self._shown}"
                draft.notes = notes
                await settle(self._place, part / "file", draft.files, filename, notes["modified"])

            mark = hashlib.sha256(f"{filename}\0{notes['modified']}".encode()).hexdigest()[:8]
            return await self._use(held, f"{self._prefix}-{digest[7:]}-{mark}", make)

    async def _use(self, held: AsyncExitStack, name: str, make: Callable[[Draft], Awaitable[None]]) -> Directory:
        thing = await held.enter_async_context(self._shelf.use(name, make))
        source, notes = self._source, thing.notes
        digest, filename = notes["digest"], notes["filename"]
        parts = (filename, source.mode, source.uid, source.gid, digest, notes["modified"])
        identity = hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()
        return Directory(
            path=thing.files,
            identity=f"http:{identity}",
            checksums={filename: digest},
            newest=_seconds(notes["modified"]) * 1_000_000_000,
        )

    async def _write(self, path: Path, answer: Answer) -> Digest:
        total = answer.size or 0
        self._check_size(total)
        hasher, done = hashlib.sha256(), 0
        pending = bytearray()
        with open(path, "wb", buffering=0) as file:
            async for chunk in answer.chunks:
                hasher.update(chunk)
                pending += chunk
                done += len(chunk)
                self._check_size(done)
                if len(pending) >= _CHUNK:
                    await settle(_append, file, pending)
                    pending = bytearray()
                self._transferred(done, total)
            await settle(_append, file, pending)
        if answer.size is not None and done != answer.size:
            raise Failed(f"{self._shown} ended after {done} of {answer.size} bytes: unexpected EOF")
        return Digest(f"sha256:{hasher.hexdigest()}")

    def _check_size(self, size: int) -> None:
        if size > self._limit:
            raise InvalidParameter(f"{self._shown} is too large: more than {self._limit} bytes")

    def _place(self, part: Path, files: Path, filename: str, modified: str) -> None:
        """The file gets its name, its owner, its mode and the time the server says, else 0."""
        source, target = self._source, files / filename
        part.rename(target)
        os.chown(target, source.uid, source.gid)
        os.chmod(target, source.mode)
        when = _seconds(modified) * 1_000_000_000
        os.utime(target, ns=(when, when))
        os.utime(files, ns=(when, when))


async def _vanished(draft: Draft) -> None:
    raise NotFound("it was removed meanwhile")


def _append(file: BinaryIO, data: bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) or 0 :]


def _weakly(etag: str) -> str:
    return etag.removeprefix("W/")


def _seconds(modified: str) -> int:
    try:
        return max(0, int(parsedate_to_datetime(modified).timestamp()))
    except (ValueError, OverflowError):
        return 0


def file_name(url: str, headers: Mapping[str, str]) -> str:
    """What a download is called: as the server says, else by the last part of the URL's path, else `download`."""
    message = Message()
    message["Content-Disposition"] = headers.get("Content-Disposition", "").replace("\n", " ").replace("\r", " ")
    said = message.get_filename()
    for name in (os.path.basename(said) if said else "", os.path.basename(unquote(urlsplit(url).path))):
        if name and not _BAD_NAME.search(name) and len(os.fsencode(name)) <= 255:
            return name
    return _UNKNOWN
