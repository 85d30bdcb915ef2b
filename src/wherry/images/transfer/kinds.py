"""What registries hold besides images, by media type: to say what it is instead of "unknown"."""

from collections.abc import Sequence

from wherry.errors import NotSupported
from wherry.images.layers import check_type
from wherry.spec.image import CONFIGS, MANIFESTS, Descriptor, Manifest

# What early registries called a config; Docker takes them too.
LEGACY_CONFIGS = frozenset(
    {"", "application/octet-stream", "application/json", "text/html", "text/html; charset=utf-8"}
)

ARTIFACT_MANIFEST = "application/vnd.oci.artifact.manifest.v1+json"  # of an early draft of the OCI image-spec
EMPTY = "application/vnd.oci.empty.v1+json"
PLUGIN = "application/vnd.docker.plugin.v1+json"

# Beginning of the media type of a config, of an artifact or of a layer -> what it is
_KINDS: Sequence[tuple[str, str]] = (
    ("application/vnd.cncf.helm.", "a Helm chart: `helm pull oci://…` fetches it"),
    (PLUGIN, "a plugin of Docker"),
    ("application/vnd.wasm.", "a WebAssembly module"),
    ("application/wasm", "a WebAssembly module"),
    ("application/vnd.in-toto", "an attestation (provenance or a bill of materials) of an image"),
    ("application/vnd.dev.cosign.", "a signature or an attestation made by cosign"),
    ("application/vnd.dev.sigstore.", "a signature made by sigstore"),
    ("application/vnd.cncf.notary.", "a signature made by Notary"),
    ("application/spdx", "a bill of materials"),
    ("application/vnd.cyclonedx", "a bill of materials"),
    ("application/vnd.cncf.flux.", "an artifact of Flux"),
    ("application/vnd.cncf.model.", "a machine learning model"),
    ("application/vnd.ollama.", "a machine learning model"),
    ("application/vnd.docker.ai.", "a machine learning model"),
    ("application/vnd.buildkit.cacheconfig.", "a build cache of BuildKit"),
    ("application/vnd.amazon.soci.", "an index of SOCI: pull the image it belongs to"),
    ("application/vnd.devcontainers", "a feature or template of dev containers"),
    ("application/vnd.oci.artifact.", "an artifact"),
    ("application/vnd.unknown.", "an artifact"),
)


def check_manifest(manifest: Manifest) -> None:
    """Raise NotSupported, saying what it is, when `manifest` is not that of a container image we can unpack."""
    config = manifest.config.media_type
    types = (manifest.artifact_type, config, *(layer.media_type for layer in manifest.layers))
    if config not in CONFIGS and config not in LEGACY_CONFIGS:
        kind = "plugin" if config == PLUGIN else "unknown"
        found = _name(types) or f"an artifact of type {manifest.artifact_type or config}"
        raise NotSupported(f'Encountered remote "{config}"({kind}) when fetching: not a container image but {found}')
    if (found := _name(types)) and manifest.layers:
        raise NotSupported(f"not a container image but {found}")
    for layer in manifest.layers:
        _check_layer(layer)


def is_image(manifest: Manifest) -> bool:
    """True when `check_manifest` would not complain."""
    try:
        check_manifest(manifest)
    except NotSupported:
        return False
    return True


def _check_layer(layer: Descriptor) -> None:
    if layer.media_type.endswith("+encrypted"):
        raise NotSupported(
            f"layer {layer.digest} is encrypted ({layer.media_type}): encrypted images are not supported; decrypt it "
            "first, for example by `skopeo copy --decryption-key`"
        )
    if ".nydus." in layer.media_type:
        raise NotSupported(
            f"layer {layer.digest} ({layer.media_type}) is one of Nydus, which only its own tools can unpack: pull the "
            "image it was converted from"
        )
    check_type(layer)


def check_top(media_type: str) -> None:
    """Raise NotSupported for a document of a kind that is neither manifest nor index, as far as it can be told."""
    if media_type == ARTIFACT_MANIFEST:
        raise NotSupported(f"{media_type}: not a container image but an artifact")
    if media_type.startswith("application/vnd.") and (found := _name((media_type,))) and media_type not in MANIFESTS:
        raise NotSupported(f"{media_type}: not a container image but {found}")


def _name(types: Sequence[str]) -> str:
    for kind in types:
        for beginning, words in _KINDS:
            if kind.startswith(beginning):
                return words
    return ""
