"""The client for programs without an event loop.

client = SyncClient("http://127.0.0.1:8000")
for event in client.listen("orders/*"):
    print(event.type, event.data)
"""

import os
from collections.abc import Callable
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, Unpack

import anyio

from sse_app.client import RETRY_FOR, Client, Published, State, Stream
from sse_app.errors import Closed, Gap
from sse_app.events import Event
from sse_app.loop_thread import Call, LoopThread, Running
from sse_app.publication import PublishOptions

if TYPE_CHECKING:
    from sse_app.client.http import AsyncClient


class SyncClient:
    """A ``Client`` in a thread of its own. Takes what ``Client`` takes.

    It connects when it is used, also in a forked child, and may be shared by threads. ``close``, the end of its
    ``with`` or that of the interpreter closes it. ``http`` must not be used elsewhere, nor before a fork.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        publish_key: str | None = None,
        heartbeat: float | None = None,
        http: "AsyncClient | None" = None,
    ) -> None:
        make = partial(Client, url, name=name, publish_key=publish_key, heartbeat=heartbeat, http=http)
        self._thread = LoopThread("SyncClient", make, reopens=http is None)

    def __repr__(self) -> str:
        return f"<SyncClient {self.name} of {self._thread.resource.url}>"

    @property
    def name(self) -> str:
        """Its name to the hub. One that is made is another in each process."""
        return self._thread.resource.name

    def __enter__(self) -> Self:
        self._thread.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End its streams and its thread."""
        self._thread.close()

    def listen(
        self,
        *topics: str,
        last: int | None = None,
        since: str | datetime | None = None,
        last_event_id: str = "",
        retry_for: float | None = None,
        on_gap: Callable[[Gap], None] | None = None,
        on_state: Callable[[Stream], None] | None = None,
    ) -> "SyncStream":
        """``Client.listen``, to iterate over with ``for``. ``on_gap`` is called in the thread that iterates,
        ``on_state`` in the client's own.
        """

        async def listen(client: Client) -> Stream:
            return client.listen(
                *topics, last=last, since=since, last_event_id=last_event_id, retry_for=retry_for, on_state=on_state
            )

        return SyncStream(self._thread.opened(), self._thread.call(listen), on_gap)

    def publish(
        self,
        data: object,
        *,
        retry_for: float = RETRY_FOR,
        **options: Unpack[PublishOptions],
    ) -> Published:
        """``Client.publish``; returns when the log has it. An exception of a signal meanwhile gives it up: it may have
        been published.
        """
        return self._thread.call(lambda client: client.publish(data, retry_for=retry_for, **options))

    def stats(self) -> dict[str, Any]:
        """``Client.stats``."""
        return self._thread.call(lambda client: client.stats())


class _End:
    """The outcome of a step when the stream is over."""


END: Final = _End()


class SyncStream:
    """A ``Stream`` for ``for``; its attributes are those of ``Stream``.

    An exception that a signal raises while it waits (Ctrl+C, an alarm, a task queue's time limit) loses nothing: what
    comes meanwhile is kept, ``last_event_id`` stays before it, and the next step gives it.
    """

    def __init__(self, running: Running[Client], stream: Stream, on_gap: Callable[[Gap], None] | None) -> None:
        self._running, self._stream, self._on_gap = running, stream, on_gap
        self._process = os.getpid()
        self._outcome: Event | Exception | _End | None = None  # what came, until it is given
        self._turn = 0  # how many were given
        self._position: str | None = None  # while a step is not given: that before it
        self._asking = anyio.Lock()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        while True:
            if self._position is None:
                self._position = self._stream.last_event_id
            if self._outcome is None:
                self._wait()
            outcome = self._outcome
            # Handlers of signals run where Python code calls, is entered or loops: nowhere between these assignments
            # and the return, so that what is not kept any more is given.
            if isinstance(outcome, Event):
                self._turn += 1
                self._outcome = self._position = None
                return outcome
            if not isinstance(outcome, Exception):
                raise StopIteration
            on_gap: Callable[[Any], None] | None = self._on_gap if isinstance(outcome, Gap) else None
            self._turn += 1
            self._outcome = self._position = None
            if on_gap is None:
                raise outcome
            on_gap(outcome)

    def _wait(self) -> None:
        """Until there is an outcome. What was begun comes to its end, also when nobody waits for it any more."""
        if not self._is_here():
            raise Closed("This stream was begun before a fork, and is the parent's: listen(last_event_id=...) anew.")
        try:
            if not self._is_over():
                self._running.begin(call := Call(partial(self._ask, self._turn)))
                call.result(self._running)
        except Closed:
            if not self._is_over():
                raise
        if self._outcome is None and self._is_over():
            self._outcome = END

    def _is_here(self) -> bool:
        return os.getpid() == self._process

    def _is_over(self) -> bool:
        return self._stream.state is State.CLOSED

    async def _ask(self, turn: int, client: Client) -> None:
        """In the client's thread: one at a time, and one for each turn."""
        async with self._asking:
            if self._outcome is not None or turn != self._turn:
                return
            try:
                self._outcome = await anext(self._stream, END)
            except Exception as error:
                self._outcome = error

    def close(self) -> None:
        """End it. Whoever iterates over it comes to its end. In a forked child this leaves alone that of the parent."""

        async def close(client: Client) -> None:
            await self._stream.aclose()

        if self._is_here() and not self._is_over():
            self._running.begin(call := Call(close))
            call.result(self._running)
        self._outcome = END

    @property
    def state(self) -> State:
        return self._stream.state

    @property
    def waiting_until(self) -> float | None:
        return self._stream.waiting_until

    @property
    def last_event_id(self) -> str:
        position = self._position
        return self._stream.last_event_id if position is None else position

    @property
    def welcome(self) -> dict[str, Any]:
        return self._stream.welcome

    @property
    def error(self) -> Exception | None:
        return self._stream.error
