"""Load for `sse-app bench`: many subscribers and some publishers against one hub, counted exactly.

Every published event carries a marker `@<run>.<number>.<nanoseconds>!`. A subscriber decodes the stream
only as far as finding markers needs, so that one Python process can keep a server's core busy: all
subscribers are sent the same bytes, and a read that was parsed once is a dictionary lookup for the others
(0.5 us; system call and loop cost ten times that).

Latency runs from the moment an event was sent (in `rate`: was due) until a subscriber's read, on one clock
of one process. It contains this process's own turn at reading all sockets, some us for each subscriber.
"""

import asyncio
import contextlib
import gc
import ipaddress
import itertools
import math
import os
import re
import resource
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple, Self, cast, get_args
from urllib.parse import urlsplit

from sse_app.errors import SSEAppError

Workload = Literal["closed", "burst", "rate"]

SPARE_DESCRIPTORS = 64  # the loop's own, the server's log, imports under way
PORTS_PER_SOURCE = 20_000  # Linux hands out 28,232 ephemeral ports per source address, unless told otherwise
CONNECT_SECONDS = 30.0
CONNECTING = 256  # connections being opened at a time: well inside a backlog of 2,048
START_SECONDS = 20.0  # for our own server to print its address
STOP_SECONDS = 20.0  # the server's drain takes 10 s by default
HEAD_MAX = 16_384
MARKER_MAX = 64
FAILURES_MAX = 100  # POSTs, then publishing stops
MEMO_MAX = 256
NS = 1_000_000_000

SERVE = (sys.executable, "-u", "-m", "sse_app", "serve", "--port", "0")

NOT_MEASURED = "not measured, for want of the server's pid or of deliveries"

_RESIDENT = re.compile(rb"^VmRSS:\s*(\d+) kB", re.MULTILINE)
_ADDRESS = re.compile(rb"http://127\.0\.0\.1:\d+(?=[/\s])")
_CHUNK = re.compile(rb"\r\n([0-9A-Fa-f]{1,15})(?:[ \t]*;[^\r\n]*)?\r\n")
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r]")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked", re.IGNORECASE)


class BenchRefused(SSEAppError, ValueError):
    """The load asked for is unsafe or impossible; nothing was connected."""


class BenchFailed(SSEAppError):
    """The server under load did not start, could not be subscribed to, or did not finish in time."""


@dataclass(frozen=True, slots=True)
class Load:
    """What to do to which server.

    url: base URL of the hub (`{url}/events`, `{url}/broadcast`); None starts a server and stops it again
    pid: the process whose CPU time and memory to read, children included; not needed without `url`
    serve: more flags for the server that is started
    subscribers: open streams, at most the descriptor limit less `inflight` and 64
    workload: `closed`: one event at a time, the next when everyone has the last; `burst`: `inflight` POSTs
        at a time and at most `window` events on their way to the average subscriber; `rate`: `rate` events
        per second, whatever comes back, latency counted from when each was due
    duration, warmup: seconds of publishing, measured and before; events: stop after so many, if sooner
    payload: bytes of an event's data, no fewer than its marker needs (about 45)
    settle: seconds between the last connect and reading the server's memory
    patience: seconds without any delivery after which what is missing counts as lost
    deadline: seconds for the whole run; None allows 120 and three times the publishing
    busy: poll without ever sleeping. Needs a core of its own; an idle one has to be woken for each delivery, and the
        server pays for that (measured: up to half its rate). None: when we start the server and have two cores
    publish_key: sent as bearer token with every POST
    allow_remote: load a host that is not this one

    Raises `BenchRefused` for values out of range.
    """

    url: str | None = None
    pid: int | None = None
    serve: tuple[str, ...] = ()
    subscribers: int = 1000
    workload: Workload = "closed"
    duration: float = 5.0
    events: int | None = None
    warmup: float = 0.5
    rate: float = 100.0
    inflight: int = 8
    window: int = 16
    payload: int = 100
    settle: float = 0.5
    patience: float = 5.0
    deadline: float | None = None
    busy: bool | None = None
    publish_key: str | None = field(default=None, repr=False)
    allow_remote: bool = False

    def __post_init__(self) -> None:
        if self.workload not in get_args(Workload):
            raise BenchRefused(f"workload must be one of {', '.join(get_args(Workload))}")
        at_least_one = ("subscribers", "inflight", "window", "payload")
        above_zero = ("duration", "rate", "patience")
        wrong = [name for name in at_least_one if getattr(self, name) < 1]
        wrong += [name for name in above_zero if not 0 < getattr(self, name) < math.inf]
        wrong += [name for name in ("warmup", "settle") if not 0 <= getattr(self, name) < math.inf]
        if wrong:
            raise BenchRefused(f"{', '.join(wrong)}: out of range")
        if (self.serve and self.url is not None) or (self.pid is not None and self.url is None):
            raise BenchRefused("a pid goes with a URL, flags of serve go without one")

    @property
    def seconds(self) -> float:
        """The whole run's limit in seconds."""
        return 120 + 3 * (self.warmup + self.duration) if self.deadline is None else self.deadline


