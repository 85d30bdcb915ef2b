"""The store on a folder: what every store does, and what only this one does."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from harness.descriptors import descriptors
from registrykit import documents
from registrykit.behaviour import DATA, NOTE, ONE, RegistryStoreBehaviour, push, push_document, read, refused, upload
from wherry.digest import Digest, of
from wherry.errors import Corrupt, Failed
from wherry.registry.errors import Code, Problem
from wherry.registry.folder import CACHED, OPEN_UPLOADS, UPLOAD_LIFE, FolderStore, open_folder
from wherry.registry.upkeep.collect import forget
from wherry.spec.image import Raw
from wherry.state import Change, Delete, State
from wherry.storage.content import ContentStore


class FolderKeeper:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.now = 1_800_000_000 * 10**9  # ns
        self.store = self._open()

    def _open(self) -> FolderStore:
        return open_folder(self.root, clock=lambda: self.now)

    async def reopen(self) -> None:
        await self.store.close()
        self.store = self._open()

    def files(self) -> set[str]:
        """Bytes held: digests of blobs, and uploads and ingests by their folder."""
        return {f"sha256:{path.name}" for path in (self.root / "blobs/sha256").iterdir()} | {
            f"{path.parent.name}/{path.name}" for name in ("uploads", "ingest") for path in (self.root / name).iterdir()
        }


@pytest.fixture
async def keeper(tmp_path: Path) -> AsyncIterator[FolderKeeper]:
    made = FolderKeeper(tmp_path / "registry")
    before = descriptors()
    yield made
    await made.store.close()
    assert not {what: n for what, n in (descriptors() - before).items() if str(tmp_path) in what}


class TestFolderStore(RegistryStoreBehaviour):
    """The behaviour suite, with this file's `keeper`."""


# --- sweeping ---------------------------------------------------------------------------------------------------------


async def test_the_sweep_deletes_what_no_repository_names(keeper: FolderKeeper):
    await push(keeper.store, "a", ONE, tag="t")
    kept = keeper.files()
    digest = await push_document(keeper.store, "a", NOTE, tag="note")
    blob = await upload(keeper.store, "b", DATA)
    await keeper.store.delete_manifest("a", digest)
    for each in NOTE.blobs:
        await keeper.store.delete_blob("a", of(each))
    await keeper.store.delete_blob("b", blob)
    blobs, freed = await keeper.store.sweep()
    assert (blobs, freed) == (4, len(DATA) + len(NOTE.data) + sum(map(len, NOTE.blobs)))
    assert keeper.files() == kept
    assert await keeper.store.sweep() == (0, 0)
    assert (await keeper.store.manifest("a", of(ONE.manifest))).data == ONE.manifest


async def test_the_sweep_leaves_uploads_alone(keeper: FolderKeeper):
    begun = await keeper.store.start_upload("a")
    await begun.write(DATA)
    await keeper.store.sweep()
    await begun.commit(of(DATA))
    await keeper.store.sweep()
    assert await read(keeper.store, "a", of(DATA)) == DATA


async def test_a_blob_that_came_back_while_it_was_to_be_swept_stays(keeper: FolderKeeper):
    await upload(keeper.store, "a", DATA)
    await keeper.store.delete_blob("a", of(DATA))
    await upload(keeper.store, "b", DATA)
    assert await keeper.store.sweep() == (0, 0)
    assert await read(keeper.store, "b", of(DATA)) == DATA


async def test_blobs_that_nothing_came_to_need_expire(keeper: FolderKeeper):
    await push(keeper.store, "a", ONE, tag="t")
    await upload(keeper.store, "a", DATA)
    assert (await forget(keeper.store, grace=3600)).blobs == 0
    keeper.now += 7200 * 10**9
    assert (await forget(keeper.store, grace=3600)).blobs == 1
    with refused(Code.BLOB_UNKNOWN):
        await keeper.store.blob_size("a", of(DATA))
    assert await read(keeper.store, "a", Digest(next(iter(ONE.blobs)))) in ONE.blobs.values()


