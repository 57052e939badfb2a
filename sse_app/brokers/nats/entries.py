"""A message of the stream: what is in it, and the publication that it becomes.

    {"v":2,"data":"...","event":"tick","topics":["orders/42"],"to":["c-1"],"exclude":["c-2"],"json":true,
     "crit":["a field that must not be ignored"]}

JSON, so that ``nats sub`` shows what is published. Only ``v``, its version, and ``data`` are always there; the rules of
the other fields are in ``brokers/formats.py``. Version 1 had neither ``json`` nor ``crit``. It is still read, and the
digests of idempotency keys are still made of it, so that a retry matches a publication of an older version.
"""

from typing import NamedTuple

import msgspec

from sse_app.brokers.formats import UNREADABLE, VERSION, check_time, check_topics, check_understood, lost
from sse_app.events import Event, encode
from sse_app.publication import Draft, Position, Publication


class Message(NamedTuple):
    """A message of the stream, with its sequence number and the Unix time that the server gave it."""

    offset: int
    time: float
    data: bytes


class _Envelope(msgspec.Struct, omit_defaults=True):
    v: int
    data: str
    event: str = "message"
    topics: tuple[str, ...] = ()
    to: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    json: bool = False
    crit: tuple[str, ...] = ()


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Envelope).decode


def envelope(draft: Draft) -> bytes:
    """Return the message of a draft, always the same bytes for the same draft. Raises InvalidEvent."""
    draft.encode()  # raises for an event that cannot be written to a stream
    return _encoded(draft, VERSION, draft.is_json)


def content(draft: Draft) -> bytes:
    """Return what two publications with one idempotency key are compared by: the message of version 1."""
    return _encoded(draft, 1, is_json=False)


def _encoded(draft: Draft, version: int, is_json: bool) -> bytes:
    named = tuple(sorted(draft.to)), tuple(sorted(draft.exclude))
    return _encode(_Envelope(version, draft.event.data, draft.event.type, draft.topics, *named, is_json))


def publication_of(message: Message, epoch: str) -> Publication:
    """Return the publication of a message, a lost one if the message is not ours or not understood."""
    position = Position(epoch, message.offset)
    try:
        return _read(position, message)
    except UNREADABLE:
        return lost(position, message.time)


def _read(position: Position, message: Message) -> Publication:
    """Raises UNREADABLE."""
    read = _decode(message.data)
    check_understood(read.v, read.crit)
    check_topics(read.topics)
    body = encode(Event(read.data, read.event))
    named = frozenset(read.to), frozenset(read.exclude)
    return Publication(position, read.event, read.topics, body, check_time(message.time), *named, read.json)
