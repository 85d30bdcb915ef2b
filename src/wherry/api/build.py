"""POST /build, the classic way to build: the context comes as the body, progress goes as lines of JSON.

Also /build/cancel and /build/prune. The directory the context is unpacked to is there as long as the build.
"""

import asyncio
import os
import re
import shutil
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from aiohttp import web

from wherry.aio import settle
from wherry.api import errors
from wherry.api.build_client import ClassicClient
from wherry.api.build_output import Classic, Step
from wherry.api.build_query import BuildRequest, read
from wherry.api.build_steps import steps_of
from wherry.api.call import Call
from wherry.api.progress import Pending, Report, follow
from wherry.builder.build import Builder
from wherry.builder.dockerfile.stages import parse_dockerfile
from wherry.builder.graph import HttpSource
from wherry.builder.job import Cancelled, Job
from wherry.builder.loading import DEFAULT, read_file
from wherry.builder.log import VertexEvent
from wherry.builder.solve.upkeep import PruneOptions
from wherry.builder.sources import tarball
from wherry.builder.sources.urls import parse_git
from wherry.builder.trees import Directory
from wherry.containers.views.times import parse_time
from wherry.digest import of
from wherry.distribution.proxy import masked
from wherry.errors import InvalidParameter, WherryError
from wherry.ids import generate
from wherry.kernel.files import closing
from wherry.spec.image import host_platform
from wherry.storage.tree import remove_tree

FILTERS = ("until", "id", "parent", "type", "description", "inuse", "shared", "private", "mutable", "immutable")
LAST_LINES = 5000  # of a quiet build, told when it fails

Wait = Callable[[], Awaitable[None]]

_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}\Z")


async def build(call: Call) -> web.StreamResponse:
    request = read(call)

    async def work(report: Pending) -> None:
        await _build(call, request, report)

    return await follow(call, work)


async def _build(call: Call, request: BuildRequest, report: Pending) -> None:
    client = ClassicClient(request.credentials)
    builder = call.services.builder
    job = await builder.begin(
        request.build_id if _REF.match(request.build_id) else generate()[:25],
        client=client,
        attributes=request.attributes,
        exports=[request.export],
        project=_project(request),
    )
    async with _ended(job), _scratch(builder) as scratch:
        client.directory, alone = await _context(call, request, job, scratch)
        filename = DEFAULT if alone else request.options.filename
        steps = await _read_steps(call, client.directory, filename, request)
        request = replace(request, options=replace(request.options, filename=filename))
        if request.quiet:
            await _run_quietly(job, request, steps, report)
        else:
            await _run(job, request, steps, report, report.taken)


@asynccontextmanager
async def _ended(job: Job) -> AsyncIterator[None]:
    """However the block is left, the job is over."""
    try:
        yield
    except BaseException as exc:
        await job.end(error=exc)
        raise
    await job.end()


@asynccontextmanager
async def _scratch(builder: Builder) -> AsyncIterator[Path]:
    """A directory for the context; what a dead daemon left there goes when the next one starts."""
    root = builder.deps.settings.root / "scratch"
    await settle(lambda: root.mkdir(mode=0o700, exist_ok=True))
    path = Path(await settle(tempfile.mkdtemp, prefix="context-", dir=root))
    try:
        yield path
    finally:
        await settle(remove_tree, path)


def _project(request: BuildRequest) -> str:
    """Builds of one thing are known by its name; those without one by where the context is, and the Dockerfile."""
    name = request.names[0].name if request.names else request.remote
    return of("\0".join(["classic", name, request.options.filename]).encode())


# --- the context ------------------------------------------------------------------------------------------------------


async def _context(call: Call, request: BuildRequest, job: Job, scratch: Path) -> tuple[Path, bool]:
    """The directory, and whether what came was a Dockerfile and no archive."""
    if not request.remote:
        context = await tarball.receive(call.chunks(), scratch)
        return context.directory.path, context.alone
    if (git := parse_git(request.remote, context=True)) is not None:
        async with _shown(job, f"[internal] load git source {masked(request.remote)}") as key:
            directory = await job.sources.git(git.source(), job.log.add, key)
        return await settle(_own_copy, directory, scratch), False
    source = HttpSource(url=request.remote, filename="context")
    async with _shown(job, f"[internal] load remote build context {masked(request.remote)}") as key:
        found = await job.sources.http(source, job.log.add, key)
    context = await tarball.open_file(found.path / "context", scratch)
    return context.directory.path, context.alone


@asynccontextmanager
async def _shown(job: Job, name: str) -> AsyncIterator[str]:
    """A vertex for what is done before there is a graph; its key."""
    key, started = of(f"{job.ref} {name}".encode()), time.time_ns()
    job.log.add(VertexEvent(key=key, name=name, started=started))
    error = ""
    try:
        yield key
    except WherryError as exc:
        error = exc.message
        raise
    finally:
        job.log.add(VertexEvent(key=key, name=name, started=started, completed=time.time_ns(), error=error))


