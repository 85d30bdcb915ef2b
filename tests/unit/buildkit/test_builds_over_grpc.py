import asyncio
import os

import pytest
from fakebuild import FakeBuilder
from grpckit import joined
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError

from wherry.builder.dockerfile.errors import DockerfileError
from wherry.builder.graph import Location, Range, TreeSource
from wherry.builder.job import Cancelled
from wherry.builder.options import CacheTransfer, Call
from wherry.builder.records.record import Produced, Record
from wherry.builder.records.record import Status as RecordStatus
from wherry.builder.solve.upkeep import Usage
from wherry.buildkit import bk_pb2 as pb
from wherry.buildkit.channel import Channel
from wherry.buildkit.control import CONTROL
from wherry.buildkit.doors import Doors
from wherry.buildkit.errors import SOURCE, VERTEX
from wherry.buildkit.gateway import BRIDGE, BUILD_ID
from wherry.buildkit.history import CONTENT
from wherry.buildkit.llb import define
from wherry.errors import Failed
from wherry.spec.image import Platform


class Buildx:
    """A client of the daemon's, as far as the tests need it."""

    def __init__(self, channel: Channel, ref: str = "ref1") -> None:
        self.channel = channel
        self.ref = ref

    async def call(self, path: str, request, reply, **metadata: str):
        opened = self.channel.request(
            path, Cardinality.UNARY_UNARY, type(request), reply, metadata=list(metadata.items())
        )
        async with opened as stream:
            await stream.send_message(request, end=True)
            return await stream.recv_message()

    async def solve(self, **fields) -> dict[str, str]:
        fields.setdefault("ref", self.ref)
        found = await self.call(CONTROL + "Solve", pb.SolveRequest(**fields), pb.SolveResponse)
        return dict(found.exporter_response)

    async def bridge(self, method: str, request, reply):
        return await self.call(BRIDGE + method, request, reply, **{BUILD_ID: self.ref})

    async def build(self, *, inputs=None, **attributes: str) -> pb.GwResult:
        given = {key.replace("__", ":").replace("_", "-"): value for key, value in attributes.items()}
        request = pb.GwSolveRequest(frontend="dockerfile.v0", frontend_opt=given, frontend_inputs=inputs)
        return (await self.bridge("Solve", request, pb.GwSolveResponse)).result

    async def give_back(self, result: pb.GwResult | None = None, *, error: pb.RpcStatus | None = None) -> None:
        await self.bridge("Return", pb.ReturnRequest(result=result, error=error), pb.ReturnResponse)

    async def stream(self, path: str, request, reply) -> list:
        opened = self.channel.request(path, Cardinality.UNARY_STREAM, type(request), reply)
        async with opened as stream:
            await stream.send_message(request, end=True)
            return [each async for each in stream]

    async def status(self) -> list[pb.StatusResponse]:
        return await self.stream(CONTROL + "Status", pb.StatusRequest(ref=self.ref), pb.StatusResponse)


@pytest.fixture
async def builder(tmp_path):
    return FakeBuilder(tmp_path)


@pytest.fixture
async def doors(builder):
    return Doors(builder)


@pytest.fixture
async def buildx(doors):
    channel = Channel()
    async with joined(doors.grpc().protocol, channel.protocol):
        yield Buildx(channel)


async def test_a_probe_leaves_no_trace(buildx, builder):
    solving = asyncio.ensure_future(buildx.solve(internal=True))
    pong = await buildx.bridge("Ping", pb.PingRequest(), pb.PongResponse)
    await buildx.give_back(pb.GwResult())
    assert await solving == {}
    assert builder.begun == []
    assert "exporter.image.attestations" in {cap.id for cap in pong.llb_caps}
    assert {"return", "proto.refarray", "statfile"} <= {cap.id for cap in pong.frontend_caps}
    assert "org.mobyproject.buildkit.worker.snapshotter" in pong.workers[0].labels


