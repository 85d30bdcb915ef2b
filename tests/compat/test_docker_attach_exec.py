"""`attach` and `exec`: the streams of a running container, on the wire and through the clients."""

import subprocess

import pytest

from harness.api import frames, streams
from harness.engine import Cli, Engine

SLEEP = ("busybox", "sleep", "600")
ALL = "stream=1&stdin=1&stdout=1&stderr=1"
NOT_FOUND = pytest.param(127, ["no-such-program"], marks=pytest.mark.not_dockerd("answers 126"))
EXEC = {"AttachStdin": True, "AttachStdout": True, "AttachStderr": True}


# -- attach ------------------------------------------------------------------------------------------------------------


def test_attach_is_framed_without_a_terminal(engine: Engine) -> None:
    engine.docker("create", "-i", "--name", "echo", "busybox", "sh", "-c", "read x; echo out $x; echo err >&2")
    with engine.api.hijack(f"/containers/echo/attach?{ALL}") as stream:
        assert stream.status == 101
        assert stream.headers["upgrade"] == "tcp"
        engine.docker("start", "echo")
        stream.send(b"given\n")
        data = stream.rest()
    assert streams(data) == {1: b"out given\n", 2: b"err\n"}


def test_attach_without_an_upgrade_header_answers_200(engine: Engine) -> None:
    engine.docker("create", "-i", "--name", "old", "busybox", "cat")
    with engine.api.hijack(f"/containers/old/attach?{ALL}", upgrade=False) as stream:
        assert stream.status == 200
        assert stream.headers["content-type"] == "application/vnd.docker.raw-stream"
        engine.docker("start", "old")
        stream.send(b"x\n")
        stream.half_close()
        assert streams(stream.rest()) == {1: b"x\n"}


@pytest.mark.not_dockerd("API 1.41 has only the raw type")
def test_the_content_type_tells_framed_from_raw(engine: Engine) -> None:
    engine.docker("run", "-di", "--name", "plain", *SLEEP)
    engine.docker("run", "-dit", "--name", "tty", *SLEEP)
    for name, path, kind in [
        ("plain", "/v1.42", "multiplexed-stream"),
        ("plain", "/v1.41", "raw-stream"),
        ("tty", "/v1.42", "raw-stream"),
    ]:
        with engine.api.hijack(f"{path}/containers/{name}/attach?stream=1&stdout=1") as stream:
            assert stream.headers["content-type"] == f"application/vnd.docker.{kind}"


def test_attach_is_raw_with_a_terminal(engine: Engine) -> None:
    engine.docker("create", "-it", "--name", "tty", "busybox", "sh", "-c", "stty -echo; echo ready; read x; echo $x")
    with engine.api.hijack(f"/containers/tty/attach?{ALL}") as stream:
        engine.docker("start", "tty")
        assert stream.until(b"ready\r\n")
        stream.send(b"typed\r")
        assert b"typed\r\n" in stream.rest()


def test_the_clients_half_close_is_the_end_of_standard_input(engine: Engine) -> None:
    engine.docker("create", "-i", "--name", "sorter", "busybox", "sort")
    engine.api.request("GET", "/containers/sorter/json")
    answer = engine.api.post(
        "/containers/create?name=once",
        {"Image": "busybox", "Cmd": ["sort"], "OpenStdin": True, "StdinOnce": True, "AttachStdin": True},
        status=201,
    )
    assert answer.json()["Id"]
    with engine.api.hijack(f"/containers/once/attach?{ALL}") as stream:
        engine.docker("start", "once")
        stream.send(b"b\na\n")
        stream.half_close()
        assert streams(stream.rest()) == {1: b"a\nb\n"}


def test_only_the_streams_asked_for_are_sent(engine: Engine) -> None:
    script = "while [ ! -e /go ]; do sleep 0.02; done; echo out; echo err >&2"
    engine.docker("run", "-d", "--name", "two", "busybox", "sh", "-c", script)
    with (
        engine.api.hijack("/containers/two/attach?stream=1&stdout=1") as out,
        engine.api.hijack("/containers/two/attach?stream=1&stderr=1") as err,
    ):
        engine.docker("exec", "two", "touch", "/go", check=False)  # the container may end before it does
        assert streams(out.rest()) == {1: b"out\n"}
        assert streams(err.rest()) == {2: b"err\n"}


def test_logs_1_replays_the_past_without_gap_or_repeat(engine: Engine) -> None:
    script = "seq 1 500; while [ ! -e /go ]; do sleep 0.02; done; seq 501 1000"
    engine.docker("run", "-d", "--name", "history", "busybox", "sh", "-c", script)
    while "500" not in engine.docker("logs", "--tail", "1", "history").lines:
        pass
    with engine.api.hijack("/containers/history/attach?logs=1&stream=1&stdout=1") as stream:
        engine.docker("exec", "history", "touch", "/go", check=False)
        data = streams(stream.rest())[1]
    assert data == "".join(f"{number}\n" for number in range(1, 1001)).encode()


