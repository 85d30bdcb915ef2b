"""Which id is which: what `idmap` says, and the maps the kernel is given."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import InvalidParameter
from wherry.runtime.id_map import parse

LAST = (1 << 32) - 2
ids = st.integers(0, LAST)


def test_the_containers_user_is_the_caller_and_every_other_id_itself():
    uids, gids = parse("caller=1000-100").maps((0, 0))
    assert uids == f"1000 0 1\n1 1 999\n1001 1001 {LAST - 1000}\n"
    assert gids == f"100 0 1\n1 1 99\n101 101 {LAST - 100}\n"


def test_a_caller_who_is_the_same_in_the_container_changes_nothing():
    assert parse("caller=0-0").maps((0, 0))[0] == f"0 0 1\n1 1 {LAST}\n"
    assert parse("caller=5-5").maps((5, 5))[0] == f"5 5 1\n0 0 5\n6 6 {LAST - 5}\n"


def test_ranges_are_container_host_count():
    uids, gids = parse("uids=0-1000-1#1-100000-65536;gids=0-1000-1").maps((7, 7))
    assert uids == "1000 0 1\n100000 1 65536\n"
    assert gids == "1000 0 1\n"


@given(ids, ids)
def test_no_id_is_mapped_twice_and_the_hosts_own_root_only_to_itself(own: int, host: int):
    lines = [tuple(map(int, line.split())) for line in parse(f"caller={host}-0").maps((own, 0))[0].splitlines()]
    assert lines[0] == (host, own, 1)
    for side in (0, 1):
        ordered = sorted((line[side], line[2]) for line in lines)
        assert all(one[0] + one[1] <= other[0] for one, other in pairwise(ordered))
        assert ordered[-1][0] + ordered[-1][1] - 1 <= LAST
    assert all(inside == outside for inside, outside, _ in lines[1:])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("caller", "it is not known who calls: name the ids"),
        ("", "it must be caller, or uids="),
        ("uids=0-1-1", "both uids and gids"),
        ("uids=0-1-1;uids=0-1-1", "it must be caller"),
        ("uids=0-1;gids=0-1-1", "'0-1' is not CONTAINER-HOST-COUNT"),
        ("uids=0-1-0;gids=0-1-1", "0-1-0 goes beyond the last id"),
        ("uids=0-4294967295-1;gids=0-1-1", "goes beyond the last id"),
        ("uids=0-1-5#4-100-2;gids=0-1-1", "container id 4 is named twice"),
        ("uids=0-1-5#9-3-2;gids=0-1-1", "host id 3 is named twice"),
        ("caller=4294967295-0", "is not a user or group id"),
        ("uids=" + "#".join(f"{n}-{n}-1" for n in range(341)) + ";gids=0-0-1", "more than 340 ranges"),
    ],
)
def test_what_is_no_map_is_refused_in_words(text: str, words: str):
    with pytest.raises(InvalidParameter, match="invalid idmap") as caught:
        parse(text)
    assert words in caught.value.message


@given(st.text(alphabet="uidsgcaler=0123456789-#;x", max_size=60))
def test_any_text_is_a_map_or_an_error_in_words(text: str):
    try:
        found = parse(text)
    except InvalidParameter:
        return
    assert all(len(line.split()) == 3 for one in found.maps((0, 0)) for line in one.splitlines())
