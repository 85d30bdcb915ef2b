"""`logs`: what was written, by whom, when; and following it."""

import json
import re
import subprocess
from pathlib import Path

from harness.api import streams
from harness.engine import Cli, Engine

BOTH = "echo one; echo two >&2; echo three; printf 'no newline'"


def test_both_streams_come_apart(cli: Cli) -> None:
    cli("run", "--name", "talker", "busybox", "sh", "-c", BOTH)
    shown = cli("logs", "talker")
    assert (shown.out, shown.err) == ("one\nthree\nno newline", "two\n")


def test_the_answer_is_framed_without_a_terminal_and_raw_with_one(engine: Engine) -> None:
    engine.docker("run", "--name", "plain", "busybox", "sh", "-c", BOTH)
    answer = engine.api.request("GET", "/containers/plain/logs?stdout=1&stderr=1")
    assert streams(answer.body) == {1: b"one\nthree\nno newline", 2: b"two\n"}
    assert streams(engine.api.request("GET", "/containers/plain/logs?stderr=1").body) == {2: b"two\n"}
    engine.docker("run", "-t", "--name", "tty", "busybox", "sh", "-c", BOTH)
    answer = engine.api.request("GET", "/containers/tty/logs?stdout=1&stderr=1")
    assert answer.body == b"one\r\ntwo\r\nthree\r\nno newline"


def test_tail_counts_lines_from_the_end(cli: Cli) -> None:
    cli("run", "--name", "counter", "busybox", "seq", "1", "2000")
    assert cli("logs", "--tail", "3", "counter").lines == ["1998", "1999", "2000"]
    assert cli("logs", "--tail", "0", "counter").out == ""
    assert len(cli("logs", "--tail", "all", "counter").lines) == 2000
    assert cli("logs", "-n", "1500", "counter").lines[0] == "501"


def test_timestamps_have_nine_digits_and_grow(cli: Cli) -> None:
    cli("run", "--name", "clock", "busybox", "sh", "-c", "for i in 1 2 3; do echo $i; done")
    lines = cli("logs", "-t", "clock").lines
    assert [line.split(" ", 1)[1] for line in lines] == ["1", "2", "3"]
    stamps = [line.split(" ", 1)[0] for line in lines]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", stamp) for stamp in stamps)
    assert stamps == sorted(stamps)


def test_since_and_until_cut_at_a_moment(cli: Cli) -> None:
    cli("run", "--name", "clock", "busybox", "sh", "-c", "echo early; sleep 0.3; echo late")
    late = cli("logs", "-t", "clock").lines[1].split(" ")[0]
    assert cli("logs", "--since", late, "clock").out == "late\n"
    assert cli("logs", "--since", "1h", "clock").out == "early\nlate\n"
    assert cli("logs", "--until", "1h", "clock").out == ""
    early = cli("logs", "-t", "clock").lines[0].split(" ")[0]
    assert cli("logs", "--until", early, "clock").out.startswith("early\n")
    assert "late" not in cli("logs", "--until", early, "clock").out


def test_details_show_the_labels_asked_for(cli: Cli) -> None:
    flags = ["--log-opt", "labels=team", "--log-opt", "env=COLOUR", "-l", "team=red", "-e", "COLOUR=blue"]
    cli("run", "--name", "detailed", *flags, "busybox", "echo", "line")
    assert cli("logs", "--details", "detailed").out == "COLOUR=blue,team=red line\n"


def test_follow_shows_the_past_then_the_present_then_ends_with_the_container(cli: Cli) -> None:
    script = "echo before; while [ ! -e /go ]; do sleep 0.02; done; echo after; exit 3"
    cli("run", "-d", "--name", "followed", "busybox", "sh", "-c", script)
    follower = cli.start("logs", "-f", "followed")
    assert follower.stdout is not None
    assert follower.stdout.readline() == b"before\n"
    cli("exec", "followed", "touch", "/go", check=False)  # may die with its container
    assert follower.communicate(timeout=20)[0] == b"after\n"
    assert follower.returncode == 0


