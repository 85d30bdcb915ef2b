"""The catalog: which repositories there are, and what is in each. In memory; rows are written first.

    registry_manifests  repository@digest -> {"media_type", "size", "pushed", "blobs", "children", "subject", ...}
    registry_tags       repository:tag    -> {"digest", "pushed"}
    registry_blobs      repository@digest -> {"size", "pushed"}

Changes are asked for as rows (`put_...`, `drop_...` answer what to write) and applied in memory by `apply` after they
are on disk. Used from the event loop only.
"""

import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from wherry.digest import Digest
from wherry.registry.errors import blob_unknown, manifest_unknown, name_unknown
from wherry.registry.store import Named, Tag
from wherry.state import Change, Delete, Put, State


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A blob visible in a repository."""

    size: int  # bytes
    pushed: int  # ns since the epoch: when it was last uploaded or mounted


@dataclass(frozen=True, slots=True, kw_only=True)
class TagRow:
    digest: Digest
    pushed: int


@dataclass(slots=True)
class Repository:
    tags: dict[str, Tag] = field(default_factory=dict)
    sorted_tags: list[str] = field(default_factory=list)
    manifests: dict[Digest, Named] = field(default_factory=dict)
    blobs: dict[Digest, Blob] = field(default_factory=dict)
    referrers: dict[str, set[Digest]] = field(default_factory=dict)  # subject -> manifests

    @property
    def empty(self) -> bool:
        return not (self.tags or self.manifests or self.blobs)


class Catalog:
    def __init__(self, state: State) -> None:
        """Load all rows (blocking)."""
        self._repositories: dict[str, Repository] = {}
        self._sorted: list[str] = []
        for key, raw in state.rows("registry_blobs").items():
            repository, _, digest = key.rpartition("@")
            self._make(repository).blobs[Digest(digest)] = msgspec.json.decode(raw, type=Blob)
        for key, raw in state.rows("registry_manifests").items():
            repository = key.rpartition("@")[0]
            self._add_manifest(self._make(repository), msgspec.json.decode(raw, type=Named))
        for key, raw in state.rows("registry_tags").items():
            repository, _, tag = key.rpartition(":")
            row = msgspec.json.decode(raw, type=TagRow)
            self._make(repository).tags[tag] = Tag(name=tag, digest=row.digest, pushed=row.pushed)
        for each in self._repositories.values():
            each.sorted_tags = sorted(each.tags)

    # --- reading ------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[tuple[str, Repository]]:
        return iter(self._repositories.items())

    def find(self, repository: str) -> Repository | None:
        return self._repositories.get(repository)

    def get(self, repository: str) -> Repository:
        """NAME_UNKNOWN."""
        if (found := self._repositories.get(repository)) is None:
            raise name_unknown(repository)
        return found

    def page(self, after: str, limit: int) -> list[str]:
        return page(self._sorted, after, limit)

    def tag(self, repository: str, tag: str) -> Tag:
        """NAME_UNKNOWN, MANIFEST_UNKNOWN."""
        if (found := self.get(repository).tags.get(tag)) is None:
            raise manifest_unknown(repository, tag)
        return found

    def manifest(self, repository: str, digest: Digest) -> Named:
        """NAME_UNKNOWN, MANIFEST_UNKNOWN."""
        if (found := self.get(repository).manifests.get(digest)) is None:
            raise manifest_unknown(repository, digest)
        return found

    def blob(self, repository: str, digest: Digest) -> Blob:
        """BLOB_UNKNOWN."""
        found = self._repositories.get(repository)
        if found is None or digest not in found.blobs:
            raise blob_unknown(repository, digest)
        return found.blobs[digest]

    def holders(self, digest: Digest) -> list[str]:
        """Repositories a blob is visible in."""
        return [name for name, repository in self._repositories.items() if digest in repository.blobs]

    def names(self, digest: Digest) -> bool:
        """True when some repository names the blob or manifest."""
        return any(digest in each.blobs or digest in each.manifests for each in self._repositories.values())

    def live(self) -> set[Digest]:
        """Every blob and manifest some repository names."""
        found: set[Digest] = set()
        for repository in self._repositories.values():
            found.update(repository.blobs, repository.manifests)
        return found

    # --- changing -----------------------------------------------------------------------------------------------------

    def apply(self, changes: Iterable[Change]) -> None:
        """Follow rows that were written. Changes of other tables are passed over."""
        for change in changes:
            match change:
                case Put("registry_blobs", key, value):
                    name, _, digest = key.rpartition("@")
                    self._make(name).blobs[Digest(digest)] = msgspec.json.decode(value, type=Blob)
                case Put("registry_manifests", key, value):
                    self._add_manifest(self._make(key.rpartition("@")[0]), msgspec.json.decode(value, type=Named))
                case Put("registry_tags", key, value):
                    name, _, tag = key.rpartition(":")
                    self._add_tag(self._make(name), tag, msgspec.json.decode(value, type=TagRow))
                case Delete():
                    self._delete(change)

    def _delete(self, change: Delete) -> None:
        name, _, thing = change.key.rpartition(":" if change.table == "registry_tags" else "@")
        if (repository := self._repositories.get(name)) is None:
            return
        match change.table:
            case "registry_blobs":
                repository.blobs.pop(Digest(thing), None)
            case "registry_manifests":
                if (named := repository.manifests.pop(Digest(thing), None)) is not None and named.subject:
                    repository.referrers[named.subject].discard(named.digest)
            case "registry_tags":
                if repository.tags.pop(thing, None) is not None:
                    repository.sorted_tags.pop(bisect.bisect_left(repository.sorted_tags, thing))
        if repository.empty:
            del self._repositories[name]
            self._sorted.pop(bisect.bisect_left(self._sorted, name))

    def _make(self, repository: str) -> Repository:
        if (found := self._repositories.get(repository)) is None:
            found = self._repositories[repository] = Repository()
            bisect.insort(self._sorted, repository)
        return found

    @staticmethod
    def _add_manifest(repository: Repository, named: Named) -> None:
        repository.manifests[named.digest] = named
        if named.subject:
            repository.referrers.setdefault(named.subject, set()).add(named.digest)

    @staticmethod
    def _add_tag(repository: Repository, tag: str, row: TagRow) -> None:
        if tag not in repository.tags:
            bisect.insort(repository.sorted_tags, tag)
        repository.tags[tag] = Tag(name=tag, digest=row.digest, pushed=row.pushed)


def put_blob(repository: str, digest: Digest, *, size: int, pushed: int) -> Put:
    return Put("registry_blobs", f"{repository}@{digest}", msgspec.json.encode(Blob(size=size, pushed=pushed)))


def put_manifest(repository: str, named: Named) -> Put:
    return Put("registry_manifests", f"{repository}@{named.digest}", msgspec.json.encode(named))


def put_tag(repository: str, tag: str, *, digest: Digest, pushed: int) -> Put:
    return Put("registry_tags", f"{repository}:{tag}", msgspec.json.encode(TagRow(digest=digest, pushed=pushed)))


def drop_blob(repository: str, digest: Digest) -> Delete:
    return Delete("registry_blobs", f"{repository}@{digest}")


def drop_manifest(repository: str, digest: Digest) -> Delete:
    return Delete("registry_manifests", f"{repository}@{digest}")


def drop_tag(repository: str, tag: str) -> Delete:
    return Delete("registry_tags", f"{repository}:{tag}")


def page(names: list[str], after: str, limit: int) -> list[str]:
    """At most `limit` of the sorted `names` that come behind `after`."""
    start = bisect.bisect_right(names, after) if after else 0
    return names[start : start + limit]
