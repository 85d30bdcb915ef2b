"""What a registry is kept in: the protocol between the server and its storage.

Two stores are behind it: a folder of its own (`folder`), and the engine's images (made by the daemon). Small enough
that object storage can follow: blobs are written once through an upload and read from any offset; everything else is
documents by name.

A repository exists from its first blob or manifest on. A blob is visible in the repositories it was uploaded or mounted
to, and in no other: whoever may read one repository must not reach the blobs of another by guessing digests.
All methods raise `errors.Problem`, with the code of the distribution specification that fits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from wherry.digest import Digest
from wherry.spec.image import Descriptor, Raw

MAX_MANIFEST = 4 << 20  # bytes, as the specification recommends


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    name: str
    digest: Digest  # of the manifest it names
    pushed: int  # ns since the epoch: when it was last set


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A manifest of a repository, and what it needs."""

    digest: Digest
    media_type: str
    size: int  # bytes of the document
    pushed: int  # ns since the epoch
    blobs: Sequence[Digest] = ()  # config and layers that are kept here
    children: Sequence[Digest] = ()  # manifests an index names
    subject: str = ""  # digest of what it refers to
    artifact_type: str = ""
    annotations: Mapping[str, str] | None = None
    weight: int = 0  # bytes of the blobs


class Upload(Protocol):
    """A blob on its way into a repository. One request at a time works on it."""

    @property
    def id(self) -> str: ...

    @property
    def offset(self) -> int:
        """Bytes received so far; they survive a restart of the server."""

    async def write(self, data: bytes) -> None:
        """Append."""

    async def commit(self, digest: Digest) -> int:
        """Make it the blob `digest` of the repository and end the upload; its size. DIGEST_INVALID when it is not."""

    async def abort(self) -> None:
        """Forget it. Idempotent."""

    async def release(self) -> None:
        """The request is over; the upload goes on with a later one. Nothing happens after a commit or abort."""


class RegistryStore(Protocol):
    async def repositories(self, *, after: str, limit: int) -> list[str]:
        """Names that sort behind `after` ("" = from the beginning), in order, at most `limit`."""

    async def tags(self, repository: str, *, after: str, limit: int) -> list[str]:
        """Likewise the tags of a repository. NAME_UNKNOWN."""

    async def tag_list(self, repository: str) -> list[Tag]:
        """All tags with what they name, in order. NAME_UNKNOWN."""

    async def usage(self, repository: str) -> int:
        """Bytes of the blobs visible in `repository`; "": of the whole registry, each counted once."""

    async def described(self, repository: str, digest: Digest) -> Named:
        """What is known of a manifest without reading it. MANIFEST_UNKNOWN."""

    # blobs

    async def blob_size(self, repository: str, digest: Digest) -> int:
        """Bytes. BLOB_UNKNOWN."""

    async def promise_blob(self, repository: str, digest: Digest) -> int:
        """Likewise, told to somebody who will not upload it therefore: it stays as if it had been uploaded now."""

    async def open_blob(self, repository: str, digest: Digest) -> BinaryIO:
        """To be read and closed by the caller. BLOB_UNKNOWN."""

    async def holders(self, digest: Digest) -> list[str]:
        """Repositories that a blob can be mounted from; not all that there are, where that would be costly."""

    async def mount_blob(self, repository: str, digest: Digest, source: str) -> bool:
        """Make a blob of repository `source` visible in `repository`; False when it is not there."""

    async def delete_blob(self, repository: str, digest: Digest) -> None:
        """BLOB_UNKNOWN; UNSUPPORTED while a manifest of the repository needs it."""

    async def start_upload(self, repository: str) -> Upload:
        """A new upload."""

    async def upload(self, repository: str, id: str) -> Upload:
        """Take an upload up again. BLOB_UPLOAD_UNKNOWN; TOOMANYREQUESTS while another request works on it."""

    # manifests

    async def resolve(self, repository: str, tag: str) -> Digest:
        """What `tag` names. MANIFEST_UNKNOWN, NAME_UNKNOWN."""

    async def manifest(self, repository: str, digest: Digest) -> Raw:
        """MANIFEST_UNKNOWN, NAME_UNKNOWN."""

    async def put_manifest(self, repository: str, raw: Raw, *, tag: str | None) -> Descriptor | None:
        """Keep a manifest, and let `tag` name it; the descriptor of its subject, when it has one.

        MANIFEST_INVALID when it cannot be read, MANIFEST_BLOB_UNKNOWN when something it needs is not in the repository.
        """

    async def delete_manifest(self, repository: str, digest: Digest) -> None:
        """With all tags that name it. MANIFEST_UNKNOWN."""

    async def delete_tag(self, repository: str, tag: str) -> None:
        """MANIFEST_UNKNOWN."""

    async def referrers(self, repository: str, digest: Digest) -> list[Descriptor]:
        """Manifests whose subject is `digest`, with artifact type and annotations; none is no error."""
