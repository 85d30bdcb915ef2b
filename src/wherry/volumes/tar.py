"""A volume's content as a tar, out and in: owners, modes, times, xattrs, hard links, device nodes, holes. Blocking.

What comes in is hostile: it is extracted by a confined process, as layers are (storage/diff.py).
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from wherry.errors import Failed, InvalidParameter
from wherry.kernel.files import closing
from wherry.storage.archive_writer import TarWriter
from wherry.storage.compression import Limits
from wherry.storage.diff import apply_layer
from wherry.storage.pack import Packer
from wherry.storage.tree import walk

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def write(directory: Path, out: Callable[[bytes], object]) -> None:
    """All of `directory`, itself first as `./`, in a fixed order. Raises Failed; InvalidParameter for a path that no
    archive can hold."""
    with closing(os.open(directory, _DIRECTORY)) as root:
        writer = TarWriter(out, subsecond=True)
        packer = Packer(writer, sparse=True)
        packer.add(root, b".", b"./", os.fstat(root))
        for listing in walk(root):
            prefix = b"./" + listing.path + b"/" if listing.path else b"./"
            for base, found in listing.entries:
                packer.add(listing.fd, base, prefix + base, found)
        writer.finish()


def read(stream: BinaryIO, directory: Path, *, limited: bool) -> None:
    """Extract `stream`, compressed or not, into the empty `directory`. Raises as `apply_layer`.

    `limited`: the file system stops it at the volume's own limit; else some room is left free for others.
    """
    limits = Limits(reserve=0) if limited else Limits()
    try:
        apply_layer(stream, snapshot=directory, whiteouts=None, limits=limits)
    except (Failed, InvalidParameter) as exc:
        if limited and ("No space left" in exc.message or "quota" in exc.message):
            entry = exc.message.partition(": ")[0].removeprefix("cannot extract ")
            raise Failed(f"the archive does not fit into the volume's size: it was full at {entry}") from exc
        raise type(exc)(exc.message.replace("layer", "archive")) from exc
