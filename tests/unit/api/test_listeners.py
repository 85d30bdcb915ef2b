"""Where the daemon listens: modes and owners, what is there already, all or none."""

import os
import socket
import stat
from pathlib import Path

import pytest
from wirekit import ask, get, wire_only

from wherry.api.listeners import Listener, Listening, parse, serve
from wherry.api.router import Router
from wherry.api.server import Server
from wherry.errors import Conflict, Failed, InvalidParameter


async def listen(*listeners: Listener) -> Listening:
    return await serve(Server(wire_only(), Router()), listeners)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("unix:///run/wherry.sock", "unix:///run/wherry.sock"),
        ("tcp://127.0.0.1:4000", "tcp://127.0.0.1:4000"),
        ("tcp://", "tcp://127.0.0.1:2375"),
        ("tcp://:4000", "tcp://127.0.0.1:4000"),
        ("tcp://0.0.0.0", "tcp://0.0.0.0:2375"),
        ("127.0.0.1:4000", "tcp://127.0.0.1:4000"),
        ("tcp://[::1]:4000", "tcp://[::1]:4000"),
        ("tcp://[::1]", "tcp://[::1]:2375"),
        ("fd://", "fd://*"),
        ("fd://4", "fd://4"),
    ],
)
def test_addresses_are_read_as_docker_reads_them(text: str, url: str):
    assert parse(text).url == url


@pytest.mark.parametrize(
    "text",
    ["udp://127.0.0.1:1", "unix://relative", "tcp://h:port", "tcp://h:70000", "tcp://h:1/path", "fd://x", "tcp://["],
)
def test_a_malformed_address_is_named(text: str):
    with pytest.raises(InvalidParameter, match="Invalid bind address format: "):
        parse(text)


async def test_the_socket_is_for_root_and_the_group_only(tmp_path: Path):
    path = tmp_path / "deep" / "s"
    listening = await listen(parse(f"unix://{path}", group=str(os.getgid())))
    try:
        found = path.stat()
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o660
        assert found.st_gid == os.getgid()
        assert listening.addresses == [f"unix://{path}"]
        assert (await ask(path, get("/")))[0] == 404
    finally:
        await listening.stop(grace=1)
    assert not path.exists()


async def test_a_socket_left_over_by_a_dead_daemon_is_replaced(tmp_path: Path):
    path = tmp_path / "s"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    listening = await listen(parse(f"unix://{path}"))
    assert (await ask(path, get("/")))[0] == 404
    await listening.stop(grace=1)


async def test_a_socket_that_somebody_answers_on_is_left_alone(tmp_path: Path):
    path = tmp_path / "s"
    first = await listen(parse(f"unix://{path}"))
    with pytest.raises(Conflict, match="another daemon answers there"):
        await listen(parse(f"unix://{path}"))
    assert (await ask(path, get("/")))[0] == 404
    await first.stop(grace=1)


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path):
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(Conflict, match="no socket"):
        await listen(parse(f"unix://{path}"))
    assert path.read_text() == "precious"


async def test_a_path_too_long_for_the_kernel_is_named(tmp_path: Path):
    with pytest.raises(InvalidParameter, match="longer than the kernel's 107 bytes"):
        await listen(parse(f"unix://{tmp_path}/{'x' * 120}"))


async def test_when_one_address_fails_none_is_kept(tmp_path: Path):
    path = tmp_path / "s"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Failed, match=f"cannot listen on tcp://127.0.0.1:{port}: Address already in use"):
            await listen(parse(f"unix://{path}"), parse(f"tcp://127.0.0.1:{port}"))
    assert not path.exists()


async def test_a_socket_that_is_another_daemons_by_now_is_not_removed(tmp_path: Path):
    path = tmp_path / "s"
    first = await listen(parse(f"unix://{path}"))
    path.unlink()
    second = await listen(parse(f"unix://{path}"))
    await first.stop(grace=1)
    assert (await ask(path, get("/")))[0] == 404
    await second.stop(grace=1)


async def test_tcp_ports_are_told_as_bound():
    listening = await listen(parse("tcp://127.0.0.1:0"))
    try:
        host, _, port = listening.addresses[0].rpartition(":")
        assert host == "tcp://127.0.0.1"
        with socket.create_connection(("127.0.0.1", int(port))):
            pass
    finally:
        await listening.stop(grace=1)


async def test_without_systemd_there_are_no_sockets_to_inherit():
    with pytest.raises(Failed, match="no sockets found via socket activation"):
        await listen(parse("fd://"))
