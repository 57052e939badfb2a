"""The log in a SQLite file: durable, without a server, shared by the processes of one machine.

    publish -> writer thread -> log.append, one commit for all that wait -> tails, publishers, datagrams to other nodes
    a datagram, or a newer watermark -> _run_tail -> pages.replay -> tails
    replay, newest, last -> what was announced to the tails lately, else a few reading threads -> pages

The event loop never waits for the disk, except for small reads of one page that is always cached (``watermark.py``).
"""

import asyncio
import hashlib
import logging
import queue
import socket
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, Unpack
from urllib.parse import parse_qsl, unquote

from sse_app.backoff import Backoff
from sse_app.brokers import Extent, Page, Tail
from sse_app.brokers.limits import BrokerSettings, Limits
from sse_app.brokers.recent import BYTES, COUNT, Recent
from sse_app.brokers.sqlite.board import SQLiteBoard
from sse_app.brokers.sqlite.log import FAILED, Appended, Entries, Entry, State, connect
from sse_app.brokers.sqlite.nodes import LOOPBACK, TOLD, Node
from sse_app.brokers.sqlite.opening import OpenOptions, open_file
from sse_app.brokers.sqlite.pages import Reader
from sse_app.brokers.sqlite.schema import SCHEMA_VERSION
from sse_app.brokers.sqlite.writer import Writer
from sse_app.brokers.tail import QueuedTail
from sse_app.drafts import Drafts
from sse_app.errors import BrokerError, ConfigError, LogUnavailable
from sse_app.publication import Audience, Draft, Durability, Position, Publication
from sse_app.stack import OPEN, NonReentrant, close_stack
from sse_app.topics import TopicFilter

logger = logging.getLogger("sse_app")

T = TypeVar("T")

READERS = 4  # threads, so that a read from a cold disk does not hold up all others
POLL = 0.05  # seconds between two reads of the watermark, in case the datagram of another process is lost
REFRESH = 0.5  # seconds between two checks of the other processes and the file, and two tries after trouble
TRIM = 1.0  # seconds at least between two trims that no publication makes
BACKOFF = (0.2, 1.0)  # seconds after the first failure to read the log for the tail, and at most
EVERYTHING = TopicFilter()
END = Position("", 2**62)  # behind every publication


def open_url(url: str, **settings: Unpack[BrokerSettings]) -> "SQLiteBroker":
    """Return the broker of ``sqlite:///relative/hub.db`` or ``sqlite:////absolute/hub.db``; ``?sync=normal`` commits
    without waiting for the disk."""
    rest, _, query = url.partition("://")[2].partition("?")
    path, options = unquote(rest).removeprefix("/"), dict(parse_qsl(query, keep_blank_values=True))
    if not rest.startswith("/") or path in ("", ":memory:") or "\0" in path:
        raise ConfigError(
            "broker sqlite:// names a file: sqlite:///hub.db here, sqlite:////var/lib/hub.db from the root."
        )
    sync = options.pop("sync", "full")
    if options or sync not in ("full", "normal"):
        raise ConfigError("broker sqlite:// takes one option: ?sync=full (the default) or ?sync=normal.")
    return SQLiteBroker(Path(path), sync=sync, **settings)


