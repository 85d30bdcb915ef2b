"""Files of containers: archive (`docker cp`), export, changes (`docker diff`)."""

import base64
from collections.abc import Mapping

import msgspec
from aiohttp import web

from wherry.api.call import TAR, Call
from wherry.api.router import Router
from wherry.containers.content import archive
from wherry.containers.content.changes import changes
from wherry.errors import InvalidParameter


def add(router: Router) -> None:
    router.add("HEAD", "/containers/{name}/archive", stat)
    router.add("GET", "/containers/{name}/archive", copy_out)
    router.add("PUT", "/containers/{name}/archive", copy_in)
    router.add("GET", "/containers/{name}/export", export)
    router.add("GET", "/containers/{name}/changes", changes_)


async def stat(call: Call) -> web.StreamResponse:
    found = await archive.stat_path(call.services.containers, call["name"], _path(call))
    return web.Response(headers={**call.headers, **_stat_header(found)})


async def copy_out(call: Call) -> web.StreamResponse:
    found, chunks = await archive.get(call.services.containers, call["name"], _path(call))
    return await call.send(chunks, TAR, headers=_stat_header(found))


async def copy_in(call: Call) -> web.StreamResponse:
    await archive.put(
        call.services.containers,
        call["name"],
        _path(call),
        call.chunks(),
        no_overwrite_dir_non_dir=call.flag("noOverwriteDirNonDir"),
        copy_uid_gid=call.flag("copyUIDGID"),
    )
    return call.empty(200)


async def export(call: Call) -> web.StreamResponse:
    chunks = await archive.export(call.services.containers, call["name"])
    return await call.send(chunks, "application/octet-stream")


async def changes_(call: Call) -> web.StreamResponse:
    return call.reply(await changes(call.services.containers, call["name"]))


def _path(call: Call) -> str:
    if not (path := call.text("path")):
        raise InvalidParameter("bad parameter: path cannot be empty")
    return path


def _stat_header(found: Mapping[str, object]) -> dict[str, str]:
    return {"X-Docker-Container-Path-Stat": base64.b64encode(msgspec.json.encode(found)).decode()}
