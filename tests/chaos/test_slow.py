"""A slow reader delays no other, costs little, and loses nothing without a gap."""

import asyncio
from time import perf_counter

import pytest

from tests.chaos.client import (
    PATIENCE,
    SMALL,
    Connection,
    Stream,
    named_in_gaps,
    publish_all,
    stats,
    streams,
    until,
    until_stats,
)
from tests.chaos.conftest import Serve, count

BODY = b"x" * 2_000
STEP = 100  # publications of BODY: 200 KB


@pytest.mark.parametrize("history", [100, 10_000])
async def test_a_reader_at_a_kilobyte_to_200_published_catches_up_or_is_told(serve: Serve, history: int) -> None:
    server = serve("--history", str(history), "--so-sndbuf", "16KiB")
    steps = count(ci=20, full=100)
    async with await Stream.open(server.port, receive_buffer=SMALL) as stream:
        for _ in range(steps):
            await publish_all(server.port, [BODY] * STEP)
            await stream.read(1_000)
        assert (await stats(server.port))["lagging"] == 1
        await stream.until_offset(steps * STEP)
        await until_stats(server.port, lagging=0, subscribers=1)
        await publish_all(server.port, [BODY])
        await stream.until_offset(steps * STEP + 1)
    assert_all_accounted_for([stream], steps * STEP + 1)
    assert bool(stream.of_type("gap")) == (history == 100)


def assert_all_accounted_for(streams: list[Stream], published: int) -> None:
    """Assert that over these streams of one client each publication arrived once and in order, or a gap named it."""
    events = [event for stream in streams for event in stream.events]
    delivered = [offset for stream in streams for offset in stream.offsets]
    assert delivered == sorted(set(delivered))
    missing = named_in_gaps(events)
    assert not missing & set(delivered)
    assert missing | set(delivered) == set(range(1, published + 1))


async def test_a_queue_that_runs_over_again_and_again_keeps_order(serve: Serve) -> None:
    server = serve("--queue", "10", "--queue-bytes", "16KiB", "--so-sndbuf", "16KiB")
    rounds = count(ci=10, full=100)
    async with await Stream.open(server.port, receive_buffer=SMALL) as stream:
        for done in range(rounds):
            await publish_all(server.port, [BODY] * STEP)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(publish_all(server.port, [BODY] * STEP))  # published while the reader catches up
                await stream.until_offset((2 * done + 2) * STEP)
    overflows = (await stats(server.port))["totals"]["overflows"]
    print("overflows:", overflows)
    assert overflows >= rounds
    assert stream.offsets == list(range(1, 2 * rounds * STEP + 1))
    assert not stream.of_type("gap")


async def test_five_hundred_stalled_readers_delay_nobody(serve: Serve) -> None:
    server = serve("--queue", "50")
    stalled, total = count(ci=200, full=500), count(ci=200, full=500)
    async with streams(server.port, 20) as healthy:
        print("alone:", await _latencies(server.port, healthy, 100))
        async with streams(server.port, stalled, receive_buffer=SMALL):
            print("stalling:", await _latencies(server.port, healthy, total))
            assert (await stats(server.port))["lagging"] > 0
            print("stalled:", await _latencies(server.port, healthy, total))
    for stream in healthy:
        assert stream.offsets == list(range(1, 100 + 2 * total + 1))
        assert not stream.of_type("gap")


async def _latencies(port: int, readers: list[Stream], number: int) -> str:
    """Publish one by one, each read by all readers. Return the seconds that each POST took."""
    taken = []
    async with await Connection.open(port) as publisher:
        for _ in range(number):
            begun = perf_counter()
            id = await publisher.publish(BODY)
            taken.append(perf_counter() - begun)
            for stream in readers:
                await stream.until_offset(int(id.partition("-")[2]))
    taken.sort()
    p50, p99, most = (taken[int(share * (number - 1))] * 1000 for share in (0.5, 0.99, 1))
    return f"POST p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {most:.1f} ms"


async def test_a_stalled_reader_is_gone_in_time_and_resumes_without_silent_loss(serve: Serve) -> None:
    server = serve("--history", "200", "--tcp-user-timeout", str(count(ci=2, full=20)))
    base = server.descriptors
    async with await Stream.open(server.port, receive_buffer=SMALL) as stalled:
        await publish_all(server.port, [BODY] * 1_000)
        begun = perf_counter()
        await until_stats(server.port, subscribers=0, lagging=0)
        gone = perf_counter() - begun
        print("gone after seconds:", gone)
        assert gone <= PATIENCE

        async def closed() -> bool:
            await stats(server.port)
            return server.descriptors <= base + 2

        await until(closed, "no descriptor is left")
        await stalled.to_the_end()
    async with await Stream.open(server.port, stalled.cursor) as resumed:
        await resumed.until_offset(1_000)
    assert_all_accounted_for([stalled, resumed], 1_000)
