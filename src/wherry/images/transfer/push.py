"""Push: an image, or an index with its platforms, to a registry.

    what the tag names (plan.py) -> blobs that are not there yet, some at a time -> manifests, an index last

A blob is looked for in the repository first, then mounted from another one of the registry that is known to have it,
then sent (distribution/upload.py). Of an index some platforms may be held neither here nor there: then the image that
its name means here is pushed instead, as Docker does.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from wherry.aio import acquire, settle
from wherry.digest import Digest, is_digest
from wherry.distribution.errors import Refused
from wherry.distribution.referrers import list_referrers
from wherry.distribution.repository import Repository, open_repository
from wherry.distribution.upload import Blob, Outcome, Reports, has_manifest, put_manifest, upload
from wherry.errors import Failed, InvalidParameter, NotFound, WherryError, first_of
from wherry.images.deps import Deps
from wherry.images.garbage import leased
from wherry.images.leases import Lease
from wherry.images.making.convert import parse_compression, seen_through
from wherry.images.progress import Bar, Progress
from wherry.images.record import Image, Target
from wherry.images.transfer.plan import Document, Planner, Screen, Wish, is_foreign
from wherry.reference import Reference, parse
from wherry.spec.distribution import ANONYMOUS, Auth
from wherry.spec.image import Descriptor, Platform, parse_platform

CHUNK = 1 << 20  # bytes read and sent at a time

Sleep = Callable[[float], Awaitable[None]]

_NO_PASSWORD = "no basic auth credentials"


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """What all tags of one push have in common."""

    deps: Deps
    repository: Repository
    progress: Progress
    sleep: Sleep

    def reports(self, blob: Descriptor | None = None, bar: Bar | None = None) -> Reports:
        """For an upload that is shown in `bar`, or not at all."""

        def sent(current: int) -> None:
            if bar is not None and blob is not None:
                bar.show("Pushing", current, blob.size)

        def pausing(left: int) -> None:
            if bar is not None:
                bar.say(f"Retrying in {left} second{'s' if left != 1 else ''}")

        return Reports(sent=sent, pausing=pausing, sleep=self.sleep)


async def push(
    deps: Deps,
    name: str,
    *,
    tag: str = "",
    platform: str | Platform | None = None,
    compression: str = "",
    auth: Auth = ANONYMOUS,
    progress: Progress,
    sleep: Sleep = asyncio.sleep,
) -> None:
    """Push `name:tag`, or without a tag all tags of the repository `name`.

    Raises InvalidParameter for what can never be pushed; NotFound and what the registry said come after the first call
    of `progress`, as in Docker.
    """
    named = parse(name)
    if named.digest is not None or is_digest(tag):
        raise InvalidParameter("cannot push a digest reference")
    named = named.with_tag(tag) if tag else named
    wanted = platform if isinstance(platform, Platform) else parse_platform(platform) if platform else None
    kind = parse_compression(compression) if compression else None
    progress({"status": f"The push refers to repository [{named.name}]"})
    references = _references(deps, named)
    try:
        async with open_repository(deps.registry, named, auth, push=True) as repository:
            errand = Errand(deps=deps, repository=repository, progress=progress, sleep=sleep)
            for reference in references:
                await _push_tag(errand, Wish(reference=reference, platform=wanted, compression=kind))
    except Refused as exc:
        raise _translate(exc) from exc


async def push_document(
    deps: Deps,
    document: Document,
    reference: Reference,
    *,
    auth: Auth = ANONYMOUS,
    progress: Progress,
    sleep: Sleep = asyncio.sleep,
) -> None:
    """Push what was just made, under the tag of `reference`, or by its digest alone when that has none.

    All of it is held under a lease of the caller's; it need not be in the store. Raises what the registry said.
    """
    try:
        async with open_repository(deps.registry, reference, auth, push=True) as repository:
            errand = Errand(deps=deps, repository=repository, progress=progress, sleep=sleep)
            await _send(errand, document, reference, Screen(progress))
            for subject, entries in _referrers(document).items():
                await list_referrers(repository, subject, entries, errand.reports())
    except Refused as exc:
        raise _translate(exc) from exc
    await _record(deps, document, reference)


def _referrers(document: Document) -> dict[Digest, list[Descriptor]]:
    """Subject -> the manifests that were attached to it."""
    found: dict[Digest, list[Descriptor]] = {}
    for each in document.walk():
        if each.manifest is not None and each.manifest.subject is not None:
            entry = msgspec.structs.replace(
                each.raw.descriptor,
                artifact_type=each.manifest.artifact_type or each.manifest.config.media_type,
                annotations=each.manifest.annotations,
            )
            found.setdefault(each.manifest.subject.digest, []).append(entry)
    return found


def _references(deps: Deps, named: Reference) -> list[Reference]:
    """The tag that was named, or all of the repository. Raises NotFound in Docker's words."""
    beginning = f"{named.familiar_name}:"
    found = [parse(target.name) for target in deps.store.targets() if target.name.startswith(beginning)]
    known = [reference for reference in found if reference.name == named.name]  # `localhost:5000/x` begins alike, too
    if not known:
        raise NotFound(f"An image does not exist locally with the tag: {named.familiar_name}")
    if named.tag is None:
        return sorted(known, key=str)
    if named not in known:
        raise NotFound(f"tag does not exist: {named.familiar}")
    return [named]


