"""The log in memory: a ring bounded by count, bytes and age. One process; a new epoch every time it is made."""

import asyncio
import hashlib
import secrets
import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from operator import attrgetter
from types import TracebackType
from typing import NamedTuple, Self, Unpack

from sse_app.brokers import Extent, Page, Tail
from sse_app.brokers.board import Board
from sse_app.brokers.limits import LOOK_UPS_PER_STEP, PAGE_COUNT, Limits, LogSettings, matches_per_step
from sse_app.brokers.memory_board import MemoryBoard
from sse_app.brokers.offsets import BROADCAST, TopicOffsets, footprint
from sse_app.brokers.tail import QueuedTail
from sse_app.drafts import Drafts
from sse_app.errors import KEY_REUSED, KeyReused, LogFull
from sse_app.publication import Audience, Draft, Durability, Position, Publication
from sse_app.topics import TopicFilter

KEYS_BYTES = 128 * 1024 * 1024  # of all idempotency keys within the window: some 300,000 keys
KEY_OVERHEAD = 400  # bytes of a key beside its text, measured with tracemalloc on CPython 3.11
ENDED_AT_ONCE = 1_000  # keys that are forgotten, or publications that are too old, in one step of the loop: 2 ms
SCAN_NEWEST = 64  # of the newest publications: read first, since that is enough for a filter that matches most
LOOK_UPS_AT_ONCE = 128  # in search of a filter's topics, without a turn of the loop
FILTER_TOPICS_MAX = 128  # topics of a filter; with more of them publications are read one by one
SCAN_PER_STEP = 2_048  # publications that are read one by one in one turn of the loop, less than 1 ms

# In the place of a publication that was trimmed, until the list is cut: its bytes are free at once.
_TRIMMED = Publication(Position("", 0), "", (), b"", float("-inf"))


def open_url(url: str, **settings: Unpack[LogSettings]) -> "MemoryBroker":
    return MemoryBroker(**settings)


class _Keyed(NamedTuple):
    digest: bytes
    position: Position
    expires: float


