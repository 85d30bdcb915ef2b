"""A proxy that cuts connections at a byte it is told. `CuttingProxy` runs it in a box; run by path it is the process:
`cutting_proxy.py PORT TARGET-PORT SOCKET`.

What is for PORT goes to TARGET-PORT, both on 127.0.0.1, and is cut when that was ordered; what comes through SOCKET
goes there, too, and is never cut, so that tests reach the target from outside of the box.

An order is a line on its standard input, `NUMBER DIRECTION BYTES HOW`: after so many more bytes of `client` or `server`
to be passed on, `reset` or `close` every connection, or only `tell`. Then it prints `reached NUMBER`. A new order takes
the old one's place. The process ends with its standard input.
"""

import asyncio
import contextlib
import select
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:  # run by path there is no package around it
    from .box import Box

PIECE = 64 << 10  # bytes passed on at a time
NEVER = 1 << 60  # bytes


class CuttingProxy:
    """The proxy as a process of the box; `socket` is the way around the cuts."""

    def __init__(self, box: "Box", root: Path, *, port: int, target: int) -> None:
        self.socket = root / "registry.sock"
        self.address = f"127.0.0.1:{port}"
        self._argv = box.command(
            [sys.executable, "-I", __file__, str(port), str(target), str(self.socket)], net_only=True
        )
        self._number = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        if self._line(30) != "ready":
            self.__exit__(None, None, None)
            raise RuntimeError("the proxy did not start: see the message above")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def order(self, direction: str, after: int, how: str) -> None:
        assert self._process.stdin is not None
        self._number += 1
        self._process.stdin.write(f"{self._number} {direction} {after} {how}\n".encode())

    def nothing(self) -> None:
        """No order any more."""
        self.order("client", NEVER, "tell")

    def reached(self, timeout: float) -> bool:
        """Whether the last order was carried out within so many seconds."""
        until = time.monotonic() + timeout
        while line := self._line(max(until - time.monotonic(), 0)):
            if line == f"reached {self._number}":
                return True
        return False

    def _line(self, timeout: float) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout)
        if not ready:
            return ""
        line = self._process.stdout.readline().decode().strip()
        assert line, "the proxy is gone"
        return line


# -- the process -------------------------------------------------------------------------------------------------------


@dataclass
class Order:
    number: int
    direction: str
    left: int  # bytes
    how: str


class Proxy:
    def __init__(self, target: int) -> None:
        self._target = target
        self._order: Order | None = None
        self._writers: set[asyncio.StreamWriter] = set()  # of what may be cut, both ends

    def take(self, line: str) -> None:
        number, direction, left, how = line.split()
        self._order = Order(int(number), direction, int(left), how)

    async def cut(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._serve(reader, writer, may_be_cut=True)

    async def spare(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._serve(reader, writer, may_be_cut=False)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, may_be_cut: bool) -> None:
        ends = [writer]
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
            ends.append(far_writer)
            if may_be_cut:
                self._writers.update(ends)
            await asyncio.gather(
                self._pass(reader, far_writer, "client" if may_be_cut else ""),
                self._pass(far_reader, writer, "server" if may_be_cut else ""),
            )
        except OSError:
            pass  # the target is not there, or a connection broke: so it is for the other end
        finally:
            self._writers.difference_update(ends)
            for end in ends:
                end.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str) -> None:
        try:
            while data := await reader.read(PIECE):
                order = self._order
                if order is not None and order.direction == direction:
                    first, data = data[: order.left], data[order.left :]
                    order.left -= len(first)
                    writer.write(first)
                    if not order.left and not self._carry_out(order):
                        return
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()

    def _carry_out(self, order: Order) -> bool:
        """False when the connections are no more."""
        self._order = None
        for writer in list(self._writers) if order.how != "tell" else ():
            if order.how == "reset":
                with contextlib.suppress(OSError):  # linger for no time: an RST
                    linger = struct.pack("ii", 1, 0)
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
            else:
                writer.close()
        print("reached", order.number, flush=True)
        return order.how == "tell"


async def main(port: int, target: int, path: str) -> None:
    proxy = Proxy(target)
    orders = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    async with (
        await asyncio.start_server(proxy.cut, "127.0.0.1", port),
        await asyncio.start_unix_server(proxy.spare, path),
    ):
        print("ready", flush=True)
        while line := await orders.readline():
            proxy.take(line.decode())


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
