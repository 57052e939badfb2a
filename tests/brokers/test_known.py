"""The state of a node over a log that a server keeps, without a server: here the log is a list."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_app.brokers import Page
from sse_app.brokers.formats import lost
from sse_app.brokers.known import KnownLog
from sse_app.brokers.limits import PAGE_COUNT
from sse_app.brokers.recent import Recent
from sse_app.brokers.tail import QueuedTail
from sse_app.publication import Audience, Position, Publication
from sse_app.topics import TopicFilter
from tests.support.peers import turns

EVERYTHING = TopicFilter()


def publication(offset: int, *topics: str, epoch: str = "e", to: str = "") -> Publication:
    return Publication(Position(epoch, offset), "message", topics, b"data: x\n\n", 0.0, frozenset(to))


def offsets(publications: Sequence[Publication]) -> list[int]:
    return [item.position.offset for item in publications]


class Server:
    """A log elsewhere, what a node knows of it, and each read of it: the offset up to which, and how many."""

    def __init__(self, *topics: str, epoch: str = "e", count: int = 10_000) -> None:
        self.epoch = epoch
        self.log = [publication(offset, *filter(None, [topic])) for offset, topic in enumerate(topics, 1)]
        self.reads: list[tuple[int, int]] = []
        self.known = KnownLog("x", Recent(count), self.read_back)
        self.known.update("", self.top, 0)

    @property
    def top(self) -> Position:
        return Position(self.epoch, self.log[-1].position.offset if self.log else 0)

    async def read_back(self, until: Position, count: int) -> Page:
        await asyncio.sleep(0)
        self.reads.append((until.offset, count))
        found = [item for item in self.log if item.position.offset <= until.offset][-count:]
        start = found[0].position.offset - 1 if found else 0
        return Page(Position(self.epoch, start), found, Position(self.epoch, until.offset))

    def become(self, epoch: str, *topics: str) -> None:
        self.epoch = epoch
        self.log = [publication(offset, topic, epoch=epoch) for offset, topic in enumerate(topics, 1)]


async def waiting(tail: QueuedTail) -> list[int]:
    """Return what the tail gives in its next step, which does not have to be waited for."""
    async with asyncio.timeout(10):
        return offsets(await anext(tail))


# --- what the server says ---


def test_the_log_never_ends_or_begins_earlier_than_was_said_before() -> None:
    known = Server(*"abcde").known
    assert not known.update("e", Position("e", 9), 4)
    assert not known.update("e", Position("e", 7), 2)
    assert (known.top, known.oldest) == (Position("e", 9), 4)


def test_what_is_trimmed_is_no_longer_held() -> None:
    server = Server()
    server.known.announce([publication(offset) for offset in range(1, 7)])
    server.known.update("e", Position("e", 6), 4)
    assert server.known.page(Position("e", 3), server.known.top) is None
    page = server.known.page(Position("e", 4), server.known.top)
    assert page is not None
    assert (page.start, offsets(page.publications), page.end) == (Position("e", 4), [5, 6], Position("e", 6))


def test_of_a_log_that_holds_more_than_counts_only_the_newest_count() -> None:
    known = Server(*"abcdefgh").known
    known.history = 3
    assert known.held_from == 5
    known.update("e", Position("e", 8), 6)
    assert known.held_from == 6


async def test_another_log_is_read_anew(caplog: pytest.LogCaptureFixture) -> None:
    known = Server(*"abc").known
    tail = known.tail()
    known.announce([publication(4)])
    assert known.update("e", Position("other", 7), 5)
    assert (known.top, known.oldest, known.recent.top) == (Position("other", 7), 5, 7)
    assert await waiting(tail) == [], "which says that it has to be read again"
    assert caplog.messages == ["the log x is another one: epoch other follows e"]


def test_the_first_log_follows_none(caplog: pytest.LogCaptureFixture) -> None:
    assert Server(*"abc").known.top == Position("e", 3)
    assert not caplog.messages


def test_an_answer_of_an_epoch_that_is_over_says_nothing() -> None:
    known = Server().known
    assert known.update("e", Position("second", 5), 0)
    assert known.update("second", Position("third", 7), 0)
    assert not known.update("second", Position("second", 6), 0)
    assert not known.update("e", Position("fourth", 9), 0)
    known.advance(Position("zeroth", 99))
    assert known.top == Position("third", 7)


def test_what_was_acknowledged_is_known_before_the_tail_reads_it() -> None:
    known = Server(*"abc").known
    known.advance(Position("e", 5))
    known.advance(Position("e", 4))
    assert (known.top, known.recent.top) == (Position("e", 5), 3)


# --- the tail ---


async def test_a_tail_begins_behind_the_top_and_gets_all_in_order() -> None:
    known = Server(*"abc").known
    assert not known.is_followed
    known.rewind()
    tail = known.tail()
    assert known.is_followed
    known.announce([publication(1), publication(2)])
    known.announce([publication(3), publication(4)])
    known.announce([publication(5)])
    assert (tail.start, await waiting(tail)) == (Position("e", 3), [4, 5])
    assert known.top == Position("e", 5)
    await tail.aclose()
    assert not known.is_followed


async def test_what_follows_a_break_comes_without_what_was_before_it() -> None:
    """So that a step does not begin where the one before ended, which says that the log has to be read again."""
    known = Server().known
    tail = known.tail()
    known.announce([publication(1)])
    known.announce([publication(2), publication(5), publication(6)])
    assert await waiting(tail) == [5, 6]


async def test_a_break_before_its_start_is_none_for_a_tail() -> None:
    known = Server(*"abcdef").known
    known.rewind()
    tail = known.tail()
    step = asyncio.create_task(waiting(tail))
    known.announce([publication(1), publication(5), publication(6)])
    await turns(10)
    assert not step.done()
    known.announce([publication(7)])
    assert await step == [7]


def test_the_tail_is_read_from_so_far_below_the_top_as_is_kept() -> None:
    known = Server(*"abcdefgh", count=3).known
    known.rewind()
    assert known.recent.top == 5
    known.rewind(mean_size=8 * 1024 * 1024)
    assert known.recent.top == 6
    known.update("e", Position("e", 8), 7)
    known.rewind()
    assert known.recent.top == 7


def test_entries_that_cannot_be_read_are_counted_and_logged_seldom(caplog: pytest.LogCaptureFixture) -> None:
    known = Server().known
    for offset in range(1, 101):
        known.announce([lost(Position("e", offset), 0.0)])
    assert known.bad_envelopes == 100
    assert [text.rpartition(", ")[2] for text in caplog.messages] == [f"{2**power} so far" for power in range(7)]
    known.count_bad_envelopes(100)
    assert (known.bad_envelopes, len(caplog.messages)) == (200, 8)


# --- the newest ---


async def test_what_the_tail_has_read_needs_no_read_of_the_log() -> None:
    server = Server()
    server.known.announce([publication(offset, "ab"[offset % 2]) for offset in range(1, 9)])
    assert offsets(await server.known.newest(3, TopicFilter(("a",)), None)) == [4, 6, 8]
    assert await server.known.last(2, EVERYTHING, Audience(("c",))) == (Position("e", 6), True)
    assert await server.known.last(9, EVERYTHING, Audience(("c",))) == (Position("e", 0), False)
    assert not server.reads


async def test_a_log_without_any_that_these_readers_may_see_is_read_from_its_end() -> None:
    server = Server()
    server.known.announce([publication(1, to="b"), lost(Position("e", 2), 0.0)])
    assert await server.known.last(1, EVERYTHING, Audience(("c",))) == (Position("e", 2), False)
    assert not await server.known.newest(2, EVERYTHING, Audience(("c",)))
    assert offsets(await server.known.newest(2, EVERYTHING, None)) == [1]


async def test_no_more_is_read_at_first_than_was_asked_for_where_the_newest_matches() -> None:
    server = Server(*"x" * 1_000)
    assert offsets(await server.known.newest(2, EVERYTHING, None)) == [999, 1_000]
    assert server.reads == [(1_000, 2)]
    server = Server(*"x" * 1_000)
    await server.known.newest(2, TopicFilter(("silent",)), None)
    assert {count for _, count in server.reads} == {PAGE_COUNT}


async def test_what_the_tail_has_not_read_yet_is_read_from_the_log_without_what_it_has() -> None:
    server = Server(*"xxxxx")
    server.known.rewind()
    server.known.announce(server.log[:3])
    assert offsets(await server.known.newest(4, TopicFilter(("x",)), None)) == [2, 3, 4, 5]
    assert server.reads == [(5, 2)]


async def test_searches_at_once_read_the_log_once() -> None:
    server = Server(*"x" * 1_000)
    await asyncio.gather(*(server.known.newest(1, TopicFilter((f"{n}",)), None) for n in range(50)))
    assert server.reads == [(1_000, 256), (744, 256), (488, 256), (232, 256)]


async def test_what_was_deleted_in_the_log_is_passed_over() -> None:
    server = Server(*"x" * 700)
    del server.log[1:600]
    assert offsets(await server.known.newest(101, EVERYTHING, None)) == [1, *range(601, 701)]


async def test_a_search_ends_where_the_log_becomes_another_one() -> None:
    server = Server(*"x" * 600)
    read_back = server.read_back

    async def read_back_of_another_log(until: Position, count: int) -> Page:
        if server.reads:
            server.become("other", *"y" * 600)
            server.known.update("e", server.top, 0)
        return await read_back(until, count)

    server.known = KnownLog("x", Recent(), read_back_of_another_log)
    server.known.update("", server.top, 0)
    found = await server.known.newest(600, EVERYTHING, None)
    assert {item.position.epoch for item in found} == {"e"}
    assert offsets(found) == list(range(345, 601))


@pytest.mark.parametrize("length", [0, 5, 700])
async def test_searches_that_wait_end_where_the_log_becomes_another_one(length: int) -> None:
    """None of them reads the new log from an offset of the old one: its newest publications lie elsewhere."""
    server = Server(*"x" * 600)
    read_back = server.read_back

    async def read_back_of_another_log(until: Position, count: int) -> Page:
        await turns()  # in which the other searches begin to wait
        server.become("other", *"y" * length)
        server.known.update("e", server.top, 0)
        return await read_back(until, count)

    server.known = KnownLog("x", Recent(), read_back_of_another_log)
    server.known.update("", server.top, 0)
    found = await asyncio.gather(*(server.known.newest(3, EVERYTHING, None) for _ in range(5)))
    assert found == [[]] * 5
    assert len(server.reads) == 1


async def test_a_search_ends_when_the_log_becomes_another_one_between_two_pages() -> None:
    server = Server(*"x" * 600)
    search = server.known._newest_first(600, EVERYTHING, None)
    first = [await anext(search) for _ in range(256)]
    server.become("other", "y")
    server.known.update("e", server.top, 0)
    assert [item async for item in search] == []
    assert offsets(first) == list(range(600, 344, -1))
    assert len(server.reads) == 1


topics = st.sampled_from(["", "a", "b", "c"])


@given(
    st.lists(topics, max_size=40),
    st.integers(1, 5),
    st.integers(0, 40),
    st.sampled_from([(), ("a",), ("b", "c"), ("*",), ("silent",)]),
    st.integers(1, 9),
    st.data(),
)
def test_the_newest_are_those_of_the_whole_log(
    published: list[str], held: int, read: int, patterns: tuple[str, ...], count: int, data: st.DataObject
) -> None:
    """However much of it the tail has read, and whatever was deleted."""
    server = Server(*published, count=held)
    server.known.rewind()
    begun = server.known.recent.top
    server.known.announce(server.log[begun : max(begun, read)])
    kept = server.known.recent.top
    gone = set(data.draw(st.lists(st.integers(1, 40), max_size=10), label="deleted"))
    server.log = [item for item in server.log if item.position.offset not in gone or item.position.offset > kept - held]
    topic_filter = TopicFilter(patterns)
    expected = [item for item in server.log if topic_filter.matches(item.topics)][-count:]
    for _ in range(2):  # the topics that the first one has read do not deceive the second
        assert asyncio.run(server.known.newest(count, topic_filter, None)) == expected
