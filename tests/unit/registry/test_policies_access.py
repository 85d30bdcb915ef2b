"""Passwords, rules and tokens: who may do what, and what the others are told."""

import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import bcrypt
import msgspec
import pytest
from aiohttp.test_utils import TestServer

from wherry.aio import Background, settle
from wherry.errors import InvalidParameter, WherryError
from wherry.registry.access.guard import MAX_FORM, AuthConfig, Rules, check
from wherry.registry.access.passwords import FAILURES, Passwords
from wherry.registry.access.tokens import KEY_BYTES, Scope, Tokens, load_key, parse_scopes
from wherry.registry.config import Config
from wherry.registry.errors import Problem
from wherry.registry.folder import open_folder
from wherry.registry.policies import add_token_endpoint, open_policies
from wherry.registry.server import build_app

KEY = b"k" * KEY_BYTES


def entry(user: str, password: str) -> str:
    return f"{user}:{bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()}\n"


@pytest.fixture
def htpasswd(tmp_path: Path) -> Path:
    path = tmp_path / "htpasswd"
    path.write_text("# people\n\n" + entry("ann", "secret") + entry("bob", "hidden"))
    return path


# --- passwords --------------------------------------------------------------------------------------------------------


async def test_the_right_password_is_taken_and_no_other(htpasswd: Path):
    passwords = Passwords(htpasswd)
    for _ in range(2):  # the second time from memory
        await passwords.check("ann", "secret", address="a")
    for user, password in (("ann", "hidden"), ("ann", ""), ("zoe", "secret"), ("", ""), ("ann", "secret\0")):
        with pytest.raises(Problem, match="incorrect username or password"):
            await passwords.check(user, password, address="b")


async def test_a_right_password_ends_the_count_of_wrong_ones(htpasswd: Path):
    passwords = Passwords(htpasswd)
    for user in ("ann", "bob"):
        for _ in range(FAILURES - 1):
            with pytest.raises(Problem, match="incorrect"):
                await passwords.check(user, "guess", address="a")
        await passwords.check(user, {"ann": "secret", "bob": "hidden"}[user], address="a")


async def test_a_changed_file_counts_at_once(htpasswd: Path):
    passwords = Passwords(htpasswd)
    await passwords.check("ann", "secret", address="a")
    before = await passwords.fingerprint("ann")
    fresh = htpasswd.with_name("fresh")
    fresh.write_text(entry("ann", "other"))
    fresh.rename(htpasswd)
    with pytest.raises(Problem):
        await passwords.check("ann", "secret", address="a")
    await passwords.check("ann", "other", address="a")
    assert await passwords.fingerprint("ann") != before
    assert await passwords.fingerprint("bob") == ""


async def test_a_file_that_becomes_unusable_is_not_followed_and_said_so_once(
    htpasswd: Path, caplog: pytest.LogCaptureFixture
):
    passwords = Passwords(htpasswd)
    htpasswd.write_text("ann:plain\n")
    for _ in range(3):
        await passwords.check("ann", "secret", address="a")
    assert [record.message for record in caplog.records if "stay as they were" in record.message] == [
        f"the passwords stay as they were: {htpasswd}, line 1: the hash of ann is not bcrypt's; make it with "
        "`htpasswd -nB ann`"
    ]
    htpasswd.write_text(entry("ann", "other"))
    await passwords.check("ann", "other", address="a")


async def test_who_was_right_a_while_ago_does_not_wait_for_who_guesses_behind_the_same_address(htpasswd: Path):
    passwords = Passwords(htpasswd)
    await passwords.check("ann", "secret", address="proxy")
    for _ in range(FAILURES):
        with pytest.raises(Problem, match="incorrect"):
            await passwords.check("bob", "guess", address="proxy")
    with pytest.raises(Problem, match="too many wrong passwords"):
        await passwords.check("bob", "hidden", address="proxy")
    await passwords.check("ann", "secret", address="proxy")


