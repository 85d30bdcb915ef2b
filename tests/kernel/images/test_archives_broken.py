"""Archives that are cut, wrong or hostile: a clear error, and nothing is left."""

import asyncio
import gzip
import hashlib
import io
import tarfile
from collections.abc import AsyncIterator, Iterator

import pytest

from harness.descriptors import descriptors
from imagekit.archives import blob_path, blobs_of, docker_archive, entry, layout, platforms, read_in
from imagekit.making import digest, encode, make, tar
from imagekit.trees import files
from imagekit.world import NOTHING, World
from wherry.digest import Digest
from wherry.errors import Corrupt, InvalidParameter, NotFound, WherryError
from wherry.images.archives import contents, spool
from wherry.images.archives.load import load
from wherry.storage.compression import Compression, Limits

pytestmark = pytest.mark.kernel

ONE = make([{"a": b"1" * 2000, "d": None}, {"b": b"2"}])
NEW = layout([entry(ONE.manifest, ONE.media_type, "x:1")], *blobs_of(ONE))
OLD = docker_archive(ONE, "x:1")
LARGE = spool.SMALL + 1  # bytes of a file that goes to the content store


def boundaries(data: bytes) -> Iterator[int]:
    """Where members begin, where their content begins, and the middle of it."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            yield from (member.offset, member.offset + 100, member.offset_data, member.offset_data + member.size // 2)


@pytest.mark.parametrize("form", ["layout", "docker-archive", "platforms"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
async def test_an_archive_cut_anywhere_is_refused_and_leaves_nothing(world: World, form, pack):
    """Whole at the sender's end of stream, wherever that is; nothing is left of what had come."""
    data = tar({"layout": NEW, "docker-archive": OLD, "platforms": platforms().files()}[form])
    cuts = sorted(set(boundaries(data))) if pack is bytes else range(0, len(pack(data)), len(pack(data)) // 12 + 1)
    packed = pack(data)
    for cut in cuts:
        with pytest.raises((InvalidParameter, NotFound)) as caught:
            await read_in(world, packed[:cut])
        assert any(word in caught.value.message for word in ("truncated", "missing", "neither", "empty")), cut
        assert world.held() == NOTHING, cut


async def test_a_sender_that_fails_after_layers_were_unpacked_leaves_nothing(world: World):
    data = tar(NEW)

    async def failing() -> AsyncIterator[bytes]:
        yield data[:-2000]
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        await load(world.deps, failing(), progress=world.tell)
    assert world.held() == NOTHING


async def test_neither_descriptors_nor_tasks_are_left_by_loads_that_fail_or_succeed(world: World):
    data, lying = tar(NEW), tar({**NEW, f"blobs/sha256/{'0' * 64}": b"z" * LARGE})
    await read_in(world, data)
    before, tasks = descriptors(), asyncio.all_tasks()
    for broken in (data[: len(data) // 3], lying, b"no archive" * 1000):
        with pytest.raises(WherryError):
            await read_in(world, broken)
    await read_in(world, data)
    waiting = asyncio.Event()

    async def silent() -> AsyncIterator[bytes]:
        yield data[:-2000]
        waiting.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(load(world.deps, silent(), progress=world.tell))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    assert asyncio.all_tasks() == tasks
    assert not descriptors() - before


async def test_the_same_archive_may_come_twice_at_once(world: World):
    data = tar(NEW)
    (one,), (two,) = await asyncio.gather(read_in(world, data), read_in(world, data))
    assert one.id == two.id == ONE.id
    assert set(world.deps.content.walk()) == {ONE.digest, *ONE.blobs}
    assert len(set(world.snapshots.chains())) == 2
    assert not set(world.snapshots.keys())


@pytest.mark.parametrize("size", [10, LARGE], ids=["small", "large"])
async def test_a_blob_that_is_not_what_its_name_says_is_refused(world: World, size):
    content = b"z" * size
    with pytest.raises(Corrupt, match=f"wrong digest: expected sha256:{'0' * 64}, got {digest(content)}"):
        await read_in(world, tar({**NEW, f"blobs/sha256/{'0' * 64}": content}))
    assert world.held() == NOTHING


async def test_of_several_images_none_stays_when_one_is_wrong(world: World):
    lying = make([{"a": b"1"}], diff_ids=[digest(b"other")])
    entries = [entry(made.manifest, made.media_type, f"{name}:1") for name, made in (("x", ONE), ("y", lying))]
    with pytest.raises(Corrupt, match="does not match the image's configuration"):
        await read_in(world, tar(layout(entries, *blobs_of(ONE, lying))))
    assert world.held() == NOTHING
    assert not any("Loaded" in status for status in world.statuses)


async def test_a_plain_layer_is_held_to_the_configuration_even_when_its_tree_is_here(world: World):
    await read_in(world, tar(OLD))
    other = make([{"c": b"3"}])
    listed = encode([{"Config": "c", "RepoTags": ["y:1"], "Layers": ["l"]}])
    with pytest.raises(Corrupt, match=f"layer 'l' does not match .*the configuration says {other.diff_ids[0]}"):
        await read_in(world, tar({"c": other.config, "l": tar({"c": b"4"}), "manifest.json": listed}))


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    made = tarfile.TarInfo(name)
    made.size, made.type = size, kind
    return made.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("size", [1 << 40, (1 << 63) - 1, 1 << 63, -1])
async def test_absurd_sizes_are_refused(world: World, size):
    with pytest.raises(InvalidParameter, match=r"truncated|its size is"):
        await read_in(world, header("blobs/sha256/x", size) + b"x" * 3000)
    assert world.held() == NOTHING


async def test_too_many_files_are_refused(world: World):
    one = header("a", 0)
    count = spool.MAX_FILES + 1
    with pytest.raises(InvalidParameter, match=f"more than {spool.MAX_FILES} entries"):
        await read_in(world, gzip.compress(one * count + bytes(1024), 1))
    assert world.held() == NOTHING


async def test_many_small_files_are_bounded_in_memory_and_none_stays(world: World):
    """Beyond what is held in memory files go to the content store, from where they are dropped."""
    junk = {f"junk/{number}": number.to_bytes(4, "big") * (spool.SMALL // 4) for number in range(140)}
    assert sum(map(len, junk.values())) > spool.HELD
    (image,) = await read_in(world, tar({**junk, **NEW}))
    assert set(world.deps.content.walk()) == {ONE.digest, *ONE.blobs}
    assert files(world, image) == {"a": b"1" * 2000, "b": b"2", "d": None}


async def test_images_beyond_measure_are_refused(world: World):
    count = contents.MAX_IMAGES + 1
    listed = [{"Config": "c", "RepoTags": [f"x:{number}"], "Layers": []} for number in range(count)]
    configs = [make([], config={"Cmd": [str(number)]}) for number in range(count)]
    found = {f"c{number}": made.config for number, made in enumerate(configs)}
    for number, one in enumerate(listed):
        one["Config"] = f"c{number}"
    with pytest.raises(InvalidParameter, match=f"more than {contents.MAX_IMAGES} images"):
        await read_in(world, tar({**found, "manifest.json": encode(listed)}))
    assert world.held() == NOTHING


async def test_documents_are_not_read_without_end(world: World):
    """Many large manifests: all of them together are bounded, too."""
    documents = [ONE.manifest[:-1] + b" " * (200_000 + number) + b"}" for number in range(8)]
    entries = [entry(document, ONE.media_type) for document in documents]
    archive = spool.Archive()
    for name, content in layout(entries, *documents, *blobs_of(ONE)).items():
        archive.add(name, spool.File(Digest(digest(content)), len(content), Compression.GZIP, content))
    with world.deps.leases.pin() as lease:
        found = contents.find_images(archive, world.deps.content, lease, held={})
        assert len(found) == 8
        with pytest.raises(InvalidParameter, match=f"more than {1 << 20} bytes of documents"):
            contents.find_images(archive, world.deps.content, lease, held={}, budget=1 << 20)


# --- what is odd, and right -------------------------------------------------------------------------------------------


def sparse_member(name: str, pieces: list[tuple[int, bytes]], size: int) -> bytes:
    """A member in GNU's sparse format 1.0."""
    table = f"{len(pieces)}\n" + "".join(f"{offset}\n{len(data)}\n" for offset, data in pieces)
    content = table.encode().ljust(512, b"\0") + b"".join(data for _, data in pieces)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        made = tarfile.TarInfo(f"GNUSparseFile.0/{name}")
        made.size = len(content)
        made.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": name,
            "GNU.sparse.realsize": str(size),
        }
        archive.addfile(made, io.BytesIO(content))
    return out.getvalue()


def without_end(data: bytes) -> bytes:
    return data.rstrip(b"\0").ljust(-(-len(data.rstrip(b"\0")) // 512) * 512, b"\0")


@pytest.mark.parametrize("size", [4096, 3 * LARGE], ids=["small", "large"])
async def test_a_sparse_member_is_read_with_its_holes(world: World, size):
    """A layer that was packed by `tar --sparse`: long runs of zeros, here the end of a plain layer."""
    layer = tar({"a": b"1"})
    layer = layer.ljust(size, b"\0") if len(layer) < size else layer
    made = make([{"a": b"1"}], diff_ids=[digest(layer)])
    listed = encode([{"Config": "c", "RepoTags": ["x:1"], "Layers": ["layer.tar"]}])
    rest = tar({"c": made.config, "manifest.json": listed})
    stored = layer.rstrip(b"\0")
    member = without_end(sparse_member("layer.tar", [(0, stored)], len(layer)))
    (image,) = await read_in(world, member + rest)
    assert image.layers[0].digest == "sha256:" + hashlib.sha256(layer).hexdigest()
    assert files(world, image) == {"a": b"1"}


async def test_a_sparse_file_of_nothing_but_size_is_stopped(world: World):
    member = without_end(sparse_member("layer.tar", [(0, b"x")], 1 << 45))
    with pytest.raises(InvalidParameter, match=r"too large|compression bomb"):
        await read_in(world, member + tar(NEW), limits=Limits(reserve=0, ratio_floor=8 << 20))
    assert world.held() == NOTHING


async def test_a_link_after_a_file_of_its_name_counts(world: World):
    out = io.BytesIO()
    listed = encode([{"Config": "c", "RepoTags": ["x:1"], "Layers": ["l"]}])
    made = make([{"a": b"1"}])
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in {"c": made.config, "manifest.json": listed, "real": tar({"a": b"1"}), "l": b"no"}.items():
            one = tarfile.TarInfo(name)
            one.size = len(content)
            archive.addfile(one, io.BytesIO(content))
        link = tarfile.TarInfo("l")
        link.type, link.linkname = tarfile.LNKTYPE, "real"
        archive.addfile(link)
    (image,) = await read_in(world, out.getvalue())
    assert files(world, image) == {"a": b"1"}


# --- what it may be instead -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"repositories": b"{}", "abc/VERSION": b"1.0", "abc/layer.tar": b""}, "Docker 1.9 or older"),
        ({"etc": None, "etc/passwd": b"root"}, "use `docker import`"),
        ({"a": b"1"}, "neither manifest.json nor index.json"),
    ],
)
async def test_what_is_no_archive_of_images_is_recognised(world: World, found, words):
    with pytest.raises(InvalidParameter, match=words):
        await read_in(world, tar(found))
    assert world.held() == NOTHING


async def test_the_name_of_a_blob_is_where_it_is_looked_for(world: World):
    """manifest.json may name blobs of a layout."""
    listed = encode(
        [{"Config": blob_path(ONE.config), "RepoTags": ["x:1"], "Layers": [blob_path(layer) for layer in ONE.layers]}]
    )
    found = {name: content for name, content in NEW.items() if name != "index.json"}
    (image,) = await read_in(world, tar({**found, "manifest.json": listed}))
    assert [layer.digest for layer in image.layers] == ONE.layer_digests
