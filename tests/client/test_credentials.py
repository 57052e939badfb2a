"""Tokens: where they are sent and where not, and newer ones, for a client over httpx2 and httpx alike."""

import asyncio
import functools
import json
import logging
import threading
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import httpx
import httpx2
import pytest

from sse_app import Client, Hub, SyncClient
from sse_app.client import State, Stream
from sse_app.client.answers import WAIT_MAX
from sse_app.errors import ConfigError, InvalidURL, Refused, Unreachable
from sse_app.events import EventDecoder, encode
from sse_app.testing import StreamingASGITransport
from tests.client.test_sync import script
from tests.support.peers import PATIENCE, listening, until
from tests.support.web import live_hub

BOTH = pytest.mark.parametrize("library", [httpx2, httpx], ids=["httpx2", "httpx"])
KEY = "s3cret-0123456789"
NEWER = [f"{KEY}-{number}" for number in range(9)]
RECEIPT = {"id": "e-1", "subscribers": 0, "durable": "none"}
WELCOME = 'retry: 1000\nid: e-0\nevent: welcome\ndata: {"client":"c"}\n\n'

Answer = Callable[[ModuleType], Any]


def stream_of(*blocks: str) -> Answer:
    headers = {"Content-Type": "text/event-stream"}
    return lambda library: library.Response(200, headers=headers, content="".join(blocks).encode())


def event(number: int) -> str:
    return f"id: e-{number}\ndata: {number}\n\n"


def bye(reason: str, retry: int = 3000) -> str:
    return f'event: bye\nretry: {retry}\ndata: {{"reason":"{reason}","retry":{retry}}}\n\n'


def problem(status: int, code: str, headers: Mapping[str, str] | None = None) -> Answer:
    body = json.dumps({"status": status, "code": code, "detail": "No."})
    return lambda library: library.Response(status, headers=headers, text=body)


def done(library: ModuleType) -> Any:
    return library.Response(200, json=RECEIPT)


NO = problem(401, "invalid_token")


class Scripted:
    """A server that gives these answers in turn, the last one for ever, and records the requests."""

    def __init__(self, library: ModuleType, *answers: Answer) -> None:
        self.library, self.answers = library, list(answers)
        self.requests: list[Any] = []
        self.times: list[float] = []
        self.sent: list[str | None] = []  # the tokens that came

    async def __call__(self, request: Any) -> Any:
        self.requests.append(request)
        self.times.append(asyncio.get_running_loop().time())
        authorization = request.headers.get("authorization")
        self.sent.append(None if authorization is None else authorization.removeprefix("Bearer "))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer(self.library)

    @property
    def waits(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]

    @property
    def cursors(self) -> list[str | None]:
        return [request.headers.get("last-event-id") for request in self.requests]


class Tokens:
    """A token function that returns these in turn, the last one for ever. An exception among them is raised."""

    def __init__(self, *tokens: Any) -> None:
        self.tokens, self.refreshes = list(tokens), list[bool]()

    async def __call__(self, *, refresh: bool) -> str:
        self.refreshes.append(refresh)
        token = self.tokens.pop(0) if len(self.tokens) > 1 else self.tokens[0]
        if isinstance(token, Exception):
            raise token
        return token  # type: ignore[no-any-return]


@asynccontextmanager
async def client_of(server: Scripted, token: Any, url: str = "http://hub", **options: Any) -> AsyncIterator[Client]:
    library = server.library
    async with (
        library.AsyncClient(transport=library.MockTransport(server), **options) as http,
        Client(url, token=token, http=http) as client,
    ):
        yield client


async def ids(stream: Stream, number: int) -> list[str | None]:
    return [(await anext(stream)).id for _ in range(number)]


def publish(client: Client) -> Awaitable[object]:
    return client.publish("x")


def stats(client: Client) -> Awaitable[object]:
    return client.stats()


def listen(client: Client) -> Awaitable[object]:
    return anext(client.listen())


WORKS = (publish, stats, listen)


# Where it is sent


@BOTH
@pytest.mark.parametrize("token", [KEY, f" {KEY}\r\n"])
async def test_a_token_goes_out_with_every_request(library: ModuleType, token: str) -> None:
    server = Scripted(library, done, done, stream_of(WELCOME, event(1)))
    async with client_of(server, token) as client:
        await client.publish("x")
        await client.stats()
        await anext(client.listen())
    assert [request.url.path for request in server.requests] == ["/broadcast", "/stats", "/events"]
    assert server.sent == [KEY] * 3
    assert all(KEY not in str(request.url) for request in server.requests)


