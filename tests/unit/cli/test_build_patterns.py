"""The CLI's patterns of `.dockerignore` mean what the engine's do; directories are listed by them."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.builder.dockerfile.errors import DockerfileError
from wherry.builder.dockerfile.ignore import Patterns as EnginePatterns
from wherry.cli.build_tree import follow_links, literal, walk
from wherry.cli.patterns import PatternError, Patterns

LINES = st.lists(st.text("ab.*?[]^-\\!/", max_size=8), max_size=3)
NAMES = st.text("ab.", min_size=1, max_size=3).filter(lambda name: name not in (".", ".."))
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)


@settings(max_examples=200, deadline=None)
@given(LINES, PATHS)
def test_they_mean_what_the_engine_means(lines: list[str], path: str) -> None:
    try:
        engine = EnginePatterns(lines)
    except DockerfileError as exc:
        if "too" not in exc.message:  # bounds on the engine's time are its own
            with pytest.raises(PatternError):
                Patterns(lines)
        return
    assert Patterns(lines).matches(path) == engine.matches(path)


@pytest.mark.parametrize("line", ["[", "[]", "a\\", "[a-", "!"])
def test_what_is_no_pattern_is_refused(line: str) -> None:
    with pytest.raises(PatternError):
        Patterns([line])


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for path in ("a.txt", "b.md", "docs/x.md", "docs/keep.md", "src/deep/er/y.c", "src/z.c", "node_modules/m/i.js"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)
    (root / "link").symlink_to("src/deep")
    (root / "absolute").symlink_to("/docs/x.md")
    (root / "loop").symlink_to("loop")
    (root / "empty").mkdir()
    return root


def listed(root: Path, **patterns: list[str]) -> list[str]:
    return [entry.path for entry in walk(str(root), **patterns)]


def test_everything_is_listed_parents_first(tree: Path) -> None:
    found = listed(tree)
    assert found == [
        "a.txt", "absolute", "b.md", "docs", "docs/keep.md", "docs/x.md", "empty", "link", "loop", "node_modules",
        "node_modules/m", "node_modules/m/i.js", "src", "src/deep", "src/deep/er", "src/deep/er/y.c", "src/z.c",
    ]  # fmt: skip


def test_an_entry_tells_what_the_file_is(tree: Path) -> None:
    os.utime(tree / "a.txt", ns=(5, 7))
    entries = {entry.path: entry for entry in walk(str(tree))}
    assert (entries["a.txt"].size, entries["a.txt"].mtime, entries["a.txt"].mode) == (5, 7, 0o100644)
    assert entries["link"].link == "src/deep"
    assert entries["docs"].size == 0


def test_what_is_excluded_is_not_listed_and_exceptions_are(tree: Path) -> None:
    found = listed(tree, exclude=["docs", "!docs/keep.md", "**/*.js", "src/*/*"])
    assert "docs/x.md" not in found
    assert "docs/keep.md" in found
    assert found.index("docs") < found.index("docs/keep.md"), "a parent of what is put back is needed"
    assert "node_modules/m" in found
    assert "node_modules/m/i.js" not in found
    assert "src/deep/er" not in found


def test_a_directory_that_is_excluded_is_not_even_looked_into(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: seen.append(path) or scandir(path))  # type: ignore[func-returns-value]
    listed(tree, exclude=["node_modules"])
    assert not any("node_modules" in str(path) for path in seen)


@pytest.mark.parametrize(
    ("follow", "expected"),
    [
        (["a.txt"], ["a.txt"]),
        (["src/z.c"], ["src", "src/z.c"]),
        (["./docs/"], ["docs", "docs/keep.md", "docs/x.md"]),
        (["*.txt", "nothing"], ["a.txt"]),
        (["link/er"], ["link", "src", "src/deep", "src/deep/er", "src/deep/er/y.c"]),
        (["absolute"], ["absolute", "docs", "docs/x.md"]),
        (["loop"], ["loop"]),
        (["../../a.txt"], ["a.txt"]),
        (["src/*.c"], ["src", "src/z.c"]),
    ],
)
def test_only_what_is_asked_for_is_listed_with_what_links_lead_to(
    tree: Path, follow: list[str], expected: list[str]
) -> None:
    assert listed(tree, follow=follow) == expected


def test_the_root_is_everything(tree: Path) -> None:
    assert listed(tree, follow=["."]) == listed(tree)


def test_links_are_resolved_inside_the_root(tree: Path) -> None:
    (tree / "out").symlink_to("../../../etc/passwd")
    assert follow_links(str(tree), ["out"]) == ["out", "etc/passwd"]


@pytest.mark.parametrize(
    ("pattern", "prefix"), [("a/b/*.c", "a/b"), ("*.c", ""), ("a", "a"), ("./a/[b]", "a"), ("a/**/b", "a")]
)
def test_a_pattern_begins_with_whole_names(pattern: str, prefix: str) -> None:
    assert literal(pattern) == prefix
