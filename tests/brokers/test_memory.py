"""What is special to the log in memory: that it stays within its bounds."""

import asyncio
import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_app.brokers import memory
from sse_app.brokers.memory import OVERHEAD, MemoryBroker
from sse_app.events import Event
from sse_app.publication import Draft, Position, Publication
from tests.support.peers import Clock, log_of

appends = st.tuples(st.just("append"), st.integers(0, 2_000))
steps = st.lists(appends | st.tuples(st.just("wait"), st.integers(0, 50)), max_size=60)


@given(steps, st.integers(1, 10), st.integers(1_024, 8_192), st.integers(1, 100))
def test_count_bytes_and_age_are_never_above_their_bounds_and_no_more_is_trimmed_than_that(
    steps: list[tuple[str, int]], history: int, history_bytes: int, history_age: int
) -> None:
    async def main() -> None:
        clock, born = Clock(), dict[Position, float]()
        broker = MemoryBroker(history=history, history_bytes=history_bytes, history_age=history_age, clock=clock)
        everything: list[Publication] = []
        before = 0
        tail = broker.tail()
        for step, amount in steps:
            if step == "wait":
                clock.now += amount
            else:
                born[await broker.publish(Draft(Event("x" * amount)))] = clock.now
                everything += await anext(tail)
            log = await log_of(broker)
            assert log == everything[len(everything) - len(log) :]
            assert fits(log, born, clock.now)
            if len(log) < before + (step == "append"):  # something went: it had to
                assert not fits(everything[-len(log) - 1 :], born, clock.now)
            before = len(log)

    def fits(log: list[Publication], born: dict[Position, float], now: float) -> bool:
        size = sum(len(item.frame) + OVERHEAD for item in log)
        young = all(born[item.position] >= now - history_age for item in log)
        return len(log) <= history and (size <= history_bytes or len(log) == 1) and young

    asyncio.run(main())


async def test_what_was_trimmed_is_not_in_memory_any_more() -> None:
    def frames_alive() -> int:
        gc.collect()
        return sum(len(item.frame) for item in gc.get_objects() if type(item) is Publication)

    before = frames_alive()
    broker = MemoryBroker(history_bytes=1_000_000)
    for _ in range(150):
        await broker.publish(Draft(Event("x" * 20_000), ("t",)))
    assert 0 < frames_alive() - before <= 1_000_000


async def test_a_topic_that_is_no_longer_in_the_log_leaves_nothing_behind() -> None:
    broker = MemoryBroker(history=10)
    for number in range(1_000):
        await broker.publish(Draft(Event("x"), (f"t/{number}", "all")))
    assert len(broker._latest) == 11


async def test_keys_are_forgotten_after_their_window() -> None:
    clock = Clock()
    broker = MemoryBroker(idempotency_window=10, clock=clock)
    for number in range(100):
        await broker.publish(Draft(Event("x"), idempotency_key=str(number)))
        clock.now += 1
    assert len(broker._keys) <= 11


async def test_a_tail_that_is_closed_is_told_nothing_more() -> None:
    broker = MemoryBroker()
    tail = broker.tail()
    await tail.aclose()
    await broker.publish(Draft(Event("x")))
    assert broker._tails == []


async def test_a_replay_gives_way_at_every_page() -> None:
    broker = MemoryBroker()
    for _ in range(1_000):
        await broker.publish(Draft(Event("x")))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    assert len(await log_of(broker)) == 1_000
    task.cancel()
    assert turns >= 1_000 // 256


async def test_it_is_not_durable() -> None:
    assert MemoryBroker().durability == "none"


async def test_no_more_keys_are_kept_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "KEYS_MAX", 10)
    broker = MemoryBroker()
    positions = [await broker.publish(Draft(Event("x"), idempotency_key=str(number))) for number in range(20)]
    assert [
        await broker.publish(Draft(Event("x"), idempotency_key=str(number))) for number in range(10, 20)
    ] == positions[10:]
    assert await broker.publish(Draft(Event("x"), idempotency_key="0")) not in positions
