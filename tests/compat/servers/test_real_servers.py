"""PostgreSQL, Redis and nginx of Debian in an image built here: data that stays, peers found by name, a public port.

The image is built by the engine under test the first time, and kept in .cache/servers for the next.
"""

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import images
from harness.box import Box
from harness.buildx import building_engine, docker_with_plugins
from harness.debian import debian
from harness.engine import REPOSITORY, Cli, Engine, remove_root, short_root
from harness.engines import new_engine
from harness.outside import way_out

DOCKERFILE = Path(__file__).parent / "Dockerfile"
CACHE = REPOSITORY / ".cache/servers"
BUILD_TIMEOUT = 300  # s
READ = (
    "import sys, urllib.request as web\n"
    "print(web.build_opener(web.ProxyHandler({})).open(sys.argv[1], None, 5).read().decode())"
)

pytestmark = [pytest.mark.not_dockerd("heredocs need BuildKit"), pytest.mark.timeout(BUILD_TIMEOUT + 60)]


def server_image() -> Path:
    """`docker save` of the image; named by its Dockerfile, so that a change of that builds it again."""
    kept = CACHE / f"{hashlib.sha256(DOCKERFILE.read_bytes()).hexdigest()[:16]}.tar"
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with building_engine(images.docker_archive([debian("debian:test")])) as engine, way_out(engine.box) as proxy:
            options = [word for name in ("http_proxy", "https_proxy") for word in ("--build-arg", f"{name}={proxy}")]
            build = ["buildx", "build", "--network", "host", "-t", "servers", *options, str(DOCKERFILE.parent)]
            docker_with_plugins(engine)(*build, timeout=BUILD_TIMEOUT)
            part = kept.with_suffix(".part")
            engine.docker("save", "-o", str(part), "servers", timeout=120)
            part.rename(kept)
    return kept


class Site:
    """An engine with the servers' image and a network that they share."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.docker: Cli = engine.docker

    def start(self, name: str, *options: str, command: tuple[str, ...]) -> None:
        self.docker("run", "-d", "--name", name, "-h", name, "--network", "backend", *options, "servers", *command)

    def ask(self, *command: str, expect: str = "") -> str:
        """What a client in a container of its own prints; tried until it gets an answer, or the expected one."""
        return retried(
            lambda: self.docker("run", "--rm", "--network", "backend", "servers", *command, check=False).text, expect
        )

    def page(self, port: int) -> str:
        run = self.engine.box.run
        return retried(lambda: run("python3", "-c", READ, f"http://127.0.0.1:{port}/", net_only=True, check=False))


def retried(ask: Callable[[], str], expect: str = "") -> str:
    """The first answer that is `expect`, or any when nothing is expected; the last one when the time is over."""
    until = time.monotonic() + 20
    while True:
        answer = ask().strip()
        if (answer == expect if expect else answer) or time.monotonic() > until:
            return answer
        time.sleep(0.05)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    archive = server_image()
    root = short_root()
    try:
        with Box() as box:
            engine = new_engine(box, root)
            engine.start()
            try:
                engine.docker("load", "-q", "-i", str(archive), timeout=120)
                engine.docker("network", "create", "backend")
                yield Site(engine)
                engine.remove_all_containers()
                engine.docker("network", "rm", "backend")
            finally:
                engine.stop()
    finally:
        remove_root(root)


def test_a_database_is_asked_by_name_and_outlives_its_container(site: Site) -> None:
    run = ("-v", "pgdata:/data", "-u", "postgres")
    psql = ("psql", "-h", "db", "-U", "postgres", "-Atqc")
    site.start("db", *run, command=("serve-postgres",))
    assert site.ask(*psql, "select 1") == "1"
    site.ask(*psql, "create table kept as select generate_series(1, 1000) as n; select 'made'", expect="made")
    site.docker("stop", "db")
    site.docker("rm", "db")
    site.start("db", *run, command=("serve-postgres",))
    assert site.ask(*psql, "select sum(n) from kept") == "500500"
    site.docker("rm", "-f", "db")
    site.docker("volume", "rm", "pgdata")


def test_a_replica_follows_its_primary_by_name(site: Site) -> None:
    site.start("primary", "-v", "reds:/data", command=("serve-redis",))
    site.start("replica", command=("serve-redis", "--replicaof", "primary", "6379"))
    assert site.ask("redis-cli", "-h", "primary", "set", "colour", "blue") == "OK"
    assert site.ask("redis-cli", "-h", "replica", "get", "colour", expect="blue") == "blue"
    site.docker("rm", "-f", "primary")
    site.start("primary", "-v", "reds:/data", command=("serve-redis",))
    assert site.ask("redis-cli", "-h", "primary", "get", "colour", expect="blue") == "blue"
    assert site.ask("redis-cli", "-h", "primary", "set", "colour", "green") == "OK"
    assert site.ask("redis-cli", "-h", "replica", "get", "colour", expect="green") == "green"
    site.docker("rm", "-f", "primary", "replica")
    site.docker("volume", "rm", "reds")


def test_a_web_server_is_reached_from_the_host_and_from_its_peers(site: Site) -> None:
    site.start("web", "-p", "18120:80", command=("serve-nginx",))
    assert site.page(18120) == "served by web"
    perl = '$s=IO::Socket::INET->new(PeerAddr=>"web:80"); print $s "GET / HTTP/1.0\\n\\n"; print(join("", <$s>))'
    assert "served by web" in site.ask("perl", "-MIO::Socket::INET", "-e", perl)
    addresses = site.engine.inspect("web")["NetworkSettings"]["Networks"]["backend"]
    told = re.findall(r"^(\S+) - - .* 200 ", site.docker("logs", "web").out, re.MULTILINE)
    assert told[0] == addresses["Gateway"]  # from the host's loopback
    assert told[-1] != addresses["Gateway"]
    assert told[-1].rpartition(".")[0] == addresses["Gateway"].rpartition(".")[0]
    site.docker("rm", "-f", "web")