def _translate(error: Refused) -> WherryError:
    """In Docker's words: of a missing password it does not say at which address it was missed."""
    return Failed(_NO_PASSWORD) if error.message.endswith(f": {_NO_PASSWORD}") else error


async def _push_tag(errand: Errand, wish: Wish) -> None:
    deps, reference, progress = errand.deps, wish.reference, errand.progress
    async with leased(deps, f"push {reference}") as lease:
        target, images = await _hold(deps, lease, reference)
        screen = Screen(progress)
        planner = Planner(deps, lease, target, images, wish, screen)
        document = await planner.plan()
        note: dict[str, object] | None = None
        if document.missing and not await _are_there(errand, document.missing):
            document = await planner.instead()
            note = {
                "manifestPushedInsteadOfIndex": True,
                "originalIndex": target.descriptor,
                "selectedManifest": document.raw.descriptor,
            }
        await _send(errand, document, reference, screen)
        await _record(deps, document, reference)
    raw = document.raw
    progress({"status": f"{reference.tag}: digest: {raw.digest} size: {len(raw.data)}"})
    progress({"progressDetail": {}, "aux": {"Tag": reference.tag, "Digest": raw.digest, "Size": len(raw.data)}})
    if note is not None:
        progress({"progressDetail": {}, "aux": note})
    image = deps.store.find(target.default)
    deps.announce("push", image, actor=reference.familiar, name=reference.familiar_name)


async def _hold(deps: Deps, lease: Lease, reference: Reference) -> tuple[Target, list[Image]]:
    """What `reference` stands for, which stays until the lease ends. Raises NotFound."""
    while (target := deps.store.target(reference)) is not None:
        images = [image for image in map(deps.store.find, target.images) if image is not None]
        await lease.protect(
            digests=[target.descriptor.digest, *target.blobs, *(blob for image in images for blob in image.blobs)],
            chains=[layer.chain for image in images for layer in image.layers],
        )
        if deps.store.target(reference) == target:  # else it changed in the moment before
            return target, images
    raise NotFound(f"tag does not exist: {reference.familiar}")


async def _are_there(errand: Errand, lacking: Sequence[Descriptor]) -> bool:
    """Whether the repository has the manifests that are not held here."""
    for descriptor in lacking:
        if not await has_manifest(errand.repository, descriptor, errand.reports()):
            return False
    return True


