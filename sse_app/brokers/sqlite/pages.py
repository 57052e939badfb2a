"""Reading the log in a SQLite file, at the same cost in a log of a million publications as in one of a hundred.

Offsets are consecutive and times never fall, so a position is found by its offset, a time by bisection; topics have an
index. For a filter with wildcards the next publications are read first, then the index is asked for the topics that it
matches. Everything waits for the disk: call it in a thread.
"""

import sqlite3
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import NamedTuple

from sse_app.brokers import Page
from sse_app.brokers.limits import PAGE_BYTES, PAGE_COUNT
from sse_app.brokers.sqlite.entries import COLUMNS, Row, is_understood, publication_of, split
from sse_app.brokers.sqlite.log import HOLES, State, only_row, read_state
from sse_app.brokers.sqlite.schema import version_of
from sse_app.publication import Audience, Position, Publication
from sse_app.topics import TopicFilter

SCAN = 2_000  # publications that are read one by one before the index is asked: some 3 ms
TOPICS_AT_ONCE = 400  # in one query; SQLite takes 500
AFTER_SLASH = chr(ord("/") + 1)  # texts that begin with `a/` are sorted between `a/` and `a0`
ABOVE_ALL_TEXT = b""  # SQLite sorts every blob behind every text


class _Found(NamedTuple):
    """Offsets that match, in order, and the offset that the search has reached."""

    offsets: Sequence[int]
    reached: int


