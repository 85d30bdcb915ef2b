"""LLB, the graph that BuildKit's clients write, read into ours; and names for results of ours, written as LLB. Pure.

A definition is a list of encoded operations, inputs before their users; an operation's name is the digest of its bytes,
and the last only says which output is meant. Everything in it is a stranger's: digests are computed and not believed,
and a reference leads backwards only, so there are no cycles. Source: moby/buildkit, solver/pb/ops.proto, attr.go.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError

from wherry import digest as digests
from wherry.builder.graph import (
    NO_INPUT,
    Copy,
    Diff,
    Exec,
    ExecMount,
    Files,
    FileStep,
    GitSource,
    HttpSource,
    ImageSource,
    Limits,
    LocalSource,
    Location,
    MakeDirectory,
    MakeFile,
    MakeSymlink,
    Merge,
    MountKind,
    NetworkMode,
    Op,
    Output,
    Owner,
    Range,
    Remove,
    ResolveMode,
    Sharing,
    TreeSource,
    Ulimit,
    Vertex,
)
from wherry.buildkit import bk_pb2 as pb
from wherry.errors import InvalidParameter, NotSupported
from wherry.reference import parse as parse_reference
from wherry.spec.image import Platform, host_platform, normalize

MAX_OPS = 50_000
MAX_INPUTS = 1000  # of one operation
REFERENCE = "engine-ref://"

T = TypeVar("T")

_MOUNTS = (MountKind.BIND, MountKind.SECRET, MountKind.SSH, MountKind.CACHE, MountKind.TMPFS)  # by number
_SHARING = (Sharing.SHARED, Sharing.PRIVATE, Sharing.LOCKED)
_NETWORKS = (NetworkMode.SANDBOX, NetworkMode.HOST, NetworkMode.NONE)


def define(result_id: str) -> pb.Definition:
    """A definition of a result of ours, for a client that builds on from it."""
    source = pb.Op(source=pb.SourceOp(identifier=REFERENCE + result_id)).SerializeToString(deterministic=True)
    name = digests.of(source)
    last = pb.Op(inputs=[pb.Input(digest=name)]).SerializeToString(deterministic=True)
    metadata: dict[str, pb.OpMetadata] = {name: pb.OpMetadata(), digests.of(last): pb.OpMetadata()}
    return pb.Definition(ops=[source, last], metadata=metadata)


def load(definition: pb.Definition, *, entitlements: frozenset[str] = frozenset()) -> Output | None:
    """The output a definition means; None is the empty tree.

    Raises InvalidParameter for what is no graph, NotSupported for what this engine does not do.
    """
    encoded = list(definition.ops)
    if not encoded:
        return None
    if len(encoded) > MAX_OPS:
        raise InvalidParameter(f"invalid LLB definition: {len(encoded)} operations; the limit is {MAX_OPS}")
    return _Loader(definition, entitlements).load(encoded)


class _Loader:
    def __init__(self, definition: pb.Definition, entitlements: frozenset[str]) -> None:
        self._metadata = definition.metadata
        self._source = definition.source
        self._entitlements = entitlements
        self._vertices: dict[str, Vertex] = {}

    def load(self, encoded: Sequence[bytes]) -> Output | None:
        for raw in encoded[:-1]:
            name, op = digests.of(raw), _decode(raw)
            if name not in self._vertices:
                self._vertices[name] = self._vertex(name, op, self._inputs(op))
        last = _decode(encoded[-1])
        if last.WhichOneof("op") is not None or len(last.inputs) != 1:
            raise InvalidParameter("invalid LLB definition: its last operation must do nothing but name one input")
        return self._inputs(last)[0]

    def _inputs(self, op: pb.Op) -> list[Output]:
        if len(op.inputs) > MAX_INPUTS:
            raise InvalidParameter(f"invalid LLB definition: an operation has {len(op.inputs)} inputs")
        found = []
        for each in op.inputs:
            vertex = self._vertices.get(each.digest)
            if vertex is None:
                raise InvalidParameter(f"invalid LLB definition: input {each.digest[:100]!r} is not defined before use")
            if not 0 <= each.index < MAX_INPUTS:
                raise InvalidParameter(f"invalid LLB definition: there is no output {each.index}")
            found.append(Output(vertex, each.index))
        return found

    def _vertex(self, name: str, op: pb.Op, inputs: list[Output]) -> Vertex:
        metadata = self._metadata[name] if name in self._metadata else pb.OpMetadata()
        ours, used = self._op(op, inputs)
        return Vertex(
            op=ours,
            inputs=tuple(used),
            name=metadata.description.get("llb.customname") or _name(op),
            platform=_platform(op),
            ignore_cache=metadata.ignore_cache,
            location=self._location(name),
        )

    def _op(self, op: pb.Op, inputs: list[Output]) -> tuple[Op, Sequence[Output | None]]:
        match op.WhichOneof("op"):
            case "source":
                return _source(op.source), ()
            case "exec":
                return self._exec(op.exec, len(inputs)), inputs
            case "file":
                return _files(op.file, len(inputs)), inputs
            case "merge":
                return Merge(), [_pick(inputs, each.input) for each in op.merge.inputs]
            case "diff":
                return Diff(), [_pick(inputs, op.diff.lower.input), _pick(inputs, op.diff.upper.input)]
            case "build":
                raise NotSupported("LLB: nested builds (BuildOp) are not supported")
        raise InvalidParameter("invalid LLB definition: an operation does nothing")

    def _exec(self, op: pb.ExecOp, inputs: int) -> Exec:
        network = _among(_NETWORKS, op.network, "network mode")
        if network is NetworkMode.HOST and "network.host" not in self._entitlements:
            raise InvalidParameter("network.host is not allowed")
        if op.security and "security.insecure" not in self._entitlements:
            raise InvalidParameter("security.insecure is not allowed")
        if op.cdi_devices and "device" not in self._entitlements:
            raise InvalidParameter("device is not allowed")
        meta = op.meta
        if not meta.args:
            raise InvalidParameter("arguments are required")
        return Exec(
            args=tuple(meta.args),
            env=tuple(meta.env),
            cwd=meta.cwd or "/",
            user=meta.user,
            hostname=meta.hostname,
            mounts=(*(_mount(each, inputs) for each in op.mounts), *(_secret_env(each) for each in op.secretenv)),
            network=network,
            insecure=op.security == 1,
            extra_hosts=tuple((each.host, each.ip) for each in meta.extra_hosts),
            devices=tuple(("?" if each.optional else "") + each.name for each in op.cdi_devices),
            valid_exit_codes=tuple(meta.valid_exit_codes) or (0,),
            proxies=_proxies(meta.proxy_env),
            limits=Limits(
                ulimits=tuple(Ulimit(each.name, each.soft, each.hard) for each in meta.ulimit),
                cgroup_parent=meta.cgroup_parent,
            ),
        )

    def _location(self, name: str) -> Location | None:
        found = self._source.locations.get(name)
        for each in found.locations if found is not None else ():
            if 0 <= each.source_index < len(self._source.infos):
                info = self._source.infos[each.source_index]
                ranges = tuple(
                    Range(part.start.line, part.end.line or part.start.line, part.start.character + 1)
                    for part in each.ranges
                )
                return Location(info.filename, info.data, ranges)
        return None


def _decode(raw: bytes) -> pb.Op:
    try:
        return pb.Op.FromString(raw)
    except DecodeError:
        raise InvalidParameter("invalid LLB definition: an operation cannot be decoded") from None


def _pick(inputs: Sequence[Output], number: int) -> Output | None:
    """-1 is the empty tree."""
    if number == NO_INPUT:
        return None
    if not 0 <= number < len(inputs):
        raise InvalidParameter(f"invalid LLB definition: there is no input {number}")
    return inputs[number]


def _number(value: int, limit: int, what: str) -> int:
    if not -1 <= value < limit:
        raise InvalidParameter(f"invalid LLB definition: there is no {what} {value}")
    return value


def _among(choices: Sequence[T], number: int, what: str) -> T:
    if not 0 <= number < len(choices):
        raise InvalidParameter(f"invalid LLB definition: unknown {what} {number}")
    return choices[number]


def _platform(op: pb.Op) -> Platform:
    if not op.HasField("platform") or not op.platform.architecture:
        return host_platform()
    given = op.platform
    return normalize(
        Platform(
            os=given.os or "linux",
            architecture=given.architecture,
            variant=given.variant,
            os_version=given.os_version,
        )
    )


def _name(op: pb.Op) -> str:
    """As BuildKit names what nobody has named."""
    match op.WhichOneof("op"):
        case "source":
            return op.source.identifier
        case "exec":
            return " ".join(op.exec.meta.args)
        case "file":
            return ", ".join(_action_name(each) for each in op.file.actions)
        case kind:
            return str(kind)


def _action_name(action: pb.FileAction) -> str:
    match action.WhichOneof("action"):
        case "copy":
            return f"copy {action.copy.src} {action.copy.dest}"
        case "mkfile":
            return f"mkfile {action.mkfile.path}"
        case "mkdir":
            return f"mkdir {action.mkdir.path}"
        case "rm":
            return f"rm {action.rm.path}"
        case "symlink":
            return f"symlink {action.symlink.oldpath} -> {action.symlink.newpath}"
    return "file"


# --- sources ----------------------------------------------------------------------------------------------------------


def _source(op: pb.SourceOp) -> Op:
    scheme, separator, rest = op.identifier.partition("://")
    attrs = dict(op.attrs)
    if not separator or not rest:
        raise InvalidParameter(f"invalid source {op.identifier[:200]!r}: want scheme://name")
    match scheme:
        case "docker-image":
            return _image(rest, attrs)
        case "oci-layout":
            name, _, _ = rest.partition("@")
            return ImageSource(
                reference=rest,
                digest=digests.parse(rest.partition("@")[2]),
                store=attrs.get("oci.store") or name,
            )
        case "local":
            return LocalSource(
                name=rest,
                session=attrs.get("local.session", attrs.get("local.sessionid", "")),
                include=_texts(attrs, "local.includepattern"),
                exclude=_texts(attrs, "local.excludepatterns"),
                follow=_texts(attrs, "local.followpaths"),
                shared_key=attrs.get("local.sharedkeyhint", ""),
            )
        case "git":
            return _git(rest, attrs)
        case "http" | "https":
            return _http(op.identifier, attrs)
        case "engine-ref":
            return TreeSource(id=rest)
    raise NotSupported(f"LLB: sources of the scheme {scheme[:50]}:// are not supported")


def _image(reference: str, attrs: Mapping[str, str]) -> ImageSource:
    if attrs.get("image.layerlimit"):
        raise NotSupported("LLB: image.layerlimit is not supported")
    found = parse_reference(reference)
    checksum = attrs.get("image.checksum", "")
    try:
        mode = ResolveMode(attrs.get("image.resolvemode") or "default")
    except ValueError:
        raise InvalidParameter(f"invalid image.resolvemode {attrs['image.resolvemode'][:50]!r}") from None
    return ImageSource(
        reference=str(found.tagged()),
        digest=digests.parse(checksum) if checksum else found.digest,
        mode=mode,
    )


def _git(rest: str, attrs: Mapping[str, str]) -> GitSource:
    remote, _, fragment = rest.partition("#")
    ref, _, subdirectory = fragment.partition(":")
    full = attrs.get("git.fullurl", "").partition("#")[0]
    return GitSource(
        remote=full or (remote if "://" in remote or "@" in remote.partition("/")[0] else f"https://{remote}"),
        ref=ref,
        subdirectory=subdirectory,
        keep_git_directory=attrs.get("git.keepgitdir") == "true",
        checksum=attrs.get("git.checksum", ""),
        submodules=attrs.get("git.skipsubmodules") != "true",
        auth_token_secret=attrs.get("git.authtokensecret", "GIT_AUTH_TOKEN"),
        auth_header_secret=attrs.get("git.authheadersecret", "GIT_AUTH_HEADER"),
        ssh=attrs.get("git.mountsshsock", ""),
    )


def _http(url: str, attrs: Mapping[str, str]) -> HttpSource:
    checksum = attrs.get("http.checksum", "")
    try:
        return HttpSource(
            url=url,
            filename=attrs.get("http.filename", ""),
            checksum=digests.parse(checksum) if checksum else None,
            mode=int(attrs.get("http.perm") or "600", 8) & 0o7777,
            uid=int(attrs.get("http.uid") or "0"),
            gid=int(attrs.get("http.gid") or "0"),
            auth_header_secret=attrs.get("http.authheadersecret", ""),
        )
    except ValueError:
        raise InvalidParameter(f"invalid attributes of the source {url[:200]}: want numbers") from None


def _texts(attrs: Mapping[str, str], name: str) -> tuple[str, ...]:
    """An attribute that is a JSON list."""
    try:
        found = json.loads(attrs.get(name) or "[]")
    except (ValueError, RecursionError):
        found = None
    if found is None and attrs.get(name) == "null":
        return ()
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise InvalidParameter(f"invalid {name} {attrs[name][:200]!r}: want a JSON list of texts")
    return tuple(found)


# --- steps ------------------------------------------------------------------------------------------------------------


def _mount(mount: pb.Mount, inputs: int) -> ExecMount:
    kind = _among(_MOUNTS, mount.mount_type, "mount type")
    secret = mount.ssh_opt if kind is MountKind.SSH else mount.secret_opt
    cache = mount.cache_opt
    return ExecMount(
        target=mount.dest,
        kind=kind,
        input=_number(mount.input, inputs, "input"),
        selector=mount.selector,
        output=_number(mount.output, MAX_INPUTS, "output"),
        readonly=mount.readonly,
        cache_id=(cache.id or mount.dest) if kind is MountKind.CACHE else "",
        sharing=_among(_SHARING, cache.sharing, "sharing mode of a cache"),
        size=max(0, mount.tmpfs_opt.size),
        secret_id=secret.id or ("default" if kind is MountKind.SSH else ""),
        uid=secret.uid,
        gid=secret.gid,
        mode=secret.mode & 0o7777,
        optional=secret.optional,
    )


def _secret_env(secret: pb.SecretEnv) -> ExecMount:
    return ExecMount(
        target="", kind=MountKind.SECRET, secret_id=secret.id, env=secret.name, optional=secret.optional, readonly=True
    )


def _proxies(env: pb.ProxyEnv) -> tuple[str, ...]:
    values = {
        "HTTP_PROXY": env.http_proxy,
        "HTTPS_PROXY": env.https_proxy,
        "FTP_PROXY": env.ftp_proxy,
        "NO_PROXY": env.no_proxy,
        "ALL_PROXY": env.all_proxy,
    }
    return tuple(f"{each}={value}" for name, value in values.items() if value for each in (name, name.lower()))


def _files(op: pb.FileOp, inputs: int) -> Files:
    if not op.actions:
        raise InvalidParameter("invalid LLB definition: a file operation without actions")
    if len(op.actions) > MAX_INPUTS:
        raise InvalidParameter(f"invalid LLB definition: {len(op.actions)} actions in one file operation")
    steps = [_step(action, inputs + number) for number, action in enumerate(op.actions)]
    return Files(steps=tuple(steps))


def _step(action: pb.FileAction, known: int) -> FileStep:
    kind = action.WhichOneof("action")
    input_ = _number(action.input, known, "input")
    output = _number(action.output, MAX_INPUTS, "output")
    secondary = _number(action.secondary_input, known, "input") if kind == "copy" else NO_INPUT
    match kind:
        case "copy":
            done: Copy | MakeFile | MakeDirectory | MakeSymlink | Remove = _copy(action.copy)
        case "mkfile":
            made = action.mkfile
            done = MakeFile(
                path=made.path,
                data=made.data,
                mode=made.mode & 0o7777,
                owner=_owner(made),
                timestamp=made.timestamp,
            )
        case "mkdir":
            directory = action.mkdir
            done = MakeDirectory(
                path=directory.path,
                mode=directory.mode & 0o7777,
                parents=directory.make_parents,
                owner=_owner(directory),
                timestamp=directory.timestamp,
            )
        case "symlink":
            link = action.symlink
            done = MakeSymlink(old=link.oldpath, new=link.newpath, owner=_owner(link), timestamp=link.timestamp)
        case "rm":
            done = Remove(
                path=action.rm.path, allow_missing=action.rm.allow_not_found, wildcard=action.rm.allow_wildcard
            )
        case _:
            raise InvalidParameter("invalid LLB definition: a file action does nothing")
    return FileStep(action=done, input=input_, secondary=secondary, output=output)


def _copy(copy: pb.FileActionCopy) -> Copy:
    mode = copy.mode_str or (f"{copy.mode & 0o7777:o}" if copy.mode >= 0 else "")
    return Copy(
        source=copy.src,
        target=copy.dest,
        owner=_owner(copy),
        mode=mode,
        follow_symlink=copy.follow_symlink,
        contents=copy.dir_copy_contents,
        unpack=copy.attempt_unpack,
        make_target=copy.create_dest_path,
        wildcard=copy.allow_wildcard,
        empty_wildcard=copy.allow_empty_wildcard,
        include=tuple(copy.include_patterns),
        exclude=tuple(copy.exclude_patterns),
        replace=copy.always_replace_existing_dest_paths,
        timestamp=copy.timestamp,
    )


def _owner(
    action: pb.FileActionCopy | pb.FileActionMkFile | pb.FileActionMkDir | pb.FileActionSymlink,
) -> Owner | None:
    if not action.HasField("owner"):
        return None
    return Owner(user=_account(action.owner.user) or "0", group=_account(action.owner.group))


def _account(user: pb.UserOpt) -> str:
    match user.WhichOneof("user"):
        case "by_name":
            return user.by_name.name
        case "by_id":
            return str(user.by_id)
    return ""
