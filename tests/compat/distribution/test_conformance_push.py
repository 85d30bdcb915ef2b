"""Push: end-4 to end-7, end-11, end-13, end-14."""

import re

import pytest

from imagekit import making
from registrykit.client import Client, location, with_digest
from registrykit.documents import Made, altered, artifact, digest, image, index

DATA = bytes(range(251)) * 100
HALF = len(DATA) // 2
NOWHERE = "conformance/nowhere"
NO_UPLOAD = "00000000-0000-4000-8000-000000000000"
NO_DIGEST = "sha256:" + "0" * 64


def holds(client: Client, repository: str, data: bytes) -> bool:
    answer = client.get(f"/v2/{repository}/blobs/{digest(data)}")
    return (answer.status, answer.body) == (200, data)


# --- end-4a, end-6: POST, then PUT ------------------------------------------------------------------------------------


def test_end_4a_an_upload_begins_with_202_and_a_location(client: Client, repo: str):
    answer = client.post(f"/v2/{repo}/blobs/uploads/")
    assert answer.status == 202
    assert location(answer)


def test_end_4a_the_location_contains_a_uuid(client: Client, repo: str):
    """The location MUST contain a UUID representing a unique session ID."""
    assert re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", client.begin(repo))


def test_end_4a_every_upload_has_a_location_of_its_own(client: Client, repo: str):
    assert len({client.begin(repo) for _ in range(3)}) == 3


def test_end_6_a_monolithic_upload_ends_with_201_and_a_pullable_location(client: Client, repo: str):
    answer = client.put(with_digest(client.begin(repo), digest(DATA)), DATA)
    assert answer.status == 201
    assert client.get(location(answer)).body == DATA
    assert answer.headers.get("docker-content-digest", digest(DATA)) == digest(DATA)


def test_end_6_the_digest_must_be_that_of_the_content(client: Client, repo: str):
    answer = client.put(with_digest(client.begin(repo), NO_DIGEST), DATA)
    assert (answer.status, answer.codes) == (400, ["DIGEST_INVALID"])
    assert client.head(f"/v2/{repo}/blobs/{NO_DIGEST}").status == 404
    assert not holds(client, repo, DATA)


@pytest.mark.parametrize("query", ["", "digest=", "digest=sha256:12"])
def test_end_6_the_closing_put_must_bring_a_digest(client: Client, repo: str, query: str):
    path = client.begin(repo)
    answer = client.put(f"{path}{'&' if '?' in path else '?'}{query}" if query else path, DATA)
    assert (answer.status, answer.codes) == (400, ["DIGEST_INVALID"])


def test_end_6_the_same_blob_may_be_uploaded_again(client: Client, repo: str):
    client.push_blob(repo, DATA)
    client.push_blob(repo, DATA)
    assert holds(client, repo, DATA)


@pytest.mark.parametrize("method", ["GET", "PATCH", "PUT"])
def test_end_5_6_13_an_upload_that_was_never_begun_is_404(client: Client, repo: str, method: str):
    client.push_blob(repo, DATA)
    path = f"/v2/{repo}/blobs/uploads/{NO_UPLOAD}"
    answer = client.request(method, with_digest(path, digest(DATA)), None if method == "GET" else DATA)
    assert answer.status == 404
    assert answer.codes[0] in ("BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID")


@pytest.mark.parametrize("method", ["GET", "PATCH", "PUT"])
def test_end_6_an_upload_that_was_closed_is_404(client: Client, repo: str, method: str):
    path = client.begin(repo)
    client.put(with_digest(path, digest(DATA)), DATA)
    answer = client.request(method, with_digest(path, digest(DATA)), None if method == "GET" else DATA)
    assert answer.status == 404


# --- end-4b: a single POST --------------------------------------------------------------------------------------------


def test_end_4b_a_single_post_is_201_or_begins_an_upload(client: Client, repo: str):
    """A registry that does not support it SHOULD answer 202 and a Location to PUT to."""
    answer = client.post(f"/v2/{repo}/blobs/uploads/?digest={digest(DATA)}", DATA)
    assert answer.status in (201, 202)
    if answer.status == 202:
        answer = client.put(with_digest(location(answer), digest(DATA)), DATA)
    assert answer.status == 201
    assert client.get(location(answer)).body == DATA


