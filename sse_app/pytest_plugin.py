"""Fixtures for pytest, there wherever sse-app is installed.

    async def test_welcome(sse_client):
        async with sse_client.stream("GET", "/events") as response:
            assert (await anext(events(response))).type == "welcome"

The async ones need a plugin that runs async fixtures: anyio's (``anyio_mode = auto``) or pytest-asyncio's in auto mode.
A project that configures its hub overrides ``sse_hub`` in its conftest.py; ``sse_client`` then talks to that one.
Nothing of sse-app is imported until a fixture is used.
"""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import httpx

    from sse_app import Hub


@dataclass(frozen=True, slots=True)
class HubServer:
    """``url`` has no slash at the end. The hub runs in another thread: use ``hub.publish_threadsafe``."""

    url: str
    hub: "Hub"


@pytest.fixture
async def sse_hub() -> AsyncIterator["Hub"]:
    """A started hub with default settings and an empty memory log, in the test's own event loop."""
    from sse_app import Hub

    async with Hub() as hub:
        yield hub


@pytest.fixture
async def sse_client(sse_hub: "Hub") -> AsyncIterator["httpx.AsyncClient"]:
    """An httpx.AsyncClient of ``sse_hub``, in process, whose streams need not end."""
    import httpx

    from sse_app.testing import StreamingASGITransport

    transport = StreamingASGITransport(sse_hub.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


@pytest.fixture
def sse_server() -> Iterator[HubServer]:
    """A hub of its own on 127.0.0.1 and a free port, for sync tests, browsers and subprocesses.

    Its server is the one of ``sse-app serve``; what is still open at the end of the test is drained within 0.2 s.
    """
    from sse_app import Config, create_app
    from sse_app.server import Protocol
    from sse_app.server.server import Server
    from sse_app.testing import live

    app = create_app(Config(drain=0.2))
    hub = app.state.hub
    with live(app, server_class=lambda config: Server(config, hub), http=Protocol) as server:
        yield HubServer(server.url, hub)
