"""The stdio of containers and execs: terminals, input and its end, several clients, slow ones."""

import asyncio
import json
import signal

import pytest

from conftest import unframe
from wherry.errors import InvalidParameter, NotFound
from wherry.runtime.shim_client import ExecSpec

pytestmark = pytest.mark.kernel

ENV = ("PATH=/bin", "LIFE=42")


async def read_until(reader: asyncio.StreamReader, mark: bytes) -> bytes:
    data = b""
    async with asyncio.timeout(20):
        while mark not in data:
            chunk = await reader.read(65536)
            assert chunk, f"ended without {mark!r}: {data!r}"
            data += chunk
    return data


async def test_input_reaches_the_container_and_its_end_too(world, runtime):
    spec = world.spec(["cat"], runtime, open_stdin=True, stdin_once=True)
    shim = await world.shims.create(spec, netns=None)
    reader, writer = await shim.attach(stdin=True, stdout=True, stderr=True)
    await shim.start()
    writer.write(b"hello\n")
    assert unframe(await read_until(reader, b"hello")) == {1: b"hello\n"}
    writer.write(b"the end")
    writer.write_eof()
    assert unframe(await reader.read()) == {1: b"the end"}
    assert (await shim.exited).code == 0
    writer.close()


async def test_without_stdin_once_the_end_of_a_client_is_not_that_of_the_input(world, crun):
    spec = world.spec(["sh", "-c", "read a; echo $a; read b; echo $b"], crun, open_stdin=True)
    shim = await world.shims.create(spec, netns=None)
    await shim.start()
    for line in (b"one\n", b"two\n"):
        reader, writer = await shim.attach(stdin=True, stdout=True, stderr=True)
        writer.write(line)
        writer.write_eof()
        if line == b"one\n":
            await read_until(reader, b"one")
            writer.close()
    assert b"two" in await reader.read()
    writer.close()
    assert (await shim.exited).code == 0


async def test_without_open_stdin_there_is_no_input(world, crun):
    streams, end = await world.run(["sh", "-c", "wc -c"], crun)
    assert (streams, end.code) == ({1: b"0\n"}, 0)


async def test_every_client_gets_the_same_and_may_choose_its_streams(world, crun):
    shim = await world.shims.create(world.spec(["sh", "-c", "echo out; echo err >&2"], crun), netns=None)
    both, only_err = await shim.attach(stdin=False, stdout=True, stderr=True), None
    only_err = await shim.attach(stdin=False, stdout=False, stderr=True)
    await shim.start()
    assert unframe(await both[0].read()) == {1: b"out\n", 2: b"err\n"}
    assert unframe(await only_err[0].read()) == {2: b"err\n"}
    both[1].close()
    only_err[1].close()


async def test_a_terminal_has_the_given_size_and_is_resized(world, runtime):
    script = "stty size; trap 'stty size; exit 3' WINCH; echo ready; while true; do sleep 0.05; done"
    shim = await world.shims.create(
        world.spec(["sh", "-c", script], runtime, tty=True, open_stdin=True, console_size=(33, 99)), netns=None
    )
    reader, writer = await shim.attach(stdin=True, stdout=True, stderr=True)
    await shim.start()
    assert b"33 99\r\n" in await read_until(reader, b"ready")
    await shim.resize(40, 120)
    assert b"40 120\r\n" in await reader.read()
    assert (await shim.exited).code == 3
    writer.close()


async def test_what_is_typed_is_echoed_by_the_terminal_and_control_d_ends_it(world, crun):
    shim = await world.shims.create(world.spec(["cat"], crun, tty=True, open_stdin=True), netns=None)
    reader, writer = await shim.attach(stdin=True, stdout=True, stderr=True)
    await shim.start()
    writer.write(b"word\n")
    assert await read_until(reader, b"word\r\nword\r\n")
    writer.write(b"\x04")
    await reader.read()
    assert (await shim.exited).code == 0
    writer.close()