async def test_who_guesses_is_slowed_down_and_others_are_not(htpasswd: Path):
    now = 0.0
    passwords = Passwords(htpasswd, clock=lambda: now)
    for _ in range(FAILURES):
        with pytest.raises(Problem, match="incorrect"):
            await passwords.check("ann", "guess", address="bad")
    with pytest.raises(Problem) as caught:
        await passwords.check("ann", "secret", address="bad")
    assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "61")
    await passwords.check("ann", "secret", address="good")
    now = 61.0
    await passwords.check("ann", "secret", address="bad")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ann", "line 1: want USER:HASH"),
        ("# x\nann:$apr1$abc$def", "line 2: the hash of ann is not bcrypt's; make it with `htpasswd -nB ann`"),
        ("ann:{SHA}abc", "not bcrypt's"),
        ("ann:$2y$05$short", "not bcrypt's"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_line(tmp_path: Path, text: str, words: str):
    (tmp_path / "h").write_text(text)
    with pytest.raises(InvalidParameter, match=words.replace("$", r"\$")):
        Passwords(tmp_path / "h")


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(InvalidParameter, match=r"cannot read the password file .*/nothing"):
        Passwords(tmp_path / "nothing")


# --- rules ------------------------------------------------------------------------------------------------------------


def rules(**config: object) -> Rules:
    return Rules(msgspec.convert({"htpasswd": "x", **config}, AuthConfig))


def test_without_rules_who_signed_in_may_do_everything():
    found = rules()
    assert found.allow("ann", "x", "delete")
    assert not found.allow("", "x", "pull")


@pytest.mark.parametrize(
    ("user", "repository", "action", "may"),
    [
        ("ann", "anything/at/all", "delete", True),  # of @ops
        ("bob", "team/a/b", "push", True),
        ("bob", "team/a", "delete", False),
        ("bob", "other", "pull", True),  # as everybody who has signed in
        ("bob", "other", "push", False),
        ("", "public/x", "pull", True),
        ("", "other", "pull", False),
        ("", "public/x", "push", False),
        ("ann", "", "*", True),
        ("bob", "", "*", False),
    ],
)
def test_rules_say_who_may_what_where(user: str, repository: str, action: str, may: bool):
    found = rules(
        groups={"ops": ["ann"]},
        rules=[
            {"users": ["@ops"], "actions": ["*"]},
            {"users": ["bob"], "repositories": ["team/*"], "actions": ["pull", "push"]},
            {"users": ["*"], "actions": ["pull"]},
            {"users": ["anonymous"], "repositories": ["public/*"]},
        ],
    )
    assert found.allow(user, repository, action) is may


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"anonymous": ["read"]}, "unknown action 'read'"),
        ({"rules": [{"users": ["@none"]}]}, "the group @none, which is not in groups"),
        ({"token-life": 1}, "token-life must be at least 10 seconds"),
    ],
)
def test_rules_that_can_never_be_right_are_refused(config: dict[str, object], words: str):
    with pytest.raises(InvalidParameter, match=words):
        check(msgspec.convert({"htpasswd": "x", **config}, AuthConfig))


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_a_token_says_what_it_was_issued_for():
    tokens = Tokens(KEY, service="r", life=60)
    answer = tokens.issue("ann", [Scope("repository", "a/b", frozenset({"pull"}))])
    claims = tokens.verify(str(answer["token"]))
    assert claims.subject == "ann"
    assert claims.allow("repository", "a/b", "pull")
    assert not claims.allow("repository", "a/b", "push")
    assert not claims.allow("repository", "a", "pull")


def test_forged_expired_and_foreign_tokens_are_void():
    now = 1000.0
    tokens = Tokens(KEY, service="r", life=60, clock=lambda: now)
    token = str(tokens.issue("ann", [])["token"])
    refresh = tokens.issue_refresh("ann", "proof")
    assert tokens.verify_refresh(refresh) == ("ann", "proof")
    void: list[tuple[Callable[[str], object], str]] = [
        (Tokens(b"o" * KEY_BYTES, service="r", life=60, clock=lambda: now).verify, token),
        (Tokens(KEY, service="other", life=60, clock=lambda: now).verify, token),
        (tokens.verify, refresh),
        (tokens.verify_refresh, token),
        (tokens.verify, token[:-4] + "AAAA"),
        (tokens.verify, ""),
        (tokens.verify, "a.b.c"),
        (tokens.verify, unsigned(token)),
    ]
    for verify, text in void:
        with pytest.raises(Problem) as caught:
            verify(text)
        assert caught.value.status == 401
    now = 1060.0
    with pytest.raises(Problem, match="it has expired"):
        tokens.verify(token)


def unsigned(token: str) -> str:
    """The same claims with `alg: none`."""
    head = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').decode().rstrip("=")
    return f"{head}.{token.split('.')[1]}."


def test_scopes_are_read_and_what_is_none_is_left_out():
    found = parse_scopes(
        ["repository:a/b:pull,push registry:catalog:*", "repository:localhost:5000/x:pull", "junk", ""]
    )
    assert [str(scope) for scope in found] == [
        "repository:a/b:pull,push",
        "registry:catalog:*",
        "repository:localhost:5000/x:pull",
    ]


