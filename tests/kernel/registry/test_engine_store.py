"""The engine's own registry: pushed things are images at once, images can be pulled, nothing is lost or left over."""

import json
from typing import Any

import pytest

from imagekit.making import Made, digest, index, make
from imagekit.world import NOTHING
from registrykit.hosted import DOMAIN, Hosted
from wherry.filters import Filters
from wherry.images.garbage import collect_all
from wherry.images.upkeep.prune import prune
from wherry.images.upkeep.remove import ContainerUse, remove
from wherry.images.upkeep.tag import tag
from wherry.reference import parse
from wherry.registry.upkeep.collect import forget
from wherry.spec import image as spec

ONE = make([{"a": b"1"}, {"b": b"2"}])
OTHER = make([{"a": b"1"}, {"c": b"3"}], architecture="s390x")
PLATFORMS = [
    (ONE, {"os": "linux", "architecture": "amd64"}),
    (OTHER, {"os": "linux", "architecture": "s390x"}),
]


def artifact(payload: bytes, *, subject: Made | None = None, layer: str = "application/x-note") -> Made:
    config = b"{}"
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": spec.OCI_MANIFEST,
        "artifactType": "application/x-note",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest(config), "size": 2},
        "layers": [{"mediaType": layer, "digest": digest(payload), "size": len(payload)}],
    }
    if subject is not None:
        document["subject"] = {
            "mediaType": subject.media_type,
            "digest": subject.digest,
            "size": len(subject.manifest),
        }
    manifest = json.dumps(document).encode()
    blobs = {digest(config): config, digest(payload): payload}
    return Made(manifest, spec.OCI_MANIFEST, config, [payload], [], blobs)


NOTE = artifact(b"a note")


def blobs_of(*made: Made) -> set[str]:
    return {name for each in made for name in (*each.blobs, each.digest)}


async def test_what_is_pushed_is_an_image_at_once(hosted: Hosted):
    await hosted.push.image("a/b", ONE, tag="1")
    image = hosted.world.deps.store.get(f"{DOMAIN}/a/b:1")
    assert image.id == ONE.id
    assert all(map(hosted.world.snapshots.has, (layer.chain for layer in image.layers)))
    assert image.repo_digests == (f"{DOMAIN}/a/b@{ONE.digest}",)
    assert (await hosted.push.get("a/b/manifests/1"))[1] == ONE.manifest
    assert json.loads((await hosted.push.get("_catalog"))[1]) == {"repositories": ["a/b"]}
    assert json.loads((await hosted.push.get("a/b/tags/list"))[1]) == {"name": "a/b", "tags": ["1"]}


async def test_there_is_no_second_copy_and_nothing_else_holds_it(hosted: Hosted):
    await hosted.push.image("a/b", ONE, tag="1")
    assert set(hosted.world.deps.content.walk()) == blobs_of(ONE)
    assert not hosted.world.state.rows("registry_blobs")
    assert not hosted.world.state.rows("registry_manifests")
    assert await hosted.push.delete(f"a/b/manifests/{ONE.digest}") == 202
    assert hosted.world.held() == NOTHING


async def test_an_image_from_elsewhere_can_be_pulled_by_its_own_name(hosted: Hosted):
    await hosted.push.image("a/b", ONE, tag="1")
    for name in ("debian:12", "quay.example/x/y:2"):
        reference = parse(name)
        await tag(hosted.world.deps, f"{DOMAIN}/a/b:1", repository=reference.name, tag=reference.tag)
    for path in (
        "debian/manifests/12",
        "library/debian/manifests/12",
        "docker.io/library/debian/manifests/12",
        "quay.example/x/y/manifests/2",
    ):
        assert await hosted.push.get(path) == (200, ONE.manifest), path
    assert await hosted.push.get(f"debian/blobs/{digest(ONE.config)}") == (200, ONE.config)
    assert (await hosted.push.get("debian/manifests/13"))[0] == 404
    assert (await hosted.push.get("nothing/manifests/13"))[0] == 404


async def test_a_blob_is_not_reached_through_another_repository(hosted: Hosted):
    await hosted.push.image("secret", ONE, tag="1")
    await hosted.push.image("open", OTHER, tag="1")
    own = digest(ONE.config)
    assert (await hosted.push.get(f"secret/blobs/{own}"))[0] == 200
    assert (await hosted.push.get(f"open/blobs/{own}"))[0] == 404
    assert (await hosted.push.get(f"open/manifests/{ONE.digest}"))[0] == 404


