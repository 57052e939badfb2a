"""The sockets that a process listens on, and a drain that begins when a foreign server closes them."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount, Route

from sse_app import EventDecoder, Hub
from sse_app.listening import Door, Listener, listeners
from sse_app.server.protocol import Protocol
from sse_app.testing import UvicornOptions, live
from tests.support.peers import PATIENCE, turns


def found(listening: socket.socket) -> list[Listener]:
    return [listener for listener in listeners() if listener.descriptor == listening.fileno()]


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """A listening socket as a server on an event loop has it."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.setblocking(False)
        yield made


def test_a_listening_socket_is_found_by_the_address_of_its_connections(listening: socket.socket) -> None:
    port = listening.getsockname()[1]
    [listener] = found(listening)
    assert listener.serves(("127.0.0.1", port))
    assert listener.serves(["::1", str(port)])  # as granian and daphne have it
    assert not listener.serves(("127.0.0.1", port + 1))
    assert not listener.serves(("/run/app.sock", None))
    assert listener.open
    listening.close()
    assert not listener.open


def test_a_unix_socket_is_found_by_its_path(tmp_path: Path) -> None:
    path = str(tmp_path / "app.sock")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.setblocking(False)
        listening.bind(path)
        listening.listen()
        [listener] = found(listening)
        assert listener.serves((path, None))
        assert not listener.serves(("127.0.0.1", 8000))


def test_a_descriptor_that_another_socket_has_now_is_no_open_listener(listening: socket.socket) -> None:
    [listener] = found(listening)
    with socket.socket() as other:
        os.dup2(other.fileno(), listening.fileno())
        assert not listener.open


def test_what_does_not_listen_on_a_loop_is_none_and_stays_as_it_is(listening: socket.socket) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as of_a_thread,
        socket.create_connection(listening.getsockname()) as client,
        socket.socket(type=socket.SOCK_DGRAM) as datagrams,
    ):
        client.setblocking(False)
        datagrams.setblocking(False)
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(5)
        try:
            assert not [listener for other in (of_a_thread, client, datagrams) for listener in found(other)]
            assert found(listening)
        finally:
            socket.setdefaulttimeout(before)
        assert os.get_blocking(of_a_thread.fileno())


@pytest.mark.virtual_time
async def test_the_door_is_closed_when_its_server_listens_no_longer() -> None:
    ours, other = [await asyncio.start_server(lambda *streams: None, "127.0.0.1", 0) for _ in range(2)]
    door = Door()
    closed = asyncio.create_task(door.closed())
    for server in (None, ("testserver", 80), ours.sockets[0].getsockname()):  # not said; not here; here
        door.entered(server)
        await turns(2)
    other.close()
    await asyncio.sleep(60)
    assert not closed.done()
    ours.close()
    async with asyncio.timeout(PATIENCE):
        await closed


# Ours counts a stream when it begins: with a limit of 1 nobody would be sure to get in after it.
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
        rest = [event.type for chunk in chunks for event in decoder.feed(chunk)]  # to the final chunk
    assert rest == ["bye"]
