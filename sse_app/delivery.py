"""Delivery: publications to the subscribers whom they are for, without waiting for any of them.

Subscribers are grouped by filter and dialect. The publications that the log announced together are delivered in
*pieces*; all groups that get the same set of the publications of a piece are offered one batch, joined once. Clients
that a publication names are found by name, so that ``to`` and ``exclude`` cost as many look-ups as they have names.
"""

import asyncio
import types
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain, compress

from sse_app.batch import Batch
from sse_app.dialects import Dialect
from sse_app.grants import Grant
from sse_app.publication import Draft, Position, Publication
from sse_app.steps import Budget, slices
from sse_app.subscriber import Subscriber, offer_all
from sse_app.topics import TopicFilter, TopicIndex

SLICE = 1_000  # subscribers that are offered a batch between two turns of the loop: some 6 ms
PIECE_BYTES = 256 * 1024  # of bodies in a piece
PUBLICATION_BYTES = 64  # that a publication counts as beside its body: a piece has some 4,000 at most
NAME_BYTES = 64  # that a name in `to` or `exclude` counts as: some 4,000 look-ups in a piece, 2 ms

# Work in the unit of steps.Budget, 1 to 2 us.
OFFER = 3  # to offer a batch to one subscriber
END = 20  # to end a stream, or to describe it
FOUND = 2  # to find a subscriber by a name, with its group
NOTED = 2  # groups or subscribers that are noted in one unit
JOINED_BYTES = 16 * 1024  # that are joined to a batch in one unit
JOINED = 64  # publications of a piece that are taken into a batch, or left out, in one unit

COUNTS = 1_024  # topics of publications whose subscribers' number is kept, while nobody comes or goes

NOBODY: frozenset[Subscriber] = frozenset()


class Group:
    """The subscribers with equal filter and dialect. They all get the same, but for ``to`` and ``exclude``."""

    __slots__ = ("dialect", "filter", "known", "looking_up", "members", "newest")

    def __init__(self, topic_filter: TopicFilter, dialect: Dialect) -> None:
        self.filter, self.dialect = topic_filter, dialect
        self.members: dict[Subscriber, None] = {}
        self.newest: Publication | None = None  # of the publications that match the filter, once it is known
        self.known = False  # True when newest was delivered to the group, or looked up in the log
        self.looking_up: asyncio.Lock | None = None  # made when the newest is first looked up in the log

    def set_newest(self, newest: Publication | None) -> None:
        """Remember the newest publication that matches, whoever it is for; None when there is none."""
        self.newest, self.known = newest, True


_Choice = tuple[int, Dialect]  # a set of the publications of a piece, and the dialect in which they are written
_Named = dict[Group, dict[Subscriber, int]]  # the subscribers that a piece names, each with the set that it gets


class ClientIndex:
    """Finds subscribers by the names that ``to`` and ``exclude`` may have for them: a client ``tab-7``, all streams of
    a user ``@42``, or one of them ``tab-7@42``.
    """

    def __init__(self) -> None:
        self._vouched = _Names()  # by the client's name, where the grant vouches for it
        self._claimed = _Names()  # by a client's name for which nobody vouches, so that alone only `exclude` counts it
        self._users = _Names()

    def add(self, subscriber: Subscriber) -> None:
        grant = subscriber.grant
        self._clients(grant).add(subscriber.client, subscriber)
        if grant.user is not None:
            self._users.add(grant.user, subscriber)

    def remove(self, subscriber: Subscriber) -> None:
        grant = subscriber.grant
        self._clients(grant).remove(subscriber.client, subscriber)
        if grant.user is not None:
            self._users.remove(grant.user, subscriber)

    def find_named(self, names: Iterable[str]) -> set[Subscriber]:
        """Return the subscribers that ``to`` reaches by any of these names."""
        found = set[Subscriber]()
        for name in names:
            client, at, user = name.partition("@")
            found |= self._find_of_user(user, client) if at else self._vouched.find(name)
        return found

    def find_excluded(self, names: Collection[str]) -> set[Subscriber]:
        """Return the subscribers that ``exclude`` means by any of these names."""
        found = self.find_named(names)
        if self._claimed:
            found = found.union(*map(self._claimed.find, names))
        return found

    def find_user(self, user: str) -> set[Subscriber]:
        """Return the streams of this user."""
        return set(self._users.find(user))

    def _clients(self, grant: Grant) -> "_Names":
        return self._claimed if grant.client is None else self._vouched

    def _find_of_user(self, user: str, client: str) -> AbstractSet[Subscriber]:
        """Return the streams of a user, only those of this client if one is named. Each common part takes the time of
        the smaller of its two sets.
        """
        streams = self._users.find(user)
        return streams if not client else streams & self._vouched.find(client) | streams & self._claimed.find(client)


