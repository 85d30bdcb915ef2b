"""Reading WWW-Authenticate, X-Registry-Auth and token answers."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.distribution.auth import Authorizer, Challenge, TokenRequest, parse_challenges
from wherry.errors import Failed, InvalidParameter
from wherry.spec.distribution import ANONYMOUS, Auth, decode_auth


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ('Basic realm="here"', [Challenge("basic", {"realm": "here"})]),
        (
            'Bearer realm="https://a/t?x=1,2",service="s",scope="repository:a/b:pull,push"',
            [Challenge("bearer", {"realm": "https://a/t?x=1,2", "service": "s", "scope": "repository:a/b:pull,push"})],
        ),
        ("bearer Realm=abc", [Challenge("bearer", {"realm": "abc"})]),
        (r'Basic realm="a \"b\" c"', [Challenge("basic", {"realm": 'a "b" c'})]),
        (
            'Basic realm="x", Bearer realm="y"',
            [Challenge("basic", {"realm": "x"}), Challenge("bearer", {"realm": "y"})],
        ),
        ("Negotiate", [Challenge("negotiate", {})]),
        ('Bearer realm="unfinished', [Challenge("bearer", {"realm": "unfinished"})]),
        ("", []),
        ("=,=", []),
    ],
)
def test_challenges_are_read(header, found):
    assert parse_challenges([header]) == found


@given(st.lists(st.text(max_size=60), max_size=3))
def test_reading_a_challenge_always_ends(headers):
    parse_challenges(headers)


def encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


def test_credentials_are_read_from_the_header_with_and_without_padding():
    header = encoded({"username": "ann", "password": "s?>", "email": None, "serveraddress": "r"})
    for text in (header, header.rstrip("=")):
        assert decode_auth(text) == Auth(username="ann", password="s?>", serveraddress="r")
    packed = base64.b64encode(b"ann:secret").decode()
    assert decode_auth(encoded({"auth": packed})) == Auth(username="ann", password="secret")


@pytest.mark.parametrize("header", [None, "", "e30=", "e30"])
def test_no_credentials_are_anonymous(header):
    assert decode_auth(header) == ANONYMOUS


@pytest.mark.parametrize("header", ["%%%", "Zm9v", encoded([1]), encoded({"username": 1}), "A" * 70_000])
def test_bad_credentials_are_refused(header):
    with pytest.raises(InvalidParameter, match="invalid X-Registry-Auth header"):
        decode_auth(header)


def test_secrets_are_not_shown():
    shown = repr(Auth(username="ann", password="secret", identitytoken="id", registrytoken="rt"))
    assert "ann" in shown
    assert not {"secret", "id'", "rt"} & set(shown.split("'"))


class Server:
    """A token server that remembers what it was asked."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.asked: list[TokenRequest] = []

    async def __call__(self, request: TokenRequest) -> bytes:
        self.asked.append(request)
        return json.dumps(self.answer).encode()


def authorizer(server: Server, auth: Auth = ANONYMOUS, *, plain: bool = False, **kwargs: object) -> Authorizer:
    made = Authorizer(auth, plain=plain, ask=server, **kwargs)  # type: ignore[arg-type]
    made.learn([Challenge("bearer", {"realm": "https://auth/token?a=b", "service": "reg"})])
    return made


async def test_a_token_is_asked_for_once_until_it_is_about_to_expire():
    now = 0.0
    server = Server({"token": "t", "expires_in": 100})
    auth = authorizer(server, clock=lambda: now)
    assert await auth.header(("scope",)) == "Bearer t"
    now = 89.0
    await auth.header(("scope",))
    assert len(server.asked) == 1
    now = 91.0
    await auth.header(("scope",))
    assert len(server.asked) == 2
    assert server.asked[0].url == "https://auth/token?a=b&service=reg&scope=scope"


async def test_a_token_is_kept_per_scope():
    server = Server({"access_token": "t"})
    auth = authorizer(server)
    await auth.header(("one",))
    await auth.header(("two",))
    await auth.header(("one",))
    assert len(server.asked) == 2


async def test_a_password_goes_to_the_token_server_as_basic_and_an_identity_token_as_a_form():
    server = Server({"token": "t"})
    await authorizer(server, Auth(username="ann", password="p")).header(("s",))
    assert server.asked[0].headers["Authorization"] == "Basic " + base64.b64encode(b"ann:p").decode()
    await authorizer(server, Auth(identitytoken="id")).header(("s",))
    assert server.asked[1].form is not None
    assert server.asked[1].form["refresh_token"] == "id"
    assert server.asked[1].form["grant_type"] == "refresh_token"


async def test_a_registry_token_is_used_as_it_is():
    server = Server({})
    assert await authorizer(server, Auth(registrytoken="rt")).header(("s",)) == "Bearer rt"
    assert server.asked == []


async def test_credentials_are_not_sent_in_clear_text_to_a_token_server_of_an_encrypted_registry():
    server = Server({"token": "t"})
    auth = authorizer(server, Auth(username="ann", password="p"))
    auth.learn([Challenge("bearer", {"realm": "http://auth/token"})])
    with pytest.raises(Failed, match="in clear text"):
        await auth.header(("s",))
    assert server.asked == []
    plain = authorizer(server, Auth(username="ann", password="p"), plain=True)
    plain.learn([Challenge("bearer", {"realm": "http://auth/token"})])
    assert await plain.header(("s",)) == "Bearer t"


@pytest.mark.parametrize("answer", [{}, {"token": ""}, {"token": "a\r\nb: c"}, {"token": 1}, []])
async def test_a_bad_token_answer_is_refused(answer):
    with pytest.raises(Failed, match="token"):
        await authorizer(Server(answer)).header(("s",))


@pytest.mark.parametrize("realm", ["", "ftp://x", "file:///etc/passwd", "https://"])
async def test_a_realm_that_is_no_web_address_is_refused(realm):
    auth = authorizer(Server({"token": "t"}))
    auth.learn([Challenge("bearer", {"realm": realm})])
    with pytest.raises(Failed, match="realm"):
        await auth.header(("s",))


@given(st.lists(st.text(alphabet=st.sampled_from('Bearrealm="\\,; \t=')) | st.text(), max_size=3))
def test_a_header_of_any_form_is_read_without_an_error(headers: list[str]):
    for challenge in parse_challenges(headers):
        assert challenge.scheme
        assert challenge.scheme == challenge.scheme.lower()
