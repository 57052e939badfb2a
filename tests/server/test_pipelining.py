"""Many requests behind one another on a connection: all run, in order, and a bounded number waits in memory."""

import asyncio
from dataclasses import dataclass, field

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from sse_app.server.protocol import HELD_MAX, PIECE, Protocol
from tests.server.test_upgrade import Recorder, Wire
from tests.support.peers import until

SEGMENT = 262_144  # bytes, the most that asyncio and uvloop read at once


def request(number: int) -> bytes:
    return b"GET /%06d HTTP/1.1\r\nHost: h\r\n\r\n" % number


SIZE = len(request(0))
assert PIECE % SIZE  # a piece ends within a head


@dataclass
class Held(Recorder):
    """An app that answers when the test lets it."""

    may: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await self.may.wait()
        await super().__call__(scope, self._nothing, send)

    async def _nothing(self) -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}


class Reading(Wire):
    """A transport that records whether reading is paused."""

    reading = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


def connected(app: Recorder, head_deadline: float = 10.0) -> tuple[Protocol, Reading]:
    config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None, access_log=False)
    config.load()
    wire = Reading()
    protocol = Protocol(config=config, server_state=ServerState(), app_state={}, head_deadline=head_deadline)
    wire.set_protocol(protocol)
    protocol.connection_made(wire)
    return protocol, wire


async def test_all_run_in_order_and_few_are_parsed_ahead() -> None:
    app, many = Held(), SEGMENT // SIZE
    protocol, wire = connected(app)
    protocol.data_received(b"".join(map(request, range(many))))
    assert len(protocol.pipeline) <= PIECE // SIZE
    app.may.set()
    await until(lambda: len(app.ran) == many and not protocol.tasks)
    assert [one.path for one in app.ran] == [f"/{number:06}" for number in range(many)]
    assert wire.sent.count(b"HTTP/1.1 200 OK\r\n") == many
    assert wire.reading
    assert not wire.closing
    protocol.connection_lost(None)


async def test_no_more_is_read_than_can_wait() -> None:
    app = Held()
    protocol, wire = connected(app)
    numbers = iter(range(100_000))
    sent = 0
    while wire.reading:
        protocol.data_received(b"".join(request(next(numbers)) for _ in range(SEGMENT // 8 // SIZE)))
        sent += SEGMENT // 8
        assert sent < PIECE + HELD_MAX + SEGMENT
        for _ in range(3):
            await asyncio.sleep(0)  # the app receives, and so uvicorn resumes reading
    count = next(numbers)
    app.may.set()
    await until(lambda: len(app.ran) == count and not protocol.tasks)
    assert [one.path for one in app.ran] == [f"/{number:06}" for number in range(count)]
    assert wire.reading
    protocol.connection_lost(None)


async def test_a_head_that_waits_here_is_not_late() -> None:
    app, many = Held(), 3 * PIECE // SIZE
    protocol, wire = connected(app, head_deadline=0.0)
    protocol.data_received(b"".join(map(request, range(many))))
    for _ in range(10):
        await asyncio.sleep(0)  # the deadline passes
    app.may.set()
    await until(lambda: len(app.ran) == many and not protocol.tasks)
    assert b" 408 " not in wire.sent
    protocol.connection_lost(None)
