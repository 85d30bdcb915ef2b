"""Statements about images (in-toto), as BuildKit lays them into indexes, and as OCI referrers.

    index ── image manifest
          └─ attestation manifest (platform unknown/unknown, annotated with the digest of the image's manifest)
                └─ one layer for each statement, annotated with the type of its predicate

Pure.
Sources: in-toto attestation v0.1; BuildKit docs/attestations/attestation-storage.md; OCI image-spec v1.1, manifest.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import msgspec

from wherry.builder.export.documents import encode
from wherry.builder.export.work import Statement
from wherry.digest import Digest, hex_part, of
from wherry.reference import Reference
from wherry.spec.image import OCI_CONFIG, OCI_MANIFEST, Descriptor, Platform, Raw, normalize

IN_TOTO = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v0.1"
PREDICATE_TYPE = "in-toto.io/predicate-type"  # annotation
REFERENCE_TYPE = "vnd.docker.reference.type"  # annotations of an index's entry that is about another
REFERENCE_DIGEST = "vnd.docker.reference.digest"
ATTESTATION = "attestation-manifest"
ARTIFACT = "application/vnd.docker.attestation.manifest.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
UNKNOWN = Platform(architecture="unknown", os="unknown")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """A manifest about another one, with the blobs that it names."""

    manifest: Raw
    blobs: Mapping[Digest, bytes]
    statements: Sequence[Digest]

    @property
    def digests(self) -> frozenset[Digest]:
        return frozenset({self.manifest.digest, *self.blobs})


def encode_statement(statement: Statement, subjects: Sequence[Mapping[str, Any]]) -> bytes:
    return msgspec.json.encode(
        {
            "_type": STATEMENT,
            "predicateType": statement.predicate_type,
            "subject": list(subjects),
            "predicate": statement.predicate,
        }
    )


def subjects_of(names: Sequence[Reference], manifest: Digest, platform: Platform) -> list[dict[str, Any]]:
    """The image under all its names; "_" is one without."""
    digest = {"sha256": hex_part(manifest)}
    return [{"name": name, "digest": digest} for name in [purl(name, platform) for name in names] or ["_"]]


def purl(name: Reference, platform: Platform | None) -> str:
    """As package URLs name images: `pkg:docker/alpine@3.20?platform=linux%2Famd64`."""
    path = "/".join(quote(part, safe=":") for part in name.familiar_name.split("/"))
    version = f"@{quote(name.tag, safe='')}" if name.tag else ""
    qualifiers: dict[str, str] = {}
    if name.digest:
        qualifiers["digest"] = name.digest
    if platform is not None and platform.os:
        qualifiers["platform"] = str(normalize(platform))
    query = "&".join(f"{key}={quote(value, safe=':')}" for key, value in qualifiers.items())
    return f"pkg:docker/{path}{version}" + (f"?{query}" if query else "")


def attest(
    statements: Sequence[Statement], subjects: Sequence[Mapping[str, Any]], about: Raw, *, artifact: bool
) -> Attached:
    """The attestation manifest of the image `about`; as an OCI artifact with a subject when asked."""
    blobs, layers = _layers(statements, subjects)
    if artifact:
        config = _empty(blobs)
        fields: dict[str, Any] = {
            "artifactType": ARTIFACT,
            "config": config,
            "layers": layers,
            "subject": about.descriptor,
        }
    else:
        data = msgspec.json.encode(
            {
                "architecture": UNKNOWN.architecture,
                "os": UNKNOWN.os,
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
            }
        )
        blobs[of(data)] = data
        fields = {"config": Descriptor(media_type=OCI_CONFIG, digest=of(data), size=len(data)), "layers": layers}
    return Attached(manifest=encode(fields, OCI_MANIFEST), blobs=blobs, statements=[layer.digest for layer in layers])


def refer(statement: Statement, subjects: Sequence[Mapping[str, Any]], about: Raw) -> Attached:
    """One statement as an OCI referrer of the image `about`."""
    blobs, layers = _layers([statement], subjects)
    fields = {
        "artifactType": IN_TOTO,
        "config": _empty(blobs),
        "layers": layers,
        "subject": about.descriptor,
        "annotations": {PREDICATE_TYPE: statement.predicate_type},
    }
    return Attached(manifest=encode(fields, OCI_MANIFEST), blobs=blobs, statements=[layer.digest for layer in layers])


def _layers(
    statements: Sequence[Statement], subjects: Sequence[Mapping[str, Any]]
) -> tuple[dict[Digest, bytes], list[Descriptor]]:
    blobs: dict[Digest, bytes] = {}
    layers = []
    for statement in statements:
        data = encode_statement(statement, subjects)
        blobs[of(data)] = data
        annotations = {PREDICATE_TYPE: statement.predicate_type}
        layers.append(Descriptor(media_type=IN_TOTO, digest=of(data), size=len(data), annotations=annotations))
    return blobs, layers


def _empty(blobs: dict[Digest, bytes]) -> dict[str, Any]:
    """The config of what has none."""
    data = b"{}"
    blobs[of(data)] = data
    return {"mediaType": EMPTY, "digest": of(data), "size": len(data), "data": "e30="}


def annotations_of(about: Raw) -> dict[str, str]:
    """Of an index's entry for the attestations of `about`."""
    return {REFERENCE_DIGEST: about.digest, REFERENCE_TYPE: ATTESTATION}
