"""A planned stop loses nothing acknowledged and ends in time; after an unplanned one clients reconnect spread out."""

import asyncio
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from time import perf_counter

import httpx
import pytest

from sse_app.events import MEDIA_TYPE
from tests.chaos import tls
from tests.chaos.client import (
    HOST,
    PATIENCE,
    SMALL,
    Answer,
    Connection,
    Stream,
    offset_of,
    publish_all,
    stats,
    streams,
    until,
    until_stats,
)
from tests.chaos.conftest import Serve, Server, Spawn, assert_in_time, count, listening_port

ENDED = (0, -signal.SIGTERM)
GRACE = 2.0  # seconds beyond the drain's window
BODY = b"x" * 2_000
STALL = 300  # publications of BODY: more than the sockets of a reader that does not read can hold


@asynccontextmanager
async def stalled(port: int, number: int = 1) -> AsyncIterator[list[Stream]]:
    """Readers whose sockets are full: a drain waits for them up to its limit."""
    async with streams(port, number, receive_buffer=SMALL) as opened:
        await publish_all(port, [BODY] * STALL)
        yield opened


async def publish_until_refused(port: int, pace: Stream, well_begun: asyncio.Event) -> int:
    """Publish one by one, each read by ``pace``, until the hub refuses. Return the last acknowledged offset."""
    acknowledged = 0
    async with await Connection.open(port) as connection:
        while not pace.over:
            answer = await connection.request("POST", "/broadcast", BODY)
            if answer.status == 503:
                break
            acknowledged = offset_of(answer.json["id"])
            while offset_of(pace.cursor) < acknowledged and not pace.over:
                await pace.read()
            if acknowledged >= STALL + 20:
                well_begun.set()
    return acknowledged


@pytest.mark.parametrize("queue", [1_000, 50], ids=["what waits is queued", "what waits is in the log"])
async def test_sigterm_loses_nothing_acknowledged_to_whoever_can_read(serve: Serve, queue: int) -> None:
    drain = count(ci=5, full=10)
    server = serve("--drain", str(drain), "--queue", str(queue))
    async with stalled(server.port, 20) as slow, streams(server.port, count(ci=150, full=500)) as readers:
        well_begun = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            publishing = tasks.create_task(publish_until_refused(server.port, readers[0], well_begun))
            reading = [tasks.create_task(stream.to_the_end()) for stream in readers[1:]]
            await well_begun.wait()
            server.terminate()
            begun = perf_counter()
            await asyncio.wait(reading, return_when=asyncio.FIRST_COMPLETED)
            for stream in slow[:5]:  # these read late, but they read
                tasks.create_task(stream.to_the_end())
            await asyncio.wait(reading)
            code = await server.exit_code()
            taken = perf_counter() - begun
        await readers[0].to_the_end()
    acknowledged = publishing.result()
    print(f"exit {code} after {taken:.1f} s of {drain}; acknowledged {acknowledged}")
    for stream in readers:
        assert_ended_well(stream, range(STALL + 1, acknowledged + 1))
    for stream in slow[:5]:
        assert_ended_well(stream, range(1, acknowledged + 1))
    assert code in ENDED
    assert_in_time("ended", taken, drain + GRACE)


def assert_ended_well(stream: Stream, expected: range) -> None:
    """Assert that the stream has all acknowledged, then a bye with a reconnection time, then the final chunk."""
    assert stream.offsets == list(expected)
    assert [event.type for event in stream.events if event.type != "message"] == ["welcome", "bye"]
    assert stream.events[-1].type == "bye"
    assert stream.events[-1].retry is not None
    assert stream.complete


@asynccontextmanager
async def draining(server: Server) -> AsyncIterator[None]:
    """A server whose drain has begun, and lasts as long as the block."""
    async with stalled(server.port):
        server.terminate()
        await until_not_ready(server)
        yield


async def until_not_ready(server: Server) -> None:
    async def not_ready() -> bool:
        return (await ask(server, "GET", "/readyz")).status == 503

    await until(not_ready, "a draining hub is not ready")


