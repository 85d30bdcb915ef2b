"""What a build is made of: operations on file trees, and the graph they form. Pure.

One language for all doors: a Dockerfile is turned into it (`dockerfile/convert.py`), and so is an LLB definition that a
BuildKit client sends. The shapes follow LLB (moby/buildkit, solver/pb/ops.proto), the common ground of both.

    Vertex ── op, inputs: Outputs of other vertices
    Output ── one of a vertex's trees; most have one, number 0
    None in place of an Output is the empty tree ("scratch")

A graph is walked from the outputs that are wanted, so what nobody needs is not there.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from wherry.digest import Digest
from wherry.spec.image import Platform

NO_INPUT = -1  # of a mount or a file action: the empty tree
NO_OUTPUT = -1  # of a mount: what is written to it is dropped


@dataclass(frozen=True, slots=True)
class Range:
    """Lines of a Dockerfile, from 1, both included."""

    start: int
    end: int
    column: int = 0  # of the first line, from 1; 0 = unknown


@dataclass(frozen=True, slots=True)
class Location:
    """Where in the user's file something was said."""

    filename: str
    data: bytes  # of the whole file
    ranges: tuple[Range, ...]


class ResolveMode(enum.StrEnum):
    """When a registry is asked what a reference means."""

    DEFAULT = "default"  # always, falling back on what is held
    LOCAL = "local"  # only when it is not held
    PULL = "pull"  # always


# --- operations -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSource:
    """The file tree of an image. `digest` (of its manifest, resolved before) is what it is known by in the cache."""

    reference: str  # full: docker.io/library/alpine:3.20
    digest: Digest | None = None
    image_id: str = ""  # config digest, when resolved
    mode: ResolveMode = ResolveMode.DEFAULT
    store: str = ""  # of an OCI layout: the client's name of the store ("oci-layout://")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSource:
    """A directory of the client's. The result is a directory of files, no layer."""

    name: str  # context, dockerfile, or a named context's
    session: str = ""  # another session than the build's own has it
    include: tuple[str, ...] = ()  # patterns, evaluated by the client
    exclude: tuple[str, ...] = ()
    follow: tuple[str, ...] = ()
    shared_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GitSource:
    remote: str  # URL as given to git
    ref: str = ""  # branch, tag, commit; "" = the remote's HEAD
    subdirectory: str = ""
    keep_git_directory: bool = False
    checksum: str = ""  # the commit it must be (or begin with)
    submodules: bool = True
    auth_token_secret: str = "GIT_AUTH_TOKEN"
    auth_header_secret: str = "GIT_AUTH_HEADER"
    ssh: str = ""  # id of the ssh agent to offer; "" = none
    known_ssh_hosts: str = ""  # lines of a known_hosts file; "": a host's key is trusted at the first sight


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSource:
    url: str
    filename: str = ""  # "" = from the answer or the URL
    checksum: Digest | None = None
    mode: int = 0o600
    uid: int = 0
    gid: int = 0
    auth_header_secret: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeSource:
    """A result of another build of this daemon, by the id it was handed out under ("engine-ref://")."""

    id: str


class MountKind(enum.StrEnum):
    BIND = "bind"
    CACHE = "cache"
    TMPFS = "tmpfs"
    SECRET = "secret"
    SSH = "ssh"


class Sharing(enum.StrEnum):
    SHARED = "shared"  # many at a time
    PRIVATE = "private"  # another one when it is in use
    LOCKED = "locked"  # wait


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecMount:
    """What a step sees at `target`. The one at "/" is its root file system."""

    target: str
    kind: MountKind = MountKind.BIND
    input: int = NO_INPUT  # index into the vertex's inputs
    selector: str = ""  # path within the input
    output: int = NO_OUTPUT
    readonly: bool = False
    cache_id: str = ""
    sharing: Sharing = Sharing.SHARED
    size: int = 0  # bytes, of a tmpfs; 0 = no limit
    secret_id: str = ""  # of a secret or an ssh agent
    env: str = ""  # the secret goes into this variable instead of a file (target is "" then)
    uid: int = 0
    gid: int = 0
    mode: int = 0  # 0 = the kind's default (secret 0400, ssh 0600, cache 0755)
    optional: bool = False


