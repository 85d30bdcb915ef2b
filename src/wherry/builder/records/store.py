"""Records: every build, from its beginning, with its log, until it is removed or there are too many.

    table `builds`              ref -> record (record.py); written when a build begins, ends or is changed
    <root>/<ref>/log            what happened (logfile.py)

Everything but the logs is in memory; rows are written first and memory follows. Used from the event loop only.
A build whose row says that it runs when the daemon starts was interrupted: its steps are found in its log.
"""

import asyncio
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

import msgspec

from wherry.aio import KeyedLock, finish, settle
from wherry.builder.log import BuildLog, Event, LogEvent, StatusEvent, VertexEvent, WarningEvent
from wherry.builder.records import logfile
from wherry.builder.records.filters import matcher
from wherry.builder.records.record import (
    Exporter,
    Failure,
    Input,
    Problem,
    Produced,
    Record,
    Status,
    Step,
    count,
    decode,
    encode,
    without_passwords,
)
from wherry.errors import Conflict, Failed, InvalidParameter, NotFound
from wherry.state import Change, Delete, Put, State
from wherry.storage.tree import remove_tree

log = logging.getLogger(__name__)

MAX_RECORDS = 200  # kept besides those that are pinned
MAX_AGE = 30 * 24 * 3600  # seconds
BACKLOG = 1024  # changes a slow watcher may be behind
FLUSH = 0.2  # seconds that what happened may be in memory alone: so much of a log is lost when the daemon is killed
BATCH = 1000  # events read from disk at a time
MIN_PREFIX = 3  # characters of a ref that are enough when they are unique

_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}\Z")
INTERRUPTED = Failure(message="the daemon ended in the middle of this build", code=14)  # of gRPC: unavailable


class Kind(StrEnum):
    STARTED = "started"
    CHANGED = "changed"
    ENDED = "ended"
    REMOVED = "removed"