async def test_a_build_is_asked_for_by_the_bridge_and_exported_by_solve(buildx, builder):
    solving = asyncio.ensure_future(
        buildx.solve(
            exporters=[pb.KVEntry(type="moby", attrs={"name": "x:1"})],
            cache=pb.CacheOptions(
                exports=[pb.KVEntry(type="inline")], imports=[pb.KVEntry(type="registry", attrs={"ref": "r"})]
            ),
            frontend_attrs={"filename": "Dockerfile"},
        )
    )
    watching = asyncio.ensure_future(buildx.status())
    result = await buildx.build(filename="Dockerfile", build_arg__V="1", target="t")
    await buildx.give_back(result)
    assert await solving == {"containerimage.config.digest": "sha256:c"}
    (job,) = builder.begun
    assert job.ended is None
    assert job.response == {"containerimage.config.digest": "sha256:c"}
    assert (job.options.target, job.options.build_args) == ("t", {"V": "1"})
    assert job.options.cache_imports == [CacheTransfer(type="registry", attributes={"ref": "r"})]
    ((built, exports, caches),) = job.exported
    assert [each.id for each in built.platforms] == [result.ref.id]
    assert [(each.type, each.attributes) for each in exports] == [("moby", {"name": "x:1"})]
    assert [each.type for each in caches] == ["inline"]
    told = await watching
    assert [vertex.name for each in told for vertex in each.vertexes] == ["[1/1] RUN x"]
    assert b"".join(log.msg for each in told for log in each.logs) == b"the end\n"


async def test_the_calls_of_a_build_may_come_before_it(buildx, builder):
    building = asyncio.ensure_future(buildx.build())
    watching = asyncio.ensure_future(buildx.status())
    await asyncio.sleep(0)
    solving = asyncio.ensure_future(buildx.solve())
    await buildx.give_back(await building)
    await solving
    assert await watching


async def test_the_log_of_a_build_that_is_over_is_told_from_its_record(buildx, builder):
    solving = asyncio.ensure_future(buildx.solve())
    await buildx.give_back(await buildx.build())
    await solving
    assert [log.msg for each in await buildx.status() for log in each.logs] == [b"the end\n"]


async def test_buildctl_has_the_frontend_in_solve_itself(buildx, builder):
    response = await buildx.solve(
        frontend="dockerfile.v0", frontend_attrs={"target": "t"}, exporter="image", exporter_attrs={"name": "x"}
    )
    (job,) = builder.begun
    assert response == {"containerimage.config.digest": "sha256:c"}
    assert job.options.target == "t"
    assert [each.type for each in job.exported[0][1]] == ["image"]


async def test_a_graph_of_the_clients_is_solved(buildx, builder):
    solving = asyncio.ensure_future(buildx.solve())
    request = pb.GwSolveRequest(definition=define("other"))
    found = await buildx.bridge("Solve", request, pb.GwSolveResponse)
    assert builder.handed[found.result.ref.id].output.vertex.op == TreeSource(id="other")
    await buildx.give_back(found.result)
    await solving


async def test_a_result_can_be_the_beginning_of_another_build(buildx, builder):
    solving = asyncio.ensure_future(buildx.solve())
    result = await buildx.build()
    inputs = {"0-a": result.ref.definition}
    await buildx.build(inputs=inputs, context__x="input:0-a")
    (job,) = builder.begun
    context = job.options.contexts["x"]
    assert context.output.vertex.op == TreeSource(id=result.ref.id)
    await buildx.give_back(result)
    await solving


async def test_several_platforms_come_back_by_their_names(buildx, builder):
    async def both(job, options):
        return builder.result(Platform(os="linux", architecture="amd64"), Platform(os="linux", architecture="arm64"))

    builder.on_frontend = both
    solving = asyncio.ensure_future(buildx.solve(exporters=[pb.KVEntry(type="oci")]))
    result = await buildx.build(platform="linux/amd64,linux/arm64")
    assert sorted(result.refs.refs) == ["linux/amd64", "linux/arm64"]
    assert b'"ID":"linux/arm64"' in result.metadata["refs.platforms"]
    assert b'"arm64"' in result.metadata["containerimage.config/linux/arm64"]
    await buildx.give_back(result)
    await solving
    ((built, _, _),) = builder.begun[0].exported
    assert [each.platform.architecture for each in built.platforms] == ["amd64", "arm64"]
    assert built.multi


