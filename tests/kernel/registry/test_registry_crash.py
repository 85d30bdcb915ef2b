"""A registry killed at any instant: what was acknowledged is there, what is visible is whole, the rest goes on."""

import asyncio
import json
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from registrykit.client import Client, location, with_digest
from registrykit.documents import Made, digest, image
from registrykit.servers import Server, ours, running
from wherry.digest import Digest, of
from wherry.registry.folder import open_folder
from wherry.spec.image import Raw

MADE = image("crash", layers=[b"x" * 3_000_000])

# Runs one change over a folder and kills itself at the given step of it; says "done" when there are fewer steps.
VICTIM = """
import asyncio, os, signal, sys
from pathlib import Path
from wherry.digest import of
from wherry.registry.folder import FolderStore
from wherry.spec.image import Raw
from wherry.state import State
from wherry.storage.content import ContentStore

root, change, last = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
media_type, manifest, *blobs = [Path(name).read_bytes() for name in sys.argv[4:]]
raw = Raw(manifest, media_type.decode(), of(manifest))
armed, steps = False, 0

def trace(step):
    global steps
    steps += armed
    if armed and steps == last:
        os.kill(os.getpid(), signal.SIGKILL)

class TracedState(State):
    def write(self, *changes):
        trace("rows")
        super().write(*changes)
        trace("rows written")

async def upload(store, data):
    begun = await store.start_upload("r")
    await begun.write(data)
    await begun.commit(of(data))

async def main():
    global armed
    store = FolderStore(ContentStore(root, trace=trace), TracedState(root / "state.db"), root / "uploads")
    if change == "blob":
        armed = True
        await upload(store, blobs[0])
        return
    for blob in blobs:
        await upload(store, blob)
    armed = change == "manifest"
    await store.put_manifest("r", raw, tag="t")
    armed = True
    if change == "delete manifest":
        await store.delete_manifest("r", raw.digest)
    if change == "delete blob":
        await store.delete_manifest("r", raw.digest)
        await store.delete_blob("r", of(blobs[0]))
        await store.sweep()

asyncio.run(main())
print("done")
"""


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    parts = {"type": MADE.media_type.encode(), "manifest": MADE.data, "layer": MADE.blobs[1], "config": MADE.blobs[0]}
    for name, data in parts.items():
        (tmp_path / name).write_bytes(data)
    return [str(tmp_path / name) for name in parts]


async def check(root: Path) -> set[str]:
    """What is visible is whole, and the folder works; the names of what is visible."""
    store = open_folder(root)
    assert not list((root / "ingest").iterdir())
    seen = set()
    for repository in await store.repositories(after="", limit=1000):
        found = store.catalog.find(repository)
        assert found is not None
        for name in found.blobs:
            with await store.open_blob(repository, name) as file:
                assert of(file.read()) == name
            seen.add(name)
        for tag in await store.tag_list(repository):
            assert tag.digest in found.manifests
            seen.add(f"{repository}:{tag.name}")
        for name, named in found.manifests.items():
            assert of((await store.manifest(repository, name)).data) == name
            assert set(named.blobs) <= set(found.blobs)
            seen.add(name)
    await store.sweep()
    held = {f"sha256:{path.name}" for path in (root / "blobs/sha256").iterdir()}
    assert held == {name for name in seen if name.startswith("sha256:")}
    for blob in MADE.blobs:
        begun = await store.start_upload("r")
        await begun.write(blob)
        await begun.commit(of(blob))
    await store.put_manifest("r", Raw(MADE.data, MADE.media_type, of(MADE.data)), tag="t")
    assert (await store.manifest("r", Digest(MADE.digest))).data == MADE.data
    await store.close()
    return seen


@pytest.mark.parametrize(
    ("change", "steps"), [("blob", 6), ("manifest", 6), ("delete manifest", 2), ("delete blob", 4)]
)
def test_killed_at_any_step_of_a_change_nothing_half_is_visible(
    tmp_path: Path, files: list[str], change: str, steps: int
):
    for step in range(1, steps + 2):
        root = tmp_path / f"step{step}"
        argv = [sys.executable, "-c", VICTIM, str(root), change, str(step), *files]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        if step <= steps:
            assert done.returncode == -signal.SIGKILL, done.stderr
        else:
            assert done.stdout == "done\n", done.stderr
        seen = asyncio.run(check(root))
        if step > steps:
            assert ("r:t" in seen) == (change == "manifest")


# --- at random --------------------------------------------------------------------------------------------------------

ROUNDS = 8
SEED = 20


