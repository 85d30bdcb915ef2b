"""What a step sees besides its root: other trees, caches that stay, secrets, sockets, memory.

A tree that is only read is mounted read-only; one that is written to gets a snapshot, which the step's caller commits
or drops. Parts of trees are found by the shim, with the tree as root for symbolic links.
"""

import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from wherry.aio import settle
from wherry.builder.client import Client
from wherry.builder.deps import Deps
from wherry.builder.graph import NO_INPUT, NO_OUTPUT, Exec, ExecMount, MountKind
from wherry.builder.run.agents import Agents
from wherry.builder.run.caches import acquire_cache
from wherry.builder.run.devices import find_devices
from wherry.builder.trees import SCRATCH, Directory, Result, Tree
from wherry.errors import InvalidParameter, NotFound
from wherry.kernel.mount import Mount, overlay_mount
from wherry.runtime.devices import Device
from wherry.runtime.shim_client import Part
from wherry.runtime.spec import SpecMount, bind_options
from wherry.storage.tree import remove_tree

MAX_SECRET = 500 << 10  # bytes, BuildKit's limit
ROOT = "/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A snapshot a step has written to, for the caller to commit or remove."""

    key: str
    parent: Tree


@dataclass(slots=True, kw_only=True)
class Plan:
    """What the runtime is told."""

    root: list[Mount] = field(default_factory=list)
    read_only_root: bool = False
    written: dict[int, Written] = field(default_factory=dict)  # by output; those that are dropped below 0
    parts: list[Part] = field(default_factory=list)
    mounts: list[SpecMount] = field(default_factory=list)
    env: list[str] = field(default_factory=list)  # secrets that are wanted as variables
    devices: Sequence[Device] = ()


@dataclass(slots=True, kw_only=True)
class Mounts:
    plan: Plan
    _held: AsyncExitStack

    async def release(self) -> None:
        """Caches are free for other steps."""
        await self._held.aclose()


async def prepare(
    deps: Deps, op: Exec, inputs: Sequence[Result], *, step: str, directory: Path, client: Client, agents: Agents
) -> Mounts:
    """Raises InvalidParameter and NotFound in BuildKit's words; then no cache is held, but snapshots may be there."""
    maker = _Maker(deps, inputs, step=step, directory=directory, client=client, agents=agents)
    async with AsyncExitStack() as held:
        maker.held = held
        try:
            mounts = sorted(op.mounts, key=lambda each: each.target.rstrip("/").count("/") if each.target else 0)
            for each in mounts:
                await maker.add(each)
            if not maker.plan.root:
                raise InvalidParameter("a step without a root file system cannot run")
            maker.plan.devices = await settle(find_devices, op.devices, privileged=op.insecure)
        except BaseException:
            for written in maker.plan.written.values():
                await settle(deps.snapshots.remove, written.key)
            raise
        return Mounts(plan=maker.plan, _held=held.pop_all())
    raise AssertionError("unreachable")


