"""The keys of a URL, on virtual time; the HTTP of it on real sockets at the end."""

import asyncio
import gzip
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import httpx
import pytest

from sse_app.auth import jwks as module
from sse_app.auth.issuer import IssuerSettings
from sse_app.auth.jwks import INTERVAL, INTERVAL_MAX, INTERVAL_MIN, LOOK_AGAIN, SIZE_MAX, RemoteKeys
from sse_app.errors import KeysUnavailable
from tests.support.tokens import AUDIENCE, ISSUER, jwks, pair

STALE = 86_400.0
OLD, NEW = pair("rsa").jwk("old"), pair("p-256").jwk("new")

virtual_time = pytest.mark.virtual_time


class Body(httpx.AsyncByteStream):
    """The body of a response that has not been read yet."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._content


class Login:
    """An issuer on virtual time. ``answer`` is its answer, None for an issuer that cannot be reached."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.asked: list[float] = []
        self.answer: httpx.Response | None = self.set_of(*keys)
        self.takes = 0.0

    def set_of(self, *keys: dict[str, Any], **headers: str) -> httpx.Response:
        return httpx.Response(200, text=jwks(*keys), headers=headers)

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(asyncio.get_running_loop().time())
        answer = self.answer
        await asyncio.sleep(self.takes)
        if answer is None:
            raise httpx.ConnectError("refused")
        assert isinstance(answer.stream, httpx.ByteStream)
        return httpx.Response(answer.status_code, stream=Body(b"".join(answer.stream)), headers=answer.headers)

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(self))


def settings(url: str = "https://login.example/jwks.json", **changed: Any) -> IssuerSettings:
    return IssuerSettings(place="", name="main", issuer=ISSUER, audience=(AUDIENCE,), keys=(url,), **changed)


@asynccontextmanager
async def running(keys: RemoteKeys) -> AsyncIterator[RemoteKeys]:
    """These keys, which are fetched meanwhile. Their first fetch has ended."""
    task = asyncio.ensure_future(keys.run())
    await asyncio.sleep(0)
    try:
        with suppress(KeysUnavailable):
            await keys.refresh()
        yield keys
    finally:
        assert not task.done()
        task.cancel()
        await asyncio.wait([task])


def remote(login: Login, **options: Any) -> RemoteKeys:
    return RemoteKeys(settings(), open_client=login.client, **{"stale_after": STALE, **options})


def ids(keys: RemoteKeys) -> set[str]:
    return {key.id for key in keys}


@virtual_time
async def test_keys_are_fetched_at_the_start_and_then_regularly() -> None:
    login = Login(OLD)
    keys = remote(login)
    assert keys.stale
    assert keys.age is None
    async with running(keys):
        assert not keys.stale
        assert ids(keys) == {"old"}
        await asyncio.sleep(2.5 * INTERVAL)
        assert login.asked == pytest.approx([0.0, INTERVAL, 2 * INTERVAL])
        assert keys.age == pytest.approx(INTERVAL / 2)


@virtual_time
@pytest.mark.parametrize(
    ("cache_control", "interval"),
    [("max-age=600", 600.0), ("public, max-age=600, must-revalidate", 600.0), ("Max-Age=600", 600.0),
     ('max-age="600"', 600.0), ("max-age=1", INTERVAL_MIN), ("max-age=999999999", INTERVAL_MAX), ("no-store", INTERVAL),
     ("s-maxage=600", INTERVAL), ("max-age=-1", INTERVAL), ("max-age=x", INTERVAL), ("", INTERVAL)],
)  # fmt: skip
async def test_the_answer_says_how_long_it_may_be_kept(cache_control: str, interval: float) -> None:
    login = Login()
    login.answer = login.set_of(OLD, **{"Cache-Control": cache_control})
    async with running(remote(login, stale_after=3 * INTERVAL_MAX)):
        await asyncio.sleep(1.5 * interval)
    assert login.asked == pytest.approx([0.0, interval])


@virtual_time
async def test_however_long_an_answer_may_be_kept_one_failed_fetch_is_no_outage() -> None:
    login = Login()
    login.answer = login.set_of(OLD, **{"Cache-Control": "max-age=86400"})
    async with running(remote(login, stale_after=86_400.0)) as keys:
        login.answer = None
        await asyncio.sleep(86_400.0 / 2 + 10)
        assert keys.failures == 1
        assert not keys.stale


