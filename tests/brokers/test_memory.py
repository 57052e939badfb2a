"""The log in memory: it stays within its bounds."""

import asyncio
import gc
import sys
import tracemalloc
from collections.abc import Coroutine
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_app.brokers import Page, memory
from sse_app.brokers.limits import LOOK_UPS_PER_STEP, matches_per_step
from sse_app.brokers.memory import MemoryBroker
from sse_app.brokers.offsets import footprint
from sse_app.drafts import Drafts
from sse_app.errors import LogFull
from sse_app.events import Event
from sse_app.publication import Audience, Draft, Position, Publication
from sse_app.topics import TopicFilter
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
        size = sum(map(footprint, log))
        young = all(born[item.position] >= now - history_age for item in log)
        return len(log) <= history and (size <= history_bytes or len(log) == 1) and young

    asyncio.run(main())


async def test_what_was_trimmed_is_not_in_memory_any_more() -> None:
    def bodies_alive() -> int:
        gc.collect()
        return sum(len(item.body) for item in gc.get_objects() if type(item) is Publication)

    before = bodies_alive()
    broker = MemoryBroker(history_bytes=1_000_000)
    for _ in range(150):
        await broker.publish(Draft(Event("x" * 20_000), ("t",)))
    assert 0 < bodies_alive() - before <= 1_000_000


async def test_a_topic_that_is_no_longer_in_the_log_leaves_nothing_behind() -> None:
    broker = MemoryBroker(history=10)
    for number in range(1_000):
        await broker.publish(Draft(Event("x"), (f"t/{number}", "all")))
    assert len(broker._offsets) == 11


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


async def test_no_key_is_forgotten_within_its_window_and_no_more_are_taken_than_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(memory, "KEYS_BYTES", 10 * (memory.KEY_OVERHEAD + 2))
    broker = MemoryBroker(idempotency_window=10, clock=clock)
    keys = [f"{number:02}" for number in range(20)]
    positions = [await broker.publish(Draft(Event("x"), idempotency_key=key)) for key in keys[:10]]
    clock.now = 9.9
    with pytest.raises(LogFull, match="idempotency_window"):
        await broker.publish(Draft(Event("x"), idempotency_key=keys[10]))
    assert [await broker.publish(Draft(Event("x"), idempotency_key=key)) for key in keys[:10]] == positions
    assert (await broker.publish(Draft(Event("x")))).offset == 11, (
        "without a key there is room, and nothing was published"
    )
    clock.now = 10
    assert [(await broker.publish(Draft(Event("x"), idempotency_key=key))).offset for key in keys[:10]] == [
        *range(12, 22)
    ]


async def test_many_keys_that_end_together_are_forgotten_in_steps_and_count_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "ENDED_AT_ONCE", 3)
    clock = Clock()
    broker = MemoryBroker(idempotency_window=10, clock=clock)
    for number in range(10):
        await broker.publish(Draft(Event("x"), idempotency_key=f"{number}"))
    clock.now = 10.0
    assert (await broker.publish(Draft(Event("other"), idempotency_key="9"))).offset == 11, "though it is there still"
    assert list(broker._keys) == [*"345678", "9"]
    assert (await broker.publish(Draft(Event("other"), idempotency_key="9"))).offset == 11, "and it is the new one"
    assert list(broker._keys) == [*"678", "9"]
    assert broker._keys_bytes == sum(1 + memory.KEY_OVERHEAD for _ in broker._keys)
    monkeypatch.setattr(memory, "KEYS_BYTES", 4 * (1 + memory.KEY_OVERHEAD))
    monkeypatch.setattr(memory, "ENDED_AT_ONCE", 0)
    drafts = Drafts(tuple(Draft(Event("x"), idempotency_key=key) for key in "abc"))
    assert [position.offset for position in await broker.publish_many(drafts)] == [12, 13, 14], "there is room"
    assert list(broker._keys) == [*"9abc"]


async def test_many_publications_that_grow_too_old_together_are_trimmed_in_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "ENDED_AT_ONCE", 3)
    clock = Clock()
    broker = MemoryBroker(history=8, history_age=10, clock=clock)
    for number in range(8):
        await broker.publish(Draft(Event(str(number))))
    clock.now = 11.0
    assert [(await broker.oldest()).offset for _ in range(4)] == [3, 6, 8, 8]
    for number in range(8):
        await broker.publish(Draft(Event(str(number))))
    clock.now = 22.0
    await broker.publish_many(Drafts(tuple(Draft(Event("x")) for _ in range(8))))
    assert (await broker.oldest()).offset == 16, "what is too many goes at once"


