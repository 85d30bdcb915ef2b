"""The daemon's own life: several side by side, restarts with running containers, a crash, configuration."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness.box import Box
from harness.engine import WHERRY, Engine
from harness.needs import ENGINE

SLEEP = ("busybox", "sleep", "600")
OURS = pytest.mark.not_dockerd("needs --live-restore, and is another program")


@OURS
def test_two_daemons_run_side_by_side(own_engine: Any) -> None:
    one = own_engine(bip="172.31.0.1/24")
    two = own_engine(box=one.box, bip="172.31.1.1/24")
    for engine, prefix in ((one, "172.31.0."), (two, "172.31.1.")):
        engine.docker("run", "-d", "--name", "same", "-p", "80", *SLEEP)
        assert engine.inspect("same")["NetworkSettings"]["Networks"]["bridge"]["IPAddress"].startswith(prefix)
    assert one.inspect("same")["Id"] != two.inspect("same")["Id"]
    one.remove_all_containers()
    one.stop()
    assert two.state("same")["Running"]
    two.docker("exec", "same", "ping", "-c", "1", "-W", "2", "172.31.1.1")
    one.start()
    assert one.docker("ps", "-aq").out == ""


@OURS
def test_a_second_daemon_on_the_same_root_is_refused(own_engine: Any) -> None:
    engine = own_engine()
    done = subprocess.run(engine.box.command(engine.argv()), capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert str(engine.data_root) in done.stderr
    assert "Traceback" not in done.stderr
    assert engine.answers()


@OURS
def test_containers_outlive_a_restart_of_the_daemon(own_engine: Any) -> None:
    engine = own_engine()
    script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done"
    engine.docker("run", "-d", "--name", "counts", "-p", "18080:80", "busybox", "sh", "-c", script)
    before = engine.state("counts")
    engine.stop()
    assert engine.box.alive(before["Pid"])
    engine.start()
    after = engine.state("counts")
    assert (after["Pid"], after["StartedAt"], after["Running"]) == (before["Pid"], before["StartedAt"], True)
    assert engine.docker("exec", "counts", "echo", "still").out == "still\n"
    assert engine.inspect("counts")["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"] == "18080"
    done = engine.docker("run", "--rm", "-p", "18080:80", "busybox", "true", check=False)
    assert "port is already allocated" in done.err
    engine.docker("stop", "-t", "0", "counts")
    lines = engine.docker("logs", "counts").lines
    assert lines == [str(number) for number in range(1, len(lines) + 1)], "a line is missing or came twice"


@OURS
def test_an_exit_while_the_daemon_is_away_is_not_missed(own_engine: Any) -> None:
    engine = own_engine()
    script = "while [ ! -e /flag/go ]; do sleep 0.01; done; echo last words; exit 17"
    flag = engine.root / "flag"
    flag.mkdir()
    engine.docker("run", "-d", "--name", "leaves", "-v", f"{flag}:/flag", "busybox", "sh", "-c", script)
    engine.docker("run", "-d", "--rm", "--name", "vanishes", "-v", f"{flag}:/flag", "busybox", "sh", "-c", script)
    pid = engine.state("leaves")["Pid"]
    engine.kill()
    (flag / "go").touch()
    while engine.box.alive(pid):
        pass
    engine.start()
    engine.wait_for("leaves", "exited")
    assert engine.state("leaves")["ExitCode"] == 17
    assert engine.docker("logs", "leaves").out == "last words\n"
    while engine.api.request("GET", "/containers/vanishes/json").status != 404:
        pass


@OURS
def test_clients_come_back_after_a_crash(own_engine: Any) -> None:
    engine = own_engine()
    script = "while read line; do echo got $line; done"
    engine.docker("run", "-di", "--name", "talks", "busybox", "sh", "-c", script)
    with engine.api.hijack("/containers/talks/attach?stream=1&stdin=1&stdout=1") as stream:
        stream.send(b"one\n")
        stream.until(b"got one\n")
        engine.kill()
    engine.start()
    with engine.api.hijack("/containers/talks/attach?logs=1&stream=1&stdin=1&stdout=1") as stream:
        stream.send(b"two\n")
        stream.until(b"got two\n")
    assert engine.docker("logs", "talks").out == "got one\ngot two\n"


@OURS
def test_a_shim_that_is_killed_takes_its_container_along(own_engine: Any) -> None:
    engine = own_engine()
    engine.docker("run", "-d", "--name", "orphan", *SLEEP)
    pid = engine.state("orphan")["Pid"]
    shim = int((engine.box.proc(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    assert shim > 1
    engine.box.kill(shim)
    engine.wait_for("orphan", "exited")
    assert engine.state("orphan")["ExitCode"] == 137
    while engine.box.alive(pid):
        pass
    engine.docker("start", "orphan")
    assert engine.state("orphan")["Running"]


@OURS
def test_restart_policies_are_kept_after_the_machine_restarts(own_engine: Any) -> None:
    """The daemon and every process are killed at once, as by a power cut; then the daemon starts."""
    engine = own_engine()
    for policy in ("always", "unless-stopped", "no", "on-failure"):
        engine.docker("run", "-d", "--name", policy, "--restart", policy, *SLEEP)
    engine.docker("run", "-d", "--name", "stopped", "--restart", "unless-stopped", *SLEEP)
    engine.docker("stop", "-t", "0", "stopped")
    engine.kill()
    for pid in engine.box.processes():
        engine.box.kill(pid)
    engine.start()
    for name, running in [("always", True), ("unless-stopped", True), ("no", False), ("stopped", False)]:
        engine.wait_for(name, "running" if running else "exited")
    assert engine.state("no")["ExitCode"] == 137


@OURS
def test_the_daemon_stops_quickly_and_cleans_up_when_nothing_runs(own_engine: Any) -> None:
    engine = own_engine()
    engine.docker("run", "--rm", "busybox", "true")
    assert engine.stop(timeout=10) == 0
    assert engine.box.links() == {"lo"}
    assert engine.box.rules() == []
    engine.start()


# -- configuration -----------------------------------------------------------------------------------------------------


def refused(tmp_path: Path, *flags: str, config: object = None) -> str:
    """Standard error of a daemon that does not start."""
    if ENGINE == "dockerd":
        pytest.skip("dockerd 20.10: another program")
    file = tmp_path / "daemon.json"
    if config is not None:
        file.write_text(config if isinstance(config, str) else json.dumps(config))
        flags = (*flags, "--config-file", str(file))
    roots = ["--data-root", f"{tmp_path}/data", "--exec-root", f"{tmp_path}/run", "-H", f"unix://{tmp_path}/sock"]
    with Box() as box:
        argv = box.command([str(WHERRY), "daemon", *roots, "--pidfile", f"{tmp_path}/pid", *flags])
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{not json", ["daemon.json"]),
        ({"no-such-key": 1}, ["no-such-key"]),
        ({"debug": "yes"}, ["debug"]),
        ({"bip": "not-an-address"}, ["not-an-address"]),
        ({"log-level": "shout"}, ["shout"]),
        ({"default-runtime": "nosuch"}, ["nosuch"]),
    ],
)
def test_a_wrong_configuration_file_is_a_clear_error(tmp_path: Path, config: object, words: list[str]) -> None:
    message = refused(tmp_path, config=config)
    assert all(word in message for word in words), message


def test_a_flag_that_says_otherwise_than_the_file_is_a_conflict(tmp_path: Path) -> None:
    message = refused(tmp_path, "--bip", "10.1.0.1/24", config={"bip": "10.2.0.1/24"})
    assert "bip" in message


def test_an_unknown_flag_is_named(tmp_path: Path) -> None:
    assert "--no-such-flag" in refused(tmp_path, "--no-such-flag")


def test_a_missing_configuration_file_that_was_asked_for_is_an_error(tmp_path: Path) -> None:
    assert "/no/such/file.json" in refused(tmp_path, "--config-file", "/no/such/file.json")


@OURS
def test_a_configuration_file_is_used(own_engine: Any, tmp_path: Path) -> None:
    file = tmp_path / "daemon.json"
    file.write_text(json.dumps({"debug": True, "labels": ["a=b"], "insecure-registries": ["example.test:5000"]}))
    engine = own_engine(args=["--config-file", str(file)])
    info = engine.api.get("/info")
    assert info["Debug"] is True
    assert info["Labels"] == ["a=b"]
    assert "example.test:5000" in info["RegistryConfig"]["IndexConfigs"]


@OURS
def test_tcp_and_several_sockets(own_engine: Any, tmp_path: Path) -> None:
    second = tmp_path / "s.sock"
    engine: Engine = own_engine(args=["-H", f"unix://{second}", "-H", "tcp://127.0.0.1:2375"])
    assert second.exists()
    code = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:2375/_ping').read().decode())"
    assert engine.box.run("python3", "-c", code, net_only=True).strip() == "OK"
