"""From a graph to results. Nothing runs that nobody needs; what can run at the same time does.

For each vertex: the results of its inputs, by name alone (a tree's chain ID, which is its content) -> its cache key ->
what the cache has, or the work. Only then do the inputs have to be on disk: base images are pulled and imported caches
fetched by who needs their files.

An imported cache may know what a tree is called and not have its files. Steps that need only the name go on with it;
when the files are needed after all, the step is done again (`solid`), and with it what follows if its content differs.
"""

import asyncio
import contextlib
import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from wherry.aio import settle
from wherry.builder.client import Client
from wherry.builder.deps import Deps
from wherry.builder.files.checksum import ChecksumIndex, Source, checksum
from wherry.builder.files.select import select
from wherry.builder.graph import (
    NO_INPUT,
    NO_OUTPUT,
    Copy,
    Diff,
    Exec,
    ExecMount,
    Files,
    GitSource,
    HttpSource,
    ImageSource,
    LocalSource,
    Merge,
    MountKind,
    Output,
    TreeSource,
    Vertex,
    walk,
)
from wherry.builder.log import BuildLog, LogEvent, StatusEvent, VertexEvent
from wherry.builder.records.reasons import reasons
from wherry.builder.run.program import OnError, run
from wherry.builder.solve.cache import Cache, Imported
from wherry.builder.solve.changes import Changes, view
from wherry.builder.solve.flights import Flights
from wherry.builder.solve.keys import as_text, ingredients, selection_key, step_key
from wherry.builder.solve.seal import seal
from wherry.builder.trees import SCRATCH, Directory, Result, Tree
from wherry.errors import InvalidParameter, NotFound, WherryError, first_of
from wherry.images.leases import Lease
from wherry.kernel.mount import detached

T = TypeVar("T")
Told = LogEvent | StatusEvent
Results = Mapping[int, Result]

RECENT = 100  # selections of files from clients' directories whose checksums are remembered


class Sources(Protocol):
    """Where trees come from, for one job. What they give stays until the job ends."""

    async def image(self, source: ImageSource, vertex: Vertex) -> Tree: ...

    async def git(self, source: GitSource, say: Callable[[Told], None], key: str) -> Directory: ...

    async def http(self, source: HttpSource, say: Callable[[Told], None], key: str) -> Directory: ...

    async def tree(self, source: TreeSource) -> Result: ...

    async def bring(self, tree: Tree, say: Callable[[Told], None], key: str) -> Tree:
        """`tree`, on disk. Raises NotFound when nobody has its files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all solves of a daemon have in common."""

    deps: Deps
    cache: Cache
    flights: Flights[dict[int, Tree], Told] = field(default_factory=Flights)
    checksums: ChecksumIndex = field(default_factory=ChecksumIndex)
    recent: OrderedDict[str, tuple[str, Mapping[str, str]]] = field(
        default_factory=OrderedDict
    )  # of directories' files
    steps: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(4))


@dataclass(frozen=True, slots=True)
class _Made:
    """What a step is made from, as far as its key needs."""

    key: str
    ingredients: dict[str, str]


