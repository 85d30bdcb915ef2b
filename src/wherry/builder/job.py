"""One build, from options to results and exports.

What it needs is evaluated by one `Solve`, so that what reading a Dockerfile needs (base images, the file itself) and
what its steps need is fetched once. Everything a job holds on to is let go by `end`.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from wherry import ids
from wherry.aio import finish, settle
from wherry.builder import loading
from wherry.builder.bringing import JobSources
from wherry.builder.client import Client
from wherry.builder.deps import Deps
from wherry.builder.dockerfile import errors
from wherry.builder.dockerfile.convert.sources import ResolvedImage
from wherry.builder.dockerfile.convert.targets import Target
from wherry.builder.dockerfile.errors import DockerfileError
from wherry.builder.dockerfile.frontend import answer, build_targets
from wherry.builder.export import cache_export, cache_import, cache_manifest, outputs, statements
from wherry.builder.export.ahead import Ahead
from wherry.builder.export.cache_manifest import Checksum, Contents, Record
from wherry.builder.export.provenance import Facts
from wherry.builder.export.squash import squash
from wherry.builder.export.work import Variant, Work, telling
from wherry.builder.graph import GitSource, ImageSource, LocalSource, Location, Output, ResolveMode, Vertex
from wherry.builder.log import BuildLog
from wherry.builder.options import CacheTransfer, Call, Export, Options
from wherry.builder.records.record import Failure, Produced, Status
from wherry.builder.records.store import Records
from wherry.builder.records.verify import difference
from wherry.builder.run.program import OnError
from wherry.builder.solve.cache import Cache
from wherry.builder.solve.solver import Shared, Solve
from wherry.builder.sources.git import GitStore
from wherry.builder.sources.http import HttpStore
from wherry.builder.sources.urls import parse_git
from wherry.builder.trees import SCRATCH, Directory, Result, Tree
from wherry.digest import is_digest
from wherry.errors import InvalidParameter, WherryError
from wherry.images.garbage import leased
from wherry.spec.engine import ContainerConfig
from wherry.spec.image import Platform, decode_config, host_platform, normalize

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltPlatform:
    """A result for one platform, under the id it is handed out by."""

    id: str
    platform: Platform
    output: Output | None
    result: Result
    target: Target | None = None  # of a Dockerfile: its config and history


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    platforms: tuple[BuiltPlatform, ...] = ()
    multi: bool = False  # an index is wanted, even of one
    options: Options = field(default_factory=Options)
    metadata: Mapping[str, bytes] = field(default_factory=dict)  # of a call: result.json, result.txt, …
    dockerfile: bytes = b""


class Cancelled(WherryError):
    """Somebody ended the build before it was through."""


class House(Protocol):
    """What jobs share: `build.Builder`."""

    deps: Deps
    cache: Cache
    shared: Shared
    records: Records
    git: GitStore
    http: HttpStore

    def hand_out(self, built: BuiltPlatform) -> None: ...

    def handed_out(self, result_id: str) -> BuiltPlatform: ...

    def ended(self, job: "Job") -> None: ...


class Job:
    """Made by `Builder.begin`, ended by `end`."""

    def __init__(
        self,
        house: House,
        ref: str,
        *,
        client: Client,
        log: BuildLog,
        exports: Sequence[Export],
        project: str,
        on_error: OnError | None,
    ) -> None:
        self.ref, self.client, self.log = ref, client, log
        self._exports = exports  # that are foreseen
        self.produced: list[Produced] = []
        self._house, self._deps = house, house.deps
        self._project, self._on_error = project, on_error
        self._held = AsyncExitStack()
        self._solve: Solve | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failed: Location | None = None
        self._opened = self._ended = False

    async def open(self) -> None:
        """Take the lease. `end` is the undo."""
        house = self._house
        self.lease = await self._held.enter_async_context(leased(self._deps.images, f"build {self.ref}"))
        self.sources = JobSources(
            self._deps,
            git=house.git,
            http=house.http,
            handed_out=lambda result_id: house.handed_out(result_id).result,
            client=self.client,
            lease=self.lease,
            held=self._held,
        )

        self._ahead = Ahead(self._deps.images, self.lease, self._exports)
        self._held.push_async_callback(self._ahead.close)
        self._opened = True

    def solver(self, epoch: int | None = None) -> Solve:
        """The job's one; `epoch` (s) counts for the first call."""
        if self._solve is None:
            self._solve = Solve(
                self._house.shared,
                client=self.client,
                log=self.log,
                lease=self.lease,
                sources=self.sources,
                epoch=None if epoch is None else epoch * 1_000_000_000,
                project=self._project,
                on_error=self._on_error,
                made=self._ahead.made,
            )
        return self._solve

    # --- results ------------------------------------------------------------------------------------------------------

    async def frontend(self, options: Options) -> Built:
        """Build what a Dockerfile says, or answer the call that is in the options.

        Raises DockerfileError for what is wrong with the file, ProgramFailed, and WherryErrors of all kinds.
        """
        return await self._watched(self._frontend(options))

    async def solve(self, wanted: Sequence[tuple[Platform, Output | None]], *, epoch: int | None = None) -> Built:
        """Evaluate graphs of the client's own. `epoch`: s."""
        return await self._watched(self._graph(wanted, epoch))

    async def export(
        self, built: Built, exports: Sequence[Export], cache_exports: Sequence[CacheTransfer] = ()
    ) -> dict[str, str]:
        """Give the results where they are wanted; BuildKit's response keys."""
        return await self._watched(self._export(built, exports, cache_exports))

    async def _frontend(self, options: Options) -> Built:
        statements.check(options)
        solve = self.solver(options.epoch)
        definition, key = await loading.load(solve, options, self.sources.unpack)
        resolver = _Resolver(self.sources, solve)
        if options.call is not Call.BUILD:
            return Built(options=options, metadata=await answer(definition, options, resolver, host=host_platform()))
        await self._import(options)
        targets = await build_targets(
            definition, options, resolver, host=host_platform(), warn=self.log.add, vertex=key
        )
        self._ahead.want(entry.vertex for target in targets for entry in target.history if entry.vertex is not None)
        results = await solve.results([target.output for target in targets])
        return Built(
            platforms=tuple(
                self._hand_out(target.platform, target.output, result, target)
                for target, result in zip(targets, results, strict=True)
            ),
            multi=options.multi_platform or len(targets) > 1,
            options=options,
            dockerfile=definition.data,
        )

    async def verify(self, built: Built) -> list[str]:
        """Build the same once more, without the cache; how the results differ, in sentences. None when they do not."""
        return await self._watched(self._verify(built))

    async def _verify(self, built: Built) -> list[str]:
        again = await self._frontend(replace(built.options, no_cache=True))
        found: list[str] = []
        for one, other in zip(built.platforms, again.platforms, strict=True):
            trees = await self.solver().results([one.output, other.output], files=True)
            first, second = (tree if isinstance(tree, Tree) else SCRATCH for tree in trees)
            platform = f"{one.platform}: " if len(built.platforms) > 1 else ""
            found += [platform + said for said in await settle(difference, self._deps.snapshots, first, second)]
        return found

    async def _graph(self, wanted: Sequence[tuple[Platform, Output | None]], epoch: int | None) -> Built:
        results = await self.solver(epoch).results([output for _, output in wanted])
        return Built(
            platforms=tuple(
                self._hand_out(platform, output, result)
                for (platform, output), result in zip(wanted, results, strict=True)
            ),
            multi=len(wanted) > 1,
        )

    def _hand_out(
        self, platform: Platform, output: Output | None, result: Result, target: Target | None = None
    ) -> BuiltPlatform:
        built = BuiltPlatform(id=ids.generate()[:25], platform=platform, output=output, result=result, target=target)
        self._house.hand_out(built)
        return built

    async def _watched(self, work: Coroutine[Any, Any, T]) -> T:
        """`work`, which `cancel` ends."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        try:
            return await task
        except DockerfileError as exc:
            self._failed = self._failed or exc.location
            raise
        except asyncio.CancelledError:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
            raise
        finally:
            self._tasks.discard(task)

    # --- caches -------------------------------------------------------------------------------------------------------

    async def _import(self, options: Options) -> None:
        """Without a cache that cannot be had the build goes on."""
        imported = self.solver().imported
        for where in options.cache_imports:
            shown = where.attributes.get("ref") or where.attributes.get("src") or where.type
            with telling(self.log, f"importing cache manifest from {shown}") as lines:
                try:
                    found = await cache_import.load(
                        self._deps, where, client=self.client, providers=self.sources.providers
                    )
                    await cache_import.restore_mounts(self._deps, self.lease, found, self.sources.providers)
                except WherryError as exc:
                    lines.done(f"not used: {exc.message}")
                    continue
                for warning in found.warnings:
                    lines.done(warning)
            for key, record in found.records.items():
                imported.trees.setdefault(key, {number: Tree(tree) for number, tree in record.outputs.items()})
            for key, checksum in found.checksums.items():
                imported.checksums.setdefault(key, checksum.checksum)

    async def _export_caches(self, built: Built, wanted: Sequence[CacheTransfer]) -> dict[str, str]:
        response: dict[str, str] = {}
        if not wanted:
            return response
        results = await self.solver().results([each.output for each in built.platforms])
        for where in wanted:
            response |= await cache_export.export(
                self._deps,
                self._exported(results),
                where,
                client=self.client,
                lease=self.lease,
                providers=self.sources.providers,
                log=self.log,
            )
        return response

    def _exported(self, results: Sequence[Result]) -> cache_export.Exported:
        contents = self._contents()
        return cache_export.Exported(
            records=contents.records,
            checksums=contents.checksums,
            results=[each for each in results if isinstance(each, Tree)],
            mounts=self.solver().cache_mounts,
        )

    def _contents(self) -> Contents:
        """What this build found out, for other caches."""
        solve = self.solver()
        records = []
        for key, trees in solve.trees.items():
            entry = self._house.cache.get(key)
            records.append(
                Record(
                    key=key,
                    outputs={number: tree.layers for number, tree in trees.items()},
                    description=entry.description if entry is not None else "",
                    created=entry.created if entry is not None else 0,
                )
            )
        checksums = [
            Checksum(key=key, chain=chain, checksum=checksum)
            for key, (chain, checksum) in solve.checksums.items()
            if chain == SCRATCH.identity or is_digest(chain)
        ]
        return Contents(records=records, checksums=checksums)

    # --- exports ------------------------------------------------------------------------------------------------------

    async def _export(
        self, built: Built, exports: Sequence[Export], cache_exports: Sequence[CacheTransfer]
    ) -> dict[str, str]:
        outputs.check(exports)
        for where in cache_exports:
            cache_export.check(where)
        response: dict[str, str] = {}
        if exports:
            inline = any(each.type == "inline" for each in cache_exports)
            work = await self._work(built, inline=inline)
            for number, each in enumerate(exports):
                outcome = await outputs.export(work, each, number)
                response = {**outcome.response, **response}
                self.produced += outcome.results
        return response | await self._export_caches(built, cache_exports)

    async def _work(self, built: Built, *, inline: bool) -> Work:
        variants = [await self._variant(each, built.metadata) for each in built.platforms]
        if inline:
            contents = self._contents()
            variants = [replace(each, cache=cache_manifest.inline(contents, each.tree)) for each in variants]
        work = Work(
            deps=self._deps,
            lease=self.lease,
            client=self.client,
            log=self.log,
            variants=variants,
            bring=lambda tree: self.sources.bring_whole(tree, self.log.add, ""),
            epoch=await self.solver().epoch(),
            indexed=built.multi,
        )
        work = await squash(work) if built.options.squash else work
        return await statements.with_statements(work, built.options, self._facts(built))

    def _facts(self, built: Built) -> Facts:
        record = self._house.records.get(self.ref)
        return Facts(
            ref=self.ref,
            attributes=record.attributes,
            host=host_platform(),
            started=record.created,
            finished=time.time_ns(),
            frontend=record.frontend,
            inputs=list(self.sources.inputs),
            context=built.options.context,
            filename=built.options.filename,
            dockerfile=built.dockerfile,
            outputs={str(normalize(each.platform)): each.output for each in built.platforms},
        )

    async def _variant(self, built: BuiltPlatform, metadata: Mapping[str, bytes]) -> Variant:
        (tree,) = await self.solver().results([built.output], files=True) if built.output else (built.result,)
        if isinstance(tree, Directory):
            raise InvalidParameter("a directory of files cannot be an image: copy it into a stage")
        target = built.target
        if target is None:
            given = metadata.get(f"containerimage.config/{built.platform}") or metadata.get("containerimage.config")
            config = decode_config(given).config if given else ContainerConfig()
            return Variant(platform=built.platform, tree=tree, config=config)
        return Variant(
            platform=target.platform,
            tree=tree,
            config=target.config,
            history=[entry.history for entry in target.history],
            author=target.author,
            base=await self._base(target),
        )

    async def _base(self, target: Target) -> Tree:
        """What a result begins from."""
        (found,) = await self.solver().results([target.base_output])
        return found if isinstance(found, Tree) else SCRATCH

    # --- the end ------------------------------------------------------------------------------------------------------

    @property
    def failed_at(self) -> Location | None:
        """Where in the Dockerfile the step stands that failed first, or what could not be read."""
        vertex = self._solve.failed if self._solve is not None else None
        return vertex.location if vertex is not None and vertex.location is not None else self._failed

    @property
    def failed_vertex(self) -> str:
        """The key in the log of the step that failed first; "" when none did."""
        solve = self._solve
        return solve.shown(solve.failed) if solve is not None and solve.failed is not None else ""

    def cancel(self) -> None:
        """End what is under way: whoever waits gets a CancelledError."""
        for task in list(self._tasks):
            task.cancel()

    async def end(
        self,
        *,
        error: BaseException | None = None,
        status: Status | None = None,
        response: Mapping[str, str] | None = None,
    ) -> None:
        """The build is over: nothing of it goes on, and its record says how it ended. Idempotent."""
        if not self._ended:
            self._ended = True
            await finish(self._end(error, status, response or {}))

    async def _end(self, error: BaseException | None, status: Status | None, response: Mapping[str, str]) -> None:
        self.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))
        if self._solve is not None:
            await self._solve.close()
            await self._solve.keep_imported()
        try:
            await self._house.cache.flush()
        except WherryError as exc:
            log.warning("the build cache is not written down yet: %s", exc.message)
        await self._held.aclose()
        recording = self._house.records.running(self.ref)
        if recording is not None:
            await self._house.records.end(
                recording,
                status or _status(error),
                error=None if error is None else self._failure(error),
                response=response,
                inputs=list(self.sources.inputs) if self._opened else [],
                results=self.produced,
            )
        self.log.close()
        self._house.ended(self)

    def _failure(self, error: BaseException) -> Failure:
        at = self.failed_at
        lines = at.ranges[0] if at is not None and at.ranges else None
        return Failure(
            message=error.message if isinstance(error, WherryError) else str(error) or type(error).__name__,
            filename=at.filename if at is not None else "",
            line=lines.start if lines else 0,
            end=lines.end if lines else 0,
            excerpt=errors.excerpt(at) if at is not None else "",
            vertex=self.failed_vertex,
        )


class _Resolver:
    """What reading a Dockerfile asks for: see `convert.sources.Resolver`."""

    def __init__(self, sources: JobSources, solve: Solve) -> None:
        self._sources, self._solve = sources, solve
        self._told: set[tuple[ImageSource, str]] = set()

    async def image(
        self, reference: str, platform: Platform, mode: ResolveMode, *, store: str, title: str
    ) -> ResolvedImage:
        source = ImageSource(reference=reference, mode=mode, store=store)
        async with AsyncExitStack() as told:
            if (source, str(platform)) not in self._told:
                self._told.add((source, str(platform)))
                vertex = Vertex(op=source, name=title, platform=platform)
                await told.enter_async_context(self._solve.telling(vertex))
            found = await self._sources.resolve(source, platform)
        return ResolvedImage(
            reference=found.reference,
            digest=None if found.local else found.digest,
            image_id=found.image_id,
            config=found.config,
        )

    async def ignore_file(self, source: LocalSource, *, title: str) -> bytes:
        return await loading.ignore_file(self._solve, source, title=title)

    def git(
        self, text: str, *, context: bool = False, keep_git_directory: bool = False, checksum: str = ""
    ) -> GitSource | None:
        url = parse_git(text, context=context)
        return None if url is None else url.source(keep_git_directory=keep_git_directory, checksum=checksum)


def _status(error: BaseException | None) -> Status:
    if error is None:
        return Status.COMPLETED
    return Status.CANCELED if isinstance(error, asyncio.CancelledError | Cancelled) else Status.ERROR