@BOTH
async def test_without_a_token_nothing_is_sent(library: ModuleType) -> None:
    server = Scripted(library, done)
    for token in (None, "", " \n"):
        async with client_of(server, token) as client:
            await client.publish("x")
    assert server.sent == [None] * 3


@BOTH
@pytest.mark.parametrize(("location", "follows"), [("http://other/x", None), ("http://hub:81/x", None), ("/x", KEY)])
async def test_a_redirect_to_another_origin_does_not_get_it(
    library: ModuleType, location: str, follows: str | None
) -> None:
    def moved(library: ModuleType) -> Any:
        return library.Response(307, headers={"Location": location})

    server = Scripted(library, moved, done, moved, done, moved, stream_of(WELCOME, event(1)))
    async with client_of(server, KEY, follow_redirects=True) as client:
        await client.publish("x")
        await client.stats()
        await anext(client.listen())
    assert server.sent == [KEY, follows] * 3


async def test_the_hubs_publish_key_may_be_given_as_a_token() -> None:
    with live_hub(publish_key=KEY) as server:
        async with Client(server.url, token=KEY) as client:
            published = await client.publish("x")
            assert (await anext(client.listen(last=1))).id == published.id


def plain_function(refresh: bool) -> str:
    return KEY


async def coroutine_function(refresh: bool) -> str:
    return KEY


class Plain:
    def __call__(self, *, refresh: bool = False) -> str:
        return KEY


@BOTH
@pytest.mark.parametrize(
    "token",
    [
        *(plain_function, coroutine_function, Plain(), Tokens(KEY), functools.partial(coroutine_function)),
        *(lambda refresh: KEY, lambda refresh: coroutine_function(refresh), lambda **how: f" {KEY}\n"),
    ],
)
async def test_a_token_function_is_any_that_takes_refresh(library: ModuleType, token: Any) -> None:
    server = Scripted(library, done)
    async with client_of(server, token) as client:
        await client.publish("x")
    assert server.sent == [KEY]


@BOTH
@pytest.mark.virtual_time
async def test_a_token_function_is_asked_before_each_connection_and_publication(library: ModuleType) -> None:
    tokens = Tokens("t1", "t2", "t3", "t4")
    server = Scripted(library, done, stream_of(WELCOME, event(1)), stream_of(WELCOME, event(2)), done)
    async with client_of(server, tokens) as client:
        await client.publish("x")
        assert await ids(client.listen(), 2) == ["e-1", "e-2"]
        await client.stats()
    assert server.sent == ["t1", "t2", "t3", "t4"]
    assert tokens.refreshes == [False] * 4


@pytest.mark.parametrize(
    "token", [lambda: KEY, lambda token: token, 5, KEY.encode(), ["a"], "two words", "ü", "a\r\nb"]
)
def test_what_is_no_token_is_refused_at_once_and_not_repeated(token: Any) -> None:
    for kind in (Client, SyncClient):
        with pytest.raises(ConfigError, match="token is") as refused:
            kind("http://hub", token=token)
        assert refused.value.__cause__ is None
        assert KEY not in str(refused.value)


def test_one_request_has_one_authorization() -> None:
    with pytest.raises(ConfigError, match="cannot go together"):
        Client("http://hub", token=KEY, publish_key=KEY)
    with pytest.raises(ConfigError, match="cannot go together"):
        Client("http://hub", token=Tokens(KEY), publish_key=KEY)
    with pytest.raises(InvalidURL, match="cannot go together"):
        Client("http://user:password@hub", token=Tokens(KEY))


@BOTH
@pytest.mark.parametrize(
    ("url", "options"),
    [("http://hub", {"token": KEY}), ("http://hub", {"publish_key": KEY}), ("http://user:password@hub", {})],
)
async def test_an_http_client_that_would_send_another_authorization_is_refused(
    library: ModuleType, url: str, options: dict[str, Any]
) -> None:
    async with library.AsyncClient(auth=("user", "password")) as http:
        with pytest.raises(ConfigError, match="auth of its own"):
            Client(url, http=http, **options)
        Client("http://hub", http=http)


# 401


