"""The client of `POST /builds`, as the builder sees it: everything it has is asked for over the connection."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path

import msgspec

from wherry.aio import finish, settle
from wherry.api.build_frames import PIECE, Conversation, Frame, Head, Link, names, split_names
from wherry.api.build_query import host_of
from wherry.builder.client import AgentConnection, NoClient, Transferred
from wherry.builder.contexts import ContextPool, Mirror, Slot, slot_key
from wherry.builder.graph import LocalSource
from wherry.builder.trees import Directory
from wherry.digest import Digest, is_digest
from wherry.errors import InvalidParameter
from wherry.kernel.files import closing
from wherry.spec.distribution import ANONYMOUS, Auth

BATCH = 128  # parts of a result read in one go


class RemoteClient(NoClient):
    """`close` when the build is over: the directories that were sent may serve another one."""

    def __init__(self, link: Link, pool: ContextPool, *, node: str) -> None:
        self._link = link
        self._pool = pool
        self._node = node
        self._slots: list[Slot] = []
        self._auths: dict[str, Auth] = {}

    async def close(self) -> None:
        while self._slots:
            await settle(self._pool.release, self._slots.pop())

    # what the build reads

    async def local(self, source: LocalSource, transferred: Transferred) -> Directory:
        key, patterns = slot_key(source, self._node)
        slot = await settle(
            self._pool.acquire,
            key,
            patterns=patterns,
            description=f"files of {source.shared_key or source.name}",
        )
        self._slots.append(slot)
        mirror = await settle(Mirror, slot)
        question = Head(
            type="list",
            name=source.name,
            include=list(source.include),
            exclude=list(source.exclude),
            follow=list(source.follow),
        )
        try:
            async with self._link.ask(question) as talk:
                await _mirror(talk, mirror, transferred)
            return Directory(
                path=slot.path, checksums=await settle(mirror.finish), identity=slot.content, newest=mirror.newest
            )
        finally:
            await settle(mirror.close)

    async def upload(self, url: str) -> AsyncIterator[bytes]:
        async with self._link.ask(Head(type="upload", name=url)) as talk, aclosing(talk.content()) as content:
            async for data in content:
                yield data

    async def secret(self, secret_id: str) -> bytes | None:
        answer = await self._answer(Head(type="secret", name=secret_id))
        return answer.data if answer.head.found else None

    async def has_agent(self, agent_id: str) -> bool:
        return (await self._answer(Head(type="agent", name=agent_id))).head.found

    async def agent(self, agent_id: str) -> AgentConnection:
        found = _Agent(self._link, agent_id)
        await found.open()
        return found

    async def credentials(self, host: str) -> Auth:
        server = host_of(host)
        if server not in self._auths:
            answer = await self._answer(Head(type="credentials", name=server))
            try:
                self._auths[server] = msgspec.convert(answer.head.auth, Auth) if answer.head.auth else ANONYMOUS
            except msgspec.ValidationError as exc:
                raise InvalidParameter(f"the credentials for {server} make no sense: {exc}") from None
        return self._auths[server]

    async def read_blob(self, store: str, digest: Digest) -> AsyncIterator[bytes]:
        question = Head(type="read", store=store, digest=digest)
        async with self._link.ask(question) as talk, aclosing(talk.content()) as content:
            async for data in content:
                yield data

    # what the build writes

    async def send_stream(self, exporter: int, metadata: Mapping[str, str], data: AsyncIterator[bytes]) -> None:
        await self._send(Head(type="output", exporter=exporter, metadata=dict(metadata)), data)

    async def write_blob(self, store: str, digest: Digest, size: int, data: AsyncIterator[bytes]) -> None:
        if not is_digest(digest):
            raise InvalidParameter(f"{digest!r} is no digest")
        await self._send(Head(type="write", store=store, digest=digest, size=size), data)

    async def _send(self, question: Head, data: AsyncIterator[bytes]) -> None:
        async with self._link.ask(question) as talk:
            async for piece in data:
                await talk.send_bytes(piece)
            await talk.send_end()
            await talk.receive()

    async def send_directory(self, exporter: int, root: Path, transferred: Transferred, *, prefix: str = "") -> None:
        """Files are sent one behind the other: the bytes after an entry are that entry's."""
        sent = 0
        async with self._link.ask(Head(type="tree", exporter=exporter, name=prefix)) as talk:
            parts = _parts(root)
            while batch := await settle(_some, parts):
                for part in batch:
                    if isinstance(part, bytes):
                        await talk.send_bytes(part)
                        sent += len(part)
                    else:
                        entry, name = part
                        await talk.send(Head(type="entry", id=talk.number, entries=[entry]), name)
                transferred(sent)
            await talk.send_end()
            await talk.receive()

    async def _answer(self, question: Head) -> Frame:
        async with self._link.ask(question) as talk:
            return await talk.receive()


