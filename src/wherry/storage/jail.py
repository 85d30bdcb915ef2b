"""System calls a process gives up for good when it begins to parse what a stranger sent (seccomp(2)).

What extraction has no use for is refused with EPERM: running programs, sockets, mounts, namespaces, other processes,
and the parts of the kernel in which most holes were found. A list of what is allowed would be shorter-lived than the
C libraries we run on.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Sequence
from itertools import chain

from wherry.kernel.libc import check, libc

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_LOAD, _EQUAL, _AT_LEAST, _HAS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF: ld [k], jeq, jge, jset, ret
_NUMBER, _ARCHITECTURE, _FIRST = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_CLONE3 = 435  # its flags are out of sight; the C library does without it where it does not exist
_CLONE_THREAD = 0x10000
_CLONE = {"x86_64": 56, "aarch64": 220}
_X32 = 0x40000000  # bit of the numbers of x86-64's other calling convention

# The same on every architecture: io_uring_setup, open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, pidfd_open,
# pidfd_getfd, process_madvise, mount_setattr
_COMMON = (425, 428, 429, 430, 431, 432, 433, 434, 438, 440, 442)

_REFUSED: dict[str, tuple[int, Sequence[Sequence[int]]]] = {  # machine -> (audit architecture, numbers)
    "x86_64": (
        0xC000003E,
        (
            # socket, connect, accept, sendto, recvfrom, sendmsg, recvmsg, bind, listen, socketpair, accept4
            (41, 42, 43, 44, 45, 46, 47, 49, 50, 53, 288),
            # fork, vfork, execve, execveat, ptrace, personality, process_vm_readv, process_vm_writev, kcmp
            (57, 58, 59, 322, 101, 135, 310, 311, 312),
            # mount, umount2, pivot_root, chroot, unshare, setns, name_to_handle_at, open_by_handle_at, swapon, acct,
            # reboot
            (165, 166, 155, 161, 272, 308, 303, 304, 167, 163, 169),
            # init_module, finit_module, delete_module, kexec_load, kexec_file_load, bpf, perf_event_open, userfaultfd
            (175, 313, 176, 246, 320, 321, 298, 323),
            # add_key, request_key, keyctl, iopl, ioperm, syslog, settimeofday, clock_settime, sethostname, quotactl
            (248, 249, 250, 172, 173, 103, 164, 227, 170, 179),
        ),
    ),
    "aarch64": (  # the same, as far as they exist there
        0xC00000B7,
        (
            (198, 203, 202, 206, 207, 211, 212, 200, 201, 199, 242),
            (221, 281, 117, 92, 270, 271, 272),
            (40, 39, 41, 51, 97, 268, 264, 265, 224, 89, 142),
            (105, 273, 106, 104, 294, 280, 241, 282),
            (217, 218, 219, 116, 170, 112, 161, 60),
        ),
    ),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def enter() -> bool:
    """Refuse the calls above to this thread and all it starts from now on; it must have set no_new_privs.

    False on a machine whose call numbers are not listed here, or whose kernel has no filters.
    """
    machine = os.uname().machine
    if machine not in _REFUSED:
        return False
    architecture, groups = _REFUSED[machine]
    numbers = [*chain(*groups), *_COMMON]
    code = _compile(architecture, numbers, clone=_CLONE[machine], x32=machine == "x86_64")
    program = _Program(len(code) // 8, code)
    try:
        check(libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0), "seccomp")
    except OSError as exc:
        if exc.errno in (errno.EINVAL, errno.ENOSYS):
            return False
        raise
    return True


def _compile(architecture: int, numbers: Sequence[int], *, clone: int, x32: bool) -> bytes:
    """struct sock_filter[]: code, jump if true, jump if false, operand. Jumps count the lines passed over."""
    tests = [(_AT_LEAST, _X32)] if x32 else []
    tests += [(_EQUAL, number) for number in numbers]
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
        (_EQUAL, 0, 3, clone),
        (_LOAD, 0, 0, _FIRST),
        (_HAS, len(tests) + 1, 0, _CLONE_THREAD),  # a thread
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),  # another process
        *((test, len(tests) - at, 0, operand) for at, (test, operand) in enumerate(tests)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
    ]
    return b"".join(struct.pack("=HBBI", *line) for line in program)
