import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import httpx2
import pytest

from sse_app import Client, Hub, create_app
from sse_app.testing import (
    CuttingTransport,
    Loss,
    Recording,
    StreamingASGITransport,
    assert_received,
    events,
    live,
    replay,
)
from tests.support.peers import PATIENCE

BODY = b"id: e-1\ndata: one\n\nid: e-2\ndata: two\n\n"
LIBRARIES = pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])


@asynccontextmanager
async def cutting(*after: int, library: Any = httpx, size: int = 7, **options: Any) -> AsyncIterator[Any]:
    """A client of a replayed recording, whose streams are cut after so many bytes."""
    app = replay(Recording(BODY), size=size, hold=False)
    transport = CuttingTransport(StreamingASGITransport(app), after, **options)
    async with library.AsyncClient(transport=transport, base_url="http://localhost", timeout=PATIENCE) as client:
        yield client


async def read(client: Any, url: str = "/") -> bytes:
    """Read the body up to its end, or to the error that ends it."""
    body = b""
    async with client.stream("GET", url) as response:
        try:
            async for chunk in response.aiter_raw():
                body += chunk
        except (httpx.TransportError, httpx2.TransportError) as error:
            body += f"<{type(error).__module__} {type(error).__name__}>".encode()
    return body


@LIBRARIES
@pytest.mark.parametrize(
    ("loss", "end"), [(Loss.RESET, b"<%s ReadError>"), (Loss.CLOSED, b"<%s RemoteProtocolError>"), (Loss.ENDED, b"")]
)
async def test_a_stream_ends_behind_any_byte_as_a_lost_connection_ends(library: Any, loss: Loss, end: bytes) -> None:
    end = end.replace(b"%s", library.__name__.encode())
    async with cutting(*range(len(BODY)), library=library, loss=loss) as client:
        for cut in range(len(BODY)):
            assert await read(client) == BODY[:cut] + end
        assert client._transport.cuts == len(BODY)
        assert await read(client) == BODY


async def test_the_error_names_the_request() -> None:
    async with cutting(3) as client, client.stream("GET", "/somewhere") as response:
        with pytest.raises(httpx.ReadError, match="reset") as raised:
            await response.aread()
    assert raised.value.request.url.path == "/somewhere"


async def test_a_stream_that_is_shorter_ends_by_itself_and_is_no_cut() -> None:
    async with cutting(len(BODY) + 1, 3) as client:
        assert await read(client) == BODY
        assert client._transport.cuts == 0
        assert await read(client) == BODY[:3] + b"<httpx ReadError>"


async def test_a_cut_does_not_wait_for_the_next_byte() -> None:
    """The replay holds its stream open and sends nothing more, not even a heartbeat."""
    transport = CuttingTransport(StreamingASGITransport(replay(Recording(BODY))), [len(BODY)])
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as client:
        assert await read(client) == BODY + b"<httpx ReadError>"


async def test_answers_that_are_no_stream_pass_whole_and_are_not_counted() -> None:
    async with Hub() as hub:
        transport = CuttingTransport(StreamingASGITransport(hub.app), [5])
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=PATIENCE) as client:
            assert (await client.post("/broadcast", content="x")).json()["id"]
            assert (await client.get("/stats")).json()["top"]
            assert transport.cuts == 0
            assert len(await read(client, "/events")) == 5 + len("<httpx ReadError>")


async def test_the_app_sees_that_its_client_has_gone() -> None:
    async with Hub() as hub:
        transport = CuttingTransport(StreamingASGITransport(hub.app), [50])
        http = httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=PATIENCE)
        async with http as client, client.stream("GET", "/events") as response:
            assert len(hub) == 1
            with pytest.raises(httpx.ReadError):
                await anext(events(response))
            assert len(hub) == 0


async def test_the_lifespan_and_the_end_are_those_of_the_transport_within() -> None:
    app = create_app()
    transport = CuttingTransport(StreamingASGITransport(app, lifespan=True), [])
    http = httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=PATIENCE)
    async with http as client, client.stream("GET", "/events") as response:
        assert (await anext(events(response))).type == "welcome"
        assert len(app.state.hub) == 1
    assert len(app.state.hub) == 0
    assert not app.state.hub.started


@LIBRARIES
async def test_streams_over_a_real_socket_are_cut_too(library: Any) -> None:
    with live(replay(Recording(BODY))) as server:
        transport = CuttingTransport(library.AsyncHTTPTransport(), [25])
        async with library.AsyncClient(transport=transport, base_url=server.url, timeout=PATIENCE) as client:
            assert await read(client) == BODY[:25] + f"<{library.__name__} ReadError>".encode()
            async with client.stream("GET", "/") as response:
                assert [(await anext(events(response))).data] == ["one"]


@pytest.mark.virtual_time
@pytest.mark.parametrize("loss", Loss)
async def test_our_client_loses_and_doubles_nothing_whatever_byte_a_cut_is_at(loss: Loss) -> None:
    async with Hub() as hub:
        for number in range(3):
            await hub.publish(number, topic="numbers")
        transport = CuttingTransport(StreamingASGITransport(hub.app), range(2_000), loss=loss)
        async with httpx.AsyncClient(transport=transport) as http, Client("http://localhost", http=http) as client:
            stream = client.listen("numbers", last=3)
            await assert_received(stream, ["0", "1", "2"], timeout=1_000_000)
            await hub.publish("last", topic="numbers")
            await assert_received(stream, ["last"], timeout=1_000_000)
    assert transport.cuts > 300  # bytes, of the welcome and three events
    assert asyncio.get_running_loop().time() > transport.cuts  # a client without waits would flood its hub


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="vanished"):
        CuttingTransport(httpx.AsyncHTTPTransport(), [], loss="vanished")  # type: ignore[arg-type]
