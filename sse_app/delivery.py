"""Delivery: publications to the subscribers whom they are for, without waiting for any of them.

Subscribers stand in groups of equal filter and dialect. The publications that the log announced together are a *piece*;
the groups for which the same set of them is are offered one batch, joined once. Clients that a publication names are
found by name, so that ``to`` and ``exclude`` cost as many look-ups as there are names.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain, compress

from sse_app.dialects import Dialect
from sse_app.publication import Draft, Position, Publication
from sse_app.subscriber import Batch, Subscriber, offer_all
from sse_app.topics import TopicFilter, TopicIndex

SLICE = 1_000  # subscribers that are offered a batch between two turns of the loop: some 6 ms
PIECE_BYTES = 256 * 1024  # of bodies in a piece
NAME_BYTES = 64  # that a name in `to` or `exclude` counts as: some 4,000 look-ups in a piece, 2 ms


class Group:
    """The subscribers with equal filter and dialect: what is for one is for all, but for ``to`` and ``exclude``."""

    __slots__ = ("dialect", "filter", "known", "looking_up", "members", "newest")

    def __init__(self, topic_filter: TopicFilter, dialect: Dialect) -> None:
        self.filter, self.dialect = topic_filter, dialect
        self.members: dict[Subscriber, None] = {}
        self.newest: Publication | None = None  # of all that match, once that is known
        self.known = False
        self.looking_up: asyncio.Lock | None = None  # made when first somebody looks it up in the log

    def set_newest(self, newest: Publication | None) -> None:
        """Remember the newest publication that matches, whoever it is for; None when there is none."""
        self.newest, self.known = newest, True


class ClientIndex:
    """Finds subscribers by the names that ``to`` and ``exclude`` may have for them."""

    def __init__(self) -> None:
        # Most names have one subscriber, which stands there itself: a set for each would be 216 bytes.
        self._found: dict[str, Subscriber | set[Subscriber]] = {}

    def add(self, subscriber: Subscriber) -> None:
        for name in subscriber.audience.names:
            found = self._found.setdefault(name, subscriber)
            if isinstance(found, set):
                found.add(subscriber)
            elif found is not subscriber:
                self._found[name] = {found, subscriber}

    def remove(self, subscriber: Subscriber) -> None:
        for name in subscriber.audience.names:
            found = self._found[name]
            if isinstance(found, set) and len(found) > 1:
                found.remove(subscriber)
            else:
                del self._found[name]

    def find(self, names: Iterable[str]) -> set[Subscriber]:
        """Return the subscribers with any of these names."""
        subscribers = set[Subscriber]()
        for name in names:
            found = self._found.get(name)
            if isinstance(found, set):
                subscribers |= found
            elif found is not None:
                subscribers.add(found)
        return subscribers


class Delivery:
    """The subscribers of a node, and who of them gets what. Everything up to ``position`` was offered."""

    def __init__(self) -> None:
        self.position = Position("", 0)
        self._groups: dict[tuple[TopicFilter, Dialect], Group] = {}
        self._index: TopicIndex[Group] = TopicIndex()
        self._clients = ClientIndex()

    def __iter__(self) -> Iterator[Subscriber]:
        return chain.from_iterable(group.members for group in self._groups.values())

    @property
    def groups(self) -> Collection[Group]:
        """All groups; each has a member at least."""
        return self._groups.values()

    def group_of(self, subscriber: Subscriber) -> Group:
        """Return the group of a subscriber that was added."""
        return self._groups[subscriber.filter, subscriber.dialect]

    def shared(self, topic_filter: TopicFilter, dialect: Dialect) -> TopicFilter:
        """Return the equal filter that a group has already, so that subscribers keep one between them."""
        group = self._groups.get((topic_filter, dialect))
        return topic_filter if group is None else group.filter

    def add(self, subscriber: Subscriber) -> None:
        key = subscriber.filter, subscriber.dialect
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(*key)
            self._index.add(group.filter, group)
        group.members[subscriber] = None
        self._clients.add(subscriber)

    def remove(self, subscriber: Subscriber) -> None:
        group = self.group_of(subscriber)
        del group.members[subscriber]
        self._clients.remove(subscriber)
        if not group.members:
            del self._groups[group.filter, group.dialect]
            self._index.remove(group.filter, group)

    def forget_newest(self) -> None:
        """Forget the newest publication of each group: the log is not what it was."""
        for group in self._groups.values():
            group.known = False

    async def count(self, draft: Draft) -> int:
        """Return how many subscribers a draft is for. The loop may turn while they are counted."""
        groups = self._index.match(draft.topics)
        excluded = self._clients.find(draft.exclude)
        if draft.to:
            return sum(self.group_of(named) in groups for named in self._clients.find(draft.to) - excluded)
        return sum(len(group.members) for group in groups) - sum(self.group_of(named) in groups for named in excluded)

    def deliver(self, publications: Sequence[Publication]) -> Iterator[None]:
        """Offer a piece to all whom it is for.

        Between two steps the loop may turn. Who joins meanwhile finds these publications in the log, who leaves takes
        nothing more, and the next piece comes after this one: nothing is reordered.
        """
        piece = _Piece(publications)
        wanted = self._wanted(piece)
        own = self._own(piece, wanted)
        budget = SLICE
        for members, batch in _offers(piece, wanted, own):
            for part in slices(members):
                offer_all(part, batch)
                budget -= len(part)
                if budget <= 0:
                    budget = SLICE
                    yield

    def _wanted(self, piece: "_Piece") -> dict[Group, int]:
        """Return for each group the set of publications that match; its newest is known from now on."""
        wanted: dict[Group, int] = {}
        for place, publication in enumerate(piece.publications):
            groups, bit = self._index.match(publication.topics), 1 << place
            if not wanted:
                wanted = dict.fromkeys(groups, bit)
                continue
            for group in groups:
                wanted[group] = wanted.get(group, 0) | bit
        for group, matching in wanted.items():
            if told := matching & ~piece.lost:
                group.set_newest(piece.publications[told.bit_length() - 1])
        return wanted

    def _own(self, piece: "_Piece", wanted: dict[Group, int]) -> dict[Group, dict[Subscriber, int]]:
        """Return by group the subscribers that a publication names, each with the set that it gets."""
        own: dict[Group, dict[Subscriber, int]] = {}
        for place, publication in enumerate(piece.publications):
            if not (publication.to or publication.exclude):
                continue
            bit, excluded = 1 << place, self._clients.find(publication.exclude)
            for subscriber in excluded | self._clients.find(publication.to):
                group = self.group_of(subscriber)
                matching = wanted.get(group, 0)
                named = own.setdefault(group, {})
                before = named.get(subscriber, matching & ~piece.personal)
                named[subscriber] = before & ~bit if subscriber in excluded else before | matching & bit
        return own


class _Piece:
    """Publications that are delivered together. A set of them is an int: bit n stands for the one at place n."""

    def __init__(self, publications: Sequence[Publication]) -> None:
        self.publications = publications
        self.personal = _set_of(bool(item.to) for item in publications)  # for nobody but those whom they name
        self.lost = _set_of(item.lost for item in publications)
        self._frames: dict[Dialect, list[bytes]] = {}

    def batch(self, chosen: int, dialect: Dialect) -> Batch:
        """Return the batch of a set. Each publication is written once, however many sets it is in."""
        bits = [digit == "1" for digit in f"{chosen:b}"[::-1]]
        items = list(compress(self.publications, bits))
        if self.lost & chosen:
            return Batch.join(items, dialect)
        data = b"".join(compress(self._frames_in(dialect), bits))
        return Batch(data, items[0].position.offset, items[-1].position.offset, items, count=len(items))

    def _frames_in(self, dialect: Dialect) -> list[bytes]:
        if dialect not in self._frames:
            self._frames[dialect] = [b"" if item.lost else dialect.frame(item) for item in self.publications]
        return self._frames[dialect]


def _set_of(marks: Iterable[bool]) -> int:
    return sum(1 << place for place, mark in enumerate(marks) if mark)


def _offers(
    piece: _Piece, wanted: dict[Group, int], own: dict[Group, dict[Subscriber, int]]
) -> Iterator[tuple[list[Subscriber], Batch]]:
    """Yield each set of publications as one batch, with all who get exactly that."""
    groups: dict[tuple[int, Dialect], list[Group]] = {}
    for group, matching in wanted.items():
        if chosen := matching & ~piece.personal:
            groups.setdefault((chosen, group.dialect), []).append(group)
    named: dict[tuple[int, Dialect], list[Subscriber]] = {}
    for group, sets in own.items():
        for subscriber, chosen in sets.items():
            if chosen:
                named.setdefault((chosen, group.dialect), []).append(subscriber)
    for key in groups | named:
        members = list(chain.from_iterable(_unnamed(group, own) for group in groups.get(key, ())))
        yield members + named.get(key, []), piece.batch(*key)


def _unnamed(group: Group, own: dict[Group, dict[Subscriber, int]]) -> Iterable[Subscriber]:
    if group not in own:
        return group.members
    members = group.members.copy()
    for subscriber in own[group]:
        members.pop(subscriber, None)  # it may have left
    return members


def pieces(publications: Sequence[Publication]) -> Iterator[list[Publication]]:
    """Yield them cut so that no piece is larger than PIECE_BYTES, or one publication: a batch of it may exceed a
    queue's bound.
    """
    piece: list[Publication] = []
    size = 0
    for publication in publications:
        weight = len(publication.body) + NAME_BYTES * (len(publication.to) + len(publication.exclude))
        size += weight
        if piece and size > PIECE_BYTES:
            yield piece
            piece, size = [], weight
        piece.append(publication)
    if piece:
        yield piece


def slices(subscribers: list[Subscriber]) -> Iterator[list[Subscriber]]:
    """Yield at most SLICE of them at a time."""
    if len(subscribers) <= SLICE:
        yield subscribers
        return
    for start in range(0, len(subscribers), SLICE):
        yield subscribers[start : start + SLICE]


def in_steps(act: Callable[[Subscriber], None], subscribers: list[Subscriber]) -> Iterator[None]:
    """Do it for each of them; between two steps the loop may turn."""
    for part in slices(subscribers):
        for subscriber in part:
            act(subscriber)
        yield
