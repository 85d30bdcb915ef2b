"""What an output's attributes ask of an image, by BuildKit's names. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wherry.errors import InvalidParameter, NotSupported
from wherry.reference import Reference, parse_repository
from wherry.spec.image import Platform, normalize, parse_platform
from wherry.storage.compression import Compression

COMPRESSIONS = {"uncompressed": Compression.NONE, "gzip": Compression.GZIP, "zstd": Compression.ZSTD}
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True", ""})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_ANNOTATION = re.compile(
    r"annotation(?:-(manifest|index|manifest-descriptor|index-descriptor))?(?:\[([^\]]*)\])?\.(.+)\Z", re.DOTALL
)

# Asked for by clients, and so here without asking: layers are on disk already, files have the epoch's time at most.
_GIVEN = frozenset({"unpack", "rewrite-timestamp", "prefer-nondist-layers", "prefer-image-digest", "buildinfo"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotations:
    manifest: Mapping[str, str] = field(default_factory=dict)
    descriptor: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    names: Sequence[Reference] = ()
    push: bool = False
    push_by_digest: bool = False
    store: bool = True
    canonical: bool = False  # the name with the digest is a name, too
    compression: Compression = Compression.GZIP
    level: int | None = None  # None: the usual one
    force: bool = False  # layers of base images are compressed anew as well
    docker_types: bool = False  # Docker's media types instead of OCI's
    artifacts: bool = False  # attestations as OCI artifacts
    index: Mapping[str, str] = field(default_factory=dict)  # annotations
    index_descriptor: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, Annotations] = field(default_factory=dict)  # by platform; "" is for all
    tar: bool = True

    def annotated(self, platform: Platform) -> Annotations:
        """Annotations of the manifest of `platform`."""
        general, own = (self.annotations.get(key, Annotations()) for key in ("", str(normalize(platform))))
        return Annotations(
            manifest=dict(sorted({**general.manifest, **own.manifest}.items())),
            descriptor=dict(sorted({**general.descriptor, **own.descriptor}.items())),
        )


def parse(attributes: Mapping[str, str], *, docker_types: bool = False) -> Settings:
    """Raises InvalidParameter, naming the attribute; NotSupported for what nobody here can do.

    Attributes that no exporter knows are passed over, as BuildKit does. `docker_types`: the default.
    """
    flags = _Flags(attributes)
    if flags.get("registry.insecure"):
        raise NotSupported(
            "an output cannot make a registry insecure: name it in insecure-registries in the daemon's configuration"
        )
    for name in _GIVEN:
        flags.get(name)
    oci = flags.get("oci-mediatypes", not docker_types)
    by_digest = flags.get("push-by-digest")
    annotations, index, index_descriptor = _annotations(attributes)
    compression = _compression(attributes.get("compression", ""))
    return Settings(
        names=_names(attributes.get("name", ""), by_digest=by_digest),
        push=flags.get("push"),
        push_by_digest=by_digest,
        store=flags.get("store", True),
        canonical=flags.get("name-canonical"),
        compression=compression,
        level=_level(attributes.get("compression-level", ""), compression),
        force=flags.get("force-compression"),
        docker_types=not oci and compression is not Compression.ZSTD,  # Docker's types know no zstd
        artifacts=flags.get("oci-artifact"),
        index=index,
        index_descriptor=index_descriptor,
        annotations=annotations,
        tar=flags.get("tar", True),
    )


def flag(attributes: Mapping[str, str], name: str, default: bool = False) -> bool:
    """Raises InvalidParameter for what is neither true nor false."""
    return _Flags(attributes).get(name, default)


class _Flags:
    def __init__(self, attributes: Mapping[str, str]) -> None:
        self._attributes = attributes

    def get(self, name: str, default: bool = False) -> bool:
        if name not in self._attributes:
            return default
        value = self._attributes[name]
        if value not in _TRUE | _FALSE:
            raise InvalidParameter(f"non-bool value {value[:50]!r} specified for {name}")
        return value in _TRUE


def _names(text: str, *, by_digest: bool) -> list[Reference]:
    """References as they were typed, separated by commas, each once."""
    found = []
    for name in filter(None, (each.strip() for each in text.split(","))):
        found.append(parse_repository(name))
    if by_digest and not found:
        raise InvalidParameter("push-by-digest needs a name to push to")
    return list(dict.fromkeys(found))


def _compression(text: str) -> Compression:
    if not text:
        return Compression.GZIP
    if text == "estargz":
        raise NotSupported("compression estargz is not offered: use gzip or zstd")
    if text not in COMPRESSIONS:
        raise InvalidParameter(f"unsupported layer compression type {text[:50]!r}: want {', '.join(COMPRESSIONS)}")
    return COMPRESSIONS[text]


def _level(text: str, kind: Compression) -> int | None:
    if not text:
        return None
    top = {Compression.GZIP: 9, Compression.ZSTD: 22}.get(kind, 0)
    level = int(text) if re.fullmatch(r"\d{1,2}", text) else -1
    if not 0 <= level <= top:
        raise InvalidParameter(f"invalid compression-level {text[:50]!r}: want a number up to {top} for {kind}")
    return level


def _annotations(attributes: Mapping[str, str]) -> tuple[dict[str, Annotations], dict[str, str], dict[str, str]]:
    """Of manifests by platform, of the index, of the index's descriptor."""
    manifests: dict[str, dict[str, str]] = {}
    descriptors: dict[str, dict[str, str]] = {}
    index: dict[str, str] = {}
    index_descriptor: dict[str, str] = {}
    for name, value in sorted(attributes.items()):
        match = _ANNOTATION.match(name)
        if match is None:
            continue
        kind, platform, key = match.groups()
        where = str(parse_platform(platform)) if platform else ""
        if platform and kind in ("index", "index-descriptor"):
            raise InvalidParameter(f"annotation {name[:100]!r}: an index is of no platform")
        match kind or "manifest":
            case "manifest":
                manifests.setdefault(where, {})[key] = value
            case "manifest-descriptor":
                descriptors.setdefault(where, {})[key] = value
            case "index":
                index[key] = value
            case "index-descriptor":
                index_descriptor[key] = value
    joined = {
        where: Annotations(manifest=manifests.get(where, {}), descriptor=descriptors.get(where, {}))
        for where in manifests.keys() | descriptors.keys()
    }
    return joined, index, index_descriptor
