"""Mounts and devices that come to running containers and go: `update --mount-add`, `--mount-rm` and the like."""

import os
from pathlib import Path

import pytest

from harness.engine import Engine
from harness.needs import ENGINE

pytestmark = pytest.mark.skipif(ENGINE == "dockerd", reason="no other engine has it")


@pytest.fixture
def web(engine: Engine) -> Engine:
    """With a running container `web`."""
    engine.docker("run", "-d", "--name", "web", "busybox", "sleep", "600")
    return engine


def inside(engine: Engine, script: str) -> list[str]:
    return engine.docker("exec", "web", "sh", "-c", script).lines


def update(engine: Engine, *flags: str, **env: str) -> None:
    engine.wherry("update", *flags, "web", env=env)


def destinations(engine: Engine) -> list[str]:
    return [mount["Destination"] for mount in engine.inspect("web")["Mounts"]]


def test_a_bind_comes_goes_and_lives_through_a_restart(web: Engine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the host\n")
    update(web, "--mount-add", f"type=bind,src={tmp_path},dst=/data/deep")
    assert inside(web, "cat /data/deep/file; touch /data/deep/new") == ["from the host"]
    assert (tmp_path / "new").exists()
    assert destinations(web) == ["/data/deep"]
    assert [each["Target"] for each in web.inspect("web")["HostConfig"]["Mounts"]] == ["/data/deep"]
    web.docker("restart", "-t", "0", "web")
    assert inside(web, "cat /data/deep/file") == ["from the host"]
    update(web, "--mount-rm", "/data/deep")
    assert inside(web, "ls /data/deep") == []
    assert destinations(web) == []
    web.docker("restart", "-t", "0", "web")
    assert inside(web, "ls /data/deep") == []


def test_what_a_container_was_started_with_can_go(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    engine.docker("run", "-d", "--name", "web", "-v", f"{tmp_path}:/b", "--tmpfs", "/t", "busybox", "sleep", "600")
    update(engine, "--mount-rm", "/b", "--mount-rm", "/t")
    assert inside(engine, "ls /b; grep -c ' /t ' /proc/mounts || true") == ["0"]
    assert engine.inspect("web")["HostConfig"]["Binds"] in (None, [])


def test_it_comes_read_only_and_as_the_caller(web: Engine, tmp_path: Path) -> None:
    os.chown(tmp_path, 4321, 8765)
    update(web, "--mount-add", f"type=bind,src={tmp_path},dst=/mine,idmap", SUDO_UID="4321", SUDO_GID="8765")
    assert inside(web, "touch /mine/made; stat -c '%u %g' /mine/made") == ["0 0"]
    assert ((tmp_path / "made").stat().st_uid, (tmp_path / "made").stat().st_gid) == (4321, 8765)
    update(web, "--mount-add", f"type=bind,src={tmp_path},dst=/look,ro")
    done = web.docker("exec", "web", "touch", "/look/x", check=False)
    assert "Read-only file system" in done.err


def test_volumes_images_and_tmpfs_come(web: Engine) -> None:
    web.docker("run", "--rm", "-v", "shared:/v", "busybox", "sh", "-c", "mkdir /v/part; echo kept > /v/part/f")
    update(web, "--mount-add", "type=volume,src=shared,dst=/v,volume-subpath=part")
    update(web, "--mount-add", "type=image,src=layered,dst=/i,image-subpath=data")
    update(web, "--mount-add", "type=tmpfs,dst=/t,tmpfs-size=64k")
    assert inside(web, "cat /v/f /i/kept; grep ' /t ' /proc/mounts | cut -d' ' -f1-3") == [
        "kept",
        "kept",
        "tmpfs /t tmpfs",
    ]
    assert "volume is in use" in web.docker("volume", "rm", "shared", check=False).err
    assert "is using its referenced image" in web.docker("rmi", "layered", check=False).err
    for target in ("/v", "/i", "/t"):
        update(web, "--mount-rm", target)
    web.docker("volume", "rm", "shared")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--mount-add", "type=bind,src=/no/such,dst=/x"), "bind source path does not exist: /no/such"),
        (("--mount-add", "type=bind,src=/tmp,dst=/proc/x"), "cannot be mounted because it is inside /proc"),
        (("--mount-add", "type=bind,src=/tmp,dst=/etc/passwd"), "Are you trying to mount a directory onto a file"),
        (("--mount-rm", "/none"), "no mount at /none in container web"),
    ],
)
def test_what_cannot_be_says_why_and_changes_nothing(web: Engine, flags: tuple[str, ...], words: str) -> None:
    done = web.wherry("update", *flags, "web", check=False)
    assert words in done.err
    assert done.code == 1
    assert destinations(web) == []


