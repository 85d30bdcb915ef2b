"""Quota, read-only mode, retention, and which manifests are garbage."""

import msgspec
import pytest

from wherry.digest import Digest
from wherry.errors import InvalidParameter
from wherry.registry.catalog import Blob, Repository
from wherry.registry.errors import Problem
from wherry.registry.store import Named, Tag
from wherry.registry.upkeep.collect import choose as choose_garbage
from wherry.registry.upkeep.quota import Limits, QuotaConfig, parse_size
from wherry.registry.upkeep.retention import DAY, RetentionRule, check, choose

NOW = 100 * DAY


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("10", 10), ("10k", 10_000), ("1.5 MB", 1_500_000), ("2G", 2 * 10**9), ("1tb", 10**12)]
)
def test_sizes_are_read(text: str, size: int):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "-1", "10Q", "nan", "inf", "1e30"])
def test_what_is_no_size_is_refused(text: str):
    with pytest.raises(InvalidParameter, match="quota: invalid size"):
        parse_size(text)


class Store:
    def __init__(self, **used: int) -> None:
        self.used = used

    async def usage(self, repository: str) -> int:
        return self.used[repository or "all"]


def limits(store: Store, *, read_only: bool = False, **quota: object) -> Limits:
    return Limits(store.usage, quota=msgspec.convert(quota, QuotaConfig), read_only=read_only)


@pytest.mark.parametrize(
    ("quota", "repository", "size", "fits"),
    [
        ({"per-repository": "100"}, "a", 50, True),
        ({"per-repository": "100"}, "a", 51, False),
        ({"per-repository": "100"}, "a", 0, True),  # a manifest or a mount
        ({"per-repository": "100", "repositories": {"a": "200"}}, "a", 150, True),
        ({"per-repository": "100", "repositories": {"b*": "200"}}, "a", 51, False),
        ({"total": "80"}, "a", 10, True),
        ({"total": "80"}, "a", 11, False),
        ({}, "a", 10**15, True),
    ],
)
async def test_a_quota_is_kept(quota: dict[str, object], repository: str, size: int, fits: bool):
    found = limits(Store(a=50, all=70), **quota)
    if fits:
        await found.before_write(repository, size)
        return
    with pytest.raises(Problem) as caught:
        await found.before_write(repository, size)
    assert (caught.value.status, caught.value.code) == (403, "DENIED")
    assert f"{size} more do not fit" in caught.value.message


async def test_what_was_measured_is_forgotten_when_something_changes():
    store = Store(a=0, all=0)
    found = limits(store, **{"per-repository": "100"})
    await found.before_write("a", 60)
    store.used["a"] = 60
    found.forget()
    with pytest.raises(Problem):
        await found.before_write("a", 60)


async def test_a_read_only_registry_takes_nothing_until_it_is_told_otherwise():
    found = limits(Store(a=0, all=0), read_only=True)
    with pytest.raises(Problem) as caught:
        await found.before_write("a", 0)
    assert (caught.value.status, caught.value.code) == (405, "UNSUPPORTED")
    found.configure(quota=None, read_only=False)
    await found.before_write("a", 10**15)


# --- retention --------------------------------------------------------------------------------------------------------


def tags(**ages: float) -> list[Tag]:
    """Name -> days since it was pushed."""
    return [
        Tag(name=name, digest=Digest(f"sha256:{number:064d}"), pushed=int(NOW - age * DAY))
        for number, (name, age) in enumerate(ages.items())
    ]


def doomed(found: list[Tag], **rule: object) -> list[str]:
    return [each.tag for each in choose("r", found, [msgspec.convert(rule, RetentionRule)], now=NOW)]


def test_the_newest_are_kept():
    assert doomed(tags(a=1, b=2, c=3, d=4), **{"keep-last": 2}) == ["d", "c"]
    assert doomed(tags(a=1), **{"keep-last": 0}) == ["a"]
    assert doomed([], **{"keep-last": 0}) == []


def test_the_young_are_kept():
    assert doomed(tags(a=1, b=6.9, c=7.1), **{"keep-days": 7}) == ["c"]


