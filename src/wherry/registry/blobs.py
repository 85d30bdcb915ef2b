"""Blobs: reading (end-2), with ranges, and deleting (end-10)."""

import re
from typing import BinaryIO

from aiohttp import web

from wherry.digest import Digest
from wherry.registry.call import HEADERS, Call
from wherry.registry.errors import Code, Problem, blob_unknown
from wherry.registry.sending import send

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})\Z", re.ASCII)


async def head(call: Call) -> web.StreamResponse:
    digest = call.digest(call.name)
    try:
        size = await call.store.promise_blob(call.repository, digest)
    except Problem:
        other = await call.hooks.missing_blob(call.request, call.repository, digest)
        if other is None or isinstance(other, bool):
            raise
        return other
    return web.Response(status=200, headers={**_headers(digest), "Content-Length": str(size)})


async def get(call: Call) -> web.StreamResponse:
    digest = call.digest(call.name)
    try:
        size, file = await _open(call, digest)
    except Problem as exc:
        if exc.code is not Code.BLOB_UNKNOWN:
            raise
        other = await call.hooks.missing_blob(call.request, call.repository, digest)
        if other is None:
            raise blob_unknown(call.repository, digest) from exc
        if not isinstance(other, bool):
            call.happened("pull", digest=digest, size=other.content_length or 0)
            return other
        size, file = await _open(call, digest)
    with file:
        start, end = part_of(call.request.headers.get("Range", ""), size)
        answer = web.StreamResponse(status=200, headers=_headers(digest))
        if (start, end) != (0, size):
            answer.set_status(206)
            answer.headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        await send(answer, call.request, file, start, end, stall=call.stall)
    call.happened("pull", digest=digest, size=end - start)
    return answer


async def _open(call: Call, digest: Digest) -> tuple[int, BinaryIO]:
    size = await call.store.blob_size(call.repository, digest)
    return size, await call.store.open_blob(call.repository, digest)


def _headers(digest: str) -> dict[str, str]:
    return {
        **HEADERS,
        "Content-Type": "application/octet-stream",
        "Docker-Content-Digest": digest,
        "ETag": f'"{digest}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": "max-age=31536000",
    }


def part_of(said: str, size: int) -> tuple[int, int]:
    """The part of a blob that a Range header asks for: first byte, and the one behind the last. 416 when it has none.

    A range that makes no sense is passed over, as RFC 9110 has it, and so are several at once; an empty blob has no
    part, but clients ask for one.
    """
    match = _RANGE.match(said)
    if match is None or not (match[1] or match[2]) or size == 0:
        return 0, size
    if not match[1]:
        start, end = max(0, size - int(match[2])), size
    elif not match[2]:
        start, end = int(match[1]), size
    elif int(match[2]) < int(match[1]):
        return 0, size
    else:
        start, end = int(match[1]), min(int(match[2]) + 1, size)
    if start >= end:
        raise Problem(
            Code.SIZE_INVALID,
            f"the blob has {size} bytes; the range {match[0]} is outside of it",
            status=416,
            headers={"Content-Range": f"bytes */{size}"},
        )
    return start, end


async def delete(call: Call) -> web.StreamResponse:
    digest = call.digest(call.name)
    await call.hooks.before_write(call.repository, 0)
    await call.store.delete_blob(call.repository, digest)
    call.happened("delete", digest=digest)
    return call.answer(202)
