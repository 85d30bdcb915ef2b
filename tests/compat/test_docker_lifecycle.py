"""The verbs of a container's life, and their answers when the state does not allow them."""

import threading

import pytest

from harness.engine import Cli, Engine

SLEEP = ("busybox", "sleep", "600")
# As process 1 a shell needs a handler for every signal it is to notice.
TRAP = "trap 'echo got TERM; exit 3' TERM; echo ready; while :; do sleep 0.05; done"


def ready(engine: Engine, name: str) -> None:
    """Until the container wrote `ready`: its signal handlers are in place."""
    with engine.api.stream("GET", f"/containers/{name}/logs?follow=1&stdout=1") as answer:
        seen = b""
        while b"ready" not in seen:
            data = answer.read1(4096)
            assert data, f"{name} ended: {seen!r}"
            seen += data


def test_create_then_start_then_exit(cli: Cli, engine: Engine) -> None:
    identifier = cli("create", "--name", "made", "busybox", "sh", "-c", "exit 5").text
    state = engine.state("made")
    assert (state["Status"], state["Pid"], state["StartedAt"]) == ("created", 0, "0001-01-01T00:00:00Z")
    assert cli("start", "made").text == "made"
    engine.wait_for(identifier, "exited")
    state = engine.state("made")
    assert (state["ExitCode"], state["Pid"], state["Running"]) == (5, 0, False)
    assert state["StartedAt"] < state["FinishedAt"]


def test_files_written_survive_stop_and_start(cli: Cli) -> None:
    cli("run", "--name", "writer", "busybox", "sh", "-c", "[ -e /kept ] && cat /kept; echo written > /kept")
    assert cli("start", "-a", "writer").out == "written\n"


def test_start_a_returns_the_exit_code(cli: Cli) -> None:
    cli("create", "--name", "seven", "busybox", "sh", "-c", "echo again; exit 7")
    done = cli("start", "-a", "seven", check=False)
    assert (done.code, done.out) == (7, "again\n")


def test_start_of_a_running_container_changes_nothing(cli: Cli, engine: Engine) -> None:
    cli("run", "-d", "--name", "up", *SLEEP)
    pid = engine.state("up")["Pid"]
    cli("start", "up")
    assert engine.state("up")["Pid"] == pid
    assert engine.api.request("POST", "/containers/up/start").status == 304


def test_stop_sends_term_and_takes_the_exit_code(cli: Cli, engine: Engine) -> None:
    cli("run", "-d", "--name", "polite", "busybox", "sh", "-c", TRAP)
    ready(engine, "polite")
    cli("stop", "polite")
    state = engine.state("polite")
    assert (state["Status"], state["ExitCode"]) == ("exited", 3)
    assert "got TERM" in cli("logs", "polite").out


def test_stop_kills_after_the_timeout(cli: Cli, engine: Engine) -> None:
    cli("run", "-d", "--name", "deaf", *SLEEP)  # process 1 without a handler ignores TERM
    cli("stop", "-t", "1", "deaf")
    assert engine.state("deaf")["ExitCode"] == 137


def test_stop_uses_the_images_stop_signal(cli: Cli, engine: Engine) -> None:
    script = "trap 'exit 4' USR1; echo ready; while :; do sleep 0.05; done"
    cli("run", "-d", "--name", "usr", "--entrypoint", "sh", "configured", "-c", script)
    ready(engine, "usr")
    cli("stop", "usr")
    assert engine.state("usr")["ExitCode"] == 4


def test_stop_of_a_stopped_container_is_not_modified(cli: Cli, engine: Engine) -> None:
    cli("run", "--name", "over", "busybox", "true")
    cli("stop", "over")
    assert engine.api.request("POST", "/containers/over/stop").status == 304


def test_restart_gives_a_new_process(cli: Cli, engine: Engine) -> None:
    cli("run", "-d", "--name", "phoenix", *SLEEP)
    first = engine.state("phoenix")
    cli("restart", "-t", "0", "phoenix")
    second = engine.state("phoenix")
    assert second["Running"]
    assert second["Pid"] != first["Pid"]
    assert second["StartedAt"] > first["StartedAt"]


