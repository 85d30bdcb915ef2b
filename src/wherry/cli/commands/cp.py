"""`cp`: files between a container and here, as tar archives.

Where things land follows cp(1): into a directory that exists, else under the new name; `SRC/.` means the contents.
"""

from __future__ import annotations

import os
import stat
import tarfile

from wherry.cli.command import CLI, Command
from wherry.cli.console import Failure, warn
from wherry.cli.flags import BOOL, Flag, Flags
from wherry.cli.units import human_size
from wherry.client import jsontext
from wherry.client.engine import EngineError, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

CHUNK = 1 << 18  # bytes
GO_DIRECTORY, GO_SYMLINK = 1 << 31, 1 << 27  # bits of Go's file mode
MAX_LINKS = 40

FLAGS = (
    Flag("archive", "a", BOOL, "Archive mode (copy all uid/gid information)"),
    Flag("follow-link", "L", BOOL, "Always follow symbol link in SRC_PATH"),
    Flag("quiet", "q", BOOL, "Suppress progress output during copy"),
)


class Target:
    """Where an archive is unpacked: `directory`, with the first component of every name replaced by `name`."""

    def __init__(self, directory: str, name: str) -> None:
        self.directory = directory
        self.name = name


def split_argument(text: str) -> tuple[str, str]:
    """(container, path); no container for a path that is here."""
    if os.path.isabs(text):
        return "", text
    container, colon, path = text.partition(":")
    if not colon or container.startswith("."):
        return "", text
    return container, path


def is_contents(path: str) -> bool:
    return path == "." or path.endswith("/.")


def asserts_directory(path: str) -> bool:
    return path.endswith("/") or is_contents(path)


def base_name(path: str) -> str:
    return os.path.basename(os.path.normpath(path)) or "/"


def place(source: str, *, source_is_directory: bool, target: str, exists: bool, is_directory: bool) -> Target:
    """By the rules of cp(1). Failure when the kinds do not fit."""
    clean = os.path.normpath(target)
    if exists and is_directory:
        return Target(target, "" if is_contents(source) else base_name(source))
    if exists and source_is_directory:
        raise Failure("cannot copy directory")
    if exists and asserts_directory(target):
        raise Failure("not a directory")
    if not source_is_directory and asserts_directory(target):
        raise Failure("no such directory")
    return Target(os.path.dirname(clean) or ".", os.path.basename(clean))


def renamed(name: str, source_base: str, new: str) -> str:
    """The name of a member when the archive's first component becomes `new`; "" puts the contents directly."""
    name = name.removeprefix("./").rstrip("/")
    if name in (source_base, ".", ""):
        rest = ""
    elif name.startswith(source_base + "/"):
        rest = name[len(source_base) + 1 :]
    else:
        rest = name
    return "/".join(part for part in (new, rest) if part) or "."


def stat_in_container(cli: CLI, container: str, path: str) -> dict[str, Any] | None:
    """The engine's description of the path; None when there is nothing."""
    try:
        with cli.engine.open("HEAD", f"/containers/{quote(container)}/archive", {"path": path}) as call:
            call.response.read()
            return decode_stat(call.response.headers.get("x-docker-container-path-stat", ""))
    except EngineError as exc:
        if exc.status == 404:
            return None
        raise


def decode_stat(header: str) -> dict[str, Any]:
    import binascii

    padded = header + "=" * (-len(header) % 4)
    try:
        described = jsontext.loads(binascii.a2b_base64(padded))
    except (binascii.Error, jsontext.JSONError):
        raise Failure("the engine did not describe the path") from None
    assert isinstance(described, dict)
    return described


def is_go_directory(described: dict[str, Any] | None) -> bool:
    return described is not None and bool(described["mode"] & GO_DIRECTORY)


def follow(cli: CLI, container: str, path: str) -> tuple[str, dict[str, Any] | None]:
    """The path and its description with a final symbolic link resolved."""
    described = stat_in_container(cli, container, path)
    for _ in range(MAX_LINKS):
        if described is None or not described["mode"] & GO_SYMLINK:
            break
        link = str(described["linkTarget"])
        path = link if link.startswith("/") else os.path.join(os.path.dirname(path.rstrip("/")), link)
        described = stat_in_container(cli, container, path)
    return path, described


# From a container


def copy_out(cli: CLI, flags: Flags, container: str, path: str, target: str) -> int:
    wanted = path
    if flags.on("follow-link"):
        wanted, _ = follow(cli, container, path)
    with cli.engine.open("GET", f"/containers/{quote(container)}/archive", {"path": wanted}) as call:
        if target == "-":
            for chunk in call.chunks():
                view = memoryview(chunk)
                while view:
                    view = view[os.write(1, view) :]
            return 0
        described = decode_stat(call.response.headers.get("x-docker-container-path-stat", ""))
        place_at = place(
            path,
            source_is_directory=is_go_directory(described),
            target=target,
            exists=os.path.lexists(target),
            is_directory=os.path.isdir(target),
        )
        if not os.path.isdir(place_at.directory):
            raise Failure(f'invalid output path: directory "{os.path.abspath(place_at.directory)}" does not exist')
        size = unpack(call.chunks(), str(described["name"]), place_at, keep_owner=flags.on("archive"))
    report(flags, size, target)
    return 0


