"""Archives between us and other tools: skopeo, podman, buildah."""

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from imagekit.archives import Platforms, archive_of, blobs_of, entry, layout, platforms, read_in
from imagekit.making import digest, make, tar
from imagekit.trees import files
from imagekit.world import World
from wherry.images.record import Target
from wherry.reference import parse

pytestmark = pytest.mark.kernel

ONE = make([{"a": b"1", "d": None}, {"b": b"2", ".wh.a": b""}])
TREE = {"b": b"2", "d": None}
BOTH = platforms()

Tool = Callable[..., str]
APART = 'mount -t tmpfs none /run && mount -t tmpfs none /var/lib && exec "$0" "$@"'  # where they leave files


def run(*argv: str) -> str:
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def skopeo(require: Callable[..., None]) -> Tool:
    require("skopeo")
    return lambda *argv: run("skopeo", "--insecure-policy", *argv)


def stored(program: str, home: Path) -> Tool:
    """A tool of containers/storage with a store of its own, in a mount namespace of its own."""
    (home / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    (home / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{home}/root"\nrunroot = "{home}/run"\n'
    )
    (home / "tmp").mkdir()
    (home / "registries.conf").write_text("")
    paths = {
        "CONTAINERS_STORAGE_CONF": str(home / "storage.conf"),
        "CONTAINERS_REGISTRIES_CONF": str(home / "registries.conf"),
        "TMPDIR": str(home / "tmp"),
        "HOME": str(home),
    }
    policy = ["--signature-policy", str(home / "policy.json")]
    commands = {"load", "push", "pull"}

    def call(*argv: str) -> str:
        more = policy if argv[0] in commands else []
        env = [f"{name}={value}" for name, value in paths.items()]
        return run("env", *env, "unshare", "-m", "sh", "-c", APART, program, argv[0], *more, *argv[1:])

    return call


@pytest.fixture
def podman(require: Callable[..., None], tmp_path: Path) -> Tool:
    require("podman")
    home = tmp_path / "podman"
    home.mkdir()
    return stored("podman", home)


@pytest.fixture
def buildah(require: Callable[..., None], tmp_path: Path) -> Tool:
    require("buildah")
    home = tmp_path / "buildah"
    home.mkdir()
    return stored("buildah", home)


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def spread(root: Path, found: dict[str, bytes]) -> str:
    """An archive's files as a folder."""
    for name, content in found.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(root)


def target(world: World, name: str) -> Target:
    found = world.deps.store.target(parse(name))
    assert found is not None
    return found


async def holding(world: World, found: Platforms | None = None) -> None:
    """`x:1` of one platform, or of several."""
    one = layout([entry(ONE.manifest, ONE.media_type, "docker.io/library/x:1")], *blobs_of(ONE))
    await read_in(world, tar(found.files() if found else one))


# --- skopeo -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive"])
async def test_skopeo_passes_on_what_is_saved(world: World, other: World, skopeo: Tool, tmp_path: Path, transport):
    await holding(world)
    source = write(tmp_path / "saved.tar", await archive_of(world, "x:1"))
    out = tmp_path / "out.tar"
    name = "" if transport == "oci-archive" else ":x:1"
    skopeo("copy", f"{transport}:{source}{name}", f"{transport}:{out}:made/y:2")
    (image,) = await read_in(other, out.read_bytes())
    assert (image.id, image.repo_tags) == (ONE.id, ("made/y:2",))
    assert files(other, image) == TREE
    if transport == "oci-archive":
        assert image.manifest.digest == ONE.digest


async def test_skopeo_copies_all_platforms_of_what_is_saved_and_we_read_it_again(
    world: World, other: World, skopeo: Tool, tmp_path: Path
):
    await holding(world, BOTH)
    source = write(tmp_path / "saved.tar", await archive_of(world, "x:1"))
    out = tmp_path / "out.tar"
    skopeo("copy", "--all", "--preserve-digests", f"oci-archive:{source}", f"oci-archive:{out}:docker.io/library/x:1")
    images = await read_in(other, out.read_bytes())
    assert [image.id for image in images] == [BOTH.amd64.id, BOTH.arm64.id]
    assert target(other, "x:1") == target(world, "x:1")
    assert set(other.deps.content.walk()) == {digest(blob) for blob in BOTH.blobs}


# --- podman -----------------------------------------------------------------------------------------------------------


async def test_podman_reads_what_is_saved(world: World, podman: Tool, tmp_path: Path):
    await holding(world, BOTH)
    for wanted, found in ((["linux/amd64"], BOTH.amd64.digest), ([], BOTH.digest)):
        podman("load", "-i", write(tmp_path / "saved.tar", await archive_of(world, "x:1", platforms=wanted)))
        (image,) = json.loads(podman("images", "--format", "json"))
        assert (image["Id"], image["Names"]) == (BOTH.amd64.id[7:], ["docker.io/library/x:1"])
        assert image["Digest"] == found
        podman("rmi", "--all", "--force")


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
async def test_what_podman_saves_loads(world: World, other: World, podman: Tool, tmp_path: Path, form):
    await holding(world)
    podman("load", "-i", write(tmp_path / "saved.tar", await archive_of(world, "x:1")))
    podman("save", "--format", form, "-o", str(tmp_path / "out.tar"), "docker.io/library/x:1")
    (image,) = await read_in(other, (tmp_path / "out.tar").read_bytes())
    assert (image.id, image.repo_tags) == (ONE.id, ("x:1",))
    assert files(other, image) == TREE


async def test_podmans_archive_of_several_images_loads(world: World, other: World, podman: Tool, tmp_path: Path):
    next_one = make([{"a": b"1", "d": None}, {"c": b"3"}])
    await holding(world)
    await read_in(world, tar(layout([entry(next_one.manifest, next_one.media_type, "y:1")], *blobs_of(next_one))))
    for name in ("x:1", "y:1"):
        podman("load", "-i", write(tmp_path / "saved.tar", await archive_of(world, name)))
    podman("tag", "docker.io/library/x:1", "docker.io/library/x:2")
    podman("save", "--multi-image-archive", "-o", str(tmp_path / "out.tar"), "x:1", "x:2", "y:1")
    images = await read_in(other, (tmp_path / "out.tar").read_bytes())
    assert {image.id: image.repo_tags for image in images} == {ONE.id: ("x:1", "x:2"), next_one.id: ("y:1",)}


# --- buildah ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["docker-archive", "oci-archive"])
async def test_what_buildah_pushes_to_an_archive_loads(
    world: World, other: World, buildah: Tool, tmp_path: Path, transport
):
    await holding(world)
    buildah("pull", "oci-archive:" + write(tmp_path / "saved.tar", await archive_of(world, "x:1")))
    (found,) = json.loads(buildah("images", "--json"))
    buildah("push", found["id"], f"{transport}:{tmp_path}/out.tar:docker.io/made/y:2")
    (image,) = await read_in(other, (tmp_path / "out.tar").read_bytes())
    assert (image.id, image.repo_tags) == (ONE.id, ("made/y:2",))
    assert files(other, image) == TREE


# --- tar --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar"])
async def test_an_archive_packed_again_by_tar_loads(world: World, tmp_path: Path, form):
    """As people do who look into one: names begin with `./`, directories are there, holes are left out."""
    folder = spread(tmp_path / "x", layout([entry(ONE.manifest, ONE.media_type, "x:1")], *blobs_of(ONE)))
    plain = make([{"zeros": bytes(300_000)}], compression="plain")
    spread(tmp_path / "x", {"c": plain.config, "l": plain.layers[0]})
    with open(tmp_path / "x" / "l", "r+b") as file:  # a hole where there are zeros
        os.truncate(file.fileno(), 1024)
        os.truncate(file.fileno(), len(plain.layers[0]))
    listed = [{"Config": "c", "RepoTags": ["plain:1"], "Layers": ["l"]}]
    (tmp_path / "x" / "manifest.json").write_text(json.dumps(listed))
    sparse: Sequence[str] = [] if form == "ustar" else ["--sparse"]
    run("tar", f"--format={form}", *sparse, "-C", folder, "-cf", str(tmp_path / "out.tar"), ".")
    images = await read_in(world, (tmp_path / "out.tar").read_bytes())
    assert {name for image in images for name in image.repo_tags} == {"x:1", "plain:1"}
    assert files(world, world.deps.store.get("plain:1")) == {"zeros": bytes(300_000)}
