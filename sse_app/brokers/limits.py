"""The bounds of a log: the same keywords, units and defaults in every broker."""

from collections.abc import Callable
from typing import NamedTuple, Self, TypedDict

from sse_app.topics import TopicFilter


class LimitSettings(TypedDict, total=False):
    """The keywords of every broker. One that is left out, or None, leaves the limit of an existing log as it is."""

    history: int | None  # publications
    history_bytes: int | None
    history_age: float | None  # seconds
    idempotency_window: float | None  # seconds
    clock: Callable[[], float]  # seconds that never jump


class LogSettings(LimitSettings, total=False):
    """The keywords of a broker that stamps publications itself."""

    wall: Callable[[], float]  # Unix time


class BrokerSettings(LogSettings, total=False):
    """The keywords of ``open_broker``: those of all brokers, and two that only SQLite takes."""

    recover: bool
    create: bool


class Limits(NamedTuple):
    """The bounds of a log. The oldest publications are trimmed first, idempotency keys after their window."""

    publications: int = 10_000
    size: int = 64 * 1024 * 1024  # bytes
    age: float = 24 * 3600.0  # seconds
    window: float = 300.0  # seconds that an idempotency key is remembered

    @classmethod
    def of(cls, *given: float | None) -> Self:
        """Return the limits that were given, in their order, each None being the default."""
        return cls._make(default if value is None else value for value, default in zip(given, cls(), strict=True))


DEFAULTS = Limits()

# Of one page of a replay, so that no reader holds much more than that, and the loop turns between two pages.
PAGE_COUNT = 256  # publications
PAGE_BYTES = 256 * 1024  # about, as each broker measures what it reads; a larger publication is a page of its own

LOOK_UPS_PER_STEP = 800  # of Filter.cost, in one turn of the loop, less than 1 ms


def matches_per_step(topic_filter: TopicFilter) -> int:
    """Return how many publications may be compared with a filter in one turn of the loop."""
    return max(1, LOOK_UPS_PER_STEP // topic_filter.cost)
