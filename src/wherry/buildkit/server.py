"""A gRPC server on connections that HTTP has handed over; which methods it has is said by a table.

methods = {"/moby.buildkit.v1.Control/Info": unary(pb.InfoRequest, pb.InfoResponse, info), ...}
protocol = serve(methods)           of one connection: transport.set_protocol(protocol), connection_made(transport)
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import TypeVar

from google.protobuf.message import Message
from grpclib.const import Cardinality, Status
from grpclib.const import Handler as Method
from grpclib.encoding.proto import ProtoCodec
from grpclib.events import _DispatchServerEvents
from grpclib.exceptions import GRPCError
from grpclib.server import Handler, Stream

from wherry.buildkit.errors import grpc_error
from wherry.buildkit.wire import DetailsCodec, Protocol

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)
Metadata = Mapping[str, str]
Methods = Mapping[str, Method]


class _Table(dict[str, Method]):
    """Has an answer for every other method, too: grpclib's own lacks a header that Go's clients want."""

    def get(self, path: str, default: object = None) -> Method:
        return super().get(path, _UNKNOWN)


async def _refuse(stream: Stream[Request, Reply]) -> None:
    raise GRPCError(Status.UNIMPLEMENTED, f"unknown method {stream._method_name}")


_UNKNOWN = Method(_refuse, Cardinality.STREAM_STREAM, Message, Message)


def serve(methods: Methods) -> Protocol:
    handler = Handler(_Table(methods), ProtoCodec(), DetailsCodec(), _DispatchServerEvents())
    return Protocol(handler, client_side=False)


def metadata_of(stream: Stream[Request, Reply]) -> dict[str, str]:
    """Of a call; of a repeated key the last value."""
    return {key: value for key, value in (stream.metadata or {}).items() if isinstance(value, str)}


@contextmanager
def _telling(request: type[Message], code: Status | None = None) -> Iterator[None]:
    """What fails in the block is told to the client; so is a cancellation that is not the client's own."""
    try:
        yield
    except asyncio.CancelledError:
        if (task := asyncio.current_task()) is None or task.cancelling():
            raise
        raise GRPCError(Status.CANCELLED, "context canceled") from None
    except Exception as exc:
        raise grpc_error(exc, request.DESCRIPTOR.name, code=code) from exc


async def _message(stream: Stream[Request, Reply]) -> Request:
    found = await stream.recv_message()
    if found is None:
        raise GRPCError(Status.INVALID_ARGUMENT, "a request must have a message")
    return found


def unary(
    request: type[Request],
    reply: type[Reply],
    answer: Callable[[Request, Metadata], Awaitable[Reply]],
    *,
    code: Status | None = None,
) -> Method:
    """`code`: of our own errors, whatever their kind."""

    async def run(stream: Stream[Request, Reply]) -> None:
        with _telling(request, code):
            asked = await _message(stream)
            await stream.send_message(await answer(asked, metadata_of(stream)))

    return Method(run, Cardinality.UNARY_UNARY, request, reply)


def streaming(
    request: type[Request], reply: type[Reply], answer: Callable[[Request, Metadata], AsyncIterator[Reply]]
) -> Method:
    async def run(stream: Stream[Request, Reply]) -> None:
        with _telling(request):
            asked = await _message(stream)
            await stream.send_initial_metadata()
            async with aclosing(answer(asked, metadata_of(stream))) as replies:  # type: ignore[type-var]
                async for each in replies:
                    await stream.send_message(each)

    return Method(run, Cardinality.UNARY_STREAM, request, reply)


def talking(
    request: type[Request], reply: type[Reply], talk: Callable[[Stream[Request, Reply]], Awaitable[None]]
) -> Method:
    """Messages in both directions."""

    async def run(stream: Stream[Request, Reply]) -> None:
        with _telling(request):
            await talk(stream)

    return Method(run, Cardinality.STREAM_STREAM, request, reply)
