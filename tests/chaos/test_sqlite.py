"""The log in a SQLite file outlives its server, however the server ends; several servers on one file are one hub."""

import asyncio
import json
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from itertools import count as numbers
from pathlib import Path
from random import Random
from time import perf_counter

import pytest

from sse_app import AsyncPublisher
from sse_app.brokers.sqlite import READERS
from tests.chaos.client import (
    BEGIN,
    SMALL,
    Answer,
    Connection,
    Stream,
    ids_of,
    offset_of,
    post,
    replayed,
    stats,
    streams,
    texts_of,
    until,
    until_stats,
)
from tests.chaos.conftest import Serve, Server, Spawn, assert_in_time, count, listening_port
from tests.chaos.launch import launched, nothing_for
from tests.chaos.test_drain import ENDED, GRACE

WHOLE = ("--history", "1000000")


@pytest.fixture
def database(path: Path) -> str:
    return f"sqlite:///{path}"


# --- killed (G1, G8) ---


@dataclass
class Ledger:
    """The answers to the publishers of a server that is killed now and then."""

    acknowledged: dict[str, str] = field(default_factory=dict)  # text: id
    refused: set[str] = field(default_factory=set)
    top: int = 0  # offset of the newest acknowledged publication
    more: asyncio.Event = field(default_factory=asyncio.Event)

    async def publish(self, port: int, name: str) -> None:
        """Publish one by one, through all kills. A publication without an answer is not tried again."""
        texts = (f"{name} {number}" for number in numbers())
        while True:
            try:
                async with await Connection.open(port) as connection:
                    for text in texts:
                        await self._publish(connection, text)
            except ConnectionError:
                await asyncio.sleep(0)

    async def _publish(self, connection: Connection, text: str) -> None:
        before = self.top
        reserved = text.endswith("9")
        target = "/broadcast?event=welcome" if reserved else "/broadcast"
        answer = await connection.request("POST", target, text.encode())
        assert answer.status == (400 if reserved else 200), answer
        if reserved:
            self.refused.add(text)
            return
        id = self.acknowledged[text] = answer.json["id"]
        assert offset_of(id) > before, "what is published after an answer comes after it"
        self.top = max(self.top, offset_of(id))
        self.more.set()

    async def more_than(self, offset: int) -> None:
        while self.top <= offset:
            self.more.clear()
            await self.more.wait()


@dataclass
class Browser:
    """A client that reads, and resumes with its cursor."""

    cursor: str
    offsets: list[int] = field(default_factory=list)
    types: set[str] = field(default_factory=set)

    async def read(self, port: int) -> None:
        while True:
            try:
                async with await Stream.open(port, self.cursor) as stream:
                    while not stream.over:
                        await stream.read()
                        self.cursor = stream.cursor
                    self.offsets += stream.offsets
                    self.types |= {event.type for event in stream.events}
            except ConnectionError:
                await asyncio.sleep(0)


async def test_what_was_acknowledged_outlives_every_kill(serve: Serve, database: str) -> None:
    random, ledger = Random(1), Ledger()
    kills = count(ci=8, full=100)
    flags = ("--broker", database, *WHOLE)
    server = serve(*flags)
    epoch, alive = (await stats(server.port))["top"].partition("-")[0], 0.0
    browser = Browser(epoch + BEGIN)
    async with asyncio.TaskGroup() as tasks:
        clients = [tasks.create_task(ledger.publish(server.port, f"p{name}")) for name in range(6)]
        clients.append(tasks.create_task(browser.read(server.port)))
        for _ in range(kills):
            begun = perf_counter()
            await ledger.more_than(ledger.top + random.randint(0, 50))
            await nothing_for(random.uniform(0, 0.3))
            server.kill()
            alive += perf_counter() - begun
            server = serve(*flags, port=server.port)
        await ledger.more_than(ledger.top)
        for client in clients:
            client.cancel()
    replay = await replayed(server.port, epoch + BEGIN)
    texts, ids = texts_of(replay), ids_of(replay)
    print(f"{kills} kills, {len(ledger.acknowledged)} acknowledged ({len(ledger.acknowledged) / alive:.0f}/s),")
    print(f"{len(texts)} in the log, {len(ledger.refused)} refused")
    assert ids == [f"{epoch}-{offset}" for offset in range(1, len(ids) + 1)]
    assert len(set(texts)) == len(texts)
    assert ledger.acknowledged.items() <= dict(zip(texts, ids, strict=True)).items()
    assert ledger.refused
    assert not ledger.refused & set(texts)
    assert_kept_in_order(texts)
    assert browser.offsets == list(range(1, len(browser.offsets) + 1))
    assert browser.types == {"welcome", "message"}


