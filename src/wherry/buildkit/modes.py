"""Between Go's os.FileMode, which BuildKit sends, and the mode of stat(2). Pure."""

import stat

_GO_DIR = 1 << 31
_GO_SYMLINK = 1 << 27
_GO_DEVICE = 1 << 26
_GO_FIFO = 1 << 25
_GO_SOCKET = 1 << 24
_GO_SETUID = 1 << 23
_GO_SETGID = 1 << 22
_GO_CHAR = 1 << 21
_GO_STICKY = 1 << 20
_GO_IRREGULAR = 1 << 19
_GO_TYPE = _GO_DIR | _GO_SYMLINK | _GO_DEVICE | _GO_FIFO | _GO_SOCKET | _GO_CHAR | _GO_IRREGULAR

_KINDS = {
    0: stat.S_IFREG,
    _GO_DIR: stat.S_IFDIR,
    _GO_SYMLINK: stat.S_IFLNK,
    _GO_DEVICE: stat.S_IFBLK,
    _GO_DEVICE | _GO_CHAR: stat.S_IFCHR,
    _GO_FIFO: stat.S_IFIFO,
    _GO_SOCKET: stat.S_IFSOCK,
}
_GO_KINDS = {kind: go for go, kind in _KINDS.items()}
_BITS = ((_GO_SETUID, stat.S_ISUID), (_GO_SETGID, stat.S_ISGID), (_GO_STICKY, stat.S_ISVTX))


def from_go(mode: int) -> int:
    """0 for a kind there is no file of."""
    kind = _KINDS.get(mode & _GO_TYPE)
    if kind is None:
        return 0
    found = kind | (mode & 0o777)
    for go, bit in _BITS:
        if mode & go:
            found |= bit
    return found


def to_go(mode: int) -> int:
    found = _GO_KINDS.get(stat.S_IFMT(mode), _GO_IRREGULAR) | (mode & 0o777)
    for go, bit in _BITS:
        if mode & bit:
            found |= go
    return found