@BOTH
@pytest.mark.virtual_time
async def test_a_stream_whose_token_is_refused_asks_for_a_newer_one_and_resumes_at_once(library: ModuleType) -> None:
    tokens = Tokens("t1", "t1", "t2")
    server = Scripted(library, stream_of(WELCOME, event(1)), NO, stream_of(WELCOME, event(2)))
    states = []
    async with client_of(server, tokens) as client:
        stream = client.listen(on_state=lambda stream: states.append(stream.state))
        assert await ids(stream, 2) == ["e-1", "e-2"]
    assert server.sent == ["t1", "t1", "t2"]
    assert server.cursors == [None, "e-1", "e-1"]
    assert tokens.refreshes == [False, False, True]
    assert server.waits == pytest.approx([1, 0])
    assert states[:4] == [State.OPEN, State.WAITING, State.CONNECTING, State.OPEN]


@BOTH
@pytest.mark.parametrize(
    ("make", "sent"),
    [
        (lambda: KEY, [KEY]),
        (lambda: Tokens("t1", "t2"), ["t1", "t2"]),
        (lambda: Tokens("t1"), ["t1"]),  # asked for a newer one it has none, and the same would only be refused again
    ],
    ids=["text", "newer", "same"],
)
async def test_a_token_that_stays_refused_is_an_error_after_two_requests_at_most(
    library: ModuleType, make: Callable[[], Any], sent: list[str]
) -> None:
    for work in WORKS:
        server = Scripted(library, NO)
        async with client_of(server, make()) as client:
            with pytest.raises(Refused) as refused:
                await work(client)
        assert (refused.value.status, refused.value.code) == (401, "invalid_token")
        assert server.sent == sent


@BOTH
@pytest.mark.parametrize("tokens", [["t1", "t2"], ["t1"]], ids=["newer", "same"])
async def test_a_stream_whose_token_stays_refused_is_closed(library: ModuleType, tokens: list[str]) -> None:
    async with client_of(Scripted(library, NO), Tokens(*tokens)) as client:
        stream = client.listen()
        with pytest.raises(Refused, match="401 invalid_token") as refused:
            await anext(stream)
        assert (stream.state, stream.error) == (State.CLOSED, refused.value)
        assert [event async for event in stream] == []


@BOTH
async def test_a_publication_whose_token_is_refused_is_sent_again_with_a_newer_one(library: ModuleType) -> None:
    tokens = Tokens("t1", "t2")
    server = Scripted(library, NO, done)
    async with client_of(server, tokens) as client:
        assert (await client.publish("x")).id == "e-1"
        server.answers = [NO, done]
        tokens.tokens = ["t3", "t4"]
        assert (await client.stats())["id"] == "e-1"
    assert server.sent == ["t1", "t2", "t3", "t4"]
    assert tokens.refreshes == [False, True] * 2
    first, second = (request.headers["idempotency-key"] for request in server.requests[:2])
    assert first == second


@BOTH
@pytest.mark.virtual_time
async def test_each_attempt_to_connect_may_renew_the_token_once(library: ModuleType) -> None:
    busy = problem(503, "draining", {"Retry-After": "7"})
    server = Scripted(library, NO, busy, NO, stream_of(WELCOME, event(1), bye("drain")), NO, NO)
    tokens = Tokens("t1", "t2", "t3", "t4", "t5", "t6")
    async with client_of(server, tokens) as client:
        stream = client.listen()
        assert await ids(stream, 1) == ["e-1"]
        with pytest.raises(Refused):
            await anext(stream)
    assert tokens.refreshes == [False, True] * 3
    assert server.waits == pytest.approx([0, 7, 0, 3, 0])


@BOTH
async def test_a_no_that_another_token_would_not_change_is_final(library: ModuleType) -> None:
    for status, code in ((403, "insufficient_scope"), (400, "token_in_url"), (404, "not_found"), (421, "bad_host")):
        tokens, server = Tokens("t1", "t2"), Scripted(library, problem(status, code))
        async with client_of(server, tokens) as client:
            for work in (client.publish("x"), client.stats(), anext(client.listen())):
                with pytest.raises(Refused, match=code):
                    await work
        assert (len(server.requests), tokens.refreshes) == (3, [False] * 3)


# What the hub says before it ends a stream


