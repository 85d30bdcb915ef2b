"""The third door: a build as a call, with its log and its result as objects.

    finished = await build(builder, Path("app"), options=Options(target="web"), name="app:latest", told=print)
    finished.images["linux/amd64"], finished.record.steps, finished.log.events

The context is a directory of this process; so are named contexts, secrets and the destinations of exports.
"""

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from wherry.aio import settle
from wherry.builder.build import Builder
from wherry.builder.client import NoClient, Transferred
from wherry.builder.contexts import ContextPool, Mirror, slot_key
from wherry.builder.dockerfile.ignore import Patterns
from wherry.builder.graph import LocalSource
from wherry.builder.log import BuildLog, Event
from wherry.builder.options import CacheTransfer, Export, NamedContext, Options
from wherry.builder.records.record import Record
from wherry.builder.trees import Directory
from wherry.distribution.config import HUB
from wherry.errors import InvalidParameter, NotFound
from wherry.kernel.files import closing
from wherry.reference import DEFAULT_DOMAIN
from wherry.spec.distribution import ANONYMOUS, Auth
from wherry.storage.native import copy_tree

CHUNK = 1 << 20  # bytes read at a time
NODE = "python"  # whose files these are: they share directories with no other client's


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What became of a build that succeeded."""

    ref: str
    images: Mapping[str, str]  # platform -> image ID, of what is in the image store now
    response: Mapping[str, str]  # BuildKit's keys: containerimage.digest, image.name, …
    documents: Mapping[str, bytes]  # of a call (`Options.call`): result.json, result.txt
    log: BuildLog
    record: Record


async def build(
    builder: Builder,
    context: Path,
    *,
    options: Options | None = None,
    name: str = "",
    exports: Sequence[Export] = (),
    cache_exports: Sequence[CacheTransfer] = (),
    dockerfile: Path | None = None,
    contexts: Mapping[str, Path] | None = None,
    secrets: Mapping[str, bytes] | None = None,
    credentials: Mapping[str, Auth] | None = None,
    destinations: Sequence[Path | None] = (),
    told: Callable[[Event], None] | None = None,
) -> Finished:
    """Build the directory `context`; as image `name`, or as `exports` say.

    `dockerfile` is a directory other than the context that has the Dockerfile; `contexts` are named ones, `credentials`
    go by domain, `destinations` by the export's number: a directory for local, a file for tar and archives. `told`
    hears every event.

    Raises DockerfileError, ProgramFailed, and other WherryErrors; the record of the build says the same.
    """
    options = options or Options()
    if name:
        exports = [*exports, Export(type="image", attributes={"name": name})]
    named = contexts or {}
    given = {key: NamedContext(value=f"local:{key}") for key in named}
    options = replace(options, contexts={**options.contexts, **given})
    client = Files(
        pool=builder.contexts,
        directories={"context": context, "dockerfile": dockerfile or context, **named},
        secrets=secrets or {},
        logins=credentials or {},
        destinations=destinations,
    )
    try:
        job = await builder.begin(client=client, exports=exports, project=f"{NODE} {os.path.abspath(context)}")
        hearing = asyncio.ensure_future(_hear(job.log, told or _nobody))
        try:
            built = await job.frontend(options)
            response = await job.export(built, exports, cache_exports)
            await job.end(response=response)
        except BaseException as exc:
            await job.end(error=exc)
            raise
        finally:
            await hearing  # the log ends with the job
    finally:
        await settle(client.close)
    return Finished(
        ref=job.ref,
        images={each.platform: each.image_id for each in job.produced},
        response=response,
        documents=built.metadata,
        log=job.log,
        record=builder.records.get(job.ref),
    )


@dataclass(slots=True, kw_only=True)
class Files(NoClient):
    """A client whose files are this process's own."""

    pool: ContextPool
    directories: Mapping[str, Path]
    secrets: Mapping[str, bytes]
    logins: Mapping[str, Auth]
    destinations: Sequence[Path | None]
    held: ExitStack = field(default_factory=ExitStack)

    def close(self) -> None:
        """The copies may serve other builds. Blocking."""
        self.held.close()

    async def local(self, source: LocalSource, transferred: Transferred) -> Directory:
        found = self.directories.get(source.name)
        if found is None or not found.is_dir():
            raise NotFound(f"no directory {source.name!r}: {found or 'none was given'}")
        return await settle(self._copy, found, source)

    def _copy(self, root: Path, source: LocalSource) -> Directory:
        """As it is now: what is changed during the build does not change what is built."""
        key, patterns = slot_key(source, NODE)
        slot = self.pool.acquire(f"{key} {root.absolute()}", patterns=patterns, description=f"local {root}")
        self.held.callback(self.pool.release, slot)
        mirror = Mirror(slot)
        try:
            _Walk(root, source, mirror).directory("")
            checksums = mirror.finish()
        finally:
            mirror.close()
        return Directory(path=slot.path, identity=slot.content, checksums=checksums, newest=mirror.newest)

    async def secret(self, secret_id: str) -> bytes | None:
        return self.secrets.get(secret_id)

    async def credentials(self, host: str) -> Auth:
        return self.logins.get(DEFAULT_DOMAIN if host == HUB else host, ANONYMOUS)

    async def send_stream(self, exporter: int, metadata: Mapping[str, str], data: AsyncIterator[bytes]) -> None:
        path = self._destination(exporter)
        with open(path, "wb") as file:
            async for piece in data:
                await settle(file.write, piece)

    async def send_directory(self, exporter: int, root: Path, transferred: Transferred, *, prefix: str = "") -> None:
        target = self._destination(exporter) / prefix
        await settle(target.mkdir, parents=True, exist_ok=True)
        await settle(copy_tree, root, target)

    def _destination(self, exporter: int) -> Path:
        found = self.destinations[exporter] if exporter < len(self.destinations) else None
        if found is None:
            raise InvalidParameter(f"output {exporter} has no destination")
        return found


