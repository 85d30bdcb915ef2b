"""Manifest lists being put together, before `manifest push`: the files docker keeps for them, in the same form.

    <config>/manifests/<list reference>/<image reference>     one JSON document, mode 0644

`:` is written `-` and `/` is written `_` in the names. Both programs may work on one list by turns.
"""

from __future__ import annotations

import binascii
import os

from wherry.cli.names import InvalidReference, Name, parse_name
from wherry.client import jsontext
from wherry.client.registry import DOCKER_LIST, MANIFESTS, OCI_INDEX, OCI_MANIFEST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

PLATFORM = ("architecture", "os", "os.version", "os.features", "variant")  # in the order they are written
DESCRIPTOR = ("mediaType", "digest", "size", "urls", "annotations", "data", "platform", "artifactType")
ALWAYS = frozenset({"mediaType", "digest", "size", "architecture", "os"})  # written even when empty


class DraftError(Exception):
    """A list cannot be read, or not be made; the message is docker's where docker has the case."""


class NoSuchManifest(DraftError):
    """There is no such list, or it has no such image."""


class Entry:
    """One image of a list: where it is, its descriptor, and its manifest as the registry has it (b"" if unknown)."""

    __slots__ = ("descriptor", "raw", "reference")

    def __init__(self, reference: str, descriptor: dict[str, Any], raw: bytes) -> None:
        self.reference = reference
        self.descriptor = descriptor
        self.raw = raw

    @property
    def platform(self) -> dict[str, Any] | None:
        found = self.descriptor.get("platform")
        return found if isinstance(found, dict) else None

    @property
    def name(self) -> Name:
        try:
            return parse_name(self.reference)
        except InvalidReference as exc:
            raise DraftError(f"{self.reference}: {exc}") from None

    def blobs(self) -> list[str]:
        """Digests the manifest names, its config among them."""
        try:
            manifest = jsontext.loads(self.raw)
            return [str(blob["digest"]) for blob in (manifest["config"], *manifest["layers"])]
        except (jsontext.JSONError, KeyError, TypeError):
            raise DraftError(f"the manifest of {self.reference} has no config or no layers") from None

    def document(self) -> dict[str, Any]:
        """As docker writes it, and as `manifest inspect -v` shows it."""
        made: dict[str, Any] = {"Ref": self.reference, "Descriptor": ordered(self.descriptor, DESCRIPTOR)}
        if self.raw:
            made["Raw"] = binascii.b2a_base64(self.raw, newline=False).decode()
            kind = self.descriptor.get("mediaType")
            if kind in MANIFESTS:
                made["OCIManifest" if kind == OCI_MANIFEST else "SchemaV2Manifest"] = jsontext.loads(self.raw)
        return made


def ordered(given: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The fields of `given` in the order of `names`, without those that are empty and need not be there."""
    return {name: given[name] for name in names if given.get(name) or (name in ALWAYS and name in given)}


def file_name(reference: str) -> str:
    return reference.replace(":", "-").replace("/", "_")


class Drafts:
    """All lists of one configuration directory."""

    def __init__(self, config_directory: str) -> None:
        self.root = f"{config_directory}/manifests"

    def _folder(self, target: str) -> str:
        return f"{self.root}/{file_name(target)}"

    def get(self, target: str, reference: str) -> Entry:
        """NoSuchManifest when the list does not have the image."""
        return self._read(f"{self._folder(target)}/{file_name(reference)}", reference)

    def entries(self, target: str) -> list[Entry]:
        """The images of a list, by the names of their files; NoSuchManifest when there is no such list."""
        folder = self._folder(target)
        try:
            names = sorted(os.listdir(folder))
        except FileNotFoundError:
            raise NoSuchManifest(f"No such manifest: {target}") from None
        except OSError as exc:
            raise DraftError(f"{folder}: {exc.strerror}") from None
        return [self._read(f"{folder}/{name}", name) for name in names if not name.startswith(".")]

    def _read(self, path: str, reference: str) -> Entry:
        try:
            with open(path, "rb") as file:
                document = jsontext.loads(file.read())
            raw = binascii.a2b_base64(document.get("Raw") or "", strict_mode=True)
            descriptor, reference = document["Descriptor"], str(document["Ref"])
            if not isinstance(descriptor, dict):
                raise TypeError
        except FileNotFoundError:
            raise NoSuchManifest(f"No such manifest: {reference}") from None
        except OSError as exc:
            raise DraftError(f"{path}: {exc.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DraftError(f"{path} is damaged: remove the list with 'wherry manifest rm' and make it anew") from None
        return Entry(reference, descriptor, raw)

    def save(self, target: str, entry: Entry) -> None:
        """Put an image into a list, over what it had for it."""
        folder = self._folder(target)
        path = f"{folder}/{file_name(entry.reference)}"
        temporary = f"{folder}/.{os.getpid()}"
        try:
            os.makedirs(folder, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(jsontext.dumps(entry.document(), html=True).encode("utf-8", "surrogateescape"))
            os.replace(temporary, path)
        except OSError as exc:
            raise DraftError(f"cannot write {path}: {exc.strerror}") from None

    def remove(self, target: str) -> None:
        """NoSuchManifest when there is no such list."""
        folder = self._folder(target)
        try:
            for name in os.listdir(folder):
                os.unlink(f"{folder}/{name}")
            os.rmdir(folder)
        except FileNotFoundError:
            raise NoSuchManifest(f"No such manifest: {target}") from None
        except OSError as exc:
            raise DraftError(f"cannot remove {folder}: {exc.strerror}") from None


def list_document(entries: Sequence[Entry], target: Name) -> tuple[str, str]:
    """Media type and text of the list, as docker writes it; an index when it is of OCI images.

    DraftError when an image is in another registry than the list will be.
    """
    descriptors: list[dict[str, Any]] = []
    for entry in entries:
        if entry.name.domain != target.domain:
            raise DraftError(
                "cannot use source images from a different registry than the target image: "
                f"{entry.name.domain} != {target.domain}"
            )
        kept = ordered(entry.descriptor, ("mediaType", "size", "digest"))
        kept["platform"] = ordered({"architecture": "", "os": "", **(entry.platform or {})}, PLATFORM)
        descriptors.append(kept)
    oci = bool(descriptors) and descriptors[0].get("mediaType") == OCI_MANIFEST
    kind = OCI_INDEX if oci else DOCKER_LIST
    document = {"schemaVersion": 2, "mediaType": kind, "manifests": descriptors}
    return kind, jsontext.indent(jsontext.dumps(document, html=True), "   ")
