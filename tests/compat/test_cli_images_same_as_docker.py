"""Images, registries and manifest lists by `docker` and by `wherry`: same output, same errors, same files."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import images, token_server
from harness.box import Box
from harness.engine import WHERRY, Cli, Engine
from harness.needs import require_programs
from harness.registry import PASSWORD, USER, Registry
from harness.same import compare

PLATFORMS = ("amd64", "arm64", "riscv64")
TOKENS = 5013  # port of a token server


class Pair:
    """Both clients in the box's network, where the registries are, each with a configuration of its own."""

    def __init__(self, engine: Engine, box: Box, root: Path) -> None:
        self.configs = {"docker": root / "docker-config", "wherry": root / "wherry-config"}
        self.clients: dict[str, Cli] = {}
        for name, program in (("docker", "docker"), ("wherry", str(WHERRY))):
            script = root / name
            script.write_text('#!/bin/sh\nexec {} "$@"\n'.format(" ".join(box.command([program], net_only=True))))
            script.chmod(0o755)
            self.configs[name].mkdir()
            self.clients[name] = Cli(script, engine.host, self.configs[name])
        self.docker, self.wherry = self.clients["docker"], self.clients["wherry"]
        self.root = root

    def both(self, line: str, *, input: str | None = None, changing: bool = False) -> None:
        compare(Renamed(self.docker), Renamed(self.wherry), *line.split(" "), changing=changing, input=input)

    def files(self, name: str) -> dict[str, str]:
        """The configuration of one client."""
        folder = self.configs[name]
        return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}

    def same_files(self) -> None:
        assert self.files("wherry") == self.files("docker")


class Renamed(Cli):
    """Output names the configuration `CONFIG`."""

    def __init__(self, cli: Cli) -> None:
        self.cli = cli

    def __call__(self, *arguments: str, **kwargs: object) -> object:  # type: ignore[override]
        done = self.cli(*arguments, **kwargs)  # type: ignore[arg-type]
        config = self.cli.env["DOCKER_CONFIG"]
        return type(done)(
            code=done.code, out=done.out.replace(config, "CONFIG"), err=done.err.replace(config, "CONFIG")
        )


@pytest.fixture
def pair(engine: Engine, box: Box, tmp_path: Path) -> Pair:
    return Pair(engine, box, tmp_path)


@pytest.fixture(scope="module")
def multi(registry: Registry, root: Path) -> str:
    """An image for three platforms."""
    layout = root / "cli-layout"
    layers = images.busybox().layers
    made = [
        images.Image(
            tags=[], layers=[*layers, images.tar([images.Entry(name="arch", data=name.encode())])], architecture=name
        )
        for name in PLATFORMS
    ]
    images.oci_layout(layout, made, nested=True)
    return registry.push(f"oci:{layout}", "cli/multi:1", "--all")


@pytest.fixture
def pulled(engine: Engine, multi: str) -> Iterator[str]:
    """The same in the engine, two platforms of it."""
    engine.docker("pull", "-q", "--platform", "linux/arm64", multi)
    engine.docker("pull", "-q", multi)
    yield multi
    for image in engine.api.get("/images/json?all=1"):
        for tag in [*(image["RepoTags"] or []), *(image["RepoDigests"] or [])]:
            if tag.startswith("127.0.0.1"):
                engine.api.request("DELETE", f"/images/{tag}?force=1")


def child(registry: Registry, name: str, number: int) -> str:
    """Digest of one image of a list, by the registry's own file."""
    link = registry.root / "blobs/docker/registry/v2/repositories" / name
    index = (link / "_manifests/tags/1/current/link").read_text()
    blob = registry.root / "blobs/docker/registry/v2/blobs/sha256" / index[7:9] / index[7:] / "data"
    digest: str = json.loads(blob.read_text())["manifests"][number]["digest"]
    return digest


