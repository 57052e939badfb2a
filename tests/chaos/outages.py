"""Outages of a broker that nodes share: publishers and listeners meanwhile, and what they must have got."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from itertools import count as numbers
from pathlib import Path
from time import perf_counter
from typing import Protocol

import pytest

from tests.chaos.client import Answer, Connection, Stream, notify, offset_of, publish_all, until_notified
from tests.chaos.conftest import Server, assert_in_time, count
from tests.chaos.launch import launched, nothing_for
from tests.chaos.proxy import Proxy, proxy_to

ANSWERED = 2.0  # seconds; by then a publisher has an answer, whatever the broker does
BACK = 5.0  # seconds; by then all nodes are ready again after the broker is
NOTICED = 10.0  # seconds; by then a silent connection is noticed
DRAIN = 3

Start = Callable[..., Awaitable[Server]]


class Broker(Protocol):
    """The broker's server, which keeps the log."""

    port: int

    def url(self) -> str: ...

    def start(self) -> None: ...

    def kill(self) -> None: ...

    def freeze(self) -> None: ...

    def thaw(self) -> None: ...


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Start]:
    """A function that starts nodes. They may log that the broker is away."""
    with ExitStack() as stack:

        async def start(url: str, *flags: str) -> Server:
            starting = launched(tmp_path / "log", "--broker", url, "--drain", str(DRAIN), *flags)
            return await asyncio.to_thread(stack.enter_context, starting)

        yield start


async def post(server: Server, body: str, **headers: str) -> Answer:
    async with await Connection.open(server.port) as connection:
        return await connection.request("POST", "/broadcast", body.encode(), **headers)


async def ready(server: Server) -> bool:
    async with await Connection.open(server.port) as connection:
        return (await connection.request("GET", "/readyz")).status == 200


async def until_ready(*servers: Server, ready_is: bool = True) -> float:
    """Return the seconds until all servers are ready, or until none is."""
    begun = perf_counter()
    for server in servers:
        while await ready(server) != ready_is:
            pass  # each check is a request, which takes the time between two checks
    return perf_counter() - begun


class Publisher:
    """Publishes through one node, again and again, and records the answers."""

    def __init__(self, server: Server) -> None:
        self.acknowledged: list[str] = []
        self.statuses: set[int] = set()
        self.slowest = 0.0  # seconds
        self._server = server

    async def run(self) -> None:
        for number in numbers():
            begun = perf_counter()
            answer = await post(self._server, str(number))
            self.slowest = max(self.slowest, perf_counter() - begun)
            self.statuses.add(answer.status)
            if answer.status == 200:
                self.acknowledged.append(answer.json["id"])
            notify()

    async def acknowledges_more(self) -> None:
        before = len(self.acknowledged)
        await until_notified(lambda: len(self.acknowledged) > before)


@asynccontextmanager
async def publishing(server: Server) -> AsyncIterator[Publisher]:
    publisher = Publisher(server)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(publisher.run())
        await publisher.acknowledges_more()
        yield publisher
        task.cancel()


@asynccontextmanager
async def listening(*servers: Server) -> AsyncIterator[list[Stream]]:
    """A stream of each server, each read by a task of its own."""
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(await Stream.open(server.port)) for server in servers]
        for stream in streams:
            await stream.until(lambda stream=stream: bool(stream.events))  # type: ignore[misc]
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        for stream in streams:
            stack.callback(tasks.create_task(stream.to_the_end()).cancel)
        yield streams


def assert_whole(stream: Stream, acknowledged: list[str]) -> None:
    """Assert that the stream has all that was acknowledged, and no publication missing, twice or out of order."""
    assert not stream.of_type("gap")
    first = stream.offsets[0]
    assert stream.offsets == list(range(first, first + len(stream.offsets)))
    ids = {event.id for event in stream.events}
    assert ids.issuperset(acknowledged)


def has(stream: Stream, id: str) -> Callable[[], bool]:
    return lambda: any(event.id == id and event.type == "message" for event in reversed(stream.events))


async def both(node: Start, broker: Broker, proxy: Proxy, *flags: str) -> tuple[Server, Server]:
    """Two nodes with one log, the second of them through the proxy."""
    near = broker.url()
    far = near.replace(str(broker.port), str(proxy.port))
    first = await node(near, *flags)  # one after the other: the log has the limits of the node that started last
    return first, await node(far, *flags)


