"""Registry, network and daemon break off again and again in the middle of pushes and pulls: what is tried again ends
with the same bytes on both sides, and the store check finds nothing.

Every round pushes an index of two platforms, or pulls it into an engine that forgot it; it is hit at a random byte.
WHERRY_TEST_KILLS sets how many hits there are with each registry, WHERRY_TEST_SEED repeats a sequence of random
choices (as far as two runs can be alike: the moments differ).
"""

import collections
import contextlib
import enum
import http.client
import itertools
import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness import images
from harness.api import Api
from harness.box import Box
from harness.cutting_proxy import CuttingProxy
from harness.engine import Engine
from registrykit.servers import Server, docker_registry, ours

KILLS = int(os.environ.get("WHERRY_TEST_KILLS", "4"))
SEED = int(os.environ.get("WHERRY_TEST_SEED") or random.SystemRandom().randrange(10**6))
PORT, BEHIND = 5030, 5031  # the proxy's and the registry's
TRIES = 6  # the last one is not hit
AGAIN = 0.5  # share of later tries, and of network failures, that are hit again
BESIDE = 0.3  # share of rounds with garbage collections going on
DOWN = 1.5  # s that a registry is away, at most
QUIET = 15  # s for what happens by itself
SIZES = (9, 30_000, 900_000)  # bytes of the layers that no other image has
BIG = SIZES[-1:]
SMALL = 64  # MiB of a file system that becomes full
RELEASE = 50  # hits: then everything is looked at that takes long
ROOMS = (0, 900_000, 100_000) if KILLS >= RELEASE else (100_000,)  # bytes left there
FULL = re.compile(r"[Nn]o space left on device|disk is full")
MANIFESTS = ", ".join((images.OCI_INDEX, images.OCI_MANIFEST))
PLATFORMS = ("amd64", "arm64")

pytestmark = pytest.mark.not_dockerd("asks for all platforms, and for the store check")


# -- what is pushed and pulled -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Origin:
    """An index of two platforms, one of gzip and one of zstd layers, that no other round has."""

    name: str  # repository
    tag: str
    archive: bytes
    index: str  # digest
    ids: Mapping[str, str]  # platform -> config
    documents: Mapping[str, bytes]  # index and manifests
    blobs: Mapping[str, bytes]


def origin(choose: random.Random, number: int, folder: Path, *, sizes: Sequence[int] = SIZES) -> Origin:
    name, tag = f"chaos/{number % 3}", f"r{number}"
    shared = layer("shared", random.Random(SEED).randbytes(200_000))
    descriptors = []
    for architecture, compression in zip(PLATFORMS, ("gzip", "zstd"), strict=True):
        own = [layer(f"{architecture}{n}", choose.randbytes(choose.choice(sizes))) for n in range(2)]
        image = images.Image(tags=[], layers=[images.busybox_layer(), shared, *own], architecture=architecture)
        descriptors.append(images.oci_manifest(folder, image, compression=compression))
    index = {"schemaVersion": 2, "mediaType": images.OCI_INDEX, "manifests": descriptors}
    top = {"mediaType": images.OCI_INDEX, **images.write_blob(folder, json.dumps(index).encode())}
    top["annotations"] = {"io.containerd.image.name": f"127.0.0.1:{PORT}/{name}:{tag}"}
    files = {f"sha256:{path.name}": path.read_bytes() for path in (folder / "blobs/sha256").iterdir()}
    documents = {
        digest: files.pop(str(digest)) for digest in (top["digest"], *(each["digest"] for each in descriptors))
    }
    entries = [images.Entry(name="oci-layout", data=b'{"imageLayoutVersion":"1.0.0"}')]
    entries.append(images.Entry(name="index.json", data=json.dumps({"schemaVersion": 2, "manifests": [top]}).encode()))
    for digest, data in {**documents, **files}.items():
        entries.append(images.Entry(name=f"blobs/sha256/{str(digest)[7:]}", data=data))
    ids = {
        str(each["platform"]["architecture"]): json.loads(documents[each["digest"]])["config"]["digest"]  # type: ignore[index]
        for each in descriptors
    }
    return Origin(name, tag, images.tar(entries), str(top["digest"]), ids, documents, files)  # type: ignore[arg-type]


def layer(name: str, data: bytes) -> bytes:
    return images.tar([images.Entry(name=name, data=data)])


# -- who takes part ----------------------------------------------------------------------------------------------------


