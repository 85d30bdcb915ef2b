import asyncio

import pytest
from grpckit import joined
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from wherry.builder.contexts import ContextPool
from wherry.builder.graph import LocalSource
from wherry.buildkit import bk_pb2 as pb
from wherry.buildkit import filesync
from wherry.buildkit.server import serve, streaming, talking, unary
from wherry.buildkit.session import Sessions
from wherry.buildkit.session_client import SessionClient
from wherry.buildkit.wire import Pipe
from wherry.digest import of
from wherry.errors import Conflict, Failed, InvalidParameter, NotFound, Unavailable
from wherry.spec.distribution import ANONYMOUS

CONTENT = "/containerd.services.content.v1.Content/"
STORE = "buildkit-attachable-store-id"


class FarClient:
    """What buildx offers in its session, with a store of blobs, two secrets and an agent that answers in capitals."""

    def __init__(self) -> None:
        self.blobs: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []

    def methods(self):
        return {
            "/moby.buildkit.secrets.v1.Secrets/GetSecret": unary(
                pb.GetSecretRequest, pb.GetSecretResponse, self.secret
            ),
            "/moby.filesync.v1.Auth/Credentials": unary(
                pb.CredentialsRequest, pb.CredentialsResponse, self.credentials
            ),
            "/moby.sshforward.v1.SSH/CheckAgent": unary(pb.CheckAgentRequest, pb.CheckAgentResponse, self.check),
            "/moby.sshforward.v1.SSH/ForwardAgent": talking(pb.Bytes, pb.Bytes, self.forward),
            "/moby.upload.v1.Upload/Pull": talking(pb.Bytes, pb.Bytes, self.pull),
            filesync.DIFF_COPY: talking(pb.Packet, pb.Packet, self.files),
            CONTENT + "Info": unary(pb.ContentInfoRequest, pb.ContentInfoResponse, self.info),
            CONTENT + "Read": streaming(pb.ContentReadRequest, pb.ContentReadResponse, self.read),
            CONTENT + "Write": talking(pb.ContentWriteRequest, pb.ContentWriteResponse, self.write),
        }

    async def secret(self, request, metadata):
        match request.id:
            case "npm":
                return pb.GetSecretResponse(data=b"token\0\n")
            case "bad":
                raise GRPCError(Status.UNKNOWN, "the file is gone")
        raise NotFound(f"secret {request.id}: not found")

    async def credentials(self, request, metadata):
        self.asked.append(request.host)
        match request.host:
            case "registry-1.docker.io":
                return pb.CredentialsResponse(username="me", secret="pw")
            case "tokens.example":
                return pb.CredentialsResponse(secret="identity")
        return pb.CredentialsResponse()

    async def check(self, request, metadata):
        if request.id != "default":
            raise GRPCError(Status.UNKNOWN, f"unset ssh forward key {request.id}")
        return pb.CheckAgentResponse()

    async def forward(self, stream):
        assert stream.metadata["buildkit.ssh.id"] == "default"
        async for message in stream:
            await stream.send_message(pb.Bytes(data=message.data.upper()))
        raise GRPCError(Status.UNKNOWN, "io: read/write on closed pipe")

    async def pull(self, stream):
        self.asked.append(f"{stream.metadata['urlhost']}{stream.metadata['urlpath']}")
        for _ in range(3):
            await stream.send_message(pb.Bytes(data=b"tar" * 1000))

    async def files(self, stream):
        self.asked.append(stream.metadata["dir-name"])
        pipe = Pipe(stream)
        await pipe.send([pb.Packet(type=pb.Packet.STAT).SerializeToString()])
        await pipe.receive()
        await pipe.send([pb.Packet(type=pb.Packet.FIN).SerializeToString()])

    def _store(self, metadata):
        return self.blobs.setdefault(metadata[STORE], {})

    async def info(self, request, metadata):
        if request.digest not in self._store(metadata):
            raise NotFound(f"content {request.digest}: not found")
        return pb.ContentInfoResponse()

    async def read(self, request, metadata):
        data = self._store(metadata).get(request.digest)
        if data is None:
            raise NotFound(f"content {request.digest}: not found")
        for at in range(0, len(data), 1000):
            yield pb.ContentReadResponse(offset=at, data=data[at : at + 1000])

    async def write(self, stream):
        data = b""
        async for request in stream:
            assert request.offset == len(data)
            data += request.data
            if request.action == 2:
                if of(data) != request.expected:
                    raise GRPCError(Status.FAILED_PRECONDITION, "unexpected commit digest")
                if request.expected == of(b"raced"):
                    raise GRPCError(Status.ALREADY_EXISTS, "content already exists")
                assert request.total == len(data)
                self._store(stream.metadata)[request.expected] = data
            await stream.send_message(pb.ContentWriteResponse(action=request.action, offset=len(data)))


@pytest.fixture
async def far():
    return FarClient()


@pytest.fixture
async def client(far, tmp_path):
    sessions = Sessions()
    methods = far.methods()
    session = sessions.open({"uuid": "s1", "sharedkey": "dir:node"}, [each.upper() for each in methods])
    async with joined(serve(methods), session.channel.protocol):
        yield SessionClient(sessions, "s1", ContextPool(tmp_path / "pool"))


async def test_a_secret_comes_as_it_is_and_one_nobody_has_is_none(client):
    assert await client.secret("npm") == b"token\0\n"
    assert await client.secret("other") is None
    with pytest.raises(Failed, match="secret bad: the file is gone"):
        await client.secret("bad")


