"""What every `RegistryStore` must do, whatever it keeps things in. Run by a subclass that has a `keeper` fixture."""

import asyncio
from typing import Protocol

import pytest

from imagekit import making
from wherry.digest import Digest, of
from wherry.registry.errors import Code, Problem
from wherry.registry.store import RegistryStore
from wherry.spec.image import Raw

from . import documents

ONE = making.make([{"a": b"1"}, {"b": b"2"}])
OTHER = making.make([{"a": b"1"}, {"c": b"3"}], architecture="s390x")
INDEX, INDEX_TYPE = making.index(
    [(ONE, {"os": "linux", "architecture": "amd64"}), (OTHER, {"os": "linux", "architecture": "s390x"})]
)
NOTE = documents.artifact("note")
DATA = bytes(range(256)) * 9000  # more than one piece of any kind
NOBODY = Digest("sha256:" + "0" * 64)


class Keeper(Protocol):
    """A store and what it is kept in."""

    store: RegistryStore

    async def reopen(self) -> None:
        """Let go of the store and open another one over the same things, as a restart does."""


async def upload(store: RegistryStore, repository: str, data: bytes) -> Digest:
    begun = await store.start_upload(repository)
    await begun.write(data)
    assert await begun.commit(of(data)) == len(data)
    return of(data)


async def push(store: RegistryStore, repository: str, made: making.Made, *, tag: str | None = None) -> Digest:
    for blob in made.blobs.values():
        await upload(store, repository, blob)
    raw = Raw(made.manifest, made.media_type, of(made.manifest))
    await store.put_manifest(repository, raw, tag=tag)
    return raw.digest


async def push_document(
    store: RegistryStore, repository: str, made: documents.Made, *, tag: str | None = None
) -> Digest:
    for blob in made.blobs:
        await upload(store, repository, blob)
    await store.put_manifest(repository, Raw(made.data, made.media_type, of(made.data)), tag=tag)
    return of(made.data)


async def read(store: RegistryStore, repository: str, digest: Digest) -> bytes:
    with await store.open_blob(repository, digest) as file:
        data = file.read()
    assert await store.blob_size(repository, digest) == len(data)
    assert await store.promise_blob(repository, digest) == len(data)
    return data


class refused:  # noqa: N801 - reads like pytest.raises
    """`with refused(Code.X):` the block raises a Problem of that code, with a message."""

    def __init__(self, *codes: Code) -> None:
        self._codes = codes

    def __enter__(self) -> None:
        self._raises = pytest.raises(Problem)
        self._info = self._raises.__enter__()

    def __exit__(self, *exc: object) -> bool:
        done = self._raises.__exit__(*exc)
        assert self._info.value.code in self._codes
        assert self._info.value.message
        return bool(done)


