"""Special to the board in NATS: its stream, what has ended there, its rights, servers that are full or behind."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from sse_app.brokers import open_broker
from sse_app.brokers.board import TTL
from sse_app.brokers.nats import NatsBroker
from sse_app.brokers.nats.board import DELETIONS_AT_ONCE, PAGE_COUNT, NatsBoard
from sse_app.brokers.nats.consumers import Consumers
from sse_app.errors import BrokerUnavailable, LogFull
from sse_app.publisher import AsyncPublisher
from tests.support.boards import boards_on, listening_to
from tests.support.broker_process import HOST
from tests.support.nats_server import NatsServer, StartNats
from tests.support.peers import PATIENCE, Clock, until
from tests.support.worlds import World

pytestmark = pytest.mark.usefixtures("impatient_nats")
LONG = 3_600.0  # seconds


def opened(url: str, **settings: Any) -> NatsBroker:
    broker = open_broker(url, **settings)
    assert isinstance(broker, NatsBroker)
    return broker


@pytest.fixture
async def broker(nats_world: World) -> AsyncIterator[NatsBroker]:
    async with opened(nats_world.url) as broker:
        yield broker


@pytest.fixture
def board(broker: NatsBroker) -> NatsBoard:
    return broker.board


@pytest.fixture
def clock(nats_world: World) -> Clock:
    """The wall clock of the nodes."""
    return nats_world.wall


@pytest.fixture
async def client(nats_server: NatsServer) -> AsyncIterator[Client]:
    client = await nats.connect(f"nats://{HOST}:{nats_server.port}", allow_reconnect=False)
    yield client
    await client.close()


@pytest.fixture
def js(client: Client) -> JetStreamContext:
    """The server's administrator."""
    return client.jetstream()


async def keys_in(js: JetStreamContext, board: NatsBoard) -> set[str]:
    """The keys of the messages in the streams, ended or not, without those of the board itself."""
    infos = [await js.stream_info(board._stream(kind), subjects_filter=">") for kind in board._kinds]
    subjects = [subject for info in infos for subject in info.state.subjects or {}]
    return {subject.removeprefix(f"{board._subjects}.") for subject in subjects if "=" not in subject}


# --- nodes ---


async def test_who_only_publishes_has_no_board_and_is_no_node_of_it(
    nats_server: NatsServer, client: Client, js: JetStreamContext
) -> None:
    url = nats_server.url("publishing")
    said = asyncio.Queue[Msg]()
    await client.subscribe("sse-app.publishing.>", cb=said.put)
    async with AsyncPublisher(url) as publisher, asyncio.timeout(PATIENCE):
        await publisher.publish("x")
        while not (message := await said.get()).subject.endswith(".nodes"):
            pass
        assert msgspec.json.decode(message.data).keys() == {"node", "subscribers"}
        with pytest.raises(NotFoundError):
            await js.stream_info("SSE_BOARD_publishing_revoked")
        async with opened(url) as broker, opened(url) as other:
            await until(lambda: {*broker.board.nodes()} == {other.board.name})


async def test_nodes_of_older_versions_that_have_subscribers_are_named(board: NatsBoard, client: Client) -> None:
    subject = board._nodes._subject
    await until(lambda: board._nodes.hears)
    for announcement in (b'{"node":"older","subscribers":7}', b'{"node":"publisher","subscribers":0}'):
        await client.publish(subject, announcement)
    await until(lambda: {*board.nodes()} == {"older"})


async def test_a_node_that_leaves_is_gone_at_once(nats_world: World, board: NatsBoard) -> None:
    async with opened(nats_world.url, clock=lambda: 0.0) as other:  # on this clock no announcement grows old
        await until(lambda: {*board.nodes()} == {other.board.name})
        await until(lambda: {*other.board.nodes()} == {board.name})
    await until(lambda: not board.nodes())


# --- entries ---


async def test_hubs_with_other_names_have_other_boards(nats_server: NatsServer) -> None:
    async with (
        boards_on(World(nats_server.url(), clocked=False)) as (one, two, _),
        boards_on(World(nats_server.url(), clocked=False), 1) as (elsewhere,),
        listening_to(two, one) as inbox,
    ):
        await elsewhere.put("a.b", b"x", LONG)
        assert await one.get("a.b") is None
        await elsewhere.send(b"from elsewhere")
        await one.send(b"from here")
        assert await inbox.take(1) == [b"from here"]


