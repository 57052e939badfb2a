"""Special to the log in Redis: other logs under its name, strangers in its stream, servers that refuse."""

import asyncio
import random
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.asyncio.connection import AbstractConnection

from sse_app.brokers import open_broker
from sse_app.brokers.limits import PAGE_BYTES, PAGE_COUNT
from sse_app.brokers.recent import BYTES
from sse_app.brokers.redis import TAIL_BYTES, RedisBroker
from sse_app.brokers.redis.connection import Argument, CommandQueue, check_version, close, connections, execute
from sse_app.brokers.redis.entries import envelope, microseconds, publication_of
from sse_app.errors import BrokerError, BrokerUnavailable, ConfigError, LogFull
from sse_app.events import Event
from sse_app.hub import Hub
from sse_app.publication import Audience, Draft, Position
from sse_app.publisher import AsyncPublisher
from sse_app.topics import TopicFilter
from tests.brokers.test_brokers import publish, replayed, take, texts
from tests.support.broker_process import HOST, free_port
from tests.support.peers import PATIENCE, Clock, Serve, listening, read_events, turns, until
from tests.support.redis_server import RedisServer, StartRedis

pytestmark = pytest.mark.usefixtures("patient_redis")
EVERYTHING = TopicFilter()


@pytest.fixture
def url(redis_server: RedisServer) -> str:
    return redis_server.url()


@pytest.fixture
async def broker(url: str) -> AsyncIterator[RedisBroker]:
    async with RedisBroker(url) as broker:
        yield broker


@pytest.fixture
def redis(redis_server: RedisServer) -> Redis:
    return redis_server.client()


