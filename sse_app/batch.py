"""Batches, which are publications as they go to subscribers, and writers, the connections that take them."""

from collections.abc import Sequence
from typing import Protocol

from sse_app.dialects import NATIVE, Dialect, write
from sse_app.publication import Publication


class Batch:
    """Consecutive publications as they go to subscribers, joined once and shared.

    Everything from offset ``first`` to ``top`` of the log ``epoch`` that is for the subscriber is in it; a cursor has
    no publications, and bytes that are in no log have 0 and 0. ``data`` are the frames, ``chunk`` the same framed for
    HTTP/1.1. ``count`` is how many publications that are, ``gaps`` how many gaps in place of lost ones.
    """

    __slots__ = ("chunk", "count", "data", "epoch", "first", "gaps", "publications", "top")

    def __init__(
        self,
        data: bytes,
        first: int = 0,
        top: int = 0,
        publications: Sequence[Publication] = (),
        *,
        count: int = 0,
        gaps: int = 0,
        epoch: str = "",
    ) -> None:
        self.data = data
        self.chunk = b"%x\r\n%b\r\n" % (len(data), data)
        self.first, self.top = first, top
        self.epoch = publications[0].position.epoch if publications else epoch
        self.publications = publications
        self.count, self.gaps = count, gaps

    @classmethod
    def join(cls, publications: Sequence[Publication], dialect: Dialect = NATIVE) -> "Batch":
        """Return the batch of these publications, of which there is at least one."""
        data, events, gaps = write(publications, dialect)
        first, top = publications[0].position.offset, publications[-1].position.offset
        return cls(data, first, top, publications, count=events, gaps=gaps)


class Writer(Protocol):
    """The connection that a subscriber's bytes go to. Nothing here waits or raises.

    Once ``write`` has returned False, the writer calls ``Subscriber.resume`` when its socket takes more.
    """

    def write(self, batch: Batch) -> bool:
        """Write a batch, and return True when more can be taken at once."""
        ...

    def end(self, farewell: bytes = b"") -> None:
        """End the response as its protocol does, after what was written and these last bytes. A socket that is full
        takes them when it can.
        """
        ...
