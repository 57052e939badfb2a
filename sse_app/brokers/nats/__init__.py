"""The log in NATS JetStream: one stream that any number of nodes share. NATS 2.9 or newer.

    publish -> js.publish, on the one connection -> the server's acknowledgement
    the stream -> an ordered consumer -> _on_message -> tails, also of what this node published
    replay, newest, last, since -> the messages that came lately, else a consumer for a page
    board -> board.py, from its first use on

One task makes the connection, and another one when it breaks. Once a second it reads the state of the stream: that is
the ping, and shows whether the stream is still the same one.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self, Unpack

from nats.aio.client import Client

from sse_app.backoff import Backoff
from sse_app.brokers import Extent, Page, Tail
from sse_app.brokers.known import KnownLog
from sse_app.brokers.limits import PAGE_BYTES, PAGE_COUNT, LimitSettings
from sse_app.brokers.nats.batches import digest_of, message_id, publish_batch
from sse_app.brokers.nats.board import NatsBoard
from sse_app.brokers.nats.connection import FAILURES, connected, reason
from sse_app.brokers.nats.entries import Message, content, envelope, publication_of
from sse_app.brokers.nats.feed import Feed
from sse_app.brokers.nats.log import COMMAND, SETTLE, UNREACHABLE, GivenLimits, Log, State
from sse_app.brokers.nats.nodes import Nodes
from sse_app.brokers.nats.url import Address, parse
from sse_app.brokers.recent import BYTES, COUNT, Recent
from sse_app.drafts import Drafts
from sse_app.errors import KEY_REUSED, BrokerUnavailable, KeyReused, OutcomeUnknown
from sse_app.publication import Audience, Draft, Durability, Position, Publication
from sse_app.stack import OPEN, NonReentrant, close_stack
from sse_app.topics import TopicFilter

logger = logging.getLogger("sse_app")

REFRESH = 1.0  # seconds between two reads of the stream's state, and two messages with our number of subscribers
SILENCE = 3.0  # seconds after which a feed without a message or heartbeat is replaced
BACKOFF = (0.2, 2.0)  # seconds after the first failure, and at most
BATCH_SHARE = 3  # a batch may take so many times as long as a publication
SAME_TIME = 0.001  # seconds between two times that count as equal: nanoseconds are rounded in more than one way


def open_url(url: str, **settings: Unpack[LimitSettings]) -> "NatsBroker":
    """Return the broker of ``nats://host:4222/name`` (``hub`` without one), of a cluster
    ``nats://host,host,host/name?replicas=3``, with TLS ``tls://``.

    ``nats://user:password@host``, ``nats://token@host`` and ``?creds=hub.creds`` are credentials; ``?ca=ca.pem`` is the
    file of the authorities that are trusted.
    """
    return NatsBroker(parse(url), **settings)


class _NewestMessage(NamedTuple):
    """The newest message that this node received, with the time that the server gave it."""

    offset: int
    time: float


class NatsBroker:
    """The log in a JetStream stream; keywords as for the log in memory.

    Ages, times and windows are measured by the server; ``clock`` says when another node has not been heard from for too
    long. The limits are those of the streams: a node that names some sets them for all nodes when it starts, a node
    that names none leaves them.
    """

    steppable = False
    outdated = False  # each message says its version

    def __init__(
        self,
        address: Address,
        *,
        history: int | None = None,
        history_bytes: int | None = None,
        history_age: float | None = None,
        idempotency_window: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = address
        self._limits = GivenLimits(history, history_bytes, history_age, idempotency_window)
        self._log: Log | None = None  # while it can be reached
        self._client: Client | None = None  # the connection, meanwhile
        self._board: NatsBoard | None = None  # until it is used
        self._tasks: asyncio.TaskGroup | None = None  # while the broker is open
        self._feed_stack = AsyncExitStack()  # closes the feed
        self._feed: Feed | None = None
        self._wake = asyncio.Event()  # the task has something to do
        self._refreshing = asyncio.Lock()
        self._known = KnownLog(address.name, Recent(history or COUNT, history_bytes or BYTES), self._read_back)
        self._newest_message = _NewestMessage(0, 0.0)
        self._nodes = Nodes(address.name, clock)
        self._trouble = ""  # the reason why the log cannot be reached just now
        self._opened: asyncio.Future[None] | None = None
        self._stopping = False
        self._stack, self._entered = AsyncExitStack(), NonReentrant(OPEN)
        self.durability: Durability = "log"
        self.subscribers_here = self.subscribers_elsewhere = 0

    @property
    def bad_envelopes(self) -> int:
        return self._known.bad_envelopes

    # Life

    async def __aenter__(self) -> Self:
        self._stack.enter_context(self._entered)
        self._opened = asyncio.get_running_loop().create_future()
        self._stopping = False
        self._tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
        self._stack.callback(self._tasks.create_task(self._stay_connected()).cancel)
        self._stack.callback(self._stop)
        self._start_board()
        try:
            await self._opened
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await close_stack(self._stack, kind, error, trace)

    def _stop(self) -> None:
        """End the loops of the task. It is cancelled as well, but on Python 3.11 wait_for, which nats-py uses, may
        swallow a cancellation."""
        self._stopping, self._tasks = True, None
        self._wake.set()

    async def _stay_connected(self) -> None:
        backoff = Backoff(*BACKOFF)
        while not self._stopping:
            try:
                async with connected(self._address, self._wake.set) as client:
                    await self._on_connect(client)
                    backoff.reset()
                    await self._maintain(client)
            except FAILURES as error:
                self._on_failure(error)
            await asyncio.sleep(backoff.next())
            self.subscribers_elsewhere = self._nodes.subscribers()

    async def _on_connect(self, client: Client) -> None:
        assert self._opened is not None
        log = Log(client, self._address, self._limits, self._wake.set)
        await self._refresh(log)
        if await self._is_another_copy(log):
            await log.begin_anew(self._known.top.epoch)
            await self._refresh(log)
        await self._nodes.subscribe(client)
        self._log, self._client = log, client
        if self._trouble:
            logger.warning("the broker is back")
            self._trouble = ""
        if not self._opened.done():
            self._opened.set_result(None)

    def _on_failure(self, error: Exception) -> None:
        assert self._opened is not None
        why = reason(error)
        if not self._opened.done():
            self._opened.set_exception(BrokerUnavailable(f"broker: the NATS server cannot be used: {why}."))
        elif not self._trouble:
            logger.warning("the broker went away: %s", why)
        self._trouble = why

    async def _maintain(self, client: Client) -> None:
        """Refresh the state and keep a feed, until the connection breaks. Raises FAILURES then."""
        assert self._log is not None
        log = self._log
        try:
            async with self._feed_stack:
                while not self._stopping:
                    self._wake.clear()
                    log.check()
                    if self._board is not None:
                        await self._board.listen(client)
                    await self._nodes.announce(client, self.subscribers_here)
                    self.subscribers_elsewhere = self._nodes.subscribers()
                    await self._refresh(log)
                    await self._keep_feed(log)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(REFRESH):
                            await self._wake.wait()
        finally:
            self._log = self._client = self._feed = None
            with suppress(*FAILURES):
                await self._nodes.leave(client)

    # What this node knows

    @contextmanager
    def _reading(self) -> Iterator[Log]:
        """Give the log to a reader. Raises BrokerUnavailable without a connection, and when it fails."""
        if self._log is None:
            raise BrokerUnavailable(UNREACHABLE)
        try:
            yield self._log
        except FAILURES as error:
            raise BrokerUnavailable(UNREACHABLE) from error

    async def _refresh(self, log: Log) -> None:
        async with self._refreshing:
            known = self._known.top
            state = await log.state()
            if _is_behind(state, known):
                await asyncio.sleep(SETTLE)  # a cluster's new leader may not know yet all that it has
                state = await log.state()
            if _is_behind(state, known):  # an older copy of the log, which will use sequence numbers again
                state = await log.begin_anew(known.epoch)
            if state.top.epoch != known.epoch:
                await log.ensure_streams()
                state = await log.state()
            self._apply(known.epoch, state)
            log.publish_to(state)

    async def _is_another_copy(self, log: Log) -> bool:
        """Return True when another message has the offset of our newest one: while this node was not connected, the log
        became an older copy of itself, and grew."""
        time = await log.time_of(self._newest_message.offset) if self._newest_message.offset else None
        return time is not None and abs(time - self._newest_message.time) > SAME_TIME

    def _apply(self, asked_in: str, state: State) -> None:
        """Take over the state of the log."""
        self.durability, self._known.history, self._known.limits = state.durability, state.history, state.limits
        if self._known.update(asked_in, state.top, state.oldest):
            self._newest_message = _NewestMessage(0, 0.0)
            self._restart_feed()

    def check(self) -> None:
        if self._log is None:
            raise BrokerUnavailable(UNREACHABLE)

    async def top(self, *, fresh: bool = False) -> Position:
        if fresh:
            with self._reading() as log:
                await self._refresh(log)
        return self._known.top

    async def oldest(self) -> Position:
        return self._known.top._replace(offset=self._known.held_from)

    # The board

    @property
    def board(self) -> NatsBoard:
        if self._board is None:
            self._board = NatsBoard(self._address, self._nodes, lambda: self._client)
            self._start_board()
        return self._board

    def _start_board(self) -> None:
        if self._board is not None and self._tasks is not None:
            self._stack.callback(self._tasks.create_task(self._board.run()).cancel)
            self._wake.set()

    # Publishing

    async def publish(self, draft: Draft) -> Position:
        data, key = envelope(draft), draft.idempotency_key
        deadline = asyncio.get_running_loop().time() + COMMAND
        with self._publishing() as log:
            if key is None:
                position, _ = await log.append(data, None, deadline)
            else:
                position = await self._publish_once(log, draft, data, key, deadline)
        self._known.advance(position)
        return position

    def append(self, draft: Draft) -> None:
        return None  # each answer of the server is waited for

    async def publish_many(self, drafts: Drafts) -> Sequence[Position]:
        deadline = asyncio.get_running_loop().time() + BATCH_SHARE * COMMAND
        with self._publishing() as log:
            positions = await publish_batch(log, drafts, self._known.top.epoch, deadline)
        for position in positions:
            self._known.advance(position)
        return positions

    @contextmanager
    def _publishing(self) -> Iterator[Log]:
        """Give the log to a publisher. Raises BrokerUnavailable without a connection."""
        if self._log is None:
            raise BrokerUnavailable(UNREACHABLE)
        try:
            yield self._log
        except (BrokerUnavailable, OutcomeUnknown):
            self._wake.set()  # the log may be another one, or out of reach
            raise

    async def _publish_once(self, log: Log, draft: Draft, data: bytes, key: str, deadline: float) -> Position:
        """Claim the key for this publication, then publish.

        If this process ends in between, the next caller with the same key and publication publishes it. The server
        leaves out a message with the id of one that it holds, or held a moment ago.
        """
        digest = digest_of(content(draft))
        claim = await log.claim(key, digest, deadline)
        if claim.digest != digest:
            raise KeyReused(KEY_REUSED)
        position = Position.parse(claim.places)
        if position is not None and position.epoch == self._known.top.epoch:
            return position
        position, duplicate = await log.append(data, message_id(key, digest), deadline)
        if not duplicate:
            await log.remember(key, digest, position)
        return position

    # Reading

    def extent(self) -> Extent:
        return self._known.extent(time.time())

    def at_hand(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page | None:
        return self._known.matching(after, until, topic_filter)

    async def replay(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page:
        await asyncio.sleep(0)  # a long replay gives way to the others at every page
        return (await self._page(after, until)).matching(topic_filter)

    async def _page(self, after: Position, until: Position) -> Page:
        """The next page of the log, with messages that are not ours."""
        epoch, oldest = self._known.top.epoch, self._known.held_from
        start = max(after.offset, oldest) if after.epoch == epoch else oldest
        last = min(until.offset, self._known.top.offset)
        if start >= last:
            return Page(Position(epoch, start), (), Position(epoch, start))
        if page := self._known.page(Position(epoch, start), Position(epoch, last)):
            return page
        with self._reading() as log:
            found = await _fetch(log, epoch, start, last)
            await self._refresh(log)  # shows whether the messages are of the same log
        if epoch != self._known.top.epoch:
            return await self._page(after, until)
        # Messages that are missing were trimmed meanwhile, or deleted: a gap.
        start = found[0].position.offset - 1 if found else last
        found = list(_without_break(found))
        end = found[-1].position.offset if found else start
        return Page(Position(epoch, start), found, Position(epoch, end))

    async def newest(self, count: int, topic_filter: TopicFilter, audience: Audience | None) -> Sequence[Publication]:
        return await self._known.newest(count, topic_filter, audience)

    async def last(self, count: int, topic_filter: TopicFilter, audience: Audience) -> tuple[Position, bool]:
        return await self._known.last(count, topic_filter, audience)

    async def _read_back(self, until: Position, count: int) -> Page:
        """Read the newest ``count`` publications up to a position; none when the log becomes another one meanwhile."""
        start = until._replace(offset=max(self._known.held_from, until.offset - count))
        found = await self._all_in(start, until)
        if until.epoch != self._known.top.epoch:
            return Page(self._known.top, (), self._known.top)
        return Page(start, found, until)

    async def _all_in(self, after: Position, until: Position) -> Sequence[Publication]:
        found: list[Publication] = []
        while after.offset < until.offset:
            page = await self._page(after, until)
            if page.end.epoch != until.epoch or page.end <= after:  # another log, or one that ends before
                break
            found += page.publications
            after = page.end
        return found

    async def since(self, time: float) -> tuple[Position, bool]:
        epoch = self._known.top.epoch
        with self._reading() as log:
            offset = await log.offset_before(time)
            await self._refresh(log)
        if epoch != self._known.top.epoch:
            return await self.since(time)
        top, oldest, held_from = self._known.top, self._known.oldest, self._known.held_from
        if offset > oldest or not oldest:  # then the stream still holds the message before it, which is older
            complete = offset >= held_from
        else:
            emptied = oldest == top.offset == self._newest_message.offset  # of all that are trimmed it is the newest
            complete = emptied and time > self._newest_message.time
        return top._replace(offset=max(offset, held_from)), complete

    # The tail

    def tail(self) -> Tail:
        if not self._known.is_followed and self._feed is None:
            self._restart_feed()
        self._wake.set()
        return self._known.tail()

    def _restart_feed(self) -> None:
        self._feed = None
        self._known.rewind()
        self._wake.set()

    async def _keep_feed(self, log: Log) -> None:
        feed = self._feed
        if self._known.is_followed and (feed is None or feed.broken or feed.silence > SILENCE):
            await self._feed_stack.aclose()
            take = partial(self._on_message, self._known.top.epoch)
            self._feed = await self._feed_stack.enter_async_context(log.feed(self._known.recent.top, take))

    def _on_message(self, epoch: str, message: Message) -> None:
        if epoch != self._known.top.epoch or message.offset <= self._known.recent.top:
            return
        self._newest_message = _NewestMessage(message.offset, message.time)
        self._known.announce((publication_of(message, epoch),))


def _is_behind(state: State, known: Position) -> bool:
    return state.top.epoch == known.epoch and state.top.offset < known.offset


async def _fetch(log: Log, epoch: str, start: int, until: int) -> Sequence[Publication]:
    return [publication_of(message, epoch) for message in await log.fetch(start, until, PAGE_COUNT)]


def _without_break(publications: Sequence[Publication]) -> Iterator[Publication]:
    """The first publications, up to where one is missing or there are too many bytes."""
    size, expected = 0, publications[0].position.offset if publications else 0
    for publication in publications:
        if publication.position.offset != expected or size >= PAGE_BYTES:
            return
        size, expected = size + len(publication.body), expected + 1
        yield publication
