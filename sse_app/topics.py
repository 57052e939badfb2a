"""Topics and topic filters: where an event is published, and what a subscriber asks for.

A topic is 1 to 2,048 characters (``characters.py``) in at most 32 ``/``-separated segments, which may be empty:
``orders/42``, ``https://example.com/books/1``. It is compared as it is, character by character.

A topic filter is a set of patterns. A pattern is a topic, or has ``*`` in place of one segment, or a final ``**`` for
the rest, which may be nothing: ``orders/**`` matches ``orders``, ``orders/42`` and ``orders/42/items``. Only a whole
segment is a wildcard: in ``a*b`` and ``***`` the asterisks are characters like any other.

Patterns are found from the topic's side. Where a pattern has its wildcards is its *shape*; of each shape at most one
pattern matches a topic, and its text follows from the topic: of the shape "two segments, the second ``*``", only
``orders/*`` matches ``orders/42``. So a set of patterns is a set of strings, and a match is one look-up for the topic
and one for each shape that the set has, however many patterns it has.
"""

from bisect import bisect_left
from collections.abc import Collection, Generator, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Generic, NamedTuple, Protocol, TypeVar

from sse_app.characters import REFUSED, acceptable
from sse_app.errors import InvalidTopic, TooManyTopics
from sse_app.patterns import REST, Table, fits, pattern_of, shape_of
from sse_app.steps import Budget

TOPIC_MAX = 2_048  # characters
SEGMENTS_MAX = 32
TOPICS_PER_PUBLICATION = 16
TOPICS_PER_FILTER = 100
DENIED_PER_FILTER = 100
CHARACTERS_PER_UNIT = 512  # of a pattern that is made and looked up in a unit of work (steps.py)
VALUES_PER_UNIT = 32  # values of a pattern that are added to a result in a unit of work

T = TypeVar("T")


def check_topics(topics: Iterable[str]) -> tuple[str, ...]:
    """Return a publication's topics, each once. Raises InvalidTopic, TooManyTopics (more than 16)."""
    unique = tuple(dict.fromkeys(topics))
    if len(unique) > TOPICS_PER_PUBLICATION:
        raise TooManyTopics(f"A publication has at most {TOPICS_PER_PUBLICATION} topics.")
    for topic in unique:
        if not {"*", "**"}.isdisjoint(_segments(topic)):
            raise InvalidTopic(
                "A topic to publish on has no wildcard: no segment of it is * or **, which belong in a topic filter."
            )
    return unique


def _segments(text: str) -> list[str]:
    segments = text.split("/")
    if not (0 < len(text) <= TOPIC_MAX and len(segments) <= SEGMENTS_MAX and acceptable(text)):
        raise InvalidTopic(
            f"A topic has 1 to {TOPIC_MAX:,} characters in at most {SEGMENTS_MAX} segments separated by /; {REFUSED}."
        )
    return segments


class Bounds(NamedTuple):
    """Bounds of the topics that a filter matches: each is one of ``topics``, or begins with one of ``prefixes``.

    A prefix is empty or ends with ``/``, and no prefix begins with another. Not every topic within the bounds matches.
    """

    topics: tuple[str, ...]
    prefixes: tuple[str, ...]


class Filter(Hashable, Protocol):
    """The interface of a subscriber's filter. Subscribers whose filters compare equal are one group.

    ``TopicFilter`` is the only kind so far. Another kind, such as URL patterns, which are not made of segments, would
    have these members, and a part of ``TopicIndex`` for itself, where filters are tested one by one and the result is
    kept by topic.
    """

    @property
    def unrestricted(self) -> bool:
        """True when every publication matches."""

    @property
    def broadcasts(self) -> bool:
        """True when publications without a topic match."""

    @property
    def plain(self) -> tuple[str, ...] | None:
        """The topics that it matches, sorted, when no wildcard is needed to name them; else None."""

    @property
    def bounds(self) -> Bounds:
        """Bounds of the topics that it matches. With these, a sorted list of topics is enough to find those."""

    @property
    def cost(self) -> int:
        """The number of look-ups that a match takes at most, each of about a microsecond."""

    @property
    def shown(self) -> tuple[str, ...]:
        """Its patterns as the subscriber gave them, sorted; none for all topics. For people, not for matching."""

    def matches(self, topics: tuple[str, ...]) -> bool:
        """Return True when it matches a publication on these topics: any of them, or without a topic its broadcasts."""

    def matched(self, topics: Iterable[str]) -> tuple[str, ...]:
        """Return those of a publication's topics that it matches, in their order."""