async def test_credentials_of_each_kind(client, far):
    hub = await client.credentials("docker.io")
    assert (hub.username, hub.password) == ("me", "pw")
    assert (await client.credentials("tokens.example")).identitytoken == "identity"
    assert await client.credentials("other.example") == ANONYMOUS
    assert far.asked == ["registry-1.docker.io", "tokens.example", "other.example"]


async def test_the_ssh_agent_answers_until_it_is_closed(client):
    assert await client.has_agent("default")
    assert not await client.has_agent("other")
    agent = await client.agent("default")
    await agent.write(b"sign")
    assert await agent.read() == b"SIGN"
    await agent.close()
    await agent.close()


async def test_an_upload_is_streamed(client, far):
    received = [chunk async for chunk in client.upload("http://buildkit-session/abc")]
    assert b"".join(received) == b"tar" * 3000
    assert far.asked == ["buildkit-session/abc"]


async def test_blobs_are_read_and_written_in_the_named_store(client, far):
    data = bytes(range(256)) * 5000
    digest = of(data)

    async def chunks():
        yield data[:700_000]
        yield data[700_000:]

    async def nothing():
        raise AssertionError("the store has it already")
        yield b""

    await client.write_blob("export", digest, len(data), chunks())
    assert far.blobs["export"][digest] == data
    await client.write_blob("export", digest, len(data), nothing())
    assert b"".join([chunk async for chunk in client.read_blob("export", digest)]) == data
    with pytest.raises(NotFound):
        [chunk async for chunk in client.read_blob("local:other", digest)]


async def test_a_blob_somebody_else_has_just_written_is_there(client):
    async def chunks():
        yield b"raced"

    await client.write_blob("export", of(b"raced"), 5, chunks())


async def test_a_blob_the_client_refuses_is_an_error(client):
    async def chunks():
        yield b"other content"

    with pytest.raises(Conflict, match="unexpected commit digest"):
        await client.write_blob("export", of(b"content"), 13, chunks())


async def test_the_same_directory_is_synced_once_in_a_build_and_given_back_at_its_end(client, far):
    source = LocalSource(name="context")
    one, two = await asyncio.gather(*(client.local(source, lambda size: None) for _ in range(2)))
    assert one is two
    assert far.asked == ["context"]
    other = await client.local(LocalSource(name="context", exclude=("x",)), lambda size: None)
    assert other.path != one.path
    (first, second) = client._pool.usage()
    assert first.in_use
    assert second.in_use
    await client.close()
    assert [each.in_use for each in client._pool.usage()] == [False, False]


async def test_without_a_shared_key_nothing_is_kept(far, tmp_path):
    sessions, pool = Sessions(), ContextPool(tmp_path / "pool")
    methods = far.methods()
    session = sessions.open({"uuid": "s1"}, list(methods))
    async with joined(serve(methods), session.channel.protocol):
        client = SessionClient(sessions, "s1", pool)
        await client.local(LocalSource(name="context"), lambda size: None)
        await client.close()
    assert pool.usage() == []


async def test_a_directory_may_be_in_another_session(client, far, tmp_path):
    other = FarClient()
    session = client._sessions.open({"uuid": "s2", "sharedkey": "k"}, list(other.methods()))
    async with joined(serve(other.methods()), session.channel.protocol):
        await client.local(LocalSource(name="context", session="s2"), lambda size: None)
    assert (other.asked, far.asked) == (["context"], [])


async def test_a_session_that_is_gone_is_unavailable(far, tmp_path):
    sessions = Sessions()
    session = sessions.open({"uuid": "s1"}, list(far.methods()))
    client = SessionClient(sessions, "s1", ContextPool(tmp_path / "pool"))
    async with joined(serve(far.methods()), session.channel.protocol):
        pass
    with pytest.raises(Unavailable):
        await client.secret("npm")


async def test_what_a_client_does_not_offer_it_does_not_have(tmp_path):
    sessions = Sessions()
    sessions.open({"uuid": "s1"}, [])
    client = SessionClient(sessions, "s1", ContextPool(tmp_path / "pool"))
    assert await client.secret("npm") is None
    assert not await client.has_agent("default")
    assert await client.credentials("docker.io") == ANONYMOUS


async def test_who_looks_for_a_session_waits_for_it():
    sessions = Sessions()
    waiting = asyncio.ensure_future(sessions.get("s1"))
    await asyncio.sleep(0)
    other = sessions.open({"uuid": "s0"}, [])
    session = sessions.open({"uuid": "s1"}, [])
    assert await waiting is session
    sessions.close(other)
    with pytest.raises(NotFound, match="no active session for s0"):
        await sessions.get("s0", patience=0.0)


@pytest.mark.parametrize("headers", [{}, {"uuid": ""}, {"uuid": "x" * 1000}, {"uuid": "x", "name": "y" * 1000}])
async def test_a_session_needs_an_id_of_a_sane_length(headers):
    with pytest.raises(InvalidParameter):
        Sessions().open(headers, [])


async def test_an_id_is_used_once():
    sessions = Sessions()
    session = sessions.open({"uuid": "x"}, [])
    with pytest.raises(Conflict):
        sessions.open({"uuid": "x"}, [])
    sessions.close(session)
    sessions.open({"uuid": "x"}, [])
