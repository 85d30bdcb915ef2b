"""Where a job's trees come from: the sources' rooms, with the job's client, lease and log."""

import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from wherry.aio import settle
from wherry.builder.client import Client
from wherry.builder.deps import Deps
from wherry.builder.graph import GitSource, HttpSource, ImageSource, Output, TreeSource, Vertex
from wherry.builder.log import LogEvent, StatusEvent
from wherry.builder.records.record import Input, InputKind
from wherry.builder.run.agents import Agents
from wherry.builder.sources import images, tarball
from wherry.builder.sources.git import GitStore
from wherry.builder.sources.http import HttpStore
from wherry.builder.sources.images import Resolved
from wherry.builder.sources.providers import Providers, bring, bring_blobs
from wherry.builder.trees import Directory, Result, Tree
from wherry.images.leases import Lease
from wherry.spec.image import Platform
from wherry.storage.tree import remove_tree

Say = Callable[[StatusEvent | LogEvent], None]


class JobSources:
    """Implements `solver.Sources`. What it fetches stays until `held` is closed."""

    def __init__(
        self,
        deps: Deps,
        *,
        git: GitStore,
        http: HttpStore,
        handed_out: Callable[[str], Result],
        client: Client,
        lease: Lease,
        held: AsyncExitStack,
    ) -> None:
        self._deps, self._git, self._http, self._handed_out = deps, git, http, handed_out
        self._client, self._lease, self._held = client, lease, held
        self._resolved: dict[tuple[str, str, str, str], Resolved] = {}
        self._own: dict[str, Directory] = {}  # archives of this job, unpacked
        self.providers = Providers()
        self.inputs: dict[Input, None] = {}

    async def resolve(self, source: ImageSource, platform: Platform) -> Resolved:
        """What a reference means for the time of this job."""
        key = (source.reference, source.digest or "", source.store, str(platform))
        async with self._deps.locks(("resolve", id(self), key)):
            if key not in self._resolved:
                found = await images.resolve(
                    self._deps.images, self._lease, source, platform, self._client, self.providers
                )
                self._resolved[key] = found
                kind = InputKind.LAYOUT if source.store else InputKind.IMAGE
                self.inputs[Input(kind=kind, name=found.reference, digest=found.digest, platform=str(platform))] = None
                # the same, as a Dockerfile's graph names it
                pinned = (found.reference, found.digest, source.store, str(platform))
                self._resolved[pinned] = found
        return self._resolved[key]

    async def image(self, source: ImageSource, vertex: Vertex) -> Tree:
        return (await self.resolve(source, vertex.platform)).tree

    async def git(self, source: GitSource, say: Say, key: str) -> Directory:
        def told(data: bytes) -> None:
            say(LogEvent(vertex=key, stream=2, data=data))

        fetched = self._git.fetch(source, secret=self._client.secret, agent=self._agent, told=told)
        found = await self._held.enter_async_context(fetched)
        self.inputs[Input(kind=InputKind.GIT, name=source.remote, digest=found.identity)] = None
        return found

    async def http(self, source: HttpSource, say: Say, key: str) -> Directory:
        started = time.time_ns()

        def transferred(current: int, total: int) -> None:
            say(StatusEvent(vertex=key, id="downloading", current=current, total=max(total, 0), started=started))

        fetched = self._http.fetch(source, secret=self._client.secret, transferred=transferred)
        found = await self._held.enter_async_context(fetched)
        digest = next(iter(found.checksums.values()), found.identity)
        self.inputs[Input(kind=InputKind.HTTP, name=source.url, digest=digest)] = None
        return found

    async def tree(self, source: TreeSource) -> Result:
        return self._own[source.id] if source.id in self._own else self._handed_out(source.id)

    async def bring(self, tree: Tree, say: Say, key: str) -> Tree:
        started: dict[str, int] = {}

        def progress(message: dict[str, object]) -> None:
            layer, status = str(message.get("id", "")), str(message.get("status", ""))
            if not layer:
                return
            detail = message.get("progressDetail")
            current, total = (detail.get("current", 0), detail.get("total", 0)) if isinstance(detail, dict) else (0, 0)
            name = f"extracting {layer}" if status == "Extracting" else layer
            begun = started.setdefault(name, time.time_ns())
            done = time.time_ns() if status in ("Download complete", "Pull complete", "Already exists") else 0
            say(StatusEvent(vertex=key, id=name, current=current, total=total, started=begun, completed=done))

        return await bring(self._deps.images, self._lease, tree, self.providers, progress)

    async def bring_whole(self, tree: Tree, say: Say, key: str) -> Tree:
        """`bring`, and the blobs that its layers came as, where anybody has them: an image is exported with them."""
        found = await self.bring(tree, say, key)
        blobs = [layer.blob for layer in found.layers if layer.blob is not None]
        await bring_blobs(self._deps.images, self._lease, blobs, self.providers)
        return found

    async def unpack(self, url: str, file: Directory | None) -> tuple[Output, bool]:
        """A context that comes as an archive: uploaded by the client as `url`, or downloaded into `file`."""
        into = await settle(self._scratch)
        if file is None:
            context = await tarball.receive(self._client.upload(url), into)
        else:
            context = await tarball.open_file(await settle(_only_file, file.path), into)
        name = f"unpacked-{into.name}"
        self._own[name] = replace(context.directory, identity="")
        vertex = Vertex(op=TreeSource(id=name), name="[internal] load build context")
        return Output(vertex), context.alone

    def _scratch(self) -> Path:
        root = self._deps.settings.root / "scratch"
        root.mkdir(mode=0o700, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix="context-", dir=root))
        self._held.push_async_callback(settle, remove_tree, path)
        return path

    @asynccontextmanager
    async def _agent(self, agent_id: str) -> AsyncIterator[Path]:
        """A socket of the client's ssh agent, for git."""
        with tempfile.TemporaryDirectory(prefix="agent-", dir=self._deps.settings.exec_root) as folder:
            agents = Agents(Path(folder), self._client)
            try:
                yield await agents.listen(agent_id, uid=os.getuid(), gid=os.getgid(), mode=0o600)
            finally:
                await agents.close()


def _only_file(directory: Path) -> Path:
    (found,) = directory.iterdir()
    return found
