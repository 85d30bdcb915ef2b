"""/networks: the default ones can be looked at; there are no others yet."""

from collections.abc import Mapping, Sequence

from aiohttp import web

from wherry.api.call import Call
from wherry.api.router import Router
from wherry.errors import Forbidden, NotSupported
from wherry.filters import Filters
from wherry.network.endpoint import Endpoint

FILTERS = ("dangling", "driver", "id", "label", "name", "scope", "type")


def add(router: Router) -> None:
    router.add("GET", "/networks", list_)
    router.add("POST", "/networks/create", create)
    router.add("POST", "/networks/prune", prune)
    router.add("POST", "/networks/{name}/connect", change)
    router.add("POST", "/networks/{name}/disconnect", change)
    router.add("GET", "/networks/{name}", inspect)
    router.add("DELETE", "/networks/{name}", remove)


async def list_(call: Call) -> web.StreamResponse:
    filters = call.filters()
    filters.check(FILTERS)
    return call.reply([found for found in call.services.networks.list() if _wanted(found, filters)])


def _wanted(found: Mapping[str, object], filters: Filters) -> bool:
    if any(kind not in ("builtin", "custom") for kind in filters.get("type")):
        raise filters.invalid("type")
    if "dangling" in filters and filters.boolean("dangling", default=False):
        return False  # the default networks never count as unused
    identity, name = str(found["Id"]), str(found["Name"])
    return (
        filters.exact("type", "builtin")
        and filters.exact("driver", str(found["Driver"]))
        and filters.exact("scope", str(found["Scope"]))
        and filters.pattern("name", name)
        and filters.prefix("id", identity)
        and filters.labels({})
    )


def _attached(call: Call) -> dict[str, tuple[str, Sequence[Endpoint]]]:
    """Name and endpoints of every running container."""
    return {
        container.id: (container.name, container.endpoints)
        for container in call.services.containers.store.all()
        if container.running
    }


async def inspect(call: Call) -> web.StreamResponse:
    return call.reply(call.services.networks.inspect(call["name"], _attached(call)))


async def create(call: Call) -> web.StreamResponse:
    await call.json()
    raise NotSupported("user-defined networks are not supported by this engine yet: use bridge, host or none")


async def remove(call: Call) -> web.StreamResponse:
    found = call.services.networks.inspect(call["name"], {})
    raise Forbidden(f"{found['Name']} is a pre-defined network and cannot be removed")


async def change(call: Call) -> web.StreamResponse:
    """connect, disconnect."""
    await call.json()
    call.services.networks.inspect(call["name"], {})
    raise NotSupported("changing the networks of an existing container is not supported by this engine yet")


async def prune(call: Call) -> web.StreamResponse:
    """The default networks are never pruned, and there are no others."""
    call.filters().check(("label", "label!", "until"))
    return call.reply({"NetworksDeleted": None})
