"""Narrowing: the filter of what is both asked for and granted."""

from array import array
from collections.abc import Collection
from functools import lru_cache
from itertools import compress
from typing import NamedTuple

from sse_app.errors import TooManyTopics
from sse_app.patterns import Table, demands_of, meet, uncovered
from sse_app.topics import TOPICS_PER_FILTER, TopicFilter

NARROWED_KEPT = 4_096  # results of narrow


class NothingInCommon(ValueError):
    """Some of the patterns asked for have no topic in common with what is granted: those in ``patterns``, which are
    none when nothing was asked for and all that is granted is denied.
    """

    def __init__(self, patterns: tuple[str, ...]) -> None:
        super().__init__("Some topic filters have no topic in common with what is granted.")
        self.patterns = patterns


def narrow(asked: TopicFilter, granted: TopicFilter) -> TopicFilter:
    """Return the filter of what is both asked for and granted, without what the grant denies, and with broadcasts when
    both have them. To ask for nothing, or for ``**`` alone, is to ask for all that is granted.

    No pattern of it covers another, unless every topic is granted: then they are those that were asked for. Raises
    NothingInCommon when a pattern that was asked for has no topic in common with the grant, or when nothing is left of
    all that is granted; and TooManyTopics when more than 100 patterns result, counted before those that others cover
    are dropped.
    """
    narrowed = _narrow(asked, granted)
    if narrowed.outside is not None:
        raise NothingInCommon(narrowed.outside)
    if narrowed.found is None:
        raise TooManyTopics(
            f"What is asked for and what is granted have more than {TOPICS_PER_FILTER} topic filters in common; ask for"
            " fewer, or for ** to have all that is granted."
        )
    return narrowed.found


class _Narrowed(NamedTuple):
    found: TopicFilter | None  # None: too many, unless some are outside
    outside: tuple[str, ...] | None = None


@lru_cache(NARROWED_KEPT)
def _narrow(asked: TopicFilter, granted: TopicFilter) -> _Narrowed:
    if granted.unrestricted:
        return _Narrowed(asked)
    broadcasts = asked.broadcasts and granted.broadcasts
    denied = {*asked.denied, *granted.denied}
    if asked.patterns in ((), ("**",)):
        common = set(granted.patterns or ("**",))
        if not broadcasts and common == _covered(common, denied):
            return _Narrowed(None, asked.patterns)
        return _Narrowed(TopicFilter(tuple(uncovered(common)), broadcasts, tuple(denied)))
    meetings = _meet_all(asked.patterns, granted.patterns)
    if meetings is None:
        return _Narrowed(None)
    common = set[str]().union(*meetings.values())
    lost = _covered(common, denied)
    if outside := tuple(pattern for pattern, found in meetings.items() if found <= lost):
        return _Narrowed(None, outside)
    left = common - lost
    return _Narrowed(TopicFilter(tuple(uncovered(left) if granted.patterns else left), broadcasts, tuple(denied)))


def _covered(patterns: Collection[str], denied: Collection[str]) -> set[str]:
    """Return those of these patterns that are wholly denied."""
    table = Table(denied)
    return {pattern for pattern in patterns if table.covers(pattern)}


def _meet_all(asked: Collection[str], granted: Collection[str]) -> dict[str, set[str]] | None:
    """Return what each pattern that is asked for has in common with those that are granted (none: with every topic), as
    patterns. None when these are more than 100.
    """
    if not granted:
        return {pattern: {pattern} for pattern in asked}
    codes, table = _Codes(), Table(granted)
    allowed = [(codes.encode(pattern), pattern) for pattern in granted]
    results: dict[int, str | None] = dict(allowed)  # most often two patterns have one of them in common
    common, meetings = set[str](), dict[str, set[str]]()
    for pattern in asked:
        code = codes.encode(pattern)
        results.setdefault(code, pattern)
        meeting = {code | other: name for other, name in compress(allowed, table.agreeing(pattern))}
        for both, other in meeting.items():
            if both not in results:
                results[both] = meet(pattern, other)
        meetings[pattern] = set(filter(None, map(results.get, meeting)))
        common |= meetings[pattern]
        if len(common) > TOPICS_PER_FILTER:
            return None
    return meetings


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
