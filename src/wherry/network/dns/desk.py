"""What one container gets told: by the table of names, else by its name servers, past its egress policy."""

from wherry.network.dns import answers, message
from wherry.network.dns.gate import Gate
from wherry.network.dns.message import Code, MalformedError, Query, Type
from wherry.network.dns.names import Names, View
from wherry.network.dns.upstream import Upstream


class ContainerDesk:
    """`view`, `upstream` and `gate` may be exchanged at any time: the next question meets the new ones."""

    def __init__(self, names: Names, *, view: View, upstream: Upstream, gate: Gate | None) -> None:
        self.view = view
        self.upstream = upstream
        self.gate = gate
        self._names = names

    def answer(self, query: Query, *, limit: int = message.MESSAGE_LIMIT) -> bytes | None:
        return answers.answer(self._names, self.view, query, limit=limit)

    async def inquire(self, query: Query, data: bytes, *, tcp: bool) -> bytes:
        if self._asks_for_search(query):
            return message.build(query, Code.NO_ERROR)
        gate = self.gate if self.gate is not None and self.gate.bound else None
        if gate is not None and not gate.allows(query.name):
            return message.build(query, Code.REFUSED)
        outside = self.view.outside
        reply = await self.upstream.ask(query, data, tcp=tcp, host_only=gate is not None, inside_only=not outside)
        if reply is None:
            return message.build(query, Code.SERVER_FAILURE if outside and self.upstream.asks else Code.NAME_ERROR)
        if gate is not None and not await _admitted(gate, query, reply):
            return message.build(query, Code.REFUSED)
        return reply

    def _asks_for_search(self, query: Query) -> bool:
        """A bare word, where the user said that such are to be completed (ndots): nothing, so that the client does."""
        return bool(self.upstream.options.ndots) and query.kind in (Type.A, Type.AAAA) and "." not in query.name


async def _admitted(gate: Gate, query: Query, reply: bytes) -> bool:
    try:
        return await gate.admit(query.name, message.addresses(reply))
    except MalformedError:
        return False