async def test_a_blob_that_a_pusher_was_told_of_does_not_expire_under_his_hands(keeper: FolderKeeper):
    for blob in NOTE.blobs:
        await upload(keeper.store, "a", blob)
    keeper.now += 7200 * 10**9
    for blob in NOTE.blobs:
        await keeper.store.promise_blob("a", of(blob))
    assert (await forget(keeper.store, grace=3600)).blobs == 0
    await push_manifest(keeper.store)


# --- uploads ----------------------------------------------------------------------------------------------------------


async def test_an_upload_nobody_goes_on_with_expires(keeper: FolderKeeper):
    begun = [await keeper.store.start_upload("a") for _ in range(3)]
    for each in begun[:2]:
        await each.release()
    keeper.now = os.stat(keeper.root / "uploads" / begun[0].id).st_mtime_ns + (UPLOAD_LIFE - 10) * 10**9
    assert await keeper.store.expire_uploads() == 0
    keeper.now += 20 * 10**9
    assert await keeper.store.expire_uploads() == 2  # the third is being written to
    for each in begun[:2]:
        with refused(Code.BLOB_UPLOAD_UNKNOWN):
            await keeper.store.upload("a", each.id)
    await begun[2].write(DATA)
    await begun[2].commit(of(DATA))


async def test_uploads_expire_after_a_restart_too(keeper: FolderKeeper):
    begun = await keeper.store.start_upload("a")
    await begun.release()
    await keeper.reopen()
    keeper.now = os.stat(keeper.root / "uploads" / begun.id).st_mtime_ns + (UPLOAD_LIFE + 10) * 10**9
    assert await keeper.store.expire_uploads() == 1
    assert keeper.files() == set()


async def test_of_many_uploads_some_are_kept_open_and_all_go_on(keeper: FolderKeeper):
    before = descriptors()
    begun = []
    for number in range(OPEN_UPLOADS + 20):
        each = await keeper.store.start_upload("a")
        await each.write(b"%d" % number)
        await each.release()
        begun.append(each.id)
    opened = sum(n for what, n in (descriptors() - before).items() if "/uploads/" in what)
    assert opened <= OPEN_UPLOADS
    for number in (0, OPEN_UPLOADS + 10):
        again = await keeper.store.upload("a", begun[number])
        assert again.offset == len(str(number))
        await again.commit(of(b"%d" % number))


# --- manifests --------------------------------------------------------------------------------------------------------


async def test_manifests_in_memory_are_bounded_and_the_used_ones_stay(keeper: FolderKeeper):
    """The files are taken away: what is still told comes from memory."""
    made = [documents.artifact(f"large {number}", annotations={"fill": "x" * 3_900_000}) for number in range(10)]
    for each in made:
        await push_document(keeper.store, "a", each)
        await keeper.store.manifest("a", of(made[0].data))
    for each in made:
        keeper.store.content.delete(of(each.data))
    told = []
    for each in made:
        try:
            told.append((await keeper.store.manifest("a", of(each.data))).data == each.data)
        except Problem:
            told.append(False)
    assert sum(told) == CACHED // len(made[0].data)
    assert told[0]
    assert told[-1]


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["chmod", "fsync", "rename", "fsync directory"])
@pytest.mark.parametrize("what", ["blob", "manifest"])
async def test_a_failure_at_any_step_leaves_nothing_visible(tmp_path: Path, step: str, what: str):
    failing = False

    def trace(reached: str) -> None:
        if failing and reached == step:
            raise OSError(28, "No space left on device")

    content = ContentStore(tmp_path, trace=trace)
    store = FolderStore(content, State(None), tmp_path / "uploads")
    if what == "blob":
        begun = await store.start_upload("a")
        await begun.write(DATA)
        failing = True
        with pytest.raises(Failed, match="No space left on device"):
            await begun.commit(of(DATA))
        await begun.release()
        with refused(Code.BLOB_UNKNOWN):
            await store.blob_size("a", of(DATA))
        failing = False
        await upload(store, "a", DATA)
        assert await read(store, "a", of(DATA)) == DATA
    else:
        for blob in NOTE.blobs:
            await upload(store, "a", blob)
        failing = True
        with pytest.raises(Failed, match="No space left on device"):
            await push_manifest(store)
        with refused(Code.MANIFEST_UNKNOWN):
            await store.resolve("a", "t")
        failing = False
        await push_manifest(store)
        assert await store.resolve("a", "t") == of(NOTE.data)
    await store.close()


