"""The board in a file: made with its first use, kept when processes are killed, and sound again after trouble."""

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from sse_app.brokers.board import MESSAGES
from sse_app.brokers.sqlite import SQLiteBroker, board_file
from sse_app.brokers.sqlite.board_file import MESSAGE_LIFE, SWEPT_AT_ONCE
from sse_app.brokers.sqlite.nodes import Nodes
from sse_app.errors import BrokerError, LogFull, LogUnavailable
from tests.support.boards import boards_on, listening_to
from tests.support.peers import PATIENCE, turns
from tests.support.sqlite_log import broker_on, held, locked, publish
from tests.support.worlds import World

LONG = 3_600.0  # seconds

OTHER = """
import asyncio, sys
from pathlib import Path
from sse_app.brokers.sqlite import SQLiteBroker

async def main():
    async with SQLiteBroker(Path(sys.argv[1])) as broker:
        broker.tail()
        board, messages = broker.board, broker.board.messages()
        reading = asyncio.ensure_future(anext(messages))
        print("ready", flush=True)
        await reading
        won = 0
        for number in range(200):
            won += await board.claim(f"lease.{number}", b"other", 3600) is None
        await board.put("a.other", b"%d" % won, 3600)
        await board.send(b"done")
        print("done", flush=True)
        await asyncio.sleep(3600)

asyncio.run(main())
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The board's file."""
    return tmp_path / "hub.db-board"


@pytest.fixture
async def broker(sqlite_world: World) -> AsyncIterator[SQLiteBroker]:
    async with broker_on(sqlite_world) as broker:
        yield broker


