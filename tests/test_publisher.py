"""Publishing without a hub: what tasks and commands append reaches the subscribers of a hub elsewhere."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from sse_app.errors import (
    BadInput,
    Closed,
    ConfigError,
    InvalidClient,
    InvalidEvent,
    InvalidTopic,
    KeyReused,
    LogUnavailable,
    ReservedEvent,
    TooManyTopics,
    TopicRequired,
)
from sse_app.events import Event, EventDecoder
from sse_app.hub import Hub
from sse_app.publication import Position
from sse_app.publisher import AsyncPublisher, Publisher
from sse_app.subscription import Subscription
from tests.support.peers import PATIENCE
from tests.support.worlds import World

NOBODY = frozenset[str]()


class Listener:
    """A subscriber's events, as they come."""

    def __init__(self, subscriber: Subscription) -> None:
        self._subscriber, self._decoder = subscriber, EventDecoder()

    async def take(self, count: int) -> list[Event]:
        found: list[Event] = []
        async with asyncio.timeout(PATIENCE):
            while len(found) < count:
                events = self._decoder.feed(await self._subscriber.read())
                found += [event for event in events if event.type != "welcome"]
        return found


# --- what is refused ---


BAD_INPUT: list[tuple[dict[str, Any], type[BadInput]]] = [
    ({"data": "\ud800"}, InvalidEvent),
    ({"data": {"x": "\ud800"}}, InvalidEvent),
    ({"topic": "a/**/b"}, InvalidTopic),
    ({"topic": "a/*"}, InvalidTopic),
    ({"topic": ""}, InvalidTopic),
    ({"topic": map(str, range(17))}, TooManyTopics),
    ({"event": "welcome"}, ReservedEvent),
    ({"event": "a\nb"}, InvalidEvent),
    ({"event": ""}, InvalidEvent),
    ({"to": "two words"}, InvalidClient),
    ({"exclude": ["fine", ""]}, InvalidClient),
]


@pytest.mark.parametrize(("given", "error"), BAD_INPUT, ids=str)
async def test_what_is_not_right_is_refused_and_in_no_log(
    sqlite_world: World, given: dict[str, Any], error: type[BadInput]
) -> None:
    async with AsyncPublisher(sqlite_world.url, create=True) as publisher:
        given = {key: list(value) if isinstance(value, map) else value for key, value in given.items()}
        with pytest.raises(error):
            await publisher.publish(**{"data": "x", **given})
        assert (await publisher.publish("fine")).position.offset == 1


async def test_where_every_publication_has_a_topic_one_without_is_in_no_log(sqlite_world: World) -> None:
    async with AsyncPublisher(sqlite_world.url, create=True, require_topic=True) as publisher:
        with pytest.raises(TopicRequired, match="require_topic"):
            await publisher.publish("x")
        assert (await publisher.publish("x", topic="t")).position.offset == 1


# --- URLs ---


@pytest.mark.parametrize("kind", [Publisher, AsyncPublisher])
@pytest.mark.parametrize("url", ["memory://", "MEMORY://", "memory:"])
def test_a_log_that_lives_in_one_process_is_refused(kind: Callable[[str], object], url: str) -> None:
    with pytest.raises(ConfigError, match=r"hub\.publish"):
        kind(url)


@pytest.mark.parametrize("kind", [Publisher, AsyncPublisher])
@pytest.mark.parametrize("url", ["", "hub.db", "kafka://x", "sqlite://"])
def test_a_url_of_no_log_is_refused(kind: Callable[[str], object], url: str) -> None:
    with pytest.raises(ConfigError):
        kind(url)


def test_a_log_that_cannot_be_opened_says_so_and_leaves_no_thread(sqlite_world: World) -> None:
    threads = set(threading.enumerate())
    publisher = Publisher(sqlite_world.url.replace("hub.db", "nowhere/hub.db"), create=True)
    with pytest.raises(LogUnavailable, match="directory"), publisher:
        pass
    assert set(threading.enumerate()) <= threads


@pytest.mark.parametrize("found", [None, b""])
def test_a_publisher_makes_no_log_in_the_wrong_directory(
    found: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if found is not None:
        (tmp_path / "hub.db").write_bytes(found)
    before = list(tmp_path.iterdir())
    with pytest.raises(LogUnavailable, match=r"A hub makes its log when it starts.* create=True") as refused:
        Publisher("sqlite:///hub.db").__enter__()
    assert str(refused.value).startswith(f"{tmp_path}/hub.db is no log.")
    assert list(tmp_path.iterdir()) == before
    with Publisher("sqlite:///hub.db", create=True) as publisher:
        publisher.publish("a")
    with Publisher("sqlite:///hub.db") as publisher:
        assert publisher.publish("b").position.offset == 2


REFUSED_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"histroy": 5}, r"^histroy is not a setting of a publisher; did you mean history\?$"),
    ({"heartbeat": 5}, "^heartbeat is a setting of .*; a publisher has none"),
    ({"recover": True}, "^recover is a setting of .*; a publisher has none"),
    ({"history": "many"}, "^history is a whole number"),
    ({"body_max": 0}, "^body_max is a size"),
]