@virtual_time
async def test_an_outage_changes_nothing_until_the_keys_are_stale(caplog: pytest.LogCaptureFixture) -> None:
    login = Login(OLD)
    async with running(remote(login, stale_after=7_200)) as keys:
        login.answer = None
        await asyncio.sleep(3_600)
        assert keys.find("old")
        assert not keys.stale
        assert keys.failures == pytest.approx((3_600 - INTERVAL) / LOOK_AGAIN)
        await asyncio.sleep(3_600 - LOOK_AGAIN)
        assert not keys.stale
        await asyncio.sleep(3 * LOOK_AGAIN)
        assert keys.stale
        login.answer = login.set_of(NEW)
        await asyncio.sleep(LOOK_AGAIN + 2)
        assert not keys.stale
        assert ids(keys) == {"new"}
    texts = [record.getMessage() for record in caplog.records]
    assert texts == [
        "the keys of token issuer main cannot be fetched: ConnectError",
        "the keys of token issuer main are fetched again",
    ]


@virtual_time
async def test_a_start_without_an_issuer_is_a_start() -> None:
    login = Login()
    login.answer = None
    async with running(remote(login)) as keys:
        with pytest.raises(KeysUnavailable):
            await keys.refresh()
        assert keys.stale
        login.answer = login.set_of(OLD)
        await asyncio.sleep(LOOK_AGAIN + 2)
        assert keys.find("old")
        assert not keys.stale


@virtual_time
async def test_before_it_runs_there_are_no_keys() -> None:
    with pytest.raises(KeysUnavailable):
        await remote(Login(OLD)).refresh()


@virtual_time
async def test_an_unknown_key_is_looked_for_once_for_all() -> None:
    login = Login(OLD)
    login.takes = 1.0
    async with running(remote(login)) as keys:
        await asyncio.sleep(LOOK_AGAIN + 1)
        login.answer = login.set_of(OLD, NEW)
        await asyncio.gather(*(keys.refresh() for _ in range(50)))
        assert len(login.asked) == 2
        assert keys.find("new")


@virtual_time
async def test_a_thousand_unknown_keys_are_one_fetch_in_30_seconds() -> None:
    login = Login(OLD)
    async with running(remote(login)) as keys:
        for _ in range(1_000):
            await keys.refresh()
            await asyncio.sleep(0.1)
        assert keys.find("other") == ()
    assert len(login.asked) <= 1 + 100 / LOOK_AGAIN
    assert all(later - earlier >= LOOK_AGAIN for earlier, later in pairwise(login.asked))


@virtual_time
async def test_without_a_look_due_the_answer_comes_at_once() -> None:
    async with running(remote(Login(OLD))) as keys:
        before = asyncio.get_running_loop().time()
        await keys.refresh()
        assert asyncio.get_running_loop().time() == before


@virtual_time
async def test_during_an_outage_an_unknown_key_may_be_a_good_one() -> None:
    """So its token is not refused: a browser would give up for good."""
    login = Login(OLD)
    async with running(remote(login)) as keys:
        login.answer = None
        await asyncio.sleep(LOOK_AGAIN + 1)
        with pytest.raises(KeysUnavailable):
            await keys.refresh()
        login.answer = login.set_of(NEW)
        await asyncio.sleep(LOOK_AGAIN + 2)
        await keys.refresh()
        assert keys.find("new")


@virtual_time
async def test_a_key_that_a_good_fetch_lacks_is_told() -> None:
    login, gone = Login(OLD, NEW), list[frozenset[str]]()
    async with running(remote(login)) as keys:
        keys.on_gone = gone.append
        for answer in (None, httpx.Response(500), login.set_of(), login.set_of(NEW, OLD)):
            login.answer = answer
            await asyncio.sleep(2 * INTERVAL)
        assert gone == []
        login.answer = login.set_of(NEW)
        await asyncio.sleep(2 * INTERVAL)
        assert gone == [{"old"}]
        login.answer = login.set_of(pair("p-256 other").jwk("new"))  # another key under the same id
        await asyncio.sleep(2 * INTERVAL)
        assert gone == [{"old"}, {"new"}]


@virtual_time
async def test_keys_of_another_place_are_taken_back_by_the_first_good_fetch() -> None:
    gone = list[frozenset[str]]()
    async with running(remote(Login(OLD, NEW))) as former:
        keys = remote(Login(NEW), former=former)
        keys.on_gone = gone.append
        assert keys.stale
        async with running(keys):
            assert gone == [{"old"}]
            assert ids(keys) == {"new"}


@virtual_time
@pytest.mark.parametrize(
    "answer",
    [httpx.Response(301, headers={"Location": "http://169.254.169.254/"}), httpx.Response(302, text=jwks(NEW)),
     httpx.Response(206, text=jwks(NEW)), httpx.Response(304), httpx.Response(204),
     httpx.Response(404, text=jwks(OLD)), httpx.Response(500), httpx.Response(200, text="<html>"),
     httpx.Response(200, text="{}"), httpx.Response(200, text=jwks()), httpx.Response(200, text=jwks(*[OLD] * 101)),
     httpx.Response(200, text=jwks(pair("secret").jwk())), httpx.Response(200, text=jwks(OLD) + " " * SIZE_MAX),
     httpx.Response(200, headers={"Content-Encoding": "gzip"}, content=gzip.compress(jwks(OLD).encode()))],
    ids=lambda answer: f"{answer.status_code} {answer.content[:20]!r}",
)  # fmt: skip
async def test_an_answer_that_is_no_set_of_keys_is_a_failure(answer: httpx.Response) -> None:
    login = Login(OLD)
    async with running(remote(login)) as keys:
        login.answer = answer
        await asyncio.sleep(INTERVAL + 2)
        assert keys.failures == 1
        assert ids(keys) == {"old"}
    assert len(login.asked) == 2


