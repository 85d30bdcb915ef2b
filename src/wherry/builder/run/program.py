"""Run a program: the step's trees are mounted, the same runtime, security policy and limits as for containers.

    snapshots    build-<step>-<n>    one for each tree the step writes to; the root's is n = 0
    shims        build-<step>        with its cgroup and its sandbox on the default network
    <exec root>/build/<step>/        hosts, resolv.conf, secrets, sockets of ssh agents

Nothing of this outlives the call but the snapshots that are returned. What a crash leaves is taken away by the recovery
of containers, which knows no owner for it.
"""

import asyncio
import logging
import os
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from wherry import ids
from wherry.aio import finish, settle
from wherry.builder.client import Client
from wherry.builder.deps import Deps
from wherry.builder.graph import Exec, NetworkMode
from wherry.builder.run.agents import Agents
from wherry.builder.run.mounts import Mounts, Plan, Written, prepare
from wherry.builder.run.stubs import Stubs, find_missing, remove_placeholders, remove_stubs
from wherry.builder.trees import Result
from wherry.errors import Failed, InvalidParameter, WherryError, first_of
from wherry.kernel import cgroup
from wherry.kernel.mount import Mount, overlay_can_be_volatile
from wherry.network import files
from wherry.network.dns.conf import internal_resolv_conf
from wherry.network.networks import Sandbox, SandboxRequest
from wherry.runtime.shim_client import LogSpec, Shim, ShimSpec, Streams
from wherry.runtime.spec import DEFAULT_PATH, SANDBOX, SpecInput, SpecMount, bind_options, build
from wherry.spec.engine import ContainerConfig, HostConfig, Ulimit
from wherry.storage.tree import remove_tree

log = logging.getLogger(__name__)

HOSTNAME = "buildkitsandbox"  # as BuildKit calls it
PREFIX = "build-"
_FILES = {"hosts": "/etc/hosts", "resolv.conf": "/etc/resolv.conf"}
_HEADER = struct.Struct(">BxxxI")  # of a frame: stream, length

Output = Callable[[int, bytes], None]  # stream (1 stdout, 2 stderr), data


class ProgramFailed(Failed):
    """The program ran, and ended with a code that is no success."""

    def __init__(self, args: Sequence[str], code: int, *, oom_killed: bool) -> None:
        command = " ".join(args)
        cause = ": it ran out of memory and was killed" if oom_killed else ""
        super().__init__(f'process "{command}" did not complete successfully: exit code: {code}{cause}')
        self.code = code


