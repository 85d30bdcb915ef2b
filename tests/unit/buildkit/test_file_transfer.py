import os
import stat

import pytest
from grpckit import session_to
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wherry.builder.contexts import ContextPool, Mirror
from wherry.builder.graph import LocalSource
from wherry.buildkit import bk_pb2 as pb
from wherry.buildkit import filesend, filesync
from wherry.buildkit.filesync import Receiver, request_headers
from wherry.buildkit.modes import from_go, to_go
from wherry.buildkit.server import talking
from wherry.buildkit.wire import Pipe
from wherry.errors import Failed, InvalidParameter, NotSupported, WherryError

T = 1_700_000_000_000_000_000  # ns
FILE, DIR, LINK, FIFO = 0o644, 1 << 31 | 0o755, 1 << 27 | 0o777, 1 << 25 | 0o600
CONTEXT = LocalSource(name="context")


def packet(**fields) -> bytes:
    return pb.Packet(**fields).SerializeToString()


def entry(path: str, mode: int = FILE, **fields) -> bytes:
    return packet(type=pb.Packet.STAT, stat=pb.Stat(path=path, mode=mode, mod_time=T, **fields))


END = packet(type=pb.Packet.STAT)


def data(number: int, content: bytes = b"") -> bytes:
    return packet(type=pb.Packet.DATA, id=number, data=content)


class FakeClient:
    """A client's FileSync: sends `tree` (content, or a whole Stat) and what is asked for of it."""

    def __init__(self, tree: dict[str, bytes | pb.Stat]) -> None:
        self.tree = tree
        self.headers: dict[str, list[str]] = {}
        self.asked: list[str] = []

    def methods(self):
        return {filesync.DIFF_COPY: talking(pb.Packet, pb.Packet, self.run)}

    async def run(self, stream) -> None:
        self.headers = {key: stream.metadata.getall(key) for key in stream.metadata}
        pipe, names = Pipe(stream), list(self.tree)
        for path, content in self.tree.items():
            known = content if isinstance(content, pb.Stat) else None
            sent = known or pb.Stat(path=path, mode=FILE, size=len(content), mod_time=T)
            await pipe.send([packet(type=pb.Packet.STAT, stat=sent)])
        await pipe.send([END])
        while packets := await pipe.receive():
            for raw in packets:
                found = pb.Packet.FromString(raw)
                if found.type == pb.Packet.FIN:
                    return await pipe.send([packet(type=pb.Packet.FIN)])
                self.asked.append(names[found.id])
                content = self.tree[names[found.id]]
                await pipe.send([data(found.id, content[:2]), data(found.id, content[2:])] if content else [])
                await pipe.send([data(found.id)] if content[2:] else [])
        return None


@pytest.fixture
def pool(tmp_path):
    return ContextPool(tmp_path / "pool")


def directory(path: str) -> pb.Stat:
    return pb.Stat(path=path, mode=DIR, mod_time=T)


async def test_a_directory_is_synced_and_the_next_time_only_what_changed(pool):
    client = FakeClient({"Dockerfile": b"FROM scratch", "a": directory("a"), "a/x": b"content"})
    told: list[int] = []
    async with session_to(client.methods()) as session:
        slot = pool.acquire("k")
        first = await filesync.receive(session, CONTEXT, slot, told.append)
        assert (slot.path / "a/x").read_bytes() == b"content"
        assert client.asked == ["Dockerfile", "a/x"]
        assert told[-1] == 19
        assert first.newest == T
        client.asked.clear()
        again = await filesync.receive(session, CONTEXT, slot, told.append)
        assert client.asked == []
        assert again.checksums == first.checksums
        client.tree["a/x"] = b"other content"
        await filesync.receive(session, CONTEXT, slot, told.append)
        assert client.asked == ["a/x"]
        assert (slot.path / "a/x").read_bytes() == b"other content"


async def test_links_modes_and_pipes_come_as_they_are(pool):
    tree = {
        "f": pb.Stat(path="f", mode=FIFO, mod_time=T),
        "l": pb.Stat(path="l", mode=LINK, linkname="../away", mod_time=T),
        "s": pb.Stat(path="s", mode=1 << 24 | 0o600, mod_time=T),  # a socket: left out
        "x": b"#!/bin/sh\n",
        "y": pb.Stat(path="y", mode=FILE, linkname="x", mod_time=T),
        "z": pb.Stat(path="z", mode=1 << 31 | 1 << 20 | 1 << 22 | 0o777, mod_time=T),
    }
    client = FakeClient(tree)
    async with session_to(client.methods()) as session:
        slot = pool.acquire("k")
        await filesync.receive(session, CONTEXT, slot, lambda size: None)
    assert stat.S_ISFIFO((slot.path / "f").lstat().st_mode)
    assert os.readlink(slot.path / "l") == "../away"
    assert not os.path.lexists(slot.path / "s")
    assert (slot.path / "x").stat().st_nlink == 2
    assert (slot.path / "z").stat().st_mode == stat.S_IFDIR | stat.S_ISVTX | stat.S_ISGID | 0o777


