"""What a build looks like: as lines, and on a terminal."""

import re

import pytest

from wherry.cli.build_board import Board, log_text
from wherry.cli.build_plain import Plain, failure_text, warnings_text
from wherry.cli.build_tty import Terminal, printable

S = 1_000_000_000
Event = dict[str, dict[str, object]]


def vertex(key: str, name: str = "", **fields: object) -> Event:
    return {"vertex": {"key": key, "name": name or key, **fields}}


def log(key: str, text: str, at: int = 0, stream: int = 1) -> Event:
    return {"log": {"vertex": key, "stream": stream, "text": text, "at": at}}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def plain(events: list[Event], *, clock: Clock | None = None) -> str:
    written: list[str] = []
    shown = Plain(written.append, clock or Clock())
    for event in events:
        shown.hear(event)
    shown.end()
    return "".join(written)


def test_a_step_is_told_from_its_beginning_to_its_end() -> None:
    text = plain(
        [
            vertex("a", "[1/2] FROM x", started=S, completed=S, cached=True),
            vertex("b", "[2/2] RUN make", started=S, why="`Makefile` changed"),
            log("b", "one\ntw", S + S // 2),
            log("b", "o\n", S + S // 2),
            log("b", "no end", 2 * S),
            {"status": {"vertex": "b", "id": "sending", "current": 1500, "total": 3000, "completed": 2 * S}},
            vertex("b", "[2/2] RUN make", started=S, completed=3 * S, why="`Makefile` changed"),
        ]
    )
    assert text == (
        "\n#1 [1/2] FROM x\n#1 CACHED\n"
        "\n#2 [2/2] RUN make\n"
        "#2 runs: `Makefile` changed\n"
        "#2 0.500 one\n#2 0.500 two\n"
        "#2 sending 1.5kB / 3kB done\n"
        "#2 2.000 no end\n"
        "#2 DONE 2.0s\n"
    )


def test_lines_of_one_step_stay_together_until_it_is_silent() -> None:
    clock = Clock()
    written: list[str] = []
    shown = Plain(written.append, clock)
    for event in (
        vertex("a", "RUN a", started=S),
        vertex("b", "RUN b", started=S),
        log("a", "a1\n"),
        log("b", "b1\n"),
        log("a", "a2\n"),
    ):
        shown.hear(event)
    assert "".join(written) == "\n#1 RUN a\n#1 0.000 a1\n#1 0.000 a2\n"
    clock.now = 2.0
    shown.tick()
    assert "".join(written).endswith("#1 ...\n\n#2 RUN b\n#2 0.000 b1\n")


def test_whoever_is_done_gives_the_word_to_who_waits() -> None:
    text = plain(
        [
            vertex("a", "RUN a", started=S),
            vertex("b", "RUN b", started=S),
            log("b", "b1\n"),
            vertex("a", "RUN a", started=S, completed=S),
            vertex("b", "RUN b", started=S, completed=S),
        ]
    )
    assert text == "\n#1 RUN a\n#1 DONE 0.0s\n\n#2 RUN b\n#2 0.000 b1\n#2 DONE 0.0s\n"


def test_a_step_that_only_waits_is_not_told_of() -> None:
    assert plain([vertex("a", "RUN a")]) == ""


@pytest.mark.parametrize(
    ("error", "shown"), [("exit code: 1", "ERROR: exit code: 1"), ("context canceled", "CANCELED")]
)
def test_a_step_that_failed_says_so(error: str, shown: str) -> None:
    assert plain([vertex("a", "RUN a", started=S, completed=S, error=error)]).endswith(f"#1 {shown}\n")


def test_output_that_is_no_text_is_shown_as_far_as_it_is() -> None:
    assert log_text({"data": "Yf//"}) == "a\ufffd\ufffd"


def test_an_event_of_a_newer_engine_is_passed_over() -> None:
    assert plain([{"novelty": {"vertex": "a"}}]) == ""


def test_a_failure_ends_with_the_last_lines_the_place_and_the_words() -> None:
    board = Board()
    board.hear(vertex("a", "[2/2] RUN make", started=S))
    for number in range(30):
        board.hear(log("a", f"line {number}\n", S))
    board.hear(vertex("a", "[2/2] RUN make", started=S, completed=S, error="exit code: 2"))
    text = failure_text(board, "exit code: 2", "Dockerfile:2\n----\n")
    assert text.startswith("------\n > [2/2] RUN make:\n[10 lines before are left out]\n0.000 line 10\n")
    assert text.endswith("0.000 line 29\n------\nDockerfile:2\n----\nERROR: failed to build: exit code: 2\n")


def test_warnings_come_last() -> None:
    board = Board()
    assert warnings_text(board) == ""
    board.hear({"warning": {"vertex": "a", "rule": "StageNameCasing", "short": "lower case", "lines": [[3, 3]]}})
    assert warnings_text(board) == "\n1 warning found:\n - StageNameCasing: lower case (line 3)\n"
    for _ in range(2):
        board.hear({"warning": {"vertex": "a", "rule": "R", "short": "R: x (line 4)", "lines": [[4, 4]]}})
    assert warnings_text(board).endswith(
        "2 warnings found:\n - StageNameCasing: lower case (line 3)\n - R: x (line 4)\n"
    )


# --- on a terminal ----------------------------------------------------------------------------------------------------


def screen(written: list[str], columns: int = 80) -> list[str]:
    """What a terminal shows after all that."""
    lines: list[str] = [""]
    row = 0
    for part in re.findall(r"\x1b\[\?25[lh]|\x1b\[\d*[AKJ]|\x1b\[[\d;]*m|\r|\n|[^\x1b\r\n]+", "".join(written)):
        if part == "\n":
            row += 1
            if row == len(lines):
                lines.append("")
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1])
        elif part.endswith("J") and part.startswith("\x1b"):
            del lines[row + 1 :]
            lines[row] = ""
        elif not part.startswith("\x1b") and part != "\r":
            lines[row] = part
            assert len(part) <= columns, part
    return lines


