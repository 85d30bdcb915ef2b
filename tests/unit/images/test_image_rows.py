"""Rows of several platforms: what a list, `Manifests`, and disk usage tell of them; older shapes of the documents."""

import json

import pytest

from imagekit.making import Made, digest, encode, index, make
from imagekit.world import World
from wherry.filters import NONE, Filters
from wherry.images.upkeep.tag import tag
from wherry.images.views import versions
from wherry.images.views.inspect import inspect, manifests
from wherry.images.views.listing import list_images
from wherry.images.views.manifests import ATTESTATION, REFERENCE_DIGEST, REFERENCE_TYPE
from wherry.images.views.usage import content_size, layers_size
from wherry.spec.image import OCI_INDEX, OCI_MANIFEST, host_platform

MACHINE = host_platform()
BASE = {"base": b"0"}
HOST = make([BASE, {"a": b"host"}], architecture=MACHINE.architecture, variant=MACHINE.variant)
OTHER = make([BASE, {"a": b"other"}], architecture="s390x")
ABSENT = make([{"a": b"absent"}], architecture="riscv64")
STATEMENT = b'{"predicateType":"https://slsa.dev/provenance/v0.2"}'
PROVENANCE_CONFIG = b'{"architecture":"unknown","os":"unknown"}'


def platform(made: Made) -> dict[str, str]:
    config = json.loads(made.config)
    return {"architecture": config["architecture"], "os": "linux"}


def descriptor(data: bytes, media_type: str, **fields: object) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest(data), "size": len(data), **fields}


PROVENANCE = encode(
    {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(PROVENANCE_CONFIG, "application/vnd.oci.image.config.v1+json"),
        "layers": [descriptor(STATEMENT, "application/vnd.in-toto+json")],
    }
)
ARTIFACT = encode(
    {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/x-thing",
        "config": descriptor(b"{}", "application/vnd.oci.empty.v1+json"),
        "layers": [],
    }
)


def bundle(*more: dict[str, object]) -> tuple[bytes, str]:
    """An index of three images, an attestation of the first, and `more`."""
    entries = [descriptor(made.manifest, made.media_type, platform=platform(made)) for made in (HOST, OTHER, ABSENT)]
    unknown = {"architecture": "unknown", "os": "unknown"}
    notes = {REFERENCE_TYPE: ATTESTATION, REFERENCE_DIGEST: HOST.digest}
    entries.append(descriptor(PROVENANCE, OCI_MANIFEST, platform=unknown, annotations=notes))
    return encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*entries, *more]}), OCI_INDEX


INDEX = bundle()


@pytest.fixture
async def filled(world: World) -> World:
    """`x` with two platforms of three, `alone` of one, sharing a layer."""
    for made in (HOST, OTHER):
        await world.put(made, "x", index=INDEX)
    await world.put(make([BASE, {"alone": b"1"}]), "alone")
    return world


async def rows(world: World, **options: object) -> dict[str, dict[str, object]]:
    found = await list_images(world.deps, filters=NONE, users={}, **options)  # type: ignore[arg-type]
    return {str(document["Id"]): document for document in found}


async def entries(world: World) -> list[dict[str, object]]:
    found = (await rows(world, manifests=True))[HOST.id]["Manifests"]
    assert isinstance(found, list)
    return found


# --- the list ---------------------------------------------------------------------------------------------------------


async def test_a_further_platform_is_no_row_unless_all_are_asked_for(filled: World):
    assert OTHER.id not in await rows(filled)
    everything = await rows(filled, all=True)
    assert everything[OTHER.id]["RepoTags"] == ["x:latest"]
    assert everything[OTHER.id]["Size"] == 200


async def test_a_further_platform_with_a_name_of_its_own_is_a_row_under_that_name(filled: World):
    await tag(filled.deps, OTHER.id, repository="own")
    assert (await rows(filled))[OTHER.id]["RepoTags"] == ["own:latest"]
    assert (await rows(filled))[HOST.id]["RepoTags"] == ["x:latest"]


async def test_a_row_is_as_big_as_all_its_platforms_with_shared_layers_once(filled: World):
    row = (await rows(filled, shared_size=True))[HOST.id]
    assert (row["Size"], row["SharedSize"]) == (300, 100)


async def test_layers_that_only_platforms_of_one_row_have_are_not_shared(world: World):
    for made in (HOST, OTHER):
        await world.put(made, "x", index=INDEX)
    assert (await rows(world, shared_size=True))[HOST.id]["SharedSize"] == 0


