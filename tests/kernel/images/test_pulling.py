"""Pull, against a registry in process: what arrives, what is told, what is left when it goes wrong."""

import asyncio
import gzip
import io
import tarfile

import pytest

from imagekit.making import Made, digest, encode, index, make, tar
from imagekit.registry import FakeRegistry
from imagekit.trees import files
from imagekit.world import NOTHING, World
from wherry.errors import Corrupt, Failed, InvalidParameter, NotFound, NotSupported, WherryError
from wherry.images.transfer.pull import pull
from wherry.images.upkeep.recover import recover
from wherry.images.upkeep.remove import remove
from wherry.spec import image as spec
from wherry.spec.distribution import Auth

pytestmark = pytest.mark.kernel

BASE = {"etc": None, "etc/passwd": b"root", "gone": b"x", "d": None, "d/old": b"1"}
TOP = {"etc/passwd": b"changed", ".wh.gone": b"", "d": None, "d/.wh..wh..opq": b"", "d/new": b"2"}
SEEN = {"etc": None, "etc/passwd": b"changed", "d": None, "d/new": b"2"}


async def fetch(world: World, registry: FakeRegistry, name: str = "x:1", **kwargs: object):
    return await pull(world.deps, f"{registry.host}/{name}", progress=world.tell, **kwargs)


@pytest.mark.parametrize("compression", ["gzip", "zstd", "plain"])
@pytest.mark.parametrize("form", ["oci", "docker"])
async def test_an_image_of_every_kind_arrives_as_it_is(world: World, registry: FakeRegistry, form, compression):
    made = make([BASE, TOP], form=form, compression=compression)
    registry.add("x", "1", made)
    image = await fetch(world, registry)
    assert image.id == made.id
    assert files(world, image) == SEEN
    assert image.repo_tags == (f"{registry.host}/x:1",)
    assert image.repo_digests == (f"{registry.host}/x@{made.digest}",)
    assert image.manifests[0].digest == made.digest
    assert set(world.deps.content.walk()) == {made.digest, *made.blobs}
    assert image.size == 4 + 1 + 1 + 7 + 1


async def test_progress_is_told_in_dockers_words(world: World, registry: FakeRegistry):
    made = make([BASE, TOP])
    registry.add("x", "1", made)
    await fetch(world, registry)
    lines = [(message.get("status"), message.get("id")) for message in world.messages]
    first, second = (each[7:19] for each in made.layer_digests)
    assert lines[0] == ("Pulling from x", "1")
    assert lines[-2:] == [
        (f"Digest: {made.digest}", None),
        (f"Status: Downloaded newer image for {registry.host}/x:1", None),
    ]
    for layer in (first, second):
        own = [status for status, owner in lines if owner == layer]
        assert own == [
            "Pulling fs layer",
            "Downloading",
            "Verifying Checksum",
            "Download complete",
            "Extracting",
            "Pull complete",
        ]
    assert lines.index(("Pull complete", first)) < lines.index(("Pull complete", second))
    assert world.events == [("pull", f"{registry.host}/x:1")]


async def test_a_second_pull_finds_everything_there(world: World, registry: FakeRegistry):
    made = make([BASE, TOP])
    registry.add("x", "1", made)
    await fetch(world, registry)
    registry.log.clear()
    world.messages.clear()
    await fetch(world, registry)
    assert world.statuses == [
        "Pulling from x",
        f"Digest: {made.digest}",
        f"Status: Image is up to date for {registry.host}/x:1",
    ]
    asked = [(request.method, request.path) for request in registry.log if request.path != "/v2/"]
    assert asked == [("HEAD", "/v2/x/manifests/1")]  # which rate limits do not count


