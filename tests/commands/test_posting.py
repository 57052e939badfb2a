import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
import pytest

from sse_app import Client
from sse_app.commands import Exit
from sse_app.commands.posting import PostingTransport
from sse_app.errors import ConfigError, Unreachable
from sse_app.testing import VirtualTimeLoop
from tests.commands.process import sse_app
from tests.support.peers import PATIENCE, listening
from tests.support.web import live_hub

GOOD = b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\nX-Served-By: me\r\n\r\n{"id":"e-1"}'
Post = Callable[..., "asyncio.Task[httpx.Response]"]


class Server:
    """A server that answers each request on a connection with the next of these answers: half an answer before a
    disconnect, None for silence.
    """

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.asked = asyncio.Event()
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while self.answers:
            await self._answer(reader, writer)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = re.search(rb"Content-Length: (\d+)", head)
        assert size is not None
        self.requests.append(head + await reader.readexactly(int(size[1])))
        self.asked.set()
        answer = self.answers.pop(0)
        if answer is None:
            await reader.read()
            return
        for start in range(0, len(answer), 7):
            writer.write(answer[start : start + 7])
            await writer.drain()
        if b"\r\n\r\n" not in answer:
            raise ConnectionError


@asynccontextmanager
async def serving(*answers: bytes | None) -> AsyncIterator[tuple[Server, Post]]:
    server = Server(*answers)
    async with (
        listening(server.serve) as port,
        httpx.AsyncClient(transport=PostingTransport()) as http,
        asyncio.timeout(PATIENCE),
    ):
        url = f"http://127.0.0.1:{port}/broadcast?topic=a%2Fb"
        yield server, lambda body=b"body": asyncio.ensure_future(http.post(url, content=body))


async def test_requests_follow_each_other_on_one_connection() -> None:
    async with serving(GOOD, GOOD) as (server, post):
        for body in (b"one", b"two"):
            answer = await post(body)
            assert (answer.status_code, answer.json(), answer.headers["x-served-by"]) == (200, {"id": "e-1"}, "me")
    assert server.connections == 1
    first, second = server.requests
    assert first.startswith(b"POST /broadcast?topic=a%2Fb HTTP/1.1\r\n")
    assert first.endswith(b"\r\n\r\none")
    assert second.endswith(b"\r\n\r\ntwo")
    assert b"\r\nHost: 127.0.0.1:" in first


async def test_what_comes_before_an_answer_is_not_taken_for_it() -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n"
    async with serving(hints + GOOD, hints + hints + GOOD) as (server, post):
        for _ in range(2):
            answer = await post()
            assert (answer.status_code, answer.json()) == (200, {"id": "e-1"})
            assert "link" not in answer.headers
    assert server.connections == 1


