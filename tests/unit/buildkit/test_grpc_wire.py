import asyncio
import contextlib
import socket
import struct

import pytest
from grpckit import channel_to, joined
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from hypothesis import given
from hypothesis import strategies as st

from wherry.builder.dockerfile.errors import DockerfileError
from wherry.builder.graph import Location, Range
from wherry.buildkit import bk_pb2 as pb
from wherry.buildkit import wire
from wherry.buildkit.channel import Channel, Tunnel
from wherry.buildkit.errors import SOURCE
from wherry.buildkit.server import serve, streaming, talking, unary
from wherry.buildkit.wire import Buffer, Pipe, TooLarge, split
from wherry.errors import NotFound


def framed(*messages: bytes) -> bytes:
    return b"".join(struct.pack(">BI", 0, len(each)) + each for each in messages)


@given(st.lists(st.binary(max_size=50)), st.integers(min_value=0, max_value=300))
def test_messages_are_split_wherever_the_bytes_are_cut(messages, cut):
    data = framed(*messages)
    first, rest = split(data[:cut])
    second, left = split(rest + data[cut:])
    assert (first + second, left) == (messages, b"")


def test_a_message_that_is_too_large_is_refused_before_it_comes():
    with pytest.raises(TooLarge):
        split(struct.pack(">BI", 0, wire.MAX_MESSAGE + 1))
    with pytest.raises(GRPCError, match="compressed"):
        split(struct.pack(">BI", 1, 3) + b"abc")


async def test_a_buffer_reads_across_its_pieces_and_tells_what_was_read():
    given_back: list[int] = []
    buffer = Buffer(given_back.append)
    for piece in (b"ab", b"c", b"defg"):
        buffer.add_direct(piece)
    buffer.eof()
    assert [await buffer.read(4), await buffer.read(3), await buffer.read(1)] == [b"abcd", b"efg", b""]
    assert given_back == []  # too little to be worth a frame
    buffer.give_back()
    assert given_back == [7]


async def test_a_stream_that_ends_within_a_message_is_an_error():
    buffer = Buffer(lambda size: None)
    buffer.add_direct(b"abc")
    buffer.eof()
    with pytest.raises(GRPCError):
        await buffer.read(4)


async def say(request, metadata):
    if request.id == "missing":
        raise NotFound("secret missing: not found")
    if request.id == "broken":
        location = Location("Dockerfile", b"FROM x\nRNU y\n", (Range(2, 2, 1),))
        raise DockerfileError("unknown instruction: RNU", location)
    return pb.GetSecretResponse(data=f"{request.id} {metadata.get('who', '')}".encode())


SAY = {"/x/Say": unary(pb.GetSecretRequest, pb.GetSecretResponse, say)}


async def ask(channel: Channel, secret_id: str, **kwargs):
    opened = channel.request("/x/Say", Cardinality.UNARY_UNARY, pb.GetSecretRequest, pb.GetSecretResponse, **kwargs)
    async with opened as stream:
        await stream.send_message(pb.GetSecretRequest(id=secret_id), end=True)
        return (await stream.recv_message()).data


def bidirectional(channel: Channel, path: str):
    return channel.request(path, Cardinality.STREAM_STREAM, pb.Bytes, pb.Bytes)


async def test_questions_are_answered_with_their_metadata():
    async with channel_to(SAY) as channel:
        assert await ask(channel, "a", metadata=[("who", "me")]) == b"a me"
        answers = await asyncio.gather(*(ask(channel, str(n)) for n in range(50)))
        assert answers == [f"{n} ".encode() for n in range(50)]


async def test_errors_have_a_code_and_the_place_in_the_users_file():
    async with channel_to(SAY) as channel:
        with pytest.raises(GRPCError) as missing:
            await ask(channel, "missing")
        assert (missing.value.status, missing.value.message) == (Status.NOT_FOUND, "secret missing: not found")
        with pytest.raises(GRPCError) as broken:
            await ask(channel, "broken")
        (detail,) = broken.value.details
        assert detail.type_url == SOURCE
        assert b'"filename":"Dockerfile"' in detail.value
        assert b'"line":2' in detail.value


async def test_a_method_nobody_has_is_unimplemented():
    async with channel_to({}) as channel:
        with pytest.raises(GRPCError) as failure:
            await ask(channel, "a")
        assert failure.value.status is Status.UNIMPLEMENTED


async def test_many_megabytes_pass_in_both_directions():
    """More than the windows of flow control, so each side has to tell the other that it has read."""

    async def echo(stream):
        pipe = Pipe(stream)
        while messages := await pipe.receive():
            await pipe.send(messages)

    methods = {"/x/Echo": talking(pb.Bytes, pb.Bytes, echo)}
    message = pb.Bytes(data=bytes(range(256)) * 4096).SerializeToString()
    count, received = 40, 0
    async with channel_to(methods) as channel, bidirectional(channel, "/x/Echo") as stream:
        await stream.send_request()
        pipe = Pipe(stream)

        async def send() -> None:
            for _ in range(count):
                await pipe.send([message])
            await pipe.send([message], end=True)

        sending = asyncio.ensure_future(send())
        while messages := await pipe.receive():
            assert all(each == message for each in messages)
            received += len(messages)
        await sending
    assert received == count + 1


