"""/build and /builds over real rooms: what is refused, what is recorded, what is answered. No step runs here."""

import asyncio
import json
import tarfile
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from api_world import World
from hypothesis import given
from hypothesis import strategies as st
from wirekit import ask, connected, get, post

from wherry.api.build_frames import Head, Reader, encode
from wherry.api.listeners import parse, serve
from wherry.api.progress import HIGH, Pending
from wherry.api.routes import build
from wherry.builder.client import NoClient
from wherry.builder.log import LogEvent, VertexEvent
from wherry.errors import InvalidParameter


class Daemon(World):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.path = root / "s"

    async def ask(self, request: bytes) -> tuple[int, Any]:
        status, _, body = await ask(self.path, request)
        return status, [json.loads(line) for line in body.splitlines()]

    async def build(self, dockerfile: bytes, query: str = "") -> tuple[int, Any]:
        return await self.ask(post(f"/build?{query}", dockerfile, "Content-Type: application/x-tar"))


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    daemon = Daemon(tmp_path)
    listening = await serve(build(daemon.services), [parse(f"unix://{daemon.path}")])
    yield daemon
    await daemon.builder.close()
    await listening.stop(grace=2)


def context(**files: bytes) -> bytes:
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize(
    ("body", "query", "words"),
    [
        (b"FORM x\n", "", "unknown instruction: FORM (did you mean FROM?)"),
        (b"# nothing\n", "", "file with no instructions"),
        (b"FROM scratch\n", "target=nowhere", 'target stage "nowhere" could not be found'),
        (b"", "", "the build context is empty"),
        (b"FROM scratch\n", "buildargs=x", "error reading build args"),
        (context(other=b""), "", "Cannot locate specified Dockerfile: Dockerfile"),
        (context(Dockerfile=b"FROM scratch\n"), "dockerfile=../x", "Cannot locate specified Dockerfile: ../x"),
    ],
)
async def test_what_cannot_be_built_is_refused_before_the_stream(
    daemon: Daemon, body: bytes, query: str, words: str
) -> None:
    status, (answer,) = await daemon.build(body, query)
    assert status == 400
    assert words in answer["message"]


async def test_a_refused_build_is_recorded_and_its_context_goes(daemon: Daemon) -> None:
    await daemon.build(b"FORM x\n", "buildid=mine&t=app")
    _, (record,) = await daemon.ask(get("/builds/mine"))
    assert record["Status"] == "error"
    assert "unknown instruction" in record["Error"]["message"]
    assert not list((daemon.builder.deps.settings.root / "scratch").iterdir())
    assert not daemon.builder.jobs


async def test_builds_are_listed_newest_first_and_told_by_a_part_of_their_id(daemon: Daemon) -> None:
    for name in ("one-build", "two-build"):
        job = await daemon.builder.begin(name, client=NoClient(), attributes={"filename": "My.df"})
        job.log.add(VertexEvent(key="k", name="RUN x", started=1, completed=2, why="`x` changed", slot="0/1"))
        job.log.add(LogEvent(vertex="k", stream=1, data=b"said", at=3))
        await job.end()
    _, (listed,) = await daemon.ask(get("/builds"))
    assert [(each["Id"], each["Status"], each["TotalSteps"]) for each in listed] == [
        ("two-build", "completed", 1),
        ("one-build", "completed", 1),
    ]
    assert [each["Id"] for each in (await daemon.ask(get("/builds?limit=1")))[1][0]] == ["two-build"]
    _, (record,) = await daemon.ask(get("/builds/one"))
    assert (record["Id"], record["Dockerfile"]) == ("one-build", "My.df")
    assert record["Steps"][0]["why"] == "`x` changed"
    _, (explained,) = await daemon.ask(get("/builds/one/explain"))
    assert [(each["Name"], each["Why"]) for each in explained] == [("RUN x", "`x` changed")]
    _, events = await daemon.ask(get("/builds/one/logs"))
    assert [next(iter(event)) for event in events] == ["vertex", "log"]
    assert events[1]["log"]["text"] == "said"
    assert (await daemon.ask(b"DELETE /builds/one HTTP/1.1\r\nHost: d\r\n\r\n"))[0] == 204
    assert (await daemon.ask(get("/builds/one")))[0] == 404
    assert (await daemon.ask(get("/builds?filter=nonsense")))[0] == 400


