"""A hub under a real EventSource: the stream stays alive and resumes, and no foreign page gets in."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import httpx
import pytest
from playwright.sync_api import Browser, Page
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sse_app import create_app
from sse_app.config import Config
from sse_app.events import RESERVED_TYPES
from sse_app.hub import Hub
from sse_app.pytest_plugin import HubServer
from sse_app.testing import live

pytestmark = pytest.mark.browser

QUICK = 0.02  # seconds until a reconnect, in place of 2 to 5

WATCH = """url => {
    window.seen = {events: [], errors: 0};
    window.source = new EventSource(url);
    source.onerror = () => seen.errors++;
    for (const type of ["message", "welcome", "gap", "bye", "cursor"])
        source.addEventListener(type, event => seen.events.push([event.type, event.data, event.lastEventId]));
}"""


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A tab whose console may have errors: the hub refuses requests here."""
    context = browser.new_context()
    yield context.new_page()
    context.close()


class Front:
    """An ASGI app in front of another, which records the requests of browsers and the answers.

    With ``ending`` it ends every stream after its first publication, as a server or proxy may.
    """

    def __init__(self, app: ASGIApp, *, ending: bool = False) -> None:
        self.app, self.ending = app, ending
        self.asked: list[tuple[str, str | None]] = []  # method, Last-Event-ID
        self.answered: list[tuple[str, int]] = []  # method, status
        self.opened_at: list[float] = []
        self.ended_at: list[float] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in ("/events", "/broadcast"):
            await self.app(scope, receive, send)
            return
        cursor = dict(scope["headers"]).get(b"last-event-id")
        self.asked.append((scope["method"], cursor and cursor.decode()))
        self.opened_at.append(perf_counter())
        ended = asyncio.Event()

        async def note(message: Message) -> None:
            if ended.is_set():
                return
            if message["type"] == "http.response.start":
                self.answered.append((scope["method"], message["status"]))
            elif self.ending and message["body"].count(b"id: ") > message["body"].count(b"event: welcome"):
                message = {**message, "more_body": False}
                self.ended_at.append(perf_counter())
                ended.set()
            await send(message)

        async def leave() -> Message:
            left = asyncio.create_task(ended.wait())
            gone = asyncio.ensure_future(receive())
            try:
                await asyncio.wait((left, gone), return_when=asyncio.FIRST_COMPLETED)
                return {"type": "http.disconnect"} if left.done() else gone.result()
            finally:
                left.cancel()
                gone.cancel()

        await self.app(scope, leave, note)


@contextmanager
def page_of_its_own() -> Iterator[str]:
    """The URL of a page of another origin."""

    async def page(request: Request) -> Response:
        return HTMLResponse("<title>A foreign page</title><iframe name=frame></iframe>")

    with live(Starlette(routes=[Route("/", page)])) as server:
        yield server.url


def watch(page: Page, url: str, origin: str | None = None) -> None:
    """Open an EventSource in a page of that origin, the hub's own by default."""
    page.goto(origin or httpx.URL(url).join("/healthz").__str__())
    page.evaluate(WATCH, url)


def seen(page: Page, number: int) -> list[list[str]]:
    """The events that the page got, [type, data, lastEventId] each, once there are so many."""
    page.wait_for_function("number => seen.events.length >= number", arg=number)
    events: list[list[str]] = page.evaluate("seen.events")
    return events


def errors(page: Page) -> int:
    return int(page.evaluate("seen.errors"))


def ready_state(page: Page) -> int:
    """The readyState: 0 connecting, 1 open, 2 closed for good."""
    return int(page.evaluate("source.readyState"))


def test_a_publisher_cannot_fire_the_pages_own_handlers(sse_server: HubServer, page: Page) -> None:
    watch(page, sse_server.url + "/events")
    seen(page, 1)
    for type in sorted(RESERVED_TYPES):
        answer = httpx.post(f"{sse_server.url}/broadcast?event={type}", content="x")
        assert (answer.status_code, answer.json()["code"]) == (400, "reserved_event")
    sse_server.hub.publish_threadsafe("allowed")
    assert [(type, data) for type, data, _ in seen(page, 2)][1:] == [("message", "allowed")]
    assert errors(page) == 0


def test_empty_null_and_blank_lines_arrive_as_what_they_are(sse_server: HubServer, page: Page) -> None:
    watch(page, sse_server.url + "/events")
    seen(page, 1)
    broadcast, json = sse_server.url + "/broadcast", {"Content-Type": "application/json"}
    assert httpx.post(broadcast, content="").json()["code"] == "empty_body"
    ids = [httpx.post(broadcast, content=body, headers=json).json()["id"] for body in ("null", '""')]
    ids.append(httpx.post(broadcast, content="\n").json()["id"])
    ids.append(sse_server.hub.publish_threadsafe("").id)
    assert seen(page, 5)[1:] == [["message", data, id] for data, id in zip(("null", '""', "\n", ""), ids, strict=True)]
    assert len(set(ids)) == 4


def test_the_welcome_comes_first_also_while_others_publish(sse_server: HubServer, page: Page) -> None:
    page.goto(sse_server.url + "/healthz")
    page.evaluate(
        """() => {
            window.firsts = [];
            const connect = () => {
                const source = new EventSource("/events"), types = [];
                const take = event => {
                    types.push(event.type);
                    if (types.length < 3) return;
                    source.close();
                    firsts.push(types[0]);
                    if (firsts.length < 20) connect();
                };
                source.onmessage = take;
                source.addEventListener("welcome", take);
            };
            for (let i = 0; i < 4; i++) connect();
        }"""
    )
    while len(firsts := page.evaluate("firsts")) < 20:
        for _ in range(10):
            sse_server.hub.publish_threadsafe("x")
    assert set(firsts) == {"welcome"}


