"""Topics and topic filters: where an event is published, and what a subscriber asks for.

A topic is 1 to 256 characters (``characters.py``) in ``/``-separated segments, none of them empty: ``orders/42``. A
topic filter is a topic, or has ``*`` in place of one segment, or a final ``**`` for the rest, which may be nothing:
``orders/**`` matches ``orders``, ``orders/42`` and ``orders/42/items``.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar
from unicodedata import is_normalized

from sse_app.characters import REFUSED, acceptable
from sse_app.errors import InvalidTopic, TooManyTopics

TOPIC_MAX = 256  # characters
TOPICS_PER_PUBLICATION = 16
TOPICS_PER_FILTER = 100

T = TypeVar("T")


def check_topics(topics: Iterable[str]) -> tuple[str, ...]:
    """A publication's topics, each once. Raises InvalidTopic, TooManyTopics (more than 16)."""
    unique = tuple(dict.fromkeys(topics))
    if len(unique) > TOPICS_PER_PUBLICATION:
        raise TooManyTopics(f"A publication has at most {TOPICS_PER_PUBLICATION} topics.")
    for topic in unique:
        if "*" in "".join(_segments(topic)):
            raise InvalidTopic("A topic to publish on has no wildcard; * and ** belong in a subscriber's topic filter.")
    return unique


def _segments(text: str) -> list[str]:
    segments = text.split("/")
    if not (0 < len(text) <= TOPIC_MAX and acceptable(text) and all(segments) and is_normalized("NFC", text)):
        raise InvalidTopic(
            f"A topic has 1 to {TOPIC_MAX} characters in non-empty segments separated by /, in Unicode NFC; {REFUSED}."
        )
    return segments


def _pattern_segments(pattern: str) -> list[str]:
    segments = _segments(pattern)
    if any("*" in segment and segment not in ("*", "**") for segment in segments) or "**" in segments[:-1]:
        raise InvalidTopic("In a topic filter * stands for one whole segment and ** only at the end, for the rest.")
    return segments


def _matches(pattern: list[str], topic: list[str]) -> bool:
    if pattern[-1] == "**":
        pattern = pattern[:-1]
        topic = topic[: len(pattern)]
    return len(pattern) == len(topic) and all(p in ("*", t) for p, t in zip(pattern, topic, strict=True))


@dataclass(frozen=True, slots=True)
class TopicFilter:
    """What a subscriber asks for: any of ``patterns`` (sorted, unique); none = everything. Equal filters compare
    equal.
    """

    patterns: tuple[str, ...] = ()

    @classmethod
    def parse(cls, patterns: Iterable[str]) -> "TopicFilter":
        """Raises InvalidTopic, TooManyTopics (more than 100)."""
        unique = tuple(sorted(set(patterns)))
        if len(unique) > TOPICS_PER_FILTER:
            raise TooManyTopics(f"A subscriber has at most {TOPICS_PER_FILTER} topic filters.")
        for pattern in unique:
            _pattern_segments(pattern)
        return cls(unique)

    def matches(self, topics: tuple[str, ...]) -> bool:
        """Whether a publication on these topics is for this filter; one without topics is for everyone."""
        if not topics or not self.patterns:
            return True
        split = [topic.split("/") for topic in topics]
        return any(_matches(pattern.split("/"), topic) for pattern in self.patterns for topic in split)


class _Node(Generic[T]):
    __slots__ = ("children", "here")

    def __init__(self) -> None:
        self.children: dict[str, _Node[T]] = {}
        self.here: set[T] = set()


class TopicIndex(Generic[T]):
    """Finds the values whose filter matches, without looking at the others: a tree of segments."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()
        self._every: dict[T, None] = {}
        self._unfiltered: set[T] = set()

    def __iter__(self) -> Iterator[T]:
        return iter(self._every)

    def add(self, filter: TopicFilter, value: T) -> None:
        self._every[value] = None
        if not filter.patterns:
            self._unfiltered.add(value)
        for pattern in filter.patterns:
            node = self._root
            for segment in pattern.split("/"):
                node = node.children.setdefault(segment, _Node())
            node.here.add(value)

    def remove(self, filter: TopicFilter, value: T) -> None:
        del self._every[value]
        self._unfiltered.discard(value)
        for pattern in filter.patterns:
            self._prune(self._root, pattern.split("/"), value)

    def _prune(self, node: _Node[T], segments: list[str], value: T) -> None:
        if not segments:
            node.here.discard(value)
            return
        child = node.children[segments[0]]
        self._prune(child, segments[1:], value)
        if not child.children and not child.here:
            del node.children[segments[0]]

    def match(self, topics: tuple[str, ...]) -> Iterable[T]:
        """The values whose filter matches a publication on these topics, each once."""
        if not topics or not self._root.children:
            return self._every if not topics else self._unfiltered
        found = set(self._unfiltered)
        for topic in topics:
            self._walk(topic.split("/"), found)
        return found

    def _walk(self, segments: list[str], found: set[T]) -> None:
        nodes = [self._root]
        for segment in segments:
            for node in nodes:
                if rest := node.children.get("**"):
                    found |= rest.here
            nodes = [child for node in nodes for key in (segment, "*") if (child := node.children.get(key))]
        for node in nodes:
            found |= node.here
            if rest := node.children.get("**"):
                found |= rest.here