async def test_an_answer_to_a_question_is_not_exported(buildx, builder):
    async def lint(job, options):
        assert options.call is Call.LINT
        return builder.result(metadata={"result.txt": b"fine"})

    builder.on_frontend = lint
    solving = asyncio.ensure_future(buildx.solve(internal=True, exporters=[pb.KVEntry(type="moby")]))
    result = await buildx.build(requestid="frontend.lint")
    assert result.metadata["result.txt"] == b"fine"
    assert result.WhichOneof("result") is None
    await buildx.give_back(result)
    assert await solving == {}
    assert builder.begun[0].exported == []


async def test_a_check_leaves_no_record_and_its_status_ends(buildx, builder):
    solving = asyncio.ensure_future(buildx.solve(internal=True))
    await buildx.give_back(await buildx.build(requestid="frontend.lint"))
    await solving
    assert builder.records.history() == []
    assert await buildx.status() == []


async def test_a_failed_step_is_told_with_its_place_by_both_calls(buildx, builder):
    async def fail(job, options):
        job.failed_at = Location("Dockerfile", b"FROM x\nRUN false\n", (Range(2, 2),))
        job.failed_vertex = "sha256:1"
        raise Failed('process "/bin/sh -c false" did not complete successfully: exit code: 1')

    builder.on_frontend = fail
    solving = asyncio.ensure_future(buildx.solve())
    with pytest.raises(GRPCError) as failure:
        await buildx.build()
    assert failure.value.status is Status.UNKNOWN
    await buildx.give_back(error=pb.RpcStatus(code=2, message="failed to solve"))
    with pytest.raises(GRPCError) as final:
        await solving
    assert final.value.message == 'process "/bin/sh -c false" did not complete successfully: exit code: 1'
    assert [each.type_url for each in final.value.details] == [VERTEX, SOURCE]
    assert b'"line":2' in final.value.details[1].value
    assert isinstance(builder.begun[0].ended, Failed)


async def test_what_is_wrong_with_a_dockerfile_is_told_with_its_place(buildx, builder):
    async def fail(job, options):
        raise DockerfileError("unknown instruction: RNU", Location("Dockerfile", b"RNU\n", (Range(1, 1, 1),)))

    builder.on_frontend = fail
    with pytest.raises(GRPCError) as failure:
        await buildx.solve(frontend="dockerfile.v0")
    assert failure.value.message == "unknown instruction: RNU"
    assert [each.type_url for each in failure.value.details] == [SOURCE]


async def test_a_failure_of_the_clients_own_ends_the_build(buildx, builder):
    solving = asyncio.ensure_future(buildx.solve())
    await buildx.build()
    await buildx.give_back(error=pb.RpcStatus(code=2, message="policy says no"))
    with pytest.raises(GRPCError, match="policy says no"):
        await solving
    assert isinstance(builder.begun[0].ended, GRPCError)


async def test_a_failed_export_fails_the_build(buildx, builder):
    async def fail(job, built):
        raise Failed("no space left on device")

    builder.on_export = fail
    with pytest.raises(GRPCError, match="no space left on device"):
        await buildx.solve(frontend="dockerfile.v0", exporter="image")


async def test_a_client_that_resets_solve_ends_the_build(buildx, builder):
    begun = asyncio.Event()

    async def forever(job, options):
        begun.set()
        await asyncio.Event().wait()

    builder.on_frontend = forever
    opened = buildx.channel.request(CONTROL + "Solve", Cardinality.UNARY_UNARY, pb.SolveRequest, pb.SolveResponse)
    async with opened as stream:
        await stream.send_message(pb.SolveRequest(ref="ref1", frontend="dockerfile.v0"), end=True)
        await begun.wait()
        await stream.cancel()
    await buildx.status()  # ends when the build does
    assert isinstance(builder.begun[0].ended, asyncio.CancelledError)
    assert builder.jobs == {}


async def test_a_build_that_is_cancelled_elsewhere_is_told_so(buildx, builder):
    async def cancelled(job, options):
        raise Cancelled("the build was canceled")

    builder.on_frontend = cancelled
    with pytest.raises(GRPCError) as failure:
        await buildx.solve(frontend="dockerfile.v0")
    assert failure.value.status is Status.CANCELLED


