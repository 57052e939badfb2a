"""Heartbeats, which keep the connection of an idle stream open, and cursors, which keep the stream resumable."""

from collections.abc import Callable, Sequence

from sse_app.batch import Batch
from sse_app.brokers import Broker
from sse_app.delivery import Delivery, in_steps
from sse_app.dialects import Dialect
from sse_app.metrics import Totals
from sse_app.publication import Position
from sse_app.steps import outside_tasks
from sse_app.subscriber import Subscriber

SLOTS = 15  # of the heartbeats: each subscriber is in one, and the slots take turns, so that the writes are spread
LOOK_STEP = 8  # publications between two looks at how far the log has come: each takes 3 us
CURSOR_STEP = 64  # publications at least between two searches, and that a cursor may lie behind the top in any log


class Cursors:
    """Moves the cursors of clients whose streams are quiet, before what lies behind them is trimmed: a client that came
    back with such a cursor would be told a gap.

    A cursor is safe while half of what the log can hold may still be appended before the log trims what lies behind it.
    All are searched each time a quarter of that is new, or was trimmed. So a log that is not half full moves none.
    """

    def __init__(self, broker: Broker, delivery: Delivery) -> None:
        self._broker, self._delivery = broker, delivery
        # The ends of the log at the last search among all subscribers.
        self._top, self._oldest = delivery.position, delivery.position._replace(offset=0)
        self._looked = delivery.position  # where are_due was last looked at

    def are_due(self) -> bool:
        """Return True when it is time to search all subscribers for cursors that fall behind. It is looked at anew when
        some publications have come since it was last asked.
        """
        top = self._delivery.position
        if top.epoch == self._looked.epoch and top.offset - self._looked.offset < LOOK_STEP:
            return False
        self._looked, extent = top, self._broker.extent()
        new = top.offset - (self._top.offset if self._top.epoch == top.epoch else 0)
        trimmed = extent.oldest.offset - (self._oldest.offset if self._oldest.epoch == extent.oldest.epoch else 0)
        return max(new, trimmed) >= max(CURSOR_STEP, extent.capacity // 4)

    async def move_all(self) -> None:
        """Move the cursors that fall behind, of all subscribers."""
        self._top, self._oldest = self._delivery.position, self._broker.extent().oldest
        await self.move(lambda: list(self._delivery))

    async def move(self, subscribers: Callable[[], Sequence[Subscriber]]) -> None:
        """Move those of these cursors that fall behind."""
        extent, top = self._broker.extent(), self._delivery.position
        oldest = extent.oldest.offset
        room = max(0, extent.capacity - (top.offset - oldest))  # until the log is full
        safe = min(oldest + extent.capacity // 2 - room, top.offset - CURSOR_STEP + 1)
        if safe > 0:
            behind = in_steps(lambda subscriber: _move(subscriber, safe, top), subscribers())
            await outside_tasks(behind)


def _move(subscriber: Subscriber, safe: int, top: Position) -> None:
    if subscriber.position.offset < safe:
        subscriber.offer_cursor(top)


class Batches(dict[Dialect, Batch]):
    """The heartbeats of a slot by dialect, each framed once and shared by all streams of the dialect."""

    def __missing__(self, dialect: Dialect) -> Batch:
        batch = self[dialect] = Batch(dialect.heartbeat)
        return batch


class Heartbeats:
    """Sends heartbeats slot by slot: after ``SLOTS`` calls of ``send_next`` each subscriber has had its own."""

    def __init__(self, totals: Totals, cursors: Cursors) -> None:
        self._totals, self._cursors = totals, cursors
        self._slots: list[dict[Subscriber, None]] = [{} for _ in range(SLOTS)]
        self._current = 0

    def __len__(self) -> int:
        """Return the number of subscribers that get heartbeats."""
        return sum(map(len, self._slots))

    def add(self, subscriber: Subscriber) -> None:
        """Add a subscriber, whose slot comes last from now on."""
        subscriber.turn = self._current
        self._slots[self._current][subscriber] = None

    def remove(self, subscriber: Subscriber) -> None:
        del self._slots[subscriber.turn][subscriber]

    async def send_next(self) -> None:
        """Send the heartbeats of the next slot, and move the cursors of its subscribers."""
        self._current = (self._current + 1) % SLOTS
        subscribers = list(self._slots[self._current])
        await self._cursors.move(lambda: subscribers)
        batches = Batches()
        await outside_tasks(in_steps(lambda subscriber: subscriber.beat(batches[subscriber.dialect]), subscribers))
        self._totals.heartbeats += len(subscribers)
