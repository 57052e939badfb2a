"""NATS is killed, cut off, frozen and emptied under nodes that serve: each stream has all once, or a gap."""

import asyncio
import json
from collections.abc import Iterator
from time import perf_counter

import nats
import pytest

from sse_app.brokers import open_broker
from sse_app.brokers.nats import log
from sse_app.errors import BrokerError, BrokerUnavailable, OutcomeUnknown
from sse_app.events import Event
from sse_app.publication import Draft
from tests.chaos.client import PATIENCE, offset_of, publish_all, until_notified
from tests.chaos.conftest import Server, assert_in_time, count
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
    until_ready,
)
from tests.chaos.outages import node as node
from tests.chaos.proxy import Recut, proxy_to, unchanged
from tests.support.broker_process import HOST
from tests.support.nats_server import NatsServer, StartNats
from tests.support.peers import turns, until


@pytest.fixture
def server(start_nats: StartNats) -> Iterator[NatsServer]:
    """A server of its own, which the test may kill, freeze and empty."""
    server = start_nats()
    yield server
    server.kill()


async def until_published(server: Server, body: str, **headers: str) -> str:
    """Publish, and return the id. Until then the broker may be away; each attempt is a request, which takes the time
    between two attempts.
    """
    while (answer := await post(server, body, **headers)).status != 200:
        assert answer.status == 503
    return str(answer.json["id"])


# --- H1 ---


async def test_nats_is_killed_and_started_again_and_again(server: NatsServer, node: Start) -> None:
    await killed_and_started_again_and_again(server, node, answers_meanwhile={503, 504})