def test_manifest_lists_are_made_the_same(pair: Pair, registry: Registry, multi: str) -> None:
    at, source = registry.address, f"{registry.address}/cli/multi@{child(registry, 'cli/multi', 1)}"
    for line in (
        f"manifest inspect --insecure {multi}", f"manifest inspect --insecure -v {multi}",
        f"manifest inspect --insecure {at}/library/busybox", f"manifest inspect --insecure -v {at}/library/busybox",
        f"manifest inspect --insecure {source}", f"manifest inspect --insecure -v {source}",
        f"manifest inspect --insecure {at}/cli/nope", f"manifest inspect {at}/a {at}/b", "manifest inspect Foo",
        f"manifest create --insecure {at}/cli/list:1 {at}/library/busybox",
        f"manifest create --insecure {at}/cli/list:1 {at}/library/busybox",
        f"manifest create --insecure -a {at}/cli/list:1 {source} {at}/library/layered:latest",
        f"manifest create --insecure {at}/cli/other {multi}",
        f"manifest create --insecure {at}/cli/other {at}/cli/nope",
        f"manifest annotate {at}/cli/list:1 {at}/library/layered --arch s390x --os-features b,a --os-version 7",
        f"manifest annotate {at}/cli/list:1 {source} --variant v8",
        f"manifest annotate {at}/cli/list:1 {source} --os linux --arch nope",
        f"manifest annotate {at}/cli/list:1 {at}/cli/nope --arch arm64",
        f"manifest annotate {at}/cli/nope {at}/cli/nope --arch arm64",
        "manifest annotate Foo Bar", "manifest annotate foo Bar", "manifest create Foo bar", "manifest create foo Bar",
        f"manifest inspect {at}/cli/list:1", f"manifest inspect -v {at}/cli/list:1",
        f"manifest inspect {at}/cli/list:1 {source}", f"manifest inspect -v {at}/cli/list:1 {source}",
        f"manifest create --insecure other.example/a {at}/library/busybox", "manifest inspect other.example/a",
        "manifest push --insecure other.example/a", f"manifest push {at}/cli/nope",
    ):  # fmt: skip
        pair.both(line)
    pair.same_files()
    for line in (
        f"manifest push --insecure {at}/cli/list:1", f"manifest push --insecure -p {at}/cli/list:1",
        f"manifest push -p {at}/cli/list:1", f"manifest rm {at}/cli/list:1 Foo other.example/a", "manifest rm a b",
        f"manifest inspect --insecure {at}/cli/list:1", f"manifest inspect --insecure -v {at}/cli/list:1",
        "manifest create", "manifest annotate a", "manifest inspect a b c", "manifest push", "manifest rm",
        "manifest create --nope",
    ):  # fmt: skip
        pair.both(line)
    pair.same_files()
    assert not pair.files("docker")


def test_one_list_is_worked_on_by_both(pair: Pair, registry: Registry, multi: str) -> None:
    at = registry.address
    pair.wherry.env["DOCKER_CONFIG"] = pair.docker.env["DOCKER_CONFIG"]
    amd, arm = (f"{at}/cli/multi@{child(registry, 'cli/multi', number)}" for number in (0, 1))
    pair.docker("manifest", "create", "--insecure", f"{at}/cli/mixed:1", amd)
    pair.wherry("manifest", "create", "-a", f"{at}/cli/mixed:1", arm)
    pair.docker("manifest", "annotate", "--variant", "v8", f"{at}/cli/mixed:1", arm)
    pair.wherry("manifest", "annotate", "--os-features", "x", f"{at}/cli/mixed:1", amd)
    pushed = pair.wherry("manifest", "push", f"{at}/cli/mixed:1").lines[-1]
    assert pair.docker("manifest", "push", "-p", "--insecure", f"{at}/cli/mixed:1").lines[-1] == pushed
    assert registry.digest("cli/mixed:1") == pushed
    shown = json.loads(pair.wherry("manifest", "inspect", f"{at}/cli/mixed:1").out)
    assert [entry["platform"] for entry in shown["manifests"]] == [
        {"architecture": "amd64", "os": "linux", "os.features": ["x"]},
        {"architecture": "arm64", "os": "linux", "variant": "v8"},
    ]
    pair.docker("pull", "-q", f"{at}/cli/mixed:1")
    pair.docker("rmi", f"{at}/cli/mixed:1")


