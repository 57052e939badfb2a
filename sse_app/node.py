"""A node: one process's part of a hub. It knows who is subscribed here, and delivers the tail of the log to them.

publish -> broker.publish -> broker.tail -> Delivery.deliver -> Subscriber.offer
subscribe -> Delivery.add -> Joining.begin: the end of the log, the welcome -> read the log -> read the queue
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from sse_app import notices
from sse_app.admission import Admission
from sse_app.brokers import Broker, Tail
from sse_app.connections import Connections
from sse_app.delivery import Delivery, in_steps, pieces
from sse_app.dialects import NATIVE
from sse_app.drafts import Drafts
from sse_app.draining import Drain
from sse_app.errors import BrokerError
from sse_app.exchange import Exchange
from sse_app.expiry import Expiry
from sse_app.grants import OPEN, Grant, Reconnect
from sse_app.heartbeats import SLOTS, Cursors, Heartbeats
from sse_app.joining import Joining, StreamRequest
from sse_app.leases import Leases
from sse_app.lifetime import Lifetime
from sse_app.metrics import Totals
from sse_app.publication import Audience, Draft, Position, Publication, Receipt
from sse_app.reached import ReachedLog
from sse_app.receipts import REMEMBERED_BATCHES, Receipts
from sse_app.revocations import Revocation
from sse_app.revoking import Revoked, Revoking
from sse_app.stack import NonReentrant, close_stack
from sse_app.steps import Budget, outside_tasks
from sse_app.subscriber import CloseReason, Subscriber
from sse_app.topics import TopicFilter
from sse_app.vetting import Vetting

T = TypeVar("T")

RECENT = 100  # publications that /stats lists
CANCEL_AGAIN = 0.5  # seconds
COUNTED_AT_ONCE = 256  # audiences of a batch, and names in them, whose subscribers are counted in one turn of the loop
SOON = (200, 1_000)  # milliseconds: after the end of a stream whose client gets the rest of what it may see

RUNNING = (
    "The hub is running already, and can be started again when it has stopped. Give its lifespan to one app only, "
    "or run it inside one `async with hub:`."
)


class Node:
    """Start it with ``async with node:``. It opens and closes its broker. Raises RuntimeError when it is started while
    it runs.

    ``queue_size`` publications and ``queue_bytes`` bytes may wait for a subscriber; ``heartbeat`` is in seconds;
    ``retry`` are the seconds between which a client's reconnection time is random, so that not all come back at once;
    ``max_subscribers`` streams at most are open at a time; ``drain`` is how many seconds a planned stop may take;
    ``ticket_reconnect`` says who may come back with a ticket (``Tickets``). With ``require_topic`` it takes no
    publication without a topic; ``vetting`` has the app's word on each. A stream ends after ``auth_max_age`` seconds,
    so that its client shows its credential again; None: only when its grant expires, by the ``wall`` clock.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        queue_size: int,
        queue_bytes: int,
        heartbeat: float,
        retry: tuple[float, float],
        max_subscribers: int,
        drain: float,
        ticket_reconnect: Reconnect,
        require_topic: bool = False,
        auth_max_age: float | None = None,
        wall: Callable[[], float] = time.time,
        vetting: Vetting | None = None,
    ) -> None:
        self.broker = broker
        self.life = Lifetime()
        self.totals = Totals()
        self.siblings = Totals()  # of the other workers of this server, a second old
        self.drain_window = drain
        self._require_topic, self._vetting = require_topic, vetting
        self._queue_limits = (queue_size, queue_bytes)
        self._retry = round(retry[0] * 1000), round(retry[1] * 1000)
        self._receipts = Receipts[int]()
        self._batch_receipts = Receipts[tuple[int, ...]](REMEMBERED_BATCHES)
        self._delivery = Delivery()
        self._log = ReachedLog(broker, self._delivery)
        self._joining = Joining(broker, self._log, self._delivery, self.totals, retry=self.retry, heartbeat=heartbeat)
        self._wall, self._now = wall, 0
        self._beat_interval = heartbeat / SLOTS
        self._cursors = Cursors(broker, self._delivery)
        self._heartbeats = Heartbeats(self.totals, self._cursors)
        self.revoking = Revoking(broker, self._delivery, self.end, wall=wall)
        self._expiry = Expiry(partial(self.end, reason=CloseReason.EXPIRED), max_age=auth_max_age, wall=wall)
        self._admission = Admission(self.totals, max_subscribers, lambda: self._drain.note_progress())
        self._exchange = Exchange(broker.board)
        self.leases = Leases(
            broker.board, self._exchange, self.totals, self.end, shortest=retry[0], reconnect=ticket_reconnect
        )
        self.connections = Connections(broker.board, self._exchange, self._delivery, self.end, wall=wall)
        self._drain = Drain(broker, self._delivery, self.totals, self._admission, self.retry)
        self._drain_begun = False
        self._spawner = self.spawn  # one bound method for all subscribers
        self._running: set[asyncio.Task[Any]] = set()
        self._tasks_end = False
        self._tasks = asyncio.TaskGroup()  # replaced by the one that a start opens
        self._stack, self._non_reentrant = AsyncExitStack(), NonReentrant(RUNNING)

    # Life

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.enter_context(self._non_reentrant)
            await stack.enter_async_context(self.broker)
            tail = await stack.enter_async_context(aclosing(self.broker.tail()))
            self._delivery.position = self._delivery.reached = tail.start
            self._tasks_end = False
            self._tasks = await stack.enter_async_context(asyncio.TaskGroup())
            stack.callback(self._cancel_tasks)
            self.spawn(self._follow(tail))
            self.spawn(self._keep_alive())
            self.spawn(self._exchange.run())
            self.spawn(self._expiry.run())
            self.spawn(self.revoking.run())
            self.spawn(self.connections.asking.run())
            self.spawn(self.connections.run())
            self._stack = stack.pop_all()
        self._admission.start()
        self._drain.reset()
        self.revoking.reset()
        self.connections.reset()
        self._drain_begun = False
        self.life.begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_accepting()
        self._drain.close_all()
        self.life.end()
        try:
            await close_stack(self._stack, kind, error, trace)
        finally:
            for subscriber in list(self._delivery):
                subscriber.cut()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task that the node owns: it ends with the node, and its failure is the node's. While the node stops,
        a task is cancelled before it begins.
        """
        if self._tasks_end:
            task = asyncio.get_running_loop().create_task(work)  # the group may have ended
            task.cancel()
        else:
            task = self._tasks.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    def _cancel_tasks(self) -> None:
        self._tasks_end = True
        _cancel_until_done(self._running)

    # Publishing

    async def publish(self, draft: Draft, grant: Grant = OPEN) -> Receipt:
        """Publish a draft of a caller with this grant. Returns when the log has it. Raises Vetoed, TopicRequired,
        KeyReused, Unavailable, and RuntimeError when the app's before_publish fails; then nobody sees it.

        With the ``idempotency_key`` of an earlier publication that is the same, within the idempotency window, nothing
        is published, and the answer is the same.
        """
        receipt = self.publish_at_once(draft)
        if receipt is not None:
            return receipt
        if self._vetting is not None:
            draft = await self._vetting.ask(draft, grant)
            self.life.check_started()  # it may have stopped meanwhile
        if self._require_topic:
            draft.check_topic()
        key, before = draft.idempotency_key, self._delivery.position
        position = await self.broker.publish(draft)
        self._note_published(key, position, before)
        subscribers = self._receipts.get(key) if key is not None else None
        if subscribers is None:
            subscribers = await self._delivery.count(draft)
            if key is not None:
                subscribers = self._receipts.settle(key, position, subscribers)
        return Receipt(position, subscribers, self.broker.durability)

    def publish_at_once(self, draft: Draft) -> Receipt | None:
        """Publish a draft as ``publish`` does when nothing has to be waited for; else return None, and nothing is
        published. Raises as ``publish`` does.
        """
        self.life.check_here()
        if self._vetting is not None or draft.idempotency_key is not None:
            return None
        if self._require_topic:
            draft.check_topic()
        subscribers = self._delivery.count_at_hand(draft)
        if subscribers is None:
            return None
        position = self.broker.append(draft)
        if position is None:
            return None
        self.totals.published += 1
        return Receipt(position, subscribers, self.broker.durability)

    async def publish_many(self, drafts: Drafts, grant: Grant = OPEN) -> list[Receipt]:
        """Publish drafts of a caller with this grant together, all or none, and return the receipt of each. Raises as
        ``publish`` does; a log that cannot append several at once may leave a part published (``Broker``).
        """
        self.life.check_here()
        if not drafts.items:
            return []
        if self._vetting is not None:
            drafts = await self._vetting.ask_all(drafts, grant)
            self.life.check_started()  # it may have stopped meanwhile
        if self._require_topic:
            drafts.check_topics()
        before = self._delivery.position
        positions = await self.broker.publish_many(drafts)
        self._count_published(drafts, positions, before)
        counts = self._settle(drafts, positions, await self._count_subscribers_of(drafts))
        durable = self.broker.durability
        return [Receipt(position, count, durable) for position, count in zip(positions, counts, strict=True)]

    def _count_published(self, drafts: Drafts, positions: Sequence[Position], before: Position) -> None:
        """Count those of a batch that were published just now. ``before`` is where the log was as this node knew."""
        if drafts.idempotency_key is not None and not self._batch_receipts.begin(drafts.idempotency_key, positions[0]):
            return
        for draft, position in zip(drafts, positions, strict=True):
            self._note_published(draft.idempotency_key, position, before)

    def _note_published(self, key: str | None, position: Position, before: Position) -> None:
        """Count a publication if it was published just now. ``before`` is where the log was as this node knew."""
        is_new = key is None or self._receipts.begin(key, position)
        # Without that its key was used before this node has started.
        if is_new and (position.epoch != before.epoch or position.offset > before.offset):
            self.totals.published += 1

    async def _count_subscribers_of(self, drafts: Drafts) -> Sequence[int]:
        """Return how many subscribers each draft is for; those for the same ones are counted once."""
        found: dict[tuple[object, ...], int] = {}
        budget = Budget(COUNTED_AT_ONCE)
        for draft in drafts:
            audience = draft.topics, draft.to, draft.exclude
            if audience not in found:
                found[audience] = await self._delivery.count(draft)
                if budget.spend(1 + len(draft.to) + len(draft.exclude)):
                    await asyncio.sleep(0)
        return [found[draft.topics, draft.to, draft.exclude] for draft in drafts]

    def _settle(self, drafts: Drafts, positions: Sequence[Position], counts: Sequence[int]) -> Sequence[int]:
        """Return the numbers of subscribers for the receipts: those of the first answer, when there was one before."""
        if drafts.idempotency_key is not None:
            return self._batch_receipts.settle(drafts.idempotency_key, positions[0], tuple(counts))
        return [
            count if draft.idempotency_key is None else self._receipts.settle(draft.idempotency_key, position, count)
            for draft, position, count in zip(drafts, positions, counts, strict=True)
        ]

    @property
    def steppable(self) -> bool:
        """True when ``publish`` and ``join`` may be stepped outside of a task: the log allows it, and no code of the
        app's user runs in them.
        """
        return self.broker.steppable and self._vetting is None

    def admitted(self) -> Admission:
        """Return the context of a publisher's request, for which a drain waits; it raises Draining when it is entered.
        Raises HubNotStarted.
        """
        self.life.check_started()
        return self._admission

    # Delivering

    async def _follow(self, tail: Tail) -> None:
        async for announced in tail:
            if not announced or announced[0].position != self._delivery.position.next():
                await self._read_again()
            await outside_tasks(self._deliver_all(announced))
            if self._cursors.are_due():
                await self._cursors.move_all()

    async def _read_again(self) -> None:
        """Let everyone read on from the log: the tail began another epoch, or left publications out."""
        top = await self.broker.top()
        await self.revoking.read_again()  # behind the top: an entry on the board is older than its record in the log
        self._delivery.reached = top
        self._delivery.forget_newest()
        await outside_tasks(in_steps(Subscriber.fall_behind, list(self._delivery)))
        self._delivery.position = top  # only now: a stream that is not behind yet would take a cursor to there for true

    def _deliver_all(self, announced: Sequence[Publication]) -> Iterator[None]:
        """Offer all that the log announced, in steps. The loop turns once between two pieces: with more turns those who
        publish batches would be faster than this.
        """
        for number, publications in enumerate(pieces(announced)):
            if number:
                yield
            yield from self._deliver(publications)

    def _deliver(self, publications: Sequence[Publication]) -> Iterator[None]:
        """Offer a piece of what the log announced to all whom it is for, in steps."""
        end = publications[-1].position
        shown = yield from self.revoking.apply(publications)
        self._delivery.reached = end  # before it is offered: who asks now where the log ends may be passed over below
        if shown:
            yield from self._delivery.deliver(shown)
        self._delivery.position = end
        self._drain.note_progress()

    # Subscribing

    @asynccontextmanager
    async def subscribe(self, request: StreamRequest) -> AsyncIterator[Subscriber]:
        """Join, and leave at the end of the block, however it ends."""
        subscriber = await self.join(request)
        reason = CloseReason.GONE
        try:
            yield subscriber
        except Exception:
            reason = CloseReason.ERROR
            raise
        finally:
            self.leave(subscriber, reason)

    def check_room(self) -> None:
        """Raises Draining, Overloaded, where ``join`` would."""
        self._admission.check_subscriber()

    async def join(self, request: StreamRequest) -> Subscriber:
        """Return a new subscriber, whose stream begins with the welcome. The caller must call ``leave`` when that has
        ended.

        Raises InsufficientScope, Blocked, TooManyTopics, Draining, Overloaded, Unavailable.
        """
        self.life.check_here()
        grant = request.grant
        if grant.source != "open" and not self.revoking.settled:  # no revocation names what is open
            grant = await self.revoking.check(grant)  # no other await follows until the stream is added
        client = grant.check_name(request.client)
        self.connections.check(grant, client)
        topic_filter = self._delivery.shared(grant.narrow(request.topic_filter), NATIVE)
        self._admission.check_subscriber()
        subscriber = Subscriber(
            self._log,
            self.totals,
            topic_filter,
            client,
            self._queue_limits,
            self._spawner,
            grant=grant,
            address=request.address,
            since=self._second(),
        )
        self._delivery.add(subscriber)
        self._heartbeats.add(subscriber)
        self.leases.add(subscriber)
        self._expiry.add(subscriber)
        self._count_subscribers(+1)
        self.totals.connected += 1
        try:
            await self._joining.begin(subscriber, request.start)
            self.life.check_started()  # it may have stopped meanwhile
        except BaseException:
            self.leave(subscriber, CloseReason.GONE)
            raise
        return subscriber

    def leave(self, subscriber: Subscriber, reason: CloseReason) -> None:
        """End what ``join`` began, since its stream has ended; ``reason`` counts unless the node itself ended it."""
        self._delivery.remove(subscriber)
        self._heartbeats.remove(subscriber)
        self.leases.remove(subscriber)
        self._expiry.remove(subscriber)
        self._count_subscribers(-1)
        self.totals.closed[subscriber.closing or reason] += 1
        subscriber.release()
        self._drain.note_progress()

    def end(self, subscriber: Subscriber, reason: CloseReason, retry: int | None = None) -> None:
        """End a stream at once: it gets a ``bye`` with this reason and reconnection time (ms; else a random one), and
        nothing of what waits for it.
        """
        if retry is None:
            retry = random.randint(*SOON) if reason is CloseReason.CHANGED else self.retry()
        subscriber.end(reason, subscriber.dialect.bye(reason, retry))

    # Taking grants back

    def check(self, grant: Grant) -> Awaitable[Grant]:
        """Return what is left of the grant of a request; the caller uses it before it awaits anything else.

        Raises InvalidToken if it was taken back, InsufficientScope, and Unavailable when that cannot be told.
        """
        return self.revoking.check(grant)

    async def revoke(self, revocation: Revocation) -> Revoked:
        """Take grants back, on all nodes.

        No publication that is published from then on is sent to a stream whose grant this takes back. Raises
        Unavailable when other nodes may not have heard of it: it is to be repeated.
        """
        self.life.check_here()
        return await self.revoking.revoke(revocation)

    async def end_all(self, covers: Callable[[Grant], bool], reason: CloseReason) -> int:
        """End the streams of this node whose grants are covered. Return how many there were."""
        return await self.revoking.end_all(covers, reason)

    def _count_subscribers(self, change: int) -> None:
        self.totals.subscribers += change
        self.broker.subscribers_here = self.totals.subscribers

    def _second(self) -> int:
        """Return the second of Unix time: one object for all streams that begin in it, since each keeps it."""
        now = int(self._wall())
        if now != self._now:
            self._now = now
        return self._now

    def retry(self) -> int:
        """Return a client's reconnection time, random, in milliseconds."""
        return random.randint(*self._retry)

    # Keeping alive

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self._beat_interval)
            if self.broker.outdated:
                self.begin_drain()  # its subscribers come back to a node that reads what a newer version writes
            self._log.pages.age()
            await self._heartbeats.send_next()

    # Stopping

    @property
    def draining(self) -> bool:
        """True from the begin of a planned stop on."""
        return self._admission.stopped

    def stop_accepting(self) -> None:
        """From now on publishers and new subscribers are sent elsewhere; open streams go on. Safe in a signal
        handler.
        """
        self._admission.stop()

    def begin_drain(self) -> None:
        """Start the drain as a task of the node, unless it has begun. For callers that cannot await it."""
        if self.life.started and not self._drain_begun:
            self._drain_begun = True
            self.stop_accepting()
            self.spawn(self.drain())

    async def drain(self, window: float | None = None) -> None:
        """End all streams in order, within ``window`` seconds (default: ``drain_window``); see ``Drain.run``."""
        self.life.check_here()
        self._drain_begun = True
        self.stop_accepting()
        await self._drain.run(self.drain_window if window is None else window)

    # Looking in

    async def stats(self, grant: Grant = OPEN) -> dict[str, object]:
        """Return what ``GET /stats`` answers to a caller, as JSON types. Publications to named clients are left out of
        ``last``, ``recent``; so is all that its filter does not match, and what others ask for, unless the caller may
        see all. Raises InsufficientScope.
        """
        self.life.check_here()
        grant.check_stats()
        shown = TopicFilter() if grant.stats == "all" else grant.subscribe
        recent, trouble = await self._recent(shown) if shown else ((), None)
        totals = self.totals + self.siblings
        return {
            "subscribers": self.totals.subscribers + self.broker.subscribers_elsewhere,
            "here": self.totals.subscribers,
            "filters": self._filters() if grant.stats == "all" else None,
            "last": notices.describe(recent[-1], shown) if shown and recent else None,
            "recent": [publication.summary(shown) for publication in recent],
            "totals": totals.as_dict(),
            "lagging": totals.lagging,
            "top": str(await self.broker.top()),
            "oldest": str((await self.broker.oldest()).next()),
            "durable": self.broker.durability,
            "trouble": trouble,
            "draining": self.draining,
            "uptime": round(self.life.uptime, 1),
        }

    def _filters(self) -> list[dict[str, object]]:
        """Return the filters with the most subscribers."""
        groups = sorted(self._delivery.groups, key=lambda group: len(group.members), reverse=True)
        return [{"topics": group.filter.shown, "subscribers": len(group.members)} for group in groups[:RECENT]]

    async def _recent(self, topic_filter: TopicFilter) -> tuple[Sequence[Publication], str | None]:
        """Return the newest publications that match, and what is wrong with the log just now."""
        try:
            self.broker.check()
            return await self.broker.newest(RECENT, topic_filter, Audience()), None
        except BrokerError as error:
            return (), str(error)

    def gauges(self) -> dict[str, float]:
        """Return the states that ``GET /metrics`` shows beside the totals."""
        return {
            "filters": len(self._delivery.groups),
            "draining": self.draining,
            "log_top_offset": self._delivery.position.offset,
            "subscribers_elsewhere": self.broker.subscribers_elsewhere,
            "bad_envelopes": self.broker.bad_envelopes
            + self.revoking.bad_records
            + self.connections.blocks.bad_records,
            "revocations": len(self.revoking.revocations),
            "blocks": len(self.connections.blocks),
            "board_failures": self.revoking.board_failures + self.connections.board_failures,
        }


def _cancel_until_done(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and again those that go on. In Python 3.11 a wait_for whose result comes in the same turn as the
    cancellation returns that result (python/cpython#86296), and nats-py has a wait_for in each request.
    """
    going_on = [task for task in tasks if not task.done()]
    for task in going_on:
        task.cancel()
    if going_on:
        asyncio.get_running_loop().call_later(CANCEL_AGAIN, _cancel_until_done, going_on)