@pytest.fixture(scope="module")
def own_server(start_redis: StartRedis) -> RedisServer:
    """One whose settings may be changed, and whose data."""
    return start_redis("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture
def own_redis(own_server: RedisServer) -> Redis:
    return own_server.client()


def keys_of(broker: RedisBroker) -> tuple[str, str]:
    return broker._log, broker._state


# --- URLs ---


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3cret@localhost:port",
        "redis://:s3cret@localhost?no_such_parameter=1",
        "redis://:s3cret@localhost?db=many",
        "redis://:s3cret@localhost?db=１",
        "redis://:s3cret@localhost?health_check_interval=1_0",
        "redis://:s3cret@localhost/one",
        "redis://:s3cret@localhost/+1",
        "redis+sentinel://:s3cret@localhost/service/１",
        "redis://:s3cret@localhost?prefix=",
        "redis://:s3cret@localhost?prefix=a%20b",
        "redis://:s3cret@localhost?a&b",
        "redis+sentinel://:s3cret@localhost",
        "redis+sentinel://:s3cret@/service",
    ],
)
def test_a_url_that_is_wrong_is_refused_without_its_secret(url: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        open_broker(url)
    assert "s3cret" not in str(refusal.value)
    assert str(refusal.value).startswith("broker: ")


async def test_parameters_of_redis_py_are_passed_on_and_none_changes_what_we_read(redis_server: RedisServer) -> None:
    url = redis_server.url() + "&db=3&protocol=3&decode_responses=true&max_connections=1&client_name=ours"
    async with RedisBroker(url) as broker:
        await publish(broker, "a")
        assert texts(await replayed(broker)) == ["a"]
        with redis_server.client() as client:
            assert "ours" in {connection["name"] for connection in client.client_list()}
            assert not client.exists(*keys_of(broker))
            client.select(3)
            assert client.exists(*keys_of(broker)) == 2


async def test_a_unix_socket_will_do(start_redis: StartRedis, tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    start_redis("--unixsocket", str(path))
    async with open_broker(f"unix://{path}?prefix=x") as broker:
        await publish(broker, "a")
        assert texts(await replayed(broker)) == ["a"]


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of localhost, with its key in the same file."""
    both = tmp_path / "localhost.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    both.write_bytes(subprocess.run([*command.split(), "-keyout", "-"], check=True, capture_output=True).stdout)
    return both


async def test_tls_is_spoken_with_whom_the_certificate_names(start_redis: StartRedis, certificate: Path) -> None:
    port = free_port()
    tls = [f"--tls-{kind}-file" for kind in ("cert", "key", "ca-cert")]
    files = [argument for setting in tls for argument in (setting, str(certificate))]
    start_redis("--tls-port", str(port), "--tls-auth-clients", "no", *files)
    async with RedisBroker(f"rediss://localhost:{port}?ssl_ca_certs={certificate}") as broker:
        await publish(broker, "a")
        assert texts(await replayed(broker)) == ["a"]
    with pytest.raises(BrokerUnavailable, match="certificate verify failed"):
        async with RedisBroker(f"rediss://localhost:{port}"):
            pass


def test_serve_says_in_one_line_that_there_is_no_server() -> None:
    command = [sys.executable, "-m", "sse_app", "serve", "--port", "0", "--broker", "redis://:s3cret@127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("sse-app: broker: the Redis server cannot be used: ")
    assert done.stderr.count("\n") == 1
    assert "s3cret" not in done.stderr


async def test_that_no_sentinel_answers_is_said_in_one_line() -> None:
    with pytest.raises(BrokerUnavailable) as refusal:
        async with RedisBroker(f"redis+sentinel://:s3cret@{HOST}:1/service"):
            pass
    assert str(refusal.value) == "broker: the Redis server cannot be used: no Sentinel names a master"


async def test_a_server_that_says_nothing_ends_the_start_with_the_time_it_was_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sse_app.brokers.redis.connection.CONNECT", 0.1)
    with socket.create_server((HOST, 0)) as silent, pytest.raises(BrokerUnavailable, match="no connection within"):
        async with RedisBroker(f"redis://{HOST}:{silent.getsockname()[1]}"):
            pass


async def test_a_tail_that_may_not_be_read_ends_the_start(own_server: RedisServer, own_redis: Redis) -> None:
    own_redis.acl_setuser("app", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-xread"], reset=True)
    with pytest.raises(BrokerUnavailable, match="xread"):
        async with RedisBroker(own_server.url().replace("//", "//app:pw@")):
            pass


async def test_hubs_with_other_prefixes_have_other_logs(redis_server: RedisServer) -> None:
    async with RedisBroker(redis_server.url()) as one, RedisBroker(redis_server.url()) as other:
        await publish(one, "a")
        assert (await other.top(fresh=True)).offset == 0
        assert (await one.top()).epoch != (await other.top()).epoch


@pytest.mark.parametrize("userinfo", ["", ":s3cret@", "nobody:s3cret@"])
async def test_a_server_that_cannot_be_used_ends_the_start_in_one_line(own_server: RedisServer, userinfo: str) -> None:
    port = own_server.port if userinfo else 1
    with pytest.raises(BrokerUnavailable, match="broker: the Redis server cannot be used: ") as refusal:
        async with RedisBroker(f"redis://{userinfo}127.0.0.1:{port}"):
            pass
    assert "s3cret" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


async def test_a_server_that_is_too_old_is_refused() -> None:
    class Old:
        async def send_command(self, *arguments: object) -> None:
            assert arguments == ("INFO", "server")

        async def read_response(self) -> bytes:
            return b"# Server\r\nredis_version:6.2.14\r\n"

    with pytest.raises(ConfigError, match="Redis 7 or newer"):
        await check_version(Old())  # type: ignore[arg-type]


async def test_a_server_that_is_too_old_ends_the_start(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def too_old(connection: object) -> None:
        raise ConfigError("broker: Redis 7 or newer is needed, or Valkey.")

    monkeypatch.setattr("sse_app.brokers.redis.check_version", too_old)
    with pytest.raises(ConfigError, match="Redis 7 or newer"):
        async with RedisBroker(url):
            pass


# --- durability ---


@pytest.mark.parametrize(
    ("appendonly", "appendfsync", "expected"),
    [("yes", "always", "fsync"), ("yes", "everysec", "log"), ("yes", "no", "log"), ("no", "always", "none")],
)
async def test_durability_is_what_the_server_is_set_to(
    own_server: RedisServer, own_redis: Redis, appendonly: str, appendfsync: str, expected: str
) -> None:
    own_redis.config_set("appendonly", appendonly)
    own_redis.config_set("appendfsync", appendfsync)
    async with RedisBroker(own_server.url()) as broker:
        assert broker.durability == expected


@pytest.mark.parametrize(
    ("appendonly", "forbidden", "expected"),
    [("yes", ["-config"], "log"), ("no", ["-config"], "none"), ("yes", ["-config", "-info"], "none")],
)
async def test_durability_is_not_overstated_where_settings_are_secret(
    own_server: RedisServer, own_redis: Redis, appendonly: str, forbidden: list[str], expected: str
) -> None:
    own_redis.config_set("appendonly", appendonly)
    own_redis.acl_setuser(
        "app", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", *forbidden], reset=True
    )
    async with RedisBroker(own_server.url().replace("//", "//app:pw@")) as broker:
        assert broker.durability == expected


async def test_these_commands_and_keys_are_all_that_it_needs(own_server: RedisServer, own_redis: Redis) -> None:
    commands = (
        "evalsha script|load xread hmget hset hgetall hdel get set xadd xrange xrevrange xdel xlen xsetid exists "
        "unlink time"
    )
    own_redis.acl_setuser(
        "app",
        enabled=True,
        passwords=["+pw"],
        keys=["{ours}:*"],
        commands=[f"+{name}" for name in commands.split()],
        reset=True,
    )
    async with RedisBroker(own_server.url("ours").replace("//", "//app:pw@"), history=3) as broker:
        tail = broker.tail()
        await publish(broker, "a", idempotency_key="k")
        received = await take(tail, 1)
        own_redis.xadd(broker._log, {"junk": "x"})
        for text in "bcde":  # the tail reads each before the next one trims it
            await publish(broker, text)
            received += await take(tail, 1)
        assert texts(await replayed(broker)) == ["c", "d", "e"]
        assert texts(await broker.newest(1, EVERYTHING, Audience(("c",)))) == ["e"]
        await broker.since(0)
        await broker.top(fresh=True)
        assert [item.position.offset for item in received] == [1, 2, 3, 4, 5]
        own_redis.delete(broker._log)
        await broker.top(fresh=True)
        broker.check()


# --- several nodes ---


async def test_all_nodes_hear_the_same_each_once(url: str) -> None:
    """Also the node that published: from the stream, and not besides."""
    publishers, each = 10, 334
    number = 3 * publishers * each
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(RedisBroker(url, history=number)) for _ in range(3)]
        tails = [node.tail() for node in nodes]

        async def publisher(node: RedisBroker) -> None:
            for _ in range(each):
                await node.publish(Draft(Event("x")))

        await asyncio.gather(*(publisher(node) for node in nodes for _ in range(publishers)))
        received = [await take(tail, number) for tail in tails]
    assert [item.position.offset for item in received[0]] == list(range(1, number + 1))
    assert received[0] == received[1] == received[2]


async def test_nodes_know_of_the_subscribers_of_others_until_they_leave(url: str) -> None:
    async with RedisBroker(url) as one:
        async with RedisBroker(url) as other:
            one.subscribers_here, other.subscribers_here = 2, 3
            await until(lambda: (one.subscribers_elsewhere, other.subscribers_elsewhere) == (3, 2))
        await until(lambda: one.subscribers_elsewhere == 0)


async def test_a_node_that_died_is_forgotten(broker: RedisBroker, redis: Redis) -> None:
    seconds, _ = redis.time()
    redis.hset(broker._nodes, mapping={"dead": f"7 {seconds - 6}", "strange": "x"})

    def only_one_is_alive() -> bool:
        redis.hset(broker._nodes, "alive", f"5 {redis.time()[0]}")  # a node that is alive writes its number again
        known = set(redis.hkeys(broker._nodes))
        return (broker.subscribers_elsewhere, known) == (5, {b"alive", broker._node.encode()})

    await until(only_one_is_alive)


async def test_limits_are_the_hubs_and_whoever_names_none_leaves_them(
    own_server: RedisServer, own_redis: Redis
) -> None:
    url = own_server.url()
    async with RedisBroker(url, history=3) as hub, AsyncPublisher(url) as publisher:
        for text in "abcde":
            await publisher.publish(text)
        await hub.top(fresh=True)
        assert texts(await replayed(hub)) == ["c", "d", "e"]
        own_redis.flushall()
        await publisher.publish("x")
        await hub.top(fresh=True)
        for text in "abcde":
            await publisher.publish(text)
        await hub.top(fresh=True)
        assert texts(await replayed(hub)) == ["c", "d", "e"]
    async with RedisBroker(url) as later:
        await publish(later, "f")
        assert texts(await replayed(later)) == ["d", "e", "f"]


async def test_a_cursor_of_another_node_is_known_after_a_fresh_look(url: str) -> None:
    async with RedisBroker(url) as one, RedisBroker(url) as other:
        (position,) = await publish(one, "a")
        assert await other.top(fresh=True) == position


# --- another log under its name ---


async def test_a_flushed_log_begins_anew_and_every_stream_is_told(own_server: RedisServer, own_redis: Redis) -> None:
    broker = RedisBroker(own_server.url())
    async with Hub(broker) as hub, hub.subscribe() as subscriber:
        old = (await hub.publish("a")).position
        await read_events(subscriber, lambda events: len(events) == 2)
        own_redis.flushall()
        (gap,) = await read_events(subscriber, lambda events: bool(events))
        assert gap.type == "gap"
        assert '"reason":"epoch"' in gap.data
        new = (await hub.publish("b")).position
        assert (new.epoch != old.epoch, new.offset) == (True, 1)
        (event,) = await read_events(subscriber, lambda events: bool(events))
        assert (event.data, event.id) == ("b", str(new))


async def test_a_log_that_lost_its_stream_or_its_state_begins_anew(broker: RedisBroker, redis: Redis) -> None:
    for key in keys_of(broker):
        (before,) = await publish(broker, "a")
        redis.delete(key)
        (after,) = await publish(broker, "b")
        assert (after.epoch != before.epoch, after.offset) == (True, 1)
        assert texts(await replayed(broker)) == ["b"]


async def test_a_stream_that_somebody_else_made_anew_is_another_log(broker: RedisBroker, redis: Redis) -> None:
    before = await publish(broker, *"abc")
    with redis.pipeline(transaction=True) as transaction:  # no broker refreshes in between
        transaction.delete(broker._log)
        transaction.xadd(broker._log, {"junk": "x"}, id="0-1")
        transaction.execute()
    (after,) = await publish(broker, "d")
    assert (after.epoch != before[0].epoch, after.offset) == (True, 1)
    assert texts(await replayed(broker)) == ["d"]


class Copy:
    """The log as it was, to be put back in its place: what a replica that lags, or a backup, comes up with."""

    def __init__(self, redis: Redis, broker: RedisBroker) -> None:
        self._redis = redis
        self._held: dict[str, Any] = {key: redis.dump(key) for key in keys_of(broker)}

    def restore(self) -> None:
        with self._redis.pipeline(transaction=True) as transaction:  # no broker refreshes in between
            for key, value in self._held.items():
                transaction.restore(key, 0, value, replace=True)
            transaction.execute()


async def test_an_older_copy_of_the_log_is_another_log_and_gives_no_id_again(broker: RedisBroker, redis: Redis) -> None:
    await publish(broker, *"abc")
    copy = Copy(redis, broker)
    lost = await publish(broker, *"de")
    copy.restore()
    (after,) = await publish(broker, "f")
    assert after.epoch != lost[0].epoch
    assert texts(await replayed(broker)) == ["f"]


async def test_a_node_that_only_listens_notices_an_older_copy(broker: RedisBroker, redis: Redis) -> None:
    tail = broker.tail()
    await publish(broker, *"abc")
    copy = Copy(redis, broker)
    await publish(broker, *"de")
    await take(tail, 5)
    copy.restore()
    async with asyncio.timeout(PATIENCE):
        assert await anext(tail) == []
    assert (await broker.top()).offset == 0


async def test_an_older_copy_that_has_grown_past_what_was_seen_is_noticed_too(url: str, redis: Redis) -> None:
    """Brokers that knew nothing of the former log published in it, before one that did refreshed."""
    async with RedisBroker(url) as others:
        await publish(others, *"abc")
        before = Copy(redis, others)
        reused = await publish(others, *"fghij")
        after = Copy(redis, others)
    before.restore()
    async with RedisBroker(url) as broker:
        tail = broker.tail()
        lost = await publish(broker, *"de")
        assert lost == reused[:2]
        await take(tail, 2)
        after.restore()
        redis.client_kill_filter(_type="normal")  # nobody goes over to another server without connecting anew
        async with asyncio.timeout(PATIENCE):
            assert await anext(tail) == []
        assert (await broker.top()).epoch != lost[0].epoch


async def test_of_nodes_that_notice_at_once_one_begins_the_new_epoch(url: str, redis: Redis) -> None:
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(RedisBroker(url)) for _ in range(5)]
        await publish(nodes[0], *"abc")
        copy = Copy(redis, nodes[0])
        await publish(nodes[0], "d")
        await asyncio.gather(*(node.top(fresh=True) for node in nodes))
        copy.restore()
        positions = await asyncio.gather(*(node.publish(Draft(Event("x"))) for node in nodes))
        assert len({position.epoch for position in positions}) == 1
        assert sorted(position.offset for position in positions) == [1, 2, 3, 4, 5]
        tops = await asyncio.gather(*(node.top(fresh=True) for node in nodes))
        assert set(tops) == {max(positions)}


async def test_an_answer_of_an_epoch_that_is_over_says_nothing(broker: RedisBroker) -> None:
    epoch = broker._known.top.epoch
    broker._apply(epoch, [b"second", 0, 5])
    broker._apply("second", [b"third", 0, 7])
    broker._apply("second", [b"second", 0, 6])
    broker._apply(epoch, [b"fourth", 0, 9])
    assert await broker.top() == Position("third", 7)


# --- strangers in the stream ---


def strange_entries(epoch: str) -> list[tuple[dict[str, str | bytes], str]]:
    """Fields and ids that an XADD of another program, or another version of ours, may make."""
    good = envelope(Draft(Event("x")))
    head = f"{epoch} 1 1 0 ".encode()
    return [
        ({"junk": "x"}, "*"),
        ({"junk": "x"}, "0-*"),
        ({"v0": head + good}, "0-*"),
        ({"v2": head + good}, "0-*"),
        ({"v1": b"other 1 1 0 " + good}, "0-*"),
        ({"v1": head + good[:-1]}, "0-*"),
        ({"v1": head}, "0-*"),
        ({"v1": ""}, "0-*"),
        ({"v1": head + good, "more": "x"}, "0-*"),
        ({"v1": head + good}, "*"),
        ({"a": "b", "c": "d"}, "7-7"),
    ]


async def test_entries_that_are_not_ours_stop_nobody(url: str, redis: Redis) -> None:
    one = RedisBroker(url)
    async with RedisBroker(url) as other:
        strange = strange_entries(other._known.top.epoch)
        async with one:
            tail, positions = one.tail(), []
            for number, (fields, id) in enumerate(strange):
                positions += await publish(other, str(number))
                redis.xadd(one._log, fields, id=id)  # type: ignore[arg-type]
                positions += await publish(other, f"{number} more")
            placed = len([id for _, id in strange if id == "0-*"])
            received = await take(tail, len(positions) + placed)
            assert one.bad_envelopes >= placed
            for found in received, await replayed(one), await replayed(other):
                assert [item.position for item in found if not item.lost] == positions
                assert [item.position.offset for item in found] == list(range(1, positions[-1].offset + 1))
        assert [item.position for item in await other.newest(99, EVERYTHING, Audience(("c",)))] == positions
        assert await other.since(0) == (await other.oldest(), True)


async def test_strangers_are_logged_seldom(broker: RedisBroker, redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    tail = broker.tail()
    for _ in range(100):
        redis.xadd(broker._log, {"secret": "value"}, id="0-*")
    assert len(await take(tail, 100)) == 100
    assert broker.bad_envelopes == 100
    assert len(caplog.messages) == 7
    assert not [text for text in caplog.messages if "secret" in text or "value" in text]


async def test_strangers_before_ours_do_not_shift_a_search_by_time(url: str, redis: Redis) -> None:
    wall = Clock(100.0)
    async with RedisBroker(url, wall=wall) as broker:
        for number in range(5):
            redis.xadd(broker._log, {"junk": "x"}, id="0-*")
            await publish(broker, str(number))
            wall.now += 10
        for number in range(5):
            position, complete = await broker.since(100 + 10 * number)
            assert complete
            found = [item for item in await replayed(broker, position) if not item.lost]
            assert texts(found) == [str(each) for each in range(number, 5)]


def test_an_entry_is_read_as_it_was_written() -> None:
    stored = envelope(Draft(Event("a\nb", "tick"), ("t", "u"), frozenset("ab"), frozenset("c"), is_json=True))
    publication = publication_of((b"0-7", [b"v1", b"e 1500000 2 1 " + stored]), "e", 0.0)
    assert (publication.position, publication.topics, publication.time) == (Position("e", 7), ("t", "u"), 1.5)
    assert publication.event == Event("a\nb", "tick", "e-7")
    assert (publication.to, publication.exclude) == (frozenset("ab"), frozenset("c"))
    assert publication.is_json


# --- holes ---


async def test_what_somebody_deletes_in_the_log_is_a_gap(broker: RedisBroker, redis: Redis) -> None:
    positions = await publish(broker, *"abcdefg")
    redis.xdel(broker._log, "0-3", "0-4", "0-7")
    page = await broker.replay(await broker.oldest(), positions[-1], EVERYTHING)
    assert (texts(page.publications), page.end) == (["a", "b"], positions[1])
    page = await broker.replay(page.end, positions[-1], EVERYTHING)
    assert (page.start, texts(page.publications)) == (positions[3], ["e", "f"])
    page = await broker.replay(page.end, positions[-1], EVERYTHING)
    assert (page.start, page.publications, page.end) == (positions[-1], [], positions[-1])


async def test_what_was_trimmed_before_the_tail_read_it_is_told(own_server: RedisServer, own_redis: Redis) -> None:
    """The server goes on while this node is held up: here between two reads of the tail."""
    broker = RedisBroker(own_server.url(), history=5)
    async with Hub(broker) as hub, hub.subscribe() as subscriber, RedisBroker(own_server.url(), history=5):
        await hub.publish("first")
        await read_events(subscriber, lambda events: len(events) == 2)
        now = microseconds(time.time())
        with own_redis.pipeline(transaction=True) as transaction:  # nothing is read in between
            for number in range(2, 30):
                head = f"{broker._known.top.epoch} {now} {now + number} {now + number - 1} ".encode()
                content = head + envelope(Draft(Event(str(number))))
                transaction.xadd(broker._log, {"v1": content}, id=f"0-{number}", maxlen=5, approximate=False)
            transaction.execute()
        gap, *rest = await read_events(subscriber, lambda events: len(events) == 6)
    assert gap.type == "gap"
    assert '"reason":"trimmed"' in gap.data
    assert [event.data for event in rest] == [str(number) for number in range(25, 30)]


# --- a server that many share is held up by nobody ---


def fill(redis: Redis, broker: RedisBroker, count: int) -> None:
    """The log, with so many publications, made without publishing each."""
    now = microseconds(time.time())
    content = envelope(Draft(Event("x")))
    with redis.pipeline(transaction=True) as transaction:
        for offset in range(1, count + 1):
            head = f"{broker._known.top.epoch} {now} {now + offset} {now + offset - 1} ".encode()
            transaction.xadd(broker._log, {"v1": head + content}, id=f"0-{offset}")
        transaction.hset(broker._state, mapping={"top": count, "time": now, "stamp": now + count})
        transaction.execute()


def calls_of_the_script(redis: Redis) -> int:
    calls: int = redis.info("commandstats")["cmdstat_evalsha"]["calls"]
    return calls


async def test_a_log_that_is_much_too_long_is_trimmed_a_few_at_a_time(
    own_server: RedisServer, own_redis: Redis
) -> None:
    url, held = own_server.url(), 5_000
    async with RedisBroker(url) as broker:
        fill(own_redis, broker, held)
    own_redis.config_resetstat()
    async with RedisBroker(url, history=10) as broker:
        await until(lambda: own_redis.xlen(broker._log) == 10)
    assert calls_of_the_script(own_redis) >= held / 256


async def test_many_strangers_are_removed_a_few_at_a_time(own_server: RedisServer, own_redis: Redis) -> None:
    strangers = 5_000
    async with RedisBroker(own_server.url()) as broker:
        before = await publish(broker, *"ab")
        own_redis.config_resetstat()
        with own_redis.pipeline() as pipeline:
            for _ in range(strangers):
                pipeline.xadd(broker._log, {"junk": "x"})
            pipeline.execute()
        await until(lambda: own_redis.xlen(broker._log) == 2)
        assert calls_of_the_script(own_redis) >= strangers / 1_000
        assert await publish(broker, "c") == [before[-1].next()]
        assert texts(await replayed(broker)) == ["a", "b", "c"]


async def test_a_reader_is_given_no_more_at_once_than_a_page(broker: RedisBroker) -> None:
    await publish(broker, *["x"] * 100, *["x" * 100_000] * 40, *["x"] * 100)
    position, until = await broker.oldest(), await broker.top()
    while position != until:
        page = await broker.replay(position, until, EVERYTHING)
        assert sum(len(item.body) for item in page.publications) <= PAGE_BYTES + 101_000
        position = page.end


@dataclass
class Tail:
    """Reads of the tail: they wait while it is held, and their sizes in bytes are kept."""

    flowing: asyncio.Event
    sizes: list[int]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Tail:
    tail = Tail(asyncio.Event(), [])
    tail.flowing.set()

    async def read(connection: AbstractConnection, *arguments: Argument) -> Any:
        answer = await execute(connection, *arguments)
        if "BLOCK" in arguments:
            await tail.flowing.wait()
            if answer:
                tail.sizes.append(sum(len(fields[1]) for _, fields in answer[0][1]))
        return answer

    monkeypatch.setattr("sse_app.brokers.redis.execute", read)
    return tail


async def test_a_tail_that_lags_reads_large_publications_a_few_at_a_time(url: str, reads: Tail) -> None:
    async with RedisBroker(url) as broker, RedisBroker(url) as other:
        tail = broker.tail()
        reads.flowing.clear()
        await publish(other, *["x" * 200_000] * 40)
        reads.flowing.set()
        assert len(await take(tail, 40)) == 40
    assert max(reads.sizes) <= TAIL_BYTES


async def test_a_tail_begins_with_what_a_node_keeps_and_no_more(url: str, reads: Tail) -> None:
    async with RedisBroker(url) as other:
        await publish(other, *["x" * 250_000] * 100)
        async with RedisBroker(url) as broker:
            tail = broker.tail()
            await publish(other, "new")
            assert texts(await take(tail, 1)) == ["new"]
    assert 0 < sum(reads.sizes) <= BYTES


async def test_what_the_tail_has_not_read_yet_is_found_in_the_log(url: str, reads: Tail) -> None:
    async with RedisBroker(url) as broker:
        tail = broker.tail()
        await publish(broker, "a")
        assert texts(await take(tail, 1)) == ["a"]
        reads.flowing.clear()
        positions = await publish(broker, *"bc")
        assert texts(await broker.newest(2, EVERYTHING, Audience(("x",)))) == ["b", "c"]
        assert await broker.last(1, EVERYTHING, Audience(("x",))) == (positions[0], True)
        reads.flowing.set()


async def test_searches_at_once_read_the_log_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held = 3_000
    monkeypatch.setattr("sse_app.brokers.recent.COUNT", 100)
    async with RedisBroker(url) as broker:
        await publish(broker, *["x"] * held, topic="loud")
        tail = broker.tail()
        await publish(broker, "y", topic="loud")
        await take(tail, 1)
        read, found = broker._read, list[int]()

        async def count(*arguments: Any) -> Any:
            answer = await read(*arguments)
            found.append(len(answer[3]))
            return answer

        monkeypatch.setattr(broker, "_read", count)
        async with asyncio.timeout(PATIENCE):
            filters = [TopicFilter.parse([f"user/{number}"]) for number in range(50)]
            assert not any(await asyncio.gather(*(broker.newest(10, filter, None) for filter in filters)))
        assert held - 200 <= sum(found) <= held + 50 * 10


async def test_the_newest_are_read_page_by_page_however_many_are_asked_for(
    broker: RedisBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(broker, *["x"] * 1_000)
    read, looked_at = broker._read, list[int]()

    async def count(*arguments: Any) -> Any:
        answer = await read(*arguments)
        looked_at.append(len(answer[3]))
        return answer

    monkeypatch.setattr(broker, "_read", count)
    assert (await broker.last(1_000_000, EVERYTHING, Audience(("c",))))[0].offset == 0
    assert max(looked_at) <= PAGE_COUNT


# --- commands that are cancelled (H8) ---


async def test_cancelled_commands_leave_no_answer_to_another(broker: RedisBroker) -> None:
    """The class of CVE-2023-28858 and CVE-2023-28859: an answer that is read by who comes next."""
    dice = random.Random(1)
    acknowledged: dict[Position, str] = {}
    cancelled = 0

    async def command(number: int) -> None:
        match number % 4:
            case 0 | 1:
                acknowledged[await broker.publish(Draft(Event(str(number)), (f"t/{number}",)))] = str(number)
            case 2:
                found = await broker.newest(1, TopicFilter.parse(["t/0"]), Audience(("c",)))
                assert texts(found) in ([], ["0"])
            case 3:
                position, complete = await broker.since(microseconds(1))
                assert complete
                assert position.offset >= 0

    numbers = count()
    while cancelled < 1_000:
        task = asyncio.create_task(command(next(numbers)))
        await turns(dice.randrange(40))  # its answer takes some twenty
        cancelled += task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or task.exception() is None
    log = {item.position: item.event.data for item in await replayed(broker)}
    assert acknowledged
    assert acknowledged.items() <= log.items()


async def test_a_publication_that_is_cancelled_before_it_was_sent_is_never_sent(broker: RedisBroker) -> None:
    first, second = (asyncio.create_task(broker.publish(Draft(Event(text)))) for text in "ab")
    await asyncio.sleep(0)
    second.cancel()
    await first
    await publish(broker, "c")
    assert texts(await replayed(broker)) == ["a", "c"]


# --- many who ask at once ---


@asynccontextmanager
async def queue_to(serve: Serve) -> AsyncIterator[CommandQueue]:
    """A queue of commands to a server of our own, for readers."""

    async def on_connect(connection: AbstractConnection) -> None:
        await connection.on_connect()

    async with listening(serve) as port, asyncio.timeout(PATIENCE):
        pool = connections(f"redis://{HOST}:{port}", on_connect)
        queue = CommandQueue(pool, BrokerUnavailable("lost"), at_once=8, deadline=PATIENCE)
        task = asyncio.create_task(queue.run())
        try:
            yield queue
        finally:
            task.cancel()
            await asyncio.wait([task])
            await close(pool)


@pytest.mark.virtual_time
async def test_readers_wait_as_long_as_answers_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many they are: who gives up and asks again would only make the queue longer."""
    monkeypatch.setattr("sse_app.brokers.redis.connection.SILENCE", 1.0)

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while word := await reader.readline():
            if word == b"ECHO\r\n":
                await reader.readline()  # the length of what comes
                await asyncio.sleep(0.1)
                writer.write(b"+" + await reader.readline())
            elif word == b"CLIENT\r\n":
                writer.write(b"+OK\r\n")

    async with queue_to(slow) as queue:
        answers = await asyncio.gather(*(queue.call("ECHO", str(number)) for number in range(20)))
    assert answers == [str(number).encode() for number in range(20)]


async def test_whoever_still_waits_at_the_end_is_told() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (word := await reader.readline()) and word != b"ECHO\r\n":
            if word == b"CLIENT\r\n":
                writer.write(b"+OK\r\n")
        asked.set()
        await reader.read()

    asked = asyncio.Event()
    async with queue_to(silent) as queue:
        tasks = [asyncio.create_task(queue.call("ECHO", "x")) for _ in range(20)]
        await asked.wait()
    for task in tasks:
        with pytest.raises(BrokerUnavailable):
            await task


@pytest.mark.virtual_time
async def test_what_nobody_waits_for_any_more_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sse_app.brokers.redis.connection.CONNECT", 0.1)
    connected = 0

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connected
        connected += 1
        await reader.read()

    async with queue_to(silent) as queue:
        tasks = [asyncio.create_task(queue.call("ECHO", "x")) for _ in range(1_000)]
        await asyncio.sleep(0)
        for task in tasks[:-1]:
            task.cancel()
        with pytest.raises(BrokerUnavailable, match="nothing was published"):
            await tasks[-1]
        assert not queue._waiting
    assert connected == 1


# --- servers that refuse ---


async def test_a_server_without_memory_takes_nothing_and_is_read_on(own_server: RedisServer, own_redis: Redis) -> None:
    async with RedisBroker(own_server.url()) as broker:
        tail = broker.tail()
        await publish(broker, "a")
        own_redis.config_set("maxmemory", 1)
        try:
            with pytest.raises(LogFull, match="nothing was published"):
                await publish(broker, "b")
            assert texts(await replayed(broker)) == ["a"]
            await broker.top(fresh=True)
            broker.check()
        finally:
            own_redis.config_set("maxmemory", 0)
        await publish(broker, "c")
        assert texts(await take(tail, 2)) == ["a", "c"]


async def test_a_server_without_memory_gets_some_when_less_history_is_kept(
    own_server: RedisServer, own_redis: Redis
) -> None:
    url = own_server.url()
    async with RedisBroker(url) as broker:
        await publish(broker, *"abcde")
    own_redis.config_set("maxmemory", 1)
    try:
        async with RedisBroker(url, history=2) as broker:
            await until(lambda: own_redis.xlen(broker._log) == 2)
            assert texts(await replayed(broker)) == ["d", "e"]
    finally:
        own_redis.config_set("maxmemory", 0)


async def test_what_is_too_old_goes_from_a_server_without_memory_too(own_server: RedisServer, own_redis: Redis) -> None:
    clock = Clock(1_000.0)
    async with RedisBroker(own_server.url(), history_age=60, clock=clock) as broker:
        await publish(broker, *"ab")
        own_redis.config_set("maxmemory", 1)
        try:
            clock.now += 61
            await broker.top(fresh=True)
            assert own_redis.xlen(broker._log) == 0
            assert await broker.oldest() == await broker.top()
        finally:
            own_redis.config_set("maxmemory", 0)


async def test_a_replica_takes_nothing_until_it_is_the_master(
    own_server: RedisServer, own_redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async with RedisBroker(own_server.url()) as broker:
        await publish(broker, "a")
        own_redis.replicaof("127.0.0.1", "1")
        try:
            with pytest.raises(BrokerError, match="nothing was published"):
                await publish(broker, "b")
            await until(lambda: bool(broker._trouble))
            with pytest.raises(BrokerUnavailable):
                broker.check()
        finally:
            own_redis.replicaof("NO", "ONE")
        await until(lambda: not broker._trouble)
        await publish(broker, "c")
        assert texts(await replayed(broker)) == ["a", "c"]
    assert len([text for text in caplog.messages if "went away" in text]) == 1
    assert len([text for text in caplog.messages if "is back" in text]) == 1


async def test_a_script_that_is_forgotten_is_loaded_again(broker: RedisBroker, redis: Redis) -> None:
    await publish(broker, "a")
    redis.script_flush()
    with pytest.raises(BrokerUnavailable, match="nothing was published"):
        await publish(broker, "b")
    await publish(broker, "c")
    assert texts(await replayed(broker)) == ["a", "c"]


async def test_a_key_of_another_type_is_refused_and_kept(redis_server: RedisServer, redis: Redis) -> None:
    redis.set("{taken}:log", "theirs")
    with pytest.raises(BrokerUnavailable, match="WRONGTYPE"):
        async with RedisBroker(redis_server.url("taken")):
            pass
    assert redis.get("{taken}:log") == b"theirs"


# --- the end ---


async def test_it_can_be_closed_at_any_moment_of_a_reconnect(url: str, redis: Redis) -> None:
    for moment in range(15):
        async with asyncio.timeout(PATIENCE), RedisBroker(url) as broker:
            broker.tail()
            redis.client_kill_filter(_type="normal")
            for _ in range(moment):
                await asyncio.sleep(0.02)


async def test_nothing_is_left_when_it_is_closed(url: str, redis: Redis) -> None:
    before = len(asyncio.all_tasks())
    async with RedisBroker(f"{url}&client_name=short-lived") as broker:
        await publish(broker, "a")
        await replayed(broker)
        broker.subscribers_here = 1
        await until(lambda: redis.hlen(broker._nodes) == 1)
    assert len(asyncio.all_tasks()) == before
    assert redis.hlen(broker._nodes) == 0
    await until(lambda: "short-lived" not in {connection["name"] for connection in redis.client_list()})
