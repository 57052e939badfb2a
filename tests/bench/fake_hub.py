"""A hub with planted faults, and a run of the load against it."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sse_app.bench import Load, Report, run
from tests.support.peers import listening

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


@dataclass
class FakeHub:
    """A hub that sends ``copies(stream, number)`` of an event, answers POSTs with statuses by number (0: none, it
    disconnects), and may end its streams. Without ``batches`` the lines of NDJSON are one event, not one each. With a
    ``log`` events have ids, and who comes back gets what was missed.
    """

    copies: Callable[[int, int], int] = lambda stream, number: 1
    statuses: dict[int, int] = field(default_factory=dict)
    end_after: int | None = None
    batches: bool = True
    log: list[bytes] | None = None
    refuse_streams: int = 0
    streams: list[asyncio.StreamWriter] = field(default_factory=list)
    peers: set[str] = field(default_factory=set)
    received: int = 0
    published: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET /hub/events "):
                last = re.search(rb"\r\nLast-Event-ID: event-(\d+)\r\n", head)
                self.subscribe(writer, int(last[1]) if last else None)
            elif head.startswith(b"POST /hub/broadcast "):
                length = re.search(rb"Content-Length: (\d+)", head)
                assert length
                data = await reader.readexactly(int(length[1]))
                ndjson = b"\r\nContent-Type: application/x-ndjson\r\n" in head
                self.broadcast(data.split(b"\n") if ndjson and self.batches else [data], writer)

    def subscribe(self, writer: asyncio.StreamWriter, last: int | None) -> None:
        self.peers.add(writer.get_extra_info("peername")[0])
        if self.refuse_streams > 0:
            self.refuse_streams -= 1
            writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
            return
        writer.write(HEAD + chunk(b"event: welcome\ndata: {}\n\n"))
        self.streams.append(writer)
        if last is not None and self.log is not None:
            for number, event in enumerate(self.log[last:], last + 1):
                writer.write(chunk(event) * self.copies(len(self.streams) - 1, number))

    def broadcast(self, events: Sequence[bytes], writer: asyncio.StreamWriter) -> None:
        self.received += 1
        numbered = list(enumerate(events, self.published + 1))
        self.published += len(events)
        if self.log is not None:
            self.log += [self.event(number, data) for number, data in numbered]
        status = self.statuses.get(self.received, 200)
        if status == 0:
            writer.close()
            return
        if status == 200:
            for place, stream in enumerate(self.streams):
                for number, data in numbered:
                    stream.write(chunk(self.event(number, data)) * self.copies(place, number))
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\n{}" % status)
        if self.received == self.end_after:
            for stream in self.streams:
                stream.write(b"0\r\n\r\n")

    def event(self, number: int, data: bytes) -> bytes:
        mark = b"" if self.log is None else b"id: event-%d\n" % number
        return mark + b"data: %b\n\n" % data.replace(b"\n", b"\ndata: ")


@contextlib.asynccontextmanager
async def serving(hub: FakeHub) -> AsyncIterator[str]:
    """Serve the hub, and yield its base URL, which has a path."""
    async with listening(hub.serve, backlog=256) as port:
        yield f"http://127.0.0.1:{port}/hub/"


async def measured(hub: FakeHub, **changes: Any) -> Report:
    """Run a load of 20 subscribers and 12 events."""
    load = Load(subscribers=20, events=12, duration=30, warmup=0, settle=0, patience=30)
    async with serving(hub) as url:
        return await run(replace(load, **changes), url)
