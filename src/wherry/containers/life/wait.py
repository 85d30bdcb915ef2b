"""wait: learn of a container's next exit, or of its removal."""

import asyncio
from collections.abc import Awaitable

from wherry.containers.deps import Deps
from wherry.containers.live import WaitResult
from wherry.containers.record import Status
from wherry.errors import InvalidParameter


async def register(deps: Deps, name: str, condition: str) -> Awaitable[WaitResult]:
    """Begin to wait; what is returned can be awaited later without missing anything.

    Conditions: `not-running` (at once if it does not run), `next-exit`, `removed`. The waiter outlives the record: a
    `removed` one is resolved after the name is free again.
    """
    container = deps.store.resolve(name)
    live = deps.live_of(container)
    waiter: asyncio.Future[WaitResult] = asyncio.get_running_loop().create_future()
    match condition:
        case "" | "not-running":
            if not container.running and container.state.status is not Status.RESTARTING:
                waiter.set_result(WaitResult(container.state.exit_code, container.state.error or None))
            else:
                live.exit_waiters.add(waiter)
        case "next-exit":
            live.exit_waiters.add(waiter)
        case "removed":
            live.removal_waiters.add(waiter)
        case _:
            raise InvalidParameter(f'invalid condition: "{condition}"')
    waiter.add_done_callback(live.exit_waiters.discard)
    waiter.add_done_callback(live.removal_waiters.discard)
    return waiter
