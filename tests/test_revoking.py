"""Revoking on several nodes of one log: no publication after a revocation's acknowledgement reaches a revoked stream.

On virtual time, over a log in memory. Each interleaving of a revocation with what a stream may be doing has a test.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from sse_app.batch import Batch
from sse_app.brokers.memory import MemoryBroker
from sse_app.errors import BrokerUnavailable, InvalidToken, LogFull
from sse_app.events import Event, EventDecoder
from sse_app.grants import OPEN, Grant
from sse_app.joining import StreamRequest
from sse_app.node import Node
from sse_app.publication import Draft, Position
from sse_app.revocations import KIND, NOBODY, RECORD, Revocation, Revocations
from sse_app.subscriber import CloseReason, Subscriber
from sse_app.topics import TopicFilter
from tests.support.nodes import data_of, node_on, replay, subscribed
from tests.support.peers import MOMENT, Socket, TroubledBroker, datas, received, turns
from tests.support.shared_log import SharedLog

pytestmark = pytest.mark.virtual_time

BEGIN = 1_700_000_000.0  # Unix time
GRANT = Grant(publish=TopicFilter(), subscribe=TopicFilter(), user="42", token="t1", session="s1", issued=BEGIN - 100)
OTHER = replace(GRANT, user="43", token="t2", session="s2")

both_ways = pytest.mark.parametrize("room", [None, 1, 1_000], ids=["read", "full", "written"])


def wall() -> float:
    return BEGIN + asyncio.get_running_loop().time()


def revocation(*, lasts: float = 3_600, **what: Any) -> Revocation:
    return Revocation.of(lasts=lasts, now=wall(), **what)


def node_of(log: SharedLog | MemoryBroker, **settings: Any) -> Node:
    return node_on(log, wall=wall, **settings)


@asynccontextmanager
async def world(count: int = 2, log: MemoryBroker | None = None, **settings: Any) -> AsyncIterator[list[Node]]:
    """So many nodes on one log; each has a SharedLog as its broker."""
    log = log or MemoryBroker()
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(node_of(SharedLog(log), **settings)) for _ in range(count)]


def way(node: Node) -> SharedLog:
    assert isinstance(node.broker, SharedLog)
    return node.broker


def when_written(node: Node, act: Callable[[], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do this whenever an entry stands on the board, before the node that wrote it is told."""
    board = way(node).log.board
    put = board.put

    async def put_and_act(*entry: Any, **options: Any) -> None:
        await put(*entry, **options)
        await act()

    monkeypatch.setattr(board, "put", put_and_act)


async def publish(node: Node, *texts: str, **options: Any) -> None:
    for text in texts:
        await node.publish(Draft.compose(text, **options))


@dataclass
class Client:
    """The other end of a stream, which it reads itself, or whose socket is full after ``room`` writes."""

    subscriber: Subscriber
    room: int | None
    decoder: EventDecoder = field(default_factory=EventDecoder)

    def __post_init__(self) -> None:
        self.socket = None if self.room is None else Socket(self.room)
        if self.socket is not None:
            self.subscriber.attach(self.socket)

    async def events(self) -> list[Event]:
        """What it can read now, to the end of the stream if that has ended."""
        if self.socket is None:
            return await received(self.subscriber)
        found = list[Event]()
        for _ in range(1_000):
            await asyncio.sleep(MOMENT)
            found += (piece := self.decoder.feed(self.socket.take()))
            if not self.socket.room and not self.socket.ended:
                self.socket.room = self.room or 1
                self.subscriber.resume()
            elif not piece:
                return found
        raise AssertionError("the stream never comes to rest")


@asynccontextmanager
async def connected(
    node: Node, *topics: str, room: int | None = None, grant: Grant = GRANT, **options: Any
) -> AsyncIterator[Client]:
    async with subscribed(node, *topics, grant=grant, **options) as subscriber:
        yield Client(subscriber, room)


def kinds(events: list[Event]) -> list[str]:
    return [event.data if event.type == "message" else event.type for event in events]


# What it does


