"""`wherry registry …`: commands around a registry of its own, on a folder.

serve   from command line to a served port, and back down on SIGTERM
"""

import asyncio
import errno
import logging
import resource
import signal
import ssl
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop
from aiohttp import web
from aiohttp.abc import AbstractAccessLogger
from aiohttp.http_exceptions import HttpProcessingError

from wherry.aio import Background, settle
from wherry.errors import Failed, WherryError
from wherry.registry import admin
from wherry.registry.admin import serve_admin
from wherry.registry.config import Address, Config, parse_address, parse_serve
from wherry.registry.folder import FolderStore, open_folder
from wherry.registry.lock import FolderLock
from wherry.registry.policies import (
    Collector,
    Policies,
    follow_certificate,
    open_policies,
    server_context,
)
from wherry.registry.server import build_app
from wherry.registry.store import RegistryStore

log = logging.getLogger("wherry.registry")

GRACE = 5.0  # s that requests under way may take when the registry is told to stop
READ_BUFFER = 256 << 10  # bytes of a request's body held before the socket is left to fill
TIDY = 3600.0  # s between looks for uploads nobody went on with


def main(argv: Sequence[str]) -> int:
    """Run one command; returns the exit code. What is wrong is said on stderr."""
    try:
        if not argv or argv[0] in ("-h", "--help"):
            print(_usage())
            return 0
        if argv[0] not in COMMANDS:
            print(f"wherry registry: no such command: {argv[0]}\n\n{_usage()}", file=sys.stderr)
            return 1
        return COMMANDS[argv[0]][0](argv[1:])
    except SystemExit as exc:  # argparse, after --help
        return exc.code if isinstance(exc.code, int) else 1
    except WherryError as exc:
        print(f"wherry registry: {exc.message}", file=sys.stderr)
        return 1


def _usage() -> str:
    lines = [f"  {name:12}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["Usage:  wherry registry COMMAND [OPTIONS]", "", "Commands:", *lines])


def serve(argv: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT."""
    config, validate = parse_serve(argv)
    if validate:
        print("configuration OK")
        return 0
    set_up_logging(config)
    _raise_file_limit()
    uvloop.run(_run(config, lambda: parse_serve(argv)[0]))
    return 0


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "serve": (serve, "Serve a registry from a folder"),
    "gc": (admin.gc, "Delete what nothing in the registry needs any more"),
    "retention": (admin.retention, "Remove the tags that had their time"),
}


def set_up_logging(config: Config) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level={"warn": "warning"}.get(config.log_level, config.log_level).upper(),
        format='time="%(asctime)s" level=%(levelname)s room=%(name)s msg="%(message)s"',
        datefmt="%Y-%m-%dT%H:%M:%S%z",
    )
    logging.getLogger("asyncio").setLevel(max(logging.WARNING, logging.getLogger().level))
    logging.getLogger("aiohttp.server").addFilter(_is_ours)


def _is_ours(record: logging.LogRecord) -> bool:
    """False for what is no HTTP at all: anybody who knocks could fill the log with it."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def _raise_file_limit() -> None:
    """A descriptor or more for every client and upload: take all that we may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _run(config: Config, again: Callable[[], Config]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    root = Path(config.root).absolute()
    async with AsyncExitStack() as down:
        lock = FolderLock(root)
        down.callback(lock.release)
        store = await settle(open_folder, root)
        down.push_async_callback(store.close)
        background = Background()
        down.push_async_callback(background.close)
        policies, places = await open_server(config, store, store, background, down)
        loop.add_signal_handler(signal.SIGHUP, _reload, policies, again)
        for address in places:
            log.info("registry on %s listens on http%s://%s", root, "s" if config.tls else "", address)
        await stop.wait()
        log.info("stopping")


def _reload(policies: Policies, again: Callable[[], Config]) -> None:
    """SIGHUP: follow the configuration; one that cannot be used is not followed."""
    try:
        policies.reload(again())
        log.info("the configuration was read again")
    except WherryError as exc:
        log.error("the configuration is not followed: %s", exc.message)


async def open_server(
    config: Config,
    store: RegistryStore,
    folder: FolderStore,
    background: Background,
    down: AsyncExitStack,
    *,
    collector: Collector | None = None,
) -> tuple[Policies, list[Address]]:
    """Serve `store` as `config` says until `down` is unwound; its policies, and where it listens.

    `folder`: what of the store is rows and uploads of the registry's own; all of it, when it stands alone. `collector`
    when the bytes are not the folder's alone.
    """
    policies = await open_policies(config, store, folder, background, collector=collector)
    context = None
    if config.tls is not None:
        context = await settle(server_context, config.tls)
        background.spawn(follow_certificate(context, config.tls), name="the registry's certificate")
    background.spawn(_tidy(folder), name="uploads that expired")
    hooks = policies.hooks()
    app = build_app(store, hooks=hooks)
    policies.add_to(app, hooks)
    await serve_admin(policies, Path(config.root), down)
    return policies, await listen(app, [parse_address(text) for text in config.listen], down, context=context)


async def listen(
    app: web.Application, addresses: Sequence[Address], down: AsyncExitStack, *, context: ssl.SSLContext | None = None
) -> list[Address]:
    """Serve `app`; the addresses with their real ports. `down` ends it, after GRACE at most."""
    runner = web.AppRunner(
        app, access_log_class=DebugLog, access_log=log, read_bufsize=READ_BUFFER, shutdown_timeout=GRACE
    )
    await runner.setup()
    down.push_async_callback(runner.cleanup)
    for address in addresses:
        try:
            await web.TCPSite(runner, address.host or None, address.port, ssl_context=context).start()
        except OSError as exc:
            raise Failed(f"cannot listen on {address}: {_why(exc)}") from exc
    return [Address(str(place[0]), int(place[1])) for place in runner.addresses]


def _why(exc: OSError) -> str:
    if exc.errno == errno.EADDRINUSE:
        return "another program listens there: stop it, or choose another port with --listen"
    if exc.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address"
    if exc.errno == errno.EACCES:
        return "ports below 1024 are root's: choose another one with --listen"
    return exc.strerror or str(exc)


class DebugLog(AbstractAccessLogger):
    """One line for every request, at debug level."""

    @property
    def enabled(self) -> bool:
        return self.logger.isEnabledFor(logging.DEBUG)

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        self.logger.debug(
            "%s %s %s -> %d, %d bytes, %.1f ms",
            request.remote or "",
            request.method,
            request.raw_path,  # as sent: nothing in it can forge a line
            response.status,
            response.body_length,
            time * 1000,
        )


async def _tidy(store: FolderStore) -> None:
    while True:
        if gone := await store.expire_uploads():
            log.info("%d uploads expired", gone)
        await asyncio.sleep(TIDY)
