"""Mounts of every type and key, as the processes of a container see them."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.engine import Cli, Engine
from harness.needs import ENGINE

pytestmark = pytest.mark.skipif(ENGINE == "dockerd", reason="what Debian's dockerd does not have")

IMAGE = "type=image,src=layered,dst=/i"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A host directory that every user may look into."""
    path = tmp_path / "shared"
    path.mkdir()
    for parent in (path, *path.parents):
        if str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    return path


# images


def test_an_image_is_mounted_read_only(cli: Cli) -> None:
    script = "cat /i/data/kept; touch /i/x"
    done = cli("run", "--rm", "--mount", IMAGE, "busybox", "sh", "-c", script, check=False)
    assert (done.out, done.code) == ("kept\n", 1)
    assert "Read-only file system" in done.err


def test_a_part_of_an_image_may_be_a_file_or_behind_a_link_of_its_own(cli: Cli) -> None:
    seen = cli("run", "--rm", "--mount", f"{IMAGE},image-subpath=data/kept", "busybox", "cat", "/i")
    assert seen.out == "kept\n"
    done = cli("run", "--rm", "--mount", f"{IMAGE},image-subpath=data/none", "busybox", "true", check=False)
    assert "cannot access path layered/data/none: lstat layered/data/none: no such file or directory" in done.err


def test_an_image_that_is_mounted_is_in_use(engine: Engine) -> None:
    docker = engine.docker
    docker("tag", "layered", "mounted")
    docker("rmi", "layered")
    try:
        name = docker(
            "create", "--name", "user", "--mount", "type=image,src=mounted,dst=/i", "busybox", "cat", "/i/data/kept"
        )
        done = docker("rmi", "mounted", check=False)
        assert (
            'conflict: unable to remove repository reference "mounted" (must force) - container '
            f"{name.text[:12]} is using its referenced image"
        ) in done.err
        (mount,) = engine.inspect("user")["Mounts"]
        assert (mount["Type"], mount["Source"], mount["RW"]) == ("image", "mounted", False)
        assert docker("start", "-a", "user").out == "kept\n"
    finally:
        docker("tag", "mounted", "layered")
        docker("rmi", "mounted")


def test_an_image_that_is_not_there_is_named(engine: Engine) -> None:
    done = engine.docker("create", "--mount", "type=image,src=nosuch,dst=/i", "busybox", check=False)
    assert done.err.splitlines()[0] == "Error response from daemon: No such image: nosuch:latest"


def test_files_of_a_mounted_image_are_copied_out_of_a_container_that_never_ran(engine: Engine, tmp_path: Path) -> None:
    engine.docker("create", "--name", "still", "--mount", f"{IMAGE},image-subpath=data", "busybox")
    engine.docker("cp", "still:/i/kept", str(tmp_path / "kept"))
    assert (tmp_path / "kept").read_text() == "kept\n"


# parts of volumes


def test_a_part_of_a_volume_is_all_that_is_seen(cli: Cli, tmp_path: Path) -> None:
    cli(
        "run", "--rm", "-v", "parts:/v", "busybox", "sh", "-c", "mkdir -p /v/a/b; echo deep > /v/a/b/f; ln -s a/b /v/in"
    )
    for subpath in ("a/b", "in"):
        flag = f"type=volume,src=parts,dst=/x,volume-subpath={subpath}"
        assert cli("run", "--rm", "--mount", flag, "busybox", "cat", "/x/f").out == "deep\n"
    cli("create", "--name", "part", "--mount", "type=volume,src=parts,dst=/x,volume-subpath=a/b", "busybox")
    cli("cp", "part:/x/f", str(tmp_path / "f"))
    assert (tmp_path / "f").read_text() == "deep\n"


@pytest.mark.parametrize(
    ("subpath", "words"),
    [
        ("out", "path concatenation escapes the base directory, base: V, subpath: out"),
        ("up", "path concatenation escapes the base directory, base: V, subpath: up"),
        ("none", "cannot access path V/none: lstat V/none: no such file or directory"),
        ("file/x", 'error while resolving symlinks in combined path "V/file/x": not a directory'),
    ],
)
def test_what_leads_out_of_a_volume_is_refused_as_docker_does(engine: Engine, subpath: str, words: str) -> None:
    script = "ln -s /etc /v/out; ln -s ../../.. /v/up; echo x > /v/file"
    engine.docker("run", "--rm", "-v", "hostile:/v", "busybox", "sh", "-c", script)
    flag = f"type=volume,src=hostile,dst=/x,volume-subpath={subpath}"
    done = engine.docker("run", "--rm", "--mount", flag, "busybox", "true", check=False)
    place = engine.docker("volume", "inspect", "-f", "{{.Mountpoint}}", "hostile").text
    expected = words.replace("V", place)
    assert done.err.splitlines()[0] == f"docker: Error response from daemon: {expected}"


