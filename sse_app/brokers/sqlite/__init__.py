"""The log in a SQLite file: durable, without a server, shared by the processes of one machine.

    publish -> writer thread -> log.append, one commit for all that wait -> tails, publishers, datagrams to the others
    datagram, or the watermark has risen -> _follow -> pages.replay -> tails
    replay, newest, last, since -> a few reading threads -> pages

The event loop never waits for the disk, but for small reads of one page that is always cached (``watermark.py``).
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
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, Unpack
from urllib.parse import parse_qsl, unquote

from sse_app.backoff import Backoff
from sse_app.brokers import Page, Tail
from sse_app.brokers.limits import BrokerSettings, Limits
from sse_app.brokers.sqlite.log import FAILED, Appended, Entry, State, connect
from sse_app.brokers.sqlite.nodes import LOOPBACK, Node
from sse_app.brokers.sqlite.opening import Asked, opened
from sse_app.brokers.sqlite.pages import Reader
from sse_app.brokers.sqlite.schema import SCHEMA_VERSION
from sse_app.brokers.sqlite.writer import Writer
from sse_app.brokers.tail import QueuedTail
from sse_app.errors import BrokerError, ConfigError, LogUnavailable
from sse_app.publication import Audience, Draft, Durability, Position, Publication
from sse_app.stack import OPEN, NonReentrant, close_stack
from sse_app.topics import TopicFilter

logger = logging.getLogger("sse_app")

T = TypeVar("T")

READERS = 4  # threads: a read from a cold disk does not hold up all others
POLL = 0.05  # seconds between two looks whether others have written, should their datagram not arrive
LOOK = 0.5  # seconds between two looks at the other processes, at the file, and after trouble
TRIM = 1.0  # seconds at least between two looks for what is too old
BACKOFF = (0.2, 1.0)  # seconds after the first failure to read the log for the tail, and at most
EVERYTHING = TopicFilter()
END = Position("", 2**62)  # behind all others


def open_url(url: str, **settings: Unpack[BrokerSettings]) -> "SQLiteBroker":
    """``sqlite:///relative/hub.db``, ``sqlite:////absolute/hub.db``; ``?sync=normal`` commits without waiting for the
    disk."""
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
    """Keywords as for the log in memory; ``sync`` is ``full`` (a commit is on the disk before it is acknowledged) or
    ``normal`` (it survives the process, not the machine). ``recover`` sets a damaged file aside and begins a new log.
    Without ``create`` a file that is not there is not made.

    The limits stay in the file: who opens it with any sets them for everyone, who gives none leaves them.
    """

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
        self._asked = Asked(self._path, sync, Limits.of(*given) if limited else None, recover, create=create)
        self._clock, self._wall = clock, wall
        self._born = wall() - clock()
        self._tails: list[QueuedTail] = []
        self._news = asyncio.Event()  # somebody has appended
        self._trouble: BrokerError | None = None
        self._unreadable = False
        self._trimmed = float("-inf")  # when it was last looked for what is too old
        self._readers: queue.LifoQueue[Reader] = queue.LifoQueue(READERS)
        self._port = 0  # where others wake this process; 0: it follows nobody
        self._stack, self._entered = AsyncExitStack(), NonReentrant(OPEN)

    # Life

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.enter_context(self._entered)
            self._file = await asyncio.to_thread(opened, self._asked)
            stack.push_async_callback(asyncio.to_thread, self._file.close)
            state = self._file.state
            self._announced = self._known = state.position
            self._oldest = state.oldest
            self._threads = ThreadPoolExecutor(READERS, "sse-app log reader")
            stack.push_async_callback(asyncio.to_thread, self._stop_reading)
            self._writer = Writer(asyncio.get_running_loop(), self._append, self._appended)
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
        try:
            return await self._writer.submit(_entry(draft))
        except BrokerError as error:
            self._troubled(error)
            raise

    def _stamp(self) -> float:
        """Wall time as it would be had nobody set the clock since the start: of all that ages."""
        return self._born + self._clock()

    def _append(self, entries: list[Entry]) -> Appended:
        """In the writer's thread."""
        self._file.check_there()
        appended = self._file.log.append(entries, self._wall(), self._stamp(), touch=self._trouble is not None)
        self._file.check_there()  # else it went into a file that nobody will ever find again
        if appended.publications:
            self._file.rise(appended.state.position)
            self._file.nodes.wake()
        return appended

    def _appended(self, appended: Appended) -> None:
        if self._trouble is not None:
            logger.warning("the log can be written again")
            self._trouble = None
        self._note(appended.state)
        if appended.before == self._announced:
            self._announce(appended.publications, appended.state.position)
        else:
            self._news.set()

    def _troubled(self, error: BrokerError) -> None:
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

    def _note(self, state: State) -> None:
        if state.epoch == self._known.epoch:
            self._known = max(self._known, state.position)
            self._oldest = max(self._oldest, state.oldest)

    def _announce(self, publications: Sequence[Publication], end: Position) -> None:
        self._announced = end
        if publications:
            self.bad_envelopes += sum(publication.lost for publication in publications)
            for tail in self._tails:
                tail.announce(publications)

    def _begin_anew(self, state: State) -> None:
        self._announced = self._known = state.position
        self._oldest = state.oldest
        for tail in self._tails:
            tail.begin_anew()

    async def top(self, *, fresh: bool = False) -> Position:
        if fresh:
            state = await self._read(Reader.state)
            self._note(state)
            return state.position
        return self._known

    async def oldest(self) -> Position:
        await self._trim()
        return Position(self._known.epoch, min(self._oldest, self._known.offset))

    async def _trim(self) -> None:
        """What is too old goes with every commit; without any it has to be looked for."""
        now = self._clock()
        if now - self._trimmed >= TRIM and self._trouble is None:
            self._trimmed = now
            with suppress(BrokerError):
                await self._writer.submit(None)

    # Reading

    async def replay(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page:
        await self._trim()
        return await self._read(lambda reader: reader.replay(after, until, topic_filter))

    async def newest(self, count: int, topic_filter: TopicFilter, audience: Audience | None) -> Sequence[Publication]:
        await self._trim()
        return await self._read(lambda reader: reader.newest(count, topic_filter, audience))

    async def last(self, count: int, topic_filter: TopicFilter, audience: Audience) -> tuple[Position, bool]:
        await self._trim()
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
            self._file.check_there()  # else it would read another log than the others do
        except BrokerError:
            reader.close()
            raise
        return reader

    # Following what other processes append

    def tail(self) -> Tail:
        if not self._port:
            self._port = self._listen()
            self._file.nodes.join(self._port)
            risen = self._file.watermark.position()
            if risen is not None and risen.epoch == self._known.epoch:
                self._known = max(self._known, risen)
            self._announced = self._known  # until now nobody was told what others append
            for work in (self._follow(), self._watch()):
                self._stack.callback(self._tasks.create_task(work).cancel)
        return QueuedTail(self._tails, self._announced)

    def _listen(self) -> int:
        """For the datagrams of those who have appended. What is in them does not matter."""
        loop, wake = asyncio.get_running_loop(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._stack.callback(wake.close)
        wake.setblocking(False)
        wake.bind((LOOPBACK, 0))

        def woken() -> None:
            with suppress(OSError):
                while wake.recv(1):
                    pass
            self._news.set()

        loop.add_reader(wake, woken)
        self._stack.callback(loop.remove_reader, wake)
        port: int = wake.getsockname()[1]
        return port

    async def _follow(self) -> None:
        backoff = Backoff(*BACKOFF)
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                while not await self._read_on():
                    pass
                backoff.reset()
            except BrokerError:
                await asyncio.sleep(backoff.next())
                self._news.set()

    async def _read_on(self) -> bool:
        """Announce the next of what is not announced yet; True when that was all."""
        start = self._announced
        page, state = await self._read(lambda reader: (reader.replay(start, END, EVERYTHING), reader.state()))
        if start != self._announced:  # our own commit came in between: what was read may have been announced
            return False
        if page.start != start:  # another epoch, or trimmed before it was read
            self._begin_anew(state)
            return True
        self._note(state)
        self._announce(page.publications, page.end)
        return page.end.offset >= state.top

    async def _watch(self) -> None:
        looked = self._clock()
        while True:
            await asyncio.sleep(POLL)
            risen = self._file.watermark.position()
            if risen is not None and (risen.epoch != self._announced.epoch or risen > self._announced):
                self._news.set()
            if self._clock() - looked >= LOOK:
                looked = self._clock()
                await self._look_around()

    async def _look_around(self) -> None:
        mine = Node(self._port, self.subscribers_here)
        with suppress(OSError):  # no descriptor is free: they are as many as they were
            others = await self._in_thread(lambda: self._file.nodes.others(telling=mine))
            self.subscribers_elsewhere = sum(node.subscribers for node in others)
        try:
            await self._in_thread(self._file.check_there)
            if self._trouble is not None or await self._in_thread(self._is_migrated):
                await self._writer.submit(None)  # which finds out what there is
        except BrokerError as error:
            self._troubled(error)

    def _is_migrated(self) -> bool:
        """True when the file is of a newer version, without a commit that would show it."""
        with suppress(sqlite3.Error, BrokerError):
            return self._with_reader(Reader.version) > SCHEMA_VERSION
        return False


def _entry(draft: Draft) -> Entry:
    body, key, digest = draft.encode(), draft.idempotency_key, b""
    if key is not None:
        content = body, draft.topics, sorted(draft.to), sorted(draft.exclude)
        digest = hashlib.sha256(repr(content).encode()).digest()
    return Entry(draft.event.type, body, draft.topics, draft.to, draft.exclude, key, digest, draft.is_json)
