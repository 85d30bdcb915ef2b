"""Parts of other trees in a container, and what is mounted in it or taken away while it runs: by real shims."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from wherry.errors import Conflict, Failed, InvalidParameter, NotFound
from wherry.kernel.mount import ATTR_RDONLY, MS_PRIVATE, Mount
from wherry.runtime.devices import Device
from wherry.runtime.shim_client import ExecSpec, Part
from wherry.runtime.spec import bind_options

pytestmark = pytest.mark.kernel

NUMBERS = itertools.count()
ZERO = Device(path="/dev/own/zero", kind="c", major=1, minor=5, mode=0o640, uid=0, gid=10)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "volume"
    (path / "inner").mkdir(parents=True)
    (path / "inner/file").write_text("in the volume\n")
    (path / "inside").symlink_to("inner")
    (path / "out").symlink_to("/etc")
    (path / "up").symlink_to("../..")
    return path


def part(source: Path, **wanted: object) -> Part:
    return Part(mounts=(Mount(type="bind", source=str(source)),), name=str(source), **wanted)  # type: ignore[arg-type]


def spec_with(world, args, runtime, wanted, *, read_only=False, **more):
    spec = world.spec(args, runtime, parts=[wanted], **more)
    source = world.shims.part(spec.id, 0)
    spec.spec["mounts"].append(
        {"destination": "/mnt", "type": "bind", "source": source, "options": list(bind_options(read_only=read_only))}
    )
    return spec


async def said_by(world, spec):
    shim = await world.shims.create(spec, netns=None)
    reader, writer = await shim.attach(stdin=False, stdout=True, stderr=True)
    await shim.start()
    output = await reader.read()
    writer.close()
    end = await shim.exited
    await world.shims.forget(spec.id)
    return unframed(output), end.code


def unframed(raw):
    output = b""
    while raw:
        length = int.from_bytes(raw[4:8], "big")
        output, raw = output + raw[8 : 8 + length], raw[8 + length :]
    return output


@pytest.mark.parametrize("selector", ["inner", "inside", "inner/../inner"])
async def test_a_part_of_a_volume_is_all_that_is_seen(world, runtime, volume, selector):
    spec = spec_with(world, ["ls", "/mnt"], runtime, part(volume, selector=selector, beneath=True))
    output, code = await said_by(world, spec)
    assert (output, code) == (b"file\n", 0)


@pytest.mark.parametrize(
    ("selector", "words"),
    [
        ("out", "path concatenation escapes the base directory, base: .*volume, subpath: out"),
        ("up", "path concatenation escapes the base directory"),
        ("../volume", "path concatenation escapes the base directory"),
        ("nope", "cannot access path .*volume/nope: lstat .*volume/nope: no such file or directory"),
        ("inner/file/x", 'error while resolving symlinks in combined path ".*/inner/file/x": not a directory'),
    ],
)
async def test_a_part_that_leads_out_or_is_not_there_is_refused(world, crun, volume, selector, words):
    spec = spec_with(world, ["ls", "/mnt"], crun, part(volume, selector=selector, beneath=True))
    with pytest.raises(InvalidParameter, match=words):
        await world.shims.create(spec, netns=None)
    assert world.shims.ids() == []


SWAPPER = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
volume = os.open(sys.argv[1], os.O_PATH)
print(flush=True)
while True:  # RENAME_EXCHANGE: at every instant `at` is there, as a directory or as a link to the host's
    libc.renameat2(volume, b"at", volume, b"link", 2)
"""


async def test_a_directory_exchanged_for_a_link_during_the_start_never_gives_the_hosts_files(world, crun, tmp_path):
    secret, volume = tmp_path / "secret", tmp_path / "volume"
    secret.mkdir()
    (secret / "stolen").touch()
    (volume / "at").mkdir(parents=True)
    (volume / "at/own").touch()
    (volume / "link").symlink_to(secret)
    swapper = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
        [sys.executable, "-c", SWAPPER, str(volume)], stdout=subprocess.PIPE
    )
    seen = Counter[str]()
    try:
        assert swapper.stdout is not None
        swapper.stdout.readline()
        for turn in range(300):
            if turn >= 12 and seen["own"] and seen["refused"]:
                break
            spec = spec_with(world, ["ls", "/mnt"], crun, part(volume, selector="at", beneath=True))
            try:
                output, _ = await said_by(world, spec)
            except InvalidParameter as exc:
                seen["refused" if "escapes the base directory" in exc.message else "odd"] += 1
            else:
                assert output == b"own\n"
                seen["own"] += 1
    finally:
        swapper.kill()
        swapper.communicate()
    assert seen["own"]
    assert seen["refused"]  # it did race
    assert not seen["odd"]


