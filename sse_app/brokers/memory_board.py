"""The board in memory: entries that end by themselves, of one process, which has no other nodes."""

import asyncio
import heapq
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import NamedTuple

from sse_app.brokers.board import check_entry, check_key, check_kind, check_message, check_value
from sse_app.errors import LogFull

# Each kind has bounds of its own: tickets, of which any user may have many, leave room for revocations.
ENTRIES_MAX = 100_000  # of a kind
BYTES_MAX = 48 * 1024 * 1024  # of a kind
OVERHEAD = 300  # bytes of an entry beside its key and value, measured with tracemalloc on CPython 3.11
SLOT = 10.0  # seconds: entries that end in the same ones are swept together
SWEPT_AT_ONCE = 8  # entries that have ended, for each one that is written: sweeping never falls behind
LISTED_PER_STEP = 2_000  # entries that are listed in one turn of the loop, some 1 ms
FULL = "The board in memory is full; nothing was kept. Try again when some of its entries have ended."


class MemoryBoard:
    """The board in memory: at most 100,000 entries and 48 MiB of each kind, until the process ends.

    Lifetimes are measured on ``clock``, which never jumps.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.name = secrets.token_hex(6)
        self._entries = Entries(clock)

    async def claim(self, key: str, value: bytes, ttl: float) -> bytes | None:
        check_entry(key, value, ttl)
        standing = self._entries.get(key)
        if standing is None:
            self._entries.write(key, value, ttl)
        return standing

    async def put(self, key: str, value: bytes, ttl: float, *, durable: bool = False) -> None:
        check_entry(key, value, ttl)
        self._entries.write(key, value, ttl)

    async def replace(self, key: str, old: bytes, new: bytes, ttl: float) -> bool:
        check_entry(key, new, ttl)
        check_value(old)
        if self._entries.get(key) != old:
            return False
        self._entries.write(key, new, ttl)
        return True

    async def get(self, key: str) -> bytes | None:
        check_key(key)
        return self._entries.get(key)

    async def delete(self, key: str) -> None:
        check_key(key)
        self._entries.remove(key)

    async def list(self, kind: str) -> dict[str, bytes]:
        check_kind(kind)
        found = dict[str, bytes]()
        keys = self._entries.keys(kind)
        for start in range(0, len(keys), LISTED_PER_STEP):
            if start:
                await asyncio.sleep(0)
            for key in keys[start : start + LISTED_PER_STEP]:
                if (value := self._entries.get(key)) is not None:
                    found[key] = value
        return found

    async def send(self, message: bytes) -> None:
        check_message(message)

    async def messages(self) -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""  # never reached: it makes this an iterator

    def nodes(self) -> Collection[str]:
        return ()


class _Entry(NamedTuple):
    value: bytes
    ends: float


class Entries:
    """Entries with lifetimes, within the bounds of memory. Writing one sweeps some of those that have ended."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kinds: defaultdict[str, dict[str, _Entry]] = defaultdict(dict)
        self._bytes: defaultdict[str, int] = defaultdict(int)  # of each kind
        # The keys that end in each slot of time, and the slots as a heap: those that end next come first.
        self._ending: dict[int, set[str]] = {}
        self._slots: list[int] = []

    def __len__(self) -> int:
        return sum(map(len, self._kinds.values()))

    def keys(self, kind: str) -> Sequence[str]:
        """Return the keys of a kind, also those of entries that have ended and are not swept yet."""
        return list(self._kinds[kind])

    def get(self, key: str) -> bytes | None:
        entry = self._kinds[_kind(key)].get(key)
        return entry.value if entry is not None and entry.ends > self._clock() else None

    def write(self, key: str, value: bytes, ttl: float) -> None:
        """Raises LogFull, and changes nothing, beyond the bounds."""
        self._sweep()
        self._check_room(key, value)
        self.remove(key)
        entry = self._kinds[_kind(key)][key] = _Entry(value, self._clock() + ttl)
        self._bytes[_kind(key)] += _size(key, value)
        slot = _slot(entry.ends)
        if slot not in self._ending:
            self._ending[slot] = set()
            heapq.heappush(self._slots, slot)
        self._ending[slot].add(key)

    def _check_room(self, key: str, value: bytes) -> None:
        of_kind = self._kinds[_kind(key)]
        before = of_kind.get(key)
        count, size = len(of_kind) + 1, self._bytes[_kind(key)] + _size(key, value)
        if before is not None:
            count, size = count - 1, size - _size(key, before.value)
        if count > ENTRIES_MAX or size > BYTES_MAX:
            raise LogFull(FULL)

    def remove(self, key: str) -> None:
        entry = self._kinds[_kind(key)].pop(key, None)
        if entry is not None:
            self._bytes[_kind(key)] -= _size(key, entry.value)
            self._ending[_slot(entry.ends)].discard(key)

    def _sweep(self) -> None:
        """Remove some entries of the slots that have passed, the oldest first."""
        now, swept = _slot(self._clock()), 0
        while swept < SWEPT_AT_ONCE and self._slots and self._slots[0] < now:
            keys = self._ending[self._slots[0]]
            if keys:
                self.remove(next(iter(keys)))
                swept += 1
            else:
                del self._ending[heapq.heappop(self._slots)]


def _kind(key: str) -> str:
    return key.partition(".")[0]


def _slot(time: float) -> int:
    return int(time / SLOT)


def _size(key: str, value: bytes) -> int:
    return len(key) + len(value) + OVERHEAD