SWAPPER = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
volume = os.open(sys.argv[1], os.O_PATH)
print(flush=True)
while True:
    libc.renameat2(volume, b"at", volume, b"link", 2)  # RENAME_EXCHANGE
"""


@pytest.fixture
def swapped(engine: Engine, tmp_path: Path) -> Iterator[Path]:
    """A volume `race`, where a directory and a link to the host are exchanged without end, as a container could."""
    (tmp_path / "stolen").touch()
    engine.docker("volume", "create", "race")
    place = Path(engine.docker("volume", "inspect", "-f", "{{.Mountpoint}}", "race").text)
    (place / "at").mkdir()
    (place / "at/own").touch()
    (place / "link").symlink_to(tmp_path)
    swapper = subprocess.Popen([sys.executable, "-c", SWAPPER, str(place)], stdout=subprocess.PIPE)
    assert swapper.stdout is not None
    swapper.stdout.readline()
    yield place
    swapper.kill()
    swapper.communicate()


def test_a_directory_exchanged_for_a_link_at_the_start_gives_nothing_of_the_host(engine: Engine, swapped: Path) -> None:
    flag = "type=volume,src=race,dst=/x,volume-subpath=at"
    seen: Counter[str] = Counter()
    engine.docker("create", "--name", "racer", "--mount", flag, "busybox", "ls", "/x")
    for turn in range(200):
        if turn >= 16 and len(seen) > 1:
            break  # it did race
        done = engine.docker("start", "-a", "racer", check=False)
        refused = "path concatenation escapes the base directory" in done.err
        seen["refused" if refused else done.text] += 1
    assert set(seen) == {"own", "refused"}, seen


def test_a_mount_point_exchanged_for_a_link_stays_in_the_container(
    engine: Engine, swapped: Path, tmp_path: Path
) -> None:
    """The target lies on a volume that another process changes meanwhile: the runtime's own walk is what is tried."""
    (tmp_path / "host-file").write_text("before\n")
    flags = ["-v", "race:/t", "-v", "payload:/t/at"]
    engine.docker("run", "--rm", "-v", "payload:/p", "busybox", "touch", "/p/payload")
    for _ in range(8):
        engine.docker("run", "--rm", *flags, "busybox", "true", check=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["host-file", "stolen"]
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert str(tmp_path) not in engine.box.run("cat", "/proc/1/mountinfo")


# read-only to the bottom, propagation


@pytest.mark.parametrize(
    ("flag", "top", "below"),
    [
        ("-v F:/x:ro", 1, 1),
        ("--mount type=bind,src=F,dst=/x,ro", 1, 1),
        ("--mount type=bind,src=F,dst=/x,ro,bind-recursive=writable", 1, 0),
        ("--mount type=bind,src=F,dst=/x,ro,bind-recursive=readonly,bind-propagation=rprivate", 1, 1),
        ("--mount type=bind,src=F,dst=/x,ro,bind-recursive=disabled", 1, 1),
        ("--mount type=bind,src=F,dst=/x", 0, 0),
    ],
)
def test_how_far_read_only_goes(cli: Cli, engine: Engine, folder: Path, flag: str, top: int, below: int) -> None:
    (folder / "sub").mkdir()
    engine.box.run("mount", "-t", "tmpfs", "none", str(folder / "sub"))
    try:
        script = "touch /x/a 2>/dev/null; echo $?; touch /x/sub/b 2>/dev/null; echo $?"
        done = cli("run", "--rm", *flag.replace("F", str(folder)).split(), "busybox", "sh", "-c", script)
    finally:
        engine.box.run("umount", str(folder / "sub"))
    assert done.lines == [str(top), str(below)]


def test_mounts_that_are_not_asked_for_stay_out(cli: Cli, engine: Engine, folder: Path) -> None:
    (folder / "sub").mkdir()
    engine.box.run("mount", "-t", "tmpfs", "none", str(folder / "sub"))
    try:
        engine.box.run("touch", f"{folder}/sub/mounted")
        for flag, seen in (("", ["mounted"]), (",bind-recursive=disabled", []), (",bind-nonrecursive=true", [])):
            done = cli("run", "--rm", "--mount", f"type=bind,src={folder},dst=/x{flag}", "busybox", "ls", "/x/sub")
            assert done.lines == seen
    finally:
        engine.box.run("umount", str(folder / "sub"))


def test_tmpfs_takes_its_options(cli: Cli) -> None:
    flag = "type=tmpfs,dst=/x,tmpfs-size=1m,tmpfs-mode=1770"
    script = "stat -c %a /x; grep ' /x ' /proc/mounts"
    done = cli("run", "--rm", "--mount", flag, "busybox", "sh", "-c", script)
    assert done.lines[0] == "1770"
    assert done.lines[1].startswith("tmpfs /x tmpfs rw,nosuid,nodev,noexec,relatime,size=1024k,mode=1770")


def test_a_source_is_made_where_that_is_said(engine: Engine, folder: Path) -> None:
    flag = f"type=bind,src={folder}/made/deep,dst=/x,bind-create-src=true"
    engine.wherry("run", "--rm", "--mount", flag, "busybox", "true")
    assert (folder / "made/deep").is_dir()


# files come out as the caller


def owners(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_uid, path.stat().st_gid) for path in folder.iterdir()}


