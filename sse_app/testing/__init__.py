"""Tests of endless streams: an in-process transport for httpx and httpx2, a live server, and a reader of events.

    transport = StreamingASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        async with client.stream("GET", "/events") as response:
            welcome = await anext(events(response))

Nothing here sleeps or polls; every task belongs to its transport and every thread to its ``live`` block.
"""

from sse_app.testing.clock import Deadlock, VirtualTimeLoop, run_virtual
from sse_app.testing.server import LiveServer, live
from sse_app.testing.stream import events
from sse_app.testing.transport import StreamingASGITransport

__all__ = ["Deadlock", "LiveServer", "StreamingASGITransport", "VirtualTimeLoop", "events", "live", "run_virtual"]
