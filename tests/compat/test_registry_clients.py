"""The clients people have against our registry, alone and inside the engine; and our client against Debian's.

Every registry is real and has its own port; what needs TLS gets it, with a CA in certs.d; nobody is told to be careless
but where the registry speaks plain HTTP.
"""

import contextlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import images
from harness.box import Box
from harness.engine import remove_root, short_root
from harness.engines import new_engine
from harness.leaks import Before, Witness
from harness.needs import require_programs
from harness.our_registry import DEBIAN, ENGINE, MUTUAL, OURS, SECRET, Client, Harbour, Kind
from harness.registry import PASSWORD, USER

pytestmark = pytest.mark.not_dockerd("the registry under test is ours")

ANY = {kind.name: kind for kind in (*OURS, *DEBIAN)}
PROVENANCE = "application/vnd.in-toto+json"


@pytest.fixture(scope="module")
def harbour() -> Iterator[Harbour]:
    """All registries, and an engine; looked at for leaks at the end."""
    require_programs("skopeo", "podman", "buildah", "docker", "docker-registry", "openssl")
    with contextlib.ExitStack() as stack:
        root = short_root("harbour")
        stack.callback(remove_root, root)
        made = Harbour(stack.enter_context(Box()), root)
        before = Before(made.box)
        engine = new_engine(made.box, root, bip="172.31.9.1/24", args=["--config-file", str(made.config)])
        engine.start()
        witness = Witness(engine)
        try:
            with made.serving(*(kind for kind in ANY.values() if kind is not ENGINE), MUTUAL):
                yield made
        finally:
            engine.remove_all_containers()
            witness.stop()
            engine.stop()
        faults = made.faults(engine.log)
        assert not faults, "logged:\n  " + "\n  ".join(faults)
        leaks = before.leaks(engine, witness.containers)
        assert not leaks, "left behind:\n  " + "\n  ".join(leaks) + f"\n{engine.log_tail()}"


@pytest.fixture(params=[kind.name for kind in OURS])
def ours(request: pytest.FixtureRequest) -> Kind:
    """Each registry of ours in turn."""
    return ANY[request.param]


@pytest.fixture(params=list(ANY))
def registry(request: pytest.FixtureRequest) -> Kind:
    """Ours and Debian's."""
    return ANY[request.param]


@pytest.fixture
def py(harbour: Harbour) -> Iterator[Any]:
    """docker-py."""
    import docker

    client = docker.DockerClient(base_url=f"unix://{harbour.socket}")
    yield client
    client.close()


def image(word: str, architecture: str = "amd64") -> images.Image:
    """Two small layers that no other image has."""
    text = f"{word} {architecture}\n".encode()
    layers = [images.tar([images.Entry(name=name, data=text)]) for name in ("one", "two")]
    return images.Image(tags=[], layers=layers, architecture=architecture)


def stocked(harbour: Harbour, tmp_path: Path, kind: Kind, word: str) -> tuple[str, str]:
    """A fresh image in a registry: its repository, where it has the tag 1, and its digest."""
    repository = f"{kind.address}/team/{word}"
    digest = images.oci_layout(tmp_path / word, [image(f"{word} {kind.name}")])
    harbour.copy(f"oci:{tmp_path / word}", f"{repository}:1")
    return repository, digest


@contextlib.contextmanager
def signed_in(client: Client, kind: Kind, *flags: str) -> Iterator[None]:
    if not kind.auth:
        yield
        return
    assert (
        "Login Succeeded" in client("login", *flags, "-u", USER, "--password-stdin", kind.address, input=PASSWORD).out
    )
    yield
    client("logout", kind.address)


def careless(kind: Kind) -> list[str]:
    """What podman and buildah must be told of plain HTTP."""
    return [] if kind.tls else ["--tls-verify=false"]


def insecure(kind: Kind) -> list[str]:
    """The same for `docker manifest`."""
    return [] if kind.tls else ["--insecure"]


# -- skopeo ------------------------------------------------------------------------------------------------------------


