import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from sse_app import Client, Draft, Event, Hub
from sse_app.errors import InvalidTopic
from sse_app.testing import (
    Expected,
    PublishedEvent,
    SlowReader,
    StreamingASGITransport,
    assert_events,
    assert_received,
    events,
    published,
)
from tests.support.peers import PATIENCE

ORDER = Event('{"number":42,"paid":true}', "order", "e-7")
TEXT = Event("hello", id="e-8")


@dataclass
class Order:
    number: int
    paid: bool


@pytest.mark.parametrize(
    "expected",
    [
        Event('{"number":42,"paid":true}', "order"),
        Event('{"number":42,"paid":true}', "order", "e-7"),
        Expected('{"number":42,"paid":true}', type="order"),
        Expected({"paid": True, "number": 42}, type="order"),
        Expected(Order(42, True), type="order", id="e-7"),
        Expected(..., type="order"),
    ],
)
def test_what_matches(expected: object) -> None:
    assert_events([ORDER], [expected])


@pytest.mark.parametrize(
    "expected",
    [
        Event('{"number":42,"paid":true}'),
        Event('{"number":42,"paid":true}', "order", "e-8"),
        Event('{"paid":true,"number":42}', "order"),
        {"number": 42, "paid": True},
        Expected({"number": 42}, type="order"),
        Expected(..., type="orders"),
    ],
)
def test_what_does_not_match(expected: object) -> None:
    with pytest.raises(AssertionError, match=r"received 1 of 1 expected events"):
        assert_events([ORDER], [expected])


def test_data_alone_is_expected_as_it_is_published() -> None:
    assert_events([TEXT, Event("42"), Event("null"), Event("[1]")], ["hello", 42, None, [1]])
    with pytest.raises(AssertionError):
        assert_events([TEXT], [["hello"]])


def test_the_difference_can_be_read() -> None:
    received = [Event("1"), Event("2", "order", "e-2"), Event("a\nb", id="e-3"), Event("x" * 1_000)]
    with pytest.raises(AssertionError) as raised:
        assert_events(received, ["1", Expected(3, type="order", id="e-9"), "a\nb", Expected(..., type="end")])
    assert str(raised.value).splitlines() == [
        "received 4 of 4 expected events (- expected, + received)",
        "    message 1",
        "  - order 3 id=e-9",
        "  + order 2 id=e-2",
        r"    message a\nb id=e-3",
        "  - end ...",
        f"  + message {'x' * 200}... (1,000 characters)",
    ]


def test_what_is_missing_doubled_or_out_of_order_is_told() -> None:
    one, two = Event("1"), Event("2")
    for received, lines in [
        ([one], ["    message 1", "  - message 2"]),
        ([one, two, two], ["    message 1", "    message 2", "  + message 2"]),
        ([two, one], ["  + message 2", "    message 1", "  - message 2"]),
        ([], ["  - message 1", "  - message 2"]),
    ]:
        with pytest.raises(AssertionError) as raised:
            assert_events(received, ["1", "2"])
        assert str(raised.value).splitlines()[1:] == lines


def test_notices_are_passed_over_unless_they_are_expected() -> None:
    welcome, bye, gap = Event("{}", "welcome"), Event("{}", "bye"), Event("{}", "gap")
    assert_events([welcome, TEXT, bye], ["hello"])
    assert_events([welcome, TEXT], [Expected(..., type="welcome"), "hello"])
    assert_events([welcome, gap, TEXT], [Expected(..., type="gap"), "hello"])
    with pytest.raises(AssertionError, match=r"\+ gap \{\}"):
        assert_events([welcome, gap, TEXT], ["hello"])


def test_the_topic_of_an_event_of_a_stream_cannot_be_known() -> None:
    with pytest.raises(TypeError, match="subscribe to one topic alone, or compare published"):
        assert_events([TEXT], [Expected("hello", topic="a")])


# Streams


async def stream_of(*came: Event, hold: bool = False) -> AsyncIterator[Event]:
    for event in came:
        yield event
    if hold:
        await asyncio.Event().wait()


async def test_a_stream_is_read_as_far_as_is_expected_and_can_be_read_on() -> None:
    stream = stream_of(Event("{}", "welcome"), Event("1"), Event("2"), Event("3"))
    await assert_received(stream, [1])
    await assert_received(stream, [2])
    assert [event.data async for event in stream] == ["3"]


@pytest.mark.virtual_time
async def test_what_does_not_come_in_time_is_told_and_what_came() -> None:
    with pytest.raises(AssertionError) as raised:
        await assert_received(stream_of(Event("1"), hold=True), ["1", "2"], timeout=3600)
    assert str(raised.value).splitlines() == [
        "received 1 of 2 expected events (- expected, + received), then nothing more within 3600 s",
        "    message 1",
        "  - message 2",
    ]
    assert asyncio.get_running_loop().time() == pytest.approx(3600)