def terminal(events: list[Event], *, rows: int = 24, columns: int = 60, now: int = 3 * S) -> tuple[Terminal, list[str]]:
    written: list[str] = []
    shown = Terminal(written.append, lambda: (rows, columns), colours=False, now=lambda: now)
    shown._began = 0
    for event in events:
        shown.hear(event)
    shown._last = -S
    shown.tick()
    return shown, written


STEPS = [
    vertex("a", "[internal] load build context", started=S, completed=S, why="nothing of interest"),
    vertex("b", "[1/3] FROM x", started=S, completed=S, cached=True),
    vertex("c", "[2/3] COPY . /src", started=S, completed=2 * S, why="`main.c` changed"),
    vertex("d", "[3/3] RUN make", started=2 * S),
    *(log("d", f"cc {number}.c\n", 2 * S) for number in range(9)),
]


def test_steps_are_a_list_with_times_reasons_and_the_last_lines() -> None:
    _, written = terminal(STEPS)
    assert screen(written) == [
        "[+] Building 3.0s (3/4)",
        " => [internal] load build context                      0.0s",
        " => CACHED [1/3] FROM x                                0.0s",
        " => [2/3] COPY . /src                                  1.0s",
        " => => `main.c` changed",
        " => [3/3] RUN make                                     1.0s",
        *(f" => => # cc {number}.c" for number in range(3, 9)),
        "",
    ]


def test_it_is_redrawn_in_place() -> None:
    shown, written = terminal(STEPS)
    shown.hear(vertex("d", "[3/3] RUN make", started=2 * S, completed=3 * S))
    shown.end()
    lines = screen(written)
    assert lines[0] == "[+] Building 3.0s (4/4) FINISHED"
    assert not any("# cc" in line for line in lines), "of what is done only the line stays"
    assert len([line for line in lines if "RUN make" in line]) == 1


@pytest.mark.parametrize(("rows", "columns"), [(24, 20), (6, 60), (3, 12), (1, 1)])
def test_it_fits_into_any_window(rows: int, columns: int) -> None:
    steps = [vertex(f"s{n}", f"RUN step number {n} with a long name", started=S) for n in range(40)]
    _, written = terminal([*STEPS, *steps], rows=rows, columns=columns)
    assert len(screen(written, max(columns, 20))) <= max(rows, 2)


def test_what_is_done_goes_first_when_there_is_no_room() -> None:
    done = [vertex(f"d{n}", f"RUN done {n}", started=S, completed=S) for n in range(20)]
    _, written = terminal([*done, vertex("x", "RUN still on", started=S)], rows=8)
    assert any("still on" in line for line in screen(written))


def test_programs_cannot_move_the_cursor() -> None:
    assert printable("\x1b[2J\x1b[1;31mred\x1b[0m\x07 \x1b]0;title\x07ok") == "red ok"
    assert printable("10%\r50%\r100%\r") == "100%"
    _, written = terminal([vertex("a", "RUN \x1b[2Jx", started=S), log("a", "\x1b[10Aup\n", S)])
    assert "\x1b[2J" not in "".join(written)
    assert "\x1b[10A" not in "".join(written)


def test_wide_characters_take_two_columns() -> None:
    _, written = terminal([vertex("a", "RUN 한국어" * 8, started=S)], columns=30)
    line = screen(written)[1]
    assert line.rstrip().endswith("2.0s")
    assert sum(2 if ord(c) > 0x1100 and c != "…" else 1 for c in line) <= 30
