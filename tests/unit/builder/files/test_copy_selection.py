"""What of a source a copy takes: wildcards, links, --parents, --exclude, and what is said when it is not there."""

import os

import pytest

from wherry.builder.files.select import select
from wherry.builder.files.taken import Filter, visits
from wherry.builder.graph import Copy
from wherry.errors import InvalidParameter, NotFound

FILES = {
    "a.txt": "a",
    "b.txt": "b",
    "c.md": "c",
    ".hidden": "h",
    "[x].txt": "x",
    "dir/one.txt": "1",
    "dir/two.md": "2",
    "dir/deep/three.txt": "3",
    "dir2/one.txt": "d2",
    "link.txt": "-> a.txt",
    "dirlink": "-> dir",
    "broken": "-> none",
}


@pytest.fixture
def taken(place):
    """Names of the files a copy of `source` into /w/ brings there."""
    place.source.fill(FILES)

    def copy(source, **options):
        place.copy(source, "/w/", **options)
        found = {name.removeprefix("w/"): content for name, content in place.target.see().items()}
        return {name: content for name, content in found.items() if name}

    return copy


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("a.txt", "a.txt"),
        ("/a.txt", "a.txt"),
        ("./dir/../a.txt", "a.txt"),
        ("../../a.txt", "a.txt"),
        ("a.txt/", "a.txt"),
        ("*.md", "c.md"),
        ("[ab].txt", "a.txt b.txt"),
        ("[[]x].txt", "[x].txt"),
        (".*", ".hidden"),
        ("dir/*.txt", "one.txt"),
        ("dir*/one.txt", "one.txt"),
        ("*/deep/*", "three.txt"),
        ("dir", "one.txt two.md deep/three.txt"),
        ("dir?", "one.txt"),
        ("none*", ""),
        ("dirlink/one.txt", "one.txt"),
        ("dirlink/*.md", "two.md"),
        ("dirlink", "one.txt two.md deep/three.txt"),
    ],
)
def test_a_source_takes_what_buildkit_would(taken, source, names):
    assert set(taken(source)) == set(names.split())


def test_a_link_that_is_named_brings_what_it_leads_to_under_its_own_name(taken):
    assert taken("link.txt") == {"link.txt": "a"}


def test_links_found_by_a_wildcard_are_followed_and_those_in_a_directory_are_not(taken):
    assert taken("l*")["link.txt"] == "a"
    assert taken(".")["link.txt"] == "-> a.txt"


def test_a_link_is_copied_as_one_where_it_is_not_to_be_followed(taken):
    assert taken("link.txt", follow_symlink=False) == {"link.txt": "-> a.txt"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a.tx", '"/a.tx": not found (did you mean /a.txt?)'),
        ("dri/one.txt", '"/dri/one.txt": not found (did you mean /dir?)'),
        ("dir/one.text", '"/dir/one.text": not found (did you mean /dir/one.txt?)'),
        ("nothing/like/it", '"/nothing/like/it": not found'),
        ("a.txt/x", '"/a.txt/x": not found'),
        ("nowhere/*.txt", '"/nowhere/*.txt": not found'),
        ("broken", '"/broken": not found'),
    ],
)
def test_what_is_missing_is_named_in_buildkits_words_with_the_near_miss(taken, source, message):
    with pytest.raises(NotFound) as caught:
        taken(source)
    assert caught.value.message == message


def test_a_wildcard_without_match_is_an_error_unless_allowed(taken):
    with pytest.raises(NotFound, match=r"^none\* not found$"):
        taken("none*", empty_wildcard=False)


def test_a_wrong_wildcard_is_refused(taken):
    with pytest.raises(InvalidParameter, match="syntax error in pattern"):
        taken("[a")


def test_without_wildcards_a_name_is_taken_as_it_is(place):
    place.source.fill({"*": "star", "a": "a"})
    place.copy("*", "/w/", wildcard=False)
    assert place.target.see() == {"w/*": "star"}


