"""Looks through a tree for what tells of packages. Blocking; reads beneath an open directory, bounded."""

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from wherry.builder.export.packages.apk import parse_installed
from wherry.builder.export.packages.deb import parse_status
from wherry.builder.export.packages.golang import parse_program
from wherry.builder.export.packages.node import parse_manifest
from wherry.builder.export.packages.package import Package, os_release
from wherry.builder.export.packages.python import parse_metadata
from wherry.builder.export.packages.rpm import read_database
from wherry.kernel.files import closing, openat2
from wherry.storage.tree import Listing, walk

MAX_DATABASE = 256 << 20  # bytes of a package manager's database
MAX_METADATA = 4 << 20  # bytes of what tells of one package
MAX_PACKAGES = 200_000
MAX_FILES = 5_000_000  # entries looked at
MIN_PROGRAM = 64 << 10  # bytes: no Go program is smaller

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_DEBIAN, _DEBIAN_EACH = "var/lib/dpkg/status", b"var/lib/dpkg/status.d"
_ALPINE = ("lib/apk/db/installed", "usr/lib/apk/db/installed")
_RPM = ("var/lib/rpm/rpmdb.sqlite", "usr/lib/sysimage/rpm/rpmdb.sqlite")
_NOT_READ = {
    "var/lib/rpm/Packages": "an RPM database in Berkeley DB form",
    "var/lib/rpm/Packages.db": "an RPM database in ndb form",
    "usr/lib/sysimage/rpm/Packages.db": "an RPM database in ndb form",
    "var/lib/pacman/local": "a pacman database",
    "nix/store": "a Nix store",
    "var/db/pkg": "a Portage database",
}


@dataclass(slots=True)
class Scan:
    distribution: str = ""  # "debian-12"
    system: str = ""  # "Debian GNU/Linux 12 (bookworm)"
    packages: list[Package] = field(default_factory=list)  # sorted, each once
    not_covered: list[str] = field(default_factory=list)  # in words


def scan(root: int) -> Scan:
    """Everything that is known of below the directory `root`."""
    found = Scan()
    release = os_release((_read(root, "etc/os-release", MAX_METADATA) or b"").decode(errors="replace"))
    name, version = release.get("ID", "linux"), release.get("VERSION_ID", "")
    found.distribution = f"{name}-{version}" if version else name if "ID" in release else ""
    found.system = release.get("PRETTY_NAME", "")
    packages: set[Package] = set()
    for package in _packages(root, name, found.not_covered):
        packages.add(package)
        if len(packages) >= MAX_PACKAGES:
            found.not_covered.append(f"more than {MAX_PACKAGES} packages")
            break
    found.packages = sorted(packages)
    return found


def _packages(root: int, system: str, not_covered: list[str]) -> Iterator[Package]:
    if (data := _read(root, _DEBIAN, MAX_DATABASE)) is not None:
        yield from parse_status(data.decode(errors="replace"), namespace=system, found=f"/{_DEBIAN}")
    for path in _ALPINE:
        if (data := _read(root, path, MAX_DATABASE)) is not None:
            yield from parse_installed(data.decode(errors="replace"), namespace=system, found=f"/{path}")
    for path in _RPM:
        if (fd := _open(root, path)) is not None:
            with closing(fd):
                yield from read_database(f"/proc/self/fd/{fd}", namespace=system, found=f"/{path}")
    for path, what in _NOT_READ.items():
        if _exists(root, path):
            not_covered.append(f"{what} (/{path})")
    seen = 0
    for listing in walk(root):
        seen += len(listing.entries)
        if seen > MAX_FILES:
            not_covered.append(f"files beyond the first {MAX_FILES}")
            return
        yield from _in_directory(listing, system)


def _in_directory(listing: Listing, system: str) -> Iterator[Package]:
    directory = listing.path
    base = directory.rpartition(b"/")[2]
    for name, found in listing.entries:
        if not stat.S_ISREG(found.st_mode):
            continue
        shown = os.fsdecode(b"/" + directory + b"/" + name if directory else b"/" + name)
        shown = shown.encode(errors="replace").decode()
        package: Package | None = None
        if _is_python(base, name):
            data = _read(listing.fd, name, MAX_METADATA) or b""
            package = parse_metadata(data.decode(errors="replace"), found=shown)
        elif name == b"package.json" and _is_node(directory):
            package = parse_manifest(_read(listing.fd, name, MAX_METADATA) or b"", found=shown)
        elif directory == _DEBIAN_EACH and not name.endswith(b".md5sums"):
            data = _read(listing.fd, name, MAX_METADATA) or b""
            yield from parse_status(data.decode(errors="replace"), namespace=system, found=shown)
        elif found.st_mode & 0o111 and found.st_size >= MIN_PROGRAM:
            yield from _program(listing.fd, name, shown)
        if package is not None:
            yield package


def _is_python(directory: bytes, name: bytes) -> bool:
    if name == b"METADATA":
        return directory.endswith(b".dist-info")
    return (name == b"PKG-INFO" and directory.endswith(b".egg-info")) or name.endswith(b".egg-info")


def _is_node(directory: bytes) -> bool:
    """`node_modules/x` and `node_modules/@scope/x`, not what is inside of them."""
    parts = directory.split(b"/")
    if len(parts) > 2 and parts[-2].startswith(b"@"):
        parts.pop(-2)
    return len(parts) > 1 and parts[-2] == b"node_modules"


def _program(directory: int, name: bytes, shown: str) -> Iterator[Package]:
    fd = _open(directory, name)
    if fd is None:
        return
    with closing(fd):
        read: Callable[[int, int], bytes] = lambda offset, size: os.pread(fd, size, offset)  # noqa: E731
        if read(0, 4) == b"\x7fELF":
            yield from parse_program(read, found=shown)


def _open(directory: int, path: str | bytes) -> int | None:
    """A regular file below `directory`, links followed within it; None for anything else."""
    try:
        fd = openat2(directory, path, _READ)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


def _read(directory: int, path: str | bytes, limit: int) -> bytes | None:
    fd = _open(directory, path)
    if fd is None:
        return None
    with closing(fd), open(fd, "rb", closefd=False) as file:
        data = file.read(limit + 1)
    return data if len(data) <= limit else None


def _exists(directory: int, path: str) -> bool:
    try:
        os.close(openat2(directory, path, os.O_PATH | os.O_CLOEXEC))
    except OSError:
        return False
    return True
