"""Git repositories as directories of files.

    <root>/checkouts/<commit>[-flat][-git-<sha256 of remote and ref>]/    a work tree (see shelf.py); `flat`: without
                                              submodules, `git`: with .git
    <root>/mirrors/<sha256 of remote>/        a bare repository with what was fetched of it so far (git_mirror.py)
    <root>/known_hosts                        of ssh, when the build brings none: trusted at the first sight

A checkout is the same on every machine: its files are as old as the commit, their modes do not depend on a umask, and
so is its `.git` where it is kept. Which commit a branch is at is asked each time; a commit whose checkout is here needs
neither its server nor its mirror.
"""

import base64
import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from wherry.aio import KeyedLock, settle
from wherry.builder.graph import GitSource
from wherry.builder.sources.git_mirror import Mirror, Moved, Named, look_up
from wherry.builder.sources.git_program import Git, Told, ignore
from wherry.builder.sources.shelf import Draft, Entry, Shelf, Thing
from wherry.builder.sources.urls import SCHEMES, parse_git
from wherry.builder.trees import Directory
from wherry.distribution.proxy import Proxies, masked
from wherry.errors import InvalidParameter, NotFound
from wherry.kernel.files import closing, openat2
from wherry.storage.tree import measure, remove_tree

Secrets = Callable[[str], Awaitable[bytes | None]]
Agent = Callable[[str], AbstractAsyncContextManager[Path]]  # the socket of an agent of the client's, by its id

MIRROR = "mirror-"  # beginning of the names of mirrors among `entries`
_TRIES = 5  # when a branch moves between the question where it is and the fetch
_SCOPED = ("https://github.com/", "https://www.github.com/")  # one token serves all repositories there


async def _no_secret(name: str) -> bytes | None:
    return None


def _no_agent(agent_id: str) -> AbstractAsyncContextManager[Path]:
    raise NotFound(f'no SSH key "{agent_id}" forwarded from the client')


