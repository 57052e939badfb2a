"""Whole runs: against a hub with planted faults, and against each installed server."""

import asyncio
import os
import socket
import sys
from typing import Any

import pytest
from uvloop import new_event_loop

from sse_app.bench import Load, compare, measure, run
from sse_app.bench import target as target_module
from sse_app.bench.logs import LOGS
from sse_app.bench.process import Usage
from sse_app.bench.publish import FAILURES_MAX
from sse_app.errors import BenchFailed, BenchRefused
from tests.bench.fake_hub import FakeHub, chunk, measured, serving
from tests.bench.test_peers import here

SERVERS = [name for name in ("sse-app", "naive", "nchan", "sqlite", "redis", "nats") if here(name)]
TINY: dict[str, Any] = {"subscribers": 3, "warmup": 0, "settle": 0, "duration": 30, "events": 2, "patience": 30}


@pytest.mark.parametrize("workload", ["closed", "burst", "rate", "publish"])
async def test_a_good_hub_gets_a_clean_report(workload: str) -> None:
    report = await measured(FakeHub(), workload=workload, rate=10_000.0)
    assert report.clean
    assert (report.subscribers, report.events, report.deliveries) == (20, 12, 240)
    assert report.wire_bytes_per_delivery == len(chunk(b"data: %b\n\n" % (b"x" * 100)))
    assert report.latency_p50_ms is not None
    assert report.latency_p99_ms is not None
    assert report.latency_max_ms is not None
    assert 0 < report.latency_p50_ms <= report.latency_p99_ms <= report.latency_max_ms


async def test_connecting_ends_with_one_event_to_all() -> None:
    report = await measured(FakeHub(), workload="connect")
    assert report.clean
    assert (report.subscribers, report.events, report.deliveries) == (20, 1, 20)
    assert report.connects_per_s > 0


async def test_publishing_counts_the_posts_that_were_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter([Usage(1.0, 100)] * 4 + [Usage(1.5, 100)])
    monkeypatch.setattr(measure, "usage", lambda pid: next(used))
    monkeypatch.setattr("sse_app.bench.peers.listener", lambda port: os.getpid())
    report = await measured(FakeHub(statuses={2: 503, 5: 0}), workload="publish", inflight=3, subscribers=1)
    assert (report.events, report.failed_posts, report.deliveries, report.lost) == (12, 2, 10, 0)
    assert report.posts_per_cpu_s == 10 / 0.5
    assert report.posts_per_s > 0
    assert report.answer_p50_ms is not None
    assert report.answer_p99_ms is not None
    assert 0 < report.answer_p50_ms <= report.answer_p99_ms


async def test_publishing_goes_on_whatever_was_lost() -> None:
    hub = FakeHub(lambda stream, number: 0)
    report = await measured(hub, workload="publish", subscribers=1, warmup=0.01, patience=0.05)
    assert report.stalled
    assert report.events == 12
    assert report.lost == hub.received > 12  # also those of the warm-up


