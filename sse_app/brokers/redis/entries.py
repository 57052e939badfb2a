"""An entry of the stream: what is in it, and the publication that it becomes.

    0-<offset>  v1  "<epoch> <time> <stamp> <previous stamp> <envelope>"

The script writes the head, whose times are microseconds, and reads it when it trims. ``v1`` is the version of the head
alone, which is the same for every version of the envelope. The envelope is a MessagePack map that the publishing node
makes:

    {"v": 2, "type": "tick", "topics": ["orders/42"], "to": ["c-1"], "exclude": ["c-2"], "json": true,
     "body": b"event: tick\\ndata: {}\\n\\n", "crit": ["a field that must not be ignored"]}

Only ``v`` and ``body`` are always there; the rules of the other fields are in ``brokers/formats.py``. Version 1 was an
array of type, topics, to, exclude and body. It is still read, and the digests of idempotency keys are still made of it,
so that a retry matches a publication of an older version.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from sse_app.brokers.formats import (
    UNREADABLE,
    VERSION,
    NotUnderstood,
    check_body,
    check_time,
    check_topics,
    check_understood,
    lost,
)
from sse_app.publication import Draft, Position, Publication

RawEntry = tuple[bytes, Sequence[bytes]]  # as Redis sends it: its id, then fields and values in turn

# 17 digits of a Unix time in microseconds last until the year 5138. int() refuses thousands of digits, float overflows.
_HEAD = re.compile(rb"([0-9a-z]{1,32}) (\d{1,17}) (\d{1,20}) (\d{1,20}) ", re.ASCII)
_ARRAY_OF_5 = b"\x95"  # how an envelope of version 1 begins


class _Envelope(msgspec.Struct, omit_defaults=True):
    v: int
    body: bytes
    type: str = "message"
    topics: tuple[str, ...] = ()
    to: frozenset[str] = frozenset()
    exclude: frozenset[str] = frozenset()
    json: bool = False
    crit: tuple[str, ...] = ()


class Head(NamedTuple):
    """The part of an entry that the script writes before the envelope.

    ``stamp`` and ``previous`` chain an entry to the one before.
    """

    epoch: str
    time: float
    stamp: str
    previous: str
    envelope: bytes


_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decode = msgspec.msgpack.Decoder(_Envelope).decode
_decode_1 = msgspec.msgpack.Decoder(tuple[str, tuple[str, ...], frozenset[str], frozenset[str], bytes]).decode


def microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)


def envelope(draft: Draft) -> bytes:
    """Return the envelope of a draft, always the same bytes for the same draft. Raises InvalidEvent."""
    kind, body = draft.event.type, draft.encode()
    return _encoder.encode(_Envelope(VERSION, body, kind, draft.topics, draft.to, draft.exclude, draft.is_json))


def content(draft: Draft) -> bytes:
    """Return what two publications with one idempotency key are compared by: the envelope of version 1."""
    return _encoder.encode((draft.event.type, draft.topics, sorted(draft.to), sorted(draft.exclude), draft.encode()))


def contents(drafts: Iterable[Draft]) -> bytes:
    """Return what two batches with one idempotency key are compared by. It is no ``content``: the first is no array."""
    return _encoder.encode(["batch", *map(content, drafts)])


def has_place(entry: RawEntry) -> bool:
    """Return True when the id of an entry is one of a position in the log."""
    return entry[0].startswith(b"0-")


def offset_of(entry: RawEntry) -> int:
    return int(entry[0].partition(b"-")[2])


def head_of(entry: RawEntry) -> Head | None:
    """Return the head of an entry, also of an envelope that is not understood; None if no script of ours wrote it."""
    fields = entry[1]
    if len(fields) != 2 or fields[0] != b"v1" or not (match := _HEAD.match(fields[1])):
        return None
    epoch, moment, stamp, previous = match.groups()
    time = int(moment) / 1_000_000
    return Head(epoch.decode(), time, stamp.decode(), previous.decode(), fields[1][match.end() :])


def publication_of(entry: RawEntry, epoch: str, now: float) -> Publication:
    """Return the publication of an entry that has a place in the log, a lost one if the entry is not ours, not of this
    epoch or not understood. ``now`` is the Unix time of a lost one whose entry names no time.
    """
    position, head = Position(epoch, offset_of(entry)), head_of(entry)
    if head is None or head.epoch != epoch:
        return lost(position, now)
    try:
        return _read(position, head)
    except UNREADABLE:
        return lost(position, head.time)


def _read(position: Position, head: Head) -> Publication:
    """Raises UNREADABLE."""
    time = check_time(head.time)
    if head.envelope.startswith(_ARRAY_OF_5):
        kind, topics, to, exclude, body = _decode_1(head.envelope)
        is_json = False
    else:
        read = _decode(head.envelope)
        if read.v == 1:
            raise NotUnderstood  # an entry of version 1 is an array, no map
        check_understood(read.v, read.crit)
        kind, topics, to, exclude, body, is_json = read.type, read.topics, read.to, read.exclude, read.body, read.json
    check_topics(topics)
    check_body(kind, body)
    return Publication(position, kind, topics, body, time, to, exclude, is_json)
