"""Retention: which tags have had their time. Rules are tried in order; the first that speaks for a repository counts.

A tag goes when the rule has it in `tags`, does not protect it, and neither `keep-last` nor `keep-days` keeps it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import msgspec

from wherry.errors import InvalidParameter
from wherry.registry.errors import Problem
from wherry.registry.store import RegistryStore, Tag

DAY = 24 * 3600 * 10**9  # ns
PAGE = 1000  # repositories looked at at a time


class RetentionRule(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    repositories: list[str] = msgspec.field(default_factory=lambda: ["*"])  # shell patterns; * goes across slashes
    tags: list[str] = msgspec.field(default_factory=lambda: ["*"])  # which tags the rule is about
    protect: list[str] = []  # tags that never go
    keep_last: int | None = None  # newest tags to keep
    keep_days: float | None = None  # tags younger than that are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Doomed:
    repository: str
    tag: str
    reason: str


def check(rules: Sequence[RetentionRule]) -> None:
    """InvalidParameter for a rule that would remove everything, or nothing."""
    for number, rule in enumerate(rules, 1):
        if rule.keep_last is None and rule.keep_days is None:
            raise InvalidParameter(f"retention: rule {number} keeps nothing: give keep-last or keep-days")
        if (rule.keep_last or 0) < 0 or (rule.keep_days or 0) < 0:
            raise InvalidParameter(f"retention: rule {number}: keep-last and keep-days cannot be negative")


def choose(repository: str, tags: Sequence[Tag], rules: Sequence[RetentionRule], *, now: int) -> list[Doomed]:
    """The tags of a repository that go at `now` (ns since the epoch), oldest first. Pure."""
    rule = next((r for r in rules if any(fnmatchcase(repository, pattern) for pattern in r.repositories)), None)
    if rule is None:
        return []
    subject = [tag for tag in tags if _matches(tag.name, rule.tags) and not _matches(tag.name, rule.protect)]
    subject.sort(key=lambda tag: (tag.pushed, tag.name), reverse=True)
    kept = set(subject[: rule.keep_last]) if rule.keep_last is not None else set()
    if rule.keep_days is not None:
        kept |= {tag for tag in subject if tag.pushed > now - rule.keep_days * DAY}
    return [
        Doomed(repository=repository, tag=tag.name, reason=_reason(rule, place, now - tag.pushed))
        for place, tag in reversed(list(enumerate(subject, 1)))
        if tag not in kept
    ]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _reason(rule: RetentionRule, place: int, age: int) -> str:
    said = []
    if rule.keep_last is not None:
        said.append(f"number {place} of the newest, {rule.keep_last} are kept")
    if rule.keep_days is not None:
        said.append(f"{age / DAY:.1f} days old, {rule.keep_days:g} are kept")
    return "; ".join(said)


async def retain(store: RegistryStore, rules: Sequence[RetentionRule], *, dry_run: bool) -> list[Doomed]:
    """Remove (or, with `dry_run`, only name) what the rules do not keep. What somebody removed before is no error."""
    doomed: list[Doomed] = []
    after = ""
    while names := await store.repositories(after=after, limit=PAGE):
        for name in names:
            try:
                doomed += choose(name, await store.tag_list(name), rules, now=time.time_ns())
            except Problem:  # it went meanwhile
                continue
        after = names[-1]
    if dry_run:
        return doomed
    gone: list[Doomed] = []
    for each in doomed:
        try:
            await store.delete_tag(each.repository, each.tag)
        except Problem:
            continue
        gone.append(each)
    return gone
