"""Why a program cannot be executed, from files in a directory that stands for a container's root."""

import os
import platform
import struct

import pytest

from wherry.runtime.shim.executable import examine

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the programs made here are for amd64")

ENV = ("PATH=/nowhere:/bin:/usr/bin",)


def elf(*, machine=62, interpreter=b"", bits=64):
    """The head of an ELF program."""
    text, kind = interpreter + b"\0", 3 if interpreter else 1
    if bits == 64:
        head = struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
        program = struct.pack("<IIQQQQQQ", kind, 4, 120, 0, 0, len(text), len(text), 1)
    else:
        head = struct.pack("<HHIIIIIHHHHHH", 2, machine, 1, 0, 52, 0, 0, 52, 32, 1, 0, 0, 0)
        program = struct.pack("<IIIIIIII", kind, 84, 0, 0, len(text), len(text), 4, 1)
    return b"\x7fELF" + bytes((2 if bits == 64 else 1, 1, 1)) + bytes(9) + head + program + text


@pytest.fixture
def root(tmp_path):
    for name in ("bin", "usr/bin", "lib64", "tmp"):
        (tmp_path / name).mkdir(parents=True)
    put(tmp_path, "bin/sh", elf())
    return tmp_path


def put(root, name, content, mode=0o755):
    path = root / name
    path.write_bytes(content)
    path.chmod(mode)


def look(root, name, cwd="/", env=ENV, user=None):
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        problem = examine(fd, {"args": [name], "env": list(env), "cwd": cwd, "user": user or {"uid": 0, "gid": 0}})
    finally:
        os.close(fd)
    return None if problem is None else str(problem)


@pytest.mark.parametrize("name", ["sh", "/bin/sh", "bin/sh", "./sh", "../bin/sh"])
def test_what_is_right_is_not_spoken_of(root, name):
    assert look(root, name, cwd="/bin" if name in ("./sh", "../bin/sh") else "/") is None


def test_nothing_of_that_name(root):
    assert look(root, "nosuch") == 'exec: "nosuch": executable file not found in $PATH'
    assert look(root, "/no/such") == 'exec: "/no/such": stat /no/such: no such file or directory'
    assert look(root, "/bin/sh/x") == 'exec: "/bin/sh/x": stat /bin/sh/x: no such file or directory'


def test_no_path_finds_nothing(root):
    assert look(root, "sh", env=()) == 'exec: "sh": executable file not found in $PATH'
    assert look(root, "sh", env=("PATH=/bin", "PATH=/usr/bin")) == 'exec: "sh": executable file not found in $PATH'


def test_a_file_without_execute_bit(root):
    put(root, "bin/data", b"#!/bin/sh\n", 0o644)
    assert look(root, "/bin/data") == 'exec: "/bin/data": permission denied (/bin/data has no execute bit)'
    assert look(root, "data").endswith("not found in $PATH (/bin/data is there, but has no execute bit)")


def test_the_first_executable_in_the_path_counts(root):
    put(root, "bin/tool", b"#!/bin/sh\n", 0o644)
    put(root, "usr/bin/tool", b"#!/bin/sh\n")
    assert look(root, "tool") is None


@pytest.mark.parametrize(
    ("mode", "user", "allowed"),
    [
        (0o700, {"uid": 1000, "gid": 1000}, False),
        (0o700, {"uid": 0, "gid": 0}, True),
        (0o001, {"uid": 0, "gid": 0}, True),
        (0o701, {"uid": 1000, "gid": 1000}, True),
        (0o710, {"uid": 1000, "gid": 1000}, False),
        (0o710, {"uid": 1000, "gid": 0}, True),
        (0o710, {"uid": 1000, "gid": 1000, "additionalGids": [5, 0]}, True),
        (0o701, {"uid": 1000, "gid": 0}, False),
    ],
)
def test_the_users_own_permission_counts(root, mode, user, allowed):
    put(root, "bin/x", elf(), mode)
    os.chown(root / "bin/x", os.getuid(), 0) if os.getuid() == 0 else pytest.skip("needs root")
    found = look(root, "/bin/x", user=user)
    expected = f'exec: "/bin/x": permission denied (/bin/x may not be executed by user {user["uid"]})'
    assert found == (None if allowed else expected)


