"""Searches of a NATS log that becomes another, shorter one while they read: they end, and hold up nothing."""

import asyncio
from typing import Any, cast

import pytest

from sse_app.brokers import open_broker
from sse_app.brokers.limits import DEFAULTS
from sse_app.brokers.nats.entries import Message, envelope
from sse_app.brokers.nats.log import State
from sse_app.events import Event
from sse_app.publication import Audience, Draft, Position
from sse_app.topics import TopicFilter
from tests.support.peers import turns

pytestmark = pytest.mark.timeout(60)  # a search that never ends may not let the loop turn either


class ReplacedLog:
    """A log of 1,000 publications; ``replace`` puts an empty one in its place before the next answer."""

    def __init__(self) -> None:
        self.epoch, self.top = "a", 1_000
        self._answer = asyncio.Event()

    def replace(self) -> None:
        self.epoch, self.top = "b", 0
        self._answer.set()

    async def state(self) -> State:
        return State(Position(self.epoch, self.top), 0, 10_000, "log", self.epoch, DEFAULTS)

    async def ensure_streams(self) -> None: ...

    def publish_to(self, state: State) -> None: ...

    async def fetch(self, after: int, until: int, count: int) -> list[Message]:
        await self._answer.wait()
        last = min(until, after + count)
        return [Message(offset, 0.0, envelope(Draft(Event("x"), ("t",)))) for offset in range(after + 1, last + 1)]


async def broker_on_a_log() -> tuple[Any, ReplacedLog]:
    broker, log = cast(Any, open_broker("nats://127.0.0.1/x")), ReplacedLog()
    broker._log = log
    await broker._refresh(log)
    return broker, log


@pytest.mark.parametrize("searches", [1, 2, 20])
async def test_searches_end_when_the_log_is_replaced_by_a_shorter_one(searches: int) -> None:
    broker, log = await broker_on_a_log()
    wanted = [broker.last(3, TopicFilter(("silent",)), Audience(("c",))) for _ in range(searches)]
    running = asyncio.gather(*wanted)
    await turns(5)
    log.replace()
    assert await running == [(Position("b", 0), False)] * searches


async def test_a_search_ends_when_the_log_is_replaced_between_two_pages() -> None:
    broker, log = await broker_on_a_log()
    log._answer.set()
    search = broker._known._newest_first(1_000, TopicFilter(), None)
    found = [await anext(search) for _ in range(256)]
    log.replace()
    await broker._refresh(log)
    assert [item async for item in search] == []
    assert found[-1].position == Position("a", 745)
