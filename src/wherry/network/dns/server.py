"""The resolver at 127.0.0.11 of every container on a network of the user's. Used from the event loop only.

No process, no thread and two descriptors for a container. See `station.py` for what it does with a question.
"""

import asyncio
import socket

from wherry.aio import acquire
from wherry.kernel.netns import in_netns
from wherry.network.dns.desk import ContainerDesk
from wherry.network.dns.gate import Gate
from wherry.network.dns.host import Networks, open_host_station
from wherry.network.dns.names import Names, View
from wherry.network.dns.redirect import listen
from wherry.network.dns.sockets import Sockets
from wherry.network.dns.station import Flood, Station
from wherry.network.dns.upstream import AT_ONCE, Upstream
from wherry.network.endpoint import NameServers
from wherry.network.places import Namespace


class Resolver:
    """`networks` lists id and name of all there are, for the host's own questions."""

    def __init__(self, names: Names, networks: Networks) -> None:
        self._names = names
        self._networks = networks
        self._served: dict[str, tuple[Station, ContainerDesk, socket.socket]] = {}  # by container id
        self._sockets = Sockets()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._flood = Flood()
        self._host: Station | None = None

    async def open(
        self, container_id: str, namespace: Namespace, view: View, upstream: NameServers, gate: Gate | None = None
    ) -> None:
        """Serve a namespace, which need not stay open here. Idempotent: also what a daemon before this one left there
        is replaced. Raises OSError, Failed; then nothing is served."""
        await self.close(container_id)
        sockets = await acquire(in_netns, namespace.fd, listen)
        desk = ContainerDesk(self._names, view=view, upstream=self._upstream(upstream, sockets.udp), gate=gate)
        station = Station(desk, sockets, self._flood)
        try:
            await station.open()
        except BaseException:
            await station.close()
            raise
        self._served[container_id] = station, desk, sockets.udp

    def _upstream(self, given: NameServers, beside: socket.socket) -> Upstream:
        return Upstream(given, beside, self._sockets, self._slots)

    def serves(self, container_id: str) -> bool:
        return container_id in self._served

    async def update(self, container_id: str, *, view: View, upstream: NameServers) -> None:
        """What the next question meets. Nothing for who is not served."""
        if container_id in self._served:
            _, desk, beside = self._served[container_id]
            desk.view, desk.upstream = view, self._upstream(upstream, beside)

    async def close(self, container_id: str) -> None:
        """Idempotent. The rules in the namespace stay: they go with it."""
        if container_id in self._served:
            await self._served.pop(container_id)[0].close()

    async def close_all(self) -> None:
        for container_id in tuple(self._served):
            await self.close(container_id)
        if self._host is not None:
            await self._host.close()
            self._host = None
        self._sockets.close()

    async def serve_host(self, address: str) -> None:
        """Answer the host's own questions at `address`, `127.0.0.153:53`; "" = nowhere.

        Raises InvalidParameter, Failed.
        """
        if self._host is not None:
            await self._host.close()
            self._host = None
        if address:
            self._host = await open_host_station(self._names, self._networks, address)