class NotStarted(Failed):
    """The program could not even be started: it is not there, is for another machine, its user is unknown."""

    def __init__(self, args: Sequence[str], cause: WherryError) -> None:
        super().__init__(f'process "{" ".join(args)}" did not complete successfully: {cause.message}')


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What is there while a failed step is kept: `shell` opens a terminal in it, with its mounts and variables."""

    error: ProgramFailed
    shell: Callable[[Sequence[str]], AbstractAsyncContextManager[tuple[Shim, Streams]]]


OnError = Callable[[Failure], Awaitable[None]]


async def run(
    deps: Deps,
    op: Exec,
    inputs: Sequence[Result],
    *,
    client: Client,
    output: Output,
    on_error: OnError | None = None,
) -> dict[int, Written]:
    """Run `op` on its inputs, which are on disk; the written trees by output number.

    Raises ProgramFailed, NotStarted, and other WherryErrors when what it needs cannot be prepared; then nothing is
    left. `on_error` is awaited before what the failed step wrote goes.
    """
    step = _Step(deps, op, inputs, client)
    async with _undoing() as undo:
        undo.push_async_callback(step.close)
        await step.prepare(undo)
        try:
            await step.run(output)
        except ProgramFailed as exc:
            if on_error is not None:
                await on_error(Failure(error=exc, shell=step.shell))
            raise
        return await step.take()
    raise AssertionError("unreachable")


@asynccontextmanager
async def _undoing() -> AsyncIterator[AsyncExitStack]:
    """What is pushed is undone to its end, however often the task is cancelled meanwhile."""
    undo = AsyncExitStack()
    try:
        yield undo
    finally:
        await finish(undo.aclose())


class _Step:
    def __init__(self, deps: Deps, op: Exec, inputs: Sequence[Result], client: Client) -> None:
        self._deps, self._op, self._inputs, self._client = deps, op, inputs, client
        self.id = f"{PREFIX}{ids.generate()[:24]}"
        self._directory = deps.settings.exec_root / "build" / self.id
        self._mounts: Mounts | None = None
        self._sandbox = Sandbox(netns=None, endpoints=())
        self._keep: frozenset[str] = frozenset()
        self._stubs: list[Stubs] = []

    @property
    def _plan(self) -> Plan:
        assert self._mounts is not None
        return self._mounts.plan

    async def prepare(self, undo: AsyncExitStack) -> None:
        """Snapshots, cache directories, secrets, sockets, a network; no process yet."""
        await settle(self._directory.mkdir, 0o700, parents=True)
        agents = Agents(self._directory, self._client)
        undo.push_async_callback(agents.close)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._prepare_mounts(undo, agents))
                group.create_task(self._connect(undo))
        except BaseExceptionGroup as errors:
            raise first_of(errors) from errors
        await settle(self._write_files)

    async def _prepare_mounts(self, undo: AsyncExitStack, agents: Agents) -> None:
        deps = self._deps
        self._mounts = await prepare(
            deps, self._op, self._inputs, step=self.id, directory=self._directory, client=self._client, agents=agents
        )
        undo.push_async_callback(self._mounts.release)
        targets = [each.destination for each in self._plan.mounts]
        for key in [written.key for written in self._plan.written.values()]:
            self._stubs.append(await settle(find_missing, deps.snapshots, key, targets))

    async def _connect(self, undo: AsyncExitStack) -> None:
        """The network of all processes of the step."""
        networks, mode = self._deps.networks, self._op.network
        if mode is NetworkMode.HOST:
            return
        undo.push_async_callback(networks.release, self.id)
        wanted = (self._op.on or "bridge") if mode is NetworkMode.SANDBOX else "none"
        config = networks.config
        upstream = files.upstream(
            files.host_resolv_conf(), dns=config.dns, search=config.dns_search, options=config.dns_options
        )
        request = SandboxRequest(mode=wanted, name="build step", nameservers=upstream)
        self._sandbox = await networks.connect(self.id, request)
        if self._sandbox.netns is None:  # the host's, by its id: that needs to be allowed
            raise InvalidParameter(f"network {wanted} is the host's own: say --network host")
        undo.callback(os.close, self._sandbox.netns)

    async def run(self, output: Output) -> None:
        """Raises ProgramFailed."""
        async with self._started(self._op.args, tty=False) as (shim, (reader, _)):
            await _pump(reader, output)
            end = await asyncio.shield(shim.exited)
        if end.code not in self._op.valid_exit_codes:
            raise ProgramFailed(self._op.args, end.code, oom_killed=end.oom_killed)

    async def take(self) -> dict[int, Written]:
        """The trees that are wanted, with nothing in them that was only there to be mounted over."""
        for stubs in self._stubs:
            await settle(remove_stubs, self._deps.snapshots, stubs)
        found = {number: written for number, written in self._plan.written.items() if number >= 0}
        for written in found.values():
            await settle(remove_placeholders, self._deps.snapshots, written.key)
        self._keep = frozenset(written.key for written in found.values())
        return found

    async def close(self) -> None:
        """Everything goes but the snapshots that were taken."""
        if self._mounts is not None:
            for written in self._plan.written.values():
                if written.key not in self._keep:
                    await settle(self._deps.snapshots.remove, written.key)
        if self._directory.exists():
            await settle(remove_tree, self._directory)

    @asynccontextmanager
    async def shell(self, args: Sequence[str]) -> AsyncIterator[tuple[Shim, Streams]]:
        """A terminal on the step's file system, after it has failed."""
        await settle(_forget_volatile, self._plan.root)
        async with self._started(args, tty=True) as started:
            yield started

    @asynccontextmanager
    async def _started(self, args: Sequence[str], *, tty: bool) -> AsyncIterator[tuple[Shim, Streams]]:
        async with self._process(args, tty=tty) as shim:
            reader, writer = await shim.attach(stdin=tty, stdout=True, stderr=True)
            try:
                try:
                    await shim.start()
                except WherryError as exc:
                    raise NotStarted(args, exc) from exc
                yield shim, (reader, writer)
            finally:
                writer.close()

    @asynccontextmanager
    async def _process(self, args: Sequence[str], *, tty: bool) -> AsyncIterator[Shim]:
        """A created process; in the end it is gone, with its cgroup."""
        deps = self._deps
        async with _undoing() as undo:
            undo.push_async_callback(_forget, deps, self.id)
            try:
                shim = await deps.shims.create(self._spec(args, tty=tty), netns=self._sandbox.netns)
            except WherryError as exc:
                raise NotStarted(args, exc) from exc
            undo.push_async_callback(shim.destroy)
            yield shim

    def _spec(self, args: Sequence[str], *, tty: bool) -> ShimSpec:
        deps, op, limits = self._deps, self._op, self._op.limits
        host = HostConfig(
            privileged=op.insecure,
            memory=limits.memory,
            memory_swap=limits.memory_swap,
            cpu_shares=limits.cpu_shares,
            cpu_period=limits.cpu_period,
            cpu_quota=limits.cpu_quota,
            cpuset_cpus=limits.cpuset_cpus,
            cpuset_mems=limits.cpuset_mems,
            ulimits=[Ulimit(name=each.name, soft=each.soft, hard=each.hard) for each in limits.ulimits] or None,
            shm_size=limits.shm_size,
            network_mode="host" if op.network is NetworkMode.HOST else "",
        )
        parent = limits.cgroup_parent or deps.settings.cgroup_parent
        built = build(
            SpecInput(
                id=self.id,
                args=args,
                config=ContainerConfig(hostname=op.hostname or HOSTNAME, working_dir=op.cwd or "/", tty=tty),
                host_config=host,
                mounts=self._spec_mounts(),
                netns="" if op.network is NetworkMode.HOST else SANDBOX,
                cgroups_path=f"/{parent.strip('/')}/{self.id}",
                cgroup_v2=cgroup.layout() is cgroup.Layout.V2,
                devices=self._plan.devices,
                shm_size=deps.settings.default_shm_size,
            )
        )
        built.spec["process"]["env"] = self._environment(tty=tty)
        if self._plan.read_only_root:
            built.spec["root"]["readonly"] = True
        root = self._plan.root
        return ShimSpec(
            id=self.id,
            spec=built.spec,
            rootfs=_volatile(root),
            parts=self._plan.parts,
            runtime=deps.settings.runtime,
            log=LogSpec(driver="none"),
            user=op.user,
            tty=tty,
            open_stdin=tty,
            stdin_once=tty,
        )

    def _environment(self, *, tty: bool) -> list[str]:
        found = {"PATH": f"PATH={DEFAULT_PATH}"}
        if tty:
            found["TERM"] = "TERM=xterm"
        for entry in (*self._op.proxies, *self._op.env, *self._plan.env):
            found[entry.partition("=")[0]] = entry
        return list(found.values())

    def _spec_mounts(self) -> list[SpecMount]:
        covered = {each.destination for each in self._plan.mounts}
        own = [
            SpecMount(
                destination=path,
                type="bind",
                source=str(self._directory / name),
                options=bind_options(read_only=True),
            )
            for name, path in _FILES.items()
            if path not in covered
        ]
        return [*own, *self._plan.mounts]

    def _write_files(self) -> None:
        """hosts and resolv.conf. Blocking."""
        addresses = [address for one in self._sandbox.endpoints for address in (one.ip, one.ip6) if address]
        on_host = self._op.network is NetworkMode.HOST
        op, network = self._op, self._deps.networks.config
        extra = [f"{name}:{address}" for name, address in op.extra_hosts]
        gateway = self._deps.networks.bridge_gateway
        if on_host:
            hosts = files.hosts_on_host_network(
                files.host_hosts(), extra_hosts=extra, gateways=[gateway] if gateway else []
            )
        else:
            hosts = files.hosts(
                hostname=op.hostname or HOSTNAME,
                domainname="",
                addresses=addresses or ["127.0.0.1"],
                extra_hosts=extra,
                gateways=[gateway] if gateway else [],
            )
        host, given = files.host_resolv_conf(), (network.dns, network.dns_search, network.dns_options)
        if op.network is NetworkMode.SANDBOX and op.on:
            resolv_conf = internal_resolv_conf(host, dns=given[0], search=given[1], options=given[2])
        else:
            resolv_conf = files.resolv_conf(
                host, dns=given[0], search=given[1], options=given[2], own_network=not on_host
            )
        for name, text in (("hosts", hosts), ("resolv.conf", resolv_conf)):
            (self._directory / name).write_text(text)


