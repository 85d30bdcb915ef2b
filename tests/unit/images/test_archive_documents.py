"""The documents of an archive: whatever they say, an answer or an error in words."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagekit.archives import Platforms, blobs_of, docker_archive, layout, platforms
from imagekit.making import digest, encode, make
from imagekit.world import MemorySnapshots, World
from wherry.digest import Digest
from wherry.errors import NotSupported, WherryError
from wherry.images.archives.ahead import document_of
from wherry.images.archives.contents import Bundle, find_images
from wherry.images.archives.spool import Archive, File
from wherry.spec.image import parse_platform
from wherry.storage.compression import HEAD, detect

ONE = make([{"a": b"1"}, {"b": b"2"}])
BOTH: Platforms = platforms()
DIGESTS = [digest(blob) for blob in (*BOTH.blobs, *blobs_of(ONE))] + ["sha256:" + "0" * 64, "sha256:x", ""]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"), MemorySnapshots())


def archive(files: dict[str, bytes]) -> Archive:
    made = Archive()
    for name, content in files.items():
        made.add(name, File(Digest(digest(content)), len(content), detect(content[:HEAD]), content))
    return made


def found(world: World, files: dict[str, bytes], *wanted: str) -> list[Bundle]:
    with world.deps.leases.pin() as lease:
        return find_images(
            archive(files), world.deps.content, lease, held={}, wanted=[parse_platform(each) for each in wanted]
        )


json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(DIGESTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
descriptors = st.fixed_dictionaries(
    {"digest": st.sampled_from(DIGESTS), "size": st.integers(-1, 9999)},
    optional={
        "mediaType": st.sampled_from([BOTH.media_type, ONE.media_type, "application/x"]) | json,
        "platform": st.fixed_dictionaries({"os": st.sampled_from(["linux", "unknown", ""]), "architecture": st.text()})
        | json,
        "annotations": st.dictionaries(
            st.sampled_from(["io.containerd.image.name", "org.opencontainers.image.ref.name"]), st.text(max_size=9)
        )
        | json,
    },
)
indexes = st.fixed_dictionaries(
    {"schemaVersion": st.just(2) | json, "manifests": st.lists(descriptors | json, max_size=4) | json}
)
lists = st.lists(
    st.fixed_dictionaries(
        {"Config": st.sampled_from(["c", "x", f"{ONE.id[7:]}.json"]) | st.text(max_size=5)},
        optional={"RepoTags": st.lists(st.text(max_size=9)) | json, "Layers": st.lists(st.text(max_size=9)) | json},
    ),
    max_size=3,
)
slow = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@slow
@given(index=indexes | json, listed=st.none() | lists | json, wanted=st.sampled_from([(), ("linux/arm64",)]))
def test_whatever_documents_say_there_is_an_answer_or_an_error(world, index, listed, wanted):
    files = {**BOTH.files(), **docker_archive(ONE, "x:1"), "index.json": encode(index)}
    files |= {"manifest.json": encode(listed)} if listed is not None else {}
    with contextlib.suppress(WherryError):
        assert all(bundle.images for bundle in found(world, files, *wanted))


@slow
@given(data=st.binary(max_size=200), name=st.sampled_from(["index.json", "manifest.json"]))
def test_whatever_bytes_they_are_too(world, data, name):
    with contextlib.suppress(WherryError):
        found(world, {**BOTH.files(), name: data})


@given(st.binary(max_size=100), st.sampled_from([ONE.config, ONE.manifest, BOTH.raw]), st.integers(0, 400))
def test_what_passes_by_is_no_document_or_one(noise, document, at):
    data = document[:at] + noise + document[at + len(noise) :]
    document_of(File(Digest(digest(data)), len(data), detect(data[:HEAD]), data))


def test_the_documents_of_an_image_are_known_as_they_pass_by():
    kinds = [document_of(File(Digest(digest(raw)), len(raw), detect(b""), raw)) for raw in (ONE.config, ONE.manifest)]
    assert [type(kind).__name__ for kind in kinds] == ["ImageConfig", "Manifest"]
    assert document_of(File(Digest(BOTH.digest), 1, detect(b""), BOTH.raw)) is None


def test_a_layout_without_names_or_platforms_is_read(world: World, tmp_path: Path):
    entries = [{"digest": ONE.digest, "size": len(ONE.manifest)}]
    (bundle,) = found(world, layout(entries, *blobs_of(ONE)))
    assert (bundle.target.digest, bundle.names) == (ONE.digest, [])


@pytest.mark.parametrize(
    ("annotations", "names"),
    [
        ({"io.containerd.image.name": "docker.io/library/x:1"}, ["x:1"]),
        ({"io.containerd.image.name": "x"}, ["x:latest"]),
        ({"org.opencontainers.image.ref.name": "docker.io/team/x:1"}, ["team/x:1"]),
        ({"org.opencontainers.image.ref.name": "x:1"}, ["x:1"]),
        ({"org.opencontainers.image.ref.name": "localhost/x"}, ["localhost/x:latest"]),
        ({"org.opencontainers.image.ref.name": "1.0"}, []),
        ({"org.opencontainers.image.ref.name": "latest"}, []),
        ({"io.containerd.image.name": "x:1", "org.opencontainers.image.ref.name": "y:2"}, ["x:1"]),
        ({"io.containerd.image.name": "x/UPPER"}, []),
        ({"io.containerd.image.name": f"x@{ONE.digest}"}, []),
        ({}, []),
    ],
)
def test_names_come_from_annotations(world: World, annotations, names):
    entries = [{"digest": ONE.digest, "size": len(ONE.manifest), "annotations": annotations}]
    (bundle,) = found(world, layout(entries, *blobs_of(ONE)))
    assert [name.familiar for name in bundle.names] == names


def test_an_artifact_beside_images_is_passed_over_and_alone_is_named(world: World):
    artifact = BOTH.attestations[0]
    entries = [{"digest": made.digest, "size": len(made.manifest)} for made in (artifact, ONE)]
    blobs = blobs_of(artifact, ONE)
    (bundle,) = found(world, layout(entries, *blobs))
    assert bundle.target.digest == ONE.digest
    with pytest.raises(NotSupported, match="unsupported media type"):
        found(world, layout(entries[:1], *blobs))
