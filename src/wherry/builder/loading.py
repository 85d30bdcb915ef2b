"""What a build begins with: its Dockerfile, what it ignores, and its context, wherever they are.

    local           the client's directories `dockerfile` and `context`
    a git URL       a repository; its Dockerfile is in it
    an http URL     an archive with a Dockerfile, or a Dockerfile alone
    an upload       the same, streamed by the client: http://buildkit-session/<id>

The files are the client's: read beneath their directory, whatever their links say.
"""

import os
import stat
from collections.abc import Awaitable, Callable

from wherry.aio import settle
from wherry.builder.dockerfile.frontend import Definition
from wherry.builder.graph import HttpSource, LocalSource, Output, Vertex
from wherry.builder.options import Options
from wherry.builder.solve.solver import Solve
from wherry.builder.sources.urls import is_http, is_upload, parse_git
from wherry.builder.trees import Directory
from wherry.errors import InvalidParameter, NotFound
from wherry.kernel.files import openat2

MAX_FILE = 16 << 20  # bytes of a Dockerfile or of what it ignores
DEFAULT = "Dockerfile"

Unpack = Callable[[str, Directory | None], Awaitable[tuple[Output, bool]]]


async def load(solve: Solve, options: Options, unpack: Unpack) -> tuple[Definition, str]:
    """The definition, and the key in the log of what it was loaded by.

    `unpack(url, file)` gives what an archive holds (`file`, or what is uploaded as `url`) and whether it was no
    archive but a Dockerfile. Raises NotFound in BuildKit's words when there is no Dockerfile.
    """
    filename = options.filename or DEFAULT
    context, alone = options.inputs.get("context"), False
    if options.context:
        context, alone = await _remote(solve, options, unpack)
    if context is not None and not options.local_dockerfile:
        files = options.inputs.get("dockerfile") or context
        filename = DEFAULT if alone else filename
    else:
        files = options.inputs.get("dockerfile") or _local(options, filename)
    async with solve.opened(files) as root:
        data, ignore = await settle(_read_definition, root, filename)
    if ignore is None and context is not None:
        async with solve.opened(context) as root:
            ignore = await settle(read_file, root, ".dockerignore") or b""
    definition = Definition(filename=filename, data=data, ignore=ignore, context=context)
    return definition, solve.shown(files.vertex)


async def ignore_file(solve: Solve, source: LocalSource, *, title: str) -> bytes:
    """`.dockerignore` of a directory of the client's; b"" when it has none."""
    async with solve.opened(Output(Vertex(op=source, name=title))) as root:
        return await settle(read_file, root, ".dockerignore") or b""


def _local(options: Options, filename: str) -> Output:
    name = options.dockerfile_local
    folder, _, base = filename.rpartition("/")
    lower = f"{folder}/{base.lower()}".lstrip("/")
    source = LocalSource(
        name=name,
        session=options.sessions.get(name, ""),
        follow=tuple(dict.fromkeys((filename, f"{filename}.dockerignore", lower))),
        shared_key=options.shared_keys.get(name, name),
    )
    title = f"[internal] load build definition from {filename}"
    return Output(Vertex(op=source, name=title))


async def _remote(solve: Solve, options: Options, unpack: Unpack) -> tuple[Output, bool]:
    """The context a URL names."""
    url = options.context
    if is_upload(url):
        return await unpack(url, None)
    if (git := parse_git(url, context=True)) is not None:
        title = f"[internal] load git source {url}"
        return Output(Vertex(op=git.source(keep_git_directory=_keeps_git(options)), name=title)), False
    if is_http(url):
        title = f"[internal] load remote build context {url}"
        (found,) = await solve.results([Output(Vertex(op=HttpSource(url=url, filename="context"), name=title))])
        assert isinstance(found, Directory)
        return await unpack(url, found)
    raise InvalidParameter(f"unable to prepare context: {url[:200]!r} is neither a directory, a git nor an http URL")


def _keeps_git(options: Options) -> bool:
    return options.build_args.get("BUILDKIT_CONTEXT_KEEP_GIT_DIR", "") in ("1", "true", "True", "TRUE", "t", "T")


def _read_definition(root: int, filename: str) -> tuple[bytes, bytes | None]:
    """The Dockerfile and what lies beside it for it alone."""
    data = read_file(root, filename)
    if data is None and filename == DEFAULT:
        data = read_file(root, DEFAULT.lower())
    if data is None:
        raise NotFound(f"failed to read dockerfile: open {filename}: no such file or directory")
    return data, read_file(root, f"{filename}.dockerignore")


def read_file(root: int, name: str) -> bytes | None:
    """A small file beneath the directory fd `root`; None when there is none."""
    try:
        fd = openat2(root, name.lstrip("/"), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise InvalidParameter(f"cannot read {name}: {(exc.strerror or str(exc)).lower()}") from exc
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise InvalidParameter(f"cannot read {name}: it is no file")
        if found.st_size > MAX_FILE:
            raise InvalidParameter(f"cannot read {name}: it is larger than {MAX_FILE >> 20} MiB")
        return file.read(MAX_FILE)
