"""The proxies that the docs show, each run as shown, before real hubs and on a port of its own.

Clients send what browsers send without TLS: no Sec-Fetch-Site, only Host and Origin, with a public name and a port.
"""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from sse_app import Event, EventDecoder
from sse_app.bench.peers import Server, started
from sse_app.client import Client
from tests.support.peers import PATIENCE
from tests.support.proxies import LISTENS, documented, shown_hubs
from tests.test_docs import PAGES, Block, blocks

NAME = "events.example.com"
LOGS = "/var/log/nginx"
# Without heartbeats, which would make a proxy forward what it holds back.
SERVE = ("-m", "sse_app", "serve", "--port", "0", "--allowed-hosts", NAME, "--heartbeat", "1h", "--drain", "500ms")


@dataclass(frozen=True)
class Recipe:
    """A proxy of the docs, with the hub that its section has behind it."""

    block: Block
    path: str  # of the hub in public URLs
    app: str  # the source of the app behind it; "" for `sse-app serve`

    def __str__(self) -> str:
        return f"{self.block.where}-{self.block.language}"


def recipes(page: Path) -> Iterator[Recipe]:
    """The proxies of a page. Their sections name the address of the console, if it is not the root."""
    text, found = page.read_text(), iter(blocks(page))
    for section in re.split(r"^(?=## )", text, flags=re.MULTILINE):
        shown = [next(found) for _ in re.findall(r"^ *```\w+$", section, re.MULTILINE)]
        path = re.search(r"localhost:8080(/[\w/]*)", section)
        apps = [block.text for block in shown if block.text.startswith("# app.py\n")]
        for block in shown:
            if block.language in LISTENS:
                yield Recipe(block, path[1] if path else "/", apps[0] if apps else "")


RECIPES = [recipe for page in PAGES for recipe in recipes(page)]
every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=str)


@contextmanager
def hubs(recipe: Recipe, directory: Path, *flags: str) -> Iterator[list[Server]]:
    """As many hubs as the recipe names; several have one log. ``flags`` are uvicorn's."""
    if recipe.app:
        (directory / "app.py").write_text(recipe.app)
        command: Sequence[str] = ("-m", "uvicorn", "--app-dir", str(directory), "--port", "0", *flags, "app:app")
    else:
        command = (*SERVE, "--broker", f"sqlite:///{directory}/hub.db")
    with ExitStack() as stack:
        yield [stack.enter_context(started((sys.executable, *command))) for _ in shown_hubs(recipe.block.text)]


@contextmanager
def proxied(recipe: Recipe, directory: Path, *flags: str) -> Iterator[tuple[str, list[Server]]]:
    """The hub's public URL, at the proxy, and the hubs behind it."""
    with hubs(recipe, directory, *flags) as nodes:
        ports = [httpx.URL(node.url).port or 0 for node in nodes]
        shown = recipe.block.text.replace(LOGS, str(directory))
        with documented(recipe.block.language, shown, ports) as url:
            yield f"{url}{recipe.path}", nodes


@dataclass
class Listener:
    """An open stream of a client."""

    pieces: AsyncIterator[bytes]
    decoder: EventDecoder

    async def until(self, kind: str) -> list[Event]:
        """Read up to the first event of this type, and return the events."""
        events: list[Event] = []
        async with asyncio.timeout(PATIENCE):
            while not any(event.type == kind for event in events):
                events += self.decoder.feed(await anext(self.pieces))
        return events

    async def to_the_end(self) -> list[Event]:
        async with asyncio.timeout(PATIENCE):
            return [event async for piece in self.pieces for event in self.decoder.feed(piece)]


@asynccontextmanager
async def listening(client: httpx.AsyncClient, **headers: str) -> AsyncIterator[Listener]:
    async with client.stream("GET", "events", headers={"Accept": "text/event-stream", **headers}) as response:
        assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        yield Listener(response.aiter_raw(), EventDecoder())


def browser(url: str) -> httpx.AsyncClient:
    """A client that sends the public name, as a page of that origin."""
    host = f"{NAME}:{httpx.URL(url).port}"
    return httpx.AsyncClient(base_url=url, headers={"Host": host, "Origin": f"http://{host}"}, timeout=PATIENCE)


async def publish(client: httpx.AsyncClient, data: str) -> str:
    """Publish with ``Client``, which sends again what a stopping node did not answer."""
    async with Client(str(client.base_url), http=client) as publisher:
        return (await publisher.publish(data)).id


