"""The log in memory: a ring bounded by count, bytes and age. One process; a new epoch every time it is made."""

import asyncio
import hashlib
import secrets
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import accumulate, islice, takewhile
from operator import attrgetter
from types import TracebackType
from typing import NamedTuple, Self, Unpack

from sse_app.brokers import Page, Tail
from sse_app.brokers.limits import PAGE_BYTES, PAGE_COUNT, Limits, LogSettings
from sse_app.brokers.offsets import TopicOffsets, footprint
from sse_app.brokers.tail import QueuedTail
from sse_app.errors import KeyReused, LogFull
from sse_app.publication import Audience, Draft, Durability, Position, Publication
from sse_app.topics import TopicFilter

KEYS_BYTES = 128 * 1024 * 1024  # of the idempotency keys within the window: some 300,000
KEY_OVERHEAD = 400  # bytes of a key beside its text, measured with tracemalloc on CPython 3.11
NEAR = 64  # publications, the newest: looked at before the topics of a filter are, where most of them match
FEW = 128  # look-ups in search of a filter's topics that nobody has to wait for
MANY = 2_000  # look-ups in one step of the loop, some 2 ms
WIDE = 128  # topics of a filter, above which the log itself is searched for them
STRETCH = 2_048  # publications in one step of such a search, less than 1 ms

# In the list until it is cut, in place of what was trimmed, whose bytes must not wait for that.
_TRIMMED = Publication(Position("", 0), "", (), b"", float("-inf"))


