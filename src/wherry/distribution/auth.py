"""Authorization at a registry: reading challenges (RFC 9110 section 11), Basic, and Bearer tokens per scope.

A registry says with a 401 what it wants; a Bearer challenge names a token server (realm). Tokens are kept until shortly
before they expire. Credentials go to the registry and to the realm it names, never along a redirect, and never in clear
text when the registry itself was reached by TLS.
"""

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

import msgspec

from wherry.distribution.errors import Refused
from wherry.errors import Failed
from wherry.spec.distribution import Auth, Token

MINIMUM_LIFE = 60  # seconds a token is good for when its server does not say
LEEWAY = 10  # seconds before its end that a token is replaced
CLIENT_ID = "wherry"
MAX_CHALLENGE = 8 << 10  # characters of a header looked at

_TOKEN_CHARS = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


@dataclass(frozen=True, slots=True)
class Challenge:
    scheme: str  # lower case
    parameters: Mapping[str, str]


def parse_challenges(headers: Sequence[str]) -> list[Challenge]:
    """All challenges of the WWW-Authenticate headers; what cannot be read ends its header."""
    return [challenge for header in headers for challenge in _Reader(header[:MAX_CHALLENGE]).challenges()]


class _Reader:
    """A cursor over one header: `scheme k=v, k="v", scheme2 ...`."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def challenges(self) -> list[Challenge]:
        found: list[Challenge] = []
        while scheme := self._word(" ,\t"):
            parameters: dict[str, str] = {}
            while (pair := self._pair()) is not None:
                parameters[pair[0].lower()] = pair[1]
            found.append(Challenge(scheme.lower(), parameters))
        return found

    def _word(self, skip: str) -> str:
        while self._at < len(self._text) and self._text[self._at] in skip:
            self._at += 1
        start = self._at
        while self._at < len(self._text) and self._text[self._at] in _TOKEN_CHARS:
            self._at += 1
        return self._text[start : self._at]

    def _pair(self) -> tuple[str, str] | None:
        start = self._at
        name = self._word(" ,\t")
        if not name or self._peek() != "=":
            self._at = start  # the next challenge's scheme
            return None
        self._at += 1
        return name, self._quoted() if self._peek() == '"' else self._word("")

    def _quoted(self) -> str:
        self._at += 1
        out: list[str] = []
        while (char := self._peek()) and char != '"':
            if char == "\\":
                self._at += 1
                char = self._peek()
            out.append(char)
            self._at += 1
        self._at += 1
        return "".join(out)

    def _peek(self) -> str:
        return self._text[self._at] if self._at < len(self._text) else ""


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """What to ask a token server: a GET when `form` is None, else a POST of it."""

    url: str
    headers: Mapping[str, str]
    form: Mapping[str, str] | None


Ask = Callable[[TokenRequest], Awaitable[bytes]]


class Authorizer:
    """The credentials of one user at one registry endpoint, and the tokens got with them."""

    def __init__(
        self,
        auth: Auth,
        *,
        plain: bool,
        ask: Ask,
        offline: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._auth = auth
        self._plain = plain  # the registry itself is spoken to in clear text
        self._ask = ask
        self._offline = offline  # an identity token is wanted, to be used instead of the password from now on
        self._clock = clock
        self._challenges: list[Challenge] = []
        self._tokens: dict[tuple[str, ...], tuple[str, float]] = {}  # scopes -> token, end of its life
        self._asking = asyncio.Lock()  # parallel requests need one token, not one each
        self.identity_token = ""  # what the token server gave for later

    def learn(self, challenges: Sequence[Challenge]) -> None:
        """Remember what the registry asks for."""
        if challenges:
            self._challenges = list(challenges)

    def forget(self, scopes: tuple[str, ...]) -> None:
        """The token for `scopes` was refused."""
        self._tokens.pop(scopes, None)

    async def header(self, scopes: tuple[str, ...]) -> str | None:
        """The Authorization header for a request within `scopes`; None when none is wanted or none can be made."""
        for challenge in self._challenges:
            if challenge.scheme == "bearer":
                async with self._asking:
                    return f"Bearer {await self._token(challenge, scopes)}"
            if challenge.scheme == "basic" and self._auth.username:
                return self._basic()
        return None

    @property
    def wants_password(self) -> bool:
        """The registry asks for Basic and there is nothing to answer with."""
        return bool(self._challenges) and all(c.scheme == "basic" for c in self._challenges) and not self._auth.username

    def _basic(self) -> str:
        pair = f"{self._auth.username}:{self._auth.password}".encode()
        return "Basic " + base64.b64encode(pair).decode()

    async def _token(self, challenge: Challenge, scopes: tuple[str, ...]) -> str:
        if self._auth.registrytoken:
            return self._auth.registrytoken
        known = self._tokens.get(scopes)
        if known is not None and known[1] > self._clock():
            return known[0]
        answer = _decode(await self._answer(challenge, [scope for scope in scopes if scope]))
        token = answer.token or answer.access_token
        if not token:
            raise Failed("authorization server did not include a token in the response")
        if not token.isascii() or not token.isprintable():
            raise Failed("authorization server sent a token that cannot be a header")
        if self._offline:
            self.identity_token = answer.refresh_token or ""
        life = max(float(answer.expires_in or 0), MINIMUM_LIFE)
        self._tokens[scopes] = (token, self._clock() + life - LEEWAY)
        return token

    async def _answer(self, challenge: Challenge, scopes: list[str]) -> bytes:
        realm = challenge.parameters.get("realm", "")
        try:
            parts = urlsplit(realm)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        except ValueError:
            usable = False
        if not usable:
            raise Failed(f"registry names no usable token server: realm {realm[:200]!r}")
        secret = self._auth.username or self._auth.identitytoken
        if secret and parts.scheme == "http" and not self._plain:
            raise Failed(f"refusing to send credentials to the token server {realm[:200]} in clear text")
        service = challenge.parameters.get("service", "")
        if self._auth.identitytoken:
            grant = {"grant_type": "refresh_token", "refresh_token": self._auth.identitytoken}
            return await self._ask(_by_form(realm, grant, service, scopes))
        if self._offline and self._auth.username:
            grant = {"grant_type": "password", "username": self._auth.username, "password": self._auth.password}
            try:
                return await self._ask(_by_form(realm, {**grant, "access_type": "offline"}, service, scopes))
            except Refused as exc:
                if exc.transient:
                    raise  # else it may know only the older way
        return await self._ask(self._by_query(realm, service, scopes))

    def _by_query(self, realm: str, service: str, scopes: list[str]) -> TokenRequest:
        """The way of Docker's token specification."""
        query = [("service", service)] if service else []
        query += [("scope", scope) for scope in scopes]
        headers = {}
        if self._auth.username:
            query.append(("account", self._auth.username))
            headers["Authorization"] = self._basic()
        if self._offline:
            query += [("offline_token", "true"), ("client_id", CLIENT_ID)]
        joint = "&" if urlsplit(realm).query else "?"
        return TokenRequest(realm + joint + urlencode(query), headers, None)


def _by_form(realm: str, grant: dict[str, str], service: str, scopes: list[str]) -> TokenRequest:
    """The way of OAuth 2 (RFC 6749)."""
    return TokenRequest(realm, {}, {**grant, "service": service, "client_id": CLIENT_ID, "scope": " ".join(scopes)})


def _decode(raw: bytes) -> Token:
    try:
        return msgspec.json.decode(raw, type=Token)
    except msgspec.MsgspecError as exc:
        raise Failed(f"unable to decode token response: {exc}") from exc