def test_follow_with_tail_starts_near_the_end(cli: Cli) -> None:
    script = "seq 1 50; while [ ! -e /go ]; do sleep 0.02; done; echo end"
    cli("run", "-d", "--name", "followed", "busybox", "sh", "-c", script)
    while "50" not in cli("logs", "followed").lines:
        pass
    follower = cli.start("logs", "-f", "--tail", "2", "followed")
    assert follower.stdout is not None
    assert [follower.stdout.readline() for _ in range(2)] == [b"49\n", b"50\n"]
    cli("exec", "followed", "touch", "/go", check=False)  # may die with its container
    assert follower.communicate(timeout=20)[0] == b"end\n"


def test_several_followers_each_see_everything(cli: Cli) -> None:
    script = "while [ ! -e /go ]; do sleep 0.02; done; seq 1 5000"
    cli("run", "-d", "--name", "popular", "busybox", "sh", "-c", script)
    followers = [cli.start("logs", "-f", "popular", stderr=subprocess.DEVNULL) for _ in range(3)]
    cli("exec", "popular", "touch", "/go", check=False)  # may die with its container
    expected = "".join(f"{number}\n" for number in range(1, 5001)).encode()
    assert [follower.communicate(timeout=30)[0] for follower in followers] == [expected] * 3


def test_follow_of_a_stopped_container_ends_at_once(cli: Cli) -> None:
    cli("run", "--name", "over", "busybox", "echo", "said")
    assert cli("logs", "-f", "over").out == "said\n"


def test_logs_of_a_created_container_are_empty(cli: Cli) -> None:
    cli("create", "--name", "silent", "busybox")
    assert cli("logs", "silent").out == ""


def test_long_lines_and_every_byte_survive(engine: Engine) -> None:
    script = "head -c 100000 /bin/busybox; printf '\\n'; yes x | head -c 70000 | tr -d '\\n'"
    engine.docker("run", "--name", "bytes", "busybox", "sh", "-c", script + "; echo end")
    answer = engine.api.request("GET", "/containers/bytes/logs?stdout=1")
    text = streams(answer.body)[1]
    assert text.endswith(b"x" * 35000 + b"end\n")


def test_logs_survive_the_restart_of_the_container(cli: Cli) -> None:
    cli("run", "--name", "twice", "busybox", "echo", "run")
    cli("start", "-a", "twice")
    assert cli("logs", "twice").out == "run\nrun\n"


def test_log_rotation_keeps_the_newest(cli: Cli) -> None:
    flags = ["--log-opt", "max-size=20k", "--log-opt", "max-file=2"]
    cli("run", "--name", "rotated", *flags, "busybox", "seq", "1", "2000")
    lines = cli("logs", "rotated").lines
    assert lines[-1] == "2000"
    assert 100 < len(lines) < 1500
    assert lines == [str(number) for number in range(2000 - len(lines) + 1, 2001)]


def test_the_none_driver_keeps_nothing_and_says_so(cli: Cli) -> None:
    assert cli("run", "--name", "mute", "--log-driver", "none", "busybox", "echo", "heard").out == "heard\n"
    done = cli("logs", "mute", check=False)
    assert done.code == 1
    assert "configured logging driver does not support reading" in done.err


def test_an_unknown_log_driver_is_refused(docker: Cli) -> None:
    done = docker("run", "--rm", "--log-driver", "no-such-driver", "busybox", "true", check=False)
    assert done.code == 125
    assert "no-such-driver" in done.err
    assert docker("ps", "-aq").text == ""


def test_neither_stream_asked_for_is_refused(engine: Engine) -> None:
    engine.docker("create", "--name", "any", "busybox")
    answer = engine.api.request("GET", "/containers/any/logs")
    assert answer.status == 400
    assert answer.message == "Bad parameters: you must choose at least one stream"


def test_the_file_on_disk_is_dockers_json(engine: Engine) -> None:
    script = "printf '<\\042quoted\\042 & tab\\there>\\n'; echo e >&2"
    engine.docker("run", "--name", "filed", "busybox", "sh", "-c", script)
    lines = [json.loads(line) for line in Path(engine.inspect("filed")["LogPath"]).read_text().splitlines()]
    assert {line["stream"]: line["log"] for line in lines} == {"stdout": '<"quoted" & tab\there>\n', "stderr": "e\n"}
    assert all(line["time"].endswith("Z") for line in lines)
