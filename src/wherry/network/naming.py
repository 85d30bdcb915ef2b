"""What containers are called, and whom they ask: the table of names and the resolvers, from rows of sandboxes."""

from collections.abc import Callable, Sequence

from wherry.ids import short
from wherry.network import plan
from wherry.network.dns.gate import Gate
from wherry.network.dns.names import Link, Names, View
from wherry.network.dns.server import Resolver
from wherry.network.places import Namespace
from wherry.network.plan import Attachment, Row
from wherry.network.records import BRIDGE


class Naming:
    def __init__(self, networks: Callable[[], Sequence[tuple[str, str]]], gate: Callable[[str], Gate]) -> None:
        """`networks`: id and name of all there are; `gate`: what a container's egress policy says of names."""
        self._names = Names()
        self._resolver = Resolver(self._names, networks)
        self._gate = gate

    async def show(self, container_id: str, row: Row, namespace: Namespace) -> None:
        """Let others find it by name, and give it a resolver when a network of the user's is among its own.

        Idempotent. Who is on no such network any more keeps its resolver: programs have read of it. Raises OSError,
        Failed.
        """
        for attachment in row.attachments:
            self.name(attachment)
        if self.serves(container_id):
            await self.update(container_id, row)
        elif any(each.endpoint.network not in (BRIDGE, "none", "host") for each in row.attachments):
            await self._resolver.open(container_id, namespace, _view(row), row.nameservers, self._gate(container_id))

    def name(self, attachment: Attachment) -> None:
        endpoint = attachment.endpoint
        names = list(dict.fromkeys((*endpoint.names, *endpoint.aliases)))
        self._names.add(endpoint.network_id, endpoint.endpoint_id, names, attachment.addresses)

    def forget(self, attachment: Attachment) -> None:
        """Idempotent."""
        self._names.remove(attachment.network_id, attachment.endpoint.endpoint_id)

    def serves(self, container_id: str) -> bool:
        """Whether it has a resolver."""
        return self._resolver.serves(container_id)

    async def update(self, container_id: str, row: Row) -> None:
        """What its resolver sees from now on. Nothing for who has none."""
        await self._resolver.update(container_id, view=_view(row), upstream=row.nameservers)

    async def hide(self, container_id: str, row: Row) -> None:
        """Idempotent."""
        for attachment in row.attachments:
            self.forget(attachment)
        await self.stop_serving(container_id)

    async def stop_serving(self, container_id: str) -> None:
        """Its resolver goes, its names stay. Idempotent."""
        await self._resolver.close(container_id)

    async def close_all(self) -> None:
        """All resolvers; names stay."""
        await self._resolver.close_all()

    async def serve_host(self, address: str) -> None:
        """Answer the host's questions for names of containers at `address`, 127.0.0.153:53; "" = nowhere."""
        await self._resolver.serve_host(address)


def _view(row: Row) -> View:
    return View(
        networks=[
            (attachment.network_id, attachment.endpoint.network)
            for attachment in row.attachments
            if attachment.endpoint.network != BRIDGE
        ],
        outside=bool(plan.routes(row.attachments)),
        links=[
            Link(network=attachment.network_id, alias=alias, target=short(target))
            for attachment in row.attachments
            for alias, target in attachment.links.items()
        ],
    )
