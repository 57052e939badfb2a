"""A streaming response, read as events."""

from collections.abc import AsyncIterator

from sse_app.events import MEDIA_TYPE, Event, EventDecoder
from sse_app.testing.libraries import Response


def is_event_stream(response: Response) -> bool:
    """Return True for a ``200 text/event-stream``; EventSource refuses any other (WHATWG HTML 9.2.3)."""
    return response.status_code == 200 and _media_type(response) == MEDIA_TYPE


def check_event_stream(response: Response) -> None:
    """Raise ValueError for a response that is no event stream."""
    if not is_event_stream(response):
        media_type = _media_type(response) or "missing"
        raise ValueError(f"no event stream: status {response.status_code}, content type {media_type}")


def _media_type(response: Response) -> str:
    return str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()


async def events(response: Response) -> AsyncIterator[Event]:
    """The events of a streaming response, as a browser's EventSource would dispatch them.

    Comments and blocks without data (heartbeats, moved cursors) are not events. The client's read timeout bounds the
    wait for the next bytes: httpx.ReadTimeout. Raises ValueError for a response that is not a
    ``200 text/event-stream``, as EventSource would refuse it (WHATWG HTML 9.2.3).
    """
    check_event_stream(response)
    decoder = EventDecoder()
    async for chunk in response.aiter_raw():
        for event in decoder.feed(chunk):
            yield event