class GitStore:
    """Everything of git below `root` (<data root>/build/git). One of a daemon."""

    def __init__(self, root: Path, *, proxies: Proxies | None = None) -> None:
        """Blocking."""
        self._root = root
        self._mirrors = root / "mirrors"
        self._proxies = proxies or Proxies()
        self._locks = KeyedLock()
        self._fetching: set[str] = set()  # names of mirrors
        self._mirrors.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._checkouts = Shelf(root / "checkouts")

    @asynccontextmanager
    async def fetch(
        self, source: GitSource, *, secret: Secrets = _no_secret, agent: Agent = _no_agent, told: Told = ignore
    ) -> AsyncIterator[Directory]:
        """The files of `source`, which stay unchanged for the time of the block. `told` is shown what git says.

        Raises InvalidParameter for what can never be fetched, NotFound for a ref or directory that is not there, Failed
        with git's words.
        """
        _check(source)
        async with AsyncExitStack() as held:
            async with AsyncExitStack() as session:
                git = await self._git(source, secret, agent, told, session)
                name, thing = await self._held(source, git, held)
            directory = await settle(_below, thing.files, source)
            committed = int(thing.notes["committed"])
            yield Directory(path=directory, identity=_identity(source, name), newest=committed)

    async def _held(self, source: GitSource, git: Git, held: AsyncExitStack) -> tuple[str, Thing]:
        """The checkout and its name; it stays until `held` is closed."""
        tries = 0
        while True:
            named = await look_up(git, self._root, source.ref, mirror=lambda: self._mirror(source, git))
            _check_sum(source, named)
            name = _name(source, named.commit)
            made = self._checkouts.use(name, partial(self._check_out, source, git, named))
            try:
                return name, await held.enter_async_context(made)
            except Moved:
                tries += 1
                if tries == _TRIES:
                    raise

    async def _check_out(self, source: GitSource, git: Git, named: Named, draft: Draft) -> None:
        keep = _keeps_git(source)
        async with self._mirror(source, git) as mirror:
            await mirror.bring(named)
            tag = named.tag_object if keep else ""
            await mirror.check_out(named.commit, draft, keep=keep, tag=tag, submodules=source.submodules)

    @asynccontextmanager
    async def _mirror(self, source: GitSource, git: Git) -> AsyncIterator[Mirror]:
        """The remote's mirror, for nobody else."""
        name = hashlib.sha256(source.remote.encode()).hexdigest()
        async with self._locks(name):
            self._fetching.add(name)
            try:
                mirror = Mirror(self._mirrors / name, git, source.ref)
                await mirror.open()
                yield mirror
            finally:
                self._fetching.discard(name)

    async def _git(self, source: GitSource, secret: Secrets, agent: Agent, told: Told, session: AsyncExitStack) -> Git:
        known_hosts = self._root / "known_hosts"
        if source.known_ssh_hosts:
            folder = Path(session.enter_context(tempfile.TemporaryDirectory(prefix="git-", dir=self._root)))
            known_hosts = folder / "known_hosts"
            known_hosts.write_text(source.known_ssh_hosts)
        socket = None
        if source.ssh and _is_ssh(source.remote):
            socket = await session.enter_async_context(agent(source.ssh))
        remote, password = _split(source.remote)
        return Git(
            remote=remote,
            shown=masked(source.remote),
            secret=source.auth_token_secret,
            config=await _authorization(source, remote, secret) or password,
            known_hosts=known_hosts,
            strict=bool(source.known_ssh_hosts),
            agent=socket,
            proxies=self._proxies,
            told=told,
        )

    # --- upkeep -------------------------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """Checkouts and mirrors (blocking)."""
        return [*self._checkouts.entries(), *map(self._describe, self._mirrors.iterdir())]

    def _describe(self, mirror: Path) -> Entry:
        found = mirror.stat()
        with contextlib.suppress(OSError):
            return Entry(
                name=f"{MIRROR}{mirror.name}",
                description=f"shared git repo for {(mirror / 'description').read_text()}",
                size=measure(mirror).bytes,
                used=found.st_mtime_ns,
                created=found.st_ctime_ns,
                in_use=mirror.name in self._fetching,
            )
        return Entry(name=f"{MIRROR}{mirror.name}", size=0, used=0, created=0, in_use=mirror.name in self._fetching)

    async def remove(self, name: str) -> int:
        """The bytes that were freed; 0, and it stays, when it is in use or not there."""
        if not name.startswith(MIRROR):
            return await self._checkouts.remove(name)
        mirror = self._mirrors / name.removeprefix(MIRROR)
        if mirror.name in self._fetching or mirror.parent != self._mirrors:
            return 0
        async with self._locks(mirror.name):
            return await settle(_remove, mirror)


def _remove(mirror: Path) -> int:
    try:
        size = measure(mirror).bytes
        remove_tree(mirror)
    except FileNotFoundError:
        return 0
    return size


# --- what is asked for ------------------------------------------------------------------------------------------------


def _keeps_git(source: GitSource) -> bool:
    """As in BuildKit, a directory of the repository is no repository."""
    return source.keep_git_directory and _clean(source.subdirectory) == ""


def _name(source: GitSource, commit: str) -> str:
    """Of a checkout: what its files depend on."""
    name = commit if source.submodules else f"{commit}-flat"
    if _keeps_git(source):
        name += "-git-" + hashlib.sha256(f"{source.remote}\0{source.ref}".encode()).hexdigest()[:16]
    return name


def _identity(source: GitSource, name: str) -> str:
    subdirectory = _clean(source.subdirectory)
    return f"git:{name}:{subdirectory}" if subdirectory else f"git:{name}"


def _clean(subdirectory: str) -> str:
    """Without leaving the repository."""
    return os.path.normpath("/" + subdirectory).lstrip("/")


def _is_ssh(remote: str) -> bool:
    return "://" not in remote or remote.startswith("ssh://")


