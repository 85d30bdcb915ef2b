"""attach: a client on the streams of a container's main process, before it starts or while it runs.

A session opened before the start waits in `Live.pending` until `start` connects it, so it sees every byte. One that
joins a running container sees what comes from now on, and with `logs` what was before: see `_history`.
"""

import asyncio
import time
from dataclasses import dataclass

from wherry.containers.deps import Deps
from wherry.containers.live import PendingAttach, Streams
from wherry.containers.record import Container, Status
from wherry.containers.streams import detach
from wherry.containers.streams.logs import replay
from wherry.containers.streams.relay import Stream, relay
from wherry.errors import Conflict, InvalidParameter, NotSupported, WherryError


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachSession:
    """Everything that can be refused has been checked; `run` it once."""

    deps: Deps
    container: Container
    stdin: bool
    stdout: bool
    stderr: bool
    stream: bool
    logs: bool
    keys: bytes

    @property
    def tty(self) -> bool:
        return self.container.config.tty

    async def run(self, stream: Stream) -> None:
        """Talk until the container ends, its start fails, it is removed, or the client leaves.

        Must be called in the same step of the event loop as the answer to the client is sent: a client that has seen
        the answer goes on to start the container, and this session must be known by then.
        """
        self.deps.publish(self.container, "attach")
        if not self.stream:
            if self.logs:
                await replay(self.container, stream, stdout=self.stdout, stderr=self.stderr)
            return
        streams = await self._connect(stream)
        if streams is None:
            return
        detached = await relay(
            stream, streams, stdin=self.stdin, output=self.stdout or self.stderr, keys=self.keys if self.tty else b""
        )
        if detached:
            self.deps.publish(self.container, "detach")

    async def _connect(self, stream: Stream) -> Streams | None:
        """The connection to the shim, after the history was sent; None when there is nothing to be attached to."""
        live = self.deps.live_of(self.container)
        if self.container.running and live.shim is not None:
            try:
                streams = await live.shim.attach(stdin=self.stdin, stdout=self.stdout, stderr=self.stderr)
            except (WherryError, OSError):
                return None  # it has just ended
            try:
                if self.logs:
                    await self._history(stream)
            except BaseException:
                streams[1].close()
                raise
            return streams
        pending = PendingAttach(stdin=self.stdin, stdout=self.stdout, stderr=self.stderr)
        live.pending.append(pending)
        try:
            if self.logs:  # of earlier runs
                await self._history(stream)
            return await asyncio.shield(pending.streams)
        except BaseException:
            pending.streams.add_done_callback(_close_unwanted)
            raise

    async def _history(self, stream: Stream) -> None:
        """What was logged before now: everything later arrives by the connection, which is open already.

        A line that was being written while this session connected can be seen twice or, if it had not ended yet, only
        from its middle on: as in Docker, whose log holds whole lines only.
        """
        await replay(self.container, stream, stdout=self.stdout, stderr=self.stderr, until=time.time_ns())


def _close_unwanted(connected: asyncio.Future[Streams | None]) -> None:
    """The client left before the start, which connects whoever was there: close what it made."""
    if not connected.cancelled() and connected.exception() is None and (streams := connected.result()) is not None:
        streams[1].close()


async def open_attach(
    deps: Deps,
    name: str,
    *,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    stream: bool,
    logs: bool,
    detach_keys: str | None = None,
) -> AttachSession:
    """Check a request to attach. Raises NotFound, InvalidParameter (detach keys), Conflict (paused, restarting)."""
    keys = detach_keys or detach.DEFAULT
    try:
        parsed = detach.parse(keys)
    except ValueError as exc:
        raise InvalidParameter(f"invalid detach keys ({keys}) provided") from exc
    container = deps.store.resolve(name)
    match container.state.status:
        case Status.PAUSED:
            raise Conflict(f"container {name} is paused, unpause the container before attach")
        case Status.RESTARTING:
            raise Conflict(f"container {name} is restarting, wait until the container is running before attach")
        case Status.REMOVING | Status.DEAD:
            raise Conflict(f"container {name} is marked for removal and cannot be attached to")
    if logs and container.host_config.log_config.type == "none":
        raise NotSupported("configured logging driver does not support reading")
    return AttachSession(
        deps=deps,
        container=container,
        stdin=stdin and container.config.open_stdin,
        stdout=stdout,
        stderr=stderr,
        stream=stream,
        logs=logs,
        keys=parsed,
    )