async def test_an_index_brings_its_platforms_side_by_side(hosted: Hosted):
    attestation = artifact(b"{}sbom", layer="application/vnd.in-toto+json")
    document, media_type = index([*PLATFORMS, (attestation, {"os": "unknown", "architecture": "unknown"})])
    for made in (ONE, OTHER, attestation):
        await hosted.push.image("multi", made)
    status, text = await hosted.push.manifest("multi", "latest", document, media_type)
    assert status == 201, text
    store = hosted.world.deps.store
    assert {image.id for image in store.platforms(f"{DOMAIN}/multi")} == {ONE.id, OTHER.id}
    assert store.get(f"{DOMAIN}/multi", platform="linux/s390x").id == OTHER.id
    await collect_all(hosted.world.deps)
    assert await hosted.push.get("multi/manifests/latest") == (200, document)
    assert await hosted.push.get(f"multi/manifests/{attestation.digest}") == (200, attestation.manifest)
    for name, data in {**ONE.blobs, **OTHER.blobs, **attestation.blobs}.items():
        assert await hosted.push.get(f"multi/blobs/{name}") == (200, data)


async def test_an_artifact_is_kept_and_is_no_image(hosted: Hosted):
    await hosted.push.image("a/b", ONE, tag="1")
    await hosted.push.image("a/b", NOTE, tag="note")
    signature = artifact(b"signed", subject=ONE)
    await hosted.push.image("a/b", signature)
    await collect_all(hosted.world.deps)
    assert len(hosted.world.deps.store.all()) == 1
    assert (await hosted.push.get("a/b/manifests/note"))[1] == NOTE.manifest
    referrers = json.loads((await hosted.push.get(f"a/b/referrers/{ONE.digest}"))[1])
    assert [each["digest"] for each in referrers["manifests"]] == [signature.digest]
    assert json.loads((await hosted.push.get("a/b/tags/list"))[1])["tags"] == ["1", "note"]
    for made in (NOTE, signature):
        assert await hosted.push.delete(f"a/b/manifests/{made.digest}") == 202
    assert (await hosted.push.get("a/b/manifests/note"))[0] == 404


async def test_a_tag_means_one_thing_whichever_kind_was_pushed_last(hosted: Hosted):
    await hosted.push.image("x", ONE, tag="t")
    await hosted.push.image("x", NOTE, tag="t")
    assert (await hosted.push.get("x/manifests/t"))[1] == NOTE.manifest
    assert hosted.world.deps.store.target(parse(f"{DOMAIN}/x:t")) is None
    await hosted.push.image("x", ONE, tag="t")
    assert (await hosted.push.get("x/manifests/t"))[1] == ONE.manifest
    assert not hosted.world.state.rows("registry_tags")


async def test_a_blob_no_manifest_names_yet_is_no_garbage(hosted: Hosted):
    data = ONE.layers[0]
    assert await hosted.push.blob("x", data) == 201
    await collect_all(hosted.world.deps)
    assert await hosted.push.get(f"x/blobs/{digest(data)}") == (200, data)
    await forget(hosted.rest, grace=-1)
    await collect_all(hosted.world.deps)
    assert hosted.world.held() == NOTHING


async def test_a_prune_amid_the_push_of_an_index_takes_nothing_from_it(hosted: Hosted):
    document, media_type = index(PLATFORMS)
    for made in (ONE, OTHER):
        await hosted.push.image("multi", made)
        await prune(hosted.world.deps, Filters({}), in_use={})
    assert (await hosted.push.manifest("multi", "latest", document, media_type))[0] == 201
    store = hosted.world.deps.store
    assert {image.id for image in store.platforms(f"{DOMAIN}/multi")} == {ONE.id, OTHER.id}
    await remove(hosted.world.deps, f"{DOMAIN}/multi", in_use={})
    await prune(hosted.world.deps, Filters({}), in_use={})
    assert hosted.world.held() == NOTHING