async def test_the_client_is_told_the_directory_and_the_patterns(pool):
    client = FakeClient({})
    source = LocalSource(name="context", include=("a", "b"), exclude=("ünï*", "x y%"), follow=("F",))
    async with session_to(client.methods()) as session:
        await filesync.receive(session, source, pool.acquire("k"), lambda size: None)
    assert client.headers["dir-name"] == ["context"]
    assert client.headers["include-patterns"] == ["a", "b"]
    assert client.headers["exclude-patterns"] == ["%C3%BCn%C3%AF%2A", "x+y%25"]
    assert client.headers["exclude-patterns-encoded"] == ["1"]
    assert client.headers["followpaths"] == ["F"]


def test_plain_patterns_are_sent_as_they_are():
    source = LocalSource(name="context", exclude=("**/*.pyc", "!keep me"))
    assert request_headers(source) == [
        ("dir-name", "context"),
        ("exclude-patterns", "**/*.pyc"),
        ("exclude-patterns", "!keep me"),
    ]


async def test_what_the_client_could_not_read_fails_the_transfer_and_leaves_no_file_open(pool):
    async def refuse(stream) -> None:
        await Pipe(stream).send([entry("a"), packet(type=pb.Packet.ERR, data=b"open a: permission denied")])

    async with session_to({filesync.DIFF_COPY: talking(pb.Packet, pb.Packet, refuse)}) as session:
        with pytest.raises(Failed, match="permission denied"):
            await filesync.receive(session, CONTEXT, pool.acquire("k"), lambda size: None)


async def test_a_client_that_ends_too_early_fails_the_transfer(pool):
    async def leave(stream) -> None:
        await Pipe(stream).send([entry("a", size=5), END])

    async with session_to({filesync.DIFF_COPY: talking(pb.Packet, pb.Packet, leave)}) as session:
        with pytest.raises(WherryError):
            await filesync.receive(session, CONTEXT, pool.acquire("k"), lambda size: None)


async def test_a_client_without_files_is_not_asked(pool):
    async with session_to({}) as session:
        with pytest.raises(NotSupported, match="transferring context"):
            await filesync.receive(session, CONTEXT, pool.acquire("k"), lambda size: None)


@pytest.mark.parametrize(
    "packets",
    [
        [entry("b"), entry("a")],
        [entry("a"), entry("a")],
        [entry("a/b")],
        [entry("../a")],
        [entry("/a")],
        [entry("a", mode=FILE), entry("a/b")],
        [entry("a", mode=LINK, linkname="/etc"), entry("a/passwd")],
        [entry("a", linkname="/etc/passwd")],
        [entry("a", linkname="b"), entry("b")],
        [END, entry("a")],
        [data(0, b"x")],
        [entry("a"), data(1, b"x")],
        [entry("a", size=1), END, data(0, b"x"), data(0), data(0, b"more")],
        [entry("d", mode=DIR), END, data(0, b"x")],
        [packet(type=pb.Packet.FIN)],
        [b"\xff\xff"],
    ],
    ids=range(16),
)
def test_hostile_packets_are_refused(pool, packets):
    mirror = Mirror(pool.acquire("k"))
    try:
        with pytest.raises(WherryError):
            Receiver(mirror).feed(packets)
    finally:
        mirror.close()


NAMES = st.sampled_from(["a", "b", "..", ".", "", "a/b", "a/../b", "/etc", "b/a", "a/b/c", "x\0"])
ENTRIES = st.builds(
    entry,
    NAMES,
    st.sampled_from([FILE, DIR, LINK, FIFO]),
    linkname=st.sampled_from(["", "a", "..", "/", "../outside"]),
    size=st.sampled_from([0, 3]),
)
PACKETS = st.one_of(
    ENTRIES, st.builds(data, st.integers(0, 3), st.sampled_from([b"", b"abc"])), st.just(END), st.binary(max_size=8)
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PACKETS, max_size=12))
def test_no_packets_write_anything_outside_of_the_directory(tmp_path, packets):
    pool = ContextPool(tmp_path / "pool")
    outside = tmp_path / "outside"
    outside.mkdir(exist_ok=True)
    slot = pool.acquire("k")
    mirror = Mirror(slot)
    receiver = Receiver(mirror)
    try:
        receiver.feed(packets)
        if receiver.complete:
            receiver.finish()
    except (WherryError, OSError):
        pass
    finally:
        mirror.close()
    assert sorted(os.listdir(tmp_path)) == ["outside", "pool"]
    assert os.listdir(outside) == []
    assert set(os.listdir(slot.root)) <= {"files", "slot", "known"}
    pool.discard(slot)