def assert_kept_in_order(texts: list[str]) -> None:
    """Assert that the log has the publications of each publisher in their order."""
    orders: dict[str, list[int]] = {}
    for text in texts:
        name, number = text.split(" ")
        orders.setdefault(name, []).append(int(number))
    assert len(orders) == 6
    assert all(each == sorted(each) for each in orders.values())


async def test_what_a_kill_cut_off_between_commit_and_fan_out_comes_by_replay(tmp_path: Path, database: str) -> None:
    random = Random(1)
    cursor, published, lost = "", 0, 0
    for number in range(count(ci=6, full=51)):
        place, commit = ("committed", "marked", "awake")[number % 3], random.randint(1, 4)
        module = ("tests.chaos.failpoint", place, str(commit))
        with launched(tmp_path / "log", "--broker", database, module=module) as server:
            async with (
                await Stream.open(server.port, cursor) as stream,
                await Connection.open(server.port) as publisher,
            ):
                await stream.until_offset(published)
                for _ in range(commit - 1):
                    published += 1
                    await publisher.publish(f"{published}")
                with pytest.raises(ConnectionError):
                    await publisher.publish(f"{published + 1}")
                await stream.to_the_end()
        lost += offset_of(stream.cursor) == published
        assert_resumed(stream, cursor, published)
        cursor, published = stream.cursor, published + 1
    with launched(tmp_path / "log", "--broker", database) as server:
        stream = await replayed(server.port, cursor)
        assert_resumed(stream, cursor, published)
        assert texts_of(await replayed(server.port, cursor.partition("-")[0] + BEGIN)) == [
            str(each) for each in range(1, published + 1)
        ]
    print(f"{number + 1} kills between commit and fan-out, {lost} of them before anybody had it")
    assert lost == number + 1
    assert (tmp_path / "log").read_text() == ""


def assert_resumed(stream: Stream, cursor: str, until: int) -> None:
    """Assert that the stream has all behind its cursor, and no more than was published."""
    behind = offset_of(cursor) if cursor else 0
    assert stream.offsets == list(range(behind + 1, until + 1))
    assert not stream.of_type("gap")


# --- an older file in its place (C6) ---


def deleted(path: Path, backup: Path) -> None:
    path.unlink()


def emptied(path: Path, backup: Path) -> None:
    path.write_bytes(b"")


def restored_in_place(path: Path, backup: Path) -> None:
    forget_wal(path)
    path.write_bytes(backup.read_bytes())


def restored_by_renaming(path: Path, backup: Path) -> None:
    forget_wal(path)
    shutil.copy(backup, path.with_name("copy"))
    path.with_name("copy").rename(path)


def forget_wal(path: Path) -> None:
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
async def test_every_cursor_of_a_log_that_was_set_back_is_told_of_a_new_epoch(
    serve: Serve, database: str, path: Path, killed: bool
) -> None:
    flags = ("--broker", database, "--drain", "1")
    server, backup, used = serve(*flags), path.with_name("backup"), list[str]()

    async def publish() -> None:
        async with await Connection.open(server.port) as publisher:
            used.extend([await publisher.publish(str(number)) for number in range(3)])

    for harm in (restored_in_place, restored_by_renaming, deleted, emptied):
        await publish()
        held = offset_of(used[-1]) if harm in (restored_in_place, restored_by_renaming) else 0
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(backup)) as copy:
            source.backup(copy)
        await publish()
        await stopped(server, killed=killed)
        harm(path, backup)
        server = serve(*flags, port=server.port)
        for cursor in used:
            stream = await resumed_in_a_new_epoch(server, cursor)
            assert stream.offsets == list(range(1, held + 1)), harm
    assert len(set(used)) == len(used)


async def stopped(server: Server, *, killed: bool) -> None:
    if killed:
        server.kill()
    else:
        server.terminate()
        assert await server.exit_code() in ENDED


