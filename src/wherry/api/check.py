"""/system/check, which is ours: the store looked through for damage, and mended if asked.

    GET  /system/check?quick=1                     looks
    POST /system/check?repair=1&quick=1&pull=1     mends; with `pull` also from the registries images came from

The answer is a stream of JSON lines: progress as with pulls, at last the result:

    {"checked": {"blobs": n, "bytes": n, "layers": n, "images": n},
     "problems": [{"kind", "object", "detail", "remedy", "repaired"}, ...]}
"""

from aiohttp import web

from wherry.api.call import Call
from wherry.api.progress import Report, follow
from wherry.api.router import Router
from wherry.images.progress import quiet
from wherry.images.transfer.pull import pull
from wherry.images.upkeep.check import check


def add(router: Router) -> None:
    router.add("GET", "/system/check", look)
    router.add("POST", "/system/check", mend)


async def look(call: Call) -> web.StreamResponse:
    return await _check(call, repair=False, fetch=False)


async def mend(call: Call) -> web.StreamResponse:
    return await _check(call, repair=call.flag("repair"), fetch=call.flag("pull"))


async def _check(call: Call, *, repair: bool, fetch: bool) -> web.StreamResponse:
    images, containers = call.services.images, call.services.containers

    async def bring(reference: str, platform: str) -> None:
        await pull(images, reference, platform=platform or None, progress=quiet)

    async def work(report: Report) -> None:
        found = await check(
            images,
            quick=call.flag("quick"),
            repair=repair,
            fetch=bring if fetch else None,
            snapshots=lambda: {container.id for container in containers.store},
            progress=report,
        )
        report(found.document())

    return await follow(call, work)