async def test_files_come_out_as_the_caller(world, runtime, tmp_path):
    source = tmp_path / "home"
    source.mkdir()
    os.chown(source, 4321, 8765)
    (source / "of-root").touch()
    script = (
        "touch /mnt/made; : > /mnt/deleted; rm /mnt/deleted; ls -ln /mnt | while read m l u g r; do echo $u $g; done"
    )
    spec = spec_with(world, ["sh", "-c", script], runtime, part(source, id_map="caller=4321-8765"))
    output, code = await said_by(world, spec)
    assert code == 0
    assert b"0 0\n65534 65534\n" in output  # what was made, and the host root's own file
    made = (source / "made").stat()
    assert (made.st_uid, made.st_gid) == (4321, 8765)


async def test_the_caller_is_the_containers_own_user_whoever_that_is(world, crun, tmp_path):
    source = tmp_path / "home"
    source.mkdir()
    os.chown(source, 4321, 8765)
    spec = spec_with(world, ["touch", "/mnt/made"], crun, part(source, id_map="caller=4321-8765"), user="app")
    assert (await said_by(world, spec))[1] == 0
    assert ((source / "made").stat().st_uid, (source / "made").stat().st_gid) == (4321, 8765)


async def test_ids_that_are_not_mapped_cannot_own_files(world, crun, tmp_path):
    source = tmp_path / "home"
    source.mkdir()
    os.chown(source, 4322, 8765)
    source.chmod(0o777)
    wanted = part(source, id_map="uids=5-4321-2;gids=5-8765-2")
    spec = spec_with(world, ["sh", "-c", "touch /mnt/x"], crun, wanted)
    output, code = await said_by(world, spec)
    assert code == 1
    assert b"Value too large" in output
    spec = spec_with(world, ["touch", "/mnt/y"], crun, wanted, user="6:5")
    assert (await said_by(world, spec))[1] == 0
    assert ((source / "y").stat().st_uid, (source / "y").stat().st_gid) == (4322, 8765)


async def test_a_file_system_that_cannot_map_ids_is_named(world, crun):
    spec = spec_with(world, ["true"], crun, part(Path("/proc/sys"), id_map="caller=1000-1000"))
    with pytest.raises(Failed, match="the file system proc, or one mounted below, does not support id-mapped mounts"):
        await world.shims.create(spec, netns=None)


async def read(shim, args):
    """What a further process of the container says."""
    handle = await shim.exec(ExecSpec(id=f"e{next(NUMBERS)}", args=args, env=["PATH=/bin"]))
    assert handle.streams is not None
    reader, writer = handle.streams
    output = await reader.read()
    writer.close()
    return unframed(output), await handle.exited


async def is_there(shim, kind, path):
    """Wait until the container has made it."""
    async with asyncio.timeout(10):
        while (await read(shim, ["test", kind, path]))[1]:  # noqa: ASYNC110 - it happens in the container
            await asyncio.sleep(0.01)


async def test_a_mount_comes_to_a_running_container_and_goes(world, runtime, volume):
    shim = await world.started(["sleep", "60"], runtime)
    await shim.attach_mount("/data/deep", part(volume, selector="inner", beneath=True, propagation=MS_PRIVATE))
    assert await read(shim, ["cat", "/data/deep/file"]) == (b"in the volume\n", 0)
    assert (await read(shim, ["touch", "/data/deep/new"]))[1] == 0
    assert (volume / "inner/new").exists()
    await shim.detach_mount("/data/deep")
    assert await read(shim, ["ls", "/data/deep"]) == (b"", 0)
    assert str(volume) not in Path("/proc/self/mountinfo").read_text()


