"""Patterns of topics, which ``topics.py`` explains, as text: their shapes, and what two of them have in common."""

from collections.abc import Collection, Iterator
from functools import reduce
from operator import or_

# The shape of a pattern, as bytes since there may be one for every pattern of every subscriber: the number of segments
# before a final `**`, with REST added if there is one, then the place of each `*`. Empty for a plain topic.
REST = 128


def shape_of(pattern: str) -> bytes:
    """Return the shape of a pattern."""
    if "*" not in pattern:
        return b""
    segments = pattern.split("/")
    rest = segments[-1] == "**"
    if rest:
        segments.pop()
    places = [place for place, segment in enumerate(segments) if segment == "*"]
    return bytes((len(segments) + rest * REST, *places)) if rest or places else b""


def pattern_of(shape: bytes, segments: list[str]) -> str:
    """Return the pattern of a shape that matches these segments, of which there are enough for it."""
    fitted = segments[: shape[0] & ~REST]
    for place in shape[1:]:
        fitted[place] = "*"
    if shape[0] & REST:
        fitted.append("**")
    return "/".join(fitted)


def fits(first: int, count: int) -> bool:
    """Return True when a pattern of a shape that begins with this byte matches topics of ``count`` segments."""
    return first == count or REST <= first <= count + REST


def meet(one: str, other: str) -> str | None:
    """Return the pattern that matches what both match, None when no topic matches both."""
    long, short = one.split("/"), other.split("/")
    long_rest, short_rest = long[-1] == "**", short[-1] == "**"
    del long[len(long) - long_rest :], short[len(short) - short_rest :]
    if len(long) < len(short):
        long, short, long_rest, short_rest = short, long, short_rest, long_rest
    if len(long) > len(short) and not short_rest:
        return None
    for place, segment in enumerate(short):
        if long[place] == "*":
            long[place] = segment
        elif segment not in ("*", long[place]):
            return None
    if long_rest and short_rest:
        long.append("**")
    return "/".join(long) or None


def demands_of(pattern: str) -> list[str | None]:
    """Return what a pattern demands of a topic at each place: a segment, ``*`` for any, None for the topic's end."""
    *segments, last = pattern.split("/")
    return [*segments] if last == "**" else [*segments, last, None]


class Table:
    """Patterns side by side: for each place of a topic, the sets of patterns that demand the same segment there.

    A set of patterns is an int, bit n for the pattern at place n. So one pattern is compared with all others at once,
    place by place.
    """

    def __init__(self, patterns: Collection[str]) -> None:
        self._all = (1 << len(patterns)) - 1
        self._columns: list[dict[str | None, int]] = []  # by place, then by what is demanded
        for number, demands in enumerate(map(demands_of, patterns)):
            self._columns += ({} for _ in range(len(demands) - len(self._columns)))
            for column, demand in zip(self._columns, demands, strict=False):
                column[demand] = column.get(demand, 0) | 1 << number
        self._free = [self._all & ~reduce(or_, column.values(), 0) for column in self._columns]

    def agreeing(self, pattern: str) -> Iterator[bool]:
        """Yield True for each of the patterns that has a topic in common with this one, False for the others."""
        return (digit == "1" for digit in reversed(f"{self._agreeing(pattern):b}"))

    def meets(self, pattern: str) -> bool:
        """Return True when one of the patterns has a topic in common with this one."""
        return self._agreeing(pattern) > 0

    def _agreeing(self, pattern: str) -> int:
        found = self._all
        for demand, column, free in zip(demands_of(pattern), self._columns, self._free, strict=False):
            if demand == "*":
                found &= ~column.get(None, 0)
            elif demand is None:
                found &= column.get(None, 0) | free
            else:
                found &= column.get(demand, 0) | column.get("*", 0) | free
        return found

    def covers(self, pattern: str) -> bool:
        """Return True when one of the patterns matches all that this one matches."""
        return self._covering(pattern) > 0

    def covered(self, pattern: str) -> bool:
        """Return True when another one matches all that this one of the patterns matches."""
        return self._covering(pattern) > 1

    def _covering(self, pattern: str) -> int:
        """Return how many of the patterns match all that this one matches."""
        demands, found = demands_of(pattern), self._all
        for demand, column, free in zip(demands, self._columns, self._free, strict=False):
            found &= column.get(demand, 0) | (0 if demand is None else column.get("*", 0)) | free
        if len(demands) < len(self._columns) and demands[-1:] != [None]:
            found &= self._free[len(demands)]  # it ends with `**`, so that from there on nothing may be demanded
        return found.bit_count()


def uncovered(patterns: Collection[str]) -> list[str]:
    """Return those of different patterns that no other one covers, in their order."""
    table = Table(patterns)
    return [pattern for pattern in patterns if not table.covered(pattern)]
