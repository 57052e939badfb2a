"""Draining: a planned stop that ends every stream in order, and lets no acknowledged publication go unseen."""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress

from sse_app.admission import Admission
from sse_app.brokers import Broker
from sse_app.delivery import Delivery
from sse_app.metrics import Totals
from sse_app.subscriber import CloseReason, Subscriber

SPREAD = 0.8  # of the drain's window: closes are spread over it, the rest is for the last to finish
STEP = 0.01  # seconds: a hundred steps a second are smooth enough


class Drain:
    """Ends the streams of a node. ``retry`` gives a client's reconnection time in milliseconds.

    ``note_progress`` is to be called whenever something has ended, or was delivered, that a drain may wait for.
    """

    def __init__(
        self,
        broker: Broker,
        delivery: Delivery,
        totals: Totals,
        admission: Admission,
        retry: Callable[[], int],
    ) -> None:
        self._broker, self._delivery, self._totals, self._admission = broker, delivery, totals, admission
        self._retry = retry
        self.reset()

    def reset(self) -> None:
        """Be ready for another run of the node, perhaps in another event loop."""
        self._progress = asyncio.Event()

    def note_progress(self) -> None:
        self._progress.set()

    async def run(self, window: float) -> None:
        """End all streams within ``window`` seconds. No publisher may be admitted any more.

        First the publishers' open requests are answered and what they published is delivered; then each stream ends
        with its queue, a ``bye`` and a clean close, spread over the window so that the clients do not all come back
        at once.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + window
        with suppress(TimeoutError):  # a publisher that hangs must not cost the readers their bye
            async with asyncio.timeout(window * (1 - SPREAD)):
                await self._until(lambda: not self._admission.open_requests)
                top = await self._broker.top()
                await self._until(lambda: self._delivery.position.offset >= top.offset)
        with suppress(TimeoutError):  # whoever could not take the rest is cut off with the connection
            async with asyncio.timeout_at(end):
                await self._close_over((end - loop.time()) * SPREAD)
                await self._until(lambda: not self._totals.subscribers)

    async def _close_over(self, seconds: float) -> None:
        subscribers = list(self._delivery)
        random.shuffle(subscribers)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for index, subscriber in enumerate(subscribers):
            wait = begun + seconds * index / len(subscribers) - loop.time()
            if wait > STEP:
                await asyncio.sleep(wait)
            self._close(subscriber)

    def close_all(self) -> None:
        """Close every stream at once; each still ends with its queue and a ``bye``."""
        for subscriber in list(self._delivery):
            self._close(subscriber)

    def _close(self, subscriber: Subscriber) -> None:
        subscriber.close(CloseReason.DRAIN, subscriber.dialect.bye(CloseReason.DRAIN, self._retry()))

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._progress.clear()
            await self._progress.wait()
