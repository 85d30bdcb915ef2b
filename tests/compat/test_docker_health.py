"""HEALTHCHECK as Docker's users know it; what is expected here was seen with dockerd 26.1."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from harness.engine import Cli, Engine
from harness.engines import EngineMaker
from harness.needs import ENGINE

SLEEP = ("busybox", "sleep", "600")
FAST = ("--health-interval", "100ms", "--health-retries", "2")


def health(engine: Engine, name: str) -> Any:
    return engine.state(name)["Health"]


def now(engine: Engine) -> str:
    """For events: `0s` would be the beginning of this second."""
    return str(engine.api.get("/info")["SystemTime"])


def wait_for(engine: Engine, name: str, condition: Callable[[Any], bool]) -> Any:
    """The health as soon as it is like this: it changes by itself."""
    until = time.monotonic() + 20
    while not condition(found := health(engine, name)):
        assert time.monotonic() < until, f"the health of {name} is {found}"
        time.sleep(0.03)
    return found


def status(engine: Engine, name: str, wanted: str) -> Any:
    return wait_for(engine, name, lambda found: found["Status"] == wanted)


def test_health_is_seen_in_inspect_ps_filters_and_events(cli: Cli, engine: Engine) -> None:
    since = now(engine)
    check = "echo out; echo err >&2; test ! -e /bad"
    cli("run", "-d", "--name", "web", "--health-cmd", check, *FAST, *SLEEP)
    cli("run", "-d", "--name", "plain", *SLEEP)
    found = status(engine, "web", "healthy")
    assert found["FailingStreak"] == 0
    first = found["Log"][0]
    assert first["ExitCode"] == 0
    assert sorted(first["Output"].split()) == ["err", "out"]
    assert first["Start"] < first["End"]
    assert "(healthy)" in cli("ps", "--filter", "name=web", "--format", "{{.Status}}").out
    assert cli("ps", "--filter", "health=healthy", "--format", "{{.Names}}").lines == ["web"]
    assert cli("ps", "--filter", "health=none", "--format", "{{.Names}}").lines == ["plain"]
    cli("exec", "web", "touch", "/bad")
    found = status(engine, "web", "unhealthy")
    assert found["FailingStreak"] >= 2
    assert len(wait_for(engine, "web", lambda found: found["FailingStreak"] >= 5)["Log"]) == 5
    cli("exec", "web", "rm", "/bad")
    status(engine, "web", "healthy")
    past = ("events", "--since", since, "--until", now(engine), "--filter", "container=web", "--format", "{{.Action}}")
    told = cli(*past, "--filter", "event=health_status").lines
    assert told == ["health_status: healthy", "health_status: unhealthy", "health_status: healthy"]
    execs = cli(
        "events", "--since", since, "--until", now(engine), "--filter", "container=web", "--format", "{{.Action}}"
    ).lines
    for action in (f"exec_create: /bin/sh -c {check}", f"exec_start: /bin/sh -c {check}", "exec_die"):
        assert action in execs
    assert "Health" not in engine.state("plain")


def test_a_container_that_has_not_been_probed_is_starting(cli: Cli, engine: Engine) -> None:
    cli("create", "--name", "web", "--health-cmd", "true", *SLEEP)
    assert "Health" not in engine.state("web")
    cli("start", "web")
    assert health(engine, "web") == {"Status": "starting", "FailingStreak": 0, "Log": []}
    assert cli("ps", "--format", "{{.Status}}").text.endswith("(health: starting)")


def test_a_probe_that_takes_too_long_leaves_no_process(cli: Cli, engine: Engine) -> None:
    flags = ("--health-interval", "100ms", "--health-timeout", "100ms", "--health-retries", "1")
    cli("run", "-d", "--name", "slow", "--health-cmd", "echo hi; sleep 500 & sleep 500", *flags, *SLEEP)
    found = wait_for(engine, "slow", lambda found: len(found["Log"]) >= 3)
    assert found["Status"] == "unhealthy"
    assert {(each["ExitCode"], each["Output"]) for each in found["Log"]} == {
        (-1, "Health check exceeded timeout (100ms): hi\n")
    }
    cli("pause", "slow")  # no further probe
    cli("unpause", "slow")
    running = cli("top", "slow", "-o", "pid,args").out.count("sleep 500")
    assert running <= 2 or engine.is_dockerd  # those of the probe that runs now; dockerd leaves children behind


def test_a_program_that_is_not_there_is_unhealthy_and_says_so(engine: Engine) -> None:
    check = {"Test": ["CMD", "nope", "x"], "Interval": 100_000_000, "Retries": 1}
    body = {"Image": "busybox", "Cmd": ["sleep", "600"], "Healthcheck": check}
    made = engine.api.request("POST", "/containers/create?name=lacking", body)
    assert made.status == 201
    engine.api.request("POST", "/containers/lacking/start")
    (found, *_) = status(engine, "lacking", "unhealthy")["Log"]
    assert found["ExitCode"] == -1
    assert found["Output"] == (
        "OCI runtime exec failed: exec failed: unable to start container process: "
        'exec: "nope": executable file not found in $PATH: unknown'
    )


def test_output_is_cut_at_four_kilobytes(cli: Cli, engine: Engine) -> None:
    cli("run", "-d", "--name", "loud", "--health-cmd", "yes | head -c 9000", *FAST, *SLEEP)
    (found, *_) = status(engine, "loud", "healthy")["Log"]
    assert found["Output"] == "y\n" * 2048 + "..."


def test_a_stopped_container_is_unhealthy_and_a_new_run_begins_anew(cli: Cli, engine: Engine) -> None:
    cli("run", "-d", "--name", "web", "--health-cmd", "true", *FAST, *SLEEP)
    logged = status(engine, "web", "healthy")["Log"]
    cli("stop", "-t", "0", "web")
    found = health(engine, "web")
    assert (found["Status"], found["FailingStreak"]) == ("unhealthy", 0)
    assert found["Log"][: len(logged)] == logged or len(found["Log"]) == 5
    assert cli("ps", "-a", "--filter", "health=unhealthy", "--format", "{{.Names}}").lines == ["web"]
    cli("start", "web")
    status(engine, "web", "healthy")


def test_a_paused_container_is_not_probed(cli: Cli, engine: Engine) -> None:
    cli("run", "-d", "--name", "web", "--health-cmd", "true", *FAST, *SLEEP)
    status(engine, "web", "healthy")
    cli("pause", "web")
    found = health(engine, "web")
    assert found["Status"] == "unhealthy"
    assert cli("ps", "--format", "{{.Status}}").text.endswith("(Paused)")
    time.sleep(0.3)  # three intervals
    assert health(engine, "web") == found
    cli("unpause", "web")
    status(engine, "web", "healthy")


def test_failures_in_the_start_period_do_not_count(cli: Cli, engine: Engine) -> None:
    flags = ("--health-start-period", "1h", "--health-start-interval", "50ms", "--health-retries", "1")
    cli("run", "-d", "--name", "web", "--health-cmd", "test -e /up", "--health-interval", "1h", *flags, *SLEEP)
    found = wait_for(engine, "web", lambda found: len(found["Log"]) >= 3)
    assert (found["Status"], found["FailingStreak"]) == ("starting", 0)
    cli("exec", "web", "touch", "/up")
    status(engine, "web", "healthy")


def test_an_image_s_check_is_taken_over_field_by_field_or_switched_off(cli: Cli, engine: Engine) -> None:
    cli("create", "--name", "base", *SLEEP)
    change = 'HEALTHCHECK --interval=7s --timeout=3s --retries=4 CMD ["true"]'
    try:
        cli("commit", "--change", change, "base", "checked")
        cli("run", "-d", "--name", "web", "--health-interval", "100ms", "checked", "sleep", "600")
        assert engine.inspect("web")["Config"]["Healthcheck"] == {
            "Test": ["CMD", "true"],
            "Interval": 100_000_000,
            "Timeout": 3_000_000_000,
            "Retries": 4,
        }
        status(engine, "web", "healthy")
        cli("run", "-d", "--name", "off", "--no-healthcheck", "checked", "sleep", "600")
        assert "Health" not in engine.state("off")
        assert engine.inspect("off")["Config"]["Healthcheck"]["Test"] == ["NONE"]
    finally:
        engine.remove_all_containers()
        cli("rmi", "checked")


MISTAKES = [
    ({"Interval": 5}, "Interval in Healthcheck cannot be less than 1ms"),
    ({"Timeout": 5}, "Timeout in Healthcheck cannot be less than 1ms"),
    ({"StartPeriod": -5}, "StartPeriod in Healthcheck cannot be less than 1ms"),
    ({"StartInterval": 5}, "StartInterval in Healthcheck cannot be less than 1ms"),
    ({"Retries": -5}, "Retries in Healthcheck cannot be negative"),
]


@pytest.mark.parametrize(("fields", "message"), MISTAKES)
def test_impossible_checks_are_refused(engine: Engine, fields: dict[str, int], message: str) -> None:
    body = {"Image": "busybox", "Cmd": ["true"], "Healthcheck": {"Test": ["CMD", "true"], **fields}}
    answer = engine.api.request("POST", "/v1.45/containers/create", body)
    assert (answer.status, answer.message) == (400, message)


def test_older_clients_have_no_start_interval(engine: Engine) -> None:
    check = {"Test": ["CMD", "true"], "StartInterval": 5_000_000}
    body = {"Image": "busybox", "Cmd": ["true"], "Healthcheck": check}
    made = engine.api.request("POST", "/v1.43/containers/create?name=old", body)
    assert made.status == 201
    assert "StartInterval" not in engine.inspect("old")["Config"]["Healthcheck"]


@pytest.mark.skipif(ENGINE == "dockerd", reason="missing: dockerd ends its containers")
def test_checks_go_on_after_the_daemon_was_killed(own_engine: EngineMaker) -> None:
    engine = own_engine()
    engine.docker("run", "-d", "--name", "web", "--health-cmd", "test ! -e /bad", *FAST, *SLEEP)
    status(engine, "web", "healthy")
    engine.kill()
    engine.start()
    assert health(engine, "web")["Status"] == "healthy"
    engine.docker("exec", "web", "touch", "/bad")
    status(engine, "web", "unhealthy")