async def test_a_batch_is_several_events_in_one_post(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter([Usage(1.0, 100)] * 4 + [Usage(1.5, 100)])
    monkeypatch.setattr(measure, "usage", lambda pid: next(used))
    monkeypatch.setattr("sse_app.bench.peers.listener", lambda port: os.getpid())
    hub = FakeHub(statuses={3: 503, 4: 0})
    report = await measured(hub, workload="publish", inflight=2, subscribers=1, batch=5, events=30)
    assert hub.received == 1 + 6  # one to find out whether it takes batches
    assert (report.title, report.events) == ("publish, 2 at a time, 5 events in each", 30)
    assert (report.failed_posts, report.deliveries, report.lost, report.doubled) == (2, 20, 0, 0)
    assert (report.posts_per_cpu_s, report.events_per_cpu_s) == (4 / 0.5, 20 / 0.5)


async def test_what_is_lost_and_doubled_of_a_batch_is_counted_exactly() -> None:
    def copies(stream: int, number: int) -> int:
        return {(0, 2 + 9): 0, (0, 2 + 12): 0, (0, 2 + 3): 3}.get((stream - 1, number), 1)  # stream 0: found out by it

    hub = FakeHub(copies, end_after=1 + 4)
    report = await measured(hub, workload="publish", inflight=1, subscribers=1, batch=5, events=20)
    assert (report.lost, report.doubled, report.deliveries) == (2, 2, 18)


@pytest.mark.parametrize("hub", [FakeHub(batches=False), FakeHub(statuses={1: 415}), FakeHub(statuses={1: 0})])
async def test_a_server_that_takes_no_batches_gets_none(hub: FakeHub) -> None:
    report = await measured(hub, workload="publish", subscribers=1, batch=5)
    assert (report.unable, report.events, report.posts_per_cpu_s, hub.received) == ("no batches", 0, None, 1)
    assert not report.clean


async def test_a_server_that_brings_nothing_takes_no_batches() -> None:
    report = await measured(FakeHub(lambda *_: 0), workload="publish", subscribers=1, batch=5, patience=0.05)
    assert report.unable == "no batches"


async def test_who_comes_back_gets_what_was_missed_and_the_next_event(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter([Usage(1.0, 100), Usage(1.2, 100), Usage(1.5, 300), *[Usage(2.0, 300)] * 2])
    monkeypatch.setattr(measure, "usage", lambda pid: next(used))
    monkeypatch.setattr("sse_app.bench.peers.listener", lambda port: os.getpid())
    hub = FakeHub(log=[])
    report = await measured(hub, workload="resume", behind=30)
    assert report.clean
    assert (report.title, report.behind, report.subscribers) == ("resume, 30 behind", 30, 20)
    assert hub.received == 1 + 30 + 1
    assert (report.events, report.deliveries) == (1, 20)
    assert report.cpu_us_per_connect == pytest.approx(0.5e6 / 20)
    assert report.back_s is not None
    assert report.back_s > 0


async def test_what_a_resume_loses_and_doubles_is_counted_exactly() -> None:
    def copies(place: int, number: int) -> int:  # places 0 and 1 find out whether it resumes
        return {(2 + 3, 5): 0, (2 + 4, 31): 2, (2 + 7, 2): 3, (2 + 7, 32): 2}.get((place, number), 1)

    report = await measured(FakeHub(copies, log=[]), workload="resume", behind=30, patience=2)
    assert (report.lost, report.doubled, report.subscribers) == (1, 1 + 2, 20)
    assert report.stalled
    assert not report.clean


@pytest.mark.parametrize(
    ("hub", "patience"),
    [
        (FakeHub(), 30),
        (FakeHub(lambda place, number: 0 if (place, number) == (1, 7) else 1, log=[]), 30),
        (FakeHub(lambda place, number: int(place == 0), log=[]), 2),
    ],
    ids=["no ids", "one is missing", "nothing comes"],
)
async def test_a_server_that_does_not_bring_what_was_missed_gets_no_storm(hub: FakeHub, patience: float) -> None:
    report = await measured(hub, workload="resume", behind=30, patience=patience)
    assert (report.unable, report.subscribers, report.back_s) == ("no resume", 0, None)
    assert len(hub.streams) <= 2
    assert not report.clean


@pytest.mark.parametrize(
    ("hub", "patience", "why"),
    [
        (FakeHub(lambda *_: 0, log=[]), 0.5, "no event came"),
        (FakeHub(statuses={5: 503}, log=[]), 30, "POST answered 503"),
    ],
)
async def test_a_server_that_does_not_publish_what_is_to_be_missed_is_a_failure(
    hub: FakeHub, patience: float, why: str
) -> None:
    with pytest.raises(BenchFailed, match=why):
        await measured(hub, workload="resume", patience=patience)


async def test_of_those_that_do_not_read_nothing_is_counted() -> None:
    report = await measured(FakeHub(), workload="slow", slow=0.25, rate=10_000.0)
    assert report.clean
    assert (report.subscribers, report.slow_subscribers, report.deliveries) == (20, 5, 15 * 12)


@pytest.mark.parametrize("busy", [True, False])
async def test_polling_without_sleep_measures_the_same(busy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "two_cores", lambda: busy)
    report = await measured(FakeHub())
    assert report.clean
    assert report.deliveries == 240
    assert report.load_cpu_share >= 0


async def test_the_figures_of_the_server_are_those_of_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter([Usage(1.0, 100), Usage(1.0, 300), Usage(1.2, 500), Usage(2.0, 600), Usage(2.4, 1524)])
    monkeypatch.setattr(measure, "usage", lambda pid: next(used))
    monkeypatch.setattr("sse_app.bench.peers.listener", lambda port: os.getpid())
    report = await measured(FakeHub())
    assert report.memory_kb_per_connection == 400 / 20
    assert report.cpu_us_per_connect == pytest.approx(0.2e6 / 20)
    assert report.deliveries_per_cpu_s == pytest.approx(240 / 0.4)
    assert report.memory_growth_mb == 1.0


async def test_without_a_process_the_server_figures_are_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sse_app.bench.peers.listener", lambda port: None)
    report = await measured(FakeHub())
    assert report.memory_kb_per_connection is None
    assert report.deliveries_per_cpu_s is None


async def test_planted_drops_and_doubles_are_counted_exactly() -> None:
    def copies(stream: int, number: int) -> int:
        return {(3, 5): 0, (4, 12): 0, (7, 1): 2, (7, 9): 4}.get((stream, number), 1)

    report = await measured(FakeHub(copies, end_after=12), workload="burst")
    assert (report.lost, report.doubled, report.deliveries) == (2, 1 + 3, 240 - 2)
    assert report.closed_early == 20
    assert not report.clean


async def test_a_hub_that_brings_nothing_stalls_the_run() -> None:
    report = await measured(FakeHub(lambda stream, number: 0), patience=0.05)
    assert report.stalled
    assert (report.deliveries, report.lost) == (0, 20 * (report.events - report.failed_posts))
    assert report.lost > 0
    assert report.latency_p50_ms is None


async def test_failed_posts_are_counted_and_lose_nothing() -> None:
    report = await measured(FakeHub(statuses={2: 503, 5: 0, 6: 429}), workload="burst", inflight=2)
    assert (report.failed_posts, report.lost, report.doubled) == (3, 0, 0)
    assert (report.events, report.deliveries) == (12, 20 * (12 - 3))


async def test_publishing_stops_when_every_post_fails() -> None:
    hub = FakeHub(statuses=dict.fromkeys(range(1, 1000), 404))
    report = await measured(hub, events=None)
    assert report.failed_posts == hub.received == FAILURES_MAX
    assert report.first_error == "POST answered 404"


async def test_subscribers_that_are_refused_are_errors_and_the_rest_is_measured() -> None:
    report = await measured(FakeHub(refuse_streams=3))
    assert (report.subscribers, report.failed_connects, report.deliveries, report.lost) == (17, 3, 17 * 12, 0)
    assert report.first_error == "GET: answered HTTP/1.1 503 Service Unavailable"


async def test_no_subscriber_at_all_is_a_failure() -> None:
    with pytest.raises(BenchFailed, match="503"):
        await measured(FakeHub(refuse_streams=20))


async def test_nobody_serving_is_a_failure() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(BenchFailed, match="no subscriber could connect"):
            await run(Load(subscribers=1), f"http://127.0.0.1:{taken.getsockname()[1]}")


async def test_a_run_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "RUN_SECONDS", 0)
    with pytest.raises(BenchFailed, match="not finished within"):
        await measured(FakeHub())


async def test_many_subscribers_come_from_several_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_module, "PORTS_PER_SOURCE", 6)
    hub = FakeHub()
    assert (await measured(hub)).clean
    assert hub.peers == {f"127.0.0.{1 + n}" for n in range(4 if sys.platform == "linux" else 1)}


