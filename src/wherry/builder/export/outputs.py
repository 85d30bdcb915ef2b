"""One output of a build, of whatever type."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from wherry.builder.export import settings
from wherry.builder.export.archive import export_archive
from wherry.builder.export.image import export_image
from wherry.builder.export.local import export_local, export_tar
from wherry.builder.export.work import Work
from wherry.builder.options import Export
from wherry.builder.records.record import Produced
from wherry.errors import NotSupported

TYPES = ("image", "moby", "docker", "oci", "local", "tar", "cacheonly")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    response: dict[str, str] = field(default_factory=dict)  # BuildKit's keys
    results: Sequence[Produced] = ()  # what is in the image store now, by platform


def check(exports: Sequence[Export]) -> None:
    """Before the build: raises what an export of these would raise for its attributes alone."""
    for each in exports:
        if each.type not in TYPES:
            raise NotSupported(f"exporter {each.type[:50]!r} could not be found: want one of {', '.join(TYPES)}")
        settings.parse(each.attributes)


async def export(work: Work, wanted: Export, number: int) -> Outcome:
    """Raises InvalidParameter, NotSupported, and what the client, a registry or the disk says."""
    match wanted.type:
        case "image" | "moby":
            return await _image(work, settings.parse(wanted.attributes))
        case "docker" | "oci":
            docker = wanted.type == "docker"
            parsed = settings.parse(wanted.attributes, docker_types=docker)
            return Outcome(response=await export_archive(work, parsed, number, docker=docker))
        case "local":
            return Outcome(response=await export_local(work, wanted.attributes, number))
        case "tar":
            return Outcome(response=await export_tar(work, wanted.attributes, number))
        case "cacheonly":
            return Outcome()
        case other:
            raise NotSupported(f"exporter {other[:50]!r} could not be found: want one of {', '.join(TYPES)}")


async def _image(work: Work, parsed: settings.Settings) -> Outcome:
    found = await export_image(work, parsed)
    results = [
        Produced(
            platform=str(variant.platform),
            digest=image.manifest.digest,
            image_id=image.id,
            names=[str(name) for name in found.names],
            attestations=[str(digest) for digest in statements],
        )
        for variant, image, statements in zip(work.variants, found.images, found.statements, strict=True)
    ]
    return Outcome(response=dict(found.response), results=results)
