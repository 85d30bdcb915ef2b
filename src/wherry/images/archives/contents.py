"""Contents: which images an archive holds, by its documents.

    OCI layout        index.json: every entry is an image, or an index of several platforms; names in annotations
    docker-archive    manifest.json: config, layers and tags by names of files

Both may be in one archive. Then index.json is followed, which alone knows platforms and digests, and manifest.json
adds tags and what index.json leaves out; an index.json that leads nowhere is passed over.

What an archive lacks is taken from the store when it is there: blobs by their digests, layers by what they unpack to.
Blocking; nothing is changed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from wherry.digest import ChainID, DiffID, Digest, extend_chain
from wherry.errors import Corrupt, InvalidParameter, NotFound, NotSupported, WherryError
from wherry.images.archives.spool import Archive, File, blob_name
from wherry.images.layers import KNOWN_TYPES, check_type
from wherry.images.leases import Lease
from wherry.images.record import Layer
from wherry.reference import Reference, parse
from wherry.spec.image import (
    CONFIGS,
    MAX_DOCUMENT,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    Raw,
    decode_config,
    decode_manifest,
    encode_manifest,
    host_platform,
    media_type_of,
    normalize,
    oci_layer_type,
    rank,
)
from wherry.storage.compression import HEAD, Compression, detect
from wherry.storage.content import ContentStore

MAX_DEPTH = 4  # indexes within indexes
MAX_IMAGES = 1000  # of one archive
MAX_READ = 256 << 20  # bytes of all documents together

NAME = "io.containerd.image.name"  # annotation: a full reference
REF_NAME = "org.opencontainers.image.ref.name"  # annotation: a tag, or a full reference
ATTESTED = "vnd.docker.reference.digest"  # annotation of an attestation: the manifest it is about

LAYER_TYPES = {
    Compression.NONE: OCI_LAYER,
    Compression.GZIP: OCI_LAYER_GZIP,
    Compression.ZSTD: OCI_LAYER_ZSTD,
}


class ArchiveImage(msgspec.Struct, frozen=True, rename="pascal"):
    """One entry of manifest.json."""

    config: str
    repo_tags: list[str] | None = None
    layers: list[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """One image, all of which is there: in the archive or in the store."""

    manifest: Descriptor
    config: ImageConfig
    config_digest: Digest
    layers: Sequence[Descriptor]

    @property
    def blobs(self) -> frozenset[Digest]:
        return frozenset({self.manifest.digest, self.config_digest, *(layer.digest for layer in self.layers)})

    @property
    def chains(self) -> list[ChainID]:
        return chains(self.config.rootfs.diff_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What one entry of an archive names: an image, or several platforms of it."""

    target: Descriptor
    images: Sequence[Packed]
    names: Sequence[Reference] = ()
    attached: frozenset[Digest] = frozenset()  # besides: indexes within, and manifests of no image with their blobs


def chains(diff_ids: Iterable[DiffID]) -> list[ChainID]:
    """The name of every layer of a stack, base first."""
    found: list[ChainID] = []
    for diff_id in diff_ids:
        found.append(extend_chain(found[-1] if found else None, diff_id))
    return found


def find_images(
    archive: Archive,
    content: ContentStore,
    lease: Lease,
    *,
    held: Mapping[ChainID, Layer],
    wanted: Sequence[Platform] = (),
    budget: int = MAX_READ,
) -> list[Bundle]:
    """All there is; with `wanted` only these platforms. `held`: the layers the store's images have;
    `budget`: bytes that all documents together may have.

    Raises InvalidParameter for an archive that does not hold together, naming what is missing or wrong, NotFound when
    there is no image, or none for one of the wanted platforms, NotSupported when all there is are artifacts.
    """
    return _Reader(archive, content, lease, held, wanted, budget).read()


class Missing(InvalidParameter):
    """A document names what is not there."""


class Foreign(InvalidParameter):
    """An image of another operating system."""


@dataclass(slots=True)
class _Children:
    """What was found walking through an index."""

    images: list[Packed] = field(default_factory=list)
    others: list[tuple[Descriptor, Manifest]] = field(default_factory=list)  # manifests of no image, with their entry
    indexes: set[Digest] = field(default_factory=set)
    seen: set[Digest] = field(default_factory=set)
    problem: InvalidParameter | None = None  # the first entry that could not be used


