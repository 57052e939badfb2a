"""The limits of a client's cost: time, bytes, descriptors."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import perf_counter

import pytest

from tests.chaos.client import Answer, Connection, Stream, publish_all, stats, streams, together, until, until_stats
from tests.chaos.conftest import Serve, Server, assert_in_time, count
from tests.chaos.launch import cpu_seconds, launched

MIB = 1024**2


# Slow requests (K2)


SLOW_HEAD = b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: " + b"x" * 1_000
SLOW_BODY = b"POST /broadcast HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n"


async def trickle(port: int, at_once: bytes, rest: bytes) -> tuple[float, int]:
    """Send the rest of a request at a byte a second until an answer arrives. Return the seconds and the status."""
    async with await Connection.open(port) as connection:
        begun = perf_counter()
        await connection.send(at_once)
        answer = asyncio.create_task(connection.receive_head())
        for byte in rest:
            await asyncio.wait([answer], timeout=1)
            if answer.done():
                break
            await connection.send(bytes([byte]))
        return perf_counter() - begun, (await answer).status


@pytest.mark.parametrize(
    ("at_once", "rest"),
    [(b"", SLOW_HEAD), (SLOW_HEAD[:40], SLOW_HEAD[40:]), (SLOW_BODY, b"x" * 100)],
    ids=["head", "the rest of a head", "body"],
)
async def test_who_sends_a_byte_a_second_is_refused_in_time_and_delays_nobody(
    serve: Serve, at_once: bytes, rest: bytes
) -> None:
    deadline = count(ci=2, full=9)
    server = serve("--head-deadline", str(deadline))
    base = server.descriptors
    print("alone:", await latencies(server.port))
    async with asyncio.TaskGroup() as tasks:
        slow = [tasks.create_task(trickle(server.port, at_once, rest)) for _ in range(count(ci=100, full=500))]
        print("with slow ones:", await latencies(server.port))
    ends = [task.result() for task in slow]
    print("answered after seconds, at the latest:", max(seconds for seconds, _ in ends))
    assert {status for _, status in ends} == {408}
    assert max(seconds for seconds, _ in ends) <= 10
    await until_descriptors(server, base + 2)
    assert (await stats(server.port))["totals"]["published"] == 200


async def latencies(port: int) -> str:
    taken = []
    async with await Connection.open(port) as connection:
        for _ in range(100):
            begun = perf_counter()
            await connection.publish("x")
            taken.append(perf_counter() - begun)
    taken.sort()
    return f"POST p50 {taken[50] * 1000:.1f} ms, p99 {taken[98] * 1000:.1f} ms"


async def until_descriptors(server: Server, most: int) -> None:
    async def freed() -> bool:
        await stats(server.port)
        return server.descriptors <= most

    await until(freed, f"at most {most} descriptors are open")


# Large requests (K3)


def endless_headers() -> Iterator[bytes]:
    yield b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    for _ in range(count(ci=10, full=100)):
        yield b"".join(b"X-%d: %b\r\n" % (number, b"x" * 1_000) for number in range(1_000))


def one_endless_header() -> Iterator[bytes]:
    yield b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "
    for _ in range(count(ci=10, full=100)):
        yield b"x" * MIB


def small_headers() -> Iterator[bytes]:
    yield b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"a: b\r\n" * 10_000 + b"\r\n"


def a_long_url() -> Iterator[bytes]:
    yield b"GET /events?topic=" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def many_topics() -> Iterator[bytes]:
    topics = b"&".join(b"topic=t%d" % number for number in range(1_000))
    yield b"GET /events?" + topics + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.mark.parametrize(
    ("pieces", "status"),
    [(endless_headers, 431), (one_endless_header, 431), (small_headers, 431), (a_long_url, 431), (many_topics, 400)],
)
async def test_a_request_of_any_size_is_refused_and_costs_no_memory(
    tmp_path: Path, pieces: Callable[[], Iterator[bytes]], status: int
) -> None:
    with launched(tmp_path / "log") as server:
        await answer_to(server.port, pieces())  # the first request allocates code and buffers, which do not count
        before = server.memory
        answers = Counter([await answer_to(server.port, pieces()) for _ in range(5)])
        grown = server.memory - before
        assert (await stats(server.port))["subscribers"] == 0
    print(f"answers: {dict(answers)}, grown by {grown} bytes")
    assert set(answers) <= {status, None}  # None: closed while the client was still sending
    assert grown <= 5 * MIB
    assert len((tmp_path / "log").read_text().splitlines()) <= 6  # a line for each request, without its content


async def answer_to(port: int, pieces: Iterator[bytes]) -> int | None:
    async with await Connection.open(port) as connection:
        with suppress(ConnectionError):
            for piece in pieces:
                await connection.send(piece)
        with suppress(ConnectionError):
            return (await connection.receive_head()).status
    return None


# More clients than descriptors (F4)


LIMIT = 256
CLIENTS = 400
CROWD = 600
PING = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def limited(descriptors: int) -> list[str]:
    return ["sh", "-c", f'ulimit -n {descriptors} && exec "$@"', "sh"]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Server]:
    """A server that may open 256 descriptors."""
    with launched(tmp_path / "log", "--head-deadline", "2", within=limited(LIMIT)) as server:
        yield server


@asynccontextmanager
async def many_streams(port: int) -> AsyncIterator[list[Stream]]:
    opened: list[Stream] = []

    async def connect() -> None:
        if (stream := await subscribe(port)) is not None:
            opened.append(stream)

    try:
        await together((connect() for _ in range(CLIENTS)), at_once=50)
        yield opened
    finally:
        for stream in opened:
            stream.connection.close()


async def subscribe(port: int) -> Stream | None:
    """A stream with its welcome, or None when there is no room for it."""
    connection = await Connection.open(port)
    stream = Stream(connection, "")
    with suppress(ConnectionError):
        await connection.send_head("GET", "/events", accept="text/event-stream")
        head = await connection.receive_head()
        if "transfer-encoding" in head.headers:
            return await stream.until(lambda: bool(stream.events))
        assert (head.status, head.headers["connection"]) == (200, "close")  # a full hub: come back later
    connection.close()
    return None


async def healthy(port: int) -> Answer | None:
    with suppress(ConnectionError):
        async with await Connection.open(port) as connection:
            return await connection.request("GET", "/healthz")
    return None


async def test_more_streams_than_descriptors_leave_room_for_everything_else(small: Server, tmp_path: Path) -> None:
    base, cpu, begun = small.descriptors, cpu_seconds(small), perf_counter()
    async with many_streams(small.port) as opened:
        answer = await healthy(small.port)
        now = await stats(small.port)
        print(f"of {CLIENTS} clients {now['subscribers']} have a stream, {now['totals']['refused']} were sent away")
        print(f"CPU: {(cpu_seconds(small) - cpu) / (perf_counter() - begun):.0%} of a core while they came")
        assert answer is not None
        assert answer.status == 200
        assert len(opened) == now["subscribers"] == LIMIT - 64
        await publish_all(small.port, [b"to all"])
        for stream in opened:
            await stream.until_offset(1)
    await until_stats(small.port, subscribers=0)
    await until_descriptors(small, base + 2)
    assert len((tmp_path / "log").read_text().splitlines()) <= 10


PART = b"Host: localhost\r\nContent-Length: 5\r\n\r\nx"


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /heal", PING, b"POST /broadcast HTTP/1.1\r\n" + PART, b"POST /none HTTP/1.1\r\n" + PART],
    ids=["nothing", "a part of a head", "a whole request", "a part of a body", "that of an answered request"],
)
async def test_who_asks_is_answered_while_others_hold_connections_beyond_the_descriptors(
    tmp_path: Path, sent: bytes
) -> None:
    """The deadlines of the connections would free descriptors too, but they are set to an hour here."""
    with launched(tmp_path / "log", "--head-deadline", "1h", within=limited(LIMIT)) as small:
        base, cpu, begun = small.descriptors, cpu_seconds(small), perf_counter()
        held = [await Connection.open(small.port) for _ in range(CROWD)]
        for connection in held:
            with suppress(ConnectionError):  # the server may have closed it to make room
                await connection.send(sent)

        async def answers() -> bool:
            answer = await healthy(small.port)
            return answer is not None and answer.status == 200

        await until(answers, "it answers")
        assert_in_time("answered", perf_counter() - begun, 1)
        async with streams(small.port, 20):
            assert await answers()
        print(f"CPU: {(cpu_seconds(small) - cpu) / (perf_counter() - begun):.0%} of a core")
        for connection in held:
            connection.close()
        await until_descriptors(small, base + 2)
    lines = (tmp_path / "log").read_text().splitlines()
    print(f"{len(lines)} lines of log")
    assert len(lines) <= 10


async def test_streams_are_never_closed_for_who_waits(small: Server) -> None:
    async with streams(small.port, LIMIT - 64) as opened:
        held = [await Connection.open(small.port) for _ in range(CROWD)]

        async def answers() -> bool:
            return await healthy(small.port) is not None

        await until(answers, "all have been accepted or closed")
        await publish_all(small.port, [b"to all"])
        for stream in opened:
            await stream.until_offset(1)
        assert (await stats(small.port))["subscribers"] == LIMIT - 64
        for connection in held:
            connection.close()
