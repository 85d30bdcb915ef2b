"""What the engine answers itself, from its table of names. Pure.

As Docker's resolver: A and AAAA of known names, nothing (without an error) for a family they lack, and for their MX so
that mail goes to the address; PTR of known addresses. Everything else is for other servers: None.
"""

import socket
from collections.abc import Mapping

from wherry.network.dns.message import (
    INTERNET,
    MESSAGE_LIMIT,
    OPCODE,
    Code,
    Query,
    Type,
    address_of,
    build,
    encode_name,
)
from wherry.network.dns.names import Names, View

FAMILIES: Mapping[int, tuple[int, int]] = {Type.A: (4, socket.AF_INET), Type.AAAA: (6, socket.AF_INET6)}


def answer(names: Names, view: View, query: Query, *, limit: int = MESSAGE_LIMIT) -> bytes | None:
    if query.flags & OPCODE or query.category != INTERNET:
        return build(query, Code.NOT_IMPLEMENTED)
    if query.kind in FAMILIES:
        version, family = FAMILIES[query.kind]
        found = names.lookup(view, query.name, version)
        if found is None:
            return None
        return build(query, Code.NO_ERROR, [(query.kind, socket.inet_pton(family, one)) for one in found], limit=limit)
    if query.kind == Type.PTR:
        address = address_of(query.name)
        name = encode_name(names.reverse(view, address) or "") if address else b""
        return build(query, Code.NO_ERROR, [(Type.PTR, name)], limit=limit) if name else None
    if query.kind == Type.MX and names.lookup(view, query.name, 4) is not None:
        return build(query, Code.NO_ERROR)
    return None
