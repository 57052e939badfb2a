"""A log in a file that is full, locked, gone, replaced or unreadable: the errors, what is kept, and how it goes on."""

import asyncio
import logging
import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sse_app.brokers.sqlite import SQLiteBroker, writer
from sse_app.brokers.sqlite.pages import Reader
from sse_app.errors import BrokerError, LogFull, LogUnavailable, OutcomeUnknown
from sse_app.events import Event
from sse_app.hub import Hub
from sse_app.publication import Audience, Draft
from tests.support.peers import PATIENCE, until
from tests.support.sqlite_log import END, EVERYTHING, broker_on, held, locked, publish, take
from tests.support.worlds import World


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hub.db"


@pytest.fixture
async def broker(sqlite_world: World) -> AsyncIterator[SQLiteBroker]:
    async with broker_on(sqlite_world) as broker:
        yield broker


def sound(broker: SQLiteBroker) -> bool:
    try:
        broker.check()
    except BrokerError:
        return False
    return True


def vanish(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def reappear(path: Path) -> None:
    path.with_name("elsewhere").rename(path)


def delete(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink()


async def test_a_full_disk_refuses_what_nobody_ever_sees(
    broker: SQLiteBroker, sqlite_world: World, caplog: pytest.LogCaptureFixture
) -> None:
    tail = broker.tail()
    await publish(broker, "a")
    connection = broker._file.log._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    for _ in range(3):
        with pytest.raises(LogFull, match="nothing was published"):
            await publish(broker, "x" * 100_000)
        with pytest.raises(LogFull):
            broker.check()
    assert await held(broker) == ["a"]
    connection.execute("PRAGMA max_page_count = 1000000")
    assert [position.offset for position in await publish(broker, "b" * 100_000)] == [2]
    broker.check()
    assert await take(tail, 2) == ["a", "b" * 100_000]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2, "one line when it begins and one when it ends"


class Failing:
    """A connection on which one statement fails, before or after it was carried out."""

    def __init__(self, connection: sqlite3.Connection, statement: str, code: int, *, done: bool) -> None:
        self._connection, self._statement, self._code, self._done = connection, statement, code, done

    def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
        if statement != self._statement:
            return self._connection.execute(statement, *arguments)
        if self._done:
            self._connection.execute(statement, *arguments)
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = self._code
        raise error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@pytest.mark.parametrize("done", [False, True], ids=["was not written", "was written"])
async def test_a_commit_of_unknown_outcome_is_safe_to_repeat_with_its_key(broker: SQLiteBroker, done: bool) -> None:
    tail = broker.tail()
    log = broker._file.log
    connection = log._connection
    log._connection = Failing(connection, "COMMIT", sqlite3.SQLITE_IOERR_FSYNC, done=done)  # type: ignore[assignment]
    with pytest.raises(OutcomeUnknown, match="same Idempotency-Key"):
        await broker.publish(Draft(Event("a"), idempotency_key="k"))
    with pytest.raises(OutcomeUnknown):
        broker.check()
    log._connection = connection
    position = await broker.publish(Draft(Event("a"), idempotency_key="k"))
    assert position.offset == 1
    broker.check()
    assert await take(tail, 1) == ["a"]
    assert await held(broker) == ["a"]


async def test_an_error_before_the_commit_publishes_nothing(broker: SQLiteBroker) -> None:
    log = broker._file.log
    connection = log._connection
    for code, raised in [(sqlite3.SQLITE_IOERR_READ, LogUnavailable), (sqlite3.SQLITE_FULL, LogFull)]:
        log._connection = Failing(connection, "BEGIN IMMEDIATE", code, done=False)  # type: ignore[assignment]
        with pytest.raises(raised, match="nothing was published"):
            await publish(broker, "a")
    log._connection = connection
    assert [position.offset for position in await publish(broker, "b")] == [1]


async def test_what_cannot_be_read_is_said_and_the_tail_stays(
    broker: SQLiteBroker, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(reader: object) -> Any:
        raise sqlite3.OperationalError("disk I/O error")

    tail = broker.tail()
    await publish(broker, "a")
    broker._recent.restart(1)  # nothing is read from memory
    with pytest.MonkeyPatch.context() as patch:
        for name in ("replay", "newest", "last", "since", "state"):
            patch.setattr(Reader, name, lambda *arguments: failing(arguments[0]))
        top = await broker.top()
        for work in (
            lambda: broker.replay(top, END, EVERYTHING),
            lambda: broker.newest(1, EVERYTHING, None),
            lambda: broker.last(1, EVERYTHING, Audience(("c",))),
            lambda: broker.since(0),
            lambda: broker.top(fresh=True),
        ):
            with pytest.raises(LogUnavailable):
                await work()
        assert await broker.oldest() == top._replace(offset=0)
        assert await publish(broker, "b") == [top.next()]
    assert await held(broker) == ["a", "b"]
    assert await take(tail, 2) == ["a", "b"]
    assert len([record for record in caplog.records if "cannot be read" in record.getMessage()]) == 1


async def test_a_tail_that_could_not_read_goes_on_when_it_can(
    sqlite_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = asyncio.Event()
    loop = asyncio.get_running_loop()

    def failing(*_: object) -> Any:
        loop.call_soon_threadsafe(failed.set)
        raise sqlite3.OperationalError("disk I/O error")

    async with broker_on(sqlite_world) as one, broker_on(sqlite_world) as other:
        tail = other.tail()
        with monkeypatch.context() as patch:
            patch.setattr(Reader, "replay", failing)
            await publish(one, "a")
            async with asyncio.timeout(PATIENCE):
                await failed.wait()
        assert await take(tail, 1) == ["a"]


async def test_a_file_that_vanished_refuses_publications_and_open_streams_stay(
    sqlite_world: World, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Hub(broker := broker_on(sqlite_world)) as hub, hub.subscribe() as subscriber:
        await hub.publish("a")
        while b"data: a\n" not in await subscriber.read():
            pass
        vanish(path)
        with pytest.raises(LogUnavailable, match="gone"):
            await hub.publish("lost")
        with pytest.raises(LogUnavailable, match="gone"):
            broker.check()
        assert await held(broker) == ["a"], "who holds it open still reads it"
        reading_on = asyncio.create_task(subscriber.read())
        await asyncio.sleep(0)
        assert not reading_on.done()
        reappear(path)
        await until(lambda: sound(broker), clock=sqlite_world.clock)
        assert (await hub.publish("b")).position.offset == 2
        async with asyncio.timeout(PATIENCE):
            assert b"data: b\n" in await reading_on
    assert len([record for record in caplog.records if "gone" in record.getMessage()]) == 1


async def test_a_file_that_vanished_is_noticed_without_publishing(
    broker: SQLiteBroker, sqlite_world: World, path: Path
) -> None:
    broker.tail()
    delete(path)
    await until(lambda: not sound(broker), clock=sqlite_world.clock)
    with pytest.raises(LogUnavailable, match="gone"):
        broker.check()


async def test_another_log_in_its_place_is_not_mixed_with_it(sqlite_world: World, path: Path) -> None:
    async with broker_on(sqlite_world) as broker:
        tail = broker.tail()
        (top,) = await publish(broker, "a")
        assert await take(tail, 1) == ["a"]
        delete(path)
        async with broker_on(sqlite_world) as new:
            assert (await new.top()).epoch != top.epoch
            await publish(new, *"xyz")
            for text in "bcd":
                with pytest.raises(LogUnavailable, match="replaced"):
                    await publish(broker, text)
            reads = [asyncio.create_task(broker.newest(9, EVERYTHING, None)) for _ in range(20)]
            for found in await asyncio.gather(*reads, return_exceptions=True):
                assert isinstance(found, LogUnavailable) or {item.position for item in found} == {top}  # type: ignore[union-attr]
            assert await broker.top() == top
        assert await broker.top() == top
    async with broker_on(sqlite_world) as new:
        assert (await held(new), (await new.top()).offset) == (["x", "y", "z"], 3), (
            "closing the old one changes nothing"
        )


async def test_a_file_that_stays_locked_refuses_in_time_and_is_sound_again_by_itself(
    broker: SQLiteBroker, sqlite_world: World, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "LOCK_PATIENCE", 0.02)
    tail = broker.tail()
    with locked(path):
        with pytest.raises(LogUnavailable, match="locked"):
            await publish(broker, "a")
        assert not sound(broker)
        assert await held(broker) == [], "it can be read all the while"
    await until(lambda: sound(broker), clock=sqlite_world.clock)
    await publish(broker, "b")
    assert await take(tail, 1) == ["b"]


@pytest.mark.parametrize("hurt", ["open", "scandir", "stat"])
async def test_a_process_without_descriptors_follows_all_the_same(
    sqlite_world: World, monkeypatch: pytest.MonkeyPatch, hurt: str
) -> None:
    """And what it has committed it acknowledges."""
    refusals = 0

    def refused(*_: object, **__: object) -> Any:
        nonlocal refusals
        refusals += 1
        raise OSError(24, "Too many open files")

    async with broker_on(sqlite_world) as one, broker_on(sqlite_world) as other:
        tail, own = other.tail(), one.tail()
        await publish(one, "a")
        assert await take(tail, 1) == await take(own, 1) == ["a"]
        with monkeypatch.context() as patch:
            patch.setattr(os, hurt, refused)
            await until(lambda: refusals > 3, clock=sqlite_world.clock)
            if hurt != "stat":  # without it nobody knows whether the log is there
                await publish(one, "b")
        await until(lambda: sound(one) and sound(other), clock=sqlite_world.clock)
        await publish(other, "c")
        expected = ["c"] if hurt == "stat" else ["b", "c"]
        assert await take(tail, len(expected)) == await take(own, len(expected)) == expected
