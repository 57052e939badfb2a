"""Expiry: the streams whose grants end, by the second in which they do.

A grant ends by the wall clock, which is read each second, so that a clock that is set forward or back is followed.
"""

import asyncio
import math
import time
from collections.abc import Callable

from sse_app.delivery import END, in_steps
from sse_app.grants import OPEN
from sse_app.steps import outside_tasks
from sse_app.subscriber import Subscriber


class Expiry:
    """Calls ``end`` for each subscriber that was added, within a second after its grant has expired.

    A grant is good for ``max_age`` seconds at most, then its client has to show its credential again; None, and for the
    app's own streams: for as long as it says itself. To add and to remove a subscriber takes the same time for any
    number of them.
    """

    def __init__(
        self, end: Callable[[Subscriber], None], *, max_age: float | None = None, wall: Callable[[], float] = time.time
    ) -> None:
        self._end, self._max_age, self._wall = end, max_age, wall
        self._due: dict[int, set[Subscriber]] = {}  # by the second of Unix time, all of them after _looked
        self._looked = int(wall())  # the second up to which all were ended

    def __len__(self) -> int:
        """Return the number of subscribers that are to be ended some time."""
        return sum(map(len, self._due.values()))

    def add(self, subscriber: Subscriber) -> None:
        """Add a subscriber, if its grant expires at all."""
        expires, max_age = subscriber.grant.expires, self._max_age
        if expires is None and (max_age is None or subscriber.grant is OPEN):  # that is nobody's credential
            return
        now = self._wall()
        ends = math.inf if max_age is None else now + max_age
        if expires is not None and expires < ends:
            ends = expires
        # The clock may have been set back since it was last read, and is followed from there on.
        next_one = min(self._looked, int(now)) + 1
        subscriber.ends_at = max(math.ceil(ends), next_one)
        self._due.setdefault(subscriber.ends_at, set()).add(subscriber)

    def remove(self, subscriber: Subscriber) -> None:
        """Remove a subscriber, whether it was added or not."""
        if subscriber.ends_at is not None:
            due = self._due[subscriber.ends_at]
            due.remove(subscriber)
            if not due:
                del self._due[subscriber.ends_at]
            subscriber.ends_at = None

    def take_due(self) -> list[Subscriber]:
        """Remove and return the subscribers whose second has come."""
        now = int(self._wall())
        passed = range(min(self._looked, now) + 1, now + 1)
        self._looked = now
        seconds = passed if len(passed) <= len(self._due) else [second for second in self._due if second <= now]
        taken = [subscriber for second in seconds for subscriber in self._due.pop(second, ())]
        for subscriber in taken:
            subscriber.ends_at = None
        return taken

    async def run(self) -> None:
        """End subscribers when it is time, for ever."""
        while True:
            await asyncio.sleep(1.0 - self._wall() % 1.0)
            if due := self.take_due():
                await outside_tasks(in_steps(self._end, due, END))
