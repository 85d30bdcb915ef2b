"""The content store: what a reader may see at any moment, and what a crash leaves."""

import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from wherry import digest
from wherry.digest import Digest
from wherry.errors import Conflict, Corrupt, Failed, InvalidParameter, NotFound
from wherry.storage.content import PARTIAL_LIFE, ContentStore, download_ref

DATA = b"a layer" * 1000
NAME = digest.of(DATA)
OTHER = digest.of(b"something else")


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path)


def test_a_written_blob_is_read_back_verified(store):
    assert store.write(DATA) == NAME
    assert store.has(NAME)
    assert store.size(NAME) == len(DATA)
    assert store.read(NAME, limit=len(DATA)) == DATA
    with store.open(NAME) as file:
        assert file.read() == DATA
    assert list(store.walk()) == [NAME]


def test_an_empty_blob_is_a_blob(store):
    assert store.read(store.write(b""), limit=0) == b""


def test_a_committed_blob_is_read_only_on_disk(store):
    store.write(DATA)
    assert store.path(NAME).stat().st_mode & 0o777 == 0o444


@pytest.mark.parametrize("ask", [ContentStore.size, ContentStore.open, lambda s, d: s.read(d, limit=1)])
def test_an_absent_blob_is_not_found_by_its_digest(store, ask):
    with pytest.raises(NotFound, match=NAME):
        ask(store, NAME)
    assert not store.has(NAME)


def test_a_digest_that_is_a_path_is_refused(store):
    with pytest.raises(InvalidParameter):
        store.path(Digest("sha256:../../etc/passwd"))


def test_a_blob_above_the_limit_is_refused_before_it_is_read(store):
    store.write(DATA)
    with pytest.raises(InvalidParameter, match=f"{len(DATA)} bytes; at most 10"):
        store.read(NAME, limit=10)


def test_a_blob_damaged_on_disk_is_reported_with_both_digests(store):
    store.write(DATA)
    store.path(NAME).chmod(0o644)
    store.path(NAME).write_bytes(b"x")
    with pytest.raises(Corrupt, match=f"{NAME}.*{digest.of(b'x')}"):
        store.read(NAME, limit=100)


def test_a_blob_is_invisible_until_its_commit(store):
    with store.ingest("layer") as ingest:
        ingest.write(DATA)
        assert not store.has(NAME)
        assert ingest.commit(NAME, len(DATA)) == NAME
        assert store.has(NAME)
    assert store.has(NAME)


def test_an_ingest_with_the_wrong_digest_names_both_and_leaves_nothing(store, tmp_path):
    ingest = store.ingest("layer")
    ingest.write(DATA)
    with pytest.raises(Corrupt, match=f"expected {OTHER}, got {NAME}"):
        ingest.commit(OTHER)
    assert list(store.walk()) == []
    assert list((tmp_path / "ingest").iterdir()) == []


def test_an_ingest_of_the_wrong_size_is_refused(store, tmp_path):
    ingest = store.ingest("layer")
    ingest.write(DATA)
    with pytest.raises(InvalidParameter, match=f"expected 5 bytes, got {len(DATA)}"):
        ingest.commit(NAME, 5)
    assert list((tmp_path / "ingest").iterdir()) == []


def test_an_ingest_goes_on_where_it_stopped(store):
    with store.ingest("layer") as ingest:
        ingest.write(DATA[:100])
    with store.ingest("layer") as ingest:
        assert ingest.offset == 100
        ingest.write(DATA[100:])
        assert ingest.commit(NAME, len(DATA)) == NAME
    assert store.read(NAME, limit=len(DATA)) == DATA


def test_a_reset_ingest_begins_anew(store):
    with store.ingest("layer") as ingest:
        ingest.write(b"from another server")
        ingest.reset()
        assert ingest.offset == 0
        ingest.write(DATA)
        assert ingest.commit(NAME, len(DATA)) == NAME
    assert store.read(NAME, limit=len(DATA)) == DATA


def test_two_writers_of_one_ref_are_kept_apart(store):
    with store.ingest("layer"), pytest.raises(Conflict, match="layer is already being"):
        store.ingest("layer")
    store.ingest("layer").abort()


