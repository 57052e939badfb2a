"""Narrowing: the filter of what is both asked for and granted."""

from array import array
from collections.abc import Collection
from functools import lru_cache
from itertools import compress
from typing import NamedTuple

from sse_app.errors import TooManyTopics
from sse_app.patterns import Table, demands_of, meet
from sse_app.topics import TOPICS_PER_FILTER, TopicFilter

NARROWED_KEPT = 4_096  # results of narrow


class NothingInCommon(ValueError):
    """Some of the patterns asked for have no topic in common with what is granted: those in ``patterns``."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        super().__init__("Some topic filters have no topic in common with what is granted.")
        self.patterns = patterns


def narrow(asked: TopicFilter, granted: TopicFilter) -> TopicFilter:
    """Return the filter of what is both asked for and granted. To ask for nothing is to ask for all that is granted.

    No pattern of it covers another, unless everything is granted: then it is what was asked for. Raises NothingInCommon
    when a pattern that was asked for has no topic in common with the grant, and TooManyTopics when more than 100
    patterns result, counted before those that others cover are dropped.
    """
    narrowed = _narrow(asked, granted)
    if narrowed.outside:
        raise NothingInCommon(narrowed.outside)
    if narrowed.found is None:
        raise TooManyTopics(
            f"What is asked for and what is granted have more than {TOPICS_PER_FILTER} topic filters in common; ask for"
            " fewer, or for ** to have all that is granted."
        )
    return narrowed.found


class _Narrowed(NamedTuple):
    found: TopicFilter | None  # None: too many
    outside: tuple[str, ...] = ()


@lru_cache(NARROWED_KEPT)
def _narrow(asked: TopicFilter, granted: TopicFilter) -> _Narrowed:
    if granted.unrestricted:
        return _Narrowed(asked)
    if not asked.patterns:
        return _Narrowed(_canonical(granted.patterns))
    codes, table = _Codes(), Table(granted.patterns)
    allowed = [(codes.encode(pattern), pattern) for pattern in granted.patterns]
    results: dict[int, str | None] = dict(allowed)  # most often two patterns have one of them in common
    common, outside = set[str](), list[str]()
    for pattern in asked.patterns:
        code = codes.encode(pattern)
        results.setdefault(code, pattern)
        meeting = {code | other: name for other, name in compress(allowed, table.agreeing(pattern))}
        for both, other in meeting.items():
            if both not in results:
                results[both] = meet(pattern, other)
        found = set(filter(None, map(results.get, meeting)))
        if not found:
            outside.append(pattern)
        common |= found
        if len(common) > TOPICS_PER_FILTER:
            return _Narrowed(None)
    return _Narrowed(_canonical(common) if not outside else None, tuple(outside))


class _Codes:
    """Encodes patterns as numbers. For two patterns that have a topic in common, the bitwise or of their codes is the
    code of the pattern that matches what both match. So that pattern is written out only once for many pairs.
    """

    def __init__(self) -> None:
        self._segments: dict[str, int] = {}

    def encode(self, pattern: str) -> int:
        """Return the code, of 16 bits for each place: 1 for the end of the topic, 2 for any segment, 2 plus 4 times a
        number for a certain segment, of which two filters have at most 6,400.
        """
        return int.from_bytes(array("H", map(self._encode_demand, demands_of(pattern))).tobytes(), "little")

    def _encode_demand(self, demand: str | None) -> int:
        if demand is None:
            return 1
        return 2 if demand == "*" else 2 | self._segments.setdefault(demand, len(self._segments) + 1) << 2


def _canonical(patterns: Collection[str]) -> TopicFilter:
    """Return the filter of these patterns without those that others cover."""
    table = Table(patterns)
    return TopicFilter(tuple(pattern for pattern in patterns if not table.covered(pattern)))
