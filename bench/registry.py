"""Our registry against Debian's docker-registry: throughput of blobs, manifests a second, long lists; in one run.

    make bench-registry                     print the table
    make bench-registry BENCH="--save"      … and write it to bench/results/registry.md

Both are processes of their own on loopback, with folders on the same disk, asked by the same client in alternation.
"""

import argparse
import hashlib
import http.client
import json
import os
import re
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from registrykit.client import with_digest  # noqa: E402
from registrykit.documents import OCI_MANIFEST, Made  # noqa: E402
from registrykit.servers import Server, docker_registry, ours, running  # noqa: E402

BLOB = 128 << 20  # bytes
STREAMS = 8
REQUESTS = 2000  # manifests asked for in one measure
TAGS = 10_000
REPOSITORIES = 1000


@dataclass(frozen=True, kw_only=True)
class Measure:
    name: str
    unit: str
    ours: float
    theirs: float
    less_is_better: bool = False

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def empty_image() -> Made:
    config = b"{}"
    descriptor = {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": digest(config),
        "size": len(config),
    }
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor, "layers": []}
    return Made(json.dumps(document).encode(), OCI_MANIFEST, blobs=(config,))


def in_parallel(count: int, work: Callable[[], None]) -> float:
    """Seconds until `count` threads have done it."""
    threads = [threading.Thread(target=work) for _ in range(count)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


def download(server: Server, name: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", f"/v2/bench/blobs/{name}")
    answer = connection.getresponse()
    assert answer.status == 200, answer.status
    buffer = memoryview(bytearray(1 << 20))
    size = 0
    while got := answer.readinto(buffer):
        size += got
    assert size == BLOB, size
    connection.close()


def push_blob(server: Server, data: bytes) -> None:
    with server.client() as client:
        answer = client.put(with_digest(client.begin("bench"), digest(data)), data)
        assert answer.status == 201, answer


def ask(server: Server, times: int) -> None:
    """Manifests over one connection that is kept, by the barest of clients: the server is to be the slow one."""
    lines = ["GET /v2/bench/manifests/t HTTP/1.1", f"Host: 127.0.0.1:{server.port}", f"Accept: {OCI_MANIFEST}", "", ""]
    request = "\r\n".join(lines).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        for _ in range(times):
            connection.sendall(request)
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(65536)
            headers, _, body = head.partition(b"\r\n\r\n")
            assert headers.startswith(b"HTTP/1.1 200"), headers
            length = int(re.search(rb"(?i)content-length: *(\d+)", headers)[1])  # type: ignore[index]
            while len(body) < length:
                body += connection.recv(65536)


def alternate(servers: Sequence[Server], rounds: int, work: Callable[[Server], float]) -> list[float]:
    """Median of what `work` answers, for each. One round is not counted."""
    found: list[list[float]] = [[] for _ in servers]
    for number in range(rounds + 1):
        for server, values in zip(servers, found, strict=True):
            value = work(server)
            if number:
                values.append(value)
    return [statistics.median(values) for values in found]


def measures(servers: Sequence[Server], rounds: int) -> list[Measure]:
    blob = os.urandom(BLOB)
    name = digest(blob)
    image = empty_image()
    for server in servers:
        push_blob(server, blob)
        with server.client() as client:
            client.push("bench", image, "t")
    found: list[Measure] = []

    def add(title: str, unit: str, work: Callable[[Server], float], *, less: bool = False, times: int = rounds) -> None:
        mine, theirs = alternate(servers, times, work)
        found.append(Measure(name=title, unit=unit, ours=mine, theirs=theirs, less_is_better=less))
        print(f"  {title}: {mine:.1f} {unit}, docker-registry {theirs:.1f} {unit}", file=sys.stderr, flush=True)

    for streams in (1, STREAMS):
        add(
            f"blob download, {streams} stream{'s' if streams > 1 else ''}",
            "MB/s",
            lambda server, n=streams: n * BLOB / 1e6 / in_parallel(n, lambda: download(server, name)),  # type: ignore[misc]
        )
    for streams in (1, STREAMS):

        def upload(server: Server, streams: int = streams) -> float:
            parts = [os.urandom(BLOB // STREAMS) for _ in range(streams)]
            waiting = list(parts)
            taken = in_parallel(streams, lambda: push_blob(server, waiting.pop()))
            return sum(map(len, parts)) / 1e6 / taken

        add(f"blob upload, {streams} stream{'s' if streams > 1 else ''}", "MB/s", upload)
    for streams in (1, 16):
        add(
            f"manifest requests, {streams} connection{'s' if streams > 1 else ''}",
            "/s",
            lambda server, n=streams: REQUESTS / in_parallel(n, lambda: ask(server, REQUESTS // n)),  # type: ignore[misc]
        )
    for server in servers:
        fill(server, image)
    add(f"list of {TAGS} tags", "ms", lambda server: listed(server, "/v2/bench/tags/list", "tags", TAGS), less=True)
    add(
        f"catalog of {REPOSITORIES} repositories",
        "ms",
        lambda server: listed(server, f"/v2/_catalog?n={REPOSITORIES}", "repositories", REPOSITORIES),
        less=True,
    )
    return found


def fill(server: Server, image: Made) -> None:
    with server.client() as client:
        for number in range(TAGS):
            assert client.put_manifest("bench", f"t{number}", image).status == 201
        for number in range(REPOSITORIES):
            client.push(f"many/{number}", image, "t")


def listed(server: Server, path: str, key: str, least: int) -> float:
    """Milliseconds for all pages of a list."""
    with server.client() as client:
        start = time.perf_counter()
        names: list[str] = []
        while path:
            answer = client.get(path)
            names += answer.json()[key]
            link = answer.headers.get("link", "")
            path = link.partition("<")[2].partition(">")[0]
        taken = time.perf_counter() - start
    assert len(names) >= least, len(names)
    return taken * 1000


def table(found: Sequence[Measure], rounds: int) -> str:
    lines = ["| | ours | docker-registry | ratio |", "|---|---:|---:|---:|"]
    for each in found:
        word = "less is better" if each.less_is_better else "more is better"
        lines.append(
            f"| {each.name} | {each.ours:.0f} {each.unit} | {each.theirs:.0f} {each.unit} | {each.ratio:.2f} ({word}) |"
        )
    lines += [
        "",
        f"Medians of {rounds} rounds in alternation, {time.strftime('%Y-%m-%d')}, {os.cpu_count()} processors.",
    ]
    return "\n".join(lines)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--save", action="store_true", help="write bench/results/registry.md")
    wanted = options.parse_args()
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wherry-bench-")))
        servers = []
        for make in (ours, docker_registry):
            home = root / make.__name__
            home.mkdir()
            servers.append(stack.enter_context(running(make(home))))
        text = table(measures(servers, wanted.rounds), wanted.rounds)
    print(text)
    if wanted.save:
        (HERE / "results" / "registry.md").write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
