"""A stream that does not end with its connection: what ``Client.listen`` gives."""

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

HEARTBEAT = 15.0  # seconds, the hub's own default, until a welcome says otherwise
RETRY = (2.0, 5.0)  # seconds until the next attempt where no server has said it
HEARTBEATS = 3  # missed in a row: the connection is dead
NOTICES = frozenset(Notice)
REFUSED_FOR_NOW = (408, 425, 429)  # and 5xx, where who listens has nothing to lose by trying again


class State(StrEnum):
    CONNECTING = "connecting"
    OPEN = "open"  # welcomed
    WAITING = "waiting"  # for the next attempt, until ``waiting_until``
    CLOSED = "closed"  # by the server for good (204, refused), or by us


class Stream:
    """The publications for one listener, over as many connections as it takes. ``Client.listen`` makes it.

    Iterate over it. After a ``Gap``, an ``Unreachable`` or a cancelled wait it can be iterated on: nothing is lost, the
    next connection resumes behind what was given. Not for several tasks at a time.

    state, waiting_until: where it stands; the latter is the Unix time of the next attempt while it waits.
    last_event_id: the position of the last event that was given, or of what came after it and was not for this
        listener. Store it with what the event did; ``listen(last_event_id=...)`` goes on behind it.
    welcome: what the hub said last when it let us in, its fields as in ``docs/http-api.md``; {} before.
    error: why there is no connection now, or was none before this one. None when the server ended it as planned.
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
        self._heartbeat = heartbeat  # None: what the hub says
        self._retry_for, self._on_gap, self._on_state = retry_for, on_gap, on_state
        self._response: Response | None = None
        self._body: AsyncIterator[bytes] | None = None
        self._decoder = EventDecoder()
        self._arrived: deque[Event] = deque()
        self._closed = anyio.Event()
        self._retry = random.uniform(*RETRY)
        self._backoff = Backoff(*BACKOFF)
        self._wake = 0.0  # when the next attempt is due, by anyio's clock
        self._give_up = math.inf  # when to, by the same; infinite with a connection
        self._silence = HEARTBEATS * (heartbeat or HEARTBEAT)  # seconds, after which a connection is dead

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next publication. Raises Gap (unless ``on_gap`` takes it), Refused, Unreachable."""
        while self.state is not State.CLOSED:
            if self._arrived:
                event = self._arrived.popleft()
                if not await self._is_notice(event):
                    return event
            elif self._body is not None:
                self.last_event_id = self._decoder.last_event_id or self.last_event_id  # blocks without data move it
                await self._read(self._body)
            else:
                await self._connect()
        await self._drop()
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End it; whoever iterates over it comes to its end."""
        self._enter(State.CLOSED)
        self._closed.set()
        await self._drop()

    async def _is_notice(self, event: Event) -> bool:
        """Whether the hub itself said this."""
        self.last_event_id = event.id or self.last_event_id
        if event.type == Notice.WELCOME:
            self.welcome = fields(event.data)
            self._silence = HEARTBEATS * (self._heartbeat or _heartbeat(self.welcome))
        if self.state is not State.OPEN:
            self._backoff.reset()
            self._give_up = math.inf
            self._enter(State.OPEN)
        if event.type == Notice.GAP:
            await self._tell(_gap(event))
        return event.type in NOTICES

    async def _tell(self, gap: Gap) -> None:
        if self._on_gap is None:
            raise gap
        told = self._on_gap(gap)
        if inspect.isawaitable(told):
            await told

    async def _read(self, body: AsyncIterator[bytes]) -> None:
        try:
            piece = await self._http.read(body, self._silence)
        except self._http.transient as error:
            await self._lost(error)
        except BaseException:  # cancelled: the connection goes, the position stays
            await self._abandon()
            raise
        else:
            if piece is None:
                await self._lost(None)
            else:
                self._arrived.extend(self._decoder.feed(piece))

    async def _connect(self) -> None:
        if self._give_up == math.inf:
            self._give_up = anyio.current_time() + self._retry_for
        with anyio.CancelScope(deadline=self._wake):
            await self._closed.wait()
            return
        self._enter(State.CONNECTING)
        # The position in UTF-8, as browsers send it.
        behind = {"Last-Event-ID": self.last_event_id.encode()} if self.last_event_id else {}
        request = self._http.request("GET", self._target, {**self._headers, **behind}, timeout=self._timeout)
        try:
            self._response = await self._http.open(request, self._silence)
            await self._begin(self._response)
        except self._http.transient as error:
            await self._lost(error)
        except BaseException:
            await self._abandon()
            raise

    async def _begin(self, response: "Response") -> None:
        status, media_type = response.status_code, response.headers.get("content-type", "").partition(";")[0].strip()
        if status == 200 and media_type.lower() == MEDIA_TYPE:
            self._decoder, self._body = EventDecoder(), response.aiter_bytes()
        elif status >= 500 or status in REFUSED_FOR_NOW:
            await self._lost(refused(response, await beginning(response)), retry_after(response.headers))
        else:
            await self._end(response)

    async def _end(self, response: "Response") -> None:
        """An answer after which it makes no sense to come back (WHATWG 9.2.3); 204 is no error."""
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

    async def _lost(self, error: Exception | None, at_least: float = 0.0) -> None:
        """There is no connection now; the next attempt is due after what the server asked for, or longer."""
        await self._drop()
        if self.state is State.CLOSED:
            return
        if self._decoder.retry is not None:
            self._retry = min(max(self._decoder.retry / 1000, WAIT_MIN), WAIT_MAX)
        first_failure = not self._backoff.failures
        longer = self._backoff.next(self._retry)
        wait = max(self._retry, at_least, 0.0 if first_failure else longer)
        self._wake, self.waiting_until = anyio.current_time() + wait, time.time() + wait
        self.error = error
        self._enter(State.WAITING)
        if self._wake > self._give_up:
            self._give_up = math.inf
            raise Unreachable(f"No stream within {self._retry_for:g} s: {reason(error)}.") from error

    async def _abandon(self) -> None:
        if self.state is State.OPEN:
            self._enter(State.CONNECTING)
        await self._drop()

    async def _drop(self) -> None:
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
    """The seconds between two heartbeats that a hub says it keeps; one that says nothing keeps the default."""
    said = welcome.get("heartbeat")
    return min(said, WAIT_MAX) if isinstance(said, int | float) and said > 0 else HEARTBEAT


def _gap(event: Event) -> Gap:
    said = fields(event.data)
    requested = said.get("requested")
    return Gap(
        str(said.get("reason", "")),
        id=event.id or "",
        requested=None if requested is None else str(requested),
        oldest=str(said.get("oldest", "")),
        top=str(said.get("top", "")),
    )
