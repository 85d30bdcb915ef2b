"""Running git on what strangers wrote: no configuration but ours, no hooks, no prompts, no other protocols.

Configuration travels in the environment, which unlike arguments other users cannot read: it may hold a password.
"""

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from wherry.aio import finish
from wherry.distribution.proxy import Proxies
from wherry.errors import Failed, NotSupported, Unavailable

Told = Callable[[bytes], None]  # is given what git says on stderr, as it comes

TIME = 3600.0  # seconds for one command
PROTOCOLS = "http:https:ssh:git"
MAX_OUT = 16 << 20  # bytes of a command's output
MAX_SAID = 16 << 10  # bytes of its complaints that are kept
_STANDARD_UMASK = ("/bin/sh", "-c", 'umask 022; exec "$@"', "sh")  # modes of files do not depend on the daemon's
_STALLED = 120  # seconds below 1 kB/s after which a transfer is given up
_CONFIG = {
    "core.hooksPath": "/dev/null",
    "core.attributesFile": "/dev/null",
    "core.excludesFile": "/dev/null",
    "core.fsmonitor": "false",
    "core.autocrlf": "false",
    "core.symlinks": "true",
    "core.logAllRefUpdates": "false",
    "credential.helper": "",
    "init.defaultBranch": "master",
    "advice.detachedHead": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "pack.threads": "1",  # the same pack each time
    "http.lowSpeedLimit": "1000",
    "http.lowSpeedTime": str(_STALLED),
    "safe.directory": "*",
}


def ignore(data: bytes) -> None:
    """Nobody wants to see it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Git:
    """How git is to be run for one remote."""

    remote: str  # without a password
    shown: str  # the same, for people
    secret: str = ""  # name of the secret that would open it
    config: Mapping[str, str] = field(default_factory=dict)
    known_hosts: Path  # of ssh
    strict: bool = False  # only these hosts; else one not seen before is added
    agent: Path | None = None  # socket of an ssh agent
    proxies: Proxies = field(default_factory=Proxies)
    told: Told = ignore

    def _environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        checking = "yes" if self.strict else "accept-new"
        ssh = (
            f"ssh -F /dev/null -o BatchMode=yes -o StrictHostKeyChecking={checking} "
            f"-o ConnectTimeout=30 -o {shlex.quote(f'UserKnownHostsFile={_quoted(self.known_hosts)}')}"
        )
        config = {**_CONFIG, **self.config}
        pairs = [(f"GIT_CONFIG_KEY_{number}", key) for number, key in enumerate(config)]
        pairs += [(f"GIT_CONFIG_VALUE_{number}", value) for number, value in enumerate(config.values())]
        proxies = {"http_proxy": self.proxies.http, "https_proxy": self.proxies.https, "no_proxy": self.proxies.no}
        return {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": "/nonexistent",
            "LC_ALL": "C",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ALLOW_PROTOCOL": PROTOCOLS,
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_SSH_COMMAND": ssh,
            "GIT_CONFIG_COUNT": str(len(config)),
            **dict(pairs),
            **{name: value for name, value in proxies.items() if value},
            **({"SSH_AUTH_SOCK": os.fspath(self.agent)} if self.agent is not None else {}),
            **extra,
        }

    async def run(self, *args: str, cwd: Path, environment: Mapping[str, str] | None = None) -> bytes:
        """What `git args` printed. Failed with the end of its complaints; a cancellation ends it and its children."""
        program = shutil.which("git")
        if program is None:
            raise NotSupported(
                "git contexts need the program git on the engine's machine: install it (apt install git)"
            )
        process = await asyncio.create_subprocess_exec(
            *_STANDARD_UMASK,
            program,
            *args,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=cwd,
            env=self._environment(environment or {}),
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(TIME):
                out, said = await asyncio.gather(_all(process.stdout), _last(process.stderr, self.told))
                status = await process.wait()
        except BaseException as exc:
            await finish(_end(process))
            if isinstance(exc, TimeoutError):
                raise Unavailable(f"git {args[0]} did not end within {TIME:g} seconds and was stopped") from None
            raise
        if status:
            raise GitFailed(args[0], status, said.decode(errors="replace"))
        return out


def _quoted(path: Path) -> str:
    """As ssh wants the name of a file in an option."""
    return f'"{path}"' if " " in str(path) else str(path)


class GitFailed(Failed):
    """git ended with an error; `said` is what it wrote."""

    def __init__(self, command: str, status: int, said: str) -> None:
        super().__init__(f"git {command}: {said.strip() or f'exit status {status}'}")
        self.said = said


async def _all(stream: asyncio.StreamReader | None) -> bytes:
    assert stream is not None
    found = bytearray()
    while data := await stream.read(1 << 16):
        found += data
        if len(found) > MAX_OUT:
            raise Failed(f"git printed more than {MAX_OUT} bytes")
    return bytes(found)


async def _last(stream: asyncio.StreamReader | None, told: Told) -> bytes:
    assert stream is not None
    kept = b""
    while data := await stream.read(1 << 16):
        told(data)
        kept = (kept + data)[-MAX_SAID:]
    return kept


async def _end(process: asyncio.subprocess.Process) -> None:
    """It and what it started (git leaves transfers to helpers)."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