@dataclass
class Chaos:
    engine: Engine
    registry: Server | Engine
    folder: Path | None  # with our registry's socket and uploads
    proxy: CuttingProxy
    choose: random.Random
    calm: bool = False  # nothing is hit
    hits: collections.Counter[str] = field(default_factory=collections.Counter)  # by what was hit
    events: Iterator[str] = field(default_factory=lambda: itertools.cycle(("daemon", "network", "registry", "network")))
    pushed: set[str] = field(default_factory=set)  # blobs
    said: collections.Counter[str] = field(default_factory=collections.Counter)  # the last line of a try that failed

    @property
    def _data(self) -> Path:
        return data_of(self.engine)

    def name(self, what: Origin) -> str:
        return f"{self.proxy.address}/{what.name}:{what.tag}"

    # -- rounds --------------------------------------------------------------------------------------------------------

    def push(self, what: Origin) -> None:
        self.engine.docker("load", input=what.archive)
        assert self.engine.api.get(f"/images/{self.name(what)}/json")["Id"] == what.ids["amd64"]
        size = sum(len(data) for digest, data in what.blobs.items() if digest not in self.pushed)
        with self._beside():
            self._until_done("client", size, "push", self.name(what))
        self.pushed.update(what.blobs)
        self.registry_has(what)
        self.nothing_is_wrong()

    def pull(self, what: Origin) -> None:
        self.forget(what)
        size = sum(map(len, what.blobs.values()))
        with self._beside():
            if self.choose.random() < 0.7:
                self._until_done("server", size, "pull", "--platform", "all", self.name(what))
            else:
                for architecture in PLATFORMS:
                    platform = f"linux/{architecture}"
                    self._until_done("server", size, "pull", "--platform", platform, self.name(what))
        self.engine_has(what)
        self.nothing_is_wrong()
        self.forget(what)

    def forget(self, what: Origin) -> None:
        """The engine has nothing of it any more."""
        self.engine.docker("rmi", "-f", self.name(what))
        self.engine.docker("image", "prune", "-f")
        held = self._held()
        assert not held & {*what.documents, *what.ids.values()}, "what was removed is still there"

    def _held(self) -> set[str]:
        return {f"sha256:{path.name}" for path in (self._data / "blobs/sha256").iterdir()}

    def _until_done(self, direction: str, size: int, *args: str) -> None:
        for number in range(TRIES):
            hit = not self.calm and number < TRIES - 1 and (not number or self.choose.random() < AGAIN)
            if self._try(direction, size, *args, hit=hit):
                return
        raise AssertionError("unreachable: the last try is not hit")

    def _try(self, direction: str, size: int, *args: str, hit: bool) -> bool:
        """Whether it went through; it must when it is not hit."""
        event = next(self.events) if hit else ""
        if event:
            self._order(event, direction, size)
        client = self.engine.docker.start(*args)
        while event and client.poll() is None:
            if self.proxy.reached(0.02):
                self.hits[f"{args[0]} {event}"] += 1
                event = self._hit(event, direction, size)
        out, err = client.communicate(timeout=180)
        self.proxy.nothing()
        if client.returncode == 0:
            return True
        words = err.decode().strip()
        assert hit, f"docker {' '.join(args)}: {words}\n{out.decode()[-2000:]}\n{self.engine.log_tail()}"
        assert words, "it failed without a word"
        assert "Traceback" not in words
        self.said[words.splitlines()[-1][:160]] += 1
        return False

    def _order(self, event: str, direction: str, size: int) -> None:
        if self.choose.random() < 0.2:  # in what goes the other way: requests of a pull, answers to a push
            direction, size = {"client": "server", "server": "client"}[direction], 6000
        how = self.choose.choice(("reset", "close")) if event == "network" else "tell"
        self.proxy.order(direction, 1 + int(size * self.choose.random()), how)

    def _hit(self, event: str, direction: str, size: int) -> str:
        """The bytes were reached; what is to come next."""
        time.sleep(self.choose.choice((0, 0, self.choose.uniform(0, 0.2))))  # a random moment is what is wanted
        if event == "daemon":
            self.engine.kill()
            self.engine.start()
        elif event == "registry":
            self.registry.kill()
            time.sleep(self.choose.uniform(0, DOWN))
            self.registry.start()
        elif self.choose.random() < AGAIN:
            self._order(event, direction, size // 2)
            return event
        return ""

    @contextlib.contextmanager
    def _beside(self) -> Iterator[None]:
        """Garbage is collected all the time, in some of the rounds."""
        enough = threading.Event()
        places = [(self.engine.api, "/images/prune"), (self.engine.api, "/system/check?quick=1")]
        if self.folder is not None:
            places.append((Api(self.folder / "admin.sock"), "/gc?grace=3600&delete-untagged=1"))
        if isinstance(self.registry, Engine):
            places.append((self.registry.api, "/images/prune"))

        def collect() -> None:
            while not enough.wait(0.05):
                for api, path in places:
                    with contextlib.suppress(OSError, http.client.HTTPException):  # it is down
                        api.request("POST", path)

        thread = threading.Thread(target=collect)
        if not self.calm and self.choose.random() < BESIDE:
            thread.start()
        try:
            yield
        finally:
            enough.set()
            if thread.ident is not None:
                thread.join()

    # -- what must be so afterwards ------------------------------------------------------------------------------------

    def registry_has(self, what: Origin) -> None:
        api, base = Api(self.proxy.socket), f"/v2/{what.name}"
        found = api.request("GET", f"{base}/manifests/{what.tag}", headers={"Accept": MANIFESTS})
        assert found.body == what.documents[what.index]
        for digest, data in what.documents.items():
            assert api.request("GET", f"{base}/manifests/{digest}", headers={"Accept": MANIFESTS}).body == data
        for digest, data in what.blobs.items():
            assert api.request("GET", f"{base}/blobs/{digest}").body == data, f"{digest} is another one"

    def engine_has(self, what: Origin) -> None:
        found = self.engine.api.get(f"/images/{self.name(what)}/json")
        assert found["Id"] == what.ids["amd64"]
        assert found["RepoDigests"] == [f"{self.proxy.address}/{what.name}@{what.index}"]
        for digest, data in {**what.documents, **what.blobs}.items():
            path = self._data / "blobs/sha256" / digest.removeprefix("sha256:")
            assert path.read_bytes() == data, f"{digest} is another one"

    def nothing_is_wrong(self) -> None:
        for engine in (self.engine, self.registry):
            if isinstance(engine, Engine):
                answer = engine.api.request("GET", "/system/check")
                assert answer.status == 200, answer.body
                result = json.loads(answer.body.splitlines()[-1])
                assert result["problems"] == [], result
                left = [path.name for path in (data_of(engine) / "ingest").iterdir()]
                assert [name for name in left if not name.startswith("partial-")] == []

    def registry_tidies_up(self, origins: list[Origin]) -> None:
        """Its collector takes nothing that is needed, and what was being uploaded expires."""
        if self.folder is not None:
            gone = Api(self.folder / "admin.sock").request("POST", "/gc?grace=0&delete-untagged=1")
            assert gone.status == 200, gone.body
            assert gone.json()["manifests"] == 0
            inside = isinstance(self.registry, Engine)
            uploads = (self.folder.parent if inside else self.folder) / "uploads"
            self.registry.stop()
            for path in uploads.iterdir():
                os.utime(path, (0, 0))
            self.registry.start()
            wait_until(lambda: not list(uploads.iterdir()), "uploads do not expire")
        for each in origins:
            self.registry_has(each)


def data_of(engine: Engine) -> Path:
    """Its data root, where it may be on a file system that is seen in the box only."""
    return engine.box.path(engine.data_root)


def wait_until(true: Callable[[], bool], otherwise: str) -> None:
    until = time.monotonic() + QUIET
    while not true():
        assert time.monotonic() < until, otherwise
        time.sleep(0.05)


# -- tests -------------------------------------------------------------------------------------------------------------


class Kind(enum.StrEnum):
    OURS = "ours"
    ENGINE = "engine"  # that of a second daemon
    DEBIAN = "debian"


@contextlib.contextmanager
def around(engine: Engine, kind: Kind, root: Path, own_engine: Any) -> Iterator[Chaos]:
    """A registry and the proxy in front of it, in the engine's box."""
    root.mkdir(exist_ok=True)
    folder: Path | None = root / "data"
    registry: Server | Engine
    if kind is Kind.ENGINE:
        config = root / "daemon.json"
        config.write_text(json.dumps({"registry": {"listen": [f"127.0.0.1:{BEHIND}"]}}))
        registry = own_engine(box=engine.box, bip="172.31.9.1/24", args=["--config-file", str(config)])
        folder = registry.data_root / "registry"
    elif kind is Kind.OURS:
        registry = in_box(engine.box, ours(root))
    else:
        registry, folder = in_box(engine.box, docker_registry(root)), None
        config = root / "config.yml"
        config.write_text(config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{BEHIND}"))
    if isinstance(registry, Server):
        registry.start()
    try:
        with CuttingProxy(engine.box, engine.root, port=PORT, target=BEHIND) as proxy:
            yield Chaos(engine, registry, folder, proxy, random.Random(f"{SEED} {kind}"))
    finally:
        if isinstance(registry, Server):
            registry.kill()


def in_box(box: Box, server: Server) -> Server:
    server.port = BEHIND
    server.words = ["nsenter", "-t", str(box.holder), "-n", "-m", "--", *server.words]
    return server


@pytest.mark.timeout(120 + KILLS * 30)
@pytest.mark.parametrize("kind", Kind)
def test_what_breaks_off_and_is_tried_again_ends_with_the_same_bytes(
    kind: Kind, own_engine: Any, tmp_path: Path
) -> None:
    print(f"WHERRY_TEST_SEED={SEED}")
    with around(own_engine(), kind, tmp_path / "registry", own_engine) as chaos:
        origins = []
        while chaos.hits.total() < KILLS:
            assert len(origins) <= KILLS, f"too few of them are hit: {chaos.hits}"
            origins.append(what := origin(chaos.choose, len(origins), tmp_path / f"layout{len(origins)}"))
            chaos.push(what)
            chaos.pull(what)
        print(f"{2 * len(origins)} rounds; hit: {chaos.hits.total()}, {dict(chaos.hits)}")
        for words, count in chaos.said.most_common():
            print(f"{count:4} {words}")
        chaos.registry_tidies_up(origins)


# -- no room -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def on_tmpfs(box: Box, path: Path) -> Iterator[None]:
    """What is at `path` is on a small file system, seen in the box only."""
    path.mkdir(parents=True, exist_ok=True)
    box.run("mount", "-t", "tmpfs", "-o", f"size={SMALL}m", "tmpfs", str(path))
    try:
        yield
    finally:
        box.run("umount", "--lazy", str(path))


def leave(box: Box, path: Path, room: int) -> None:
    """Fill the file system but for so many bytes."""
    box.run("sh", "-c", f"cat /dev/zero > {path}/filler", check=False)
    box.run("truncate", "-s", f"-{room}", f"{path}/filler")


def free(box: Box, path: Path) -> None:
    box.run("rm", "-f", f"{path}/filler")


def refused(chaos: Chaos, *args: str) -> None:
    done = chaos.engine.docker(*args, check=False)
    assert done.code, f"docker {' '.join(args)} worked, on a full disk:\n{done.out}"
    assert FULL.search(done.err), done.err
    assert "Traceback" not in done.err


@pytest.fixture
def harbour(own_engine: Any, tmp_path: Path) -> Iterator[Chaos]:
    """An engine and a registry of ours, both with little room."""
    engine: Engine = own_engine()
    folder = tmp_path / "registry"
    engine.stop()
    with on_tmpfs(engine.box, folder / "data"), on_tmpfs(engine.box, engine.data_root):
        engine.start()
        with around(engine, Kind.OURS, folder, own_engine) as chaos:
            chaos.calm = True
            yield chaos
        engine.stop()
    engine.start()


@pytest.mark.parametrize("room", ROOMS)
def test_a_pull_without_room_says_so_and_works_once_there_is_some(harbour: Chaos, tmp_path: Path, room: int) -> None:
    chaos, box, data = harbour, harbour.engine.box, harbour.engine.data_root
    what = origin(chaos.choose, 0, tmp_path / "layout", sizes=BIG)
    chaos.push(what)
    chaos.forget(what)
    leave(box, data, room)
    refused(chaos, "pull", "--platform", "all", chaos.name(what))
    assert chaos.engine.api.get("/images/json?all=1") == []
    chaos.nothing_is_wrong()
    free(box, data)
    chaos.engine.docker("pull", "--platform", "all", chaos.name(what))
    chaos.engine_has(what)
    chaos.nothing_is_wrong()


@pytest.fixture
def full(harbour: Chaos, tmp_path: Path) -> tuple[Chaos, Origin, Origin]:
    """The registry has an image, and no room for the other one that the engine has."""
    before, what = (origin(harbour.choose, n, tmp_path / f"layout{n}", sizes=BIG) for n in range(2))
    harbour.push(before)
    harbour.engine.docker("load", input=what.archive)
    leave(harbour.engine.box, harbour.folder, 0)
    return harbour, before, what


@pytest.mark.timeout(300)
def test_a_push_goes_on_by_itself_when_the_registry_gets_room(full: tuple[Chaos, Origin, Origin]) -> None:
    chaos, before, what = full
    for room in ROOMS if KILLS >= RELEASE else ():
        leave(chaos.engine.box, chaos.folder, room)
        refused(chaos, "push", chaos.name(what))  # half a minute later: it is tried again first
        assert Api(chaos.proxy.socket).request("GET", f"/v2/{what.name}/manifests/{what.tag}").status == 404
        chaos.registry_has(before)
        chaos.nothing_is_wrong()
    client = chaos.engine.docker.start("push", chaos.name(what))
    assert client.stdout is not None
    while b"Retrying in " not in (line := client.stdout.readline()):
        assert line, client.communicate()
    free(chaos.engine.box, chaos.folder)
    _, err = client.communicate(timeout=60)
    assert client.returncode == 0, err
    for each in (before, what):
        chaos.registry_has(each)
        chaos.pull(each)
