"""Columns as Go's tabwriter draws them for docker."""

from wherry.cli.table import align


def test_columns_are_at_least_ten_wide_and_three_apart() -> None:
    text = align(["A\tB\tC", "short\t0123456789\tlast", "\t\tx"])
    assert text == (
        "A         B            C\n"
        "short     0123456789   last\n"
        "                       x\n"
    )  # fmt: skip


def test_a_line_without_the_column_ends_its_block() -> None:
    text = align(["aaaaaaaaaaaa\tx", "no columns here, however long", "b\ty"])
    assert text == "aaaaaaaaaaaa   x\nno columns here, however long\nb         y\n"


def test_top_uses_wider_columns() -> None:
    assert align(["PID\tCMD", "1\tsleep 1"], min_width=20) == "PID                 CMD\n1                   sleep 1\n"


def test_nothing_is_nothing() -> None:
    assert align([]) == ""
    assert align(["one"]) == "one\n"
