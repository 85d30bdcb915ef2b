"""`Manifests` of an image: what its index names, and what is held of that (API 1.47 and later).

Read from the content store, so blocking; everything else is values taken from the event loop before.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec

from wherry.digest import Digest
from wherry.errors import WherryError
from wherry.images.record import Image
from wherry.images.store import ImageStore
from wherry.images.views.rows import Row, Users
from wherry.spec.image import CONFIGS, INDEXES, MANIFESTS, MAX_DOCUMENT, Descriptor, Index, Manifest, decode_manifest
from wherry.storage.content import ContentStore

log = logging.getLogger(__name__)

NESTING = 3  # indexes within indexes that are looked into

# BuildKit's annotations of an entry that describes another entry.
REFERENCE_TYPE = "vnd.docker.reference.type"
REFERENCE_DIGEST = "vnd.docker.reference.digest"
ATTESTATION = "attestation-manifest"


def images_by_manifest(store: ImageStore) -> dict[Digest, Image]:
    return {manifest.digest: image for image in store.all() for manifest in image.manifests or (image.manifest,)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Describer:
    """Makes the `Manifests` of rows, all from the same moment."""

    content: ContentStore
    images: Mapping[Digest, Image]  # by the digest of each of their manifests
    users: Users

    def describe(self, row: Row) -> tuple[list[dict[str, object]], int]:
        """All manifests of the row's names, in the order of their index, each once; and the bytes of their blobs.

        A blob of several manifests counts once. Blocking.
        """
        tops = [target.descriptor for target in row.targets]
        entries = {entry.digest: entry for top in tops for entry in self._entries(top, NESTING)}
        for image in row.images:  # those whose index is damaged or was never stored, too
            if not any(manifest.digest in entries for manifest in image.manifests):
                entries[image.manifest.digest] = image.manifest
        blobs: dict[Digest, int] = {}
        return [self._describe(entry, blobs) for entry in entries.values()], sum(blobs.values())

    def _entries(self, top: Descriptor, depth: int) -> Iterator[Descriptor]:
        """The manifests below `top`, itself when it is one."""
        document = self._read(top) if top.media_type in INDEXES and depth else None
        if isinstance(document, Index):
            for entry in document.manifests:
                yield from self._entries(entry, depth - 1)
        elif top.media_type not in INDEXES or depth < NESTING:
            yield top

    def _read(self, descriptor: Descriptor) -> Manifest | Index | None:
        if not self.content.has(descriptor.digest):
            return None
        try:
            raw = self.content.read(descriptor.digest, limit=MAX_DOCUMENT)
            return decode_manifest(raw, descriptor.media_type)
        except (WherryError, OSError) as exc:
            log.warning("manifest %s cannot be read: %s", descriptor.digest, exc)
            return None

    def _describe(self, entry: Descriptor, blobs: dict[Digest, int]) -> dict[str, object]:
        """One entry; its blobs that are held, with their sizes, go into `blobs`."""
        image = self.images.get(entry.digest)
        document = self._read(entry) if entry.media_type in MANIFESTS else None
        manifest = document if isinstance(document, Manifest) else None
        named = [entry, manifest.config, *manifest.layers] if manifest else []
        held = {blob.digest: blob.size for blob in named if self.content.has(blob.digest)}
        blobs |= held
        content = sum(held.values())
        unpacked = image.size if image else 0
        found: dict[str, object] = {
            "ID": entry.digest,
            "Descriptor": msgspec.to_builtins(entry),
            "Available": image is not None,
            "Size": {"Content": content, "Total": content + unpacked},
            "Kind": kind_of(entry, manifest),
        }
        if found["Kind"] == "image":
            platform = entry.platform or (image.config.platform if image else None)
            found["ImageData"] = {
                "Platform": msgspec.to_builtins(platform) if platform else {"architecture": "", "os": ""},
                "Containers": list(self.users.get(image.id, ())) if image else [],
                "Size": {"Unpacked": unpacked},
            }
        elif manifest is not None:
            found["Available"] = all(blob.digest in held for blob in named)
        if found["Kind"] == "attestation":
            found["AttestationData"] = {"For": (entry.annotations or {}).get(REFERENCE_DIGEST, "")}
        return found


def kind_of(entry: Descriptor, manifest: Manifest | None) -> str:
    """`image`, `attestation`, or `unknown`: an artifact, or an entry no machine runs."""
    if (entry.annotations or {}).get(REFERENCE_TYPE) == ATTESTATION:
        return "attestation"
    if manifest is not None:
        artifact = manifest.artifact_type or manifest.config.media_type not in CONFIGS
    else:
        artifact = entry.artifact_type
    if artifact or entry.media_type in INDEXES or (entry.platform and entry.platform.os == "unknown"):
        return "unknown"
    return "image"
