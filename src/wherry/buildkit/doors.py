"""BuildKit's doors, put together: what the connections that HTTP hands over speak.

doors = Doors(builder)
doors.grpc()                 the client calls us: Control, LLBBridge
doors.session(headers, …)    we call the client: files, secrets, credentials
"""

import asyncio
from collections.abc import Mapping, Sequence

from grpclib.server import Handler

from wherry.builder.build import Builder
from wherry.buildkit.builds import Builds
from wherry.buildkit.control import Control
from wherry.buildkit.gateway import Gateway
from wherry.buildkit.history import History
from wherry.buildkit.server import serve
from wherry.buildkit.session import Session, Sessions
from wherry.buildkit.wire import Protocol


class Doors:
    """Implements `api.services.Doors`."""

    def __init__(self, builder: Builder) -> None:
        self.sessions = Sessions()
        builds = Builds(builder, self.sessions)
        self._methods = {
            **Control(builds, self.sessions).methods(),
            **Gateway(builds).methods(),
            **History(builder).methods(),
        }

    def grpc(self) -> "_Served":
        return _Served(serve(self._methods))

    def session(self, headers: Mapping[str, str], methods: Sequence[str]) -> "_Session":
        return _Session(self.sessions, self.sessions.open(headers, methods))


class _Served:
    def __init__(self, protocol: Protocol) -> None:
        self.protocol: asyncio.Protocol = protocol
        self._served = protocol

    async def run(self) -> None:
        try:
            await self._served.lost.wait()
        finally:
            handler = self._served.handler
            assert isinstance(handler, Handler)
            handler.close()
            await handler.wait_closed()  # builds end here


class _Session:
    def __init__(self, sessions: Sessions, session: Session) -> None:
        self.protocol: asyncio.Protocol = session.channel.protocol
        self._sessions = sessions
        self._session = session

    async def run(self) -> None:
        try:
            await self._session.channel.lost.wait()
        finally:
            self._sessions.close(self._session)
