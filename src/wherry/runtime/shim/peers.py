"""Those who connect to a shim: control connections of daemons, and what becomes a stream. Stdlib only."""

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from wherry.errors import InvalidParameter, WherryError
from wherry.runtime.shim import frames
from wherry.runtime.shim.execs import Exec
from wherry.runtime.shim.frames import Document
from wherry.runtime.shim.requests import ExecRequest, chosen_streams, describe
from wherry.runtime.shim.streams import Connection

if TYPE_CHECKING:
    from wherry.runtime.shim.monitor import Shim


class Control(Connection):
    """A daemon: requests in, answers and events out."""

    def __init__(self, shim: "Shim", sock: socket.socket) -> None:
        self._shim = shim
        self._decoder = frames.Decoder()
        super().__init__(shim.loop, sock)

    def tell(self, document: Document) -> None:
        self.send(frames.encode(document))

    def on_data(self, data: bytes) -> None:
        if not data:
            self.close()
            return
        self._decoder.feed(data)
        try:
            for document in self._decoder:
                self._answer(document)
        except ValueError:
            self.close()

    def on_closed(self) -> None:
        self._shim.lost(self)

    def _answer(self, request: Document) -> None:
        sequence = request.get("seq")

        def done(outcome: Document | WherryError | None) -> None:
            if isinstance(outcome, WherryError):
                self.tell({"seq": sequence, "error": describe(outcome)})
            else:
                self.tell({"seq": sequence, "ok": outcome or {}})

        try:
            if self._perform(request, done):
                return
        except (WherryError, OSError, KeyError, TypeError) as exc:
            self.tell({"seq": sequence, "error": describe(exc)})
        else:
            done(None)

    def _perform(self, request: Document, done: Callable[[Document | WherryError | None], None]) -> bool:
        """Do what is asked; True when `done` is called later."""
        shim = self._shim
        match request.get("op"):
            case "start":
                shim.start(done)
                return True
            case "update":
                shim.update(cast(Document, request["resources"]), done)
                return True
            case "exec":
                Exec(shim, ExecRequest.read(request), output=False).start(done)
                return True
            case "kill":
                shim.kill(cast(int, request["signal"]))
            case "kill-all":
                shim.kill_all(cast(int, request["signal"]))
            case "pause":
                shim.freeze(frozen=True)
            case "resume":
                shim.freeze(frozen=False)
            case "resize":
                shim.resize(cast(int, request["height"]), cast(int, request["width"]))
            case "exec-kill":
                shim.find_exec(request["id"]).kill(cast(int, request["signal"]))
            case "exec-resize":
                shim.find_exec(request["id"]).resize(cast(int, request["height"]), cast(int, request["width"]))
            case "destroy":
                shim.destroy()
            case unknown:
                raise InvalidParameter(f"unknown request {unknown!r}")
        return False


class Greeting(Connection):
    """A new connection, until its first document says what it is."""

    def __init__(self, shim: "Shim", sock: socket.socket) -> None:
        self._shim = shim
        self._decoder = frames.Decoder()
        super().__init__(shim.loop, sock)

    def on_data(self, data: bytes) -> None:
        self._decoder.feed(data)
        try:
            document = self._decoder.take()
            if document is not None:
                self._become(document)
            elif not data:
                self.close()
        except (WherryError, OSError, KeyError, TypeError, ValueError) as exc:
            self.send(frames.encode({"error": describe(exc)}))
            self.finish()

    def _become(self, document: Document) -> None:
        shim = self._shim
        match document.get("op"):
            case "control":
                shim.welcome(self.release(), self._decoder.rest)
            case "attach":
                streams = chosen_streams(document, tty=shim.session.tty)
                self.send(frames.encode({"ok": {}}))
                stdin = bool(document.get("stdin"))
                shim.session.attach(self.release(), streams=streams, stdin=stdin, early=self._decoder.rest)
            case "exec":
                self._start_exec(ExecRequest.read(document))
            case unknown:
                raise InvalidParameter(f"unknown request {unknown!r}")

    def _start_exec(self, request: ExecRequest) -> None:
        execution = Exec(self._shim, request, output=True)

        def done(outcome: Document | WherryError) -> None:
            if isinstance(outcome, WherryError):
                self.send(frames.encode({"error": describe(outcome)}))
                self.finish()
                return
            self.send(frames.encode({"ok": outcome}))
            if not self.closed:
                execution.session.attach(
                    self.release(),
                    streams=request.streams,
                    stdin=request.stdin,
                    early=self._decoder.rest,
                )
            elif request.tied:
                execution.kill_all()
            elif request.stdin:
                execution.session.end_input()

        execution.start(done)
        self.read_from(wanted=False)  # early input waits in the socket
