"""Access: passwords, tokens and rules together answer who may do what.

    /v2/…        Basic or Bearer; without either what everybody may
    GET  /token  ?service=&scope=&offline_token=       Basic, or nothing
    POST /token  grant_type=password | refresh_token   (OAuth 2)

A request that lacks credentials is told with 401 how to get them; one that has them and may not is denied with 403.
"""

import base64
import binascii
import ipaddress
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from urllib.parse import parse_qsl

import msgspec
from aiohttp import web

from wherry.errors import InvalidParameter
from wherry.registry.access.passwords import Passwords
from wherry.registry.access.tokens import Claims, Scope, Tokens, parse_scopes
from wherry.registry.errors import Code, Problem
from wherry.registry.hooks import Access

ACTIONS = ("pull", "push", "delete")
ANYBODY = "anonymous"  # in a rule: who has not signed in
SIGNED_IN = "*"  # in a rule: everybody who has
MAX_FORM = 64 << 10  # bytes of a request for a token
CATALOG = ("registry", "catalog")
NOBODY = "Og=="  # Basic with neither name nor password: what podman and skopeo answer when they have none


class Rule(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """`{"users": ["ann", "@ops"], "repositories": ["team/*"], "actions": ["pull", "push"]}`."""

    users: list[str]  # names, @groups, "*" (signed in), "anonymous"
    repositories: list[str] = msgspec.field(default_factory=lambda: ["*"])  # shell patterns; * goes across slashes
    actions: list[str] = msgspec.field(default_factory=lambda: ["pull"])  # "*" = all; also the catalog


class AuthConfig(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    htpasswd: str
    tokens: bool = True  # Bearer tokens issued by the registry itself; false: Basic alone
    token_life: int = 300  # seconds
    anonymous: list[str] = []  # actions everybody may do everywhere: ["pull"]
    groups: dict[str, list[str]] = {}
    rules: list[Rule] = []  # none: who has signed in may do everything
    external_url: str = ""  # how clients reach the registry, when that is not what they say in Host
    allow_plain: bool = False  # passwords without TLS on addresses that are not loopback


def check(config: AuthConfig) -> None:
    """InvalidParameter for what can never be right."""
    if config.token_life < 10:
        raise InvalidParameter("auth: token-life must be at least 10 seconds")
    for actions in (config.anonymous, *(rule.actions for rule in config.rules)):
        if wrong := [action for action in actions if action not in (*ACTIONS, "*")]:
            raise InvalidParameter(f"auth: unknown action {wrong[0]!r}: want pull, push, delete or *")
    for rule in config.rules:
        for user in rule.users:
            if user.startswith("@") and user[1:] not in config.groups:
                raise InvalidParameter(f"auth: a rule names the group {user}, which is not in groups")


class Rules:
    """Who may do what; pure."""

    def __init__(self, config: AuthConfig) -> None:
        self._config = config

    def allow(self, user: str, repository: str, action: str) -> bool:
        """`user` "" has not signed in. `repository` "" is the catalog, for which `action` is "*"."""
        config = self._config
        if _covers(config.anonymous, action):
            return True
        if not config.rules:
            return bool(user)
        return any(
            self._meant(rule, user)
            and _covers(rule.actions, action)
            and (not repository or any(fnmatchcase(repository, pattern) for pattern in rule.repositories))
            for rule in config.rules
        )

    def _meant(self, rule: Rule, user: str) -> bool:
        if ANYBODY in rule.users:
            return True
        if not user:
            return False
        groups = (f"@{name}" for name, members in self._config.groups.items() if user in members)
        return SIGNED_IN in rule.users or user in rule.users or any(group in rule.users for group in groups)


def _covers(actions: Iterable[str], action: str) -> bool:
    return action in actions or "*" in actions


class Guard:
    """The `authorise` hook, and the token endpoint."""

    def __init__(self, config: AuthConfig, passwords: Passwords, tokens: Tokens | None) -> None:
        self._passwords = passwords
        self._tokens = tokens
        self.configure(config)

    def configure(self, config: AuthConfig) -> None:
        """Other rules from now on."""
        self._config = config
        self._rules = Rules(config)

    @property
    def issues_tokens(self) -> bool:
        return self._tokens is not None

    async def authorise(self, request: web.Request, wanted: Sequence[Access]) -> str:
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        match scheme.lower():
            case "bearer" if self._tokens is not None:
                return self._by_token(request, value.strip(), wanted)
            case "basic" if value.strip() != NOBODY:
                user = await self._by_password(request, value, wanted)
            case _:
                user = ""
        refused = [each for each in wanted if not self._rules.allow(user, each.repository, each.action)]
        if not refused and (user or wanted):
            return user
        if not user:
            raise self._challenge(request, wanted, "authentication required")
        words = f"requested access to the resource is denied: {user} may not {_words(refused)}"
        raise Problem(Code.DENIED, words, detail=" ".join(map(str, _scopes(refused))))

    def _by_token(self, request: web.Request, token: str, wanted: Sequence[Access]) -> str:
        assert self._tokens is not None
        try:
            claims = self._tokens.verify(token)
        except Problem as exc:
            raise self._challenge(request, wanted, exc.message, error="invalid_token") from exc
        refused = [each for each in wanted if not (_claimed(claims, each) or self._claimed_by_alias(claims, each))]
        if not refused:
            return claims.subject
        words = f"{claims.subject} may not {_words(refused)} with this token"
        raise self._challenge(
            request, wanted, words if claims.subject else "authentication required", error="insufficient_scope"
        )

    def _claimed_by_alias(self, claims: Claims, access: Access) -> bool:
        """Some clients of mirrors ask for tokens by the name they use, whatever the challenge says; rules decide."""
        return (
            bool(access.alias)
            and claims.allow("repository", access.alias, access.action)
            and self._rules.allow(claims.subject, access.repository, access.action)
        )

    async def _by_password(self, request: web.Request, value: str, wanted: Sequence[Access]) -> str:
        user, password = _basic(value)
        try:
            await self._passwords.check(user, password, address=request.remote or "")
        except Problem as exc:
            if exc.code is Code.UNAUTHORIZED:
                raise self._challenge(request, wanted, exc.message) from exc
            raise
        return user

    def _challenge(self, request: web.Request, wanted: Sequence[Access], message: str, *, error: str = "") -> Problem:
        if self._tokens is None:
            said = f'Basic realm="{self._service(request)}"'
        else:
            said = f'Bearer realm="{self._base(request)}/token",service="{self._service(request)}"'
            if wanted:
                said += f',scope="{" ".join(map(str, _scopes([*wanted, *_next(request, wanted)])))}"'
            if error:
                said += f',error="{error}"'
        return Problem(
            Code.UNAUTHORIZED,
            message,
            detail=[str(each) for each in _scopes(wanted)],
            headers={"WWW-Authenticate": said},
        )

    def _base(self, request: web.Request) -> str:
        return self._config.external_url.rstrip("/") or f"{request.scheme}://{request.host}"

    def _service(self, request: web.Request) -> str:
        return self._base(request).partition("://")[2].replace('"', "")

    # --- the token endpoint -------------------------------------------------------------------------------------------

    async def get_token(self, request: web.Request) -> web.Response:
        """GET /token."""
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        user = ""
        if scheme and value.strip() != NOBODY:
            if scheme.lower() != "basic":
                raise Problem(Code.UNAUTHORIZED, "the token endpoint takes Basic authorization only")
            user, password = _basic(value)
            await self._check(request, user, password)
        wants_refresh = request.query.get("offline_token", "") in ("1", "true")
        return await self._answer(user, request.query.getall("scope", []), refresh=wants_refresh)

    async def post_token(self, request: web.Request) -> web.Response:
        """POST /token."""
        fields = await _read_form(request)
        assert self._tokens is not None
        match fields.get("grant_type", ""):
            case "password":
                user = fields.get("username", "")
                await self._check(request, user, fields.get("password", ""))
            case "refresh_token":
                user, proof = self._tokens.verify_refresh(fields.get("refresh_token", ""))
                if not proof or proof != await self._passwords.fingerprint(user):
                    raise Problem(Code.UNAUTHORIZED, f"the refresh token of {user} is void: sign in again")
            case other:
                raise Problem(
                    Code.UNSUPPORTED, f"unknown grant_type {other[:50]!r}: want password or refresh_token", status=400
                )
        refresh = fields.get("access_type") == "offline"
        return await self._answer(user, [fields.get("scope", "")], refresh=refresh)

    async def _check(self, request: web.Request, user: str, password: str) -> None:
        try:
            await self._passwords.check(user, password, address=request.remote or "")
        except Problem as exc:
            if exc.code is Code.UNAUTHORIZED:
                exc.headers["WWW-Authenticate"] = f'Basic realm="{self._service(request)}"'
            raise

    async def _answer(self, user: str, scopes: Sequence[str], *, refresh: bool) -> web.Response:
        assert self._tokens is not None
        granted = [scope for each in parse_scopes(scopes) if (scope := self._granted(user, each)).actions]
        answer = self._tokens.issue(user, granted)
        answer["scope"] = " ".join(map(str, granted))
        if refresh and user:
            answer["refresh_token"] = self._tokens.issue_refresh(user, await self._passwords.fingerprint(user))
        return web.json_response(answer, headers={"Cache-Control": "no-store"})

    def _granted(self, user: str, scope: Scope) -> Scope:
        """As much of `scope` as the rules allow."""
        if (scope.kind, scope.name) == CATALOG:
            return Scope(*CATALOG, frozenset({"*"}) if self._rules.allow(user, "", "*") else frozenset())
        if scope.kind != "repository":
            return Scope(scope.kind, scope.name, frozenset())
        asked = set(ACTIONS) if "*" in scope.actions else scope.actions & set(ACTIONS)
        allowed = {action for action in asked if self._rules.allow(user, scope.name, action)}
        return Scope(scope.kind, scope.name, frozenset(allowed))


async def _read_form(request: web.Request) -> dict[str, str]:
    """The fields of a form. SIZE_INVALID."""
    body = bytearray()
    while chunk := await request.content.readany():
        body += chunk
        if len(body) > MAX_FORM:
            raise Problem(Code.SIZE_INVALID, "the request for a token is too long", status=413)
    return dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True))


