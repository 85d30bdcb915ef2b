"""`manifest`: lists put together on this side, in docker's files, and what is sent to the registry."""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.scripted_http import ScriptedServer
from wherry.cli.drafts import file_name

Wherry = Callable[..., Any]
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.fixture(autouse=True)
def no_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's hundreds are not needed here, and take long to read."""
    monkeypatch.setenv("SSL_CERT_FILE", "/dev/null")


@pytest.fixture
def registry() -> Iterator[ScriptedServer]:
    made = ScriptedServer()
    yield made
    made.close()


def add_image(
    registry: ScriptedServer, repository: str, tag: str, *, kind: str = DOCKER_MANIFEST, **config: object
) -> bytes:
    """An image in the registry; its manifest."""
    text = json.dumps({"architecture": "amd64", "os": "linux", "note": "<&>", **config}).encode()
    raw = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": kind,
            "config": {"mediaType": "c", "size": len(text), "digest": digest(text)},
            "layers": [{"mediaType": "l", "size": 1, "digest": digest(tag.encode())}],
            "annotations": {"by": "<me>"},
        }
    ).encode()
    for name in (tag, digest(raw)):
        registry.script[f"GET /v2/{repository}/manifests/{name}"] = (200, [("Content-Type", kind)], raw)
    registry.script[f"GET /v2/{repository}/blobs/{digest(text)}"] = (200, [], text)
    return raw


def add_list(registry: ScriptedServer, repository: str, tag: str, children: list[dict[str, object]]) -> None:
    raw = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children}).encode()
    registry.script[f"GET /v2/{repository}/manifests/{tag}"] = (200, [("Content-Type", OCI_INDEX)], raw)


def drafts(tmp_path: Path) -> Path:
    return tmp_path / "config" / "manifests"


