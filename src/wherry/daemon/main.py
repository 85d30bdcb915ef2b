"""`wherry daemon`: from command line to a served socket, and back down on SIGTERM with all containers left running."""

import asyncio
import logging
import os
import resource
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from wherry.api import listeners, routes
from wherry.api.tls import server_context
from wherry.daemon.config import DEFAULT_HOST, Config, parse_command_line
from wherry.daemon.engine import open_engine
from wherry.daemon.lock import PidFile, RootLock
from wherry.daemon.registries import registry_config
from wherry.errors import WherryError

log = logging.getLogger("wherry.daemon")

GRACE = 5.0  # s that requests under way may take when the daemon is told to stop


def main(argv: Sequence[str]) -> int:
    """Run the daemon until it is told to stop; returns the exit code. Errors of configuration are said on stderr."""
    try:
        config, validate = parse_command_line(argv)
        _check(config)
    except WherryError as exc:
        print(f"wherry daemon: {exc.message}", file=sys.stderr)
        return 1
    if validate:
        print("configuration OK")
        return 0
    _set_up_logging(config)
    _raise_file_limit()
    try:
        uvloop.run(_run(config))
    except WherryError as exc:
        log.error("failed to start daemon: %s", exc.message)
        return 1
    return 0


def _check(config: Config) -> None:
    """What other rooms find wrong with their part of the configuration: only their complaints are wanted, as early."""
    registry_config(config, os.environ)
    if config.registry is not None:
        from wherry.registry.config import convert

        convert(config.registry, "registry")


def _set_up_logging(config: Config) -> None:
    level = (
        "debug" if config.debug else {"warn": "warning", "fatal": "critical"}.get(config.log_level, config.log_level)
    )
    logging.basicConfig(
        stream=sys.stderr,
        level=level.upper(),
        format='time="%(asctime)s" level=%(levelname)s room=%(name)s msg="%(message)s"',
        datefmt="%Y-%m-%dT%H:%M:%S%z",
    )
    logging.getLogger("asyncio").setLevel(max(logging.WARNING, logging.getLogger().level))


def _raise_file_limit() -> None:
    """A descriptor or more for every published port, shim and client: take all that we may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _run(config: Config) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(
        signal.SIGHUP, log.info, "SIGHUP: the configuration is read at start only; restart to change"
    )
    places = _listeners(config)
    async with AsyncExitStack() as down:
        data_lock = RootLock(Path(config.data_root))
        down.callback(data_lock.release)
        exec_lock = RootLock(Path(config.exec_root))
        down.callback(exec_lock.release)
        pid_file = PidFile(config.pid_path)
        down.callback(pid_file.remove)
        engine = await open_engine(config)
        down.push_async_callback(engine.close)
        if config.registry is not None:
            from wherry.daemon.own_registry import open_registry  # much code, for who asks for it

            await open_registry(config, engine, down)
        listening = await listeners.serve(routes.build(engine.services), places)
        down.push_async_callback(listening.stop, GRACE)
        for address in listening.addresses:
            log.info("API listen on %s", address)
        await stop.wait()
        log.info("stopping; containers keep running")


def _listeners(config: Config) -> list[listeners.Listener]:
    context = None
    if config.tls or config.tlsverify:
        authority = Path(config.tlscacert) if config.tlsverify else None
        context = server_context(Path(config.tlscert), Path(config.tlskey), authority)
    return [listeners.parse(host, group=config.group, tls=context) for host in config.hosts or [DEFAULT_HOST]]