@pytest.mark.parametrize("arguments", [["hi"], ["-"]])
async def test_an_id_that_is_none_is_refused_and_steers_no_terminal(arguments: list[str]) -> None:
    body = rb'{"id":"\u001b]0;x\u0007"}'
    server = Server(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    async with listening(server.serve) as port:
        result = await asyncio.to_thread(
            sse_app, "publish", *arguments, "--url", f"http://127.0.0.1:{port}", input="line\n"
        )
    assert result.returncode == Exit.REFUSED
    assert "no hub" in result.stderr
    assert "\x1b" not in result.stdout + result.stderr


async def test_requests_at_a_time_have_a_connection_each() -> None:
    async with serving(*[GOOD] * 6) as (server, post):
        for _ in range(2):
            answers = await asyncio.gather(*(post() for _ in range(3)))
            assert [answer.status_code for answer in answers] == [200] * 3
    assert server.connections == 3


async def test_a_chunked_answer_is_put_together() -> None:
    chunked = b"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    async with serving(chunked, GOOD) as (server, post):
        answer = await post()
        assert (answer.status_code, answer.text) == (503, "abcde")
        assert (await post()).status_code == 200
    assert server.connections == 1


async def test_a_connection_that_is_to_be_closed_is_not_used_again() -> None:
    async with serving(GOOD.replace(b"\r\n", b"\r\nConnection: close\r\n", 1), GOOD) as (server, post):
        assert [(await post()).status_code for _ in range(2)] == [200, 200]
    assert server.connections == 2


@pytest.mark.parametrize("answer", [b"", GOOD[:20], b"SSH-2.0-OpenSSH\r\n\r\n" * 2])
async def test_no_whole_answer_is_an_error_that_can_be_tried_again(answer: bytes) -> None:
    async with serving(answer) as (_, post):
        with pytest.raises(httpx.ReadError):
            await post()


async def test_after_an_error_the_next_request_has_a_new_connection() -> None:
    async with serving(b"", GOOD) as (server, post):
        with pytest.raises(httpx.ReadError):
            await post()
        assert (await post()).status_code == 200
    assert server.connections == 2


@pytest.mark.virtual_time
async def test_a_server_that_says_nothing_is_not_waited_for_for_ever() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    loop.patience = 0.2  # real seconds: nothing on loopback takes so long
    async with serving(None) as (_, post):
        with pytest.raises(httpx.ReadTimeout):
            await post()


@pytest.mark.parametrize("name", ["Idempotency-Key", "Authorization", "X"])
@pytest.mark.parametrize("value", [b"k\r\nX: y", b"k\n", b"k\r", b"\r\n\r\nPOST /broadcast HTTP/1.1", b"k\0"])
async def test_what_would_end_a_header_is_not_sent(name: str, value: bytes) -> None:
    async with serving(GOOD) as (server, _), httpx.AsyncClient(transport=PostingTransport()) as http:
        request = http.build_request("POST", "http://127.0.0.1:1/", headers=[(name.encode(), value)], content=b"x")
        with pytest.raises(httpx.LocalProtocolError):
            await http.send(request)
        request = http.build_request("POST", "http://127.0.0.1:1/", headers=[(b"X" + value, b"y")], content=b"x")
        with pytest.raises(httpx.LocalProtocolError):
            await http.send(request)
    assert server.connections == 0


@pytest.mark.virtual_time
async def test_a_connection_has_the_time_that_its_request_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nowhere(*arguments: object, **options: object) -> None:
        await asyncio.Event().wait()

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "create_connection", nowhere)
    async with httpx.AsyncClient(transport=PostingTransport()) as http, Client("http://hub", http=http) as client:
        with pytest.raises(Unreachable, match=r"no connection within 1\.8 s\. It was not sent\."):
            await client.publish("x", retry_for=2)


@pytest.mark.parametrize("host", ["a" * 70 + ".example", "a..b"])
async def test_a_name_that_is_none_is_an_error_of_connecting(host: str) -> None:
    async with httpx.AsyncClient(transport=PostingTransport()) as http:
        with pytest.raises(httpx.ConnectError):
            await http.post(f"http://{host}/", content=b"x")


async def test_certificates_that_cannot_be_read_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
    async with httpx.AsyncClient(transport=PostingTransport()) as http:
        with pytest.raises(ConfigError, match="SSL_CERT_FILE"):
            await http.post("https://127.0.0.1:1/", content=b"x")


async def test_nobody_listening_is_an_error_that_can_be_tried_again() -> None:
    async with httpx.AsyncClient(transport=PostingTransport()) as http:
        with pytest.raises(httpx.ConnectError):
            await http.post("http://127.0.0.1:1/", content=b"x")


async def test_a_request_that_is_cancelled_takes_its_connection_along() -> None:
    async with serving(None, GOOD) as (server, post):
        waiting = post()
        await server.asked.wait()
        waiting.cancel()
        await asyncio.wait([waiting])
        assert (await post()).status_code == 200
    assert server.connections == 2


async def test_a_client_publishes_through_it() -> None:
    with live_hub() as server:
        async with httpx.AsyncClient(transport=PostingTransport()) as http:
            client = Client(server.url, http=http)
            ids = [(await client.publish(str(number), topic="a")).id for number in range(20)]
            assert len(set(ids)) == 20
        assert server.hub.node.totals.published == 20