class _Reader:
    def __init__(
        self,
        archive: Archive,
        content: ContentStore,
        lease: Lease,
        held: Mapping[ChainID, Layer],
        wanted: Sequence[Platform],
        budget: int,
    ) -> None:
        self._archive = archive
        self._content = content
        self._lease = lease
        self._held = held
        self._wanted = wanted
        self._budget = self._limit = budget
        self._offers: set[str] = set()  # platforms there are, for a message

    def read(self) -> list[Bundle]:
        layout, listed = self._archive.find("index.json"), self._archive.find("manifest.json")
        if layout is None and listed is None:
            raise InvalidParameter(f"invalid image archive: it has neither manifest.json nor index.json{self._guess()}")
        bundles: list[Bundle] = []
        if layout is not None:
            try:
                bundles = self._from_layout(self._index(layout))
            except Missing:
                if listed is None:
                    raise
        if listed is not None:
            bundles = self._from_list(self._entries(listed), bundles)
        if sum(len(bundle.images) for bundle in bundles) > MAX_IMAGES:
            raise InvalidParameter(f"image archive has more than {MAX_IMAGES} images")
        self._check_wanted(bundles)
        if not bundles:
            raise NotFound("no image in the archive")
        return _named_once(bundles)

    def _guess(self) -> str:
        """What it may be instead, for the message."""
        if "repositories" in self._archive.files:
            return (
                "; it was saved by Docker 1.9 or older, whose format is no longer supported: load it into a Docker from"
                " 1.10 to 28 and save it again"
            )
        if any(name.partition("/")[0] in ("bin", "etc", "usr") for name in self._archive.files):
            return "; it looks like a file system, as `docker export` writes it: use `docker import` for that"
        return ""

    # --- documents ----------------------------------------------------------------------------------------------------

    def _bytes(self, file: File) -> bytes:
        if file.size > MAX_DOCUMENT:
            raise InvalidParameter(f"document {file.digest} has {file.size} bytes; at most {MAX_DOCUMENT} are accepted")
        self._budget -= file.size
        if self._budget < 0:
            raise InvalidParameter(f"image archive has more than {self._limit} bytes of documents")
        return file.data if file.data is not None else self._content.read(file.digest, limit=MAX_DOCUMENT)

    def _blob(self, digest: Digest) -> File | None:
        """A blob of the archive, else of the store."""
        if (file := self._archive.blobs.get(digest)) is not None:
            return file
        self._lease.note(digest)
        try:
            return File(digest, self._content.size(digest), Compression.NONE)
        except NotFound:
            return None

    def _index(self, file: File) -> Index:
        try:
            document = decode_manifest(self._bytes(file))
        except WherryError as exc:
            raise InvalidParameter(f"invalid image archive: index.json cannot be read: {exc.message}") from exc
        if not isinstance(document, Index):
            raise InvalidParameter("invalid image archive: index.json is not an index")
        return document

    def _entries(self, file: File) -> list[ArchiveImage]:
        try:
            return msgspec.json.decode(self._bytes(file), type=list[ArchiveImage])
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
            raise InvalidParameter(f"invalid image archive: manifest.json cannot be read: {exc}") from exc

    def _document(self, entry: Descriptor) -> tuple[Raw, Manifest | Index] | None:
        """The document an index entry points to; None when it is nowhere."""
        file = self._blob(entry.digest)
        if file is None:
            return None
        data = self._bytes(file)
        document = decode_manifest(data, entry.media_type)
        return Raw(data, media_type_of(document, entry.media_type), entry.digest), document

    def _config(self, digest: Digest, name: str) -> tuple[File, ImageConfig]:
        file = self._blob(digest)
        if file is None:
            raise Missing(f"invalid image archive: the config {name} is missing")
        return file, decode_config(self._bytes(file))

    # --- OCI layout ---------------------------------------------------------------------------------------------------

    def _from_layout(self, layout: Index) -> list[Bundle]:
        found: dict[Digest, Bundle] = {}
        artifact: NotSupported | None = None
        for entry in layout.manifests:
            try:
                bundle = found.get(entry.digest) or self._bundle(entry)
            except NotSupported as exc:  # beside images it may be there
                artifact = artifact or exc
                continue
            if bundle is not None:
                names = dict.fromkeys((*bundle.names, *_annotated(entry)))
                found[entry.digest] = replace(bundle, names=list(names))
        if artifact is not None and not found:
            raise artifact
        return list(found.values())

    def _bundle(self, entry: Descriptor) -> Bundle | None:
        """What an entry of index.json stands for; None when it is no image, or none that is wanted."""
        opened = self._document(entry)
        if opened is None:
            raise Missing(f"invalid image archive: the manifest {entry.digest} is missing")
        raw, document = opened
        if isinstance(document, Manifest):
            if _is_attestation(entry):
                return None
            for layer in document.layers:
                check_type(layer)
            image = self._image(raw, document)
            chosen = self._choose([image])
            return Bundle(target=image.manifest, images=chosen) if chosen else None
        found = _Children()
        self._walk(document, found, 0)
        chosen = self._choose(found.images)
        if chosen:
            return self._of_index(raw, found, chosen)
        if found.images:
            return None  # none of the platforms that are wanted
        raise found.problem or NotFound(f"no image for linux in the index {raw.digest} of the archive")

    def _of_index(self, raw: Raw, found: _Children, chosen: list[Packed]) -> Bundle:
        attached = set(found.indexes)
        manifests = {image.manifest.digest for image in chosen}
        for entry, manifest in found.others:
            about = (entry.annotations or {}).get(ATTESTED)
            if self._wanted and about is not None and about not in manifests:
                continue
            blobs = {blob.digest for blob in (manifest.config, *manifest.layers)}
            if all(self._blob(blob) for blob in blobs):
                attached |= {entry.digest, *blobs}
            else:
                self._pass_over(Missing(f"blobs of the manifest {entry.digest} are missing"), found)
        return Bundle(target=raw.descriptor, images=chosen, attached=frozenset(attached))

    def _walk(self, index: Index, found: _Children, depth: int) -> None:
        """All manifests below `index`, each once; those that are not in the archive are passed over."""
        if depth > MAX_DEPTH:
            raise InvalidParameter("invalid image archive: indexes are nested too deeply")
        for entry in index.manifests:
            if entry.digest in found.seen:
                continue
            found.seen.add(entry.digest)
            opened = self._document(entry)
            if opened is None:
                missing = Missing(f"invalid image archive: the manifest {entry.digest} is missing")
                self._pass_over(missing, found)
                continue
            raw, document = opened
            if isinstance(document, Index):
                found.indexes.add(raw.digest)
                self._walk(document, found, depth + 1)
            else:
                self._leaf(entry, raw, document, found)

    def _leaf(self, entry: Descriptor, raw: Raw, manifest: Manifest, found: _Children) -> None:
        if not _is_image(entry, manifest):
            found.others.append((entry, manifest))
            return
        try:
            image = self._image(raw, manifest)
        except (Missing, Foreign) as exc:
            self._pass_over(exc, found)
            return
        if image.manifest.digest == raw.digest:
            found.images.append(image)
        else:  # another manifest stands for it: the index's own cannot be passed on whole
            self._pass_over(Missing(f"invalid image archive: layers of {raw.digest} are missing"), found)

    def _pass_over(self, problem: InvalidParameter, found: _Children) -> None:
        """Not all that an index names need be there; but of an archive that was cut that would be a half."""
        if not self._archive.whole and isinstance(problem, Missing):
            raise InvalidParameter(f"image archive is truncated: it has no end, and {problem.message}")
        found.problem = found.problem or problem

    def _image(self, raw: Raw, manifest: Manifest) -> Packed:
        """The image of `manifest`; of one whose blobs are nowhere, while what they unpack to is, by another one."""
        file, config = self._config(manifest.config.digest, manifest.config.digest)
        _check_config(config, len(manifest.layers))
        layers: list[Descriptor] = []
        for layer, chain in zip(manifest.layers, chains(config.rootfs.diff_ids), strict=True):
            if self._blob(layer.digest) is not None:
                layers.append(layer)
            elif (known := self._known(chain)) is not None:
                layers.append(known)
            else:
                raise Missing(f"invalid image archive: the layer {layer.digest} is missing, and not in the store")
        descriptor = raw.descriptor
        if layers != list(manifest.layers):
            descriptor = self._made(Descriptor(media_type=OCI_CONFIG, digest=file.digest, size=file.size), layers)
        self._offers.add(str(config.platform))
        return Packed(manifest=descriptor, config=config, config_digest=file.digest, layers=layers)

    def _known(self, chain: ChainID) -> Descriptor | None:
        """A layer that is in the store, under whatever digest."""
        layer = self._held.get(chain)
        if layer is None or self._blob(layer.digest) is None:
            return None
        return Descriptor(media_type=oci_layer_type(layer.media_type), digest=layer.digest, size=layer.size)

    def _made(self, config: Descriptor, layers: Sequence[Descriptor]) -> Descriptor:
        """A manifest of our own, as if it had been in the archive."""
        raw = encode_manifest(config, layers)
        self._archive.blobs[raw.digest] = File(raw.digest, len(raw.data), Compression.NONE, raw.data)
        return raw.descriptor

    # --- docker-archive -----------------------------------------------------------------------------------------------

    def _from_list(self, entries: Sequence[ArchiveImage], bundles: list[Bundle]) -> list[Bundle]:
        """What manifest.json adds: names of images that are known already, and other images."""
        for entry in entries:
            names = [_tag(name) for name in entry.repo_tags or ()]
            digest = self._named(entry.config)
            at = self._position(bundles, digest, names) if digest is not None else None
            if at is not None:
                taken = {name for bundle in bundles for name in bundle.names}
                new = [name for name in dict.fromkeys(names) if name not in taken]
                bundles[at] = replace(bundles[at], names=[*bundles[at].names, *new])
            elif (bundle := self._listed(entry, digest, names)) is not None:
                bundles.append(bundle)
        return bundles

    @staticmethod
    def _position(bundles: Sequence[Bundle], digest: Digest, names: Sequence[Reference]) -> int | None:
        """The bundle an entry of manifest.json means: one with its config, best one of its names."""
        having = [
            at for at, bundle in enumerate(bundles) if any(image.config_digest == digest for image in bundle.images)
        ]
        named = [at for at in having if set(names) & set(bundles[at].names)]
        return next(iter(named or having), None)

    def _named(self, name: str) -> Digest | None:
        """The digest of a file as manifest.json names it; of one that is not there, when its name tells."""
        file = self._archive.find(name)
        return file.digest if file is not None else blob_name(name)

    def _listed(self, entry: ArchiveImage, digest: Digest | None, names: Sequence[Reference]) -> Bundle | None:
        shown = repr(entry.config[:200])
        if digest is None:
            raise Missing(f"invalid image archive: the config {shown} is missing")
        file, config = self._config(digest, shown)
        layers = entry.layers or []
        _check_config(config, len(layers))
        found = [
            self._listed_layer(name, diff_id, chain)
            for name, diff_id, chain in zip(layers, config.rootfs.diff_ids, chains(config.rootfs.diff_ids), strict=True)
        ]
        self._offers.add(str(config.platform))
        manifest = self._made(Descriptor(media_type=OCI_CONFIG, digest=file.digest, size=file.size), found)
        chosen = self._choose([Packed(manifest=manifest, config=config, config_digest=file.digest, layers=found)])
        return Bundle(target=manifest, images=chosen, names=list(dict.fromkeys(names))) if chosen else None

    def _listed_layer(self, name: str, diff_id: DiffID, chain: ChainID) -> Descriptor:
        """A layer by its name, which tells no digest: what the store has of it already is not kept twice."""
        if (known := self._known(chain)) is not None:
            return known
        shown = repr(name[:200])
        file = self._archive.find(name)
        if file is None:
            digest = blob_name(name) or Digest(diff_id)
            file = self._blob(digest)
            if file is None:
                raise Missing(f"invalid image archive: the layer {shown} is missing, and not in the store")
            file = replace(file, compression=_sniff(self._content, digest))
        if file.compression not in LAYER_TYPES:
            raise InvalidParameter(f"invalid image archive: the layer {shown} is compressed by {file.compression}")
        if file.compression is Compression.NONE and file.digest != Digest(diff_id):
            raise Corrupt(
                f"layer {shown} does not match the image's configuration: its content is {file.digest}, "
                f"the configuration says {diff_id}"
            )
        return Descriptor(media_type=LAYER_TYPES[file.compression], digest=file.digest, size=file.size)

    # --- platforms ----------------------------------------------------------------------------------------------------

    def _choose(self, images: Sequence[Packed]) -> list[Packed]:
        """The wanted ones, what runs best here first."""
        chosen = list(images)
        if self._wanted:
            best = {each.config_digest for platform in self._wanted if (each := best_of(images, platform))}
            chosen = [image for image in images if image.config_digest in best]
        host = host_platform()
        return sorted(chosen, key=lambda image: _order(image.config.platform, host))

    def _check_wanted(self, bundles: Sequence[Bundle]) -> None:
        for platform in self._wanted:
            if not any(best_of(bundle.images, platform) for bundle in bundles):
                offers = ", ".join(sorted(self._offers)[:20])
                there = f": it has {offers}" if offers else ""
                raise NotFound(f"no image for {platform} in the archive{there}")


