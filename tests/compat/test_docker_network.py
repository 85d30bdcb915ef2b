"""Interfaces, addresses, masquerading and published ports. "Outside" is a network namespace at the end of a wire."""

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from harness.engine import Cli, Engine

SLEEP = ("busybox", "sleep", "600")
SERVE = "while :; do nc -l -p 80 -e sh -c 'echo hello from $HOSTNAME'; done"

OUTSIDE, HERE = "198.51.100.2", "198.51.100.1"
ASK = f"import socket; s=socket.create_connection(({HERE!r},18080),5); s.send(b'x'); print(s.recv(99).decode())"


def fetch(engine: Engine, address: str, port: int, *, udp: bool = False, wait: float = 10) -> str:
    """What a server says to a client in the box's network; tries until it answers."""
    code = (
        "import socket\n"
        f"s=socket.socket(socket.AF_INET, socket.{'SOCK_DGRAM' if udp else 'SOCK_STREAM'}); s.settimeout(1)\n"
        f"s.connect(({address!r},{port})); s.send(b'x\\n')\n"
        "print(s.recv(9999).decode(), end='')"
    )
    until = time.monotonic() + wait
    while True:
        answer = engine.box.run("python3", "-c", code, net_only=True, check=False)
        if answer or time.monotonic() > until:
            return answer
        time.sleep(0.05)


