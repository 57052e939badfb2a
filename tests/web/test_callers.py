"""What a request may do, by its credential: on an open hub, with a publish key, and with an app's authorize."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response

from sse_app import Hub
from sse_app.errors import InvalidToken
from sse_app.grants import OPEN, Grant
from sse_app.revocations import Revocation
from sse_app.web import callers
from tests.support.endpoints import KEY, payload
from tests.support.peers import PATIENCE, turns, until
from tests.support.web import code_of, web

READER = Grant.of(user="ann", subscribe=["news/*", "users/ann"], publish=["news/*"])
SSE = {"Accept": "text/event-stream"}


def who(request: Request) -> Grant | None:
    """Ann, with her name in a header of her own; nobody else."""
    return READER if request.headers.get("x-user") == "ann" else None


ANN = {"X-User": "ann"}


async def test_an_open_hub_asks_nobody_and_counts_nothing() -> None:
    async with web() as opened:
        assert opened.hub.node.totals.auth == {}
        for path in ("/events?client=x", "/stats", "/metrics", "/grant"):
            async with opened.client.stream("GET", path, headers={"Authorization": "Bearer junk"}) as answer:
                assert answer.status_code == 200
        assert (await opened.post("x")).status_code == 200
        assert opened.hub.node.totals.auth == {}


async def test_with_a_publish_key_alone_everybody_reads() -> None:
    async with web(publish_key=KEY) as opened:
        for path in ("/events", "/stats", "/metrics", "/grant"):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {KEY}"}):
                async with opened.client.stream("GET", path, headers=headers) as answer:
                    assert answer.status_code == 200
        assert code_of(await opened.post("x")) == (401, "unauthorized")
        right = await opened.client.post("/broadcast", content="x", headers={"Authorization": f"bearer  {KEY}"})
        assert right.status_code == 200


async def test_who_is_not_known_gets_401_everywhere_with_a_challenge_without_an_error() -> None:
    async with web(authorize=who) as opened:
        for path in ("/events", "/stats", "/metrics", "/grant"):
            answer = await opened.client.get(path)
            assert code_of(answer) == (401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert code_of(await opened.post("x")) == (401, "unauthorized")
        assert (await opened.client.get("/healthz")).status_code == 200
        assert (await opened.client.get("/")).status_code == 200
        assert opened.hub.node.totals.auth == {"missing": 5}


async def test_a_native_event_source_that_is_not_known_is_told_so_for_good() -> None:
    async with web(authorize=who) as opened:
        assert code_of(await opened.client.get("/events", headers=SSE)) == (401, "unauthorized")


async def test_a_stream_gets_what_is_asked_for_and_granted() -> None:
    async with web(authorize=who) as opened, opened.stream("/events?topic=**", headers=ANN) as stream:
        welcome = payload(await anext(stream))
        assert (welcome["topics"], welcome["user"], welcome["subscribers"]) == (["news/*", "users/ann"], "ann", None)
        for topic in ("news/1", "secret", "users/bob", "users/ann"):
            await opened.hub.publish(topic, topic=topic)
        assert [(await anext(stream)).data for _ in range(2)] == ["news/1", "users/ann"]


async def test_what_lies_wholly_outside_is_refused_and_says_so() -> None:
    async with web(authorize=who) as opened:
        answer = await opened.client.get("/events?topic=users/bob", headers=ANN | SSE)
        assert code_of(answer) == (403, "insufficient_scope")
        assert answer.headers["www-authenticate"] == 'Bearer error="insufficient_scope"'
        assert "bob" not in answer.text
        assert opened.hub.node.totals.auth == {"ok": 1, "scope": 1}


@pytest.mark.parametrize("query", ["", "topic=news/1", "topic=users/bob", "client=x", "client=tab-1", "last=x"])
async def test_head_is_refused_what_get_is(query: str) -> None:
    grants = {"ann": replace(READER, client="tab-*"), "bob": Grant.of(user="bob", publish=["**"])}
    async with web(authorize=lambda request: grants.get(request.headers["x-user"])) as opened:
        for user in (*grants, "eve"):
            head = await opened.client.head(f"/events?{query}", headers={"X-User": user})
            async with opened.client.stream("GET", f"/events?{query}", headers={"X-User": user}) as get:
                assert head.status_code == get.status_code
        assert opened.hub.node.totals.connected == (query in ("", "topic=news/1", "client=tab-1"))


@pytest.mark.parametrize(
    ("params", "status"),
    [
        ({"topic": "news/1"}, 200),
        ({"topic": ["news/1", "news/2"]}, 200),
        ({"topic": ["news/1", "users/ann"]}, 403),
        ({"topic": "users/ann"}, 403),
        ({}, 403),
    ],
)
async def test_a_publication_needs_every_one_of_its_topics(params: dict[str, Any], status: int) -> None:
    async with web(authorize=who) as opened:
        top = await opened.hub.broker.top()
        answer = await opened.client.post("/broadcast", content="x", params=params, headers=ANN)
        assert answer.status_code == status
        if status == 403:
            assert code_of(answer) == (403, "insufficient_scope")
            assert opened.hub.node.totals.auth["scope"] == 1
        assert (await opened.hub.broker.top() == top) is (status == 403)


async def test_a_refused_publication_is_refused_before_its_body_is_read() -> None:
    read = False

    async def body() -> Any:
        nonlocal read
        read = True
        yield b"x" * 1_000

    async with web(authorize=who) as opened:
        answer = await opened.client.post("/broadcast?topic=secret", content=body(), headers=ANN)
        assert code_of(answer) == (403, "insufficient_scope")
        nobody = await opened.client.post("/broadcast?topic=news/1", content=body())
        assert code_of(nobody) == (401, "unauthorized")


async def test_statistics_show_what_is_granted() -> None:
    grants = {"none": "none", "own": "own", "all": "all"}

    def watcher(request: Request) -> Grant | None:
        return Grant.of(subscribe=["news/*"], stats=grants[request.headers["x-stats"]])  # type: ignore[arg-type]

    async with web(authorize=watcher) as opened:
        await opened.hub.publish("public", topic=["news/1", "users/99/private"])
        await opened.hub.publish("salary", topic="users/99/private")
        async with opened.stream("/events?topic=news/1", headers={"X-Stats": "none"}):
            none, own, everything = [
                await opened.client.get("/stats", headers={"X-Stats": name}) for name in ("none", "own", "all")
            ]
        metrics = [(await opened.client.get("/metrics", headers={"X-Stats": name})).status_code for name in grants]
    assert code_of(none) == (403, "insufficient_scope")
    seen = own.json()
    assert (seen["filters"], seen["last"]["topics"], seen["last"]["data"]) == (None, ["news/1"], "public")
    assert [item["topics"] for item in seen["recent"]] == [["news/1"]]
    assert seen["subscribers"] == 1
    assert "private" not in own.text
    assert everything.json()["last"]["data"] == "salary"
    assert everything.json()["filters"] == [{"topics": ["news/1"], "subscribers": 1}]
    assert metrics == [403, 403, 200]


async def test_a_caller_can_ask_what_it_may_do() -> None:
    async with web(authorize=who) as opened:
        assert (await opened.client.get("/grant", headers=ANN)).json() == {
            "user": "ann",
            "client": None,
            "publish": ["news/*"],
            "subscribe": ["news/*", "users/ann"],
            "broadcasts": True,
            "denied": [],
            "stats": "none",
            "mint": False,
            "admin": False,
            "expires": None,
        }


async def test_a_plain_name_reaches_nobody_who_took_it_without_a_credential_for_it() -> None:
    async with web(authorize=who) as opened, opened.stream("/events?client=till-3", headers=ANN) as stream:
        await anext(stream)
        await opened.hub.publish("salary: 4200", topic="news/1", to="till-3")
        await opened.hub.publish("for bob", topic="news/1", to="@bob")
        await opened.hub.publish("for ann", topic="news/1", to="@ann")
        await opened.hub.publish("for this tab", topic="news/1", to="till-3@ann")
        assert [(await anext(stream)).data for _ in range(2)] == ["for ann", "for this tab"]


async def test_two_callers_may_use_the_same_idempotency_key() -> None:
    def anyone(request: Request) -> Grant | None:
        return Grant.of(user=request.headers["x-user"], publish=["**"])

    async with web(authorize=anyone) as opened:

        async def send(user: str, text: str) -> httpx.Response:
            headers = {"X-User": user, "Idempotency-Key": "same"}
            return await opened.client.post("/broadcast", content=text, headers=headers)

        first, other, again = await send("ann", "1"), await send("bob", "2"), await send("ann", "1")
        assert [first.status_code, other.status_code] == [200, 200]
        assert first.json()["id"] == again.json()["id"] != other.json()["id"]


@pytest.mark.parametrize("name", ["access_token", "authorization", "jwt", "token", "Access_Token", "%74oken"])
async def test_a_token_in_the_url_is_refused_before_anything_else(name: str) -> None:
    async with web() as opened:
        answer = await opened.client.get(f"/events?{name}=SECRET", headers=SSE)
        assert code_of(answer) == (400, "token_in_url")
        assert "SECRET" not in answer.text
        assert code_of(await opened.client.post(f"/broadcast?{name}=SECRET", content="x")) == (400, "token_in_url")


# authorize


def in_thread(request: Request) -> Grant | None:
    assert threading.current_thread() is not threading.main_thread()
    return READER


async def in_loop(request: Request) -> Grant | None:
    await asyncio.sleep(0)
    return READER


class Asked:
    async def __call__(self, request: Request) -> Grant | None:
        return READER


@pytest.mark.parametrize("authorize", [in_thread, in_loop, Asked(), lambda request: in_loop(request)])
async def test_authorize_may_be_a_coroutine_function_or_a_plain_one(authorize: Any) -> None:
    async with web(authorize=authorize) as opened:
        assert (await opened.client.get("/grant")).json()["user"] == "ann"


async def never(request: Request) -> Grant | None:
    await asyncio.Event().wait()
    return None


def raises(request: Request) -> Grant | None:
    raise RuntimeError("the database is down: password=SECRET")


def wrong(request: Request) -> Any:
    return {"user": "ann"}


@pytest.mark.parametrize("authorize", [never, raises, wrong])
async def test_an_authorize_that_fails_is_an_outage_and_no_refusal(
    authorize: Callable[[Request], Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callers, "AUTHORIZE_WINDOW", 0.01)
    async with web(authorize=authorize) as opened:
        answer = await opened.client.get("/events")
        assert code_of(answer) == (503, "authorize_failed")
        assert "SECRET" not in answer.text
        assert answer.headers["retry-after"] == "5"
        stream = await opened.client.get("/events", headers=SSE)
        assert (stream.status_code, stream.text[:7]) == (200, "retry: ")
        assert code_of(await opened.post("x")) == (503, "authorize_failed")
        assert opened.hub.node.totals.auth == {"error": 3}
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


async def test_an_authorize_that_hangs_takes_no_thread_from_the_routes_of_its_app() -> None:
    entered, going_on = threading.Event(), threading.Event()

    def hangs(request: Request) -> Grant | None:
        entered.set()
        going_on.wait(PATIENCE)
        return READER

    async with web(authorize=hangs) as opened, asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(opened.client.get("/grant"))
        assert await asyncio.to_thread(entered.wait, PATIENCE)
        assert to_thread.current_default_thread_limiter().borrowed_tokens == 0
        going_on.set()
    assert asked.result().status_code == 200


async def test_requests_that_wait_for_authorize_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "AUTHORIZING_MAX", 2)
    entered, going_on = asyncio.Queue[None](), asyncio.Event()

    async def slow(request: Request) -> Grant | None:
        entered.put_nowait(None)
        await going_on.wait()
        return READER

    async with web(authorize=slow) as opened, asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(opened.client.get("/grant")) for _ in range(2)]
        for _ in waiting:
            await entered.get()
        assert code_of(await opened.client.get("/grant")) == (503, "overloaded")
        going_on.set()
    assert [task.result().status_code for task in waiting] == [200, 200]


async def test_threads_in_which_authorize_hangs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "AUTHORIZING_MAX", 2)
    going_on, called = threading.Event(), list[Request]()

    def hangs(request: Request) -> Grant | None:
        called.append(request)
        going_on.wait(PATIENCE)
        return READER

    async with web(authorize=hangs) as opened:
        try:
            asking = [asyncio.create_task(opened.client.get("/grant")) for _ in range(2)]
            await until(lambda: len(called) == 2, "both are asked for")
            for task in asking:
                task.cancel()  # nobody waits for these threads any more
            await asyncio.wait(asking)
            assert code_of(await opened.client.get("/grant")) == (503, "overloaded")
        finally:
            going_on.set()
        async with asyncio.timeout(PATIENCE):
            while (await opened.client.get("/grant")).status_code == 503:
                await turns()
    assert len(called) == 3


async def test_a_grant_that_has_expired_counts_no_more_at_any_door() -> None:
    expired = replace(READER, expires=time.time() - 1)
    hub = Hub(authorize=lambda request: expired)

    async def mine(request: Request) -> Response:
        return hub.stream(request, grant=expired)

    hub.app.add_route("/mine", mine)
    async with web(hub) as opened:
        for path in ("/events", "/mine", "/grant", "/stats"):
            assert code_of(await opened.client.get(path, headers=SSE)) == (401, "invalid_token")
        assert code_of(await opened.post("x", topic="news/1")) == (401, "invalid_token")
        assert code_of(await opened.client.post("/tickets")) == (401, "invalid_token")
        with pytest.raises(InvalidToken):
            await hub.ticket(expired)
        assert hub.node.totals.connected == 0


async def test_what_an_app_grants_is_as_old_as_the_request() -> None:
    entered, going_on = asyncio.Event(), asyncio.Event()

    async def slow(request: Request) -> Grant | None:
        entered.set()  # the session was looked at by now
        await going_on.wait()
        return READER

    async with web(authorize=slow) as opened, asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(opened.client.get("/events"))
        await entered.wait()
        # The user logs out while the answer to an earlier request is on its way.
        await opened.hub.node.revoke(Revocation.of(user="ann", lasts=60))
        going_on.set()
        assert code_of(await asked) == (401, "invalid_token")


class Pool:
    """The connections of an app to its database, of which it has five."""

    def __init__(self) -> None:
        self.in_use = self.most = 0

    @contextmanager
    def connection(self) -> Iterator[None]:
        self.in_use += 1
        self.most = max(self.most, self.in_use)
        try:
            yield
        finally:
            self.in_use -= 1


async def test_an_open_stream_holds_nothing_that_authorize_used() -> None:
    pool = Pool()

    async def look_up(request: Request) -> Grant | None:
        with pool.connection():
            await turns(1)
            return READER

    async with web(authorize=look_up) as opened, AsyncExitStack() as stack:
        for _ in range(50):
            stream = await stack.enter_async_context(opened.stream())
            await anext(stream)
        assert len(opened.hub) == 50
        assert (pool.in_use, pool.most) == (0, 1)


async def test_an_authorize_that_hangs_holds_up_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(callers, "AUTHORIZING_MAX", 3)

    async def hangs(request: Request) -> Grant | None:
        await asyncio.Event().wait()
        return READER

    async with web(authorize=hangs, publish_key=KEY) as opened:
        waiting = [asyncio.create_task(opened.client.get("/events")) for _ in range(3)]
        await turns(20)
        assert (await opened.client.get("/healthz")).status_code == 200
        with_key = await opened.client.post("/broadcast", content="x", headers={"Authorization": f"Bearer {KEY}"})
        assert with_key.status_code == 200
        assert code_of(await opened.client.get("/events")) == (503, "overloaded")
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)


# A route of one's own


async def test_a_route_of_ones_own_answers_with_a_stream_in_one_line() -> None:
    hub = Hub()

    async def orders(request: Request) -> Response:
        return hub.stream(request, topics=["users/ann/orders"])

    hub.app.add_route("/my/orders", orders)
    async with web(hub) as opened:
        first = await hub.publish(1, topic="users/ann/orders")
        headers = {"Last-Event-ID": str(first.position._replace(offset=0))}
        async with opened.stream("/my/orders?topic=users/bob/orders", headers=headers) as stream:
            welcome = payload(await anext(stream))
            assert (welcome["topics"], welcome["recovered"]) == (["users/ann/orders"], True)
            assert (await anext(stream)).id == first.id


async def test_whoever_takes_a_name_at_a_route_of_ones_own_gets_nothing_that_is_to_it() -> None:
    hub = Hub()

    async def orders(request: Request) -> Response:
        return hub.stream(request, topics=["orders/*"])

    hub.app.add_route("/orders", orders)
    async with web(hub) as opened, opened.stream("/orders?client=till-3") as stream:
        assert payload(await anext(stream))["client"] == "till-3"
        await hub.publish("for the till", topic="orders/1", to="till-3")
        await hub.publish("for others", topic="orders/1", exclude="till-3")
        await hub.publish("for all", topic="orders/1")
        assert (await anext(stream)).data == "for all"


async def test_a_route_of_ones_own_can_leave_the_topics_to_its_caller_and_bound_them() -> None:
    hub = Hub()

    async def mine(request: Request) -> Response:
        return hub.stream(request, grant=READER)

    async def badly(request: Request) -> Response:
        return hub.stream(request)

    hub.app.add_route("/mine", mine)
    hub.app.add_route("/badly", badly)
    async with web(hub) as opened:
        async with opened.stream("/mine?topic=news/7") as stream:
            assert payload(await anext(stream))["topics"] == ["news/7"]
        assert code_of(await opened.client.get("/mine?topic=users/bob")) == (403, "insufficient_scope")
        assert code_of(await opened.client.get("/mine?last=x")) == (400, "invalid_since")
        with pytest.raises(TypeError, match="topics, or a grant"):
            await opened.client.get("/badly")


@pytest.mark.parametrize("grant", [None, READER])
async def test_a_route_without_any_topics_is_not_one_of_all_topics(grant: Grant | None) -> None:
    hub = Hub()

    async def rooms(request: Request) -> Response:
        return hub.stream(request, topics=[], grant=grant)

    hub.app.add_route("/rooms", rooms)
    async with web(hub) as opened:
        answer = await opened.client.get("/rooms?topic=news/1", headers=SSE)
        assert code_of(answer) == (403, "insufficient_scope")


async def test_a_subscription_in_python_is_bounded_by_its_grant() -> None:
    async with Hub() as hub, hub.subscribe("**", grant=READER) as stream:
        assert stream.topics == ("news/*", "users/ann")
    assert OPEN.admin is False
