"""Pull: end-1, end-2, end-3."""

import json

import pytest

from registrykit.client import Client
from registrykit.documents import Made, digest, image, index

BLOB = bytes(range(256)) * 40
NOWHERE = "conformance/nowhere"
NO_DIGEST = "sha256:" + "0" * 64


def test_end_1_a_registry_that_implements_the_specification_answers_200(client: Client):
    assert client.get("/v2/").status == 200


# --- end-2: blobs -----------------------------------------------------------------------------------------------------


def test_end_2_get_of_a_blob_provides_it_with_200(client: Client, repo: str):
    name = client.push_blob(repo, BLOB)
    answer = client.get(f"/v2/{repo}/blobs/{name}")
    assert (answer.status, answer.body) == (200, BLOB)


def test_end_2_get_of_the_empty_blob_provides_it(client: Client, repo: str):
    name = client.push_blob(repo, b"")
    answer = client.get(f"/v2/{repo}/blobs/{name}")
    assert (answer.status, answer.body) == (200, b"")


def test_end_2_head_of_a_blob_is_200_with_its_length(client: Client, repo: str):
    name = client.push_blob(repo, BLOB)
    answer = client.head(f"/v2/{repo}/blobs/{name}")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-length"] == str(len(BLOB))


def test_end_2_the_digest_header_is_that_of_the_body(client: Client, repo: str):
    name = client.push_blob(repo, BLOB)
    for answer in (client.get(f"/v2/{repo}/blobs/{name}"), client.head(f"/v2/{repo}/blobs/{name}")):
        assert answer.headers.get("docker-content-digest", name) == name


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_end_2_a_blob_that_is_not_there_is_404(client: Client, repo: str, method: str):
    client.push_blob(repo, BLOB)
    answer = client.request(method, f"/v2/{repo}/blobs/{NO_DIGEST}")
    assert answer.status == 404
    assert method == "HEAD" or answer.codes == ["BLOB_UNKNOWN"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_end_2_a_blob_of_a_repository_that_is_not_there_is_404(client: Client, method: str):
    answer = client.request(method, f"/v2/{NOWHERE}/blobs/{NO_DIGEST}")
    assert answer.status == 404
    assert method == "HEAD" or answer.codes[0] in ("BLOB_UNKNOWN", "NAME_UNKNOWN")


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-99", 0, 99),
        ("bytes=100-", 100, 10239),
        ("bytes=-40", 10200, 10239),
        ("bytes=10200-99999", 10200, 10239),
    ],
)
def test_end_2_a_range_is_206_with_that_part(client: Client, repo: str, asked: str, first: int, last: int):
    """SHOULD support the Range header as RFC 9110 has it."""
    name = client.push_blob(repo, BLOB)
    answer = client.get(f"/v2/{repo}/blobs/{name}", Range=asked)
    assert (answer.status, answer.body) == (206, BLOB[first : last + 1])
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(BLOB)}"


def test_end_2_a_range_behind_the_end_is_416(client: Client, repo: str):
    name = client.push_blob(repo, BLOB)
    answer = client.get(f"/v2/{repo}/blobs/{name}", Range=f"bytes={len(BLOB)}-")
    assert answer.status == 416
    assert answer.headers["content-range"] == f"bytes */{len(BLOB)}"


@pytest.mark.parametrize("name", ["sha256:short", "md5", "sha256:" + "G" * 64])
def test_end_2_what_is_no_digest_is_refused(client: Client, repo: str, name: str):
    client.push_blob(repo, BLOB)
    answer = client.get(f"/v2/{repo}/blobs/{name}")
    assert answer.status in (400, 404)


# --- end-3: manifests -------------------------------------------------------------------------------------------------

ONE = image("one")
KINDS = [ONE, image("docker", docker=True), index([ONE]), index([image("in a list", docker=True)], docker=True)]
KIND = pytest.mark.parametrize("made", KINDS, ids=["manifest", "docker-manifest", "index", "docker-list"])


