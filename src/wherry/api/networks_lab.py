"""/networks/lab, /networks/capture: trouble on a running container's links, and what passes them. Our own.

    GET    /networks/lab/{container}?network=       [{"Network", "Latency", "Jitter", "Loss", "Rate", "Partition"}]
    POST   /networks/lab/{container}                the same as a body, in the place of what was set before
    DELETE /networks/lab/{container}?network=       of all networks when none is named
    GET    /networks/capture/{container}?network=&filter=&count=&seconds=&snaplen=      a pcap file without an end

Added before `networks`, whose `{name}` takes slashes. A network may be called lab: `/networks/lab/connect` is its own.
"""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiohttp import web

from wherry.aio import acquire, finish, settle
from wherry.api.call import Call
from wherry.api.router import Router, later
from wherry.containers.record import Container
from wherry.errors import Conflict, InvalidParameter
from wherry.network import lab
from wherry.network.capture import LONGEST_PACKET, CaptureRequest, open_capture
from wherry.network.lab import Trouble
from wherry.network.places import Namespace
from wherry.network.plan import Attachment
from wherry.spec import engine

PCAP = "application/vnd.tcpdump.pcap"

log = logging.getLogger(__name__)


def add(router: Router) -> None:
    for verb in ("connect", "disconnect"):
        router.add("POST", f"/networks/{{name}}/{verb}", later("wherry.api.networks", verb))
    router.add("GET", "/networks/lab/{container}", show)
    router.add("POST", "/networks/lab/{container}", set_)
    router.add("DELETE", "/networks/lab/{container}", clear)
    router.add("GET", "/networks/capture/{container}", capture)


@asynccontextmanager
async def _links(call: Call, container: Container, network: str) -> AsyncIterator[tuple[Namespace, list[Attachment]]]:
    """The container's namespace, and its attachments: all, or the one of `network`. Raises Conflict, NotFound."""
    deps = call.services.containers
    shim = deps.live_of(container).shim if container.running else None
    if shim is None:
        raise Conflict(f"container {container.name} is not running")
    wanted = call.services.networks.resolve(network).id if network else ""
    async with call.services.networks.namespace_of(container.id, shim.netns_path) as (namespace, attachments):
        found = [each for each in attachments if wanted in ("", each.network_id)]
        if not found:
            where = f"network {network}" if network else "any network"
            raise Conflict(f"container {container.name} is not connected to {where}")
        yield namespace, found


def _only(container: Container, attachments: Sequence[Attachment]) -> Attachment:
    if len(attachments) > 1:
        names = ", ".join(each.endpoint.network for each in attachments)
        raise InvalidParameter(f"container {container.name} is on several networks: name one of {names}")
    return attachments[0]


async def show(call: Call) -> web.StreamResponse:
    container = call.services.containers.store.resolve(call["container"])
    async with _links(call, container, call.text("network")) as (namespace, attachments):
        found = []
        for each in attachments:
            trouble = await settle(lab.trouble_of, namespace, each.place())
            found.append(
                {
                    "Network": each.endpoint.network,
                    "Latency": trouble.latency,
                    "Jitter": trouble.jitter,
                    "Loss": trouble.loss,
                    "Rate": trouble.rate,
                    "Partition": trouble.partition,
                }
            )
    return call.reply(found)


async def set_(call: Call) -> web.StreamResponse:
    container = call.services.containers.store.resolve(call["container"])
    body = await call.document(engine.LinkTrouble)
    trouble = Trouble(
        latency=body.latency, jitter=body.jitter, loss=body.loss, rate=body.rate, partition=body.partition
    )
    await finish(_set(call, container, body.network, trouble))
    return call.empty()


async def _set(call: Call, container: Container, network: str, trouble: Trouble) -> None:
    async with (
        call.services.containers.locks(container.id),
        _links(call, container, network) as (namespace, attachments),
    ):
        await settle(lab.set_trouble, namespace, _only(container, attachments).place(), trouble)


async def clear(call: Call) -> web.StreamResponse:
    container = call.services.containers.store.resolve(call["container"])
    await finish(_clear(call, container, call.text("network")))
    return call.empty()


async def _clear(call: Call, container: Container, network: str) -> None:
    async with (
        call.services.containers.locks(container.id),
        _links(call, container, network) as (namespace, attachments),
    ):
        for each in attachments:
            await settle(lab.clear, namespace, each.place())


async def capture(call: Call) -> web.StreamResponse:
    """The namespace is left before the stream begins, so that it can go with its container."""
    container = call.services.containers.store.resolve(call["container"])
    request = CaptureRequest(
        snaplen=call.number("snaplen") or LONGEST_PACKET,
        filter=call.text("filter"),
        count=call.number("count") or 0,
        seconds=_seconds(call.text("seconds")),
    )
    async with _links(call, container, call.text("network")) as (namespace, attachments):
        taken = await acquire(open_capture, namespace, _only(container, attachments).place(), request)
    try:
        response = await call.stream(PCAP)
        async for piece in taken.pieces():
            await response.write(piece)
    finally:
        if lost := taken.dropped:
            log.warning("capture of %s: %d packets were lost, the client reads too slowly", container.name, lost)
        taken.close()
    return response


def _seconds(text: str) -> float:
    try:
        return float(text or 0)
    except ValueError as exc:
        raise InvalidParameter(f"invalid seconds: {text!r}") from exc
