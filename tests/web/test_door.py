"""A drain that begins when a foreign server closes the sockets that it listens on."""

import asyncio

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount, Route

from sse_app import EventDecoder, Hub
from sse_app.server.protocol import Protocol
from sse_app.testing import UvicornOptions, live
from sse_app.web.door import Door
from tests.support.peers import PATIENCE, turns


@pytest.mark.virtual_time
async def test_the_door_is_closed_when_its_server_listens_no_longer() -> None:
    ours, other = [await asyncio.start_server(lambda *streams: None, "127.0.0.1", 0) for _ in range(2)]
    door = Door()
    closed = asyncio.create_task(door.closed())
    # The address of the server in a request: none, of another machine, of this process.
    for server in (None, ("testserver", 80), ours.sockets[0].getsockname()):
        door.entered(server)
        await turns(2)
    other.close()
    await asyncio.sleep(60)
    assert not closed.done()
    ours.close()
    async with asyncio.timeout(PATIENCE):
        await closed


# Our server counts a stream when it begins, so that with a limit of 1 no other request would surely get in.
@pytest.mark.parametrize(("http", "requests"), [("httptools", 1), ("h11", 1), (Protocol, 2)])
def test_streams_end_with_bye_when_uvicorn_has_had_enough_requests(http: str | type[Protocol], requests: int) -> None:
    hub = Hub(drain=PATIENCE)
    routes = [Route("/", lambda request: Response("hello")), Mount("/hub", hub.app)]
    app = Starlette(routes=routes, lifespan=hub.lifespan)
    options: UvicornOptions = {"http": http, "limit_max_requests": requests, "timeout_graceful_shutdown": PATIENCE}
    decoder = EventDecoder()
    with (
        live(app, server_class=uvicorn.Server, **options) as server,
        httpx.Client(base_url=server.url, timeout=PATIENCE) as client,
        client.stream("GET", "/hub/events") as response,
    ):
        chunks = response.iter_raw()
        assert [event.type for event in decoder.feed(next(chunks))] == ["welcome"]
        assert client.get("/").text == "hello"
        rest = [event.type for chunk in chunks for event in decoder.feed(chunk)]  # read to the final chunk
    assert rest == ["bye"]


@pytest.mark.virtual_time
async def test_a_door_that_was_reset_waits_for_the_next_stream_at_the_same_server() -> None:
    ours = await asyncio.start_server(lambda *streams: None, "127.0.0.1", 0)
    address = ours.sockets[0].getsockname()
    door = Door()
    door.entered(address)
    door.reset()
    closed = asyncio.create_task(door.closed())
    ours.close()
    await asyncio.sleep(60)
    assert not closed.done()
    again = await asyncio.start_server(lambda *streams: None, *address)
    door.entered(address)
    await turns(2)
    again.close()
    async with asyncio.timeout(PATIENCE):
        await closed
