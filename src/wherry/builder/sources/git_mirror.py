"""A bare repository with what was fetched of one remote so far, and work trees made of it.

Kept is a commit without its history, under refs/wherry/<commit>, as soon as it is here whole. A server that hands out
nothing but its refs, or that cannot cut history off, gives what it can.
"""

import contextlib
import os
import re
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from wherry.aio import settle
from wherry.builder.sources.git_program import Git, GitFailed
from wherry.builder.sources.shelf import Draft
from wherry.builder.sources.urls import is_commit
from wherry.errors import Failed, NotFound, Unavailable
from wherry.kernel.files import closing
from wherry.storage.tree import remove_tree, walk

MAX_KEPT = 200  # commits of one mirror; then it is begun anew
_SHORT = re.compile(r"[0-9a-f]{7,63}\Z")
_DEFAULT = re.compile(rb"ref: (refs/heads/\S+)\tHEAD")
_KEPT = "refs/wherry/"
_ABSENT = ("not our ref", "unadvertised object", "couldn't find remote ref", "does not allow request")
_NO_PASSWORD = ("could not read Username", "Authentication failed")
_NO_DEPTH = ("shallow", "--depth")


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """What a ref means at the moment."""

    commit: str
    name: str = ""  # whole, at the remote; "" when it was named by a commit
    tag_object: str = ""  # of an annotated tag


async def look_up(
    git: Git, cwd: Path, ref: str, *, mirror: Callable[[], AbstractAsyncContextManager["Mirror"]]
) -> Named:
    """What `ref` means now: a commit ("" for the remote's HEAD), a branch, a tag, else the beginning of a commit.

    Asked is the remote, but for a whole commit. `mirror` is needed for the beginning of one. Raises NotFound, Failed.
    """
    if is_commit(ref):
        return Named(commit=ref)
    try:
        patterns = (ref, f"{ref}^{{}}") if ref else ("HEAD",)
        out = await git.run("ls-remote", "--symref", "--", git.remote, *patterns, cwd=cwd)
    except GitFailed as exc:
        raise _failed(git, exc) from exc
    found = _refs(out)
    for name in _meanings(ref):
        if name in found:
            peeled = found.get(f"{name}^{{}}", "")
            branch = _DEFAULT.search(out)
            whole = branch[1].decode(errors="replace") if name == "HEAD" and branch else name
            return Named(commit=peeled or found[name], name=whole, tag_object=found[name] if peeled else "")
    if _SHORT.match(ref):
        async with mirror() as everything:
            if commit := await everything.find(ref):
                return Named(commit=commit)
    raise NotFound(f"repository does not contain ref {ref or 'HEAD'}: {git.shown}")


def _meanings(ref: str) -> list[str]:
    """Whole names, the first that there is counts: a branch comes before a tag, as in git checkout."""
    if ref in ("", "HEAD"):
        return ["HEAD"]
    return [
        f"refs/heads/{ref.removeprefix('refs/heads/')}",
        f"refs/tags/{ref.removeprefix('refs/tags/')}",
        f"refs/{ref.removeprefix('refs/')}",
    ]


