"""Rules for all that publish: a hub, publishers and clients refuse the same, with the same errors."""

import asyncio
import enum
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from sse_app import AsyncPublisher, Client, Hub, Publisher, SyncClient
from sse_app.errors import (
    BadInput,
    InvalidClient,
    InvalidData,
    InvalidEvent,
    InvalidIdempotencyKey,
    InvalidTopic,
    ReservedEvent,
    TooDeep,
    TooLarge,
)
from sse_app.publication import Publication
from sse_app.topics import TopicFilter
from tests.support.worlds import World
from tests.test_payload import nested

NOWHERE = "http://127.0.0.1:9"  # clients refuse before anything is sent

Publish = Callable[..., Awaitable[object]]
Way = Callable[[str], AbstractAsyncContextManager[Publish]]


class Kind(str, enum.Enum):  # noqa: UP042
    ORDER = "order"


def in_a_thread(publish: Callable[..., object]) -> Publish:
    return lambda *data, **given: asyncio.to_thread(publish, *data, **given)


@asynccontextmanager
async def hub(url: str) -> AsyncIterator[Publish]:
    async with Hub(url, body_max=100) as hub:
        yield hub.publish


@asynccontextmanager
async def hub_from_a_thread(url: str) -> AsyncIterator[Publish]:
    async with Hub(url, body_max=100) as hub:
        yield in_a_thread(hub.publish_threadsafe)


@asynccontextmanager
async def publisher(url: str) -> AsyncIterator[Publish]:
    async with Hub(url), AsyncPublisher(url, body_max=100) as publisher:
        yield publisher.publish


@asynccontextmanager
async def publisher_in_a_thread(url: str) -> AsyncIterator[Publish]:
    async with Hub(url):
        with Publisher(url, body_max=100) as publisher:
            yield in_a_thread(publisher.publish)


@asynccontextmanager
async def client(url: str) -> AsyncIterator[Publish]:
    async with Client(NOWHERE) as client:
        yield client.publish


@asynccontextmanager
async def client_in_a_thread(url: str) -> AsyncIterator[Publish]:
    with SyncClient(NOWHERE) as client:
        yield in_a_thread(client.publish)


def one_of_many(publish_many: Callable[..., Awaitable[object]]) -> Publish:
    """A batch of one, which is refused as that one is."""
    return lambda data, **given: publish_many([data], **given)


@asynccontextmanager
async def hub_in_batches(url: str) -> AsyncIterator[Publish]:
    async with Hub(url, body_max=100) as hub:
        yield one_of_many(hub.publish_many)


@asynccontextmanager
async def hub_in_batches_from_a_thread(url: str) -> AsyncIterator[Publish]:
    async with Hub(url, body_max=100) as hub:
        yield one_of_many(in_a_thread(hub.publish_many_threadsafe))


@asynccontextmanager
async def publisher_in_batches(url: str) -> AsyncIterator[Publish]:
    async with Hub(url), AsyncPublisher(url, body_max=100) as publisher:
        yield one_of_many(publisher.publish_many)


@asynccontextmanager
async def publisher_in_batches_in_a_thread(url: str) -> AsyncIterator[Publish]:
    async with Hub(url):
        with Publisher(url, body_max=100) as publisher:
            yield one_of_many(in_a_thread(publisher.publish_many))


BATCHES = (hub_in_batches, hub_in_batches_from_a_thread, publisher_in_batches, publisher_in_batches_in_a_thread)
OF_PYTHON = (hub, hub_from_a_thread, publisher, publisher_in_a_thread, *BATCHES)
ALL = (*OF_PYTHON, client, client_in_a_thread)

