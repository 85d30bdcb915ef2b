"""Progress messages of pull, load and import: the lines of Docker's JSON stream, as dicts."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

Progress = Callable[[dict[str, object]], None]

INTERVAL = 0.1  # seconds between two messages about the same bar
BAR = 50  # characters

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def human_size(size: float) -> str:
    """`1.234MB`: four significant digits, powers of 1000, as Docker's go-units."""
    unit = 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size /= 1000
        unit += 1
    return f"{size:.4g}{_UNITS[unit]}"


def bar(current: int, total: int) -> str:
    """`[====>    ]  1.2MB/3MB`; only the number when the total is not known or wrong."""
    if total <= 0 or current > total:
        return f"{human_size(current):>8}"
    done = BAR * current // total
    return f"[{'=' * done}>{' ' * (BAR - done)}] {human_size(current):>8}/{human_size(total)}"


@dataclass(slots=True)
class Bar:
    """The line of one layer on a client's screen."""

    tell: Progress
    id: str
    _last: float = field(default=0.0)
    _complete: str = field(default="")  # the state that was last shown as complete

    def say(self, status: str) -> None:
        """A state without numbers."""
        self.tell({"status": status, "progressDetail": {}, "id": self.id})

    def show(self, status: str, current: int, total: int) -> None:
        """A state with numbers; left out when the last one was a moment ago, unless it is complete.

        `total` is 0 when nobody knows it.
        """
        now = time.monotonic()
        complete = 0 < total <= current
        if self._complete == status if complete else now - self._last < INTERVAL:
            return
        self._last = now
        self._complete = status if complete else ""
        detail = {"current": current, "total": total} if total > 0 else {"current": current}
        self.tell({"status": status, "progressDetail": detail, "progress": bar(current, total), "id": self.id})


def quiet(message: dict[str, object]) -> None:
    """Says nothing."""
