"""The hub: who is subscribed here. It delivers the tail of the log to them.

publish -> broker.publish -> broker.tail -> Delivery.deliver -> Subscriber.offer
subscribe -> Delivery.add -> Joining.begin: the end of the log, the welcome -> read the log -> read the queue
"""

import asyncio
import os
import random
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from sse_app import notices
from sse_app.admission import Admission
from sse_app.brokers import Broker, Tail
from sse_app.delivery import Delivery, in_steps, pieces
from sse_app.dialects import NATIVE
from sse_app.errors import BrokerError, HubNotStarted, InvalidTopic
from sse_app.joining import Asked, Joining
from sse_app.metrics import Totals
from sse_app.publication import (
    Audience,
    Draft,
    Position,
    Publication,
    PublishOptions,
    Receipt,
    check_client,
    names,
)
from sse_app.stack import NonReentrant, close_stack
from sse_app.subscriber import CloseReason, Subscriber
from sse_app.topics import TopicFilter

T = TypeVar("T")

BEATS = 15  # slots of the heartbeat: each subscriber has its turn once in BEATS steps, so the writes are spread
RECENT = 100  # publications that /stats lists
CURSOR_STEP = 64  # publications at least between two searches for cursors that fall behind
SPREAD = 0.8  # of the drain's window: closes are spread over it, the rest is for the last to finish

NOT_STARTED = (
    "The hub was never started. Give it to your app as Starlette(lifespan=hub.lifespan) or "
    "FastAPI(lifespan=hub.lifespan) (a mounted app gets no lifespan events of its own), "
    "or run it inside `async with hub:`."
)

NO_LIFESPAN = (
    "The hub was given to an app as its lifespan, and no lifespan event came. Either the server sends none: daphne "
    "never does, others can be told not to (uvicorn --lifespan off, granian's asginl). Then use uvicorn, gunicorn, "
    "hypercorn or granian with it. Or that app is mounted in another, which alone gets them: give hub.lifespan to the "
    "outermost app."
)

STOPPED = "The hub has stopped: its app has shut down, or its `async with` has ended. It can be started again."

ELSEWHERE = (
    "The hub runs in another event loop. From another thread use publish_threadsafe(), "
    "from another loop `await asyncio.to_thread(hub.publish_threadsafe, ...)`."
)

FORKED = (
    "The hub runs in the process that this one was forked from, and nothing of it runs here. Publish with a Publisher, "
    "which opens the log of its URL, or over HTTP with a SyncClient."
)

RUNNING = (
    "The hub is running already, and can be started again when it has stopped. Give its lifespan to one app only, "
    "or run it inside one `async with hub:`."
)