async def test_a_moved_tag_brings_only_the_new_layer_and_leaves_the_old_image_dangling(world: World, registry):
    old, new = make([BASE, TOP]), make([BASE, {"z": b"3"}])
    registry.add("x", "1", old)
    await fetch(world, registry)
    registry.add("x", "1", new)
    registry.log.clear()
    world.messages.clear()
    image = await fetch(world, registry)
    assert f"Status: Downloaded newer image for {registry.host}/x:1" in world.statuses
    assert "Already exists" in world.statuses
    asked = {request.path.rpartition("/")[2] for request in registry.asked("/blobs/")}
    assert asked == {new.id, new.layer_digests[1]}
    assert files(world, image)["z"] == b"3"
    assert world.deps.store.get(old.id).repo_tags == ()


async def test_the_platform_is_chosen_from_an_index_and_the_digest_is_the_indexs(world: World, registry):
    amd, arm = make([{"a": b"amd"}]), make([{"a": b"arm"}], architecture="arm64")
    raw, media_type = index(
        [(arm, {"os": "linux", "architecture": "arm64"}), (amd, {"os": "linux", "architecture": "amd64"})]
    )
    for made in (amd, arm):
        registry.add("x", made.digest, made)
    registry.put("x", "1", raw, media_type)
    for platform, made in (("linux/amd64", amd), ("linux/arm64/v8", arm)):
        image = await fetch(world, registry, platform=platform)
        assert image.id == made.id
        assert image.repo_digests == (f"{registry.host}/x@{digest(raw)}",)
    assert len(world.deps.store.all()) == 2
    with pytest.raises(NotFound) as caught:
        await fetch(world, registry, platform="linux/riscv64")
    assert caught.value.message == (
        "no matching manifest for linux/riscv64 in the manifest list entries: it has linux/amd64, linux/arm64"
    )


async def test_a_single_image_for_another_platform_comes_with_a_warning(world: World, registry):
    registry.add("x", "1", make([BASE], architecture="arm64"))
    await fetch(world, registry, platform="linux/amd64")
    assert any("does not match the specified platform: wanted linux/amd64" in status for status in world.statuses)


async def test_by_digest_there_is_no_tag(world: World, registry):
    made = make([BASE])
    registry.add("x", "1", made)
    image = await pull(world.deps, f"{registry.host}/x", tag=made.digest, progress=world.tell)
    assert image.repo_tags == ()
    assert image.repo_digests == (f"{registry.host}/x@{made.digest}",)
    assert world.messages[0] == {"status": "Pulling from x", "id": made.digest}


async def test_all_tags_of_a_repository(world: World, registry):
    for tag in ("a", "b", "c"):
        registry.add("x", tag, make([{"f": tag.encode()}]))
    await pull(world.deps, f"{registry.host}/x", progress=world.tell, all_tags=True)
    assert {name for image in world.deps.store.all() for name in image.repo_tags} == {
        f"{registry.host}/x:{tag}" for tag in ("a", "b", "c")
    }
    assert world.statuses[-1] == f"Status: Downloaded newer image for {registry.host}/x"


async def test_credentials_reach_the_registry(world: World, registry):
    registry.auth = "token"
    registry.add("private/x", "1", make([BASE]))
    with pytest.raises(NotFound, match="pull access denied for"):
        await fetch(world, registry, "private/x:1")
    assert world.messages == []
    assert await fetch(world, registry, "private/x:1", auth=Auth(username="ann", password="secret"))


async def test_a_layer_that_occurs_twice_is_fetched_once(world: World, registry):
    made = make([{"a": b"1"}, {"b": b"2"}, {"a": b"1"}])
    registry.add("x", "1", made)
    image = await fetch(world, registry)
    assert len(image.layers) == 3
    assert len(registry.asked(made.layer_digests[0])) == 1


async def test_an_image_without_layers(world: World, registry):
    registry.add("x", "1", make([]))
    image = await fetch(world, registry)
    assert image.chain is None
    assert files(world, image) == {}


