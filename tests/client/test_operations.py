"""Tickets, connections, kicks and revocations: what is sent, and what comes back."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from sse_app import Client, SyncClient
from sse_app.client import Ticket
from sse_app.errors import BadInput, Closed, InvalidClient, InvalidRevocation, InvalidTopic, Refused, Unreachable
from sse_app.testing import events
from tests.client.test_client import Scripted, client_and_hub, client_of, problem
from tests.support.web import LiveHub, live_hub

KEY = "ssk_ops_" + "x" * 43
TICKET = {"ticket": "t" * 22, "url": "/events?ticket=" + "t" * 22, "ttl": 30.0, "expires": 2e9}

Work = Callable[[Client], Awaitable[object]]


def made(status: int = 200, **answer: Any) -> httpx.Response:
    return httpx.Response(status, json=answer)


@pytest.mark.parametrize(
    ("work", "answer", "line", "body"),
    [
        (lambda c: c.ticket(), made(201, **TICKET), "POST /tickets", {}),
        (
            lambda c: c.ticket("a", "b/*", user="42", client="tab-*", stats="own", ttl=60, expires_in=600),
            made(201, **TICKET),
            "POST /tickets",
            {"user": "42", "topics": ["a", "b/*"], "client": "tab-*", "stats": "own", "ttl": 60, "expires_in": 600},
        ),
        (lambda c: c.connections(), made(connections=[]), "GET /connections", None),
        (
            lambda c: c.connections(user="ä/1", client="till-3", topic="a", limit=1000),
            made(connections=[]),
            "GET /connections?user=%C3%A4%2F1&client=till-3&topic=a&limit=1000",
            None,
        ),
        (lambda c: c.kick("till-3"), made(closed=1, nodes=0), "DELETE /connections/till-3", None),
        (lambda c: c.kick(user="42", block=60), made(closed=1, nodes=0), "DELETE /connections?user=42&block=60", None),
        (lambda c: c.revoke(user="42"), made(id="e-1", closed=2), "POST /revoke", {"user": "42"}),
        (
            lambda c: c.revoke(kid="k1", topics="a/*", lasts=86_400.0),
            made(id="e-1", closed=2),
            "POST /revoke",
            {"kid": "k1", "topics": ["a/*"], "for": 86_400.0},
        ),
    ],
)
async def test_a_request_says_what_was_given_and_no_more(
    work: Work, answer: httpx.Response, line: str, body: dict[str, object] | None
) -> None:
    transport = Scripted(answer)
    async with client_of(transport, token=KEY) as client:
        came = await work(client)
    [request] = transport.requests
    assert f"{request.method} {request.url.raw_path.decode()}" == line
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert (json.loads(request.content) if request.content else None) == body
    if not isinstance(came, Ticket):
        assert came == answer.json()


async def test_a_ticket_has_its_url_and_shows_nothing_of_itself() -> None:
    async with client_of(Scripted(made(201, **TICKET))) as client:
        ticket = await client.ticket()
    assert (ticket.ticket, ticket.ttl, ticket.expires) == ("t" * 22, 30.0, 2e9)
    assert ticket.url == f"http://localhost/events?ticket={'t' * 22}"
    assert "ttt" not in repr(ticket)


async def test_an_event_source_opens_a_stream_with_a_ticket() -> None:
    async with client_and_hub() as (client, hub):
        ticket = await client.ticket("orders/*", client="till-3", expires_in=60)
        await hub.publish("told", topic="orders/1")
        await hub.publish("not asked for", topic="news")
        opened = client._http._http.stream("GET", ticket.url, params=None)  # as a browser does: the URL, no header
        async with opened as response:
            welcome = await anext(events(response))
    assert json.loads(welcome.data)["topics"] == ["orders/*"]
    assert json.loads(welcome.data)["client"] == "till-3"


@pytest.mark.parametrize(
    ("work", "error"),
    [
        (lambda c: c.kick(), InvalidClient),
        (lambda c: c.kick("a", user="b"), InvalidClient),
        (lambda c: c.kick("a/b"), InvalidClient),
        (lambda c: c.kick(".."), InvalidClient),
        (lambda c: c.revoke(), InvalidRevocation),
        (lambda c: c.revoke(user="a", key="b"), InvalidRevocation),
        (lambda c: c.revoke(user="a", topics=5), InvalidTopic),
        (lambda c: c.ticket(5), InvalidTopic),
        (lambda c: c.connections(user="\ud800"), BadInput),
    ],
)
async def test_what_makes_no_sense_is_not_sent(work: Work, error: type[Exception]) -> None:
    transport = Scripted(made(x=1))
    async with client_of(transport) as client:
        with pytest.raises(error):
            await work(client)
    assert transport.requests == []


async def test_a_refusal_and_an_answer_of_something_else_are_errors() -> None:
    transport = Scripted(
        problem(403, "insufficient_scope", "No."),
        made(201, ticket=5),
        made(200, **TICKET),
        httpx.ConnectError("gone"),
    )
    async with client_of(transport) as client:
        with pytest.raises(Refused, match=r"No\. \(403 insufficient_scope\)"):
            await client.revoke(user="42")
        for _ in range(2):
            with pytest.raises(Refused):
                await client.ticket()
        with pytest.raises(Unreachable, match="gone"):
            await client.kick("a")
    with pytest.raises(Closed):
        await client.connections()


@pytest.mark.parametrize("work", [lambda c: c.ticket(), lambda c: c.connections(), lambda c: c.kick("a")])
async def test_a_newer_token_is_asked_for_once(work: Work) -> None:
    tokens: list[bool] = []

    def token(*, refresh: bool) -> str:
        tokens.append(refresh)
        return f"token-{len(tokens)}"

    transport = Scripted(problem(401, "invalid_token", "No."))
    async with client_of(transport, token=token) as client:
        with pytest.raises(Refused, match="invalid_token"):
            await work(client)
    assert tokens == [False, True]
    assert len(transport.requests) == 2


@pytest.fixture
def hub() -> Any:
    with live_hub() as hub:
        yield hub


def test_a_client_without_a_loop_does_the_same(hub: LiveHub) -> None:
    with SyncClient(hub.url) as client:
        ticket = client.ticket("orders/*", ttl=60)
        assert ticket.url.startswith(f"{hub.url}/events?ticket=")
        with httpx.stream("GET", ticket.url) as response:
            assert response.status_code == 200
        with pytest.raises(InvalidClient):
            client.kick()
        with pytest.raises(InvalidRevocation):
            client.revoke(user="a", key="b")
