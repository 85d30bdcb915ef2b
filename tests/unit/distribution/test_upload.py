"""Pushing blobs and manifests to a registry that behaves, and to one that does not."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from harness.descriptors import descriptors
from imagekit.making import digest
from imagekit.push_registry import PushRegistry, serve
from wherry.digest import Digest, of
from wherry.distribution.config import RegistryConfig
from wherry.distribution.errors import Refused, Unreachable
from wherry.distribution.fetch import ATTEMPTS
from wherry.distribution.repository import Repository, open_repository
from wherry.distribution.upload import CHUNK, SMALL, Blob, Outcome, Reports, has_manifest, put_manifest, upload
from wherry.errors import Corrupt, NotFound
from wherry.reference import parse
from wherry.spec.distribution import ANONYMOUS
from wherry.spec.image import OCI_MANIFEST, Raw

DATA = bytes(range(256)) * 12_000  # 3 MB
LITTLE = b"little" * 100
HUGE = bytes(CHUNK + SMALL + 7)


@pytest.fixture
async def registry() -> AsyncIterator[PushRegistry]:
    async with serve(PushRegistry()) as found:
        yield found


class Watch:
    """What an upload reported, and how long it would have slept."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.told: list[int] = []
        self.slept = 0.0

    async def sleep(self, seconds: float) -> None:
        self.slept += seconds

    @property
    def reports(self) -> Reports:
        return Reports(sent=self.sent.append, pausing=self.told.append, sleep=self.sleep)


@pytest.fixture
def watch() -> Watch:
    return Watch()


@asynccontextmanager
async def opened(registry: PushRegistry) -> AsyncIterator[Repository]:
    async with open_repository(RegistryConfig(), parse(f"{registry.host}/team/x"), ANONYMOUS, push=True) as repository:
        yield repository


def blob(data: bytes, sources: Sequence[str] = (), *, size: int | None = None) -> Blob:
    async def read(offset: int) -> AsyncGenerator[bytes, None]:
        for at in range(offset, len(data), 100_000):
            yield data[at : at + 100_000]

    return Blob(digest=of(data), size=len(data) if size is None else size, read=read, sources=sources)


async def send(registry: PushRegistry, watch: Watch, data: bytes, sources: Sequence[str] = ()) -> tuple[Outcome, str]:
    async with opened(registry) as repository:
        return await upload(repository, blob(data, sources), watch.reports)


def held(registry: PushRegistry, data: bytes) -> bool:
    return registry.blobs.get(("team/x", digest(data))) == data


# --- the straight way -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
@pytest.mark.parametrize("data", [b"", LITTLE, bytes(SMALL), DATA], ids=["empty", "little", "limit", "large"])
async def test_a_blob_is_sent_once_and_whole(registry: PushRegistry, watch: Watch, data: bytes, relative: bool):
    registry.relative = relative
    assert await send(registry, watch, data) == (Outcome.PUSHED, "")
    assert held(registry, data)
    assert sum(sent.received for sent in registry.log) == len(data)
    assert len(registry.asked("PATCH")) == (len(data) > SMALL)
    assert watch.sent == sorted(watch.sent)
    assert watch.sent[-1:] == ([len(data)] if data else [])
    assert registry.uploads == {}


async def test_a_stream_from_the_beginning_says_no_range_as_docker_does_not(registry: PushRegistry, watch: Watch):
    await send(registry, watch, DATA)
    (patched,) = registry.asked("PATCH")
    assert "Content-Range" not in patched.headers
    assert patched.headers["Content-Length"] == str(len(DATA))
    assert patched.headers["Content-Type"] == "application/octet-stream"


async def test_what_is_there_is_not_sent(registry: PushRegistry, watch: Watch):
    registry.blobs["team/x", digest(DATA)] = DATA
    assert await send(registry, watch, DATA, ["other"]) == (Outcome.EXISTS, "")
    assert {sent.method for sent in registry.log} == {"GET", "HEAD"}  # ping, and the question


async def test_a_registry_without_head_gets_what_it_may_have(registry: PushRegistry, watch: Watch):
    registry.failures["HEAD"] = [405]
    assert await send(registry, watch, LITTLE) == (Outcome.PUSHED, "")


# --- mounting ---------------------------------------------------------------------------------------------------------


