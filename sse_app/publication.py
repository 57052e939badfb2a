"""A publication, and its position in the log."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from sse_app.errors import InvalidClient
from sse_app.events import Event, EventDecoder
from sse_app.topics import TopicFilter

_POSITION = re.compile(r"([0-9a-z]{1,32})-(0|[1-9][0-9]{0,17})")
_CLIENT = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Position(NamedTuple):
    """The place of a publication in the log; 0 is the place before the first.

    On the wire ``<epoch>-<offset>``: lower-case letters, digits and one ``-``, which browsers may send as Last-Event-ID
    across origins without a preflight (Fetch standard, CORS-safelisted request-header value).
    """

    epoch: str
    offset: int

    @classmethod
    def parse(cls, raw: bytes) -> "Position | None":
        """The position that an SSE id or a Last-Event-ID header names, None when it names none."""
        match = _POSITION.fullmatch(raw.decode("ascii", "replace"))
        return match and cls(match[1], int(match[2]))

    def next(self) -> "Position":
        return Position(self.epoch, self.offset + 1)

    def __str__(self) -> str:
        return f"{self.epoch}-{self.offset}"


def check_client(name: str) -> str:
    """A client's name. Raises InvalidClient."""
    if not _CLIENT.fullmatch(name):
        raise InvalidClient("A client name has 1 to 64 characters of A-Z a-z 0-9 . _ -")
    return name


def check_clients(names: Iterable[str]) -> frozenset[str]:
    """Names of clients, each once. Raises InvalidClient, also for more than 1,000."""
    unique = frozenset(map(check_client, names))
    if len(unique) > 1_000:
        raise InvalidClient("At most 1,000 clients can be named.")
    return unique


@dataclass(frozen=True, slots=True)
class Publication:
    """An event with its topics and its position. ``frame`` is its encoding, made once for all subscribers.

    ``time`` is Unix time in seconds and never falls from one publication to the next. ``to`` limits it to these clients
    when there are any, ``exclude`` keeps it from those; both hold for replay too.
    """

    position: Position
    type: str
    topics: tuple[str, ...]
    frame: bytes
    time: float
    to: frozenset[str] = frozenset()
    exclude: frozenset[str] = frozenset()

    @property
    def event(self) -> Event:
        return EventDecoder().feed(self.frame)[0]

    def visible_to(self, client: str | None) -> bool:
        return client is None or (client not in self.exclude and (not self.to or client in self.to))

    def reaches(self, filter: TopicFilter, client: str | None) -> bool:
        return self.visible_to(client) and filter.matches(self.topics)

    def summary(self) -> dict[str, object]:
        """What can be said of it without its data, as JSON types."""
        time = datetime.fromtimestamp(self.time, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {"id": str(self.position), "topics": list(self.topics), "event": self.type, "time": time}
