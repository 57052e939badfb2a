"""``POST /tickets``, and streams that a ticket opens."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from sse_app import Config, Hub
from sse_app.brokers.memory import MemoryBroker
from sse_app.errors import BrokerUnavailable, HubNotStarted, InsufficientScope
from sse_app.grants import Grant
from sse_app.joining import StreamRequest
from sse_app.leases import STREAMS_MAX
from sse_app.revocations import Revocation
from sse_app.subscriber import CloseReason
from sse_app.testing import VirtualTimeLoop, events
from tests.support.endpoints import payload
from tests.support.peers import Clock, until
from tests.support.web import Web, code_of, web

ANN = {"X-User": "ann"}
SSE = {"Accept": "text/event-stream"}
FOREIGN = {"User-Agent": "another browser"}


def who(request: Request) -> Grant | None:
    name = request.headers.get("x-user")
    if name == "server":
        return Grant.of(subscribe=["**"], publish=["**"], mint=True)
    return Grant.of(user=name, subscribe=["news/*"], expires_in=600) if name else None


async def mint(opened: Web, headers: dict[str, str] = ANN, **body: Any) -> httpx.Response:
    return await opened.client.post("/tickets", content=json.dumps(body) if body else b"", headers=headers)


async def ticket_url(opened: Web, **body: Any) -> str:
    url = (await mint(opened, **body)).json()["url"]
    assert isinstance(url, str)
    return url


async def test_a_ticket_opens_a_stream_with_the_grant_of_who_made_it() -> None:
    async with web(authorize=who) as opened:
        answer = await mint(opened, topics=["news/1"], ttl=60)
        made = answer.json()
        assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
        assert made["url"] == f"/events?ticket={made['ticket']}"
        assert made["ttl"] == 60
        async with opened.client.stream("GET", made["url"]) as response:
            assert response.status_code == 200
            cookie = response.headers["set-cookie"]
            assert cookie.startswith("sse_lease=")
            assert cookie.endswith("; Path=/events; Max-Age=86400; HttpOnly; SameSite=Strict")
        async with opened.stream(await ticket_url(opened)) as stream:
            welcome = payload(await anext(stream))
            assert (welcome["user"], welcome["topics"]) == ("ann", ["news/*"])
            assert 590 <= welcome["expires_in"] <= 600
        assert opened.hub.node.totals.tickets == {"minted": 2, "used": 2}


async def test_its_browser_comes_back_twenty_times_and_loses_nothing() -> None:
    async with web(authorize=who) as opened:
        url, last, seen = await ticket_url(opened), "", list[str]()
        for number in range(20):
            async with opened.stream(url, headers={"Last-Event-ID": last} if last else {}) as stream:
                await anext(stream)
                await opened.hub.publish(str(number), topic="news/1")
                event = await anext(stream)
                seen.append(event.data)
                last = event.id or ""
            await opened.hub.publish(f"{number} meanwhile", topic="news/1")
            async with opened.stream(url, headers={"Last-Event-ID": last}) as stream:
                await anext(stream)
                event = await anext(stream)
                seen.append(event.data)
                last = event.id or ""
        assert seen == [text for number in range(20) for text in (str(number), f"{number} meanwhile")]
        assert opened.hub.node.totals.tickets == {"minted": 1, "used": 1, "resumed": 39}


async def test_a_copied_url_is_a_401_and_the_rightful_stream_goes_on() -> None:
    async with web(authorize=who) as opened:
        url = await ticket_url(opened)
        async with opened.stream(url) as stream:
            await anext(stream)
            opened.client.cookies.clear()
            answer = await opened.client.get(url, headers=FOREIGN | SSE)
            assert code_of(answer) == (401, "invalid_ticket")
            assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'
            await opened.hub.publish("still here", topic="news/1")
            assert (await anext(stream)).data == "still here"


async def test_a_url_opens_for_the_browser_that_used_it_first_and_no_other() -> None:
    def browser(name: str, address: str, **more: str) -> dict[str, str]:
        return {"User-Agent": name, "X-Forwarded-For": address, **more}

    proxy: dict[str, Any] = {"trusted_proxies": ("127.0.0.1",), "forwarded_header": "x-forwarded-for"}
    async with web(authorize=who, **proxy) as opened:
        url = await ticket_url(opened)
        async with opened.client.stream("GET", url, headers=browser("own", "2001:db8:1:2::1")) as response:
            first = events(response)
            assert (await anext(first)).type == "welcome"
            cookie = response.headers["set-cookie"].partition(";")[0]
            for headers, status in (
                (browser("another", "2001:db8:1:2::1"), 401),
                (browser("own", "2001:db8:1:3::1"), 401),
                (browser("own", "192.0.2.1"), 401),
                (browser("own", "2001:db8:1:3::1", cookie="sse_lease=" + "x" * 22), 401),
                (browser("own, on a train", "192.0.2.1", cookie=cookie), 200),
                (browser("own", "2001:db8:1:2::1"), 401),  # it has shown that it has a cookie
                (browser("own", "2001:db8:1:2::1", cookie=cookie), 200),
            ):
                for method in ("HEAD", "GET"):
                    opened.client.cookies.clear()
                    async with opened.client.stream(method, url, headers=headers) as answer:
                        assert answer.status_code == status, headers
            await opened.hub.publish("still here", topic="news/1")
            assert (await anext(first)).data == "still here"


async def test_without_a_cookie_a_browser_may_come_from_its_network() -> None:
    """Many change their address in an IPv6 network every day."""
    proxy: dict[str, Any] = {"trusted_proxies": ("127.0.0.1",), "forwarded_header": "x-forwarded-for"}
    async with web(authorize=who, **proxy) as opened:
        url = await ticket_url(opened)
        for address in ("2001:db8:1:2::1", "2001:db8:1:2:ffff::2"):
            opened.client.cookies.clear()
            async with opened.client.stream("GET", url, headers={"X-Forwarded-For": address}) as answer:
                assert answer.status_code == 200


async def test_all_that_is_no_ticket_gets_one_answer() -> None:
    clock = Clock(time.time())
    async with (
        web(Hub(MemoryBroker(clock=clock, wall=clock), authorize=who)) as opened,
        web(authorize=who) as elsewhere,
    ):
        opened.hub.node.leases.tickets._clock = clock
        unused, ended, copied = [await ticket_url(opened, **body) for body in ({}, {"expires_in": 40}, {})]
        for url in (ended, copied):
            async with opened.client.stream("GET", url) as answer:
                assert answer.status_code == 200
        clock.now += 50  # seconds
        opened.client.cookies.clear()
        wrong = {
            "expired": unused,
            "of a lease that has ended": ended,
            "copied": copied,
            "unknown": f"/events?ticket={'x' * 22}",
            "of another hub": await ticket_url(elsewhere),
            "empty": "/events?ticket=",
            "malformed": "/events?ticket=%00",
            "no ASCII": f"/events?ticket={'é' * 22}",
            "long": f"/events?ticket={'x' * 4_000}",
        }
        seen = set()
        for name, url in wrong.items():
            for headers in (FOREIGN, FOREIGN | SSE):
                answer = await opened.client.get(url, headers=headers)
                assert code_of(answer) == (401, "invalid_ticket"), name
                seen.add((answer.content, answer.headers["www-authenticate"]))
            assert (await opened.client.head(url, headers=FOREIGN)).status_code == 401, name
        assert len(seen) == 1
        twice = await opened.client.get(f"{copied}&ticket=x", headers=FOREIGN)
        assert code_of(twice) == (401, "invalid_ticket")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("used", [True, False])
async def test_a_ticket_that_was_taken_back_gets_the_answer_of_all_others(method: str, used: bool) -> None:
    async with web(authorize=who) as opened:
        url, unknown = await ticket_url(opened), f"/events?ticket={'x' * 22}"
        if used:
            async with opened.stream(url) as stream:
                await anext(stream)
        await opened.hub.revoke(user="ann")
        answers = [await opened.client.request(method, asked, headers=SSE) for asked in (url, unknown)]
        assert {answer.status_code for answer in answers} == {401}
        assert answers[0].content == answers[1].content
        if method == "GET":
            assert code_of(answers[0]) == (401, "invalid_ticket")


async def test_without_a_cookie_the_older_stream_is_replaced() -> None:
    async with web(authorize=who) as opened:
        url = await ticket_url(opened)
        async with opened.stream(url) as old:
            await anext(old)
            opened.client.cookies.clear()
            async with opened.stream(url) as new:
                await anext(new)
                bye = await anext(old)
                assert (bye.type, payload(bye)["reason"]) == ("bye", "replaced")
                with pytest.raises(StopAsyncIteration):
                    await anext(old)
                await opened.hub.publish("for the new one", topic="news/1")
                assert (await anext(new)).data == "for the new one"


async def test_a_page_that_is_open_in_more_tabs_than_a_ticket_is_for_loses_the_oldest() -> None:
    async with web(authorize=who) as opened, AsyncExitStack() as stack:
        url = await ticket_url(opened)
        tabs = [await stack.enter_async_context(opened.stream(url)) for _ in range(10)]
        for number, tab in enumerate(tabs[:-STREAMS_MAX]):
            await anext(tab)
            bye = payload(await anext(tab))
            assert (number, bye["reason"]) == (number, "replaced")
            assert 10_000 <= bye["retry"] <= 30_000, "tabs take turns, but slowly"
        assert len(opened.hub) == STREAMS_MAX
        await opened.hub.publish("for the others", topic="news/1")
        for tab in tabs[-STREAMS_MAX:]:
            await anext(tab)
            assert (await anext(tab)).data == "for the others"


async def test_streams_that_have_ended_and_are_not_read_take_no_place_of_a_ticket() -> None:
    async with web(authorize=who) as opened:
        ticket = (await mint(opened)).json()["ticket"]
        node = opened.hub.node
        admitted = await node.leases.use(ticket, cookie=None, agent="a browser")
        request = StreamRequest.parse(grant=admitted.grant)
        tabs = [await node.join(request) for _ in range(2 * STREAMS_MAX)]
        assert [tab.is_over for tab in tabs] == [True] * STREAMS_MAX + [False] * STREAMS_MAX
        for tab in tabs:
            node.leave(tab, CloseReason.GONE)


async def who_without_threads(request: Request) -> Grant | None:
    return who(request)


def virtual(opened: Web) -> Callable[[], float]:
    """Let tickets age by the time of the loop. Returns that."""
    loop, begun = asyncio.get_running_loop(), time.time()
    assert isinstance(loop, VirtualTimeLoop)
    loop.patience = 0  # nothing outside of the loop takes part
    opened.hub.node.leases.tickets._clock = lambda: begun + loop.time()
    return loop.time


@pytest.mark.virtual_time
async def test_two_parties_that_look_alike_lose_their_ticket_within_a_minute() -> None:
    """Both come from one address, with one browser, without a cookie, and come back as soon as they are told to."""
    async with web(authorize=who_without_threads) as opened:
        now, url = virtual(opened), await ticket_url(opened)

        async def party() -> list[str]:
            """Return why its streams have ended, once there is none to be had any more."""
            reasons = list[str]()
            while True:
                opened.client.cookies.clear()
                async with opened.client.stream("GET", url) as answer:
                    if answer.status_code != 200:
                        assert (answer.status_code, now() <= 60) == (401, True)
                        return reasons
                    *_, bye = [event async for event in events(answer)]
                reasons.append(payload(bye)["reason"])
                await asyncio.sleep(payload(bye)["retry"] / 1_000)

        async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
            parties = [tasks.create_task(party()) for _ in range(2)]
        reasons = [reason for each in parties for reason in each.result()]
        assert set(reasons) == {"replaced", "contested"}
        assert reasons.count("contested") == 1, "the stream of the other one"
        assert opened.hub.node.totals.tickets["contested"] == 1


@pytest.mark.virtual_time
async def test_one_client_that_reconnects_as_often_as_it_can_keeps_its_ticket() -> None:
    """For five minutes, without its cookie, as of another site."""
    async with web(authorize=who_without_threads) as opened:
        now, url = virtual(opened), await ticket_url(opened)
        while now() < 300:
            opened.client.cookies.clear()
            async with opened.stream(url) as stream:
                assert payload(await anext(stream))["user"] == "ann"
            await asyncio.sleep(Config.retry_min)
        assert opened.hub.node.totals.tickets.keys() == {"minted", "used", "resumed"}


async def test_head_and_a_request_that_is_not_as_described_use_nothing_up() -> None:
    async with web(authorize=who) as opened:
        url = await ticket_url(opened)
        assert (await opened.client.head(url)).status_code == 200
        assert code_of(await opened.client.get(f"{url}&last=x")) == (400, "invalid_since")
        opened.client.cookies.clear()
        async with opened.stream(url, headers=FOREIGN) as stream:
            assert payload(await anext(stream))["user"] == "ann"


async def test_a_header_is_stronger_than_a_ticket() -> None:
    async with web(publish_key="k" * 32) as opened:
        ticket = await opened.hub.ticket(Grant.of(user="ann", subscribe=["news/*"]))
        url = f"/events?ticket={ticket.ticket}"
        async with opened.stream(url, headers={"Authorization": f"Bearer {'k' * 32}"}) as stream:
            assert payload(await anext(stream))["topics"] == []
        async with opened.stream(url) as stream:
            assert payload(await anext(stream))["user"] == "ann"


@pytest.mark.parametrize(
    "body",
    [
        "[]",
        "x",
        '{"ttl": 0}',
        '{"ttl": 301}',
        '{"ttl": true}',
        '{"ttl": "30"}',
        '{"expires_in": 90000}',
        '{"topics": []}',
        '{"topics": "news/1"}',
        '{"publish": ["**"]}',
        '{"admin": true}',
        '{"mint": true}',
        '{"stats": "some"}',
        "{" + '"topics":["x"],' * 2_000 + '"ttl":1}',
        "[" * 10_000,
    ],
)
async def test_a_request_for_a_ticket_that_is_not_as_described_is_a_400(body: str) -> None:
    async with web(authorize=who) as opened:
        answer = await opened.client.post("/tickets", content=body, headers=ANN)
        assert code_of(answer) == (400, "invalid_ticket_request")
        assert opened.hub.node.totals.tickets == {}
        assert await opened.hub.broker.board.list("ticket") == {}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"topics": ["secret"]}, 403, "insufficient_scope"),
        ({"topics": ["**"]}, 403, "insufficient_scope"),
        ({"user": "bob"}, 403, "insufficient_scope"),
        ({"stats": "all"}, 403, "insufficient_scope"),
        ({"client": "till-3"}, 403, "insufficient_scope"),
        ({"topics": ["a/**/b"]}, 400, "invalid_topic"),
    ],
)
async def test_nobody_gets_a_ticket_for_more_than_it_has(body: dict[str, Any], status: int, code: str) -> None:
    async with web(authorize=who) as opened:
        assert code_of(await mint(opened, **body)) == (status, code)
        assert opened.hub.node.totals.tickets == {}
        assert await opened.hub.broker.board.list("ticket") == {}


async def test_a_server_makes_tickets_for_its_users() -> None:
    async with web(authorize=who) as opened:
        server = {"X-User": "server"}
        made = await mint(opened, server, user="bob", topics=["users/bob"], client="till-3", expires_in=60)
        assert code_of(await mint(opened, {"X-User": "nobody"} | {"X-User": ""})) == (401, "unauthorized")
        async with opened.stream(made.json()["url"]) as stream:
            welcome = payload(await anext(stream))
            assert (welcome["user"], welcome["client"], welcome["topics"]) == ("bob", "till-3", ["users/bob"])
            await opened.hub.publish("for the till", to="till-3", topic="users/bob")
            assert (await anext(stream)).data == "for the till"
        assert code_of(await mint(opened, server, user="not a name")) == (400, "invalid_client")


async def test_below_a_prefix_the_url_and_the_cookie_have_it() -> None:
    hub = Hub(authorize=who)
    async with web(hub, transport={"root_path": "/api/hub"}) as opened:
        answer = await opened.client.post("/api/hub/tickets", headers=ANN)
        url = answer.json()["url"]
        assert url.startswith("/api/hub/events?ticket=")
        async with opened.client.stream("GET", url) as response:
            assert "; Path=/api/hub/events;" in response.headers["set-cookie"]


@pytest.mark.parametrize(
    ("prefix", "shown"), [("/~ann@home", "/~ann@home"), ("/a b", "/a%20b"), ("/ä", "/%C3%A4"), ("/a;b", "/a%3Bb")]
)
async def test_a_prefix_is_in_the_url_and_the_cookie_as_browsers_send_it(prefix: str, shown: str) -> None:
    hub = Hub(authorize=who)
    async with web(hub, transport={"root_path": prefix}) as opened:
        url = (await opened.client.post(f"{prefix}/tickets", headers=ANN)).json()["url"]
        assert url.startswith(f"{shown}/events?ticket=")
        async with opened.client.stream("GET", url) as response:
            assert f"; Path={shown}/events;" in response.headers["set-cookie"]


async def test_over_tls_the_cookie_is_secure() -> None:
    async with web(authorize=who) as opened:
        url = await ticket_url(opened)
        async with opened.client.stream("GET", f"https://localhost{url}") as response:
            cookie = response.headers["set-cookie"]
            assert cookie.startswith("__Secure-sse_lease=")
            assert cookie.endswith("; Secure")


async def test_a_board_that_is_away_uses_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = MemoryBroker()
    async with web(Hub(broker, authorize=who)) as opened:
        url = await ticket_url(opened)

        async def away(*_: Any, **__: Any) -> Any:
            raise BrokerUnavailable("The board is away; try again.")

        with monkeypatch.context() as patched:
            patched.setattr(broker.board, "get", away)
            answer = await opened.client.get(url, headers=SSE)
            assert (answer.status_code, answer.text[:7]) == (200, "retry: ")
            assert code_of(await opened.client.get(url)) == (503, "broker_unavailable")
        async with opened.stream(url) as stream:
            assert payload(await anext(stream))["user"] == "ann"


async def test_a_hub_that_is_full_uses_nothing_up() -> None:
    async with web(authorize=who, max_subscribers=1, ticket_reconnect="never") as opened:
        first, second = await ticket_url(opened), await ticket_url(opened)
        async with opened.stream(first) as stream:
            await anext(stream)
            answer = await opened.client.get(second, headers=SSE)
            assert (answer.status_code, answer.text[:7]) == (200, "retry: ")
            assert code_of(await opened.client.get(second)) == (503, "overloaded")
            assert opened.hub.node.totals.refused == 2
        await until(lambda: not len(opened.hub))
        async with opened.stream(second) as stream:
            assert payload(await anext(stream))["user"] == "ann"


async def test_a_ticket_is_as_old_as_the_request_for_it() -> None:
    revoked = False

    async def body() -> AsyncIterator[bytes]:
        nonlocal revoked
        # The server's user logs out while the request is on its way.
        await opened.hub.node.revoke(Revocation.of(user="ann", lasts=60))
        revoked = True
        yield b'{"user": "ann"}'

    async with web(authorize=who) as opened:
        made = await opened.client.post("/tickets", content=body(), headers={"X-User": "server"})
        assert (made.status_code, revoked) == (201, True)
        assert (await opened.client.get(made.json()["url"])).status_code == 401


async def test_no_ticket_is_made_before_the_hub_runs() -> None:
    with pytest.raises(HubNotStarted):
        await Hub().ticket(Grant.of(subscribe=["news/*"]))


async def test_in_python_a_ticket_is_made_of_a_grant() -> None:
    async with web() as opened:
        ticket = await opened.hub.ticket(Grant.of(user="ann", subscribe=["news/*"], publish=["**"], expires_in=60))
        async with opened.stream(f"/events?ticket={ticket.ticket}") as stream:
            assert payload(await anext(stream))["topics"] == ["news/*"]
        with pytest.raises(InsufficientScope):
            await opened.hub.ticket(Grant.of(publish=["**"]))
        with pytest.raises(ValueError, match="1 to 300"):
            await opened.hub.ticket(Grant.of(subscribe=["**"]), ttl=301)
