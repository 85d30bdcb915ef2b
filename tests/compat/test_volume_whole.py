"""Volumes as a whole, by the command line on a real daemon: what docker has not, and mounts that come and go."""

import io
import json
import socket
import tarfile
import time
from pathlib import Path

import pytest

from harness.engine import Cli, Engine
from harness.engines import EngineMaker
from harness.needs import ENGINE
from harness.registry import Registry

pytestmark = pytest.mark.skipif(ENGINE == "dockerd", reason="dockerd has nothing of this")

TMPFS = ("-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=1m")


@pytest.fixture
def wherry(engine: Engine) -> Cli:
    return engine.wherry


def write(cli: Cli, volume: str, text: str) -> None:
    cli("run", "--rm", "--net=none", "-v", f"{volume}:/v", "busybox", "sh", "-c", f"echo {text} >/v/file")


def read(cli: Cli, volume: str) -> str:
    return cli("run", "--rm", "--net=none", "-v", f"{volume}:/v", "busybox", "cat", "/v/file").text


def mounted(engine: Engine) -> list[str]:
    return [line for line in engine.box.mounts() if "/volumes/" in line]


def test_snapshots_and_the_way_back(wherry: Cli) -> None:
    write(wherry, "data", "one")
    assert wherry("volume", "snapshot", "create", "data@before").text == "data@before"
    write(wherry, "data", "two")
    unnamed = wherry("volume", "snapshot", "create", "data").text
    assert wherry("volume", "snapshot", "ls", "-q", "data").lines == ["data@before", unnamed]
    table = wherry("volume", "snapshot", "ls", "data").lines
    assert table[0].split() == ["SNAPSHOT", "CREATED", "SIZE"]
    assert table[1].split()[0] == "data@before"
    assert table[1].endswith(" 4B")
    wherry("volume", "rollback", "data@before")
    assert read(wherry, "data") == "one"
    assert wherry("volume", "snapshot", "rm", "data@before", unnamed).lines == ["data@before", unnamed]
    done = wherry("volume", "rollback", "data@before", check=False)
    assert (done.code, done.err) == (1, "Error response from daemon: no such snapshot: data@before\n")
    assert "want VOLUME@NAME" in wherry("volume", "rollback", "data", check=False).err
    assert wherry("volume", "snapshot", "look", "data", check=False).code != 0


def test_a_volume_in_use_is_copied_while_its_containers_stand_still(engine: Engine, wherry: Cli) -> None:
    script = "i=0; while :; do i=$((i+1)); for f in a b; do echo $i >/v/new; mv /v/new /v/$f; done; done"
    wherry("run", "-d", "--name", "busy", "--net=none", "-v", "data:/v", "busybox", "sh", "-c", script)
    wherry("exec", "busy", "sh", "-c", "until [ -e /v/b ]; do :; done")
    for number in range(5):
        wherry("volume", "clone", "data", f"copy{number}")
        own = engine.data_root / "volumes" / f"copy{number}" / "_data"
        first, second = (engine.box.path(own / name) for name in "ab")
        assert int(first.read_text()) - int(second.read_text()) in (0, 1)
    assert wherry("inspect", "-f", "{{.State.Status}}", "busy").text == "running"
    for act in (("rollback", "data@s"), ("rename", "data", "other")):
        wherry("volume", "snapshot", "create", "data@s", check=False)
        done = wherry("volume", *act, check=False)
        assert done.code == 1
        assert "volume is in use" in done.err
    wherry("rm", "-f", "busy")
    wherry("volume", "rename", "data", "other")
    assert wherry("volume", "ls", "-q", "-f", "name=data").lines == []


