"""The client of `POST /build`: it has sent its directory and its credentials along, and can be asked for nothing."""

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from wherry.aio import settle
from wherry.api.build_query import host_of
from wherry.builder.client import NoClient, Transferred
from wherry.builder.dockerfile.ignore import Patterns
from wherry.builder.graph import LocalSource
from wherry.builder.trees import Directory
from wherry.errors import NotFound
from wherry.spec.distribution import ANONYMOUS, Auth
from wherry.storage.tree import remove_tree

LOCALS = ("context", "dockerfile")  # both are the one directory there is


class ClassicClient(NoClient):
    """`directory` is there once the context has been received."""

    def __init__(self, credentials: Mapping[str, Auth]) -> None:
        self._credentials = credentials
        self.directory: Path | None = None

    async def local(self, source: LocalSource, transferred: Transferred) -> Directory:
        """What is excluded is removed, should the client have sent it: the directory is of no other use."""
        if self.directory is None or source.name not in LOCALS:
            raise NotFound(f"no local directory {source.name!r} came with this build")
        if source.exclude:
            await settle(remove_excluded, self.directory, source.exclude)
        return Directory(path=self.directory, identity="")

    async def credentials(self, host: str) -> Auth:
        return self._credentials.get(host_of(host), ANONYMOUS)


def remove_excluded(root: Path, lines: Sequence[str]) -> None:
    """Take away below `root` what the patterns of a `.dockerignore` take out. Blocking."""
    _remove(os.fspath(root), "", Patterns(lines))


def _remove(root: str, folder: str, patterns: Patterns) -> None:
    for entry in list(os.scandir(os.path.join(root, folder))):
        path = os.path.join(folder, entry.name)
        directory = stat.S_ISDIR(entry.stat(follow_symlinks=False).st_mode)
        if not patterns.matches(path):
            if directory:
                _remove(root, path, patterns)
        elif not directory:
            os.unlink(entry.path)
        elif patterns.skips_below(path):
            remove_tree(entry.path)
        else:
            _remove(root, path, patterns)
            if not os.listdir(entry.path):
                os.rmdir(entry.path)