@dataclass(slots=True)
class Report:
    """What a run measured. None where the server's process is not known (`pid`) or nothing arrived."""

    workload: str
    subscribers: int
    failed_connects: int
    connects_per_s: float
    memory_kb_per_connection: float | None
    events: int
    failed_posts: int
    closed_early: int
    deliveries: int
    deliveries_per_s: float
    deliveries_per_cpu_s: float | None
    latency_p50_ms: float | None
    latency_p99_ms: float | None
    latency_max_ms: float | None
    wire_bytes_per_delivery: float | None
    lost: int
    doubled: int
    stalled: bool
    load_cpu_share: float
    first_error: str | None

    @property
    def clean(self) -> bool:
        """Nothing was lost or doubled, and nothing failed."""
        return not (self.lost or self.doubled or self.stalled or self.errors)

    @property
    def errors(self) -> int:
        """Connections and POSTs that failed, and streams that the server ended."""
        return self.failed_connects + self.failed_posts + self.closed_early

    def table(self) -> list[tuple[str, str, str]]:
        """Rows of (label, value, unit), ready to print."""
        errors = f"{self.failed_connects} connects, {self.failed_posts} posts, {self.closed_early} streams ended"
        rows: list[tuple[str, float | str | None, str]] = [
            ("subscribers connected", self.subscribers, ""),
            ("connects", self.connects_per_s, "per second"),
            ("server memory", self.memory_kb_per_connection, "KB per connection"),
            ("events published", self.events, ""),
            ("deliveries", self.deliveries, ""),
            ("deliveries", self.deliveries_per_s, "per second"),
            ("deliveries", self.deliveries_per_cpu_s, "per server CPU second"),
            ("latency, median", self.latency_p50_ms, "ms"),
            ("latency, 99 %", self.latency_p99_ms, "ms"),
            ("latency, longest", self.latency_max_ms, "ms"),
            ("on the wire", self.wire_bytes_per_delivery, "bytes per delivery"),
            ("lost", self.lost, "stalled: nothing came any more" if self.stalled else ""),
            ("doubled", self.doubled, ""),
            ("errors", errors if self.errors else 0, self.first_error or ""),
            ("load's own CPU", 100 * self.load_cpu_share, "% of a core; near 100 the load is the limit"),
        ]
        return [
            (label, _shown(value), unit if value is not None else f"{unit}: {NOT_MEASURED}")
            for label, value, unit in rows
        ]


def _shown(value: float | str | None) -> str:
    match value:
        case None:
            return "-"
        case float():
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.2f}"
        case int():
            return f"{value:,}"
        case str():
            return value


# --- where the load goes ---------------------------------------------------------------------------------


class Target(NamedTuple):
    """A resolved server: connections go to `address`, the `Host` header says what the URL said."""

    address: str
    port: int
    host: str
    path: str

    def subscribe(self) -> bytes:
        """The request that opens a stream."""
        head = f"GET {self.path}/events HTTP/1.1\r\nHost: {self.host}\r\n"
        return f"{head}Accept: text/event-stream\r\nCache-Control: no-store\r\n\r\n".encode()

    def publish(self, data: str, key: str | None) -> bytes:
        """The request that broadcasts `data`."""
        bearer = f"Authorization: Bearer {key}\r\n" if key else ""
        head = f"POST {self.path}/broadcast HTTP/1.1\r\nHost: {self.host}\r\n{bearer}Content-Type: application/json\r\n"
        return f"{head}Content-Length: {len(data)}\r\n\r\n{data}".encode()


