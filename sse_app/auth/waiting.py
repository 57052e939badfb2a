"""Credentials whose check takes time: how many may wait for theirs, and how many tokens a turn of the loop checks.

A token takes 0.1 to 1 ms of CPU, of which a thread would spare the loop little. Checked a few in a turn, thousands of
new tokens at once leave the loop to all others in between.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sse_app.errors import Overloaded

WAITING_MAX = 200
PATIENCE = 5.0  # seconds that a caller waits
TOKENS_PER_TURN = 8  # each of 0.1 ms with RSA, of 1 ms with P-521


class Waiting:
    """The callers that wait for something, ``limit`` at a time, each for ``patience`` seconds at most."""

    def __init__(self, limit: int = WAITING_MAX, patience: float = PATIENCE) -> None:
        self.count = 0
        self._limit, self._patience = limit, patience

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait inside of this. Raises Overloaded when there is no place, and when it takes too long."""
        if self.count >= self._limit:
            raise Overloaded("Too many credentials are being checked just now; try again in a few seconds.")
        self.count += 1
        try:
            async with asyncio.timeout(self._patience):
                yield
        except TimeoutError:
            raise Overloaded("This credential could not be checked in time; try again in a few seconds.") from None
        finally:
            self.count -= 1


class Turns:
    """Turns of the event loop, each with room for so many pieces of work."""

    def __init__(self, per_turn: int = TOKENS_PER_TURN) -> None:
        self._per_turn = self._left = per_turn
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None  # that is to call _begin_turn

    async def take(self) -> None:
        """Return when there is room for one more piece of work in this turn, first come, first served."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._left = loop, self._per_turn
            loop.call_soon(self._begin_turn)
        if self._left:
            self._left -= 1
            return
        future = loop.create_future()
        self._waiting.append(future)
        await future

    def _begin_turn(self) -> None:
        self._left = self._per_turn
        while self._left and self._waiting:
            future = self._waiting.popleft()
            if not future.done():  # else its caller has gone
                future.set_result(None)
                self._left -= 1
        if self._left == self._per_turn:
            self._loop = None
        elif self._loop is not None:
            self._loop.call_soon(self._begin_turn)
