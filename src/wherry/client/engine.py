"""An engine as its client sees it: version negotiation, calls, streams, hijacked connections.

    engine = Engine(find_endpoint(None, os.environ))
    engine.get_json("/containers/json", {"all": "1"})
    with engine.open("POST", "/images/create", {"fromImage": "alpine"}) as response: ...
    attached = engine.hijack("/containers/x/attach", {"stream": "1", "stdout": "1"})

Every failure is one of the three classes below. One connection is kept for plain calls; a call made while another
response is still being read opens its own.
"""

from __future__ import annotations

from wherry.client import jsontext
from wherry.client.http import ConnectError, HTTPError, Response, Stream, open_stream, read_response, send_request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any, Self

    from wherry.client.endpoint import Endpoint

    Query = Mapping[str, str | bool | int | list[str] | None]

API_VERSION = "1.51"  # the newest this client knows
MAX_ERROR = 1 << 20  # bytes of an error body
MAX_LINE = 1 << 24  # characters of one JSON message in a stream

# RFC 3986 unreserved, plus what a path segment of ours may carry as it is
_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


class EngineError(Exception):
    """The engine refused; `message` is in its own words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Unreachable(Exception):
    """No engine answers at `endpoint`, because of `reason`."""

    def __init__(self, endpoint: str, reason: str) -> None:
        super().__init__(reason)
        self.endpoint = endpoint
        self.reason = reason


class ProtocolError(Exception):
    """What answered does not behave like an engine."""


def quote(text: str, safe: bytes = b"") -> str:
    """Percent-encode; `safe` adds bytes to leave alone."""
    data = text.encode("utf-8", "surrogateescape")
    return "".join(chr(byte) if byte in _SAFE or byte in safe else f"%{byte:02X}" for byte in data)


def encode_query(query: Query) -> str:
    """Sorted by name as Go does. None and False are left out, True is 1, a list repeats the name."""
    pairs: list[str] = []
    for name in sorted(query):
        value = query[name]
        if value is None or value is False:
            continue
        values = value if isinstance(value, list) else ["1" if value is True else str(value)]
        pairs.extend(f"{quote(name)}={quote(item)}" for item in values)
    return "&".join(pairs)


class Call:
    """A response whose body is being read; give it back with `with`."""

    __slots__ = ("_engine", "_stream", "response")

    def __init__(self, engine: Engine, stream: Stream, response: Response) -> None:
        self._engine = engine
        self._stream = stream
        self.response = response

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent: the stream is kept when the body was read, closed when it was not."""
        if self.response.reusable:
            self._engine.keep(self._stream)
        else:
            self._stream.close()

    def fileno(self) -> int:
        return self._stream.fileno()

    def pending(self) -> bool:
        return self._stream.pending()

    def chunks(self) -> Iterator[bytes]:
        try:
            yield from self.response.chunks()
        except (HTTPError, OSError) as exc:
            raise ProtocolError(str(exc)) from exc

    def messages(self) -> Iterator[Any]:
        """The JSON values of the body, each as soon as it is complete."""
        for line in self.lines():
            at = 0
            while line[at:].strip():
                try:
                    value, at = jsontext.scan(line, at)
                except jsontext.JSONError as exc:
                    raise ProtocolError(f"invalid character in the engine's stream: {exc}") from exc
                yield value

    def lines(self) -> Iterator[str]:
        """The lines of the body as they become complete; the last one need not end."""
        rest = b""
        for chunk in self.chunks():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line.decode("utf-8", "replace")
            if len(rest) > MAX_LINE:
                raise ProtocolError("a message of the engine is too long")
        if rest:
            yield rest.decode("utf-8", "replace")


class Hijacked:
    """A connection taken over: raw in both directions, framed or not as `framed` tells."""

    __slots__ = ("content_type", "early", "stream")

    def __init__(self, stream: Stream, response: Response) -> None:
        self.stream = stream
        self.content_type = response.headers.get("content-type", "")
        self.early = response.leftover()

    def close(self) -> None:
        self.stream.close()


