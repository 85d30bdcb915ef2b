"""What a stream of messages looks like, on a terminal of several widths and elsewhere."""

import pytest

from wherry.cli.progress import Display, StreamError, draw_progress

STREAM = [
    {"status": "Pulling from library/busybox", "id": "latest"},
    {"status": "Pulling fs layer", "progressDetail": {}, "id": "aaa"},
    {"status": "Pulling fs layer", "progressDetail": {}, "id": "bbb"},
    {"status": "Downloading", "progressDetail": {"current": 500_000, "total": 1_000_000}, "id": "aaa"},
    {"status": "Pull complete", "progressDetail": {}, "id": "bbb"},
    {"status": "Digest: sha256:1"},
]


def show(messages: list[dict[str, object]], *, terminal: bool, width: int = 200) -> str:
    written: list[str] = []
    display = Display(written.append, terminal=terminal, width=width)
    for message in messages:
        display.show(message)
    return "".join(written)


def test_elsewhere_every_change_of_status_is_a_line_and_bars_are_left_out() -> None:
    assert show(STREAM, terminal=False) == (
        "latest: Pulling from library/busybox\n"
        "aaa: Pulling fs layer\n"
        "bbb: Pulling fs layer\n"
        "bbb: Pull complete\n"
        "Digest: sha256:1\n"
    )


def test_on_a_terminal_every_layer_keeps_its_line() -> None:
    shown = show(STREAM, terminal=True)
    bar = f"[{'=' * 25}>{' ' * 25}]    500kB/1MB"
    assert shown == (
        "latest: Pulling from library/busybox\n"
        "\n\x1b[1A\x1b[2K\raaa: Pulling fs layer \r\x1b[1B"
        "\n\x1b[1A\x1b[2K\rbbb: Pulling fs layer \r\x1b[1B"
        f"\x1b[2A\x1b[2K\raaa: Downloading {bar}\r\x1b[2B"
        "\x1b[1A\x1b[2K\rbbb: Pull complete \r\x1b[1B"
        "Digest: sha256:1\n"
    )


def test_the_lines_of_a_finished_block_are_not_moved_to_again() -> None:
    layer: dict[str, object] = {"status": "x", "progressDetail": {}, "id": "aaa"}
    shown = show([layer, {"status": "between"}, layer], terminal=True)
    assert shown.count("\n\x1b[1A") == 2


@pytest.mark.parametrize(
    ("detail", "width", "text"),
    [
        ({}, 200, ""),
        ({"current": 1500}, 200, "   1.5kB"),
        ({"current": 3, "units": "steps"}, 200, "3 steps"),
        ({"current": 0, "total": 100}, 111, f"[>{' ' * 50}]       0B/100B"),
        ({"current": 50, "total": 100}, 110, "     50B/100B"),
        ({"current": 100, "total": 100}, 111, f"[{'=' * 50}>]     100B/100B"),
        ({"current": 150, "total": 100}, 111, f"[{'=' * 50}>]     150B"),
        ({"current": 1, "total": 4, "units": "files"}, 80, "1/4 files"),
        ({"current": 1, "total": 4, "hidecounts": True}, 111, f"[{'=' * 12}>{' ' * 38}] "),
        ({"current": 25, "total": 100, "start": 70}, 80, "     25B/100B 90s"),
    ],
)
def test_a_bar(detail: dict[str, object], width: int, text: str) -> None:
    assert draw_progress(detail, width, now=100) == text


def test_a_failure_in_the_stream() -> None:
    with pytest.raises(StreamError, match="denied") as failure:
        show([{"errorDetail": {"message": "denied", "code": 7}, "error": "denied"}], terminal=False)
    assert failure.value.code == 7
    with pytest.raises(StreamError, match="plain"):
        show([{"error": "plain"}], terminal=True)


def test_text_streams_pass_through() -> None:
    assert show([{"stream": "Loaded image: a\n"}, {"stream": "x"}], terminal=True) == "Loaded image: a\nx"
