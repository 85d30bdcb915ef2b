"""Images by platform, converted, pushed, checked, searched for: what is asked of the engine and what is shown."""

import json
import os
import re
from collections.abc import Callable
from typing import Any

import pytest

from wherry.cli.image_tree import Drawing, Tree, draw
from wherry.cli.platforms import InvalidPlatform, parse_platform, shown_platform

Wherry = Callable[..., Any]
ARM = '{"architecture":"arm64","os":"linux"}'


# -- platforms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", "linux/amd64"), ("Linux/X86_64", "linux/amd64"), ("linux/arm64/v8", "linux/arm64/v8"),
        ("linux/arm64/8", "linux/arm64/v8"), ("linux/aarch64", "linux/arm64"), ("linux/arm64", "linux/arm64"),
        ("linux/arm", "linux/arm"), ("linux/arm/7", "linux/arm/v7"), ("linux/arm/v6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm"), ("linux/armel", "linux/arm/v6"), ("arm", "linux/arm"), ("i386", "linux/386"),
        ("amd64", "linux/amd64"), ("windows(10.0.17763)/amd64", "windows(10.0.17763)/amd64"),
        ("macos/arm64", "darwin/arm64"), ("foo/bar", "foo/bar"),
        ("linux", f"linux/{parse_platform(os.uname().machine)['architecture']}"),
    ],
)  # fmt: skip
def test_platforms_are_read_as_docker_reads_them(text: str, expected: str) -> None:
    assert shown_platform(parse_platform(text)) == expected


@pytest.mark.parametrize(
    "text", ["", "foo", "a/b/c/d", "linux//", "linux/a+b", "li nux/a", "windows(/a", "w(1)x/a", "*"]
)
def test_what_is_no_platform(text: str) -> None:
    with pytest.raises(InvalidPlatform, match=r"invalid argument$"):
        parse_platform(text)