async def test_what_is_not_there_yet_is_nothing(board: NatsBoard) -> None:
    assert await board.get("a.b") is None
    assert not await board.replace("a.b", b"", b"x", LONG)
    await board.delete("a.b")
    assert await board.list("a") == {}


async def test_a_stream_that_somebody_deletes_is_made_anew(board: NatsBoard, js: JetStreamContext) -> None:
    for write in (board.put("a.b", b"x", LONG), board.claim("a.b", b"x", LONG)):
        assert await write is None
        await js.delete_stream(board._stream("a"))
        assert await board.get("a.b") is None
        assert await board.list("a") == {}


async def test_the_stream_is_for_as_many_servers_as_that_of_the_log_and_refuses_what_is_too_much(
    board: NatsBoard, js: JetStreamContext
) -> None:
    await board.put("a.b", b"x", LONG)
    config = (await js.stream_info(board._stream("a"))).config
    assert (config.num_replicas, config.max_msgs_per_subject, config.max_age) == (1, 1, TTL)
    await js.update_stream(config, max_msgs=3)  # with the mark
    await board.put("a.c", b"x", LONG)
    for write in (board.put("a.d", b"x", LONG), board.claim("a.d", b"x", LONG)):
        with pytest.raises(LogFull, match="nothing was kept"):
            await write
    await board.put("a.b", b"y", LONG)
    assert await board.replace("a.c", b"x", b"y", LONG)
    assert {key: await board.get(key) for key in ("a.b", "a.c", "a.d")} == {"a.b": b"y", "a.c": b"y", "a.d": None}


