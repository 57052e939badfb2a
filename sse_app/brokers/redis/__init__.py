"""The log in Redis: one stream that any number of nodes share. Redis 7 or newer, or Valkey.

    publish -> a line -> log.lua: append, trim, remember the key
    the stream -> XREAD of the one tail, on a connection of its own -> tails, also of what this node published
    replay, newest, last, since -> what the tail announced lately, else another line -> log.lua

Every script is told the newest position that its caller knows, and begins a new epoch when the log lacks that: it was
flushed, or is an older copy of itself. Once a second the tail looks too, so that a node notices that is only listening.
"""

import asyncio
import hashlib
import logging
import re
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Self, Unpack

from redis.asyncio.connection import AbstractConnection
from redis.asyncio.sentinel import MasterNotFoundError

from sse_app.backoff import Backoff
from sse_app.brokers import Page, Tail
from sse_app.brokers.formats import lost
from sse_app.brokers.known import KnownLog
from sse_app.brokers.limits import DEFAULTS, PAGE_BYTES, PAGE_COUNT, LogSettings
from sse_app.brokers.recent import BYTES, COUNT, Recent
from sse_app.brokers.redis.connection import (
    AWAY,
    FAILURES,
    Argument,
    Line,
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
    envelope,
    has_place,
    head_of,
    microseconds,
    offset_of,
    publication_of,
)
from sse_app.errors import BrokerError, BrokerUnavailable, ConfigError, KeyReused, OutcomeUnknown
from sse_app.publication import Audience, Draft, Durability, Position, Publication
from sse_app.stack import OPEN, NonReentrant, close_stack
from sse_app.topics import TopicFilter

logger = logging.getLogger("sse_app")

PREFIX = "sse-app"
LOOK = 1.0  # seconds between two looks at the log's state; no read of the tail blocks longer
SOON = 0.05  # seconds to the next look while there is more to trim than one does
BACKOFF = (0.2, 2.0)  # seconds after the first failure, and at most
DEADLINE = 1.5  # seconds for a publication, from the call to its answer: a publisher is answered within 2 s
TURN = 30.0  # seconds for a page: thousands of readers may be before it, and who gave up would only ask again
PUBLICATIONS, PAGES = 128, 8  # sent in one write; Redis answers them all before anybody else: 5 ms, 8 ms
TAIL_COUNT = 64  # publications in one read of the tail
TAIL_BYTES = 1024 * 1024  # and bytes, by those of the read before

UNKNOWN = (
    "The broker, a Redis server, did not answer: the event may be published or not. Publish it again with the same "
    "Idempotency-Key, and it is published once."
)

# The limits of a log that is made by who names none: whole numbers, ages in microseconds.
_DEFAULTS = DEFAULTS.publications, DEFAULTS.bytes, microseconds(DEFAULTS.age), microseconds(DEFAULTS.window)
SCRIPT = b"local DEFAULTS = {%d, %d, %d, %d}\n" % _DEFAULTS + Path(__file__).with_name("log.lua").read_bytes()
SCRIPT_SHA = hashlib.sha1(SCRIPT, usedforsecurity=False).hexdigest()


def open_url(url: str, **settings: Unpack[LogSettings]) -> "RedisBroker":
    """``redis://host:6379/0``, ``rediss://`` over TLS, ``unix:///path``, ``redis+sentinel://host,host/service``, with
    the parameters of redis-py; ``?prefix=`` is ours, for several hubs in one database."""
    return RedisBroker(url, **settings)


class _Seen(NamedTuple):
    """An entry that this node has seen: no two servers give the same stamp to theirs of one offset."""

    offset: int
    stamp: str