def resolve(url: str, allow_remote: bool = False) -> Target:
    """Find out where `url` leads, and refuse everything but this machine unless `allow_remote`.

    The name is looked up once and the address that was judged is the one connected to.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or 80
    except ValueError as wrong:
        raise BenchRefused(f"{url!r} is not a URL: {wrong}") from None
    if parts.scheme != "http" or not parts.hostname:
        raise BenchRefused(f"{url!r}: the load speaks plain http://host:port only")
    try:
        address = str(socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise BenchRefused(f"{parts.hostname}: {error.strerror}") from None
    if not (allow_remote or ipaddress.ip_address(address).is_loopback):
        raise BenchRefused(f"{parts.hostname} is {address}, not this machine: loading it must be allowed explicitly")
    return Target(address, port, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"))


def source(number: int, subscribers: int, address: str) -> tuple[str, int] | None:
    """The local address of one of `subscribers`, spread so that no source address runs out of ports."""
    sources = math.ceil(subscribers / PORTS_PER_SOURCE)
    if sources == 1 or sys.platform != "linux" or not address.startswith("127."):
        return None
    return f"127.0.0.{1 + number % sources}", 0


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one, for this process and the server it starts; the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS reports a hard limit that it does not grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def check_descriptors(load: Load, limit: int) -> None:
    """Refuse more connections than this process may hold."""
    room = limit - SPARE_DESCRIPTORS - load.inflight
    if load.subscribers > room:
        raise BenchRefused(
            f"{load.subscribers} subscribers need more open files than the {limit} allowed here: "
            f"at most {room}, or raise the limit (ulimit -n)"
        )


# --- the server's process --------------------------------------------------------------------------------


class Usage(NamedTuple):
    """What a process and its children have used: CPU seconds since their start, resident KB now."""

    cpu: float
    rss_kb: int


class Process(NamedTuple):
    """A line of the process table."""

    pid: int
    parent: int
    cpu: float
    rss_kb: int


def usage(pid: int) -> Usage | None:
    """CPU time and memory of a process and its descendants, or None when it is gone."""
    table = {row.pid: row for row in (from_proc() if sys.platform == "linux" else from_ps())}
    if pid not in table:
        return None
    family = {pid}
    while more := {row.pid for row in table.values() if row.parent in family} - family:
        family |= more
    return Usage(sum(table[member].cpu for member in family), sum(table[member].rss_kb for member in family))


def from_proc() -> Iterator[Process]:
    """The process table of Linux."""
    tick = os.sysconf("SC_CLK_TCK")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it may end while we look
            # proc(5): after the name in parentheses, state is field 3, ppid 4, utime 14, stime 15
            fields = (entry / "stat").read_text("ascii", "replace").rpartition(")")[2].split()
            cpu = (int(fields[11]) + int(fields[12])) / tick
            resident = _RESIDENT.search((entry / "status").read_bytes())  # none for a kernel thread or a zombie
            yield Process(int(entry.name), int(fields[1]), cpu, int(resident[1]) if resident else 0)


def from_ps() -> Iterator[Process]:
    """The process table of macOS and other systems without /proc."""
    done = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,rss=,time="], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        pid, parent, rss, spent = line.split()
        yield Process(int(pid), int(parent), cpu_seconds(spent), int(rss))


def cpu_seconds(text: str) -> float:
    """Seconds of what `ps` prints as CPU time: `[[days-]hours:]minutes:seconds[.hundredths]`."""
    days, _, clock = text.rpartition("-")
    seconds = 0.0
    for part in clock.split(":"):
        seconds = seconds * 60 + float(part)
    return seconds + 86_400 * int(days or 0)


class Server(NamedTuple):
    """A server that `start_server` started."""

    url: str
    pid: int


def two_cores() -> bool:
    """Whether server and load can each be given cores of their own."""
    return sys.platform == "linux" and len(os.sched_getaffinity(0)) > 1


@contextlib.contextmanager
def start_server(flags: Sequence[str] = (), command: Sequence[str] = SERVE) -> Iterator[Server]:
    """Start a server on a free port, on other cores than the load's, and stop it with SIGTERM on the way out.

    It must print its address (`http://127.0.0.1:PORT`) within 20 s. This blocks while the server starts and stops.
    Raises `BenchFailed` with its last words when it does not start.
    """
    with tempfile.TemporaryFile() as log, _apart() as leave:
        process = subprocess.Popen([*command, *flags], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            leave()
            yield Server(_printed_address(process, log.fileno()), process.pid)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _printed_address(process: subprocess.Popen[bytes], log: int) -> str:
    limit = time.monotonic() + START_SECONDS
    while time.monotonic() < limit:
        ended = process.poll() is not None  # asked before reading, so that nothing written is overlooked
        text = os.pread(log, 1 << 20, 0)
        if found := _ADDRESS.search(text):
            return found[0].decode()
        if ended:
            break
        time.sleep(0.02)
    last_words = os.pread(log, 1 << 20, 0).decode(errors="replace").strip()[-2000:]
    raise BenchFailed(f"the server did not start:\n{last_words}")


@contextlib.contextmanager
def _apart() -> Iterator[Callable[[], None]]:
    """Run first where the server shall be (children inherit it), then, once left, on the last core alone."""
    if sys.platform != "linux" or not two_cores():
        yield lambda: None
        return
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:-1])
    try:
        yield lambda: os.sched_setaffinity(0, cores[-1:])
    finally:
        os.sched_setaffinity(0, cores)


# --- one stream ------------------------------------------------------------------------------------------


class ChunkedDecoder:
    """Chunked transfer coding (RFC 9112 section 7.1), fed with whatever the socket gave. Trailers are ignored."""

    __slots__ = ("_left", "_rest", "ended")

    def __init__(self) -> None:
        self._left = 0  # bytes of the current chunk still to come
        # The line end before a size belongs to the chunk before; taken as part of the size line there is one
        # pattern for all sizes, and the first one gets the line end that it lacks.
        self._rest = b"\r\n"
        self.ended = False

    @property
    def between_chunks(self) -> bool:
        """Whether the next byte starts a chunk, as it did at first."""
        return not self._left and self._rest == b"\r\n" and not self.ended

    def feed(self, data: bytes) -> bytes:
        """The body bytes in `data`. Raises `ValueError` when it is not chunked."""
        data, self._rest = self._rest + data, b""
        parts, position = [], 0
        while not self.ended:
            if self._left:
                part = data[position : position + self._left]
                parts.append(part)
                position += len(part)
                self._left -= len(part)
                if self._left:
                    break
            size = _CHUNK.match(data, position)
            if not size:
                self._rest = data[position:]
                started = b"\r\n".startswith(self._rest[:2])
                if not started or b"\r\n" in self._rest[2:] or len(self._rest) > HEAD_MAX:
                    raise ValueError("not a chunk size")
                break
            self._left = int(size[1], 16)
            self.ended = not self._left
            position = size.end()
        return b"".join(parts) if len(parts) != 1 else parts[0]


def status_of(head: bytes) -> int:
    """The status of a response head, 0 for what is none."""
    found = _STATUS.match(head)
    return int(found[1]) if found else 0


def answer(data: bytes) -> int | None:
    """The status of a whole response with its body, None while some of it has yet to come."""
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        return None
    if _CHUNKED.search(head):
        decoder = ChunkedDecoder()
        decoder.feed(body)
        complete = decoder.ended and data.endswith(b"\r\n\r\n")  # all of it: the next answer follows on the connection
    else:
        length = _LENGTH.search(head)
        complete = len(body) >= (int(length[1]) if length else 0)
    return status_of(head) if complete else None


def percentile(counts: Mapping[int, int], share: float) -> int | None:
    """The smallest value that at least `share` of all counted values do not exceed (nearest rank)."""
    rank = max(1, math.ceil(share * sum(counts.values())))
    for value in sorted(counts):
        rank -= counts[value]
        if rank <= 0:
            return value
    return None


class Batch(NamedTuple):
    """The events found in one read: their numbers and when each was sent."""

    numbers: list[int]
    sent: list[int]
    low: int
    high: int
    whole: bool  # each number from low to high once, in whatever order


def find_markers(pattern: re.Pattern[bytes], text: bytes) -> tuple[Batch | None, bytes]:
    """The markers in `text`, and a started one at its end that the next read has to complete."""
    found = pattern.findall(text)
    start = text.rfind(b"@")
    rest = text[start:] if start > text.rfind(b"!") and len(text) - start < MARKER_MAX else b""
    if not found:
        return None, rest
    numbers, sent = [int(number) for number, _ in found], [int(moment) for _, moment in found]
    low, high = min(numbers), max(numbers)
    return Batch(numbers, sent, low, high, high - low + 1 == len(numbers) == len(set(numbers))), rest


class Tally:
    """What was published and what arrived, over all subscribers of a run.

    `owed` counts the deliveries that are still to come if all goes well: the publishers' window and the end of a
    run wait for it. Lost and doubled are counted from the numbers themselves.
    """

    def __init__(self, run: str) -> None:
        self.run = run
        self.pattern = re.compile(rb"@" + run.encode() + rb"\.(\d+)\.(\d+)!")
        self.memo: dict[bytes, Batch | None] = {}
        self.streams: set[Subscriber] = set()
        self.published = 0
        self.failed: set[int] = set()  # numbers whose POST failed: nobody has to get them
        self.owed = 0
        self.deliveries = 0
        self.doubled = 0
        self.ended: list[Subscriber] = []  # those that the server closed
        self.bytes = 0
        self.reads = 0
        self.last_arrival = 0
        self.late: defaultdict[int, int] = defaultdict(int)  # latency in ns, to 10 bits, -> count
        self.first_error: str | None = None
        self._wake_below = -1
        self._moved = asyncio.Event()

    def error(self, text: str) -> None:
        """Keep the first of what went wrong, for the report."""
        self.first_error = self.first_error or text

    def begin(self) -> None:
        """Measure from here on: lost and doubled stay, everything else starts again."""
        self.deliveries = self.bytes = self.last_arrival = 0
        self.late.clear()

    def publish(self) -> int:
        """The number of the next event, which every open stream is to get."""
        self.published += 1
        self.owed += len(self.streams)
        return self.published

    def fail(self, number: int, why: str) -> None:
        """The POST of this event failed; who gets it nevertheless counts for nothing."""
        self.error(why)
        self.owed -= sum(1 for stream in self.streams if stream.lacks(number))
        self.failed.add(number)
        self._wake()

    def opened(self, stream: "Subscriber") -> None:
        self.streams.add(stream)

    def closed(self, stream: "Subscriber") -> None:
        """The server ended a stream: what it had not brought yet is lost."""
        if stream in self.streams:
            self.owed -= stream.lost()
            self.streams.discard(stream)
            stream.until = self.published
            self.ended.append(stream)
            self.error("the server ended a stream")
            self._wake()

    def lost(self) -> int:
        """Deliveries that were due and did not come."""
        return sum(stream.lost() for stream in itertools.chain(self.streams, self.ended))

    def arrived(self, sent: Sequence[int], now: int) -> None:
        """Count deliveries that came for the first time."""
        self.deliveries += len(sent)
        self.owed -= len(sent)
        self.last_arrival = now
        late = self.late
        for moment in sent:
            took = now - moment
            shift = took.bit_length() - 10
            late[took >> shift << shift if shift > 0 else took] += 1
        if self.owed <= self._wake_below:
            self._wake()

    def _wake(self) -> None:
        self._wake_below = -1
        self._moved.set()
        self._moved.clear()

    async def until_owed(self, window: int, patience: float) -> bool:
        """Wait until a stream lacks fewer than `window` events on average.

        False when nothing came for `patience` seconds, or when no stream is left.
        """
        while self.streams and self.owed > (most := (window - 1) * len(self.streams)):
            self._wake_below = max(self._wake_below, most)
            before = self.last_arrival
            try:
                async with asyncio.timeout(patience):
                    await self._moved.wait()
            except TimeoutError:
                if self.last_arrival == before:
                    self.error(f"nothing came for {patience:g} s")
                    return False
        return bool(self.streams)


class Subscriber(asyncio.Protocol):
    """One open stream: sends the GET, checks the answer, decodes, and keeps account of the numbers."""

    __slots__ = (
        *("_body", "_carry", "_clean", "_head", "_missing", "_opened", "_request", "_tally", "_transport"),
        *("highest", "until"),
    )

    def __init__(self, tally: Tally, request: bytes, opened: asyncio.Future[None]) -> None:
        self._tally = tally
        self._request = request
        self._opened: asyncio.Future[None] | None = opened
        self._head = b""
        self._transport: asyncio.Transport | None = None
        self._body: ChunkedDecoder | None = None
        self._clean = False  # between chunks and between markers: equal bytes mean equal events
        self._carry = b""
        self._missing: set[int] = set()  # numbers passed over so far
        self.highest = tally.published
        self.until: int | None = None  # how many events were published when the server closed

    def itself(self) -> Self:
        """The protocol factory of the one connection."""
        return self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not subclasses
        self._transport.write(self._request)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._opened:
            self._fail(f"connection closed before the answer{f': {exc}' if exc else ''}")
        self._tally.closed(self)

    def close(self) -> None:
        """Leave. What comes from now on is not counted."""
        self._opened = None
        self._tally.streams.discard(self)
        self._abort()

    def data_received(self, data: bytes) -> None:
        now, tally = time.monotonic_ns(), self._tally
        if self._opened and not (data := self._read_head(data)):
            return
        tally.bytes += len(data)
        tally.reads += 1
        try:
            batch = tally.memo[data] if self._clean and data in tally.memo else self._parse(data)
        except ValueError as error:
            tally.error(f"stream: {error}")
            self._abort()
            return
        if batch:
            tally.arrived(self._fresh(batch), now)
        if self._body and self._body.ended:
            self._abort()

    def _abort(self) -> None:
        if self._transport:
            self._transport.abort()

    def _read_head(self, data: bytes) -> bytes:
        """Take in the answer's head; what follows it."""
        self._head += data
        head, end, body = self._head.partition(b"\r\n\r\n")
        if not end and len(self._head) <= HEAD_MAX:
            return b""
        if status_of(head) != 200 or not end:
            line = head[:80].partition(b"\r\n")[0]
            self._fail(f"answered {line.decode('ascii', 'replace')}")
            return b""
        self._head = b""
        self._body = ChunkedDecoder() if _CHUNKED.search(head) else None
        self._clean = True
        if self._opened and not self._opened.done():  # done: given up in this very turn of the loop
            self._opened.set_result(None)
        self._opened = None
        self._tally.opened(self)
        return body

    def _fail(self, why: str) -> None:
        if self._opened and not self._opened.done():
            self._opened.set_exception(ConnectionError(why))
        self._opened = None
        self._abort()

    def _parse(self, data: bytes) -> Batch | None:
        tally, was_clean = self._tally, self._clean
        body = self._body.feed(data) if self._body else data
        batch, self._carry = find_markers(tally.pattern, self._carry + body)
        self._clean = self._body is not None and self._body.between_chunks and not self._carry
        if was_clean and self._clean:
            if len(tally.memo) >= MEMO_MAX:
                tally.memo.clear()
            tally.memo[data] = batch
        return batch

    def _fresh(self, batch: Batch) -> list[int]:
        """The sending times of those events that are here for the first time."""
        if batch.whole and batch.low == self.highest + 1 and not self._missing and not self._tally.failed:
            self.highest = batch.high
            return batch.sent
        return [sent for number, sent in zip(batch.numbers, batch.sent, strict=True) if self._take(number)]

    def _take(self, number: int) -> bool:
        if self.lacks(number):
            self._missing.update(range(self.highest + 1, number))
            self._missing.discard(number)
            self.highest = max(self.highest, number)
            return number not in self._tally.failed
        self._tally.doubled += 1
        return False

    def lacks(self, number: int) -> bool:
        """Whether an event has not come yet."""
        return number > self.highest or number in self._missing

    def lost(self) -> int:
        """How many events that were published without failing have not come."""
        due = self._tally.published if self.until is None else self.until
        excused = sum(1 for number in self._tally.failed if number <= due and self.lacks(number))
        return due - self.highest + len(self._missing) - excused


