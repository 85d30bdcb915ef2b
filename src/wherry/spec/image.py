"""OCI image-spec and Docker schema 2 documents: descriptor, manifest, index, image config; platforms.

Only what the engine needs is decoded. The bytes as received travel beside the parsed form and are what is stored and
sent on: encoding anew would drop unknown fields and change the digest.
Sources: OCI image-spec v1.1; Docker image manifest v2 schema 2; containerd's platform rules.
"""

import platform as machine
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from wherry.digest import ChainID, DiffID, Digest, chain_id, is_digest, of
from wherry.errors import InvalidParameter, NotSupported
from wherry.spec.engine import ContainerConfig

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
OCI_LAYER_FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_ZSTD = "application/vnd.docker.image.rootfs.diff.tar.zstd"
DOCKER_SCHEMA1 = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)

INDEXES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG})
ACCEPT = (DOCKER_MANIFEST, DOCKER_INDEX, OCI_MANIFEST, OCI_INDEX)  # what a pull asks for

MAX_DOCUMENT = 4 << 20  # bytes of a manifest, an index or a config, as Docker's client limits them
MAX_LAYERS = 500  # the kernel's limit for one overlay mount
MAX_ENTRIES = 4096  # descriptors of one index

EMPTY_LAYER = DiffID("sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef")  # a tar of no entries


