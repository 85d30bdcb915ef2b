"""OCI distribution-spec documents: errors, token answers, lists of tags; the credentials that clients send along."""

import base64

import msgspec

from wherry.errors import InvalidParameter

MAX_HEADER = 64 << 10  # characters of an X-Registry-Auth header


class RegistryError(msgspec.Struct, frozen=True):
    code: str = "UNKNOWN"
    message: str = ""

    def __str__(self) -> str:
        """As Docker's client words it: `manifest unknown: manifest unknown`."""
        code = self.code.lower().replace("_", " ")
        return f"{code}: {self.message}" if self.message else code


class ErrorBody(msgspec.Struct, frozen=True):
    errors: list[RegistryError] = []
    details: str = ""  # what some registries and token servers send instead


class Token(msgspec.Struct, frozen=True):
    token: str | None = None
    access_token: str | None = None
    refresh_token: str | None = None
    expires_in: int | float | None = None  # seconds
    issued_at: str | None = None


class TagList(msgspec.Struct, frozen=True):
    name: str = ""
    tags: list[str] | None = None


class Catalog(msgspec.Struct, frozen=True):
    repositories: list[str] | None = None


class SearchResult(msgspec.Struct, frozen=True, kw_only=True):
    """One repository, as registries and the Engine API both write it."""

    star_count: int = 0
    is_official: bool = False
    name: str
    is_automated: bool = False  # nothing is, any more
    description: str = ""


class SearchAnswer(msgspec.Struct, frozen=True):
    results: list[SearchResult] = []


class Auth(msgspec.Struct, frozen=True, kw_only=True):
    """What `X-Registry-Auth` carries. All empty: anonymous."""

    username: str = ""
    password: str = ""
    auth: str = ""  # base64 of username:password, in old clients' place
    serveraddress: str = ""
    identitytoken: str = ""
    registrytoken: str = ""

    def __repr__(self) -> str:
        return f"Auth(username={self.username!r}, serveraddress={self.serveraddress!r})"  # never the secrets


ANONYMOUS = Auth()


def decode_auth(header: str | None) -> Auth:
    """Read an `X-Registry-Auth` header (base64url of JSON); absent or empty is anonymous. Raises InvalidParameter."""
    if not header or header == "null":
        return ANONYMOUS
    if len(header) > MAX_HEADER:
        raise InvalidParameter("invalid X-Registry-Auth header: too long")
    try:
        padded = header.strip().rstrip("=")
        raw = base64.b64decode(padded + "=" * (-len(padded) % 4), altchars=b"-_", validate=True)
        value = msgspec.json.decode(raw)
        if value is None:
            return ANONYMOUS
        if not isinstance(value, dict):
            raise InvalidParameter("invalid X-Registry-Auth header: not a JSON object")
        auth = msgspec.convert({key: item for key, item in value.items() if item is not None}, Auth)
    except (ValueError, msgspec.MsgspecError, RecursionError) as exc:  # no base64, no ASCII, no JSON
        raise InvalidParameter(f"invalid X-Registry-Auth header: {exc}") from exc
    return _unpack(auth) if auth.auth and not auth.username else auth


def _unpack(auth: Auth) -> Auth:
    try:
        name, _, password = base64.b64decode(auth.auth, validate=True).decode().partition(":")
    except ValueError as exc:
        raise InvalidParameter(f"invalid X-Registry-Auth header: invalid auth: {exc}") from exc
    return msgspec.structs.replace(auth, username=name, password=password.rstrip("\0"), auth="")
