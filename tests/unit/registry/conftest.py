"""A registry on a folder, served on the loopback in this process."""

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

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
    refusal: Exception | None = None  # of the next before_write

    async def authorise(self, request: aiohttp.web.Request, wanted: list[Access]) -> str:
        self.wanted.append(list(wanted))
        return "alice"

    async def before_write(self, repository: str, size: int) -> None:
        self.written.append((repository, size))
        if self.refusal is not None:
            raise self.refusal

    async def ask(self, method: str, path: str, **kwargs: object) -> tuple[int, bytes]:
        if isinstance(data := kwargs.get("data"), bytes):
            kwargs["data"] = io.BytesIO(data)
        async with self.session.request(method, self.url + path, **kwargs) as answer:  # type: ignore[arg-type]
            return answer.status, await answer.read()


@asynccontextmanager
async def serving(root: Path, **options: float) -> AsyncIterator[Served]:
    store = open_folder(root)
    async with aiohttp.ClientSession() as session:
        made = Served(store, session)
        hooks = Hooks(authorise=made.authorise, before_write=made.before_write, happened=made.happened.append)
        async with TestServer(build_app(store, hooks=hooks, **options)) as server:
            made.url = str(server.make_url("")).rstrip("/")
            yield made
    await store.close()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path / "registry") as made:
        yield made


@pytest.fixture
async def impatient(tmp_path: Path) -> AsyncIterator[Served]:
    """Gives clients up after a tenth of a second."""
    async with serving(tmp_path / "registry", stall=0.1) as made:
        yield made