async def test_more_subscribers_than_open_files_are_refused() -> None:
    with pytest.raises(BenchRefused, match="open files"):
        await run(Load(subscribers=sys.maxsize))


async def test_servers_take_turns_in_each_repetition() -> None:
    progress: list[str] = []
    async with serving(FakeHub()) as one, serving(FakeHub()) as other:
        loads = [Load("closed", **TINY), Load("connect", **TINY)]
        reports = await compare(loads, [one, other], repeat=2, progress=progress.append)
    order = [(workload, server) for workload in ("closed", "connect") for server in (one, other)]
    assert [(report.workload, report.server) for report in reports] == order * 2
    assert progress[0] == f"closed: {one}, 1 of 2"
    assert all(report.clean for report in reports)


async def test_nothing_is_measured_before_every_server_is_known_to_be_there() -> None:
    hub = FakeHub()
    async with serving(hub) as url:
        with pytest.raises(BenchRefused, match="servers are"):
            await compare([Load(**TINY)], [url, "no-such-server"])
    assert not hub.peers


@pytest.mark.parametrize("server", SERVERS)
def test_each_server_delivers_each_event_once(server: str) -> None:
    loads = [Load("connect", **TINY), Load("burst", **TINY), Load("publish", **TINY)]
    loads += [Load("resume", **TINY)] * (server != "naive")
    loads += [Load("publish", batch=2, **TINY)] * (server in ("sse-app", *LOGS))
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        reports = runner.run(compare(loads, [server]))
    for report in reports:
        assert report.clean, report.first_error
        assert report.deliveries == 3 * report.events
        assert report.memory_growth_mb is not None


@pytest.mark.parametrize(
    ("server", "unable"),
    [("naive", ["no batches", "no resume"]), *([("nchan", ["no batches", None])] if here("nchan") else [])],
)
def test_what_the_others_cannot_do_is_found_out(server: str, unable: list[str | None]) -> None:
    loads = [Load("publish", batch=10, **TINY), Load("resume", **TINY | {"patience": 5})]
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        assert [report.unable for report in runner.run(compare(loads, [server]))] == unable


def test_flags_reach_the_server_that_is_started() -> None:
    with pytest.raises(BenchFailed, match="body_max"), asyncio.Runner() as runner:
        runner.run(run(Load(**TINY), "sse-app", ["--body-max", "none"]))