class Reader:
    """One connection that reads. Raises sqlite3.Error."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._cached_topics: tuple[TopicFilter | None, int, Sequence[str]] = (None, 0, ())

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def _snapshot(self) -> Iterator[State]:
        self._connection.execute("BEGIN")
        try:
            yield read_state(self._connection)
        finally:
            self._connection.execute("ROLLBACK")

    def state(self) -> State:
        return read_state(self._connection)

    def version(self) -> int:
        return version_of(self._connection)

    def replay(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page:
        with self._snapshot() as state:
            known = after.offset if after.epoch == state.epoch else 0
            start = max(known, state.oldest)
            last = min(until.offset, state.top)
            found = self._matching(topic_filter, start + 1, last, PAGE_COUNT)
            publications, cut = self._load(state.epoch, found.offsets)
            end = publications[-1].position.offset if cut else max(start, found.reached)
            return Page(Position(state.epoch, start), publications, Position(state.epoch, end))

    def newest(self, count: int, topic_filter: TopicFilter, audience: Audience | None) -> Sequence[Publication]:
        with self._snapshot() as state:
            offsets = self._newest(count, topic_filter, audience, state)
            found: list[Publication] = []
            while len(found) < len(offsets):
                found += self._load(state.epoch, offsets[len(found) : len(found) + PAGE_COUNT])[0]
            return [publication for publication in found if not publication.lost]

    def last(self, count: int, topic_filter: TopicFilter, audience: Audience) -> tuple[Position, bool]:
        """Return the position before the newest ``count`` that these readers may see; False if there are fewer."""
        with self._snapshot() as state:
            offsets = self._newest(count, topic_filter, audience, state)
            return Position(state.epoch, offsets[0] - 1 if offsets else state.top), len(offsets) >= count

    def since(self, time: float) -> tuple[Position, bool]:
        with self._snapshot() as state:
            offsets = range(state.oldest + 1, state.top + 1)
            index = bisect_left(offsets, time, key=self._time)
            return Position(state.epoch, state.oldest + index), time > state.trimmed_time

    def _time(self, offset: int) -> float:
        (time,) = only_row(self._connection.execute("SELECT time FROM log WHERE offset = ?", (offset,)))
        return float(time)

    # Searching

    def _newest(self, count: int, topic_filter: TopicFilter, audience: Audience | None, state: State) -> Sequence[int]:
        """The offsets of the newest publications that match and that these readers may see, in order."""
        kept: list[int] = []
        last = state.top
        while len(kept) < count and last > state.oldest:
            found = self._matching(topic_filter, state.oldest + 1, last, count - len(kept), newest=True)
            hidden = self._hidden(found.offsets, audience)
            if found.offsets:
                hidden.update(self._not_understood(min(found.offsets), max(found.offsets)))
            kept += [offset for offset in found.offsets if offset not in hidden] if hidden else found.offsets
            last = found.reached - 1
        return kept[::-1]

    def _hidden(self, offsets: Sequence[int], audience: Audience | None) -> set[int]:
        """Those of these offsets whose publications are for other readers."""
        if audience is None or not offsets:
            return set()
        if isinstance(offsets, range):
            return set(self._not_for(f"BETWEEN {min(offsets)} AND {max(offsets)}", audience))
        pieces = (offsets[start : start + SCAN] for start in range(0, len(offsets), SCAN))
        return {offset for piece in pieces for offset in self._not_for(f"IN ({_listed(piece)})", audience)}

    def _not_for(self, where: str, audience: Audience) -> Iterator[int]:
        rows = self._connection.execute(
            'SELECT offset, "to", exclude FROM log INDEXED BY named'
            f" WHERE offset {where} AND (\"to\" <> '' OR exclude <> '')"
        )
        for offset, to, exclude in rows:
            if not audience.sees(frozenset(split(to)), frozenset(split(exclude))):
                yield offset

    def _matching(
        self, topic_filter: TopicFilter, first: int, last: int, count: int, *, newest: bool = False
    ) -> _Found:
        """At most ``count`` offsets that match between two: in order from the first, or back from the last."""
        if topic_filter.unrestricted:
            every = range(last, first - 1, -1)[:count] if newest else range(first, last + 1)[:count]
            return _Found(every, every[-1] if every else last)
        if topic_filter.plain is not None:
            return self._by_topic(topic_filter, topic_filter.plain, first, last, count, newest)
        near = self._scan(topic_filter, first, last, count, newest)
        if len(near.offsets) == count or near.reached == (first if newest else last):
            return near
        return self._by_topic(topic_filter, self._topics(topic_filter, last), first, last, count, newest)

    def _scan(self, topic_filter: TopicFilter, first: int, last: int, count: int, newest: bool) -> _Found:
        """Search the next SCAN publications one by one: enough for a filter that matches many of them."""
        order = "DESC" if newest else "ASC"
        rows = self._connection.execute(
            "SELECT offset, topics, version, crit FROM log"
            f" WHERE offset BETWEEN ? AND ? ORDER BY offset {order} LIMIT ?",
            (first, last, SCAN),
        )
        offsets: list[int] = []
        reached = last
        for offset, topics, version, crit in rows:
            reached = offset
            if topic_filter.matches(split(topics)) or not is_understood(version, crit):
                offsets.append(offset)
                if len(offsets) == count:
                    break
        return _Found(offsets, reached)

    def _topics(self, topic_filter: TopicFilter, last: int) -> Sequence[str]:
        """The topics up to an offset that a filter with wildcards matches."""
        known, upto, topics = self._cached_topics
        if known != topic_filter or upto < last:
            state = self.state()
            bounds = topic_filter.bounds
            found = {*bounds.topics, *chain.from_iterable(map(self._topics_beginning_with, bounds.prefixes))}
            topics = sorted(topic for topic in found if topic_filter.matches((topic,)))
            self._cached_topics = topic_filter, state.top, topics
        return topics

    def _topics_beginning_with(self, prefix: str) -> Iterator[str]:
        """Each topic with this prefix once, by a jump from one to the next in the index.

        The caller asks the filter which of them match: SQLite's GLOB takes exponential time for many asterisks.
        """
        end = prefix[:-1] + AFTER_SLASH if prefix else ABOVE_ALL_TEXT
        rows = self._connection.execute(
            "WITH RECURSIVE each(topic) AS (SELECT min(topic) FROM topics WHERE topic >= ?1 UNION ALL"
            " SELECT (SELECT min(topic) FROM topics WHERE topic > each.topic) FROM each WHERE each.topic < ?2)"
            " SELECT topic FROM each WHERE topic < ?2",
            (prefix, end),
        )
        return (topic for (topic,) in rows if topic)  # "" stands for publications without a topic

    def _by_topic(
        self, topic_filter: TopicFilter, topics: Sequence[str], first: int, last: int, count: int, newest: bool
    ) -> _Found:
        """Search publications on these topics, and those without a topic if they match too, by the index."""
        every = ("", *topics) if topic_filter.broadcasts else topics
        found: set[int] = set()
        for start in range(0, len(every), TOPICS_AT_ONCE):
            found.update(self._on_topics(every[start : start + TOPICS_AT_ONCE], first, last, count, newest))
        found.update(islice(self._not_understood(first, last, newest=newest), count))
        offsets = sorted(found, reverse=newest)[:count]
        return _Found(offsets, offsets[-1] if len(offsets) == count else first if newest else last)

    def _not_understood(self, first: int, last: int, *, newest: bool = False) -> Iterator[int]:
        """The offsets of rows that cannot be shown, whatever their topics: every reader is told of them."""
        rows = self._connection.execute(
            "SELECT offset, version, crit FROM log INDEXED BY uncommon WHERE offset BETWEEN ? AND ?"
            f" AND (crit IS NOT NULL OR version IS NOT NULL) ORDER BY offset {'DESC' if newest else 'ASC'}",
            (first, last),
        )
        return (offset for offset, version, crit in rows if not is_understood(version, crit))

    def _on_topics(self, topics: Sequence[str], first: int, last: int, count: int, newest: bool) -> Iterator[int]:
        order = "DESC" if newest else "ASC"
        each = (
            f"SELECT offset FROM (SELECT offset FROM topics WHERE topic = ? AND offset BETWEEN {first:d} AND {last:d}"
            f" ORDER BY offset {order} LIMIT {count:d})"
        )
        query = f"{' UNION '.join([each] * len(topics))} ORDER BY offset {order} LIMIT {count:d}"
        return (offset for (offset,) in self._connection.execute(query, topics))

    # Loading

    def _load(self, epoch: str, offsets: Sequence[int]) -> tuple[list[Publication], bool]:
        """Return the publications at these offsets, in order; True if PAGE_BYTES left some out."""
        if not offsets:
            return [], False
        rows = self._connection.execute(
            f"SELECT {COLUMNS} FROM log WHERE offset IN ({_listed(offsets)}) ORDER BY offset"
        )
        found: list[Publication] = []
        size = 0
        for row in map(Row._make, rows):
            found.append(publication_of(row, epoch))
            size += len(row.body)
            if size >= PAGE_BYTES:
                break
        if [item.position.offset for item in found] != list(offsets[: len(found) or 1]):
            raise sqlite3.DatabaseError(HOLES)  # rows were deleted by something else
        return found, len(found) < len(offsets)


def _listed(offsets: Sequence[int]) -> str:
    return ",".join(map(str, offsets))
