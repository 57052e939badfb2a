"""Special to the log in a SQLite file as a broker: commits, trimming, and what other processes append."""

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_app.brokers import sqlite as module
from sse_app.brokers.limits import Limits
from sse_app.brokers.sqlite import SQLiteBroker, nodes
from sse_app.brokers.sqlite.log import OVERHEAD, TRIM_SPARE
from sse_app.drafts import Drafts
from sse_app.errors import KeyReused, LogUnavailable
from sse_app.events import Event
from sse_app.publication import Draft, Position, Publication
from tests.support.peers import PATIENCE
from tests.support.sqlite_log import (
    EVERYTHING,
    LIMITS,
    append,
    broker_on,
    entry,
    held,
    locked,
    open_log,
    publish,
    reading,
    take,
)
from tests.support.worlds import World


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hub.db"


@pytest.fixture
async def broker(sqlite_world: World) -> AsyncIterator[SQLiteBroker]:
    async with broker_on(sqlite_world) as broker:
        yield broker


# --- commits ---


async def test_publishers_that_wait_together_share_few_commits(broker: SQLiteBroker, path: Path) -> None:
    statements: list[str] = []
    with locked(path):
        broker._file.log._connection.set_trace_callback(statements.append)
        tasks = [asyncio.create_task(broker.publish(Draft(Event(str(number))))) for number in range(500)]
        await asyncio.sleep(0)  # each has come so far that it waits
    positions = await asyncio.gather(*tasks)
    assert [position.offset for position in positions] == list(range(1, 501))
    assert 1 <= statements.count("COMMIT") <= 2


async def test_a_batch_is_one_commit_and_one_announcement(broker: SQLiteBroker) -> None:
    statements: list[str] = []
    tail = broker.tail()
    broker._file.log._connection.set_trace_callback(statements.append)
    positions = await broker.publish_many(Drafts(tuple(Draft(Event(str(number))) for number in range(500))))
    assert statements.count("COMMIT") == 1
    async with asyncio.timeout(PATIENCE):
        assert [item.position for item in await anext(tail)] == list(positions)


async def test_a_batch_that_is_refused_in_a_commit_takes_nothing_from_the_others(
    broker: SQLiteBroker, path: Path
) -> None:
    def keyed(**texts: str) -> Drafts:
        return Drafts(tuple(Draft(Event(text), idempotency_key=key) for key, text in texts.items()))

    await broker.publish_many(keyed(known="x"))
    given = [keyed(a="a", b="b"), keyed(c="c", known="y"), keyed(c="not c", known="x"), keyed(a="not a"), keyed(d="d")]
    with locked(path):  # until all of them wait for a commit
        tasks = [asyncio.create_task(broker.publish_many(drafts)) for drafts in given]
        await asyncio.sleep(0)  # each has come so far that it waits
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    offsets = [answer if isinstance(answer, BaseException) else [item.offset for item in answer] for answer in answers]
    assert [offset for offset in offsets if isinstance(offset, list)] == [[2, 3], [4, 1], [5]]
    assert [type(offsets[place]) for place in (1, 3)] == [KeyReused, KeyReused]
    assert await held(broker) == ["x", "a", "b", "not c", "d"]


async def test_a_publisher_that_is_cancelled_may_be_in_the_log_and_holds_up_nobody(
    broker: SQLiteBroker, path: Path
) -> None:
    tail = broker.tail()
    with locked(path):
        gone, stays = (asyncio.create_task(broker.publish(Draft(Event(text)))) for text in ("gone", "stays"))
        await asyncio.sleep(0)
        gone.cancel()
    assert (await stays).offset == 2
    assert gone.cancelled() or gone.cancelling()
    assert await take(tail, 2) == ["gone", "stays"]


async def test_the_end_waits_for_what_is_being_published(sqlite_world: World, path: Path) -> None:
    async with broker_on(sqlite_world) as broker:
        with locked(path):
            tasks = [asyncio.create_task(broker.publish(Draft(Event(str(number))))) for number in range(50)]
            await asyncio.sleep(0)
    assert len({task.result() for task in tasks}) == 50
    with reading(path) as reader:
        assert reader.state().top == 50


async def test_after_the_end_nothing_is_published_and_nobody_waits(sqlite_world: World) -> None:
    async with broker_on(sqlite_world) as broker:
        await publish(broker, "a")
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(LogUnavailable, match="closed"):
            await publish(broker, "b")