async def test_a_blob_is_mounted_from_the_first_repository_that_has_it(registry: PushRegistry, watch: Watch):
    registry.blobs["third", digest(DATA)] = DATA
    assert await send(registry, watch, DATA, ["first", "second", "third"]) == (Outcome.MOUNTED, "third")
    assert held(registry, DATA)
    assert [sent.query["from"] for sent in registry.asked("POST")] == ["first", "second", "third"]
    assert registry.uploads == {}  # those opened on the way were given up


async def test_a_mount_that_is_not_done_goes_on_as_an_upload(registry: PushRegistry, watch: Watch):
    registry.mounts = False
    registry.blobs["first", digest(DATA)] = DATA
    assert await send(registry, watch, DATA, ["first"]) == (Outcome.PUSHED, "")
    assert len(registry.asked("POST")) == 1
    assert held(registry, DATA)


async def test_a_repository_we_may_not_read_is_no_obstacle(registry: PushRegistry, watch: Watch):
    registry.failures["POST"] = [403]
    assert await send(registry, watch, DATA, ["secret"]) == (Outcome.PUSHED, "")
    assert [sent.query.get("from") for sent in registry.asked("POST")] == ["secret", None]


async def test_only_a_few_repositories_are_asked(registry: PushRegistry, watch: Watch):
    await send(registry, watch, LITTLE, [f"r{number}" for number in range(50)])
    assert len(registry.asked("POST")) == 3


async def test_a_mount_asks_for_leave_to_read_the_other_repository_as_well(registry: PushRegistry, watch: Watch):
    registry.grants = lambda scope: True
    registry.blobs["other", digest(DATA)] = DATA
    assert await send(registry, watch, DATA, ["other"]) == (Outcome.MOUNTED, "other")
    assert registry.asked_scopes == [
        ["repository:team/x:pull,push"],
        ["repository:team/x:pull,push", "repository:other:pull"],
    ]


async def test_who_may_not_push_is_told_so_in_dockers_words(registry: PushRegistry, watch: Watch):
    registry.grants = lambda scope: False
    with pytest.raises(Refused) as caught:
        await send(registry, watch, DATA)
    assert caught.value.message == "denied: requested access to the resource is denied"
    assert not registry.asked("POST")


# --- lines that break -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
async def test_what_came_before_the_line_broke_is_not_sent_again(registry: PushRegistry, watch: Watch, relative: bool):
    registry.relative = relative
    registry.cuts = [1_000_000, 700_000]
    assert await send(registry, watch, DATA) == (Outcome.PUSHED, "")
    assert held(registry, DATA)
    patched = registry.asked("PATCH")
    assert [int(sent.headers["Content-Length"]) for sent in patched] == [
        len(DATA),
        len(DATA) - 1_000_000,
        len(DATA) - 1_700_000,
    ]
    assert [sent.headers.get("Content-Range", "").partition("-")[0] for sent in patched] == ["", "1000000", "1700000"]
    assert watch.slept < 4  # both breaks came after progress: the pauses are short


async def test_only_the_end_is_lacking_after_a_break_and_goes_with_the_last_request(
    registry: PushRegistry, watch: Watch
):
    registry.cuts = [len(DATA) - 5]
    assert await send(registry, watch, DATA) == (Outcome.PUSHED, "")
    (put,) = registry.asked("PUT")
    assert put.received == 5
    assert put.headers["Content-Range"] == f"{len(DATA) - 5}-{len(DATA) - 1}"


@pytest.mark.parametrize("cut", [0, 1], ids=["nothing", "one byte"])
async def test_of_nothing_and_of_one_byte_registries_say_the_same(registry: PushRegistry, watch: Watch, cut: int):
    registry.cuts = [cut]
    assert await send(registry, watch, DATA) == (Outcome.PUSHED, "")
    assert held(registry, DATA)
    assert registry.uploads == {}


async def test_a_registry_that_forgot_the_upload_gets_it_anew(registry: PushRegistry, watch: Watch):
    registry.keeps = False
    registry.cuts = [1_000_000]
    assert await send(registry, watch, DATA) == (Outcome.PUSHED, "")
    assert held(registry, DATA)
    assert [int(sent.headers["Content-Length"]) for sent in registry.asked("PATCH")] == [len(DATA)] * 2


async def test_a_registry_that_forgets_every_time_is_given_up(registry: PushRegistry, watch: Watch):
    registry.keeps = False
    registry.cuts = [1_000_000] * 100
    with pytest.raises(Unreachable):
        await send(registry, watch, DATA)
    assert len(registry.asked("PATCH")) == ATTEMPTS
    assert 20 < watch.slept < 50