def test_logging_in_and_out_is_told_and_kept_the_same(pair: Pair, private_registry: Registry) -> None:
    at = private_registry.address
    for line, given in (
        (f"login -u {USER} -p wrong {at}", None), (f"login -u {USER} --password-stdin {at}", "wrong"),
        (f"login -u {USER} -p {PASSWORD} {at}", None), (f"login {at}", None), (f"login -u bob {at}", None),
        (f"pull -q {at}/team/busybox", None), (f"manifest inspect --insecure {at}/team/busybox:latest", None),
        (f"logout {at}", None), (f"logout {at}", None), ("logout", None), ("login -u a --password-stdin", ""),
        ("login --password-stdin", "x"), ("login -u a -p b --password-stdin", "x"), (f"login -u {USER} {at}", "x"),
        (f"login -u {USER} --password-stdin https://{at}/v2/", PASSWORD + "\r\n"), (f"logout http://{at}", None),
        (f"login -u {USER} -p {PASSWORD} 127.0.0.1:1", None),
    ):  # fmt: skip
        pair.both(line, input=given)
        pair.same_files()
    pair.docker("rmi", f"{at}/team/busybox")


def test_credentials_go_where_they_belong(pair: Pair, private_registry: Registry) -> None:
    """A list pushed with what `wherry login` has kept."""
    at = private_registry.address
    refused = pair.wherry("manifest", "inspect", f"{at}/team/busybox", check=False)
    assert (refused.code, refused.err) == (
        1, f"http://{at}: no basic auth credentials: run 'wherry login {at}'\n",
    )  # fmt: skip
    pair.wherry("login", "-u", USER, "--password-stdin", at, input=PASSWORD)
    pair.wherry("manifest", "create", f"{at}/cli/list", f"{at}/team/busybox")
    pushed = pair.wherry("manifest", "push", f"{at}/cli/list").lines[-1]
    assert private_registry.digest("cli/list:latest") == pushed


IMAGES = [
    "image ls --tree", "image ls --tree -a", "image ls --tree busybox", "image ls --tree nope",
    "image ls --tree -f reference=configured", "image ls --tree -q", "image ls --tree --no-trunc",
    "image ls --tree --digests", "image ls --tree --format json", "image ls --digests", "image ls --digests --no-trunc",
    "image ls -f dangling=true", "image ls -f before=layered", "image ls -f since=layered", "image ls -f before=nope",
    "image ls -f reference=*/cli/*:1", "image ls -f reference=busy*", "image ls -f label=org.example.kind=test",
    "image ls -f until=1h", "image ls -f foo=bar", "image ls -f dangling=x",
    "image inspect --platform linux/arm64 MULTI", "image inspect --platform linux/s390x MULTI",
    "image inspect --platform a/b/c/d MULTI", "image inspect --platform /// MULTI",
    "history --platform linux/arm64 --no-trunc MULTI", "history --platform linux/arm64 busybox",
    "history --platform x MULTI", "save --platform linux/s390x MULTI", "save --platform a/b/c/d MULTI",
    "load --platform a+b", "load --platform linux/arm64", "run --rm --platform a+b busybox",
    "system df", "system df -v",
    "image prune -f --filter until=24000h", "image prune -f --filter foo=bar", "image prune -f --filter until=x",
    "search --limit 200 foo", "search -f x foo", "search -f stars=x foo", "search -f nope=1 foo",
    "search AT/foo", "pull --platform linux/s390x MULTI", "pull --platform linux/arm64 MULTI", "pull -q MULTI",
    "pull -a MULTI", "pull -a AT/cli/multi", "pull -a AT/cli/nope", "pull AT/cli/nope:1",
    "push PUSHED", "push -q PUSHED", "push -a PUSHED", "push -a AT/cli/pushed", "push -a AT/cli/nope",
    "push AT/cli/nope", "push --platform linux/arm64 PUSHED", "push --platform linux/riscv64 PUSHED",
    "push -q --platform linux/amd64 PUSHED",
    "rmi --platform linux/s390x MULTI", "rmi --platform a/b/c/d MULTI", "rmi --platform linux/arm64 nope",
    "import http://127.0.0.1:1/x made:1", "import http://127.0.0.1:1/x MADE",
]  # fmt: skip


