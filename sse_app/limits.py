"""Limits on how often a thing may happen, for each address or user apart: GCRA, the leaky bucket as a meter.

It takes one float a key: the moment at which the key has its whole burst again (ITU-T I.371, there the theoretical
arrival time). Limits are those of one process: several workers allow several times as much.
"""

import re
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Self

from sse_app.address import bucket, is_public
from sse_app.errors import TooManyRequests

KEYS_MAX = 100_000  # in a table
STEPS = 8  # keys that are looked at to make room for a new one
SLACK = 0.001  # seconds: a sum of floats is not the product
COUNT_MAX = 1_000_000
EXPECTED = "a rate such as 30/m, 20/s or 10/s:50 with a burst of 50, or 0 for no limit"

_RATE = re.compile(r"(?P<count>[1-9][0-9]{0,6})/(?P<unit>[smh])(?::(?P<burst>[0-9]{1,7}))?")
_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, slots=True)
class Rate:
    """``count`` times in a ``unit`` (``s``, ``m``, ``h``), evenly spread but for a ``burst`` at once. With a count of 0
    it is no limit, and false. Raises ValueError.
    """

    count: int
    unit: str = "s"
    burst: int = 1

    def __post_init__(self) -> None:
        if self.unit not in _UNITS or not (0 <= self.count <= COUNT_MAX and 1 <= self.burst <= COUNT_MAX):
            raise ValueError(EXPECTED)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the rate of ``30/m``, whose burst is its count, of ``10/s:50``, or of ``0``. Raises ValueError."""
        if text == "0":
            return cls(0)
        match = _RATE.fullmatch(text)
        if match is None:
            raise ValueError(EXPECTED)
        count = int(match["count"])
        return cls(count, match["unit"], int(match["burst"] or count))

    @property
    def interval(self) -> float:
        """Seconds from one time to the next when they are evenly spread."""
        return _UNITS[self.unit] / self.count

    def __bool__(self) -> bool:
        return self.count > 0

    def __str__(self) -> str:
        burst = "" if self.burst == self.count else f":{self.burst}"
        return f"{self.count}/{self.unit}{burst}" if self else "0"


class Limiter:
    """A table of ``keys`` keys at most, each with the moment at which it has its whole burst again.

    A key that has it is spent: dropping it changes nothing. For each new key some others are looked at, in turn, and
    the spent ones dropped. When none was, and the table is full, the next in turn is dropped: it may have its burst
    early. Nobody is ever refused for the sake of another.
    """

    def __init__(self, keys: int = KEYS_MAX, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys, self._clock = keys, clock
        self._full_at: dict[Hashable, float] = {}
        self._order = deque[Hashable]()  # the keys of the table, each once; those to be looked at next are first

    def __len__(self) -> int:
        return len(self._full_at)

    def wait(self, key: Hashable, rate: Rate) -> float:
        """Return after how many seconds a key may take again, 0 when it may now."""
        now = self._clock()
        wait = self._full_at.get(key, now) - now - (rate.burst - 1) * rate.interval
        return wait if wait > SLACK else 0.0

    def take(self, key: Hashable, rate: Rate) -> float:
        """Count one time for a key and return 0; return ``wait``, and count nothing, when that is over its rate."""
        if wait := self.wait(key, rate):
            return wait
        now = self._clock()
        if key not in self._full_at:
            self._make_room(now)
            self._order.append(key)
        self._full_at[key] = max(now, self._full_at.get(key, now)) + rate.interval
        return 0.0

    def _make_room(self, now: float) -> None:
        for _ in range(min(STEPS, len(self._order))):
            key = self._order.popleft()
            if self._full_at[key] > now:
                self._order.append(key)
            else:
                del self._full_at[key]
        if len(self._full_at) >= self._keys:
            del self._full_at[self._order.popleft()]


class Failures:
    """The limit on credentials that do not count, for each address: who guesses is soon answered without a look.

    Without ``proxies`` that are trusted an address that is not public may be that of a proxy, so that a limit would be
    one for everyone: it has none.
    """

    def __init__(self, rate: Rate, *, proxies: bool, limiter: Limiter | None = None) -> None:
        self._rate, self._proxies = rate, proxies
        self._limiter = Limiter() if limiter is None else limiter  # an empty one is false

    def check(self, address: str) -> None:
        """Raises TooManyRequests for an address with too many failures. Call it before a credential is verified, and
        not for one that is known to be good.
        """
        if self._counts(address) and (wait := self._limiter.wait(bucket(address), self._rate)):
            raise TooManyRequests(
                "Too many credentials from this address did not count (failed_credentials). Wait as long as Retry-After"
                " says, and send one that does.",
                wait,
            )

    def count(self, address: str) -> None:
        """Count a credential that failed. Not for an outage, in which nobody knows whether it was good."""
        if self._counts(address):
            self._limiter.take(bucket(address), self._rate)

    def _counts(self, address: str) -> bool:
        return bool(self._rate) and (self._proxies or is_public(address))
