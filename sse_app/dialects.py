"""Dialects: how publications, and the hub's own notices, are written for a stream.

A publication's body is encoded once, by its publisher. What stands around it is the dialect's: the id, and the notices.
"""

from typing import Protocol

from sse_app.publication import Publication


class Dialect(Protocol):
    """A way to write a stream: the same bytes for the same publications, so that its streams can share them."""

    def frame(self, publication: Publication) -> bytes:
        """Return the block of one publication."""
        ...


class Native:
    """The dialect of ``docs/http-api.md``: each event has its position as id, notices are events of reserved types."""

    def frame(self, publication: Publication) -> bytes:
        """Return the event with its position as id."""
        epoch, offset = publication.position
        return b"id: %b-%d\n%b" % (epoch.encode(), offset, publication.body)


NATIVE = Native()
