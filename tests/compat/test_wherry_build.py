"""`wherry build`, `builds` and `builder` against a real daemon, at a terminal and elsewhere."""

import json
import os
import signal
import socket
import stat
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import images
from harness.buildx import building_engine
from harness.engine import Cli, Engine
from harness.needs import require_programs
from harness.web import web_server

pytestmark = pytest.mark.not_dockerd("looks at what only this engine has")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with building_engine(images.docker_archive([images.busybox()])) as engine:
        yield engine


@pytest.fixture
def wherry(engine: Engine) -> Iterator[Cli]:
    yield engine.wherry
    engine.wherry.end_started()


@pytest.fixture
def context(tmp_path: Path) -> Path:
    root = tmp_path / "context"
    (root / "src").mkdir(parents=True)
    (root / "src/a.txt").write_text("A")
    (root / "src/b.txt").write_text("B")
    (root / "left.out").write_text("x" * 100_000)
    (root / ".dockerignore").write_text("left.out\n")
    (root / "Dockerfile").write_text(
        "FROM busybox AS base\nARG V=1\nRUN echo building $V\n"
        "FROM base\nCOPY src /src\nRUN cat /src/* > /all\nCMD cat /all\n"
    )
    return root


def shown(text: str) -> list[str]:
    """Lines of progress without step numbers and times."""
    return [line.partition(" ")[2] if line.startswith("#") else line for line in text.splitlines()]


def test_an_image_is_built_and_a_change_is_explained(wherry: Cli, context: Path) -> None:
    first = wherry("build", "-t", "made", str(context)).err
    assert "[base 2/2] RUN echo building 1" in shown(first)
    assert "runs: first build of this step" in shown(first)
    assert wherry("run", "--rm", "made").out == "AB"
    again = shown(wherry("build", "-t", "made", str(context)).err)
    assert again.count("CACHED") == 4
    (context / "src/b.txt").write_text("changed")
    changed = shown(wherry("build", "-t", "made", str(context)).err)
    assert "runs: `src/b.txt` changed" in changed
    assert "runs: the step before it changed" in changed
    assert wherry("run", "--rm", "made").out == "Achanged"
    reasons = wherry("builds", "explain").lines
    assert any("`src/b.txt` changed" in line for line in reasons)
    argued = shown(wherry("build", "--build-arg", "V=2", str(context)).err)
    assert "runs: ARG V 1→2" in argued


def test_only_what_changed_is_sent(wherry: Cli, context: Path) -> None:
    (context / "src/big").write_bytes(os.urandom(1 << 20))
    first, again = (wherry("build", str(context)).err for _ in range(2))
    assert "transferring context: 1.049MB done" in first
    assert "MB" not in again
    assert "left.out" not in first


def test_quietly_the_image_is_named_and_files_tell_programs(wherry: Cli, context: Path, tmp_path: Path) -> None:
    iid, metadata = tmp_path / "iid", tmp_path / "metadata"
    done = wherry("build", "-q", "-t", "told:1", "--iidfile", str(iid), "--metadata-file", str(metadata), str(context))
    image = wherry("inspect", "-f", "{{.Id}}", "told:1").text
    assert (done.text, done.err, iid.read_text()) == (image, "", image)
    told = json.loads(metadata.read_text())
    assert told["containerimage.config.digest"] == image
    assert told["image.name"] == "docker.io/library/told:1"
    assert told["containerimage.descriptor"]["digest"] == told["containerimage.digest"]
    assert wherry("builds", "ls", "-q", "--limit", "1").text == told["wherry.build.ref"]