async def test_a_key_counts_for_what_it_takes() -> None:
    broker, count = MemoryBroker(history=1), 2_000
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(count):
        await broker.publish(Draft(Event("x"), idempotency_key=f"order-{number}-{'x' * 20}"))
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.5 * broker._keys_bytes < after - before < 1.1 * broker._keys_bytes


# --- what a search costs ---


async def cost(*searches: Coroutine[object, object, object]) -> tuple[int, int]:
    """Count the functions that searches side by side call, in all and at most between two turns of the loop."""
    count = 0

    def on_event(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    most = last = 0
    tasks = [asyncio.ensure_future(search) for search in searches]
    sys.setprofile(on_event)
    try:
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
            most, last = max(most, count - last), count
    finally:
        sys.setprofile(before)
    for task in tasks:
        task.result()
    return count, most


async def full_log(topic: str, count: int = 10_000) -> MemoryBroker:
    broker = MemoryBroker()
    for number in range(count):
        await broker.publish(Draft(Event("x"), (topic.replace("N", str(number)),)))
    return broker


def every(*patterns: str) -> TopicFilter:
    return TopicFilter.parse(patterns)


@pytest.mark.parametrize("topic", ["rooms/7/x", "rooms/N/x"])
async def test_who_joins_with_a_filter_that_nobody_else_has_costs_look_ups(topic: str) -> None:
    broker = await full_log(topic)
    total, _ = await cost(*(broker.newest(1, every(f"mine/{number}/**"), None) for number in range(1_000)))
    assert total / 1_000 < 200
    total, _ = await cost(*(broker.last(10, every("orders/*"), Audience(("me",))) for _ in range(300)))
    assert total / 300 < 200


async def test_a_hundred_random_wildcards_cost_a_match_of_each_topic_at_most() -> None:
    broker, random = await full_log("users/N/x"), Random(7)

    def wildcards() -> TopicFilter:
        return every(*{f"*/{random.randrange(10**6)}/{'*' if number % 2 else 'y'}" for number in range(100)})

    total, most = await cost(*(broker.newest(1, wildcards(), None) for _ in range(5)))
    assert total / 5 < 30 * 10_000, "not the patterns times the publications"
    assert most < 40 * LOOK_UPS_PER_STEP, "one step of one of them at a time"


@pytest.mark.parametrize("patterns", [(), ("rooms/*/x",), ("rooms/7/x",)])
@pytest.mark.parametrize("topic", ["rooms/7/x", "rooms/N/x"])
async def test_who_asks_for_all_of_a_log_gets_it_in_pieces(topic: str, patterns: tuple[str, ...]) -> None:
    broker = await full_log(topic)
    pieces = [piece async for piece in broker._newest_first(10_000, every(*patterns), None)]
    assert max(map(len, pieces)) <= memory.SCAN_PER_STEP
    found = [item.position.offset for piece in pieces for item in piece]
    assert found == (list(range(10_000, 0, -1)) if topic == "rooms/7/x" or patterns != ("rooms/7/x",) else [8])
    before, enough = await broker.last(10_000, every(*patterns), Audience(("me",)))
    assert (before.offset, enough) == (found[-1] - 1, len(found) == 10_000)


async def test_a_filter_that_is_dear_to_match_gets_short_pages_and_everything() -> None:
    """With 100 wildcards of as many shapes, 256 comparisons would hold up the loop for 20 ms."""
    broker, random = await full_log("a/N/x"), Random(7)
    shapes = {"/".join(random.choices("*a", k=length)) for length in range(2, 32) for _ in range(8)}
    dear = every("a/*/x", *sorted(shapes)[:99])
    step = matches_per_step(dear)
    assert step < 32
    top = await broker.top()
    until, found = top._replace(offset=256), list[int]()
    position = top._replace(offset=0)
    while position < until:
        page = await broker.replay(position, until, dear)
        assert 0 < page.end.offset - position.offset <= step
        found += [publication.position.offset for publication in page.publications]
        position = page.end
    assert found == list(range(1, 257))
    whole = Page(top._replace(offset=0), (await log_of(broker))[:256], until)
    part = whole.matching(dear)
    assert (len(part.publications), part.end) == (step, whole.publications[step - 1].position)
    assert whole.matching(every("a/*/x")) == whole


async def test_searches_for_the_same_are_shared() -> None:
    broker = await full_log("users/N/x")
    alone, _ = await cost(broker.newest(1, every("*/nothing"), None))
    shared, _ = await cost(*(broker.newest(1, every("*/something", "*/else"), None) for _ in range(50)))
    assert shared < 2 * alone


async def test_a_resume_costs_what_matches_and_not_what_was_missed() -> None:
    broker = await full_log("rooms/N/x")
    start, top = (await broker.oldest()), await broker.top()
    for topic_filter, found in ((every("rooms/1/x", "rooms/5000/*"), 2), (every("orders/*"), 0)):
        total, _ = await cost(broker.replay(start, top, topic_filter))
        assert total < 500
        page = await broker.replay(start, top, topic_filter)
        assert (len(page.publications), page.end) == (found, top)


async def test_a_search_through_the_whole_log_gives_way() -> None:
    broker = await full_log("rooms/N/x")
    start, top = (await broker.oldest()), await broker.top()
    everywhere = every("*/*/x")
    assert len(await broker.newest(10_000, everywhere, None)) == 10_000
    _, most = await cost(*(broker.newest(10_000, everywhere, None) for _ in range(3)))
    assert most < 10 * memory.SCAN_PER_STEP
    _, most = await cost(*(broker.replay(start, top, everywhere) for _ in range(3)))
    assert most < 10 * memory.SCAN_PER_STEP


async def test_a_search_whose_place_is_trimmed_meanwhile_ends() -> None:
    broker = MemoryBroker(history=400)
    for number in range(400):
        await broker.publish(Draft(Event("x"), (f"rooms/{number}/x",)))
    search = asyncio.create_task(broker.newest(400, every("*/*/x"), None))
    await asyncio.sleep(0)
    for _ in range(401):  # so many that the head of the list was cut just now
        await broker.publish(Draft(Event("y"), ("rooms/1/x",)))
    assert broker._start == 0
    newest = await search
    assert [item.position.offset for item in newest] == [*range(401 - len(newest), 401)]


words = st.sampled_from(["a", "b", "c"])
some_topics = st.lists(st.lists(words, min_size=1, max_size=3).map("/".join), max_size=3, unique=True).map(tuple)
some_filters = st.lists(
    st.lists(words | st.just("*"), min_size=1, max_size=3).map("/".join) | st.sampled_from(["a/**", "b/a/**", "**"]),
    max_size=3,
).map(TopicFilter.parse)


@given(st.lists(some_topics, max_size=40), some_filters, st.integers(1, 40), st.integers(0, 12), st.integers(0, 40))
def test_what_is_found_while_others_publish_is_what_a_search_through_all_finds(
    published: list[tuple[str, ...]], topic_filter: TopicFilter, history: int, count: int, after: int
) -> None:
    async def main() -> None:
        broker = MemoryBroker(history=history)
        half = len(published) // 2
        for topics in published[:half]:
            await broker.publish(Draft(Event("x"), topics))
        before = await broker.top()

        async def publish() -> None:
            for topics in published[half:]:
                await broker.publish(Draft(Event("x"), topics))
                await asyncio.sleep(0)

        task = asyncio.create_task(publish())
        newest = await broker.newest(count, topic_filter, None)
        await task
        log = await log_of(broker)
        held = {item.position for item in log}
        matching = [item for item in log if topic_filter.matches(item.topics)]
        known = [item for item in newest if item.position in held]
        assert (
            known == [item for item in matching if item.position <= before][len(known) and -len(known) :][: len(known)]
        )
        assert (
            await broker.newest(count, topic_filter, None)
            == matching[len(matching) - count if count < len(matching) else 0 :]
        )
        position, top, found = before._replace(offset=after), await broker.top(), list[Publication]()
        while position.offset < top.offset:
            page = await broker.replay(position, top, topic_filter)
            found += page.publications
            assert page.end.offset > position.offset
            position = page.end
        assert found == [item for item in matching if item.position.offset > after]

    names = {
        "SCAN_NEWEST": 2,
        "LOOK_UPS_AT_ONCE": 1,
        "LOOK_UPS_PER_STEP": 2,
        "FILTER_TOPICS_MAX": 2,
        "SCAN_PER_STEP": 3,
        "PAGE_COUNT": 3,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in names.items():
            patch.setattr(memory, name, value)
        asyncio.run(main())


@pytest.mark.parametrize(("names", "topics"), [(0, 0), (1_000, 0), (1, 1), (0, 16), (20, 3)])
async def test_a_publication_counts_for_what_it_takes(names: int, topics: int) -> None:
    broker, count = MemoryBroker(), 200
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(count):
        to = frozenset(f"client-{number}-{name}" for name in range(names))
        on = tuple(f"{'a' * 20}/{number}/{topic}" for topic in range(topics))
        await broker.publish(Draft(Event("x"), on, to=to))
        del to, on
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.5 * broker._bytes < after - before <= 1.1 * broker._bytes
