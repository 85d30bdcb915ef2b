"""What a shim is asked for, as values: read from the documents that `shim_client` writes. Stdlib only.

Both sides are ours and of one version or, after an upgrade of the daemon, of two: unknown keys are ignored, and a key
added later has a default here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import cast

from wherry import errors
from wherry.errors import Failed, WherryError
from wherry.kernel.mount import Mount
from wherry.kernel.process import Identity
from wherry.logs.json_file import JSONFileLog
from wherry.runtime.oci import Runtime, RuntimeSpec
from wherry.runtime.shim.bundle import Spec
from wherry.runtime.shim.frames import Document
from wherry.runtime.shim.streams import STDERR, STDOUT

Size = tuple[int, int]  # height, width


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSpec:
    """Where the shim writes what the container says; driver `none` writes nothing."""

    driver: str = "json-file"
    path: str = ""
    max_size: int = 0  # bytes; 0 = no rotation
    max_file: int = 1
    attrs: Mapping[str, str] = field(default_factory=dict)  # labels and variables that every object carries

    def open(self) -> JSONFileLog | None:
        if self.driver == "none":
            return None
        return JSONFileLog(self.path, max_size=self.max_size, max_file=self.max_file, attrs=self.attrs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A file or directory of a tree that is mounted for this container alone; the spec binds it from its path."""

    mounts: tuple[Mount, ...]  # one bind, or what is mounted one over the other
    selector: str = ""  # within the tree; "" = all of it
    beneath: bool = False  # symbolic links may not lead out; else the tree is their root
    name: str = ""  # what errors call the tree
    recursive: bool = True  # with what is mounted below
    attributes: int = 0  # ATTR_* of kernel.mount
    flat: bool = False  # the attributes are not for what is mounted below
    propagation: int = 0  # MS_PRIVATE, MS_SLAVE or MS_SHARED; 0 = as it comes
    id_map: str = ""  # see runtime.id_map

    @classmethod
    def read(cls, document: Mapping[str, object]) -> "Part":
        rest = {key: value for key, value in document.items() if key != "mounts" and key in cls.__slots__}
        return cls(mounts=_mounts(document["mounts"]), **rest)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRequest:
    id: str
    spec: Spec
    shm_of: int  # pid of the container whose /dev/shm this one shares; 0 for one of its own
    rootfs: tuple[Mount, ...]
    parts: tuple[Part, ...]
    user: str
    group_add: tuple[str, ...]
    tty: bool
    open_stdin: bool
    stdin_once: bool
    console_size: Size | None
    log: LogSpec
    runtime: RuntimeSpec

    @classmethod
    def read(cls, document: Document) -> "CreateRequest":
        parts = cast(Sequence[Mapping[str, object]], document.get("parts", ()))
        runtime = cast(Mapping[str, object], document["runtime"])
        return cls(
            id=cast(str, document["id"]),
            spec=Spec(**cast(dict[str, str], document["spec"])),  # type: ignore[arg-type]
            shm_of=cast(int, document.get("shm_of", 0)),
            rootfs=_mounts(document["rootfs"]),
            parts=tuple(map(Part.read, parts)),
            user=cast(str, document["user"]),
            group_add=_strings(document["group_add"]),
            tty=bool(document["tty"]),
            open_stdin=bool(document["open_stdin"]),
            stdin_once=bool(document["stdin_once"]),
            console_size=_size(document["console_size"]),
            log=LogSpec(**cast(dict[str, str], document["log"])),  # type: ignore[arg-type]
            runtime=RuntimeSpec(path=cast(str, runtime["path"]), args=_strings(runtime["args"])),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    """A created container, as its creation tells the shim."""

    runtime: Runtime
    identity: Identity  # of init
    groups: Mapping[str, str]
    shared_pids: bool  # init is not the first process of a pid namespace
    tty: bool
    stdin_once: bool
    log: LogSpec
    stdio: tuple[int, ...] = ()  # what the fds that come along are: 0 for stdin, a stream's number for the others

    def document(self) -> Document:
        return asdict(self)

    @classmethod
    def read(cls, document: Document) -> "Created":
        runtime = cast(dict[str, str], document["runtime"])
        spec = cast(Mapping[str, object], runtime.pop("spec"))
        return cls(
            runtime=Runtime(spec=RuntimeSpec(path=cast(str, spec["path"]), args=_strings(spec["args"])), **runtime),
            identity=Identity(*cast(Sequence[int], document["identity"])),
            groups=cast(dict[str, str], document["groups"]),
            shared_pids=bool(document["shared_pids"]),
            tty=bool(document["tty"]),
            stdin_once=bool(document["stdin_once"]),
            log=LogSpec(**cast(dict[str, str], document["log"])),  # type: ignore[arg-type]
            stdio=tuple(cast(Sequence[int], document["stdio"])),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecRequest:
    id: str
    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    user: str
    group_add: tuple[str, ...]
    capabilities: tuple[str, ...] | None
    tty: bool
    stdin: bool
    streams: frozenset[int]  # that its client wants
    console_size: Size | None
    tied: bool  # killed, with all that comes of it, when its client leaves

    @classmethod
    def read(cls, document: Document) -> "ExecRequest":
        capabilities = document["capabilities"]
        return cls(
            id=cast(str, document["id"]),
            args=_strings(document["args"]),
            env=_strings(document["env"]),
            cwd=cast(str, document["cwd"]),
            user=cast(str, document["user"]),
            group_add=_strings(document["group_add"]),
            capabilities=None if capabilities is None else _strings(capabilities),
            tty=bool(document["tty"]),
            stdin=bool(document["stdin"]),
            streams=chosen_streams(document, tty=bool(document["tty"])),
            console_size=_size(document["console_size"]),
            tied=bool(document.get("tied")),
        )


def describe(exc: Exception) -> Document:
    """An error as it travels: kind and message."""
    if isinstance(exc, WherryError):
        return {"kind": type(exc).__name__, "message": exc.message}
    if isinstance(exc, ProcessLookupError):
        return {"kind": "NotFound", "message": str(exc)}
    return {"kind": "Failed", "message": str(exc)}


def error_of(document: Mapping[str, object]) -> WherryError:
    """The inverse of `describe`."""
    kind = getattr(errors, str(document.get("kind")), Failed)
    return cast(WherryError, kind(document.get("message", "")))


def chosen_streams(document: Document, *, tty: bool) -> frozenset[int]:
    """The output a client asked for, by `stdout` and `stderr`; a terminal has only one."""
    streams = {number for name, number in (("stdout", STDOUT), ("stderr", STDERR)) if document.get(name)}
    return frozenset({STDOUT} if tty and streams else streams)


def _mounts(value: object) -> tuple[Mount, ...]:
    return tuple(
        Mount(
            type=cast(str, each["type"]),
            source=cast(str, each["source"]),
            options=_strings(each["options"]),
        )
        for each in cast(Sequence[Mapping[str, object]], value)
    )


def _strings(value: object) -> tuple[str, ...]:
    return tuple(cast(Sequence[str], value))


def _size(value: object) -> Size | None:
    if not value:
        return None
    height, width = cast(Sequence[int], value)
    return height, width
