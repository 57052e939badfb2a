"""Peers that stop, vanish or come and go by the thousand, and a server that is stopped itself."""

import asyncio
import ctypes
import gc
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from random import Random
from time import perf_counter

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from sse_app import Hub
from sse_app.server.protocol import Protocol
from sse_app.subscriber import Subscriber
from sse_app.testing import LiveServer, live
from tests.chaos.client import (
    PATIENCE,
    SMALL,
    Chunks,
    Connection,
    Stream,
    offset_of,
    offsets,
    publish_all,
    publishing,
    stats,
    streams,
    together,
    until,
    until_stats,
)
from tests.chaos.conftest import FULL, Serve, Server, count
from tests.chaos.launch import cpu_seconds, kernel_buffers, launched, nothing_for

MIB = 1024**2
BODY = b"x" * 10_000


# Readers that stopped (D1, D2)


async def test_a_reader_that_stopped_is_gone_in_time_with_all_that_it_held(serve: Serve) -> None:
    server = serve("--history", "100", "--tcp-user-timeout", str(count(ci=3, full=20)))
    async with streams(server.port, 20) as healthy:
        print("without it:", await latencies(server.port, healthy, 300))
        before, descriptors = server.memory, server.descriptors
        async with await Stream.open(server.port) as stopped:  # with the system's receive buffer, of megabytes
            begun = perf_counter()
            print("with it:", await latencies(server.port, healthy, count(ci=1_000, full=6_000)))
            assert (await stats(server.port))["totals"]["overflows"] == 1
            grown, waiting = server.memory - before, kernel_buffers(server.port)[1]
            await until_stats(server.port, subscribers=20, lagging=0)
            print(f"gone after at most {perf_counter() - begun:.1f} s; grown by {grown} bytes; in the kernel {waiting}")
            await until_settled(server, descriptors)
            await until_the_kernel_holds(server, connections=20)
            assert not stopped.events
    assert grown <= 4 * MIB


async def latencies(port: int, readers: list[Stream], number: int) -> str:
    """Publish one by one, each read by all. Return the seconds from each POST to its last reader."""
    taken = []
    async with await Connection.open(port) as publisher:
        for _ in range(number):
            begun = perf_counter()
            id = await publisher.publish(BODY)
            for stream in readers:
                await stream.until_offset(offset_of(id))
                stream.events.clear()
            taken.append(perf_counter() - begun)
    taken.sort()
    p50, p99, most = (taken[int(share * (number - 1))] * 1000 for share in (0.5, 0.99, 1))
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {most:.1f} ms"


async def until_settled(server: Server, descriptors: int) -> None:
    async def settled() -> bool:
        await stats(server.port)
        return server.descriptors <= descriptors + 2

    await until(settled, "the descriptors are closed")


async def until_the_kernel_holds(server: Server, *, connections: int) -> None:
    """Wait until the server has these connections alone, and no byte waits: others may still be closing."""

    async def so() -> bool:
        await stats(server.port)
        return kernel_buffers(server.port) == (connections, 0)

    await until(so, f"{connections} connections, and nothing in their buffers")


async def test_many_readers_that_stopped_cost_little_and_are_gone_in_time(serve: Serve) -> None:
    server = serve("--history", "100", "--tcp-user-timeout", str(count(ci=10, full=20)))  # publishing takes a second
    await stats(server.port)
    number, before, descriptors = count(ci=200, full=1_000), server.memory, server.descriptors
    async with streams(server.port, number, receive_buffer=SMALL):
        kernel = grown = 0
        for _ in range(30):
            await publish_all(server.port, [BODY] * 10)
            kernel, grown = max(kernel, kernel_buffers(server.port)[1]), max(grown, server.memory - before)
        lagging = (await stats(server.port))["lagging"]
        begun = perf_counter()
        await until_stats(server.port, subscribers=0)
        gone = perf_counter() - begun
        await until_settled(server, descriptors)
        print(f"{lagging} lag; at most {grown / MIB:.1f} MiB of memory, {kernel / MIB:.1f} MiB in the kernel")
        print(f"all gone {gone:.1f} s later; then {(server.memory - before) / MIB:.1f} MiB of memory")
        await until_the_kernel_holds(server, connections=0)
    assert lagging == number
    assert gone <= PATIENCE
    assert grown <= 150 * MIB
    assert kernel <= 256 * MIB


# Peers that vanish (E1)