async def resumed_in_a_new_epoch(server: Server, cursor: str) -> Stream:
    top = (await stats(server.port))["top"]
    async with await Stream.open(server.port, cursor) as stream:
        await stream.until(lambda: len(stream.events) >= 2 and stream.cursor == top)
    welcome, gap = stream.events[:2]
    assert json.loads(welcome.data)["recovered"] is False
    notice = json.loads(gap.data)
    assert (gap.type, notice["reason"], notice["requested"]) == ("gap", "epoch", cursor)
    return stream


# --- idempotency (C10) ---


async def test_one_key_is_one_publication_also_after_a_kill(serve: Serve, database: str) -> None:
    async def keyed(body: str) -> Answer:
        return await post(server.port, body, idempotency_key="the-key")

    server = serve("--broker", database)
    answers = await asyncio.gather(*(keyed("body") for _ in range(100)))
    server.kill()
    server = serve("--broker", database)
    answers += await asyncio.gather(*(keyed("body") for _ in range(100)))
    other = await keyed("other body")
    after = await post(server.port, "after")
    assert {answer.status for answer in answers} == {200}
    (id,) = {answer.json["id"] for answer in answers}
    assert (other.status, other.json["code"]) == (409, "key_reused")
    assert texts_of(await replayed(server.port, id.partition("-")[0] + BEGIN)) == ["body", "after"]
    assert offset_of(after.json["id"]) == 2


# --- two servers on one file (G7) ---


@pytest.fixture
def servers(spawn: Spawn, database: str) -> tuple[Server, Server]:
    """Two servers, started at the same time, on a file that does not exist yet."""
    one, other = (spawn("--broker", database, *WHOLE) for _ in range(2))
    return Server(one, listening_port(one)), Server(other, listening_port(other))


async def test_two_servers_on_one_file_are_one_hub(servers: tuple[Server, Server]) -> None:
    each = count(ci=100, full=1_000)
    ids: list[str] = []

    async def publish(server: Server, name: str) -> None:
        async with await Connection.open(server.port) as connection:
            for number in range(each):
                ids.append(await connection.publish(f"{name} {number}"))

    async with streams(servers[0].port, 5) as some, streams(servers[1].port, 7) as others:
        for server in servers:
            await until_stats(server.port, subscribers=12)
        async with streams(servers[0].port, 1) as (late,):
            assert json.loads(late.events[0].data)["subscribers"] == 13
        async with asyncio.TaskGroup() as tasks:
            for number in range(6):
                tasks.create_task(publish(servers[number % 2], f"p{number}"))
            for stream in (*some, *others):
                tasks.create_task(awaited(stream, 6 * each))
    assert len(set(ids)) == len(ids) == 6 * each
    orders = {tuple((event.id, event.data) for event in stream.events[1:]) for stream in (*some, *others)}
    (order,) = orders
    assert [offset_of(id or "") for id, _ in order] == list(range(1, 6 * each + 1))
    assert_kept_in_order([data for _, data in order])
    for server in servers:
        assert (await stats(server.port))["totals"]["gaps"] == {}


async def awaited(stream: Stream, offset: int) -> None:
    await stream.until_offset(offset)


async def test_of_two_servers_one_goes_on_when_the_other_is_killed(servers: tuple[Server, Server]) -> None:
    first, second = servers
    async with streams(first.port, 3), streams(second.port, 2) as (reader, _):
        await until_stats(second.port, subscribers=5)
        async with asyncio.TaskGroup() as tasks:  # the kill comes while the server writes
            ledger = Ledger()
            publishing = [tasks.create_task(ledger.publish(first.port, f"p{name}")) for name in range(4)]
            await ledger.more_than(50)
            first.kill()
            for task in publishing:
                task.cancel()
        id = (await post(second.port, "and on")).json["id"]
        assert offset_of(id) > ledger.top
        await reader.until_offset(offset_of(id))
        await until_stats(second.port, subscribers=2)
    assert reader.offsets == list(range(1, offset_of(id) + 1))
    assert ledger.acknowledged.items() <= dict(zip(texts_of(reader), ids_of(reader), strict=True)).items()


async def test_what_one_server_has_acknowledged_is_never_ahead_of_the_other(servers: tuple[Server, Server]) -> None:
    async with await Connection.open(servers[0].port) as one, await Connection.open(servers[1].port) as other:
        for number in range(count(ci=50, full=500)):
            publisher, server = ((one, servers[1]), (other, servers[0]))[number % 2]
            id = await publisher.publish("x")
            async with streams(server.port, 1, cursor=id) as (stream,):
                assert json.loads(stream.events[0].data)["recovered"] is True
    for server in servers:
        assert (await stats(server.port))["totals"]["gaps"] == {}