async def test_a_lot_of_output_arrives_whole_at_a_client_that_is_slower(world, crun):
    size = 24 << 20
    shim = await world.shims.create(world.spec(["head", "-c", str(size), "/dev/zero"], crun), netns=None)
    reader, writer = await shim.attach(stdin=False, stdout=True, stderr=True)
    await shim.start()
    got, held = 0, b""
    while chunk := await reader.read(1 << 16):
        held += chunk
        while len(held) >= 8 and len(held) >= 8 + int.from_bytes(held[4:8]):
            length = int.from_bytes(held[4:8])
            got, held = got + length, held[8 + length :]
        if got % 7 == 0:
            await asyncio.sleep(0.001)
    assert (got, held) == (size, b"")
    writer.close()


async def test_a_lot_of_input_arrives_whole(world, crun):
    shim = await world.shims.create(world.spec(["wc", "-c"], crun, open_stdin=True, stdin_once=True), netns=None)
    reader, writer = await shim.attach(stdin=True, stdout=True, stderr=True)
    await shim.start()
    for _ in range(80):
        writer.write(b"x" * 100_000)
        await writer.drain()
    writer.write_eof()
    assert unframe(await reader.read()) == {1: b"8000000\n"}
    writer.close()


async def test_a_client_that_leaves_does_not_disturb_the_container(world, crun, until):
    shim = await world.started(["sh", "-c", "while true; do echo x; done"], crun)
    _, writer = await shim.attach(stdin=False, stdout=True, stderr=True)
    await asyncio.sleep(0.05)
    writer.transport.abort()
    size = world.log(shim.id).stat().st_size
    await until(lambda: world.log(shim.id).stat().st_size > size + (1 << 20))
    await shim.destroy()


async def run_exec(shim, args, **options):
    handle = await shim.exec(ExecSpec(id="e" * 64, args=args, env=options.pop("env", ENV), **options))
    reader, writer = handle.streams
    raw = await reader.read()
    writer.close()
    async with asyncio.timeout(20):
        return raw, await handle.exited


async def test_an_exec_has_its_own_output_environment_user_and_directory(world, runtime):
    shim = await world.started(["sleep", "60"], runtime)
    script = "echo $LIFE; id -u; id -G; echo $HOME; pwd; echo err >&2; exit 4"
    raw, code = await run_exec(shim, ["sh", "-c", script], user="app", cwd="/tmp")
    streams = unframe(raw)
    assert streams[1].decode().split("\n")[:5] == ["42", "1000", "1000 2000", "/home/app", "/tmp"]
    assert streams[2] == b"err\n"
    assert code == 4


async def test_an_exec_is_as_confined_as_its_container_unless_privileged(world, runtime):
    shim = await world.started(["sleep", "60"], runtime)
    script = ["sh", "-c", "grep -E '^(CapEff|Seccomp):' /proc/self/status | tr -d '\\t'"]
    raw, _ = await run_exec(shim, script)
    assert unframe(raw)[1] == b"CapEff:00000000a80425fb\nSeccomp:2\n"
    raw, _ = await run_exec(shim, script, privileged=True)
    effective = int(unframe(raw)[1].split(b"\n")[0].split(b":")[1], 16)
    assert effective & (1 << 21)  # CAP_SYS_ADMIN
    raw, _ = await run_exec(shim, script, user="app")
    assert b"CapEff:0000000000000000" in unframe(raw)[1]


async def test_an_exec_that_ends_at_once_is_never_missed(world, runtime):
    shim = await world.started(["sleep", "60"], runtime)
    for number in range(15):
        raw, code = await run_exec(shim, ["sh", "-c", f"echo {number}; exit {number}"])
        assert (unframe(raw), code) == ({1: f"{number}\n".encode()}, number)


async def test_execs_run_side_by_side(world, runtime):
    shim = await world.started(["sleep", "60"], runtime)

    async def one(number: int) -> int:
        handle = await shim.exec(
            ExecSpec(id=f"{number:064x}"[::-1], args=["sh", "-c", f"sleep 0.1; exit {number}"], env=ENV)
        )
        reader, writer = handle.streams
        await reader.read()
        writer.close()
        return await handle.exited

    assert await asyncio.gather(*(one(number) for number in range(8))) == list(range(8))


