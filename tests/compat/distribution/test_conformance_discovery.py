"""Content discovery: tags (end-8), referrers (end-12), and the catalog, which is Docker's."""

import re
from typing import Any

import pytest

from registrykit.client import Client
from registrykit.documents import OCI_CONFIG, OCI_INDEX, Made, artifact, image, index

ONE = image("one")
TAGS = ["1.0", "1.1", "2.0", "a", "b", "latest", "zz"]
NO_DIGEST = "sha256:" + "0" * 64


@pytest.fixture
def tagged(client: Client, repo: str) -> str:
    """A repository with TAGS, pushed in another order."""
    for tag in sorted(TAGS, key=lambda tag: tag[::-1]):
        client.push(repo, ONE, tag)
    return repo


def tags(client: Client, repository: str, query: str = "") -> list[str]:
    answer = client.get(f"/v2/{repository}/tags/list{query}")
    assert answer.status == 200
    document = answer.json()
    assert document["name"] == repository
    return document["tags"] or []


# --- end-8 ------------------------------------------------------------------------------------------------------------


def test_end_8a_tags_are_listed_in_lexical_order(client: Client, tagged: str):
    assert tags(client, tagged) == TAGS


def test_end_8a_tags_of_a_repository_that_is_not_there_are_404(client: Client):
    answer = client.get("/v2/conformance/nowhere/tags/list")
    assert (answer.status, answer.codes) == (404, ["NAME_UNKNOWN"])


def test_end_8b_n_gives_that_many_from_the_beginning(client: Client, tagged: str):
    assert tags(client, tagged, "?n=3") == TAGS[:3]


def test_end_8b_more_than_there_are_gives_all(client: Client, tagged: str):
    assert tags(client, tagged, "?n=100") == TAGS


def test_end_8b_last_gives_what_comes_behind_it(client: Client, tagged: str):
    assert tags(client, tagged, "?n=2&last=1.1") == ["2.0", "a"]


def test_end_8b_n_is_optional_beside_last(client: Client, tagged: str):
    assert tags(client, tagged, "?last=b") == ["latest", "zz"]


def test_end_8b_nothing_comes_behind_the_last(client: Client, tagged: str):
    assert tags(client, tagged, "?n=5&last=zz") == []


def test_end_8b_zero_gives_an_empty_list_and_no_link(client: Client, tagged: str):
    answer = client.get(f"/v2/{tagged}/tags/list?n=0")
    assert (answer.status, answer.json()["tags"] or []) == (200, [])
    assert "link" not in answer.headers


def test_end_8b_links_lead_through_all_tags(client: Client, tagged: str):
    """A Link MAY be there; it MUST then be one of RFC 5988 with rel="next"."""
    path, found = f"/v2/{tagged}/tags/list?n=2", []
    for _ in range(len(TAGS)):
        answer = client.get(path)
        assert answer.status == 200
        found += answer.json()["tags"] or []
        link = answer.headers.get("link")
        if link is None:
            break
        match = re.fullmatch(r'<([^>]+)>\s*;\s*rel="?next"?', link)
        assert match, link
        path = re.sub(r"^https?://[^/]+", "", match[1])
    assert found == TAGS or (len(found) == 2 and found == TAGS[:2])


# --- end-12 -----------------------------------------------------------------------------------------------------------


def referrers(client: Client, repository: str, digest: str, query: str = "") -> list[dict[str, Any]]:
    answer = client.get(f"/v2/{repository}/referrers/{digest}{query}")
    assert answer.status == 200
    assert answer.headers["content-type"] == OCI_INDEX
    document = answer.json()
    assert document["schemaVersion"] == 2
    assert document["mediaType"] == OCI_INDEX
    manifests: list[dict[str, Any]] = document["manifests"]
    return manifests


SIGNATURE = artifact("signature", subject=ONE, annotations={"by": "alice"})
SBOM = artifact("sbom", subject=ONE, artifactType="application/vnd.example.sbom")


def test_end_12a_what_nothing_refers_to_has_an_empty_list(client: Client, repo: str):
    client.push(repo, ONE, "v1")
    assert referrers(client, repo, ONE.digest) == []
    assert referrers(client, repo, NO_DIGEST) == []


