"""One file action done to a tree, by the rules of BuildKit (solver/llbsolver/file)."""

import os
import stat

from wherry.builder.files.clock import Clock
from wherry.builder.files.copy import Copier, copy_selection
from wherry.builder.files.modes import parse_mode
from wherry.builder.files.owners import look_up
from wherry.builder.files.paths import (
    below,
    check_name,
    lstat,
    make_directories,
    make_directory,
    means_directory,
    resolve,
    shown,
)
from wherry.builder.files.select import Selection, matches
from wherry.builder.files.unpack import open_archive, unpack
from wherry.builder.files.wildcards import has_wildcards
from wherry.builder.graph import Action, Copy, MakeDirectory, MakeFile, MakeSymlink, Remove
from wherry.errors import InvalidParameter, NotFound
from wherry.kernel.files import closing
from wherry.storage.pack import open_directory
from wherry.storage.refusal import refused
from wherry.storage.tree import remove_at


def apply(
    target: int,
    action: Action,
    source: int | None = None,
    selection: Selection | None = None,
    *,
    epoch_ns: int | None,
    name_lookup: int | None,
) -> None:
    """Do `action` to the tree `target`.

    A Copy takes its `selection`, made by `select` for the same action, from the tree `source`. Nothing that the action
    writes or changes is younger than the epoch; None is none. `name_lookup` is the tree whose passwd and group files
    tell who an owner's names are, None when there is no such tree.

    Raises InvalidParameter for what the action cannot mean here, NotFound for what it needs and is not there, Failed
    when the machine refuses. The tree is then in between and of no use.
    """
    timestamp = -1 if isinstance(action, Remove) else action.timestamp
    clock = Clock(target, epoch_ns=epoch_ns, timestamp=timestamp)
    owner = None if isinstance(action, Remove) else look_up(action.owner, name_lookup)
    try:
        match action:
            case Copy():
                if source is None or selection is None:
                    raise ValueError("a Copy needs a source and what is selected of it")
                _copy(target, action, source, selection, owner, clock)
            case MakeFile():
                _make_file(target, action, owner, clock)
            case MakeDirectory():
                _make_directory(target, action, owner, clock)
            case MakeSymlink():
                _make_symlink(target, action, owner, clock)
            case Remove():
                _remove(target, action, clock)
        clock.settle()
    except OSError as exc:
        raise refused("cannot change files", exc, shown(os.fsencode(exc.filename or "").lstrip(b"/"))) from exc


def _copy(
    target: int, action: Copy, source: int, selection: Selection, owner: tuple[int, int] | None, clock: Clock
) -> None:
    said = below(action.target)
    if not action.make_target:
        above = resolve(target, said).rpartition(b"/")[0]
        if lstat(target, above) is None:
            raise NotFound(f"failed to stat {action.target}: lstat {shown(above)}: no such file or directory")
    if not selection.chosen:
        return
    copier = Copier(source, target, owner=owner, mode=parse_mode(action.mode), clock=clock, replace=action.replace)
    rest = []
    for chosen in selection.chosen:
        archive = open_archive(source, chosen.path) if action.unpack else None
        if archive is None:
            rest.append(chosen)
            continue
        with closing(archive):
            directory = resolve(target, said)
            make_directories(target, directory, mode=0o755, owner=owner, clock=clock)
            unpack(archive, chosen.path, target, directory, owner=owner, clock=clock)
    if not rest:
        return
    directory = said if means_directory(action.target) else said.rpartition(b"/")[0]
    make_directories(target, resolve(target, directory), mode=0o755, owner=owner, clock=clock)
    copy_selection(
        copier, rest, selection.filter, resolve(target, said), contents=action.contents, several=action.several
    )


def _make_file(target: int, action: MakeFile, owner: tuple[int, int] | None, clock: Clock) -> None:
    path, above, name = _place(target, action.path)
    found = lstat(target, path)
    if found is not None and stat.S_ISDIR(found.st_mode):
        raise InvalidParameter(f"open {shown(path)}: is a directory")
    with _opened(target, above, path) as directory:
        if found is not None:
            os.unlink(name, dir_fd=directory)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with closing(os.open(name, flags, 0o600, dir_fd=directory)) as fd:
            data = memoryview(action.data)
            while data:
                data = data[os.write(fd, data) :]
            if owner is not None:
                os.fchown(fd, *owner)
            os.fchmod(fd, action.mode & 0o777)
            if clock.new is not None:
                os.utime(fd, ns=(clock.new, clock.new))
    clock.changed(above)


def _make_directory(target: int, action: MakeDirectory, owner: tuple[int, int] | None, clock: Clock) -> None:
    """What is there already stays as it is."""
    path = resolve(target, below(action.path))
    mode = action.mode & 0o777
    if action.parents:
        make_directories(target, path, mode=mode, owner=owner, clock=clock)
    elif lstat(target, path) is None:
        above = path.rpartition(b"/")[0]
        with _opened(target, above, path):
            make_directory(target, path, mode=mode, owner=owner, clock=clock)


def _make_symlink(target: int, action: MakeSymlink, owner: tuple[int, int] | None, clock: Clock) -> None:
    path, above, name = _place(target, action.new)
    if lstat(target, path) is not None:
        raise InvalidParameter(f"symlink {action.old} {shown(path)}: file exists")
    if not action.old or "\0" in action.old:
        raise InvalidParameter(f"symlink {action.old!r} {shown(path)}: no target for a symbolic link")
    with _opened(target, above, path) as directory:
        os.symlink(os.fsencode(action.old), name, dir_fd=directory)
        if owner is not None:
            os.chown(name, *owner, dir_fd=directory, follow_symlinks=False)
        if clock.new is not None:
            os.utime(name, ns=(clock.new, clock.new), dir_fd=directory, follow_symlinks=False)
    clock.changed(above)


def _remove(target: int, action: Remove, clock: Clock) -> None:
    path = below(action.path)
    text = os.fsdecode(path)
    found = [path]
    if action.wildcard and has_wildcards(text):
        found = list(matches(target, text, follow=False))
    for each in found:
        if not each:
            raise InvalidParameter("rmPath: invalid empty path")
        place = resolve(target, each, follow=False)
        if lstat(target, place) is None:
            if not action.allow_missing:
                raise NotFound(f"remove {shown(each)}: no such file or directory")
            continue
        above, _, name = place.rpartition(b"/")
        with closing(open_directory(target, above)) as directory:
            remove_at(directory, name)
        clock.changed(above)


def _place(target: int, said: str) -> tuple[bytes, bytes, bytes]:
    """Where something is made: its path, the directory of it, its name there."""
    path = resolve(target, below(said))
    above, _, name = path.rpartition(b"/")
    if not name:
        raise InvalidParameter(f"open {said}: is a directory")
    check_name(path, name)
    return path, above, name


def _opened(target: int, above: bytes, path: bytes) -> closing:
    """The directory that `path` is made in."""
    try:
        return closing(open_directory(target, above))
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise NotFound(f"open {shown(path)}: {(exc.strerror or '').lower()}") from exc