def test_export_and_import_by_files_and_pipes(wherry: Cli, tmp_path: Path) -> None:
    write(wherry, "data", "packed")
    file = tmp_path / "data.tar"
    wherry("volume", "export", "data", "-o", str(file))
    with tarfile.open(file) as members:
        assert members.getnames() == [".", "./file"]
    assert wherry("volume", "import", "--label", "a=b", "second", str(file)).text == "second"
    assert wherry.json("volume", "inspect", "second")[0]["Labels"] == {"a": "b"}
    assert wherry("volume", "import", "third", input=file.read_bytes()).text == "third"
    assert read(wherry, "second") == read(wherry, "third") == "packed"
    done = wherry("volume", "import", "third", str(file), check=False)
    assert done.code == 1
    assert "volume is not empty" in done.err
    wherry("volume", "import", "--replace", "third", str(file))
    broken = wherry("volume", "import", "fourth", input=b"x" * 4096, check=False)
    assert broken.code == 1
    assert wherry("volume", "inspect", "fourth", check=False).code == 1


def test_an_import_that_breaks_off_leaves_nothing(engine: Engine) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        info = tarfile.TarInfo("big")
        info.size = 1 << 20
        file.addfile(info, io.BytesIO(bytes(1 << 20)))
    head = b"POST /volumes/cut/import HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(engine.socket))
        sock.sendall(head + out.getvalue()[:500_000])
    for _ in range(100):
        left = [each for each in engine.box.path(engine.data_root / "volumes").iterdir() if each.name.startswith(".")]
        if not left:
            break
        time.sleep(0.05)
    assert not left
    assert engine.api.request("GET", "/volumes/cut").status == 404


def test_a_volume_goes_to_a_registry_and_comes_back(wherry: Cli, registry: Registry) -> None:
    wherry("volume", "create", "--label", "a=b", "-o", "size=8m", "data")
    write(wherry, "data", "pushed")
    name = f"{registry.address}/team/data"
    told = wherry("volume", "push", "data", f"{name}:v1").lines
    assert told[0] == f"The push refers to repository [{name}]"
    assert told[-1].startswith("v1: digest: sha256:")
    for compression in ("gzip", "none"):
        wherry("volume", "push", "-q", "--compression", compression, "data", f"{name}:{compression}")
    wherry("volume", "rm", "data")
    assert wherry("volume", "pull", f"{name}:v1").lines[-1] == "data"
    (found,) = wherry.json("volume", "inspect", "data")
    assert (found["Labels"], found["Options"]) == ({"a": "b"}, {"size": "8388608"})
    assert read(wherry, "data") == "pushed"
    assert wherry("volume", "pull", "-q", f"{name}:gzip", "other").text == "other"
    assert read(wherry, "other") == "pushed"
    done = wherry("volume", "pull", f"{name}:none", "other", check=False)
    assert "volume is not empty" in done.err
    write(wherry, "other", "changed")
    wherry("volume", "pull", "--replace", f"{name}:none", "other")
    assert read(wherry, "other") == "pushed"
    assert "is no volume" in wherry("volume", "pull", f"{registry.address}/library/busybox", check=False).err
    assert "manifest unknown" in wherry("volume", "pull", f"{name}:nothing", check=False).err
    document = json.loads(registry_manifest(registry, "team/data", "v1"))
    assert document["artifactType"] == "application/vnd.wherry.volume.v1"
    assert [each["mediaType"] for each in document["layers"]] == ["application/vnd.oci.image.layer.v1.tar+zstd"]


def registry_manifest(registry: Registry, repository: str, tag: str) -> str:
    url = f"docker://{registry.address}/{repository}:{tag}"
    return registry.box.run("skopeo", "inspect", "--raw", "--tls-verify=false", url, net_only=True)


def test_one_mount_is_shared_and_goes_after_the_last_container(engine: Engine, wherry: Cli) -> None:
    wherry("volume", "create", *TMPFS, "memory")
    for name in ("one", "two"):
        wherry("run", "-d", "--name", name, "--net=none", "-v", "memory:/v", "busybox", "sleep", "1000")
    wherry("exec", "one", "sh", "-c", "echo shared >/v/file")
    assert wherry("exec", "two", "cat", "/v/file").text == "shared"
    assert len(mounted(engine)) == 2
    wherry("rm", "-f", "one")
    assert wherry("exec", "two", "cat", "/v/file").text == "shared"
    wherry("rm", "-f", "two")
    assert mounted(engine) == []


