"""The offsets of publications by topic: what a filter matches is found without a look at all that it does not match.

Each topic has the offsets of its publications, in order. A filter is first answered with topics: its own ones as they
are; for wildcards the topics within its bounds are tried, a bounded number at a call, and kept for who asks the same.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from sys import getsizeof

from sse_app.publication import Publication
from sse_app.topics import Filter

# The memory of a publication beside its body, and of each topic beside its text: measured with tracemalloc
# on CPython 3.11, for a topic on which nothing else is.
OVERHEAD = 550  # bytes
TOPIC_OVERHEAD = 150

AFTER_SLASH = chr(ord("/") + 1)  # what begins with `a/` stands between `a/` and `a0`
BUCKET = 512  # topics in one list of a sorted many
SEARCHES = 512  # filters whose topics are kept
SEARCHED_TOPICS = 200_000  # and topics of all of them, some 10 MB
NEW_TOPICS = 4_096  # that a search which was done before is brought up to date with; with more it begins anew

BROADCAST = ("",)  # in place of the topics of a publication that has none: every filter matches it


def footprint(publication: Publication) -> int:
    """The bytes that a publication takes in memory."""
    size = len(publication.body) + OVERHEAD
    for topic in publication.topics:
        size += getsizeof(topic) + TOPIC_OVERHEAD
    for names in (publication.to, publication.exclude):
        if names:
            size += getsizeof(names) + sum(map(getsizeof, names))
    return size


class SortedTexts:
    """Texts in order, in lists of a bounded length: one comes or goes in a microsecond, however many there are."""

    def __init__(self) -> None:
        self._buckets: list[list[str]] = []
        self._last: list[str] = []  # of each bucket

    def add(self, text: str) -> None:
        """Put in a text that is not in here."""
        if not self._buckets:
            self._buckets.append([])
            self._last.append(text)
        place = min(bisect_left(self._last, text), len(self._last) - 1)
        bucket = self._buckets[place]
        insort(bucket, text)
        if len(bucket) > 2 * BUCKET:
            self._buckets.insert(place + 1, bucket[BUCKET:])
            del bucket[BUCKET:]
            self._last.insert(place, bucket[-1])
            place += 1
        self._last[place] = self._buckets[place][-1]

    def remove(self, text: str) -> None:
        """Take out a text that is in here."""
        place = bisect_left(self._last, text)
        bucket = self._buckets[place]
        del bucket[bisect_left(bucket, text)]
        if bucket:
            self._last[place] = bucket[-1]
        else:
            del self._buckets[place], self._last[place]

    def beginning_with(self, prefix: str, start: str, count: int) -> Sequence[str]:
        """The first so many that begin with a prefix (empty, or ending with ``/``), from ``start`` on."""
        end = prefix[:-1] + AFTER_SLASH
        found: list[str] = []
        for place in range(bisect_left(self._last, start), len(self._last)):
            bucket = self._buckets[place]
            first = bisect_left(bucket, start) if not found else 0
            found += bucket[first : first + count - len(found)]
            if len(found) == count or (prefix and found[-1] >= end):
                break
        if prefix:
            del found[bisect_left(found, end) :]
        return found


class _Search:
    """The topics that a filter matches, as far as they were looked for."""

    __slots__ = ("known", "prefixes", "start", "topics")

    def __init__(self, topic_filter: Filter, known: int) -> None:
        bounds = topic_filter.bounds
        self.topics = set(topic_filter.matched(bounds.topics))
        self.prefixes = list(reversed(bounds.prefixes))  # still to look through, the next one last
        self.start = ""  # in the next one
        self.known = known  # new topics up to which all are known once there are no more prefixes


class TopicOffsets:
    """The offsets of publications by topic, each topic's in order and without a break from its first one on."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._offsets: dict[str, list[int]] = {}
        self._sorted = SortedTexts()
        self._new: list[str] = []  # topics in the order they came
        self._dropped = 0  # of them, at the head
        self._searches: dict[Filter, _Search] = {}  # the one asked for last is last
        self._searched = 0  # topics in all of them

    def __len__(self) -> int:
        return len(self._offsets)

    def append(self, topics: tuple[str, ...], offset: int) -> None:
        """A publication that is the newest."""
        for topic in topics or BROADCAST:
            if offsets := self._offsets.get(topic):
                offsets.append(offset)
            else:
                self._add(topic, offset)

    def put_before(self, topics: tuple[str, ...], offset: int) -> None:
        """A publication that is older than all that is known: it counts for topics on which nothing is known."""
        for topic in topics or BROADCAST:
            if topic not in self._offsets:
                self._add(topic, offset)

    def _add(self, topic: str, offset: int) -> None:
        self._offsets[topic] = [offset]
        if topic:
            self._sorted.add(topic)
            self._new.append(topic)
            if len(self._new) > 2 * NEW_TOPICS:
                del self._new[:NEW_TOPICS]
                self._dropped += NEW_TOPICS

    def trim(self, topics: tuple[str, ...], offset: int, *, keep_newest: bool = False) -> None:
        """The oldest publication has gone; a topic on which nothing is left is forgotten, or keeps that last offset."""
        for topic in topics or BROADCAST:
            offsets = self._offsets.get(topic)
            if not offsets:
                continue
            if offsets[-1] > offset:
                if offsets[len(offsets) // 2] <= offset:  # half of them at a time, or each would move all others
                    del offsets[: bisect_right(offsets, offset)]
            elif not keep_newest:
                del self._offsets[topic]
                if topic:
                    self._sorted.remove(topic)

    def topics(self, topic_filter: Filter, look_ups: int) -> tuple[str, ...] | set[str] | None:
        """The topics that a filter matches, some of which may be gone; all others are known not to match.

        None if that takes more look-ups (``Filter.cost`` a topic) than these: then the next call goes on.
        """
        if topic_filter.plain is not None:
            return topic_filter.plain
        search = self._searches.pop(topic_filter, None)
        if search:
            self._searched -= len(search.topics)
        if search is None or self._is_outdated(search):
            search = _Search(topic_filter, self._dropped + len(self._new))
        left = self._look_on(search, topic_filter, max(1, look_ups // topic_filter.cost))
        self._searches[topic_filter] = search
        self._searched += len(search.topics)
        self._forget_searches()
        return search.topics if left else None

    def _is_outdated(self, search: _Search) -> bool:
        mostly_gone = not search.prefixes and len(search.topics) > 2 * len(self._offsets) + NEW_TOPICS
        return search.known < self._dropped or mostly_gone

    def _look_on(self, search: _Search, topic_filter: Filter, count: int) -> bool:
        """Look at so many topics at most; True when that was enough."""
        while search.prefixes and count > 0:
            prefix = search.prefixes[-1]
            found = self._sorted.beginning_with(prefix, max(prefix, search.start), count)
            search.topics.update(topic_filter.matched(found))
            if len(found) < count:
                search.prefixes.pop()
                search.start = ""
            else:
                search.start = found[-1] + "\0"  # which no topic has: the least text behind it
            count -= max(1, len(found))
        if search.prefixes:
            return False
        first = search.known - self._dropped
        new = self._new[first : first + max(0, count)]
        search.topics.update(topic_filter.matched(new))
        search.known += len(new)
        return search.known == self._dropped + len(self._new)

    def _forget_searches(self) -> None:
        while len(self._searches) > SEARCHES or (self._searched > SEARCHED_TOPICS and len(self._searches) > 1):
            self._searched -= len(self._searches.pop(next(iter(self._searches))).topics)

    def newest(self, topics: Iterable[str], until: int, count: int) -> Sequence[int]:
        """The newest so many offsets up to ``until`` on any of these topics or without a topic, newest first."""
        runs = []
        for offsets in self._of(topics):
            end = bisect_right(offsets, until)
            runs.append(offsets[max(0, end - count) : end][::-1])
        return _first(merge(*runs, reverse=True), count)

    def oldest(self, topics: Iterable[str], after: int, count: int) -> Sequence[int]:
        """The oldest so many offsets behind ``after`` on any of these topics or without a topic, in order."""
        runs = []
        for offsets in self._of(topics):
            start = bisect_right(offsets, after)
            runs.append(offsets[start : start + count])
        return _first(merge(*runs), count)

    def _of(self, topics: Iterable[str]) -> Iterator[list[int]]:
        if offsets := self._offsets.get(""):
            yield offsets
        for topic in topics:
            if offsets := self._offsets.get(topic):
                yield offsets

    def newest_on(self, topic: str, until: int, complete_from: int, known_from: int) -> int:
        """The newest offset up to ``until`` on a topic, or one above which there is none: all from ``complete_from`` on
        are known, and of each topic the newest of all behind ``known_from``.
        """
        offsets = self._offsets.get(topic)
        if offsets is None:
            return known_from
        place = bisect_right(offsets, until)
        return offsets[place - 1] if place else complete_from - 1


def _first(offsets: Iterator[int], count: int) -> Sequence[int]:
    """The first so many different ones of what is in order: a publication is on several topics."""
    found: list[int] = []
    for offset in offsets:
        if not found or offset != found[-1]:
            if len(found) == count:
                break
            found.append(offset)
    return found