@both_ways
@pytest.mark.parametrize("what", [{"token": "t1"}, {"session": "s1"}, {"user": "42"}])
async def test_a_revocation_ends_the_streams_that_it_names_on_every_node(what: Any, room: int | None) -> None:
    async with world() as (here, there), AsyncExitStack() as stack:
        mine = [await stack.enter_async_context(connected(node, room=room)) for node in (here, there)]
        other = await stack.enter_async_context(connected(there, room=room, grant=OTHER))
        anyone = await stack.enter_async_context(connected(there, room=room, grant=OPEN))
        for client in (*mine, other, anyone):
            assert kinds(await client.events()) == ["welcome"]
        position, closed = await here.revoke(revocation(**what))
        assert (position.offset, closed) == (1, 1)
        await publish(there, "after")
        for client in mine:
            (bye,) = await client.events()
            assert (bye.type, data_of(bye)["reason"]) == ("bye", "revoked")
            assert 2_000 <= data_of(bye)["retry"] <= 5_000
            assert client.subscriber.closing is CloseReason.REVOKED
        assert kinds(await other.events()) == kinds(await anyone.events()) == ["after"]
    assert here.totals.closed["revoked"] == there.totals.closed["revoked"] == 1


async def test_streams_that_a_revocation_ends_are_counted_though_its_node_reads_the_board_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world(1) as (node,), connected(node) as client:
        await client.events()
        when_written(node, node.revoking.read_again, monkeypatch)
        assert (await node.revoke(revocation(user="42"))).closed == 1
        assert kinds(await client.events()) == ["bye"]


async def test_a_grant_that_was_taken_back_opens_no_stream_and_a_new_login_does() -> None:
    async with world() as nodes:
        await nodes[0].revoke(revocation(user="42"))
        await asyncio.sleep(MOMENT)
        for node in nodes:
            with pytest.raises(InvalidToken):
                await node.join(StreamRequest.parse(grant=GRANT))
            with pytest.raises(InvalidToken):
                await node.check(GRANT)
            assert node.totals.subscribers == 0
            async with connected(node, grant=replace(GRANT, issued=wall())) as client:
                assert kinds(await client.events()) == ["welcome"]


async def test_a_node_that_starts_later_knows_what_was_taken_back() -> None:
    log = MemoryBroker()
    async with world(1, log) as (node,):
        await node.revoke(revocation(token="t1"))
    async with world(1, log) as (node,):
        with pytest.raises(InvalidToken):
            await node.join(StreamRequest.parse(grant=GRANT))
        assert node.gauges()["revocations"] == 1


async def test_a_revocation_ends_and_its_grant_counts_again() -> None:
    async with world(1) as (node,):
        await node.revoke(revocation(token="t1", lasts=60))
        await asyncio.sleep(59)
        with pytest.raises(InvalidToken):
            await node.check(GRANT)
        await asyncio.sleep(2)
        assert await node.check(GRANT) is GRANT
        await asyncio.sleep(1_300)
        assert node.gauges()["revocations"] == 0


async def test_topics_that_are_taken_back_end_only_the_streams_that_had_them_and_those_come_back() -> None:
    async with world() as (here, there), connected(there, "a/*", "b") as client, connected(there, "b") as untouched:
        await client.events(), await untouched.events()
        await here.revoke(revocation(user="42", topics=["a/1"]))
        await publish(here, "denied", topic="a/1")
        await publish(here, "granted", topic="a/2")
        (bye,) = await client.events()
        assert data_of(bye)["reason"] == "changed"
        assert 200 <= data_of(bye)["retry"] <= 1_000
        async with connected(there, "a/*", "b", after=client.subscriber.position) as again:
            assert datas(await again.events()) == ["granted"]
        assert untouched.subscriber.closing is None


async def test_streams_can_be_ended_by_what_their_grants_are() -> None:
    """As when a key was removed from the file of keys."""
    async with world(1) as (node,), connected(node) as client, connected(node, grant=OTHER) as other:
        await client.events(), await other.events()
        assert await node.end_all(lambda grant: grant.user == "42", CloseReason.REVOKED) == 1
        assert await node.end_all(lambda grant: grant.user == "42", CloseReason.REVOKED) == 0
        assert kinds(await client.events()) == ["bye"]
        assert other.subscriber.closing is None


