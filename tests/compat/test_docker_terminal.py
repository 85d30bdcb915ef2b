"""`-it`: a person at a terminal, by both clients."""

import pytest

from harness.engine import Cli, Engine

SIZE = r"size=(\d+ \d+)?\r"  # nothing when the resize interrupts stty itself


def test_a_shell_on_a_terminal_of_the_right_size_that_follows_the_window(cli: Cli, engine: Engine) -> None:
    with cli.terminal("run", "-it", "--name", "shell", "busybox", "sh", rows=31, cols=97) as person:
        person.expect(r"/ # ")
        for _ in range(50):  # the size follows the start of the container by one request
            if engine.is_dockerd:  # 20.10 loses the first size now and then; since API 1.42 it comes with create
                person.resize(31, 97)
            person.line("echo size=$(stty size)")
            if person.expect(SIZE).group(1) == "31 97":
                break
        else:
            raise AssertionError(person.screen)
        person.resize(44, 120)
        for _ in range(50):
            if engine.is_dockerd:
                person.resize(44, 120)
            person.line("echo size=$(stty size)")
            if person.expect(SIZE).group(1) == "44 120":
                break
        else:
            raise AssertionError(person.screen)
        person.line("tty; exit 3")
        person.expect(r"/dev/(pts/0|console)")
        assert person.wait() == 3
    assert engine.state("shell")["ExitCode"] == 3


@pytest.mark.not_dockerd("takes no size at create")
def test_the_size_is_right_from_the_first_moment(engine: Engine) -> None:
    with engine.wherry.terminal("run", "-it", "--rm", "busybox", "stty", "size", rows=33, cols=91) as person:
        assert person.wait() == 0
        assert person.screen.split() == ["33", "91"]


def test_files_survive_exit_and_start_ai(cli: Cli) -> None:
    with cli.terminal("run", "-it", "--name", "kept", "busybox", "sh") as person:
        person.expect("# ")
        person.line("echo hello > /file; exit")
        assert person.wait() == 0
    with cli.terminal("start", "-ai", "kept") as person:
        person.line("cat /file")
        person.expect(r"\nhello")
        person.line("exit 4")
        assert person.wait() == 4


def test_ctrl_c_reaches_the_process_and_the_shell_goes_on(cli: Cli) -> None:
    with cli.terminal("run", "-it", "--rm", "busybox", "sh") as person:
        person.expect("# ")
        person.line("sh -c 'echo start''ed; exec sleep 500'")
        person.expect("started")
        person.send("\x03")
        person.line("echo alive")
        person.expect(r"\nalive")
        person.send("\x04")
        person.wait()


def test_detach_keys_leave_the_container_running_and_attach_comes_back(cli: Cli, engine: Engine) -> None:
    with cli.terminal("run", "-it", "--name", "left", "busybox", "sh") as person:
        person.expect("# ")
        person.send("\x10\x11")
        assert person.wait() == 0
    assert engine.state("left")["Running"]
    with cli.terminal("attach", "left") as person:
        person.line("echo back")
        person.expect(r"\nback")
        person.line("exit 2")
        assert person.wait() == 2


def test_other_detach_keys_can_be_chosen(cli: Cli, engine: Engine) -> None:
    with cli.terminal("run", "-it", "--name", "left", "--detach-keys", "ctrl-x", "busybox", "sh") as person:
        person.expect("# ")
        person.send("\x18")
        assert person.wait() == 0
    assert engine.state("left")["Running"]


def test_exec_it_is_a_terminal_too(cli: Cli) -> None:
    cli("run", "-d", "--name", "host", "busybox", "sleep", "600")
    with cli.terminal("exec", "-it", "host", "sh", rows=40, cols=90) as person:
        person.expect("# ")
        person.line("[ -t 0 ] && echo is a tty; ps | grep -c sleep")
        person.expect(r"\nis a tty")
        person.line("exit 8")
        assert person.wait() == 8


def test_the_terminal_is_left_as_it_was(cli: Cli) -> None:
    with cli.terminal("run", "-it", "--rm", "busybox", "true") as person:
        before = person.modes()
        assert person.wait() == 0
        assert person.modes() == before


def test_t_needs_a_terminal_on_standard_input(cli: Cli) -> None:
    done = cli("run", "-it", "--rm", "busybox", "true", input="", check=False)
    assert done.code in (1, 125)
    assert "the input device is not a TTY" in done.err