async def test_a_line_that_always_brings_something_is_never_given_up(registry: PushRegistry, watch: Watch):
    registry.cuts = [300_000] * (ATTEMPTS + 1)
    assert await send(registry, watch, DATA) == (Outcome.PUSHED, "")
    assert held(registry, DATA)


async def test_when_only_the_last_answer_is_lost_the_blob_is_found_and_counts_as_pushed(
    registry: PushRegistry, watch: Watch
):
    async def lose() -> None:
        if registry.log[-1].method == "PUT":
            registry.blobs["team/x", digest(DATA)] = DATA
            registry.uploads.clear()
            registry.delay = None
            raise ConnectionResetError

    registry.delay = lose
    registry.failures["PUT"] = []
    assert await send(registry, watch, DATA) == (Outcome.PUSHED, "")
    assert len(registry.asked("PATCH")) == 1


@pytest.mark.parametrize("method", ["HEAD", "POST", "PATCH", "PUT"])
@pytest.mark.parametrize("status", [500, 503, 429, 0])
async def test_a_passing_failure_of_any_request_is_waited_for(
    registry: PushRegistry, watch: Watch, method: str, status: int
):
    # a request without effect is made again once by the HTTP library, when the line breaks at once
    registry.failures[method] = [status] * (2 if method in ("HEAD", "PUT") and not status else 1)
    assert await send(registry, watch, DATA) == (Outcome.PUSHED, "")
    assert held(registry, DATA)
    assert watch.told
    assert watch.slept


async def test_a_request_whose_line_broke_at_once_has_its_whole_body_when_it_is_made_again(
    registry: PushRegistry, watch: Watch
):
    """The HTTP library does so by itself for PUT, when a connection that was kept open turns out to be closed."""
    registry.failures["PUT"] = [0]
    async with asyncio.timeout(20):
        assert await send(registry, watch, LITTLE) == (Outcome.PUSHED, "")
    assert held(registry, LITTLE)


async def test_a_failing_question_where_it_goes_on_is_asked_again(registry: PushRegistry, watch: Watch):
    registry.cuts = [1_000_000]
    registry.failures["GET"] = [503]
    assert await send(registry, watch, DATA) == (Outcome.PUSHED, "")
    assert len(registry.asked("PATCH")) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 405, 507])
async def test_a_lasting_refusal_is_told_and_the_upload_given_up(registry: PushRegistry, watch: Watch, status: int):
    registry.failures["PATCH"] = [status] * ATTEMPTS
    with pytest.raises(Refused) as caught:
        await send(registry, watch, DATA)
    assert caught.value.status == status
    assert registry.uploads == {}


async def test_a_registry_that_wants_a_long_pause_is_not_waited_for(registry: PushRegistry, watch: Watch):
    registry.failures["PATCH"] = [429]
    registry.headers = {"Retry-After": "3600"}
    with pytest.raises(Refused, match="too many requests"):
        await send(registry, watch, DATA)
    assert watch.slept == 0


# --- registries with ideas of their own -------------------------------------------------------------------------------


async def test_what_is_too_large_for_one_request_goes_in_chunks(registry: PushRegistry, watch: Watch):
    registry.limit = CHUNK
    assert await send(registry, watch, HUGE) == (Outcome.PUSHED, "")
    assert held(registry, HUGE)
    assert [sent.headers.get("Content-Range") for sent in registry.asked("PATCH")] == [
        None,
        f"0-{CHUNK - 1}",
        f"{CHUNK}-{len(HUGE) - 1}",
    ]


async def test_what_is_too_large_for_any_request_is_refused(registry: PushRegistry, watch: Watch):
    registry.limit = 1000
    with pytest.raises(Refused, match="413"):
        await send(registry, watch, DATA)
    assert len(registry.asked("PATCH")) == 1


async def test_who_only_hangs_up_gets_chunks_in_the_end_of_the_length_it_wants(registry: PushRegistry, watch: Watch):
    registry.minimum = CHUNK + 5
    registry.failures["PATCH"] = [0, 0]
    assert await send(registry, watch, HUGE) == (Outcome.PUSHED, "")
    assert int(registry.asked("PATCH")[-1].headers["Content-Length"]) in (CHUNK + 5, len(HUGE) - CHUNK - 5)
    assert held(registry, HUGE)