def open_url(url: str, **settings: Unpack[LogSettings]) -> "MemoryBroker":
    return MemoryBroker(**settings)


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
    bad_envelopes, outdated = 0, False  # nobody else writes here

    def __init__(
        self,
        *,
        history: int | None = None,
        history_bytes: int | None = None,
        history_age: float | None = None,
        idempotency_window: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._limits = Limits.of(history, history_bytes, history_age, idempotency_window)
        self._clock, self._wall = clock, wall
        self._epoch = secrets.token_hex(6)
        self._log: list[Publication] = []
        self._appended: list[float] = []  # when, on the clock; beside _log
        self._start = 0  # index of the oldest one still held: cutting the list's head each time would move the rest
        self._top = 0
        self._bytes = 0
        self._trimmed_time = float("-inf")  # of the newest publication that was trimmed
        self._offsets = TopicOffsets()
        self._turn = asyncio.Lock()  # one search at a time: the loop has one step of one between two others
        self._keys: dict[str, _Keyed] = {}
        self._keys_bytes = 0
        self._tails: list[QueuedTail] = []
        self.subscribers_here = self.subscribers_elsewhere = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    async def publish(self, draft: Draft) -> Position:
        # No await in here: another publication with the same key must not come between the check and the append.
        key = draft.idempotency_key
        if key is None:
            return self._append(draft)
        self._forget_old_keys()
        content = draft.event, draft.topics, sorted(draft.to), sorted(draft.exclude)
        digest = hashlib.sha256(repr(content).encode()).digest()
        known = self._keys.get(key)
        if known is None:
            self._check_room_for_key(key)
            position = self._append(draft)
            self._keys[key] = _Keyed(digest, position, self._clock() + self._limits.window)
            self._keys_bytes += len(key) + KEY_OVERHEAD
            return position
        if known.digest != digest:
            raise KeyReused("This Idempotency-Key came with another publication before; use a new key for a new one.")
        return known.position

    def _append(self, draft: Draft) -> Position:
        position = Position(self._epoch, self._top + 1)
        topics, body = draft.topics, draft.encode()
        newest = max(self._trimmed_time, self._log[-1].time) if self._log else self._trimmed_time
        time = max(newest, self._wall())
        publication = Publication(
            position, draft.event.type, topics, body, time, draft.to, draft.exclude, draft.is_json
        )
        self._top += 1
        self._log.append(publication)
        self._appended.append(self._clock())
        self._bytes += footprint(publication)
        self._offsets.append(topics, self._top)
        self._trim()
        for tail in self._tails:
            tail.announce((publication,))
        return position

    def _forget_old_keys(self) -> None:
        now = self._clock()
        # Keys stand in the order they were used, which is the order they expire.
        for key in list(takewhile(lambda key: self._keys[key].expires <= now, self._keys)):
            del self._keys[key]
            self._keys_bytes -= len(key) + KEY_OVERHEAD

    def _check_room_for_key(self, key: str) -> None:
        if self._keys_bytes + len(key) + KEY_OVERHEAD > KEYS_BYTES:  # forgetting one would publish its retry again
            raise LogFull(
                "There are as many idempotency keys within idempotency_window as the log in memory holds; publish again"
                " later, shorten the window, or take a broker that keeps them elsewhere."
            )

    def _trim(self) -> None:
        count, size, age, _ = self._limits
        horizon = self._clock() - age
        while (held := len(self._log) - self._start) and (
            held > count or (self._bytes > size and held > 1) or self._appended[self._start] < horizon
        ):
            gone = self._log[self._start]
            self._log[self._start] = _TRIMMED
            self._bytes -= footprint(gone)
            self._trimmed_time = gone.time
            self._offsets.trim(gone.topics, gone.position.offset)
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

    def _at(self, offset: int) -> Publication:
        return self._log[self._start + offset - self._oldest]

    def _before(self, until: int, count: int) -> Sequence[Publication]:
        """The publications held among so many up to an offset, newest first."""
        until = max(until, self._oldest - 1)  # it may have been trimmed since somebody began to search
        return self._slice(max(self._oldest, until - count + 1), until)[::-1]

    def check(self) -> None:
        return None

    async def top(self, *, fresh: bool = False) -> Position:
        return Position(self._epoch, self._top)

    async def oldest(self) -> Position:
        self._trim()
        return Position(self._epoch, self._oldest - 1)

    async def replay(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page:
        await asyncio.sleep(0)  # a long replay gives way to the others at every page
        start, last = self._range(after, until.offset)
        if topic_filter.unrestricted:
            last = min(last, start + PAGE_COUNT)
            return self._cut(start, self._slice(start + 1, last), last)
        if last - start <= PAGE_COUNT:
            return self._page(start, last, lambda item: topic_filter.matches(item.topics))
        topics = await self._topics(topic_filter)
        if not isinstance(topics, set) or len(topics) <= WIDE:
            return self._page_on(topics, *self._range(after, last))
        async with self._turn:
            await asyncio.sleep(0)
            start, last = self._range(after, last)
            return self._page(start, min(last, start + STRETCH), partial(_is_on, topics))

    def _range(self, after: Position, until: int) -> tuple[int, int]:
        """The offsets behind which a page begins and with which it ends at the latest."""
        self._trim()
        known = after.offset if after.epoch == self._epoch else 0
        start = max(known, self._oldest - 1)
        return start, max(start, min(until, self._top))

    def _page(self, start: int, last: int, matches: Callable[[Publication], bool]) -> Page:
        """The page of what matches up to ``last``, each publication looked at."""
        return self._cut(start, list(islice(filter(matches, self._slice(start + 1, last)), PAGE_COUNT)), last)

    def _page_on(self, topics: Iterable[str], start: int, last: int) -> Page:
        """The page of what is on these topics up to ``last``, found without a look at anything else."""
        offsets = self._offsets.oldest(topics, start, PAGE_COUNT)
        return self._cut(start, [self._at(offset) for offset in offsets if offset <= last], last)

    def _cut(self, start: int, found: Sequence[Publication], last: int) -> Page:
        """The page of all that was found up to ``last``: shorter where that is as much as a page may have."""
        sizes = list(accumulate(len(publication.body) for publication in found))
        count = min(bisect_left(sizes, PAGE_BYTES) + 1, PAGE_COUNT)
        end = found[count - 1].position.offset if len(found) >= count else last
        return Page(Position(self._epoch, start), found[:count], Position(self._epoch, end))

    async def newest(self, count: int, topic_filter: TopicFilter, audience: Audience | None) -> Sequence[Publication]:
        self._trim()
        until, found = self._top, list[Publication]()
        topics = None if topic_filter.unrestricted else self._offsets.topics(topic_filter, FEW)
        if topics is None and not topic_filter.unrestricted:
            found += [item for item in self._before(until, NEAR) if item.reaches(topic_filter, audience)]
            until -= NEAR
            if len(found) < count:
                topics = await self._topics(topic_filter)
        while len(found) < count and until >= self._oldest:
            further, until = await self._further_back(topics, until, count)
            found += [item for item in further if item.visible_to(audience)]
        return found[:count][::-1]

    async def _further_back(
        self, topics: tuple[str, ...] | set[str] | None, until: int, count: int
    ) -> tuple[Sequence[Publication], int]:
        """The next publications on these topics (None: on all), newest first, and the offset to go on from."""
        if topics is None:
            stretch = min(max(count, NEAR), STRETCH)
            found = self._before(until, stretch)
        elif not isinstance(topics, set) or len(topics) <= WIDE:
            stretch = min(count, PAGE_COUNT)
            offsets = self._offsets.newest(topics, until, stretch)
            found = [self._at(offset) for offset in offsets if offset >= self._oldest]
            if len(found) < stretch:
                return found, 0
            stretch = until + 1 - found[-1].position.offset
        else:
            stretch = STRETCH
            async with self._turn:
                await asyncio.sleep(0)
                found = [item for item in self._before(until, stretch) if _is_on(topics, item)]
        if len(found) < count:
            await asyncio.sleep(0)
        return found, until - stretch

    async def _topics(self, topic_filter: TopicFilter) -> tuple[str, ...] | set[str]:
        """The topics that a filter matches, found in as many steps of the loop as that takes."""
        found = self._offsets.topics(topic_filter, FEW)
        if found is not None:
            return found
        async with self._turn:
            while True:
                found = self._offsets.topics(topic_filter, MANY)
                if found is not None:
                    return found
                await asyncio.sleep(0)

    async def last(self, count: int, topic_filter: TopicFilter, audience: Audience) -> tuple[Position, bool]:
        newest = await self.newest(count, topic_filter, audience)
        offset = newest[0].position.offset - 1 if newest else self._top
        return Position(self._epoch, offset), len(newest) >= count

    async def since(self, time: float) -> tuple[Position, bool]:
        self._trim()
        index = bisect_left(self._log, time, lo=self._start, key=attrgetter("time"))
        return Position(self._epoch, self._oldest - 1 + index - self._start), time > self._trimmed_time

    def tail(self) -> Tail:
        return QueuedTail(self._tails, Position(self._epoch, self._top))


def _is_on(topics: set[str], publication: Publication) -> bool:
    return not publication.topics or not topics.isdisjoint(publication.topics)
