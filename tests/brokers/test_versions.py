"""Logs that versions share: entries of newer ones between ours (told, never silence), and what older ones have left."""

import json
import shutil
import time
from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sse_app.brokers import Broker
from sse_app.brokers.formats import VERSION
from sse_app.brokers.nats import NatsBroker
from sse_app.brokers.redis import RedisBroker
from sse_app.brokers.sqlite import SQLiteBroker
from sse_app.brokers.sqlite.log import read_state
from sse_app.errors import KeyReused
from sse_app.events import Event
from sse_app.hub import Hub
from sse_app.publication import Audience, Draft, Position
from sse_app.topics import TopicFilter
from tests.brokers.test_brokers import EVERYTHING, KEPT, publish, replayed, replayed_by, take
from tests.support.peers import read_events
from tests.support.worlds import World

FIXTURES = Path(__file__).parent / "fixtures"
UNDERSTOOD: list[dict[str, Any]] = [{}, {"future": "may be ignored"}, {"crit": []}]
STRANGE: list[dict[str, Any]] = [
    {"crit": ["private"], "private": "not for you"},
    {"crit": ["json", "private"]},
    {"v": VERSION + 1},
    {"v": VERSION + 1, "crit": ["private"]},
]


@pytest.fixture(params=KEPT)
def world(request: pytest.FixtureRequest) -> World:
    world = request.getfixturevalue(f"{request.param}_world")
    assert isinstance(world, World)
    return world


async def append(broker: Broker, topic: str, **fields: Any) -> Position:
    """Append an entry as a newer version of this node might, with these fields beside those that we know."""
    if isinstance(broker, RedisBroker):
        entry = {"v": VERSION, "topics": [topic], "body": b"data: newer\n\n", **fields}
        _, command = broker._script("publish", f"{broker._keys}:-", "", msgspec.msgpack.encode(entry))
        answer = await broker._publishing.call(*command)
        return Position(answer[3].decode(), answer[4])
    if isinstance(broker, NatsBroker):
        entry = {"v": VERSION, "topics": [topic], "data": "newer", **fields}
        assert broker._log is not None
        return (await broker._log.append(msgspec.json.encode(entry), None, time.monotonic() + 10))[0]
    assert isinstance(broker, SQLiteBroker)
    return append_row(broker, topic, **fields)


def append_row(broker: SQLiteBroker, topic: str, **fields: Any) -> Position:
    log, connection = broker._file.log, broker._file.log._connection
    with log._transaction():
        if not [name for _, name, *_ in connection.execute("PRAGMA table_info(log)") if name == "future"]:
            connection.execute("ALTER TABLE log ADD COLUMN future TEXT")
        state = read_state(connection)
        position = state.position.next()
        row = (position.offset, state.time, state.stamp, "message", topic, "", "", b"data: newer\n\n")
        newer = fields.get("v"), "\n".join(fields.get("crit", ())) or None, fields.get("future")
        connection.execute(
            'INSERT INTO log (offset, time, stamp, type, topics, "to", exclude, body, version, crit, future)'
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*row, *newer),
        )
        connection.execute("INSERT INTO topics VALUES (?, ?)", (topic, position.offset))
        connection.execute("UPDATE state SET top = ?", (position.offset,))
    broker._file.advance(position)
    broker._file.nodes.wake()
    return position


async def mixed(broker: Broker) -> tuple[list[Position], list[Position]]:
    """Entries of both versions in turn: the positions of those that are understood, and of the others."""
    ours, strange = [], []
    for fields in STRANGE:
        ours += await publish(broker, "ours", topic="t")
        strange.append(await append(broker, "elsewhere", **fields))
        for known in UNDERSTOOD:
            ours.append(await append(broker, "t", **known))
    return ours, strange


def split(found: Any) -> tuple[list[Position], list[Position]]:
    return (
        [item.position for item in found if not item.lost],
        [item.position for item in found if item.lost],
    )


