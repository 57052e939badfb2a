"""Tests of endless streams, in process or over a socket, without a sleep.

    transport = StreamingASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        async with client.stream("GET", "/events") as response:
            await client.post("/orders")
            await assert_received(events(response), [{"number": 42}])

An app runs on ``StreamingASGITransport``, or on a socket in ``live``. ``CuttingTransport`` cuts streams off at a byte,
``SlowReader`` takes a few bytes at a time, ``record`` and ``replay`` do without a hub, ``published`` lists what an app
publishes. Every task belongs to its transport and every thread to its ``live`` block. ``docs/testing.md`` has examples.
"""

from sse_app.testing.assertions import Expected, assert_events, assert_received
from sse_app.testing.clock import Deadlock, VirtualTimeLoop, run_virtual
from sse_app.testing.cuts import CuttingTransport, Loss
from sse_app.testing.published import PublishedEvent, published
from sse_app.testing.readers import SlowReader
from sse_app.testing.recording import Recording, record, replay
from sse_app.testing.server import LiveServer, UvicornOptions, live
from sse_app.testing.stream import events
from sse_app.testing.transport import StreamingASGITransport

__all__ = [
    "CuttingTransport",
    "Deadlock",
    "Expected",
    "LiveServer",
    "Loss",
    "PublishedEvent",
    "Recording",
    "SlowReader",
    "StreamingASGITransport",
    "UvicornOptions",
    "VirtualTimeLoop",
    "assert_events",
    "assert_received",
    "events",
    "live",
    "published",
    "record",
    "replay",
    "run_virtual",
]