def test_restart_starts_a_stopped_container(cli: Cli, engine: Engine) -> None:
    cli("create", "--name", "cold", *SLEEP)
    cli("restart", "cold")
    assert engine.state("cold")["Running"]


def test_kill_ends_it_with_137(cli: Cli, engine: Engine) -> None:
    cli("run", "-d", "--name", "victim", *SLEEP)
    cli("kill", "victim")
    engine.wait_for("victim", "exited")
    assert engine.state("victim")["ExitCode"] == 137


@pytest.mark.parametrize("signal", ["USR1", "SIGUSR1", "10"])
def test_kill_sends_the_named_signal(cli: Cli, engine: Engine, signal: str) -> None:
    script = "trap 'exit 42' USR1; echo ready; while :; do sleep 0.05; done"
    cli("run", "-d", "--name", "signalled", "busybox", "sh", "-c", script)
    ready(engine, "signalled")
    cli("kill", "-s", signal, "signalled")
    engine.wait_for("signalled", "exited")
    assert engine.state("signalled")["ExitCode"] == 42


def test_kill_of_a_stopped_container_is_refused(cli: Cli) -> None:
    identifier = cli("create", "--name", "still", "busybox").text
    done = cli("kill", "still", check=False)
    assert done.code == 1
    assert "is not running" in done.err
    assert identifier[:12] in done.err or "still" in done.err


def test_kill_with_a_signal_that_does_not_exist_is_refused(cli: Cli, engine: Engine) -> None:
    cli("run", "-d", "--name", "hardy", *SLEEP)
    done = cli("kill", "-s", "NOSUCH", "hardy", check=False)
    assert done.code == 1
    assert "invalid signal: NOSUCH" in done.err.replace("Invalid", "invalid")
    assert engine.state("hardy")["Running"]


def test_pause_freezes_and_unpause_thaws(cli: Cli, engine: Engine) -> None:
    cli("run", "-d", "--name", "ice", "busybox", "sh", "-c", "while :; do echo tick; sleep 0.01; done")
    cli("pause", "ice")
    state = engine.state("ice")
    assert (state["Status"], state["Paused"], state["Running"]) == ("paused", True, True)
    frozen = cli("logs", "ice").out
    assert cli("exec", "ice", "true", check=False).code != 0
    assert cli("logs", "ice").out == frozen
    cli("unpause", "ice")
    assert engine.state("ice")["Status"] == "running"
    assert cli("exec", "ice", "echo", "thawed").out == "thawed\n"


def test_pausing_twice_and_unpausing_a_running_container_are_refused(cli: Cli) -> None:
    cli("run", "-d", "--name", "once", *SLEEP)
    assert "is not paused" in cli("unpause", "once", check=False).err
    cli("pause", "once")
    assert "is already paused" in cli("pause", "once", check=False).err


def test_a_paused_container_can_be_stopped(cli: Cli, engine: Engine) -> None:
    cli("run", "-d", "--name", "frozen", *SLEEP)
    cli("pause", "frozen")
    cli("stop", "-t", "1", "frozen")
    assert engine.state("frozen")["Status"] == "exited"


# -- wait --------------------------------------------------------------------------------------------------------------


def test_wait_prints_the_exit_code(cli: Cli) -> None:
    cli("run", "-d", "--name", "nine", "busybox", "sh", "-c", "sleep 0.3; exit 9")
    assert cli("wait", "nine").text == "9"
    assert cli("wait", "nine").text == "9"


def test_wait_sends_its_headers_before_the_end(engine: Engine) -> None:
    engine.docker("run", "-d", "--name", "long", *SLEEP)
    with engine.api.stream("POST", "/containers/long/wait") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "application/json"
        engine.docker("kill", "long")
        assert b'"StatusCode":137' in answer.read().replace(b" ", b"")


