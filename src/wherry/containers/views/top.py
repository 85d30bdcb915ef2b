"""top: the processes of a running container, as the host's `ps` shows them.

Where the machine has no `ps`, a table like that of `ps -ef` is made from /proc; other `ps_args` are then refused.
"""

import asyncio
import os
import pwd
import re
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from wherry.aio import settle
from wherry.containers.deps import Deps
from wherry.containers.record import Status
from wherry.containers.views.shapes import Document
from wherry.errors import Conflict, Failed, InvalidParameter, NotSupported

DEFAULT_ARGS = "-ef"
OUTPUT_LIMIT = 16 << 20  # bytes of what ps prints
TIMEOUT = 30.0  # s for ps to finish
PATHS = "/usr/bin:/bin:/usr/local/bin"
TITLES = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]

# Options that make ps name columns differently or drop the header would make its output unreadable here.
_RENAMED = re.compile(r"\s+(\S*)pid\S*=")
_PID = "PID"


async def top(deps: Deps, name: str, *, ps_args: str = "") -> Document:
    """`{"Titles": [...], "Processes": [[...], ...]}`. Raises NotFound, Conflict, InvalidParameter, Failed."""
    container = deps.store.resolve(name)
    shim = deps.live_of(container).shim
    if container.state.status is Status.RESTARTING:
        raise Conflict(f"container {name} is restarting, wait until the container is running")
    if not container.running or shim is None:
        raise Conflict(f"container {container.id} is not running")
    arguments = (ps_args or DEFAULT_ARGS).split()
    check_arguments(ps_args)
    pids = frozenset(await settle(shim.processes))
    program = find_ps()
    if program is None:
        if arguments != [DEFAULT_ARGS]:
            raise NotSupported("ps is not installed on the host, so only its default columns can be shown")
        document = await settle(from_proc, pids)
    else:
        document = parse(await run_ps(program, arguments, pids), pids)
    deps.publish(container, "top")
    return document


def check_arguments(text: str) -> None:
    """Refuse options that rename the PID column or ask for something else than a table."""
    if _RENAMED.search(" " + text):
        raise InvalidParameter('specifying "pid" with a custom header is not allowed')


def find_ps() -> str | None:
    for directory in PATHS.split(":"):
        if os.access(path := f"{directory}/ps", os.X_OK):
            return path
    return None


async def run_ps(program: str, arguments: list[str], pids: Collection[int]) -> str:
    """What `ps` prints, of the container's processes only when these arguments allow it."""
    chosen = ",".join(map(str, sorted(pids)))
    if chosen and len(chosen) < 64 << 10:
        code, output, errors = await _run(program, [*arguments, "-q" + chosen])
        if code == 0:
            return output
    code, output, errors = await _run(program, arguments)  # this ps, or these options, do not go with a list of pids
    if code != 0:
        raise Failed(f"ps: {errors.removeprefix('error: ').strip() or f'exit status {code}'}")
    return output


async def _run(program: str, arguments: list[str]) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        program,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": PATHS, "LC_ALL": "C.UTF-8"},
    )
    try:
        async with asyncio.timeout(TIMEOUT):
            output, errors = await process.communicate()
    except TimeoutError:
        raise Failed(f"ps: no answer within {TIMEOUT:.0f} s") from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if len(output) > OUTPUT_LIMIT:
        raise Failed("ps: its output is too long")
    first = errors.decode(errors="replace").strip().split("\n", 1)[0]
    return process.returncode or 0, output.decode(errors="replace"), first


def parse(output: str, pids: Collection[int]) -> Document:
    """The table, with the rows of `pids` only. The last column may hold spaces. Raises Failed without a PID column."""
    header, *lines = output.split("\n")
    titles = header.split()
    if _PID not in titles:
        raise Failed("Couldn't find PID field in ps output")
    column = titles.index(_PID)
    processes: list[list[str]] = []
    for line in lines:
        fields = line.split(None, len(titles) - 1)
        if len(fields) <= column:
            continue
        if fields[column] == "-":  # a thread: it belongs to the process before it
            if processes:
                processes.append(fields)
            continue
        if not fields[column].isdecimal():
            raise Failed(f"Unexpected pid '{fields[column]}' in ps output")
        if int(fields[column]) in pids:
            processes.append([*fields[:-1], fields[-1].rstrip()])
    return {"Titles": titles, "Processes": processes}


def from_proc(pids: Iterable[int], *, proc: Path = Path("/proc")) -> Document:
    """The columns of `ps -ef`, read from /proc; processes that end meanwhile are left out."""
    booted = _boot_time(proc)
    rows: list[list[str]] = []
    for pid in sorted(pids):
        with suppress(OSError, ValueError, IndexError):
            rows.append(_row(proc, pid, booted))
    return {"Titles": list(TITLES), "Processes": rows}


def _row(proc: Path, pid: int, booted: float) -> list[str]:
    directory = proc / str(pid)
    stat = (directory / "stat").read_bytes().decode(errors="replace")
    name = stat[stat.index("(") + 1 : stat.rindex(")")]
    fields = stat[stat.rindex(")") + 2 :].split()
    ticks = os.sysconf("SC_CLK_TCK")
    parent, terminal = int(fields[1]), int(fields[4])
    used = (int(fields[11]) + int(fields[12])) // ticks  # s
    started = booted + int(fields[19]) / ticks
    command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    lived = max(time.time() - started, 1.0)
    return [
        _user_name(directory.stat().st_uid),
        str(pid),
        str(parent),
        str(min(int(used / lived * 100), 99)),
        _start_time(started),
        _terminal_name(terminal),
        f"{used // 3600:02d}:{used // 60 % 60:02d}:{used % 60:02d}",
        command or f"[{name}]",
    ]


def _boot_time(proc: Path) -> float:
    for line in (proc / "stat").read_text().split("\n"):
        if line.startswith("btime "):
            return float(line.split()[1])
    return 0.0


def _start_time(started: float) -> str:
    then, now = time.localtime(started), time.localtime()
    if (then.tm_year, then.tm_yday) == (now.tm_year, now.tm_yday):
        return time.strftime("%H:%M", then)
    return time.strftime("%b%d" if then.tm_year == now.tm_year else "%Y", then)


def _terminal_name(device: int) -> str:
    major, minor = os.major(device), os.minor(device)
    return f"pts/{minor}" if 136 <= major <= 143 else "?"


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
