"""A log in memory that several nodes share, each over a way of its own that can be slow or cut off."""

import asyncio
from collections.abc import Sequence
from inspect import iscoroutinefunction
from typing import Any, Self, cast

from sse_app.brokers import Extent, Page, Tail
from sse_app.brokers.board import Board
from sse_app.brokers.memory import MemoryBroker
from sse_app.drafts import Drafts
from sse_app.errors import BrokerUnavailable
from sse_app.publication import Audience, Draft, Durability, Position
from sse_app.topics import TopicFilter
from tests.support.peers import LateTail

ANSWERS = ("list", "get")  # of the board: what was true when it was asked, however late it comes


class Switch:
    """Whether something answers: at once, when it is let on, or never."""

    def __init__(self) -> None:
        self.down = False
        self._open = asyncio.Event()
        self._open.set()

    def hold(self) -> None:
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    async def wait(self) -> None:
        await self._open.wait()
        if self.down:
            raise BrokerUnavailable("This way is cut off.")


class SharedBoard:
    """The board of a log that nodes share, over one node's way to it."""

    def __init__(self, board: Board, way: Switch) -> None:
        self._board, self._way = board, way

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._board, name)
        if not iscoroutinefunction(found):
            return found

        async def over_the_way(*arguments: Any, **named: Any) -> Any:
            if name not in ANSWERS:
                await self._way.wait()
            answer = await found(*arguments, **named)
            await self._way.wait()
            return answer

        return over_the_way


class SharedLog:
    """One node's way to a log that is shared: its ``tail``, its ``pages`` and its ``board`` may each be held or cut.
    ``publishing`` is cut only, and asked before anything is appended.
    """

    durability: Durability = "none"
    steppable = True
    bad_envelopes, outdated = 0, False
    subscribers_elsewhere = 0

    def __init__(self, log: MemoryBroker) -> None:
        self.log = log
        self.subscribers_here = 0
        self.on_tail, self.on_pages, self.on_board, self.on_publishing = Switch(), Switch(), Switch(), Switch()
        self.board = cast(Board, SharedBoard(log.board, self.on_board))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        return None

    def check(self) -> None:
        return None

    def append(self, draft: Draft) -> None:
        return None

    async def publish(self, draft: Draft) -> Position:
        await self.on_publishing.wait()
        return await self.log.publish(draft)

    async def publish_many(self, drafts: Drafts) -> Sequence[Position]:
        await self.on_publishing.wait()
        return await self.log.publish_many(drafts)

    async def top(self, *, fresh: bool = False) -> Position:
        return await self.log.top()

    async def oldest(self) -> Position:
        return await self.log.oldest()

    def extent(self) -> Extent:
        return self.log.extent()

    def at_hand(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page | None:
        return None

    async def replay(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page:
        page = await self.log.replay(after, until, topic_filter)
        await self.on_pages.wait()
        return page

    async def newest(self, count: int, topic_filter: TopicFilter, audience: Audience | None) -> Sequence[Any]:
        return await self.log.newest(count, topic_filter, audience)

    async def last(self, count: int, topic_filter: TopicFilter, audience: Audience) -> tuple[Position, bool]:
        return await self.log.last(count, topic_filter, audience)

    async def since(self, time: float) -> tuple[Position, bool]:
        return await self.log.since(time)

    def tail(self) -> Tail:
        return LateTail(self.log.tail(), self.on_tail.wait)