@KIND
@pytest.mark.parametrize("by", ["tag", "digest"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_end_3_a_manifest_is_provided_with_200_and_its_type(
    client: Client, repo: str, made: Made, by: str, method: str
):
    client.push(repo, made, "v1")
    path = f"/v2/{repo}/manifests/{'v1' if by == 'tag' else made.digest}"
    answer = client.request(method, path, headers={"Accept": made.media_type})
    assert answer.status == 200
    assert answer.body == (made.data if method == "GET" else b"")
    assert answer.headers["content-type"] == made.media_type
    assert answer.headers["content-length"] == str(len(made.data))
    assert answer.headers.get("docker-content-digest", made.digest) == made.digest


def test_end_3_a_manifest_keeps_every_byte(client: Client, repo: str):
    """MUST store the manifest in the exact byte representation provided by the client."""
    plain = image("spaced", **{"com.example.unknown": {"b": 1, "a": [None]}})
    made = Made(json.dumps(plain.document, indent=7, sort_keys=True).encode() + b"\n \n", plain.media_type, plain.blobs)
    client.push(repo, made, "v1")
    assert client.manifest(repo, "v1").body == made.data


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("reference", ["absent", NO_DIGEST])
def test_end_3_a_manifest_that_is_not_there_is_404(client: Client, repo: str, method: str, reference: str):
    client.push(repo, ONE, "v1")
    answer = client.request(method, f"/v2/{repo}/manifests/{reference}")
    assert answer.status == 404
    assert method == "HEAD" or answer.codes == ["MANIFEST_UNKNOWN"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_end_3_a_manifest_of_a_repository_that_is_not_there_is_404(client: Client, method: str):
    """An attempt to pull from a repository that does not exist MUST be 404."""
    answer = client.request(method, f"/v2/{NOWHERE}/manifests/latest")
    assert answer.status == 404
    assert method == "HEAD" or answer.codes[0] in ("MANIFEST_UNKNOWN", "NAME_UNKNOWN")


def test_end_3_a_reference_is_a_tag_or_a_digest_and_nothing_else(client: Client, repo: str):
    client.push(repo, ONE, "v1")
    for reference in ("-v1", "v1+x", digest(b"")[:20], "t" * 129):
        assert client.manifest(repo, reference).status in (400, 404), reference


# --- error documents --------------------------------------------------------------------------------------------------

KNOWN_CODES = {
    *("BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN"),
    *("MANIFEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID", "NAME_UNKNOWN", "SIZE_INVALID", "UNAUTHORIZED"),
    *("DENIED", "UNSUPPORTED", "TOOMANYREQUESTS"),
}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"/v2/{{repo}}/blobs/{NO_DIGEST}"),
        ("GET", "/v2/{repo}/manifests/absent"),
        ("GET", f"/v2/{NOWHERE}/tags/list"),
        ("GET", "/v2/{repo}/blobs/sha256:xyz"),
        ("PATCH", "/v2/{repo}/blobs/uploads/00000000-0000-4000-8000-000000000000"),
        ("PUT", "/v2/{repo}/manifests/v1"),
        ("DELETE", f"/v2/{{repo}}/manifests/{NO_DIGEST}"),
        ("DELETE", f"/v2/{{repo}}/blobs/{NO_DIGEST}"),
    ],
)
def test_errors_in_json_have_the_format_and_codes_of_the_specification(
    client: Client, repo: str, method: str, path: str
):
    client.push_blob(repo, BLOB)
    answer = client.request(method, path.format(repo=repo), b"x" if method in ("POST", "PUT", "PATCH") else None)
    assert 400 <= answer.status < 500, answer
    if not answer.headers.get("content-type", "").startswith("application/json"):
        return  # any format is allowed
    document = answer.json()
    assert document["errors"], document
    for error in document["errors"]:
        assert error["code"] in KNOWN_CODES, error
        assert isinstance(error.get("message", ""), str)
