"""What the cases are compared with: the tools see the differences that there are. No engine is needed."""

import tarfile

from harness import build_cases as cases
from harness import images


def lines(*layers: bytes) -> dict[str, str]:
    files: cases.Files = {}
    for layer in layers:
        cases.apply_layer(files, layer)
    return cases.lines_of(files)


def test_layers_are_laid_over_each_other() -> None:
    below = images.tar(
        [
            images.directory("opaque"),
            images.Entry(name="opaque/old"),
            images.Entry(name="gone"),
            images.directory("tree"),
            images.Entry(name="tree/file"),
            images.Entry(name="kept", data=b"kept", mode=0o4640, uid=7, gid=8),
        ]
    )
    above = images.tar(
        [
            images.directory("opaque", mode=0o700),
            images.Entry(name="opaque/.wh..wh..opq"),
            images.Entry(name="opaque/new", data=b"\x00" * 300),
            images.Entry(name=".wh.gone"),
            images.Entry(name="tree", data=b"now a file"),
            images.Entry(name="a-link", type=tarfile.LNKTYPE, link="opaque/new"),
            images.symlink("soft", "kept"),
            images.Entry(name="null", type=tarfile.CHRTYPE, device=(1, 3)),
        ]
    )
    shown = cases.content_of(b"\x00" * 300)
    assert shown.startswith("300 bytes sha256:")
    assert lines(below, above) == {
        "/a-link": f"f 0644 0:0 {shown}",
        "/kept": 'f 4640 7:8 "kept"',
        "/null": "c 0644 0:0 1,3",
        "/opaque": "d 0700 0:0",
        "/opaque/new": f"f 0644 0:0 {shown} = /a-link",
        "/soft": "l 0777 0:0 -> kept",
        "/tree": 'f 0644 0:0 "now a file"',
    }


def test_an_image_is_described_by_what_it_adds() -> None:
    layer = images.tar([images.Entry(name=".wh.home"), images.Entry(name="new", data=b"x")])
    image = images.Image(
        tags=["x:1"], layers=[images.busybox_layer(), layer], config={"User": "me"}, history=["base", "RUN x"]
    )
    found = cases.describe(images.docker_archive([image]))
    assert found == {
        "config": {"Env": [images.PATH_ENV], "Cmd": ["sh"], "User": "me"},
        "history": ["RUN x"],
        "files": {"/home": "gone", "/home/alice": "gone", "/new": 'f 0644 0:0 "x"'},
    }


def test_every_difference_is_told() -> None:
    expected = {"source": "any", "config": {"User": "a"}, "history": ["x"], "files": {"/a": "f", "/gone": "f"}}
    same = {key: expected[key] for key in ("config", "history", "files")}
    assert cases.differences(expected, same) == []
    for part, other in (
        ("config", {}),
        ("history", ["y"]),
        ("files", {"/a": "f"}),
        ("files", {**same["files"], "/b": ""}),
    ):
        assert cases.differences(expected, {**same, part: other}), part


def test_an_error_must_have_the_words_and_the_place() -> None:
    expected = {"error": "ref …: not found", "excerpt": ["Dockerfile:2", "2 | >>> COPY a b"]}
    text = "Dockerfile:2:6\n---\n   2 | >>> COPY a b\n---\nERROR: failed to solve: ref 12::ab: not found\nDo this.\n"
    assert cases.differences(expected, cases.failure(text)) == []
    assert cases.differences(expected, cases.failure(text.replace("not found", "found")))
    assert cases.differences(expected, cases.failure(text.replace("2 |", "3 |")))


def test_every_case_has_a_result_or_an_error() -> None:
    for case in cases.all_cases():
        expected = case.expected
        assert expected["source"] == cases.DOCUMENTATION or expected["source"].startswith("dockerd "), case.name
        assert ("error" in expected) != ("files" in expected), case.name