def _claimed(claims: Claims, access: Access) -> bool:
    if not access.repository:
        return claims.allow(*CATALOG, access.action)
    return claims.allow("repository", access.repository, access.action)


def _scopes(wanted: Sequence[Access]) -> list[Scope]:
    found: dict[str, set[str]] = {}
    for each in wanted:
        found.setdefault(each.repository, set()).add(each.action)
    return [
        Scope("repository", name, frozenset(actions)) if name else Scope(*CATALOG, frozenset(actions))
        for name, actions in found.items()
    ]


def _next(request: web.Request, wanted: Sequence[Access]) -> list[Access]:
    """What a client will want after this. Who asks whether a blob is there is about to push it, and some clients
    (oras for Python) never ask for a second token; the token has "push" only if the rules allow it."""
    if request.method != "HEAD" or "/blobs/" not in request.path:
        return []
    return [Access(each.repository, "push") for each in wanted]


def _words(refused: Sequence[Access]) -> str:
    """`push team/web, delete team/web`, as a sentence wants it."""
    return ", ".join(f"{each.action} {each.repository}" if each.repository else "see the catalog" for each in refused)


def _basic(value: str) -> tuple[str, str]:
    try:
        user, colon, password = base64.b64decode(value.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError) as exc:
        raise Problem(Code.UNAUTHORIZED, "the Authorization header cannot be read") from exc
    if not colon:
        raise Problem(Code.UNAUTHORIZED, "the Authorization header has no password")
    return user, password


def is_loopback(host: str) -> bool:
    """An address nobody else can listen in on."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