async def test_of_a_user_only_the_streams_of_that_user_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = list[str | None]()
    find = Revocations.find

    def counted(self: Revocations, grant: Grant) -> Any:
        looked_at.append(grant.user)
        return find(self, grant)

    async with world(1) as (node,), AsyncExitStack() as stack:
        for number in range(100):
            grant = replace(GRANT, user=str(number))
            await stack.enter_async_context(subscribed(node, grant=grant))
        monkeypatch.setattr(Revocations, "find", counted)
        assert (await node.revoke(revocation(user="42")))[1] == 1
        await asyncio.sleep(MOMENT)
        assert looked_at == ["42"]


# The ordered promise


@both_ways
async def test_a_node_whose_tail_is_late_sends_nothing_behind_the_record(room: int | None) -> None:
    async with world() as (here, there), connected(there, room=room) as client:
        await client.events()
        way(there).on_tail.hold()
        await publish(here, "before")
        await here.revoke(revocation(user="42"))
        await publish(here, *map(str, range(10)))
        assert await client.events() == []
        way(there).on_tail.release()
        found = kinds(await client.events())
        assert found[-1] == "bye"
        assert set(found[:-1]) <= {"before"}


@both_ways
@pytest.mark.parametrize("start", [0, 4, 7, 9], ids=["the beginning", "before it", "the record", "a forged later id"])
async def test_a_resume_on_a_node_whose_tail_is_late_gets_nothing_behind_the_record(
    start: int, room: int | None
) -> None:
    """The log holds publications 1 to 6, the record, and 8 to 12; the node has met 1 to 3 only."""
    async with world() as (here, there):
        await publish(here, *map(str, range(1, 4)))
        await asyncio.sleep(MOMENT)
        assert await there.check(GRANT) is GRANT  # it has looked at the board, long before
        way(there).on_tail.hold()
        await publish(here, *map(str, range(4, 7)))
        position, _ = await here.revoke(revocation(user="42"))
        await publish(here, *map(str, range(8, 13)))
        async with connected(there, room=room, after=position._replace(offset=start)) as client:
            welcome, *rest = await client.events()
            assert kinds(rest) == [str(number) for number in range(start + 1, 4)]
            assert data_of(welcome)["last"] is None  # that is publication 12
            way(there).on_tail.release()
            *before, bye = kinds(await client.events())
            assert bye == "bye"
            assert set(before) <= {"4", "5", "6"}


@both_ways
async def test_a_page_that_is_being_read_when_the_record_comes_is_not_sent(room: int | None) -> None:
    async with world() as (here, there):
        await publish(here, *"abc")
        await asyncio.sleep(MOMENT)
        way(there).on_pages.hold()
        async with connected(there, room=room, after=Position("other", 0)) as client:
            reading = asyncio.create_task(client.events())
            await turns(10)
            await here.revoke(revocation(user="42"))
            await publish(here, *"def")
            await turns(50)
            way(there).on_pages.release()
            found = kinds(await reading) + kinds(await client.events())
            assert found == ["welcome", "gap", "bye"]


@pytest.mark.parametrize("room", [None, 1], ids=["read", "full"])
async def test_a_stream_that_is_behind_gets_nothing_of_what_it_lacks(room: int | None) -> None:
    async with world(queue_size=2) as (here, there), connected(there, room=room) as client:
        for number in range(20):  # nobody reads meanwhile
            await publish(here, str(number))
            await turns(10)
        assert there.totals.overflows
        await here.revoke(revocation(user="42"))
        await publish(here, "after")
        await asyncio.sleep(MOMENT)
        found = kinds(await client.events())
        assert found[-1] == "bye"
        assert set(found[:-1]) <= {"welcome"}


@both_ways
async def test_a_record_that_the_tail_left_out_is_found_on_the_board_before_anything_is_read(room: int | None) -> None:
    log = TroubledBroker()
    async with world(2, log) as (here, there), connected(there, room=room) as client:
        await client.events()
        log.deaf = True  # nobody's tail hears of it, also not of the record
        await here.revoke(revocation(user="42"))
        await publish(here, "unheard")
        log.deaf = False
        await publish(here, "heard")
        assert kinds(await client.events()) == ["bye"]


@both_ways
async def test_nothing_is_read_behind_a_break_while_the_board_is_away(room: int | None) -> None:
    log = TroubledBroker()
    async with world(2, log) as (here, there), connected(there, room=room) as client:
        await client.events()
        log.deaf = True
        await here.revoke(revocation(user="42"))
        log.deaf = False
        way(there).on_board.down = True
        await publish(here, "behind the break")
        for _ in range(5):
            await asyncio.sleep(5)
            assert kinds(await client.events()) == []
        way(there).on_board.down = False
        await asyncio.sleep(3)
        assert kinds(await client.events()) == ["bye"]


