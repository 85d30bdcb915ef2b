"""Blocks that the state file has in reserve for the day the disk is full."""

from pathlib import Path

from wherry.state import LOG_RESERVE, Put, State


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_the_log_has_its_blocks_before_it_needs_them(tmp_path: Path) -> None:
    state = State(tmp_path / "state.db")
    log = tmp_path / "state.db-wal"
    assert blocks(log) >= LOG_RESERVE
    assert log.stat().st_size < LOG_RESERVE
    held = blocks(log)
    for number in range(2000):  # several times around
        state.write(Put("settings", f"key{number % 10}", b"x" * 1000))
    assert blocks(log) == held
    state.close()
    again = State(tmp_path / "state.db")
    assert len(again.rows("settings")) == 10
    again.close()


def test_the_file_has_blocks_beyond_its_end(tmp_path: Path) -> None:
    State(tmp_path / "state.db").close()
    size = (tmp_path / "state.db").stat().st_size
    state = State(tmp_path / "state.db")
    assert (tmp_path / "state.db").stat().st_size == size
    assert blocks(tmp_path / "state.db") >= size + (1 << 20)
    state.close()
