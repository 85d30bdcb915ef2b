"""The tar reader against GNU tar's and Python's archives, against damage, and against nonsense."""

import contextlib
import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.errors import InvalidParameter
from wherry.storage.archive import EXTENDED_MAX, Entry, Kind, TarReader, normalize, parse_pax, show
from wherry.storage.archive_writer import header


def read(data: bytes, step: int = 1 << 16) -> list[tuple[Entry, bytes]]:
    chunks = (data[at : at + step] for at in range(0, len(data), step))
    reader = TarReader(chunks)
    return [(entry, b"".join(reader.data())) for entry in reader]


def block(name: bytes = b"f", kind: bytes = b"0", size: bytes = b"00000000000", **fields: bytes) -> bytes:
    """A header written field by field; the checksum is right."""
    text = bytearray(512)
    layout = {"mode": (100, 8), "uid": (108, 8), "gid": (116, 8), "mtime": (136, 12), "link": (157, 100)}
    layout |= {"magic": (257, 8), "major": (329, 8), "minor": (337, 8), "prefix": (345, 155), "tail": (386, 114)}
    text[0 : len(name)] = name
    text[124 : 124 + len(size)] = size
    text[156:157] = kind
    fields.setdefault("magic", b"ustar\x0000")
    for key, value in fields.items():
        at, width = layout[key]
        assert len(value) <= width
        text[at : at + len(value)] = value
    return checksummed(text)


def checksummed(text: bytearray) -> bytes:
    text[148:156] = b" " * 8
    text[148:156] = b"%06o\0 " % sum(text)
    return bytes(text)


def pax(records: bytes, kind: bytes = b"x") -> bytes:
    return block(b"pax", kind, b"%011o" % len(records)) + records + bytes(-len(records) % 512)


def record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    size = len(body) + len(str(len(body) + len(str(len(body)))))
    return b"%d" % size + body


END = bytes(1024)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    deep = root / ("d" * 90) / ("e" * 90) / ("f" * 90)
    deep.mkdir(parents=True)
    (deep / "long").write_text("long name")
    (root / "file").write_bytes(b"content")
    (root / "empty").touch()
    os.symlink("t" * 150, root / "symlink")
    os.link(root / "file", root / "hard")
    os.mkfifo(root / "pipe")
    (root / "ünï").write_text("x")
    os.utime(root / "file", ns=(1, 1_234_567_890_123_456_789))
    with open(root / "sparse", "wb") as file:
        for at in range(10):
            file.seek(at * 300_000)
            file.write(b"data%d" % at)
        file.truncate(5_000_000)
    return root