class Cable:
    """Two hosts, each a network namespace, and a cable between them."""

    SERVER, CLIENT = "10.213.77.1", "10.213.77.2"

    def __init__(self, name: str) -> None:
        self.server, self.client = f"{name}-server", f"{name}-client"

    def lay(self) -> None:
        for host in (self.server, self.client):
            ip("netns", "add", host)
        ip("link", "add", "cable", "netns", self.server, "type", "veth", "peer", "name", "cable", "netns", self.client)
        for host, address in ((self.server, self.SERVER), (self.client, self.CLIENT)):
            ip("-n", host, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", host, "link", "set", "cable", "up")
            ip("-n", host, "link", "set", "lo", "up")

    def remove(self) -> None:
        for host in (self.server, self.client):
            subprocess.run(["ip", "netns", "delete", host], capture_output=True, timeout=30)

    def unplug(self) -> None:
        ip("-n", self.client, "link", "set", "cable", "down")

    def lose_the_address(self) -> None:
        """Take the client's address away, as for a laptop that moves to another network."""
        ip("-n", self.client, "address", "flush", "dev", "cable")

    async def connect(self, host: str, port: int) -> Connection:
        """A connection to the server from one of the hosts. A socket belongs to the namespace where it was made."""
        with ThreadPoolExecutor(1) as thread:
            sock = await asyncio.get_running_loop().run_in_executor(thread, socket_in, host)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (self.SERVER, port))
        except BaseException:
            sock.close()
            raise
        return Connection(sock)

    async def subscribers(self, port: int) -> int:
        async with await self.connect(self.server, port) as connection:
            return int((await connection.request("GET", "/stats")).json["subscribers"])


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)


