"""Dialects: how publications, and the hub's own notices, are written for a stream.

The body of a publication is encoded once, when it is published. A dialect writes what is around bodies on a stream: ids
and notices.
"""

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import Protocol, cast

from sse_app import notices
from sse_app.brokers import Page, Written
from sse_app.notices import GapReason, Welcome
from sse_app.publication import Audience, Position, Publication


class Dialect(Protocol):
    """A way to write a stream. Its bytes depend on the arguments alone, so all streams of a dialect share them."""

    heartbeat: bytes

    def frame(self, publication: Publication) -> bytes:
        """Return the block of one publication that is not lost."""
        ...

    def welcome(self, welcome: Welcome) -> bytes:
        """Return the first block of a stream."""
        ...

    def gap(
        self, reason: GapReason, requested: str | None, *, start: Position, oldest: Position, top: Position
    ) -> bytes:
        """Return the notice that publications are missing between ``requested`` and ``start``, the new cursor."""
        ...

    def cursor(self, position: Position) -> bytes:
        """Return a block that moves the client's cursor and dispatches nothing."""
        ...

    def bye(self, reason: str, retry: int) -> bytes:
        """Return the last block before a planned close; ``retry`` is in milliseconds."""
        ...


class Native:
    """The dialect of ``docs/http-api.md``: each event has its position as id, notices are events of reserved types."""

    heartbeat = notices.HEARTBEAT
    welcome = staticmethod(notices.welcome)
    gap = staticmethod(notices.gap)
    cursor = staticmethod(notices.cursor)
    bye = staticmethod(notices.bye)

    def frame(self, publication: Publication) -> bytes:
        """Return the event with its position as id."""
        epoch, offset = publication.position
        return b"id: %b-%d\n%b" % (epoch.encode(), offset, publication.body)


NATIVE = Native()

_is_lost = attrgetter("lost")


def write_page(page: Page, dialect: Dialect, audience: Audience) -> Written:
    """Return what these readers may see of a page. What all may see is written once for all who share the page."""
    if (shared := page.forms.get(dialect)) is not None:
        return shared
    visible = [publication for publication in page.publications if publication.visible_to(audience)]
    written = write(visible, dialect)
    if not any(map(_has_names, page.publications)):
        page.forms[dialect] = written
    return written


def continue_page(page: Page, further: Page) -> Page:
    """Return the page of both, the second of which begins where the first one ends, with what is written of both."""
    longer = Page(page.start, [*page.publications, *further.publications], further.end)
    in_one_gap = any(map(_is_lost, [*page.publications[-1:], *further.publications[:1]]))
    if not in_one_gap and not any(map(_has_names, further.publications)):
        for dialect, (data, events, gaps) in page.forms.items():
            more = write(further.publications, cast(Dialect, dialect))
            longer.forms[dialect] = Written(data + more.data, events + more.events, gaps + more.gaps)
    return longer


def _has_names(publication: Publication) -> bool:
    return bool(publication.to or publication.exclude)


def write(publications: Sequence[Publication], dialect: Dialect) -> Written:
    """Return a stream's publications, in order. Lost ones that follow each other are one gap."""
    if not any(map(_is_lost, publications)):
        return Written(b"".join(map(dialect.frame, publications)), len(publications), 0)
    blocks = list[bytes]()
    events = gaps = 0
    for lost, run in groupby(publications, _is_lost):
        items = list(run)
        if lost:
            blocks.append(_lost(items[0].position, items[-1].position, dialect))
            gaps += 1
        else:
            blocks += map(dialect.frame, items)
            events += len(items)
    return Written(b"".join(blocks), events, gaps)


def _lost(first: Position, last: Position, dialect: Dialect) -> bytes:
    before = Position(first.epoch, first.offset - 1)
    return dialect.gap(GapReason.LOST, str(before), start=last, oldest=last.next(), top=last)
