"""The log, seen from the hub: the Broker protocol, and ``open_broker(url)``.

A broker keeps one ordered sequence of publications. An implementation inherits nothing: see ``memory.py``.
"""

import sys
from bisect import bisect_left
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import accumulate
from operator import attrgetter
from types import TracebackType
from typing import NamedTuple, Protocol, Self, Unpack, cast

from sse_app.brokers.board import Board
from sse_app.brokers.limits import PAGE_BYTES, PAGE_COUNT, BrokerSettings, Limits, matches_per_step
from sse_app.drafts import Drafts
from sse_app.errors import ConfigError
from sse_app.publication import Audience, Draft, Durability, Position, Publication
from sse_app.topics import TopicFilter

SCHEMES = ("memory", "sqlite", "redis", "nats")
ALIASES = {
    "rediss": "redis",  # over TLS
    "unix": "redis",  # over a Unix socket
    "redis+sentinel": "redis",  # found by Sentinels
    "tls": "nats",
}


_body = attrgetter("body")


class Written(NamedTuple):
    """Publications as the ``data`` of a stream, with as many ``events``, and ``gaps`` in place of lost ones."""

    data: bytes
    events: int
    gaps: int


@dataclass(frozen=True, slots=True)
class Page:
    """A piece of the log: the publications that ``replay`` found between two positions.

    ``start`` is the position asked for, or a later one if the log no longer holds what is between: that is a gap. The
    next page begins at ``end``. ``forms`` keeps what the readers who share the page have made of it.
    """

    start: Position
    publications: Sequence[Publication]
    end: Position
    forms: dict[object, Written] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def cut(cls, start: Position, found: Sequence[Publication], last: int, most: int = PAGE_COUNT) -> "Page":
        """Return the page of what was found up to the offset ``last``: at most so many, which are no larger together
        than a page, and nothing behind them.
        """
        sizes = list(accumulate(map(len, map(_body, found))))
        count = min(bisect_left(sizes, PAGE_BYTES) + 1, most)
        if len(found) >= count:
            found, last = found[:count], found[count - 1].position.offset
        return cls(start, found, start._replace(offset=last))

    def matching(self, topic_filter: TopicFilter) -> "Page":
        """Return the page without what the filter does not match; a shorter one for a filter that is dear to match."""
        compared = self.publications[: matches_per_step(topic_filter)]
        found = [item for item in compared if topic_filter.matches(item.topics) or item.lost]
        is_whole = len(compared) == len(self.publications)
        return Page(self.start, found, self.end if is_whole else compared[-1].position)


class Extent(NamedTuple):
    """How much the log holds, as far as this node knows: all behind ``oldest``. ``capacity`` is how many publications
    it holds before the oldest are trimmed, at the sizes and ages of those that it holds now.
    """

    oldest: Position
    capacity: int

    @classmethod
    def of(cls, oldest: Position, held: int, limits: Limits, size: int, age: float) -> Self:
        """Return that of a log which holds so many publications, of ``size`` bytes, the oldest ``age`` seconds old."""
        share = max(held / limits.publications, size / limits.size, age / limits.age)
        return cls(oldest, min(limits.publications, int(held / share)) if held else limits.publications)


class Tail(Protocol):
    """The publications that are appended behind ``start``: each step gives all that wait, in order.

    A tail outlasts a log that cannot be reached. If the log becomes another one (a new epoch), or lost what comes next,
    a step is empty, or does not begin where the one before ended: then the log has to be read again.
    """

    start: Position

    def __aiter__(self) -> AsyncIterator[Sequence[Publication]]: ...

    async def __anext__(self) -> Sequence[Publication]: ...

    async def aclose(self) -> None: ...


