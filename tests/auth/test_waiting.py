import asyncio

import pytest

from sse_app.auth.waiting import Turns, Waiting
from sse_app.errors import Overloaded
from sse_app.testing import run_virtual

pytestmark = pytest.mark.virtual_time


async def test_so_many_wait_at_a_time_and_no_more() -> None:
    waiting, go = Waiting(limit=2), asyncio.Event()

    async def wait() -> None:
        async with waiting.place():
            await go.wait()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(wait())
        tasks.create_task(wait())
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await wait()
        assert waiting.count == 2
        go.set()
    assert waiting.count == 0
    await wait()


async def test_nobody_waits_for_ever() -> None:
    waiting = Waiting(patience=5.0)
    loop = asyncio.get_running_loop()
    with pytest.raises(Overloaded, match="in time"):
        async with waiting.place():
            await asyncio.Event().wait()
    assert loop.time() == pytest.approx(5.0)
    assert waiting.count == 0


async def test_who_is_cancelled_leaves_a_place() -> None:
    waiting = Waiting(limit=1)

    async def wait() -> None:
        async with waiting.place():
            await asyncio.Event().wait()

    task = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert waiting.count == 0


async def count_turns(counts: list[int]) -> None:
    """Append to ``counts`` a 0 in each turn of the loop."""
    while True:
        counts.append(0)
        await asyncio.sleep(0)


async def test_a_turn_of_the_loop_has_room_for_so_much_work() -> None:
    turns, counts = Turns(per_turn=3), [0]
    counting = asyncio.ensure_future(count_turns(counts))

    async def work() -> None:
        await turns.take()
        counts[-1] += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(work())
    counting.cancel()
    assert sum(counts) == 20
    assert max(counts) <= 6  # a turn of the counter may hold the end of one of these and the begin of the next
    assert sum(1 for count in counts if count) >= 20 // 6


async def test_work_is_done_in_the_order_in_which_it_came() -> None:
    turns, done = Turns(per_turn=2), []

    async def work(number: int) -> None:
        await turns.take()
        done.append(number)

    async with asyncio.TaskGroup() as tasks:
        for number in range(15):
            tasks.create_task(work(number))
    assert done == list(range(15))


async def test_who_is_cancelled_while_it_waits_holds_up_nobody() -> None:
    turns, done = Turns(per_turn=1), []

    async def work(number: int) -> None:
        await turns.take()
        done.append(number)

    tasks = [asyncio.ensure_future(work(number)) for number in range(10)]
    await asyncio.sleep(0)
    for task in tasks[1::2]:
        task.cancel()
    await asyncio.wait(tasks)
    assert done == [0, 2, 4, 6, 8]


def test_turns_go_on_in_another_loop() -> None:
    turns = Turns(per_turn=1)

    async def left() -> None:
        waiting = [asyncio.ensure_future(turns.take()) for _ in range(5)]
        await asyncio.sleep(0)
        assert not waiting[-1].done()

    async def fresh() -> None:
        for _ in range(3):
            await turns.take()

    run_virtual(left())
    run_virtual(fresh())
