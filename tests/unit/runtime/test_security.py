"""Capabilities and seccomp: Docker's rules and Docker's policy."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from wherry.errors import InvalidParameter
from wherry.runtime import seccomp, security
from wherry.runtime.filters import ANNOTATION, Filters
from wherry.runtime.oci import RuntimeSpec
from wherry.runtime.security import CAPABILITIES, DEFAULT_CAPABILITIES, capabilities, parse_options

ALL = (1 << len(CAPABILITIES)) - 1
NO_RESOURCE = ALL & ~(1 << CAPABILITIES.index("CAP_SYS_RESOURCE"))


def held(add=(), drop=(), *, privileged=False, bounding=ALL):
    return capabilities(add, drop, privileged=privileged, bounding=bounding)


def test_there_are_as_many_capabilities_as_the_kernel_has():
    assert len(CAPABILITIES) == 41
    assert CAPABILITIES[21] == "CAP_SYS_ADMIN"
    assert CAPABILITIES[40] == "CAP_CHECKPOINT_RESTORE"
    assert sum(1 << CAPABILITIES.index(name) for name in DEFAULT_CAPABILITIES) == 0xA80425FB


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        ([], [], list(DEFAULT_CAPABILITIES)),
        (["net_admin"], [], [*DEFAULT_CAPABILITIES, "CAP_NET_ADMIN"]),
        (["CAP_NET_ADMIN", "NET_ADMIN"], [], [*DEFAULT_CAPABILITIES, "CAP_NET_ADMIN"]),
        ([], ["MKNOD"], [name for name in DEFAULT_CAPABILITIES if name != "CAP_MKNOD"]),
        ([], ["all"], []),
        (["CHOWN"], ["ALL"], ["CAP_CHOWN"]),
        (["ALL"], [], list(CAPABILITIES)),
        (["ALL"], ["SYS_ADMIN"], [name for name in CAPABILITIES if name != "CAP_SYS_ADMIN"]),
    ],
)
def test_capabilities_are_added_and_dropped_as_in_docker(add, drop, expected):
    assert held(add, drop) == (expected, [])


def test_an_unknown_capability_is_refused():
    with pytest.raises(InvalidParameter, match='unknown capability: "CAP_MAGIC"'):
        held(["CAP_MAGIC"])
    with pytest.raises(InvalidParameter, match='unknown capability: "CAP_MAGIC"'):
        held((), ["magic"])


@pytest.mark.parametrize("how", [{"privileged": True}, {"add": ["ALL"]}, {"add": ["SYS_RESOURCE"]}])
def test_what_the_machine_does_not_have_is_left_out_with_a_warning(how):
    found, warnings = held(**how, bounding=NO_RESOURCE)
    assert "CAP_SYS_RESOURCE" not in found
    assert len(warnings) == 1
    assert "CAP_SYS_RESOURCE" in warnings[0]


def test_options_are_read_in_both_forms():
    assert parse_options(["seccomp=unconfined"]).seccomp is None
    assert parse_options(["seccomp:unconfined"]).seccomp is None
    assert parse_options(["seccomp=builtin"]).seccomp == seccomp.default_profile()
    assert parse_options(["no-new-privileges"]).no_new_privileges
    assert parse_options(["no-new-privileges:true"]).no_new_privileges
    assert not parse_options(["no-new-privileges=false"]).no_new_privileges
    assert not parse_options(["systempaths=unconfined"]).confine_paths
    assert parse_options(["writable-cgroups=true"]).writable_cgroups
    assert parse_options(["apparmor=unconfined", "label=disable", "label:type:x"]).apparmor == "unconfined"


@pytest.mark.parametrize(
    "option", ["nonsense", "unknown=x", "systempaths=x", "no-new-privileges=maybe", "seccomp={", 'seccomp={"a":1}']
)
def test_other_options_are_refused(option):
    with pytest.raises(InvalidParameter):
        parse_options([option])


def allowed(caps=(), *, machine="x86_64", kernel="6.1"):
    rules = seccomp.for_container(seccomp.default_profile(), caps, machine=machine, kernel=kernel)["syscalls"]
    return {name: each.get("args") for each in rules if each["action"] == "SCMP_ACT_ALLOW" for name in each["names"]}


def test_the_policy_allows_what_programs_need_and_not_what_hurts():
    default = allowed(DEFAULT_CAPABILITIES)
    assert {"read", "execve", "openat2", "futex_waitv", "ptrace", "chroot", "arch_prctl"} <= default.keys()
    for name in ("mount", "umount2", "setns", "unshare", "bpf", "kexec_load", "init_module", "keyctl", "add_key",
                 "io_uring_setup", "userfaultfd", "reboot", "settimeofday", "open_by_handle_at"):  # fmt: skip
        assert name not in default
    assert default["clone"][0]["value"] == 0x7E020000


def test_capabilities_open_the_calls_that_go_with_them():
    assert allowed(["CAP_SYS_ADMIN"])["clone"] is None
    assert {"mount", "setns", "bpf"} <= allowed(["CAP_SYS_ADMIN"]).keys()
    assert "settimeofday" in allowed(["CAP_SYS_TIME"])
    assert "chroot" not in allowed([])


def test_clone3_is_not_there_for_who_may_not_make_namespaces():
    def clone3(caps):
        rules = seccomp.for_container(seccomp.default_profile(), caps)["syscalls"]
        return [(each["action"], each.get("errnoRet")) for each in rules if "clone3" in each["names"]]

    assert clone3([]) == [("SCMP_ACT_ERRNO", 38)]
    assert clone3(["CAP_SYS_ADMIN"]) == [("SCMP_ACT_ALLOW", None)]


def test_architecture_and_kernel_decide():
    assert "arch_prctl" not in allowed(machine="aarch64")
    assert "breakpoint" in allowed(machine="aarch64")
    assert "ptrace" not in allowed(kernel="4.4.0")
    profile = seccomp.default_profile()
    assert seccomp.for_container(profile, (), machine="x86_64")["architectures"] == [
        "SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32",
    ]  # fmt: skip
    assert seccomp.for_container(profile, (), machine="aarch64")["architectures"] == [
        "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM",
    ]  # fmt: skip


def test_a_profile_with_both_kinds_of_architectures_is_refused():
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["x"], "archMap": [{"architecture": "x"}]}
    with pytest.raises(InvalidParameter, match="both 'architectures' and 'archMap'"):
        seccomp.for_container(profile, ())


def program(path, text):
    path.write_text(f"#!/bin/sh\necho '{text}'\n")
    path.chmod(0o755)
    return RuntimeSpec(path=str(path))


def spec():
    rules = seccomp.for_container(seccomp.default_profile(), ())
    return {"linux": {"seccomp": rules, "x": 1}, "annotations": {"a": "b"}}


def test_a_filter_replaces_the_rules_for_a_crun_that_takes_it(tmp_path):
    pytest.importorskip("ctypes").CDLL("libseccomp.so.2")
    (tmp_path / "new").mkdir()
    crun = program(tmp_path / "new/crun", "crun version 1.8.1")
    result = Filters(tmp_path).apply(spec(), crun)
    assert "seccomp" not in result["linux"]
    assert result["linux"]["x"] == 1
    assert result["annotations"]["a"] == "b"
    (compiled,) = (tmp_path / "seccomp").glob("*.bpf")
    assert len(compiled.read_bytes()) % 8 == 0
    assert len(compiled.read_bytes()) > 1000
    compiled.write_bytes(b"12345678")  # from the disk the next time
    assert Filters(tmp_path).apply(spec(), crun)["annotations"][ANNOTATION] == "MTIzNDU2Nzg="


def test_containers_created_at_the_same_time_get_the_same_filter(tmp_path):
    crun = program(tmp_path / "crun", "crun version 1.9")
    for round_ in range(5):
        filters = Filters(tmp_path / str(round_))
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _, filters=filters: filters.apply(spec(), crun), range(8)))
        assert all(each == found[0] for each in found)
        assert ANNOTATION in found[0]["annotations"]


@pytest.mark.parametrize(
    ("name", "version"), [("crun", "crun version 1.7"), ("crun", "nonsense"), ("runc", "crun version 1.8")]
)
def test_the_rules_stay_for_any_other_runtime(tmp_path, name, version):
    runtime = program(tmp_path / name, version)
    assert Filters(tmp_path).apply(spec(), runtime) == spec()


def test_what_cannot_be_compiled_is_left_to_the_runtime(tmp_path):
    crun = program(tmp_path / "crun", "crun version 1.9")
    for change in ({"listenerPath": "/x"}, {"flags": ["SECCOMP_FILTER_FLAG_LOG"]}, {"architectures": ["Z80"]}):
        wanted = spec()
        wanted["linux"]["seccomp"].update(change)
        assert Filters(tmp_path).apply(json.loads(json.dumps(wanted)), crun) == wanted


def test_no_rules_no_filter(tmp_path):
    assert Filters(tmp_path).apply({"linux": {}}, RuntimeSpec(path="/nonexistent/crun")) == {"linux": {}}


def test_available_is_what_the_mask_says():
    assert security.available(0b101) == ["CAP_CHOWN", "CAP_DAC_READ_SEARCH"]
