"""The grammar of flags, and what is said about mistakes."""

import pytest

from wherry.cli.console import UsageFailure
from wherry.cli.flags import BOOL, BYTES, INT, LIST, STRING, STRINGS, Flag, HelpAsked, parse

TABLE = (
    Flag("all", "a", BOOL, "everything"),
    Flag("detach", "d", BOOL, "later", default=True),
    Flag("env", "e", LIST, "variables"),
    Flag("last", "n", INT, "how many", default=-1),
    Flag("memory", "m", BYTES, "limit"),
    Flag("name", "", STRING, "name"),
    Flag("subnet", "", STRINGS, "several"),
)


def test_values_attached_apart_and_clustered() -> None:
    flags, rest = parse(
        ["-an5", "--name=x", "-e", "A=1", "-eB=2", "--env", "C", "arg", "-m=1k", "--subnet", "a,b"], TABLE
    )
    assert flags.on("all")
    assert flags.number("last") == 5
    assert flags.text("name") == "x"
    assert flags.texts("env") == ["A=1", "B=2", "C"]
    assert flags.number("memory") == 1024
    assert flags.texts("subnet") == ["a", "b"]
    assert rest == ["arg"]
    assert flags.changed == {"all", "last", "name", "env", "memory", "subnet"}


def test_defaults_and_booleans_set_to_false() -> None:
    flags, _ = parse(["--detach=false", "-a=0"], TABLE)
    assert not flags.on("detach")
    assert not flags.on("all")
    assert flags.number("last") == -1
    flags, _ = parse([], TABLE)
    assert flags.on("detach")
    assert flags.changed == set()


def test_two_dashes_end_the_flags() -> None:
    flags, rest = parse(["x", "--", "-a", "--", "y"], TABLE)
    assert rest == ["x", "-a", "--", "y"]
    assert not flags.on("all")


def test_a_lone_dash_is_an_argument() -> None:
    assert parse(["-", "-a"], TABLE)[1] == ["-"]


def test_without_interspersing_the_first_argument_ends_the_flags() -> None:
    flags, rest = parse(["-a", "image", "-n", "--bogus"], TABLE, interspersed=False)
    assert flags.on("all")
    assert rest == ["image", "-n", "--bogus"]


def test_parses_do_not_share_lists() -> None:
    first, _ = parse(["-e", "A"], TABLE)
    second, _ = parse(["-e", "B"], TABLE)
    assert (first.texts("env"), second.texts("env")) == (["A"], ["B"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bogus"], "unknown flag: --bogus"),
        (["--nam"], "unknown flag: --nam\nDid you mean --name?"),
        (["--memroy", "1"], "unknown flag: --memroy\nDid you mean --memory?"),
        (["-Z"], "unknown shorthand flag: 'Z' in -Z"),
        (["-aZx"], "unknown shorthand flag: 'Z' in -Zx"),
        (["--name"], "flag needs an argument: --name"),
        (["-n"], "flag needs an argument: 'n' in -n"),
        (["-an"], "flag needs an argument: 'n' in -n"),
        (["---"], "bad flag syntax: ---"),
        (["--=x"], "bad flag syntax: --=x"),
        (["-n", "x"],
         'invalid argument "x" for "-n, --last" flag: strconv.ParseInt: parsing "x": invalid syntax'),
        (["--all=maybe"],
         'invalid argument "maybe" for "-a, --all" flag: strconv.ParseBool: parsing "maybe": invalid syntax'),
        (["-m", "4q"], 'invalid argument "4q" for "-m, --memory" flag: invalid suffix: \'q\''),
    ],
)  # fmt: skip
def test_mistakes(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageFailure) as failure:
        parse(arguments, TABLE)
    assert failure.value.message == message
    assert failure.value.code == 125


def test_help_is_asked_for() -> None:
    with pytest.raises(HelpAsked) as asked:
        parse(["--name", "x", "--help"], TABLE)
    assert not asked.value.deprecated
    with pytest.raises(HelpAsked) as asked:
        parse(["-h"], TABLE)
    assert asked.value.deprecated
    assert parse(["--help=false"], TABLE)[1] == []
    own = (*TABLE, Flag("hostname", "h", STRING, "name"))
    assert parse(["-h", "web"], own)[0].text("hostname") == "web"
