"""An entry of the stream: what is in it, and the publication that it becomes.

    0-<offset>  v1  "<epoch> <time> <stamp> <previous stamp> <envelope>"

The script writes the head, in microseconds; the envelope is MessagePack, made by whoever publishes. Another version has
another name than ``v1``.
"""

from collections.abc import Sequence

import msgspec

from sse_app.publication import Draft, Position, Publication

RawEntry = tuple[bytes, Sequence[bytes]]  # as Redis answers it: its id, then fields and values in turn

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[str, tuple[str, ...], frozenset[str], frozenset[str], bytes]).decode


def microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)


def envelope(draft: Draft) -> bytes:
    """The same bytes for the same publication. Raises InvalidEvent."""
    return _encode((draft.event.type, draft.topics, sorted(draft.to), sorted(draft.exclude), draft.encode()))


def has_place(entry: RawEntry) -> bool:
    """Whether its id is that of a position in the log."""
    return entry[0].startswith(b"0-")


def offset_of(entry: RawEntry) -> int:
    return int(entry[0].partition(b"-")[2])


def stamps_of(entry: RawEntry) -> tuple[str, str]:
    """Of one of ours: its stamp, and the one of the entry of ours before it."""
    _, _, stamp, previous, _ = entry[1][1].split(b" ", 4)
    return stamp.decode(), previous.decode()


def publication_of(entry: RawEntry, epoch: str) -> Publication | None:
    """None for an entry that is not ours, not of this epoch or of another version."""
    fields = entry[1]
    if len(fields) != 2 or fields[0] != b"v1" or not has_place(entry):
        return None
    try:
        its_epoch, moment, stamp, previous, rest = fields[1].split(b" ", 4)
        if its_epoch.decode() != epoch or not (stamp + previous).isdigit():
            return None
        type, topics, to, exclude, body = _decode(rest)
        offset = offset_of(entry)
        return Publication(Position(epoch, offset), type, topics, body, int(moment) / 1_000_000, to, exclude)
    except (ValueError, msgspec.MsgspecError):
        return None
