"""One open stream, seen from the hub: a topic filter, a position in the log, one bounded queue.

``Mode`` says where its next bytes come from. It writes to a ``Writer``, or is read with ``read`` (the reference that
the writers must equal).
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from enum import Enum, StrEnum
from typing import Any, NoReturn, Protocol

from sse_app.backoff import Backoff
from sse_app.batch import Batch, Writer
from sse_app.brokers import Page, Written
from sse_app.dialects import NATIVE, Dialect, write, write_page
from sse_app.errors import BrokerError
from sse_app.grants import OPEN, Grant
from sse_app.metrics import Totals
from sse_app.notices import GapReason
from sse_app.publication import Audience, Position
from sse_app.topics import TopicFilter

logger = logging.getLogger("sse_app")


class CloseReason(StrEnum):
    GONE = "gone"  # the client went, or its connection
    DRAIN = "drain"  # the hub is being stopped
    ERROR = "error"  # our mistake, logged
    EXPIRED = "expired"  # its grant ended, or is to be looked at again
    REVOKED = "revoked"  # its grant was taken back
    CHANGED = "changed"  # its grant covers less now: the client comes back for the rest
    KICKED = "kicked"  # an administrator ended it
    REPLACED = "replaced"  # a newer stream took its place
    CONTESTED = "contested"  # more than one party uses what it was opened with


RETRY = (0.4, 1.0)  # seconds: the first and the longest pause between attempts to read a log that cannot be read

WAKE = Batch(b"")  # ends the wait of a reader, so that it sees its subscriber's new state


class Log(Protocol):
    """The log as a stream reads it. A method that gets no answer raises a BrokerError."""

    async def top(self) -> Position:
        """Return the position up to which it may be read now. All that is behind it will be offered."""
        ...

    async def replay(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page:
        """Return the next page of matching publications in ``(after, until]``, oldest first."""
        ...


class Mode(Enum):
    """The place that the next bytes of a stream come from, and what becomes of a batch that is offered to it.

    ======= ======= ===================================================================================
    mode    offers  next mode
    ======= ======= ===================================================================================
    WAITING queued  READY: the queue is written, and the socket takes more
                    BEHIND: the queue ran over, or the stream has to go on from the log
                    ENDING: the stream is to end at once, and has no writer
                    ENDED: the stream is over
    READY   written WAITING: the socket is full, or something else has to be written first
                    BEHIND: the stream has to go on from the log
                    ENDED: the stream is over
    BEHIND  dropped READING: the log is asked where it ends, and read up to there
                    WAITING: the log cannot be read, and the stream is to end
                    ENDING: the stream is to end at once, and has no writer
                    ENDED: the stream is over
    READING queued  WAITING: the log was read to that end, or it cannot be read and the stream is to end
                    OVERRUN: the queue ran over
                    BEHIND: that end is not known or not of this log, or the stream has to go on from the log
                    ENDING: the stream is to end at once, and has no writer
                    ENDED: the stream is over
    OVERRUN dropped BEHIND: the log was read to that end, or for the reasons of READING
                    WAITING: the log cannot be read, and the stream is to end
                    ENDING: the stream is to end at once, and has no writer
                    ENDED: the stream is over
    ENDING  dropped ENDED: the last bytes were read, or there is a writer that takes them
    ENDED   dropped
    ======= ======= ===================================================================================

    A stream that is WAITING has a full socket, or no writer: then ``read`` takes from the queue. Unless it is to end, a
    stream leaves the log from READING only: the queue takes what is new before the log is asked where it ends, and what
    the queue holds of the log is skipped. That order is what makes every publication arrive once. In OVERRUN the log is
    read to that end with the queue closed, so that a reader who is slow for long does not fill it again at each page.
    """

    WAITING = "waiting"
    READY = "ready"
    BEHIND = "behind"
    READING = "reading"
    OVERRUN = "overrun"
    ENDING = "ending"
    ENDED = "ended"


WAITING, READY, BEHIND, READING, OVERRUN, ENDING, ENDED = Mode  # Python 3.11 takes 0.1 us to find a member of an enum
FROM_LOG = (BEHIND, READING, OVERRUN)
OVER = (ENDING, ENDED)  # nothing more is taken, read or written but the last bytes


class Subscriber:
    """One open stream, which ``Node.join`` makes for who has this ``grant``. Its bytes are read with ``read``, or
    written to an attached Writer.

    As many publications or bytes as ``queue_limits`` has may wait; more drop the queue, and the reader goes on from the
    log. So a slow reader costs no more than that, and loses nothing that the log still holds.
    """

    __slots__ = (
        "_bytes", "_count", "_epoch", "_farewell", "_greeting", "_lagging", "_log", "_mode", "_offset",
        "_queue", "_queue_limits", "_ready_in", "_totals", "_until", "_writable", "_writer", "address", "client",
        "closing", "dialect", "ends_at", "filter", "grant", "since", "spawn", "turn",
    )  # fmt: skip

    def __init__(
        self,
        log: Log,
        totals: Totals,
        topic_filter: TopicFilter,
        client: str,
        queue_limits: tuple[int, int],
        spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]] | None = None,
        *,
        dialect: Dialect = NATIVE,
        grant: Grant = OPEN,
        address: str | None = None,
        since: int = 0,
    ) -> None:
        self.filter = topic_filter
        self.dialect = dialect
        self.client = client
        self.grant = grant
        self.ends_at: int | None = None  # the second of Unix time in which its grant ends it; kept by Expiry
        self.address, self.since = address, since  # where it came from, and the second of Unix time when it began
        self.closing: CloseReason | None = None  # why the stream is to end, once it is to end
        self.turn = 0  # the slot of the hub's heartbeats that the subscriber is in
        self._log = log
        self._totals = totals
        self._queue_limits = queue_limits  # one object for all streams of a node
        self.spawn = spawn or _no_owner  # gives a task an owner
        self._mode = WAITING
        self._epoch, self._offset = "", 0
        self._ready_in: str | None = None  # the epoch in READY: the one thing that the loop of offer_all has to compare
        self._until: Position | None = None  # the end of the log that READING and OVERRUN read up to, once it is known
        self._queue: asyncio.Queue[Batch] | None = None  # made when first something has to wait: 3 KB
        self._count = self._bytes = 0  # what waits in the queue, its bound: publications, bytes
        self._lagging = False  # the queue ran over, and the subscriber is counted until the log was read to its end
        self._greeting = b""
        self._farewell = b""
        self._writer: Writer | None = None
        self._writable: asyncio.Future[None] | None = None  # of the catch-up that runs: done when its socket takes more

    @property
    def position(self) -> Position:
        """Everything up to here was read, or is not for this subscriber."""
        return Position(self._epoch, self._offset)

    @property
    def is_behind(self) -> bool:
        """True while it reads from the log, to catch up."""
        return self._mode in FROM_LOG

    @property
    def queued_bytes(self) -> int:
        """The bytes that wait in the queue."""
        return self._bytes

    @property
    def audience(self) -> Audience:
        """The names under which a publication may name it. Made when it is asked for: a stream need not keep them."""
        return self.grant.audience(self.client)

    def begin(self, position: Position, greeting: bytes, *, behind: bool, page: Written | None = None) -> None:
        """Start at a position, with these bytes first, and then with the ``page`` that was read of the log up to there.
        ``behind`` when the log holds more that it has to read.
        """
        self._epoch, self._offset = position
        if self._mode not in OVER:
            self._greeting = greeting if page is None else self._written(page, greeting)
        if behind and self._mode is WAITING:  # else its queue ran over already, or it has ended
            self._enter(BEHIND)

    def take_greeting(self) -> bytes:
        """Return the first bytes of the stream, for a connection that writes them itself, before it is attached."""
        greeting, self._greeting = self._greeting, b""
        return greeting

    def _enter(self, mode: Mode) -> None:
        """Change the mode, along the table of ``Mode``. Nothing else sets it."""
        self._mode = mode
        self._ready_in = self._epoch if mode is READY else None
        if mode is not READING and mode is not OVERRUN:
            self._until = None
        if mode is BEHIND or mode is OVERRUN or mode in OVER:
            self._take_all()  # what was queued is in the log, and may be of one that has begun anew
        if self._lagging and (mode is WAITING or mode in OVER):
            self._lagging = False
            self._totals.lagging -= 1

    # Offering

    def offer(self, batch: Batch) -> None:
        """Take a batch. Never waits and never raises: no subscriber can delay another."""
        offer_all((self,), batch)

    def _queue_up(self, batch: Batch) -> None:
        """Keep a batch until it is read or written. A queue that is full is dropped: the log has all of it."""
        if self._mode in OVER:
            return
        most, most_bytes = self._queue_limits
        if self._count >= most or self._bytes >= most_bytes:
            self._overflow()
            return
        self._count += batch.count
        self._bytes += len(batch.data)
        self._ensure_queue().put_nowait(batch)
        if self._mode is READY:
            self._flush()  # part of the batch was read from the log already

    def _ensure_queue(self) -> asyncio.Queue[Batch]:
        if self._queue is None:
            self._queue = asyncio.Queue()  # bounded by _queue_up, in publications and bytes
        return self._queue

    def _overflow(self) -> None:
        self._totals.overflows += 1
        if not self._lagging:
            self._lagging = True
            self._totals.lagging += 1
        self._go_to_log(OVERRUN if self._mode is READING else BEHIND)

    def fall_behind(self) -> None:
        """Go on from the log itself, because what was offered does not follow what was read."""
        if self._mode is not BEHIND and self._mode not in OVER:
            self._go_to_log(BEHIND)

    def _go_to_log(self, mode: Mode) -> None:
        was_ready = self._mode is READY
        self._enter(mode)
        if was_ready:
            self._flush()
        else:
            self._wake()

    def offer_cursor(self, position: Position) -> None:
        """Move the client's cursor here: everything up to it was offered."""
        epoch, offset = position
        self.offer(Batch(self.dialect.cursor(position), offset, offset, epoch=epoch))

    def beat(self, heartbeat: Batch | None = None) -> None:
        """Send a heartbeat, if the stream could take it at once: this one, which the streams of a dialect share."""
        heartbeat = heartbeat or Batch(self.dialect.heartbeat)
        if self._mode is READY:
            self._write(self._writer, heartbeat)  # type: ignore[arg-type]  # READY only with a writer
        elif self._writer is None and self._mode in (WAITING, READING):
            self._queue_up(heartbeat)

    # Ending

    @property
    def is_over(self) -> bool:
        """True when it takes, reads and writes nothing more but its last bytes."""
        return self._mode in OVER

    def close(self, reason: CloseReason, farewell: bytes = b"") -> None:
        """End the stream after everything offered so far and these last bytes."""
        if self.closing is None:
            self.closing, self._farewell = reason, farewell
            if self._mode is READY:
                self._flush()
            else:
                self._wake()

    def end(self, reason: CloseReason, farewell: bytes = b"") -> None:
        """End the stream at once: what waits for it is dropped, and these last bytes follow what was written. Bytes
        that a full socket has not taken yet are not taken back.
        """
        if self._mode in OVER:
            return
        self.closing, self._farewell, self._greeting = reason, farewell, b""
        if self._writer is not None:
            self._finish(self._writer)
        else:
            self._enter(ENDING)
            self._wake()

    def cut(self) -> None:
        """End a written stream at once, because the hub has ended: its client resumes and gets what it lacks. One
        without a writer ends with what waits in its queue.
        """
        if (writer := self._writer) is not None:
            self._end()
            writer.end()
        else:
            self._give_up_log()

    def release(self) -> None:
        """Let go of everything: the stream is over, however it ended."""
        self.closing = self.closing or CloseReason.GONE
        self._end()

    def _end(self) -> None:
        """Take, read and write nothing more, and wake whoever waits for something: a reader, a catch-up."""
        if self._mode is not ENDED:
            self._writer = None
            self._enter(ENDED)
            self._wake()
            self.resume()

    def _finish(self, writer: Writer) -> None:
        self._end()
        writer.end(self._farewell)

    # Writing

    def attach(self, writer: Writer) -> None:
        """Go on by writing to a connection: what waits first, then each batch as it is offered. A stream that is over
        ends it at once.
        """
        if self._mode is ENDED:
            writer.end()
        else:
            self._writer = writer
            self.resume()

    def resume(self) -> None:
        """Go on writing: the socket takes more."""
        if self._writable is None:
            self._flush()
        elif not self._writable.done():
            self._writable.set_result(None)

    def _flush(self) -> None:
        """Write what waits, until nothing does or the socket is full. A catch-up that runs does that itself."""
        if self._mode is READY:
            self._enter(WAITING)
        while (writer := self._writer) is not None and self._writable is None and self._mode is not READY:
            if self._greeting:
                data, self._greeting = self._greeting, b""
            elif self._mode in FROM_LOG:
                self._writable = asyncio.get_running_loop().create_future()
                self.spawn(self._catch_up())
                return
            elif self._queue and not self._queue.empty():
                data = self._join(self._take_all())
            elif self.closing:
                self._finish(writer)
                return
            else:
                self._enter(READY)
                return
            if data and not self._write(writer, Batch(data)):
                return

    def _write(self, writer: Writer, batch: Batch) -> bool:
        """Write, and return True when more can be written at once. Within its ``write`` a writer may release, resume or
        replace itself; what replaced it has written the rest.
        """
        more = writer.write(batch)
        if not more:
            self._refused(writer)
        return more and writer is self._writer

    def _refused(self, writer: Writer) -> None:
        """Wait until this writer resumes, if it still is the stream's: its socket is full."""
        if self._mode is READY and writer is self._writer:
            self._enter(WAITING)

    async def _catch_up(self) -> None:
        """Write what the log holds, as fast as the socket takes it."""
        try:
            while self._writer is not None and self._mode in FROM_LOG:
                data = await self._read_log()
                if data and (writer := self._writer) is not None:
                    self._writable = asyncio.get_running_loop().create_future()
                    if not self._write(writer, Batch(data)):
                        await self._writable
        except asyncio.CancelledError:
            # The hub has ended; or middleware wraps a foreign server's send in asyncio.timeout(), which cancels the
            # current task: here that is this catch-up.
            self.cut()
            raise
        except Exception as error:
            # One line, and never what was being sent. A clean end lets the client come back and resume.
            logger.error("a stream was ended by our mistake: %s", type(error).__name__)
            if self._mode is not ENDED:
                self.closing = CloseReason.ERROR
                self._give_up_log()
        self._writable = None
        self._flush()

    # Reading

    async def read(self) -> bytes:
        """Return the next bytes of the stream, all that waits in one piece; b"" when it has ended.

        Cancelling it loses nothing: the next call goes on where this one was.
        """
        while self._mode is not ENDED:
            if self._greeting:
                data, self._greeting = self._greeting, b""
            elif self._mode in FROM_LOG:
                data = await self._read_log()
            elif self.closing and (self._queue is None or self._queue.empty()):
                self._end()
                return self._farewell
            else:
                data = self._join([await self._ensure_queue().get(), *self._take_all()])
            if data:
                return data
        return b""

    def _wake(self) -> None:
        """End the wait of a reader. Without a queue none waits; a written stream has a writer instead."""
        if self._writer is None and self._queue is not None:
            self._queue.put_nowait(WAKE)

    async def _read_log(self) -> bytes:
        """Return the next page of what the subscriber lacks, as soon as the log can be read; b"" when the page shows
        nothing, or the stream has left the log.
        """
        backoff = Backoff(*RETRY)
        while self._mode in FROM_LOG:
            try:
                if self._until is None:
                    await self._find_end()
                elif (data := await self._read_page(self._until)) is not None:
                    return data
                else:
                    await asyncio.sleep(backoff.next())
            except BrokerError:
                if self.closing:
                    self._give_up_log()
                else:
                    await asyncio.sleep(backoff.next())
        return b""

    def _give_up_log(self) -> None:
        """Go on to the end of the stream without the rest of the log: the client comes back for that."""
        if self._mode in FROM_LOG:
            self._take_all()
            self._enter(WAITING)

    async def _find_end(self) -> None:
        """Ask the log where it ends. From before that on, the queue takes what is new."""
        self._enter(READING)
        try:
            until = await self._log.top()
        except BaseException:
            if self._mode in (READING, OVERRUN):
                self._enter(BEHIND)
            raise
        if self._mode in (READING, OVERRUN):
            self._until = until

    async def _read_page(self, until: Position) -> bytes | None:
        """Return the next page up to there; None when that is the end of a log that has begun anew. The new one is not
        read before its end is known: the node may have to end the stream first.
        """
        page = await self._log.replay(self.position, until, self.filter)
        if self._mode not in FROM_LOG:
            return b""  # nobody is to get the page any more: it does not count as delivered
        if page.end.epoch != until.epoch:
            self._ask_again()
            return None
        gap = b"" if page.start == self.position else self._gap(page.start, until)
        data = self._written(write_page(page, self.dialect, self.audience), gap)
        self._epoch, self._offset = page.end
        if self._mode is not BEHIND:  # it was not told to go on from the log meanwhile
            self._leave_log_at(until)
        return data

    def _written(self, written: Written, before: bytes = b"") -> bytes:
        """Return what was written for this stream, behind other bytes, and count it."""
        self._count_written(written.events, written.gaps)
        return before + written.data if before else written.data

    def _ask_again(self) -> None:
        if self._mode is not BEHIND:
            self._enter(BEHIND)

    def _leave_log_at(self, until: Position) -> None:
        if self._offset >= until.offset:
            self._enter(WAITING if self._mode is READING else BEHIND)

    def _gap(self, start: Position, top: Position) -> bytes:
        reason = GapReason.TRIMMED if start.epoch == self._epoch else GapReason.EPOCH
        self._totals.gaps[reason] += 1
        return self.dialect.gap(reason, str(self.position), start=start, oldest=start.next(), top=top)

    def _take_all(self) -> list[Batch]:
        batches = []
        while self._queue and not self._queue.empty():
            batches.append(self._queue.get_nowait())
        self._count = self._bytes = 0
        return batches

    def _join(self, batches: list[Batch]) -> bytes:
        """Return the bytes of what was taken from the queue, without what was read from the log already, and without
        what is of another log: when a log begins anew, its readers may find that out before the hub's tail does.
        """
        parts = []
        for batch in batches:
            if not batch.top:
                parts.append(batch.data)
            elif batch.top > self._offset and batch.epoch == self._epoch:
                parts.append(self._unread(batch))
                self._offset = batch.top
        return b"".join(parts) if len(parts) > 1 else parts[0] if parts else b""

    def _unread(self, batch: Batch) -> bytes:
        if batch.first > self._offset:
            self._count_written(batch.count, batch.gaps)
            return batch.data
        rest = [item for item in batch.publications if item.position.offset > self._offset]
        return self._written(write(rest, self.dialect))

    def _count_written(self, events: int, gaps: int) -> None:
        self._totals.delivered += events
        if gaps:
            self._totals.gaps[GapReason.LOST] += gaps


def offer_all(subscribers: Iterable[Subscriber], batch: Batch) -> None:
    """``Subscriber.offer`` to each of them: the loop in which a hub spends its time, so nothing in it is a call but the
    write itself.
    """
    epoch, first, top, written = batch.epoch, batch.first, batch.top, 0
    for subscriber in subscribers:
        if subscriber._ready_in == epoch and first > subscriber._offset:
            subscriber._offset = top
            writer: Writer = subscriber._writer  # type: ignore[assignment]  # READY only with a writer
            if not writer.write(batch):
                subscriber._refused(writer)
            written += 1
            totals = subscriber._totals
        elif subscriber._mode is not BEHIND and subscriber._mode is not OVERRUN:
            subscriber._queue_up(batch)
    if written:
        totals.delivered += written * batch.count
        if batch.gaps:
            totals.gaps[GapReason.LOST] += written * batch.gaps


def _no_owner(work: Coroutine[Any, Any, Any]) -> NoReturn:
    work.close()
    raise RuntimeError("a subscriber that writes needs the hub's tasks")
