"""The hub: who is welcomed and how, who gets what, where a resume begins, how it beats, and how it stops."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import pytest

from sse_app import delivery
from sse_app.brokers.memory import MemoryBroker
from sse_app.errors import (
    BadInput,
    HubNotStarted,
    InvalidClient,
    InvalidEvent,
    InvalidTopic,
    KeyReused,
    Overloaded,
    ReservedEvent,
)
from sse_app.events import Event, EventDecoder
from sse_app.joining import StreamRequest
from sse_app.node import Node
from sse_app.publication import Draft, Position, Publication
from sse_app.subscriber import CloseReason, Subscriber
from tests.support.nodes import data_of, node_on, publish, replay, state, subscribed, texts
from tests.support.peers import (
    MOMENT,
    Clock,
    DistantBroker,
    Socket,
    TroubledBroker,
    available,
    cancel_at,
    datas,
    lose,
    received,
    turns,
    until,
)

pytestmark = pytest.mark.virtual_time

PATIENCE = 3_600  # virtual seconds


# --- welcome ---


async def test_the_welcome_is_first_and_only_for_who_is_new(node: Node) -> None:
    async with subscribed(node) as first:
        assert [event.type for event in await received(first)] == ["welcome"]
        async with subscribed(node) as second:
            await publish(node, "a")
            assert [event.type for event in await received(second)] == ["welcome", "message"]
            assert [event.type for event in await received(first)] == ["message"]


async def test_the_welcome_tells_who_is_there_and_what_was_last(node: Node) -> None:
    positions = await publish(node, "a", topic="orders/1", event="created")
    async with subscribed(node), subscribed(node, "orders/*", "b", client="me") as subscriber:
        (welcome,) = await received(subscriber)
    said = data_of(welcome)
    assert (said["message"], said["client"], said["subscribers"]) == ("Welcome!", "me", 2)
    assert (said["topics"], said["recovered"], said["top"]) == (["b", "orders/*"], False, str(positions[0]))
    assert said["last"]["id"] == str(positions[0])
    assert said["last"]["event"] == "created"
    assert welcome.retry == said["retry"]
    assert welcome.id == str(positions[0])


async def test_the_welcome_tells_the_heartbeat_so_that_a_client_knows_a_dead_stream() -> None:
    async with node_on(MemoryBroker(), heartbeat=120.0) as node, subscribed(node) as subscriber:
        (welcome,) = await received(subscriber)
    assert data_of(welcome)["heartbeat"] == 120.0


async def test_clients_are_told_different_times_to_come_back() -> None:
    async with node_on(MemoryBroker(), retry=(0.5, 0.6)) as node:
        times = {node.retry() for _ in range(5_000)}
        assert (min(times), max(times)) == (500, 600)  # the chance to miss one of them is below 1e-21
        async with subscribed(node) as subscriber:
            (welcome,) = await received(subscriber)
        assert welcome.retry in times


@pytest.mark.parametrize(("asked", "seen"), [(["a/*"], ["a/1"]), (["a/*", "c"], ["a/1", "c"]), ([], ["a/1", "b", "c"])])
async def test_the_welcome_names_no_topic_that_was_not_asked_for(node: Node, asked: list[str], seen: list[str]) -> None:
    await publish(node, "x", topic=["a/1", "b", "c"])
    (welcome,) = await replay(node, *asked)
    assert data_of(welcome)["last"]["topics"] == seen


async def test_who_joins_with_one_filter_at_a_time_shares_one_look_up_of_the_newest() -> None:
    class Searched(MemoryBroker):
        searches = 0

        async def newest(self, *arguments: Any) -> Sequence[Publication]:
            self.searches += 1
            await asyncio.sleep(MOMENT)
            return await super().newest(*arguments)

    broker = Searched()
    async with node_on(broker) as node:
        (position,) = await publish(node, "x", topic="a")
        joined = await asyncio.gather(*(node.join(StreamRequest.parse(["*"])) for _ in range(20)))
        assert broker.searches == 1
        for subscriber in joined:
            (welcome,) = await received(subscriber)
            assert data_of(welcome)["last"]["id"] == str(position)
            node.leave(subscriber, CloseReason.GONE)


async def test_last_is_what_this_subscriber_might_have_seen(node: Node) -> None:
    await publish(node, "for all", topic="a")
    await publish(node, "for you", topic="a", to="you")
    await publish(node, "elsewhere", topic="b")

    async def last(client: str) -> object:
        return data_of((await replay(node, "a", client=client))[0])["last"]["id"]

    epoch = (await node.broker.top()).epoch
    assert await last("me") == f"{epoch}-1"
    assert await last("you") == f"{epoch}-2"
    assert data_of((await replay(node, "c"))[0])["last"] is None


@pytest.mark.parametrize(
    ("topics", "options", "complete"),
    [
        ([], {}, None),
        ([], {"last": 0}, True),
        ([], {"last": 2}, True),
        ([], {"last": 3}, True),
        ([], {"last": 4}, False),
        (["a"], {"last": 1}, True),
        (["a"], {"last": 2}, False),
        (["nowhere"], {"last": 1}, False),
        ([], {"since": 3.0}, True),
        ([], {"since": 2.0}, False),
        ([], {"after": "e-1", "last": 1}, None),
    ],
)
async def test_the_welcome_tells_whether_the_log_still_holds_what_was_asked_for(
    topics: list[str], options: dict[str, Any], complete: bool | None
) -> None:
    wall = Clock(1.0)
    async with node_on(MemoryBroker(history=3, wall=wall)) as node:
        for topic in "aaabc":
            await publish(node, "x", topic=topic)
            wall.now += 1.0
        async with subscribed(node, *topics, **options) as subscriber:
            welcome = (await received(subscriber))[0]
    said = data_of(welcome)
    assert said.get("complete") is complete
    if complete is not None:
        assert list(said)[-3:] == ["complete", "retry", "heartbeat"]


@pytest.mark.parametrize("options", [{"last": 5}, {"since": 0.0}], ids=str)
async def test_a_log_that_never_held_more_is_complete(node: Node, options: dict[str, Any]) -> None:
    await publish(node, "all there is", topic="a")
    for topics in ([], ["a"], ["nowhere"]):
        async with subscribed(node, *topics, **options) as subscriber:
            assert data_of((await received(subscriber))[0])["complete"] is True


async def test_a_name_is_made_for_who_has_none(node: Node) -> None:
    async with subscribed(node) as one, subscribed(node) as other:
        assert one.client != other.client
        assert data_of((await received(one))[0])["client"] == one.client


# --- counting ---


async def test_subscribers_are_counted_while_they_are_there(node: Node) -> None:
    assert state(node) == (0, 0, 0, 0)
    async with subscribed(node, "a"), subscribed(node, "a"), subscribed(node, "b"):
        assert state(node) == (3, 3, 2, 0)
    assert state(node) == (0, 0, 0, 0)
    assert node.totals.connected == 3
    assert node.totals.closed == {"gone": 3}


async def test_a_subscriber_that_ends_by_an_error_is_counted_so(node: Node) -> None:
    with pytest.raises(KeyError):
        async with subscribed(node):
            raise KeyError
    assert node.totals.closed == {"error": 1}
    assert state(node) == (0, 0, 0, 0)


async def test_a_receipt_counts_whom_it_is_for(node: Node) -> None:
    async def count(**options: Any) -> int:
        receipt = await node.publish(Draft.compose("x", **options))
        assert receipt.subscribers is not None
        return receipt.subscribers

    async with AsyncExitStack() as stack:
        for topic, client in [("a", "ann"), ("a", "bob"), ("a/*", "ann"), ("b", "cid")]:
            await stack.enter_async_context(subscribed(node, topic, client=client))
        await stack.enter_async_context(subscribed(node, client="dan"))
        assert await count() == 5
        assert await count(topic="a") == 3
        assert await count(topic="a/1") == 2
        assert await count(topic=["a", "b"]) == 4
        assert await count(to="ann") == 2
        assert await count(topic="a", exclude=["ann", "dan"]) == 1
        assert await count(topic="nobody", exclude="dan") == 0
        assert await count(to=["ann", "bob"], exclude="ann") == 1
    assert await count() == 0


async def test_a_receipt_has_the_position_as_id(node: Node) -> None:
    receipt = await node.publish(Draft.compose("x"))
    assert (receipt.id, receipt.durable) == (str(await node.broker.top()), "none")
    assert node.totals.published == 1


# --- publishing ---


@pytest.mark.parametrize(
    ("data", "text"),
    [("a", "a"), ("", ""), ({"a": [1, None]}, '{"a":[1,null]}'), (None, "null"), (3, "3"), (True, "true")],
)
async def test_text_goes_out_as_it_is_and_the_rest_as_json(node: Node, data: object, text: str) -> None:
    async with subscribed(node) as subscriber:
        await node.publish(Draft.compose(data))
        assert await texts(subscriber) == [text]


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"topic": ""}, InvalidTopic),
        ({"topic": "a/*"}, InvalidTopic),
        ({"event": "gap"}, ReservedEvent),
        ({"event": "a\nb"}, InvalidEvent),
        ({"to": "a b"}, InvalidClient),
        ({"exclude": [""]}, InvalidClient),
        ({"data": "\ud800"}, InvalidEvent),
        ({"data": {"a": "\ud800"}}, InvalidEvent),
    ],
    ids=str,
)
async def test_a_publication_that_is_refused_is_seen_by_nobody(
    node: Node, wrong: dict[str, Any], error: type[BadInput]
) -> None:
    async with subscribed(node) as subscriber:
        with pytest.raises(error):
            await node.publish(Draft.compose(**{"data": "x", **wrong}))
        assert await texts(subscriber) == []
    assert node.totals.published == 0
    assert (await node.broker.top()).offset == 0


async def test_a_key_publishes_once_and_gets_the_same_answer(node: Node) -> None:
    async with subscribed(node) as subscriber:
        async with asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(node.publish(Draft.compose("x", idempotency_key="k"))) for _ in range(100)]
        async with subscribed(node):
            again = await node.publish(Draft.compose("x", idempotency_key="k"))
        assert {call.result() for call in calls} == {again}
        assert again.subscribers == 1
        assert await texts(subscriber) == ["x"]
    assert node.totals.published == 1
    with pytest.raises(KeyReused):
        await node.publish(Draft.compose("y", idempotency_key="k"))


# --- who gets what ---


async def test_each_filter_gets_what_it_matches_and_everyone_what_has_no_topic(node: Node) -> None:
    async with (
        subscribed(node, "orders/*") as orders,
        subscribed(node, "orders/1", "bills/**") as some,
        subscribed(node) as everything,
    ):
        for topic in ("orders/1", "orders/2", "bills/7/pdf", "else"):
            await node.publish(Draft.compose(topic, topic=topic))
        await node.publish(Draft.compose("all"))
        assert await texts(orders) == ["orders/1", "orders/2", "all"]
        assert await texts(some) == ["orders/1", "bills/7/pdf", "all"]
        assert await texts(everything) == ["orders/1", "orders/2", "bills/7/pdf", "else", "all"]


async def test_a_publication_on_two_topics_of_one_filter_comes_once(node: Node) -> None:  # C11
    async with subscribed(node, "a", "b", "*") as subscriber:
        await node.publish(Draft.compose("x", topic=["a", "b"]))
        assert await texts(subscriber) == ["x"]
    assert datas(await replay(node, "a", "b", last=10)) == ["x"]


PRIVATE: dict[str, dict[str, Any]] = {
    "to ann": {"to": "ann"},
    "to both": {"to": ["ann", "bob"]},
    "not ann": {"exclude": "ann"},
    "to both, not ann": {"to": ["ann", "bob"], "exclude": "ann"},
    "all": {},
}
SEEN_BY = {
    "ann": ["to ann", "to both", "all"],
    "bob": ["to both", "not ann", "to both, not ann", "all"],
    "cid": ["not ann", "all"],
}


@pytest.mark.parametrize("at_once", [False, True])
async def test_to_and_exclude_hold_live_and_on_every_replay(node: Node, at_once: bool) -> None:
    start = await node.broker.top()
    async with AsyncExitStack() as stack:
        live = {name: await stack.enter_async_context(subscribed(node, client=name)) for name in SEEN_BY}
        for text, options in PRIVATE.items():
            await node.publish(Draft.compose(text, **options))
            await asyncio.sleep(0 if at_once else MOMENT)
        assert {name: await texts(subscriber) for name, subscriber in live.items()} == SEEN_BY
    for name, expected in SEEN_BY.items():
        assert datas(await replay(node, client=name, after=start)) == expected
        assert datas(await replay(node, client=name, last=99)) == expected
        assert datas(await replay(node, client=name, last=2)) == expected[-2:]
        assert datas(await replay(node, client=name, since=0)) == expected


async def test_a_large_group_gets_everything_in_one_order() -> None:
    async with node_on(MemoryBroker()) as node, AsyncExitStack() as stack:
        everyone = [await stack.enter_async_context(subscribed(node, "t")) for _ in range(2_500)]
        for text in "abc":
            await node.publish(Draft.compose(text, topic="t"))
            await asyncio.sleep(0)
        late = await stack.enter_async_context(subscribed(node, "t"))
        await everyone.pop(0).read()
        found = [await texts(subscriber) for subscriber in (*everyone[::100], everyone[-1])]
        assert found == [["a", "b", "c"]] * len(found)
        assert await texts(late) == []


async def test_all_subscribers_see_one_order_of_many_publishers() -> None:  # C7
    async with node_on(MemoryBroker(), queue_size=50) as node, AsyncExitStack() as stack:
        everyone = [await stack.enter_async_context(subscribed(node)) for _ in range(50)]

        async def one(name: int) -> None:
            for number in range(500):
                await node.publish(Draft.compose(f"{name}:{number}"))
                await asyncio.sleep(0)

        async def read(subscriber: Subscriber) -> list[str]:
            decoder, found = EventDecoder(), list[str]()
            while len(found) < 10_000:
                found += datas(decoder.feed(await subscriber.read()))
            return found

        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
            for name in range(20):
                tasks.create_task(one(name))
            readers = [tasks.create_task(read(subscriber)) for subscriber in everyone]
        orders = {tuple(reader.result()) for reader in readers}
        assert len(orders) == 1
        order = orders.pop()
        for name in range(20):
            own = [text for text in order if text and text.startswith(f"{name}:")]
            assert own == [f"{name}:{number}" for number in range(500)]


# --- where a resume begins (C4, C5) ---


@pytest.mark.parametrize(
    ("offset", "reason", "expected"),
    [
        (3, "trimmed", ["f", "g", "h", "i", "j"]),
        (4, "trimmed", ["f", "g", "h", "i", "j"]),  # one before: e is lost
        (5, None, ["f", "g", "h", "i", "j"]),  # the last that is trimmed is the last that was seen
        (6, None, ["g", "h", "i", "j"]),
        (10, None, []),
        (11, "ahead", []),
        (10**17, "ahead", []),
    ],
)
async def test_a_resume_replays_all_or_tells_a_gap(offset: int, reason: str | None, expected: list[str]) -> None:
    async with node_on(MemoryBroker(history=5)) as node:
        top = (await publish(node, *"abcdefghij"))[-1]
        cursor = Position(top.epoch, offset)
        for after in (cursor, str(cursor), str(cursor).encode()):
            welcome, *rest = await replay(node, after=after)
            assert (welcome.id, data_of(welcome)["recovered"]) == (str(cursor), reason is None)
            assert datas(rest) == expected
            assert [data_of(event)["reason"] for event in rest if event.type == "gap"] == ([reason] if reason else [])
        if reason:
            start = Position(top.epoch, 10 if reason == "ahead" else 5)
            oldest = Position(top.epoch, 6)
            assert rest[0].id == str(start)
            assert data_of(rest[0]) == {
                "requested": str(cursor),
                "oldest": str(oldest),
                "top": str(top),
                "reason": reason,
            }
            assert node.totals.gaps == {reason: 3}


@pytest.mark.parametrize(
    "junk",
    [b"", b"-1", b"x" * 257, str(10**40).encode(), b"1.2.3", b"1' OR 1=1--", b"../..", b"%00", b"\xff", "é-1".encode()],
)
async def test_a_cursor_that_is_none_starts_with_a_gap_at_the_end_of_the_log(node: Node, junk: bytes) -> None:
    await publish(node, *"abc")
    top = str(await node.broker.top())
    async with subscribed(node, after=junk) as subscriber:
        welcome, gap = await received(subscriber)
        assert welcome.id is None
        assert gap.id == top
        assert data_of(gap) == {"requested": None, "oldest": top[:-1] + "1", "top": top, "reason": "malformed"}
        await publish(node, "d")
        assert await texts(subscriber) == ["d"]


async def test_a_cursor_with_a_lone_surrogate_is_malformed(node: Node) -> None:
    _, gap = await replay(node, after="\udcff-1")
    assert data_of(gap)["reason"] == "malformed"


async def test_a_cursor_of_another_epoch_starts_with_everything_there_is(node: Node) -> None:
    await publish(node, *"abc")
    welcome, gap, *rest = await replay(node, after="gone-70")
    assert welcome.id == "gone-70"
    assert (data_of(gap)["reason"], data_of(gap)["requested"]) == ("epoch", "gone-70")
    assert gap.id == str(await node.broker.oldest())
    assert datas(rest) == ["a", "b", "c"]


async def test_a_resume_with_a_filter_gets_only_what_matches(node: Node) -> None:
    start = await node.broker.top()
    for topic in ("a", "b", "a", "c"):
        await publish(node, topic, topic=topic)
    await publish(node, "all")
    events = await replay(node, "a", "c", after=start)
    assert datas(events) == ["a", "a", "c", "all"]


async def test_a_resume_goes_over_into_what_is_live(node: Node) -> None:
    positions = await publish(node, *"abc")
    async with subscribed(node, after=positions[0]) as subscriber:
        await publish(node, "d")
        assert await texts(subscriber) == ["b", "c", "d"]
        await publish(node, "e")
        assert await texts(subscriber) == ["e"]


async def test_no_publication_falls_between_the_end_of_the_log_and_the_queue() -> None:
    """However late the broker answers, and whatever is published meanwhile (C2)."""
    for delay in range(8):
        broker = DistantBroker([delay, delay // 2, 0])
        async with node_on(broker, queue_size=2) as node:
            await publish(node, "0")

            async def publishing(node: Node = node) -> None:
                for number in range(1, 40):
                    await node.publish(Draft.compose(str(number)))

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(publishing())
                for after in (None, await broker.top(), await broker.oldest()):
                    async with subscribed(node, after=after) as subscriber:
                        welcome = EventDecoder().feed(await subscriber.read())[0]
                        found = [int(text or "") for text in await texts(subscriber)]
                        first = int((welcome.id or "").partition("-")[2])
                        assert found == list(range(first, first + len(found)))
                        assert found


# --- last, since ---


async def test_last_gives_the_newest_first_and_then_what_is_live(node: Node) -> None:
    positions = await publish(node, *"abcde")
    async with subscribed(node, last=2) as subscriber:
        events = await received(subscriber)
        assert datas(events) == ["d", "e"]
        assert (events[0].id, data_of(events[0])["recovered"]) == (str(positions[2]), False)
        await publish(node, "f")
        assert await texts(subscriber) == ["f"]


@pytest.mark.parametrize(("last", "expected"), [(0, []), (1, ["e"]), (5, list("abcde")), (10**6, list("abcde"))])
async def test_last_gives_at_most_what_there_is(node: Node, last: int, expected: list[str]) -> None:
    await publish(node, *"abcde")
    assert datas(await replay(node, last=last)) == expected


async def test_last_counts_what_matches(node: Node) -> None:
    for number in range(6):
        await publish(node, str(number), topic="even" if number % 2 == 0 else "odd")
    assert datas(await replay(node, "even", last=2)) == ["2", "4"]
    assert datas(await replay(node, "none", last=2)) == []


async def test_a_cursor_wins_over_last_and_since(node: Node) -> None:
    positions = await publish(node, *"abc")
    assert datas(await replay(node, after=positions[1], last=3)) == ["c"]
    assert datas(await replay(node, after=positions[1], since=0)) == ["c"]


async def test_since_gives_what_was_published_from_then_on() -> None:
    wall = Clock(1_700_000_000.0)
    async with node_on(MemoryBroker(history=3, wall=wall)) as node:
        for text in "abcd":
            await publish(node, text)
            wall.now += 10
        assert datas(await replay(node, since=wall.now - 20)) == ["c", "d"]
        assert datas(await replay(node, since=wall.now)) == []
        complete = await replay(node, since=wall.now - 30)
        assert [event.type for event in complete] == ["welcome", "message", "message", "message"]
        welcome, gap, *rest = await replay(node, since=0)
        assert (data_of(gap)["reason"], datas(rest)) == ("trimmed", ["b", "c", "d"])
        assert data_of(gap)["requested"] == welcome.id == str(Position((await node.broker.top()).epoch, 0))


# --- slow readers ---


async def test_a_slow_reader_never_delays_another_and_catches_up_from_the_log() -> None:
    async with node_on(MemoryBroker(), queue_size=10) as node, subscribed(node) as slow, subscribed(node) as healthy:
        await received(slow)
        for number in range(100):
            await publish(node, str(number))
            assert (await received(healthy))[-1].data == str(number)
        assert (node.totals.lagging, node.totals.overflows) == (1, 1)
        assert await texts(slow) == [str(number) for number in range(100)]
        assert (node.totals.lagging, node.totals.gaps) == (0, {})
        await publish(node, "live")
        assert await texts(slow) == await texts(healthy) == ["live"]


async def test_a_slow_reader_is_told_what_was_trimmed_meanwhile() -> None:
    async with node_on(MemoryBroker(history=5), queue_size=2) as node, subscribed(node) as slow:
        (welcome,) = await received(slow)
        await publish(node, *map(str, range(20)))
        gap, *rest = await received(slow)
        assert data_of(gap)["reason"] == "trimmed"
        assert data_of(gap)["requested"] == welcome.id
        assert gap.id == str(await node.broker.oldest())
        assert datas(rest) == ["15", "16", "17", "18", "19"]
        assert node.totals.lagging == 0


async def test_a_slow_reader_that_leaves_is_not_lagging_any_more() -> None:
    async with node_on(MemoryBroker(), queue_size=2) as node:
        async with subscribed(node):
            await publish(node, *"abcdef")
            assert node.totals.lagging == 1
        assert state(node) == (0, 0, 0, 0)


async def test_a_burst_in_one_turn_of_the_loop_is_delivered_whole() -> None:
    async with node_on(MemoryBroker(), queue_size=10) as node, subscribed(node) as subscriber:
        await received(subscriber)
        for number in range(1_000):
            await node.publish(Draft.compose(str(number)))
        assert await texts(subscriber) == [str(number) for number in range(1_000)]


async def test_each_further_piece_takes_one_turn_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "PIECE_BYTES", 1)  # each publication is a piece
    async with node_on(MemoryBroker()) as node, subscribed(node) as subscriber:
        await received(subscriber)
        for number in range(50):
            await node.publish(Draft.compose(str(number)))
        taken = 0
        while node._delivery.position.offset < 50:
            await asyncio.sleep(0)
            taken += 1
        assert 50 <= taken < 60, "publishers of batches are faster than delivering when it takes more"
        assert await texts(subscriber) == [str(number) for number in range(50)]


# --- entries that a node cannot read ---


def shown(events: list[Event]) -> list[str]:
    """The data of publications, and of each gap from where to where it is, and why."""
    found = []
    for event in events:
        if event.type == "gap":
            cursor = Position.parse((event.id or "").encode())
            assert cursor
            requested = Position.parse(data_of(event)["requested"].encode())
            assert requested
            found.append(f"{data_of(event)['reason']} {requested.offset}>{cursor.offset}")
        elif event.type != "welcome":
            found.append(event.data)
    return found


async def test_a_lost_publication_is_told_to_every_stream_as_a_gap(node: Node) -> None:
    async with subscribed(node, "a") as first, subscribed(node, "b") as second:
        await received(first), await received(second)
        await publish(node, "1", topic="a")
        await lose(node.broker)  # type: ignore[arg-type]
        await publish(node, "3", topic="a")
        assert shown(await received(first)) == ["1", "lost 1>2", "3"]
        assert shown(await received(second)) == ["lost 1>2"]
        assert (node.totals.delivered, dict(node.totals.gaps)) == (2, {"lost": 2})


async def test_lost_publications_in_a_row_are_one_gap_for_who_resumes(node: Node) -> None:
    start = await node.broker.top()
    await publish(node, "1", topic="a")
    await lose(node.broker)  # type: ignore[arg-type]
    await publish(node, "3", topic="b")
    await lose(node.broker)  # type: ignore[arg-type]
    await publish(node, "5", topic="a")
    assert shown(await replay(node, "a", after=start)) == ["1", "lost 1>4", "5"]
    assert (node.totals.delivered, dict(node.totals.gaps)) == (2, {"lost": 1})


async def test_a_client_may_resume_from_a_lost_publication(node: Node) -> None:
    await publish(node, "1")
    lost = await lose(node.broker)  # type: ignore[arg-type]
    await publish(node, "3")
    welcome, *rest = await replay(node, after=lost)
    assert data_of(welcome)["recovered"]
    assert shown(rest) == ["3"]


async def test_a_lost_publication_is_not_what_was_last(node: Node) -> None:
    async with subscribed(node):
        (before,) = await publish(node, "1")
        await lose(node.broker)  # type: ignore[arg-type]
        await asyncio.sleep(MOMENT)
        (welcome,) = await replay(node)
        assert data_of(welcome)["last"]["id"] == str(before)


# --- limits ---


async def test_one_more_than_max_subscribers_is_refused() -> None:
    async with node_on(MemoryBroker(), max_subscribers=2) as node:
        async with subscribed(node), subscribed(node):
            with pytest.raises(Overloaded):
                await subscribed(node).__aenter__()
            assert (node.totals.subscribers, node.totals.refused) == (2, 1)
        async with subscribed(node):
            assert node.totals.subscribers == 1


@pytest.mark.parametrize(
    ("topics", "options", "error"),
    [(["a/**/b"], {}, InvalidTopic), ([], {"client": "a b"}, InvalidClient), (["a"] * 3 + ["**/a"], {}, InvalidTopic)],
)
async def test_a_subscriber_that_is_refused_leaves_nothing(
    node: Node, topics: list[str], options: dict[str, Any], error: type[BadInput]
) -> None:
    with pytest.raises(error):
        await subscribed(node, *topics, **options).__aenter__()
    assert state(node) == (0, 0, 0, 0)
    assert node.totals.connected == 0


USES: dict[str, Callable[[Node], Awaitable[object]]] = {
    "publish": lambda node: node.publish(Draft.compose("x")),
    "subscribe": lambda node: subscribed(node).__aenter__(),
    "stats": lambda node: node.stats(),
    "drain": lambda node: node.drain(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
async def test_a_hub_that_was_never_started_names_the_missing_line(use: Callable[[Node], Awaitable[object]]) -> None:
    node = node_on(MemoryBroker())
    with pytest.raises(HubNotStarted, match=r"lifespan=hub\.lifespan"):
        await use(node)
    with pytest.raises(HubNotStarted), node.admitted():
        raise AssertionError
    node.begin_drain()
    async with node:
        await node.publish(Draft.compose("x"))
    with pytest.raises(HubNotStarted, match=r"has stopped.*started again"):
        await use(node)


@pytest.mark.parametrize("use", USES.values(), ids=USES)
async def test_another_loop_is_told_how_to_publish(node: Node, use: Callable[[Node], Awaitable[object]]) -> None:
    """The futures that it waits for would not wake its own loop before something else does."""

    async def elsewhere() -> None:
        await use(node)

    with pytest.raises(RuntimeError, match=r"publish_threadsafe.*asyncio\.to_thread"):
        await asyncio.to_thread(asyncio.run, elsewhere())
    assert not node.draining
    assert (await node.broker.top()).offset == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"last": "5"}, "^last is a whole number"),
        ({"last": -1}, "^last is a whole number"),
        ({"last": 1.5}, "^last is a whole number"),
        ({"last": 10**30}, "^last is a whole number"),
        ({"since": "15m"}, "^since is Unix time"),
        ({"since": 10**400}, "^since is Unix time"),
        ({"since": math.nan}, "^since is Unix time"),
        ({"since": datetime(2026, 1, 31, tzinfo=UTC)}, "^since is Unix time"),
        ({"last": 5, "since": 1.0}, "not both"),
        ({"after": 5}, "^after is a Position"),
        ({"client": 5}, "^A client name"),
        ({"client": b"ann"}, "^A client name"),
    ],
    ids=str,
)
async def test_what_says_nothing_about_where_to_start_is_refused(
    node: Node, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(BadInput, match=text):
        await subscribed(node, **options).__aenter__()
    assert state(node) == (0, 0, 0, 0)


@pytest.mark.parametrize("topic", [5, None, b"a", ["a", "b"]], ids=str)
async def test_a_topic_filter_is_a_text(node: Node, topic: Any) -> None:
    with pytest.raises(InvalidTopic, match=r"^topic is a str"):
        await subscribed(node, topic).__aenter__()
    assert state(node) == (0, 0, 0, 0)


async def test_a_hub_that_ends_says_goodbye_and_ends_its_tasks() -> None:
    before = asyncio.all_tasks()
    node = node_on(MemoryBroker())
    async with AsyncExitStack() as stack:
        async with node:
            subscriber = await stack.enter_async_context(subscribed(node))
            await publish(node, "a")
        events = await received(subscriber)
        assert [event.type for event in events] == ["welcome", "message", "bye"]
        assert await subscriber.read() == b""
        assert asyncio.all_tasks() == before
    assert state(node) == (0, 0, 0, 0)
    assert node.totals.closed == {"drain": 1}


async def test_a_hub_can_be_started_again() -> None:
    node = node_on(MemoryBroker())
    for text in "ab":
        async with node, subscribed(node) as subscriber:
            await publish(node, text)
            assert await texts(subscriber) == [text]
    assert (await node.broker.top()).offset == 2


async def test_an_error_of_the_body_is_raised_as_it_is() -> None:
    with pytest.raises(KeyError):
        async with node_on(MemoryBroker()):
            raise KeyError


async def test_two_hubs_on_one_broker_deliver_what_either_publishes_in_one_order() -> None:
    broker = MemoryBroker()
    async with node_on(broker) as one, node_on(broker) as other, subscribed(one) as here, subscribed(other) as there:
        for number in range(50):
            await (one, other)[number % 2].publish(Draft.compose(str(number)))
            await asyncio.sleep(0)
        expected = [str(number) for number in range(50)]
        assert await texts(here) == await texts(there) == expected
        assert (await one.publish(Draft.compose("x"))).subscribers == 1, "the subscribers of this node"


async def test_a_hub_that_stopped_leaves_its_broker_nothing_to_keep_for_it() -> None:
    broker = MemoryBroker()
    async with node_on(broker) as stays, subscribed(stays) as subscriber:
        async with node_on(broker):
            assert len(broker._tails) == 2
        assert len(broker._tails) == 1
        await stays.publish(Draft.compose("x"))
        assert await texts(subscriber) == ["x"]
    assert broker._tails == []


async def test_stats_show_the_newest_and_keep_what_is_private(node: Node) -> None:
    await publish(node, "secret", to="ann")
    await publish(node, "x" * 2_000, topic="t", event="tick")
    await publish(node, "secret too", to="ann")
    async with subscribed(node, "t"), subscribed(node, "t"), subscribed(node, "u"):
        stats = await node.stats()
    text = json.dumps(stats)
    assert "secret" not in text
    assert stats["subscribers"] == 3
    assert stats["filters"] == [{"topics": ("t",), "subscribers": 2}, {"topics": ("u",), "subscribers": 1}]
    assert (stats["top"], stats["draining"]) == (str(await node.broker.top()), False)
    assert json.loads(text)["last"]["truncated"]
    assert [item["event"] for item in json.loads(text)["recent"]] == ["tick"]


# --- life ---


async def test_a_hub_that_runs_is_not_started_again_until_it_has_stopped() -> None:
    node = node_on(MemoryBroker())
    for _ in range(2):
        async with node:
            with pytest.raises(RuntimeError, match="running already"):
                await node.__aenter__()
            await node.publish(Draft.compose("it runs on"))


# --- cancellation (E4) ---


def attempts() -> Iterator[tuple[int, bool]]:
    for number in range(1, 300):
        yield number, False
        yield number, True
    raise AssertionError("it always has one more await")


async def follow(node: Node, after: Position, count: int) -> None:
    async with subscribed(node, "t", after=after) as subscriber:
        decoder, found = EventDecoder(), 0
        while found < count:
            found += len(datas(decoder.feed(await subscriber.read())))


async def test_a_subscriber_cancelled_anywhere_leaves_nothing_and_takes_nothing_from_others() -> None:
    """CancelledError at its n-th await, for every n: while it joins, reads the log, reads the queue."""
    finished = 0
    for number, late in attempts():
        async with node_on(DistantBroker([1, 2, 0]), queue_size=2) as node:
            start = await node.broker.top()
            await publish(node, *"abc", topic="t")
            async with subscribed(node) as other:
                await received(other)
                async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
                    tasks.create_task(publish(node, *"def", topic="t"))
                    was_cancelled = await cancel_at(number, follow(node, start, 6), late=late)
                assert await texts(other) == ["d", "e", "f"]
                assert state(node) == (1, 1, 1, 0), (number, late)
            assert state(node) == (0, 0, 0, 0)
            assert list(node._delivery.groups) == []
            assert node.totals.connected == node.totals.closed.total()
        finished += not was_cancelled
        if finished == 2:
            assert number > 5
            return


async def test_a_publisher_cancelled_anywhere_published_once_or_not_at_all() -> None:
    finished = 0
    for number, late in attempts():
        async with node_on(DistantBroker([2, 1])) as node, subscribed(node) as subscriber:
            was_cancelled = await cancel_at(number, node.publish(Draft.compose("x", idempotency_key="k")), late=late)
            await node.publish(Draft.compose("x", idempotency_key="k"))
            assert await texts(subscriber) == ["x"]
        finished += not was_cancelled
        if finished == 2:
            return


async def test_a_burst_of_one_turn_is_cut_into_pieces_that_a_queue_can_bound(node: Node) -> None:
    """D5 for publications that are announced together: the queue exceeds its bound by one piece, not by all of them."""
    async with subscribed(node) as subscriber:
        await available(subscriber)
        await asyncio.gather(*(node.publish(Draft.compose("x" * 256 * 1024)) for _ in range(40)))
        await asyncio.sleep(MOMENT)
        assert node.totals.overflows == 1
        events = await received(subscriber)
    assert [len(data) for data in datas(events)] == [256 * 1024] * 40


async def test_small_publications_of_one_turn_are_one_batch() -> None:
    async with node_on(MemoryBroker()) as node:
        peer = Socket()
        subscriber = await node.join(StreamRequest.parse())
        subscriber.attach(peer)
        before = peer.room
        await asyncio.gather(*(node.publish(Draft.compose(str(number))) for number in range(500)))
        await asyncio.sleep(MOMENT)
        assert before - peer.room == 1
        node.leave(subscriber, CloseReason.GONE)


# --- in the middle of steps ---


class HeldBroker(TroubledBroker):
    """A log whose answers of the method ``holds`` wait for ``release``, and are those of the moment of the question."""

    def __init__(self, holds: str) -> None:
        super().__init__()
        self._holds, self._released = holds, asyncio.Event()
        self.release()

    def hold(self) -> None:
        self._released.clear()

    def release(self) -> None:
        self._released.set()

    async def oldest(self) -> Position:
        oldest = await super().oldest()
        await self._answer("oldest")
        return oldest

    async def newest(self, *arguments: Any) -> Sequence[Publication]:
        found = await super().newest(*arguments)
        await self._answer("newest")
        return found

    async def _answer(self, name: str) -> None:
        if name == self._holds:
            await self._released.wait()


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop turns after each subscriber and each group."""
    for name in ("SLICE", "OFFER", "NOTED"):
        monkeypatch.setattr(f"sse_app.delivery.{name}", 1)


