"""The load generator counts exactly what a server did, also one with planted faults, and refuses what is unsafe."""

import asyncio
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pytest
from click.testing import CliRunner

from sse_app import bench
from sse_app.bench import (
    BenchFailed,
    BenchRefused,
    ChunkedDecoder,
    Load,
    Report,
    Subscriber,
    Tally,
    answer,
    check_descriptors,
    cpu_seconds,
    event_data,
    find_markers,
    percentile,
    resolve,
    run,
    source,
    start_server,
    usage,
)
from sse_app.cli import commands

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


# --- chunked decoder ---


@pytest.mark.parametrize(
    ("wire", "body"),
    [
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"1\r\na\r\n2\r\n\r\n\r\n3;name=value\r\nxyz\r\n0\r\n\r\n", b"a\r\nxyz"),
        (b"00A \t;x\r\n0123456789\r\n00\r\nTrailer: 1\r\n\r\n", b"0123456789"),
        (b"1f\r\n" + b"\r\n0\r\n\r\n" * 4 + b"abc\r\n0\r\n\r\n", b"\r\n0\r\n\r\n" * 4 + b"abc"),
        (b"0\r\n\r\n", b""),
    ],
)
def test_chunked_body_is_the_same_wherever_it_is_cut(wire: bytes, body: bytes) -> None:
    for first in range(len(wire) + 1):
        for second in range(first, len(wire) + 1):
            decoder = ChunkedDecoder()
            parts = [decoder.feed(part) for part in (wire[:first], wire[first:second], wire[second:])]
            assert b"".join(parts) == body
            assert decoder.ended


def test_chunked_body_comes_byte_by_byte() -> None:
    decoder = ChunkedDecoder()
    assert b"".join(decoder.feed(bytes([byte])) for byte in chunk(b"data: x\n\n") * 3) == b"data: x\n\n" * 3
    assert decoder.between_chunks
    assert not decoder.ended


@pytest.mark.parametrize(
    "wire", [b"x\r\n", b"-5\r\nhello\r\n", b"0x5\r\nhello", b"5\r\nhelloX\r\n", b"\r\n\r\n", b"1_0\r\n", b"f" * 20_000]
)
def test_what_is_not_chunked_is_an_error(wire: bytes) -> None:
    with pytest.raises(ValueError, match="chunk"):
        ChunkedDecoder().feed(wire)


@pytest.mark.parametrize(
    ("wire", "status"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", 200),
        (b"HTTP/1.1 200 OK\r\ncontent-length:2\r\n\r\n{", None),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204),
        (b"HTTP/1.1 503 Unavailable\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 503),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", None),
        (b"HTTP/1.1 200 OK\r\nContent-Le", None),
        (b"SSH-2.0-what\r\n\r\n", 0),
    ],
)
def test_answer_is_complete_or_not(wire: bytes, status: int | None) -> None:
    assert answer(wire) == status


# --- figures ---


@pytest.mark.parametrize(
    ("counts", "share", "value"),
    [
        ({}, 0.5, None),
        ({7: 1}, 0.5, 7),
        ({1: 1, 2: 1}, 0.5, 1),
        ({1: 1, 2: 1}, 0.51, 2),
        ({30: 1, 10: 98, 20: 1}, 0.98, 10),
        ({30: 1, 10: 98, 20: 1}, 0.99, 20),
        ({30: 1, 10: 98, 20: 1}, 1, 30),
        ({5: 3}, 0, 5),
    ],
)
def test_percentile_is_the_nearest_rank(counts: dict[int, int], share: float, value: int | None) -> None:
    assert percentile(counts, share) == value


@pytest.mark.parametrize("payload", [1, 60, 100, 5000])
def test_event_data_is_json_of_the_size_asked_for_that_holds_its_marker(payload: int) -> None:
    data = event_data("beef", 12, 345, payload)
    assert json.loads(data)
    assert len(data) == max(payload, len('{"bench":"@beef.12.345!"}'))
    batch, rest = find_markers(Tally("beef").pattern, data.encode())
    assert batch
    assert (batch.numbers, batch.sent, rest) == ([12], [345], b"")