class Expiring(httpx.AsyncBaseTransport):
    """A hub whose token ends after each so many events of a stream, and which takes the next one only then."""

    def __init__(self, hub: Hub, each: int) -> None:
        self.inner, self.each, self.number = StreamingASGITransport(hub.app), each, 0
        self.requests = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        if request.headers["authorization"] != f"Bearer t{self.number}":
            return httpx.Response(401)
        response = await self.inner.handle_async_request(request)
        return httpx.Response(200, headers=response.headers, content=self._body(response))

    async def _body(self, response: httpx.Response) -> AsyncIterator[bytes]:
        decoder, seen = EventDecoder(), 0
        async for chunk in response.aiter_raw():
            for found in decoder.feed(chunk):
                yield encode(found)
                seen += found.type == "message"
                if seen == self.each:
                    self.number += 1
                    await response.aclose()
                    yield bye("expired").encode()
                    return


@pytest.mark.virtual_time
@pytest.mark.parametrize("each", [1, 2, 7])
async def test_tokens_that_expire_between_events_lose_and_double_nothing(each: int) -> None:
    async with Hub() as hub:
        server, refreshes = Expiring(hub, each), list[bool]()

        async def token(refresh: bool) -> str:
            refreshes.append(refresh)
            return f"t{server.number}"

        for number in range(10):
            await hub.publish(str(number))
        async with httpx.AsyncClient(transport=server) as http, Client("http://hub", token=token, http=http) as client:
            stream = client.listen(last=10)
            came = [(await anext(stream)).data for _ in range(10)]
            later = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(40)  # virtual seconds; the comments that keep a stream alive do not get through here
            await hub.publish("later")
            came.append((await later).data)
    assert came == [*map(str, range(10)), "later"]
    assert refreshes == [False] + [True] * (10 // each)
    assert server.requests == len(refreshes)


@BOTH
@pytest.mark.virtual_time
async def test_a_token_that_expires_is_renewed_at_once_and_nothing_is_lost(library: ModuleType) -> None:
    tokens = Tokens("t1", "t2", "t3")
    first = stream_of(WELCOME, event(1), "id: e-5\nevent: cursor\n\n", bye("expired"))
    server = Scripted(library, first, stream_of(WELCOME, event(6), event(7)))
    seen: list[tuple[State, str, Exception | None]] = []
    async with client_of(server, tokens) as client:
        stream = client.listen(on_state=lambda stream: seen.append((stream.state, stream.bye, stream.error)))
        assert await ids(stream, 3) == ["e-1", "e-6", "e-7"]
    assert (server.sent, server.cursors) == (["t1", "t2"], [None, "e-5"])
    assert tokens.refreshes == [False, True]
    assert server.waits == pytest.approx([0])
    assert seen[:3] == [(State.OPEN, "", None), (State.CONNECTING, "expired", None), (State.OPEN, "", None)]


@BOTH
@pytest.mark.virtual_time
async def test_tokens_that_expire_at_once_are_renewed_no_faster_than_the_hub_says(library: ModuleType) -> None:
    server = Scripted(library, stream_of(WELCOME, bye("expired")))
    tokens = Tokens(*(f"t{number}" for number in range(99)))
    async with client_of(server, tokens) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(31):
                await anext(client.listen())
    assert server.waits[:3] == pytest.approx([0, 3, 0])
    assert len(server.requests) <= 2 * 31 / 3 + 2


@BOTH
@pytest.mark.virtual_time
@pytest.mark.parametrize("token", [KEY, Tokens(KEY)], ids=["text", "function with the same"])
async def test_an_expired_token_without_a_newer_one_is_sent_once_more(library: ModuleType, token: Any) -> None:
    """A hub ends streams as expired from time to time, to look at their credential again: it may still be good."""
    server = Scripted(library, stream_of(WELCOME, bye("expired")), stream_of(WELCOME, event(2), bye("expired")), NO)
    async with client_of(server, token) as client:
        stream = client.listen()
        assert await ids(stream, 1) == ["e-2"]
        with pytest.raises(Refused, match="401 invalid_token"):
            await anext(stream)
    assert server.sent == [KEY] * 3
    assert server.waits[-1] == pytest.approx(3)


@BOTH
@pytest.mark.virtual_time
async def test_after_a_revocation_a_newer_token_is_asked_for_once(library: ModuleType) -> None:
    tokens = Tokens("t1", "t2")
    server = Scripted(library, stream_of(WELCOME, event(1), bye("revoked")), NO)
    async with client_of(server, tokens) as client:
        stream = client.listen()
        assert await ids(stream, 1) == ["e-1"]
        with pytest.raises(Refused, match="401 invalid_token"):
            await anext(stream)
        assert (stream.state, stream.bye) == (State.CLOSED, "revoked")
    assert (server.sent, tokens.refreshes) == (["t1", "t2"], [False, True])
    assert server.waits == pytest.approx([3])


@BOTH
@pytest.mark.virtual_time
async def test_who_logs_in_again_after_a_revocation_resumes(library: ModuleType) -> None:
    server = Scripted(library, stream_of(WELCOME, event(1), bye("revoked")), stream_of(WELCOME, event(2)))
    async with client_of(server, Tokens("t1", "t2")) as client:
        assert await ids(client.listen(), 2) == ["e-1", "e-2"]
    assert (server.sent, server.cursors) == (["t1", "t2"], [None, "e-1"])


@BOTH
@pytest.mark.virtual_time
@pytest.mark.parametrize("reason", ["kicked", "changed", "replaced", "contested", "limit", "drain", "later ones"])
async def test_other_reasons_are_waited_for_and_leave_the_token(library: ModuleType, reason: str) -> None:
    tokens = Tokens("t1", "t2")
    server = Scripted(library, stream_of(WELCOME, event(1), bye(reason, 60_000)), stream_of(WELCOME, event(2)))
    byes = []
    async with client_of(server, tokens) as client:
        stream = client.listen(on_state=lambda stream: byes.append((stream.state, stream.bye)))
        assert await ids(stream, 2) == ["e-1", "e-2"]
    assert server.waits == pytest.approx([60])
    assert (server.cursors, tokens.refreshes) == ([None, "e-1"], [False, False])
    assert (State.WAITING, reason) in byes


@BOTH
@pytest.mark.virtual_time
async def test_a_hub_that_says_why_it_is_full_has_not_opened_a_stream(library: ModuleType) -> None:
    full = [stream_of(bye("limit", 20_000)) for _ in range(3)]
    server = Scripted(library, *full, stream_of(WELCOME, event(1)))
    states = []
    async with client_of(server, KEY) as client:
        stream = client.listen(retry_for=50, on_state=lambda stream: states.append(stream.state))
        with pytest.raises(Unreachable, match="within 50 s"):
            await anext(stream)
        assert State.OPEN not in states
        assert stream.bye == "limit"
        assert await ids(stream, 1) == ["e-1"]
    assert min(server.waits) >= 20


@BOTH
@pytest.mark.virtual_time
@pytest.mark.parametrize(("asked", "waited"), [("40", 40), ("999999", WAIT_MAX)])
async def test_too_many_requests_are_waited_for(library: ModuleType, asked: str, waited: float) -> None:
    many = problem(429, "too_many_requests", {"Retry-After": asked})
    server, tokens = Scripted(library, many, stream_of(WELCOME, event(1))), Tokens(KEY)
    async with client_of(server, tokens) as client:
        assert await ids(client.listen(), 1) == ["e-1"]
        server.answers = [many, done]
        assert (await client.publish("x", retry_for=WAIT_MAX + 1)).id == "e-1"
    assert (server.waits[0], server.waits[2]) == pytest.approx((waited, waited))
    assert tokens.refreshes == [False] * 4


@BOTH
@pytest.mark.virtual_time
async def test_too_many_requests_for_the_time_there_is_are_not_waited_for(library: ModuleType) -> None:
    server = Scripted(library, problem(429, "too_many_requests", {"Retry-After": "61"}))
    async with client_of(server, KEY) as client:
        with pytest.raises(Unreachable, match=r"It was not published\.") as unreachable:
            await client.publish("x")
        assert asyncio.get_running_loop().time() == pytest.approx(0)
    assert isinstance(unreachable.value.__cause__, Refused)
    assert unreachable.value.__cause__.code == "too_many_requests"


# The function itself


@BOTH
@pytest.mark.parametrize("before", [[], ["t1"]], ids=["first", "refresh"])
async def test_what_a_token_function_raises_comes_out_as_it_is(library: ModuleType, before: list[str]) -> None:
    """An error of the HTTP library too: the function may use it, and it is no failure to reach the hub."""
    for raised in (LookupError("logged out"), library.ReadTimeout("the identity provider"), Refused(401, "x", "y")):
        for work in WORKS:
            server = Scripted(library, NO)
            async with client_of(server, Tokens(*before, raised)) as client:
                with pytest.raises(type(raised)) as error:
                    await work(client)
                assert error.value is raised
            assert len(server.requests) == len(before)


@BOTH
@pytest.mark.virtual_time
async def test_a_stream_goes_on_after_its_token_function_has_raised(library: ModuleType) -> None:
    raised = LookupError("the identity provider is away")
    tokens = Tokens("t1", raised, raised, "t2")
    server = Scripted(library, stream_of(WELCOME, event(1), bye("expired", 5_000)), stream_of(WELCOME, event(2)))
    async with client_of(server, tokens) as client:
        stream = client.listen(retry_for=1)
        assert await ids(stream, 1) == ["e-1"]
        for _ in range(2):
            with pytest.raises(LookupError):
                await anext(stream)
            assert (stream.state, stream.error) == (State.WAITING, raised)
        assert await ids(stream, 1) == ["e-2"]
    assert (server.sent, server.cursors) == (["t1", "t2"], [None, "e-1"])
    assert tokens.refreshes == [False, True, True, True]
    assert server.waits[0] >= 10  # a loop that goes on at once asks no faster than the hub says


@BOTH
@pytest.mark.parametrize("token", [None, "", " ", f"{KEY} {KEY}", f"{KEY}\r\nX: y", KEY.encode(), 5])
async def test_a_function_that_returns_no_token_is_told_and_what_it_returned_is_not(
    library: ModuleType, token: Any
) -> None:
    server, tokens = Scripted(library, done), Tokens(token)
    del token  # this frame is in the report
    async with client_of(server, tokens) as client:
        for work in (client.publish("x"), client.stats(), anext(client.listen())):
            with pytest.raises(ConfigError, match="The token function returns a text") as refused:
                await work
            report = traceback.TracebackException.from_exception(refused.value, capture_locals=True)
            assert KEY not in "".join(report.format())
    assert not server.requests


@BOTH
@pytest.mark.virtual_time
async def test_streams_whose_tokens_end_together_ask_for_one_newer_token(library: ModuleType) -> None:
    renewals = 0

    async def token(refresh: bool) -> str:
        nonlocal renewals
        renewals += refresh
        await asyncio.sleep(1)  # virtual seconds, in which all streams come to ask
        return f"t{renewals}"

    async def answer(request: Any) -> Any:
        last = request.headers.get("last-event-id")
        blocks = [WELCOME, event(2)] if last else [WELCOME, event(1), bye("expired")]
        return stream_of(*blocks)(library)

    async with (
        library.AsyncClient(transport=library.MockTransport(answer)) as http,
        Client("http://hub", token=token, http=http) as client,
    ):
        streams = [client.listen() for _ in range(50)]
        for number in (1, 2):
            assert {event.id for event in await asyncio.gather(*map(anext, streams))} == {f"e-{number}"}
    assert renewals == 1


@BOTH
async def test_a_plain_function_that_waits_holds_up_no_other_stream(library: ModuleType) -> None:
    asked, goes_on = threading.Event(), threading.Event()

    def token(refresh: bool) -> str:
        if refresh:
            asked.set()
            assert goes_on.wait(PATIENCE)
        return "t2" if refresh else "t1"

    server = Scripted(library, stream_of(WELCOME, event(1)), NO, done, stream_of(WELCOME, event(2)))
    async with client_of(server, token) as client, asyncio.timeout(PATIENCE):
        await anext(client.listen())
        waiting = asyncio.ensure_future(anext(client.listen()))
        await until(asked.is_set)
        await client.publish("meanwhile")
        goes_on.set()
        assert (await waiting).id == "e-2"
    assert server.sent == ["t1", "t1", "t1", "t2"]


class Hanging:
    """A token function that returns a first token, and then never returns."""

    def __init__(self, *tokens: str) -> None:
        self.tokens, self.hangs = list(tokens), asyncio.Event()

    async def __call__(self, *, refresh: bool) -> str:
        if self.tokens:
            return self.tokens.pop(0)
        self.hangs.set()
        await asyncio.Event().wait()
        raise AssertionError


@BOTH
async def test_closing_ends_who_waits_for_a_token(library: ModuleType) -> None:
    for tokens in ([], ["t1"]):
        server, token = Scripted(library, NO), Hanging(*tokens)
        async with client_of(server, token) as client, asyncio.timeout(PATIENCE):
            stream = client.listen()
            task = asyncio.ensure_future(anext(stream))
            await token.hangs.wait()
            await client.aclose()
            with pytest.raises(StopAsyncIteration):
                await task
            assert stream.state is State.CLOSED
        assert server.sent == tokens


@BOTH
@pytest.mark.virtual_time
async def test_a_publication_without_a_token_in_time_was_not_sent(library: ModuleType) -> None:
    server = Scripted(library, done)
    async with client_of(server, Hanging()) as client:
        with pytest.raises(Unreachable, match=r"the token function did not return\. It was not sent\."):
            await client.publish("x", retry_for=5)
        assert asyncio.get_running_loop().time() == pytest.approx(5)
        server.answers = [problem(503, "draining")]
    async with client_of(server, Hanging("t1")) as client:
        with pytest.raises(Unreachable, match=r"the token function did not return\. It was not published\."):
            await client.publish("x", retry_for=5)


@BOTH
@pytest.mark.virtual_time
async def test_a_wait_for_a_token_can_be_cancelled_and_goes_on(library: ModuleType) -> None:
    tokens, slow = Tokens("t1"), asyncio.Event()

    async def token(refresh: bool) -> str:
        await slow.wait()
        return await tokens(refresh=refresh)

    server = Scripted(library, stream_of(WELCOME, event(1)))
    async with client_of(server, token) as client:
        stream = client.listen()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(100):
                await anext(stream)
        slow.set()
        assert await ids(stream, 1) == ["e-1"]
    assert (server.sent, tokens.refreshes) == (["t1"], [False])


# Secrets


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")


async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()


@BOTH
@pytest.mark.parametrize("kind", ["text", "function"])
async def test_no_token_is_in_an_error_a_name_of_its_frames_a_repr_or_a_log(
    library: ModuleType, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for serve in (hang_up, refuse):
        async with (
            listening(serve) as port,
            library.AsyncClient() as http,
            Client(f"http://127.0.0.1:{port}", token=KEY if kind == "text" else Tokens(*NEWER), http=http) as client,
        ):
            stream = client.listen(retry_for=0)
            for work in (client.publish("x", retry_for=0), client.stats(), anext(stream)):
                with pytest.raises((Unreachable, Refused)) as raised:
                    await work
                report = traceback.TracebackException.from_exception(raised.value, capture_locals=True)
                assert KEY not in "".join(report.format())
            shown = [client, stream, *vars(client).values(), *vars(stream).values(), *vars(stream._permit).values()]
            assert KEY not in "".join(map(repr, shown))
    assert KEY not in caplog.text


# Without asyncio


def test_a_script_renews_its_token() -> None:
    refreshes: list[tuple[bool, bool]] = []

    def token(refresh: bool) -> str:
        refreshes.append((refresh, threading.current_thread() is threading.main_thread()))
        return f"t{sum(asked for asked, _ in refreshes)}"  # one more with each refresh

    server = Scripted(httpx2, NO, done, stream_of(WELCOME, event(1), bye("expired")), stream_of(WELCOME, event(2)))
    http = httpx2.AsyncClient(transport=httpx2.MockTransport(server))
    with SyncClient("http://hub", token=token, http=http) as client:
        client.publish("x")
        stream = client.listen()
        assert [next(stream).id, next(stream).id, stream.bye] == ["e-1", "e-2", ""]
    assert server.sent == ["t0", "t1", "t1", "t2"]
    assert refreshes == [(False, False), (True, False), (False, False), (True, False)]


def test_a_script_gets_what_its_token_function_raises() -> None:
    def token(refresh: bool) -> str:
        raise LookupError("logged out")

    with SyncClient("http://hub", token=token) as client:
        for work in (lambda: client.publish("x"), client.stats, lambda: next(client.listen())):
            with pytest.raises(LookupError, match="logged out"):
                work()


@pytest.mark.parametrize("end", ["client.close()", "pass"])
def test_a_token_function_that_never_returns_holds_up_no_end(end: str) -> None:
    text = f"""
import threading
from sse_app import SyncClient
asked = threading.Event()
def token(refresh):
    asked.set()
    threading.Event().wait()
client = SyncClient("http://127.0.0.1:1", token=token)
threading.Thread(target=lambda: list(client.listen()), daemon=True).start()
asked.wait()
{end}
"""
    assert script(text) == ""


def test_a_coroutine_function_is_for_programs_with_an_event_loop() -> None:
    for token in (coroutine_function, Tokens(KEY), functools.partial(coroutine_function)):
        with pytest.raises(ConfigError, match="a plain one"):
            SyncClient("http://hub", token=token)  # type: ignore[arg-type]