def test_end_12a_referrers_are_described_with_type_and_annotations(client: Client, repo: str):
    client.push(repo, ONE, "v1")
    client.push(repo, SIGNATURE)
    client.push(repo, SBOM)
    found = {each["digest"]: each for each in referrers(client, repo, ONE.digest)}
    assert found == {
        SIGNATURE.digest: SIGNATURE.descriptor(
            artifactType="application/vnd.example.note", annotations={"by": "alice"}
        ),
        SBOM.digest: SBOM.descriptor(artifactType="application/vnd.example.sbom"),
    }


def test_end_12a_without_an_artifact_type_it_is_the_configs(client: Client, repo: str):
    made = image("typeless", subject=ONE)
    client.push(repo, made)
    assert [each["artifactType"] for each in referrers(client, repo, ONE.digest)] == [OCI_CONFIG]


def test_end_12a_an_index_without_an_artifact_type_has_none(client: Client, repo: str):
    made, typed = index([ONE], subject=ONE), index([], subject=ONE, artifactType="application/vnd.example.set")
    client.push(repo, made)
    client.push(repo, typed)
    found = {each["digest"]: each for each in referrers(client, repo, ONE.digest)}
    assert found == {
        made.digest: made.descriptor(),
        typed.digest: typed.descriptor(artifactType="application/vnd.example.set"),
    }


def test_end_12a_a_subject_may_come_after_its_referrers(client: Client, repo: str):
    client.push(repo, SIGNATURE)
    assert [each["digest"] for each in referrers(client, repo, ONE.digest)] == [SIGNATURE.digest]
    client.push(repo, ONE, "v1")
    assert [each["digest"] for each in referrers(client, repo, ONE.digest)] == [SIGNATURE.digest]


def test_end_12a_only_referrers_of_the_same_repository_are_listed(client: Client, repo: str):
    client.push(repo, ONE, "v1")
    client.push(f"{repo}/other", SIGNATURE)
    assert referrers(client, repo, ONE.digest) == []


def test_end_12a_a_referrer_that_is_deleted_is_listed_no_more(client: Client, repo: str):
    client.push(repo, SIGNATURE)
    client.push(repo, SBOM)
    assert client.delete(f"/v2/{repo}/manifests/{SIGNATURE.digest}").status == 202
    assert [each["digest"] for each in referrers(client, repo, ONE.digest)] == [SBOM.digest]


def test_end_12a_what_is_no_digest_is_400(client: Client, repo: str):
    client.push(repo, ONE, "v1")
    assert client.get(f"/v2/{repo}/referrers/sha256:xyz").status == 400


def test_end_12b_a_filter_that_was_applied_is_told(client: Client, repo: str):
    """If filtering is requested and applied, the answer MUST have OCI-Filters-Applied."""
    client.push(repo, SIGNATURE)
    client.push(repo, SBOM)
    query = "?artifactType=application/vnd.example.sbom"
    assert [each["digest"] for each in referrers(client, repo, ONE.digest, query)] == [SBOM.digest]
    answer = client.get(f"/v2/{repo}/referrers/{ONE.digest}{query}")
    assert answer.headers["oci-filters-applied"] == "artifactType"
    assert "oci-filters-applied" not in client.get(f"/v2/{repo}/referrers/{ONE.digest}").headers
    assert referrers(client, repo, ONE.digest, "?artifactType=application/vnd.example.none") == []


# --- the catalog ------------------------------------------------------------------------------------------------------


def test_catalog_lists_every_repository_page_by_page(client: Client, repo: str):
    made: Made = ONE
    names = [f"{repo}/{letter}" for letter in "abcde"]
    for name in names:
        client.push(name, made, "v1")
    path, found = f"/v2/_catalog?n=2&last={repo}/", []
    for _ in range(100):
        answer = client.get(path)
        assert answer.status == 200
        found += answer.json()["repositories"] or []
        if (link := answer.headers.get("link")) is None or not found[-1].startswith(repo):
            break
        match = re.fullmatch(r'<([^>]+)>\s*;\s*rel="?next"?', link)
        assert match, link
        path = re.sub(r"^https?://[^/]+", "", match[1])
    assert [name for name in found if name.startswith(f"{repo}/")] == names
