"""One stream, with the times at which its parts arrived."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import httpx

from sse_app.errors import NotChecked
from sse_app.events import MEDIA_TYPE, Event, EventDecoder, Notice
from sse_app.publication import Position

WELCOME_SECONDS = 5.0  # for a head, and then for the welcome; a hub sends both at once
STREAM_MAX = 4 * 1024**2  # bytes; our own streams have some hundred
BODY_MAX = 64 * 1024  # bytes read of an answer that is no stream


class Arrival(NamedTuple):
    time: float
    event: Event


class Stream:
    """The arrivals of one stream, with times in seconds of the monotonic clock."""

    def __init__(self) -> None:
        self.asked = time.monotonic()
        self.response: httpx.Response | None = None
        self.answered = self.asked  # when the response's head came
        self.last_read = self.asked  # when the newest bytes came
        self.arrivals: list[Arrival] = []
        self.heartbeats: list[float] = []  # when bytes came that completed no event
        self.body = b""  # the beginning, if it is no event stream
        self.ended: str | None = None  # why, once it has
        self.closed = self.asked  # when it ended
        self._decoder = EventDecoder()
        self._size = 0
        self._news = asyncio.Event()

    @property
    def is_events(self) -> bool:
        """True for an answer that EventSource takes as a stream (WHATWG HTML 9.2.3)."""
        if self.response is None or self.response.status_code != 200:
            return False
        media_type: str = self.response.headers.get("content-type", "").partition(";")[0]
        return media_type.strip().lower() == MEDIA_TYPE

    @property
    def welcome(self) -> Mapping[str, Any] | None:
        """The fields of the hub's welcome; None before it, and for a server that is no hub."""
        first = self.arrivals[0].event if self.arrivals else None
        if first is None or first.type != Notice.WELCOME:
            return None
        with suppress(ValueError):
            said = json.loads(first.data)
            return said if isinstance(said, dict) and Position.parse(str(said.get("top")).encode()) else None
        return None

    @property
    def cut(self) -> bool:
        """True when the stream has ended without a bye."""
        had_bye = any(arrival.event.type == Notice.BYE for arrival in self.arrivals)
        return self.is_events and self.ended is not None and not had_bye

    async def until(self, enough: Callable[[], bool], seconds: float) -> bool:
        """Wait until ``enough``. Return False when the stream ended before, or the time was over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not enough() and self.ended is None:
                    self._news.clear()
                    await self._news.wait()
        return enough()

    async def welcomed(self) -> Mapping[str, Any]:
        """Wait for the welcome. Raises NotChecked when none comes."""
        await self.until(lambda: bool(self.arrivals), WELCOME_SECONDS)
        if self.welcome is None:
            raise NotChecked(f"its stream had no welcome within {WELCOME_SECONDS:g} s")
        return self.welcome

    async def read(self, response: httpx.Response) -> None:
        """Read a response to its end, or to its limit."""
        self.response = response
        self.answered = self.last_read = time.monotonic()
        self._news.set()
        async for piece in response.aiter_bytes():
            self._size += len(piece)
            if self._size > (STREAM_MAX if self.is_events else BODY_MAX):
                break
            self._take(piece)

    def end(self, why: str) -> None:
        self.ended, self.closed = why, time.monotonic()
        self._news.set()

    def _take(self, piece: bytes) -> None:
        self.last_read = time.monotonic()
        if self.is_events:
            events = self._decoder.feed(piece)
            self.arrivals += [Arrival(self.last_read, event) for event in events]
            if not events:
                self.heartbeats.append(self.last_read)
        else:
            self.body += piece
        self._news.set()