@both_ways
async def test_a_record_that_went_with_its_log_is_found_on_the_board(room: int | None) -> None:
    log = TroubledBroker()
    async with world(2, log) as (here, there), connected(there, room=room) as client:
        await publish(here, *"xyz")
        assert datas(await client.events()) == list("xyz")
        way(there).on_tail.hold()
        await publish(here, "a", "b")
        await here.revoke(revocation(user="42"))
        log.begin_anew()
        await publish(here, *"cdefgh")
        assert await client.events() == []
        async with connected(there, room=room, after=Position("other", 0), grant=OTHER) as other:
            assert kinds(await other.events()) == ["welcome", "gap"]  # of the new log nothing, until it is met
            way(there).on_tail.release()
            await asyncio.sleep(1)
            *before, bye = kinds(await client.events())
            assert bye == "bye"
            assert set(before) <= {"a", "b"}
            assert datas(await other.events()) == list("cdefgh")


async def test_an_entry_without_a_record_is_found_in_time() -> None:
    """The node that was asked has died in between."""
    async with world(2) as (here, there), connected(there) as client:
        await client.events()
        lost = revocation(user="42")
        await way(here).board.put(lost.entry, lost.encode(), 60)
        await asyncio.sleep(11)
        assert kinds(await client.events())[-1] == "bye"


async def test_a_stream_that_joins_while_others_are_ended_is_compared_too() -> None:
    """Many streams are ended in steps; between two of them a client may come with the same grant."""
    async with world(1) as (node,), AsyncExitStack() as stack:
        for _ in range(500):
            await stack.enter_async_context(subscribed(node, grant=GRANT))
        revoking = asyncio.create_task(node.revoke(revocation(token="t1")))
        refused = 0
        while not revoking.done():
            try:
                await stack.enter_async_context(subscribed(node, grant=GRANT))
            except InvalidToken:
                refused += 1
            await turns(1)
        assert refused
        await asyncio.sleep(MOMENT)
        assert all(stream.is_over for stream in node._delivery)


async def test_a_first_check_during_a_break_misses_nothing() -> None:
    """The board was read before the entry was there, and the record is left out by the tail."""
    log = TroubledBroker()
    async with world(2, log) as (here, there), AsyncExitStack() as stack:
        start = await log.top()
        way(there).on_board.hold()
        joining = asyncio.create_task(stack.enter_async_context(connected(there, after=start)))
        await turns(5)
        log.deaf = True
        await here.revoke(revocation(user="42"))
        log.deaf = False
        await publish(here, "behind the break")
        await turns(20)
        way(there).on_board.release()
        with suppress(InvalidToken):  # either it is refused, or its stream ends before it has shown anything
            assert kinds(await (await joining).events()) in (["bye"], ["welcome", "bye"])


async def test_what_comes_while_the_board_is_read_after_a_break_is_not_read_with_it() -> None:
    """An entry that is not in the board's answer yet may have its record, and what follows, in the log by then."""
    log = TroubledBroker()
    async with world(2, log) as (here, there), connected(there) as client:
        await client.events()
        log.deaf = True
        await publish(here, "left out")
        log.deaf = False
        way(there).on_board.hold()
        await publish(here, "heard")
        await turns(20)
        log.deaf = True
        await here.revoke(revocation(user="42"))
        await publish(here, "behind the record")
        log.deaf = False
        way(there).on_board.release()
        assert kinds(await client.events()) == ["left out", "heard"]
        await publish(here, "another break")
        assert kinds(await client.events()) == ["bye"]


async def test_nothing_may_be_read_behind_a_record_before_its_streams_have_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("SLICE", "OFFER"):
        monkeypatch.setattr(f"sse_app.revoking.{name}", 1)  # the loop turns after each few streams
    async with world(2) as (here, there), AsyncExitStack() as stack:
        for _ in range(500):
            await stack.enter_async_context(subscribed(there, grant=GRANT))
        reached, end = set[int](), there.revoking._end

        def noted(subscriber: Subscriber, reason: CloseReason) -> None:
            reached.add(there._delivery.reached.offset)
            end(subscriber, reason)

        monkeypatch.setattr(there.revoking, "_end", noted)
        await publish(here, "before")
        await asyncio.sleep(MOMENT)
        position, _ = await here.revoke(revocation(user="42"))
        await publish(here, "after")  # in one batch with the record
        await asyncio.sleep(MOMENT)
        assert reached == {position.offset - 1}
        assert all(stream.is_over for stream in there._delivery)


