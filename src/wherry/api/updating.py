"""POST /containers/{id}/update: Docker's, and what is ours besides (ports, mounts, devices)."""

from aiohttp import web
from msgspec.structs import replace

from wherry.aio import finish
from wherry.api.call import Call
from wherry.api.router import Router
from wherry.containers.life import update as updates
from wherry.spec.engine import UpdateContainer, decode


def add(router: Router) -> None:
    router.add("POST", "/containers/{name}/update", update)


async def update(call: Call) -> web.StreamResponse:
    body = decode(UpdateContainer, await call.json())
    if not call.speaks(1, 40):
        body = replace(body, pids_limit=None)
    warnings = await finish(updates.update(call.services.containers, call["name"], body, caller=call.caller()))
    return call.reply({"Warnings": warnings or None})