class NetworkMode(enum.StrEnum):
    SANDBOX = "sandbox"
    HOST = "host"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Ulimit:
    name: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of the cgroup and process of a step; 0 and "" = none. No part of a cache key."""

    memory: int = 0  # bytes
    memory_swap: int = 0  # bytes; -1 = unlimited
    cpu_shares: int = 0
    cpu_period: int = 0  # us
    cpu_quota: int = 0  # us
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    ulimits: tuple[Ulimit, ...] = ()
    cgroup_parent: str = ""
    shm_size: int = 0  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Exec:
    """Run a program. Output n is the tree mounted with `output` n; of a Dockerfile's RUN, 0 is the root."""

    args: tuple[str, ...]
    env: tuple[str, ...] = ()  # NAME=value
    cwd: str = "/"
    user: str = ""
    hostname: str = ""
    mounts: tuple[ExecMount, ...] = ()
    network: NetworkMode = NetworkMode.SANDBOX
    on: str = ""  # in the sandbox: a network that somebody made, instead of the default one; no part of the cache key
    insecure: bool = False
    extra_hosts: tuple[tuple[str, str], ...] = ()  # (name, address)
    devices: tuple[str, ...] = ()  # CDI names or paths, "?" in front = optional
    valid_exit_codes: tuple[int, ...] = (0,)
    proxies: tuple[str, ...] = ()  # NAME=value: in the environment, and no part of the cache key
    limits: Limits = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """User and group by number or by name; a name is looked up in /etc/passwd of the tree written to."""

    user: str = "0"
    group: str = ""  # "" = as the user says: by name its primary group, by number the same number


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """Files of `secondary` into `input`."""

    source: str  # path in the secondary input; may hold wildcards
    target: str  # absolute; with a trailing "/" a directory
    owner: Owner | None = None  # None = as in the source (contexts: 0:0)
    mode: str = ""  # octal ("644"), or symbolic ("u=rwX,go=rX"); "" = as in the source
    follow_symlink: bool = False  # of the source itself, as COPY does
    contents: bool = False  # of a directory: what is in it (COPY dir/ x), not the directory itself
    unpack: bool = False  # a local archive becomes its files (ADD)
    make_target: bool = True  # directories above the target
    wildcard: bool = True
    empty_wildcard: bool = False  # a wildcard may match nothing
    parents: bool = False  # keep the source's directories (--parents)
    several: bool = False  # it is one of several sources of an instruction: a file must come into a directory
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    replace: bool = False  # what stands at the target goes first, whatever its kind
    timestamp: int = -1  # ns; -1 = as in the source


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeFile:
    path: str
    data: bytes
    mode: int = 0o644
    owner: Owner | None = None
    timestamp: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeDirectory:
    path: str
    mode: int = 0o755
    parents: bool = False
    owner: Owner | None = None
    timestamp: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeSymlink:
    old: str
    new: str
    owner: Owner | None = None
    timestamp: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove:
    path: str
    allow_missing: bool = False
    wildcard: bool = False


Action = Copy | MakeFile | MakeDirectory | MakeSymlink | Remove


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStep:
    """One action and what it is done to: numbers below len(inputs) are the vertex's inputs, above it the steps'."""

    action: Action
    input: int = NO_INPUT
    secondary: int = NO_INPUT  # where a Copy takes from
    output: int = NO_OUTPUT


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """File actions, one after the other. Those of a Dockerfile work on input 0 and have output 0.

    `linked`: (COPY --link) the layer does not depend on what is below it; only the first input is left out of the key.
    """

    steps: tuple[FileStep, ...]
    linked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """All inputs, the later over the earlier."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """What input 1 has over input 0."""


Op = ImageSource | LocalSource | GitSource | HttpSource | TreeSource | Exec | Files | Merge | Diff


# --- the graph --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Vertex:
    """One operation. Compared by identity: the graph shares vertices that are the same."""

    op: Op
    inputs: tuple["Output | None", ...] = ()
    name: str = ""  # as progress shows it: "[build 2/5] RUN make"
    platform: Platform = field(default_factory=Platform)  # that a step runs for
    ignore_cache: bool = False
    location: Location | None = None
    slot: str = ""  # the same place in another build of this project: "builder/3"; for explaining misses
    said: str = ""  # the instruction as it stands in the file, variables not yet replaced
    args: Mapping[str, str] = field(default_factory=dict)  # build arguments that the step sees, for explanations


@dataclass(frozen=True, slots=True)
class Output:
    vertex: Vertex
    index: int = 0


def walk(wanted: "list[Output | None]") -> list[Vertex]:
    """Every vertex needed for `wanted`, each once, inputs before their users."""
    order: list[Vertex] = []
    seen: set[int] = set()
    stack = [(output.vertex, False) for output in reversed(wanted) if output is not None]
    while stack:
        vertex, ready = stack.pop()
        if ready:
            order.append(vertex)
        elif id(vertex) not in seen:
            seen.add(id(vertex))
            stack.append((vertex, True))
            stack += [(output.vertex, False) for output in reversed(vertex.inputs) if output is not None]
    return order
