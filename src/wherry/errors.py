"""Every error the engine raises on purpose, on one page.

The class is the *kind*: who caught it and what may be done. The message is for the user: it names the object, the
cause and, where there is one, the remedy. Only `api/errors.py` knows HTTP statuses, only `cli/main.py` exit codes.
"""


class WherryError(Exception):
    """Base of the tree; never raised itself."""

    @property
    def message(self) -> str:
        return str(self.args[0]) if self.args else type(self).__name__


class InvalidParameter(WherryError):
    """The request can never succeed as it is (HTTP 400)."""


class Unauthorized(WherryError):
    """No or wrong credentials (401)."""


class Forbidden(WherryError):
    """Known and refused (403)."""


class NotFound(WherryError):
    """The named object does not exist (404)."""


class Conflict(WherryError):
    """The object's present state does not allow this (409)."""


class NotModified(WherryError):
    """Nothing to do: the object already is as asked (304, no body)."""


class NotSupported(WherryError):
    """Understood, and not offered by this engine or this machine (501)."""


class Unavailable(WherryError):
    """A peer or resource cannot serve at the moment (503)."""


class Corrupt(WherryError):
    """Stored data is not what was stored (500)."""


class Failed(WherryError):
    """An operation on the system failed for a reason outside the engine (500): the text says which and why."""


def first_of(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Of what several tasks failed with, what is told: one of ours if there is one."""
    ours, rest = errors.split(WherryError)
    group = ours or rest
    assert group is not None
    inner = group.exceptions[0]
    return first_of(inner) if isinstance(inner, BaseExceptionGroup) else inner
