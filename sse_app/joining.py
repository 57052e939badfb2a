"""Joining: what a new subscriber asks for, where it starts to read, and what it is told first."""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, Self

from sse_app.brokers import Broker
from sse_app.delivery import Delivery, Group
from sse_app.dialects import write_page
from sse_app.errors import InvalidSince, InvalidTopic
from sse_app.grants import OPEN, Grant
from sse_app.metrics import Totals
from sse_app.notices import GapReason, Welcome
from sse_app.publication import Position, Publication, check_client, names
from sse_app.reached import ReachedLog
from sse_app.revocations import is_revocable
from sse_app.subscriber import Subscriber
from sse_app.topics import TopicFilter

LAST_MAX = 1_000_000  # publications that a new subscriber may ask for
PAGE_BYTES_AT_ONCE = 64 * 1024  # that a stream may begin with: its reader has not said yet how fast it reads
TIME_MAX = 1e14  # seconds: three million years, more than `since=999999999d` asks for


@dataclass(frozen=True, slots=True)
class StartRequest:
    """The place where a subscriber asks to start: ``after`` an id; else with the newest ``last`` publications, or with
    those ``since`` a Unix time; else with what is published next. Raises InvalidSince.
    """

    after: Position | str | bytes | None = None
    last: int | None = None
    since: float | None = None

    def __post_init__(self) -> None:
        after, last, since = self.after, self.last, self.since
        if after is not None and not isinstance(after, (str, bytes, Position)):
            raise InvalidSince("after is a Position, or the id of an event.")
        if last is not None and not (isinstance(last, int) and 0 <= last <= LAST_MAX):
            raise InvalidSince(f"last is a whole number from 0 to {LAST_MAX}.")
        if since is not None and not (isinstance(since, int | float) and abs(since) <= TIME_MAX):
            raise InvalidSince("since is Unix time in seconds, such as datetime.timestamp() gives.")
        if last is not None and since is not None:
            raise InvalidSince("Give last or since, not both.")


class StreamRequest(NamedTuple):
    """The checked request of a subscriber, as every door hands it to the node. ``client`` is None when the node is to
    make a name. ``grant`` bounds what is asked for. ``address`` is where it comes from, None when nobody is to know.
    """

    topic_filter: TopicFilter
    start: StartRequest
    client: str | None
    grant: Grant = OPEN
    address: str | None = None

    @classmethod
    def parse(
        cls,
        topics: Iterable[str] = (),
        *,
        after: Position | str | bytes | None = None,
        last: int | None = None,
        since: float | None = None,
        client: str | None = None,
        grant: Grant = OPEN,
        address: str | None = None,
    ) -> Self:
        """Return the request of these topic filters, of everything without one. Raises InvalidTopic, InvalidSince,
        InvalidClient.
        """
        start = StartRequest(after, last, since)
        topic_filter = TopicFilter.parse(names("topic", topics, InvalidTopic))
        return cls(topic_filter, start, None if client is None else check_client(client), grant, address)


class Start(NamedTuple):
    """The ``position`` behind which a subscriber starts to read.

    When that leaves a ``gap``, ``requested`` is the position that the client asked to continue from, None when its
    cursor is no position. ``complete`` is for a subscriber that asked for the past: True when nothing of that was
    trimmed, None when it did not ask.
    """

    position: Position
    gap: GapReason | None = None
    requested: Position | None = None
    complete: bool | None = None