class SQLiteBroker:
    """The log in a SQLite file; keywords as for the log in memory, and three more.

    ``sync`` is ``full`` (a commit is on the disk before it is acknowledged) or ``normal`` (it survives the process, not
    the machine). ``recover`` sets a damaged file aside and begins a new log. Without ``create`` no new file is made.

    The limits are kept in the file: a process that names some sets them for all, a process that names none leaves them.
    """

    steppable = True
    subscribers_here = 0

    def __init__(
        self,
        path: Path,
        *,
        sync: str = "full",
        recover: bool = False,
        create: bool = True,
        history: int | None = None,
        history_bytes: int | None = None,
        history_age: float | None = None,
        idempotency_window: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.durability: Durability = "fsync" if sync == "full" else "log"
        self.subscribers_elsewhere = self.bad_envelopes = 0
        given = history, history_bytes, history_age, idempotency_window
        self._path = path.absolute()
        limited = any(value is not None for value in given)
        self._options = OpenOptions(self._path, sync, Limits.of(*given) if limited else None, recover, create=create)
        self._clock, self._wall = clock, wall
        self._wall_at_zero = wall() - clock()
        self._tails: list[QueuedTail] = []
        self._recent = Recent(history or COUNT, history_bytes or BYTES)  # empty until somebody reads the tail
        self._unkept: list[Publication] | None = None  # announced while _recent is filled with what comes before
        self._unread = asyncio.Event()  # another process has appended
        self._trouble: BrokerError | None = None
        self._unreadable = False
        self._last_trim = float("-inf")  # the time of the last one, on the clock
        self._readers: queue.LifoQueue[Reader] = queue.LifoQueue(READERS)
        self._port = 0  # at which other processes wake this one; 0 as long as nobody reads the tail, or messages
        self.board = SQLiteBoard(self._options.node, self._join, wall, recover=recover)
        self._stack, self._entered = AsyncExitStack(), NonReentrant(OPEN)

    # Life

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.enter_context(self._entered)
            self._file = await asyncio.to_thread(open_file, self._options)
            stack.push_async_callback(asyncio.to_thread, self._file.close)
            self.board.open(self._file)
            stack.push_async_callback(self.board.close)
            state = self._file.state
            self._port = 0
            self._announced = self._known = state.position
            self._oldest, self._size = state.oldest, state.size
            self._recent.restart(state.top)
            self._unkept = None
            self._threads = ThreadPoolExecutor(READERS, "sse-app log reader")
            stack.push_async_callback(asyncio.to_thread, self._stop_reading)
            self._writer = Writer(asyncio.get_running_loop(), self._append, self._on_commit)
            stack.push_async_callback(asyncio.to_thread, self._writer.stop)
            self._tasks = await stack.enter_async_context(asyncio.TaskGroup())
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await close_stack(self._stack, kind, error, trace)

    def _stop_reading(self) -> None:
        self._threads.shutdown()
        while not self._readers.empty():
            self._readers.get_nowait().close()

    # Publishing

    async def publish(self, draft: Draft) -> Position:
        (position,) = await self._submit(Entries((_entry(draft),)))
        return position

    def append(self, draft: Draft) -> None:
        return None  # each commit is waited for

    async def publish_many(self, drafts: Drafts) -> Sequence[Position]:
        entries = Entries(tuple(map(_entry, drafts)))
        if (key := drafts.idempotency_key) is not None:
            contents = (_content(draft, entry.body) for draft, entry in zip(drafts, entries.items, strict=True))
            entries = entries._replace(key=key, digest=_digest_of("batch", *contents))
        return await self._submit(entries)

    async def _submit(self, entries: Entries) -> Sequence[Position]:
        try:
            return await self._writer.submit(entries)
        except BrokerError as error:
            self._on_trouble(error)
            raise

    def _stamp(self) -> float:
        """Return the Unix time that ages are measured with: a clock that is set after the start does not change it."""
        return self._wall_at_zero + self._clock()

    def _append(self, waiting: list[Entries]) -> Appended:
        """Commit what publishers gave. In the writer's thread."""
        self._file.check_there()
        appended = self._file.log.append(waiting, self._wall(), self._stamp(), touch=self._trouble is not None)
        self._file.check_there()  # else the commit went into a file that the path no longer leads to
        if appended.publications:
            self._file.advance(appended.state.position)
            self._file.nodes.wake()
        return appended

    def _on_commit(self, appended: Appended) -> None:
        if self._trouble is not None:
            logger.warning("the log can be written again")
            self._trouble = None
        self._update(appended.state)
        if appended.before == self._announced:
            self._announce(appended.publications, appended.state.position)
        else:
            self._unread.set()

    def _on_trouble(self, error: BrokerError) -> None:
        if self._trouble is None:
            logger.warning("%s: %s", self._path, error.__cause__ or error)
        self._trouble = error

    def check(self) -> None:
        if self._trouble is not None:
            raise type(self._trouble)(str(self._trouble))

    @property
    def outdated(self) -> bool:
        return self._file.log.outdated

    # What this process knows

    def _update(self, state: State) -> None:
        if state.epoch == self._known.epoch:
            self._known = max(self._known, state.position)
            self._oldest, self._size = max(self._oldest, state.oldest), state.size
            self._recent.trim(self._oldest)

    def _announce(self, publications: Sequence[Publication], end: Position) -> None:
        if self._unkept is None:
            self._keep(publications)
        else:
            self._unkept += publications
        self._announced = end
        if publications:
            self.bad_envelopes += sum(publication.lost for publication in publications)
            for tail in self._tails:
                tail.announce(publications)

    def _begin_anew(self, state: State) -> None:
        self._announced = self._known = state.position
        self._oldest, self._size = state.oldest, state.size
        self._recent.restart(state.top)
        if self._unkept:
            self._unkept.clear()
        for tail in self._tails:
            tail.begin_anew()

    async def top(self, *, fresh: bool = False) -> Position:
        if fresh:
            state = await self._read(Reader.state)
            self._update(state)
            return state.position
        return self._known

    async def oldest(self) -> Position:
        await self._trim()
        return Position(self._known.epoch, min(self._oldest, self._known.offset))

    async def _trim(self) -> None:
        """Trim publications that are too old. Every commit does so; this is for a log without commits."""
        now = self._clock()
        if now - self._last_trim >= TRIM and self._trouble is None:
            self._last_trim = now
            with suppress(BrokerError):
                await self._writer.submit(None)

    # Reading

    def extent(self) -> Extent:
        oldest = self._known._replace(offset=min(self._oldest, self._known.offset))
        return self._recent.extent(oldest, self._known.offset, self._file.log.limits, self._stamp())

    async def replay(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page:
        await self._trim()
        await asyncio.sleep(0)  # a long replay gives way to the others at every page
        if (page := self.at_hand(after, until, topic_filter)) is not None:
            return page
        return await self._read(lambda reader: reader.replay(after, until, topic_filter))

    def at_hand(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page | None:
        if not self._port or after.epoch != self._announced.epoch:
            return None
        start = after._replace(offset=max(after.offset, self._oldest))
        return self._recent.matching(start, until, topic_filter)

    async def newest(self, count: int, topic_filter: TopicFilter, audience: Audience | None) -> Sequence[Publication]:
        await self._trim()
        if (found := self._recent_newest(count, topic_filter, audience)) is not None:
            return found
        return await self._read(lambda reader: reader.newest(count, topic_filter, audience))

    def _recent_newest(
        self, count: int, topic_filter: TopicFilter, audience: Audience | None
    ) -> Sequence[Publication] | None:
        """Return the newest that match, if they are in memory, as they are when nobody has appended anything else."""
        if not self._port or self._recent.top != self._known.offset:
            return None
        return self._recent.newest(count, topic_filter, audience, self._oldest)

    async def last(self, count: int, topic_filter: TopicFilter, audience: Audience) -> tuple[Position, bool]:
        await self._trim()
        if (found := self._recent_newest(count, topic_filter, audience)) is not None:
            before = found[0].position.offset - 1 if found else self._known.offset
            return self._known._replace(offset=before), len(found) >= count
        return await self._read(lambda reader: reader.last(count, topic_filter, audience))

    async def since(self, time: float) -> tuple[Position, bool]:
        await self._trim()
        return await self._read(lambda reader: reader.since(time))

    async def _read(self, work: Callable[[Reader], T]) -> T:
        try:
            found = await self._in_thread(lambda: self._with_reader(work))
        except sqlite3.Error as error:
            if not self._unreadable:
                logger.warning("%s cannot be read: %s", self._path, error)
            self._unreadable = True
            raise LogUnavailable(FAILED) from error
        self._unreadable = False
        return found

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _with_reader(self, work: Callable[[Reader], T]) -> T:
        try:
            reader = self._readers.get_nowait()
        except queue.Empty:
            reader = self._new_reader()
        try:
            return work(reader)
        finally:
            self._readers.put_nowait(reader)

    def _new_reader(self) -> Reader:
        reader = Reader(connect(self._path, create=False))
        try:
            self._file.check_there()  # else it would read another log than the other readers
        except BrokerError:
            reader.close()
            raise
        return reader

    # Following what other processes append

    def tail(self) -> Tail:
        self._join()
        return QueuedTail(self._tails, self._announced)

    def _join(self) -> None:
        """Follow what the other processes append, and let them wake this one."""
        if self._port:
            return
        self._port = self._listen()
        self._file.nodes.join(self._port)
        mark = self._file.watermark.position()
        if mark is not None and mark.epoch == self._known.epoch:
            self._known = max(self._known, mark)
        self._announced = self._known  # the first tail begins here
        self._recent.restart(max(self._oldest, self._announced.offset - self._recent_count()))
        self._unkept = []
        for work in (self._run_tail(), self._poll(), self._fill(self._announced)):
            self._stack.callback(self._tasks.create_task(work).cancel)

    def _listen(self) -> int:
        """Open a socket for the datagrams of other processes, and return its port."""
        loop, wake = asyncio.get_running_loop(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._stack.callback(wake.close)
        wake.setblocking(False)
        wake.bind((LOOPBACK, 0))

        def on_datagram() -> None:
            with suppress(OSError):
                if wake.recv(1) == TOLD:
                    self.board.on_message()
                else:
                    self._unread.set()

        loop.add_reader(wake, on_datagram)
        self._stack.callback(loop.remove_reader, wake)
        port: int = wake.getsockname()[1]
        return port

    async def _run_tail(self) -> None:
        backoff = Backoff(*BACKOFF)
        while True:
            await self._unread.wait()
            self._unread.clear()
            try:
                while not await self._read_tail():
                    pass
                backoff.reset()
            except BrokerError:
                await asyncio.sleep(backoff.next())
                self._unread.set()

    async def _read_tail(self) -> bool:
        """Announce the next page of what is not announced yet; True if that was all."""
        start = self._announced
        page, state = await self._read(lambda reader: (reader.replay(start, END, EVERYTHING), reader.state()))
        if start != self._announced:  # a commit of this process came in between, and announced what was read
            return False
        if page.start != start:  # another epoch, or trimmed before it was read
            self._begin_anew(state)
            return True
        self._update(state)
        self._announce(page.publications, page.end)
        return page.end.offset >= state.top

    def _recent_count(self) -> int:
        """Return how many publications can be kept in memory, by the size of an average one in the file."""
        mean_size = self._size // max(1, self._known.offset - self._oldest)
        return min(self._recent.capacity, BYTES // max(1, mean_size))

    async def _fill(self, end: Position) -> None:
        """Read the newest publications into memory, up to what was announced: most readers catch up from there."""
        assert self._unkept is not None
        while self._recent.top < end.offset and self._announced.epoch == end.epoch:
            start = end._replace(offset=self._recent.top)
            try:
                page = await self._read(partial(Reader.replay, after=start, until=end, topic_filter=EVERYTHING))
            except BrokerError:
                self._recent.restart(self._announced.offset - len(self._unkept))
                break
            if page.end.epoch == self._announced.epoch and self._recent.top == start.offset:
                self._keep(page.publications)
                if self._recent.top < page.end.offset:  # all of it was trimmed before it was read
                    self._recent.restart(page.end.offset)
        self._keep(self._unkept)
        self._unkept = None

    def _keep(self, publications: Sequence[Publication]) -> None:
        for publication in publications:
            self._recent.append(publication)

    async def _poll(self) -> None:
        refreshed = self._clock()
        while True:
            await asyncio.sleep(POLL)
            mark = self._file.watermark.position()
            if mark is not None and (mark.epoch != self._announced.epoch or mark > self._announced):
                self._unread.set()
            if self._clock() - refreshed >= REFRESH:
                refreshed = self._clock()
                await self._refresh()

    async def _refresh(self) -> None:
        mine = Node(self._port, self.subscribers_here)
        with suppress(OSError):  # without a free descriptor the number stays
            others = await self._in_thread(lambda: self._file.nodes.exchange(mine))
            self.subscribers_elsewhere = sum(node.subscribers for node in others.values())
            self.board.on_nodes(others.keys())
        try:
            await self._in_thread(self._file.check_there)
            if self._trouble is not None or await self._in_thread(self._is_migrated):
                await self._writer.submit(None)  # its commit finds out if the file can be written, and its version
        except BrokerError as error:
            self._on_trouble(error)

    def _is_migrated(self) -> bool:
        """Return True if a newer version has migrated the file, which a commit would show too."""
        with suppress(sqlite3.Error, BrokerError):
            return self._with_reader(Reader.version) > SCHEMA_VERSION
        return False


def _entry(draft: Draft) -> Entry:
    body, key = draft.encode(), draft.idempotency_key
    digest = b"" if key is None else _digest_of(*_content(draft, body))
    return Entry(draft.event.type, body, draft.topics, draft.to, draft.exclude, key, digest, draft.is_json)


def _content(draft: Draft, body: bytes) -> tuple[object, ...]:
    """Return what two publications with one idempotency key are compared by."""
    return body, draft.topics, sorted(draft.to), sorted(draft.exclude)


def _digest_of(*content: object) -> bytes:
    return hashlib.sha256(repr(content).encode()).digest()
