"""Times after a program ran, and what Python's compiled modules say of them."""

import os
import py_compile
import subprocess
import sys
from pathlib import Path

import pytest

from wherry.builder.files.times import settle_times
from wherry.storage.extract import Whiteouts

EPOCH = 1_600_000_000
NS = 10**9


@pytest.fixture
def settle(target):
    def run(epoch=EPOCH, whiteouts=Whiteouts.OVERLAY, **options):
        settle_times(target.path, epoch * NS, whiteouts, **options)
        return lambda name: target.status(name).st_mtime

    return run


def test_what_is_younger_than_the_epoch_gets_its_time(target, settle):
    target.fill({"old": "", "new": "", "d/old": "", "d/new": "", "l": "-> old", "e/": ""})
    for name in ("new", "d/new", "l", "e", "."):
        os.utime(target.path / name, (EPOCH + 7, EPOCH + 7), follow_symlinks=False)
    time = settle()
    assert {name: time(name) for name in ("old", "d", "d/old")} == {"old": 1.58e9, "d": 1.58e9, "d/old": 1.58e9}
    assert {time(name) for name in ("new", "d/new", "l", "e", ".")} == {EPOCH}


def test_a_fraction_of_a_second_is_younger(target, settle):
    target.fill({"f": ""})
    os.utime(target.path / "f", ns=(EPOCH * NS + 1, EPOCH * NS + 1))
    settle()
    assert target.status("f").st_mtime_ns == EPOCH * NS


def test_a_link_is_settled_and_not_what_it_leads_to(target, settle, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("x")
    before = outside.stat().st_mtime_ns
    (target.path / "l").symlink_to(outside)
    settle()
    assert outside.stat().st_mtime_ns == before
    assert target.status("l").st_mtime == EPOCH


def test_an_fd_does_as_well_as_a_path(target):
    target.fill({"f": ""})
    target.age(EPOCH + 1)
    settle_times(target.fd, EPOCH * NS, Whiteouts.OVERLAY)
    assert target.status("f").st_mtime == EPOCH


def test_settling_twice_changes_nothing(target, settle):
    target.fill({"d/f": ""})
    target.age(EPOCH + 1)
    settle()
    before = {name: target.status(name).st_ctime_ns for name in ("d", "d/f", ".")}
    settle()
    assert {name: target.status(name).st_ctime_ns for name in before} == before


def test_where_the_layers_below_are_in_the_same_directory_only_changes_count(target, source, settle):
    for tree in (source, target):
        tree.fill({"d/same": "", "d/changed": "", "e/same": ""})
        tree.age(EPOCH + 50)
    os.utime(target.path / "d/changed", (EPOCH + 60, EPOCH + 60))
    (target.path / "new").write_text("")
    os.utime(target.path, (EPOCH + 60, EPOCH + 60))
    time = settle(whiteouts=Whiteouts.APPLY, below=source.fd)
    assert {time(name) for name in ("d", "d/same", "e", "e/same")} == {EPOCH + 50}
    assert {time(name) for name in ("d/changed", "new", ".")} == {EPOCH}


def compiled(source: Path, mode: py_compile.PycInvalidationMode = py_compile.PycInvalidationMode.TIMESTAMP) -> Path:
    return Path(py_compile.compile(os.fspath(source), invalidation_mode=mode, doraise=True))


def header(path: Path) -> bytes:
    return path.read_bytes()[:16]


def test_python_does_not_compile_again_what_was_settled(target, settle):
    target.fill({"lib/pkg/mod.py": "x = 1\n", "lib/pkg/__init__.py": ""})
    target.age(EPOCH + 1000)
    for name in ("mod", "__init__"):
        compiled(target.path / f"lib/pkg/{name}.py")
    settle()
    code = "import sys; sys.dont_write_bytecode = False; import pkg.mod"
    done = subprocess.run(
        [sys.executable, "-v", "-S", "-c", code],
        env={"PYTHONPATH": os.fspath(target.path / "lib")},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    matched = [line for line in done.stderr.splitlines() if "matches" in line and "/pkg/" in line]
    assert len(matched) == 2, done.stderr[-3000:]
    assert "is stale" not in "\n".join(line for line in done.stderr.splitlines() if "/pkg/" in line)


def test_the_time_in_a_compiled_module_is_the_same_whenever_it_was_made(target, settle):
    seen = set()
    for age in (100, 200):
        target.fill({"m.py": "x = 1\n"})
        target.age(EPOCH + age)
        path = compiled(target.path / "m.py")
        settle()
        seen.add(path.read_bytes())
        assert path.stat().st_mtime == EPOCH
        path.unlink()
    assert len(seen) == 1


def test_a_compiled_module_whose_source_was_not_settled_stays(target, settle):
    target.fill({"m.py": "x = 1\n"})
    path = compiled(target.path / "m.py")
    before = header(path)
    settle()
    assert header(path) == before
    assert path.stat().st_mtime == EPOCH


def test_a_compiled_module_that_was_stale_stays_stale(target, settle):
    target.fill({"m.py": "x = 1\n"})
    path = compiled(target.path / "m.py")
    target.age(EPOCH + 100)
    before = header(path)
    settle()
    assert header(path) == before


@pytest.mark.parametrize("mode", ["CHECKED_HASH", "UNCHECKED_HASH"])
def test_a_compiled_module_that_knows_its_source_by_hash_stays(target, settle, mode):
    target.fill({"m.py": "x = 1\n"})
    target.age(EPOCH + 100)
    path = compiled(target.path / "m.py", py_compile.PycInvalidationMode[mode])
    before = header(path)
    settle()
    assert header(path) == before


def test_what_only_looks_like_a_compiled_module_does_no_harm(target, settle):
    target.fill({"m.py": "", "n.py": "", "__pycache__/m.cpython-311.pyc": "short", "__pycache__/n.pyc/": ""})
    os.mkfifo(target.path / "__pycache__/m.fifo.pyc")
    (target.path / "__pycache__/m.link.pyc").symlink_to("/nowhere")
    target.age(EPOCH + 100)
    settle()
    assert (target.path / "__pycache__/m.cpython-311.pyc").read_text() == "short"
    assert target.status("__pycache__/m.link.pyc").st_mtime == EPOCH


def test_the_epoch_may_be_0_and_before(target, settle):
    target.fill({"m.py": "x = 1\n"})
    target.age(100)
    path = compiled(target.path / "m.py")
    settle(0)
    assert (target.status("m.py").st_mtime, header(path)[8:12]) == (0, bytes(4))
    settle(-5)
    assert target.status("m.py").st_mtime == -5
    assert header(path)[8:12] == (0xFFFFFFFB).to_bytes(4, "little")
