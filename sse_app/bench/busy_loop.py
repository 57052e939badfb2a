"""The CPU time of the load itself, and a loop that never sleeps."""

import asyncio
import time

from sse_app.bench.tally import Tally


class BusyLoop:
    """Counts the CPU time of this process; with `busy` its event loop runs without ever sleeping.

    A busy loop needs a core of its own. Without it each delivery has to wake an idle core, and the server pays for that
    (measured: up to half its rate).
    """

    def __init__(self, tally: Tally, busy: bool) -> None:
        self._tally = tally
        self._idle = 0  # ns of turns in which nothing came
        self._calls = 0
        self._last = time.monotonic_ns()
        self._next = asyncio.get_running_loop().call_soon(self._turn) if busy else None

    def spent(self) -> int:
        """Return ns of CPU so far, without the turns of the loop in which nothing came."""
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
        now, calls = time.monotonic_ns(), self._tally.calls
        if calls == self._calls:
            self._idle += now - self._last
        self._calls, self._last = calls, now
