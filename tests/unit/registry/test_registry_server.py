"""The server beyond the conformance suite: its seams, what clients do in the middle, what it says when it refuses."""

import asyncio
import contextlib
import json
import logging
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness.descriptors import descriptors
from harness.needs import require_programs
from registrykit.documents import OCI_INDEX, OCI_MANIFEST, Made, altered, artifact, digest, image, index
from registrykit.served import Served, serving
from wherry.digest import of
from wherry.registry.errors import Code, Problem
from wherry.registry.hooks import Access, Happening

ONE = image("one")
BIG = bytes(range(256)) * (12 << 12)  # 12 MiB: many times what a socket takes at once


async def push_blob(served: Served, repository: str, data: bytes) -> None:
    status, body = await served.ask("POST", f"/v2/{repository}/blobs/uploads/?digest={digest(data)}", data=data)
    assert status == 201, body


async def push(served: Served, repository: str, made: Made, name: str) -> None:
    for child in made.children:
        await push(served, repository, child, child.digest)
    for blob in made.blobs:
        await push_blob(served, repository, blob)
    status, body = await put(served, repository, name, made)
    assert status == 201, body


async def put(served: Served, repository: str, name: str, made: Made) -> tuple[int, bytes]:
    headers = {"Content-Type": made.media_type}
    return await served.ask("PUT", f"/v2/{repository}/manifests/{name}", data=made.data, headers=headers)


async def begin(served: Served, repository: str) -> str:
    async with served.session.post(f"{served.url}/v2/{repository}/blobs/uploads/") as answer:
        assert answer.status == 202
        return answer.headers["Location"]


def code(body: bytes) -> str:
    (error,) = json.loads(body)["errors"]
    assert error["message"]
    return str(error["code"])


# --- what a request needs ---------------------------------------------------------------------------------------------

PULL, PUSH, DELETE = (Access("a/b", action) for action in ("pull", "push", "delete"))
SOURCE = Access("source", "pull")
NONE = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("method", "path", "wanted"),
    [
        ("GET", "/v2/", []),
        ("GET", "/v2/_catalog", [Access("", "*")]),
        ("GET", "/v2/a/b/tags/list", [PULL]),
        ("GET", f"/v2/a/b/referrers/{NONE}", [PULL]),
        ("GET", "/v2/a/b/manifests/t", [PULL]),
        ("HEAD", "/v2/a/b/manifests/t", [PULL]),
        ("GET", f"/v2/a/b/blobs/{NONE}", [PULL]),
        ("HEAD", f"/v2/a/b/blobs/{NONE}", [PULL]),
        ("PUT", "/v2/a/b/manifests/t", [PUSH, PULL]),
        ("POST", "/v2/a/b/blobs/uploads/", [PUSH, PULL]),
        ("POST", f"/v2/a/b/blobs/uploads/?mount={NONE}&from=source", [PUSH, PULL, SOURCE]),
        ("POST", f"/v2/a/b/blobs/uploads/?digest={NONE}&from=source", [PUSH, PULL]),
        ("PATCH", "/v2/a/b/blobs/uploads/x", [PUSH, PULL]),
        ("PUT", "/v2/a/b/blobs/uploads/x", [PUSH, PULL]),
        ("GET", "/v2/a/b/blobs/uploads/x", [PUSH, PULL]),
        ("DELETE", "/v2/a/b/blobs/uploads/x", [PUSH, PULL]),
        ("DELETE", "/v2/a/b/manifests/t", [DELETE]),
        ("DELETE", f"/v2/a/b/blobs/{NONE}", [DELETE]),
    ],
)
async def test_every_request_asks_for_what_it_does(served: Served, method: str, path: str, wanted: list[Access]):
    await served.ask(method, path)
    assert served.wanted == [wanted]