def socket_in(host: str) -> socket.socket:
    """Make a socket in a network namespace. It moves the calling thread there, which has to end afterwards."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{host}") as namespace:
        if libc.setns(namespace.fileno(), 0x40000000):  # CLONE_NEWNET
            raise OSError(ctypes.get_errno(), "setns")
    made = socket.socket()
    made.setblocking(False)
    return made


@pytest.fixture
def cable() -> Iterator[Cable]:
    laid = Cable(f"sse-app-{os.getpid()}")
    try:
        try:
            laid.lay()
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces take root, and the command ip: {error}")
        yield laid
    finally:
        laid.remove()


@pytest.mark.parametrize("way", [Cable.unplug, Cable.lose_the_address], ids=["unplugged", "moved"])
async def test_a_peer_that_vanishes_is_gone_in_time(tmp_path: Path, cable: Cable, way: Callable[[Cable], None]) -> None:
    flags = ["--host", cable.SERVER, "--allow-open-publish"]
    if not FULL:
        flags += ["--heartbeat", "1", "--tcp-user-timeout", "3"]
    async with AsyncExitStack() as stack:
        server = stack.enter_context(launched(tmp_path / "log", *flags, within=["ip", "netns", "exec", cable.server]))
        for _ in range(5):
            connection = await stack.enter_async_context(await cable.connect(cable.client, server.port))
            await connection.send_head("GET", "/events")
            await connection.receive_head()
        assert await cable.subscribers(server.port) == 5
        descriptors = server.descriptors
        way(cable)
        begun = perf_counter()

        async def gone() -> bool:
            return await cable.subscribers(server.port) == 0 and server.descriptors <= descriptors - 5 + 1

        await until(gone, "the vanished are gone, and their descriptors")
        seconds = perf_counter() - begun
        print(f"gone after {seconds:.1f} s")
        assert seconds <= PATIENCE
    assert len((tmp_path / "log").read_text().splitlines()) == 1  # the warning that anyone who reaches it may publish


# Peers that come and go (E7)


async def live_for_a_while(port: int, random: Random) -> None:
    """A client that reads up to 20 events and then closes or resets its connection."""
    async with await Stream.open(port, receive_buffer=random.choice([None, SMALL])) as stream:
        wanted = random.randint(0, 20)
        await stream.until(lambda: len(stream.events) >= wanted)
        if random.random() < 0.5:
            stream.connection.reset()


async def test_churn_leaves_neither_memory_nor_descriptors(serve: Serve) -> None:
    server, random = serve("--history", "100"), Random(7)
    number = count(ci=400, full=10_000)

    async def churn() -> None:
        async with publishing(server.port):
            await together((live_for_a_while(server.port, random) for _ in range(number)), at_once=50)
        await until_stats(server.port, subscribers=0)

    await churn()
    descriptors = server.descriptors
    sizes = [server.memory]
    for _ in range(3):
        await churn()
        sizes.append(server.memory)
    print("MiB resident after each", number, [round(size / MIB, 1) for size in sizes])
    await until_settled(server, descriptors)


@contextmanager
def watched() -> Iterator[LiveServer]:
    """A hub behind our protocol, with a path that answers how many subscribers and tasks there are."""

    async def inside(request: Request) -> JSONResponse:
        gc.collect()
        objects = sum(isinstance(item, Subscriber) for item in gc.get_objects())
        return JSONResponse({"objects": objects, "gauge": len(hub), "tasks": len(asyncio.all_tasks())})

    hub = Hub()
    app = Starlette(routes=[Route("/inside", inside), Mount("/", hub.app)], lifespan=hub.lifespan)
    with live(app, http=Protocol) as server:
        yield server


async def inside(server: LiveServer) -> dict[str, int]:
    async with await Connection.open(server.port) as connection:
        found: dict[str, int] = (await connection.request("GET", "/inside")).json
        return found


async def test_there_are_as_many_subscribers_in_memory_as_are_connected() -> None:
    random = Random(7)
    with watched() as server:
        base = await inside(server)
        async with streams(server.port, 50):
            for _ in range(3):
                async with publishing(server.port):
                    work = (live_for_a_while(server.port, random) for _ in range(count(ci=100, full=1_000)))
                    await together(work, at_once=20)

                async def same() -> bool:
                    found = await inside(server)
                    return found["objects"] == found["gauge"] == 50 + base["objects"]

                await until(same, "only those that stayed are in memory")
        await until_stats(server.port, subscribers=0)
        assert base["objects"] == 0

        async def none() -> bool:
            return (await inside(server))["objects"] == 0

        await until(none, "none is in memory")


# A server that is stopped (N2)


@asynccontextmanager
async def raw_streams(port: int, number: int) -> AsyncIterator[list[Connection]]:
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(await Connection.open(port)) for _ in range(number)]
        for connection in opened:
            await connection.send_head("GET", "/events")
            await connection.receive_head()
        yield opened


async def heartbeats_until(connection: Connection, chunks: Chunks, marker: bytes) -> int:
    body = b""
    while marker not in body:
        data = await connection.receive()
        assert data, "the stream was closed"
        body += chunks.feed(data)
    return body.count(b":\n\n")


async def test_a_server_that_was_stopped_goes_on_with_all_its_streams_and_one_heart(serve: Serve) -> None:
    beat, number = 0.5, 100
    server = serve("--heartbeat", str(beat), "--tcp-user-timeout", "2")
    async with raw_streams(server.port, number) as opened:
        chunks = [Chunks() for _ in opened]
        await until_stats(server.port, subscribers=number)
        server.process.send_signal(signal.SIGSTOP)
        await nothing_for(count(ci=4, full=60))
        server.process.send_signal(signal.SIGCONT)
        begun = perf_counter()
        await publish_all(server.port, [b"first"])
        for connection, feed in zip(opened, chunks, strict=True):
            await heartbeats_until(connection, feed, b"data: first\n\n")
        print(f"all have the first publication {perf_counter() - begun:.2f} s after it")
        before = (await stats(server.port))["totals"]
        await nothing_for(8 * beat)
        await publish_all(server.port, [b"second"])
        elapsed = perf_counter() - begun
        beats = [await heartbeats_until(*each, b"data: second\n\n") for each in zip(opened, chunks, strict=True)]
        after = await stats(server.port)
    print(f"heartbeats in {elapsed:.1f} s: {min(beats)} to {max(beats)} each")
    assert (after["subscribers"], before["closed"], after["totals"]["closed"]) == (number, {}, {})
    assert min(beats) >= 1
    assert max(beats) <= elapsed / beat + 1


# Load (F1, F2)


async def test_an_idle_stream_costs_no_task_and_little_memory(serve: Serve) -> None:
    with watched() as server:
        base = (await inside(server))["tasks"]
        async with streams(server.port, 100):
            assert (await inside(server))["tasks"] == base
    process = serve()
    await stats(process.port)
    number, before = count(ci=500, full=5_000), process.memory
    async with streams(process.port, number):
        await until_stats(process.port, subscribers=number)
        each = (process.memory - before) / number
        cpu = cpu_seconds(process)
        seconds = count(ci=3, full=30)
        await nothing_for(seconds)
        print(f"{each / 1000:.1f} KB for each of {number}; idle CPU {(cpu_seconds(process) - cpu) / seconds:.1%}")
    await until_stats(process.port, subscribers=0)


async def test_five_events_a_second_reach_a_thousand_exactly_and_more_until_it_lags(server: Server) -> None:
    rate, seconds, published = 5, count(ci=3, full=60), 0
    async with streams(server.port, count(ci=300, full=1_000)) as readers:
        p99 = 0.0
        while p99 <= 0.25:
            latencies = await paced(server.port, readers, rate, rate * seconds)
            published += rate * seconds
            p99 = latencies[int(0.99 * len(latencies))]
            print(f"{rate}/s to {len(readers)}: p50 {latencies[len(latencies) // 2]:.3f} s, p99 {p99:.3f} s")
            for stream in readers:
                assert stream.offsets == list(range(1, published + 1))
            if not FULL:
                break
            rate, seconds = rate * 2, 5


async def paced(port: int, readers: list[Stream], rate: int, number: int) -> list[float]:
    """Publish so many a second. Return the seconds from when each was due until each reader had it, sorted."""
    begun, first = perf_counter(), offset_of(readers[0].cursor) + 1
    taken: list[float] = []

    async def read(stream: Stream) -> None:
        while offset_of(stream.cursor) < first + number - 1:
            events = await stream.read()
            assert not stream.over
            now = perf_counter() - begun
            taken.extend(now - (offset - first) / rate for offset in offsets(events))

    async with asyncio.TaskGroup() as tasks, await Connection.open(port) as publisher:
        for stream in readers:
            tasks.create_task(read(stream))
        for turn in range(number):
            if (early := begun + turn / rate - perf_counter()) > 0:
                await nothing_for(early)
            await publisher.publish(b"x" * 1_000)
    return sorted(taken)
