"""The counterparts of a hub in tests: readers, sockets, clocks, a broker far away, a caller that is cancelled."""

import asyncio
import socket
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any, Protocol, Self

import pytest

from sse_app.batch import Batch
from sse_app.brokers import Page, Tail, memory
from sse_app.brokers.memory import MemoryBroker
from sse_app.drafts import Drafts
from sse_app.errors import BrokerUnavailable
from sse_app.events import Event, EventDecoder
from sse_app.publication import Audience, Draft, Position, Publication
from sse_app.topics import TopicFilter

PATIENCE = 20  # seconds; nothing takes long unless it hangs
MOMENT = 0.001  # virtual seconds: it passes only when nobody has anything left to do


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


async def turns(count: int = 1) -> None:
    """Let the loop turn so often."""
    for _ in range(count):
        await asyncio.sleep(0)


class Readable(Protocol):
    """A subscriber, or the subscription of one."""

    async def read(self) -> bytes: ...


async def available(subscriber: Readable) -> bytes:
    """All that can be read from a stream now, on virtual time; to the stream's end if it has ended."""
    data = b""
    try:
        async with asyncio.timeout(MOMENT):
            while piece := await subscriber.read():
                data += piece
    except TimeoutError:
        pass
    return data


async def received(subscriber: Readable) -> list[Event]:
    """The events that can be read now."""
    return EventDecoder().feed(await available(subscriber))


async def until(condition: Callable[[], bool], what: str = "", *, clock: Clock | None = None) -> None:
    """Let the loop turn until the condition is true. ``clock`` runs a hundred times as fast as time meanwhile."""
    time, before = asyncio.get_running_loop().time, clock.now if clock else 0.0
    begun = time()
    while not condition():
        assert time() < begun + PATIENCE, f"not true within {PATIENCE} s: {what or condition}"
        if clock is not None:
            clock.now = before + 100 * (time() - begun)
        await turns()


async def read_events(subscriber: Readable, found: Callable[[list[Event]], bool]) -> list[Event]:
    """Read a stream until its events are enough: ``found`` returns True for them."""
    events, decoder = list[Event](), EventDecoder()
    async with asyncio.timeout(PATIENCE):
        while not found(events):
            events += decoder.feed(await subscriber.read())
    return events


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]]


