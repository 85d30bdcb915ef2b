"""/volumes: Docker's verbs, and those of our own for whole volumes.

    POST   /volumes/{name}/rename?name=
    POST   /volumes/{name}/clone?name=&label=&pause=
    GET    /volumes/{name}/snapshots
    POST   /volumes/{name}/snapshots?name=&pause=
    DELETE /volumes/{name}/snapshots/{snapshot}
    POST   /volumes/{name}/rollback?snapshot=
    GET    /volumes/{name}/export?pause=                       a tar
    POST   /volumes/{name}/import?size=&label=&replace=        a tar
    POST   /volumes/{name}/push?reference=&compression=&pause= progress as of images
    POST   /volumes/pull?reference=&name=&replace=             likewise

With `pause`, which is on unless said otherwise (off for export), the running containers that use the volume stand still
while it is copied, so that its files fit together: as with commit.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import BinaryIO

from aiohttp import web

from wherry.aio import finish
from wherry.api.call import TAR, Call
from wherry.api.images import credentials
from wherry.api.missing import NO_MANAGER
from wherry.api.progress import Report, follow
from wherry.api.router import Router
from wherry.containers.content.commit import still
from wherry.errors import InvalidParameter, Unavailable
from wherry.filters import Filters
from wherry.images.feed import consume, produce
from wherry.spec.engine import CreateVolume
from wherry.volumes import changes, transfer
from wherry.volumes.changes import Still


def add(router: Router) -> None:
    router.add("GET", "/volumes", list_)
    router.add("POST", "/volumes/create", create)
    router.add("POST", "/volumes/prune", prune)
    router.add("POST", "/volumes/pull", pull)
    router.add("POST", "/volumes/{name}/rename", rename)
    router.add("POST", "/volumes/{name}/clone", clone)
    router.add("GET", "/volumes/{name}/snapshots", snapshots)
    router.add("POST", "/volumes/{name}/snapshots", snapshot)
    router.add("DELETE", "/volumes/{name}/snapshots/{snapshot}", remove_snapshot)
    router.add("POST", "/volumes/{name}/rollback", rollback)
    router.add("GET", "/volumes/{name}/export", export)
    router.add("POST", "/volumes/{name}/import", import_)
    router.add("POST", "/volumes/{name}/push", push)
    router.add("GET", "/volumes/{name}", inspect)
    router.add("DELETE", "/volumes/{name}", remove)
    router.add("PUT", "/volumes/{name}", update)


async def list_(call: Call) -> web.StreamResponse:
    return call.reply(call.services.volumes.list(call.filters()))


async def create(call: Call) -> web.StreamResponse:
    body = await call.document(CreateVolume)
    if body.cluster_volume_spec is not None:
        raise Unavailable(NO_MANAGER)
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


async def update(call: Call) -> web.StreamResponse:
    """Only volumes of a cluster can be changed; outside a swarm Docker says so before it looks at anything."""
    raise Unavailable("volume update only valid for cluster volumes, but swarm is unavailable")


# --- whole volumes ----------------------------------------------------------------------------------------------------


async def rename(call: Call) -> web.StreamResponse:
    await finish(changes.rename(call.services.volumes, call["name"], _given(call, "name")))
    return call.empty()


async def clone(call: Call) -> web.StreamResponse:
    volumes, target = call.services.volumes, _given(call, "name")
    call.watch()
    await changes.clone(volumes, call["name"], target, labels=_labels(call), still=_still(call))
    return call.reply(volumes.inspect(target), 201)


async def snapshots(call: Call) -> web.StreamResponse:
    found = await changes.list_snapshots(call.services.volumes, call["name"])
    return call.reply([each.document() for each in found])


async def snapshot(call: Call) -> web.StreamResponse:
    name = await changes.snapshot(call.services.volumes, call["name"], call.text("name"), still=_still(call))
    return call.reply({"Name": name}, 201)


async def remove_snapshot(call: Call) -> web.StreamResponse:
    await finish(changes.remove_snapshot(call.services.volumes, call["name"], call["snapshot"]))
    return call.empty()


async def rollback(call: Call) -> web.StreamResponse:
    call.watch()
    await changes.rollback(call.services.volumes, call["name"], _given(call, "snapshot"))
    return call.empty()


async def export(call: Call) -> web.StreamResponse:
    standing = _still(call) if call.flag("pause") else None  # the client decides how long it takes
    async with changes.exporting(call.services.volumes, call["name"]) as write, changes.standing(standing):
        return await call.send(produce(write), TAR)


async def import_(call: Call) -> web.StreamResponse:
    async def feed(read: Callable[[BinaryIO], None]) -> None:
        await consume(call.chunks(), read)

    volumes, name = call.services.volumes, call["name"]
    options = {"size": call.text("size")} if call.text("size") else None
    await changes.import_(volumes, name, feed, options=options, labels=_labels(call), replacing=call.flag("replace"))
    return call.reply(volumes.inspect(name), 201)


async def push(call: Call) -> web.StreamResponse:
    services = call.services
    to = transfer.peer(services.images.registry, call.text("reference"), credentials(call), push=True)

    async def work(report: Report) -> None:
        await transfer.push(
            services.volumes, call["name"], to, report, compression=call.text("compression"), still=_still(call)
        )

    return await follow(call, work)


async def pull(call: Call) -> web.StreamResponse:
    services = call.services
    origin = transfer.peer(services.images.registry, call.text("reference"), credentials(call), push=False)

    async def work(report: Report) -> None:
        name = await transfer.pull(services.volumes, call.text("name"), origin, report, replacing=call.flag("replace"))
        report({"aux": {"Name": name}})

    return await follow(call, work)


def _given(call: Call, parameter: str) -> str:
    if not (value := call.text(parameter)):
        raise InvalidParameter(f"bad parameter: '{parameter}' cannot be empty")
    return value


def _labels(call: Call) -> dict[str, str]:
    pairs = [text.partition("=") for text in call.texts("label")]
    return {key: value for key, _, value in pairs}


def _still(call: Call) -> Still | None:
    """The running containers that use the volume stand still while this is open."""
    if not call.flag("pause", default=True):
        return None

    @asynccontextmanager
    async def standing() -> AsyncIterator[None]:
        containers = call.services.containers
        async with AsyncExitStack() as stack:
            for container in containers.store.all():
                if container.running and any(point.name == call["name"] for point in container.mounts):
                    await stack.enter_async_context(still(containers, container, pause=True))
            yield

    return standing
