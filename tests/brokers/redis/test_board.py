"""Special to the board in Redis: its keys and channel, its rights, a full server, a channel that falls silent."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis import Redis

from sse_app.brokers.redis import RedisBroker
from sse_app.brokers.redis.board import PAGE_BYTES, RedisBoard
from sse_app.brokers.redis.connection import connected, execute
from sse_app.errors import BrokerUnavailable, LogFull
from sse_app.publisher import AsyncPublisher
from tests.support.boards import boards_on, listening_to
from tests.support.peers import PATIENCE, until
from tests.support.redis_server import RedisServer, StartRedis
from tests.support.worlds import World

pytestmark = pytest.mark.usefixtures("patient_redis")
LONG = 3_600.0  # seconds


@pytest.fixture
def redis(redis_server: RedisServer) -> Redis:
    return redis_server.client()


@pytest.fixture(scope="module")
def own_server(start_redis: StartRedis) -> RedisServer:
    """One whose settings may be changed."""
    return start_redis()


@pytest.fixture
def own_redis(own_server: RedisServer) -> Redis:
    return own_server.client()


# --- nodes ---


async def test_who_only_publishes_has_no_board_and_is_no_node_of_it(redis_server: RedisServer, redis: Redis) -> None:
    url = redis_server.url("publishing")
    async with AsyncPublisher(url) as publisher:
        await publisher.publish("x")
        await until(lambda: redis.hlen("{publishing}:nodes") == 1)
        assert redis.keys("{publishing}:board:*") == []
        assert redis.pubsub_channels("{publishing}:board:*") == []
        async with RedisBroker(url) as broker, RedisBroker(url) as other:
            await until(lambda: {*broker.board.nodes()} == {other.board.name})


async def test_nodes_of_older_versions_that_have_subscribers_are_named(redis_server: RedisServer, redis: Redis) -> None:
    async with RedisBroker(redis_server.url("mixed")) as broker:
        broker.subscribers_here = 3

        def older_nodes_are_named() -> bool:
            seconds = redis.time()[0]
            redis.hset("{mixed}:nodes", mapping={"older": f"7 {seconds}", "publisher": f"0 {seconds}"})
            return {*broker.board.nodes()} == {"older"}

        await until(older_nodes_are_named)
        # A node of version 0.1 removes a field whose value has another form, and adds up the first numbers.
        await until(lambda: redis.hlen("{mixed}:nodes") == 4)
        values = [value.split() for value in redis.hvals("{mixed}:nodes")]
        assert sorted(int(count) for count, _ in values) == [0, 0, 3, 7]


async def test_a_node_that_leaves_is_gone_at_once(redis_server: RedisServer, redis: Redis) -> None:
    async with RedisBroker(redis_server.url("leaving")) as broker:
        async with RedisBroker(redis_server.url("leaving")) as other:
            await until(lambda: {*broker.board.nodes()} == {other.board.name})
            assert redis.hlen("{leaving}:nodes") == 4
        assert redis.hlen("{leaving}:nodes") == 2


async def test_nodes_that_are_not_heard_of_are_forgotten_when_the_server_is_away(
    start_redis: StartRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_app.brokers.redis.ABSENT", 1.5)
    server = start_redis()
    url = server.url()
    async with RedisBroker(url) as broker, RedisBroker(url) as other:
        await until(lambda: {*broker.board.nodes()} == {other.board.name})
        server.kill()
        await until(lambda: not broker.board.nodes())


# --- entries ---


async def test_what_has_ended_is_removed_by_calls_of_any_kind(redis_server: RedisServer, redis: Redis) -> None:
    world = World(redis_server.url("swept"))
    async with boards_on(world, 1) as (board,):
        for number in range(600):
            await board.put(f"ticket.{number}", b"x", 30)
        await board.put("lease.kept", b"x", LONG)
        world.clock.now += 31
        for _ in range(3):
            assert await board.list("other") == {}
        assert redis.hkeys("{swept}:board:values") == [b"lease.kept"]
        assert redis.zrange("{swept}:board:ends", 0, -1) == [b"lease.kept"]
        assert redis.zrange("{swept}:board:names", 0, -1) == [b"lease.kept"]


async def test_a_list_is_read_in_pages_of_so_many_bytes(redis_server: RedisServer, redis: Redis) -> None:
    value = bytes(16 * 1024)
    async with boards_on(World(redis_server.url("large")), 1) as (board,):
        expected = {f"a.{number}": value for number in range(3 * PAGE_BYTES // len(value))}
        for key in expected:
            await board.put(key, value, LONG)
        before = redis.info("commandstats")["cmdstat_evalsha"]["calls"]
        assert await board.list("a") == expected
        assert redis.info("commandstats")["cmdstat_evalsha"]["calls"] - before >= 3


async def test_on_a_server_without_memory_entries_are_read_and_removed_and_none_is_written(
    own_server: RedisServer, own_redis: Redis
) -> None:
    world = World(own_server.url())
    async with boards_on(world, 1) as (board,):
        await board.put("a.b", b"x", LONG)
        await board.put("a.c", b"x", 30)
        own_redis.config_set("maxmemory", 1)
        try:
            for work in (
                board.put("a.b", b"y", LONG),
                board.claim("a.d", b"y", LONG),
                board.replace("a.b", b"x", b"y", LONG),
            ):
                with pytest.raises(LogFull, match="nothing was kept"):
                    await work
            assert await board.list("a") == {"a.b": b"x", "a.c": b"x"}
            world.clock.now += 31
            await board.put("a.b", b"y", LONG)  # in the place of what has ended
            assert await board.list("a") == {"a.b": b"y"}
            await board.delete("a.b")
            assert await board.get("a.b") is None
        finally:
            own_redis.config_set("maxmemory", 0)


async def test_a_script_that_the_server_forgot_is_loaded_again(own_server: RedisServer, own_redis: Redis) -> None:
    async with boards_on(World(own_server.url()), 1) as (board,):
        await board.put("a.b", b"x", LONG)
        own_redis.script_flush()
        with pytest.raises(BrokerUnavailable):
            await board.get("a.b")
        assert await again(lambda: board.get("a.b")) == b"x"


async def again(call: Callable[[], Awaitable[Any]]) -> Any:
    """Call until the answer is no BrokerUnavailable."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await call()
            except BrokerUnavailable:
                await asyncio.sleep(0)


