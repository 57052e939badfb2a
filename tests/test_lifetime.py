"""The lifetime of a hub: what it says before, during and after, and from which thread and loop it may be used."""

import asyncio

import pytest

from sse_app.errors import HubNotStarted
from sse_app.lifetime import NO_LIFESPAN, NOT_STARTED, OTHER_LOOP, OWN_THREAD, STOPPED, Lifetime


def complaint(life: Lifetime) -> str:
    with pytest.raises(HubNotStarted) as refused:
        life.check_started()
    return str(refused.value)


async def test_it_says_what_is_missing() -> None:
    life = Lifetime()
    assert (life.started, life.uptime, complaint(life)) == (False, 0, NOT_STARTED)
    life.lifespan_awaited = True
    assert complaint(life) == NO_LIFESPAN
    life.begin()
    life.check_started()
    life.check_here()
    assert (life.started, life.lifespan_awaited) == (True, False)
    assert life.uptime >= 0
    life.end()
    assert (life.started, life.uptime, complaint(life)) == (False, 0, STOPPED)
    life.lifespan_awaited = True
    assert complaint(life) == STOPPED, "the lifespan did come, and the hub has stopped since"


async def test_another_loop_is_refused() -> None:
    life = Lifetime()
    life.begin()

    async def check() -> None:
        life.check_here()

    with pytest.raises(RuntimeError) as refused:
        await asyncio.to_thread(asyncio.run, check())
    assert str(refused.value) == OTHER_LOOP


async def test_a_thread_gets_what_the_loop_makes() -> None:
    life = Lifetime()

    async def name() -> str:
        life.check_here()
        return "made in the loop"

    async def fail() -> str:
        raise KeyError("k")

    with pytest.raises(HubNotStarted):
        await asyncio.to_thread(life.run_from_thread, name, 1)
    life.begin()
    assert await asyncio.to_thread(life.run_from_thread, name, 10) == "made in the loop"
    with pytest.raises(KeyError):
        await asyncio.to_thread(life.run_from_thread, fail, 10)
    with pytest.raises(RuntimeError) as refused:
        life.run_from_thread(name, 10)
    assert str(refused.value) == OWN_THREAD
