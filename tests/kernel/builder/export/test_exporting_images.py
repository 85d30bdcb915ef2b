"""Results become images: in the store, in registries, as archives; the same ones on every machine."""

import asyncio
import base64
import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from imagekit.trees import files
from wherry.builder.export import settings
from wherry.builder.export.image import export_image
from wherry.builder.export.outputs import check, export
from wherry.builder.export.seal import forget_lost
from wherry.builder.export.work import Statement
from wherry.builder.options import Export
from wherry.builder.trees import SCRATCH, Tree
from wherry.digest import Digest
from wherry.errors import Corrupt, InvalidParameter, NotSupported, WherryError
from wherry.images.archives.load import load
from wherry.images.garbage import collect_all
from wherry.spec.image import OCI_INDEX, OCI_LAYER_ZSTD, Descriptor, History, parse_platform

SAID = Statement(predicate_type="https://slsa.dev/provenance/v0.2", predicate={"x": 1}, name="provenance.json")


def read(bench, digest) -> dict:
    return json.loads(bench.deps.content.read(Digest(digest), limit=1 << 20))


async def test_an_image_is_stored_under_its_names(bench):
    base = await bench.files(a="1")
    tree = await bench.files(base, b="2")
    outcome = await export(bench.work(bench.variant(tree)), Export(type="moby", attributes={"name": "app,app:2"}), 0)

    store = bench.deps.images.store
    image = store.get("app:2")
    assert image is store.get("app") is store.find(outcome.results[0].image_id)
    assert files(bench.world, image) == {"a": b"1", "b": b"2"}
    assert image.config.created == "2023-11-14T22:13:20Z"
    assert [entry.created for entry in image.config.history] == ["2023-11-14T22:13:20Z"] * 2
    assert outcome.response["containerimage.config.digest"] == image.id
    assert outcome.response["containerimage.digest"] == image.manifest.digest
    assert outcome.response["image.name"] == "docker.io/library/app:latest,docker.io/library/app:2"
    descriptor = json.loads(base64.b64decode(outcome.response["containerimage.descriptor"]))
    assert descriptor["digest"] == image.manifest.digest
    assert bench.lines == [
        "exporting layers",
        f"exporting manifest {image.manifest.digest}",
        f"exporting config {image.id}",
        f"writing image {image.id}",
        "naming to docker.io/library/app:latest",
        "naming to docker.io/library/app:2",
    ]
    assert [vertex.name for vertex in bench.vertices] == ["exporting to image"]


async def test_the_same_files_are_the_same_image_on_another_machine(bench, other):
    ids = []
    for each in (bench, other):

        def change(root: Path) -> None:
            (root / "d").mkdir()
            (root / "d" / "x").write_text("x")
            os.symlink("x", root / "d" / "l")
            os.link(root / "d" / "x", root / "d" / "h")

        tree = await each.layer(await each.files(a="1", b="2"), change)
        tree = await each.layer(tree, lambda root: (root / "a").unlink())
        outcome = await export(each.work(each.variant(tree, statements=[SAID])), Export(type="image"), 0)
        ids.append(outcome.response)
    assert ids[0] == ids[1]


async def test_a_layer_is_packed_once(bench):
    tree = await bench.files(a="1")
    work = bench.work(bench.variant(tree))
    await export(work, Export(type="image", attributes={"name": "x"}), 0)
    (bench.world.snapshots.layer(tree.chain) / "a").write_text("2")  # it would be noticed
    await export(work, Export(type="image", attributes={"name": "y"}), 0)
    store = bench.deps.images.store
    assert store.get("x") is store.get("y")


async def test_a_layer_changed_on_disk_is_noticed(bench):
    tree = await bench.files(a="1")
    (bench.world.snapshots.layer(tree.chain) / "a").write_text("2")
    with pytest.raises(Corrupt, match="was changed on disk"):
        await export(bench.work(bench.variant(tree)), Export(type="image"), 0)
    assert "was changed on disk" in bench.vertices[-1].error
    assert bench.deps.images.store.all() == []


async def test_rows_of_blobs_that_are_gone_are_forgotten(bench):
    tree = await bench.files(a="1")
    await export(bench.work(bench.variant(tree)), Export(type="image", attributes={"store": "false"}), 0)
    rows = bench.world.state.rows("build_blobs")
    assert list(rows) == [tree.layers[0].diff_id]
    forget_lost(bench.deps.images)
    assert bench.world.state.rows("build_blobs") == rows
    bench.deps.content.delete(Digest(json.loads(next(iter(rows.values())))[0]["digest"]))
    forget_lost(bench.deps.images)
    assert not bench.world.state.rows("build_blobs")


