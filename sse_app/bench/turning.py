"""The CPU time of the load itself, and a loop that never sleeps."""

import asyncio
import time

from sse_app.bench.tally import Tally


class Turning:
    """Tells what this process spends; `busy` keeps its loop turning without ever sleeping.

    That needs a core of its own. An idle core has to be woken for each delivery, and the server pays for that
    (measured: up to half its rate).
    """

    def __init__(self, tally: Tally, busy: bool) -> None:
        self._tally = tally
        self._idle = 0  # ns of turns in which nothing came
        self._seen = 0
        self._last = time.monotonic_ns()
        self._next = asyncio.get_running_loop().call_soon(self._turn) if busy else None

    def spent(self) -> int:
        """ns of CPU so far; turns in which nothing came do not count."""
        if not self._next:
            return time.process_time_ns()
        self._count()
        return self._last - self._idle

    def stop(self) -> None:
        if self._next:
            self._next.cancel()

    def _turn(self) -> None:
        self._count()
        self._next = asyncio.get_running_loop().call_soon(self._turn)

    def _count(self) -> None:
        now, seen = time.monotonic_ns(), self._tally.calls
        if seen == self._seen:
            self._idle += now - self._last
        self._seen, self._last = seen, now
