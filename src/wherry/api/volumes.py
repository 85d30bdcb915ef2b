"""/volumes."""

from aiohttp import web

from wherry.aio import finish
from wherry.api.call import Call
from wherry.api.missing import not_yet
from wherry.api.router import Router
from wherry.filters import Filters
from wherry.spec.engine import CreateVolume


def add(router: Router) -> None:
    router.add("GET", "/volumes", list_)
    router.add("POST", "/volumes/create", create)
    router.add("POST", "/volumes/prune", prune)
    router.add("GET", "/volumes/{name}", inspect)
    router.add("DELETE", "/volumes/{name}", remove)
    router.add("PUT", "/volumes/{name}", not_yet("cluster volumes"))


async def list_(call: Call) -> web.StreamResponse:
    return call.reply(call.services.volumes.list(call.filters()))


async def create(call: Call) -> web.StreamResponse:
    body = await call.document(CreateVolume)
    made = await finish(call.services.volumes.create(body.name, body.driver, body.driver_opts, body.labels))
    return call.reply(made, 201)


async def inspect(call: Call) -> web.StreamResponse:
    return call.reply(call.services.volumes.inspect(call["name"]))


async def remove(call: Call) -> web.StreamResponse:
    await finish(call.services.volumes.remove(call["name"], force=call.flag("force")))
    return call.empty()


async def prune(call: Call) -> web.StreamResponse:
    filters = call.filters()
    if not call.speaks(1, 42):  # before that, named volumes were pruned as well
        filters = Filters({**filters.fields, "all": ("true",)})
    return call.reply(await finish(call.services.volumes.prune(filters)))
