"""Several events published together: what a node answers, counts and asks for, and the doors for Python."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest

from sse_app import AsyncPublisher, Hub, Publisher
from sse_app.brokers.memory import MemoryBroker
from sse_app.drafts import Drafts
from sse_app.errors import (
    BrokerUnavailable,
    InvalidIdempotencyKey,
    InvalidTopic,
    KeyReused,
    TooLarge,
    TopicRequired,
    Vetoed,
)
from sse_app.grants import OPEN, Grant
from sse_app.node import Node
from sse_app.publication import Draft, Publication, Receipt
from sse_app.topics import TopicFilter
from sse_app.vetting import WINDOW
from tests.support.nodes import node_on, subscribed, texts
from tests.support.peers import DistantBroker, TroubledBroker
from tests.support.worlds import World


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with node_on(MemoryBroker()) as node:
        yield node


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    async with Hub() as hub:
        yield hub


async def log_of(hub: Hub) -> list[str]:
    return [item.event.data for item in await publications_of(hub)]


async def publications_of(hub: Hub) -> list[Publication]:
    return list(await hub.broker.newest(10_000, TopicFilter(), None))


def counts(receipts: list[Receipt]) -> list[int | None]:
    return [receipt.subscribers for receipt in receipts]


# --- receipts ---


async def test_each_event_has_a_receipt_with_its_own_subscribers(node: Node) -> None:
    async with subscribed(node, "a"), subscribed(node, "b"), subscribed(node, client="me") as everything:
        receipts = await node.publish_many(
            Drafts(
                (
                    Draft.compose("1", topic="a"),
                    Draft.compose("2", topic=["a", "b"]),
                    Draft.compose("3"),
                    Draft.compose("4", exclude="me"),
                    Draft.compose("5", topic="a", to="me"),
                )
            )
        )
        assert counts(receipts) == [2, 3, 3, 2, 1]
        assert [receipt.position.offset for receipt in receipts] == [1, 2, 3, 4, 5]
        assert {receipt.durable for receipt in receipts} == {"none"}
        assert await texts(everything) == ["1", "2", "3", "5"]


async def test_those_for_the_same_are_counted_once(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[Draft] = []
    count = node._delivery.count

    def counting(draft: Draft) -> Any:
        counted.append(draft)
        return count(draft)

    monkeypatch.setattr(node._delivery, "count", counting)
    await node.publish_many(Drafts.compose(range(1_000), topic="t", to="me"))
    assert len(counted) == 1
    await node.publish_many(Drafts(tuple(Draft.compose("x", topic=f"t/{number % 10}") for number in range(100))))
    assert len(counted) == 11


async def test_nothing_is_nothing(node: Node) -> None:
    assert await node.publish_many(Drafts(())) == []
    assert await node.publish_many(Drafts((), "k")) == []
    assert (node.totals.published, (await node.broker.top()).offset) == (0, 0)


async def test_a_retry_of_a_batch_has_the_same_answer(node: Node) -> None:
    batch = Drafts.compose(["a", "b"], idempotency_key="k")
    async with subscribed(node):
        first = await node.publish_many(batch)
    assert await node.publish_many(batch) == first
    assert counts(first) == [1, 1]
    assert node.totals.published == 2
    with pytest.raises(KeyReused):
        await node.publish_many(Drafts.compose(["a"], idempotency_key="k"))
    assert node.totals.published == 2


async def test_a_retry_of_drafts_with_keys_has_the_same_answer_for_those_known(node: Node) -> None:
    drafts = [Draft.compose(text, idempotency_key=text) for text in "abc"]
    async with subscribed(node):
        single = await node.publish(drafts[1])
        first = await node.publish_many(Drafts(tuple(drafts[:2])))
    again = await node.publish_many(Drafts(tuple(drafts)))
    assert first[1] == single
    assert again[:2] == first
    assert counts(again) == [1, 1, 0]
    assert node.totals.published == 3


async def test_batches_at_once_with_one_key_are_counted_once() -> None:
    async with node_on(DistantBroker([0, 3, 1, 7])) as node, subscribed(node):
        batch = Drafts.compose(["a", "b"], idempotency_key="k")
        found = await asyncio.gather(*(node.publish_many(batch) for _ in range(20)))
        assert all(receipts == found[0] for receipts in found)
        assert (node.totals.published, counts(found[0])) == (2, [1, 1])


async def test_a_log_that_is_away_publishes_nothing() -> None:
    async with node_on(broker := TroubledBroker()) as node, subscribed(node) as subscriber:
        broker.down = True
        with pytest.raises(BrokerUnavailable):
            await node.publish_many(Drafts.compose(["a", "b"]))
        broker.down = False
        assert node.totals.published == 0
        await node.publish_many(Drafts.compose(["c", "d"]))
        assert await texts(subscriber) == ["c", "d"]


# --- the app's word ---


async def test_the_app_is_asked_for_each_and_what_it_returns_is_published() -> None:
    seen: list[tuple[str, Grant]] = []

    async def before_publish(draft: Draft, grant: Grant) -> Draft:
        seen.append((draft.event.data, grant))
        return replace(draft, topics=("signed",))

    async with Hub(before_publish=before_publish, require_topic=True) as hub:
        await hub.publish_many(["a", "b"], idempotency_key="k")
        assert [(item.event.data, item.topics) for item in await publications_of(hub)] == [
            ("a", ("signed",)),
            ("b", ("signed",)),
        ]
    assert seen == [("a", OPEN), ("b", OPEN)]


async def test_one_veto_is_enough() -> None:
    async def before_publish(draft: Draft, grant: Grant) -> Draft:
        if draft.event.data == "c":
            raise Vetoed("Not this one.")
        return draft

    async with Hub(before_publish=before_publish) as hub:
        with pytest.raises(Vetoed, match=r"^events\[2\]: Not this one\.$"):
            await hub.publish_many(list("abcd"))
        assert await log_of(hub) == []


async def test_a_mistake_of_the_apps_publishes_nothing() -> None:
    async def before_publish(draft: Draft, grant: Grant) -> Draft:
        return replace(draft, idempotency_key="mine")

    async with Hub(before_publish=before_publish) as hub:
        with pytest.raises(RuntimeError, match="before_publish failed"):
            await hub.publish_many(["a", "b"], idempotency_key="k")
        assert await log_of(hub) == []


@pytest.mark.virtual_time
async def test_it_has_as_long_for_all_as_for_one_and_stops_nobody_meanwhile() -> None:
    async def before_publish(draft: Draft, grant: Grant) -> Draft:
        await asyncio.sleep(WINDOW / 10 if draft.event.data == "slow" else 0)
        return draft

    async with Hub(before_publish=before_publish) as hub:
        await hub.publish_many(["slow"] * 9)
        late = asyncio.create_task(hub.publish_many(["slow"] * 11))
        await asyncio.sleep(WINDOW / 2)
        await hub.publish("quick")
        with pytest.raises(Exception, match="before_publish took longer"):
            await late
        assert await log_of(hub) == ["slow"] * 9 + ["quick"]


async def test_the_loop_turns_while_the_app_is_asked() -> None:
    turned = 0

    async def turn() -> None:
        nonlocal turned
        while True:
            turned += 1
            await asyncio.sleep(0)

    async def before_publish(draft: Draft, grant: Grant) -> Draft:
        return draft

    async with Hub(before_publish=before_publish) as hub:
        turning = asyncio.create_task(turn())
        await hub.publish_many(range(1_000))
        turning.cancel()
    assert turned > 1_000 / 100


# --- the doors ---


async def test_a_hub_publishes_data_and_drafts_and_delivers_them_in_order(hub: Hub) -> None:
    async with hub.subscribe("t", "u") as subscription:
        first = await hub.publish_many(["text", {"n": 1}], topic="t", event="tick")
        second = await hub.publish_many([Draft.compose("x", topic="u"), Draft.compose("y", topic="v")])
        assert counts(first + second) == [1, 1, 1, 0]
        _, *events = [await anext(subscription) for _ in range(4)]
        assert [(event.data, event.type, event.id) for event in events] == [
            ("text", "tick", first[0].id),
            ('{"n":1}', "tick", first[1].id),
            ("x", "message", second[0].id),
        ]
    assert [item.is_json for item in await publications_of(hub)] == [False, True, False, False]


async def test_what_a_draft_says_itself_is_checked_at_the_door(hub: Hub) -> None:
    with pytest.raises(InvalidTopic, match=r"^events\[1\]: A topic to publish on has no wildcard"):
        await hub.publish_many(["fine", replace(Draft.compose("x"), topics=("*",))])
    with pytest.raises(InvalidIdempotencyKey):
        await hub.publish_many([Draft.compose("x", idempotency_key="k")], idempotency_key="l")
    assert await log_of(hub) == []


async def test_a_batch_has_bounds_of_its_own() -> None:
    async with Hub(body_max=100, batch_bytes=150) as hub:
        await hub.publish_many(["x" * 100, "y" * 50])
        with pytest.raises(TooLarge, match="150 bytes together"):
            await hub.publish_many(["x" * 100, Draft.compose("y" * 51)])
        with pytest.raises(TooLarge, match=r"events\[1\]: .* at most 100 bytes"):
            await hub.publish_many(["x", Draft.compose("y" * 101)])
        with pytest.raises(TooLarge, match="at most 1,000 events"):
            await hub.publish_many(map(str, range(1_001)))
        assert len(await log_of(hub)) == 2


async def test_a_hub_that_requires_topics_requires_them_of_each() -> None:
    async with Hub(require_topic=True) as hub:
        with pytest.raises(TopicRequired, match=r"^events\[1\]: This hub takes no publication without a topic"):
            await hub.publish_many([Draft.compose("a", topic="t"), Draft.compose("b")])
        with pytest.raises(TopicRequired, match=r"^events\[0\]"):
            await hub.publish_many(["a"])
        assert await log_of(hub) == []


async def test_a_thread_publishes_what_only_it_may_iterate_over(hub: Hub) -> None:
    threads: list[bool] = []

    def rows() -> Iterator[int]:
        threads.append(_is_in_a_loop())
        yield from range(3)

    receipts = await asyncio.to_thread(hub.publish_many_threadsafe, rows(), topic="t")
    assert [receipt.position.offset for receipt in receipts] == [1, 2, 3]
    assert threads == [False]
    with pytest.raises(RuntimeError, match="own event loop"):
        hub.publish_many_threadsafe(["x"])


def _is_in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def test_publishers_without_a_hub_publish_batches_too(sqlite_world: World) -> None:
    async with Hub(sqlite_world.url) as hub, AsyncPublisher(sqlite_world.url, require_topic=True) as publisher:
        first = await publisher.publish_many(["a", {"n": 1}], topic="t", idempotency_key="k")
        assert [(receipt.position.offset, receipt.subscribers) for receipt in first] == [(1, None), (2, None)]
        assert await publisher.publish_many(["a", {"n": 1}], topic="t", idempotency_key="k") == first
        assert await publisher.publish_many([]) == []
        with pytest.raises(TopicRequired, match=r"events\[1\]"):
            await publisher.publish_many([Draft.compose("x", topic="t"), Draft.compose("y")])
        with Publisher(sqlite_world.url, batch_bytes=3) as blocking:
            (third,) = await asyncio.to_thread(blocking.publish_many, iter(["abc"]))
            with pytest.raises(TooLarge, match="3 bytes together"):
                await asyncio.to_thread(blocking.publish_many, ["ab", "cd"])
        assert third.position.offset == 3
        assert await log_of(hub) == ["a", '{"n":1}', "abc"]