class Poster(asyncio.Protocol):
    """A kept connection that POSTs one event at a time."""

    def __init__(self) -> None:
        self.usable = False
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[int] | None = None
        self._buffer = b""

    async def post(self, request: bytes) -> int:
        """The status of the answer. Raises `OSError` when there is none."""
        assert self._transport
        self._buffer = b""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self.usable = False
        if self._transport:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self.usable = cast(asyncio.Transport, transport), True

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._answer or self._answer.done():
            return
        try:
            status = answer(self._buffer)
        except ValueError as error:
            self._answer.set_exception(ConnectionError(str(error)))
            return
        if status is not None:
            self._buffer = b""
            self._answer.set_result(status)

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        if self._answer and not self._answer.done():
            self._answer.set_exception(exc or ConnectionError("connection closed before the answer"))


# --- the run ---------------------------------------------------------------------------------------------


class Publishers:
    """Up to `inflight` POSTs at a time, paced by the workload."""

    def __init__(self, load: Load, target: Target, tally: Tally) -> None:
        self._load, self._target, self._tally = load, target, tally
        self._idle: list[Poster] = []
        self._at_once, self._window = (1, 1) if load.workload == "closed" else (load.inflight, load.window)
        self._started = self._ends = self._taken = 0
        self._most: float = 0
        self.stalled = False

    async def publish(self, seconds: float, events: int | None = None) -> None:
        """Publish for `seconds` or `events`, then wait until everyone has everything, or nothing comes any more."""
        self._idle = [await self._poster() for _ in range(self._at_once)]
        self._most = math.inf if events is None else events
        self._taken, self._started = 0, time.monotonic_ns()
        self._ends = self._started + int(seconds * NS)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._at_once):
                    group.create_task(self._work())
            if not self.stalled:
                self.stalled = not await self._tally.until_owed(1, self._load.patience) and self._tally.owed > 0
        finally:
            for poster in self._idle:
                poster.close()

    async def _work(self) -> None:
        while (sent := await self._turn()) is not None:
            await self._post(self._tally.publish(), sent)

    async def _turn(self) -> int | None:
        """Wait until the next event may be sent; the moment from which its latency counts, None when it is over."""
        if self._load.workload == "rate":
            moment = self._started + int(self._taken * NS / self._load.rate)
        elif await self._tally.until_owed(self._window, self._load.patience):
            moment = time.monotonic_ns()
        else:
            self.stalled = self._tally.owed > 0
            return None
        if moment >= self._ends or self._taken >= self._most or len(self._tally.failed) >= FAILURES_MAX:
            return None
        self._taken += 1
        await _until(moment)
        return moment

    async def _post(self, number: int, sent: int) -> None:
        tally, load = self._tally, self._load
        data = event_data(tally.run, number, sent, load.payload)
        poster = self._idle.pop()
        try:
            async with asyncio.timeout(load.patience):
                if not poster.usable:
                    poster = await self._poster()
                status = await poster.post(self._target.publish(data, load.publish_key))
            if not 200 <= status < 300:
                tally.fail(number, f"POST answered {status}")
        except OSError as error:
            poster.close()
            tally.fail(number, f"POST: {str(error) or 'no answer in time'}")
        finally:
            self._idle.append(poster)

    async def _poster(self) -> Poster:
        connect = asyncio.get_running_loop().create_connection
        _, poster = await connect(Poster, self._target.address, self._target.port)
        return poster


