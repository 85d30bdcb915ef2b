"""Containers come onto networks and leave them while they run, through both clients; a new daemon knows them."""

from harness.engine import Cli, Engine
from harness.engines import EngineMaker

SLEEP = ("busybox", "sleep", "600")


def networks(engine: Engine, name: str) -> dict[str, str]:
    return {key: on["IPAddress"] for key, on in engine.inspect(name)["NetworkSettings"]["Networks"].items()}


def test_names_files_and_addresses_follow_connect_and_disconnect(cli: Cli, engine: Engine) -> None:
    cli("network", "create", "--subnet", "10.61.0.0/24", "one")
    cli("network", "create", "--subnet", "10.62.0.0/24", "two")
    cli("run", "-d", "--name", "peer", "--network", "two", "--dns", "127.0.0.1", *SLEEP)
    cli("run", "-d", "--name", "web", "--hostname", "box", "--network", "one", "--dns", "127.0.0.1", *SLEEP)
    assert cli("exec", "web", "ping", "-c1", "-W2", "peer", check=False).code != 0
    cli("network", "connect", "--ip", "10.62.0.9", "--alias", "www", "two", "web")
    assert networks(engine, "web")["two"] == "10.62.0.9"
    assert "10.62.0.9\tbox" in cli("exec", "web", "cat", "/etc/hosts").text
    cli("exec", "web", "ping", "-c1", "-W2", "peer")
    cli("exec", "peer", "ping", "-c1", "-W2", "www")
    cli("network", "disconnect", "two", "web")
    assert list(networks(engine, "web")) == ["one"]
    assert "10.62.0.9" not in cli("exec", "web", "cat", "/etc/hosts").text
    assert cli("exec", "peer", "ping", "-c1", "-W2", "www", check=False).code != 0
    assert cli("network", "rm", "one", check=False).code == 1
    cli("rm", "-f", "web", "peer")
    cli("network", "rm", "one", "two")


def test_a_container_of_the_default_network_gets_the_resolver_when_it_joins_another(cli: Cli) -> None:
    cli("network", "create", "one")
    cli("run", "-d", "--name", "web", *SLEEP)
    cli("run", "-d", "--name", "peer", "--network", "one", *SLEEP)
    assert "127.0.0.11" not in cli("exec", "web", "cat", "/etc/resolv.conf").text
    cli("network", "connect", "one", "web")
    assert "nameserver 127.0.0.11" in cli("exec", "web", "cat", "/etc/resolv.conf").text
    cli("exec", "web", "ping", "-c1", "-W2", "peer")
    cli("rm", "-f", "web", "peer")
    cli("network", "rm", "one")


def test_linked_containers_find_each_other_and_their_variables(cli: Cli) -> None:
    cli("run", "-d", "--name", "data", "-e", "SECRET=1", "--expose", "5432", *SLEEP)
    cli("run", "-d", "--name", "web", "--link", "data:db", *SLEEP)
    cli("exec", "web", "ping", "-c1", "-W2", "db")
    variables = cli("exec", "web", "env").text.splitlines()
    assert "DB_NAME=/web/db" in variables
    assert "DB_ENV_SECRET=1" in variables
    assert any(line.startswith("DB_PORT_5432_TCP=tcp://") for line in variables)
    cli("rm", "--link", "web/db")
    assert "\tdb " not in cli("exec", "web", "cat", "/etc/hosts").text
    cli("rm", "-f", "web", "data")


def test_after_a_crash_a_new_daemon_knows_who_is_where(own_engine: EngineMaker) -> None:
    engine = own_engine()
    docker = engine.docker
    docker("network", "create", "--subnet", "10.63.0.0/24", "one")
    docker("network", "create", "two")
    docker("run", "-d", "--name", "web", "--network", "one", "--ip", "10.63.0.9", *SLEEP)
    docker("network", "connect", "two", "web")
    before = networks(engine, "web")
    engine.kill()
    engine.start()
    assert networks(engine, "web") == before
    docker("run", "--rm", "--network", "two", "busybox", "ping", "-c1", "-W2", "web")
    docker("network", "disconnect", "two", "web")
    assert list(networks(engine, "web")) == ["one"]
    docker("rm", "-f", "web")
    docker("network", "rm", "one", "two")
