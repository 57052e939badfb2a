"""Three nodes behind a load balancer are restarted one by one, and its clients lose and double nothing (M5)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from signal import SIGTERM

import httpx
import pytest

from sse_app.client import Client
from sse_app.errors import Gap
from tests.chaos.client import HOST, notify, offset_of, stats, until_notified
from tests.chaos.conftest import Server, count
from tests.chaos.launch import launched
from tests.chaos.outages import ready
from tests.chaos.proxy import Proxy, proxy_to
from tests.support.worlds import World

NODES = 3
RATE = 10  # publications a second
CHECK = 0.05  # seconds between two checks of the nodes by the load balancer

Start = Callable[[], Awaitable[Server]]


@pytest.fixture(params=["redis", "nats"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    """A function that starts nodes of one hub. None of them may log anything."""
    world: World = request.getfixturevalue(f"{request.param}_world")
    flags = "--broker", world.url, "--drain", str(count(ci=1, full=5))
    with ExitStack() as stack:

        async def start() -> Server:
            return await asyncio.to_thread(stack.enter_context, launched(tmp_path / "log", *flags))

        yield start
    assert (tmp_path / "log").read_text() == ""


class Listener:
    """A client that reconnects by itself, to whichever node the load balancer chooses."""

    def __init__(self) -> None:
        self.offsets: list[int] = []
        self.gaps: list[Gap] = []

    async def run(self, url: str, http: httpx.AsyncClient) -> None:
        async with Client(url, http=http) as client:
            async for event in client.listen(on_gap=self.gaps.append):
                self.offsets.append(offset_of(event.id or ""))
                notify()


async def takes_connections(server: Server) -> bool:
    try:
        return await ready(server)
    except ConnectionError:
        return False


@asynccontextmanager
async def balanced(servers: list[Server]) -> AsyncIterator[Proxy]:
    """A load balancer as `docs/scaling.md` asks for: it sends connections to the nodes that are ready."""

    async def check_nodes(balancer: Proxy) -> None:
        while True:
            balancer.upstreams = [server.port for server in list(servers) if await takes_connections(server)]
            await asyncio.sleep(CHECK)

    async with proxy_to(servers[0].port) as balancer, asyncio.TaskGroup() as tasks:
        task = tasks.create_task(check_nodes(balancer))
        yield balancer
        task.cancel()


async def publish_steadily(client: Client, published: list[int], enough: asyncio.Event) -> None:
    while not enough.is_set():
        published.append(offset_of((await client.publish(len(published))).id))
        await asyncio.sleep(1 / RATE)


async def until_all_listen(server: Server, number: int) -> None:
    while (await stats(server.port))["subscribers"] != number:
        pass  # each check is a request, which takes the time between two checks


async def restart_each(servers: list[Server], node: Start, listeners: int) -> None:
    for index in range(NODES):
        servers[index].terminate()
        assert await servers[index].exit_code() in (0, -SIGTERM)
        servers[index] = await node()
        await until_all_listen(servers[index], listeners)


async def test_a_rolling_restart_is_felt_by_nobody(node: Start) -> None:
    listeners = [Listener() for _ in range(count(ci=60, full=300))]
    servers = [await node() for _ in range(NODES)]
    published: list[int] = []
    enough = asyncio.Event()
    async with AsyncExitStack() as stack:
        balancer = await stack.enter_async_context(balanced(servers))
        url = f"http://{HOST}:{balancer.port}"
        limits = httpx.Limits(max_connections=None)
        http = await stack.enter_async_context(httpx.AsyncClient(limits=limits, verify=False))
        client = await stack.enter_async_context(Client(url, http=http))
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        for listener in listeners:
            stack.callback(tasks.create_task(listener.run(url, http)).cancel)
        await until_all_listen(servers[0], len(listeners))
        publishing = tasks.create_task(publish_steadily(client, published, enough))
        for _ in range(count(ci=1, full=10)):
            await restart_each(servers, node, len(listeners))
        enough.set()
        await publishing
        last = offset_of((await client.publish("last")).id)
        await until_notified(lambda: all(last in listener.offsets[-1:] for listener in listeners))
    assert published == list(range(1, last)), "each once, though some were sent again"
    for listener in listeners:
        assert listener.offsets == list(range(1, last + 1))
        assert listener.gaps == []
    print(f"{last} publications, {len(listeners)} listeners, lost 0, doubled 0, gaps 0")