def _volatile(mounts: Sequence[Mount]) -> list[Mount]:
    """What a step writes is made durable once, as a layer: the kernel need not care."""
    if not overlay_can_be_volatile():
        return list(mounts)
    return [
        replace(each, options=(*each.options, "volatile"))
        if each.type == "overlay" and any(option.startswith("upperdir=") for option in each.options)
        else each
        for each in mounts
    ]


def _forget_volatile(mounts: Sequence[Mount]) -> None:
    """Let a file system that was mounted volatile be mounted again (overlayfs.rst: the kernel refuses, lest a crash in
    between goes unseen; none was). Blocking.
    """
    for each in mounts:
        for option in each.options if each.type == "overlay" else ():
            if option.startswith("workdir="):
                mark = Path(option.removeprefix("workdir=")) / "work/incompat"
                if mark.is_dir():
                    remove_tree(mark)


async def _pump(reader: asyncio.StreamReader, output: Output) -> None:
    """The framed output of a process, to its end."""
    while True:
        try:
            stream, length = _HEADER.unpack(await reader.readexactly(_HEADER.size))
            output(stream, await reader.readexactly(length))
        except asyncio.IncompleteReadError:
            return


async def _forget(deps: Deps, step: str) -> None:
    try:
        await finish(deps.shims.forget(step))
    except WherryError as exc:
        log.warning("what the shim of build step %s left stays until the next start: %s", step, exc.message)
