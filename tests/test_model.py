"""Exactly once, or told (C1): a hub under random publishers, cuts, restarts and clocks, against a model made of lists.

Clients know only what browsers know: the events that their decoder dispatched, and its last event ID. Whatever
happens, ids rise, no event arrives twice, and each publication for a client that did not arrive lies in the range of a
``gap`` that the client got. A client has a grant, and gets nothing outside of it: no publication, and of no topic the
name. ``--hypothesis-profile=thorough`` runs 2,000 times 50 steps.

The log is in memory, on a distant machine and new after each restart; or in a SQLite file, which outlives its server,
however the server ends, and may be set back to an older copy: then, and only then, the log's epoch is a new one.
"""

import asyncio
import json
import sqlite3
import sys
from collections.abc import Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from sse_app.brokers import Broker
from sse_app.events import Event, EventDecoder
from sse_app.node import Node
from sse_app.notices import HEARTBEAT
from sse_app.publication import Draft, Position, Publication
from sse_app.subscriber import Subscriber
from tests.support.nodes import node_on, subscribed
from tests.support.peers import MOMENT, Clock, DistantBroker, Socket, turns
from tests.support.threadless import ThreadlessLoop, ThreadlessSQLiteBroker
from tests.support.visibility import Reader, recipients, topics
from tests.support.visibility import readers as all_readers

T = TypeVar("T")

PATIENCE = 100.0  # virtual seconds; nothing here takes long unless it hangs
CLIENTS = 6  # at most, so that each gets many steps

readers = all_readers.filter(lambda reader: reader.filter is not None)  # the others are refused: test_narrowing.py

rooms = st.integers(0, 3)  # writes until the socket is full; 0: read with ``read``
lengths = st.integers(0, 700)  # bytes that still arrive of a broken connection
meanwhiles = st.lists(st.integers(0, 4), max_size=6)  # turns of the loop before each publication


@dataclass
class Connection:
    """One stream, read with ``read`` or written to a socket."""

    subscription: AbstractAsyncContextManager[Subscriber]
    subscriber: Subscriber
    socket: Socket | None
    decoder: EventDecoder = field(default_factory=EventDecoder)
    welcomed: bool = False
    over: bool = False


@dataclass(eq=False)
class Client:
    """A browser tab: its request, the position that it keeps, and the publications that it must have got by then."""

    reader: Reader
    cursor: Position | None = None  # its last event ID; up to it the tab has got every publication, or a gap
    connection: Connection | None = None
    seen: set[Position] = field(default_factory=set)

    def wants(self, publication: Publication) -> bool:
        return self.reader.sees(publication)


class Driver:
    """The hub under test, with its log in memory, on a loop that stands still between two steps."""

    def __init__(self) -> None:
        self.loop = ThreadlessLoop()
        self.clock, self.wall = Clock(0.0), Clock(1_700_000_000.0)
        self.log: dict[str, list[Publication]] = {}  # the model: every publication of every epoch
        self.epochs: list[str] = []
        self.delays: list[int] = [0]
        self.tail_delays: tuple[int, ...] = (0,)
        self.broker_settings: dict[str, Any] = {}
        self.node_settings: dict[str, Any] = {}

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        async def until_quiet() -> T:
            async with asyncio.timeout(PATIENCE):
                result = await work
                await asyncio.sleep(MOMENT)
            return result

        return self.loop.run_until_complete(until_quiet())

    def make_broker(self) -> Broker:
        return DistantBroker(self.delays, self.tail_delays, **self.broker_settings)

    def start(self) -> None:
        self.broker = self.make_broker()
        self.node = node_on(self.broker, **self.node_settings)
        self._stop = asyncio.Event()
        self._host = self.loop.create_task(self._keep(self.node, self._stop))
        self.run(self._started())
        epoch = self.run(self.broker.top()).epoch
        if epoch not in self.epochs:
            self.epochs.append(epoch)
            self.log[epoch] = []
        assert epoch == self.epochs[-1], "an epoch that was over comes back"
        self._record = self.broker.tail()

    async def _started(self) -> None:
        while not self.node.life.started:
            assert not self._host.done()
            await turns(1)

    def stop(self) -> None:
        self._stop.set()
        self.run(self._ended())

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        """Release everything, at whichever step a run has ended."""
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(MOMENT))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()
        self.forget()

    def forget(self) -> None:
        """Delete the log."""

    async def _keep(self, node: Node, stop: asyncio.Event) -> None:
        async with node:
            await stop.wait()

    async def _ended(self) -> None:
        await self._host

    def record(self) -> None:
        """Add the new publications to the model."""
        if self.run(self.broker.top()).offset > len(self.published):
            self.published.extend(self.run(self._recorded()))

    async def _recorded(self) -> Sequence[Publication]:
        return await anext(self._record)

    @property
    def published(self) -> list[Publication]:
        return self.log[self.epochs[-1]]

    def between(self, after: Position, until: Position) -> list[Publication]:
        return [item for item in self.log[after.epoch] if after.offset < item.position.offset <= until.offset]