def test_two_refs_may_write_the_same_blob(store):
    with store.ingest("one") as one, store.ingest("two") as two:
        one.write(DATA)
        two.write(DATA)
        assert one.commit(NAME) == two.commit(NAME) == NAME
    assert store.read(NAME, limit=len(DATA)) == DATA


def test_abort_after_commit_leaves_the_blob(store):
    ingest = store.ingest("layer")
    ingest.write(DATA)
    ingest.commit(None)
    ingest.abort()
    ingest.abort()
    assert store.has(NAME)


def test_an_open_blob_survives_its_deletion(store):
    store.write(DATA)
    with store.open(NAME) as file:
        store.delete(NAME)
        store.delete(NAME)
        assert not store.has(NAME)
        assert file.read() == DATA


class Crash(Exception):
    pass


@pytest.mark.parametrize("at", ["chmod", "fsync", "rename", "fsync directory"])
def test_a_crash_at_any_step_of_a_commit_leaves_the_whole_blob_or_none(tmp_path, at):
    def stop(step: str) -> None:
        if step == at:
            raise Crash

    with ContentStore(tmp_path, trace=stop).ingest("layer") as ingest:
        ingest.write(DATA)
        with pytest.raises(Crash):
            ingest.commit(NAME, len(DATA))

    store = ContentStore(tmp_path)
    store.recover()
    assert list((tmp_path / "ingest").iterdir()) == []
    assert store.has(NAME) == (at == "fsync directory")
    assert store.write(DATA) == NAME  # and the same work can be done again
    assert store.read(NAME, limit=len(DATA)) == DATA


def test_an_ingest_left_by_a_crash_can_be_taken_up_without_recovery(tmp_path):
    def stop(step: str) -> None:
        if step == "rename":
            raise Crash

    with ContentStore(tmp_path, trace=stop).ingest("layer") as ingest:
        ingest.write(DATA)
        with pytest.raises(Crash):
            ingest.commit(NAME)
    with ContentStore(tmp_path).ingest("layer") as ingest:
        assert ingest.offset == len(DATA)
        assert ingest.commit(NAME) == NAME


