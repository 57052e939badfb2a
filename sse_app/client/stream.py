"""A stream that outlives its connections, as ``Client.listen`` returns it."""

import inspect
import math
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from enum import StrEnum
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import anyio

from sse_app.backoff import Backoff
from sse_app.client.answers import BACKOFF, WAIT_MAX, WAIT_MIN, beginning, fields, reason, refused, retry_after
from sse_app.client.http import TIMEOUT, Http
from sse_app.errors import Gap, Refused, Unreachable
from sse_app.events import MEDIA_TYPE, Event, EventDecoder, Notice

if TYPE_CHECKING:
    from sse_app.client.http import Response

HEARTBEAT = 15.0  # seconds: the hub's default, until its welcome says otherwise
RETRY = (2.0, 5.0)  # seconds until the next attempt, at random between, until a server has named a time
HEARTBEATS = 3  # without any of so many in a row a connection is lost
NOTICES = frozenset(Notice)
RETRIED = (408, 425, 429)  # beside 5xx: another attempt may succeed, and costs a listener nothing


class State(StrEnum):
    """The states of a stream. Each may end in CLOSED.

    CONNECTING -> OPEN: the first event has come, the hub's welcome
    CONNECTING -> WAITING: the attempt has failed
    OPEN -> WAITING: the connection was lost
    OPEN -> CONNECTING: a wait for an event was cancelled, and its connection with it
    WAITING -> CONNECTING: it is time for the next attempt
    """

    CONNECTING = "connecting"
    OPEN = "open"
    WAITING = "waiting"
    CLOSED = "closed"  # by ``aclose``, or by an answer that another attempt would not change (204, refused)


