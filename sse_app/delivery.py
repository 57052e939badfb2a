"""Who is subscribed here, and how what the log announces gets to them.

    publications -> which groups match which of them -> one batch for each set of publications and dialect -> offered

A group is for filters that are equal: what is for one of its members is for all, but for those whom ``to`` and
``exclude`` name. They are found by their names, so that a named publication costs those it names.
"""

from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from itertools import chain, compress

from sse_app.dialects import Dialect
from sse_app.publication import Draft, Publication
from sse_app.subscriber import Batch, Subscriber, offer_all
from sse_app.topics import TopicFilter, TopicIndex

SLICE = 1_000  # subscribers that are offered a batch between two turns of the loop: some 6 ms
MATCHES = 10_000  # groups of publications that are noted between two turns of the loop: some 2 ms
BATCH_BYTES = 256 * 1024  # of bodies that are joined into one batch


class Group:
    """The subscribers with equal filters and one dialect."""

    __slots__ = ("dialect", "filter", "known", "members", "newest")

    def __init__(self, topics: TopicFilter, dialect: Dialect) -> None:
        self.filter, self.dialect = topics, dialect
        self.members: dict[Subscriber, None] = {}
        self.newest: Publication | None = None  # of all that match, once that is known
        self.known = False

    def remember(self, newest: Publication | None) -> None:
        self.newest, self.known = newest, True

    def __len__(self) -> int:
        return len(self.members)


class Groups:
    """All subscribers, by filter and dialect, by topic, and by name."""

    def __init__(self) -> None:
        self._groups: dict[tuple[TopicFilter, Dialect], Group] = {}
        self._index: TopicIndex[Group] = TopicIndex()
        # By client name. Most names are one stream's, whose place in a tuple would cost 50 bytes.
        self._named: dict[str, Subscriber | tuple[Subscriber, ...]] = {}

    def __iter__(self) -> Iterator[Group]:
        return iter(self._groups.values())

    def __len__(self) -> int:
        return len(self._groups)

    def everyone(self) -> Iterator[Subscriber]:
        return chain.from_iterable(group.members for group in self._groups.values())

    def of(self, topics: TopicFilter, dialect: Dialect) -> Group:
        """Return the group of a filter and a dialect, made when it is the first of its kind."""
        group = self._groups.get((topics, dialect))
        if group is None:
            group = self._groups[topics, dialect] = Group(topics, dialect)
            self._index.add(topics, group)
        return group

    def add(self, subscriber: Subscriber) -> None:
        self.of(subscriber.filter, subscriber.dialect).members[subscriber] = None
        others = self.named(subscriber.client)
        self._named[subscriber.client] = (*others, subscriber) if others else subscriber

    def remove(self, subscriber: Subscriber) -> None:
        group = self.group_of(subscriber)
        del group.members[subscriber]
        if not group.members:
            del self._groups[group.filter, group.dialect]
            self._index.remove(group.filter, group)
        others = tuple(other for other in self.named(subscriber.client) if other is not subscriber)
        if others:
            self._named[subscriber.client] = others if len(others) > 1 else others[0]
        else:
            del self._named[subscriber.client]

    def group_of(self, subscriber: Subscriber) -> Group:
        return self._groups[subscriber.filter, subscriber.dialect]

    def named(self, name: str) -> tuple[Subscriber, ...]:
        """Return the subscribers with this client name."""
        found = self._named.get(name, ())
        return found if isinstance(found, tuple) else (found,)

    def matching(self, topics: tuple[str, ...]) -> Collection[Group]:
        return self._index.match(topics)

    def count(self, draft: Draft) -> int:
        """Return how many subscribers a publication is for."""
        groups = self.matching(draft.topics)
        if not draft.to and not draft.exclude:
            return sum(map(len, groups))
        groups = frozenset(groups)
        if draft.to:
            reached = chain.from_iterable(map(self.named, draft.to - draft.exclude))
            return sum(self.group_of(subscriber) in groups for subscriber in reached)
        missed = chain.from_iterable(map(self.named, draft.exclude))
        return sum(map(len, groups)) - sum(self.group_of(subscriber) in groups for subscriber in missed)


