"""RPM's packages: rpmdb.sqlite, whose table Packages has one header for each (rpm's lib/header.c).

    header   count of index entries, bytes of data (big-endian 32 bits);  entries: tag, type, offset, count;  data

Older databases (Berkeley DB, ndb) are not read.
"""

import sqlite3
import struct
from collections.abc import Iterator

from wherry.builder.export.packages.package import Package, clipped, is_plain

MAX_PACKAGES = 50_000
MAX_HEADER = 32 << 20  # bytes
MAX_WORK = 20_000_000  # instructions of SQLite's machine: a hostile database may hold a query without an end

NAME, VERSION, RELEASE, EPOCH, LICENSE, ARCHITECTURE, SOURCE, VENDOR = 1000, 1001, 1002, 1003, 1014, 1022, 1044, 1011
_WANTED = frozenset({NAME, VERSION, RELEASE, EPOCH, LICENSE, ARCHITECTURE, SOURCE, VENDOR})
_INT32, _STRING, _I18N = 4, 6, 9
_ENTRY = struct.Struct(">IIiI")


def read_database(path: str, *, namespace: str, found: str, work: int = MAX_WORK) -> Iterator[Package]:
    """All packages of the file `path`, which nobody writes to. Nothing of one that is damaged."""
    steps = 0

    def too_much() -> bool:
        nonlocal steps
        steps += 1
        return steps > work // 10_000

    try:
        database = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
    except sqlite3.Error:
        return
    try:
        database.execute("PRAGMA trusted_schema=OFF")
        database.set_progress_handler(too_much, 10_000)
        for (blob,) in database.execute("SELECT blob FROM Packages LIMIT ?", (MAX_PACKAGES,)):
            package = parse_header(blob, namespace=namespace, found=found) if isinstance(blob, bytes) else None
            if package is not None:
                yield package
    except sqlite3.Error:
        return
    finally:
        database.close()


def parse_header(data: bytes, *, namespace: str, found: str) -> Package | None:
    fields = _fields(data)
    name, version = fields.get(NAME, ""), fields.get(VERSION, "")
    if not is_plain(name) or not is_plain(version) or name == "gpg-pubkey":
        return None
    epoch, release = fields.get(EPOCH, ""), fields.get(RELEASE, "")
    full = f"{version}-{release}" if is_plain(release) else version
    return Package(
        kind="rpm",
        namespace=namespace,
        name=name,
        version=f"{epoch}:{full}" if epoch not in ("", "0") else full,
        architecture=clipped(fields.get(ARCHITECTURE, "")),
        license=clipped(fields.get(LICENSE, "")),
        source=clipped(fields.get(SOURCE, "")),
        supplier=clipped(fields.get(VENDOR, "")),
        found=found,
    )


def _fields(data: bytes) -> dict[int, str]:
    """The first value of each wanted tag."""
    if not 8 <= len(data) <= MAX_HEADER:
        return {}
    count, size = struct.unpack_from(">II", data)
    start = 8 + 16 * count
    if start + size > len(data):
        return {}
    values = memoryview(data)[start : start + size]
    found: dict[int, str] = {}
    for number in range(count):
        tag, kind, offset, _ = _ENTRY.unpack_from(data, 8 + 16 * number)
        if tag not in _WANTED or not 0 <= offset < size:
            continue
        if kind in (_STRING, _I18N):
            found[tag] = bytes(values[offset : offset + 4096]).partition(b"\0")[0].decode(errors="replace")
        elif kind == _INT32 and offset + 4 <= size:
            found[tag] = str(int.from_bytes(values[offset : offset + 4], "big"))
    return found
