"""A registry on a folder, served on the loopback in this process, with hooks that remember and refuse."""

import io
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

from wherry.registry.errors import Code, Problem
from wherry.registry.folder import FolderStore, open_folder
from wherry.registry.hooks import Access, Happening, Hooks
from wherry.registry.server import build_app


@dataclass
class Served:
    """`url` + "/v2/…"; what the hooks were told is kept."""

    store: FolderStore
    session: aiohttp.ClientSession
    url: str = ""
    happened: list[Happening] = field(default_factory=list)
    wanted: list[list[Access]] = field(default_factory=list)
    written: list[tuple[str, int]] = field(default_factory=list)
    unreadable: set[str] = field(default_factory=set)  # repositories
    refusal: Exception | None = None  # of every write

    async def authorise(self, request: web.Request, wanted: Sequence[Access]) -> str:
        self.wanted.append(list(wanted))
        if any(each.repository in self.unreadable and each.action == "pull" for each in wanted):
            raise Problem(Code.DENIED, "you may not read this")
        return "alice"

    async def before_write(self, repository: str, size: int) -> None:
        self.written.append((repository, size))
        if self.refusal is not None:
            raise self.refusal

    async def ask(self, method: str, path: str, **kwargs: Any) -> tuple[int, bytes]:
        if isinstance(data := kwargs.get("data"), bytes):
            kwargs["data"] = io.BytesIO(data)
        async with self.session.request(method, self.url + path, **kwargs) as answer:
            return answer.status, await answer.read()


@asynccontextmanager
async def serving(root: Path, *, context: ssl.SSLContext | None = None, **options: float) -> AsyncIterator[Served]:
    """With `context` over TLS, and whoever answers is believed."""
    store = open_folder(root)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context is None)) as session:
        made = Served(store, session)
        hooks = Hooks(authorise=made.authorise, before_write=made.before_write, happened=made.happened.append)
        server = TestServer(build_app(store, hooks=hooks, **options), scheme="https" if context else "http")
        await server.start_server(ssl=context)
        made.url = str(server.make_url("")).rstrip("/")
        yield made
        await server.close()
    await store.close()
