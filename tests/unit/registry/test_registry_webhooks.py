"""Webhooks against a receiver on the loopback that fails as it is told."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from wherry.errors import InvalidParameter
from wherry.registry.hooks import Happening
from wherry.registry.telling.notify import MEDIA_TYPE, SIGNATURE, Endpoint, Notifier, WebhookConfig, check, make, sign

HOST = "https://registry.test"


@dataclass
class Receiver:
    url: str = ""
    statuses: list[int] = field(default_factory=list)  # of the next answers; then 200
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def post(self, request: web.Request) -> web.Response:
        body = await request.read()
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 200:
            self.requests.append((dict(request.headers), body))
        self.arrived.set()
        return web.Response(status=status)

    def events(self) -> list[dict[str, dict[str, object]]]:
        return [event for _, body in self.requests for event in json.loads(body)["events"]]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    app = web.Application()
    app.router.add_post("/hook", made.post)
    async with TestServer(app) as server:
        made.url = str(server.make_url("/hook"))
        yield made


def pushed(number: int = 0, repository: str = "team/app", action: str = "push") -> Happening:
    return Happening(
        action=action,
        repository=repository,
        digest=f"sha256:{number:064x}",
        tag=f"v{number}",
        media_type="application/vnd.oci.image.manifest.v1+json",
        size=7,
        actor="ann",
        address="192.0.2.1",
        method="PUT",
        user_agent="docker/28",
    )


async def until(endpoint: Endpoint, *, settled: int) -> None:
    """Wait until so many events were delivered or dropped."""
    async with asyncio.timeout(10):
        while endpoint.sent + endpoint.dropped < settled:  # noqa: ASYNC110 - the endpoint tells nobody
            await asyncio.sleep(0.005)


async def deliver(notifier: Notifier, *, settled: int) -> None:
    task = asyncio.create_task(notifier.deliver())
    await until(notifier.endpoints[0], settled=settled)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def at_once(_: float) -> None:
    await asyncio.sleep(0)


def one(receiver: Receiver, *, queue: int = 100, secret: bytes = b"", **config: object) -> Notifier:
    settings = WebhookConfig(url=receiver.url, **config)  # type: ignore[arg-type]
    return Notifier([Endpoint(settings, secret, queue=queue, sleep=at_once)], host=HOST, clock=lambda: 1.5)


async def test_a_push_is_told_in_the_envelope_of_dockers_distribution(receiver: Receiver) -> None:
    notifier = one(receiver)
    notifier.happened(pushed(3))
    await deliver(notifier, settled=1)
    headers, _ = receiver.requests[0]
    assert headers["Content-Type"] == MEDIA_TYPE
    (event,) = receiver.events()
    assert event["action"] == "push"
    assert event["timestamp"] == "1970-01-01T00:00:01.500000Z"
    digest = pushed(3).digest
    assert event["target"] == {
        "repository": "team/app",
        "digest": digest,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "size": 7,
        "length": 7,
        "url": f"https://registry.test/v2/team/app/manifests/{digest}",
        "tag": "v3",
    }
    assert event["actor"] == {"name": "ann"}
    assert event["request"] | {"id": ""} == {
        "id": "",
        "addr": "192.0.2.1",
        "host": "registry.test",
        "method": "PUT",
        "useragent": "docker/28",
    }


async def test_a_body_is_signed_with_the_endpoints_secret(receiver: Receiver, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hush\n")
    notifier = make([WebhookConfig(url=receiver.url, secret_file=str(tmp_path / "secret"))], host=HOST)
    notifier.happened(pushed())
    await deliver(notifier, settled=1)
    headers, body = receiver.requests[0]
    assert headers[SIGNATURE] == sign(b"hush", body)
    assert sign(b"other", body) != headers[SIGNATURE]


async def test_events_keep_their_order_across_failures(receiver: Receiver) -> None:
    receiver.statuses = [500, 503, 429]
    notifier = one(receiver)
    task = asyncio.create_task(notifier.deliver())
    for number in range(5):
        notifier.happened(pushed(number))
        await receiver.arrived.wait()  # later ones come while the first is refused
    await until(notifier.endpoints[0], settled=5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [event["target"]["tag"] for event in receiver.events()] == [f"v{number}" for number in range(5)]
    assert notifier.endpoints[0].failures == 3


async def test_an_endpoint_that_is_away_gets_what_happened_meanwhile(receiver: Receiver, unused_tcp_port: int) -> None:
    pauses: list[float] = []

    async def come_back(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            await site.start()

    app = web.Application()
    app.router.add_post("/hook", receiver.post)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", unused_tcp_port)
    config = WebhookConfig(url=f"http://127.0.0.1:{unused_tcp_port}/hook")
    notifier = Notifier([Endpoint(config, b"", sleep=come_back)], host=HOST)
    notifier.happened(pushed(1))
    notifier.happened(pushed(2))
    await deliver(notifier, settled=2)
    await runner.cleanup()
    assert [event["target"]["tag"] for event in receiver.events()] == ["v1", "v2"]
    assert pauses[0] * 1.2 < pauses[2], "it waits longer every time"


async def test_the_oldest_events_are_dropped_when_too_many_wait(receiver: Receiver) -> None:
    notifier = one(receiver, queue=3)
    for number in range(5):
        notifier.happened(pushed(number))
    (endpoint,) = notifier.endpoints
    assert (endpoint.waiting, endpoint.dropped) == (3, 2)
    await deliver(notifier, settled=5)
    assert [event["target"]["tag"] for event in receiver.events()] == ["v2", "v3", "v4"]


async def test_what_comes_while_a_full_queue_is_refused_takes_the_place_of_the_oldest(receiver: Receiver) -> None:
    receiver.statuses = [500]
    notifier = one(receiver, queue=2)
    notifier.happened(pushed(0))
    notifier.happened(pushed(1))
    task = asyncio.create_task(notifier.deliver())
    await asyncio.sleep(0)  # both are on their way
    while notifier.endpoints[0].waiting:  # noqa: ASYNC110
        await asyncio.sleep(0)
    notifier.happened(pushed(2))
    await until(notifier.endpoints[0], settled=3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [event["target"]["tag"] for event in receiver.events()] == ["v1", "v2"]
    assert notifier.endpoints[0].dropped == 1


async def test_what_is_refused_for_good_does_not_hold_up_the_rest(receiver: Receiver) -> None:
    receiver.statuses = [422]
    notifier = one(receiver)
    notifier.happened(pushed(1))
    await deliver(notifier, settled=1)
    notifier.happened(pushed(2))
    await deliver(notifier, settled=2)
    assert [event["target"]["tag"] for event in receiver.events()] == ["v2"]
    assert notifier.endpoints[0].dropped == 1


async def test_an_endpoint_is_told_only_what_it_asked_for(receiver: Receiver) -> None:
    notifier = one(receiver, actions=["push"], repositories=["team/*"])
    notifier.happened(pushed(1, action="pull"))
    notifier.happened(pushed(2, repository="other/app"))
    notifier.happened(pushed(3))
    assert notifier.endpoints[0].waiting == 1


async def test_events_on_their_way_when_the_registry_stops_are_still_waiting(receiver: Receiver) -> None:
    gate = asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        gate.set()
        await asyncio.sleep(60)
        return web.Response()

    app = web.Application()
    app.router.add_post("/hook", slow)
    async with TestServer(app) as server:
        receiver.url = str(server.make_url("/hook"))
        notifier = one(receiver)
        notifier.happened(pushed())
        task = asyncio.create_task(notifier.deliver())
        await gate.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert notifier.endpoints[0].waiting == 1


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (WebhookConfig(url="ftp://x"), "want http"),
        (WebhookConfig(url="http://x", actions=["explode"]), "unknown action 'explode'"),
        (WebhookConfig(url="http://x", timeout=0), "more than 0 seconds"),
    ],
)
def test_a_webhook_that_cannot_work_is_refused(config: WebhookConfig, said: str) -> None:
    with pytest.raises(InvalidParameter, match=said):
        check([config])


def test_an_empty_or_missing_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("\n")
    with pytest.raises(InvalidParameter, match="is empty"):
        make([WebhookConfig(url="http://x", secret_file=str(tmp_path / "secret"))], host=HOST)
    with pytest.raises(InvalidParameter, match="cannot read the secret"):
        make([WebhookConfig(url="http://x", secret_file=str(tmp_path / "none"))], host=HOST)
