"""What the engine asks for in the course of a build, and this command line's answers.

Only what the user named is given: directories, secrets, agents, content stores and outputs of the plan, by name.
"""

from __future__ import annotations

import os

from wherry.cli.build_layouts import LayoutError, blob_path
from wherry.cli.build_link import PIECE, Ear, Link, encode
from wherry.cli.build_receive import BlobSink, FileSink, TreeSink, Unacceptable, pairs
from wherry.cli.patterns import PatternError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from wherry.cli.build_request import Plan
    from wherry.cli.command import CLI

BATCH = 1000  # entries of one listing frame
CHUNK = 1 << 16
REGULAR, DIRECTORY = 0o100000, 0o040000
STDIN = 0


class Refusal(Exception):
    """The user has nothing like that; the message goes to the engine."""

    def __init__(self, message: str, kind: str = "NotFound") -> None:
        super().__init__(message)
        self.kind = kind


class Answers:
    """`answer` takes every frame that asks for something or belongs to what was asked for."""

    def __init__(self, cli: CLI, plan: Plan, link: Link) -> None:
        self._cli = cli
        self._plan = plan
        self._link = link
        self._listings: dict[int, _Listing] = {}
        self._sinks: dict[int, FileSink | TreeSink] = {}
        self._agents: dict[int, _Agent] = {}
        self._questions: dict[str, Callable[[int, dict[str, Any], bytes], None]] = {
            "list": self._list,
            "want": self._want,
            "secret": self._secret,
            "agent": self._agent,
            "credentials": self._credentials,
            "upload": self._upload,
            "output": self._output,
            "tree": self._output,
            "entry": self._entry,
            "bytes": self._bytes,
            "end": self._end,
            "read": self._read,
            "write": self._write,
        }

    def answer(self, head: dict[str, Any], data: bytes) -> bool:
        """False when it is nothing of these."""
        question = self._questions.get(str(head.get("type")))
        if question is None:
            return False
        number = int(head.get("id") or 0)
        try:
            question(number, head, data)
        except (Refusal, Unacceptable, LayoutError, PatternError) as exc:
            self._refuse(number, str(exc), getattr(exc, "kind", "InvalidParameter"))
        except OSError as exc:
            what = f"{exc.filename}: " if exc.filename else ""
            self._refuse(number, f"{what}{(exc.strerror or str(exc)).lower()}", "Failed")
        return True

    def close(self) -> None:
        """What is half received goes."""
        for sink in self._sinks.values():
            sink.abandon()
        for agent in self._agents.values():
            agent.close()

    def _refuse(self, number: int, message: str, kind: str) -> None:
        self._forget(number)
        self._link.send({"type": "refused", "id": number, "kind": kind, "message": message})

    def _forget(self, number: int) -> None:
        self._listings.pop(number, None)
        if (sink := self._sinks.pop(number, None)) is not None:
            sink.abandon()
        if (agent := self._agents.pop(number, None)) is not None:
            agent.close()

    # directories

    def _list(self, number: int, head: dict[str, Any], data: bytes) -> None:
        name = str(head.get("name") or "")
        if name in self._plan.files:
            listing: _Listing = _Made(number, self._plan.files[name])
        elif name in self._plan.directories:
            listing = _Found(number, self._plan.directories[name], head)
        else:
            raise Refusal(f"no local directory {name!r} was given")
        self._listings[number] = listing
        self._link.produce(self._guarded(number, listing.frames()))

    def _want(self, number: int, head: dict[str, Any], data: bytes) -> None:
        listing = self._listings.get(number)
        if listing is not None:
            for file in head.get("files") or []:
                self._link.produce(self._guarded(number, listing.content(int(file))))

    def _guarded(self, number: int, frames: Iterator[bytes]) -> Iterator[bytes]:
        """What fails while frames are made is told to the engine, too."""
        try:
            yield from frames
        except (Refusal, PatternError) as exc:
            yield encode({"type": "refused", "id": number, "kind": "InvalidParameter", "message": str(exc)})
        except OSError as exc:
            message = f"{exc.filename or 'the context'}: {(exc.strerror or str(exc)).lower()}"
            yield encode({"type": "refused", "id": number, "kind": "Failed", "message": message})

    # secrets and who the user is

    def _secret(self, number: int, head: dict[str, Any], data: bytes) -> None:
        secret = self._plan.secrets.get(str(head.get("name")))
        content = b""
        if secret is not None and secret.path:
            with open(secret.path, "rb") as file:
                content = file.read()
        elif secret is not None:
            content = self._cli.environ.get(secret.variable, "").encode("utf-8", "surrogateescape")
        answer: dict[str, Any] = {"type": "secret", "id": number, "found": secret is not None}
        self._link.send(answer, content)

    def _credentials(self, number: int, head: dict[str, Any], data: bytes) -> None:
        from wherry.cli.credentials import auth_for
        from wherry.cli.names import INDEX_SERVER

        host = str(head.get("name") or "")
        auth = auth_for(self._cli, INDEX_SERVER if host == "docker.io" else host)
        self._link.send({"type": "credentials", "id": number, "auth": auth})

    def _agent(self, number: int, head: dict[str, Any], data: bytes) -> None:
        path = self._plan.agents.get(str(head.get("name") or "default"))
        if not head.get("more"):
            self._link.send({"type": "agent", "id": number, "found": path is not None})
            return
        if path is None:
            raise Refusal(f"unset ssh forward key {head.get('name')}")
        self._agents[number] = _Agent(number, path, self._link, lambda: self._forget(number))
        self._link.send({"type": "agent", "id": number, "found": True})

    # standard input

    def _upload(self, number: int, head: dict[str, Any], data: bytes) -> None:
        beginning, self._plan.archive = self._plan.archive, None
        if beginning is None:
            raise Refusal("nothing comes on standard input, or it has been sent already")
        self._link.send({"type": "bytes", "id": number}, beginning)
        self._link.listen(Ear(STDIN, lambda: self._read_input(number)))

    def _read_input(self, number: int) -> None:
        if data := os.read(STDIN, PIECE):
            self._link.send({"type": "bytes", "id": number}, data)
        else:
            self._link.unlisten(STDIN)
            self._link.send({"type": "end", "id": number})

    # results

    def _output(self, number: int, head: dict[str, Any], data: bytes) -> None:
        place = int(head.get("exporter") or 0)
        path = self._plan.outputs[place].path if 0 <= place < len(self._plan.outputs) else ""
        if not path:
            raise Refusal(f"output {place} has no destination here")
        if head["type"] == "tree":
            self._sinks[number] = TreeSink(path, str(head.get("name") or ""))
        else:
            self._sinks[number] = FileSink(path)

    def _write(self, number: int, head: dict[str, Any], data: bytes) -> None:
        layout = self._store(head)
        digest, size = str(head.get("digest") or ""), int(head.get("size") or 0)
        path = blob_path(layout, digest)
        if os.path.exists(path) and os.path.getsize(path) == size:
            self._link.send({"type": "received", "id": number})
            return
        self._sinks[number] = BlobSink(layout, digest, size)

    def _store(self, head: dict[str, Any]) -> str:
        name = str(head.get("store") or "")
        if name not in self._plan.stores:
            raise Refusal(f"no content store {name!r} was given")
        return self._plan.stores[name]

    def _read(self, number: int, head: dict[str, Any], data: bytes) -> None:
        path = blob_path(self._store(head), str(head.get("digest") or ""))
        if not os.path.isfile(path):
            raise Refusal(f"{head.get('digest')}: not found in {path.partition('/blobs/')[0]}")
        self._link.produce(self._guarded(number, _file(number, path)))

    def _entry(self, number: int, head: dict[str, Any], data: bytes) -> None:
        if (sink := self._sinks.get(number)) is None:
            return
        entries = head.get("entries") or []
        for (mode, size, mtime, device), (path, link) in zip(entries, pairs(data, len(entries)), strict=True):
            sink.entry(mode, size, mtime, device, path, link)

    def _bytes(self, number: int, head: dict[str, Any], data: bytes) -> None:
        if (sink := self._sinks.get(number)) is not None:
            sink.write(data)
        elif (agent := self._agents.get(number)) is not None:
            agent.write(data)

    def _end(self, number: int, head: dict[str, Any], data: bytes) -> None:
        if (sink := self._sinks.pop(number, None)) is not None:
            sink.finish()
            self._link.send({"type": "received", "id": number})
        else:
            self._forget(number)


