"""Finding commands, usage errors, help, exit codes."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wherry import __version__
from wherry.cli import catalog
from wherry.cli.flags import BOOL
from wherry.cli.main import load
from wherry.cli.suggest import nearest

Wherry = Callable[..., Any]
ENTRIES = {
    f"{name} {command}": entry for name, group in catalog.GROUPS.items() for command, entry in group.commands.items()
} | {**catalog.COMMON, **catalog.OTHERS}


@pytest.mark.parametrize("path", ENTRIES)
def test_every_command_loads_and_its_flags_do_not_collide(path: str) -> None:
    command = load(ENTRIES[path])
    names = [flag.name for flag in command.flags]
    shorts = [flag.short for flag in command.flags if flag.short]
    assert len(names) == len(set(names))
    assert len(shorts) == len(set(shorts))
    assert command.usage
    assert command.most == -1 or command.most >= command.least
    assert not [flag.name for flag in command.flags if flag.kind is BOOL and flag.check]


@pytest.mark.parametrize("path", ENTRIES)
def test_every_command_has_help_that_fits_the_screen(wherry: Wherry, path: str) -> None:
    shown = wherry(*path.split(), "--help")
    assert shown.code == 0
    assert shown.out.startswith(f"Usage:  wherry {path}")
    assert ENTRIES[path].summary in shown.out or load(ENTRIES[path]).details in shown.out
    assert not [line for line in shown.out.split("Options:")[-1].splitlines() if len(line) > 80]
    for flag in load(ENTRIES[path]).flags:
        assert flag.hidden or f"--{flag.name}" in shown.out


@pytest.mark.parametrize("group", catalog.GROUPS)
def test_a_group_alone_shows_its_commands(wherry: Wherry, group: str) -> None:
    shown = wherry(group)
    assert shown.code == 0
    assert shown.out.startswith(f"Usage:  wherry {group} COMMAND")
    assert wherry("help", group).out == wherry(group, "--help").out == shown.out
    for command in catalog.GROUPS[group].commands:
        assert f"\n  {command} " in shown.out


def test_help_lists_what_there_is(wherry: Wherry) -> None:
    shown = wherry()
    assert shown.code == 0
    assert shown.out == wherry("--help").out == wherry("help").out
    for name in (*catalog.COMMON, *catalog.OTHERS, *catalog.GROUPS, "daemon"):
        assert f"\n  {name} " in shown.out
    assert wherry("help", "ps").out == wherry("ps", "--help").out
    assert wherry("help", "bogus").err == "unknown help topic: bogus\n"


def test_version(wherry: Wherry) -> None:
    assert wherry("--version").out == wherry("-v").out == f"Wherry version {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["pss"], 1, "wherry: unknown command: wherry pss\n\nDid you mean 'wherry ps'?\n\n"
         "Run 'wherry --help' for more information\n"),
        (["zzzzzz"], 1, "wherry: unknown command: wherry zzzzzz\n\nRun 'wherry --help' for more information\n"),
        (["container", "lss"], 1, "wherry: unknown command: wherry container lss\n\nDid you mean 'wherry container ls'?"
         "\n\nUsage:  wherry container\n\nRun 'wherry container --help' for more information\n"),
        (["--bogus"], 125, "unknown flag: --bogus\n\nUsage:  wherry [OPTIONS] COMMAND [ARG...]\n\n"
         "Run 'wherry --help' for more information\n"),
        (["-x"], 125, "unknown shorthand flag: 'x' in -x\n\nUsage:  wherry [OPTIONS] COMMAND [ARG...]\n\n"
         "Run 'wherry --help' for more information\n"),
        (["-l", "foo", "ps"], 1, "Unable to parse logging level: foo\n"),
        (["ps", "a"], 1, "wherry: 'wherry ps' accepts no arguments\n\nUsage:  wherry ps [OPTIONS]\n\n"
         "Run 'wherry ps --help' for more information\n"),
        (["rename", "a"], 1, "wherry: 'wherry rename' requires 2 arguments\n\n"
         "Usage:  wherry rename CONTAINER NEW_NAME\n\nRun 'wherry rename --help' for more information\n"),
        (["rm"], 1, "wherry: 'wherry rm' requires at least 1 argument\n\n"
         "Usage:  wherry rm [OPTIONS] CONTAINER [CONTAINER...]\n\nSee 'wherry rm --help' for more information\n"),
        (["images", "a", "b"], 1, "wherry: 'wherry images' requires at most 1 argument\n\n"
         "Usage:  wherry images [OPTIONS] [REPOSITORY[:TAG]]\n\nRun 'wherry images --help' for more information\n"),
        (["port", "a", "b", "c"], 1, "wherry: 'wherry port' requires at least 1 and at most 2 arguments\n\n"
         "Usage:  wherry port CONTAINER [PRIVATE_PORT[/PROTO]]\n\nRun 'wherry port --help' for more information\n"),
        (["run", "--name"], 125, "flag needs an argument: --name\n\n"
         "Usage:  wherry run [OPTIONS] IMAGE [COMMAND] [ARG...]\n\nRun 'wherry run --help' for more information\n"),
        (["run", "-p", "abc", "x"], 125,
         "wherry: invalid containerPort: abc\n\nRun 'wherry run --help' for more information\n"),
        (["container", "run", "-m", "4q", "x"], 125,
         "invalid argument \"4q\" for \"-m, --memory\" flag: invalid suffix: 'q'\n\n"
         "Usage:  wherry container run [OPTIONS] IMAGE [COMMAND] [ARG...]\n\n"
         "Run 'wherry container run --help' for more information\n"),
        (["inspect", "-f", "{{", "x"], 64, "template parsing error: template: :1: unclosed action\n"),
    ],
)  # fmt: skip
def test_mistakes(wherry: Wherry, arguments: list[str], code: int, message: str) -> None:
    said = wherry(*arguments)
    assert said.code == code
    assert said.out == ""
    assert said.err == message


def test_no_daemon(wherry: Wherry, tmp_path: Path) -> None:
    said = wherry("ps")
    assert said.code == 1
    first, second = said.err.splitlines()
    assert first == (
        f"Cannot connect to the Wherry daemon at unix://{tmp_path}/engine.sock. Is the wherry daemon running?"
    )
    assert "start it with 'wherry daemon'" in second
    said = wherry("run", "x")
    assert said.code == 125
    assert said.err.startswith("wherry: Cannot connect")
    assert said.err.endswith("\n\nRun 'wherry run --help' for more information\n")
    said = wherry("rm", "x", "y")
    assert said.code == 1
    assert said.err.count("Cannot connect") == 1


def test_a_second_host_is_refused(wherry: Wherry) -> None:
    assert wherry("-H", "unix:///a", "-H", "unix:///b", "ps").err == "Failed to initialize: Specify only one -H\n"
    assert "invalid bind address format: foo://x" in wherry("-H", "foo://x", "ps").err


def test_minus_h_for_help_is_deprecated(wherry: Wherry) -> None:
    shown = wherry("ps", "-h")
    assert shown.err == "Flag shorthand -h has been deprecated, use --help\n"
    assert shown.out == wherry("ps", "--help").out


def test_nobody_reading_the_output_ends_the_command_in_silence(tmp_path: Path) -> None:
    source = Path(catalog.__file__).parents[2]
    code = f"import sys; sys.path.insert(0, {str(source)!r}); from wherry.cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-IS", "-c", code, "run", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (141, b"")


def test_listing_containers_imports_nothing_heavy(fake_engine: Any, reply: Any) -> None:
    """`ps` has docker's speed only as long as none of these is imported."""
    fake_engine.answers["GET /containers/json"] = reply(200, [])
    source = Path(catalog.__file__).parents[2]
    code = (
        f"import sys; sys.path.insert(0, {str(source)!r}); from wherry.cli.main import main; "
        f"code = main(['-H', 'unix://{fake_engine.path}', 'ps']); "
        "print(code, sorted(set(sys.modules) & {'re', 'enum', 'json', 'socket', 'typing', 'dataclasses', 'functools', "
        "'collections', 'contextlib', 'argparse', 'http', 'asyncio', 'datetime', 'subprocess', 'signal', "
        "'wherry.cli.template', 'wherry.cli.help'}))"
    )
    done = subprocess.run([sys.executable, "-IS", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


@pytest.mark.parametrize(
    ("word", "found"),
    [("pss", "ps"), ("imgaes", "images"), ("contaner", "container"), ("strat", "start"), ("zz", None)],
)
def test_near_misses(word: str, found: str | None) -> None:
    assert nearest(word, catalog.top_names()) == found


def test_an_answer_of_another_shape_is_no_traceback(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    fake_engine.answers["GET /containers/json"] = reply(200, [{"Nope": 1}])
    said = wherry("ps")
    assert (said.code, said.out) == (1, "")
    assert said.err == (
        "wherry: unexpected answer from the engine, or a bug: KeyError: 'Id'\n'wherry -D ps …' shows where.\n"
    )
    with pytest.raises(KeyError):
        wherry("-D", "ps")


def test_a_full_disk_under_standard_output_is_told() -> None:
    source = Path(catalog.__file__).parents[2]
    code = f"import sys; sys.path.insert(0, {str(source)!r}); from wherry.cli.main import main; main()"
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-IS", "-c", code, "run", "--help"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (1, b"wherry: write /dev/stdout: no space left on device\n")


@pytest.mark.parametrize("name", sorted(catalog.SERVERS))
def test_servers_have_help_and_take_no_options_of_the_client(wherry: Wherry, name: str) -> None:
    shown = wherry(name, "--help")
    assert shown.code == 0
    assert name in shown.out
    assert wherry("help", name).out == shown.out
    refused = wherry("-D", name, "--help")
    assert refused.code == 1
    assert "has options of its own, which follow its name" in refused.err


def test_the_registry_says_what_it_does_not_know(wherry: Wherry) -> None:
    assert wherry("registry", "nope").code != 0
    assert wherry("registry", "serve", "--help").code == 0