async def test_a_draining_hub_sends_each_caller_away_in_its_own_words(serve: Serve) -> None:
    server = serve("--drain", "30")
    async with draining(server):
        assert_draining(await ask(server, "GET", "/readyz"))
        assert_draining(await ask(server, "GET", "/events", accept="*/*"))
        assert_draining(await ask(server, "POST", "/broadcast"))
        browser = await ask(server, "GET", "/events", accept=MEDIA_TYPE)
        assert browser.status == 200
        assert browser.headers["content-type"].startswith(MEDIA_TYPE)
        assert browser.body.startswith(b"retry: ")
        assert browser.body.endswith(b"\n\n")
        assert (await ask(server, "GET", "/healthz")).status == 200


async def ask(server: Server, method: str, target: str, **headers: str) -> Answer:
    async with await Connection.open(server.port) as connection:
        return await connection.request(method, target, b"late" if method == "POST" else b"", **headers)


def assert_draining(answer: Answer) -> None:
    assert (answer.status, answer.json["code"]) == (503, "draining")
    assert int(answer.headers["retry-after"]) > 0


async def test_a_post_in_flight_gets_its_true_answer_and_reaches_the_readers(serve: Serve) -> None:
    server = serve("--drain", "10")
    async with await Stream.open(server.port) as stream, await Connection.open(server.port) as publisher:
        await stream.until(lambda: bool(stream.events))
        await publisher.send_head("POST", "/broadcast", content_length=6, expect="100-continue")
        assert (
            await publisher.receive_head()
        ).status == 100  # the request is accepted, and the server waits for its body
        await publisher.send(b"abc")
        server.terminate()
        await until_not_ready(server)
        await publisher.send(b"def")
        answer = await publisher.receive_answer()
        await stream.to_the_end()
    assert answer.status == 200
    assert answer.json["subscribers"] == 1
    assert [(event.id, event.data) for event in stream.events if event.type == "message"] == [
        (answer.json["id"], "abcdef")
    ]
    assert stream.events[-1].type == "bye"
    assert await server.exit_code() in ENDED


async def test_every_stream_ends_with_its_final_chunk_spread_over_the_window(serve: Serve) -> None:
    window = 10
    server = serve("--drain", str(window))
    ends = []

    async def read(stream: Stream) -> None:
        await stream.to_the_end()
        ends.append(perf_counter())

    async with streams(server.port, count(ci=100, full=500)) as readers, asyncio.TaskGroup() as tasks:
        await publish_all(server.port, [b"one", b"two"])
        for stream in readers:
            tasks.create_task(read(stream))
        server.terminate()
    for stream in readers:
        assert_ended_well(stream, range(1, 3))
    print(f"closes spread over {max(ends) - min(ends):.1f} s of {window}")
    assert max(ends) - min(ends) >= window / 2
    assert await server.exit_code() in ENDED


@pytest.mark.parametrize("again", [Server.terminate, Server.interrupt], ids=["SIGTERM", "SIGINT"])
async def test_a_second_signal_ends_the_drain_at_once(serve: Serve, again: Callable[[Server], None]) -> None:
    window = 30.0
    server = serve("--drain", str(window))
    begun = perf_counter()
    async with draining(server):
        again(server)
        code = await server.exit_code()
    taken = perf_counter() - begun
    print(f"exit {code} after {taken:.1f} s of {window:.0f}")
    assert code in (*ENDED, -signal.SIGINT)
    assert taken < window


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_given_twice_is_no_reason_to_log_anything(serve: Serve, sign: signal.Signals) -> None:
    """Streams are open, one of them full, and a publication is under way. ``spawn`` fails on any log line."""
    server = serve("--drain", "30")

    async def stopping() -> bool:
        try:
            return (await ask(server, "GET", "/readyz")).status == 503
        except ConnectionError:
            return True  # after SIGINT the server ends within a second, perhaps already

    async with (
        streams(server.port, 5),
        stalled(server.port),
        await Connection.open(server.port) as publisher,
    ):
        await publisher.send_head("POST", "/broadcast", content_length=6, expect="100-continue")
        assert (await publisher.receive_head()).status == 100
        server.process.send_signal(sign)
        await until(stopping, "it has been told to stop")
        server.process.send_signal(sign)
        assert await server.exit_code() in (0, -sign)


@pytest.mark.parametrize("loaded", ["", "/libc.so", "/uvloop/", "listening"])
async def test_sigterm_at_any_moment_of_the_start_ends_it(spawn: Spawn, loaded: str) -> None:
    process = spawn()
    if loaded == "listening":
        listening_port(process)
    elif loaded:
        until_loaded(process, loaded)
    process.terminate()
    begun = perf_counter()
    assert await asyncio.to_thread(process.wait) in ENDED
    assert perf_counter() - begun <= 10 + GRACE