async def test_a_cut_connection_is_resumed(world: World, registry):
    content = bytes(range(256)) * 4000
    made = make([{"big": content}], compression="plain")
    registry.add("x", "1", made)
    registry.cuts[made.layer_digests[0]] = [500_000]
    image = await fetch(world, registry)
    assert files(world, image) == {"big": content}
    assert [request.range for request in registry.asked(made.layer_digests[0])] == [None, "bytes=500000-"]
    assert any(status.startswith("Retrying in ") for status in world.statuses)


# --- at once ----------------------------------------------------------------------------------------------------------


async def test_two_pulls_at_once_share_the_work(world: World, registry):
    made = make([BASE, TOP, {"more": b"3"}])
    for tag in ("1", "2"):
        registry.add("x", tag, made)

    begun = asyncio.Event()

    def tell(message: dict[str, object]) -> None:
        world.tell(message)
        if world.statuses.count("Pulling fs layer") == 6:
            begun.set()

    async def both_have_begun(name: str) -> None:
        if name in made.layer_digests:
            await begun.wait()

    registry.before_blob = both_have_begun
    images = await asyncio.gather(*(pull(world.deps, f"{registry.host}/x:{tag}", progress=tell) for tag in ("1", "2")))
    assert {image.id for image in images} == {made.id}
    for layer in made.layer_digests:
        assert len(registry.asked(layer)) == 1
    assert len(list(world.snapshots.chains())) == 3


async def test_no_more_than_three_layers_are_fetched_at_a_time(world: World, registry):
    now, most = 0, 0
    made = make([{f"f{number}": b"x" * number} for number in range(8)])

    async def count(name: str) -> None:
        nonlocal now, most
        if name in made.layer_digests:
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.02)
            now -= 1

    registry.before_blob = count
    registry.add("x", "1", made)
    await fetch(world, registry)
    assert most == 3
    assert "Waiting" in world.statuses


async def test_removing_an_image_does_not_take_what_a_pull_under_way_needs(world: World, registry):
    """The second image shares the base; the first is removed while the second's own layer is on its way."""
    first, second = make([BASE, {"a": b"1"}]), make([BASE, {"b": b"2"}])
    registry.add("x", "1", first)
    registry.add("x", "2", second)
    await fetch(world, registry, "x:1")

    async def meanwhile(name: str) -> None:
        if name == second.layer_digests[1]:
            await remove(world.deps, f"{registry.host}/x:1", in_use={})

    registry.before_blob = meanwhile
    image = await fetch(world, registry, "x:2")
    assert files(world, image) == {**BASE, "b": b"2"}
    assert set(world.deps.content.walk()) == {second.digest, *second.blobs}


# --- going wrong ------------------------------------------------------------------------------------------------------


async def refused(world: World, registry: FakeRegistry, kind: type[WherryError], words: str, **kwargs: object) -> None:
    """The pull fails so, and nothing of it is left in any store."""
    with pytest.raises(kind) as caught:
        await fetch(world, registry, **kwargs)
    assert words in caught.value.message
    assert world.held() == NOTHING


def lying(made: Made, position: int, blob: bytes) -> Made:
    """The same image with another blob under the digest of a layer."""
    made.blobs[made.layer_digests[position]] = blob
    return made


@pytest.mark.parametrize("step", ["manifest", "config", "first layer", "second layer"])
async def test_a_failure_at_any_step_leaves_nothing(world: World, registry, step):
    made = make([BASE, TOP])
    registry.add("x", "1", made)
    path = {
        "manifest": "/v2/x/manifests/1",
        "config": f"/v2/x/blobs/{made.id}",
        "first layer": f"/v2/x/blobs/{made.layer_digests[0]}",
        "second layer": f"/v2/x/blobs/{made.layer_digests[1]}",
    }[step]
    registry.failures[path] = [403]
    await refused(world, registry, NotFound, "pull access denied for")
    failed = path.rpartition("/")[2]
    whole = {name: len(blob) for name, blob in zip(made.layer_digests, made.layers, strict=True) if name != failed}
    assert world.partials().items() <= whole.items()


