"""``/connections`` and ``POST /revoke``."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import jwt
import pytest
from starlette.requests import Request

from sse_app import Config, Hub, create_app
from sse_app.blocks import LASTS_MAX, Block
from sse_app.errors import (
    BrokerUnavailable,
    InvalidClient,
    InvalidParameter,
    InvalidRevocation,
    NoSuchClient,
)
from sse_app.grants import Grant
from sse_app.revocations import LASTS_MAX as REVOKED_MAX
from sse_app.testing import StreamingASGITransport
from tests.support.endpoints import payload
from tests.support.peers import PATIENCE
from tests.support.web import Web, code_of, web

ADMIN, ANN, BOB = ({"X-User": name} for name in ("admin", "ann", "bob"))
SSE = {"Accept": "text/event-stream"}
SECRET = "a secret of 32 bytes and a little more"


def who(request: Request) -> Grant | None:
    name = request.headers.get("x-user")
    if name is None:
        return None
    return Grant.of(user=name, subscribe=["**"], publish=["**"], stats="all", admin=name == "admin", expires_in=600)


@pytest.fixture
async def closed() -> AsyncIterator[Web]:
    async with web(authorize=who) as opened:
        yield opened


@pytest.fixture
async def served() -> AsyncIterator[Web]:
    """What `sse-app serve` is on loopback without any credentials."""
    app = create_app(Config())
    hub, transport = app.state.hub, StreamingASGITransport(app)
    async with hub, httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=PATIENCE) as client:
        yield Web(hub, client)


@asynccontextmanager
async def streams(opened: Web, *names: str) -> AsyncIterator[dict[str, Any]]:
    """A stream of each of these users, whose client has the same name. The welcome was read."""
    async with AsyncExitStack() as stack:
        found = {}
        for name in names:
            url, headers = f"/events?client={name}&topic=news/{name}", {"X-User": name}
            found[name] = await stack.enter_async_context(opened.stream(url, headers=headers))
            await anext(found[name])
        yield found


async def bye(stream: Any) -> Any:
    event = await anext(stream)
    assert event.type == "bye"
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    return payload(event)


async def revoke(opened: Web, body: Any, headers: dict[str, str] = ADMIN) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await opened.client.post("/revoke", content=content, headers=headers)


# Listing


async def test_an_administrator_sees_who_is_connected(closed: Web) -> None:
    async with streams(closed, "ann", "bob"):
        answer = await closed.client.get("/connections", headers=ADMIN)
        assert answer.headers["cache-control"] == "no-store"
        listed = answer.json()
        assert (listed["more"], listed["partial"]) == (False, [])
        ann, bob = sorted(listed["connections"], key=lambda stream: str(stream["client"]))
        assert ann == {
            "client": "ann",
            "user": "ann",
            "topics": ["news/ann"],
            "topics_cut": False,
            "address": "127.0.0.1",
            "since": pytest.approx(time.time(), abs=60),
            "expires": pytest.approx(time.time() + 600, abs=60),
            "source": "authorize",
            "node": closed.hub.broker.board.name,
            "position": str(await closed.hub.broker.top()),
            "behind": False,
            "queued_bytes": 0,
        }
        assert bob["user"] == "bob"
        for query, found in (
            ("user=ann", ["ann"]),
            ("client=bob", ["bob"]),
            ("topic=news/bob", ["bob"]),
            ("topic=news/bob&user=ann", []),
            ("limit=2", ["ann", "bob"]),
            ("limit=1000", ["ann", "bob"]),
        ):
            asked = (await closed.client.get(f"/connections?{query}", headers=ADMIN)).json()
            assert sorted(stream["client"] for stream in asked["connections"]) == found, query
        one = (await closed.client.get("/connections?limit=1", headers=ADMIN)).json()
        assert (len(one["connections"]), one["more"]) == (1, True)


async def test_an_open_server_on_loopback_is_administered_by_everyone(served: Web) -> None:
    async with served.stream("/events?client=till-3") as stream:
        await anext(stream)
        (listed,) = (await served.client.get("/connections")).json()["connections"]
        assert (listed["client"], listed["address"], listed["source"]) == ("till-3", None, "open")
        done = await served.client.delete("/connections/till-3?block=60")
        assert done.json() == {"closed": 1, "nodes": 0, "partial": []}
        assert (await bye(stream))["reason"] == "kicked"
    assert (await revoke(served, {"user": "42"}, {})).status_code == 200


async def test_an_open_hub_that_is_mounted_is_administered_by_nobody() -> None:
    async with web() as opened:
        assert code_of(await opened.client.get("/connections")) == (403, "insufficient_scope")


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("limit=0", "invalid_parameter"),
        ("limit=1001", "invalid_parameter"),
        ("limit=1.5", "invalid_parameter"),
        ("limit=-1", "invalid_parameter"),
        ("limit=", "invalid_parameter"),
        ("limit=%D9%A1", "invalid_parameter"),
        ("limit=1&limit=2", "invalid_parameter"),
        ("limit=9999999999999999999999", "invalid_parameter"),
        ("user=", "invalid_client"),
        ("user=a%20b", "invalid_client"),
        ("client=a/b", "invalid_client"),
        ("client=a&client=b", "invalid_client"),
        ("topic=a/*", "invalid_topic"),
        ("topic=", "invalid_topic"),
        ("usr=42", "unknown_parameter"),
        ("block=60", "unknown_parameter"),
        ("token=secret", "token_in_url"),
        ("user=%ff", "invalid_utf8"),
    ],
)
async def test_what_cannot_be_asked_for(closed: Web, query: str, code: str) -> None:
    assert code_of(await closed.client.get(f"/connections?{query}", headers=ADMIN)) == (400, code)


# Kicking


async def test_a_user_is_kicked_and_comes_back(closed: Web) -> None:
    async with streams(closed, "ann", "bob") as opened:
        done = await closed.client.delete("/connections?user=ann", headers=ADMIN)
        assert done.json() == {"closed": 1, "nodes": 0, "partial": []}
        said = await bye(opened["ann"])
        assert said["reason"] == "kicked"
        assert 2_000 <= said["retry"] <= 5_000
        await closed.hub.publish("x", topic="news/bob")
        assert (await anext(opened["bob"])).data == "x"
    async with streams(closed, "ann"):
        assert closed.hub.node.totals.closed["kicked"] == 1


async def test_a_block_waits_for_an_eventsource_and_refuses_others(closed: Web) -> None:
    async with streams(closed, "ann") as opened:
        await closed.client.delete("/connections/ann?block=60.5", headers=ADMIN)
        assert 60_500 <= (await bye(opened["ann"]))["retry"] <= 61_500
    for url, headers in (("/events?client=ann", BOB), ("/events?client=ann", ANN)):
        answer = await closed.client.get(url, headers=headers)
        assert code_of(answer) == (429, "blocked")
        assert 55 <= int(answer.headers["retry-after"]) <= 61
        assert (await closed.client.head(url, headers=headers)).status_code == 429
        waits = await closed.client.get(url, headers=headers | SSE)
        assert waits.status_code == 200
        assert waits.headers["content-type"].startswith("text/event-stream")
        name, _, retry = waits.text.strip().partition(": ")
        assert name == "retry"
        assert 30_000 <= int(retry) <= 31_000
    async with streams(closed, "bob"):
        pass
    assert (await closed.client.get("/metrics", headers=ADMIN)).text.count("\nsse_app_blocks 1.0\n") == 1


async def test_a_kicked_user_is_kept_out_with_every_ticket(closed: Web) -> None:
    tickets = [(await closed.client.post("/tickets", headers=ANN)).json()["url"] for _ in range(2)]
    async with closed.stream(tickets[0]) as stream:
        await anext(stream)
        await closed.client.delete("/connections?user=ann&block=60", headers=ADMIN)
        assert (await bye(stream))["reason"] == "kicked"
    for url in tickets:
        assert (await closed.client.get(url)).status_code == 429
        assert (await closed.client.get(url, headers=SSE)).text.startswith("retry: ")


async def test_a_kicked_client_does_not_come_back_with_its_ticket_under_another_name(closed: Web) -> None:
    ticket, other = [(await closed.client.post("/tickets", headers=ANN)).json()["url"] for _ in range(2)]
    async with closed.stream(f"{ticket}&client=tab-1") as stream:
        await anext(stream)
        await closed.client.delete("/connections/tab-1?block=60", headers=ADMIN)
        await bye(stream)
    assert (await closed.client.get(f"{ticket}&client=tab-2")).status_code == 429
    async with closed.stream(f"{other}&client=tab-2") as stream:
        await anext(stream)


async def test_a_name_that_no_stream_has(closed: Web) -> None:
    for path in ("/connections/nobody", "/connections?user=nobody"):
        assert code_of(await closed.client.delete(path, headers=ADMIN)) == (404, "no_such_client")
    blocked = await closed.client.delete("/connections/nobody?block=1", headers=ADMIN)
    assert blocked.json() == {"closed": 0, "nodes": 0, "partial": []}


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/connections", (400, "invalid_parameter")),
        ("/connections?block=60", (400, "invalid_parameter")),
        ("/connections?user=", (400, "invalid_client")),
        ("/connections?user=a&user=b", (400, "invalid_client")),
        ("/connections?user=a&client=b", (400, "unknown_parameter")),
        ("/connections?user=a&block=-1", (400, "invalid_parameter")),
        ("/connections?user=a&block=1e3", (400, "invalid_parameter")),
        ("/connections?user=a&block=nan", (400, "invalid_parameter")),
        ("/connections?user=a&block=86401", (400, "invalid_parameter")),
        ("/connections?user=a&block=1&block=2", (400, "invalid_parameter")),
        ("/connections?user=a&token=x", (400, "token_in_url")),
        ("/connections/a%40b", (400, "invalid_client")),
        ("/connections/a%2Fb", (404, "not_found")),
        ("/connections/a?user=b", (400, "unknown_parameter")),
        ("/connections/a?block=x", (400, "invalid_parameter")),
    ],
)
async def test_what_cannot_be_kicked(closed: Web, path: str, answer: tuple[int, str]) -> None:
    assert code_of(await closed.client.delete(path, headers=ADMIN)) == answer


async def test_when_the_board_fails_it_is_to_be_repeated(closed: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*arguments: Any, **options: Any) -> None:
        raise BrokerUnavailable("The board cannot be reached.")

    for name in ("claim", "put"):
        monkeypatch.setattr(closed.hub.broker.board, name, fails)
    async with streams(closed, "ann"):
        for answer in (
            await closed.client.delete("/connections?user=ann", headers=ADMIN),
            await revoke(closed, {"user": "ann"}),
        ):
            assert code_of(answer) == (503, "broker_unavailable")
            assert answer.headers["retry-after"]
        assert len(closed.hub) == 1


# Revoking


async def test_a_user_is_revoked_and_a_new_login_works() -> None:
    async with web(authorize=who) as opened, streams(opened, "ann", "bob") as found:
        done = await revoke(opened, {"user": "ann"})
        assert done.status_code == 200
        assert list(done.json()) == ["id", "closed"]
        assert (done.json()["id"], done.json()["closed"]) == (str(await opened.hub.broker.top()), 1)
        assert (await bye(found["ann"]))["reason"] == "revoked"
        await opened.hub.publish("x", topic="news/bob")
        assert (await anext(found["bob"])).data == "x"
        async with streams(opened, "ann"):
            pass


async def test_the_tickets_of_a_revoked_user_open_nothing(closed: Web) -> None:
    used, unused = [(await closed.client.post("/tickets", headers=ANN)).json()["url"] for _ in range(2)]
    async with closed.stream(used) as stream:
        await anext(stream)
        assert (await revoke(closed, {"user": "ann"})).json()["closed"] == 1
        assert (await bye(stream))["reason"] == "revoked"
    for url in (used, unused):
        for headers in ({}, SSE):
            assert code_of(await closed.client.get(url, headers=headers)) == (401, "invalid_ticket")
    assert len(closed.hub) == 0


async def test_topics_that_are_taken_back_end_a_stream_which_resumes_without_them(closed: Web) -> None:
    async with closed.stream("/events?topic=rooms/*", headers=ANN) as stream:
        await anext(stream)
        answer = await revoke(closed, {"user": "ann", "topics": ["rooms/7"], "for": 60})
        assert answer.json()["closed"] == 1
        said = await bye(stream)
        assert (said["reason"], said["retry"] <= 1_000) == ("changed", True)
    await closed.hub.publish("not for ann", topic="rooms/7")
    await closed.hub.publish("for ann", topic="rooms/8")
    async with closed.stream("/events?topic=rooms/*&last=10", headers=ANN) as stream:
        await anext(stream)
        assert (await anext(stream)).data == "for ann"


@pytest.mark.parametrize("what", ["token", "session", "key", "kid"])
async def test_what_else_can_be_taken_back(closed: Web, what: str) -> None:
    assert (await revoke(closed, {what: "x" * 100, "topics": None, "for": None})).status_code == 200


async def test_a_revoked_administrator_administers_nothing() -> None:
    def bearer(user: str) -> dict[str, str]:
        made = {"sub": user, "iat": time.time() - 60, "exp": time.time() + 600, "sse": {"admin": True}}
        return {"Authorization": f"Bearer {jwt.encode(made, SECRET, 'HS256')}"}

    async with web(token_secret=SECRET) as opened:
        root, other = bearer("root"), bearer("other")
        assert (await revoke(opened, {"user": "root"}, root)).status_code == 200
        for method, path in ASKED:
            answer = await opened.client.request(method, path, headers=root)
            assert code_of(answer) == (401, "invalid_token"), path
        assert (await opened.client.get("/connections", headers=other)).status_code == 200


async def test_what_authorize_grants_after_a_revocation_counts(closed: Web) -> None:
    """The app was asked anew, and still grants."""
    assert (await revoke(closed, {"user": "admin"})).status_code == 200
    assert (await closed.client.get("/connections", headers=ADMIN)).status_code == 200


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (b"", (400, "invalid_revocation")),
        (b"{", (400, "invalid_revocation")),
        (b"\xff", (400, "invalid_revocation")),
        (b"[" * 10_000, (400, "invalid_revocation")),
        (b" " * (16 * 1024 + 1), (400, "invalid_revocation")),
        ([], (400, "invalid_revocation")),
        ({}, (400, "invalid_revocation")),
        ({"user": None}, (400, "invalid_revocation")),
        ({"user": "a", "key": "b"}, (400, "invalid_revocation")),
        ({"user": "a", "why": "b"}, (400, "invalid_revocation")),
        ({"user": 42}, (400, "invalid_revocation")),
        ({"user": "a", "for": 0}, (400, "invalid_revocation")),
        ({"user": "a", "for": "60"}, (400, "invalid_revocation")),
        ({"user": "a", "for": REVOKED_MAX + 1}, (400, "invalid_revocation")),
        ({"user": "a", "topics": []}, (400, "invalid_revocation")),
        ({"user": "a", "topics": "b"}, (400, "invalid_revocation")),
        ({"user": "a", "topics": ["**/b"]}, (400, "invalid_topic")),
        ({"user": "a", "topics": [str(number) for number in range(101)]}, (400, "too_many_topics")),
        ({"user": "a b"}, (400, "invalid_client")),
        ({"token": ""}, (400, "invalid_revocation")),
    ],
)
async def test_what_is_no_revocation(closed: Web, body: Any, answer: tuple[int, str]) -> None:
    assert code_of(await revoke(closed, body)) == answer
    assert (await closed.hub.broker.top()).offset == 0


async def test_a_token_does_not_belong_in_the_url_of_a_revocation(closed: Web) -> None:
    answer = await closed.client.post("/revoke?token=x", content=b'{"user":"a"}', headers=ADMIN)
    assert code_of(answer) == (400, "token_in_url")


# Who may


ASKED = (
    ("GET", "/connections"),
    ("DELETE", "/connections?user=ann"),
    ("DELETE", "/connections/ann"),
    ("POST", "/revoke"),
)


@pytest.mark.parametrize(("method", "path"), ASKED)
async def test_only_an_administrator_may(method: str, path: str) -> None:
    grants = {
        "nobody": None,
        "nothing": Grant(),
        "reader": Grant.of(user="reader", subscribe=["**"]),
        "publisher": Grant.of(user="publisher", publish=["**"], stats="all"),
        "minter": Grant.of(user="minter", subscribe=["**"], publish=["**"], stats="all", mint=True),
        "admin": Grant.of(user="admin", admin=True),
    }
    async with web(authorize=lambda request: grants[request.headers["x-user"]]) as opened:
        answers = {}
        for name in grants:
            async with opened.hub.subscribe(client="ann", grant=Grant.of(user="ann", subscribe=["**"])):
                answer = await opened.client.request(
                    method, path, headers={"X-User": name}, content=b'{"user":"ann"}' if method == "POST" else None
                )
            answers[name] = answer.status_code
        assert answers == {"nobody": 401, **dict.fromkeys(list(grants)[1:-1], 403), "admin": 200}
        assert opened.hub.node.totals.auth["scope"] == 4


PAGE = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}


@pytest.mark.parametrize(("method", "path"), ASKED)
async def test_a_cookie_administers_nothing_from_any_page(method: str, path: str) -> None:
    claims = {"exp": time.time() + 600, "sub": "root", "sse": {"subscribe": ["**"], "admin": True, "stats": "all"}}
    token = jwt.encode(claims, SECRET, "HS256")
    async with web(token_secret=SECRET, auth_cookies=("session",)) as opened:
        opened.client.cookies.set("session", token)
        body = b'{"key":"x"}' if method == "POST" else None
        reads = method == "GET"
        for headers, answer in (
            (PAGE, (403, "insufficient_scope")),
            ({}, (403, "insufficient_scope" if reads else "bad_origin")),
            ({"Origin": "https://evil.example"}, (403, "bad_origin")),
            ({"Origin": "null"}, (403, "bad_origin")),
        ):
            refused = await opened.client.request(method, path, headers=headers, content=body)
            assert code_of(refused) == answer, headers
        async with opened.hub.subscribe(client="ann", grant=Grant.of(user="ann", subscribe=["**"])):
            allowed = {"Authorization": f"Bearer {token}", **PAGE}
            assert (await opened.client.request(method, path, headers=allowed, content=body)).status_code == 200


# From Python


async def test_a_hub_lists_kicks_and_revokes() -> None:
    async with Hub() as hub:
        grant = Grant.of(user="ann", subscribe=["**"])
        async with hub.subscribe("a", client="tab", grant=grant) as stream:
            await stream.read()
            (found,) = (await hub.connections(user="ann", topic="a")).connections
            assert (found.client, found.address, (await hub.connections(client="other")).connections) == (
                "tab",
                None,
                [],
            )
            assert (await hub.kick(client="tab")).closed == 1
            assert b"kicked" in await stream.read()
        async with hub.subscribe(grant=grant) as stream:
            await stream.read()
            revoked = await hub.revoke(user="ann", topics="a", lasts=60)
            assert (revoked.position, revoked.closed) == (await hub.broker.top(), 1)
        assert (await hub.kick(user="ann", block=5)).closed == 0
        with pytest.raises(NoSuchClient):
            await hub.kick(user="bob")
        for wrong in ({}, {"client": "a", "user": "b"}):
            with pytest.raises(TypeError):
                await hub.kick(**wrong)  # type: ignore[arg-type]
        for error, call in (
            (InvalidParameter, hub.connections(limit=0)),
            (InvalidClient, hub.connections(client="a b")),
            (InvalidParameter, hub.kick(user="ann", block=LASTS_MAX + 1)),
            (InvalidRevocation, hub.revoke()),
        ):
            with pytest.raises(error):
                await call


async def test_a_revocation_lasts_as_long_as_a_token_may_but_at_most_31_days() -> None:
    for age, lasts in ((3_600.0, 3_600.0), (365 * 86_400.0, REVOKED_MAX)):
        async with Hub(token_max_age=age) as hub:
            await hub.revoke(user="ann")
            ((revocation,),) = hub.node.revoking.revocations._standing.values()
            assert revocation.until - revocation.made == pytest.approx(lasts)


def test_a_block_says_nothing_of_a_credential() -> None:
    assert set(Block.__struct_fields__) == {"who", "name", "made", "until", "v"}


async def test_a_revocation_that_does_not_say_lasts_31_days_where_tokens_last_longer() -> None:
    async with web(authorize=who, token_max_age=365 * 86_400.0) as opened:
        assert (await revoke(opened, {"user": "ann"})).status_code == 200
