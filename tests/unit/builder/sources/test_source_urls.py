"""Which text is a repository."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.builder.sources.urls import GitURL, is_http, is_upload, parse_git
from wherry.errors import InvalidParameter

GIT = [
    ("https://github.com/x/y.git", GitURL(remote="https://github.com/x/y.git")),
    ("https://github.com/x/y.git#", GitURL(remote="https://github.com/x/y.git")),
    ("https://github.com/x/y.git#v1", GitURL(remote="https://github.com/x/y.git", ref="v1")),
    ("https://github.com/x/y.git#:sub", GitURL(remote="https://github.com/x/y.git", subdirectory="sub")),
    ("https://h/y.git#b/c:d/e:f", GitURL(remote="https://h/y.git", ref="b/c", subdirectory="d/e:f")),
    ("HTTPS://h/y.git", GitURL(remote="https://h/y.git")),
    ("http://u:p@h:81/y.git", GitURL(remote="http://u:p@h:81/y.git")),
    ("git://h/y", GitURL(remote="git://h/y")),
    ("ssh://git@h:22/y#r", GitURL(remote="ssh://git@h:22/y", ref="r")),
    ("git@github.com:x/y.git#r:d", GitURL(remote="git@github.com:x/y.git", ref="r", subdirectory="d")),
    ("me_2@h-1.test:y?ref=r", GitURL(remote="me_2@h-1.test:y", ref="r")),
    ("https://h/y.git?branch=b", GitURL(remote="https://h/y.git", ref="refs/heads/b")),
    ("https://h/y.git?tag=refs/tags/t", GitURL(remote="https://h/y.git", ref="refs/tags/t")),
    ("https://h/y.git?ref=pull/1/head", GitURL(remote="https://h/y.git", ref="pull/1/head")),
    ("https://h/y.git?commit=abc1234", GitURL(remote="https://h/y.git", ref="abc1234", checksum="abc1234")),
    (
        "https://h/y.git?tag=t&checksum=abc&subdir=d",
        GitURL(remote="https://h/y.git", ref="refs/tags/t", checksum="abc", subdirectory="d"),
    ),
    ("https://h/y.git?ref=a#a", GitURL(remote="https://h/y.git", ref="a")),
    ("https://h/y.git?keep-git-dir", GitURL(remote="https://h/y.git", keep_git_directory=True)),
    ("https://h/y.git?keep-git-dir=0", GitURL(remote="https://h/y.git", keep_git_directory=False)),
    ("https://h/y.git?submodules=false", GitURL(remote="https://h/y.git", submodules=False)),
]
NOT_GIT = [
    "",
    "https://github.com/x/y",
    "https://h/y.git/z",
    "https://h/y.tar.gz",
    "./git@h:y.git",
    "../y.git",
    "y.git",
    "h:y.git",
    "file:///y.git",
    "ftp://h/y.git",
    "github.com/x/y",
    "https:///y.git",
    "https://h:99999/y.git",
    "https://[::1/y.git",
    "git@h",
    "git@h:",
    "-oProxyCommand=x@h:y",
    "git@-oProxyCommand:y",
    "ssh://-oProxyCommand=x/y",
    "docker-image://alpine",
    "https://h/" + "a" * 20_000 + ".git",
]
WRONG = [
    ("https://h/y.git?nosuch=1", 'unexpected query "nosuch"'),
    ("https://h/y.git?ref=", 'query "ref" has no value'),
    ("https://h/y.git?ref=a&ref=b", 'query "ref" has multiple values'),
    ("https://h/y.git?ref=a#b", 'ref conflicts: "b" vs "a"'),
    ("https://h/y.git?subdir=a#:b", 'subdir conflicts: "b" vs "a"'),
    ("https://h/y.git?tag=a&branch=b", "branch conflicts with tag"),
    ("https://h/y.git?tag=a#b", 'ref conflicts: "b" vs "refs/tags/a"'),
    ("https://h/y.git?submodules=maybe", 'invalid submodules value: "maybe"'),
]


@pytest.mark.parametrize(("text", "meaning"), GIT)
def test_a_repository(text: str, meaning: GitURL) -> None:
    assert parse_git(text) == meaning
    assert parse_git(text, context=True) == meaning


@pytest.mark.parametrize("text", NOT_GIT)
def test_no_repository(text: str) -> None:
    assert parse_git(text) is None


@pytest.mark.parametrize(("text", "words"), WRONG)
def test_a_repository_asked_for_wrongly(text: str, words: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        parse_git(text)
    assert words in refused.value.message


def test_the_short_form_is_for_contexts() -> None:
    assert parse_git("github.com/x/y#main:d", context=True) == GitURL(
        remote="https://github.com/x/y", ref="main", subdirectory="d", short=True
    )


def test_a_password_is_not_told() -> None:
    with pytest.raises(InvalidParameter) as refused:
        parse_git("https://ann:s3cret@h/y.git?nosuch=1")
    assert "s3cret" not in refused.value.message


def test_an_agent_is_offered_to_hosts_of_ssh() -> None:
    for text, agent in (("git@h:y", "default"), ("ssh://h/y", "default"), ("https://h/y.git", ""), ("git://h/y", "")):
        url = parse_git(text)
        assert url is not None
        assert url.source().ssh == agent


def test_what_the_url_says_of_the_git_directory_counts_more() -> None:
    said, silent = parse_git("https://h/y.git?keep-git-dir=false"), parse_git("https://h/y.git")
    assert said is not None
    assert silent is not None
    assert not said.source(keep_git_directory=True).keep_git_directory
    assert silent.source(keep_git_directory=True).keep_git_directory
    assert silent.source(checksum="abc").checksum == "abc"


def test_other_contexts() -> None:
    assert is_http("https://h/x.tar")
    assert not is_http("git@h:x")
    assert is_upload("http://buildkit-session/abc")
    assert not is_upload("http://buildkit-session.test/abc")


@given(st.text(alphabet=st.sampled_from("ab.:/@#?&=-%[]gitsshhttps \0é\n"), max_size=60))
def test_any_text_has_an_answer(text: str) -> None:
    for prefix in ("", "https://h/x.git", "git@h:", "ssh://", "github.com/"):
        try:
            url = parse_git(prefix + text, context=True)
        except InvalidParameter:
            continue
        assert url is None or not url.remote.startswith("-")