def test_a_draft_is_the_file_docker_writes(registry: ScriptedServer, wherry: Wherry, tmp_path: Path) -> None:
    raw = add_image(registry, "team/one", "1", variant="v2", **{"os.version": "7"})
    host = registry.domain
    done = wherry("manifest", "create", f"{host}/x/list", f"{host}/team/one:1")
    assert (done.code, done.out, done.err) == (0, f"Created manifest list {host}/x/list:latest\n", "")
    flat = host.replace(":", "-")
    file = drafts(tmp_path) / f"{flat}_x_list-latest" / f"{flat}_team_one-1"
    descriptor = {
        "mediaType": DOCKER_MANIFEST,
        "digest": digest(raw),
        "size": len(raw),
        "platform": {"architecture": "amd64", "os": "linux", "os.version": "7", "variant": "v2"},
    }
    document = {
        "Ref": f"{host}/team/one:1",
        "Descriptor": descriptor,
        "Raw": base64.b64encode(raw).decode(),
        "SchemaV2Manifest": json.loads(raw),
    }
    expected = json.dumps(document, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e")
    assert file.read_text() == expected
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert file_name("docker.io/library/a:1@sha256:b") == "docker.io_library_a-1@sha256-b"


def test_a_list_is_amended_only_when_that_is_asked_for(registry: ScriptedServer, wherry: Wherry) -> None:
    add_image(registry, "a", "1")
    add_image(registry, "a", "2", architecture="arm64")
    host = registry.domain
    assert wherry("manifest", "create", f"{host}/l:1", f"{host}/a:1").code == 0
    refused = wherry("manifest", "create", f"{host}/l:1", f"{host}/a:2")
    assert (refused.code, refused.err) == (1, "refusing to amend an existing manifest list with no --amend flag\n")
    assert wherry("manifest", "create", "-a", f"{host}/l:1", f"{host}/a:2").code == 0
    shown = json.loads(wherry("manifest", "inspect", f"{host}/l:1").out)
    assert shown["mediaType"] == DOCKER_LIST
    assert [child["platform"] for child in shown["manifests"]] == [
        {"architecture": "amd64", "os": "linux"},
        {"architecture": "arm64", "os": "linux"},
    ]


def test_annotations_outlast_amending(registry: ScriptedServer, wherry: Wherry) -> None:
    add_image(registry, "a", "1")
    host = registry.domain
    target, image = f"{host}/l:1", f"{host}/a:1"
    wherry("manifest", "create", target, image)
    given = ["--arch", "arm", "--variant", "v7", "--os-version", "9", "--os-features", "x,y", "--os-features", "x"]
    assert wherry("manifest", "annotate", target, image, *given).code == 0
    wherry("manifest", "create", "-a", target, image)
    shown = json.loads(wherry("manifest", "inspect", "-v", target, image).out)
    assert shown["Descriptor"]["platform"] == {
        "architecture": "arm", "os": "linux", "os.version": "9", "os.features": ["x", "y"], "variant": "v7",
    }  # fmt: skip
    wrong = wherry("manifest", "annotate", target, image, "--arch", "nope")
    assert wrong.err == "manifest entry for image has unsupported os/arch combination: linux/nope\n"
    missing = wherry("manifest", "annotate", target, f"{host}/b", "--arch", "arm")
    assert missing.err == f"manifest for image {host}/b does not exist in {target}\n"


def test_a_list_is_pushed_with_what_other_repositories_have(
    registry: ScriptedServer, wherry: Wherry, tmp_path: Path
) -> None:
    far = add_image(registry, "team/one", "1", kind=OCI_MANIFEST)
    near = add_image(registry, "x/list", "arm", kind=OCI_MANIFEST, architecture="arm64")
    host = registry.domain
    wherry("manifest", "create", f"{host}/x/list:1", f"{host}/team/one:1", f"{host}/x/list:arm")
    registry.script["POST /v2/x/list/blobs/uploads/"] = (201, [], b"")
    registry.script[f"PUT /v2/x/list/manifests/{digest(far)}"] = (201, [], b"")
    registry.script["PUT /v2/x/list/manifests/1"] = (201, [], b"")
    registry.seen.clear()
    done = wherry("manifest", "push", "-p", f"{host}/x/list:1")
    method, target, headers, body = registry.seen[-1]
    assert (done.code, done.err) == (0, "")
    assert done.out == f"Pushed ref {host}/x/list@{digest(far)} with digest: {digest(far)}\n{digest(body)}\n"
    assert (method, target, headers["content-type"]) == ("PUT", "/v2/x/list/manifests/1", OCI_INDEX)
    assert [child["digest"] for child in json.loads(body)["manifests"]] == [digest(far), digest(near)]
    assert body.startswith(b'{\n   "schemaVersion": 2,\n   "mediaType"')
    assert [line.split("?")[0] for line in registry.asked()[:3]] == [
        "POST /v2/x/list/blobs/uploads/",
        "POST /v2/x/list/blobs/uploads/",
        f"PUT /v2/x/list/manifests/{digest(far)}",
    ]
    assert registry.seen[2][3] == far
    assert list(drafts(tmp_path).iterdir()) == []


def test_a_push_that_fails_keeps_the_list(registry: ScriptedServer, wherry: Wherry) -> None:
    add_image(registry, "a", "1")
    host = registry.domain
    wherry("manifest", "create", f"{host}/a:l", f"{host}/a:1")
    registry.script["PUT /v2/a/manifests/l"] = (403, [], b'{"errors":[{"code":"DENIED","message":"read only"}]}')
    failed = wherry("manifest", "push", "-p", f"{host}/a:l")
    assert (failed.code, failed.err) == (1, "denied: read only\n")
    assert wherry("manifest", "inspect", f"{host}/a:l").code == 0
    elsewhere = wherry("manifest", "create", "other.example/l", f"{host}/a:1")
    assert elsewhere.code == 0
    assert wherry("manifest", "push", "other.example/l").err == (
        f"cannot use source images from a different registry than the target image: {host} != other.example\n"
    )


def test_an_image_without_a_platform_is_not_pushed(registry: ScriptedServer, wherry: Wherry) -> None:
    add_image(registry, "a", "1", architecture="", os="")
    host = registry.domain
    wherry("manifest", "create", f"{host}/a:l", f"{host}/a:1")
    assert wherry("manifest", "push", f"{host}/a:l").err == (
        f"manifest {host}/a:1 must have an OS and Architecture to be pushed to a registry\n"
    )


def test_a_list_in_the_registry_is_shown_with_its_images(registry: ScriptedServer, wherry: Wherry) -> None:
    raw = add_image(registry, "a", "1", kind=OCI_MANIFEST)
    child = {"mediaType": OCI_MANIFEST, "digest": digest(raw), "size": len(raw), "annotations": {"x": "y"}}
    add_list(registry, "a", "all", [{**child, "platform": {"os": "linux", "architecture": "amd64"}}, child])
    host = registry.domain
    brief = json.loads(wherry("manifest", "inspect", f"{host}/a:all").out)
    assert [entry["platform"] for entry in brief["manifests"]] == [
        {"architecture": "amd64", "os": "linux"}, {"architecture": "", "os": ""},
    ]  # fmt: skip
    assert registry.asked() == ["GET /v2/a/manifests/all"]
    full = json.loads(wherry("manifest", "inspect", "-v", f"{host}/a:all").out)
    assert [entry["Ref"] for entry in full] == [f"{host}/a:all@{digest(raw)}"] * 2
    assert full[0]["OCIManifest"] == json.loads(raw)
    refused = wherry("manifest", "create", f"{host}/l", f"{host}/a:all")
    assert refused.err == f"{host}/a:all is a manifest list\n"


def test_one_image_is_shown_as_the_registry_has_it(registry: ScriptedServer, wherry: Wherry) -> None:
    raw = add_image(registry, "a", "1")
    shown = wherry("manifest", "inspect", f"{registry.domain}/a:1")
    assert json.loads(shown.out) == json.loads(raw)
    assert '\n\t"config": {\n\t\t' in shown.out
    assert registry.asked() == ["GET /v2/a/manifests/1"]


def test_what_is_no_image_is_refused_in_words(registry: ScriptedServer, wherry: Wherry) -> None:
    host = registry.domain
    registry.script["GET /v2/a/manifests/x"] = (200, [("Content-Type", "application/x-thing; q=1")], b"{}")
    registry.script["GET /v2/a/manifests/y"] = (200, [("Content-Type", OCI_MANIFEST)], b"{}")
    registry.script["GET /v2/a/manifests/z"] = (200, [("Content-Type", OCI_INDEX)], b"[]")
    assert wherry("manifest", "inspect", f"{host}/a:x").err == (
        f"{host}/a:x is no image: its media type is application/x-thing\n"
    )
    assert wherry("manifest", "create", "l", f"{host}/a:y").err == (
        f"{host}/a:y: its manifest or its config is no valid document\n"
    )
    assert wherry("manifest", "inspect", f"{host}/a:z").err == f"{host}/a:z is no valid manifest list\n"
    assert wherry("manifest", "inspect", f"{host}/a:none").err == f"no such manifest: {host}/a:none\n"


def test_a_damaged_draft_is_told_of_and_can_be_removed(
    registry: ScriptedServer, wherry: Wherry, tmp_path: Path
) -> None:
    add_image(registry, "a", "1")
    host = registry.domain
    wherry("manifest", "create", f"{host}/a:l", f"{host}/a:1")
    (folder,) = drafts(tmp_path).iterdir()
    (file,) = folder.iterdir()
    for damage in (b"", b"{}", b'{"Ref":"a","Descriptor":7}', b'{"Ref":"a","Descriptor":{},"Raw":"!"}'):
        file.write_bytes(damage)
        failed = wherry("manifest", "push", f"{host}/a:l")
        assert failed.code == 1
        assert f"{file} is damaged: remove the list with 'wherry manifest rm'" in failed.err
    done = wherry("manifest", "rm", f"{host}/a:l", "nope", "BAD")
    assert done.code == 1
    assert done.err.splitlines() == [
        "No such manifest: docker.io/library/nope:latest",
        "invalid reference format: repository name (library/BAD) must be lowercase",
    ]
    assert list(drafts(tmp_path).iterdir()) == []


def test_credentials_of_the_config_are_used(registry: ScriptedServer, wherry: Wherry, tmp_path: Path) -> None:
    def answer(target: str, headers: dict[str, str], body: bytes) -> Any:
        if headers.get("authorization") != "Basic " + base64.b64encode(b"me:secret").decode():
            return 401, [("WWW-Authenticate", 'Basic realm="r"')], b""
        return raw

    add_image(registry, "a", "1")
    raw = registry.script["GET /v2/a/manifests/1"]
    registry.script["GET /v2/a/manifests/1"] = answer
    host = registry.domain
    assert "no basic auth credentials" in wherry("manifest", "inspect", f"{host}/a:1").err
    (tmp_path / "config").mkdir(exist_ok=True)
    auths = {host: {"auth": base64.b64encode(b"me:secret").decode()}}
    (tmp_path / "config" / "config.json").write_text(json.dumps({"auths": auths}))
    assert wherry("manifest", "inspect", f"{host}/a:1").code == 0
