import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sse_app import EventDecoder, Hub
from sse_app.brokers import Page
from sse_app.brokers.memory import MemoryBroker
from sse_app.errors import Blocked, TooManyRequests
from sse_app.joining import StreamRequest
from sse_app.node import Node
from sse_app.publication import Position
from sse_app.server import Protocol
from sse_app.testing import StreamingASGITransport, events, live
from sse_app.topics import TopicFilter
from sse_app.web.stream import LIMITED, EventStream, refusal
from tests.support.endpoints import payload
from tests.support.peers import PATIENCE
from tests.support.reference import ReferenceStream
from tests.support.web import LiveHub, Web, code_of, live_hub, read_until, web

EVENT_SOURCE = {"Accept": "text/event-stream"}
HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store, no-transform",
    "x-accel-buffering": "no",
}
ASGI_VERSIONS = ("2.3", "2.4")


@pytest.fixture
async def hub_web() -> AsyncIterator[Web]:
    async with web() as opened:
        yield opened


@pytest.fixture(scope="module")
def server() -> Iterator[LiveHub]:
    with live_hub(drain=0.2) as running:
        yield running


def streams_of(node: Node, kind: type[EventStream]) -> Starlette:
    async def endpoint(request: Request) -> EventStream:
        cursor = request.headers.get("last-event-id", "").encode()
        return kind(node, StreamRequest.parse(request.query_params.getlist("topic"), after=cursor or None))

    return Starlette(routes=[Route("/", endpoint)])


# The first bytes on the wire


async def test_the_headers_of_a_stream_are_exactly_these(hub_web: Web) -> None:
    async with hub_web.client.stream("GET", "/events") as response:
        assert (response.status_code, dict(response.headers)) == (200, HEADERS)


def test_on_a_connection_of_ours_a_stream_is_in_chunks_and_has_no_length(server: LiveHub) -> None:
    with httpx.stream("GET", f"{server.url}/events", timeout=PATIENCE) as response:
        headers = dict(response.headers)
        assert headers.pop("date")
        assert headers == HEADERS | {"transfer-encoding": "chunked"}
        assert next(response.iter_raw()).startswith(b"retry: ")


async def test_the_first_block_is_the_welcome_with_a_reconnection_time(hub_web: Web) -> None:
    await hub_web.post("before")
    async with hub_web.client.stream("GET", "/events") as response:
        decoder = EventDecoder()
        (welcome,) = decoder.feed(await anext(response.aiter_raw()))
    data = msgspec.json.decode(welcome.data)
    assert (welcome.type, data["message"], data["subscribers"]) == ("welcome", "Welcome!", 1)
    assert welcome.id == data["top"] == data["last"]["id"] == str(await hub_web.hub.broker.top())
    assert welcome.retry == data["retry"]
    assert 2_000 <= data["retry"] <= 5_000


async def test_the_welcome_goes_to_the_new_client_alone(hub_web: Web) -> None:
    async with hub_web.stream() as first:
        await anext(first)
        async with hub_web.stream() as second:
            await anext(second)
            await hub_web.post("x")
            assert (await anext(first)).data == (await anext(second)).data == "x"


@pytest.mark.parametrize("encoding", ["gzip", "br", "gzip, br", "gzip, deflate, br, zstd", "*"])
async def test_a_compressing_middleware_leaves_the_stream_alone(encoding: str) -> None:
    hub = Hub()
    app = Starlette(
        routes=[Mount("/hub", hub.app)], middleware=[Middleware(GZipMiddleware, minimum_size=1)], lifespan=hub.lifespan
    )
    transport = StreamingASGITransport(app, lifespan=True)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=PATIENCE) as client:
        headers = {"Accept-Encoding": encoding}
        async with client.stream("GET", "/hub/events", headers=headers) as response:
            assert "content-encoding" not in response.headers
            received = events(response)
            assert (await anext(received)).type == "welcome"
            await client.post("/hub/broadcast", content="x")
            assert (await anext(received)).data == "x"


