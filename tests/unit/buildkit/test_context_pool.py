import os
import stat

import pytest

from wherry.builder.contexts import ContextPool, Mirror, Slot, slot_key
from wherry.builder.graph import LocalSource
from wherry.errors import Failed, InvalidParameter

FILE = stat.S_IFREG | 0o644
DIR = stat.S_IFDIR | 0o755
LINK = stat.S_IFLNK | 0o777
T = 1_700_000_000_000_000_000  # ns


@pytest.fixture
def pool(tmp_path):
    return ContextPool(tmp_path / "pool")


def sync(slot: Slot, files: dict[str, object]) -> tuple[list[str], dict[str, str]]:
    """Lists bytes as files, None as directories, str as symlinks; returns what was wanted, and the checksums."""
    mirror, wanted = Mirror(slot), []
    try:
        for path, content in files.items():
            match content:
                case None:
                    mirror.add(path, mode=DIR, mtime=T)
                case str():
                    mirror.add(path, mode=LINK, mtime=T, link=content)
                case bytes() if mirror.add(path, mode=FILE, size=len(content), mtime=T + len(content)):
                    wanted.append(path)
        for path in wanted:
            mirror.write(path, files[path])
            mirror.close_file(path)
        return wanted, mirror.finish()
    finally:
        mirror.close()


TREE = {"Dockerfile": b"FROM scratch\n", "app": None, "app/a.py": b"a", "app/link": "a.py", "z": b""}


def test_a_first_sync_wants_every_file_and_gives_their_checksums(pool):
    slot = pool.acquire("k")
    wanted, checksums = sync(slot, TREE)
    assert wanted == ["Dockerfile", "app/a.py", "z"]
    assert (slot.path / "app/a.py").read_bytes() == b"a"
    assert os.readlink(slot.path / "app/link") == "a.py"
    assert checksums["app/a.py"] == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    assert (slot.path / "app").stat().st_mtime_ns == T
    assert (slot.path / "app/link").lstat().st_mtime_ns == T


def test_an_unchanged_tree_wants_nothing_and_still_knows_the_checksums(pool):
    slot = pool.acquire("k")
    _, first = sync(slot, TREE)
    pool.release(slot)
    again = pool.acquire("k")
    assert again.id == slot.id
    assert sync(again, TREE) == ([], first)


def test_only_a_changed_file_is_wanted_and_what_is_not_listed_goes(pool):
    slot = pool.acquire("k")
    sync(slot, TREE)
    wanted, checksums = sync(slot, {"Dockerfile": b"FROM busybox\n\n", "app": b"now a file"})
    assert wanted == ["Dockerfile", "app"]
    assert sorted(os.listdir(slot.path)) == ["Dockerfile", "app"]
    assert set(checksums) == {"Dockerfile", "app"}


def test_a_changed_mode_is_set_without_sending_the_content(pool):
    slot = pool.acquire("k")
    mirror = Mirror(slot)
    assert mirror.add("x", mode=FILE, size=1, mtime=T)
    mirror.write("x", b"x")
    mirror.close_file("x")
    first = mirror.finish()
    again = Mirror(slot)
    assert not again.add("x", mode=stat.S_IFREG | 0o755, size=1, mtime=T)
    assert again.finish() == first
    assert (slot.path / "x").stat().st_mode == stat.S_IFREG | 0o755


def test_a_hard_link_shares_its_file_even_when_that_is_sent_later(pool):
    slot = pool.acquire("k")
    for _ in range(2):  # the second time nothing is sent
        mirror = Mirror(slot)
        wanted = mirror.add("a", mode=FILE, size=3, mtime=T)
        mirror.add("b", mode=FILE, link="a")
        if wanted:
            mirror.write("a", b"abc")
            mirror.close_file("a")
        mirror.finish()
    assert not wanted
    assert (slot.path / "b").read_bytes() == b"abc"
    assert (slot.path / "a").stat().st_ino == (slot.path / "b").stat().st_ino


def test_two_names_of_one_file_become_two_files_when_the_client_has_two(pool):
    slot = pool.acquire("k")
    mirror = Mirror(slot)
    mirror.add("a", mode=FILE, size=1, mtime=T)
    mirror.add("b", mode=FILE, link="a")
    mirror.write("a", b"1")
    mirror.close_file("a")
    mirror.finish()
    again = Mirror(slot)
    assert not again.add("a", mode=FILE, size=1, mtime=T)
    assert again.add("b", mode=FILE, size=1, mtime=T)
    again.write("b", b"1")
    again.close_file("b")
    again.finish()
    assert (slot.path / "a").stat().st_ino != (slot.path / "b").stat().st_ino


