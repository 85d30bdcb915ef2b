"""Between our errors and gRPC's.

A failed build is UNKNOWN, as BuildKit has it: its clients put any other code's name before the message. Where the
user's file is at fault, `grpc-status-details-bin` carries the place, and the client draws the excerpt (moby/buildkit,
solver/errdefs).
"""

import base64
import logging
from collections.abc import Awaitable, Sequence
from typing import TypeVar

import msgspec
from google.protobuf.message import DecodeError
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from wherry.builder.dockerfile.errors import DockerfileError
from wherry.builder.graph import Location
from wherry.buildkit import bk_pb2 as pb
from wherry.errors import (
    Conflict,
    Failed,
    Forbidden,
    InvalidParameter,
    NotFound,
    NotSupported,
    Unauthorized,
    Unavailable,
    WherryError,
)

SOURCE = "github.com/moby/buildkit/errdefs.Source+json"
VERTEX = "github.com/moby/buildkit/errdefs.Vertex+json"

_STATUS: dict[type[WherryError], Status] = {
    InvalidParameter: Status.INVALID_ARGUMENT,
    Unauthorized: Status.UNAUTHENTICATED,
    Forbidden: Status.PERMISSION_DENIED,
    NotFound: Status.NOT_FOUND,
    Conflict: Status.FAILED_PRECONDITION,
    NotSupported: Status.UNIMPLEMENTED,
    Unavailable: Status.UNAVAILABLE,
}
_KINDS: dict[Status, type[WherryError]] = {status: kind for kind, status in _STATUS.items()}

T = TypeVar("T")
log = logging.getLogger(__name__)


def grpc_error(exc: BaseException, what: str, *, code: Status | None = None) -> GRPCError:
    """What the client is told; unexpected ones are logged. `code` in place of the one its kind has."""
    match exc:
        case GRPCError():
            return exc
        case WherryError():
            kind = next((kind for kind in type(exc).__mro__ if kind in _STATUS), None)
            return GRPCError(code or (_STATUS[kind] if kind else Status.UNKNOWN), exc.message, details(exc) or None)
        case DecodeError():
            return GRPCError(Status.INVALID_ARGUMENT, f"{what}: the message cannot be decoded")
        case StreamTerminatedError() | ConnectionError():
            return GRPCError(Status.UNAVAILABLE, f"the client's session is gone: {exc}")
        case TimeoutError():
            return GRPCError(Status.DEADLINE_EXCEEDED, "context deadline exceeded")
    log.error("%s failed", what, exc_info=exc)
    if isinstance(exc, OSError) and exc.strerror:
        place = f"{exc.filename}: " if exc.filename else ""
        return GRPCError(code or Status.UNKNOWN, f"{what}: {place}{exc.strerror.lower()}")
    return GRPCError(code or Status.INTERNAL, f"{what}: internal error: {exc}")


def details(exc: WherryError, *, location: Location | None = None, vertex: str = "") -> list[pb.RpcAny]:
    """Where in the user's file the error is, which the error itself may know better, and which vertex failed."""
    found = []
    if isinstance(exc, DockerfileError):
        location = exc.location or location
    if vertex:
        found.append(pb.RpcAny(type_url=VERTEX, value=msgspec.json.encode({"digest": vertex})))
    if location is not None:
        found.append(pb.RpcAny(type_url=SOURCE, value=_source(location)))
    return found


def _source(location: Location) -> bytes:
    return msgspec.json.encode(
        {
            "info": {
                "filename": location.filename,
                "data": base64.b64encode(location.data).decode(),
                "language": "Dockerfile",
            },
            "ranges": [
                {
                    "start": {"line": each.start, "character": max(0, each.column - 1)},
                    "end": {"line": each.end, "character": 0},
                }
                for each in location.ranges
            ],
        }
    )


async def asked(call: Awaitable[T], what: str) -> T:
    """What the client answered to `call`; its refusal, or its absence, as one of our errors."""
    try:
        return await call
    except (GRPCError, StreamTerminatedError, ConnectionError) as exc:
        raise from_client(exc, what) from exc


def from_client(exc: Exception, what: str) -> WherryError:
    if isinstance(exc, GRPCError):
        return _KINDS.get(exc.status, Failed)(f"{what}: {exc.message or exc.status.name.lower()}")
    return Unavailable(f"{what}: the client's session is gone")


def returned(status: int, message: str, found: Sequence[pb.RpcAny]) -> GRPCError:
    """A failure that the client reports of its own (`Return.error`), passed through."""
    try:
        code = Status(status)
    except ValueError:
        code = Status.UNKNOWN
    return GRPCError(Status.UNKNOWN if code is Status.OK else code, message, list(found) or None)
