"""Streams that are ended while their clients read nothing: nothing more is written, and their connections go."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from starlette.requests import Request

from sse_app import Hub
from sse_app.grants import Grant
from sse_app.revocations import Revocation
from sse_app.server.protocol import Protocol
from sse_app.testing import VirtualTimeLoop
from tests.support.paths import Reader, reading, served

STALLED = 20
GONE = 35.0  # seconds


async def who(request: Request) -> Grant | None:  # in no thread, for which the clock would not wait
    return Grant.of(user=request.headers.get("x-user"), subscribe=["**"])


async def rest_of(reader: Reader) -> bytes:
    """Return what has arrived on a connection that is cut in the midst of its stream."""
    try:
        return await reader.to_the_end()
    except (AssertionError, ConnectionError):
        return bytes(reader.body)


@pytest.mark.virtual_time
async def test_revoked_streams_whose_clients_stall_get_nothing_more_and_are_gone_in_time() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    loop.patience = 0.2  # real seconds: nothing on loopback takes so long
    async with Hub(authorize=who) as hub, served(hub.app, Protocol) as server, AsyncExitStack() as stack:
        readers = [
            await stack.enter_async_context(reading(server.port, "/events", headers="X-User: ann\r\n"))
            for _ in range(STALLED)
        ]
        other = await stack.enter_async_context(reading(server.port, "/events", headers="X-User: bob\r\n"))
        sockets = [stream.transport.get_extra_info("socket") for stream in server.direct]
        assert len(sockets) == STALLED + 1
        for number in range(300):
            await hub.publish(f"{number} " + "x" * 2_000)
            await other.until(b"data: %d x" % number)
        assert hub.node.totals.lagging + sum(stream._paused for stream in server.direct) >= STALLED
        _, ended = await hub.node.revoke(Revocation.of(user="ann", lasts=3_600))
        assert ended == STALLED
        waiting = [stream.transport.get_write_buffer_size() for stream in server.direct]
        await hub.publish("afterwards")
        await other.until(b"afterwards")
        assert [stream.transport.get_write_buffer_size() for stream in server.direct] == waiting
        loop.patience = 0.01  # nothing is under way any more
        await asyncio.sleep(GONE)
        assert len(hub) == 1
        assert len(server.state.connections) == 1
        assert [socket.fileno() for socket in sockets].count(-1) == STALLED, "their descriptors are closed"
        for reader in readers:
            rest = await rest_of(reader)
            assert b"afterwards" not in rest
            assert b"299 " not in rest, "its socket was not full"