async def test_a_call_that_waits_for_a_cancelled_build_is_answered(buildx, builder):
    """Nobody has cancelled the call itself, so its client waits for an answer."""
    stop = asyncio.Event()

    async def cancelled(job, options):
        await stop.wait()
        raise asyncio.CancelledError

    builder.on_frontend = cancelled
    solving = asyncio.ensure_future(buildx.solve())
    building = asyncio.ensure_future(buildx.build())
    await buildx.bridge("Ping", pb.PingRequest(), pb.PongResponse)
    stop.set()
    with pytest.raises(GRPCError) as failure:
        await building
    assert failure.value.status is Status.CANCELLED
    await buildx.give_back(error=pb.RpcStatus(code=1, message="context canceled"))
    with pytest.raises(GRPCError) as final:
        await solving
    assert final.value.status is Status.CANCELLED


async def test_two_builds_of_one_ref_do_not_run_at_a_time(buildx):
    solving = asyncio.ensure_future(buildx.solve())
    await buildx.build()
    with pytest.raises(GRPCError, match="exists"):
        await buildx.solve()
    await buildx.give_back(pb.GwResult())
    await solving


async def test_a_call_without_its_build_is_refused(buildx):
    with pytest.raises(GRPCError, match="buildid"):
        await buildx.call(BRIDGE + "Ping", pb.PingRequest(), pb.PongResponse)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (pb.SolveRequest(ref="r", frontend="custom"), "unknown frontend"),
        (pb.SolveRequest(ref="", frontend="dockerfile.v0"), "ref"),
        (
            pb.SolveRequest(ref="r", frontend="gateway.v0", frontend_attrs={"source": "docker.io/someone/else:1"}),
            "someone/else",
        ),
    ],
)
async def test_what_is_not_built_in_is_refused(buildx, request_, words):
    with pytest.raises(GRPCError, match=words):
        await buildx.call(CONTROL + "Solve", request_, pb.SolveResponse)


async def test_the_built_in_language_may_be_named_as_an_image(buildx, builder):
    await buildx.solve(
        frontend="gateway.v0", frontend_attrs={"source": "docker/dockerfile:1", "cmdline": "docker/dockerfile:1"}
    )
    assert builder.begun[0].ended is None


async def test_files_of_a_result_can_be_read(buildx, builder):
    (builder.root / "d").mkdir()
    (builder.root / "d/f").write_bytes(b"0123456789")
    (builder.root / "d/l").symlink_to("/d/f")
    (builder.root / "out").symlink_to("/etc/passwd")
    os.mkfifo(builder.root / "d/p")
    solving = asyncio.ensure_future(buildx.solve())
    result = await buildx.build()
    ref = result.ref.id

    async def read(path, **span):
        request = pb.ReadFileRequest(ref=ref, file_path=path, range=pb.FileRange(**span) if span else None)
        return (await buildx.bridge("ReadFile", request, pb.ReadFileResponse)).data

    assert await read("d/f") == b"0123456789"
    assert await read("/d/l", offset=2, length=3) == b"234"
    assert await read("d/f", offset=8) == b"89"
    for path, words in (("none", "no such file"), ("d", "directory"), ("d/p", "no file"), ("out", "no such file")):
        with pytest.raises(GRPCError, match=words):
            await read(path)
    found = await buildx.bridge("StatFile", pb.StatFileRequest(ref=ref, path="d/f"), pb.StatFileResponse)
    assert (found.stat.path, found.stat.size, found.stat.mode & 0o777) == ("f", 10, 0o644)
    with pytest.raises(GRPCError) as missing:
        await buildx.bridge("StatFile", pb.StatFileRequest(ref=ref, path="Dockerfile.rego"), pb.StatFileResponse)
    assert missing.value.status is Status.NOT_FOUND
    listed = await buildx.bridge("ReadDir", pb.ReadDirRequest(ref=ref, dir_path="d"), pb.ReadDirResponse)
    assert [(each.path, each.linkname) for each in listed.entries] == [("f", ""), ("l", "/d/f"), ("p", "")]
    request = pb.ReadDirRequest(ref=ref, dir_path="d", include_pattern="f*")
    listed = await buildx.bridge("ReadDir", request, pb.ReadDirResponse)
    assert [each.path for each in listed.entries] == ["f"]
    await buildx.bridge("Evaluate", pb.EvaluateRequest(ref=ref), pb.EvaluateResponse)
    with pytest.raises(GRPCError, match="build it again"):
        await buildx.bridge("Evaluate", pb.EvaluateRequest(ref="gone"), pb.EvaluateResponse)
    await buildx.give_back(result)
    await solving


