"""A real browser without a window: Debian's chromium, driven by its DevTools protocol over a pair of pipes.

It can reach the loopback and nothing else.
"""

import asyncio
import base64
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

PATIENCE = 20  # seconds for one answer
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # tests run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-pipe",
)


class Browser:
    """One page. Made by `open_browser`."""

    def __init__(self, reader: asyncio.StreamReader, out: int) -> None:
        self._reader = reader
        self._out = out
        self._number = 0
        self._session = ""
        self.complaints: list[str] = []  # what the page's console said, and what the browser refused to do

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its answer; what is told meanwhile is looked through for complaints."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        async with asyncio.timeout(PATIENCE):
            while True:
                said = json.loads((await self._reader.readuntil(b"\0"))[:-1])
                if said.get("id") == self._number:
                    assert "error" not in said, said["error"]
                    return dict(said["result"])
                self._hear(said)

    def _hear(self, said: dict[str, Any]) -> None:
        match said.get("method"):
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(said["params"]))
            case "Log.entryAdded" if "status of 401" not in said["params"]["entry"]["text"]:
                self.complaints.append(said["params"]["entry"]["text"])

    async def attach(self) -> None:
        target = await self.send("Target.createTarget", url="about:blank")
        attached = await self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            await self.send(f"{domain}.enable")

    async def open(self, url: str) -> None:
        await self.send("Page.navigate", url=url)

    async def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited when it is a promise."""
        answer = await self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, script: str) -> None:
        """Wait until there is a page and `script` is true of it."""
        async with asyncio.timeout(PATIENCE):
            while not await self.evaluate(f"Boolean(document.body && ({script}))"):  # noqa: ASYNC110 - the page tells nobody
                await asyncio.sleep(0.02)

    async def text(self) -> str:
        return str(await self.evaluate("document.body.innerText"))

    async def photograph(self, path: Path) -> None:
        picture = await self.send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(picture["data"]))


@asynccontextmanager
async def open_browser(folder: Path) -> AsyncIterator[Browser]:
    """A browser with its profile in `folder`; ended, with all its processes, when left."""
    commands, command_out = os.pipe()
    answer_in, answers = os.pipe()
    script = f'exec chromium "$@" 3<&{commands} 4>&{answers}'
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", script, "chromium", *FLAGS, f"--user-data-dir={folder}", "about:blank"),
        pass_fds=(commands, answers),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
    )
    os.close(commands)
    os.close(answers)
    reader = asyncio.StreamReader(limit=64 << 20)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(answer_in, "rb", 0)
    )
    try:
        browser = Browser(reader, command_out)
        await browser.attach()
        yield browser
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        transport.close()
        os.close(command_out)