async def test_what_happened_is_told_with_who_did_it(served: Served):
    await push(served, "a/b", ONE, "t")
    layer = digest(ONE.blobs[1])
    await served.ask("POST", f"/v2/c/blobs/uploads/?mount={layer}&from=a/b")
    await served.ask("GET", f"/v2/a/b/blobs/{layer}")
    await served.ask("GET", "/v2/a/b/manifests/t")
    await served.ask("HEAD", "/v2/a/b/manifests/t")
    await served.ask("DELETE", "/v2/a/b/manifests/t")
    await served.ask("DELETE", f"/v2/a/b/manifests/{ONE.digest}")
    await served.ask("GET", "/v2/a/b/manifests/t")  # fails: nothing happened

    def told(each: Happening) -> tuple[Any, ...]:
        assert (each.actor, each.address) == ("alice", "127.0.0.1")
        return each.action, each.repository, each.digest, each.tag, each.size

    assert [told(each) for each in served.happened] == [
        *(("push", "a/b", digest(blob), "", len(blob)) for blob in ONE.blobs),
        ("push", "a/b", ONE.digest, "t", len(ONE.data)),
        ("mount", "c", layer, "", 0),
        ("pull", "a/b", layer, "", len(ONE.blobs[1])),
        ("pull", "a/b", ONE.digest, "t", len(ONE.data)),
        ("delete", "a/b", "", "t", 0),
        ("delete", "a/b", ONE.digest, "", 0),
    ]


@pytest.mark.parametrize("what", ["upload", "post", "mount", "manifest", "delete"])
async def test_a_write_that_is_refused_changes_nothing(served: Served, what: str):
    await push(served, "a", ONE, "t")
    path = await begin(served, "a")
    served.refusal = Problem(Code.DENIED, "repository a may hold 10 bytes")
    data, name = b"refused", digest(b"refused")
    request = {
        "upload": ("PUT", f"{path}?digest={name}"),
        "post": ("POST", f"/v2/a/blobs/uploads/?digest={name}"),
        "mount": ("POST", f"/v2/b/blobs/uploads/?mount={digest(ONE.blobs[0])}&from=a"),
        "manifest": ("PUT", "/v2/a/manifests/u"),
        "delete": ("DELETE", "/v2/a/manifests/t"),
    }[what]
    body = {"manifest": ONE.data, "delete": None}.get(what, data)
    status, answer = await served.ask(*request, data=body)
    assert (status, code(answer)) == (403, "DENIED")
    served.refusal = None
    assert (await served.ask("GET", f"/v2/a/blobs/{name}"))[0] == 404
    assert json.loads((await served.ask("GET", "/v2/a/tags/list"))[1])["tags"] == ["t"]
    assert json.loads((await served.ask("GET", "/v2/_catalog"))[1])["repositories"] == ["a"]


async def test_an_upload_that_becomes_too_much_is_stopped_under_way(served: Served):
    path = await begin(served, "a")

    async def body():
        for start in range(0, len(BIG), 1 << 20):
            if start == 4 << 20:
                served.refusal = Problem(Code.DENIED, "repository a may hold 4 MiB")
            yield BIG[start : start + (1 << 20)]

    status, answer = await served.ask("PATCH", path, data=body())
    assert (status, code(answer)) == (403, "DENIED")
    assert max(size for _, size in served.written) < len(BIG)


async def test_a_mount_from_anywhere_is_from_what_the_client_may_read(served: Served):
    await push_blob(served, "secret", b"data")
    served.unreadable = {"secret"}
    path = f"/v2/a/blobs/uploads/?mount={digest(b'data')}"
    assert (await served.ask("POST", path))[0] == 202
    assert (await served.ask("GET", f"/v2/a/blobs/{digest(b'data')}"))[0] == 404
    await push_blob(served, "open", b"data")
    assert (await served.ask("POST", path))[0] == 201
    assert await served.ask("GET", f"/v2/a/blobs/{digest(b'data')}") == (200, b"data")


# --- reading ----------------------------------------------------------------------------------------------------------


async def test_a_large_blob_arrives_whole_and_in_parts(served: Served):
    await push_blob(served, "a", BIG)
    path = f"/v2/a/blobs/{digest(BIG)}"
    assert (await served.ask("GET", path)) == (200, BIG)
    parts = [(0, 6_000_000), (6_000_000, 6_000_001), (6_000_001, len(BIG))]
    found = [await served.ask("GET", path, headers={"Range": f"bytes={first}-{behind - 1}"}) for first, behind in parts]
    assert [status for status, _ in found] == [206] * 3
    assert b"".join(data for _, data in found) == BIG


@pytest.fixture
def certified(tmp_path: Path) -> ssl.SSLContext:
    """A server's, with a certificate of its own making."""
    require_programs("openssl")
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test -keyout k -out c"
    subprocess.run(["openssl", *words.split()], cwd=tmp_path, check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "c", tmp_path / "k")
    return context


