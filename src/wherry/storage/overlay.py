"""Snapshots on overlayfs: what a layer changed is a directory, the kernel stacks them.

<root>/layers/<hex>/{diff,parent}
<root>/rw/<key>/{diff,work,parent,init}   init: a container's placeholders, right below `diff`
<root>/empty/                        below everything: overlay wants at least one lower directory
"""

import contextlib
import os
from pathlib import Path

from wherry.digest import ChainID
from wherry.errors import NotSupported
from wherry.kernel import mount
from wherry.kernel.files import closing
from wherry.kernel.mount import Mount
from wherry.storage.content import Trace, no_trace
from wherry.storage.extract import Whiteouts
from wherry.storage.placeholders import make_placeholders
from wherry.storage.snapshot import DirectoryStore, copy_root_attributes
from wherry.storage.tree import remove_tree

# An upper directory must hold whole files at their real places, whatever the kernel's defaults: it becomes a layer.
_SWITCHES = {
    "metacopy": "metacopy=off",
    "redirect_dir": "redirect_dir=off",
    "index": "index=off",
    "xino_auto": "xino=off",
}


class OverlaySnapshotter(DirectoryStore):
    """Raises NotSupported when the kernel, or the file system of `root`, has no overlay."""

    name = "overlay2"
    whiteouts = Whiteouts.OVERLAY

    def __init__(self, root: Path, *, trace: Trace = no_trace) -> None:
        super().__init__(root, trace=trace)
        self._empty = root / "empty"
        self._empty.mkdir(exist_ok=True)
        self._empty.chmod(0o755)
        try:
            probe(root)
        except OSError as exc:
            raise NotSupported(f"overlay does not work on {root}: {exc.strerror}") from exc
        known = mount.overlay_parameters()
        self._options = tuple(option for switch, option in _SWITCHES.items() if switch in known)

    def _fill(self, directory: Path, parent: ChainID | None, *, container: bool) -> None:
        diff = directory / "diff"
        diff.mkdir()
        (directory / "work").mkdir(mode=0o700)
        below = self.stack(parent)
        copy_root_attributes(below[0] if below else self._empty, diff)
        if container:
            self._make_init(directory / "init", parent)
            copy_root_attributes(directory / "init", diff)

    def _make_init(self, init: Path, parent: ChainID | None) -> None:
        init.mkdir()
        with (
            closing(mount.open_detached(self.view(parent))) as below,
            closing(os.open(init, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as target,
        ):
            make_placeholders(target, below)
            found = os.fstat(below)
            os.fchown(target, found.st_uid, found.st_gid)
            os.fchmod(target, found.st_mode & 0o7777)
            os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))

    def _strip(self, directory: Path) -> None:
        for name in ("work", "init"):
            with contextlib.suppress(FileNotFoundError):
                remove_tree(directory / name)

    def _lowers(self, chain: ChainID | None) -> list[str]:
        return [os.fspath(path) for path in (*self.stack(chain), self._empty)]

    def _lowers_of_key(self, key: str) -> list[str]:
        init = self.key_path(key) / "init"
        lowers = self._lowers(self.parent_of_key(key))
        return [os.fspath(init), *lowers] if init.is_dir() else lowers

    def mounts(self, key: str) -> list[Mount]:
        upper = self.upper(key)
        work = upper.with_name("work")
        return [mount.overlay_mount(self._lowers_of_key(key), os.fspath(upper), os.fspath(work), self._options)]

    def peek(self, key: str) -> list[Mount]:
        return self._read_only([os.fspath(self.upper(key)), *self._lowers_of_key(key)])

    def base(self, key: str) -> list[Mount]:
        return self._read_only(self._lowers_of_key(key))

    def placeholders(self, key: str) -> frozenset[bytes]:
        return frozenset()  # they are below

    def view(self, chain: ChainID | None) -> list[Mount]:
        return self._read_only(self._lowers(chain))

    def _read_only(self, lowers: list[str]) -> list[Mount]:
        if lowers == [os.fspath(self._empty)]:  # overlay wants two
            return [Mount(type="bind", source=lowers[0], options=("bind", "ro"))]
        return [mount.overlay_mount(lowers, options=("ro", *self._options))]


def probe(root: Path) -> None:
    """Make a small overlay on the file system of `root`, attached nowhere. Raises the OSError that says why not."""
    directory = root / f".probe-{os.urandom(4).hex()}"
    directory.mkdir()
    try:
        lower, upper, work = (directory / name for name in ("lower", "upper", "work"))
        for path in (lower, upper, work):
            path.mkdir()
        os.close(mount.open_detached([mount.overlay_mount([os.fspath(lower)], os.fspath(upper), os.fspath(work))]))
    finally:
        remove_tree(directory)
