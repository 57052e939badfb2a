"""The newest publications of a log that a server or a file keeps, as a node received them: most readers catch up from
here.
"""

from collections import deque
from collections.abc import Collection, Sequence
from itertools import islice

from sse_app.brokers import Extent, Page
from sse_app.brokers.limits import LOOK_UPS_PER_STEP, PAGE_BYTES, PAGE_COUNT, Limits, matches_per_step
from sse_app.brokers.offsets import TopicOffsets, footprint
from sse_app.publication import Audience, Position, Publication
from sse_app.topics import TopicFilter

COUNT = 10_000  # publications at most
BYTES = 16 * 1024 * 1024
TOPICS_MAX = 100_000  # topics whose newest publication is known, some 20 MB
FILTER_TOPICS_MAX = 2_000  # topics of a filter; with more of them the newest match is near the top in any case
SCAN_NEWEST = 64  # of the newest publications: read first, since that is enough for a filter that matches most
INDEXED_TOPICS_MAX = 128  # topics of a filter whose publications are found by the index, in the step of a reader


class Recent:
    """Publications without a break up to offset ``top``, and the offset of the newest one on each topic.

    It holds ``count`` publications and ``size`` bytes at most, the newest one however large it is.
    """

    def __init__(self, count: int = COUNT, size: int = BYTES) -> None:
        self._limits = min(count, COUNT), min(size, BYTES)
        self._held: dict[int, Publication] = {}  # by offset
        self._sizes = deque[int]()  # the footprint of each, so that it is computed once
        self._offsets = TopicOffsets()  # of the publications held, and the newest one of each other topic
        self.restart(0)

    def restart(self, top: int) -> None:
        """Drop everything; the publication behind ``top`` comes next."""
        self.top = self._known_from = top  # of each topic the newest offset above _known_from is known
        self._complete_from = top + 1  # from here on all offsets of publications held are known
        self._bytes = self._lost = 0
        self._held.clear()
        self._sizes.clear()
        self._offsets.clear()

    @property
    def capacity(self) -> int:
        """The number of publications that this can hold."""
        return self._limits[0]

    def append(self, publication: Publication) -> None:
        """Add the next publication. With a break before it, all others are dropped."""
        offset = publication.position.offset
        if offset != self.top + 1:
            self.restart(offset - 1)
        self.top = offset
        self._held[offset] = publication
        size = footprint(publication)
        self._sizes.append(size)
        self._bytes += size
        self._lost += publication.lost
        self._offsets.append(publication.topics, offset)
        if len(self._offsets) > TOPICS_MAX:
            self._offsets.clear()
            self._known_from, self._complete_from = offset, offset + 1
        most, most_bytes = self._limits
        while len(self._held) > most or (self._bytes > most_bytes and len(self._held) > 1):
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        offset = self.top + 1 - len(self._held)
        gone = self._held.pop(offset)
        self._bytes -= self._sizes.popleft()
        self._lost -= gone.lost
        self._offsets.trim(gone.topics, offset, keep_newest=True)

    def trim(self, oldest: int) -> None:
        """Drop all publications up to this offset, which the log has trimmed."""
        while self._held and self.top - len(self._held) < oldest:
            self._drop_oldest()

    def extent(self, oldest: Position, top: int, limits: Limits | None, now: float) -> Extent:
        """Return how much a log with these ends holds. One of which not everything is kept here, or whose limits nobody
        knows, counts as full. ``now`` is Unix time.
        """
        held = top - oldest.offset
        first = self._held.get(oldest.offset + 1)
        if limits is None or len(self._held) < held or (held and first is None):
            return Extent(oldest, held)
        age = 0.0 if first is None else max(0.0, now - first.time)
        return Extent.of(oldest, held, limits, self._bytes, age)

    def page(self, after: int, until: int, count: int) -> Sequence[Publication] | None:
        """Return the next ``count`` in ``(after, until]``, fewer if they are large; None if they have to be read from
        the log."""
        if after + 1 not in self._held:
            return None
        found, size = list[Publication](), 0
        for offset in range(after + 1, min(until, self.top, after + count) + 1):
            found.append(self._held[offset])
            size += len(found[-1].body)
            if size >= PAGE_BYTES:
                break
        return found

    def back_from(self, until: int, count: int) -> Sequence[Publication]:
        """Return the ``count`` up to this offset, newest first; none if they have to be read from the log."""
        if until not in self._held:
            return ()
        first = max(self.top - len(self._held), until - count) + 1
        return [self._held[offset] for offset in range(until, first - 1, -1)]

    def matching(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page | None:
        """Return the next page of what a filter matches in ``(after, until]``; None if it has to be read from the log.

        A filter with few topics finds them by the index: a page of them may lead through all that is held.
        """
        start, last = after.offset, min(until.offset, self.top)
        if start + 1 not in self._held:
            return None
        if topic_filter.unrestricted or last - start <= PAGE_COUNT:
            return self._compared(after, last, topic_filter)
        topics = self._indexed(topic_filter, start + 1)
        if topics is None or self._lost:  # each reader is told of lost ones, whatever their topics
            return self._compared(after, last, topic_filter)
        offsets = self._offsets.oldest(topics, start, PAGE_COUNT)
        return Page.cut(after, [self._held[offset] for offset in offsets if offset <= last], last, PAGE_COUNT)

    def _compared(self, after: Position, last: int, topic_filter: TopicFilter) -> Page:
        """The page of what a filter matches up to ``last``, which is compared with it one by one."""
        last = min(last, after.offset + min(PAGE_COUNT, matches_per_step(topic_filter)))
        items = map(self._held.__getitem__, range(after.offset + 1, last + 1))
        if topic_filter.unrestricted:
            return Page.cut(after, list(items), last)
        return Page.cut(after, [item for item in items if topic_filter.matches(item.topics) or item.lost], last)

    def _indexed(self, topic_filter: TopicFilter, first: int) -> Collection[str] | None:
        """The topics of a filter, if the index has all that is held of them from ``first`` on, and they are few."""
        if first < self._complete_from:
            return None
        topics = self._offsets.topics(topic_filter, LOOK_UPS_PER_STEP)
        return None if topics is None or len(topics) > INDEXED_TOPICS_MAX else topics

    def newest(
        self, count: int, topic_filter: TopicFilter, audience: Audience | None, oldest: int
    ) -> Sequence[Publication] | None:
        """Return the newest ``count`` that a filter matches and these readers may see, oldest first; None if they have
        to be read from the log, which holds what is behind the offset ``oldest``.
        """
        size = min(SCAN_NEWEST, matches_per_step(topic_filter))
        near = [item for item in self.back_from(self.top, size) if topic_filter.matches(item.topics)]
        found = _visible(near, count, audience)
        first = self.top + 1 - len(self._held)
        if len(found) == count or (len(self._held) <= size and first - 1 <= oldest):
            return found
        further = self._further(topic_filter, first)
        if further is None:
            return None
        found = _visible(further, count, audience)
        return found if len(found) == count or (len(further) < PAGE_COUNT and first - 1 <= oldest) else None

    def _further(self, topic_filter: TopicFilter, first: int) -> Sequence[Publication] | None:
        """The newest ``PAGE_COUNT`` that match of those held, from offset ``first`` on, newest first."""
        if topic_filter.unrestricted:
            return self.back_from(self.top, PAGE_COUNT)
        topics = self._indexed(topic_filter, first)
        if topics is None:
            return None
        offsets = self._offsets.newest(topics, self.top, PAGE_COUNT)
        return [self._held[offset] for offset in offsets if offset >= first]

    def search_from(self, top: int, topic_filter: TopicFilter) -> int:
        """Return the offset from which a search downwards begins: above it, up to ``top``, nothing matches.

        It is ``top`` while too little is known: for a filter with wildcards each call tries a bounded number of topics.
        """
        if top > self.top or topic_filter.unrestricted:
            return top
        topics = self._offsets.topics(topic_filter, LOOK_UPS_PER_STEP)
        if topics is None or len(topics) > FILTER_TOPICS_MAX:
            return top
        complete_from = max(self.top + 1 - len(self._held), self._complete_from)
        newest = (self._offsets.newest_on(topic, top, complete_from, self._known_from) for topic in topics)
        return min(top, max(newest, default=self._known_from))

    def add_below(self, after: int, until: int, publications: Sequence[Publication]) -> None:
        """Note the topics of what the log holds in ``(after, until]``, if that adjoins the offsets that are known.

        Ignored above ``top``: those publications are still to be appended.
        """
        if after < self._known_from <= until <= self.top and len(self._offsets) < TOPICS_MAX:
            self._known_from = after
            for publication in reversed(publications):
                self._offsets.add_older(publication.topics, publication.position.offset)


def _visible(items: Sequence[Publication], count: int, audience: Audience | None) -> Sequence[Publication]:
    """The first ``count`` of these that the readers may see, in the opposite order."""
    return list(islice((item for item in items if item.visible_to(audience) and not item.lost), count))[::-1]
