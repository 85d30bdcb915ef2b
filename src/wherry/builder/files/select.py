"""Which files of a tree a Copy takes."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from wherry.builder.dockerfile.suggest import near
from wherry.builder.files.paths import below, join, lstat, resolve, shown
from wherry.builder.files.taken import Filter
from wherry.builder.files.wildcards import compile_component, has_wildcards
from wherry.builder.graph import Copy
from wherry.errors import InvalidParameter, NotFound
from wherry.kernel.files import closing
from wherry.storage.pack import open_directory
from wherry.storage.tree import list_directory

_NAMES_MAX = 5000  # looked at for a near miss


@dataclass(frozen=True, slots=True)
class Chosen:
    """One file or directory that is copied."""

    path: bytes  # without a link in it, except as the last name where the copy does not follow it
    name: bytes  # what it is called in a directory it is copied into; b"" for the root
    directory: bool


@dataclass(frozen=True, slots=True)
class Selection:
    chosen: tuple[Chosen, ...]  # in the order they are copied: a later one replaces an earlier
    filter: Filter | None  # of what is in the chosen directories; None takes everything
    by_wildcard: bool  # the names of the chosen were not said, so they are part of what was found


def select(root: int, action: Copy) -> Selection:
    """What `action` takes from the tree `root`.

    Wildcards match within one component, as Go's filepath.Match. `follow_symlink` is about what is chosen; what is in a
    chosen directory is copied as it stands. Raises NotFound (`"/file": not found`) for a source that is not there, and
    for a wildcard that matches nothing unless that is allowed; InvalidParameter for a wrong pattern.
    """
    source, include = action.source, action.include
    if action.parents:
        source, include = _pivot(root, action)
    wanted = Filter(include, action.exclude) if include or action.exclude else None
    path = below(source)
    text = os.fsdecode(path)
    if not (action.wildcard and has_wildcards(text)):
        return Selection((_named(root, path, follow=action.follow_symlink),), wanted, by_wildcard=False)
    found = tuple(
        _named(root, match, follow=action.follow_symlink)
        for match in matches(root, text, follow=action.follow_symlink)
        if not (action.exclude and wanted is not None and wanted.excludes(os.fsdecode(match.rpartition(b"/")[2])))
    )
    if not found and not action.empty_wildcard:
        raise NotFound(f"{action.source} not found")
    return Selection(found, wanted, by_wildcard=True)


def _pivot(root: int, action: Copy) -> tuple[str, tuple[str, ...]]:
    """`--parents`: where to begin, and what to take below it. `a/./b/c` keeps b/ and what is in it, not a/."""
    begin, pivot, rest = action.source.partition("/./")
    if not pivot:
        begin, rest = "/", action.source
    pattern = os.fsdecode(below(rest))
    if not pattern:
        return begin, action.include
    if not has_wildcards(begin) and not has_wildcards(pattern):
        whole = join(below(begin), os.fsencode(pattern))
        place = resolve(root, whole, follow=False)
        if lstat(root, place) is None:
            raise _missing(root, whole)
        if place != whole:  # it would not be met on the walk through the directories
            raise InvalidParameter(
                f"{shown(whole)} lies behind a symbolic link, which --parents does not follow: name {shown(place)}"
            )
    return begin or "/", (pattern, *action.include)


def _named(root: int, path: bytes, *, follow: bool) -> Chosen:
    place = resolve(root, path, follow=follow)
    found = lstat(root, place)
    if found is None:
        raise _missing(root, path)
    return Chosen(place, path.rpartition(b"/")[2], stat.S_ISDIR(found.st_mode))


def matches(root: int, pattern: str, *, follow: bool) -> Iterator[bytes]:
    """Paths in byte order, directories before what is in them; below a match none is looked for."""
    parts = pattern.split("/")
    literal = next(at for at, part in enumerate(parts) if has_wildcards(part))
    start = os.fsencode("/".join(parts[:literal]))
    compiled = [compile_component(part) for part in parts[literal:]]
    base = resolve(root, start, follow=follow)
    found = lstat(root, base)
    if found is None:
        raise _missing(root, start, wanted=os.fsencode(pattern))
    if not stat.S_ISDIR(found.st_mode):
        return
    stack = [(b"", 0)]  # directories to look into, and which part of the pattern their entries must match
    while stack:
        directory, depth = stack.pop()
        if depth == len(compiled):
            yield join(start, directory)
            continue
        with closing(open_directory(root, join(base, directory))) as fd:
            entries = list_directory(fd)
        last = depth + 1 == len(compiled)
        stack += [
            (join(directory, name), depth + 1)
            for name, entry in reversed(entries)
            if (last or stat.S_ISDIR(entry.st_mode)) and compiled[depth].match(os.fsdecode(name))
        ]


def _missing(root: int, path: bytes, *, wanted: bytes = b"") -> NotFound:
    """BuildKit's words, and the name that may have been meant; `wanted` is what was said, if it is more than `path`."""
    meant = _near(root, path)
    return NotFound(f'"{shown(wanted or path)}": not found' + (f" (did you mean {shown(meant)}?)" if meant else ""))


def _near(root: int, path: bytes) -> bytes:
    """What is nearly called as the first name of `path` that is not there; b"" for nothing."""
    parts = path.split(b"/")
    for depth, part in enumerate(parts):
        directory = resolve(root, b"/".join(parts[:depth]))
        found = lstat(root, directory)
        if found is None or not stat.S_ISDIR(found.st_mode):
            return b""
        if lstat(root, resolve(root, join(directory, part))) is not None:
            continue
        try:
            with closing(open_directory(root, directory)) as fd, os.scandir(fd) as entries:
                names = [entry.name for _, entry in zip(range(_NAMES_MAX), entries, strict=False)]
        except OSError:
            return b""
        close = near(os.fsdecode(part), names)
        return join(b"/".join(parts[:depth]), os.fsencode(close)) if close else b""
    return b""
