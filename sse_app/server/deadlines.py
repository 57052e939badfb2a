"""Deadlines of many connections with one timer: a timer for each request would cost as much as its parsing."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Calls ``on_late`` for who was started and not stopped within ``seconds``. All have the same time, so they are in
    the order of their ends.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, on_late: Callable[[T], None]) -> None:
        self._loop, self._seconds, self._on_late = loop, seconds, on_late
        self._begun = OrderedDict[T, float]()  # a dict looks for its first key past all that were deleted
        self._timer: asyncio.TimerHandle | None = None

    def start(self, who: T) -> None:
        """Give someone ``seconds`` from now on."""
        self._begun.pop(who, None)
        self._begun[who] = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._look)

    def stop(self, who: T) -> None:
        self._begun.pop(who, None)

    def left(self, who: T) -> float | None:
        """Return the seconds that someone has left, None who was not started."""
        begun = self._begun.get(who)
        return None if begun is None else max(0.0, begun + self._seconds - self._loop.time())

    def _look(self) -> None:
        self._timer = None
        horizon = self._loop.time() - self._seconds
        while self._begun:
            who, begun = next(iter(self._begun.items()))
            if begun > horizon:
                self._timer = self._loop.call_at(begun + self._seconds, self._look)
                return
            del self._begun[who]
            self._on_late(who)
