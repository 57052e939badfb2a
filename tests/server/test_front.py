"""What the front does while something waits: the log, a body, a stream, the socket, the end of the server."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import uvicorn
from uvicorn.server import ServerState

from sse_app import Hub, descriptors
from sse_app.brokers.memory import MemoryBroker
from sse_app.descriptors import Waiting
from sse_app.errors import LogFull, LogUnavailable
from sse_app.publication import Draft, Position
from sse_app.server.direct import DirectStream
from sse_app.server.front import AT_ONCE, BODY_PATIENCE, UNANSWERED_MAX, Front, front_of
from sse_app.server.protocol import HELD_MAX, Protocol
from tests.server.test_short_way import Line
from tests.support.peers import turns

KEEP_ALIVE, HEAD_DEADLINE = 5.0, 10.0  # seconds
HEAD_MAX = 16_384  # bytes
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
EVENTS = b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n"


def post(body: bytes = b"hello", *fields: bytes) -> bytes:
    lines = [b"POST /broadcast HTTP/1.1", b"Host: localhost", *fields, b"Content-Length: %d" % len(body), b"", body]
    return b"\r\n".join(lines)


class SlowLog(MemoryBroker):
    """A log that publishes and tells its end when the test lets it."""

    def __init__(self, *, steppable: bool = True) -> None:
        super().__init__()
        self.steppable = steppable
        self.waiting: list[asyncio.Future[None]] = []
        self.error: Exception | None = None
        self.join_error: Exception | None = None
        self.slow = self.slow_to_join = False

    def append(self, draft: Draft) -> None:
        return None

    async def publish(self, draft: Draft) -> Position:
        if self.slow:
            await self._wait()
        if self.error is not None:
            raise self.error
        return await super().publish(draft)

    async def top(self, *, fresh: bool = False) -> Position:
        if self.slow_to_join:
            await self._wait()
        if self.join_error is not None:
            raise self.join_error
        return await super().top(fresh=fresh)

    async def _wait(self) -> None:
        self.waiting.append(asyncio.get_running_loop().create_future())
        await self.waiting[-1]

    def go_on(self, place: int = 0) -> None:
        self.waiting.pop(place).set_result(None)


class Wired(Line):
    """A line that can be full, and knows whether it is read."""

    reading = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def receive(self, data: bytes) -> None:
        self.get_protocol().data_received(data)  # type: ignore[attr-defined]

    @property
    def statuses(self) -> list[int]:
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", self.sent)]

    @property
    def ids(self) -> list[int]:
        return [int(offset) for offset in re.findall(rb'"id":"[0-9a-f]+-(\d+)"', self.sent)]


@dataclass
class Served:
    hub: Hub
    log: SlowLog
    make: Callable[..., Front]
    config: uvicorn.Config
    state: ServerState = field(default_factory=ServerState)

    def connect(self) -> Wired:
        line = Wired()
        front = self.make(config=self.config, server_state=self.state, app_state={})
        line.set_protocol(front)
        front.connection_made(line)
        return line


@asynccontextmanager
async def served(*, steppable: bool = True, access_log: bool = False, **settings: object) -> AsyncIterator[Served]:
    log = SlowLog(steppable=steppable)
    async with Hub(log, heartbeat=3_600, head_deadline=HEAD_DEADLINE, **settings) as hub:  # type: ignore[arg-type]
        config = uvicorn.Config(hub.app, ws="none", lifespan="off", log_config=None, access_log=access_log)
        config.load()
        waiting = Waiting.within(descriptors.limit())
        desk = hub.app.state.desk
        make = front_of(desk, Protocol, head_max=HEAD_MAX, head_deadline=HEAD_DEADLINE, waiting=waiting)
        server = Served(hub, log, make, config)
        yield server
        for connection in list(server.state.connections):
            connection.connection_lost(None)
        await turns(5)
        assert not server.state.connections
        assert not len(hub)


steppable = pytest.mark.parametrize("steppable", [True, False], ids=["stepped", "in a task"])


# The log


@steppable
async def test_answers_come_in_the_order_of_the_requests(steppable: bool) -> None:
    async with served(steppable=steppable) as server:
        server.log.slow = True
        line = server.connect()
        line.receive(post() * 3)
        await turns(3)
        server.log.go_on(1)
        await turns(3)
        assert not line.sent
        server.log.go_on(0)
        await turns(3)
        assert line.ids == [2, 1]
        server.log.slow = False
        line.receive(post())
        await turns(3)
        assert line.ids == [2, 1]
        server.log.go_on(0)
        await turns(5)
        assert line.ids[:2] == [2, 1]
        assert sorted(line.ids[2:]) == [3, 4]
        assert line.statuses == [200] * 4


@steppable
async def test_a_connection_takes_a_bounded_number_ahead_of_its_answers(steppable: bool) -> None:
    async with served(steppable=steppable) as server:
        server.log.slow = True
        line = server.connect()
        while line.reading:
            line.receive(post(b"x" * 1_000) * 10)
            assert len(line.get_protocol()._held) < HELD_MAX + 100_000  # type: ignore[attr-defined]
        await turns(3)
        assert len(server.log.waiting) == UNANSWERED_MAX
        while server.log.waiting:
            server.log.go_on()
            await turns(4)
        assert line.reading
        assert line.ids == sorted(line.ids)
        assert len(line.ids) == server.hub.node.totals.published > UNANSWERED_MAX


async def test_many_at_once_leave_room_for_others() -> None:
    async with served() as server:
        line, taken = server.connect(), list[int]()
        loop = asyncio.get_running_loop()

        def look() -> None:
            taken.append(server.hub.node.totals.published)
            if taken[-1] < 5 * AT_ONCE:
                loop.call_soon(look)

        line.receive(post() * 5 * AT_ONCE)
        look()
        await turns(20)
        steps = [after - before for before, after in zip([0, *taken], taken, strict=False)]
        assert max(steps) <= AT_ONCE
        assert line.ids == list(range(1, 5 * AT_ONCE + 1))


async def test_who_sends_faster_than_it_is_served_is_read_no_further() -> None:
    async with served() as server:
        line, most = server.connect(), 0
        for _ in range(50):
            before = server.hub.node.totals.published
            if line.reading:
                line.receive(post() * 1_000)
            await asyncio.sleep(0)
            most = max(most, server.hub.node.totals.published - before)
            assert len(line.get_protocol()._held) < HELD_MAX + 2 * len(post() * 1_000)  # type: ignore[attr-defined]
        assert most <= 2 * AT_ONCE  # what came, and what was held
        await turns(1_000)
        assert line.reading
        assert line.ids == list(range(1, server.hub.node.totals.published + 1))


@pytest.mark.virtual_time
async def test_who_asks_without_a_pause_is_not_taken_for_idle() -> None:
    async with served() as server:
        line = server.connect()
        line.receive(post() * 2 * AT_ONCE)
        front = line.get_protocol()
        assert front.late_in is None  # type: ignore[attr-defined]
        await turns(5)
        assert len(line.ids) == 2 * AT_ONCE
        await asyncio.sleep(KEEP_ALIVE - 0.1)
        assert not line.closing
        await asyncio.sleep(0.2)
        assert line.closing


async def test_what_came_of_a_body_counts_though_an_answer_comes_in_between() -> None:
    async with served() as server:
        server.log.slow = True
        line, raw = server.connect(), post(b"x" * 100)
        line.receive(post() + raw[:-90])
        await turns(3)
        line.receive(raw[-90:-50])
        server.log.slow = False
        server.log.go_on()
        await turns(5)
        line.receive(raw[-50:])
        await turns(3)
        assert line.ids == [1, 2]


@steppable
async def test_what_is_the_apps_waits_for_the_answers_before_it(steppable: bool) -> None:
    async with served(steppable=steppable) as server:
        server.log.slow = True
        line = server.connect()
        for received in (post(), HEALTH + post(), HEALTH):
            line.receive(received)
        await turns(5)
        assert not line.sent
        assert isinstance(line.get_protocol(), Front)
        server.log.go_on()
        server.log.slow = False
        await turns(20)
        assert isinstance(line.get_protocol(), Protocol)
        assert line.statuses == [200] * 4
        assert re.findall(rb'"status":"ok"|"id"', line.sent) == [b'"id"', b'"status":"ok"', b'"id"', b'"status":"ok"']


async def test_what_waits_behind_a_request_of_the_apps_is_bounded() -> None:
    async with served() as server:
        server.log.slow = True
        line, many = server.connect(), 2 * HELD_MAX // 1_000
        line.receive(post(b"x", b"TE: trailers") + post(b"x" * 1_000) * many)
        await turns(5)
        assert isinstance(line.get_protocol(), Protocol)
        assert not line.reading
        server.log.slow = False
        server.log.go_on()
        await turns(10 * many)
        assert line.reading
        assert len(line.ids) == many + 1


@steppable
async def test_a_client_that_goes_before_its_answer_has_published(
    steppable: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(steppable=steppable) as server:
        server.log.slow = True
        line = server.connect()
        line.receive(post())
        await turns(3)
        line.closing = True
        line.get_protocol().connection_lost(None)
        server.log.go_on()
        await turns(5)
        assert server.hub.node.totals.published == 1
        assert not line.sent
        assert not server.state.tasks
    assert not caplog.records


@steppable
async def test_a_refusal_of_the_log_is_the_apps_own(steppable: bool) -> None:
    async with served(steppable=steppable) as server:
        server.log.error = LogFull("There is no room.")
        line = server.connect()
        line.receive(post())
        await turns(3)
        assert line.sent.startswith(b"HTTP/1.1 507 Insufficient Storage\r\n")
        assert json.loads(line.sent.partition(b"\r\n\r\n")[2])["code"] == "log_full"
        server.log.error = None
        line.receive(post())
        await turns(3)
        assert line.statuses == [507, 200]


@pytest.mark.parametrize("at_once", [True, False])
@steppable
async def test_a_mistake_of_ours_is_logged_and_the_last_answer(
    steppable: bool, at_once: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def boom(draft: Draft) -> Position | None:
        raise RuntimeError("boom")

    async with served(steppable=steppable) as server:
        if at_once:
            await server.hub.publish("so that the number of subscribers is known")
            monkeypatch.setattr(server.log, "append", boom)
        else:
            server.log.error = RuntimeError("boom")
        line = server.connect()
        line.receive(post())
        await turns(3)
        assert line.statuses == [500]
        assert line.closing
        assert b"boom" not in line.sent
        assert server.hub.node._admission.open_requests == 0
    assert [record.getMessage() for record in caplog.records] == ["Exception in ASGI application\n"]


# Streams


@steppable
async def test_a_client_that_goes_while_it_joins_leaves_nobody_behind(steppable: bool) -> None:
    async with served(steppable=steppable) as server:
        server.log.slow_to_join = True
        line = server.connect()
        line.receive(EVENTS)
        await turns(3)
        assert len(server.hub) == 1
        line.closing = True
        line.get_protocol().connection_lost(None)
        server.log.go_on()
        await turns(5)
        assert len(server.hub) == 0
        assert not line.sent


@steppable
async def test_what_comes_while_a_stream_joins_gets_into_no_stream(steppable: bool) -> None:
    async with served(steppable=steppable) as server:
        server.log.slow_to_join = True
        line = server.connect()
        line.receive(post() + EVENTS)
        await turns(3)
        line.receive(post())
        server.log.slow_to_join = False
        server.log.go_on()
        await turns(5)
        assert isinstance(line.get_protocol(), DirectStream)
        line.receive(post())
        await turns(3)
        assert server.hub.node.totals.published == 1
        assert line.statuses == [200, 200]
        assert line.reading


@steppable
async def test_a_stream_that_cannot_join_is_refused_once_and_the_connection_goes_on(steppable: bool) -> None:
    async with served(steppable=steppable, max_subscribers=1) as server:
        first, second = server.connect(), server.connect()
        first.receive(EVENTS)
        await turns(3)
        second.receive(EVENTS)
        await turns(5)
        assert server.hub.node.totals.refused == 1
        second.receive(post())
        await turns(5)
        assert first.statuses == [200]
        assert second.statuses == [503, 200]
        assert isinstance(second.get_protocol(), Front)
        assert server.state.total_requests == 3


async def joining_in_vain(server: Served) -> Wired:
    """Return the connection of a stream whose log will fail once the test lets it."""
    server.log.join_error, server.log.slow_to_join = LogUnavailable("It cannot be read."), True
    line = server.connect()
    line.receive(EVENTS)
    await turns(3)
    return line


@steppable
async def test_a_log_that_fails_once_is_asked_once(steppable: bool) -> None:
    async with served(steppable=steppable) as server:
        line = await joining_in_vain(server)
        server.log.slow_to_join = False
        server.log.go_on()
        await turns(8)
        assert line.statuses == [503]
        assert server.hub.node.totals.connected == sum(server.hub.node.totals.closed.values()) == 1
        server.log.join_error = None
        line.receive(EVENTS)
        await turns(5)
        assert line.statuses == [503, 200]


@steppable
async def test_an_event_source_that_is_refused_is_told_when_to_come_back(steppable: bool) -> None:
    async with served(steppable=steppable) as server:
        server.log.join_error = LogUnavailable("It cannot be read.")
        line = server.connect()
        line.receive(EVENTS.replace(b"\r\n\r\n", b"\r\nAccept: text/event-stream\r\n\r\n"))
        await turns(5)
        assert line.statuses == [200]
        assert b"retry: " in line.sent
        assert line.sent.count(b"connection: close") == 1
        assert line.closing


@steppable
async def test_a_server_that_stops_ends_a_connection_with_the_refusal_of_its_stream(steppable: bool) -> None:
    async with served(steppable=steppable) as server:
        line = await joining_in_vain(server)
        line.get_protocol().shutdown()  # type: ignore[attr-defined]
        assert not line.closing
        server.log.go_on()
        await turns(5)
        assert line.statuses == [503]
        assert b"connection: close" in line.sent
        assert line.closing


@steppable
async def test_a_mistake_of_ours_in_a_join_is_logged_and_the_last_answer(
    steppable: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(steppable=steppable) as server:
        server.log.join_error = RuntimeError("boom")
        line = server.connect()
        line.receive(EVENTS)
        await turns(3)
        assert line.statuses == [500]
        assert line.closing
        assert b"boom" not in line.sent
    assert [record.getMessage() for record in caplog.records] == ["Exception in ASGI application\n"]


@steppable
async def test_what_follows_a_refused_stream_is_refused_for_its_own_reason(steppable: bool) -> None:
    async with served(steppable=steppable) as server:
        server.log.join_error = LogUnavailable("It cannot be read.")
        line = server.connect()
        line.receive(EVENTS + EVENTS.replace(b"\r\n\r\n", b"\r\nX: " + b"x" * HEAD_MAX + b"\r\n\r\n"))
        await turns(12)
        assert line.statuses == [503, 431]


async def test_head_and_welcome_are_one_write() -> None:
    async with served() as server:
        line, writes = server.connect(), list[bytes]()
        line.write = writes.append  # type: ignore[method-assign, assignment]
        line.receive(EVENTS)
        await turns(3)
        assert len(writes) == 1
        assert b"event: welcome" in writes[0]
        await server.hub.publish("hello")
        await turns(5)
        assert len(writes) == 2


# Bodies, heads and the time between


@pytest.mark.virtual_time
async def test_a_body_may_follow_its_head() -> None:
    async with served() as server:
        line, raw = server.connect(), post(b"x" * 100)
        line.receive(raw[:-50])
        await asyncio.sleep(BODY_PATIENCE / 2)
        line.receive(raw[-50:-20])
        line.receive(raw[-20:] + raw)
        assert line.ids == [1, 2]
        assert isinstance(line.get_protocol(), Front)


@pytest.mark.virtual_time
async def test_a_body_that_takes_long_is_the_apps() -> None:
    async with served() as server:
        line, raw = server.connect(), post(b"x" * 100)
        line.receive(raw[:-50])
        await asyncio.sleep(BODY_PATIENCE + 0.1)
        assert isinstance(line.get_protocol(), Protocol)
        line.receive(raw[-50:])
        await turns(8)
        assert line.ids == [1]
        late = server.connect()
        late.receive(raw[:-50])
        await asyncio.sleep(BODY_PATIENCE + HEAD_DEADLINE + 0.1)
        await turns(8)
        assert late.statuses == [408]
        assert server.hub.node.totals.published == 1


@pytest.mark.virtual_time
@pytest.mark.parametrize("begun", [b"", b"POST /broad"])
async def test_a_head_has_one_deadline_whoever_waits_for_it(begun: bytes) -> None:
    async with served() as server:
        line = server.connect()
        await asyncio.sleep(HEAD_DEADLINE - 1)
        if begun:
            line.receive(begun)
        await asyncio.sleep(0.9)
        assert not line.sent
        await asyncio.sleep(0.2)
        assert line.statuses == [408]
        assert line.closing


@pytest.mark.virtual_time
async def test_a_connection_that_asks_nothing_more_is_closed() -> None:
    async with served() as server:
        line = server.connect()
        for _ in range(3):
            line.receive(post())
            await asyncio.sleep(KEEP_ALIVE - 0.1)
            assert not line.closing
        await asyncio.sleep(0.2)
        assert line.closing
        assert line.statuses == [200] * 3


@pytest.mark.virtual_time
@steppable
async def test_a_slow_log_does_not_close_its_publishers_connection(steppable: bool) -> None:
    async with served(steppable=steppable) as server:
        server.log.slow = True
        line = server.connect()
        line.receive(post())
        await asyncio.sleep(2 * HEAD_DEADLINE)
        assert not line.closing
        server.log.go_on()
        await turns(5)
        assert line.statuses == [200]
        await asyncio.sleep(KEEP_ALIVE + 0.1)
        assert line.closing


# The socket and the server


async def test_a_full_socket_stops_the_taking() -> None:
    async with served() as server:
        line = server.connect()
        line.get_protocol().pause_writing()
        line.receive(post())
        await turns(3)
        assert server.hub.node.totals.published == 0
        line.get_protocol().resume_writing()
        await turns(3)
        assert line.statuses == [200]


@steppable
async def test_the_server_ends_idle_connections_and_the_others_with_their_answers(steppable: bool) -> None:
    async with served(steppable=steppable) as server:
        idle, busy = server.connect(), server.connect()
        idle.receive(post())
        await turns(3)
        server.log.slow = True
        busy.receive(post())
        await turns(3)
        for connection in list(server.state.connections):
            connection.shutdown()
        assert idle.closing
        assert not busy.closing
        server.log.go_on()
        await turns(5)
        assert busy.closing
        assert b"connection: close\r\n\r\n{" in busy.sent
        assert b"connection: close" not in idle.sent


async def test_only_the_last_answer_says_that_it_is_the_last() -> None:
    async with served() as server:
        server.log.slow = True
        line = server.connect()
        line.receive(post() * 3)
        await turns(3)
        line.get_protocol().shutdown()  # type: ignore[attr-defined]
        while server.log.waiting:
            server.log.go_on()
            await turns(3)
        assert line.statuses == [200] * 3
        assert line.sent.count(b"connection: close") == 1
        assert b"connection: close" in line.sent.rpartition(b"HTTP/1.1 200")[2]


async def test_a_time_before_now_is_not_kept() -> None:
    async with served() as server:
        server.connect().receive(EVENTS.replace(b"/events", b"/events?sinc%65=15m"))
        await turns(5)
        assert list(server.hub.app.state.desk._kept.values()) == [None]


async def test_a_draining_hub_refuses_both() -> None:
    async with served() as server:
        lines = [server.connect() for _ in range(2)]
        for line in lines:
            line.receive(post())
        server.hub.node.stop_accepting()
        lines[0].receive(post())
        lines[1].receive(EVENTS)
        await turns(10)
        assert [line.statuses for line in lines] == [[200, 503]] * 2


@steppable
async def test_a_drain_waits_for_what_is_being_published(steppable: bool) -> None:
    async with served(steppable=steppable) as server:
        server.log.slow = True
        line = server.connect()
        line.receive(post())
        await turns(3)
        drain = asyncio.ensure_future(server.hub.drain(5))
        await turns(5)
        assert not drain.done()
        server.log.go_on()
        await drain
        assert line.statuses == [200]


async def test_a_kept_head_is_no_kept_permission() -> None:
    async with served(publish_key="publishers-own-key") as server:
        line, fields = server.connect(), b"Authorization: Bearer publishers-own-key"
        line.receive(post(b"hello", fields))
        assert line.statuses == [200]
        server.hub.app.state.desk._callers._publish_key = b"another-publish-key"
        line.receive(post(b"hello", fields))
        await turns(8)
        assert line.statuses == [200, 401]


async def test_what_is_kept_of_a_head_has_no_secret() -> None:
    async with served(publish_key="publishers-own-key") as server:
        line = server.connect()
        line.receive(post(b"hello", b"authorization:  Bearer \t publishers-own-key ", b"Cookie: session=of-a-visitor"))
        assert line.statuses == [200]
        kept = repr(vars(server.hub.app.state.desk))
        assert "/broadcast" in kept
        assert "publishers-own-key" not in kept
        assert "of-a-visitor" not in kept


async def test_requests_are_logged_as_uvicorn_logs_them(caplog: pytest.LogCaptureFixture) -> None:
    async with served(access_log=True) as server:
        with caplog.at_level(logging.INFO, "uvicorn.access"):
            line = server.connect()
            line.receive(post().replace(b"/broadcast", b"/broadcast?topic=a%20b"))
            line.receive(EVENTS.replace(b"/events", b"/events?topic=a"))
            await turns(3)
        assert [record.getMessage() for record in caplog.records] == [
            '127.0.0.1:5000 - "POST /broadcast?topic=a%20b HTTP/1.1" 200',
            '127.0.0.1:5000 - "GET /events?topic=a HTTP/1.1" 200',
        ]
        assert server.state.total_requests == 2
