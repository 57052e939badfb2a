"""Boards for tests: of several nodes on one log, and of nodes in memory that hear each other."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from sse_app.brokers import Broker
from sse_app.brokers.board import MESSAGES, Board, check_message
from sse_app.brokers.memory import MemoryBroker
from sse_app.brokers.memory_board import Entries, MemoryBoard
from tests.support.peers import PATIENCE, Clock, turns
from tests.support.worlds import World


class LinkedBoard(MemoryBoard):
    """The board of one of several nodes in this process. ``entries`` are those of all, ``linked`` the boards of all."""

    def __init__(self, entries: Entries, linked: "list[LinkedBoard]") -> None:
        super().__init__(Clock())
        self._entries, self._linked = entries, linked
        self._inboxes: list[tuple[deque[bytes], asyncio.Event]] = []
        linked.append(self)

    async def send(self, message: bytes) -> None:
        check_message(message)
        for board in self._linked:
            for inbox, more in board._inboxes if board is not self else ():
                inbox.append(message)
                more.set()

    async def messages(self) -> AsyncIterator[bytes]:
        inbox, more = own = deque[bytes](maxlen=MESSAGES), asyncio.Event()
        self._inboxes.append(own)
        try:
            while True:
                await more.wait()
                more.clear()
                while inbox:
                    yield inbox.popleft()
        finally:
            self._inboxes.remove(own)

    def nodes(self) -> Collection[str]:
        return [board.name for board in self._linked if board is not self]

    def leave(self) -> None:
        self._linked.remove(self)


class LinkedBroker(MemoryBroker):
    """A log in memory whose board hears those of others. Each has a log of its own."""

    board: LinkedBoard

    async def __aexit__(self, *error: Any) -> None:
        self.board.leave()


@dataclass
class LinkedWorld(World):
    """Nodes in memory that share a board, which outlives them."""

    linked: list[LinkedBoard] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._entries = Entries(self.clock)

    def open(self, **settings: Any) -> Broker:
        broker = LinkedBroker(clock=self.clock, wall=self.wall, **settings)
        broker.board = LinkedBoard(self._entries, self.linked)
        return broker


@pytest.fixture
def linked_world() -> World:
    return LinkedWorld("memory://")


@asynccontextmanager
async def boards_on(world: World, count: int = 3) -> AsyncIterator[list[Board]]:
    """The boards of so many nodes of one hub. A log in memory has one node: all are the same."""
    async with AsyncExitStack() as stack:
        brokers = [await stack.enter_async_context(world.open()) for _ in range(count if world.kept else 1)]
        for broker in brokers:
            broker.tail()  # as a hub does
        yield [brokers[number % len(brokers)].board for number in range(count)]


class Inbox:
    """What a node gets from the others, from the moment on when it is known that it hears them."""

    def __init__(self, board: Board) -> None:
        self._messages = board.messages()

    async def hears(self, *senders: Board) -> None:
        """Return once a message of each sender has arrived. Only then is the first step known to be done."""
        for number, sender in enumerate(senders):
            mark = b"mark %d %s" % (number, sender.name.encode())
            async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(_repeat(sender, mark))
                while await anext(self._messages) != mark:
                    pass
                sending.cancel()

    async def take(self, count: int) -> list[bytes]:
        """Return the next messages, without the marks of ``hears`` that come late."""
        found = list[bytes]()
        async with asyncio.timeout(PATIENCE):
            while len(found) < count:
                message = await anext(self._messages)
                if not message.startswith(b"mark"):
                    found.append(message)
        return found

    async def take_until(self, last: bytes) -> list[bytes]:
        """Return the next messages, up to this one."""
        found = await self.take(1)
        while found[-1] != last:
            found += await self.take(1)
        return found

    async def aclose(self) -> None:
        await cast(Any, self._messages).aclose()


async def _repeat(sender: Board, mark: bytes) -> None:
    while True:
        await sender.send(mark)
        await turns(10)


@asynccontextmanager
async def listening_to(board: Board, *senders: Board) -> AsyncIterator[Inbox]:
    """What ``board`` gets from now on, as long as the block lasts."""
    inbox = Inbox(board)
    try:
        await inbox.hears(*senders)
        yield inbox
    finally:
        await inbox.aclose()
