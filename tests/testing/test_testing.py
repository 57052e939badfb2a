import asyncio
import gc
import inspect
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import fastapi
import httpx
import httpx2
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sse_app import Config, create_app
from sse_app.events import Event
from sse_app.pytest_plugin import HubServer
from sse_app.server import Protocol
from sse_app.server.server import Server
from sse_app.testing import StreamingASGITransport, UvicornOptions, events, live, run_virtual
from sse_app.testing import server as testing_server
from tests.support.peers import PATIENCE

START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"Content-Type", b"text/event-stream")]}


def body(chunk: bytes = b"", more: bool = True) -> Message:
    return {"type": "http.response.body", "body": chunk, "more_body": more}


class Endless:
    """An app that sends what the test puts into ``queue``, and records what it receives."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes] = asyncio.Queue()
        self.running = 0
        self.seen: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.running += 1
        try:
            await receive()
            await send(START)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._pump, send)
                self.seen.append((await receive())["type"])
                tasks.cancel_scope.cancel()
        finally:
            self.running -= 1

    async def _pump(self, send: Send) -> None:
        while True:
            await send(body(await self.queue.get()))


@asynccontextmanager
async def client_of(app: ASGIApp, timeout: float | None = PATIENCE, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = StreamingASGITransport(app, **options)
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver", timeout=timeout) as client:
        yield client


async def fetch(app: ASGIApp, method: str = "GET", url: str = "/", **options: Any) -> httpx.Response:
    async with client_of(app, **options) as client:
        return await client.request(method, url)


@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
@pytest.mark.virtual_time
async def test_clients_of_both_libraries_stream_and_get_errors_of_their_own(library: Any) -> None:
    app = Endless()
    transport = StreamingASGITransport(app)
    async with (
        library.AsyncClient(transport=transport, base_url="http://testserver", timeout=5) as client,
        client.stream("POST", "/", content=b"x") as response,
    ):
        assert isinstance(response, library.Response)
        app.queue.put_nowait(b"data: x\n\n")
        came = events(response)
        assert (await anext(came)).data == "x"
        with pytest.raises(library.ReadTimeout):
            await anext(came)
    assert (app.running, app.seen) == (0, ["http.disconnect"])

    async def half(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)

    async with library.AsyncClient(transport=StreamingASGITransport(half), base_url="http://testserver") as client:
        with pytest.raises(library.RemoteProtocolError):
            await client.get("/")


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def chunked(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


@pytest.fixture(autouse=True)
async def no_task_leaks(anyio_backend: object) -> AsyncIterator[None]:
    yield
    await settled()  # the loop closes abandoned generators in tasks of its own
    not_ours = ("TestRunner", "_shutdown_watcher")  # anyio's, and sse-starlette's one per loop
    assert [task for task in asyncio.all_tasks() if not any(name in repr(task) for name in not_ours)] == []


# Streaming


async def test_chunks_arrive_while_the_app_still_runs() -> None:
    app = Endless()
    async with client_of(app) as client, client.stream("GET", "/") as response:
        chunks = response.aiter_raw()
        for sent in (b"one", b"two"):
            app.queue.put_nowait(sent)
            assert await anext(chunks) == sent
        assert app.running == 1
    assert app.seen == ["http.disconnect"]


async def test_two_streams_at_once() -> None:
    one, two = Endless(), Endless()
    app = Starlette(routes=[Mount("/one", one), Mount("/two", two)])
    async with (
        client_of(app) as client,
        client.stream("GET", "/one/") as first,
        client.stream("GET", "/two/") as second,
    ):
        assert one.running == two.running == 1
        two.queue.put_nowait(b"for two")
        assert await anext(second.aiter_raw()) == b"for two"
        one.queue.put_nowait(b"for one")
        assert await anext(first.aiter_raw()) == b"for one"
    assert one.seen == two.seen == ["http.disconnect"]


async def test_the_app_is_at_most_the_buffer_ahead_of_its_reader() -> None:
    sent = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await send(START)
        for _ in range(100):
            await send(body(b"x"))
            sent += 1
        await send(body(more=False))

    async with client_of(app, buffer=3) as client, client.stream("GET", "/") as response:
        await settled()
        assert sent == 3
        chunks = response.aiter_raw()
        for read in range(1, 98):
            await anext(chunks)
            await settled()
            assert sent == read + 3
        assert len([chunk async for chunk in chunks]) == 3


async def test_send_does_not_suspend_while_there_is_room() -> None:
    stepped: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        for _ in range(2):
            coroutine = send(body(b"x"))
            try:
                coroutine.send(None)  # type: ignore[attr-defined]
                stepped.append(False)
                coroutine.close()  # type: ignore[attr-defined]
            except StopIteration:
                stepped.append(True)
        await send(body(more=False))

    assert (await fetch(app, buffer=1)).content == b"x"
    assert stepped == [True, False]


# The client disconnects


async def test_closing_the_response_disconnects_the_app() -> None:
    app = Endless()
    async with client_of(app) as client:
        async with client.stream("GET", "/"):
            assert app.running == 1
        assert app.running == 0
    assert app.seen == ["http.disconnect"]


async def test_closing_the_client_disconnects_the_app_and_tells_the_reader() -> None:
    app = Endless()
    client = httpx.AsyncClient(transport=StreamingASGITransport(app), base_url="http://testserver")
    response = await client.send(client.build_request("GET", "/"), stream=True)
    reader = asyncio.create_task(response.aread())
    await settled()
    await client.aclose()
    assert app.seen == ["http.disconnect"]
    with pytest.raises(httpx.ReadError):
        await reader


@pytest.mark.virtual_time
@pytest.mark.parametrize("started", [True, False])
async def test_cancelling_the_reader_disconnects_the_app(started: bool) -> None:
    app, late = Endless(), Endless()

    async def never_starts(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        late.seen.append((await receive())["type"])

    async def read(client: httpx.AsyncClient) -> None:
        async with client.stream("GET", "/") as response:
            async for _ in response.aiter_raw():
                pass

    async with client_of(app if started else never_starts) as client:
        reader = asyncio.create_task(read(client))
        await settled()
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert (app if started else late).seen == ["http.disconnect"]
        with anyio.move_on_after(1):
            await read(client)
        assert (app if started else late).seen == ["http.disconnect"] * 2


@pytest.mark.parametrize(("version", "answer"), [("2.3", "returned"), ("2.4", "OSError")])
async def test_send_after_the_client_left(version: str, answer: str) -> None:
    answers: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["asgi"] == {"version": "3.0", "spec_version": version}
        await send(START)
        while (await receive())["type"] != "http.disconnect":
            pass
        try:
            await send(body(b"late"))
            answers.append("returned")
        except OSError:
            answers.append("OSError")
            raise

    async with client_of(app, spec_version=version) as client, client.stream("GET", "/"):
        pass
    assert answers == [answer]


@pytest.mark.virtual_time
async def test_a_send_that_waits_for_room_ends_when_the_client_leaves() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        while True:
            await send(body(b"x"))

    async with client_of(app) as client, client.stream("GET", "/") as response:
        assert await anext(response.aiter_raw()) == b"x"
        await settled()  # the buffer is full again
    assert asyncio.get_running_loop().time() == 0


@pytest.mark.virtual_time
async def test_who_is_cancelled_by_anyio_waits_for_the_app_too() -> None:
    ended = False

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal ended
        await send(START)
        while (await receive())["type"] != "http.disconnect":
            pass
        await asyncio.sleep(0.5)
        ended = True

    async with client_of(app) as client:
        with anyio.move_on_after(3):
            await client.get("/")
        assert ended


@pytest.mark.virtual_time
async def test_an_app_that_ignores_the_disconnect_is_cancelled_after_the_grace() -> None:
    cancelled: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(asyncio.get_running_loop().time())

    async with client_of(app, grace=7) as client:
        async with client.stream("GET", "/"):
            pass
        assert cancelled == [7]


@pytest.mark.virtual_time
async def test_an_app_that_ignores_its_cancellation_is_reported() -> None:
    release = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    async with client_of(app) as client:
        with pytest.raises(RuntimeError, match="still ran"):
            async with client.stream("GET", "/"):
                pass
        release.set()


async def test_disconnect_comes_also_after_a_complete_response() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await send(body(b"all", more=False))
        seen.append((await receive())["type"])

    assert (await fetch(app)).content == b"all"
    assert seen == ["http.disconnect"]


@pytest.mark.virtual_time
async def test_a_background_task_outlives_its_response_but_not_its_client() -> None:
    finished: list[str] = []

    async def work(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        finished.append(name)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seconds = float(scope["path"][1:])
        response = PlainTextResponse("ok", background=BackgroundTask(work, scope["path"], seconds))
        await response(scope, receive, send)

    async with client_of(app) as client:
        await client.get("/0.5")
        assert finished == ["/0.5"]
        await client.get("/10")
        assert finished == ["/0.5"]
        assert asyncio.get_running_loop().time() == 1.5
        await asyncio.sleep(10)
        assert finished == ["/0.5", "/10"]
        await client.get("/1000")
    assert finished == ["/0.5", "/10"]


# Timeouts


@pytest.mark.virtual_time
async def test_the_read_timeout_ends_a_silent_stream() -> None:
    app, clock = Endless(), asyncio.get_running_loop().time
    async with client_of(app, timeout=30) as client:
        async with client.stream("GET", "/") as response:
            chunks = response.aiter_raw()
            await asyncio.sleep(20)
            app.queue.put_nowait(b"in time")
            await anext(chunks)
            with pytest.raises(httpx.ReadTimeout) as raised:
                await anext(chunks)
            assert app.seen == ["http.disconnect"]
        assert raised.value.request.url.path == "/"
        assert clock() == pytest.approx(50)


@pytest.mark.virtual_time
async def test_the_read_timeout_ends_the_wait_for_a_response() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    with pytest.raises(httpx.ReadTimeout, match="nothing for 30 s"):
        await fetch(app, timeout=30)


@pytest.mark.virtual_time
async def test_without_a_timeout_a_stream_may_be_silent_for_long() -> None:
    app = Endless()
    async with client_of(app, timeout=None) as client, client.stream("GET", "/") as response:
        asyncio.get_running_loop().call_later(3600, app.queue.put_nowait, b"at last")
        assert await anext(response.aiter_raw()) == b"at last"


# Errors of the app


async def crashes_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    raise KeyError("broken")


async def crashes_in_its_stream(scope: Scope, receive: Receive, send: Send) -> None:
    await send(START)
    await send(body(b"before"))
    raise KeyError("broken")


async def crashes_in_background(scope: Scope, receive: Receive, send: Send) -> None:
    await send(START)
    await send(body(b"all", more=False))
    raise KeyError("broken")


async def crashes_in_cleanup(scope: Scope, receive: Receive, send: Send) -> None:
    await send(START)
    while (await receive())["type"] != "http.disconnect":
        pass
    raise KeyError("broken")


@pytest.mark.parametrize(
    "app", [crashes_at_once, crashes_in_its_stream, crashes_in_background, ServerErrorMiddleware(crashes_at_once)]
)
async def test_the_exception_of_the_app_reaches_the_reader(app: ASGIApp) -> None:
    async with client_of(app) as client:
        with pytest.raises(KeyError, match="broken"):
            await client.get("/")


async def test_an_exception_that_nobody_read_is_raised_when_the_client_closes() -> None:
    with pytest.raises(KeyError, match="broken"):
        async with client_of(crashes_in_cleanup) as client, client.stream("GET", "/"):
            pass
    with pytest.raises(ExceptionGroup, match="nobody read any more") as raised:
        async with client_of(crashes_in_cleanup) as client, client.stream("GET", "/"), client.stream("GET", "/"):
            pass
    assert len(raised.value.exceptions) == 2


async def test_the_error_of_a_test_is_not_masked_by_one_of_the_app(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ZeroDivisionError):
        async with client_of(crashes_in_cleanup) as client, client.stream("GET", "/"):
            raise ZeroDivisionError
    assert "broken" in caplog.text


async def sends_too_late(scope: Scope, receive: Receive, send: Send) -> None:
    await send(START)
    while (await receive())["type"] != "http.disconnect":
        pass
    await send(body(b"late"))


async def raises_client_disconnect(scope: Scope, receive: Receive, send: Send) -> None:
    try:
        await sends_too_late(scope, receive, send)
    except OSError:
        raise ClientDisconnect from None


async def raises_a_group(scope: Scope, receive: Receive, send: Send) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(raises_client_disconnect(scope, receive, send))


@pytest.mark.parametrize("app", [sends_too_late, raises_client_disconnect, raises_a_group])
async def test_that_the_client_left_is_no_error(app: ASGIApp) -> None:
    async with client_of(app) as client, client.stream("GET", "/"):
        pass


async def test_without_app_exceptions_the_reader_sees_what_a_network_shows(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    assert (await fetch(crashes_at_once, raise_app_exceptions=False)).status_code == 500
    assert (await fetch(crashes_at_once, "HEAD", raise_app_exceptions=False)).status_code == 500
    assert (await fetch(crashes_in_background, raise_app_exceptions=False)).content == b"all"
    with pytest.raises(httpx.RemoteProtocolError) as raised:
        await fetch(crashes_in_its_stream, raise_app_exceptions=False)
    assert isinstance(raised.value.__cause__, KeyError)
    async with client_of(crashes_in_cleanup, raise_app_exceptions=False) as client, client.stream("GET", "/"):
        pass
    assert [record.message for record in caplog.records] == ["The app failed"] * 5


async def test_chunks_before_a_crash_are_read_first() -> None:
    async with client_of(crashes_in_its_stream) as client, client.stream("GET", "/") as response:
        chunks = response.aiter_raw()
        assert await anext(chunks) == b"before"
        with pytest.raises(KeyError):
            await anext(chunks)


def sends(*messages: Message) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


async def test_an_app_that_ends_too_early() -> None:
    with pytest.raises(RuntimeError, match="without starting"):
        await fetch(sends())
    assert (await fetch(sends(), raise_app_exceptions=False)).status_code == 500
    with pytest.raises(httpx.RemoteProtocolError, match="without completing"):
        await fetch(sends(START, body(b"half")))


@pytest.mark.parametrize(
    "messages",
    [
        [body(b"first")],
        [START, START],
        [START, body(b"", more=False), body(b"more")],
        [START, {"type": "http.response.trailers"}],
    ],
)
async def test_messages_out_of_turn_are_the_apps_error(messages: list[Message]) -> None:
    with pytest.raises(RuntimeError, match="unexpected ASGI message"):
        await fetch(sends(*messages))


# Requests


async def test_the_scope() -> None:
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await PlainTextResponse("ok", headers={"X-Upper": "1"})(scope, receive, send)

    async with client_of(app, root_path="/mounted", client=("192.0.2.1", 7)) as client:
        response = await client.get("/a%20b/%C3%A9?topic=x%2Fy&last=1", headers=[(b"Last-Event-ID", "é".encode())])
    assert response.headers["x-upper"] == "1"
    [scope] = scopes
    headers = dict(scope.pop("headers"))
    assert headers[b"host"] == b"testserver"
    assert headers[b"last-event-id"] == "é".encode()
    assert scope == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/a b/é",
        "raw_path": b"/a%20b/%C3%A9",
        "query_string": b"topic=x%2Fy&last=1",
        "root_path": "/mounted",
        "client": ("192.0.2.1", 7),
        "server": ("testserver", 80),
        "extensions": {},
    }
    await fetch(app, url="https://example.org/")
    await fetch(app, url="http://example.org:8000/")
    assert [scope["server"] for scope in scopes[1:]] == [("example.org", 443), ("example.org", 8000)]


async def test_head_has_headers_and_no_body() -> None:
    response = await fetch(sends(START, body(b"dropped"), body(b"also", more=False)), "HEAD")
    assert response.headers["content-type"] == "text/event-stream"
    assert response.content == b""


@pytest.mark.virtual_time
async def test_head_on_an_endless_stream_is_found_by_the_timeout() -> None:
    with pytest.raises(httpx.ReadTimeout):
        await fetch(Endless(), "HEAD")


async def test_a_request_body_streams_in_with_backpressure() -> None:
    made, read = 0, []

    async def upload() -> AsyncIterator[bytes]:
        nonlocal made
        for number in range(20):
            made += 1
            yield b"%d " % number

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await settled()
        assert made == 3  # two in the buffer and one in hand
        async for chunk in Request(scope, receive).stream():
            read.append(chunk)
        await PlainTextResponse("ok")(scope, receive, send)

    async with client_of(app, buffer=2) as client:
        assert (await client.post("/", content=upload())).text == "ok"
    assert b"".join(read).split() == [b"%d" % number for number in range(20)]
    assert len(read) > 10


async def test_a_response_may_come_before_the_request_body_has_ended() -> None:
    gate = asyncio.Event()

    async def upload() -> AsyncIterator[bytes]:
        yield b"one"
        await gate.wait()
        yield b"two"

    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        await StreamingResponse(chunk async for chunk in request.stream())(scope, receive, send)

    async with client_of(echo) as client, client.stream("POST", "/", content=upload()) as response:
        chunks = response.aiter_raw()
        assert await anext(chunks) == b"one"
        gate.set()
        assert await anext(chunks) == b"two"


@pytest.mark.parametrize(
    ("content", "sizes"),
    [(b"abc", [3]), (b"", [0]), (None, [0]), (chunked(b"ab", b"", b"c"), [2, 1, 0])],
    ids=["whole", "empty", "none", "chunked"],
)
async def test_the_last_message_of_a_request_body_says_so(content: Any, sizes: list[int]) -> None:
    messages: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while not messages or messages[-1]["more_body"]:
            messages.append(await receive())
        await PlainTextResponse("ok")(scope, receive, send)

    async with client_of(app) as client:
        await client.post("/", content=content)
    assert [len(message["body"]) for message in messages] == sizes
    assert [message["more_body"] for message in messages] == [True] * (len(sizes) - 1) + [False]


@pytest.mark.virtual_time
async def test_an_answer_ends_an_upload_that_nobody_reads() -> None:
    async def upload() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b"never"

    async with client_of(PlainTextResponse("ok")) as client:
        assert (await client.post("/", content=upload())).text == "ok"
    assert asyncio.get_running_loop().time() == 0


@pytest.mark.virtual_time
async def test_the_error_of_an_upload_is_its_callers_and_the_app_sees_a_disconnect() -> None:
    seen: list[str] = []

    async def upload() -> AsyncIterator[bytes]:
        yield b"one"
        raise ZeroDivisionError

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while True:
            seen.append((await receive())["type"])
            if seen[-1] == "http.disconnect":
                raise ClientDisconnect

    async def waiting_for_ever(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    for either in (app, waiting_for_ever):
        async with client_of(either) as client:
            with pytest.raises(ZeroDivisionError):
                await client.post("/", content=upload())
    assert seen[-1] == "http.disconnect"


# Lifespan


def with_lifespan(*, fail: str = "") -> tuple[Starlette, list[str]]:
    steps: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, str]]:
        steps.append("startup")
        if fail == "startup":
            raise OSError("no database")
        yield {"name": "shared"}
        steps.append("shutdown")
        if fail == "shutdown":
            raise OSError("no goodbye")

    async def name(request: Request) -> Response:
        return PlainTextResponse(request.state.name)

    return Starlette(routes=[Route("/", name)], lifespan=lifespan), steps


async def test_lifespan_runs_around_the_client_and_gives_its_state() -> None:
    app, steps = with_lifespan()
    async with client_of(app, lifespan=True) as client:
        assert steps == ["startup"]
        assert (await client.get("/")).text == "shared"
    assert steps == ["startup", "shutdown"]


async def test_a_failed_startup_or_shutdown_is_raised_with_its_message() -> None:
    app, steps = with_lifespan(fail="startup")
    with pytest.raises(RuntimeError, match="no database") as raised:
        async with client_of(app, lifespan=True):
            pass
    assert isinstance(raised.value.__cause__, OSError)
    assert steps == ["startup"]
    app, _ = with_lifespan(fail="shutdown")
    with pytest.raises(RuntimeError, match="no goodbye"):
        async with client_of(app, lifespan=True):
            pass


async def test_a_transport_can_be_opened_again() -> None:
    app, steps = with_lifespan()
    transport = StreamingASGITransport(app, lifespan=True)
    for _ in range(2):
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
            assert (await client.get("/")).text == "shared"
    assert steps == ["startup", "shutdown"] * 2


async def test_an_app_without_lifespan_is_named() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "only HTTP here"

    with pytest.raises(RuntimeError, match="only HTTP here"):
        async with client_of(app, lifespan=True):
            pass


async def test_a_lifespan_that_nobody_started_is_named() -> None:
    app, _ = with_lifespan()
    client = httpx.AsyncClient(transport=StreamingASGITransport(app, lifespan=True), base_url="http://testserver")
    with pytest.raises(RuntimeError, match="async with"):
        await client.get("/")


@pytest.mark.virtual_time
async def test_a_cancelled_startup_leaves_no_task() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    with anyio.move_on_after(0.01):
        async with client_of(app, lifespan=True):
            pass


# Events


async def test_events_are_what_an_event_source_would_dispatch() -> None:
    wire = b": hello\n\nid: 1\nretry: 5\ndata: a\ndata: b\n\nid: 2\nevent: cursor\n\nevent: x\ndata: last\n\ndata: cut"
    chunks = [body(wire[n : n + 1]) for n in range(len(wire))]
    async with (
        client_of(sends(START, *chunks, body(more=False))) as client,
        client.stream("GET", "/") as response,
    ):
        assert [event async for event in events(response)] == [Event("a\nb", id="1", retry=5), Event("last", "x", "2")]


@pytest.mark.parametrize("status", [200, 503])
async def test_events_refuses_what_an_event_source_would_refuse(status: int) -> None:
    media_type = "text/event-stream" if status != 200 else "text/plain"
    app = PlainTextResponse("no", status, media_type=media_type)
    async with client_of(app) as client, client.stream("GET", "/") as response:
        with pytest.raises(ValueError, match=f"status {status}, content type {media_type}"):
            await anext(events(response))


# Frameworks


class Counter:
    """An endless generator of events that knows whether it was closed."""

    closed = False

    async def __aiter__(self) -> AsyncIterator[str]:
        number = 0
        try:
            while True:
                yield f"data: {number}\n\n"
                number += 1
                if number == 3:
                    await asyncio.Event().wait()
        finally:
            self.closed = True


def starlette_app(counter: Counter) -> ASGIApp:
    async def endpoint(request: Request) -> Response:
        return StreamingResponse(counter.__aiter__(), media_type="text/event-stream")

    return Starlette(routes=[Route("/", endpoint)])


def sse_starlette_app(counter: Counter) -> ASGIApp:
    async def endpoint(request: Request) -> Response:
        return EventSourceResponse({"data": text[6:-2]} async for text in counter)

    return Starlette(routes=[Route("/", endpoint)])


def fastapi_app(counter: Counter) -> ASGIApp:
    app = fastapi.FastAPI()

    @app.get("/")
    async def endpoint() -> StreamingResponse:
        return StreamingResponse(counter.__aiter__(), media_type="text/event-stream")

    return app


@pytest.mark.parametrize("make", [starlette_app, sse_starlette_app, fastapi_app])
@pytest.mark.parametrize("version", ["2.3", "2.4"])
@pytest.mark.virtual_time
async def test_with_the_streams_of(make: Callable[[Counter], ASGIApp], version: str) -> None:
    counter, clock = Counter(), asyncio.get_running_loop().time
    async with client_of(make(counter), spec_version=version) as client:
        async with client.stream("GET", "/") as response:
            stream = events(response)
            assert [(await anext(stream)).data for _ in range(3)] == ["0", "1", "2"]
        await settled()
        assert counter.closed
    # From ASGI 2.4 on Starlette notices a disconnect only when it sends, so the idle stream has to be cancelled.
    assert clock() == pytest.approx(1 if version == "2.4" and make is not sse_starlette_app else 0)


# Any interleaving

Step = st.sampled_from(["send", "read", "turn"])


@settings(deadline=None)
@given(
    steps=st.lists(Step, max_size=40), end=st.sampled_from(["complete", "close", "cancel"]), buffer=st.integers(1, 4)
)
def test_every_interleaving_keeps_order_and_leaves_nothing(steps: list[str], end: str, buffer: int) -> None:
    async def main() -> None:
        app, sent = Endless(), 0
        read: list[bytes] = []
        async with client_of(app, buffer=buffer) as client, client.stream("GET", "/") as response:
            chunks = response.aiter_raw()
            for step in steps:
                if step == "send":
                    app.queue.put_nowait(b"%d" % sent)
                    sent += 1
                elif step == "turn":
                    await asyncio.sleep(0)
                elif len(read) < sent:
                    read.append(await anext(chunks))
            if end == "complete":
                read += [await anext(chunks) for _ in range(sent - len(read))]
                assert len(read) == sent
            if end == "cancel":
                with anyio.move_on_after(0):
                    await anext(chunks)
        assert read == [b"%d" % number for number in range(len(read))]
        assert app.running == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(main())


# A live server


@pytest.fixture
def threads() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) - before == set()


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"
    await PlainTextResponse("hello")(scope, receive, send)


@pytest.mark.usefixtures("threads")
def test_a_live_server_answers_on_a_real_socket() -> None:
    with live(hello) as server:
        assert server.url == f"http://127.0.0.1:{server.port}"
        assert httpx.get(server.url, timeout=PATIENCE).text == "hello"
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url, timeout=PATIENCE)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_stopping_a_live_server_ends_open_streams_soon(http: str, loop: str) -> None:
    """``live`` raises when open streams keep the server from stopping."""
    counter = Counter()
    with httpx.Client(timeout=PATIENCE) as client:
        with live(starlette_app(counter), http=http, loop=loop) as server:
            response = client.send(client.build_request("GET", server.url), stream=True)
            assert next(response.iter_raw())
        response.close()
    assert counter.closed


@pytest.mark.usefixtures("threads")
def test_stopping_a_live_server_cuts_off_a_client_that_does_not_read() -> None:
    stalled = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        while True:
            sending = asyncio.ensure_future(send(body(bytes(65536))))
            if not (await asyncio.wait({sending}, timeout=0.1))[0]:
                stalled.set()
            await sending

    with socket.socket() as client:
        with live(app, loop="asyncio") as server:
            client.connect(("127.0.0.1", server.port))
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert stalled.wait(PATIENCE)
        *_, end = iter(lambda: client.recv(65536), b"")
        assert not end.endswith(b"0\r\n\r\n")
    gc.collect()  # an unclosed transport warns when it is collected


@pytest.mark.usefixtures("threads")
def test_a_live_server_runs_the_lifespan() -> None:
    app, steps = with_lifespan()
    with live(app) as server:
        assert httpx.get(server.url, timeout=PATIENCE).text == "shared"
    assert steps == ["startup", "shutdown"]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("fail", "message"), [("startup", "no database"), ("shutdown", "no goodbye")])
def test_a_live_server_raises_what_its_lifespan_raised(fail: str, message: str) -> None:
    app, _ = with_lifespan(fail=fail)
    with pytest.raises(RuntimeError, match=message), live(app):
        pass


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("phase", ["start", "stop"])
def test_a_live_server_that_hangs_is_ended(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        if phase == "stop":
            yield
        await asyncio.Event().wait()
        if phase == "start":
            yield

    monkeypatch.setattr(testing_server, f"{phase.upper()}_SECONDS", 1.0)
    monkeypatch.setattr(testing_server, "STOP_SECONDS", 1.0)
    with pytest.raises(RuntimeError, match=f"it did not {phase} within 1.0 s"), live(Starlette(lifespan=lifespan)):
        pass
    for thread in threading.enumerate():
        if thread.name == "live server":
            thread.join(PATIENCE)  # after its second of time here the cancelled task may still be ending


@pytest.mark.usefixtures("threads")
def test_a_live_server_that_cannot_start_raises() -> None:
    with pytest.raises(RuntimeError, match="the server failed"), live(hello, ssl_certfile="/nowhere"):
        pass


def test_the_options_of_a_live_server_are_those_of_uvicorn() -> None:
    ours = {"app", "host", "port", "uds", "fd", "callback_notify", "workers", "reload", "factory", "env_file"}
    theirs = inspect.signature(uvicorn.Config).parameters.keys()
    assert theirs - ours >= UvicornOptions.__annotations__.keys() > {"http", "loop", "ssl_certfile"}
    assert not ours & UvicornOptions.__annotations__.keys()


@pytest.mark.usefixtures("threads")
def test_a_live_server_may_be_of_another_class() -> None:
    class Server(uvicorn.Server):
        stopped = False

        async def shutdown(self, *args: Any, **kwargs: Any) -> None:
            Server.stopped = True
            await super().shutdown(*args, **kwargs)

    with live(hello, server_class=Server) as server:
        assert httpx.get(server.url, timeout=PATIENCE).text == "hello"
    assert Server.stopped


@pytest.mark.usefixtures("threads")
def test_a_live_server_may_drain_its_hub() -> None:
    app = create_app(Config(drain=0.2))
    with httpx.Client(timeout=PATIENCE) as client:
        with live(app, server_class=lambda config: Server(config, app.state.hub.node), http=Protocol) as server:
            lines = client.send(client.build_request("GET", server.url + "/events"), stream=True).iter_lines()
            assert "event: welcome" in lines
            app.state.hub.publish_threadsafe("last words")
        rest = list(lines)
    assert rest.index("data: last words") < rest.index("event: bye")


# The fixtures


async def test_the_fixtures_hub_and_client(sse_hub: Any, sse_client: httpx.AsyncClient) -> None:
    async with sse_client.stream("GET", "/events", params={"topic": "orders/*"}) as response:
        stream = events(response)
        assert (await anext(stream)).type == "welcome"
        await sse_hub.publish("one", topic="orders/1", event="order")
        answer = await sse_client.post("/broadcast", params={"topic": "orders/2"}, content="two")
        assert answer.json()["subscribers"] == 1
        order, message = await anext(stream), await anext(stream)
    assert (order.type, order.data, message.type, message.data) == ("order", "one", "message", "two")
    assert len(sse_hub) == 0


def test_the_plugin_costs_other_projects_nothing() -> None:
    code = "import sys, pytest; before = {*sys.modules}; import sse_app.pytest_plugin; print(*{*sys.modules} - before)"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split()
    assert set(imported) == {"sse_app", "sse_app.pytest_plugin"}


def test_the_fixture_server(sse_server: HubServer) -> None:
    with httpx.Client(timeout=PATIENCE) as client, client.stream("GET", sse_server.url + "/events") as response:
        lines = response.iter_lines()
        assert "event: welcome" in lines
        sse_server.hub.publish_threadsafe("hello")
        assert "data: hello" in lines
