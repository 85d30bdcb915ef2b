"""Save and load: round trips, archives of other tools, hostile archives."""

import asyncio
import bz2
import gzip
import io
import json
import lzma
import subprocess
import tarfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
import zstandard

from imagekit.archives import archive_of, docker_archive, members, read_in
from imagekit.making import Made, digest, encode, index, make, tar
from imagekit.registry import FakeRegistry
from imagekit.trees import files, unpack
from imagekit.world import NOTHING, World
from wherry.errors import Corrupt, InvalidParameter, NotFound, WherryError
from wherry.images.archives.load import load
from wherry.images.archives.save import save
from wherry.images.transfer.pull import pull
from wherry.images.upkeep.remove import remove
from wherry.images.upkeep.tag import tag
from wherry.storage.compression import Limits

pytestmark = pytest.mark.kernel

ONE = make([{"a": b"1", "d": None}, {"b": b"2", ".wh.a": b""}])
TWO = make([{"a": b"1", "d": None}, {"c": b"3"}], compression="zstd")


def layout(made: Made, *, name: str = "", platform: Mapping[str, str] | None = None) -> dict[str, bytes]:
    """The files of an OCI layout."""
    entry: dict[str, object] = {"mediaType": made.media_type, "digest": made.digest, "size": len(made.manifest)}
    if name:
        entry["annotations"] = {"io.containerd.image.name": name}
    if platform:
        entry["platform"] = dict(platform)
    listed = {"schemaVersion": 2, "manifests": [entry]}
    blobs = {made.digest: made.manifest, **made.blobs}
    return {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": encode(listed),
        **{f"blobs/sha256/{key[7:]}": value for key, value in blobs.items()},
    }


# --- round trips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["oci", "docker"])
@pytest.mark.parametrize("compression", ["gzip", "zstd", "plain"])
async def test_what_is_saved_loads_elsewhere_as_the_same(
    world: World, other: World, registry: FakeRegistry, form, compression
):
    made = make([{"a": b"1", "d": None}, {"b": b"2", ".wh.a": b""}], form=form, compression=compression)
    registry.add("x", "1", made)
    image = await pull(world.deps, f"{registry.host}/x:1", progress=world.tell)
    (loaded,) = await read_in(other, await archive_of(world, image.name))
    assert loaded.id == image.id
    assert loaded.manifests == image.manifests
    assert loaded.repo_tags == image.repo_tags
    assert loaded.blobs == image.blobs
    assert files(other, loaded) == files(world, image) == {"b": b"2", "d": None}
    assert other.statuses[-1] == f"Loaded image: {image.name}\n"
    assert other.events == [("load", image.id)]
    assert world.events[-1] == ("save", image.id)


async def test_several_images_and_tags_share_their_blobs_in_the_archive(world: World, other: World):
    await read_in(world, pack(layout(ONE, name="docker.io/library/one:1")))
    await read_in(world, pack(layout(TWO, name="docker.io/library/two:1")))
    await tag(world.deps, "one:1", repository="one", tag="2")
    data = await archive_of(world, "one", "two:1", ONE.id)
    assert len(data) == sum(len(value) + 512 + -len(value) % 512 for value in members(data).values()) + 1024
    found = members(data)
    listed = json.loads(found["manifest.json"])
    assert [entry["RepoTags"] for entry in listed] == [["one:1", "one:2"], ["two:1"]]
    assert set(json.loads(found["repositories"])) == {"one", "two"}
    await read_in(other, data)
    assert {name for image in other.deps.store.all() for name in image.repo_tags} == {"one:1", "one:2", "two:1"}


async def test_an_image_saved_by_its_id_has_no_name(world: World, other: World):
    await read_in(world, pack(layout(ONE, name="docker.io/library/one:1")))
    (loaded,) = await read_in(other, await archive_of(world, ONE.id[7:19]))
    assert loaded.repo_tags == ()
    assert other.statuses[-1] == f"Loaded image ID: {ONE.id}\n"


async def test_saving_what_is_not_there_fails_before_the_first_byte(world: World):
    with pytest.raises(NotFound, match="No such image: x:latest"):
        save(world.deps, ["x"])
    await read_in(world, pack(layout(ONE, name="docker.io/library/one:1")))
    with pytest.raises(NotFound, match="does not provide the specified platform"):
        save(world.deps, ["one:1"], platforms=["linux/arm64"])


