"""Choose: what of the store goes into an archive, by the names and platforms that were asked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from wherry.aio import settle
from wherry.digest import Digest
from wherry.errors import NotFound
from wherry.images.archives.contents import ATTESTED, MAX_DEPTH
from wherry.images.deps import Deps
from wherry.images.record import Image, ImageID, Target
from wherry.reference import Reference, is_identifier, parse
from wherry.spec.image import MAX_DOCUMENT, Descriptor, Index, Platform, decode_manifest, rank
from wherry.storage.content import ContentStore


@dataclass(slots=True, kw_only=True)
class Chosen:
    """One entry of the archive: a manifest, or an index with those of its images that are saved."""

    descriptor: Descriptor
    images: list[Image]  # the first is what manifest.json tells of
    tags: list[Reference] = field(default_factory=list)
    attached: frozenset[Digest] = frozenset()  # held of the target besides images
    blobs: list[Digest] = field(default_factory=list)  # all of it: documents first, then layers, base first
    layers: Sequence[Descriptor] = ()  # of the first image

    @property
    def key(self) -> tuple[str, ...]:
        return (self.descriptor.digest, *(image.id for image in self.images))


def choose(deps: Deps, names: Sequence[str], platforms: Sequence[Platform]) -> list[Chosen]:
    """The entries for `names`: references, IDs, or repositories (all their tags), in an order that is always the same.

    Raises NotFound for a name that is not there, and for a platform that is not held of it.
    """
    found: dict[tuple[str, ...], Chosen] = {}
    for name in names:
        for target, image, tag in _matching(deps, name):
            each = _chosen(deps, name, target, image, platforms)
            each = found.setdefault(each.key, each)
            if tag is not None and tag not in each.tags:
                each.tags.append(tag)
    for each in found.values():
        each.tags.sort(key=str)
    return sorted(found.values(), key=lambda each: ([str(tag) for tag in each.tags], each.key))


def _matching(deps: Deps, name: str) -> Iterator[tuple[Target | None, Image, Reference | None]]:
    """A bare repository name stands for all its tags, as in Docker; a digest or an ID saves no name."""
    if is_identifier(name) or name.startswith("sha256:"):
        yield None, deps.store.get(name), None
        return
    reference = parse(name)
    if reference.tag is None and reference.digest is None:
        tagged = [
            (target, tag)
            for target in deps.store.targets()
            if (tag := parse(target.name)).digest is None and tag.name == reference.name
        ]
        if tagged:
            for target, tag in tagged:
                yield target, deps.store.get(target.name), tag
            return
    image = deps.store.get(name)  # an ID, too, as far as it is unique
    found = deps.store.target(reference)
    yield found, image, reference.tagged() if found is not None and reference.digest is None else None


def _chosen(deps: Deps, name: str, target: Target | None, image: Image, platforms: Sequence[Platform]) -> Chosen:
    held = [image]
    if target is not None:
        held = [found for image_id in target.images if (found := deps.store.find(image_id)) is not None]
    best = [_best(held, platform, name) for platform in platforms]
    images = list({image.id: image for image in best}.values()) or held
    if target is None or (platforms and len(images) == 1):  # one platform asked for is a manifest alone, as in Docker
        return Chosen(descriptor=images[0].manifest, images=images)
    return Chosen(descriptor=target.descriptor, images=images, attached=target.blobs)


def _best(held: Sequence[Image], wanted: Platform, name: str) -> Image:
    ranked = [(at, image) for image in held if (at := rank(image.config.platform, wanted)) is not None]
    if not ranked:
        there = ", ".join(str(image.config.platform) for image in held)
        raise NotFound(
            f"no suitable export target found for platform {wanted}: image with reference {name} was found but does "
            f"not provide the specified platform: it has {there}"
        )
    return min(ranked, key=lambda pair: pair[0])[1]


async def resolve(deps: Deps, chosen: Chosen) -> None:
    """Fill in `blobs` and `layers`; what is held of it must be protected already. Raises NotFound."""
    await settle(_resolve, deps, chosen)


def _resolve(deps: Deps, chosen: Chosen) -> None:
    walk = _Walk(deps.content, chosen)
    walk.visit(chosen.descriptor, 0)
    if not walk.found:  # an index that names no image by a manifest that is held: the image is saved alone
        chosen.descriptor, chosen.attached = chosen.images[0].manifest, frozenset()
        walk = _Walk(deps.content, chosen)
        walk.visit(chosen.descriptor, 0)
    chosen.images = [image for image in chosen.images if image.id in walk.found]
    chosen.layers = walk.found[chosen.images[0].id]
    chosen.blobs = list(dict.fromkeys([*walk.documents, *walk.layers]))
    for digest in chosen.blobs:
        try:
            deps.content.size(digest)
        except NotFound:
            raise NotFound(f"image {chosen.images[0].name} cannot be saved: its blob {digest} is missing") from None


class _Walk:
    """Through the documents of a target: all that is held and wanted of it."""

    def __init__(self, content: ContentStore, chosen: Chosen) -> None:
        self._content = content
        self._chosen = chosen
        self._images = {manifest.digest: image for image in chosen.images for manifest in image.manifests}
        self._seen: set[Digest] = set()
        self.documents: list[Digest] = []
        self.layers: list[Digest] = []  # base first; of one image after the other
        self.found: dict[ImageID, Sequence[Descriptor]] = {}  # the layers of the images there are

    def visit(self, entry: Descriptor, depth: int) -> None:
        """Collect what is below `entry`, as far as it is held."""
        image = self._images.get(entry.digest)
        known = image is not None or not depth or entry.digest in self._chosen.attached
        if not known or entry.digest in self._seen or depth > MAX_DEPTH:
            return
        self._seen.add(entry.digest)
        document = decode_manifest(self._content.read(entry.digest, limit=MAX_DOCUMENT), entry.media_type)
        self.documents.append(entry.digest)
        if isinstance(document, Index):
            for child in document.manifests:
                if self._is_wanted(child):
                    self.visit(child, depth + 1)
            return
        self.documents.append(document.config.digest)
        self.layers += [layer.digest for layer in document.layers]
        if image is not None:
            self.found.setdefault(image.id, document.layers)

    def _is_wanted(self, entry: Descriptor) -> bool:
        """An attestation goes with the image it is about."""
        about = (entry.annotations or {}).get(ATTESTED)
        return about is None or about in self._images