def test_images_of_several_platforms_are_told_the_same(pair: Pair, registry: Registry, pulled: str) -> None:
    pushed = f"{registry.address}/cli/pushed:1"
    pair.docker("tag", pulled, pushed)
    for platform in ([], ["--platform", "linux/arm64"]):  # so that the layers are there, whoever is first
        pair.docker("push", "-q", *platform, pushed)
    for line in IMAGES:
        filled = line.replace("MULTI", pulled).replace("PUSHED", pushed).replace("AT", registry.address)
        pair.both(filled, changing="import" in line or "pull" in line)


def test_a_platform_is_taken_away_the_same(pair: Pair, engine: Engine, pulled: str) -> None:
    told = []
    for cli in (pair.docker, pair.wherry):
        engine.docker("pull", "-q", "--platform", "linux/arm64", pulled)
        engine.docker("pull", "-q", pulled)
        done = cli("rmi", "--platform", "linux/arm64", pulled)
        left = [entry for entry in engine.api.get("/images/json?manifests=1") if pulled in (entry["RepoTags"] or [])]
        told.append((done.out, done.err, [entry["Id"] for entry in left]))
    assert told[0] == told[1]
    assert told[0][0]


def test_a_saved_platform_is_the_same(pair: Pair, pulled: str, tmp_path: Path) -> None:
    for name, cli in pair.clients.items():
        cli("save", "--platform", "linux/arm64", "-o", str(tmp_path / f"{name}.tar"), pulled)
    assert (tmp_path / "docker.tar").read_bytes() == (tmp_path / "wherry.tar").read_bytes()


def test_what_a_push_left_out_is_told_the_same(pair: Pair, registry: Registry, pulled: str) -> None:
    """Not all platforms are here, and the repository has none of them."""
    told = []
    for name, cli in pair.clients.items():
        target = f"{registry.address}/cli/part-{name}:1"
        cli("tag", pulled, target)
        done = cli("push", "-q", target)
        plain = "".join(part.partition("m")[2] if part[:1] == "[" else part for part in done.out.split("\x1b"))
        told.append((plain.replace(f"part-{name}", "part"), done.err))
        cli("rmi", target)
    assert told[0] == told[1]
    assert "Not all multiplatform-content is present" in told[0][0]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_a_tree_fits_the_terminal_as_docker_s_does(pair: Pair, engine: Engine, pulled: str, width: int) -> None:
    engine.docker("run", "-d", pulled, "sleep", "1000")
    screens = []
    for cli in (pair.docker, pair.wherry):
        with cli.terminal("image", "ls", "-a", "--tree", cols=width) as terminal:
            assert terminal.wait() == 0
            screens.append("".join(part.partition("m")[2] if part[:1] == "[" else part
                                   for part in terminal.screen.split("\x1b")))  # fmt: skip
    assert screens[0] == screens[1]
    assert "linux/" in screens[0].replace("…", "linux/")


