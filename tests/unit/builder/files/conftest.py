"""File trees made from a few words, and copies between two of them."""

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from wherry.builder.files.apply import apply
from wherry.builder.files.checksum import Checksum, ChecksumIndex, Source, checksum
from wherry.builder.files.select import select
from wherry.builder.graph import Copy

TIME = 1_580_000_000


class Tree:
    """A directory with an fd of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def fill(self, files: Mapping[str, str]) -> None:
        """`dir/` is a directory, `-> x` the content of a symbolic link; everything has the time `TIME`."""
        for name, content in files.items():
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith("/"):
                path.mkdir(exist_ok=True)
            elif content.startswith("-> "):
                path.symlink_to(content[3:])
            else:
                path.write_text(content)
        self.age()

    def age(self, seconds: int = TIME) -> None:
        for directory, directories, files in os.walk(self.path):
            for name in (*directories, *files, "."):
                os.utime(os.path.join(directory, name), (seconds, seconds), follow_symlinks=False)

    def see(self) -> dict[str, str]:
        """As `fill` takes it, empty directories included only."""
        found: dict[str, str] = {}
        for directory, directories, files in os.walk(self.path):
            below = os.path.relpath(directory, self.path)
            for name in directories + files:
                path = Path(directory, name)
                status = path.lstat()
                key = os.path.normpath(os.path.join(below, name))
                if stat.S_ISLNK(status.st_mode):
                    found[key] = f"-> {os.readlink(path)}"
                elif stat.S_ISREG(status.st_mode):
                    found[key] = path.read_text(errors="surrogateescape")
                elif not any(path.iterdir()):
                    found[f"{key}/"] = ""
        return found

    def status(self, name: str) -> os.stat_result:
        return (self.path / name).lstat()

    def mode(self, name: str) -> int:
        return stat.S_IMODE(self.status(name).st_mode)


class Place:
    """A source and a target."""

    def __init__(self, root: Path) -> None:
        self.source, self.target = Tree(root / "source"), Tree(root / "target")

    def copy(self, source: str, target: str, *, epoch: int | None = None, **options: Any) -> None:
        """As COPY does."""
        action = dockerfile_copy(source, target, **options)
        selection = select(self.source.fd, action)
        apply(self.target.fd, action, self.source.fd, selection, epoch_ns=epoch, name_lookup=self.target.fd)

    def checksum(self, source: str, *, known: ChecksumIndex | None = None, **options: Any) -> Checksum:
        action = dockerfile_copy(source, "/", **options)
        known = known or ChecksumIndex()
        given = known.of(Source(root=self.source.fd))
        return checksum(self.source.fd, action, select(self.source.fd, action), given)


def dockerfile_copy(source: str, target: str, **options: Any) -> Copy:
    return Copy(
        source=source, target=target, **{"follow_symlink": True, "contents": True, "empty_wildcard": True} | options
    )


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    os.close(made.source.fd)
    os.close(made.target.fd)


@pytest.fixture
def target(place: Place) -> Tree:
    return place.target


@pytest.fixture
def source(place: Place) -> Tree:
    return place.source
