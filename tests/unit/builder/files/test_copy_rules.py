"""Where a copy goes and what it does to what is there. Most cases were recorded from BuildKit (dockerd 26.1)."""

import os
import stat

import pytest

from wherry.builder.files.apply import apply
from wherry.builder.files.select import select
from wherry.builder.graph import Copy
from wherry.errors import InvalidParameter, NotFound

SOURCE = {
    "a.txt": "a",
    "b.txt": "b",
    "dir1/x": "1",
    "dir1/old": "new",
    "dir1/sub/y": "y",
    "dir1/inner": "-> ../a.txt",
    "dir2/x": "2",
    "dir2/z": "z",
    "dir2/deep/x": "-> nowhere",
    "empty/": "",
}
TARGET = {
    "exist/old": "old",
    "exist/sub/keep": "keep",
    "file": "file",
    "link": "-> exist",
    "absolute": "-> /exist",
    "up": "-> ../../exist",
    "filelink": "-> file",
    "dangling": "-> nowhere/x",
    "loop": "-> loop",
    "both/sub": "-> sub2",
    "both/sub2/": "",
}
DIR1 = {"x": "1", "old": "new", "sub/y": "y", "inner": "-> ../a.txt"}


def at(prefix, files):
    return {f"{prefix}/{name}": content for name, content in files.items()}


@pytest.fixture
def copied(place):
    """What a copy adds and changes; None for what is gone."""
    place.source.fill(SOURCE)
    place.target.fill(TARGET)
    before = place.target.see()

    def copy(source, target, **options):
        place.copy(source, target, **options)
        after = place.target.see()
        return {name: after.get(name) for name in before.keys() | after if before.get(name) != after.get(name)}

    return copy


@pytest.mark.parametrize(
    ("source", "target", "change"),
    [
        ("a.txt", "/new", {"new": "a"}),
        ("a.txt", "/new/", {"new/a.txt": "a"}),
        ("a.txt", "/new/.", {"new/a.txt": "a"}),
        ("a.txt", "/new/deep/name", {"new/deep/name": "a"}),
        ("a.txt", "/", {"a.txt": "a"}),
        ("a.txt", "relative", {"relative": "a"}),
        ("a.txt", "/../../x", {"x": "a"}),
        ("a.txt", "/exist", {"exist/a.txt": "a"}),
        ("a.txt", "/exist/old", {"exist/old": "a"}),
        ("a.txt", "/link", {"exist/a.txt": "a"}),
        ("a.txt", "/link/", {"exist/a.txt": "a"}),
        ("a.txt", "/absolute/q", {"exist/q": "a"}),
        ("a.txt", "/up/q", {"exist/q": "a"}),
        ("a.txt", "/filelink", {"file": "a"}),
        ("a.txt", "/dangling", {"nowhere/x": "a"}),
        ("a.txt", "/dangling/", {"nowhere/x/a.txt": "a"}),
        ("*.txt", "/exist/", {"exist/a.txt": "a", "exist/b.txt": "b"}),
        ("*.txt", "/exist", {"exist/a.txt": "a", "exist/b.txt": "b"}),
        ("dir1", "/exist", at("exist", DIR1)),
        ("dir1/", "/fresh", at("fresh", DIR1)),
        ("dir1", "/fresh/deep/", at("fresh/deep", DIR1)),
        ("dir1", "/link", at("exist", DIR1)),
        ("dir1", "/dangling", at("nowhere/x", DIR1)),
        ("dir?", "/w", at("w", DIR1 | {"x": "2", "z": "z", "deep/x": "-> nowhere"})),
        ("empty", "/new", {"new/": ""}),
        ("empty", "/exist", {}),
        ("dir2/deep/x", "/q", None),
    ],
)
def test_files_arrive_where_buildkit_puts_them(copied, source, target, change):
    if change is None:
        with pytest.raises(NotFound):
            copied(source, target)
        return
    assert copied(source, target) == change


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("a.txt", "/file/", "mkdir /file: not a directory"),
        ("a.txt", "/file/x", "mkdir /file: not a directory"),
        ("a.txt", "/exist/sub/", None),
        ("dir2", "/file", "cannot copy to non-directory: /file"),
        ("dir1", "/both", "cannot copy to non-directory: /both/sub (a symbolic link to sub2: name /both/sub2 as the"),
        ("a.txt", "/loop", "/loop: too many symbolic links"),
        (
            "*.txt",
            "/new",
            "When using COPY with more than one source file, the destination must be a directory and end",
        ),
        ("*/x", "/file", "When using COPY with more than one source file"),
        ("a.txt", "/" + "n" * 256, "file name too long"),
        ("a.txt", "/x\0y", "NUL"),
    ],
)
def test_what_cannot_be_is_refused(copied, source, target, message):
    if message is None:
        assert copied(source, target)
        return
    with pytest.raises(InvalidParameter) as caught:
        copied(source, target)
    assert message in caught.value.message