class Solve:
    """One job's evaluation of graphs; vertices that several of them share are evaluated once.

    `project` is by whose earlier builds a miss is explained. `close` ends all work.
    """

    def __init__(
        self,
        shared: Shared,
        *,
        client: Client,
        log: BuildLog,
        lease: Lease,
        sources: Sources,
        epoch: int | None = None,
        project: str = "",
        on_error: OnError | None = None,
        made: Callable[[Vertex, Tree], None] | None = None,
    ) -> None:
        """`made` is told of each layer that comes to be."""
        self.imported = Imported()
        self._made_layer = made
        self._shared, self._deps = shared, shared.deps
        self._client, self._log, self._lease, self._sources = client, log, lease, sources
        self._project, self._on_error = project, on_error
        self._id = os.urandom(16).hex()
        self._tasks: dict[tuple[int, bool], asyncio.Task[Results]] = {}
        self._vertices: list[Vertex] = []  # keeps them alive: they are known by their address
        self._shown: dict[int, str] = {}
        self._epoch = epoch
        self._newest: list[asyncio.Task[Results]] = []
        self.failed: Vertex | None = None  # the first that did
        self.trees: dict[str, Mapping[int, Tree]] = {}  # results of this build's steps, by cache key
        self.checksums: dict[str, tuple[str, str]] = {}  # of files it copied: key -> identity of the tree, checksum

    async def results(self, wanted: Sequence[Output | None], *, files: bool = False) -> list[Result]:
        """Results of the wanted outputs; with `files`, on disk. Raises the first error; then nothing goes on."""
        for output in wanted:
            if output is not None:
                self._note_contexts(output)
        return await self._gather([self._result(output, files=files) for output in wanted])

    @contextlib.asynccontextmanager
    async def opened(self, output: Output | None) -> AsyncIterator[int]:
        """A directory fd of a result's root, to read files beneath."""
        (result,) = await self.results([output], files=True)
        kept = contextlib.ExitStack()
        try:
            yield await settle(lambda: kept.enter_context(detached(view(self._deps, result))))
        finally:
            await settle(kept.close)

    async def close(self) -> None:
        """End what is under way."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- vertices -----------------------------------------------------------------------------------------------------

    async def _result(self, output: Output | None, *, files: bool = False) -> Result:
        if output is None:
            return SCRATCH
        result = await self._one(output, solid=False)
        if not files or isinstance(result, Directory):
            return result
        try:
            return await self._bring(result, output.vertex)
        except NotFound:  # a step of an imported cache, whose files were not exported: it is done here
            if not isinstance(output.vertex.op, Exec | Files | Merge | Diff):
                raise
            return await self._bring(await self._one(output, solid=True), output.vertex)

    async def _bring(self, result: Result, vertex: Vertex) -> Result:
        if isinstance(result, Directory):
            return result
        return await self._sources.bring(result, self._log.add, self.shown(vertex))

    async def _one(self, output: Output, *, solid: bool) -> Result:
        results = await asyncio.shield(self._task(output.vertex, solid=solid))
        try:
            return results[output.index]
        except KeyError:
            raise InvalidParameter(f"{output.vertex.name or 'a step'} has no output {output.index}") from None

    def _task(self, vertex: Vertex, *, solid: bool) -> "asyncio.Task[Results]":
        solid = solid and isinstance(vertex.op, Exec | Files | Merge | Diff)
        key = (id(vertex), solid)
        if key not in self._tasks:
            self._vertices.append(vertex)
            name = f"build: {vertex.name}"
            self._tasks[key] = asyncio.get_running_loop().create_task(self._evaluate(vertex, solid=solid), name=name)
        return self._tasks[key]

    async def _gather(self, work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(each) for each in work]
        except BaseExceptionGroup as errors:
            raise first_of(errors) from errors
        return [task.result() for task in tasks]

    def shown(self, vertex: Vertex) -> str:
        """What a vertex is called in this build's log."""
        if id(vertex) not in self._shown:
            number = len(self._shown)
            self._vertices.append(vertex)
            self._shown[id(vertex)] = f"sha256:{hashlib.sha256(f'{self._id}/{number}'.encode()).hexdigest()}"
        return self._shown[id(vertex)]

    def tell(self, vertex: Vertex, **fields: Any) -> None:
        inputs = tuple(self.shown(output.vertex) for output in vertex.inputs if output is not None)
        self._log.add(VertexEvent(key=self.shown(vertex), name=vertex.name, inputs=inputs, slot=vertex.slot, **fields))

    async def _evaluate(self, vertex: Vertex, *, solid: bool) -> Results:
        match vertex.op:
            case Exec() | Files() | Merge() | Diff():
                return await self._step(vertex, solid=solid)
            case TreeSource():
                return {0: await self._sources.tree(vertex.op)}
            case ImageSource():
                return {0: await self._image(vertex, vertex.op)}
            case _:
                async with self.telling(vertex):
                    return {0: await self._source(vertex)}

    @contextlib.asynccontextmanager
    async def telling(self, vertex: Vertex, why: str = "") -> AsyncIterator[None]:
        """Log that the vertex starts, and how it ends."""
        started = time.time_ns()
        self.tell(vertex, started=started, why=why)
        try:
            yield
        except asyncio.CancelledError:
            self.tell(vertex, started=started, completed=time.time_ns(), error="context canceled", why=why)
            raise
        except Exception as exc:
            self.failed = self.failed or vertex
            message = exc.message if isinstance(exc, WherryError) else str(exc)
            self.tell(vertex, started=started, completed=time.time_ns(), error=message, why=why)
            raise
        self.tell(vertex, started=started, completed=time.time_ns(), why=why)

    @contextlib.contextmanager
    def _blaming(self, vertex: Vertex) -> Iterator[None]:
        """A step that cannot begin, since a file that it takes is not there, fails as well: its place is told."""
        try:
            yield
        except WherryError as exc:
            if self.failed is None:
                self.failed = vertex
                now = time.time_ns()
                self.tell(vertex, started=now, completed=now, error=exc.message)
            raise

    async def _source(self, vertex: Vertex) -> Result:
        key = self.shown(vertex)
        match vertex.op:
            case LocalSource():
                return await self._local(vertex.op, key)
            case GitSource():
                return await self._sources.git(vertex.op, self._log.add, key)
            case HttpSource():
                return await self._sources.http(vertex.op, self._log.add, key)
        raise AssertionError(f"no source: {vertex.op}")

    async def _image(self, vertex: Vertex, source: ImageSource) -> Tree:
        """By name only: its layers are brought when somebody opens them."""
        started = time.time_ns()
        try:
            tree = await self._sources.image(source, vertex)
        except Exception as exc:
            self.failed = self.failed or vertex
            self.tell(vertex, started=started, completed=time.time_ns(), error=str(exc))
            raise
        here = tree.chain is None or await settle(self._deps.snapshots.has, tree.chain)
        self.tell(vertex, started=started, completed=time.time_ns(), cached=here)
        return tree

    async def _local(self, source: LocalSource, key: str) -> Directory:
        started, last = time.time_ns(), 0

        def transferred(current: int) -> None:
            nonlocal last
            last = current
            self._log.add(StatusEvent(vertex=key, id="transferring context:", current=current, started=started))

        found = await self._client.local(source, transferred)
        self._log.add(
            StatusEvent(vertex=key, id="transferring context:", current=last, started=started, completed=time.time_ns())
        )
        return found

    # --- the epoch ----------------------------------------------------------------------------------------------------

    def _note_contexts(self, output: Output) -> None:
        """The contexts of what is wanted, repositories too, decide the time of what is made, before any of it is."""
        for vertex in walk([output]):
            is_context = isinstance(vertex.op, LocalSource | GitSource | TreeSource)
            if is_context and (task := self._task(vertex, solid=False)) not in self._newest:
                self._newest.append(task)

    async def epoch(self) -> int:
        """ns: what was asked for; else the youngest file of the contexts; else 0."""
        if self._epoch is None:
            found = [0]
            for task in list(self._newest):
                results = await asyncio.shield(task)
                directory = results[0]
                if isinstance(directory, Directory):  # else another build's result, whose files have its time
                    found.append(directory.newest if directory.newest >= 0 else await settle(_newest, directory))
            self._epoch = max(found) // 1_000_000_000 * 1_000_000_000
        return self._epoch

    # --- steps --------------------------------------------------------------------------------------------------------

    async def _step(self, vertex: Vertex, *, solid: bool) -> Results:
        inputs = await self._gather([self._result(output) for output in vertex.inputs])
        with self._blaming(vertex):
            made = await self._made(vertex, inputs)
        while True:
            if (found := self._cached(vertex, made.key, solid=solid)) is not None:
                self._note(vertex, made)
                return found
            on_disk = await self._gather([self._result(output, files=True) for output in vertex.inputs])
            if [_identity(each) for each in on_disk] == [_identity(each) for each in inputs]:
                break
            inputs = on_disk
            with self._blaming(vertex):
                made = await self._made(vertex, inputs)
        why = self._why(vertex, made)
        async with self.telling(vertex, why):
            trees = await self._work(vertex, made, on_disk)
        self._note(vertex, made)  # of a step that failed there is nothing to compare with
        if self._made_layer is not None:
            for tree in trees.values():
                self._made_layer(vertex, tree)
        return trees

    def _cached(self, vertex: Vertex, key: str, *, solid: bool) -> Mapping[int, Tree] | None:
        """`solid`: what other caches said is of no use, its files are nowhere."""
        if vertex.ignore_cache:
            return None
        entry = self._shared.cache.find(key)
        found: Mapping[int, Tree] | None = None
        if entry is not None:
            found = {number: Tree(layers) for number, layers in entry.outputs.items()}
        elif not solid:
            found = self.imported.trees.get(key)
        if found is not None:
            now = time.time_ns()
            self.tell(vertex, started=now, completed=now, cached=True)
            self.trees[key] = found
        return found

    def _why(self, vertex: Vertex, made: _Made) -> str:
        if not vertex.slot:
            return ""
        return "; ".join(reasons(self._shared.cache.slot(self._project, vertex.slot), made.ingredients))

    def _note(self, vertex: Vertex, made: _Made) -> None:
        if vertex.slot:
            kept = {name: value for name, value in made.ingredients.items() if name != "no-cache"}
            self._shared.cache.put_slot(self._project, vertex.slot, kept)

    async def _made(self, vertex: Vertex, inputs: Sequence[Result]) -> _Made:
        """The key. Checksums of files are computed here, and remembered."""
        parents: dict[str, str] = {}
        files: dict[str, str] = {}
        mounts: dict[str, str] = {}
        identities: list[str] = []
        read_in_part = _read_in_part(vertex)
        for number, (output, result) in enumerate(zip(vertex.inputs, inputs, strict=True)):
            if number in read_in_part:
                for target, action in read_in_part[number]:
                    checksum, found = await self._checksum(output, result, action)
                    identities.append(f"{number}:{checksum}")
                    if target:
                        mounts[target] = checksum
                    else:
                        files |= found
            else:
                identities.append(f"{number}:{_identity(result)}")
                word = "base" if output is None or isinstance(output.vertex.op, ImageSource) else "parent"
                parents[word if word not in parents else f"{word} {number}"] = _identity(result)
        return _Made(step_key(vertex, identities), ingredients(vertex, parents, files, mounts))

    async def _checksum(self, output: Output | None, result: Result, action: Copy) -> tuple[str, Mapping[str, str]]:
        if isinstance(result, Directory):
            return await self._checksum_of_directory(result, action)
        cache, key = self._shared.cache, selection_key(result.identity, action)
        if (known := cache.checksum(key)) is not None:
            self.checksums[key] = result.identity, known.checksum
            return known.checksum, known.files
        if (said := self.imported.checksums.get(key)) is not None:
            return said, {}
        result = await self._result(output, files=True)
        key = selection_key(result.identity, action)
        checksum, files = await settle(self._compute, result, action)
        cache.remember(key, result.identity, checksum, files)
        self.checksums[key] = result.identity, checksum
        return checksum, files

    async def _checksum_of_directory(self, directory: Directory, action: Copy) -> tuple[str, Mapping[str, str]]:
        """What a client sent changes often: only the last ones are remembered, and not on disk."""
        recent, key = self._shared.recent, selection_key(directory.identity, action)
        if not directory.identity:
            return await settle(self._compute, directory, action)
        if key not in recent:
            recent[key] = await settle(self._compute, directory, action)
            while len(recent) > RECENT:
                recent.popitem(last=False)
        recent.move_to_end(key)
        return recent[key]

    def _compute(self, result: Result, action: Copy) -> tuple[str, Mapping[str, str]]:
        with detached(view(self._deps, result)) as root:
            checksums = result.checksums if isinstance(result, Directory) else {}
            known = self._shared.checksums.of(Source(root=root, identity=result.identity, checksums=checksums))
            found = checksum(root, action, select(root, action), known)
            return found.digest, {as_text(name): checksum for name, checksum in found.files.items()}

    # --- work ---------------------------------------------------------------------------------------------------------

    async def _work(self, vertex: Vertex, made: _Made, inputs: Sequence[Result]) -> dict[int, Tree]:
        shown = self.shown(vertex)

        def emit(event: Told) -> None:
            self._log.add(_for(event, shown))

        async def work(say: Callable[[Told], None]) -> dict[int, Tree]:
            async with self._shared.steps:
                trees = await self._perform(vertex, inputs, say)
            self._shared.cache.add(made.key, trees, description=vertex.name)
            return trees

        # a client's directory is only there as long as its own build
        alone = vertex.ignore_cache or any(isinstance(each, Directory) for each in inputs)
        key = f"{made.key} {self._id}" if alone else made.key
        trees = await self._shared.flights.join(key, work, emit)
        await self._lease.protect(chains=[layer.chain for tree in trees.values() for layer in tree.layers])
        self.trees[made.key] = trees
        return trees

    @property
    def cache_mounts(self) -> list[str]:
        """Ids of those that the steps have."""
        mounts = (mount for vertex in self._vertices if isinstance(vertex.op, Exec) for mount in vertex.op.mounts)
        return list(dict.fromkeys(each.cache_id or each.target for each in mounts if each.kind is MountKind.CACHE))

    async def keep_imported(self) -> None:
        """What other caches gave, and was fetched, is in our own from now on."""
        for key, trees in self.imported.trees.items():
            if key in self.trees and self._shared.cache.get(key) is None:
                chains = [tree.chain for tree in trees.values() if tree.chain is not None]
                if all([await settle(self._deps.snapshots.has, chain) for chain in chains]):
                    self._shared.cache.add(key, trees, description="imported")

    async def _perform(self, vertex: Vertex, inputs: Sequence[Result], say: Callable[[Told], None]) -> dict[int, Tree]:
        op = vertex.op
        match op:
            case Exec():
                return await self._run(vertex, op, inputs, say)
            case Files():
                return await self._changes(vertex, await self.epoch()).files(op, inputs)
            case Merge():
                return {0: await self._changes(vertex, await self.epoch()).merge(inputs)}
            case Diff():
                return {0: await self._changes(vertex, await self.epoch()).difference(inputs)}
        raise AssertionError(f"no step: {op}")

    def _changes(self, vertex: Vertex, epoch: int) -> Changes:
        return Changes(self._deps, self._lease, epoch=epoch, created_by=vertex.said or vertex.name)

    async def _run(
        self, vertex: Vertex, op: Exec, inputs: Sequence[Result], say: Callable[[Told], None]
    ) -> dict[int, Tree]:
        def output(stream: int, data: bytes) -> None:
            say(LogEvent(vertex="", stream=stream, data=data))

        written = await run(self._deps, op, inputs, client=self._client, output=output, on_error=self._on_error)
        trees: dict[int, Tree] = {}
        try:
            for number, each in written.items():
                trees[number] = await seal(
                    self._deps,
                    self._lease,
                    each.key,
                    each.parent,
                    epoch=await self.epoch(),
                    created_by=vertex.said or vertex.name,
                )
        finally:
            for each in written.values():
                await settle(self._deps.snapshots.remove, each.key)  # nothing is there when it was committed
        return trees