def test_every_command_sends_the_platform_as_json(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    fake_engine.answers = {
        "GET /images/a/json": reply(200, {"Id": "x"}),
        "GET /images/a/history": reply(200, []),
        "GET /images/get": reply(200, b"tar", {"Content-Type": "application/x-tar"}),
        "POST /images/load": reply(200, b"{}"),
        "POST /images/docker.io/library/a/push": reply(200, b""),
        "POST /images/a/push": reply(200, b""),
        "DELETE /images/a": reply(200, [{"Deleted": "sha256:1"}]),
    }
    for line in (
        "image inspect --platform linux/arm64 a", "history --platform linux/arm64 a",
        "save --platform linux/arm64 a", "load --platform linux/arm64", "push --platform linux/arm64 a:1",
    ):  # fmt: skip
        done = wherry(*line.split(), input=b"x")
        assert done.code == 0, done.err
        assert fake_engine.requests[-1].query["platform"] == [ARM], line
    assert wherry("rmi", "--platform", "linux/arm64,linux/arm/v6", "--platform", "amd64", "a").code == 0
    assert fake_engine.requests[-1].query["platforms"] == [
        ARM, '{"architecture":"arm","os":"linux","variant":"v6"}', '{"architecture":"amd64","os":"linux"}',
    ]  # fmt: skip
    count = len(fake_engine.requests)
    assert wherry("save", "--platform", "a/b/c/d", "a").err == (
        'invalid platform: "a/b/c/d": cannot parse platform specifier: invalid argument\n'
    )
    refused = wherry("run", "--platform", "a+b", "busybox")
    assert refused.code == 125
    assert refused.err.startswith('wherry: error parsing specified platform: "a+b" is an invalid OS component')
    assert len(fake_engine.requests) == count


def test_pull_brings_all_platforms_when_that_is_asked_for(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    fake_engine.answers["POST /images/create"] = reply(200, b'{"status":"done"}\n')
    assert wherry("pull", "--platform", "all", "a").code == 0
    assert fake_engine.requests[0].query["platform"] == ["all"]


# -- push and convert --------------------------------------------------------------------------------------------------


def test_what_a_push_left_out_is_told_at_the_end(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    aux = {
        "manifestPushedInsteadOfIndex": True,
        "originalIndex": {"digest": "sha256:1"},
        "selectedManifest": {"digest": "sha256:2"},
    }
    lines = [{"status": "working"}, {"progressDetail": {}, "aux": aux}, {"status": "1: digest: sha256:2 size: 3"}]
    body = "".join(json.dumps(line) + "\r\n" for line in lines).encode()
    fake_engine.answers["POST /images/r.example/a/push"] = [
        reply(200, body),
        reply(200, body),
        reply(200, b'{"aux":{"contentMissing":true}}{"errorDetail":{"message":"no such blob"}}'),
    ]
    done = wherry("push", "--compression", "zstd", "r.example/a:1")
    note = (
        "\n Info -> Not all multiplatform-content is present and only the available single-platform image was pushed\n"
        "         sha256:1 -> sha256:2\n"
    )
    assert (done.code, done.out) == (0, f"working\n1: digest: sha256:2 size: 3\n{note}")
    assert fake_engine.requests[0].query == {"tag": ["1"], "compression": ["zstd"]}
    assert wherry("push", "-q", "r.example/a:1").out == f"r.example/a:1\n{note}"
    failed = wherry("push", "r.example/a:1")
    assert (failed.code, failed.err) == (1, "no such blob\n")
    assert failed.out.startswith("\n Info -> You're trying to push a manifest list/index")


def test_an_image_is_converted(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    fake_engine.answers["POST /images/a:1/convert"] = [
        reply(200, b'{"status":"Compressing"}\n'),
        reply(200, b'{"status":"Compressing"}\n'),
        reply(200, b'{"errorDetail":{"message":"no space left"},"error":"no space left"}\n'),
    ]
    done = wherry("image", "convert", "--compression", "zstd", "--format", "oci", "a:1", "b")
    assert (done.code, done.out) == (0, "Compressing\n")
    assert fake_engine.requests[0].query == {"to": ["b:latest"], "compression": ["zstd"], "format": ["oci"]}
    assert wherry("image", "convert", "--compression", "none", "-q", "a:1", "b:2").out == "b:2\n"
    failed = wherry("image", "convert", "--compression", "none", "-q", "a:1", "b:2")
    assert (failed.code, failed.out, failed.err) == (1, "", "no space left\n")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a b", "--compression must be one of gzip, zstd, none\n"),
        ("--compression lz4 a b", "--compression must be one of gzip, zstd, none, not lz4\n"),
        ("--compression gzip --format x a b", "--format must be docker or oci, not x\n"),
        ("--compression gzip a B", 'Error parsing reference: "B" is not a valid repository/tag: invalid reference'),
        ("--compression gzip a b@sha256:" + "a" * 64, "refusing to create a tag with a digest reference\n"),
    ],
)
def test_wrong_conversions_are_refused_before_the_engine_is_asked(
    fake_engine: Any, wherry: Wherry, line: str, said: str
) -> None:
    done = wherry("image", "convert", *line.split())
    assert (done.code, done.err[: len(said)]) == (1, said)
    assert not fake_engine.requests


# -- search ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("term", "user"), [("foo", "hub"), ("a/foo", "hub"), ("r.example/foo", "mine")])
def test_a_search_goes_with_the_credentials_of_its_registry(
    fake_engine: Any, reply: Any, wherry: Wherry, tmp_path: Any, term: str, user: str
) -> None:
    import base64

    def encoded(name: str) -> dict[str, str]:
        return {"auth": base64.b64encode(f"{name}:p".encode()).decode()}

    (tmp_path / "config").mkdir()
    auths = {"https://index.docker.io/v1/": encoded("hub"), "r.example": encoded("mine")}
    (tmp_path / "config" / "config.json").write_text(json.dumps({"auths": auths}))
    found = [{"name": "foo", "description": "d" * 50, "star_count": 3, "is_official": True}]
    fake_engine.answers["GET /images/search"] = reply(200, found)
    done = wherry("search", "--limit", "5", "-f", "stars=2", "-f", "is-official=true", term)
    assert done.out == (
        "NAME      DESCRIPTION                                     STARS     OFFICIAL\n"
        f"foo       {'d' * 44}…   3         [OK]\n"
    )
    request = fake_engine.requests[0]
    assert request.query["limit"] == ["5"]
    assert json.loads(request.query["filters"][0]) == {"stars": {"2": True}, "is-official": {"true": True}}
    assert json.loads(base64.urlsafe_b64decode(request.headers["X-Registry-Auth"]))["username"] == user
    assert "d" * 50 in wherry("search", "--no-trunc", term).out
    assert wherry("search", "--format", "{{.Name}} {{.StarCount}}", term).out == "foo 3\n"


# -- the tree ----------------------------------------------------------------------------------------------------------


def manifest(platform: str, *, total: int, content: int, available: bool = True, users: int = 0) -> dict[str, Any]:
    system, architecture, *variant = platform.split("/")
    return {
        "ID": "sha256:" + architecture[:1] * 64,
        "Kind": "image",
        "Available": available,
        "Size": {"Total": total, "Content": content},
        "ImageData": {
            "Platform": {"os": system, "architecture": architecture, "variant": "".join(variant)},
            "Containers": ["c"] * users,
        },
    }


ATTESTATION = {"ID": "sha256:" + "0" * 64, "Kind": "attestation", "Available": True, "Size": {"Total": 9, "Content": 9}}
OLD = {
    "Id": "sha256:" + "1" * 64, "Created": 1, "Size": 3_000_000, "Containers": 0,
    "RepoTags": ["b:1", "r.example/very/long/name:1", "app:latest"],
    "Manifests": [
        manifest("linux/amd64", total=2_000_000, content=1_000_000, users=1), ATTESTATION,
        manifest("linux/arm/v7", total=0, content=0, available=False),
    ],
}  # fmt: skip
NEW = {"Id": "sha256:" + "2" * 64, "Created": 2, "Size": 5, "RepoTags": ["new:1"], "Manifests": []}
NAMELESS = {"Id": "sha256:" + "3" * 64, "Created": 3, "Size": 5, "RepoTags": [], "Manifests": None}


def drawn(*images: dict[str, Any], width: int = 80, coloured: bool = False) -> str:
    return Drawing([Tree(image) for image in images], width=width, coloured=coloured).text()


def test_a_tree_shows_names_and_platforms() -> None:
    assert drawn(NEW, OLD) == (
        "IMAGE                        ID             DISK USAGE   CONTENT SIZE   EXTRA\n"
        "new:1                        222222222222           5B             0B        \n"
        "\n"
        "r.example/very/long/name:1\n"
        "app:latest\n"
        "b:1                          111111111111          3MB            1MB   U    \n"
        "├─ linux/amd64               aaaaaaaaaaaa          2MB            1MB   U    \n"
        "└─ linux/arm/v7              aaaaaaaaaaaa           0B             0B        \n"
        "\n"
    )


def test_a_narrow_tree_has_fewer_columns_and_shorter_names() -> None:
    assert drawn(OLD, width=40).splitlines()[:5] == [
        "IMAGE          ID             DISK USAGE",
        "r.example/very/long/name:1",
        "app:latest",
        "b:1            111111111111          3MB",
        "├─ linux/am…   aaaaaaaaaaaa          2MB",
    ]
    assert drawn(OLD, width=20).splitlines()[1] == "r.example/very/long…"


def test_colours_take_no_room() -> None:
    coloured = drawn(OLD, NAMELESS, coloured=True)
    plain = re.sub(r"\x1b\[[\d;]*m", "", coloured).replace(" U   ", "U    ")
    assert plain == drawn(OLD, NAMELESS)
    assert coloured != plain


def test_the_newest_come_first_and_the_nameless_only_when_asked_for() -> None:
    null = os.open("/dev/null", os.O_WRONLY)
    try:
        some, all_ = (draw([OLD, NAMELESS, NEW], untagged=flag, fd=null) for flag in (False, True))
        pulled = draw([{**NAMELESS, "RepoDigests": ["a@sha256:1"]}], untagged=False, fd=null)
    finally:
        os.close(null)
    assert some.splitlines()[0].strip() == "Info ->  U In Use"
    assert "<untagged>" not in some
    assert "<untagged>" in pulled
    assert [line.split()[0] for line in all_.splitlines() if "5B" in line] == ["<untagged>", "new:1"]


@pytest.mark.parametrize("flag", ["-q", "--no-trunc", "--digests", "--format=x"])
def test_a_tree_knows_no_other_form(fake_engine: Any, wherry: Wherry, flag: str) -> None:
    done = wherry("image", "ls", "--tree", flag)
    assert done.code == 1
    assert done.err.endswith("is not yet supported with --tree\n")


def test_a_tree_asks_for_manifests(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    fake_engine.answers["GET /images/json"] = reply(200, [NEW])
    assert "new:1" in wherry("images", "--tree", "-f", "label=x", "new").out
    query = fake_engine.requests[0].query
    assert query["manifests"] == ["1"]
    assert json.loads(query["filters"][0]) == {"label": {"x": True}, "reference": {"new": True}}


# -- the check ---------------------------------------------------------------------------------------------------------

CHECKED = {"images": 2, "layers": 1, "blobs": 3, "bytes": 1500}
DAMAGED = {"kind": "missing-blob", "object": "sha256:1", "detail": "gone", "remedy": "repair it", "repaired": False}
MENDED = {"kind": "altered-layer", "object": "sha256:22", "detail": "a file differs", "remedy": "", "repaired": True}


def stream(*problems: dict[str, object]) -> bytes:
    messages = [{"status": "Checking", "id": "blobs"}, {"checked": CHECKED, "problems": problems}]
    return "".join(json.dumps(message) + "\r\n" for message in messages).encode()


def test_a_check_tells_what_is_damaged(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    fake_engine.answers = {
        "GET /system/check": [reply(200, stream()), reply(200, stream(DAMAGED, MENDED))],
        "POST /system/check": reply(200, stream(MENDED)),
    }
    done = wherry("system", "check", "--quick")
    assert (done.code, done.err) == (0, "")
    assert done.out == "Checked 2 images, 1 layer and 3 blobs of 1.5kB: no damage found\n"
    assert fake_engine.requests[0].query == {"quick": ["1"]}
    found = wherry("system", "check")
    assert found.code == 1
    assert found.out == (
        "damaged    missing-blob    sha256:1\n    gone\n    repair it\n"
        "repaired   altered-layer   sha256:22\n    a file differs\n\n"
        "Checked 2 images, 1 layer and 3 blobs of 1.5kB: 2 problems, 1 repaired, 1 left\n"
    )
    assert wherry("system", "check", "--pull").err == "--pull is about how to repair: give --repair, too\n"
    mended = wherry("system", "check", "--repair", "--pull")
    assert mended.code == 0
    assert mended.out.endswith(": 1 problem, all repaired\n")
    assert fake_engine.requests[-1].query == {"repair": ["1"], "pull": ["1"]}


def test_a_check_for_programs(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    fake_engine.answers["GET /system/check"] = reply(200, stream(DAMAGED))
    as_json = wherry("system", "check", "--format", "json")
    assert (as_json.code, json.loads(as_json.out)) == (1, {"checked": CHECKED, "problems": [DAMAGED]})
    assert wherry("system", "check", "--format", "{{.Kind}} {{.State}}").out == "missing-blob damaged\n"


def test_a_check_that_breaks_off_is_no_success(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    fake_engine.answers["GET /system/check"] = [
        reply(200, b'{"status":"Checking"}\n'),
        reply(200, b'{"errorDetail":{"message":"disk gone"}}\n'),
    ]
    assert "broke off before the check was through" in wherry("system", "check").err
    failed = wherry("system", "check")
    assert (failed.code, failed.err) == (1, "disk gone\n")
