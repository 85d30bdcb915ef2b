"""Who may sign in: an htpasswd file with bcrypt hashes, read again when it changes.

    ann:$2y$05$...      one user a line, as `htpasswd -nB ann` prints it; # begins a comment

bcrypt is slow on purpose: it is computed off the event loop, and a password found right is remembered for a while by a
keyed hash. Who is wrong too often from one address waits.
"""

import asyncio
import hashlib
import hmac
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wherry.aio import settle
from wherry.errors import InvalidParameter
from wherry.registry.errors import Code, Problem

log = logging.getLogger(__name__)

REMEMBERED = 300.0  # seconds a right password needs no bcrypt
FAILURES = 10  # wrong passwords from one address ...
WINDOW = 60.0  # ... within so many seconds are too many
MAX_PASSWORD = 72  # bytes; bcrypt looks at no more
MAX_ADDRESSES = 10_000  # remembered
_SCHEMES = ("$2a$", "$2b$", "$2y$")
_NOBODY = "$2b$05$abcdefghijklmnopqrstuuMQ9TRaQFJEBX1YHIIwEkMzR6aOuLOSq"  # as slow as a user's: names cannot be probed


@dataclass(frozen=True, slots=True)
class _File:
    stamp: tuple[int, int, int]  # inode, size, mtime
    users: dict[str, str]


class Passwords:
    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file (blocking). InvalidParameter naming the line that cannot be used."""
        self._path = path
        self._clock = clock
        self._key = os.urandom(32)
        self._known: dict[str, tuple[bytes, float]] = {}  # user -> keyed hash of entry and password, until when
        self._failures: dict[str, list[float]] = {}
        self._slow = asyncio.Semaphore(2)
        self._file = _read(path)
        self._broken: tuple[int, int, int] | None = None  # stamp of a file that cannot be used

    async def check(self, user: str, password: str, *, address: str) -> None:
        """UNAUTHORIZED when they do not belong together, TOOMANYREQUESTS after too many failures.

        Who was right a short while ago is not made to wait for others behind the same address.
        """
        await self._refresh()
        entry = self._file.users.get(user, _NOBODY)
        proof = hmac.digest(self._key, "\0".join((user, entry, password)).encode(), "sha256")
        known = self._known.get(user)
        if known is not None and known[1] > self._clock() and hmac.compare_digest(known[0], proof):
            return
        self._check_rate(address)
        async with self._slow:
            right = await settle(_matches, password, entry)
        if not right or user not in self._file.users:
            self._failed(address)
            raise Problem(Code.UNAUTHORIZED, "incorrect username or password")
        self._failures.pop(address, None)
        self._known[user] = proof, self._clock() + REMEMBERED

    async def fingerprint(self, user: str) -> str:
        """Changes with the user's password; "" for nobody's name."""
        await self._refresh()
        entry = self._file.users.get(user)
        return hashlib.sha256(entry.encode()).hexdigest()[:16] if entry else ""

    async def _refresh(self) -> None:
        """Follow the file; one that cannot be used any more is not followed, and said so once."""
        stamp = await settle(_stamp, self._path)
        if stamp is None or stamp in (self._file.stamp, self._broken):
            return
        try:
            self._file = await settle(_read, self._path)
        except InvalidParameter as exc:
            self._broken = stamp
            log.error("the passwords stay as they were: %s", exc.message)

    def _check_rate(self, address: str) -> None:
        now = self._clock()
        recent = [each for each in self._failures.get(address, ()) if each > now - WINDOW]
        if len(recent) >= FAILURES:
            wait = int(recent[-FAILURES] + WINDOW - now) + 1
            raise Problem(
                Code.TOOMANYREQUESTS,
                f"too many wrong passwords from {address}: try again in {wait} seconds",
                headers={"Retry-After": str(wait)},
            )

    def _failed(self, address: str) -> None:
        if len(self._failures) >= MAX_ADDRESSES:
            self._failures.pop(next(iter(self._failures)))
        self._failures[address] = [*self._failures.get(address, ())[-FAILURES:], self._clock()]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _read(path: Path) -> _File:
    try:
        stamp = _stamp(path)
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidParameter(f"cannot read the password file {path}: {exc}") from exc
    users: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        user, colon, entry = line.strip().partition(":")
        if not (user and colon):
            raise InvalidParameter(f"{path}, line {number}: want USER:HASH")
        if not entry.startswith(_SCHEMES) or len(entry) != 60:
            raise InvalidParameter(
                f"{path}, line {number}: the hash of {user} is not bcrypt's; make it with `htpasswd -nB {user}`"
            )
        users[user] = entry
    return _File(stamp or (0, 0, 0), users)


def _matches(password: str, entry: str) -> bool:
    import bcrypt

    raw = password.encode()
    if len(raw) > MAX_PASSWORD or b"\0" in raw:
        return False
    return bcrypt.checkpw(raw, entry.encode())
