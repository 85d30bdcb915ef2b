"""`-v` in all its forms, and `volume`."""

import os
from pathlib import Path

import pytest

from harness.engine import Cli, Engine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A host directory that every user may look into."""
    path = tmp_path / "shared"
    path.mkdir()
    for parent in (path, *path.parents):
        if str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    return path


def test_a_bind_mount_is_the_hosts_directory(cli: Cli, folder: Path) -> None:
    (folder / "in").write_text("from the host\n")
    script = "cat /mnt/in; echo from the container > /mnt/out"
    assert cli("run", "--rm", "-v", f"{folder}:/mnt", "busybox", "sh", "-c", script).out == "from the host\n"
    assert (folder / "out").read_text() == "from the container\n"


def test_ro_refuses_writes(cli: Cli, folder: Path) -> None:
    done = cli("run", "--rm", "-v", f"{folder}:/mnt:ro", "busybox", "touch", "/mnt/x", check=False)
    assert done.code == 1
    assert "Read-only file system" in done.err
    assert not list(folder.iterdir())


def test_a_file_can_be_bound(cli: Cli, folder: Path) -> None:
    (folder / "one").write_text("one file\n")
    assert cli("run", "--rm", "-v", f"{folder}/one:/etc/motd", "busybox", "cat", "/etc/motd").out == "one file\n"


def test_v_makes_a_missing_source_and_mount_refuses_it(cli: Cli, folder: Path) -> None:
    cli("run", "--rm", "-v", f"{folder}/made/here:/mnt", "busybox", "true")
    assert (folder / "made/here").is_dir()
    missing = folder / "missing"
    done = cli("run", "--rm", "--mount", f"type=bind,source={missing},target=/mnt", "busybox", "true", check=False)
    assert done.code == 125
    assert f"bind source path does not exist: {missing}" in done.err
    assert not missing.exists()


def test_a_named_volume_outlives_its_containers(cli: Cli) -> None:
    cli("run", "--rm", "-v", "keep:/data", "busybox", "sh", "-c", "echo kept > /data/file")
    assert cli("run", "--rm", "-v", "keep:/other", "busybox", "cat", "/other/file").out == "kept\n"
    assert cli("volume", "ls", "-q").lines == ["keep"]


def test_an_empty_volume_gets_the_images_content_with_owners_and_modes(cli: Cli) -> None:
    listing = ["--entrypoint", "sh", "-u", "root", "configured", "-c"]
    script = "stat -c '%u %g %a %n' /vol /vol/seed; readlink /vol/link; cat /vol/seed"
    expected = ["1000 1000 770 /vol", "1000 1000 600 /vol/seed", "seed", "from the image"]
    assert cli("run", "--rm", "-v", "filled:/vol", *listing, script).lines == expected
    cli("run", "--rm", "-v", "filled:/vol", *listing, "echo changed > /vol/seed")
    assert cli("run", "--rm", "-v", "filled:/vol", *listing, "cat /vol/seed").out == "changed\n"


def test_the_images_own_volume_is_anonymous_and_filled(cli: Cli, engine: Engine) -> None:
    cli("run", "--name", "anon", "--entrypoint", "cat", "configured", "/vol/seed")
    (mount,) = engine.inspect("anon")["Mounts"]
    assert (mount["Type"], mount["Destination"]) == ("volume", "/vol")
    assert len(mount["Name"]) == 64
    assert (Path(mount["Source"]) / "seed").read_text() == "from the image\n"


def test_nocopy_leaves_it_empty(cli: Cli) -> None:
    flags = ["-v", "bare:/vol:nocopy", "--entrypoint", "ls", "-u", "root"]
    assert cli("run", "--rm", *flags, "configured", "-A", "/vol").out == ""


def test_a_bind_mount_is_never_filled(cli: Cli, folder: Path) -> None:
    assert (
        cli("run", "--rm", "-v", f"{folder}:/vol", "--entrypoint", "ls", "-u", "root", "configured", "/vol").out == ""
    )


def test_volumes_from_another_container(cli: Cli) -> None:
    cli("run", "--name", "source", "-v", "shared:/shared", "busybox", "sh", "-c", "echo hi > /shared/x")
    assert cli("run", "--rm", "--volumes-from", "source", "busybox", "cat", "/shared/x").out == "hi\n"
    done = cli("run", "--rm", "--volumes-from", "source:ro", "busybox", "touch", "/shared/y", check=False)
    assert "Read-only file system" in done.err


def test_mount_syntax(cli: Cli, engine: Engine, folder: Path) -> None:
    cli(
        *(
            "run",
            "--name",
            "all",
            "--mount",
            "type=volume,src=named,dst=/v",
            "--mount",
            f"type=bind,src={folder},dst=/b,ro",
        ),
        *(
            "--mount",
            "type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=700",
            "busybox",
            "sh",
            "-c",
            "touch /v/x /t/x; ! touch /b/x",
        ),
    )
    mounts = {mount["Destination"]: mount for mount in engine.inspect("all")["Mounts"]}
    assert {name: mount["Type"] for name, mount in mounts.items()} == {"/v": "volume", "/b": "bind", "/t": "tmpfs"}
    assert mounts["/b"]["RW"] is False
    assert not list(folder.iterdir())


def test_a_later_mount_lies_over_an_earlier_one(cli: Cli, folder: Path) -> None:
    (folder / "seen").write_text("bind\n")
    script = "cat /a/b/seen; ls /a"
    flags = ["-v", f"{folder}:/a/b", "--tmpfs", "/a"]
    assert cli("run", "--rm", *flags, "busybox", "sh", "-c", script).lines == ["bind", "b"]


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("/only/target:relative", "nvalid mount path: 'relative' mount path must be absolute"),
        ("name:/mnt:rw,ro", "nvalid mode: rw,ro"),
        ("/a:/b:nonsense", "nvalid mode: nonsense"),
        ("/a:/", "nvalid specification: destination can't be '/'"),
    ],
)
def test_a_wrong_v_is_refused_in_words(docker: Cli, argument: str, words: str) -> None:
    done = docker("run", "--rm", "-v", argument, "busybox", "true", check=False)
    assert done.code == 125
    assert words in done.err
    assert docker("volume", "ls", "-q").text == ""


def test_a_relative_source_is_refused_by_the_daemon(engine: Engine) -> None:  # the CLI would have made it absolute
    body = {"Image": "busybox", "HostConfig": {"Binds": ["../up:/mnt"]}}
    answer = engine.api.request("POST", "/containers/create", body)
    assert answer.status == 400
    assert "../up" in answer.message


def test_the_same_target_twice_is_refused(docker: Cli) -> None:
    done = docker("run", "--rm", "-v", "one:/mnt", "-v", "two:/mnt", "busybox", "true", check=False)
    assert done.code == 125
    assert "Duplicate mount point: /mnt" in done.err


def test_a_symlink_in_the_image_does_not_lead_a_mount_out(engine: Engine, folder: Path) -> None:
    """The target is resolved inside the root file system, never on the host."""
    marker = f"escape-{os.getpid()}"
    engine.docker("run", "--name", "trap", "busybox", "ln", "-s", "/tmp", "/link")
    image = engine.docker("commit", "trap").text
    shown = engine.docker("run", "--rm", "-v", f"{folder}:/link/{marker}", image, "ls", "/tmp").lines
    assert shown == [marker]
    assert not Path("/tmp", marker).exists()
    assert not engine.box.path(f"/tmp/{marker}").exists()
    engine.docker("rm", "-f", "trap")
    engine.docker("rmi", image)


# -- the volume verbs --------------------------------------------------------------------------------------------------


def test_create_inspect_list_remove(cli: Cli) -> None:
    assert cli("volume", "create", "--label", "a=b", "mine").text == "mine"
    (found,) = cli.json("volume", "inspect", "mine")
    assert (found["Name"], found["Driver"], found["Scope"], found["Labels"]) == ("mine", "local", "local", {"a": "b"})
    assert Path(found["Mountpoint"]).is_dir()
    assert cli("volume", "ls", "-q", "-f", "label=a").lines == ["mine"]
    assert cli("volume", "ls", "-q", "-f", "label=c").lines == []
    assert cli("volume", "create", "mine").text == "mine"
    assert cli("volume", "rm", "mine").text == "mine"
    assert "no such volume" in cli("volume", "inspect", "mine", check=False).err.lower()


def test_a_volume_in_use_is_not_removed(cli: Cli) -> None:
    identifier = cli("create", "-v", "used:/data", "busybox").text
    done = cli("volume", "rm", "used", check=False)
    assert done.code == 1
    assert f"remove used: volume is in use - [{identifier}]" in done.err


def test_dangling_volumes_are_found(cli: Cli) -> None:
    cli("create", "-v", "used:/data", "busybox")
    cli("volume", "create", "idle")
    assert cli("volume", "ls", "-q", "-f", "dangling=true").lines == ["idle"]
    assert cli("volume", "ls", "-q", "-f", "dangling=false").lines == ["used"]


def test_prune_takes_unused_anonymous_volumes_and_before_api_1_42_all(cli: Cli) -> None:
    cli("run", "--name", "gone", "-v", "/anonymous", "busybox", "true")
    cli("rm", "gone")
    cli("volume", "create", "named")
    out = cli("volume", "prune", "-f").out
    assert "Total reclaimed space" in out
    spoken = cli("version", "--format", "{{.Client.APIVersion}}").text.split(".")  # what client and daemon agreed on
    assert cli("volume", "ls", "-q").lines == (["named"] if int(spoken[1]) >= 42 else [])


def test_an_unknown_driver_and_a_bad_name_are_refused(docker: Cli) -> None:
    done = docker("volume", "create", "a/b", check=False)
    assert done.code == 1
    assert "includes invalid characters for a local volume name" in done.err
    done = docker("volume", "create", "-d", "nosuch", "xx", check=False)
    assert done.code == 1
    assert "nosuch" in done.err