@pytest.mark.parametrize("topic", ["t", "*", "elsewhere/**", ""])
async def test_what_is_not_understood_is_told_live_and_on_a_resume(world: World, topic: str) -> None:
    """Also to who asks for other topics: whom it is for is just what is not known."""
    topics = (topic,) if topic else ()
    async with world.open() as writer, world.open() as node:
        tail = node.tail()
        ours, strange = await mixed(writer)
        assert split(await take(tail, len(ours) + len(strange))) == (ours, strange)
        assert node.bad_envelopes == len(strange)
        expected = [position for position in ours if topic != "elsewhere/**"]
        for broker in (node, writer):
            await broker.top(fresh=True)
            assert split(await replayed(broker, None, *topics)) == (expected, strange)
            behind = ours[3]
            later = [position for position in expected if position > behind]
            assert split(await replayed(broker, behind, *topics)) == (later, strange[1:])
    async with world.open() as fresh:
        assert split(await replayed(fresh, None, *topics)) == (expected, strange)


@pytest.mark.parametrize("broadcasts", [True, False])
@pytest.mark.parametrize(("patterns", "denied"), [((), ()), ((), ("**",)), (("u",), ()), (("*",), ("t",))])
async def test_what_is_not_understood_is_told_whatever_a_filter_leaves_out(
    world: World, patterns: tuple[str, ...], denied: tuple[str, ...], broadcasts: bool
) -> None:
    topic_filter = TopicFilter(patterns, broadcasts, denied)
    async with world.open() as writer, world.open() as node:
        tail = node.tail()
        await publish(writer, "to all")
        ours, strange = await mixed(writer)
        await take(tail, 1 + len(ours) + len(strange))
        expected = [ours[0]._replace(offset=1)] * broadcasts + ours * topic_filter.matches(("t",))
        for broker in (node, writer):
            await broker.top(fresh=True)
            assert split(await replayed_by(broker, None, topic_filter)) == (expected, strange)
            newest = [item.position for item in await broker.newest(1_000, topic_filter, None)]
            assert newest == expected


async def test_the_newest_are_those_that_can_be_shown(world: World) -> None:
    async with world.open() as writer, world.open() as node:
        tail = node.tail()
        ours, strange = await mixed(writer)
        last = await append(writer, "t", **STRANGE[0])
        await take(tail, len(ours) + len(strange) + 1)
        for broker in (node, writer):
            await broker.top(fresh=True)
            for topics in (EVERYTHING, TopicFilter.parse(["t"]), TopicFilter.parse(["*"])):
                for audience in (None, Audience(("c",))):
                    found = await broker.newest(3, topics, audience)
                    assert [item.position for item in found] == ours[-3:]
                assert len(await broker.newest(1_000, topics, None)) == len(ours)
                position, enough = await broker.last(2, topics, Audience())
                assert (position.next(), enough) == (ours[-2], True)
        assert await node.top() == last


async def test_an_entry_keeps_that_its_data_is_json(world: World) -> None:
    async with world.open() as writer, world.open() as node:
        tail = node.tail()
        for is_json in (True, False):
            await writer.publish(Draft(Event("1"), is_json=is_json))
        assert [item.is_json for item in await take(tail, 2)] == [True, False]
        for broker in (writer, node):
            assert [item.is_json for item in await replayed(broker)] == [True, False]


async def test_every_stream_is_told_what_its_node_cannot_show(world: World) -> None:
    """Live and on a resume, in the place where it is; nothing of it is shown."""
    async with world.open() as writer, Hub(world.open()) as hub, hub.subscribe("t") as live:
        ours, strange = await mixed(writer)
        last = str(ours[-1])
        events = await read_events(live, lambda events: any(event.id == last for event in events))
        assert_told(events[1:], ours, strange)
        async with hub.subscribe("t", after=ours[1]) as resumed:
            welcome, *events = await read_events(resumed, lambda events: any(event.id == last for event in events))
        assert '"recovered":true' in welcome.data
        assert_told(events, ours[2:], strange[1:])
        assert hub.node.totals.gaps == {"lost": len(strange) + len(strange[1:])}
        stats = await hub.stats()
        assert stats["recent"]


