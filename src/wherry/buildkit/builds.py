"""Builds as BuildKit's clients see them: one ref, and several calls about it that may come in any order.

    Control.Solve     is there from the beginning to the end; exports what `Return` names
    Control.Status    tells what happens
    LLBBridge.*       what is to be built, and questions about its results; names the ref in its metadata

So who names a ref waits a little for its build. A build has a job from the first thing that is to be done: the probes
with which clients find out what an engine can do leave no trace.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from wherry.aio import finish
from wherry.builder.attributes import from_attributes
from wherry.builder.build import Builder
from wherry.builder.client import Client, NoClient
from wherry.builder.graph import Output
from wherry.builder.job import Built, BuiltPlatform, Cancelled, Job
from wherry.builder.log import Event
from wherry.builder.options import CacheTransfer, Export, Options
from wherry.buildkit import bk_pb2 as pb
from wherry.buildkit import llb
from wherry.buildkit.errors import details, grpc_error
from wherry.buildkit.session import Sessions
from wherry.buildkit.session_client import SessionClient
from wherry.digest import of
from wherry.errors import Conflict, InvalidParameter, NotFound, NotSupported, WherryError
from wherry.spec.image import Platform, host_platform

PATIENCE = 5.0  # s that calls wait for the build they name
ENDED = 200  # refs of builds that are known to be over
FRONTENDS = ("dockerfile.v0", "gateway.v0")  # the second names the first as an image; any other image is refused

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What Control.Solve says of a build."""

    ref: str
    session: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    exports: Sequence[Export] = ()
    cache_exports: Sequence[CacheTransfer] = ()
    cache_imports: Sequence[CacheTransfer] = ()
    entitlements: frozenset[str] = frozenset()
    internal: bool = False
    inputs: Mapping[str, pb.Definition] = field(default_factory=dict)


class Build:
    """One build that runs. Made by `Builds.run`."""

    def __init__(self, builder: Builder, asked: Asked, client: Client, project: str) -> None:
        self.asked = asked
        self.returned: asyncio.Future[Built] = asyncio.get_running_loop().create_future()
        self._builder = builder
        self._client = client
        self._project = project
        self._lock = asyncio.Lock()
        self._job: Job | None = None
        self._started = asyncio.Event()
        self._over = False
        self._built: list[Built] = []
        self._error: BaseException | None = None
        self._response: dict[str, str] = {}

    async def job(self) -> Job:
        """The job, begun when it is not yet."""
        async with self._lock:
            if self._over:
                raise GRPCError(Status.CANCELLED, "context canceled")
            if self._job is None:
                self._job = await self._builder.begin(
                    self.asked.ref,
                    client=self._client,
                    attributes=self.asked.attributes,
                    exports=self.asked.exports,
                    project=self._project,
                    recorded=not self.asked.internal or bool(self.asked.exports),
                )
                self._started.set()
            return self._job

    async def events(self) -> AsyncIterator[list[Event]]:
        """What happens, from the beginning to the end of the build."""
        await self._started.wait()
        if self._job is not None:
            async for batch in self._job.log:
                yield batch

    async def frontend(self, attributes: Mapping[str, str], inputs: Mapping[str, pb.Definition]) -> Built:
        """Build a Dockerfile, or answer the question that is in the attributes."""
        entitlements = self.asked.entitlements
        trees: dict[str, Output] = {}
        for name, definition in inputs.items():
            output = llb.load(definition, entitlements=entitlements)
            if output is not None:
                trees[name] = output
        options = from_attributes(attributes, inputs=trees, entitlements=entitlements)
        return await self._watched(self._frontend(self._complete(options)))

    async def _frontend(self, options: Options) -> Built:
        return await (await self.job()).frontend(options)

    def _complete(self, options: Options) -> Options:
        """What Control.Solve alone says."""
        imports = [*options.cache_imports, *self.asked.cache_imports]
        unique = list({(each.type, tuple(sorted(each.attributes.items()))): each for each in imports}.values())
        return replace(options, cache_imports=unique, cache_exports=self.asked.cache_exports)

    async def graph(self, definition: pb.Definition) -> Built:
        """Evaluate a graph of the client's."""
        output = llb.load(definition, entitlements=self.asked.entitlements)
        platform = output.vertex.platform if output is not None else host_platform()
        return await self._watched(self._graph(platform, output))

    async def _graph(self, platform: Platform, output: Output | None) -> Built:
        return await (await self.job()).solve([(platform, output)])

    async def _watched(self, work: Awaitable[Built]) -> Built:
        try:
            built = await work
        except Exception as exc:
            self._error = self._error or exc
            raise self.failure(exc) from exc
        self._built.append(built)
        return built

    def failure(self, exc: BaseException) -> GRPCError:
        """What the client is told, with the place in its file."""
        if not isinstance(exc, WherryError):
            return grpc_error(exc, "build", code=Status.UNKNOWN)
        found = details(exc)
        if self._job is not None:
            found = details(exc, location=self._job.failed_at, vertex=self._job.failed_vertex)
        code = Status.CANCELLED if isinstance(exc, Cancelled) else Status.UNKNOWN
        return GRPCError(code, exc.message, found or None)

    def named(self, ids: Sequence[str], metadata: Mapping[str, bytes]) -> Built:
        """The result that the client means by the ids it gives back, with what it says of it (an image's config)."""
        for built in self._built:
            if ids and {each.id for each in built.platforms} == set(ids):
                return replace(built, metadata={**built.metadata, **metadata})
        platforms = tuple(self.result(each) for each in ids if each)
        return Built(platforms=platforms, multi=len(platforms) > 1, metadata=dict(metadata))

    def result(self, result_id: str) -> BuiltPlatform:
        return self._builder.handed_out(result_id)

    def give_back(self, built: Built) -> None:
        """The client has decided what is to be exported."""
        if not self.returned.done():
            self.returned.set_result(built)

    def give_up(self, error: GRPCError) -> None:
        """The client's side has failed; when that is because ours did, ours is the error."""
        if not self.returned.done():
            self.returned.set_exception(self.failure(self._error) if self._error is not None else error)
            self.returned.exception()  # retrieved: nobody may be waiting

    async def export(self, built: Built) -> Mapping[str, str]:
        """Nothing for the answer to a question, which has no result."""
        if not built.platforms or not (self.asked.exports or self.asked.cache_exports):
            return {}
        job = await self.job()
        try:
            self._response = await job.export(built, self.asked.exports, self.asked.cache_exports)
        except Exception as exc:
            self._error = self._error or exc
            raise self.failure(exc) from exc
        return self._response

    async def end(self, error: BaseException | None) -> None:
        """Nothing of the build goes on. Idempotent."""
        self._over = True
        async with self._lock:
            if self._job is not None:
                await self._job.end(error=self._error or error, response=self._response)
        self._started.set()
        self.returned.cancel()
        if isinstance(self._client, SessionClient):
            await self._client.close()