def test_wait_next_exit_of_a_created_container_waits_for_its_run(engine: Engine) -> None:
    engine.docker("create", "--name", "later", "busybox", "sh", "-c", "exit 6")
    assert engine.api.post("/containers/later/wait", status=200).json()["StatusCode"] == 0
    with engine.api.stream("POST", "/containers/later/wait?condition=next-exit") as answer:
        engine.docker("start", "later")
        assert b'"StatusCode":6' in answer.read().replace(b" ", b"")


def test_wait_removed_ends_when_the_container_is_gone(engine: Engine) -> None:
    engine.docker("run", "-d", "--name", "leaver", *SLEEP)
    with engine.api.stream("POST", "/containers/leaver/wait?condition=removed") as answer:
        assert answer.status == 200
        engine.docker("kill", "leaver")
        engine.wait_for("leaver", "exited")
        engine.docker("rm", "leaver")
        assert b'"StatusCode":137' in answer.read().replace(b" ", b"")
    assert engine.api.request("GET", "/containers/leaver/json").status == 404


@pytest.mark.not_dockerd("takes any word")
def test_wait_refuses_an_unknown_condition(engine: Engine) -> None:
    engine.docker("create", "--name", "any", "busybox")
    answer = engine.api.request("POST", "/containers/any/wait?condition=full-moon")
    assert answer.status == 400
    assert "invalid condition" in answer.message


def test_wait_for_a_container_that_is_not_there(cli: Cli) -> None:
    done = cli("wait", "ghost", check=False)
    assert done.code == 1
    assert "No such container: ghost" in done.err


# -- rm, rename --------------------------------------------------------------------------------------------------------


def test_rm_of_a_running_container_is_refused_and_f_kills_it(cli: Cli, engine: Engine) -> None:
    cli("run", "-d", "--name", "busy", *SLEEP)
    done = cli("rm", "busy", check=False)
    assert done.code == 1
    assert "container is running" in done.err or "cannot remove a running container" in done.err.lower()
    assert cli("rm", "-f", "busy").text == "busy"
    assert engine.api.request("GET", "/containers/busy/json").status == 404


def test_rm_v_takes_anonymous_volumes_and_leaves_named_ones(cli: Cli) -> None:
    cli("run", "--name", "vols", "-v", "/anonymous", "-v", "named:/named", "busybox", "true")
    assert len(cli("volume", "ls", "-q").lines) == 2
    cli("rm", "-v", "vols")
    assert cli("volume", "ls", "-q").lines == ["named"]


def test_rm_without_v_leaves_all_volumes(cli: Cli) -> None:
    cli("run", "--name", "vols", "-v", "/anonymous", "busybox", "true")
    cli("rm", "vols")
    assert len(cli("volume", "ls", "-q").lines) == 1


def test_rm_dash_dash_rm_takes_anonymous_volumes(cli: Cli) -> None:
    cli("run", "--rm", "-v", "/anonymous", "-v", "named:/named", "busybox", "true")
    assert cli("volume", "ls", "-q").lines == ["named"]


def test_rename_frees_the_old_name_and_refuses_a_taken_one(cli: Cli, engine: Engine) -> None:
    cli("create", "--name", "old", "busybox")
    cli("rename", "old", "new")
    assert engine.inspect("new")["Name"] == "/new"
    assert engine.api.request("GET", "/containers/old/json").status == 404
    cli("create", "--name", "old", "busybox")
    done = cli("rename", "old", "new", check=False)
    assert done.code == 1
    assert "is already in use by container" in done.err


def test_a_container_is_found_by_id_prefix_and_an_ambiguous_one_is_refused(cli: Cli, engine: Engine) -> None:
    identifier = cli("create", "--name", "one", "busybox").text
    assert engine.inspect(identifier[:6])["Id"] == identifier
    others = [cli("create", "busybox").text for _ in range(17)]  # 18 ids, 16 first digits
    first = [name[0] for name in [identifier, *others]]
    shared = next(digit for digit in first if first.count(digit) > 1)
    answer = engine.api.request("GET", f"/containers/{shared}/json")
    assert answer.status in (400, 404, 500)
    assert shared in answer.message


