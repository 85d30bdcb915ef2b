"""Graphs that clients write themselves (LLB), solved by the real engine: as buildctl and other frontends send them."""

import asyncio
import json
from collections.abc import Iterator

import pytest
from grpclib.exceptions import GRPCError

from harness import images
from harness.buildx import building_engine
from harness.engine import Engine
from harness.grpc_client import GrpcClient, grpc_client
from wherry.buildkit import bk_pb2 as pb
from wherry.digest import of

pytestmark = pytest.mark.not_dockerd("its BuildKit is older")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with building_engine(images.docker_archive([images.busybox()])) as made:
        yield made


BASE = pb.Op(source=pb.SourceOp(identifier="docker-image://docker.io/library/busybox:latest"))


def on(op: pb.Op, *below: tuple[pb.Op, int] | pb.Op) -> pb.Op:
    for each in below:
        under, index = each if isinstance(each, tuple) else (each, 0)
        op.inputs.append(pb.Input(digest=of(under.SerializeToString()), index=index))
    return op


def graph(*ops: pb.Op, index: int = 0) -> pb.Definition:
    last = on(pb.Op(), (ops[-1], index))
    return pb.Definition(ops=[each.SerializeToString() for each in (*ops, last)])


def sh(script: str, *mounts: pb.Mount, **fields: object) -> pb.Op:
    meta = pb.Meta(args=["/bin/sh", "-ec", script], cwd="/", env=["PATH=/bin"])
    return pb.Op(exec=pb.ExecOp(meta=meta, mounts=[pb.Mount(dest="/", input=0, output=0), *mounts], **fields))


def files(*actions: pb.FileAction) -> pb.Op:
    return pb.Op(file=pb.FileOp(actions=list(actions)))


def make(path: str, data: bytes, *, at: int = -1, output: int = 0) -> pb.FileAction:
    made = pb.FileActionMkFile(path=path, mode=0o644, data=data, timestamp=-1)
    return pb.FileAction(input=at, secondary_input=-1, output=output, mkfile=made)


class Reading:
    """A build that is held open to look at results."""

    def __init__(self, client: GrpcClient) -> None:
        self.client = client

    async def of(self, definition: pb.Definition) -> str:
        request = pb.GwSolveRequest(definition=definition, evaluate=True)
        return str((await self.client.bridge("Solve", request, pb.GwSolveResponse)).result.ref.id)

    async def file(self, ref: str, path: str) -> str:
        request = pb.ReadFileRequest(ref=ref, file_path=path)
        return bytes((await self.client.bridge("ReadFile", request, pb.ReadFileResponse)).data).decode()

    async def names(self, ref: str, path: str = "/") -> list[str]:
        request = pb.ReadDirRequest(ref=ref, dir_path=path)
        return [each.path for each in (await self.client.bridge("ReadDir", request, pb.ReadDirResponse)).entries]


@pytest.fixture
async def reading(engine: Engine):
    async with grpc_client(engine.socket) as client:
        solving = asyncio.ensure_future(client.solve())
        yield Reading(client)
        await client.bridge("Return", pb.ReturnRequest(result=pb.GwResult()), pb.ReturnResponse)
        await solving


async def test_programs_and_files_one_upon_the_other(reading: Reading) -> None:
    ran = on(sh("echo of a program > /p; mkdir /d; echo x > /d/x"), BASE)
    copied = files(
        make("/new", b"of an action", at=0, output=-1),
        pb.FileAction(
            input=2,
            secondary_input=1,
            output=-1,
            copy=pb.FileActionCopy(
                src="/d", dest="/copy", mode=-1, timestamp=-1, create_dest_path=True, dir_copy_contents=True
            ),
        ),
        pb.FileAction(
            input=3,
            secondary_input=-1,
            output=0,
            symlink=pb.FileActionSymlink(oldpath="new", newpath="/link", timestamp=-1),
        ),
    )
    ref = await reading.of(graph(BASE, ran, on(copied, BASE, ran)))
    assert await reading.file(ref, "/link") == "of an action"
    assert await reading.file(ref, "/copy/x") == "x\n"
    assert "p" not in await reading.names(ref)