@dataclass(frozen=True, slots=True)
class TopicFilter:
    """The topics that match any of these ``patterns`` and none of ``denied``; all topics when there are no patterns.
    ``broadcasts``: publications without a topic match too. A publication on several topics matches when one of them
    does.

    Patterns are sorted, each once, so that filters of the same patterns compare equal. With denied patterns, those of
    either kind that change nothing are left out, and in a filter that does not match everything ``**`` is written as no
    pattern. Only this module and ``narrowing.py`` look into them. Raises TooManyTopics for more than 100 denied ones.
    """

    patterns: tuple[str, ...] = ()
    broadcasts: bool = True
    denied: tuple[str, ...] = ()
    _shapes: tuple[bytes, ...] = field(init=False, repr=False, compare=False)
    _denying: "TopicFilter | None" = field(init=False, repr=False, compare=False)  # the filter of what is denied
    _hash: int = field(init=False, repr=False, compare=False)  # a filter is looked up several times as its group's key

    @classmethod
    def parse(cls, patterns: Iterable[str]) -> "TopicFilter":
        """Return the filter of these patterns. Raises InvalidTopic, TooManyTopics (more than 100)."""
        unique = set(patterns)
        if len(unique) > TOPICS_PER_FILTER:
            raise TooManyTopics(f"A subscriber has at most {TOPICS_PER_FILTER} topic filters.")
        for pattern in unique:
            if "**" in _segments(pattern)[:-1]:
                raise InvalidTopic("In a topic filter the segment ** stands only at the end, for the rest.")
        return cls(tuple(unique))

    def __post_init__(self) -> None:
        patterns, denied = tuple(sorted(set(self.patterns))), self.denied
        if denied or not self.broadcasts:
            patterns = () if "**" in patterns else patterns
            patterns, denied = _settled(patterns, denied)
            object.__setattr__(self, "denied", denied)
        object.__setattr__(self, "patterns", patterns)
        object.__setattr__(self, "_denying", TopicFilter(denied) if denied else None)
        object.__setattr__(self, "_shapes", tuple(dict.fromkeys(filter(None, map(shape_of, patterns)))))
        object.__setattr__(self, "_hash", hash((patterns, self.broadcasts, denied)))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[type["TopicFilter"], tuple[tuple[str, ...], bool, tuple[str, ...]]]:
        # Made anew: another process hashes the same text otherwise.
        return TopicFilter, (self.patterns, self.broadcasts, self.denied)

    @property
    def unrestricted(self) -> bool:
        """True when every publication matches."""
        return self.broadcasts and not self.denied and self.any_topic

    @property
    def any_topic(self) -> bool:
        """True when every topic matches that is not denied."""
        return not self.patterns or "**" in self.patterns

    @property
    def plain(self) -> tuple[str, ...] | None:
        """The topics that it matches, sorted, when no wildcard is needed to name them; else None."""
        if self._shapes or not self.patterns:
            return None
        return self.patterns if self._denying is None else self.matched(self.patterns)

    @property
    def cost(self) -> int:
        """The number of look-ups that a match takes at most."""
        return 1 + len(self._shapes) + (self._denying.cost if self._denying else 0)

    @property
    def shown(self) -> tuple[str, ...]:
        """Its patterns as the subscriber gave them, sorted; none for all topics. For people, not for matching."""
        return self.patterns

    @property
    def bounds(self) -> Bounds:
        """Bounds of the topics that it matches."""
        if self.any_topic:
            return Bounds((), ("",))
        topics, prefixes = list[str](), set[str]()
        for pattern in self.patterns:
            shape = shape_of(pattern)
            if not shape:
                topics.append(pattern)
                continue
            segments = pattern.split("/")[: shape[1] if len(shape) > 1 else -1]
            prefixes.add("".join(f"{segment}/" for segment in segments))
            if shape == bytes((REST + len(segments),)):
                topics.append("/".join(segments))  # `orders/**` matches `orders` too
        return Bounds(tuple(topics), tuple(_outermost(prefixes)))

    def matches(self, topics: tuple[str, ...]) -> bool:
        """Return True when it matches a publication on these topics: any of them, or without a topic its broadcasts."""
        if not topics:
            return self.broadcasts
        return any(map(self._matches, topics)) if self.patterns or self.denied else True

    def matched(self, topics: Iterable[str]) -> tuple[str, ...]:
        """Return those of a publication's topics that it matches, in their order."""
        return tuple(filter(self._matches, topics) if self.patterns or self.denied else topics)

    def _matches(self, topic: str) -> bool:
        if self._denying is not None and self._denying._matches(topic):
            return False
        if not self.patterns or self._has(topic):
            return True
        if self._shapes:
            segments = topic.split("/")
            for shape in self._shapes:
                if fits(shape[0], len(segments)) and self._has(pattern_of(shape, segments)):
                    return True
        return False

    def _has(self, pattern: str) -> bool:
        # A set would be faster by 0.1 us, and take 8 KiB for a hundred patterns in every subscriber.
        place = bisect_left(self.patterns, pattern)
        return place < len(self.patterns) and self.patterns[place] == pattern


