"""What a build may ask of a BuildKit client, over its session.

Directories are synced into slots of the context pool, which the build holds until `close`.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

from grpclib.client import Stream
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from wherry.aio import KeyedLock, settle
from wherry.builder.client import AgentConnection, Transferred
from wherry.builder.contexts import ContextPool, Slot, slot_key
from wherry.builder.graph import LocalSource
from wherry.builder.trees import Directory
from wherry.buildkit import bk_pb2 as pb
from wherry.buildkit import filesend, filesync
from wherry.buildkit.session import Session, Sessions
from wherry.buildkit.wire import Pipe
from wherry.digest import Digest
from wherry.errors import Failed, NotFound, WherryError
from wherry.spec.distribution import ANONYMOUS, Auth

ANSWER = 60.0  # s that a client may take for a secret or credentials; it may have to ask its user

_CREDENTIALS = "/moby.filesync.v1.Auth/Credentials"
_SECRET = "/moby.buildkit.secrets.v1.Secrets/GetSecret"
_CHECK_AGENT = "/moby.sshforward.v1.SSH/CheckAgent"
_FORWARD_AGENT = "/moby.sshforward.v1.SSH/ForwardAgent"
_UPLOAD = "/moby.upload.v1.Upload/Pull"
_CONTENT = "/containerd.services.content.v1.Content/"
_WRITE, _COMMIT = 1, 2  # actions of Content.Write
_HUB = "registry-1.docker.io"  # as clients know Docker Hub's host


class SessionClient:
    """`builder.client.Client` over the session `session_id`; of one build."""

    def __init__(self, sessions: Sessions, session_id: str, pool: ContextPool) -> None:
        self._sessions = sessions
        self._session_id = session_id
        self._pool = pool
        self._locks = KeyedLock()
        self._directories: dict[LocalSource, Directory] = {}
        self._slots: list[tuple[Slot, bool]] = []  # and whether another build can use it

    async def _session(self, session_id: str = "") -> Session:
        return await self._sessions.get(session_id or self._session_id)

    async def close(self) -> None:
        """The build is over: its directories may serve another one."""
        slots, self._slots = self._slots, []
        self._directories.clear()
        for slot, lasting in slots:
            await settle(self._pool.release if lasting else self._pool.discard, slot)

    async def local(self, source: LocalSource, transferred: Transferred) -> Directory:
        async with self._locks(source):
            if source not in self._directories:
                self._directories[source] = await self._sync(source, transferred)
            return self._directories[source]

    async def _sync(self, source: LocalSource, transferred: Transferred) -> Directory:
        session = await self._session(source.session)
        key, patterns = slot_key(source, session.shared_key or f"session {session.id}")
        taken: list[Slot] = []

        def take() -> None:
            described = f"local source for {source.name}"
            taken.append(self._pool.acquire(key, patterns=patterns, description=described))

        try:
            await settle(take)
        finally:
            self._slots += [(slot, bool(session.shared_key)) for slot in taken]
        return await filesync.receive(session, source, taken[0], transferred)

    async def upload(self, url: str) -> AsyncIterator[bytes]:
        session = await self._session()
        parts = urlsplit(url)
        headers = [("urlpath", parts.path or "/"), ("urlhost", parts.netloc or "buildkit-session")]
        async with session.talk(_UPLOAD, pb.Bytes, pb.Bytes, what="receiving the context", headers=headers) as stream:
            await stream.end()
            pipe = Pipe(stream)
            while messages := await pipe.receive():
                yield b"".join([pb.Bytes.FromString(each).data for each in messages])

    async def secret(self, secret_id: str) -> bytes | None:
        session = await self._session()
        if not session.offers(_SECRET):
            return None
        try:
            answer = await session.call(
                _SECRET,
                pb.GetSecretRequest(id=secret_id),
                pb.GetSecretResponse,
                what=f"secret {secret_id}",
                timeout=ANSWER,
            )
        except NotFound:
            return None
        return answer.data

    async def has_agent(self, agent_id: str) -> bool:
        session = await self._session()
        if not session.offers(_CHECK_AGENT):
            return False
        try:
            await session.call(
                _CHECK_AGENT, pb.CheckAgentRequest(id=agent_id), pb.CheckAgentResponse, what=f"ssh agent {agent_id}"
            )
        except (Failed, NotFound):  # "unset ssh forward key default" has no code of its own
            return False
        return True

    async def agent(self, agent_id: str) -> AgentConnection:
        session = await self._session()
        open_until = AsyncExitStack()
        stream = await open_until.enter_async_context(
            session.talk(
                _FORWARD_AGENT,
                pb.Bytes,
                pb.Bytes,
                what=f"ssh agent {agent_id}",
                headers=[("buildkit.ssh.id", agent_id)],
            )
        )
        return _Agent(stream, open_until)

    async def credentials(self, host: str) -> Auth:
        session = await self._session()
        if not session.offers(_CREDENTIALS):
            return ANONYMOUS
        asked = _HUB if host in ("docker.io", "index.docker.io") else host
        answer = await session.call(
            _CREDENTIALS,
            pb.CredentialsRequest(host=asked),
            pb.CredentialsResponse,
            what=f"credentials for {host}",
            timeout=ANSWER,
        )
        if not answer.username and answer.secret:
            return Auth(identitytoken=answer.secret, serveraddress=host)
        if not answer.username:
            return ANONYMOUS
        return Auth(username=answer.username, password=answer.secret, serveraddress=host)

    async def send_stream(self, exporter: int, metadata: Mapping[str, str], data: AsyncIterator[bytes]) -> None:
        await filesend.send_stream(await self._session(), exporter, metadata, data)

    async def send_directory(self, exporter: int, root: Path, transferred: Transferred, *, prefix: str = "") -> None:
        await filesend.send_directory(await self._session(), exporter, root, transferred, prefix=prefix)

    async def read_blob(self, store: str, digest: Digest) -> AsyncGenerator[bytes, None]:
        session = await self._session()
        what = f"reading {digest} from {store}"
        headers = [("buildkit-attachable-store-id", store)]
        async with session.talk(
            _CONTENT + "Read", pb.ContentReadRequest, pb.ContentReadResponse, what=what, headers=headers
        ) as stream:
            await stream.send_message(pb.ContentReadRequest(digest=digest), end=True)
            pipe = Pipe(stream)
            while messages := await pipe.receive():
                yield b"".join([pb.ContentReadResponse.FromString(each).data for each in messages])

    async def write_blob(self, store: str, digest: Digest, size: int, data: AsyncIterator[bytes]) -> None:
        session = await self._session()
        what = f"writing {digest} to {store}"
        headers = [("buildkit-attachable-store-id", store)]
        if await self._has_blob(session, digest, what, store):
            return
        try:
            async with session.talk(
                _CONTENT + "Write", pb.ContentWriteRequest, pb.ContentWriteResponse, what=what, headers=headers
            ) as stream:
                await _write(stream, digest, size, data)
        except WherryError as exc:
            cause = exc.__cause__
            if not (isinstance(cause, GRPCError) and cause.status is Status.ALREADY_EXISTS):
                raise

    async def _has_blob(self, session: Session, digest: Digest, what: str, store: str) -> bool:
        try:
            await session.call(
                _CONTENT + "Info",
                pb.ContentInfoRequest(digest=digest),
                pb.ContentInfoResponse,
                what=what,
                headers=[("buildkit-attachable-store-id", store)],
            )
        except NotFound:
            return False
        return True


async def _write(
    stream: "Stream[pb.ContentWriteRequest, pb.ContentWriteResponse]",
    digest: Digest,
    size: int,
    data: AsyncIterator[bytes],
) -> None:
    """One blob. Every request is answered, so the answers are read as it goes."""
    offset = 0
    async for chunk in data:
        for at in range(0, len(chunk), filesend.PIECE):
            piece = chunk[at : at + filesend.PIECE]
            await stream.send_message(
                pb.ContentWriteRequest(
                    action=_WRITE, ref=f"build-{digest}", total=size, expected=digest, offset=offset, data=piece
                )
            )
            offset += len(piece)
            if await stream.recv_message() is None:
                return  # refused: why stands in the trailers
    await stream.send_message(
        pb.ContentWriteRequest(action=_COMMIT, ref=f"build-{digest}", total=size, expected=digest, offset=offset),
        end=True,
    )
    while await stream.recv_message() is not None:
        pass


class _Agent:
    """A connection to the client's ssh agent. That the client's end fails when ours is closed is how it ends."""

    def __init__(self, stream: "Stream[pb.Bytes, pb.Bytes]", open_until: AsyncExitStack) -> None:
        self._stream = stream
        self._pipe = Pipe(stream)
        self._open_until = open_until
        self._closed = False

    async def read(self) -> bytes:
        try:
            messages = await self._pipe.receive()
        except (GRPCError, StreamTerminatedError):
            return b""
        return b"".join([pb.Bytes.FromString(each).data for each in messages])

    async def write(self, data: bytes) -> None:
        try:
            await self._pipe.send([pb.Bytes(data=data).SerializeToString()])
        except (GRPCError, StreamTerminatedError) as exc:
            raise ConnectionResetError("the client's ssh agent is gone") from exc

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        with suppress(GRPCError, StreamTerminatedError, WherryError):
            if self._stream._stream.closable:
                await self._stream.cancel()
            await self._open_until.aclose()