def test_markers_of_another_run_are_none() -> None:
    assert find_markers(Tally("beef").pattern, b"data: @cafe.1.2!\n\n") == (None, b"")


def test_report_tells_a_table_and_json() -> None:
    report = REPORT
    assert report.clean
    assert json.loads(json.dumps(asdict(report)))["lost"] == 0
    rows = report.table()
    assert ("latency, median", "1.50", "ms") in rows
    assert ("deliveries", "1,200", "per second") in rows
    assert ("server memory", "-", f"KB per connection: {bench.NOT_MEASURED}") in rows
    faults: list[dict[str, Any]] = [
        {"lost": 1},
        {"doubled": 1},
        {"failed_connects": 1},
        {"failed_posts": 1},
        {"closed_early": 1},
    ]
    assert not any(replace(report, **fault).clean for fault in faults)


REPORT = Report(
    workload="closed",
    subscribers=2,
    failed_connects=0,
    connects_per_s=1000.0,
    memory_kb_per_connection=None,
    events=3,
    failed_posts=0,
    closed_early=0,
    deliveries=6,
    deliveries_per_s=1200.0,
    deliveries_per_cpu_s=None,
    latency_p50_ms=1.5,
    latency_p99_ms=2.5,
    latency_max_ms=2.5,
    wire_bytes_per_delivery=120.0,
    lost=0,
    doubled=0,
    stalled=False,
    load_cpu_share=0.5,
    first_error=None,
)


# --- accounting of one stream ---


