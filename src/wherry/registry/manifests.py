"""Reading a pushed manifest: what it is, what it needs, what it refers to. Pure."""

import time

import msgspec

from wherry.digest import Digest
from wherry.errors import WherryError
from wherry.registry.errors import Code, Problem
from wherry.registry.store import MAX_MANIFEST, Named
from wherry.spec.image import (
    INDEXES,
    MANIFESTS,
    OCI_LAYER_FOREIGN,
    Descriptor,
    Index,
    Manifest,
    Raw,
    decode_manifest,
    media_type_of,
)

_FOREIGN = (OCI_LAYER_FOREIGN, "application/vnd.docker.image.rootfs.foreign.diff.tar")
EMPTY_CONFIG = "application/vnd.oci.empty.v1+json"


def read(raw: Raw) -> tuple[Named, Manifest | Index]:
    """What `raw` is, checked. MANIFEST_INVALID, SIZE_INVALID (too large)."""
    if len(raw.data) > MAX_MANIFEST:
        raise Problem(
            Code.SIZE_INVALID, f"the manifest has {len(raw.data)} bytes; at most {MAX_MANIFEST} are taken", status=413
        )
    try:
        document = decode_manifest(raw.data, raw.media_type)
    except WherryError as exc:
        raise Problem(Code.MANIFEST_INVALID, exc.message) from exc
    said = raw.media_type
    own = document.media_type
    if own and said in (*INDEXES, *MANIFESTS) and own != said:
        raise Problem(
            Code.MANIFEST_INVALID, f"the manifest calls itself {own}, its Content-Type is {said}: they must be the same"
        )
    media_type = media_type_of(document, said)
    if media_type not in INDEXES and media_type not in MANIFESTS:
        raise Problem(Code.MANIFEST_INVALID, f"manifests of type {media_type[:200]} are not taken")
    if (media_type in INDEXES) != isinstance(document, Index):
        raise Problem(Code.MANIFEST_INVALID, f"the document is not what its type {media_type} says")
    return _named(raw, media_type, document), document


def _named(raw: Raw, media_type: str, document: Manifest | Index) -> Named:
    blobs: list[Digest] = []
    children: list[Digest] = []
    artifact_type = document.artifact_type
    weight = 0
    if isinstance(document, Index):
        children = [child.digest for child in document.manifests]
    else:
        kept = [document.config, *(layer for layer in document.layers if not is_foreign(layer))]
        blobs = list(dict.fromkeys(each.digest for each in kept))
        weight = sum({each.digest: each.size for each in kept}.values())
        artifact_type = artifact_type or document.config.media_type
    return Named(
        digest=raw.digest,
        media_type=media_type,
        size=len(raw.data),
        pushed=time.time_ns(),
        blobs=tuple(blobs),
        children=tuple(children),
        subject=document.subject.digest if document.subject else "",
        artifact_type=artifact_type,
        annotations=document.annotations,
        weight=weight,
    )


def is_foreign(layer: Descriptor) -> bool:
    """A layer that a registry need not hold: it is fetched from elsewhere."""
    return bool(layer.urls) or layer.media_type.startswith(_FOREIGN)


def describe(named: Named) -> Descriptor:
    """As the referrers API shows it."""
    return Descriptor(
        media_type=named.media_type,
        digest=named.digest,
        size=named.size,
        artifact_type=named.artifact_type,
        annotations=dict(named.annotations) if named.annotations else None,
    )


def encode_index(manifests: list[Descriptor]) -> bytes:
    """The answer of the referrers API."""
    document = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    }
    return msgspec.json.encode(document)