async def test_a_mount_may_have_an_output_of_its_own(reading: Reading) -> None:
    out = pb.Mount(dest="/out", input=-1, output=1)
    source = pb.Mount(dest="/in", input=1, output=-1, readonly=True, selector="/sub")
    given = files(
        pb.FileAction(
            input=-1, secondary_input=-1, output=-1, mkdir=pb.FileActionMkDir(path="/sub", mode=0o755, timestamp=-1)
        ),
        make("/sub/f", b"through a mount", at=0),
    )
    ran = on(sh("cat /in/f > /out/f; ! touch /in/g", out, source), BASE, given)
    ref = await reading.of(graph(BASE, given, ran, index=1))
    assert await reading.names(ref) == ["f"]
    assert await reading.file(ref, "f") == "through a mount"


async def test_merged_and_compared(reading: Reading) -> None:
    one, two = (
        files(make("/a", b"1"), make("/both", b"one", at=0)),
        files(make("/b", b"2"), make("/both", b"two", at=0)),
    )
    merged = on(pb.Op(merge=pb.MergeOp(inputs=[pb.MergeInput(input=0), pb.MergeInput(input=1)])), one, two)
    ref = await reading.of(graph(one, two, merged))
    assert await reading.names(ref) == ["a", "b", "both"]
    assert await reading.file(ref, "both") == "two"
    changed = on(sh("rm /bin/vi; echo new > /new"), BASE)
    diff = on(pb.Op(diff=pb.DiffOp(lower=pb.DiffInput(input=0), upper=pb.DiffInput(input=1))), BASE, changed)
    ref = await reading.of(graph(BASE, changed, diff))
    assert "new" in await reading.names(ref)
    assert await reading.file(ref, "new") == "new\n"


async def test_a_failed_program_and_a_missing_file_are_told(reading: Reading) -> None:
    with pytest.raises(GRPCError, match="did not complete successfully: exit code: 3"):
        await reading.of(graph(BASE, on(sh("exit 3"), BASE)))
    accepted = on(pb.Op(exec=pb.ExecOp(meta=pb.Meta(args=["/bin/sh", "-c", "exit 3"], cwd="/"))), BASE)
    accepted.exec.meta.valid_exit_codes.append(3)
    accepted.exec.mounts.append(pb.Mount(dest="/", input=0, output=0))
    await reading.of(graph(BASE, accepted))
    missing = pb.FileActionCopy(src="/none", dest="/x", mode=-1, timestamp=-1)
    copy = on(files(pb.FileAction(input=0, secondary_input=1, output=0, copy=missing)), BASE, BASE)
    with pytest.raises(GRPCError, match="/none"):
        await reading.of(graph(BASE, copy))


async def test_an_image_of_a_graph_has_the_config_that_the_client_gives(engine: Engine) -> None:
    config = {"config": {"Env": ["A=b"], "Cmd": ["run"]}, "rootfs": {"type": "layers", "diff_ids": []}}
    async with grpc_client(engine.socket) as client:
        solving = asyncio.ensure_future(
            client.solve(exporters=[pb.KVEntry(type="image", attrs={"name": "llb:1", "unpack": "true"})])
        )
        request = pb.GwSolveRequest(definition=graph(BASE, on(sh("echo made > /made"), BASE)))
        result = (await client.bridge("Solve", request, pb.GwSolveResponse)).result
        result.metadata["containerimage.config"] = json.dumps(config).encode()
        await client.bridge("Return", pb.ReturnRequest(result=result), pb.ReturnResponse)
        response = await solving
    shown = engine.api.get("/images/llb:1/json")
    assert response["containerimage.config.digest"] == shown["Id"]
    assert (shown["Config"]["Env"], shown["Config"]["Cmd"]) == (["A=b"], ["run"])
    assert engine.docker("run", "--rm", "llb:1", "cat", "/made").out == "made\n"


async def test_resolving_an_image_gives_its_config(reading: Reading) -> None:
    request = pb.ResolveImageConfigRequest(ref="docker.io/library/busybox:latest", resolve_mode="local")
    found = await reading.client.bridge("ResolveImageConfig", request, pb.ResolveImageConfigResponse)
    assert of(found.config) == images.busybox().id
    source = pb.SourceOp(identifier="docker-image://busybox")
    request = pb.ResolveSourceMetaRequest(source=source, resolve_mode="local")
    found = await reading.client.bridge("ResolveSourceMeta", request, pb.ResolveSourceMetaResponse)
    assert of(found.image.config) == images.busybox().id
