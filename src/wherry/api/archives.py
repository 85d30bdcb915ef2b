"""/images as archives: save, load and import."""

from aiohttp import web

from wherry.api.call import TAR, Call
from wherry.api.progress import Report, follow
from wherry.api.router import Router
from wherry.errors import InvalidParameter
from wherry.images.archives import load as loading
from wherry.images.archives import save as saving
from wherry.images.making import import_ as importing
from wherry.spec.image import decode_platform


def add(router: Router) -> None:
    router.add("GET", "/images/get", save)
    router.add("GET", "/images/{name}/get", save)
    router.add("POST", "/images/load", load)


async def save(call: Call) -> web.StreamResponse:
    names = [call["name"]] if "name" in call.path else call.texts("names")
    chunks = saving.save(call.services.images, names, platforms=_platforms(call))
    return await call.send(chunks, TAR)


async def load(call: Call) -> web.StreamResponse:
    platforms = _platforms(call)

    async def work(report: Report) -> None:
        await loading.load(
            call.services.images, call.chunks(), quiet=call.flag("quiet"), platforms=platforms, progress=report
        )

    return await follow(call, work)


async def import_(call: Call) -> web.StreamResponse:
    """`POST /images/create` with `fromSrc`: `-` for the body, else the URL of an archive."""
    source = call.text("fromSrc")
    if not source:
        raise InvalidParameter("neither fromImage nor fromSrc is given: nothing to make an image from")

    async def work(report: Report) -> None:
        await importing.import_(
            call.services.images,
            call.chunks(),
            source=source,
            repository=call.text("repo"),
            tag=call.text("tag"),
            changes=call.texts("changes"),
            message=call.text("message"),
            platform=call.text("platform") or None,
            progress=report,
        )

    return await follow(call, work)


def _platforms(call: Call) -> list[str]:
    """`platform` since API 1.48, repeatable since 1.52: OCI platforms as JSON."""
    if not call.speaks(1, 48):
        return []
    return [str(decode_platform(text)) if text.startswith("{") else text for text in call.texts("platform") if text]
