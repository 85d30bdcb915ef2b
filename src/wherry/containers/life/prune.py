"""prune: remove every container that does not run."""

import logging
import time

from wherry.containers.deps import Deps
from wherry.containers.life.remove import remove_locked
from wherry.containers.record import Container, Status
from wherry.containers.views.listing import measure
from wherry.containers.views.shapes import Document
from wherry.containers.views.times import parse_time
from wherry.errors import InvalidParameter, WherryError
from wherry.events import Event
from wherry.filters import NONE, Filters

log = logging.getLogger(__name__)

FILTERS = ("label", "label!", "until")
PRUNABLE = frozenset({Status.CREATED, Status.EXITED, Status.DEAD})


async def prune(deps: Deps, filters: Filters = NONE) -> Document:
    """Remove what does not run and passes the filters; containers that cannot be removed are logged and left."""
    filters.check(FILTERS)
    until = _until(filters)
    deleted: list[str] = []
    reclaimed = 0
    for container in deps.store.all():
        if not _wanted(container, filters, until):
            continue
        size = (await measure(deps, container))["SizeRw"]
        try:
            async with deps.locks(container.id):
                if deps.store.get(container.id) is None or not _wanted(container, filters, until):
                    continue
                await remove_locked(deps, container, volumes=False)
        except WherryError as exc:
            log.warning("container %s is not pruned: %s", container.name, exc.message)
            continue
        deleted.append(container.id)
        reclaimed += size if isinstance(size, int) else 0
    deps.events.publish(Event(type="container", action="prune", actor="", attributes={"reclaimed": str(reclaimed)}))
    return {"ContainersDeleted": deleted or None, "SpaceReclaimed": reclaimed}


def _wanted(container: Container, filters: Filters, until: int | None) -> bool:
    labels = container.config.labels
    return (
        container.complete
        and container.state.status in PRUNABLE
        and filters.labels(labels)
        and filters.without_labels(labels)
        and (until is None or container.created < until)
    )


def _until(filters: Filters) -> int | None:
    values = filters.get("until")
    if len(values) > 1:
        raise InvalidParameter("more than one until filter specified")
    return parse_time(values[0], now=time.time_ns()) if values else None
