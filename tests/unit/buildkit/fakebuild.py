"""A builder that builds nothing: it notes what is asked of it, and answers what the test says."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace

from wherry.builder.contexts import ContextPool
from wherry.builder.graph import Location
from wherry.builder.job import Built, BuiltPlatform, Cancelled
from wherry.builder.log import BuildLog, LogEvent, VertexEvent
from wherry.builder.options import Options
from wherry.builder.records.record import Record, Status
from wherry.builder.solve.upkeep import Usage
from wherry.builder.trees import SCRATCH
from wherry.errors import Conflict, NotFound
from wherry.kernel.files import closing
from wherry.spec.image import host_platform
from wherry.storage.content import ContentStore


class FakeJob:
    def __init__(self, house: "FakeBuilder", ref: str, client, attributes, exports, project: str) -> None:
        self.house, self.ref, self.client = house, ref, client
        self.attributes, self.exports, self.project = attributes, exports, project
        self.log = BuildLog()
        self.options: Options | None = None
        self.exported: list[tuple[Built, Sequence, Sequence]] = []
        self.ended: BaseException | str | None = "not yet"
        self.response: Mapping[str, str] = {}
        self.failed_at: Location | None = None
        self.failed_vertex = ""
        self.recorded = True

    async def frontend(self, options: Options) -> Built:
        self.options = options
        self.log.add(VertexEvent(key="sha256:1", name="[1/1] RUN x", started=1))
        return await self.house.on_frontend(self, options)

    async def solve(self, wanted, *, epoch=None) -> Built:
        return self.house.result(*[platform for platform, _ in wanted], outputs=[output for _, output in wanted])

    async def export(self, built, exports, cache_exports=()) -> dict[str, str]:
        self.exported.append((built, exports, cache_exports))
        return await self.house.on_export(self, built)

    def solver(self):
        return self

    @asynccontextmanager
    async def opened(self, output):
        import os

        with closing(os.open(self.house.root, os.O_RDONLY | os.O_DIRECTORY)) as fd:
            yield fd

    def cancel(self) -> None:
        """Nothing of it goes on by itself."""

    async def end(self, *, error=None, status=None, response=None) -> None:
        self.ended, self.response = error, response or {}
        self.log.add(LogEvent(vertex="sha256:1", stream=1, data=b"the end\n"))
        self.log.close()
        del self.house.jobs[self.ref]
        if self.recorded:
            status = Status.ERROR if error else Status.COMPLETED
            self.house.records.records[self.ref] = Record(ref=self.ref, status=status, created=1, completed=2)
            self.house.records.logs[self.ref] = self.log


class FakeRecords:
    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.logs: dict[str, BuildLog] = {}
        self.pinned: dict[str, bool] = {}

    def history(self, filters=(), limit=0, *, ref="", active_only=False):
        found = [each for each in self.records.values() if not ref or each.ref == ref]
        return [each for each in found if not active_only or each.status is Status.RUNNING]

    def get(self, ref):
        if ref not in self.records:
            raise NotFound(f"no record found for ref {ref}")
        return self.records[ref]

    async def events(self, ref):
        async for batch in self.logs[ref]:
            yield batch

    @contextmanager
    def watch(self):
        async def never():
            await asyncio.Event().wait()
            yield

        yield never()

    async def pin(self, ref, *, pinned):
        self.get(ref)
        self.pinned[ref] = pinned

    async def remove(self, ref):
        self.get(ref)
        del self.records[ref]


class FakeBuilder:
    def __init__(self, root: Path) -> None:
        self.root = root / "result"
        self.root.mkdir()
        self.contexts = ContextPool(root / "contexts")
        self.records = FakeRecords()
        self.jobs: dict[str, FakeJob] = {}
        self.begun: list[FakeJob] = []
        self.handed: dict[str, BuiltPlatform] = {}
        self.on_frontend: Callable = self._simple
        self.on_export: Callable = self._nothing
        self.kept: list[Usage] = []
        self.pruned: list = []
        self.deps = SimpleNamespace(
            snapshots=SimpleNamespace(name="overlay2"),
            networks=SimpleNamespace(bridge_gateway="172.17.0.1"),
            content=ContentStore(root / "data"),
        )

    async def begin(
        self, ref="", *, client, attributes=None, exports=(), frontend="", project="", on_error=None, recorded=True
    ):
        if ref in self.jobs:
            raise Conflict(f"a build with the ref {ref} is running")
        job = self.jobs[ref] = FakeJob(self, ref, client, attributes, exports, project)
        job.recorded = recorded
        self.begun.append(job)
        return job

    def result(self, *platforms, outputs=(), metadata=None) -> Built:
        found = []
        for number, platform in enumerate(platforms):
            output = outputs[number] if outputs else None
            built = BuiltPlatform(id=f"r{len(self.handed)}", platform=platform, output=output, result=SCRATCH)
            self.handed[built.id] = built
            found.append(built)
        return Built(platforms=tuple(found), multi=len(found) > 1, metadata=metadata or {})

    def handed_out(self, result_id):
        if result_id not in self.handed:
            raise NotFound(f"no result {result_id!r} of another build is known any more: build it again")
        return self.handed[result_id]

    async def _simple(self, job, options) -> Built:
        return self.result(host_platform())

    async def _nothing(self, job, built) -> dict[str, str]:
        return {"containerimage.config.digest": "sha256:c"}

    async def usage(self, filters=()):
        return self.kept

    async def prune(self, options):
        self.pruned.append(options)
        return self.kept


__all__ = ["Cancelled", "FakeBuilder", "FakeJob"]
