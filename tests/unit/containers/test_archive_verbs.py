import io
import os
import stat
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from containerkit.world import World, open_files
from wherry.containers.content import archive
from wherry.containers.content.rootfs import Place, absolute, open_parent
from wherry.containers.record import Container, MountPoint
from wherry.errors import Forbidden, InvalidParameter, NotFound
from wherry.spec.engine import HostConfig


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    (tmp_path / "engine").mkdir()
    world = World(tmp_path / "engine")
    yield world
    await world.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Files of the test's own root, which the container shares: it runs as this process."""
    root = tmp_path / "files"
    (root / "dir" / "sub").mkdir(parents=True)
    (root / "dir" / "file").write_text("content")
    (root / "dir" / "sub" / "deep").write_text("deep")
    (root / "link").symlink_to("dir/file")
    (root / "to-dir").symlink_to("dir")
    return root


@pytest.fixture
async def container(world: World) -> Container:
    container = await world.add("web")
    container.state.pid = os.getpid()
    return container


def tar(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as writer:
        for name, data in files.items():
            info = tarfile.TarInfo(name.replace("__", "/"))
            info.size = len(data)
            writer.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 1000):
        yield data[start : start + 1000]


async def got(world: World, path: str) -> dict[str, bytes | None]:
    """Names in the archive of `path`; content of files, None for the rest."""
    _, stream = await archive.get(world.deps, "web", path)
    data = b"".join([piece async for piece in stream])
    with tarfile.open(fileobj=io.BytesIO(data)) as reader:
        found: dict[str, bytes | None] = {}
        for member in reader:
            content = reader.extractfile(member) if member.isfile() else None
            found[member.name + ("/" if member.isdir() else "")] = content.read() if content else None
        return found


@pytest.mark.usefixtures("container")
async def test_the_stat_of_a_path_is_as_docker_s(world: World, root: Path) -> None:
    (root / "dir" / "file").chmod(0o4750)
    os.utime(root / "dir" / "file", ns=(0, 1_700_000_000_500_000_000))
    assert await archive.stat_path(world.deps, "web", f"{root}/dir/file") == {
        "name": "file",
        "size": 7,
        "mode": 1 << 23 | 0o750,
        "mtime": "2023-11-14T22:13:20.5Z",
        "linkTarget": "",
    }
    (root / "dir").chmod(0o1777)
    directory = await archive.stat_path(world.deps, "web", f"{root}/dir/")
    assert (directory["name"], directory["mode"]) == ("dir", 1 << 31 | 1 << 20 | 0o777)
    link = await archive.stat_path(world.deps, "web", f"{root}/link")
    assert (link["name"], link["mode"], link["linkTarget"]) == ("link", 1 << 27 | 0o777, f"{root}/dir/file")
    behind = await archive.stat_path(world.deps, "web", f"{root}/to-dir/.")
    assert (behind["name"], behind["mode"]) == (".", 1 << 31 | 1 << 20 | 0o777)


@pytest.mark.parametrize(
    ("mode", "go"),
    [
        (stat.S_IFREG | 0o644, 0o644),
        (stat.S_IFREG | 0o2755, 1 << 22 | 0o755),
        (stat.S_IFIFO | 0o600, 1 << 25 | 0o600),
        (stat.S_IFSOCK | 0o600, 1 << 24 | 0o600),
        (stat.S_IFBLK | 0o600, 1 << 26 | 0o600),
        (stat.S_IFCHR | 0o600, 1 << 26 | 1 << 21 | 0o600),
    ],
)
def test_modes_are_written_as_go_writes_them(mode: int, go: int) -> None:
    assert archive.go_mode(mode) == go


@pytest.mark.usefixtures("container")
async def test_missing_paths_are_named(world: World, root: Path) -> None:
    for path in (f"{root}/nosuch", f"{root}/nosuch/deeper", f"{root}/link/x"):
        with pytest.raises(NotFound, match=f"Could not find the file {path} in container web"):
            await archive.stat_path(world.deps, "web", path)
        with pytest.raises(NotFound, match="Could not find the file"):
            await archive.get(world.deps, "web", path)
        with pytest.raises(NotFound, match="Could not find the file"):
            await archive.put(world.deps, "web", path, chunks(tar(x=b"")))
    with pytest.raises(InvalidParameter, match="'path' cannot be empty"):
        await archive.stat_path(world.deps, "web", "")
    with pytest.raises(NotFound, match="No such container: nosuch"):
        await archive.stat_path(world.deps, "nosuch", "/")


@pytest.mark.usefixtures("container")
async def test_what_comes_out_is_named_after_the_last_part_of_the_path(world: World, root: Path) -> None:
    assert await got(world, f"{root}/dir/file") == {"file": b"content"}
    assert await got(world, f"{root}/dir") == {
        "dir/": None,
        "dir/file": b"content",
        "dir/sub/": None,
        "dir/sub/deep": b"deep",
    }
    assert set(await got(world, f"{root}/to-dir/.")) == {"./", "./file", "./sub/", "./sub/deep"}
    assert await got(world, f"{root}/link") == {"link": None}
    assert world.actions() == ["archive-path"] * 4