@asynccontextmanager
async def listening(serve: Serve, **options: Any) -> AsyncIterator[int]:
    """A server on loopback, which closes all its connections at its end: asyncio would leave them to the next test.

    Yields its port. When a client disconnects, and at the end, ``serve`` is cancelled and its writer closed.
    """
    tasks = set[asyncio.Task[None]]()

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await serve(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()  # close() would wait for a client that does not read
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(connection(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, **options)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await turns()  # a connection just accepted has no task to close it before that task begins
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port where nothing listens, and which the system gives to nobody else. A server that shares it (SO_REUSEPORT)
    may listen there.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def datas(events: list[Event]) -> list[str]:
    """The data of the publications among these events, without the hub's notices."""
    return [event.data for event in events if event.type not in ("welcome", "gap", "bye")]


async def lose(broker: MemoryBroker) -> Position:
    """Append the publication that stands for an entry that a node cannot read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "Publication", partial(Publication, lost=True))
        return await broker.publish(Draft(Event("")))


async def log_of(broker: MemoryBroker) -> list[Publication]:
    """All publications that a broker holds."""
    position, until, found = await broker.oldest(), await broker.top(), list[Publication]()
    while position != until:
        page = await broker.replay(position, until, TopicFilter())
        found += page.publications
        position = page.end
    return found


class Socket:
    """A connection that takes ``room`` writes until it is full, and keeps them for its client."""

    def __init__(self, room: int = 1_000_000) -> None:
        self.room, self.sent, self.ended = room, b"", False

    def write(self, batch: Batch) -> bool:
        assert not self.ended, "written after the end"
        assert self.room > 0, "written to a full socket"
        self.sent += batch.data
        self.room -= 1
        return self.room > 0

    def end(self, farewell: bytes = b"") -> None:
        assert not self.ended, "ended twice"
        self.sent += farewell
        self.ended = True

    def take(self) -> bytes:
        """Return what the client reads: all that was written since the last call."""
        data, self.sent = self.sent, b""
        return data


class LateTail:
    """A tail that waits before it returns what it has."""

    def __init__(self, tail: Tail, wait: Callable[[], Awaitable[None]]) -> None:
        self._tail, self._wait = tail, wait
        self.start = tail.start

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[Publication]:
        batch = await anext(self._tail)
        await self._wait()
        return batch

    async def aclose(self) -> None:
        await self._tail.aclose()


class DistantBroker(MemoryBroker):
    """A memory log that answers as late as one on another machine: other tasks run before and after each operation."""

    def __init__(self, delays: list[int], tail_delays: tuple[int, ...] = (0,), **settings: Any) -> None:
        super().__init__(**settings)
        self._delays, self._tail_delays = cycle(delays), tail_delays

    async def _travel(self) -> None:
        await turns(next(self._delays))

    def append(self, draft: Draft) -> None:
        return None

    async def publish(self, draft: Draft) -> Position:
        await self._travel()
        position = await super().publish(draft)
        await self._travel()
        return position

    async def publish_many(self, drafts: Drafts) -> Sequence[Position]:
        await self._travel()
        positions = await super().publish_many(drafts)
        await self._travel()
        return positions

    async def top(self, *, fresh: bool = False) -> Position:
        await self._travel()
        top = await super().top()
        await self._travel()
        return top

    def at_hand(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page | None:
        return None

    async def replay(self, after: Position, until: Position, filter: TopicFilter) -> Page:
        await self._travel()
        page = await super().replay(after, until, filter)
        await self._travel()
        return page

    def tail(self) -> Tail:
        delays = cycle(self._tail_delays)
        return LateTail(super().tail(), lambda: turns(next(delays)))


@types.coroutine
def cancel_at(number: int, work: Coroutine[Any, Any, object], *, late: bool) -> Generator[Any, Any, bool]:
    """Run a coroutine, and raise CancelledError in it where it awaits for the ``number``-th time (from 1).

    late: raise it only when the awaited thing has happened, as when a task is cancelled in that turn of the loop.
    Return False when the coroutine ended with fewer awaits. Raise AssertionError when it swallows the cancellation.
    """
    step, awaits = partial(work.send, None), 0
    while True:
        try:
            waiting = step()
        except StopIteration:
            assert awaits < number, "the cancellation was swallowed"
            return False
        except asyncio.CancelledError:
            return True
        awaits += 1
        if awaits != number or late:
            yield waiting
        step = partial(work.send, None) if awaits != number else partial(work.throw, asyncio.CancelledError())


class TroubledBroker(MemoryBroker):
    """A memory log that may be unreachable, may not announce a publication, and may lose all and begin anew."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.down = self.deaf = False  # deaf: its tails do not get what is published

    def check(self) -> None:
        if self.down:
            raise BrokerUnavailable("The log is away.")

    def append(self, draft: Draft) -> None:
        return None

    async def publish(self, draft: Draft) -> Position:
        with self._publishing():
            return await super().publish(draft)

    async def publish_many(self, drafts: Drafts) -> Sequence[Position]:
        with self._publishing():
            return await super().publish_many(drafts)

    @contextmanager
    def _publishing(self) -> Iterator[None]:
        self.check()
        tails = self._tails
        self._tails = [] if self.deaf else tails
        try:
            yield
        finally:
            self._tails = tails

    async def top(self, *, fresh: bool = False) -> Position:
        if fresh:
            self.check()
        return await super().top()

    def at_hand(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page | None:
        return None if self.down else super().at_hand(after, until, topic_filter)

    async def replay(self, after: Position, until: Position, filter: TopicFilter) -> Page:
        self.check()
        page = await super().replay(after, until, filter)
        self.check()
        return page

    async def newest(self, count: int, filter: TopicFilter, audience: Audience | None) -> Sequence[Publication]:
        self.check()
        return await super().newest(count, filter, audience)

    def begin_anew(self) -> None:
        fresh = MemoryBroker()
        self._epoch, self._top, self._bytes, self._start = fresh._epoch, 0, 0, 0
        self._log, self._appended, self._offsets = [], [], fresh._offsets
        for tail in self._tails:
            tail.begin_anew()