def test_skopeo_copies_inspects_lists_syncs_and_deletes(harbour: Harbour, ours: Kind, tmp_path: Path) -> None:
    skopeo = harbour.skopeo
    repository, digest = stocked(harbour, tmp_path, ours, "skopeo")
    flags = harbour.flags(repository)
    harbour.copy(f"{repository}:1", f"{repository}:2", "--preserve-digests")
    harbour.copy(f"{repository}:1", f"{repository}-mounted:1", "--preserve-digests")
    assert harbour.tree(f"{repository}-mounted:1") == harbour.tree(f"{repository}:2")
    images.oci_layout(tmp_path / "other", [image("other")])
    harbour.copy(f"oci:{tmp_path}/other", f"{repository}:3")
    assert skopeo.json("list-tags", *flags, f"docker://{repository}")["Tags"] == ["1", "2", "3"]
    shown = skopeo.json("inspect", *flags, f"docker://{repository}:2")
    assert (shown["Digest"], shown["RepoTags"], shown["Architecture"]) == (digest, ["1", "2", "3"], "amd64")

    there = tmp_path / "synced"
    skopeo("sync", *harbour.flags(repository, "src-"), "--src", "docker", "--dest", "dir", repository, str(there))
    assert sorted(path.name for path in there.iterdir()) == ["skopeo:1", "skopeo:2", "skopeo:3"]
    mirror = f"{ours.address}/team/mirror"
    skopeo("sync", *harbour.flags(repository, "dest-"), "--src", "dir", "--dest", "docker", str(there), mirror)
    assert harbour.tree(f"{mirror}/skopeo:2") == harbour.tree(f"{repository}:1")

    skopeo("delete", *flags, f"docker://{repository}:1")  # the manifest, with all its tags
    assert skopeo.json("list-tags", *flags, f"docker://{repository}")["Tags"] == ["3"]
    gone = skopeo.refused("inspect", *flags, f"docker://{repository}:1")
    assert "manifest unknown: repository team/skopeo has no manifest 1" in gone


# -- podman, buildah ---------------------------------------------------------------------------------------------------


def test_podman_pulls_searches_and_pushes(harbour: Harbour, ours: Kind, tmp_path: Path) -> None:
    podman, flags = harbour.podman, careless(ours)
    repository, digest = stocked(harbour, tmp_path, ours, "podman")
    with signed_in(podman, ours, *flags):
        found = podman("pull", "--quiet", *flags, f"{repository}:1").text
        assert podman("image", "inspect", "--format", "{{.Digest}}", found).text == digest
        podman("push", "--quiet", *flags, found, f"{repository}:pushed")
        podman("rmi", "--force", found)
        assert podman("pull", "--quiet", *flags, f"{repository}:pushed").text == found
        assert podman("search", *flags, "--format", "{{.Name}}", repository).lines == [repository]
        tags = podman("search", *flags, "--list-tags", repository).lines[1:]
        assert [line.split() for line in tags] == [[repository, "1"], [repository, "pushed"]]
        unknown = podman.refused("pull", *flags, f"{repository}:nope")
        assert "manifest unknown: repository team/podman has no manifest nope" in unknown
    podman("rmi", "--force", found)


@pytest.mark.parametrize("ours", ["plain", "tls", "engine"], indirect=True)
def test_buildah_builds_on_what_is_there_and_pushes_lists(harbour: Harbour, ours: Kind, tmp_path: Path) -> None:
    buildah, flags = harbour.buildah, careless(ours)
    repository, _ = stocked(harbour, tmp_path, ours, "buildah")
    with signed_in(buildah, ours, *flags):
        made = buildah("from", *flags, f"{repository}:1").text
        buildah("config", "--label", f"made-for={ours.name}", made)
        buildah("commit", "--quiet", "--rm", *flags, made, f"docker://{repository}:built")
        labels = harbour.skopeo.json("inspect", *harbour.flags(repository), f"docker://{repository}:built")["Labels"]
        assert labels["made-for"] == ours.name
        buildah("manifest", "create", "both")
        for tag in ("1", "built"):
            buildah("manifest", "add", *flags, "both", f"docker://{repository}:{tag}")
        buildah("manifest", "push", "--quiet", "--all", *flags, "both", f"docker://{repository}:both")
        buildah("rmi", "--all", "--force")
    parts = harbour.tree(f"{repository}:both")["manifests"]
    assert list(parts.values()) == [harbour.tree(f"{repository}:{tag}") for tag in ("1", "built")]


