"""A row of the log, and the publication that it becomes.

The version of a row is that of the file (``schema.py``), unless the row has one in ``version``. ``crit`` names fields
that must not be ignored. A row with either is written by a newer process that has migrated a file which this one reads.
"""

from typing import NamedTuple

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
from sse_app.publication import Position, Publication

COLUMNS = 'offset, time, type, topics, "to", exclude, body, json, version, crit'


class Row(NamedTuple):
    """The columns of ``COLUMNS``. Lists are joined by line ends; an empty text is an empty list."""

    offset: int
    time: float
    event_type: str
    topics: str
    to: str
    exclude: str
    body: bytes
    json: int | None
    version: int | None
    crit: str | None


def split(joined: str) -> tuple[str, ...]:
    return tuple(joined.split("\n")) if joined else ()


def is_understood(version: int | None, crit: str | None) -> bool:
    """Return True when a row with these may be shown."""
    try:
        _check(version, crit)
    except NotUnderstood:
        return False
    return True


def _check(version: int | None, crit: str | None) -> None:
    check_understood(VERSION if version is None else version, split(crit or ""))


def publication_of(row: Row, epoch: str) -> Publication:
    """Return the publication of a row, a lost one if the row cannot be read or must not be shown."""
    position = Position(epoch, row.offset)
    try:
        _check(row.version, row.crit)
        topics, to, exclude = split(row.topics), frozenset(split(row.to)), frozenset(split(row.exclude))
        check_topics(topics)
        check_body(row.event_type, row.body)
        time, is_json = check_time(row.time), bool(row.json)
        return Publication(position, row.event_type, topics, row.body, time, to, exclude, is_json)
    except UNREADABLE:
        return lost(position, row.time)
