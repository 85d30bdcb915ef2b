"""A gRPC server on connections that HTTP has handed over; which methods it has is said by a table.

methods = {"/moby.buildkit.v1.Control/Info": unary(pb.InfoRequest, pb.InfoResponse, info), ...}
protocol = serve(methods)           of one connection: transport.set_protocol(protocol), connection_made(transport)
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
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
    """Has an answer for methods that are not in it: grpclib's own lacks a header without which Go's clients are lost."""

    def get(self, path: str, default: object = None) -> Method:  # type: ignore[override]
        return self[path] if path in self else _UNKNOWN


async def _refuse(stream: Stream[Request, Reply]) -> None:
    raise GRPCError(Status.UNIMPLEMENTED, f"unknown method {stream._method_name}")


_UNKNOWN = Method(_refuse, Cardinality.STREAM_STREAM, Message, Message)


def serve(methods: Methods) -> Protocol:
    handler = Handler(_Table(methods), ProtoCodec(), DetailsCodec(), _DispatchServerEvents())
    return Protocol(handler, client_side=False)


def metadata_of(stream: Stream[Request, Reply]) -> dict[str, str]:
    """Of a call; of a repeated key the last value."""
    return {key: value for key, value in (stream.metadata or {}).items() if isinstance(value, str)}


def unary(
    request: type[Request],
    reply: type[Reply],
    answer: Callable[[Request, Metadata], Awaitable[Reply]],
    *,
    code: Status | None = None,
) -> Method:
    """`code`: of our own errors, whatever their kind."""

    async def run(stream: Stream[Request, Reply]) -> None:
        try:
            asked = await stream.recv_message()
            if asked is None:
                raise GRPCError(Status.INVALID_ARGUMENT, "a request must have a message")
            await stream.send_message(await answer(asked, metadata_of(stream)))
        except Exception as exc:
            raise grpc_error(exc, request.DESCRIPTOR.name, code=code) from exc

    return Method(run, Cardinality.UNARY_UNARY, request, reply)


def streaming(
    request: type[Request], reply: type[Reply], answer: Callable[[Request, Metadata], AsyncIterator[Reply]]
) -> Method:
    async def run(stream: Stream[Request, Reply]) -> None:
        try:
            asked = await stream.recv_message()
            if asked is None:
                raise GRPCError(Status.INVALID_ARGUMENT, "a request must have a message")
            await stream.send_initial_metadata()
            async with aclosing(answer(asked, metadata_of(stream))) as replies:  # type: ignore[type-var]
                async for each in replies:
                    await stream.send_message(each)
        except Exception as exc:
            raise grpc_error(exc, request.DESCRIPTOR.name) from exc

    return Method(run, Cardinality.UNARY_STREAM, request, reply)


def talking(
    request: type[Request], reply: type[Reply], talk: Callable[[Stream[Request, Reply]], Awaitable[None]]
) -> Method:
    """Messages in both directions."""

    async def run(stream: Stream[Request, Reply]) -> None:
        try:
            await talk(stream)
        except Exception as exc:
            raise grpc_error(exc, request.DESCRIPTOR.name) from exc

    return Method(run, Cardinality.STREAM_STREAM, request, reply)
