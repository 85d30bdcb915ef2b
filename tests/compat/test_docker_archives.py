"""save, load and import: by stock clients, and between Wherry and dockerd."""

import io
import json
import socket
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from harness import images
from harness.box import Box
from harness.engine import Cli, Engine, remove_root, short_root
from harness.needs import require_programs
from imagekit import archives
from imagekit.making import tar

BOTH = archives.platforms()
NAME = "docker.io/library/several:1"


def index_of(archive: bytes) -> list[dict[str, Any]]:
    found = json.loads(archives.members(archive)["index.json"])["manifests"]
    assert isinstance(found, list)
    return found


@pytest.fixture(scope="module")
def dockerd() -> Iterator[Engine]:
    """Debian's daemon, in a box of its own."""
    require_programs("docker", "dockerd", "nsenter", "unshare")
    root = short_root()
    try:
        with Box() as box:
            engine = Engine(box, root, kind="dockerd")
            engine.start()
            yield engine
            engine.stop()
    finally:
        remove_root(root)


@pytest.fixture
def several(engine: Engine, tmp_path: Path) -> Iterator[Path]:
    """An archive of two platforms, loaded as `several:1`."""
    if engine.is_dockerd:
        pytest.skip("dockerd with graph drivers keeps one platform")
    path = tmp_path / "several.tar"
    path.write_bytes(tar(BOTH.files(NAME)))
    engine.docker("load", "-i", str(path))
    yield path
    engine.docker("rmi", "-f", "several:1", check=False)


# -- platforms ---------------------------------------------------------------------------------------------------------