async def test_an_image_removed_while_it_is_saved_is_saved_whole(world: World, other: World):
    await read_in(world, pack(layout(ONE, name="docker.io/library/one:1")))
    stream = save(world.deps, ["one:1"])
    data = await anext(stream)
    await remove(world.deps, "one:1", in_use={})
    data += b"".join([chunk async for chunk in stream])
    assert [image.id for image in await read_in(other, data)] == [ONE.id]


async def test_loading_over_a_tag_says_that_the_old_image_loses_it(world: World):
    await read_in(world, pack(layout(ONE, name="docker.io/library/x:1")))
    await read_in(world, pack(layout(TWO, name="docker.io/library/x:1")))
    assert f"The image x:1 already exists, renaming the old one with ID {ONE.id} to empty string\n" in world.statuses
    assert world.deps.store.get("x:1").id == TWO.id


async def test_quiet_tells_the_result_only(world: World):
    await read_in(world, pack(layout(ONE, name="docker.io/library/x:1")), quiet=True)
    assert world.statuses == ["Loaded image: x:1\n"]


# --- other shapes -----------------------------------------------------------------------------------------------------


def pack(found: Mapping[str, bytes]) -> bytes:
    return tar(found)


@pytest.mark.parametrize(
    "compress",
    [gzip.compress, bz2.compress, lzma.compress, zstandard.ZstdCompressor().compress, bytes],
    ids=["gzip", "bzip2", "xz", "zstd", "plain"],
)
async def test_the_archive_itself_may_be_compressed(world: World, compress):
    (image,) = await read_in(world, compress(pack(layout(ONE, name="docker.io/library/x:1"))))
    assert image.id == ONE.id


async def test_an_old_docker_archive_loads_with_its_layers_as_they_are(world: World):
    (image,) = await read_in(world, pack(docker_archive(ONE, "old:1", "localhost:5000/old:2")))
    assert image.id == ONE.id
    assert image.repo_tags == ("localhost:5000/old:2", "old:1")
    assert [layer.digest for layer in image.layers] == ONE.diff_ids
    assert files(world, image) == {"b": b"2", "d": None}
    assert image.repo_digests == ()


async def test_a_layer_may_be_a_link_to_another_file(world: World):
    found = docker_archive(make([{"a": b"1"}, {"a": b"1"}]), "x:1")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in found.items():
            entry = tarfile.TarInfo(name)
            if name.startswith(f"{1:064x}"):
                entry.type, entry.linkname = tarfile.SYMTYPE, f"../{0:064x}/layer.tar"
                archive.addfile(entry)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    (image,) = await read_in(world, out.getvalue())
    assert files(world, image) == {"a": b"1"}


async def test_of_an_index_the_platform_of_this_machine_or_the_one_asked_for_is_loaded(world: World):
    arm = make([{"arm": b"1"}], architecture="arm64")
    raw, media_type = index(
        [(arm, {"os": "linux", "architecture": "arm64"}), (ONE, {"os": "linux", "architecture": "amd64"})]
    )
    found = {**layout(ONE), **layout(arm), f"blobs/sha256/{digest(raw)[7:]}": raw}
    entry = {
        "mediaType": media_type,
        "digest": digest(raw),
        "size": len(raw),
        "annotations": {"io.containerd.image.name": "docker.io/library/x:1"},
    }
    found["index.json"] = encode({"schemaVersion": 2, "manifests": [entry]})
    (image,) = await read_in(world, pack(found), platforms=["linux/arm64"])
    assert image.id == arm.id
    (image,) = await read_in(world, pack(found), platforms=["linux/amd64"])
    assert image.id == ONE.id
    with pytest.raises(NotFound, match="no image for linux/s390x in the archive"):
        await read_in(world, pack(found), platforms=["linux/s390x"])


async def test_of_an_index_whose_other_platforms_were_left_out_the_one_that_is_there_is_loaded(world: World):
    arm = make([{"arm": b"1"}], architecture="arm64")
    raw, media_type = index(
        [(arm, {"os": "linux", "architecture": "arm64"}), (ONE, {"os": "linux", "architecture": "amd64"})]
    )
    found = {**layout(arm), f"blobs/sha256/{digest(raw)[7:]}": raw}
    entry = {"mediaType": media_type, "digest": digest(raw), "size": len(raw)}
    found["index.json"] = encode({"schemaVersion": 2, "manifests": [entry]})
    (image,) = await read_in(world, pack(found))
    assert image.id == arm.id


