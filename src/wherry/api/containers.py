"""/containers: life and looks of containers. Sessions (attach, exec, logs, wait) are in `sessions.py`."""

from aiohttp import web
from msgspec.structs import replace

from wherry.aio import finish
from wherry.api.call import Call
from wherry.api.router import Router
from wherry.containers.attached import is_users
from wherry.containers.content import commit as committing
from wherry.containers.life import create as creating
from wherry.containers.life import pause as pausing
from wherry.containers.life import prune as pruning
from wherry.containers.life import remove as removing
from wherry.containers.life import rename as renaming
from wherry.containers.life import restart as restarting
from wherry.containers.life import start as starting
from wherry.containers.life import stop as stopping
from wherry.containers.streams import resize as resizing
from wherry.containers.views import inspect as inspecting
from wherry.containers.views import listing
from wherry.containers.views import top as topping
from wherry.containers.views.shapes import Document
from wherry.errors import InvalidParameter
from wherry.spec import engine

_MAC_DEPRECATED = (
    "The container-wide MacAddress field is now deprecated. It should be specified in EndpointsConfig instead."
)
_LARGEST = 2**32 - 1  # of a terminal's height and width on the wire


def add(router: Router) -> None:
    router.add("GET", "/containers/json", list_)
    router.add("POST", "/containers/create", create)
    router.add("POST", "/containers/prune", prune)
    router.add("GET", "/containers/{name}/json", inspect)
    router.add("GET", "/containers/{name}/top", top)
    router.add("POST", "/containers/{name}/start", start)
    router.add("POST", "/containers/{name}/stop", stop)
    router.add("POST", "/containers/{name}/restart", restart)
    router.add("POST", "/containers/{name}/kill", kill)
    router.add("POST", "/containers/{name}/pause", pause)
    router.add("POST", "/containers/{name}/unpause", unpause)
    router.add("POST", "/containers/{name}/rename", rename)
    router.add("POST", "/containers/{name}/resize", resize)
    router.add("DELETE", "/containers/{name}", remove)
    router.add("POST", "/commit", commit)


async def list_(call: Call) -> web.StreamResponse:
    found = await listing.list_containers(
        call.services.containers,
        all=call.flag("all"),
        limit=call.number("limit") or 0,
        size=call.flag("size"),
        filters=call.filters(),
    )
    return call.reply([_as_asked(call, document) for document in found])


def _as_asked(call: Call, document: Document) -> Document:
    """Without what the client's API version does not know, and as it was then."""
    if not call.speaks(1, 48):
        document.pop("ImageManifestDescriptor", None)
    settings = document["NetworkSettings"]
    assert isinstance(settings, dict)
    for network, endpoint in settings["Networks"].items():
        if not call.speaks(1, 48):
            del endpoint["GwPriority"]
        if not call.speaks(1, 45) and is_users(network):
            names = [*(endpoint["Aliases"] or ()), *(endpoint["DNSNames"] or ())[1:]]  # but for the name
            endpoint["Aliases"] = list(dict.fromkeys(names)) or None
    return document


async def create(call: Call) -> web.StreamResponse:
    raw = await call.json()
    if not raw.strip():
        raise InvalidParameter("invalid JSON: got EOF while reading request body")
    body = engine.decode(engine.CreateContainer, raw)
    networks = body.networking_config.endpoints_config or {}
    if len(networks) > 1 and not call.speaks(1, 44):
        raise InvalidParameter(f"Container cannot be connected to network endpoints: {', '.join(networks)}")
    if body.healthcheck is not None and not call.speaks(1, 44):
        body = replace(body, healthcheck=replace(body.healthcheck, start_interval=0))
    created = await creating.create(
        call.services.containers,
        body,
        name=call.text("name") or None,
        platform=call.text("platform") or None,
        caller=call.caller(),
    )
    warnings = list(created.warnings)
    if body.mac_address and call.speaks(1, 44):
        warnings.append(_MAC_DEPRECATED)
    return call.reply({"Id": created.id, "Warnings": warnings}, 201)


async def inspect(call: Call) -> web.StreamResponse:
    document = await inspecting.inspect(call.services.containers, call["name"], size=call.flag("size"))
    return call.reply(_as_asked(call, document))


async def top(call: Call) -> web.StreamResponse:
    return call.reply(await topping.top(call.services.containers, call["name"], ps_args=call.text("ps_args")))


async def start(call: Call) -> web.StreamResponse:
    if (call.request.content_length or 0) > 2:  # "{}" has always been let through
        raise InvalidParameter(
            "starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24"
        )
    await finish(starting.start(call.services.containers, call["name"]))
    return call.empty()


async def stop(call: Call) -> web.StreamResponse:
    await finish(
        stopping.stop(
            call.services.containers, call["name"], signal=call.text("signal") or None, timeout=call.number("t")
        )
    )
    return call.empty()


async def restart(call: Call) -> web.StreamResponse:
    await finish(
        restarting.restart(
            call.services.containers, call["name"], signal=call.text("signal") or None, timeout=call.number("t")
        )
    )
    return call.empty()


async def kill(call: Call) -> web.StreamResponse:
    await finish(stopping.kill(call.services.containers, call["name"], signal=call.text("signal") or None))
    return call.empty()


async def pause(call: Call) -> web.StreamResponse:
    await finish(pausing.pause(call.services.containers, call["name"]))
    return call.empty()


async def unpause(call: Call) -> web.StreamResponse:
    await finish(pausing.unpause(call.services.containers, call["name"]))
    return call.empty()


async def rename(call: Call) -> web.StreamResponse:
    await finish(renaming.rename(call.services.containers, call["name"], call.text("name")))
    return call.empty()


async def resize(call: Call) -> web.StreamResponse:
    height, width = window(call)
    await resizing.resize(call.services.containers, call["name"], height=height, width=width)
    return call.empty(200)


async def remove(call: Call) -> web.StreamResponse:
    await finish(
        removing.remove(
            call.services.containers,
            call["name"],
            force=call.flag("force"),
            volumes=call.flag("v"),
            link=call.flag("link"),
        )
    )
    return call.empty()


async def prune(call: Call) -> web.StreamResponse:
    return call.reply(await finish(pruning.prune(call.services.containers, call.filters())))


async def commit(call: Call) -> web.StreamResponse:
    config = await call.document(engine.ContainerConfig)
    image = await finish(
        committing.commit(
            call.services.containers,
            call.text("container"),
            repo=call.text("repo"),
            tag=call.text("tag"),
            comment=call.text("comment"),
            author=call.text("author"),
            changes=call.texts("changes"),
            pause=call.flag("pause", default=True),
            config=config,
        )
    )
    return call.reply({"Id": image}, 201)


def window(call: Call) -> tuple[int, int]:
    """`h` and `w`, in Docker's words when they are wrong."""
    return _size(call, "h", "height"), _size(call, "w", "width")


def _size(call: Call, name: str, word: str) -> int:
    value = call.text(name)
    digits = value.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal()):
        raise InvalidParameter(f'invalid resize {word} "{value}": invalid syntax')
    if len(digits) > 10 or int(digits) > _LARGEST or (digits != value and int(digits)):
        raise InvalidParameter(f'invalid resize {word} "{value}": value out of range')
    return int(digits)
