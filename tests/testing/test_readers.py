import asyncio
import json

import httpx
import pytest

from sse_app import Event, Hub
from sse_app.testing import Recording, SlowReader, StreamingASGITransport, live, replay
from tests.support.peers import PATIENCE

BODY = b"id: e-1\ndata: one\n\n:\n\nid: e-2\nevent: x\ndata: two\n\n"
EVENTS = [Event("one", id="e-1"), Event("two", "x", "e-2")]


def client_of(app: object) -> httpx.AsyncClient:
    transport = StreamingASGITransport(app)  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=PATIENCE)


@pytest.mark.parametrize("size", [1, 2, 7, 1_000])
@pytest.mark.parametrize("chunk", [None, 3, 1_000])
async def test_it_reads_so_many_bytes_at_a_time_and_loses_none(size: int, chunk: int | None) -> None:
    app = replay(Recording(BODY), size=chunk, hold=False)
    async with client_of(app) as client, client.stream("GET", "/") as response:
        reader, came = SlowReader(response, size), list[Event]()
        while not reader.ended:
            before = reader.bytes_read
            came += await reader.read()
            assert 0 <= reader.bytes_read - before <= size
        assert came == reader.events == EVENTS
        assert reader.bytes_read == len(BODY)
        assert await reader.read() == []


async def test_its_events_are_read_one_by_one() -> None:
    async with client_of(replay(Recording(BODY))) as client, client.stream("GET", "/") as response:
        reader = SlowReader(response, 5)
        assert await anext(reader) == EVENTS[0]
        assert reader.bytes_read == len(b"id: e-1\ndata: one\n\n")
        assert [await anext(reader)] == EVENTS[1:]
    async with client_of(replay(Recording(BODY), hold=False)) as client, client.stream("GET", "/") as response:
        assert [event async for event in SlowReader(response)] == EVENTS


@pytest.mark.virtual_time
async def test_a_hub_tells_a_reader_that_is_too_slow_what_it_has_missed() -> None:
    """The queue of the stream holds 3, the log 5: of 100 publications the reader gets the last ones, and a gap."""
    async with (
        Hub(queue=3, history=5) as hub,
        client_of(hub.app) as client,
        client.stream("GET", "/events") as response,
    ):
        reader, came = SlowReader(response, 64), list[Event]()
        assert (await anext(reader)).type == "welcome"
        for number in range(100):
            await hub.publish(number)
            await asyncio.sleep(0.01)  # virtual seconds: each is delivered before the next
        while not came or came[-1].data != "99":
            came.append(await anext(reader))
    [gap] = [event for event in came if event.type == "gap"]
    assert json.loads(gap.data)["reason"] == "trimmed"
    assert [event.data for event in came[-5:]] == ["95", "96", "97", "98", "99"]


async def test_over_a_socket_too() -> None:
    with live(replay(Recording(BODY), hold=False)) as server:
        async with httpx.AsyncClient(timeout=PATIENCE) as client, client.stream("GET", server.url) as response:
            assert [event async for event in SlowReader(response, 3)] == EVENTS


async def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="at least 1 byte"):
        SlowReader(httpx.Response(200), 0)
    with pytest.raises(ValueError, match="no event stream: status 503"):
        SlowReader(httpx.Response(503))
