"""Pull from Debian's docker-registry, filled by skopeo; what arrives is compared file by file by GNU tar."""

import hashlib
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from imagekit.making import Made, compress, digest, encode, index, make
from imagekit.trees import compare, files, unpack
from imagekit.world import World
from wherry.errors import NotFound
from wherry.images.archives.load import load
from wherry.images.archives.save import save
from wherry.images.transfer.pull import pull
from wherry.spec import image as spec

pytestmark = pytest.mark.kernel


def skopeo(*arguments: str) -> str:
    done = subprocess.run(
        ["skopeo", "--insecure-policy", *arguments], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_layout(folder: Path, *images: Made, top: bytes | None = None, top_type: str = "") -> Path:
    """An OCI layout on disk; `top` is an index over the images."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for made in images:
        for key, content in {made.digest: made.manifest, **made.blobs}.items():
            (blobs / key[7:]).write_bytes(content)
    named, media_type = (top, top_type) if top is not None else (images[0].manifest, images[0].media_type)
    (blobs / digest(named)[7:]).write_bytes(named)
    entry = {"mediaType": media_type, "digest": digest(named), "size": len(named)}
    (folder / "index.json").write_bytes(encode({"schemaVersion": 2, "manifests": [entry]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return folder


def push(folder: Path, address: str, name: str, *options: str) -> str:
    skopeo("copy", "--dest-tls-verify=false", *options, f"oci:{folder}", f"docker://{address}/{name}")
    raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{address}/{name}")
    return "sha256:" + hashlib.sha256(raw.encode()).hexdigest()


@pytest.mark.parametrize("compression", ["gzip", "zstd", "plain"])
async def test_an_oci_image_arrives_with_its_digest(world: World, docker_registry: str, tmp_path: Path, compression):
    made = make([{"a": b"1", "d": None}, {"b": b"2", ".wh.a": b""}], compression=compression)
    pushed = push(write_layout(tmp_path / "oci", made), docker_registry, f"oci/{compression}:1", "--preserve-digests")
    assert pushed == made.digest
    image = await pull(world.deps, f"{docker_registry}/oci/{compression}:1", progress=world.tell)
    assert image.id == made.id
    assert image.repo_digests == (f"{docker_registry}/oci/{compression}@{made.digest}",)
    assert files(world, image) == {"b": b"2", "d": None}


async def test_a_schema_2_image_arrives_with_its_digest(world: World, docker_registry: str, tmp_path: Path):
    made = make([{"a": b"1"}, {"b": b"2"}])
    pushed = push(write_layout(tmp_path / "oci", made), docker_registry, "s2:1", "--format", "v2s2")
    image = await pull(world.deps, f"{docker_registry}/s2:1", progress=world.tell)
    assert image.manifests[0].media_type == spec.DOCKER_MANIFEST
    assert image.manifests[0].digest == pushed
    assert files(world, image) == {"a": b"1", "b": b"2"}


@pytest.mark.parametrize("form", ["oci", "docker"])
async def test_an_index_gives_each_platform_its_image(world: World, docker_registry: str, tmp_path: Path, form):
    images = {name: make([{"a": name.encode()}], form=form, architecture=name) for name in ("amd64", "arm64")}
    top, top_type = index([(made, {"os": "linux", "architecture": name}) for name, made in images.items()], form=form)
    folder = write_layout(tmp_path / "oci", *images.values(), top=top, top_type=top_type)
    pushed = push(folder, docker_registry, f"index/{form}:1", "--all", "--preserve-digests")
    assert pushed == digest(top)
    for name, made in images.items():
        image = await pull(
            world.deps, f"{docker_registry}/index/{form}:1", platform=f"linux/{name}", progress=world.tell
        )
        assert image.id == made.id
        assert f"{docker_registry}/index/{form}@{pushed}" in image.repo_digests


async def test_what_is_missing_is_said_as_docker_says_it(world: World, docker_registry: str, tmp_path: Path):
    push(write_layout(tmp_path / "oci", make([{"a": b"1"}])), docker_registry, "there:1")
    with pytest.raises(NotFound) as caught:
        await pull(world.deps, f"{docker_registry}/there:2", progress=world.tell)
    words = f"manifest for {docker_registry}/there:2 not found: manifest unknown: manifest unknown"
    assert caught.value.message == words
    with pytest.raises(NotFound, match=r"not found: manifest unknown|not found: name unknown"):
        await pull(world.deps, f"{docker_registry}/nowhere:1", progress=world.tell)


def rich_layers(folder: Path) -> list[bytes]:
    """Two layers of every kind of file, made by GNU tar: owners, modes, times, xattrs, links, devices, holes."""
    tree = folder / "tree"
    (tree / "bin").mkdir(parents=True)
    (tree / "bin/tool").write_bytes(os.urandom(100_000))
    (tree / "bin/tool").chmod(0o4755)
    os.link(tree / "bin/tool", tree / "bin/hardlink")
    (tree / "bin/symlink").symlink_to("tool")
    (tree / "bin/dangling").symlink_to("/no/where")
    os.mkfifo(tree / "fifo", 0o640)
    os.mknod(tree / "null", 0o20666, os.makedev(1, 3))
    os.chown(tree / "bin/tool", 1234, 5678)
    (tree / ("long" * 60)).write_text("long name")
    (tree / "späce und ümlaut").write_text("x")
    with open(tree / "sparse", "wb") as file:
        file.truncate(5 << 20)
        file.seek(1 << 20)
        file.write(b"data")
    os.setxattr(tree / "bin/tool", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    (tree / "sticky").mkdir()
    (tree / "sticky").chmod(0o1777)
    for number in range(300):
        path = tree / "many" / f"{number % 7}" / f"file{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number * number)
        os.utime(path, ns=(10**18 + number, 10**18 + number * 1001))
    options = ["--format=posix", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--sparse", "--sort=name"]
    first = subprocess.run(["tar", "-C", tree, *options, "-cf", "-", "."], check=True, capture_output=True).stdout
    second = io.BytesIO()
    with tarfile.open(fileobj=second, mode="w", format=tarfile.PAX_FORMAT) as archive:
        entry = tarfile.TarInfo("added")
        entry.size, entry.mode, entry.uid = 5, 0o600, 42
        archive.addfile(entry, io.BytesIO(b"added"))
    return [first, second.getvalue()]


async def test_a_rich_tree_is_the_same_file_by_file_after_pull_save_and_load(
    world: World, other: World, docker_registry: str, tmp_path: Path, require
):
    require("tar")
    layers = rich_layers(tmp_path)
    config = encode(
        {
            "os": "linux",
            "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
        }
    )
    blobs = [compress(layer, "gzip") for layer in layers]
    manifest = encode(
        {
            "schemaVersion": 2,
            "mediaType": spec.OCI_MANIFEST,
            "config": {"mediaType": spec.OCI_CONFIG, "digest": digest(config), "size": len(config)},
            "layers": [{"mediaType": spec.OCI_LAYER_GZIP, "digest": digest(blob), "size": len(blob)} for blob in blobs],
        }
    )
    made = Made(
        manifest,
        spec.OCI_MANIFEST,
        config,
        blobs,
        [digest(layer) for layer in layers],
        {digest(each): each for each in (config, *blobs)},
    )
    push(write_layout(tmp_path / "oci", made), docker_registry, "rich:1", "--preserve-digests")
    image = await pull(world.deps, f"{docker_registry}/rich:1", progress=world.tell)
    saved = save(world.deps, [image.name])
    (loaded,) = await load(other.deps, saved, progress=other.tell)
    assert loaded.manifests[0].digest == made.digest
    for number, layer in enumerate(layers):
        path = tmp_path / f"layer{number}.tar"
        path.write_bytes(layer)
        for machine in (world, other):
            assert compare(machine, image, path) == ""


async def test_skopeo_copies_a_saved_image_into_a_registry_from_where_it_is_pulled_again(
    world: World, other: World, docker_registry: str, tmp_path: Path
):
    made = make([{"a": b"1"}, {"b": b"2"}])
    push(write_layout(tmp_path / "oci", made), docker_registry, "round:1", "--preserve-digests")
    image = await pull(world.deps, f"{docker_registry}/round:1", progress=world.tell)
    folder = tmp_path / "saved"
    folder.mkdir()
    (tmp_path / "saved.tar").write_bytes(b"".join([chunk async for chunk in save(world.deps, [image.name])]))
    unpack(tmp_path / "saved.tar", folder)
    skopeo(
        *("copy", "--dest-tls-verify=false", "--preserve-digests"),
        *(f"oci:{folder}:1", f"docker://{docker_registry}/round:2"),
    )
    again = await pull(other.deps, f"{docker_registry}/round:2", progress=other.tell)
    assert again.manifests[0].digest == made.digest
    assert json.loads(skopeo("inspect", "--config", f"oci:{folder}:1"))["rootfs"]["diff_ids"] == made.diff_ids