class Stream:
    """The publications for one listener, over as many connections as it takes. ``Client.listen`` makes it.

    Iterate over it, in one task at a time. After a ``Gap``, an ``Unreachable`` or a cancelled wait iterating can be
    continued, and nothing is lost: the next connection resumes behind the last event that was returned.

    state: one of ``State``.
    waiting_until: the Unix time of the next attempt while the state is WAITING, else None.
    last_event_id: the position of the last event that was returned, or a later one with nothing for this listener in
        between. Store it with the effects of the event; ``listen(last_event_id=...)`` resumes behind it.
    welcome: the fields of the hub's newest welcome (``docs/http-api.md``); {} before the first.
    error: the reason why there is no connection, or was none before this one. None when the server ended it as planned.
    """

    def __init__(
        self,
        http: Http,
        target: Any,
        headers: Mapping[str, str],
        *,
        last_event_id: str,
        heartbeat: float | None,
        retry_for: float,
        on_gap: "Callable[[Gap], Awaitable[None] | None] | None",
        on_state: "Callable[[Stream], None] | None",
    ) -> None:
        self.state = State.CONNECTING
        self.waiting_until: float | None = None
        self.last_event_id = last_event_id
        self.welcome: dict[str, Any] = {}
        self.error: Exception | None = None
        self._http, self._target = http, target
        self._headers = {
            **headers,
            "Accept": MEDIA_TYPE,
            "Accept-Encoding": "identity",
            "Cache-Control": "no-store",
        }
        self._timeout = http.library.Timeout(TIMEOUT, read=None, pool=None)
        self._heartbeat = heartbeat  # seconds; None: what the hub's welcome says
        self._retry_for, self._on_gap, self._on_state = retry_for, on_gap, on_state
        self._response: Response | None = None
        self._body: AsyncIterator[bytes] | None = None
        self._decoder = EventDecoder()
        self._decoded: deque[Event] = deque()
        self._closed = anyio.Event()
        self._retry = random.uniform(*RETRY)
        self._backoff = Backoff(*BACKOFF)
        self._next_attempt = 0.0  # when it is due, by anyio's clock
        self._give_up = math.inf  # the time to raise Unreachable, by anyio's clock; infinite with a connection
        self._silence = HEARTBEATS * (heartbeat or HEARTBEAT)  # seconds without a byte until a connection is lost

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Return the next publication. Raises Gap (unless ``on_gap`` takes it), Refused, Unreachable."""
        while self.state is not State.CLOSED:
            if self._decoded:
                event = self._decoded.popleft()
                await self._on_event(event)
                if event.type not in NOTICES:
                    return event
            elif self._body is not None:
                # A block without data moves the position too, and is no event.
                self.last_event_id = self._decoder.last_event_id or self.last_event_id
                await self._read(self._body)
            else:
                await self._connect()
        await self._close_response()
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the stream; iterating over it ends too."""
        self._enter(State.CLOSED)
        self._closed.set()
        await self._close_response()

    async def _on_event(self, event: Event) -> None:
        """Move the position, and follow what the hub itself says."""
        self.last_event_id = event.id or self.last_event_id
        if event.type == Notice.WELCOME:
            self.welcome = fields(event.data)
            self._silence = HEARTBEATS * (self._heartbeat or _heartbeat(self.welcome))
        if self.state is not State.OPEN:
            self._backoff.reset()
            self._give_up = math.inf
            self._enter(State.OPEN)
        if event.type == Notice.GAP:
            await self._on_gap_notice(_gap(event))

    async def _on_gap_notice(self, gap: Gap) -> None:
        if self._on_gap is None:
            raise gap
        pending = self._on_gap(gap)
        if inspect.isawaitable(pending):
            await pending

    async def _read(self, body: AsyncIterator[bytes]) -> None:
        try:
            piece = await self._http.read(body, self._silence)
        except self._http.transient as error:
            await self._on_disconnect(error)
        except BaseException:  # cancelled: the connection is closed, the position kept
            await self._on_cancelled()
            raise
        else:
            if piece is None:
                await self._on_disconnect(None)
            else:
                self._decoded.extend(self._decoder.feed(piece))

    async def _connect(self) -> None:
        if self._give_up == math.inf:
            self._give_up = anyio.current_time() + self._retry_for
        with anyio.CancelScope(deadline=self._next_attempt):
            await self._closed.wait()
            return
        self._enter(State.CONNECTING)
        # Browsers send the position in UTF-8 (WHATWG 9.2.3).
        position = {"Last-Event-ID": self.last_event_id.encode()} if self.last_event_id else {}
        request = self._http.request("GET", self._target, {**self._headers, **position}, timeout=self._timeout)
        try:
            self._response = await self._http.open(request, self._silence)
            await self._on_response(self._response)
        except self._http.transient as error:
            await self._on_disconnect(error)
        except BaseException:
            await self._on_cancelled()
            raise

    async def _on_response(self, response: "Response") -> None:
        status, media_type = response.status_code, response.headers.get("content-type", "").partition(";")[0].strip()
        if status == 200 and media_type.lower() == MEDIA_TYPE:
            self._decoder, self._body = EventDecoder(), response.aiter_bytes()
        elif status >= 500 or status in RETRIED:
            await self._on_disconnect(refused(response, await beginning(response)), retry_after(response.headers))
        else:
            await self._on_refusal(response)

    async def _on_refusal(self, response: "Response") -> None:
        """Close for good after an answer that another attempt would not change (WHATWG 9.2.3); 204 is no error."""
        match response.status_code:
            case 204:
                self.error = None
            case 200:
                self.error = Refused(200, "http_error", "What is at this address is no event stream.")
            case _:
                self.error = refused(response, await beginning(response))
        await self.aclose()
        if self.error is not None:
            raise self.error

    async def _on_disconnect(self, error: Exception | None, at_least: float = 0.0) -> None:
        """Plan the next attempt, no sooner than the server asked for."""
        await self._close_response()
        if self.state is State.CLOSED:
            return
        if self._decoder.retry is not None:
            self._retry = min(max(self._decoder.retry / 1000, WAIT_MIN), WAIT_MAX)
        first_failure = not self._backoff.failures
        longer = self._backoff.next(self._retry)
        wait = max(self._retry, at_least, 0.0 if first_failure else longer)
        self._next_attempt, self.waiting_until = anyio.current_time() + wait, time.time() + wait
        self.error = error
        self._enter(State.WAITING)
        if self._next_attempt > self._give_up:
            self._give_up = math.inf
            raise Unreachable(f"No stream within {self._retry_for:g} s: {reason(error)}.") from error

    async def _on_cancelled(self) -> None:
        if self.state is State.OPEN:
            self._enter(State.CONNECTING)
        await self._close_response()

    async def _close_response(self) -> None:
        response, self._response, self._body = self._response, None, None
        if response is not None:
            with anyio.CancelScope(shield=True):
                await response.aclose()

    def _enter(self, state: State) -> None:
        if state is not State.WAITING:
            self.waiting_until = None
        if state is not self.state:
            self.state = state
            if self._on_state is not None:
                self._on_state(self)


def _heartbeat(welcome: dict[str, Any]) -> float:
    """Return the seconds between two heartbeats as the hub's welcome says them, else the hub's default."""
    seconds = welcome.get("heartbeat")
    return min(seconds, WAIT_MAX) if isinstance(seconds, int | float) and seconds > 0 else HEARTBEAT


def _gap(event: Event) -> Gap:
    notice = fields(event.data)
    requested = notice.get("requested")
    return Gap(
        str(notice.get("reason", "")),
        id=event.id or "",
        requested=None if requested is None else str(requested),
        oldest=str(notice.get("oldest", "")),
        top=str(notice.get("top", "")),
    )