@pytest.mark.usefixtures("container")
async def test_a_reader_that_gives_up_ends_the_packing(world: World, root: Path) -> None:
    (root / "large").write_bytes(os.urandom(8 << 20))
    before = open_files("pipe:")
    _, stream = await archive.get(world.deps, "web", f"{root}/large")
    async for _ in stream:
        break
    await stream.aclose()  # type: ignore[attr-defined]
    assert open_files("pipe:") == before
    assert open_files(str(root)) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")
@pytest.mark.usefixtures("container")
async def test_files_go_in_and_come_out_again(world: World, root: Path) -> None:
    await archive.put(
        world.deps, "web", f"{root}/to-dir", chunks(tar(new=b"n" * 5000, file=b"changed", sub__more=b"m"))
    )
    assert (root / "dir" / "new").read_bytes() == b"n" * 5000
    assert (root / "dir" / "file").read_text() == "changed"
    assert (root / "dir" / "sub" / "more").read_text() == "m"
    assert (root / "to-dir").is_symlink()
    assert world.actions() == ["extract-to-dir"]


@pytest.mark.usefixtures("container")
async def test_files_go_into_directories_only(world: World, root: Path) -> None:
    with pytest.raises(InvalidParameter, match="extraction point is not a directory"):
        await archive.put(world.deps, "web", f"{root}/dir/file", chunks(tar(x=b"")))
    with pytest.raises(InvalidParameter):
        await archive.put(world.deps, "web", f"{root}/dir", chunks(b"this is no archive at all" * 100))


async def test_nothing_goes_where_it_is_read_only(world: World, root: Path) -> None:
    container = await world.add("web", host=HostConfig(readonly_rootfs=True))
    container.state.pid = os.getpid()
    with pytest.raises(Forbidden, match="container rootfs is marked read-only"):
        await archive.put(world.deps, "web", f"{root}/dir", chunks(tar(x=b"")))
    container.mounts = (MountPoint(type="bind", source="/x", destination=f"{root}/dir", rw=False),)
    with pytest.raises(Forbidden, match="mounted volume is marked read-only"):
        await archive.put(world.deps, "web", f"{root}/dir/sub", chunks(tar(x=b"")))
    assert sorted(os.listdir(root / "dir")) == ["file", "sub"]


@pytest.mark.parametrize(
    ("path", "clean"),
    [
        ("/a/b", "/a/b"),
        ("a", "/a"),
        ("/a/../../..", "/"),
        ("/a//b/", "/a/b"),
        ("/a/.", "/a/."),
        (".", "/."),
        ("/", "/"),
        ("//a", "/a"),
    ],
)
def test_paths_are_read_from_the_root(path: str, clean: str) -> None:
    assert absolute(path) == clean


@contextmanager
def place(root: Path, path: str) -> Iterator[Place]:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield Place(fd, path, None)
    finally:
        os.close(fd)


def test_no_link_leads_out_of_the_root(tmp_path: Path, root: Path) -> None:
    (tmp_path / "secret").mkdir()
    (root / "out").symlink_to("../secret")
    (root / "abs").symlink_to(tmp_path / "secret")
    missing = NotFound("missing")
    for path in ("/out/.", "/abs/.", "/out/x", "/../secret/x"):
        with place(root, path) as found, pytest.raises(NotFound), open_parent(found, missing):
            pass
    data = io.BytesIO(tar(evil=b"x"))
    for path in ("/out", "/abs"):
        with place(root, path) as found, pytest.raises(NotFound):
            archive.extract(found, data.read, missing)
    assert os.listdir(tmp_path / "secret") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")
def test_members_of_an_archive_cannot_leave_the_root(tmp_path: Path, root: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as writer:
        link = tarfile.TarInfo("trap")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        writer.addfile(link)
        through = tarfile.TarInfo("trap/evil")
        through.size = 1
        writer.addfile(through, io.BytesIO(b"x"))
    buffer.seek(0)
    with place(root, "/dir") as found, pytest.raises(InvalidParameter):
        archive.extract(found, buffer.read, NotFound("missing"))
    assert not (tmp_path / "evil").exists()
    for name in ("../../evil", "a/../../evil"):
        data = io.BytesIO(tar(**{name: b"x"}))
        with place(root, "/dir") as found, pytest.raises(InvalidParameter, match="leads out"):
            archive.extract(found, data.read, NotFound("missing"))


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")
def test_hard_links_stay_within_the_directory_they_are_put_into(root: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as writer:
        first = tarfile.TarInfo("one")
        first.size = 1
        writer.addfile(first, io.BytesIO(b"1"))
        link = tarfile.TarInfo("two")
        link.type, link.linkname = tarfile.LNKTYPE, "one"
        writer.addfile(link)
    buffer.seek(0)
    with place(root, "/dir/.") as found:
        archive.extract(found, buffer.read, NotFound("missing"))
    assert (root / "dir" / "one").stat().st_ino == (root / "dir" / "two").stat().st_ino
    assert not (root / "one").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")
def test_a_directory_is_not_replaced_by_a_file_when_that_is_forbidden(root: Path) -> None:
    with place(root, "/dir") as found, pytest.raises(InvalidParameter):
        archive.extract(found, io.BytesIO(tar(sub=b"x")).read, NotFound("missing"), replace_kinds=False)
    assert (root / "dir" / "sub").is_dir()
