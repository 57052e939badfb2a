"""The client for programs without an event loop.

with SyncClient("http://127.0.0.1:8000") as client:
    for event in client.listen("orders/*"):
        print(event.type, event.data)
"""

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from anyio.from_thread import BlockingPortal, start_blocking_portal

from sse_app.client import Client, Published, State, Stream
from sse_app.errors import Gap
from sse_app.events import Event


class SyncClient:
    """A ``Client`` in a thread of its own, while its ``with`` lasts. Takes what ``Client`` takes."""

    def __init__(self, url: str, **options: Any) -> None:
        self._client = Client(url, **options)
        self._exits = ExitStack()
        self._portal: BlockingPortal | None = None

    @property
    def name(self) -> str:
        return self._client.name

    def __enter__(self) -> Self:
        self._portal = self._exits.enter_context(start_blocking_portal())
        self._exits.enter_context(self._portal.wrap_async_context_manager(self._client))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._portal = None
        self._exits.__exit__(kind, error, traceback)

    def listen(self, *topics: str, on_gap: Callable[[Gap], None] | None = None, **options: Any) -> "SyncStream":
        """``Client.listen``, to iterate over with ``for``. ``on_gap`` is called in the thread that iterates,
        ``on_state`` in the client's own.
        """
        return SyncStream(self._running(), self._client.listen(*topics, **options), on_gap)

    def publish(self, data: object, **options: Any) -> Published:
        """``Client.publish``; returns when the log has it."""
        return self._running().call(lambda: self._client.publish(data, **options))

    def stats(self) -> dict[str, Any]:
        """``Client.stats``."""
        return self._running().call(self._client.stats)

    def _running(self) -> BlockingPortal:
        if self._portal is None:
            raise RuntimeError("A SyncClient works inside its `with`.")
        return self._portal


class SyncStream:
    """A ``Stream`` for ``for``; its attributes are those of ``Stream``."""

    def __init__(self, portal: BlockingPortal, stream: Stream, on_gap: Callable[[Gap], None] | None) -> None:
        self._portal, self._stream, self._on_gap = portal, stream, on_gap

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        while True:
            try:
                event = self._portal.call(_next, self._stream)
            except Gap as gap:
                if self._on_gap is None:
                    raise
                self._on_gap(gap)
                continue
            if event is None:
                raise StopIteration
            return event

    def close(self) -> None:
        self._portal.call(self._stream.aclose)

    @property
    def state(self) -> State:
        return self._stream.state

    @property
    def waiting_until(self) -> float | None:
        return self._stream.waiting_until

    @property
    def last_event_id(self) -> str:
        return self._stream.last_event_id

    @property
    def welcome(self) -> dict[str, Any]:
        return self._stream.welcome

    @property
    def error(self) -> Exception | None:
        return self._stream.error


async def _next(stream: Stream) -> Event | None:
    return await anext(stream, None)