class _Maker:
    def __init__(
        self, deps: Deps, inputs: Sequence[Result], *, step: str, directory: Path, client: Client, agents: Agents
    ) -> None:
        self._deps, self._inputs, self._step = deps, inputs, step
        self._directory, self._client, self._agents = directory, client, agents
        self.plan = Plan()
        self.held = AsyncExitStack()

    async def add(self, mount: ExecMount) -> None:
        match mount.kind:
            case MountKind.BIND if mount.target == ROOT:
                await self._root(mount)
            case MountKind.BIND:
                await self._bind(mount)
            case MountKind.CACHE:
                await self._cache(mount)
            case MountKind.TMPFS:
                self._tmpfs(mount)
            case MountKind.SECRET:
                await self._secret(mount)
            case MountKind.SSH:
                await self._ssh(mount)

    def _input(self, mount: ExecMount) -> Result:
        return SCRATCH if mount.input == NO_INPUT else self._inputs[mount.input]

    async def _root(self, mount: ExecMount) -> None:
        source = self._input(mount)
        if isinstance(source, Directory):
            raise InvalidParameter("a local directory cannot be the root file system of a step")
        if mount.readonly and mount.output == NO_OUTPUT:
            self.plan.read_only_root = True
        key = await self._writable(source, mount.output)
        self.plan.root = list(await settle(self._deps.snapshots.mounts, key))

    async def _writable(self, parent: Tree, output: int) -> str:
        number = len(self.plan.written)
        key = f"{self._step}-{number}"
        self.plan.written[output if output >= 0 else -1 - number] = Written(key=key, parent=parent)
        await settle(self._deps.snapshots.prepare, key, parent.chain, container=number == 0)
        return key

    async def _bind(self, mount: ExecMount) -> None:
        source = self._input(mount)
        readonly = mount.readonly
        if isinstance(source, Directory):
            # what a client sent is shared with other builds and steps: never written to
            mounts = [Mount(type="bind", source=os.fspath(source.path), options=("bind", "ro"))]
            if not readonly and mount.output == NO_OUTPUT:
                mounts = [await self._over(source.path)]
        elif readonly and mount.output == NO_OUTPUT:
            mounts = await settle(self._deps.snapshots.view, source.chain)
        else:
            key = await self._writable(source, mount.output)
            mounts = await settle(self._deps.snapshots.mounts, key)
        self._part(mount, mounts, selector=mount.selector, readonly=readonly)

    async def _over(self, path: Path) -> Mount:
        """A writable view of a directory: what is written goes with the step."""
        number = len(self.plan.parts)
        scratch = self._deps.settings.root / "scratch" / f"{self._step}-{number}"
        upper, work = scratch / "upper", scratch / "work"

        def make() -> None:
            for each in (upper, work):
                each.mkdir(parents=True)
            found = path.stat()
            os.chown(upper, found.st_uid, found.st_gid)
            os.chmod(upper, found.st_mode & 0o7777)

        self.held.push_async_callback(settle, remove_tree, scratch)
        await settle(make)
        return overlay_mount([os.fspath(path)], os.fspath(upper), os.fspath(work))

    def _part(self, mount: ExecMount, mounts: Sequence[Mount], *, selector: str, readonly: bool) -> None:
        number = len(self.plan.parts)
        self.plan.parts.append(Part(mounts=tuple(mounts), selector=selector))
        self._place(mount.target, self._deps.shims.part(self._step, number), read_only=readonly)

    def _place(self, target: str, source: str, *, read_only: bool) -> None:
        self.plan.mounts.append(
            SpecMount(destination=target, type="bind", source=source, options=bind_options(read_only=read_only))
        )

    async def _cache(self, mount: ExecMount) -> None:
        source = self._input(mount)
        path = await acquire_cache(self._deps, mount, source, self.held)
        mounts = [Mount(type="bind", source=os.fspath(path), options=("bind",))]
        self._part(mount, mounts, selector="", readonly=mount.readonly)

    def _tmpfs(self, mount: ExecMount) -> None:
        options = ["nosuid", "nodev", f"mode={mount.mode or 0o1777:o}", *([f"size={mount.size}"] if mount.size else [])]
        if mount.readonly:
            options.append("ro")
        self.plan.mounts.append(
            SpecMount(destination=mount.target, type="tmpfs", source="tmpfs", options=tuple(options))
        )

    async def _secret(self, mount: ExecMount) -> None:
        data = await self._client.secret(mount.secret_id)
        if data is None:
            if mount.optional:
                return
            raise NotFound(f"secret {mount.secret_id}: not found")
        if len(data) > MAX_SECRET:
            raise InvalidParameter(f"secret {mount.secret_id} is larger than {MAX_SECRET >> 10} kB")
        if mount.env:
            self.plan.env.append(f"{mount.env}={data.decode('utf-8', 'surrogateescape')}")
            return
        path = self._directory / f"secret{len(self.plan.mounts)}"

        def write() -> None:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(data)
                os.fchown(fd, mount.uid, mount.gid)
                os.fchmod(fd, mount.mode or 0o400)

        await settle(write)
        self._place(mount.target, os.fspath(path), read_only=True)

    async def _ssh(self, mount: ExecMount) -> None:
        if not await self._client.has_agent(mount.secret_id or "default"):
            if mount.optional:
                return
            raise NotFound(f"unset ssh forward key {mount.secret_id or 'default'}: give the build --ssh")
        path = await self._agents.listen(
            mount.secret_id or "default", uid=mount.uid, gid=mount.gid, mode=mount.mode or 0o600
        )
        self._place(mount.target, os.fspath(path), read_only=True)