@pytest.mark.parametrize("mode", [0o100644, 0o104755, 0o040755, 0o041777, 0o120777, 0o020600, 0o060600, 0o010600])
def test_modes_survive_gos_form(mode):
    assert from_go(to_go(mode)) == mode


def test_a_kind_go_has_and_we_have_not_is_none():
    assert from_go(1 << 19) == 0


# --- sending ----------------------------------------------------------------------------------------------------------


def tree_of(root) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        name, info = str(path.relative_to(root)), path.lstat()
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_dir():
            found[name] = (oct(info.st_mode), info.st_mtime_ns)
        else:
            found[name] = (oct(info.st_mode), info.st_mtime_ns, path.read_bytes())
    return found


def receiving(pool):
    """A client that takes a directory, built of our own receiver."""
    slots = []

    async def run(stream) -> None:
        slot = pool.acquire("out")
        slots.append((slot, stream.metadata))
        mirror = Mirror(slot)
        receiver, pipe = Receiver(mirror), Pipe(stream)
        while not receiver.complete:
            wanted = receiver.feed(await pipe.receive())
            await pipe.send([packet(type=pb.Packet.REQ, id=number) for number in wanted])
        receiver.finish()
        mirror.close()
        await pipe.send([packet(type=pb.Packet.FIN)])
        assert [pb.Packet.FromString(each).type for each in await pipe.receive()] == [pb.Packet.FIN]

    return slots, {filesend.DIFF_COPY: talking(pb.Packet, pb.Packet, run)}


@pytest.fixture
def result(tmp_path):
    root = tmp_path / "result"
    (root / "d/e").mkdir(parents=True)
    (root / "d-x").write_bytes(b"")
    (root / "d/big").write_bytes(os.urandom(3_000_000))
    (root / "d/e/l").symlink_to("../big")
    (root / "h1").write_bytes(b"one file")
    (root / "h2").hardlink_to(root / "h1")
    (root / "d/e").chmod(0o700)
    return root


async def test_a_directory_arrives_as_it_is(pool, result):
    slots, methods = receiving(pool)
    async with session_to(methods) as session:
        await filesend.send_directory(session, 3, result, lambda size: None)
    ((slot, metadata),) = slots
    assert tree_of(slot.path) == tree_of(result)
    assert metadata["buildkit-attachable-exporter-id"] == "3"
    assert (slot.path / "h1").stat().st_ino == (slot.path / "h2").stat().st_ino


async def test_a_directory_may_go_below_another(pool, result):
    slots, methods = receiving(pool)
    async with session_to(methods) as session:
        await filesend.send_directory(session, 0, result, lambda size: None, prefix="out/linux_amd64")
    ((slot, _),) = slots
    assert tree_of(slot.path / "out/linux_amd64") == tree_of(result)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (packet(type=pb.Packet.REQ, id=0), InvalidParameter),  # a directory
        (packet(type=pb.Packet.REQ, id=99), InvalidParameter),
        (packet(type=pb.Packet.ERR, data=b"disk full"), Failed),
        (packet(type=pb.Packet.STAT), InvalidParameter),
    ],
)
async def test_a_client_that_asks_for_nonsense_gets_nothing(result, answer, error):
    async def run(stream) -> None:
        pipe = Pipe(stream)
        await pipe.send([answer])
        while await pipe.receive():
            pass

    async with session_to({filesend.DIFF_COPY: talking(pb.Packet, pb.Packet, run)}) as session:
        with pytest.raises(error):
            await filesend.send_directory(session, 0, result, lambda size: None)


async def test_a_name_that_is_no_utf8_is_refused_with_the_way_out(tmp_path):
    root = tmp_path / "r"
    root.mkdir()
    with open(os.fsencode(root) + b"/\xff", "wb"):
        pass
    async with session_to(receiving(ContextPool(tmp_path / "p"))[1]) as session:
        with pytest.raises(InvalidParameter, match="export a tar"):
            await filesend.send_directory(session, 0, root, lambda size: None)


async def test_a_stream_arrives_whole_with_its_metadata():
    received: list[bytes] = []
    headers: dict[str, str] = {}

    async def run(stream) -> None:
        headers.update(stream.metadata)
        while messages := await Pipe(stream).receive():
            received.extend(pb.Bytes.FromString(each).data for each in messages)

    async def chunks():
        for _ in range(5):
            yield b"0123456789" * 100_000

    async with session_to({filesend.DIFF_COPY: talking(pb.Bytes, pb.Bytes, run)}) as session:
        await filesend.send_stream(session, 1, {"containerimage.digest": "sha256:1"}, chunks())
    assert b"".join(received) == b"0123456789" * 500_000
    assert max(len(each) for each in received) <= filesend.PIECE
    assert headers["exporter-md-containerimage.digest"] == "sha256:1"
    assert headers["buildkit-attachable-exporter-id"] == "1"
