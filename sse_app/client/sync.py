"""The client for programs without an event loop.

client = SyncClient("http://127.0.0.1:8000")
for event in client.listen("orders/*"):
    print(event.type, event.data)
"""

import os
from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, Unpack

import anyio

from sse_app.client import (
    RETRY_FOR,
    Client,
    ClientOptions,
    ListenOptions,
    RevokeOptions,
    State,
    Stream,
    Ticket,
    TicketOptions,
)
from sse_app.client.credentials import PlainTokenFunction, check_plain
from sse_app.drafts import several
from sse_app.errors import Closed, Gap
from sse_app.events import Event
from sse_app.loop_thread import Call, LoopThread, Running
from sse_app.publication import PublishOptions, Receipt


class SyncClient:
    """A ``Client`` in a thread of its own, with the same arguments; a token function is a plain one.

    It connects when it is used, also in a forked child, and may be shared by threads. ``close`` ends it, as do the end
    of its ``with`` and of the interpreter. Nothing else may use a given ``http``, nor this client before a fork.
    """

    def __init__(
        self, url: str, *, token: str | PlainTokenFunction | None = None, **options: Unpack[ClientOptions]
    ) -> None:
        check_plain(token)
        reopens = options.get("http") is None
        self._thread = LoopThread("SyncClient", partial(Client, url, token=token, **options), reopens=reopens)

    def __repr__(self) -> str:
        return f"<SyncClient {self.name} of {self._thread.resource.url}>"

    @property
    def name(self) -> str:
        """The client's name to the hub. Each process makes another one unless it is given."""
        return self._thread.resource.name

    def __enter__(self) -> Self:
        self._thread.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the streams and the thread."""
        self._thread.close()

    def listen(
        self,
        *topics: str,
        on_gap: Callable[[Gap], None] | None = None,
        **options: Unpack[ListenOptions],
    ) -> "SyncStream":
        """Return the stream of ``Client.listen``, to iterate over with ``for``. ``on_gap`` is called in the thread that
        iterates, ``on_state`` in the client's own.
        """

        async def listen(client: Client) -> Stream:
            return client.listen(*topics, **options)

        return SyncStream(self._thread.opened(), self._thread.call(listen), on_gap)

    def publish(
        self,
        data: object,
        *,
        retry_for: float = RETRY_FOR,
        **options: Unpack[PublishOptions],
    ) -> Receipt:
        """Publish as ``Client.publish`` does, and return when the log holds it. An exception that a signal raises
        meanwhile gives it up: it may have been published.
        """
        return self._thread.call(lambda client: client.publish(data, retry_for=retry_for, **options))

    def publish_many(
        self,
        events: Iterable[object],
        *,
        retry_for: float = RETRY_FOR,
        **options: Unpack[PublishOptions],
    ) -> list[Receipt]:
        """Publish several events together as ``Client.publish_many`` does. They are iterated over in this thread."""
        given = several(events)
        return self._thread.call(lambda client: client.publish_many(given, retry_for=retry_for, **options))

    def stats(self) -> dict[str, Any]:
        """Return the hub's statistics, as ``Client.stats`` does."""
        return self._thread.call(lambda client: client.stats())

    def ticket(self, *topics: str, **options: Unpack[TicketOptions]) -> Ticket:
        """Return a ticket for the stream of one client, as ``Client.ticket`` does."""
        return self._thread.call(lambda client: client.ticket(*topics, **options))

    def connections(
        self,
        *,
        user: str | None = None,
        client: str | None = None,
        topic: str | None = None,
        limit: int | None = None,
    ) -> dict[str, Any]:
        """Return the open streams of a hub, as ``Client.connections`` does."""
        return self._thread.call(lambda asked: asked.connections(user=user, client=client, topic=topic, limit=limit))

    def kick(self, client: str | None = None, *, user: str | None = None, block: float | None = None) -> dict[str, Any]:
        """End the streams of a client's name, or of a user, as ``Client.kick`` does."""
        return self._thread.call(lambda asked: asked.kick(client, user=user, block=block))

    def revoke(self, **options: Unpack[RevokeOptions]) -> dict[str, Any]:
        """Take back what a token, a session, a user, a key or a signing key grants, as ``Client.revoke`` does."""
        return self._thread.call(lambda client: client.revoke(**options))


class _End:
    """The outcome of a step after the last event."""


END: Final = _End()


class SyncStream:
    """A ``Stream`` for a ``for`` loop; its attributes are those of ``Stream``.

    An exception that a signal raises in a wait (Ctrl+C, an alarm, a task queue's time limit) loses no event: one that
    comes meanwhile is kept, ``last_event_id`` stays before it, and the next step returns it.
    """

    def __init__(self, running: Running[Client], stream: Stream, on_gap: Callable[[Gap], None] | None) -> None:
        self._running, self._stream, self._on_gap = running, stream, on_gap
        self._process = os.getpid()
        self._outcome: Event | Exception | _End | None = None  # of the current step, until it is returned or raised
        self._steps = 0  # whose outcomes were returned or raised
        self._position: str | None = None  # during a step: that before its event
        self._step_lock = anyio.Lock()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        while True:
            if self._position is None:
                self._position = self._stream.last_event_id
            if self._outcome is None:
                self._wait()
            outcome = self._outcome
            # CPython runs handlers of signals at calls and at jumps backwards. There is none from here to the return,
            # so that an event is either still kept or returned.
            if isinstance(outcome, Event):
                self._steps += 1
                self._outcome = self._position = None
                return outcome
            if not isinstance(outcome, Exception):
                raise StopIteration
            on_gap: Callable[[Any], None] | None = self._on_gap if isinstance(outcome, Gap) else None
            self._steps += 1
            self._outcome = self._position = None
            if on_gap is None:
                raise outcome
            on_gap(outcome)

    def _wait(self) -> None:
        """Wait until there is an outcome. A step that has begun is finished also when nobody waits for it any more."""
        if not self._is_own_process():
            raise Closed("This stream was begun before a fork, and is the parent's: listen(last_event_id=...) anew.")
        try:
            if not self._is_closed():
                self._running.begin(call := Call(partial(self._step, self._steps)))
                call.result(self._running)
        except Closed:
            if not self._is_closed():
                raise
        if self._outcome is None and self._is_closed():
            self._outcome = END

    def _is_own_process(self) -> bool:
        return os.getpid() == self._process

    def _is_closed(self) -> bool:
        return self._stream.state is State.CLOSED

    async def _step(self, number: int, client: Client) -> None:
        """Take the step of this number, in the client's thread: one at a time, and each once."""
        async with self._step_lock:
            if self._outcome is not None or number != self._steps:
                return
            try:
                self._outcome = await anext(self._stream, END)
            except Exception as error:
                self._outcome = error

    def close(self) -> None:
        """End the stream; iterating over it ends too. A forked child does not end the stream of its parent."""

        async def close(client: Client) -> None:
            await self._stream.aclose()

        if self._is_own_process() and not self._is_closed():
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

    @property
    def bye(self) -> str:
        return self._stream.bye