NOBODY = r"is empty, which is nobody; leave it out to reach everyone\.$"
ONE_OR_SEVERAL = r"is a str, or several of them in a list\.$"
KEY = "visible ASCII"
REFUSED: list[tuple[dict[str, Any], type[BadInput], str]] = [
    ({"to": []}, InvalidClient, f"^to {NOBODY}"),
    ({"to": set()}, InvalidClient, f"^to {NOBODY}"),
    ({"topic": ()}, InvalidTopic, f"^topic {NOBODY}"),
    ({"topic": range(0)}, InvalidTopic, f"^topic {NOBODY}"),
    ({"topic": 42}, InvalidTopic, f"^topic {ONE_OR_SEVERAL}"),
    ({"topic": b"secret"}, InvalidTopic, f"^topic {ONE_OR_SEVERAL}"),
    ({"topic": ["a", None]}, InvalidTopic, f"^topic {ONE_OR_SEVERAL}"),
    ({"topic": [["secret"]]}, InvalidTopic, f"^topic {ONE_OR_SEVERAL}"),
    ({"topic": {"secret": 1}}, InvalidTopic, f"^topic {ONE_OR_SEVERAL}"),
    ({"to": 42}, InvalidClient, f"^to {ONE_OR_SEVERAL}"),
    ({"to": [b"secret"]}, InvalidClient, f"^to {ONE_OR_SEVERAL}"),
    ({"exclude": [7]}, InvalidClient, f"^exclude {ONE_OR_SEVERAL}"),
    ({"event": None}, InvalidEvent, "is a str"),
    ({"event": ["secret"]}, InvalidEvent, "is a str"),
    ({"event": b"secret"}, InvalidEvent, "is a str"),
    ({"event": ""}, InvalidEvent, "1 to 128 characters"),
    ({"event": "gap"}, ReservedEvent, "hub's own"),
    ({"idempotency_key": ""}, InvalidIdempotencyKey, KEY),
    ({"idempotency_key": "two words"}, InvalidIdempotencyKey, KEY),
    ({"idempotency_key": "secret\r\n"}, InvalidIdempotencyKey, KEY),
    ({"idempotency_key": "é"}, InvalidIdempotencyKey, KEY),
    ({"idempotency_key": "k" * 129}, InvalidIdempotencyKey, KEY),
    ({"idempotency_key": 42}, InvalidIdempotencyKey, KEY),
    ({"idempotency_key": b"secret"}, InvalidIdempotencyKey, KEY),
    ({"data": b"secret"}, InvalidData, r"decode\(\)"),
    ({"data": [float("nan")]}, InvalidData, "NaN"),
    ({"data": object()}, InvalidData, "of type object cannot be published"),
    ({"data": "\ud800"}, InvalidData, "surrogate"),
    ({"data": nested(65)}, TooDeep, "64 deep"),
]


async def published(url: str) -> list[Publication]:
    async with Hub(url) as hub:
        return list(await hub.broker.newest(10, TopicFilter(), None))


@pytest.mark.parametrize("way", ALL)
async def test_all_who_publish_refuse_the_same_in_the_same_words(way: Way, sqlite_world: World) -> None:
    async with way(sqlite_world.url) as publish:
        for given, error, text in REFUSED:
            with pytest.raises(error, match=text) as refused:
                await publish(**{"data": "x", **given})
            assert type(refused.value) is error
            assert "secret" not in str(refused.value)
    assert await published(sqlite_world.url) == []


@pytest.mark.parametrize("way", OF_PYTHON)
async def test_the_bound_holds_for_who_publishes_without_http_too(way: Way, sqlite_world: World) -> None:
    async with way(sqlite_world.url) as publish:
        await publish("x" * 100)
        with pytest.raises(TooLarge, match="at most 100 bytes"):
            await publish(["x" * 97])


@pytest.mark.parametrize("way", OF_PYTHON)
async def test_names_come_alone_or_several_in_anything_that_can_be_iterated(way: Way, sqlite_world: World) -> None:
    given: list[dict[str, Any]] = [
        {"topic": "a", "to": "ann", "exclude": "bob"},
        {"topic": (topic for topic in "ba"), "to": {"bob", "ann"}, "exclude": ["bob"]},
        {"topic": {"b", "a"}, "exclude": []},
        {"topic": [Kind.ORDER], "to": Kind.ORDER, "event": Kind.ORDER},
    ]
    async with way(sqlite_world.url) as publish:
        for options in given:
            await publish("x", **options)
    found = [(item.topics, set(item.to), set(item.exclude), item.type) for item in await published(sqlite_world.url)]
    assert found == [
        (("a",), {"ann"}, {"bob"}, "message"),
        (("b", "a"), {"ann", "bob"}, {"bob"}, "message"),
        (("a", "b"), set(), set(), "message"),
        (("order",), {"order"}, set(), "order"),
    ]


async def test_an_enum_is_its_value_for_a_retry_too(sqlite_world: World) -> None:
    async with Hub(sqlite_world.url) as hub:
        first = await hub.publish(
            Kind.ORDER, topic=Kind.ORDER, to=Kind.ORDER, event=Kind.ORDER, idempotency_key=Kind.ORDER
        )
        assert first == await hub.publish("order", topic="order", to="order", event="order", idempotency_key="order")