@virtual_time
async def test_a_slow_answer_is_not_waited_for() -> None:
    login = Login(OLD)
    login.takes = 3_600.0
    async with running(remote(login)) as keys:
        assert asyncio.get_running_loop().time() == pytest.approx(module.FETCH_TIME)
        assert keys.failures == 1


class Dripping(httpx.AsyncByteStream):
    """A body that never ends, a byte a second."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(1)


@virtual_time
async def test_an_answer_of_a_byte_a_second_is_not_waited_for() -> None:
    """No read of it takes long, but all of them together do."""

    async def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Dripping())

    def client() -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(answer))

    async with running(RemoteKeys(settings(), open_client=client, stale_after=STALE)) as keys:
        assert asyncio.get_running_loop().time() == pytest.approx(module.FETCH_TIME)
        assert (keys.failures, keys.stale) == (1, True)


@virtual_time
@pytest.mark.parametrize(
    "error", [ImportError("socksio"), ValueError("proxy"), httpx.UnsupportedProtocol("x"), OSError()]
)
async def test_a_client_that_cannot_be_made_is_a_failure_too(error: Exception) -> None:
    def fail() -> httpx.AsyncClient:
        raise error

    async with running(RemoteKeys(settings(), stale_after=STALE, open_client=fail)) as keys:
        assert keys.failures == 1


@virtual_time
async def test_algorithms_limit_the_keys() -> None:
    login = Login(OLD, NEW)
    keys = RemoteKeys(settings(algorithms=("ES256",)), stale_after=STALE, open_client=login.client)
    async with running(keys):
        assert ids(keys) == {"new"}


@virtual_time
async def test_who_waits_for_a_fetch_is_let_go_when_it_stops() -> None:
    login = Login(OLD)
    login.takes = 3.0
    keys = remote(login)
    task = asyncio.ensure_future(keys.run())
    await asyncio.sleep(0)
    waiting = asyncio.ensure_future(keys.refresh())
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(KeysUnavailable):
        await waiting


@virtual_time
async def test_a_caller_that_is_cancelled_leaves_the_others_waiting() -> None:
    login = Login(OLD)
    login.takes = 3.0
    keys = remote(login)
    task = asyncio.ensure_future(keys.run())
    await asyncio.sleep(0)
    first, second = asyncio.ensure_future(keys.refresh()), asyncio.ensure_future(keys.refresh())
    await asyncio.sleep(1)
    first.cancel()
    await second
    assert keys.find("old")
    task.cancel()
    await asyncio.wait([task])


# On real sockets


@contextmanager
def served(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """The URL of a server that answers so."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/jwks.json"
        finally:
            server.shutdown()
            thread.join()


def give(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


async def test_keys_come_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(dict(handler.headers))
        give(handler, jwks(OLD).encode())

    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # is for other hosts
    with served(answer) as url:
        async with running(RemoteKeys(settings(url), stale_after=STALE)) as keys:
            assert ids(keys) == {"old"}
    assert asked[0]["Accept-Encoding"] == "identity"


async def test_a_redirect_is_not_followed() -> None:
    asked = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        give(handler, b"", 302, Location="/other")

    with served(answer) as url:
        async with running(RemoteKeys(settings(url), stale_after=STALE)) as keys:
            assert keys.stale
    assert asked == ["/jwks.json"]


async def test_an_endless_answer_is_read_no_further_than_its_bound() -> None:
    written = 0
    ended = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        nonlocal written
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b" " * 65_536)
                written += 65_536
        except OSError:
            ended.set()

    with served(answer) as url:
        async with running(RemoteKeys(settings(url), stale_after=STALE)) as keys:
            assert keys.stale
            assert keys.failures == 1
        assert await asyncio.to_thread(ended.wait, 20)
    assert written < 32 * 1024**2  # what the buffers of both kernels hold


async def test_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    with served(lambda handler: None) as url:
        pass
    with caplog.at_level(logging.WARNING):
        async with running(RemoteKeys(settings(url), stale_after=STALE)) as keys:
            assert keys.stale
    assert caplog.messages == ["the keys of token issuer main cannot be fetched: ConnectError"]
