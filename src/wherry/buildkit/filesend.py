"""Sending results to a client: a stream of bytes (an archive), or a directory by fsutil's protocol, as its sender.

The whole list goes first, entries in the order of the walk; then what the client asks for, until it says FIN.
"""

import os
import stat
from collections import deque
from collections.abc import AsyncIterator, Generator, Mapping
from pathlib import Path

from wherry.aio import settle
from wherry.builder.client import Transferred
from wherry.buildkit import bk_pb2 as pb
from wherry.buildkit.modes import to_go
from wherry.buildkit.session import Headers, Session
from wherry.buildkit.wire import Pipe
from wherry.errors import Failed, InvalidParameter

DIFF_COPY = "/moby.filesync.v1.FileSend/DiffCopy"
PIECE = 256 << 10  # bytes of one message; gRPC's own limit is 4 MiB
_BATCH = 512  # entries listed at a time
_READ = 1 << 20  # bytes read at a time
_OVERHEAD = 1000  # bytes a packet counts for beside its content, so that empty files come to an end, too


def _headers(exporter: int, metadata: Mapping[str, str]) -> Headers:
    told = [(f"exporter-md-{key.lower()}", value) for key, value in metadata.items() if value and value.isascii()]
    return [("buildkit-attachable-exporter-id", str(exporter)), *told]


async def send_stream(session: Session, exporter: int, metadata: Mapping[str, str], data: AsyncIterator[bytes]) -> None:
    """`data`, to the file or pipe that exporter number `exporter` has as its destination."""
    headers = _headers(exporter, metadata)
    async with session.talk(DIFF_COPY, pb.Bytes, pb.Bytes, what="sending the result", headers=headers) as stream:
        pipe = Pipe(stream)
        async for chunk in data:
            pieces = [chunk[at : at + PIECE] for at in range(0, len(chunk), PIECE)]
            await pipe.send([pb.Bytes(data=piece).SerializeToString() for piece in pieces])
        await stream.end()
        while await pipe.receive():
            pass


async def send_directory(
    session: Session, exporter: int, root: Path, transferred: Transferred, *, prefix: str = ""
) -> None:
    """The files below `root`, into the destination directory or below `prefix` in it; what is there stays."""
    sender = Sender(root, prefix)
    headers = _headers(exporter, {})
    async with session.talk(DIFF_COPY, pb.Packet, pb.Packet, what="copying files", headers=headers) as stream:
        pipe = Pipe(stream)
        try:
            while listed := await settle(sender.entries):
                await pipe.send(listed)
            await pipe.send([pb.Packet(type=pb.Packet.STAT).SerializeToString()])
            await _answer(pipe, sender, transferred)
        except OSError as exc:
            raise Failed(f"copying files: {exc.strerror}: {exc.filename}") from exc
        finally:
            await settle(sender.close)
        await pipe.send([pb.Packet(type=pb.Packet.FIN).SerializeToString()], end=True)
        while await pipe.receive():
            pass


async def _answer(pipe: Pipe, sender: "Sender", transferred: Transferred) -> None:
    """Send what is asked for, until FIN."""
    while packets := await pipe.receive():
        for raw in packets:
            packet = pb.Packet.FromString(raw)
            match packet.type:
                case pb.Packet.REQ:
                    sender.ask(packet.id)
                case pb.Packet.FIN:
                    return
                case pb.Packet.ERR:
                    raise Failed(f"the client could not write: {packet.data.decode(errors='replace')[:1000]}")
                case _:
                    raise InvalidParameter(f"the client sent a packet of type {packet.type} where it asks for files")
        while contents := await settle(sender.read):
            await pipe.send(contents)
            transferred(sender.sent)
    raise Failed("the client ended the transfer before it was complete")


