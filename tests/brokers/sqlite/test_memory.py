"""The newest publications of a log in a SQLite file, which a process that follows the log has in memory."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sse_app.brokers import sqlite as module
from sse_app.brokers.limits import PAGE_COUNT
from sse_app.brokers.sqlite import SQLiteBroker
from sse_app.brokers.sqlite.pages import Reader
from sse_app.errors import LogUnavailable
from sse_app.publication import Audience, Draft, Position
from sse_app.topics import TopicFilter
from tests.support.peers import PATIENCE, until
from tests.support.sqlite_log import EVERYTHING, append, broker_on, entry, open_log, publish, take
from tests.support.worlds import World

READER = Audience(("c",))
NOW = 1_700_000_000.0  # Unix time, as on the clock of the world


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hub.db"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each question was asked to the file."""
    counter: Counter[str] = Counter()

    def counted(name: str) -> Any:
        method = getattr(Reader, name)

        def call(reader: Reader, *arguments: Any, **named: Any) -> Any:
            counter[name] += 1
            return method(reader, *arguments, **named)

        return call

    for name in ("replay", "newest", "last"):
        monkeypatch.setattr(Reader, name, counted(name))
    # A look at the watermark between a commit and its announcement makes the tail read, which is no reader's question.
    monkeypatch.setattr(module, "POLL", 3_600.0)
    return counter


async def filled(broker: SQLiteBroker) -> None:
    await until(lambda: broker._unkept is None, "all that was announced is in memory")


async def texts_from(broker: SQLiteBroker, after: int, topic_filter: TopicFilter = EVERYTHING) -> list[str | None]:
    """The data of what is behind an offset, page by page."""
    top = await broker.top()
    position, found = top._replace(offset=after), list[str | None]()
    async with asyncio.timeout(PATIENCE):
        while position != top:
            page = await broker.replay(position, top, topic_filter)
            found += [item.event.data for item in page.publications]
            position = page.end
    return found


