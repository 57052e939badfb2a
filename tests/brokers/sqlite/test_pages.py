"""Reading a log in a SQLite file: what comes is what the log in memory gives, and no search grows with the log."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_app.brokers.limits import PAGE_BYTES, PAGE_COUNT, Limits
from sse_app.brokers.memory import MemoryBroker
from sse_app.brokers.sqlite.log import connect
from sse_app.brokers.sqlite.pages import SCAN, TOPICS_AT_ONCE, Reader
from sse_app.events import Event
from sse_app.publication import Audience, Draft, Position, Publication
from sse_app.topics import TopicFilter
from tests.support.peers import Clock, log_of
from tests.support.sqlite_log import END, NOBODY, append, entry, open_log, reading

START = Position("", 0)
ME = frozenset(["me"])
YOU = frozenset(["you"])
EVERYTHING = TopicFilter()
QUIET = TopicFilter.parse(["quiet"])
SEVERAL = TopicFilter.parse(["quiet", "loud", "other"])
WILD = TopicFilter.parse(["quiet/*", "quiet"])

Work = Callable[[Reader], object]


def texts(publications: object) -> list[str | None]:
    return [item.event.data for item in publications]  # type: ignore[attr-defined]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hub.db"


def make_log(path: Path, middle: int) -> None:
    """Quiet at both ends; between them much that is loud, of which half is not for everybody."""
    file = open_log(path, "off")
    append(file, entry("first", ("quiet",), exclude=YOU))
    append(file, *(entry(str(number), ("loud",), to=ME if number % 2 else NOBODY) for number in range(middle)))
    append(file, entry("last", ("quiet",), exclude=YOU))
    file.close()


# --- what it costs ---

READS: dict[str, Work] = {
    "replay of all": lambda reader: reader.replay(START, END, EVERYTHING),
    "replay of a topic": lambda reader: reader.replay(START, END, QUIET),
    "replay of topics": lambda reader: reader.replay(START, END, SEVERAL),
    "replay of a wildcard": lambda reader: reader.replay(START, END, WILD),
    "newest of all": lambda reader: reader.newest(5, EVERYTHING, Audience(("me",))),
    "newest of a topic": lambda reader: reader.newest(5, QUIET, Audience(("me",))),
    "newest of topics": lambda reader: reader.newest(5, SEVERAL, Audience(("you",))),
    "newest of a wildcard": lambda reader: reader.newest(1, WILD, None),
    "last of a topic": lambda reader: reader.last(5, QUIET, Audience(("me",))),
    "since": lambda reader: reader.since(0.0),
    "state": lambda reader: reader.state(),
}


@pytest.mark.parametrize("name", READS)
def test_every_query_finds_its_place_by_an_index(path: Path, name: str) -> None:
    make_log(path, 50)
    queries: list[str] = []
    connection = connect(path)
    connection.set_trace_callback(queries.append)
    READS[name](Reader(connection))
    connection.set_trace_callback(None)
    queries = [query for query in queries if query.startswith("SELECT")]
    assert queries
    for query in queries:
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}")]
        assert not [step for step in plan if step.startswith(("SCAN log", "SCAN topics"))], (query, plan)
    connection.close()


def steps(path: Path, work: Work) -> int:
    """Return how many instructions SQLite needs for it."""
    connection = connect(path)
    counted = 0

    def count() -> int:
        nonlocal counted
        counted += 1
        return 0

    connection.set_progress_handler(count, 1)
    work(Reader(connection))
    connection.close()
    return counted


@pytest.fixture(scope="module")
def short_and_long(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("logs")
    short, long = directory / "short.db", directory / "long.db"
    make_log(short, 2 * SCAN)
    make_log(long, 6 * SCAN)
    return short, long


@pytest.mark.parametrize("name", READS)
def test_a_search_costs_the_same_in_a_log_of_any_length(short_and_long: tuple[Path, Path], name: str) -> None:
    short, long = (steps(path, READS[name]) for path in short_and_long)
    assert long < short * 1.5  # of `since` the bisection has two steps more


def test_what_a_wildcard_matches_is_found_however_far_apart_it_is(path: Path) -> None:
    make_log(path, 2 * SCAN)
    with reading(path) as reader:
        page = reader.replay(START, END, WILD)
        assert (texts(page.publications), page.end.offset) == (["first", "last"], 2 * SCAN + 2)
        assert texts(reader.newest(2, WILD, Audience(("me",)))) == ["first", "last"]
        nothing = reader.replay(START, END, TopicFilter.parse(["nothing/*"]))
        assert (nothing.publications, nothing.end.offset) == ([], 2 * SCAN + 2)


def test_more_topics_than_one_query_takes_match_a_wildcard(path: Path) -> None:
    file = open_log(path, "off")
    append(file, *(entry(str(number), (f"t/{number}/[?*"[:-1],)) for number in range(2 * TOPICS_AT_ONCE)))
    append(file, *(entry("x", ("loud",)) for _ in range(SCAN + 1)))
    with reading(path) as reader:
        newest = reader.newest(5, TopicFilter.parse(["t/*/[?"]), None)
        assert texts(newest) == [str(2 * TOPICS_AT_ONCE - 5 + number) for number in range(5)]
        assert texts(reader.newest(1, TopicFilter.parse(["t/7/**", "t/1/*"]), None)) == ["7"]
    file.close()


def test_a_wildcard_finds_topics_whatever_is_beside_them_in_the_index(path: Path) -> None:
    file = open_log(path, "off")
    names = ["t", "t!", "t/", "t/*", "t/x*", "t0", "t/\U0010ffff\U0010ffff", "/", "//", "t/x/y"]
    append(file, *(entry(name, (name,)) for name in names), entry("everyone"))
    append(file, *(entry("x", ("loud",)) for _ in range(SCAN + 1)))
    patterns = [["t/**"], ["t/*"], ["*"], ["/*"], ["*/x*", "t!"], ["/**", "t0/**"], ["t/x*", "t/x/*"]]
    with reading(path) as reader:
        for filter in map(TopicFilter.parse, patterns):
            expected = [name for name in names if filter.matches((name,))]
            found = texts(reader.newest(len(names) + SCAN, filter, None))
            assert [text for text in found if text not in ("x", "everyone")] == expected
            assert "everyone" in found
    file.close()


def test_many_asterisks_cost_no_more_than_few(path: Path) -> None:
    file = open_log(path, "off")
    append(file, entry("x", ("/".join("a" * 32),)), *(entry("x", ("loud",)) for _ in range(SCAN + 1)))
    file.close()
    few, many = (TopicFilter.parse(["/".join(["*"] * count + ["x"])]) for count in (1, 31))
    assert steps(path, lambda reader: reader.newest(1, many, None)) <= steps(
        path, lambda reader: reader.newest(1, few, None)
    )


def test_a_page_has_so_many_publications_and_bytes(path: Path) -> None:
    file = open_log(path, "off")
    append(file, *map(str, range(PAGE_COUNT + 1)))
    append(file, *["x" * (PAGE_BYTES // 4)] * 9)
    with reading(path) as reader:
        page = reader.replay(START, END, EVERYTHING)
        assert (len(page.publications), page.end.offset) == (PAGE_COUNT, PAGE_COUNT)
        page = reader.replay(page.end, END, EVERYTHING)
        assert page.end.offset == page.publications[-1].position.offset == PAGE_COUNT + 1 + 4
        assert len(reader.newest(PAGE_COUNT + 10, EVERYTHING, None)) == PAGE_COUNT + 10
    file.close()


# --- the same as in memory ---

TOPICS = ("a", "a/x", "a/y", "b")
topics = st.lists(st.sampled_from(TOPICS), max_size=2, unique=True).map(tuple)
names = st.frozensets(st.sampled_from(["me", "you"]), max_size=2)
publications = st.tuples(topics, names, names, st.integers(0, 3))  # and how many seconds later the next one comes
patterns = st.lists(st.sampled_from([*TOPICS, "a/*", "a/**", "*", "c"]), max_size=3, unique=True).map(tuple)
filters = st.builds(TopicFilter, patterns) | st.builds(TopicFilter, patterns, st.booleans(), patterns)
reads = st.tuples(filters, st.integers(0, 12), st.sampled_from(["me", "you", "other"]), st.integers(-1, 40))


def pages_of(reader: Reader, after: Position, until: Position, filter: TopicFilter) -> Iterator[Publication]:
    while after != until:
        page = reader.replay(after, until, filter)
        yield from page.publications
        after = page.end


@given(st.lists(publications, max_size=25), st.integers(1, 30), st.lists(reads, min_size=1, max_size=6))
def test_it_reads_what_the_log_in_memory_reads(
    history: list[tuple[tuple[str, ...], frozenset[str], frozenset[str], int]],
    held: int,
    reads: list[tuple[TopicFilter, int, str, int]],
) -> None:
    async def main(directory: str) -> None:
        file, clock = open_log(Path(directory) / "hub.db", "off"), Clock(1_000.0)
        memory = MemoryBroker(history=held, clock=clock, wall=clock)
        memory._epoch = epoch = file.state.epoch
        limits = Limits(held, 2**26, 86_400.0, 300.0)
        for number, (topics, to, exclude, seconds) in enumerate(history):
            position = await memory.publish(Draft(Event(str(number)), topics, to=to, exclude=exclude))
            found = append(file, entry(str(number), topics, to, exclude), limits=limits, now=clock.now)
            assert found == [position]
            clock.now += seconds
        top = await memory.top()
        with reading(file.path) as reader:
            assert Position(epoch, reader.state().oldest) == await memory.oldest()
            assert list(pages_of(reader, START, top, EVERYTHING)) == await log_of(memory)
            for filter, count, client, place in reads:
                after = Position(epoch, min(max(place, 0), top.offset))
                expected = await memory.replay(after, top, filter)
                assert reader.replay(after, top, filter).start == expected.start
                assert list(pages_of(reader, after, top, filter)) == list(expected.publications)
                who = Audience((client,))
                assert list(reader.newest(count, filter, who)) == list(await memory.newest(count, filter, who))
                assert list(reader.newest(count, filter, None)) == list(await memory.newest(count, filter, None))
                assert reader.last(count, filter, who) == await memory.last(count, filter, who)
                assert reader.since(1_000.0 + place) == await memory.since(1_000.0 + place)
        file.close()

    with TemporaryDirectory() as directory:
        asyncio.run(main(directory))


def test_publications_that_somebody_took_out_are_damage_and_no_gap_in_silence(path: Path) -> None:
    file = open_log(path, "off")
    append(file, *(entry(text, ("t",)) for text in "abcde"))
    file.log._connection.execute("DELETE FROM log WHERE offset IN (3, 5)")
    topic = TopicFilter.parse(["t"])
    with reading(path) as reader:
        for filter in (EVERYTHING, topic):
            with pytest.raises(Exception, match="missing"):
                reader.newest(5, filter, None)
            with pytest.raises(Exception, match="missing"):
                list(pages_of(reader, START, Position(file.state.epoch, 5), filter))
        with pytest.raises(Exception, match="missing"):
            reader.since(0.5)
    file.close()