@pytest.mark.parametrize("foreign", [False, True], ids=["same origin", "another origin"])
def test_twenty_closed_streams_are_twenty_resumes_without_a_preflight(page: Page, foreign: bool) -> None:
    with page_of_its_own() as origin:
        app = create_app(Config(cors_origins=(origin,), retry_min=QUICK, retry_max=2 * QUICK))
        front = Front(app, ending=True)
        with live(front) as server:
            watch(page, server.url + "/events", origin if foreign else None)
            seen(page, 1)
            ids: list[str | None] = []
            for number in range(1, 21):
                ids.append(app.state.hub.publish_threadsafe(str(number)).id)
                messages = seen_messages(page, number)
            page.wait_for_function("seen.errors == 20 && source.readyState == 1")
    assert messages == ids
    asked = [cursor for method, cursor in front.asked if method == "GET"][-21:]
    assert asked == [None, *ids]
    assert "OPTIONS" not in [method for method, _ in front.asked]
    delays = [opened - ended for ended, opened in zip(front.ended_at, front.opened_at[-20:], strict=True)]
    print(f"reconnects after {min(delays) * 1000:.0f} to {max(delays) * 1000:.0f} ms")
    assert min(delays) >= QUICK


def seen_messages(page: Page, number: int) -> list[str]:
    """The ids of the publications that the page got, once there are so many."""
    page.wait_for_function("number => seen.events.filter(event => event[0] == 'message').length >= number", arg=number)
    return [id for type, _, id in seen(page, 1) if type == "message"]


def test_a_full_hub_is_waited_for(page: Page) -> None:
    app = create_app(Config(max_subscribers=1, retry_min=QUICK, retry_max=2 * QUICK))
    with live(app) as server:
        with httpx.stream("GET", server.url + "/events") as first:
            body = first.iter_raw()  # kept, since the stream ends when it is collected
            next(body)
            watch(page, server.url + "/events")
            page.wait_for_function("seen.errors >= 3")
            assert ready_state(page) != 2
            assert page.evaluate("seen.events") == []
        seen(page, 1)
        assert ready_state(page) == 1


def test_a_draining_hub_is_waited_for(page: Page) -> None:
    app = create_app(Config(retry_min=QUICK, retry_max=2 * QUICK))
    with live(app) as server:
        watch(page, server.url + "/events")
        seen(page, 1)
        drain(app.state.hub)
        assert seen(page, 2)[1][0] == "bye"
        page.wait_for_function("seen.errors >= 3")
        assert ready_state(page) != 2


def drain(hub: Hub) -> None:
    """Begin a drain, as a stopping server does."""
    loop = hub.node.life._loop
    assert loop is not None
    asyncio.run_coroutine_threadsafe(hub.drain(0.2), loop).result(10)


def test_a_bad_cursor_is_told_and_the_stream_goes_on(sse_server: HubServer, page: Page) -> None:
    watch(page, sse_server.url + "/events?last_event_id=junk")
    assert [type for type, _, _ in seen(page, 2)] == ["welcome", "gap"]
    id = sse_server.hub.publish_threadsafe("on").id
    assert seen(page, 3)[2] == ["message", "on", id]
    assert (ready_state(page), errors(page)) == (1, 0)


@pytest.mark.parametrize("status", [401, 204])
def test_a_refusal_by_status_ends_an_eventsource_for_good(page: Page, status: int) -> None:
    async def refuse(request: Request) -> Response:
        return Response(status_code=status)

    async def healthz(request: Request) -> Response:
        return HTMLResponse("ok")

    front = Front(Starlette(routes=[Route("/events", refuse), Route("/healthz", healthz)]))
    with live(front) as server:
        watch(page, server.url + "/events")
        page.wait_for_function("source.readyState == 2")
    assert front.answered == [("GET", status)]


FETCH = """([url, type]) => fetch(url, {
    method: "POST", body: "1", credentials: "include",
    ...(type == "application/json" ? {headers: {"Content-Type": type}} : {mode: "no-cors"})
}).then(() => "sent", () => "blocked")"""

FORM = """([url, type]) => new Promise(done => {
    const form = Object.assign(document.createElement("form"), {
        method: "post", action: url, enctype: type, target: "frame"});
    form.append(Object.assign(document.createElement("input"), {name: "a", value: "b"}));
    document.body.append(form);
    document.querySelector("iframe").onload = () => done("sent");
    form.submit();
})"""

ATTEMPTS = [
    (FETCH, "text/plain", "sent"),
    (FETCH, "application/json", "blocked"),  # blocked by the preflight
    (FORM, "text/plain", "sent"),
    (FORM, "application/x-www-form-urlencoded", "sent"),
    (FORM, "multipart/form-data", "sent"),
]


def test_a_foreign_page_cannot_publish(page: Page) -> None:
    app = create_app()
    front = Front(app)
    with page_of_its_own() as origin, live(front) as server:
        page.goto(origin)
        for script, type, outcome in ATTEMPTS:
            assert page.evaluate(script, [server.url + "/broadcast", type]) == outcome
        assert front.answered == [("POST", 403), ("OPTIONS", 403), ("POST", 403), ("POST", 403), ("POST", 403)]
        assert app.state.hub.node.totals.published == 0
        assert httpx.post(server.url + "/broadcast", content="by curl").status_code == 200


def test_a_foreign_page_cannot_subscribe(page: Page) -> None:
    app = create_app()
    front = Front(app)
    with page_of_its_own() as origin, live(front) as server:
        watch(page, server.url + "/events", origin)
        page.wait_for_function("source.readyState == 2")
        assert front.answered == [("GET", 403)]
        assert app.state.hub.node.totals.connected == 0