class _Listing:
    """One directory as it was listed: what the engine wants of it is named by number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def frames(self) -> Iterator[bytes]:
        raise NotImplementedError

    def content(self, file: int) -> Iterator[bytes]:
        raise NotImplementedError

    def listing(self, entries: list[list[int]], names: list[bytes], *, more: bool) -> bytes:
        head = {"type": "listing", "id": self.number, "entries": entries, "more": more}
        return encode(head, b"".join(name + b"\0" for name in names))


class _Found(_Listing):
    """A directory of the user's."""

    def __init__(self, number: int, root: str, head: dict[str, Any]) -> None:
        super().__init__(number)
        self._root = root
        self._patterns = {key: list(head.get(key) or []) for key in ("include", "exclude", "follow")}
        self._paths: list[str] = []

    def frames(self) -> Iterator[bytes]:
        from wherry.cli.build_tree import walk

        entries: list[list[int]] = []
        names: list[bytes] = []
        size = 0
        for entry in walk(self._root, **self._patterns):
            self._paths.append(entry.path)
            entries.append([entry.mode, entry.size, entry.mtime, entry.device])
            names += [os.fsencode(entry.path), os.fsencode(entry.link)]
            size += len(names[-1]) + len(names[-2])
            if len(entries) >= BATCH or size > PIECE:
                yield self.listing(entries, names, more=True)
                entries, names, size = [], [], 0
        yield self.listing(entries, names, more=False)

    def content(self, file: int) -> Iterator[bytes]:
        if not 0 <= file < len(self._paths):
            return
        head = {"type": "file", "id": self.number, "file": file}
        fd = os.open(f"{self._root}/{self._paths[file]}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            while len(data := os.read(fd, PIECE)) == PIECE:
                yield encode(head, data)
            yield encode({**head, "done": True}, data)
        finally:
            os.close(fd)


class _Made(_Listing):
    """Files that are in no directory: a Dockerfile from standard input."""

    def __init__(self, number: int, files: dict[str, bytes]) -> None:
        super().__init__(number)
        self._files = sorted(files.items())

    def frames(self) -> Iterator[bytes]:
        entries = [[REGULAR | 0o644, len(data), 0, 0] for _, data in self._files]
        names = [part for name, _ in self._files for part in (name.encode(), b"")]
        yield self.listing(entries, names, more=False)

    def content(self, file: int) -> Iterator[bytes]:
        data = self._files[file][1]
        for at in range(0, len(data), PIECE):
            yield encode({"type": "file", "id": self.number, "file": file}, data[at : at + PIECE])
        yield encode({"type": "file", "id": self.number, "file": file, "done": True})


def _file(number: int, path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while data := file.read(PIECE):
            yield encode({"type": "bytes", "id": number}, data)
    yield encode({"type": "end", "id": number})


class _Agent:
    """A connection to the user's ssh agent."""

    def __init__(self, number: int, path: str, link: Link, gone: Callable[[], None]) -> None:
        import _socket

        self._number, self._link, self._gone = number, link, gone
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            self._socket.connect(path)
        except OSError as exc:
            self._socket.close()
            raise Refusal(f"the ssh agent at {path} does not answer: {(exc.strerror or '').lower()}") from None
        link.listen(Ear(self._socket.fileno(), self._ready))

    def _ready(self) -> None:
        try:
            data = self._socket.recv(CHUNK)
        except OSError:
            data = b""
        if data:
            self._link.send({"type": "bytes", "id": self._number}, data)
        else:
            self._link.send({"type": "end", "id": self._number})
            self._gone()

    def write(self, data: bytes) -> None:
        self._socket.sendall(data)

    def close(self) -> None:
        self._link.unlisten(self._socket.fileno())
        self._socket.close()