async def _until(moment: int) -> None:
    """Sleep until a time of the monotonic clock; uvloop's timers have 1 ms, so the last one is spent turning."""
    while (left := moment - time.monotonic_ns()) > 0:  # noqa: ASYNC110 (a time, not an event)
        await asyncio.sleep(max(0.0, left / NS - 0.001))


def event_data(run: str, number: int, sent: int, payload: int) -> str:
    """An event's data: JSON, since some hubs take nothing else, of `payload` bytes if the marker leaves that room."""
    marker = f'{{"bench":"@{run}.{number}.{sent}!'
    return marker.ljust(payload - 2, "x") + '"}'


async def _connect(load: Load, target: Target, tally: Tally) -> None:
    """Open all streams that can be opened, `CONNECTING` at a time."""
    loop, numbers, request = asyncio.get_running_loop(), iter(range(load.subscribers)), target.subscribe()

    async def connect_some() -> None:
        for number in numbers:
            opened: asyncio.Future[None] = loop.create_future()
            stream = Subscriber(tally, request, opened)
            local = source(number, load.subscribers, target.address)
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await loop.create_connection(stream.itself, target.address, target.port, local_addr=local)
                    await opened
            except OSError as error:
                stream.close()
                tally.error(f"GET: {str(error) or 'no answer in time'}")

    async with asyncio.TaskGroup() as group:
        for _ in range(min(CONNECTING, load.subscribers)):
            group.create_task(connect_some())


