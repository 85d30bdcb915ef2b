"""Build cache on the move: the documents it travels in. Pure.

An OCI manifest whose config is ours and whose layers are the blobs of results:

    config   application/vnd.wherry.buildcache.v1+json, see `Document`
    layers   layers of results, each once; then contents of cache mounts (MOUNT)

A record is a cache key and what its step resulted in. Of a *kept* one the blobs go along; of others only the names of
layers are known, which is enough for steps that need no more than the name. In an image (inline) the same document is
a field of the image's config, and its blobs are the image's layers.

Names of layers (chain IDs) are computed from their diffIDs, and those checked when a layer is unpacked; so a cache can
lie about what a step results in, and not about what is in a layer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from wherry.builder.trees import Tree, TreeLayer
from wherry.digest import ChainID, DiffID, Digest, extend_chain, is_digest, of
from wherry.errors import InvalidParameter, NotSupported
from wherry.spec.image import (
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    MAX_DOCUMENT,
    MAX_LAYERS,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    Raw,
)

CONFIG = "application/vnd.wherry.buildcache.v1+json"
MOUNT = "application/vnd.wherry.buildcache.mount.v1.tar+gzip"  # of a blob: what is in a cache mount
INLINE = "wherry.buildcache.v1"  # field of an image's config: a `Document`, base64
BUILDKIT = "application/vnd.buildkit.cacheconfig."  # beginning of the media type of BuildKit's caches
BUILDKIT_INLINE = "moby.buildkit.cache.v0"

VERSION = 1
MAX_TABLE = 10_000  # layers, and likewise records, of one cache
MAX_INLINE = 1000  # records in the config of an image
NOTHING = -1  # in place of a number: none
_DOCKER = {OCI_LAYER: DOCKER_LAYER, OCI_LAYER_GZIP: DOCKER_LAYER_GZIP}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    key: str  # sha256:… of an operation and the identities of its inputs
    outputs: Mapping[int, tuple[TreeLayer, ...]]  # trees by output number, layers base first
    kept: bool = True  # the blobs of all its layers are known
    description: str = ""
    created: int = 0  # ns since the epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Checksum:
    """Of the files a copy takes from a tree: with it the copy's key is known without the tree's files."""

    key: str  # of the tree and the copy
    chain: str  # of the tree
    checksum: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """Everything in one cache."""

    records: Sequence[Record] = ()
    checksums: Sequence[Checksum] = ()
    mounts: Mapping[str, Descriptor] = field(default_factory=dict)  # by the id of a cache mount

    def blobs(self) -> dict[Digest, Descriptor]:
        """All that has to go along, in an order that does not depend on that of the records."""
        records = sorted((record for record in self.records if record.kept), key=lambda record: record.key)
        kept = (layer for record in records for layers in record.outputs.values() for layer in layers)
        found = {layer.blob.digest: layer.blob for layer in kept if layer.blob is not None}
        return {**found, **{blob.digest: blob for blob in self.mounts.values()}}


# --- the document -----------------------------------------------------------------------------------------------------


class LayerRow(msgspec.Struct, frozen=True, omit_defaults=True):
    diff_id: DiffID
    parent: int = NOTHING  # number of the layer below, a smaller one
    blob: int = NOTHING  # number among the manifest's layers
    size: int = -1  # bytes of its files
    created_by: str = ""


class RecordRow(msgspec.Struct, frozen=True, omit_defaults=True):
    key: str
    outputs: dict[int, int]  # output number -> number of its top layer; NOTHING is the empty tree
    kept: bool = False
    description: str = ""
    created: int = 0


class ChecksumRow(msgspec.Struct, frozen=True):
    key: str
    chain: str
    checksum: str


class MountRow(msgspec.Struct, frozen=True):
    id: str
    blob: int


class Document(msgspec.Struct, frozen=True, kw_only=True):
    version: int = VERSION
    layers: list[LayerRow] = []
    records: list[RecordRow] = []
    checksums: list[ChecksumRow] = []
    mounts: list[MountRow] = []


def encode(contents: Contents, blobs: Sequence[Digest]) -> bytes:
    """The document; blobs are numbered as in `blobs`. What is beyond MAX_DOCUMENT bytes is left out, the oldest first.

    The same contents give the same bytes, whatever their order.
    """
    records = sorted(contents.records, key=lambda record: (-record.created, record.key))[:MAX_TABLE]
    while True:
        data = msgspec.json.encode(_document(contents, records, blobs))
        if len(data) <= MAX_DOCUMENT:
            return data
        if not records:
            raise InvalidParameter(f"build cache: the ids of its cache mounts take more than {MAX_DOCUMENT} bytes")
        records = records[: len(records) * 3 // 4]


def _document(contents: Contents, records: Sequence[Record], blobs: Sequence[Digest]) -> Document:
    numbers = {blob: number for number, blob in enumerate(blobs)}
    table = _Table(numbers)
    rows = [
        RecordRow(
            key=record.key,
            outputs={number: table.add(layers) for number, layers in sorted(record.outputs.items())},
            kept=record.kept,
            description=record.description[:1000],
            created=record.created,
        )
        for record in sorted(records, key=lambda record: record.key)
        if table.fits(record)
    ]
    known = {record.key for record in records}
    chains = {layers[-1].chain if layers else "scratch" for record in records for layers in record.outputs.values()}
    checksums = [
        ChecksumRow(each.key, each.chain, each.checksum)
        for each in sorted(contents.checksums, key=lambda each: each.key)
        if each.chain in chains and each.key not in known
    ]
    mounts = [MountRow(name, numbers[blob.digest]) for name, blob in sorted(contents.mounts.items())]
    return Document(layers=table.rows, records=rows, checksums=checksums[:MAX_TABLE], mounts=mounts)


class _Table:
    """Layers by number: what several trees have in common is written once."""

    def __init__(self, blobs: Mapping[Digest, int]) -> None:
        self.rows: list[LayerRow] = []
        self._numbers: dict[ChainID, int] = {}
        self._blobs = blobs

    def fits(self, record: Record) -> bool:
        return len(self.rows) + sum(map(len, record.outputs.values())) <= MAX_TABLE

    def add(self, layers: Sequence[TreeLayer]) -> int:
        number = NOTHING
        for layer in layers:
            if layer.chain not in self._numbers:
                self._numbers[layer.chain] = len(self.rows)
                blob = self._blobs.get(layer.blob.digest, NOTHING) if layer.blob is not None else NOTHING
                row = LayerRow(layer.diff_id, number, blob, layer.size, layer.created_by[:1000])
                self.rows.append(row)
            number = self._numbers[layer.chain]
        return number


def decode(data: bytes, blobs: Sequence[Descriptor]) -> Contents:
    """Read a document; its blobs are numbered as in `blobs`. Raises InvalidParameter; NotSupported: a later version."""
    if len(data) > MAX_DOCUMENT:
        raise InvalidParameter(f"build cache has {len(data)} bytes; the limit is {MAX_DOCUMENT}")
    try:
        document = msgspec.json.decode(data, type=Document)
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise InvalidParameter(f"build cache cannot be read: {exc}") from exc
    if document.version != VERSION:
        raise NotSupported(f"build cache of version {document.version}: this engine reads version {VERSION}")
    if max(len(document.layers), len(document.records), len(document.checksums), len(document.mounts)) > MAX_TABLE:
        raise InvalidParameter(f"build cache has more than {MAX_TABLE} entries")
    trees = list(_trees(document.layers, blobs))
    return Contents(
        records=[_record(row, trees) for row in document.records],
        checksums=[_checksum(row) for row in document.checksums],
        mounts={row.id: _blob(blobs, row.blob) for row in document.mounts},
    )


def _trees(rows: Sequence[LayerRow], blobs: Sequence[Descriptor]) -> Iterator[tuple[TreeLayer, ...]]:
    """The tree that each layer is the top of."""
    made: list[tuple[TreeLayer, ...]] = []
    for number, row in enumerate(rows):
        if not NOTHING <= row.parent < number:
            raise InvalidParameter(
                f"build cache: layer {number} stands on layer {row.parent}, which does not come before"
            )
        if not is_digest(row.diff_id):
            raise InvalidParameter(f"build cache: layer {number} has the invalid diffID {row.diff_id[:100]!r}")
        below = made[row.parent] if row.parent != NOTHING else ()
        if len(below) >= MAX_LAYERS:
            raise InvalidParameter(f"build cache: a tree of more than {MAX_LAYERS} layers")
        layer = TreeLayer(
            chain=extend_chain(below[-1].chain if below else None, row.diff_id),
            diff_id=row.diff_id,
            size=row.size,
            blob=_blob(blobs, row.blob) if row.blob != NOTHING else None,
            created_by=row.created_by,
        )
        made.append((*below, layer))
        yield made[-1]


def _record(row: RecordRow, trees: Sequence[tuple[TreeLayer, ...]]) -> Record:
    if not is_digest(row.key):
        raise InvalidParameter(f"build cache: invalid key {row.key[:100]!r}")
    outputs: dict[int, tuple[TreeLayer, ...]] = {}
    for output, top in row.outputs.items():
        if not NOTHING <= top < len(trees) or output < 0:
            raise InvalidParameter(f"build cache: record {row.key} results in layer {top}, which there is not")
        outputs[output] = trees[top] if top != NOTHING else ()
    whole = all(layer.blob is not None for layers in outputs.values() for layer in layers)
    return Record(
        key=row.key, outputs=outputs, kept=row.kept and whole, description=row.description, created=row.created
    )


def _checksum(row: ChecksumRow) -> Checksum:
    if not is_digest(row.key) or not (is_digest(row.chain) or row.chain == "scratch"):
        raise InvalidParameter(f"build cache: invalid checksum {row.key[:100]!r}")
    return Checksum(key=row.key, chain=row.chain, checksum=row.checksum)


def _blob(blobs: Sequence[Descriptor], number: int) -> Descriptor:
    if not 0 <= number < len(blobs):
        raise InvalidParameter(f"build cache: names blob {number}, and its manifest has {len(blobs)}")
    return blobs[number]


# --- manifests --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Packed:
    """A cache ready to go."""

    config: bytes
    manifest: Raw
    parsed: Manifest


def pack(contents: Contents, *, docker_types: bool = False) -> Packed:
    """`docker_types`: Docker's media types instead of OCI's, as far as it has any."""
    blobs = contents.blobs()
    config = encode(contents, list(blobs))
    layers = [_docker(blob) if docker_types else blob for blob in blobs.values()]
    media_type = DOCKER_MANIFEST if docker_types else OCI_MANIFEST
    manifest = Manifest(
        media_type=media_type,
        config=Descriptor(media_type=CONFIG, digest=of(config), size=len(config)),
        layers=layers,
    )
    document = {"schemaVersion": 2, "mediaType": media_type, "config": manifest.config, "layers": layers}
    data = msgspec.json.encode(document)
    return Packed(config, Raw(data, media_type, of(data)), manifest)


def _docker(blob: Descriptor) -> Descriptor:
    return msgspec.structs.replace(blob, media_type=_DOCKER.get(blob.media_type, blob.media_type))


def inline(contents: Contents, image: Tree) -> bytes:
    """What goes into the config of `image`: kept is what its own layers are the result of, of the rest the names."""
    chains = {layer.chain for layer in image.layers}
    newest = sorted(contents.records, key=lambda record: (-record.created, record.key))[:MAX_INLINE]
    records = [_within(record, chains) for record in newest]
    numbers = {layer.chain: number for number, layer in enumerate(image.layers)}
    document = _document(Contents(records=records, checksums=contents.checksums), records, ())
    rows = _numbered(document.layers, numbers)
    return msgspec.json.encode(msgspec.structs.replace(document, layers=rows))


def _within(record: Record, chains: set[ChainID]) -> Record:
    whole = all(layer.chain in chains for layers in record.outputs.values() for layer in layers)
    return Record(
        key=record.key,
        outputs=record.outputs,
        kept=whole,
        description=record.description,
        created=record.created,
    )


def _numbered(rows: Sequence[LayerRow], numbers: Mapping[ChainID, int]) -> list[LayerRow]:
    """With the blobs numbered as the image has them."""
    chains: list[ChainID] = []
    found: list[LayerRow] = []
    for row in rows:
        chains.append(extend_chain(chains[row.parent] if row.parent != NOTHING else None, row.diff_id))
        found.append(msgspec.structs.replace(row, blob=numbers.get(chains[-1], NOTHING)))
    return found
