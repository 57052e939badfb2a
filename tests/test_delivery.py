"""Delivery: who is offered what, in how few batches, and at what cost."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_app import delivery as module
from sse_app.batch import Batch
from sse_app.brokers.memory import MemoryBroker
from sse_app.delivery import PIECE_BYTES, ClientIndex, Delivery, pieces
from sse_app.dialects import NATIVE, Native
from sse_app.events import Event
from sse_app.metrics import Totals
from sse_app.publication import Draft, Position, Publication
from sse_app.subscriber import Subscriber
from sse_app.topics import TopicFilter
from tests.support import visibility
from tests.support.visibility import Reader
from tests.support.work import steps_of

START = Position("e", 0)
BROKER, TOTALS = MemoryBroker(), Totals()  # nobody here looks at them


@dataclass
class Sink:
    """A writer that always has room."""

    seen: list[Batch] = field(default_factory=list)

    def write(self, batch: Batch) -> bool:
        self.seen.append(batch)
        return True

    def end(self, farewell: bytes = b"") -> None:
        pass

    @property
    def offsets(self) -> list[int]:
        return [item.position.offset for batch in self.seen for item in batch.publications]


def subscriber_of(*topics: str, client: str = "c", dialect: Native = NATIVE) -> Subscriber:
    return Subscriber(BROKER, TOTALS, TopicFilter.parse(topics), client, (100, 100_000), dialect=dialect)


def join(
    delivery: Delivery, *topics: str, client: str = "c", dialect: Native = NATIVE, start: Position = START
) -> tuple[Subscriber, Sink]:
    return joined(delivery, subscriber_of(*topics, client=client, dialect=dialect), start)


def joined(delivery: Delivery, subscriber: Subscriber, start: Position = START) -> tuple[Subscriber, Sink]:
    delivery.add(subscriber)
    subscriber.begin(start, b"", behind=False)
    sink = Sink()
    subscriber.attach(sink)
    return subscriber, sink


def join_reader(delivery: Delivery, reader: Reader) -> tuple[Subscriber, Sink]:
    topic_filter = reader.filter
    assert topic_filter is not None
    return joined(delivery, Subscriber(BROKER, TOTALS, topic_filter, reader.client, (100, 100_000), grant=reader.grant))


def publication(offset: int, *topics: str, to: str = "", exclude: str = "", lost: bool = False) -> Publication:
    body = b"" if lost else b"data: x\n\n"
    named = frozenset(to), frozenset(exclude)
    return Publication(Position("e", offset), "message", topics, body, 0.0, *named, lost=lost)


def deliver(delivery: Delivery, *publications: Publication) -> None:
    for _ in delivery.deliver(publications):
        pass


async def count(delivery: Delivery, draft: Draft) -> int:
    return await delivery.count(draft)


# Who gets what

clients = st.lists(st.tuples(st.sampled_from(["", "a", "b", "*", "a b"]), st.sampled_from("xyz")), max_size=8)
named = st.sets(st.sampled_from("xyz"), max_size=2).map("".join)
published = st.lists(
    st.tuples(st.sampled_from(["", "a", "b", "c", "a b"]), named, named, st.sampled_from([False] * 4 + [True])),
    min_size=1,
    max_size=6,
)


@given(clients, published)
def test_each_subscriber_gets_exactly_what_matches_and_is_visible_to_it(
    clients: list[tuple[str, str]], published: list[tuple[str, str, str, bool]]
) -> None:
    delivery = Delivery()
    joined = [join(delivery, *topics.split(), client=name) for topics, name in clients]
    piece = [
        publication(offset, lost=True) if lost else publication(offset, *topics.split(), to=to, exclude=exclude)
        for offset, (topics, to, exclude, lost) in enumerate(published, 1)
    ]
    deliver(delivery, *piece)
    for subscriber, sink in joined:
        wanted = [item.position.offset for item in piece if item.reaches(subscriber.filter, subscriber.audience)]
        assert sink.offsets == wanted
        assert len(sink.seen) <= 1, "a piece is one write"
        assert sum(batch.count for batch in sink.seen) == sum(not piece[offset - 1].lost for offset in wanted)


@given(clients, published, st.lists(st.tuples(st.booleans(), st.none() | st.integers(0, 99)), max_size=40))
def test_nobody_gets_more_or_less_for_those_who_come_and_go_between_two_steps(
    clients: list[tuple[str, str]],
    published: list[tuple[str, str, str, bool]],
    changes: list[tuple[bool, int | None]],  # after each step: does one leave, and which client comes
) -> None:
    delivery = Delivery()
    leaving = [join(delivery, *topics.split(), client=name) for topics, name in clients]
    staying = [join(delivery, *topics.split(), client=name) for topics, name in clients]
    piece = [
        publication(offset, *topics.split(), to=to, exclude=exclude)
        for offset, (topics, to, exclude, _) in enumerate(published, 1)
    ]
    coming, end = list[Sink](), Position("e", len(piece))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SLICE", 1)
        patch.setattr(module, "OFFER", 1)
        # The number of steps depends on the order of sets of objects, so the changes are drawn before.
        for _, (leaves, comes) in zip(delivery.deliver(piece), chain(changes, repeat((False, None))), strict=False):
            if leaves and leaving:
                subscriber, _ = leaving.pop()
                delivery.remove(subscriber)
                subscriber.release()
            if comes is not None and clients:
                topics, name = clients[comes % len(clients)]
                coming.append(join(delivery, *topics.split(), client=name, start=end)[1])
    for subscriber, sink in staying:
        assert sink.offsets == [
            one.position.offset for one in piece if one.reaches(subscriber.filter, subscriber.audience)
        ]
    assert [sink.offsets for sink in coming if sink.seen] == []


@given(clients, published)
def test_a_draft_counts_those_who_would_get_it(
    clients: list[tuple[str, str]], published: list[tuple[str, str, str, bool]]
) -> None:
    delivery = Delivery()
    joined = [join(delivery, *topics.split(), client=name) for topics, name in clients]
    for topics, to, exclude, _ in published:
        draft = Draft(Event("x"), tuple(topics.split()), frozenset(to), frozenset(exclude))
        deliver(delivery, one := publication(1, *topics.split(), to=to, exclude=exclude))
        expected = sum(one.reaches(item.filter, item.audience) for item, _ in joined)
        assert steps_of(count(delivery, draft))[0] == expected
        assert delivery.count_at_hand(draft) == (None if to or exclude else expected)


def test_a_count_is_at_hand_until_somebody_comes_or_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COUNTS", 3)
    delivery = Delivery()
    drafts = [Draft(Event("x"), (topic,)) for topic in "abcd"]
    first, _ = join(delivery, "a")
    assert [delivery.count_at_hand(draft) for draft in drafts] == [None] * 4
    assert [steps_of(count(delivery, draft))[0] for draft in drafts] == [1, 0, 0, 0]
    assert [delivery.count_at_hand(draft) for draft in drafts] == [None, None, None, 0], "a bounded number is kept"
    assert steps_of(count(delivery, drafts[0]))[0] == delivery.count_at_hand(drafts[0]) == 1
    join(delivery, "a")
    assert delivery.count_at_hand(drafts[0]) is None
    assert steps_of(count(delivery, drafts[0]))[0] == delivery.count_at_hand(drafts[0]) == 2
    delivery.remove(first)
    assert delivery.count_at_hand(drafts[0]) is None
    assert steps_of(count(delivery, drafts[0]))[0] == 1


def test_a_count_during_which_somebody_comes_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE", 8)
    monkeypatch.setattr(module, "OFFER", 1)
    delivery = Delivery()
    for topic in ("a/*", "*/b", "a/b", "z"):
        join(delivery, topic)
    draft = Draft(Event("x"), ("a/b", "c/d", "e/f", "g/h"))
    counting = count(delivery, draft).__await__()
    next(counting)
    join(delivery, "**")
    assert list(counting) == [], "the rest is one step"
    assert delivery.count_at_hand(draft) is None


items = st.builds(
    lambda topics, to, exclude: Publication(START, "message", topics, b"data: x\n\n", 0.0, to, exclude),
    visibility.topics,
    visibility.recipients,
    visibility.recipients,
) | st.just(publication(0, lost=True))


@given(
    st.lists(visibility.readers.filter(lambda reader: reader.filter is not None), max_size=8),
    st.lists(items, min_size=1, max_size=6),
)
def test_each_reader_gets_exactly_what_lists_of_topics_and_names_say(
    readers: list[Reader], published: list[Publication]
) -> None:
    delivery = Delivery()
    sinks = [join_reader(delivery, reader)[1] for reader in readers]
    piece = [item._replace(position=Position("e", offset)) for offset, item in enumerate(published, 1)]
    deliver(delivery, *piece)
    for reader, sink in zip(readers, sinks, strict=True):
        assert sink.offsets == [item.position.offset for item in piece if item.lost or reader.sees(item)]
    for item in piece:
        if not item.lost:
            draft = Draft(Event("x"), item.topics, item.to, item.exclude)
            assert steps_of(count(delivery, draft))[0] == sum(reader.sees(item) for reader in readers)


def test_a_lost_publication_is_told_to_every_stream_whatever_its_filter() -> None:
    delivery = Delivery()
    readers = [Reader(), Reader(broadcasts=False), Reader(asked=("a",), broadcasts=False), Reader(denied=("**",))]
    sinks = [join_reader(delivery, reader)[1] for reader in readers]
    deliver(delivery, publication(1), publication(2, lost=True))
    assert [sink.offsets for sink in sinks] == [[1, 2], [2], [2], [1, 2]]
    assert all(b"event: gap" in sink.seen[-1].data for sink in sinks)


# In how few batches


def batches_of(sinks: Sequence[Sink]) -> set[int]:
    return {id(batch) for sink in sinks for batch in sink.seen}


def test_groups_for_which_the_same_publications_are_share_one_batch() -> None:
    delivery = Delivery()
    sinks = [join(delivery, f"own/{number}", "all")[1] for number in range(50)]
    deliver(delivery, publication(1, "all"), publication(2, "all"))
    assert len(batches_of(sinks)) == 1
    assert {tuple(sink.offsets) for sink in sinks} == {(1, 2)}


def test_each_set_of_publications_is_a_batch() -> None:
    delivery = Delivery()
    sinks = [join(delivery, *topics)[1] for topics in (["a"], ["b"], ["a", "b"], ["a", "b", "z"])]
    deliver(delivery, publication(1, "a"), publication(2, "b"))
    assert [sink.offsets for sink in sinks] == [[1], [2], [1, 2], [1, 2]]
    assert len(batches_of(sinks)) == 3


class Counting(Native):
    """A dialect that counts what it writes."""

    def __init__(self) -> None:
        self.written = list[int]()

    def frame(self, publication: Publication) -> bytes:
        self.written.append(publication.position.offset)
        return super().frame(publication)


def test_each_dialect_writes_a_publication_once_however_many_sets_it_is_in() -> None:
    delivery, first, second = Delivery(), Counting(), Counting()
    sinks = [
        join(delivery, *topics, dialect=dialect)[1]
        for dialect in (first, second)
        for topics in (["a"], ["b"], ["a", "b"], [])
    ]
    deliver(delivery, publication(1, "a"), publication(2, "b"))
    assert first.written == second.written == [1, 2]
    assert len(batches_of(sinks)) == 6


# At what cost


def test_a_publication_to_one_client_is_offered_to_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    delivery = Delivery()
    for number in range(100):
        join(delivery, client=f"c{number}")
    _, sink = join(delivery, client="x")
    offered = list[Subscriber]()
    monkeypatch.setattr(module, "offer_all", lambda members, batch: offered.extend(members))
    deliver(delivery, publication(1, to="x"))
    assert [subscriber.client for subscriber in offered] == ["x"]
    assert sink.seen == []


def test_who_is_not_excluded_shares_one_batch() -> None:
    delivery = Delivery()
    sinks = [join(delivery, client=name)[1] for name in "xyz"]
    deliver(delivery, publication(1), publication(2, exclude="x"))
    assert [sink.offsets for sink in sinks] == [[1], [1, 2], [1, 2]]
    assert len(batches_of(sinks)) == 2


def test_a_client_that_leaves_between_two_steps_gets_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE", 1)
    delivery = Delivery()
    joined = [join(delivery, client=name) for name in "xyz"]
    steps = delivery.deliver([publication(1, exclude="x"), publication(2)])
    while not joined[1][1].offsets:
        next(steps)
    for subscriber, _ in joined[1:]:
        delivery.remove(subscriber)
        subscriber.release()
    for _ in steps:
        pass
    assert [sink.offsets for _, sink in joined] == [[2], [1, 2], []]


@pytest.mark.parametrize("names", [("", ""), ("x", ""), ("", "x")], ids=["everyone", "to", "exclude"])
def test_a_step_costs_the_same_however_many_groups_there_are(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]
) -> None:
    monkeypatch.setattr(module, "SLICE", 10)
    longest, steps = list[int](), list[int]()
    for groups in (500, 2_000):
        delivery = Delivery()
        for number in range(groups):
            join(delivery, f"own/{number}", "a", "b", client="x")
        piece = [publication(1, "a", to=names[0]), publication(2, "b", exclude=names[1])]
        _, costs = steps_of(delivery.deliver(piece))
        longest.append(max(costs))
        steps.append(len(costs))
    assert longest[1] < longest[0] * 1.5
    assert steps[1] > steps[0] * 3


def test_a_step_costs_the_same_however_many_publications_of_a_piece_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE", 100)
    longest = list[int]()
    for count in (1, 4):
        delivery = Delivery()
        for number in range(200):
            join(delivery, "a", client=chr(ord("a") + number))
        names = "".join(chr(ord("a") + number) for number in range(150))
        _, costs = steps_of(delivery.deliver([publication(offset, "a", to=names) for offset in range(1, count + 1)]))
        longest.append(max(costs))
    assert longest[1] < longest[0] * 1.25


def test_counting_those_whom_a_draft_is_for_lets_the_loop_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE", 100)
    delivery = Delivery()
    for number in range(2_000):
        delivery.add(subscriber_of(f"own/{number}", "a", client="x"))
    for draft, expected in (
        (Draft(Event("x"), ("a",)), 2_000),
        (Draft(Event("x"), ("a",), to=frozenset("x")), 2_000),
        (Draft(Event("x"), ("a",), exclude=frozenset("x")), 0),
        (Draft(Event("x"), ("b",), to=frozenset("x")), 0),
    ):
        counted, costs = steps_of(count(delivery, draft))
        assert counted == expected
        assert len(costs) > 2
        assert max(costs) < 2_000 * 2


def test_many_small_publications_are_several_pieces() -> None:
    cut = list(pieces([publication(offset) for offset in range(1, 10_001)]))
    assert max(map(len, cut)) * module.PUBLICATION_BYTES <= PIECE_BYTES
    assert sum(map(len, cut)) == 10_000


def test_many_names_make_a_piece_smaller() -> None:
    names = "".join(chr(0x4E00 + number) for number in range(1_000))
    cut = list(pieces([publication(offset, to=names) for offset in range(1, 13)]))
    assert [len(piece) for piece in cut] == [4, 4, 4]
    assert 4 * 1_000 * module.NAME_BYTES < PIECE_BYTES


# Clients and users by name


def test_only_exclude_finds_a_client_by_a_name_for_which_nobody_vouches() -> None:
    delivery = Delivery()
    till, till_sink = join_reader(delivery, Reader("till-3"))
    stranger, sink = join_reader(delivery, Reader("till-3", user="eve", vouched=False))
    to, exclude = (frozenset(names) for names in (["till-3", "@eve"], ["till-3"]))
    everybody, to_till, but_till = publication(1), publication(2)._replace(to=frozenset(["till-3"])), publication(3)
    but_till = but_till._replace(exclude=exclude)
    deliver(delivery, everybody, to_till, but_till, publication(4)._replace(to=to))
    assert (till_sink.offsets, sink.offsets) == ([1, 2, 4], [1, 4])
    assert delivery.find_clients("till-3") == {till, stranger}
    assert (delivery.find_user("eve"), delivery.find_user("till-3")) == ({stranger}, set())


@given(st.lists(st.tuples(st.booleans(), visibility.readers), max_size=30))
def test_names_lead_exactly_to_who_is_there(steps: list[tuple[bool, Reader]]) -> None:
    index, here = ClientIndex(), dict[Subscriber, Reader]()
    for joins, reader in steps:
        if joins or not here:
            subscriber = Subscriber(BROKER, TOTALS, TopicFilter(), reader.client, (1, 1), grant=reader.grant)
            here[subscriber] = reader
            index.add(subscriber)
        else:
            index.remove(subscriber := next(iter(here)))
            del here[subscriber]
    for name in visibility.RECIPIENTS:
        assert index.find_named([name]) == {one for one, reader in here.items() if reader.is_named({name})}
        assert index.find_excluded([name]) == {one for one, reader in here.items() if reader.is_excluded({name})}
    for subscriber in here:
        index.remove(subscriber)
    assert not index._vouched
    assert not index._claimed
    assert not index._users


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("xyz")), max_size=30))
def test_the_index_of_clients_holds_exactly_who_is_there(steps: list[tuple[bool, str]]) -> None:
    index, here = ClientIndex(), list[Subscriber]()
    for joins, name in steps:
        if joins or not here:
            here.append(Subscriber(MemoryBroker(), Totals(), TopicFilter(), name, (1, 1)))
            index.add(here[-1])
        else:
            index.remove(here.pop(ord(name) % len(here)))
    for names in ("", "x", "yz", "xyz", "w"):
        assert index.find_named(names) == index.find_excluded(names) == {item for item in here if item.client in names}
    for subscriber in here:
        index.remove(subscriber)
    assert not index._vouched
    assert not index._claimed
    assert not index._users


# The newest of a group


def test_a_group_knows_its_newest_from_what_it_was_given() -> None:
    delivery = Delivery()
    subscriber, _ = join(delivery, "a")
    group = delivery.group_of(subscriber)
    deliver(delivery, publication(1, "b"))
    assert not group.known
    deliver(delivery, publication(2, "a", to="q"), publication(3, "b"), publication(4, lost=True))
    assert group.known
    assert group.newest == publication(2, "a", to="q")
    delivery.forget_newest()
    assert not group.known
