"""A node's knowledge of a log that a server keeps: the ends of the log, and its newest publications.

Redis and NATS keep the log for several nodes. A node knows the state that the server sent last, the positions that its
own publishers got, and the publications that its tail has read. Most readers are served from that without a request.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from sse_app.brokers import Extent, Page
from sse_app.brokers.limits import PAGE_COUNT, Limits, matches_per_step
from sse_app.brokers.recent import BYTES, Recent
from sse_app.brokers.tail import QueuedTail
from sse_app.publication import Audience, Position, Publication
from sse_app.topics import TopicFilter

logger = logging.getLogger("sse_app")

UNBOUNDED = 2**62  # publications

ReadBack = Callable[[Position, int], Awaitable[Page]]


class KnownLog:
    """The ends of a log as far as this node knows them, its newest publications, and the tails that read it here.

    ``read_back(until, count)`` reads the newest ``count`` publications up to a position from the log, or fewer of them;
    the start of its page is the position to go on from, of another epoch if the log has become another one. It may call
    ``update``.
    """

    def __init__(self, name: str, recent: Recent, read_back: ReadBack) -> None:
        self.top = Position("", 0)  # the newest position
        self.oldest = 0  # the offset before the oldest publication that the log holds
        self.history = UNBOUNDED  # publications that count as held, if the log holds some more
        self.limits: Limits | None = None  # of the log, once they are known
        self.recent = recent  # what the tail has read
        self.bad_envelopes = 0  # entries without a publication that can be read and shown
        self._name = name  # for our own log
        self._read_back = read_back
        self._searching = asyncio.Lock()
        self._tails: list[QueuedTail] = []

    @property
    def held_from(self) -> int:
        """The offset before the oldest publication that counts as held."""
        return max(self.oldest, self.top.offset - self.history)

    # Answers of the server

    def update(self, asked_in: str, top: Position, oldest: int) -> bool:
        """Take over where the log begins and ends. Returns True for another log, which has to be read anew.

        ``asked_in`` is the epoch that this node knew when it asked. If it has changed to another one since, an answer
        of a third epoch may have been sent before the one with the newest epoch, and is ignored.
        """
        if top.epoch == self.top.epoch:
            self.top, self.oldest = max(self.top, top), max(self.oldest, oldest)
            self.recent.trim(self.oldest)
            return False
        if asked_in != self.top.epoch:
            return False
        if asked_in:
            logger.warning("the log %s is another one: epoch %s follows %s", self._name, top.epoch, asked_in)
        self.top, self.oldest = top, oldest
        self.recent.restart(top.offset)
        for tail in self._tails:
            tail.begin_anew()
        return True

    def advance(self, position: Position) -> None:
        """Note the position of a publication that was acknowledged; one of an epoch that is over is ignored."""
        if position.epoch == self.top.epoch:
            self.top = max(self.top, position)

    # Publications that the tail reads

    @property
    def is_followed(self) -> bool:
        """True while a tail reads this log."""
        return bool(self._tails)

    def tail(self) -> QueuedTail:
        return QueuedTail(self._tails, self.top)

    def rewind(self, mean_size: int = 1) -> None:
        """Begin reading as far below the top as publications can be kept, so that the newest ones, and each topic's
        newest, are known soon. ``mean_size`` is the bytes of an average publication of the log.
        """
        count = min(self.recent.capacity, BYTES // mean_size)
        self.recent.restart(max(self.held_from, self.top.offset - count))

    def announce(self, publications: Sequence[Publication]) -> None:
        """Give tails the next publications of the log, in order.

        Where some are missing, which were deleted or trimmed before they were read, tails begin anew.
        """
        following: list[Publication] = []
        for publication in publications:
            position = publication.position
            if publication.lost:
                self.count_bad_envelopes(1)
            if position.offset != self.recent.top + 1:
                following.clear()
                for tail in self._tails:
                    if tail.awaits(position):
                        tail.begin_anew()
            self.recent.append(publication)
            following.append(publication)
            if position > self.top:
                self.top = position
        for tail in self._tails:
            if new := [publication for publication in following if tail.awaits(publication.position)]:
                tail.announce(new)

    def count_bad_envelopes(self, more: int) -> None:
        """Count entries that the tail met and that this node cannot read."""
        before = self.bad_envelopes
        self.bad_envelopes += more
        if (count := self.bad_envelopes).bit_length() > before.bit_length():  # 1, 2, 4, ...: few lines for many of them
            logger.warning("bad_envelope: entries of the log %s cannot be read, %d so far", self._name, count)

    # Questions of readers

    def extent(self, now: float) -> Extent:
        """Return how much the log holds at this Unix time."""
        return self.recent.extent(self.top._replace(offset=self.held_from), self.top.offset, self.limits, now)

    def page(self, after: Position, until: Position) -> Page | None:
        """Return the next page of ``(after, until]``, or None when it has to be read from the log."""
        if after.epoch != self.top.epoch or after.offset >= until.offset:
            return None
        held = self.recent.page(after.offset, until.offset, PAGE_COUNT)
        return Page(after, held, held[-1].position) if held else None

    def matching(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page | None:
        """Return what a filter matches of the next page, or None when the page has to be read from the log."""
        page = self.page(after, until)
        return page and page.matching(topic_filter)

    async def newest(self, count: int, topic_filter: TopicFilter, audience: Audience | None) -> Sequence[Publication]:
        return [publication async for publication in self._newest_first(count, topic_filter, audience)][::-1]

    async def last(self, count: int, topic_filter: TopicFilter, audience: Audience) -> tuple[Position, bool]:
        position, found = None, 0
        async for publication in self._newest_first(count, topic_filter, audience):
            position, found = publication.position, found + 1
        before = position._replace(offset=position.offset - 1) if position else self.top
        return before, found >= count

    async def _newest_first(
        self, count: int, topic_filter: TopicFilter, audience: Audience | None
    ) -> AsyncIterator[Publication]:
        """At most ``count`` publications that the audience may see; fewer if the log becomes another one meanwhile."""
        epoch, top = self.top
        until = self.recent.search_from(top, topic_filter)
        # If the newest publications should match, no more of them are read at first than are wanted.
        size = min(count, PAGE_COUNT) if topic_filter.unrestricted or until < top else PAGE_COUNT
        while count and until > self.held_from:
            page = self._held_up_to(until) or await self._search(Position(epoch, until), size, topic_filter)
            if page.start.epoch != epoch:
                return
            for compared, publication in enumerate(reversed(page.publications), 1):
                if compared % matches_per_step(topic_filter) == 0:
                    await asyncio.sleep(0)
                if count and not publication.lost and publication.reaches(topic_filter, audience):
                    count -= 1
                    yield publication
            await asyncio.sleep(0)
            if self.top.epoch != epoch:
                return
            until, size = self.recent.search_from(page.start.offset, topic_filter), PAGE_COUNT

    def _held_up_to(self, until: int) -> Page | None:
        held = self.recent.back_from(until, PAGE_COUNT)
        if not held:
            return None
        newest, oldest = held[0].position, held[-1].position
        return Page(oldest._replace(offset=oldest.offset - 1), held[::-1], newest)

    async def _search(self, until: Position, size: int, topic_filter: TopicFilter) -> Page:
        """Read a page from the log. Searches read one after the other, each from where those before it came to; what is
        another log by then ends them.
        """
        waits = self._searching.locked()
        async with self._searching:
            if waits:
                if until.epoch != self.top.epoch:
                    return Page(self.top, (), self.top)
                until = until._replace(offset=self.recent.search_from(until.offset, topic_filter))
                if until.offset <= self.held_from:  # searches before this one came to the beginning of the log
                    return Page(until, (), until)
            if until.offset > self.recent.top:  # publications up to there were read by the tail
                size = min(size, until.offset - self.recent.top)
            page = await self._read_back(until, size)
            if until.epoch == page.start.epoch == self.top.epoch:
                self.recent.add_below(page.start.offset, until.offset, page.publications)
            return page
