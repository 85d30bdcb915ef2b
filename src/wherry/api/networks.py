"""/networks: made, listed, looked at, removed; containers come onto them and leave."""

import time
from collections.abc import Sequence

from aiohttp import web

from wherry.aio import finish
from wherry.api.call import Call
from wherry.api.router import Router
from wherry.containers.life import networking
from wherry.containers.views.times import parse_time
from wherry.errors import InvalidParameter, NotFound
from wherry.filters import Filters
from wherry.network.endpoint import Endpoint
from wherry.network.records import NetworkRecord
from wherry.spec import engine

FILTERS = ("dangling", "driver", "id", "label", "name", "scope", "type")
LOCAL = "local"  # the scope of every network of this engine


def add(router: Router) -> None:
    router.add("GET", "/networks", list_)
    router.add("POST", "/networks/create", create)
    router.add("POST", "/networks/prune", prune)
    router.add("POST", "/networks/{name}/connect", connect)
    router.add("POST", "/networks/{name}/disconnect", disconnect)
    router.add("GET", "/networks/{name}", inspect)
    router.add("DELETE", "/networks/{name}", remove)


async def list_(call: Call) -> web.StreamResponse:
    filters = call.filters()
    filters.check(FILTERS)
    if bad := [kind for kind in filters.get("type") if kind not in ("builtin", "custom")]:
        raise InvalidParameter(f"invalid filter: 'type'='{bad[0]}'")
    dangling = _dangling(filters)
    used = {endpoint.network_id for _, endpoints in _attached(call).values() for endpoint in endpoints}
    networks = call.services.networks
    wanted = {record.id for record in networks.records() if _wanted(record, filters, dangling, used)}
    return call.reply([_as_asked(call, found) for found in networks.list() if found["Id"] in wanted])


def _dangling(filters: Filters) -> bool | None:
    if "dangling" not in filters:
        return None
    try:
        return filters.boolean("dangling", default=False)
    except InvalidParameter:
        raise InvalidParameter(
            'invalid value for filter \'dangling\', must be "true" (or "1"), or "false" (or "0")'
        ) from None


def _wanted(record: NetworkRecord, filters: Filters, dangling: bool | None, used: set[str]) -> bool:
    """`dangling`: only those that no running container is on, or only the others; the predefined are never."""
    if dangling is not None and dangling != (not record.predefined and record.id not in used):
        return False
    return (
        filters.exact("type", "builtin" if record.predefined else "custom")
        and filters.exact("driver", record.driver)
        and filters.exact("scope", LOCAL)
        and filters.pattern("name", record.name)
        and filters.prefix("id", record.id)
        and filters.labels(record.labels)
    )


def _as_asked(call: Call, document: dict[str, object]) -> dict[str, object]:
    """Without what the client's API version does not know."""
    if not call.speaks(1, 48):
        document.pop("EnableIPv4", None)
    return document


def _attached(call: Call) -> dict[str, tuple[str, Sequence[Endpoint]]]:
    """Name and endpoints of every running container."""
    return {
        container.id: (container.name, container.endpoints)
        for container in call.services.containers.store.all()
        if container.running
    }


async def inspect(call: Call) -> web.StreamResponse:
    """`verbose` has nothing to add: it tells of the tasks of services, which there are not."""
    verbose = call.text("verbose")
    if verbose not in ("", "0", "1", "t", "T", "true", "TRUE", "True", "f", "F", "false", "FALSE", "False"):
        raise InvalidParameter(
            f'invalid value for verbose: {verbose}: strconv.ParseBool: parsing "{verbose}": invalid syntax'
        )
    name = call["name"]
    if call.text("scope") not in ("", LOCAL):
        raise NotFound(f"network {name} not found")
    return call.reply(_as_asked(call, call.services.networks.inspect(name, _attached(call))))


async def create(call: Call) -> web.StreamResponse:
    body = await call.document(engine.CreateNetwork)
    network_id, warning = await call.services.networks.create(body)
    return call.reply({"Id": network_id, "Warning": warning}, 201)


async def remove(call: Call) -> web.StreamResponse:
    await call.services.networks.remove(call["name"])
    return call.empty()


async def connect(call: Call) -> web.StreamResponse:
    body = await call.document(engine.ConnectNetwork)
    settings = body.endpoint_config or engine.EndpointSettings()
    await finish(networking.connect(call.services.containers, call["name"], body.container, settings))
    return call.empty(200)


async def disconnect(call: Call) -> web.StreamResponse:
    body = await call.document(engine.DisconnectNetwork)
    await finish(networking.disconnect(call.services.containers, call["name"], body.container, force=body.force))
    return call.empty(200)


async def prune(call: Call) -> web.StreamResponse:
    filters = call.filters()
    filters.check(("label", "label!", "until"))
    until = filters.one("until")
    before = None if until is None else parse_time(until, now=time.time_ns())
    removed = await call.services.networks.prune(filters, before)
    return call.reply({"NetworksDeleted": removed or None})
