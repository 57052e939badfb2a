"""What each reader sees of a log, on every broker: no more than its grant, and all of that. See ``Reader``."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random

import pytest

from sse_app.brokers import Broker, known, memory, recent
from sse_app.brokers.sqlite import pages
from sse_app.events import Event
from sse_app.node import Node
from sse_app.publication import Draft, Position, Publication
from sse_app.topics import TopicFilter
from tests.brokers.test_brokers import BROKERS, replayed_by
from tests.support.nodes import node_on, subscribed
from tests.support.peers import PATIENCE, datas, read_events
from tests.support.visibility import CLIENTS, PATTERNS, RECIPIENTS, TOPICS, USERS, Reader
from tests.support.worlds import World

READERS = {"memory": 300, "sqlite": 150, "redis": 40, "nats": 40}  # drawn for each log
END = "the end"


@pytest.fixture(params=BROKERS)
def world(request: pytest.FixtureRequest) -> World:
    world = request.getfixturevalue(f"{request.param}_world")
    assert isinstance(world, World)
    return world


@pytest.fixture(params=[False, True], ids=["few steps", "many steps"])
def steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with bounds so low that a short log is read in pages, and searched by its index."""
    if request.param:
        for module, name, value in (
            *((module, "PAGE_COUNT", 4) for module in (memory, pages, known, recent)),
            (memory, "SCAN_NEWEST", 3),
            (memory, "SCAN_PER_STEP", 5),
            (memory, "LOOK_UPS_PER_STEP", 2),
            (memory, "FILTER_TOPICS_MAX", 2),
            (recent, "FILTER_TOPICS_MAX", 2),
            (recent, "INDEXED_TOPICS_MAX", 2),
            (recent, "LOOK_UPS_PER_STEP", 2),
            (recent, "SCAN_NEWEST", 3),
            (pages, "SCAN", 5),
            (pages, "TOPICS_AT_ONCE", 2),
        ):
            monkeypatch.setattr(module, name, value)


# What an oracle of lists says, of readers and publications drawn at random


def drawn_reader(random: Random) -> Reader:
    def few(values: Sequence[str], most: int) -> tuple[str, ...]:
        return tuple(random.sample(values, random.randint(0, most)))

    return Reader(
        random.choice(CLIENTS),
        few(PATTERNS, 2),
        few(PATTERNS, 3),
        random.random() < 0.5,
        few(PATTERNS, 2),
        random.choice([None, *USERS]),
        random.random() < 0.5,
    )


def drawn_draft(random: Random, text: str) -> Draft:
    topics = tuple(random.sample(TOPICS, random.choice((0, 1, 1, 1, 2, 3))))
    to, exclude = (frozenset(random.sample(RECIPIENTS, random.choice((0, 0, 0, 0, 1, 2)))) for _ in range(2))
    return Draft(Event(text), topics, to=to, exclude=exclude)


async def fill(broker: Broker, drafts: Sequence[Draft]) -> list[Publication]:
    """Publish these. Returns what the log then holds, as the model knows it."""
    positions = [await broker.publish(draft) for draft in drafts]
    return [
        Publication(position, "message", draft.topics, draft.encode(), 0.0, draft.to, draft.exclude)
        for position, draft in zip(positions, drafts, strict=True)
    ]


async def visible(broker: Broker, after: Position | None, topic_filter: TopicFilter, reader: Reader) -> list[Position]:
    """Return what a reader is shown of a replay."""
    found = await replayed_by(broker, after, topic_filter)
    return [item.position for item in found if item.visible_to(reader.audience)]


async def check(broker: Broker, log: Sequence[Publication], reader: Reader, random: Random) -> None:
    topic_filter = reader.filter
    if topic_filter is None:
        alone = [replace(reader, asked=(pattern,)) for pattern in reader.asked] or [reader]
        assert any(not one.topics(TOPICS) for one in alone), "something is outside"
        return
    seen = [item.position for item in log if reader.sees(item)]
    assert await visible(broker, None, topic_filter, reader) == seen
    after, number = random.choice(log).position, random.randint(1, len(log))
    assert await visible(broker, after, topic_filter, reader) == [position for position in seen if position > after]
    newest = [item.position for item in await broker.newest(number, topic_filter, reader.audience)]
    assert newest == seen[-number:]
    before, enough = await broker.last(number, topic_filter, reader.audience)
    assert enough == (len(seen) >= number)
    assert before.offset == (newest[0].offset - 1 if newest else log[-1].position.offset)


@pytest.mark.usefixtures("steps")
@pytest.mark.parametrize("seed", range(3))
async def test_a_reader_finds_in_a_log_what_it_asks_for_and_may_see(world: World, seed: int) -> None:
    random = Random(seed)
    async with world.open() as broker:
        log = await fill(broker, [drawn_draft(random, str(number)) for number in range(random.randint(5, 60))])
        for _ in range(READERS[world.url.partition(":")[0]]):
            await check(broker, log, drawn_reader(random), random)