def test_end_4b_the_digest_must_be_that_of_the_content(client: Client, repo: str):
    answer = client.post(f"/v2/{repo}/blobs/uploads/?digest={NO_DIGEST}", DATA)
    if answer.status == 202:
        answer = client.put(with_digest(location(answer), NO_DIGEST), DATA)
    assert (answer.status, answer.codes) == (400, ["DIGEST_INVALID"])
    assert not holds(client, repo, DATA)


# --- end-5: chunks ----------------------------------------------------------------------------------------------------


def chunk(client: Client, path: str, first: int, last: int):
    return client.patch(path, DATA[first : last + 1], Content_Range=f"{first}-{last}")


def test_end_5_a_chunk_is_202_with_location_and_range(client: Client, repo: str):
    answer = chunk(client, client.begin(repo), 0, HALF - 1)
    assert answer.status == 202
    assert answer.headers["range"] == f"0-{HALF - 1}"
    answer = chunk(client, location(answer), HALF, len(DATA) - 1)
    assert answer.status == 202
    assert answer.headers["range"] == f"0-{len(DATA) - 1}"
    answer = client.put(with_digest(location(answer), digest(DATA)))
    assert answer.status == 201
    assert client.get(location(answer)).body == DATA


def test_end_5_6_the_final_chunk_may_come_with_the_closing_put(client: Client, repo: str):
    answer = chunk(client, client.begin(repo), 0, HALF - 1)
    answer = client.put(
        with_digest(location(answer), digest(DATA)), DATA[HALF:], Content_Range=f"{HALF}-{len(DATA) - 1}"
    )
    assert answer.status == 201
    assert holds(client, repo, DATA)


def test_end_5_chunks_without_a_content_range_are_appended(client: Client, repo: str):
    """As Docker's client sends them: one PATCH with the whole stream."""
    answer = client.patch(client.begin(repo), DATA)
    assert answer.status == 202
    assert answer.headers["range"] == f"0-{len(DATA) - 1}"
    assert client.put(with_digest(location(answer), digest(DATA))).status == 201
    assert holds(client, repo, DATA)


def test_end_5_a_chunk_out_of_order_is_416(client: Client, repo: str):
    answer = chunk(client, client.begin(repo), 0, 99)
    assert chunk(client, location(answer), 200, 299).status == 416


def test_end_5_the_first_chunk_must_begin_with_0(client: Client, repo: str):
    assert chunk(client, client.begin(repo), 1, 100).status == 416


def test_end_5_a_chunk_that_was_sent_before_is_416(client: Client, repo: str):
    answer = chunk(client, client.begin(repo), 0, 99)
    assert chunk(client, location(answer), 0, 99).status == 416


def test_end_5_13_after_416_the_status_says_where_to_go_on(client: Client, repo: str):
    path = location(chunk(client, client.begin(repo), 0, 99))
    assert chunk(client, path, 200, 299).status == 416
    status = client.get(path)
    assert status.status == 204
    assert status.headers["range"] == "0-99"
    answer = chunk(client, location(status), 100, len(DATA) - 1)
    assert answer.status == 202
    assert client.put(with_digest(location(answer), digest(DATA))).status == 201
    assert holds(client, repo, DATA)


def test_end_6_a_final_chunk_out_of_order_is_416(client: Client, repo: str):
    answer = chunk(client, client.begin(repo), 0, 99)
    answer = client.put(with_digest(location(answer), digest(DATA)), DATA[200:], Content_Range=f"200-{len(DATA) - 1}")
    assert answer.status == 416


# --- end-13, end-14: status, cancel -----------------------------------------------------------------------------------


def test_end_13_the_status_of_an_upload_is_204_with_location_and_range(client: Client, repo: str):
    path = location(chunk(client, client.begin(repo), 0, 99))
    answer = client.get(path)
    assert (answer.status, answer.body) == (204, b"")
    assert location(answer)
    assert answer.headers["range"] == "0-99"


def test_end_14_an_upload_that_is_cancelled_is_204_and_gone(client: Client, repo: str):
    path = location(chunk(client, client.begin(repo), 0, 99))
    assert client.delete(path).status == 204
    assert client.get(path).status == 404
    assert client.delete(path).status == 404


# --- end-11: mount ----------------------------------------------------------------------------------------------------


def test_end_11_a_mount_is_201_with_a_pullable_location_or_202(client: Client, repo: str):
    name = client.push_blob(f"{repo}/source", DATA)
    answer = client.post(f"/v2/{repo}/blobs/uploads/?mount={name}&from={repo}/source")
    assert answer.status in (201, 202)
    if answer.status == 201:
        assert client.get(location(answer)).body == DATA
        assert answer.headers.get("docker-content-digest", name) == name
        assert holds(client, repo, DATA)


