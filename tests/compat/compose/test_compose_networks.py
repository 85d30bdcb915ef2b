"""A Compose project of several networks and volumes: who is reached by which name, from where, and what stays."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.buildx import docker_with_plugins
from harness.engine import Engine, Result
from harness.engines import EngineMaker

SHOP = Path(__file__).parent / "shop"
READ = (
    "import sys, urllib.request as web\n"
    "print(web.build_opener(web.ProxyHandler({})).open(sys.argv[1], None, 5).read().decode())"
)

pytestmark = pytest.mark.not_dockerd("Compose asks for a newer API")


class Project:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.docker = engine, docker_with_plugins(engine)

    def compose(self, *args: str, check: bool = True) -> Result:
        command = ["compose", "--ansi", "never", "--project-directory", str(SHOP), *args]
        return self.docker(*command, timeout=120, check=check)

    def within(self, service: str, script: str, *, check: bool = True) -> str:
        """What a script in the service's first container prints."""
        done = self.compose("exec", "-T", service, "sh", "-c", script, check=check)
        return done.text if check else str(done.code)

    def page(self, address: str) -> str:
        """What the web server there shows to the host; "" when there is none."""
        return self.engine.box.run("python3", "-c", READ, address, net_only=True, check=False).strip()

    def names(self, service: str) -> list[str]:
        return sorted(self.compose("ps", "--format", "{{.Name}}", service).lines)


@pytest.fixture
def project(own_engine: EngineMaker) -> Iterator[Project]:
    made = Project(own_engine())
    made.docker("volume", "create", "shop-counts")
    made.docker("run", "--rm", "-v", "shop-counts:/data", "busybox", "sh", "-c", "echo 42 >/data/count")
    yield made
    made.compose("down", "-v", "-t", "0")
    made.docker("volume", "rm", "shop-counts")


def test_a_shop_is_opened_restarted_enlarged_and_closed(project: Project) -> None:
    project.compose("up", "-d", "--wait")
    names_lead_where_they_should(project)
    networks_are_what_was_asked_for(project)
    restarting_keeps_addresses_and_data(project)
    instances_share_a_name(project)
    closing_leaves_only_the_volumes(project)


def names_lead_where_they_should(project: Project) -> None:
    assert project.page("http://127.0.0.1:18110") == "welcome"
    assert project.page("http://127.0.0.1:18111") == "welcome"
    assert project.page("http://172.31.0.1:18110") == "welcome"
    assert project.page("http://172.31.0.1:18111") == ""
    for name in ("store", "database", "shop-store-1", "store.shop_inner"):
        assert project.within("api", f"nc -w 5 {name} 6000") == "42"
    assert project.within("front", "nc -w 5 api 8000")
    assert project.within("front", "wget -qO- http://www") == "welcome"
    assert project.within("front", "wget -qO- http://shop.example") == "welcome"
    assert project.within("front", "nslookup store", check=False) != "0"
    assert project.within("front", "nc -w 1 10.88.3.10 6000", check=False) != "0"
    assert (
        project.within("api", "ping -6 -c 1 -W 5 -q database | head -n1")
        == "PING database (fd00:88:3::10): 56 data bytes"
    )


def networks_are_what_was_asked_for(project: Project) -> None:
    address = project.within("store", "ip -o addr show scope global | tr -s ' ' | cut -d' ' -f4")
    assert sorted(address.splitlines()) == ["10.88.3.10/24", "fd00:88:3::10/64"]
    assert "default" not in project.within("store", "ip route; ip -6 route")
    assert project.within("store", "cat /proc/sys/net/ipv4/tcp_keepalive_time") == "77"
    hosts = project.within("store", "cat /etc/hosts")
    assert "192.0.2.7\telsewhere" in hosts
    assert "172.31.0.1\tmachine" in hosts
    assert "search shop.example" in project.within("store", "cat /etc/resolv.conf")
    assert "1400" in project.within("api", "cat /sys/class/net/eth*/mtu")
    leased = project.engine.inspect("shop-api-1")["NetworkSettings"]["Networks"]["shop_inner"]["IPAddress"]
    assert int(leased.rpartition(".")[2]) >= 128
    labels = project.engine.api.get("/networks/shop_inner")["Labels"]
    assert labels["com.docker.compose.network"] == "inner"


def restarting_keeps_addresses_and_data(project: Project) -> None:
    project.within("store", "echo 43 >/data/count")
    project.compose("restart", "-t", "0", "store")
    assert retried(lambda: project.within("api", "nc -w 5 database 6000")) == "43"
    project.compose("up", "-d", "--wait", "--force-recreate", "-t", "0", "store")
    assert retried(lambda: project.within("api", "nc -w 5 database 6000")) == "43"


def retried(ask) -> str:  # type: ignore[no-untyped-def]
    """The first answer that is not empty: a server may not listen yet just after its start."""
    until = time.monotonic() + 10
    while True:
        try:
            answer = str(ask())
        except AssertionError:
            answer = ""
        if answer or time.monotonic() > until:
            return answer
        time.sleep(0.05)


def instances_share_a_name(project: Project) -> None:
    project.compose("up", "-d", "--wait", "--scale", "api=3", "--no-recreate", "api")
    assert project.names("api") == ["shop-api-1", "shop-api-2", "shop-api-3"]
    addresses = sorted(
        project.engine.inspect(name)["NetworkSettings"]["Networks"]["shop_middle"]["IPAddress"]
        for name in project.names("api")
    )
    found = project.within("front", "nslookup api | grep ^Address | tail -n +2 | cut -d' ' -f2").split()
    assert sorted(each for each in found if ":" not in each) == addresses
    project.compose("up", "-d", "--wait", "--scale", "api=1", "--no-recreate", "-t", "0", "api")
    assert project.names("api") == ["shop-api-1"]
    assert project.within("front", "nslookup api | grep -c ^Address") in ("1", "2")


def closing_leaves_only_the_volumes(project: Project) -> None:
    project.compose("down", "-t", "0")
    assert project.engine.api.get("/containers/json?all=1") == []
    assert [each["Name"] for each in project.engine.api.get('/networks?filters={"type":["custom"]}')] == []
    volumes = [each["Name"] for each in project.engine.api.get("/volumes")["Volumes"]]
    assert sorted(volumes) == ["shop-counts", "shop_pages"]
