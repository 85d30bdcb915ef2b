"""Git contexts: real repositories, git's own server."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from gitkit import WHEN, Repository, Served, run_git, serve

from wherry.builder.graph import GitSource
from wherry.builder.sources.git import GitStore
from wherry.errors import Failed, InvalidParameter, NotFound, Unavailable, WherryError


@pytest.fixture
def here(tmp_path: Path, require: Callable[..., None]) -> Path:
    require("git")
    (tmp_path / "served").mkdir()
    return tmp_path / "served"


@pytest.fixture
def served(here: Path) -> Iterator[Served]:
    with serve(here) as found:
        yield found


@pytest.fixture
def store(tmp_path: Path) -> GitStore:
    return GitStore(tmp_path / "git")


@pytest.fixture
def repository(here: Path) -> Repository:
    made = Repository(here, "app")
    made.commit({"Dockerfile": "FROM scratch\n", "sub/file": "one"})
    return made


def listing(root: Path) -> dict[str, tuple[int, int]]:
    """Path -> mode and mtime of everything below."""
    return {
        str(path.relative_to(root)): (path.lstat().st_mode, path.lstat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
    }


async def test_the_default_branch_as_files_that_are_as_old_as_the_commit(
    store: GitStore, served: Served, repository: Repository
) -> None:
    commit = repository.commit({"run.sh": "#!/bin/sh\n"})
    (repository.tree / "run.sh").chmod(0o775)
    commit = repository.commit({"link": "x"})
    old = os.umask(0o077)  # of the daemon: nothing may depend on it
    try:
        async with store.fetch(GitSource(remote=served.url(repository))) as found:
            assert found.identity == f"git:{commit}"
            assert (found.path / "Dockerfile").read_text() == "FROM scratch\n"
            assert not (found.path / ".git").exists()
            modes = {name: mode & 0o7777 for name, (mode, _) in listing(found.path).items()}
            assert modes == {"Dockerfile": 0o644, "sub": 0o755, "sub/file": 0o644, "run.sh": 0o755, "link": 0o644}
            assert {mtime for _, mtime in listing(found.path).values()} == {(WHEN + 200) * 10**9}
    finally:
        os.umask(old)


async def test_branches_tags_and_commits(store: GitStore, served: Served, repository: Repository) -> None:
    first = repository.git("rev-parse", "HEAD")
    repository.git("tag", "-a", "-m", "annotated", "v1")
    repository.git("tag", "light")
    second = repository.commit({"sub/file": "two"})
    other = repository.commit({"sub/file": "three"}, branch="feature/x")
    remote = served.url(repository)
    expected = {
        "": second,
        "main": second,
        "refs/heads/main": second,
        "feature/x": other,
        "v1": first,
        "refs/tags/v1": first,
        "light": first,
        first: first,
        first[:9]: first,
        "HEAD": second,
    }
    for ref, commit in expected.items():
        async with store.fetch(GitSource(remote=remote, ref=ref)) as found:
            assert found.identity == f"git:{commit}", ref


async def test_a_branch_comes_before_a_tag_of_its_name(store: GitStore, served: Served, repository: Repository) -> None:
    repository.git("tag", "same")
    second = repository.commit({"sub/file": "two"}, branch="same")
    async with store.fetch(GitSource(remote=served.url(repository), ref="same")) as found:
        assert found.identity == f"git:{second}"


async def test_what_was_fetched_is_not_fetched_again(store: GitStore, served: Served, repository: Repository) -> None:
    remote = served.url(repository)
    async with store.fetch(GitSource(remote=remote)) as one, store.fetch(GitSource(remote=remote, ref="main")) as two:
        assert one.path == two.path
    fetches = served.fetches
    async with store.fetch(GitSource(remote=remote)):
        pass
    assert served.fetches == fetches + 1, "only what the branch is at now was asked"
    commit = repository.git("rev-parse", "HEAD")
    served.log.clear()
    async with store.fetch(GitSource(remote=remote, ref=commit)):
        pass
    assert not served.log, "a commit that is held needs no server"


async def test_a_branch_that_moved_is_followed_and_users_of_the_old_files_keep_them(
    store: GitStore, served: Served, repository: Repository
) -> None:
    source = GitSource(remote=served.url(repository), ref="main")
    async with store.fetch(source) as before:
        repository.commit({"sub/file": "two"})
        async with store.fetch(source) as after:
            assert (before.path / "sub/file").read_text() == "one"
            assert (after.path / "sub/file").read_text() == "two"
            used = [entry for entry in store.entries() if not entry.name.startswith("mirror-")]
            assert [entry.in_use for entry in used] == [True, True]
            assert [await store.remove(entry.name) for entry in used] == [0, 0]
    kept = store.entries()
    assert sorted(entry.description.partition("for")[0] for entry in kept) == [
        "git snapshot ",
        "git snapshot ",
        "shared git repo ",
    ]
    assert [await store.remove(entry.name) for entry in kept] == [entry.size for entry in kept]
    assert not store.entries()
    assert await store.remove("mirror-../checkouts") == 0
    async with store.fetch(source) as again:
        assert (again.path / "sub/file").read_text() == "two"


async def test_a_branch_that_moves_while_it_is_fetched_is_asked_for_again(
    store: GitStore, served: Served, repository: Repository
) -> None:
    def move() -> None:
        if len(served.log) == 3:  # the look-up is two requests
            repository.commit({"sub/file": "moved"})

    def always() -> None:
        repository.commit({"sub/file": str(len(served.log))})

    served.before = move
    async with store.fetch(GitSource(remote=served.url(repository))) as found:
        assert (found.path / "sub/file").read_text() == "moved"
        assert found.identity == f"git:{repository.git('rev-parse', 'HEAD')}"
    assert served.fetches == 4, "what was fetched is what the second look-up found"
    served.before = always
    with pytest.raises(Unavailable, match=r"refs/heads/main of .* became another commit while it was fetched"):
        async with store.fetch(GitSource(remote=served.url(repository))):
            pass


async def test_a_commit_that_no_ref_has_any_more(store: GitStore, served: Served, repository: Repository) -> None:
    remote = served.url(repository)
    lost = repository.commit({"sub/file": "lost"}, branch="b")
    repository.git("checkout", "-q", "main")
    repository.git("branch", "-D", "b")
    repository.git("push", "-q", "origin", ":b")
    repository.git("config", "uploadpack.allowAnySHA1InWant", "true", cwd=repository.bare)
    async with store.fetch(GitSource(remote=remote, ref=lost)) as found:
        assert (found.path / "sub/file").read_text() == "lost"
    with pytest.raises(NotFound, match="repository does not contain commit 0123456789"):
        async with store.fetch(GitSource(remote=remote, ref="0123456789" * 4)):
            pass


async def test_a_part_of_a_repository(store: GitStore, served: Served, repository: Repository) -> None:
    os.symlink("sub", repository.tree / "link")
    os.symlink("/etc", repository.tree / "out")
    os.symlink("../../../../etc", repository.tree / "up")
    commit = repository.commit({"sub/deep/file": "deep"})
    remote = served.url(repository)
    async with store.fetch(GitSource(remote=remote, subdirectory="/sub/../sub/deep/")) as found:
        assert found.identity == f"git:{commit}:sub/deep"
        assert [path.name for path in found.path.iterdir()] == ["file"]
    async with store.fetch(GitSource(remote=remote, subdirectory="link/deep")) as found:
        assert [path.name for path in found.path.iterdir()] == ["file"]
    for outside in ("out", "up", "nowhere"):
        with pytest.raises(NotFound, match=f"subdir '{outside}' not found"):
            async with store.fetch(GitSource(remote=remote, subdirectory=outside)):
                pass
    with pytest.raises((InvalidParameter, NotFound), match="Dockerfile"):
        async with store.fetch(GitSource(remote=remote, subdirectory="Dockerfile")):
            pass
    async with store.fetch(GitSource(remote=remote, subdirectory="../..")) as found:
        assert (found.path / "Dockerfile").exists(), "above the repository is the repository"


async def test_the_git_directory_is_kept_when_asked_and_is_the_same_each_time(
    tmp_path: Path, served: Served, repository: Repository
) -> None:
    repository.git("tag", "-a", "-m", "annotated", "v1")
    repository.push()
    commit = repository.git("rev-parse", "HEAD")
    source = GitSource(remote=served.url(repository), ref="v1", keep_git_directory=True)
    contents = []
    for name in ("one", "two"):
        async with GitStore(tmp_path / name).fetch(source) as found:
            assert found.identity.startswith(f"git:{commit}-git-")
            asked = ("rev-parse HEAD", "describe", "status --porcelain", "fsck", "remote get-url origin")
            said = [run_git("-c", "safe.directory=*", *each.split(), cwd=found.path) for each in asked]
            assert said == [commit, "v1", "", "", served.url(repository)]
            files = {str(p.relative_to(found.path)): p.read_bytes() for p in found.path.rglob("*") if p.is_file()}
            files.pop(".git/index")  # `git status` wrote the times of the files into it
            contents.append((files, {k: v for k, v in listing(found.path).items() if k not in (".git", ".git/index")}))
        await asyncio.sleep(0)
    assert contents[0] == contents[1]


async def test_a_checksum_is_the_commit_or_the_tag(store: GitStore, served: Served, repository: Repository) -> None:
    repository.git("tag", "-a", "-m", "annotated", "v1")
    repository.push()
    commit, tag = repository.git("rev-parse", "HEAD"), repository.git("rev-parse", "v1")
    remote = served.url(repository)
    for good in (commit, commit[:12], tag):
        async with store.fetch(GitSource(remote=remote, ref="v1", checksum=good)):
            pass
    with pytest.raises(InvalidParameter, match=rf"expected checksum to match {'0' * 40}, got {tag} or {commit}"):
        async with store.fetch(GitSource(remote=remote, ref="v1", checksum="0" * 40)):
            pass
    with pytest.raises(InvalidParameter, match="invalid checksum 'no'"):
        async with store.fetch(GitSource(remote=remote, ref="v1", checksum="no")):
            pass


async def test_submodules_come_along_unless_not_wanted(
    store: GitStore, here: Path, served: Served, repository: Repository
) -> None:
    inner = Repository(here, "inner")
    inner.commit({"inside": "i"})
    repository.git("submodule", "add", "-q", str(inner.bare), "module")
    (repository.tree / ".gitmodules").write_text('[submodule "module"]\n\tpath = module\n\turl = ../inner.git\n')
    commit = repository.commit({})
    remote = served.url(repository)
    async with store.fetch(GitSource(remote=remote)) as found:
        assert (found.path / "module/inside").read_text() == "i"
        assert not (found.path / "module/.git").exists()
        assert found.identity == f"git:{commit}"
    async with store.fetch(GitSource(remote=remote, submodules=False)) as found:
        assert not (found.path / "module/inside").exists()
        assert found.identity == f"git:{commit}-flat"


async def test_a_submodule_of_the_machines_own_files_is_refused(
    store: GitStore, here: Path, served: Served, repository: Repository
) -> None:
    inner = Repository(here, "inner")
    inner.commit({"inside": "i"})
    repository.git("submodule", "add", "-q", str(inner.bare), "module")
    repository.commit({})
    for url in (f"file://{inner.bare}", str(inner.bare)):
        (repository.tree / ".gitmodules").write_text(f'[submodule "module"]\n\tpath = module\n\turl = {url}\n')
        repository.commit({})
        with pytest.raises(Failed, match="transport 'file' not allowed"):
            async with store.fetch(GitSource(remote=served.url(repository))):
                pass
    assert all(entry.name.startswith("mirror-") for entry in store.entries())


async def test_a_server_of_plain_files(store: GitStore, here: Path, repository: Repository) -> None:
    repository.commit({"sub/file": "two"})
    repository.git("tag", "v1")
    repository.push()
    with serve(here, dumb=True) as dumb:
        for ref in ("", "v1", repository.git("rev-parse", "HEAD~1")):
            async with store.fetch(GitSource(remote=dumb.url(repository), ref=ref)) as found:
                assert (found.path / "Dockerfile").exists()


async def test_secrets_of_the_client_open_a_repository(store: GitStore, served: Served, repository: Repository) -> None:
    served.password = "Basic eC1hY2Nlc3MtdG9rZW46czNjcmV0"  # x-access-token:s3cret
    remote = served.url(repository)
    host = f"127.0.0.1:{served.port}"
    said: list[bytes] = []

    def secrets(have: dict[str, str]) -> Callable[[str], object]:
        async def secret(name: str) -> bytes | None:
            return have[name].encode() if name in have else None

        return secret

    with pytest.raises(WherryError) as refused:
        async with store.fetch(GitSource(remote=remote)):
            pass
    assert "could not read Username" in refused.value.message
    assert refused.value.message.endswith("(private? give the build the secret GIT_AUTH_TOKEN)")
    for have in (
        {"GIT_AUTH_TOKEN": "s3cret"},
        {"GIT_AUTH_HEADER": served.password},
        {f"GIT_AUTH_TOKEN.{host}": "s3cret", "GIT_AUTH_TOKEN": "wrong"},
    ):
        async with store.fetch(GitSource(remote=remote), secret=secrets(have), told=said.append) as found:  # type: ignore[arg-type]
            assert (found.path / "Dockerfile").exists()
    with pytest.raises(WherryError) as refused:
        async with store.fetch(GitSource(remote=remote), secret=secrets({"GIT_AUTH_TOKEN": "wr0ng"})):  # type: ignore[arg-type]
            pass
    assert "wr0ng" not in refused.value.message


async def test_a_password_in_the_url_is_not_told(store: GitStore, served: Served, repository: Repository) -> None:
    served.password = "Basic YW5uOnMzY3JldA=="
    remote = served.url(repository).replace("http://", "http://ann:s3cret@")
    source = GitSource(remote=remote, keep_git_directory=True)
    async with store.fetch(source) as found:
        assert "s3cret" not in (found.path / ".git/config").read_text()
        assert not any("s3cret" in entry.description for entry in store.entries())
    with pytest.raises(WherryError) as refused:
        async with store.fetch(GitSource(remote=remote.replace("/app", "/nothing"))):
            pass
    assert "s3cret" not in str(refused.value)
    with pytest.raises(WherryError) as refused:
        async with store.fetch(GitSource(remote=remote, ref="nothing")):
            pass
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "remote",
    ["file:///etc", "/etc", "ext::sh -c true", "-uHEAD", "http://x\n.git", "ssh://-oProxyCommand=x/y", "fd::1", "x:y"],
)
async def test_what_is_no_repository_on_a_network_is_refused(store: GitStore, remote: str) -> None:
    with pytest.raises((InvalidParameter, Failed), match=r"is no git repository|strange hostname|blocked"):
        async with store.fetch(GitSource(remote=remote)):
            pass


@pytest.mark.parametrize("ref", ["--upload-pack=x", "a b", "a..b", "a:b", "x^{tree}", "@{1}", "a*", "\n"])
async def test_refs_that_mean_more_than_a_name_are_refused(store: GitStore, ref: str) -> None:
    with pytest.raises(InvalidParameter, match="invalid git ref"):
        async with store.fetch(GitSource(remote="http://127.0.0.1:9/x.git", ref=ref)):
            pass


async def test_hooks_filters_and_attributes_of_a_repository_run_nothing(
    store: GitStore, served: Served, repository: Repository, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    evil = f'[filter "evil"]\n\tsmudge = touch {mark}\n'
    repository.commit({".gitattributes": "* filter=evil\n", ".gitconfig": evil})
    async with store.fetch(GitSource(remote=served.url(repository))):
        pass
    assert not mark.exists()


async def test_a_ref_that_is_not_there(store: GitStore, served: Served, repository: Repository) -> None:
    with pytest.raises(NotFound, match=f"repository does not contain ref nosuch: {served.url(repository)}"):
        async with store.fetch(GitSource(remote=served.url(repository), ref="nosuch")):
            pass


async def test_an_empty_repository(store: GitStore, here: Path, served: Served) -> None:
    with pytest.raises(NotFound, match="repository does not contain ref HEAD"):
        async with store.fetch(GitSource(remote=served.url(Repository(here, "empty")))):
            pass


async def test_a_server_that_is_not_there(store: GitStore) -> None:
    with pytest.raises(
        Failed, match=r"failed to fetch remote http://127\.0\.0\.1:9/x\.git: git ls-remote: fatal: unable to access"
    ):
        async with store.fetch(GitSource(remote="http://127.0.0.1:9/x.git")):
            pass


async def test_builds_at_the_same_time_share_a_fetch(store: GitStore, served: Served, repository: Repository) -> None:
    async def once() -> str:
        async with store.fetch(GitSource(remote=served.url(repository))) as found:
            return found.identity

    assert len(set(await asyncio.gather(*(once() for _ in range(4))))) == 1
    uploads = [line for line in served.log if line.startswith("POST")]
    assert len(uploads) <= 4 + 2, "four look-ups, one fetch"


async def test_a_cancelled_fetch_leaves_no_process_and_can_be_repeated(store: GitStore, tmp_path: Path) -> None:
    connected, gone = asyncio.Event(), asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        while await reader.read(1000):
            pass
        writer.close()
        gone.set()

    hanging = await asyncio.start_server(listen, "127.0.0.1", 0)
    port = hanging.sockets[0].getsockname()[1]
    remote = f"http://127.0.0.1:{port}/x.git"

    async def fetch() -> None:
        async with store.fetch(GitSource(remote=remote)):
            pass

    def running() -> list[str]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if remote.encode() in path.read_bytes():
                    found.append(path.parent.name)
            except OSError:
                continue
        return found

    task = asyncio.create_task(fetch())
    async with asyncio.timeout(20):
        await connected.wait()
    assert running()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(20):
        await gone.wait()
        while running():  # noqa: ASYNC110 - killed; the kernel may take a moment
            await asyncio.sleep(0.02)
    hanging.close()
    with pytest.raises(Failed):
        await fetch()


async def test_a_daemon_that_died_in_a_fetch_leaves_nothing_in_the_way(
    store: GitStore, served: Served, repository: Repository, tmp_path: Path
) -> None:
    source = GitSource(remote=served.url(repository))
    async with store.fetch(source):
        pass
    (mirror,) = (tmp_path / "git/mirrors").iterdir()
    (mirror / "shallow.lock").touch()
    (tmp_path / "git/checkouts/.half").mkdir()
    repository.commit({"sub/file": "two"})
    again = GitStore(tmp_path / "git")
    async with again.fetch(source) as found:
        assert (found.path / "sub/file").read_text() == "two"
    assert not (tmp_path / "git/checkouts/.half").exists()
    (mirror / "description").unlink()  # it was just being made
    repository.commit({"sub/file": "three"})
    async with again.fetch(source) as found:
        assert (found.path / "sub/file").read_text() == "three"


async def test_a_mirror_of_too_many_commits_is_begun_anew(
    store: GitStore, served: Served, repository: Repository, tmp_path: Path
) -> None:
    source = GitSource(remote=served.url(repository))
    async with store.fetch(source):
        pass
    (mirror,) = (tmp_path / "git/mirrors").iterdir()
    for number in range(300):
        (mirror / "refs/wherry" / f"{number:040x}").touch()
    repository.commit({"sub/file": "two"})
    async with store.fetch(source):
        pass
    assert len(list((mirror / "refs/wherry").iterdir())) == 2


FAKE_SSH = """\
#!/bin/sh
for last; do :; done
{ echo "args $*"; echo "agent $SSH_AUTH_SOCK"; } >> "$0.log"
for word; do
  case "$word" in UserKnownHostsFile=*) eval "cat ${word#UserKnownHostsFile=}" >> "$0.log" 2>&1;; esac
