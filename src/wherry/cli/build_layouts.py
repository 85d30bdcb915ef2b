"""OCI layouts of the user's: local caches, images in directories. Blobs by digest, and the index that names them."""

from __future__ import annotations

import os

from wherry.client import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

REF_NAME = "org.opencontainers.image.ref.name"
MAX_INDEX = 4 << 20  # bytes
HEX = frozenset("0123456789abcdef")


class LayoutError(Exception):
    """The directory does not hold what is wanted; the message says what it lacks."""


def blob_path(layout: str, digest: str) -> str:
    """LayoutError for what is no digest."""
    algorithm, _, encoded = digest.partition(":")
    if algorithm not in ("sha256", "sha512") or not encoded or not set(encoded) <= HEX:
        raise LayoutError(f"{digest!r} is no digest")
    return f"{layout}/blobs/{algorithm}/{encoded}"


def _read_index(layout: str) -> dict[str, Any]:
    try:
        with open(f"{layout}/index.json", "rb") as file:
            index = jsontext.loads(file.read(MAX_INDEX))
    except OSError as exc:
        raise LayoutError(f"open {layout}/index.json: {(exc.strerror or '').lower()}") from None
    except jsontext.JSONError as exc:
        raise LayoutError(f"{layout}/index.json: {exc}") from None
    if not isinstance(index, dict) or not isinstance(index.get("manifests"), list):
        raise LayoutError(f"{layout}/index.json is no index")
    return index


def _is_tag(entry: Any, tag: str) -> bool:
    annotations = entry.get("annotations") if isinstance(entry, dict) else None
    return isinstance(annotations, dict) and annotations.get(REF_NAME) == tag


def digest_of(layout: str, tag: str) -> str:
    """What `tag` names; in a layout of one image any tag names that. LayoutError."""
    entries = _read_index(layout)["manifests"]
    found = next((entry for entry in entries if _is_tag(entry, tag)), entries[0] if len(entries) == 1 else None)
    if not isinstance(found, dict) or not isinstance(found.get("digest"), str):
        raise LayoutError(f"{layout} holds nothing named {tag}")
    blob_path(layout, found["digest"])
    return str(found["digest"])


def add_to_index(layout: str, descriptor: dict[str, Any], tag: str) -> None:
    """Name `descriptor` in the index; what had the name before has it no longer."""
    os.makedirs(layout, exist_ok=True)
    try:
        index = _read_index(layout)
    except LayoutError:
        index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}
    named = {**descriptor, "annotations": {**(descriptor.get("annotations") or {}), REF_NAME: tag}}
    index["manifests"] = [entry for entry in index["manifests"] if not _is_tag(entry, tag)] + [named]
    _write(f"{layout}/index.json", jsontext.dumps(index).encode())
    _write(f"{layout}/oci-layout", b'{"imageLayoutVersion":"1.0.0"}')


def _write(path: str, data: bytes) -> None:
    fresh = f"{path}.{os.getpid()}"
    with open(fresh, "wb") as file:
        file.write(data)
    os.replace(fresh, path)
