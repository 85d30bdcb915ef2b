"""Modules that a Go program was made from, as its linker wrote them down (Go 1.18 and later; ELF, 64 bits, little end).

    section .go.buildinfo:  "\\xff Go buildinf:"  pointer size  flags  ...  at 32: varint length, Go's version;
                            varint length, 16 bytes, lines of `dep <path> <version> <sum>`, 16 bytes
Source: Go's debug/buildinfo.
"""

import struct
from collections.abc import Callable, Iterator

from wherry.builder.export.packages.package import Package, clipped, is_plain

MAGIC = b"\xff Go buildinf:"
MAX_INFO = 4 << 20  # bytes of a section that are looked at
MAX_NAMES = 1 << 16  # bytes of the names of sections
MAX_SECTIONS = 1000
_INLINE = 2  # flag: the texts follow
_GUARD = 16  # bytes before and after the lines

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")

Read = Callable[[int, int], bytes]  # offset, size -> what there is of it


def parse_program(read: Read, *, found: str) -> Iterator[Package]:
    """Nothing for what is no such program."""
    info = _section(read, b".go.buildinfo")
    if info is None or not info.startswith(MAGIC) or len(info) < 34 or not info[15] & _INLINE:
        return
    version, at = _text(info, 32)
    lines, _ = _text(info, at)
    if version.startswith(b"go"):
        said = version[2:].decode(errors="replace").split()
        if said and is_plain(said[0]):
            yield Package(kind="golang", name="stdlib", version=said[0], found=found)
    yield from _modules(lines[_GUARD:-_GUARD].decode(errors="replace"), found)


def _modules(text: str, found: str) -> Iterator[Package]:
    """What a `=>` line puts in the place of the one before is what is there."""
    modules: list[Package] = []
    for line in text.split("\n"):
        word, *fields = line.split("\t")
        if word not in ("mod", "dep", "=>") or len(fields) < 2:
            continue
        path, version = fields[0], fields[1]
        if not is_plain(path) or not is_plain(version):
            continue
        if word == "=>" and modules:
            modules.pop()
        namespace, _, name = path.rpartition("/")
        checksum = clipped(fields[2]) if len(fields) > 2 else ""
        modules.append(
            Package(kind="golang", namespace=namespace, name=name, version=version, checksum=checksum, found=found)
        )
    yield from modules


def _section(read: Read, wanted: bytes) -> bytes | None:
    """The content of an ELF section."""
    head = read(0, _HEADER.size)
    if len(head) < _HEADER.size or not head.startswith(b"\x7fELF\x02\x01"):
        return None
    fields = _HEADER.unpack(head)
    table, size, count, names = fields[6], fields[11], fields[12], fields[13]
    if size != _SECTION.size or not names < count <= MAX_SECTIONS:
        return None
    data = read(table, size * count)
    if len(data) < size * count:
        return None
    sections = [_SECTION.unpack_from(data, size * number) for number in range(count)]
    texts = read(sections[names][4], min(sections[names][5], MAX_NAMES))
    for section in sections:
        start = section[0]
        if texts[start : start + len(wanted) + 1] == wanted + b"\0":
            return read(section[4], min(section[5], MAX_INFO))
    return None


def _text(data: bytes, at: int) -> tuple[bytes, int]:
    """A text with its length before it, and where it ends."""
    length = shift = 0
    while at < len(data) and shift < 63:
        byte = data[at]
        at += 1
        length |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return data[at : at + length], min(at + length, len(data))
    return b"", len(data)