async def test_the_log_of_a_build_that_runs_goes_on_until_it_ends(daemon: Daemon) -> None:
    job = await daemon.builder.begin("running", client=NoClient())
    job.log.add(LogEvent(vertex="k", stream=1, data=b"first"))
    async with connected(daemon.path) as client:
        await client.send(get("/builds/running/logs"))
        assert (await client.head())[0] == 200
        seen = b""
        while b"first" not in seen:
            seen += await client.reader.read(1000)
        assert (await daemon.ask(b"DELETE /builds/running HTTP/1.1\r\nHost: d\r\n\r\n"))[0] == 409
        job.log.add(LogEvent(vertex="k", stream=1, data=b"second"))
        await job.end()
        while b"0\r\n\r\n" not in seen:
            seen += await client.reader.read(1000)
    assert b"second" in seen


async def test_a_build_by_our_own_way_wants_the_connection(daemon: Daemon) -> None:
    status, (answer,) = await daemon.ask(post("/builds", b""))
    assert (status, "no upgrade" in answer["message"]) == (400, True)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"\xff" * 8, "too long"),
        (encode(Head(type="list")), "begins with its request"),
        (encode(Head(type="build", attributes={"platform": "x/y/z/w"})), "failed to parse target platform"),
        (encode(Head(type="build")) * 2, "speaks before it is asked"),
        (encode(Head(type="build", attributes={"add-hosts": "a=host-gateway"})), "host-gateway"),
    ],
)
async def test_a_request_that_makes_no_sense_fails_in_words(daemon: Daemon, sent: bytes, words: str) -> None:
    daemon.networks.bridge_gateway = ""  # type: ignore[attr-defined]
    async with connected(daemon.path) as client:
        await client.send(b"POST /builds HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
        assert (await client.head())[0] == 101
        await client.send(sent)
        frames = Reader().feed(await client.rest())
    assert frames[-1].head.type == "failed"
    assert words in frames[-1].head.message


async def test_cancelling_and_pruning_say_what_they_want(daemon: Daemon) -> None:
    assert await daemon.ask(post("/build/cancel", b"")) == (400, [{"message": "build ID not provided"}])
    assert (await daemon.ask(post("/build/cancel?id=unknown", b"")))[0] == 200
    assert await daemon.ask(post("/build/prune", b"")) == (200, [{"CachesDeleted": None, "SpaceReclaimed": 0}])
    for query in (
        "keep-storage=x",
        "filters=%7B%22a%22%3A%5B%22b%22%5D%7D",
        "filters=%7B%22until%22%3A%5B%22x%22%5D%7D",
    ):
        assert (await daemon.ask(post(f"/build/prune?{query}", b"")))[0] == 400, query


async def test_who_says_much_waits_for_a_slow_client() -> None:
    pending = Pending()
    await pending.taken()
    pending({"stream": "x" * HIGH})
    waiting = asyncio.ensure_future(pending.taken())
    await asyncio.sleep(0)
    assert not waiting.done()
    assert len(pending.take()) > HIGH
    await waiting


@given(st.lists(st.binary(max_size=200), max_size=5), st.booleans())
def test_bytes_that_are_no_frames_are_refused_or_waited_for(parts: list[bytes], framed: bool) -> None:
    reader = Reader()
    try:
        for part in parts:
            lengths = len(part).to_bytes(4, "big") + b"\0\0\0\0" if framed else b""
            reader.feed(lengths + part)
    except InvalidParameter:
        return
