"""Looking into images as containers would see them."""

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imagekit.world import World
from wherry.images.record import Image
from wherry.kernel.mount import open_detached


@contextmanager
def opened(world: World, image: Image) -> Iterator[int]:
    """A directory fd of the image's root, mounted nowhere."""
    fd = open_detached(world.snapshots.view(image.chain))
    try:
        yield fd
    finally:
        os.close(fd)


def files(world: World, image: Image) -> dict[str, bytes | None]:
    """Every path with its content; None for directories; links as `-> target`."""
    found: dict[str, bytes | None] = {}
    with opened(world, image) as root:
        for directory, names, plain, fd in os.fwalk(".", dir_fd=root):
            for name in (*names, *plain):
                path = os.path.normpath(os.path.join(directory, name))
                mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode):
                    found[path] = None
                elif stat.S_ISLNK(mode):
                    found[path] = b"-> " + os.fsencode(os.readlink(name, dir_fd=fd))
                else:
                    with open(os.open(name, os.O_RDONLY, dir_fd=fd), "rb") as file:
                        found[path] = file.read()
    return found


def compare(world: World, image: Image, archive: Path) -> str:
    """What GNU tar finds different between the archive and the image; "" when nothing."""
    with opened(world, image) as root:
        done = subprocess.run(
            ["tar", "--compare", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-f", archive],
            cwd=f"/proc/self/fd/{root}",
            pass_fds=(root,),
            capture_output=True,
            text=True,
            check=False,
        )
    return done.stdout + done.stderr


def unpack(archive: Path, folder: Path) -> None:
    """Extract by GNU tar: Pythons before 3.11.4 have no safe way of their own."""
    subprocess.run(["tar", "-xf", archive, "-C", folder], check=True)