def test_a_compressing_middleware_leaves_the_stream_alone_on_a_real_socket_too() -> None:
    hub = Hub()
    app = Starlette(
        routes=[Mount("/hub", hub.app)], middleware=[Middleware(GZipMiddleware, minimum_size=1)], lifespan=hub.lifespan
    )
    headers = {"Accept-Encoding": "gzip, br"}
    with (
        live(app) as server,
        httpx.stream("GET", f"{server.url}/hub/events", headers=headers, timeout=PATIENCE) as response,
    ):
        assert "content-encoding" not in response.headers
        assert "event: welcome" in response.iter_lines()


class Encoding:
    """A middleware that compresses streams, too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def encode(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-encoding", b"x-upper")]
            elif message.get("body"):
                message["body"] = message["body"].upper()
            await send(message)

        await self._app(scope, receive, encode)


def test_a_stream_that_a_middleware_encodes_all_the_same_goes_through_it_on_our_connections_too() -> None:
    hub = Hub()
    app = Starlette(routes=[Mount("/hub", hub.app)], middleware=[Middleware(Encoding)], lifespan=hub.lifespan)
    with (
        live(app, http=Protocol) as server,
        httpx.stream("GET", f"{server.url}/hub/events", timeout=PATIENCE) as response,
    ):
        assert response.headers["content-encoding"] == "x-upper"
        lines = response.iter_lines()
        assert "EVENT: WELCOME" in lines
        hub.publish_threadsafe("after the welcome")
        assert "DATA: AFTER THE WELCOME" in lines


# HEAD


async def test_300_heads_leave_no_subscriber(hub_web: Web) -> None:
    for _ in range(300):
        response = await hub_web.client.head("/events")
        assert (response.status_code, dict(response.headers), response.content) == (200, HEADERS, b"")
    assert len(hub_web.hub) == hub_web.hub.node.totals.connected == 0


def test_300_heads_on_one_connection_leave_no_subscriber(server: LiveHub) -> None:
    before = server.hub.node.totals.connected
    head = b"HEAD /events HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with server.connect() as connection:
        for _ in range(300):
            connection.sendall(head)
            assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 200 OK\r\n")
    assert server.hub.node.totals.connected == before


# Full, or stopping


def later(response: httpx.Response) -> int:
    """The reconnection time of a stream that has nothing else."""
    assert (response.status_code, response.headers["content-type"]) == (200, HEADERS["content-type"])
    field, blank, end = response.text.split("\n")
    assert (blank, end) == ("", "")
    return int(field.removeprefix("retry: "))


async def test_a_full_hub_sends_an_event_source_away_for_a_while_and_others_a_503() -> None:
    async with web(max_subscribers=1) as full, full.stream() as events:
        await anext(events)
        assert 4_000 <= later(await full.client.get("/events", headers=EVENT_SOURCE)) <= 10_000
        refused = await full.client.get("/events", headers={"Accept": "*/*"})
        assert code_of(refused) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) > 0
        assert (len(full.hub), full.hub.node.totals.refused) == (1, 2)
        await full.post("x")
        assert (await anext(events)).data == "x"


async def test_there_is_room_again_when_somebody_has_left() -> None:
    async with web(max_subscribers=1) as small:
        for _ in range(3):
            async with small.stream() as events:
                assert (await anext(events)).type == "welcome"


async def test_a_stopping_hub_sends_an_event_source_away_for_a_while_and_others_a_503(hub_web: Web) -> None:
    hub_web.hub.node.stop_accepting()
    assert later(await hub_web.client.get("/events", headers=EVENT_SOURCE)) >= 4_000
    refused = await hub_web.client.get("/events")
    assert code_of(refused) == (503, "draining")
    assert int(refused.headers["retry-after"]) > 0


@pytest.mark.virtual_time
async def test_a_drained_stream_ends_with_bye_after_what_was_queued(hub_web: Web) -> None:
    async with hub_web.stream() as received:
        await anext(received)
        await hub_web.post("the last")
        await hub_web.hub.drain()
        last, bye = [event async for event in received]
    assert (last.data, bye.type, bye.id) == ("the last", "bye", last.id)
    assert msgspec.json.decode(bye.data) == {"reason": "drain", "retry": bye.retry}
    assert hub_web.hub.node.totals.closed == {"drain": 1}


# How a stream ends


@pytest.mark.parametrize("kind", [EventStream, ReferenceStream])
@pytest.mark.parametrize("version", ASGI_VERSIONS)
async def test_a_client_that_leaves_leaves_no_subscriber(kind: type[EventStream], version: str) -> None:
    async with Hub() as hub:
        transport = StreamingASGITransport(streams_of(hub.node, kind), spec_version=version)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=PATIENCE) as client:
            for _ in range(20):
                async with client.stream("GET", "/") as response:
                    await anext(events(response))
                    assert len(hub) == 1
        assert len(hub) == 0
        assert hub.node.totals.closed == {"gone": 20}


@pytest.mark.parametrize("version", ASGI_VERSIONS)
async def test_a_client_that_leaves_in_the_middle_of_a_replay_leaves_no_subscriber(version: str) -> None:
    async with web(transport={"spec_version": version}) as hub_web:
        first = await hub_web.hub.publish("x" * 1000)
        for _ in range(3000):
            await hub_web.hub.publish("x" * 1000)
        async with hub_web.stream(headers={"Last-Event-ID": first.id}) as events:
            await anext(events)
            await anext(events)
        assert len(hub_web.hub) == 0
        assert hub_web.hub.node.totals.delivered < 3000


async def test_a_subscription_against_the_rules_never_begins(hub_web: Web) -> None:
    refused = await hub_web.client.get("/events?topic=a/**/b")
    assert code_of(refused) == (400, "invalid_topic")
    assert "only at the end" in refused.text
    assert (len(hub_web.hub), hub_web.hub.node.totals.connected) == (0, 0)


class Unreadable(MemoryBroker):
    """A log that fails to be read from anywhere but its end."""

    def at_hand(self, after: Position, until: Position, topic_filter: TopicFilter) -> None:
        return None

    async def replay(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page:
        raise ValueError("m4rk3r")


@pytest.mark.parametrize("kind", [EventStream, ReferenceStream])
async def test_one_stream_that_fails_ends_alone_and_is_logged_in_one_line(
    caplog: pytest.LogCaptureFixture, kind: type[EventStream]
) -> None:
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(Hub(Unreadable()))
        transport = StreamingASGITransport(streams_of(hub.node, kind))
        client = httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=PATIENCE)
        await stack.enter_async_context(client)
        healthy = events(await stack.enter_async_context(client.stream("GET", "/")))
        await anext(healthy)
        first, second = await hub.publish("m4rk3r"), await hub.publish("m4rk3r")
        failing = await client.get("/", headers={"Last-Event-ID": first.id})
        assert [event.type for event in EventDecoder().feed(failing.content)] == ["welcome"]
        await hub.publish("next")
        assert [(await anext(healthy)).data for _ in range(3)] == ["m4rk3r", "m4rk3r", "next"]
        assert (len(hub), hub.node.totals.closed, second.subscribers) == (1, {"error": 1}, 1)
    records = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage() for record in records] == ["a stream was ended by our mistake: ValueError"]
    assert not records[0].exc_info


def test_one_direct_stream_that_fails_ends_alone_with_the_final_chunk(caplog: pytest.LogCaptureFixture) -> None:
    with live_hub(drain=0.2) as server, server.connect() as connection:
        for name in ("at_hand", "replay"):
            setattr(server.hub.broker, name, getattr(Unreadable(), name))
        server.hub.publish_threadsafe("0")
        cursor = str(server.hub.publish_threadsafe("1").position._replace(offset=1))
        connection.sendall(f"GET /events HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: {cursor}\r\n\r\n".encode())
        assert read_until(connection, b"").endswith(b"\n\n\r\n0\r\n\r\n")
        assert server.hub.publish_threadsafe("next").subscribers == 0
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == [
        "a stream was ended by our mistake: ValueError"
    ]


# One stream, three ways


Scenario = Callable[[Hub], Any]


async def nothing(hub: Hub) -> None:
    pass


async def live_events(hub: Hub) -> None:
    await hub.publish("one")
    await hub.publish("two", topic="a/1")
    await hub.publish("not for them", topic="b")


async def a_burst(hub: Hub) -> None:
    for number in range(500):
        await hub.publish(f"{number}\n" * 3, event="burst")


@pytest.mark.parametrize("scenario", [nothing, live_events, a_burst])
@pytest.mark.parametrize("version", ASGI_VERSIONS)
async def test_a_stepped_stream_is_the_reference_byte_for_byte(scenario: Scenario, version: str) -> None:
    wanted = await drained(lambda hub: streams_of(hub.node, ReferenceStream), scenario, version)
    assert await drained(lambda hub: streams_of(hub.node, EventStream), scenario, version) == wanted
    assert wanted.count(b"event: bye") == 1


async def drained(app: Callable[[Hub], ASGIApp], scenario: Scenario, version: str) -> bytes:
    """The whole stream, without its random parts."""
    async with Hub(drain=PATIENCE) as hub:
        transport = StreamingASGITransport(app(hub), spec_version=version)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=PATIENCE) as client:
            await hub.publish("before")
            async with client.stream("GET", "/?topic=a/*", headers={"Last-Event-ID": "other-1"}) as response:
                chunks = response.aiter_raw()
                received = [await anext(chunks)]
                reader = asyncio.create_task(collect(chunks, received))
                await scenario(hub)
                await hub.drain()
                await reader
    return without_chance(b"".join(received))


async def collect(chunks: AsyncIterator[bytes], into: list[bytes]) -> None:
    async for chunk in chunks:
        into.append(chunk)


# By fields: a search for the text of the reconnection time could find it within a date.
CHANCE = re.compile(
    rb'(retry: |"retry":)\d+|("time":"|"client":")[^"]+|\b[0-9a-f]{12}(?=-\d)',
)


def without_chance(stream: bytes) -> bytes:
    return CHANCE.sub(lambda match: (match[1] or match[2] or b"") + b"...", stream)


@pytest.mark.parametrize("wait", [0.1, 12.0, 100.0])
async def test_who_has_reached_a_limit_comes_back_in_10_to_30_seconds(wait: float) -> None:
    scope = {"type": "http", "http_version": "1.1", "headers": [(b"accept", b"text/event-stream")]}
    for _ in range(20):
        answer = refusal(TooManyRequests("Too many.", wait), scope, 2_000)
        (bye,) = EventDecoder().feed(bytes(answer.body))
        retry = payload(bye)["retry"]
        assert (bye.type, payload(bye)["reason"], bye.retry) == ("bye", "limit", retry)
        assert max(LIMITED[0], min(wait * 1_000, LIMITED[1])) <= retry <= LIMITED[1]


@pytest.mark.parametrize(("wait", "least"), [(0.1, 300), (12.0, 12_200), (3_600.0, 30_200)])
async def test_who_is_kept_out_comes_back_when_that_ends_or_in_half_a_minute(wait: float, least: int) -> None:
    scope = {"type": "http", "http_version": "1.1", "headers": [(b"accept", b"text/event-stream")]}
    for _ in range(20):
        answer = refusal(Blocked("Out.", wait), scope, 2_000)
        assert least <= int(bytes(answer.body).decode().removeprefix("retry: ")) <= least + 800