async def test_an_image_that_is_here_already_costs_no_second_copy(world: World):
    await read_in(world, pack(layout(ONE, name="docker.io/library/x:1")))
    before = world.held()
    await read_in(world, pack(layout(ONE, name="docker.io/library/x:1")))
    assert world.held() == before


async def test_files_nobody_needs_are_not_kept(world: World):
    found = {**layout(ONE, name="docker.io/library/x:1"), "README": b"hello", "blobs/sha256/" + digest(b"z")[7:]: b"z"}
    await read_in(world, pack(found))
    assert set(world.deps.content.walk()) == {ONE.digest, *ONE.blobs}


# --- skopeo -----------------------------------------------------------------------------------------------------------


def skopeo(*arguments: str) -> str:
    done = subprocess.run(
        ["skopeo", "--insecure-policy", *arguments], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_skopeo_reads_what_is_saved_with_equal_digests(world: World, require, tmp_path: Path):
    require("skopeo")
    await read_in(world, pack(layout(ONE, name="docker.io/library/x:1")))
    path = tmp_path / "saved.tar"
    path.write_bytes(await archive_of(world, "x:1"))
    docker = json.loads(skopeo("inspect", "--config", f"docker-archive:{path}:x:1"))
    assert docker["rootfs"]["diff_ids"] == ONE.diff_ids
    folder = tmp_path / "layout"
    folder.mkdir()
    unpack(path, folder)
    oci = json.loads(skopeo("inspect", f"oci:{folder}:1"))
    assert oci["Digest"] == ONE.digest
    assert oci["Layers"] == ONE.layer_digests


@pytest.mark.parametrize("transport", ["docker-archive", "oci-archive"])
async def test_what_skopeo_writes_loads(world: World, require, tmp_path: Path, transport):
    require("skopeo")
    folder = tmp_path / "layout"
    for name, content in layout(ONE).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    target = tmp_path / "out.tar"
    skopeo("copy", f"oci:{folder}", f"{transport}:{target}:made/x:1")
    (image,) = await read_in(world, target.read_bytes())
    assert image.repo_tags == ("made/x:1",)
    assert files(world, image) == {"b": b"2", "d": None}
    if transport == "oci-archive":
        assert image.manifests[0].digest == ONE.digest


# --- hostile ----------------------------------------------------------------------------------------------------------


def raw_tar(*entries: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for entry in entries:
            archive.addfile(entry, io.BytesIO(bytes(entry.size)))
    return out.getvalue()


def info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size = kind, link, size
    return made


def without(found: dict[str, bytes], part: str) -> bytes:
    return pack({name: content for name, content in found.items() if part not in name})


def changed(found: dict[str, bytes], name: str, content: bytes) -> bytes:
    return pack({**found, name: content})


OLD = docker_archive(ONE, "x:1")
NEW = layout(ONE, name="docker.io/library/x:1")
CONFIG = f"{ONE.id[7:]}.json"

HOSTILE = {
    "nothing": (b"", InvalidParameter, "empty"),
    "no archive": (b"x" * 5000, InvalidParameter, "image archive"),
    "an archive of something else": (tar({"a": b"1"}), InvalidParameter, "neither manifest.json nor index.json"),
    "a truncated archive": (pack(NEW)[:2000], InvalidParameter, "truncated"),
    "a truncated gzip": (gzip.compress(pack(NEW))[:300], InvalidParameter, "truncated"),
    "a name above the root": (raw_tar(info("../evil", size=3)), InvalidParameter, "'../evil'"),
    "an absolute name": (raw_tar(info("/etc/evil", size=3)), InvalidParameter, "absolute name"),
    "a link out": (raw_tar(info("a/b", tarfile.SYMTYPE, "../../etc/passwd")), InvalidParameter, "leads out"),
    "an absolute link": (raw_tar(info("a", tarfile.SYMTYPE, "/etc/passwd")), InvalidParameter, "leads out"),
    "a hard link out": (raw_tar(info("a", tarfile.LNKTYPE, "../x")), InvalidParameter, "leads out"),
    "a device": (raw_tar(info("dev", tarfile.CHRTYPE)), InvalidParameter, "entry 'dev' is a char"),
    "bad manifest.json": (changed(OLD, "manifest.json", b"[{"), InvalidParameter, "manifest.json cannot be read"),
    "a manifest.json of another shape": (
        changed(OLD, "manifest.json", b'{"a": 1}'),
        InvalidParameter,
        "manifest.json cannot be read",
    ),
    "a huge manifest.json": (changed(OLD, "manifest.json", b" " * (5 << 20)), InvalidParameter, "bytes"),
    "no images": (changed(OLD, "manifest.json", b"[]"), NotFound, "no image in the archive"),
    "a missing config": (without(OLD, CONFIG), InvalidParameter, f"the config '{CONFIG}' is missing"),
    "a missing layer": (without(OLD, f"{1:064x}"), InvalidParameter, "/layer.tar' is missing"),
    "another config": (changed(OLD, CONFIG, b"{}"), InvalidParameter, "layers length mismatch: expected 0, got 2"),
    "a changed layer": (
        changed(OLD, f"{1:064x}/layer.tar", tar({"x": b"y"})),
        Corrupt,
        f"the configuration says {ONE.diff_ids[1]}",
    ),
    "a bad tag": (
        changed(OLD, "manifest.json", OLD["manifest.json"].replace(b"x:1", b"X:1")),
        InvalidParameter,
        "must be lowercase",
    ),
    "bad index.json": (changed(NEW, "index.json", b"{"), InvalidParameter, "index.json cannot be read"),
    "an index.json that is none": (changed(NEW, "index.json", ONE.manifest), InvalidParameter, "is not an index"),
    "a missing manifest": (without(NEW, ONE.digest[7:]), InvalidParameter, f"the manifest {ONE.digest} is missing"),
    "a missing blob": (without(NEW, ONE.layer_digests[1][7:]), InvalidParameter, "is missing"),
    "a blob under a wrong name": (
        changed(NEW, f"blobs/sha256/{ONE.layer_digests[1][7:]}", b"other"),
        Corrupt,
        f"wrong digest: expected {ONE.layer_digests[1]}",
    ),
    "another system's image": (pack(layout(make([{}], os="windows"))), InvalidParameter, "cannot load windows image"),
    "a hostile layer": (pack(layout(make([{"../../x": b"1"}]))), InvalidParameter, "../../x"),
}


@pytest.mark.parametrize("case", HOSTILE)
async def test_a_bad_archive_is_refused_by_name_and_cause_and_leaves_nothing(world: World, case):
    data, kind, words = HOSTILE[case]
    with pytest.raises(WherryError) as caught:
        await read_in(world, data)
    assert isinstance(caught.value, kind)
    assert words in caught.value.message
    assert world.held() == NOTHING


async def test_links_in_a_circle_are_a_missing_file(world: World):
    listed = encode([{"Config": "a", "Layers": []}])
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        entry = info("manifest.json", size=len(listed))
        archive.addfile(entry, io.BytesIO(listed))
        archive.addfile(info("a", tarfile.SYMTYPE, "b"))
        archive.addfile(info("b", tarfile.SYMTYPE, "a"))
    with pytest.raises(InvalidParameter, match="the config 'a' is missing"):
        await read_in(world, out.getvalue())


async def test_a_bomb_is_stopped(world: World):
    """Zeros gzip a thousandfold: beyond the floor that is refused. The floor is lower here, to be quick."""
    bomb = gzip.compress(pack({**NEW, "zeros": bytes(64 << 20)}))
    with pytest.raises(InvalidParameter, match="compression bomb"):
        await read_in(world, bomb, limits=Limits(reserve=0, ratio_floor=1 << 20))
    assert world.held() == NOTHING


async def test_a_client_that_goes_away_leaves_nothing(world: World):
    data = pack(NEW)

    async def broken() -> AsyncIterator[bytes]:
        yield data[:1500]
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        await load(world.deps, broken(), progress=world.tell)
    assert world.held() == NOTHING


async def test_a_cancelled_load_leaves_nothing(world: World):
    data = pack(NEW)
    waiting = asyncio.Event()

    async def silent() -> AsyncIterator[bytes]:
        yield data[:1500]
        waiting.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(load(world.deps, silent(), progress=world.tell))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.held() == NOTHING