async def killed_and_started_again_and_again(broker: Broker, node: Start, answers_meanwhile: set[int]) -> None:
    """H1. ``answers_meanwhile``: the statuses that a publisher may get once nodes have noticed."""
    url = broker.url()
    nodes = await asyncio.gather(node(url), node(url))
    slowest_back = 0.0
    async with listening(*nodes) as streams, publishing(nodes[0]) as publisher:
        for _ in range(count(ci=2, full=50)):
            broker.kill()
            await until_ready(*nodes, ready_is=False)
            publisher.statuses.clear()
            await until_notified(lambda: bool(publisher.statuses))  # the requests from before are answered
            publisher.statuses.clear()
            await nothing_for(count(ci=1, full=5))
            await until_notified(lambda: bool(publisher.statuses))
            assert publisher.statuses <= answers_meanwhile
            broker.start()
            slowest_back = max(slowest_back, await until_ready(*nodes))
            await publisher.acknowledges_more()
            for stream in streams:
                await until_notified(has(stream, publisher.acknowledged[-1]))
        newest = publisher.acknowledged[-1]
        for stream in streams:
            await until_notified(has(stream, newest))
    assert_in_time("answered", publisher.slowest, ANSWERED)
    assert_in_time("back", slowest_back, BACK)
    for stream in streams:
        assert_whole(stream, publisher.acknowledged[: publisher.acknowledged.index(newest)])


async def cut_off_from(broker: Broker, node: Start, *, missed: int, history: int) -> None:
    """H3, and H7 where more is missed than the log holds: the node's streams get all of it, or a gap."""
    async with proxy_to(broker.port) as proxy:
        near, far = await both(node, broker, proxy, "--history", str(history))
        async with listening(near, far) as (whole, stream):
            await post(near, "before")
            await until_notified(lambda: bool(stream.offsets))
            proxy.closed = True
            proxy.cut()
            await until_ready(far, ready_is=False)
            await publish_all(near.port, [b"x"] * missed)
            await nothing_for(count(ci=0, full=30))
            proxy.closed = False
            back = await until_ready(far)
            last = (await post(far, "after")).json["id"]
            seconds = back + await until_notified(has(stream, last))
            await until_notified(has(whole, last))
    assert_in_time("back with all of it", seconds, BACK)
    assert_whole(whole, [last])
    if history > missed:
        assert_whole(stream, [last])
        assert len(stream.offsets) == missed + 2
    else:
        (gap,) = stream.of_type("gap")
        notice = json.loads(gap.data)
        assert notice["reason"] == "trimmed"
        first = offset_of(notice["oldest"])
        assert stream.offsets == [1, *range(first, missed + 3)]


async def node_killed_under_load(broker: Broker, node: Start) -> None:
    """G1: nothing acknowledged is lost or doubled, neither on a stream that is open all the time nor in the log."""
    url, flags = broker.url(), ("--history", "1000000")
    observer = await node(url, *flags)
    acknowledged: list[str] = []
    async with listening(observer) as (stream,):
        for _ in range(count(ci=3, full=100)):
            victim = await node(url, *flags)
            publishers = [Publisher(victim) for _ in range(8)]
            running = [asyncio.create_task(publisher.run()) for publisher in publishers]
            await until_notified(lambda: all(len(publisher.acknowledged) >= 25 for publisher in publishers))  # noqa: B023
            victim.kill()
            await asyncio.wait(running)  # their connections broke
            assert all(isinstance(task.exception(), ConnectionError) for task in running)
            for publisher in publishers:
                assert publisher.acknowledged == sorted(publisher.acknowledged, key=offset_of)
                acknowledged += publisher.acknowledged
        last = (await post(observer, "last")).json["id"]
        await until_notified(has(stream, last))
        epoch = last.partition("-")[0]
        async with await Stream.open(observer.port, f"{epoch}-0") as replay:
            await replay.until(has(replay, last))
    for each in (stream, replay):
        assert_whole(each, acknowledged)
        assert each.offsets[0] == 1
    print(f"{len(acknowledged)} acknowledged")


async def node_stopped_while_away(broker: Broker, node: Start) -> None:
    """M4: SIGTERM ends a node in time, with a bye on every stream."""
    server = await node(broker.url())
    async with listening(server) as (stream,):
        broker.freeze()
        await until_ready(server, ready_is=False)
        begun = perf_counter()
        server.terminate()
        await server.exit_code()
        taken = perf_counter() - begun
        await until_notified(lambda: stream.over)
    broker.thaw()
    assert stream.of_type("bye")
    assert_in_time("ended", taken, DRAIN + 2)