def test_a_container_that_cannot_start_leaves_no_mount(engine: Engine, wherry: Cli) -> None:
    wherry("volume", "create", *TMPFS, "memory")
    done = wherry("run", "--rm", "--net=none", "-v", "memory:/v", "busybox", "nosuchprogram", check=False)
    assert done.code == 127
    assert mounted(engine) == []


def test_a_killed_daemon_s_successor_knows_which_mounts_are_used(own_engine: EngineMaker) -> None:
    engine = own_engine()
    cli = engine.docker
    for name in ("used", "left"):
        cli("volume", "create", *TMPFS, name)
        cli("run", "-d", "--name", name, "--net=none", "-v", f"{name}:/v", "busybox", "sleep", "1000")
    cli("volume", "create", "-o", "size=8m", "limited")
    cli("run", "-d", "--name", "limited", "--net=none", "-v", "limited:/v", "busybox", "sleep", "1000")
    cli("exec", "used", "sh", "-c", "echo kept >/v/file")
    pid = cli.json("inspect", "left")[0]["State"]["Pid"]
    engine.kill()
    engine.box.kill(pid)
    engine.start()
    assert cli("run", "--rm", "--net=none", "-v", "used:/v", "busybox", "cat", "/v/file").text == "kept"
    assert not [line for line in mounted(engine) if "/left" in line]
    assert len(mounted(engine)) == 4
    cli("rm", "-f", "used", "left", "limited")
    assert mounted(engine) == []


def test_many_containers_of_one_volume_at_once(engine: Engine, wherry: Cli) -> None:
    wherry("volume", "create", *TMPFS, "memory")
    started = [
        wherry.start("run", "--rm", "--net=none", "-v", "memory:/v", "busybox", "sh", "-c", f"echo {number} >>/v/all")
        for number in range(6)
    ]
    for _ in range(3):
        done = wherry("volume", "rm", "memory", check=False)
        assert done.code == 0 or "in use" in done.err or "no such volume" in done.err
    for process in started:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err.decode()
    assert mounted(engine) == []


def test_update_is_for_volumes_of_a_cluster_as_docker_says(engine: Engine, cli: Cli) -> None:
    cli("volume", "create", "data")
    done = cli("volume", "update", "data", check=False)
    assert (done.code, done.err.strip().removeprefix("Error: ")) == (1, "can only update cluster volumes")
    answer = engine.api.request("PUT", "/volumes/none?version=x", {"Spec": {}})
    words = "volume update only valid for cluster volumes, but swarm is unavailable"
    assert (answer.status, answer.message) == (503, words)
    answer = engine.api.request("POST", "/volumes/create", {"Name": "many", "ClusterVolumeSpec": {}})
    assert answer.status == 503
    assert answer.message.startswith("This node is not a swarm manager.")


def test_what_a_volume_s_mount_forbids_is_forbidden_in_the_container(engine: Engine, cli: Cli, tmp_path: Path) -> None:
    cli("volume", "create", "-o", "type=none", "-o", "o=bind,ro,nosuid", "-o", "device=/etc", "shown")
    done = cli("run", "--rm", "--net=none", "-v", "shown:/v", "busybox", "touch", "/v/x", check=False)
    assert (done.code, "Read-only file system" in done.err) == (1, True)
    cli("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=noexec,nodev", "memory")
    shown = cli("run", "--rm", "--net=none", "-v", "memory:/v", "busybox", "grep", " /v ", "/proc/mounts").text
    assert shown.split()[3].startswith("rw,nodev,noexec")