async def _mirror(talk: Conversation, mirror: Mirror, transferred: Transferred) -> None:
    """Ask for what is listed and not there yet, as long as there is any."""
    listed: list[str] = []
    complete = False
    while not complete or mirror.unfinished:
        frames = await talk.receive_all()
        wanted = await settle(_take, mirror, frames, listed)
        complete = complete or any(frame.head.type == "listing" and not frame.head.more for frame in frames)
        if wanted:
            await talk.send(Head(type="want", id=talk.number, files=wanted))
        transferred(mirror.received)


def _take(mirror: Mirror, frames: Sequence[Frame], listed: list[str]) -> list[int]:
    """What came, into the mirror: numbers of the files that are needed."""
    wanted: list[int] = []
    for frame in frames:
        head = frame.head
        if head.type == "listing":
            pairs = split_names(frame.data, len(head.entries))
            for (mode, size, mtime, device), (path, link) in zip(head.entries, pairs, strict=True):
                name = os.fsdecode(path)
                if mirror.add(name, mode=mode, size=size, mtime=mtime, link=os.fsdecode(link), device=device):
                    wanted.append(len(listed))
                listed.append(name)
        elif head.type == "file":
            if not 0 <= head.file < len(listed):
                raise InvalidParameter(f"content was sent for file number {head.file}, which was not listed")
            if frame.data:
                mirror.write(listed[head.file], frame.data)
            if head.done:
                mirror.close_file(listed[head.file])
        else:
            raise InvalidParameter(f"{head.type!r} is no answer to a question for files")
    return wanted


class _Agent:
    """A connection to the client's ssh agent, kept open by a task until it is closed."""

    def __init__(self, link: Link, agent_id: str) -> None:
        self._link = link
        self._id = agent_id
        self._talk: Conversation | None = None
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._content: AsyncIterator[bytes] | None = None

    async def open(self) -> None:
        """Raises what the client refused with."""
        self._task = asyncio.create_task(self._hold())
        await self._opened

    async def _hold(self) -> None:
        try:
            async with self._link.ask(Head(type="agent", name=self._id, more=True)) as talk:
                await talk.receive()
                self._talk, self._content = talk, talk.content()
                self._opened.set_result(None)
                await self._closing.wait()
                if not self._link.closed:
                    await talk.send_end()
        except Exception as exc:
            if self._opened.done():
                return  # closing a connection whose other end is gone
            self._opened.set_exception(exc)

    async def read(self) -> bytes:
        assert self._content is not None
        return await anext(self._content, b"")

    async def write(self, data: bytes) -> None:
        assert self._talk is not None
        await self._talk.send_bytes(data)

    async def close(self) -> None:
        self._closing.set()
        if self._task is not None:
            await finish(_ended(self._task))


async def _ended(task: "asyncio.Task[None]") -> None:
    await task


Entry = tuple[int, int, int, int]
Part = tuple[Entry, bytes] | bytes


def _some(parts: Iterator[Part]) -> list[Part]:
    """The next of them; contents of up to 4 MiB."""
    found: list[Part] = []
    size = 0
    for part in parts:
        found.append(part)
        size += len(part) if isinstance(part, bytes) else 0
        if len(found) >= BATCH or size > 4 << 20:
            break
    return found


def _parts(root: Path) -> Iterator[Part]:
    """Entries below `root`, parents first, each file's content behind it. Blocking.

    Nobody writes there meanwhile, so names can be followed; symlinks never are.
    """
    first_names: dict[tuple[int, int], bytes] = {}
    pending = [b""]
    top = os.fsencode(root)
    while pending:
        folder = pending.pop()
        with os.scandir(os.path.join(top, folder)) as found:
            entries = sorted(found, key=lambda entry: entry.name, reverse=True)
        below = []
        for entry in reversed(entries):
            path = os.path.join(folder, entry.name)
            info = entry.stat(follow_symlinks=False)
            link = os.readlink(entry.path) if entry.is_symlink() else b""
            regular = stat.S_ISREG(info.st_mode)
            if regular and info.st_nlink > 1:
                link = first_names.setdefault((info.st_dev, info.st_ino), path)
                link = b"" if link == path else link
            yield (info.st_mode, info.st_size, info.st_mtime_ns, info.st_rdev), names([(path, link)])
            if regular and not link:
                with closing(os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)) as fd:
                    while data := os.read(fd, PIECE):
                        yield data
            elif entry.is_dir(follow_symlinks=False):
                below.append(path)
        pending += reversed(below)