class Engine:
    """One endpoint. Not for several threads at once, except that each may hold Calls and Hijacked of its own."""

    def __init__(
        self, endpoint: Endpoint, *, version: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        self.endpoint = endpoint
        self._version = version
        self.negotiated = version is None
        self.ping_headers: dict[str, str] = {}
        host = "api.moby.localhost" if endpoint.path is not None else f"{endpoint.host}:{endpoint.port}"
        self._headers = {"Host": host, "User-Agent": "Wherry-Client/0.1 (linux)", **(headers or {})}
        self._kept: Stream | None = None

    @property
    def version(self) -> str:
        """The API version spoken: the older of ours and the engine's."""
        if self._version is None:
            self._version = self._negotiate()
        return self._version

    def newer_than(self, version: str) -> bool:
        """Is the version spoken at least `version`?"""
        return _numbers(self.version) >= _numbers(version)

    def ping(self) -> dict[str, str]:
        """Headers of the engine's /_ping."""
        with self._send("HEAD", "/_ping", None, {}) as call:
            call.response.read()
            self.ping_headers = call.response.headers
        return self.ping_headers

    def _negotiate(self) -> str:
        theirs = self.ping().get("api-version", "")
        if theirs and _numbers(theirs) < _numbers(API_VERSION):
            return theirs
        return API_VERSION if theirs else "1.24"

    def open(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        body: object = None,
        *,
        data: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        content_type: str = "application/x-tar",
    ) -> Call:
        """Send, and return when the head is there. EngineError for a status of 400 and above.

        `body` is sent as JSON; `data` as it is, with `content_type`.
        """
        extra = dict(headers or {})
        payload: bytes | Iterable[bytes] | None = data
        if body is not None:
            payload = jsontext.dumps(body).encode("utf-8", "surrogateescape")
            extra["Content-Type"] = "application/json"
        elif data is not None:
            extra["Content-Type"] = content_type
        call = self._send(method, self._target(path, query), payload, extra)
        if call.response.status >= 400:
            with call:
                raise self._refusal(call)
        return call

    def _target(self, path: str, query: Query | None) -> str:
        target = f"/v{self.version}{path}"
        if query and (encoded := encode_query(query)):
            target += "?" + encoded
        return target

    def call(self, method: str, path: str, query: Query | None = None, body: object = None) -> bytes:
        """The whole body of the answer."""
        with self.open(method, path, query, body) as call:
            return b"".join(call.chunks())

    def get_json(self, path: str, query: Query | None = None) -> Any:
        return self._parse(self.call("GET", path, query))

    def post_json(self, path: str, query: Query | None = None, body: object = None) -> Any:
        """The parsed answer; None when it is empty."""
        return self._parse(self.call("POST", path, query, body))

    def hijack(self, path: str, query: Query | None = None, body: object = None) -> Hijacked:
        """POST and take the connection over. EngineError when the engine refuses."""
        payload = b"" if body is None else jsontext.dumps(body).encode("utf-8", "surrogateescape")
        headers = {"Connection": "Upgrade", "Upgrade": "tcp", "Content-Type": "application/json"}
        if body is None:
            headers["Content-Type"] = "text/plain"
        call = self._send("POST", self._target(path, query), payload, headers, fresh=True)
        response = call.response
        if response.status >= 400:
            with call:
                raise self._refusal(call)
        raw = response.headers.get("content-type", "").startswith("application/vnd.docker.")
        if response.status != 101 and not (response.status == 200 and raw):
            call.close()
            raise ProtocolError(f"unable to upgrade to tcp, received {response.status}")
        return Hijacked(call._stream, response)

    def keep(self, stream: Stream) -> None:
        """Take a stream back whose response was read to its end."""
        if self._kept is None:
            self._kept = stream
        elif self._kept is not stream:
            stream.close()

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _send(
        self,
        method: str,
        target: str,
        payload: bytes | Iterable[bytes] | None,
        extra: dict[str, str],
        *,
        fresh: bool = False,
    ) -> Call:
        headers = {**self._headers, **extra}
        kept = None if fresh else self._kept
        if kept is not None and kept.readable():
            kept.close()  # an idle connection has nothing to say but that it was closed
            kept = self._kept = None
        if kept is not None:
            self._kept = None
            try:
                return self._exchange(kept, method, target, headers, payload)
            except ProtocolError:
                # The engine may close an idle connection at any time. Only a plain read is asked again.
                if method not in ("GET", "HEAD"):
                    raise
        try:
            stream = open_stream(self.endpoint)
        except ConnectError as exc:
            raise Unreachable(self.endpoint.shown, str(exc)) from exc
        return self._exchange(stream, method, target, headers, payload)

    def _exchange(
        self,
        stream: Stream,
        method: str,
        target: str,
        headers: dict[str, str],
        payload: bytes | Iterable[bytes] | None,
    ) -> Call:
        """One request and the head of its answer; a stream on which that fails is closed."""
        try:
            try:
                send_request(stream, method, target, headers, payload)
            except (BrokenPipeError, ConnectionResetError):
                pass  # refused before the body was through: the reason is in the answer
            return Call(self, stream, read_response(stream, method))
        except (HTTPError, OSError) as exc:
            stream.close()
            raise ProtocolError(f"error during connect: {exc}") from exc
        except BaseException:
            stream.close()
            raise

    def _parse(self, data: bytes) -> Any:
        if not data.strip():
            return None
        try:
            return jsontext.loads(data)
        except jsontext.JSONError as exc:
            raise ProtocolError(f"the engine's answer is not JSON: {exc}") from exc

    def _refusal(self, call: Call) -> EngineError:
        response = call.response
        body = b""
        for chunk in call.chunks():
            body += chunk
            if len(body) > MAX_ERROR:
                return EngineError(response.status, "request returned an error that is too long to show")
        if response.headers.get("content-type", "").partition(";")[0] == "application/json":
            try:
                message = jsontext.loads(body)["message"]
            except (jsontext.JSONError, KeyError, TypeError):
                message = body.decode("utf-8", "replace").strip()
        else:
            message = body.decode("utf-8", "replace").strip()
        if not message:
            message = (
                f"request returned {response.status} {response.reason} and provided no error-message: "
                "check if the engine supports the requested API version"
            )
        return EngineError(response.status, str(message).strip())


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))