class Broker(Protocol):
    """Keeps the log. Positions rise by one; a new epoch starts whenever the sequence could have restarted.

    Several nodes may share a log. A method that cannot get an answer from the log raises a BrokerError.
    """

    durability: Durability
    # True when its coroutines may be stepped outside of a task, since they use no timeouts of asyncio. A publisher that
    # needs not wait then needs no task.
    steppable: bool
    subscribers_here: int  # the hub keeps it up to date
    subscribers_elsewhere: int  # on the other nodes, by what they announced some seconds ago

    @property
    def board(self) -> Board:
        """The board of the nodes that share this log. It opens when it is first used, and closes with the broker."""
        ...

    @property
    def bad_envelopes(self) -> int:
        """The number of entries that the tail met and that this node cannot read: they become lost publications."""
        ...

    @property
    def outdated(self) -> bool:
        """True once a newer version has taken over the log. This node can still read, and has to be replaced."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def publish(self, draft: Draft) -> Position:
        """Append a draft, and return its position: that is the acknowledgement.

        The same draft with the same ``idempotency_key`` within the idempotency window is appended once and gets the
        same position. Raises InvalidEvent for an event that cannot be encoded, KeyReused for the same key with
        another publication, OutcomeUnknown if the draft may be in the log or not, else a BrokerError if it is not.
        """
        ...

    def append(self, draft: Draft) -> Position | None:
        """Append a draft as ``publish`` does when that takes no waiting; else return None, and nothing is appended."""
        ...

    async def publish_many(self, drafts: Drafts) -> Sequence[Position]:
        """Append drafts together, in their order and with consecutive positions, and return the position of each. They
        are announced together, too. If one of them is refused, none is appended.

        The same batch with its ``idempotency_key`` within the window is appended once; drafts whose own keys are known
        keep their positions, and the others are appended. Raises as ``publish`` does: KeyReused for another batch with
        the same key, also with fewer or more drafts.

        A log that cannot append several at once appends one after the other, and other publications may come between
        them. Then OutcomeUnknown also means that some are appended; the same keys complete the batch.
        """
        ...

    def check(self) -> None:
        """Raises the BrokerError with which publishing would most likely end now."""
        ...

    async def top(self, *, fresh: bool = False) -> Position:
        """Return the position of the newest publication that this node knows, or the one before the first. ``fresh``
        asks the log itself; only that can fail."""
        ...

    async def oldest(self) -> Position:
        """Return the position just before the oldest publication that the log holds. It may be a moment old; this never
        fails."""
        ...

    def extent(self) -> Extent:
        """Return how much the log holds, without asking for it: ``oldest()`` with what it takes to fill the log."""
        ...

    async def replay(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page:
        """Return the next page of matching publications in ``(after, until]``, oldest first."""
        ...

    def at_hand(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page | None:
        """Return the page that ``replay`` would, when that takes no waiting and no more than a step of the loop."""
        ...

    async def newest(self, count: int, topic_filter: TopicFilter, audience: Audience | None) -> Sequence[Publication]:
        """Return the newest ``count`` matching publications that the audience may see (None: all), oldest first."""
        ...

    async def last(self, count: int, topic_filter: TopicFilter, audience: Audience) -> tuple[Position, bool]:
        """Return the position before the newest ``count`` publications that the audience may see, or ``top()`` without
        any; False if the log holds fewer."""
        ...

    async def since(self, time: float) -> tuple[Position, bool]:
        """Return the position before the first publication at or after this Unix time; False if some were trimmed."""
        ...

    def tail(self) -> Tail:
        """Return the publications that any node appends from now on, in order."""
        ...


def open_broker(url: str, **settings: Unpack[BrokerSettings]) -> Broker:
    """Return the broker that a URL names; settings are the keywords of its class. Raises ConfigError.

    ``memory://`` keeps the log in this process, until it ends. ``sqlite:///path`` keeps it in a file, for all
    processes of this machine; ``redis://host`` in a Redis stream and ``nats://host`` in a stream of NATS JetStream, for
    any number of machines.
    """
    scheme, separator, _ = url.lower().partition("://")
    name = ALIASES.get(scheme, scheme)
    if not separator or name not in SCHEMES:
        known = ", ".join(f"{name}://" for name in (*SCHEMES, *ALIASES))
        raise ConfigError(f"broker is a URL that starts with one of: {known}")
    try:
        module = import_module(f"sse_app.brokers.{name}")
    except ModuleNotFoundError as missing:
        if missing.name and missing.name.startswith("sse_app"):
            raise
        if missing.name in sys.stdlib_module_names:
            raise ConfigError(f"broker {scheme}:// runs on Linux and macOS; on Windows use WSL.") from None
        raise ConfigError(
            f"broker {scheme}:// needs a package that is not installed: pip install 'sse-app[{name}]'"
        ) from None
    return cast(Broker, module.open_url(url, **settings))
