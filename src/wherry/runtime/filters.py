"""Seccomp filters compiled in advance: crun takes a finished BPF program, and saves 13 to 57 ms of every start.

    <exec root>/seccomp/<sha256 of the linux.seccomp document>.bpf

Compiled by libseccomp, if the machine has it; what cannot be compiled here is left to the runtime, as is everything
for another runtime than crun.
"""

import base64
import contextlib
import ctypes
import errno
import hashlib
import json
import logging
import os
import re
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wherry.runtime.oci import RuntimeSpec

log = logging.getLogger(__name__)

ANNOTATION = "run.oci.seccomp_bpf_data"
_SINCE = (1, 8)  # of crun; an older one would ignore the annotation, and leave the container without any filter

_ERRNO, _TRACE = 0x00050000, 0x7FF00000
_ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": _ERRNO,
    "SCMP_ACT_TRACE": _TRACE,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
_OPERATORS = {
    f"SCMP_CMP_{name}": number for number, name in enumerate(("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"), 1)
}
_OPTIMIZE, _BINARY_TREE = 8, 2
_UNKNOWN = -1  # __NR_SCMP_ERROR: a system call libseccomp does not know

Document = Mapping[str, Any]


class Filters:
    """Compiled filters by the document they come from. Blocking; for one thread at a time per document."""

    def __init__(self, exec_root: Path) -> None:
        self._root = exec_root / "seccomp"
        self._known: dict[str, str | None] = {}  # base64 by digest
        self._capable: dict[str, bool] = {}  # by path of the runtime
        self._library: ctypes.CDLL | None = None
        self._making = threading.Lock()  # several containers are created at the same time

    def apply(self, spec: Document, runtime: RuntimeSpec) -> Document:
        """`spec` with its seccomp rules replaced by a compiled filter, where that can be done."""
        rules = spec.get("linux", {}).get("seccomp")
        if not rules or rules.get("flags") or rules.get("listenerPath") or not self._takes_filters(runtime):
            return spec
        data = self._find(rules)
        if data is None:
            return spec
        linux = {key: value for key, value in spec["linux"].items() if key != "seccomp"}
        return {**spec, "linux": linux, "annotations": {**spec.get("annotations", {}), ANNOTATION: data}}

    def _takes_filters(self, runtime: RuntimeSpec) -> bool:
        if runtime.path not in self._capable:
            self._capable[runtime.path] = runtime.kind == "crun" and _crun_version(runtime.path) >= _SINCE
        return self._capable[runtime.path]

    def _find(self, rules: Document) -> str | None:
        text = json.dumps(rules, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        with self._making:
            if digest not in self._known:
                self._known[digest] = self._load(digest, rules)
            return self._known[digest]

    def _load(self, digest: str, rules: Document) -> str | None:
        path = self._root / f"{digest}.bpf"
        try:
            program = path.read_bytes()
        except FileNotFoundError:
            try:
                program = self.compile(rules)
            except OSError as exc:
                log.info("seccomp rules are left to the runtime: %s", exc)
                return None
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}")
            temporary.write_bytes(program)
            temporary.replace(path)
        return base64.b64encode(program).decode()

    def compile(self, rules: Document) -> bytes:
        """The BPF program for a `linux.seccomp` document. Raises OSError when it cannot be made."""
        library = self._open_library()
        default = _action(rules["defaultAction"], rules.get("defaultErrnoRet"))
        context = library.seccomp_init(default)
        if not context:
            raise OSError(errno.EINVAL, "seccomp_init")
        try:
            library.seccomp_attr_set(context, _OPTIMIZE, _BINARY_TREE)  # libseccomp before 2.5 lacks it: no matter
            self._add_architectures(context, rules.get("architectures") or ())
            for rule in rules.get("syscalls") or ():
                action = _action(rule["action"], rule.get("errnoRet"))
                if action == default:
                    continue
                for name in rule["names"]:
                    number = library.seccomp_syscall_resolve_name(name.encode())
                    if number != _UNKNOWN:
                        self._add_rule(context, action, number, rule.get("args") or ())
            return self._export(context)
        finally:
            library.seccomp_release(context)

    def _add_architectures(self, context: int, names: Sequence[str]) -> None:
        assert self._library is not None
        for name in names:
            token = self._library.seccomp_arch_resolve_name(name.removeprefix("SCMP_ARCH_").lower().encode())
            if not token:
                raise OSError(errno.EINVAL, f"unknown architecture {name}")
            result = self._library.seccomp_arch_add(context, token)
            if result not in (0, -errno.EEXIST):
                raise OSError(-result, f"seccomp_arch_add {name}")

    def _add_rule(self, context: int, action: int, number: int, arguments: Sequence[Document]) -> None:
        assert self._library is not None
        indices = [each["index"] for each in arguments]
        # Conditions on one argument twice: either may hold (runtime-spec), so each is a rule of its own.
        groups = [arguments] if len(set(indices)) == len(indices) else [[each] for each in arguments]
        for group in groups:
            array = (_Comparison * len(group))(*(_comparison(each) for each in group))
            result = self._library.seccomp_rule_add_array(context, action, number, len(group), array)
            if result < 0:
                raise OSError(-result, "seccomp_rule_add")

    def _export(self, context: int) -> bytes:
        assert self._library is not None
        fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
        with open(fd, "rb") as file:
            result = self._library.seccomp_export_bpf(context, fd)
            if result < 0:
                raise OSError(-result, "seccomp_export_bpf")
            file.seek(0)
            return file.read()

    def _open_library(self) -> ctypes.CDLL:
        if self._library is None:
            library = ctypes.CDLL("libseccomp.so.2")  # OSError when there is none
            library.seccomp_init.restype = ctypes.c_void_p
            library.seccomp_init.argtypes = [ctypes.c_uint32]
            library.seccomp_release.argtypes = [ctypes.c_void_p]
            library.seccomp_release.restype = None
            library.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
            library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
            library.seccomp_arch_resolve_name.argtypes = [ctypes.c_char_p]
            library.seccomp_arch_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
            library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
            library.seccomp_rule_add_array.argtypes = [
                ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p,
            ]  # fmt: skip
            library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
            self._library = library
        return self._library


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


def _comparison(argument: Document) -> _Comparison:
    operator = _OPERATORS.get(argument["op"])
    if operator is None:
        raise OSError(errno.EINVAL, f"unknown comparison {argument['op']}")
    return _Comparison(argument["index"], operator, argument["value"], argument.get("valueTwo", 0))


def _action(name: str, number: int | None) -> int:
    if name not in _ACTIONS:
        raise OSError(errno.EINVAL, f"action {name}")
    action = _ACTIONS[name]
    return action | (errno.EPERM if number is None else number) if action in (_ERRNO, _TRACE) else action


def _crun_version(path: str) -> tuple[int, int]:
    text = ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        text = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    match = re.match(r"crun version (\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)
