"""Every form a layer comes in, whole, cut and damaged; and bombs."""

import bz2
import contextlib
import gzip
import hashlib
import io
import lzma
import os
import random
import zlib

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.errors import InvalidParameter, NotSupported
from wherry.storage import compression
from wherry.storage.compression import GZIP_BLOCK, Compression, Limits, compressor, decompress, detect

PLAIN = random.Random(1).randbytes(200_000) + bytes(3_000_000) + b"text " * 50_000


def zstd_frames(data: bytes) -> bytes:
    """Two frames with a skippable one between, one without content size, one with checksum."""
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"notes"
    first = zstandard.ZstdCompressor(write_checksum=True).compress(data[:1000])
    return first + skippable + zstandard.ZstdCompressor(write_content_size=False).compress(data[1000:])


FORMS = {
    "gzip": gzip.compress(PLAIN, 1),
    "gzip, many members and padding": gzip.compress(PLAIN[:70])
    + gzip.compress(b"")
    + gzip.compress(PLAIN[70:], 1)
    + bytes(700),
    "zstd": zstandard.ZstdCompressor().compress(PLAIN),
    "zstd, many frames": zstd_frames(PLAIN),
    "bzip2": bz2.compress(PLAIN, 1),
    "xz": lzma.compress(PLAIN, preset=0),
    "plain": PLAIN,
}
COMPRESSED = sorted(set(FORMS) - {"plain"})


def read_in(data: bytes, step: int):
    file = io.BytesIO(data)
    return lambda size: file.read(min(size, step))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("step", [777, 1 << 20])
def test_every_form_is_recognised_and_read_whole(form, step):
    assert b"".join(decompress(read_in(FORMS[form], step))) == PLAIN


@pytest.mark.parametrize("form", COMPRESSED)
@pytest.mark.parametrize("kept", [0.01, 0.5, 0.9, 0.99])
def test_a_cut_stream_is_called_truncated(form, kept):
    data = FORMS[form].rstrip(b"\0")
    with pytest.raises(InvalidParameter, match="blob x: truncated"):
        for _ in decompress(read_in(data[: int(len(data) * kept)], 4096), what="blob x"):
            pass


@pytest.mark.parametrize("form", ["gzip", "zstd", "bzip2", "xz"])
def test_a_cut_of_the_last_byte_is_noticed(form):
    data = zstd_frames(PLAIN) if form == "zstd" else FORMS[form]
    with pytest.raises(InvalidParameter, match="truncated"):
        for _ in decompress(read_in(data[:-1], 4096)):
            pass


@pytest.mark.parametrize("form", ["gzip", "bzip2", "xz"])
def test_a_wrong_checksum_is_noticed(form):
    data = bytearray(FORMS[form])
    data[-6 if form == "gzip" else len(data) // 2] ^= 1
    with pytest.raises(InvalidParameter, match="damaged"):
        for _ in decompress(read_in(bytes(data), 1 << 20)):
            pass


def test_a_wrong_zstd_checksum_is_noticed():
    data = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(PLAIN))
    data[-1] ^= 1
    with pytest.raises(InvalidParameter, match="damaged zstd"):
        for _ in decompress(read_in(bytes(data), 1 << 20)):
            pass


@pytest.mark.parametrize("form", ["gzip", "zstd", "bzip2"])
def test_garbage_after_the_data_is_damage(form):
    with pytest.raises(InvalidParameter, match="damaged"):
        for _ in decompress(read_in(FORMS[form] + b"garbage of some length", 1 << 20)):
            pass


def pack(kind: str, data: bytes, step: int) -> bytes:
    stream = compressor(Compression(kind))
    return b"".join([*(stream.compress(data[at : at + step]) for at in range(0, len(data), step)), stream.flush()])


@pytest.mark.parametrize("kind", ["gzip", "zstd", "none"])
def test_what_we_compress_is_read_by_others(kind):
    data = pack(kind, PLAIN, 65536)
    if kind == "gzip":
        assert gzip.decompress(data) == PLAIN
        assert data[4:8] == bytes(4)  # no time
        assert not data[3]  # no name
    elif kind == "zstd":
        assert zstandard.ZstdDecompressor().decompressobj().decompress(data) == PLAIN
    else:
        assert data == PLAIN
    assert detect(data) == kind


@pytest.mark.parametrize("kind", ["gzip", "zstd", "none"])
def test_how_the_data_was_cut_does_not_show(kind):
    assert len({pack(kind, PLAIN, step) for step in (10_007, 1 << 16, 1 << 20, (1 << 21) + 1, len(PLAIN))}) == 1


