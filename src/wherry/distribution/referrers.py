"""Referrers: what is attached to a manifest by naming it as its `subject`.

A registry lists them by itself when it knows how. One that does not is told by an index under a tag that is made of
the subject's digest: `sha256-<hex>` (OCI distribution-spec v1.1, "Referrers Tag Schema").
"""

from collections.abc import Sequence

import msgspec

from wherry.digest import Digest, of
from wherry.distribution.endpoint import read_limited
from wherry.distribution.errors import Refused
from wherry.distribution.repository import Repository
from wherry.distribution.upload import Reports, put_manifest
from wherry.errors import InvalidParameter
from wherry.spec.image import MAX_DOCUMENT, OCI_INDEX, Descriptor, Index, Raw, decode_manifest


async def list_referrers(
    repository: Repository, subject: Digest, entries: Sequence[Descriptor], reports: Reports
) -> None:
    """Let a registry that has no list of referrers know of `entries`, which were pushed already.

    Two who do so at the same moment may lose one's entries: the specification has no remedy.
    """
    if await _read(repository, f"referrers/{subject}") is not None:
        return
    tag = subject.replace(":", "-")
    known = await _read(repository, f"manifests/{tag}")
    there = {entry.digest for entry in known or ()}
    if missing := [entry for entry in entries if entry.digest not in there]:
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*(known or ()), *missing]}
        data = msgspec.json.encode(document)
        await put_manifest(repository, Raw(data, OCI_INDEX, of(data)), tag, reports)


async def _read(repository: Repository, what: str) -> list[Descriptor] | None:
    """The entries of an index; None when there is none."""
    try:
        async with repository.request("GET", what, headers={"Accept": OCI_INDEX}) as response:
            data = await read_limited(response, MAX_DOCUMENT, what)
    except Refused as exc:
        if exc.status in (400, 404, 405):  # not known at all, or taken for something else
            return None
        raise
    try:
        found = decode_manifest(data, OCI_INDEX)
    except InvalidParameter:
        return None
    return list(found.manifests) if isinstance(found, Index) else None
