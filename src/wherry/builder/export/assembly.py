"""An image put together: blobs and documents of all its platforms, in the content store under the work's lease."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from wherry.aio import settle
from wherry.builder.export.attest import UNKNOWN, Attached, annotations_of, attest, refer, subjects_of
from wherry.builder.export.documents import ImageDocuments, entry, make_config, make_image, make_index, moment
from wherry.builder.export.seal import Form, seal
from wherry.builder.export.settings import Settings
from wherry.builder.export.work import Telling, Variant, Work
from wherry.digest import Digest
from wherry.errors import InvalidParameter
from wherry.images.record import Image, ImageID, Layer
from wherry.images.transfer.plan import Document
from wherry.spec.image import Descriptor, Manifest, Raw, decode_config, decode_manifest

CREATED = "org.opencontainers.image.created"  # annotation


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """One platform of it."""

    variant: Variant
    documents: ImageDocuments
    layers: Sequence[Layer]
    attestation: Attached | None = None
    referrers: Sequence[Attached] = ()

    @property
    def image(self) -> Image:
        return Image(
            id=ImageID(self.documents.config.digest),
            config=decode_config(self.documents.config.data),
            manifests=(self.documents.manifest.descriptor,),
            layers=tuple(self.layers),
            blobs=self.documents.blobs,
            parent=self.variant.parent,
        )

    @property
    def attached(self) -> list[Attached]:
        return [*([self.attestation] if self.attestation else []), *self.referrers]

    @property
    def statements(self) -> list[Digest]:
        return list(self.attestation.statements) if self.attestation else []


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    made: Sequence[Made]
    top: Raw  # an index, or the manifest of the only platform
    epoch: int

    @property
    def created(self) -> str:
        return moment(self.epoch)

    @property
    def attached(self) -> frozenset[Digest]:
        """What it needs besides the images. Referrers need it, and are at registries alone."""
        return frozenset({self.top.digest}.union(*(made.attestation.digests for made in self.made if made.attestation)))

    def blobs(self) -> list[Digest]:
        """All of it but the referrers: documents first, then layers, base first."""
        documents: list[Digest] = [self.top.digest]
        layers: list[Digest] = []
        for each in self.made:
            documents += [each.documents.manifest.digest, each.documents.config.digest]
            layers += [layer.digest for layer in each.documents.layers]
        for each in self.made:
            if each.attestation:
                documents += [each.attestation.manifest.digest, *each.attestation.blobs]
        return list(dict.fromkeys([*documents, *layers]))

    def document(self) -> Document:
        """As a push wants it."""
        referrers = [_about(each) for made in self.made for each in made.referrers]
        if not self._is_index:
            return replace(_document(self.made[0]), referrers=referrers)
        attestations = [_about(made.attestation) for made in self.made if made.attestation]
        return Document(raw=self.top, children=[*map(_document, self.made), *attestations], referrers=referrers)

    @property
    def _is_index(self) -> bool:
        return self.top.digest not in {each.documents.manifest.digest for each in self.made}

    def response(self, names: Sequence[str]) -> dict[str, str]:
        """What a client is told, by BuildKit's keys."""
        annotations: dict[str, str] = {CREATED: self.created}
        found: dict[str, str] = {"containerimage.digest": self.top.digest}
        if len(self.made) == 1:
            found["containerimage.config.digest"] = annotations["config.digest"] = self.made[0].documents.config.digest
        if names:
            found["image.name"] = ",".join(names)
        descriptor = msgspec.structs.replace(self.top.descriptor, annotations=annotations)
        found["containerimage.descriptor"] = base64.b64encode(msgspec.json.encode(descriptor)).decode()
        return found


def _document(made: Made) -> Document:
    raw = made.documents.manifest
    return Document(raw=raw, manifest=_manifest(raw), image=made.image)


def _about(attached: Attached) -> Document:
    return Document(raw=attached.manifest, manifest=_manifest(attached.manifest))


def _manifest(raw: Raw) -> Manifest:
    found = decode_manifest(raw.data, raw.media_type)
    assert isinstance(found, Manifest)  # we have just written it
    return found


async def assemble(work: Work, settings: Settings, telling: Telling, *, attested: bool = True) -> Assembly:
    """Layers, then documents. With attestations (if `attested`) there is an index even of a single platform."""
    form = Form(kind=settings.compression, level=settings.level, force=settings.force)
    images = work.deps.images
    layers: list[list[Layer]] = []
    with telling.step("exporting layers"):
        for variant in work.variants:
            tree = await work.bring(variant.tree)
            await work.lease.protect(chains=[layer.chain for layer in tree.layers])
            layers.append(await seal(images, work.lease, tree, form))
    made = [
        _make(work, settings, variant, found, attested=attested)
        for variant, found in zip(work.variants, layers, strict=True)
    ]
    indexed = work.indexed or len(made) > 1 or any(each.attestation for each in made)
    if not indexed and (settings.index or settings.index_descriptor):
        raise InvalidParameter("index annotations not supported for single platform export")
    top = _index(settings, made) if indexed else made[0].documents.manifest
    assembly = Assembly(made=made, top=top, epoch=work.epoch)
    await _store(work, assembly)
    for each in made:
        telling.done(f"exporting manifest {each.documents.manifest.digest}")
        telling.done(f"exporting config {each.documents.config.digest}")
        if each.attestation:
            telling.done(f"exporting attestation manifest {each.attestation.manifest.digest}")
    if indexed:
        telling.done(f"exporting manifest list {top.digest}")
    return assembly


def _make(work: Work, settings: Settings, variant: Variant, layers: Sequence[Layer], *, attested: bool) -> Made:
    statements = variant.statements if attested else ()
    docker = settings.docker_types and not statements  # Docker's indexes know nothing of attestations
    documents = make_image(
        make_config(variant, epoch=work.epoch),
        layers,
        docker=docker,
        annotations=settings.annotated(variant.platform).manifest,
    )
    about = documents.manifest
    subjects = subjects_of(settings.names, about.digest, variant.platform)
    return Made(
        variant=variant,
        documents=documents,
        layers=layers,
        attestation=attest(statements, subjects, about, artifact=settings.artifacts) if statements else None,
        referrers=[refer(statement, subjects, about) for statement in statements if statement.referrer],
    )


def _index(settings: Settings, made: Sequence[Made]) -> Raw:
    """Images in the order of their platforms, then their attestations in the same."""
    entries: list[Descriptor] = []
    for each in made:
        platform = each.variant.platform
        entries.append(entry(each.documents.manifest, platform, settings.annotated(platform).descriptor))
    for each in made:
        if each.attestation:
            entries.append(entry(each.attestation.manifest, UNKNOWN, annotations_of(each.documents.manifest)))
    docker = settings.docker_types and not any(each.attestation for each in made)
    return make_index(entries, docker=docker, annotations=settings.index)


async def _store(work: Work, assembly: Assembly) -> None:
    """Documents into the content store, where the lease keeps them."""
    data: dict[Digest, bytes] = {assembly.top.digest: assembly.top.data}
    for each in assembly.made:
        for raw in (each.documents.config, each.documents.manifest):
            data[raw.digest] = raw.data
        for attached in each.attached:
            data |= {attached.manifest.digest: attached.manifest.data, **attached.blobs}
    await work.lease.protect(digests=data)
    for blob in data.values():
        await settle(work.deps.content.write, blob)
