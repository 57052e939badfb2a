"""The script of a history: what publishers and clients do, made from nothing but the history's number.

Left out on purpose is all that may change without a change of the wire: reading in the middle of a replay (where a page
ends), bounds of the log in bytes (how bytes are counted), refused names (which topics are allowed), and each step whose
outcome depends on how often the loop turns.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from random import Random
from typing import Any, TypeVar

T = TypeVar("T")

HISTORIES = 2_000
ENDLESS = 3_600.0  # seconds between heartbeats: none comes within a history
ROUND = 10_000  # publications in the log: none of a history is trimmed


class Way(Enum):
    """The ways to drive a hub: by ``subscribe`` and ``read``, as an ASGI app, over a log in a file, over sockets."""

    HUB = "hub"
    APP = "app"
    FILE = "file"
    SOCKET = "socket"


# The first number behind each way's last. Files and sockets need threads, so there is no virtual time, and their
# histories have no clocks and no heartbeats.
ENDS = {Way.HUB: 1_450, Way.APP: 1_850, Way.FILE: 1_965, Way.SOCKET: HISTORIES}


@dataclass(frozen=True)
class Draft:
    """A publication to be made. ``data`` other than a str is sent as JSON."""

    data: object
    topic: str | list[str] | None = None
    event: str = "message"
    to: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    key: str | None = None


@dataclass(frozen=True)
class Cursor:
    """The position with which a client connects: ``back`` offsets behind the top of the log, in the log's epoch or
    another one.
    """

    back: int = 0
    epoch: str | None = None


@dataclass(frozen=True)
class StreamRequest:
    """A request for a stream. ``after`` is a cursor, or text that is none; ``since`` is in seconds before now."""

    topics: tuple[str, ...] = ()
    client: str | None = None
    after: Cursor | str | None = None
    last: int | None = None
    since: float | None = None


@dataclass(frozen=True)
class Publish:
    """Publish all drafts in one turn of the loop."""

    drafts: tuple[Draft, ...]


@dataclass(frozen=True)
class Open:
    name: str
    asked: StreamRequest


@dataclass(frozen=True)
class Read:
    """Read what has arrived so far. A client that is not read is slow: its queue fills."""

    name: str


@dataclass(frozen=True)
class Close:
    name: str


@dataclass(frozen=True)
class Resume:
    """The connection breaks; the client comes back with the last id that it was given, and its filters."""

    name: str


@dataclass(frozen=True)
class Wait:
    """Let seconds pass: for the hub's heartbeats, for the log's ages, and for the times of publications."""

    beats: float
    ages: float
    wall: float


@dataclass(frozen=True)
class Head:
    """A HEAD request for a stream."""

    asked: StreamRequest


@dataclass(frozen=True)
class Stop:
    """Every stream ends with its queue and a bye: drained over ``window`` seconds, or at once. The hub is started
    again, over a new log if that is in memory.
    """

    window: float | None = None


Step = Publish | Open | Read | Close | Resume | Wait | Head | Stop


@dataclass(frozen=True)
class Script:
    number: int
    way: Way
    log: dict[str, Any]
    hub: dict[str, Any]
    steps: tuple[Step, ...]


def script(number: int) -> Script:
    """The script of this history: the same in every process, on every Python."""
    return _Author(number).write()


def way_of(number: int) -> Way:
    return next(way for way, end in ENDS.items() if number < end)


CLIENTS = ("ann", "bob", "till-3")
TYPES = ("order", "order.created", "tick", "preço 漢", "a b")
TOPICS = ("a", "a/b", "a/b/c", "a/x", "b", "b/x/d", "orders/42", "ürün/é", "c c")
PATTERNS = (*TOPICS, "*", "**", "a/*", "a/**", "a/*/c", "b/*/d", "orders/*", "ürün/**", "quiet", "quiet/*")
BAD_PATTERNS = ("a/**/b", "**/a", "a\nb")
MALFORMED = ("junk", "-", "e-", "e-01", "E-5", "e-1234567890123456789", "🙂-1", "a b-3", "e--1", '"e-3"')
TEXTS = (
    "",
    " ",
    "\n",
    "\r\n",
    "\r",
    "a\nb",
    "a\r\nb\r\n",
    "a\rb\n\r\nc",
    " leading",
    "trailing ",
    ":colon",
    "data: not a field",
    "id: x\nevent: y\n\ndata: z",
    "retry: 1",
    "\ufeffbom",
    "nul\0nul",
    "tab\tbell\x07",
    "\x85\u2028\u2029\x0b\x0c",
    "é – 日本語 👩\u200d👩\u200d👧",
    "e\u0301 is not é",
    '{"already": "JSON"}',
    "back\\slash \\n",
)
VALUES: tuple[object, ...] = (
    None,
    True,
    0,
    -1.5,
    10**15,
    [],
    {},
    {"n": 1, "text": 'é\n\r\t"\\ \u2028 </script>'},
    [1, "two", None, {"three": [3.25]}],
    {"nested": {"nested": {"nested": [[]]}}},
)
LENGTHS = (100, 1_000, 1_025, 8_192, 70_000)  # characters of a long line


@dataclass
class _Author:
    number: int
    heartbeat: float = ENDLESS
    steps: list[Step] = field(default_factory=list)
    open: dict[str, StreamRequest] = field(default_factory=dict)
    opened: int = 0

    def __post_init__(self) -> None:
        self.random = Random(self.number)
        self.way = way_of(self.number)
        self.threads = self.way in (Way.FILE, Way.SOCKET)

    def write(self) -> Script:
        log, hub = self._settings()
        for _ in range(self._between(1, 3)):
            self._publish()
        self._open()
        for _ in range(self._between(5, 16)):
            self._pick(self._kinds())()
        if self.way is Way.SOCKET:  # a server closes its streams one by one within its shutdown's timeout
            self.steps += [step for name in self.open for step in (Read(name), Close(name))]
        return Script(self.number, self.way, log, hub, tuple(self.steps))

    # Choices. Only random() is used of the generator: Python keeps its numbers for a seed in every version.

    def _chance(self, share: float) -> bool:
        return self.random.random() < share

    def _between(self, low: int, high: int) -> int:
        return low + int(self.random.random() * (high - low + 1))

    def _pick(self, options: Sequence[T]) -> T:
        return options[int(self.random.random() * len(options))]

    def _some(self, options: Sequence[T], low: int, high: int) -> tuple[T, ...]:
        return tuple(dict.fromkeys(self._pick(options) for _ in range(self._between(low, high))))

    def _settings(self) -> tuple[dict[str, Any], dict[str, Any]]:
        log: dict[str, Any] = {"history": self._pick((3, 8, ROUND, ROUND)), "history_age": 86_400.0}
        hub: dict[str, Any] = {"heartbeat": ENDLESS, "queue": self._pick((1, 2, 5, 1_000, 1_000))}
        if self._chance(0.5):
            hub |= {"retry_min": self._pick((0.5, 3.0)), "retry_max": self._pick((3.0, 20.0))}
        if self._chance(0.08):
            hub["max_subscribers"] = 2
        if self._chance(0.2):  # the queue runs over anywhere, so nothing may be trimmed meanwhile
            log["history"], hub["queue_bytes"] = ROUND, 1_024
        if self.threads or self.way is Way.APP:  # the transport takes an unknown part of what a queue would hold
            log["history"] = ROUND if hub["queue"] < 1_000 or "queue_bytes" in hub else log["history"]
        if self.threads:
            hub.pop("max_subscribers", None)
        elif self._chance(0.4):
            hub["heartbeat"] = self._pick((0.7, 1.3, 15.0))
            log["history_age"] = self._pick((40.0, 86_400.0))
            log["idempotency_window"] = self._pick((20.0, 300.0))
        if self.way is Way.APP and hub["heartbeat"] != ENDLESS:  # a full transport takes no heartbeat
            hub["queue"] = 1_000
        self.heartbeat = hub["heartbeat"]
        return log, hub

    def _kinds(self) -> tuple[Any, ...]:
        kinds: tuple[Any, ...] = (self._publish,) * 8 + (self._read,) * 5 + (self._open,) * 4 + (self._resume,) * 2
        kinds += (self._close,)
        if self.way in (Way.APP, Way.SOCKET) and self._chance(0.2):
            kinds += (self._head,)
        if self.way is not Way.SOCKET and self._chance(0.15):
            kinds += (self._stop,)
        if self.threads:
            return kinds
        if self.heartbeat != ENDLESS:
            return (*kinds, self._wait, self._wait)
        return (*kinds, self._burst) if self._chance(0.25) else kinds

    # Steps

    def _publish(self) -> None:
        count = self._pick((1, 1, 1, 2, 3, 7))
        self.steps.append(Publish(tuple(self._draft() for _ in range(count))))

    def _draft(self) -> Draft:
        if self._chance(0.04):
            return self._refused()
        data: object = self._pick(TEXTS)
        if self._chance(0.25):
            data = self._pick(VALUES)
        elif self._chance(0.06):
            data = self._pick("xé漢") * self._pick(LENGTHS)
        elif self._chance(0.4):
            data = f"number {self._between(0, 999)}"
        topics = self._some(TOPICS, 0, 1) if self._chance(0.75) else self._some(TOPICS, 2, 5)
        return Draft(
            data,
            None if not topics else topics[0] if len(topics) == 1 else list(topics),
            self._pick(TYPES) if self._chance(0.25) else "message",
            self._some(CLIENTS, 1, 2) if self._chance(0.12) else (),
            self._some(CLIENTS, 1, 2) if self._chance(0.1) else (),
            self._pick(("k1", "k2", "k3")) if self._chance(0.08) else None,
        )

    def _refused(self) -> Draft:
        return self._pick(
            (
                Draft("x", event="welcome"),
                Draft("x", event="gap"),
                Draft("x", event="two\nlines"),
                Draft("x", topic="a/*"),
                Draft("x", topic=""),
                Draft("x", to=("no name",)),
                Draft("x", exclude=("no/name",)),
                Draft("x", key="no key"),
                Draft("x", topic=[f"t/{number}" for number in range(17)]),
            )
        )

    def _open(self) -> None:
        self.opened += 1
        name = f"s{self.opened}"
        self.open[name] = asked = self._request()
        self.steps.append(Open(name, asked))
        self._catch_up(name)

    def _request(self) -> StreamRequest:
        topics = self._some(PATTERNS, 0, 1) if self._chance(0.7) else self._some(PATTERNS, 2, 12)
        if self._chance(0.02):
            topics = (*topics, self._pick(BAD_PATTERNS))
        after: Cursor | str | None = None
        last: int | None = None
        since: float | None = None
        match self._between(0, 9):
            case 0 | 1 | 2:
                after = self._cursor()
            case 3 | 4:
                last = self._pick((0, 1, 2, 3, 5, 100, 1_000_000))
            case 5:
                since = self._pick((-5.0, 0.0, 2.0, 5.0, 9.0, 60.0, 86_400.0))
            case _:
                pass
        return StreamRequest(topics, self._pick((*CLIENTS, None)), after, last, since)

    def _cursor(self) -> Cursor | str:
        match self._between(0, 9):
            case 0:
                return self._pick(MALFORMED)
            case 1:
                return Cursor(self._between(0, 9), epoch=self._pick(("e", "0123456789ab", "z" * 32)))
            case 2:
                return Cursor(-self._between(1, 9))
            case 3:
                return Cursor(1_000)
            case _:
                return Cursor(self._between(0, 12))

    def _read(self) -> None:
        if self.open:
            names = self.open if self._chance(0.5) else [self._pick(list(self.open))]
            self.steps.extend(Read(name) for name in names)

    def _close(self) -> None:
        if self.open:
            name = self._pick(list(self.open))
            del self.open[name]
            self.steps.append(Close(name))

    def _resume(self) -> None:
        if self.open:
            name = self._pick(list(self.open))
            if self._chance(0.5):
                self.steps += Read(name), Close(name)
                self._publish()
            self.steps.append(Resume(name))
            self._catch_up(name)

    def _catch_up(self, name: str) -> None:
        """Read at once on a socket: there a replay runs by itself, and the log may be trimmed before its end."""
        if self.way is Way.SOCKET:
            self.steps.append(Read(name))

    def _wait(self) -> None:
        ages = self._pick((0.5, 4.0, 21.5, 50.5))
        # Not a whole number of the 15 slots of heartbeats, so that nothing else happens in the moment of a heartbeat.
        beats = self.heartbeat * self._pick((0.37, 1.13, 2.29))
        self.steps.append(Wait(beats, ages, self._pick((ages, ages, -30.0))))

    def _head(self) -> None:
        self.steps.append(Head(StreamRequest(self._some(PATTERNS, 0, 2))))

    def _stop(self) -> None:
        self.open.clear()
        self.steps.append(
            Stop(self._pick((None, 0.5, 10.0)) if self.heartbeat == ENDLESS and not self.threads else None)
        )

    def _burst(self) -> None:
        """Publish so often that streams without a matching publication get a cursor."""
        count, topic = self._between(65, 150), self._pick(("noise", "a/x"))
        together = tuple(Draft(str(number), topic=topic) for number in range(count))
        for start in range(0, count, cut := self._pick((1, 10, 200))):
            self.steps.append(Publish(together[start : start + cut]))
