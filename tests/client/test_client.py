import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from typing import Any

import httpx
import pytest

from sse_app import Client, Hub, SyncClient
from sse_app.client import State, Stream
from sse_app.client.answers import BACKOFF, WAIT_MAX, WAIT_MIN, retry_after
from sse_app.errors import BadInput, ClientError, Gap, InvalidURL, Refused, Unreachable
from sse_app.events import Event
from sse_app.publication import Position, Receipt
from sse_app.testing import StreamingASGITransport
from tests.support.web import live_hub, until_open

URL = "http://localhost"
HEADERS = {"Content-Type": "text/event-stream; charset=utf-8"}
WELCOME = b'retry: 1000\nid: e-0\nevent: welcome\ndata: {"client":"c","subscribers":1}\n\n'


Answer = httpx.Response | Exception | Callable[[], httpx.Response]


class Scripted(httpx.AsyncBaseTransport):
    """A transport that returns the given answers in turn, the last one for ever, and records the requests."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.times: list[float] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.times.append(asyncio.get_running_loop().time())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx.Response) else answer()

    @property
    def waits(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]

    @property
    def cursors(self) -> list[str | None]:
        return [request.headers.get("last-event-id") for request in self.requests]


def stream_of(*chunks: bytes, error: Exception | None = None) -> httpx.Response:
    async def body() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk
        if error is not None:
            raise error

    return httpx.Response(200, headers=HEADERS, content=body())


def problem(status: int, code: str, detail: str, **headers: str) -> httpx.Response:
    body = json.dumps({"type": "about:blank", "status": status, "code": code, "detail": detail})
    return httpx.Response(status, headers={"Content-Type": "application/problem+json", **headers}, text=body)


def event(number: int, data: str = "x") -> bytes:
    return f"id: e-{number}\ndata: {data}\n\n".encode()


def gap(number: int, requested: str | None = "e-1") -> bytes:
    notice = {"requested": requested, "oldest": f"e-{number + 1}", "top": "e-9", "reason": "trimmed"}
    return f"id: e-{number}\nevent: gap\ndata: {json.dumps(notice)}\n\n".encode()


@asynccontextmanager
async def client_of(transport: httpx.AsyncBaseTransport, **options: Any) -> AsyncIterator[Client]:
    async with httpx.AsyncClient(transport=transport) as http, Client(URL, http=http, **options) as client:
        yield client


@asynccontextmanager
async def client_and_hub(name: str | None = None, **settings: Any) -> AsyncIterator[tuple[Client, Hub]]:
    async with Hub(**settings) as hub, client_of(StreamingASGITransport(hub.app), name=name) as client:
        yield client, hub


async def opened(client: Client, *topics: str) -> "tuple[Stream, asyncio.Task[Event]]":
    """A stream that is subscribed, and a task that waits for its first event."""
    is_open = asyncio.Event()
    stream = client.listen(*topics, on_state=lambda stream: is_open.set())
    task = asyncio.ensure_future(anext(stream))
    await is_open.wait()
    return stream, task


async def take(stream: Stream, number: int) -> list[Event]:
    return [await anext(stream) for _ in range(number)]


# Listening


async def test_three_lines_give_the_publications_and_nothing_else() -> None:
    async with client_and_hub() as (client, hub):
        for number in range(3):
            await hub.publish({"number": number}, topic="orders/1", event="order")
        await hub.publish("not asked for", topic="news")
        came = []
        async for event in client.listen("orders/*", "other", last=10):
            came.append((event.type, event.data))
            if len(came) == 3:
                break
    assert came == [("order", f'{{"number":{number}}}') for number in range(3)]


async def test_the_welcome_and_the_state_are_there_to_see() -> None:
    states: list[tuple[State, int]] = []
    async with client_and_hub(name="till-3") as (client, hub):
        await hub.publish("before")
        stream = client.listen(last=1, on_state=lambda s: states.append((s.state, len(s.welcome))))
        assert (stream.state, stream.welcome, stream.last_event_id) == (State.CONNECTING, {}, "")
        event = await anext(stream)
        assert stream.state is State.OPEN
        assert stream.welcome["client"] == client.name == "till-3"
        assert (stream.welcome["subscribers"], stream.welcome["last"]["id"]) == (1, event.id)
    assert [state for state, _ in states] == [State.OPEN, State.CLOSED]
    assert states[0][1] > 0  # the welcome is there before the state is OPEN


@pytest.mark.virtual_time
async def test_a_name_is_made_once_and_kept() -> None:
    transport = Scripted(stream_of(WELCOME), stream_of(WELCOME), stream_of(WELCOME, event(1)))
    async with client_of(transport) as client:
        await anext(client.listen())
    assert {request.url.params["client"] for request in transport.requests} == {client.name}
    assert client.name.startswith("c-")


async def test_what_a_client_publishes_need_not_come_back_to_it() -> None:
    async with client_and_hub(name="me") as (client, _):
        stream, first = await opened(client)
        await client.publish("mine", exclude=client.name)
        await client.publish("for all")
        assert (await first).data == "for all"
        await client.publish("to me", to=client.name)
        assert (await anext(stream)).data == "to me"


@pytest.mark.parametrize(
    ("since", "query"),
    [
        ("15m", "15m"),
        (datetime(2026, 1, 31, 8, 0, tzinfo=UTC), "2026-01-31T08:00:00+00:00"),
        (datetime(2026, 1, 31, 9, 0, tzinfo=UTC).astimezone(), "2026-01-31T09:00:00+00:00"),
    ],
)
async def test_what_to_begin_with_is_asked_of_the_hub(since: str | datetime, query: str) -> None:
    transport = Scripted(stream_of(WELCOME, event(1)))
    async with client_of(transport, name="n") as client:
        await anext(client.listen("a/*", "b", since=since, last_event_id="e-7"))
    (request,) = transport.requests
    expected = [("topic", "a/*"), ("topic", "b"), ("client", "n"), ("since", query)]
    assert request.url.params.multi_items() == expected
    assert request.headers["last-event-id"] == "e-7"
    assert request.headers["accept"] == "text/event-stream"


async def test_since_reaches_back() -> None:
    async with client_and_hub() as (client, hub):
        await hub.publish("before")
        assert (await anext(client.listen(since=datetime.now(UTC) - timedelta(minutes=1)))).data == "before"


class Cutting(httpx.AsyncBaseTransport):
    """A transport that cuts the first stream after so many bytes of its body."""

    def __init__(self, inner: httpx.AsyncBaseTransport, after: int) -> None:
        self.inner, self.left = inner, after
        self.cut = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self.inner.handle_async_request(request)
        if self.cut:
            return response
        assert isinstance(response.stream, httpx.AsyncByteStream)
        return httpx.Response(200, headers=response.headers, stream=CutBody(self, response.stream))


class CutBody(httpx.AsyncByteStream):
    def __init__(self, cutting: Cutting, body: httpx.AsyncByteStream) -> None:
        self.cutting, self.body = cutting, body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self.body:
            piece, self.cutting.left = chunk[: self.cutting.left], max(0, self.cutting.left - len(chunk))
            if piece:
                yield piece
            if not self.cutting.left:
                self.cutting.cut = True
                raise httpx.ReadError("cut")

    async def aclose(self) -> None:
        await self.body.aclose()


@pytest.mark.virtual_time
async def test_a_cut_behind_any_byte_loses_and_doubles_nothing() -> None:
    async with Hub() as hub:
        for data in ("one", "two\nlines", "drei – ü"):
            await hub.publish(data)
        after, was_cut = 1, True
        while was_cut:
            cutting = Cutting(StreamingASGITransport(hub.app), after)
            async with client_of(cutting) as client:
                came = await take(client.listen(last=3), 3)
            assert [event.data for event in came] == ["one", "two\nlines", "drei – ü"], after
            was_cut, after = cutting.cut, after + 1
    assert after > 300  # bytes, of the welcome and three events


@pytest.mark.virtual_time
async def test_the_position_is_that_of_the_last_event_given() -> None:
    everything = WELCOME + event(3) + event(4) + b"id: e-8\nevent: cursor\n\n"
    transport = Scripted(stream_of(everything, error=httpx.ReadError("cut")), stream_of(WELCOME, event(9)))
    async with client_of(transport) as client:
        stream = client.listen()
        positions = []
        for _ in range(3):
            assert (await anext(stream)).id == stream.last_event_id
            positions.append(stream.last_event_id)
    assert positions == ["e-3", "e-4", "e-9"]
    assert transport.cursors == [None, "e-8"]  # moved by the block without data, once what came before it was given


async def test_a_client_that_saw_nothing_but_the_welcome_resumes_without_loss() -> None:
    async with client_and_hub() as (client, hub):
        await hub.publish("before")
        stream, task = await opened(client)
        task.cancel()
        await asyncio.wait([task])
        receipt = await hub.publish("while nobody was there")
        event = await anext(client.listen(last_event_id=stream.last_event_id))
        assert (event.id, event.data) == (receipt.id, "while nobody was there")


# When to come back


@pytest.mark.virtual_time
async def test_the_time_that_the_server_says_is_kept() -> None:
    endings = [b"retry: 7000\n\n", b'event: bye\nretry: 4321\ndata: {"reason":"drain","retry":4321}\n\n', b""]
    transport = Scripted(*(stream_of(WELCOME, ending) for ending in endings), stream_of(WELCOME, event(1)))
    waiting: list[float] = []

    def note(stream: Stream) -> None:
        if stream.state is State.WAITING:
            assert stream.waiting_until is not None
            assert stream.error is None
            waiting.append(stream.waiting_until)
        else:
            assert stream.waiting_until is None

    async with client_of(transport) as client:
        await anext(client.listen(on_state=note))
    assert transport.waits == pytest.approx([7, 4.321, 1])
    assert len(waiting) == 3


@pytest.mark.virtual_time
async def test_attempts_that_fail_come_further_apart_up_to_a_cap() -> None:
    failures: list[Answer] = [kind("?") for kind in (httpx.ConnectError, httpx.RemoteProtocolError) for _ in range(6)]
    transport = Scripted(stream_of(WELCOME), *failures, stream_of(WELCOME, event(1)), stream_of(WELCOME), stream_of())
    async with client_of(transport) as client:
        stream = client.listen()
        await anext(stream)
        first, *later = transport.waits
        assert first == pytest.approx(1)  # the time that the server named
        for number, wait in enumerate(later, 1):
            ceiling = min(BACKOFF[1], 2**number)
            assert max(1, ceiling / 2) <= wait <= ceiling, number
        assert len(set(later)) == len(later)  # at random
        assert transport.waits[-1] >= BACKOFF[1] / 2
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.5):
                await anext(stream)
        assert transport.waits[len(later) + 1] == pytest.approx(1)  # after a stream that was open the waits begin anew


@pytest.mark.virtual_time
@pytest.mark.parametrize(("retry", "wait"), [(0, WAIT_MIN), (10**14, WAIT_MAX)])
async def test_no_server_has_its_clients_spin_or_sleep_for_ever(retry: int, wait: float) -> None:
    ending = b"retry: %d\n\n" % retry
    first = stream_of(WELCOME, event(1), ending)
    transport = Scripted(first, httpx.ConnectError("refused"), stream_of(WELCOME, event(2)))
    async with client_of(transport) as client:
        stream = client.listen()
        await take(stream, 2)
    as_said, after_failure = transport.waits
    assert as_said == pytest.approx(wait)
    assert after_failure >= max(wait, BACKOFF[0] / 2)


@pytest.mark.virtual_time
@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_a_server_that_cannot_now_is_asked_again_when_it_says(status: int) -> None:
    transport = Scripted(
        problem(status, "draining", "The hub is stopping.", **{"Retry-After": "40"}), stream_of(WELCOME, event(1))
    )
    errors = []
    async with client_of(transport) as client:
        await anext(client.listen(on_state=lambda stream: errors.append((stream.state, stream.error))))
    assert transport.waits == pytest.approx([40])
    (waiting, error) = errors[0]
    assert waiting is State.WAITING
    assert isinstance(error, Refused)
    assert (error.status, error.code, error.detail) == (status, "draining", "The hub is stopping.")


@pytest.mark.virtual_time
async def test_a_full_hub_that_lets_eventsource_come_back_is_no_open_stream() -> None:
    full = (stream_of(b"retry: 4000\n\n") for _ in range(3))
    transport = Scripted(*full, stream_of(WELCOME, event(1)))
    states = []
    async with client_of(transport) as client:
        await anext(client.listen(on_state=lambda stream: states.append(stream.state)))
        assert states == [*[State.WAITING, State.CONNECTING] * 3, State.OPEN]
    assert transport.waits[0] == pytest.approx(4)
    assert transport.waits[2] >= 8


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *[("5", 5), ("0", 0), ("-1", 0), ("1.5", 0), ("soon", 0), ("", 0), ("9" * 30, WAIT_MAX), ("9" * 5_000, 0)],
        ("Sat, 31 Jan 1970 08:00:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", WAIT_MAX),
    ],
)
def test_retry_after_is_read_whatever_it_says(text: str, seconds: float) -> None:
    assert retry_after({"retry-after": text}) == seconds
    assert retry_after({}) == 0


def test_retry_after_may_be_a_date() -> None:
    now = time.time()
    due = datetime.fromtimestamp(int(now) + 60, UTC)
    wait = retry_after({"retry-after": format_datetime(due, usegmt=True)})
    assert due.timestamp() - time.time() <= wait <= due.timestamp() - now


# Dead connections


async def silent(scope: Any, receive: Any, send: Any, welcome: bytes = WELCOME) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    await send({"type": "http.response.body", "body": welcome, "more_body": True})
    while (await receive())["type"] != "http.disconnect":
        pass


async def losses(app: Any, until: float, **options: Any) -> list[tuple[Any, type]]:
    """The times at which a stream was lost, with the errors."""
    lost: list[tuple[Any, type]] = []

    def note(stream: Stream) -> None:
        if stream.state is State.WAITING:
            lost.append((asyncio.get_running_loop().time(), type(stream.error)))

    async with client_of(StreamingASGITransport(app), **options) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(until):
                await anext(client.listen(on_state=note))
    return lost


@pytest.mark.virtual_time
@pytest.mark.parametrize(("options", "patience"), [({}, 45), ({"heartbeat": 2.0}, 6)])
async def test_a_stream_without_heartbeats_is_dead(options: dict[str, float], patience: float) -> None:
    assert await losses(silent, patience + 0.5, **options) == [(pytest.approx(patience), httpx.ReadTimeout)]


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("heartbeat", "options", "patience"),
    [
        *[("120.0", {}, 360), ("1", {}, 3), ("0.5", {"heartbeat": 2.0}, 6), ("1e9", {}, 3 * WAIT_MAX)],
        *[(junk, {}, 45) for junk in ("0", "-1", "null", '"15s"', "[]", "1e-999", "NaN")],
    ],
)
async def test_a_hub_says_how_often_it_is_heard(heartbeat: str, options: dict[str, float], patience: float) -> None:
    welcome = WELCOME.replace(b"}", f',"heartbeat":{heartbeat}}}'.encode())
    lost = await losses(partial(silent, welcome=welcome), patience + 0.5, **options)
    assert lost == [(pytest.approx(patience), httpx.ReadTimeout)]


@pytest.mark.virtual_time
async def test_a_hub_with_few_heartbeats_keeps_its_streams() -> None:
    async with client_and_hub(heartbeat=120.0) as (client, hub):
        _, first = await opened(client)
        await asyncio.sleep(1_000)  # virtual seconds
        await hub.publish("at last")
        assert (await first).data == "at last"
        assert hub.node.totals.connected == 1


@pytest.mark.virtual_time
async def test_a_quiet_hub_keeps_its_streams_alive() -> None:
    async with client_and_hub() as (client, hub):
        stream, first = await opened(client)
        await asyncio.sleep(600)  # virtual seconds
        await hub.publish("at last")
        assert (await first).data == "at last"
        assert (stream.state, stream.error) == (State.OPEN, None)
        assert hub.node.totals.connected == 1


# Answers that end it


@pytest.mark.virtual_time
async def test_a_204_ends_the_loop_for_good() -> None:
    transport = Scripted(stream_of(WELCOME, event(1)), httpx.Response(204))
    async with client_of(transport) as client:
        stream = client.listen()
        assert [event.id async for event in stream] == ["e-1"]
        assert (stream.state, stream.error) == (State.CLOSED, None)
        assert [event async for event in stream] == []
    assert len(transport.requests) == 2


@pytest.mark.parametrize(
    ("answer", "status", "code", "text"),
    [
        (problem(401, "unauthorized", "Who are you?"), 401, "unauthorized", "Who are you? (401 unauthorized)"),
        (problem(403, "bad_origin", "Not from there."), 403, "bad_origin", "Not from there."),
        (problem(400, "invalid_topic", "No."), 400, "invalid_topic", "No."),
        (httpx.Response(404, text="<h1>Not here</h1>"), 404, "http_error", "Not Found"),
        (httpx.Response(404, content=b"[" * 100_000), 404, "http_error", "Not Found"),
        (httpx.Response(418, json=["no object"]), 418, "http_error", "teapot"),
        (httpx.Response(308, headers={"Location": "https://x.example/"}), 308, "http_error", "https://x.example/"),
        (httpx.Response(200, html="<h1>Hello</h1>"), 200, "http_error", "no event stream"),
    ],
)
async def test_a_no_is_an_error_with_its_status_code_and_detail(
    answer: httpx.Response, status: int, code: str, text: str
) -> None:
    transport = Scripted(answer)
    async with client_of(transport) as client:
        stream = client.listen()
        with pytest.raises(Refused) as refused:
            await anext(stream)
        assert (refused.value.status, refused.value.code) == (status, code)
        assert text in str(refused.value)
        assert (stream.state, stream.error) == (State.CLOSED, refused.value)
        assert [event async for event in stream] == []
    assert len(transport.requests) == 1


async def test_the_hub_itself_says_no_to_a_bad_filter() -> None:
    async with client_and_hub() as (client, _):
        with pytest.raises(Refused) as refused:
            await anext(client.listen("a/**/b"))
        assert (refused.value.status, refused.value.code) == (400, "invalid_topic")
        with pytest.raises(Refused):
            await anext(client.listen(last=1, since="1h"))


async def test_an_error_page_without_an_end_is_not_read_to_it() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 1000

    async with client_of(Scripted(httpx.Response(404, content=endless()))) as client:
        with pytest.raises(Refused):
            await anext(client.listen())


@pytest.mark.virtual_time
async def test_an_error_page_that_never_comes_is_not_waited_for() -> None:
    async def stalled() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    for status in (404, 503):
        async with client_of(Scripted(httpx.Response(status, content=stalled()))) as client:
            with pytest.raises((Refused, Unreachable)):
                await anext(client.listen(retry_for=0))


@pytest.mark.virtual_time
async def test_trying_ends_when_its_time_is_over_and_can_begin_again() -> None:
    refused = httpx.ConnectError("nobody listens")
    transport = Scripted(*[refused] * 3, stream_of(WELCOME, event(1)), httpx.Response(204))
    async with client_of(transport) as client:
        stream = client.listen(retry_for=2)
        with pytest.raises(Unreachable, match="No stream within 2 s: nobody listens") as unreachable:
            await anext(stream)
        assert unreachable.value.__cause__ is refused
        assert unreachable.value.idempotency_key is None
        assert stream.state is State.WAITING
        stream._retry_for = 1_000
        assert [event.id async for event in stream] == ["e-1"]


@pytest.mark.virtual_time
async def test_the_time_to_try_starts_anew_with_each_connection() -> None:
    transport = Scripted(*[answer for _ in range(20) for answer in (stream_of(WELCOME), httpx.ConnectError("?"))])
    transport.answers.append(stream_of(WELCOME, event(1)))
    async with client_of(transport) as client:
        assert (await anext(client.listen(retry_for=10))).id == "e-1"
    assert sum(transport.waits) > 10


# Gaps


async def test_a_gap_is_raised_at_its_place_and_what_follows_still_comes() -> None:
    transport = Scripted(stream_of(WELCOME + event(1) + gap(5) + event(6)))
    async with client_of(transport) as client:
        stream = client.listen()
        assert (await anext(stream)).id == "e-1"
        with pytest.raises(Gap, match="Events after e-1 are lost") as raised:
            await anext(stream)
        gone = raised.value
        assert (gone.reason, gone.requested, gone.oldest, gone.top) == ("trimmed", "e-1", "e-6", "e-9")
        assert stream.last_event_id == "e-5"
        assert (await anext(stream)).id == "e-6"
    assert len(transport.requests) == 1


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_who_takes_gaps_gets_them_in_order_and_goes_on(asynchronous: bool) -> None:
    order: list[str | None] = []

    async def on_gap_later(gap: Gap) -> None:
        await asyncio.sleep(0)
        order.append(gap.reason)

    def on_gap(gap: Gap) -> None:
        order.append(gap.reason)

    transport = Scripted(stream_of(WELCOME + event(1) + gap(5) + event(6)))
    async with client_of(transport) as client:
        stream = client.listen(on_gap=on_gap_later if asynchronous else on_gap)
        for _ in range(2):
            order.append((await anext(stream)).id)
    assert order == ["e-1", "trimmed", "e-6"]


async def test_a_hub_that_began_anew_and_a_stored_junk_position_are_told() -> None:
    async with client_and_hub() as (client, hub):
        await hub.publish("first")
        for position, requested, reason in (("00ff-7", "00ff-7", "epoch"), ("jünk", None, "malformed")):
            stream = client.listen(last_event_id=position)
            with pytest.raises(Gap) as raised:
                await anext(stream)
            assert (raised.value.reason, raised.value.requested) == (reason, requested)


async def test_a_trimmed_log_is_told_with_what_is_left() -> None:
    async with client_and_hub(history=2) as (client, hub):
        ids = [(await hub.publish(str(number))).id for number in range(5)]
        stream = client.listen(last_event_id=ids[0])
        with pytest.raises(Gap) as raised:
            await anext(stream)
        assert (raised.value.requested, raised.value.oldest, raised.value.top) == (ids[0], ids[3], ids[4])
        assert [event.id for event in await take(stream, 2)] == ids[3:]


# Ends and interruptions


@pytest.mark.virtual_time
async def test_a_wait_that_is_cancelled_loses_nothing() -> None:
    async with client_and_hub() as (client, hub):
        stream = client.listen(last=1)
        ids = []
        for number in range(20):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await anext(stream)
            ids.append((await hub.publish(str(number))).id)
            if number % 3 == 0:
                ids.append((await hub.publish("more")).id)
                assert (await anext(stream)).id == ids[-2]
                assert (await anext(stream)).id == ids[-1]
            else:
                assert (await anext(stream)).id == ids[-1]
            assert len(hub) == 1


@pytest.mark.virtual_time
async def test_a_wait_for_the_next_attempt_can_be_cancelled_and_goes_on() -> None:
    transport = Scripted(stream_of(WELCOME, b"retry: 10000\n\n"), stream_of(WELCOME, event(1)))
    async with client_of(transport) as client:
        stream = client.listen()
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(3):
                    await anext(stream)
        assert (await anext(stream)).id == "e-1"
    assert transport.waits == pytest.approx([10])


@pytest.mark.virtual_time
async def test_closing_ends_whoever_iterates_wherever_he_waits() -> None:
    async with client_and_hub() as (client, hub), client_of(Scripted(httpx.ConnectError("no"))) as lost:
        for stream, task in (await opened(client), await opened(lost)):
            await stream.aclose()
            with pytest.raises(StopAsyncIteration):
                await task
            await stream.aclose()
        assert len(hub) == 0


async def test_leaving_the_client_ends_its_streams() -> None:
    async with client_and_hub() as (client, hub):
        stream, task = await opened(client)
        await client.aclose()
        with pytest.raises(StopAsyncIteration):
            await task
        assert (stream.state, len(hub)) == (State.CLOSED, 0)


async def test_a_stream_is_closed_with_its_block() -> None:
    async with client_and_hub() as (client, hub):
        await hub.publish("x")
        async with client.listen(last=1) as stream:
            await anext(stream)
            assert len(hub) == 1
        assert len(hub) == 0


async def test_streams_beyond_the_pool_of_httpx_all_come_through() -> None:
    with live_hub() as server:
        server.hub.publish_threadsafe("x")
        async with Client(server.url) as client, asyncio.timeout(30):
            streams = [client.listen(last=1) for _ in range(120)]
            assert {event.data for event in await asyncio.gather(*map(anext, streams))} == {"x"}
            assert (await client.stats())["subscribers"] == 120


# Publishing


@pytest.mark.parametrize(
    ("data", "text"),
    [("as it is \n", "as it is \n"), ("ü", "ü"), ({"number": 42}, '{"number":42}'), ([1, "é"], '[1,"é"]')],
)
async def test_data_goes_out_as_it_is_or_as_json(data: object, text: str) -> None:
    async with client_and_hub() as (client, _):
        published = await client.publish(data, topic="a/b", event="order")
        assert published == Receipt(published.position, 0, "none")
        event = await anext(client.listen("a/*", last=1))
        assert event == Event(text, "order", published.id)


async def test_what_is_asked_reaches_the_hub() -> None:
    transport = Scripted(lambda: httpx.Response(200, json={"id": "e-1", "subscribers": 3, "durable": "log"}))
    async with client_of(transport, publish_key="s3cret") as client:
        answer = await client.publish(
            "x", topic=["a", "b"], event="e", to="c", exclude=("d", "me"), idempotency_key="k"
        )
        assert answer == Receipt(Position("e", 1), 3, "log")
        await client.publish("x")
        await client.publish("x")
    asked, plain, other = transport.requests
    expected = [("topic", "a"), ("topic", "b"), ("event", "e"), ("to", "c"), ("exclude", "d"), ("exclude", "me")]
    assert asked.url.params.multi_items() == expected
    assert asked.headers["idempotency-key"] == "k"
    assert asked.headers["authorization"] == "Bearer s3cret"
    assert str(plain.url) == "http://localhost/broadcast"
    assert plain.headers["idempotency-key"] != other.headers["idempotency-key"]


async def test_the_publish_key_is_for_publishing_alone() -> None:
    transport = Scripted(stream_of(WELCOME, event(1)))
    async with client_of(transport, publish_key="s3cret") as client:
        await anext(client.listen())
    assert "authorization" not in transport.requests[0].headers


async def test_a_hub_with_a_key_refuses_who_has_none() -> None:
    async with client_and_hub(publish_key="0123456789abcdef") as (client, _):
        with pytest.raises(Refused) as refused:
            await client.publish("x")
        assert (refused.value.status, refused.value.code) == (401, "unauthorized")


class LosingAnswers(httpx.AsyncBaseTransport):
    """A transport that passes every request on and loses so many of the answers."""

    def __init__(self, inner: httpx.AsyncBaseTransport, number: int) -> None:
        self.inner, self.left, self.requests = inner, number, 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        response = await self.inner.handle_async_request(request)
        if not self.left:
            return response
        self.left -= 1
        await response.aclose()
        raise httpx.ReadError("cut")


@pytest.mark.virtual_time
async def test_a_lost_answer_doubles_nothing() -> None:
    async with Hub() as hub:
        transport = LosingAnswers(StreamingASGITransport(hub.app), 3)
        async with client_of(transport) as client:
            published = await client.publish("once")
        assert transport.requests == 4
        assert (hub.node.totals.published, (await hub.stats())["top"]) == (1, published.id)


async def test_a_key_of_ones_own_holds_over_calls() -> None:
    async with client_and_hub() as (client, _):
        first = await client.publish("x", idempotency_key="order-42")
        assert await client.publish("x", idempotency_key="order-42") == first
        with pytest.raises(Refused) as refused:
            await client.publish("y", idempotency_key="order-42")
        assert (refused.value.status, refused.value.code) == (409, "key_reused")


@pytest.mark.virtual_time
@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_hub_that_cannot_now_is_published_to_when_it_says(status: int) -> None:
    done = httpx.Response(200, json={"id": "e-1"})
    no = problem(status, "draining", "Stopping.", **{"Retry-After": "20"})
    transport = Scripted(no, httpx.ConnectError("refused"), done)
    async with client_of(transport) as client:
        assert (await client.publish("x")).id == "e-1"
    first, second = transport.waits
    assert first == pytest.approx(20)
    assert BACKOFF[0] / 2 <= second <= BACKOFF[0] * 2
    assert len({request.headers["idempotency-key"] for request in transport.requests}) == 1


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (problem(400, "empty_body", "Empty."), 400, "empty_body"),
        (problem(409, "key_reused", "Reused."), 409, "key_reused"),
        (problem(413, "too_large", "Large."), 413, "too_large"),
        (problem(500, "internal_error", "Ours."), 500, "internal_error"),
        (httpx.Response(404, text="?"), 404, "http_error"),
        (httpx.Response(201, json={"id": "e-1"}), 201, "http_error"),
        (httpx.Response(200, html="<h1>Hello</h1>"), 200, "http_error"),
        (httpx.Response(200, json={"id": 7}), 200, "http_error"),
    ],
)
async def test_what_another_attempt_would_not_change_is_not_tried_again(
    answer: httpx.Response, status: int, code: str
) -> None:
    transport = Scripted(answer)
    async with client_of(transport) as client:
        with pytest.raises(Refused) as refused:
            await client.publish("x")
    assert (refused.value.status, refused.value.code) == (status, code)
    assert len(transport.requests) == 1


@pytest.mark.virtual_time
async def test_publishing_is_tried_for_a_bounded_time() -> None:
    failure = httpx.ConnectError("refused")
    transport = Scripted(failure)
    async with client_of(transport) as client:
        with pytest.raises(Unreachable, match=r"within 60 s: refused\. It was not sent\.") as unreachable:
            await client.publish("x")
        assert unreachable.value.__cause__ is failure
        assert {request.headers["idempotency-key"] for request in transport.requests} == {
            unreachable.value.idempotency_key
        }
        assert asyncio.get_running_loop().time() <= 60
        assert 5 < len(transport.requests) < 20


@pytest.mark.virtual_time
async def test_a_hub_that_asks_for_more_time_than_there_is_is_not_waited_for() -> None:
    transport = Scripted(problem(503, "draining", "Stopping.", **{"Retry-After": "61"}))
    async with client_of(transport) as client:
        with pytest.raises(Unreachable, match="Stopping") as unreachable:
            await client.publish("x", idempotency_key="k")
        assert asyncio.get_running_loop().time() == pytest.approx(0)
    assert unreachable.value.idempotency_key == "k"
    assert isinstance(unreachable.value.__cause__, Refused)


async def never(scope: Any, receive: Any, send: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@pytest.mark.virtual_time
@pytest.mark.parametrize("retry_for", [3, 25])
async def test_a_hub_that_does_not_answer_is_not_waited_for_longer(retry_for: float) -> None:
    async with client_of(StreamingASGITransport(never)) as client:
        with pytest.raises(Unreachable, match=f"within {retry_for} s"):
            await client.publish("x", retry_for=retry_for)
        assert asyncio.get_running_loop().time() == pytest.approx(retry_for)


async def test_what_is_no_json_is_the_callers_mistake() -> None:
    async with client_and_hub() as (client, hub):
        for data in (float("nan"), object(), b"bytes"):
            with pytest.raises(BadInput):
                await client.publish(data)
        assert hub.node.totals.published == 0


async def test_the_counts_of_a_hub_are_there_to_ask() -> None:
    async with client_and_hub() as (client, _):
        assert (await client.stats())["subscribers"] == 0
    async with client_of(Scripted(httpx.ConnectError("refused"))) as client:
        with pytest.raises(Unreachable, match="refused"):
            await client.stats()
    async with client_of(Scripted(httpx.Response(200, html="<h1>Hello</h1>"))) as client:
        with pytest.raises(Refused, match="no hub"):
            await client.stats()


@pytest.mark.parametrize(
    "url", ["localhost:8000", "", "ftp://localhost", "http://", "http://x/?topic=a", "http://x/#a", "http://x:y"]
)
def test_what_is_no_address_of_a_hub_is_refused_at_once(url: str) -> None:
    with pytest.raises(InvalidURL) as invalid:
        Client(url)
    assert isinstance(invalid.value, ValueError)
    assert isinstance(invalid.value, ClientError)


async def test_a_mounted_hub_has_its_path() -> None:
    transport = Scripted(stream_of(WELCOME, event(1)))
    for url in ("https://x.example/hub", "https://x.example/hub/"):
        async with httpx.AsyncClient(transport=transport) as http, Client(url, http=http) as client:
            stream = client.listen()
            transport.answers = [stream_of(WELCOME, event(1))]
            await anext(stream)
    assert {request.url.path for request in transport.requests} == {"/hub/events"}


# Without an event loop


@pytest.fixture
def hub_and_sync() -> Iterator[tuple[Hub, SyncClient]]:
    with live_hub(history=5) as server, SyncClient(server.url, name="script") as client:
        yield server.hub, client


def test_a_script_listens_and_publishes(hub_and_sync: tuple[Hub, SyncClient]) -> None:
    hub, client = hub_and_sync
    published = [client.publish({"number": number}, topic="orders/1", event="order") for number in range(3)]
    came = []
    stream = client.listen("orders/*", last=3)
    for event in stream:
        came.append(event.id)
        assert stream.last_event_id == event.id
        if len(came) == 3:
            break
    assert came == [receipt.id for receipt in published]
    assert (stream.state, stream.welcome["client"], stream.error) == (State.OPEN, "script", None)
    assert client.stats()["subscribers"] == 1
    stream.close()
    assert list(stream) == []
    assert (stream.waiting_until, client.name) == (None, "script")
    until_open(hub, 0)


def test_a_script_is_told_of_gaps(hub_and_sync: tuple[Hub, SyncClient]) -> None:
    _, client = hub_and_sync
    ids = [client.publish(str(number)).id for number in range(10)]
    stream = client.listen(last_event_id=ids[0])
    with pytest.raises(Gap):
        next(stream)
    assert next(stream).id == ids[5]
    gaps: list[tuple[str, int]] = []
    stream = client.listen(last_event_id=ids[0], on_gap=lambda gap: gaps.append((gap.reason, threading.get_ident())))
    assert next(stream).id == ids[5]
    assert gaps == [("trimmed", threading.get_ident())]


def test_a_script_sees_the_errors(hub_and_sync: tuple[Hub, SyncClient]) -> None:
    _, client = hub_and_sync
    with pytest.raises(Refused):
        client.publish("x", topic="a/**/b")
    with pytest.raises(Refused):
        next(client.listen("a/**/b"))


def test_an_error_in_a_scripts_block_ends_its_thread() -> None:
    before = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError), SyncClient("http://localhost") as client:
        1 / len(client.listen().last_event_id)
    assert not set(threading.enumerate()) - before  # threads of other tests may end meanwhile