class Prompt(Socket):
    """A connection that takes everything, and does something once it was written to."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__()
        self._act = act

    def write(self, batch: Batch) -> bool:
        more = super().write(batch)
        if b"wanted" in batch.data:
            self._act()
        return more


async def test_a_stream_that_is_passed_over_reads_what_is_being_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is behind when its turn comes, and asks where the log ends while others still get the batch."""
    monkeypatch.setattr("sse_app.delivery.SLICE", 1)  # the loop turns after each subscriber
    async with world(1, queue_size=1) as (node,), AsyncExitStack() as stack:
        slow = Client(await stack.enter_async_context(subscribed(node)), 1)
        socket = slow.socket
        assert socket is not None

        def go_on() -> None:
            socket.room = 1_000
            slow.subscriber.resume()

        for text in "abc":  # its socket is full, its queue runs over
            await publish(node, text)
            await asyncio.sleep(MOMENT)
        assert node.totals.lagging == 1
        for _ in range(50):
            (await stack.enter_async_context(subscribed(node))).attach(Prompt(go_on))
        await publish(node, "wanted")
        await asyncio.sleep(MOMENT)
        await publish(node, "d")
        assert datas(await slow.events()) == ["a", "b", "c", "wanted", "d"]


# Faults


async def test_a_revocation_that_the_board_did_not_take_is_refused_and_did_nothing() -> None:
    async with world() as (here, there), connected(here) as client, connected(there) as other:
        await client.events(), await other.events()
        way(here).on_board.down = True
        with pytest.raises(BrokerUnavailable):
            await here.revoke(revocation(user="42"))
        await publish(here, "a")
        assert kinds(await client.events()) == kinds(await other.events()) == ["a"]
        way(here).on_board.down = False
        await here.revoke(revocation(user="42"))
        assert kinds(await client.events()) == kinds(await other.events()) == ["bye"]


async def test_a_revocation_that_the_board_took_without_saying_so_is_found_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world(1) as (node,), connected(node) as client:
        await client.events()

        async def cut_off() -> None:
            way(node).on_board.down = True

        when_written(node, cut_off, monkeypatch)
        with pytest.raises(BrokerUnavailable):
            await node.revoke(revocation(user="42"))
        way(node).on_board.down = False
        await node.revoking.read_again()
        assert kinds(await client.events()) == ["bye"]


async def test_a_revocation_that_the_log_did_not_take_is_refused_and_found_on_the_board() -> None:
    async with world() as (here, there), connected(here) as client, connected(there) as other:
        await client.events(), await other.events()
        way(here).on_publishing.down = True
        with pytest.raises(BrokerUnavailable):
            await here.revoke(revocation(user="42"))
        assert kinds(await client.events()) == ["bye"]
        way(here).on_publishing.down = False
        await here.revoke(revocation(user="42"))
        assert kinds(await other.events()) == ["bye"]


async def test_who_cannot_look_at_the_board_is_not_let_in() -> None:
    async with world(1) as (node,):
        way(node).on_board.down = True
        with pytest.raises(BrokerUnavailable):
            await node.join(StreamRequest.parse(grant=GRANT))
        way(node).on_board.down = False
        async with connected(node) as client:
            assert kinds(await client.events()) == ["welcome"]


async def test_a_board_that_is_away_later_refuses_nobody() -> None:
    async with world(1) as (node,), connected(node):
        way(node).on_board.down = True
        await asyncio.sleep(60)
        async with connected(node) as client:
            assert kinds(await client.events()) == ["welcome"]
        assert node.revoking.board_failures > 1


async def test_a_node_keeps_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sse_app.revocations.STANDING_MAX", 1)
    async with world(1) as (node,):
        await node.revoke(revocation(user="42"))
        with pytest.raises(LogFull):
            await node.revoke(revocation(user="43"))


