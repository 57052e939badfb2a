"""A streaming response, read as events."""

from collections.abc import AsyncIterator

from sse_app.events import MEDIA_TYPE, Event, EventDecoder
from sse_app.testing.libraries import Response


def check_event_stream(response: Response) -> None:
    """Raise ValueError unless a response is a ``200 text/event-stream``, as EventSource asks (WHATWG HTML 9.2.3)."""
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if response.status_code != 200 or media_type != MEDIA_TYPE:
        raise ValueError(f"no event stream: status {response.status_code}, content type {media_type or 'missing'}")


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
