"""What the engine tells of its images: platforms side by side, disk usage against the disk itself, older clients."""

import json
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from harness import images
from harness.engine import Cli, Engine
from harness.registry import Registry

pytestmark = pytest.mark.not_dockerd("20.10 keeps one platform of an image, and no blobs")

ARCHITECTURES = ("amd64", "s390x", "riscv64")


def variant(architecture: str) -> images.Image:
    own = images.tar([images.Entry(name="platform", data=architecture.encode() * 500)])
    return images.Image(tags=[], layers=[images.busybox_layer(), own], architecture=architecture)


@pytest.fixture
def many(engine: Engine, registry: Registry, tmp_path: Path) -> Iterator[str]:
    """An image of three platforms, of which two are held."""
    images.oci_layout(tmp_path / "layout", [variant(each) for each in ARCHITECTURES], nested=True)
    name = registry.push(f"oci:{tmp_path}/layout", "team/many:1", "--all", "--preserve-digests")
    engine.docker("pull", "-q", name)
    engine.docker("pull", "-q", "--platform", "linux/s390x", name)
    yield name
    engine.remove_all_containers()
    engine.api.request("DELETE", f"/images/{name}?force=1")
    engine.api.request("DELETE", f"/images/{variant('s390x').id}?force=1")


def row(engine: Engine, name: str, query: str = "") -> Any:
    wanted = quote(json.dumps({"reference": [name]}))
    (found,) = engine.api.get(f"/images/json?filters={wanted}{query}")
    return found


def platform(architecture: str) -> str:
    return quote(json.dumps({"os": "linux", "architecture": architecture}))


# -- platforms side by side --------------------------------------------------------------------------------------------


def test_a_row_tells_of_each_platform_of_its_index(engine: Engine, many: str) -> None:
    container = engine.docker("create", many, "true").text
    found = row(engine, many, "&manifests=1")
    assert found["Id"] == variant("amd64").id
    assert found["Descriptor"]["mediaType"] == images.OCI_INDEX
    told = [
        (each["ImageData"]["Platform"]["architecture"], each["Available"], each["ImageData"]["Containers"])
        for each in found["Manifests"]
    ]
    assert told == [("amd64", True, [container]), ("s390x", True, []), ("riscv64", False, [])]
    for each in found["Manifests"]:
        sizes = each["Size"]
        assert sizes["Total"] == sizes["Content"] + each["ImageData"]["Size"]["Unpacked"]
        assert (sizes["Content"] > 1000) == each["Available"]
    assert engine.api.get(f"/images/{many}/json?manifests=1")["Manifests"] == found["Manifests"]
    assert "Manifests" not in row(engine, many)


def test_a_platform_is_inspected_and_its_history_told(engine: Engine, many: str) -> None:
    wanted = platform("s390x")
    found = engine.api.get(f"/images/{many}/json?platform={wanted}")
    assert (found["Id"], found["Architecture"]) == (variant("s390x").id, "s390x")
    assert engine.api.get(f"/images/{many}/history?platform={wanted}")[0]["Id"] == found["Id"]
    for path in ("json", "history"):
        answer = engine.api.request("GET", f"/images/{many}/{path}?platform={platform('riscv64')}")
        assert answer.status == 404
        assert "does not provide the specified platform (linux/riscv64)" in answer.message
    answer = engine.api.request("GET", f"/images/{many}/json?platform={wanted}&manifests=1")
    assert (answer.status, answer.message) == (
        400,
        "conflicting options: manifests and platform options cannot both be set",
    )
    assert engine.api.get(f"/v1.48/images/{many}/json?platform={wanted}")["Id"] == variant("amd64").id


