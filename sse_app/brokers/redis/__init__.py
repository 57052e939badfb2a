"""The log in Redis: one stream that any number of nodes share. Redis 7 or newer, or Valkey.

    publish -> a queue of commands -> log.lua: append, trim, remember the key
    the stream -> XREAD by one task, on a connection of its own -> tails, also of what this node published
    replay, newest, last, since -> what that task read lately, else another queue of commands -> log.lua
    board -> board.py, from its first use on

Every call of the script names the newest position that its caller knows. When the log lacks that position, it was
flushed or is an older copy of itself: the script begins a new epoch. The task that reads the tail calls it once a
second, so that a node that publishes nothing notices too.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from hashlib import sha1, sha256
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Self, Unpack, cast

from redis.asyncio.connection import AbstractConnection
from redis.asyncio.sentinel import MasterNotFoundError

from sse_app.backoff import Backoff
from sse_app.brokers import Extent, Page, Tail
from sse_app.brokers.board import ABSENT
from sse_app.brokers.formats import lost
from sse_app.brokers.known import KnownLog
from sse_app.brokers.limits import DEFAULTS, PAGE_BYTES, PAGE_COUNT, Limits, LogSettings
from sse_app.brokers.recent import BYTES, COUNT, Recent
from sse_app.brokers.redis.board import RedisBoard
from sse_app.brokers.redis.connection import (
    FAILURES,
    UNREACHABLE,
    Argument,
    CommandQueue,
    check_version,
    close,
    connected,
    connections,
    durability,
    execute,
    split_url,
)
from sse_app.brokers.redis.entries import (
    RawEntry,
    content,
    contents,
    envelope,
    has_place,
    head_of,
    microseconds,
    offset_of,
    publication_of,
)
from sse_app.drafts import Drafts
from sse_app.errors import KEY_REUSED, BrokerError, BrokerUnavailable, ConfigError, KeyReused, OutcomeUnknown
from sse_app.publication import Audience, Draft, Durability, Position, Publication
from sse_app.stack import OPEN, NonReentrant, close_stack
from sse_app.topics import TopicFilter

logger = logging.getLogger("sse_app")

PREFIX = "sse-app"
REFRESH = 1.0  # seconds between two reads of the log's state; no read of the tail blocks longer
REFRESH_SOON = 0.05  # seconds to the next one while there is more to trim than one call of the script does
BACKOFF = (0.2, 2.0)  # seconds after the first failure, and at most
DEADLINE = 1.5  # seconds for a publication, from the call to its answer: a publisher is answered within 2 s
READ_DEADLINE = 30.0  # seconds for a page: thousands of readers may wait before it, and one that gave up asks again
# Commands sent in one write. Redis answers all of them before any other client, which takes it 5 ms and 8 ms.
PUBLICATIONS_AT_ONCE, PAGES_AT_ONCE = 128, 8
TAIL_COUNT = 64  # publications in one read of the tail
TAIL_BYTES = 1024 * 1024  # and bytes, estimated by the sizes in the read before

UNKNOWN = (
    "The broker, a Redis server, did not answer: the event may be published or not. Publish it again with the same "
    "Idempotency-Key, and it is published once."
)

# The limits of a new log when its node names none: whole numbers, ages in microseconds.
_DEFAULTS = DEFAULTS.publications, DEFAULTS.size, microseconds(DEFAULTS.age), microseconds(DEFAULTS.window)
SCRIPT = b"local DEFAULTS = {%d, %d, %d, %d}\n" % _DEFAULTS + Path(__file__).with_name("log.lua").read_bytes()
SCRIPT_SHA = sha1(SCRIPT, usedforsecurity=False).hexdigest()


def open_url(url: str, **settings: Unpack[LogSettings]) -> "RedisBroker":
    """Return the broker of ``redis://host:6379/0``, ``rediss://`` (TLS), ``unix:///path`` or
    ``redis+sentinel://host,host/service``. The URL takes the parameters of redis-py, and ``?prefix=``, which keeps
    several hubs of one database apart."""
    return RedisBroker(url, **settings)


class _SeenEntry(NamedTuple):
    """An entry that this node has seen. No two servers give an entry of one offset the same stamp."""

    offset: int
    stamp: str


class RedisBroker:
    """The log in a Redis stream; keywords as for the log in memory.

    ``clock`` and ``wall`` are the server's own unless they are given, so that nodes need not agree on the time. The
    limits are kept in Redis: a node that names some sets them for all nodes as long as it is open, a node that names
    none leaves them.
    """

    steppable = False
    outdated = False  # each entry says its version

    def __init__(
        self,
        url: str,
        *,
        history: int | None = None,
        history_bytes: int | None = None,
        history_age: float | None = None,
        idempotency_window: float | None = None,
        clock: Callable[[], float] | None = None,
        wall: Callable[[], float] | None = None,
    ) -> None:
        url, prefix = split_url(url)
        if not re.fullmatch(r"[A-Za-z0-9._:-]{1,64}", prefix := PREFIX if prefix is None else prefix):
            raise ConfigError("broker: prefix has 1 to 64 characters of A-Z a-z 0-9 . _ : -")
        # In braces, so that a Redis Cluster keeps all of them in one slot.
        self._log, self._state, self._nodes, self._keys = (
            f"{{{prefix}}}:{name}" for name in ("log", "state", "nodes", "key")
        )
        self._prefix = prefix
        ages = (None if value is None else microseconds(value) for value in (history_age, idempotency_window))
        self._limits = tuple("" if value is None else value for value in (history, history_bytes, *ages))
        self._clock, self._wall = clock, wall
        self._pool = connections(url, self._on_connect)
        self._publishing = CommandQueue(
            self._pool, OutcomeUnknown(UNKNOWN), at_once=PUBLICATIONS_AT_ONCE, deadline=DEADLINE
        )
        self._reading = CommandQueue(
            self._pool, BrokerUnavailable(UNREACHABLE), at_once=PAGES_AT_ONCE, deadline=READ_DEADLINE
        )
        self._node = secrets.token_hex(6)
        self._others: dict[str, float] = {}  # nodes, and the loop's time from which on they count as gone
        self._board: RedisBoard | None = None  # until it is used
        self._seen = _SeenEntry(0, "")  # the newest one
        recent = Recent(history or COUNT, history_bytes or BYTES)
        self._known = KnownLog(self._log, recent, self._read_back)
        self._chain_stamp = ""  # of our newest entry that the tail has read; empty while that is not known
        self._tail_wanted = asyncio.Event()  # somebody reads the tail
        self._refresh_due = 0.0
        self._mean_size = 1  # bytes of a publication in the log
        self._tail_count = 1  # publications in the next read of the tail
        self._trouble = ""  # the reason why the log cannot be reached just now
        self._tail_task: asyncio.Task[NoReturn]
        self._tasks: asyncio.TaskGroup | None = None  # while the broker is open
        self._stack, self._entered = AsyncExitStack(), NonReentrant(OPEN)
        self.durability: Durability = "none"
        self.subscribers_here = self.subscribers_elsewhere = 0

    @property
    def bad_envelopes(self) -> int:
        return self._known.bad_envelopes

    # Life

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.enter_context(self._entered)
            stack.push_async_callback(close, self._pool)
            try:
                async with connected(self._pool) as connection:
                    await check_version(connection)
                    await self._prepare(connection)
            except ConfigError:
                raise
            except FAILURES as error:
                raise BrokerUnavailable(f"broker: the Redis server cannot be used: {_reason(error)}") from None
            self._tasks = await stack.enter_async_context(asyncio.TaskGroup())
            self._stack = stack.pop_all()
        self._tail_task = self._start(self._run_tail())
        self._start(self._publishing.run())
        self._start(self._reading.run())
        self._start_board()
        return self

    def _start(self, work: Coroutine[Any, Any, NoReturn]) -> asyncio.Task[NoReturn]:
        """Run what runs as long as the broker is open."""
        assert self._tasks is not None
        task = self._tasks.create_task(work)
        self._stack.callback(task.cancel)
        return task

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._trouble:
                self._tail_task.cancel()
                await asyncio.wait([self._tail_task])  # else its refresh would add this node again
                with suppress(BrokerError):
                    await self._reading.call("HDEL", self._nodes, self._node, f"board:{self._node}")
        finally:
            self._tasks = None
            if self._board is not None:
                self._board.is_open = False
            await close_stack(self._stack, kind, error, trace)

    async def _on_connect(self, connection: AbstractConnection) -> None:
        """Load the script and read the log's state on a new connection, whose server may be another one than before."""
        await connection.on_connect()
        await execute(connection, "SCRIPT", "LOAD", SCRIPT)
        if self._board is not None:
            await self._board.load(connection)
        sent, command = self._script("refresh", self._nodes, "", 0, 0)
        self._apply(sent, await execute(connection, *command))

    # What this node knows

    def _script(
        self, operation: str, key: str | Sequence[str], *arguments: Argument
    ) -> tuple[str, tuple[Argument, ...]]:
        """Return the epoch that this node knows, and a command that calls the script with it."""
        clock = "" if self._clock is None else microseconds(self._clock())
        wall = "" if self._wall is None else microseconds(self._wall())
        known = (*self._known.top, *self._seen, secrets.token_hex(6))
        keys = (key,) if isinstance(key, str) else key
        of_log = (2 + len(keys), self._log, self._state)
        command = ("EVALSHA", SCRIPT_SHA, *of_log, *keys, operation, *known, clock, wall, *self._limits, *arguments)
        return self._known.top.epoch, command

    def _apply(self, sent: str, answer: Sequence[Any]) -> None:
        """Take over the state of the log from an answer of the script. ``sent`` is the epoch that was sent with it."""
        epoch, oldest, top = answer[0].decode(), answer[1], answer[2]
        if self._known.update(sent, Position(epoch, top), oldest):
            self._seen, self._chain_stamp = _SeenEntry(0, ""), ""

    def _note_seen(self, offset: int, stamp: str) -> None:
        if offset >= self._seen.offset:
            self._seen = _SeenEntry(offset, stamp)

    def _note_read(self, entries: Sequence[RawEntry], publications: Sequence[Publication]) -> None:
        """Note the newest entry of ours among those that the tail has read."""
        for entry, publication in zip(reversed(entries), reversed(publications), strict=True):
            if not publication.lost and (head := head_of(entry)) is not None:
                self._note_seen(publication.position.offset, head.stamp)
                return

    def check(self) -> None:
        if self._trouble:
            raise BrokerUnavailable(UNREACHABLE)

    async def top(self, *, fresh: bool = False) -> Position:
        if fresh:
            await self._read("refresh", self._nodes, "", 0, 0)
        return self._known.top

    async def oldest(self) -> Position:
        return self._known.top._replace(offset=self._known.held_from)

    # The board

    @property
    def board(self) -> RedisBoard:
        if self._board is None:
            self._board = RedisBoard(self._prefix, self._pool, self._node, self._nodes_elsewhere, self._clock)
            self._start_board()
        return self._board

    def _start_board(self) -> None:
        if self._board is not None and self._tasks is not None:
            self._board.is_open = True
            self._start(self._board.run())
            self._start(self._board.listen())

    def _nodes_elsewhere(self) -> Collection[str]:
        now = asyncio.get_running_loop().time()
        return {name for name, gone in self._others.items() if gone > now}

    # Publishing

    async def publish(self, draft: Draft) -> Position:
        key = draft.idempotency_key
        digest = "" if key is None else sha256(content(draft)).hexdigest()
        return await self._append(key, digest, (envelope(draft),))

    def append(self, draft: Draft) -> None:
        return None  # each answer of the server is waited for

    async def publish_many(self, drafts: Drafts) -> Sequence[Position]:
        envelopes = tuple(map(envelope, drafts))
        key = drafts.idempotency_key
        if key is None and any(draft.idempotency_key is not None for draft in drafts):
            return await self._append_each(drafts, envelopes)
        digest = "" if key is None else sha256(contents(drafts)).hexdigest()
        first = await self._append(key, digest, envelopes)
        return [Position(first.epoch, first.offset + index) for index in range(len(drafts))]

    async def _append(self, key: str | None, digest: str, envelopes: Sequence[bytes]) -> Position:
        """Append publications together, unless they were with the same key, and return the position of the first."""
        sent, command = self._script("publish", f"{self._keys}:{key}", digest, *envelopes)
        epoch, offset, stamp = await self._published(sent, command, len(envelopes))
        position = Position(epoch.decode(), offset)
        self._note_published(position._replace(offset=offset + len(envelopes) - 1), stamp.decode())
        return position

    async def _append_each(self, drafts: Drafts, envelopes: Sequence[bytes]) -> Sequence[Position]:
        """Append drafts together, those whose own keys are new, and return the position of each."""
        digests = ("" if draft.idempotency_key is None else sha256(content(draft)).hexdigest() for draft in drafts)
        keys = [f"{self._keys}:{draft.idempotency_key}" for draft in drafts]
        pairs: Iterator[str | bytes] = chain.from_iterable(zip(digests, envelopes, strict=True))
        sent, command = self._script("publish_each", keys, *pairs)
        ids, stamp = await self._published(sent, command, len(drafts))
        places = (place.split("-") for place in ids.decode().split())
        positions = [Position(epoch, int(offset)) for epoch, offset in places]
        newest = max((item for item in positions if item.epoch == self._known.top.epoch), default=None)
        if newest is not None:
            self._note_published(newest, stamp.decode())
        return positions

    async def _published(self, sent: str, command: tuple[Argument, ...], count: int) -> Sequence[Any]:
        """Send a command that appends so many publications, and return what its operation answers. Raises KeyReused."""
        answer = await self._publishing.call(*command, weight=count)
        self._apply(sent, answer)
        if answer[3] == b"reused":
            raise KeyReused(KEY_REUSED)
        return cast(Sequence[Any], answer[3:])

    def _note_published(self, position: Position, stamp: str) -> None:
        """Note the position of a publication of ours; ``stamp`` is empty if it was there before."""
        self._known.advance(position)
        if stamp and position.epoch == self._known.top.epoch:
            self._note_seen(position.offset, stamp)

    # Reading

    async def _read(self, operation: str, key: str, *arguments: Argument) -> Sequence[Any]:
        sent, command = self._script(operation, key, *arguments)
        answer: Sequence[Any] = await self._reading.call(*command)
        self._apply(sent, answer)
        return answer

    def extent(self) -> Extent:
        return self._known.extent(time.time() if self._wall is None else self._wall())

    def at_hand(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page | None:
        return self._known.matching(after, until, topic_filter)

    async def replay(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page:
        await asyncio.sleep(0)  # a long replay gives way to the others at every page
        return (self._known.page(after, until) or await self._page(after, until)).matching(topic_filter)

    async def _page(self, after: Position, until: Position) -> Page:
        """Read the next page from the log, with entries that are not ours."""
        bounds = after.epoch, after.offset, until.offset, PAGE_COUNT, PAGE_BYTES
        raw_epoch, _, top, start, entries = await self._read("page", self._state, *bounds)
        epoch, end, found = raw_epoch.decode(), start, []
        if not entries:
            start = end = max(start, min(until.offset, top))
        for entry in entries:
            offset = offset_of(entry)
            if offset != end + 1:  # entries before it were deleted: a gap, with which the next page begins
                if end > start:
                    break
                start = offset - 1
            end = offset
            found.append(publication_of(entry, epoch, time.time()))
        return Page(Position(epoch, start), found, Position(epoch, end))

    async def newest(self, count: int, topic_filter: TopicFilter, audience: Audience | None) -> Sequence[Publication]:
        return await self._known.newest(count, topic_filter, audience)

    async def last(self, count: int, topic_filter: TopicFilter, audience: Audience) -> tuple[Position, bool]:
        return await self._known.last(count, topic_filter, audience)

    async def _read_back(self, until: Position, count: int) -> Page:
        """Read the newest ``count`` publications up to a position, or what has its offset in the log that is there."""
        raw_epoch, _, _, entries = await self._read("newest", self._state, "", "", until.offset, count, PAGE_BYTES)
        epoch = raw_epoch.decode()
        found = [publication_of(entry, epoch, time.time()) for entry in reversed(entries)]
        start = found[0].position.offset - 1 if found else 0
        return Page(Position(epoch, start), found, Position(epoch, until.offset))

    async def since(self, time: float) -> tuple[Position, bool]:
        epoch, _, _, offset, complete = await self._read("since", self._state, microseconds(time))
        return Position(epoch.decode(), offset), bool(complete)

    # The tail

    def tail(self) -> Tail:
        if not self._known.is_followed:
            self._known.rewind(self._mean_size)
            self._chain_stamp = ""
        self._tail_wanted.set()
        return self._known.tail()

    async def _run_tail(self) -> NoReturn:
        """Read the tail and refresh the state, as long as the broker is open."""
        backoff = Backoff(*BACKOFF)
        while True:
            try:
                async with connected(self._pool) as connection:
                    await self._prepare(connection)
                    backoff.reset()
                    while True:
                        await self._step(connection)
            except FAILURES as error:
                self._on_failure(error)
            await asyncio.sleep(backoff.next())

    async def _prepare(self, connection: AbstractConnection) -> None:
        self.durability = await durability(connection)
        await self._refresh(connection)
        await execute(connection, "XREAD", "STREAMS", self._log, "$")  # an ACL that forbids it has to end the start
        self._tail_count = 1
        if self._trouble:
            logger.warning("the broker is back")
        self._trouble = ""

    def _on_failure(self, error: Exception) -> None:
        if not self._trouble:
            logger.warning("the broker went away: %s", _reason(error))
        self._trouble = _reason(error)

    async def _step(self, connection: AbstractConnection) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._refresh_due:
            await self._refresh(connection)
        elif self._known.is_followed:
            await self._read_tail(connection, self._refresh_due - now)
        else:
            self._tail_wanted.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._refresh_due):
                    await self._tail_wanted.wait()

    async def _refresh(self, connection: AbstractConnection, *, chain_broken: bool = False) -> None:
        """Read the state of the log, and write how many subscribers this node has."""
        hears = self._board is not None and self._board.has_listened
        here = self._node, self.subscribers_here, int(chain_broken), int(hears)
        sent, command = self._script("refresh", self._nodes, *here)
        answer = await execute(connection, *command)
        self.subscribers_elsewhere = answer[3]
        self._apply(sent, answer)
        now, names, ages = asyncio.get_running_loop().time(), answer[6][::2], answer[6][1::2]
        self._others = {
            name.decode(errors="replace"): now + ABSENT - age for name, age in zip(names, ages, strict=True)
        }
        self._refresh_due = now + (REFRESH_SOON if answer[4] else REFRESH)
        history, history_bytes, age = answer[7]
        self._known.limits = Limits(history, history_bytes, age / 1_000_000)
        self._mean_size = max(1, answer[5] // max(1, self._known.top.offset - self._known.oldest))

    async def _read_tail(self, connection: AbstractConnection, seconds: float) -> None:
        epoch = self._known.top.epoch
        how = ("COUNT", self._tail_count, "BLOCK", max(1, int(seconds * 1000)), "STREAMS")
        answer = await execute(connection, "XREAD", *how, self._log, f"0-{self._known.recent.top}")
        if not answer or epoch != self._known.top.epoch:  # then the entries are of a log that is no more
            return
        entries = answer[0][1]
        size = sum(len(text) for _, fields in entries for text in fields)
        self._tail_count = max(1, min(TAIL_COUNT, TAIL_BYTES * len(entries) // size))
        self._known.count_bad_envelopes(sum(not has_place(entry) for entry in entries))
        entries = [entry for entry in entries if has_place(entry)]
        publications = [publication_of(entry, epoch, time.time()) for entry in entries]
        stamp, chain_broken = self._check_chain(entries, publications)
        if not publications or any(publication.lost for publication in publications):
            # A refresh removes entries behind which none of ours can be appended, and begins an epoch for another log.
            await self._refresh(connection, chain_broken=chain_broken)
            if epoch != self._known.top.epoch:
                return
        self._chain_stamp = stamp
        self._note_read(entries, publications)
        self._known.announce(publications)

    def _check_chain(self, entries: Sequence[RawEntry], publications: list[Publication]) -> tuple[str, bool]:
        """Put lost publications in the place of entries that do not name the stamp of our entry before them.

        Returns the stamp that our next entry has to name, and True if the chain was broken: the log may be another
        one, which has grown to the same length. An entry of another program is not in the chain. An entry of a newer
        version of ours is: its head can be read.
        """
        stamp, before, broken = self._chain_stamp, self._known.recent.top, False
        for index, (entry, publication) in enumerate(zip(entries, publications, strict=True)):
            position, head = publication.position, head_of(entry)
            if head is not None and head.epoch == position.epoch:
                follows = bool(stamp) and position.offset == before + 1
                if follows and head.previous != stamp:
                    publications[index], broken = lost(position, publication.time), True
                else:
                    stamp = head.stamp if follows or not publication.lost else ""
            before = position.offset
        return stamp, broken


def _reason(error: Exception) -> str:
    if isinstance(error, MasterNotFoundError):
        # The text of this error would show all that redis-py knows of the Sentinels.
        return "no Sentinel names a master"
    return str(error) or type(error).__name__
