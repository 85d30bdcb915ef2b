"""An image as the engine holds it: an immutable value, replaced when it changes.

Row in state table `images`, key the image ID (the config's digest):

    {"manifests": [descriptor...],        # image manifests of this config held in the content store; the first is used
     "layers": [{...}],                   # base first: where each layer's blob is, and how much it unpacks to
     "blobs": [digest...],                # every blob the image keeps alive: manifests, indexes, config, layers
     "parent": id or "", "last_tagged": ns}

Row in state table `tags`, key a familiar reference (`alpine:3.20`, `alpine@sha256:...`):

    {"id": image ID,                      # what the plain name means
     "others": [image ID...],             # further platforms held of the same index
     "target": descriptor,                # the document the name was given to: an index or a manifest
     "blobs": [digest...]}                # what is held of it besides the images: the index, attestation manifests
"""

from dataclasses import dataclass, field
from typing import NewType

import msgspec

from wherry.digest import ChainID, DiffID, Digest
from wherry.spec.image import Descriptor, ImageConfig

ImageID = NewType("ImageID", str)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer of an image, under both its names."""

    chain: ChainID
    diff_id: DiffID
    digest: Digest  # of the blob as stored, usually compressed
    media_type: str
    size: int  # bytes of the blob
    unpacked: int  # bytes of the files in it


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    id: ImageID
    config: ImageConfig
    manifests: tuple[Descriptor, ...] = ()
    layers: tuple[Layer, ...] = ()
    blobs: frozenset[Digest] = frozenset()
    parent: str = ""  # image ID of what it was committed from, when that was done here
    last_tagged: int = 0  # ns since the epoch; 0 = never
    repo_tags: tuple[str, ...] = ()  # familiar, sorted
    repo_digests: tuple[str, ...] = ()

    @property
    def chain(self) -> ChainID | None:
        """The stack of layers to mount; None for an image without layers."""
        return self.layers[-1].chain if self.layers else None

    @property
    def manifest(self) -> Descriptor:
        """The manifest that stands for it; of an image without one (of an early version) its config, size unknown."""
        return self.manifests[0] if self.manifests else Descriptor(digest=Digest(self.id), size=0)

    @property
    def diff_ids(self) -> tuple[DiffID, ...]:
        return tuple(layer.diff_id for layer in self.layers)

    @property
    def size(self) -> int:
        """Bytes of the files in all layers."""
        return sum(layer.unpacked for layer in self.layers)

    @property
    def created(self) -> int:
        """ns since the epoch; 0 when the image does not say."""
        return self.config.created_ns

    @property
    def name(self) -> str:
        """How messages call it: its first tag, else its ID."""
        return self.repo_tags[0] if self.repo_tags else self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a name stands for: one image, or the platforms held of an index."""

    name: str  # familiar reference
    descriptor: Descriptor  # of the index or manifest, whose bytes are in the content store
    images: tuple[ImageID, ...]  # the first is what the plain name means; at least one
    blobs: frozenset[Digest] = frozenset()  # kept alive besides the images' own

    @property
    def default(self) -> ImageID:
        return self.images[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unusable:
    """An image that is recorded and cannot be used; it keeps what it has until it is mended or forgotten."""

    id: ImageID
    why: str
    row: "ImageRow | None"  # None: it cannot be read either
    names: tuple[str, ...] = ()  # what is tagged with it

    @property
    def name(self) -> str:
        """How messages call it."""
        return self.names[0] if self.names else self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRow:
    manifests: list[Descriptor]
    layers: list[Layer]
    blobs: list[Digest]
    parent: str = ""
    last_tagged: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TagRow:
    id: ImageID
    others: list[ImageID] = field(default_factory=list)
    target: Descriptor | None = None  # None in rows of before there were targets: the image's manifest
    blobs: list[Digest] = field(default_factory=list)


def encode(image: Image) -> bytes:
    return msgspec.json.encode(
        ImageRow(
            manifests=list(image.manifests),
            layers=list(image.layers),
            blobs=sorted(image.blobs),
            parent=image.parent,
            last_tagged=image.last_tagged,
        )
    )


def encode_target(target: Target) -> bytes:
    return msgspec.json.encode(
        TagRow(id=target.default, others=list(target.images[1:]), target=target.descriptor, blobs=sorted(target.blobs))
    )


def decode(raw: bytes) -> ImageRow:
    """Raises msgspec.MsgspecError for a row that is not one."""
    return msgspec.json.decode(raw, type=ImageRow)