@contextmanager
def other_process(log: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", OTHER, str(log)], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def files_of(path: Path) -> dict[str, int]:
    """The board's files with their permissions, by what stands behind its name."""
    found = path.parent.glob(f"{path.name}*")
    return {each.name.removeprefix(path.name): stat.S_IMODE(each.stat().st_mode) for each in found}


def remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink()


def make_log(path: Path, mode: int) -> None:
    path.touch()
    path.chmod(mode)


def link(path: Path, to: Path) -> None:
    to.touch()
    path.symlink_to(to)


def rename(path: Path, to: Path) -> None:
    path.rename(to)


def count_rows(path: Path, table: str) -> int:
    with closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        return int(count)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


# --- the file ---


async def test_who_only_publishes_has_no_board(broker: SQLiteBroker, path: Path) -> None:
    await publish(broker, "a")
    broker.tail()
    assert list(broker.board.nodes()) == []
    assert not files_of(path)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sse-app board")]
    await broker.board.get("a.b")
    assert files_of(path)


@pytest.mark.parametrize(("given", "made"), [(None, 0o600), (0o660, 0o660)])
async def test_the_board_has_the_permissions_of_the_log(
    sqlite_world: World, path: Path, given: int | None, made: int
) -> None:
    if given is not None:
        make_log(path.with_name("hub.db"), given)
    async with broker_on(sqlite_world) as broker:
        await broker.board.put("a.b", b"x", LONG)
        assert files_of(path) == {"": made, "-wal": made, "-shm": made}


async def test_a_link_in_its_place_is_not_written_through(
    broker: SQLiteBroker, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = path.with_name("own")
    link(path, own)
    with pytest.raises(LogUnavailable) as refused:
        await broker.board.put("a.b", b"x", LONG)
    assert str(path) not in str(refused.value), "callers learn no path"
    assert str(path) in warnings(caplog)[0]
    assert files_of(own) == {"": stat.S_IMODE(own.stat().st_mode)}, "SQLite has made nothing there"
    assert own.stat().st_size == 0


async def test_a_database_of_something_else_is_left_alone(
    broker: SQLiteBroker, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE mine (x)")
    with pytest.raises(LogUnavailable):
        await broker.board.get("a.b")
    assert "something else" in warnings(caplog)[0]
    assert count_rows(path, "mine") == 0
    await publish(broker, "the log goes on")


async def test_a_newer_version_may_take_it_over(sqlite_world: World, path: Path) -> None:
    async with boards_on(sqlite_world, 1) as (board,):
        await board.put("a.b", b"x", LONG)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA user_version = 2")
        with pytest.raises(LogUnavailable, match="newer version"):
            await board.put("a.b", b"y", LONG)
        assert await board.get("a.b") == b"x", "an old process can still read"
    async with boards_on(sqlite_world, 1) as (board,):
        with pytest.raises(LogUnavailable, match="newer version"):
            await board.get("a.b")


def damage(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))


async def test_a_damaged_board_is_set_aside_when_that_is_asked_for(
    sqlite_world: World, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with boards_on(sqlite_world, 1) as (board,):
        await board.put("a.b", b"x", LONG)
    damage(path)
    async with broker_on(sqlite_world) as broker:
        for _ in range(2):
            with pytest.raises(LogUnavailable):
                await broker.board.get("a.b")
        assert "--recover" in warnings(caplog)[0]
        assert len(warnings(caplog)) == 1
        await publish(broker, "kept")
    async with broker_on(sqlite_world, recover=True) as broker, broker_on(sqlite_world, recover=True) as other:
        for found in await asyncio.gather(broker.board.get("a.b"), other.board.get("a.b")):
            assert found is None
        await broker.board.put("a.b", b"y", LONG)
        assert await other.board.get("a.b") == b"y"
        assert await held(broker) == ["kept"]
    aside = [name for name in files_of(path) if name.startswith(".corrupt-")]
    assert len([name for name in aside if not name.endswith("-wal")]) == 1, (
        "one set it aside, the other took the new one"
    )


async def test_a_log_that_is_set_aside_leaves_the_board(sqlite_world: World, path: Path) -> None:
    async with broker_on(sqlite_world) as broker:
        await publish(broker, *("x" * 1_000 for _ in range(20)))
        await broker.board.put("a.b", b"x", LONG, durable=True)
    damage(path.with_name("hub.db"))
    async with broker_on(sqlite_world, recover=True) as broker:
        assert await held(broker) == []
        assert await broker.board.get("a.b") == b"x"


async def test_what_is_durable_is_committed_with_a_sync(broker: SQLiteBroker) -> None:
    board = broker.board
    await board.put("a.b", b"x", LONG)
    assert board._file is not None
    connection, statements = board._file._connection, list[str]()
    assert connection.execute("PRAGMA synchronous").fetchone() == (1,)
    connection.set_trace_callback(statements.append)
    await board.put("a.b", b"y", LONG, durable=True)
    relevant = [text for text in statements if text.startswith(("PRAGMA synchronous", "BEGIN", "COMMIT"))]
    assert relevant == ["PRAGMA synchronous = FULL", "BEGIN IMMEDIATE", "COMMIT", "PRAGMA synchronous = NORMAL"]
    statements.clear()
    await board.put("a.b", b"z", LONG)
    assert not [text for text in statements if "synchronous" in text]


async def test_processes_that_begin_at_once_make_one_board(sqlite_world: World) -> None:
    for number in range(5):
        async with boards_on(sqlite_world, 8) as boards:
            async with asyncio.timeout(PATIENCE):
                answers = await asyncio.gather(*(board.claim(f"a.{number}", b"x", LONG) for board in boards))
            assert answers.count(None) == 1


# --- bounds ---


async def test_what_has_ended_is_swept_by_what_is_written(
    broker: SQLiteBroker, sqlite_world: World, path: Path
) -> None:
    board, kept = broker.board, SWEPT_AT_ONCE + 20
    for number in range(kept):
        await board.put(f"x.{number}", b"", 30)
    sqlite_world.wall.now += 31
    await board.put("y.1", b"", LONG)
    assert count_rows(path, "entries") == kept - SWEPT_AT_ONCE + 1
    await board.delete("z.1")
    assert count_rows(path, "entries") == 1


async def test_the_newest_messages_are_held_and_only_for_some_seconds(
    sqlite_world: World, broker: SQLiteBroker, path: Path
) -> None:
    for number in range(MESSAGES + 10):
        await broker.board.send(b"%d" % number)
    assert count_rows(path, "messages") == MESSAGES
    sqlite_world.wall.now += MESSAGE_LIFE + 1
    await broker.board.put("a.b", b"x", LONG)
    assert count_rows(path, "messages") == 0
    async with boards_on(sqlite_world, 1) as (other,), listening_to(other, broker.board) as inbox:
        await broker.board.send(b"new")
        assert await inbox.take(1) == [b"new"], "the numbers go on"


# --- messages ---


async def test_a_message_arrives_without_its_datagram(sqlite_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with boards_on(sqlite_world, 2) as (one, two), listening_to(two, one) as inbox:
        monkeypatch.setattr(Nodes, "wake", lambda *_: None)
        await one.send(b"x")
        assert await inbox.take(1) == [b"x"]


async def test_a_message_does_not_make_the_others_read_the_log(sqlite_world: World) -> None:
    async with broker_on(sqlite_world) as one, broker_on(sqlite_world) as two:
        two.tail()
        async with listening_to(two.board, one.board) as inbox:
            for number in range(10):
                await one.board.send(b"%d" % number)
            await inbox.take(10)
            assert not two._unread.is_set()


async def test_a_reader_that_ends_leaves_nothing_behind(broker: SQLiteBroker) -> None:
    reading = asyncio.ensure_future(anext(broker.board.messages()))
    async with asyncio.timeout(PATIENCE):
        while not broker.board._readers:
            await turns()
    reading.cancel()
    with suppress(asyncio.CancelledError):
        await reading
    assert not broker.board._readers


# --- several processes ---


async def test_another_process_claims_sends_and_is_killed(tmp_path: Path) -> None:
    log, won = tmp_path / "hub.db", 0
    async with SQLiteBroker(log) as broker:
        board = broker.board
        with other_process(log) as process:
            assert process.stdout is not None
            assert await asyncio.to_thread(process.stdout.readline) == "ready\n"
            done = asyncio.ensure_future(anext(board.messages()))
            for number in range(200):
                await board.send(b"begin")
                won += await board.claim(f"lease.{number}", b"here", LONG) is None
            async with asyncio.timeout(PATIENCE):
                assert await done == b"done"
        assert await board.get("a.other") == b"%d" % (200 - won), "each lease was won once"
        assert list((await board.list("lease")).values()).count(b"here") == won
        await board.put("a.b", b"still works", LONG)


# --- trouble ---


async def test_a_file_that_vanished_is_an_error_until_it_is_back(
    sqlite_world: World, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = path.with_name("elsewhere")
    async with boards_on(sqlite_world, 2) as (one, two), listening_to(two, one) as inbox:
        await one.put("a.b", b"x", LONG)
        rename(path, away)
        for work in (one.put("a.b", b"y", LONG), one.get("a.b"), one.claim("a.c", b"y", LONG), one.send(b"lost")):
            with pytest.raises(LogUnavailable, match="gone"):
                await work
        rename(away, path)
        assert await one.get("a.b") == b"x"
        await one.send(b"and on")
        assert await inbox.take(1) == [b"and on"], "its reader has outlasted that"
    assert len([text for text in warnings(caplog) if str(path) in text]) <= 2, "one line for each process"


async def test_another_board_in_its_place_is_not_mixed_with_it(sqlite_world: World, path: Path) -> None:
    async with boards_on(sqlite_world, 1) as (old,):
        await old.put("a.b", b"old", LONG)
        remove(path)
        async with boards_on(sqlite_world, 1) as (new,):
            assert await new.claim("a.b", b"new", LONG) is None
            with pytest.raises(LogUnavailable, match="replaced"):
                await old.get("a.b")
        with pytest.raises(LogUnavailable, match="replaced"):
            await old.put("a.b", b"old", LONG)
    async with boards_on(sqlite_world, 1) as (board,):
        assert await board.get("a.b") == b"new"


async def test_a_file_that_stays_locked_refuses_in_time(
    broker: SQLiteBroker, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_file, "LOCK_PATIENCE", 0.02)
    await broker.board.put("a.b", b"x", LONG)
    with locked(path):
        with pytest.raises(LogUnavailable, match="locked"):
            await broker.board.put("a.b", b"y", LONG)
        assert await broker.board.get("a.b") == b"x", "it can be read all the while"
    await broker.board.put("a.b", b"y", LONG)


async def test_a_full_disk_keeps_what_was_there(broker: SQLiteBroker) -> None:
    board = broker.board
    await board.put("a.b", b"x", LONG)
    assert board._file is not None
    connection = board._file._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LogFull, match="nothing was kept"):
        await board.put("a.b", b"y" * 16_000, LONG)
    assert await board.list("a") == {"a.b": b"x"}
    connection.execute("PRAGMA max_page_count = 1000000")
    await board.put("a.b", b"y" * 16_000, LONG)


async def test_a_board_that_cannot_be_opened_is_opened_by_a_later_call(
    broker: SQLiteBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refused)
        with pytest.raises(BrokerError, match="log says why"):
            await broker.board.put("a.b", b"x", LONG)
    await broker.board.put("a.b", b"x", LONG)
    assert await broker.board.get("a.b") == b"x"


async def test_a_call_that_is_cancelled_disturbs_no_other(broker: SQLiteBroker) -> None:
    board = broker.board
    calls = [asyncio.ensure_future(board.put(f"a.{number}", b"x", LONG)) for number in range(50)]
    await turns(3)
    for call in calls[::2]:
        call.cancel()
    async with asyncio.timeout(PATIENCE):
        await asyncio.wait(calls)
    found = await board.list("a")
    assert {f"a.{number}" for number in range(1, 50, 2)} <= found.keys()
