"""Images: load, save, tag, remove, history, import, commit, and what of them the containers see."""

import bz2
import gzip
import io
import json
import lzma
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from harness import images
from harness.engine import Cli, Engine


@pytest.fixture(autouse=True)
def only_the_base_images_stay(engine: Engine) -> Any:
    """Every test here leaves the image store as it found it."""
    before = {image["Id"]: sorted(image["RepoTags"] or []) for image in engine.api.get("/images/json?all=1")}
    yield
    engine.remove_all_containers()
    for image in engine.api.get("/images/json?all=1"):
        if image["Id"] not in before:
            engine.api.request("DELETE", f"/images/{image['Id']}?force=1")
        else:
            for tag in set(image["RepoTags"] or []) - set(before[image["Id"]]):
                engine.api.request("DELETE", f"/images/{tag}")
    after = {image["Id"]: sorted(image["RepoTags"] or []) for image in engine.api.get("/images/json?all=1")}
    if after != before:
        base = images.docker_archive([images.busybox(), images.layered(), images.configured()])
        engine.load(base)


def repo_tags(cli: Cli) -> set[str]:
    return set(cli("images", "--format", "{{.Repository}}:{{.Tag}}").lines)


# -- list, inspect, history --------------------------------------------------------------------------------------------


def test_images_are_listed(cli: Cli) -> None:
    expected = {"busybox:latest", "layered:latest", "configured:latest", "example.test/some/configured:1.0"}
    assert expected <= repo_tags(cli)
    head = cli("images").lines[0].split()
    assert head[:3] == ["REPOSITORY", "TAG", "IMAGE"]
    assert cli("images", "-q", "--no-trunc", "busybox").lines == [images.busybox().id]
    assert cli("images", "-q", "no-such-image").out == ""
    assert repo_tags(cli) >= set(cli("images", "--format", "{{.Repository}}:{{.Tag}}", "-f", "reference=conf*").lines)


def test_the_image_id_is_the_digest_of_the_config(engine: Engine) -> None:
    for image in (images.busybox(), images.layered(), images.configured()):
        assert engine.api.get(f"/images/{image.tags[0]}/json")["Id"] == image.id


def test_inspect_shows_the_config(cli: Cli) -> None:
    (found,) = cli.json("image", "inspect", "configured")
    assert found["Id"] == images.configured().id
    assert set(found["RepoTags"]) == set(images.configured().tags)
    assert (found["Architecture"], found["Os"]) == ("amd64", "linux")
    assert found["Created"] == images.CREATED
    assert found["RootFS"] == {
        "Type": "layers",
        "Layers": [images.digest(layer) for layer in images.configured().layers],
    }
    config = found["Config"]
    assert (config["User"], config["WorkingDir"], config["StopSignal"]) == ("alice", "/work", "SIGUSR1")
    assert (config["Entrypoint"], config["Cmd"]) == (["echo", "entry"], ["default", "args"])
    assert set(config["ExposedPorts"]) == {"80/tcp", "53/udp"}
    assert found["Size"] > 1_000_000


def test_images_are_found_by_id_and_prefix(engine: Engine) -> None:
    identifier = images.layered().id
    for name in (identifier, identifier[7:], identifier[7:19], "docker.io/library/layered", "layered:latest"):
        assert engine.api.get(f"/images/{name}/json")["Id"] == identifier


def test_history_tells_each_layer(cli: Cli) -> None:
    lines = cli("history", "--no-trunc", "--format", "{{.CreatedBy}}", "layered").lines
    assert lines == ["layer 2", "layer 1", "layer 0"]
    sizes = cli("history", "--human=false", "--format", "{{.Size}}", "layered").lines
    assert int(sizes[2]) > 1_000_000
    assert all(int(size) < 10_000 for size in sizes[:2])


def test_a_missing_image_is_named(cli: Cli) -> None:
    for command in (["history", "nosuch"], ["rmi", "nosuch"], ["tag", "nosuch", "x"], ["save", "nosuch"]):
        done = cli(*command, check=False)
        assert done.code == 1
        assert "o such image: nosuch" in done.err or "reference does not exist" in done.err


# -- tag, rmi ----------------------------------------------------------------------------------------------------------