async def test_a_stream_that_ends_too_early_is_told() -> None:
    with pytest.raises(AssertionError, match=r"received 1 of 2 .* then the stream has ended"):
        await assert_received(stream_of(Event("1")), ["1", "2"])


async def test_a_gap_is_told_as_soon_as_it_comes() -> None:
    gap = Event('{"reason":"trimmed"}', "gap", "e-5")
    with pytest.raises(AssertionError, match="then a gap: events before e-5 are lost") as raised:
        await assert_received(stream_of(Event("1"), gap, hold=True), ["1", "2", "3"])
    assert '  + gap {"reason":"trimmed"} id=e-5' in str(raised.value)
    await assert_received(stream_of(Event("1"), gap), ["1", Expected(..., type="gap")])


async def test_a_gap_that_our_client_raises_is_told_too() -> None:
    async with Hub(history=1) as hub:
        first = await hub.publish("0")
        for number in range(1, 4):
            await hub.publish(number)
        transport = StreamingASGITransport(hub.app)
        async with httpx.AsyncClient(transport=transport) as http, Client("http://localhost", http=http) as client:
            stream = client.listen(last_event_id=first.id)
            with pytest.raises(AssertionError, match=r"received 0 of 3 .* then a gap: .*trimmed"):
                await assert_received(stream, [1, 2, 3])
            await assert_received(stream, [3])  # the stream goes on behind the gap


async def test_every_stream_of_ours_can_be_asserted(sse_hub: Hub, sse_client: httpx.AsyncClient) -> None:
    async with (
        sse_hub.subscribe("orders/*") as subscriber,
        sse_client.stream("GET", "/events") as response,
        sse_client.stream("GET", "/events") as slow,
        Client("http://localhost", http=sse_client) as client,
    ):
        await sse_hub.publish({"number": 42}, topic="orders/42", event="order")
        expected = [Expected({"number": 42}, type="order")]
        streams: list[AsyncIterable[Event]] = [subscriber, events(response), SlowReader(slow), client.listen(last=1)]
        for stream in streams:
            await assert_received(stream, expected, timeout=PATIENCE)


# What an app publishes


async def test_published_events_have_topics_and_recipients(sse_hub: Hub) -> None:
    await sse_hub.publish("before")
    with published(sse_hub) as sent:
        receipt = await sse_hub.publish({"number": 42}, topic="orders/42", event="order", to={"ann"})
        await sse_hub.publish("all", topic=iter(["a", "b"]), exclude="bob")
        await sse_hub.publish("everyone")
    await sse_hub.publish("after")
    assert sent[0] == PublishedEvent(
        '{"number":42}', "order", receipt.id, ("orders/42",), frozenset({"ann"}), frozenset()
    )
    assert (sent[1].topics, sent[1].exclude) == (("a", "b"), frozenset({"bob"}))
    assert_events(
        sent, [Expected({"number": 42}, type="order", topic="orders/42"), Expected("all", topic="b"), "everyone"]
    )
    with pytest.raises(AssertionError) as raised:
        assert_events(sent[:1], [Expected({"number": 42}, type="order", topic="orders/43")])
    assert str(raised.value).splitlines()[1:] == [
        '  - order {"number":42} topic=orders/43',
        f'  + order {{"number":42}} topic=orders/42 id={receipt.id}',
    ]


async def test_each_event_of_a_batch_is_listed(sse_hub: Hub) -> None:
    with published(sse_hub) as sent:
        for _ in range(2):
            first, _ = await sse_hub.publish_many(["x", {"n": 1}], topic="a", to="me", idempotency_key="k")
        await asyncio.to_thread(sse_hub.publish_many_threadsafe, [Draft.compose("y", topic="b", event="tick")])
    assert sent[0] == PublishedEvent("x", "message", first.id, ("a",), frozenset({"me"}), frozenset())
    assert_events(sent, [Expected("x", topic="a"), Expected({"n": 1}, topic="a"), Expected("y", "tick", topic="b")])


async def test_what_is_refused_is_not_listed_and_what_is_repeated_once(sse_hub: Hub) -> None:
    with published(sse_hub) as sent:
        with pytest.raises(InvalidTopic):
            await sse_hub.publish("x", topic=[])
        for _ in range(2):
            await sse_hub.publish("x", idempotency_key="k")
    assert_events(sent, ["x"])


async def test_a_publication_from_a_thread_is_listed_and_reaches_its_subscribers(sse_hub: Hub) -> None:
    async with sse_hub.subscribe() as subscriber:
        with published(sse_hub) as sent:
            await asyncio.to_thread(sse_hub.publish_threadsafe, "x", topic="a")
        assert_events(sent, [Expected("x", topic="a")])
        await assert_received(subscriber, ["x"])


async def test_the_published_of_two_hubs_are_apart() -> None:
    async with Hub() as one, Hub() as two:
        with published(one) as of_one, published(two) as of_two:
            await one.publish("1")
            await two.publish("2")
    found: Any = (of_one, of_two)
    assert [[event.data for event in sent] for sent in found] == [["1"], ["2"]]