@pytest.mark.parametrize("source", ["{repo}/source", NOWHERE])
def test_end_11_what_cannot_be_mounted_begins_an_upload(client: Client, repo: str, source: str):
    """SHOULD be 202: the upload has begun."""
    client.push_blob(f"{repo}/source", b"something else")
    answer = client.post(f"/v2/{repo}/blobs/uploads/?mount={digest(DATA)}&from={source.format(repo=repo)}")
    assert answer.status == 202
    assert client.put(with_digest(location(answer), digest(DATA)), DATA).status == 201
    assert holds(client, repo, DATA)


def test_end_11_without_a_source_it_is_mounted_or_uploaded(client: Client, repo: str):
    """MAY treat `from` as optional."""
    name = client.push_blob(f"{repo}/source", DATA)
    answer = client.post(f"/v2/{repo}/blobs/uploads/?mount={name}")
    assert answer.status in (201, 202)
    if answer.status == 202:
        answer = client.put(with_digest(location(answer), name), DATA)
        assert answer.status == 201
    assert client.get(location(answer)).body == DATA


# --- end-7: manifests -------------------------------------------------------------------------------------------------

ONE = image("one")
KINDS = {
    "manifest": ONE,
    "docker manifest": image("docker", docker=True),
    "index": index([ONE, image("other")]),
    "docker list": index([image("in a list", docker=True)], docker=True),
    "index of indexes": index([index([ONE])]),
    "empty index": index([]),
    "no layers": image("bare", tars=[]),
    "empty config": artifact("artifact"),
    "custom config": image("custom", config=b"\0binary", config_type="application/vnd.example.config.v1"),
    "annotations": image("annotated", annotations={"org.example.key": "väl\u2028ue"}),
    "artifact index": index([ONE], artifactType="application/vnd.example.set", annotations={"a": "b"}),
    "same layer twice": image("twice", tars=[making.tar({"a": b"1"})] * 2),
}


