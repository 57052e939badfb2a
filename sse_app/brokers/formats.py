"""The rules of all stored formats: an entry names its version, and those of its fields that must not be ignored.

An entry is a map. A reader ignores fields that it does not know, unless the entry's ``crit`` names them (as ``crit`` of
a JWS header does, RFC 7515 section 4.1.11): then, as with a version above its own, it cannot know to whom the entry may
be shown. An entry that cannot be read or shown becomes a publication that is ``lost``: subscribers are told that
something is missing there.

A new field needs no new version. The version rises when a field that every reader knows gets another meaning.
"""

from collections.abc import Collection, Iterable

from sse_app.errors import BadInput
from sse_app.publication import Position, Publication

VERSION = 2  # of the entries that are written here; those of version 1 had neither `crit` nor `json`
CRITICAL = frozenset[str]()  # names in `crit` that this version understands
TIME_MAX = 10.0**11  # seconds, the year 5138: a datetime ends at 9999


class NotUnderstood(Exception):
    """An entry that cannot be read, or that a reader of this version must not show."""


def check_understood(version: int, critical: Iterable[str]) -> None:
    """Raises NotUnderstood for an entry of a newer version, or with a critical field that this one does not know."""
    if not 1 <= version <= VERSION or not CRITICAL.issuperset(critical):
        raise NotUnderstood


def check_time(time: float) -> float:
    """Return an entry's Unix time. Raises NotUnderstood for a time that is no date."""
    if not 0 <= time < TIME_MAX:
        raise NotUnderstood
    return time


def check_topics(topics: Collection[str]) -> None:
    """Raises NotUnderstood for topics with line ends, which would break out of a line of the stream. The version that
    wrote the topics may have other rules for all other characters.
    """
    joined = "".join(topics)
    if "\n" in joined or "\r" in joined:
        raise NotUnderstood


def check_body(event_type: str, body: bytes) -> None:
    """Raises NotUnderstood for a body that is not one block of a stream as ``Draft.encode`` makes it, with this event
    type and without an id.
    """
    named = b"" if event_type == "message" else b"event: %b\n" % event_type.encode()
    lines = body.count(b"\n", len(named)) - 2  # beside the first line of data and the blank one
    begins = body.startswith(named + b"data: ")
    if not (begins and body.endswith(b"\n\n") and lines == body.count(b"\ndata: ", len(named))) or b"\r" in body:
        raise NotUnderstood
    if not event_type or "\n" in event_type or (not body.isascii() and not _is_text(body)):
        raise NotUnderstood


def _is_text(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


# The errors of decoders, for bytes of any program. msgspec raises RecursionError for deeply nested ones.
UNREADABLE = (NotUnderstood, BadInput, ValueError, OverflowError, RecursionError)


def lost(position: Position, time: float) -> Publication:
    """Return the publication of an entry that cannot be read or shown. It reaches everyone, as the entry might have."""
    return Publication(position, "message", (), b"", time if 0 <= time < TIME_MAX else 0.0, lost=True)
