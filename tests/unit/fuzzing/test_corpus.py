"""Everything that fuzzing ever found worth keeping, read again."""

import os
from pathlib import Path

import pytest

from fuzz.__main__ import CORPUS
from fuzz.targets import TARGETS, run


@pytest.mark.parametrize("name", TARGETS)
def test_every_kept_input_is_answered_in_words(name: str):
    if name == "layer" and os.geteuid():
        pytest.skip("files of any owner are made by root only")
    inputs = sorted((CORPUS / name).iterdir())
    assert len(inputs) >= 3
    for path in inputs:
        try:
            run(name, path.read_bytes())
        except BaseException as exc:
            raise AssertionError(f"{path}: {type(exc).__name__}: {exc}") from exc


def test_the_corpus_is_small():
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1 << 20
    assert {path.parent.name for path in files} == TARGETS.keys()
    assert not [path for path in files if path.name.startswith("crash-")], "found, and not mended"


def test_a_target_that_fails_otherwise_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(data: bytes) -> None:
        raise IndexError(data)

    monkeypatch.setitem(TARGETS, "tar", broken)
    with pytest.raises(IndexError):
        run("tar", b"x")