class Joining:
    """Begins the streams of subscribers that were added to the delivery.

    ``retry`` gives a reconnection time in milliseconds; ``heartbeat`` is in seconds.
    """

    def __init__(
        self,
        broker: Broker,
        log: ReachedLog,
        delivery: Delivery,
        totals: Totals,
        *,
        retry: Callable[[], int],
        heartbeat: float,
    ) -> None:
        self._broker, self._log, self._delivery, self._totals = broker, log, delivery, totals
        self._retry, self._heartbeat = retry, heartbeat

    async def begin(self, subscriber: Subscriber, request: StartRequest) -> None:
        """Decide where a subscriber starts; the welcome, and a gap if there is one, come before all else.

        The subscriber was added to the delivery before the end of the log is read here. So what is published meanwhile
        is offered to it, and nothing is missed between that end and what is offered first.
        """
        top, oldest = await self._broker.top(), await self._broker.oldest()
        start = await self._start(subscriber, request, oldest, top)
        if start.gap is GapReason.AHEAD:  # another node, which the client comes from, may have read more of the log
            top = await self._broker.top(fresh=True)
            start = await self._start(subscriber, request, oldest, top)
        newest = await self._newest(subscriber, oldest)
        if newest is not None and not self._may_be_told(newest, subscriber):
            newest = None
        dialect = subscriber.dialect
        greeting = dialect.welcome(self._welcome(subscriber, request, start, newest, top))
        if start.gap:
            self._totals.gaps[start.gap] += 1
            requested = start.requested and str(start.requested)
            greeting += dialect.gap(start.gap, requested, start=start.position, oldest=oldest.next(), top=top)
        if start.position == top:
            subscriber.begin(top, greeting, behind=False)
        else:
            self._begin_in_log(subscriber, greeting, start.position)

    def _begin_in_log(self, subscriber: Subscriber, greeting: bytes, position: Position) -> None:
        """Begin a stream for which the log holds more: with the next page of it, if that is at hand, and is no more
        than may wait for the connection.
        """
        page = self._log.at_hand(position, subscriber.filter)
        if page is not None and page.start == position:
            written = write_page(page, subscriber.dialect, subscriber.audience)
            if len(written.data) <= PAGE_BYTES_AT_ONCE:
                behind = page.end != self._delivery.reached
                subscriber.begin(page.end, greeting, behind=behind, page=written)
                return
        subscriber.begin(position, greeting, behind=True)

    async def _start(self, subscriber: Subscriber, request: StartRequest, oldest: Position, top: Position) -> Start:
        if request.after is not None:
            return resume(request.after, oldest, top)
        if request.last is not None:
            position, enough = await self._broker.last(request.last, subscriber.filter, subscriber.audience)
            return Start(position, complete=enough or oldest.offset == 0)
        if request.since is not None:
            position, complete = await self._broker.since(request.since)
            return Start(position, None if complete else GapReason.TRIMMED, Position(top.epoch, 0), complete)
        return Start(top)

    def _welcome(
        self, subscriber: Subscriber, request: StartRequest, start: Start, newest: Publication | None, top: Position
    ) -> Welcome:
        grant = subscriber.grant
        connected = self._totals.subscribers + self._broker.subscribers_elsewhere
        return Welcome(
            id=start.requested if start.gap else start.position,
            client=subscriber.client,
            subscribers=None if grant.stats == "none" else connected,
            topics=subscriber.filter.shown,
            recovered=request.after is not None and start.gap is None,
            last=newest.summary(subscriber.filter) if newest else None,
            top=top,
            complete=start.complete,
            retry=self._retry(),
            heartbeat=self._heartbeat,
            user=grant.user,
            expires_in=None if grant.expires is None else max(0, int(grant.expires - time.time())),
        )

    async def _newest(self, subscriber: Subscriber, oldest: Position) -> Publication | None:
        """Return the newest publication that a subscriber may see: most often the newest that its group was given."""
        group = self._delivery.group_of(subscriber)
        if not group.known:
            await self._look_up_newest(group)
        newest = group.newest
        if newest is None or newest.position.offset <= oldest.offset:
            return None
        audience = subscriber.audience
        if newest.visible_to(audience):
            return newest
        found = await self._broker.newest(1, group.filter, audience)
        return found[0] if found else None

    def _may_be_told(self, newest: Publication, subscriber: Subscriber) -> bool:
        """Return False when the grant may have been taken back before this was published."""
        position, reached = newest.position, self._delivery.reached
        is_reached = position.epoch == reached.epoch and position.offset <= reached.offset
        return is_reached or not is_revocable(subscriber.grant)

    async def _look_up_newest(self, group: Group) -> None:
        """Find the newest publication of a group in the log, once for all subscribers that join it meanwhile."""
        while not group.known:
            lock = group.looking_up = group.looking_up or asyncio.Lock()
            async with lock:
                if group.known or lock is not group.looking_up:
                    continue
                found = await self._broker.newest(1, group.filter, None)
                if not group.known and lock is group.looking_up:  # nothing was delivered, the log is the same
                    group.set_newest(found[0] if found else None)


def parse_cursor(after: Position | str | bytes | None) -> Position | None:
    """Return the position that a client has as its cursor; None for none, or for what is no position."""
    if isinstance(after, str):
        after = after.encode(errors="replace")
    return Position.parse(after) if isinstance(after, bytes) else after


def resume(after: Position | str | bytes, oldest: Position, top: Position) -> Start:
    """Return where a client with this cursor goes on. ``oldest`` is the position just before what the log still holds.

    A cursor of another epoch lies before everything in this one, so all that the log holds is new to its client. A
    cursor that is malformed or past the end of the log does not tell what its client has seen: such a client starts
    with what is published next.
    """
    cursor = parse_cursor(after)
    if cursor is None:
        return Start(top, GapReason.MALFORMED)
    if cursor.epoch != top.epoch:
        return Start(oldest, GapReason.EPOCH, cursor)
    if cursor.offset > top.offset:
        return Start(top, GapReason.AHEAD, cursor)
    if cursor.offset < oldest.offset:
        return Start(oldest, GapReason.TRIMMED, cursor)
    return Start(cursor)
