"""The registry's administration: `gc` and `retention`, on a folder that is at rest or through the server that has it.

    <root>/admin.sock    POST /gc?delete-untagged=1&grace=S&dry-run=1    POST /retention?dry-run=1

The socket is the administrator's alone (mode 0600): whoever may open the folder may ask.
"""

import asyncio
import errno
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from wherry.aio import Background, settle
from wherry.errors import Failed, InvalidParameter
from wherry.registry.config import Config, load, parser
from wherry.registry.folder import open_folder
from wherry.registry.lock import FolderLock
from wherry.registry.policies import Policies, encode, open_policies
from wherry.registry.telling.page import refusing
from wherry.registry.upkeep.collect import GRACE, Collected
from wherry.registry.upkeep.retention import Doomed

SOCKET = "admin.sock"
ANSWER_TIME = 3600.0  # seconds


async def serve_admin(policies: Policies, root: Path, down: AsyncExitStack) -> None:
    """Answer on the folder's socket until `down` is unwound."""
    app = web.Application()

    async def gc(request: web.Request) -> web.Response:
        grace = float(request.query.get("grace", policies.config.gc.grace))
        untagged = request.query.get("delete-untagged", "") == "1" or policies.config.gc.delete_untagged
        found = await policies.collect(
            delete_untagged=untagged, grace=grace, dry_run=request.query.get("dry-run", "") == "1"
        )
        return web.Response(body=encode(found), content_type="application/json")

    async def retention(request: web.Request) -> web.Response:
        found = await policies.retain(dry_run=request.query.get("dry-run", "") == "1")
        return web.Response(body=encode(found), content_type="application/json")

    app.router.add_post("/gc", refusing(gc))
    app.router.add_post("/retention", refusing(retention))
    path = root / SOCKET
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    down.push_async_callback(runner.cleanup)
    await web.SockSite(runner, await settle(_bind, path)).start()


def _bind(path: Path) -> socket.socket:
    """A socket only its owner may connect to, from its first moment on (blocking). Failed."""
    path.unlink(missing_ok=True)  # of a server that was killed: the folder's lock is ours
    made = socket.socket(socket.AF_UNIX)
    try:
        os.fchmod(made.fileno(), 0o600)  # the file gets the mode its socket has
        made.bind(str(path))
    except OSError as exc:
        made.close()
        raise Failed(f"cannot listen on {path}: {exc.strerror or exc}") from exc
    return made


def gc(argv: Sequence[str]) -> int:
    """`wherry registry gc`."""
    made = parser("gc", "Delete what nothing in the registry needs any more; safe while it serves.")
    made.add_argument("--dry-run", action="store_true", help="Tell what would go, and change nothing")
    made.add_argument("--delete-untagged", action="store_true", help="Also manifests that no tag leads to")
    made.add_argument("--grace", type=float, metavar="SECONDS", help=f"Age of what may go (default {GRACE:.0f})")
    made.add_argument("--json", action="store_true", help="Answer with JSON")
    given = vars(made.parse_args(argv))
    config = load(given.pop("config"), {"root": given.pop("root")})
    query = {name.replace("_", "-"): "1" for name in ("dry_run", "delete_untagged") if given[name]}
    if given["grace"] is not None:
        if given["grace"] < 0:
            raise InvalidParameter("--grace cannot be negative")
        query["grace"] = str(given["grace"])
    raw = asyncio.run(_ask(config, "gc", query))
    if given["json"]:
        print(raw.decode())
        return 0
    found = msgspec.json.decode(raw, type=Collected)
    verb = "would be" if given["dry_run"] else "were"
    print(f"{found.manifests} untagged manifests and {found.blobs} unneeded blobs {verb} forgotten")
    print(f"{found.files} files {verb} deleted, {found.bytes} bytes {verb} freed")
    return 0


def retention(argv: Sequence[str]) -> int:
    """`wherry registry retention`."""
    made = parser("retention", "Remove the tags that the retention rules of the configuration do not keep.")
    made.add_argument("--dry-run", action="store_true", help="Tell what would go and why, and change nothing")
    made.add_argument("--json", action="store_true", help="Answer with JSON")
    given = vars(made.parse_args(argv))
    config = load(given.pop("config"), {"root": given.pop("root")})
    if not config.retention:
        raise InvalidParameter("the configuration has no retention rules: nothing to do")
    raw = asyncio.run(_ask(config, "retention", {"dry-run": "1"} if given["dry_run"] else {}))
    if given["json"]:
        print(raw.decode())
        return 0
    doomed = msgspec.json.decode(raw, type=list[Doomed])
    for each in doomed:
        print(f"{each.repository}:{each.tag}\t{each.reason}")
    print(f"{len(doomed)} tags {'would be' if given['dry_run'] else 'were'} removed", file=sys.stderr)
    return 0


async def _ask(config: Config, what: str, query: Mapping[str, str]) -> bytes:
    """The answer of the server that has the folder, or, when it is at rest, of ourselves."""
    root = Path(config.root).absolute()
    if (root / SOCKET).exists() and (answer := await _ask_server(root / SOCKET, what, query)) is not None:
        return answer
    if not (root / "state.db").exists():
        raise InvalidParameter(f"there is no registry at {root}: give its folder with --root")
    lock = FolderLock(root)
    async with AsyncExitStack() as down:
        down.callback(lock.release)
        store = await settle(open_folder, root)
        down.push_async_callback(store.close)
        background = Background()
        down.push_async_callback(background.close)
        policies = await open_policies(_at_rest(config), store, store, background)
        if what == "retention":
            return encode(await policies.retain(dry_run="dry-run" in query))
        found = await policies.collect(
            delete_untagged="delete-untagged" in query,
            grace=float(query.get("grace", config.gc.grace)),
            dry_run="dry-run" in query,
        )
        return encode(found)


def _at_rest(config: Config) -> Config:
    """Nobody signs in, nothing is fetched and nobody is told."""
    changed: dict[str, Any] = {"auth": None, "upstreams": {}, "webhooks": []}
    return msgspec.structs.replace(config, **changed)


async def _ask_server(path: Path, what: str, query: Mapping[str, str]) -> bytes | None:
    """None when nobody listens: a server that was killed leaves its socket behind."""
    timeout = aiohttp.ClientTimeout(total=ANSWER_TIME)
    try:
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path)), timeout=timeout) as session,
            session.post(f"http://registry/{what}", params=query) as answer,
        ):
            body = await answer.read()
    except aiohttp.ClientConnectorError as exc:
        if exc.os_error.errno == errno.ECONNREFUSED:
            return None
        raise Failed(f"cannot ask the registry on {path}: {exc.os_error.strerror}") from exc
    except (aiohttp.ClientError, TimeoutError) as exc:
        raise Failed(f"the registry that has the folder does not answer on {path}: {exc}") from exc
    if answer.status != 200:
        raise Failed(f"the registry answered {answer.status}: {body[:500].decode(errors='replace')}")
    return body