def assert_told(events: Sequence[Event], ours: list[Position], strange: list[Position]) -> None:
    assert [event.id for event in events] == [str(position) for position in sorted(ours + strange)]
    gaps = [event for event in events if event.type == "gap"]
    assert [event.id for event in gaps] == [str(position) for position in strange]
    assert all('"reason":"lost"' in event.data and "private" not in event.data for event in gaps)


# --- what version 1 has left, made by commit 52d9bc9 ---


def old_sqlite(world: World) -> str:
    path = Path(world.url.removeprefix("sqlite:///"))
    shutil.copy(FIXTURES / "version-1.db", path)
    epoch = "3a700e20082b"
    Path(f"{path}-top").write_text(f"{epoch} 4 {path.stat().st_ino} synced".ljust(127) + "\n")
    return epoch


async def old_redis(world: World) -> str:
    kept = json.loads((FIXTURES / "redis-1.json").read_text())
    async with world.open() as broker:
        assert isinstance(broker, RedisBroker)
        prefix, send = broker._log.removesuffix(":log"), broker._reading.call
        await send("DEL", broker._log, broker._state)
        for id, fields in kept["log"]:
            await send("XADD", broker._log, id, "v1", b64decode(fields["v1"]))
        for name, value in kept["state"].items():
            await send("HSET", broker._state, name, value)
        for name, value in kept["keys"].items():
            await send("SET", name.replace("{sse-app}", prefix), value)
    return str(kept["state"]["epoch"])


async def old_nats(world: World) -> str:
    kept = json.loads((FIXTURES / "nats-1.json").read_text())
    async with world.open() as broker:
        assert isinstance(broker, NatsBroker)
        assert broker._log is not None
        for message in kept["log"]:
            id = message["headers"].get("Nats-Msg-Id")
            await broker._log.append(message["data"].encode(), id, time.monotonic() + 10)
        for message in kept["keys"]:
            digest, _, position = message["data"].partition(" ")
            await broker._log.claim("first-key", digest, time.monotonic() + 10)
            await broker._log.remember("first-key", digest, Position(broker._known.top.epoch, int(position[-1])))
        return broker._known.top.epoch


async def restored(world: World) -> str:
    """Put back what version 1 has left, and return its epoch."""
    if world.url.startswith("sqlite"):
        return old_sqlite(world)
    return await (old_redis(world) if world.url.startswith("redis") else old_nats(world))


KEYED = Draft(
    Event("two\nlines, é😀"),
    ("chat",),
    frozenset({"c-1", "c-2"}),
    frozenset({"c-2"}),
    idempotency_key="first-key",
)


async def test_a_log_of_version_1_goes_on(world: World) -> None:
    epoch = await restored(world)
    async with world.open() as node:
        assert await node.top() == Position(epoch, 4)
        found = await replayed(node, Position(epoch, 1))
        assert [item.position.offset for item in found] == [2, 3, 4]
        order, named, empty = found
        assert (order.type, order.topics, order.event.data) == ("order", ("orders/42", "orders/all"), '{"number":42}')
        assert (named.event.data, named.to, named.exclude) == (KEYED.event.data, KEYED.to, KEYED.exclude)
        assert (empty.event.data, empty.exclude, empty.is_json, empty.lost) == ("\n", frozenset({"c-3"}), False, False)
        assert await node.publish(KEYED) == Position(epoch, 3), "a retry of what version 1 took"
        with pytest.raises(KeyReused):
            await node.publish(Draft(Event("another"), idempotency_key="first-key"))
        assert await node.publish(Draft(Event("new"))) == Position(epoch, 5)
        assert [item.position.offset for item in await replayed(node, Position(epoch, 3))] == [4, 5]
        assert node.bad_envelopes == 0