def test_a_container_of_another_platform_is_shown_under_its_name(engine: Engine, many: str) -> None:
    container = engine.docker("create", "--platform", "linux/s390x", many, "true").text
    (listed,) = engine.api.get("/containers/json?all=1")
    assert (listed["Image"], listed["ImageID"]) == (many, variant("s390x").id)
    manifest = row(engine, many, "&manifests=1")["Manifests"][1]["ID"]
    for found in (listed, engine.inspect(container)):
        assert found["ImageManifestDescriptor"]["digest"] == manifest
        assert found["ImageManifestDescriptor"]["platform"] == {"architecture": "s390x", "os": "linux"}
    assert "ImageManifestDescriptor" not in engine.api.get("/v1.47/containers/json?all=1")[0]
    assert "ImageManifestDescriptor" not in engine.api.get("/system/df")["Containers"][0]
    done = engine.docker("rmi", many, check=False)
    assert "unable to remove repository reference" in done.err
    assert container[:12] in done.err


def test_a_platform_is_removed_and_the_others_stay(engine: Engine, many: str) -> None:
    engine.docker("tag", many, "second")
    answer = engine.api.request("DELETE", f"/images/second?platforms={platform('s390x')}")
    assert answer.json()[0] == {"Deleted": variant("s390x").id}
    told = [each["Available"] for each in row(engine, many, "&manifests=1")["Manifests"]]
    assert told == [True, False, False]
    assert engine.docker("run", "--rm", many, "cat", "/platform").text.startswith("amd64")
    assert engine.docker("rmi", "second").lines == ["Untagged: second:latest"]


def test_a_name_takes_its_platforms_along(engine: Engine, many: str) -> None:
    lines = engine.docker("rmi", many).lines
    for each in ("amd64", "s390x"):
        assert f"Deleted: {variant(each).id}" in lines
    assert engine.api.get("/images/json?all=1&filters=" + quote('{"dangling":["true"]}')) == []


# -- disk usage --------------------------------------------------------------------------------------------------------


def on_disk(root: Path) -> int:
    """Bytes of the files below: of each once, whatever links it has; of symbolic links the length."""
    seen: dict[tuple[int, int], int] = {}
    for folder, _, names in os.walk(root):
        for name in names:
            found = os.lstat(os.path.join(folder, name))
            if stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode):
                seen[found.st_dev, found.st_ino] = found.st_size
    return sum(seen.values())


def layers_on_disk(engine: Engine) -> int:
    return sum(on_disk(layer / "diff") for layer in (engine.data_root / "layers").iterdir())


def check(engine: Engine) -> Any:
    """What `system df` says, compared with the data root."""
    usage = engine.api.get("/system/df")
    assert usage["LayersSize"] == layers_on_disk(engine)
    assert usage["ContentSize"] == on_disk(engine.data_root / "blobs")
    return usage


def test_disk_usage_is_what_is_on_disk(engine: Engine, many: str) -> None:
    usage = check(engine)
    rows = {name: each for each in usage["Images"] for name in each["RepoTags"]}
    found = rows[many]
    assert found["Size"] - found["SharedSize"] == 2 * len("amd64" * 500)  # s390x is as long
    base = rows["busybox:latest"]
    assert base["SharedSize"] == base["Size"] == found["SharedSize"]
    assert sum(each["Size"] - each["SharedSize"] for each in rows_once(usage)) + base["Size"] == usage["LayersSize"]


def rows_once(usage: Any) -> list[Any]:
    return list({each["Id"]: each for each in usage["Images"]}.values())


def test_what_pruning_reclaims_is_what_disk_usage_goes_down_by(engine: Engine) -> None:
    """Also when the layers of a removed image stay for a container."""
    extra = [images.tar([images.Entry(name=f"f{number}", data=bytes(5000 + number))]) for number in range(3)]
    first = images.Image(tags=["first:latest"], layers=[images.busybox_layer(), extra[0], extra[1]])
    second = images.Image(tags=["second:latest"], layers=[images.busybox_layer(), extra[0], extra[2]])
    engine.load(images.docker_archive([first, second]))
    engine.docker("create", "--name", "cc", "second", "true")
    engine.docker("rmi", "-f", "second")
    before = check(engine)["LayersSize"]
    engine.docker("tag", "busybox", "first")  # the old one dangles
    answer = engine.api.request("POST", "/images/prune").json()
    assert answer["SpaceReclaimed"] == 5001
    assert check(engine)["LayersSize"] == before - 5001
    engine.docker("rm", "cc")
    assert check(engine)["LayersSize"] == before - 5001 - 5000 - 5002
    engine.docker("rmi", "first")


