"""The log in memory: a ring bounded by count, bytes and age. One process; a new epoch every time it is made."""

import asyncio
import hashlib
import secrets
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from itertools import takewhile
from operator import attrgetter
from types import TracebackType
from typing import NamedTuple, Self

from sse_app.brokers import Page, Tail
from sse_app.brokers.tail import QueuedTail
from sse_app.errors import KeyReused
from sse_app.events import Event, encode
from sse_app.publication import Audience, Draft, Durability, Position, Publication
from sse_app.topics import TopicFilter

PAGE_COUNT = 256  # publications looked at for one page of a replay
PAGE_BYTES = 256 * 1024  # and bytes in it, so that no reader holds more than that
KEYS_MAX = 100_000  # idempotency keys that are remembered at once, some 30 MB
OVERHEAD = 400  # bytes of a publication beside its frame, measured with sys.getsizeof on CPython 3.11

# In the list until it is cut, in place of what was trimmed, whose bytes must not wait for that.
_TRIMMED = Publication(Position("", 0), "", (), b"", float("-inf"))


def open_url(url: str, **settings: float) -> "MemoryBroker":
    return MemoryBroker(**settings)  # type: ignore[arg-type]


class _Keyed(NamedTuple):
    digest: bytes
    position: Position
    expires: float


class MemoryBroker:
    """``history`` publications, ``history_bytes`` bytes and ``history_age`` seconds at most; the oldest go first.

    Ages and the idempotency window (seconds) are measured on ``clock``, which never jumps; publications are stamped
    with ``wall`` time, held back from falling, so that a clock set back cannot reorder them.
    """

    durability: Durability = "none"
    bad_envelopes = 0  # nobody else writes here

    def __init__(
        self,
        *,
        history: int = 10_000,
        history_bytes: int = 64 * 1024 * 1024,
        history_age: float = 24 * 3600,
        idempotency_window: float = 300,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._limits = (history, history_bytes, history_age)
        self._window = idempotency_window
        self._clock, self._wall = clock, wall
        self._epoch = secrets.token_hex(6)
        self._log: list[Publication] = []
        self._appended: list[float] = []  # when, on the clock; beside _log
        self._start = 0  # index of the oldest one still held: cutting the list's head each time would move the rest
        self._top = 0
        self._bytes = 0
        self._trimmed_time = float("-inf")  # of the newest publication that was trimmed
        self._latest: dict[str, int] = {}  # topic, "" for none: offset of the newest publication on it
        self._keys: dict[str, _Keyed] = {}
        self._tails: list[QueuedTail] = []
        self.subscribers_here = self.subscribers_elsewhere = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    async def publish(self, draft: Draft) -> Position:
        # No await in here: between the look at the key and the append nobody else may come.
        key = draft.idempotency_key
        if key is None:
            return self._append(draft)
        self._forget_old_keys()
        content = draft.event, draft.topics, sorted(draft.to), sorted(draft.exclude)
        digest = hashlib.sha256(repr(content).encode()).digest()
        known = self._keys.get(key)
        if known is None:
            if len(self._keys) >= KEYS_MAX:
                del self._keys[next(iter(self._keys))]
            position = self._append(draft)
            self._keys[key] = _Keyed(digest, position, self._clock() + self._window)
            return position
        if known.digest != digest:
            raise KeyReused("This Idempotency-Key came with another publication before; use a new key for a new one.")
        return known.position

    def _append(self, draft: Draft) -> Position:
        position = Position(self._epoch, self._top + 1)
        event, topics = draft.event, draft.topics
        frame = encode(Event(event.data, event.type, str(position)))
        newest = max(self._trimmed_time, self._log[-1].time) if self._log else self._trimmed_time
        publication = Publication(
            position, event.type, topics, frame, max(newest, self._wall()), draft.to, draft.exclude
        )
        self._top += 1
        self._log.append(publication)
        self._appended.append(self._clock())
        self._bytes += len(frame) + OVERHEAD
        for topic in topics or ("",):
            self._latest[topic] = self._top
        self._trim()
        for tail in self._tails:
            tail.announce((publication,))
        return position

    def _forget_old_keys(self) -> None:
        now = self._clock()
        # In the order they came, which is the order they expire.
        for key in list(takewhile(lambda key: self._keys[key].expires <= now, self._keys)):
            del self._keys[key]

    def _trim(self) -> None:
        count, size, age = self._limits
        horizon = self._clock() - age
        while (held := len(self._log) - self._start) and (
            held > count or (self._bytes > size and held > 1) or self._appended[self._start] < horizon
        ):
            gone = self._log[self._start]
            self._log[self._start] = _TRIMMED
            self._bytes -= len(gone.frame) + OVERHEAD
            self._trimmed_time = gone.time
            for topic in gone.topics or ("",):
                if self._latest.get(topic) == gone.position.offset:
                    del self._latest[topic]
            self._start += 1
        if self._start > 64 and self._start * 2 > len(self._log):
            del self._log[: self._start], self._appended[: self._start]
            self._start = 0

    @property
    def _oldest(self) -> int:
        """The offset of the oldest publication held, or the next one's."""
        return self._top - (len(self._log) - self._start) + 1

    def _slice(self, first: int, last: int) -> Sequence[Publication]:
        base = self._start - self._oldest
        return self._log[base + first : base + last + 1]

    def check(self) -> None:
        return None

    async def top(self, *, fresh: bool = False) -> Position:
        return Position(self._epoch, self._top)

    async def oldest(self) -> Position:
        self._trim()
        return Position(self._epoch, self._oldest - 1)

    async def replay(self, after: Position, until: Position, filter: TopicFilter) -> Page:
        await asyncio.sleep(0)  # a long replay gives way to the others at every page
        self._trim()
        known = after.offset if after.epoch == self._epoch else 0
        start = max(known, self._oldest - 1)
        end, size, found = start, 0, []
        for publication in self._slice(start + 1, min(until.offset, start + PAGE_COUNT)):
            end = publication.position.offset
            if filter.matches(publication.topics):
                found.append(publication)
                size += len(publication.frame)
                if size >= PAGE_BYTES:
                    break
        return Page(Position(self._epoch, start), found, Position(self._epoch, end))

    async def newest(self, count: int, filter: TopicFilter, audience: Audience | None) -> Sequence[Publication]:
        self._trim()
        found: deque[Publication] = deque()
        offset = self._newest_offset(filter)
        while len(found) < count and offset >= self._oldest:
            publication = self._log[self._start + offset - self._oldest]
            if publication.reaches(filter, audience):
                found.appendleft(publication)
            offset -= 1
        return found

    async def last(self, count: int, filter: TopicFilter, audience: Audience) -> tuple[Position, bool]:
        newest = await self.newest(count, filter, audience)
        offset = newest[0].position.offset - 1 if newest else self._top
        return Position(self._epoch, offset), len(newest) >= count

    def _newest_offset(self, filter: TopicFilter) -> int:
        """No publication above it matches: for plain topics known without a search."""
        if not filter.patterns or any("*" in pattern for pattern in filter.patterns):
            return self._top
        return max(self._latest.get(topic, 0) for topic in ("", *filter.patterns))

    async def since(self, time: float) -> tuple[Position, bool]:
        self._trim()
        index = bisect_left(self._log, time, lo=self._start, key=attrgetter("time"))
        return Position(self._epoch, self._oldest - 1 + index - self._start), time > self._trimmed_time

    def tail(self) -> Tail:
        return QueuedTail(self._tails, Position(self._epoch, self._top))