class RegistryStoreBehaviour:
    # --- uploads ------------------------------------------------------------------------------------------------------

    async def test_a_blob_is_there_once_it_is_committed(self, keeper: Keeper):
        begun = await keeper.store.start_upload("a/b")
        await begun.write(DATA[:1000])
        await begun.write(DATA[1000:])
        with refused(Code.BLOB_UNKNOWN):
            await keeper.store.blob_size("a/b", of(DATA))
        assert await begun.commit(of(DATA)) == len(DATA)
        assert await read(keeper.store, "a/b", of(DATA)) == DATA

    async def test_a_blob_is_read_from_any_offset(self, keeper: Keeper):
        digest = await upload(keeper.store, "a", DATA)
        with await keeper.store.open_blob("a", digest) as file:
            file.seek(-100, 2)
            assert file.read() == DATA[-100:]

    async def test_a_blob_with_another_digest_is_refused_and_the_upload_over(self, keeper: Keeper):
        begun = await keeper.store.start_upload("a")
        await begun.write(DATA)
        with refused(Code.DIGEST_INVALID):
            await begun.commit(NOBODY)
        await begun.release()
        for digest in (NOBODY, of(DATA)):
            with refused(Code.BLOB_UNKNOWN):
                await keeper.store.open_blob("a", digest)
        with refused(Code.BLOB_UPLOAD_UNKNOWN):
            await keeper.store.upload("a", begun.id)

    async def test_an_upload_goes_on_in_a_later_request(self, keeper: Keeper):
        begun = await keeper.store.start_upload("a")
        await begun.write(DATA[:5000])
        await begun.release()
        again = await keeper.store.upload("a", begun.id)
        assert again.offset == 5000
        await again.write(DATA[5000:])
        assert await again.commit(of(DATA)) == len(DATA)
        await again.release()
        assert await read(keeper.store, "a", of(DATA)) == DATA

    async def test_an_upload_goes_on_after_a_restart(self, keeper: Keeper):
        begun = await keeper.store.start_upload("a")
        await begun.write(DATA[:1_500_000])
        await begun.release()
        await keeper.reopen()
        again = await keeper.store.upload("a", begun.id)
        assert again.offset == 1_500_000
        await again.write(DATA[1_500_000:])
        await again.commit(of(DATA))
        assert await read(keeper.store, "a", of(DATA)) == DATA

    async def test_two_requests_do_not_write_to_one_upload(self, keeper: Keeper):
        begun = await keeper.store.start_upload("a")
        with refused(Code.TOOMANYREQUESTS):
            await keeper.store.upload("a", begun.id)
        await begun.release()
        again = await keeper.store.upload("a", begun.id)
        with refused(Code.TOOMANYREQUESTS):
            await keeper.store.upload("a", begun.id)
        await again.abort()

    async def test_an_upload_is_known_in_its_repository_only(self, keeper: Keeper):
        begun = await keeper.store.start_upload("a")
        await begun.release()
        with refused(Code.BLOB_UPLOAD_UNKNOWN):
            await keeper.store.upload("b", begun.id)
        await (await keeper.store.upload("a", begun.id)).abort()

    @pytest.mark.parametrize("id", ["", ".", "..", "../state.db", "0" * 32, "x" * 500, "a/b", "\0"])
    async def test_an_upload_nobody_began_is_unknown(self, keeper: Keeper, id: str):
        with refused(Code.BLOB_UPLOAD_UNKNOWN):
            await keeper.store.upload("a", id)

    async def test_an_upload_that_is_given_up_is_gone(self, keeper: Keeper):
        begun = await keeper.store.start_upload("a")
        await begun.write(DATA)
        await begun.abort()
        await begun.abort()
        await begun.release()
        with refused(Code.BLOB_UPLOAD_UNKNOWN):
            await keeper.store.upload("a", begun.id)

    async def test_many_may_upload_the_same_blob_at_once(self, keeper: Keeper):
        await asyncio.gather(*(upload(keeper.store, f"r{number % 3}", DATA) for number in range(9)))
        for number in range(3):
            assert await read(keeper.store, f"r{number}", of(DATA)) == DATA

    # --- blobs --------------------------------------------------------------------------------------------------------

    async def test_a_blob_is_visible_in_its_repository_only(self, keeper: Keeper):
        digest = await upload(keeper.store, "secret", DATA)
        await upload(keeper.store, "open", b"other")
        for repository in ("open", "nowhere"):
            with refused(Code.BLOB_UNKNOWN):
                await keeper.store.blob_size(repository, digest)
            with refused(Code.BLOB_UNKNOWN):
                await keeper.store.promise_blob(repository, digest)
            with refused(Code.BLOB_UNKNOWN):
                await keeper.store.open_blob(repository, digest)

    async def test_a_blob_is_mounted_from_where_it_is(self, keeper: Keeper):
        digest = await upload(keeper.store, "a", DATA)
        assert await keeper.store.mount_blob("b", digest, "a")
        assert await read(keeper.store, "b", digest) == DATA
        assert set(await keeper.store.holders(digest)) == {"a", "b"}

    async def test_a_blob_of_an_image_is_mounted(self, keeper: Keeper):
        await push(keeper.store, "a", ONE, tag="t")
        digest = of(ONE.layers[0])
        assert await keeper.store.mount_blob("b", digest, "a")
        assert await read(keeper.store, "b", digest) == ONE.layers[0]

    @pytest.mark.parametrize("source", ["b", "nowhere"])
    async def test_what_is_not_there_is_not_mounted(self, keeper: Keeper, source: str):
        await upload(keeper.store, "b", DATA)
        assert not await keeper.store.mount_blob("c", NOBODY, source)
        assert await keeper.store.holders(NOBODY) == []
        with refused(Code.BLOB_UNKNOWN):
            await keeper.store.blob_size("c", NOBODY)

    async def test_a_deleted_blob_is_gone_from_its_repository(self, keeper: Keeper):
        digest = await upload(keeper.store, "a", DATA)
        assert await keeper.store.mount_blob("b", digest, "a")
        await keeper.store.delete_blob("a", digest)
        with refused(Code.BLOB_UNKNOWN):
            await keeper.store.open_blob("a", digest)
        with refused(Code.BLOB_UNKNOWN):
            await keeper.store.delete_blob("a", digest)
        assert await read(keeper.store, "b", digest) == DATA

    async def test_a_blob_that_a_manifest_needs_is_not_deleted(self, keeper: Keeper):
        await push(keeper.store, "a", ONE, tag="t")
        await push_document(keeper.store, "a", NOTE, tag="note")
        for blob in (*ONE.blobs, of(NOTE.blobs[1])):
            with refused(Code.UNSUPPORTED):
                await keeper.store.delete_blob("a", Digest(blob))

    # --- manifests ----------------------------------------------------------------------------------------------------

    async def test_a_manifest_is_found_by_tag_and_digest_with_every_byte(self, keeper: Keeper):
        digest = await push(keeper.store, "a/b", ONE, tag="t")
        assert await keeper.store.resolve("a/b", "t") == digest
        raw = await keeper.store.manifest("a/b", digest)
        assert (raw.data, raw.media_type, raw.digest) == (ONE.manifest, ONE.media_type, digest)
        for blob, data in ONE.blobs.items():
            assert await read(keeper.store, "a/b", Digest(blob)) == data

    async def test_what_a_manifest_needs_is_told(self, keeper: Keeper):
        digest = await push_document(keeper.store, "a", NOTE)
        named = await keeper.store.described("a", digest)
        assert set(named.blobs) == {of(blob) for blob in NOTE.blobs}
        assert named.size == len(NOTE.data)
        assert named.weight == sum(map(len, NOTE.blobs))
        assert named.artifact_type == "application/vnd.example.note"

    async def test_an_incomplete_manifest_is_refused_and_not_there(self, keeper: Keeper):
        first, *rest = ONE.blobs.values()
        for blob in rest:
            await upload(keeper.store, "a", blob)
        raw = Raw(ONE.manifest, ONE.media_type, of(ONE.manifest))
        with pytest.raises(Problem) as info:
            await keeper.store.put_manifest("a", raw, tag="t")
        assert info.value.code is Code.MANIFEST_BLOB_UNKNOWN
        assert info.value.detail == [{"digest": of(first)}]
        with refused(Code.MANIFEST_UNKNOWN):
            await keeper.store.manifest("a", raw.digest)
        with refused(Code.MANIFEST_UNKNOWN):
            await keeper.store.resolve("a", "t")

    async def test_blobs_of_another_repository_do_not_complete_a_manifest(self, keeper: Keeper):
        await push(keeper.store, "a", ONE, tag="t")
        with refused(Code.MANIFEST_BLOB_UNKNOWN):
            await keeper.store.put_manifest("b", Raw(ONE.manifest, ONE.media_type, of(ONE.manifest)), tag="t")

    async def test_an_index_needs_its_manifests(self, keeper: Keeper):
        raw = Raw(INDEX, INDEX_TYPE, of(INDEX))
        await push(keeper.store, "a", ONE)
        with refused(Code.MANIFEST_BLOB_UNKNOWN):
            await keeper.store.put_manifest("a", raw, tag="t")
        await push(keeper.store, "a", OTHER)
        await keeper.store.put_manifest("a", raw, tag="t")
        assert await keeper.store.resolve("a", "t") == of(INDEX)
        assert (await keeper.store.manifest("a", of(INDEX))).data == INDEX
        assert (await keeper.store.manifest("a", of(OTHER.manifest))).data == OTHER.manifest

    @pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"schemaVersion": 1}', b'{"schemaVersion": 2}', b"\xff"])
    async def test_what_is_no_manifest_is_refused(self, keeper: Keeper, data: bytes):
        with refused(Code.MANIFEST_INVALID):
            await keeper.store.put_manifest("a", Raw(data, "", of(data)), tag="t")

    async def test_a_tag_names_what_was_pushed_last(self, keeper: Keeper):
        await push(keeper.store, "a", ONE, tag="t")
        first = (await keeper.store.tag_list("a"))[0]
        await push(keeper.store, "a", OTHER, tag="t")
        second = (await keeper.store.tag_list("a"))[0]
        assert (first.digest, second.digest) == (of(ONE.manifest), of(OTHER.manifest))
        assert second.pushed >= first.pushed
        await push_document(keeper.store, "a", NOTE, tag="t")
        assert await keeper.store.resolve("a", "t") == of(NOTE.data)

    async def test_a_tag_pushed_by_many_names_one_of_theirs(self, keeper: Keeper):
        notes = [documents.artifact(f"note {number}") for number in range(8)]
        await asyncio.gather(*(push_document(keeper.store, "a", note, tag="t") for note in notes))
        assert await keeper.store.resolve("a", "t") in {of(note.data) for note in notes}
        assert await keeper.store.tags("a", after="", limit=10) == ["t"]

    async def test_a_deleted_tag_leaves_the_manifest(self, keeper: Keeper):
        digest = await push(keeper.store, "a", ONE, tag="t")
        await keeper.store.delete_tag("a", "t")
        with refused(Code.MANIFEST_UNKNOWN):
            await keeper.store.resolve("a", "t")
        with refused(Code.MANIFEST_UNKNOWN):
            await keeper.store.delete_tag("a", "t")
        assert (await keeper.store.manifest("a", digest)).data == ONE.manifest

    async def test_a_deleted_manifest_takes_its_tags_along(self, keeper: Keeper):
        digest = await push(keeper.store, "a", ONE, tag="t")
        await push(keeper.store, "a", ONE, tag="u")
        await push_document(keeper.store, "a", NOTE, tag="note")
        await keeper.store.delete_manifest("a", digest)
        assert await keeper.store.tags("a", after="", limit=10) == ["note"]
        with refused(Code.MANIFEST_UNKNOWN):
            await keeper.store.manifest("a", digest)
        with refused(Code.MANIFEST_UNKNOWN):
            await keeper.store.delete_manifest("a", digest)

    async def test_what_is_in_no_repository_is_unknown(self, keeper: Keeper):
        unknown = refused(Code.NAME_UNKNOWN, Code.MANIFEST_UNKNOWN)
        with unknown:
            await keeper.store.manifest("nowhere", NOBODY)
        with unknown:
            await keeper.store.resolve("nowhere", "t")
        with unknown:
            await keeper.store.delete_manifest("nowhere", NOBODY)
        with unknown:
            await keeper.store.delete_tag("nowhere", "t")
        with refused(Code.NAME_UNKNOWN):
            await keeper.store.tags("nowhere", after="", limit=1)
        with refused(Code.NAME_UNKNOWN):
            await keeper.store.tag_list("nowhere")

    # --- lists --------------------------------------------------------------------------------------------------------

    async def test_tags_are_listed_in_order_page_by_page(self, keeper: Keeper):
        for name in ("b", "1", "latest", "a", "Z"):
            await push(keeper.store, "a", ONE, tag=name)
        await push_document(keeper.store, "a", NOTE, tag="m")
        every = ["1", "Z", "a", "b", "latest", "m"]
        assert await keeper.store.tags("a", after="", limit=100) == every
        assert [tag.name for tag in await keeper.store.tag_list("a")] == every
        assert await keeper.store.tags("a", after="Z", limit=2) == ["a", "b"]
        assert await keeper.store.tags("a", after="c", limit=2) == ["latest", "m"]
        assert await keeper.store.tags("a", after="m", limit=2) == []
        assert await keeper.store.tags("a", after="", limit=0) == []

    async def test_repositories_are_listed_in_order_page_by_page(self, keeper: Keeper):
        for name in ("b", "a/x", "c"):
            await push(keeper.store, name, ONE, tag="t")
        await push_document(keeper.store, "a", NOTE, tag="t")
        assert await keeper.store.repositories(after="", limit=100) == ["a", "a/x", "b", "c"]
        assert await keeper.store.repositories(after="a", limit=2) == ["a/x", "b"]
        assert await keeper.store.repositories(after="c", limit=2) == []

    # --- referrers ----------------------------------------------------------------------------------------------------

    async def test_referrers_are_found_with_type_and_annotations(self, keeper: Keeper):
        subject = documents.Made(ONE.manifest, ONE.media_type)
        signature = documents.artifact("signature", subject=subject, annotations={"by": "alice"})
        assert await keeper.store.referrers("a", subject.digest) == []
        for blob in signature.blobs:
            await upload(keeper.store, "a", blob)
        told = await keeper.store.put_manifest(
            "a", Raw(signature.data, signature.media_type, of(signature.data)), tag=None
        )
        assert told is not None
        assert told.digest == subject.digest
        await push(keeper.store, "a", ONE, tag="t")
        (found,) = await keeper.store.referrers("a", Digest(subject.digest))
        assert (found.digest, found.size, found.media_type) == (
            of(signature.data),
            len(signature.data),
            signature.media_type,
        )
        assert (found.artifact_type, found.annotations) == ("application/vnd.example.note", {"by": "alice"})
        assert await keeper.store.referrers("b", Digest(subject.digest)) == []
        await keeper.store.delete_manifest("a", of(signature.data))
        assert await keeper.store.referrers("a", Digest(subject.digest)) == []

    # --- restarts -----------------------------------------------------------------------------------------------------

    async def test_everything_survives_a_restart(self, keeper: Keeper):
        digest = await push(keeper.store, "a", ONE, tag="t")
        await push_document(keeper.store, "a", NOTE, tag="note")
        signature = documents.artifact("signature", subject=documents.Made(ONE.manifest, ONE.media_type))
        await push_document(keeper.store, "a", signature)
        await upload(keeper.store, "b", DATA)
        await keeper.store.mount_blob("c", of(DATA), "b")
        await push(keeper.store, "gone", OTHER, tag="t")
        await keeper.store.delete_manifest("gone", of(OTHER.manifest))
        times = {tag.name: tag.pushed for tag in await keeper.store.tag_list("a")}

        await keeper.reopen()

        assert {tag.name: tag.pushed for tag in await keeper.store.tag_list("a")} == times
        assert await keeper.store.resolve("a", "t") == digest
        assert (await keeper.store.manifest("a", digest)).data == ONE.manifest
        assert (await keeper.store.manifest("a", of(NOTE.data))).data == NOTE.data
        assert [each.digest for each in await keeper.store.referrers("a", digest)] == [of(signature.data)]
        assert await read(keeper.store, "c", of(DATA)) == DATA
        with refused(Code.MANIFEST_UNKNOWN, Code.NAME_UNKNOWN):
            await keeper.store.resolve("gone", "t")
