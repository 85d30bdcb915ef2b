"""/images: pull, looking at what is there, names, removal."""

import logging

from aiohttp import web

from wherry.aio import finish
from wherry.api import archives
from wherry.api.call import Call
from wherry.api.progress import Report, follow
from wherry.api.router import Router
from wherry.containers.views.image_users import ImageUsers
from wherry.errors import InvalidParameter
from wherry.filters import Filters
from wherry.images.making import bootstrap as bootstrapping
from wherry.images.transfer import pull as pulling
from wherry.images.upkeep import prune as pruning
from wherry.images.upkeep import remove as removing
from wherry.images.upkeep import tag as tagging
from wherry.images.views import inspect as documents
from wherry.images.views import versions
from wherry.images.views.listing import list_images
from wherry.spec.distribution import ANONYMOUS, Auth, decode_auth
from wherry.spec.image import decode_platform

log = logging.getLogger(__name__)


def add(router: Router) -> None:
    router.add("GET", "/images/json", list_)
    router.add("POST", "/images/create", create)
    router.add("POST", "/images/prune", prune)
    router.add("POST", "/images/bootstrap", bootstrap)
    router.add("GET", "/images/{name}/json", inspect)
    router.add("GET", "/images/{name}/history", history)
    router.add("POST", "/images/{name}/tag", tag)
    router.add("DELETE", "/images/{name}", remove)


async def list_(call: Call) -> web.StreamResponse:
    found = await list_images(
        call.services.images,
        all=call.flag("all"),
        filters=_list_filters(call),
        shared_size=call.flag("shared-size") and call.speaks(1, 42),
        manifests=call.flag("manifests") and call.speaks(1, 47),
        users=container_ids(call),
    )
    return call.reply([versions.summary(document, call.version) for document in found])


def _list_filters(call: Call) -> Filters:
    """Before API 1.41 there was `filter` besides, a reference."""
    filters = call.filters()
    pattern = "" if call.speaks(1, 41) else call.text("filter")
    return Filters({**filters.fields, "reference": (*filters.get("reference"), pattern)}) if pattern else filters


async def inspect(call: Call) -> web.StreamResponse:
    platform = _platform(call) if call.speaks(1, 49) else None
    manifests = call.flag("manifests") and call.speaks(1, 48)
    if platform and manifests:
        raise InvalidParameter("conflicting options: manifests and platform options cannot both be set")
    document = documents.inspect(call.services.images, call["name"], platform=platform)
    if manifests:
        document["Manifests"] = await documents.manifests(call.services.images, call["name"], users=container_ids(call))
    return call.reply(versions.inspected(document, call.version))


async def history(call: Call) -> web.StreamResponse:
    platform = _platform(call) if call.speaks(1, 48) else None
    return call.reply(documents.history(call.services.images, call["name"], platform=platform))


async def create(call: Call) -> web.StreamResponse:
    return await (_pull(call) if call.text("fromImage") else archives.import_(call))


async def _pull(call: Call) -> web.StreamResponse:
    name = call.text("fromImage").removesuffix(":")  # `pull -a` may leave one
    tag = call.text("tag") or None
    auth = credentials(call)

    async def work(report: Report) -> None:
        await pulling.pull(
            call.services.images,
            name,
            tag=tag,
            platform=call.text("platform") or None,
            auth=auth,
            progress=report,
            all_tags=tag is None,
        )

    return await follow(call, work)


def credentials(call: Call) -> Auth:
    """As in Docker credentials that cannot be read count as none: the registry will say what it thinks of that."""
    try:
        return decode_auth(call.request.headers.get("X-Registry-Auth"))
    except InvalidParameter as exc:
        log.debug("%s", exc.message)
        return ANONYMOUS


async def tag(call: Call) -> web.StreamResponse:
    await finish(
        tagging.tag(call.services.images, call["name"], repository=call.text("repo"), tag=call.text("tag") or None)
    )
    return call.empty(201)


async def remove(call: Call) -> web.StreamResponse:
    removed = await finish(
        removing.remove(
            call.services.images,
            call["name"],
            force=call.flag("force"),
            prune=not call.flag("noprune"),
            platforms=[decode_platform(text) for text in call.texts("platforms")] if call.speaks(1, 50) else [],
            in_use=ImageUsers(call.services.containers.store),
        )
    )
    return call.reply(removed)


async def prune(call: Call) -> web.StreamResponse:
    in_use = ImageUsers(call.services.containers.store)
    return call.reply(await finish(pruning.prune(call.services.images, call.filters(), in_use=in_use)))


async def bootstrap(call: Call) -> web.StreamResponse:
    """Our own: a base image from this machine's distribution packages."""
    name = call.text("name")

    async def work(report: Report) -> None:
        await bootstrapping.bootstrap(call.services.images, name, progress=report)

    return await follow(call, work)


def container_ids(call: Call) -> dict[str, list[str]]:
    """Which containers were made from which image, now."""
    found: dict[str, list[str]] = {}
    for container in call.services.containers.store.all():
        found.setdefault(container.image_id, []).append(container.id)
    return found


def _platform(call: Call) -> str | None:
    """The `platform` parameter of API 1.48 and later: an OCI platform as JSON."""
    text = call.text("platform")
    if not text:
        return None
    return str(decode_platform(text)) if text.startswith("{") else text