def test_several_clients_see_the_same_and_may_all_write(engine: Engine) -> None:
    engine.docker("run", "-di", "--name", "shared", "busybox", "sh", "-c", "read a; read b; echo $a $b")
    with (
        engine.api.hijack(f"/containers/shared/attach?{ALL}") as one,
        engine.api.hijack(f"/containers/shared/attach?{ALL}") as two,
    ):
        one.send(b"first\n")
        # The shell's `read` has taken the line when its pipe is empty: only then may the second writer follow.
        engine.docker("exec", "shared", "true")
        two.send(b"second\n")
        answers = [streams(one.rest())[1], streams(two.rest())[1]]
    assert answers[0] == answers[1]
    assert sorted(answers[0].split()) == [b"first", b"second"]


def test_a_client_that_leaves_disturbs_nobody(engine: Engine) -> None:
    script = "while [ ! -e /go ]; do sleep 0.02; done; echo still here"
    engine.docker("run", "-di", "--name", "left", "busybox", "sh", "-c", script)
    with engine.api.hijack(f"/containers/left/attach?{ALL}") as stays:
        with engine.api.hijack(f"/containers/left/attach?{ALL}"):
            pass
        engine.docker("exec", "left", "touch", "/go", check=False)  # it may be killed with the container it ends
        assert streams(stays.rest()) == {1: b"still here\n"}


@pytest.mark.not_dockerd("the slowest client holds the container up")
def test_a_client_that_does_not_read_stalls_neither_container_nor_log(engine: Engine) -> None:
    script = "while [ ! -e /go ]; do sleep 0.02; done; yes 0123456789 | head -n 1000000; echo done"
    engine.docker("run", "-d", "--name", "flood", "busybox", "sh", "-c", script)
    with engine.api.hijack("/containers/flood/attach?stream=1&stdout=1"):
        engine.docker("exec", "flood", "touch", "/go", check=False)
        engine.wait_for("flood", "exited", timeout=60)
    assert engine.docker("logs", "--tail", "1", "flood").text == "done"


def test_detach_keys_end_the_session_and_not_the_container(engine: Engine) -> None:
    engine.docker("run", "-dit", "--name", "tty", "busybox", "cat")
    with engine.api.hijack(f"/containers/tty/attach?{ALL}") as stream:
        stream.send(b"\x10\x11")  # ctrl-p ctrl-q
        stream.rest()
    assert engine.state("tty")["Running"]
    with engine.api.hijack(f"/containers/tty/attach?{ALL}&detachKeys=ctrl-a,x") as stream:
        stream.send(b"hi\r")
        assert stream.until(b"hi\r\nhi\r\n")
        stream.send(b"\x01x")
        stream.rest()
    assert engine.state("tty")["Running"]


def test_wrong_detach_keys_are_refused(engine: Engine) -> None:
    engine.docker("run", "-dit", "--name", "tty", *SLEEP)
    answer = engine.api.request("POST", f"/containers/tty/attach?{ALL}&detachKeys=nonsense-key")
    assert answer.status == 400
    assert b"nvalid detach keys (nonsense-key) provided" in answer.body


def test_attaching_to_a_stopped_container_is_refused(cli: Cli) -> None:
    cli("run", "--name", "over", "busybox", "true")
    done = cli("attach", "over", check=False)
    assert done.code == 1
    assert "cannot attach to a stopped container, start it first" in done.err


def test_attaching_to_a_paused_container_is_refused(cli: Cli) -> None:
    cli("run", "-d", "--name", "ice", *SLEEP)
    cli("pause", "ice")
    done = cli("attach", "ice", check=False)
    assert done.code == 1
    assert "cannot attach to a paused container, unpause it first" in done.err


def test_attach_by_the_clients_shows_output_and_returns_the_code(cli: Cli) -> None:
    script = "while [ ! -e /go ]; do sleep 0.02; done; echo bye; exit 6"
    cli("run", "-d", "--name", "leaving", "busybox", "sh", "-c", script)
    attached = cli.start("attach", "--no-stdin", "leaving")
    deadline = 200
    while deadline and attached.poll() is None:  # attached when its stream is open; then let the container go on
        cli("exec", "leaving", "touch", "/go", check=False)
        deadline -= 1
        try:
            attached.wait(0.2)
        except subprocess.TimeoutExpired:
            continue
    out, _ = attached.communicate(timeout=20)
    assert attached.returncode in (6, 1)  # 1: it was over before the client had attached
    assert out in (b"bye\n", b"")


