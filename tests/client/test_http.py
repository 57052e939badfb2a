"""The client over its HTTP library: httpx2 and httpx alike, with errors of neither raised to the caller."""

import asyncio
import base64
import json
import subprocess
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import httpx
import httpx2
import pytest

from sse_app import Client
from sse_app.client.http import TIMEOUT
from sse_app.client.http import _new_client as made
from sse_app.errors import (
    BadInput,
    ClientError,
    Closed,
    ConfigError,
    InvalidIdempotencyKey,
    InvalidSince,
    InvalidURL,
    Refused,
    SSEAppError,
    TooLarge,
    Unreachable,
)
from tests.support.peers import PATIENCE, listening, reserved_port
from tests.support.web import LiveHub, live_hub
from tests.test_cli import environment

KEY = "s3cret-0123456789"
BOTH = pytest.mark.parametrize("library", [httpx2, httpx], ids=["httpx2", "httpx"])
DONE = {"id": "e-1", "subscribers": 0, "durable": "none"}
Handler = Callable[[Any], Awaitable[Any]]


@pytest.fixture
def server() -> "Any":
    with live_hub() as server:
        yield server


@asynccontextmanager
async def client_of(
    library: ModuleType, handler: Handler, url: str = "http://hub", **options: Any
) -> AsyncIterator[Client]:
    """A client over this library, with a function that answers its requests."""
    async with (
        library.AsyncClient(transport=library.MockTransport(handler), **options.pop("library_options", {})) as http,
        Client(url, http=http, **options) as client,
    ):
        yield client


class Answering:
    """A handler that always returns this answer, and records the requests."""

    def __init__(self, library: ModuleType, status: int = 200, **answer: Any) -> None:
        self.library, self.status, self.answer = library, status, answer or {"json": DONE}
        self.requests: list[Any] = []

    async def __call__(self, request: Any) -> Any:
        self.requests.append(request)
        return self.library.Response(self.status, **self.answer)


class Failing:
    """A handler that raises these errors of the library in turn, the last one for ever."""

    def __init__(self, library: ModuleType, *names: str) -> None:
        self.library, self.names = library, list(names)

    async def __call__(self, request: Any) -> Any:
        name = self.names.pop(0) if len(self.names) > 1 else self.names[0]
        raise getattr(self.library, name)(f"{name} of {request.headers.get('authorization')}"[: len(name)])


# Either library


@BOTH
async def test_a_client_of_either_library_is_taken(library: ModuleType, server: LiveHub) -> None:
    async with library.AsyncClient() as http, Client(server.url, http=http) as client:
        published = await client.publish({"number": 42}, topic="a/b")
        assert (await anext(client.listen("a/*", last=1))).id == published.id
        assert (await client.stats())["top"] == published.id
        with pytest.raises(Refused, match="invalid_topic"):
            await client.publish("x", topic="a/**/b")


@BOTH
async def test_a_hub_that_is_away_is_said_so_by_either(library: ModuleType) -> None:
    with reserved_port() as port:
        async with library.AsyncClient() as http, Client(f"http://127.0.0.1:{port}", http=http) as client:
            with pytest.raises(Unreachable, match=r"It was not sent\.") as unreachable:
                await client.publish("x", retry_for=0)
            assert isinstance(unreachable.value.__cause__, library.ConnectError)
            with pytest.raises(Unreachable):
                await client.stats()
            with pytest.raises(Unreachable):
                await anext(client.listen(retry_for=0))


def test_a_client_of_its_own_is_one_of_httpx2() -> None:
    assert isinstance(Client("http://hub")._http._http, httpx2.AsyncClient)


def test_where_there_is_one_library_it_does() -> None:
    for missing, other in (("httpx2", "httpx"), ("httpx", "httpx2")):
        check = (
            f"import sys; sys.modules[{missing!r}] = None\nfrom sse_app import Client\n"
            f"print(type(Client('http://hub')._http._http).__module__)"
        )
        done = subprocess.run(
            [sys.executable, "-c", check], env=environment(), capture_output=True, text=True, timeout=PATIENCE
        )
        assert (done.stdout.strip(), done.stderr) == (other, "")


@BOTH
def test_what_is_no_asynchronous_client_is_refused(library: ModuleType) -> None:
    with library.Client() as http, pytest.raises(ConfigError, match="AsyncClient of httpx2"):
        Client("http://hub", http=http)