@contextlib.contextmanager
def serving(engine: Engine, name: str, port: int, *, udp: bool = False) -> Iterator[None]:
    """A server in the container's network that greets everyone by address."""
    code = (
        "import socket\n"
        f"s=socket.socket(socket.AF_INET, socket.{'SOCK_DGRAM' if udp else 'SOCK_STREAM'})\n"
        f"s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1); s.bind(('0.0.0.0',{port}))\n"
    )
    if udp:
        code += "print('up',flush=True)\nwhile 1: d,a=s.recvfrom(99); s.sendto(b'hello '+a[0].encode(),a)\n"
    else:
        code += "s.listen(); print('up',flush=True)\n"
        code += "while 1: c,a=s.accept(); c.recv(9); c.send(b'hello '+a[0].encode()); c.close()\n"
    pid = engine.box.host_pid(engine.state(name)["Pid"])
    server = subprocess.Popen(["nsenter", "-t", str(pid), "-n", "python3", "-c", code], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"up\n"
        yield
    finally:
        server.kill()
        server.communicate()


@pytest.fixture
def outside(engine: Engine) -> Iterator[int]:
    """A host next to ours: a network namespace with a wire to the box's. Yields the PID that holds it."""
    holder = subprocess.Popen(
        ["nsenter", "-t", str(engine.box.holder), "-n", "unshare", "-n", "sleep", "600"], start_new_session=True
    )
    try:
        for _ in range(200):
            with contextlib.suppress(OSError):
                if _differs(holder.pid, engine.box.holder) and _differs(holder.pid, os.getpid()):
                    break
            time.sleep(0.02)
        run = engine.box.run
        run("ip", "link", "add", "wire0", "type", "veth", "peer", "name", "wire1", net_only=True)
        run("ip", "link", "set", "wire1", "netns", str(holder.pid), net_only=True)
        run("ip", "addr", "add", f"{HERE}/24", "dev", "wire0", net_only=True)
        run("ip", "link", "set", "wire0", "up", net_only=True)
        inside = ["nsenter", "-t", str(holder.pid), "-n"]
        for words in (f"addr add {OUTSIDE}/24 dev wire1", "link set wire1 up", "link set lo up"):
            subprocess.run([*inside, "ip", *words.split()], check=True)
        yield holder.pid
    finally:
        holder.kill()
        holder.wait()
        engine.box.run("ip", "link", "del", "wire0", net_only=True, check=False)


def _differs(pid: int, other: int) -> bool:
    return os.readlink(f"/proc/{pid}/ns/net") != os.readlink(f"/proc/{other}/ns/net")


# -- modes -------------------------------------------------------------------------------------------------------------


def test_bridge_gives_an_address_a_gateway_and_a_route(cli: Cli) -> None:
    script = "ip -o -4 addr show eth0; ip route; ip link show eth0"
    out = cli("run", "--rm", "busybox", "sh", "-c", script).out
    assert "inet 172.31.0." in out
    assert "/24" in out
    assert "default via 172.31.0.1 dev eth0" in out
    assert "mtu 1500" in out


def test_none_gives_only_the_loopback(cli: Cli) -> None:
    lines = cli("run", "--rm", "--network", "none", "busybox", "ip", "-o", "link").lines
    assert len(lines) == 1
    assert "lo:" in lines[0]
    assert "UP" in lines[0]


def test_host_is_the_hosts_own(cli: Cli, engine: Engine) -> None:
    links = set(cli("run", "--rm", "--network", "host", "busybox", "ls", "/sys/class/net").lines)
    assert links == engine.box.links() or {"lo"} <= links
    assert "127.0.0.1" in cli("run", "--rm", "--network", "host", "busybox", "ip", "addr").out


def test_two_containers_have_two_addresses_and_reach_each_other(cli: Cli, engine: Engine) -> None:
    cli("run", "-d", "--name", "server", "busybox", "sh", "-c", SERVE)
    cli("run", "-d", "--name", "other", *SLEEP)
    address = engine.inspect("server")["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
    assert address != engine.inspect("other")["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
    for _ in range(100):
        done = cli("exec", "other", "nc", "-w", "2", address, "80", check=False)
        if done.code == 0 and done.out:
            break
    assert done.text.startswith("hello from")


def test_the_gateway_is_the_host(cli: Cli) -> None:
    assert cli("run", "--rm", "busybox", "ping", "-c", "1", "-W", "3", "172.31.0.1", check=False).code == 0


def test_addresses_are_given_back(docker: Cli, engine: Engine) -> None:
    """Many more containers, one after the other, than a /24 has addresses would need leaks to fail: a few suffice."""
    seen = set()
    for _ in range(6):
        docker("run", "--name", "brief", *("busybox", "true"))
        docker("start", "brief")
        engine.wait_for("brief", "exited")
        docker("rm", "brief")
    for _ in range(2):
        docker("run", "-d", "--name", "kept", *SLEEP)
        seen.add(engine.inspect("kept")["NetworkSettings"]["Networks"]["bridge"]["IPAddress"])
        docker("rm", "-f", "kept")
    assert all(int(address.rpartition(".")[2]) < 40 for address in seen)


def test_another_containers_network_is_shared(cli: Cli) -> None:
    cli("run", "-d", "--name", "server", "busybox", "sh", "-c", SERVE)
    for _ in range(100):
        done = cli(
            "run", "--rm", "--network", "container:server", "busybox", "nc", "-w", "2", "127.0.0.1", "80", check=False
        )
        if done.code == 0 and done.out:
            break
    assert done.text.startswith("hello from")


def test_an_unknown_network_is_named(cli: Cli) -> None:
    done = cli("run", "--rm", "--network", "nosuch", "busybox", "true", check=False)
    assert done.code == 125
    assert "network nosuch not found" in done.err
    assert cli("ps", "-aq").text == ""


def test_a_fixed_address_on_the_default_bridge_is_refused(engine: Engine) -> None:
    body = {
        "Image": "busybox",
        "HostConfig": {"NetworkMode": "bridge"},
        "NetworkingConfig": {"EndpointsConfig": {"bridge": {"IPAMConfig": {"IPv4Address": "172.31.0.77"}}}},
    }
    answer = engine.api.request("POST", "/containers/create", body)
    if answer.status == 201:  # dockerd finds out when it starts the container
        answer = engine.api.request("POST", f"/containers/{answer.json()['Id']}/start")
    assert answer.status == 400
    assert "user specified IP address is supported" in answer.message


@pytest.mark.not_dockerd("the CLI wants API 1.44 for it")
def test_the_mac_address_can_be_chosen(cli: Cli) -> None:
    out = cli("run", "--rm", "--mac-address", "02:11:22:33:44:55", "busybox", "ip", "link", "show", "eth0").out
    assert "02:11:22:33:44:55" in out


def test_outbound_traffic_is_masqueraded(cli: Cli, engine: Engine, outside: int) -> None:
    listener = subprocess.Popen(
        [
            *("nsenter", "-t", str(outside), "-n", "python3", "-c"),
            "import socket\ns=socket.create_server(('198.51.100.2',7000)); print('up',flush=True)\n"
            "c,a=s.accept(); print(a[0],flush=True); c.close()",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert listener.stdout is not None
    assert listener.stdout.readline() == "up\n"
    cli("run", "--rm", "busybox", "nc", "-w", "5", OUTSIDE, "7000")
    assert listener.communicate(timeout=20)[0].strip() == HERE


# -- published ports ---------------------------------------------------------------------------------------------------


def test_a_published_port_answers_everywhere(engine: Engine, cli: Cli, outside: int) -> None:
    cli("run", "-d", "--name", "web", "-h", "web", "-p", "18080:80", "busybox", "sh", "-c", SERVE)
    expected = "hello from web\n"
    assert fetch(engine, "127.0.0.1", 18080) == expected
    assert fetch(engine, "172.31.0.1", 18080) == expected
    assert fetch(engine, HERE, 18080) == expected
    from_outside = subprocess.run(
        ["nsenter", "-t", str(outside), "-n", "python3", "-c", ASK], capture_output=True, text=True, check=True
    )
    assert from_outside.stdout.strip() == expected.strip()


def test_a_container_reaches_itself_and_others_by_the_published_port(engine: Engine, docker: Cli) -> None:
    docker("run", "-d", "--name", "web", "-h", "web", "-p", "18080:80", "busybox", "sh", "-c", SERVE)
    assert fetch(engine, "127.0.0.1", 18080)
    for name in ("web", "other"):
        if name == "other":
            docker("run", "-d", "--name", "other", *SLEEP)
        for _ in range(50):
            done = docker("exec", name, "nc", "-w", "2", "172.31.0.1", "18080", check=False)
            if done.out:
                break
        assert done.out == "hello from web\n"


def test_the_source_address_from_outside_is_kept(engine: Engine, docker: Cli, outside: int) -> None:
    docker("run", "-d", "--name", "web", "-p", "18080:80", *SLEEP)
    with serving(engine, "web", 80):
        shown = subprocess.run(
            ["nsenter", "-t", str(outside), "-n", "python3", "-c", ASK], capture_output=True, text=True, check=True
        ).stdout
    assert shown.strip() == f"hello {OUTSIDE}"


def test_udp_is_published(engine: Engine, cli: Cli) -> None:
    cli("run", "-d", "--name", "dns", "-p", "18053:53/udp", *SLEEP)
    with serving(engine, "dns", 53, udp=True):
        assert fetch(engine, "127.0.0.1", 18053, udp=True).startswith("hello ")
        assert fetch(engine, "172.31.0.1", 18053, udp=True).startswith("hello ")


def test_a_udp_port_goes_to_the_next_container_after_the_first_is_gone(
    engine: Engine, docker: Cli, outside: int
) -> None:
    """The kernel remembers UDP flows by address: the second container must not be shadowed by the first one's."""
    code = (
        "import socket; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\n"
        "s.bind(('198.51.100.2',5555)); s.settimeout(1)\n"
        "for _ in range(10):\n"
        " s.sendto(b'x',('198.51.100.1',18053))\n"
        " try: print(s.recv(99).decode()); break\n"
        " except OSError: pass\n"
    )
    for name in ("first", "second"):
        docker("run", "-d", "--name", name, "-p", "18053:53/udp", *SLEEP)
        with serving(engine, name, 53, udp=True):
            shown = subprocess.run(
                ["nsenter", "-t", str(outside), "-n", "python3", "-c", code], capture_output=True, text=True, check=True
            ).stdout
        assert shown.startswith("hello ")
        docker("rm", "-f", name)


def test_a_host_address_limits_where_it_listens(engine: Engine, cli: Cli) -> None:
    cli("run", "-d", "--name", "local", "-h", "local", "-p", "127.0.0.1:18080:80", "busybox", "sh", "-c", SERVE)
    assert fetch(engine, "127.0.0.1", 18080) == "hello from local\n"
    assert fetch(engine, "172.31.0.1", 18080, wait=0) == ""
    assert cli("port", "local").text == "80/tcp -> 127.0.0.1:18080"


def test_ranges_and_several_ports(engine: Engine, cli: Cli) -> None:
    cli("run", "-d", "--name", "many", "-p", "18090-18092:90-92", "-p", "18099:99/udp", *SLEEP)
    ports = engine.inspect("many")["NetworkSettings"]["Ports"]
    assert {name: bindings[0]["HostPort"] for name, bindings in ports.items()} == {
        "90/tcp": "18090",
        "91/tcp": "18091",
        "92/tcp": "18092",
        "99/udp": "18099",
    }


def test_an_ephemeral_port_is_chosen_and_shown(engine: Engine, cli: Cli) -> None:
    cli("run", "-d", "--name", "any", "-h", "any", "-p", "80", "busybox", "sh", "-c", SERVE)
    shown = cli("port", "any", "80").lines[0]
    port = int(shown.rpartition(":")[2])
    assert port >= 1024
    assert fetch(engine, "127.0.0.1", port) == "hello from any\n"


def test_publish_all_takes_what_the_image_exposes(engine: Engine, cli: Cli) -> None:
    cli("run", "-d", "--name", "all", "-P", "--entrypoint", "sleep", "configured", "600")
    ports = engine.inspect("all")["NetworkSettings"]["Ports"]
    assert set(ports) == {"80/tcp", "53/udp"}
    assert all(int(bindings[0]["HostPort"]) >= 1024 for bindings in ports.values())


def test_an_exposed_port_is_listed_unbound(engine: Engine, cli: Cli) -> None:
    cli("run", "-d", "--name", "exposed", "--expose", "81", "--entrypoint", "sleep", "configured", "600")
    assert engine.inspect("exposed")["NetworkSettings"]["Ports"] == {"80/tcp": None, "53/udp": None, "81/tcp": None}


def test_a_port_of_another_container_is_already_allocated(engine: Engine, cli: Cli) -> None:
    cli("run", "-d", "--name", "first", "-p", "18080:80", *SLEEP)
    done = cli("run", "-d", "--name", "second", "-p", "18080:80", *SLEEP, check=False)
    assert done.code == 125
    assert "driver failed programming external connectivity on endpoint second" in done.err
    assert "Bind for 0.0.0.0:18080 failed: port is already allocated" in done.err
    assert engine.state("second")["Status"] == "created"
    cli("rm", "-f", "first")
    cli("start", "second")


def test_a_port_of_a_process_is_in_use(engine: Engine, cli: Cli) -> None:
    holder = subprocess.Popen(
        [
            *("nsenter", "-t", str(engine.box.holder), "-n", "python3", "-c"),
            "import socket; s=socket.create_server(('0.0.0.0',18080)); print('up',flush=True); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"up\n"
    try:
        done = cli("run", "-d", "--name", "late", "-p", "18080:80", *SLEEP, check=False)
        assert done.code == 125
        assert "address already in use" in done.err
        assert "18080" in done.err
    finally:
        holder.communicate(b"\n", timeout=10)
    cli("start", "late")


def test_a_stopped_container_gives_its_port_back(engine: Engine, docker: Cli) -> None:
    docker("run", "-d", "--name", "first", "-p", "18080:80", *SLEEP)
    docker("kill", "first")
    engine.wait_for("first", "exited")
    docker("run", "-d", "--name", "second", "-p", "18080:80", *SLEEP)
    assert "already allocated" in docker("start", "first", check=False).err


@pytest.mark.parametrize(
    "port", ["99999:80", "x:80", "80:x", "1.2.3:80:80", "18080-18082:80-81", "18080:80/nosuch", ":", "80:80:80:80"]
)
def test_a_wrong_p_is_refused(docker: Cli, port: str) -> None:
    done = docker("run", "--rm", "-p", port, "busybox", "true", check=False)
    assert done.code == 125
    assert docker("ps", "-aq").text == ""


@pytest.mark.parametrize("port", ["99999", "x", "-1", "80-x"])
def test_the_daemon_refuses_a_wrong_port_itself(engine: Engine, port: str) -> None:
    body = {"Image": "busybox", "HostConfig": {"PortBindings": {"80/tcp": [{"HostPort": port}]}}}
    answer = engine.api.request("POST", "/containers/create", body)
    if answer.status == 201:  # dockerd finds out when it starts the container
        answer = engine.api.request("POST", f"/containers/{answer.json()['Id']}/start")
    assert answer.status in (400, 500)
    assert port.lstrip("-") in answer.message or "port" in answer.message.lower()


# -- the network verbs -------------------------------------------------------------------------------------------------


def test_the_three_networks_are_listed_and_inspected(cli: Cli, engine: Engine) -> None:
    assert {"bridge", "host", "none"} <= set(cli("network", "ls", "--format", "{{.Name}}").lines)
    identifier = cli("run", "-d", "--name", "member", *SLEEP).text
    (found,) = cli.json("network", "inspect", "bridge")
    assert (found["Name"], found["Driver"], found["Scope"]) == ("bridge", "bridge", "local")
    assert found["IPAM"]["Config"][0]["Subnet"] == "172.31.0.0/24"
    assert found["Containers"][identifier]["Name"] == "member"
    assert found["Containers"][identifier]["IPv4Address"].startswith("172.31.0.")


def test_many_containers_start_at_once(engine: Engine) -> None:
    results: list[int] = []

    def one(number: int) -> None:
        results.append(
            engine.docker("run", "--rm", "-p", str(18100 + number) + ":80", "busybox", "true", check=False).code
        )

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [0] * 8
