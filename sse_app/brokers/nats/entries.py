"""A message of the stream: what is in it, and the publication that it becomes.

    {"v":1,"data":"...","event":"tick","topics":["orders/42"],"to":["c-1"],"exclude":["c-2"]}

JSON, so that ``nats sub`` shows what is published. All but ``v``, its version, and ``data`` may be missing.
"""

from typing import Literal, NamedTuple

import msgspec

from sse_app.errors import BadInput
from sse_app.events import Event, check_type, encode
from sse_app.publication import Draft, Position, Publication


class Message(NamedTuple):
    """A message of the stream, with its sequence number and the Unix time that the server gave it."""

    offset: int
    time: float
    data: bytes


class _Envelope(msgspec.Struct, omit_defaults=True):
    v: Literal[1]
    data: str
    event: str = "message"
    topics: tuple[str, ...] = ()
    to: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Envelope).decode


def envelope(draft: Draft) -> bytes:
    """The same bytes for the same publication. Raises InvalidEvent."""
    draft.encode()  # what cannot go to subscribers is refused now
    named = tuple(sorted(draft.to)), tuple(sorted(draft.exclude))
    return _encode(_Envelope(1, draft.event.data, draft.event.type, draft.topics, *named))


def publication_of(message: Message, epoch: str) -> Publication | None:
    """None for a message that is not ours, or of another version."""
    position = Position(epoch, message.offset)
    try:
        content = _decode(message.data)
        body = encode(Event(content.data, check_type(content.event)))
    except (msgspec.MsgspecError, UnicodeDecodeError, BadInput):
        return None
    named = frozenset(content.to), frozenset(content.exclude)
    return Publication(position, content.event, content.topics, body, message.time, *named)