@asynccontextmanager
async def node_of_ten_groups() -> AsyncIterator[tuple[Node, AsyncExitStack]]:
    """A node with ten subscribers of ``all``, each a group of its own; the stack ends what else a test begins."""
    async with node_on(MemoryBroker()) as node, AsyncExitStack() as stack:
        for number in range(10):
            await stack.enter_async_context(subscribed(node, "all", f"own/{number}"))
        yield node, stack


@pytest.mark.usefixtures("small_steps")
async def test_no_stream_takes_a_cursor_beyond_what_it_has_yet_to_read_again() -> None:
    broker = TroubledBroker()
    async with node_on(broker) as node, AsyncExitStack() as stack:
        sockets = [Socket() for _ in range(20)]
        for socket in sockets:
            (await stack.enter_async_context(subscribed(node))).attach(socket)
        broker.deaf = True
        await publish(node, *(f"missed {number}" for number in range(200)))
        broker.deaf = False
        moving = asyncio.create_task(node._cursors.move_all())
        await node.publish(Draft.compose("the tail goes on"))
        for _ in range(30):
            await turns()
            await node._cursors.move_all()
        await moving
        await asyncio.sleep(1)
        for socket in sockets:
            events = EventDecoder().feed(socket.take())
            assert datas(events) == [*(f"missed {number}" for number in range(200)), "the tail goes on"]