def deliver(groups: Groups, publications: Sequence[Publication]) -> Iterator[None]:
    """Offer what the log announced to whom it is for. Never waits for any of them.

    Between two steps the loop may turn. Who joins meanwhile finds these publications in the log, who leaves takes
    nothing more, and the next batch comes after this one: nothing is reordered.
    """
    masks = yield from _masks(groups, publications)
    named = yield from _offer_to_named(groups, publications, masks)
    for_some = sum(1 << place for place, item in enumerate(publications) if item.to)
    # Groups for which the same publications are get the same batch: N filters that match one publication cost one.
    shares: dict[tuple[int, Dialect], list[Group]] = {}
    for group, mask in masks.items():
        if for_all := mask & ~for_some:
            shares.setdefault((for_all, group.dialect), []).append(group)
    offered = 0
    for (mask, dialect), sharing in shares.items():
        batch = Batch.join(_chosen(publications, mask), dialect)
        for part in slices(list(chain.from_iterable(_unnamed(group, named) for group in sharing))):
            offer_all(part, batch)
            offered += len(part)
            if offered >= SLICE:
                offered = 0
                yield


def _masks(groups: Groups, publications: Sequence[Publication]) -> Generator[None, None, dict[Group, int]]:
    """Return of each group which publications its filter matches: bit n stands for the one at place n."""
    masks: dict[Group, int] = {}
    found = 0
    for place, publication in enumerate(publications):
        bit = 1 << place
        matching = groups.matching(publication.topics)
        for group in matching:
            masks[group] = masks.get(group, 0) | bit
        found += len(matching)
        if found >= MATCHES:
            found = 0
            yield
    events = sum(1 << place for place, item in enumerate(publications) if not item.lost)
    for group, mask in masks.items():
        if seen := mask & events:
            group.remember(publications[seen.bit_length() - 1])
    return masks


def _offer_to_named(
    groups: Groups, publications: Sequence[Publication], masks: dict[Group, int]
) -> Generator[None, None, dict[Group, list[Subscriber]]]:
    """Offer to each subscriber that a publication names what is for it, and return them, by group."""
    offered: dict[Group, list[Subscriber]] = {}
    names = frozenset[str]().union(*(item.to | item.exclude for item in publications if item.to or item.exclude))
    for place, subscriber in enumerate(chain.from_iterable(map(groups.named, names)), 1):
        group = groups.group_of(subscriber)
        if mask := masks.get(group, 0):
            offered.setdefault(group, []).append(subscriber)
            audience = subscriber.audience
            if own := [item for item in _chosen(publications, mask) if item.visible_to(audience)]:
                subscriber.offer(Batch.join(own, group.dialect))
        if place % SLICE == 0:
            yield
    return offered


def _chosen(publications: Sequence[Publication], mask: int) -> Sequence[Publication]:
    if mask == (1 << len(publications)) - 1:
        return publications
    return list(compress(publications, map("1".__eq__, f"{mask:b}"[::-1])))


def _unnamed(group: Group, named: dict[Group, list[Subscriber]]) -> Iterable[Subscriber]:
    if group not in named:
        return group.members
    members = group.members.copy()
    for subscriber in named[group]:
        members.pop(subscriber, None)
    return members


def pieces(publications: Sequence[Publication]) -> Iterator[list[Publication]]:
    """Cut so that no batch is larger than BATCH_BYTES, or one publication: it is what may exceed a queue's bound."""
    piece: list[Publication] = []
    size = 0
    for publication in publications:
        size += len(publication.body)
        if piece and size > BATCH_BYTES:
            yield piece
            piece, size = [], len(publication.body)
        piece.append(publication)
    if piece:
        yield piece


def slices(members: list[Subscriber]) -> Iterator[list[Subscriber]]:
    """Cut so that the loop can turn after each."""
    if len(members) <= SLICE:
        yield members
    else:
        for start in range(0, len(members), SLICE):
            yield members[start : start + SLICE]