class Platform(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    architecture: str = ""
    os: str = ""
    os_version: str = msgspec.field(default="", name="os.version")
    os_features: list[str] | None = msgspec.field(default=None, name="os.features")
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A typed, sized pointer to bytes."""

    media_type: str = ""
    digest: Digest
    size: int
    urls: list[str] | None = None
    annotations: dict[str, str] | None = None
    platform: Platform | None = None
    artifact_type: str = ""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    schema_version: int = 2
    media_type: str = ""
    artifact_type: str = ""
    config: Descriptor
    layers: list[Descriptor] = []
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


class Index(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    schema_version: int = 2
    media_type: str = ""
    artifact_type: str = ""
    manifests: list[Descriptor] = []
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


class History(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    created: str = ""
    author: str = ""
    created_by: str = ""
    comment: str = ""
    empty_layer: bool = False


class RootFS(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "layers"
    diff_ids: list[DiffID] = []


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The document whose digest is the image ID."""

    architecture: str = ""
    os: str = ""
    os_version: str = msgspec.field(default="", name="os.version")
    os_features: list[str] | None = msgspec.field(default=None, name="os.features")
    variant: str = ""
    created: str = ""  # RFC 3339
    author: str = ""
    comment: str = ""  # Docker's, before history entries had one
    docker_version: str = ""
    config: ContainerConfig = ContainerConfig()
    rootfs: RootFS = RootFS()
    history: list[History] = []

    @property
    def platform(self) -> Platform:
        return Platform(os=self.os, architecture=self.architecture, variant=self.variant, os_version=self.os_version)

    @property
    def chain(self) -> ChainID | None:
        return chain_id(self.rootfs.diff_ids)

    @property
    def created_ns(self) -> int:
        """ns since the epoch; 0 when the image does not say."""
        return parse_time(self.created)


@dataclass(frozen=True, slots=True)
class Raw:
    """A document as received, with what was said about it."""

    data: bytes
    media_type: str
    digest: Digest

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(media_type=self.media_type, digest=self.digest, size=len(self.data))


T = TypeVar("T", bound=msgspec.Struct)


def _drop_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _drop_null(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_drop_null(item) for item in value]
    return value


def _open(raw: bytes, what: str) -> dict[str, Any]:
    """A JSON object with `null` meaning absent, as Go's decoder has it. Raises InvalidParameter."""
    if len(raw) > MAX_DOCUMENT:
        raise InvalidParameter(f"{what} is {len(raw)} bytes long; the limit is {MAX_DOCUMENT}")
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidParameter(f"{what} is not valid JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise InvalidParameter(f"{what} is not a JSON object")
    cleaned = _drop_null(value)
    assert isinstance(cleaned, dict)
    return cleaned


def _convert(value: dict[str, Any], kind: type[T], what: str) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as exc:
        raise InvalidParameter(f"{what} is not valid: {exc}") from exc


def _check(descriptor: Descriptor, what: str) -> None:
    if not is_digest(descriptor.digest):
        raise InvalidParameter(
            f"{what} names an invalid digest {descriptor.digest[:100]!r}: want sha256: and 64 hex digits"
        )
    if descriptor.size < 0:
        raise InvalidParameter(f"{what} gives {descriptor.digest} a negative size")


def decode_manifest(raw: bytes, media_type: str = "") -> Manifest | Index:
    """Read a manifest or an index. `media_type` is what the sender said, used when the document itself does not say.

    Raises NotSupported for Docker's schema 1, InvalidParameter for anything else that is not one of the four types,
    a document that could be read as both among them (it would have two meanings under one digest).
    """
    value = _open(raw, "manifest")
    if value.get("schemaVersion") == 1 or media_type in DOCKER_SCHEMA1:
        raise NotSupported(
            "Docker Image Format v1 and Docker Image manifest version 2, schema 1 are not supported: ask the author to "
            "upgrade the image to the OCI Format or Docker Image manifest v2, schema 2"
        )
    if value.get("schemaVersion") != 2:
        raise InvalidParameter(f"manifest has schemaVersion {value.get('schemaVersion')!r}; only 2 is known")
    if "manifests" in value and ("layers" in value or "config" in value):
        raise InvalidParameter("manifest is ambiguous: it has both the fields of an image and those of an index")
    said = value.get("mediaType") or media_type
    if not isinstance(said, str):
        raise InvalidParameter("manifest has a mediaType that is no text")
    if said in INDEXES or (said not in MANIFESTS and "manifests" in value):
        if "manifests" not in value:
            raise InvalidParameter("index has no manifests")
        index = _convert(value, Index, "index")
        if len(index.manifests) > MAX_ENTRIES:
            raise InvalidParameter(f"index has {len(index.manifests)} entries; the limit is {MAX_ENTRIES}")
        for entry in (*index.manifests, *((index.subject,) if index.subject else ())):
            _check(entry, "index")
        return index
    if said not in MANIFESTS and "layers" not in value:
        raise InvalidParameter(f"unsupported manifest media type {said!r}")
    manifest = _convert(value, Manifest, "manifest")
    if len(manifest.layers) > MAX_LAYERS:
        raise InvalidParameter(f"manifest has {len(manifest.layers)} layers; the limit is {MAX_LAYERS}")
    for entry in (manifest.config, *manifest.layers, *((manifest.subject,) if manifest.subject else ())):
        _check(entry, "manifest")
    return manifest


def media_type_of(document: Manifest | Index, said: str = "") -> str:
    """The media type of a decoded manifest: its own word, else the sender's, else OCI's for its shape."""
    if document.media_type:
        return document.media_type
    if said in INDEXES or said in MANIFESTS:
        return said
    return OCI_INDEX if isinstance(document, Index) else OCI_MANIFEST


def decode_config(raw: bytes) -> ImageConfig:
    """Read an image config. Raises InvalidParameter, also when diffIDs are malformed."""
    value = _open(raw, "image config")
    config = _convert(value, ImageConfig, "image config")
    if config.rootfs.type != "layers":
        raise InvalidParameter(f"image config has a rootfs of type {config.rootfs.type!r}; only layers is known")
    if len(config.rootfs.diff_ids) > MAX_LAYERS:
        raise InvalidParameter(f"image config has {len(config.rootfs.diff_ids)} layers; the limit is {MAX_LAYERS}")
    for diff_id in config.rootfs.diff_ids:
        if not is_digest(diff_id):
            raise InvalidParameter(f"image config names an invalid diffID {diff_id[:100]!r}")
    return config


def encode_config(
    *,
    config: ContainerConfig,
    platform: Platform,
    diff_ids: Sequence[DiffID],
    history: Sequence[History],
    created: str,
    author: str = "",
) -> bytes:
    """A new image config, with only the fields the OCI spec and Docker define; empty ones left out."""
    document: dict[str, Any] = {"architecture": platform.architecture}
    if author:
        document["author"] = author
    document["config"] = encode_container_config(config)
    document["created"] = created
    document["history"] = list(history)
    document["os"] = platform.os
    if platform.os_version:
        document["os.version"] = platform.os_version
    document["rootfs"] = {"type": "layers", "diff_ids": list(diff_ids)}
    if platform.variant:
        document["variant"] = platform.variant
    return msgspec.json.encode(document)


# The fields of a container's config that an image carries (Docker's image-spec extensions included), by our names.
IMAGE_FIELDS = (
    "user",
    "exposed_ports",
    "env",
    "entrypoint",
    "cmd",
    "volumes",
    "working_dir",
    "labels",
    "stop_signal",
    "args_escaped",
    "healthcheck",
    "on_build",
    "shell",
)


def encode_container_config(config: ContainerConfig) -> dict[str, Any]:
    """The `config` object of an image, by wire names, without what is empty."""
    names = dict(zip(config.__struct_fields__, config.__struct_encode_fields__, strict=True))
    found = ((names[field], getattr(config, field)) for field in IMAGE_FIELDS)
    return {
        name: msgspec.to_builtins(value)
        for name, value in found
        if value is not msgspec.UNSET and value is not None and value not in ("", [], {}, False)
    }


_OCI_TYPES = {DOCKER_LAYER: OCI_LAYER, DOCKER_LAYER_GZIP: OCI_LAYER_GZIP, DOCKER_LAYER_ZSTD: OCI_LAYER_ZSTD}


def oci_layer_type(media_type: str) -> str:
    """OCI's name for a layer that came under Docker's: the bytes are the same."""
    return _OCI_TYPES.get(media_type, media_type)


def encode_manifest(config: Descriptor, layers: Sequence[Descriptor]) -> Raw:
    """An OCI image manifest."""
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": list(layers)}
    data = msgspec.json.encode(document)
    return Raw(data, OCI_MANIFEST, of(data))


# --- time -------------------------------------------------------------------------------------------------------------

_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9})\d*)?(?:[Zz]|([+-])(\d\d):(\d\d))\Z", re.ASCII
)
ZERO_TIME = "0001-01-01T00:00:00Z"  # Go's zero time: "never"


