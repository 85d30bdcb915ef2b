"""Directories of the user's, as a build's context: what is in them, chosen by patterns, in the order of the engine.

Patterns are docker's (`.dockerignore`, COPY's sources): the engine sends them, and they are matched here, so that what
is excluded never leaves this machine.
"""

from __future__ import annotations

import os
import stat

from wherry.cli.patterns import Patterns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WILDCARDS = frozenset("*?[\\")
MAX_LINKS = 255  # symlinks followed for one pattern


class Entry:
    """One file, directory, symlink or device below the context's root."""

    __slots__ = ("device", "link", "mode", "mtime", "path", "size")

    def __init__(self, path: str, info: os.stat_result, link: str) -> None:
        self.path = path
        self.mode = info.st_mode
        self.size = info.st_size if stat.S_ISREG(info.st_mode) else 0
        self.mtime = info.st_mtime_ns
        self.device = info.st_rdev
        self.link = link


def walk(
    root: str, *, include: Sequence[str] = (), exclude: Sequence[str] = (), follow: Sequence[str] = ()
) -> Iterator[Entry]:
    """Parents before children. With `include` or `follow` only what they match, what is below that and above it."""
    wanted = [*include, *follow_links(root, follow)] if include or follow else None
    return _Walk(root, wanted, exclude).below("")


class _Walk:
    def __init__(self, root: str, wanted: list[str] | None, exclude: Sequence[str]) -> None:
        self._root = root
        self._wanted = None if wanted is None else Patterns(wanted)
        self._literal = [literal(pattern) for pattern in wanted or ()]
        self._exclude = Patterns(exclude) if exclude else None
        self._excepting = self._exclude is not None and self._exclude.puts_back
        self._owed: list[Entry] = []  # directories that are only named when something in them is

    def below(self, folder: str) -> Iterator[Entry]:
        with os.scandir(f"{self._root}/{folder}" if folder else self._root) as found:
            entries = sorted(found, key=lambda entry: os.fsencode(entry.name))
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            try:
                info = entry.stat(follow_symlinks=False)
                link = os.readlink(entry.path) if stat.S_ISLNK(info.st_mode) else ""
            except FileNotFoundError:
                continue  # gone since
            if stat.S_ISSOCK(info.st_mode):
                continue
            excluded = self._exclude is not None and self._exclude.matches(path)
            taken = not excluded and (self._wanted is None or self._wanted.matches(path))
            yield from self._one(Entry(path, info, link), taken=taken, excluded=excluded)

    def _one(self, entry: Entry, *, taken: bool, excluded: bool) -> Iterator[Entry]:
        directory = stat.S_ISDIR(entry.mode)
        if taken:
            yield from self._owed
            self._owed.clear()
            yield entry
        if not directory or (excluded and not self._excepting) or not (taken or self._may_hold(entry.path)):
            return
        if taken:
            yield from self.below(entry.path)
            return
        self._owed.append(entry)
        yield from self.below(entry.path)
        if self._owed and self._owed[-1] is entry:
            self._owed.pop()

    def _may_hold(self, folder: str) -> bool:
        """Can something below it be wanted?"""
        if self._wanted is None:
            return True
        return any(
            not prefix or f"{folder}/".startswith(f"{prefix}/") or f"{prefix}/".startswith(f"{folder}/")
            for prefix in self._literal
        )


def literal(pattern: str) -> str:
    """The beginning of a pattern that is no pattern: whole components."""
    found = []
    for part in pattern.strip("/").split("/"):
        if WILDCARDS & set(part) or part.startswith("!"):
            break
        found.append(part)
    return "/".join(part for part in found if part not in ("", "."))


def follow_links(root: str, patterns: Sequence[str]) -> list[str]:
    """`patterns`, and where the symlinks on the way to what they name lead to, as patterns of the same kind.

    Links are resolved inside `root`, as if it was the root of the file system.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        pending = [_clean(pattern)]
        for _ in range(MAX_LINKS):
            if not pending:
                break
            path = pending.pop()
            if path in found:
                continue
            found[path] = None
            pending += _targets(root, path)
    return list(found)


def _clean(path: str) -> str:
    """Without `.`, `..` and double slashes; "" and "." are the root itself, which is everything."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts) or "**"


def _targets(root: str, path: str) -> list[str]:
    """Where the first symlink on each way to `path` leads, with the rest of the path behind it."""
    heads = [""]
    parts = path.split("/")
    targets = []
    for number, part in enumerate(parts):
        rest = parts[number + 1 :]
        fresh = []
        for head in heads:
            for name in _names(f"{root}/{head}" if head else root, part):
                here = f"{head}/{name}" if head else name
                try:
                    link = os.readlink(f"{root}/{here}")
                except OSError:
                    fresh.append(here)
                    continue
                base = "" if link.startswith("/") else head
                targets += [_clean("/".join([base, link, *rest])), here]
        heads = fresh
        if part == "**" or not heads:
            break
    return targets


def _names(folder: str, part: str) -> list[str]:
    """Entries of `folder` that a component of a pattern can mean."""
    if not WILDCARDS & set(part):
        return [part]
    if part == "**":
        return []
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    chosen = Patterns([part])
    return [name for name in names if chosen.matches(name)]