class _Walk:
    """Lists what a source wants of a directory, and gives the content that is asked for. Blocking."""

    def __init__(self, root: Path, source: LocalSource, mirror: Mirror) -> None:
        self._root, self._mirror = root, mirror
        self._patterns = Patterns(source.exclude)
        self._above: list[str] = []  # directories that are taken out, unless something below them is put back
        self._few = frozenset(source.follow) if source.follow and not source.exclude else None

    def directory(self, path: str) -> None:
        for entry in sorted(os.scandir(self._root / path), key=lambda entry: entry.name):
            below = f"{path}/{entry.name}" if path else entry.name
            found = entry.stat(follow_symlinks=False)
            if self._few is not None and not self._is_on_the_way(below):
                continue
            if not stat.S_ISDIR(found.st_mode):
                if not self._patterns.matches(below):
                    self._give(below, found)
            elif not self._patterns.matches(below):
                self._give(below, found)
                self.directory(below)
            elif not self._patterns.skips_below(below):
                self._above.append(below)
                self.directory(below)
                with suppress(ValueError):  # it was given
                    self._above.remove(below)

    def _is_on_the_way(self, path: str) -> bool:
        """To, or in, what is wanted of a directory of which only a few files are."""
        assert self._few is not None
        return any(f"{each}/".startswith(f"{path}/") or f"{path}/".startswith(f"{each}/") for each in self._few)

    def _give(self, path: str, found: os.stat_result) -> None:
        for directory in self._above:
            self._add(directory, os.lstat(self._root / directory))
        self._above.clear()
        self._add(path, found)

    def _add(self, path: str, found: os.stat_result) -> None:
        if stat.S_ISSOCK(found.st_mode):
            return
        link = os.readlink(self._root / path) if stat.S_ISLNK(found.st_mode) else ""
        size = found.st_size if stat.S_ISREG(found.st_mode) else 0
        if self._mirror.add(path, mode=found.st_mode, size=size, mtime=found.st_mtime_ns, link=link):
            with closing(os.open(self._root / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)) as fd:
                while data := os.read(fd, CHUNK):
                    self._mirror.write(path, data)
            self._mirror.close_file(path)


def _nobody(event: Event) -> None: ...


async def _hear(log: BuildLog, told: Callable[[Event], None]) -> None:
    async for batch in log:
        for event in batch:
            told(event)