def test_a_file_does_not_replace_a_directory(place):
    place.source.fill({"d/sub": "file"})
    place.target.fill({"exist/sub/keep": "k"})
    with pytest.raises(InvalidParameter, match=r"^cannot replace to directory /exist/sub with file$"):
        place.copy("d", "/exist")


def test_a_copy_that_replaces_takes_away_whatever_stands_there(place):
    place.source.fill({"d/file": "f", "d/dir/x": "x", "d/was": "w"})
    place.target.fill({"t/file/gone": "g", "t/dir": "-> elsewhere", "t/was": "-> elsewhere", "t/stays": "s"})
    place.copy("d", "/t", replace=True)
    assert place.target.see() == {"t/file": "f", "t/dir/x": "x", "t/was": "w", "t/stays": "s"}


def test_a_directory_itself_is_copied_into_what_is_there_and_as_what_is_not(place):
    place.source.fill({"d/x": "x"})
    place.target.fill({"exist/": ""})
    place.copy("d", "/exist", contents=False)
    place.copy("d", "/fresh", contents=False)
    place.copy("/", "/exist", contents=False)
    assert place.target.see() == {"exist/d/x": "x", "fresh/x": "x"}


def test_where_no_directories_are_made_they_must_be_there(place):
    place.source.fill({"a": "a"})
    place.target.fill({"exist/": ""})
    place.copy("a", "/exist/b", make_target=False)
    with pytest.raises(NotFound, match=r"^failed to stat /no/b: lstat /no: no such file or directory$"):
        place.copy("a", "/no/b", make_target=False)
    assert place.target.see() == {"exist/b": "a"}


def test_modes_come_along_and_merged_directories_below_take_them_over(place):
    place.source.fill({"d/sub/x": "x", "d/new/y": "y", "d/run": "r"})
    for name, mode in (("d", 0o700), ("d/sub", 0o750), ("d/new", 0o1777), ("d/run", 0o4755), ("d/sub/x", 0o600)):
        (place.source.path / name).chmod(mode)
    place.target.fill({"t/sub/": ""})
    (place.target.path / "t").chmod(0o711)
    place.copy("d", "/t")
    found = {name: oct(place.target.mode(name)) for name in ("t", "t/sub", "t/new", "t/run", "t/sub/x", "t/new/y")}
    assert found == {
        "t": "0o711",  # the directory copied onto keeps its own
        "t/sub": "0o750",
        "t/new": "0o1777",
        "t/run": "0o4755",
        "t/sub/x": "0o600",
        "t/new/y": oct(place.source.mode("d/new/y")),
    }


def test_a_mode_given_is_for_files_and_directories_but_not_for_those_made_above(place):
    place.source.fill({"d/sub/x": "x", "d/link": "-> x"})
    place.copy("d", "/p/q", mode="700")
    assert [place.target.mode(name) for name in ("p", "p/q", "p/q/sub", "p/q/sub/x")] == [0o755, 0o755, 0o700, 0o700]
    place.copy("d/sub/x", "/words", mode="u=rwX,go=r")
    place.copy("d", "/words.d", mode="u=rwX,go=r")
    assert [place.target.mode(name) for name in ("words", "words.d/sub")] == [0o644, 0o744]