async def test_input_of_an_exec_ends_with_its_client(world, runtime):
    shim = await world.started(["sleep", "60"], runtime)
    handle = await shim.exec(ExecSpec(id="a" * 64, args=["cat"], env=ENV, stdin=True))
    reader, writer = handle.streams
    writer.write(b"through")
    writer.write_eof()
    assert unframe(await reader.read()) == {1: b"through"}
    assert await handle.exited == 0
    writer.close()


async def test_an_exec_on_a_terminal_is_resized(world, runtime):
    shim = await world.started(["sleep", "60"], runtime)
    # crun sets no size in an exec: it comes from us, a moment after the program has begun
    script = (
        "until stty size 2>/dev/null; do sleep 0.01; done; "
        "trap 'stty size; exit 5' WINCH; echo ready; while true; do sleep 0.05; done"
    )
    handle = await shim.exec(
        ExecSpec(id="b" * 64, args=["sh", "-c", script], env=ENV, tty=True, stdin=True, console_size=(11, 22))
    )
    reader, writer = handle.streams
    assert b"11 22\r\n" in await read_until(reader, b"ready")
    await shim.exec_resize(handle.id, 44, 55)
    assert b"44 55\r\n" in await reader.read()
    assert await handle.exited == 5
    writer.close()


async def test_a_detached_exec_runs_to_its_end(world, runtime):
    shim = await world.started(["sleep", "60"], runtime)
    handle = await shim.exec(
        ExecSpec(id="c" * 64, args=["sh", "-c", "echo x > /tmp/done; exit 6"], env=ENV, detach=True)
    )
    assert handle.streams is None
    assert await handle.exited == 6
    assert (world.upper(shim.id) / "tmp/done").read_text() == "x\n"


async def test_an_exec_can_be_killed(world, runtime):
    shim = await world.started(["sleep", "60"], runtime)
    handle = await shim.exec(ExecSpec(id="d" * 64, args=["sleep", "60"], env=ENV, detach=True))
    await shim.exec_kill(handle.id, signal.SIGTERM)
    assert await handle.exited == 143
    with pytest.raises(NotFound):
        await shim.exec_kill(handle.id, signal.SIGTERM)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nosuch"], 'exec: "nosuch": executable file not found in $PATH'),
        (["/etc/passwd"], "permission denied"),
        (["/no/such"], "no such file or directory"),
    ],
)
async def test_an_exec_that_cannot_be_is_refused_in_dockers_words(world, runtime, args, words):
    shim = await world.started(["sleep", "60"], runtime)
    with pytest.raises(InvalidParameter, match="OCI runtime exec failed: exec failed") as caught:
        await shim.exec(ExecSpec(id="f" * 64, args=args, env=ENV))
    assert words in caught.value.message
    with pytest.raises(InvalidParameter, match="unable to find user nobody"):
        await shim.exec(ExecSpec(id="f" * 64, args=["true"], env=ENV, user="nobody", detach=True))


async def test_execs_end_with_their_container(world, runtime):
    shim = await world.started(["sleep", "60"], runtime)
    handle = await shim.exec(ExecSpec(id="9" * 64, args=["sleep", "60"], env=ENV))
    await shim.kill(signal.SIGKILL)
    assert (await shim.exited).code == 137
    assert await handle.exited == 137
    reader, writer = handle.streams
    assert await reader.read() == b""
    writer.close()


async def test_an_execs_output_held_open_by_another_process_does_not_hold_the_exec(world, crun):
    shim = await world.started(["sleep", "60"], crun)
    raw, code = await run_exec(shim, ["sh", "-c", "sleep 50 & echo bye; exit 2"])
    assert (unframe(raw), code) == ({1: b"bye\n"}, 2)


async def test_the_log_has_what_nobody_saw(world, runtime):
    shim = await world.started(["sh", "-c", "seq 1 5000"], runtime)
    assert (await shim.exited).code == 0
    lines = world.log(shim.id).read_text().splitlines()
    assert [json.loads(line)["log"] for line in lines] == [f"{number}\n" for number in range(1, 5001)]
