"""Content management: end-9, end-10. What is switched off MUST be 400 or 405; what is done, 202."""

import pytest

from registrykit.client import Client
from registrykit.documents import Made, image, index

ONE = image("one")
NOWHERE = "conformance/nowhere"
NO_DIGEST = "sha256:" + "0" * 64


def test_end_9_a_tag_that_is_deleted_is_202_and_then_404(client: Client, repo: str):
    client.push(repo, ONE, "v1")
    client.push(repo, ONE, "v2")
    answer = client.delete(f"/v2/{repo}/manifests/v1")
    assert answer.status in (202, 400, 405)
    if answer.status == 202:
        assert client.manifest(repo, "v1").status == 404
        assert client.get(f"/v2/{repo}/tags/list").json()["tags"] == ["v2"]
    else:
        assert client.manifest(repo, "v1").status == 200
    assert client.manifest(repo, "v2").status == 200
    assert client.manifest(repo, ONE.digest).status == 200


@pytest.mark.parametrize("made", [ONE, index([ONE])], ids=["manifest", "index"])
def test_end_9_a_manifest_that_is_deleted_is_202_and_then_404(client: Client, repo: str, made: Made):
    client.push(repo, made, "v1")
    assert client.delete(f"/v2/{repo}/manifests/{made.digest}").status == 202
    for method in ("GET", "HEAD"):
        assert client.request(method, f"/v2/{repo}/manifests/{made.digest}").status == 404
        assert client.request(method, f"/v2/{repo}/manifests/v1").status == 404
    for child in made.children:
        assert client.manifest(repo, child.digest).status == 200


def test_end_9_tags_of_a_deleted_manifest_are_listed_no_more(client: Client, repo: str):
    client.push(repo, ONE, "v1")
    client.push(repo, ONE, "v2")
    client.push(repo, image("stays"), "v3")
    assert client.delete(f"/v2/{repo}/manifests/{ONE.digest}").status == 202
    assert client.get(f"/v2/{repo}/tags/list").json()["tags"] == ["v3"]


@pytest.mark.parametrize("reference", ["absent", NO_DIGEST])
def test_end_9_a_manifest_that_is_not_there_is_404(client: Client, repo: str, reference: str):
    client.push(repo, ONE, "v1")
    answer = client.delete(f"/v2/{repo}/manifests/{reference}")
    assert answer.status == 404 or (reference == "absent" and answer.status in (400, 405))


def test_end_9_a_manifest_of_a_repository_that_is_not_there_is_404(client: Client):
    assert client.delete(f"/v2/{NOWHERE}/manifests/{NO_DIGEST}").status == 404


def test_end_9_a_manifest_of_another_repository_stays(client: Client, repo: str):
    for name in (repo, f"{repo}/other"):
        client.push(name, ONE, "v1")
    assert client.delete(f"/v2/{repo}/manifests/{ONE.digest}").status == 202
    assert client.manifest(f"{repo}/other", "v1").body == ONE.data


def test_end_9_a_deleted_manifest_can_be_pushed_again(client: Client, repo: str):
    client.push(repo, ONE, "v1")
    assert client.delete(f"/v2/{repo}/manifests/{ONE.digest}").status == 202
    client.push(repo, ONE, "v1")
    assert client.manifest(repo, "v1").body == ONE.data


def test_end_10_a_blob_that_is_deleted_is_202_and_then_404(client: Client, repo: str):
    name = client.push_blob(repo, b"a blob to delete")
    assert client.delete(f"/v2/{repo}/blobs/{name}").status == 202
    assert client.get(f"/v2/{repo}/blobs/{name}").status == 404
    assert client.head(f"/v2/{repo}/blobs/{name}").status == 404


def test_end_10_a_blob_that_is_not_there_is_404(client: Client, repo: str):
    client.push_blob(repo, b"another")
    assert client.delete(f"/v2/{repo}/blobs/{NO_DIGEST}").status == 404
    assert client.delete(f"/v2/{NOWHERE}/blobs/{NO_DIGEST}").status == 404


def test_end_10_a_deleted_blob_can_be_pushed_again(client: Client, repo: str):
    data = b"a blob that comes back"
    name = client.push_blob(repo, data)
    assert client.delete(f"/v2/{repo}/blobs/{name}").status == 202
    client.push_blob(repo, data)
    assert client.get(f"/v2/{repo}/blobs/{name}").body == data
