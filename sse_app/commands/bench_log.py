"""``sse-app bench-log``: the cost of publishing to a log by itself, without HTTP and without subscribers."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from time import perf_counter
from urllib.parse import urlsplit

import click

from sse_app.brokers import Broker, open_broker
from sse_app.commands import Number, Whole, exits
from sse_app.errors import BenchRefused
from sse_app.events import Event
from sse_app.publication import Draft

LATENCIES = 300  # publications, one after the other, each timed until the tail announces it
WARM_UP = 30
AT_A_TIME = (1, 8, 64)  # publishers, for one rate each


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one log.

    median_ms, p99_ms: from the call of publish until this node's tail has announced the publication.
    per_second: acknowledged publications per second, by the number of publishers at a time.
    """

    url: str
    durable: str
    median_ms: float
    p99_ms: float
    per_second: dict[int, float]


@click.command("bench-log")
@click.option("--repeat", type=Whole(1), default=3, show_default=True, help="Repetitions; medians are shown.")
@click.option("--seconds", type=Number(0.01, 60), default=1.0, show_default=True, help="For each rate.")
@click.option("--payload", type=Whole(1, 2**20), default=100, show_default=True, help="Bytes of an event.")
@click.option("--used", is_flag=True, help="Also a log that holds something, which this pushes out.")
@click.option("--json", "as_json", is_flag=True, help="Print the medians as JSON.")
@click.argument("urls", nargs=-1, required=True, metavar="BROKER...")
def bench_log(urls: tuple[str, ...], repeat: int, seconds: float, payload: int, used: bool, as_json: bool) -> None:
    """Measure logs beside each other: how soon a publication is announced, and how many a second are acknowledged.

    BROKER is a URL as serve takes it, best of a log that nobody uses, such as redis://localhost?prefix=bench.
    """
    from uvloop import new_event_loop

    with exits(), asyncio.Runner(loop_factory=new_event_loop) as runner:
        found = runner.run(_compare(urls, repeat, seconds, "x" * payload, used))
    if as_json:
        click.echo(json.dumps([asdict(figures) for figures in found]))
    else:
        _show(found)


async def _compare(urls: Sequence[str], repeat: int, seconds: float, data: str, used: bool) -> list[Figures]:
    """Return medians over the repetitions. The logs take turns in each, so that a disturbance meets all of them."""
    runs: list[list[Figures]] = [[] for _ in urls]
    for turn in range(repeat):
        for url, figures in zip(urls, runs, strict=True):
            figures.append(await _measure(url, seconds, data, used or turn > 0))
    return [_medians(figures) for figures in runs]


def _medians(runs: Sequence[Figures]) -> Figures:
    return Figures(
        runs[0].url,
        runs[0].durable,
        median(run.median_ms for run in runs),
        median(run.p99_ms for run in runs),
        {number: median(run.per_second[number] for run in runs) for number in AT_A_TIME},
    )


async def _measure(url: str, seconds: float, data: str, used: bool) -> Figures:
    name = _without_secrets(url)
    async with open_broker(url) as broker:  # limits would be kept in the log, for all who use it
        if not used and (await broker.top(fresh=True)).offset:
            raise BenchRefused(f"{name} holds publications already, which this would push out; --used does it anyway.")
        taken = await _latencies(broker, Draft(Event(data)))
        per_second = {number: await _rate(broker, Draft(Event(data)), number, seconds) for number in AT_A_TIME}
        return Figures(name, broker.durability, median(taken), quantiles(taken, n=100)[98], per_second)


async def _latencies(broker: Broker, draft: Draft) -> list[float]:
    """Return the times of ``LATENCIES`` publications, in ms."""
    tail, taken = broker.tail(), []
    for _ in range(WARM_UP + LATENCIES):
        begun = perf_counter()
        position = await broker.publish(draft)
        while not any(publication.position == position for publication in await anext(tail)):
            pass
        taken.append((perf_counter() - begun) * 1000)
    await tail.aclose()
    return taken[WARM_UP:]


async def _rate(broker: Broker, draft: Draft, publishers: int, seconds: float) -> float:
    """Return acknowledged publications per second, while the tail is read as a hub reads it."""
    tail, acknowledged, begun = broker.tail(), 0, perf_counter()

    async def publish() -> None:
        nonlocal acknowledged
        while acknowledged == 0 or perf_counter() < begun + seconds:
            await broker.publish(draft)
            acknowledged += 1

    async def follow() -> None:
        async for _ in tail:
            pass

    following = asyncio.create_task(follow())
    await asyncio.gather(*(publish() for _ in range(publishers)))
    taken = perf_counter() - begun
    following.cancel()
    await asyncio.wait([following])
    await tail.aclose()
    return acknowledged / taken


def _without_secrets(url: str) -> str:
    """Return a URL without user and password, and without its parameters, some of which are secrets."""
    parts = urlsplit(url)
    sync = "?sync=normal" if "sync=normal" in parts.query else ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{sync}"


def _show(found: Sequence[Figures]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    urls = (Column(figures.url, justify="right", overflow="fold") for figures in found)
    table = Table(Column(no_wrap=True), *urls, box=None)
    table.add_row("durable", *(figures.durable for figures in found))
    table.add_row("announced, median, ms", *(f"{figures.median_ms:.2f}" for figures in found))
    table.add_row("announced, 99 %, ms", *(f"{figures.p99_ms:.2f}" for figures in found))
    for number in AT_A_TIME:
        label = f"per second, {number} at a time"
        table.add_row(label, *(f"{figures.per_second[number]:,.0f}" for figures in found))
    Console().print(table)