# -- oras --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ours", ["tokens", "tls", "basic", "engine"], indirect=True)
def test_oras_pushes_attaches_pulls_and_deletes_artifacts(harbour: Harbour, ours: Kind, tmp_path: Path) -> None:
    artifact, signed = f"{ours.address}/team/artifact:1", f"{ours.address}/team/signed:1"
    _, digest = stocked(harbour, tmp_path, ours, "signed")
    report, signature = tmp_path / "report", tmp_path / "signature"
    for file in (report, signature):
        file.write_text(f"{file.name} for {ours.name}\n")
    flags = ["--ca", str(harbour.authority)] if ours.tls else ["--plain"]
    flags += ["--user", f"{USER}:{PASSWORD}"] if ours.auth else []
    flags += [] if ours.tokens else ["--basic"]

    def oras(*steps: str, basic: bool = False) -> list[Any]:
        return list(harbour.oras.json(*flags, *(["--basic"] if basic else []), *steps))

    pushed, attached, (found,), _, pinned, (other,) = oras(
        f"push {artifact} {report}",
        f"attach {artifact} {signature}",
        f"referrers {artifact}",
        f"pull {artifact} {tmp_path}/out",
        f"attach {signed} {signature}",
        f"referrers {signed}",
    )
    assert pushed["Docker-Content-Digest"] == harbour.tree(artifact)["digest"]
    assert attached["OCI-Subject"] == pushed["Docker-Content-Digest"]
    assert found["digest"] == attached["Docker-Content-Digest"]
    assert (tmp_path / "out" / "report").read_text() == f"report for {ours.name}\n"
    assert (pinned["OCI-Subject"], other["digest"]) == (digest, pinned["Docker-Content-Digest"])

    listed = f"tags {artifact.removesuffix(':1')}"
    assert oras(listed, f"delete {artifact}", listed, basic=True) == [["1", "1-attached"], ["1"], ["1-attached"]]


# -- docker through our engine -----------------------------------------------------------------------------------------


def test_docker_signs_in_pulls_pushes_and_searches(harbour: Harbour, registry: Kind, tmp_path: Path) -> None:
    docker = harbour.docker
    repository, digest = stocked(harbour, tmp_path, registry, "docker")
    with signed_in(docker, registry):
        assert f"Digest: {digest}" in docker("pull", f"{repository}:1").lines
        held = docker("image", "inspect", "--format", "{{.Id}}", f"{repository}:1").text
        assert held == image(f"docker {registry.name}").id
        docker("tag", f"{repository}:1", f"{repository}-again:2")
        assert docker("push", f"{repository}-again:2").lines[-1].startswith(f"2: digest: {digest} size: ")
        if registry is not ENGINE:  # whose images are the same images
            docker("rmi", f"{repository}:1", f"{repository}-again:2")
        assert f"Digest: {digest}" in docker("pull", f"{repository}-again@{digest}").lines
        found = docker("search", "--format", "{{.Name}}", f"{registry.address}/docker").lines
        assert {"team/docker", "team/docker-again"} <= set(found)
        unknown = docker.refused("pull", f"{repository}:nope")
        assert f"manifest for {repository}:nope not found: manifest unknown: " in unknown