PUBLISHES = """
import asyncio, sys
from sse_app.brokers import open_broker
from sse_app.events import Event
from sse_app.publication import Draft
async def one(broker, name):
    for number in range(1_000):
        print(await broker.publish(Draft(Event(f"{name}:{number}"))), flush=True)
async def main():
    async with open_broker(sys.argv[1]) as broker:
        await asyncio.gather(*(one(broker, name) for name in range(8)))
asyncio.run(main())
"""


def acknowledged_before_a_kill(url: str) -> set[Position | None]:
    with subprocess.Popen([sys.executable, "-c", PUBLISHES, url], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        acknowledged = [process.stdout.readline() for _ in range(100)]
        process.kill()
        acknowledged += process.stdout.readlines()
    return {Position.parse(line.strip()) for line in acknowledged if line.endswith(b"\n")}


async def test_what_was_acknowledged_survives_a_kill(sqlite_world: World) -> None:
    known = await asyncio.to_thread(acknowledged_before_a_kill, sqlite_world.url)
    assert len(known) >= 100
    async with broker_on(sqlite_world) as broker:
        found = [item.position for item in await broker.newest(10_000, EVERYTHING, None)]
        assert known <= set(found)
        assert await publish(broker, "next") == [found[-1].next()]


# --- trimming ---

steps = st.lists(
    st.tuples(st.just("append"), st.integers(0, 2_000)) | st.tuples(st.just("wait"), st.integers(0, 50)), max_size=40
)


@given(steps, st.integers(1, 10), st.integers(1_024, 8_192), st.integers(1, 100))
def test_count_bytes_and_age_are_never_above_their_bounds_and_no_more_is_trimmed_than_that(
    steps: list[tuple[str, int]], history: int, history_bytes: int, history_age: int
) -> None:
    limits = Limits(history, history_bytes, history_age, 300)

    def fits(log: list[Publication], now: float) -> bool:
        size = sum(len(item.body) + OVERHEAD for item in log)
        young = all(item.time >= now - history_age for item in log)
        return len(log) <= history and (size <= history_bytes or len(log) == 1) and young

    with TemporaryDirectory() as directory:
        file, now = open_log(Path(directory) / "hub.db", "off"), 1_000.0
        everything: list[Publication] = []
        before = 0
        with reading(file.path) as reader:
            for step, amount in steps:
                now += amount if step == "wait" else 0
                append(file, *[entry("x" * amount)] * (step == "append"), limits=limits, now=now)
                log = list(reader.newest(100, EVERYTHING, None))
                everything += log[-1:] if step == "append" else []
                assert log == everything[len(everything) - len(log) :]
                assert fits(log, now)
                if len(log) < before + (step == "append"):  # something went: it had to
                    assert not fits(everything[-len(log) - 1 :], now)
                before = len(log)
                state = reader.state()
                assert state.size == sum(len(item.body) + OVERHEAD for item in log)
                assert (state.top, state.top - state.oldest) == (len(everything), len(log))
        topics = file.log._connection.execute("SELECT count(*) FROM topics").fetchone()
        assert topics == (before,), "nothing is left of what was trimmed"
        file.close()


def test_a_trim_costs_a_statement_for_each_topic_not_for_each_publication(path: Path) -> None:
    file, limits = open_log(path, "off"), LIMITS._replace(publications=2)
    append(file, *[entry(str(number), topics=("a", f"b/{number % 2}")) for number in range(100)])
    statements: list[str] = []
    file.log._connection.set_trace_callback(statements.append)
    append(file, "next", limits=limits)
    file.log._connection.set_trace_callback(None)
    assert sum(text.startswith("DELETE FROM topics") for text in statements) == 3
    assert sum(text.startswith("SELECT") and " log " in text for text in statements) == 1
    left = file.log._connection.execute("SELECT topic, offset FROM topics ORDER BY offset, topic").fetchall()
    assert left == [("a", 100), ("b/1", 100), ("", 101)]
    file.close()


def test_a_limit_that_is_much_lower_than_it_was_is_reached_in_small_steps(path: Path) -> None:
    file = open_log(path, "off")
    append(file, *map(str, range(2_000)))
    few, oldest = Limits(10, 2**26, 86_400.0, 300.0), [0]
    with reading(path) as reader:
        while reader.state().top - oldest[-1] > 10:
            append(file, "x", limits=few)
            oldest.append(reader.state().oldest)
            assert 0 < oldest[-1] - oldest[-2] <= 1 + TRIM_SPARE, "no publisher waits for all of it"
        assert len(reader.newest(1_000, EVERYTHING, None)) == 10
    assert len(oldest) - 1 == -(-1_990 // TRIM_SPARE)
    file.close()


async def test_what_grows_too_old_goes_without_anything_being_published(sqlite_world: World) -> None:
    async with broker_on(sqlite_world, history_age=60) as broker:
        tasks = [asyncio.create_task(broker.publish(Draft(Event(str(number))))) for number in range(TRIM_SPARE + 10)]
        await asyncio.gather(*tasks)
        sqlite_world.clock.now += 61
        assert len(await held(broker)) == 10
        sqlite_world.clock.now += 1
        assert await held(broker) == []
        assert await broker.oldest() == await broker.top()


async def test_keys_are_forgotten_after_their_window(sqlite_world: World, path: Path) -> None:
    async with broker_on(sqlite_world, idempotency_window=10) as broker:
        for number in range(30):
            await broker.publish(Draft(Event("x"), idempotency_key=str(number)))
            sqlite_world.clock.now += 1
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("SELECT count(*) FROM keys").fetchone() == (10,)


# --- following others ---


async def test_the_first_tail_begins_where_the_log_is_and_not_where_it_was_opened(sqlite_world: World) -> None:
    async with broker_on(sqlite_world) as one, broker_on(sqlite_world) as other:
        await publish(one, "before")
        (top,) = await publish(other, "its own")
        tail = other.tail()
        assert tail.start == await other.top() == top
        await publish(one, "a")
        await publish(other, "b")
        assert await take(tail, 2) == ["a", "b"]


async def test_without_any_datagram_a_tail_gets_everything(
    sqlite_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes.Nodes, "wake", lambda self: None)
    async with broker_on(sqlite_world) as one, broker_on(sqlite_world) as other:
        tail = other.tail()
        for text in "abc":
            (position,) = await publish(one, text)
            assert await take(tail, 1) == [text]
            assert await other.top() == position


async def test_without_any_datagram_asking_the_log_takes_nothing_from_a_tail(
    sqlite_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes.Nodes, "wake", lambda self: None)
    async with broker_on(sqlite_world) as one, broker_on(sqlite_world) as other:
        tail = other.tail()
        monkeypatch.setattr(module, "POLL", 0.2)
        (position,) = await publish(one, "a")
        assert await other.top(fresh=True) == position, "it reads the log before its next poll"
        assert await take(tail, 1) == ["a"]


async def test_a_datagram_is_enough(sqlite_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL", 3_600.0)
    async with broker_on(sqlite_world) as one, broker_on(sqlite_world) as other:
        tail = other.tail()
        for text in "abc":
            await publish(one, text)
            assert await take(tail, 1) == [text]


async def test_what_was_trimmed_before_it_was_read_is_told_by_an_empty_step(
    sqlite_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL", 3_600.0)
    async with broker_on(sqlite_world, history=3) as one, broker_on(sqlite_world, history=3) as other:
        tail = other.tail()
        with monkeypatch.context() as patch:
            patch.setattr(nodes.Nodes, "wake", lambda self: None)  # it reads nothing of this before the last is there
            await asyncio.gather(*(one.publish(Draft(Event(str(number)))) for number in range(20)))
        await publish(one, "the last")
        assert list(await anext(tail)) == []
        assert await other.top() == await one.top()
        await publish(one, "next")
        assert await take(tail, 1) == ["next"]


async def test_another_epoch_is_told_by_an_empty_step(broker: SQLiteBroker, path: Path) -> None:
    tail = broker.tail()
    await publish(broker, "a")
    assert await take(tail, 1) == ["a"]
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("UPDATE state SET epoch = 'another'")
    assert await broker.top(fresh=True) == Position("another", 1)
    await publish(broker, "b")
    assert list(await anext(tail)) == []
    assert await broker.top() == Position("another", 2)
    assert await publish(broker, "c") == [Position("another", 3)]
    assert await take(tail, 1) == ["c"]


def garble(path: Path) -> None:
    Path(f"{path}-top").write_bytes(b"a b c d".ljust(128))


async def test_a_garbled_watermark_disturbs_nobody(sqlite_world: World, path: Path) -> None:
    async with broker_on(sqlite_world) as one, broker_on(sqlite_world) as other:
        tail = other.tail()
        garble(path)
        await publish(one, "a")
        assert await take(tail, 1) == ["a"]