def test_the_key_is_drawn_once_and_kept_secret(tmp_path: Path):
    key = load_key(tmp_path / "key")
    assert load_key(tmp_path / "key") == key
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "key").write_bytes(b"short")
    with pytest.raises(WherryError, match="is no key of 32 bytes"):
        load_key(tmp_path / "key")


# --- over HTTP --------------------------------------------------------------------------------------------------------

Ask = Callable[..., Awaitable[tuple[int, dict[str, str], dict[str, object]]]]


@asynccontextmanager
async def guarded(root: Path, htpasswd: Path, **auth: object) -> AsyncIterator[Ask]:
    config = msgspec.convert({"root": str(root), "auth": {"htpasswd": str(htpasswd), "rules": RULES, **auth}}, Config)
    store = await settle(open_folder, root)
    background = Background()
    policies = await open_policies(config, store, store, background)
    app = build_app(store, hooks=policies.hooks())
    assert policies.guard is not None
    add_token_endpoint(app, policies.guard)
    async with TestServer(app) as server, aiohttp.ClientSession() as session:

        async def ask(method: str, path: str, **options: object) -> tuple[int, dict[str, str], dict[str, object]]:
            async with session.request(method, server.make_url(path), **options) as answer:  # type: ignore[arg-type]
                raw = await answer.read()
                return answer.status, dict(answer.headers), msgspec.json.decode(raw) if raw else {}

        yield ask
    await background.close()
    await store.close()


RULES = [
    {"users": ["ann"], "actions": ["*"]},
    {"users": ["bob"], "repositories": ["team/*"], "actions": ["pull"]},
    {"users": ["anonymous"], "repositories": ["public/*"], "actions": ["pull"]},
]
ANN = {"Authorization": aiohttp.encode_basic_auth("ann", "secret")}
BOB = {"Authorization": aiohttp.encode_basic_auth("bob", "hidden")}


async def test_who_has_no_token_is_told_where_to_get_one(tmp_path: Path, htpasswd: Path):
    async with guarded(tmp_path / "r", htpasswd) as ask:
        status, headers, body = await ask("GET", "/v2/")
        assert status == 401
        assert headers["WWW-Authenticate"].startswith('Bearer realm="http://127.0.0.1:')
        assert "scope" not in headers["WWW-Authenticate"]
        status, headers, body = await ask("POST", "/v2/team/x/blobs/uploads/?mount=y&from=other/z")
        assert status == 401
        assert 'scope="repository:team/x:pull,push repository:other/z:pull"' in headers["WWW-Authenticate"]
        errors = body["errors"]
        assert isinstance(errors, list)
        assert errors[0]["code"] == "UNAUTHORIZED"


async def test_a_token_opens_what_its_owner_may_and_no_more(tmp_path: Path, htpasswd: Path):
    async with guarded(tmp_path / "r", htpasswd) as ask:
        scope = {"scope": "repository:team/x:pull,push"}
        status, _, answer = await ask("GET", "/token", params=scope, headers=BOB)
        assert (status, answer["scope"]) == (200, "repository:team/x:pull")
        bearer = {"Authorization": f"Bearer {answer['token']}"}
        assert (await ask("GET", "/v2/", headers=bearer))[0] == 200
        assert (await ask("GET", "/v2/team/x/manifests/t", headers=bearer))[0] == 404  # allowed, and not there
        status, headers, _ = await ask("POST", "/v2/team/x/blobs/uploads/", headers=bearer)
        assert status == 401
        assert 'error="insufficient_scope"' in headers["WWW-Authenticate"]
        status, headers, _ = await ask("GET", "/v2/", headers={"Authorization": "Bearer nonsense"})
        assert status == 401
        assert 'error="invalid_token"' in headers["WWW-Authenticate"]


async def test_nobody_gets_a_token_for_what_everybody_may(tmp_path: Path, htpasswd: Path):
    async with guarded(tmp_path / "r", htpasswd) as ask:
        wanted = {"scope": "repository:public/x:pull,push repository:team/x:pull"}
        _, _, answer = await ask("GET", "/token", params=wanted)
        assert answer["scope"] == "repository:public/x:pull"
        assert "refresh_token" not in answer