async def test_a_client_that_resets_its_call_cancels_the_handler():
    begun, ended = asyncio.Event(), asyncio.Event()

    async def wait(request, metadata):
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with channel_to({"/x/Say": unary(pb.GetSecretRequest, pb.GetSecretResponse, wait)}) as channel:
        opened = channel.request("/x/Say", Cardinality.UNARY_UNARY, pb.GetSecretRequest, pb.GetSecretResponse)
        async with opened as stream:
            await stream.send_message(pb.GetSecretRequest(id="a"), end=True)
            await begun.wait()
            await stream.cancel()
        await asyncio.wait_for(ended.wait(), 10)


async def test_a_lost_connection_cancels_the_handlers():
    begun, ended = asyncio.Event(), asyncio.Event()

    async def wait(request, metadata):
        begun.set()
        try:
            yield pb.StatusResponse()
            await asyncio.Event().wait()
        finally:
            ended.set()

    methods = {"/x/Status": streaming(pb.StatusRequest, pb.StatusResponse, wait)}
    async with channel_to(methods) as channel:
        opened = channel.request("/x/Status", Cardinality.UNARY_STREAM, pb.StatusRequest, pb.StatusResponse)
        with contextlib.suppress(StreamTerminatedError, GRPCError):
            async with opened as stream:
                await stream.send_message(pb.StatusRequest(), end=True)
                await stream.recv_message()
                channel.close()
        await asyncio.wait_for(ended.wait(), 10)


async def test_a_call_on_a_closed_channel_is_refused():
    async with channel_to(SAY) as channel:
        await ask(channel, "a")
    with pytest.raises(StreamTerminatedError):
        await ask(channel, "a")


async def test_a_reset_behind_the_trailers_is_the_end_and_no_failure():
    """As Go's server ends a call whose request it did not read to its end."""

    class Hasty(asyncio.Protocol):
        """Answers every call at once, resets its stream, and looks at nothing."""

        def connection_made(self, transport):
            from h2.config import H2Configuration
            from h2.connection import H2Connection

            self.transport = transport
            self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
            self.h2.initiate_connection()
            transport.write(self.h2.data_to_send())

        def data_received(self, data):
            from h2.events import RequestReceived

            for event in self.h2.receive_data(data):
                if isinstance(event, RequestReceived):
                    number = event.stream_id
                    self.h2.send_headers(number, [(":status", "200"), ("content-type", "application/grpc")])
                    self.h2.send_data(number, framed(pb.Bytes(data=b"all").SerializeToString()))
                    self.h2.send_headers(number, [("grpc-status", "0")], end_stream=True)
                    self.transport.write(self.h2.data_to_send())
                    self.transport.write(b"\0\0\x04\x03\0" + struct.pack(">II", number, 0))  # RST_STREAM, NO_ERROR
            self.transport.write(self.h2.data_to_send())

    channel = Channel()
    async with joined(Hasty(), channel.protocol), bidirectional(channel, "/x/Pull") as stream:
        await stream.send_request(end=True)
        messages = await Pipe(stream).receive()
        assert [pb.Bytes.FromString(each).data for each in messages] == [b"all"]
        assert await Pipe(stream).receive() == []


@pytest.mark.parametrize(
    "noise",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff\xff\xff\0\0\0\0\0\x01",  # a frame of 16 MiB
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\x01\0\0\0\0\0\x05x",  # DATA of a stream that is not open
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\x05\x01\x04\0\0\0\x01\xff\xff\xff\xff\xff",  # broken headers
    ],
)
async def test_what_is_no_http2_closes_the_connection(noise):
    loop = asyncio.get_running_loop()
    protocol = serve(SAY)
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    await loop.connect_accepted_socket(lambda: protocol, ours)
    await loop.sock_sendall(theirs, noise)
    await asyncio.wait_for(protocol.lost.wait(), 10)
    theirs.close()


async def test_who_sends_more_than_it_may_is_cut_off():
    """DATA frames past h2's own accounting are counted here."""
    begun = asyncio.Event()

    async def never_read(stream):
        begun.set()
        await asyncio.Event().wait()

    protocol = serve({"/x/Pull": talking(pb.Bytes, pb.Bytes, never_read)})
    channel = Channel()
    async with joined(protocol, channel.protocol):
        with contextlib.suppress(StreamTerminatedError, GRPCError):
            async with bidirectional(channel, "/x/Pull") as stream:
                await stream.send_request()
                await begun.wait()
                frame = b"\0\x40\0\0\0" + struct.pack(">I", stream._stream.id) + bytes(16384)
                for _ in range(600):  # 9.4 MiB, past the window of 8 and the slack of 1
                    stream._stream._transport.write(frame)
        await asyncio.wait_for(protocol.lost.wait(), 10)


async def test_a_channel_works_through_a_tunnel_inside_another_call():
    """As bake's shared sessions come: HTTP/2 within the messages of Control.Session."""
    inner = Channel()

    async def tunnel(stream):
        await stream.send_initial_metadata()
        await Tunnel(stream, inner.protocol).run()

    far = serve(SAY)
    methods = {"/x/Session": talking(pb.Bytes, pb.Bytes, tunnel)}
    async with channel_to(methods) as channel, bidirectional(channel, "/x/Session") as stream:
        await stream.send_request()
        await stream.recv_initial_metadata()
        running = asyncio.ensure_future(Tunnel(stream, far).run())
        assert await ask(inner, "a" * 3_000_000) == b"a" * 3_000_000 + b" "
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await far.handler.wait_closed()
        await stream.cancel()
    assert inner.lost.is_set()
