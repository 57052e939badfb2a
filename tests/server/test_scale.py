"""A hub with many subscribers without sockets: prints memory and the time of a broadcast, asserts the deliveries.

``SSE_APP_TEST_FULL=1 python3 -m tests tests/server/test_scale.py -rP`` does it with 1,000,000 subscribers.
"""

import os
import time
from pathlib import Path

import pytest

from sse_app.batch import Batch
from sse_app.brokers.memory import MemoryBroker
from sse_app.joining import StreamRequest
from sse_app.publication import Draft
from tests.support.nodes import node_on
from tests.support.peers import turns

SUBSCRIBERS = 1_000_000 if os.environ.get("SSE_APP_TEST_FULL") == "1" else 10_000
BROADCASTS = 3


class Nowhere:
    """A writer that only counts what is written."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def write(self, batch: Batch) -> bool:
        self.count += batch.count
        return True

    def end(self, farewell: bytes = b"") -> None:
        pass


def resident() -> float:
    """This process's resident memory in bytes, 0 without /proc."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096 if statm.exists() else 0


@pytest.mark.timeout(300)
async def test_a_broadcast_reaches_everyone_once() -> None:
    async with node_on(MemoryBroker(), max_subscribers=SUBSCRIBERS) as node:
        before, writers = resident(), [Nowhere() for _ in range(SUBSCRIBERS)]
        for writer in writers:
            (await node.join(StreamRequest.parse())).attach(writer)
        print(f"{SUBSCRIBERS:,} subscribers: {(resident() - before) / SUBSCRIBERS:,.0f} bytes each")
        for number in range(1, BROADCASTS + 1):
            begun = time.perf_counter()
            assert (await node.publish(Draft.compose("x" * 100))).subscribers == SUBSCRIBERS
            while writers[-1].count < number:
                await turns(1)
            print(f"one broadcast: {(time.perf_counter() - begun) * 1000:,.1f} ms")
        assert {writer.count for writer in writers} == {BROADCASTS}
