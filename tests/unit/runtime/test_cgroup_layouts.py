"""Control groups of every layout, on trees of plain files."""

import os

import pytest

from wherry.kernel import cgroup
from wherry.runtime.shim import bundle

CID = "c" * 64

V1_MOUNTS = "".join(
    f"3{number} 25 0:3{number} / {{root}}/{where} rw,relatime - cgroup cgroup rw,{options}\n"
    for number, (where, options) in enumerate(
        [
            ("cpu,cpuacct", "cpu,cpuacct"),
            ("memory", "memory"),
            ("freezer", "freezer"),
            ("pids", "pids"),
            ("systemd", "xattr,name=systemd"),
        ]
    )
)
OTHER_MOUNTS = "25 1 8:1 / / rw - ext4 /dev/root rw\n40 25 0:40 / {root}/unified rw - cgroup2 cgroup2 rw\n"


@pytest.fixture
def v1(tmp_path):
    root = str(tmp_path)
    return root, (V1_MOUNTS + OTHER_MOUNTS).format(root=root)


@pytest.fixture
def v2(tmp_path):
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    return str(tmp_path), OTHER_MOUNTS.format(root=str(tmp_path))


def test_layouts_are_told_apart(tmp_path):
    for name, files, expected in (
        ("v1", {}, cgroup.Layout.V1),
        ("v2", {"cgroup.controllers": "cpu\n"}, cgroup.Layout.V2),
        ("hybrid", {"unified/cgroup.controllers": "hugetlb\n"}, cgroup.Layout.HYBRID),
        ("empty", {"unified/cgroup.controllers": "\n"}, cgroup.Layout.V1),
    ):
        root = tmp_path / name
        root.mkdir()
        for path, text in files.items():
            (root / path).parent.mkdir(exist_ok=True)
            (root / path).write_text(text)
        assert cgroup.layout(str(root)) is expected


def test_hierarchies_are_found_by_controller(v1):
    root, mountinfo = v1
    found = cgroup.hierarchies(mountinfo, root)
    assert found["cpu"] == found["cpuacct"] == f"{root}/cpu,cpuacct"
    assert found["name=systemd"] == f"{root}/systemd"
    assert "unified" not in "".join(found)


def test_the_groups_of_a_process_on_v1(v1):
    root, mountinfo = v1
    membership = f"5:cpu,cpuacct:/wherry/{CID}\n4:memory:/wherry/{CID}\n3:pids:/\n1:name=systemd:/wherry/{CID}\n0::/\n"
    assert cgroup.parse_groups(membership, mountinfo, root) == {
        "cpu": f"{root}/cpu,cpuacct/wherry/{CID}",
        "cpuacct": f"{root}/cpu,cpuacct/wherry/{CID}",
        "memory": f"{root}/memory/wherry/{CID}",
        "name=systemd": f"{root}/systemd/wherry/{CID}",
    }


def test_the_group_of_a_process_on_v2(v2):
    root, mountinfo = v2
    assert cgroup.parse_groups(f"0::/wherry/{CID}\n", mountinfo, root) == {"": f"{root}/wherry/{CID}"}
    assert cgroup.parse_groups("0::/\n", mountinfo, root) == {}
    assert cgroup.planned_groups(f"/wherry/{CID}", root) == {"": f"{root}/wherry/{CID}"}


def test_processes_are_those_of_the_group_and_below(tmp_path):
    (tmp_path / "sub/deeper").mkdir(parents=True)
    (tmp_path / "cgroup.procs").write_text("10\n11\n")
    (tmp_path / "sub/cgroup.procs").write_text("0\n")
    (tmp_path / "sub/deeper/cgroup.procs").write_text("12\n")
    assert cgroup.processes({"": str(tmp_path)}) == [10, 11, 12]
    assert cgroup.processes({"cpu": "/nonexistent", "pids": str(tmp_path)}) == [10, 11, 12]
    assert cgroup.processes({}) == []


def test_oom_kills_are_counted(tmp_path):
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 5\noom 2\noom_kill 3\n")
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 4\n")
    assert cgroup.oom_kills({"": str(tmp_path)}) == 3
    assert cgroup.oom_kills({"memory": str(tmp_path)}) == 4
    assert cgroup.oom_kills({"cpu": str(tmp_path)}) == 0
    assert cgroup.oom_kills({"memory": str(tmp_path / "gone")}) == 0


def test_freezing_writes_what_the_kernel_wants_and_looks(tmp_path):
    (tmp_path / "cgroup.freeze").write_text("0")
    (tmp_path / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    cgroup.freeze({"": str(tmp_path)}, frozen=True)
    assert (tmp_path / "cgroup.freeze").read_text() == "1"
    assert cgroup.is_frozen({"": str(tmp_path)})
    (tmp_path / "freezer.state").write_text("THAWED")
    assert not cgroup.is_frozen({"freezer": str(tmp_path)})
    cgroup.freeze({"freezer": str(tmp_path)}, frozen=True)
    assert (tmp_path / "freezer.state").read_text() == "FROZEN"
    assert cgroup.is_frozen({"freezer": str(tmp_path)})
    with pytest.raises(OSError):
        cgroup.freeze({}, frozen=True)


def test_removing_takes_groups_below_first_and_is_idempotent(tmp_path):
    top = tmp_path / "group"
    (top / "a/b").mkdir(parents=True)
    assert cgroup.remove({"cpu": str(top), "memory": str(tmp_path / "never")}) == []
    assert not top.exists()
    assert cgroup.remove({"cpu": str(top)}) == []


def test_an_empty_parent_is_removed_and_a_used_one_is_not(v2):
    root, _ = v2
    os.makedirs(f"{root}/wherry/{CID}")
    cgroup.remove_empty("/wherry", root)
    assert os.path.isdir(f"{root}/wherry")
    os.rmdir(f"{root}/wherry/{CID}")
    cgroup.remove_empty("/wherry", root)
    cgroup.remove_empty("/wherry", root)
    assert not os.path.exists(f"{root}/wherry")


def test_only_groups_made_for_a_container_are_its_own():
    groups = {
        "cpu": f"/sys/fs/cgroup/cpu/wherry/{CID}",
        "memory": f"/sys/fs/cgroup/memory/wherry/{CID}/inner",
        "pids": "/sys/fs/cgroup/pids/system.slice/daemon",
        "freezer": f"/sys/fs/cgroup/freezer/wherry/{CID}2",
    }
    assert bundle.below(groups, f"/wherry/{CID}") == {
        "cpu": f"/sys/fs/cgroup/cpu/wherry/{CID}",
        "memory": f"/sys/fs/cgroup/memory/wherry/{CID}",
    }
    assert bundle.below(groups, "/") == {}
    assert bundle.below(groups, "") == {}