def _settled(patterns: tuple[str, ...], denied: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the patterns without those that are wholly denied, and the denied ones that are of consequence.

    Where all are denied they stay, since no patterns would be all topics.
    """
    unique = sorted(set(denied))
    if len(unique) > DENIED_PER_FILTER:
        raise TooManyTopics(f"At most {DENIED_PER_FILTER} topic filters can be denied at a time.")
    denying = Table(unique)
    unique = [pattern for pattern in unique if not denying.covered(pattern)]
    if not patterns:
        return (), tuple(unique)
    kept = tuple(pattern for pattern in patterns if not denying.covers(pattern)) or patterns
    remaining = Table(kept)
    return kept, tuple(pattern for pattern in unique if remaining.meets(pattern))


def _outermost(prefixes: Iterable[str]) -> Iterator[str]:
    last = None
    for prefix in sorted(prefixes):
        if last is None or not prefix.startswith(last):
            last = prefix
            yield prefix


# Subscribers by topic


class TopicIndex(Generic[T]):
    """Finds the values whose filter matches a topic, at a cost that does not depend on how many others there are.

    Values whose filter matches any topic are in a set. All other patterns are the keys of one dict, in which a topic
    and its pattern of each shape are looked up: at most as many as there are shapes for its number of segments. Values
    whose filter denies topics are in an index of their own, where those that are found are compared one by one.
    """

    def __init__(self) -> None:
        self._with_broadcasts: dict[T, None] = {}
        self._without_broadcasts: dict[T, None] = {}
        self._any_topic: set[T] = set()
        # By pattern. A pattern with one value, as most are, has a tuple, which the patterns of that value share: a set
        # would take 216 bytes a pattern.
        self._values: dict[str, tuple[T] | set[T]] = {}
        self._shapes: dict[int, dict[bytes, int]] = {}  # by the first byte of a shape: how many patterns have it

        self._denying: _Denying[T] | None = None  # while there are such filters

    def __iter__(self) -> Iterator[T]:
        return chain(self._with_broadcasts, self._without_broadcasts)

    @property
    def values(self) -> Collection[T]:
        """All values. Not to be kept or changed, since it may be a collection of the index itself."""
        return list(self) if self._without_broadcasts else self._with_broadcasts

    def add(self, topic_filter: TopicFilter, value: T) -> None:
        everyone = self._with_broadcasts if topic_filter.broadcasts else self._without_broadcasts
        everyone[value] = None
        if not topic_filter.denied:
            self.add_patterns(topic_filter, value)
            return
        if self._denying is None:
            self._denying = _Denying()
        self._denying.add(topic_filter, value)

    def remove(self, topic_filter: TopicFilter, value: T) -> None:
        everyone = self._with_broadcasts if topic_filter.broadcasts else self._without_broadcasts
        del everyone[value]
        if not topic_filter.denied:
            self.remove_patterns(topic_filter, value)
        elif self._denying is not None:
            self._denying.remove(topic_filter, value)
            if not self._denying:
                self._denying = None

    def add_patterns(self, topic_filter: TopicFilter, value: T) -> None:
        """Add a value for the topics that its filter has before any are denied, and for no broadcasts."""
        if topic_filter.any_topic:
            self._any_topic.add(value)
            return
        alone = (value,)
        for pattern in topic_filter.patterns:
            values = self._values.setdefault(pattern, alone)
            if values is alone:
                self._count(pattern, +1)
            elif isinstance(values, set):
                values.add(value)
            else:
                self._values[pattern] = {*values, value}

    def remove_patterns(self, topic_filter: TopicFilter, value: T) -> None:
        """Remove a value that was added for these topics."""
        if topic_filter.any_topic:
            self._any_topic.discard(value)
            return
        for pattern in topic_filter.patterns:
            values = self._values[pattern]
            if isinstance(values, set) and len(values) > 1:
                values.remove(value)
            else:
                del self._values[pattern]
                self._count(pattern, -1)

    def _count(self, pattern: str, change: int) -> None:
        shape = shape_of(pattern)
        if not shape:
            return
        shapes = self._shapes.setdefault(shape[0], {})
        shapes[shape] = shapes.get(shape, 0) + change
        if not shapes[shape]:
            del shapes[shape]
            if not shapes:
                del self._shapes[shape[0]]

    def match(self, topics: tuple[str, ...], budget: Budget) -> Generator[None, None, Collection[T]]:
        """Find the values whose filter matches a publication on these topics, each once.

        A topic may fit the shapes of all subscribers' filters, so this is a generator. It yields when the budget is
        spent, and the index may change before it goes on: values that are added or removed meanwhile may be found or
        not. The result is not to be kept or changed, since it may be a collection of the index itself.
        """
        if self._denying is None:
            return self._match(topics, budget)
        return self._match_undenied(topics, budget, self._denying)

    def _match_undenied(
        self, topics: tuple[str, ...], budget: Budget, denying: "_Denying[T]"
    ) -> Generator[None, None, Collection[T]]:
        if not topics:
            return self._with_broadcasts
        found = yield from denying.match(topics, budget)
        found.update((yield from self._match(topics, budget)))
        return found

    def _match(self, topics: tuple[str, ...], budget: Budget) -> Generator[None, None, Collection[T]]:
        if not topics:
            return self._with_broadcasts
        if len(topics) == 1 and not self._shapes:
            values = self._values.get(topics[0])
            if values is None:
                return self._any_topic
            return values if not self._any_topic else self._any_topic.union(values)
        found = set(self._any_topic)
        every = len(self._with_broadcasts) + len(self._without_broadcasts)
        for pattern in chain.from_iterable(map(self._possible, topics)):
            work = 1 + len(pattern) // CHARACTERS_PER_UNIT
            if values := self._values.get(pattern):
                found.update(values)
                if len(found) == every:
                    break
                work += len(values) // VALUES_PER_UNIT
            if budget.spend(work):
                yield
                every = -1  # found may hold values that are removed meanwhile, so its size can prove nothing
        return found

    def _possible(self, topic: str) -> Iterator[str]:
        """Return the topic, and the pattern that matches it of each shape that any filter has now."""
        if not self._shapes:
            return iter((topic,))
        segments = topic.split("/")
        shapes = [shapes for first, shapes in self._shapes.items() if fits(first, len(segments))]
        return chain((topic,), map(pattern_of, list(chain.from_iterable(shapes)), repeat(segments)))


class _Denying(Generic[T]):
    """The values of an index whose filters deny topics."""

    def __init__(self) -> None:
        self._filters: dict[T, TopicFilter] = {}
        self._index: TopicIndex[T] = TopicIndex()

    def __len__(self) -> int:
        return len(self._filters)

    def add(self, topic_filter: TopicFilter, value: T) -> None:
        self._filters[value] = topic_filter
        self._index.add_patterns(topic_filter, value)

    def remove(self, topic_filter: TopicFilter, value: T) -> None:
        del self._filters[value]
        self._index.remove_patterns(topic_filter, value)

    def match(self, topics: tuple[str, ...], budget: Budget) -> Generator[None, None, set[T]]:
        """Find the values whose filter matches a publication on these topics, of which there are some."""
        found = set[T]()
        for value in list((yield from self._index.match(topics, budget))):
            topic_filter = self._filters.get(value)  # None: the value was removed between two steps
            if topic_filter is None:
                continue
            if topic_filter.matches(topics):
                found.add(value)
            if budget.spend(topic_filter.cost * len(topics)):
                yield
        return found
