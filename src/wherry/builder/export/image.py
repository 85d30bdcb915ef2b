"""Type image: into the image store under its names, and to registries."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from wherry.aio import settle
from wherry.builder.export.assembly import Assembly, assemble
from wherry.builder.export.settings import Settings
from wherry.builder.export.work import Telling, Work, telling
from wherry.builder.sources.providers import login_host
from wherry.digest import Digest
from wherry.errors import InvalidParameter
from wherry.images.record import Image
from wherry.images.transfer.push import push_document
from wherry.reference import Reference
from wherry.spec.image import Descriptor


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedImage:
    descriptor: Descriptor  # of the index, or of the only manifest
    images: Sequence[Image]  # in the order of the variants
    statements: Sequence[Sequence[Digest]]  # about each
    names: Sequence[Reference]
    response: Mapping[str, str]


async def export_image(work: Work, settings: Settings) -> ExportedImage:
    """Raises what the registry says of a push; by then the image is here, if it was to be stored."""
    if settings.push and not settings.names:
        raise InvalidParameter("cannot push an image without a name: give one (-t, or name= of the output)")
    with telling(work.log, "exporting to image") as lines:
        assembly = await assemble(work, settings, lines)
        top = assembly.top.digest
        names = [] if settings.push_by_digest else list(settings.names)
        canonical = [name.with_digest(top) for name in settings.names] if settings.canonical else []
        images = [each.image for each in assembly.made]
        if settings.store:
            images = await _store(work, assembly, images, [*names, *canonical], lines)
        if settings.push:
            await _push(work, assembly, settings, lines)
    return ExportedImage(
        descriptor=assembly.top.descriptor,
        images=images,
        statements=[each.statements for each in assembly.made],
        names=names,
        response=assembly.response([str(name) for name in [*settings.names, *canonical]]),
    )


async def _store(
    work: Work, assembly: Assembly, images: Sequence[Image], names: Sequence[Reference], lines: Telling
) -> list[Image]:
    deps = work.deps.images
    if not names:  # nobody else would keep the index and the attestations
        images = [replace(image, blobs=image.blobs | assembly.attached) for image in images]
    await settle(deps.snapshots.sync)
    found = await deps.store.put_all(images, references=names, target=assembly.top.descriptor, blobs=assembly.attached)
    for image in found:
        lines.done(f"writing image {image.id}")
    for name in names:
        lines.done(f"naming to {name}")
        deps.announce("tag", found[0], actor=found[0].id, name=name.familiar)
    return found


async def _push(work: Work, assembly: Assembly, settings: Settings, lines: Telling) -> None:
    deps = work.deps.images
    document = assembly.document()
    for name in settings.names:
        target = replace(name, tag=None) if settings.push_by_digest else name
        auth = await work.client.credentials(login_host(name.domain))
        started = time.time_ns()
        lines.progress("pushing layers", 0, 0, started=started)
        await push_document(deps, document, target, auth=auth, progress=_blobs(lines))
        lines.progress("pushing layers", 0, 0, started=started, completed=True)
        lines.done(f"pushing manifest for {name}@{assembly.top.digest}")


def _blobs(lines: Telling) -> Callable[[dict[str, object]], None]:
    """Progress of an image's push becomes lines of the export, one for each layer that is sent."""
    started: dict[str, int] = {}
    sizes: dict[str, int] = {}

    def show(message: dict[str, object]) -> None:
        layer, detail = message.get("id"), message.get("progressDetail")
        if not isinstance(layer, str) or not isinstance(detail, dict):
            return
        text = f"pushing layer {layer}"
        if "current" in detail:
            begun = started.setdefault(layer, time.time_ns())
            sizes[layer] = detail.get("total", 0)
            lines.progress(text, detail["current"], sizes[layer], started=begun)
        elif layer in started and message.get("status") == "Pushed":
            lines.progress(text, sizes[layer], sizes[layer], started=started[layer], completed=True)

    return show