class ChunkReader:
    """A file to read from, over chunks."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""
        self.total = 0

    def read(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size > 0:
            if not self._rest:
                self._rest = next(self._chunks, b"")
                if not self._rest:
                    break
            part, self._rest = self._rest[:size], self._rest[size:]
            parts.append(part)
            size -= len(part)
        data = b"".join(parts)
        self.total += len(data)
        return data


def inside(name: str, directory: str) -> str:
    """The path of `name` below `directory`; raises Failure when it, or a link on its way, leads out."""
    top = os.path.realpath(directory)
    path = os.path.join(top, name)
    parent = os.path.realpath(os.path.dirname(path.rstrip("/")))
    if name.startswith("/") or ".." in name.split("/") or os.path.commonpath([top, parent]) != top:
        raise Failure(f"the archive's entry {name!r} lies outside of {directory}: nothing of it is taken")
    return path


def unpack(chunks: Iterator[bytes], source_base: str, target: Target, *, keep_owner: bool) -> int:
    """Extract below the target's directory and nowhere else; the bytes read."""
    reader = ChunkReader(chunks)
    owner, group = os.geteuid(), os.getegid()
    directories: list[tuple[str, tarfile.TarInfo]] = []
    try:
        with tarfile.open(fileobj=reader, mode="r|") as archive:  # type: ignore[call-overload]
            archive.extraction_filter = lambda member, _: member  # checked below: Pythons before 3.11.4 have no filters
            for member in archive:
                member.name = renamed(member.name, source_base, target.name)
                if member.islnk():
                    member.linkname = renamed(member.linkname, source_base, target.name)
                if not keep_owner:
                    member.uid, member.gid, member.uname, member.gname = owner, group, "", ""
                path = inside(member.name, target.directory)
                if os.path.islink(path):
                    os.unlink(path)  # replaced, never written through
                if member.islnk():
                    inside(member.linkname, target.directory)
                archive.extract(member, target.directory, set_attrs=not member.isdir())
                if member.isdir():
                    directories.append((path, member))
            for path, member in reversed(directories):  # after what is written into them
                os.chmod(path, member.mode & 0o7777)
                os.utime(path, (member.mtime, member.mtime))
    except (tarfile.TarError, OSError) as exc:
        raise Failure(str(exc)) from None
    while reader.read(CHUNK):
        pass
    return reader.total


# To a container


def local_source(path: str, *, follow_link: bool) -> tuple[str, os.stat_result]:
    try:
        if follow_link or asserts_directory(path):
            real = os.path.realpath(path)
            found = os.stat(real)
            if asserts_directory(path) and not stat.S_ISDIR(found.st_mode):
                raise Failure("not a directory")
            return real + ("/." if is_contents(path) else ""), found
        return path, os.lstat(path)
    except OSError as exc:
        raise Failure(f"lstat {os.path.abspath(path)}: {(exc.strerror or '').lower()}") from None


def pack(source: str, name: str) -> Iterator[bytes]:
    """A tar of the file or tree at `source`, called `name` in it ("" for the contents of a directory)."""
    import threading

    read, write = os.pipe()
    failures: list[OSError] = []

    def produce() -> None:
        try:
            with (
                os.fdopen(write, "wb") as pipe,
                tarfile.open(fileobj=pipe, mode="w|", format=tarfile.PAX_FORMAT) as tar,
            ):
                tar.add(source, arcname=name or ".", recursive=True)
        except BrokenPipeError:
            return  # nobody wants the rest
        except OSError as exc:
            failures.append(exc)

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        while data := os.read(read, CHUNK):
            yield data
    finally:
        os.close(read)
        thread.join()
    if failures:
        raise Failure(str(failures[0]))


def copy_in(cli: CLI, flags: Flags, source: str, container: str, path: str) -> int:
    target, described = follow(cli, container, path)
    if described is None:
        target = path
    query = {"noOverwriteDirNonDir": True, "copyUIDGID": flags.on("archive")}
    total = 0

    def counted(chunks: Iterator[bytes]) -> Iterator[bytes]:
        nonlocal total
        for chunk in chunks:
            total += len(chunk)
            yield chunk

    if source == "-":
        if not is_go_directory(described):
            raise Failure(f'destination "{container}:{path}" must be a directory')
        chunks: Iterator[bytes] = iter(lambda: os.read(0, CHUNK), b"")
        place_at = Target(target, "")
    else:
        real, found = local_source(source, follow_link=flags.on("follow-link"))
        place_at = place(
            source,
            source_is_directory=stat.S_ISDIR(found.st_mode),
            target=target,
            exists=described is not None,
            is_directory=is_go_directory(described),
        )
        chunks = pack(real, place_at.name)
    with cli.engine.open(
        "PUT",
        f"/containers/{quote(container)}/archive",
        {**query, "path": place_at.directory},
        data=counted(chunks),
    ) as call:
        for _ in call.chunks():
            pass
    report(flags, total, f"{container}:{path}")
    return 0


def report(flags: Flags, size: int, target: str) -> None:
    quiet = flags.on("quiet") if "quiet" in flags.changed else not os.isatty(1)
    if not quiet:
        warn(f"Successfully copied {human_size(size, 3)} to {target}")


def run(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    if not arguments[0]:
        raise Failure("source can not be empty")
    if not arguments[1]:
        raise Failure("destination can not be empty")
    source_container, source = split_argument(arguments[0])
    target_container, target = split_argument(arguments[1])
    if source_container and target_container:
        raise Failure("copying between containers is not supported")
    if source_container:
        return copy_out(cli, flags, source_container, source, target)
    if target_container:
        return copy_in(cli, flags, source, target_container, target)
    raise Failure("must specify at least one container source")


COMMANDS = {
    "cp": Command(
        "[OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-\n[OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH",
        run,
        flags=FLAGS,
        arguments=(2, 2),
        details=(
            "Copy files/folders between a container and the local filesystem\n\n"
            "Use '-' as the source to read a tar archive from stdin\n"
            "and extract it to a directory destination in a container.\n"
            "Use '-' as the destination to stream a tar archive of a\n"
            "container source to stdout."
        ),
    )
}
