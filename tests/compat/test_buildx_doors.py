"""Stock buildx against the engine's gRPC doors: what is carried over a session in each direction, and how a build ends.

What the Dockerfile language does is in build/test_build_cases.py.
"""

import io
import json
import re
import shutil
import socket
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import images
from harness.buildx import building_engine, docker_with_plugins
from harness.engine import Cli, Engine, Result
from harness.leaks import settle
from harness.registry import PASSWORD, USER, Registry

pytestmark = pytest.mark.not_dockerd("its BuildKit is older than buildx's defaults")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with building_engine(images.docker_archive([images.busybox()])) as made:
        yield made


@pytest.fixture(scope="module")
def docker(engine: Engine) -> Cli:
    return docker_with_plugins(engine)


class Project:
    """A build context, and `docker buildx build` of it."""

    def __init__(self, root: Path, docker: Cli) -> None:
        self.root, self.docker = root, docker

    def write(self, **files: str) -> "Project":
        for name, content in files.items():
            path = self.root / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return self

    def build(self, *args: str, where: str | None = None, **kwargs: object) -> Result:
        return self.docker("buildx", "build", *args, where or str(self.root), **kwargs)


@pytest.fixture
def project(tmp_path: Path, docker: Cli) -> Project:
    return Project(tmp_path / "project", docker)


def steps(result: Result) -> dict[str, str]:
    """Names of the steps of a Dockerfile, and how each ended (CACHED, DONE, ERROR)."""
    names = dict(re.findall(r"^#(\d+) (\[[^\]]*\d/\d\] .*)$", result.err, re.MULTILINE))
    ends = dict(re.findall(r"^#(\d+) (CACHED|DONE|ERROR)", result.err, re.MULTILINE))
    return {name: ends[number] for number, name in names.items()}


def sent(result: Result) -> str:
    """What was transferred of the context."""
    (found,) = re.findall(r"load build context\n#\d+ transferring context:(.*)done", result.err)
    return str(found).strip().split(" ")[0]


def test_only_changed_files_are_sent_again_and_the_reason_is_told(project: Project) -> None:
    project.write(Dockerfile="FROM busybox\nCOPY a /a\nCOPY d /d\nRUN cat /d/b\n", a="1" * 5000, d__b="first")
    first = project.build()
    assert sent(first) == "5.00kB"
    again = project.build()
    assert sent(again) == ""
    assert set(steps(again).values()) == {"CACHED"}
    project.write(d__b="second!")
    changed = project.build()
    assert sent(changed) == "7B"
    assert steps(changed) == {
        "[1/4] FROM docker.io/library/busybox:latest": "CACHED",
        "[2/4] COPY a /a": "CACHED",
        "[3/4] COPY d /d": "DONE",
        "[4/4] RUN cat /d/b": "DONE",
    }
    assert re.search(r"not cached: .*d/b.* changed", changed.err)
    assert re.search(r"^#\d+ [\d.]+ second!$", changed.err, re.MULTILINE)


def test_ignored_files_are_not_sent_and_named_contexts_are(project: Project, tmp_path: Path) -> None:
    project.write(
        Dockerfile=(
            "FROM base\nCOPY . /all\nCOPY --from=lib x /x\nRUN ls /all > /list\n"
            "FROM scratch\nCOPY --from=0 /list /x /\n"
        ),
        a="",
        junk__b="",
    )
    project.write(**{".dockerignore": "junk\n!junk/k*\nDockerfile\n.dockerignore\n", "junk/keep": ""})
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/x").write_text("of another directory")
    contexts = [f"--build-context=lib={tmp_path}/lib", "--build-context=base=docker-image://busybox"]
    project.build(*contexts, "-o", str(tmp_path / "out"))
    assert (tmp_path / "out/list").read_text().split() == ["a", "junk"]
    assert (tmp_path / "out/x").read_text() == "of another directory"


def test_secrets_come_as_files_and_variables_and_stay_out_of_the_image(project: Project, tmp_path: Path) -> None:
    project.write(
        Dockerfile=(
            "FROM busybox\n"
            "RUN --mount=type=secret,id=file,mode=0440,uid=7 cd /run/secrets && stat -c '%a %u' file && cat file\n"
            "RUN --mount=type=secret,id=var,env=TOKEN echo var=$TOKEN\n"
            "RUN --mount=type=secret,id=none test ! -e /run/secrets/none\n"
            "RUN --mount=type=secret,id=none,required=true true\n"
        )
    )
    (tmp_path / "s").write_bytes(b"of a file\n")
    options = ["--secret", f"id=file,src={tmp_path}/s", "--secret", "id=var,env=SECRET_VARIABLE"]
    result = project.build(*options, "--no-cache", check=False, env={"SECRET_VARIABLE": "of a variable"})
    assert result.code == 1
    said = re.findall(r"^#\d+ [\d.]+ (.*)$", result.err, re.MULTILINE)
    assert said[:3] == ["440 7", "of a file", "var=of a variable"]
    assert "secret none: not found" in result.err


