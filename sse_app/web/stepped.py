"""A subscriber's writer on any ASGI server: it starts the server's ``send`` and steps it once, without a task."""

import asyncio
from collections.abc import Awaitable, Generator
from functools import partial
from typing import Any

from starlette.types import Send

from sse_app.batch import Batch
from sse_app.coroutines import Suspended, step
from sse_app.subscriber import Subscriber


async def goes_by_steps(send: Send) -> bool:
    """Return True when ``send`` ends in one step outside of a task. It is tried with an empty piece of the body.

    A middleware may wrap ``send`` in code that needs a current task: asyncio.timeout(), anyio's cancel scopes.
    """
    tried: asyncio.Future[Awaitable[None] | bool] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(_try, send, tried)
    outcome = await tried
    if isinstance(outcome, bool):
        return outcome
    await outcome
    return False


def _try(send: Send, tried: "asyncio.Future[Awaitable[None] | bool]") -> None:
    outcome: Awaitable[None] | bool
    try:
        rest = step(send({"type": "http.response.body", "body": b"", "more_body": True}))
        outcome = rest if isinstance(rest, Suspended) else True
    except Exception:
        outcome = False
    if not tried.done():
        tried.set_result(outcome)


class SteppedWriter:
    """A writer that starts the server's ``send`` and steps it once.

    When the socket takes the bytes, ``send`` returns in that step. Else it stays suspended, and a task runs the rest of
    it: one task for each full socket, none for the others. ``ending`` is the timeout around the wait of the stream's
    request for its client's disconnect; ``end`` expires it, once at most. Then the request sends the ``farewell``.
    """

    __slots__ = ("_rest", "_send", "_subscriber", "ending", "farewell")

    def __init__(self, subscriber: Subscriber, send: Send) -> None:
        self._subscriber, self._send = subscriber, send
        self.ending: asyncio.Timeout | None = None
        self.farewell = b""
        self._rest: asyncio.Task[bool] | None = None  # of the last send that had to wait

    def write(self, batch: Batch) -> bool:
        steps = self._send({"type": "http.response.body", "body": batch.data, "more_body": True}).__await__()
        try:
            waiting = next(steps)
        except StopIteration:
            return True
        except Exception:
            self.end()  # the peer is gone
            return False
        self._rest = self._subscriber.spawn(_sent(Suspended(waiting, steps)))
        self._rest.add_done_callback(partial(self._finished, steps))  # called also if it is cancelled unstarted
        return False

    def _finished(self, steps: Generator[Any, Any, None], rest: asyncio.Task[bool]) -> None:
        steps.close()
        if not rest.cancelled() and rest.result():
            self._subscriber.resume()
        else:
            self.end()  # the peer is gone, or the hub has stopped

    async def finished(self) -> None:
        if self._rest is not None:
            await asyncio.wait([self._rest])

    def end(self, farewell: bytes = b"") -> None:
        ending, self.ending = self.ending, None
        if ending is not None:
            self.farewell = farewell
            ending.reschedule(0)

    def stop(self) -> None:
        """Cancel the rest of a ``send``. Called when the request is over."""
        self.ending = None
        if self._rest is not None:
            self._rest.cancel()


async def _sent(suspended: Suspended[None]) -> bool:
    try:
        await suspended
    except Exception:
        return False
    return True
