"""LLBBridge: how a client has a Dockerfile built within its build, and looks at the results before they are exported.

Results are known by ids; a result carries a definition as well, by which another build can begin from it.
"""

import os
import stat
from fnmatch import fnmatch

import msgspec

from wherry.aio import settle
from wherry.builder.graph import ImageSource, Location, Range, ResolveMode
from wherry.builder.job import Built, BuiltPlatform
from wherry.builder.log import WarningEvent
from wherry.builder.trees import Tree
from wherry.buildkit import bk_pb2 as pb
from wherry.buildkit import capabilities, llb
from wherry.buildkit.builds import Build, Builds, check_frontend
from wherry.buildkit.errors import returned
from wherry.buildkit.modes import to_go
from wherry.buildkit.server import Metadata, Methods, unary
from wherry.buildkit.workers import worker
from wherry.errors import InvalidParameter, NotFound
from wherry.kernel.files import closing, openat2
from wherry.reference import parse as parse_reference
from wherry.spec.engine import ContainerConfig
from wherry.spec.image import Platform, encode_config, host_platform, normalize

BRIDGE = "/moby.buildkit.v1.frontend.LLBBridge/"
BUILD_ID = "buildkit-controlapi-buildid"
CONFIG = "containerimage.config"  # of the metadata of a result
MAX_READ = 16 << 20  # bytes of one answer