async def test_a_blob_that_is_not_what_its_digest_says_is_refused(world: World, registry):
    made = make([BASE, TOP])
    blob = bytearray(made.layers[1])
    blob[-1] ^= 1
    registry.add("x", "1", lying(made, 1, bytes(blob)))
    await refused(world, registry, Corrupt, f"wrong digest: expected {made.layer_digests[1]}")


async def test_a_layer_that_is_not_what_the_config_says_is_refused(world: World, registry):
    wrong = "sha256:" + "0" * 64
    registry.add("x", "1", make([BASE], diff_ids=[wrong]))
    await refused(world, registry, Corrupt, f"the configuration says {wrong}")


async def test_a_truncated_layer_is_refused(world: World, registry):
    whole = gzip.compress(tar({"a": bytes(100_000)}))
    await hostile(world, registry, whole[: len(whole) // 2], "truncated")


def entry(name: str, *, kind: bytes = tarfile.REGTYPE, link: str = "", pax: dict[str, str] | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        made = tarfile.TarInfo(name)
        made.type, made.linkname, made.pax_headers = kind, link, pax or {}
        archive.addfile(made)
    return out.getvalue()


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (entry("../../escape"), "../../escape"),
        (entry("x", kind=tarfile.LNKTYPE, link="../../etc/passwd"), "etc/passwd"),
        (entry("d", kind=tarfile.DIRTYPE, pax={"SCHILY.xattr.trusted.overlay.opaque": "y"}), "trusted.overlay"),
        (b"no tar at all" * 100, "layer"),
    ],
)
async def test_a_hostile_layer_is_refused_by_name_and_cause(world: World, registry, blob, words):
    await hostile(world, registry, blob, words)


async def hostile(world: World, registry: FakeRegistry, blob: bytes, words: str) -> None:
    config = encode({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [digest(blob)]}})
    manifest = encode(
        {
            "schemaVersion": 2,
            "mediaType": spec.OCI_MANIFEST,
            "config": {"mediaType": spec.OCI_CONFIG, "digest": digest(config), "size": len(config)},
            "layers": [{"mediaType": spec.OCI_LAYER, "digest": digest(blob), "size": len(blob)}],
        }
    )
    registry.blobs.update({digest(config): config, digest(blob): blob})
    registry.put("x", "1", manifest, spec.OCI_MANIFEST)
    await refused(world, registry, InvalidParameter, words)
    assert world.partials() == {}


