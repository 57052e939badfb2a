"""Heartbeats, which keep the connection of an idle stream open, and cursors, which keep the stream resumable."""

from collections.abc import Sequence

from sse_app.batch import Batch
from sse_app.brokers import Broker
from sse_app.delivery import Delivery, in_steps
from sse_app.dialects import Dialect
from sse_app.metrics import Totals
from sse_app.steps import outside_tasks
from sse_app.subscriber import Subscriber

SLOTS = 15  # of the heartbeats: each subscriber is in one, and the slots take turns, so that the writes are spread
CURSOR_STEP = 64  # publications at least between two searches for cursors that fall behind


class Cursors:
    """Moves the cursors of clients whose streams are quiet, before what lies behind them is trimmed: a client that came
    back with such a cursor would be told a gap.
    """

    def __init__(self, broker: Broker, delivery: Delivery) -> None:
        self._broker, self._delivery = broker, delivery
        self._searched = delivery.position  # of the last search among all subscribers
        self._step = CURSOR_STEP

    @property
    def due(self) -> bool:
        """True when it is time to search all subscribers for cursors that fall behind: ``CURSOR_STEP`` publications
        after the last search in this epoch, or a quarter of what the log holds if that is more.
        """
        now, then = self._delivery.position, self._searched
        return now.offset - (then.offset if then.epoch == now.epoch else 0) >= self._step

    async def move_all(self) -> None:
        """Move the cursors that fall behind, of all subscribers."""
        self._searched = self._delivery.position
        await self.move(list(self._delivery))

    async def move(self, subscribers: Sequence[Subscriber]) -> None:
        """Move those of these cursors that lie in the older half of the log: all are searched each time a quarter of it
        is new, so a cursor still lies in the log when its client comes back.
        """
        oldest = (await self._broker.oldest()).offset
        top = self._delivery.position
        held = top.offset - oldest
        self._step = max(CURSOR_STEP, held // 4)
        safe = min(oldest + held // 2, top.offset - CURSOR_STEP + 1)
        behind = [subscriber for subscriber in subscribers if subscriber.position.offset < safe]
        if behind:
            await outside_tasks(in_steps(lambda subscriber: subscriber.offer_cursor(top), behind))


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
        await self._cursors.move(subscribers)
        batches = Batches()
        await outside_tasks(in_steps(lambda subscriber: subscriber.beat(batches[subscriber.dialect]), subscribers))
        self._totals.heartbeats += len(subscribers)
