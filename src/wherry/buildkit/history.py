"""The history of builds, for `buildx history` and for what buildx notes of a build that has just ended.

The blobs it names are read by clients as from a content store of containerd.
"""

from collections.abc import AsyncIterator, Iterable

import msgspec

from wherry.aio import acquire, settle
from wherry.builder.build import Builder
from wherry.builder.records.record import Produced, Record, Status
from wherry.builder.records.store import Kind
from wherry.buildkit import bk_pb2 as pb
from wherry.buildkit.filesend import PIECE
from wherry.buildkit.progress import moment
from wherry.buildkit.server import Metadata, Methods, streaming, unary
from wherry.digest import parse
from wherry.errors import InvalidParameter, WherryError

CONTROL = "/moby.buildkit.v1.Control/"
CONTENT = "/containerd.services.content.v1.Content/"
STATEMENT = "application/vnd.in-toto+json"
PREDICATE = "in-toto.io/predicate-type"
MAX_STATEMENT = 16 << 20  # bytes
_STARTED, _COMPLETE, _DELETED = 0, 1, 2  # types of events
_EVENTS = {Kind.STARTED: _STARTED, Kind.CHANGED: _COMPLETE, Kind.ENDED: _COMPLETE, Kind.REMOVED: _DELETED}


class _Statement(msgspec.Struct, frozen=True):
    predicate_type: str = msgspec.field(name="predicateType", default="")


def filters_of(given: Iterable[str]) -> list[str]:
    return [each for each in given if each]  # buildx sends an empty one for none


class History:
    def __init__(self, builder: Builder) -> None:
        self._records = builder.records
        self._content = builder.deps.content

    def methods(self) -> Methods:
        return {
            CONTROL + "ListenBuildHistory": streaming(pb.BuildHistoryRequest, pb.BuildHistoryEvent, self.listen),
            CONTROL + "UpdateBuildHistory": unary(
                pb.UpdateBuildHistoryRequest, pb.UpdateBuildHistoryResponse, self.update
            ),
            CONTENT + "Info": unary(pb.ContentInfoRequest, pb.ContentInfoResponse, self.content_info),
            CONTENT + "Read": streaming(pb.ContentReadRequest, pb.ContentReadResponse, self.content_read),
        }

    async def listen(self, request: pb.BuildHistoryRequest, metadata: Metadata) -> AsyncIterator[pb.BuildHistoryEvent]:
        """What there is, the oldest first, and unless that is enough (`early_exit`) what comes."""
        whole = bool(request.ref)  # of one record everything is told
        with self._records.watch() as changes:
            found = self._records.history(
                filters_of(request.filter), request.limit, ref=request.ref, active_only=request.active_only
            )
            for each in reversed(found):
                kind = _STARTED if each.status is Status.RUNNING else _COMPLETE
                yield pb.BuildHistoryEvent(type=kind, record=await self._told(each, whole=whole))
            if request.early_exit:
                return
            async for change, record in changes:
                if not request.ref or record.ref == request.ref:
                    yield pb.BuildHistoryEvent(type=_EVENTS[change], record=await self._told(record, whole=whole))

    async def update(self, request: pb.UpdateBuildHistoryRequest, metadata: Metadata) -> pb.UpdateBuildHistoryResponse:
        if request.finalize:  # records are complete as soon as a build is over
            self._records.get(request.ref)
        elif request.delete:
            await self._records.remove(request.ref)
        else:
            await self._records.pin(request.ref, pinned=request.pinned)
        return pb.UpdateBuildHistoryResponse()

    async def _told(self, record: Record, *, whole: bool) -> pb.BuildHistoryRecord:
        found = pb.BuildHistoryRecord(
            ref=record.ref,
            frontend=record.frontend,
            frontend_attrs=dict(record.attributes),
            exporters=[pb.KVEntry(type=each.type, attrs=dict(each.attributes)) for each in record.exporters],
            created_at=moment(record.created),
            completed_at=moment(record.completed),
            exporter_response=dict(record.response),
            generation=record.generation,
            pinned=record.pinned,
            num_cached_steps=record.cached_steps,
            num_total_steps=record.total_steps,
            num_completed_steps=record.completed_steps,
            num_warnings=len(record.warnings),
        )
        if record.error is not None:
            found.error.CopyFrom(pb.RpcStatus(code=record.error.code or 2, message=record.error.message))
        if whole:
            for each in record.results:
                into = found.results[each.platform] if len(record.results) > 1 else found.result
                into.CopyFrom(await self._result(each))
        return found

    async def _result(self, produced: Produced) -> pb.BuildResultInfo:
        """With those of its attestations that are still held: an image may be gone by now."""
        result = pb.BuildResultInfo()
        for each in produced.attestations:
            try:
                data = await settle(self._content.read, parse(each), limit=MAX_STATEMENT)
                statement = msgspec.json.decode(data, type=_Statement)
            except (WherryError, msgspec.MsgspecError):
                continue
            result.attestations.append(
                pb.Descriptor(
                    media_type=STATEMENT,
                    digest=each,
                    size=len(data),
                    annotations={PREDICATE: statement.predicate_type},
                )
            )
        return result

    # --- blobs --------------------------------------------------------------------------------------------------------

    async def content_info(self, request: pb.ContentInfoRequest, metadata: Metadata) -> pb.ContentInfoResponse:
        digest = parse(request.digest)
        size = await settle(self._content.size, digest)
        return pb.ContentInfoResponse(info=pb.ContentInfo(digest=digest, size=size))

    async def content_read(
        self, request: pb.ContentReadRequest, metadata: Metadata
    ) -> AsyncIterator[pb.ContentReadResponse]:
        """`size` 0: to the end."""
        if request.offset < 0 or request.size < 0:
            raise InvalidParameter("read content: invalid range")
        at, left = request.offset, request.size
        with await acquire(self._content.open, parse(request.digest)) as file:
            await settle(file.seek, at)
            while data := await settle(file.read, min(PIECE, left or PIECE)):
                yield pb.ContentReadResponse(offset=at, data=data)
                at += len(data)
                if request.size:
                    left -= len(data)
                    if not left:
                        return