def _refs(out: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in out.decode(errors="replace").splitlines():
        sha, tab, name = line.partition("\t")
        if tab and is_commit(sha):
            found[name] = sha
    return found


def _failed(git: Git, exc: GitFailed) -> Failed:
    text = f"failed to fetch remote {git.shown}: {exc.message}"
    if any(words in exc.said for words in _NO_PASSWORD):
        text += f" (private? give the build the secret {git.secret or 'GIT_AUTH_TOKEN'})"
    return Failed(text)


class Moved(Unavailable):
    """A ref became another commit between the question what it is and the fetch."""


class Mirror:
    """Of one remote; the caller sees to it that it is used by one at a time."""

    def __init__(self, path: Path, git: Git, ref: str) -> None:
        self._path, self._git, self._ref = path, git, ref

    async def _run(self, *args: str) -> bytes:
        return await self._git.run(*args, cwd=self._path, environment={"GIT_DIR": str(self._path)})

    async def open(self) -> None:
        """Make it, unless it is there and whole."""
        if await settle(self._is_good):
            return
        with contextlib.suppress(FileNotFoundError):
            await settle(remove_tree, self._path)
        self._path.mkdir(mode=0o700)
        await self._run("init", "--quiet", "--bare", "--template=")
        (self._path / "description").write_text(self._git.shown)

    def _is_good(self) -> bool:
        """Marks it as used."""
        kept = self._path / _KEPT
        if not (self._path / "description").is_file() or (kept.is_dir() and len(os.listdir(kept)) > MAX_KEPT):
            return False
        os.utime(self._path)
        for name in ("shallow.lock", "index.lock"):  # of a git that was killed
            (self._path / name).unlink(missing_ok=True)
        return True

    # --- fetching -----------------------------------------------------------------------------------------------------

    async def bring(self, named: Named) -> None:
        """The commit. Raises Moved, NotFound, Failed."""
        if await self._has(named.commit):
            return
        if not named.name:
            await self._fetch_commit(named.commit)
            return
        try:
            await self._fetch(f"+{named.name}:{_KEPT}new")
        except GitFailed as exc:
            raise _failed(self._git, exc) from exc
        if await self._keep(f"{_KEPT}new") != named.commit:
            raise Moved(f"{named.name} of {self._git.shown} became another commit while it was fetched: try again")

    async def find(self, beginning: str) -> str:
        """The commit whose id begins so; "" for none, or several."""
        await self._fetch_everything()
        try:
            return await self._keep(beginning)
        except GitFailed:
            return ""

    async def _has(self, commit: str) -> bool:
        """With all it needs: what was begun and broke off is under no ref of ours."""
        try:
            await self._run("rev-parse", "--verify", "--quiet", f"{_KEPT}{commit}^{{commit}}")
        except GitFailed:
            return False
        return True

    async def _keep(self, what: str) -> str:
        commit = (await self._run("rev-parse", "--verify", "--quiet", f"{what}^{{commit}}")).decode().strip()
        await self._run("update-ref", f"{_KEPT}{commit}", commit)
        return commit

    async def _fetch_commit(self, commit: str) -> None:
        try:
            await self._fetch(f"+{commit}:{_KEPT}new")
        except GitFailed as exc:
            if not any(words in exc.said for words in _ABSENT):
                raise _failed(self._git, exc) from exc
        else:
            await self._keep(f"{_KEPT}new")
            return
        await self._fetch_everything()
        try:
            await self._keep(commit)
        except GitFailed:
            raise NotFound(f"repository does not contain commit {commit}: {self._git.shown}") from None

    async def _fetch_everything(self) -> None:
        shallow = ["--unshallow"] if (self._path / "shallow").exists() else []
        try:
            await self._command(shallow, "+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")
        except GitFailed as exc:
            raise _failed(self._git, exc) from exc

    async def _fetch(self, refspec: str) -> None:
        """One commit without its history, where the server can do that. Raises GitFailed."""
        try:
            await self._command(["--depth=1"], refspec)
        except GitFailed as exc:
            if any(words in exc.said for words in _ABSENT) or not any(words in exc.said for words in _NO_DEPTH):
                raise
            await self._command([], refspec)

    async def _command(self, options: list[str], *refspecs: str) -> None:
        fixed = ("--progress", "--no-tags", "--force", "--no-recurse-submodules", "--no-write-fetch-head")
        await self._run("fetch", *fixed, *options, "--", self._git.remote, *refspecs)

    # --- files --------------------------------------------------------------------------------------------------------

    async def check_out(self, commit: str, draft: Draft, *, keep: bool, tag: str, submodules: bool) -> None:
        """Files of a commit that is here; with `keep` a repository, which has `tag`, the object of an annotated tag."""
        files, own, git = draft.files, draft.files / ".git", self._git
        draft.description = f"git snapshot for {git.shown}#{commit}"

        async def run(*args: str) -> bytes:
            environment = {"GIT_DIR": str(own), "GIT_WORK_TREE": str(files)}
            try:
                return await git.run(*args, cwd=files, environment=environment)
            except GitFailed as exc:
                raise Failed(f"failed to checkout remote {git.shown}: {exc.message}") from exc

        await run("init", "--quiet", "--template=")
        await settle(_borrow, self._path, own)
        await run("remote", "add", "origin", git.remote)
        await run("checkout", "--quiet", "--force", "--detach", commit)
        if submodules and (files / ".gitmodules").is_file():
            await run("submodule", "update", "--init", "--recursive", "--depth=1", "--progress")
        when = int(await run("show", "--no-patch", "--format=%ct", f"{commit}^{{commit}}")) * 1_000_000_000
        if keep:
            if tag:
                await run("update-ref", f"refs/tags/{self._ref.removeprefix('refs/tags/')}", tag)
            await _make_whole(run, own, commit)
        else:
            await settle(_drop_git, files)
        draft.notes["committed"] = str(when)
        await settle(_settle_times, files, when)


async def _make_whole(run: Callable[..., Awaitable[bytes]], own: Path, commit: str) -> None:
    """Objects of its own, and nothing that would be different another time."""
    await run("repack", "-a", "-d", "-q")
    await settle((own / "objects" / "info" / "alternates").unlink)
    for left in ("index", "FETCH_HEAD", "ORIG_HEAD"):
        (own / left).unlink(missing_ok=True)
    await run("read-tree", commit)  # an index that knows nothing of inodes and times


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
    """All is as old as the commit (ns)."""
    with closing(os.open(files, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
        for listing in walk(root):
            for name, _ in listing.entries:
                os.utime(name, ns=(when, when), dir_fd=listing.fd, follow_symlinks=False)
            os.utime(listing.fd, ns=(when, when))
