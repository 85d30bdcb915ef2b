"""`POST /builds` over a socket: the engine's questions, answered by the command line's own code."""

import asyncio
import hashlib
import os
import socket
import stat
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from wherry.api.build_frames import Frame, Head, Link, Reader, encode, names, split_names
from wherry.api.build_remote import RemoteClient
from wherry.builder.contexts import ContextPool
from wherry.builder.graph import LocalSource
from wherry.cli.build_link import Reader as ClientReader
from wherry.cli.build_request import Output, Plan, Secret
from wherry.cli.build_session import Session
from wherry.cli.command import CLI
from wherry.cli.flags import Flags
from wherry.cli.main import GLOBAL_FLAGS
from wherry.cli.signals import Inbox
from wherry.client.engine import Hijacked
from wherry.client.http import Stream
from wherry.digest import Digest
from wherry.errors import Failed, InvalidParameter, NotFound

Talk = Callable[[Link, RemoteClient], Awaitable[object]]


class SocketStream:
    """The engine's end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def read(self) -> bytes:
        return await self.reader.read(1 << 18)

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def write_eof(self) -> None:
        self.writer.write_eof()

    def close(self) -> None:
        self.writer.close()


class NoSignals:
    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def fileno(self) -> int:
        return self._read

    def take(self) -> list[int]:
        return list(os.read(self._read, 100))

    def interrupt(self) -> None:
        os.write(self._write, b"\x02")

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


class Events:
    def __init__(self) -> None:
        self.heard: list[Mapping[str, Any]] = []

    def hear(self, event: Mapping[str, Any]) -> None:
        self.heard.append(event)

    def tick(self) -> None:
        return

    def end(self) -> None:
        return


async def converse(plan: Plan, pool: ContextPool, talk: Talk, **more: Any) -> tuple[object, dict[str, Any]]:
    """`talk` as the engine; what it returned, and the last frame the command line saw."""
    ours, theirs = socket.socketpair()
    stream = SocketStream(*await asyncio.open_connection(sock=ours))
    inbox, events = more.get("inbox") or NoSignals(), more.get("events") or Events()
    cli = CLI(Flags(GLOBAL_FLAGS), more.get("environ") or {"HOME": "/nonexistent"})
    hijacked = cast(Hijacked, SimpleNamespace(stream=Stream(cast(Any, theirs)), early=b""))
    session = Session(cli, plan, hijacked, cast(Inbox, inbox), events)
    done = asyncio.get_running_loop().run_in_executor(None, lambda: session.run(interval=None))
    try:
        async with asyncio.timeout(20):
            link = Link(stream)
            first = await link.first()
            assert first.head.type == "build"
            listening = asyncio.ensure_future(link.listen())
            client = RemoteClient(link, pool, node="here")
            try:
                result = await talk(link, client)
            finally:
                await client.close()
                await link.send(Head(type="result", response={"done": "yes"}))
                end = await done
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)
    finally:
        stream.close()
        theirs.close()
        inbox.close()
    return result, end


@pytest.fixture
def pool(tmp_path: Path) -> ContextPool:
    return ContextPool(tmp_path / "pool")


@pytest.fixture
def context(tmp_path: Path) -> Path:
    root = tmp_path / "context"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_bytes(b"A")
    (root / "big").write_bytes(os.urandom(3 << 20))
    (root / "sub/x.sh").write_bytes(b"#!/bin/sh\n")
    (root / "sub/x.sh").chmod(0o755)
    (root / "link").symlink_to("sub/x.sh")
    (root / os.fsdecode(b"not\xfftext")).write_bytes(b"bytes")
    (root / "empty").write_bytes(b"")
    return root


def plan_of(**directories: Path) -> Plan:
    plan = Plan()
    plan.directories = {name: str(path) for name, path in directories.items()}
    return plan


def ignore(_: int) -> None: ...


def shown(root: Path) -> dict[str, tuple[int, bytes]]:
    found = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(root))] = (info.st_mode, content)
    return found


async def test_a_directory_arrives_as_it_is(pool: ContextPool, context: Path) -> None:
    async def talk(link: Link, client: RemoteClient) -> object:
        told: list[int] = []
        directory = await client.local(LocalSource(name="context"), told.append)
        assert told[-1] == sum(
            path.stat().st_size for path in context.rglob("*") if path.is_file() and not path.is_symlink()
        )
        assert directory.checksums["a.txt"] == hashlib.sha256(b"A").hexdigest()
        assert directory.path.joinpath("a.txt").stat().st_mtime_ns == context.joinpath("a.txt").stat().st_mtime_ns
        return shown(directory.path)

    found, end = await converse(plan_of(context=context), pool, talk)
    assert found == shown(context)
    assert end["response"] == {"done": "yes"}


async def test_only_what_changed_is_sent_again(pool: ContextPool, context: Path) -> None:
    sent: list[int] = []

    async def talk(link: Link, client: RemoteClient) -> object:
        told = [0]
        directory = await client.local(LocalSource(name="context", shared_key="k"), told.append)
        sent.append(told[-1])
        return shown(directory.path)

    await converse(plan_of(context=context), pool, talk)
    (context / "a.txt").write_bytes(b"changed")
    (context / "sub/x.sh").unlink()
    (context / "link").unlink()
    found, _ = await converse(plan_of(context=context), pool, talk)
    assert found == shown(context)
    assert sent[0] > 3 << 20
    assert sent[1] == len(b"changed")


async def test_patterns_are_applied_where_the_files_are(pool: ContextPool, context: Path) -> None:
    async def talk(link: Link, client: RemoteClient) -> object:
        some = await client.local(LocalSource(name="context", exclude=("big", "sub/*", "!sub/x.sh")), ignore)
        few = await client.local(LocalSource(name="context", follow=("link",)), ignore)
        return sorted(shown(some.path)), sorted(shown(few.path))

    found, _ = await converse(plan_of(context=context), pool, talk)
    everything = sorted(shown(context))
    assert found == ([name for name in everything if name != "big"], ["link", "sub", "sub/x.sh"])


async def test_many_files_are_listed_in_parts(pool: ContextPool, tmp_path: Path) -> None:
    root = tmp_path / "many"
    root.mkdir()
    for number in range(2500):
        (root / f"file-{number}").write_bytes(b"%d" % number)

    async def talk(link: Link, client: RemoteClient) -> object:
        return len(shown((await client.local(LocalSource(name="context"), ignore)).path))

    assert (await converse(plan_of(context=root), pool, talk))[0] == 2500


async def test_only_what_was_named_is_given(pool: ContextPool, context: Path, tmp_path: Path) -> None:
    async def talk(link: Link, client: RemoteClient) -> object:
        with pytest.raises(NotFound, match="no local directory 'secrets' was given"):
            await client.local(LocalSource(name="secrets"), ignore)
        with pytest.raises(NotFound, match="has no destination here"):
            await client.send_stream(0, {}, pieces(b"x"))
        with pytest.raises(NotFound, match="no content store 'local:/etc' was given"):
            await anext(client.read_blob("local:/etc", Digest("sha256:" + "a" * 64)))
        with pytest.raises(NotFound, match="nothing comes on standard input"):
            await anext(client.upload("http://buildkit-session/x"))
        with pytest.raises(NotFound, match="unset ssh forward key other"):
            await client.agent("other")
        return await client.secret("nope"), await client.has_agent("default")

    assert (await converse(plan_of(context=context), pool, talk))[0] == (None, False)


async def test_a_directory_that_cannot_be_read_is_a_failure_with_its_name(pool: ContextPool, tmp_path: Path) -> None:
    async def talk(link: Link, client: RemoteClient) -> object:
        with pytest.raises(Failed, match="gone: no such file or directory"):
            await client.local(LocalSource(name="context"), ignore)
        return None

    await converse(plan_of(context=tmp_path / "gone"), pool, talk)


async def test_secrets_come_from_files_and_variables(pool: ContextPool, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\x00bytes\xff")
    plan = Plan()
    plan.secrets = {"file": Secret(path=str(tmp_path / "secret")), "variable": Secret(variable="TOKEN")}

    async def talk(link: Link, client: RemoteClient) -> object:
        return await client.secret("file"), await client.secret("variable")

    found, _ = await converse(plan, pool, talk, environ={"TOKEN": "t"})
    assert found == (b"\x00bytes\xff", b"t")


async def test_credentials_are_those_of_the_configuration(pool: ContextPool, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"auths":{"reg.test:5000":{"username":"me","password":"p"}}}')

    async def talk(link: Link, client: RemoteClient) -> object:
        mine, hub = await client.credentials("reg.test:5000"), await client.credentials("registry-1.docker.io")
        return mine.username, mine.password, hub.username

    found, _ = await converse(Plan(), pool, talk, environ={"DOCKER_CONFIG": str(tmp_path)})
    assert found == ("me", "p", "")


async def test_an_agent_is_spoken_to_in_both_directions(pool: ContextPool, tmp_path: Path) -> None:
    path = tmp_path / "agent"

    def agent(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        while data := connection.recv(100):
            connection.sendall(b"re:" + data)
        connection.close()

    plan = Plan()
    plan.agents = {"default": str(path)}
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        thread = threading.Thread(target=agent, args=(listening,))
        thread.start()

        async def talk(link: Link, client: RemoteClient) -> object:
            connection = await client.agent("default")
            await connection.write(b"one")
            first = await connection.read()
            await connection.write(b"two")
            second = await connection.read()
            await connection.close()
            return first, second

        found, _ = await converse(plan, pool, talk)
        await asyncio.get_running_loop().run_in_executor(None, thread.join, 10)
    assert found == (b"re:one", b"re:two")
    assert not thread.is_alive(), "the agent has seen the end"


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def test_a_stream_becomes_a_file(pool: ContextPool, tmp_path: Path) -> None:
    plan = Plan()
    plan.outputs = [Output("tar", {}, str(tmp_path / "out.tar"))]
    data = os.urandom(1 << 20)

    async def talk(link: Link, client: RemoteClient) -> object:
        await client.send_stream(0, {}, pieces(data, b"", b"end"))
        return None

    await converse(plan, pool, talk)
    assert (tmp_path / "out.tar").read_bytes() == data + b"end"


async def test_files_become_a_directory(pool: ContextPool, context: Path, tmp_path: Path) -> None:
    os.link(context / "a.txt", context / "sub/hard")
    plan = Plan()
    plan.outputs = [Output("image", {}), Output("local", {}, str(tmp_path / "out"))]

    async def talk(link: Link, client: RemoteClient) -> object:
        told: list[int] = []
        await client.send_directory(1, context, told.append)
        await client.send_directory(1, context / "sub", ignore, prefix="linux_arm64")
        return told[-1]

    sent, _ = await converse(plan, pool, talk)
    assert sent == 1 + (3 << 20) + 10 + 5
    found = shown(tmp_path / "out")
    assert {name: each for name, each in found.items() if not name.startswith("linux_arm64")} == shown(context)
    assert "linux_arm64/x.sh" in found
    assert (tmp_path / "out/a.txt").stat().st_ino == (tmp_path / "out/sub/hard").stat().st_ino
    assert (tmp_path / "out/sub").stat().st_mtime_ns == (context / "sub").stat().st_mtime_ns


async def test_what_cannot_be_written_is_a_failure_of_the_build(
    pool: ContextPool, context: Path, tmp_path: Path
) -> None:
    plan = Plan()
    (tmp_path / "file").write_text("in the way")
    plan.outputs = [Output("local", {}, str(tmp_path / "file"))]

    async def talk(link: Link, client: RemoteClient) -> object:
        with pytest.raises(Failed, match="file exists"):
            await client.send_directory(0, context, ignore)
        return None

    await converse(plan, pool, talk)


async def test_blobs_go_and_come_by_digest(pool: ContextPool, tmp_path: Path) -> None:
    plan = Plan()
    plan.stores = {"local:cache": str(tmp_path / "cache")}
    data = os.urandom(600 << 10)
    digest = Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")

    async def talk(link: Link, client: RemoteClient) -> object:
        for _ in range(2):  # the second time it is there
            await client.write_blob("local:cache", digest, len(data), pieces(data))
        with pytest.raises(InvalidParameter, match="came broken"):
            await client.write_blob("local:cache", Digest("sha256:" + "b" * 64), 1, pieces(b"x"))
        with pytest.raises(NotFound, match="not found in"):
            await anext(client.read_blob("local:cache", Digest("sha256:" + "c" * 64)))
        return b"".join([part async for part in client.read_blob("local:cache", digest)])

    assert (await converse(plan, pool, talk))[0] == data


async def test_standard_input_is_uploaded_once(pool: ContextPool, tmp_path: Path) -> None:
    data = os.urandom(700 << 10)
    (tmp_path / "stdin").write_bytes(data[5:])
    saved, fd = os.dup(0), os.open(tmp_path / "stdin", os.O_RDONLY)
    os.dup2(fd, 0)
    try:
        plan = Plan()
        plan.archive = data[:5]

        async def talk(link: Link, client: RemoteClient) -> object:
            return b"".join([part async for part in client.upload("http://buildkit-session/context")])

        found, _ = await converse(plan, pool, talk)
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(fd)
    assert found == data


async def test_events_are_shown_and_ctrl_c_is_told(pool: ContextPool) -> None:
    inbox, events = NoSignals(), Events()

    async def talk(link: Link, client: RemoteClient) -> object:
        await link.send(Head(type="events", events=[{"log": {"text": "x"}}, {"vertex": {"key": "k"}}]))
        inbox.interrupt()
        return (await link.control.receive()).head.type

    found, _ = await converse(Plan(), pool, talk, inbox=inbox, events=events)
    assert found == "cancel"
    assert events.heard == [{"log": {"text": "x"}}, {"vertex": {"key": "k"}}]


async def test_a_shell_without_a_terminal_is_refused(pool: ContextPool) -> None:
    async def talk(link: Link, client: RemoteClient) -> object:
        async with link.ask(Head(type="shell", message="it failed")) as conversation:
            with pytest.raises(InvalidParameter, match="needs a terminal"):
                await conversation.receive()
        return None

    saved, null = os.dup(0), os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    try:
        await converse(Plan(), pool, talk)
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(null)


# --- frames -----------------------------------------------------------------------------------------------------------


def test_frames_may_be_cut_anywhere() -> None:
    raw = encode(Head(type="bytes", id=3), b"data") + encode(Head(type="end", id=3))
    for size in (1, 7, len(raw)):
        reader, theirs = Reader(), ClientReader()
        parts = [raw[at : at + size] for at in range(0, len(raw), size)]
        frames = [frame for part in parts for frame in reader.feed(part)]
        assert frames == [Frame(Head(type="bytes", id=3), b"data"), Frame(Head(type="end", id=3))]
        seen = [frame for part in parts for frame in theirs.feed(part)]
        assert seen == [({"type": "bytes", "id": 3}, b"data"), ({"type": "end", "id": 3}, b"")]


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff" * 8,
        b"\0\0\0\1\xff\xff\xff\xff",
        b"\0\0\0\2\0\0\0\0{]",
        b"\0\0\0\2\0\0\0\0{}",
        b"\0\0\0\x0c\0\0\0\0" + b'{"type": 1 }',
    ],
)
def test_what_is_no_frame_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidParameter):
        Reader().feed(raw)


def test_names_travel_as_bytes() -> None:
    pairs = [(b"a\xff", b""), (b"b", b"../x")]
    assert split_names(names(pairs), 2) == pairs
    for data, count in ((b"a\0", 1), (b"a\0b\0c", 1), (b"", 1)):
        with pytest.raises(InvalidParameter):
            split_names(data, count)


def listing(entries: list[tuple[int, int, int, int]], data: bytes, *, more: bool = False) -> bytes:
    return encode(Head(type="listing", id=1, entries=entries, more=more), data)


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([listing([(stat.S_IFREG | 0o644, 0, 0, 0)], b"../x\0\0")], "../x"),
        ([listing([(stat.S_IFREG | 0o644, 0, 0, 0)], b"no/parent\0\0")], "no/parent"),
        ([listing([(stat.S_IFREG | 0o644, 0, 0, 0)], b"a\0")], "does not name its entries"),
        ([encode(Head(type="file", id=1, file=7), b"x")], "was not listed"),
        ([encode(Head(type="secret", id=1))], "is no answer"),
        ([listing([(stat.S_IFREG | 0o644, 0, 0, 0)] * 2, b"a\0\0a\0\0")], "a"),
    ],
)
async def test_a_hostile_listing_ends_the_sync(pool: ContextPool, answers: list[bytes], words: str) -> None:
    ours, theirs = socket.socketpair()
    stream = SocketStream(*await asyncio.open_connection(sock=ours))
    link = Link(stream)
    listening = asyncio.ensure_future(link.listen())
    client = RemoteClient(link, pool, node="x")
    try:
        asking = asyncio.ensure_future(client.local(LocalSource(name="context"), ignore))
        await asyncio.get_running_loop().run_in_executor(None, theirs.recv, 1000)  # the question
        theirs.sendall(b"".join(answers))
        with pytest.raises(InvalidParameter, match=words):
            async with asyncio.timeout(10):
                await asking
    finally:
        await client.close()
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        stream.close()
        theirs.close()


async def test_a_client_that_goes_away_ends_every_question(pool: ContextPool) -> None:
    ours, theirs = socket.socketpair()
    stream = SocketStream(*await asyncio.open_connection(sock=ours))
    link = Link(stream)
    listening = asyncio.ensure_future(link.listen())
    client = RemoteClient(link, pool, node="x")
    asking = asyncio.ensure_future(client.secret("x"))
    await asyncio.sleep(0)
    theirs.close()
    with pytest.raises(ConnectionError):
        async with asyncio.timeout(10):
            await asking
    await asyncio.gather(listening, return_exceptions=True)
    stream.close()
