"""Redis is killed, frozen, cut off and replaced under nodes that serve: each stream has all once, or a gap."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter

import pytest
from redis import Redis

from sse_app.brokers import open_broker
from sse_app.errors import BrokerError
from sse_app.events import Event
from sse_app.publication import Draft, Publication
from tests.chaos.client import Stream, offset_of, publish_all, until_notified
from tests.chaos.conftest import assert_in_time, count
from tests.chaos.launch import nothing_for
from tests.chaos.outages import (
    ANSWERED,
    BACK,
    NOTICED,
    Start,
    assert_whole,
    both,
    cut_off_from,
    has,
    killed_and_started_again_and_again,
    listening,
    node_killed_under_load,
    node_stopped_while_away,
    post,
    publishing,
    until_ready,
)
from tests.chaos.outages import node as node
from tests.chaos.proxy import Proxy, proxy_to
from tests.support.broker_process import HOST
from tests.support.peers import turns
from tests.support.redis_server import RedisServer, StartRedis


@pytest.fixture
def redis(start_redis: StartRedis) -> Iterator[RedisServer]:
    """A server of its own, which the test may kill and freeze. It acknowledges when the data is on its disk."""
    server = start_redis("--appendonly", "yes", "--appendfsync", "always")
    yield server
    server.kill()


# --- H1 ---


async def test_redis_is_killed_and_started_again_and_again(redis: RedisServer, node: Start) -> None:
    await killed_and_started_again_and_again(redis, node, answers_meanwhile={503})


# --- H2 ---


async def test_a_silent_connection_is_noticed_and_left(redis: RedisServer, node: Start) -> None:
    async with proxy_to(redis.port) as proxy:
        near, far = await both(node, redis, proxy)
        async with listening(far) as (stream,):
            await post(near, "before")
            proxy.hold()
            noticed = await until_ready(far, ready_is=False)
            begun = perf_counter()
            refused = await post(far, "lost")
            taken = perf_counter() - begun
            await post(near, "meanwhile")
            await nothing_for(count(ci=1, full=30))
            proxy.release()
            proxy.cut()  # as the peer does, which has long dropped the connection
            back = await until_ready(far)
            assert (await post(far, "after")).status == 200
            await until_notified(lambda: any(event.data == "after" for event in stream.events))
    assert_in_time("noticed", noticed, NOTICED)
    assert_in_time("answered", taken, ANSWERED)
    assert_in_time("back", back, BACK)
    assert refused.status in (503, 504)
    assert refused.json["code"] in ("broker_unavailable", "outcome_unknown")
    assert_whole(stream, [])
    assert [event.data for event in stream.events if event.data in ("before", "meanwhile", "after")] == [
        "before",
        "meanwhile",
        "after",
    ]


# --- H3, H7 ---


@pytest.mark.parametrize("history", [10_000, 100], ids=["all is held", "most is trimmed"])
async def test_a_node_that_was_cut_off_gets_what_it_missed_or_a_gap(
    redis: RedisServer, node: Start, history: int
) -> None:
    await cut_off_from(redis, node, missed=1_000, history=history)


# --- H4 ---


async def test_an_answer_that_is_lost_is_told_and_a_retry_publishes_nothing_twice(
    redis: RedisServer, node: Start
) -> None:
    async with proxy_to(redis.port) as proxy:
        near, far = await both(node, redis, proxy)
        async with listening(near, far) as streams:
            await post(far, "before")  # opens a connection, without which the next request would not be sent
            proxy.deaf = True
            begun = perf_counter()
            answer = await post(far, "once", idempotency_key="k")
            taken = perf_counter() - begun
            proxy.deaf = False
            connections = set(proxy.tasks)
            proxy.cut()
            await asyncio.wait(connections)  # so that the next request is not sent on one of them
            await until_ready(far)
            again = await post(far, "once", idempotency_key="k")
            last = await post(near, "last")
            for stream in streams:
                await until_notified(has(stream, last.json["id"]))
    assert (answer.status, answer.json["code"]) == (504, "outcome_unknown")
    assert_in_time("answered", taken, ANSWERED)
    assert again.status == 200
    for stream in streams:
        assert [event.id for event in stream.events if event.data == "once"] == [again.json["id"]]
        assert_whole(stream, [last.json["id"]])


# --- H6 ---


@asynccontextmanager
async def replicated(redis: RedisServer, replica: RedisServer) -> AsyncIterator[Proxy]:
    """The proxy between a master and its replica."""
    async with proxy_to(redis.port) as proxy:
        with replica.client() as client:
            client.replicaof(HOST, str(proxy.port))
            await asyncio.to_thread(until_replicating, client)
            yield proxy


def until_replicating(client: Redis) -> None:
    while client.info("replication")["master_link_status"] != "up":
        pass


async def test_a_failover_that_lacks_entries_is_told_to_everyone(
    redis: RedisServer, start_redis: StartRedis, node: Start
) -> None:
    replica = start_redis("--appendonly", "yes")
    async with proxy_to(redis.port) as address, replicated(redis, replica) as link:
        url = redis.url(port=address.port)
        servers = await asyncio.gather(node(url), node(url))
        async with listening(*servers) as streams:
            await publish_all(servers[0].port, [b"x"] * 200)
            with redis.client() as master:
                await asyncio.to_thread(master.wait, 1, 10_000)
            link.hold()
            await publish_all(servers[1].port, [b"lost"] * 100)
            for stream in streams:
                await until_notified(lambda stream=stream: len(stream.offsets) == 300)  # type: ignore[misc]
            async with publishing(servers[1]) as publisher:
                redis.kill()
                with replica.client() as client:
                    client.replicaof("NO", "ONE")
                address.upstreams = [replica.port]
                address.cut()
                await publisher.acknowledges_more()
            back = await until_ready(*servers)
            last = (await post(servers[0], "last")).json["id"]
            for stream in streams:
                await until_notified(has(stream, last))
    old, new = streams[0].events[1].id or "", last
    assert old.partition("-")[0] != new.partition("-")[0]
    assert_in_time("back", back, BACK)
    for stream in streams:
        (gap,) = stream.of_type("gap")
        assert json.loads(gap.data)["reason"] == "epoch"
        before, after = split_at(stream, gap)
        assert before[:300] == list(range(1, 301))
        assert after == list(range(1, offset_of(last) + 1)), "all of the new log, from its first"


def split_at(stream: Stream, gap: Event) -> tuple[list[int], list[int]]:
    index = stream.events.index(gap)
    sides = stream.events[:index], stream.events[index:]
    before, after = ([offset_of(event.id or "") for event in side if event.type == "message"] for side in sides)
    return before, after


async def test_sentinels_name_the_master_and_the_next_one(
    redis: RedisServer, start_redis: StartRedis, tmp_path: Path
) -> None:
    replica = start_redis("--appendonly", "yes")
    with replica.client() as client:
        client.replicaof(HOST, str(redis.port))
        await asyncio.to_thread(until_replicating, client)
    settings = tmp_path / "sentinel.conf"
    settings.write_text(
        f"sentinel monitor ours {HOST} {redis.port} 1\n"
        "sentinel down-after-milliseconds ours 500\n"
        "sentinel failover-timeout ours 2000\n"
    )
    sentinel = start_redis("--sentinel", file=settings)
    with sentinel.client() as client:
        await asyncio.to_thread(until_the_replica_is_registered, client)
    async with open_broker(f"redis+sentinel://{HOST}:1,{HOST}:{sentinel.port}/ours?prefix=x") as broker:
        tail = broker.tail()
        before = await broker.publish(Draft(Event("before")))
        with redis.client() as master:
            await asyncio.to_thread(master.wait, 1, 10_000)
        redis.kill()
        async with asyncio.timeout(30):
            position = None
            while position is None:
                try:
                    position = await broker.publish(Draft(Event("after"), idempotency_key="k"))
                except BrokerError:
                    await turns()
            assert position == before.next(), "nothing was lost"
            announced: list[Publication] = []
            while len(announced) < 2:
                announced += await anext(tail)
        assert [item.event.data for item in announced] == ["before", "after"]
    sentinel.kill()


def until_the_replica_is_registered(client: Redis) -> None:
    while client.sentinel_master("ours")["num-slaves"] != 1:  # type: ignore[index]
        pass


# --- G1, M4: the node's own end ---


async def test_a_node_is_killed_under_load_and_loses_nothing_acknowledged(redis: RedisServer, node: Start) -> None:
    await node_killed_under_load(redis, node)


async def test_sigterm_ends_a_node_whose_broker_is_away(redis: RedisServer, node: Start) -> None:
    await node_stopped_while_away(redis, node)