def test_a_name_wins_over_an_id_prefix(engine: Engine) -> None:
    identifier = engine.docker("create", "busybox").text
    other = engine.docker("create", "--name", identifier[:8], "busybox").text
    assert engine.inspect(identifier[:8])["Id"] == other


def test_several_containers_at_once_answer_in_order_and_report_each_failure(cli: Cli) -> None:
    cli("create", "--name", "aa", "busybox")
    cli("create", "--name", "bb", "busybox")
    done = cli("rm", "aa", "ghost", "bb", check=False)
    assert done.code == 1
    assert done.lines == ["aa", "bb"]
    assert "No such container: ghost" in done.err


# -- restart policies --------------------------------------------------------------------------------------------------


def test_on_failure_restarts_so_many_times_and_gives_up(engine: Engine) -> None:
    engine.docker("run", "-d", "--name", "loop", "--restart", "on-failure:2", "busybox", "sh", "-c", "echo run; exit 1")
    deadline = threading.Event()
    for _ in range(400):
        found = engine.inspect("loop")
        if found["RestartCount"] == 2 and found["State"]["Status"] == "exited":
            break
        deadline.wait(0.05)
    assert found["RestartCount"] == 2
    assert (found["State"]["Status"], found["State"]["ExitCode"]) == ("exited", 1)
    assert engine.docker("logs", "loop").out == "run\n" * 3


def test_on_failure_leaves_a_success_alone(engine: Engine) -> None:
    engine.docker("run", "-d", "--name", "fine", "--restart", "on-failure", "busybox", "true")
    engine.wait_for("fine", "exited")
    assert engine.inspect("fine")["RestartCount"] == 0


def test_always_brings_it_back_until_it_is_stopped(engine: Engine) -> None:
    engine.docker("run", "-d", "--name", "always", "--restart", "always", *SLEEP)
    first = engine.state("always")["Pid"]
    engine.box.kill(first)
    deadline = threading.Event()
    for _ in range(200):
        state = engine.state("always")
        if state["Running"] and state["Pid"] != first:
            break
        deadline.wait(0.05)
    assert state["Running"]
    assert engine.inspect("always")["RestartCount"] == 1
    engine.docker("stop", "-t", "0", "always")
    assert engine.state("always")["Status"] == "exited"


def test_restart_with_rm_is_refused(cli: Cli) -> None:
    done = cli("run", "--rm", "--restart", "always", "busybox", "true", check=False)
    assert done.code == 125
    assert "onflicting options" in done.err or "can't create 'AutoRemove' container with restart policy" in done.err


# -- top, resize -------------------------------------------------------------------------------------------------------


def test_top_shows_the_containers_processes(cli: Cli) -> None:
    cli("run", "-d", "--name", "busy", "busybox", "sh", "-c", "sleep 601 & sleep 602")
    shown = cli("top", "busy").out
    assert "PID" in shown.splitlines()[0]
    assert "sleep 602" in shown
    shown = cli("top", "busy", "-o", "pid,comm").lines
    assert shown[0].split() == ["PID", "COMMAND"]


def test_top_of_a_stopped_container_is_refused(cli: Cli) -> None:
    cli("create", "--name", "still", "busybox")
    assert "is not running" in cli("top", "still", check=False).err


def test_resize_reaches_the_terminal(engine: Engine) -> None:
    script = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.05; done"
    engine.docker("run", "-dt", "--name", "tty", "busybox", "sh", "-c", script)
    ready(engine, "tty")
    assert engine.api.request("POST", "/containers/tty/resize?h=33&w=101").status == 200
    engine.wait_for("tty", "exited")
    assert "33 101" in engine.docker("logs", "tty").out


def test_resize_of_a_stopped_container_is_a_conflict(engine: Engine) -> None:
    engine.docker("create", "-t", "--name", "still", "busybox")
    answer = engine.api.request("POST", "/containers/still/resize?h=1&w=1")
    assert answer.status in (409, 500)
    assert "is not running" in answer.message
