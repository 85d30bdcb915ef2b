"""Images on their way out: POST /images/{name}/push, and our own POST /images/{name}/convert."""

from aiohttp import web

from wherry.api.call import Call
from wherry.api.images import credentials
from wherry.api.progress import Report, follow
from wherry.api.router import Router
from wherry.errors import InvalidParameter
from wherry.images.making import convert as converting
from wherry.images.transfer import push as pushing
from wherry.spec.image import Platform, decode_platform, parse_platform


def add(router: Router) -> None:
    router.add("POST", "/images/{name}/push", push)
    router.add("POST", "/images/{name}/convert", convert)


async def push(call: Call) -> web.StreamResponse:
    """`compression` is our own: layers go out as gzip, zstd or none, whatever they are here."""
    platform = _platform(call) if call.speaks(1, 46) else None
    auth = credentials(call)

    async def work(report: Report) -> None:
        await pushing.push(
            call.services.images,
            call["name"],
            tag=call.text("tag"),
            platform=platform,
            compression=call.text("compression"),
            auth=auth,
            progress=report,
        )

    return await follow(call, work)


def _platform(call: Call) -> Platform | None:
    """An OCI platform as JSON, as Docker has it here; or `os/arch`, as elsewhere."""
    text = call.text("platform")
    if not text:
        return None
    return decode_platform(text) if text.startswith("{") else parse_platform(text)


async def convert(call: Call) -> web.StreamResponse:
    """`to` names {name}, all platforms that are held of it, with its layers compressed as `compression`."""
    to, compression = call.text("to"), call.text("compression")
    if not to or not compression:
        raise InvalidParameter("converting an image needs `to`, a reference, and `compression`: gzip, zstd or none")

    async def work(report: Report) -> None:
        await converting.convert(
            call.services.images,
            call["name"],
            to,
            compression=compression,
            format=call.text("format"),
            progress=report,
        )

    return await follow(call, work)
