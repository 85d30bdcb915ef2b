"""Who a process runs as: `user[:group]` and extra groups looked up in a rootfs's passwd and group files.

Pure: the texts are given. The rules and the words of the errors are Docker's. Stdlib only: the shim uses it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from wherry.errors import InvalidParameter

MAX_ID = (1 << 31) - 1
_RANGE = f"uids and gids must be in range 0-{MAX_ID}"


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    uid: int
    gid: int
    additional_gids: tuple[int, ...]  # the primary one first, so that it cannot be got rid of (CVE-2022-36109)
    home: str


def resolve(spec: str, group_add: Sequence[str], *, passwd: str, group: str) -> User:
    """Find `spec`, as `--user` and `USER` have it: names or numbers, `""` for root. Raises InvalidParameter."""
    name, _, group_name = spec.partition(":")
    uid, gid, home, matched = _find_user(name, passwd)
    supplementary: list[int] = []
    if group_name:
        gid = _find_group(group_name, group)
    elif matched:
        supplementary = [number for _, number, members in _groups(group) if matched in members]
    supplementary += [_find_group(extra, group) for extra in group_add]
    return User(uid=uid, gid=gid, additional_gids=tuple(dict.fromkeys([gid, *supplementary])), home=home)


def _find_user(name: str, passwd: str) -> tuple[int, int, str, str]:
    number = _number(name) if name else 0
    for entry_name, uid, gid, home in _users(passwd):
        if uid == number if number is not None else entry_name == name:
            return uid, gid, home or "/", entry_name
    if number is None:
        raise InvalidParameter(f"unable to find user {name}: no matching entries in passwd file")
    _check_range(number)
    return number, 0, "/", ""


def _find_group(name: str, group: str) -> int:
    number = _number(name)
    for entry_name, gid, _ in _groups(group):
        if gid == number if number is not None else entry_name == name:
            return gid
    if number is None:
        raise InvalidParameter(f"unable to find group {name}: no matching entries in group file")
    _check_range(number)
    return number


def _check_range(number: int) -> None:
    if not 0 <= number <= MAX_ID:
        raise InvalidParameter(_RANGE)


def _number(text: str) -> int | None:
    digits = text.removeprefix("-")
    return int(text) if digits.isascii() and digits.isdigit() and len(digits) < 20 else None


def _users(passwd: str) -> Iterator[tuple[str, int, int, str]]:
    for line in passwd.split("\n"):
        fields = line.strip().split(":")
        if len(fields) >= 4 and (uid := _number(fields[2])) is not None and (gid := _number(fields[3])) is not None:
            yield fields[0], uid, gid, fields[5] if len(fields) > 5 else ""


def _groups(group: str) -> Iterator[tuple[str, int, list[str]]]:
    for line in group.split("\n"):
        fields = line.strip().split(":")
        if len(fields) >= 3 and (gid := _number(fields[2])) is not None:
            yield fields[0], gid, fields[3].split(",") if len(fields) > 3 else []