@pytest.mark.parametrize("kind", [Publisher, AsyncPublisher])
@pytest.mark.parametrize(("settings", "text"), REFUSED_SETTINGS, ids=str)
def test_a_setting_that_a_publisher_has_not_is_refused(
    kind: Callable[..., object], settings: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        kind("sqlite:///hub.db", **settings)


# --- to a hub ---


async def test_what_is_published_elsewhere_reaches_who_it_is_for(sqlite_world: World) -> None:
    async with (
        Hub(sqlite_world.open()) as hub,
        hub.subscribe("orders/*", client="ann") as ann,
        hub.subscribe(client="bob") as bob,
        AsyncPublisher(sqlite_world.url) as publisher,
    ):
        receipt = await publisher.publish({"number": 42}, topic="orders/42", event="order")
        await publisher.publish("not for ann", exclude="ann")
        await publisher.publish("on another topic", topic=["users", "posts"])
        await publisher.publish("for ann", topic="orders/1", to=["ann"])
        everyone = await publisher.publish("for all")
        order = Event('{"number":42}', "order", receipt.id)
        found = await Listener(ann).take(3)
        assert found[0] == order
        assert [event.data for event in found[1:]] == ["for ann", "for all"]
        found = await Listener(bob).take(4)
        assert found[0] == order
        assert [event.data for event in found[1:]] == ["not for ann", "on another topic", "for all"]
        assert everyone.position == await hub.broker.top()


async def test_a_key_is_one_publication_whoever_uses_it(sqlite_world: World) -> None:
    async with Hub(sqlite_world.open()) as hub, AsyncPublisher(sqlite_world.url) as publisher:
        receipt = await publisher.publish("a", idempotency_key="k")
        assert receipt.subscribers is None  # it knows of no hub
        assert await publisher.publish("a", idempotency_key="k") == receipt
        assert (await hub.publish("a", idempotency_key="k")).position == receipt.position
        with pytest.raises(KeyReused):
            await publisher.publish("b", idempotency_key="k")


async def test_a_publisher_is_no_node_with_subscribers(sqlite_world: World) -> None:
    async with Hub(sqlite_world.open()) as hub, AsyncPublisher(sqlite_world.url) as publisher:
        await publisher.publish("x")
        assert (await hub.stats())["subscribers"] == 0


async def test_settings_are_those_of_the_log(sqlite_world: World) -> None:
    async with AsyncPublisher(sqlite_world.url, history="2", create=True) as publisher:
        for text in "abc":
            await publisher.publish(text)
    async with sqlite_world.open() as broker:
        assert (await broker.oldest()).offset == 1


async def test_threads_share_a_publisher_and_a_hub_hears_all_of_it(sqlite_world: World) -> None:
    def work() -> list[list[Position]]:
        with Publisher(sqlite_world.url) as publisher, ThreadPoolExecutor(8) as threads:
            return list(threads.map(lambda name: several(publisher, name), range(8)))

    def several(publisher: Publisher, name: int) -> list[Position]:
        texts = [f"{name}:{number}" for number in range(20)]
        return [publisher.publish(text, topic="t", idempotency_key=text).position for text in texts]

    async with Hub(sqlite_world.open()) as hub, hub.subscribe("t") as subscriber:
        each = await asyncio.to_thread(work)
        found = await Listener(subscriber).take(160)
    assert all(positions == sorted(positions) for positions in each)
    assert {event.id: event.data for event in found} == {
        str(position): f"{name}:{number}"
        for name, positions in enumerate(each)
        for number, position in enumerate(positions)
    }
    assert [event.id for event in found] == list(map(str, sorted(chain(*each))))


def test_without_a_loop_it_publishes_and_raises_as_the_other_does(sqlite_world: World) -> None:
    with Publisher(sqlite_world.url, history=100, create=True) as publisher:
        first = publisher.publish("a", topic="t", event="tick", to="ann", exclude=["bob"], idempotency_key="k")
        assert first.position.offset == 1
        with pytest.raises(KeyReused):
            publisher.publish("b", idempotency_key="k")
        with pytest.raises(InvalidTopic):
            publisher.publish("b", topic="a/**/b")
        with pytest.raises(TypeError):
            publisher.publish("b", topics="t")  # type: ignore[call-arg]
        assert publisher.publish({"b": 1}).position.offset == 2
    with Publisher(sqlite_world.url) as publisher:
        assert publisher.publish("c").position.offset == 3


def test_after_its_end_a_publisher_refuses(sqlite_world: World) -> None:
    with Publisher(sqlite_world.url, create=True) as publisher:
        publisher.publish("a")
    with pytest.raises(Closed, match="This Publisher is closed"):
        publisher.publish("b")


def test_a_publisher_needs_no_block(sqlite_world: World) -> None:
    threads = set(threading.enumerate())
    publisher = Publisher(sqlite_world.url, create=True)
    assert set(threading.enumerate()) <= threads  # it opens its log when it is used
    assert [publisher.publish(text).position.offset for text in "ab"] == [1, 2]
    publisher.close()
    publisher.close()
    assert set(threading.enumerate()) <= threads
    with pytest.raises(Closed):
        publisher.publish("c")
    with publisher:
        assert publisher.publish("d").position.offset == 3


async def test_outside_its_block_an_async_publisher_refuses_and_does_not_wait(sqlite_world: World) -> None:
    publisher = AsyncPublisher(sqlite_world.url, create=True)
    with pytest.raises(RuntimeError, match=r"inside its `async with`; it was not entered\.$"):
        await publisher.publish("a")
    async with publisher:
        await publisher.publish("a")
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(RuntimeError, match=r"inside its `async with`; its own has ended\.$"):
            await publisher.publish("b")
    async with publisher:
        assert (await publisher.publish("b")).position.offset == 2


async def test_an_async_publisher_is_of_one_loop(sqlite_world: World) -> None:
    async with AsyncPublisher(sqlite_world.url, create=True) as publisher:
        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, publisher.publish("a"))
        assert (await publisher.publish("b")).position.offset == 1


def test_an_error_within_the_block_comes_out_as_it_is(sqlite_world: World) -> None:
    threads = set(threading.enumerate())
    with pytest.raises(KeyReused), Publisher(sqlite_world.url, create=True) as publisher:
        list(map(partial(publisher.publish, idempotency_key="k"), "ab"))
    assert set(threading.enumerate()) <= threads
