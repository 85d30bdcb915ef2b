"""What a build may ask of who asked for it: files, secrets, credentials, a place for results.

The doors implement it: BuildKit's over the client's session, the classic one over what came with the request, the
Python one over the process's own files. Async; every method raises WherryErrors in words for the user.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Protocol

from wherry.builder.graph import LocalSource
from wherry.builder.trees import Directory
from wherry.digest import Digest
from wherry.errors import NotFound, NotSupported
from wherry.spec.distribution import ANONYMOUS, Auth

Transferred = Callable[[int], None]  # is told the bytes so far


class AgentConnection(Protocol):
    """One connection to the client's ssh agent."""

    async def read(self) -> bytes:
        """b"" at the end."""

    async def write(self, data: bytes) -> None: ...

    async def close(self) -> None: ...


class Client(Protocol):
    async def local(self, source: LocalSource, transferred: Transferred) -> Directory:
        """A directory of the client's, as it is at this moment; it stays unchanged until the build ends.

        NotFound when the client has none of that name.
        """

    def upload(self, url: str) -> AsyncIterator[bytes]:
        """What the client streams for a context of `http://buildkit-session/<id>`."""

    async def secret(self, secret_id: str) -> bytes | None:
        """None when the client has none of that id."""

    async def has_agent(self, agent_id: str) -> bool: ...

    async def agent(self, agent_id: str) -> AgentConnection: ...

    async def credentials(self, host: str) -> Auth: ...

    async def send_stream(self, exporter: int, metadata: Mapping[str, str], data: AsyncIterator[bytes]) -> None:
        """A tar or an archive, to where exporter number `exporter` has its destination."""

    async def send_directory(self, exporter: int, root: Path, transferred: Transferred, *, prefix: str = "") -> None:
        """The files below `root` into the destination directory, or below the directory `prefix` of it.

        May be called several times for one destination: what is there already stays.
        """

    def read_blob(self, store: str, digest: Digest) -> AsyncIterator[bytes]:
        """A blob of a content store of the client's: an OCI layout ("oci:name"), a local cache ("local:dir")."""

    async def write_blob(self, store: str, digest: Digest, size: int, data: AsyncIterator[bytes]) -> None:
        """Nothing happens when the store has it."""


class NoClient:
    """Has nothing to give: the base for doors that offer a part only."""

    async def local(self, source: LocalSource, transferred: Transferred) -> Directory:
        raise NotFound(f"no local directory {source.name!r} came with this build")

    def upload(self, url: str) -> AsyncIterator[bytes]:
        raise NotFound(f"nothing is uploaded as {url} with this build")

    async def secret(self, secret_id: str) -> bytes | None:
        return None

    async def has_agent(self, agent_id: str) -> bool:
        return False

    async def agent(self, agent_id: str) -> AgentConnection:
        raise NotFound(f"no ssh agent {agent_id!r} came with this build")

    async def credentials(self, host: str) -> Auth:
        return ANONYMOUS

    async def send_stream(self, exporter: int, metadata: Mapping[str, str], data: AsyncIterator[bytes]) -> None:
        raise NotSupported("this client cannot receive files from a build")

    async def send_directory(self, exporter: int, root: Path, transferred: Transferred, *, prefix: str = "") -> None:
        raise NotSupported("this client cannot receive files from a build")

    def read_blob(self, store: str, digest: Digest) -> AsyncIterator[bytes]:
        raise NotFound(f"no content store {store!r} came with this build")

    async def write_blob(self, store: str, digest: Digest, size: int, data: AsyncIterator[bytes]) -> None:
        raise NotSupported("this client cannot receive blobs from a build")
