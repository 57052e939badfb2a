"""Who sees what, by lists of topics and names alone: the oracle of the tests over brokers and nodes."""

from collections.abc import Collection
from dataclasses import dataclass

from hypothesis import strategies as st

from sse_app.grants import OPEN, Grant
from sse_app.narrowing import NothingInCommon, narrow
from sse_app.publication import Audience, Publication
from sse_app.topics import TopicFilter

TOPICS = ("a", "a/x", "a/y", "a/x/1", "b", "b/x")
PATTERNS = (*TOPICS, "a/*", "a/**", "*", "*/x", "a/*/1", "b/**", "**")
CLIENTS = ("ann", "bob", "cid")
USERS = ("u/1", "v@w")  # the first @ of a recipient separates, so a user's name may have one
RECIPIENTS = (*CLIENTS, "@u/1", "@v@w", "ann@u/1", "bob@v@w")


def fits(pattern: list[str], topic: list[str]) -> bool:
    """Match a pattern, one segment after the other, as the docstring of ``topics.py`` says it."""
    if pattern == ["**"]:
        return True
    if not pattern or not topic:
        return pattern == topic
    return pattern[0] in ("*", topic[0]) and fits(pattern[1:], topic[1:])


def fits_any(patterns: Collection[str], topic: str) -> bool:
    return any(fits(pattern.split("/"), topic.split("/")) for pattern in patterns)


@dataclass(frozen=True)
class Reader:
    """Who asks for what, and what it is granted. ``vouched``: its grant vouches for its client's name."""

    client: str = "ann"
    asked: tuple[str, ...] = ()
    granted: tuple[str, ...] = ()  # none for everything
    broadcasts: bool = True
    denied: tuple[str, ...] = ()
    user: str | None = None
    vouched: bool = True

    @property
    def is_open(self) -> bool:
        """True for a reader of a hub without credentials."""
        return self.vouched and self.broadcasts and not (self.granted or self.denied or self.user)

    @property
    def grant(self) -> Grant:
        if self.is_open:
            return OPEN
        subscribe = TopicFilter(self.granted, self.broadcasts, self.denied)
        return Grant(subscribe=subscribe, user=self.user, client="*" if self.vouched else None)

    @property
    def audience(self) -> Audience:
        return self.grant.audience(self.client)

    @property
    def filter(self) -> TopicFilter | None:
        """What is asked for and granted; None when some of what is asked for is outside."""
        grant = self.grant.subscribe
        assert grant is not None
        try:
            return narrow(TopicFilter.parse(self.asked), grant)
        except NothingInCommon:
            return None

    def topics(self, topics: Collection[str]) -> tuple[str, ...]:
        """Return those of a publication's topics that this reader may know of."""
        return tuple(
            topic
            for topic in topics
            if fits_any(self.asked or ("**",), topic)
            and fits_any(self.granted or ("**",), topic)
            and not fits_any(self.denied, topic)
        )

    @property
    def _names(self) -> list[str]:
        names = [self.client] if self.vouched else []
        return names + ([f"@{self.user}", f"{self.client}@{self.user}"] if self.user else [])

    def is_named(self, to: Collection[str]) -> bool:
        return any(name in to for name in self._names)

    def is_excluded(self, exclude: Collection[str]) -> bool:
        return any(name in exclude for name in (*self._names, self.client))

    def sees(self, item: Publication) -> bool:
        if self.is_excluded(item.exclude) or (item.to and not self.is_named(item.to)):
            return False
        return bool(self.topics(item.topics)) if item.topics else self.broadcasts


def _few(values: Collection[str], count: int) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(list(values)), max_size=count, unique=True).map(tuple)


asked = _few(PATTERNS, 2)
topics = _few(TOPICS, 3)
recipients = st.frozensets(st.sampled_from(RECIPIENTS), max_size=2)
clients = st.sampled_from(CLIENTS)
restricted = st.builds(
    Reader,
    clients,
    asked,
    _few(PATTERNS, 3),
    st.booleans(),
    _few(PATTERNS, 2),
    st.sampled_from([None, *USERS]),
    st.booleans(),
)
readers = st.builds(Reader, clients, asked) | restricted