class SQLiteDriver(Driver):
    """The hub under test, with its log in a file."""

    def __init__(self) -> None:
        super().__init__()
        self._directory = TemporaryDirectory()
        self.path = Path(self._directory.name, "hub.db")
        self.copy: tuple[bytes, Position] | None = None  # of the database, with the end of its log

    def make_broker(self) -> Broker:
        self.loop.delay(self.delays)
        return ThreadlessSQLiteBroker(self.path, sync="normal", **self.broker_settings)

    def forget(self) -> None:
        self._directory.cleanup()

    def restart(self) -> None:
        self.stop()
        self._start_where_it_was()

    def kill_and_start(self) -> None:
        files = [Path(f"{self.path}{suffix}") for suffix in ("", "-wal", "-top")]
        contents = [file.read_bytes() for file in files]
        self.stop()
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(content)
        self._start_where_it_was()

    def _start_where_it_was(self) -> None:
        before = Position(self.epochs[-1], len(self.published))
        self.start()
        assert self.run(self.broker.top()) == before

    def back_up(self) -> None:
        with closing(sqlite3.connect(self.path)) as source, closing(sqlite3.connect(":memory:")) as copy:
            source.backup(copy)
            self.copy = copy.serialize(), self.run(self.broker.top())

    def restore_and_start(self, *, by_renaming: bool) -> None:
        """Start with the log of the copy, in another epoch unless nothing was published since the copy."""
        assert self.copy is not None
        database, end = self.copy
        nothing_new = end == Position(self.epochs[-1], len(self.published))
        self.stop()
        if by_renaming:
            new = self.path.with_name("new")
            new.write_bytes(database)
            new.rename(self.path)
        else:
            self.path.write_bytes(database)
        self.start()
        top = self.run(self.broker.top())
        assert top.offset == end.offset
        if top.epoch != end.epoch:
            assert not self.published
            self.published.extend(
                item._replace(position=Position(top.epoch, item.position.offset))
                for item in self.log[end.epoch][: end.offset]
            )
        else:
            assert nothing_new
            assert not by_renaming


