"""Which text is a git repository or a web address, and what it says. Pure.

    https://github.com/x/y.git#ref:directory        http(s) is git only when the path ends in .git
    https://github.com/x/y.git?branch=b&subdir=d    also ref, tag, commit (checksum), keep-git-dir, submodules
    git@github.com:x/y.git#ref   ssh://git@host/x   git://host/x
    github.com/x/y                                  short for https, as a context only

The rules are BuildKit's (frontend/dockerfile/dfgitutil).
"""

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from wherry.builder.graph import GitSource
from wherry.distribution.proxy import masked
from wherry.errors import InvalidParameter

MAX_URL = 16 << 10  # characters
SCHEMES = frozenset({"http", "https", "ssh", "git"})
_SCHEME = re.compile(r"([a-zA-Z0-9]+)://")
_SCP = re.compile(r"([a-zA-Z0-9_-]+)@([a-zA-Z0-9.-]+):(.*)\Z", re.DOTALL)
_SHORT = "github.com/"  # indistinguishable from a path: taken in contexts only
_UPLOAD = "http://buildkit-session/"
_TRUE, _FALSE = ("1", "t", "T", "true", "TRUE", "True"), ("0", "f", "F", "false", "FALSE", "False")
_COMMIT = re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64})\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class GitURL:
    """What a git URL says."""

    remote: str  # for git
    ref: str = ""
    subdirectory: str = ""
    checksum: str = ""
    keep_git_directory: bool | None = None  # None: it does not say
    submodules: bool | None = None
    short: bool = False  # `github.com/…`, without a scheme

    @property
    def ssh(self) -> bool:
        return "://" not in self.remote or self.remote.startswith("ssh://")

    def source(self, *, keep_git_directory: bool = False, checksum: str = "") -> GitSource:
        """As an operation. An agent is offered to hosts that are reached by ssh."""
        keep = self.keep_git_directory if self.keep_git_directory is not None else keep_git_directory
        return GitSource(
            remote=self.remote,
            ref=self.ref,
            subdirectory=self.subdirectory,
            keep_git_directory=keep,
            checksum=checksum or self.checksum,
            submodules=self.submodules is not False,
            ssh="default" if self.ssh else "",
        )


def is_commit(ref: str) -> bool:
    """A whole commit id, of SHA-1 or SHA-256."""
    return _COMMIT.match(ref) is not None


def is_http(text: str) -> bool:
    """An address to download from (a git repository may be at it, too: ask `parse_git` first)."""
    return text.startswith(("http://", "https://"))


def is_upload(text: str) -> bool:
    """What BuildKit's clients call the archive they were given on standard input."""
    return text.startswith(_UPLOAD)


def parse_git(text: str, *, context: bool = False) -> GitURL | None:
    """None when `text` is not the URL of a repository; `context`: where `github.com/x/y` is one, too.

    Raises InvalidParameter when it is one, and asks for what there is not.
    """
    if len(text) > MAX_URL or "\0" in text or text.startswith(("./", "../", "-")):
        return None
    if (short := text.startswith(_SHORT)) and not context:
        return None
    if short:
        text = f"https://{text}"
    if (scheme := _SCHEME.match(text)) is not None:
        return _from_url(text, scheme[1].lower(), short) if scheme[1].lower() in SCHEMES else None
    if (match := _SCP.match(text)) is None:
        return None
    user, host, rest = match.groups()
    path, _, fragment = rest.partition("#")
    path, _, query = path.partition("?")
    if not path or host.startswith("-") or user.startswith("-"):
        return None
    return _with(GitURL(remote=f"{user}@{host}:{path}"), query, fragment)


def _from_url(text: str, scheme: str, short: bool) -> GitURL | None:
    try:
        parts = urlsplit(text)
        good = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    if not good or (parts.hostname or "").startswith("-"):
        return None
    if scheme in ("http", "https") and not short and not parts.path.endswith(".git"):
        return None
    remote = urlunsplit(parts._replace(scheme=scheme, query="", fragment=""))
    return _with(GitURL(remote=remote, short=short), parts.query, unquote(parts.fragment))


def _with(url: GitURL, query: str, fragment: str) -> GitURL:
    ref, _, subdirectory = fragment.partition(":")
    said = _Said(masked(url.remote), ref=ref, subdirectory=subdirectory)
    for name, value in _pairs(query):
        said.add(name, value)
    return GitURL(
        remote=url.remote,
        ref=said.final_ref(),
        subdirectory=said.subdirectory,
        checksum=said.checksum,
        keep_git_directory=said.keep,
        submodules=said.submodules,
        short=url.short,
    )


def _pairs(query: str) -> list[tuple[str, str]]:
    if not query:
        return []
    found = parse_qsl(query, keep_blank_values=True, max_num_fields=100)
    names = [name for name, _ in found]
    for name in names:
        if names.count(name) > 1:
            raise InvalidParameter(f"query {_quoted(name)} has multiple values")
    return found


@dataclass(slots=True)
class _Said:
    """What the parts of a URL say, put together; what contradicts each other is refused."""

    remote: str
    ref: str = ""
    subdirectory: str = ""
    checksum: str = ""
    tag: str = ""
    branch: str = ""
    keep: bool | None = None
    submodules: bool | None = None

    def add(self, name: str, value: str) -> None:
        if not value and name not in ("keep-git-dir", "submodules"):
            raise InvalidParameter(f"query {_quoted(name)} has no value")
        match name:
            case "ref":
                self.ref = _same("ref", self.ref, value)
            case "subdir":
                self.subdirectory = _same("subdir", self.subdirectory, value)
            case "tag":
                self.tag = f"refs/tags/{value.removeprefix('refs/tags/')}"
            case "branch":
                self.branch = f"refs/heads/{value.removeprefix('refs/heads/')}"
            case "checksum" | "commit":
                self.checksum = value
            case "keep-git-dir":
                self.keep = _boolean(name, value)
            case "submodules":
                self.submodules = _boolean(name, value)
            case _:
                raise InvalidParameter(
                    f"unexpected query {_quoted(name)} of {self.remote}: want ref, tag, branch, subdir, commit, "
                    "checksum, keep-git-dir or submodules"
                )

    def final_ref(self) -> str:
        if self.tag and self.branch:
            raise InvalidParameter("branch conflicts with tag")
        for named in (self.tag, self.branch):
            if named:
                self.ref = _same("ref", self.ref, named)
        return self.ref or self.checksum


def _same(what: str, before: str, now: str) -> str:
    if before and before != now:
        raise InvalidParameter(f"{what} conflicts: {_quoted(before)} vs {_quoted(now)}")
    return now


def _boolean(name: str, value: str) -> bool:
    if not value or value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise InvalidParameter(f"invalid {name} value: {_quoted(value)}")


def _quoted(text: str) -> str:
    return f'"{text[:200]}"'