async def test_a_warning_of_the_clients_is_part_of_the_log(buildx, builder):
    solving = asyncio.ensure_future(buildx.solve())
    await buildx.build()
    request = pb.WarnRequest(digest="sha256:1", short=b"careful", detail=[b"it is hot"], url="https://u")
    await buildx.bridge("Warn", request, pb.WarnResponse)
    await buildx.give_back(pb.GwResult())
    await solving
    (warning,) = [each for each in builder.begun[0].log.events if hasattr(each, "short")]
    assert (warning.short, warning.detail, warning.url) == ("careful", ("it is hot",), "https://u")


async def test_another_source_than_an_image_means_what_it_says(buildx):
    solving = asyncio.ensure_future(buildx.solve())
    request = pb.ResolveSourceMetaRequest(source=pb.SourceOp(identifier="git://x/y"))
    found = await buildx.bridge("ResolveSourceMeta", request, pb.ResolveSourceMetaResponse)
    assert found.source.identifier == "git://x/y"
    await buildx.give_back(pb.GwResult())
    await solving


async def test_entitlements_reach_the_build(buildx, builder):
    await buildx.solve(frontend="dockerfile.v0", entitlements=["network.host", "device=gpu"])
    assert builder.begun[0].options.entitlements == {"network.host", "device"}


async def test_a_build_waits_for_its_session_and_knows_its_project(buildx, builder, doors):
    solving = asyncio.ensure_future(buildx.solve(session="s1", frontend="dockerfile.v0"))
    await asyncio.sleep(0)
    doors.sessions.open({"uuid": "s1", "sharedkey": "dir:node"}, [])
    await solving
    again = Buildx(buildx.channel, "ref2")
    await again.solve(session="s1", frontend="dockerfile.v0")
    other = Buildx(buildx.channel, "ref3")
    await other.solve(session="s1", frontend="dockerfile.v0", frontend_attrs={"target": "t"})
    one, two, three = (job.project for job in builder.begun)
    assert one == two != three


async def test_the_project_does_not_change_with_the_tag(buildx, builder, doors):
    doors.sessions.open({"uuid": "s1", "sharedkey": "dir:node"}, [])
    for number, name in enumerate(["localhost:5000/a/b:1", "localhost:5000/a/b:2", "localhost:5000/a/c:2"]):
        await Buildx(buildx.channel, f"r{number}").solve(
            session="s1", frontend="dockerfile.v0", exporters=[pb.KVEntry(type="moby", attrs={"name": name})]
        )
    one, two, three = (job.project for job in builder.begun)
    assert one == two != three


async def test_workers_and_version(buildx):
    found = await buildx.call(CONTROL + "ListWorkers", pb.ListWorkersRequest(), pb.ListWorkersResponse)
    (worker,) = found.record
    assert worker.platforms[0].os == "linux"
    assert worker.labels["org.mobyproject.buildkit.worker.moby.host-gateway-ip"] == "172.17.0.1"
    info = await buildx.call(CONTROL + "Info", pb.InfoRequest(), pb.InfoResponse)
    assert info.version.package == "github.com/moby/buildkit"


async def test_usage_and_pruning(buildx, builder):
    builder.kept = [Usage(id="a", type="regular", description="RUN x", size=5, created=1, used=2, uses=3, shared=True)]
    found = await buildx.call(CONTROL + "DiskUsage", pb.DiskUsageRequest(filter=[""]), pb.DiskUsageResponse)
    (record,) = found.record
    assert (record.id, record.size, record.shared, record.record_type, record.mutable) == (
        "a",
        5,
        True,
        "regular",
        False,
    )
    request = pb.PruneRequest(all=True, filter=["type=regular"], keep_duration=7, max_used_space=9)
    gone = await buildx.stream(CONTROL + "Prune", request, pb.UsageRecord)
    assert [each.id for each in gone] == ["a"]
    (options,) = builder.pruned
    assert (options.all, options.filters, options.keep_duration, options.max_used) == (True, ["type=regular"], 7, 9)