@pytest.mark.parametrize("form", ["gnu", "pax", "posix", "oldgnu"])
@pytest.mark.parametrize("sparse", ["", "0.0", "0.1", "1.0"])
@pytest.mark.parametrize("step", [100, 1 << 20])
def test_what_gnu_tar_writes_is_read(tree, tmp_path, form, sparse, step):
    options = ["--sparse", f"--sparse-version={sparse}"] if sparse else []
    archive = tmp_path / "a.tar"
    subprocess.run(["tar", f"--format={form}", *options, "-cf", archive, "-C", tree, "."], check=True)
    found = {normalize(entry.name): (entry, data) for entry, data in read(archive.read_bytes(), step)}

    for path in [tree, *tree.rglob("*")]:
        name = os.fsencode(path.relative_to(tree)).removeprefix(b".")
        entry, data = found.pop(name)
        status = path.lstat()
        assert (entry.uid, entry.gid, entry.mode) == (status.st_uid, status.st_gid, status.st_mode & 0o7777)
        assert entry.mtime // 10**9 == status.st_mtime_ns // 10**9
        if form in ("pax", "posix"):
            assert entry.mtime == status.st_mtime_ns
        if path.is_symlink():
            assert (entry.kind, entry.link) == (Kind.SYMLINK, os.fsencode(os.readlink(path)))
        elif path.is_dir():
            assert entry.kind is Kind.DIRECTORY
        elif path.is_fifo():
            assert entry.kind is Kind.FIFO
        elif entry.kind is Kind.HARDLINK:
            assert (tree / os.fsdecode(entry.link)).samefile(path)
        else:
            assert data == path.read_bytes()
            assert entry.size == status.st_size
            if path.name == "sparse" and sparse:
                assert entry.sparse is not None
                assert entry.stored < entry.size
    assert not found


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_python_writes_is_read(form):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for kind, name in ((tarfile.CHRTYPE, "c"), (tarfile.BLKTYPE, "b"), (tarfile.REGTYPE, "f")):
            info = tarfile.TarInfo(f"dir/{name}")
            info.type, info.devmajor, info.devminor = kind, 7, 200
            info.uid, info.mode, info.mtime = 1000, 0o4755, 1_700_000_000
            tar.addfile(info)
    (char, _), (blk, _), (file, _) = read(out.getvalue())
    assert (char.kind, char.major, char.minor) == (Kind.CHAR, 7, 200)
    assert (blk.kind, blk.major, blk.minor) == (Kind.BLOCK, 7, 200)
    assert (file.kind, file.uid, file.mode, file.mtime) == (Kind.FILE, 1000, 0o4755, 1_700_000_000 * 10**9)


def test_numbers_in_base_256_are_read():
    uid = b"\x80" + (3_000_000_000).to_bytes(7, "big")
    mtime = (-5).to_bytes(12, "big", signed=True)
    size = b"\x80" + (0).to_bytes(11, "big")
    ((entry, _),) = read(block(uid=uid, mtime=mtime, size=size) + END)
    assert (entry.uid, entry.mtime, entry.size) == (3_000_000_000, -5 * 10**9, 0)


def test_the_prefix_counts_in_ustar_and_not_in_gnu():
    ((ustar, _),) = read(block(prefix=b"dir/sub") + END)
    ((gnu, _),) = read(block(prefix=b"12345", magic=b"ustar  \0") + END)
    assert ustar.name == b"dir/sub/f"
    assert gnu.name == b"f"


def test_pax_records_override_the_header():
    records = b"".join(
        [
            record(b"path", b"p" * 300),
            record(b"uid", b"70000000"),
            record(b"mtime", b"-1.5"),
            record(b"size", b"3"),
            record(b"SCHILY.xattr.user.a", b"b\0=\nc"),
            record(b"comment", b"ignored"),
        ]
    )
    ((entry, data),) = read(pax(records) + block() + b"abc".ljust(512, b"\0") + END)
    assert (entry.name, entry.uid, entry.mtime) == (b"p" * 300, 70_000_000, -1_500_000_000)
    assert (data, entry.xattrs) == (b"abc", {b"user.a": b"b\0=\nc"})


def test_pax_records_concern_the_next_entry_only():
    first, second = read(pax(record(b"path", b"x")) + block() + block(b"y") + END)
    assert (first[0].name, second[0].name) == (b"x", b"y")


def test_global_pax_records_concern_all_that_follow_and_give_way_to_local_ones():
    shared = pax(record(b"uid", b"5") + record(b"gid", b"6"), b"g")
    first, second = read(shared + block() + pax(record(b"uid", b"7")) + block() + END)
    assert [(e.uid, e.gid) for e, _ in (first, second)] == [(5, 6), (7, 6)]


def test_an_empty_pax_record_takes_the_override_back():
    ((entry, _),) = read(pax(record(b"path", b"")) + block(b"name") + END)
    assert entry.name == b"name"


def test_a_name_that_ends_with_a_slash_is_a_directory_in_old_archives():
    ((entry, data),) = read(block(b"d/", b"\0", b"00000000003") + b"abc".ljust(512, b"\0") + END)
    assert (entry.kind, entry.size, data) == (Kind.DIRECTORY, 0, b"abc")