class Turning:
    """Keeps the loop turning without sleeping, and tells how long nothing was to be done."""

    def __init__(self, tally: Tally) -> None:
        self.idle = 0  # ns of turns in which nothing was read
        self._tally = tally
        self._seen = 0
        self._last = time.monotonic_ns()
        self._next = asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        now, seen = time.monotonic_ns(), self._tally.reads
        if seen == self._seen:
            self.idle += now - self._last
        self._seen, self._last = seen, now
        self._next = asyncio.get_running_loop().call_soon(self._turn)

    def stop(self) -> None:
        self._next.cancel()


async def run(load: Load) -> Report:
    """Do what `load` says and report. Starts a server of its own when no URL is given, and stops it.

    Wants a loop of its own, uvloop's if there is one. Raises `BenchRefused` before anything is connected, and
    `BenchFailed` when the server does not start, takes no subscriber, or the deadline passes.
    """
    check_descriptors(load, raise_descriptor_limit())
    if load.pid is not None and not usage(load.pid):
        raise BenchRefused(f"pid {load.pid}: no such process")
    try:
        async with asyncio.timeout(load.seconds):
            if load.url is not None:
                return await _measure(load, resolve(load.url, load.allow_remote), load.pid)
            load = replace(load, busy=two_cores() if load.busy is None else load.busy)
            with start_server(load.serve) as server:
                return await _measure(load, resolve(server.url), server.pid)
    except TimeoutError:
        raise BenchFailed(f"not finished within {load.seconds:g} s") from None
    except OSError as error:
        raise BenchFailed(f"the server is out of reach: {error}") from error


