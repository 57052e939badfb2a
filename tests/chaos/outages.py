"""Nodes that share a broker, who publishes and listens there while it is ill-treated, and what they must have got."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from itertools import count as numbers
from pathlib import Path
from time import perf_counter

import pytest

from tests.chaos.client import Answer, Connection, Stream
from tests.chaos.conftest import Server
from tests.chaos.launch import launched

ANSWERED = 2.0  # seconds in which a publisher is answered, whatever the broker does
BACK = 5.0  # seconds in which everyone is back after the broker is
NOTICED = 10.0  # seconds in which a silent connection is noticed
DRAIN = 3

Start = Callable[..., Awaitable[Server]]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Start]:
    """Starts nodes; they may log that the broker is away."""
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
    """Seconds until all are ready again, or are not any more."""
    begun = perf_counter()
    for server in servers:
        while await ready(server) != ready_is:  # noqa: ASYNC110  # it is another process
            await asyncio.sleep(0.02)
    return perf_counter() - begun


class Publisher:
    """Publishes through one node, again and again, and keeps what it was answered."""

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
            else:
                await asyncio.sleep(0.02)  # it was told to try again

    async def acknowledges_more(self) -> None:
        before = len(self.acknowledged)
        while len(self.acknowledged) == before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


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
    """A stream from each, read all the time."""
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(await Stream.open(server.port)) for server in servers]
        for stream in streams:
            await stream.until(lambda stream=stream: bool(stream.events))  # type: ignore[misc]
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        for stream in streams:
            stack.callback(tasks.create_task(stream.to_the_end()).cancel)
        yield streams


async def until(condition: Callable[[], bool]) -> float:
    """Seconds that it took. What is waited for comes by another task of the test."""
    begun = perf_counter()
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return perf_counter() - begun


def assert_whole(stream: Stream, acknowledged: list[str]) -> None:
    """Everything acknowledged is in it, and no publication is missing, twice or out of order."""
    assert not stream.of_type("gap")
    first = stream.offsets[0]
    assert stream.offsets == list(range(first, first + len(stream.offsets)))
    ids = {event.id for event in stream.events}
    assert ids.issuperset(acknowledged)


def has(stream: Stream, id: str) -> Callable[[], bool]:
    return lambda: any(event.id == id and event.type == "message" for event in reversed(stream.events))