def test_a_link_of_the_container_leads_no_mount_out(web: Engine, tmp_path: Path) -> None:
    (tmp_path / "trap").mkdir()
    (tmp_path / "source").mkdir()
    (tmp_path / "source/payload").touch()
    inside(web, f"mkdir -p $(dirname {tmp_path}); ln -s {tmp_path}/trap /link; mkdir -p {tmp_path}/trap")
    update(web, "--mount-add", f"type=bind,src={tmp_path}/source,dst=/link")
    assert inside(web, f"ls {tmp_path}/trap") == ["payload"]  # the container's own directory of that name
    assert list((tmp_path / "trap").iterdir()) == []


def test_mounts_travel_as_far_as_is_said(web: Engine, tmp_path: Path) -> None:
    run = web.box.run
    run("mount", "-t", "tmpfs", "none", str(tmp_path))
    try:
        run("mount", "--make-shared", str(tmp_path))
        run("mkdir", f"{tmp_path}/late", f"{tmp_path}/own")
        update(web, "--mount-add", f"type=bind,src={tmp_path},dst=/alone")
        update(web, "--mount-add", f"type=bind,src={tmp_path},dst=/slave,bind-propagation=rslave")
        web.docker("run", "-d", "--name", "open", "--privileged", "busybox", "sleep", "600")
        web.wherry("update", "--mount-add", f"type=bind,src={tmp_path},dst=/shared,bind-propagation=rshared", "open")
        run("mount", "-t", "tmpfs", "late", f"{tmp_path}/late")
        web.docker("exec", "open", "mount", "-t", "tmpfs", "inner", "/shared/own")
        seen = inside(web, "cut -d' ' -f1,2 /proc/mounts | grep -e alone -e slave -e late -e inner")
        assert sorted(seen) == ["inner /slave/own", "late /slave/late", "none /alone", "none /slave"]
        assert f"inner {tmp_path}/own" in run("cat", "/proc/self/mounts")
    finally:
        run("umount", "-R", str(tmp_path))


def test_a_device_comes_and_goes(web: Engine) -> None:
    if not Path("/sys/fs/cgroup/devices").is_dir():
        done = web.wherry("update", "--device-add", "/dev/net/tun:/dev/given:rw", "web", check=False)
        assert "cgroup v2" in done.err
        return
    number = os.stat("/dev/net/tun").st_rdev
    own = f"mknod /dev/own c {os.major(number)} {os.minor(number)}; (: </dev/own) 2>/dev/null; echo $?; rm /dev/own"
    assert inside(web, own) == ["1"]
    update(web, "--device-add", "/dev/net/tun:/dev/given:rw")
    assert inside(web, "(: </dev/given); echo $?") == ["0"]
    web.docker("restart", "-t", "0", "web")
    assert inside(web, "(: </dev/given); echo $?") == ["0"]
    update(web, "--device-rm", "/dev/given")
    assert inside(web, "test -e /dev/given; echo $?") == ["1"]
    assert inside(web, own) == ["1"]
    assert not web.inspect("web")["HostConfig"]["Devices"]


def test_mounts_are_found_again_by_the_next_daemon(web: Engine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("still there\n")
    update(web, "--mount-add", f"type=bind,src={tmp_path},dst=/data")
    web.kill()
    web.start()
    assert inside(web, "cat /data/file") == ["still there"]
    update(web, "--mount-rm", "/data")
    assert inside(web, "ls /data") == []