def _check(source: GitSource) -> None:
    shown = masked(source.remote)
    scheme, separator, _ = source.remote.partition("://")
    good = scheme in SCHEMES if separator else parse_git(source.remote) is not None
    if not good or any(character in source.remote for character in "\0\n\r") or source.remote.startswith("-"):
        raise InvalidParameter(
            f"{shown[:200]!r} is no git repository: want http(s)://, ssh://, git:// or user@host:path"
        )
    ref = source.ref
    bad = ref.startswith("-") or ".." in ref or "@{" in ref or any(c <= " " or c in "~^:?*[\\\x7f" for c in ref)
    if bad or len(ref) > 1000:
        raise InvalidParameter(f"invalid git ref {ref[:200]!r} of {shown}")
    if source.checksum and not re.fullmatch(r"[0-9a-fA-F]{7,64}", source.checksum):
        raise InvalidParameter(
            f"invalid checksum {source.checksum[:100]!r} for {shown}: want the commit id, or at least 7 digits of it"
        )


def _check_sum(source: GitSource, named: Named) -> None:
    wanted, commit, tag = source.checksum.lower(), named.commit, named.tag_object
    if commit.startswith(wanted) or (tag and tag.startswith(wanted)):
        return
    found = f"{tag} or {commit}" if tag else commit
    raise InvalidParameter(f"expected checksum to match {wanted}, got {found} ({masked(source.remote)})")


# --- passwords --------------------------------------------------------------------------------------------------------


def _split(remote: str) -> tuple[str, dict[str, str]]:
    """An http(s) URL without user and password, and git's configuration for them: arguments are no secret."""
    if not remote.startswith(("http://", "https://")):
        return remote, {}
    parts = urlsplit(remote)
    login, at, host = parts.netloc.rpartition("@")
    if not at:
        return remote, {}
    plain = urlunsplit(parts._replace(netloc=host))
    user, _, password = login.partition(":")
    return plain, _basic(plain, f"{unquote(user)}:{unquote(password)}")


def _basic(scope: str, login: str) -> dict[str, str]:
    return _header(scope, "Basic " + base64.b64encode(login.encode()).decode())


def _header(scope: str, value: str) -> dict[str, str]:
    return {f"http.{scope}.extraheader": f"Authorization: {value}"}


async def _authorization(source: GitSource, remote: str, secret: Secrets) -> dict[str, str]:
    """git's configuration for the secrets the client has for this host, else for all hosts."""
    if not remote.startswith(("http://", "https://")):
        return {}
    host = urlsplit(remote).netloc
    scope = next((scope for scope in _SCOPED if remote.startswith(scope)), remote)
    for suffix in (f".{host}", ""):
        for name, is_token in ((source.auth_header_secret, False), (source.auth_token_secret, True)):
            value = await secret(name + suffix) if name else None
            if value is None:
                continue
            text = value.decode(errors="replace").strip()
            if any(c in text for c in "\0\r\n"):
                raise InvalidParameter(f"secret {name}{suffix} cannot be sent as a header: it has several lines")
            return _basic(scope, f"x-access-token:{text}") if is_token else _header(scope, text)
    return {}


# --- files ------------------------------------------------------------------------------------------------------------


def _below(files: Path, source: GitSource) -> Path:
    """The wanted directory: a link may lead to it, and never out of the repository."""
    wanted = _clean(source.subdirectory)
    if not wanted:
        return files
    shown = masked(source.remote)
    try:
        with (
            closing(os.open(files, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as root,
            closing(openat2(root, wanted, os.O_PATH | os.O_DIRECTORY)) as found,
        ):
            return Path(os.readlink(f"/proc/self/fd/{found}"))
    except NotADirectoryError:
        raise InvalidParameter(f"{source.subdirectory!r} of {shown} is no directory") from None
    except OSError as exc:
        raise NotFound(f"subdir {source.subdirectory!r} not found in {shown}: {exc.strerror}") from exc