@every_recipe
async def test_a_hub_is_whole_behind_a_proxy_of_the_docs(recipe: Recipe, tmp_path: Path) -> None:
    with proxied(recipe, tmp_path) as (url, nodes):
        async with browser(url) as client:
            await the_console_loads(client)
            async with listening(client) as stream:
                [welcome] = await stream.until("welcome")
                assert welcome.id is not None
                first = await publish(client, "first")
                assert [event.id for event in await stream.until("message")] == [first]
                second = await publish(client, "second")
                assert [event.id for event in await stream.until("message")] == [second]
            async with listening(client, **{"Last-Event-ID": first}) as stream:
                assert [event.id for event in await stream.until("message")][1:] == [second]
                await the_stopping_hub_says_bye(client, stream, nodes)


async def the_console_loads(client: httpx.AsyncClient) -> None:
    """Load the console's page, and all files that it and its modules name."""
    page = (await client.get("")).raise_for_status()
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    names = set(re.findall(r'(?:src|href)="(static/[^"]+)"', page.text))
    assert "static/app.js" in names
    modules = re.findall(r'from "\./([^"]+)"', (await client.get("static/app.js")).raise_for_status().text)
    for name in sorted(names | {f"static/{module}" for module in modules}):
        (await client.get(name)).raise_for_status()


async def the_stopping_hub_says_bye(client: httpx.AsyncClient, stream: Listener, nodes: list[Server]) -> None:
    """Send SIGTERM to the hub that has the stream; where there is another hub, the client resumes there."""
    node = nodes[0] if len(nodes) == 1 else await node_with_the_stream(nodes)
    assert node.pid is not None
    os.kill(node.pid, signal.SIGTERM)
    *_, bye = await stream.to_the_end()
    assert bye.type == "bye"
    if len(nodes) > 1:
        await until_gone(node)
        async with listening(client, **{"Last-Event-ID": str(bye.id)}) as elsewhere:
            await elsewhere.until("welcome")
            third = await publish(client, "third")
            assert [event.id for event in await elsewhere.until("message")] == [third]


async def until_gone(node: Server) -> None:
    """Wait until a node has stopped, since before that it refuses connections. Each check is a request, which takes the
    time between two checks.
    """
    async with asyncio.timeout(PATIENCE), httpx.AsyncClient(timeout=PATIENCE) as client:
        with suppress(httpx.TransportError):
            while True:
                await client.get(f"{node.url}/healthz")


async def node_with_the_stream(nodes: list[Server]) -> Server:
    """The node that has the one open stream; waits until closed streams are gone."""
    async with asyncio.timeout(PATIENCE), httpx.AsyncClient(timeout=PATIENCE) as client:
        while True:
            here = [(await client.get(f"{node.url}/stats")).json()["here"] for node in nodes]
            if sum(here) == 1:
                return nodes[here.index(1)]


@pytest.mark.parametrize("recipe", [one for one in RECIPES if one.path != "/" and not one.app], ids=str)
async def test_the_console_is_found_without_its_last_slash(recipe: Recipe, tmp_path: Path) -> None:
    with proxied(recipe, tmp_path) as (url, _):
        async with browser(url) as client:
            answer = await client.get(url.removesuffix("/"))
    assert answer.is_redirect
    there = httpx.URL(url).join(answer.headers["location"])
    assert (there.port, there.path) == (httpx.URL(url).port, recipe.path)


async def test_a_log_of_the_docs_shows_who_asked_for_what_and_no_query(tmp_path: Path) -> None:
    [recipe] = [one for one in RECIPES if LOGS in one.block.text]
    with proxied(recipe, tmp_path) as (url, _):
        async with browser(url) as client:
            for path in ("events?ticket=secret-1", "stats?token=secret-2"):
                await client.get(path, headers={"Referer": f"{url}?secret-3"})
    log = (tmp_path / "access.log").read_text()  # whole, since nginx has ended
    assert re.findall(r'"(GET .*?)" (\d+) ', log)[-2:] == [
        ("GET /events HTTP/1.1", "401"),
        ("GET /stats HTTP/1.1", "200"),
    ]
    assert "secret" not in log


async def test_a_prefix_that_is_taken_off_can_be_told_from_outside(tmp_path: Path) -> None:
    configured = next(one for one in RECIPES if "root_path" in one.app)
    unconfigured = replace(configured, app=configured.app.replace(', root_path="/api"', ""))
    assert "root_path" not in unconfigured.app
    with proxied(unconfigured, tmp_path, "--root-path", "/api") as (url, _):
        async with browser(url) as client, listening(client) as stream:
            await the_console_loads(client)
            await stream.until("welcome")