class _Moment(NamedTuple):
    """Where the clocks (ns), our own time spent (ns) and the counters stand at some point of the run."""

    clock: int
    spent: int
    server: Usage | None
    published: int


class _Course(NamedTuple):
    """The points of a run between which its figures are taken."""

    start: _Moment
    connected: _Moment
    settled: _Moment
    before: _Moment
    after: _Moment


async def _measure(load: Load, target: Target, pid: int | None) -> Report:
    tally = Tally(secrets.token_hex(2))
    publishers = Publishers(load, target, tally)

    turning = Turning(tally) if load.busy else None

    def moment(of: int | None = pid) -> _Moment:
        clock = time.monotonic_ns()
        spent = clock - turning.idle if turning else time.process_time_ns()
        return _Moment(clock, spent, usage(of) if of else None, tally.published)

    try:
        start = moment()
        await _connect(load, target, tally)
        connected = moment(None)
        if not tally.streams:
            raise BenchFailed(f"no subscriber could connect: {tally.first_error}")
        await asyncio.sleep(load.settle)
        settled = moment()
        gc.freeze()  # a full collection over all these streams would show as latency
        if load.warmup:
            await publishers.publish(load.warmup)
        tally.begin()
        before = moment()
        if not publishers.stalled:
            await publishers.publish(load.duration, load.events)
        course = _Course(start, connected, settled, before, moment())
        return _report(load, tally, course, publishers.stalled)
    finally:
        gc.unfreeze()
        if turning:
            turning.stop()
        for stream in list(tally.streams):
            stream.close()
        await asyncio.sleep(0)  # the loop closes them in its next turn


