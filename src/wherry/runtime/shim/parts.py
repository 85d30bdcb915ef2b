"""Parts of other trees that a container is to have: found safely, changed, and handed over as a mount by fd.

A tree may belong to another container that exchanges its directories for symbolic links at this very moment. So the
kernel walks below the tree's root (openat2), and what it found is from then on only its fd; no path is read twice.
Stdlib only.
"""

import errno
import os
import stat
from contextlib import ExitStack

from wherry.errors import Failed, InvalidParameter
from wherry.kernel import process
from wherry.kernel.files import IN_ROOT, Resolve, closing, openat2
from wherry.kernel.mount import ATTR_RDONLY, MS_RDONLY, attach, clone_tree, mount, parse_options, set_attributes
from wherry.kernel.mountinfo import filesystem_of
from wherry.runtime import id_map
from wherry.runtime.shim.bundle import Bundle
from wherry.runtime.shim.requests import Part

_BENEATH = int(Resolve.BENEATH | Resolve.NO_MAGICLINKS)

User = tuple[int, int]


def bring(bundle: Bundle, number: int, part: Part, user: User) -> None:
    """Bring a part to `bundle.part(number)`. Raises InvalidParameter when it is not there."""
    target = bundle.part(number)
    with closing(open_part(part, bundle.path(f"tree{number}"), user)) as tree:
        make_point(target, tree)
        attach(tree, target)


def make_point(path: str, tree: int) -> None:
    """Make what `tree` can be attached to: a directory or a file, as the tree's root is."""
    if stat.S_ISDIR(os.fstat(tree).st_mode):
        os.mkdir(path)
    else:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))


def open_part(part: Part, scratch: str, user: User) -> int:
    """The fd of a detached mount of the part. Raises InvalidParameter or Failed.

    `scratch`: a path where nothing is yet, for trees that must be mounted to be looked into: they stay there. `user`:
    uid and gid of the container's own user.
    """
    with ExitStack() as fds:
        root = _open_root(part, scratch)
        fds.callback(os.close, root)
        found = _find(part, root)
        fds.callback(os.close, found)
        tree = clone_tree(found, recursive=part.recursive)
        try:
            _change(part, tree, found, user)
        except BaseException:
            os.close(tree)
            raise
        return tree


def _open_root(part: Part, scratch: str) -> int:
    if is_bind(part):
        source = part.mounts[0].source
        try:
            return os.open(source, os.O_PATH | os.O_CLOEXEC)
        except OSError as exc:
            raise InvalidParameter(f"cannot mount {source}: {(exc.strerror or '').lower()}") from exc
    os.makedirs(scratch)
    for each in part.mounts:
        mount(each, scratch)
    return os.open(scratch, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def is_bind(part: Part) -> bool:
    """It is looked into where it is; other trees are mounted for that."""
    return len(part.mounts) == 1 and part.mounts[0].type == "bind"


def _find(part: Part, root: int) -> int:
    path = part.selector if part.beneath else part.selector.lstrip("/")
    if not path:
        return os.dup(root)
    try:
        return openat2(root, path, os.O_PATH, resolve=_BENEATH if part.beneath else IN_ROOT)
    except OSError as exc:
        raise InvalidParameter(_refusal(part, path, exc)) from exc


def _refusal(part: Part, path: str, exc: OSError) -> str:
    """Docker's words for a subpath; those for a part without a name are the builder's."""
    words = (exc.strerror or "").lower()
    if not part.name:
        return f"cannot mount {part.selector!r}: {words}"
    whole = f"{part.name}/{path}"
    if exc.errno == errno.EXDEV:
        return f"path concatenation escapes the base directory, base: {part.name}, subpath: {path}"
    if exc.errno == errno.ENOENT:
        return f"cannot access path {whole}: lstat {whole}: {words}"
    return f'error while resolving symlinks in combined path "{whole}": {words}'


def _change(part: Part, tree: int, found: int, user: User) -> None:
    read_only = ATTR_RDONLY if is_bind(part) and parse_options(part.mounts[0].options).flags & MS_RDONLY else 0
    if attributes := read_only | part.attributes:
        set_attributes(tree, attributes, recursive=part.recursive and not part.flat)
    if part.propagation:
        set_attributes(tree, propagation=part.propagation, recursive=part.recursive)
    if not part.id_map:
        return
    uids, gids = id_map.parse(part.id_map).maps(user)
    with closing(process.user_namespace(uids, gids)) as namespace:
        try:
            set_attributes(tree, userns=namespace, recursive=part.recursive)
        except OSError as exc:
            if exc.errno not in (errno.EINVAL, errno.ENOSYS, errno.EPERM):
                raise
            raise Failed(
                f"cannot mount {part.name or 'the tree'} with idmap: the file system {filesystem_of(found)}, or one "
                "mounted below, does not support id-mapped mounts on this kernel: mount a directory of another file "
                "system, or leave idmap out"
            ) from exc