def best_of(images: Sequence[Packed], wanted: Platform) -> Packed | None:
    """What runs best on `wanted`."""
    ranked = [(at, image) for image in images if (at := rank(image.config.platform, wanted)) is not None]
    return min(ranked, key=lambda pair: pair[0])[1] if ranked else None


def _order(platform: Platform, host: Platform) -> int:
    at = rank(platform, host)
    return at if at is not None else 1 << 16


def _named_once(bundles: Sequence[Bundle]) -> list[Bundle]:
    """A name given twice goes to what runs better here; if both do equally well to the later, as in Docker."""
    host = host_platform()
    orders = [_order(bundle.images[0].config.platform, host) for bundle in bundles]
    owners: dict[Reference, int] = {}
    for at, bundle in enumerate(bundles):
        for name in bundle.names:
            if orders[at] <= orders[owners.get(name, at)]:
                owners[name] = at
    return [
        replace(bundle, names=[name for name in bundle.names if owners[name] == at])
        for at, bundle in enumerate(bundles)
    ]


def _sniff(content: ContentStore, digest: Digest) -> Compression:
    with content.open(digest) as file:
        return detect(file.read(HEAD))


def _check_config(config: ImageConfig, layers: int) -> None:
    if layers != len(config.rootfs.diff_ids):
        raise InvalidParameter(
            f"invalid manifest, layers length mismatch: expected {len(config.rootfs.diff_ids)}, got {layers}"
        )
    if config.os not in ("", "linux"):
        raise Foreign(f"cannot load {config.os} image on linux")


def _is_attestation(entry: Descriptor) -> bool:
    return entry.platform is not None and normalize(entry.platform).os == "unknown"


def _is_image(entry: Descriptor, manifest: Manifest) -> bool:
    """A container image, and no attestation or other artifact that an index has beside its images."""
    if _is_attestation(entry) or manifest.artifact_type:
        return False
    if entry.platform is not None and normalize(entry.platform).os not in ("", "linux"):
        return False
    known = all(layer.media_type in KNOWN_TYPES for layer in manifest.layers)
    return known and manifest.config.media_type in (*CONFIGS, "")


def _tag(name: str) -> Reference:
    reference = parse(name)
    if reference.tag is None or reference.digest is not None:
        raise InvalidParameter(f"invalid tag {name[:200]!r}")
    return reference


def _annotated(entry: Descriptor) -> Iterator[Reference]:
    """The name an entry of index.json gives; a tag without a repository names nothing."""
    annotations = entry.annotations or {}
    name = annotations.get(NAME) or annotations.get(REF_NAME) or ""
    if not annotations.get(NAME) and ":" not in name and "/" not in name:
        return
    try:
        reference = parse(name)
    except InvalidParameter:
        return
    if reference.digest is None:
        yield reference.tagged()
