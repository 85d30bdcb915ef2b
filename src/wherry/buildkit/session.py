"""Sessions: connections over which the daemon asks clients for files, secrets and credentials.

A client opens one with `/session` (or inside `Control.Session`), under an id of its own making that its build requests
name. The two may arrive in either order, so who looks for a session waits a little.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from google.protobuf.message import Message
from grpclib.client import Stream
from grpclib.const import Cardinality
from grpclib.exceptions import GRPCError, StreamTerminatedError

from wherry.buildkit.channel import Channel
from wherry.buildkit.errors import asked, from_client
from wherry.errors import Conflict, InvalidParameter, NotFound, NotSupported

PATIENCE = 5.0  # s that a build waits for its session
MAX_METHODS = 1000
_LONGEST = 512  # characters of an id or key

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)
Headers = Sequence[tuple[str, str]]


class Session:
    """One client's. Its methods are asked for by path; whether it has one, it has said at the beginning."""

    def __init__(self, session_id: str, *, name: str = "", shared_key: str = "", methods: Sequence[str] = ()) -> None:
        self.id = session_id
        self.name = name
        self.shared_key = shared_key  # what its directories are known by from build to build; "" = not at all
        self.channel = Channel()
        self._methods = frozenset(each.lower() for each in methods)

    def offers(self, path: str) -> bool:
        return path.lower() in self._methods

    def require(self, path: str, what: str) -> None:
        if not self.offers(path):
            raise NotSupported(f"{what}: the client does not offer it (it has no {path})")

    async def call(
        self,
        path: str,
        request: Request,
        reply: type[Reply],
        *,
        what: str,
        headers: Headers = (),
        timeout: float | None = None,
    ) -> Reply:
        """A question and its answer. `what` is for the error: "secret npm"."""
        self.require(path, what)
        return await asked(self._call(path, request, reply, headers, timeout), what)

    async def _call(
        self, path: str, request: Request, reply: type[Reply], headers: Headers, timeout: float | None
    ) -> Reply:
        opened: Stream[Request, Reply] = self.channel.request(
            path, Cardinality.UNARY_UNARY, type(request), reply, metadata=headers, timeout=timeout
        )
        async with opened as stream:
            await stream.send_message(request, end=True)
            answer = await stream.recv_message()
        if answer is None:
            raise StreamTerminatedError("no answer")
        return answer

    @asynccontextmanager
    async def talk(
        self, path: str, request: type[Request], reply: type[Reply], *, what: str, headers: Headers = ()
    ) -> AsyncIterator[Stream[Request, Reply]]:
        """A stream of messages in both directions; what fails is raised as one of our errors."""
        self.require(path, what)
        opened: Stream[Request, Reply] = self.channel.request(
            path, Cardinality.STREAM_STREAM, request, reply, metadata=headers
        )
        try:
            async with opened as stream:
                await stream.send_request()
                yield stream
        except (GRPCError, StreamTerminatedError, ConnectionError) as exc:
            raise from_client(exc, what) from exc


class Sessions:
    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._changed = asyncio.Event()

    def open(self, headers: Mapping[str, str], methods: Sequence[str]) -> Session:
        """A session that is about to begin; `headers`: uuid, name, sharedkey. Raises InvalidParameter, Conflict."""
        session_id = headers.get("uuid", "")
        if not session_id or any(len(value) > _LONGEST for value in headers.values()) or len(methods) > MAX_METHODS:
            raise InvalidParameter(
                "invalid session: want an id in X-Docker-Expose-Session-Uuid, and no endless headers"
            )
        if session_id in self._sessions:
            raise Conflict(f"session {session_id} is open already")
        session = Session(
            session_id,
            name=headers.get("name", ""),
            shared_key=headers.get("sharedkey", ""),
            methods=methods,
        )
        self._sessions[session_id] = session
        self._wake()
        return session

    def close(self, session: Session) -> None:
        if self._sessions.get(session.id) is session:
            del self._sessions[session.id]
            self._wake()
        session.channel.close()

    def find(self, session_id: str) -> Session | None:
        return self._sessions.get(session_id)

    async def get(self, session_id: str, *, patience: float = PATIENCE) -> Session:
        """Raises NotFound when there is none after `patience` seconds."""
        try:
            async with asyncio.timeout(patience):
                while session_id not in self._sessions:
                    changed = self._changed
                    await changed.wait()
                return self._sessions[session_id]
        except TimeoutError:
            raise NotFound(f"no active session for {session_id[:100]}: context deadline exceeded") from None

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