class Pusher(threading.Thread):
    """Pushes images until the registry is gone; remembers what was acknowledged, and the upload it was at."""

    def __init__(self, server: Server, repository: str, dice: random.Random) -> None:
        super().__init__()
        self._client = server.client()
        self.repository = repository
        self._dice = dice
        self.tags: dict[str, Made] = {}
        self.blobs: list[bytes] = []
        self.upload: tuple[str, bytes, int] | None = None  # path, data, bytes acknowledged

    def run(self) -> None:
        number = 0
        try:
            while True:
                number += 1
                made = image(
                    f"{self.repository} {number}", layers=[self._dice.randbytes(self._dice.randrange(600_000))]
                )
                for blob in made.blobs:
                    self._push(blob)
                if self._client.put_manifest(self.repository, f"t{number}", made).status == 201:
                    self.tags[f"t{number}"] = made
        except OSError:
            pass  # killed
        except Exception as exc:
            if type(exc).__module__ != "http.client":
                raise
        finally:
            self._client.close()

    def _push(self, blob: bytes) -> None:
        path, half = self._client.begin(self.repository), len(blob) // 2
        self.upload = (path, blob, 0)
        answer = self._client.patch(path, blob[:half])
        assert answer.status == 202
        self.upload = (location(answer), blob, half)
        answer = self._client.put(with_digest(location(answer), digest(blob)), blob[half:])
        assert answer.status == 201
        self.blobs.append(blob)
        self.upload = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running(ours(tmp_path)) as server:
        yield server


def test_killed_at_random_all_that_was_acknowledged_is_there_and_uploads_go_on(server: Server):
    dice = random.Random(SEED)
    tags: dict[tuple[str, str], Made] = {}
    resumed = 0
    for number in range(ROUNDS):
        pushers = [Pusher(server, f"r{number}/{each}", random.Random(number * 10 + each)) for each in range(2)]
        for pusher in pushers:
            pusher.start()
        pushers[0].join(dice.uniform(0.02, 0.3))
        server.kill()
        for pusher in pushers:
            pusher.join(30)
            assert not pusher.is_alive()
        server.start()
        with server.client() as client:
            for pusher in pushers:
                for blob in pusher.blobs:
                    assert client.get(f"/v2/{pusher.repository}/blobs/{digest(blob)}").body == blob
                tags |= {(pusher.repository, tag): made for tag, made in pusher.tags.items()}
                resumed += resume(client, pusher.repository, pusher.upload)
            check_all(client, tags)
    assert tags
    assert resumed
    assert server.stop() == 0
    assert "ERROR" not in server.log(), server.log()[-3000:]


def resume(client: Client, name: str, upload: tuple[str, bytes, int] | None) -> int:
    """Go on with an upload from where the registry says; 1 when that was in its middle."""
    if upload is None:
        return 0
    path, blob, acknowledged = upload
    status = client.get(path)
    if status.status == 404:  # killed while it was committed: from the beginning
        client.push_blob(name, blob)
        return 0
    offset = int(status.headers["range"].partition("-")[2]) + 1
    if offset == 1:  # the way to say "nothing", too
        assert acknowledged <= 1
        return 0
    assert acknowledged <= offset <= len(blob)
    headers = {"Content_Range": f"{offset}-{len(blob) - 1}"} if offset < len(blob) else {}
    answer = client.put(with_digest(location(status), digest(blob)), blob[offset:], **headers)
    assert answer.status == 201, answer
    assert client.get(f"/v2/{name}/blobs/{digest(blob)}").body == blob
    return 1


def check_all(client: Client, acknowledged: dict[tuple[str, str], Made]) -> None:
    """Every tag there is names a manifest that is there with all it needs; all that were acknowledged are there."""
    found = set()
    for name in client.get("/v2/_catalog").json()["repositories"]:
        for tag in client.get(f"/v2/{name}/tags/list").json()["tags"]:
            manifest = client.manifest(name, tag)
            assert manifest.status == 200
            if (made := acknowledged.get((name, tag))) is not None:
                assert manifest.body == made.data
            document = json.loads(manifest.body)
            for entry in (document["config"], *document["layers"]):
                answer = client.get(f"/v2/{name}/blobs/{entry['digest']}")
                assert (answer.status, digest(answer.body)) == (200, entry["digest"])
            found.add((name, tag))
    assert found >= set(acknowledged)


def test_told_to_stop_it_ends_requests_first_and_goes_on_after_a_restart(server: Server):
    with server.client() as client:
        path = client.begin("a")
        client.patch(path, b"first ")
        assert server.stop() == 0
    server.start()
    with server.client() as client:
        answer = client.put(with_digest(path, digest(b"first half")), b"half")
        assert answer.status == 201
        assert client.get(location(answer)).body == b"first half"


def test_a_folder_in_use_is_refused_and_the_first_registry_unharmed(server: Server):
    done = subprocess.run(ours(server.root).argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert (
        f"is in use by another registry (pid {server.pid}): stop it, or give this one a folder of its own"
        in done.stderr
    )
    with server.client() as client:
        assert client.get("/v2/").status == 200


def test_a_port_in_use_is_refused_in_words(server: Server, tmp_path: Path):
    other = ours(tmp_path / "other")
    other.port = server.port
    done = subprocess.run(other.argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"cannot listen on {server.address}: another program listens there" in done.stderr