async def test_a_storm_of_resumes_reads_no_page_from_the_file(sqlite_world: World, reads: Counter[str]) -> None:
    topics = TopicFilter.parse(["t/*"])
    async with broker_on(sqlite_world) as broker:
        broker.tail()
        for number in range(PAGE_COUNT + 50):
            await broker.publish(Draft.compose(number, topic="t/1" if number % 2 else "u/1"))
        top = await broker.top()
        for behind in range(1, 100):
            after = top._replace(offset=top.offset - behind)
            pages = [await broker.replay(after, top, wanted) for wanted in (EVERYTHING, topics)]
            assert [len(page.publications) for page in pages] == [behind, (behind + 1) // 2]
            assert len(await broker.newest(behind, topics, None)) == behind
            assert await broker.last(behind, EVERYTHING, READER) == (after, True)
        assert await texts_from(broker, 0) == [str(number) for number in range(PAGE_COUNT + 50)]
    assert not reads


async def test_what_the_file_held_before_is_read_once(sqlite_world: World, path: Path, reads: Counter[str]) -> None:
    file = open_log(path)
    append(file, *[str(number) for number in range(3 * PAGE_COUNT)], now=NOW)
    file.close()
    async with broker_on(sqlite_world) as broker:
        broker.tail()
        await filled(broker)
        assert reads == {"replay": 3}
        assert await texts_from(broker, 0) == [str(number) for number in range(3 * PAGE_COUNT)]
        assert [item.event.data for item in await broker.newest(2, EVERYTHING, None)] == ["766", "767"]
        assert reads == {"replay": 3}


async def test_no_more_is_read_than_memory_may_hold(
    sqlite_world: World, path: Path, reads: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BYTES", 200_000)
    file = open_log(path)
    append(file, *["x" * 9_900 for _ in range(100)], now=NOW)
    file.close()
    async with broker_on(sqlite_world) as broker:
        broker.tail()
        await filled(broker)
        assert broker._recent.page(81, 100, 100) is not None
        assert broker._recent.page(70, 100, 100) is None
        assert reads == {"replay": 1}
        assert len(await texts_from(broker, 0)) == 100
        assert reads["replay"] > 1, "what is older is read from the file"


async def test_what_is_published_while_memory_is_filled_comes_behind_it(
    sqlite_world: World, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = open_log(path)
    append(file, *[str(number) for number in range(10)], now=NOW)
    file.close()
    monkeypatch.setattr("sse_app.brokers.sqlite.pages.PAGE_COUNT", 3)
    async with broker_on(sqlite_world) as broker:
        tail, read = broker.tail(), broker._read

        async def read_late(work: Any) -> Any:
            await publish(broker, "live")
            return await read(work)

        monkeypatch.setattr(broker, "_read", read_late)
        await filled(broker)
        monkeypatch.undo()
        expected = [*map(str, range(10)), *["live"] * (broker._announced.offset - 10)]
        assert len(expected) > 12
        assert [item.event.data for item in broker._recent.page(0, 100, 100) or ()] == expected
        assert await take(tail, len(expected) - 10) == expected[10:]


async def test_memory_that_could_not_be_filled_has_what_comes_from_then_on(
    sqlite_world: World, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = open_log(path)
    append(file, "a", "b", now=NOW)
    file.close()
    async with broker_on(sqlite_world) as broker:

        async def failing(_: object) -> Any:
            raise LogUnavailable("The disk is away.")

        with monkeypatch.context() as patch:
            patch.setattr(broker, "_read", failing)
            broker.tail()
            await filled(broker)
        await publish(broker, "c")
        assert broker._recent.page(1, 3, 9) is None
        assert len(broker._recent.page(2, 3, 9) or ()) == 1
        assert await texts_from(broker, 0) == ["a", "b", "c"]


async def test_what_another_process_appends_is_in_memory_too(sqlite_world: World, reads: Counter[str]) -> None:
    async with broker_on(sqlite_world) as one, broker_on(sqlite_world) as other:
        tail = one.tail()
        for text in "abcdef":
            await publish(one if text in "ace" else other, text)
        assert await take(tail, 6) == list("abcdef")
        reads.clear()
        assert await texts_from(one, 1) == list("bcdef")
        assert not reads
        assert await texts_from(other, 1) == list("bcdef"), "nobody reads the tail there: from the file"
        assert reads


@pytest.mark.parametrize("by", ["count", "bytes", "age"])
async def test_nothing_is_read_from_memory_that_the_log_has_trimmed(sqlite_world: World, by: str) -> None:
    given: dict[str, dict[str, Any]] = {
        "count": {"history": 4},
        "bytes": {"history_bytes": 500},
        "age": {"history_age": 60.0},
    }
    async with broker_on(sqlite_world, **given[by]) as broker:
        broker.tail()
        await publish(broker, *"abc")
        sqlite_world.clock.now += 61
        sqlite_world.wall.now += 61
        await publish(broker, *"defg")
        top, oldest = await broker.top(), await broker.oldest()
        assert oldest.offset >= 3
        page = await broker.replay(top._replace(offset=1), top, EVERYTHING)
        assert page.start == oldest
        assert [item.position.offset for item in page.publications] == list(range(oldest.offset + 1, 8))
        assert len(await broker.newest(99, EVERYTHING, None)) == 7 - oldest.offset
        assert await broker.last(99, EVERYTHING, READER) == (oldest, False)
        assert broker._recent.page(oldest.offset - 1, 7, 9) is None, "its memory is free"


async def test_of_an_idle_log_what_is_too_old_is_trimmed_in_memory_too(sqlite_world: World) -> None:
    async with broker_on(sqlite_world, history_age=60.0) as broker:
        broker.tail()
        await publish(broker, *"abc")
        top = await broker.top()
        assert len((await broker.replay(top._replace(offset=0), top, EVERYTHING)).publications) == 3
        sqlite_world.clock.now += 61
        page = await broker.replay(top._replace(offset=0), top, EVERYTHING)
        assert (page.start, page.publications, page.end) == (top, [], top)
        assert not await broker.newest(3, EVERYTHING, None)


async def test_nothing_of_another_epoch_is_read_from_memory(sqlite_world: World) -> None:
    async with broker_on(sqlite_world) as broker:
        broker.tail()
        await publish(broker, *"abc")
        state = broker._file.log.prepare(None, None)  # what else begins an epoch needs another file
        broker._begin_anew(state)
        assert broker._recent.page(0, 3, 9) is None
        for epoch in ("elsewhere", state.epoch):
            page = await broker.replay(Position(epoch, 1), state.position, EVERYTHING)
            assert page.end.epoch == state.epoch
            assert len(page.publications) == (3 if epoch == "elsewhere" else 2)


async def test_the_few_of_a_topic_are_found_without_reading_the_others(
    sqlite_world: World, path: Path, reads: Counter[str]
) -> None:
    file = open_log(path)
    append(file, *[entry(str(number), ("rare" if number % 900 == 0 else "often",)) for number in range(2_000)], now=NOW)
    file.close()
    async with broker_on(sqlite_world) as broker:
        broker.tail()
        await filled(broker)
        reads.clear()
        top = await broker.top()
        page = await broker.replay(top._replace(offset=0), top, TopicFilter.parse(["rare"]))
        assert [item.event.data for item in page.publications] == ["0", "900", "1800"]
        assert page.end == top, "one page, not one for every 256 publications"
        assert await broker.last(2, TopicFilter.parse(["rare"]), READER) == (top._replace(offset=900), True)
        assert await broker.newest(1, TopicFilter.parse(["absent/*"]), None) == []
        assert not reads


async def test_who_asks_for_much_is_answered_by_the_file(sqlite_world: World, reads: Counter[str]) -> None:
    async with broker_on(sqlite_world) as broker:
        broker.tail()
        await publish(broker, *"a" * (PAGE_COUNT + 9))
        assert len(await broker.newest(PAGE_COUNT + 1, EVERYTHING, None)) == PAGE_COUNT + 1
    assert reads == {"newest": 1}