def _report(load: Load, tally: Tally, course: _Course, stalled: bool) -> Report:
    start, connected, settled, before, after = course
    subscribers = len(tally.streams) + len(tally.ended)
    grown = settled.server.rss_kb - start.server.rss_kb if start.server and settled.server else None
    spent = after.server.cpu - before.server.cpu if before.server and after.server else None
    wall = (tally.last_arrival - before.clock) / NS
    return Report(
        workload=load.workload,
        subscribers=subscribers,
        failed_connects=load.subscribers - subscribers,
        connects_per_s=subscribers * NS / (connected.clock - start.clock),
        memory_kb_per_connection=None if grown is None else grown / subscribers,
        events=after.published - before.published,
        failed_posts=len(tally.failed),
        closed_early=len(tally.ended),
        deliveries=tally.deliveries,
        deliveries_per_s=tally.deliveries / wall if wall > 0 else 0.0,
        deliveries_per_cpu_s=tally.deliveries / spent if spent else None,
        latency_p50_ms=_ms(percentile(tally.late, 0.5)),
        latency_p99_ms=_ms(percentile(tally.late, 0.99)),
        latency_max_ms=_ms(percentile(tally.late, 1)),
        wire_bytes_per_delivery=tally.bytes / tally.deliveries if tally.deliveries else None,
        lost=tally.lost(),
        doubled=tally.doubled,
        stalled=stalled,
        load_cpu_share=(after.spent - before.spent) / (after.clock - before.clock),
        first_error=tally.first_error,
    )


def _ms(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e6
