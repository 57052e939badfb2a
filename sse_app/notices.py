"""What the hub itself says on a stream: welcome, gap, cursor, bye and the heartbeat, as frames."""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from sse_app.events import Event, encode
from sse_app.publication import Position, Publication

HEARTBEAT = b":\n\n"  # a comment: keeps proxies from closing an idle stream, dispatches nothing (WHATWG 9.2.7)
LAST_DATA_MAX = 1_024  # characters of the last publication's data in /stats


class GapReason(StrEnum):
    TRIMMED = "trimmed"  # the log no longer holds it
    EPOCH = "epoch"  # the cursor is of a log that is no more
    AHEAD = "ahead"  # the cursor is past the end of the log
    MALFORMED = "malformed"  # no cursor of ours
    LOST = "lost"  # the broker lost it


def welcome(
    id: Position | None,
    *,
    client: str,
    subscribers: int,
    topics: tuple[str, ...],
    recovered: bool,
    last: Publication | None,
    top: Position,
    complete: bool | None = None,
    retry: int,
    heartbeat: float,
) -> bytes:
    """The first block of every stream. Without an id the client keeps the cursor it came with. ``complete`` says of a
    stream that begins in the past whether the log still holds what was asked for. ``retry`` is the reconnection time,
    in milliseconds; ``heartbeat`` is in seconds.
    """
    data = {
        "message": "Welcome!",
        "client": client,
        "subscribers": subscribers,
        "topics": topics,
        "recovered": recovered,
        "last": last and last.summary(),  # named, not repeated: `last=1` replays it as the event that it is
        "top": str(top),
        **({} if complete is None else {"complete": complete}),
        "retry": retry,
        "heartbeat": heartbeat,  # so that a client knows how long a silence is a dead connection
    }
    return encode(Event(_json(data), "welcome", id and str(id), retry))


def describe(publication: Publication) -> dict[str, object]:
    """A publication as ``last`` in ``/stats``; data of more than 1,024 characters is cut and says so."""
    data = publication.event.data
    described = {**publication.summary(), "data": data[:LAST_DATA_MAX]}
    return described if len(data) <= LAST_DATA_MAX else {**described, "truncated": True}


def gap(reason: GapReason, requested: str | None, *, start: Position, oldest: Position, top: Position) -> bytes:
    """Tells that publications are missing between ``requested`` and ``start``, which becomes the client's cursor.

    ``oldest`` is the first publication that the log still holds, ``top`` its last.
    """
    data = {"requested": requested, "oldest": str(oldest), "top": str(top), "reason": reason}
    return encode(Event(_json(data), "gap", str(start)))


def cursor(position: Position) -> bytes:
    """Moves the client's cursor: a block with an id and no data, which browsers do not dispatch."""
    return f"id: {position}\nevent: cursor\n\n".encode()


def bye(reason: str, retry: int) -> bytes:
    """The last block before a planned close, with a reconnection time of its own, in milliseconds."""
    return encode(Event(_json({"reason": reason, "retry": retry}), "bye", None, retry))


def come_back_later(retry: int) -> bytes:
    """The whole stream for an EventSource that cannot be served now: an HTTP error would end it for good."""
    return b"retry: %d\n\n" % retry


def _json(data: Mapping[str, object]) -> str:
    return msgspec.json.encode(data).decode()