def parse_time(text: str) -> int:
    """RFC 3339 to ns since the epoch; 0 for Go's zero time, an empty or an unreadable text."""
    match = _RFC3339.match(text)
    if match is None or text == ZERO_TIME:
        return 0
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    try:
        seconds = int(datetime(year, month, day, hour, minute, min(second, 59), tzinfo=UTC).timestamp())
    except ValueError:
        return 0
    if match[8]:
        offset = int(match[9]) * 3600 + int(match[10]) * 60
        seconds += -offset if match[8] == "+" else offset
    return seconds * 1_000_000_000 + int((match[7] or "0").ljust(9, "0"))


def format_time(ns: int) -> str:
    """ns since the epoch to RFC 3339 with trailing zeros dropped, as Go's RFC3339Nano; 0 is Go's zero time."""
    if ns == 0:
        return ZERO_TIME
    seconds, rest = divmod(ns, 1_000_000_000)
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}{fraction}Z"


# --- platforms --------------------------------------------------------------------------------------------------------

_ARCHITECTURES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "armhf": "arm",
    "armel": "arm",
    "armv6l": "arm",
    "i386": "386",
    "i486": "386",
    "i586": "386",
    "i686": "386",
    "ppc64el": "ppc64le",
}
_VARIANTS = {"armhf": "v7", "armv7l": "v7", "armel": "v6", "armv6l": "v6"}
_PART = re.compile(r"[A-Za-z0-9_-]+\Z")
_SYSTEMS = frozenset({"linux", "windows", "darwin", "freebsd", "netbsd", "openbsd", "android", "solaris", "wasip1"})


