"""Several events published at once by a client: one request, which a retry repeats with the same keys."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from sse_app import Client, Draft, SyncClient
from sse_app.errors import BadInput, InvalidData, InvalidIdempotencyKey, Refused, TooLarge, Unreachable
from sse_app.publication import Publication
from sse_app.testing import StreamingASGITransport
from sse_app.topics import TopicFilter
from tests.client.test_client import LosingAnswers, Scripted, client_and_hub, client_of, problem
from tests.support.web import live_hub

ACKNOWLEDGED = {"ids": ["e-1", "e-2"], "subscribers": [3, 0], "durable": "fsync"}


@asynccontextmanager
async def acknowledging() -> AsyncIterator[tuple[Client, Scripted]]:
    way = Scripted(lambda: httpx.Response(200, json=ACKNOWLEDGED))
    async with client_of(way) as client:
        yield client, way


async def log_of(hub: Any) -> list[Publication]:
    return list(await hub.broker.newest(1_000, TopicFilter(), None))


async def test_data_arrives_as_that_of_single_publications() -> None:
    events = ["text\n", 'a "quoted" é😀\x00\\', {"n": [1, None]}, 5, None, ["é"]]
    options: dict[str, Any] = {"topic": ["a/b", "ü"], "event": "tick", "to": {"me", "@42"}, "exclude": "you"}
    async with client_and_hub() as (client, hub):
        receipts = await client.publish_many(events, **options)
        for data in events:
            await client.publish(data, **options)
        found = [item._replace(position=item.position, time=0) for item in await log_of(hub)]
        assert [str(item.position) for item in found[:6]] == [receipt.id for receipt in receipts]
        for one, other in zip(found[:6], found[6:], strict=True):
            assert one._replace(position=other.position) == other
        assert {receipt.subscribers for receipt in receipts} == {0}


async def test_drafts_go_each_where_they_say() -> None:
    drafts = [
        Draft.compose("x", topic=["a", "b"], event="tick", to={"me", "you"}, exclude="them"),
        Draft.compose({"n": 1}),
        Draft.compose("y", topic="c"),
    ]
    async with client_and_hub() as (client, hub):
        await client.publish_many([drafts[0], "between", *drafts[1:]])
        found = [
            (item.event.data, item.type, item.topics, item.to, item.exclude, item.is_json) for item in await log_of(hub)
        ]
        expected = [drafts[0], Draft.compose("between"), *drafts[1:]]
        assert found == [
            (item.event.data, item.event.type, item.topics, item.to, item.exclude, item.is_json) for item in expected
        ]


async def test_what_is_the_same_for_all_is_said_once() -> None:
    async with acknowledging() as (client, way):
        drafts = [Draft.compose(text, topic="t", to="me", idempotency_key=f"k-{text}") for text in "xy"]
        first = await client.publish_many(drafts)
        await client.publish_many([1, 2], topic="t", idempotency_key="k")
    assert [(receipt.id, receipt.subscribers, receipt.durable) for receipt in first] == [
        ("e-1", 3, "fsync"),
        ("e-2", 0, "fsync"),
    ]
    each, whole = way.requests
    assert dict(each.url.params) == {"topic": "t", "to": "me", "batch": "1"}
    assert json.loads(each.content) == [{"data": "x", "key": "k-x"}, {"data": "y", "key": "k-y"}]
    assert "idempotency-key" not in each.headers
    assert dict(whole.url.params) == {"topic": "t", "batch": "1"}
    assert (json.loads(whole.content), whole.headers["idempotency-key"]) == ([{"data": 1}, {"data": 2}], "k")


async def test_nothing_is_asked_for_no_events() -> None:
    async with acknowledging() as (client, way):
        assert await client.publish_many([]) == []
        assert await client.publish_many(iter(())) == []
    assert way.requests == []


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    "events",
    [["a", "b"], [Draft.compose("a", idempotency_key="k"), Draft.compose("b"), Draft.compose("c", topic="t")]],
    ids=["one key", "keys of some"],
)
async def test_a_lost_answer_doubles_nothing(events: list[object]) -> None:
    async with client_and_hub() as (_, hub):
        way = LosingAnswers(StreamingASGITransport(hub.app), 2)
        async with client_of(way) as client:
            receipts = await client.publish_many(events)
        assert way.requests == 3
        assert [str(item.position) for item in await log_of(hub)] == [receipt.id for receipt in receipts]


@pytest.mark.virtual_time
async def test_a_hub_that_is_away_is_tried_and_then_told_with_the_key() -> None:
    async with client_of(Scripted(problem(503, "draining", "Stopping."))) as client:
        with pytest.raises(Unreachable, match="It was not published") as raised:
            await client.publish_many(["a"], idempotency_key="k", retry_for=3)
        assert raised.value.idempotency_key == "k"
        with pytest.raises(Unreachable) as raised:
            await client.publish_many([Draft.compose("a", idempotency_key="k")], retry_for=0)
        assert raised.value.idempotency_key is None


async def test_a_refusal_names_the_event_and_publishes_nothing() -> None:
    async with client_and_hub(body_max=10, batch_bytes=60) as (client, hub):
        for events, code, text in (
            (["a", "x" * 11], "too_large", r"^events\[1\]: The data of a publication"),
            (["x" * 10] * 5, "too_large", r"^The events of a batch"),
        ):
            with pytest.raises(Refused, match=text) as raised:
                await client.publish_many(events)
            assert raised.value.code == code
        await client.publish_many(["a"], idempotency_key="k")
        with pytest.raises(Refused) as raised:
            await client.publish_many(["a", "b"], idempotency_key="k")
        assert (raised.value.status, raised.value.code) == (409, "key_reused")
        assert len(await log_of(hub)) == 1


async def test_what_cannot_be_published_is_refused_before_it_is_sent() -> None:
    async with acknowledging() as (client, way):
        wrong: list[tuple[Any, dict[str, Any], type[Exception]]] = [
            (["a", b"b"], {}, InvalidData),
            ("text", {}, InvalidData),
            (range(1_001), {}, TooLarge),
            (["a"], {"topic": []}, BadInput),
            (["a"], {"idempotency_key": "two words"}, InvalidIdempotencyKey),
            ([Draft.compose("a", idempotency_key="k")], {"idempotency_key": "l"}, InvalidIdempotencyKey),
            ([Draft.compose("a")], {"topic": "t"}, TypeError),
        ]
        for events, options, error in wrong:
            with pytest.raises(error):
                await client.publish_many(events, **options)
    assert way.requests == []


@pytest.mark.parametrize(
    "answer",
    [
        {"id": "e-1", "subscribers": 1, "durable": "none"},
        {**ACKNOWLEDGED, "ids": ["e-1"]},
        {**ACKNOWLEDGED, "ids": ["e-1", "what"]},
        {**ACKNOWLEDGED, "subscribers": None},
    ],
)
async def test_an_answer_of_something_else_is_no_acknowledgement(answer: dict[str, Any]) -> None:
    async with client_of(Scripted(httpx.Response(200, json=answer))) as client:
        with pytest.raises(Refused, match="is no hub"):
            await client.publish_many(["a", "b"])


def test_a_program_without_an_event_loop_publishes_batches_too() -> None:
    with live_hub() as hub, SyncClient(hub.url) as client:
        receipts = client.publish_many((str(number) for number in range(3)), topic="t", idempotency_key="k")
        assert client.publish_many(["0", "1", "2"], topic="t", idempotency_key="k") == receipts
        assert [receipt.position.offset for receipt in receipts] == [1, 2, 3]
        with pytest.raises(TooLarge):
            client.publish_many("x" for _ in iter(int, 1))
        with pytest.raises(InvalidData):
            client.publish_many("text")