async def test_a_large_blob_arrives_over_tls_too(tmp_path: Path, certified: ssl.SSLContext):
    async with serving(tmp_path / "registry", context=certified) as served:
        await push_blob(served, "a", BIG)
        path = f"/v2/a/blobs/{digest(BIG)}"
        assert await served.ask("GET", path) == (200, BIG)
        assert await served.ask("GET", path, headers={"Range": "bytes=7-8000006"}) == (206, BIG[7:8_000_007])


async def test_many_read_the_same_blob_at_once(served: Served):
    await push_blob(served, "a", BIG)
    found = await asyncio.gather(*(served.ask("GET", f"/v2/a/blobs/{digest(BIG)}") for _ in range(8)))
    assert all(each == (200, BIG) for each in found)


async def test_a_client_that_knows_no_index_is_given_the_image_for_amd64(served: Served):
    both = index([ONE, image("arm")])
    await push(served, "a", both, "t")
    for accept, expected in (
        (OCI_MANIFEST, ONE),
        (f"{OCI_MANIFEST};q=0.5, application/json", ONE),
        (f"{OCI_MANIFEST}, {OCI_INDEX}", both),
        ("*/*", both),
    ):
        assert await served.ask("GET", "/v2/a/manifests/t", headers={"Accept": accept}) == (200, expected.data)
    by_digest = await served.ask("GET", f"/v2/a/manifests/{both.digest}", headers={"Accept": OCI_MANIFEST})
    assert by_digest == (200, both.data)


async def test_what_a_client_has_already_is_not_sent_again(served: Served):
    await push(served, "a", ONE, "t")
    headers = {"If-None-Match": f'"{ONE.digest}"'}
    assert await served.ask("GET", "/v2/a/manifests/t", headers=headers) == (304, b"")
    assert (await served.ask("GET", "/v2/a/manifests/t", headers={"If-None-Match": '"x"'}))[0] == 200


async def test_links_of_lists_can_be_followed(served: Served):
    for tag in ("a", "b", "c"):
        await push(served, "a", ONE, tag)
    async with served.session.get(f"{served.url}/v2/a/tags/list?n=2") as answer:
        assert answer.headers["Link"] == '</v2/a/tags/list?last=b&n=2>; rel="next"'
    async with served.session.get(f"{served.url}/v2/a/tags/list?last=b&n=2") as answer:
        assert await answer.json() == {"name": "a", "tags": ["c"]}
        assert "Link" not in answer.headers


# --- refusals ---------------------------------------------------------------------------------------------------------


async def test_a_manifest_that_is_wrong_about_a_size_is_refused(served: Served):
    document = ONE.document
    document["layers"][0]["size"] += 1
    wrong = altered(ONE, document)
    for blob in wrong.blobs:
        await push_blob(served, "a", blob)
    status, body = await put(served, "a", "t", wrong)
    assert (status, code(body)) == (400, "SIZE_INVALID")
    assert f"it has {len(ONE.blobs[1])}" in json.loads(body)["errors"][0]["message"]


async def test_layers_that_are_fetched_from_elsewhere_need_not_be_here(served: Served):
    document = ONE.document
    document["layers"].append(
        {
            "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "digest": NONE,
            "size": 7,
            "urls": ["https://example.test/layer"],
        }
    )
    await push(served, "a", altered(ONE, document), "t")


async def test_a_type_that_is_not_the_documents_is_refused(served: Served):
    for blob in ONE.blobs:
        await push_blob(served, "a", blob)
    lying = Made(ONE.data, OCI_INDEX)
    status, body = await put(served, "a", "t", lying)
    assert (status, code(body)) == (400, "MANIFEST_INVALID")


@pytest.mark.parametrize("n", ["-1", "x", "1.5", "٣"])
async def test_a_page_size_that_is_no_number_is_refused(served: Served, n: str):
    status, body = await served.ask("GET", f"/v2/_catalog?n={n}")
    assert (status, code(body)) == (400, "PAGINATION_NUMBER_INVALID")


@pytest.mark.parametrize("path", ["/v2/x", "/v2/a/b", "/v2/a/tags", "/v2/a/manifests", "/v2//"])
async def test_a_path_that_is_none_is_404(served: Served, path: str):
    status, body = await served.ask("GET", path)
    assert (status, code(body)) in ((404, "UNSUPPORTED"), (400, "NAME_INVALID"))


async def test_a_method_that_is_not_possible_says_which_are(served: Served):
    async with served.session.put(f"{served.url}/v2/a/tags/list") as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "GET")
        assert code(await answer.read()) == "UNSUPPORTED"