@pytest.mark.usefixtures("small_steps")
async def test_a_key_has_one_receipt_however_long_the_count_takes() -> None:
    async with node_of_ten_groups() as (node, stack):
        draft = Draft.compose("x", topic="all", idempotency_key="k")
        first = asyncio.create_task(node.publish(draft))
        await turns(2)
        await stack.enter_async_context(subscribed(node, "all", "late"))
        receipts = [await node.publish(draft), await first, await node.publish(draft)]
        assert receipts[0] == receipts[1] == receipts[2]
        assert node.totals.published == 1


@pytest.mark.usefixtures("small_steps")
async def test_a_publication_whose_count_was_cancelled_is_counted_once() -> None:
    async with node_of_ten_groups() as (node, _):
        draft = Draft.compose("x", topic="all", idempotency_key="k")
        first = asyncio.create_task(node.publish(draft))
        await turns(2)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (await node.publish(draft)).subscribers == 10
        assert node.totals.published == 1


@pytest.mark.usefixtures("small_steps")
async def test_who_is_excluded_and_comes_during_the_count_does_not_lower_it() -> None:
    async with node_of_ten_groups() as (node, stack):
        await stack.enter_async_context(subscribed(node, "all", client="absent"))
        draft = Draft.compose("x", topic="all", exclude="absent")
        publishing = asyncio.create_task(node.publish(draft))
        await turns(2)
        for number in range(5):
            await stack.enter_async_context(subscribed(node, "all", f"own/{number}", client="absent"))
        assert 10 <= (await publishing).subscribers <= 15  # type: ignore[operator]
        assert (await node.publish(draft)).subscribers == 10


