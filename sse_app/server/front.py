"""The front of our server: the protocol of a new connection, which takes the short way.

    bytes -> Desk.read(head) -> POST: Desk.publish -> one write of the answer
                             -> GET:  Desk.join -> one write of head and welcome -> DirectStream
                             -> None: an ordinary ``Protocol`` takes the connection, with the same bytes

uvicorn's protocol makes a scope, a cycle, a task and two writes of each request. What the desk is sure of needs none of
them, and is answered with the bytes that the app would have sent. A connection that was handed over stays so.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar, cast

import uvicorn

from sse_app.batch import Batch
from sse_app.coroutines import Suspended, step
from sse_app.descriptors import Waiting
from sse_app.errors import SSEAppError
from sse_app.publication import Receipt
from sse_app.server.answers import Answers
from sse_app.server.deadlines import Deadlines
from sse_app.server.direct import DirectStream
from sse_app.server.protocol import HELD_MAX, Protocol
from sse_app.server.uvicorn_internals import (
    ServerState,
    get_client_addr,
    get_local_addr,
    get_remote_addr,
    is_ssl,
    target_of,
)
from sse_app.subscriber import CloseReason, Subscriber
from sse_app.web.desk import Desk, Opening, Posting

access_logger = logging.getLogger("uvicorn.access")

T = TypeVar("T")

UNANSWERED_MAX = 16  # requests of a connection that are read ahead of their answers
AT_ONCE = 64  # requests of a connection that are taken in one turn of the loop, some 2 ms
BODY_PATIENCE = 1.0  # seconds; a body that takes longer is left to the app, which has a deadline for it
HEAD_END = b"\r\n\r\n"
STARTS = (b"POST /broadcast", b"GET /events")  # of the requests that the desk may take


class Front(asyncio.Protocol):
    """One connection on the short way, until a stream or an ordinary ``Protocol`` takes it over."""

    __slots__ = (
        *("_answers", "_closing", "_fronts", "_held", "_lacking", "_leaving", "_paused", "_pieces", "_resting"),
        *("_scheme", "_server", "_stopped", "_unanswered", "late_in", "transport"),
    )

    def __init__(self, fronts: "Fronts") -> None:
        self._fronts = fronts
        self._held = b""  # received, and not taken yet
        self._pieces: list[bytes] = []  # what came of a body of which _lacking bytes are still to come
        self._lacking = 0
        self._answers: list[bytes] = []  # to be written at the end of this turn
        self._unanswered = deque[_Place]()  # the requests that wait for something, and what is answered behind them
        self._leaving = False  # what is held is the app's, once all requests before it are answered
        self._stopped = False  # nothing more is taken: a stream joins, or another protocol has the connection
        self._closing = False  # the server stops: the connection ends with its last answer
        self._paused = False  # the socket is full
        self._resting = False  # as many were taken as one turn of the loop may take
        self.late_in: Deadlines[Front] | None = None  # the deadlines that it is in; kept by Fronts

    # The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports are no subclasses
        self._server, self._scheme = get_local_addr(self.transport), "https" if is_ssl(self.transport) else "http"
        self._fronts.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stopped = True
        self._fronts.remove(self)
        if self._lacking and isinstance(asked := self._read(head := self._next_head()), Posting):
            self._fronts.desk.abandon(asked, head)

    def shutdown(self) -> None:
        """End the connection with its last answer. Called by the server when it stops."""
        self._closing = True
        if not self.busy:
            self.transport.close()

    @property
    def busy(self) -> bool:
        """True while a request has no answer yet."""
        return bool(self._unanswered) or self._stopped

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._go_on()

    # Taking requests

    def data_received(self, data: bytes) -> None:
        if self._lacking > len(data):
            self._pieces.append(data)
            self._lacking -= len(data)
            return
        self._hold(data)
        if self._may_take:
            self._take_all()
        elif len(self._held) > HELD_MAX:
            self.transport.pause_reading()

    def _hold(self, data: bytes) -> None:
        """Add bytes to those that are held, and the pieces of a body, of which there may be many, before them."""
        if self._pieces:
            data = b"".join([*self._pieces, data])
            self._pieces.clear()
        self._held = self._held + data if self._held else data
        self._lacking = 0

    @property
    def _may_take(self) -> bool:
        waits = self._stopped or self._leaving or self._closing or self._paused or self._resting or self._lacking
        return not waits and len(self._unanswered) < UNANSWERED_MAX

    def _go_on(self) -> None:
        """Take what is held, since there is room for it again."""
        if self._may_take and not self.transport.is_closing():
            self._take_all()
            if not self._stopped and (self._lacking or len(self._held) <= HELD_MAX):
                self.transport.resume_reading()

    def _rested(self) -> None:
        self._resting = False
        self._go_on()

    def _take_all(self) -> None:
        """Take the requests that are held, and write what is answered at once."""
        taken = 0
        while self._held and self._may_take and self._take():
            taken += 1
            if taken == AT_ONCE:
                self._resting = True
                self._fronts.stop_waiting(self)  # its client is not late: the rest is here
                self._fronts.loop.call_soon(self._rested)
                break
        self._write_answers()

    def _take(self) -> bool:
        """Take the next request. Return False when it waits for the rest of itself, or is left to the app."""
        head = self._next_head()
        asked = self._read(head)
        if isinstance(asked, Posting):
            return self._take_post(asked, head)
        if isinstance(asked, Opening) and not self._unanswered:
            return self._take_get(asked, head)
        self._leave()
        return False

    def _next_head(self) -> bytes:
        return self._held[: self._held.find(HEAD_END) + len(HEAD_END)]

    def _read(self, head: bytes) -> Posting | Opening | None:
        if len(head) > self._fronts.head_max:
            return None
        return self._fronts.desk.read(head, self._server, self._scheme)

    def _take_post(self, asked: Posting, head: bytes) -> bool:
        stop = len(head) + asked.length
        if len(self._held) < stop:
            if self._fronts.desk.may_publish(asked, head) is None:
                self._leave()  # the app need not wait for the body to refuse it
            else:
                self._lacking = stop - len(self._held)
                self._fronts.await_body(self)
            return False
        if len(self._held) > stop and not self._held.startswith(STARTS, stop) and not self._comes_behind_others:
            self._leave()  # bytes that begin no request say that the Content-Length was wrong: it is not published
            return False
        outcome = self._fronts.desk.publish(asked, head, self._held[len(head) : stop])
        if outcome is None:
            self._leave()
            return False
        self._held = self._held[stop:]
        if isinstance(outcome, Receipt | Exception):
            self._answer(asked, outcome)
        else:
            self._publish(asked, outcome)
        return True

    @property
    def _comes_behind_others(self) -> bool:
        """True for a request that came together with others before it, whose answers are not written yet."""
        return bool(self._answers or self._unanswered)

    def _publish(self, asked: Posting, work: Coroutine[Any, Any, Receipt]) -> None:
        rest: Awaitable[Receipt] = work
        if self._fronts.steps:
            outcome = _stepped(work)
            if not isinstance(outcome, Suspended):
                self._answer(asked, outcome)
                return
            rest = outcome
        place = _Place()
        self._unanswered.append(place)
        self._fronts.stop_waiting(self)
        self._fronts.spawn(self._finish(place, asked, rest))

    # Answering

    async def _finish(self, place: "_Place", asked: Posting, rest: Awaitable[Receipt]) -> None:
        outcome = await _awaited(rest)
        place.answer = self._rendered(asked, outcome, last=self._closing and place is self._unanswered[-1])
        while self._unanswered and (answer := self._unanswered[0].answer) is not None:
            self._answers.append(answer)
            self._unanswered.popleft()
        self._write_answers()
        self._go_on()

    def _answer(self, asked: Posting, outcome: Receipt | Exception) -> None:
        answer = self._rendered(asked, outcome, last=self._closing)
        if self._unanswered:
            self._unanswered.append(_Place(answer))
        else:
            self._answers.append(answer)

    def _rendered(self, asked: Posting, outcome: Receipt | Exception, *, last: bool) -> bytes:
        """Return the bytes of an answer, and count and log its request."""
        fronts = self._fronts
        if isinstance(outcome, Receipt):
            status, answer = fronts.answers.published(outcome, last=last)
        else:
            status, answer = fronts.answers.refused(outcome, last=last)
            self._closing = self._closing or not isinstance(outcome, SSEAppError)  # as uvicorn after a mistake
        fronts.count(asked, self.transport, status)
        return answer

    def _write_answers(self) -> None:
        """Write what is answered. The connection then ends, is left to the app, or waits for what comes next."""
        if self.transport.is_closing():
            self._answers.clear()
            return
        if self._answers:
            self.transport.write(self._answers[0] if len(self._answers) == 1 else b"".join(self._answers))
            self._answers.clear()
            if not self._unanswered and not self._held:
                self._fronts.await_request(self)
        if self._closing and not self._unanswered:
            self.transport.close()
        elif self._leaving and not self._unanswered and not self._stopped:
            self.hand_over(self._fronts.time_for_head(self))

    # Leaving the short way

    def _leave(self) -> None:
        """Leave the held bytes to the app, once the requests before them are answered."""
        self._leaving = True
        if not self._unanswered:
            self._write_answers()

    def hand_over(self, head_left: float | None) -> None:
        """Let an ordinary protocol take the connection, with the held bytes. The head of its first request has
        ``head_left`` seconds; None for one that came, or that has just begun.
        """
        self._hold(b"")
        self._stopped, held, self._held = True, self._held, b""
        self._fronts.remove(self)
        protocol = self._fronts.make_protocol()
        self.transport.set_protocol(protocol)
        self.transport.resume_reading()  # before it has the bytes: of too many it stops reading itself
        protocol.take_over(self.transport, held, head_left, paused=self._paused)

    def leave_late(self) -> None:
        """Let the app wait for the rest of a body."""
        if not self._stopped:
            self._leave()

    # Streams

    def _take_get(self, asked: Opening, head: bytes) -> bool:
        work = self._fronts.desk.join(asked, head, lambda: get_remote_addr(self.transport))
        if work is None:
            self._leave()
            return False
        self._held = self._held[len(head) :]
        self._write_answers()  # of the requests before this one
        self._stopped = True
        self._fronts.stop_waiting(self)
        rest: Awaitable[Subscriber] = work
        if self._fronts.steps:
            joined = _stepped(work)
            if not isinstance(joined, Suspended):
                return self._goes_on_after(asked, joined)
            rest = joined
        self._fronts.spawn(self._finish_joining(asked, rest))
        return False

    async def _finish_joining(self, asked: Opening, rest: Awaitable[Subscriber]) -> None:
        if self._goes_on_after(asked, await _awaited(rest)):
            self._write_answers()
            self._go_on()

    def _goes_on_after(self, asked: Opening, joined: Subscriber | Exception) -> bool:
        """Begin a stream, or refuse one that could not join. Return True when the connection may have more requests.

        Not called where an exception is handled: the parser of the ordinary protocol, which may take the connection
        next, would take that for the cause of its own.
        """
        if isinstance(joined, Exception):
            return self._refuse_stream(asked, joined)
        self._begin_stream(asked, joined)
        return False

    def _refuse_stream(self, asked: Opening, error: Exception) -> bool:
        fronts = self._fronts
        status, answer, is_last = fronts.answers.no_stream(error, fronts.desk.node, asked.scope, last=self._closing)
        if self.transport.is_closing():
            return False
        fronts.count(asked, self.transport, status)
        self._answers.append(answer)
        self._stopped, self._closing = False, is_last
        return True

    def _begin_stream(self, asked: Opening, subscriber: Subscriber) -> None:
        fronts, transport = self._fronts, self.transport
        node = fronts.desk.node
        if transport.is_closing():
            node.leave(subscriber, CloseReason.GONE)
            return
        fronts.remove(self)
        stream = DirectStream(transport, fronts.state, node, subscriber, True, self._paused)
        transport.set_protocol(stream)
        greeting = subscriber.take_greeting()
        transport.write(fronts.answers.stream_head() + (Batch(greeting).chunk if greeting else b""))
        transport.resume_reading()  # a transport that does not read does not notice its peer's close
        fronts.count(asked, transport, 200)
        subscriber.attach(stream)


def _stepped(work: Awaitable[T]) -> T | Suspended[T] | Exception:
    """Return what a step leads to, which may be a failure."""
    try:
        return step(work)
    except Exception as error:
        return error


async def _awaited(rest: Awaitable[T]) -> T | Exception:
    """Return what something comes to, which may be a failure."""
    try:
        return await rest
    except Exception as error:
        return error


class _Place:
    """The place of an answer in the order of the requests; None until it is there."""

    __slots__ = ("answer",)

    def __init__(self, answer: bytes | None = None) -> None:
        self.answer = answer


class Fronts:
    """The desk, the deadlines and the state that the fronts of one server share. ``make_protocol`` makes the protocol
    of a connection that leaves the short way; ``head_max`` is in bytes, ``head_deadline``, ``keep_alive`` in seconds.
    """

    def __init__(
        self,
        desk: Desk,
        state: ServerState,
        make_protocol: Callable[[], Protocol],
        *,
        head_max: int,
        head_deadline: float,
        keep_alive: float,
        access_log: bool,
        waiting: Waiting,
    ) -> None:
        self.desk, self.state, self.make_protocol, self.head_max = desk, state, make_protocol, head_max
        self.loop = asyncio.get_running_loop()
        self.answers = Answers(state, desk.stream_fields)
        self.steps = desk.node.steppable
        self._access_log, self._waiting = access_log, waiting
        self._new = Deadlines(self.loop, head_deadline, _refuse_late)
        self._idle = Deadlines(self.loop, keep_alive, _close)
        self._bodies = Deadlines(self.loop, BODY_PATIENCE, Front.leave_late)

    def add(self, front: Front) -> None:
        """Add a new connection, which waits for its first request."""
        self._waiting.make_room(len(self.state.connections))
        self._waiting.add(front.transport)
        self.state.connections.add(front)  # type: ignore[arg-type]  # uvicorn's own protocols are a closed union
        self._await(front, self._new)

    def remove(self, front: Front) -> None:
        """Remove a connection that has ended, or that another protocol has."""
        self.stop_waiting(front)
        self.state.connections.discard(front)

    def stop_waiting(self, front: Front) -> None:
        """Nothing is awaited of this connection's client."""
        self._waiting.remove(front.transport)
        self._await(front, None)

    def await_request(self, front: Front) -> None:
        """The connection is kept for its client's next request."""
        self._waiting.remove(front.transport)
        self._waiting.add(front.transport)  # as the one that has waited least
        self._await(front, self._idle)

    def await_body(self, front: Front) -> None:
        """The rest of a body is still to come."""
        if front.late_in is not self._bodies:
            self._await(front, self._bodies)

    def _await(self, front: Front, deadlines: Deadlines[Front] | None) -> None:
        """Set the deadlines that a connection may miss, in place of those before. Its time begins now."""
        if front.late_in is not None and front.late_in is not deadlines:
            front.late_in.stop(front)
        front.late_in = deadlines
        if deadlines is not None:
            deadlines.start(front)

    def time_for_head(self, front: Front) -> float | None:
        """Return the seconds that are left for the head of a connection's first request; None when that came."""
        return self._new.left(front)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a task that is the server's, as those of uvicorn's requests: the server waits for it when it stops."""
        task = self.loop.create_task(work)
        self.state.tasks.add(task)
        task.add_done_callback(self.state.tasks.discard)

    def count(self, asked: Posting | Opening, transport: asyncio.Transport, status: int) -> None:
        """Count and log a request that is answered, as uvicorn does."""
        self.state.total_requests += 1
        if self._access_log:
            scope: Any = {**asked.scope, "client": get_remote_addr(transport)}
            access_logger.info(
                '%s - "%s %s HTTP/%s" %d', get_client_addr(scope), scope["method"], target_of(scope), "1.1", status
            )


def _refuse_late(front: Front) -> None:
    """Let the ordinary protocol refuse a head that did not come in time."""
    front.hand_over(0.0)


def _close(front: Front) -> None:
    front.transport.close()


def front_of(
    desk: Desk, protocol: Callable[..., Protocol], *, head_max: int, head_deadline: float, waiting: Waiting
) -> Callable[..., Front]:
    """Return what uvicorn calls for the protocol of each new connection. ``protocol`` is what it would call without a
    short way.
    """
    shared: Fronts | None = None

    def connect(
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> Front:
        nonlocal shared
        if shared is None:
            shared = Fronts(
                *(desk, server_state, partial(protocol, config, server_state, app_state, _loop)),
                head_max=head_max,
                head_deadline=head_deadline,
                keep_alive=config.timeout_keep_alive,
                access_log=config.access_log,
                waiting=waiting,
            )
        return Front(shared)

    return connect
