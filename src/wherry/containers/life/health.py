"""Health checks: Docker's HEALTHCHECK of an image or a container.

    starting ── a success ── healthy ── `retries` failures in a row ── unhealthy ── a success ── healthy

One monitor task for each running container that has a check; between two probes it only sleeps. A probe is an exec
whose whole process tree is killed when its time is up, when the container is paused, or when the daemon ends. The
record keeps the state (`State.health`): a daemon that starts again goes on from there.
"""

import asyncio
import logging
import time
from dataclasses import replace

from wherry.containers.deps import Deps
from wherry.containers.record import Container, Health, HealthStatus, Probe, Status
from wherry.containers.streams import execs
from wherry.errors import WherryError
from wherry.spec.engine import ExecConfig, HealthConfig

log = logging.getLogger(__name__)

OUTPUT_LIMIT = 4096  # bytes of a probe's output that are kept
LOG_LENGTH = 5  # probes that are kept
ATTRIBUTE_LIMIT = 256  # characters of output that an event carries

_SECOND = 10**9  # ns
INTERVAL = TIMEOUT = 30 * _SECOND  # defaults, as are the following
START_INTERVAL = 5 * _SECOND
RETRIES = 3

_CUT = "..."


def check_of(container: Container) -> HealthConfig | None:
    """The check that is to be run; None without one, also when it was switched off or is of an unknown kind."""
    check = container.config.healthcheck
    return check if check is not None and check.test and check.test[0] in ("CMD", "CMD-SHELL") else None


def fresh(container: Container) -> Health | None:
    """The health of a container that begins a run; what earlier probes said stays to be seen."""
    before = container.state.health
    return Health(log=before.log if before else ()) if check_of(container) is not None else None


def watch(deps: Deps, container: Container, *, at_once: bool = False) -> None:
    """Have a running container probed, first after an interval or `at_once`. Nothing happens without a check."""
    live = deps.live_of(container)
    if check_of(container) is None or live.health is not None or container.state.status is not Status.RUNNING:
        return
    if container.state.health is None:
        container.state.health = Health()
    live.health = deps.background.spawn(
        _monitor(deps, container, at_once=at_once), name=f"health of {container.id[:12]}"
    )


def stop(deps: Deps, container: Container) -> asyncio.Task[None] | None:
    """Probe no more; as in Docker the container then counts as unhealthy. Returns the task that is ending."""
    live = deps.live_of(container)
    task, live.health = live.health, None
    if task is not None:
        task.cancel()
    if container.state.health is not None:
        container.state.health = replace(container.state.health, status=HealthStatus.UNHEALTHY)
    return task


async def _monitor(deps: Deps, container: Container, *, at_once: bool) -> None:
    if not at_once:
        await asyncio.sleep(_interval(container, time.time_ns()) / _SECOND)
    while True:
        probe = await _probe(deps, container)
        async with deps.locks(container.id):
            shim = deps.live_of(container).shim
            if shim is None or not shim.live:
                return  # it failed because the container has ended
            await _note(deps, container, probe)
        await asyncio.sleep(_interval(container, time.time_ns()) / _SECOND)


def _interval(container: Container, now: int) -> int:
    """ns until the next probe."""
    check, health = container.config.healthcheck, container.state.health
    assert check is not None
    assert health is not None
    if health.status is HealthStatus.STARTING and now - container.state.started_at < check.start_period:
        return check.start_interval or START_INTERVAL
    return check.interval or INTERVAL


async def _probe(deps: Deps, container: Container) -> Probe:
    check = container.config.healthcheck
    assert check is not None
    assert check.test is not None
    timeout = check.timeout or TIMEOUT
    start = time.time_ns()
    try:
        captured = await execs.capture(
            deps, container, _exec_config(container, check.test), limit=OUTPUT_LIMIT, timeout=timeout / _SECOND
        )
    except (WherryError, OSError) as exc:
        return Probe(start=start, end=time.time_ns(), exit_code=-1, output=str(exc))
    output = captured.output.decode("utf-8", "replace") + (_CUT if captured.cut else "")
    code = captured.code
    if captured.timed_out:
        code, output = -1, f"Health check exceeded timeout ({duration(timeout)})" + (f": {output}" if output else "")
    return Probe(start=start, end=time.time_ns(), exit_code=code, output=output)


def _exec_config(container: Container, test: list[str]) -> ExecConfig:
    kind, *command = test
    if kind == "CMD-SHELL":
        command = [*(container.config.shell or ["/bin/sh", "-c"]), *command]
    return ExecConfig(cmd=command, user=container.config.user, attach_stdout=True, attach_stderr=True)


async def _note(deps: Deps, container: Container, probe: Probe) -> None:
    """Record a result, and tell the world when it changes the state; the container's lock is held by the caller."""
    before = container.state.health
    assert before is not None
    after = container.state.health = judge(container, before, probe)
    if after.status is not before.status:
        why = {"exitCode": str(probe.exit_code), "output": " ".join(probe.output.split())[:ATTRIBUTE_LIMIT]}
        attributes = why if after.status is HealthStatus.UNHEALTHY else {}
        deps.publish(container, f"health_status: {after.status}", **attributes)
    if (after.status, after.failing_streak) == (before.status, before.failing_streak):
        return  # not worth a write to the disk: a daemon that starts again sees an older log
    try:
        await deps.store.save(container)
    except WherryError as exc:
        log.warning("the health of container %s is not noted: %s", container.name, exc.message)


def judge(container: Container, before: Health, probe: Probe) -> Health:
    """The health after one more probe. Failures in the start period of one that never was healthy do not count."""
    check = container.config.healthcheck
    assert check is not None
    recent = (*before.log, probe)[-LOG_LENGTH:]
    if probe.exit_code == 0:
        return Health(status=HealthStatus.HEALTHY, log=recent)
    if before.status is HealthStatus.STARTING and probe.start - container.state.started_at < check.start_period:
        return replace(before, log=recent)
    streak = before.failing_streak + 1
    status = HealthStatus.UNHEALTHY if streak >= (check.retries or RETRIES) else before.status
    return Health(status=status, failing_streak=streak, log=recent)


def duration(ns: int) -> str:
    """As Go writes it: 1m30s, 200ms."""
    if ns < _SECOND:
        return f"{ns / 10**6:g}ms"
    minutes, rest = divmod(ns, 60 * _SECOND)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{rest / _SECOND:g}s"
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds
