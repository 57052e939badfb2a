"""Connections of several nodes that hear each other: who is there, kicks, and blocks. On virtual time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from sse_app import connections
from sse_app.asking import WAITING_MAX, WINDOW
from sse_app.blocks import KEPT, LASTS_MAX, Block, Blocks
from sse_app.brokers.memory_board import Entries, MemoryBoard
from sse_app.connections import INTERVAL, LIMIT_MAX, ConnectedStream, ConnectedStreams, Wanted
from sse_app.delivery import END, OFFER, SLICE
from sse_app.errors import Blocked, BrokerUnavailable, InvalidClient, InvalidParameter, InvalidTopic, NoSuchClient
from sse_app.grants import OPEN, Grant, Lease
from sse_app.node import Node
from sse_app.publication import Draft
from sse_app.subscriber import CloseReason
from sse_app.topics import TopicFilter
from tests.support.boards import LinkedBoard, LinkedBroker
from tests.support.nodes import data_of, node_on, subscribed
from tests.support.peers import MOMENT, received

pytestmark = pytest.mark.virtual_time

BEGIN = 1_700_000_000.0  # Unix time
EVERYTHING = TopicFilter()
ANN = Grant(subscribe=EVERYTHING, user="ann", source="portal", expires=BEGIN + 3_600)
BOB = replace(ANN, user="bob")


def wall() -> float:
    return BEGIN + asyncio.get_running_loop().time()


class Board(LinkedBoard):
    """A board whose node may be unable to hear, or to reach it at all."""

    is_down = False

    async def claim(self, key: str, value: bytes, ttl: float) -> bytes | None:
        self._check()
        return await super().claim(key, value, ttl)

    async def list(self, kind: str) -> dict[str, bytes]:
        self._check()
        return await super().list(kind)

    async def send(self, message: bytes) -> None:
        self._check()
        await super().send(message)

    def _check(self) -> None:
        if self.is_down:
            raise BrokerUnavailable("The board cannot be reached.")

    def become_deaf(self) -> None:
        for inbox, more in self._inboxes:
            self._inboxes = [(type(inbox)(maxlen=0), more)]


@dataclass
class World:
    """Nodes whose boards are linked."""

    nodes: list[Node]
    entries: Entries
    linked: list[LinkedBoard]
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    def board(self, number: int) -> Board:
        board = self.nodes[number].broker.board
        assert isinstance(board, Board)
        return board

    async def add(self, **settings: Any) -> Node:
        broker = LinkedBroker()
        broker.board = Board(self.entries, self.linked)
        self.nodes.append(await self.stack.enter_async_context(node_on(broker, **({"wall": wall} | settings))))
        await asyncio.sleep(MOMENT)  # from here on it hears the others
        return self.nodes[-1]

    async def open(self, number: int, *topics: str, **options: Any) -> Any:
        """A stream of this node, whose welcome was read."""
        subscriber = await self.stack.enter_async_context(subscribed(self.nodes[number], *topics, **options))
        await received(subscriber)
        return subscriber

    async def find(self, number: int = 0, **wanted: Any) -> ConnectedStreams:
        return await self.nodes[number].connections.find(Wanted(**wanted))


@asynccontextmanager
async def world(count: int = 3) -> AsyncIterator[World]:
    made = World([], Entries(wall), [])
    async with made.stack:
        for _ in range(count):
            await made.add()
        yield made


def clients(found: ConnectedStreams) -> list[str]:
    return sorted(stream.client for stream in found.connections)


# Listing


async def test_any_node_lists_the_streams_of_all() -> None:
    async with world() as here:
        for number in range(3):
            await here.open(number, client=f"c{number}", grant=ANN)
        for number in range(3):
            found = await here.find(number)
            assert clients(found) == ["c0", "c1", "c2"]
            assert (found.partial, found.more) == ([], False)
            assert {stream.node for stream in found.connections} == {board.name for board in here.linked}


async def test_what_is_told_of_a_stream() -> None:
    async with world(2) as here:
        await asyncio.sleep(5.5)
        subscriber = await here.open(1, "a/*", "b", client="tab-1", grant=ANN, address="10.0.0.1")
        (found,) = (await here.find()).connections
        assert found == ConnectedStream(
            client="tab-1",
            user="ann",
            topics=("a/*", "b"),
            topics_cut=False,
            address="10.0.0.1",
            since=int(BEGIN + 5),
            expires=int(BEGIN + 3_600),
            source="portal",
            node=here.board(1).name,
            position=str(subscriber.position),
            behind=False,
            queued_bytes=0,
        )


async def test_a_slow_stream_shows_what_waits_for_it_and_that_it_reads_from_the_log() -> None:
    async with world(1) as here:
        node = await here.add(queue_size=2)
        await here.open(1, client="slow")
        await node.publish(Draft.compose("x" * 1_000))
        await asyncio.sleep(MOMENT)
        (found,) = (await here.find()).connections
        assert not found.behind
        assert found.queued_bytes > 1_000
        for _ in range(3):
            await node.publish(Draft.compose("x"))
            await asyncio.sleep(MOMENT)
        (found,) = (await here.find()).connections
        assert found.behind
        assert found.queued_bytes == 0


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"user": "ann"}, ["a1", "a2"]),
        ({"client": "a1"}, ["a1"]),
        ({"user": "bob", "client": "a1"}, []),
        ({"topic": "news/1"}, ["a1", "b1", "b2"]),
        ({"topic": "news/1", "user": "ann"}, ["a1"]),
        ({"topic": "news/1", "client": "b2"}, ["b2"]),
        ({"topic": "other", "user": "ann"}, ["a2"]),
        ({"user": "nobody"}, []),
    ],
)
async def test_streams_are_found_by_user_client_and_topic(wanted: Any, found: list[str]) -> None:
    async with world(2) as here:
        await here.open(0, "news/*", client="a1", grant=ANN)
        await here.open(1, "other", client="a2", grant=ANN)
        await here.open(0, client="b1", grant=replace(BOB, subscribe=TopicFilter.parse(["news/**"])))
        await here.open(1, "news/1", client="b2", grant=BOB)
        assert clients(await here.find(**wanted)) == found


async def test_the_newest_come_first_and_more_than_the_limit_are_not_listed() -> None:
    async with world(2) as here:
        for number in range(6):
            await here.open(number % 2, client=f"c{number}")
            await asyncio.sleep(1)
        found = await here.find(limit=6)
        assert [stream.client for stream in found.connections] == ["c5", "c4", "c3", "c2", "c1", "c0"]
        assert not found.more
        found = await here.find(limit=5)
        assert (len(found.connections), found.more) == (5, True)
        assert (await here.find(limit=1)).more


async def test_an_answer_that_is_too_long_for_one_message_comes_whole() -> None:
    async with world(2) as here:
        topics = ["x" * 2_000 + str(number) for number in range(10)]
        for number in range(100):
            await here.open(1, *topics, client=f"c{number}")
        found = await here.find(limit=1_000)
        assert (len(found.connections), found.partial) == (100, [])
        assert {(len(stream.topics), stream.topics_cut) for stream in found.connections} == {(2, True)}


async def test_a_node_that_does_not_answer_is_named_after_a_second() -> None:
    async with world(2) as here:
        dead = Board(here.entries, here.linked)
        await here.open(1, client="c1")
        begun = wall()
        found = await here.find()
        assert (clients(found), found.partial) == (["c1"], [dead.name])
        assert wall() - begun == pytest.approx(WINDOW, abs=0.1)
        assert not here.nodes[0].connections.asking._open


async def test_a_node_whose_answer_lacks_a_part_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(2) as here:
        for number in range(100):
            await here.open(1, "x" * 2_000, client=f"c{number}")
        board, sent = here.board(1), list[bytes]()
        send = Board.send

        async def lossy(message: bytes) -> None:
            sent.append(message)
            if len(sent) != 2:
                await send(board, message)

        monkeypatch.setattr(board, "send", lossy)
        found = await here.find()
        assert len(sent) > 2
        assert 0 < len(found.connections) < 100
        assert found.partial == [board.name]


async def test_a_node_that_cannot_reach_its_board_lists_its_own() -> None:
    async with world(2) as here:
        await here.open(0, client="c0")
        here.board(0).is_down = True
        found = await here.find()
        assert (clients(found), found.partial) == (["c0"], [here.board(1).name])


async def test_what_no_node_would_say_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    async with world(2) as here:
        await here.open(0, client="c0")
        tell = here.nodes[1]._exchange.send
        bad: list[Any] = [{"limit": "x"}, {"limit": 0}, {"limit": 1_001}, {"topic": "a/*"}, {"client": "a b"}]
        for about in (None, [], *bad):
            for subject in ("streams", "kick"):
                await tell("ask", {"id": "1", "node": "x", "subject": subject, "about": about})
        bad_fields: list[dict[str, Any]] = [{}, {"id": [], "node": 1}, {"id": "1", "subject": []}]
        for fields in bad_fields:
            await tell("ask", fields)
            await tell("answer", fields)
        await tell("block", {"block": {"who": "lease", "name": "x", "made": 1, "until": 1e308, "v": 1}})
        for items in (None, 1, [1], [{"client": "x"}]):
            asked = asyncio.create_task(here.find())
            await asyncio.sleep(0)
            await asyncio.sleep(MOMENT / 2)
            for identity in here.nodes[0].connections.asking._open:
                await tell("answer", {"id": identity, "node": "x", "parts": 1, "items": items})
            assert clients(await asked) == ["c0"]
        assert clients(await here.find()) == ["c0"]
        assert not here.nodes[0].connections.blocks
        assert "x" * 2 not in caplog.text


async def test_questions_that_wait_are_bounded() -> None:
    async with world(1) as here:
        asking = here.nodes[0].connections.asking
        for _ in range(WAITING_MAX + 10):
            asking._on_question({"subject": "streams", "id": "1", "about": {}})
        assert asking._asked.qsize() == WAITING_MAX
        await asyncio.sleep(MOMENT)
        assert asking._asked.empty()


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        ({"limit": 0}, InvalidParameter),
        ({"limit": LIMIT_MAX + 1}, InvalidParameter),
        ({"user": "a b"}, InvalidClient),
        ({"client": "a@b"}, InvalidClient),
        ({"topic": "a/*"}, InvalidTopic),
    ],
)
async def test_what_cannot_be_asked_for(wanted: Any, error: type[Exception]) -> None:
    async with world(1) as here:
        with pytest.raises(error):
            await here.find(**wanted)


async def test_many_streams_are_listed_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LIMIT_MAX", 10_000)
    async with world(1) as here:
        for number in range(1_000):
            await here.open(0, client=f"c{number}")
        found, steps = list[ConnectedStream](), 0
        for _ in here.nodes[0].connections._list(Wanted(limit=5_000), found):
            steps += 1
        assert len(found) == 1_000
        assert steps >= 1_000 * END // (SLICE * OFFER) > 3
        assert connections.LOOKED_AT * END <= SLICE * OFFER < SLICE * END


# Kicks


@pytest.mark.parametrize(("who", "name"), [("user", "ann"), ("client", "tab")])
async def test_a_kick_ends_the_streams_of_a_name_on_every_node_at_once(who: Any, name: str) -> None:
    async with world() as here:
        kicked = [await here.open(number, client="tab", grant=ANN) for number in range(3)]
        others = [await here.open(number, client="other", grant=BOB) for number in range(3)]
        begun = wall()
        done = await here.nodes[0].connections.kick(who, name)
        assert (done.closed, done.nodes, done.partial) == (3, 2, [])
        assert wall() - begun < 0.1
        for subscriber in kicked:
            (bye,) = await received(subscriber)
            assert bye.type == "bye"
            assert data_of(bye)["reason"] == "kicked"
            assert 2_000 <= data_of(bye)["retry"] <= 5_000
            assert subscriber.closing is CloseReason.KICKED
        assert not any(subscriber.is_over for subscriber in others)
        assert [node.totals.closed for node in here.nodes] == [{}, {}, {}], "counted when they are left"
        back = await here.open(1, client="tab", grant=ANN)
        await asyncio.sleep(3 * INTERVAL)
        assert not back.is_over, "who came back is not kicked once more"


async def test_a_kick_of_nobody_is_an_error_unless_a_node_may_have_not_answered() -> None:
    async with world(2) as here:
        with pytest.raises(NoSuchClient):
            await here.nodes[0].connections.kick("client", "nobody")
        blocked = await here.nodes[0].connections.kick("client", "nobody", 5.0)
        assert blocked.closed == 0
        dead = Board(here.entries, here.linked)
        done = await here.nodes[0].connections.kick("user", "nobody")
        assert (done.closed, done.nodes, done.partial) == (0, 2, [dead.name])


async def test_a_kick_counts_whatever_the_clock_of_its_node_says() -> None:
    async with world(1) as here:
        behind = await here.add(wall=lambda: wall() - 300)
        for node in (here.nodes[0], behind, here.nodes[0]):
            subscriber = await here.open(0, client="tab", grant=ANN)
            assert (await node.connections.kick("user", "ann")).closed == 1
            assert subscriber.closing is CloseReason.KICKED


async def test_what_waited_for_a_kicked_stream_is_dropped() -> None:
    async with world(1) as here:
        subscriber = await here.open(0, client="tab")
        await here.nodes[0].publish(Draft.compose("for nobody"))
        await asyncio.sleep(MOMENT)
        await here.nodes[0].connections.kick("client", "tab")
        assert [event.type for event in await received(subscriber)] == ["bye"]


async def test_a_block_keeps_out_on_every_node_until_it_ends() -> None:
    async with world() as here:
        subscriber = await here.open(1, client="tab", grant=ANN)
        await here.nodes[0].connections.kick("user", "ann", 5.0)
        (bye,) = await received(subscriber)
        assert 5_200 <= data_of(bye)["retry"] <= 6_000
        for number in range(3):
            with pytest.raises(Blocked) as refused:
                await here.open(number, client="another", grant=ANN)
            assert refused.value.wait == pytest.approx(5.0, abs=0.1)
        await here.open(0, client="tab", grant=BOB)
        await asyncio.sleep(5.0)
        for number in range(3):
            await here.open(number, client="tab", grant=ANN)
        await asyncio.sleep(3 * INTERVAL)
        assert len((await here.find(user="ann")).connections) == 3
        assert [node.gauges()["blocks"] for node in here.nodes] == [0, 0, 0]


async def test_a_client_is_kept_out_by_its_name_and_by_its_ticket() -> None:
    grant = replace(ANN, user=None, lease=Lease("l" * 43, 1))
    async with world() as here:
        await here.open(2, client="tab", grant=grant)
        await here.nodes[0].connections.kick("client", "tab", 60.0)
        await asyncio.sleep(MOMENT)
        for number in range(3):
            for client, asked in (("tab", OPEN), ("another", grant)):
                with pytest.raises(Blocked):
                    await here.open(number, client=client, grant=asked)
            await here.open(number, client="another", grant=replace(grant, lease=Lease("m" * 43, 1)))
        late = await here.add()
        await here.open(3, client="first", grant=BOB)
        await asyncio.sleep(MOMENT)
        with pytest.raises(Blocked):
            await here.open(3, client="another", grant=grant)
        assert len(late.connections.blocks) == 2


async def test_a_node_that_missed_the_word_reads_of_it() -> None:
    async with world(2) as here:
        subscribers = [await here.open(1, client="tab", grant=ANN) for _ in range(2)]
        here.board(1).become_deaf()
        done = await here.nodes[0].connections.kick("user", "ann")
        assert done.partial == [here.board(1).name]
        await asyncio.sleep(INTERVAL + MOMENT)
        assert all(subscriber.closing is CloseReason.KICKED for subscriber in subscribers)


async def test_streams_that_ended_before_their_node_was_told_are_counted() -> None:
    async with world(2) as here:
        await here.open(1, client="tab", grant=ANN)
        await asyncio.sleep(INTERVAL / 2)
        block = Block("user", "ann", wall(), wall())
        await here.nodes[0].connections.blocks.put(block)
        await asyncio.sleep(INTERVAL - MOMENT)
        assert not (await here.find(1, user="ann")).connections
        answers = await here.nodes[0].connections.asking.ask("kick", block, int)
        assert answers.items == [1]


async def test_streams_that_a_node_ends_for_both_the_board_and_the_kick_are_counted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world(1) as here:
        for _ in range(3):
            await here.open(0, client="tab", grant=ANN)
        board, is_read = here.board(0), asyncio.Event()
        claim, read = board.claim, board.list

        async def claim_slowly(*entry: Any) -> bytes | None:
            stands = await claim(*entry)
            await is_read.wait()
            return stands

        async def read_and_tell(kind: str) -> dict[str, bytes]:
            entries = dict(await read(kind))
            if entries:
                is_read.set()
            return entries

        monkeypatch.setattr(board, "claim", claim_slowly)
        monkeypatch.setattr(board, "list", read_and_tell)
        assert (await here.nodes[0].connections.kick("user", "ann")).closed == 3


async def test_a_node_that_came_later_reads_of_a_block() -> None:
    async with world(1) as here:
        await here.nodes[0].connections.kick("user", "ann", 3_600.0)
        await here.add()
        first = await here.open(1, client="tab", grant=ANN)
        await asyncio.sleep(MOMENT)
        assert first.closing is CloseReason.KICKED, "it was let in before the node knew"
        with pytest.raises(Blocked):
            await here.open(1, client="tab", grant=ANN)


async def test_no_kick_makes_a_block_shorter() -> None:
    async with world(2) as here:
        await here.open(0, client="tab", grant=ANN)
        await here.nodes[0].connections.kick("user", "ann", 100.0)
        await here.nodes[1].connections.kick("user", "ann", 10.0)
        with pytest.raises(NoSuchClient):
            await here.nodes[1].connections.kick("user", "ann")
        await here.add()
        for number in range(2):
            with pytest.raises(Blocked) as refused:
                await here.open(number, grant=ANN)
            assert refused.value.wait == pytest.approx(100.0, abs=1.0)
        await here.nodes[1].connections.kick("user", "ann", 1_000.0)
        (entry,) = (await here.board(0).list("block")).values()
        assert Block.decode(entry).until == pytest.approx(wall() + 1_000.0, abs=1.0)


async def test_without_the_board_nothing_is_done_and_it_is_to_be_repeated() -> None:
    async with world(2) as here:
        subscriber = await here.open(0, client="tab")
        here.board(0).is_down = True
        with pytest.raises(BrokerUnavailable):
            await here.nodes[0].connections.kick("client", "tab", 5.0)
        assert not subscriber.is_over
        here.board(0).is_down = False
        assert (await here.nodes[0].connections.kick("client", "tab", 5.0)).closed == 1


async def test_a_board_that_fails_is_counted_and_read_again() -> None:
    async with world(2) as here:
        await here.open(1, client="tab", grant=ANN)
        await asyncio.sleep(MOMENT)
        here.board(1).is_down = True
        await asyncio.sleep(2 * INTERVAL)
        assert here.nodes[1].gauges()["board_failures"] >= 2
        await here.nodes[0].connections.blocks.put(Block("user", "ann", wall(), wall() + 60))
        here.board(1).is_down = False
        await asyncio.sleep(INTERVAL)
        assert not (await here.find(1, user="ann")).connections


async def test_an_open_node_that_nobody_was_kicked_from_never_uses_the_board() -> None:
    async with world(2) as here:
        here.board(0).is_down = True
        await here.open(0, client="tab")
        await asyncio.sleep(10 * INTERVAL)
        assert here.nodes[0].gauges()["board_failures"] == 0
        assert here.nodes[0].gauges()["blocks"] == 0


@pytest.mark.parametrize("lasts", [-1.0, LASTS_MAX + 1, float("nan"), float("inf")])
async def test_a_block_has_a_length(lasts: float) -> None:
    async with world(1) as here:
        with pytest.raises(InvalidParameter):
            await here.nodes[0].connections.kick("user", "ann", lasts)


@pytest.mark.parametrize(("who", "name"), [("user", "a b"), ("user", ""), ("client", "a@b"), ("client", "é")])
async def test_a_name_that_nobody_can_have_is_refused(who: Any, name: str) -> None:
    async with world(1) as here:
        with pytest.raises(InvalidClient):
            await here.nodes[0].connections.kick(who, name)


# Blocks alone


async def test_entries_that_are_no_blocks_are_ignored_and_counted() -> None:
    board = MemoryBoard(wall)
    blocks = Blocks(board)
    bad = (
        b"", b"\xff", b"{}", b"[]", b"1", b"[" * 10_000,
        b'{"who":"user","name":"a b","made":1,"until":2}',
        b'{"who":"group","name":"a","made":1,"until":2}',
        b'{"who":"user","name":"a","made":3,"until":2}',
        b'{"who":"user","name":"a","made":1,"until":1e308}',
        b'{"who":"user","name":"a","made":1,"until":2,"v":2}',
        b'{"who":"user","name":"a","made":"1","until":2}',
    )  # fmt: skip
    for number, value in enumerate(bad):
        await board.put(f"block.{number}", value, 100.0)
    assert list(await blocks.read()) == []
    assert blocks.bad_records == len(bad)
    await blocks.read()
    assert blocks.bad_records == len(bad), "each is looked at once"


async def test_an_entry_lasts_long_enough_for_every_node_to_read_it_and_as_long_as_its_block() -> None:
    assert KEPT >= 3 * INTERVAL
    now = 1_000.0
    board = MemoryBoard(lambda: now)
    blocks = Blocks(board, lambda: now)
    await blocks.put(Block("user", "ann", now, now))
    await blocks.put(Block("user", "bob", now, now + 3_600))
    assert len(await board.list("block")) == 2
    now += KEPT + 1
    assert len(await board.list("block")) == 1
    now += 3_600
    assert len(await board.list("block")) == 0


async def test_two_nodes_that_write_one_block_at_once_write_the_longer() -> None:
    board = MemoryBoard(lambda: 1_000.0)
    blocks = [Blocks(board, lambda: 1_000.0) for _ in range(5)]
    async with asyncio.TaskGroup() as tasks:
        for number, one in enumerate(blocks):
            tasks.create_task(one.put(Block("user", "ann", 1_000.0, 1_000.0 + number * 100)))
    (found,) = await blocks[0].read()
    assert found.until == 1_400.0


async def test_who_came_back_before_its_node_read_of_the_kick_stays() -> None:
    async with world(2) as here:
        old = await here.open(1, client="tab", grant=ANN)
        here.board(1).become_deaf()
        await here.nodes[0].connections.kick("user", "ann")
        await asyncio.sleep(3)
        new = await here.open(1, client="tab", grant=ANN)
        await asyncio.sleep(INTERVAL)
        assert (old.closing, new.closing) == (CloseReason.KICKED, None)