def normalize(platform: Platform) -> Platform:
    """One spelling for each platform: `linux/x86_64` is linux/amd64, `linux/arm64/v8` linux/arm64."""
    system = platform.os.lower()
    architecture = platform.architecture.lower()
    variant = platform.variant.lower()
    variant = variant or _VARIANTS.get(architecture, "")
    architecture = _ARCHITECTURES.get(architecture, architecture)
    if variant.isdigit():
        variant = "v" + variant
    if (architecture, variant) in (("arm64", "v8"), ("amd64", "v1")):
        variant = ""
    if architecture == "arm" and not variant:
        variant = "v7"
    return Platform(os=system, architecture=architecture, variant=variant, os_version=platform.os_version)


def host_platform() -> Platform:
    """What this machine runs."""
    return normalize(Platform(os="linux", architecture=machine.machine()))


def parse_platform(text: str) -> Platform:
    """`os[/arch[/variant]]` or `arch`, as `--platform` has it. Raises InvalidParameter in Docker's words."""
    parts = text.split("/")
    if len(parts) > 3 or not all(_PART.match(part) for part in parts):
        raise InvalidParameter(
            f'"{text}": invalid platform specifier: want os/architecture/variant, like linux/arm64/v8'
        )
    if len(parts) > 1:
        return normalize(Platform(os=parts[0], architecture=parts[1], variant=parts[2] if len(parts) == 3 else ""))
    host = host_platform()
    if parts[0].lower() in _SYSTEMS:
        return normalize(Platform(os=parts[0], architecture=host.architecture, variant=host.variant))
    known = parts[0].lower() in _ARCHITECTURES or parts[0].lower() in _KNOWN
    if not known:
        raise InvalidParameter(f'"{text}": unknown operating system or architecture: invalid argument')
    return normalize(Platform(os="linux", architecture=parts[0]))


_KNOWN = frozenset({"386", "amd64", "arm", "arm64", "loong64", "mips64le", "ppc64le", "riscv64", "s390x"})


def decode_platform(raw: str) -> Platform:
    """The JSON form that newer endpoints take. Raises InvalidParameter."""
    return normalize(_convert(_open(raw.encode(), "platform"), Platform, "platform"))


def candidates(wanted: Platform) -> list[Platform]:
    """Platforms whose binaries run on `wanted`, best first."""
    wanted = normalize(wanted)

    def each(architecture: str, *variants: str) -> list[Platform]:
        return [Platform(os=wanted.os, architecture=architecture, variant=variant) for variant in variants]

    match wanted.architecture:
        case "amd64":
            level = int(wanted.variant[1:]) if wanted.variant[1:].isdigit() else 1
            return each("amd64", *(f"v{n}" for n in range(level, 1, -1)), "") + each("386", "")
        case "arm64":
            minor = [wanted.variant] if wanted.variant else []
            return each("arm64", *minor, "") + each("arm", "v8", "v7", "v6", "v5")
        case "arm":
            level = int(wanted.variant[1:]) if wanted.variant[1:].isdigit() else 7
            return each("arm", *(f"v{n}" for n in range(min(level, 8), 4, -1)))
        case _:
            return each(wanted.architecture, *dict.fromkeys((wanted.variant, "")))


def select(index: Index, wanted: Platform) -> Descriptor | None:
    """The entry of `index` that runs best on `wanted`; None when there is none.

    Entries without a platform are never chosen (attestations say unknown/unknown, artifacts nothing).
    """
    found: dict[tuple[str, str, str], Descriptor] = {}
    for entry in index.manifests:
        if entry.platform is None:
            continue
        have = normalize(entry.platform)
        found.setdefault((have.os, have.architecture, have.variant), entry)
    for option in candidates(wanted):
        if (best := found.get((option.os, option.architecture, option.variant))) is not None:
            return best
    return None


def rank(have: Platform, wanted: Platform) -> int | None:
    """How well an image for `have` runs where `wanted` is asked for: 0 is best; None: not at all."""
    have = normalize(have)
    for at, option in enumerate(candidates(wanted)):
        if (have.os, have.architecture, have.variant) == (option.os, option.architecture, option.variant):
            return at
    return None


def runs_on(have: Platform, wanted: Platform) -> bool:
    """True when an image for `have` runs where `wanted` is asked for."""
    return rank(have, wanted) is not None
