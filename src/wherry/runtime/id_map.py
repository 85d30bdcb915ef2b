"""Which id in a container is which id on the host's file system, for one mount. Pure, stdlib only: the shim uses it.

    caller=1000-1000            the container's own user (root, unless it says otherwise) is uid 1000, gid 1000 of the
                                host; all other ids are themselves, but for those two, which nobody is
    uids=0-1000-1;gids=0-1000-1 container id, host id, how many; several with `#`; ids that are not named are nobody's

Files of nobody show as owned by 65534 and cannot be made (EOVERFLOW).
"""

import re
from dataclasses import dataclass
from itertools import pairwise

from wherry.errors import InvalidParameter

CALLER = "caller"
_LAST = (1 << 32) - 2  # the highest id there is
_MOST = 340  # lines the kernel takes as one map

Range = tuple[int, int, int]  # container id, host id, count

_CALLER = re.compile(r"caller=(\d{1,10})-(\d{1,10})")
_RANGE = re.compile(r"(\d{1,10})-(\d{1,10})-(\d{1,10})")


@dataclass(frozen=True, slots=True, kw_only=True)
class IdMap:
    caller: tuple[int, int] | None = None  # uid, gid
    uids: tuple[Range, ...] = ()
    gids: tuple[Range, ...] = ()

    def maps(self, user: tuple[int, int]) -> tuple[str, str]:
        """uid_map and gid_map of the user namespace that makes such a mount; `user` is the container's own."""
        if self.caller is not None:
            uid, gid = (_swapped(own, host) for own, host in zip(user, self.caller, strict=True))
            return uid, gid
        return _lines(self.uids), _lines(self.gids)


def parse(text: str) -> IdMap:
    """Raises InvalidParameter. `caller` alone has no meaning here: who that is must have been filled in."""
    if found := _CALLER.fullmatch(text):
        caller = int(found[1]), int(found[2])
        if max(caller) > _LAST:
            raise _wrong(text, f"{max(caller)} is not a user or group id")
        return IdMap(caller=caller)
    if text == CALLER:
        raise _wrong(text, "it is not known who calls: name the ids, as in idmap=uids=0-1000-1;gids=0-1000-1")
    given: dict[str, tuple[Range, ...]] = {}
    for part in text.split(";"):
        key, _, value = part.partition("=")
        if key not in ("uids", "gids") or key in given:
            raise _wrong(text, "it must be caller, or uids=CONTAINER-HOST-COUNT;gids=CONTAINER-HOST-COUNT")
        given[key] = _ranges(text, value)
    if len(given) < 2:
        raise _wrong(text, "both uids and gids must be given")
    return IdMap(uids=given["uids"], gids=given["gids"])


def _ranges(text: str, value: str) -> tuple[Range, ...]:
    found: list[Range] = []
    for part in value.split("#"):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise _wrong(text, f"{part!r} is not CONTAINER-HOST-COUNT")
        inside, outside, count = int(match[1]), int(match[2]), int(match[3])
        if not count or max(inside, outside) + count - 1 > _LAST:
            raise _wrong(text, f"{part} goes beyond the last id")
        found.append((inside, outside, count))
    if len(found) > _MOST:
        raise _wrong(text, f"more than {_MOST} ranges")
    for at, side in ((0, "container"), (1, "host")):
        ordered = sorted(found, key=lambda each: each[at])
        for one, other in pairwise(ordered):
            if one[at] + one[2] > other[at]:
                raise _wrong(text, f"{side} id {other[at]} is named twice")
    return tuple(found)


def _wrong(text: str, why: str) -> InvalidParameter:
    return InvalidParameter(f"invalid idmap {text!r}: {why}")


def _swapped(own: int, host: int) -> str:
    """`own` in the container is `host` outside; every other id is itself."""
    ranges: list[Range] = [(own, host, 1)]
    begin = 0
    for taken in sorted({own, host}):
        if taken > begin:
            ranges.append((begin, begin, taken - begin))
        begin = taken + 1
    if begin <= _LAST:
        ranges.append((begin, begin, _LAST - begin + 1))
    return _lines(ranges)


def _lines(ranges: list[Range] | tuple[Range, ...]) -> str:
    """The file system's id is the one inside the namespace, the one the container sees is outside."""
    return "".join(f"{outside} {inside} {count}\n" for inside, outside, count in ranges)