def test_tag_and_rmi(cli: Cli) -> None:
    cli("tag", "layered", "elsewhere.test:5000/team/thing:v1")
    assert "elsewhere.test:5000/team/thing:v1" in repo_tags(cli)
    out = cli("rmi", "elsewhere.test:5000/team/thing:v1").out
    assert out == "Untagged: elsewhere.test:5000/team/thing:v1\n"
    assert "layered:latest" in repo_tags(cli)


def test_the_last_tag_takes_the_image_and_its_own_layers(engine: Engine, cli: Cli) -> None:
    image = images.Image(
        tags=["brief:latest"],
        layers=[images.busybox_layer(), images.tar([images.Entry(name="only-here", data=b"x")])],
    )
    engine.load(images.docker_archive([image]))
    out = cli("rmi", "brief").lines
    assert out[0] == "Untagged: brief:latest"
    assert f"Deleted: {image.id}" in out
    assert cli("run", "--rm", "busybox", "true").code == 0  # the shared layer is still there


def test_a_tag_moves_to_another_image(cli: Cli, engine: Engine) -> None:
    cli("tag", "busybox", "moving")
    cli("tag", "layered", "moving")
    assert engine.api.get("/images/moving/json")["Id"] == images.layered().id


@pytest.mark.parametrize("name", ["UPPER", "a//b", "a:b:c", "a@sha256:short", "tag:with space"])
def test_a_bad_reference_is_refused(cli: Cli, name: str) -> None:
    done = cli("tag", "busybox", name, check=False)
    assert done.code == 1
    assert "invalid reference format" in done.err.lower() or "not a valid repository/tag" in done.err


def test_an_image_in_use_is_not_removed(cli: Cli, engine: Engine) -> None:
    identifier = cli("create", "layered").text
    done = cli("rmi", "layered", check=False)
    assert done.code == 1
    assert "conflict: unable to remove repository reference" in done.err
    assert identifier[:12] in done.err
    cli("tag", "layered", "second")
    cli("rmi", "layered")  # only a name goes
    done = cli("rmi", "-f", "second")
    assert "Untagged: second:latest" in done.out
    engine.load(images.docker_archive([images.layered()]))


def test_a_running_containers_image_is_not_even_removed_by_force(cli: Cli) -> None:
    cli("run", "-d", "layered", "sleep", "600")
    done = cli("rmi", "-f", images.layered().id, check=False)
    assert done.code == 1
    assert "image is being used by running container" in done.err


def test_prune_takes_the_untagged(cli: Cli, engine: Engine) -> None:
    cli("run", "--name", "maker", "busybox", "touch", "/made")
    identifier = cli("commit", "maker").text
    cli("rm", "maker")
    assert cli("images", "-q", "--no-trunc", "-f", "dangling=true").lines == [identifier]
    out = cli("image", "prune", "-f").out
    assert f"deleted: {identifier}" in out.lower()
    assert "busybox:latest" in repo_tags(cli)


# -- layers ------------------------------------------------------------------------------------------------------------


def test_layers_and_whiteouts_make_the_right_tree(cli: Cli) -> None:
    script = (
        "cd /; find data opaque becomes-file becomes-dir | sort; cat data/kept becomes-file; readlink data/soft;"
        "stat -c '%u %g %a %n' data data/kept data/setuid; stat -c '%F %t %T' data/device data/fifo;"
        "[ $(stat -c %i data/hard) = $(stat -c %i data/hard2) ] && echo same inode; stat -c %Y data/kept"
    )
    deep = "data/" + "/".join(["long"] * 30)
    tree = ["becomes-dir", "becomes-dir/y", "becomes-file", "data"]
    lines = cli("run", "--rm", "layered", "sh", "-c", script).lines
    files = [line for line in lines if line.startswith(("data", "opaque", "becomes"))]
    assert [name for name in files if not name.startswith("data/long")][:4] == tree
    assert f"{deep}/name" in lines
    assert "data/gone" not in files
    assert "opaque/below" not in files
    assert "opaque/above" in files
    expected = ["kept", "now a file", "../etc/passwd", "7 8 750 data", "7 8 640 data/kept", "0 0 4755 data/setuid"]
    expected += ["character special file 1 3", "fifo 0 0", "same inode", str(images.MTIME)]
    assert lines[len(lines) - len(expected) :] == expected


