"""All builds of a daemon, and what they share.

    job = await builder.begin(ref, client=…)
    built = await job.frontend(options)           # a Dockerfile; or job.solve(outputs): a graph of the client's own
    response = await job.export(built, exports)   # images, archives, files, caches
    await job.end(…)                              # always: its record is completed, what it held on to is let go

Nothing of a job is garbage while it goes on: its lease and the cache hold it.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wherry import ids
from wherry.aio import settle
from wherry.builder.client import Client
from wherry.builder.contexts import ContextPool
from wherry.builder.deps import Deps
from wherry.builder.export.seal import forget_lost
from wherry.builder.log import BuildLog
from wherry.builder.options import Export
from wherry.builder.records.record import Exporter
from wherry.builder.records.store import Records
from wherry.builder.run.program import OnError
from wherry.builder.solve.cache import Cache
from wherry.builder.solve.solver import Shared
from wherry.builder.solve.upkeep import GIT, HTTP, PruneOptions, Store, Usage, collect, prune, usage
from wherry.builder.sources.git import GitStore
from wherry.builder.sources.http import HttpStore
from wherry.errors import NotFound, WherryError
from wherry.events import Event
from wherry.storage.tree import remove_tree

if TYPE_CHECKING:  # the language and the exporters are loaded by the first build
    from wherry.builder.job import BuiltPlatform, Job

log = logging.getLogger(__name__)

COLLECTION_INTERVAL = 600.0  # s: the files of cache mounts are counted for it
HANDED_OUT = 1000  # results that clients may still refer to


class Builder:
    """All builds of a daemon. Made (blocking) before garbage is first collected, since the cache keeps layers."""

    def __init__(self, deps: Deps) -> None:
        root = deps.settings.root
        root.mkdir(mode=0o711, parents=True, exist_ok=True)
        self.deps = deps
        self.cache = Cache(deps.state, deps.snapshots)
        deps.images.roots.append(self.cache.roots)
        self.contexts = ContextPool(root / "contexts")
        self.git = GitStore(root / "git", proxies=deps.images.registry.proxies)
        self.http = HttpStore(root / "http", deps.images.registry)
        self.records = Records(deps.state, root / "records")
        self.store = Store(
            deps=deps,
            cache=self.cache,
            contexts=self.contexts,
            shelves={GIT: self.git, HTTP: self.http.files},
        )
        self.shared = Shared(deps=deps, cache=self.cache, steps=asyncio.Semaphore(deps.settings.parallel))
        self.handed: OrderedDict[str, BuiltPlatform] = OrderedDict()
        self.jobs: dict[str, Job] = {}
        self._next_collection = 0.0  # of the monotonic clock

    async def recover(self) -> None:
        """At the start of the daemon: what a dead one was in the middle of goes."""
        await self.records.recover()
        await settle(forget_lost, self.deps.images)
        await settle(_empty, self.deps.settings.root / "scratch")
        await settle(_empty, self.deps.settings.exec_root / "build")

    async def begin(
        self,
        ref: str = "",
        *,
        client: Client,
        attributes: Mapping[str, str] | None = None,
        exports: Sequence[Export] = (),
        frontend: str = "dockerfile.v0",
        project: str = "",
        on_error: OnError | None = None,
        recorded: bool = True,
    ) -> "Job":
        """A new job. `attributes` are kept in its record; `project` tells builds of one thing from those of others.

        `recorded`: False for what is only asked and leaves no record, as `--check`; it exports nothing.
        Raises Conflict when a build of that ref is going on.
        """
        ref = ref or ids.generate()[:25]
        exporters = [Exporter(type=each.type, attributes=each.attributes) for each in exports]
        events = BuildLog()
        if recorded:
            events = (await self.records.begin(ref, attributes=attributes, exporters=exporters, frontend=frontend)).log
        from wherry.builder.job import Job

        job = Job(self, ref, client=client, log=events, exports=exports, project=project, on_error=on_error)
        try:
            await job.open()
        except BaseException as exc:
            await job.end(error=exc)
            raise
        self.jobs[ref] = job
        return job

    def hand_out(self, built: "BuiltPlatform") -> None:
        """Results stay known by their id for a while: other builds may begin from them."""
        self.handed[built.id] = built
        while len(self.handed) > HANDED_OUT:
            self.handed.popitem(last=False)

    def handed_out(self, result_id: str) -> "BuiltPlatform":
        try:
            return self.handed[result_id]
        except KeyError:
            raise NotFound(
                f"no result {result_id[:100]!r} of another build is known any more: build it again"
            ) from None

    def ended(self, job: "Job") -> None:
        """Told by the job when it has let go of everything."""
        self.jobs.pop(job.ref, None)
        if self.deps.settings.collecting and not self.jobs and time.monotonic() > self._next_collection:
            self._next_collection = time.monotonic() + COLLECTION_INTERVAL
            self.deps.background.spawn(self._collect(), name="automatic collection of build cache")

    async def _collect(self) -> None:
        gone = await collect(self.store)
        if gone:
            log.info("removed %d entries of the build cache", len(gone))

    async def usage(self, filters: Sequence[str] = ()) -> list[Usage]:
        """What builds keep on disk, the largest first. Raises InvalidParameter for a bad filter."""
        return await usage(self.store, filters)

    async def prune(self, options: PruneOptions) -> list[Usage]:
        """What was removed."""
        gone = await prune(self.store, options)
        freed = sum(each.size for each in gone)
        self.deps.events.publish(Event(type="builder", action="prune", actor="", attributes={"reclaimed": str(freed)}))
        return gone

    async def close(self) -> None:
        """End all builds."""
        for job in list(self.jobs.values()):
            await job.end(error=asyncio.CancelledError("the daemon is stopping"))
        try:
            await self.cache.flush()
        except WherryError as exc:
            log.warning("the build cache is not written down: %s", exc.message)


def _empty(directory: Path) -> None:
    """Blocking."""
    for path in directory.iterdir() if directory.is_dir() else ():
        try:
            remove_tree(path)
        except OSError as exc:
            log.warning("cannot remove %s: %s", path, exc)