async def test_of_a_long_log_the_little_that_is_not_denied_is_found(world: World) -> None:
    """And the broadcasts in it are for who gets those. No search here ends with the newest publications."""
    async with world.open() as broker:
        drafts = [Draft(Event("x"), ("a/x",)), Draft(Event("x")), *[Draft(Event("x"), ("a/y",))] * 150]
        log = await fill(broker, [*drafts, *[Draft(Event("x"))] * 150])
        for reader, expected in (
            (Reader(broadcasts=False, denied=("a/y",)), log[:1]),
            (Reader(asked=("a/*",), broadcasts=False, denied=("a/y",)), log[:1]),
            (Reader(granted=("a/x", "b"), broadcasts=False), log[:1]),
            (Reader(granted=("b",), broadcasts=False), []),
            (Reader(granted=("a/x",), denied=("a/*",)), [log[1], *log[152:]]),
            (Reader(broadcasts=False), [log[0], *log[2:152]]),
        ):
            topic_filter = reader.filter
            assert topic_filter is not None
            wanted = [item.position for item in expected]
            assert await visible(broker, None, topic_filter, reader) == wanted
            found = await broker.newest(1_000, topic_filter, reader.audience)
            assert [item.position for item in found] == wanted


# Named readers

STRANGER = Reader("till-3", user="eve", vouched=False)  # of another user, by the name of a till
NAMED = {
    "till": Reader("till-3"),
    "stranger": STRANGER,
    "tab of 42": Reader("tab", user="42", vouched=False),
    "other tab of 42": Reader("other", user="42", vouched=False),
    "tab of a/b@c": Reader("tab", user="a/b@c", vouched=False),
    "anonymous": Reader("tab", vouched=False),
}
EVERYBODY = set(NAMED)
MEANT = [  # to, exclude, and by whom it is seen
    (("till-3",), (), {"till"}),
    ((), ("till-3",), EVERYBODY - {"till", "stranger"}),
    (("@42",), (), {"tab of 42", "other tab of 42"}),
    (("tab@42",), (), {"tab of 42"}),
    (("tab",), (), set[str]()),
    ((), ("tab",), EVERYBODY - {"tab of 42", "tab of a/b@c", "anonymous"}),
    (("@a/b@c",), (), {"tab of a/b@c"}),
    (("tab@a/b@c",), (), {"tab of a/b@c"}),
    ((), ("@a/b@c",), EVERYBODY - {"tab of a/b@c"}),
    (("@42",), ("tab@42",), {"other tab of 42"}),
    (("@42", "till-3"), ("other",), {"till", "tab of 42"}),
    (("@b@c", "@a", "@a/b"), (), set[str]()),
    (("till-3@eve",), (), {"stranger"}),
    ((), ("till-3@eve",), EVERYBODY - {"stranger"}),
]


async def publish_to_all(node: Node) -> None:
    for number, (to, exclude, _) in enumerate(MEANT):
        await node.publish(Draft.compose(str(number), to=to or None, exclude=exclude))
    await node.publish(Draft.compose(END))


@asynccontextmanager
async def reading(node: Node, reader: Reader, last: int | None = None) -> AsyncIterator[asyncio.Task[list[str]]]:
    """Join as this reader; the task reads the publications that it gets, up to the end."""
    async with subscribed(node, client=reader.client, grant=reader.grant, last=last) as subscriber:

        async def read() -> list[str]:
            return datas(await read_events(subscriber, lambda events: END in datas(events)))

        task = asyncio.create_task(read())
        try:
            yield task
        finally:
            task.cancel()


@pytest.mark.parametrize("who", NAMED)
async def test_who_is_named_gets_it_and_nobody_by_taking_a_name(world: World, who: str) -> None:
    """Live and replayed."""
    expected = [str(number) for number, (_, _, seen_by) in enumerate(MEANT) if who in seen_by]
    async with node_on(world.open()) as node, asyncio.timeout(PATIENCE):
        async with reading(node, NAMED[who]) as live:
            await publish_to_all(node)
            assert await live == [*expected, END]
        async with reading(node, NAMED[who], last=1_000) as replayed:
            assert await replayed == [*expected, END]


async def test_who_is_named_is_found_and_counted(world: World) -> None:
    async with node_on(world.open()) as node:
        async with subscribed(node, client="till-3", grant=STRANGER.grant) as stranger:
            async with subscribed(node, client="till-3") as till:
                assert node._delivery.find_clients("till-3") == {stranger, till}
                assert node._delivery.find_user("eve") == {stranger}
                assert not node._delivery.find_clients("eve")
                for to, exclude, count in (
                    ("till-3", None, 1),
                    ("@eve", None, 1),
                    (None, "till-3", 0),
                    (None, None, 2),
                ):
                    receipt = await node.publish(Draft.compose("x", to=to, exclude=exclude))
                    assert receipt.subscribers == count
            assert node._delivery.find_clients("till-3") == {stranger}
        assert not node._delivery.find_clients("till-3")
        assert not node._delivery.find_user("eve")