class _Names:
    """Subscribers by name."""

    def __init__(self) -> None:
        # A name that only one subscriber has, as most do, leads to it directly: a set would take 216 bytes a name.
        self._found: dict[str, Subscriber | set[Subscriber]] = {}

    def __len__(self) -> int:
        return len(self._found)

    def add(self, name: str, subscriber: Subscriber) -> None:
        found = self._found.setdefault(name, subscriber)
        if isinstance(found, set):
            found.add(subscriber)
        elif found is not subscriber:
            self._found[name] = {found, subscriber}

    def remove(self, name: str, subscriber: Subscriber) -> None:
        found = self._found[name]
        if isinstance(found, set) and len(found) > 1:
            found.remove(subscriber)
        else:
            del self._found[name]

    def find(self, name: str) -> AbstractSet[Subscriber]:
        """Return the subscribers with this name; not to be kept."""
        found = self._found.get(name, NOBODY)
        return {found} if isinstance(found, Subscriber) else found


class Delivery:
    """The subscribers of a node, and who of them gets what. Everything up to ``position`` was offered, and everything
    up to ``reached`` may be read from the log.

    What is being offered may be read already: a stream that asks the log where it ends is offered all behind that.
    """

    def __init__(self) -> None:
        self.position = self.reached = Position("", 0)
        self._groups: dict[tuple[TopicFilter, Dialect], Group] = {}
        self._index: TopicIndex[Group] = TopicIndex()
        self._clients = ClientIndex()
        self._counts: dict[tuple[str, ...], int] = {}  # of subscribers, by a publication's topics; replaced by a change

    def __iter__(self) -> Iterator[Subscriber]:
        return chain.from_iterable(group.members for group in self._groups.values())

    @property
    def groups(self) -> Collection[Group]:
        """All groups. None of them is empty."""
        return self._groups.values()

    def group_of(self, subscriber: Subscriber) -> Group:
        """Return the group of a subscriber that was added."""
        return self._groups[subscriber.filter, subscriber.dialect]

    def _find_group(self, subscriber: Subscriber) -> Group | None:
        """Return the group of a subscriber, None when it has left and was the last of it."""
        return self._groups.get((subscriber.filter, subscriber.dialect))

    def find_clients(self, name: str) -> set[Subscriber]:
        """Return the streams of the client with this name, whether or not anybody vouches for it."""
        return self._clients.find_excluded((name,))

    def find_user(self, user: str) -> set[Subscriber]:
        """Return the streams of this user."""
        return self._clients.find_user(user)

    def find_groups(self, topic: str, budget: Budget) -> Generator[None, None, Collection[Group]]:
        """Return the groups whose filter matches a topic, in steps; not to be kept."""
        return self._index.match((topic,), budget)

    def shared(self, topic_filter: TopicFilter, dialect: Dialect) -> TopicFilter:
        """Return the equal filter of a group, or this one if there is none: a group's subscribers share one object."""
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
        self._counts = {}

    def remove(self, subscriber: Subscriber) -> None:
        group = self.group_of(subscriber)
        del group.members[subscriber]
        self._clients.remove(subscriber)
        self._counts = {}
        if not group.members:
            del self._groups[group.filter, group.dialect]
            self._index.remove(group.filter, group)

    def forget_newest(self) -> None:
        """Forget the newest publication of each group: the log is not what it was."""
        for group in self._groups.values():
            group.known, group.looking_up = False, None  # what is being looked up may be of the log before

    def count_at_hand(self, draft: Draft) -> int | None:
        """Return what ``count`` would when it is known: drafts like this one were counted, and nobody has come since
        or gone. Else None.
        """
        return None if draft.to or draft.exclude else self._counts.get(draft.topics)

    @types.coroutine  # so that a bare yield is a turn of the loop, as in asyncio.sleep(0)
    def count(self, draft: Draft) -> Generator[None, None, int]:
        """Return how many subscribers a draft is for."""
        if (known := self.count_at_hand(draft)) is not None:
            return known
        budget, counts = Budget(SLICE * OFFER), self._counts
        groups = yield from self._index.match(draft.topics, budget)
        if not draft.to and not draft.exclude and len(groups) <= SLICE:
            count = sum([len(group.members) for group in groups])  # of most drafts, in a microsecond
            if len(counts) >= COUNTS:
                counts.clear()
            counts[draft.topics] = count
            return count
        excluded = self._clients.find_excluded(draft.exclude)
        named = self._clients.find_named(draft.to) - excluded
        if draft.to:
            return sum(map(len, (yield from self._in_groups(groups, named, budget)).values()))
        without = yield from self._in_groups(groups, excluded, budget)
        count = 0
        for part in slices(list(groups), SLICE):
            count += sum([len(group.members) for group in part])
            if without:  # in the same step: who has come or gone since is in both numbers or in none
                count -= sum(one in group.members for group in part for one in without.get(group, ()))
            if budget.spend(len(part) // NOTED):
                yield
        return count

    def _in_groups(
        self, groups: Collection[Group], subscribers: Collection[Subscriber], budget: Budget
    ) -> Generator[None, None, dict[Group, list[Subscriber]]]:
        """Return those of these subscribers that are in these groups, by group."""
        found: dict[Group, list[Subscriber]] = {}
        for part in slices(subscribers, SLICE):
            for subscriber, group in zip(part, map(self._find_group, part), strict=True):
                if group is not None and group in groups:
                    found.setdefault(group, []).append(subscriber)
            if budget.spend(len(part) // NOTED):
                yield
        return found

    def deliver(self, publications: Sequence[Publication]) -> Generator[None, None, None]:
        """Offer a piece to all whom it is for.

        The loop may turn between two steps. A subscriber that is added meanwhile finds these publications in the log,
        one that is removed takes nothing more, and the next piece comes after this one: nothing is reordered.
        """
        piece = _Piece(publications)
        matching = yield from self._match(piece)
        named = (yield from self._find_named(piece, matching)) if piece.has_names else {}
        groups = yield from piece.groups_by_set(matching)
        subscribers = (yield from piece.subscribers_by_set(named)) if named else {}
        for choice in groups | subscribers:
            batch = piece.batch(*choice)
            if piece.budget.spend(len(batch.data) // JOINED_BYTES + len(publications) // JOINED):
                yield
            for part in slices(groups.get(choice, ()), SLICE):
                members = [_unnamed(group, named) if group in named else group.members for group in part]
                yield from piece.offer(batch, list(chain.from_iterable(members)))
                if piece.budget.spend(len(part) // NOTED):
                    yield
            if choice in subscribers:
                yield from piece.offer(batch, subscribers[choice])

    def _match(self, piece: "_Piece") -> Generator[None, None, dict[Group, int]]:
        """Return for each group the set of publications that match."""
        matching: dict[Group, int] = {}
        for topics, chosen in piece.sets_by_topics():
            groups = self._index.values if topics is None else (yield from self._index.match(topics, piece.budget))
            first = not matching
            for part in slices(list(groups), SLICE):
                if first:
                    matching.update(dict.fromkeys(part, chosen))
                else:
                    matching.update((group, matching.get(group, 0) | chosen) for group in part)
                if piece.budget.spend(1 + len(part) // NOTED):
                    yield
        return matching

    def _find_named(self, piece: "_Piece", matching: dict[Group, int]) -> Generator[None, None, _Named]:
        """Return the subscribers that the piece names, by group, each with the set of publications that it gets."""
        named: _Named = {}
        for place, publication in enumerate(piece.publications):
            if not (publication.to or publication.exclude):
                continue
            bit, excluded = 1 << place, self._clients.find_excluded(publication.exclude)
            for part in slices(excluded | self._clients.find_named(publication.to), SLICE):
                for subscriber, group in zip(part, map(self._find_group, part), strict=True):
                    if group is not None:  # else the subscriber was removed between two steps
                        common, sets = matching.get(group, 0), named.setdefault(group, {})
                        before = sets.get(subscriber, common & ~piece.personal)
                        sets[subscriber] = before & ~bit if subscriber in excluded else before | common & bit
                if piece.budget.spend(FOUND * len(part) + 1):
                    yield
        return named


class _Piece:
    """Publications that are delivered together. A set of them is an int: bit n stands for the one at place n."""

    def __init__(self, publications: Sequence[Publication]) -> None:
        self.publications = publications
        self.personal = _set_of(bool(item.to) for item in publications)  # those that only named clients get
        self.has_names = bool(self.personal) or any(item.exclude for item in publications)
        self.lost = _set_of(item.lost for item in publications)
        self.budget = Budget(SLICE * OFFER)
        self._frames: dict[Dialect, list[bytes]] = {}

    def sets_by_topics(self) -> Iterator[tuple[tuple[str, ...] | None, int]]:
        """Yield the topics of publications, with the set of those that are on them; None for lost ones, which every
        filter matches.
        """
        sets: dict[tuple[str, ...], int] = {}
        for place, publication in enumerate(self.publications):
            sets[publication.topics] = sets.get(publication.topics, 0) | 1 << place
        if self.lost:
            yield None, self.lost
            if not sets[()] & ~self.lost:
                del sets[()]
        yield from sets.items()

    def groups_by_set(self, matching: dict[Group, int]) -> Generator[None, None, dict[_Choice, list[Group]]]:
        """Return the groups by the set that they get and their dialect, and set the newest publication of each."""
        public, readable = ~self.personal, ~self.lost
        groups: dict[_Choice, list[Group]] = {}
        for part in slices(matching.items(), SLICE):
            for group, matched in part:
                if shown := matched & readable:
                    group.set_newest(self.publications[shown.bit_length() - 1])
                if chosen := matched & public:
                    groups.setdefault((chosen, group.dialect), []).append(group)
            if self.budget.spend(len(part) // NOTED):
                yield
        return groups

    def subscribers_by_set(self, named: _Named) -> Generator[None, None, dict[_Choice, list[Subscriber]]]:
        """Return the subscribers that get a set of their own, by that and their dialect."""
        subscribers: dict[_Choice, list[Subscriber]] = {}
        for part in slices(chain.from_iterable(sets.items() for sets in named.values()), SLICE):
            for subscriber, chosen in part:
                if chosen:
                    subscribers.setdefault((chosen, subscriber.dialect), []).append(subscriber)
            if self.budget.spend(len(part) // NOTED):
                yield
        return subscribers

    def batch(self, chosen: int, dialect: Dialect) -> Batch:
        """Return the batch of a set. Each publication is written once, however many sets it is in.

        A set with lost publications is written by itself: those that follow each other in it become one gap.
        """
        bits = [digit == "1" for digit in f"{chosen:b}"[::-1]]
        items = list(compress(self.publications, bits))
        if chosen & self.lost:
            return Batch.join(items, dialect)
        data = b"".join(compress(self._frames_in(dialect), bits))
        return Batch(data, items[0].position.offset, items[-1].position.offset, items, count=len(items))

    def _frames_in(self, dialect: Dialect) -> list[bytes]:
        if dialect not in self._frames:
            self._frames[dialect] = [b"" if item.lost else dialect.frame(item) for item in self.publications]
        return self._frames[dialect]

    def offer(self, batch: Batch, subscribers: Iterable[Subscriber]) -> Iterator[None]:
        """Offer a batch of this piece to these subscribers."""
        for part in slices(subscribers, SLICE):
            offer_all(part, batch)
            if self.budget.spend(OFFER * len(part)):
                yield


def _set_of(marks: Iterable[bool]) -> int:
    return sum(1 << place for place, mark in enumerate(marks) if mark)


def _unnamed(group: Group, named: _Named) -> Collection[Subscriber]:
    """Return the members of a group that no publication names."""
    members = group.members.copy()
    for subscriber in named[group]:
        members.pop(subscriber, None)  # a subscriber may have been removed since it was found by name
    return members


def pieces(publications: Sequence[Publication]) -> Iterator[list[Publication]]:
    """Yield publications in pieces of at most PIECE_BYTES, or of one publication that is larger.

    A queue's bound may be exceeded by one batch, which is never larger than a piece.
    """
    piece: list[Publication] = []
    size = 0
    for publication in publications:
        weight = PUBLICATION_BYTES + len(publication.body)
        weight += NAME_BYTES * (len(publication.to) + len(publication.exclude))
        size += weight
        if piece and size > PIECE_BYTES:
            yield piece
            piece, size = [], weight
        piece.append(publication)
    if piece:
        yield piece


def in_steps(
    act: Callable[[Subscriber], None], subscribers: Sequence[Subscriber], units: int = OFFER
) -> Iterator[None]:
    """Do it for each of them, which takes so many units of work; between two steps the loop may turn."""
    for part in slices(subscribers, max(1, SLICE * OFFER // units)):
        for subscriber in part:
            act(subscriber)
        yield
