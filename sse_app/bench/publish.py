"""The publishers of a run."""

import asyncio
import math
import time
from collections.abc import Sequence
from typing import cast

from sse_app.bench.load import Load
from sse_app.bench.tally import Tally
from sse_app.bench.target import Target
from sse_app.bench.wire import Answers, event_data, request

FAILURES_MAX = 100  # failed POSTs after which publishing stops
NS = 1_000_000_000


class Poster(asyncio.Protocol):
    """A kept connection that POSTs one request at a time, and waits for an answer for `patience` seconds."""

    def __init__(self, answers: Answers, patience: float) -> None:
        self._answers, self._patience = answers, patience
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[int] | None = None
        self._asked = 0.0  # the loop's time of the last request
        self._timer: asyncio.TimerHandle | None = None
        self._buffer = b""

    @property
    def usable(self) -> bool:
        """True while a request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def post(self, sent: bytes) -> asyncio.Future[int]:
        """Send a request. The future gets the status of its answer, or an `OSError` when there is none."""
        assert self._transport
        self._buffer = b""
        self._answer, self._asked = self._loop.create_future(), self._loop.time()
        # One timer for the connection, which looks back: setting one for each request costs more than the request does.
        self._timer = self._timer or self._loop.call_later(self._patience, self._give_up)
        self._transport.write(sent)
        return self._answer

    def close(self) -> None:
        if self._transport:
            self._transport.abort()
        if self._timer:
            self._timer.cancel()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not subclasses

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            status = self._answers.status(self._buffer)
        except ValueError as error:
            self._fail(ConnectionError(str(error)))
            return
        if status is not None and self._answer and not self._answer.done():
            self._answer.set_result(status)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or ConnectionError("connection closed before the answer"))

    def _give_up(self) -> None:
        self._timer = None
        if not self._answer or self._answer.done():
            return
        left = self._asked + self._patience - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._give_up)
        else:
            self._fail(TimeoutError("no answer in time"))

    def _fail(self, error: Exception) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_exception(error)


class Publishers:
    """The publishers of a load: as many POSTs at a time as the load allows, paced by its workload."""

    def __init__(self, load: Load, target: Target, tally: Tally) -> None:
        self._load, self._target, self._tally = load, target, tally
        self._head = target.publish(load.key, several=load.batch > 1)
        self._answers = Answers()
        self._idle: list[Poster] = []
        self._started = self._ends = self._taken = 0
        self._most: float = 0
        self.stalled = False

    async def publish(self, seconds: float, events: int | None = None) -> None:
        """Publish for `seconds` or `events`, then wait until every subscriber has every event or nothing more comes."""
        self._idle = [await self._dial() for _ in range(self._load.posts)]
        self._most = math.inf if events is None else events
        self._taken, self._started = 0, time.monotonic_ns()
        self._ends = self._started + int(seconds * NS)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._load.posts):
                    group.create_task(self._work())
            if not self.stalled:
                self.stalled = not await self._tally.until_owed(1, self._load.patience) and self._tally.owed > 0
        finally:
            for poster in self._idle:
                poster.close()

    async def _work(self) -> None:
        while (sent := await self._next_due()) is not None:
            await self._post([self._tally.publish() for _ in range(self._load.batch)], sent)

    async def _next_due(self) -> int | None:
        """Wait until the next event may be sent. Return the time from which its latency counts, None at the end."""
        if self._load.paced:
            moment = self._started + int(self._taken * NS / self._load.rate)
        elif self._load.window is None or await self._tally.until_owed(self._load.window, self._load.patience):
            moment = time.monotonic_ns()
        else:
            self.stalled = self._tally.owed > 0
            return None
        if moment >= self._ends or self._taken >= self._most or self._tally.failed_posts >= FAILURES_MAX:
            return None
        self._taken += self._load.batch
        await _until(moment)
        return moment

    async def _post(self, numbers: Sequence[int], sent: int) -> None:
        tally, size = self._tally, self._load.data_size
        poster = self._idle.pop()
        try:
            if not poster.usable:
                poster = await self._dial()
            asked = time.monotonic_ns()
            status = await poster.post(request(self._head, [event_data(tally.run, n, sent, size) for n in numbers]))
            if 200 <= status < 300:
                tally.answered(asked, time.monotonic_ns())
            else:
                tally.fail(numbers, f"POST answered {status}")
        except OSError as error:
            poster.close()
            tally.fail(numbers, f"POST: {error}")
        finally:
            self._idle.append(poster)

    async def _dial(self) -> Poster:
        return await dial(self._target, self._answers, self._load.patience)


async def dial(target: Target, answers: Answers, patience: float) -> Poster:
    """Return a publisher's connection, just opened. Raises `ConnectionError` when that takes longer than `patience`."""

    def poster() -> Poster:
        return Poster(answers, patience)

    try:
        async with asyncio.timeout(patience):
            _, opened = await asyncio.get_running_loop().create_connection(poster, target.address, target.port)
    except TimeoutError:
        raise ConnectionError("no connection in time") from None
    return opened


async def _until(moment: int) -> None:
    """Sleep until a time of the monotonic clock. uvloop's timers have 1 ms; the last one is spent in a busy loop."""
    while (left := moment - time.monotonic_ns()) > 0:  # noqa: ASYNC110 (a time, not an event)
        await asyncio.sleep(max(0.0, left / NS - 0.001))
