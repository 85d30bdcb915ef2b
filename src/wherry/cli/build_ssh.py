"""`--ssh id=key`: an agent for this build alone that holds the keys. OpenSSH's own programs do the work."""

from __future__ import annotations

import os

from wherry.cli.console import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from subprocess import Popen

START = 5.0  # s an agent may take to listen


class KeyAgents:
    """Used in a `with`; `sockets` has one for each id."""

    def __init__(self, keys: Mapping[str, Sequence[str]]) -> None:
        self._keys = keys
        self._agents: list[Popen[bytes]] = []
        self._directory = ""
        self.sockets: dict[str, str] = {}

    def __enter__(self) -> KeyAgents:
        if self._keys:
            import tempfile

            self._directory = tempfile.mkdtemp(prefix="wherry-ssh-")
        try:
            for identifier, paths in self._keys.items():
                self.sockets[identifier] = self._start(paths)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self, paths: Sequence[str]) -> str:
        import subprocess
        import time

        path = f"{self._directory}/{len(self._agents)}"
        try:
            agent = subprocess.Popen(
                ["ssh-agent", "-D", "-a", path], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
        except FileNotFoundError:
            raise Failure("--ssh with a key needs OpenSSH's ssh-agent, which is not installed here") from None
        self._agents.append(agent)
        until = time.monotonic() + START
        while not os.path.exists(path):
            if agent.poll() is not None or time.monotonic() > until:
                raise Failure("--ssh: ssh-agent does not start")
            time.sleep(0.01)
        added = subprocess.run(
            ["ssh-add", "-q", *paths], env={**os.environ, "SSH_AUTH_SOCK": path}, stderr=subprocess.PIPE, check=False
        )
        if added.returncode:
            said = added.stderr.decode("utf-8", "replace").strip()
            raise Failure(f"failed to parse {', '.join(paths)}: {said}")
        return path

    def __exit__(self, *_: object) -> None:
        for agent in self._agents:
            agent.terminate()
            agent.wait()
        if self._directory:
            import shutil

            shutil.rmtree(self._directory, ignore_errors=True)
