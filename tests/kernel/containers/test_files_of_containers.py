"""cp, diff, export and commit on a real overlay, without a process: the container is stopped."""

import io
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from containerkit.world import World
from harness.descriptors import descriptors
from wherry.containers.content import archive
from wherry.containers.content.changes import changes
from wherry.containers.content.commit import commit
from wherry.containers.record import Container, MountPoint, Status
from wherry.distribution.config import RegistryConfig
from wherry.errors import NotFound
from wherry.events import Events
from wherry.images import deps as images
from wherry.images.making.import_ import import_
from wherry.spec.engine import ContainerConfig
from wherry.state import State
from wherry.storage.content import ContentStore
from wherry.storage.overlay import OverlaySnapshotter

pytestmark = pytest.mark.kernel


def tar(entries: dict[str, bytes | str | None]) -> bytes:
    """Bytes are a file, a str is a link's target, None a directory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as writer:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.mode = 0o755
            if content is None:
                info.type = tarfile.DIRTYPE
                writer.addfile(info)
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                writer.addfile(info)
            else:
                info.size = len(content)
                writer.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def unpacked(stream: AsyncIterator[bytes]) -> dict[str, bytes | None]:
    data = b"".join([piece async for piece in stream])
    with tarfile.open(fileobj=io.BytesIO(data)) as reader:
        return {each.name: content(reader, each) for each in reader}


def content(reader: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | None:
    file = reader.extractfile(member) if member.isfile() else None
    return file.read() if file else None


BASE: dict[str, bytes | str | None] = {
    "etc": None,
    "etc/passwd": b"root:x:0:0::/:/bin/sh\nweb:x:33:44::/:/bin/sh\n",
    "data": None,
    "data/kept": b"kept",
    "data/gone": b"gone",
    "data/changed": b"old",
    "alias": "/data/../data",
}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    root = tmp_path / "engine"
    root.mkdir()
    snapshots = OverlaySnapshotter(root)
    deps = images.build(
        state=State(None),
        events=Events(),
        content=ContentStore(root),
        snapshots=snapshots,
        registry=RegistryConfig(),
        work=root / "work",
    )
    await import_(deps, chunks(tar(BASE)), repository="base", progress=lambda message: None)
    world = World(root, real_images=deps, real_snapshots=snapshots)
    yield world
    await world.close()
    snapshots.close()


@pytest.fixture
async def container(world: World) -> Container:
    container = await world.add(
        "box",
        status=Status.EXITED,
        image="base",
        args=["sh", "-c", "true"],
        config=ContainerConfig(image="base", hostname="box", env=["A=1"], cmd=["sh"], labels={"l": "v"}, user="web"),
    )
    world.snapshots.prepare(container.id, world.real_images.store.get("base").chain)
    return container


async def put(world: World, path: str, entries: dict[str, bytes | str | None], **options: bool) -> None:
    await archive.put(world.deps, "box", path, chunks(tar(entries)), **options)


@pytest.mark.usefixtures("container")
async def test_files_put_into_a_stopped_container_are_its_changes(world: World) -> None:
    assert await changes(world.deps, "box") is None
    fds, before = descriptors(), Path("/proc/self/mountinfo").read_text()
    await put(world, "/data", {"changed": b"new", "added": b"x"})
    await put(world, "/", {"top": b"t"})
    assert await changes(world.deps, "box") == [
        {"Path": "/data", "Kind": 0},
        {"Path": "/data/added", "Kind": 1},
        {"Path": "/data/changed", "Kind": 0},
        {"Path": "/top", "Kind": 1},
    ]
    _, stream = await archive.get(world.deps, "box", "/data")
    assert await unpacked(stream) == {
        "data": None,
        "data/added": b"x",
        "data/changed": b"new",
        "data/gone": b"gone",
        "data/kept": b"kept",
    }
    assert Path("/proc/self/mountinfo").read_text() == before
    assert not descriptors() - fds


@pytest.mark.usefixtures("container")
async def test_links_with_two_dots_are_followed_within_the_root(world: World) -> None:
    await put(world, "/alias", {"through": b"x"})
    _, stream = await archive.get(world.deps, "box", "/alias/through")
    assert await unpacked(stream) == {"through": b"x"}
    assert (await archive.stat_path(world.deps, "box", "/data/through"))["size"] == 1
    link = await archive.stat_path(world.deps, "box", "/alias")
    assert (link["mode"], link["linkTarget"]) == (1 << 27 | 0o777, "/data")


@pytest.mark.usefixtures("container")
async def test_files_can_be_given_to_the_container_s_user(world: World) -> None:
    await put(world, "/data", {"mine": b"x"}, copy_uid_gid=True)
    info = (world.snapshots.upper(world.deps.store.resolve("box").id) / "data" / "mine").stat()
    assert (info.st_uid, info.st_gid) == (33, 44)


async def test_a_path_below_a_volume_is_looked_up_in_the_volume(world: World, container: Container) -> None:
    source = await world.deps.volumes.ensure("vol")
    (source / "file").write_text("in the volume")
    container.mounts = (MountPoint(type="volume", source=str(source), name="vol", destination="/data"),)
    _, stream = await archive.get(world.deps, "box", "/data/file")
    assert await unpacked(stream) == {"file": b"in the volume"}
    await put(world, "/data", {"new": b"n"})
    assert (source / "new").read_bytes() == b"n"
    assert await changes(world.deps, "box") is None
    with pytest.raises(NotFound, match="Could not find the file /data/kept in container box"):
        await archive.stat_path(world.deps, "box", "/data/kept")


@pytest.mark.usefixtures("container")
async def test_the_whole_tree_is_exported(world: World) -> None:
    await put(world, "/data", {"added": b"x"})
    found = await unpacked(await archive.export(world.deps, "box"))
    assert set(found) == {*BASE, "data/added"}
    assert found["data/added"] == b"x"


async def test_a_committed_image_has_the_changes_and_the_configuration(world: World, container: Container) -> None:
    await put(world, "/data", {"added": b"x"})
    image_id = await commit(
        world.deps, "box", repo="derived", tag="1", comment="why", author="me", changes=["ENV B=2", "CMD ls"]
    )
    store = world.real_images.store
    image = store.get("derived:1")
    assert image.id == image_id
    base = store.get("base")
    assert image.diff_ids[:-1] == base.diff_ids
    config = image.config.config
    assert sorted(config.env) == ["A=1", "B=2"]
    assert (config.labels, config.user, config.hostname) == ({"l": "v"}, "web", "")
    assert config.cmd == ["/bin/sh", "-c", "ls"]
    last = image.config.history[-1]
    assert (last.comment, last.author, last.created_by) == ("why", "me", "sh -c true")
    assert world.actions()[-1] == "commit"
    assert world.last_attributes()["imageID"] == image_id
    assert world.last_attributes()["imageRef"] == "derived:1"

    second = await world.add("second", status=Status.CREATED, image="derived:1")
    world.snapshots.prepare(second.id, image.chain)
    _, stream = await archive.get(world.deps, "second", "/data/added")
    assert await unpacked(stream) == {"added": b"x"}


async def test_committing_a_container_that_changed_nothing_adds_no_layer(world: World, container: Container) -> None:
    await commit(world.deps, "box", repo="same")
    store = world.real_images.store
    assert store.get("same").diff_ids == store.get("base").diff_ids
