"""Control: what a client asks of the daemon itself: builds and their progress, the cache.

`Solve` is the whole of a build: it is there while the client goes on by LLBBridge, exports what that returns, and when
it is left (the client's Ctrl-C resets it) the build ends.
"""

from collections.abc import AsyncIterator, Mapping

from grpclib.const import Status
from grpclib.server import Stream

from wherry.builder.options import CacheTransfer, Export
from wherry.builder.solve.upkeep import PruneOptions, Usage
from wherry.buildkit import bk_pb2 as pb
from wherry.buildkit.builds import Asked, Build, Builds, check_frontend
from wherry.buildkit.channel import Tunnel
from wherry.buildkit.history import filters_of
from wherry.buildkit.progress import moment, responses
from wherry.buildkit.server import Metadata, Methods, streaming, talking, unary
from wherry.buildkit.session import Sessions
from wherry.buildkit.workers import version, worker

CONTROL = "/moby.buildkit.v1.Control/"
SESSION_HEADER = "x-docker-expose-session-"


class Control:
    def __init__(self, builds: Builds, sessions: Sessions) -> None:
        self._builds = builds
        self._builder = builds.builder
        self._sessions = sessions

    def methods(self) -> Methods:
        return {
            CONTROL + "Solve": unary(pb.SolveRequest, pb.SolveResponse, self.solve, code=Status.UNKNOWN),
            CONTROL + "Status": streaming(pb.StatusRequest, pb.StatusResponse, self.status),
            CONTROL + "Session": talking(pb.Bytes, pb.Bytes, self.session),
            CONTROL + "ListWorkers": unary(pb.ListWorkersRequest, pb.ListWorkersResponse, self.list_workers),
            CONTROL + "Info": unary(pb.InfoRequest, pb.InfoResponse, self.info),
            CONTROL + "DiskUsage": unary(pb.DiskUsageRequest, pb.DiskUsageResponse, self.disk_usage),
            CONTROL + "Prune": streaming(pb.PruneRequest, pb.UsageRecord, self.prune),
            "/grpc.health.v1.Health/Check": unary(pb.HealthCheckRequest, pb.HealthCheckResponse, self.health),
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export": unary(
                pb.PingRequest, pb.PingRequest, self.drop_traces
            ),
        }

    # --- builds -------------------------------------------------------------------------------------------------------

    async def solve(self, request: pb.SolveRequest, metadata: Metadata) -> pb.SolveResponse:
        if request.frontend:
            check_frontend(request.frontend)
        async with self._builds.run(_asked(request)) as build:
            return pb.SolveResponse(exporter_response=await self._solve(build, request))

    async def _solve(self, build: Build, request: pb.SolveRequest) -> Mapping[str, str]:
        if request.frontend:
            built = await build.frontend(dict(request.frontend_attrs), dict(request.frontend_inputs))
        elif request.definition.ops:
            built = await build.graph(request.definition)
        else:
            built = await build.returned
        return await build.export(built)

    async def status(self, request: pb.StatusRequest, metadata: Metadata) -> AsyncIterator[pb.StatusResponse]:
        async for batch in self._builds.events(request.ref):
            for response in responses(batch):
                yield response

    async def session(self, stream: Stream[pb.Bytes, pb.Bytes]) -> None:
        given = stream.metadata
        assert given is not None
        headers = {name: str(given.get(SESSION_HEADER + name, "")) for name in ("uuid", "name", "sharedkey")}
        methods = given.getall(SESSION_HEADER + "grpc-method", [])
        session = self._sessions.open(headers, [str(each) for each in methods])
        try:
            await stream.send_initial_metadata()
            await Tunnel(stream, session.channel.protocol).run()
        finally:
            self._sessions.close(session)

    # --- the engine ---------------------------------------------------------------------------------------------------

    async def list_workers(self, request: pb.ListWorkersRequest, metadata: Metadata) -> pb.ListWorkersResponse:
        return pb.ListWorkersResponse(record=[worker(self._builder.deps)])

    async def info(self, request: pb.InfoRequest, metadata: Metadata) -> pb.InfoResponse:
        return pb.InfoResponse(version=version())

    async def health(self, request: pb.HealthCheckRequest, metadata: Metadata) -> pb.HealthCheckResponse:
        return pb.HealthCheckResponse(status=1)

    async def drop_traces(self, request: pb.PingRequest, metadata: Metadata) -> pb.PingRequest:
        """Clients send what they measured; nobody here collects it."""
        return pb.PingRequest()

    # --- the cache ----------------------------------------------------------------------------------------------------

    async def disk_usage(self, request: pb.DiskUsageRequest, metadata: Metadata) -> pb.DiskUsageResponse:
        found = await self._builder.usage(filters_of(request.filter))
        return pb.DiskUsageResponse(record=[_usage(each) for each in found])

    async def prune(self, request: pb.PruneRequest, metadata: Metadata) -> AsyncIterator[pb.UsageRecord]:
        options = PruneOptions(
            all=request.all,
            filters=filters_of(request.filter),
            keep_duration=request.keep_duration,
            reserved=request.reserved_space,
            max_used=request.max_used_space,
            min_free=request.min_free_space,
        )
        for each in await self._builder.prune(options):
            yield _usage(each)


def _asked(request: pb.SolveRequest) -> Asked:
    exports = [Export(type=each.type, attributes=dict(each.attrs)) for each in request.exporters]
    if not exports and request.exporter:
        exports = [Export(type=request.exporter, attributes=dict(request.exporter_attrs))]
    return Asked(
        ref=request.ref,
        session=request.session,
        attributes=dict(request.frontend_attrs),
        exports=exports,
        cache_exports=[CacheTransfer(type=each.type, attributes=dict(each.attrs)) for each in request.cache.exports],
        cache_imports=[CacheTransfer(type=each.type, attributes=dict(each.attrs)) for each in request.cache.imports],
        entitlements=frozenset(each.partition("=")[0] for each in request.entitlements),
        internal=request.internal,
        inputs=dict(request.frontend_inputs),
    )


def _usage(usage: Usage) -> pb.UsageRecord:
    return pb.UsageRecord(
        id=usage.id,
        mutable=usage.mutable,
        in_use=usage.in_use,
        size=usage.size,
        created_at=moment(usage.created),
        last_used_at=moment(usage.used),
        usage_count=usage.uses,
        description=usage.description,
        record_type=usage.type,
        shared=usage.shared,
        parents=usage.parents,
    )
