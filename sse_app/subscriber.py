"""One open stream, seen from the hub: a topic filter, a position in the log, one bounded queue.

A subscriber is either live, fed by ``offer``, or behind, reading the log itself: when it resumes, and when it was so
slow that its queue ran over. Both ways end in ``read``, and going over from the log to the queue always takes the
same order: first be offered what is new, then look where the log ends, then read up to there, and skip what the queue
holds of it.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sse_app import notices
from sse_app.brokers import Broker
from sse_app.events import Event, EventDecoder
from sse_app.metrics import Totals
from sse_app.notices import GapReason
from sse_app.publication import Position, Publication
from sse_app.topics import TopicFilter


class CloseReason(StrEnum):
    GONE = "gone"  # the client went, or its connection
    DRAIN = "drain"  # the hub is being stopped
    ERROR = "error"  # our mistake, logged


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive publications as they go to subscribers, joined once and shared. Everything in ``(first, last]`` that
    is for the subscriber is in it. A heartbeat has no positions, a cursor no publications."""

    data: bytes
    first: int = 0  # offset of the first publication
    last: Position | None = None
    publications: Sequence[Publication] = ()

    @classmethod
    def join(cls, publications: Sequence[Publication]) -> "Batch":
        data = b"".join([publication.frame for publication in publications])
        return cls(data, publications[0].position.offset, publications[-1].position, publications)


WAKE = Batch(b"")  # makes a waiting reader look around


class Subscriber:
    """Made by ``Hub.subscribe``. Read the bytes of its stream with ``read``, or its events with ``async for``.

    ``queue_size`` publications or ``queue_bytes`` bytes may wait; more drops the queue, and the reader goes on from the
    log. So a slow reader costs no more than that, and loses nothing that the log still holds.
    """

    __slots__ = (
        "_behind", "_broker", "_bytes", "_count", "_farewell", "_greeting", "_lagging", "_limits", "_queue", "_totals",
        "_until", "client", "closing", "filter", "position",
    )  # fmt: skip

    def __init__(
        self, broker: Broker, totals: Totals, filter: TopicFilter, client: str, queue_size: int, queue_bytes: int
    ) -> None:
        self.filter = filter
        self.client = client
        self.position = Position("", 0)  # everything up to here was read, or is not for this subscriber
        self.closing: CloseReason | None = None
        self._broker = broker
        self._totals = totals
        self._limits = (queue_size, queue_bytes)
        self._queue: asyncio.Queue[Batch] = asyncio.Queue()  # bounded by offer, in publications and bytes
        self._count = self._bytes = 0  # what waits in the queue
        self._behind = False  # what comes next is in the log, not in the queue
        self._until: Position | None = None  # while it reads the log: how far
        self._lagging = False
        self._greeting = b""
        self._farewell = b""

    def begin(self, position: Position, greeting: bytes, *, behind: bool) -> None:
        """Start at a position, with these bytes first; ``behind`` when the log holds more that it has to read."""
        self.position, self._greeting, self._behind = position, greeting, behind

    def offer(self, batch: Batch) -> None:
        """Take a batch into the queue. Never waits and never raises: no subscriber can delay another."""
        if self._behind:
            return  # it will find this in the log
        if self._count >= self._limits[0] or self._bytes >= self._limits[1]:
            self._overflow()
            return
        self._count += len(batch.publications)
        self._bytes += len(batch.data)
        self._queue.put_nowait(batch)

    def _overflow(self) -> None:
        self._behind = True
        self._totals.overflows += 1
        if not self._lagging:
            self._lagging = True
            self._totals.lagging += 1
        self._take_all()
        self._queue.put_nowait(WAKE)

    def offer_cursor(self, position: Position) -> None:
        """Move the client's cursor here: everything up to it was offered."""
        self.offer(Batch(notices.cursor(position), position.offset, position))

    def close(self, reason: CloseReason, farewell: bytes = b"") -> None:
        """End the stream after everything offered so far and these last bytes."""
        if self.closing is None:
            self.closing, self._farewell = reason, farewell
            self._queue.put_nowait(WAKE)

    def release(self) -> None:
        """The stream is over, however it ended."""
        self._behind = True
        self._take_all()
        self._caught_up()

    async def read(self) -> bytes:
        """The next bytes of the stream, all that waits in one piece; b"" when it has ended.

        Cancelling it loses nothing: the next call goes on where this one was.
        """
        while True:
            if self._greeting:
                data, self._greeting = self._greeting, b""
            elif self._behind or self._until:
                data = await self._read_log()
            elif self.closing and self._queue.empty():
                data, self._farewell = self._farewell, b""
                return data
            else:
                data = self._join([await self._queue.get(), *self._take_all()])
            if data:
                return data

    async def _read_log(self) -> bytes:
        if self._until is None:
            self._behind = False  # from here on it is offered what is new, and only then looks where the log ends
            try:
                self._until = await self._broker.top()
            except BaseException:
                self._behind = True
                raise
        page = await self._broker.replay(self.position, self._until, self.filter)
        parts = [] if page.start == self.position else [self._gap(page.start, self._until)]
        visible = [publication for publication in page.publications if publication.visible_to(self.client)]
        parts += [publication.frame for publication in visible]
        self.position = page.end
        self._totals.delivered += len(visible)
        if self.position.offset >= self._until.offset:
            self._until = None
            if not self._behind:
                self._caught_up()
        return b"".join(parts)

    def _gap(self, start: Position, top: Position) -> bytes:
        reason = GapReason.TRIMMED if start.epoch == self.position.epoch else GapReason.EPOCH
        self._totals.gaps[reason] += 1
        return notices.gap(reason, str(self.position), start=start, oldest=start.next(), top=top)

    def _caught_up(self) -> None:
        if self._lagging:
            self._lagging = False
            self._totals.lagging -= 1

    def _take_all(self) -> list[Batch]:
        batches = []
        while not self._queue.empty():
            batches.append(self._queue.get_nowait())
        self._count = self._bytes = 0
        return batches

    def _join(self, batches: list[Batch]) -> bytes:
        """The bytes of what was taken from the queue, without what was read from the log already."""
        parts = []
        for batch in batches:
            if batch.last is None:
                parts.append(batch.data)
            elif batch.last.offset > self.position.offset:
                parts.append(self._unread(batch))
                self.position = batch.last
        return b"".join(parts) if len(parts) > 1 else parts[0] if parts else b""

    def _unread(self, batch: Batch) -> bytes:
        if batch.first > self.position.offset:
            self._totals.delivered += len(batch.publications)
            return batch.data
        rest = [item.frame for item in batch.publications if item.position.offset > self.position.offset]
        self._totals.delivered += len(rest)
        return b"".join(rest)

    async def __aiter__(self) -> AsyncIterator[Event]:
        decoder = EventDecoder()
        while data := await self.read():
            for event in decoder.feed(data):
                yield event
