"""The errors a registry answers with: the codes of the distribution specification, their statuses, and who raises them.

    {"errors": [{"code": "BLOB_UNKNOWN", "message": "...", "detail": {...}}]}

Source: OCI distribution-spec 1.1, "Error codes".
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from wherry.errors import (
    Conflict,
    Corrupt,
    Failed,
    Forbidden,
    InvalidParameter,
    NotFound,
    NotSupported,
    Unauthorized,
    Unavailable,
    WherryError,
)


class Code(StrEnum):
    BLOB_UNKNOWN = "BLOB_UNKNOWN"
    BLOB_UPLOAD_INVALID = "BLOB_UPLOAD_INVALID"
    BLOB_UPLOAD_UNKNOWN = "BLOB_UPLOAD_UNKNOWN"
    DIGEST_INVALID = "DIGEST_INVALID"
    MANIFEST_BLOB_UNKNOWN = "MANIFEST_BLOB_UNKNOWN"
    MANIFEST_INVALID = "MANIFEST_INVALID"
    MANIFEST_UNKNOWN = "MANIFEST_UNKNOWN"
    NAME_INVALID = "NAME_INVALID"
    NAME_UNKNOWN = "NAME_UNKNOWN"
    SIZE_INVALID = "SIZE_INVALID"
    UNAUTHORIZED = "UNAUTHORIZED"
    DENIED = "DENIED"
    UNSUPPORTED = "UNSUPPORTED"
    TOOMANYREQUESTS = "TOOMANYREQUESTS"
    TAG_INVALID = "TAG_INVALID"  # not in the specification; docker-registry's
    PAGINATION_NUMBER_INVALID = "PAGINATION_NUMBER_INVALID"  # docker-registry's
    UNAVAILABLE = "UNAVAILABLE"  # docker-registry's
    UNKNOWN = "UNKNOWN"  # docker-registry's


STATUS = {
    Code.BLOB_UNKNOWN: 404,
    Code.BLOB_UPLOAD_INVALID: 400,
    Code.BLOB_UPLOAD_UNKNOWN: 404,
    Code.DIGEST_INVALID: 400,
    Code.MANIFEST_BLOB_UNKNOWN: 404,
    Code.MANIFEST_INVALID: 400,
    Code.MANIFEST_UNKNOWN: 404,
    Code.NAME_INVALID: 400,
    Code.NAME_UNKNOWN: 404,
    Code.SIZE_INVALID: 400,
    Code.UNAUTHORIZED: 401,
    Code.DENIED: 403,
    Code.UNSUPPORTED: 405,
    Code.TOOMANYREQUESTS: 429,
    Code.TAG_INVALID: 400,
    Code.PAGINATION_NUMBER_INVALID: 400,
    Code.UNAVAILABLE: 503,
    Code.UNKNOWN: 500,
}


class Problem(WherryError):
    """One refusal, as it goes out. `status` is the code's own unless the specification wants another one there."""

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        detail: object = None,
        status: int = 0,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.detail = detail
        self.status = status or STATUS[code]
        self.headers = headers or {}

    def document(self) -> dict[str, Any]:
        error: dict[str, Any] = {"code": self.code.value, "message": self.message}
        if self.detail is not None:
            error["detail"] = self.detail
        return {"errors": [error]}


def blob_unknown(repository: str, digest: str) -> Problem:
    return Problem(
        Code.BLOB_UNKNOWN,
        f"repository {repository} has no blob {digest}",
        detail={"name": repository, "digest": digest},
    )


def manifest_unknown(repository: str, name: str) -> Problem:
    return Problem(
        Code.MANIFEST_UNKNOWN,
        f"repository {repository} has no manifest {name}",
        detail={"name": repository, "tag": name},
    )


def name_unknown(repository: str) -> Problem:
    return Problem(
        Code.NAME_UNKNOWN, f"repository name not known to registry: {repository}", detail={"name": repository}
    )


def upload_unknown(repository: str, upload: str) -> Problem:
    return Problem(
        Code.BLOB_UPLOAD_UNKNOWN,
        f"no upload {upload} to repository {repository}: it has ended or expired, begin a new one",
        detail={"name": repository, "uuid": upload},
    )


def incomplete(repository: str, lacking: Sequence[str]) -> Problem:
    """A manifest was pushed before what it names."""
    return Problem(
        Code.MANIFEST_BLOB_UNKNOWN,
        f"repository {repository} lacks what the manifest names, push that first: {', '.join(lacking[:10])}",
        detail=[{"digest": digest} for digest in lacking],
    )


_KINDS: tuple[tuple[type[WherryError], Code, int], ...] = (
    (NotFound, Code.BLOB_UNKNOWN, 404),
    (Unauthorized, Code.UNAUTHORIZED, 401),
    (Forbidden, Code.DENIED, 403),
    (NotSupported, Code.UNSUPPORTED, 405),
    (Unavailable, Code.UNAVAILABLE, 503),
    (Conflict, Code.BLOB_UPLOAD_INVALID, 409),
    (InvalidParameter, Code.MANIFEST_INVALID, 400),
    (Corrupt, Code.UNKNOWN, 500),
    (Failed, Code.UNKNOWN, 500),
)


def problem_of(error: WherryError) -> Problem:
    """Any error of ours as a registry says it."""
    if isinstance(error, Problem):
        return error
    for kind, code, status in _KINDS:
        if isinstance(error, kind):
            return Problem(code, error.message, status=status)
    return Problem(Code.UNKNOWN, error.message)
