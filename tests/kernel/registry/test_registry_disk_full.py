"""A registry whose disk is full: refusals in words, nothing half-visible, and on it goes once there is room."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from registrykit.client import Client, location, with_digest
from registrykit.documents import digest, image
from registrykit.servers import Server, ours, running

DATA = bytes(range(256)) * (12 << 10)  # 3 MiB
MADE = image("kept")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """On 16 MiB, of which the state reserves some; its mount is seen by the registry only."""
    data = tmp_path / "data"
    data.mkdir()
    inner = ours(tmp_path)
    script = f'mount -t tmpfs -o size=16m registry {data} && exec "$@"'
    argv = ["unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh", *inner.words]
    with running(Server(tmp_path, argv, inner.listens)) as server:
        yield server


def resize(server: Server, size: str) -> None:
    mount = ["mount", "-o", f"remount,size={size}", str(server.root / "data")]
    subprocess.run(["nsenter", "-t", str(server.pid), "-m", *mount], check=True, timeout=30)


def fill(client: Client) -> list[bytes]:
    """Push different blobs until one is refused; those that were taken, and the one that was not."""
    pushed = []
    for number in range(20):
        data = b"%d" % number + DATA
        answer = client.post(f"/v2/full/blobs/uploads/?digest={digest(data)}", data)
        if answer.status != 201:
            assert answer.status == 500
            assert "No space left on device" in answer.json()["errors"][0]["message"]
            return [*pushed, data]
        pushed.append(data)
    raise AssertionError("the disk does not become full")


def test_a_full_disk_refuses_in_words_and_what_there_was_stays(server: Server):
    with server.client() as client:
        client.push("a", MADE, "v1")
        *pushed, refused = fill(client)
        assert pushed
        assert client.head(f"/v2/full/blobs/{digest(refused)}").status == 404
        for data in pushed:
            assert client.get(f"/v2/full/blobs/{digest(data)}").body == data
        assert client.manifest("a", "v1").body == MADE.data
        assert client.delete("/v2/a/manifests/v1").status == 202  # rows have room that was kept for them
        resize(server, "64m")
        client.push_blob("full", refused)
        assert client.get(f"/v2/full/blobs/{digest(refused)}").body == refused


def test_an_upload_that_met_a_full_disk_goes_on_once_there_is_room(server: Server):
    data = DATA * 8
    with server.client() as client:
        path = client.begin("a")
        answer = client.patch(path, data)
        assert answer.status == 500
        assert "No space left on device" in answer.json()["errors"][0]["message"]
        resize(server, "64m")
        status = client.get(path)
        assert status.status == 204
        offset = int(status.headers["range"].partition("-")[2]) + 1
        assert 0 < offset < len(data)
        rest = f"{offset}-{len(data) - 1}"
        answer = client.put(with_digest(location(status), digest(data)), data[offset:], Content_Range=rest)
        assert answer.status == 201
        assert client.get(location(answer)).body == data


def test_a_registry_starts_on_a_full_disk(server: Server):
    with server.client() as client:
        client.push("a", MADE, "v1")
        fill(client)
    filler = ["sh", "-c", f"cat /dev/zero > {server.root}/data/filler; exit 0"]
    subprocess.run(["nsenter", "-t", str(server.pid), "-m", *filler], check=True, timeout=30, stderr=subprocess.DEVNULL)
    with open(f"/proc/{server.pid}/ns/mnt") as namespace:
        again = ["nsenter", f"--mount=/proc/self/fd/{namespace.fileno()}"]
        server.kill()
        other = ours(server.root)
        second = Server(server.root, [*again, *other.words], other.listens, keep=(namespace.fileno(),))
        with running(second), second.client() as client:
            assert client.manifest("a", "v1").body == MADE.data
            assert client.delete("/v2/a/manifests/v1").status == 202