class Gateway:
    def __init__(self, builds: Builds) -> None:
        self._builds = builds

    def methods(self) -> Methods:
        return {
            BRIDGE + "Ping": unary(pb.PingRequest, pb.PongResponse, self.ping),
            BRIDGE + "Solve": unary(pb.GwSolveRequest, pb.GwSolveResponse, self.solve),
            BRIDGE + "Return": unary(pb.ReturnRequest, pb.ReturnResponse, self.give_back),
            BRIDGE + "Evaluate": unary(pb.EvaluateRequest, pb.EvaluateResponse, self.evaluate),
            BRIDGE + "Inputs": unary(pb.InputsRequest, pb.InputsResponse, self.inputs),
            BRIDGE + "ReadFile": unary(pb.ReadFileRequest, pb.ReadFileResponse, self.read_file),
            BRIDGE + "ReadDir": unary(pb.ReadDirRequest, pb.ReadDirResponse, self.read_directory),
            BRIDGE + "StatFile": unary(pb.StatFileRequest, pb.StatFileResponse, self.stat_file),
            BRIDGE + "ResolveImageConfig": unary(
                pb.ResolveImageConfigRequest, pb.ResolveImageConfigResponse, self.resolve_image
            ),
            BRIDGE + "ResolveSourceMeta": unary(
                pb.ResolveSourceMetaRequest, pb.ResolveSourceMetaResponse, self.resolve_source
            ),
            BRIDGE + "Warn": unary(pb.WarnRequest, pb.WarnResponse, self.warn),
        }

    async def _build(self, metadata: Metadata) -> Build:
        ref = metadata.get(BUILD_ID, "")
        if not ref:
            raise InvalidParameter("no buildid found in context")
        return await self._builds.get(ref)

    async def ping(self, request: pb.PingRequest, metadata: Metadata) -> pb.PongResponse:
        await self._build(metadata)
        return pb.PongResponse(
            frontend_caps=capabilities.announced(capabilities.FRONTEND),
            llb_caps=capabilities.announced(capabilities.LLB),
            workers=[worker(self._builds.builder.deps)],
        )

    async def solve(self, request: pb.GwSolveRequest, metadata: Metadata) -> pb.GwSolveResponse:
        build = await self._build(metadata)
        if request.frontend:
            check_frontend(request.frontend)
            built = await build.frontend(dict(request.frontend_opt), dict(request.frontend_inputs))
        elif request.definition.ops:
            built = await build.graph(request.definition)
        else:
            built = Built()
        return pb.GwSolveResponse(result=as_result(built))

    async def give_back(self, request: pb.ReturnRequest, metadata: Metadata) -> pb.ReturnResponse:
        build = await self._build(metadata)
        if request.HasField("error"):
            build.give_up(returned(request.error.code, request.error.message, request.error.details))
            return pb.ReturnResponse()
        result = request.result
        match result.WhichOneof("result"):
            case "ref":
                ids = [result.ref.id]
            case "refs":
                ids = [each.id for each in result.refs.refs.values()]
            case "ref_deprecated":
                ids = [result.ref_deprecated]
            case "refs_deprecated":
                ids = list(result.refs_deprecated.refs.values())
            case _:
                ids = []
        build.give_back(build.named([each for each in ids if each], dict(result.metadata)))
        return pb.ReturnResponse()

    async def evaluate(self, request: pb.EvaluateRequest, metadata: Metadata) -> pb.EvaluateResponse:
        """Results are evaluated when they are handed out; so only whether there is one is told."""
        build = await self._build(metadata)
        if request.ref:
            build.result(request.ref)
        return pb.EvaluateResponse()

    async def inputs(self, request: pb.InputsRequest, metadata: Metadata) -> pb.InputsResponse:
        build = await self._build(metadata)
        return pb.InputsResponse(definitions=dict(build.asked.inputs))

    # --- files of results ---------------------------------------------------------------------------------------------

    async def read_file(self, request: pb.ReadFileRequest, metadata: Metadata) -> pb.ReadFileResponse:
        build = await self._build(metadata)
        offset, length = request.range.offset, request.range.length
        async with (await build.job()).solver().opened(build.result(request.ref).output) as root:
            return pb.ReadFileResponse(data=await settle(_read, root, request.file_path, offset, length))

    async def stat_file(self, request: pb.StatFileRequest, metadata: Metadata) -> pb.StatFileResponse:
        build = await self._build(metadata)
        async with (await build.job()).solver().opened(build.result(request.ref).output) as root:
            return pb.StatFileResponse(stat=await settle(_stat, root, request.path))

    async def read_directory(self, request: pb.ReadDirRequest, metadata: Metadata) -> pb.ReadDirResponse:
        build = await self._build(metadata)
        async with (await build.job()).solver().opened(build.result(request.ref).output) as root:
            return pb.ReadDirResponse(entries=await settle(_list, root, request.dir_path, request.include_pattern))

    # --- images -------------------------------------------------------------------------------------------------------

    async def resolve_image(
        self, request: pb.ResolveImageConfigRequest, metadata: Metadata
    ) -> pb.ResolveImageConfigResponse:
        build = await self._build(metadata)
        source = _image(request.ref, request.resolve_mode, request.store_id)
        found = await (await build.job()).sources.resolve(source, _platform(request.platform))
        return pb.ResolveImageConfigResponse(digest=found.digest, config=found.config_raw, ref=found.reference)

    async def resolve_source(
        self, request: pb.ResolveSourceMetaRequest, metadata: Metadata
    ) -> pb.ResolveSourceMetaResponse:
        """Of an image its digest and config; any other source means what it says."""
        build = await self._build(metadata)
        scheme, _, name = request.source.identifier.partition("://")
        if scheme != "docker-image":
            return pb.ResolveSourceMetaResponse(source=request.source)
        found = await (await build.job()).sources.resolve(
            _image(name, request.resolve_mode, ""), _platform(request.platform)
        )
        pinned = pb.SourceOp(identifier=f"docker-image://{found.reference}", attrs=dict(request.source.attrs))
        image = pb.ResolveSourceImageResponse(digest=found.digest, config=found.config_raw)
        return pb.ResolveSourceMetaResponse(source=pinned, image=image)

    async def warn(self, request: pb.WarnRequest, metadata: Metadata) -> pb.WarnResponse:
        build = await self._build(metadata)
        location = Location(
            request.info.filename,
            request.info.data,
            tuple(Range(each.start.line, each.end.line or each.start.line) for each in request.ranges),
        )
        (await build.job()).log.add(
            WarningEvent(
                vertex=request.digest,
                rule="",
                short=request.short.decode(errors="replace"),
                detail=tuple(line.decode(errors="replace") for line in request.detail),
                url=request.url,
                location=location if request.HasField("info") else None,
            )
        )
        return pb.WarnResponse()