# What cannot be sent


@pytest.mark.parametrize(
    "url",
    [
        *("http://x:99999", "http://x:0", "http://x:-1", "http://x\ud800", "http://x/\ud800", "http://x/\n"),
        *("http://user:s3cret/0@x", "http://user:s3cret-0123456789@x:y", "http://us\ud800r@x"),
    ],
)
def test_no_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidURL) as invalid:
        Client(url)
    assert "s3cret" not in str(invalid.value)
    assert invalid.value.__context__ is None


@pytest.mark.parametrize("key", [f"{KEY}\n{KEY}", f"{KEY}\r\nX: y", "with space", "schlüssel", "\ud800", "\0", "\x7f"])
def test_a_publish_key_that_is_none_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(ConfigError, match="publish_key") as refused:
        Client("http://hub", publish_key=key)
    assert key not in str(refused.value)


@pytest.mark.parametrize("key", [KEY.encode(), 5])
def test_a_publish_key_is_a_text(key: Any) -> None:
    with pytest.raises(ConfigError, match="publish_key is visible ASCII"):
        Client("http://hub", publish_key=key)


@BOTH
@pytest.mark.parametrize("key", [f"{KEY}\n", f" {KEY}\r\n", f"\t{KEY}"])
async def test_white_space_around_a_publish_key_is_none_of_it(library: ModuleType, key: str) -> None:
    answering = Answering(library)
    async with client_of(library, answering, publish_key=key) as client:
        await client.publish("x")
    assert answering.requests[0].headers["authorization"] == f"Bearer {KEY}"


@BOTH
@pytest.mark.parametrize("key", ["", "k\r\nX: y", "k\n", " k", "two words", "k" * 129, "schlüssel", "\ud800", "\0"])
async def test_an_idempotency_key_is_checked_before_anything_is_sent(library: ModuleType, key: str) -> None:
    answering = Answering(library)
    async with client_of(library, answering) as client:
        with pytest.raises(InvalidIdempotencyKey, match="1 to 128"):
            await client.publish("x", idempotency_key=key)
        assert not answering.requests
        await client.publish("x", idempotency_key="k" * 128)


@BOTH
@pytest.mark.parametrize(
    ("given", "error"),
    [
        *[({name: "\ud800"}, BadInput) for name in ("topic", "to", "exclude")],
        *[({name: "x" * 70_000}, TooLarge) for name in ("topic", "to", "exclude")],
        ({"topic": ["x" * 2_000] * 40}, TooLarge),
    ],
    ids=lambda given: str(given)[:40],
)
async def test_what_no_url_can_carry_is_bad_input(
    library: ModuleType, given: dict[str, Any], error: type[BadInput]
) -> None:
    answering = Answering(library)
    async with client_of(library, answering) as client:
        with pytest.raises(error) as refused:
            await client.publish("x", **given)
        assert type(refused.value) is error
        assert refused.value.__context__ is None
        for filter in given.values() if "topic" in given else ():
            with pytest.raises(error):
                client.listen(*([filter] if isinstance(filter, str) else filter))
    assert not answering.requests


@BOTH
async def test_a_stored_position_is_sent_without_what_is_around_it(library: ModuleType) -> None:
    answering = Answering(library, 204, content=b"")
    async with client_of(library, answering) as client:
        assert [event async for event in client.listen(last_event_id=" e-7\r\n")] == []
        for position in ("e-7\ne-8", "e-7\r\nX: y", "\0", "\ud800", "e\x1b"):
            with pytest.raises(InvalidSince, match="last_event_id"):
                client.listen(last_event_id=position)
    assert [request.headers["last-event-id"] for request in answering.requests] == ["e-7"]


