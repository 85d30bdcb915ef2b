"""Docker's default seccomp policy, and seccomp profiles in Docker's format made into OCI's `linux.seccomp`. Pure.

The policy is an allow-list: what is not named fails with EPERM. Some calls are allowed only with a capability, on an
architecture, or with certain arguments. Profiles given by `--security-opt seccomp=` have the same form:

    {"defaultAction", "defaultErrnoRet"?, "archMap"? | "architectures"?, "flags"?, "listenerPath"?, "listenerMetadata"?,
     "syscalls": [{"names" | "name", "action", "errnoRet"?, "args"?, "includes"?, "excludes"?}]}
"""

import functools
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wherry.errors import InvalidParameter

Document = dict[str, Any]

_ALWAYS = """
_llseek _newselect accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown
chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
clock_nanosleep clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3
epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd
eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark
fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock
fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex
futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu
getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer
getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32
getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr getxattrat
inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents
io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule
landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount listxattr
listxattrat llistxattr lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier
memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect
mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64
mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep
newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect
poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6 pselect6_time64
pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64
recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall riscv_hwprobe rmdir
rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity
sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64
sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop
semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area
set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid
setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid
setsockopt setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4
sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat
sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime
timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime
utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev
"""

# Allowed with the capability, whoever has it may do worse.
_WITH_CAPABILITY = {
    "CAP_BPF": "bpf",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYSLOG": "syslog",
    "CAP_SYS_ADMIN": (
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr "
        "lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl "
        "quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare"
    ),
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
}

_ON_ARCHITECTURE = (
    (("ppc64le",), "swapcontext sync_file_range2"),
    (("arm", "arm64"), "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2"),
    (("amd64", "x32"), "arch_prctl"),
    (("amd64", "x32", "x86"), "modify_ldt"),
    (("s390", "s390x"), "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr"),
    (("riscv64",), "riscv_flush_icache"),
)

# Execution domains: Linux, and with it 32-bit uname, no address randomisation, both; and "tell me".
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
_AF_ALG, _AF_VSOCK = 38, 40  # sockets of these two reach beyond the container
_NEW_NAMESPACES = 0x7E020000  # CLONE_NEW*, but for CLONE_NEWTIME, which clone has no bit for
_ENOSYS = 38  # clone3 hides its flags from seccomp: libraries fall back to clone when it is not there
_PTRACE_SAFE = "4.8"  # kernel since which a tracer cannot change a call behind seccomp's back

_ARCHITECTURES = (
    ("SCMP_ARCH_X86_64", ("SCMP_ARCH_X86", "SCMP_ARCH_X32")),
    ("SCMP_ARCH_AARCH64", ("SCMP_ARCH_ARM",)),
    ("SCMP_ARCH_MIPS64", ("SCMP_ARCH_MIPS", "SCMP_ARCH_MIPS64N32")),
    ("SCMP_ARCH_MIPS64N32", ("SCMP_ARCH_MIPS", "SCMP_ARCH_MIPS64")),
    ("SCMP_ARCH_MIPSEL64", ("SCMP_ARCH_MIPSEL", "SCMP_ARCH_MIPSEL64N32")),
    ("SCMP_ARCH_MIPSEL64N32", ("SCMP_ARCH_MIPSEL", "SCMP_ARCH_MIPSEL64")),
    ("SCMP_ARCH_S390X", ("SCMP_ARCH_S390",)),
    ("SCMP_ARCH_RISCV64", ()),
    ("SCMP_ARCH_LOONGARCH64", ()),
)

# uname -m -> the name in profiles' `arches`, libseccomp's name
_MACHINES = {
    "x86_64": ("amd64", "SCMP_ARCH_X86_64"),
    "i686": ("x86", "SCMP_ARCH_X86"),
    "aarch64": ("arm64", "SCMP_ARCH_AARCH64"),
    "armv7l": ("arm", "SCMP_ARCH_ARM"),
    "ppc64le": ("ppc64le", "SCMP_ARCH_PPC64LE"),
    "s390x": ("s390x", "SCMP_ARCH_S390X"),
    "riscv64": ("riscv64", "SCMP_ARCH_RISCV64"),
    "loongarch64": ("loong64", "SCMP_ARCH_LOONGARCH64"),
}

_ALLOW, _ERRNO = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"


