"""The board in memory: entries that end by themselves, of one process, which has no other nodes."""

import asyncio
import heapq
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import NamedTuple

from sse_app.brokers.board import check_entry, check_key, check_kind, check_message, check_value, kind_of
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
    """Entries with lifetimes, within the bounds of memory. Writing one sweeps some of those that have ended, of its own
    kind first.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kinds: defaultdict[str, _Kind] = defaultdict(_Kind)

    def __len__(self) -> int:
        return sum(len(kind.entries) for kind in self._kinds.values())

    def keys(self, kind: str) -> Sequence[str]:
        """Return the keys of a kind, also those of entries that have ended and are not swept yet."""
        return list(self._kinds[kind].entries)

    def get(self, key: str) -> bytes | None:
        entry = self._kind_of(key).entries.get(key)
        return entry.value if entry is not None and entry.ends > self._clock() else None

    def write(self, key: str, value: bytes, ttl: float) -> None:
        """Raises LogFull, and changes nothing, beyond the bounds."""
        kind, now = self._kind_of(key), self._clock()
        left = kind.sweep(now, SWEPT_AT_ONCE)
        for other in self._kinds.values():
            left = other.sweep(now, left)
        kind.write(key, _Entry(value, now + ttl))

    def remove(self, key: str) -> None:
        self._kind_of(key).remove(key)

    def _kind_of(self, key: str) -> "_Kind":
        return self._kinds[kind_of(key)]


class _Kind:
    """The entries of a kind, which have ``size`` bytes."""

    def __init__(self) -> None:
        self.entries: dict[str, _Entry] = {}
        self.size = 0
        # The keys that end in each slot of time, and the slots as a heap: those that end next come first.
        self._ending: dict[int, set[str]] = {}
        self._slots: list[int] = []

    def write(self, key: str, entry: _Entry) -> None:
        """Raises LogFull, and changes nothing, beyond the bounds."""
        before = self.entries.get(key)
        count, size = len(self.entries) + 1, self.size + _size(key, entry)
        if before is not None:
            count, size = count - 1, size - _size(key, before)
        if count > ENTRIES_MAX or size > BYTES_MAX:
            raise LogFull(FULL)
        self.remove(key)
        self.entries[key], self.size = entry, size
        slot = _slot(entry.ends)
        if slot not in self._ending:
            self._ending[slot] = set()
            heapq.heappush(self._slots, slot)
        self._ending[slot].add(key)

    def remove(self, key: str) -> None:
        entry = self.entries.pop(key, None)
        if entry is not None:
            self.size -= _size(key, entry)
            self._ending[_slot(entry.ends)].discard(key)

    def sweep(self, now: float, most: int) -> int:
        """Remove some entries of the slots that have passed, the oldest first. Return how many more it might have."""
        while most and self._slots and self._slots[0] < _slot(now):
            keys = self._ending[self._slots[0]]
            if keys:
                self.remove(keys.pop())  # its first would be looked for past all that were removed
                most -= 1
            else:
                del self._ending[heapq.heappop(self._slots)]
        return most


def _slot(time: float) -> int:
    return int(time / SLOT)


def _size(key: str, entry: _Entry) -> int:
    return len(key) + len(entry.value) + OVERHEAD
