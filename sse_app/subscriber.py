"""One open stream, seen from the hub: a topic filter, a position in the log, one bounded queue.

What a subscriber gets goes one of three ways, and from each to the next in one order only:

    ready    its socket takes more: a batch is written as it is offered
    waiting  its socket is full: batches wait in the queue
    behind   the queue ran over, or it resumes: it reads on from the log itself

Leaving the log always takes the same order: first be offered what is new, then look where the log ends, then read up
to there, and skip what the queue holds of it. That order is what makes every publication arrive once.

It writes to a ``Writer``, or is read with ``read`` (the reference that the writers must equal).
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from enum import StrEnum
from typing import Any, NoReturn, Protocol

from sse_app.brokers import Broker
from sse_app.dialects import NATIVE, Dialect, write
from sse_app.errors import BrokerError
from sse_app.events import Event, EventDecoder
from sse_app.metrics import Totals
from sse_app.notices import GapReason
from sse_app.publication import Audience, Position, Publication
from sse_app.topics import TopicFilter

logger = logging.getLogger("sse_app")


class CloseReason(StrEnum):
    GONE = "gone"  # the client went, or its connection
    DRAIN = "drain"  # the hub is being stopped
    ERROR = "error"  # our mistake, logged


class Batch:
    """Consecutive publications as they go to subscribers, joined once and shared.

    Everything from offset ``first`` to ``top`` that is for the subscriber is in it; a cursor has no publications, and
    bytes that are in no log have 0 and 0. ``data`` are the frames, ``chunk`` the same framed for HTTP/1.1. ``count``
    is how many publications that are, ``gaps`` how many gaps in place of lost ones.
    """

    __slots__ = ("chunk", "count", "data", "first", "gaps", "publications", "top")

    def __init__(
        self,
        data: bytes,
        first: int = 0,
        top: int = 0,
        publications: Sequence[Publication] = (),
        *,
        count: int = 0,
        gaps: int = 0,
    ) -> None:
        self.data = data
        self.chunk = b"%x\r\n%b\r\n" % (len(data), data)
        self.first, self.top = first, top
        self.publications = publications
        self.count, self.gaps = count, gaps

    @classmethod
    def join(cls, publications: Sequence[Publication], dialect: Dialect = NATIVE) -> "Batch":
        """Return the batch of these publications, of which there is at least one."""
        blocks, events, gaps = write(publications, dialect)
        first, top = publications[0].position.offset, publications[-1].position.offset
        return cls(b"".join(blocks), first, top, publications, count=events, gaps=gaps)


AGAIN = (0.2, 1.0)  # seconds, random in between, until it tries to read a log again that could not be read

HEARTBEAT = Batch(NATIVE.heartbeat)
WAKE = Batch(b"")  # ends the wait of a reader, so that it sees its subscriber's new state


class Writer(Protocol):
    """Where a subscriber's bytes go: its connection. Nothing here waits or raises.

    Once ``write`` has said no, the writer calls ``Subscriber.resume`` when its socket takes more.
    """

    def write(self, batch: Batch) -> bool:
        """Write it, and say whether more can be taken at once."""
        ...

    def end(self) -> None:
        """End the response as its protocol does, after what was written."""
        ...


class Subscriber:
    """Made by ``Hub.subscribe``. Read the bytes of its stream with ``read``, or its events with ``async for``.

    ``queue_size`` publications or ``queue_bytes`` bytes may wait; more drops the queue, and the reader goes on from the
    log. So a slow reader costs no more than that, and loses nothing that the log still holds.
    """

    __slots__ = (
        "_behind", "_broker", "_bytes", "_count", "_ended", "_epoch", "_farewell", "_greeting", "_lagging", "_offset",
        "_queue", "_queue_bytes", "_queue_size", "_ready", "_totals", "_until", "_writable", "_writer", "client",
        "closing", "dialect", "filter", "spawn", "turn",
    )  # fmt: skip

    def __init__(
        self,
        broker: Broker,
        totals: Totals,
        filter: TopicFilter,
        client: str,
        queue_size: int,
        queue_bytes: int,
        spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]] | None = None,
        *,
        dialect: Dialect = NATIVE,
    ) -> None:
        self.filter = filter
        self.dialect = dialect
        self.client = client
        self.closing: CloseReason | None = None
        self.turn = 0  # which beat of the hub is its heartbeat
        self._broker = broker
        self._totals = totals
        self._queue_size, self._queue_bytes = queue_size, queue_bytes
        self.spawn = spawn or _no_owner  # gives a task an owner
        self._epoch, self._offset = "", 0
        self._queue: asyncio.Queue[Batch] | None = None  # made when first something has to wait: 3 KB
        self._count = self._bytes = 0  # what waits in the queue, its bound: publications, bytes
        self._behind = False  # what comes next is in the log, not in the queue
        self._until: Position | None = None  # while it reads the log: how far
        self._lagging = False
        self._ended = False
        self._greeting = b""
        self._farewell = b""
        self._writer: Writer | None = None
        self._ready = False
        self._writable: asyncio.Future[None] | None = None  # while a catch-up waits for the socket

    @property
    def position(self) -> Position:
        """Everything up to here was read, or is not for this subscriber."""
        return Position(self._epoch, self._offset)

    @property
    def audience(self) -> Audience:
        return Audience((self.client,))

    def begin(self, position: Position, greeting: bytes, *, behind: bool) -> None:
        """Start at a position, with these bytes first; ``behind`` when the log holds more that it has to read."""
        self._epoch, self._offset = position
        self._greeting, self._behind = greeting, behind or self._behind  # its queue may have run over already

    # Taking

    def offer(self, batch: Batch) -> None:
        """Take a batch. Never waits and never raises: no subscriber can delay another."""
        offer_all((self,), batch)

    def _queue_up(self, batch: Batch) -> None:
        if self._count >= self._queue_size or self._bytes >= self._queue_bytes:
            self._overflow()
            return
        self._count += batch.count
        self._bytes += len(batch.data)
        self._waiting().put_nowait(batch)
        if self._ready:
            self._flush()  # part of it was read from the log already

    def _waiting(self) -> asyncio.Queue[Batch]:
        if self._queue is None:
            self._queue = asyncio.Queue()  # bounded by _queue_up, in publications and bytes
        return self._queue

    def _overflow(self) -> None:
        self._behind = True  # from now on it finds everything in the log
        self._totals.overflows += 1
        if not self._lagging:
            self._lagging = True
            self._totals.lagging += 1
        self._take_all()
        self._wake()

    def fall_behind(self) -> None:
        """Go on from the log itself, because what was offered does not follow what was read."""
        self._behind, self._until = True, None
        self._take_all()
        if self._ready:
            self._flush()
        else:
            self._wake()

    def offer_cursor(self, position: Position) -> None:
        """Move the client's cursor here: everything up to it was offered."""
        self.offer(Batch(self.dialect.cursor(position), position.offset, position.offset))

    def beat(self) -> None:
        """A heartbeat, for a stream that could take it at once."""
        if self._ready:
            if not self._writer.write(self._heartbeat()):  # type: ignore[union-attr]
                self._ready = False
        elif self._writer is None and not self._behind:
            self._queue_up(self._heartbeat())

    def _heartbeat(self) -> Batch:
        return HEARTBEAT if self.dialect is NATIVE else Batch(self.dialect.heartbeat)

    def close(self, reason: CloseReason, farewell: bytes = b"") -> None:
        """End the stream after everything offered so far and these last bytes."""
        if self.closing is None:
            self.closing, self._farewell = reason, farewell
            if self._ready:
                self._flush()
            else:
                self._wake()

    def cut(self) -> None:
        """End a written stream at once, because the hub has ended. Its client resumes and gets what it lacks."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            self._end()
            writer.end()

    def release(self) -> None:
        """The stream is over, however it ended."""
        self.closing = self.closing or CloseReason.GONE
        self._ready, self._behind, self._until, self._writer = False, True, None, None
        self._take_all()
        self._caught_up()
        self.resume()

    # Writing

    def attach(self, writer: Writer) -> None:
        """Go on by writing to a connection: what waits first, then each batch as it is offered."""
        self._writer = writer
        self._flush()

    def resume(self) -> None:
        """The writer can take more."""
        if self._writable is not None:
            if not self._writable.done():
                self._writable.set_result(None)
        elif self._writer is not None:
            self._flush()

    def _flush(self) -> None:
        """Write what waits, until nothing does or the socket is full."""
        self._ready = False
        while (writer := self._writer) is not None:
            if self._greeting:
                data, self._greeting = self._greeting, b""
            elif self._behind or self._until:
                self._writable = asyncio.get_running_loop().create_future()
                self.spawn(self._catch_up(self._writable))
                return
            elif self._queue and not self._queue.empty():
                data = self._join(self._take_all())
            elif self.closing:
                self._finish(writer)
                return
            else:
                self._ready = True
                return
            if data and not writer.write(Batch(data)):
                return

    def _end(self) -> None:
        self._ready, self._ended, self._behind = False, True, True  # takes nothing more

    def _finish(self, writer: Writer) -> None:
        self._end()
        self._writer = None
        if self._farewell:
            writer.write(Batch(self._farewell))
        writer.end()

    async def _catch_up(self, writable: asyncio.Future[None]) -> None:
        """Write what the log holds, as fast as the socket takes it."""
        try:
            while (writer := self._writer) is not None and (self._behind or self._until):
                data = await self._read_log()
                if data and self._writer is writer and not writer.write(Batch(data)):
                    await writable
                    self._writable = writable = asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            # The hub has ended; or middleware wraps a foreign server's send in asyncio.timeout(), which cancels the
            # current task: here that is this catch-up.
            self.cut()
            raise
        except Exception as error:
            # One line, and never what was being sent. A clean end lets the client come back and resume.
            logger.error("a stream was ended by our mistake: %s", type(error).__name__)
            self.closing, self._behind, self._until = CloseReason.ERROR, False, None
            self._take_all()
        self._writable = None
        self._flush()

    # Reading

    async def read(self) -> bytes:
        """Return the next bytes of the stream, all that waits in one piece; b"" when it has ended.

        Cancelling it loses nothing: the next call goes on where this one was.
        """
        while not self._ended:
            if self._greeting:
                data, self._greeting = self._greeting, b""
            elif self._behind or self._until:
                data = await self._read_log()
            elif self.closing and self._waiting().empty():
                self._end()
                return self._farewell
            else:
                data = self._join([await self._waiting().get(), *self._take_all()])
            if data:
                return data
        return b""

    async def __aiter__(self) -> AsyncIterator[Event]:
        decoder = EventDecoder()
        while data := await self.read():
            for event in decoder.feed(data):
                yield event

    def _wake(self) -> None:
        if self._writer is None:
            self._waiting().put_nowait(WAKE)

    async def _read_log(self) -> bytes:
        """Return the next page of what the subscriber lacks; b"" also when the log cannot be read just now."""
        try:
            return await self._read_page()
        except BrokerError:
            if self.closing:  # its client comes back for the rest
                self._behind, self._until = False, None
                self._take_all()
            else:
                await asyncio.sleep(random.uniform(*AGAIN))
            return b""

    async def _read_page(self) -> bytes:
        if self._until is None:
            self._behind = False  # from here on the queue takes what is new; only then is the end of the log read
            try:
                self._until = await self._broker.top()
            except BaseException:
                self._behind = True
                raise
        until = self._until
        page = await self._broker.replay(self.position, until, self.filter)
        parts = [] if page.start == self.position else [self._gap(page.start, until)]
        visible = [publication for publication in page.publications if publication.visible_to(self.audience)]
        blocks, events, gaps = write(visible, self.dialect)
        parts += blocks
        self._epoch, self._offset = page.end
        self._count_written(events, gaps)
        if page.end.epoch != until.epoch:  # the log began anew meanwhile: its end has to be read again
            self._behind, self._until = True, None
        elif self._offset >= until.offset:
            self._until = None
            if not self._behind:
                self._caught_up()
        return b"".join(parts)

    def _gap(self, start: Position, top: Position) -> bytes:
        reason = GapReason.TRIMMED if start.epoch == self._epoch else GapReason.EPOCH
        self._totals.gaps[reason] += 1
        return self.dialect.gap(reason, str(self.position), start=start, oldest=start.next(), top=top)

    def _caught_up(self) -> None:
        if self._lagging:
            self._lagging = False
            self._totals.lagging -= 1

    def _take_all(self) -> list[Batch]:
        batches = []
        while self._queue and not self._queue.empty():
            batches.append(self._queue.get_nowait())
        self._count = self._bytes = 0
        return batches

    def _join(self, batches: list[Batch]) -> bytes:
        """Return the bytes of what was taken from the queue, without what was read from the log already."""
        parts = []
        for batch in batches:
            if not batch.top:
                parts.append(batch.data)
            elif batch.top > self._offset:
                parts.append(self._unread(batch))
                self._offset = batch.top
        return b"".join(parts) if len(parts) > 1 else parts[0] if parts else b""

    def _unread(self, batch: Batch) -> bytes:
        if batch.first > self._offset:
            self._count_written(batch.count, batch.gaps)
            return batch.data
        rest = [item for item in batch.publications if item.position.offset > self._offset]
        blocks, events, gaps = write(rest, self.dialect)
        self._count_written(events, gaps)
        return b"".join(blocks)

    def _count_written(self, events: int, gaps: int) -> None:
        self._totals.delivered += events
        if gaps:
            self._totals.gaps[GapReason.LOST] += gaps


def offer_all(subscribers: Iterable[Subscriber], batch: Batch) -> None:
    """``Subscriber.offer`` to each of them: the loop in which a hub spends its time, so nothing in it is a call but the
    write itself."""
    first, top, written = batch.first, batch.top, 0
    for subscriber in subscribers:
        if subscriber._ready and first > subscriber._offset:
            subscriber._offset = top
            if not subscriber._writer.write(batch):  # type: ignore[union-attr]  # ready only with a writer
                subscriber._ready = False  # and it stays so when it was released in the middle of the write
            written += 1
            totals = subscriber._totals
        elif not subscriber._behind:
            subscriber._queue_up(batch)
    if written:
        totals.delivered += written * batch.count
        if batch.gaps:
            totals.gaps[GapReason.LOST] += written * batch.gaps


def _no_owner(work: Coroutine[Any, Any, Any]) -> NoReturn:
    work.close()
    raise RuntimeError("a subscriber that writes needs the hub's tasks")
