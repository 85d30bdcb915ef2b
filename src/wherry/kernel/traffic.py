"""rtnetlink: queueing disciplines, which delay, drop or slow down what leaves an interface (tc-netem(8), tc-tbf(8)).

Only the root discipline of an interface is touched. One that the kernel has no module of is refused with ENOENT.
"""

import errno
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from wherry.kernel.netlink import F_CREATE, F_REPLACE, Message, Netlink, attribute, attributes, string

RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
TCA_KIND, TCA_OPTIONS = 1, 2
ROOT = 0xFFFFFFFF
NETEM_RATE, NETEM_RATE64, NETEM_LATENCY64, NETEM_JITTER64 = 6, 8, 10, 11
TBF_PARAMETERS, TBF_RATE64, TBF_BURST = 1, 4, 6
LINK_LAYER_ETHERNET = 1
NETEM_LIMIT = 20_000  # packets under way: 100 ms at 2 Gbit/s
EVERY = 0xFFFFFFFF  # a probability
TBF_QUEUE = 5  # a queue takes so many parts of a second to send
TBF_BURST_PARTS = 100  # what the kernel's slowest clock sends at once: so many parts of a second

_NETEM = struct.Struct("=IIIIII")  # latency, limit, loss, gap, duplicate, jitter
_NETEM_RATE = struct.Struct("=IiIi")
_RATE = struct.Struct("=BBHhHI")  # cell_log, link layer, overhead, cell_align, smallest packet, bytes/s
_TBF = struct.Struct("=12s12sIII")  # rate, peak rate, limit, buffer, MTU
_LARGEST = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Discipline:
    """The root discipline of an interface, as far as it is one of ours."""

    kind: str  # netem, tbf, blackhole
    latency: int = 0  # ns
    jitter: int = 0  # ns
    loss: float = 0.0  # percent
    rate: int = 0  # bytes/s; 0 = unlimited


def _message(kind: int, flags: int, index: int, rest: bytes, what: str) -> Message:
    return Message(kind, flags, struct.pack("=BxxxiIII", 0, index, 0, ROOT, 0) + rest, what)


def put(index: int, name: str, discipline: Discipline, *, mtu: int) -> Message:
    """In the place of the one that is there. `mtu`: the interface's."""
    rest = attribute(TCA_KIND, string(discipline.kind))
    if discipline.kind == "netem":
        rest += attribute(TCA_OPTIONS, _netem(discipline))
    elif discipline.kind == "tbf":
        rest += attribute(TCA_OPTIONS, _tbf(discipline, mtu))
    return _message(RTM_NEWQDISC, F_CREATE | F_REPLACE, index, rest, f"set discipline {discipline.kind} of {name}")


def _netem(discipline: Discipline) -> bytes:
    loss = min(EVERY, round(discipline.loss / 100 * EVERY))
    options = _NETEM.pack(0, NETEM_LIMIT, loss, 0, 0, 0)
    options += attribute(NETEM_LATENCY64, struct.pack("=q", discipline.latency))
    options += attribute(NETEM_JITTER64, struct.pack("=q", discipline.jitter))
    if discipline.rate:
        options += attribute(NETEM_RATE, _NETEM_RATE.pack(min(discipline.rate, _LARGEST), 0, 0, 0))
        if discipline.rate > _LARGEST:
            options += attribute(NETEM_RATE64, struct.pack("=Q", discipline.rate))
    return options


def _tbf(discipline: Discipline, mtu: int) -> bytes:
    rate = discipline.rate
    burst = min(_LARGEST, max(2 * (mtu + 64), rate // TBF_BURST_PARTS))
    limit = min(_LARGEST, burst + rate // TBF_QUEUE)
    speed = _RATE.pack(0, LINK_LAYER_ETHERNET, 0, 0, 0, min(rate, _LARGEST))
    options = attribute(TBF_PARAMETERS, _TBF.pack(speed, b"", limit, 0, 0))
    options += attribute(TBF_BURST, struct.pack("=I", burst))
    if rate > _LARGEST:
        options += attribute(TBF_RATE64, struct.pack("=Q", rate))
    return options


def delete(nl: Netlink, index: int, name: str) -> None:
    """Back to the kernel's own; idempotent."""
    try:
        nl.transact(_message(RTM_DELQDISC, 0, index, b"", f"delete the discipline of {name}"))
    except OSError as exc:
        if exc.errno not in (errno.ENOENT, errno.EINVAL):  # both: it is the kernel's own
            raise


def find(nl: Netlink, index: int) -> Discipline | None:
    """The interface's root discipline; None when it is none of the kinds of `Discipline`."""
    request = _message(RTM_GETQDISC, 0, index, b"", "list disciplines")
    for body in nl.dump(request):
        _, owner, _, parent, _ = struct.unpack_from("=BxxxiIII", body)
        if owner == index and parent == ROOT:
            return _read(attributes(body[20:]))
    return None


def _read(found: Mapping[int, bytes]) -> Discipline | None:
    kind = found.get(TCA_KIND, b"").rstrip(b"\0").decode(errors="replace")
    options = found.get(TCA_OPTIONS, b"")
    if kind == "blackhole":
        return Discipline(kind=kind)
    if kind == "netem" and len(options) >= _NETEM.size:
        _, _, loss, *_ = _NETEM.unpack_from(options)
        more = attributes(options[_NETEM.size :])
        return Discipline(
            kind=kind,
            latency=_number(more, NETEM_LATENCY64),
            jitter=_number(more, NETEM_JITTER64),
            loss=round(loss / EVERY * 100, 6),
            rate=_number(more, NETEM_RATE64) or _number(more, NETEM_RATE),
        )
    if kind == "tbf":
        more = attributes(options)
        parameters = more.get(TBF_PARAMETERS, b"")
        rate = _RATE.unpack_from(parameters)[-1] if len(parameters) >= _RATE.size else 0
        return Discipline(kind=kind, rate=_number(more, TBF_RATE64) or rate)
    return None


def _number(found: Mapping[int, bytes], kind: int) -> int:
    """The first word of four or eight bytes."""
    data = found.get(kind, b"")
    size = 8 if len(data) == 8 else 4
    return int.from_bytes(data[:size], "little")