# -- exec --------------------------------------------------------------------------------------------------------------


def test_exec_runs_in_the_container_and_returns_the_code(cli: Cli) -> None:
    cli("run", "-d", "--name", "host", *SLEEP)
    done = cli("exec", "host", "sh", "-c", "echo out; echo err >&2; exit 9", check=False)
    assert (done.code, done.out, done.err) == (9, "out\n", "err\n")


def test_exec_i_reads_standard_input_to_its_end(cli: Cli) -> None:
    cli("run", "-d", "--name", "host", *SLEEP)
    assert cli("exec", "-i", "host", "sort", input="b\na\n").out == "a\nb\n"


def test_exec_takes_user_environment_and_directory(cli: Cli) -> None:
    cli("run", "-d", "--name", "host", "-e", "KEPT=1", *SLEEP)
    flags = ["-u", "alice", "-e", "COLOUR=red", "-w", "/home/alice"]
    lines = cli("exec", *flags, "host", "sh", "-c", "id -u; pwd; echo $COLOUR $KEPT; echo $HOME").lines
    assert lines == ["1000", "/home/alice", "red 1", "/home/alice"]


def test_exec_has_the_containers_user_and_directory_by_default(cli: Cli) -> None:
    cli("run", "-d", "--name", "host", "--entrypoint", "sleep", "configured", "600")
    assert cli("exec", "host", "sh", "-c", "id -un; pwd; echo $COLOUR").lines == ["alice", "/work", "blue"]


def test_exec_d_returns_at_once_and_runs(cli: Cli) -> None:
    cli("run", "-d", "--name", "host", *SLEEP)
    assert cli("exec", "-d", "host", "sh", "-c", "sleep 0.1; touch /made").out == ""
    for _ in range(100):
        if cli("exec", "host", "test", "-e", "/made", check=False).code == 0:
            break
    else:
        pytest.fail("the detached exec did nothing")


@pytest.mark.parametrize(
    ("code", "command"),
    [NOT_FOUND, (126, ["/etc/passwd"]), (137, ["sh", "-c", "kill -9 $$"]), (255, ["sh", "-c", "exit 255"])],
)
def test_exec_exit_codes_are_dockers(cli: Cli, code: int, command: list[str]) -> None:
    cli("run", "-d", "--name", "host", *SLEEP)
    done = cli("exec", "host", *command, check=False)
    assert done.code == code
    if code == 127:
        assert 'exec: "no-such-program": executable file not found in $PATH' in done.out + done.err


def test_exec_in_a_stopped_or_paused_container_is_refused(cli: Cli, engine: Engine) -> None:
    identifier = cli("create", "--name", "still", *SLEEP).text
    done = cli("exec", "still", "true", check=False)
    assert done.code == 1
    assert f"ontainer {identifier} is not running" in done.err
    cli("start", "still")
    cli("pause", "still")
    done = cli("exec", "still", "true", check=False)
    assert done.code == 1
    assert "is paused, unpause the container before exec" in done.err


def test_exec_without_a_command_is_refused(engine: Engine) -> None:
    engine.docker("run", "-d", "--name", "host", *SLEEP)
    answer = engine.api.request("POST", "/containers/host/exec", {"Cmd": []})
    assert (answer.status, answer.message) == (400, "No exec command specified")


def test_exec_document_before_during_and_after(engine: Engine) -> None:
    engine.docker("run", "-d", "--name", "host", *SLEEP)
    body = {**EXEC, "Cmd": ["sh", "-c", "read x; exit 5"], "Tty": False}
    identifier = engine.api.post("/containers/host/exec", body, status=201).json()["Id"]
    found = engine.api.get(f"/exec/{identifier}/json")
    assert (found["Running"], found["ExitCode"], found["ContainerID"]) == (False, None, engine.inspect("host")["Id"])
    config = found["ProcessConfig"]
    assert (config["entrypoint"], config["arguments"], config["tty"]) == ("sh", ["-c", "read x; exit 5"], False)
    with engine.api.hijack(f"/exec/{identifier}/start", {"Detach": False, "Tty": False}) as stream:
        assert stream.status == 101
        while not (found := engine.api.get(f"/exec/{identifier}/json"))["Pid"]:
            pass  # the head is sent before the process exists
        assert found["Running"]
        assert engine.box.alive(found["Pid"])
        assert identifier in engine.inspect("host")["ExecIDs"]
        stream.send(b"go\n")
        stream.rest()
    found = engine.api.get(f"/exec/{identifier}/json")
    assert (found["Running"], found["ExitCode"]) == (False, 5)


