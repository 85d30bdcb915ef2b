"""Lists: the API's presence (end-1), catalog, tags (end-8), referrers (end-12)."""

from urllib.parse import urlencode

import msgspec
from aiohttp import web

from wherry.registry.call import Call
from wherry.registry.catalog import page
from wherry.registry.manifests import encode_index
from wherry.spec.image import OCI_INDEX

JSON = "application/json"


async def base(call: Call) -> web.StreamResponse:
    return call.answer(200, body=b"{}", content_type=JSON)


async def catalog(call: Call) -> web.StreamResponse:
    limit = call.page_size()
    names = await call.store.repositories(after=call.query("last"), limit=limit + 1)
    return _page(call, {"repositories": names[:limit]}, names, limit, "/v2/_catalog")


async def tags(call: Call) -> web.StreamResponse:
    limit = call.page_size()
    after = call.query("last")
    others = await call.hooks.tags(call.request, call.repository)
    if others is None:
        names = await call.store.tags(call.repository, after=after, limit=limit + 1)
    else:
        names = page(others, after, limit + 1)
    document: dict[str, object] = {"name": call.repository, "tags": names[:limit]}
    return _page(call, document, names, limit, f"/v2/{call.repository}/tags/list")


def _page(call: Call, document: dict[str, object], names: list[str], limit: int, path: str) -> web.Response:
    headers = {}
    if len(names) > limit and limit > 0:
        headers["Link"] = f'<{path}?{urlencode({"last": names[limit - 1], "n": limit})}>; rel="next"'
    return call.answer(200, body=msgspec.json.encode(document), content_type=JSON, headers=headers)


async def referrers(call: Call) -> web.StreamResponse:
    digest = call.digest(call.name)
    found = await call.store.referrers(call.repository, digest)
    headers = {}
    if wanted := call.query("artifactType"):
        found = [each for each in found if each.artifact_type == wanted]
        headers["OCI-Filters-Applied"] = "artifactType"
    return call.answer(200, body=encode_index(found), content_type=OCI_INDEX, headers=headers)