def bring_perl(to: Path) -> None:
    """Debian's perl without any of its modules: busybox has no client of UNIX sockets."""
    to.mkdir(parents=True)
    shutil.copy("/usr/bin/perl", to / "perl")
    needed = subprocess.run(["ldd", "/usr/bin/perl"], capture_output=True, text=True, check=True).stdout
    for path in re.findall(r"(/\S+) \(0x", needed):
        shutil.copy(path, to / ("loader" if "/ld-" in path else Path(path).name))


def test_the_ssh_agent_answers_inside_a_step(project: Project, tmp_path: Path) -> None:
    """An agent of our own, since what matters is that bytes come through in both directions, and the end."""
    path = tmp_path / "agent"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()
    asked: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                while data := connection.recv(100):
                    asked.append(data)
                    connection.sendall(b"\0\0\0\x05\x0c\0\0\0\0")  # no identities

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    bring_perl(project.root / "perl")
    project.write(
        ask__pl=(
            'socket(S, 1, 1, 0) and connect(S, pack("S a*", 1, "$ENV{SSH_AUTH_SOCK}\\0")) or die "$!";'
            'syswrite(S, "\\0\\0\\0\\1\\x0b"); sysread(S, $answer, 100); print unpack("H*", $answer), "\\n";'
        ),
        Dockerfile=(
            "FROM busybox\nCOPY . /\n"
            "RUN --mount=type=ssh /perl/loader --library-path /perl /perl/perl /ask/pl\n"
            "RUN --mount=type=ssh,id=other,required=true true\n"
        ),
    )
    try:
        result = project.build("--ssh", f"default={path}", "--no-cache", check=False)
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()
    assert asked == [b"\0\0\0\1\x0b"]
    assert "000000050c00000000" in result.err
    assert result.code == 1
    assert "other" in result.err.splitlines()[-1]