def test_writing_leaves_the_image_untouched(cli: Cli, engine: Engine) -> None:
    script = "rm -r /data; echo x > /etc/passwd; chmod 777 /bin/busybox; mv /opaque /moved"
    cli("run", "--rm", "layered", "sh", "-c", script)
    assert cli("run", "--rm", "layered", "cat", "/data/kept").out == "kept\n"
    assert cli("run", "--rm", "layered", "stat", "-c", "%a", "/bin/busybox").text == "755"


def test_a_second_container_copies_nothing(engine: Engine) -> None:
    def used() -> int:
        return sum(
            path.stat().st_blocks * 512
            for path in engine.data_root.rglob("*")
            if path.is_file() and not path.is_symlink() and path.suffix not in (".db", ".log")
        )

    engine.docker("create", "--name", "one", "busybox")
    before = used()
    engine.docker("create", "--name", "two", "busybox")
    assert used() - before < 500_000  # the image's one file is bigger


# -- load, save --------------------------------------------------------------------------------------------------------


def test_load_tells_what_it_loaded(cli: Cli, tmp_path: Path) -> None:
    image = images.Image(tags=["loaded:1", "loaded:2"], layers=[images.busybox_layer()], config={"Labels": {"x": "1"}})
    archive = tmp_path / "archive.tar"
    archive.write_bytes(images.docker_archive([image]))
    lines = cli("load", "-i", str(archive)).lines
    assert {"Loaded image: loaded:1", "Loaded image: loaded:2"} <= set(lines)
    cli("rmi", "loaded:1", "loaded:2")


@pytest.mark.parametrize(
    "compression", ["gzip", pytest.param("zstd", marks=pytest.mark.not_dockerd("too old for it")), "xz", "bzip2"]
)
def test_load_takes_compressed_archives(docker: Cli, compression: str) -> None:
    compress = {"gzip": gzip.compress, "zstd": images.zstd, "xz": lzma.compress, "bzip2": bz2.compress}[compression]
    packed = compress(images.docker_archive([small("packed")]))
    assert "Loaded image: packed:latest" in docker("load", input=packed).out


def small(name: str, *extra: images.Entry) -> images.Image:
    """A tiny image: two layers, one of them a few bytes."""
    one = images.tar([images.directory("etc"), images.Entry(name="etc/name", data=name.encode())])
    return images.Image(tags=[f"{name}:latest"], layers=[one, images.tar([images.Entry(name="x", data=b"x"), *extra])])


@pytest.mark.not_dockerd("reads only its own format")
@pytest.mark.parametrize("compression", ["gzip", "zstd", "plain"])
def test_load_takes_an_oci_layout(engine: Engine, tmp_path: Path, compression: str) -> None:
    image = small("laid-out")
    layout = tmp_path / "layout"
    images.oci_layout(layout, [image], compression=compression)
    index = json.loads((layout / "index.json").read_text())
    index["manifests"][0]["annotations"] = {"io.containerd.image.name": "docker.io/library/laid-out:latest"}
    (layout / "index.json").write_text(json.dumps(index))
    archive = subprocess.run(["tar", "-C", str(layout), "-c", "."], capture_output=True, check=True).stdout
    assert "Loaded image: laid-out:latest" in engine.docker("load", input=archive).out
    assert engine.api.get("/images/laid-out/json")["Id"] == image.id


def test_save_and_load_give_the_same_image(engine: Engine, cli: Cli, tmp_path: Path) -> None:
    archive = tmp_path / "saved.tar"
    cli("save", "-o", str(archive), "layered", "configured")
    with tarfile.open(archive) as tar:
        manifest = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
    assert {tag for entry in manifest for tag in entry["RepoTags"]} == {"layered:latest", "configured:latest"}
    cli("rmi", "layered")
    cli("load", "-i", str(archive))
    assert engine.api.get("/images/layered/json")["Id"] == images.layered().id
    assert cli("run", "--rm", "layered", "cat", "/data/kept").out == "kept\n"