def test_a_directory(root):
    assert look(root, "/bin") == 'exec: "/bin": is a directory: permission denied'
    assert "executable file not found in $PATH" in look(root, "bin")


def test_a_symlink_that_leads_nowhere_is_named(root):
    (root / "bin/link").symlink_to("/opt/gone")
    assert "is a symbolic link to /opt/gone, which does not exist in the container" in look(root, "/bin/link")


def test_a_symlink_is_followed_within_the_root(root):
    (root / "usr/bin/away").symlink_to("../../../../../../bin/sh")
    (root / "usr/bin/abs").symlink_to("/bin/sh")
    assert look(root, "away") is None
    assert look(root, "abs") is None


def test_a_missing_interpreter(root):
    put(root, "bin/script", b"#!/usr/bin/python3 -u\nprint()\n")
    assert look(root, "script") == (
        "exec /bin/script: no such file or directory (its interpreter /usr/bin/python3 does not exist in the container)"
    )


def test_windows_line_ends(root):
    put(root, "bin/script", b"#!/bin/sh\r\necho\r\n")
    found = look(root, "script")
    assert found.startswith("exec /bin/script: no such file or directory")
    assert "Windows line ends (CRLF)" in found


def test_an_interpreter_that_is_a_script_is_looked_at_too(root):
    put(root, "bin/outer", b"#! /bin/inner\n")
    put(root, "bin/inner", b"#!/bin/gone\n")
    assert "its interpreter /bin/gone does not exist" in look(root, "outer")
    put(root, "bin/loop", b"#!/bin/loop\n")
    assert look(root, "loop") is None, "the kernel's ELOOP says it well enough"


def test_an_interpreter_without_execute_bit(root):
    put(root, "bin/plain", b"", 0o644)
    put(root, "bin/script", b"#!/bin/plain\n")
    assert look(root, "script") == "exec /bin/script: permission denied (its interpreter /bin/plain cannot be executed)"


@pytest.mark.parametrize("content", [b"", b"echo hi\n", b"\xef\xbb\xbf#!/bin/sh\n", b"#!\n", b"#!   \n"])
def test_what_the_kernel_cannot_read(root, content):
    if os.path.isdir("/proc/sys/fs/binfmt_misc") and len(os.listdir("/proc/sys/fs/binfmt_misc")) > 2:
        pytest.skip("other formats are registered here")
    put(root, "bin/x", content)
    assert look(root, "x").startswith("exec /bin/x: exec format error (")


def test_a_program_for_another_machine_is_named(root):
    put(root, "bin/x", elf(machine=183))
    assert look(root, "x") == "exec /bin/x: exec format error (/bin/x was built for arm64, this machine is amd64)"
    put(root, "bin/x", elf(machine=9999))
    assert "ELF machine 9999" in look(root, "x")


@pytest.mark.parametrize("bits", [64, 32])
def test_a_missing_loader_is_named(root, bits):
    put(root, "bin/x", elf(machine=62 if bits == 64 else 3, interpreter=b"/lib64/ld-musl.so.1", bits=bits))
    assert "its ELF loader /lib64/ld-musl.so.1 does not exist in the container" in look(root, "x")
    put(root, "lib64/ld-musl.so.1", elf())
    assert look(root, "x") is None


@pytest.mark.parametrize(
    "content", [b"\x7fELF", b"\x7fELF\x02\x01", elf()[:70], b"\x7fELF\x02\x01\x01" + b"\xff" * 200]
)
def test_a_broken_program_is_left_to_the_kernel(root, content):
    put(root, "bin/x", content)
    found = look(root, "x")
    assert found is None or "built for" in found


def test_a_fifo_does_not_block(root):
    os.mkfifo(root / "bin/fifo", 0o755)
    assert look(root, "fifo") is None
