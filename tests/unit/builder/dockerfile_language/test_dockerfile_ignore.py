"""`.dockerignore`: docker's pattern rules."""

import pytest

from wherry.builder.dockerfile.errors import DockerfileError
from wherry.builder.dockerfile.ignore import MAX_PATTERNS, MAX_SIZE, Patterns, read_ignore


def test_a_file_is_read_into_clean_patterns():
    data = b"\xef\xbb\xbf# comment\n  /foo/ \r\n! /bar//x \n\n../y\n #no comment\n./a/../b\n/\n.\n///z\ncaf\xe9\n"
    assert read_ignore(data) == (
        "foo", "!bar/x", "../y", "#no comment", "b", "/", ".", "z", "caf\udce9",
    )  # fmt: skip


def test_a_file_that_is_too_big_is_refused():
    with pytest.raises(DockerfileError, match=r"\.dockerignore has \d+ bytes"):
        read_ignore(b"a" * (MAX_SIZE + 1))
    with pytest.raises(DockerfileError, match="10001 patterns"):
        Patterns(["a"] * (MAX_PATTERNS + 1))


@pytest.mark.parametrize(
    ("pattern", "taken", "kept"),
    [
        ("foo", "foo foo/bar foo/a/b", "food a/foo"),
        ("*", "foo a/b .x", ""),
        ("*.md", "a.md .md", "a/b.md a.mdx"),
        ("*/*.md", "a/b.md", "b.md a/b/c.md"),
        ("**", "f f/g", ""),
        ("**/**", "dir/dir/file", ""),
        ("dir/**", "dir/file dir/d/file", "dir"),
        ("**/dir", "dir a/dir a/b/dir dir/file a/dir/file", "adir"),
        ("**/dir2/*", "dir/dir2/file dir2/x", "dir2"),
        ("**file", "file dir/file dir/xfile", "files"),
        ("**/file*", "file.txt a/b/file", "a/b/xfile"),
        ("**/*.go", "a.go x/y/a.go", "a.gox"),
        ("a/**/b", "a/b a/x/b a/x/y/b", "a/xb ab b"),
        ("a**/*.txt", "a/x.txt a/d/x.txt ab/x.txt", "b/x.txt"),
        ("a**b", "ab ax/b ax/y/b", "axb"),
        ("a*b**c", "abbc axbc abx/c", "ab"),
        ("**/a/**/b/**/c", "a/b/c x/a/a/y/b/c/b/z/c", "a/c/b"),
        ("a?c", "abc", "ac abbc a/c"),
        ("a[b-d]e", "ace", "ae aae afe"),
        ("a[^b-d]e", "aze a/e", "ace"),
        ("ab[^a]b*", "ab/b abxbc", "abab"),
        ("*[^a]b*", "a/b xxb", "ab"),
        ("***.md", "a.md x/y/a.md", "a.mdx"),
        ("[^a]**/**b", "x/y/b xb", "ab"),
        ("[-x]", "", ""),
        ("[\\]a]b", "]b ab", "bb"),
        (".*", ".foo", "foo"),
        ("abc.def", "abc.def", "abcxdef"),
        ("a.|)$(}+{bc", "a.|)$(}+{bc", ""),
        ("a\\*b", "a*b", "axb"),
        ("a\\\\b", "a\\b", "ab"),
        ("../x", "", "x"),
        ("a/../b", "b", "a"),
        ("a\nb*", "a\nbc", "a"),
        ("docs/", "docs docs/x", "doc"),
    ],
    ids=repr,
)
def test_a_pattern_takes(pattern, taken, kept):
    if pattern == "[-x]":
        with pytest.raises(DockerfileError, match="syntax error in pattern"):
            Patterns([pattern])
        return
    patterns = Patterns([pattern])
    split = [taken] if "\n" in taken else taken.split(" ")
    assert [path for path in split if path and not patterns.matches(path)] == []
    assert [path for path in kept.split(" ") if path and patterns.matches(path)] == []


@pytest.mark.parametrize(
    ("lines", "path", "taken"),
    [
        (["docs", "!docs/README.md"], "docs/README.md", False),
        (["docs", "!docs/README.md"], "docs/other", True),
        (["!docs/README.md", "docs"], "docs/README.md", True),
        (["*", "!src"], "src/a/b", False),
        (["*", "!src", "src/a/b"], "src/a/b", True),
        (["*", "!src", "src/*.o", "!src/keep.o"], "src/x.o", True),
        (["*", "!src", "src/*.o", "!src/keep.o"], "src/keep.o", False),
        (["**", "!util/web"], "util/web/foo", False),
        (["*", "!*/x"], "a/x", False),
        (["a", "!a/b", "a"], "a/b", False),  # so docker's clients do: the third is not asked of a
        (["**/b", "!*"], "a/b", True),
        (["**/b", "!*"], "b", False),
        (["!a"], "a", False),
        ([], "a", False),
        (["*"], ".", False),
        (["*"], "/a/", True),
    ],
)
def test_the_last_line_that_matches_decides(lines, path, taken):
    assert Patterns(lines).matches(path) is taken


@pytest.mark.parametrize("line", ["!", "[", "a[", "[]a]", "[a-", "a\\", "[a\\", "a" * 5000, "*a" * 60, "a**b**c**d"])
def test_a_malformed_pattern_is_refused(line):
    with pytest.raises(DockerfileError, match="pattern"):
        Patterns([line])


def test_a_directory_need_not_be_entered_when_nothing_below_it_can_come_back():
    patterns = Patterns(["*", "!src/keep", "!**/x.md", "!a*/b"])
    assert not Patterns(["a"]).skips_below("b")
    assert Patterns(["a"]).skips_below("a")
    assert Patterns(["*", "!src/keep"]).skips_below("other")
    assert not Patterns(["*", "!src/keep"]).skips_below("src")
    assert not Patterns(["*", "!src"]).skips_below("src")
    assert not patterns.skips_below("other"), "**/x.md may be anywhere"
    assert not Patterns(["*", "!a*/b"]).skips_below("abc")
    assert not Patterns(["*", "!a/b/c"]).skips_below("a/b")
    assert Patterns(["*", "!a/b/c"]).skips_below("a/x")


def test_exceptions_are_known():
    assert Patterns(["a", "!b"]).puts_back
    assert not Patterns(["a", "b"]).puts_back
    assert not Patterns([" ", ""])


def test_no_pattern_takes_long():
    """Each of these would not end, if all ways to match were tried."""
    assert not Patterns(["*a" * 20 + "b"]).matches("a" * 255)
    assert not Patterns(["**/a/" * 20 + "b"]).matches("a/" * 2000 + "c")
    assert not Patterns(["a**a*a*a*a*b"]).matches("a" * 200)
    assert not Patterns(["[a-z]*" * 20 + "0"]).matches("a" * 255)
    patterns = Patterns(["**/node_modules", "*.md", "!README.md", "**/*.pyc", "dist", ".git"])
    taken = sum(patterns.matches(f"src/d{number % 50}/file{number}.py") for number in range(20_000))
    assert taken == 0