class Sender:
    """Walks a tree that nobody changes, and remembers which number is which file. Blocking."""

    def __init__(self, root: Path, prefix: str = "") -> None:
        self._root = os.fsencode(root)
        self._prefix = [name for name in os.fsencode(prefix).split(b"/") if name]
        self._walk = self._from_top()
        self._files: dict[int, bytes] = {}
        self._names: dict[tuple[int, int], str] = {}  # of files with several: (device, inode) -> the first
        self._count = 0
        self._asked: deque[int] = deque()
        self._open: tuple[int, int] | None = None  # number and descriptor of the file that is being read
        self.sent = 0  # bytes

    def entries(self) -> list[bytes]:
        """The next entries as packets; [] after the last. Raises InvalidParameter for a name gRPC cannot carry."""
        found = []
        for path, full, info in self._walk:
            found.append(self._packet(path, full, info))
            if len(found) >= _BATCH:
                break
        return found

    def ask(self, number: int) -> None:
        """The client wants entry `number`. Raises InvalidParameter when that is no file."""
        if number not in self._files:
            raise InvalidParameter(f"the client asked for entry {number}, which is no file")
        self._asked.append(number)

    def read(self) -> list[bytes]:
        """Packets of what was asked for, about 1 MiB of them; [] when all is read."""
        found: list[bytes] = []
        size = 0
        while size < _READ and (self._open is not None or self._asked):
            if self._open is None:
                number = self._asked.popleft()
                self._open = (number, os.open(self._files[number], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
            number, fd = self._open
            data = os.read(fd, PIECE)
            found.append(pb.Packet(type=pb.Packet.DATA, id=number, data=data).SerializeToString())  # empty: its end
            size += len(data) + _OVERHEAD
            self.sent += len(data)
            if not data:
                self._open = None
                os.close(fd)
        return found

    def close(self) -> None:
        self._walk.close()
        if self._open is not None:
            os.close(self._open[1])
            self._open = None

    def _from_top(self) -> Generator[tuple[bytes, bytes, os.stat_result], None, None]:
        """Path as the client gets it, path on disk, what is there."""
        info = os.stat(self._root)
        for depth in range(len(self._prefix)):
            yield b"/".join(self._prefix[: depth + 1]), self._root, info
        for path, found in self._below(b""):
            yield b"/".join([*self._prefix, path]), self._root + b"/" + path, found

    def _below(self, below: bytes) -> Generator[tuple[bytes, os.stat_result], None, None]:
        with os.scandir(self._root + b"/" + below if below else self._root) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            path = below + b"/" + entry.name if below else entry.name
            info = entry.stat(follow_symlinks=False)
            yield path, info
            if stat.S_ISDIR(info.st_mode):
                yield from self._below(path)

    def _packet(self, path: bytes, full: bytes, info: os.stat_result) -> bytes:
        try:
            name = path.decode()
        except UnicodeDecodeError:
            raise InvalidParameter(
                f"the file name {os.fsdecode(path)!r} is not UTF-8 and cannot be sent: export a tar instead"
            ) from None
        number, self._count = self._count, self._count + 1
        entry = pb.Stat(
            path=name, mode=to_go(info.st_mode), uid=info.st_uid, gid=info.st_gid, mod_time=info.st_mtime_ns
        )
        if stat.S_ISREG(info.st_mode):
            first = self._names.setdefault((info.st_dev, info.st_ino), name) if info.st_nlink > 1 else name
            if first == name:
                entry.size = info.st_size
                self._files[number] = full
            else:
                entry.linkname = first
        elif stat.S_ISLNK(info.st_mode):
            entry.linkname = os.readlink(full).decode(errors="replace")
        elif stat.S_ISBLK(info.st_mode) or stat.S_ISCHR(info.st_mode):
            entry.devmajor, entry.devminor = os.major(info.st_rdev), os.minor(info.st_rdev)
        for key in os.listxattr(full, follow_symlinks=False):
            entry.xattrs[key] = os.getxattr(full, key, follow_symlinks=False)
        return pb.Packet(type=pb.Packet.STAT, stat=entry).SerializeToString()