def test_several_platforms_are_saved_and_loaded_byte_for_byte(cli: Cli, several: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.tar"
    cli("save", "-o", str(out), "several:1")
    saved = out.read_bytes()
    assert index_of(saved)[0]["digest"] == BOTH.digest
    members = archives.members(saved)
    assert all(members[archives.blob_path(blob)] == blob for blob in BOTH.blobs)
    cli("rmi", "several:1")
    assert cli("load", "-i", str(out)).lines[-1] == "Loaded image: several:1"
    cli("save", "-o", str(tmp_path / "again.tar"), "several:1")
    assert (tmp_path / "again.tar").read_bytes() == saved


def test_one_platform_is_chosen_at_save_and_at_load(cli: Cli, several: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.tar"
    cli("save", "--platform", "linux/arm64", "-o", str(out), "several:1")
    assert [entry["digest"] for entry in index_of(out.read_bytes())] == [BOTH.arm64.digest]
    done = cli("save", "--platform", "linux/s390x", "-o", str(tmp_path / "no.tar"), "several:1", check=False)
    assert "no suitable export target found for platform linux/s390x" in done.err
    cli("rmi", "several:1")
    cli("load", "--platform", "linux/arm64", "-i", str(several))
    assert cli.json("image", "inspect", "several:1")[0]["Architecture"] == "arm64"
    done = cli("load", "--platform", "linux/s390x", "-i", str(several), check=False)
    assert "no image for linux/s390x in the archive: it has linux/amd64, linux/arm64" in done.err


def test_the_api_takes_several_platforms(engine: Engine, several: Path) -> None:
    wanted = [json.dumps({"os": "linux", "architecture": each}) for each in ("amd64", "arm64")]
    query = urlencode([("names", "several:1"), *(("platform", each) for each in wanted)])
    answer = engine.api.request("GET", f"/images/get?{query}")
    assert answer.headers["content-type"] == "application/x-tar"
    assert index_of(answer.body)[0]["digest"] == BOTH.digest
    engine.docker("rmi", "several:1")
    query = urlencode([("quiet", "1"), *(("platform", each) for each in wanted[1:])])
    engine.api.request("POST", f"/images/load?{query}", several.read_bytes())
    assert engine.api.get("/images/several:1/json")["Architecture"] == "arm64"
    answer = engine.api.request("POST", "/images/load?platform=%7Bnonsense", several.read_bytes())
    assert answer.status == 400


# -- between daemons ---------------------------------------------------------------------------------------------------


def test_what_is_saved_goes_through_dockerd_and_comes_back(engine: Engine, dockerd: Engine, tmp_path: Path) -> None:
    """One that has layers of every kind of file, one with a configuration, in one archive; there and back."""
    there, back = tmp_path / "there.tar", tmp_path / "back.tar"
    wanted = ["layered:latest", "configured:latest", "example.test/some/configured:1.0"]
    engine.docker("save", "-o", str(there), *wanted)
    told = dockerd.docker("load", "-i", str(there)).lines
    assert {f"Loaded image: {name}" for name in wanted} <= set(told)
    for name in wanted:
        assert dockerd.api.get(f"/images/{name}/json")["Id"] == engine.api.get(f"/images/{name}/json")["Id"]
    dockerd.docker("save", "-o", str(back), *wanted)
    engine.docker("rmi", *wanted)
    assert {f"Loaded image: {name}" for name in wanted} <= set(engine.docker("load", "-i", str(back)).lines)
    assert engine.docker("run", "--rm", "layered", "cat", "/data/kept").out == "kept\n"


def test_of_several_platforms_dockerd_takes_its_own(engine: Engine, dockerd: Engine, several: Path) -> None:
    engine.docker("save", "-o", str(several), "several:1")
    assert "Loaded image: several:1" in dockerd.docker("load", "-i", str(several)).lines
    assert dockerd.api.get("/images/several:1/json")["Id"] == BOTH.amd64.id


# -- broken ------------------------------------------------------------------------------------------------------------


def test_a_load_that_breaks_off_leaves_nothing(engine: Engine) -> None:
    """The client goes away in the middle of a layer."""
    if engine.is_dockerd:
        pytest.skip("what dockerd keeps of it is its own business")
    layer = images.tar([images.Entry(name="x", data=b"x" * 3_000_000)])
    data = images.docker_archive([images.Image(tags=["torn:1"], layers=[layer])])
    half = data[: len(data) // 2]
    store = engine.data_root

    def held() -> set[str]:
        paths = (*(store / "blobs" / "sha256").iterdir(), *(store / "ingest").glob("[!p]*"))
        return {path.name for path in paths}

    def until(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end, sorted(held())
            time.sleep(0.05)

    before = held()
    head = b"POST /images/load HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(engine.socket))
        connection.sendall(head + b"%x\r\n" % len(half) + half + b"\r\n")
        until(lambda: held() != before)
    until(lambda: held() == before)
    assert engine.api.request("GET", "/images/torn:1/json").status == 404


# -- import ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(engine: Engine, tmp_path: Path) -> Iterator[str]:
    """A web server in the daemon's box, with `tree.tar` and `tree.tar.gz`; its address."""
    (tmp_path / "tree.tar").write_bytes(images.busybox_layer())
    server = ["python3", "-u", "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(tmp_path), "8099"]
    process = engine.box.spawn(server, log=tmp_path / "server.log", net_only=True)
    until = time.monotonic() + 20
    while "Serving" not in (tmp_path / "server.log").read_text():
        assert time.monotonic() < until
        time.sleep(0.05)
    yield "http://127.0.0.1:8099"
    process.kill()
    process.wait()


def test_what_a_url_names_is_imported(cli: Cli, engine: Engine, served: str) -> None:
    done = cli("import", "-c", 'CMD ["echo", "$A"]', "-c", "ENV A=1", f"{served}/tree.tar", "fetched:1")
    assert f"Downloading from {served}/tree.tar" in done.out
    assert engine.api.get("/images/fetched:1/json")["Comment"] == f"Imported from {served}/tree.tar"
    assert cli("run", "--rm", "fetched:1", "sh", "-c", "echo $A").text == "1"
    done = cli("import", f"{served}/nothing.tar", check=False)
    assert (
        f"failed to GET {served}/nothing.tar with status 404 File not found" in done.err or "404 Not Found" in done.err
    )
    cli("rmi", "fetched:1")


FIELDS = (
    "Cmd",
    "Entrypoint",
    "Env",
    "ExposedPorts",
    "Volumes",
    "User",
    "WorkingDir",
    "Labels",
    "OnBuild",
    "Healthcheck",
)

CHANGES = [
    ['CMD ["a"]'],
    ["CMD a  b", 'ENTRYPOINT ["x"]'],
    ['ENTRYPOINT ["x"]', "CMD a"],
    ["CMD"],
    ["CMD []"],
    ["CMD [a"],
    ['CMD ["a", 1]'],
    ["ENTRYPOINT x y"],
    ["ENV A=1 B=2", "ENV C=$A D=${B}x E=${Z:-d} F=${A:+y} G=\\$A H='$A' I=\"$A\""],
    ['ENV A="$B" B=x', "ENV C=$B"],
    ['ENV A=a\\ b B="a\\"b" C=\'a b\''],
    ["ENV A b c"],
    ["ENV A"],
    ["ENV"],
    ["ENV =x"],
    ['ENV A="x'],
    ["ENV A=${B?}"],
    ["ENV A=l", "LABEL $A=x y=$A"],
    ['LABEL "a b"="c d"'],
    ["LABEL a=b c"],
    ["LABEL"],
    ["EXPOSE 80 81/udp 90-92 80/TCP"],
    ["ENV A=9", "EXPOSE $A"],
    ["EXPOSE 127.0.0.1:80:80"],
    ["EXPOSE"],
    ["USER a b"],
    ["USER"],
    ["ENV A=p", "WORKDIR /$A", "USER $A", "VOLUME /v$A"],
    ["WORKDIR rel", "WORKDIR more/../x"],
    ["WORKDIR /a/../b/"],
    ['WORKDIR "/a b"'],
    ["VOLUME /a /b"],
    ['VOLUME ["/a", "/b c"]'],
    ['VOLUME [""]'],
    ["VOLUME"],
    ["ONBUILD RUN x"],
    ["ONBUILD FROM x"],
    ["ONBUILD ONBUILD RUN x"],
    ["ONBUILD"],
    ["HEALTHCHECK NONE"],
    ["HEALTHCHECK NONE x"],
    ["HEALTHCHECK WHAT"],
    ["HEALTHCHECK CMD"],
    ["HEALTHCHECK CMD []"],
    ['HEALTHCHECK --interval=5s --timeout=3s --start-period=1m --retries=3 CMD ["a"]'],
    ["HEALTHCHECK --interval=x CMD a"],
    ["HEALTHCHECK --interval=1us CMD a"],
    ["HEALTHCHECK --interval=-1s CMD a"],
    ["HEALTHCHECK --retries=x CMD a"],
    ["RUN x"],
    ["FROM x"],
    ['SHELL ["a"]'],
    ["ARG a"],
    ["nonsense"],
    [""],
    ["# comment"],
    ["  USER x  ", "# escape=`"],
    ["USER x\nWORKDIR /y"],
    ["ENV A=1 \\\n  # between\n  B=2"],
]


def imported(engine: Engine, changes: Sequence[str]) -> object:
    """What an import with `changes` gives: the configuration, or the refusal."""
    query = urlencode([("fromSrc", "-"), *(("changes", each) for each in changes)])
    empty = io.BytesIO()
    tarfile.open(fileobj=empty, mode="w").close()
    answer = engine.api.request("POST", f"/v1.41/images/create?{query}", empty.getvalue())
    if answer.status != 200:
        return answer.status, answer.message
    last = json.loads(answer.body.splitlines()[-1])
    config = engine.api.get(f"/v1.41/images/{last['status']}/json")["Config"]
    engine.api.request("DELETE", f"/images/{last['status']}?force=1")
    return {field: config[field] for field in FIELDS if config.get(field)}


def test_changes_do_and_say_what_dockerds_do(engine: Engine, dockerd: Engine) -> None:
    different = []
    for changes in CHANGES:
        ours, theirs = imported(engine, changes), imported(dockerd, changes)
        if ours != theirs:
            different.append(f"{changes}:\n  ours  {ours}\n  theirs {theirs}")
    assert not different, "\n".join(different)


def test_a_changed_entrypoint_drops_the_command_as_dockerds_does(engine: Engine, dockerd: Engine) -> None:
    dockerd.load(images.docker_archive([images.configured()]))
    found = []
    for each in (engine, dockerd):
        each.docker("create", "--name", "changed", "configured", "some", "command")
        each.docker("commit", "-c", 'ENTRYPOINT ["x"]', "changed", "changed:1")
        config = each.api.get("/images/changed:1/json")["Config"]
        found.append((config["Entrypoint"], config["Cmd"]))
        each.docker("rm", "changed")
        each.docker("rmi", "changed:1")
    assert found[0] == found[1] == (["x"], None)
