"""Trouble on a running container's link: latency, loss, a slow line, or none at all.

It acts on what leaves either end of the link, so in both directions: a latency of 100 ms makes a round trip 200 ms
longer. Where the driver has no end on the host (macvlan, ipvlan) only what leaves the container is troubled.
The kernel keeps it with the interface: it ends with the container, outlasts the daemon, and is read from there.
Blocking.
"""

import errno
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from wherry.errors import Failed, InvalidParameter, NotSupported
from wherry.kernel import netlink, traffic
from wherry.kernel.netlink import Link, Netlink
from wherry.kernel.traffic import Discipline
from wherry.network.places import Namespace, Place

LONGEST = 3_600_000_000_000  # ns
SLOWEST, FASTEST = 8, 10**13  # bits/s
KERNEL_OPTIONS = {"netem": "CONFIG_NET_SCH_NETEM", "tbf": "CONFIG_NET_SCH_TBF", "blackhole": "CONFIG_NET_SCHED"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    latency: int = 0  # ns, one way
    jitter: int = 0  # ns, by which the latency varies
    loss: float = 0.0  # percent of the packets
    rate: int = 0  # bits/s; 0 = unlimited
    partition: bool = False  # nothing passes


NONE = Trouble()


def check(trouble: Trouble) -> None:
    """Raises InvalidParameter."""
    if not 0 <= trouble.latency <= LONGEST or not 0 <= trouble.jitter <= LONGEST:
        raise InvalidParameter("invalid latency or jitter: not between 0 and an hour")
    if trouble.jitter > trouble.latency:
        raise InvalidParameter("invalid jitter: it is how far the latency varies, and cannot be more than that")
    if not (math.isfinite(trouble.loss) and 0 <= trouble.loss <= 100):
        raise InvalidParameter(f"invalid loss {trouble.loss}: not between 0 and 100 percent")
    if trouble.rate and not SLOWEST <= trouble.rate <= FASTEST:
        raise InvalidParameter(f"invalid rate {trouble.rate}: not between {SLOWEST} and {FASTEST} bits a second")


def set_trouble(namespace: Namespace, place: Place, trouble: Trouble) -> None:
    """In the place of what was set before; `NONE` is `clear`. When it raises the link has no trouble.

    Raises InvalidParameter, NotSupported (naming what the kernel lacks), Failed, OSError.
    """
    check(trouble)
    discipline = _discipline(trouble)
    if discipline is None:
        clear(namespace, place)
        return
    with _ends(namespace, place) as ends, ExitStack() as undo:
        for nl, link in ends:
            undo.callback(traffic.delete, nl, link.index, link.name)
            try:
                nl.transact(traffic.put(link.index, link.name, discipline, mtu=link.mtu))
            except OSError as exc:
                if exc.errno == errno.ENOENT:  # no such discipline
                    raise _unsupported(discipline.kind, trouble) from exc
                raise
        undo.pop_all()


def _discipline(trouble: Trouble) -> Discipline | None:
    """What troubles the link so; the simplest there is, for kernels lack the others."""
    rate = max(trouble.rate // 8, 1) if trouble.rate else 0
    if trouble.partition or trouble.loss == 100:
        return Discipline(kind="blackhole")
    if trouble.latency or trouble.loss:
        return Discipline(kind="netem", latency=trouble.latency, jitter=trouble.jitter, loss=trouble.loss, rate=rate)
    return Discipline(kind="tbf", rate=rate) if rate else None


def _unsupported(kind: str, trouble: Trouble) -> NotSupported:
    wanted = [word for word in ("latency", "loss", "rate") if getattr(trouble, word)]
    return NotSupported(
        f"{' and '.join(wanted)} on a link needs the kernel's module sch_{kind} ({KERNEL_OPTIONS[kind]}), which this "
        f"host does not have: install or load it (modprobe sch_{kind})"
    )


def trouble_of(namespace: Namespace, place: Place) -> Trouble:
    """What was set; somebody else's discipline is none of ours. Raises Failed, OSError."""
    with _ends(namespace, place) as ends:
        nl, link = ends[0]
        found = traffic.find(nl, link.index)
    if found is None:
        return NONE
    return Trouble(
        latency=found.latency,
        jitter=found.jitter,
        loss=found.loss,
        rate=found.rate * 8,
        partition=found.kind == "blackhole",
    )


def clear(namespace: Namespace, place: Place) -> None:
    """Idempotent. Raises Failed, OSError."""
    with _ends(namespace, place) as ends:
        for nl, link in ends:
            traffic.delete(nl, link.index, link.name)


@contextmanager
def _ends(namespace: Namespace, place: Place) -> Iterator[list[tuple[Netlink, Link]]]:
    """The link's ends: in the container, and the host's where there is one."""
    with Netlink() as nl:
        inside = netlink.find_link(namespace.netlink, place.interface)
        if inside is None:
            raise Failed(f"no interface {place.interface} in the container: it was taken away or renamed from inside")
        host = netlink.find_link(nl, place.host_name)
        yield [(namespace.netlink, inside), *([(nl, host)] if host is not None else [])]
