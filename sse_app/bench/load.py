"""The parameters of a run, and the limits that this machine sets to them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from sse_app import descriptors
from sse_app.errors import BenchRefused

Workload = Literal["connect", "closed", "burst", "rate", "slow", "publish", "resume"]

SPARE_DESCRIPTORS = 64  # for the event loop, the server's log and imports
PAYLOAD = 100
SLOW_PAYLOAD = 2_000  # bytes: enough to fill the buffers of a subscriber that does not read within seconds
PAYLOAD_MAX = 256 * 1024  # bytes, the default of body_max
SUBSCRIBERS, INFLIGHT = 1_000, 8
BATCH_MAX = 1_000  # events in a POST
BEHIND_MAX = 1_000  # events that a client has missed: as many as the nchan beside us keeps
# The loads of `publish`: POSTs at a time, and events in each. 64 keep a server's core busy, and of batches 8.
PUBLISHING = ((1, 1), (64, 1), (8, 10), (8, 100))


@dataclass(frozen=True, slots=True)
class Load:
    """The load to put on a server.

    workload:
        `connect`: all subscribers connect at once, and get one event
        `closed`: one event at a time, the next when everyone has the last
        `burst`: `inflight` POSTs at a time, and twice as many events on their way to the average subscriber
        `rate`: `rate` events per second, whatever comes back; latency counts from when each was due
        `slow`: as `rate`, while a share of the subscribers has stopped reading
        `publish`: `inflight` POSTs at a time of `batch` events each, and after each the next one, whoever has got the
            events
        `resume`: all subscribers come back at once, each has missed `behind` events; then they get one more
    subscribers: open streams, at most the descriptor limit less `inflight` and 64
    duration, warmup: seconds of publishing, measured and before; events: stop after so many, if sooner
    rate: events per second, of `rate` and `slow`
    inflight: POSTs at a time, at most
    batch: events in a POST of `publish`; more than one are lines of NDJSON
    behind: events that each client of `resume` has missed
    payload: bytes of an event's data, no fewer than its marker needs (about 45). None: 100, in `slow` 2,000
    slow: the share of subscribers that do not read in `slow`; their deliveries are not counted
    settle: seconds between the last connect and reading the server's memory
    patience: seconds without any delivery after which what is missing counts as lost
    token: sent as bearer token with every request
    publish_key: sent as bearer token with every POST, where there is no token

    Raises `BenchRefused` for values out of range.
    """

    workload: Workload = "closed"
    subscribers: int = SUBSCRIBERS
    duration: float = 5.0
    warmup: float = 0.5
    events: int | None = None
    rate: float = 50.0
    inflight: int = INFLIGHT
    batch: int = 1
    behind: int = 100
    payload: int | None = None
    slow: float = 0.1
    settle: float = 0.5
    patience: float = 5.0
    token: str | None = field(default=None, repr=False)
    publish_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.workload not in get_args(Workload):
            raise BenchRefused(f"workload must be one of {', '.join(get_args(Workload))}")
        wrong = [name for name in ("subscribers", "inflight") if getattr(self, name) < 1]
        wrong += [name for name in ("duration", "rate", "patience") if not 0 < getattr(self, name) < math.inf]
        wrong += [name for name in ("warmup", "settle") if not 0 <= getattr(self, name) < math.inf]
        wrong += ["payload"] * (not 1 <= self.data_size <= PAYLOAD_MAX)
        wrong += ["slow"] * (not 0 < self.slow < 1)
        wrong += ["batch"] * (not 1 <= self.batch <= (BATCH_MAX if self.workload == "publish" else 1))
        wrong += ["behind"] * (not 1 <= self.behind <= BEHIND_MAX)
        if wrong:
            raise BenchRefused(f"{', '.join(wrong)}: out of range")

    @property
    def title(self) -> str:
        """How the load is called in tables."""
        match self.workload:
            case "publish" if self.batch > 1:
                return f"publish, {self.inflight} at a time, {self.batch} events in each"
            case "publish":
                return f"publish, {self.inflight} at a time"
            case "resume":
                return f"resume, {self.behind} behind"
            case _:
                return self.workload

    @property
    def storm(self) -> bool:
        """True when it is the connecting that is measured: one event to all ends the run."""
        return self.workload in ("connect", "resume")

    @property
    def key(self) -> str | None:
        """The bearer token of a POST."""
        return self.token or self.publish_key

    @property
    def data_size(self) -> int:
        """Bytes of an event's data."""
        return (SLOW_PAYLOAD if self.workload == "slow" else PAYLOAD) if self.payload is None else self.payload

    @property
    def paced(self) -> bool:
        """True when events are sent by the clock rather than after deliveries."""
        return self.workload in ("rate", "slow")

    @property
    def posts(self) -> int:
        """The number of POSTs at a time."""
        return 1 if self.storm or self.workload == "closed" else self.inflight

    @property
    def window(self) -> int | None:
        """The number of events that may be on their way to the average subscriber. None for any number: the answers
        alone set the pace.
        """
        if self.workload == "publish":
            return None
        return 1 if self.posts == 1 else 2 * self.posts

    def reads(self, number: int) -> bool:
        """Return True when this subscriber reads. Those that do not are spread evenly; the first one reads."""
        return self.workload != "slow" or int((number + 1) * self.slow) == int(number * self.slow)

    def check_descriptors(self) -> None:
        """Refuse more connections than this process may hold."""
        limit = descriptors.limit()
        room = limit - SPARE_DESCRIPTORS - self.inflight
        if self.subscribers > room:
            raise BenchRefused(
                f"{self.subscribers} subscribers need more open files than the {limit} allowed here: "
                f"at most {room}, or raise the limit (ulimit -n)"
            )


def cases(
    load: Load, *, subscribers: int | None = None, inflight: int | None = None, batch: int | None = None
) -> list[Load]:
    """Return the loads that a workload stands for where these are not given: `publish` has one subscriber, and stands
    for several loads, unless it is given how many POSTs at a time or how many events in each.
    """
    publish = load.workload == "publish"
    if subscribers is None:
        subscribers = 1 if publish else SUBSCRIBERS
    kinds: Sequence[tuple[int, int]] = PUBLISHING
    if not publish or inflight is not None or batch is not None:
        kinds = ((INFLIGHT if inflight is None else inflight, batch if publish and batch is not None else 1),)
    return [replace(load, subscribers=subscribers, inflight=number, batch=events) for number, events in kinds]
