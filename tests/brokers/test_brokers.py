"""The promises of every broker, whatever keeps its log. Another one joins by its name in ``BROKERS``."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from sse_app.brokers import SCHEMES, Broker, open_broker
from sse_app.brokers.memory import MemoryBroker
from sse_app.drafts import BATCH_MAX, Drafts
from sse_app.errors import ConfigError, InvalidEvent, KeyReused
from sse_app.events import Event
from sse_app.publication import Audience, Draft, Position, Publication
from sse_app.topics import TopicFilter
from tests.support.peers import PATIENCE, until
from tests.support.worlds import FollowedSQLiteBroker, World

BROKERS = ("memory", "sqlite", "sqlite_followed", "redis", "nats")
KEPT = tuple(name for name in BROKERS if name != "memory")  # in logs that outlive them, and that several may share
CLOCKED = tuple(name for name in BROKERS if name != "nats")  # see World; test_nats.py tests ages and windows there
EVERYTHING = TopicFilter()
DAY = 86_400.0


@pytest.fixture(params=BROKERS)
def world(request: pytest.FixtureRequest) -> World:
    world = request.getfixturevalue(f"{request.param}_world")
    assert isinstance(world, World)
    assert world.clocked == (request.param in CLOCKED)
    return world


@pytest.fixture(params=KEPT)
def kept(request: pytest.FixtureRequest) -> World:
    world = request.getfixturevalue(f"{request.param}_world")
    assert isinstance(world, World)
    assert world.kept
    return world


clocked = pytest.mark.parametrize("world", CLOCKED, indirect=True)
clocked_and_kept = pytest.mark.parametrize("kept", [name for name in CLOCKED if name in KEPT], indirect=True)


@pytest.fixture
async def broker(world: World) -> AsyncIterator[Broker]:
    async with world.open() as broker:
        yield broker


async def publish(broker: Broker, *texts: str, topic: str = "", **named: Any) -> list[Position]:
    topics = (topic,) if topic else ()
    return [await broker.publish(Draft(Event(text), topics, **named)) for text in texts]


async def replayed(broker: Broker, after: Position | None = None, *topics: str) -> list[Publication]:
    """Everything after a position (default: all that is held), page by page."""
    return await replayed_by(broker, after, TopicFilter.parse(topics))


async def replayed_by(broker: Broker, after: Position | None, topic_filter: TopicFilter) -> list[Publication]:
    until = await broker.top()
    position, found = after or await broker.oldest(), list[Publication]()
    async with asyncio.timeout(PATIENCE):
        while position != until:
            page = await broker.replay(position, until, topic_filter)
            assert page.end > position, "a page must lead on"
            assert all(page.start < item.position <= page.end for item in page.publications)
            found += page.publications
            position = page.end
    return found


async def take(tail: AsyncIterator[Sequence[Publication]], count: int) -> list[Publication]:
    found: list[Publication] = []
    async with asyncio.timeout(PATIENCE):
        while len(found) < count:
            found += await anext(tail)
    return found


def texts(publications: Sequence[Publication]) -> list[str | None]:
    return [publication.event.data for publication in publications]


# --- opening ---


def test_the_suite_runs_over_every_broker_there_is() -> None:
    assert {name.partition("_")[0] for name in BROKERS} == set(SCHEMES)


@pytest.mark.parametrize("url", ["", "memory", "memory:", "sqlite", "kafka://x", "://", "memory.x://", "../memory://"])
def test_a_url_of_no_broker_is_refused_with_those_there_are(url: str) -> None:
    with pytest.raises(ConfigError, match="memory://"):
        open_broker(url)


def test_a_broker_whose_driver_is_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sse_app.brokers.redis", raising=False)
    monkeypatch.setitem(sys.modules, "sse_app.brokers.redis.connection", None)
    with pytest.raises(ModuleNotFoundError, match="sse_app"):
        open_broker("redis://localhost")
    monkeypatch.delitem(sys.modules, "sse_app.brokers.redis.connection")
    monkeypatch.setitem(sys.modules, "redis.asyncio.connection", None)
    with pytest.raises(ConfigError, match=r"rediss:// .* pip install 'sse-app\[redis\]'"):
        open_broker("rediss://localhost")


# --- what takes no waiting ---


async def test_a_page_at_hand_is_the_one_that_a_replay_reads(broker: Broker) -> None:
    for number in range(6):
        await publish(broker, str(number), topic=f"t/{number % 2}")
    top, oldest = await broker.top(), await broker.oldest()
    found = 0
    for topics in ([], ["t/1"], ["t/*"], ["none"]):
        for offset in range(7):
            asked = oldest._replace(offset=offset), top, TopicFilter.parse(topics)
            page = broker.at_hand(*asked)
            assert page is None or page == await broker.replay(*asked)
            found += page is not None
    if isinstance(broker, MemoryBroker | FollowedSQLiteBroker):
        assert found >= 4 * 6


async def test_the_extent_is_what_the_log_holds_and_could_hold(broker: Broker) -> None:
    top = await broker.top()
    assert broker.extent().oldest == top
    await publish(broker, *"abc")
    extent = broker.extent()
    assert extent.oldest == await broker.oldest()
    assert extent.capacity >= 3


async def test_a_young_log_has_room_and_a_full_one_has_not(world: World) -> None:
    async with world.open(history=100) as broker:
        broker.tail()
        await publish(broker, *map(str, range(10)))
        await until(lambda: broker.extent().capacity == 100, "all is known")
        await publish(broker, *map(str, range(95)))
        await until(lambda: broker.extent().oldest.offset >= 5, "it is trimmed")
        assert 100 <= broker.extent().capacity <= 105


@clocked
async def test_a_log_that_is_full_by_age_or_bytes_has_no_more_room(world: World) -> None:
    async with world.open(history=1_000, history_bytes=1_000_000, history_age=100.0) as broker:
        broker.tail()
        await publish(broker, *map(str, range(10)))
        await until(lambda: broker.extent().capacity == 1_000, "all is known")
        world.clock.now += 50
        world.wall.now += 50
        assert broker.extent().capacity <= 21
        await publish(broker, *("x" * 50_000 for _ in range(10)))
        await until(lambda: broker.extent().capacity <= 45, "it is half full")


# --- order and positions ---


async def test_an_empty_log_begins_before_its_first_position(broker: Broker) -> None:
    top = await broker.top()
    assert top.offset == 0
    assert await broker.oldest() == top
    assert await replayed(broker) == []
    assert not await broker.newest(5, EVERYTHING, Audience(("c",)))
    assert await broker.since(0) == (top, True)


async def test_positions_rise_by_one_in_one_epoch(broker: Broker) -> None:
    positions = await publish(broker, "a", "b", "c")
    assert [position.offset for position in positions] == [1, 2, 3]
    assert {position.epoch for position in positions} == {(await broker.top()).epoch}
    assert await broker.top() == positions[-1]


async def test_a_position_is_an_id_that_is_parsed_again(broker: Broker) -> None:
    (position,) = await publish(broker, "a")
    assert Position.parse(str(position).encode()) == position


async def test_what_is_published_can_be_read_as_it_was(broker: Broker) -> None:
    event = Event("a\nb\0é😀", "tick")
    position = await broker.publish(Draft(event, ("t", "u"), to=frozenset("ab"), exclude=frozenset("b")))
    (publication,) = await replayed(broker)
    assert publication.position == position
    assert publication.topics == ("t", "u")
    assert (publication.to, publication.exclude) == (frozenset("ab"), frozenset("b"))
    assert publication.event == Event(event.data, event.type, str(position))
    assert publication.type == "tick"


async def test_many_publishers_at_once_make_one_order(broker: Broker) -> None:
    async def one(name: int) -> list[Position]:
        found = []
        for number in range(20):
            found += await publish(broker, f"{name}:{number}")
            await asyncio.sleep(0)
        return found

    tail = broker.tail()
    async with asyncio.timeout(PATIENCE):
        each = await asyncio.gather(*map(one, range(10)))
    log = await replayed(broker)
    assert [item.position.offset for item in log] == list(range(1, 201))
    assert {str(item.position): item.event.data for item in log} == {
        str(position): f"{name}:{number}" for name, found in enumerate(each) for number, position in enumerate(found)
    }
    assert all(found == sorted(found) for found in each)
    assert texts(await take(tail, 200)) == texts(log)


async def test_what_cannot_be_encoded_is_in_no_log(broker: Broker) -> None:
    with pytest.raises(InvalidEvent):
        await broker.publish(Draft(Event("\ud800"), idempotency_key="k"))
    assert (await broker.top()).offset == 0
    await publish(broker, "fine", idempotency_key="k")
    assert texts(await replayed(broker)) == ["fine"]


async def test_a_log_keeps_its_epoch_and_another_one_has_another(world: World) -> None:
    epochs = set()
    for _ in range(10):
        async with world.open() as broker:
            epochs.add((await broker.top()).epoch)
            assert Position.parse(str(await broker.top()).encode()) is not None
    assert len(epochs) == (1 if world.kept else 10)


# --- replay ---


async def test_replay_begins_behind_a_position_and_ends_with_another(broker: Broker) -> None:
    positions = await publish(broker, *"abcdef")
    page = await broker.replay(positions[1], positions[3], EVERYTHING)
    assert (texts(page.publications), page.start, page.end) == (["c", "d"], positions[1], positions[3])
    page = await broker.replay(positions[5], positions[5], EVERYTHING)
    assert (texts(page.publications), page.start, page.end) == ([], positions[5], positions[5])


async def test_a_long_replay_comes_in_pages_without_loss(broker: Broker) -> None:
    await publish(broker, *map(str, range(2_000)))
    assert texts(await replayed(broker)) == [str(number) for number in range(2_000)]
    page = await broker.replay(await broker.oldest(), await broker.top(), EVERYTHING)
    assert len(page.publications) < 2_000


async def test_a_page_of_large_publications_is_short(broker: Broker) -> None:
    await publish(broker, *["x" * 100_000] * 20)
    page = await broker.replay(await broker.oldest(), await broker.top(), EVERYTHING)
    assert 1 <= sum(len(item.body) for item in page.publications) < 500_000
    assert len(await replayed(broker)) == 20


async def test_replay_filters_and_looks_past_what_does_not_match(broker: Broker) -> None:
    for number in range(1_000):
        await publish(broker, str(number), topic="loud")
    last = await publish(broker, "quiet", topic="quiet")
    everyone = await publish(broker, "all")
    assert texts(await replayed(broker, None, "quiet")) == ["quiet", "all"]
    page = await broker.replay(last[0], everyone[0], TopicFilter.parse(["loud"]))
    assert texts(page.publications) == ["all"]


async def test_what_is_appended_meanwhile_is_behind_the_end_of_a_replay(broker: Broker) -> None:
    positions = await publish(broker, *"ab")
    replay = broker.replay(await broker.oldest(), positions[1], EVERYTHING)
    page, _ = await asyncio.gather(replay, publish(broker, "c"))
    assert texts(page.publications) == ["a", "b"]


# --- trimming ---


async def test_the_oldest_are_trimmed_by_count(world: World) -> None:
    async with world.open(history=3) as broker:
        positions = await publish(broker, *"abcde")
        assert texts(await replayed(broker)) == ["c", "d", "e"]
        assert await broker.oldest() == positions[1]
        assert await broker.top() == positions[4]


async def test_the_oldest_are_trimmed_by_bytes(world: World) -> None:
    async with world.open(history_bytes=10_000) as broker:
        await publish(broker, *("x" * 3_000 for _ in range(10)))
        held = await replayed(broker)
        assert 1 <= len(held) <= 3
        assert held[-1].position == await broker.top()


async def test_the_newest_is_held_however_large_it_is(world: World) -> None:
    async with world.open(history_bytes=1_024) as broker:
        await publish(broker, "a", "x" * 100_000)
        assert texts(await replayed(broker)) == ["x" * 100_000]


@clocked
async def test_the_oldest_are_trimmed_by_age(world: World) -> None:
    async with world.open(history_age=60) as broker:
        await publish(broker, "a")
        world.clock.now += 40
        positions = await publish(broker, "b")
        world.clock.now += 40
        assert texts(await replayed(broker)) == ["b"]
        assert texts(await broker.newest(5, EVERYTHING, Audience(("c",)))) == ["b"]
        world.clock.now += 40
        assert await replayed(broker) == []
        assert await broker.oldest() == await broker.top() == positions[0]
        assert await publish(broker, "c") == [positions[0].next()]


async def test_a_replay_from_a_trimmed_position_says_where_it_really_began(world: World) -> None:
    async with world.open(history=3) as broker:
        positions = await publish(broker, *"abcde")
        page = await broker.replay(positions[0], positions[4], EVERYTHING)
        assert (page.start, texts(page.publications)) == (positions[1], ["c", "d", "e"])
        page = await broker.replay(positions[1], positions[4], EVERYTHING)
        assert (page.start, texts(page.publications)) == (positions[1], ["c", "d", "e"])


async def test_a_replay_of_what_is_all_trimmed_ends_at_once(world: World) -> None:
    async with world.open(history=2) as broker:
        positions = await publish(broker, *"abcdef")
        page = await broker.replay(positions[0], positions[1], EVERYTHING)
        assert (page.publications, page.start) == ([], positions[3])
        assert page.end >= positions[1]


async def test_a_replay_from_another_epoch_begins_with_the_oldest(world: World) -> None:
    async with world.open() as broker:
        positions = await publish(broker, *"abc")
        page = await broker.replay(Position("other", 2), positions[2], EVERYTHING)
        assert (page.start, texts(page.publications)) == (await broker.oldest(), ["a", "b", "c"])


async def test_a_replay_up_to_a_position_of_another_log_leads_no_further_than_this_one(broker: Broker) -> None:
    page = await broker.replay(Position("other", 2), Position("other", 1_000), EVERYTHING)
    assert (page.publications, page.end) == ([], await broker.top())
    (position,) = await publish(broker, "a")
    page = await broker.replay(Position("other", 2), Position("other", 1_000), EVERYTHING)
    assert (texts(page.publications), page.end) == (["a"], position)


# --- newest, last, since ---


async def test_newest_are_the_last_that_the_client_may_see_oldest_first(broker: Broker) -> None:
    await publish(broker, "1", topic="a/x")
    await publish(broker, "2", topic="b")
    await publish(broker, "3", topic="a/y", exclude=frozenset(["me"]))
    await publish(broker, "4", topic="a/z", to=frozenset(["you"]))
    await publish(broker, "5")
    await publish(broker, "6", topic="a/x")

    async def newest(count: int, client: str, *patterns: str) -> list[str | None]:
        return texts(await broker.newest(count, TopicFilter.parse(patterns), Audience((client,))))

    assert await newest(2, "me") == ["5", "6"]
    assert await newest(99, "me") == ["1", "2", "5", "6"]
    assert await newest(99, "you") == ["1", "2", "3", "4", "5", "6"]
    assert await newest(99, "me", "a/**") == ["1", "5", "6"]
    assert await newest(2, "you", "b") == ["2", "5"]
    assert await newest(1, "me", "b") == ["5"]
    assert await newest(1, "me", "a/x") == ["6"]
    assert await newest(0, "me") == []


async def test_newest_of_a_topic_are_found_after_its_newest_were_trimmed(world: World) -> None:
    async with world.open(history=3) as broker:
        await publish(broker, "old", topic="t")
        await publish(broker, *"abc", topic="u")
        assert texts(await broker.newest(1, TopicFilter.parse(["t"]), Audience(("c",)))) == []
        await publish(broker, "new", topic="t")
        assert texts(await broker.newest(5, TopicFilter.parse(["t"]), Audience(("c",)))) == ["new"]
        assert texts(await broker.newest(5, TopicFilter.parse(["t", "u"]), Audience(("c",)))) == ["b", "c", "new"]


@pytest.mark.parametrize(
    ("count", "client", "patterns", "offset", "enough"),
    [
        (1, "me", [], 5, True),
        (2, "me", [], 4, True),
        (3, "me", [], 1, True),
        (4, "me", [], 0, True),
        (99, "me", [], 0, False),
        (3, "you", [], 3, True),
        (4, "you", [], 2, True),
        (1, "me", ["b"], 4, True),
        (2, "me", ["b"], 1, True),
        (99, "me", ["b"], 1, False),
        (1, "me", ["a/y", "a/z"], 4, True),
        (2, "me", ["a/y", "a/z"], 4, False),
        (2, "you", ["a/y", "a/z"], 3, True),
        (3, "you", ["a/y", "a/z"], 2, True),
        (2, "me", ["a/*"], 4, True),
        (3, "me", ["a/**"], 0, True),
        (99, "you", ["nowhere"], 4, False),
    ],
)
async def test_last_is_the_position_before_the_newest_that_the_client_may_see(
    broker: Broker, count: int, client: str, patterns: list[str], offset: int, enough: bool
) -> None:
    await publish(broker, "1", topic="a/x")
    await publish(broker, "2", topic="b")
    await publish(broker, "3", topic="a/y", exclude=frozenset(["me"]))
    await publish(broker, "4", topic="a/z", to=frozenset(["you"]))
    await publish(broker, "5")
    top = (await publish(broker, "6", topic="a/x"))[0]
    assert await broker.last(count, TopicFilter.parse(patterns), Audience((client,))) == (
        top._replace(offset=offset),
        enough,
    )


async def test_last_of_nothing_is_the_top(world: World) -> None:
    async with world.open(history=3) as broker:
        assert await broker.last(5, EVERYTHING, Audience(("me",))) == (await broker.top(), False)
        await publish(broker, "mine", topic="t")
        top = (await publish(broker, "yours", topic="u", to=frozenset(["you"])))[0]
        assert await broker.last(5, TopicFilter.parse(["u"]), Audience(("me",))) == (top, False)
        assert await broker.last(5, TopicFilter.parse(["nowhere"]), Audience(("you",))) == (top, False)
        top = (await publish(broker, *"abc", topic="v"))[-1]
        assert await broker.last(5, TopicFilter.parse(["t"]), Audience(("me",))) == (top, False), (
            "all of them are trimmed"
        )
        assert await broker.last(5, EVERYTHING, Audience(("me",))) == (await broker.oldest(), False)
        assert await broker.last(3, EVERYTHING, Audience(("me",))) == (await broker.oldest(), True)
        assert await broker.last(0, EVERYTHING, Audience(("me",))) == (top, True)


@clocked
async def test_since_is_the_position_before_the_first_at_or_after_a_time(world: World) -> None:
    async with world.open() as broker:
        begun, positions = world.wall.now, list[Position]()
        for text in "abc":
            positions += await publish(broker, text)
            world.wall.now += 10
        for seconds, index in [(-100, None), (0, None), (1, 0), (10, 0), (10.5, 1), (20, 1), (21, 2), (1_000, 2)]:
            expected = await broker.oldest() if index is None else positions[index]
            assert await broker.since(begun + seconds) == (expected, True), seconds


@clocked
async def test_since_tells_when_some_of_it_is_trimmed(world: World) -> None:
    async with world.open(history=2) as broker:
        begun = world.wall.now
        for text in "abcd":
            await publish(broker, text)
            world.wall.now += 10
        oldest = await broker.oldest()
        assert await broker.since(begun) == (oldest, False)
        assert await broker.since(begun + 10) == (oldest, False)
        assert await broker.since(begun + 15) == (oldest, True)
        assert await broker.since(begun + 20) == (oldest, True)


# --- tails ---


async def test_a_tail_announces_everything_from_its_call_on(broker: Broker) -> None:
    await publish(broker, "before")
    tail = broker.tail()
    await publish(broker, *"abc")
    found = await take(tail, 3)
    assert texts(found) == ["a", "b", "c"]
    await publish(broker, "d")
    assert texts(await take(tail, 1)) == ["d"]
    assert found == (await replayed(broker))[1:4]


async def test_two_tails_announce_the_same_in_the_same_order(broker: Broker) -> None:
    one, other = broker.tail(), broker.tail()
    await publish(broker, *"ab")
    early = await take(one, 2)
    await publish(broker, *"cd")
    assert texts(early + await take(one, 2)) == texts(await take(other, 4)) == ["a", "b", "c", "d"]


async def test_a_waiting_tail_is_woken(broker: Broker) -> None:
    tail = broker.tail()
    waiting = asyncio.create_task(take(tail, 1))
    await asyncio.sleep(0)
    assert not waiting.done()
    await publish(broker, "a")
    async with asyncio.timeout(PATIENCE):
        assert texts(await waiting) == ["a"]


async def test_a_tail_announces_what_the_log_has_trimmed_already_or_says_that_it_cannot(world: World) -> None:
    async with world.open(history=2) as broker:
        tail = broker.tail()
        await publish(broker, *"abcdef")
        found: list[Publication] = []
        end = tail.start
        async with asyncio.timeout(PATIENCE):
            while len(found) < 6 and (step := await anext(tail)) and step[0].position == end.next():
                found += step
                end = step[-1].position
        assert texts(found) == list("abcdef")[: len(found)]
        if len(found) < 6:  # an empty step, or one that does not follow: what it lacks is a gap in the log
            assert world.distant
            assert (await broker.replay(tail.start, await broker.top(), EVERYTHING)).start > tail.start


# --- idempotency (C10) ---


async def test_a_hundred_at_once_with_one_key_are_one_publication(broker: Broker) -> None:
    async with asyncio.timeout(PATIENCE):
        positions = await asyncio.gather(
            *(broker.publish(Draft(Event("a"), ("t",), idempotency_key="k")) for _ in range(100))
        )
    assert len(set(positions)) == 1
    assert texts(await replayed(broker)) == ["a"]


@pytest.mark.parametrize(
    "other",
    [
        lambda broker: broker.publish(Draft(Event("b"), ("t",), idempotency_key="k")),
        lambda broker: broker.publish(Draft(Event("a", "tick"), ("t",), idempotency_key="k")),
        lambda broker: broker.publish(Draft(Event("a"), (), idempotency_key="k")),
        lambda broker: broker.publish(Draft(Event("a"), ("t", "u"), idempotency_key="k")),
        lambda broker: broker.publish(Draft(Event("a"), ("t",), to=frozenset("c"), idempotency_key="k")),
        lambda broker: broker.publish(Draft(Event("a"), ("t",), exclude=frozenset("c"), idempotency_key="k")),
    ],
    ids=["data", "type", "no topic", "more topics", "to", "exclude"],
)
async def test_a_key_with_another_publication_is_refused(
    broker: Broker, other: Callable[[Broker], Awaitable[Position]]
) -> None:
    first = await broker.publish(Draft(Event("a"), ("t",), idempotency_key="k"))
    with pytest.raises(KeyReused):
        await other(broker)
    assert await broker.top() == first
    assert await broker.publish(Draft(Event("a"), ("t",), idempotency_key="k")) == first


async def test_clients_are_a_set_for_a_key_too(broker: Broker) -> None:
    names = [f"c{number}" for number in range(50)]
    first = await publish(broker, "a", to=frozenset(names), idempotency_key="k")
    assert await publish(broker, "a", to=frozenset(reversed(names)), idempotency_key="k") == first


async def test_other_keys_and_none_are_other_publications(broker: Broker) -> None:
    await publish(broker, "a", "a")
    await publish(broker, "a", idempotency_key="k")
    await publish(broker, "a", idempotency_key="l")
    assert len(await replayed(broker)) == 4


@clocked
async def test_after_the_window_a_key_is_new(world: World) -> None:
    async with world.open(idempotency_window=300) as broker:
        first = await publish(broker, "a", idempotency_key="k")
        world.clock.now += 299
        assert await publish(broker, "a", idempotency_key="k") == first
        world.clock.now += 2
        assert await publish(broker, "b", idempotency_key="k") == [first[0].next()]
        world.clock.now += 299
        with pytest.raises(KeyReused):
            await publish(broker, "a", idempotency_key="k")


async def test_a_key_outlives_its_publication_in_the_log(world: World) -> None:
    async with world.open(history=1) as broker:
        first = await publish(broker, "a", idempotency_key="k")
        await publish(broker, *"bcd")
        assert await publish(broker, "a", idempotency_key="k") == first


# --- batches ---


def batch(*texts: str, key: str | None = None, topic: str = "") -> Drafts:
    topics = (topic,) if topic else ()
    return Drafts(tuple(Draft(Event(text), topics) for text in texts), key)


def keyed(*pairs: tuple[str | None, str]) -> Drafts:
    """A batch whose drafts have keys of their own, or none."""
    return Drafts(tuple(Draft(Event(text), idempotency_key=key) for key, text in pairs))


async def test_a_batch_has_consecutive_positions_in_its_order(broker: Broker) -> None:
    await publish(broker, "before")
    positions = await broker.publish_many(batch("a", "b", "c", topic="t"))
    assert [position.offset for position in positions] == [2, 3, 4]
    assert {position.epoch for position in positions} == {(await broker.top()).epoch}
    assert await publish(broker, "after") == [positions[-1].next()]
    assert texts(await replayed(broker, None, "t")) == ["before", "a", "b", "c", "after"]
    assert [item.position for item in await replayed(broker)][1:4] == list(positions)


async def test_a_batch_can_be_read_as_it_was(broker: Broker) -> None:
    events = [Event("a\nb\0é😀", "tick"), Event("{}"), Event("c" * 10_000)]
    drafts = (
        Draft(events[0], ("t", "u"), to=frozenset("ab"), exclude=frozenset("b")),
        Draft(events[1], ("v",), is_json=True),
        Draft(events[2]),
    )
    positions = await broker.publish_many(Drafts(drafts))
    found = await replayed(broker)
    assert [item.event for item in found] == [
        Event(event.data, event.type, str(position)) for event, position in zip(events, positions, strict=True)
    ]
    assert [(item.topics, item.to, item.exclude, item.is_json) for item in found] == [
        (draft.topics, draft.to, draft.exclude, draft.is_json) for draft in drafts
    ]


async def test_a_batch_is_announced_with_one_step_of_the_tail(world: World) -> None:
    async with world.open() as broker:
        tail = broker.tail()
        await broker.publish_many(batch(*map(str, range(50))))
        async with asyncio.timeout(PATIENCE):
            step = await anext(tail)
        if world.distant:  # it reads from its server as it comes
            step = [*step, *await take(tail, 50 - len(step))] if len(step) < 50 else step
        assert texts(step) == list(map(str, range(50)))


async def test_the_largest_batch_there_may_be(broker: Broker) -> None:
    tail, numbers = broker.tail(), list(map(str, range(BATCH_MAX)))
    positions = await broker.publish_many(batch(*numbers))
    assert [position.offset for position in positions] == list(range(1, BATCH_MAX + 1))
    assert texts(await take(tail, BATCH_MAX)) == texts(await replayed(broker)) == numbers


async def test_of_a_batch_with_what_cannot_be_encoded_nothing_is_appended(broker: Broker) -> None:
    for drafts in (batch("a", "\ud800", "c"), batch("a", "\ud800", key="k"), keyed(("k", "a"), ("l", "\ud800"))):
        with pytest.raises(InvalidEvent):
            await broker.publish_many(drafts)
    assert (await broker.top()).offset == 0
    await broker.publish_many(batch("fine", key="k"))
    assert texts(await replayed(broker)) == ["fine"]


async def test_a_batch_that_is_larger_than_the_log_is_trimmed_to_its_newest(world: World) -> None:
    async with world.open(history=3) as broker:
        await publish(broker, "old")
        positions = await broker.publish_many(batch(*"abcdef", key="k"))
        assert texts(await replayed(broker)) == ["d", "e", "f"]
        assert await broker.oldest() == positions[2]
        assert await broker.publish_many(batch(*"abcdef", key="k")) == positions
        assert await broker.top() == positions[-1]


async def test_a_log_that_is_full_stays_within_its_bounds_under_batches(world: World) -> None:
    async with world.open(history=100) as broker:
        for number in range(4):
            await broker.publish_many(batch(*(f"{number}.{index}" for index in range(600))))
        assert texts(await replayed(broker)) == [f"3.{index}" for index in range(500, 600)]


async def test_the_same_batch_with_the_same_key_is_appended_once(broker: Broker) -> None:
    first = await broker.publish_many(batch("a", "b", "a", key="k", topic="t"))
    await publish(broker, "between")
    assert await broker.publish_many(batch("a", "b", "a", key="k", topic="t")) == first
    assert texts(await replayed(broker)) == ["a", "b", "a", "between"]


async def test_the_same_batch_at_once_with_one_key_is_appended_once(broker: Broker) -> None:
    async with asyncio.timeout(PATIENCE):
        found = await asyncio.gather(*(broker.publish_many(batch("a", "b", key="k")) for _ in range(20)))
    assert all(positions == found[0] for positions in found)
    assert texts(await replayed(broker)) == ["a", "b"]


@pytest.mark.parametrize(
    "other",
    [
        batch("a", key="k", topic="t"),
        batch("a", "b", "c", key="k", topic="t"),
        batch("b", "a", key="k", topic="t"),
        batch("ab", key="k", topic="t"),
        batch("a", "b", key="k"),
        keyed(("k", "a"), (None, "b")),
    ],
    ids=["fewer", "more", "another order", "joined", "another topic", "a draft's own key"],
)
async def test_a_key_of_a_batch_with_another_one_is_refused(broker: Broker, other: Drafts) -> None:
    first = await broker.publish_many(batch("a", "b", key="k", topic="t"))
    with pytest.raises(KeyReused):
        await broker.publish_many(other)
    with pytest.raises(KeyReused):
        await publish(broker, "a", topic="t", idempotency_key="k")
    assert await broker.top() == first[-1]
    assert await broker.publish_many(batch("a", "b", key="k", topic="t")) == first


async def test_a_batch_of_one_is_another_publication_than_that_one_alone(broker: Broker) -> None:
    (first,) = await publish(broker, "a", idempotency_key="k")
    with pytest.raises(KeyReused):
        await broker.publish_many(batch("a", key="k"))
    assert await broker.publish_many(keyed(("k", "a"))) == [first], "with its own key it is the same"


async def test_drafts_whose_keys_are_known_keep_their_positions(broker: Broker) -> None:
    (first,) = await publish(broker, "b", idempotency_key="kb")
    positions = await broker.publish_many(keyed(("ka", "a"), ("kb", "b"), (None, "x"), ("kc", "c")))
    assert [position.offset for position in positions] == [2, 1, 3, 4]
    assert positions[1] == first
    again = await broker.publish_many(keyed(("kc", "c"), ("ka", "a"), (None, "x"), ("kd", "d")))
    assert [position.offset for position in again] == [4, 2, 5, 6]
    assert await publish(broker, "d", idempotency_key="kd") == [again[3]]
    assert texts(await replayed(broker)) == ["b", "a", "x", "c", "x", "d"]


async def test_a_batch_whose_keys_are_all_known_announces_nothing(broker: Broker) -> None:
    drafts = keyed(("ka", "a"), ("kb", "b"))
    tail = broker.tail()
    first = await broker.publish_many(drafts)
    assert await broker.publish_many(drafts) == first
    await publish(broker, "the end")
    found = await take(tail, 3)
    assert texts(found) == ["a", "b", "the end"]
    assert [item.position.offset for item in found] == [1, 2, 3]


async def test_one_key_of_another_publication_refuses_the_whole_batch(broker: Broker) -> None:
    (first,) = await publish(broker, "b", idempotency_key="kb")
    with pytest.raises(KeyReused):
        await broker.publish_many(keyed(("ka", "a"), (None, "x"), ("kb", "another"), ("kc", "c")))
    assert await broker.top(fresh=True) == first
    assert texts(await replayed(broker)) == ["b"]
    positions = await broker.publish_many(keyed(("ka", "not a"), ("kc", "not c")))
    assert [position.offset for position in positions] == [2, 3], "the keys of what was refused are free"


async def test_a_key_twice_in_a_batch_is_one_publication_or_refused(broker: Broker) -> None:
    with pytest.raises(KeyReused):
        await broker.publish_many(keyed(("k", "a"), (None, "x"), ("k", "b")))
    assert (await broker.top(fresh=True)).offset == 0
    positions = await broker.publish_many(keyed(("k", "a"), (None, "x"), ("k", "a"), (None, "y")))
    assert [position.offset for position in positions] == [1, 2, 1, 3]
    assert texts(await replayed(broker)) == ["a", "x", "y"]


async def test_batches_and_single_publications_at_once_make_one_order(broker: Broker) -> None:
    async def many(name: int) -> list[Position]:
        found: list[Position] = []
        for number in range(5):
            found += await broker.publish_many(batch(*(f"{name}:{number}:{index}" for index in range(20))))
        return found

    tail = broker.tail()
    async with asyncio.timeout(PATIENCE):
        *each, alone = await asyncio.gather(*map(many, range(4)), publish(broker, *["alone"] * 50))
    log = await replayed(broker)
    assert texts(await take(tail, 450)) == texts(log)
    assert [item.position.offset for item in log] == list(range(1, 451))
    assert all(found == sorted(found) for found in (*each, alone)), "each batch is in its own order"
    assert len({position for found in (*each, alone) for position in found}) == 450
    by_position = {item.position: item.event.data for item in log}
    for name, found in enumerate(each):
        assert [by_position[position] for position in found] == [
            f"{name}:{number}:{index}" for number in range(5) for index in range(20)
        ]


@clocked
async def test_after_the_window_the_key_of_a_batch_is_new(world: World) -> None:
    async with world.open(idempotency_window=300) as broker:
        first = await broker.publish_many(batch("a", "b", key="k"))
        single = await broker.publish_many(keyed(("l", "c")))
        world.clock.now += 299
        assert await broker.publish_many(batch("a", "b", key="k")) == first
        assert await broker.publish_many(keyed(("l", "c"))) == single
        world.clock.now += 2
        assert [item.offset for item in await broker.publish_many(batch("x", key="k"))] == [4]
        assert [item.offset for item in await broker.publish_many(keyed(("l", "y")))] == [5]


# --- the wall clock (N1) ---


@pytest.mark.parametrize("jump", [-DAY, -3_600, 0, 3_600, DAY], ids=str)
async def test_a_jump_of_the_wall_clock_changes_no_order(world: World, jump: float) -> None:
    async with world.open(history_age=7 * DAY, idempotency_window=300) as broker:
        before = await publish(broker, *"ab")
        keyed = await publish(broker, "keyed", idempotency_key="k")
        world.wall.now += jump
        after = await publish(broker, *"cd")
        assert [item.offset for item in before + keyed + after] == [1, 2, 3, 4, 5]
        times = [item.time for item in await replayed(broker)]
        assert times == sorted(times), "the time of a publication never falls"
        assert texts(await replayed(broker)) == ["a", "b", "keyed", "c", "d"], "retention errs to keeping"
        assert await publish(broker, "keyed", idempotency_key="k") == keyed, "windows are measured on another clock"


@clocked
async def test_time_does_not_fall_below_what_was_trimmed(world: World) -> None:
    async with world.open(history_age=60) as broker:
        for _ in range(100):
            await publish(broker, "x")
        late = world.wall.now
        world.clock.now += 61
        assert await replayed(broker) == []
        world.wall.now -= DAY
        await publish(broker, "y")
        assert [item.time >= late for item in await replayed(broker)] == [True]


# --- logs that are kept ---


async def test_a_log_is_what_it_was_when_it_is_opened_again(kept: World) -> None:
    async with kept.open() as broker:
        for text in "abc":
            kept.wall.now += 10
            await publish(broker, text, topic=f"t/{text}", to=frozenset("me"), exclude=frozenset("you"))
        before = await replayed(broker), await broker.top(), await broker.oldest()
    async with kept.open() as broker:
        assert (await replayed(broker), await broker.top(), await broker.oldest()) == before
        assert await broker.top(fresh=True) == before[1]
        assert await broker.since(before[0][1].time) == (before[0][0].position, True)
        assert await publish(broker, "d") == [before[1].next()]


async def test_keys_are_known_when_a_log_is_opened_again(kept: World) -> None:
    async with kept.open(idempotency_window=300) as broker:
        first = await publish(broker, "a", idempotency_key="k")
    async with kept.open(idempotency_window=300) as broker:
        assert await publish(broker, "a", idempotency_key="k") == first
        with pytest.raises(KeyReused):
            await publish(broker, "b", idempotency_key="k")


async def test_keys_of_batches_are_known_when_a_log_is_opened_again(kept: World) -> None:
    async with kept.open(idempotency_window=300) as broker:
        first = await broker.publish_many(batch(*"abc", key="k"))
        each = await broker.publish_many(keyed(("l", "d"), ("m", "e")))
    async with kept.open(idempotency_window=300) as broker:
        assert await broker.publish_many(batch(*"abc", key="k")) == first
        assert await broker.publish_many(keyed(("m", "e"), ("l", "d"))) == each[::-1]
        with pytest.raises(KeyReused):
            await broker.publish_many(batch(*"abcd", key="k"))
        assert texts(await replayed(broker)) == ["a", "b", "c", "d", "e"]


@clocked_and_kept
async def test_the_window_of_a_key_goes_on_while_its_log_is_closed(kept: World) -> None:
    async with kept.open(idempotency_window=300) as broker:
        first = await publish(broker, "a", idempotency_key="k")
    kept.clock.now += 100
    kept.wall.now += 100
    async with kept.open(idempotency_window=300) as broker:
        assert await publish(broker, "a", idempotency_key="k") == first
        kept.clock.now += 201
        kept.wall.now += 201
        assert await publish(broker, "b", idempotency_key="k") == [first[0].next()]


async def test_limits_hold_for_what_was_there_when_it_was_opened(kept: World) -> None:
    async with kept.open() as broker:
        positions = await publish(broker, *"abcde")
    async with kept.open(history=3) as broker:
        await publish(broker, "f")
        assert texts(await replayed(broker)) == ["d", "e", "f"]
        assert await broker.oldest() == positions[2]


@clocked_and_kept
async def test_ages_hold_for_what_was_there_when_it_was_opened(kept: World) -> None:
    async with kept.open() as broker:
        await publish(broker, *"abcdef")
    kept.clock.now += 60
    kept.wall.now += 60
    async with kept.open(history_age=30) as broker:
        assert await replayed(broker) == []
        assert (await broker.top()).offset == (await broker.oldest()).offset == 6


@clocked_and_kept
async def test_what_was_trimmed_stays_known_when_a_log_is_opened_again(kept: World) -> None:
    async with kept.open(history=2) as broker:
        begun = kept.wall.now
        for text in "abcd":
            await publish(broker, text)
            kept.wall.now += 10
    async with kept.open(history=2) as broker:
        assert await broker.since(begun + 5) == (await broker.oldest(), False)
        assert await broker.since(begun + 15) == (await broker.oldest(), True)


async def test_a_tail_of_a_log_that_is_opened_again_begins_at_its_end(kept: World) -> None:
    async with kept.open() as broker:
        top = (await publish(broker, *"abc"))[-1]
    async with kept.open() as broker:
        tail = broker.tail()
        assert tail.start == top
        await publish(broker, "d")
        assert texts(await take(tail, 1)) == ["d"]


# --- logs that several nodes share ---


@asynccontextmanager
async def nodes(world: World, count: int) -> AsyncIterator[list[Broker]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(world.open()) for _ in range(count)]


@pytest.mark.parametrize("count", [2, 3])
async def test_all_tails_of_all_nodes_announce_everything_once_in_one_order(kept: World, count: int) -> None:
    async def one(node: Broker, name: str) -> list[Position]:
        return await publish(node, *(f"{name}:{number}" for number in range(50)))

    async with nodes(kept, count) as brokers, asyncio.timeout(2 * PATIENCE):
        tails = [broker.tail() for broker in brokers]
        tasks = [
            asyncio.create_task(one(broker, f"{index}.{name}"))
            for index, broker in enumerate(brokers)
            for name in range(20)
        ]
        each = await asyncio.gather(*tasks)
        await publish(brokers[0], "the end")
        total = count * 20 * 50 + 1
        found = [await take(tail, total) for tail in tails]
        assert found == [await replayed(broker) for broker in brokers]
        assert [item.position.offset for item in found[0]] == list(range(1, total + 1))
        assert all(positions == sorted(positions) for positions in each)
        assert {item.position for item in found[0][:-1]} == {position for positions in each for position in positions}
        assert [await broker.top() for broker in brokers] == [found[0][-1].position] * count


async def test_a_publication_is_on_the_other_nodes_as_it_was(kept: World) -> None:
    async with nodes(kept, 2) as (one, other):
        here, there = one.tail(), other.tail()
        event = Event("a\nb\0é😀", "tick")
        await one.publish(Draft(event, ("t", "u"), to=frozenset("ab"), exclude=frozenset("b")))
        (found,) = await take(there, 1)
        assert [found] == await take(here, 1) == await replayed(one) == await replayed(other)
        assert found.event == Event(event.data, event.type, str(found.position))


async def test_a_key_is_known_on_every_node(kept: World) -> None:
    async with nodes(kept, 2) as (one, other):
        first = await publish(one, "a", idempotency_key="k")
        assert await publish(other, "a", idempotency_key="k") == first
        with pytest.raises(KeyReused):
            await publish(other, "b", idempotency_key="k")
        positions = await asyncio.gather(
            *(node.publish(Draft(Event("c"), idempotency_key="l")) for node in (one, other) * 20)
        )
        assert len(set(positions)) == 1
        assert texts(await replayed(one)) == ["a", "c"]


async def test_a_batch_is_on_the_other_nodes_and_its_key_known_there(kept: World) -> None:
    async with nodes(kept, 2) as (one, other):
        there = other.tail()
        first = await one.publish_many(batch(*"abc", key="k"))
        assert [item.position for item in await take(there, 3)] == list(first)
        assert await other.publish_many(batch(*"abc", key="k")) == first
        with pytest.raises(KeyReused):
            await other.publish_many(batch(*"abd", key="k"))
        both = await asyncio.gather(*(node.publish_many(batch(*"de", key="l")) for node in (one, other) * 5))
        assert all(positions == both[0] for positions in both)
        assert texts(await replayed(one)) == ["a", "b", "c", "d", "e"]


async def test_a_position_that_one_node_gave_is_known_to_another_that_asks_the_log(kept: World) -> None:
    async with nodes(kept, 2) as (one, other):
        (position,) = await publish(one, "a")
        assert await other.top(fresh=True) == position
        assert await other.top() == position, "and stays known"
        assert texts(await replayed(other)) == ["a"]


async def test_asking_the_log_takes_nothing_from_a_tail(kept: World) -> None:
    async with nodes(kept, 2) as (one, other):
        tail = other.tail()
        for text in "abc":
            (position,) = await publish(one, text)
            assert await other.top(fresh=True) == position
        assert texts(await take(tail, 3)) == ["a", "b", "c"]


async def test_nodes_count_each_others_subscribers_until_they_leave(kept: World) -> None:
    async with nodes(kept, 2) as (one, other):
        one.tail()
        other.tail()
        one.subscribers_here, other.subscribers_here = 3, 4
        await until(lambda: (one.subscribers_elsewhere, other.subscribers_elsewhere) == (4, 3), clock=kept.clock)
        async with kept.open() as third:
            third.tail()
            third.subscribers_here = 10
            all_three = (one, other, third)
            await until(lambda: [node.subscribers_elsewhere for node in all_three] == [14, 13, 7], clock=kept.clock)
        await until(lambda: (one.subscribers_elsewhere, other.subscribers_elsewhere) == (4, 3), clock=kept.clock)
        other.subscribers_here = 0
        await until(lambda: one.subscribers_elsewhere == 0, clock=kept.clock)


async def test_a_node_that_ends_takes_nothing_with_it(kept: World) -> None:
    async with kept.open() as one:
        tail = one.tail()
        async with kept.open() as other:
            positions = await publish(other, *"ab")
        positions += await publish(one, "c")
        assert texts(await take(tail, 3)) == ["a", "b", "c"]
        assert [item.position for item in await replayed(one)] == positions


async def test_a_broker_that_is_open_is_not_opened_again_until_it_was_closed(kept: World) -> None:
    broker = kept.open()
    for text in "ab":
        async with broker:
            with pytest.raises(RuntimeError, match="open already"):
                await broker.__aenter__()
            await publish(broker, text)
    async with broker:
        assert texts(await replayed(broker)) == ["a", "b"]


async def test_a_broker_that_is_opened_again_follows_the_others_as_before(kept: World) -> None:
    async with kept.open() as other:
        broker = kept.open()
        for text in "ab":
            async with broker:
                tail = broker.tail()
                await publish(other, text)
                assert texts(await take(tail, 1)) == [text]
                await tail.aclose()
