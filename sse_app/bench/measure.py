"""One run against one server, and many of them side by side."""

import asyncio
import contextlib
import gc
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from sse_app.bench.abilities import NO_RESUME, inability
from sse_app.bench.busy_loop import BusyLoop
from sse_app.bench.connect import Streams
from sse_app.bench.load import Load
from sse_app.bench.missed import publish_missed
from sse_app.bench.peers import OURS, Server, check_server, serving
from sse_app.bench.process import Usage, two_cores, usage
from sse_app.bench.publish import NS, Publishers
from sse_app.bench.report import Report
from sse_app.bench.tally import Tally, percentile
from sse_app.bench.target import Target, resolve
from sse_app.errors import BenchFailed

RUN_SECONDS = 600.0  # for one run, however slow the server


async def compare(
    loads: Sequence[Load],
    servers: Sequence[str],
    repeat: int = 1,
    flags: Sequence[str] = (),
    progress: Callable[[str], object] = lambda text: None,
) -> list[Report]:
    """Do each load to each server, as `run` does, `repeat` times over, so that servers are measured side by side.

    progress: called with a text before each run

    Raises what `run` raises, and `BenchRefused` for any of the servers before the first is started.
    """
    for load in loads:
        load.check_descriptors()
    for server in servers:
        check_server(server)
    reports = []
    for repetition in range(repeat):
        for load in loads:
            for server in servers:
                progress(f"{load.title}: {server}, {repetition + 1} of {repeat}")
                reports.append(await run(load, server, flags))
    return reports


async def run(load: Load, server: str = OURS, flags: Sequence[str] = ()) -> Report:
    """Put a load on a server, and return the report.

    server: `sse-app`, or `sqlite`, `redis` or `nats` for ours over a log of its own, `naive` or `nchan`, started for
        this run on cores of its own, or the base URL of one that runs on this machine
    flags: flags for `sse-app serve`

    Needs an event loop without other tasks, uvloop's if there is one. Raises `BenchRefused` before anything is
    connected, and `BenchFailed` when the server does not start, takes no subscriber, or takes longer than 10 minutes.
    """
    load.check_descriptors()
    try:
        async with asyncio.timeout(RUN_SECONDS):
            with serving(server, flags) as running:
                return await _measure(load, server, running)
    except TimeoutError:
        raise BenchFailed(f"{server}, {load.title}: not finished within {RUN_SECONDS:g} s") from None
    except OSError as error:
        raise BenchFailed(f"{server} is out of reach: {error}") from error


class _Sample(NamedTuple):
    """The clock, our own CPU time (both in ns) and the counters at some point of a run."""

    clock: int
    spent: int
    published: int
    server: Usage | None
    left: int  # the clock afterwards: reading the table of processes takes some ms


class _Samples(NamedTuple):
    """The samples of a run; its figures are differences between two of them."""

    start: _Sample
    connected: _Sample
    settled: _Sample
    before: _Sample
    after: _Sample


async def _measure(load: Load, name: str, server: Server) -> Report:
    target, tally = resolve(server.url), Tally(secrets.token_hex(2))
    loop = BusyLoop(tally, busy=two_cores())

    def sample() -> _Sample:
        clock, spent = time.monotonic_ns(), loop.spent()
        return _Sample(
            clock, spent, tally.published, usage(server.pid) if server.pid else None, left=time.monotonic_ns()
        )

    gc.disable()  # a full collection over all these streams would show as latency
    try:
        if unable := await inability(load, target):
            return _unable(load, name, unable)
        if name != server.url:
            await _warm_up(load, target)
        last = None
        if load.workload == "resume" and not (last := await publish_missed(load, target, tally)):
            return _unable(load, name, NO_RESUME)
        start = sample()
        async with _connected(load, target, tally, last):
            connected = sample()
            await asyncio.sleep(load.settle)
            settled = sample()
            publishers = Publishers(load, target, tally)
            before = await _publish(load, publishers, tally, sample)
            return _report(load, name, tally, _Samples(start, connected, settled, before, sample()), publishers.stalled)
    finally:
        gc.enable()
        loop.stop()