def test_results_come_as_files_archives_and_layouts(wherry: Cli, context: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    wherry(
        "build", "-o", str(out / "files"), "-o", f"type=tar,dest={out}/x.tar", "-o", f"type=oci,dest={out}/oci.tar",
        "-o", f"type=oci,tar=false,dest={out}/layout", "-t", "everything:2", "--load", str(context),
    )  # fmt: skip
    assert (out / "files/all").read_text() == "AB"
    assert stat.S_ISDIR((out / "files/bin").lstat().st_mode)
    with tarfile.open(out / "x.tar") as archive:
        assert (archive.extractfile("all") or archive).read() == b"AB"  # type: ignore[call-arg]
    with tarfile.open(out / "oci.tar") as archive:
        assert "index.json" in archive.getnames()
    index = json.loads((out / "layout/index.json").read_text())
    (entry,) = index["manifests"]
    assert entry["annotations"]["org.opencontainers.image.ref.name"] == "2"
    assert (out / "layout/blobs/sha256" / entry["digest"][7:]).exists()
    assert wherry("run", "--rm", "everything:2").out == "AB"


def test_a_layout_and_a_directory_are_contexts_under_a_name(wherry: Cli, context: Path, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    wherry("build", "-o", f"type=oci,tar=false,dest={layout}", str(context))
    dockerfile = "FROM scratch\nCOPY --from=made /all /\nCOPY --from=dir a.txt /\n"
    contexts = ["--build-context", f"made=oci-layout://{layout}", "--build-context", f"dir={context}/src"]
    wherry("build", "-f", "-", "-o", str(tmp_path / "out"), *contexts, str(tmp_path), input=dockerfile)
    assert (tmp_path / "out/all").read_text() == "AB"
    assert (tmp_path / "out/a.txt").read_text() == "A"


def test_a_cache_survives_in_a_directory(engine: Engine, wherry: Cli, context: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    wherry("build", "--cache-to", f"type=local,dest={cache},mode=max", str(context))
    wherry("image", "prune", "-f")
    wherry("builder", "prune", "-af")
    assert engine.api.get("/system/df?type=build-cache")["BuildCache"] == []
    again = shown(wherry("build", "--cache-from", f"type=local,src={cache}", str(context)).err)
    assert again.count("CACHED") == 4


def test_secrets_and_agents_reach_their_steps_and_nothing_else(wherry: Cli, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"word\x00")
    dockerfile = (
        "FROM busybox\n"
        "RUN --mount=type=secret,id=file --mount=type=secret,id=VARIABLE,env=GIVEN "
        'test "$(tr -d "\\0" < /run/secrets/file) $GIVEN" = "word value" && ls -a / > /list\n'
        "RUN --mount=type=ssh test -S $SSH_AUTH_SOCK\n"
    )
    path = tmp_path / "agent"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        secrets = ["--secret", f"id=file,src={tmp_path}/secret", "--secret", "id=VARIABLE"]
        argv = ["build", *secrets, "--ssh", f"default={path}", "-o", str(tmp_path / "out"), "-"]
        wherry(*argv, input=dockerfile, env={"VARIABLE": "value"})
    missing = wherry("build", "--no-cache", "-", input=dockerfile.replace("id=file", "id=file,required"), check=False)
    assert "secret file: not found" in missing.err
    assert not list((tmp_path / "out").rglob("file"))
    log = wherry("builds", "logs", wherry("builds", "ls", "-q", "-n", "1").text).out
    assert "word value" in log, "the test in the Dockerfile"
    assert "GIVEN=value" not in log


def test_a_key_is_lent_to_a_step_by_an_agent_of_its_own(engine: Engine, wherry: Cli, tmp_path: Path) -> None:
    require_programs("ssh-agent", "ssh-add", "ssh-keygen")
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "mine", "-f", str(key)], check=True)
    wherry("build", "--ssh", f"k={key}", "-", input="FROM busybox\nRUN --mount=type=ssh,id=k test -S $SSH_AUTH_SOCK\n")
    (tmp_path / "broken").write_text("no key")
    (tmp_path / "broken").chmod(0o600)
    broken = wherry("build", "--ssh", f"default={tmp_path}/broken", "-", input="FROM busybox\n", check=False)
    assert (broken.code, f"failed to parse {tmp_path}/broken" in broken.err) == (1, True)
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "/wherry-ssh-" not in left


def test_contexts_come_on_standard_input(wherry: Cli, context: Path, tmp_path: Path) -> None:
    archive = images.tar(
        [
            images.Entry(name="sub/My.df", data=b"FROM scratch\nCOPY a /\n"),
            images.Entry(name="a", data=os.urandom(1 << 20)),
        ]
    )
    wherry("build", "-f", "sub/My.df", "-o", str(tmp_path / "out"), "-", input=archive)
    assert (tmp_path / "out/a").stat().st_size == 1 << 20


def test_contexts_are_fetched_by_the_engine(engine: Engine, wherry: Cli, tmp_path: Path) -> None:
    web, work = tmp_path / "web", tmp_path / "work"
    (work / "sub").mkdir(parents=True)
    web.mkdir()
    (work / "sub/Dockerfile").write_text("FROM scratch\nCOPY a /\n")
    (work / "sub/a").write_text("from git")
    (web / "c.tar").write_bytes(
        images.tar([images.Entry(name="Dockerfile", data=b"FROM scratch\nCOPY a /\n"), images.Entry(name="a")])
    )
    for argv in (
        ["git", "init", "-q", "-b", "main", str(work)],
        ["git", "-C", str(work), "add", "."],
        ["git", "-C", str(work), "-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "x"],
        ["git", "clone", "-q", "--bare", str(work), str(web / "r.git")],
        ["git", "-C", str(web / "r.git"), "update-server-info"],
    ):
        subprocess.run(argv, check=True, capture_output=True)
    with web_server(engine.box, web) as url:
        wherry("build", "-o", str(tmp_path / "git"), f"{url}/r.git#main:sub")
        wherry("build", "-o", str(tmp_path / "tar"), f"{url}/c.tar")
        missing = wherry("build", f"{url}/nothing.tar", check=False)
    assert (tmp_path / "git/a").read_text() == "from git"
    assert (tmp_path / "tar/a").exists()
    assert (missing.code, "404" in missing.err) == (1, True)


def test_what_is_wrong_is_shown_where_it_stands(wherry: Cli, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM busybox\nRUN echo before\nRUN echo output; exit 3\n")
    failed = wherry("build", str(context), check=False)
    assert failed.code == 1
    assert failed.out == ""
    end = failed.err[failed.err.rindex("------\n > [3/3] RUN echo output; exit 3:") :]
    assert " output\n------\nDockerfile:3" in end
    assert "   3 | >>> RUN echo output; exit 3" in end
    words = 'process "/bin/sh -c echo output; exit 3" did not complete successfully: exit code: 3'
    assert f"ERROR: failed to build: {words}\n" in end
    (context / "Dockerfile").write_text("FROM busybox\nRNU x\n")
    assert "unknown instruction: RNU (did you mean RUN?)" in wherry("build", str(context), check=False).err


def test_a_dockerfile_is_checked_and_asked_without_building(wherry: Cli, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM busybox\nRUN true\n")
    assert wherry("build", "--check", str(context)).text == "Check complete, no warnings found."
    (context / "Dockerfile").write_text("FROM busybox AS Base\nARG V=7\nRUN echo $V\n")
    checked = wherry("build", "--check", str(context), check=False)
    assert checked.code == 1
    assert "StageNameCasing" in checked.out
    asked = json.loads(wherry("build", "--call", "outline,format=json", str(context)).out)
    assert [each["name"] for each in asked["args"]] == ["V"]
    targets = wherry("build", "--call", "targets", str(context)).out
    assert "base" in targets.lower()


def begun(wherry: Cli, tmp_path: Path) -> "subprocess.Popen[bytes]":
    """A build whose only step runs, and would for long."""
    (tmp_path / "long").write_text("FROM busybox\nRUN echo begun; sleep 1000\n")
    with (tmp_path / "long").open() as dockerfile:
        process = wherry.start("build", "-", stdin=dockerfile)
    assert process.stderr is not None
    seen = b""
    while b" begun\n" not in seen:
        seen += os.read(process.stderr.fileno(), 1000)
    return process


def test_a_build_is_verified_by_another_one(wherry: Cli, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM busybox\nCOPY src /\nRUN date > /dev/null; touch /now\n")
    assert "Verified: built twice" in wherry("build", "--verify", str(context)).err
    (context / "Dockerfile").write_text("FROM busybox\nRUN head -c 8 /dev/urandom > /chance\n")
    differs = wherry("build", "--verify", str(context), check=False)
    assert differs.code == 1
    assert "chance" in differs.out


def test_ctrl_c_ends_the_build(engine: Engine, wherry: Cli, tmp_path: Path) -> None:
    process = begun(wherry, tmp_path)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"context canceled" in said
    (record,) = engine.api.get("/builds?limit=1")
    assert record["Status"] == "canceled"
    assert not any("sleep" in words for words in engine.box.processes().values())


def test_a_client_that_is_killed_ends_its_build(engine: Engine, wherry: Cli, tmp_path: Path) -> None:
    process = begun(wherry, tmp_path)
    process.kill()
    process.communicate()
    until = time.monotonic() + 20
    while (record := engine.api.get("/builds?limit=1")[0])["Status"] == "running":
        assert time.monotonic() < until, "the build goes on"
        time.sleep(0.05)
    assert record["Status"] == "canceled"


def test_a_terminal_shows_the_steps_in_place(wherry: Cli, context: Path) -> None:
    with wherry.terminal("build", "--no-cache", "-t", "seen", str(context), cols=70) as terminal:
        terminal.expect(r"\[\+\] Building \d+\.\ds \(\d+/\d+\) FINISHED")
        assert terminal.wait() == 0
        last = terminal.screen[terminal.screen.rindex("FINISHED") :]
    assert " => [base 2/2] RUN echo building 1" in last
    assert "naming to docker.io/library/seen:latest" in last


def test_a_failed_step_can_be_looked_at_in_a_shell(wherry: Cli, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM busybox\nENV WORD=told\nWORKDIR /w\nRUN echo traces > left; exit 5\n")
    with wherry.terminal("build", "--on-error", "shell", str(context)) as terminal:
        before = terminal.modes()
        terminal.expect("exit code: 5")
        terminal.expect("A shell where it failed")
        terminal.expect("#")
        terminal.line("cat left; pwd; echo $WORD-$WORD; stty size")
        terminal.expect("traces\r\n/w\r\ntold-told\r\n24 80")
        terminal.line("echo run''ning; cat")
        terminal.expect("running")
        terminal.line("again")
        terminal.expect("again\r\nagain\r\n")
        terminal.send(b"\x03")  # goes to the shell, and ends no build
        terminal.expect("#")
        terminal.line("echo still-$?")
        terminal.expect(r"still-\d+\r\n")
        terminal.line("exit")
        terminal.expect("ERROR: failed to build")
        assert terminal.wait() == 1
        assert terminal.modes() == before


def test_who_leaves_the_shell_with_the_terminal_leaves_nothing(engine: Engine, wherry: Cli, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM busybox\nRUN exit 6\n")
    with wherry.terminal("build", "--on-error", "shell", str(context)) as terminal:
        terminal.expect("#")
        terminal.process.kill()
    until = time.monotonic() + 20
    while (record := engine.api.get("/builds?limit=1")[0])["Status"] == "running":
        assert time.monotonic() < until, "the build goes on"
        time.sleep(0.05)
    assert record["Status"] == "canceled"
    assert not list((engine.exec_root / "shims").iterdir())


def test_what_was_built_is_listed_and_forgotten(wherry: Cli, context: Path) -> None:
    wherry("build", "-q", "-t", "listed:1", str(context))
    wherry("build", "-q", "--target", "nope", str(context), check=False)
    failed, good = wherry("builds", "ls", "--format", "{{.ID}} {{.Name}} {{.Status}}", "--limit", "2").lines
    assert good.split()[1:] == ["listed:1", "completed"]
    assert failed.split()[1:] == ["context", "error"]
    ref = good.split()[0]
    inspected = wherry.json("builds", "inspect", ref[:8])
    assert inspected[0]["Id"] == ref
    assert inspected[0]["Results"][0]["names"] == ["docker.io/library/listed:1"]
    log = wherry("builds", "logs", ref).out
    assert "[base 1/2] FROM docker.io/library/busybox:latest" in log
    assert wherry("builds", "rm", ref).text == ref
    gone = wherry("builds", "inspect", ref, check=False)
    assert (gone.code, "no record found" in gone.err) == (1, True)


def test_what_builds_keep_is_shown_and_removed(wherry: Cli, context: Path) -> None:
    wherry("build", "-q", "--no-cache", "-o", "type=cacheonly", str(context))
    assert any("source.local" in line for line in wherry("builder", "du").lines)
    pruned = wherry("builder", "prune", "-af")
    assert pruned.lines[0] == "Deleted build cache objects:"
    assert pruned.lines[-1].startswith("Total reclaimed space: ")
    assert wherry("builder", "du").lines[1:] == ["Total: 0B"]


def test_another_engine_is_told_apart(tmp_path: Path, wherry: Cli, context: Path) -> None:
    gone = wherry("-H", f"unix://{tmp_path}/nobody", "build", str(context), check=False)
    assert gone.code == 1
    assert "Cannot connect to the Wherry daemon" in gone.err