done
exec sh -c "$last"
"""


@pytest.mark.parametrize("hosts", ["", "server.test ssh-ed25519 AAAA\n"])
async def test_ssh_gets_the_clients_agent_and_known_hosts(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch, hosts: str
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "ssh").write_text(FAKE_SSH)
    (programs / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    asked: list[str] = []

    @asynccontextmanager
    async def agent(agent_id: str) -> AsyncIterator[Path]:
        asked.append(agent_id)
        yield tmp_path / "agent"

    store = GitStore(tmp_path / "a place")
    remote = f"git@server.test:{repository.bare}"
    source = GitSource(remote=remote, ssh="default", known_ssh_hosts=hosts)
    async with store.fetch(source, agent=agent) as found:
        assert (found.path / "Dockerfile").read_text() == "FROM scratch\n"
    said = (programs / "ssh.log").read_text()
    assert asked == ["default"]
    assert f"agent {tmp_path / 'agent'}\n" in said
    assert f"StrictHostKeyChecking={'yes' if hosts else 'accept-new'}" in said
    assert "-F /dev/null" in said
    assert "git@server.test git-upload-pack" in said
    assert hosts in said
    assert not list((tmp_path / "a place").glob("git-*")), "what the client said of hosts is not kept"
    with pytest.raises(NotFound, match='no SSH key "mine" forwarded from the client'):
        async with store.fetch(GitSource(remote=remote, ssh="mine")):
            pass
