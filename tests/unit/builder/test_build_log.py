"""The events of a build: every reader hears all of them, within limits of memory."""

import asyncio

from wherry.builder.log import BuildLog, Event, LogEvent, StatusEvent, VertexEvent


async def read(log: BuildLog) -> list[Event]:
    return [event async for batch in log for event in batch]


def output(number: int, size: int = 10) -> LogEvent:
    return LogEvent(vertex="v", stream=1, data=f"{number:0{size}d}".encode(), at=number)


async def test_readers_hear_what_was_and_what_comes_until_the_end() -> None:
    log = BuildLog()
    log.add(VertexEvent(key="v", name="one", started=1))
    early = asyncio.create_task(read(log))
    await asyncio.sleep(0)
    log.add(output(1))
    log.add(StatusEvent(vertex="v", id="x", at=2))
    log.close()
    assert await early == log.events == await read(log)
    assert len(log.events) == 3


async def test_much_output_is_let_go_and_who_missed_it_is_told() -> None:
    sunk: list[Event] = []
    log = BuildLog(sunk.append, kept=35)
    log.add(VertexEvent(key="v", name="one", started=1))
    for number in range(10):
        log.add(output(number))
    log.add(VertexEvent(key="v", name="one", started=1, completed=2))
    log.close()
    heard = await read(log)
    assert len(sunk) == 12
    assert [event.data for event in heard if isinstance(event, LogEvent)] == [
        b"[7 pieces of output came too fast to be shown; the build's record has them]\n",
        *(output(number).data for number in (7, 8, 9)),
    ]
    assert sum(isinstance(event, VertexEvent) for event in heard) == 2


async def test_a_reader_that_keeps_up_misses_nothing() -> None:
    log = BuildLog(kept=15)
    reading = asyncio.create_task(read(log))
    for number in range(50):
        log.add(output(number))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    log.close()
    assert await reading == [output(number) for number in range(50)]