async def test_a_mount_that_comes_may_be_read_only_and_of_mapped_ids(world, crun, volume):
    os.chown(volume / "inner/file", 4321, 4321)
    shim = await world.started(["sleep", "60"], crun)
    wanted = part(volume, attributes=ATTR_RDONLY, propagation=MS_PRIVATE, id_map="caller=4321-4321")
    await shim.attach_mount("/data", wanted)
    output, code = await read(shim, ["touch", "/data/x"])
    assert (code, b"Read-only file system" in output) == (1, True)
    assert b" 0 0 " in b" ".join((await read(shim, ["ls", "-ln", "/data/inner/file"]))[0].split())


async def test_a_file_and_a_tmpfs_come_to_a_running_container(world, crun, volume):
    shim = await world.started(["sleep", "60"], crun)
    await shim.attach_mount("/etc/one", part(volume / "inner/file"))
    assert (await read(shim, ["cat", "/etc/one"]))[0] == b"in the volume\n"
    await shim.attach_tmpfs("/scratch", ["size=64k", "mode=700", "nosuid"])
    mounts = (await read(shim, ["grep", " /scratch ", "/proc/mounts"]))[0]
    assert b"tmpfs /scratch tmpfs rw,nosuid,relatime,size=64k,mode=700" in mounts


async def test_a_whole_tree_comes_to_a_running_container(world, crun, base, volume):
    shim = await world.started(["sleep", "60"], crun)
    lower = Mount(type="overlay", source="overlay", options=(f"lowerdir={volume}:{base}",))
    await shim.attach_mount("/image", Part(mounts=(lower,), selector="bin", attributes=ATTR_RDONLY))
    assert (await read(shim, ["ls", "/image/busybox"]))[1] == 0
    directory = world.shims.directory(shim.id)
    assert not [path for path in directory.iterdir() if path.name.startswith("change")]
    assert "change" not in Path("/proc/self/mountinfo").read_text()


async def test_a_target_that_is_a_link_stays_in_the_container(world, crun, volume, tmp_path):
    shim = await world.started(["sh", "-c", f"ln -s {tmp_path} /link; sleep 60"], crun)
    await is_there(shim, "-L", "/link")
    with pytest.raises(InvalidParameter, match="/link is a symbolic link that leads nowhere"):
        await shim.attach_mount("/link", part(volume))
    assert str(tmp_path) + " " not in Path("/proc/self/mountinfo").read_text()


async def test_what_cannot_be_mounted_or_unmounted_is_refused(world, crun, volume):
    shim = await world.started(["sh", "-c", "ln -s /proc/sys /trap; sleep 60"], crun)
    await is_there(shim, "-L", "/trap")
    with pytest.raises(InvalidParameter, match="not a directory: Are you trying to mount a directory onto a file"):
        await shim.attach_mount("/etc/passwd", part(volume))
    with pytest.raises(InvalidParameter, match="no such file"):
        await shim.attach_mount("/x", part(volume / "nothing"))
    with pytest.raises(NotFound, match="it is not there"):
        await shim.detach_mount("/nothing")
    with pytest.raises(Conflict, match="nothing is mounted there"):
        await shim.detach_mount("/etc")
    with pytest.raises(Conflict, match="it now leads to /proc/sys"):
        await shim.detach_mount("/trap")
    await shim.kill(signal.SIGKILL)
    await shim.exited
    with pytest.raises((Conflict, Failed)):
        await shim.attach_mount("/x", part(volume))


async def test_a_device_node_comes_to_a_running_container_and_goes(world, runtime):
    shim = await world.started(["sleep", "60"], runtime)
    await shim.make_node(ZERO)
    listed = (await read(shim, ["ls", "-ln", "/dev/own/zero"]))[0].split()
    assert listed[:6] == [b"crw-r-----", b"1", b"0", b"10", b"1,", b"5"]
    with pytest.raises(Conflict, match="it exists in the container"):
        await shim.make_node(ZERO)
    await shim.remove_node(ZERO)
    assert (await read(shim, ["ls", "/dev/own"])) == (b"", 0)
    await shim.remove_node(ZERO)


async def test_removing_a_device_leaves_what_the_container_has_put_in_its_place(world, crun):
    shim = await world.started(["sh", "-c", "mkdir /dev/own; echo x > /dev/own/zero; sleep 60"], crun)
    await is_there(shim, "-s", "/dev/own/zero")
    await shim.remove_node(ZERO)
    assert (await read(shim, ["ls", "/dev/own/zero"]))[1] == 0
