"""Bearer tokens the registry issues for itself: signed claims of who may do what, for some minutes.

    access token   {"iss", "aud", "sub", "iat", "exp", "access": [{"type", "name", "actions"}]}
    refresh token  {"iss", "aud": "…#refresh", "sub", "iat", "exp", "proof"}   `proof` changes with the password

The key is the registry's own, drawn once and kept in its folder. Source: the token authentication specification of
docker's distribution; RFC 7519.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt

from wherry.errors import Failed
from wherry.kernel.files import fsync_directory
from wherry.registry.errors import Code, Problem

KEY_BYTES = 32
REFRESH_LIFE = 90 * 24 * 3600  # seconds
MAX_SCOPES = 100  # of one request
_ALGORITHM = "HS256"


@dataclass(frozen=True, slots=True)
class Scope:
    """What may be done: `repository:team/app:pull,push`, or `registry:catalog:*`."""

    kind: str
    name: str
    actions: frozenset[str]

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}:{','.join(sorted(self.actions))}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    subject: str  # user; "" = anonymous
    scopes: Sequence[Scope] = ()

    def allow(self, kind: str, name: str, action: str) -> bool:
        return any(
            scope.kind == kind and scope.name == name and (action in scope.actions or "*" in scope.actions)
            for scope in self.scopes
        )


def parse_scopes(texts: Sequence[str]) -> list[Scope]:
    """Scopes of a request for a token; what cannot be read is left out, as nothing is granted for it."""
    found: list[Scope] = []
    for text in " ".join(texts).split()[:MAX_SCOPES]:
        kind, _, rest = text.partition(":")
        name, _, actions = rest.rpartition(":")
        if kind and name and actions:
            found.append(Scope(kind, name, frozenset(actions.split(","))))
    return found


def load_key(path: Path) -> bytes:
    """The registry's key; drawn and stored when there is none (blocking). Failed."""
    try:
        if path.exists():
            key = path.read_bytes()
            if len(key) != KEY_BYTES:
                raise Failed(f"{path} is no key of {KEY_BYTES} bytes: remove it, and all tokens become void")
            return key
        key = os.urandom(KEY_BYTES)
        fresh = path.with_suffix(".new")
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
        fsync_directory(path.parent)
    except OSError as exc:
        raise Failed(f"cannot keep the key of tokens in {path}: {exc.strerror}") from exc
    return key


class Tokens:
    def __init__(self, key: bytes, *, service: str, life: int, clock: Callable[[], float] = time.time) -> None:
        """`service`: who issues and takes them. `life`: seconds."""
        self._key = key
        self._service = service
        self._life = life
        self._clock = clock

    def issue(self, subject: str, scopes: Sequence[Scope]) -> dict[str, object]:
        """The answer of the token endpoint, without a refresh token."""
        now = int(self._clock())
        access = [{"type": s.kind, "name": s.name, "actions": sorted(s.actions)} for s in scopes]
        token = self._sign({"aud": self._service, "sub": subject, "exp": now + self._life, "access": access}, now)
        issued = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
        return {"token": token, "access_token": token, "expires_in": self._life, "issued_at": issued}

    def verify(self, token: str) -> Claims:
        """UNAUTHORIZED for a token that is forged, expired, for another service or of another kind."""
        claims = self._decode(token, self._service)
        try:
            scopes = [Scope(a["type"], a["name"], frozenset(a["actions"])) for a in claims["access"]]
        except (KeyError, TypeError) as exc:
            raise _void("it makes no claims") from exc
        return Claims(subject=str(claims["sub"]), scopes=tuple(scopes))

    def issue_refresh(self, subject: str, proof: str) -> str:
        now = int(self._clock())
        claims = {"aud": f"{self._service}#refresh", "sub": subject, "exp": now + REFRESH_LIFE, "proof": proof}
        return self._sign(claims, now)

    def verify_refresh(self, token: str) -> tuple[str, str]:
        """Subject and proof. UNAUTHORIZED."""
        claims = self._decode(token, f"{self._service}#refresh")
        return str(claims["sub"]), str(claims.get("proof", ""))

    def _sign(self, claims: dict[str, object], now: int) -> str:
        return jwt.encode(
            {"iss": self._service, "iat": now, "nbf": now - 10, **claims}, self._key, algorithm=_ALGORITHM
        )

    def _decode(self, token: str, audience: str) -> dict[str, Any]:
        options: Any = {
            "require": ["exp", "aud", "sub", "iss"],
            "verify_exp": False,
            "verify_nbf": False,
            "verify_iat": False,
        }
        try:
            claims = jwt.decode(
                token, self._key, algorithms=[_ALGORITHM], audience=audience, issuer=self._service, options=options
            )
        except jwt.InvalidTokenError as exc:
            raise _void(str(exc)) from exc
        if not isinstance(claims["exp"], int) or claims["exp"] <= self._clock():
            raise _void("it has expired")
        return claims


def _void(why: str) -> Problem:
    return Problem(Code.UNAUTHORIZED, f"the token is not valid: {why}")