@pytest.mark.parametrize("later", range(8))
async def test_a_stop_waits_for_no_client_whose_stream_begins_meanwhile(later: int) -> None:
    node = node_on(MemoryBroker())
    await node.__aenter__()
    (position, *_) = await publish(node, *"abcde")
    subscriber = await node.join(StreamRequest.parse(after=position))
    stopping = asyncio.create_task(node.__aexit__(None, None, None))
    await turns(later)
    socket = Socket(room=2)
    subscriber.attach(socket)
    async with asyncio.timeout(60):
        await stopping
    await turns()
    assert socket.ended
    node.leave(subscriber, CloseReason.GONE)
    assert state(node) == (0, 0, 0, 0)


async def test_a_stream_whose_join_is_answered_after_the_stop_does_not_begin() -> None:
    broker = HeldBroker("oldest")
    node = node_on(broker)
    async with node:
        (position, *_) = await publish(node, *"abc")
        broker.hold()
        joining = asyncio.create_task(node.join(StreamRequest.parse(after=position)))
        await turns()
    broker.release()
    with pytest.raises(HubNotStarted, match="has stopped"):
        await joining
    assert state(node) == (0, 0, 0, 0)


async def test_a_search_of_the_log_before_gives_a_group_no_newest_publication() -> None:
    broker = HeldBroker("newest")
    async with node_on(broker) as node:
        await publish(node, "old", topic="a")
        broker.hold()
        joining = asyncio.create_task(node.join(StreamRequest.parse(["a"])))
        await until(lambda: any(group.looking_up for group in node._delivery.groups))
        broker.begin_anew()
        await publish(node, "other", topic="b")
        broker.release()
        first = await joining
        async with subscribed(node, "a") as second:
            for subscriber in (first, second):
                assert data_of((await received(subscriber))[0])["last"] is None
        node.leave(first, CloseReason.GONE)


async def test_a_node_stops_though_a_task_lost_its_cancellation() -> None:
    entered = asyncio.Event()

    async def deaf() -> None:
        """As a request of a client library that answers a cancellation with its result, once."""
        with suppress(asyncio.CancelledError):
            entered.set()
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    async with asyncio.timeout(PATIENCE), node_on(MemoryBroker()) as node:
        node.spawn(deaf())
        await entered.wait()
