"""What the log announces reaches whom it is for: by filter and by name, each batch made once."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_app.brokers.memory import MemoryBroker
from sse_app.delivery import MATCHES, SLICE, Groups, deliver, pieces
from sse_app.dialects import NATIVE, Native
from sse_app.events import Event, EventDecoder
from sse_app.metrics import Totals
from sse_app.publication import Draft, Position, Publication
from sse_app.subscriber import Batch, CloseReason, Subscriber
from sse_app.topics import TopicFilter

TOP = Position("e", 0)


@dataclass
class Sink:
    """A writer that always has room."""

    batches: list[Batch] = field(default_factory=list)

    def write(self, batch: Batch) -> bool:
        self.batches.append(batch)
        return True

    def end(self) -> None:
        pass

    @property
    def ids(self) -> list[str | None]:
        return [event.id for event in EventDecoder().feed(b"".join(batch.data for batch in self.batches))]


class Crew:
    """Groups with subscribers of all kinds, and what each was given."""

    def __init__(self, dialect: Native = NATIVE) -> None:
        self.groups, self.totals, self.dialect = Groups(), Totals(), dialect
        self.sinks: dict[Subscriber, Sink] = {}

    def join(self, client: str, *patterns: str) -> Subscriber:
        topics = TopicFilter.parse(patterns)
        subscriber = Subscriber(MemoryBroker(), self.totals, topics, client, 10, 10_000, dialect=self.dialect)
        subscriber.begin(TOP, b"", behind=False)
        self.groups.add(subscriber)
        self.sinks[subscriber] = Sink()
        subscriber.attach(self.sinks[subscriber])
        return subscriber

    def deliver(self, *publications: Publication) -> int:
        """Deliver them, and return in how many steps."""
        return 1 + sum(1 for _ in deliver(self.groups, publications))


class Counting(Native):
    """Native, and how many events it has written."""

    def __init__(self) -> None:
        self.written = 0

    def frame(self, publication: Publication) -> bytes:
        self.written += 1
        return super().frame(publication)


def publication(offset: int, *topics: str, to: str = "", exclude: str = "", lost: bool = False) -> Publication:
    draft = Draft(Event(str(offset)), topics, frozenset(to), frozenset(exclude))
    body = b"" if lost else draft.encode()
    return Publication(Position("e", offset), "message", topics, body, 0.0, draft.to, draft.exclude, lost=lost)


names = st.text("abc", max_size=2)
topics = st.sets(st.sampled_from(["t", "u", "t/v"]), max_size=2).map(sorted)
filters = st.sets(st.sampled_from(["t", "u", "t/*", "*", "t/**"]), max_size=2).map(sorted)
drafts = st.lists(st.tuples(topics, names, names, st.booleans()), min_size=1, max_size=6)


@given(st.lists(st.tuples(st.sampled_from("abc"), filters), max_size=8), st.lists(drafts, max_size=3))
def test_each_gets_what_is_for_it_once_and_in_order(
    members: list[tuple[str, list[str]]], batches: list[list[tuple[list[str], str, str, bool]]]
) -> None:
    crew, announced, offset = Crew(), list[list[Publication]](), 0
    for client, patterns in members:
        crew.join(client, *patterns)
    for batch in batches:
        new = []
        for on, to, exclude, lost in batch:
            offset += 1
            new.append(publication(offset, lost=True) if lost else publication(offset, *on, to=to, exclude=exclude))
        crew.deliver(*new)
        announced.append(new)
    for subscriber, sink in crew.sinks.items():
        expected = []
        for new in announced:
            seen = [item for item in new if item.reaches(subscriber.filter, subscriber.audience)]
            expected += [str(run[-1].position) for run in _runs(seen)]
        assert sink.ids == expected
        assert subscriber.position.offset <= offset


def _runs(publications: list[Publication]) -> Iterator[list[Publication]]:
    """Each event alone, lost ones that follow one another together."""
    run: list[Publication] = []
    for item in publications:
        if run and not (item.lost and run[-1].lost):
            yield run
            run = []
        run.append(item)
    if run:
        yield run


def test_filters_that_match_the_same_share_one_batch() -> None:
    dialect = Counting()
    crew = Crew(dialect)
    for number in range(300):
        crew.join("c", "t", f"mine/{number}")
    crew.deliver(publication(1, "t"), publication(2, "t"), publication(3, "mine/7"))
    assert dialect.written == 2 + 3
    assert {id(sink.batches[0]) for sink in crew.sinks.values()} == {
        id(batch) for sink in crew.sinks.values() for batch in sink.batches
    }
    assert crew.totals.delivered == 601


@pytest.mark.parametrize(("to", "written", "delivered"), [("a", 1, 1), ("", 2, 2_000), ("z", 0, 0)])
def test_a_publication_to_one_costs_one(to: str, written: int, delivered: int) -> None:
    dialect = Counting()
    crew = Crew(dialect)
    crew.join("a", "t")
    for number in range(999):
        crew.join(f"c-{number}", "t")
    calls = 1 if to else 2
    crew.deliver(*(publication(number + 1, "t", to=to) for number in range(calls)))
    assert dialect.written == written
    assert crew.totals.delivered == delivered


def test_one_that_is_excluded_costs_the_others_no_batch_of_their_own() -> None:
    dialect = Counting()
    crew = Crew(dialect)
    excluded = crew.join("a", "t")
    for number in range(999):
        crew.join(f"c-{number}", "t")
    crew.deliver(publication(1, "t", exclude="a"), publication(2, "t"))
    assert dialect.written == 1 + 2
    assert crew.sinks[excluded].ids == ["e-2"]
    assert crew.totals.delivered == 1 + 2 * 999


@pytest.mark.parametrize(
    ("to", "exclude", "count"), [("", "", 4), ("a", "", 2), ("ab", "a", 1), ("", "a", 2), ("z", "", 0)]
)
def test_a_draft_is_counted_as_it_would_be_delivered(to: str, exclude: str, count: int) -> None:
    crew = Crew()
    for client, pattern in [("a", "t"), ("a", "*"), ("b", "t"), ("c", "t/**"), ("a", "u")]:
        crew.join(client, pattern)
    draft = Draft(Event("x"), ("t",), frozenset(to), frozenset(exclude))
    assert crew.groups.count(draft) == count
    crew.deliver(publication(1, "t", to=to, exclude=exclude))
    assert crew.totals.delivered == count


def test_who_leaves_leaves_nothing_behind() -> None:
    crew = Crew()
    joined = [crew.join(client, pattern) for client in "aab" for pattern in ("t", "u")]
    for subscriber in joined:
        assert subscriber in crew.groups.named(subscriber.client)
        crew.groups.remove(subscriber)
        assert subscriber not in crew.groups.named(subscriber.client)
        subscriber.close(CloseReason.GONE)
    assert (len(crew.groups), list(crew.groups.everyone()), list(crew.groups.matching(("t",)))) == (0, [], [])
    assert crew.groups.named("a") == ()


def test_the_loop_turns_in_between() -> None:
    crew = Crew()
    for number in range(2 * SLICE + 1):
        crew.join("c", f"mine/{number}", "all")
    assert crew.deliver(publication(1, "all")) == 3
    many = MATCHES // (2 * SLICE) + 2
    assert crew.deliver(*(publication(2 + number, "all") for number in range(many))) >= 4


def test_lost_ones_are_told_to_everybody_once() -> None:
    crew = Crew()
    for pattern in ("t", "u", "**"):
        crew.join("a", pattern)
    crew.deliver(publication(1, "t"), publication(2, lost=True), publication(3, lost=True), publication(4, "t"))
    for subscriber, ids in zip(crew.sinks, (["e-1", "e-3", "e-4"], ["e-3"], ["e-1", "e-3", "e-4"]), strict=True):
        assert crew.sinks[subscriber].ids == ids
        (gap,) = [e for e in EventDecoder().feed(crew.sinks[subscriber].batches[0].data) if e.type == "gap"]
        assert gap.data == '{"requested":"e-1","oldest":"e-4","top":"e-3","reason":"lost"}'
    assert crew.totals.gaps == {"lost": 3}
    assert crew.totals.delivered == 4
    assert not any(group.known and group.newest is not None and group.newest.lost for group in crew.groups)


@pytest.mark.parametrize("sizes", [[], [1], [100_000] * 5, [300_000, 1, 1], [1, 300_000, 1]])
def test_pieces_are_bounded(sizes: list[int]) -> None:
    whole = [
        Publication(Position("e", number + 1), "message", (), b"x" * size, 0.0) for number, size in enumerate(sizes)
    ]
    cut = list(pieces(whole))
    assert [item for piece in cut for item in piece] == whole
    assert all(len(piece) == 1 or sum(len(item.body) for item in piece) <= 256 * 1024 for piece in cut)