@pytest.mark.parametrize("registry", ["tokens", "tls", "engine", "debian-htpasswd"], indirect=True)
def test_docker_py_pulls_pushes_and_looks(harbour: Harbour, py: Any, registry: Kind, tmp_path: Path) -> None:
    repository, digest = stocked(harbour, tmp_path, registry, "docker-py")
    auth = {"username": USER, "password": PASSWORD} if registry.auth else None
    if auth:
        assert py.login(**auth, registry=registry.address, reauth=True)["Status"] == "Login Succeeded"
    assert py.images.get_registry_data(f"{repository}:1", auth_config=auth).id == digest
    pulled = py.images.pull(repository, tag="1", auth_config=auth)
    assert pulled.id == image(f"docker-py {registry.name}").id
    pulled.tag(repository, tag="pushed")
    told = list(py.images.push(repository, tag="pushed", auth_config=auth, stream=True, decode=True))
    assert told[-1]["aux"]["Digest"] == digest
    assert harbour.tree(f"{repository}:pushed") == harbour.tree(f"{repository}:1")
    if not auth:
        assert [each["name"] for each in py.images.search(f"{registry.address}/docker-py")] == ["team/docker-py"]


def test_what_is_pushed_to_the_engine_is_an_image_there_and_what_is_there_can_be_pulled(
    harbour: Harbour, tmp_path: Path
) -> None:
    repository, digest = stocked(harbour, tmp_path, ENGINE, "here")
    assert harbour.docker("images", "--no-trunc", "--format", "{{.ID}} {{.Tag}}", repository).lines == [
        f"{image('here engine').id} 1"
    ]
    harbour.docker("tag", f"{repository}:1", "elsewhere:1")
    name = f"{ENGINE.address}/library/elsewhere:1"
    assert harbour.podman("pull", "--quiet", *careless(ENGINE), name).text == image("here engine").id.removeprefix(
        "sha256:"
    )
    assert harbour.tree(name)["digest"] == digest
    harbour.podman("rmi", "--force", name)


# -- other ways from one to the other ----------------------------------------------------------------------------------


def test_layers_of_zstd_in_chunks_are_layers(harbour: Harbour, tmp_path: Path) -> None:
    name = f"{ANY['plain'].address}/team/chunked:1"
    # two blocks for the file, two for the end: of more, skopeo 1.9 keeps two (and the layer is another one)
    layers = [layer[: 4 * 512] for layer in image("chunked").layers]
    made = images.Image(tags=[], layers=layers)
    images.oci_layout(tmp_path / "plain", [made], compression="plain")
    harbour.copy(f"oci:{tmp_path}/plain", name, "--dest-compress-format", "zstd:chunked")
    for layer in json.loads(harbour.raw(name))["layers"]:
        assert layer["mediaType"] == f"{images.OCI_LAYER}+zstd"
        assert any("zstd-chunked.manifest-checksum" in key for key in layer["annotations"])
    harbour.docker("pull", name)
    assert harbour.docker("image", "inspect", "--format", "{{.Id}}", name).text == made.id
    again = name.replace("chunked", "chunked-again")
    harbour.docker("tag", name, again)
    harbour.docker("push", again)
    assert harbour.tree(again) == harbour.tree(name)


def test_podman_buildah_and_skopeo_reach_the_engine_itself(harbour: Harbour, tmp_path: Path) -> None:
    repository, _ = stocked(harbour, tmp_path, ANY["plain"], "direct")
    made, bare = image("direct plain").id, image("direct plain").id.removeprefix("sha256:")
    harbour.podman("pull", "--quiet", *careless(ANY["plain"]), f"{repository}:1")
    harbour.podman("push", "--quiet", bare, "docker-daemon:by-podman:1")
    harbour.buildah("push", "--quiet", bare, "docker-daemon:by-buildah:1")
    harbour.podman("rmi", "--force", bare)
    harbour.skopeo("copy", "--quiet", f"docker-daemon:{made}", "docker-daemon:by-skopeo:1")
    for tool in ("podman", "buildah", "skopeo"):
        assert harbour.docker("image", "inspect", "--format", "{{.Id}}", f"by-{tool}:1").text == made
    assert harbour.podman("pull", "--quiet", "docker-daemon:by-skopeo:1").text == bare
    harbour.podman("rmi", "--force", bare)


