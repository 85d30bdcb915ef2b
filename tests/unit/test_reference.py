"""References: docker's grammar, its familiar form, its errors."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import InvalidParameter
from wherry.reference import is_identifier, parse, parse_repository

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("busybox", "docker.io/library/busybox", "busybox"),
        ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
        ("user/x", "docker.io/user/x", "user/x"),
        ("docker.io/library/x", "docker.io/library/x", "x"),
        ("docker.io/x", "docker.io/library/x", "x"),
        ("index.docker.io/x", "docker.io/library/x", "x"),
        ("docker.io/library/a/b", "docker.io/library/a/b", "library/a/b"),
        ("localhost/x", "localhost/x", "localhost/x"),
        ("localhost:5000/x:t", "localhost:5000/x:t", "localhost:5000/x:t"),
        ("ghcr.io/a/b/c:v1.0_x-y", "ghcr.io/a/b/c:v1.0_x-y", "ghcr.io/a/b/c:v1.0_x-y"),
        ("[::1]:5000/x", "[::1]:5000/x", "[::1]:5000/x"),
        ("Host/x", "Host/x", "Host/x"),
        (f"x@{DIGEST}", f"docker.io/library/x@{DIGEST}", f"x@{DIGEST}"),
        (f"x:1@{DIGEST}", f"docker.io/library/x:1@{DIGEST}", f"x:1@{DIGEST}"),
        ("a__b--c.d_e", "docker.io/library/a__b--c.d_e", "a__b--c.d_e"),
    ],
)
def test_a_reference_is_completed_and_shown_in_its_familiar_form(text, full, familiar):
    assert str(parse(text)) == full
    assert parse(text).familiar == familiar


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "invalid reference format"),
        (":tag", "invalid reference format"),
        ("x:", "invalid reference format"),
        ("x y", "invalid reference format"),
        ("x\n", "invalid reference format"),
        ("a//b", "invalid reference format"),
        ("-x", "invalid reference format"),
        ("x..y", "invalid reference format"),
        ("x___y", "invalid reference format"),
        ("../x", "invalid reference format"),
        ("x:" + "t" * 129, "invalid reference format"),
        ("x" * 5000, "invalid reference format"),
        ("x@sha256:12", "invalid reference format"),
        ("Foo", "invalid reference format: repository name (library/Foo) must be lowercase"),
        ("user/Foo:Bar", "invalid reference format: repository name (user/Foo) must be lowercase"),
        ("ab" * 32, f"invalid repository name ({'ab' * 32}), cannot specify 64-byte hexadecimal strings"),
        ("x@md5:" + "ab" * 16, "unsupported digest algorithm"),
        ("x@sha256:" + "ab" * 16, "invalid checksum digest length"),
        ("x@sha256:" + "AB" * 32, "invalid checksum digest format"),
        ("localhost/" + "x" * 256, "repository name must not be more than 255 characters"),
    ],
)
def test_a_bad_reference_is_refused_in_dockers_words(text, message):
    with pytest.raises(InvalidParameter) as caught:
        parse(text)
    assert caught.value.message == message


def test_without_tag_and_digest_latest_is_meant():
    assert parse("x").tagged().familiar == "x:latest"
    assert parse("x:1").tagged().familiar == "x:1"
    assert parse(f"x@{DIGEST}").tagged().familiar == f"x@{DIGEST}"


def test_repository_and_tag_as_two_parameters():
    assert parse_repository("x").familiar == "x:latest"
    assert parse_repository("x", "2").familiar == "x:2"
    assert parse_repository("x:1", "2").familiar == "x:2"
    with pytest.raises(InvalidParameter, match="refusing to create a tag with a digest reference"):
        parse_repository(f"x@{DIGEST}")
    with pytest.raises(InvalidParameter, match="invalid tag format"):
        parse_repository("x", "a b")


def test_only_64_lower_case_hex_digits_are_an_identifier():
    assert is_identifier("0" * 64)
    assert not is_identifier("0" * 63)
    assert not is_identifier("A" * 64)


@given(st.text(max_size=80))
def test_whatever_parses_parses_again_to_the_same(text):
    try:
        reference = parse(text)
    except InvalidParameter:
        return
    assert parse(str(reference)) == reference
    assert parse(reference.familiar) == reference


@pytest.mark.parametrize("text", ["docker.io/ghcr.io/x", "docker.io/localhost/x", "docker.io/library/" + "a" * 64])
def test_a_short_form_that_would_mean_something_else_is_not_used(text: str):
    assert parse(parse(text).familiar) == parse(text)