class Watch:
    """An open ear; iterate for what happens to records from now on. Who does not read loses the oldest changes."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[Kind, Record]] = asyncio.Queue(BACKLOG)

    def put(self, kind: Kind, record: Record) -> None:
        if self._queue.full():
            self._queue.get_nowait()
        self._queue.put_nowait((kind, record))

    async def __aiter__(self) -> AsyncIterator[tuple[Kind, Record]]:
        while True:
            yield await self._queue.get()


class Recording:
    """A build that runs: its log, and what its record will say. Ended by `Records.end`."""

    def __init__(self, record: Record, writer: logfile.LogWriter) -> None:
        self.log = BuildLog(self._add)
        self._record = record
        self._writer = writer
        self._told = _Told()
        self._flush: asyncio.TimerHandle | None = None

    @property
    def ref(self) -> str:
        return self._record.ref

    def _add(self, event: Event) -> None:
        self._told.add(event)
        self._writer.add(event)
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(FLUSH, self._write_out)

    def _write_out(self) -> None:
        self._flush = None
        self._writer.flush()

    def close(self) -> None:
        if self._flush is not None:
            self._flush.cancel()
        self.log.close()
        self._writer.close()

    def record(self) -> Record:
        """As it is at this moment."""
        found = self._told.fill(self._record)
        return found if self._writer.complete else replace(found, log_complete=False)

    def change(self, *, pinned: bool) -> None:
        self._record = replace(self._record, pinned=pinned)


class _Told:
    """What the events said so far."""

    def __init__(self) -> None:
        self._vertices: dict[str, VertexEvent] = {}
        self._problems: list[Problem] = []
        self.last = 0  # ns: the latest moment that was told of

    def add(self, event: Event) -> None:
        match event:
            case VertexEvent():
                self._vertices[event.key] = event
                self.last = max(self.last, event.started, event.completed)
            case WarningEvent():
                self._problems.append(Problem.of(event))
            case StatusEvent() | LogEvent():
                self.last = max(self.last, event.at)

    def fill(self, record: Record) -> Record:
        total, cached, completed = count(self._vertices.values())
        return replace(
            record,
            total_steps=total,
            cached_steps=cached,
            completed_steps=completed,
            steps=[Step.of(event) for event in self._vertices.values()],
            warnings=list(self._problems),
        )


class Records:
    def __init__(self, state: State, root: Path, *, max_records: int = MAX_RECORDS, max_age: float = MAX_AGE) -> None:
        """Load all rows (blocking). `recover` comes next."""
        self._state = state
        self._root = root
        self._max_records, self._max_age = max_records, max_age
        self._locks = KeyedLock()
        self._ears: set[Watch] = set()
        self._running: dict[str, Recording] = {}
        self._records: dict[str, Record] = {}
        self._damaged: list[str] = []
        for ref, raw in state.rows("builds").items():
            try:
                self._records[ref] = decode(raw)
            except msgspec.MsgspecError as exc:
                log.error("the record of build %s cannot be read and is dropped: %s", ref, exc)
                self._damaged.append(ref)

    # --- reading ------------------------------------------------------------------------------------------------------

    def get(self, ref: str) -> Record:
        """By ref, or by a beginning of it that no other has. Raises NotFound, InvalidParameter."""
        return self._now(self._resolve(ref))

    def history(
        self, filters: Sequence[str] = (), limit: int = 0, *, ref: str = "", active_only: bool = False
    ) -> list[Record]:
        """Records that one of `filters` wants, the newest first; `limit` 0 for all. Raises InvalidParameter."""
        wanted = matcher(filters)
        found = [self._now(key) for key in self._records if not ref or key == ref]
        found = [record for record in found if wanted(record) and (not active_only or record.ref in self._running)]
        found.sort(key=lambda record: (record.created, record.ref), reverse=True)
        return found[:limit] if limit > 0 else found

    def running(self, ref: str) -> Recording | None:
        return self._running.get(ref)

    @contextmanager
    def watch(self) -> Iterator[Watch]:
        """Combine with `history` (no await in between) to miss no change and hear none twice."""
        ear = Watch()
        self._ears.add(ear)
        try:
            yield ear
        finally:
            self._ears.discard(ear)

    async def events(self, ref: str) -> AsyncIterator[list[Event]]:
        """All that happened in a build, in batches; of one that runs until it ends. Raises NotFound."""
        ref = self._resolve(ref)
        if (recording := self._running.get(ref)) is not None:
            async for batch in recording.log:
                yield batch
            return
        source = logfile.read(self.log_path(ref))

        def take() -> list[Event]:
            return [event for event, _ in zip(source, range(BATCH), strict=False)]

        while batch := await settle(take):
            yield batch

    def log_path(self, ref: str) -> Path:
        return self._root / ref / "log"

    def _resolve(self, ref: str) -> str:
        if ref in self._records:
            return ref
        found = [key for key in self._records if key.startswith(ref)] if len(ref) >= MIN_PREFIX else []
        if len(found) > 1:
            raise InvalidParameter(f"several builds have a ref that begins with {ref}: give more of it")
        if not found:
            raise NotFound(f"no record found for ref {ref[:200]!r}")
        return found[0]

    def _now(self, ref: str) -> Record:
        recording = self._running.get(ref)
        return recording.record() if recording else self._records[ref]

    # --- writing ------------------------------------------------------------------------------------------------------

    async def begin(
        self,
        ref: str,
        *,
        attributes: Mapping[str, str] | None = None,
        exporters: Sequence[Exporter] = (),
        frontend: str = "dockerfile.v0",
    ) -> Recording:
        """A build begins; with the ref of one that has ended, in its place. Raises InvalidParameter, Conflict."""
        if _REF.match(ref) is None:
            raise InvalidParameter(
                f"invalid build ref {ref[:100]!r}: want at most 128 letters, digits, dashes and underscores"
            )
        return await finish(self._begin(ref, attributes or {}, exporters, frontend))

    async def _begin(
        self, ref: str, attributes: Mapping[str, str], exporters: Sequence[Exporter], frontend: str
    ) -> Recording:
        async with self._locks(ref):
            if ref in self._running:
                raise Conflict(f"a build with the ref {ref} is running")
            record = Record(
                ref=ref,
                frontend=frontend,
                attributes=without_passwords(attributes),
                exporters=[
                    Exporter(type=each.type, attributes=without_passwords(each.attributes)) for each in exporters
                ],
                created=time.time_ns(),
            )
            await settle(self._remove_log, ref)
            await self._write(record)
            writer = await settle(logfile.LogWriter, self.log_path(ref))
            recording = self._running[ref] = Recording(record, writer)
        self._tell(Kind.STARTED, record)
        return recording

    async def end(
        self,
        recording: Recording,
        status: Status,
        *,
        error: Failure | None = None,
        response: Mapping[str, str] | None = None,
        inputs: Sequence[Input] = (),
        results: Sequence[Produced] = (),
    ) -> Record:
        """The build is over: its log is closed and its record complete. Old records go."""
        return await finish(self._end(recording, status, error, response or {}, inputs, results))

    async def _end(
        self,
        recording: Recording,
        status: Status,
        error: Failure | None,
        response: Mapping[str, str],
        inputs: Sequence[Input],
        results: Sequence[Produced],
    ) -> Record:
        async with self._locks(recording.ref):
            recording.close()
            record = recording.record()
            record = replace(
                record,
                status=status,
                completed=time.time_ns(),
                generation=record.generation + 1,
                inputs=[replace(each, name=without_passwords({"": each.name})[""]) for each in inputs],
                results=list(results),
                response=dict(response),
                error=error,
            )
            self._running.pop(recording.ref, None)
            self._records[recording.ref] = record
            try:
                await self._write(record)
            except Failed as exc:  # the build is what it is; after a restart its record says that it was interrupted
                log.error("the record of build %s is not complete: %s", record.ref, exc.message)
        self._tell(Kind.ENDED, record)
        await self.expire()
        return record

    async def pin(self, ref: str, *, pinned: bool) -> Record:
        """A pinned record stays until it is removed by hand. Raises NotFound."""
        return await finish(self._pin(self._resolve(ref), pinned))

    async def _pin(self, ref: str, pinned: bool) -> Record:
        async with self._locks(ref):
            record = self._now(self._resolve(ref))
            record = replace(record, pinned=pinned, generation=record.generation + 1)
            await self._write(record)
            if (recording := self._running.get(ref)) is not None:
                recording.change(pinned=pinned)
        self._tell(Kind.CHANGED, record)
        return record

    async def remove(self, ref: str) -> None:
        """The record and its log. Raises NotFound, and Conflict while the build runs."""
        await finish(self._remove(self._resolve(ref)))

    async def _remove(self, ref: str) -> None:
        async with self._locks(ref):
            record = self._records[self._resolve(ref)]
            if ref in self._running:
                raise Conflict(f"build {ref} is running: cancel it first")
            await settle(self._state.write, Delete("builds", ref))
            del self._records[ref]
            await settle(self._remove_log, ref)
        self._tell(Kind.REMOVED, record)

    async def expire(self) -> None:
        """Drop the oldest records that are too many or too old."""
        now = time.time_ns()
        loose = [each for each in self.history() if not each.pinned and each.ref not in self._running]
        old = [each for each in loose if now - each.completed > self._max_age * 1e9]
        for record in {each.ref: each for each in [*loose[self._max_records :], *old]}.values():
            with suppress(NotFound, Conflict):  # somebody was faster
                await self.remove(record.ref)

    def close(self) -> None:
        """The daemon ends: logs of builds that run are written out; their records say at the next start what became."""
        for recording in self._running.values():
            recording.close()

    async def recover(self) -> None:
        """At start, before any build: end the records of builds that were interrupted, and drop logs without one."""
        await settle(self._recover)
        await self.expire()

    def _recover(self) -> None:
        changes: list[Change] = [Delete("builds", ref) for ref in self._damaged]
        for ref, record in self._records.items():
            if record.status is Status.RUNNING:
                told = _Told()
                for event in logfile.read(self.log_path(ref)):
                    told.add(event)
                record = replace(
                    told.fill(record),
                    status=Status.INTERRUPTED,
                    completed=max(told.last, record.created),
                    generation=record.generation + 1,
                    error=INTERRUPTED,
                )
                self._records[ref] = record
                changes.append(Put("builds", ref, encode(record)))
        if changes:
            self._state.write(*changes)
        self._damaged.clear()
        with suppress(FileNotFoundError, NotADirectoryError):
            for name in os.listdir(self._root):
                if name not in self._records:
                    self._remove_log(name)

    async def _write(self, record: Record) -> None:
        await settle(self._state.write, Put("builds", record.ref, encode(record)))
        self._records[record.ref] = record

    def _remove_log(self, ref: str) -> None:
        with suppress(FileNotFoundError, NotADirectoryError):
            remove_tree(self._root / ref)

    def _tell(self, kind: Kind, record: Record) -> None:
        for ear in self._ears:
            ear.put(kind, record)