# --- messages ---


async def test_hubs_in_other_databases_do_not_hear_each_other(redis_server: RedisServer) -> None:
    url = redis_server.url("same")
    async with (
        boards_on(World(f"{url}&db=1")) as (one, two, _),
        boards_on(World(f"{url}&db=2"), 1) as (elsewhere,),
        listening_to(two, one) as inbox,
    ):
        await elsewhere.send(b"from elsewhere")
        await one.send(b"from here")
        assert await inbox.take(1) == [b"from here"]


async def test_a_quiet_channel_is_kept_and_a_silent_one_is_left(
    start_redis: StartRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_app.brokers.redis.board.PING", 0.02)
    server = start_redis()
    redis = server.client()

    def pings() -> int:
        return int(redis.info("commandstats").get("cmdstat_ping", {"calls": 0})["calls"])

    async with RedisBroker(server.url()) as broker, connected(broker._pool) as connection:
        board = broker.board
        await execute(connection, "SUBSCRIBE", board._channel)
        monkeypatch.setattr("sse_app.brokers.redis.connection.SILENCE", 0.5)
        receiving = asyncio.create_task(board._receive(connection))
        before = pings()
        await until(lambda: pings() > before + 60)
        assert not receiving.done()
        server.freeze()
        try:
            with pytest.raises(TimeoutError, match="no answer within"):
                await receiving
        finally:
            server.thaw()


# --- rights ---


async def test_these_commands_keys_and_channels_are_all_that_it_needs(
    own_server: RedisServer, own_redis: Redis
) -> None:
    commands = (
        "evalsha script|load xread hmget hset hget hgetall hdel xadd xrange xrevrange xdel xlen xsetid exists unlink "
        "time zadd zrange zrem zscore publish subscribe ping"
    )
    own_redis.acl_setuser(
        "app",
        enabled=True,
        passwords=["+pw"],
        keys=["{ours}:*"],
        channels=["{ours}:board:*"],
        commands=[f"+{name}" for name in commands.split()],
        reset=True,
    )
    async with boards_on(World(own_server.url("ours").replace("//", "//app:pw@"))) as (one, two, _):
        assert await one.claim("a.b", b"x", LONG) is None
        assert await two.replace("a.b", b"x", b"y", LONG)
        await one.put("a.c", b"x", LONG, durable=True)
        await one.delete("a.c")
        assert await two.get("a.b") == b"y"
        assert await two.list("a") == {"a.b": b"y"}
        async with listening_to(one, two) as inbox:
            await two.send(b"x")
            assert await inbox.take(1) == [b"x"]


async def test_a_user_without_the_channel_is_told_in_one_line_and_has_the_entries(
    own_server: RedisServer,
    own_redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("sse_app.brokers.redis.board.BACKOFF", (0.01, 0.01))
    own_redis.acl_setuser("deaf", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all"], reset=True)

    def refusals() -> int:
        return int(own_redis.info("commandstats")["cmdstat_subscribe"]["rejected_calls"])

    async with RedisBroker(own_server.url().replace("//", "//deaf:pw@")) as broker:
        board = broker.board
        assert isinstance(board, RedisBoard)
        await board.put("a.b", b"x", LONG)
        assert await board.get("a.b") == b"x"
        with pytest.raises(BrokerUnavailable):
            await board.send(b"x")
        await until(lambda: caplog.text.count("does not let us hear") == 1)
        before = refusals()
        await until(lambda: refusals() > before + 2)
        assert caplog.text.count("does not let us hear") == 1
        assert not board.has_listened
        broker.check()