def test_a_context_may_come_as_a_tar_and_a_dockerfile_alone_by_stdin(project: Project, tmp_path: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, content in (("Dockerfile", b"FROM scratch\nCOPY f /\n"), ("f", b"from a tar")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    project.build("-o", str(tmp_path / "one"), where="-", input=data.getvalue())
    assert (tmp_path / "one/f").read_bytes() == b"from a tar"
    project.write(f="from the context")
    project.build("-f", "-", "-o", str(tmp_path / "two"), input="FROM scratch\nCOPY f /g\n")
    assert (tmp_path / "two/g").read_text() == "from the context"
    alone = "FROM busybox AS a\nRUN echo x > /x\nFROM scratch\nCOPY --from=a /x /\n"
    project.build("-o", str(tmp_path / "three"), where="-", input=alone)
    assert (tmp_path / "three/x").read_text() == "x\n"


def test_every_exporter_gives_the_same_files(project: Project, tmp_path: Path, engine: Engine) -> None:
    project.write(Dockerfile="FROM scratch\nCOPY --chmod=0640 f /d/f\nCOPY f /g\nLABEL a=b\n", f="content")
    project.build("-o", f"type=local,dest={tmp_path}/local")
    project.build("-o", f"type=tar,dest={tmp_path}/tar", "-o", f"type=oci,dest={tmp_path}/oci.tar")
    project.build("-t", "exported:1", "-o", f"type=docker,dest={tmp_path}/docker.tar")
    project.build("-o", f"type=oci,tar=false,dest={tmp_path}/oci")
    assert (tmp_path / "local/d/f").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "local/g").read_text() == "content"
    with tarfile.open(tmp_path / "tar") as archive:
        assert {each.name for each in archive} == {"d", "d/f", "g"}
        assert archive.getmember("d/f").mode == 0o640
    with tarfile.open(tmp_path / "oci.tar") as archive:
        packed = json.load(archive.extractfile("index.json"))["manifests"][0]["digest"]
    assert json.loads((tmp_path / "oci/index.json").read_text())["manifests"][0]["digest"] == packed
    assert (tmp_path / "oci/blobs/sha256" / packed[7:]).exists()
    project.docker("load", "-i", str(tmp_path / "docker.tar"))
    assert engine.api.get("/images/exported:1/json")["Config"]["Labels"] == {"a": "b"}
    again = project.build(f"--build-context=base=oci-layout://{tmp_path}/oci", "-f", "-", input="FROM base\n")
    assert "exporting to image" in again.err


def test_ids_and_metadata_are_written_where_they_are_wanted(project: Project, tmp_path: Path, engine: Engine) -> None:
    project.write(Dockerfile="FROM busybox\nENV A=b\n")
    result = project.build(
        "-q", "-t", "named:1", "-t", "named:2", f"--iidfile={tmp_path}/iid", f"--metadata-file={tmp_path}/meta"
    )
    image_id = engine.api.get("/images/named:1/json")["Id"]
    assert engine.api.get("/images/named:2/json")["Id"] == image_id
    assert result.out.strip() == image_id
    assert (tmp_path / "iid").read_text() == image_id
    metadata = json.loads((tmp_path / "meta").read_text())
    assert metadata["containerimage.config.digest"] == image_id
    assert metadata["image.name"] == "docker.io/library/named:1,docker.io/library/named:2"


def test_errors_show_the_place_in_the_file_and_what_the_step_said(project: Project) -> None:
    project.write(Dockerfile="FROM busybox\nENV A=b\nRUN echo to stderr >&2; exit 42\n")
    failed = project.build(check=False)
    assert failed.code == 1
    last = failed.err.strip().splitlines()[-1]
    words = 'process "/bin/sh -c echo to stderr >&2; exit 42" did not complete successfully: exit code: 42'
    assert last == f"ERROR: failed to solve: {words}"
    assert re.search(r"^Dockerfile:3$", failed.err, re.MULTILINE)
    assert re.search(r"^ +3 \| >>> RUN echo to stderr", failed.err, re.MULTILINE)
    assert re.search(r"^[\d.]+ to stderr$", failed.err, re.MULTILINE)
    project.write(Dockerfile="FROM busybox\nRNU x\n")
    wrong = project.build(check=False)
    assert "unknown instruction: RNU (did you mean RUN?)" in wrong.err.splitlines()[-1]
    assert re.search(r"^ +2 \| >>> RNU x", wrong.err, re.MULTILINE)
    missing = project.build("-f", str(project.root / "none"), check=False)
    assert missing.code == 1


def test_bake_builds_linked_targets_that_share_a_directory(project: Project, engine: Engine) -> None:
    targets = {
        "parent": {"dockerfile-inline": "FROM busybox\nENV P=parent\nRUN echo made > /made\n"},
        "child": {
            "dockerfile-inline": "FROM parent\nCOPY f /f\nRUN cat /made /f && echo P=$P\n",
            "contexts": {"parent": "target:parent"},
            "tags": ["child:1"],
        },
        "other": {"dockerfile-inline": "FROM busybox\nCOPY f /g\n", "tags": ["other:1"]},
    }
    project.write(f="shared\n")
    (project.root / "bake.json").write_text(
        json.dumps({"group": {"default": {"targets": ["child", "other"]}}, "target": targets})
    )
    bake = ["buildx", "bake", "-f", str(project.root / "bake.json"), "--set", f"*.context={project.root}"]
    result = project.docker(*bake)
    said = re.findall(r"^#\d+ [\d.]+ (made|shared|P=parent)$", result.err, re.MULTILINE)
    assert said == ["made", "shared", "P=parent"]
    child = engine.api.get("/images/child:1/json")
    assert "P=parent" in child["Config"]["Env"]
    assert engine.api.get("/images/other:1/json")["RepoTags"] == ["other:1"]


def test_an_interrupted_build_ends_at_once_and_the_next_one_works(project: Project, engine: Engine) -> None:
    project.write(Dockerfile='FROM busybox\nRUN echo "begun"; sleep 1000\n')
    building = project.docker.start("buildx", "build", str(project.root))
    assert building.stderr is not None
    for line in building.stderr:
        if re.search(rb"[\d.]+ begun$", line.strip()):
            break
    building.send_signal(2)
    out, err = building.communicate(timeout=20)
    assert building.returncode == 1
    assert b"cancel" in err + out
    assert settle(lambda: [name for name in engine.box.processes().values() if "sleep 1000" in name]) == []
    project.write(Dockerfile="FROM busybox\nRUN echo fine\n")
    assert "fine" in project.build().err


def test_what_the_cache_keeps_is_shown_and_pruned(project: Project, docker: Cli) -> None:
    project.write(Dockerfile="FROM busybox\nCOPY f /unique-name\n", f="unique content")
    project.build()
    shown = docker("buildx", "du", "--verbose").out
    assert re.search(r"Description:\s+\[2/2\] COPY f /unique-name", shown)
    assert re.search(r"Type:\s+source.local", shown)
    assert "unique-name" not in docker("buildx", "du", "--verbose", "--filter", "type=source.local").out
    docker("buildx", "prune", "-f", "--filter", "type=source.local")
    assert "source.local" not in docker("buildx", "du", "--verbose").out
    docker("buildx", "prune", "-af")
    assert "unique-name" not in docker("buildx", "du", "--verbose").out
    assert "COPY f" in next(iter(name for name in steps(project.build()) if "COPY" in name))


def test_the_builder_is_listed_with_what_it_can_do(docker: Cli) -> None:
    listed = docker("buildx", "ls").out
    assert re.search(r"default\s+running\s+v\d", listed)
    shown = docker("buildx", "inspect").out
    assert "linux/amd64" in shown or "linux/arm64" in shown
    assert "worker.moby.host-gateway-ip" in shown


def test_questions_about_a_dockerfile_are_answered(project: Project, docker: Cli) -> None:
    project.write(Dockerfile="ARG V=1\nFROM busybox AS first\nARG V\nFROM first AS second\n")
    answered = {
        what: project.build("--progress=quiet", f"--print={what}", env={"BUILDX_EXPERIMENTAL": "1"}).out
        for what in ("targets", "outline")
    }
    assert re.search(r"second \(default\)", answered["targets"])
    assert re.search(r"V +1", answered["outline"])


def test_a_repository_is_a_context(project: Project, tmp_path: Path, engine: Engine) -> None:
    """Over dumb HTTP, served by a container."""
    repository = tmp_path / "repository"
    project.root = repository
    project.write(sub__Dockerfile="FROM scratch\nCOPY f /\n", sub__f="of a commit")
    git = ["git", "-C", str(repository), "-c", "user.name=n", "-c", "user.email=n@example.org"]
    for args in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-qm", "x"], ["update-server-info"]):
        subprocess.run([*git, *args], check=True)
    served = engine.root / "www"
    shutil.copytree(repository / ".git", served / "x.git")
    serve = ["busybox", "httpd", "-f", "-p", "127.0.0.1:18200", "-h", "/www"]
    project.docker("run", "-d", "--name", "web", "--network", "host", "-v", f"{served}:/www:ro", *serve)
    project.build("-o", str(tmp_path / "out"), where="http://127.0.0.1:18200/x.git#main:sub")
    project.docker("rm", "-f", "web")
    assert (tmp_path / "out/f").read_text() == "of a commit"


def test_the_clients_credentials_open_a_private_registry(project: Project, engine: Engine, docker: Cli) -> None:
    """The daemon pushes and pulls itself, and asks the client for the credentials."""
    with Registry(engine.box, engine.root / "registry", 18300, private=True).running() as registry:
        name = f"{registry.address}/team/base:1"
        project.write(Dockerfile="FROM busybox\nRUN echo of the base > /base\n")
        refused = project.build("--push", "-t", name, check=False)
        assert refused.code == 1
        assert "no basic auth credentials" in refused.err
        docker("login", "-u", USER, "--password-stdin", registry.address, input=PASSWORD)
        pushed = project.build("--push", "-t", name)
        digest = registry.digest("team/base:1")
        assert f"pushing manifest for {name}@{digest}" in pushed.err
        docker("image", "rm", name, check=False)
        docker("buildx", "prune", "-af")
        project.write(Dockerfile=f"FROM {name}\nRUN cat /base\n")
        again = project.build("--pull")
        assert f"load metadata for {name}" in again.err
        assert re.search(r"^#\d+ [\d.]+ of the base$", again.err, re.MULTILINE)
        docker("logout", registry.address)
        assert "no basic auth credentials" in project.build("--pull", "--no-cache", check=False).err


def test_no_file_stays_open_after_builds(project: Project, engine: Engine) -> None:
    project.write(Dockerfile="FROM busybox\nCOPY f /\n", f="x")
    project.build()
    before = engine.open_files()
    for _ in range(3):
        project.build()
    assert settle(lambda: [f"{engine.open_files() - before} files"] if engine.open_files() > before else []) == []