@pytest.mark.parametrize(
    ("source", "exclude", "names"),
    [
        (".", ["*.txt", "dirlink", "broken"], "c.md .hidden dir/one.txt dir/two.md dir/deep/three.txt dir2/one.txt"),
        ("dir", ["**/*.txt"], "two.md deep/"),
        ("dir", ["deep"], "one.txt two.md"),
        ("dir", ["*", "!deep/three.txt"], "deep/three.txt"),
        ("dir", ["*", "!two.md"], "two.md"),
        ("*.*", ["*.md", "l*"], ".hidden [x].txt a.txt b.txt"),
        ("dir*", ["dir2"], "one.txt two.md deep/three.txt"),
        ("a.txt", ["*.txt"], "a.txt"),
    ],
)
def test_exclude_takes_out_as_a_dockerignore_does(taken, source, exclude, names):
    assert set(taken(source, exclude=tuple(exclude))) == set(names.split())


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("dir/deep/three.txt", "dir/deep/three.txt"),
        ("./dir/./deep/three.txt", "deep/three.txt"),
        ("dir/./*.md", "two.md"),
        ("*/one.txt", "dir/one.txt dir2/one.txt"),
        ("dir/**/*.txt", "dir/one.txt dir/deep/three.txt"),
        ("dir/deep", "dir/deep/three.txt"),
        ("dir/./", "one.txt two.md deep/three.txt"),
        ("nothing*/here", ""),
    ],
)
def test_parents_keeps_the_directories_behind_the_pivot(taken, source, names):
    assert set(taken(source, parents=True)) == set(names.split())


def test_parents_of_something_missing_is_an_error(taken):
    with pytest.raises(NotFound, match=r'^"/dir/deep/four\.txt": not found'):
        taken("dir/./deep/four.txt", parents=True)


def test_parents_behind_a_link_are_an_error_and_not_nothing(taken):
    with pytest.raises(InvalidParameter, match=r"^/dirlink/one\.txt lies behind a symbolic link.*name /dir/one\.txt$"):
        taken("dirlink/one.txt", parents=True)


def test_parents_that_are_there_keep_everything_but_their_mode(place):
    place.source.fill({"p/f": "f"})
    (place.source.path / "p").chmod(0o750)
    place.target.fill({"p/": ""})
    place.target.age(77)
    place.copy("p/f", "/", parents=True, mode="600", epoch=5 * 10**9)
    assert (place.target.mode("p"), place.target.status("p").st_mtime) == (0o750, 5)
    assert place.target.mode("p/f") == 0o600


def test_parents_and_exclude_go_together(taken):
    assert set(taken("dir", parents=True, exclude=("dir/deep", "**/*.md"))) == {"dir/one.txt"}


def test_the_parents_copied_have_the_attributes_of_the_source(place):
    place.source.fill({"p/q/f": "f", "p/other": "o"})
    (place.source.path / "p").chmod(0o750)
    (place.source.path / "p/q").chmod(0o711)
    place.source.age()
    place.copy("p/q/f", "/w/", parents=True)
    assert (place.target.mode("w/p"), place.target.mode("w/p/q")) == (0o750, 0o711)
    assert place.target.status("w/p").st_mtime == place.source.status("p").st_mtime


def test_what_cannot_match_is_not_walked_through(source):
    source.fill({"wanted/deep/f": "f", "other/deep/f": "f", "wanted/else/f": "f"})
    seen = []

    class Watching(Filter):
        def takes(self, path):
            seen.append(path)
            return super().takes(path)

    assert [visit.path for visit in visits(source.fd, Watching(["wanted/deep/*"]))] == [b"", b"wanted", b"wanted/deep"]
    assert set(seen) == {"wanted", "other", "wanted/deep", "wanted/else", "wanted/deep/f"}


def test_a_directory_taken_out_is_not_walked_through_without_exceptions(source):
    source.fill({"node_modules/x/y": "", "a": ""})
    entered = [visit.path for visit in visits(source.fd, Filter([], ["node_modules"]))]
    assert entered == [b""]


def test_names_that_are_no_utf8_are_selected_like_others(place):
    name = os.fsdecode(b"caf\xe9")
    place.source.fill({f"d/{name}": "x", f"{name}.txt": "y"})
    place.copy("d", "/w/")
    place.copy("caf?.txt", "/v/")
    assert place.target.see() == {f"w/{name}": "x", f"v/{name}.txt": "y"}


def test_a_selection_says_whether_names_were_found(source):
    source.fill(FILES)
    found = select(source.fd, Copy(source="*.txt", target="/"))
    assert found.by_wildcard
    assert [chosen.name for chosen in found.chosen] == [b"[x].txt", b"a.txt", b"b.txt", b"link.txt"]
    assert not select(source.fd, Copy(source="a.txt", target="/")).by_wildcard