def as_result(built: Built) -> pb.GwResult:
    result = pb.GwResult(metadata=dict(built.metadata))
    if not built.platforms:
        return result
    if not built.multi:
        (only,) = built.platforms
        result.ref.CopyFrom(_ref(only))
        result.metadata[CONFIG] = _config(only)
        return result
    listed = []
    for each in built.platforms:
        name = str(each.platform)
        result.refs.refs[name].CopyFrom(_ref(each))
        result.metadata[f"{CONFIG}/{name}"] = _config(each)
        listed.append({"ID": name, "Platform": msgspec.to_builtins(each.platform)})
    result.metadata["refs.platforms"] = msgspec.json.encode({"Platforms": listed})
    return result


def _config(built: BuiltPlatform) -> bytes:
    """The image config that a build from this result begins with; times and the final history are the export's."""
    target, tree = built.target, built.result
    return encode_config(
        config=target.config if target is not None else ContainerConfig(),
        platform=built.platform,
        diff_ids=[layer.diff_id for layer in tree.layers] if isinstance(tree, Tree) else [],
        history=[entry.history for entry in target.history] if target is not None else [],
        created="",
        author=target.author if target is not None else "",
    )


def _ref(built: BuiltPlatform) -> pb.GwRef:
    return pb.GwRef(id=built.id, definition=llb.define(built.id))


def _platform(given: pb.Platform) -> Platform:
    if not given.architecture:
        return host_platform()
    return normalize(Platform(os=given.os or "linux", architecture=given.architecture, variant=given.variant))


def _image(reference: str, mode: str, store: str) -> ImageSource:
    found = parse_reference(reference).tagged()
    try:
        wanted = ResolveMode(mode or "default")
    except ValueError:
        raise InvalidParameter(f"invalid resolve mode {mode[:50]!r}") from None
    return ImageSource(reference=str(found), digest=found.digest, mode=wanted, store=store)


# --- reading beneath a root; blocking ---------------------------------------------------------------------------------


def _open(root: int, path: str, flags: int) -> int:
    try:
        return openat2(root, path.lstrip("/") or ".", flags)
    except OSError as exc:
        kind = NotFound if isinstance(exc, FileNotFoundError | NotADirectoryError) else InvalidParameter
        raise kind(f"open {path}: {(exc.strerror or str(exc)).lower()}") from exc


def _read(root: int, path: str, offset: int, length: int) -> bytes:
    """`length` 0: to the end."""
    if offset < 0 or length < 0:
        raise InvalidParameter(f"read {path}: invalid range")
    with closing(_open(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)) as fd:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise InvalidParameter(
                f"read {path}: is a directory" if stat.S_ISDIR(info.st_mode) else f"read {path}: no file"
            )
        size = max(0, info.st_size - offset)
        size = min(size, length) if length else size
        if size > MAX_READ:
            raise InvalidParameter(f"read {path}: more than {MAX_READ >> 20} MiB at once: ask for a range")
        return os.pread(fd, size, offset)


def _stat(root: int, path: str) -> pb.Stat:
    with closing(_open(root, path, os.O_PATH)) as fd:
        return _as_stat(os.path.basename(path.rstrip("/")) or "/", os.fstat(fd), "")


def _list(root: int, path: str, pattern: str) -> list[pb.Stat]:
    with closing(_open(root, path, os.O_RDONLY | os.O_DIRECTORY)) as fd:
        found = []
        for name in sorted(os.listdir(fd)):
            if pattern and not fnmatch(name, pattern):
                continue
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            link = os.readlink(name, dir_fd=fd) if stat.S_ISLNK(info.st_mode) else ""
            found.append(_as_stat(name, info, link))
        return found


def _as_stat(name: str, info: os.stat_result, link: str) -> pb.Stat:
    return pb.Stat(
        path=name.encode(errors="replace").decode(),
        mode=to_go(info.st_mode),
        uid=info.st_uid,
        gid=info.st_gid,
        size=info.st_size if stat.S_ISREG(info.st_mode) else 0,
        mod_time=info.st_mtime_ns,
        linkname=link.encode(errors="replace").decode(),
    )
