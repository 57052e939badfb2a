"""The log as the streams of a node read it: as far as the node's tail has come, and its pages once for all of them."""

import asyncio
from typing import NamedTuple

from sse_app.brokers import Broker, Page
from sse_app.brokers.limits import PAGE_BYTES, PAGE_COUNT
from sse_app.delivery import Delivery
from sse_app.dialects import continue_page
from sse_app.publication import Position
from sse_app.topics import TopicFilter

PAGES_BYTES = 4 * 1024 * 1024  # of bodies in the pages that are kept, about: as much again for what is written of them
PUBLICATION_BYTES = 64  # that a publication of a page counts as beside its body
KEY_BYTES = 300  # that a page counts as which was read once

_Key = tuple[Position, TopicFilter]  # the position behind which a page begins, and the filter that it is read with


class _Kept(NamedTuple):
    page: Page
    is_full: bool  # it ends where it does because of its size, whatever has been published since
    size: int  # of the bodies, with PUBLICATION_BYTES for each


class SharedPages:
    """Pages that were read lately, and more than once. When the connections of many clients were cut at once, most of
    them come back with the same cursor: the page that they lack is then read and written for the first two alone.
    """

    def __init__(self) -> None:
        # The pages used since the last call of age(), and before that. None for one that was read once: pages of a long
        # replay, which nobody else reads, are not kept.
        self._young: dict[_Key, _Kept | None] = {}
        self._old: dict[_Key, _Kept | None] = {}
        self._bytes = 0  # in _young

    def __len__(self) -> int:
        """Return how many pages are kept."""
        return sum(kept is not None for kept in (self._old | self._young).values())

    def find(self, after: Position, topic_filter: TopicFilter, oldest: Position) -> _Kept | None:
        """Return the page behind a position that is kept, of a log that holds all behind ``oldest``."""
        key = after, topic_filter
        kept = self._young.get(key) or self._old.get(key)
        if kept is None or after.epoch != oldest.epoch or after < oldest:
            return None
        if key not in self._young:
            self._keep(key, kept)
        return kept

    def add(self, after: Position, until: Position, topic_filter: TopicFilter, page: Page) -> None:
        """Keep a page that was read of ``(after, until]``, unless something of it was trimmed, or it is the first."""
        key = after, topic_filter
        if not self._expects(key):
            self._keep(key, None)
        elif page.start == after and page.end.epoch == until.epoch:
            size = sum(len(item.body) + PUBLICATION_BYTES for item in page.publications)
            self._keep(key, _Kept(page, page.end < until, size))

    def expect(self, after: Position, topic_filter: TopicFilter) -> None:
        """Keep this page when it is added: somebody waits for it."""
        if not self._expects(key := (after, topic_filter)):
            self._keep(key, None)

    def _expects(self, key: _Key) -> bool:
        return key in self._young or key in self._old

    def _keep(self, key: _Key, kept: _Kept | None) -> None:
        self._young[key] = kept
        self._bytes += KEY_BYTES + (0 if kept is None else kept.size)
        if self._bytes > PAGES_BYTES // 2:
            self.age()

    def age(self) -> None:
        """Drop the pages that nobody has read since the last call."""
        self._old, self._young, self._bytes = self._young, {}, 0


class ReachedLog:
    """The log up to ``delivery.reached``, the end of what the tail has announced.

    All nodes read one log in order, and a revocation is a record in it. A node ends the streams that the record names
    before it offers, or lets be read, what follows the record. The log may be longer already: a stream that read it to
    its own end could get past a record that its node has not met.
    """

    def __init__(self, broker: Broker, delivery: Delivery) -> None:
        self._broker, self._delivery = broker, delivery
        self.pages = SharedPages()
        self._reading: dict[_Key, asyncio.Event] = {}  # pages that are being read; set when that has ended

    async def top(self) -> Position:
        """Return the end of what may be read."""
        return self._delivery.reached

    def at_hand(self, after: Position, topic_filter: TopicFilter) -> Page | None:
        """Return the next page of what may be read behind a position, when that takes no waiting."""
        until = self._delivery.reached
        return None if after.epoch != until.epoch or after >= until else self._at_hand(after, until, topic_filter)

    def _at_hand(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page | None:
        page = self._shared(after, until, topic_filter)
        if page is None and (page := self._broker.at_hand(after, until, topic_filter)) is not None:
            self.pages.add(after, until, topic_filter, page)
        return page

    def _shared(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page | None:
        kept = self.pages.find(after, topic_filter, self._broker.extent().oldest)
        if kept is None or until.epoch != after.epoch or kept.page.end > until:
            return None
        if kept.page.end == until or kept.is_full:
            return kept.page
        return self._continued(kept, until, topic_filter)

    def _continued(self, kept: _Kept, until: Position, topic_filter: TopicFilter) -> Page | None:
        """A page that is kept, with what has been published since, if both are no more than a page."""
        page = kept.page
        further = self._broker.at_hand(page.end, until, topic_filter)
        if further is None or further.start != page.end or further.end.epoch != page.end.epoch:
            return None
        size = kept.size + sum(len(item.body) for item in further.publications)
        if len(page.publications) + len(further.publications) > PAGE_COUNT or size > PAGE_BYTES:
            return None
        page = continue_page(page, further)
        self.pages.add(page.start, until, topic_filter, page)
        return page

    async def replay(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page:
        """Return the next page of matching publications in ``(after, until]``, oldest first."""
        await asyncio.sleep(0)  # a long replay gives way to the others at every page
        if (page := self._at_hand(after, until, topic_filter)) is not None:
            return page
        reading = self._reading.get((after, topic_filter))
        if reading is None:
            return await self._read(after, until, topic_filter)
        self.pages.expect(after, topic_filter)
        await reading.wait()
        # The other reader may have failed, or read up to another end.
        page = self._shared(after, until, topic_filter)
        return page or await self._broker.replay(after, until, topic_filter)

    async def _read(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page:
        """Read a page from the log. Who asks for the same one meanwhile waits for that."""
        done = self._reading[after, topic_filter] = asyncio.Event()
        try:
            page = await self._broker.replay(after, until, topic_filter)
            self.pages.add(after, until, topic_filter, page)
            return page
        finally:
            del self._reading[after, topic_filter]
            done.set()
