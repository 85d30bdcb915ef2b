"""What holds a volume's content: a directory, or a file with a file system in it. Blocking.

    <own>/_data     the directory; where the file system is mounted
    <own>/_image    the file

A volume with a limit is a directory counted as a project, where the file system keeps projects to their limits (xfs and
ext4 mounted with `prjquota`); else a sparse file with ext4 in it, as large as the limit. `own` is the directory of a
volume, of one in the making, or of a snapshot.
"""

import fcntl
import logging
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from wherry.errors import Failed
from wherry.kernel import quota
from wherry.kernel.files import closing, copy_data
from wherry.storage.tree import measure
from wherry.volumes.copy_up import copy_tree
from wherry.volumes.record import Volume

log = logging.getLogger(__name__)

FIRST_PROJECT = 0x57480000  # away from the small numbers that others count from
_PATIENCE = 300  # s for making a file system
_FREEZE, _THAW = 0xC0045877, 0xC0045878
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def choose(root: Path, volume: Volume, project: int) -> Volume:
    """`volume`, a new one, with what will hold it to its limit; `project` is a number nobody else has."""
    if not volume.limit:
        return volume
    root.mkdir(mode=0o701, parents=True, exist_ok=True)
    with closing(os.open(root, _DIRECTORY)) as directory:
        limited = quota.enforces_projects(directory)
    return replace(volume, project=project) if limited else replace(volume, image=True)


def make(own: Path, volume: Volume, *, filled: bool = True) -> None:
    """The directories of a new volume, and its empty file system. Idempotent. Raises OSError, Failed.

    Only root may look below `own`'s parent, whatever the modes inside a volume are. Without `filled` the file is left
    out: a copy will be put there.
    """
    own.parent.mkdir(mode=0o701, parents=True, exist_ok=True)
    own.mkdir(mode=0o701, exist_ok=True)
    data = own / "_data"
    data.mkdir(exist_ok=True)
    data.chmod(0o755)
    if volume.project:
        with closing(os.open(data, _DIRECTORY)) as directory:
            quota.set_project(directory, volume.project)
            quota.limit_project(directory, volume.project, volume.limit)
    if volume.image and filled and not (own / "_image").exists():
        _make_image(own / "_image", volume.limit)


def _make_image(path: Path, size: int) -> None:
    """A sparse file of `size` bytes with an empty ext4 in it; it appears whole or not at all."""
    unfinished = path.with_name("_image.new")
    with open(unfinished, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.truncate(size)
    lazy = "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"
    try:
        _run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", lazy, str(unfinished))
        _run("debugfs", "-w", "-R", "rmdir lost+found", str(unfinished))  # databases want an empty directory
    except Failed:
        unfinished.unlink()
        raise
    os.replace(unfinished, path)


def _run(*command: str) -> None:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin"
    try:
        subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_PATIENCE,
            check=True,
            env={"PATH": path, "LC_ALL": "C"},
        )
    except FileNotFoundError as exc:
        raise Failed(
            f"a volume with a size needs {command[0]} here, since the file system below has no project quotas: "
            "install e2fsprogs"
        ) from exc
    except subprocess.TimeoutExpired as exc:
        raise Failed(f"{command[0]} did not end within {_PATIENCE} seconds") from exc
    except subprocess.CalledProcessError as exc:
        raise Failed(f"{command[0]} failed: {exc.stdout.decode(errors='replace').strip()[-500:]}") from exc


def copy(source: Path, target: Path, volume: Volume) -> None:
    """Bring the content of `source` to `target`, which `make` has made without it; both are of the kind of `volume`.

    Blocks are shared where the file system can. A file system that is mounted stands still meanwhile. Raises OSError.
    """
    if not volume.image:
        copy_content(source / "_data", target / "_data")
        return
    with (
        _frozen(source / "_data"),
        open(source / "_image", "rb", buffering=0) as reader,
        open(target / "_image", "xb", buffering=0) as writer,
    ):
        os.fchmod(writer.fileno(), 0o600)
        copy_data(reader.fileno(), writer.fileno(), os.fstat(reader.fileno()).st_size)


def copy_content(source: Path, target: Path) -> None:
    """All that is in the directory `source`, into the empty directory `target`."""
    with closing(os.open(source, _DIRECTORY)) as origin, closing(os.open(target, _DIRECTORY)) as copied:
        copy_tree(origin, copied)


@contextmanager
def _frozen(data: Path) -> Iterator[None]:
    """The file system mounted at `data` is whole on its device, and nothing is written to it; if there is one."""
    if not os.path.ismount(data):
        yield
        return
    with closing(os.open(data, _DIRECTORY)) as directory:
        fcntl.ioctl(directory, _FREEZE, 0)
        try:
            yield
        finally:
            fcntl.ioctl(directory, _THAW, 0)


def thaw(own: Path) -> None:
    """Let go on what a killed daemon left frozen."""
    data = own / "_data"
    if os.path.ismount(data):
        with closing(os.open(data, _DIRECTORY)) as directory, suppress(OSError):
            fcntl.ioctl(directory, _THAW, 0)
            log.warning("%s was left frozen by a copy that a crash cut short", data)


def size(own: Path, volume: Volume) -> int:
    """Bytes of all files, those with several names counted once; of a file system, what it takes of its file.

    0 for what is not there.
    """
    try:
        if volume.image:
            return (own / "_image").stat().st_blocks * 512
        return measure(own / "_data").bytes
    except FileNotFoundError:
        return 0