def until_loaded(process: subprocess.Popen[str], file: str) -> None:
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and file not in maps.read_text():
        pass


# Over TLS, where a closed connection waits for the close_notify of its peer


@contextmanager
def over_tls(*module: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server in a process of its own over TLS, with its output in one pipe, and its port."""
    command = [sys.executable, "-m", *module]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            output = ""
            while (found := re.search(r"https?://127\.0\.0\.1:(\d+)", output)) is None:
                line = process.stdout.readline()
                assert line, f"the server did not start: {output}"
                output += line
            yield process, int(found[1])
        finally:
            process.kill()


@pytest.mark.parametrize("server", ["ours", "uvicorn"])
def test_over_tls_too_clients_that_do_not_read_are_cut_off_in_time(server: str, certificate: tuple[Path, Path]) -> None:
    key, chain = map(str, certificate)
    encrypted = ["--ssl-keyfile", key, "--ssl-certfile", chain, "--http", "sse_app.server:Protocol"]
    module = {
        "ours": ["tests.chaos.tls", key, chain, "serve", "--port", "0", "--drain", str(tls.DRAIN)],
        "uvicorn": ["uvicorn", "--factory", "tests.chaos.tls:app", "--port", "0", "--no-access-log", *encrypted],
    }[server]
    trusting = ssl.create_default_context(cafile=chain)

    def subscribe(port: int, buffer: int | None) -> ssl.SSLSocket:
        plain = stack.enter_context(socket.socket())
        if buffer is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        plain.settimeout(PATIENCE)
        plain.connect((HOST, port))
        connection = stack.enter_context(trusting.wrap_socket(plain, server_hostname=HOST))
        connection.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        while b"event: welcome" not in received:
            received += connection.recv(1_000)
        return connection

    with ExitStack() as stack:
        process, port = stack.enter_context(over_tls(*module))
        subscribe(port, SMALL)  # a stream whose buffers will be full
        with httpx.Client(base_url=f"https://{HOST}:{port}", verify=trusting, timeout=PATIENCE) as client:
            for _ in range(40):  # 8 MB: the kernel takes up to 5
                assert client.post("/broadcast", content=b"x" * 200_000).status_code == 200
            subscribe(port, None)  # a stream with room for its end, which its client does not answer
            process.terminate()
            begun = perf_counter()
            assert process.wait(PATIENCE) in ENDED
        assert_in_time("ended", perf_counter() - begun, tls.DRAIN + GRACE)
        assert process.stdout is not None
        assert "ERROR" not in process.stdout.read()


async def test_a_replay_that_is_being_read_is_finished_before_the_end(serve: Serve) -> None:
    server = serve("--drain", "30")  # the drain ends when the replay does
    total = count(ci=3_000, full=10_000)
    await publish_all(server.port, [BODY] * total)
    epoch = (await stats(server.port))["top"].partition("-")[0]
    async with await Stream.open(server.port, f"{epoch}-0", receive_buffer=SMALL) as stream:
        await stream.until_offset(100)
        server.terminate()
        await until_not_ready(server)
        assert stream.offsets[-1] < total
        await stream.to_the_end()
    assert_ended_well(stream, range(1, total + 1))
    assert await server.exit_code() in ENDED


async def test_after_a_kill_all_come_back_but_not_all_at_once(serve: Serve) -> None:
    server = serve()
    number = count(ci=600, full=2_000)  # of 300, one run in three thousand has 45 % in a second by chance
    async with streams(server.port, number) as readers:
        server.kill()
        planned = sorted(stream.retry or 0 for stream in readers)
        for stream in readers:
            await stream.to_the_end()
            assert not stream.complete
    share = max(_within_a_second(planned, start) for start in planned) / number
    print(f"reconnects planned from {planned[0]} to {planned[-1]} ms, at most {share:.0%} within a second")
    server = serve(port=server.port)
    begun = perf_counter()
    async with streams(server.port, number) as returned:
        await until_stats(server.port, subscribers=number)
    print(f"all {number} back {perf_counter() - begun:.1f} s after they could be")
    assert {stream.events[0].type for stream in returned} == {"welcome"}
    assert share <= 0.45


def _within_a_second(planned: list[int], start: int) -> int:
    return sum(start <= delay < start + 1_000 for delay in planned)