def _own_copy(directory: Directory, scratch: Path) -> Path:
    """A checkout serves other builds too, and from ours what is ignored will be removed."""
    copy = scratch / "context"
    shutil.copytree(directory.path, copy, symlinks=True)
    return copy


async def _read_steps(call: Call, directory: Path, filename: str, request: BuildRequest) -> list[Step]:
    """Raises InvalidParameter in Docker's words when there is no Dockerfile, and for what is wrong with it."""
    images = call.services.images.store

    def image_id(base: str) -> str:
        try:
            return images.get(base).id
        except WherryError:
            return ""

    data = await settle(_read_dockerfile, directory, filename)
    return steps_of(parse_dockerfile(data, filename), request.options, host_platform(), image_id)


def _read_dockerfile(directory: Path, filename: str) -> bytes:
    with closing(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
        data = read_file(root, filename)
        if data is None and filename == DEFAULT:
            data = read_file(root, DEFAULT.lower())
    if data is None:
        raise InvalidParameter(f"Cannot locate specified Dockerfile: {filename}")
    return data


# --- the build --------------------------------------------------------------------------------------------------------


async def _run(job: Job, request: BuildRequest, steps: list[Step], report: Report, taken: Wait) -> None:
    """Build and export; a failure is the last line. Output waits for `taken` after each batch."""
    classic = Classic(steps)
    failure: BaseException | None = None
    response: dict[str, str] = {}
    listening = asyncio.ensure_future(_listen(job, classic, report, taken))
    try:
        try:
            response = await _result(job, request)
        except asyncio.CancelledError:
            if _is_cancelled_itself():
                raise
            failure = Cancelled("the build was cancelled")
        except Exception as exc:
            failure = exc
        await job.end(error=failure, response=response)  # which ends the log
        await listening
    finally:
        listening.cancel()
    if failure is not None:
        errors.record(failure, "POST /build")
        lines = classic.fail(errors.message_of(failure), removed=request.force_remove)
    else:
        lines = classic.end(_image_id(response), [name.familiar for name in request.names])
    for line in lines:
        report(line)


async def _run_quietly(job: Job, request: BuildRequest, steps: list[Step], report: Report) -> None:
    """The image's ID; when the build fails, the end of what would have been said."""
    lines: deque[Mapping[str, object]] = deque(maxlen=LAST_LINES)
    await _run(job, request, steps, lines.append, _at_once)
    if any("error" in line for line in lines):
        for line in lines:
            report(line)
        return
    for line in lines:
        if isinstance(aux := line.get("aux"), dict):
            report({"stream": f"{aux['ID']}\n"})


async def _at_once() -> None: ...


async def _result(job: Job, request: BuildRequest) -> dict[str, str]:
    built = await job.frontend(request.options)
    return await job.export(built, [request.export])


async def _listen(job: Job, classic: Classic, report: Report, taken: Wait) -> None:
    async for batch in job.log:
        for event in batch:
            for line in classic.tell(event):
                report(line)
        await taken()


def _is_cancelled_itself() -> bool:
    """The client is gone; not: somebody has cancelled the build."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _image_id(response: dict[str, str]) -> str:
    return response.get("containerimage.config.digest") or response.get("containerimage.digest", "")


async def cancel(call: Call) -> web.StreamResponse:
    """By the `buildid` of `POST /build`, or the ref of any other build. One that is over needs no cancelling."""
    build_id = call.text("id")
    if not build_id:
        raise InvalidParameter("build ID not provided")
    job = call.services.builder.jobs.get(build_id)
    if job is not None:
        job.cancel()
    return call.empty(200)


# --- what builds keep -------------------------------------------------------------------------------------------------


async def prune(call: Call) -> web.StreamResponse:
    filters = call.filters()
    for key in filters.fields:
        if key not in FILTERS:
            raise InvalidParameter(f"failed to prune build cache: Invalid filter '{key}'")
    chosen = [f"{key}={value}" for key, values in filters.fields.items() if key != "until" for value in values]
    gone = await call.services.builder.prune(
        PruneOptions(
            all=call.flag("all"),
            filters=[text.removesuffix("=") for text in chosen],
            keep_duration=_keep_duration(filters.one("until")),
            reserved=_bytes(call, "reserved-space") or _bytes(call, "keep-storage"),
            max_used=_bytes(call, "max-used-space"),
            min_free=_bytes(call, "min-free-space"),
        )
    )
    return call.reply(
        {"CachesDeleted": [each.id for each in gone] or None, "SpaceReclaimed": sum(each.size for each in gone)}
    )


def _bytes(call: Call, name: str) -> int:
    try:
        return call.number(name) or 0
    except InvalidParameter as exc:
        raise InvalidParameter(
            f"{name} is in bytes and expects an integer, got {call.text(name)}: {exc.message}"
        ) from None


def _keep_duration(until: str | None) -> int:
    """What was used since then stays: ns before now."""
    if not until:
        return 0
    now = time.time_ns()
    return max(now - parse_time(until, now=now), 1)