@BOTH
async def test_an_id_of_another_server_that_no_header_can_carry_is_said(library: ModuleType) -> None:
    """WHATWG 9.2.6 allows any but NUL and line ends; a field value has no vertical tab (RFC 9110 5.5)."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        writer.write(b"retry: 1\n\nid: a\x0bb\ndata: x\n\n")
        await writer.drain()

    async with (
        listening(answer) as port,
        asyncio.timeout(PATIENCE),
        library.AsyncClient() as http,
        Client(f"http://127.0.0.1:{port}", http=http) as client,
    ):
        stream = client.listen()
        assert (await anext(stream)).id == "a\x0bb"
        with pytest.raises(ClientError, match="one of its headers"):
            await anext(stream)


# What the library says


@BOTH
@pytest.mark.parametrize("name", ["UnsupportedProtocol", "TooManyRedirects"])
async def test_an_address_that_leads_nowhere_is_no_url_of_a_hub(library: ModuleType, name: str) -> None:
    async with client_of(library, Failing(library, name)) as client:
        for work in (client.publish("x"), client.stats(), anext(client.listen())):
            with pytest.raises(InvalidURL, match="leads nowhere"):
                await work


@BOTH
async def test_a_redirect_in_a_circle_ends(library: ModuleType) -> None:
    answering = Answering(library, 307, headers={"Location": "/broadcast"})
    async with client_of(library, answering, library_options={"follow_redirects": True}) as client:
        with pytest.raises(InvalidURL, match="circle"):
            await client.publish("x")


@BOTH
async def test_a_proxys_port_that_cannot_be_is_said(library: ModuleType) -> None:
    async with (
        library.AsyncClient(proxy="http://user:s3cret@127.0.0.1:99999") as http,
        Client("http://hub.example", http=http) as client,
    ):
        with pytest.raises(InvalidURL, match="above 65,535") as invalid:
            await client.publish("x")
    assert "s3cret" not in "".join(traceback.format_exception(invalid.value))


@BOTH
async def test_a_closed_client_says_so(library: ModuleType) -> None:
    async with client_of(library, Answering(library)) as client:
        await client.aclose()
        with pytest.raises(Closed, match="make another"):
            await client.publish("x")
        with pytest.raises(Closed):
            await client.stats()
        with pytest.raises(Closed):
            client.listen()
    async with library.AsyncClient() as http, Client("http://hub", http=http) as client:
        await http.aclose()
        for work in (client.publish("x"), client.stats(), anext(client.listen())):
            with pytest.raises(Closed, match="make another"):
                await work


def test_a_client_is_used_in_one_event_loop_and_refuses_another_before_it_sends() -> None:
    answering = Answering(httpx2)
    http = httpx2.AsyncClient(transport=httpx2.MockTransport(answering))
    client = Client("http://hub", http=http)
    asyncio.run(client.publish("x"))

    async def again() -> None:
        for work in (client.publish("y"), client.stats(), anext(client.listen())):
            with pytest.raises(ClientError, match=r"in each asyncio\.run"):
                await work

    asyncio.run(again())
    assert len(answering.requests) == 1


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("HTTP_PROXY", "socks5://user:s3cret@127.0.0.1:1", r"SOCKS proxy: pip install 'httpx2\[socks\]'"),
        ("ALL_PROXY", "nosuch://user:s3cret@127.0.0.1", "no proxy of HTTP"),
        ("HTTPS_PROXY", "http://user:s3cret@127.0.0.1:y", "no proxy of HTTP"),
        ("SSL_CERT_FILE", "/nowhere/s3cret", "SSL_CERT_FILE"),
    ],
)
def test_surroundings_that_cannot_be_followed_are_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, text: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=text) as refused:
        Client("http://hub")
    assert "s3cret" not in "".join(traceback.format_exception(refused.value))


def test_hosts_without_a_proxy_that_httpx_cannot_read_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "[::1]")
    with pytest.raises(ConfigError, match="NO_PROXY"):
        made(httpx)
    assert isinstance(made(httpx2), httpx2.AsyncClient)


# Secrets


@BOTH
async def test_a_user_and_a_password_are_sent_and_nowhere_shown(library: ModuleType) -> None:
    answering = Answering(library)
    async with client_of(library, answering, "http://us%40er:p%3Aw@hub/x/") as client:
        await client.publish("x")
        await client.stats()
        with pytest.raises(Refused):
            await anext(client.listen())
        assert client.url == "http://hub/x"
        assert "p:w" not in repr(client) + repr(vars(client)["_http"])
    assert {request.headers["authorization"] for request in answering.requests} == {
        f"Basic {base64.b64encode(b'us@er:p:w').decode()}"
    }
    assert [str(request.url).partition("?")[0] for request in answering.requests] == [
        f"http://hub/x/{path}" for path in ("broadcast", "stats", "events")
    ]


def test_one_request_has_one_authorization() -> None:
    with pytest.raises(InvalidURL, match="cannot go together"):
        Client("http://user:password@hub", publish_key=KEY)


@BOTH
async def test_no_error_has_a_key_in_its_text_its_chain_or_the_names_of_its_frames(library: ModuleType) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    for serve, kind in ((hang_up, Unreachable), (refuse, Refused)):
        async with (
            listening(serve) as port,
            library.AsyncClient() as http,
            Client(f"http://127.0.0.1:{port}", publish_key=KEY, http=http) as client,
        ):
            with pytest.raises(kind) as raised:
                await client.publish("x", retry_for=0)
            report = traceback.TracebackException.from_exception(raised.value, capture_locals=True)
            assert KEY not in "".join(report.format())


# What became of it


@BOTH
@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("names", "fate"),
    [
        (["ConnectError"], "It was not sent."),
        (["ConnectTimeout"], "It was not sent."),
        (["ProxyError"], "It was not sent."),
        (["ReadError"], "It may have been published."),
        (["ReadTimeout"], "It may have been published."),
        (["WriteError"], "It may have been published."),
        (["RemoteProtocolError"], "It may have been published."),
        (["ReadError", "ConnectError"], "It may have been published."),
    ],
    ids=str,
)
async def test_what_may_have_become_of_it_is_said(library: ModuleType, names: list[str], fate: str) -> None:
    async with client_of(library, Failing(library, *names)) as client:
        with pytest.raises(Unreachable) as unreachable:
            await client.publish("x", retry_for=9)
    assert str(unreachable.value).endswith(fate)


@BOTH
@pytest.mark.parametrize(
    ("status", "code", "fate"),
    [
        (503, "draining", "It was not published."),
        (504, "outcome_unknown", "It may have been published."),
        (503, None, "It may have been published."),
        (502, None, "It may have been published."),
    ],
)
async def test_a_hubs_no_is_certain_and_a_proxys_is_not(
    library: ModuleType, status: int, code: str | None, fate: str
) -> None:
    body = json.dumps({"code": code, "detail": "No."}) if code else "<h1>No</h1>"
    async with client_of(library, Answering(library, status, text=body)) as client:
        with pytest.raises(Unreachable) as unreachable:
            await client.publish("x", retry_for=0)
    assert str(unreachable.value).endswith(fate)


@BOTH
async def test_a_tls_handshake_that_fails_sends_nothing(library: ModuleType) -> None:
    async def no_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(5)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    async with listening(no_tls) as port, library.AsyncClient() as http:
        client = Client(f"https://127.0.0.1:{port}", http=http)
        with pytest.raises(Unreachable, match=r"It was not sent\."):
            await client.publish("x", retry_for=0)


@BOTH
@pytest.mark.virtual_time
@pytest.mark.parametrize(("retry_for", "seconds"), [(60, 10), (5, 4.5), (0, 9)])
async def test_a_connection_fails_before_its_attempt_is_cut_off(
    library: ModuleType, retry_for: float, seconds: float
) -> None:
    answering = Answering(library)
    async with client_of(library, answering) as client:
        await client.publish("x", retry_for=retry_for)
    assert answering.requests[0].extensions["timeout"]["connect"] == pytest.approx(seconds)


@BOTH
@pytest.mark.virtual_time
@pytest.mark.parametrize("retry_for", [0, 0.0])
async def test_no_time_to_try_is_one_attempt(library: ModuleType, retry_for: float) -> None:
    answering = Answering(library, 503)
    async with client_of(library, answering) as client:
        with pytest.raises(Unreachable):
            await client.publish("x", retry_for=retry_for)
        assert len(answering.requests) == 1
        answering.status = 200
        assert (await client.publish("x", retry_for=retry_for)).id == "e-1"


@BOTH
@pytest.mark.virtual_time
async def test_one_attempt_has_the_time_of_an_answer(library: ModuleType) -> None:
    async def never(request: Any) -> Any:
        await asyncio.Event().wait()

    async with client_of(library, never) as client:
        with pytest.raises(Unreachable, match="no answer came"):
            await client.publish("x", retry_for=0)
        assert asyncio.get_running_loop().time() == pytest.approx(TIMEOUT)


def test_errors_of_a_client_are_in_the_tree() -> None:
    assert issubclass(Closed, SSEAppError)
    assert issubclass(Closed, RuntimeError)
