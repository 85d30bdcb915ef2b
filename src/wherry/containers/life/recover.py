"""After a start of the daemon: make memory, disk and kernel agree again, with no container disturbed.

Order: half-made and half-removed containers go; each running one is adopted, its missed exit applied, or declared dead
(137); what belongs to nobody is taken away; the network is rebuilt for those that run; then restart policies.
"""

import logging
import time
from collections.abc import Iterable, Mapping

from wherry.aio import settle
from wherry.containers.deps import Deps
from wherry.containers.life import exits, health
from wherry.containers.life.remove import discard, remove_tree
from wherry.containers.life.start import start_afresh, start_locked
from wherry.containers.making.volumes import users_of
from wherry.containers.record import Container, Status
from wherry.errors import WherryError
from wherry.ids import ContainerID
from wherry.network.networks import Running
from wherry.runtime.shim_client import Exit, Shim

log = logging.getLogger(__name__)

KILLED = 137  # exit code of a container whose end nobody saw: 128 + SIGKILL


async def recover(deps: Deps) -> None:
    """Called once, before the API is served."""
    await _finish_half_done(deps)
    whole = [each for each in deps.store.all() if each.complete and each.state.status is not Status.DEAD]
    outcomes = {container.id: await _adopt(deps, container) for container in whole}
    await _drop_strays(deps)
    await deps.volumes.recover(users_of([each for each in whole if isinstance(outcomes[each.id], Shim)]))
    await deps.networks.start(_running(outcomes))
    for container in whole:
        async with deps.locks(container.id):
            try:
                await _apply(deps, container, outcomes[container.id])
            except (WherryError, OSError):  # one container's trouble is not the others'
                log.exception("cannot recover container %s", container.name)
    for container in whole:
        async with deps.locks(container.id):
            await _bring_up(deps, container)


def _running(outcomes: Mapping[ContainerID, Shim | Exit | None]) -> dict[ContainerID, Running]:
    return {
        key: Running(netns_path=outcome.netns_path) for key, outcome in outcomes.items() if isinstance(outcome, Shim)
    }


async def _finish_half_done(deps: Deps) -> None:
    for container in deps.store.all():
        if not container.complete:
            await _try_discard(deps, container, volumes=True)
        elif container.state.status in (Status.REMOVING, Status.DEAD):
            await _try_discard(deps, container, volumes=container.host_config.auto_remove)


async def _try_discard(deps: Deps, container: Container, *, volumes: bool) -> None:
    log.info("removing container %s, which was left half-done", container.name)
    try:
        outcome = await deps.shims.adopt(container.id)
        if isinstance(outcome, Shim):
            await outcome.destroy()
        await discard(deps, container, volumes=volumes)
    except (WherryError, OSError) as exc:
        log.warning("cannot remove half-done container %s: %s", container.name, exc)
        if container.state.status is Status.REMOVING:
            container.state.move(Status.DEAD)  # so that it can be removed by hand


async def _adopt(deps: Deps, container: Container) -> Shim | Exit | None:
    """What became of the container while no daemon looked; None when nothing at all is left of a run."""
    outcome = await deps.shims.adopt(container.id)
    if isinstance(outcome, Shim) and not outcome.started:
        log.info("container %s was being started when the daemon ended: taking the start back", container.name)
        await outcome.destroy()
        await deps.shims.forget(container.id)
        return None
    return outcome


async def _apply(deps: Deps, container: Container, outcome: Shim | Exit | None) -> None:
    live, state = deps.live_of(container), container.state
    if isinstance(outcome, Shim):
        live.shim = outcome
        live.ended.clear()
        if not container.running:  # it was let go, and the daemon ended before it could say so
            _note_start(container, time.time_ns())
        if outcome.paused != (state.status is Status.PAUSED):
            state.move(Status.PAUSED if outcome.paused else Status.RUNNING)
        state.pid, state.pid_start = outcome.pid, outcome.pid_start
        if (held := deps.networks.held(container.id)) is not None:  # it may have joined a network as the daemon ended
            container.endpoints, container.ports = held
        await deps.store.save(container)
        health.watch(deps, container)
        deps.background.spawn(
            exits.watch(deps, container, outcome, start=start_locked), name=f"exit of {container.id[:12]}"
        )
    elif isinstance(outcome, Exit) and (container.running or outcome.at > state.finished_at):
        if not container.running:
            _note_start(container, outcome.at)  # a whole run nobody saw
        await exits.finish(deps, container, outcome, start=start_locked)
    elif state.status is Status.RESTARTING:
        exits.restart_later(deps, container, ran=0, start=start_locked)
    elif container.running:
        gone = Exit(code=KILLED, at=time.time_ns(), oom_killed=False, error="")
        await exits.finish(deps, container, gone, start=start_locked)
    else:
        await deps.shims.forget(container.id)
    if not container.running and (container.endpoints or container.ports):  # of a start that did not come to its end
        container.endpoints, container.ports = (), ()
        await deps.store.save(container)


def _note_start(container: Container, at: int) -> None:
    """What the last daemon did not come to record; what the record says of the run before is over."""
    state = container.state
    state.move(Status.RUNNING)
    state.started_at = at
    state.error, state.oom_killed, state.stopped_by_user = "", False, False
    state.health = health.fresh(container)


async def _drop_strays(deps: Deps) -> None:
    """Shims, writable layers and directories of containers that have no record."""
    for container_id in _unknown(deps, deps.shims.ids()):
        log.info("ending the stray shim of %s", container_id[:12])
        outcome = await deps.shims.adopt(container_id)
        if isinstance(outcome, Shim):
            await outcome.destroy()
        await deps.shims.forget(container_id)
    for key in _unknown(deps, await settle(lambda: list(deps.snapshots.keys()))):
        await settle(deps.snapshots.remove, key)
    directories = deps.settings.data_root / "containers"
    for name in _unknown(deps, [path.name for path in directories.iterdir()] if directories.is_dir() else []):
        await settle(remove_tree, directories / name)


def _unknown(deps: Deps, names: Iterable[str]) -> list[str]:
    return [name for name in names if deps.store.get(ContainerID(name)) is None]


async def _bring_up(deps: Deps, container: Container) -> None:
    """Restart policies at daemon start: `always` even after a stop, `unless-stopped` only if it was not stopped.

    An auto-remove container that was kept for a restart which did not come goes now.
    """
    policy, state = container.host_config.restart_policy.name, container.state
    if state.status is not Status.EXITED:
        return
    if container.host_config.auto_remove:
        await exits.auto_remove(deps, container)
    elif state.started_at and (policy == "always" or (policy == "unless-stopped" and not state.stopped_by_user)):
        try:
            await start_afresh(deps, container)
        except WherryError as exc:
            log.warning("cannot start container %s: %s", container.name, exc.message)