async def test_an_unforeseen_failure_is_logged_and_told_without_its_inside(
    served: Served, caplog: pytest.LogCaptureFixture
):
    served.refusal = RuntimeError("inner secret")
    status, body = await served.ask("POST", "/v2/a/blobs/uploads/")
    assert (status, code(body)) == (500, "UNKNOWN")
    assert b"secret" not in body
    assert "inner secret" in caplog.text


# --- clients that leave -----------------------------------------------------------------------------------------------


async def send_raw(served: Served, head: str, body: bytes) -> socket.socket:
    """A connection of one's own, on which a request was begun."""
    host, _, port = served.url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)))
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_sendall(connection, head.format(host=host).encode() + body)
    return connection


async def reaches(served: Served, path: str, offset: int) -> None:
    """Wait until the request that works on the upload is over, with so many bytes received."""
    for _ in range(500):
        async with served.session.get(served.url + path) as answer:
            assert answer.status in (204, 429)
            if answer.headers.get("Range") == f"0-{offset - 1}":
                return
        await asyncio.sleep(0.01)
    raise AssertionError("the request does not end")


@pytest.mark.parametrize("chunked", [False, True])
async def test_what_a_client_sent_before_it_left_is_kept(
    served: Served, chunked: bool, caplog: pytest.LogCaptureFixture
):
    path = await begin(served, "a")
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(BIG)}"
    half = BIG[: 3 << 20]
    body = b"%x\r\n%s\r\n" % (len(half), half) if chunked else half
    connection = await send_raw(served, f"PATCH {path} HTTP/1.1\r\nHost: {{host}}\r\n{length}\r\n\r\n", body)
    connection.close()
    await reaches(served, path, len(half))
    rest = {"Content-Range": f"{len(half)}-{len(BIG) - 1}"}
    status, _ = await served.ask("PUT", f"{path}?digest={digest(BIG)}", data=BIG[len(half) :], headers=rest)
    assert status == 201
    assert await served.ask("GET", f"/v2/a/blobs/{digest(BIG)}") == (200, BIG)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_client_that_sends_nothing_more_is_given_up(impatient: Served):
    path = await begin(impatient, "a")
    head = f"PATCH {path} HTTP/1.1\r\nHost: {{host}}\r\nContent-Length: 1000\r\n\r\n"
    with await send_raw(impatient, head, b"hello") as connection:
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.get_running_loop().sock_recv(connection, 100) == b""
        await reaches(impatient, path, 5)


async def test_a_client_that_takes_nothing_more_is_given_up(impatient: Served):
    await push_blob(impatient, "a", BIG)
    before = descriptors()
    head = f"GET /v2/a/blobs/{digest(BIG)} HTTP/1.1\r\nHost: {{host}}\r\n\r\n"
    with await send_raw(impatient, head, b""):
        for _ in range(500):
            left = descriptors() - before
            if sum(left.values()) == 1:  # the client's
                break
            await asyncio.sleep(0.01)
        assert sum(left.values()) == 1


async def test_a_client_that_leaves_a_download_leaves_nothing_open(served: Served, caplog: pytest.LogCaptureFixture):
    await push_blob(served, "a", BIG)
    before = descriptors()
    for _ in range(5):
        connection = await send_raw(served, f"GET /v2/a/blobs/{digest(BIG)} HTTP/1.1\r\nHost: {{host}}\r\n\r\n", b"")
        got = await asyncio.get_running_loop().sock_recv(connection, 100)
        assert got.startswith(b"HTTP/1.1 200 OK")
        connection.close()
    for _ in range(500):
        if not (left := descriptors() - before):
            break
        await asyncio.sleep(0.01)
    assert not left
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_blob_that_is_cut_short_on_disk_cuts_the_connection(served: Served):
    """An answer that ends as if it were complete would be a lie."""
    await push_blob(served, "a", BIG)
    path = served.store.content.path(of(BIG))
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.truncate(5 << 20)
    connection = await send_raw(served, f"GET /v2/a/blobs/{of(BIG)} HTTP/1.1\r\nHost: {{host}}\r\n\r\n", b"")
    got = 0
    with connection, contextlib.suppress(ConnectionResetError):
        while data := await asyncio.get_running_loop().sock_recv(connection, 1 << 20):
            got += len(data)
    assert 0 < got < len(BIG)
    assert (await served.ask("GET", "/v2/"))[0] == 200


async def test_an_artifact_may_be_its_own_empty_config(served: Served):
    await push(served, "a", artifact("x", layers=[b"{}"]), "t")