def test_a_tag_stays_when_either_rule_keeps_it():
    assert doomed(tags(a=20, b=30, c=40), **{"keep-last": 1, "keep-days": 25}) == ["c", "b"]


def test_protected_tags_and_those_a_rule_is_not_about_stay():
    found = tags(latest=90, v1=80, v2=70, ci1=60, ci2=50)
    assert doomed(found, tags=["v*", "latest"], protect=["latest"], **{"keep-last": 1}) == ["v1"]


def test_the_first_rule_for_a_repository_counts():
    rules = msgspec.convert(
        [{"repositories": ["ci/*"], "keep-last": 1}, {"repositories": ["*"], "keep-last": 2}], list[RetentionRule]
    )
    found = tags(a=1, b=2, c=3)
    assert [each.tag for each in choose("ci/x/y", found, rules, now=NOW)] == ["c", "b"]
    assert [each.tag for each in choose("other", found, rules, now=NOW)] == ["c"]
    assert choose("other", found, rules[:1], now=NOW) == []


def test_what_goes_is_told_with_its_reason():
    rule = msgspec.convert({"keep-last": 1, "keep-days": 2}, RetentionRule)
    (found,) = choose("r", tags(a=1, b=30), [rule], now=NOW)
    assert found.reason == "number 2 of the newest, 1 are kept; 30.0 days old, 2 are kept"


@pytest.mark.parametrize("rule", [{}, {"keep-last": -1}, {"keep-days": -0.5}])
def test_a_rule_that_makes_no_sense_is_refused(rule: dict[str, object]):
    with pytest.raises(InvalidParameter, match="retention: rule 1"):
        check([msgspec.convert(rule, RetentionRule)])


# --- garbage ----------------------------------------------------------------------------------------------------------


def name(number: int) -> Digest:
    return Digest(f"sha256:{number:064d}")


def manifest(number: int, *, pushed: int = 0, **about: object) -> Named:
    return Named(digest=name(number), media_type="m", size=1, pushed=pushed, **about)  # type: ignore[arg-type]


def repository(*manifests: Named, tagged: Digest | None = None, blobs: dict[Digest, int] | None = None) -> Repository:
    found = Repository(manifests={each.digest: each for each in manifests})
    for each in manifests:
        if each.subject:
            found.referrers.setdefault(each.subject, set()).add(each.digest)
    if tagged:
        found.tags["t"] = Tag(name="t", digest=tagged, pushed=0)
    found.blobs = {digest: Blob(size=1, pushed=pushed) for digest, pushed in (blobs or {}).items()}
    return found


def test_what_a_tag_leads_to_stays():
    index, child, stray = manifest(1, children=[name(2)]), manifest(2, blobs=[name(9)]), manifest(3, blobs=[name(8)])
    found = repository(index, child, stray, tagged=name(1), blobs={name(9): 0, name(8): 0})
    garbage = choose_garbage(found, before=10, delete_untagged=True)
    assert (list(garbage.manifests), list(garbage.blobs)) == ([name(3)], [name(8)])


def test_signatures_live_as_long_as_what_they_sign():
    signature, of_nothing = manifest(2, subject=name(1)), manifest(4, subject=name(3))
    found = repository(manifest(1), signature, of_nothing, tagged=name(1))
    assert list(choose_garbage(found, before=10, delete_untagged=True).manifests) == [name(4)]


def test_what_is_young_stays_with_all_it_needs():
    found = repository(
        manifest(1, pushed=20, children=[name(2)]), manifest(2, blobs=[name(9)]), blobs={name(9): 0, name(8): 20}
    )
    garbage = choose_garbage(found, before=10, delete_untagged=True)
    assert not garbage.manifests
    assert not garbage.blobs


def test_untagged_manifests_stay_unless_they_are_to_go():
    found = repository(manifest(1, blobs=[name(9)]), blobs={name(9): 0, name(8): 0})
    garbage = choose_garbage(found, before=10, delete_untagged=False)
    assert (list(garbage.manifests), list(garbage.blobs)) == ([], [name(8)])
