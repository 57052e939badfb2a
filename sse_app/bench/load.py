"""What a run does, and how much of it this machine allows."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from sse_app import descriptors
from sse_app.errors import BenchRefused

Workload = Literal["connect", "closed", "burst", "rate", "slow"]

SPARE_DESCRIPTORS = 64  # the loop's own, the server's log, imports under way
PAYLOAD = 100
SLOW_PAYLOAD = 2_000  # bytes: the buffers of who does not read have to fill within seconds
PAYLOAD_MAX = 256 * 1024  # what a hub takes (body_max)


@dataclass(frozen=True, slots=True)
class Load:
    """What to do to a server.

    workload:
        `connect`: all subscribers connect at once, and get one event
        `closed`: one event at a time, the next when everyone has the last
        `burst`: `inflight` POSTs at a time, and twice as many events on their way to the average subscriber
        `rate`: `rate` events per second, whatever comes back; latency counts from when each was due
        `slow`: as `rate`, while a share of the subscribers has stopped reading
    subscribers: open streams, at most the descriptor limit less `inflight` and 64
    duration, warmup: seconds of publishing, measured and before; events: stop after so many, if sooner
    rate: events per second, of `rate` and `slow`
    inflight: POSTs at a time, at most
    payload: bytes of an event's data, no fewer than its marker needs (about 45). None: 100, in `slow` 2,000
    slow: the share of `slow` that does not read; of what it is due nothing is counted
    settle: seconds between the last connect and reading the server's memory
    patience: seconds without any delivery after which what is missing counts as lost
    publish_key: sent as bearer token with every POST

    Raises `BenchRefused` for values out of range.
    """

    workload: Workload = "closed"
    subscribers: int = 1000
    duration: float = 5.0
    warmup: float = 0.5
    events: int | None = None
    rate: float = 50.0
    inflight: int = 8
    payload: int | None = None
    slow: float = 0.1
    settle: float = 0.5
    patience: float = 5.0
    publish_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.workload not in get_args(Workload):
            raise BenchRefused(f"workload must be one of {', '.join(get_args(Workload))}")
        wrong = [name for name in ("subscribers", "inflight") if getattr(self, name) < 1]
        wrong += [name for name in ("duration", "rate", "patience") if not 0 < getattr(self, name) < math.inf]
        wrong += [name for name in ("warmup", "settle") if not 0 <= getattr(self, name) < math.inf]
        wrong += ["payload"] * (not 1 <= self.data_size <= PAYLOAD_MAX)
        wrong += ["slow"] * (not 0 < self.slow < 1)
        if wrong:
            raise BenchRefused(f"{', '.join(wrong)}: out of range")

    @property
    def data_size(self) -> int:
        """Bytes of an event's data."""
        return (SLOW_PAYLOAD if self.workload == "slow" else PAYLOAD) if self.payload is None else self.payload

    @property
    def paced(self) -> bool:
        """Whether events are sent by the clock rather than by what has come back."""
        return self.workload in ("rate", "slow")

    @property
    def posts(self) -> int:
        """How many POSTs may be under way."""
        return 1 if self.workload in ("connect", "closed") else self.inflight

    @property
    def window(self) -> int:
        """How many events may be on their way to the average subscriber."""
        return 1 if self.posts == 1 else 2 * self.posts

    def reads(self, number: int) -> bool:
        """Whether a subscriber reads. Those that do not are spread evenly, and the first one does."""
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
