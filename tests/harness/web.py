"""Files served by HTTP on the loopback of a box."""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from .box import Box


@contextlib.contextmanager
def web_server(box: Box, root: Path, port: int = 8123) -> Iterator[str]:
    """The files of `root`, at the address that is valid inside the box."""
    argv = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(root)]
    process = box.spawn(argv, log=root.parent / "web.log", net_only=True)
    try:
        until = time.monotonic() + 30
        while f":{port:04X} 00000000:0000 0A" not in Path(f"/proc/{box.holder}/net/tcp").read_text():
            assert time.monotonic() < until, "the web server does not listen"
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)