class ExactlyOnceOrTold(RuleBasedStateMachine):
    driver_class = Driver
    clients = Bundle("clients")

    def __init__(self) -> None:
        super().__init__()
        self.driver = self.driver_class()
        self.everyone: list[Client] = []
        self.number = 0

    @initialize(
        delays=st.lists(st.sampled_from([0, 1, 2, 5, 30]), min_size=1, max_size=7),
        tail_delays=st.sampled_from([(0,), (1,), (0, 4), (9,)]),
        history=st.integers(1, 12),
        queue=st.tuples(st.integers(1, 4), st.sampled_from([60, 300, 10_000])),
        heartbeat=st.sampled_from([15.0, 0.01]),
    )
    def start(
        self,
        delays: list[int],
        tail_delays: tuple[int, ...],
        history: int,
        queue: tuple[int, int],
        heartbeat: float,
    ) -> None:
        settings = {"history": history, "history_age": 100, "clock": self.driver.clock, "wall": self.driver.wall}
        self.driver.delays, self.driver.tail_delays, self.driver.broker_settings = delays, tail_delays, settings
        self.driver.node_settings = {"queue_size": queue[0], "queue_bytes": queue[1], "heartbeat": heartbeat}
        self.driver.start()

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None and self.driver.epochs:
                self._come_to_an_end()
        finally:
            self.driver.close()

    def _come_to_an_end(self) -> None:
        for client in self.everyone:
            self.catch_up(client)
        for client in self.everyone:
            self.cut(client, 0)
        assert (self.driver.node.totals.subscribers, self.driver.node.totals.lagging) == (0, 0)
        self.driver.stop()

    # Publishers

    @rule(topics=topics, to=recipients, exclude=recipients, count=st.integers(1, 5), at_once=st.booleans())
    def publish(
        self, topics: tuple[str, ...], to: frozenset[str], exclude: frozenset[str], count: int, at_once: bool
    ) -> None:
        if at_once:
            self.driver.run(self._publish(count, topics, to, exclude))
        else:
            for _ in range(count):
                self.driver.run(self._publish(1, topics, to, exclude))
        self.driver.record()

    async def _publish(self, count: int, topics: tuple[str, ...], to: frozenset[str], exclude: frozenset[str]) -> None:
        for _ in range(count):
            self.number += 1
            await self.driver.node.publish(
                Draft.compose(str(self.number), topic=topics or None, to=to or None, exclude=exclude)
            )

    # Clients

    @precondition(lambda self: len(self.everyone) < CLIENTS)
    @rule(target=clients, reader=readers, room=rooms, meanwhile=meanwhiles, topics=topics)
    def connect(self, reader: Reader, room: int, meanwhile: list[int], topics: tuple[str, ...]) -> Client:
        client = Client(reader)
        self.everyone.append(client)
        self._amid_publishing(self._connect(client, room), meanwhile, topics)
        return client

    @rule(client=clients, length=lengths, room=rooms, meanwhile=meanwhiles, topics=topics)
    def resume(self, client: Client, length: int, room: int, meanwhile: list[int], topics: tuple[str, ...]) -> None:
        """Break the connection, and resume with the client's cursor while others publish."""
        self.cut(client, length)
        self._amid_publishing(self._connect(client, room), meanwhile, topics)

    def _amid_publishing(self, work: Coroutine[Any, Any, T], pauses: list[int], topics: tuple[str, ...]) -> T:
        async def both() -> T:
            async with asyncio.TaskGroup() as tasks:
                task = tasks.create_task(work)
                for pause in pauses:
                    await turns(pause)
                    tasks.create_task(self._publish(1, topics, frozenset(), frozenset()))
            return task.result()

        result = self.driver.run(both())
        self.driver.record()
        return result

    @precondition(lambda self: len(self.everyone) < CLIENTS)
    @rule(target=clients, reader=readers, last=st.integers(1, 5), room=rooms)
    def connect_with_last(self, reader: Reader, last: int, room: int) -> Client:
        client = Client(reader)
        wanted = [item for item in self._held() if client.wants(item)][-last:]
        self._connect_for(client, wanted, room, last=last)
        return client

    @precondition(lambda self: len(self.everyone) < CLIENTS)
    @rule(target=clients, reader=readers, count=st.integers(1, 5), room=rooms)
    def connect_with_since(self, reader: Reader, count: int, room: int) -> Client:
        client, held = Client(reader), self._held()
        since = held[-count:][0].time if held else 0.0
        wanted = [item for item in held if item.time >= since and client.wants(item)]
        self._connect_for(client, wanted, room, since=since)
        return client

    def _held(self) -> list[Publication]:
        oldest = self.driver.run(self.driver.broker.oldest())
        return [item for item in self.driver.published if item.position > oldest]

    def _connect_for(self, client: Client, wanted: list[Publication], room: int, **start: Any) -> None:
        """Connect, and check that all of the past that is wanted arrives."""
        self.everyone.append(client)
        self.driver.run(self._connect(client, room, **start))
        self.read(client)
        if client.connection and client.connection.welcomed:
            self.catch_up(client)
            assert {item.position for item in wanted} <= client.seen

    async def _connect(self, client: Client, room: int, **start: Any) -> None:
        reader, cursor = client.reader, None if client.cursor is None else str(client.cursor)
        subscription = subscribed(
            self.driver.node, *reader.asked, after=cursor, client=reader.client, grant=reader.grant, **start
        )
        subscriber = await subscription.__aenter__()
        client.connection = Connection(subscription, subscriber, Socket(room) if room else None)
        if client.connection.socket:
            subscriber.attach(client.connection.socket)

    @rule(client=clients)
    def read(self, client: Client) -> None:
        """Read what is there now."""
        if client.connection is not None:
            self._dispatch(client, self.driver.run(self._receive(client.connection)))

    @rule(client=clients, meanwhile=meanwhiles, topics=topics)
    def read_meanwhile(self, client: Client, meanwhile: list[int], topics: tuple[str, ...]) -> None:
        """Read while others publish."""
        if client.connection is not None:
            self._dispatch(client, self._amid_publishing(self._receive(client.connection), meanwhile, topics))

    @rule(client=clients)
    def catch_up(self, client: Client) -> None:
        """Read until nothing more arrives, and check that nothing is missing."""
        if client.connection is None:
            self.driver.run(self._connect(client, room=2))
        connection = client.connection
        assert connection is not None
        quiet = 0  # reads in a row with heartbeats alone; once a full socket may have held the rest back
        for _ in range(1_000):
            data = self.driver.run(self._receive(connection))
            self._dispatch(client, data)
            quiet = quiet + 1 if not data.replace(HEARTBEAT, b"") else 0
            if quiet == 3:
                break
        else:
            raise AssertionError("the stream never comes to rest")
        assert client.cursor is not None
        top = self.driver.run(self.driver.broker.top())
        assert client.cursor.epoch == top.epoch
        assert not [item for item in self.driver.between(client.cursor, top) if client.wants(item)]

    @rule(client=clients, length=lengths)
    def cut(self, client: Client, length: int) -> None:
        """Break the connection, of whose bytes only so many still arrive."""
        if client.connection is not None:
            connection = client.connection
            self._dispatch(client, self.driver.run(self._receive(connection))[:length])
            self.driver.run(connection.subscription.__aexit__(None, None, None))
            client.connection = None

    async def _receive(self, connection: Connection) -> bytes:
        if connection.over:
            return b""
        if socket := connection.socket:
            data = socket.take()
            if not socket.room:
                socket.room = 2
                connection.subscriber.resume()
                await asyncio.sleep(MOMENT)
            return data
        try:
            async with asyncio.timeout(MOMENT):
                data = await connection.subscriber.read()
        except TimeoutError:
            return b""
        connection.over = data == b""
        return data

    # The world

    @rule(graceful=st.booleans())
    def restart(self, graceful: bool) -> None:
        """Stop the server, and start a new one. A log in memory is then a new log."""
        if graceful:
            self.driver.run(self.driver.node.drain(1))
            for client in self.everyone:
                if client.connection is not None:
                    self.catch_up(client)
        self.cut_all()
        self.driver.restart()

    def cut_all(self) -> None:
        for client in self.everyone:
            self.cut(client, 0)

    @rule(seconds=st.integers(1, 60))
    def time_passes(self, seconds: int) -> None:
        """Let time pass: the log drops what is older than 100 s."""
        self.driver.clock.now += seconds
        self.driver.run(asyncio.sleep(min(seconds, 10 * self.driver.node_settings["heartbeat"])))

    @rule(seconds=st.sampled_from([-86_400, -3_600, -1, 3_600, 86_400]))
    def wall_clock_jumps(self, seconds: int) -> None:
        self.driver.wall.now += seconds

    # Invariants

    def _dispatch(self, client: Client, data: bytes) -> None:
        connection = client.connection
        assert connection is not None
        for event in connection.decoder.feed(data):
            assert connection.welcomed or event.type == "welcome", "the welcome comes first"
            match event.type:
                case "welcome":
                    self._welcome(client, event)
                case "gap":
                    self._gap(client, event)
                case "bye":
                    assert self.driver.node.draining
                case _:
                    self._publication(client, event)
        if connection.welcomed and (moved := Position.parse(connection.decoder.last_event_id.encode())) is not None:
            self._move(client, moved)

    def _move(self, client: Client, to: Position) -> None:
        """Move the cursor, which may pass only publications that are not for the client."""
        assert client.cursor is not None
        assert self.driver.epochs.index(to.epoch) >= self.driver.epochs.index(client.cursor.epoch)
        if to.epoch == client.cursor.epoch:
            assert to.offset >= client.cursor.offset, "the cursor never goes back"
            lost = [item for item in self.driver.between(client.cursor, to) if client.wants(item)]
            assert not lost, f"never came: {lost}"
        client.cursor = to

    def _welcome(self, client: Client, event: Event) -> None:
        connection = client.connection
        assert connection is not None
        assert not connection.welcomed, "welcomed twice"
        connection.welcomed = True
        id = Position.parse((event.id or "").encode())
        assert id is not None
        assert client.cursor in (None, id), "a resume begins where the client was"
        client.cursor = id
        if last := json.loads(event.data)["last"]:
            position = Position.parse(last["id"].encode())
            assert position is not None
            (newest,) = [item for item in self.driver.log[position.epoch] if item.position == position]
            assert client.wants(newest), "its welcome names what is not for it"
            assert tuple(last["topics"]) == client.reader.topics(newest.topics)

    def _gap(self, client: Client, event: Event) -> None:
        notice = json.loads(event.data)
        requested = Position.parse(notice["requested"].encode())
        start = Position.parse((event.id or "").encode())
        assert requested is not None
        assert start is not None
        self._move(client, requested)
        oldest = self.driver.run(self.driver.broker.oldest())
        assert start <= oldest, "what the log holds is no gap"
        assert notice["reason"] == ("trimmed" if requested.epoch == start.epoch else "epoch")
        assert start > requested or requested.epoch != start.epoch
        client.cursor = start

    def _publication(self, client: Client, event: Event) -> None:
        position = Position.parse((event.id or "").encode())
        assert position is not None
        assert position not in client.seen, "came twice"
        assert client.cursor is not None
        (publication,) = [item for item in self.driver.log[position.epoch] if item.position == position]
        assert client.wants(publication), "was not for this client"
        assert event.data == publication.event.data
        before = Position(position.epoch, position.offset - 1)
        assert before >= client.cursor, "came out of order"
        self._move(client, before)
        client.cursor = position
        client.seen.add(position)

    @invariant()
    def everybody_is_counted(self) -> None:
        if self.driver.epochs:
            connected = [client for client in self.everyone if client.connection is not None]
            assert self.driver.node.totals.subscribers == len(connected)
            assert 0 <= self.driver.node.totals.lagging <= len(connected)


class ExactlyOnceOrToldFromAFile(ExactlyOnceOrTold):
    driver_class = SQLiteDriver
    driver: SQLiteDriver

    @rule()
    def kill(self) -> None:
        self.cut_all()
        self.driver.kill_and_start()

    @rule()
    def back_up(self) -> None:
        self.driver.back_up()

    @precondition(lambda self: self.driver.copy is not None)
    @rule(by_renaming=st.booleans())
    def restore(self, by_renaming: bool) -> None:
        """Stop the server, and start it with an older copy of its file."""
        self.cut_all()
        self.driver.restore_and_start(by_renaming=by_renaming)


TestExactlyOnceOrTold = pytest.mark.timeout(1_800)(ExactlyOnceOrTold.TestCase)  # seconds; the thorough run takes 150
TestExactlyOnceOrTold.settings = settings(stateful_step_count=50)

TestExactlyOnceOrToldFromAFile = pytest.mark.timeout(7_200)(ExactlyOnceOrToldFromAFile.TestCase)
TestExactlyOnceOrToldFromAFile.settings = settings(  # a step on a file takes 5 times as long
    stateful_step_count=50, max_examples=settings().max_examples // 4
)
