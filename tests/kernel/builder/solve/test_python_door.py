"""A build as a call: the context is a directory of the caller's."""

import os
from pathlib import Path
from typing import Any

import pytest

from wherry.builder.dockerfile.errors import DockerfileError
from wherry.builder.graph import NetworkMode, ResolveMode
from wherry.builder.log import LogEvent
from wherry.builder.options import Call, Export, Options
from wherry.builder.python import build
from wherry.builder.records.record import Status

OPTIONS = Options(resolve=ResolveMode.LOCAL, network=NetworkMode.NONE)


def project(root: Path, dockerfile: str, **files: str) -> Path:
    root.mkdir(exist_ok=True)
    (root / "Dockerfile").write_text(dockerfile)
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


async def test_a_call_gives_images_log_and_record(site: Any, tmp_path: Path) -> None:
    heard: list[object] = []
    where = project(tmp_path / "p", "FROM busybox\nCOPY . /app\nRUN cat /app/a\n", a="hello")
    done = await build(site.builder, where, options=OPTIONS, name="app:1", told=heard.append)
    image = site.world.deps.store.get("app:1")
    assert list(done.images.values()) == [image.id]
    assert b"hello" in b"".join(event.data for event in done.log.events if isinstance(event, LogEvent))
    assert heard == done.log.events
    assert done.record.status is Status.COMPLETED
    assert {step.name for step in done.record.steps} >= {"[2/3] COPY . /app", "[3/3] RUN cat /app/a"}


async def test_what_is_ignored_is_not_sent_and_exceptions_are(site: Any, tmp_path: Path) -> None:
    where = project(
        tmp_path / "p",
        "FROM busybox\nCOPY . /app\nRUN cd /app && find . | sort\n",
        keep="k",
        drop="d",
        out__lost="x",
        out__found="y",
        deep__er__b="z",
    )
    (where / ".dockerignore").write_text("drop\nout\n!out/found\nDockerfile\n.dockerignore\n**/b\n")
    done = await build(site.builder, where, options=OPTIONS)
    output = b"".join(event.data for event in done.log.events if isinstance(event, LogEvent)).decode().split()
    assert output == [".", "./deep", "./deep/er", "./keep", "./out", "./out/found"]


async def test_a_change_of_one_file_is_seen_and_the_rest_is_not_copied_again(site: Any, tmp_path: Path) -> None:
    where = project(tmp_path / "p", "FROM busybox\nCOPY . /app\nRUN cat /app/a\n", a="one", b="two")
    await build(site.builder, where, options=OPTIONS)
    (files,) = [path.parent for path in (site.world.root / "build/contexts").glob("*/files/b")]
    before = os.stat(files / "b").st_ino
    (where / "a").write_text("changed")
    done = await build(site.builder, where, options=OPTIONS)
    assert "`a` changed" in {step.why for step in done.record.steps}
    assert os.stat(files / "b").st_ino == before


async def test_files_go_to_their_destination(site: Any, tmp_path: Path) -> None:
    where = project(tmp_path / "p", "FROM busybox AS b\nRUN echo x > /x\nFROM scratch\nCOPY --from=b /x /sub/x\n")
    out, tar = tmp_path / "out", tmp_path / "out.tar"
    exports = [Export(type="local"), Export(type="tar")]
    await build(site.builder, where, options=OPTIONS, exports=exports, destinations=[out, tar])
    assert (out / "sub/x").read_text() == "x\n"
    assert tar.stat().st_size > 512


async def test_named_contexts_and_secrets_are_the_callers(site: Any, tmp_path: Path) -> None:
    where = project(
        tmp_path / "p",
        "FROM busybox\nCOPY --from=other f /f\nRUN --mount=type=secret,id=s test $(cat /run/secrets/s) = hush\n",
    )
    other = project(tmp_path / "other", "", f="from elsewhere")
    await build(site.builder, where, options=OPTIONS, name="named", contexts={"other": other}, secrets={"s": b"hush"})
    chain = site.world.deps.store.get("named").layers[1].chain
    assert (site.world.snapshots.layer(chain) / "f").read_text() == "from elsewhere"


async def test_a_call_is_answered_without_building(site: Any, tmp_path: Path) -> None:
    where = project(tmp_path / "p", "FROM busybox AS Base\nRUN exit 1\n")
    options = Options(resolve=ResolveMode.LOCAL, call=Call.LINT)
    done = await build(site.builder, where, options=options)
    assert b"StageNameCasing" in done.documents["result.json"]
    assert done.images == {}


async def test_what_is_wrong_is_raised_and_recorded(site: Any, tmp_path: Path) -> None:
    where = project(tmp_path / "p", "FROM busybox\nRNU true\n")
    with pytest.raises(DockerfileError, match=r"unknown instruction: RNU \(did you mean RUN\?\)"):
        await build(site.builder, where, options=OPTIONS)
    record = site.builder.records.history()[0]
    assert record.status is Status.ERROR
    assert record.error is not None
    assert record.error.line == 2
