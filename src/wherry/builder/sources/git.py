"""Git repositories as directories of files.

    <root>/mirrors/<sha256 of remote>/        a bare repository with what was fetched of it so far
    <root>/checkouts/<commit>[-flat][-git-<sha256 of remote and ref>]/    a work tree (see shelf.py); `flat`: without
                                              submodules, `git`: with .git
    <root>/known_hosts                        of ssh, when the build brings none: trusted at the first sight

A checkout is the same on every machine: its files are as old as the commit, their modes do not depend on a umask, and
so is its `.git` where it is kept. Which commit a branch is at is asked each time; a commit that was fetched before is
not fetched again.
"""

import base64
import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from wherry.aio import KeyedLock, settle
from wherry.builder.graph import GitSource
from wherry.builder.sources.git_program import Git, GitFailed, Told, ignore
from wherry.builder.sources.shelf import Draft, Shelf
from wherry.builder.sources.urls import SCHEMES, is_commit, parse_git
from wherry.builder.trees import Directory
from wherry.distribution.proxy import Proxies, masked
from wherry.errors import Failed, InvalidParameter, NotFound
from wherry.kernel.files import closing, openat2
from wherry.storage.tree import remove_tree, walk

Secrets = Callable[[str], Awaitable[bytes | None]]
Agent = Callable[[str], AbstractAsyncContextManager[Path]]  # the socket of an agent of the client's, by its id

_SHORT_COMMIT = re.compile(r"[0-9a-f]{7,63}\Z")
_DEFAULT = re.compile(rb"ref: (refs/heads/\S+)\tHEAD")
_SCOPED = ("https://github.com/", "https://www.github.com/")  # one token serves all repositories there
_KEPT = "refs/wherry/"  # what was fetched, by commit
_ABSENT = ("not our ref", "unadvertised object", "couldn't find remote ref", "does not allow request")
_NO_PASSWORD = ("could not read Username", "Authentication failed")
_NO_DEPTH = ("shallow", "--depth")


async def _no_secret(name: str) -> bytes | None:
    return None


def _no_agent(agent_id: str) -> AbstractAsyncContextManager[Path]:
    raise NotFound(f'no SSH key "{agent_id}" forwarded from the client')


class GitStore:
    """Everything of git below `root` (<data root>/build/git). One of a daemon."""

    def __init__(self, root: Path, *, proxies: Proxies | None = None) -> None:
        """Blocking."""
        self._root = root
        self._proxies = proxies or Proxies()
        self._locks = KeyedLock()
        (root / "mirrors").mkdir(parents=True, exist_ok=True, mode=0o700)
        self.checkouts = Shelf(root / "checkouts")

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
                work = _Remote(self._root / "mirrors", git, source)
                async with self._locks(source.remote):
                    await work.open()
                    commit = await work.commit()
                    _check_sum(source, commit, await work.tag_object())
                    name = _name(source, commit)
                    made = self.checkouts.use(name, lambda draft: work.check_out(commit, draft))
                    thing = await held.enter_async_context(made)
            directory = await settle(_below, thing.files, source)
            committed = int(thing.notes["committed"])
            yield Directory(path=directory, identity=_identity(source, name), newest=committed)

    async def _git(self, source: GitSource, secret: Secrets, agent: Agent, told: Told, session: AsyncExitStack) -> Git:
        known_hosts = self._root / "known_hosts"
        if source.known_ssh_hosts:
            folder = Path(session.enter_context(tempfile.TemporaryDirectory(prefix="git-", dir=self._root)))
            known_hosts = folder / "known_hosts"
            known_hosts.write_text(source.known_ssh_hosts)
        socket = None
        if source.ssh and _is_ssh(source.remote):
            socket = await session.enter_async_context(agent(source.ssh))
        return Git(
            config=await _authorization(source, secret),
            known_hosts=known_hosts,
            agent=socket,
            proxies=self._proxies,
            told=told,
        )

    def mirrors(self) -> list[tuple[Path, int]]:
        """The mirrors and when they were last used, ns (blocking)."""
        return [(path, path.stat().st_mtime_ns) for path in (self._root / "mirrors").iterdir()]

    async def forget(self, mirror: Path) -> None:
        """Remove a mirror: what is wanted of it again is fetched again."""
        remote = await settle(_remote_of, mirror)
        async with self._locks(remote):
            with contextlib.suppress(FileNotFoundError):
                await settle(remove_tree, mirror)


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


def _remote_of(mirror: Path) -> str:
    try:
        return (mirror / "description").read_text()
    except OSError:
        return ""


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


def _check_sum(source: GitSource, commit: str, tag_object: str) -> None:
    wanted = source.checksum.lower()
    if commit.startswith(wanted) or (tag_object and tag_object.startswith(wanted)):
        return
    found = f"{tag_object} or {commit}" if tag_object else commit
    raise InvalidParameter(f"expected checksum to match {wanted}, got {found} ({masked(source.remote)})")