def test_unread_content_is_skipped():
    content = b"z" * 1000 + bytes(24)
    reader = TarReader([block(size=b"%011o" % 1000) + content + block(b"next") + END])
    assert [entry.name for entry in reader] == [b"f", b"next"]


def test_content_read_in_part_is_skipped_to_its_end():
    reader = TarReader([block(size=b"%011o" % 1000) + b"a" * 300, b"b" * 724 + block(b"next") + END])
    reader.next()
    next(reader.data())
    assert reader.next().name == b"next"


def test_an_archive_may_end_without_its_zero_blocks():
    assert len(read(block())) == 1
    assert read(b"") == []


def test_what_stands_behind_the_end_is_read_and_ignored():
    seen = []

    def chunks():
        for chunk in (block(), END, b"garbage" * 1000):
            seen.append(chunk)
            yield chunk

    assert len(list(TarReader(chunks()))) == 1
    assert len(seen) == 3


def test_the_old_signed_checksum_is_accepted():
    text = bytearray(block(b"\xff" * 20))
    text[148:156] = b" " * 8
    text[148:156] = b"%06o\0 " % sum(byte - 256 if byte > 127 else byte for byte in text)
    ((entry, _),) = read(bytes(text) + END)
    assert entry.name == b"\xff" * 20


def test_contents_has_a_limit():
    reader = TarReader([block(size=b"%011o" % 1000) + bytes(1024) + END])
    reader.next()
    with pytest.raises(InvalidParameter, match="'f': 1000 bytes; at most 999"):
        reader.contents(999)


