"""An index of the offsets of publications by topic, so that no search reads publications that do not match.

Each topic has the offsets of its publications, in order. For a filter, its topics are found first: without wildcards
they are in the filter, with wildcards the topics within its bounds are tried, a bounded number at each call. The topics
found are kept for the next search with the same filter.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from sys import getsizeof

from sse_app.publication import Publication
from sse_app.topics import Filter

# The memory of a publication beside its body, and of a topic beside its text: measured with tracemalloc on CPython
# 3.11, for a topic with one publication.
OVERHEAD = 550  # bytes
TOPIC_OVERHEAD = 150

AFTER_SLASH = chr(ord("/") + 1)  # texts that begin with `a/` are sorted between `a/` and `a0`
BUCKET = 512  # topics in one list of SortedTexts, at most twice as many
SEARCHES = 512  # filters whose topics are kept
SEARCHED_TOPICS = 200_000  # and topics of all of them, some 10 MB
NEW_TOPICS = 4_096  # topics that a search which is kept is brought up to date with; after more it begins anew

BROADCAST = ("",)  # in the place of the topics of a publication that has none


def footprint(publication: Publication) -> int:
    """Return the bytes that a publication takes in memory."""
    size = len(publication.body) + OVERHEAD
    for topic in publication.topics:
        size += getsizeof(topic) + TOPIC_OVERHEAD
    if publication.to or publication.exclude:
        for names in filter(None, (publication.to, publication.exclude)):
            size += getsizeof(names) + sum(map(getsizeof, names))
    return size


class SortedTexts:
    """Texts in order, in lists of a bounded length: adding or removing one takes a microsecond for any number."""

    def __init__(self) -> None:
        self._buckets: list[list[str]] = []
        self._last: list[str] = []  # the last text of each bucket

    def add(self, text: str) -> None:
        """Add a text, which must be a new one."""
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
        """Remove a text, which must have been added."""
        place = bisect_left(self._last, text)
        bucket = self._buckets[place]
        del bucket[bisect_left(bucket, text)]
        if bucket:
            self._last[place] = bucket[-1]
        else:
            del self._buckets[place], self._last[place]

    def beginning_with(self, prefix: str, start: str, count: int) -> Sequence[str]:
        """Return the first ``count`` texts from ``start`` on with a prefix, which is empty or ends with ``/``."""
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
    """The topics that a filter matches, as far as they were found, and the rest of the search."""

    __slots__ = ("known", "prefixes", "start", "topics")

    def __init__(self, topic_filter: Filter, known: int) -> None:
        bounds = topic_filter.bounds
        self.topics = {*topic_filter.matched(bounds.topics), *(BROADCAST if topic_filter.broadcasts else ())}
        self.prefixes = list(reversed(bounds.prefixes))  # still to be searched, the next one last
        self.start = ""  # the text from which the search of the next prefix goes on
        self.known = known  # number of the new topics that were there at the beginning, or were tried since


class TopicOffsets:
    """The offsets of publications by topic, each topic's in order and without a break from its first one on."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._offsets: dict[str, list[int]] = {}
        self._sorted = SortedTexts()
        self._new: list[str] = []  # topics in the order in which they were added
        self._dropped = 0  # number of those that were dropped from the head of _new
        self._searches: dict[Filter, _Search] = {}  # in the order of their last use
        self._searched = 0  # topics in all searches

    def __len__(self) -> int:
        return len(self._offsets)

    def append(self, topics: tuple[str, ...], offset: int) -> None:
        """Add a publication that is newer than all others."""
        for topic in topics or BROADCAST:
            if offsets := self._offsets.get(topic):
                offsets.append(offset)
            else:
                self._add(topic, offset)

    def add_older(self, topics: tuple[str, ...], offset: int) -> None:
        """Add a publication that is older than all others, for those of its topics that have no publication."""
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
        """Remove the oldest publication. A topic without another one is removed, or keeps its newest offset."""
        for topic in topics or BROADCAST:
            offsets = self._offsets.get(topic)
            if not offsets:
                continue
            if offsets[-1] > offset:
                if offsets[len(offsets) // 2] <= offset:  # half of them at once: to remove each would move the others
                    del offsets[: bisect_right(offsets, offset)]
            elif not keep_newest:
                del self._offsets[topic]
                if topic:
                    self._sorted.remove(topic)

    def topics(self, topic_filter: Filter, look_ups: int) -> tuple[str, ...] | set[str] | None:
        """Return the topics that a filter matches, some of which may have been removed. "" stands for no topic.

        None if the search takes more than ``look_ups`` (``Filter.cost`` for each topic): the next call goes on with it.
        """
        if (plain := topic_filter.plain) is not None:
            return (*BROADCAST, *plain) if topic_filter.broadcasts else plain
        search = self._searches.pop(topic_filter, None)
        if search:
            self._searched -= len(search.topics)
        if search is None or self._is_outdated(search):
            search = _Search(topic_filter, self._dropped + len(self._new))
        left = self._search_on(search, topic_filter, max(1, look_ups // topic_filter.cost))
        self._searches[topic_filter] = search
        self._searched += len(search.topics)
        self._forget_searches()
        return search.topics if left else None

    def _is_outdated(self, search: _Search) -> bool:
        mostly_gone = not search.prefixes and len(search.topics) > 2 * len(self._offsets) + NEW_TOPICS
        return search.known < self._dropped or mostly_gone

    def _search_on(self, search: _Search, topic_filter: Filter, count: int) -> bool:
        """Try at most ``count`` topics; True when the search is complete."""
        while search.prefixes and count > 0:
            prefix = search.prefixes[-1]
            found = self._sorted.beginning_with(prefix, max(prefix, search.start), count)
            search.topics.update(topic_filter.matched(found))
            if len(found) < count:
                search.prefixes.pop()
                search.start = ""
            else:
                search.start = found[-1] + "\0"  # the next text in the order; no topic has a NUL
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
        """Return the newest ``count`` offsets up to ``until`` on these topics, newest first."""
        runs = []
        for offsets in self._lists_of(topics):
            end = bisect_right(offsets, until)
            runs.append(offsets[max(0, end - count) : end][::-1])
        return _distinct(merge(*runs, reverse=True), count)

    def oldest(self, topics: Iterable[str], after: int, count: int) -> Sequence[int]:
        """Return the oldest ``count`` offsets behind ``after`` on these topics, in order."""
        runs = []
        for offsets in self._lists_of(topics):
            start = bisect_right(offsets, after)
            runs.append(offsets[start : start + count])
        return _distinct(merge(*runs), count)

    def _lists_of(self, topics: Iterable[str]) -> Iterator[list[int]]:
        for topic in topics:
            if offsets := self._offsets.get(topic):
                yield offsets

    def newest_on(self, topic: str, until: int, complete_from: int, known_from: int) -> int:
        """Return the newest offset up to ``until`` on a topic, or an offset above which there is none.

        All offsets from ``complete_from`` on are in here, and of each topic the newest one behind ``known_from``.
        """
        offsets = self._offsets.get(topic)
        if offsets is None:
            return known_from
        place = bisect_right(offsets, until)
        return offsets[place - 1] if place else complete_from - 1


def _distinct(offsets: Iterator[int], count: int) -> Sequence[int]:
    """The first ``count`` different ones of sorted offsets: that of a publication on several topics is repeated."""
    found: list[int] = []
    for offset in offsets:
        if not found or offset != found[-1]:
            if len(found) == count:
                break
            found.append(offset)
    return found