def test_an_image_is_converted_and_pushed_in_another_compression(
    pair: Pair, engine: Engine, registry: Registry
) -> None:
    """What only `wherry` has; the stock CLI pulls the result."""
    at = registry.address
    before = engine.api.get("/images/layered/json")["Id"]
    pair.wherry("image", "convert", "--compression", "zstd", "--format", "oci", "layered", f"{at}/cli/small:1")
    assert engine.api.get(f"/images/{at}/cli/small:1/json")["Id"] == before
    pair.wherry("push", "-q", f"{at}/cli/small:1")
    pair.wherry("tag", "layered", f"{at}/cli/small:2")
    pair.wherry("push", "-q", "--compression", "zstd", f"{at}/cli/small:2")
    for tag in ("1", "2"):
        shown = json.loads(pair.docker("manifest", "inspect", "--insecure", f"{at}/cli/small:{tag}").out)
        assert {layer["mediaType"].rpartition("+")[2] for layer in shown["layers"]} == {"zstd"}
        pair.docker("rmi", f"{at}/cli/small:{tag}")
    pair.docker("pull", "-q", f"{at}/cli/small:2")
    assert engine.api.get(f"/images/{at}/cli/small:2/json")["Id"] == before
    pair.docker("rmi", f"{at}/cli/small:2")
    wrong = pair.wherry("push", "--compression", "lz4", "layered", check=False)
    assert (wrong.code, wrong.err[:50]) == (1, "Error response from daemon: unknown compression 'l")


def test_all_platforms_are_brought_and_pushed_on(pair: Pair, engine: Engine, registry: Registry, multi: str) -> None:
    at = registry.address
    pair.wherry("pull", "-q", "--platform", "all", multi)
    pair.wherry("tag", multi, f"{at}/cli/whole:1")
    pair.wherry("push", "-q", f"{at}/cli/whole:1")
    assert registry.digest("cli/whole:1") == registry.digest("cli/multi:1")
    for name in (multi, f"{at}/cli/whole:1"):
        pair.docker("rmi", "-f", name)


@pytest.fixture
def guarded(box: Box, tmp_path: Path) -> Iterator[Registry]:
    """A registry that takes the tokens of a server of its own."""
    require_programs("docker-registry", "skopeo", "openssl")
    folder, log = tmp_path / "tokens", tmp_path / "tokens.log"
    token_server.make_keys(folder)
    server = box.spawn([sys.executable, token_server.__file__, str(TOKENS), str(folder)], log=log, net_only=True)
    try:
        while "ready" not in log.read_text():
            assert server.poll() is None, log.read_text()
            time.sleep(0.02)
        auth = token_server.config(TOKENS, folder)
        with Registry(box, tmp_path / "guarded", TOKENS + 1, private=True, auth=auth).running() as running:
            archive = tmp_path / "guarded.tar"
            archive.write_bytes(images.docker_archive([images.busybox()]))
            running.push(f"docker-archive:{archive}:busybox:latest", "team/secret:1")
            yield running
    finally:
        server.kill()
        server.wait()


def test_identity_tokens_are_kept_the_same_and_good_for_manifests_too(pair: Pair, guarded: Registry) -> None:
    at = guarded.address
    for line, given in (
        (f"login -u {USER} --password-stdin {at}", "wrong"), (f"login -u {USER} --password-stdin {at}", PASSWORD),
        (f"pull -q {at}/team/secret:1", None),
    ):  # fmt: skip
        pair.both(line, input=given)
        pair.same_files()
    assert "identitytoken" in pair.files("wherry")["config.json"]
    pair.wherry("manifest", "create", f"{at}/cli/list", f"{at}/team/secret:1")  # for which docker wants the password
    pushed = pair.wherry("manifest", "push", "-p", f"{at}/cli/list").lines[-1]
    assert json.loads(pair.wherry("manifest", "inspect", f"{at}/cli/list@{pushed}").out)["manifests"]
    pair.both(f"logout {at}")
    pair.same_files()
    pair.docker("rmi", f"{at}/team/secret:1")