async def test_a_hidden_parent_shares_nothing_with_its_child_but_the_child_with_it(world: World):
    parent = make([BASE])
    await world.put(parent)
    await world.put(HOST, "x", parent=parent.id)
    everything = await rows(world, all=True, shared_size=True)
    assert everything[HOST.id]["SharedSize"] == 0
    assert everything[parent.id]["SharedSize"] == 100


async def test_sizes_shared_with_images_that_a_filter_hides_count(filled: World):
    (row,) = await list_images(filled.deps, filters=Filters({"reference": ("alone",)}), users={}, shared_size=True)
    assert row["SharedSize"] == 100


async def test_the_containers_of_all_platforms_are_counted(filled: World):
    (row,) = await list_images(
        filled.deps, filters=Filters({"reference": ("x",)}), users={HOST.id: ["a"], OTHER.id: ["b", "c"]}
    )
    assert row["Containers"] == 3


async def test_the_descriptor_is_the_index_of_a_name_given_to_one(filled: World):
    await tag(filled.deps, HOST.id, repository="a")  # names the manifest
    expected = {"mediaType": OCI_INDEX, "digest": digest(INDEX[0]), "size": len(INDEX[0])}
    assert (await rows(filled))[HOST.id]["Descriptor"] == expected
    assert inspect(filled.deps, "x")["Descriptor"] == expected
    assert inspect(filled.deps, "a")["Descriptor"] == descriptor(HOST.manifest, OCI_MANIFEST)


async def test_an_image_with_nothing_but_a_digest_is_dangling_and_has_a_name(world: World):
    await world.put(HOST, f"x@{HOST.digest}")
    for dangling in ("true", "false"):
        (row,) = await list_images(world.deps, filters=Filters({"dangling": (dangling,)}), users={})
        assert (row["RepoTags"], row["RepoDigests"]) == ([], [f"x@{HOST.digest}"])


async def test_a_class_in_a_reference_pattern_is_negated_as_in_go(filled: World):
    for pattern, count in (("[^x]*", 1), ("[!x]*", 1), ("[x]", 1), ("[^ax]*", 0)):
        found = await list_images(filled.deps, filters=Filters({"reference": (pattern,)}), users={})
        assert len(found) == count, pattern


# --- Manifests --------------------------------------------------------------------------------------------------------


async def test_every_entry_of_the_index_is_told_of_in_its_order(filled: World):
    found = await entries(filled)
    assert [(entry["ID"], entry["Kind"], entry["Available"]) for entry in found] == [
        (HOST.digest, "image", True),
        (OTHER.digest, "image", True),
        (ABSENT.digest, "image", False),
        (digest(PROVENANCE), "attestation", False),
    ]
    assert found[3]["AttestationData"] == {"For": HOST.digest}
    assert found[0]["Descriptor"] == descriptor(HOST.manifest, OCI_MANIFEST, platform=platform(HOST))


async def test_the_sizes_of_a_platform_are_what_is_here_of_it(filled: World):
    host, _, absent, _ = await entries(filled)
    content = len(HOST.manifest) + len(HOST.config) + sum(map(len, HOST.layers))
    assert host["Size"] == {"Content": content, "Total": content + 200}
    assert host["ImageData"] == {"Platform": platform(HOST), "Containers": [], "Size": {"Unpacked": 200}}
    assert absent["Size"] == {"Content": 0, "Total": 0}
    assert absent["ImageData"] == {"Platform": platform(ABSENT), "Containers": [], "Size": {"Unpacked": 0}}


async def test_the_row_of_a_tree_is_as_big_as_its_platforms_with_shared_blobs_once(filled: World):
    row = (await rows(filled, manifests=True))[HOST.id]
    total = sum(entry["Size"]["Total"] for entry in row["Manifests"])  # type: ignore[attr-defined]
    assert row["Size"] == total - len(HOST.layers[0]) - 100


async def test_the_containers_of_a_platform_are_named(filled: World):
    found = await manifests(filled.deps, "x", users={OTHER.id: ["b" * 64]})
    assert found[1]["ImageData"]["Containers"] == ["b" * 64]  # type: ignore[index]


async def test_an_attestation_that_is_held_is_available(filled: World):
    for blob in (PROVENANCE, PROVENANCE_CONFIG, STATEMENT):
        filled.deps.content.write(blob)
    attestation = (await entries(filled))[3]
    assert attestation["Available"] is True
    size = len(PROVENANCE) + len(PROVENANCE_CONFIG) + len(STATEMENT)
    assert attestation["Size"] == {"Content": size, "Total": size}