def _identity(result: Result) -> str:
    return result.identity


def _read_in_part(vertex: Vertex) -> dict[int, list[tuple[str, Copy]]]:
    """Inputs of which a step reads only some files: by number, where they are mounted ("" when copied) and which."""
    found: dict[int, list[tuple[str, Copy]]] = {}
    match vertex.op:
        case Files(steps=steps):
            whole = {step.input for step in steps}
            for step in steps:
                copied = 0 <= step.secondary < len(vertex.inputs) and step.secondary not in whole
                if isinstance(step.action, Copy) and copied:
                    found.setdefault(step.secondary, []).append(("", step.action))
        case Exec(mounts=mounts):
            whole = {mount.input for mount in mounts if not _is_read_only(mount)}
            for mount in mounts:
                if mount.input != NO_INPUT and mount.input not in whole:
                    action = Copy(source=mount.selector or "/", target="/", wildcard=False)
                    found.setdefault(mount.input, []).append((mount.target, action))
    return found


def _is_read_only(mount: ExecMount) -> bool:
    return mount.kind in (MountKind.BIND, MountKind.CACHE) and mount.target != "/" and mount.output == NO_OUTPUT


def _for(event: Told, shown: str) -> Told:
    return replace(event, vertex=shown)


def _newest(directory: Directory) -> int:
    """The youngest file's time (ns), blocking."""
    newest = 0
    stack = [os.fspath(directory.path)]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
                else:
                    newest = max(newest, found.st_mtime_ns)
    return newest