async def test_a_kind_that_is_full_leaves_room_for_the_others_and_is_swept(
    board: NatsBoard, js: JetStreamContext, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_app.brokers.nats.board.ENTRIES_MAX", 6)  # with the mark
    for number in range(5):
        await board.put(f"lease.{number}", b"x", 30)
    with pytest.raises(LogFull):
        await board.claim("lease.5", b"x", LONG)
    await board.put("revoked.a", b"x", LONG)
    assert await board.list("revoked") == {"revoked.a": b"x"}
    assert len(await board.list("lease")) == 5
    clock.now += 31
    monkeypatch.setattr("sse_app.brokers.nats.board.SWEEP", 0.02)
    running = asyncio.create_task(board.run())
    async with asyncio.timeout(PATIENCE):
        while await keys_in(js, board) != {"revoked.a"}:
            pass  # each asking is a request, which is the wait
    running.cancel()
    await asyncio.wait([running])
    assert await board.claim("lease.5", b"x", LONG) is None


@pytest.mark.parametrize("headers", [None, {"SSE-App-Ends": "soon"}, {"SSE-App-Ends": "9" * 18}])
async def test_what_others_write_into_the_stream_is_nothing(
    board: NatsBoard, js: JetStreamContext, headers: dict[str, str] | None
) -> None:
    await board.put("a.ours", b"x", LONG)
    await js.publish(f"{board._subjects}.a.b", b"strange", headers=headers)
    assert await board.get("a.b") is None
    assert await board.list("a") == {"a.ours": b"x"}
    assert await board.claim("a.b", b"y", LONG) is None
    assert await board.get("a.b") == b"y"


async def test_a_server_that_is_behind_is_asked_until_it_has_what_was_written_before_the_list(
    board: NatsBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The consumer of a list may be with any server of a cluster."""
    pull, pulls = Consumers.pull, 0

    async def behind(self: Consumers, consumer: Any, batch: int, **bounds: int) -> tuple[list[Msg], bool]:
        nonlocal pulls
        pulls += 1
        return ([], False) if pulls <= 3 else await pull(self, consumer, batch, **bounds)

    await board.put("a.b", b"x", LONG)
    monkeypatch.setattr(Consumers, "pull", behind)
    assert await board.list("a") == {"a.b": b"x"}
    assert pulls == 4


async def test_a_list_of_a_server_that_stays_behind_is_an_error(
    board: NatsBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def behind(*_: Any, **__: Any) -> tuple[list[Msg], bool]:
        return [], False

    monkeypatch.setattr(Consumers, "pull", behind)
    monkeypatch.setattr("sse_app.brokers.nats.board.LISTING", 0.5)
    with pytest.raises(BrokerUnavailable):
        await board.list("a")


async def test_a_list_leaves_no_consumer(
    board: NatsBoard, js: JetStreamContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    # After that the server would forget its consumers by itself.
    monkeypatch.setattr("sse_app.brokers.nats.consumers.IDLE", 10 * PATIENCE)
    await board.put("a.b", b"x", LONG)
    assert await board.list("a") == {"a.b": b"x"}
    async with asyncio.timeout(PATIENCE):
        while (await js.stream_info(board._stream("a"))).state.consumer_count:
            pass  # each asking is a request, which is the wait


# --- what has ended ---


async def test_what_has_ended_is_removed_and_nothing_else(board: NatsBoard, clock: Clock, js: JetStreamContext) -> None:
    async def put_all(kind: str, numbers: range) -> None:
        await asyncio.gather(*(board.put(f"{kind}.{number}", b"x", 30) for number in numbers))

    async with asyncio.timeout(PATIENCE):
        await put_all("ticket", range(PAGE_COUNT + 10))
        await put_all("lease", range(10))
        await board.put("lease.kept", b"x", LONG)
        await board.put("lease.written-again", b"x", 30)
        assert await board.list("told") == {}  # leaves a mark, behind which entries of this kind are deleted one by one
        await put_all("lease", range(10, DELETIONS_AT_ONCE + 20))
        await put_all("told", range(3))
        assert len(await keys_in(js, board)) == PAGE_COUNT + DELETIONS_AT_ONCE + 35
        clock.now += 31
        await board.put("lease.written-again", b"y", 30)
        for kind in ("ticket", "lease", "told"):
            await board.sweep(kind)
    assert await keys_in(js, board) == {"lease.kept", "lease.written-again"}
    assert await board.list("lease") == {"lease.kept": b"x", "lease.written-again": b"y"}


async def test_entries_that_end_in_their_order_are_removed_in_one_request(
    board: NatsBoard, clock: Clock, js: JetStreamContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def none(*_: Any) -> None:
        raise AssertionError("a request for each")

    monkeypatch.setattr(NatsBoard, "_remove", none)
    for number in range(20):
        await board.put(f"ticket.{number}", b"x", 30)
        clock.now += 1
    clock.now += 20  # 10 of them have ended
    await board.sweep("ticket")
    assert await keys_in(js, board) == {f"ticket.{number}" for number in range(11, 20)}


async def test_what_is_written_meanwhile_is_not_removed(board: NatsBoard, clock: Clock) -> None:
    await board.put("a.b", b"x", 30)
    async with board._in_time(PATIENCE) as js:
        there = await board._read(js, "a.b")
        assert there is not None
        await board.put("a.b", b"y", LONG)
        await board._remove(js, "a", there.revision)
        await board._remove(js, "a", there.revision)
    assert await board.get("a.b") == b"y"


async def test_one_of_the_nodes_removes_what_has_ended_now_and_then(
    nats_world: World, js: JetStreamContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_app.brokers.nats.board.SWEEP", 0.02)
    turns, claim = list[bool](), NatsBoard._claim

    async def counted(self: NatsBoard, key: str, value: bytes, ttl: float) -> bytes | None:
        there = await claim(self, key, value, ttl)
        turns.append(there is None)
        return there

    monkeypatch.setattr(NatsBoard, "_claim", counted)
    async with opened(nats_world.url) as one, opened(nats_world.url) as two:
        await one.board.put("a.b", b"x", 30)
        assert two.board.name != one.board.name
        await until(lambda: sum(turns) == 1)
        before = len(turns)
        await until(lambda: len(turns) > before + 5)
        assert sum(turns) == 1, "on a clock that stands still a turn does not end"
        nats_world.wall.now += 31
        await until(lambda: sum(turns) > 1)
        async with asyncio.timeout(PATIENCE):
            while await keys_in(js, one.board):
                nats_world.wall.now += 1  # each asking is a request, which is the wait


async def test_what_a_list_of_another_node_waits_for_is_not_removed(board: NatsBoard, js: JetStreamContext) -> None:
    await board.put("a.b", b"x", LONG)
    assert await board.list("a") == {"a.b": b"x"}
    before = (await js.get_last_msg(board._stream("a"), f"{board._subjects}.a.=")).seq
    await board.sweep("a")
    after = (await js.get_last_msg(board._stream("a"), f"{board._subjects}.a.=")).seq
    assert after is not None
    assert before is not None
    assert after > before, "the list waits for this mark or a later one"


# --- connections ---


async def test_callers_that_give_up_leave_the_board_as_it_is(nats_world: World) -> None:
    async with boards_on(nats_world) as (one, two, _), listening_to(two, one) as inbox:
        for _ in range(20):
            calls = [
                asyncio.ensure_future(call)
                for call in (
                    one.claim("a.b", b"x", LONG),
                    one.replace("a.b", b"x", b"x", LONG),
                    one.list("a"),
                    one.delete("a.c"),
                    one.send(b"mark: not looked at"),
                )
            ]
            await asyncio.sleep(0.001)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        assert await one.claim("a.b", b"y", LONG) in (None, b"x")
        await one.send(b"still there")
        assert await inbox.take(1) == [b"still there"]


async def test_nothing_is_left_when_it_is_closed(nats_world: World) -> None:
    tasks = asyncio.all_tasks()
    async with boards_on(nats_world) as (one, two, _), listening_to(two, one):
        await one.put("a.b", b"x", LONG)
    await until(lambda: asyncio.all_tasks() == tasks)


# --- rights ---


async def test_these_subjects_are_all_that_it_needs(start_nats: StartNats) -> None:
    api_subjects = [
        *(f"STREAM.{what}.SSE_{kind}_x" for what in ("INFO", "CREATE", "UPDATE") for kind in ("LOG", "KEYS")),
        *(f"CONSUMER.{what}.SSE_LOG_x.*" for what in ("CREATE", "MSG.NEXT", "DELETE")),
        *(f"STREAM.{what}.SSE_BOARD_x_a" for what in ("CREATE", "MSG.GET", "MSG.DELETE", "PURGE")),
        "CONSUMER.CREATE.SSE_BOARD_x_a.>",
        *(f"CONSUMER.{what}.SSE_BOARD_x_a.*" for what in ("MSG.NEXT", "DELETE")),
    ]
    allowed = json.dumps(["sse-app.x.>", "$JS.FC.SSE_LOG_x.>", *(f"$JS.API.{name}" for name in api_subjects)])
    hears = '["sse-app.x.nodes", "sse-app.x.messages", "_INBOX.>"]'
    server = start_nats(
        f"authorization: {{users: [{{user: a, password: b, permissions: {{publish: {allowed}, subscribe: {hears}}}}}]}}"
    )
    world = World(server.url("x").replace("//", "//a:b@"), clocked=False)
    async with boards_on(world) as (one, two, _):
        assert await one.claim("a.b", b"x", LONG) is None
        assert await two.claim("a.b", b"y", LONG) == b"x"
        assert await two.replace("a.b", b"x", b"y", LONG)
        await one.put("a.c", b"x", LONG, durable=True)
        await one.delete("a.c")
        assert await two.get("a.b") == b"y"
        assert await two.list("a") == {"a.b": b"y"}
        assert isinstance(one, NatsBoard)
        await one.sweep("a")
        async with listening_to(one, two) as inbox:
            await two.send(b"x")
            assert await inbox.take(1) == [b"x"]
    server.kill()


async def test_a_user_who_may_not_hear_the_others_is_told_in_one_line_and_is_not_named(
    start_nats: StartNats, caplog: pytest.LogCaptureFixture
) -> None:
    permissions = 'permissions: {publish: ">", subscribe: ["sse-app.x.nodes", "_INBOX.>"]}'
    server = start_nats(
        f"authorization: {{users: [{{user: deaf, password: b, {permissions}}}, {{user: a, password: b}}]}}"
    )
    async with (
        opened(server.url("x").replace("//", "//deaf:b@")) as deaf,
        opened(server.url("x").replace("//", "//a:b@")) as other,
    ):
        await deaf.board.put("a.b", b"x", LONG)
        assert await other.board.get("a.b") == b"x"
        await until(lambda: {*deaf.board.nodes()} == {other.board.name})
        await until(lambda: 'for subscription to "sse-app.x.messages"' in caplog.text)
        assert not deaf.board._nodes.hears
        assert not other.board.nodes()
        assert caplog.text.count("NATS forbids") == 1
    server.kill()