class Hub:
    """Start it with ``async with hub:``, or with ``lifespan=hub.lifespan`` in a Starlette or FastAPI app. It opens and
    closes its broker. Raises RuntimeError when it is started while it runs.

    ``queue_size`` publications and ``queue_bytes`` bytes may wait for a subscriber; ``heartbeat`` is in seconds;
    ``retry`` are the seconds between which a client's reconnection time is random, so that not all come back at once;
    ``max_subscribers`` streams at most are open at a time; ``drain`` is how many seconds a planned stop may take;
    the data of a publication has ``body_max`` bytes at most.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        queue_size: int = 1_000,
        queue_bytes: int = 1024 * 1024,
        heartbeat: float = 15.0,
        retry: tuple[float, float] = (2.0, 5.0),
        max_subscribers: int = 100_000,
        drain: float = 10.0,
        body_max: int = 256 * 1024,
    ) -> None:
        self.broker = broker
        self.totals = Totals()
        self.siblings = Totals()  # of the other workers of this server, a second old
        self._drain_begun = False
        self._queue_limits = (queue_size, queue_bytes)
        self._heartbeat = heartbeat
        self._retry = round(retry[0] * 1000), round(retry[1] * 1000)
        self.drain_window = drain
        self._body_max = body_max
        self._delivery = Delivery()
        self._joining = Joining(broker, self._delivery, self.totals, retry=self.retry, heartbeat=heartbeat)
        self._beats: list[dict[Subscriber, None]] = [{} for _ in range(BEATS)]
        self._beat = 0
        self._delivered = Position("", 0)  # everything up to here was offered to whom it is for
        self._swept = 0  # offset of the last look for cursors that fall behind
        self._sweep_step = CURSOR_STEP
        self._receipts: dict[str, tuple[Position, int]] = {}  # of keyed publications: a retry gets the same answer
        self._lifespan_awaited = False  # it was given to an app, and nothing has started it since
        self._quiet = asyncio.Event()  # set when something ended that a drain may wait for
        self._admission = Admission(self.totals, max_subscribers, self._quiet.set)
        self._started_at: float | None = None
        self._has_stopped = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = self._thread = 0
        self._spawner = self.spawn  # one bound method for all subscribers
        self._running: set[asyncio.Task[Any]] = set()
        self._tasks = asyncio.TaskGroup()  # replaced by the one that a start opens
        self._stack, self._entered = AsyncExitStack(), NonReentrant(RUNNING)

    # Life

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.enter_context(self._entered)
            await stack.enter_async_context(self.broker)
            tail = await stack.enter_async_context(aclosing(self.broker.tail()))
            self._delivered = tail.start
            self._tasks = await stack.enter_async_context(asyncio.TaskGroup())
            stack.callback(self._cancel_tasks)
            self.spawn(self._follow(tail))
            self.spawn(self._keep_alive())
            self._stack = stack.pop_all()
        self._admission.start()
        self._drain_begun = self._lifespan_awaited = False
        self._loop, self._process, self._thread = asyncio.get_running_loop(), os.getpid(), threading.get_ident()
        self._started_at = time.monotonic()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_accepting()
        for subscriber in list(self._delivery):
            subscriber.close(CloseReason.DRAIN, subscriber.dialect.bye(CloseReason.DRAIN, self.retry()))
        self._started_at = self._loop = None
        self._has_stopped = True
        try:
            await close_stack(self._stack, kind, error, trace)
        finally:
            for subscriber in list(self._delivery):
                subscriber.cut()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that the hub owns: it ends with the hub, and its failure is the hub's."""
        task = self._tasks.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    def _cancel_tasks(self) -> None:
        for task in self._running:
            task.cancel()

    @property
    def lifespan(self) -> Callable[[object], AbstractAsyncContextManager[None]]:
        """For ``Starlette(lifespan=hub.lifespan)``: the hub runs as long as the app."""
        self._lifespan_awaited = True  # so that a server that sends no lifespan events is not taken for a missing line
        return self._live

    @asynccontextmanager
    async def _live(self, app: object) -> AsyncIterator[None]:
        async with self:
            yield

    def check_started(self) -> None:
        """Raises HubNotStarted, which names the missing line, the server that does not start it, or that it has
        stopped.
        """
        if self._started_at is None:
            raise self._not_started()

    def _not_started(self) -> HubNotStarted:
        if self._has_stopped:
            return HubNotStarted(STOPPED)
        return HubNotStarted(NO_LIFESPAN if self._lifespan_awaited else NOT_STARTED)

    def _check_here(self) -> None:
        """Raises HubNotStarted, and RuntimeError in another loop than the hub's, which would hear of nothing until it
        turns for another reason.
        """
        self.check_started()
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(ELSEWHERE if os.getpid() == self._process else FORKED)

    # Publishing

    async def publish(self, data: object, **options: Unpack[PublishOptions]) -> Receipt:
        """Publish to every subscriber, or on one or several topics to those whose filter matches.

        ``data`` goes out as it is when it is a str, else as JSON (``sse_app.payload``). ``to`` and ``exclude`` name
        clients; an empty list of topics, or of clients in ``to``, is refused, since it is not everyone. With the same
        ``idempotency_key`` and publication again within the idempotency window nothing is published, and the answer is
        the same. Returns when the log has it. Raises BadInput, Unavailable; then nobody sees it.
        """
        self._check_here()
        return await self._publish(Draft.compose(data, body_max=self._body_max, **options))

    async def publish_draft(self, draft: Draft) -> Receipt:
        """Publish a draft, which is checked already."""
        self._check_here()
        return await self._publish(draft)

    async def _publish(self, draft: Draft) -> Receipt:
        key, before = draft.idempotency_key, self._delivered
        position = await self.broker.publish(draft)
        if key is not None and (known := self._receipts.get(key)) and known[0] == position:
            return Receipt(position, known[1], self.broker.durability)
        if position.epoch != before.epoch or position.offset > before.offset:  # else its key was used before our start
            self.totals.published += 1
        subscribers = self._delivery.count(draft)
        if key is not None:
            self._remember(key, position, subscribers)
        return Receipt(position, subscribers, self.broker.durability)

    def publish_threadsafe(
        self, data: object, *, timeout: float | None = 10.0, **options: Unpack[PublishOptions]
    ) -> Receipt:
        """``publish`` for code in another thread (a sync view, a worker): blocks until the log has it.

        Takes what ``publish`` takes. Raises what it raises, TimeoutError after ``timeout`` seconds, and RuntimeError
        when called from the hub's own thread, which it would block for ever, or in a forked child, where no hub runs.
        """
        loop = self._loop
        if loop is None:
            raise self._not_started()
        if os.getpid() != self._process:
            raise RuntimeError(FORKED)
        if self._thread == threading.get_ident():
            raise RuntimeError(
                "publish_threadsafe() was called in the hub's own event loop; use `await hub.publish(...)`."
            )
        return asyncio.run_coroutine_threadsafe(self.publish(data, **options), loop).result(timeout)

    def _remember(self, key: str, position: Position, subscribers: int) -> None:
        self._receipts[key] = position, subscribers
        if len(self._receipts) > 10_000:
            del self._receipts[next(iter(self._receipts))]

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a publisher's request as open while this is entered: a drain waits for it. Raises Draining."""
        self.check_started()
        with self._admission.publisher():
            yield

    # Delivering

    async def _follow(self, tail: Tail) -> None:
        async for announced in tail:
            if not announced or announced[0].position != self._delivered.next():
                await self._read_again()
            for publications in pieces(announced):
                await _outside_tasks(self._deliver(publications))
            if self._delivered.offset - self._swept >= self._sweep_step:
                self._swept = self._delivered.offset
                await self._move_cursors(list(self._delivery))

    async def _read_again(self) -> None:
        """Let everyone read on from the log: the tail began another epoch, or left publications out."""
        self._delivered = await self.broker.top()
        self._delivery.forget_newest()
        await _outside_tasks(in_steps(Subscriber.fall_behind, list(self._delivery)))

    def _deliver(self, publications: Sequence[Publication]) -> Iterator[None]:
        """Offer a piece of what the log announced to all whom it is for, in steps."""
        yield from self._delivery.deliver(publications)
        self._delivered = publications[-1].position
        self._quiet.set()

    # Subscribing

    @asynccontextmanager
    async def subscribe(
        self,
        *topics: str,
        after: Position | str | bytes | None = None,
        last: int | None = None,
        since: float | None = None,
        client: str | None = None,
    ) -> AsyncIterator[Subscriber]:
        """One stream of the publications that match any of these topic filters, all without one.

        ``after`` resumes behind an SSE id; without it, ``last`` first gives the newest that many, ``since`` what was
        published since that Unix time. ``client`` is the subscriber's stable name, else one is made.
        Raises InvalidTopic, InvalidClient, InvalidSince, Draining, Overloaded.
        """
        subscriber = await self.join(topics, after=after, last=last, since=since, client=client)
        reason = CloseReason.GONE
        try:
            yield subscriber
        except Exception:
            reason = CloseReason.ERROR
            raise
        finally:
            self.leave(subscriber, reason)

    async def join(
        self,
        topics: Iterable[str] = (),
        *,
        after: Position | str | bytes | None = None,
        last: int | None = None,
        since: float | None = None,
        client: str | None = None,
    ) -> Subscriber:
        """``subscribe`` for a stream that outlives the call: whoever has the subscriber must see to its ``leave``."""
        self._check_here()
        asked = Asked(after, last, since)
        filter = TopicFilter.parse(names("topic", topics, InvalidTopic))
        name = f"c-{secrets.token_hex(6)}" if client is None else check_client(client)
        self._admission.check_subscriber()
        filter = self._delivery.shared(filter, NATIVE)
        subscriber = Subscriber(self.broker, self.totals, filter, name, *self._queue_limits, self._spawner)
        subscriber.turn = self._beat
        self._delivery.add(subscriber)
        self._beats[self._beat][subscriber] = None
        self._count_subscribers(+1)
        self.totals.connected += 1
        try:
            await self._joining.begin(subscriber, asked)
        except BaseException:
            self.leave(subscriber, CloseReason.GONE)
            raise
        return subscriber

    def leave(self, subscriber: Subscriber, reason: CloseReason) -> None:
        """The stream has ended; ``reason`` counts unless the hub itself ended it."""
        self._delivery.remove(subscriber)
        del self._beats[subscriber.turn][subscriber]
        self._count_subscribers(-1)
        self.totals.closed[subscriber.closing or reason] += 1
        subscriber.release()
        self._quiet.set()

    def _count_subscribers(self, change: int) -> None:
        self.totals.subscribers += change
        self.broker.subscribers_here = self.totals.subscribers

    def retry(self) -> int:
        """A reconnection time in milliseconds."""
        return random.randint(*self._retry)

    # Keeping alive

    async def _keep_alive(self) -> None:
        """Send each subscriber a heartbeat once in ``heartbeat`` seconds."""
        while True:
            await asyncio.sleep(self._heartbeat / BEATS)
            if self.broker.outdated:
                self.begin_drain()  # its subscribers come back to a node that reads what a newer version writes
            self._beat = (self._beat + 1) % BEATS
            turn = list(self._beats[self._beat])
            await self._move_cursors(turn)
            await _outside_tasks(in_steps(Subscriber.beat, turn))
            self.totals.heartbeats += len(turn)

    async def _move_cursors(self, subscribers: list[Subscriber]) -> None:
        """Move those that hear little, before what lies behind their position is trimmed and ends in a gap.

        A cursor in the older half of the log is moved. Everybody is looked at each time a quarter of the log is new,
        so it still lies in the log when its client comes back.
        """
        oldest = (await self.broker.oldest()).offset
        top = self._delivered
        held = top.offset - oldest
        self._sweep_step = max(CURSOR_STEP, held // 4)
        safe = min(oldest + held // 2, top.offset - CURSOR_STEP + 1)
        endangered = [subscriber for subscriber in subscribers if subscriber.position.offset < safe]
        if endangered:
            await _outside_tasks(in_steps(lambda subscriber: subscriber.offer_cursor(top), endangered))

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
        """``drain`` for who cannot wait for it."""
        if self.started and not self._drain_begun:
            self._drain_begun = True
            self.stop_accepting()
            self.spawn(self.drain())

    async def drain(self, window: float | None = None) -> None:
        """End all streams in order, within ``window`` seconds (default: the hub's ``drain``).

        First the publishers' open requests are answered and what they published is delivered; then each stream ends
        with its queue, a ``bye`` and a clean close, spread over the window so that the clients do not all come back
        at once.
        """
        self._check_here()
        self._drain_begun = True
        self.stop_accepting()
        window = self.drain_window if window is None else window
        loop = asyncio.get_running_loop()
        end = loop.time() + window
        with suppress(TimeoutError):  # a publisher that hangs must not cost the readers their bye
            async with asyncio.timeout(window * (1 - SPREAD)):
                await self._until(lambda: not self._admission.open_requests)
                top = await self.broker.top()
                await self._until(lambda: self._delivered.offset >= top.offset)
        with suppress(TimeoutError):  # whoever could not take the rest is cut off with the connection
            async with asyncio.timeout_at(end):
                await self._close_all((end - loop.time()) * SPREAD)
                await self._until(lambda: not self.totals.subscribers)

    async def _close_all(self, seconds: float) -> None:
        subscribers = list(self._delivery)
        random.shuffle(subscribers)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for index, subscriber in enumerate(subscribers):
            due = begun + seconds * index / len(subscribers)
            if due - loop.time() > 0.01:  # a hundred steps a second are smooth enough
                await asyncio.sleep(due - loop.time())
            subscriber.close(CloseReason.DRAIN, subscriber.dialect.bye(CloseReason.DRAIN, self.retry()))

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._quiet.clear()
            await self._quiet.wait()

    # Looking in

    def __len__(self) -> int:
        """How many subscribers are connected here."""
        return self.totals.subscribers

    def __bool__(self) -> bool:
        return True  # without subscribers it is a hub all the same

    @property
    def started(self) -> bool:
        return self._started_at is not None

    async def stats(self) -> dict[str, object]:
        """What ``GET /stats`` answers, as JSON types. Publications to named clients are left out of ``last``,
        ``recent``.
        """
        self._check_here()
        recent, trouble = await self._recent()
        totals = self.totals + self.siblings
        groups = sorted(self._delivery.groups, key=lambda group: len(group.members), reverse=True)
        return {
            "subscribers": self.totals.subscribers + self.broker.subscribers_elsewhere,
            "here": self.totals.subscribers,
            "filters": [{"topics": group.filter.shown, "subscribers": len(group.members)} for group in groups[:RECENT]],
            "last": notices.describe(recent[-1]) if recent else None,
            "recent": [publication.summary() for publication in recent],
            "totals": totals.as_dict(),
            "lagging": totals.lagging,
            "top": str(await self.broker.top()),
            "oldest": str((await self.broker.oldest()).next()),
            "durable": self.broker.durability,
            "trouble": trouble,
            "draining": self.draining,
            "uptime": round(time.monotonic() - (self._started_at or 0.0), 1),
        }

    async def _recent(self) -> tuple[Sequence[Publication], str | None]:
        """The newest publications, and what is wrong with the log just now."""
        try:
            self.broker.check()
            return await self.broker.newest(RECENT, TopicFilter(), Audience()), None
        except BrokerError as error:
            return (), str(error)

    def gauges(self) -> dict[str, float]:
        """The states that ``GET /metrics`` shows beside the totals."""
        return {
            "filters": len(self._delivery.groups),
            "draining": self.draining,
            "log_top_offset": self._delivered.offset,
            "subscribers_elsewhere": self.broker.subscribers_elsewhere,
            "bad_envelopes": self.broker.bad_envelopes,
        }


async def _outside_tasks(steps: Iterator[None]) -> None:
    """Take these steps one by one in turns of the loop, none of them inside a task.

    What writes to a foreign server starts its ``send``. A deadline in there would take the task that it finds for its
    own, and cancel it: the hub's. Outside of tasks it fails at once, and with it that one stream.
    """
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def step() -> None:
        if done.done():
            return  # the hub has been stopped
        try:
            next(steps)
        except StopIteration:
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)
        else:
            loop.call_soon(step)

    loop.call_soon(step)
    await done