async def push_manifest(store: FolderStore) -> None:
    await store.put_manifest("a", Raw(NOTE.data, NOTE.media_type, of(NOTE.data)), tag="t")


async def test_rows_that_cannot_be_written_change_nothing(tmp_path: Path):
    class FullState(State):
        full = False

        def write(self, *changes: Change) -> None:
            if self.full:
                raise Failed("cannot write state file: database or disk is full")
            super().write(*changes)

    state = FullState(None)
    store = FolderStore(ContentStore(tmp_path), state, tmp_path / "uploads")
    await push(store, "a", ONE, tag="t")
    for blob in NOTE.blobs:
        await upload(store, "a", blob)
    state.full = True
    for change in (
        push_manifest(store),
        upload(store, "new", DATA),
        store.mount_blob("new", of(NOTE.blobs[0]), "a"),
        store.delete_tag("a", "t"),
        store.delete_manifest("a", of(ONE.manifest)),
        store.delete_blob("a", of(NOTE.blobs[0])),
    ):
        with pytest.raises(Failed, match="disk is full"):
            await change
    assert await store.repositories(after="", limit=10) == ["a"]
    assert await store.resolve("a", "t") == of(ONE.manifest)
    assert await read(store, "a", of(NOTE.blobs[0])) == NOTE.blobs[0]
    with refused(Code.MANIFEST_UNKNOWN):
        await store.manifest("a", of(NOTE.data))
    await store.close()


async def test_memory_follows_the_rows_in_their_order(tmp_path: Path):
    """A blob is deleted and pushed again at once: whichever came last on disk came last in memory."""
    second_written = threading.Event()

    class SlowState(State):
        armed = False

        def write(self, *changes: Change) -> None:
            super().write(*changes)
            if self.armed and isinstance(changes[0], Delete):
                second_written.wait(0.2)  # the row is there, but nobody is told yet
            else:
                second_written.set()

    state = SlowState(tmp_path / "state.db")
    store = FolderStore(ContentStore(tmp_path), state, tmp_path / "uploads")
    await upload(store, "a", DATA)
    second_written.clear()
    state.armed = True
    await asyncio.gather(store.delete_blob("a", of(DATA)), upload(store, "a", DATA))
    told = blobs_of(store, "a")
    await store.close()
    again = FolderStore(ContentStore(tmp_path), state, tmp_path / "uploads")
    assert blobs_of(again, "a") == told
    state.close()


def blobs_of(store: FolderStore, repository: str) -> list[Digest]:
    found = store.catalog.find(repository)
    return sorted(found.blobs) if found else []


async def test_a_damaged_manifest_is_not_handed_out(keeper: FolderKeeper):
    digest = await push(keeper.store, "a", ONE, tag="t")
    path = keeper.root / "blobs/sha256" / digest[7:]
    path.chmod(0o644)
    path.write_bytes(ONE.manifest.replace(b"layers", b"lavers"))
    await keeper.reopen()
    with pytest.raises(Corrupt, match="damaged on disk"):
        await keeper.store.manifest("a", digest)


def test_a_folder_that_cannot_be_one_is_refused_in_words(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Failed, match=r"cannot use .*file/below as the registry's folder: .*Not a directory"):
        open_folder(tmp_path / "file" / "below")
