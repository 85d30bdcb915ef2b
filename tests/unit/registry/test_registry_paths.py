"""Taking requests apart: whatever is sent, it is understood or refused, and never anything else."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.registry.blobs import part_of
from wherry.registry.errors import Problem
from wherry.registry.server import MAX_NAME, Place, parse_path

WORD = st.text("az09", min_size=1, max_size=4)
COMPONENT = st.tuples(WORD, st.sampled_from([".", "_", "__", "-", "---"]), WORD).map("".join) | WORD
NAME = st.lists(COMPONENT, min_size=1, max_size=5).map("/".join)
LAST = st.text(st.characters(exclude_characters="/"), min_size=1, max_size=40)
SIZE = 1000


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/v2", Place("base")),
        ("/v2/", Place("base")),
        ("/v2/_catalog", Place("catalog")),
        ("/v2/a/blobs/uploads/", Place("uploads", "a")),
        ("/v2/a/blobs/uploads", Place("uploads", "a")),
        ("/v2/a/blobs/uploads/id", Place("upload", "a", "id")),
        ("/v2/a/b/blobs/sha256:0", Place("blob", "a/b", "sha256:0")),
        ("/v2/blobs/blobs/x", Place("blob", "blobs", "x")),
        ("/v2/tags/list/tags/list", Place("tags", "tags/list")),
        ("/v2/manifests/manifests/manifests/manifests", Place("manifest", "manifests/manifests", "manifests")),
        ("/v2/a/referrers/sha256:0", Place("referrers", "a", "sha256:0")),
    ],
)
def test_a_path_names_a_place(path: str, place: Place):
    assert parse_path(path) == place


@given(NAME, st.sampled_from(["blobs", "manifests", "referrers"]), LAST)
def test_a_valid_name_and_anything_behind_it_are_told_apart(name: str, kind: str, last: str):
    place = parse_path(f"/v2/{name}/{kind}/{last}")
    assert (place.repository, place.name) == (name, last)


@given(st.text(max_size=300))
def test_any_path_is_understood_or_refused(text: str):
    try:
        place = parse_path(f"/v2/{text}")
    except Problem:
        return
    assert place.kind in ("base", "catalog") or re.fullmatch(r"[a-z0-9._/-]+", place.repository)
    assert len(place.repository) <= MAX_NAME


@given(st.integers(0, SIZE + 10), st.integers(0, SIZE + 10))
def test_a_range_is_what_a_slice_is(first: int, last: int):
    expected = range(SIZE)[first : last + 1]
    if first > last:  # makes no sense, and is passed over
        assert part_of(f"bytes={first}-{last}", SIZE) == (0, SIZE)
    elif expected:
        assert part_of(f"bytes={first}-{last}", SIZE) == (expected[0], expected[-1] + 1)
    else:
        with pytest.raises(Problem) as refusal:
            part_of(f"bytes={first}-{last}", SIZE)
        assert refusal.value.status == 416


@given(st.text(max_size=30) | st.from_regex(r"bytes=\d{0,30}-\d{0,30}"), st.integers(0, SIZE))
def test_any_range_is_within_the_blob_or_refused(text: str, size: int):
    try:
        start, end = part_of(text, size)
    except Problem:
        assert size
        return
    assert 0 <= start <= end <= size


def test_a_number_too_long_to_be_one_is_passed_over():
    assert part_of(f"bytes={'9' * 5000}-", SIZE) == (0, SIZE)
