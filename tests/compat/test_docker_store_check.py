"""Damage in the store of a running daemon: told in words, found by `system check`, mended while containers run."""

import json
import re
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from harness import images
from harness.engine import Engine

pytestmark = pytest.mark.not_dockerd("looks at files of another program")


@pytest.fixture
def damaged(own_engine: Any) -> Iterator[Engine]:
    engine: Engine = own_engine()
    engine.load(images.docker_archive([images.layered()]))
    yield engine
    engine.wherry("system", "check", "--repair", check=False)


def layers(engine: Engine, image: str) -> list[Path]:
    """The directories of its layers, base first."""
    chain, found = "", []
    for diff_id in engine.docker.json("image", "inspect", image)[0]["RootFS"]["Layers"]:
        chain = f"sha256:{sha256(f'{chain} {diff_id}'.encode()).hexdigest()}" if chain else diff_id
        found.append(engine.box.path(engine.data_root) / "layers" / chain[7:])
    return found


def check(engine: Engine, *flags: str, code: int = 0) -> list[dict[str, Any]]:
    done = engine.wherry("system", "check", "--format", "json", *flags, check=False)
    assert done.code == code, done.out + done.err
    problems: list[dict[str, Any]] = json.loads(done.out)["problems"]
    return problems


def test_what_is_wrong_in_a_store_in_use_is_told_and_mended(damaged: Engine) -> None:
    whole(damaged)
    a_layer_under_a_running_container(damaged)
    leftovers(damaged)
    a_blob_nobody_has(damaged)


def whole(damaged: Engine) -> None:
    said = damaged.wherry("system", "check").text
    assert re.fullmatch(r"Checked 2 images, \d+ layers and \d+ blobs of [\d.]+[kM]B: no damage found", said), said
    info = dict(damaged.docker.json("info", "--format", "{{json .DriverStatus}}"))
    assert info["Native Overlay Diff"] == "true"
    assert info["Reason"] == "overlay works here"


def test_a_run_on_a_missing_layer_says_what_to_do_and_that_helps(damaged: Engine) -> None:
    damaged.docker("create", "--name", "made", "layered", "cat", "/etc/passwd")
    lost = layers(damaged, "layered")[-1]
    shutil.rmtree(lost)
    words = f"layer sha256:{lost.name} of image layered:latest is missing on disk: run `wherry system check --repair`"
    assert words in damaged.docker("run", "--rm", "layered", "true", check=False).err
    assert "missing on disk" in damaged.docker("start", "made", check=False).err
    assert [(each["kind"], each["repaired"]) for each in check(damaged, code=1)] == [("missing-layer", False)]
    assert [(each["kind"], each["repaired"]) for each in check(damaged, "--repair")] == [("missing-layer", True)]
    assert check(damaged) == []
    damaged.docker("start", "-a", "made")
    damaged.docker("run", "--rm", "layered", "true")
    damaged.docker("rm", "made")
    an_image_that_lost_its_config(damaged)


def a_layer_under_a_running_container(damaged: Engine) -> None:
    damaged.docker("run", "-d", "--name", "runs", "busybox", "sh", "-c", "while sleep 0.05; do cat /etc/passwd; done")
    base = layers(damaged, "busybox")[0] / "diff"
    content = (base / "etc/passwd").read_bytes()
    (base / "etc/passwd").write_bytes(b"x" * len(content))
    problems = check(damaged, "--repair")
    assert [(each["kind"], each["repaired"]) for each in problems] == [("altered-layer", True)]
    assert "etc/passwd" in problems[0]["detail"]
    assert (base / "etc/passwd").read_bytes() == content
    assert damaged.docker("exec", "runs", "true").code == 0
    assert damaged.state("runs")["Running"]
    assert damaged.docker("run", "--rm", "busybox", "cat", "/etc/passwd").out == content.decode()


def an_image_that_lost_its_config(damaged: Engine) -> None:
    image_id = damaged.docker("image", "inspect", "--format", "{{.Id}}", "layered").text
    damaged.stop()
    blob = damaged.box.path(damaged.data_root) / "blobs/sha256" / image_id[7:]
    blob.write_bytes(b"{}")
    damaged.start()
    assert "image layered:latest cannot be used: " in damaged.log_tail()
    problems = check(damaged, code=1)
    assert [(each["kind"], each["object"]) for each in problems] == [("unusable-image", "layered:latest")]
    assert {each["repaired"] for each in check(damaged, "--repair")} == {True}
    assert check(damaged) == []
    assert "layered" not in damaged.docker("images").out
    damaged.docker("run", "--rm", "busybox", "true")


def leftovers(damaged: Engine) -> None:
    root = damaged.box.path(damaged.data_root)
    (root / "blobs/sha256" / ("0" * 64)).write_bytes(b"orphan")
    shutil.copytree(layers(damaged, "busybox")[0], root / "layers" / ("1" * 64), symlinks=True)
    (root / "ingest/left").write_bytes(b"half")
    (root / "rw/nobodys/diff").mkdir(parents=True)
    (root / "rw/nobodys/parent").touch()
    damaged.docker("create", "--name", "mine", "busybox")
    kinds = {"orphan-blob", "orphan-layer", "orphan-file", "orphan-snapshot"}
    assert {each["kind"] for each in check(damaged, code=1)} == kinds
    assert {each["kind"] for each in check(damaged, "--repair")} == kinds
    assert check(damaged) == []
    damaged.docker("start", "mine")


def a_blob_nobody_has(damaged: Engine) -> None:
    """What was loaded from an archive has no registry to be fetched from; it still runs."""
    digest = damaged.docker.json("image", "inspect", "busybox")[0]["Descriptor"]["digest"]
    (damaged.box.path(damaged.data_root) / "blobs/sha256" / digest[7:]).unlink()
    problems = check(damaged, "--repair", "--pull", code=1)
    assert [(each["kind"], each["object"], each["repaired"]) for each in problems] == [("missing-blob", digest, False)]
    assert problems[0]["remedy"] == "no registry is known to have it: load or build busybox:latest again"
    damaged.docker("run", "--rm", "busybox", "true")
    damaged.load(images.docker_archive([images.busybox()]))
    assert check(damaged) == []