def test_archives_go_from_podman_to_the_engine_and_back(harbour: Harbour, tmp_path: Path) -> None:
    repository, digest = stocked(harbour, tmp_path, ANY["plain"], "archived")
    name, held = f"{repository}:1", image("archived plain").id
    harbour.docker("pull", "--quiet", name)
    harbour.docker("save", "--output", str(tmp_path / "ours.tar"), name)
    harbour.docker("rmi", name)
    shown = harbour.skopeo("inspect", "--format", "{{.Digest}}", f"oci-archive:{tmp_path}/ours.tar")
    assert shown.text == digest
    assert harbour.skopeo.json("inspect", "--config", f"docker-archive:{tmp_path}/ours.tar")["architecture"] == "amd64"
    assert f"Loaded image: {name}" in harbour.podman("load", "--input", str(tmp_path / "ours.tar")).out
    for form in ("docker-archive", "oci-archive"):
        archive = str(tmp_path / f"{form}.tar")
        harbour.podman("save", "--quiet", "--format", form, "--output", archive, name)
        assert f"Loaded image: {name}" in harbour.docker("load", "--input", archive).lines
        assert harbour.docker("image", "inspect", "--format", "{{.Id}}", name).text == held
        harbour.docker("rmi", name)
    harbour.podman("rmi", "--force", name)


# -- words -------------------------------------------------------------------------------------------------------------

DENIED = "denied: requested access to the resource is denied"
WRONG = "incorrect username or password"


@pytest.mark.parametrize(
    ("client", "registry", "words"),
    [
        ("docker", "tokens", f'Get "http://{{here}}/v2/": unauthorized: {WRONG}'),
        ("wherry", "tokens", f'Get "http://{{here}}/v2/": unauthorized: {WRONG}'),
        ("docker", "tls", f'Get "https://{{here}}/v2/": unauthorized: {WRONG}'),
        ("docker", "basic", f'Get "http://{{here}}/v2/": unauthorized: {WRONG}'),
        ("podman", "tokens", 'logging into "{here}": invalid username/password'),
        ("buildah", "basic", 'logging into "{here}": invalid username/password'),
        ("docker", "debian-tls", 'Get "https://{here}/v2/": unauthorized: authentication required'),
    ],
    indirect=["registry"],
)
def test_a_wrong_password_is_called_that(harbour: Harbour, client: str, registry: Kind, words: str) -> None:
    flags = careless(registry) if client in ("podman", "buildah") else []
    said = getattr(harbour, client).refused(
        "login", *flags, "-u", USER, "--password-stdin", registry.address, input="wrong"
    )
    assert words.format(here=registry.address) in said


@pytest.mark.parametrize(
    ("client", "registry", "words"),
    [
        (
            "docker",
            "tokens",
            f"pull access denied for {{name}}, repository does not exist or may require 'docker login': {DENIED}",
        ),
        (
            "wherry",
            "tls",
            f"pull access denied for {{name}}, repository does not exist or may require 'docker login': {DENIED}",
        ),
        ("docker", "basic", 'Head "http://{here}/v2/team/nobody/manifests/1": no basic auth credentials'),
        ("podman", "tokens", f"{DENIED}\nunauthorized: authentication required"),
        ("podman", "basic", "reading manifest 1 in {name}: unauthorized: authentication required"),
    ],
    indirect=["registry"],
)
def test_who_has_not_signed_in_is_told_to(harbour: Harbour, client: str, registry: Kind, words: str) -> None:
    name = f"{registry.address}/team/nobody"
    flags = careless(registry) if client == "podman" else []
    said = getattr(harbour, client).refused("pull", *flags, f"{name}:1")
    assert words.format(here=registry.address, name=name) in said