def test_an_interrupted_file_is_wanted_again(pool):
    slot = pool.acquire("k")
    mirror = Mirror(slot)
    mirror.add("x", mode=FILE, size=2, mtime=T)
    mirror.write("x", b"12")
    mirror.close()
    pool.release(slot)
    assert Mirror(pool.acquire("k")).add("x", mode=FILE, size=2, mtime=T)


def test_many_files_may_come_interleaved(pool):
    slot = pool.acquire("k")
    mirror = Mirror(slot)
    names = [f"f{n:03}" for n in range(100)]
    for name in names:
        assert mirror.add(name, mode=FILE, size=2, mtime=T)
    for piece in (b"a", b"b"):
        for name in names:
            mirror.write(name, piece)
    for name in names:
        mirror.close_file(name)
    mirror.finish()
    assert {(slot.path / name).read_bytes() for name in names} == {b"ab"}


@pytest.mark.parametrize(
    "path",
    ["", ".", "..", "/etc", "a/../b", "../x", "a//b", "missing/x", "file/x", "link/x", "x" * 5000, "a\0b", "./a"],
)
def test_paths_that_leave_the_directory_or_have_no_parent_are_refused(pool, tmp_path, path):
    slot = pool.acquire("k")
    mirror = Mirror(slot)
    mirror.add("a", mode=DIR)
    mirror.add("file", mode=FILE)
    mirror.add("link", mode=LINK, link=str(tmp_path))
    with pytest.raises(InvalidParameter):
        mirror.add(path, mode=FILE)
    mirror.close()


def test_a_symlink_that_was_a_directory_is_not_followed(pool, tmp_path):
    """What lies in the directory from before must not be written to through a new symlink of that name."""
    slot = pool.acquire("k")
    sync(slot, {"d": None, "d/x": b"1"})
    outside = tmp_path / "outside"
    outside.mkdir()
    mirror = Mirror(slot)
    mirror.add("d", mode=LINK, link=str(outside))
    with pytest.raises(InvalidParameter, match="before its directory"):
        mirror.add("d/x", mode=FILE, size=1, mtime=T)
    mirror.close()
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("link", ["../../etc/passwd", "/etc/passwd", "later", "d", ""])
def test_a_hard_link_only_leads_to_a_listed_file(pool, link):
    mirror = Mirror(pool.acquire("k"))
    mirror.add("d", mode=DIR)
    if link:
        with pytest.raises(InvalidParameter):
            mirror.add("x", mode=FILE, link=link)
    mirror.close()


def test_a_path_is_listed_once(pool):
    mirror = Mirror(pool.acquire("k"))
    mirror.add("x", mode=DIR)
    with pytest.raises(InvalidParameter, match="twice"):
        mirror.add("x", mode=FILE)
    mirror.close()


def test_content_nobody_asked_for_is_refused(pool):
    mirror = Mirror(pool.acquire("k"))
    with pytest.raises(InvalidParameter, match="not asked for"):
        mirror.write("x", b"1")
    with pytest.raises(InvalidParameter, match="not asked for"):
        mirror.close_file("x")


def test_a_sync_without_all_contents_is_not_finished(pool):
    mirror = Mirror(pool.acquire("k"))
    mirror.add("x", mode=FILE, size=1, mtime=T)
    with pytest.raises(InvalidParameter, match="did not come"):
        mirror.finish()
    mirror.close()


def test_a_held_directory_is_not_given_to_another_build(pool):
    one, two = pool.acquire("k"), pool.acquire("k")
    assert one.id != two.id
    pool.release(one)
    assert pool.acquire("k").id == one.id


def test_the_directory_last_filled_by_the_same_patterns_is_preferred(pool):
    one, two = pool.acquire("k", patterns="p"), pool.acquire("k", patterns="q")
    pool.release(one)
    pool.release(two)
    assert pool.acquire("k", patterns="p").id == one.id
    assert pool.acquire("k", patterns="r").id == two.id


