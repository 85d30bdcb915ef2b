"""Mounts that cannot be, told word by word as Docker 26 tells them."""

import re
from pathlib import Path

import pytest

from harness.engine import Engine
from harness.needs import ENGINE

BIND = 'invalid mount config for type "bind": '
VOLUME = 'invalid mount config for type "volume": '
ROOT = "invalid specification: destination can't be '/'"
BAD_NAME = (
    'includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you '
    "intended to pass a host directory, use absolute path"
)

# flags, with S for a directory of the host, and what the daemon says
REFUSED = [
    ("--mount type=cluster,src=x,dst=/x", 'invalid mount config for type "cluster": mount type unknown'),
    ("--mount type=npipe,src=x,dst=/x", 'invalid mount config for type "npipe": mount type unknown'),
    ("--mount type=foo,src=x,dst=/x", 'invalid mount config for type "foo": mount type unknown'),
    ("--mount type=bind,src=S/none,dst=/x", f"{BIND}bind source path does not exist: S/none"),
    ("--mount type=bind,src=S,dst=/", f"{BIND}{ROOT}"),
    ("--mount type=bind,src=S,dst=/x,bind-propagation=bad", f"{BIND}invalid propagation mode: bad"),
    ("--mount type=bind,src=none,dst=/x", f"{BIND}invalid mount path: 'none' mount path must be absolute"),
    ("--mount type=bind,src=S,dst=x", f"{BIND}invalid mount path: 'x' mount path must be absolute"),
    ("--mount type=tmpfs,dst=/x,src=y", 'invalid mount config for type "tmpfs": field Source must not be specified'),
    ("--mount type=volume,src=a/b,dst=/x", f'create a/b: "a/b" {BAD_NAME}'),
    ("--mount type=volume,src=/abs,dst=/x", f'create /abs: "/abs" {BAD_NAME}'),
    ("--mount type=volume,dst=/x,ro", f"{VOLUME}must not set ReadOnly mode when using anonymous volumes"),
    ("--mount type=volume,src=odd,dst=/x,volume-opt=foo=bar", 'create odd: invalid option: "foo"'),
    ("-v S:/", f"invalid volume specification: 'S:/': {BIND}{ROOT}"),
    ("--tmpfs /", ROOT),
    ("-v S:/a --tmpfs /a", "Duplicate mount point: /a"),
    ("-v S:/a:ro,rw", "invalid mode: ro,rw"),
    ("-v S:/a:ro,foo", "invalid mode: ro,foo"),
    ("-v S:/a:z,Z", "invalid mode: z,Z"),
    ("-v S:/a:cached,delegated", "invalid mode: cached,delegated"),
    ("-v S:/a:nocopy", f"invalid volume specification: 'S:/a:nocopy': {BIND}field VolumeOptions must not be specified"),
    (
        "-v data:/a:rshared",
        f"invalid volume specification: 'data:/a:rshared': {VOLUME}field BindOptions must not be specified",
    ),
    ("-v data:ro", "invalid volume specification: 'data:ro'"),
    ("--volumes-from nobody", "No such container: nobody"),
]
NEWER = [  # than dockerd 20.10
    ("--tmpfs /x:size=1m,foo", 'invalid tmpfs option "foo"'),
    (
        "--mount type=volume,src=data,dst=/x,volume-subpath=../x",
        f"{VOLUME}subpath must be a relative path within the volume",
    ),
    (
        "--mount type=volume,src=data,dst=/x,volume-subpath=/d",
        f"{VOLUME}subpath must be a relative path within the volume",
    ),
    ("--mount type=volume,dst=/x,volume-subpath=d", f"{VOLUME}must not set Subpath when using anonymous volumes"),
]


@pytest.mark.parametrize(
    ("flags", "words"), [*REFUSED, *(NEWER if ENGINE != "dockerd" else [])], ids=lambda text: text[:60]
)
def test_the_refusal_is_dockers(engine: Engine, tmp_path: Path, flags: str, words: str) -> None:
    flags, words = (re.sub(r"\bS\b", str(tmp_path), text) for text in (flags, words))
    done = engine.docker("create", *flags.split(), "busybox", "true", check=False)
    assert done.err.splitlines()[0] == f"Error response from daemon: {words}"
    assert done.code == 1
    assert engine.docker("ps", "-aq").out == ""


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            "-v S:/proc",
            'error mounting "S" to rootfs at "/proc": "/proc" cannot be mounted because it is not of type proc',
        ),
        (
            "-v S:/proc/x",
            'error mounting "S" to rootfs at "/proc/x": "/proc/x" cannot be mounted because it is inside /proc',
        ),
        ("-v S/file:/etc", 'error mounting "S/file" to rootfs at "/etc": mount S/file:/etc'),
        ("-v S:/etc/passwd", 'error mounting "S" to rootfs at "/etc/passwd": mount S:/etc/passwd'),
    ],
)
def test_what_cannot_be_covered_is_told_at_the_start(engine: Engine, tmp_path: Path, flags: str, words: str) -> None:
    (tmp_path / "file").touch()
    done = engine.docker("run", "--rm", *flags.replace("S", str(tmp_path)).split(), "busybox", "true", check=False)
    assert "OCI runtime create failed: " in done.err
    if not engine.is_dockerd:  # which names the root file system's directory on the host
        assert words.replace("S", str(tmp_path)) in done.err
    if "/etc" in flags:
        assert "Are you trying to mount a directory onto a file (or vice-versa)?" in done.err
    assert done.code == 125


@pytest.mark.parametrize(("mode", "kind"), [("rshared", "shared"), ("shared", "shared"), ("slave", "shared or slave")])
def test_a_private_source_propagates_nothing(engine: Engine, tmp_path: Path, mode: str, kind: str) -> None:
    engine.box.run("mount", "-t", "tmpfs", "none", str(tmp_path))
    try:
        engine.box.run("mount", "--make-private", str(tmp_path))
        done = engine.docker("run", "--rm", "-v", f"{tmp_path}:/x:{mode}", "busybox", "true", check=False)
    finally:
        engine.box.run("umount", str(tmp_path))
    assert f"path {tmp_path} is mounted on {tmp_path} but it is not a {kind} mount" in done.err
    assert done.code == 125


@pytest.mark.parametrize("mode", ["z", "Z", "cached", "delegated", "consistent", "ro,z,cached", "rw,Z,rprivate"])
def test_modes_that_mean_nothing_here_are_taken(engine: Engine, tmp_path: Path, mode: str) -> None:
    engine.docker("create", "--name", "moded", "-v", f"{tmp_path}:/x:{mode}", "busybox", "true")
    (mount,) = engine.inspect("moded")["Mounts"]
    assert (mount["Mode"], mount["RW"]) == (mode, "ro" not in mode.split(","))


def test_a_slip_of_the_hand_is_pointed_at(engine: Engine, tmp_path: Path) -> None:
    if engine.is_dockerd:
        return  # it says nothing
    (tmp_path / "projects").mkdir()
    wrong = f"{tmp_path}/project"
    flag = f"type=bind,src={wrong},dst=/x"
    assert (
        f"(did you mean {tmp_path}/projects?)" in engine.docker("create", "--mount", flag, "busybox", check=False).err
    )
    warned = engine.docker("create", "-v", f"{wrong}:/x", "busybox", "true")
    assert f"WARNING: {wrong} does not exist and will be made as an empty directory: did you mean" in warned.err
