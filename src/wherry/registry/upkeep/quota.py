"""Quota and read-only mode: what may be written, and how much of it."""

import time
from collections.abc import Awaitable, Callable, Mapping
from fnmatch import fnmatchcase

import msgspec

from wherry.errors import InvalidParameter
from wherry.registry.errors import Code, Problem

FRESH = 2.0  # seconds a measured size is good for
_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}

Usage = Callable[[str], Awaitable[int]]  # bytes a repository holds; "" = the whole registry


class QuotaConfig(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    total: str = ""  # of the whole registry, every blob counted once: "500G"
    per_repository: str = ""  # of each
    repositories: dict[str, str] = {}  # shell pattern -> size; the first that fits counts instead of per-repository


def parse_size(text: str) -> int:
    """Bytes of `10G`, `512MB`, `1000`. InvalidParameter."""
    digits = text.strip().lower().removesuffix("b").rstrip()
    unit = digits[-1:] if digits[-1:] in _UNITS and not digits[-1:].isdigit() else ""
    number = digits.removesuffix(unit) if unit else digits
    try:
        size = float(number)
    except ValueError:
        raise InvalidParameter(f"quota: invalid size {text!r}: want a number with k, M, G or T") from None
    if not 0 <= size < 1e18:
        raise InvalidParameter(f"quota: invalid size {text!r}")
    return int(size * _UNITS[unit])


def check(config: QuotaConfig) -> None:
    for text in filter(None, (config.total, config.per_repository, *config.repositories.values())):
        parse_size(text)


class Limits:
    """The `before_write` hook."""

    def __init__(
        self,
        usage: Usage,
        *,
        quota: QuotaConfig | None,
        read_only: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._usage = usage
        self._clock = clock
        self._measured: dict[str, tuple[int, float]] = {}
        self.configure(quota=quota, read_only=read_only)

    def configure(self, *, quota: QuotaConfig | None, read_only: bool) -> None:
        """Other limits from now on."""
        self.read_only = read_only
        self._total = parse_size(quota.total) if quota and quota.total else None
        self._each = parse_size(quota.per_repository) if quota and quota.per_repository else None
        patterns: Mapping[str, str] = quota.repositories if quota else {}
        self._patterns = [(pattern, parse_size(text)) for pattern, text in patterns.items()]

    async def before_write(self, repository: str, size: int) -> None:
        if self.read_only:
            raise Problem(Code.UNSUPPORTED, "the registry is read-only at present: nothing can be pushed or deleted")
        await self._check(repository, self._limit(repository), size, f"repository {repository}")
        await self._check("", self._total, size, "the registry")

    def _limit(self, repository: str) -> int | None:
        for pattern, size in self._patterns:
            if fnmatchcase(repository, pattern):
                return size
        return self._each

    async def _check(self, repository: str, limit: int | None, size: int, what: str) -> None:
        if limit is None or size == 0:
            return
        used = await self._used(repository)
        if used + size > limit:
            raise Problem(
                Code.DENIED,
                f"quota exceeded: {what} holds {used} of {limit} bytes, {size} more do not fit: delete something, or "
                "ask for more",
                detail={"used": used, "limit": limit, "wanted": size},
            )

    async def _used(self, repository: str) -> int:
        known = self._measured.get(repository)
        if known is None or known[1] < self._clock():
            known = self._measured[repository] = await self._usage(repository), self._clock() + FRESH
        return known[0]

    def forget(self) -> None:
        """Something was written or deleted: measure again."""
        self._measured.clear()