async def test_artifacts_and_strange_entries_are_unknown(world: World):
    unknown = {"architecture": "unknown", "os": "unknown"}
    top = bundle(
        descriptor(ARTIFACT, OCI_MANIFEST),
        descriptor(b"a", OCI_MANIFEST, artifactType="application/x-thing"),
        descriptor(b"b", OCI_MANIFEST, platform=unknown),
        descriptor(b"c", OCI_INDEX),
    )
    world.deps.content.write(ARTIFACT)
    await world.put(HOST, "x", index=top)
    assert [entry["Kind"] for entry in (await entries(world))[4:]] == ["unknown"] * 4


async def test_indexes_within_an_index_are_opened(world: World):
    made = make([{"deep": b"1"}], architecture="arm")
    inner = index([(made, platform(made))])
    world.deps.content.write(inner[0])
    await world.put(HOST, "x", index=bundle(descriptor(inner[0], inner[1])))
    assert [entry["ID"] for entry in await entries(world)][-1] == made.digest


async def test_a_damaged_index_does_not_stop_the_list(world: World):
    await world.put(HOST, "x", index=INDEX)
    path = world.root / "blobs" / "sha256" / digest(INDEX[0])[7:]
    path.chmod(0o600)
    path.write_bytes(b"{}")
    assert [(entry["ID"], entry["Available"]) for entry in await entries(world)] == [(HOST.digest, True)]


async def test_an_image_of_one_manifest_has_one_entry_with_the_platform_of_its_config(filled: World):
    made = make([{"z": b"1"}], architecture="arm", variant="v7")
    await filled.put(made, "arm")
    (entry,) = await manifests(filled.deps, "arm", users={})
    assert entry["ID"] == made.digest
    assert entry["ImageData"]["Platform"] == {"architecture": "arm", "os": "linux", "variant": "v7"}  # type: ignore[index]


async def test_inspect_by_platform_shows_that_image_under_the_names_of_the_row(filled: World):
    document = inspect(filled.deps, "x", platform="linux/s390x")
    assert (document["Id"], document["Architecture"], document["RepoTags"]) == (OTHER.id, "s390x", ["x:latest"])
    assert document["Size"] == 200


# --- disk usage -------------------------------------------------------------------------------------------------------


async def test_layers_and_blobs_on_disk_count_once(filled: World):
    assert await layers_size(filled.deps) == 400
    held = {path.name: path.stat().st_size for path in (filled.root / "blobs" / "sha256").iterdir()}
    assert await content_size(filled.deps) == sum(held.values())


# --- older API versions -----------------------------------------------------------------------------------------------


async def test_a_list_entry_has_the_shape_its_version_asks(world: World):
    await world.put(HOST)
    (document,) = await list_images(world.deps, filters=NONE, users={HOST.id: ["a"]})
    newest = versions.summary(document, (1, 51))
    assert (newest["Containers"], newest["RepoTags"], newest["Descriptor"]["digest"]) == (1, [], HOST.digest)  # type: ignore[index]
    assert "VirtualSize" not in newest
    assert versions.summary(document, (1, 50))["Containers"] == -1
    assert "Descriptor" in versions.summary(document, (1, 48))
    assert "Descriptor" not in versions.summary(document, (1, 47))
    old = versions.summary(document, (1, 42))
    assert (old["RepoTags"], old["RepoDigests"], old["VirtualSize"]) == (["<none>:<none>"], ["<none>@<none>"], 200)
    assert versions.usage(document, (1, 42))["Containers"] == 1
    assert document["RepoTags"] == []


async def test_an_inspected_image_has_the_shape_its_version_asks(world: World):
    await world.put(HOST, "x")
    document = inspect(world.deps, "x")
    assert versions.inspected(document, (1, 51)) == document
    config = versions.inspected(document, (1, 49))["Config"]
    assert isinstance(config, dict)
    assert (config["Hostname"], config["Tty"], config["Env"]) == ("", False, ["PATH=/bin"])
    assert "Descriptor" not in versions.inspected(document, (1, 47))
    assert "Container" not in versions.inspected(document, (1, 45))
    old = versions.inspected(document, (1, 43))
    assert (old["Container"], old["VirtualSize"]) == ("", 200)
    assert isinstance(old["ContainerConfig"], dict)


async def test_an_image_that_does_not_say_when_it_was_made_says_so_to_old_clients_only(world: World):
    made = make([{"t": b"1"}])
    made.config = made.config.replace(b"2024-05-06T07:08:09.123456789Z", b"0001-01-01T00:00:00Z")
    made.manifest = made.manifest.replace(
        next(name for name, blob in made.blobs.items() if b"rootfs" in blob).encode(), digest(made.config).encode()
    )
    made.blobs = {digest(blob): blob for blob in (made.config, *made.layers)}
    await world.put(made, "x")
    document = inspect(world.deps, "x")
    assert "Created" not in document
    assert versions.inspected(document, (1, 43))["Created"] == "0001-01-01T00:00:00Z"
