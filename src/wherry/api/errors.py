"""Errors on the wire: the only place that knows which kind of error is which HTTP status.

Body: `{"message": "..."}`. In a stream that has begun, a line `{"errorDetail": {"message": "..."}, "error": "..."}`.
"""

import logging

from wherry.errors import (
    Conflict,
    Corrupt,
    Failed,
    Forbidden,
    InvalidParameter,
    NotFound,
    NotModified,
    NotSupported,
    Unauthorized,
    Unavailable,
    WherryError,
)

log = logging.getLogger(__name__)

STATUS: dict[type[WherryError], int] = {
    InvalidParameter: 400,
    Unauthorized: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    NotModified: 304,
    NotSupported: 501,
    Unavailable: 503,
    Corrupt: 500,
    Failed: 500,
}


def status_of(error: BaseException) -> int:
    """HTTP status of any exception; subclasses of a kind count as that kind."""
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    return 500


def message_of(error: BaseException) -> str:
    """Words for the user; an error that nobody foresaw is named by its type as well."""
    text = error.message if isinstance(error, WherryError) else f"internal error: {type(error).__name__}: {error}"
    return text.encode("utf-8", "replace").decode()  # what was typed may hold bytes that are no UTF-8


def record(error: BaseException, what: str) -> None:
    """Log what a user would report: unforeseen errors and corruption with their traceback."""
    if isinstance(error, WherryError) and not isinstance(error, Corrupt):
        log.debug("%s: %s", what, error.message)
    else:
        log.error("%s: %s", what, message_of(error), exc_info=error)


def line_of(error: BaseException) -> dict[str, object]:
    """The error as a message within a progress stream."""
    message = message_of(error)
    return {"errorDetail": {"message": message}, "error": message}