@functools.cache
def default_profile() -> Document:
    """Docker's default policy as a profile."""
    rules: list[Document] = [
        _rule(_ALWAYS),
        _rule("process_vm_readv process_vm_writev ptrace", includes={"minKernel": _PTRACE_SAFE}),
        _rule("socket", args=[_argument(0, "LT", _AF_ALG)]),
        _rule("socket", args=[_argument(0, "EQ", _AF_ALG + 1)]),
        _rule("socket", args=[_argument(0, "GT", _AF_VSOCK)]),
        *(_rule("personality", args=[_argument(0, "EQ", value)]) for value in _PERSONALITIES),
        *(_rule(names, includes={"arches": list(arches)}) for arches, names in _ON_ARCHITECTURE),
        *(_rule(names, includes={"caps": [capability]}) for capability, names in _WITH_CAPABILITY.items()),
    ]
    without = {"caps": ["CAP_SYS_ADMIN"]}
    clone = {"index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": _NEW_NAMESPACES, "valueTwo": 0}
    rules += [
        _rule("clone", args=[clone], excludes={**without, "arches": ["s390", "s390x"]}),
        _rule("clone", args=[{**clone, "index": 1}], includes={"arches": ["s390", "s390x"]}, excludes=without),
        _rule("clone3", action=_ERRNO, errnoRet=_ENOSYS, excludes=without),
    ]
    return {
        "defaultAction": _ERRNO,
        "defaultErrnoRet": 1,
        "archMap": [{"architecture": main, "subArchitectures": list(subs)} for main, subs in _ARCHITECTURES],
        "syscalls": rules,
    }


def _rule(names: str, *, action: str = _ALLOW, **rest: object) -> Document:
    return {"names": names.split(), "action": action, **rest}


def _argument(index: int, operator: str, value: int) -> Document:
    return {"index": index, "op": f"SCMP_CMP_{operator}", "value": value}


def for_container(
    profile: Mapping[str, Any], capabilities: Iterable[str], *, machine: str = "", kernel: str = ""
) -> Document:
    """`linux.seccomp` for a container with these capabilities on this machine. Raises InvalidParameter."""
    machine = machine or platform.machine()
    kernel = kernel or os.uname().release
    arch, native = _MACHINES.get(machine, (machine, ""))
    held = frozenset(capabilities)
    result: Document = {"defaultAction": profile["defaultAction"]}
    for key in ("defaultErrnoRet", "flags", "listenerPath", "listenerMetadata"):
        if profile.get(key):
            result[key] = profile[key]
    result["architectures"] = _architectures(profile, native)
    result["syscalls"] = [
        _plain(rule)
        for rule in profile.get("syscalls") or ()
        if _applies(rule.get("includes") or {}, rule.get("excludes") or {}, arch=arch, held=held, kernel=kernel)
    ]
    if not result["architectures"]:
        del result["architectures"]  # the native one alone
    return result


def _architectures(profile: Mapping[str, Any], native: str) -> list[str]:
    if profile.get("architectures") and profile.get("archMap"):
        raise InvalidParameter(
            "both 'architectures' and 'archMap' are specified in the seccomp profile, "
            "use either 'architectures' or 'archMap'"
        )
    if profile.get("architectures"):
        return list(profile["architectures"])
    for entry in profile.get("archMap") or ():
        if entry["architecture"] == native:
            return [native, *(entry.get("subArchitectures") or ())]
    return []


def _applies(
    includes: Mapping[str, Any], excludes: Mapping[str, Any], *, arch: str, held: frozenset[str], kernel: str
) -> bool:
    if includes.get("arches") and arch not in includes["arches"]:
        return False
    if any(capability not in held for capability in includes.get("caps") or ()):
        return False
    if includes.get("minKernel") and _version(kernel) < _version(includes["minKernel"]):
        return False
    if arch in (excludes.get("arches") or ()):
        return False
    if any(capability in held for capability in excludes.get("caps") or ()):
        return False
    return not (excludes.get("minKernel") and _version(kernel) >= _version(excludes["minKernel"]))


def _version(text: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _plain(rule: Mapping[str, Any]) -> Document:
    names: Sequence[str] = rule.get("names") or [rule["name"]]
    result: Document = {"names": list(names), "action": rule["action"]}
    if rule.get("errnoRet") is not None:
        result["errnoRet"] = rule["errnoRet"]
    if rule.get("args"):
        result["args"] = [{key: value for key, value in each.items() if key != "comment"} for each in rule["args"]]
    return result


def check_profile(profile: object) -> Document:
    """A profile as a user gave it, decoded from JSON; raises InvalidParameter for what is not one."""
    if not isinstance(profile, dict) or not isinstance(profile.get("defaultAction"), str):
        raise InvalidParameter("seccomp profile: want a JSON object with a defaultAction")
    for rule in profile.get("syscalls") or ():
        if not isinstance(rule, dict) or not isinstance(rule.get("action"), str):
            raise InvalidParameter("seccomp profile: each of syscalls needs an action")
        if not rule.get("names") and not rule.get("name"):
            raise InvalidParameter("seccomp profile: each of syscalls needs names")
        if rule.get("names") and rule.get("name"):
            raise InvalidParameter(
                "'name' and 'names' were specified in the seccomp profile, use either 'name' or 'names'"
            )
    return profile
