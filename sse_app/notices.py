"""The hub's own notices on a stream: welcome, gap, cursor, bye and the heartbeat, as blocks of the native dialect."""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from sse_app.events import Event, Notice, encode
from sse_app.publication import Position, Publication
from sse_app.topics import TopicFilter

HEARTBEAT = b":\n\n"  # a comment: keeps proxies from closing an idle stream, dispatches nothing (WHATWG 9.2.7)
LAST_DATA_MAX = 1_024  # characters of the last publication's data in /stats


class GapReason(StrEnum):
    TRIMMED = "trimmed"  # the log no longer holds what comes next
    EPOCH = "epoch"  # the cursor is of an epoch that has ended
    AHEAD = "ahead"  # the cursor is past the end of the log
    MALFORMED = "malformed"  # the cursor is no position
    LOST = "lost"  # the log holds an entry that this node cannot read


class Welcome(msgspec.Struct, frozen=True, kw_only=True):  # made for each stream: a frozen dataclass takes 2 us
    """The content of the first block of a stream. Without an ``id`` the client keeps the cursor that it came with.

    ``complete`` says of a stream that begins in the past whether the log still holds what was asked for. ``retry`` is
    the reconnection time, in milliseconds; ``heartbeat`` is in seconds. ``subscribers`` is None for a stream that is
    not to know; ``user`` is whose stream it is, and ``expires_in`` the seconds after which that credential ends it.
    """

    id: Position | None
    client: str
    subscribers: int | None
    topics: tuple[str, ...]
    recovered: bool
    last: Mapping[str, object] | None  # the summary of the newest publication
    top: Position
    complete: bool | None = None
    retry: int
    heartbeat: float
    user: str | None = None
    expires_in: int | None = None


def welcome(welcome: Welcome) -> bytes:
    """Return the first block of a stream."""
    data = {
        "message": "Welcome!",
        "client": welcome.client,
        "subscribers": welcome.subscribers,
        "topics": welcome.topics,
        "recovered": welcome.recovered,
        "last": welcome.last,  # without its data: `last=1` replays it as an event
        "top": str(welcome.top),
        **({} if welcome.complete is None else {"complete": welcome.complete}),
        "retry": welcome.retry,
        "heartbeat": welcome.heartbeat,  # from which a client knows after what silence its connection is dead
        **({} if welcome.user is None else {"user": welcome.user}),
        **({} if welcome.expires_in is None else {"expires_in": welcome.expires_in}),
    }
    return encode(Event(_json(data), Notice.WELCOME.value, welcome.id and str(welcome.id), welcome.retry))


def describe(publication: Publication, topic_filter: TopicFilter) -> dict[str, object]:
    """Return a publication as ``last`` in ``/stats``, with those of its topics that the filter matches: data of more
    than 1,024 characters is cut, and ``truncated``.
    """
    data = publication.event.data
    described = {**publication.summary(topic_filter), "data": data[:LAST_DATA_MAX]}
    return described if len(data) <= LAST_DATA_MAX else {**described, "truncated": True}


def gap(reason: GapReason, requested: str | None, *, start: Position, oldest: Position, top: Position) -> bytes:
    """Return the notice that publications are missing between ``requested`` and ``start``, the client's new cursor.

    ``oldest`` is the first publication that the log still holds, ``top`` its last.
    """
    data = {"requested": requested, "oldest": str(oldest), "top": str(top), "reason": reason}
    return encode(Event(_json(data), Notice.GAP.value, str(start)))


def cursor(position: Position) -> bytes:
    """Return a block with an id and no data: it moves the client's cursor, and browsers do not dispatch it."""
    return f"id: {position}\nevent: {Notice.CURSOR}\n\n".encode()


def bye(reason: str, retry: int) -> bytes:
    """Return the last block before a planned close. ``retry`` is the reconnection time, in milliseconds."""
    return encode(Event(_json({"reason": reason, "retry": retry}), Notice.BYE.value, None, retry))


def come_back_later(retry: int) -> bytes:
    """Return the whole stream for an EventSource that cannot be served now: after an HTTP error it would not retry."""
    return b"retry: %d\n\n" % retry


def _json(data: Mapping[str, object]) -> str:
    return msgspec.json.encode(data).decode()