async def test_several_platforms_become_one_index(bench):
    work = bench.work(
        bench.variant(await bench.files(a="1")),
        bench.variant(await bench.files(a="2"), platform=parse_platform("linux/s390x")),
    )
    outcome = await export(work, Export(type="image", attributes={"name": "x", "annotation-index.k": "v"}), 0)
    index = read(bench, outcome.response["containerimage.digest"])
    assert index["annotations"] == {"k": "v"}
    assert [entry["platform"]["architecture"] for entry in index["manifests"]][1] == "s390x"
    store = bench.deps.images.store
    assert [image.id for image in store.platforms("x")] == [result.image_id for result in outcome.results]
    assert "containerimage.config.digest" not in outcome.response


async def test_attestations_lie_in_the_index_as_buildkit_has_them(bench):
    work = bench.work(bench.variant(await bench.files(a="1"), statements=[SAID]))
    outcome = await export(work, Export(type="image", attributes={"name": "x:1"}), 0)
    index = read(bench, outcome.response["containerimage.digest"])
    image, attestation = index["manifests"]
    assert index["mediaType"] == OCI_INDEX
    assert attestation["platform"] == {"architecture": "unknown", "os": "unknown"}
    assert attestation["annotations"] == {
        "vnd.docker.reference.digest": image["digest"],
        "vnd.docker.reference.type": "attestation-manifest",
    }
    manifest = read(bench, attestation["digest"])
    (layer,) = manifest["layers"]
    assert layer["mediaType"] == "application/vnd.in-toto+json"
    assert layer["annotations"] == {"in-toto.io/predicate-type": SAID.predicate_type}
    statement = read(bench, layer["digest"])
    assert statement["predicate"] == {"x": 1}
    (subject,) = statement["subject"]
    assert subject["digest"] == {"sha256": image["digest"].removeprefix("sha256:")}
    assert subject["name"].startswith("pkg:docker/x@1?platform=linux%2F")
    assert outcome.results[0].attestations == [layer["digest"]]


@pytest.mark.parametrize("name", ["", "x"])
async def test_what_is_attached_stays_as_long_as_the_image(bench, name):
    said = Statement(predicate_type="p", predicate={}, name="p.json")
    work = bench.work(bench.variant(await bench.files(a="1"), statements=[said]))
    outcome = await export(work, Export(type="image", attributes={"name": name} if name else {}), 0)
    held = set(bench.deps.content.walk())
    bench.lease.digests.clear()
    bench.lease.chains.clear()
    await collect_all(bench.deps.images)
    assert set(bench.deps.content.walk()) == held
    await bench.deps.images.store.remove(outcome.results[0].image_id, names=["x:latest"], record=True)
    await collect_all(bench.deps.images)
    assert set(bench.deps.content.walk()) == set()


async def test_an_artifact_attestation_names_its_subject(bench):
    work = bench.work(bench.variant(await bench.files(a="1"), statements=[SAID]))
    exported = await export_image(work, settings.parse({"name": "x", "oci-artifact": "true"}))
    image, attestation = read(bench, exported.descriptor.digest)["manifests"]
    manifest = read(bench, attestation["digest"])
    assert manifest["subject"]["digest"] == image["digest"]
    assert manifest["artifactType"] == "application/vnd.docker.attestation.manifest.v1+json"