async def test_connections_that_break_under_load_leave_nothing_behind(
    server: NatsServer, impatient_nats: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections die with much to send; then nats-py's tasks and sockets must be gone."""
    tasks = asyncio.all_tasks()
    async with proxy_to(server.port) as proxy:
        async with open_broker(server.url(port=proxy.port)) as broker:
            monkeypatch.setattr("sse_app.brokers.nats.COMMAND", 0.5)  # seconds; opening was before, with more time
            monkeypatch.setattr(log, "ANSWER", 0.5)
            tail = broker.tail()
            outcomes = set[type[BaseException] | None]()

            async def publish() -> None:
                try:
                    await broker.publish(Draft(Event("x" * 10_000)))
                    outcomes.add(None)
                except BrokerError as error:
                    outcomes.add(type(error))

            for round in range(count(ci=2, full=30)):
                async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
                    for _ in range(1_000):
                        group.create_task(publish())
                    await anext(tail)
                    if round % 2:
                        proxy.hold()
                    else:
                        proxy.cut()
                proxy.cut()
                proxy.release()
                while True:
                    try:
                        await broker.publish(Draft(Event("back")))
                        break
                    except BrokerError:
                        await turns()
        assert outcomes == {None, BrokerUnavailable, OutcomeUnknown}
    await until(lambda: asyncio.all_tasks() == tasks)


# --- H2 ---


async def test_a_silent_connection_is_noticed_and_left(server: NatsServer, node: Start) -> None:
    async with proxy_to(server.port) as proxy:
        near, far = await both(node, server, proxy)
        async with listening(far) as (stream,):
            await post(near, "before")
            await until_notified(lambda: bool(stream.offsets))
            proxy.hold()
            begun = perf_counter()
            unknown = await post(far, "lost")
            taken = perf_counter() - begun
            await until_ready(far, ready_is=False)
            noticed = perf_counter() - begun
            refused = await post(far, "refused")
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
    assert (unknown.status, unknown.json["code"]) == (504, "outcome_unknown")
    assert (refused.status, refused.json["code"]) == (503, "broker_unavailable")
    assert_whole(stream, [])
    known = [event.data for event in stream.events if event.type == "message" and event.data != "lost"]
    assert known == ["before", "meanwhile", "after"]


# --- H3, H7 ---


@pytest.mark.parametrize("history", [10_000, 100], ids=["all is held", "most is trimmed"])
async def test_a_node_that_was_cut_off_gets_what_it_missed_or_a_gap(
    server: NatsServer, node: Start, history: int
) -> None:
    await cut_off_from(server, node, missed=1_000 if history > 1_000 else log.SLACK + history + 100, history=history)


# --- H4 ---


def silent_from(word: bytes) -> Recut:
    """A recut for the proxy: from the first answer with this word on nothing passes."""
    silent = False

    def recut(data: bytes) -> Iterator[bytes]:
        nonlocal silent
        silent |= word in data
        if not silent:
            yield data

    return recut


async def test_an_answer_that_is_lost_is_told_and_a_retry_publishes_nothing_twice(
    server: NatsServer, node: Start
) -> None:
    async with proxy_to(server.port) as proxy:
        # The acknowledgement of the log is held back, that of the key passes.
        proxy.recut = silent_from(b'"stream":"SSE_LOG_')
        near, far = await both(node, server, proxy)
        async with listening(near, far) as streams:
            begun = perf_counter()
            answer = await post(far, "once", idempotency_key="k")
            taken = perf_counter() - begun
            proxy.recut = unchanged
            proxy.cut()
            again = await until_published(far, "once", idempotency_key="k")
            last = await post(near, "last")
            for stream in streams:
                await until_notified(has(stream, last.json["id"]))
    assert (answer.status, answer.json["code"]) == (504, "outcome_unknown")
    assert_in_time("answered", taken, ANSWERED)
    for stream in streams:
        assert [event.id for event in stream.events if event.data == "once"] == [again]
        assert_whole(stream, [last.json["id"]])


# --- H9 ---


async def test_three_nodes_and_a_stranger(server: NatsServer, node: Start) -> None:
    """Each publication arrives once on each stream, and a gap in the place of each message of another program."""
    url = server.url("shared")
    nodes = await asyncio.gather(*(node(url) for _ in range(3)))
    each = count(ci=300, full=3_400)
    async with listening(*nodes) as streams:
        client = await nats.connect(f"nats://{HOST}:{server.port}")
        js = client.jetstream()
        config = (await js.stream_info("SSE_LOG_shared")).config
        assert config.subjects is not None

        async def stranger() -> None:
            for strange in (b"junk", b'{"v":0,"data":"older"}') * 50:
                await js.publish(config.subjects[0], strange)  # type: ignore[index]

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(stranger())
            for one in nodes:
                tasks.create_task(publish_all(one.port, [b"x"] * each))
        await client.close()
        last = (await post(nodes[0], "last")).json["id"]
        for stream in streams:
            await until_notified(has(stream, last))
    assert offset_of(last) == 3 * each + 100 + 1
    for stream in streams:
        assert stream.offsets == sorted(set(stream.offsets))
        assert len(stream.offsets) == 3 * each + 1
        missing = [offset for gap in stream.of_type("gap") for offset in _lost(gap)]
        assert sorted(missing + stream.offsets) == [*range(1, offset_of(last) + 1)]


def _lost(gap: Event) -> range:
    """The offsets that a gap names as unreadable for this node."""
    notice = json.loads(gap.data)
    assert notice["reason"] == "lost"
    return range(offset_of(notice["requested"]) + 1, offset_of(gap.id or "") + 1)


# --- the log is lost ---


async def test_a_stream_that_is_deleted_under_nodes_is_told_to_everyone(server: NatsServer, node: Start) -> None:
    url = server.url("shared")
    nodes = await asyncio.gather(node(url), node(url))
    async with listening(*nodes) as streams:
        old = (await post(nodes[0], "before")).json["id"]
        for stream in streams:
            await until_notified(has(stream, old))
        client = await nats.connect(f"nats://{HOST}:{server.port}")
        begun = perf_counter()
        await client.jetstream().delete_stream("SSE_LOG_shared")
        await client.close()
        for stream in streams:
            await until_notified(lambda stream=stream: bool(stream.of_type("gap")))  # type: ignore[misc]
        seconds = perf_counter() - begun
        new = await until_published(nodes[1], "after")
        for stream in streams:
            await until_notified(has(stream, new))
    assert_in_time("the gap", seconds, BACK)
    assert old.partition("-")[0] != new.partition("-")[0]
    for stream in streams:
        (gap,) = stream.of_type("gap")
        assert json.loads(gap.data)["reason"] == "epoch"
        assert [event.id for event in stream.events if event.type == "message"] == [old, new]


# --- G1, M4: the node's own end ---


async def test_a_node_is_killed_under_load_and_loses_nothing_acknowledged(server: NatsServer, node: Start) -> None:
    await node_killed_under_load(server, node)


async def test_sigterm_ends_a_node_whose_broker_is_away(server: NatsServer, node: Start) -> None:
    await node_stopped_while_away(server, node)
