"""Receiving a client's directory: the receiver's side of fsutil's protocol (tonistiigi/fsutil), into a `Mirror`.

The client lists its files depth-first, each directory in the order of names' bytes; we ask by number for those that
changed, and get their content in pieces that may be mixed. A path, mode or order that no file system could have had is
refused. The packets are worked off in a thread, many at a time.
"""

import os
import stat
from collections.abc import Sequence

from google.protobuf.message import DecodeError
from grpclib.client import Stream

from wherry.aio import settle
from wherry.builder.client import Transferred
from wherry.builder.contexts import Mirror, Slot
from wherry.builder.graph import LocalSource
from wherry.builder.trees import Directory
from wherry.buildkit import bk_pb2 as pb
from wherry.buildkit.modes import from_go
from wherry.buildkit.session import Headers, Session
from wherry.buildkit.wire import Pipe
from wherry.errors import Failed, InvalidParameter

DIFF_COPY = "/moby.filesync.v1.FileSync/DiffCopy"

_Packet = pb.Packet
_STAT, _DATA, _FIN, _ERR = pb.Packet.STAT, pb.Packet.DATA, pb.Packet.FIN, pb.Packet.ERR


async def receive(session: Session, source: LocalSource, slot: Slot, transferred: Transferred) -> Directory:
    """The client's directory, as it is now, in `slot`."""
    what = f"transferring {source.name}"
    mirror = await settle(Mirror, slot)
    try:
        headers = request_headers(source)
        async with session.talk(DIFF_COPY, pb.Packet, pb.Packet, what=what, headers=headers) as stream:
            checksums = await _exchange(stream, Receiver(mirror), transferred)
    finally:
        await settle(mirror.close)
    return Directory(path=slot.path, identity=slot.content, checksums=checksums, newest=mirror.newest)


async def _exchange(
    stream: "Stream[pb.Packet, pb.Packet]", receiver: "Receiver", transferred: Transferred
) -> dict[str, str]:
    pipe = Pipe(stream)
    while not receiver.complete:
        packets = await pipe.receive()
        if not packets:
            raise Failed("the client ended the transfer of its files before it was complete")
        wanted = await settle(receiver.feed, packets)
        transferred(receiver.received)
        if wanted:
            await pipe.send([_request(number) for number in wanted])
    checksums = await settle(receiver.finish)
    await pipe.send([_Packet(type=_FIN).SerializeToString()], end=True)
    while packets := await pipe.receive():
        if any(_Packet.FromString(each).type == _FIN for each in packets):
            break
    return checksums


def _request(number: int) -> bytes:
    return _Packet(type=pb.Packet.REQ, id=number).SerializeToString()


def request_headers(source: LocalSource) -> Headers:
    """Which directory, and what of it; the client evaluates the patterns."""
    headers = [("dir-name", source.name)]
    for key, values in (
        ("include-patterns", source.include),
        ("exclude-patterns", source.exclude),
        ("followpaths", source.follow),
    ):
        headers += _encoded(key, values)
    return headers


def _encoded(key: str, values: Sequence[str]) -> Headers:
    """gRPC metadata is printable ASCII: else all values of the key are sent as in URLs, and that is said."""
    if all(value and value.isascii() and value.isprintable() for value in values):
        return [(key, value) for value in values]
    return [(f"{key}-encoded", "1"), *((key, _quoted(value)) for value in values if value)]


def _quoted(value: str) -> str:
    safe = b"-_.~"
    return "".join(
        chr(byte) if byte in safe or (chr(byte).isalnum() and byte < 128) else "+" if byte == 32 else f"%{byte:02X}"
        for byte in os.fsencode(value)
    )


def _device(entry: pb.Stat) -> int:
    try:
        return os.makedev(entry.devmajor, entry.devminor) if entry.devmajor or entry.devminor else 0
    except (OverflowError, ValueError):
        raise InvalidParameter(f"invalid context: {entry.path[:200]!r} is no device there can be") from None


class Receiver:
    """Turns packets into calls of a `Mirror`. Blocking."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._paths: dict[int, str] = {}  # files asked for and not complete
        self._listed = False
        self._count = 0  # entries so far: the number of the next
        self._last: tuple[str, ...] = ()  # path of the entry before, by its names

    @property
    def received(self) -> int:
        """Bytes."""
        return self._mirror.received

    @property
    def complete(self) -> bool:
        return self._listed and not self._paths

    def feed(self, packets: Sequence[bytes]) -> list[int]:
        """The numbers of the files whose content is wanted. Raises WherryErrors."""
        wanted: list[int] = []
        packet = _Packet()
        for raw in packets:
            try:
                packet.ParseFromString(raw)
            except DecodeError:
                raise InvalidParameter("the client sent a packet that cannot be decoded") from None
            kind = packet.type
            if kind == _STAT:
                if self._listed:
                    raise InvalidParameter("the client listed a file after the end of its list")
                if not packet.HasField("stat"):
                    self._listed = True
                elif self._entry(packet.stat):
                    wanted.append(self._count)
                    self._paths[self._count] = packet.stat.path
                self._count += packet.HasField("stat")
            elif kind == _DATA:
                self._data(packet.id, packet.data)
            elif kind == _ERR:
                raise Failed(f"the client could not send its files: {packet.data.decode(errors='replace')[:1000]}")
            elif kind == _FIN:
                raise Failed("the client ended the transfer of its files before it was complete")
        return wanted

    def _entry(self, entry: pb.Stat) -> bool:
        path, mode = entry.path, from_go(entry.mode)
        names = tuple(path.split("/"))
        if not names > self._last:
            raise InvalidParameter(f"invalid context: {path[:200]!r} is listed out of order")
        self._last = names
        if mode == 0 or stat.S_ISSOCK(mode):
            return False  # there is no copying it
        return self._mirror.add(
            path,
            mode=mode,
            size=entry.size,
            mtime=entry.mod_time,
            link=entry.linkname,
            device=_device(entry),
            xattrs=dict(entry.xattrs) if entry.xattrs else None,
        )

    def _data(self, number: int, data: bytes) -> None:
        path = self._paths.get(number)
        if path is None:
            raise InvalidParameter(f"the client sent content of entry {number}, which was not asked for")
        if data:
            self._mirror.write(path, data)
        else:
            self._mirror.close_file(path)
            del self._paths[number]

    def finish(self) -> dict[str, str]:
        return self._mirror.finish()
