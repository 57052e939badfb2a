"""A file of an older version that this one opens; a newer one that takes the file over; kills in the middle of it."""

import asyncio
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from signal import SIGKILL

import pytest

from sse_app.brokers.sqlite.log import Log
from sse_app.brokers.sqlite.schema import CREATED, MIGRATIONS, OUTDATED, SCHEMA_VERSION, version_of
from sse_app.errors import BrokerError, ConfigError, LogUnavailable
from sse_app.hub import Hub
from sse_app.publication import Position
from tests.brokers.test_brokers import replayed
from tests.support.peers import PATIENCE, read_events, until
from tests.support.sqlite_log import broker_on, held, open_log, publish, take
from tests.support.worlds import World

OLD = Path(__file__).parent.parent / "fixtures" / "version-1.db"  # made by commit 52d9bc9
EPOCH = "3a700e20082b"

# As the version before this one appended: a row of eight values, into tables that it had checked when it started.
OLD_INSERT = "INSERT INTO log VALUES (5, 1.7e9, 1.7e9, 'message', '', '', '', x'646174613a20780a0a')"

# Opens the log, and is killed before its n-th statement from the beginning of the transaction that migrates it on.
KILLED = """
import os, signal, sys
from pathlib import Path
from sse_app.brokers.sqlite import log, schema
count, path = int(sys.argv[1]), Path(sys.argv[2])
opened = log.Log(path, "full")
def trace(statement):
    global count
    count -= 1
    if not count:
        os.kill(os.getpid(), signal.SIGKILL)
opened._connection.set_trace_callback(trace)
opened.prepare(None, None)
print("done")
"""


def put_old(path: Path) -> None:
    """The file as the process of the old version has left it, in its place."""
    shutil.copy(OLD, path)
    Path(f"{path}-top").write_text(f"{EPOCH} 4 {path.stat().st_ino} synced".ljust(127) + "\n")


def tables(path: Path) -> tuple[int, frozenset[str], list[str]]:
    with closing(sqlite3.connect(path)) as connection:
        columns = [name for _, name, *_ in connection.execute("PRAGMA table_info(log)")]
        names = frozenset(name for (name,) in connection.execute("SELECT name FROM sqlite_schema"))
        return version_of(connection), names, columns