async def test_zstd_docker_types_and_levels(bench):
    work = bench.work(bench.variant(await bench.files(a="1" * 10_000)))
    zstd = await export_image(work, settings.parse({"name": "z", "compression": "zstd", "compression-level": "9"}))
    assert read(bench, zstd.descriptor.digest)["layers"][0]["mediaType"] == OCI_LAYER_ZSTD
    docker = await export_image(work, settings.parse({"name": "d", "oci-mediatypes": "false"}))
    manifest = read(bench, docker.descriptor.digest)
    assert manifest["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
    assert manifest["layers"][0]["mediaType"] == "application/vnd.docker.image.rootfs.diff.tar.gzip"
    assert {image.id for image in zstd.images} == {image.id for image in docker.images}


async def test_a_base_layer_is_compressed_anew_only_when_asked(bench):
    base = await bench.files(a="1")
    first = await export_image(bench.work(bench.variant(base)), settings.parse({"name": "base"}))
    layer = first.images[0].layers[0]
    came = replace(base.layers[0], blob=Descriptor(media_type=layer.media_type, digest=layer.digest, size=layer.size))
    tree = await bench.files(Tree((came,)), b="2")
    kept = await export_image(bench.work(bench.variant(tree)), settings.parse({"compression": "zstd"}))
    types = [each["mediaType"].rpartition("+")[2] for each in read(bench, kept.descriptor.digest)["layers"]]
    assert types == ["gzip", "zstd"]
    forced = await export_image(
        bench.work(bench.variant(tree)), settings.parse({"compression": "zstd", "force-compression": "true"})
    )
    types = [each["mediaType"].rpartition("+")[2] for each in read(bench, forced.descriptor.digest)["layers"]]
    assert types == ["zstd", "zstd"]


async def test_annotations_go_to_manifests_and_their_entries(bench):
    work = bench.work(bench.variant(await bench.files(a="1")), indexed=True)
    attributes = {
        "annotation.a": "1",
        "annotation-manifest[linux/s390x].b": "2",
        "annotation-manifest-descriptor.c": "3",
        "annotation-index.d": "4",
    }
    exported = await export_image(work, settings.parse(attributes))
    index = read(bench, exported.descriptor.digest)
    assert index["annotations"] == {"d": "4"}
    assert index["manifests"][0]["annotations"] == {"c": "3"}
    assert read(bench, index["manifests"][0]["digest"])["annotations"] == {"a": "1"}
    with pytest.raises(InvalidParameter, match="index annotations not supported"):
        await export_image(bench.work(*work.variants), settings.parse(attributes))


async def test_an_archive_can_be_loaded(bench, other):
    tree = await bench.files(await bench.files(a="1"), b="2")
    for number, kind in enumerate(("oci", "docker")):
        response = await export(
            bench.work(bench.variant(tree, statements=[SAID])), Export(type=kind, attributes={"name": kind}), number
        )

        async def chunks(data=bench.client.streams[number]):
            yield data

        await load(other.deps.images, chunks(), progress=other.world.tell)
        image = other.deps.images.store.get(kind)
        assert files(other.world, image) == {"a": b"1", "b": b"2"}
        assert response.response["containerimage.config.digest"] == image.id
        with tarfile.open(fileobj=io.BytesIO(bench.client.streams[number])) as archive:
            assert ("manifest.json" in archive.getnames()) == (kind == "docker")
    assert bench.deps.images.store.all() == []
    first = bench.client.streams[0]
    await export(bench.work(bench.variant(tree, statements=[SAID])), Export(type="oci", attributes={"name": "oci"}), 0)
    assert bench.client.streams[0] == first


async def test_an_archive_without_tar_is_blobs_for_a_layout(bench):
    work = bench.work(bench.variant(await bench.files(a="1"), statements=[SAID]))
    outcome = await export(work, Export(type="oci", attributes={"tar": "false"}), 0)
    top = outcome.response["containerimage.digest"]
    seen: set[str] = set()

    def follow(digest: str) -> None:
        seen.add(digest)
        if bench.client.blobs[digest].startswith(b'{"schemaVersion"'):
            document = json.loads(bench.client.blobs[digest])
            named = [*document.get("manifests", []), *document.get("layers", [])]
            for each in [*named, *([document["config"]] if "config" in document else [])]:
                follow(each["digest"])

    follow(top)
    assert seen == set(bench.client.blobs)


async def test_a_docker_archive_holds_one_platform(bench):
    tree = await bench.files(a="1")
    work = bench.work(bench.variant(tree), bench.variant(tree, platform=parse_platform("linux/s390x")))
    with pytest.raises(InvalidParameter, match="does not currently support exporting manifest lists"):
        await export(work, Export(type="docker"), 0)


async def test_files_go_into_a_directory(bench):
    tree = await bench.files(await bench.files(a="1"), b="2")
    await export(bench.work(bench.variant(tree, statements=[SAID])), Export(type="local"), 3)
    (number, prefix, found), (_, _, said) = bench.client.directories
    assert (number, prefix, found) == (3, "", {"a": b"1", "b": b"2"})
    assert json.loads(said["provenance.json"])["predicate"] == {"x": 1}
    assert "copying files" in bench.lines
    assert bench.deps.images.store.all() == []


async def test_files_of_several_platforms_go_into_a_directory_each(bench):
    work = bench.work(
        bench.variant(await bench.files(a="1"), platform=parse_platform("linux/amd64")),
        bench.variant(await bench.files(a="2"), platform=parse_platform("linux/arm/v7")),
    )
    await export(work, Export(type="local"), 0)
    assert [(prefix, found) for _, prefix, found in bench.client.directories] == [
        ("linux_amd64", {"a": b"1"}),
        ("linux_arm_v7", {"a": b"2"}),
    ]
    await export(work, Export(type="tar"), 1)
    with tarfile.open(fileobj=io.BytesIO(bench.client.streams[1])) as archive:
        assert archive.getnames() == ["linux_amd64", "linux_amd64/a", "linux_arm_v7", "linux_arm_v7/a"]
        assert archive.extractfile("linux_arm_v7/a").read() == b"2"


async def test_an_empty_result_can_be_exported(bench):
    work = bench.work(bench.variant(SCRATCH))
    outcome = await export(work, Export(type="image"), 0)
    assert bench.deps.images.store.find(outcome.results[0].image_id).layers == ()
    await export(work, Export(type="tar"), 0)
    with tarfile.open(fileobj=io.BytesIO(bench.client.streams[0])) as archive:
        assert archive.getnames() == []


async def test_history_has_an_entry_for_each_layer(bench):
    tree = await bench.files(await bench.files(a="1"), b="2")
    history = [
        History(created="2020-01-01T00:00:00Z", created_by="base"),
        History(created_by="ENV x", empty_layer=True),
    ]
    outcome = await export(bench.work(bench.variant(tree, history=history)), Export(type="image"), 0)
    config = bench.deps.images.store.find(outcome.results[0].image_id).config
    assert [(entry.created_by, entry.empty_layer) for entry in config.history] == [
        ("base", False),
        ("ENV x", True),
        ("RUN x", False),
    ]
    assert config.history[0].created == "2020-01-01T00:00:00Z"


async def test_an_inline_cache_lies_in_the_config(bench):
    work = bench.work(bench.variant(await bench.files(a="1"), cache=b'{"records":[]}'))
    outcome = await export(work, Export(type="image"), 0)
    config = read(bench, outcome.results[0].image_id)
    assert base64.b64decode(config["wherry.buildcache.v1"]) == b'{"records":[]}'


@pytest.mark.parametrize(
    ("wanted", "error", "said"),
    [
        (Export(type="nonsense"), NotSupported, "exporter 'nonsense' could not be found"),
        (Export(type="image", attributes={"push": "maybe"}), InvalidParameter, "non-bool value 'maybe'"),
        (Export(type="image", attributes={"name": "UPPER"}), InvalidParameter, "must be lowercase"),
        (Export(type="image", attributes={"compression": "estargz"}), NotSupported, "estargz"),
        (Export(type="image", attributes={"compression": "lz4"}), InvalidParameter, "lz4"),
        (Export(type="image", attributes={"compression-level": "99"}), InvalidParameter, "99"),
        (Export(type="image", attributes={"registry.insecure": "true"}), NotSupported, "insecure-registries"),
        (Export(type="image", attributes={"push-by-digest": "true"}), InvalidParameter, "needs a name"),
        (Export(type="image", attributes={"annotation-index[linux/arm64].x": "y"}), InvalidParameter, "no platform"),
    ],
)
def test_a_wish_that_cannot_be_fulfilled_is_refused_before_the_build(wanted, error, said):
    with pytest.raises(error, match=said):
        check([wanted])


async def test_a_cancelled_export_leaves_no_blob_half_made(bench):
    tree = await bench.layer(SCRATCH, lambda root: (root / "big").write_bytes(os.urandom(1 << 20) * 48))
    before = bench.world.held()
    work = asyncio.ensure_future(export(bench.work(bench.variant(tree)), Export(type="image"), 0))
    while bench.world.held()["ingests"] == set() and not work.done():  # noqa: ASYNC110 - a thread makes it
        await asyncio.sleep(0)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert bench.world.held() == before
    assert bench.vertices[-1].error == "context canceled"


async def test_what_a_failed_export_made_is_garbage(bench):
    """The registry is not there: the image is stored, as it was asked for, and goes as any other."""
    tree = await bench.files(a="1")
    attributes = {"name": "127.0.0.1:1/x", "push": "true", "store": "false"}
    with pytest.raises(WherryError):
        await export(bench.work(bench.variant(tree, statements=[SAID])), Export(type="image", attributes=attributes), 0)
    bench.lease.digests.clear()
    bench.lease.chains.clear()
    await collect_all(bench.deps.images)
    held = bench.world.held()
    assert held["blobs"] == held["layers"] == held["images"] == set()
