"""What was refused, told to people: the daemon's log, and events (type network, action egress_refused).

A container that is refused something usually tries again and again: each destination of each container is told once in
QUIET seconds, and no more than BURST things in that time; how many were left out is said with the next one.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable

from wherry.events import Event, Events
from wherry.ids import short

log = logging.getLogger(__name__)

ACTION = "egress_refused"
QUIET = 60.0  # s
BURST = 60  # told in QUIET seconds
REMEMBERED = 4096  # destinations
NAME_SHOWN = 100  # characters of a refused name: longer ones are data, not names


class RefusalLog:
    """Used from the event loop only."""

    def __init__(self, events: Events, clock: Callable[[], float] = time.monotonic) -> None:
        self._events = events
        self._clock = clock
        self._told: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._since = 0.0
        self._in_burst = 0
        self._left_out = 0
        self.count = 0  # of all refusals there ever were

    def refused(self, container_id: str, container: str, network: tuple[str, str], destination: str, by: str) -> None:
        """`network`: id and name; `by`: "name" or "address"."""
        self.count += 1
        destination = _shown(destination)
        now = self._clock()
        if now - self._told.get((container_id, destination), -QUIET) < QUIET:
            return
        if now - self._since >= QUIET:
            self._since, self._in_burst = now, 0
        if self._in_burst >= BURST:
            self._left_out += 1
            return
        self._in_burst += 1
        self._told[container_id, destination] = now
        self._told.move_to_end((container_id, destination))
        if len(self._told) > REMEMBERED:
            self._told.popitem(last=False)
        others = f" ({self._left_out} other refusals were not told)" if self._left_out else ""
        self._left_out = 0
        log.warning(
            "container %s (%s): its egress policy refused %s on network %s%s",
            container or short(container_id),
            short(container_id),
            destination,
            network[1],
            others,
        )
        attributes = {
            "container": container_id,
            "containerName": container,
            "name": network[1],
            "destination": destination,
            "by": by,
        }
        self._events.publish(Event(type="network", action=ACTION, actor=network[0], attributes=attributes))


def _shown(destination: str) -> str:
    printable = "".join(char if char.isascii() and char.isprintable() else "?" for char in destination)
    return printable if len(printable) <= NAME_SHOWN else f"{printable[:NAME_SHOWN]}..."