def test_a_setgid_directory_passes_its_group_on_to_those_made_in_it(place):
    place.source.fill({"a": "a"})
    place.target.fill({"t/": ""})
    (place.target.path / "t").chmod(0o2755)
    place.copy("a", "/t/made/a")
    assert place.target.mode("t/made") == 0o2755


def test_names_of_one_file_stay_names_of_one_file(place):
    place.source.fill({"d/a": "a", "d/sub/": "", "outside": "o"})
    os.link(place.source.path / "d/a", place.source.path / "d/sub/b")
    os.link(place.source.path / "outside", place.source.path / "d/o")
    place.copy("d", "/t")
    assert place.target.status("t/a").st_ino == place.target.status("t/sub/b").st_ino
    assert place.target.status("t/a").st_nlink == 2
    assert place.target.status("t/o").st_nlink == 1


def test_a_name_that_was_replaced_meanwhile_is_not_linked_to(place):
    place.source.fill({"1/f": "first", "2/f": "second", "3/": ""})
    os.link(place.source.path / "1/f", place.source.path / "3/g")
    place.copy("*", "/t/")
    assert place.target.see() == {"t/f": "second", "t/g": "first"}


def test_holes_stay_holes(place):
    path = place.source.path / "big"
    with open(path, "wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"middle")
    place.copy("big", "/t")
    found = place.target.status("t")
    assert found.st_size == 64 << 20
    assert found.st_blocks * 512 <= 1 << 20
    with open(place.target.path / "t", "rb") as file:
        file.seek(32 << 20)
        assert file.read(7) == b"middle\0"


@pytest.mark.parametrize("size", [0, 1, (1 << 17) - 1, 1 << 17, (1 << 17) + 1, 5_000_000])
def test_content_of_any_size_arrives_whole(place, size):
    content = os.urandom(size)
    (place.source.path / "f").write_bytes(content)
    place.copy("f", "/t")
    assert (place.target.path / "t").read_bytes() == content


def test_attributes_of_users_come_along_and_those_of_the_machine_do_not(place):
    place.source.fill({"d/sub/f": "f"})
    os.setxattr(place.source.path / "d/sub/f", "user.mark", b"\0binary")
    os.setxattr(place.source.path / "d/sub", "user.mark", b"directory")
    os.setxattr(place.source.path / "d/sub/f", "user.overlay.opaque", b"y")
    place.copy("d", "/t")
    assert os.listxattr(place.target.path / "t/sub/f") == ["user.mark"]
    assert os.getxattr(place.target.path / "t/sub/f", "user.mark") == b"\0binary"
    assert os.getxattr(place.target.path / "t/sub", "user.mark") == b"directory"


def test_a_fifo_is_copied_and_a_socket_left_out(place):
    place.source.fill({"d/": ""})
    os.mkfifo(place.source.path / "d/fifo", 0o640)
    os.mknod(place.source.path / "d/socket", stat.S_IFSOCK | 0o600)
    place.copy("d", "/t")
    assert os.listdir(place.target.path / "t") == ["fifo"]
    assert stat.S_ISFIFO(place.target.status("t/fifo").st_mode)
    assert place.target.mode("t/fifo") == place.source.mode("d/fifo")


@pytest.mark.parametrize("name", [".wh.x", ".wh..wh..opq"])
@pytest.mark.parametrize("kind", ["file", "directory", "link", "target", "made"])
def test_names_that_mean_deletions_in_layers_are_refused(place, kind, name):
    place.source.fill({"d/": "", "f": "f"})
    source, target = "d", "/t"
    if kind == "file":
        place.source.fill({f"d/{name}": "x"})
    elif kind == "directory":
        place.source.fill({f"d/{name}/": ""})
    elif kind == "link":
        place.source.fill({f"d/{name}": "-> x"})
    elif kind == "target":
        source, target = "f", f"/{name}"
    else:
        source, target = "f", f"/{name}/f"
    with pytest.raises(InvalidParameter, match="there such a name means a deletion"):
        place.copy(source, target)


def test_times_come_along(place):
    place.source.fill({"d/sub/f": "f", "d/link": "-> f"})
    place.copy("d", "/t/")
    for name in ("t", "t/sub", "t/sub/f", "t/link"):
        assert place.target.status(name).st_mtime == 1_580_000_000, name


def test_nothing_that_is_copied_or_changed_is_younger_than_the_epoch(place):
    place.source.fill({"d/sub/f": "f", "d/link": "-> f"})
    os.utime(place.source.path / "d/sub/f", (5, 5))
    place.target.fill({"exist/deep/": "", "untouched/": ""})
    place.copy("d", "/exist/deep/made/here", epoch=1_000 * 10**9)
    times = {name: place.target.status(name).st_mtime for name in ("exist", "exist/deep", "untouched", ".")}
    assert times == {"exist": 1_580_000_000, "exist/deep": 1000, "untouched": 1_580_000_000, ".": 1_580_000_000}
    below = "exist/deep/made"
    for name, time in (
        (below, 1000),
        (f"{below}/here/sub", 1000),
        (f"{below}/here/sub/f", 5),
        (f"{below}/here/link", 1000),
    ):
        assert place.target.status(name).st_mtime == time, name


def test_an_explicit_time_is_everythings(place):
    place.source.fill({"d/sub/f": "f"})
    place.copy("d", "/p/t", timestamp=7 * 10**9, epoch=10**9)
    assert {place.target.status(name).st_mtime for name in ("p", "p/t", "p/t/sub", "p/t/sub/f")} == {7}


def test_the_time_of_a_contexts_root_says_nothing(place):
    place.source.fill({"f": "f"})
    os.utime(place.source.path, (50, 50))
    place.copy(".", "/t", epoch=10**9)
    assert place.target.status("t").st_mtime == 1


def test_two_copies_are_the_same_whenever_they_are_made(place):
    place.source.fill({"d/sub/f": "f"})
    place.target.fill({"one/": "", "two/": ""})
    for target in ("/one/x/y", "/two/x/y"):
        place.copy("d", target, epoch=3 * 10**9)
    times = [
        {name: place.target.status(f"{top}/{name}").st_mtime_ns for name in (".", "x", "x/y", "x/y/sub", "x/y/sub/f")}
        for top in ("one", "two")
    ]
    assert times[0] == times[1]


def test_a_tree_deeper_than_there_are_descriptors_is_copied(place):
    fd = place.source.fd
    depth = 900
    for _ in range(depth):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        if fd != place.source.fd:
            os.close(fd)
        fd = inner
    os.close(fd)
    place.copy("d", "/t/")
    assert (place.target.path / "t" / "/".join(["d"] * (depth - 1))).is_dir()


def test_a_copy_leaves_no_descriptor_open(place):
    from harness.descriptors import descriptors

    place.source.fill(SOURCE)
    place.target.fill({"exist/x/": ""})
    before = descriptors()
    place.copy(".", "/t")
    place.copy("dir?", "/t2", exclude=("sub",))
    with pytest.raises(InvalidParameter):
        place.copy("dir1", "/exist")
    assert descriptors() == before


def test_a_copy_needs_to_be_told_what_it_copies(place):
    place.source.fill(SOURCE)
    action = Copy(source="a.txt", target="/")
    with pytest.raises(ValueError, match="needs a source"):
        apply(place.target.fd, action, epoch_ns=None, name_lookup=None)
    apply(place.target.fd, action, place.source.fd, select(place.source.fd, action), epoch_ns=None, name_lookup=None)
    assert place.target.see() == {"a.txt": "a"}
