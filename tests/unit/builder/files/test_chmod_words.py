"""`--chmod`, in octal and in words."""

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.builder.files.modes import parse_mode
from wherry.errors import InvalidParameter

FILE, DIRECTORY = stat.S_IFREG, stat.S_IFDIR


@pytest.mark.parametrize(
    ("text", "before", "after"),
    [
        ("644", FILE | 0o755, 0o644),
        ("0644", DIRECTORY | 0o755, 0o644),
        ("4755", FILE | 0o600, 0o4755),
        ("0", FILE | 0o777, 0),
        ("u=rwX,go=rX", FILE | 0o600, 0o644),
        ("u=rwX,go=rX", FILE | 0o711, 0o755),
        ("u=rwX,go=rX", DIRECTORY | 0o700, 0o755),
        ("+x", FILE | 0o644, 0o755),
        ("a+x", FILE | 0o644, 0o755),
        ("go-rwx", FILE | 0o4777, 0o4700),
        ("g=u", FILE | 0o640, 0o660),
        ("o=g-w", FILE | 0o660, 0o664),
        ("u+s,g+s,+t", FILE | 0o755, 0o7755),
        ("u-s", FILE | 0o4755, 0o755),
        ("g+t", FILE | 0o755, 0o755),
        ("u=", FILE | 0o777, 0o077),
        ("=r", FILE | 0o777, 0o444),
        ("u+rw-x", FILE | 0o100, 0o600),
    ],
)
def test_a_mode_becomes_another(text, before, after):
    change = parse_mode(text)
    assert change is not None
    assert oct(change(before)) == oct(after)


def test_no_word_changes_nothing():
    assert parse_mode("") is None


WRONG = ["888", "10000", "77777777777777777777", "-1", "u", "z+x", "u+q", "u=rw,", ",", "rwx", "٧"]


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_mode_is_refused_with_what_is_expected(text):
    with pytest.raises(InvalidParameter, match=r"invalid chmod parameter: '.*octal"):
        parse_mode(text)


@given(st.text("ugoa+-=rwxXst,01789", max_size=12), st.integers(0, 0o7777))
def test_any_mode_is_refused_or_gives_permission_bits(text, mode):
    try:
        change = parse_mode(text)
    except InvalidParameter:
        return
    assert change is None or 0 <= change(FILE | mode) <= 0o7777