async def test_history_is_told_and_changed(buildx, builder):
    await buildx.solve(frontend="dockerfile.v0")

    async def history(**fields):
        request = pb.BuildHistoryRequest(early_exit=True, **fields)
        return await buildx.stream(CONTROL + "ListenBuildHistory", request, pb.BuildHistoryEvent)

    (event,) = await history()
    assert (event.type, event.record.ref, event.record.completed_at.nanos) == (1, "ref1", 2)
    assert await history(ref="buildx-test-history-api-feature", active_only=True) == []

    async def update(**fields):
        request = pb.UpdateBuildHistoryRequest(ref="ref1", **fields)
        await buildx.call(CONTROL + "UpdateBuildHistory", request, pb.UpdateBuildHistoryResponse)

    await update(pinned=True)
    assert builder.records.pinned == {"ref1": True}
    await update(finalize=True)
    await update(delete=True)
    assert await history() == []
    with pytest.raises(GRPCError) as missing:
        await update(delete=True)
    assert missing.value.status is Status.NOT_FOUND


async def test_attestations_of_a_build_are_named_and_can_be_read(buildx, builder):
    statement = b'{"predicateType":"https://slsa.dev/provenance/v0.2","predicate":{}}'
    held = builder.deps.content.write(statement)
    gone = "sha256:" + "0" * 64
    result = Produced(platform="linux/amd64", attestations=[held, gone])
    builder.records.records["ref1"] = Record(ref="ref1", status=RecordStatus.COMPLETED, results=[result])
    request = pb.BuildHistoryRequest(ref="ref1", early_exit=True)
    (event,) = await buildx.stream(CONTROL + "ListenBuildHistory", request, pb.BuildHistoryEvent)
    (found,) = event.record.result.attestations
    assert (found.digest, found.size, found.media_type) == (held, len(statement), "application/vnd.in-toto+json")
    assert found.annotations["in-toto.io/predicate-type"] == "https://slsa.dev/provenance/v0.2"
    info = await buildx.call(CONTENT + "Info", pb.ContentInfoRequest(digest=held), pb.ContentInfoResponse)
    assert info.info.size == len(statement)

    async def read(**span):
        request = pb.ContentReadRequest(digest=held, **span)
        return b"".join([each.data for each in await buildx.stream(CONTENT + "Read", request, pb.ContentReadResponse)])

    assert await read() == statement
    assert await read(offset=2, size=13) == b"predicateType"
    for bad in (gone, "md5:1"):
        with pytest.raises(GRPCError):
            await buildx.call(CONTENT + "Info", pb.ContentInfoRequest(digest=bad), pb.ContentInfoResponse)


async def test_a_session_may_come_inside_a_call(buildx, doors, builder):
    """As bake sends it when two targets share a directory."""
    headers = [("x-docker-expose-session-uuid", "s9"), ("x-docker-expose-session-grpc-method", "/a/B")]
    headers.append(("x-docker-expose-session-grpc-method", "/c/D"))
    opened = buildx.channel.request(
        CONTROL + "Session", Cardinality.STREAM_STREAM, pb.Bytes, pb.Bytes, metadata=headers
    )
    async with opened as stream:
        await stream.send_request()
        await stream.recv_initial_metadata()
        session = await doors.sessions.get("s9")
        assert session.offers("/a/b")
        assert session.offers("/c/D")
        preface = await stream.recv_message()
        assert preface.data.startswith(b"PRI * HTTP/2.0")
        await stream.end()
        await session.channel.lost.wait()
    assert doors.sessions.find("s9") is None


async def test_health_and_traces_are_answered(buildx):
    found = await buildx.call("/grpc.health.v1.Health/Check", pb.HealthCheckRequest(), pb.HealthCheckResponse)
    assert found.status == 1
    path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
    await buildx.call(path, pb.Bytes(data=b"whatever"), pb.PingRequest)
