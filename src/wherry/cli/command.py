"""What a command module offers, and what a command gets to work with.

A module under `commands/` has COMMANDS: the key the catalog names -> Command. Only the module of the command that
runs is imported.
"""

from __future__ import annotations

import os

from wherry.cli.flags import Flag, Flags

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from wherry.client.engine import Engine

UNLIMITED = -1


class Command:
    """One verb.

    `usage` is what follows its name, `least` and `most` count its arguments. `prefixed` commands report failures as
    `wherry: …` with a pointer to help and exit 125, as run and create do.
    """

    __slots__ = ("details", "flags", "interspersed", "least", "most", "prefixed", "run", "usage")

    def __init__(
        self,
        usage: str,
        run: Callable[[CLI, Flags, list[str]], int],
        *,
        flags: Sequence[Flag] = (),
        arguments: tuple[int, int] = (0, 0),
        interspersed: bool = True,
        prefixed: bool = False,
        details: str = "",
    ) -> None:
        self.usage = usage
        self.run = run
        self.flags = flags
        self.least, self.most = arguments
        self.interspersed = interspersed
        self.prefixed = prefixed
        self.details = details  # replaces the summary in help


class CLI:
    """The surroundings of one invocation; the engine and the config file are opened at first use."""

    def __init__(self, globals_: Flags, environ: dict[str, str]) -> None:
        self.globals = globals_
        self.environ = environ
        self.path = ""  # of the command: `container ls`
        self._engine: Engine | None = None
        self._connected: list[Engine] = []
        self._config: dict[str, Any] | None = None
        self.config_broken = False  # there is a config.json, and it is not one

    @property
    def config_directory(self) -> str:
        given = self.globals.text("config") or self.environ.get("DOCKER_CONFIG")
        return given or f"{self.environ.get('HOME') or '/root'}/.docker"

    @property
    def config(self) -> dict[str, Any]:
        """config.json, or {} when there is none; a broken one is reported and ignored."""
        if self._config is None:
            self._config = self.read_config()
        return self._config

    def read_config(self) -> dict[str, Any]:
        """The same, as it is now; `config_broken` tells whether it is one."""
        path = f"{self.config_directory}/config.json"
        try:
            with open(path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return {}
        except OSError as exc:
            self.config_broken = True
            from wherry.cli.console import warn

            warn(f"WARNING: Error loading config file: open {path}: {(exc.strerror or '').lower()}")
            return {}
        from wherry.cli.console import warn
        from wherry.client.jsontext import JSONError, loads

        try:
            config = loads(data)
        except JSONError as exc:
            self.config_broken = True
            warn(f"WARNING: Error loading config file: {path}: {exc}")
            return {}
        if not isinstance(config, dict):
            self.config_broken = True
            warn(f"WARNING: Error loading config file: {path}: it holds no JSON object")
            return {}
        return config

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            self._engine = self._connect()
        return self._engine

    def another_engine(self) -> Engine:
        """A second client of the same engine, for a call that runs beside others."""
        return self._connect()

    def _connect(self) -> Engine:
        from wherry.cli.console import Failure
        from wherry.client.endpoint import EndpointError, find_endpoint
        from wherry.client.engine import Engine

        hosts = self.globals.texts("host")
        if len(hosts) > 1:
            raise Failure("Failed to initialize: Specify only one -H")
        try:
            endpoint = find_endpoint(
                hosts[0] if hosts else None,
                self.environ,
                tls=self.globals.on("tls"),
                tls_verify=self.globals.on("tlsverify") if "tlsverify" in self.globals.changed else None,
                ca=self.globals.text("tlscacert") or None,
                cert=self.globals.text("tlscert") or None,
                key=self.globals.text("tlskey") or None,
            )
        except EndpointError as exc:
            raise Failure(f"Failed to initialize: unable to resolve docker endpoint: {exc}") from None
        headers = self.config.get("HttpHeaders")
        engine = Engine(
            endpoint,
            version=self.environ.get("DOCKER_API_VERSION") or None,
            headers=headers if isinstance(headers, dict) else None,
        )
        self._connected.append(engine)
        return engine

    def platform(self, flags: Flags) -> str | None:
        """--platform, else DOCKER_DEFAULT_PLATFORM."""
        return (flags.text("platform") or self.environ.get("DOCKER_DEFAULT_PLATFORM") or "").lower() or None

    def close(self) -> None:
        """Let go of every connection that is kept."""
        for engine in self._connected:
            engine.close()


def environment() -> dict[str, str]:
    return dict(os.environ)