async def test_a_refresh_token_signs_in_until_the_password_changes(tmp_path: Path, htpasswd: Path):
    async with guarded(tmp_path / "r", htpasswd) as ask:
        form = {"grant_type": "password", "username": "ann", "password": "secret", "access_type": "offline"}
        status, _, answer = await ask("POST", "/token", data=form)
        assert status == 200
        again = {
            "grant_type": "refresh_token",
            "refresh_token": answer["refresh_token"],
            "scope": "repository:x:push registry:catalog:*",
        }
        status, _, renewed = await ask("POST", "/token", data=again)
        assert (status, renewed["scope"]) == (200, "repository:x:push registry:catalog:*")
        bearer = {"Authorization": f"Bearer {renewed['access_token']}"}
        assert (await ask("GET", "/v2/_catalog", headers=bearer))[2] == {"repositories": []}
        fresh = htpasswd.with_name("fresh")
        fresh.write_text(entry("ann", "new"))
        fresh.rename(htpasswd)
        status, _, body = await ask("POST", "/token", data=again)
        assert status == 401
        assert "the refresh token of ann is void: sign in again" in str(body)


@pytest.mark.parametrize(
    ("form", "status"),
    [
        ({"grant_type": "password", "username": "ann", "password": "wrong"}, 401),
        ({"grant_type": "refresh_token", "refresh_token": "x"}, 401),
        ({"grant_type": "magic"}, 400),
        ({"grant_type": "x" * MAX_FORM}, 413),
        ({}, 400),
    ],
)
async def test_a_bad_request_for_a_token_is_refused(tmp_path: Path, htpasswd: Path, form: dict[str, str], status: int):
    async with guarded(tmp_path / "r", htpasswd) as ask:
        assert (await ask("POST", "/token", data=form))[0] == status


async def test_a_password_alone_opens_the_api_too(tmp_path: Path, htpasswd: Path):
    async with guarded(tmp_path / "r", htpasswd, tokens=True) as ask:
        assert (await ask("GET", "/v2/", headers=BOB))[0] == 200
        assert (await ask("GET", "/v2/team/x/tags/list", headers=BOB))[0] == 404
        status, _, body = await ask("POST", "/v2/team/x/blobs/uploads/", headers=BOB)
        assert status == 403
        assert "denied: bob may not push team/x" in str(body)
        assert (await ask("POST", "/v2/team/x/blobs/uploads/", headers=ANN))[0] == 202
        assert (await ask("GET", "/v2/", headers={"Authorization": aiohttp.encode_basic_auth("ann", "wrong")}))[
            0
        ] == 401


@pytest.mark.parametrize("value", ["Basic", "Basic !!!", "Basic " + base64.b64encode(b"nocolon").decode(), "Digest x"])
async def test_a_header_that_cannot_be_read_is_no_sign_in(tmp_path: Path, htpasswd: Path, value: str):
    async with guarded(tmp_path / "r", htpasswd) as ask:
        assert (await ask("GET", "/v2/", headers={"Authorization": value}))[0] == 401


async def test_who_gives_no_name_and_no_password_is_nobody_and_not_somebody_who_guesses(tmp_path: Path, htpasswd: Path):
    empty = {"Authorization": aiohttp.encode_basic_auth("", "")}  # podman's answer to a challenge it has nothing for
    async with guarded(tmp_path / "r", htpasswd, tokens=False) as ask:
        for _ in range(FAILURES + 1):
            assert (await ask("GET", "/v2/public/x/manifests/t", headers=empty))[0] == 404  # allowed, and not there
        for path in ("/v2/", "/v2/team/x/manifests/t"):
            status, headers, body = await ask("GET", path, headers=empty)
            assert (status, headers["WWW-Authenticate"].split()[0]) == (401, "Basic")
            assert "authentication required" in str(body)


async def test_a_token_of_nobody_is_told_to_sign_in(tmp_path: Path, htpasswd: Path):
    async with guarded(tmp_path / "r", htpasswd) as ask:
        _, _, answer = await ask("GET", "/token", params={"scope": "repository:team/x:pull"})
        bearer = {"Authorization": f"Bearer {answer['token']}"}
        status, _, body = await ask("GET", "/v2/team/x/manifests/t", headers=bearer)
        assert status == 401
        assert "authentication required" in str(body)


async def test_who_looks_for_a_blob_is_offered_a_token_to_push_it_with(tmp_path: Path, htpasswd: Path):
    blob = f"/v2/team/x/blobs/sha256:{'0' * 64}"
    async with guarded(tmp_path / "r", htpasswd) as ask:
        _, headers, _ = await ask("HEAD", blob)
        assert 'scope="repository:team/x:pull,push"' in headers["WWW-Authenticate"]
        _, headers, _ = await ask("GET", blob)
        assert 'scope="repository:team/x:pull"' in headers["WWW-Authenticate"]