@pytest.mark.parametrize(
    ("client", "registry", "words"),
    [
        ("docker", "tokens", DENIED),
        ("docker", "basic", f"{DENIED}: {USER} may not push {SECRET}/plans"),
        ("wherry", "basic", f"{DENIED}: {USER} may not push {SECRET}/plans"),
        ("podman", "tokens", DENIED),
        ("podman", "basic", f"{DENIED}: {USER} may not push {SECRET}/plans"),
    ],
    indirect=["registry"],
)
def test_who_may_not_push_is_told_what(
    harbour: Harbour, client: str, registry: Kind, words: str, tmp_path: Path
) -> None:
    repository, _ = stocked(harbour, tmp_path, registry, "plans")
    target, flags = f"{registry.address}/{SECRET}/plans:1", careless(registry) if client == "podman" else []
    tool: Client = getattr(harbour, client)
    with signed_in(tool, registry, *flags):
        tool("pull", "--quiet", *flags, f"{repository}:1")
        tool("tag", f"{repository}:1", target)
        assert words in tool.refused("push", *flags, target)
        tool("rmi", f"{repository}:1", target)


@pytest.mark.parametrize("registry", ["tls", "debian-tls"], indirect=True)
def test_an_authority_nobody_knows_is_not_believed(harbour: Harbour, registry: Kind, tmp_path: Path) -> None:
    repository, _ = stocked(harbour, tmp_path, registry, "unknown")
    harbour.distrust(registry)
    try:
        for said in (
            harbour.docker.refused("login", "-u", USER, "--password-stdin", registry.address, input=PASSWORD),
            harbour.docker.refused("pull", f"{repository}:1"),
            harbour.podman.refused("pull", f"{repository}:1"),
            harbour.skopeo.refused("inspect", *harbour.flags(repository), f"docker://{repository}:1"),
        ):
            assert "x509: certificate signed by unknown authority" in said
    finally:
        harbour.trust(registry)


def test_a_certificate_of_the_client_is_shown_where_it_is_wanted(harbour: Harbour, tmp_path: Path) -> None:
    repository, _ = stocked(harbour, tmp_path, MUTUAL, "mutual")
    name = f"{repository}:1"
    for tool in (harbour.docker, harbour.podman):
        tool("pull", "--quiet", name)
        tool("push", "--quiet", name)
        tool("rmi", "--force", name)
    for tool in (harbour.docker, harbour.wherry):
        assert tool.json("manifest", "inspect", name)["config"]["digest"] == image("mutual mutual").id

    for part in ("cert", "key"):
        harbour.box.run("rm", f"/etc/docker/certs.d/{MUTUAL.address}/client.{part}")
    assert f'Get "https://{MUTUAL.address}/v2/": ' in harbour.docker.refused("pull", name)
    assert f"https://{MUTUAL.address}/v2/team/mutual" in harbour.wherry.refused("manifest", "inspect", name)


# -- several platforms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", ["docker", "wherry"])
@pytest.mark.parametrize("registry", ["tls", "engine", "debian"], indirect=True)
def test_an_index_is_made_by_manifest_create_and_pulled_by_platform(
    harbour: Harbour, client: str, registry: Kind, tmp_path: Path
) -> None:
    repository, flags = f"{registry.address}/team/multi-{client}", insecure(registry)
    tool: Client = getattr(harbour, client)
    parts = {name: image(client, name) for name in ("amd64", "s390x")}
    for name, part in parts.items():
        images.oci_layout(tmp_path / name, [part])
        harbour.copy(f"oci:{tmp_path / name}", f"{repository}:{name}")
    with signed_in(tool, registry):
        tool("manifest", "create", *flags, f"{repository}:all", *(f"{repository}:{name}" for name in parts))
        tool("manifest", "annotate", "--variant", "v8", f"{repository}:all", f"{repository}:s390x")
        pushed = tool("manifest", "push", *flags, "--purge", f"{repository}:all").text
        assert pushed == harbour.tree(f"{repository}:all")["digest"]
        for name, platform in (("s390x", "linux/s390x/v8"), ("amd64", "linux/amd64")):
            lines = tool("pull", "--platform", platform, f"{repository}:all").lines
            assert f"Digest: {pushed}" in lines
            shown = tool("image", "inspect", "--platform", platform, "--format", "{{.Id}}", f"{repository}:all")
            assert shown.text == parts[name].id
        none = tool.refused("pull", "--platform", "linux/arm64", f"{repository}:all")
        assert "no matching manifest for linux/arm64 in the manifest list entries" in none
        tool("rmi", f"{repository}:all")


