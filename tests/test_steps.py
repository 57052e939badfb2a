"""Steps: long work between whose parts the loop turns."""

import asyncio
from collections.abc import Iterator

import pytest

from sse_app.steps import Budget, outside_tasks, slices
from tests.support.peers import turns, until


async def test_the_loop_turns_between_two_steps_and_no_step_is_in_a_task() -> None:
    seen: list[object] = []

    def steps() -> Iterator[None]:
        for _ in range(3):
            seen.append(asyncio.current_task())
            asyncio.get_running_loop().call_soon(seen.append, "turn")
            yield

    await outside_tasks(steps())
    assert seen == [None, "turn", None, "turn", None, "turn"]


async def test_an_error_is_that_of_who_waits() -> None:
    def steps() -> Iterator[None]:
        yield
        raise KeyError

    with pytest.raises(KeyError):
        await outside_tasks(steps())


async def test_a_step_may_end_what_waits_for_it() -> None:
    errors: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))

    def steps(error: Exception | None) -> Iterator[None]:
        waiting.cancel()
        if error is not None:
            raise error
        return
        yield

    for error in (None, KeyError()):
        waiting = asyncio.create_task(outside_tasks(steps(error)))
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await turns()
    assert errors == []


async def test_no_step_is_taken_once_nobody_waits() -> None:
    taken = 0

    def steps() -> Iterator[None]:
        nonlocal taken
        while True:
            taken += 1
            yield

    waiting = asyncio.create_task(outside_tasks(steps()))
    await until(lambda: taken > 0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    before = taken
    await turns()
    assert taken == before


def test_a_step_is_full_when_its_units_are_spent_and_the_next_one_begins_anew() -> None:
    budget = Budget(10)
    assert [budget.spend(4) for _ in range(6)] == [False, False, True, False, False, True]
    assert budget.spend(1_000), "what is too large for a step fills one"
    assert not budget.spend(9)
    assert budget.spend(1)


def test_slices_hold_everything_in_order() -> None:
    assert list(slices(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(slices(iter("ab"), 3)) == [["a", "b"]]
    assert list(slices([], 3)) == []