def migrate_further(path: Path) -> None:
    """As a newer version will: it adds what this one does not know."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ALTER TABLE log ADD COLUMN later TEXT")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        connection.execute("COMMIT")


@pytest.fixture
def path(sqlite_world: World) -> Path:
    return Path(sqlite_world.url.removeprefix("sqlite:///"))


def test_a_file_of_version_1_becomes_one_of_this_version(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put_old(path)
    assert tables(path)[0] == 1
    open_log(path).close()
    new = path.with_name("new.db")
    open_log(new).close()
    assert tables(path) == tables(new), "the same, wherever it began"
    assert tables(path)[0] == SCHEMA_VERSION
    assert len(caplog.messages) == 1
    assert "older ones of sse-app cannot open it" in caplog.messages[0]


def test_migrations_only_add() -> None:
    assert CREATED.strip().endswith("user_version = 1")
    for before, statements in MIGRATIONS.items():
        *adding, last = [statement.strip() for statement in statements.split(";")]
        assert last == f"PRAGMA user_version = {before + 1}"
        for statement in adding:
            assert statement.startswith(("ALTER TABLE log ADD COLUMN ", "CREATE INDEX ", "CREATE TABLE "))
            assert "NOT NULL" not in statement.replace("IS NOT NULL", "")


def killed_before(path: Path, statement: int) -> bool:
    """True if the process came so far that it was killed."""
    command = sys.executable, "-c", KILLED, str(statement), str(path)
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode in (0, -SIGKILL), ended.stderr
    assert (ended.stdout == "done\n") == (ended.returncode == 0)
    return ended.returncode == -SIGKILL


async def test_a_kill_leaves_one_version_or_the_other(sqlite_world: World, path: Path) -> None:
    old, new = (1, SCHEMA_VERSION)
    found, statement = list[int](), 0
    killed = True
    while killed:
        statement += 1
        await asyncio.to_thread(put_old, path)
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)  # noqa: ASYNC240
        killed = await asyncio.to_thread(killed_before, path, statement)
        version, names, columns = await asyncio.to_thread(tables, path)
        assert ("uncommon" in names) == ("crit" in columns) == ("json" in columns) == (version == new)
        found.append(version)
        async with broker_on(sqlite_world) as broker:
            assert [item.position.offset for item in await replayed(broker)] == [1, 2, 3, 4]
            assert (await publish(broker, "more"))[0].offset == 5
    assert found == sorted(found), "the later the kill, the newer"
    assert (found[0], found[-1]) == (old, new)
    assert found.count(old) > 5, "killed at each statement in between"


async def test_an_old_process_that_has_it_open_can_read_on_and_not_write(sqlite_world: World, path: Path) -> None:
    await asyncio.to_thread(put_old, path)
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        assert old.execute("SELECT count(*) FROM log").fetchone() == (4,)
        async with broker_on(sqlite_world) as broker:
            await publish(broker, "of this version")
            assert await held(broker) == ["everyone", '{"number":42}', "two\nlines, é😀", "\n", "of this version"]
            query = 'SELECT offset, time, type, topics, "to", exclude, body FROM log'
            assert [row[0] for row in old.execute(query)] == [1, 2, 3, 4, 5]
            old.execute("BEGIN IMMEDIATE")
            with pytest.raises(sqlite3.OperationalError, match="columns"):
                old.execute(OLD_INSERT)
            old.execute("ROLLBACK")
            assert (await publish(broker, "undisturbed"))[0] == Position(EPOCH, 6)


async def test_a_process_that_finds_a_newer_version_refuses_and_says_so(
    sqlite_world: World, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with broker_on(sqlite_world) as broker:
        (before,) = await publish(broker, "before")
        assert not broker.outdated
        broker.check()
        await asyncio.to_thread(migrate_further, path)
        for _ in range(2):
            with pytest.raises(LogUnavailable, match="Restart this hub"):
                await publish(broker, "refused")
        with pytest.raises(LogUnavailable):
            broker.check()
        assert broker.outdated
        assert await held(broker) == ["before"], "what there is can still be read"
        assert await broker.top() == before
    assert len(caplog.messages) == 1
    assert OUTDATED in caplog.messages[0]
    with pytest.raises(ConfigError, match=f"of format {SCHEMA_VERSION + 1}, of a newer version"):
        async with broker_on(sqlite_world):
            pass


async def test_who_only_listens_finds_a_newer_version_too(sqlite_world: World, path: Path) -> None:
    async with broker_on(sqlite_world) as broker:
        tail = broker.tail()
        await publish(broker, "before")
        assert await take(tail, 1) == ["before"]
        await asyncio.to_thread(migrate_further, path)
        sqlite_world.clock.now += 10

        def refuses() -> bool:
            try:
                broker.check()
            except BrokerError:
                return broker.outdated
            return False

        await until(refuses)


async def test_a_hub_drains_whose_log_a_newer_version_took_over(sqlite_world: World, path: Path) -> None:
    async with Hub(broker_on(sqlite_world), heartbeat=0.15, drain=0.1) as hub, hub.subscribe() as subscriber:
        await hub.publish("before")
        await asyncio.to_thread(migrate_further, path)
        with pytest.raises(LogUnavailable):
            await hub.publish("refused")
        events = await read_events(subscriber, lambda events: any(event.type == "bye" for event in events))
        assert [event.type for event in events] == ["welcome", "message", "bye"]
        assert hub.draining


def test_nothing_is_changed_in_a_file_that_a_newer_version_took_over(path: Path) -> None:
    open_log(path).close()
    log = Log(path, "full")
    migrate_further(path)
    before = tables(path)
    with pytest.raises(LogUnavailable, match="Restart this hub"):
        log.prepare(None, None)
    assert log.outdated
    log.close()
    assert tables(path) == before
