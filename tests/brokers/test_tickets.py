"""Tickets over each broker: hubs on one log, which share its board."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest

from sse_app import Hub
from sse_app.grants import Grant
from tests.support.endpoints import payload
from tests.support.peers import PATIENCE, until
from tests.support.web import Web, code_of, web
from tests.support.worlds import World

SHARED = ("sqlite", "redis", "nats")  # by several hubs
ANN = Grant.of(user="ann", subscribe=["news/*"])


@pytest.fixture(params=("memory", *SHARED))
def world(request: pytest.FixtureRequest) -> World:
    world = request.getfixturevalue(f"{request.param}_world")
    assert isinstance(world, World)
    return world


@asynccontextmanager
async def hubs_on(world: World, count: int = 3) -> AsyncIterator[list[Web]]:
    """So many hubs of one log; the same one each time where it is in memory."""
    async with AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(web(Hub(world.open(), authorize=lambda request: None)))
            for _ in range(count if world.kept else 1)
        ]
        yield [opened[number % len(opened)] for number in range(count)]


async def test_of_100_who_use_a_ticket_at_once_on_three_hubs_one_gets_in(world: World) -> None:
    async with hubs_on(world) as hubs, AsyncExitStack() as stack:
        url = f"/events?ticket={(await hubs[0].hub.ticket(ANN)).ticket}"

        async def use(number: int) -> httpx.Response:
            hub = hubs[number % 3]
            request = hub.client.build_request("GET", url, headers={"User-Agent": f"browser {number}"})
            response = await hub.client.send(request, stream=True)
            stack.push_async_callback(response.aclose)
            return response

        answers = await asyncio.gather(*(use(number) for number in range(100)))
        assert Counter(answer.status_code for answer in answers) == {200: 1, 401: 99}
        refused = {await answer.aread() for answer in answers if answer.status_code == 401}
        assert len(refused) == 1
        assert sum(len(hub.hub) for hub in {id(hub): hub for hub in hubs}.values()) == 1


async def test_its_browser_comes_back_to_any_hub_and_misses_nothing(world: World) -> None:
    async with hubs_on(world) as hubs:
        url = f"/events?ticket={(await hubs[0].hub.ticket(ANN)).ticket}"
        cookies, last = httpx.Cookies(), ""
        for number in range(9):
            hub = hubs[number % 3]
            hub.client.cookies = cookies
            async with hub.stream(url, headers={"Last-Event-ID": last} if last else {}) as stream:
                assert payload(await anext(stream))["user"] == "ann"
                if last:
                    assert (await anext(stream)).data == f"{number} meanwhile"
                await hubs[0].hub.publish(f"{number} now", topic="news/1")
                event = await anext(stream)
                assert event.data == f"{number} now"
                last = event.id or ""
            cookies = hub.client.cookies
            await hubs[1].hub.publish(f"{number + 1} meanwhile", topic="news/1")
        hubs[1].client.cookies.clear()
        assert code_of(await hubs[1].client.get(url)) == (401, "invalid_ticket"), "it has shown its cookie"


async def test_who_comes_back_to_another_hub_without_a_cookie_replaces_the_older_stream(world: World) -> None:
    async with hubs_on(world) as hubs:
        await until(
            lambda: all(len(hub.hub.broker.board.nodes()) == 2 for hub in hubs) or not world.kept, clock=world.clock
        )
        url = f"/events?ticket={(await hubs[0].hub.ticket(ANN)).ticket}"
        async with hubs[0].stream(url) as old:
            await anext(old)
            hubs[0].client.cookies.clear()
            async with hubs[1].stream(url) as new:
                await anext(new)
                async with asyncio.timeout(PATIENCE):
                    bye = await anext(old)
                assert (bye.type, payload(bye)["reason"]) == ("bye", "replaced")
                await hubs[2].hub.publish("for the new one", topic="news/1")
                assert (await anext(new)).data == "for the new one"


async def test_tickets_outlive_the_hubs_where_their_log_does(world: World) -> None:
    async with hubs_on(world, 1) as (hub,):
        used, unused = [f"/events?ticket={(await hub.hub.ticket(ANN, ttl=300)).ticket}" for _ in range(2)]
        async with hub.stream(used) as stream:
            await anext(stream)
        cookies = hub.client.cookies
    async with hubs_on(world, 1) as (hub,):
        hub.client.cookies = cookies
        for url in (used, unused):
            if world.kept:
                async with hub.stream(url) as stream:
                    assert payload(await anext(stream))["user"] == "ann"
            else:
                assert code_of(await hub.client.get(url)) == (401, "invalid_ticket")
