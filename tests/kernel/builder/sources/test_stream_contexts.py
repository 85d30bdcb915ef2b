"""Contexts that come as one stream."""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import stat
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zstandard

from wherry.builder.sources.tarball import is_archive, open_file, receive
from wherry.errors import InvalidParameter
from wherry.storage.compression import Limits


def tar(*entries: tuple[str, bytes], **more: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in entries:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.uid, entry.gid, entry.mode = len(content), 1_700_000_000, 1000, 1000, 0o640
            for key, value in more.items():
                setattr(entry, key, value)
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


async def chunks(data: bytes, size: int = 777) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


FILES = tar(("Dockerfile", b"FROM scratch\n"), ("dir/.wh.file", b"x" * 5000))


@pytest.mark.parametrize(
    "data",
    [
        FILES,
        gzip.compress(FILES),
        bz2.compress(FILES),
        lzma.compress(FILES),
        zstandard.ZstdCompressor().compress(FILES),
    ],
    ids=["tar", "gzip", "bzip2", "xz", "zstd"],
)
async def test_an_archive_in_any_compression(tmp_path: Path, data: bytes) -> None:
    told: list[int] = []
    found = await receive(chunks(data), tmp_path, transferred=told.append)
    assert not found.alone
    assert found.directory.path == tmp_path
    assert (tmp_path / "Dockerfile").read_bytes() == b"FROM scratch\n"
    assert (tmp_path / "dir/.wh.file").read_bytes() == b"x" * 5000, "it is a name like any other"
    status = (tmp_path / "Dockerfile").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (0, 0, 0o640)
    assert status.st_mtime == 1_700_000_000
    assert told[-1] == len(data)


@pytest.mark.parametrize("text", [b"FROM scratch\n", b"F", b"# syntax\n" * 1000])
async def test_a_dockerfile_alone(tmp_path: Path, text: bytes) -> None:
    found = await receive(chunks(text), tmp_path)
    assert found.alone
    assert [path.name for path in tmp_path.iterdir()] == ["Dockerfile"]
    assert (tmp_path / "Dockerfile").read_bytes() == text
    assert (tmp_path / "Dockerfile").stat().st_mtime == 0


async def test_an_archive_of_nothing_is_an_empty_context(tmp_path: Path) -> None:
    found = await receive(chunks(tar()), tmp_path)
    assert not found.alone
    assert not list(tmp_path.iterdir())


async def test_nothing_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match="build context is empty"):
        await receive(chunks(b""), tmp_path)


async def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match="neither a tar archive nor a Dockerfile"):
        await receive(chunks(b"x" * (17 << 20), 1 << 20), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("up", [(), ("../up",)])
async def test_entries_that_lead_out_stay_inside(tmp_path: Path, up: tuple[str, ...]) -> None:
    root = tmp_path / "context"
    root.mkdir()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "../.."
        archive.addfile(link)
        for name in ("/absolute", "link/through", *up):
            entry = tarfile.TarInfo(name)
            entry.size = 1
            archive.addfile(entry, io.BytesIO(b"x"))
    with pytest.raises(InvalidParameter, match=r"'\.\./up': its name leads out") if up else contextlib.nullcontext():
        await receive(chunks(out.getvalue()), root)
    assert sorted(path.name for path in root.iterdir()) == ["absolute", "link", "through"]
    assert [path.name for path in tmp_path.iterdir()] == ["context"]


@pytest.mark.parametrize("data", [FILES[:700], gzip.compress(FILES)[:-20], b"\x1f\x8b\x08" + b"x" * 600])
async def test_a_damaged_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(InvalidParameter):
        await receive(chunks(data), tmp_path)


async def test_an_archive_that_is_too_large_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match="more than 10000 bytes"):
        await receive(chunks(tar(("big", b"x" * 50_000))), tmp_path, limits=Limits(max_bytes=10_000))


async def test_a_client_that_goes_away_in_the_middle_is_told_as_such(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield FILES[:600]
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        await receive(broken(), tmp_path)


async def test_a_file_on_disk(tmp_path: Path) -> None:
    (tmp_path / "into").mkdir()
    (tmp_path / "file").write_bytes(gzip.compress(FILES))
    assert not (await open_file(tmp_path / "file", tmp_path / "into")).alone
    assert (tmp_path / "into/Dockerfile").exists()


async def test_setuid_bits_and_fifos_come_as_they_are(tmp_path: Path) -> None:
    await receive(chunks(tar(("su", b"x"), mode=0o4755)), tmp_path)
    assert stat.S_IMODE(os.stat(tmp_path / "su").st_mode) == 0o4755


def test_text_is_no_archive() -> None:
    assert is_archive(FILES[:512])
    assert is_archive(bytes(512))
    assert not is_archive(b"FROM x\n" * 100)
    assert not is_archive(FILES[:511])
    assert not is_archive(b"a" * 148 + b"+0x1f_ \0" + b"a" * 356)
