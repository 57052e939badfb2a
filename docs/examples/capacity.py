"""How many nodes so many subscribers take, and what these cost: the tables of docs/scaling.md.

A node is one process with a core of its own; every subscriber gets every event, of 100 bytes, over TLS.
"""

from math import ceil

from sse_app import Config, Event
from sse_app.dialects import NATIVE
from sse_app.events import encode
from sse_app.subscriber import Batch

DELIVERIES = 163_000  # per CPU second, events one by one
CONNECT = 125e-6  # CPU seconds of a node
BEAT = 6e-6  # CPU seconds of a node, for each heartbeat to one stream
MEMORY = 2_100 + 4_300  # bytes of a stream: process, kernel
RESUME, REPLAY = 20e-6, 0.3e-6  # CPU seconds of a node that reads what one missed, and for each publication of it
REDIS_PUBLISH, REDIS_TAIL = 40e-6, 13e-6  # for each publication, and for each node that reads it
PACKET = 20 + 32 + 38 + 22  # bytes: IP, TCP with timestamps, Ethernet, a TLS 1.3 record

BUSY = 0.5  # of a core at most, without a storm
REACH = 0.5  # seconds at most until the last stream of a node has an event

EVENT = len(Batch(encode(Event("x" * 100, id="4f1c2a9be07d-1000000"))).chunk) + PACKET
HEARTBEAT = len(Batch(NATIVE.heartbeat).chunk) + PACKET
IDLE = HEARTBEAT / Config().heartbeat  # bytes per second
LOW, HIGH = Config().retry_min, Config().retry_max


def plan(subscribers: int, rate: float) -> dict[str, str]:
    """What it takes when each gets so many events per second."""
    per_stream = rate / DELIVERIES + BEAT / Config().heartbeat  # of a core
    nodes = ceil(subscribers / min(BUSY / per_stream, REACH * DELIVERIES))
    streams = subscribers / nodes
    back = streams / (HIGH - LOW)  # per second, after one node has died
    missed = rate * (LOW + HIGH) / 2
    left = per_stream * subscribers / (nodes - 1)
    connecting = back / (nodes - 1) * (CONNECT + min(1, missed) * RESUME + missed * REPLAY)
    return {
        "subscribers": f"{subscribers:,}",
        "events/s for each": f"{rate:g}",
        "nodes": f"{nodes:,}",
        "streams of a node": f"{streams:,.0f}",
        "core of a node": f"{per_stream * streams:.0%}",
        "memory of a node": f"{streams * MEMORY / 1e6:,.0f} MB",
        "network of a node": f"{streams * (rate * EVENT + IDLE) * 8 / 1e6:,.0f} Mbit/s",
        "one dies: come back": f"{back:,.0f}/s",
        "  core of a node": f"{left + connecting:.0%}",
        "Redis at most": f"{1 / (REDIS_PUBLISH + nodes * REDIS_TAIL):,.0f} ev/s",
    }


def main() -> None:
    print(f"an event: {EVENT} bytes on the wire, a heartbeat: {HEARTBEAT}")
    plans = [plan(subscribers, rate) for subscribers in (1_000_000, 10_000_000) for rate in (0.1, 1, 10)]
    for name in plans[0]:
        print(f"{name:20}" + "".join(f"{column[name]:>13}" for column in plans))


if __name__ == "__main__":
    main()
