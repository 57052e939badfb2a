"""Gone is gone: however a client disconnects, nothing of its stream stays."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from sse_app import Hub
from sse_app.server import Protocol
from sse_app.testing import live
from tests.chaos.client import SMALL, Connection, Stream, publish_all, stats, streams, together, until, until_stats
from tests.chaos.conftest import Server, count


async def reset_after_the_request(port: int) -> None:
    connection = await Connection.open(port)
    await connection.send_head("GET", "/events")
    connection.reset()


async def reset_after_the_welcome(port: int) -> None:
    stream = await Stream.open(port)
    await stream.read()
    stream.connection.reset()


async def ask_for_the_head(port: int) -> None:
    async with await Connection.open(port) as connection:
        await connection.send_head("HEAD", "/events")
        assert (await connection.receive_head()).status == 200


async def leave_before_the_head_is_sent(port: int) -> None:
    async with await Connection.open(port) as connection:
        await connection.send(b"GET /events HTTP/1.1\r\nHost: 127")


async def leave_after_a_second_request(port: int) -> None:
    async with await Connection.open(port) as connection:
        await connection.send_head("GET", "/events")
        await connection.send_head("GET", "/events")


WAYS = [
    pytest.param(reset_after_the_request, count(ci=300, full=1_000), id="reset after the request"),
    pytest.param(reset_after_the_welcome, count(ci=100, full=300), id="reset after the welcome"),
    pytest.param(ask_for_the_head, count(ci=100, full=300), id="HEAD"),
    pytest.param(leave_before_the_head_is_sent, count(ci=100, full=300), id="closed before the head was sent"),
    pytest.param(leave_after_a_second_request, count(ci=100, full=300), id="closed after a pipelined request"),
]


@pytest.mark.parametrize(("leave", "times"), WAYS)
async def test_clients_that_leave_take_their_descriptors_along(
    server: Server, leave: Callable[[int], Awaitable[None]], times: int
) -> None:
    await stats(server.port)
    base = server.descriptors
    await together((leave(server.port) for _ in range(times)), at_once=50)

    async def all_gone() -> bool:
        return (await stats(server.port))["subscribers"] == 0 and server.descriptors <= base + 2

    await until(all_gone, "no subscriber is left, and no descriptor")


@pytest.mark.parametrize(("leave", "times"), WAYS)
async def test_clients_that_leave_take_their_tasks_along(leave: Callable[[int], Awaitable[None]], times: int) -> None:
    async def tasks(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(asyncio.all_tasks())))

    hub = Hub()
    app = Starlette(routes=[Route("/tasks", tasks), Mount("/", hub.app)], lifespan=hub.lifespan)
    with live(app, http=Protocol) as server:

        async def running() -> int:
            async with await Connection.open(server.port) as connection:
                return int((await connection.request("GET", "/tasks")).body)

        async with streams(server.port, 1):  # with the first stream sse-starlette starts a task that stays
            pass
        await until_stats(server.port, subscribers=0)
        base = await running()
        await together((leave(server.port) for _ in range(times)), at_once=50)

        async def all_gone() -> bool:
            return (await stats(server.port))["subscribers"] == 0 and await running() <= base + 1

        await until(all_gone, "no subscriber is left, and no task")


@pytest.mark.parametrize("way", [Connection.reset, Connection.close], ids=["reset", "closed"])
async def test_leaving_in_the_middle_of_a_long_replay_ends_it(
    server: Server, way: Callable[[Connection], None]
) -> None:
    await publish_all(server.port, [b"x" * 1_000] * 10_000)
    epoch = (await stats(server.port))["top"].partition("-")[0]
    base = server.descriptors
    for _ in range(20):
        stream = await Stream.open(server.port, f"{epoch}-0", receive_buffer=SMALL)
        await stream.until_offset(100)
        way(stream.connection)

    async def all_gone() -> bool:
        return (await stats(server.port))["subscribers"] == 0 and server.descriptors <= base + 2

    await until(all_gone, "no subscriber is left, and no descriptor")
    assert stream.offsets[-1] < 10_000
    async with await Stream.open(server.port, stream.cursor) as resumed:
        await resumed.until_offset(10_000)
    assert stream.offsets + resumed.offsets == list(range(1, 10_001))