async def test_entries_that_a_later_one_covers_leave_the_board() -> None:
    async with world(1) as (node,):
        for _ in range(5):
            await node.revoke(revocation(user="42"))
            await asyncio.sleep(1)
        assert len(await way(node).board.list(KIND)) == 1


class TwoBlocks(Draft):
    def encode(self) -> bytes:
        return b"data: two\n\ndata: blocks\n\n"


async def test_junk_is_ignored_and_counted() -> None:
    async with world(1) as (node,), connected(node) as client:
        await client.events()
        await way(node).publish(Draft(Event("junk", RECORD), to=NOBODY))
        await way(node).publish(TwoBlocks(Event("x", RECORD), to=NOBODY))
        await way(node).board.put(f"{KIND}.junk", b"junk", 100)
        await publish(node, "a")
        await asyncio.sleep(31)
        assert datas(await client.events()) == ["a"]
        assert node.gauges()["bad_envelopes"] == 3


# What others see of it


async def test_a_record_is_shown_to_nobody() -> None:
    async with world(1) as (node,), connected(node, grant=OPEN) as live:
        await live.events()
        await publish(node, "a")
        await node.revoke(revocation(user="42"))
        await node.revoke(revocation(user="43", topics=["a"]))
        await publish(node, "b")
        await node.revoke(revocation(user="44"))
        assert kinds(await live.events()) == ["a", "b"]
        for events in (await replay(node, after=Position("other", 0)), await replay(node, last=10)):
            assert datas(events) == ["a", "b"]
            assert data_of(events[0])["last"]["id"].endswith("-4")
        stats: Any = await node.stats()
        assert [entry["event"] for entry in stats["recent"]] == ["message", "message"]
        assert stats["totals"]["published"] == 2


async def test_a_node_without_grants_that_can_be_taken_back_never_uses_the_board() -> None:
    async with world(1) as (node,), connected(node, grant=OPEN) as client:
        way(node).on_board.down = True
        await publish(node, "a")
        await asyncio.sleep(100)
        async with connected(node, grant=replace(OPEN, publish=None)) as reader:
            assert kinds(await reader.events()) == ["welcome"]
        assert datas(await client.events()) == ["a"]
        assert node.revoking.board_failures == 0


# At random


@pytest.mark.parametrize("seed", range(4))
async def test_no_publication_after_a_revocation_reaches_a_stream_that_it_names(seed: int) -> None:
    """Three nodes with late tails and slow pages, 1,000 publications and 20 revocations among them."""
    chance = random.Random(seed)
    users = [str(number) for number in range(12)]
    revoked_at = dict[str, int]()  # the newest number that was published before the acknowledgement

    async with world(3, queue_size=5) as nodes, AsyncExitStack() as stack:
        clients = list[tuple[str, Client]]()
        for number in range(1_000):  # published before this step
            if number % 10 == 0:
                user, room = chance.choice(users), chance.choice([None, 1, 2, 100])
                after = Position((await nodes[0].broker.top()).epoch, chance.randrange(number + 1))
                grant = replace(GRANT, user=user, issued=BEGIN - 100)
                try:
                    client = await stack.enter_async_context(
                        connected(chance.choice(nodes), room=room, grant=grant, after=chance.choice([None, after]))
                    )
                    clients.append((user, client))
                except InvalidToken:
                    assert user in revoked_at
            if number % 50 == 25:
                user = chance.choice(users)
                await chance.choice(nodes).revoke(revocation(user=user))
                revoked_at.setdefault(user, number)
            if number % 7 == 0:
                for switch in (way(chance.choice(nodes)).on_tail, way(chance.choice(nodes)).on_pages):
                    chance.choice([switch.hold, switch.release])()
            await publish(chance.choice(nodes), str(number + 1))
            await turns(chance.randrange(8))
        for node in nodes:
            way(node).on_tail.release()
            way(node).on_pages.release()
        seen = 0
        for user, client in clients:
            events = await client.events()
            numbers = [int(text) for text in datas(events)]
            seen += len(numbers)
            assert numbers == sorted(set(numbers))
            if user in revoked_at:
                assert max(numbers, default=0) <= revoked_at[user], "sent after its revocation"
                assert events[-1].type == "bye"
            else:
                assert not client.subscriber.is_over
                assert max(numbers, default=0) == 1_000
        assert len(revoked_at) > 5
        assert seen > 1_000
