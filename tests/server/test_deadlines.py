"""Deadlines of many with one timer, on virtual time."""

import asyncio

import pytest

from sse_app.server.deadlines import Deadlines

pytestmark = pytest.mark.virtual_time


async def test_each_is_late_after_its_own_time() -> None:
    loop, late = asyncio.get_running_loop(), list[tuple[str, float]]()
    begun = loop.time()
    deadlines = Deadlines[str](loop, 10.0, lambda who: late.append((who, round(loop.time() - begun, 3))))
    deadlines.start("a")
    await asyncio.sleep(4)
    deadlines.start("b")
    deadlines.start("c")
    assert deadlines.left("a") == pytest.approx(6)
    assert deadlines.left("b") == pytest.approx(10)
    assert deadlines.left("d") is None
    await asyncio.sleep(1)
    deadlines.stop("b")
    deadlines.stop("never started")
    await asyncio.sleep(20)
    assert late == [("a", 10.0), ("c", 14.0)]
    assert deadlines.left("a") is None


async def test_who_is_started_again_has_the_whole_time_again() -> None:
    loop, late = asyncio.get_running_loop(), list[str]()
    deadlines = Deadlines[str](loop, 10.0, late.append)
    deadlines.start("a")
    deadlines.start("b")
    for _ in range(5):
        await asyncio.sleep(4)
        deadlines.start("a")
    assert late == ["b"]
    await asyncio.sleep(11)
    assert late == ["b", "a"]


async def test_who_is_late_may_start_others() -> None:
    loop, late = asyncio.get_running_loop(), list[int]()

    def on_late(who: int) -> None:
        late.append(who)
        if who < 3:
            deadlines.start(who + 1)

    deadlines = Deadlines[int](loop, 1.0, on_late)
    deadlines.start(1)
    await asyncio.sleep(5)
    assert late == [1, 2, 3]


async def test_one_timer_serves_all_and_none_is_left_behind() -> None:
    loop = asyncio.get_running_loop()
    deadlines = Deadlines[int](loop, 1.0, lambda who: None)
    before = len(loop._scheduled)  # type: ignore[attr-defined]
    for who in range(1_000):
        deadlines.start(who)
    assert len(loop._scheduled) == before + 1  # type: ignore[attr-defined]
    for who in range(1_000):
        deadlines.stop(who)
    await asyncio.sleep(2)
    assert len(loop._scheduled) == before  # type: ignore[attr-defined]