def test_an_exec_starts_once(engine: Engine) -> None:
    engine.docker("run", "-d", "--name", "host", *SLEEP)
    identifier = engine.api.post("/containers/host/exec", {**EXEC, "Cmd": ["true"]}, status=201).json()["Id"]
    with engine.api.hijack(f"/exec/{identifier}/start", {"Detach": False}) as stream:
        stream.rest()
    answer = engine.api.request("POST", f"/exec/{identifier}/start", {"Detach": True})
    assert answer.status == 409
    assert "has already run" in answer.message


def test_exec_streams_are_framed_and_half_close_is_the_end_of_input(engine: Engine) -> None:
    engine.docker("run", "-d", "--name", "host", *SLEEP)
    command = ["sh", "-c", "cat; echo err >&2"]
    identifier = engine.api.post("/containers/host/exec", {**EXEC, "Cmd": command}, status=201).json()["Id"]
    with engine.api.hijack(f"/exec/{identifier}/start", {"Detach": False, "Tty": False}) as stream:
        stream.send(b"0123456789\n" * 1000)
        stream.half_close()
        data = stream.rest()
    assert streams(data) == {1: b"0123456789\n" * 1000, 2: b"err\n"}
    assert {number for number, _ in frames(data)} == {1, 2}


def test_exec_with_a_terminal_is_raw_and_resizes(engine: Engine) -> None:
    engine.docker("run", "-d", "--name", "host", *SLEEP)
    script = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.05; done"
    body = {**EXEC, "Cmd": ["sh", "-c", script], "Tty": True}
    identifier = engine.api.post("/containers/host/exec", body, status=201).json()["Id"]
    with engine.api.hijack(f"/exec/{identifier}/start", {"Detach": False, "Tty": True}) as stream:
        assert stream.until(b"ready\r\n") == b"ready\r\n"
        assert engine.api.request("POST", f"/exec/{identifier}/resize?h=44&w=99").status in (200, 201)
        assert b"44 99\r\n" in stream.rest()


def test_an_unknown_exec_is_not_found(engine: Engine) -> None:
    answer = engine.api.request("GET", "/exec/0123456789abcdef/json")
    assert answer.status == 404
    assert "No such exec instance" in answer.message or "no such exec" in answer.message.lower()


def test_a_large_stream_goes_both_ways(cli: Cli) -> None:
    cli("run", "-d", "--name", "host", *SLEEP)
    data = b"0123456789abcdef" * 1_000_000
    done = cli.start("exec", "-i", "host", "cat", stdin=subprocess.PIPE)
    out, _ = done.communicate(data, timeout=90)
    assert out == data


@pytest.mark.not_dockerd("its runc fails where the machine itself lacks a capability")
def test_privileged_exec_gets_the_capabilities(cli: Cli) -> None:
    cli("run", "-d", "--name", "host", *SLEEP)
    plain = cli("exec", "host", "grep", "CapEff", "/proc/self/status").text.split()[1]
    privileged = cli("exec", "--privileged", "host", "grep", "CapEff", "/proc/self/status").text.split()[1]
    assert int(plain, 16) == 0x00000000A80425FB
    assert int(privileged, 16) & (1 << 21)  # CAP_SYS_ADMIN


def test_the_code_of_an_exec_that_ended_with_its_container_can_be_asked_for(engine: Engine) -> None:
    init = "trap 'exit 0' TERM; sleep 1000 & echo ready; wait"
    engine.docker("run", "-d", "--name", "host", "busybox", "sh", "-c", init)
    while "ready" not in engine.docker("logs", "host").out:
        pass
    body = {**EXEC, "Cmd": ["sh", "-c", "kill 1; sleep 1000"], "Tty": False}
    identifier = engine.api.post("/containers/host/exec", body, status=201).json()["Id"]
    with engine.api.hijack(f"/exec/{identifier}/start", {"Detach": False, "Tty": False}) as stream:
        stream.rest()
    engine.docker("wait", "host")
    for _ in range(2):
        found = engine.api.get(f"/exec/{identifier}/json")
        assert (found["Running"], found["ExitCode"]) == (False, 137)
        engine.docker("start", "host")  # nor does the next run make it forgotten
    engine.docker("rm", "-f", "host")
    assert engine.api.request("GET", f"/exec/{identifier}/json").status == 404


def test_a_thousand_short_execs_worth_of_state_is_forgotten_with_the_container(engine: Engine) -> None:
    engine.docker("run", "-d", "--name", "host", *SLEEP)
    identifiers = []
    for _ in range(10):
        identifiers.append(engine.api.post("/containers/host/exec", {"Cmd": ["true"]}, status=201).json()["Id"])
        engine.api.post(f"/exec/{identifiers[-1]}/start", {"Detach": True}, status=200)
    engine.docker("rm", "-f", "host")
    assert [engine.api.request("GET", f"/exec/{name}/json").status for name in identifiers] == [404] * 10
