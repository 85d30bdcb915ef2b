"""ADD of archives: recognised by what they are, unpacked where they belong, with the times they may have."""

import bz2
import gzip
import io
import lzma
import os
import tarfile

import pytest
import zstandard

from wherry.errors import InvalidParameter

TIME = 1_500_000_000
PACKERS = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}


def member(name, content=None, **fields):
    info = tarfile.TarInfo(name)
    info.mtime, info.uid, info.gid = TIME, os.getuid(), os.getgid()
    if content is not None:
        info.size = len(content)
    elif name.endswith("/"):
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    for key, value in fields.items():
        setattr(info, key, value)
    return info, io.BytesIO(content or b"")


def tar(*members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in members:
            archive.addfile(info, content)
    return out.getvalue()


ARCHIVE = tar(
    member("./"),
    member("t/", mode=0o750),
    member("t/f", b"file", mode=0o640),
    member("t/s", type=tarfile.SYMTYPE, linkname="f"),
    member("t/h", type=tarfile.LNKTYPE, linkname="t/f"),
    member("implied/deep/g", b"g"),
)
FILES = {"t/f": "file", "t/s": "-> f", "t/h": "file", "implied/deep/g": "g"}


@pytest.fixture
def add(place):
    def add_file(content, target="/w", *, name="archive", **options):
        (place.source.path / name).write_bytes(content)
        os.utime(place.source.path / name, (TIME, TIME))
        place.copy(name, target, unpack=True, **options)
        return place.target.see()

    return add_file


@pytest.mark.parametrize("packer", PACKERS)
def test_an_archive_becomes_its_files_whatever_packed_it(add, packer):
    assert add(PACKERS[packer](ARCHIVE)) == {f"w/{name}": content for name, content in FILES.items()}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        bytes(10240),
        gzip.compress(b"text"),
        gzip.compress(b""),
        b"\x1f\x8b\x08 no gzip",
        ARCHIVE[:300],
        b"PK\x03\x04" + bytes(600),
    ],
    ids=["empty", "text", "tar without entries", "packed text", "packed nothing", "damaged", "half a header", "zip"],
)
def test_what_is_no_archive_is_copied_as_it_is(add, place, content):
    add(content, "/w/")
    assert (place.target.path / "w/archive").read_bytes() == content


def test_without_unpacking_an_archive_is_a_file(place):
    (place.source.path / "a.tar").write_bytes(ARCHIVE)
    place.copy("a.tar", "/w")
    assert (place.target.path / "w").read_bytes() == ARCHIVE


def test_a_link_to_an_archive_is_unpacked_where_it_is_followed(place):
    (place.source.path / "a.tar").write_bytes(ARCHIVE)
    (place.source.path / "link").symlink_to("a.tar")
    place.copy("link", "/w", unpack=True)
    assert place.target.see()["w/t/f"] == "file"


def test_archives_in_a_directory_are_not_unpacked(place):
    (place.source.path / "d").mkdir()
    (place.source.path / "d/a.tar").write_bytes(ARCHIVE)
    place.copy("d", "/w", unpack=True)
    assert os.listdir(place.target.path / "w") == ["a.tar"]


def test_archives_and_files_found_by_one_wildcard_go_to_one_place(place):
    (place.source.path / "a.tar").write_bytes(ARCHIVE)
    (place.source.path / "a.txt").write_text("text")
    place.copy("a.*", "/w/", unpack=True)
    assert place.target.see() == {"w/a.txt": "text"} | {f"w/{name}": content for name, content in FILES.items()}


def test_what_is_there_gives_way_and_directories_are_merged(add, place):
    place.target.fill({"w/t/old": "old", "w/t/f/in/the/way": "x", "w/t/s": "file"})
    found = add(ARCHIVE)
    assert found == {f"w/{name}": content for name, content in (FILES | {"t/old": "old"}).items()}


def test_links_on_the_way_are_followed_within_the_directory_unpacked_to(add, place):
    place.target.fill({"w/t": "-> ../../../real", "w/a": "-> /made/here", "w/real/": "", "outside": "-> /w"})
    found = add(
        tar(member("t/f", b"file"), member("a/g", b"g"), member("t/h", type=tarfile.LNKTYPE, linkname="a/g")),
        "/outside",
    )
    assert found == {
        "w/t": "-> ../../../real",
        "w/a": "-> /made/here",
        "w/real/f": "file",
        "w/made/here/g": "g",
        "w/real/h": "g",
        "outside": "-> /w",
    }


def test_a_target_that_is_no_directory_is_refused(add, place):
    place.target.fill({"w": "file"})
    with pytest.raises(InvalidParameter, match=r"^mkdir /w: not a directory$"):
        add(ARCHIVE)


def test_devices_and_fifos_are_left_out(add):
    found = add(
        tar(
            member("fifo", type=tarfile.FIFOTYPE),
            member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
            member("disk", type=tarfile.BLKTYPE, devmajor=8),
            member("f", b"f"),
        )
    )
    assert found == {"w/f": "f"}


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", ".wh.deleted", "d/.wh..wh..opq", ".wh.d/f"])
def test_names_that_lead_out_or_mean_deletions_are_refused(add, place, name):
    with pytest.raises(InvalidParameter):
        add(tar(member("fine", b"x"), member(name, b"x")))
    assert "outside" not in os.listdir(place.target.path)


def test_a_link_out_of_the_archive_leads_nowhere_else(add, place, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    add(tar(member("l", type=tarfile.SYMTYPE, linkname=str(outside)), member("l/g", b"x")))
    assert not list(outside.iterdir())
    assert (place.target.path / f"w{outside}/g").read_text() == "x"


def test_links_in_a_circle_are_an_error(add):
    with pytest.raises(InvalidParameter, match="too many symbolic links"):
        add(tar(member("l", type=tarfile.SYMTYPE, linkname="l/x"), member("l/g", b"x")))


def test_a_damaged_archive_is_named(add):
    with pytest.raises(InvalidParameter, match=r"archive /my\.tgz.*truncated"):
        add(gzip.compress(ARCHIVE + tar(member("big", os.urandom(200_000))))[:-100_000], name="my.tgz")


def test_times_are_the_archives_but_none_is_younger_than_the_epoch(add, place):
    place.target.fill({"w/exist/": ""})
    archive = tar(member("t/"), member("t/f", b"f"), member("exist/new/g", b"g"))
    add(archive, epoch=(TIME - 5) * 10**9)
    for name in ("w", "w/exist", "w/exist/new", "w/exist/new/g", "w/t", "w/t/f"):
        assert place.target.status(name).st_mtime == TIME - 5, name
    add(archive, "/again", epoch=(TIME + 5) * 10**9)
    assert [place.target.status(f"again/{name}").st_mtime for name in ("t", "t/f")] == [TIME, TIME]
    assert place.target.status("again/exist/new").st_mtime == TIME + 5  # made, because the archive implies it


def test_an_archive_that_is_not_read_to_its_end_leaves_no_descriptor(add):
    from harness.descriptors import descriptors

    before = descriptors()
    add(ARCHIVE)
    add(b"text", "/x/")
    with pytest.raises(InvalidParameter):
        add(tar(member("../x", b"x")))
    assert descriptors() == before