@pytest.mark.parametrize("said", ["", "nonsense", "0-" + "9" * 500])
async def test_a_registry_need_not_say_how_much_it_has(registry: PushRegistry, watch: Watch, said: str):
    registry.range = lambda held: said
    assert await send(registry, watch, DATA) == (Outcome.PUSHED, "")
    assert held(registry, DATA)


@pytest.mark.parametrize("lie", ["0-5", "0-99999999999"])
async def test_a_registry_that_says_wrongly_how_much_it_has_is_given_up(registry: PushRegistry, watch: Watch, lie: str):
    registry.range = lambda held: lie
    with pytest.raises((Unreachable, Refused)):
        await send(registry, watch, DATA)
    assert len(registry.log) < 8 * ATTEMPTS
    assert registry.uploads == {}


async def test_what_is_stored_under_another_digest_is_an_error(registry: PushRegistry, watch: Watch):
    registry.stores_as = "sha256:" + "1" * 64
    with pytest.raises(Corrupt, match=f"stored blob {digest(DATA)} as sha256:1111"):
        await send(registry, watch, DATA)
    raw = Raw(b"{}", OCI_MANIFEST, of(b"{}"))
    async with opened(registry) as repository:
        with pytest.raises(Corrupt, match="stored manifest"):
            await put_manifest(repository, raw, "1", watch.reports)


# --- our own side -----------------------------------------------------------------------------------------------------


async def test_a_blob_that_is_shorter_than_it_should_be_is_an_error_at_once(registry: PushRegistry, watch: Watch):
    async with opened(registry) as repository:
        with pytest.raises(Corrupt, match=f"damaged on disk: it has {len(DATA)} of {len(DATA) + 9} bytes"):
            await upload(repository, blob(DATA, size=len(DATA) + 9), watch.reports)
    assert registry.uploads == {}
    assert watch.slept == 0


async def test_a_blob_that_is_gone_is_told_in_the_words_of_who_keeps_it(registry: PushRegistry, watch: Watch):
    async def read(offset: int) -> AsyncGenerator[bytes, None]:
        raise NotFound("no such blob")
        yield b""

    async with opened(registry) as repository:
        with pytest.raises(NotFound, match="no such blob"):
            await upload(repository, Blob(digest=of(DATA), size=len(DATA), read=read), watch.reports)
    assert registry.uploads == {}


async def test_a_cancelled_upload_is_given_up_and_leaves_nothing_open(registry: PushRegistry, watch: Watch):
    flowing, closed = asyncio.Event(), asyncio.Event()

    async def read(offset: int) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield bytes(100_000)
                flowing.set()
        finally:
            closed.set()

    before = descriptors()
    async with opened(registry) as repository:
        endless = Blob(digest=Digest("sha256:" + "2" * 64), size=1 << 40, read=read)
        task = asyncio.create_task(upload(repository, endless, watch.reports))
        await flowing.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await closed.wait()
    assert registry.asked("DELETE")
    assert registry.uploads == {}
    async with asyncio.timeout(10):
        while descriptors() - before:  # noqa: ASYNC110 - the registry closes its end when it notices
            await asyncio.sleep(0.01)


# --- manifests --------------------------------------------------------------------------------------------------------


async def test_a_manifest_is_put_byte_for_byte_under_its_type(registry: PushRegistry, watch: Watch):
    raw = Raw(b'{ "odd" : "spacing" }', OCI_MANIFEST, of(b'{ "odd" : "spacing" }'))
    async with opened(registry) as repository:
        assert not await has_manifest(repository, raw.descriptor, watch.reports)
        await put_manifest(repository, raw, "v1", watch.reports)
        assert await has_manifest(repository, raw.descriptor, watch.reports)
    assert registry.manifests["team/x", "v1"] == (raw.data, OCI_MANIFEST)


@pytest.mark.parametrize("status", [500, 502, 0])
async def test_a_manifest_is_put_again_after_a_passing_failure(registry: PushRegistry, watch: Watch, status: int):
    registry.failures["PUT"] = [status, status]
    raw = Raw(b"{}", OCI_MANIFEST, of(b"{}"))
    async with opened(registry) as repository:
        await put_manifest(repository, raw, "v1", watch.reports)
    assert ("team/x", "v1") in registry.manifests
    assert watch.slept