@pytest.mark.parametrize("flag", ["-v F:/x:idmap", "--mount type=bind,src=F,dst=/x,idmap=caller"])
def test_files_come_out_as_who_called_sudo(engine: Engine, folder: Path, flag: str) -> None:
    os.chown(folder, 4321, 8765)
    (folder / "theirs").touch()
    os.chown(folder / "theirs", 4321, 8765)
    arguments = [
        *flag.replace("F", str(folder)).split(),
        "busybox",
        "sh",
        "-c",
        "stat -c '%u %g' /x/theirs; touch /x/made",
    ]
    done = engine.wherry("run", "--rm", *arguments, env={"SUDO_UID": "4321", "SUDO_GID": "8765"})
    assert done.out == "0 0\n"
    assert owners(folder)["made"] == (4321, 8765)


def test_files_come_out_as_who_uses_the_socket(engine: Engine, folder: Path) -> None:
    """With the stock client, which knows nothing of idmap."""
    os.chown(folder, 4321, 8765)
    socket = Path(engine.host.removeprefix("unix://"))
    mode, parents = (
        socket.stat().st_mode,
        [each for each in socket.parents if each != Path("/") and each != Path("/tmp")],
    )
    before = [each.stat().st_mode for each in parents]
    try:
        socket.chmod(0o666)
        for each in parents:
            each.chmod(each.stat().st_mode | 0o011)
        argv = [engine.docker.program, "run", "--rm", "-v", f"{folder}:/x:idmap", "busybox", "touch", "/x/made"]
        subprocess.run(
            argv,
            user=4321,
            group=8765,
            extra_groups=[],
            env={**os.environ, **engine.docker.env, "DOCKER_CONFIG": "/nonexistent"},
            check=True,
            timeout=60,
        )
    finally:
        socket.chmod(mode)
        for each, kept in zip(parents, before, strict=True):
            each.chmod(kept)
    assert owners(folder) == {"made": (4321, 8765)}


def test_the_containers_own_user_is_the_caller(engine: Engine, folder: Path) -> None:
    os.chown(folder, 4321, 8765)
    engine.wherry(
        *("run", "--rm", "-u", "alice", "-v", f"{folder}:/x:idmap", "busybox", "touch", "/x/made"),
        env={"SUDO_UID": "4321", "SUDO_GID": "8765"},
    )
    assert owners(folder) == {"made": (4321, 8765)}


def test_ids_may_be_mapped_one_by_one(engine: Engine, folder: Path) -> None:
    os.chown(folder, 4321, 8765)
    flag = f"type=bind,src={folder},dst=/x,idmap=uids=0-4321-1#7-70-2;gids=0-8765-1#7-70-1"
    script = "touch /x/a /x/b; chown 8:7 /x/b"
    engine.wherry("run", "--rm", "--mount", flag, "busybox", "sh", "-c", script)
    assert owners(folder) == {"a": (4321, 8765), "b": (71, 70)}


def test_a_file_system_that_maps_no_ids_is_named(engine: Engine) -> None:
    done = engine.wherry("run", "--rm", "-v", "/proc/sys:/x:idmap", "busybox", "true", check=False)
    assert "cannot mount /proc/sys with idmap: the file system proc" in done.err
    done = engine.wherry("run", "--rm", "-v", "/tmp:/x:idmap=foo", "busybox", "true", check=False)
    assert "invalid idmap 'foo': it must be caller, or uids=CONTAINER-HOST-COUNT;gids=CONTAINER-HOST-COUNT" in done.err
