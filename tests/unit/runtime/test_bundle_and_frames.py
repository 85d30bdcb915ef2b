"""What travels between daemon and shim, and how a bundle is made complete."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import Conflict, Failed, InvalidParameter
from wherry.runtime import oci
from wherry.runtime.shim import frames
from wherry.runtime.shim.bundle import Bundle, Spec, complete, exec_process, make_directory
from wherry.runtime.shim.requests import LogSpec, chosen_streams, describe, error_of

DOCUMENTS = st.lists(st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.booleans()), max_size=4))


@given(DOCUMENTS, st.integers(1, 40))
def test_documents_arrive_however_they_are_cut(documents, size):
    data = b"".join(frames.encode(document) for document in documents) + b"raw"
    decoder = frames.Decoder()
    found = []
    for at in range(0, len(data), size):
        decoder.feed(data[at : at + size])
        while len(found) < len(documents) and (document := decoder.take()) is not None:
            found.append(document)
    assert found == documents
    assert decoder.rest == b"raw"


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\0\0\0\2[]", b"\0\0\0\1x"])
def test_what_is_no_document_is_refused(data):
    decoder = frames.Decoder()
    decoder.feed(data)
    with pytest.raises(ValueError):
        decoder.take()


@pytest.mark.parametrize("error", [InvalidParameter("x"), Conflict("y"), Failed("z")])
def test_errors_keep_their_kind(error):
    found = error_of(describe(error))
    assert type(found) is type(error)
    assert found.message == error.message


def test_other_errors_become_failures():
    assert type(error_of(describe(OSError(5, "Input/output error")))) is Failed
    assert type(error_of({"kind": "nonsense", "message": "m"})) is Failed


@pytest.mark.parametrize(
    ("document", "tty", "streams"),
    [
        ({"stdout": True, "stderr": True}, False, {1, 2}),
        ({"stderr": True}, False, {2}),
        ({}, False, set()),
        ({"stderr": True}, True, {1}),
        ({}, True, set()),
    ],
)
def test_clients_choose_their_streams(document, tty, streams):
    assert chosen_streams(document, tty=tty) == streams


def spec(**process):
    return Spec(
        process={"args": ["x"], "env": ["PATH=/bin"], "cwd": "/work", **process},
        root={"readonly": False},
        namespaces=[{"type": "mount"}, {"type": "network"}],
        destinations=["/proc", "/data"],
        cgroups_path="/wherry/x",
        members='"mounts":[],"hostname":"h"',
        linux_members='"cgroupsPath":"/wherry/x"',
    )


def test_a_spec_taken_apart_is_put_together():
    assert json.loads(spec().text()) == {
        "process": {"args": ["x"], "env": ["PATH=/bin"], "cwd": "/work"},
        "root": {"readonly": False},
        "linux": {"namespaces": [{"type": "mount"}, {"type": "network"}], "cgroupsPath": "/wherry/x"},
        "mounts": [],
        "hostname": "h",
    }
    bare = spec()
    bare.members = bare.linux_members = ""
    assert set(json.loads(bare.text())) == {"process", "root", "linux"}


@pytest.fixture
def bundle(tmp_path):
    made = Bundle(directory=str(tmp_path))
    os.makedirs(tmp_path / "rootfs/etc")
    (tmp_path / "rootfs/etc/passwd").write_text("app:x:1000:1001::/home/app:\n")
    return made


def test_user_directory_and_namespace_are_filled_in(bundle, tmp_path):
    wanted = spec(capabilities={"bounding": ["A"], "effective": ["A"], "permitted": ["A"]})
    complete(wanted, bundle, user="app", group_add=["5"], netns=9)
    assert wanted.process["user"] == {"uid": 1000, "gid": 1001, "additionalGids": [1001, 5]}
    assert wanted.process["env"] == ["PATH=/bin", "HOME=/home/app"]
    assert wanted.process["capabilities"] == {"bounding": ["A"]}
    assert wanted.namespaces == [{"type": "mount"}, {"type": "network", "path": f"/proc/{os.getpid()}/fd/9"}]
    assert wanted.root["path"] == str(tmp_path / "rootfs")
    assert (tmp_path / "rootfs/work").is_dir()


def test_a_directory_on_a_mount_is_the_runtimes_to_make(bundle, tmp_path):
    complete(spec(cwd="/data/sub"), bundle, user="", group_add=(), netns=None)
    assert not (tmp_path / "rootfs/data").exists()


def test_a_home_that_is_given_stays(bundle):
    wanted = spec(env=["HOME=/mine"])
    complete(wanted, bundle, user="app", group_add=(), netns=None)
    assert wanted.process["env"] == ["HOME=/mine"]


def test_accounts_that_are_no_files_do_not_block(bundle, tmp_path):
    os.unlink(tmp_path / "rootfs/etc/passwd")
    os.mkfifo(tmp_path / "rootfs/etc/passwd")
    (tmp_path / "rootfs/etc/group").symlink_to("/dev/zero")
    complete(spec(), bundle, user="7", group_add=(), netns=None)


@pytest.mark.parametrize("path", ["/a/b/c", "a/../b", "//x//y/", "/"])
def test_directories_are_made_within_the_root(tmp_path, path):
    root = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    make_directory(root, path)
    make_directory(root, path)
    os.close(root)
    assert (tmp_path / os.path.normpath(path).strip("/")).is_dir()


def test_symlinks_are_followed_within_the_root_only(tmp_path):
    outside, inside = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    (inside / "real").mkdir(parents=True)
    (inside / "good").symlink_to("/real")
    (inside / "bad").symlink_to(outside)
    root = os.open(inside, os.O_PATH | os.O_DIRECTORY)
    try:
        make_directory(root, "/good/made")
        assert (inside / "real/made").is_dir()
        with pytest.raises(InvalidParameter, match="Cannot mkdir: /bad is a symbolic link that leads nowhere"):
            make_directory(root, "/bad/made")
    finally:
        os.close(root)
    assert list(outside.iterdir()) == []


def exec_of(base, **options):
    options = {"user": "", "group_add": (), "capabilities": None, "env": ["A=1"], "args": ["y"], **options}
    root = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        return exec_process(base, root, **options)
    finally:
        os.close(root)


BASE = {
    "args": ["x"],
    "env": ["PATH=/bin", "HOME=/home/app"],
    "user": {"uid": 1000, "gid": 1000},
    "capabilities": {"bounding": ["A"]},
    "noNewPrivileges": True,
    "consoleSize": {"height": 1, "width": 2},
}


def test_an_exec_is_its_container_but_for_what_is_its_own():
    found = exec_of(BASE)
    assert found["args"] == ["y"]
    assert found["env"] == ["A=1", "HOME=/home/app"]
    assert found["user"] == {"uid": 1000, "gid": 1000}
    assert found["capabilities"] == {"bounding": ["A"]}
    assert found["noNewPrivileges"] is True
    assert "consoleSize" not in found
    assert BASE["args"] == ["x"], "the container's own is as before"


def test_an_exec_as_root_has_what_the_containers_root_would_have():
    found = exec_of(BASE, user="0:0")
    assert found["user"]["uid"] == 0
    assert found["capabilities"] == {"bounding": ["A"], "effective": ["A"], "permitted": ["A"]}
    assert exec_of(BASE, user="4242")["capabilities"] == {"bounding": ["A"]}


def test_a_privileged_exec_has_all():
    assert exec_of(BASE, capabilities=["A", "B"])["capabilities"]["effective"] == ["A", "B"]


def test_the_last_error_of_a_runtime_is_found(tmp_path):
    log = tmp_path / "log"
    assert oci.last_error(str(log)) == ""
    log.write_text('{"level":"error","msg":"first"}\n{"level":"warning","msg":"w"}\n')
    assert oci.last_error(str(log)) == "first"
    mark = log.stat().st_size
    assert oci.last_error(str(log), mark) == ""
    with open(log, "a") as file:
        file.write('{"level":"error","msg":"second"}\n')
    assert oci.last_error(str(log), mark) == "second"
    log.write_text("no json at all\n")
    assert oci.last_error(str(log)) == "no json at all"
    log.write_text("2026-11-24T06:06:45.066737Z: exec container process `/x`: Permission denied\n")
    assert oci.last_error(str(log)) == "exec container process `/x`: Permission denied"


@pytest.mark.parametrize(
    ("cruns", "dockers"),
    [
        (
            "executable file `x` not found in $PATH: No such file or directory",
            'exec: "x": executable file not found in $PATH',
        ),
        ("open executable: Permission denied", "exec: permission denied"),
        ("exec /x: Exec format error", "exec /x: exec format error"),
        ("runc create failed: unable to start container process: exec: permission denied", "exec: permission denied"),
        ("exec container process `/x`: Exec format error", "exec /x: exec format error"),
    ],
)
def test_cruns_words_become_dockers(cruns, dockers):
    assert oci.reworded(cruns) == dockers
    assert oci.is_exec_failure(dockers)


def test_other_failures_are_not_the_programs():
    assert not oci.is_exec_failure("creating cgroup: device or resource busy")


@pytest.mark.parametrize(("path", "traces"), [("/usr/bin/crun", False), ("/opt/runc", False), ("/usr/bin/kata", True)])
def test_runtimes_that_leave_nothing_are_known(path, traces):
    runtime = oci.Runtime(spec=oci.RuntimeSpec(path=path, args=("-x",)), container_id="c", root="/s", log="/l")
    assert runtime.leaves_traces is traces
    logging = ["--log", "/l", "--log-format", runtime.log_format]
    assert runtime.start() == [path, "-x", "--root", "/s", *logging, "start", "c"]


def test_no_log_is_opened_for_driver_none():
    assert LogSpec(driver="none").open() is None
