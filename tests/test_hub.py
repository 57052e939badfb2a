"""The hub as a user of the library has it: publishing from anywhere, a subscription, its life with an app."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from sse_app import Event, Hub, Subscription
from sse_app.brokers.memory import MemoryBroker
from sse_app.errors import HubNotStarted, InvalidTopic
from sse_app.publication import Position
from sse_app.testing import run_virtual
from tests.support.peers import datas, received

pytestmark = pytest.mark.virtual_time


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    async with Hub() as hub:
        yield hub


# --- life ---


async def test_the_lifespan_runs_the_hub() -> None:
    hub = Hub()
    async with hub.lifespan(object()):
        assert hub.started
        await hub.publish("x")
    assert not hub.started


USES: dict[str, Callable[[Hub], Awaitable[object]]] = {
    "publish": lambda hub: hub.publish("x"),
    "publish many": lambda hub: hub.publish_many(["x"]),
    "many from a thread": lambda hub: asyncio.to_thread(hub.publish_many_threadsafe, b"not even looked at"),
    "subscribe": lambda hub: hub.subscribe().__aenter__(),
    "stats": lambda hub: hub.stats(),
    "drain": lambda hub: hub.drain(),
    "thread": lambda hub: asyncio.to_thread(hub.publish_threadsafe, "x"),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
async def test_a_hub_that_was_never_started_names_the_missing_line(use: Callable[[Hub], Awaitable[object]]) -> None:
    hub = Hub()
    with pytest.raises(HubNotStarted, match=r"lifespan=hub\.lifespan"):
        await use(hub)
    async with hub:
        await hub.publish("x")
    with pytest.raises(HubNotStarted, match=r"has stopped.*started again"):
        await use(hub)


async def test_the_hubs_own_thread_is_told_first_that_the_hub_does_not_run() -> None:
    hub = Hub()
    with pytest.raises(HubNotStarted, match=r"lifespan=hub\.lifespan"):
        hub.publish_threadsafe("x")
    async with hub:
        pass
    with pytest.raises(HubNotStarted, match="has stopped"):
        hub.publish_threadsafe("x")


async def test_a_hub_that_does_not_run_says_so_before_it_looks_at_what_is_asked() -> None:
    hub = Hub()
    with pytest.raises(HubNotStarted):
        await hub.subscribe(last=-1).__aenter__()
    with pytest.raises(HubNotStarted):
        await hub.publish("x", topic="")


def test_a_hub_runs_and_drains_again_in_another_event_loop() -> None:
    """Servers start an app again in a new loop, and it is to drain there as it did before."""
    hub, found = Hub(drain=10), list[list[str]]()

    async def run() -> None:
        async with hub, hub.subscribe() as subscription:
            hub.node.begin_drain()
            found.append([event.type async for event in subscription])

    for _ in range(2):
        run_virtual(run())
    assert found == [["welcome", "bye"]] * 2


async def test_a_hub_that_runs_is_not_started_again_and_goes_on(hub: Hub) -> None:
    with pytest.raises(RuntimeError, match="running already"):
        await hub.__aenter__()
    async with hub.subscribe() as subscription:
        await hub.publish("it runs on")
        assert datas(await received(subscription)) == ["it runs on"]


async def test_each_start_watches_for_the_stop_of_its_own_server() -> None:
    hub = Hub()
    for _ in range(2):
        async with hub:
            assert hub._door._server is None
            hub._door.entered(("127.0.0.1", 1))


async def test_a_drain_takes_the_window_that_it_is_given() -> None:
    loop = asyncio.get_running_loop()
    async with Hub(drain=3_600) as hub, AsyncExitStack() as stack:
        for _ in range(10):
            await stack.enter_async_context(hub.subscribe())  # and is never read, so that the drain waits for its end
        before = loop.time()
        await hub.drain(1)
        assert loop.time() - before == pytest.approx(1, abs=0.1)  # virtual seconds


async def test_the_settings_of_a_hub_are_those_of_its_node() -> None:
    hub = Hub(heartbeat=30, retry_min=7, retry_max=7, queue=3, queue_bytes=2_000)
    async with hub, hub.subscribe() as subscription:
        (welcome,) = await received(subscription)
        assert (welcome.retry, json.loads(welcome.data)["heartbeat"]) == (7_000, 30)
        for size in (1_500, 500, 1):  # bytes: the third finds the queue full, though a third publication may wait
            await hub.publish("x" * size)
            await asyncio.sleep(0.01)
        assert hub.node.totals.overflows == 1


async def test_a_hub_without_subscribers_is_a_hub_all_the_same(hub: Hub) -> None:
    assert (len(hub), bool(hub)) == (0, True)
    async with hub.subscribe(), hub.subscribe("t"):
        assert len(hub) == 2
    assert len(hub) == 0


async def test_a_drain_ends_each_stream_with_a_bye_and_lets_nobody_in(hub: Hub) -> None:
    async with hub.subscribe() as subscription:
        await hub.publish("a")
        assert not hub.draining
        await asyncio.gather(hub.drain(1), asyncio.sleep(0))
        assert hub.draining
        assert [event.type for event in await received(subscription)] == ["welcome", "message", "bye"]
        assert await subscription.read() == b""


# --- a subscription ---


def test_a_subscription_has_five_names() -> None:
    public = {name for name in vars(Subscription) if not name.startswith("_")}
    assert public | {"__aiter__"} == {"client", "topics", "position", "read", "__aiter__"}
    assert "__aiter__" in vars(Subscription)


async def test_a_subscription_tells_whose_it_is_and_to_what(hub: Hub) -> None:
    async with hub.subscribe("b", "a/*", client="ann") as ann, hub.subscribe() as other:
        assert (ann.client, ann.topics) == ("ann", ("a/*", "b"))
        assert other.client.startswith("c-")
        assert other.topics == ()


async def test_a_subscription_gives_events_and_goes_on_from_its_position(hub: Hub) -> None:
    async with hub.subscribe("t") as first:
        await hub.publish("1", topic="t")
        await hub.publish("2", topic="t")
        found = list[Event]()
        async for event in first:
            found.append(event)
            if event.data == "2":
                break
        assert [event.type for event in found] == ["welcome", "message", "message"]
        assert str(first.position) == found[-1].id
    await hub.publish("3", topic="t")
    async with hub.subscribe("t", after=first.position) as again:
        assert datas(await received(again)) == ["3"]


async def test_events_that_were_read_together_lose_none_when_the_loop_is_left(hub: Hub) -> None:
    async with hub.subscribe("t", "u") as subscription:
        for number in "123":
            await hub.publish(number, topic="t")
        await asyncio.sleep(0.01)
        async for event in subscription:
            if event.data == "1":
                break
        position = subscription.position
        assert str(position) == event.id
        async with hub.subscribe("t", after=position) as again:
            assert datas(await received(again)) == ["2", "3"]
        rest = [await anext(subscription), await anext(subscription)]
        assert [event.data for event in rest] == ["2", "3"]
        assert str(subscription.position) == rest[-1].id


async def test_a_gap_that_nobody_was_told_yet_is_told_to_who_goes_on_from_there() -> None:
    async with Hub(history=3) as hub:
        first = (await hub.publish("0")).position
        for number in range(1, 9):
            await hub.publish(str(number))
        position: Position = first
        for _ in range(2):  # the second goes on from the first, which has read nothing
            async with hub.subscribe(after=position) as subscription:
                position = subscription.position
                assert position == first
        async with hub.subscribe(after=position) as subscription:
            types = [(await anext(subscription)).type for _ in range(2)]
            assert types == ["welcome", "gap"]
            assert subscription.position > first
        async with hub.subscribe(after=first) as subscription:
            assert b"event: gap" in await subscription.read()
            assert subscription.position > first


async def test_a_malformed_cursor_leaves_a_position_to_go_on_from(hub: Hub) -> None:
    receipt = await hub.publish("before")
    async with hub.subscribe(after="no position") as subscription:
        assert (await anext(subscription)).type == "welcome"
        assert subscription.position == receipt.position
        assert (await anext(subscription)).type == "gap"
        assert subscription.position == receipt.position


# --- threads ---


async def test_another_thread_publishes_and_waits_for_the_log(hub: Hub) -> None:
    async with hub.subscribe() as subscription:
        receipt = await asyncio.to_thread(hub.publish_threadsafe, "x", topic="t")
        assert receipt.position == await hub.broker.top()
        assert receipt.subscribers == 1
        assert datas(await received(subscription)) == ["x"]
        with pytest.raises(InvalidTopic):
            await asyncio.to_thread(hub.publish_threadsafe, "x", topic="")


async def test_many_threads_publish_each_in_its_own_order(hub: Hub) -> None:
    def publish(name: int) -> None:
        for number in range(50):
            hub.publish_threadsafe(f"{name}:{number}")

    async with hub.subscribe() as subscription:
        await asyncio.gather(*(asyncio.to_thread(publish, name) for name in range(4)))
        found = datas(await received(subscription))
    assert len(found) == 200
    for name in range(4):
        assert [text for text in found if text.startswith(f"{name}:")] == [f"{name}:{n}" for n in range(50)]


async def test_the_hubs_own_thread_may_not_wait_for_itself(hub: Hub) -> None:
    with pytest.raises(RuntimeError, match=r"await hub\.publish"):
        hub.publish_threadsafe("x")
    assert hub.node.totals.published == 0


async def test_a_thread_gives_up_after_its_timeout() -> None:
    stuck = threading.Event()

    class Stuck(MemoryBroker):
        async def publish(self, *args: Any, **named: Any) -> Position:
            stuck.set()
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async with Hub(Stuck()) as hub:
        while not stuck.is_set():  # before it gets as far as the log, the time may be over on a busy machine
            with pytest.raises(TimeoutError):
                await asyncio.to_thread(hub.publish_threadsafe, "x", timeout=0.01)
