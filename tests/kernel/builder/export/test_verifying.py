"""Two results of one build, and how they differ in words."""

import os
from pathlib import Path

from wherry.builder.records.verify import difference
from wherry.builder.trees import SCRATCH


def written(**contents: str | bytes):
    def change(root: Path) -> None:
        for name, data in contents.items():
            (root / name).write_bytes(data if isinstance(data, bytes) else data.encode())

    return change


async def differences(bench, one, other, base=SCRATCH):
    first = await bench.layer(base, one, created_by="RUN make")
    second = await bench.layer(base, other, created_by="RUN make")
    return difference(bench.world.snapshots, first, second)


async def test_the_same_has_no_difference(bench):
    assert await differences(bench, written(a="1"), written(a="1")) == []


async def test_texts_differ_in_a_line(bench):
    found = await differences(bench, written(a="x\ny\nbuilt 1\n"), written(a="x\ny\nbuilt 2\n"))
    assert found == ["RUN make: /a: line 3 is `built 1` and `built 2`"]


async def test_a_text_that_ends_earlier(bench):
    found = await differences(bench, written(a="x\n"), written(a="x\ny\n"))
    assert found == ["RUN make: /a: line 2 is missing and `y`"]


async def test_binaries_differ_from_a_byte_on(bench):
    one, other = b"\0" * 100_000 + b"1", b"\0" * 100_000 + b"22"
    found = await differences(bench, written(a=one), written(a=other))
    assert found == ["RUN make: /a: content (of 100001 and 100002 bytes) differs from byte 100000 on"]


async def test_what_is_no_text_is_not_shown(bench):
    found = await differences(bench, written(a=b"x\n\xff1"), written(a=b"x\n\xff2"))
    assert found == ["RUN make: /a: content differs from byte 3 on"]


async def test_files_of_one_build_only(bench):
    found = await differences(bench, written(a="1"), written(b="1"))
    assert found == ["RUN make: /a: only the first build has it", "RUN make: /b: only the second build has it"]


async def test_attributes_kinds_and_links(bench):
    def one(root: Path) -> None:
        written(mode="", owner="", time="", kind="", xattr="")(root)
        os.utime(root / "time", (10, 10))
        (root / "link").symlink_to("a")

    def other(root: Path) -> None:
        written(mode="", owner="", time="", xattr="")(root)
        (root / "mode").chmod(0o755)
        os.chown(root / "owner", 1, 2)
        os.utime(root / "time", (20, 20))
        (root / "kind").mkdir()
        (root / "link").symlink_to("b")
        os.setxattr(root / "xattr", "user.x", b"1")

    found = await differences(bench, one, other)
    assert sorted(each.removeprefix("RUN make: ") for each in found) == [
        "/kind: a file in the first build, a directory in the second",
        "/link: leads to `a` and to `b`",
        "/mode: mode 0644 and 0755",
        "/owner: owner 0:0 and 1:2",
        "/time: time of change 1970-01-01T00:00:10Z and 1970-01-01T00:00:20Z",
        "/xattr: extended attribute `user.x` differs",
    ]


async def test_only_what_a_step_changed_is_looked_at_and_the_step_is_named(bench):
    base = await bench.files(a="1", b="2")
    found = await differences(bench, written(c="\x1b[2J"), written(c="y"), base)
    assert found == ["RUN make: /c: line 1 is `\\x1b[2J` and `y`"]


async def test_more_layers_and_very_many_files(bench):
    base = await bench.files(a="1")
    more = await bench.files(base, b="2")
    snapshots = bench.world.snapshots
    assert difference(snapshots, base, more) == ["only the second build has a layer of RUN x"]
    found = await differences(bench, written(**{f"f{n}": "1" for n in range(150)}), written(g="1"))
    assert len(found) == 101
    assert found[-1].endswith("the others are not listed")
