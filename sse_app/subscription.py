"""A subscription: one stream of a hub, as a user of the library reads it."""

from collections import deque
from typing import Self

from sse_app.events import Event, EventDecoder
from sse_app.publication import Position
from sse_app.subscriber import Subscriber


class Subscription:
    """One stream of a hub, as ``Hub.subscribe`` gives it.

    Read either its events, with ``async for``, or its bytes, with ``read``, for a response that passes them on. A loop
    that was left goes on where it was with another ``async for``.
    """

    __slots__ = ("_decoder", "_events", "_is_ahead", "_position", "_subscriber")

    def __init__(self, subscriber: Subscriber, requested: Position | None = None) -> None:
        self._subscriber = subscriber
        self._decoder = EventDecoder()
        self._events: deque[Event] = deque()  # that were read from the subscriber, and not taken yet
        self._position = requested or subscriber.position  # of the newest event that was taken
        self._is_ahead = True  # the subscriber, of what was taken: at first of a gap that it may begin with

    @property
    def client(self) -> str:
        """The name that ``to`` and ``exclude`` of a publication may have for it."""
        return self._subscriber.client

    @property
    def topics(self) -> tuple[str, ...]:
        """The topic filters that were asked for, sorted; none when everything was."""
        return self._subscriber.filter.shown

    @property
    def position(self) -> Position:
        """The place of this stream in the log: of all before and at this position, what is for it was read. Subscribe
        with ``after`` and this position, or its ``str``, to go on from here.
        """
        return self._position if self._is_ahead else self._subscriber.position

    async def read(self) -> bytes:
        """Wait for the next bytes of the stream and return all that there are: whole blocks, heartbeats too. b"" when
        the stream has ended. Cancelling it loses nothing: the next call goes on where this one was.
        """
        data = await self._subscriber.read()
        self._is_ahead = False
        return data

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            data = await self._subscriber.read()
            if not data:
                raise StopAsyncIteration
            self._events.extend(self._decoder.feed(data))
        event = self._events.popleft()
        self._position = Position.parse((event.id or "").encode()) or self._position
        self._is_ahead = bool(self._events)
        return event
