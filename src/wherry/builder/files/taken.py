"""Walking through what is taken of a directory: include and exclude patterns, parents of what they match."""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from wherry.builder.dockerfile.ignore import Patterns
from wherry.builder.files.paths import join
from wherry.builder.files.wildcards import compile_component
from wherry.errors import InvalidParameter
from wherry.kernel.files import closing
from wherry.storage.pack import open_directory
from wherry.storage.tree import walk


class Filter:
    """Patterns of the `.dockerignore` kind, about paths within a chosen directory.

    Only what `include` matches is taken, if there is any, and nothing that `exclude` matches. What is below a match
    matches.
    """

    def __init__(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        self._include = Patterns(include) if include else None
        self._exclude = Patterns(exclude) if exclude else None
        # what the components of a path below a directory must begin with; None where that cannot be told
        self._heads = None if self._include is None or self._include.puts_back else [_head(each) for each in include]

    def takes(self, path: str) -> bool:
        return (self._include is None or self._include.matches(path)) and not self.excludes(path)

    def excludes(self, path: str) -> bool:
        return self._exclude is not None and self._exclude.matches(path)

    def may_hold(self, path: str) -> bool:
        """False when nothing below this directory, which is not taken itself, can be."""
        if self._exclude is not None and self._exclude.skips_below(path):
            return False
        if self._heads is None or (self._include is not None and self._include.matches(path)):
            return True
        parts = path.split("/")
        return any(_may_reach(head, parts) for head in self._heads)


@dataclass(slots=True)
class Visit:
    """A directory of which something is taken, or which is itself."""

    path: bytes  # within the chosen directory; b"" for that
    fd: int  # valid until the next visit
    files: list[tuple[bytes, os.stat_result]]  # everything taken from it but directories, which are visited themselves
    taken: bool = True  # itself, and not only as a parent of something


def visits(directory: int, wanted: Filter | None) -> Iterator[Visit]:
    """The directory itself first, whether or not something is taken; parents before what is in them; byte order."""
    waiting: list[bytes] = []  # directories above this one that nothing was taken from yet
    for listing in walk(directory):
        path = listing.path
        if wanted is None:
            yield Visit(path, listing.fd, [each for each in listing.entries if not stat.S_ISDIR(each[1].st_mode)])
            continue
        while waiting and not path.startswith(waiting[-1] + b"/"):
            waiting.pop()
        itself = not path or wanted.takes(os.fsdecode(path))
        files, directories = [], []
        for entry in listing.entries:
            inner = os.fsdecode(join(path, entry[0]))
            if stat.S_ISDIR(entry[1].st_mode):
                if wanted.takes(inner) or wanted.may_hold(inner):
                    directories.append(entry)
            elif wanted.takes(inner):
                files.append(entry)
        listing.entries[:] = directories
        if not itself and not files:
            waiting.append(path)
            continue
        for parent in waiting:
            with closing(open_directory(directory, parent)) as fd:
                yield Visit(parent, fd, [], taken=False)
        waiting.clear()
        yield Visit(path, listing.fd, files, taken=itself)


def _may_reach(head: list["re.Pattern[str] | None"], parts: list[str]) -> bool:
    for wanted, part in zip(head, parts, strict=False):
        if wanted is None:
            return True
        if wanted.match(part) is None:
            return False
    return len(head) > len(parts)


def _head(pattern: str) -> list["re.Pattern[str] | None"]:
    """The components of a pattern up to its first `**`, which is None and may be anything."""
    head: list[re.Pattern[str] | None] = []
    for part in pattern.strip().strip("/").split("/"):
        if part in ("", "."):
            continue
        if "**" in part or part == "..":
            head.append(None)
            break
        try:
            head.append(compile_component(part))
        except InvalidParameter:
            return [None]
    return head
