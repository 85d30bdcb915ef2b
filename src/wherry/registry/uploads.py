"""Uploads: monolithic (end-4), chunked (end-5, end-6), mounted from another repository (end-11), resumed (end-13)."""

import re

from aiohttp import web

from wherry.digest import Digest
from wherry.registry.call import Call
from wherry.registry.errors import Code, Problem
from wherry.registry.hooks import Access
from wherry.registry.store import Upload

MAX_SOURCES = 16  # repositories tried when a mount names none
CHUNK = 1 << 20  # bytes collected before they are hashed and written
_CONTENT_RANGE = re.compile(r"(?:bytes )?(\d{1,18})-(\d{1,18})(?:/(?:\d{1,18}|\*))?\Z", re.ASCII)


async def start(call: Call) -> web.StreamResponse:
    await call.hooks.before_write(call.repository, 0)
    if mount := call.query("mount"):
        digest = call.digest(mount)
        if await _mount(call, digest):
            call.happened("mount", digest=digest)
            return _created(call, digest)
    wanted = call.digest(call.query("digest")) if call.query("digest") else None
    upload = await call.store.start_upload(call.repository)
    try:
        if wanted is not None:
            await _receive(call, upload)
            return await _commit(call, upload, wanted)
        return _accepted(call, upload)
    finally:
        await upload.release()


async def _mount(call: Call, digest: Digest) -> bool:
    """From the repository that is named, else from any that the client may read."""
    if source := call.query("from"):
        return await call.store.mount_blob(call.repository, digest, source)
    for source in (await call.store.holders(digest))[:MAX_SOURCES]:
        if await call.may(Access(source, "pull")) and await call.store.mount_blob(call.repository, digest, source):
            return True
    return False


async def status(call: Call) -> web.StreamResponse:
    upload = await call.store.upload(call.repository, call.name)
    try:
        return _accepted(call, upload, status=204)
    finally:
        await upload.release()


async def append(call: Call) -> web.StreamResponse:
    upload = await call.store.upload(call.repository, call.name)
    try:
        _check_order(call, upload)
        await _receive(call, upload)
        return _accepted(call, upload)
    finally:
        await upload.release()


async def finish(call: Call) -> web.StreamResponse:
    digest = call.digest(call.query("digest"))
    upload = await call.store.upload(call.repository, call.name)
    try:
        _check_order(call, upload)
        await _receive(call, upload)
        return await _commit(call, upload, digest)
    finally:
        await upload.release()


async def cancel(call: Call) -> web.StreamResponse:
    upload = await call.store.upload(call.repository, call.name)
    await upload.abort()
    return call.answer(204)


def _check_order(call: Call, upload: Upload) -> None:
    """A chunk that says where it belongs must belong to the end of what there is (416, end-5)."""
    said = call.request.headers.get("Content-Range")
    if said is None:
        return
    match = _CONTENT_RANGE.match(said)
    length = call.request.content_length
    if match is None or int(match[2]) + 1 < int(match[1]):
        raise _range_problem(call, upload, f"cannot read Content-Range {said[:100]!r}: want first-last")
    if int(match[1]) != upload.offset:
        raise _range_problem(
            call, upload, f"the chunk begins at byte {match[1]}, the upload goes on at byte {upload.offset}"
        )
    if length is not None and length != int(match[2]) + 1 - int(match[1]):
        raise Problem(Code.SIZE_INVALID, f"the chunk has {length} bytes, its Content-Range {said} says something else")


def _range_problem(call: Call, upload: Upload, message: str) -> Problem:
    return Problem(Code.BLOB_UPLOAD_INVALID, message, status=416, headers=_where(call, upload))


async def _receive(call: Call, upload: Upload) -> None:
    """The request's body to the end of the upload. What came before a broken connection is kept."""
    length = call.request.content_length or 0
    await call.hooks.before_write(call.repository, upload.offset + length)
    pending: list[bytes] = []
    size = 0
    try:
        while data := await call.read():
            pending.append(data)
            size += len(data)
            if size >= CHUNK:
                chunk, pending, size = b"".join(pending), [], 0
                await upload.write(chunk)
                await call.hooks.before_write(call.repository, upload.offset)
    finally:
        if pending:
            await upload.write(b"".join(pending))


async def _commit(call: Call, upload: Upload, digest: Digest) -> web.Response:
    size = await upload.commit(digest)
    call.happened("push", digest=digest, size=size, media_type="application/octet-stream")
    return _created(call, digest)


def _created(call: Call, digest: Digest) -> web.Response:
    return call.answer(
        201,
        headers={"Location": f"/v2/{call.repository}/blobs/{digest}", "Docker-Content-Digest": digest},
    )


def _accepted(call: Call, upload: Upload, *, status: int = 202) -> web.Response:
    return call.answer(status, headers=_where(call, upload))


def _where(call: Call, upload: Upload) -> dict[str, str]:
    return {
        "Location": f"/v2/{call.repository}/blobs/uploads/{upload.id}",
        "Docker-Upload-UUID": upload.id,
        "Range": f"0-{max(0, upload.offset - 1)}",
    }