@pytest.mark.parametrize("made", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("by", ["tag", "digest"])
def test_end_7_a_manifest_is_201_with_a_pullable_location(client: Client, repo: str, made: Made, by: str):
    for child in made.children:
        client.push(repo, child)
    for blob in made.blobs:
        client.push_blob(repo, blob)
    answer = client.put_manifest(repo, "v1" if by == "tag" else made.digest, made)
    assert answer.status == 201
    assert answer.headers.get("docker-content-digest", made.digest) == made.digest
    assert client.get(location(answer), Accept=made.media_type).body == made.data
    assert client.manifest(repo, made.digest).body == made.data


def test_end_7_an_artifact_type_is_kept(client: Client, repo: str):
    made = image("typed", artifactType="application/vnd.example.sbom")
    client.push(repo, made, "v1")
    assert client.manifest(repo, "v1").body == made.data


def test_end_7_a_tag_moves_to_what_was_pushed_last(client: Client, repo: str):
    other = image("other")
    client.push(repo, ONE, "v1")
    client.push(repo, other, "v1")
    assert client.manifest(repo, "v1").body == other.data
    assert client.manifest(repo, ONE.digest).body == ONE.data


def test_end_7_a_digest_that_is_not_the_manifests_is_refused(client: Client, repo: str):
    client.push(repo, ONE, "v1")
    answer = client.put_manifest(repo, NO_DIGEST, ONE)
    assert (answer.status, answer.codes) == (400, ["DIGEST_INVALID"])
    assert client.head(f"/v2/{repo}/manifests/{NO_DIGEST}").status == 404


def test_end_7_a_subject_that_is_not_there_is_accepted(client: Client, repo: str):
    """MUST initially accept an otherwise valid manifest whose subject does not exist in the repository."""
    client.push(repo, artifact("early", subject=image("comes later")), "v1")


def test_end_7_the_subject_is_told_in_a_header(client: Client, repo: str):
    """A registry with the referrers API MUST answer OCI-Subject, so that clients need not keep a referrers tag."""
    for made in (artifact("signature", subject=ONE), index([], subject=ONE)):
        for blob in made.blobs:
            client.push_blob(repo, blob)
        answer = client.put_manifest(repo, made.digest, made)
        assert answer.status == 201
        assert answer.headers.get("oci-subject") == ONE.digest
    client.push(repo, ONE, "v1")
    assert "oci-subject" not in client.put_manifest(repo, "v1", ONE).headers


@pytest.mark.parametrize("lacking", ["layer", "config", "child"])
def test_end_7_what_names_absent_things_is_taken_or_refused_as_manifest_blob_unknown(
    client: Client, repo: str, lacking: str
):
    """MAY be rejected; it MUST then be MANIFEST_BLOB_UNKNOWN."""
    made = index([image("absent")]) if lacking == "child" else image("incomplete")
    for blob in made.blobs[:1] if lacking == "layer" else made.blobs[1:]:
        client.push_blob(repo, blob)
    answer = client.put_manifest(repo, "v1", made)
    if answer.status != 201:
        assert 400 <= answer.status < 500
        assert set(answer.codes) == {"MANIFEST_BLOB_UNKNOWN"}
        assert client.manifest(repo, "v1").status == 404


def test_end_7_four_megabytes_are_accepted(client: Client, repo: str):
    """Registries are expected to take manifests of at least 4 megabytes."""
    small = image("large", annotations={"fill": ""})
    made = altered(small, {"annotations": {"fill": "x" * (4_000_000 - len(small.data))}})
    assert len(made.data) == 4_000_000
    client.push(repo, made, "v1")
    assert client.manifest(repo, "v1").body == made.data


def test_end_7_a_manifest_over_the_limit_is_413(client: Client, repo: str):
    """SHOULD enforce a limit, and SHOULD then answer 413."""
    made = image("huge", annotations={"fill": "x" * ((4 << 20) + 100_000)})
    for blob in made.blobs:
        client.push_blob(repo, blob)
    answer = client.put_manifest(repo, "v1", made)
    assert answer.status == 413


def test_end_7_parameters_of_the_content_type_are_passed_over(client: Client, repo: str):
    """SHOULD ignore them."""
    for blob in ONE.blobs:
        client.push_blob(repo, blob)
    answer = client.put(f"/v2/{repo}/manifests/v1", ONE.data, Content_Type=f"{ONE.media_type}; charset=utf-8")
    assert answer.status == 201
    assert client.manifest(repo, "v1").headers["content-type"].partition(";")[0] == ONE.media_type


NO_MANIFESTS = {
    "nothing": b"",
    "half": b"{",
    "list": b"[]",
    "empty": b"{}",
    "bare": b'{"schemaVersion": 2}',
    "binary": b"\xff",
}


@pytest.mark.parametrize("data", NO_MANIFESTS.values(), ids=NO_MANIFESTS)
def test_end_7_what_is_no_manifest_is_refused(client: Client, repo: str, data: bytes):
    answer = client.put(f"/v2/{repo}/manifests/v1", data, Content_Type=ONE.media_type)
    assert answer.status == 400
    assert set(answer.codes) <= {"MANIFEST_INVALID", "MANIFEST_BLOB_UNKNOWN", "DIGEST_INVALID"}
    assert client.manifest(repo, "v1").status == 404


@pytest.mark.parametrize("tag", ["a", "A", "0", "_", "v1.0-rc_1", "t" * 128])
def test_end_7_every_tag_of_the_grammar_is_taken(client: Client, repo: str, tag: str):
    client.push(repo, ONE, tag)
    assert client.manifest(repo, tag).body == ONE.data


@pytest.mark.parametrize("tag", ["-a", ".a", "a%20b", "a+b", "t" * 129])
def test_end_7_no_other_tag_is_taken(client: Client, repo: str, tag: str):
    client.push(repo, ONE)
    answer = client.put_manifest(repo, tag, ONE)
    assert 400 <= answer.status < 500


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "0", "a.b", "a_b", "a__b", "a-b", "a---b", "a/b/c/d", "a" * 200])
def test_names_of_the_grammar_are_taken(client: Client, name: str):
    client.push_blob(f"{name}", DATA)
    assert holds(client, name, DATA)


NO_NAMES = ["A", "-a", "a-", "a..b", "a___b", "a//b", "a/-b", "%C3%A4", pytest.param("a" * 256, id="too-long")]


@pytest.mark.parametrize("name", NO_NAMES)
def test_no_other_name_is_taken(client: Client, name: str):
    answer = client.post(f"/v2/{name}/blobs/uploads/")
    assert 300 <= answer.status < 500
