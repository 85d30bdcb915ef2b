"""Commands against a fake engine: queries, output, and what several failures amount to."""

import json
import os
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from wherry.cli.commands.cp import place, renamed, split_argument, unpack
from wherry.cli.commands.events import describe_event
from wherry.cli.console import Failure

Wherry = Callable[..., Any]


def test_every_name_is_tried_and_failures_come_last(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    fake_engine.answers = {
        "DELETE /containers/a": reply(204),
        "DELETE /containers/b": reply(404, {"message": "No such container: b"}),
        "DELETE /containers/c": reply(204),
    }
    done = wherry("rm", "-fv", "a", "/b", "c")
    assert (done.code, done.out) == (0, "a\nc\n")
    assert done.err == "Error response from daemon: No such container: b\n"
    assert fake_engine.requests[0].query == {"force": ["1"], "v": ["1"]}
    assert wherry("rm", "a", "b").code == 1


def test_several_are_stopped_side_by_side_and_named_in_order(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    import threading

    both = threading.Barrier(2, timeout=10)

    def stopped(request: Any) -> Any:
        both.wait()
        return reply(204)

    fake_engine.answers = {"POST /containers/a/stop": stopped, "POST /containers/b/stop": stopped}
    done = wherry("stop", "-t", "3", "b", "a")
    assert (done.code, done.out, done.err) == (0, "b\na\n", "")
    assert {request.query["t"][0] for request in fake_engine.requests} == {"3"}


def test_start_names_what_it_could_not_start(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    fake_engine.answers["POST /containers/a/start"] = reply(304)
    done = wherry("start", "a", "b", "c")
    assert (done.code, done.out) == (1, "a\n")
    assert done.err.splitlines()[-1] == "Error: failed to start containers: b, c"
    assert wherry("start", "-a", "x", "y").err == "you cannot start and attach multiple containers at once\n"


def test_wait_prints_codes(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    fake_engine.answers = {
        "POST /containers/a/wait": reply(200, {"StatusCode": 7}),
        "POST /containers/b/wait": reply(200, {"StatusCode": 0, "Error": {"Message": "lost"}}),
    }
    done = wherry("wait", "a", "b")
    assert (done.code, done.out, done.err) == (1, "7\n", "Error response from daemon: lost\n")


INSPECTED = b'{"Id":"x","Size":1.50,"Html":"\\u003c","Labels":{},"Name":"/a"}'


def test_inspect_keeps_the_engine_s_text(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    fake_engine.answers["GET /containers/a/json"] = reply(200, INSPECTED)
    done = wherry("inspect", "a")
    assert done.out == (
        '[\n    {\n        "Id": "x",\n        "Size": 1.50,\n        "Html": "\\u003c",\n'
        '        "Labels": {},\n        "Name": "/a"\n    }\n]\n'
    )
    assert wherry("inspect", "-f", "{{.Name}}", "a").out == "/a\n"
    assert wherry("inspect", "-f", "json", "a").out == f"[{INSPECTED.decode()}]\n"


def test_inspect_tries_every_kind_and_says_what_it_did_not_find(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    fake_engine.answers["GET /volumes/v"] = reply(200, {"Name": "v"})
    done = wherry("inspect", "v", "nope")
    assert done.code == 1
    assert json.loads(done.out) == [{"Name": "v"}]
    assert done.err == "Error: No such object: nope\n"
    assert fake_engine.asked()[:4] == [
        "GET /containers/v/json", "GET /images/v/json", "GET /networks/v", "GET /volumes/v",
    ]  # fmt: skip
    assert wherry("inspect", "--type", "foo", "x").err.startswith('unknown type: "foo"')
    failed = wherry("inspect", "-f", "{{.Foo}}", "v")
    assert (failed.code, failed.out) == (1, "\n")
    assert failed.err == (
        'template parsing error: template: :1:2: executing "" at <.Foo>: map has no entry for key "Foo"\n'
    )


def test_logs_are_split_onto_both_outputs(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    frames = b"\1\0\0\0\0\0\0\4out\n\2\0\0\0\0\0\0\4err\n"
    fake_engine.answers = {
        "GET /containers/a/json": [reply(200, {"Id": "x", "Config": {"Tty": tty}}) for tty in (False, True)],
        "GET /containers/x/logs": reply(200, frames),
    }
    done = wherry("logs", "-tn", "5", "--since", "2013-01-02T13:23:37Z", "a")
    assert (done.out, done.err) == ("out\n", "err\n")
    query = fake_engine.requests[1].query
    assert query == {
        "stdout": ["1"], "stderr": ["1"], "timestamps": ["1"], "tail": ["5"], "since": ["1357133017.000000000"],
    }  # fmt: skip
    assert wherry("logs", "a").out.encode() == frames
    assert "failed to parse value as time or duration" in wherry("events", "--since", "x").err


def test_port(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    ports = {
        "8000/tcp": None,
        "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}],
        "53/udp": [{"HostIp": "0.0.0.0", "HostPort": "53"}],
    }
    fake_engine.answers["GET /containers/a/json"] = reply(200, {"NetworkSettings": {"Ports": ports}})
    assert wherry("port", "a").out == "53/udp -> 0.0.0.0:53\n80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080\n"
    assert wherry("port", "a", "80").out == "0.0.0.0:8080\n[::]:8080\n"
    assert wherry("port", "a", "81/udp").err == "Error: No public port '81/udp' published for a\n"
    assert wherry("port", "a", "x").err.startswith("Error: invalid port (x): ")


@pytest.mark.parametrize(("answer", "pruned"), [(b"y\n", True), (b"Yes\n", True), (b"n\n", False), (b"", False)])
def test_prune_asks_first(fake_engine: Any, reply: Any, wherry: Wherry, answer: bytes, pruned: bool) -> None:
    fake_engine.answers["POST /containers/prune"] = reply(200, {"ContainersDeleted": ["c1"], "SpaceReclaimed": 1500})
    done = wherry("container", "prune", input=answer)
    assert done.code == 0
    question = "WARNING! This will remove all stopped containers.\nAre you sure you want to continue? [y/N] "
    result = "Deleted Containers:\nc1\n\nTotal reclaimed space: 1.5kB\n" if pruned else ""
    assert done.out == question + result
    assert bool(fake_engine.requests) is pruned


def test_system_prune_goes_in_dockers_order_and_does_without_a_builder(
    fake_engine: Any, reply: Any, wherry: Wherry
) -> None:
    fake_engine.answers = {
        "POST /containers/prune": reply(200, {"ContainersDeleted": None, "SpaceReclaimed": 0}),
        "POST /networks/prune": reply(200, {"NetworksDeleted": ["n1"]}),
        "POST /volumes/prune": reply(200, {"VolumesDeleted": [], "SpaceReclaimed": 0}),
        "POST /images/prune": reply(200, {"ImagesDeleted": [{"Untagged": "a:1"}, {"Deleted": "sha256:1"}],
                                          "SpaceReclaimed": 2000}),
    }  # fmt: skip
    done = wherry("system", "prune", "-af", "--volumes")
    assert done.out == (
        "Deleted Networks:\nn1\n\nDeleted Images:\nuntagged: a:1\ndeleted: sha256:1\n\nTotal reclaimed space: 2kB\n"
    )
    assert [call.rsplit("/", 2)[-2] for call in fake_engine.asked()] == [
        "containers", "networks", "volumes", "images", "build",
    ]  # fmt: skip
    assert json.loads(fake_engine.requests[3].query["filters"][0]) == {"dangling": {"false": True}}


def test_network_create_puts_addresses_into_their_subnets(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    fake_engine.answers["POST /networks/create"] = reply(201, {"Id": "n" * 64, "Warning": "careful"})
    done = wherry(
        "network", "create", "--subnet", "10.1.0.0/16,fd00::/64", "--gateway", "fd00::1", "--gateway", "10.1.0.1",
        "--ip-range", "10.1.2.0/24", "--aux-address", "r=10.1.0.9", "--internal", "--ipv6", "-o", "a=b", "n1",
    )  # fmt: skip
    assert (done.out, done.err) == ("n" * 64 + "\n", "WARNING: careful\n")
    body = fake_engine.requests[0].body
    assert body["IPAM"]["Config"] == [
        {"Subnet": "10.1.0.0/16", "IPRange": "10.1.2.0/24", "Gateway": "10.1.0.1",
         "AuxiliaryAddresses": {"r": "10.1.0.9"}},
        {"Subnet": "fd00::/64", "Gateway": "fd00::1"},
    ]  # fmt: skip
    assert (body["Internal"], body["EnableIPv6"], body["Options"]) == (True, True, {"a": "b"})
    assert "EnableIPv4" not in body
    for arguments, message in (
        (["--gateway", "10.0.0.1"], "every ip-range or gateway must have a corresponding subnet"),
        (["--subnet", "10.1.0.0/16", "--gateway", "10.2.0.1"], "no matching subnet for gateway 10.2.0.1"),
        (["--subnet", "10.1.0.0/16", "--subnet", "10.1.2.0/24"],
         "multiple overlapping subnet configuration is not supported"),
        (["--subnet", "10.1.0.0/16", "--gateway", "foo"], "no matching subnet for gateway foo"),
        (["--subnet", "10.1.0.0/16", "--ip-range", "foo"], "invalid CIDR address: foo"),
        (["--subnet", "10.1.0.0/16", "--aux-address", "foo"], "no matching subnet for aux-address "),
    ):  # fmt: skip
        assert wherry("network", "create", *arguments, "n2").err == message + "\n"


def test_a_format_is_stronger_than_quiet(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    fake_engine.answers["GET /networks"] = reply(200, [{"Id": "n" * 64, "Name": "n1", "Driver": "bridge"}])
    assert wherry("network", "ls", "-q").out == "n" * 12 + "\n"
    assert wherry("network", "ls", "-q", "--format", "{{.Name}}").out == "n1\n"


def test_network_rm(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    fake_engine.answers["DELETE /networks/a"] = reply(204)
    done = wherry("network", "rm", "a", "b")
    assert (done.code, done.out) == (1, "a\n")
    assert done.err.splitlines()[1:] == ["exit status 1"]
    assert wherry("network", "rm", "-f", "b").code == 0


@pytest.mark.parametrize(
    ("arguments", "repository", "tag"),
    [
        (["busybox"], "docker.io/library/busybox", "latest"),
        (["127.0.0.1:5000/a/b:1"], "127.0.0.1:5000/a/b", "1"),
        (["x@sha256:" + "a" * 64], "docker.io/library/x", "sha256:" + "a" * 64),
        (["-a", "ghcr.io/o/x"], "ghcr.io/o/x", ""),
    ],
)
def test_pull_names_the_image_in_full(
    fake_engine: Any, reply: Any, wherry: Wherry, arguments: list[str], repository: str, tag: str
) -> None:
    fake_engine.answers["POST /images/create"] = reply(200, b'{"status":"Status: done"}\n')
    done = wherry("pull", *arguments)
    assert done.code == 0
    assert "Status: done\n" in done.out
    query = fake_engine.requests[0].query
    assert (query["fromImage"], query["tag"]) == ([repository], [tag])


def test_pull_refuses_what_is_no_name(wherry: Wherry) -> None:
    assert wherry("pull", "Foo").err == "invalid reference format: repository name (library/Foo) must be lowercase\n"
    assert wherry("pull", "foo@bar").err == "invalid reference format\n"


def test_bootstrap_and_its_failure(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    fake_engine.answers["POST /images/bootstrap"] = [
        reply(200, b'{"status":"Done"}\n'),
        reply(200, b'{"error":"no debootstrap","errorDetail":{"message":"no debootstrap"}}\n'),
    ]
    assert wherry("image", "bootstrap", "debian").out == "Done\n"
    assert fake_engine.requests[0].query == {"name": ["debian"]}
    failed = wherry("image", "bootstrap", "debian")
    assert (failed.code, failed.err) == (1, "no debootstrap\n")


def test_save_leaves_no_half_file(fake_engine: Any, reply: Any, wherry: Wherry, tmp_path: Path) -> None:
    fake_engine.answers["GET /images/get"] = reply(200, b"tar", {"Content-Type": "application/x-tar"})
    assert wherry("save", "-o", str(tmp_path / "a.tar"), "x", "y:1").code == 0
    assert (tmp_path / "a.tar").read_bytes() == b"tar"
    assert fake_engine.requests[0].query == {"names": ["x", "y:1"]}
    assert wherry("save", "x").out == "tar"
    del fake_engine.answers["GET /images/get"]
    assert wherry("save", "-o", str(tmp_path / "b.tar"), "x").code == 1
    assert sorted(path.name for path in tmp_path.glob("*.tar*")) == ["a.tar"]
    assert "no such file or directory" in wherry("save", "-o", "/nonexistent/x", "x").err


def test_exec_reports_a_missing_container_before_a_missing_terminal(fake_engine: Any, wherry: Wherry) -> None:
    assert wherry("exec", "-it", "a", "sh").err.startswith("Error response from daemon: ")


def test_exec_detached(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    fake_engine.answers = {
        "GET /containers/a/json": reply(200, {}),
        "POST /containers/a/exec": reply(201, {"Id": "e1"}),
        "POST /exec/e1/start": reply(200),
    }
    done = wherry("exec", "-d", "-e", "A=1", "-u", "x", "a", "sh", "-c", "y")
    assert (done.code, done.out) == (0, "")
    assert fake_engine.requests[1].body == {
        "User": "x", "Privileged": False, "Tty": False, "AttachStdin": False, "AttachStdout": False,
        "AttachStderr": False, "Detach": True, "DetachKeys": "", "Env": ["A=1"], "WorkingDir": "",
        "Cmd": ["sh", "-c", "y"],
    }  # fmt: skip
    assert fake_engine.requests[2].body == {"Detach": True, "Tty": False}


def test_an_event_in_words() -> None:
    event = {"Type": "container", "Action": "create", "timeNano": 1357133017_000000005,
             "Actor": {"ID": "c1", "Attributes": {"name": "web", "image": "busybox"}}}  # fmt: skip
    text = describe_event(event)
    assert text.partition(" ")[2] == "container create c1 (image=busybox, name=web)"
    assert ".000000005" in text.partition(" ")[0]


# cp


@pytest.mark.parametrize(
    ("text", "parts"),
    [("c:/x", ("c", "/x")), ("/a:b", ("", "/a:b")), ("./a:b", ("", "./a:b")), ("a", ("", "a")), ("c:", ("c", ""))],
)
def test_arguments_of_cp(text: str, parts: tuple[str, str]) -> None:
    assert split_argument(text) == parts


@pytest.mark.parametrize(
    ("source", "is_directory", "target", "target_is", "expected"),
    [
        ("a/file", False, "/d", "directory", ("/d", "file")),
        ("a/file", False, "/d/new", None, ("/d", "new")),
        ("a/file", False, "/d/old", "file", ("/d", "old")),
        ("a/dir", True, "/d", "directory", ("/d", "dir")),
        ("a/dir/", True, "/d", "directory", ("/d", "dir")),
        ("a/dir/.", True, "/d", "directory", ("/d", "")),
        ("a/dir", True, "/d/new", None, ("/d", "new")),
        ("a/dir/.", True, "/d/new", None, ("/d", "new")),
        ("a/file", False, "/d/new/", None, "no such directory"),
        ("a/dir", True, "/d/old", "file", "cannot copy directory"),
        ("a/file", False, "/d/old/", "file", "not a directory"),
    ],
)
def test_where_a_copy_lands(
    source: str, is_directory: bool, target: str, target_is: str | None, expected: object
) -> None:
    def ask() -> tuple[str, str]:
        found = place(
            source,
            source_is_directory=is_directory,
            target=target,
            exists=target_is is not None,
            is_directory=target_is == "directory",
        )
        return found.directory, found.name

    if isinstance(expected, str):
        with pytest.raises(Failure) as failure:
            ask()
        assert failure.value.message == expected
    else:
        assert ask() == expected


@pytest.mark.parametrize(
    ("name", "new", "expected"),
    [("etc/", "e", "e"), ("etc/a/b", "e", "e/a/b"), ("etc/a", "", "a"), ("etc", "", "."), ("./x", "n", "n/x")],
)
def test_members_are_renamed(name: str, new: str, expected: str) -> None:
    assert renamed(name, "etc", new) == expected


def archive_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, BytesIO(data))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, linkname: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, linkname, mode
    return info


def test_a_tree_arrives_with_modes_and_links(tmp_path: Path) -> None:
    from wherry.cli.commands.cp import Target

    data = archive_of(
        (member("src", tarfile.DIRTYPE, mode=0o555), b""),
        (member("src/a", mode=0o600), b"data"),
        (member("src/hard", tarfile.LNKTYPE, "src/a"), b""),
        (member("src/soft", tarfile.SYMTYPE, "a"), b""),
    )
    size = unpack(iter([data[:700], data[700:]]), "src", Target(str(tmp_path), "new"), keep_owner=False)
    assert size == len(data)
    new = tmp_path / "new"
    assert (new / "a").read_bytes() == b"data"
    assert (new / "a").stat().st_ino == (new / "hard").stat().st_ino
    assert os.readlink(new / "soft") == "a"
    assert new.stat().st_mode & 0o777 == 0o555
    new.chmod(0o755)


def test_a_link_in_an_archive_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    from wherry.cli.commands.cp import Target

    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.write_text("kept")
    entries = [(member("src"), b""), (member("src", tarfile.SYMTYPE, str(outside)), b""), (member("src"), b"new")]
    unpack(iter([archive_of(*entries)]), "src", Target(str(inside), "src"), keep_owner=False)
    assert outside.read_text() == "kept"
    assert (inside / "src").read_text() == "new"


@pytest.mark.parametrize(
    "hostile",
    [
        [(member("src/../../evil"), b"x")],
        [(member("src/link", tarfile.SYMTYPE, "/tmp"), b""), (member("src/link/../../evil"), b"x")],
        [(member("src/out", tarfile.SYMTYPE, ".."), b""), (member("src/out/evil"), b"x")],
    ],
)
def test_nothing_of_a_hostile_archive_lands_elsewhere(tmp_path: Path, hostile: Any) -> None:
    from wherry.cli.commands.cp import Target

    inside = tmp_path / "inside"
    inside.mkdir()
    with pytest.raises(Failure):
        unpack(iter([archive_of(*hostile)]), "src", Target(str(inside), ""), keep_owner=False)
    assert not (tmp_path / "evil").exists()