class RedisBroker:
    """Keywords as for the log in memory. ``clock`` and ``wall`` are the server's own unless they are given, so that
    nodes need not agree on the time.

    The limits stay in Redis: who names any sets them for everyone, as long as it is there; who names none leaves them.
    """

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
        # In braces: one slot of a cluster for all of them.
        self._log, self._state, self._nodes, self._keys = (
            f"{{{prefix}}}:{name}" for name in ("log", "state", "nodes", "key")
        )
        ages = (None if value is None else microseconds(value) for value in (history_age, idempotency_window))
        self._limits = tuple("" if value is None else value for value in (history, history_bytes, *ages))
        self._clock, self._wall = clock, wall
        self._pool = connections(url, self._greet)
        self._publishing = Line(self._pool, OutcomeUnknown(UNKNOWN), at_once=PUBLICATIONS, deadline=DEADLINE)
        self._reading = Line(self._pool, BrokerUnavailable(AWAY), at_once=PAGES, deadline=TURN)
        self._node = secrets.token_hex(6)
        self._seen = _Seen(0, "")
        recent = Recent(history or COUNT, history_bytes or BYTES)
        self._known = KnownLog(self._log, recent, self._read_back)
        self._link = ""  # the stamp of the last of ours among it, when it is known
        self._listening = asyncio.Event()  # somebody wants the tail
        self._look_due = 0.0
        self._mean_size = 1  # bytes of a publication in the log
        self._tail_count = 1  # publications in the next read of the tail
        self._trouble = ""  # why the log cannot be reached just now
        self._following: asyncio.Task[NoReturn]
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
                    await self._arrive(connection)
            except ConfigError:
                raise
            except FAILURES as error:
                raise BrokerUnavailable(f"broker: the Redis server cannot be used: {_reason(error)}") from None
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            self._following = tasks.create_task(self._follow())
            for task in (self._following, *map(tasks.create_task, (self._publishing.run(), self._reading.run()))):
                stack.callback(task.cancel)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._trouble:
                self._following.cancel()
                await asyncio.wait([self._following])  # whose look would say that this node is there
                with suppress(BrokerError):
                    await self._reading.ask("HDEL", self._nodes, self._node)
        finally:
            await close_stack(self._stack, kind, error, trace)

    async def _greet(self, connection: AbstractConnection) -> None:
        """The first words on every connection: there may be another server at its end than before, and another log."""
        await connection.on_connect()
        await execute(connection, "SCRIPT", "LOAD", SCRIPT)
        sent, look = self._script("look", self._nodes, "", 0, 0)
        self._learn(sent, await execute(connection, *look))

    # What this node knows

    def _script(self, operation: str, key: str, *arguments: Argument) -> tuple[str, tuple[Argument, ...]]:
        """A command, and the epoch in which it is given."""
        clock = "" if self._clock is None else microseconds(self._clock())
        wall = "" if self._wall is None else microseconds(self._wall())
        known = (*self._known.top, *self._seen, secrets.token_hex(6))
        keys = (3, self._log, self._state, key)
        command = ("EVALSHA", SCRIPT_SHA, *keys, operation, *known, clock, wall, *self._limits, *arguments)
        return self._known.top.epoch, command

    def _learn(self, sent: str, answer: Sequence[Any]) -> None:
        """Take over what the log says of itself. ``sent`` is the epoch in which it was asked: if this node has changed
        to another one since, an answer of a third may be older than that."""
        epoch, oldest, top = answer[0].decode(), answer[1], answer[2]
        if self._known.update(sent, Position(epoch, top), oldest):
            self._seen, self._link = _Seen(0, ""), ""

    def _note_seen(self, offset: int, stamp: str) -> None:
        if offset >= self._seen.offset:
            self._seen = _Seen(offset, stamp)

    def _note_read(self, entries: Sequence[RawEntry], publications: Sequence[Publication]) -> None:
        """The newest of ours among what the tail has read was seen."""
        for entry, publication in zip(reversed(entries), reversed(publications), strict=True):
            if not publication.lost and (head := head_of(entry)) is not None:
                self._note_seen(publication.position.offset, head.stamp)
                return

    def check(self) -> None:
        if self._trouble:
            raise BrokerUnavailable(AWAY)

    async def top(self, *, fresh: bool = False) -> Position:
        if fresh:
            await self._read("look", self._nodes, "", 0, 0)
        return self._known.top

    async def oldest(self) -> Position:
        return self._known.top._replace(offset=self._known.held_from)

    # Publishing

    async def publish(self, draft: Draft) -> Position:
        key = draft.idempotency_key
        digest = "" if key is None else hashlib.sha256(content(draft)).hexdigest()
        sent, command = self._script("publish", f"{self._keys}:{key}", envelope(draft), digest)
        answer = await self._publishing.ask(*command)
        self._learn(sent, answer)
        if answer[3] == b"reused":
            raise KeyReused("This Idempotency-Key came with another publication before; use a new key for a new one.")
        position, stamp = Position(answer[3].decode(), answer[4]), answer[5].decode()
        self._known.advance(position)
        if stamp and position.epoch == self._known.top.epoch:
            self._note_seen(position.offset, stamp)
        return position

    # Reading

    async def _read(self, operation: str, key: str, *arguments: Argument) -> Sequence[Any]:
        sent, command = self._script(operation, key, *arguments)
        answer: Sequence[Any] = await self._reading.ask(*command)
        self._learn(sent, answer)
        return answer

    async def replay(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page:
        await asyncio.sleep(0)  # a long replay gives way to the others at every page
        return (self._known.page(after, until) or await self._page(after, until)).matching(topic_filter)

    async def _page(self, after: Position, until: Position) -> Page:
        """The next page of all that is in the log, read from there."""
        bounds = after.epoch, after.offset, until.offset, PAGE_COUNT, PAGE_BYTES
        raw_epoch, _, top, start, entries = await self._read("page", self._state, *bounds)
        epoch, end, found = raw_epoch.decode(), start, []
        if not entries:
            start = end = max(start, min(until.offset, top))
        for entry in entries:
            offset = offset_of(entry)
            if offset != end + 1:  # somebody deleted what was between: a gap, with which the next page begins
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

    async def _read_back(self, until: int, count: int) -> Page:
        """The newest up to an offset."""
        raw_epoch, _, _, entries = await self._read("newest", self._state, "", "", until, count, PAGE_BYTES)
        epoch = raw_epoch.decode()
        found = [publication_of(entry, epoch, time.time()) for entry in reversed(entries)]
        start = found[0].position.offset - 1 if found else 0
        return Page(Position(epoch, start), found, Position(epoch, until))

    async def since(self, time: float) -> tuple[Position, bool]:
        epoch, _, _, offset, complete = await self._read("since", self._state, microseconds(time))
        return Position(epoch.decode(), offset), bool(complete)

    # The tail

    def tail(self) -> Tail:
        if not self._known.is_followed:
            self._known.rewind(self._mean_size)
            self._link = ""
        self._listening.set()
        return self._known.tail()

    async def _follow(self) -> NoReturn:
        """Read the tail and look after the log, as long as the broker is open."""
        backoff = Backoff(*BACKOFF)
        while True:
            try:
                async with connected(self._pool) as connection:
                    await self._arrive(connection)
                    backoff.reset()
                    while True:
                        await self._step(connection)
            except FAILURES as error:
                self._went_away(error)
            await asyncio.sleep(backoff.next())

    async def _arrive(self, connection: AbstractConnection) -> None:
        self.durability = await durability(connection)
        await self._look(connection)
        await execute(connection, "XREAD", "STREAMS", self._log, "$")  # it may be forbidden, which is better said now
        self._tail_count = 1
        if self._trouble:
            logger.warning("the broker is back")
        self._trouble = ""

    def _went_away(self, error: Exception) -> None:
        if not self._trouble:
            logger.warning("the broker went away: %s", _reason(error))
        self._trouble = _reason(error)

    async def _step(self, connection: AbstractConnection) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._look_due:
            await self._look(connection)
        elif self._known.is_followed:
            await self._read_on(connection, self._look_due - now)
        else:
            self._listening.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._look_due):
                    await self._listening.wait()

    async def _look(self, connection: AbstractConnection, *, doubts: bool = False) -> None:
        """See whether the log is still the same, and tell how many subscribers are here."""
        sent, command = self._script("look", self._nodes, self._node, self.subscribers_here, int(doubts))
        answer = await execute(connection, *command)
        self.subscribers_elsewhere = answer[3]
        self._learn(sent, answer)
        self._look_due = asyncio.get_running_loop().time() + (SOON if answer[4] else LOOK)
        self._mean_size = max(1, answer[5] // max(1, self._known.top.offset - self._known.oldest))

    async def _read_on(self, connection: AbstractConnection, seconds: float) -> None:
        epoch = self._known.top.epoch
        how = ("COUNT", self._tail_count, "BLOCK", max(1, int(seconds * 1000)), "STREAMS")
        answer = await execute(connection, "XREAD", *how, self._log, f"0-{self._known.recent.top}")
        if not answer or epoch != self._known.top.epoch:  # what was read is of a log that is no more
            return
        entries = answer[0][1]
        size = sum(len(text) for _, fields in entries for text in fields)
        self._tail_count = max(1, min(TAIL_COUNT, TAIL_BYTES * len(entries) // size))
        self._known.count_bad_envelopes(sum(not has_place(entry) for entry in entries))
        entries = [entry for entry in entries if has_place(entry)]
        publications = [publication_of(entry, epoch, time.time()) for entry in entries]
        link, doubts = self._follow_chain(entries, publications)
        if not publications or any(publication.lost for publication in publications):
            await self._look(connection, doubts=doubts)  # and remove what could not be followed by ours
            if epoch != self._known.top.epoch:
                return
        self._link = link
        self._note_read(entries, publications)
        self._known.announce(publications)

    def _follow_chain(self, entries: Sequence[RawEntry], publications: list[Publication]) -> tuple[str, bool]:
        """Put lost publications in the place of entries that do not name the one of ours before them.

        Returns the stamp that the next one of ours has to name, and True if the chain was broken: the log may be
        another one, that has grown to the same length. A stranger in between is not in the chain; an entry of a newer
        version is, and its head can be read.
        """
        link, before, broken = self._link, self._known.recent.top, False
        for index, (entry, publication) in enumerate(zip(entries, publications, strict=True)):
            position, head = publication.position, head_of(entry)
            if head is not None and head.epoch == position.epoch:
                follows = bool(link) and position.offset == before + 1
                if follows and head.previous != link:
                    publications[index], broken = lost(position, publication.time), True
                else:
                    link = head.stamp if follows or not publication.lost else ""
            before = position.offset
        return link, broken


def _reason(error: Exception) -> str:
    if isinstance(error, MasterNotFoundError):
        return "no Sentinel names a master"  # its text shows all that redis-py knows of them
    return str(error) or type(error).__name__
