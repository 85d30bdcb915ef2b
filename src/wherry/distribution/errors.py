"""What a registry or the network said, in the words of Docker's client.

`Refused` is an answer with a status, `Unreachable` no answer at all. Both stay in this room until `translate` names
the reference they are about.
"""

import asyncio
import os
import re
import ssl
from collections.abc import Sequence
from http import HTTPStatus

import aiohttp
import msgspec

from wherry.errors import Corrupt, Failed, NotFound, WherryError
from wherry.reference import Reference
from wherry.spec.distribution import ErrorBody, RegistryError

MAX_ERROR = 64 << 10  # bytes of an error body that are read
SHOWN = 500  # characters of a body that is no registry's that are passed on

_DEFAULT_MESSAGES = {
    "DENIED": "requested access to the resource is denied",
    "UNAUTHORIZED": "authentication required",
    "MANIFEST_UNKNOWN": "manifest unknown",
    "NAME_UNKNOWN": "repository name not known to registry",
    "TOOMANYREQUESTS": "too many requests",
}
_BY_STATUS = {401: "UNAUTHORIZED", 403: "DENIED", 429: "TOOMANYREQUESTS"}


class Refused(Failed):
    """The registry answered with an error."""

    def __init__(self, text: str, *, status: int, code: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.retry_after: float | None = None  # seconds, when the registry says

    @property
    def transient(self) -> bool:
        """Trying again may help."""
        return self.status >= 500 or self.status in (408, 429)


class Unreachable(Failed):
    """There was no answer, or it broke off."""

    broken = False  # there was a connection, and it ended too early: the next one may not


class BadRange(Unreachable):
    """A part was asked for, and another one sent."""


def refused(method: str, url: str, status: int, body: bytes, *, challenge_error: str = "") -> Refused:
    """Read an error answer. `challenge_error`, the `error` of its WWW-Authenticate, counts more than the body."""
    if challenge_error == "insufficient_scope":
        error = RegistryError("DENIED", _DEFAULT_MESSAGES["DENIED"])
        return Refused(str(error), status=status, code=error.code)
    errors, details = _parse(body)
    if not errors and status in _BY_STATUS:
        code = _BY_STATUS[status]
        errors = [RegistryError(code, details or _DEFAULT_MESSAGES[code])]
    if errors:
        errors = [RegistryError(e.code, e.message or _DEFAULT_MESSAGES.get(e.code, "")) for e in errors[:10]]
        text = str(errors[0]) if len(errors) == 1 else "errors:\n" + "".join(f"{error}\n" for error in errors)
        return Refused(text, status=status, code=errors[0].code)
    try:
        phrase = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = str(status)
    shown = body[:SHOWN].decode(errors="replace").strip()
    text = f"unexpected status from {method} request to {url}: {phrase}"
    return Refused(f"{text}: {shown}" if shown else text, status=status)


def _parse(body: bytes) -> tuple[Sequence[RegistryError], str]:
    try:
        document = msgspec.json.decode(body, type=ErrorBody)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return [], ""
    return document.errors, document.details


_BROKEN = (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError, ConnectionError)


def unreachable(method: str, url: str, exc: BaseException) -> Unreachable:
    found = Unreachable(f'{method.capitalize()} "{url}": {_reason(exc)}')
    alert = _ALERT.search(str(exc))
    settled = isinstance(exc, aiohttp.ClientConnectorError) or (alert and alert[1] in _WANTS_CERTIFICATE)
    found.broken = isinstance(exc, _BROKEN) and not settled
    return found


def _reason(exc: BaseException) -> str:
    match exc:
        case aiohttp.ClientConnectorDNSError():
            return f"dial tcp: lookup {exc.host}: no such host"
        case aiohttp.ClientConnectorCertificateError():
            return f"tls: failed to verify certificate: x509: {_certificate(exc.certificate_error)}"
        case aiohttp.ClientOSError() if alert := _ALERT.search(str(exc)):
            return _alert(alert[1])
        case aiohttp.ClientConnectorSSLError() if _is_plain_http(exc.os_error):
            return "http: server gave HTTP response to HTTPS client"
        case aiohttp.ClientConnectorSSLError():
            return f"tls: {exc.os_error}"
        case aiohttp.ClientConnectorError():
            reason = _system_reason(exc.os_error)
            return f"dial tcp {exc.host}:{exc.port}: connect: {reason}"
        case TimeoutError() | asyncio.TimeoutError():
            return "net/http: request canceled (Client.Timeout exceeded while awaiting headers)"
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError() | asyncio.IncompleteReadError():
            return "unexpected EOF"
        case aiohttp.ClientConnectionResetError():  # it was closed before we wrote
            return "write tcp: broken pipe"
        case aiohttp.ClientOSError():
            return f"read tcp: {_system_reason(exc)}"
        case _:
            return str(exc) or type(exc).__name__


_ALERT = re.compile(r"\[SSL: \w*ALERT_(\w+)\]")  # in OpenSSL's words; its error number is no errno
_WANTS_CERTIFICATE = ("BAD_CERTIFICATE", "CERTIFICATE_REQUIRED")


def _alert(name: str) -> str:
    words = f"remote error: tls: {name.lower().replace('_', ' ')}"
    if name not in _WANTS_CERTIFICATE:
        return words
    return f"{words}: the registry wants a certificate of its clients: put client.cert and client.key into its certs.d"


def _system_reason(exc: OSError) -> str:
    if exc.errno is not None and exc.errno > 0:
        return os.strerror(exc.errno).lower()
    return str(exc).lower()


def _certificate(exc: BaseException) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        if exc.verify_code in (18, 19, 20, 21):  # self-signed, or no issuer known
            return "certificate signed by unknown authority"
        return str(exc.verify_message)
    return str(exc)


def _is_plain_http(exc: OSError) -> bool:
    reason = getattr(exc, "reason", "") or ""
    return reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")


def translate(error: WherryError, reference: Reference) -> WherryError:
    """The error as the user sees it: what was asked for, then what the registry said."""
    if not isinstance(error, Refused):
        return error
    match error.code:
        case "DENIED":
            return NotFound(
                f"pull access denied for {reference.familiar_name}, repository does not exist or may require "
                f"'docker login': {error.message}"
            )
        case "MANIFEST_UNKNOWN":
            return NotFound(f"manifest for {reference.familiar} not found: {error.message}")
        case "NAME_UNKNOWN":
            return NotFound(f"repository {reference.familiar_name} not found: {error.message}")
        case "":
            return (
                NotFound(f"manifest for {reference.familiar} not found: {error.message}")
                if (error.status == 404)
                else Failed(error.message)
            )
        case _:
            return Failed(error.message)


def mismatch(what: str, wanted: str, found: str) -> Corrupt:
    return Corrupt(f"{what} verification failed for digest {wanted}: the registry sent {found}")