class MemoryBroker:
    """The log in memory: at most ``history`` publications, ``history_bytes`` bytes and ``history_age`` seconds.

    The oldest publications are trimmed first. Ages and ``idempotency_window`` (seconds) are measured on ``clock``,
    which never jumps. Publications are stamped with ``wall`` time, never with an earlier one than the publication
    before, so that a clock that is set back cannot reorder them.
    """

    durability: Durability = "none"
    steppable = True
    bad_envelopes, outdated = 0, False  # only this process writes here

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
        self._appended: list[float] = []  # the times on the clock, for each of _log
        self._start = 0  # index of the oldest one held: to cut off the head at each trim would move all the others
        self._top = 0
        self._bytes = 0
        self._trimmed_time = float("-inf")  # of the newest publication that was trimmed
        self._offsets = TopicOffsets()
        self._searching = asyncio.Lock()  # one search steps at a time, so that the loop waits for one step only
        self._keys = OrderedDict[str, _Keyed]()  # in the order in which they were used, which is that of their ends
        self._keys_bytes = 0
        self._tails: list[QueuedTail] = []
        self.subscribers_here = self.subscribers_elsewhere = 0
        self.board: Board = MemoryBoard(clock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    async def publish(self, draft: Draft) -> Position:
        return self._publish(draft)

    def append(self, draft: Draft) -> Position | None:
        return self._publish(draft)

    def _publish(self, draft: Draft) -> Position:
        key = draft.idempotency_key
        if key is None:
            return self._append(draft)
        self._forget_old_keys()
        digest = _digest_of(*_content(draft))
        known = self._known(key)
        if known is None:
            self._check_space_for_keys((key,))
            position = self._append(draft)
            self._remember({key: _Keyed(digest, position, self._clock() + self._limits.window)})
            return position
        if known.digest != digest:
            raise KeyReused(KEY_REUSED)
        return known.position

    async def publish_many(self, drafts: Drafts) -> Sequence[Position]:
        # No await in here: nothing else must be appended between the check of a key and the append.
        if (key := drafts.idempotency_key) is not None:
            return self._append_once(drafts, key)
        if all(draft.idempotency_key is None for draft in drafts):
            return [publication.position for publication in self._append_all(drafts)]
        positions, fresh, keys = self._places(drafts)
        self._check_space_for_keys(keys)
        self._append_all(fresh)
        self._remember(keys)
        return positions

    def _append_once(self, drafts: Drafts, key: str) -> Sequence[Position]:
        """Append a batch with a key of its own, unless it was appended before."""
        self._forget_old_keys()
        digest = _digest_of("batch", *map(_content, drafts))
        known = self._known(key)
        if known is None:
            self._check_space_for_keys((key,))
            first = Position(self._epoch, self._top + 1)
            self._append_all(drafts)
            self._remember({key: _Keyed(digest, first, self._clock() + self._limits.window)})
        elif known.digest != digest:
            raise KeyReused(KEY_REUSED)
        else:
            first = known.position
        return [Position(first.epoch, first.offset + index) for index in range(len(drafts))]

    def _places(self, drafts: Drafts) -> tuple[list[Position], list[Draft], dict[str, _Keyed]]:
        """Return the position of each draft, those that are to be appended, and their keys. Raises KeyReused."""
        self._forget_old_keys()
        positions, fresh, keys = list[Position](), list[Draft](), dict[str, _Keyed]()
        expires, following = self._clock() + self._limits.window, Position(self._epoch, self._top + 1)
        for draft in drafts:
            position = following
            if (key := draft.idempotency_key) is not None:
                digest = _digest_of(*_content(draft))
                known = keys.get(key) or self._known(key) or keys.setdefault(key, _Keyed(digest, following, expires))
                if known.digest != digest:
                    raise KeyReused(KEY_REUSED)
                position = known.position
            positions.append(position)
            if position is following:
                fresh.append(draft)
                following = following.next()
        return positions, fresh, keys

    def _append_all(self, drafts: Iterable[Draft]) -> Sequence[Publication]:
        encoded = [(draft, draft.encode()) for draft in drafts]  # before anything is appended: it may raise
        time, now = self._next_time(), self._clock()
        publications = [self._store(draft, body, time, now) for draft, body in encoded]
        self._trim()
        if publications:
            for tail in self._tails:
                tail.announce(publications)
        return publications

    def _append(self, draft: Draft) -> Position:
        publication = self._store(draft, draft.encode(), self._next_time(), self._clock())
        self._trim()
        for tail in self._tails:
            tail.announce((publication,))
        return publication.position

    def _next_time(self) -> float:
        """The time of the next publication: now, or that of the newest if the clock was set back."""
        newest = max(self._trimmed_time, self._log[-1].time) if self._log else self._trimmed_time
        return max(newest, self._wall())

    def _store(self, draft: Draft, body: bytes, time: float, now: float) -> Publication:
        position = Position(self._epoch, self._top + 1)
        topics = draft.topics
        publication = Publication(
            position, draft.event.type, topics, body, time, draft.to, draft.exclude, draft.is_json
        )
        self._top += 1
        self._log.append(publication)
        self._appended.append(now)
        self._bytes += footprint(publication)
        self._offsets.append(topics, self._top)
        return publication

    def _known(self, key: str) -> _Keyed | None:
        """Return what has this key, None once its window has ended."""
        known = self._keys.get(key)
        if known is not None and known.expires <= self._clock():
            self._forget(key)
            return None
        return known

    def _forget_old_keys(self) -> None:
        """Forget keys whose window has ended; after a quiet hour that may be all, so the next calls forget the rest."""
        now = self._clock()
        for _ in range(ENDED_AT_ONCE):
            if not self._forget_oldest(now):
                break

    def _forget_oldest(self, now: float) -> bool:
        """Forget the oldest key, and return True, if its window has ended."""
        oldest = next(iter(self._keys), None)
        if oldest is None or self._keys[oldest].expires > now:
            return False
        self._forget(oldest)
        return True

    def _forget(self, key: str) -> None:
        del self._keys[key]
        self._keys_bytes -= _size_of((key,))

    def _remember(self, keys: Mapping[str, _Keyed]) -> None:
        self._keys.update(keys)
        self._keys_bytes += _size_of(keys)

    def _check_space_for_keys(self, keys: Collection[str]) -> None:
        now, most = self._clock(), KEYS_BYTES - _size_of(keys)
        while self._keys_bytes > most and self._forget_oldest(now):
            pass
        # No key is dropped within its window to make room: its retry would be published again.
        if keys and self._keys_bytes > most:
            raise LogFull(
                "There are as many idempotency keys within idempotency_window as the log in memory holds; publish again"
                " later, shorten the window, or take a broker that keeps them elsewhere."
            )

    def _trim(self) -> None:
        count, size, age, _ = self._limits
        horizon, most = self._clock() - age, self._start + ENDED_AT_ONCE
        while (held := len(self._log) - self._start) and (
            held > count
            or (self._bytes > size and held > 1)
            or (self._appended[self._start] < horizon and self._start < most)
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

    def _between(self, first: int, last: int) -> Sequence[Publication]:
        base = self._start - self._oldest
        return self._log[base + first : base + last + 1]

    def _at(self, offset: int) -> Publication:
        return self._log[self._start + offset - self._oldest]

    def _back_from(self, until: int, count: int) -> Sequence[Publication]:
        """The publications held among the ``count`` up to an offset, newest first."""
        until = max(until, self._oldest - 1)  # the offset may have been trimmed since the search began
        return self._between(max(self._oldest, until - count + 1), until)[::-1]

    def check(self) -> None:
        return None

    async def top(self, *, fresh: bool = False) -> Position:
        return Position(self._epoch, self._top)

    async def oldest(self) -> Position:
        self._trim()
        return Position(self._epoch, self._oldest - 1)

    def extent(self) -> Extent:
        self._trim()
        held = len(self._log) - self._start
        age = self._clock() - self._appended[self._start] if held else 0.0
        return Extent.of(Position(self._epoch, self._oldest - 1), held, self._limits, self._bytes, age)

    async def replay(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page:
        await asyncio.sleep(0)  # a long replay gives way to the others at every page
        if (page := self.at_hand(after, until, topic_filter)) is not None:
            return page
        topics = await self._topics(topic_filter)
        if not isinstance(topics, set) or len(topics) <= FILTER_TOPICS_MAX:
            return self._page_by_topic(topics, *self._range(after, until.offset))
        async with self._searching:
            await asyncio.sleep(0)
            start, last = self._range(after, until.offset)
            return self._page(start, min(last, start + SCAN_PER_STEP), partial(_is_on, topics))

    def at_hand(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page | None:
        start, last = self._range(after, until.offset)
        if topic_filter.unrestricted:
            last = min(last, start + PAGE_COUNT)
            return Page.cut(Position(self._epoch, start), self._between(start + 1, last), last, PAGE_COUNT)
        if last - start <= PAGE_COUNT:
            last = min(last, start + matches_per_step(topic_filter))
            return self._page(start, last, lambda item: topic_filter.matches(item.topics))
        topics = self._offsets.topics(topic_filter, LOOK_UPS_AT_ONCE)
        if topics is None or len(topics) > FILTER_TOPICS_MAX:
            return None
        return self._page_by_topic(topics, start, last)

    def _range(self, after: Position, until: int) -> tuple[int, int]:
        """The offset behind which a page begins, and the last one that it may have."""
        self._trim()
        known = after.offset if after.epoch == self._epoch else 0
        start = max(known, self._oldest - 1)
        return start, max(start, min(until, self._top))

    def _page(self, start: int, last: int, matches: Callable[[Publication], bool]) -> Page:
        """The page of the publications up to ``last`` that match, which are read one by one."""
        found = list(islice(filter(matches, self._between(start + 1, last)), PAGE_COUNT))
        return Page.cut(Position(self._epoch, start), found, last, PAGE_COUNT)

    def _page_by_topic(self, topics: Iterable[str], start: int, last: int) -> Page:
        """The page of the publications up to ``last`` on these topics, by the index."""
        offsets = self._offsets.oldest(topics, start, PAGE_COUNT)
        found = [self._at(offset) for offset in offsets if offset <= last]
        return Page.cut(Position(self._epoch, start), found, last, PAGE_COUNT)

    async def newest(self, count: int, topic_filter: TopicFilter, audience: Audience | None) -> Sequence[Publication]:
        found = list[Publication]()
        async for piece in self._newest_first(count, topic_filter, audience):
            found += piece
        return found[::-1]

    async def last(self, count: int, topic_filter: TopicFilter, audience: Audience) -> tuple[Position, bool]:
        offset, found = self._top, 0
        async for piece in self._newest_first(count, topic_filter, audience):
            if piece:
                offset, found = piece[-1].position.offset - 1, found + len(piece)
        return Position(self._epoch, offset), found >= count

    async def _newest_first(
        self, count: int, topic_filter: TopicFilter, audience: Audience | None
    ) -> AsyncIterator[Sequence[Publication]]:
        """At most ``count`` publications that match and these readers may see, newest first, in pieces."""
        self._trim()
        until = self._top
        topics = None if topic_filter.unrestricted else self._offsets.topics(topic_filter, LOOK_UPS_AT_ONCE)
        if topics is None and not topic_filter.unrestricted:
            step = min(SCAN_NEWEST, matches_per_step(topic_filter))
            end = until - SCAN_NEWEST
            while until > end and count:
                found = [item for item in self._back_from(until, step) if item.reaches(topic_filter, audience)][:count]
                yield found
                until, count = until - step, count - len(found)
                if step < SCAN_NEWEST:
                    await asyncio.sleep(0)
            if count:
                topics = await self._topics(topic_filter)
        while count and until >= self._oldest:
            further, until = await self._further_back(topics, until, count)
            found = [item for item in further if item.visible_to(audience)][:count]
            yield found
            count -= len(found)

    async def _further_back(
        self, topics: tuple[str, ...] | set[str] | None, until: int, count: int
    ) -> tuple[Sequence[Publication], int]:
        """The next publications on these topics (None: on all), newest first, and the offset to go on from."""
        if topics is None:
            scanned = min(max(count, SCAN_NEWEST), SCAN_PER_STEP)
            found, further = self._back_from(until, scanned), until - scanned
        elif not isinstance(topics, set) or len(topics) <= FILTER_TOPICS_MAX:
            wanted = min(count, PAGE_COUNT)
            offsets = self._offsets.newest(topics, until, wanted)
            found = [self._at(offset) for offset in offsets if offset >= self._oldest]
            further = found[-1].position.offset - 1 if len(found) == wanted else 0
        else:
            async with self._searching:
                await asyncio.sleep(0)
                found = [item for item in self._back_from(until, SCAN_PER_STEP) if _is_on(topics, item)]
            further = until - SCAN_PER_STEP
        if further and len(found) < count:
            await asyncio.sleep(0)
        return found, further

    async def _topics(self, topic_filter: TopicFilter) -> tuple[str, ...] | set[str]:
        """The topics that a filter matches, found in as many turns of the loop as that takes."""
        found = self._offsets.topics(topic_filter, LOOK_UPS_AT_ONCE)
        if found is not None:
            return found
        async with self._searching:
            while True:
                found = self._offsets.topics(topic_filter, LOOK_UPS_PER_STEP)
                if found is not None:
                    return found
                await asyncio.sleep(0)

    async def since(self, time: float) -> tuple[Position, bool]:
        self._trim()
        index = bisect_left(self._log, time, lo=self._start, key=attrgetter("time"))
        return Position(self._epoch, self._oldest - 1 + index - self._start), time > self._trimmed_time

    def tail(self) -> Tail:
        return QueuedTail(self._tails, Position(self._epoch, self._top))


def _content(draft: Draft) -> tuple[object, ...]:
    return draft.event.type, draft.event.data, draft.topics, sorted(draft.to), sorted(draft.exclude)


def _digest_of(*content: object) -> bytes:
    return hashlib.sha256(repr(content).encode()).digest()


def _size_of(keys: Collection[str]) -> int:
    return sum(map(len, keys)) + len(keys) * KEY_OVERHEAD


def _is_on(topics: set[str], publication: Publication) -> bool:
    return not topics.isdisjoint(publication.topics or BROADCAST)