async def _record(deps: Deps, document: Document, reference: Reference) -> None:
    """The repository's digest is a name of the images from now on; of those removed meanwhile it is not."""
    kept = [*document.children, document]
    pairs = [(each.image, each.raw) for each in kept if each.image is not None]
    images = [seen_through(image, raw) for image, raw in pairs if deps.store.find(image.id) is not None]
    if not images:
        return
    content = deps.content
    digests = {digest for each in kept for digest in (each.raw.digest, *(b.digest for b in each.blobs))}
    held = await settle(lambda: [digest for digest in digests if content.has(digest)])
    await deps.store.put_all(
        images,
        references=[reference.with_digest(document.raw.digest)],
        target=document.raw.descriptor,
        blobs=held,
    )


# --- sending ----------------------------------------------------------------------------------------------------------


async def _send(errand: Errand, document: Document, reference: Reference, screen: Screen) -> None:
    """Blobs, then manifests from the leaves up; the last one under the tag."""
    work = _Sending(errand, known_places(errand.deps, errand.repository), reference)
    try:
        async with asyncio.TaskGroup() as group:
            work.start(group, document, screen)
    except BaseExceptionGroup as errors:
        raise first_of(errors) from errors
    for each in document.walk():
        name = reference.tag or each.raw.digest if each is document else each.raw.digest
        await put_manifest(errand.repository, each.raw, name, errand.reports())


def known_places(deps: Deps, repository: Repository) -> dict[Digest, list[str]]:
    """Blob -> other repositories of the same registry that are known to have it."""
    found: dict[Digest, list[str]] = {}
    for target in deps.store.targets():
        if "@" not in target.name:
            continue  # only a digest says that the registry has it
        reference = parse(target.name)
        if reference.domain != repository.domain or reference.path == repository.path:
            continue
        for image in filter(None, map(deps.store.find, target.images)):
            for blob in image.blobs:
                paths = found.setdefault(blob, [])
                if reference.path not in paths:
                    paths.append(reference.path)
    return found


class _Sending:
    """The blobs of one tag on their way."""

    def __init__(self, errand: Errand, places: Mapping[Digest, Sequence[str]], reference: Reference) -> None:
        self._errand = errand
        self._places = places
        self._reference = reference
        self._foreign = errand.deps.registry.takes_foreign(reference.domain)

    def start(self, group: asyncio.TaskGroup, document: Document, screen: Screen) -> None:
        """Begin with all blobs; each is sent once, however many manifests name it."""
        blobs: dict[Digest, tuple[Descriptor, Bar | None]] = {}
        for each in document.walk():
            names = each.names()
            for blob in reversed(each.blobs):  # the top first, as Docker shows them
                if blob.digest in blobs:
                    continue
                bar = screen.prepare(names[blob.digest]) if blob.digest in names else None
                if not is_foreign(blob) or self._foreign:
                    blobs[blob.digest] = blob, bar
                elif bar is not None:
                    bar.say("Skipped foreign layer")
        for blob, bar in blobs.values():
            group.create_task(self._blob(blob, bar))

    async def _blob(self, blob: Descriptor, bar: Bar | None) -> None:
        deps, repository = self._errand.deps, self._errand.repository
        if bar is not None and deps.uploads.locked():
            bar.say("Waiting")
        key = ("push", repository.domain, repository.path, blob.digest)
        async with deps.locks(key), deps.uploads:  # another push may be bringing it
            described = Blob(
                digest=blob.digest,
                size=blob.size,
                read=lambda offset: self._read(blob.digest, offset),
                sources=self._places.get(blob.digest, ()),
            )
            outcome, source = await upload(repository, described, self._errand.reports(blob, bar))
        if bar is not None:
            said = {
                Outcome.EXISTS: "Layer already exists",
                Outcome.MOUNTED: f"Mounted from {source}",
                Outcome.PUSHED: "Pushed",
            }
            bar.say(said[outcome])

    async def _read(self, digest: Digest, offset: int) -> AsyncGenerator[bytes, None]:
        try:
            file = await acquire(self._errand.deps.content.open, digest)
        except NotFound as exc:
            raise NotFound(
                f"cannot push {self._reference.familiar}: its blob {digest} is not here any more: pull or load the "
                "image again"
            ) from exc
        with file:
            file.seek(offset)
            while data := await settle(file.read, CHUNK):
                yield data