def test_many_threads_writing_one_blob_agree(store):
    found = []
    threads = [threading.Thread(target=lambda: found.append(store.write(DATA))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [NAME] * 8
    assert hashlib.sha256(store.path(NAME).read_bytes()).hexdigest() == digest.hex_part(NAME)


def test_foreign_files_in_the_store_are_not_blobs(store, tmp_path):
    (tmp_path / "blobs" / "sha256" / "README").write_text("x")
    assert list(store.walk()) == []


def aged(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_broken_off_download_goes_on_after_a_restart(tmp_path):
    with ContentStore(tmp_path).ingest(download_ref(NAME)) as ingest:
        ingest.write(DATA[:100])
    store = ContentStore(tmp_path)
    store.recover()
    with store.ingest(download_ref(NAME)) as ingest:
        assert ingest.offset == 100
        ingest.write(DATA[100:])
        assert ingest.commit(NAME, len(DATA)) == NAME
    assert list((tmp_path / "ingest").iterdir()) == []


def test_only_downloads_outlive_a_restart_and_only_for_a_day(tmp_path):
    store = ContentStore(tmp_path)
    for ref in (download_ref(NAME), download_ref(OTHER), "layer made here", f"layer {NAME} "):
        with store.ingest(ref) as ingest:
            ingest.write(DATA[:100])
    aged(tmp_path / "ingest" / f"partial-{OTHER[7:]}", PARTIAL_LIFE + 60)
    aged(tmp_path / "ingest" / f"partial-{NAME[7:]}", PARTIAL_LIFE - 60)
    store.recover()
    assert [path.name for path in (tmp_path / "ingest").iterdir()] == [f"partial-{NAME[7:]}"]


def test_a_download_under_way_is_not_dropped_however_old(tmp_path):
    store = ContentStore(tmp_path)
    with store.ingest(download_ref(OTHER)) as other:
        other.write(DATA[:10])
    with store.ingest(download_ref(NAME)) as ingest:
        ingest.write(DATA)
        aged(tmp_path / "ingest" / f"partial-{NAME[7:]}", 1e6)
        assert store.expire(age=0) == 10
        ingest.commit(NAME)
    assert store.has(NAME)
    assert list((tmp_path / "ingest").iterdir()) == []


def test_a_kept_download_brings_its_blob_back_when_that_is_removed(store, tmp_path):
    with store.ingest(download_ref(NAME)) as ingest:
        ingest.write(DATA)
        ingest.commit(NAME, len(DATA), keep=True)
    assert store.path(NAME).stat().st_nlink == 2
    store.delete(NAME)
    with store.ingest(download_ref(NAME)) as ingest:
        assert ingest.offset == len(DATA)
        ingest.commit(NAME, len(DATA), keep=True)
    assert store.read(NAME, limit=len(DATA)) == DATA
    store.forget_download(NAME)
    store.forget_download(NAME)
    assert list((tmp_path / "ingest").iterdir()) == []
    assert store.path(NAME).stat().st_nlink == 1


def test_a_kept_download_of_a_blob_that_is_there_is_not_written_into(store, tmp_path):
    with store.ingest(download_ref(NAME)) as ingest:
        ingest.write(DATA)
        ingest.commit(NAME, len(DATA), keep=True)
    with store.ingest(download_ref(NAME)) as ingest:
        assert ingest.offset == 0
        ingest.write(b"something else")
        ingest.reset()
        ingest.abort()
    assert store.read(NAME, limit=len(DATA)) == DATA
    assert list((tmp_path / "ingest").iterdir()) == []


@pytest.mark.parametrize("step", ["chmod", "fsync", "rename"])
def test_a_document_that_cannot_be_stored_leaves_nothing(tmp_path, step):
    def full(reached: str) -> None:
        if reached == step:
            raise OSError(28, "No space left on device")

    with pytest.raises(Failed, match="No space left on device"):
        ContentStore(tmp_path, trace=full).write(DATA)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_blob_is_examined_by_its_content_whatever_size_was_said(store, tmp_path):
    name = store.write(b"content")
    path = store.path(name)
    assert store.examine(name) == store.examine(name, size=7) == store.examine(name, quick=True) == ""
    assert store.examine(name, size=9) == store.examine(name, size=9, quick=True) == ""  # somebody was wrong
    path.chmod(0o600)
    path.write_bytes(b"Content")
    assert store.examine(name, size=7) == "altered"
    assert store.examine(name, size=7, quick=True) == ""
    path.write_bytes(b"conte")
    assert store.examine(name, size=7) == store.examine(name, size=7, quick=True) == "truncated"
    assert store.examine(name) == "altered"
    path.write_bytes(b"content and more")
    assert store.examine(name, size=7) == "altered"
    path.unlink()
    assert store.examine(name, size=7) == "missing"
    path.mkdir()
    assert store.examine(name) == "missing"


def test_a_new_blob_that_is_not_committed_leaves_nothing(store, tmp_path):
    with store.ingest_new("new") as ingest:
        ingest.write(b"half")
        assert store.unfinished() == list((tmp_path / "ingest").iterdir())
        assert [store.is_left(path) for path in store.unfinished()] == [False]
    assert store.unfinished() == []
    with store.ingest("kept") as ingest:
        ingest.write(b"half")
    assert [store.is_left(path) for path in store.unfinished()] == [True]


def test_a_directory_that_is_no_use_is_told_in_words(store, tmp_path):
    import shutil

    shutil.rmtree(tmp_path / "ingest")
    with pytest.raises(Failed, match=r"cannot store the new layer: No such file or directory in .*/ingest"):
        store.ingest_new("the new layer")
    (tmp_path / "ingest").touch()
    with pytest.raises(Failed, match=r"cannot store layer: Not a directory in .*/ingest"):
        store.ingest("layer")
    with pytest.raises(Failed, match=r"cannot keep images: .*ingest"):
        ContentStore(tmp_path)


def test_a_blob_is_deleted_unless_somebody_wants_it_in_that_moment(store):
    name = store.write(b"content")
    assert not store.delete(name, unless=lambda blob: blob == name)
    assert store.has(name)
    assert store.delete(name, unless=lambda blob: False)
    assert not store.has(name)
