"""docker-py: the other client the world uses."""

import io
from typing import Any

import docker.errors
import pytest

from harness import images
from harness.engine import Engine

# docker-py leaves the sockets of its streams to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


def test_run_returns_output_and_raises_on_failure(py: Any) -> None:
    assert py.containers.run("busybox", ["echo", "hello"], remove=True) == b"hello\n"
    with pytest.raises(docker.errors.ContainerError) as caught:
        py.containers.run("busybox", ["sh", "-c", "echo bad >&2; exit 3"], remove=True)
    assert caught.value.exit_status == 3
    assert caught.value.stderr == b"bad\n"


def test_errors_have_their_own_classes(py: Any) -> None:
    with pytest.raises(docker.errors.NotFound):
        py.containers.get("ghost")
    with pytest.raises(docker.errors.ImageNotFound):
        py.images.get("ghost")
    py.containers.create("busybox", name="taken")
    with pytest.raises(docker.errors.APIError) as caught:
        py.containers.create("busybox", name="taken")
    assert caught.value.response.status_code == 409


def test_a_container_from_start_to_removal(py: Any) -> None:
    container = py.containers.run("busybox", ["sleep", "600"], detach=True, name="mine", labels={"k": "v"})
    container.reload()
    assert container.status == "running"
    assert [found.name for found in py.containers.list(filters={"label": "k=v"})] == ["mine"]
    container.pause()
    container.reload()
    assert container.status == "paused"
    container.unpause()
    container.rename("yours")
    container.stop(timeout=1)
    assert container.wait()["StatusCode"] == 137
    container.remove()
    assert py.containers.list(all=True) == []


def test_exec_with_streams_apart(py: Any) -> None:
    container = py.containers.run("busybox", ["sleep", "600"], detach=True)
    code, output = container.exec_run(["sh", "-c", "echo out; echo err >&2; exit 4"], demux=True)
    assert (code, output) == (4, (b"out\n", b"err\n"))
    code, output = container.exec_run(
        ["sh", "-c", "echo $X; id -u; pwd"], environment={"X": "y"}, user="alice", workdir="/tmp"
    )
    assert (code, output) == (0, b"y\n1000\n/tmp\n")


def test_exec_over_a_socket(py: Any) -> None:
    container = py.containers.run("busybox", ["sleep", "600"], detach=True)
    _, sock = container.exec_run("cat", stdin=True, tty=True, socket=True)
    raw = sock._sock
    raw.sendall(b"typed\n")
    seen = b""
    while seen.count(b"typed") < 2:
        seen += raw.recv(4096)
    raw.close()


def test_attach_and_logs_as_streams(py: Any) -> None:
    container = py.containers.create("busybox", ["sh", "-c", "echo one; echo two >&2"])
    stream = container.attach(stream=True, stdout=True, stderr=True, logs=True)
    container.start()
    assert sorted(b"".join(stream).split()) == [b"one", b"two"]
    container.wait()
    assert container.logs(stderr=False) == b"one\n"
    assert list(container.logs(stream=True, follow=True, stdout=False)) == [b"two\n"]
    (line,) = container.logs(timestamps=True, stderr=False).splitlines()
    assert line.endswith(b"Z one")


def test_volumes_ports_and_limits(py: Any, engine: Engine) -> None:
    container = py.containers.run(
        "busybox",
        ["sleep", "600"],
        detach=True,
        volumes={"data": {"bind": "/data", "mode": "rw"}},
        ports={"80/tcp": 18080, "53/udp": ("127.0.0.1", 18053)},
        mem_limit="64m",
        environment=["A=b"],
        network_mode="bridge",
        tmpfs={"/scratch": "size=1m"},
        cap_drop=["NET_RAW"],
    )
    container.reload()
    assert container.ports["80/tcp"][0]["HostPort"] == "18080"
    assert container.ports["53/udp"] == [{"HostIp": "127.0.0.1", "HostPort": "18053"}]
    assert container.attrs["HostConfig"]["Memory"] == 64 << 20
    assert [volume.name for volume in py.volumes.list()] == ["data"]


def test_events_are_dicts(py: Any) -> None:
    stream = py.events(decode=True)
    py.containers.run("busybox", "true", remove=True, name="brief")
    actions = []
    for event in stream:
        actions.append(event["Action"])
        if event["Action"] == "destroy":
            break
    stream.close()
    assert actions[0] == "create"
    assert "die" in actions


def test_images_list_load_tag_save_remove(py: Any) -> None:
    assert "busybox:latest" in {tag for image in py.images.list() for tag in image.tags}
    image = py.images.get("busybox")
    assert image.id == images.busybox().id
    image.tag("example.test/tagged", tag="one")
    assert "example.test/tagged:one" in py.images.get("busybox").tags
    saved = b"".join(image.save(named=True))
    (loaded,) = py.images.load(saved)
    assert loaded.id == image.id
    py.images.remove("example.test/tagged:one")
    assert [entry["CreatedBy"] for entry in image.history()] == ["layer 0"]
    assert py.images.list(name="no-such-image") == []


def test_stats_and_top(py: Any) -> None:
    container = py.containers.run("busybox", ["sleep", "600"], detach=True)
    titles = container.top()["Titles"]
    assert "PID" in titles
    found = container.stats(stream=False)
    assert found["memory_stats"]["usage"] > 0
    assert found["pids_stats"]["current"] == 1


def test_archives_go_in_and_out(py: Any) -> None:
    container = py.containers.create("busybox")
    data = images.tar([images.Entry(name="put", data=b"content\n")])
    assert container.put_archive("/tmp", data)
    stream, stat = container.get_archive("/tmp/put")
    assert stat["name"] == "put"
    assert b"content\n" in b"".join(stream)
    assert {"Path": "/tmp/put", "Kind": 1} in container.diff()
    exported = io.BytesIO(b"".join(container.export()))
    assert b"content\n" in exported.getvalue()


def test_info_version_and_df(py: Any) -> None:
    assert py.ping()
    assert py.version()["Os"] == "linux"
    assert py.info()["ContainersRunning"] == 0
    assert py.df()["Images"]
