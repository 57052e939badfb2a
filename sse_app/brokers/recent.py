"""The newest publications of the log as a node heard of them: most readers find here what they lack."""

from collections.abc import Sequence

from sse_app.publication import Audience, Position, Publication
from sse_app.topics import TopicFilter

COUNT = 10_000  # publications at most
BYTES = 16 * 1024 * 1024
PAGE_BYTES = 256 * 1024  # in a page, so that no reader holds more than that
OVERHEAD = 400  # bytes of a publication beside its frame, measured with sys.getsizeof on CPython 3.11
TOPICS_MAX = 100_000  # whose newest publication is known, some 10 MB

# Whom the entries of other programs are for, where they take a place in the log: a name that no client can have.
NOBODY = frozenset("/")


def placeholder(position: Position, time: float) -> Publication:
    """In the place of an entry that is not ours, so that offsets still rise by one."""
    return Publication(position, "message", (), b"", time, NOBODY)


def reaches(publication: Publication, filter: TopicFilter, audience: Audience | None) -> bool:
    """True when these readers may see it; None: anybody, whoever it is for."""
    return publication.to is not NOBODY and publication.reaches(filter, audience)


class Recent:
    """Publications without a break up to offset ``top``, and the newest one on each topic.

    It holds ``count`` publications and ``size`` bytes at most, the newest one however large it is.
    """

    def __init__(self, count: int = COUNT, size: int = BYTES) -> None:
        self._limits = min(count, COUNT), min(size, BYTES)
        self._held: dict[int, Publication] = {}  # by offset
        self._latest: dict[str, int] = {}  # topic, "" for none: offset of the newest publication on it
        self.restart(0)

    def restart(self, top: int) -> None:
        """Forget everything: what comes next is the publication behind ``top``."""
        self.top = self._known_from = top  # of what is above _known_from each topic's newest is known
        self._bytes = 0
        self._held.clear()
        self._latest.clear()

    @property
    def room(self) -> int:
        """How many publications it can hold."""
        return self._limits[0]

    def append(self, publication: Publication) -> None:
        """The next one. What is before a break is forgotten."""
        offset = publication.position.offset
        if offset != self.top + 1:
            self.restart(offset - 1)
        self.top = offset
        self._held[offset] = publication
        self._bytes += len(publication.frame) + OVERHEAD
        for topic in publication.topics or ("",):
            self._latest[topic] = offset
        if len(self._latest) > TOPICS_MAX:
            self._latest.clear()
            self._known_from = offset
        count, size = self._limits
        while len(self._held) > count or (self._bytes > size and len(self._held) > 1):
            self._bytes -= len(self._held.pop(self.top + 1 - len(self._held)).frame) + OVERHEAD

    def forget(self, oldest: int) -> None:
        """The log has trimmed everything up to this offset."""
        while self._held and self.top - len(self._held) < oldest:
            self._bytes -= len(self._held.pop(self.top + 1 - len(self._held)).frame) + OVERHEAD

    def page(self, after: int, until: int, count: int) -> Sequence[Publication] | None:
        """The next ``count`` in ``(after, until]``, fewer when they are large; None when they have to be read from the
        log."""
        if after + 1 not in self._held:
            return None
        found, size = list[Publication](), 0
        for offset in range(after + 1, min(until, self.top, after + count) + 1):
            found.append(self._held[offset])
            size += len(found[-1].frame)
            if size >= PAGE_BYTES:
                break
        return found

    def before(self, until: int, count: int) -> Sequence[Publication]:
        """The ``count`` up to this offset, newest first; none when they have to be read from the log."""
        if until not in self._held:
            return ()
        first = max(self.top - len(self._held), until - count) + 1
        return [self._held[offset] for offset in range(until, first - 1, -1)]

    def below(self, top: int, filter: TopicFilter) -> int:
        """An offset above which, up to ``top``, nothing matches: for plain topics known without a search."""
        if top > self.top or not filter.patterns or any("*" in pattern for pattern in filter.patterns):
            return top
        return min(top, max(self._latest.get(topic, self._known_from) for topic in ("", *filter.patterns)))

    def learn(self, after: int, until: int, publications: Sequence[Publication]) -> None:
        """What the log holds in ``(after, until]`` was read: if that is the next below what is known, it is now."""
        if after < self._known_from <= until and len(self._latest) < TOPICS_MAX:
            self._known_from = after
            for publication in reversed(publications):
                for topic in publication.topics or ("",):
                    self._latest.setdefault(topic, publication.position.offset)
