"""A stream that outlives its connections, as ``Client.listen`` returns it."""

import inspect
import math
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from enum import StrEnum
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import anyio

from sse_app.backoff import Backoff
from sse_app.client.answers import (
    BACKOFF,
    UNAUTHORIZED,
    WAIT_MAX,
    WAIT_MIN,
    beginning,
    fields,
    reason,
    refused,
    retry_after,
)
from sse_app.client.credentials import Permit
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
# Reasons of a bye. After one of these the hub takes no more of the token, and after the first a newer one does.
EXPIRED = "expired"
OUTDATED = (EXPIRED, "revoked")


class State(StrEnum):
    """The states of a stream. Each may end in CLOSED.

    CONNECTING -> OPEN: the first event has come, the hub's welcome
    CONNECTING -> WAITING: the attempt has failed
    OPEN -> WAITING: the connection was lost
    OPEN -> CONNECTING: a wait for an event was cancelled, and its connection with it; or the token has expired, and
        its function is asked for a newer one
    WAITING -> CONNECTING: it is time for the next attempt
    """

    CONNECTING = "connecting"
    OPEN = "open"
    WAITING = "waiting"
    CLOSED = "closed"  # by ``aclose``, or by an answer that another attempt would not change (204, refused)


class Stream:
    """The publications for one listener, over as many connections as it takes. ``Client.listen`` makes it.

    Iterate over it, in one task at a time. After a ``Gap``, an ``Unreachable``, an error of the token function or a
    cancelled wait iterating can be continued, and nothing is lost: the next connection resumes behind the last event
    that was returned.

    state: one of ``State``.
    waiting_until: the Unix time of the next attempt while the state is WAITING, else None.
    last_event_id: the position of the last event that was returned, or a later one with nothing for this listener in
        between. Store it with the effects of the event; ``listen(last_event_id=...)`` resumes behind it.
    welcome: the fields of the hub's newest welcome (``docs/http-api.md``); {} before the first.
    error: the reason why there is no connection, or was none before this one. None when the server ended it as planned.
    bye: the reason that the hub gave for ending the last connection (``docs/http-api.md``), "" when it gave none.
    """

    def __init__(
        self,
        http: Http,
        target: Any,
        permit: Permit,
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
        self.bye = ""
        self._http, self._target, self._permit = http, target, permit
        self._headers = {"Accept": MEDIA_TYPE, "Accept-Encoding": "identity", "Cache-Control": "no-store"}
        self._timeout = http.library.Timeout(TIMEOUT, read=None, pool=None)
        self._heartbeat = heartbeat  # seconds; None: what the hub's welcome says
        self._retry_for, self._on_gap, self._on_state = retry_for, on_gap, on_state
        self._response: Response | None = None
        self._body: AsyncIterator[bytes] | None = None
        self._decoder = EventDecoder()
        self._decoded: deque[Event] = deque()
        self._closed = anyio.Event()
        self._authorizing: anyio.CancelScope | None = None  # the token function's newest call
        self._retry = random.uniform(*RETRY)
        self._backoff = Backoff(*BACKOFF)
        self._next_attempt = 0.0  # when it is due, by anyio's clock
        self._renewed = -math.inf  # when a token that had expired was last renewed at once, by anyio's clock
        self._give_up = math.inf  # the time to raise Unreachable, by anyio's clock; infinite with a connection
        self._silence = HEARTBEATS * (heartbeat or HEARTBEAT)  # seconds without a byte until a connection is lost

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Return the next publication.

        Raises Gap (unless ``on_gap`` takes it), Refused, Unreachable, and what the token function raises.
        """
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
        if self._authorizing is not None:
            self._authorizing.cancel()
        await self._close_response()

    async def _on_event(self, event: Event) -> None:
        """Move the position, and follow what the hub itself says."""
        self.last_event_id = event.id or self.last_event_id
        if event.type == Notice.BYE:
            self._on_bye(fields(event.data))
            return
        if event.type == Notice.WELCOME:
            self.welcome = fields(event.data)
            self._silence = HEARTBEATS * (self._heartbeat or _heartbeat(self.welcome))
        if self.state is not State.OPEN:
            self._backoff.reset()
            self._permit.begin_anew()
            self._give_up = math.inf
            self._enter(State.OPEN)
        if event.type == Notice.GAP:
            await self._on_gap_notice(_gap(event))

    def _on_bye(self, notice: dict[str, Any]) -> None:
        """Note why the hub ends this connection. A hub that is full says so to whom it lets come back later, too."""
        self.bye = str(notice.get("reason", ""))
        if self.bye in OUTDATED:
            self._permit.renew(refused=False)

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
        await self._authorize(request)
        if self._closed.is_set():
            return
        try:
            self._response = await self._http.open(request, self._silence)
            await self._on_response(self._response)
        except self._http.transient as error:
            await self._on_disconnect(error)
        except BaseException:
            await self._on_cancelled()
            raise

    async def _authorize(self, request: Any) -> None:
        """Give a request its header, until the stream is closed.

        What the token function raises is raised here, and counts as an attempt to connect that failed. Close for good
        when it has no other token than that which was refused.
        """
        is_authorized = True
        try:
            with anyio.CancelScope() as scope:
                self._authorizing = scope
                is_authorized = await self._permit.authorize(request)
        except Exception as error:
            self._give_up = math.inf
            self._plan(error)
            raise
        if not is_authorized and self.error is not None:
            await self.aclose()
            raise self.error

    async def _on_response(self, response: "Response") -> None:
        status, media_type = response.status_code, response.headers.get("content-type", "").partition(";")[0].strip()
        if status == 200 and media_type.lower() == MEDIA_TYPE:
            self._decoder, self._body, self.bye = EventDecoder(), response.aiter_bytes(), ""
        elif status >= 500 or status in RETRIED:
            await self._on_disconnect(refused(response, await beginning(response)), retry_after(response.headers))
        elif status == UNAUTHORIZED and self._permit.may_renew:
            refusal = refused(response, await beginning(response))
            self._permit.renew(refused=True)
            await self._close_response()
            self._reconnect_at_once(refusal)
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
        """Go on at once with a newer token, or else when the server said, in ``at_least`` seconds or more."""
        await self._close_response()
        if self._decoder.retry is not None:
            self._retry = min(max(self._decoder.retry / 1000, WAIT_MIN), WAIT_MAX)
        self._permit.begin_anew()
        if self.bye == EXPIRED and self._permit.is_outdated and anyio.current_time() >= self._renewed + self._retry:
            self._renewed = anyio.current_time()
            self._reconnect_at_once(error)
        else:
            self._plan(error, at_least)

    def _reconnect_at_once(self, error: Exception | None) -> None:
        if self.state is not State.CLOSED:
            self._next_attempt, self.error = anyio.current_time(), error
            self._enter(State.CONNECTING)

    def _plan(self, error: Exception | None, at_least: float = 0.0) -> None:
        """Plan the next attempt. Raises Unreachable when that is too late."""
        if self.state is State.CLOSED:
            return
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