async def _warm_up(load: Load, target: Target) -> None:
    """Open one stream and publish one event, so that what a server makes only once is not part of the figures."""
    first, tally = replace(load, subscribers=1), Tally(secrets.token_hex(2))
    async with _connected(first, target, tally):
        await Publishers(first, target, tally).publish(first.duration, first.batch)


@contextlib.asynccontextmanager
async def _connected(load: Load, target: Target, tally: Tally, last: str | None = None) -> AsyncIterator[None]:
    """Connect all subscribers for the length of a block, which begins when each has what it missed."""
    streams = Streams(load, target, tally, last)
    try:
        await streams.connect()
        await tally.until_owed(1, load.patience)
        if not tally.streams:
            raise BenchFailed(f"no subscriber could connect: {tally.first_error}")
        yield
    finally:
        await streams.close()


async def _publish(load: Load, publishers: Publishers, tally: Tally, sample: Callable[[], _Sample]) -> _Sample:
    """Publish, first to warm up. Return the sample from which on it counts."""
    if load.warmup and not load.storm:
        await publishers.publish(load.warmup)
    tally.begin()
    before = sample()
    if load.window is None or not publishers.stalled:  # waiting for deliveries, there is no more to come
        await publishers.publish(load.duration, 1 if load.storm else load.events)
    return before


def _report(load: Load, server: str, tally: Tally, course: _Samples, stalled: bool) -> Report:
    start, connected, settled, before, after = course
    subscribers = len(tally.streams) + len(tally.ended) + tally.slow
    grown = _difference(start, settled, lambda used: used.rss_kb)
    connecting = _difference(start, settled, lambda used: used.cpu)
    spent = _difference(before, after, lambda used: used.cpu)
    published = _difference(settled, after, lambda used: used.rss_kb)
    wall = (tally.last_arrival - before.left) / NS
    posts, posting = sum(tally.answers.values()), (tally.last_answer - before.left) / NS
    busy_from, busy_until = (start, connected) if load.storm else (before, after)
    connecting_s = (connected.clock - start.left) / NS
    return Report(
        workload=load.workload,
        title=load.title,
        server=server,
        inflight=load.inflight,
        batch=load.batch,
        behind=load.behind,
        subscribers=subscribers,
        slow_subscribers=tally.slow,
        failed_connects=load.subscribers - subscribers,
        connects_per_s=subscribers / connecting_s,
        back_s=connecting_s if load.workload == "resume" else None,
        cpu_us_per_connect=None if connecting is None else connecting * 1e6 / subscribers,
        memory_kb_per_connection=None if grown is None else grown / subscribers,
        events=after.published - before.published,
        posts_per_s=posts / posting if posting > 0 else 0.0,
        posts_per_cpu_s=posts / spent if spent else None,
        events_per_cpu_s=posts * load.batch / spent if spent else None,
        answer_p50_ms=_ms(percentile(tally.answers, 0.5)),
        answer_p99_ms=_ms(percentile(tally.answers, 0.99)),
        failed_posts=tally.failed_posts,
        closed_early=len(tally.ended),
        deliveries=tally.deliveries,
        deliveries_per_s=tally.deliveries / wall if wall > 0 else 0.0,
        deliveries_per_cpu_s=tally.deliveries / spent if spent else None,
        server_cpu_share=None if spent is None else spent * NS / (after.clock - before.left),
        memory_growth_mb=None if published is None else published / 1024,
        latency_p50_ms=_ms(percentile(tally.late, 0.5)),
        latency_p99_ms=_ms(percentile(tally.late, 0.99)),
        latency_max_ms=_ms(percentile(tally.late, 1)),
        wire_bytes_per_delivery=tally.bytes / tally.deliveries if tally.deliveries else None,
        lost=tally.lost(),
        doubled=tally.doubled,
        stalled=stalled,
        load_cpu_share=(busy_until.spent - busy_from.spent) / (busy_until.clock - busy_from.clock),
        first_error=tally.first_error,
    )


def _unable(load: Load, server: str, why: str) -> Report:
    return Report(load.workload, load.title, server, load.inflight, load.batch, load.behind, unable=why)


def _difference(before: _Sample, after: _Sample, of: Callable[[Usage], float]) -> float | None:
    return of(after.server) - of(before.server) if before.server and after.server else None


def _ms(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e6