class Builds:
    """The builds that run, by ref."""

    def __init__(self, builder: Builder, sessions: Sessions) -> None:
        self.builder = builder
        self.sessions = sessions
        self._running: dict[str, Build] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._changed = asyncio.Event()

    async def get(self, ref: str, *, patience: float = PATIENCE) -> Build:
        """Raises NotFound when it does not begin within `patience` seconds, or is over."""
        try:
            async with asyncio.timeout(patience):
                while ref not in self._running:
                    if ref in self._ended:
                        break
                    changed = self._changed
                    await changed.wait()
                else:
                    return self._running[ref]
        except TimeoutError:
            pass
        raise NotFound(f"no such job {ref[:100]}")

    async def events(self, ref: str) -> AsyncIterator[list[Event]]:
        """Of a build that runs, is about to begin, or is over. Raises NotFound."""
        try:
            running = await self.get(ref, patience=0.0 if self._is_recorded(ref) else PATIENCE)
        except NotFound:
            if not self._is_recorded(ref):
                if ref in self._ended:
                    return
                raise
            async for batch in self.builder.records.events(ref):
                yield batch
            return
        async for batch in running.events():
            yield batch

    def _is_recorded(self, ref: str) -> bool:
        return ref not in self._running and bool(self.builder.records.history(ref=ref, limit=1))

    @asynccontextmanager
    async def run(self, asked: Asked) -> AsyncIterator[Build]:
        """A build, as long as the block: however it is left, nothing of it goes on afterwards."""
        if not asked.ref:
            raise InvalidParameter("a build must have a ref")
        client, project = await self._client(asked)
        if asked.ref in self._running:
            raise Conflict(f"job ID {asked.ref} exists")
        build = self._running[asked.ref] = Build(self.builder, asked, client, project)
        self._wake()
        error: BaseException | None = None
        try:
            yield build
        except BaseException as exc:
            error = exc
            raise
        finally:
            try:
                await finish(build.end(error))
            finally:
                del self._running[asked.ref]
                self._remember(asked.ref)
                self._wake()

    async def _client(self, asked: Asked) -> tuple[Client, str]:
        """Who is asked for files, and which project this is a build of."""
        if not asked.session:
            return NoClient(), ""
        session = await self.sessions.get(asked.session)
        about = [asked.attributes.get(key, "") for key in ("filename", "context", "contextsubdir", "target")]
        names = [_repository(each.attributes.get("name", "")) for each in asked.exports]
        project = of("\0".join([session.shared_key or session.name, *about, *names]).encode())
        return SessionClient(self.sessions, asked.session, self.builder.contexts), project

    def _remember(self, ref: str) -> None:
        self._ended[ref] = None
        self._ended.move_to_end(ref)
        while len(self._ended) > ENDED:
            self._ended.popitem(last=False)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _repository(names: str) -> str:
    """Of the first name, without its tag, which may be another one for every build."""
    first = names.partition(",")[0]
    head, slash, last = first.rpartition("/")
    return head + slash + last.partition(":")[0]


def check_frontend(name: str) -> None:
    if name not in FRONTENDS:
        raise NotSupported(
            f"unknown frontend {name[:100]!r}: this engine has dockerfile.v0 built in, and runs no other"
        )