async def test_what_a_pusher_was_told_to_be_there_stays_when_its_image_goes(hosted: Hosted):
    await hosted.push.image("x", ONE, tag="old")
    for blob in (ONE.config, *ONE.layers):
        async with hosted.push.session.head(f"{hosted.push.base}/v2/x/blobs/{digest(blob)}") as answer:
            assert answer.status == 200
    await remove(hosted.world.deps, f"{DOMAIN}/x:old", in_use={})
    await collect_all(hosted.world.deps)
    assert (await hosted.push.manifest("x", "new", ONE.manifest, ONE.media_type))[0] == 201
    assert hosted.world.deps.store.get(f"{DOMAIN}/x:new").id == ONE.id
    await remove(hosted.world.deps, f"{DOMAIN}/x:new", in_use={})
    assert hosted.world.held() == NOTHING


async def test_removing_an_image_in_the_engine_takes_it_from_the_registry(hosted: Hosted):
    await hosted.push.image("x", ONE, tag="t")
    await remove(hosted.world.deps, f"{DOMAIN}/x:t", in_use={})
    assert (await hosted.push.get("x/manifests/t"))[0] == 404
    assert (await hosted.push.get(f"x/blobs/{digest(ONE.config)}"))[0] == 404
    assert hosted.world.held() == NOTHING


async def test_an_image_a_container_runs_loses_its_name_only(hosted: Hosted):
    await hosted.push.image("x", ONE, tag="t")
    hosted.in_use[ONE.id] = [ContainerUse(id="c" * 64, running=True)]
    assert await hosted.push.delete(f"x/manifests/{ONE.digest}") == 202
    assert (await hosted.push.get("x/manifests/t"))[0] == 404
    assert hosted.world.deps.store.get(ONE.id).repo_tags == ()


async def test_deleting_a_tag_leaves_the_manifest(hosted: Hosted):
    await hosted.push.image("x", ONE, tag="t")
    assert await hosted.push.delete("x/manifests/t") == 202
    assert (await hosted.push.get("x/manifests/t"))[0] == 404
    assert (await hosted.push.get(f"x/manifests/{ONE.digest}"))[0] == 200


async def test_a_mount_needs_no_upload(hosted: Hosted):
    await hosted.push.image("x", ONE, tag="t")
    name = digest(ONE.layers[0])
    url = f"{hosted.push.base}/v2/y/blobs/uploads/?mount={name}&from=x"
    async with hosted.push.session.post(url) as answer:
        assert answer.status == 201
    assert await hosted.push.get(f"y/blobs/{name}") == (200, ONE.layers[0])


@pytest.mark.parametrize("lacking", ["config", "layer", "child"])
async def test_an_incomplete_manifest_is_refused_and_leaves_nothing(hosted: Hosted, lacking: str):
    if lacking == "child":
        document, media_type = index(PLATFORMS)
    else:
        document, media_type = ONE.manifest, ONE.media_type
        for blob in ONE.layers if lacking == "config" else [ONE.config]:
            await hosted.push.blob("x", blob)
    status, text = await hosted.push.manifest("x", "t", document, media_type)
    assert (status, json.loads(text)["errors"][0]["code"]) == (404, "MANIFEST_BLOB_UNKNOWN")
    assert not hosted.world.deps.store.all()
    assert digest(document) not in set(hosted.world.deps.content.walk())


async def test_an_image_whose_layers_lie_is_refused(hosted: Hosted):
    liar = make([{"a": b"1"}], diff_ids=["sha256:" + "0" * 64])
    for blob in liar.blobs.values():
        await hosted.push.blob("x", blob)
    status, text = await hosted.push.manifest("x", "t", liar.manifest, liar.media_type)
    assert (status, json.loads(text)["errors"][0]["code"]) == (400, "MANIFEST_INVALID")
    assert "does not match the image's configuration" in text
    assert not hosted.world.deps.store.all()
    assert not list(hosted.world.snapshots.chains())


async def test_it_all_survives_a_restart(hosted: Hosted):
    from wherry.daemon.engine_registry import EngineStore, keep_rest
    from wherry.digest import Digest

    await hosted.push.image("x", ONE, tag="t")
    await hosted.push.image("x", NOTE, tag="note")
    hosted.world.open()
    again = EngineStore(
        hosted.world.deps, keep_rest(hosted.world.deps, hosted.world.root / "uploads"), domain=DOMAIN, in_use={}
    )
    assert [tag.name for tag in await again.tag_list("x")] == ["note", "t"]
    assert (await again.manifest("x", Digest(NOTE.digest))).data == NOTE.manifest
    assert await again.resolve("x", "t") == ONE.digest