class Wire(asyncio.Transport):
    """A transport that goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None: ...

    def abort(self) -> None:
        self.aborted = True


def subscribed(tally: Tally) -> tuple[Subscriber, Wire]:
    stream, wire = Subscriber(tally, b"", asyncio.get_running_loop().create_future()), Wire()
    stream.connection_made(wire)
    return stream, wire


def frames(*numbers: int) -> bytes:
    """One chunk with these events."""
    texts = [f"id: {number}\ndata: {event_data('beef', number, 5, 60)}\n\n" for number in numbers]
    return chunk("".join(texts).encode())


@pytest.mark.parametrize("warm", [False, True], ids=["first", "after another read the same"])
async def test_events_are_found_wherever_the_stream_is_cut(warm: bool) -> None:
    wire = HEAD + chunk(b"event: welcome\ndata: Welcome!\n\n") + frames(1, 2) + frames(3) + chunk(b": idle\n\n")
    for cut in range(len(wire) + 1):
        tally = Tally("beef")
        readers = [subscribed(tally)[0] for _ in range(2 if warm else 1)]
        for reader in readers:
            reader.data_received(HEAD)
        tally.published = 3
        for reader in readers:
            reader.data_received(wire[len(HEAD) :])
        fresh = subscribed(tally)[0]
        fresh.highest = 0
        fresh.data_received(wire[:cut])
        fresh.data_received(wire[cut:])
        assert (tally.deliveries, tally.lost(), tally.doubled) == (3 * (len(readers) + 1), 0, 0), cut


@pytest.mark.parametrize(
    ("chunks", "lost", "doubled"),
    [
        ([(1,), (2,), (3,), (4,)], 0, 0),
        ([(1, 2, 3, 4)], 0, 0),
        ([(2, 1), (4, 3)], 0, 0),
        ([(3,), (4,), (1,), (2,)], 0, 0),
        ([], 4, 0),
        ([(1,), (3,), (4,)], 1, 0),
        ([(4,)], 3, 0),
        ([(1, 2, 3)], 1, 0),
        ([(1,), (1,), (2, 3, 4)], 0, 1),
        ([(1, 2, 2, 3, 4, 4, 4)], 0, 3),
        ([(2, 2), (4,), (2,)], 2, 2),
        ([(1, 2, 3, 4), (1, 2, 3, 4)], 0, 4),
        ([(3,), (1,), (3,), (4,)], 1, 1),
    ],
)
async def test_lost_and_doubled_are_counted_by_number(chunks: list[tuple[int, ...]], lost: int, doubled: int) -> None:
    tally = Tally("beef")
    stream, _ = subscribed(tally)
    stream.data_received(HEAD)
    for _ in range(4):
        tally.publish()
    for numbers in chunks:
        stream.data_received(frames(*numbers))
    assert (tally.lost(), tally.doubled, tally.deliveries) == (lost, doubled, 4 - lost)
    assert tally.owed == lost


async def test_nobody_has_to_get_what_the_server_refused() -> None:
    tally = Tally("beef")
    streams = [subscribed(tally)[0] for _ in range(2)]
    for stream in streams:
        stream.data_received(HEAD)
    first, second, third = (tally.publish() for _ in range(3))
    streams[0].data_received(frames(second))  # it came, though its POST then failed
    tally.fail(second, "POST answered 503")
    streams[1].data_received(frames(first, second, third))
    assert (tally.lost(), tally.doubled, tally.owed) == (2, 0, 2)
    streams[0].data_received(frames(first, third))
    assert (tally.lost(), tally.doubled, tally.owed) == (0, 0, 0)


async def test_a_stream_that_ended_lost_what_was_published_until_then() -> None:
    tally = Tally("beef")
    stream, wire = subscribed(tally)
    stream.data_received(HEAD)
    tally.publish(), tally.publish()
    stream.data_received(frames(1) + b"0\r\n\r\n")
    assert wire.aborted
    stream.connection_lost(None)
    tally.publish()
    assert (tally.lost(), tally.owed, len(tally.ended)) == (1, 0, 1)


async def test_waiting_gives_up_when_nothing_comes() -> None:
    tally = Tally("beef")
    stream, _ = subscribed(tally)
    stream.data_received(HEAD)
    assert await tally.until_owed(1, patience=0)
    tally.publish()
    assert await tally.until_owed(2, patience=0)
    assert not await tally.until_owed(1, patience=0)


# --- whole runs against a fake hub ---


@dataclass
class FakeHub:
    """A hub that does what its faults say: `copies(stream, number)` of an event, statuses by number, an end."""

    copies: Callable[[int, int], int] = lambda stream, number: 1
    statuses: dict[int, int] = field(default_factory=dict)
    end_after: int | None = None
    refuse_streams: int = 0
    streams: list[asyncio.StreamWriter] = field(default_factory=list)
    peers: set[str] = field(default_factory=set)
    received: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET /hub/events "):
                    self.subscribe(writer)
                elif head.startswith(b"POST /hub/broadcast "):
                    length = re.search(rb"Content-Length: (\d+)", head)
                    assert length
                    self.broadcast(await reader.readexactly(int(length[1])), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def subscribe(self, writer: asyncio.StreamWriter) -> None:
        self.peers.add(writer.get_extra_info("peername")[0])
        if self.refuse_streams > 0:
            self.refuse_streams -= 1
            writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
            return
        writer.write(HEAD + chunk(b"event: welcome\ndata: {}\n\n"))
        self.streams.append(writer)

    def broadcast(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        self.received += 1
        status = self.statuses.get(self.received, 200)
        if status == 0:
            writer.close()
            return
        if status == 200:
            for number, stream in enumerate(self.streams):
                stream.write(chunk(b"data: %b\n\n" % data) * self.copies(number, self.received))
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\n{}" % status)
        if self.received == self.end_after:
            for stream in self.streams:
                stream.write(b"0\r\n\r\n")


@contextlib.asynccontextmanager
async def listening(hub: FakeHub) -> AsyncIterator[str]:
    server = await asyncio.start_server(hub.serve, "127.0.0.1", 0, backlog=256)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hub/"


async def measured(hub: FakeHub, **changes: Any) -> Report:
    """A run of 20 subscribers that is over after 12 events."""
    load = Load(subscribers=20, events=12, duration=30, warmup=0, settle=0, patience=30)
    async with listening(hub) as url:
        return await run(replace(load, url=url, **changes))


@pytest.mark.parametrize("workload", ["closed", "burst", "rate"])
async def test_a_good_hub_gets_a_clean_report(workload: str) -> None:
    report = await measured(FakeHub(), workload=workload, rate=10_000.0, pid=os.getpid())
    assert report.clean
    assert (report.subscribers, report.events, report.deliveries) == (20, 12, 240)
    assert report.memory_kb_per_connection is not None
    assert report.wire_bytes_per_delivery == len(chunk(b"data: %b\n\n" % (b"x" * 100)))
    assert report.latency_p50_ms is not None
    assert report.latency_p99_ms is not None
    assert report.latency_max_ms is not None
    assert 0 < report.latency_p50_ms <= report.latency_p99_ms <= report.latency_max_ms


async def test_polling_without_sleep_measures_the_same() -> None:
    report = await measured(FakeHub(), busy=True)
    assert report.clean
    assert report.deliveries == 240
    assert 0 < report.load_cpu_share <= 1


async def test_without_a_pid_the_server_figures_are_null() -> None:
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
    assert report.failed_posts == hub.received == bench.FAILURES_MAX
    assert report.first_error == "POST answered 404"


async def test_subscribers_that_are_refused_are_errors_and_the_rest_is_measured() -> None:
    report = await measured(FakeHub(refuse_streams=3))
    assert (report.subscribers, report.failed_connects, report.deliveries, report.lost) == (17, 3, 17 * 12, 0)
    assert report.first_error == "GET: answered HTTP/1.1 503 Service Unavailable"


async def test_no_subscriber_at_all_is_a_failure() -> None:
    with pytest.raises(BenchFailed, match="503"):
        await measured(FakeHub(refuse_streams=20))


async def test_nobody_listening_is_a_failure() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(BenchFailed, match="no subscriber could connect"):
            await run(Load(url=f"http://127.0.0.1:{taken.getsockname()[1]}", subscribers=1))


async def test_the_whole_run_has_a_deadline() -> None:
    with pytest.raises(BenchFailed, match="not finished within"):
        await measured(FakeHub(), deadline=0)


async def test_many_subscribers_come_from_several_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PORTS_PER_SOURCE", 6)
    hub = FakeHub()
    assert (await measured(hub)).clean
    assert hub.peers == {f"127.0.0.{1 + n}" for n in range(4 if sys.platform == "linux" else 1)}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have but one loopback address")
def test_sources_are_spread_only_where_they_must_be_and_can_be() -> None:
    assert source(7, 20_000, "127.0.0.1") is None
    assert source(7, 20_001, "::1") is None
    assert source(7, 20_001, "192.0.2.1") is None
    assert [source(n, 20_001, "127.0.0.1") for n in (0, 1, 2)] == [("127.0.0.1", 0), ("127.0.0.2", 0), ("127.0.0.1", 0)]


# --- what is refused ---


@pytest.mark.parametrize("url", ["http://192.0.2.1:8000", "http://[2001:db8::1]/", "http://0.0.0.0:8000"])
async def test_other_machines_are_not_loaded_unless_told(url: str) -> None:
    with pytest.raises(BenchRefused, match="allowed explicitly"):
        await run(Load(url=url))
    assert resolve(url, allow_remote=True).address in url


async def test_a_name_is_judged_by_where_it_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(BenchRefused, match=r"192\.0\.2\.1"):
        await run(Load(url="http://localhost"))


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://127.0.0.1:8000/", ("127.0.0.1", 8000, "127.0.0.1:8000", "")),
        ("http://127.9.9.9/live/", ("127.9.9.9", 80, "127.9.9.9", "/live")),
        ("http://[::1]:81", ("::1", 81, "[::1]:81", "")),
    ],
)
def test_this_machine_is_resolved(url: str, target: tuple[str, int, str, str]) -> None:
    assert resolve(url) == target


@pytest.mark.parametrize("url", ["https://127.0.0.1", "127.0.0.1:8000", "http://", "http://127.0.0.1:port", "ftp://x"])
def test_what_is_no_plain_http_url_is_refused(url: str) -> None:
    with pytest.raises(BenchRefused):
        resolve(url)


@pytest.mark.parametrize(
    "changes", [{"subscribers": 0}, {"duration": 0}, {"rate": float("nan")}, {"window": 0}, {"workload": "storm"}]
)
def test_values_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BenchRefused, match=next(iter(changes))):
        replace(Load(), **changes)


@pytest.mark.parametrize("changes", [{"pid": 1}, {"url": "http://127.0.0.1:1", "serve": ("--drain=1s",)}])
def test_what_does_not_go_together_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BenchRefused, match="goes with"):
        Load(**changes)


async def test_more_subscribers_than_open_files_are_refused() -> None:
    check_descriptors(Load(subscribers=928, inflight=8), 1000)
    with pytest.raises(BenchRefused, match="at most 928"):
        check_descriptors(Load(subscribers=929, inflight=8), 1000)
    with pytest.raises(BenchRefused, match="open files"):
        await run(Load(url="http://127.0.0.1:1", subscribers=sys.maxsize))


async def test_a_process_that_is_not_there_is_refused() -> None:
    with pytest.raises(BenchRefused, match="no such process"):
        await run(Load(url="http://127.0.0.1:1", pid=2**31 - 2))


def test_command_says_in_one_line_why_it_will_not_run() -> None:
    result = CliRunner().invoke(commands, ["bench", "--url", "http://192.0.2.1:8000", "--json"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.fullmatch(r"sse-app: 192\.0\.2\.1 is .*allowed explicitly\n", result.stderr)


@pytest.mark.parametrize(("report", "code"), [(REPORT, 0), (replace(REPORT, lost=3), 1)])
def test_command_prints_the_figures_and_fails_when_something_was_lost(
    monkeypatch: pytest.MonkeyPatch, report: Report, code: int
) -> None:
    loads = []

    async def done(load: Load) -> Report:
        loads.append(load)
        return report

    monkeypatch.setattr(bench, "run", done)
    monkeypatch.delenv("SSE_APP_PUBLISH_KEY", raising=False)
    plain = CliRunner().invoke(commands, ["bench", "--subscribers=20", "--workload=rate", "--", "--drain", "1s"])
    structured = CliRunner().invoke(commands, ["bench", "--json"])
    assert (plain.exit_code, structured.exit_code) == (code, code)
    assert re.search(r"latency, median +1\.50 +ms", plain.stdout)
    assert Report(**json.loads(structured.stdout)) == report
    assert loads == [Load(subscribers=20, workload="rate", serve=("--drain", "1s")), Load()]


# --- processes ---


def test_usage_of_this_process_includes_its_children() -> None:
    before, alone = time.process_time(), usage(os.getpid())
    assert alone
    assert alone.rss_kb > 1000
    assert alone.cpu >= before - 0.1  # the kernel counts in ticks
    with subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=-1, stdout=-1) as child:
        assert child.stdout
        child.stdout.readline()
        inner, both = usage(child.pid), usage(os.getpid())
        child.communicate(b"\n")
    assert inner
    assert both
    assert inner.rss_kb > 1000
    assert both.rss_kb >= inner.rss_kb + 1000
    assert usage(child.pid) is None


def test_process_table_of_ps_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = "    1     0  11000   1:02.50\n  300     1   2048   0:00.25\n  301   300   1024 1-02:03:04\n"
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, printed, ""))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert usage(300) == (0.25 + 93_784, 3072)
    assert usage(302) is None


@pytest.mark.parametrize(
    ("text", "seconds"), [("0:01.23", 1.23), ("12:34", 754), ("1:00:01", 3601), ("2-00:00:00", 172_800)]
)
def test_cpu_time_of_ps(text: str, seconds: float) -> None:
    assert cpu_seconds(text) == pytest.approx(seconds)


SERVES = "print('ready: http://127.0.0.1:4321/ and so on', flush=True); __import__('signal').pause()"


def test_a_started_server_is_stopped_also_after_an_error() -> None:
    cores = os.sched_getaffinity(0) if sys.platform == "linux" else None
    with (
        contextlib.suppress(ZeroDivisionError),
        start_server(command=(sys.executable, "-c", SERVES)) as server,
    ):
        assert server.url == "http://127.0.0.1:4321"
        assert usage(server.pid)
        if sys.platform == "linux" and cores and len(cores) > 1:
            assert not os.sched_getaffinity(0) & os.sched_getaffinity(server.pid)
        raise ZeroDivisionError
    assert usage(server.pid) is None
    assert cores is None or os.sched_getaffinity(0) == cores


def test_a_server_that_does_not_start_says_why() -> None:
    command = (sys.executable, "-c", "import sys; sys.exit('port: out of range ' + sys.argv[1])")
    with pytest.raises(BenchFailed, match="port: out of range --port=99999"), start_server(["--port=99999"], command):
        pass
