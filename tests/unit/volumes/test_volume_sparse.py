"""Files with holes in archives, written and read."""

import io
import os
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wherry.storage.archive import Kind, TarReader
from wherry.storage.archive_writer import TarWriter
from wherry.storage.pack import Packer, data_of, describe
from wherry.volumes import tar


def packed(path: Path, pieces: list[tuple[int, int]]) -> bytes:
    """An archive of one file, of which only `pieces` are taken for data."""
    out = io.BytesIO()
    writer = TarWriter(out)
    fd = os.open(path, os.O_RDONLY)
    entry = describe(b"dir/" + b"n" * 120, Kind.FILE, os.fstat(fd))
    entry.sparse = pieces
    writer.add_sparse(entry, fd)
    os.close(fd)
    writer.finish()
    return out.getvalue()


def unpacked(data: bytes) -> tuple[bytes, bytes]:
    reader = TarReader(iter([data]))
    entry = reader.next()
    assert entry is not None
    content = b"".join(reader.data())
    assert reader.next() is None
    return entry.name, content


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 9000), max_size=12, unique=True).map(sorted), size=st.integers(0, 9000))
def test_any_pieces_come_back_where_they_were(tmp_path: Path, cuts: list[int], size: int) -> None:
    content = bytes(1 + number % 255 for number in range(size))
    (tmp_path / "file").write_bytes(content)
    edges = [min(cut, size) for cut in cuts]
    pieces = [(start, end - start) for start, end in zip(edges[::2], edges[1::2], strict=False) if end > start]
    expected = bytearray(size)
    for start, length in pieces:
        expected[start : start + length] = content[start : start + length]
    assert unpacked(packed(tmp_path / "file", pieces)) == (b"dir/" + b"n" * 120, bytes(expected))


def test_holes_are_found_and_dense_files_are_as_they_were(tmp_path: Path) -> None:
    with (tmp_path / "holes").open("wb") as file:
        file.seek(4 << 20)
        file.write(b"x" * 4096)
        file.truncate(8 << 20)
    (tmp_path / "dense").write_bytes(b"y" * 10_000)
    (tmp_path / "empty").touch()
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(1 << 20)
    with (tmp_path / "holes").open("rb") as file:
        assert data_of(file.fileno(), 8 << 20) == [(4 << 20, 4096)]
    with (tmp_path / "dense").open("rb") as file:
        assert data_of(file.fileno(), 10_000) is None
    with (tmp_path / "hole").open("rb") as file:
        assert data_of(file.fileno(), 1 << 20) == []
    pieces: list[bytes] = []
    tar.write(tmp_path, pieces.append)
    data = b"".join(pieces)
    assert len(data) < 64 << 10
    reader = TarReader(iter([data]))
    found = {}
    while (entry := reader.next()) is not None:
        found[entry.name.rstrip(b"/")] = (entry.size, entry.sparse is not None)
    assert found == {
        b".": (0, False),
        b"./dense": (10_000, False),
        b"./empty": (0, False),
        b"./hole": (1 << 20, True),
        b"./holes": (8 << 20, True),
    }


def test_layers_are_packed_without_holes(tmp_path: Path) -> None:
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(1 << 20)
    out = io.BytesIO()
    writer = TarWriter(out)
    directory = os.open(tmp_path, os.O_RDONLY)
    Packer(writer).add(directory, b"hole", b"hole", os.stat(tmp_path / "hole"))
    os.close(directory)
    writer.finish()
    assert len(out.getvalue()) > 1 << 20
