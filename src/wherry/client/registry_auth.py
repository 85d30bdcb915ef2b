"""What a registry wants to see before it answers: the challenge of a 401, and the Authorization that meets it.

Basic goes with every request. Bearer tokens are fetched from the server the challenge names, by GET with the user's
credentials or by POST with an identity token, and kept for the scopes they were asked for.
"""

from __future__ import annotations

import binascii

from wherry.client import jsontext
from wherry.client.engine import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from wherry.client.registry import Answer, Server

CLIENT_ID = "wherry"


class RegistryError(Exception):
    """The registry cannot be reached or refuses; the message says which and why."""


class Unanswered(RegistryError):
    """Nobody answers there, or not in this scheme; a server that is not trusted is another matter."""


class Credentials:
    """Who the user is: a name and a password, an identity token, or a bearer token got elsewhere."""

    __slots__ = ("identity_token", "password", "registry_token", "user")

    def __init__(
        self, user: str = "", password: str = "", *, identity_token: str = "", registry_token: str = ""
    ) -> None:
        self.user = user
        self.password = password
        self.identity_token = identity_token
        self.registry_token = registry_token


class Asked:
    """A request to a token server."""

    __slots__ = ("body", "headers", "method", "url")

    def __init__(self, method: str, url: str, headers: dict[str, str], body: bytes | None = None) -> None:
        self.method = method
        self.url = url
        self.headers = headers
        self.body = body


def parse_challenges(text: str) -> dict[str, dict[str, str]]:
    """WWW-Authenticate by scheme, in lower case, with its parameters (RFC 9110, 11.6.1)."""
    found: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    at, end = 0, len(text)
    while at < end:
        while at < end and text[at] in " \t,":
            at += 1
        start = at
        while at < end and text[at] not in " \t,=":
            at += 1
        word = text[start:at].lower()
        if at < end and text[at] == "=":
            value, at = _parameter(text, at + 1)
            current[word] = value
        elif word:
            current = found.setdefault(word, {})
        elif start == at:
            at += 1
    return found


def _parameter(text: str, at: int) -> tuple[str, int]:
    """A token or a quoted string from `at`, and where it ends."""
    end = len(text)
    if at < end and text[at] == '"':
        value = ""
        at += 1
        while at < end and text[at] != '"':
            if text[at] == "\\" and at + 1 < end:
                at += 1
            value += text[at]
            at += 1
        return value, at + 1
    start = at
    while at < end and text[at] not in " \t,":
        at += 1
    return text[start:at], at


def basic(user: str, password: str) -> str:
    return "Basic " + binascii.b2a_base64(f"{user}:{password}".encode(), newline=False).decode()


class Authorizer:
    """The Authorization header for one registry; `ask` sends a request to a token server."""

    def __init__(self, credentials: Credentials | None, ask: Callable[[Server, Asked], Answer]) -> None:
        self.credentials = credentials
        self._ask = ask
        self._basic = False
        self._tokens: dict[frozenset[str], str] = {}

    def headers(self, server: Server, scopes: set[str]) -> dict[str, str]:
        """What is known to be wanted; {} before the first challenge."""
        known = self.credentials
        if known is not None and known.registry_token:
            return {"Authorization": f"Bearer {known.registry_token}"}
        if self._basic and known is not None:
            return {"Authorization": basic(known.user, known.password)}
        token = self._tokens.get(frozenset(scopes))
        return {"Authorization": f"Bearer {token}"} if token else {}

    def learn(self, server: Server, challenge: str, scopes: set[str], refusal: str) -> None:
        """Meet a challenge, so that `headers` has the answer; RegistryError with `refusal` when there is none."""
        wanted = parse_challenges(challenge)
        known = self.credentials
        if "bearer" in wanted and not (known is not None and known.registry_token):
            self._tokens[frozenset(scopes)] = self._fetch_token(server, wanted["bearer"], scopes)
        elif "basic" in wanted and not self._basic:
            if known is None or not known.user:
                raise RegistryError(f"{server}: no basic auth credentials: run 'wherry login {server.authority}'")
            self._basic = True
        else:
            raise RegistryError(refusal)

    def _fetch_token(self, server: Server, challenge: dict[str, str], scopes: set[str]) -> str:
        realm, service = challenge.get("realm", ""), challenge.get("service", "")
        answer = self._ask(server, self._request(realm, service, scopes))
        if answer.status != 200:
            from wherry.client.registry import refusal

            raise RegistryError(f"no token from {realm}: {refusal(answer)}")
        try:
            document = jsontext.loads(answer.body)
            token = document.get("token") or document.get("access_token")
        except (jsontext.JSONError, AttributeError):
            token = None
        if not isinstance(token, str) or not token or not token.isprintable():
            raise RegistryError(f"no token from {realm}: its answer has none")
        return token

    def _request(self, realm: str, service: str, scopes: set[str]) -> Asked:
        known = self.credentials
        ordered = sorted(scopes)
        if known is not None and known.identity_token:
            fields = {
                "grant_type": "refresh_token",
                "service": service,
                "client_id": CLIENT_ID,
                "scope": " ".join(ordered),
                "refresh_token": known.identity_token,
            }
            form = "&".join(f"{name}={quote(value)}" for name, value in fields.items())
            return Asked("POST", realm, {"Content-Type": "application/x-www-form-urlencoded"}, form.encode())
        pairs = [f"service={quote(service)}"] if service else []
        pairs += [f"scope={quote(scope)}" for scope in ordered]
        headers: dict[str, str] = {}
        if known is not None and known.user:
            pairs.insert(0, f"account={quote(known.user)}")
            headers["Authorization"] = basic(known.user, known.password)
        return Asked("GET", f"{realm}{'&' if '?' in realm else '?'}{'&'.join(pairs)}", headers)