# -- round trips -------------------------------------------------------------------------------------------------------


def attested(root: Path, parts: list[images.Image]) -> None:
    """A layout of an index of `parts`, each with the attestation that buildx puts beside it."""
    root.mkdir()
    manifests = [images.oci_manifest(root, part) for part in parts]
    for described in list(manifests):
        statement = json.dumps(
            {"predicateType": "https://slsa.dev/provenance/v0.2", "of": described["digest"]}
        ).encode()
        config = {"architecture": "unknown", "os": "unknown", "config": {}}
        config["rootfs"] = {"type": "layers", "diff_ids": [images.digest(statement)]}
        manifest = {
            "schemaVersion": 2,
            "mediaType": images.OCI_MANIFEST,
            "config": {"mediaType": images.OCI_CONFIG, **images.write_blob(root, json.dumps(config).encode())},
            "layers": [{"mediaType": PROVENANCE, **images.write_blob(root, statement)}],
        }
        manifests.append(
            {
                "mediaType": images.OCI_MANIFEST,
                **images.write_blob(root, json.dumps(manifest).encode()),
                "platform": {"architecture": "unknown", "os": "unknown"},
                "annotations": {
                    "vnd.docker.reference.type": "attestation-manifest",
                    "vnd.docker.reference.digest": described["digest"],
                },
            }
        )
    index = json.dumps({"schemaVersion": 2, "mediaType": images.OCI_INDEX, "manifests": manifests}).encode()
    top = {"mediaType": images.OCI_INDEX, **images.write_blob(root, index)}
    (root / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (root / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))


def blobs_in(archive: Path) -> dict[str, str]:
    """Digest, and that of the bytes there, of every blob in an archive."""
    with tarfile.open(archive) as tar:
        blobs = [member for member in tar if member.isfile() and member.name.startswith("blobs/sha256/")]
        return {f"sha256:{Path(blob.name).name}": images.digest(tar.extractfile(blob).read()) for blob in blobs}  # type: ignore[union-attr]


def digests(tree: dict[str, Any]) -> set[str]:
    return {tree["digest"], *tree["blobs"]}.union(*(digests(each) for each in tree["manifests"].values()))


@pytest.mark.parametrize("case", ["gzip", "zstd", "plain", "docker", "index"])
def test_every_digest_survives_the_way_round(harbour: Harbour, case: str, tmp_path: Path) -> None:
    docker, layout = harbour.docker, tmp_path / case
    options, platforms, whole = ["--preserve-digests"], [], []
    if case == "index":
        attested(layout, [image("walk index"), image("walk index", "s390x")])
        platforms, whole = ["--platform", "all"], ["--all"]
    else:
        images.oci_layout(layout, [image(f"walk {case}")], compression="gzip" if case == "docker" else case)
        if case == "docker":
            options = ["--format", "v2s2"]
    first, second, third = (f"{ANY[name].address}/team/walk-{case}:1" for name in ("plain", "debian", "tls"))
    harbour.copy(f"oci:{layout}", first, *options, *whole)
    tree = harbour.tree(first)

    docker("pull", "--quiet", *platforms, first)
    docker("save", "--output", str(tmp_path / "saved.tar"), first)
    assert blobs_in(tmp_path / "saved.tar").items() >= {digest: digest for digest in digests(tree)}.items()
    docker("rmi", first)
    assert docker("images", "--quiet", first).lines == []
    docker("load", "--input", str(tmp_path / "saved.tar"))
    docker("tag", first, second)
    docker("push", "--quiet", second)
    assert harbour.tree(second) == tree
    harbour.copy(second, third, "--preserve-digests", *whole)
    assert harbour.tree(third) == tree
    with signed_in(docker, ANY["tls"]):
        docker("pull", "--quiet", *platforms, third)
    assert f"{third.removesuffix(':1')}@{tree['digest']}" in docker.json("image", "inspect", third)[0]["RepoDigests"]
    docker("rmi", first, second, third)
