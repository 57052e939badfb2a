"""The log in a file among strangers: junk beside it, a lock that is never given back, another file in its place."""

import asyncio
import fcntl
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from sse_app.brokers import Broker, open_broker
from sse_app.brokers.sqlite import opening
from sse_app.brokers.sqlite.log import Appended, Entries, Entry, State
from sse_app.brokers.sqlite.writer import Writer
from sse_app.errors import LogUnavailable
from sse_app.events import Event
from sse_app.hub import Hub
from sse_app.publication import Draft, Position
from sse_app.topics import TopicFilter
from tests.support.peers import PATIENCE, turns

EVERYTHING = TopicFilter()
ENTRY = Entry("message", b"", (), frozenset(), frozenset(), None, b"")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "hub.db"


@pytest.fixture
async def broker(path: Path) -> AsyncIterator[Broker]:
    async with asyncio.timeout(PATIENCE), open_broker(f"sqlite:///{path}") as broker:
        yield broker


def nodes(path: Path) -> Path:
    return Path(f"{path}-nodes")


def watermark(path: Path) -> Path:
    return Path(f"{path}-top")


def unavailable(broker: Broker) -> bool:
    try:
        broker.check()
    except LogUnavailable:
        return True
    return False


async def refreshed(path: Path) -> None:
    """Return when a broker with a tail has read the other processes, and removed the file of a dead one."""
    dead = nodes(path) / "dead"
    for _ in range(2):  # the first refresh may have begun before
        dead.touch()
        while dead.exists():
            await turns(1)


@contextmanager
def suspended(path: Path) -> Iterator[None]:
    """Another process stands still while it keeps the watermark locked."""
    with watermark(path).open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --- what lies beside the file ---


async def test_junk_among_the_nodes_is_passed_over(broker: Broker, path: Path) -> None:
    broker.tail()
    (nodes(path) / "directory").mkdir()
    (nodes(path) / "junk").write_text("no numbers")
    with (nodes(path) / "junk").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        await refreshed(path)
        assert (await broker.publish(Draft(Event("x")))).offset == 1
    await refreshed(path)
    assert [item.name for item in nodes(path).iterdir() if len(item.name) != 12] == ["directory"]


async def test_junk_in_place_of_the_watermark_is_written_over(broker: Broker, path: Path) -> None:
    broker.tail()
    watermark(path).write_text("four words of junk")
    await refreshed(path)
    position = await broker.publish(Draft(Event("x")))
    assert watermark(path).read_text().split()[:2] == [position.epoch, "1"]


async def test_a_directory_that_is_gone_is_an_unavailable_log_until_it_is_back(broker: Broker, path: Path) -> None:
    broker.tail()
    data, away = path.parent, path.parent.with_name("away")
    data.rename(away)
    data.write_text("a file in its place")
    while not unavailable(broker):
        await turns(1)
    with pytest.raises(LogUnavailable, match="gone"):
        await broker.publish(Draft(Event("x")))
    data.unlink()
    away.rename(data)
    while unavailable(broker):
        await turns(1)
    assert (await broker.publish(Draft(Event("x")))).offset == 1


async def test_publishing_and_closing_do_not_wait_for_a_process_that_stands_still(path: Path) -> None:
    with ExitStack() as stack:
        async with asyncio.timeout(PATIENCE), open_broker(f"sqlite:///{path}") as broker:
            stack.enter_context(suspended(path))
            assert (await broker.publish(Draft(Event("x")))).offset == 1
    async with open_broker(f"sqlite:///{path}") as broker:
        assert (await broker.top()).offset == 1


async def test_opening_gives_up_on_a_process_that_stands_still(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "CHECK_PATIENCE", 0.1)
    with suspended(path), pytest.raises(LogUnavailable, match=r"hub.db cannot be opened: .* locked\.$"):
        await open_broker(f"sqlite:///{path}").__aenter__()


# --- another file in its place ---


async def test_a_file_that_took_its_place_is_not_read(path: Path, tmp_path: Path) -> None:
    async with open_broker(f"sqlite:///{path}") as broker:
        await broker.publish(Draft(Event("a")))
    shutil.copy(path, tmp_path / "older")
    async with asyncio.timeout(PATIENCE), open_broker(f"sqlite:///{path}") as broker:
        top = await broker.publish(Draft(Event("b")))
        os.rename(tmp_path / "older", path)
        with pytest.raises(LogUnavailable):
            await broker.replay(top._replace(offset=0), top, EVERYTHING)
        with pytest.raises(LogUnavailable):
            await broker.top(fresh=True)


# --- locks ---


async def test_heartbeats_do_not_wait_for_another_process_that_keeps_the_file_locked(path: Path) -> None:
    broker = open_broker(f"sqlite:///{path}")
    with sqlite3.connect(path, isolation_level=None) as other:
        async with asyncio.timeout(PATIENCE), Hub(broker, heartbeat=0.15) as hub, hub.subscribe() as subscriber:
            await subscriber.read()
            other.execute("BEGIN IMMEDIATE")
            for _ in range(10):
                assert await subscriber.read() == b":\n\n"
            other.execute("ROLLBACK")
    other.close()


async def test_a_lock_of_any_kind_is_waited_for() -> None:
    state = State("e", 1, 0, 0, 0.0, 0.0, 0.0)
    tries = 0

    def append(waiting: list[Entries]) -> Appended:
        nonlocal tries
        tries += 1
        if tries < 3:
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY_RECOVERY
            raise error
        return Appended(Position("e", 0), state, [], [[state.position]] * len(waiting))

    writer = Writer(asyncio.get_running_loop(), append, lambda appended: None)
    try:
        async with asyncio.timeout(PATIENCE):
            assert await writer.submit(Entries((ENTRY,))) == [state.position]
    finally:
        writer.stop()


# --- callers ---