def test_slots_survive_a_restart_and_half_made_ones_do_not(tmp_path):
    root = tmp_path / "pool"
    first = ContextPool(root)
    slot = first.acquire("k", description="local source for context")
    sync(slot, TREE)
    first.release(slot)
    (root / "half" / "files").mkdir(parents=True)
    (root / "junk").write_text("")
    second = ContextPool(root)
    assert sorted(os.listdir(root)) == [slot.id]
    (usage,) = second.usage()
    assert (usage.description, usage.size, usage.in_use, usage.uses) == ("local source for context", 14, False, 1)
    assert sync(second.acquire("k"), TREE)[0] == []


def test_a_damaged_index_costs_nothing_but_the_checksums(tmp_path):
    root = tmp_path / "pool"
    first = ContextPool(root)
    slot = first.acquire("k")
    sync(slot, TREE)
    first.release(slot)
    (slot.root / "known").write_text("{")
    assert sync(ContextPool(root).acquire("k"), TREE) == ([], {})


def test_pruning_leaves_what_a_build_holds_and_the_most_recent(pool):
    slots = [pool.acquire(key) for key in "abc"]
    for slot in slots:
        sync(slot, {"x": b"12345"})
    for slot in slots[:2]:
        pool.release(slot)
    assert [each.id for each in pool.prune(keep=5)] == [slots[0].id]
    assert [each.id for each in pool.prune()] == [slots[1].id]
    assert [each.id for each in pool.usage()] == [slots[2].id]
    assert slots[2].path.exists()
    assert not slots[1].root.exists()


def test_pruning_by_age(pool):
    slot = pool.acquire("a")
    pool.release(slot)
    (usage,) = pool.usage()
    assert pool.prune(unused_since=usage.used) == []
    assert [each.id for each in pool.prune(unused_since=usage.used + 1)] == [slot.id]


def test_the_key_tells_clients_names_and_purposes_apart():
    context = LocalSource(name="context")
    assert slot_key(context, "a")[0] != slot_key(context, "b")[0]
    assert slot_key(context, "a")[0] != slot_key(LocalSource(name="dockerfile"), "a")[0]
    assert slot_key(context, "a")[1] != slot_key(LocalSource(name="context", exclude=("x",)), "a")[1]
    assert slot_key(context, "a")[0] != slot_key(LocalSource(name="context", shared_key=".dockerignore"), "a")[0]


def test_extended_attributes_are_kept_up_to_date(pool):
    slot = pool.acquire("k")
    for wanted in ({"user.a": b"1"}, {"user.b": b"2"}):
        mirror = Mirror(slot)
        if mirror.add("x", mode=FILE, size=1, mtime=T, xattrs={**wanted, "security.selinux": b"no"}):
            mirror.write("x", b"1")
            mirror.close_file("x")
        mirror.finish()
        path = slot.path / "x"
        assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == wanted


def test_what_the_disk_refuses_is_told_in_words_and_is_not_kept(pool):
    slot = pool.acquire("k")
    mirror = Mirror(slot)
    mirror.add("x", mode=FILE, size=5, mtime=T)
    (slot.path / "x").unlink()  # stands for a disk that is full: the file cannot be written to
    with pytest.raises(Failed, match=r"cannot keep the files of the build: .*/x: no such file or directory"):
        mirror.write("x", b"12345")
    mirror.close()
    pool.release(slot)
    pool.release(slot)
    assert not slot.root.exists()
    assert pool.usage() == []
    assert pool.acquire("k").id != slot.id


def test_a_pool_that_cannot_be_written_to_says_so(tmp_path):
    pool = ContextPool(tmp_path / "pool")
    (tmp_path / "pool").rmdir()
    (tmp_path / "pool").write_text("in the way")
    with pytest.raises(Failed, match="cannot make a directory"):
        pool.acquire("k")
    assert pool.usage() == []


def test_files_whose_index_cannot_be_written_are_not_kept(pool):
    slot = pool.acquire("k")
    sync(slot, TREE)
    (slot.root / "known.new").mkdir()
    pool.release(slot)
    assert not slot.root.exists()


def test_a_content_has_a_name_as_long_as_nothing_changes(pool):
    slot = pool.acquire("k")
    sync(slot, TREE)
    first = slot.content
    sync(slot, TREE)
    assert slot.content == first != ""
    for changed in ({**TREE, "z": b"1"}, {**TREE, "app/link": "b"}, {**TREE, "new": None}, {"Dockerfile": b""}):
        sync(slot, changed)
        assert slot.content not in ("", first)
        first = slot.content
    Mirror(slot).close()  # not finished: nobody knows what is there
    assert slot.content == ""