@pytest.mark.parametrize("size", [0, 1, GZIP_BLOCK - 1, GZIP_BLOCK, GZIP_BLOCK + 1, 3 * GZIP_BLOCK])
def test_gzip_of_any_length_is_whole_and_has_no_needless_members(size):
    data = pack("gzip", PLAIN[:size], 300_000)
    assert gzip.decompress(data) == PLAIN[:size]
    assert data.count(b"\x1f\x8b\x08\0\0\0\0\0") == max(1, -(-size // GZIP_BLOCK))


def words() -> bytes:
    """Something like text, and something that does not compress; the same on every machine."""
    numbers = [hashlib.sha256(str(number).encode()).digest() for number in range(40_000)]
    return b"".join(b"word %d line %d\n" % (each[0], each[1]) for each in numbers) + b"".join(numbers)


@pytest.mark.parametrize(
    ("kind", "digest"),
    [
        ("gzip", "c644b80c4c27ca6930b7bbb1c7177c873984b0f610af85461dbbd701e21d7225"),
        ("zstd", "f08fb8f4b5f2377a52848a80a02bda189511042ccad6084a590ef11573942581"),
    ],
)
def test_the_compressed_bytes_are_the_same_on_every_machine(kind, digest):
    """When this fails, the same layer has another digest than with earlier releases, and registries hold it twice."""
    assert hashlib.sha256(pack(kind, words(), 1 << 18)).hexdigest() == digest


def test_only_gzip_and_zstd_are_written():
    with pytest.raises(NotSupported, match="xz is read, not written"):
        compressor(Compression.XZ)


def by_zlib(data: bytes) -> bytes:
    source = compression.Source(b"", read_in(data, 5000))
    return b"".join(compression.members(source, compression.ZlibDecompressor, "archive", Compression.GZIP))


@pytest.mark.parametrize("form", [form for form in COMPRESSED if form.startswith("gzip")])
def test_the_zlib_fallback_reads_what_isal_reads(form):
    assert by_zlib(FORMS[form]) == PLAIN


def test_the_zlib_fallback_notices_damage():
    with pytest.raises(InvalidParameter, match="truncated"):
        by_zlib(FORMS["gzip"][:-3])
    damaged = bytearray(FORMS["gzip"])
    damaged[-6] ^= 1
    with pytest.raises(InvalidParameter, match="damaged"):
        by_zlib(bytes(damaged))


@pytest.mark.parametrize("form", ["gzip", "zstd", "bzip2", "xz"])
def test_a_bomb_comes_in_bounded_pieces(form):
    size = 200 << 20
    data = {
        "gzip": lambda: _stream(zlib.compressobj(9, zlib.DEFLATED, 31), size),
        "zstd": lambda: _stream(zstandard.ZstdCompressor(level=1).compressobj(), size),
        "bzip2": lambda: _stream(bz2.BZ2Compressor(1), size),
        "xz": lambda: _stream(lzma.LZMACompressor(preset=0), size),
    }[form]()
    total = largest = 0
    for piece in decompress(read_in(data, 1 << 20)):
        total += len(piece)
        largest = max(largest, len(piece))
    assert total == size
    assert largest <= 2 * compression.PIECE


def _stream(coder, size: int) -> bytes:
    block = bytes(1 << 20)
    return b"".join([*(coder.compress(block) for _ in range(size >> 20)), coder.flush()])


def test_limits_stop_a_ratio_beyond_the_floor_only():
    limits = Limits(max_ratio=100, ratio_floor=1000)
    limits.check_size(1000, 1)
    limits.check_size(100_000, 1000)
    with pytest.raises(InvalidParameter, match="compression bomb: 10 bytes became more than 1001"):
        limits.check_size(1001, 10)


def test_limits_stop_the_sheer_size():
    with pytest.raises(InvalidParameter, match="more than 5000 bytes"):
        list(compression.pieces([bytes(3000)] * 2, Limits(max_bytes=5000), lambda: 6000))


def test_a_zstd_window_beyond_our_memory_is_refused():
    descriptor, window = b"\0", bytes([(28 - 10) << 3])  # RFC 8878, 3.1.1.1.2: 2^28 bytes
    raw_block = (1 | 100 << 3).to_bytes(3, "little") + os.urandom(100)
    blob = b"\x28\xb5\x2f\xfd" + descriptor + window + raw_block
    with pytest.raises(InvalidParameter, match="damaged zstd"):
        list(decompress(read_in(blob, 1 << 20)))


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/x-tar",
        "application/octet-stream",
    ],
)
def test_media_types_of_layers_are_accepted(media_type):
    compression.check_media_type(media_type)


@pytest.mark.parametrize(
    ("media_type", "why"),
    [
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "encrypted"),
        ("application/vnd.cncf.helm.chart", "not a tar"),
    ],
)
def test_other_media_types_are_refused_by_name(media_type, why):
    with pytest.raises(NotSupported, match=why):
        compression.check_media_type(media_type)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"BZh9", b"\xfd7zXZ\x00", b"\x50\x2a\x4d\x18"]), st.binary()
)
def test_no_garbage_makes_the_decoders_fail_otherwise(magic, rest):
    with contextlib.suppress(InvalidParameter):
        list(decompress(read_in(magic + rest, 64)))