def test_containers_are_counted_for_each_image(engine: Engine, py: Any) -> None:
    engine.docker("create", "layered", "true")
    engine.docker("create", "layered", "true")
    counts = {each["Id"]: each["Containers"] for each in engine.api.get("/system/df")["Images"]}
    assert counts[images.layered().id] == 2
    assert counts[images.configured().id] == 0
    assert {each["Id"]: each["Containers"] for each in py.df()["Images"]} == counts
    assert row(engine, "layered")["Containers"] == 2


def test_the_columns_of_verbose_disk_usage(cli: Cli) -> None:
    lines = cli("system", "df", "-v").lines
    head = next(line.split() for line in lines if line.startswith("REPOSITORY"))
    assert head[-4:] == ["SIZE", "UNIQUE", "SIZE", "CONTAINERS"]
    line = next(line.split() for line in lines if line.startswith("busybox"))
    assert line[-2:] == ["0B", "0"]  # all its bytes are shared


# -- older clients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.24", "1.41", "1.43", "1.44", "1.47", "1.48", "1.50", "1.51"])
def test_every_api_version_gets_its_own_shape(engine: Engine, version: str) -> None:
    number = tuple(map(int, version.split(".")))
    found = engine.api.get(f"/v{version}/images/json")[0]
    assert ("VirtualSize" in found) == (number < (1, 44))
    assert ("Descriptor" in found) == (number >= (1, 48))
    assert (found["Containers"] == -1) == (number < (1, 51))
    inspected = engine.api.get(f"/v{version}/images/busybox/json")
    assert ("VirtualSize" in inspected) == (number < (1, 44))
    assert ("ContainerConfig" in inspected) == (number < (1, 45))
    assert ("Descriptor" in inspected) == (number >= (1, 48))
    assert ("Hostname" in inspected["Config"]) == (number < (1, 50))
    assert engine.api.get(f"/v{version}/system/df")["Images"][0]["Containers"] == 0


def test_the_old_filter_parameter_names_a_repository(engine: Engine) -> None:
    assert len(engine.api.get("/v1.40/images/json?filter=layered")) == 1
    assert len(engine.api.get("/v1.41/images/json?filter=layered")) > 1


# -- at the same time --------------------------------------------------------------------------------------------------


def test_removing_beside_pulls_and_runs_loses_nothing(engine: Engine, many: str) -> None:
    """Whatever comes first: every answer is one Docker gives, and in the end the image is whole or gone."""
    repository, _, tag = many.rpartition(":")

    def pull() -> str:
        return engine.api.request("POST", f"/images/create?fromImage={repository}&tag={tag}").body.decode()

    def remove() -> str:
        answer = engine.api.request("DELETE", f"/images/{many}")
        return "" if answer.status == 200 else answer.message

    def run() -> str:
        done = engine.docker("run", "--rm", "--network", "none", many, "cat", "/platform", check=False)
        return "" if done.out == "amd64" * 500 else done.err

    known = (f"No such image: {many}", "conflict: unable to remove repository reference")
    with ThreadPoolExecutor(4) as pool:
        for _ in range(6):
            jobs = [pool.submit(job) for job in (pull, remove, run, remove)]
            pulled, *others = [job.result() for job in jobs]
            assert "error" not in pulled, pulled
            for said in others:
                assert not said or any(words in said for words in known), said
    pull()
    assert run() == ""
    check(engine)
    engine.docker("rmi", "-f", many)
    engine.docker("image", "prune", "-f")
    check(engine)
    assert not any((engine.data_root / "ingest").iterdir())