async def test_an_absolute_symlink_in_a_layer_does_not_lead_out(world: World, registry, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, str(outside)
        archive.addfile(link)
        inner = tarfile.TarInfo("out/file")
        inner.size = 1
        archive.addfile(inner, io.BytesIO(b"1"))
    blob = out.getvalue()
    made = make([{}])
    config = made.config.replace(made.diff_ids[0].encode(), digest(blob).encode())
    manifest = encode(
        {
            "schemaVersion": 2,
            "mediaType": spec.OCI_MANIFEST,
            "config": {"mediaType": spec.OCI_CONFIG, "digest": digest(config), "size": len(config)},
            "layers": [{"mediaType": spec.OCI_LAYER, "digest": digest(blob), "size": len(blob)}],
        }
    )
    registry.blobs.update({digest(config): config, digest(blob): blob})
    registry.put("x", "1", manifest, spec.OCI_MANIFEST)
    await refused(world, registry, InvalidParameter, "'out', which is a symbolic link")
    assert list(outside.iterdir()) == []


def with_config(made: Made, media_type: str) -> bytes:
    return made.manifest.replace(spec.OCI_CONFIG.encode(), media_type.encode())


@pytest.mark.parametrize(
    ("document", "media_type", "kind", "words"),
    [
        (b'{"schemaVersion": 1}', "application/vnd.docker.distribution.manifest.v1+json", NotSupported, "schema 1"),
        (
            with_config(make([BASE]), "application/vnd.cncf.helm.config.v1+json"),
            spec.OCI_MANIFEST,
            NotSupported,
            'Encountered remote "application/vnd.cncf.helm.config.v1+json"',
        ),
        (
            make([BASE]).manifest.replace(b"tar+gzip", b"tar+gzip+encrypted"),
            spec.OCI_MANIFEST,
            NotSupported,
            "is encrypted",
        ),
        (make([BASE], os="windows").manifest, spec.OCI_MANIFEST, NotSupported, 'operating system "windows"'),
        (make([BASE], diff_ids=[]).manifest, spec.OCI_MANIFEST, InvalidParameter, "1 layers, 0 diffIDs"),
        (b"{}", spec.OCI_MANIFEST, InvalidParameter, "schemaVersion"),
        (b"<html>", "text/html", InvalidParameter, "manifest is not valid JSON"),
    ],
)
async def test_what_is_no_image_we_can_run_is_refused_in_words(world, registry, document, media_type, kind, words):
    for made in (make([BASE]), make([BASE], os="windows"), make([BASE], diff_ids=[])):
        registry.blobs.update(made.blobs)
    registry.put("x", "1", document, media_type)
    await refused(world, registry, kind, words)


async def test_a_lying_content_type_does_not_matter(world: World, registry):
    made = make([BASE])
    registry.blobs.update(made.blobs)
    registry.put("x", "1", made.manifest, "application/json")
    assert (await fetch(world, registry)).id == made.id


async def test_a_store_that_cannot_be_written_is_reported_and_leaves_nothing(world: World, registry):
    registry.add("x", "1", make([BASE]))
    ingest = world.root / "ingest"
    ingest.rmdir()
    ingest.write_text("in the way")
    with pytest.raises((Failed, OSError), match=r"[Nn]ot a directory"):
        await fetch(world, registry)
    ingest.unlink()
    ingest.mkdir()
    assert world.held() == NOTHING


@pytest.mark.parametrize("moment", ["config", "layer", "extraction"])
async def test_a_cancelled_pull_leaves_nothing_and_can_be_repeated(world: World, registry, moment):
    made = make([BASE, {"big": bytes(50 << 20)}])
    registry.add("x", "1", made)
    reached = asyncio.Event()

    async def stop(name: str) -> None:
        if name == (made.id if moment == "config" else made.layer_digests[1]) and moment != "extraction":
            reached.set()
            await asyncio.Event().wait()

    def watch(message: dict[str, object]) -> None:
        if moment == "extraction" and message.get("status") == "Extracting":
            reached.set()

    registry.before_blob = stop
    task = asyncio.create_task(pull(world.deps, f"{registry.host}/x:1", progress=watch))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.held() == NOTHING
    registry.before_blob = None
    assert (await fetch(world, registry)).id == made.id


async def test_of_two_pulls_at_once_one_may_be_cancelled(world: World, registry):
    made = make([BASE, TOP])
    registry.add("x", "1", made)
    registry.add("x", "2", made)
    reached = asyncio.Event()

    async def stop(name: str) -> None:
        if name == made.layer_digests[0] and not reached.is_set():
            reached.set()
            await asyncio.sleep(0.05)

    registry.before_blob = stop
    first = asyncio.create_task(fetch(world, registry, "x:1"))
    await reached.wait()
    second = asyncio.create_task(fetch(world, registry, "x:2"))
    await asyncio.sleep(0.01)
    first.cancel()
    image = await second
    with pytest.raises(asyncio.CancelledError):
        await first
    assert files(world, image) == SEEN
    assert image.repo_tags == (f"{registry.host}/x:2",)


async def test_after_a_restart_the_image_is_there_and_usable(world: World, registry):
    made = make([BASE, TOP])
    registry.add("x", "1", made)
    before = await fetch(world, registry)
    held = world.held()
    world.open()
    await recover(world.deps)
    image = world.deps.store.get(f"{registry.host}/x:1")
    assert image == before
    assert files(world, image) == SEEN
    assert world.held() == held
