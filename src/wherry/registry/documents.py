"""Manifests over HTTP: reading by tag or digest (end-3), pushing (end-7), deleting (end-9)."""

import re

from aiohttp import web

from wherry.digest import Digest, is_digest, of
from wherry.registry.call import Call
from wherry.registry.errors import Code, Problem, manifest_unknown
from wherry.registry.store import MAX_MANIFEST
from wherry.spec.image import INDEXES, MANIFESTS, Index, Platform, Raw, decode_manifest, select

_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}\Z", re.ASCII)
DEFAULT = Platform(os="linux", architecture="amd64")  # what clients that know no index are given of one


async def get(call: Call) -> web.StreamResponse:
    await call.hooks.before_manifest(call.request, call.repository, call.name)
    digest = await _resolve(call)
    raw = await call.store.manifest(call.repository, digest)
    if (other := _negotiated(call, raw)) is not None:
        raw = await call.store.manifest(call.repository, other)
    headers = {"Docker-Content-Digest": raw.digest, "ETag": f'"{raw.digest}"'}
    if call.request.headers.get("If-None-Match", "").strip('"') == raw.digest:
        return call.answer(304, headers=headers)
    tag = "" if is_digest(call.name) else call.name
    if call.request.method == "GET":
        call.happened("pull", digest=raw.digest, tag=tag, media_type=raw.media_type, size=len(raw.data))
    return call.answer(200, body=raw.data, content_type=raw.media_type, headers=headers)


async def _resolve(call: Call) -> Digest:
    if ":" in call.name:
        return call.digest(call.name)
    if _TAG.match(call.name) is None:
        raise manifest_unknown(call.repository, call.name[:200])
    return await call.store.resolve(call.repository, call.name)


def _negotiated(call: Call, raw: Raw) -> Digest | None:
    """Which manifest of an index a client that takes manifests only is given instead (by tag only)."""
    if raw.media_type not in INDEXES or is_digest(call.name):
        return None
    accepted = {
        part.partition(";")[0].strip() for line in call.request.headers.getall("Accept", []) for part in line.split(",")
    }
    if not accepted & MANIFESTS or accepted & INDEXES or "*/*" in accepted:
        return None
    index = decode_manifest(raw.data, raw.media_type)
    assert isinstance(index, Index)
    chosen = select(index, DEFAULT)
    return chosen.digest if chosen and chosen.media_type in accepted else None


async def put(call: Call) -> web.StreamResponse:
    tag = None if ":" in call.name else call.name
    if tag is not None and _TAG.match(tag) is None:
        raise Problem(
            Code.TAG_INVALID,
            f"invalid tag {tag[:200]!r}: want letters, digits, . _ - and at most 128 characters",
            detail={"tag": tag[:200]},
        )
    wanted = None if tag is not None else call.digest(call.name)
    data = await _body(call)
    raw = Raw(data, call.request.headers.get("Content-Type", "").partition(";")[0].strip(), of(data))
    if wanted is not None and wanted != raw.digest:
        raise Problem(Code.DIGEST_INVALID, f"the manifest's digest is {raw.digest}, not {wanted}")
    await call.hooks.before_write(call.repository, len(data))
    subject = await call.store.put_manifest(call.repository, raw, tag=tag)
    call.happened("push", digest=raw.digest, tag=tag or "", media_type=raw.media_type, size=len(data))
    headers = {
        "Location": f"/v2/{call.repository}/manifests/{raw.digest}",
        "Docker-Content-Digest": raw.digest,
    }
    if subject is not None:
        headers["OCI-Subject"] = subject.digest
    return call.answer(201, headers=headers)


async def _body(call: Call) -> bytes:
    data = bytearray()
    while chunk := await call.read():
        data += chunk
        if len(data) > MAX_MANIFEST:
            raise Problem(
                Code.SIZE_INVALID, f"the manifest is too long: at most {MAX_MANIFEST} bytes are taken", status=413
            )
    return bytes(data)


async def delete(call: Call) -> web.StreamResponse:
    await call.hooks.before_write(call.repository, 0)
    if ":" in call.name:
        digest = call.digest(call.name)
        await call.store.delete_manifest(call.repository, digest)
        call.happened("delete", digest=digest)
    else:
        await call.store.delete_tag(call.repository, call.name)
        call.happened("delete", tag=call.name)
    return call.answer(202)