def test_skopeo_reads_what_save_wrote(engine: Engine, tmp_path: Path, require) -> None:
    require("skopeo")
    archive = tmp_path / "saved.tar"
    engine.docker("save", "-o", str(archive), "layered")
    shown = subprocess.run(
        ["skopeo", "inspect", "--config", f"docker-archive:{archive}:layered:latest"], capture_output=True, check=True
    ).stdout
    assert json.loads(shown)["rootfs"]["diff_ids"] == [images.digest(layer) for layer in images.layered().layers]


def test_a_broken_archive_is_refused_and_leaves_nothing(docker: Cli, engine: Engine) -> None:
    whole = images.docker_archive([small("torn")])
    for broken in (b"not a tar at all", whole[: len(whole) // 2], images.tar([images.Entry(name="x", data=b"x")])):
        done = docker("load", input=broken, check=False)
        assert done.code == 1, done
        assert done.err
    assert "torn:latest" not in repo_tags(docker)


def test_an_archive_whose_layer_is_not_what_the_config_says_is_refused(docker: Cli) -> None:
    archive = images.docker_archive([small("forged")])
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]
    layer = next(name for name in files if name.endswith("layer.tar"))
    files[layer] = images.tar([images.Entry(name="evil", data=b"evil")])
    forged = images.tar([images.Entry(name=name, data=data) for name, data in files.items()])
    done = docker("load", input=forged, check=False)
    assert done.code == 1
    assert "forged:latest" not in repo_tags(docker)


# -- import, commit ----------------------------------------------------------------------------------------------------


def test_import_makes_a_one_layer_image(cli: Cli, engine: Engine) -> None:
    done = cli(
        *("import", "-c", 'CMD ["echo", "imported"]', "-c", "ENV A=b", "-m", "why", "-", "brought:in"),
        input=images.busybox_layer(),
    )
    identifier = done.lines[-1]
    assert identifier.startswith("sha256:")
    found = engine.api.get("/images/brought:in/json")
    assert found["Id"] == identifier
    assert found["Comment"] == "why"
    assert len(found["RootFS"]["Layers"]) == 1
    assert "A=b" in found["Config"]["Env"]
    assert cli("run", "--rm", "brought:in", "sh", "-c", "echo $A").text == "b"


def test_commit_keeps_what_was_written_and_deleted(cli: Cli, engine: Engine) -> None:
    script = "echo new > /new; rm /data/kept; mkdir -p /dir/sub; ln /new /dir/hard; chmod 4711 /new"
    script += "; rm -r /opaque; mkdir /opaque"
    cli("run", "--name", "maker", "-e", "SET=1", "layered", "sh", "-c", script)
    flags = ["-a", "me", "-m", "why", "-c", 'CMD ["cat", "/new"]', "-c", "LABEL k=v", "-c", "WORKDIR /dir"]
    identifier = cli("commit", *flags, "maker", "kept:1").text
    found = engine.api.get("/images/kept:1/json")
    assert found["Id"] == identifier
    assert (found["Author"], found["Comment"]) == ("me", "why")
    assert len(found["RootFS"]["Layers"]) == 4
    assert found["RootFS"]["Layers"][:3] == [images.digest(layer) for layer in images.layered().layers]
    assert cli("run", "--rm", "kept:1").out == "new\n"
    script = "pwd; stat -c '%a %h' /new; ls /data; ls -A /opaque; echo $SET"
    lines = cli("run", "--rm", "kept:1", "sh", "-c", script).lines
    assert lines[:2] == ["/dir", "4711 2"]
    assert "kept" not in lines[2:]
    assert "above" not in lines[2:]
    assert lines[-1] == "1"


def test_commit_of_a_running_container_pauses_and_goes_on(cli: Cli, engine: Engine) -> None:
    cli("run", "-d", "--name", "live", "busybox", "sh", "-c", "echo x > /file; sleep 600")
    while cli("exec", "live", "cat", "/file", check=False).out != "x\n":
        pass
    cli("commit", "live", "snap")
    assert engine.state("live")["Status"] == "running"
    assert cli("run", "--rm", "snap", "cat", "/file").out == "x\n"