HOSTILE = {
    "not a tar archive": (b"x" * 1024, "wrong checksum.*no tar archive"),
    "wrong checksum": (b"y" + block()[1:] + END, "'y': its header is damaged"),
    "negative size": (block(size=b"\xff" * 12) + END, "its size is -1 bytes"),
    "size beyond 8 EiB": (block(size=b"\x80" + (1 << 63).to_bytes(11, "big")) + END, "its size is 9223372036854775808"),
    "pax size beyond 8 EiB": (
        pax(record(b"size", b"9223372036854775808")) + block(),
        "its size is 9223372036854775808",
    ),
    "pax size negative": (pax(record(b"size", b"-1")) + block(), "size is '-1', no number"),
    "size of letters": (block(size=b"12ab") + END, "its size is '12ab', no number"),
    "size with 8": (block(size=b"00000000008") + END, "its size is '00000000008', no number"),
    "mode of letters": (block(mode=b"rwxr-x") + END, "its mode is 'rwxr-x'"),
    "uid -1": (block(uid=b"\xff" * 8) + END, "its owner -1:0"),
    "uid of chown's no change": (pax(record(b"uid", b"4294967295")) + block(), "its owner 4294967295:0"),
    "device number": (block(kind=b"3", major=b"7777777") + END, "device number 2097151:0"),
    "unknown type": (block(kind=b"Z") + END, "type 'Z' are not supported"),
    "multi-volume": (block(kind=b"M") + END, "type 'M' are not supported"),
    "symlink to nothing": (block(kind=b"2") + END, "link without target"),
    "hard link to nothing": (block(kind=b"1") + END, "link without target"),
    "NUL in a pax name": (pax(record(b"path", b"a\0b")) + block(), "NUL byte"),
    "NUL in a pax link": (pax(record(b"linkpath", b"a\0b")) + block(kind=b"2"), "NUL byte"),
    "pax header of a GiB": (block(kind=b"x", size=b"10000000000"), f"at most {EXTENDED_MAX}"),
    "long name of a GiB": (block(kind=b"L", size=b"10000000000"), f"at most {EXTENDED_MAX}"),
    "pax record too long": (pax(b"99 path=x\n") + block(), "damaged pax header"),
    "pax record too short": (pax(b"3 path=x\n") + block(), "damaged pax header"),
    "pax record without newline": (pax(b"8 path=x") + block(), "damaged pax header"),
    "pax record without key": (pax(b"5 =x\n") + block(), "damaged pax header"),
    "pax record without number": (pax(b"path=x\n") + block(), "damaged pax header"),
    "pax time of letters": (pax(record(b"mtime", b"now")) + block(), "mtime is 'now', no time"),
    "pax time of the heat death": (pax(record(b"mtime", b"9" * 40)) + block(), "no time"),
    "pax header at the end": (pax(record(b"path", b"x")) + END, "ends after an extended header"),
    "pax header cut": (pax(record(b"path", b"x"))[:520], "middle of an extended header"),
    "header cut": (block()[:100], "middle of a header"),
    "content cut": (block(size=b"00000001000") + b"x" * 100, "'f': truncated"),
    "content cut at a block": (block(size=b"00000002000") + b"x" * 512, "'f': truncated"),
    "padding cut": (block(size=b"00000000001") + b"x" * 511, "'f': truncated"),
    "lone zero block": (block() + bytes(512) + block(), "single zero block"),
    "many global records": (
        b"".join(pax(record(b"SCHILY.xattr.user.%d" % n, b""), b"g") for n in range(300)) + block(),
        "more than 256 records",
    ),
    "sparse without size": (pax(record(b"GNU.sparse.map", b"0,1")) + block(), "without its real size"),
    "sparse map of letters": (
        pax(record(b"GNU.sparse.realsize", b"9") + record(b"GNU.sparse.map", b"0,x")) + block(),
        "something else than numbers",
    ),
    "sparse map beyond its size": (
        pax(record(b"GNU.sparse.realsize", b"2") + record(b"GNU.sparse.map", b"1,4"))
        + block(size=b"00000000004")
        + bytes(512),
        "beyond its size",
    ),
    "sparse map out of order": (
        pax(record(b"GNU.sparse.realsize", b"99") + record(b"GNU.sparse.map", b"50,2,10,2"))
        + block(size=b"00000000004")
        + bytes(512),
        "out of order",
    ),
    "sparse map not of its content": (
        pax(record(b"GNU.sparse.realsize", b"99") + record(b"GNU.sparse.map", b"0,9"))
        + block(size=b"00000000004")
        + bytes(512),
        "does not match its size",
    ),
    "sparse map with a huge count": (
        pax(record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.realsize", b"9"))
        + block(size=b"00000001000")
        + b"999999999\n".ljust(512, b"\0"),
        "more than 131072 pieces",
    ),
    "sparse map cut": (
        pax(record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.realsize", b"9"))
        + block(size=b"00000001000")
        + b"9\n".ljust(512, b"0"),
        "sparse map is incomplete",
    ),
    "old sparse map negative": (
        block(kind=b"S", magic=b"ustar  \0", tail=b"\xff" * 12 + b"00000000001\0"),
        "out of order|does not match",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("step", [512, 1 << 20])
def test_a_hostile_archive_is_refused_with_its_cause(case, step):
    data, cause = HOSTILE[case]
    with pytest.raises(InvalidParameter, match=cause):
        read(data, step)


def test_an_endless_chain_of_headers_is_stopped():
    reader = TarReader([pax(record(b"comment", b"x"))] * 100, max_headers=50)
    with pytest.raises(InvalidParameter, match="more than 50 entries"):
        reader.next()


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"a/b", b"a/b"),
        (b"./a//b/", b"a/b"),
        (b"/etc/passwd", b"etc/passwd"),
        (b"a/../b", b"b"),
        (b"a/./b/..", b"a"),
        (b"./", b""),
        (b"/", b""),
        (b"", b""),
        (b"..a/b..", b"..a/b.."),
    ],
)
def test_names_become_paths_below_the_root(name, path):
    assert normalize(name) == path


@pytest.mark.parametrize("name", [b"..", b"../etc", b"/../etc", b"a/../../b", b"./.."])
def test_names_that_lead_out_are_refused(name):
    with pytest.raises(InvalidParameter, match=r"leads out of the archive's root by '\.\.'"):
        normalize(name)


def test_names_longer_than_a_path_are_refused():
    normalize(b"a" * 4095)
    with pytest.raises(InvalidParameter, match="longer than 4095"):
        normalize(b"a" * 4096)


def test_names_are_shown_printable_and_short():
    assert show(b"a\xff\n\x1b") == "'a\\\\xff\\n\\x1b'"
    assert len(show(b"x" * 100_000)) < 160


names = st.binary(min_size=1, max_size=600).filter(lambda n: b"\0" not in n and not n.endswith(b"/"))


@settings(max_examples=150, deadline=None)
@given(
    name=names,
    link=names,
    uid=st.integers(0, 2**32 - 2),
    mtime=st.integers(-(2**62), 2**62),
    size=st.integers(0, 2**63 - 1),
    xattrs=st.dictionaries(
        st.binary(min_size=1, max_size=50).filter(lambda key: b"=" not in key and b"\0" not in key),
        st.binary(max_size=600),
        max_size=4,
    ),
)
def test_what_we_write_we_read(name, link, uid, mtime, size, xattrs):
    wrote = Entry(name, Kind.FILE)
    wrote.uid, wrote.mtime, wrote.size, wrote.xattrs = uid, mtime, size, xattrs
    read_back = TarReader([header(wrote, subsecond=True)]).next()
    assert (read_back.name, read_back.uid, read_back.mtime, read_back.size) == (name, uid, mtime, size)
    assert read_back.xattrs == xattrs
    wrote = Entry(name, Kind.SYMLINK)
    wrote.link = link
    read_back = TarReader([header(wrote)]).next()
    assert (read_back.name, read_back.kind, read_back.link) == (name, Kind.SYMLINK, link)


SEED = (
    pax(record(b"path", b"long") + record(b"size", b"5") + record(b"SCHILY.xattr.user.x", b"y"))
    + block()
    + b"hello".ljust(512, b"\0")
    + block(b"LongLink", b"L", b"00000000400")
    + (b"n" * 256).ljust(512, b"\0")
    + block(b"d/", b"5")
    + pax(record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.realsize", b"9"))
    + block(size=b"00000001000")
    + b"1\n0\n1\n".ljust(512, b"\0")
    + b"x"
    + END
)


@settings(max_examples=500, deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.binary(min_size=1, max_size=12)), max_size=6),
    mended=st.booleans(),
    cut=st.integers(0, len(SEED)),
)
def test_no_damage_makes_the_reader_fail_otherwise_than_by_refusal(edits, mended, cut):
    data = bytearray(SEED)
    for at, piece in edits:
        data[at : at + len(piece)] = piece
    data = data[: len(SEED) - cut] if cut % 3 == 0 else data
    if mended:  # let the damage get past the checksum
        for at in range(0, len(data) - 511, 512):
            if data[at + 257 : at + 262] == b"ustar":
                data[at : at + 512] = checksummed(data[at : at + 512])
    reader = TarReader([bytes(data)])
    with contextlib.suppress(InvalidParameter):
        for entry in reader:
            assert 0 <= entry.size < 1 << 63
            assert entry.sparse is None or sum(length for _, length in entry.sparse) <= len(data)
            for _ in reader.stored():
                pass


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_make_the_pax_parser_fail_otherwise(body):
    with contextlib.suppress(InvalidParameter):
        for key, value in parse_pax(body, "archive").items():
            assert key
            assert isinstance(value, bytes)


def test_an_archive_may_end_where_its_last_content_ends():
    [(entry, data)] = read(block(size=b"00000000003") + b"abc")
    assert (entry.size, data) == (3, b"abc")
