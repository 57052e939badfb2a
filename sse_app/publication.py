"""A publication, and its position in the log."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple, TypedDict

from sse_app.errors import BadInput, ConfigError, InvalidClient, InvalidIdempotencyKey
from sse_app.events import Event, EventDecoder
from sse_app.topics import TopicFilter

_POSITION = re.compile(r"([0-9a-z]{1,32})-(0|[1-9][0-9]{0,17})")
_CLIENT = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY = re.compile(r"[\x21-\x7e]{1,128}")
_SECRET = re.compile(r"[\x21-\x7e]+")

Names = str | Iterable[str] | None  # of topics or clients: one, several, or not given


class PublishOptions(TypedDict, total=False):
    """The options of everyone who publishes, beside the data."""

    topic: Names
    event: str
    to: Names
    exclude: Names
    key: str | None


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


def names(parameter: str, given: Names, error: type[BadInput]) -> tuple[str, ...]:
    """The names that a parameter was given, none when it was not. Raises ``error`` for what are no names."""
    if given is None:
        return ()
    if isinstance(given, str):
        return (str.__str__(given),)  # str() of an enum is its name
    if isinstance(given, Iterable) and not isinstance(given, Mapping):
        found = list(given)
        if all(isinstance(name, str) for name in found):
            if isinstance(given, set | frozenset):
                found.sort()  # a retry from another process is the same publication
            return tuple(map(str.__str__, found))
    raise error(f"{parameter} is a str, or several of them in a list.")


def recipients(parameter: str, given: Names, error: type[BadInput]) -> tuple[str, ...]:
    """``names``, of those whom a publication is for: a list that happens to be empty does not mean everyone."""
    found = names(parameter, given, error)
    if given is not None and not found:
        raise error(f"{parameter} is empty, which is nobody; leave it out to reach everyone.")
    return found


def check_key(key: str) -> str:
    """A publication's idempotency key. Raises InvalidIdempotencyKey."""
    if not (isinstance(key, str) and _KEY.fullmatch(key)):
        raise InvalidIdempotencyKey("An idempotency key has 1 to 128 visible ASCII characters.")
    return str.__str__(key)


def check_publish_key(given: str | None) -> str | None:
    """The secret of publishers as it is sent: without the white space around it in a file or a variable, None for none.
    Raises ConfigError, which does not repeat it.
    """
    key = given.strip() if isinstance(given, str) else given
    if not key:
        return None
    if not (isinstance(key, str) and _SECRET.fullmatch(key)):
        raise ConfigError("publish_key is visible ASCII characters, without white space between them.")
    return key


def check_client(name: str) -> str:
    """A client's name. Raises InvalidClient."""
    if not (isinstance(name, str) and _CLIENT.fullmatch(name)):
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