# --- locked by another process (G6, M4) ---


@asynccontextmanager
async def locked(path: Path) -> AsyncIterator[None]:
    """The database, locked by this process."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


async def test_a_file_that_another_process_keeps_locked_is_unavailable_and_all_else_goes_on(
    tmp_path: Path, database: str, path: Path
) -> None:
    log = tmp_path / "log"
    loop = asyncio.get_running_loop()
    with launched(log, "--broker", database, "--heartbeat", "300ms") as server:
        async with streams(server.port, 3) as readers, await Connection.open(server.port) as publisher:
            first = await publisher.publish("before")
            async with locked(path), await Stream.open(server.port) as fresh:
                begun, refused = loop.time(), 0
                while loop.time() < begun + count(ci=4, full=10):
                    refused += 1
                    await publisher.send_head("POST", "/broadcast", content_length=6)
                    await publisher.send(b"locked")
                    answering = asyncio.ensure_future(publisher.receive_answer())
                    answered = 0
                    while not answering.done():
                        async with await Connection.open(server.port) as connection:
                            assert (await connection.request("GET", "/healthz")).status == 200
                        answered += 1
                        await heartbeat(fresh)
                    answer = answering.result()  # answered while the file is still locked
                    assert (answer.status, answer.json["code"]) == (503, "log_unavailable")
                    assert int(answer.headers["retry-after"]) > 0
                    assert answered > 1
                    assert (await readiness(server)).status == 503
            second = await publisher.publish("after")
            assert (await readiness(server)).status == 200
            for reader in readers:
                await reader.until_offset(2)
                assert [event.id for event in reader.events[1:]] == [first, second]
    print(f"{refused} refused while it was locked")
    lines = log.read_text().splitlines()
    assert len(lines) == 2, lines
    assert "locked" in lines[0]
    assert "can be written again" in lines[1]


async def heartbeat(stream: Stream) -> None:
    """Read the next bytes of a stream without publications, which are a heartbeat."""
    data = b""
    while b":\n\n" not in data:
        piece = await stream.connection.receive()
        assert piece, "the stream has ended"
        data += piece


async def readiness(server: Server) -> Answer:
    async with await Connection.open(server.port) as connection:
        return await connection.request("GET", "/readyz")


async def test_a_server_whose_file_is_locked_stops_in_time(tmp_path: Path, database: str, path: Path) -> None:
    drain = 5
    with launched(tmp_path / "log", "--broker", database, "--drain", str(drain)) as server:
        async with streams(server.port, 3) as readers, locked(path), await Connection.open(server.port) as publisher:
            await publisher.send_head("POST", "/broadcast", content_length=4, expect="100-continue")
            assert (
                await publisher.receive_head()
            ).status == 100  # the request is accepted, and the server waits for its body
            await publisher.send(b"late")
            server.terminate()
            begun = perf_counter()
            code = await server.exit_code()
            taken = perf_counter() - begun
            for reader in readers:
                await reader.to_the_end()
                assert [event.type for event in reader.events] == ["welcome", "bye"]
    print(f"exit {code} after {taken:.1f} s of {drain}")
    assert code in ENDED
    assert_in_time("ended", taken, drain + GRACE)


# --- readers that disconnect (E5) ---


async def test_readers_that_go_in_the_middle_of_a_long_replay_give_back_what_they_had(
    serve: Serve, database: str, path: Path
) -> None:
    server = serve("--broker", database)
    total = 10_000
    async with AsyncPublisher(database) as publisher:
        await asyncio.gather(*(publisher.publish("x" * 500) for _ in range(total)))
    epoch = (await stats(server.port))["top"].partition("-")[0]
    before = server.descriptors
    for _ in range(count(ci=5, full=50)):
        opened = [await Stream.open(server.port, epoch + BEGIN, receive_buffer=SMALL) for _ in range(8)]
        for stream in opened:
            await stream.until_offset(1)
            assert stream.offsets[-1] < total
            stream.connection.reset()
        await until_stats(server.port, subscribers=0)

    async def given_back() -> bool:
        return server.descriptors <= before + 3 * READERS  # three files for each of SQLite's read connections

    await until(given_back, "all descriptors are given back")
    assert (await replayed(server.port, epoch + BEGIN)).offsets == list(range(1, total + 1))
