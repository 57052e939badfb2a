"""Fixtures and a mark for pytest, there wherever sse-app is installed.

    async def test_welcome(sse_client):
        async with sse_client.stream("GET", "/events") as response:
            assert (await anext(events(response))).type == "welcome"

The async fixtures need a plugin that runs them: anyio's (``anyio_mode = auto``) or pytest-asyncio's in auto mode.
A project that configures its hub overrides ``sse_hub`` in its conftest.py; ``sse_client`` then talks to that one.
``@pytest.mark.virtual_time`` runs an async test and its async fixtures on ``sse_app.testing.VirtualTimeLoop``, under
either plugin. Nothing of sse-app is imported until a fixture or the mark is used.
"""

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import asyncio

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
    with live(app, server_class=lambda config: Server(config, hub.node), http=Protocol) as server:
        yield HubServer(server.url, hub)


# Virtual time


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "virtual_time: run an async test and its async fixtures on sse_app.testing.VirtualTimeLoop."
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> Generator[None, None, None]:
    """Give the plugin that runs a marked test the loop to run it on."""
    if metafunc.definition.get_closest_marker("virtual_time") is None:
        return (yield)
    from sse_app.testing import VirtualTimeLoop

    if "anyio_backend" in metafunc.fixturenames:
        backend = ("asyncio", {"loop_factory": VirtualTimeLoop})
        metafunc.parametrize("anyio_backend", [backend], ids=["virtual"])
    with _registered(metafunc.config.pluginmanager, _LoopFactories({"virtual": VirtualTimeLoop})):
        return (yield)


@dataclass(frozen=True)
class _LoopFactories:
    """A plugin that names the loops for pytest-asyncio, which takes asyncio's own where no plugin names any."""

    factories: dict[str, "Callable[[], asyncio.AbstractEventLoop]"]

    @pytest.hookimpl(tryfirst=True, optionalhook=True)
    def pytest_asyncio_loop_factories(self) -> dict[str, "Callable[[], asyncio.AbstractEventLoop]"]:
        return self.factories


@contextmanager
def _registered(manager: pytest.PytestPluginManager, plugin: object) -> Iterator[None]:
    manager.register(plugin)
    try:
        yield
    finally:
        manager.unregister(plugin)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Make a marked test fail on any other loop: its sleeps would be real there."""
    if not isinstance(item, pytest.Function) or item.get_closest_marker("virtual_time") is None:
        return
    if hasattr(item.obj, "hypothesis"):  # its plugin runs the coroutine function inside
        return
    if inspect.iscoroutinefunction(item.obj):
        item.obj = _on_virtual_time(item.obj)
    elif _is_marked_itself(item.obj):
        pytest.fail("virtual_time is for async tests; sse_app.testing.run_virtual runs a coroutine in others.")


def _is_marked_itself(test: object) -> bool:
    """Return True for a function that has the mark; one in a marked class or module need not be async."""
    return any(mark.name == "virtual_time" for mark in getattr(test, "pytestmark", ()))


def _on_virtual_time(test: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(test)
    async def checked(*arguments: Any, **named: Any) -> None:
        import asyncio

        from sse_app.testing import VirtualTimeLoop

        if not isinstance(asyncio.get_running_loop(), VirtualTimeLoop):
            pytest.fail(
                "This virtual_time test runs on a loop of real time: an async fixture of a wider scope than the test"
                " holds that loop open, or pytest-asyncio is older than 1.4."
            )
        await test(*arguments, **named)

    return checked
