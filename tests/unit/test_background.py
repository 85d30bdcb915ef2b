import warnings

from wherry.aio import Background


async def test_work_that_is_cancelled_before_it_begins_is_closed_quietly() -> None:
    begun = []

    async def work() -> None:
        begun.append(True)

    background = Background()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task = background.spawn(work(), name="late")
        await background.close()
        del task
    assert begun == []
    assert caught == []