async def _authorization(source: GitSource, secret: Secrets) -> dict[str, str]:
    """git's configuration for the secrets the client has for this host, else for all hosts."""
    if not source.remote.startswith(("http://", "https://")):
        return {}
    host = urlsplit(source.remote).netloc.rpartition("@")[2]
    for suffix in (f".{host}", ""):
        for name, is_token in ((source.auth_header_secret, False), (source.auth_token_secret, True)):
            value = await secret(name + suffix) if name else None
            if value is None:
                continue
            text = value.decode(errors="replace").strip()
            if any(c in text for c in "\0\r\n"):
                raise InvalidParameter(f"secret {name}{suffix} cannot be sent as a header: it has several lines")
            if is_token:
                text = "basic " + base64.b64encode(f"x-access-token:{text}".encode()).decode()
            scope = next((scope for scope in _SCOPED if source.remote.startswith(scope)), source.remote)
            return {f"http.{scope}.extraheader": f"Authorization: {text}"}
    return {}


class _Remote:
    """One remote, while its mirror is locked."""

    def __init__(self, mirrors: Path, git: Git, source: GitSource) -> None:
        self._git, self._source = git, source
        self._mirror = mirrors / hashlib.sha256(source.remote.encode()).hexdigest()
        self._shown = masked(source.remote)
        self._tag_object = ""

    async def _run(self, *args: str, **more: str) -> bytes:
        try:
            return await self._git.run(*args, cwd=self._mirror, environment={"GIT_DIR": str(self._mirror), **more})
        except GitFailed as exc:
            exc.args = (exc.message.replace(self._source.remote, self._shown),)
            raise

    async def open(self) -> None:
        """Make the mirror, unless it is there and whole."""
        if (self._mirror / "description").is_file():
            await settle(os.utime, self._mirror)
            for name in ("shallow.lock", "index.lock"):  # of a git that was killed
                (self._mirror / name).unlink(missing_ok=True)
            return
        with contextlib.suppress(FileNotFoundError):
            await settle(remove_tree, self._mirror)
        self._mirror.mkdir(mode=0o700)
        await self._run("init", "--quiet", "--bare", "--template=")
        (self._mirror / "description").write_text(self._source.remote)

    # --- which commit -------------------------------------------------------------------------------------------------

    async def commit(self) -> str:
        """What the source's ref means now, fetched."""
        ref = self._source.ref
        if is_commit(ref):
            return ref if await self._has(ref) else await self._fetch_commit(ref)
        name, said = await self._look_up(ref)
        if not name:
            if _SHORT_COMMIT.match(ref) and (found := await self._find_short(ref)):
                return found
            raise NotFound(f"repository does not contain ref {ref or 'HEAD'}: {self._shown}")
        if not await self._has(said):
            said = await self._fetch_ref(name)
        return said

    async def tag_object(self) -> str:
        """Of an annotated tag: a checksum may name it in place of the commit."""
        return self._tag_object

    async def _look_up(self, ref: str) -> tuple[str, str]:
        """The whole name of `ref` at the remote, and its commit; a branch comes before a tag, as in git checkout."""
        try:
            out = await self._run(
                "ls-remote", "--symref", "--", self._source.remote, *([ref, f"{ref}^{{}}"] if ref else ["HEAD"])
            )
        except GitFailed as exc:
            raise self._failed(exc) from exc
        if not ref:
            match = _DEFAULT.search(out)
            name = match[1].decode(errors="replace") if match else "HEAD"
            found = _refs(out)
            return (name, found["HEAD"]) if "HEAD" in found else ("", "")
        found = _refs(out)
        for name in (
            f"refs/heads/{ref.removeprefix('refs/heads/')}",
            f"refs/tags/{ref.removeprefix('refs/tags/')}",
            f"refs/{ref.removeprefix('refs/')}",
            "HEAD" if ref == "HEAD" else "",
        ):
            if name in found:
                peeled = found.get(f"{name}^{{}}", "")
                self._tag_object = found[name] if peeled else ""
                return name, peeled or found[name]
        return "", ""

    async def _has(self, commit: str) -> bool:
        """With all it needs: what was begun and broke off is under no ref of ours."""
        try:
            await self._run("rev-parse", "--verify", "--quiet", f"{_KEPT}{commit}^{{commit}}")
        except GitFailed:
            return False
        return True

    # --- fetching -----------------------------------------------------------------------------------------------------

    async def _fetch_ref(self, name: str) -> str:
        """Its commit, which since it was looked up may have become another one."""
        await self._fetch(f"+{name}:{_KEPT}new")
        return await self._keep(f"{_KEPT}new")

    async def _fetch_commit(self, commit: str) -> str:
        try:
            await self._fetch(f"+{commit}:{_KEPT}new")
        except GitFailed as exc:
            if not any(words in exc.said for words in _ABSENT):
                raise self._failed(exc) from exc
            await self._fetch_everything()  # a server that hands out nothing but its refs
            try:
                await self._run("cat-file", "-e", f"{commit}^{{commit}}")
            except GitFailed:
                raise NotFound(f"repository does not contain commit {commit}: {self._shown}") from None
            return await self._keep(commit)
        return await self._keep(f"{_KEPT}new")

    async def _find_short(self, ref: str) -> str:
        await self._fetch_everything()
        try:
            return await self._keep(ref)
        except GitFailed:
            return ""

    async def _keep(self, what: str) -> str:
        commit = (await self._run("rev-parse", "--verify", "--quiet", f"{what}^{{commit}}")).decode().strip()
        await self._run("update-ref", f"{_KEPT}{commit}", commit)
        return commit

    async def _fetch_everything(self) -> None:
        shallow = ["--unshallow"] if (self._mirror / "shallow").exists() else []
        try:
            await self._command(*shallow, "+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")
        except GitFailed as exc:
            raise self._failed(exc) from exc

    async def _fetch(self, refspec: str) -> None:
        """One commit without its history, where the server can do that."""
        try:
            await self._command("--depth=1", refspec)
        except GitFailed as exc:
            if any(words in exc.said for words in _ABSENT):
                raise
            if not any(words in exc.said for words in _NO_DEPTH):
                raise self._failed(exc) from exc
            try:
                await self._command(refspec)
            except GitFailed as again:
                if any(words in again.said for words in _ABSENT):
                    raise
                raise self._failed(again) from again

    async def _command(self, *args: str) -> None:
        options = [each for each in args if each.startswith("--")]
        specs = [each for each in args if not each.startswith("--")]
        await self._run(
            "fetch",
            "--progress",
            "--no-tags",
            "--force",
            "--no-recurse-submodules",
            "--no-write-fetch-head",
            *options,
            "--",
            self._source.remote,
            *specs,
        )

    def _failed(self, exc: GitFailed) -> Failed:
        text = f"failed to fetch remote {self._shown}: {exc.message}"
        if any(words in exc.said for words in _NO_PASSWORD):
            text += f" (private? give the build the secret {self._source.auth_token_secret or 'GIT_AUTH_TOKEN'})"
        return Failed(text)

    # --- files --------------------------------------------------------------------------------------------------------

    async def check_out(self, commit: str, draft: Draft) -> None:
        files, own = draft.files, str(draft.files / ".git")
        draft.description = f"git snapshot for {self._shown}#{commit}"

        async def run(*args: str) -> bytes:
            try:
                return await self._git.run(*args, cwd=files, environment={"GIT_DIR": own, "GIT_WORK_TREE": str(files)})
            except GitFailed as exc:
                raise Failed(
                    f"failed to checkout remote {self._shown}: {exc.message}".replace(self._source.remote, self._shown)
                ) from exc

        await run("init", "--quiet", "--template=")
        await settle(_borrow, self._mirror, files / ".git")
        await run("remote", "add", "origin", self._source.remote)
        await run("checkout", "--quiet", "--force", "--detach", commit)
        if self._source.submodules and (files / ".gitmodules").is_file():
            await run("submodule", "update", "--init", "--recursive", "--depth=1", "--progress")
        when = int(await run("show", "--no-patch", "--format=%ct", commit))
        if _keeps_git(self._source):
            await run("remote", "set-url", "origin", self._shown)
            await self._make_whole(run, files / ".git", commit)
        else:
            await settle(_drop_git, files)
        draft.notes["committed"] = str(when * 1_000_000_000)
        await settle(_settle_times, files, when * 1_000_000_000)

    async def _make_whole(self, run: Callable[..., Awaitable[bytes]], own: Path, commit: str) -> None:
        """Objects and refs of its own, the same each time."""
        name = self._source.ref
        if self._tag_object:
            await run("update-ref", f"refs/tags/{name.removeprefix('refs/tags/')}", self._tag_object)
        await run("repack", "-a", "-d", "-q")
        await settle((own / "objects" / "info" / "alternates").unlink)
        for left in ("index", "FETCH_HEAD", "ORIG_HEAD", "COMMIT_EDITMSG"):
            (own / left).unlink(missing_ok=True)
        await run("read-tree", commit)  # an index that knows nothing of inodes and times


def _refs(out: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in out.decode(errors="replace").splitlines():
        sha, tab, name = line.partition("\t")
        if tab and is_commit(sha):
            found[name] = sha
    return found


def _borrow(mirror: Path, own: Path) -> None:
    """The mirror's objects, not copied; and what it knows of where history is cut off."""
    info = own / "objects" / "info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "alternates").write_text(f"{mirror / 'objects'}\n")
    with contextlib.suppress(FileNotFoundError):
        (own / "shallow").write_bytes((mirror / "shallow").read_bytes())


def _drop_git(files: Path) -> None:
    """The repository, and the files that lead from submodules to theirs."""
    remove_tree(files / ".git")
    with closing(os.open(files, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
        for listing in walk(root):
            if any(name == b".git" for name, _ in listing.entries):
                os.unlink(".git", dir_fd=listing.fd)


def _settle_times(files: Path, when: int) -> None:
    """All is as old as the commit."""
    with closing(os.open(files, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
        for listing in walk(root):
            for name, _ in listing.entries:
                os.utime(name, ns=(when, when), dir_fd=listing.fd, follow_symlinks=False)
            os.utime(listing.fd, ns=(when, when))


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
