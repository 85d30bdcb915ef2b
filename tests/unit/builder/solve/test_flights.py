"""One run for all who want it."""

import asyncio
from collections.abc import Callable

import pytest

from wherry.builder.solve.flights import Flights


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Work:
    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0
        self.go = asyncio.Event()

    async def __call__(self, say: Callable[[str], None]) -> str:
        self.begun += 1
        say("begun")
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        say("done")
        return "result"


async def test_two_who_want_the_same_get_one_run_and_all_of_its_output() -> None:
    flights: Flights[str, str] = Flights()
    work, heard = Work(), {1: [], 2: []}  # type: ignore[var-annotated]
    one = asyncio.create_task(flights.join("k", work, heard[1].append))
    await turns()
    two = asyncio.create_task(flights.join("k", work, heard[2].append))
    await turns()
    work.go.set()
    assert [await one, await two] == ["result", "result"]
    assert work.begun == 1
    assert heard == {1: ["begun", "done"], 2: ["begun", "done"]}
    assert not flights.is_under_way("k")


async def test_it_goes_on_while_one_of_them_waits() -> None:
    flights: Flights[str, str] = Flights()
    work = Work()
    first = asyncio.create_task(flights.join("k", work, lambda event: None))
    second = asyncio.create_task(flights.join("k", work, lambda event: None))
    await turns()
    first.cancel()
    await turns()
    assert work.cancelled == 0
    work.go.set()
    assert await second == "result"
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_the_last_to_leave_ends_it_before_it_has_left() -> None:
    flights: Flights[str, str] = Flights()
    work = Work()
    alone = asyncio.create_task(flights.join("k", work, lambda event: None))
    await turns()
    alone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await alone
    assert work.cancelled == 1
    assert not flights.is_under_way("k")


async def test_a_failure_is_everybodys_and_the_next_begins_anew() -> None:
    flights: Flights[str, str] = Flights()
    calls = 0

    async def fail(say: Callable[[str], None]) -> str:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        raise ValueError("no")

    both = await asyncio.gather(
        *(flights.join("k", fail, lambda event: None) for _ in range(2)), return_exceptions=True
    )
    assert [type(each) for each in both] == [ValueError, ValueError]
    assert calls == 1
    with pytest.raises(ValueError, match="no"):
        await flights.join("k", fail, lambda event: None)
    assert calls == 2


async def test_other_keys_are_other_runs() -> None:
    flights: Flights[str, str] = Flights()
    work = Work()
    work.go.set()
    await asyncio.gather(*(flights.join(key, work, lambda event: None) for key in ("a", "b")))
    assert work.begun == 2
