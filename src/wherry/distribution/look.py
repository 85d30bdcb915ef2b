"""look: what a registry has under a name, without pulling it (`GET /distribution/{name}/json`)."""

import msgspec

from wherry.distribution.config import RegistryConfig
from wherry.distribution.errors import Refused
from wherry.distribution.source import Source, open_source
from wherry.errors import Failed, Forbidden, NotFound, Unauthorized, WherryError
from wherry.reference import Reference
from wherry.spec.distribution import Auth
from wherry.spec.image import CONFIGS, Descriptor, Index, Manifest, Platform, decode_manifest, media_type_of


async def look(config: RegistryConfig, reference: Reference, auth: Auth) -> tuple[Descriptor, list[Platform]]:
    """The descriptor of what `reference` names and the platforms it is for: an index's own, or the image's.

    Raises Unauthorized, Forbidden, NotFound, Failed in the registry's words; NotSupported, InvalidParameter for what is
    no manifest.
    """
    named = reference.tagged()
    try:
        async with open_source(config, named, auth) as source:
            top = await source.manifest(named.digest or named.tag or "")
            document = decode_manifest(top.data, top.media_type)
            descriptor = Descriptor(
                media_type=media_type_of(document, top.media_type), digest=top.digest, size=len(top.data)
            )
            return descriptor, await _platforms(source, document)
    except Refused as exc:
        raise _translated(exc) from exc


async def _platforms(source: Source, document: Manifest | Index) -> list[Platform]:
    if isinstance(document, Index):
        return [entry.platform or Platform() for entry in document.manifests]
    if document.config.media_type not in CONFIGS:
        return []
    raw = await source.document(document.config)
    try:
        platform = msgspec.json.decode(raw, type=Platform)
    except msgspec.MsgspecError as exc:
        raise Failed(f"image config {document.config.digest} cannot be read: {exc}") from exc
    return [platform] if platform.os or platform.architecture else []


def _translated(exc: Refused) -> WherryError:
    if exc.code == "DENIED":
        return Forbidden(exc.message)
    kind = {401: Unauthorized, 403: Forbidden, 404: NotFound}.get(exc.status, Failed)
    return kind(exc.message)
