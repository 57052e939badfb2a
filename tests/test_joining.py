"""Joining: where a stream starts, whatever cursor its client comes with."""

from typing import Any

import pytest

from sse_app.errors import InvalidSince
from sse_app.joining import LAST_MAX, Start, StartRequest, resume
from sse_app.notices import GapReason
from sse_app.publication import Position

OLDEST, TOP = Position("e", 3), Position("e", 9)  # the log holds 4 to 9


@pytest.mark.parametrize(
    ("after", "start"),
    [
        (Position("e", 5), Start(Position("e", 5))),
        ("e-5", Start(Position("e", 5))),
        (b"e-5", Start(Position("e", 5))),
        (OLDEST, Start(OLDEST)),
        (TOP, Start(TOP)),
        (Position("e", 2), Start(OLDEST, GapReason.TRIMMED, Position("e", 2))),
        (Position("e", 10), Start(TOP, GapReason.AHEAD, Position("e", 10))),
        (Position("other", 5), Start(OLDEST, GapReason.EPOCH, Position("other", 5))),
        (Position("other", 99), Start(OLDEST, GapReason.EPOCH, Position("other", 99))),
        ("", Start(TOP, GapReason.MALFORMED)),
        ("\ud800", Start(TOP, GapReason.MALFORMED)),
        (b"\xff-1", Start(TOP, GapReason.MALFORMED)),
    ],
)
def test_a_cursor_is_continued_from_or_leaves_a_gap(after: Position | str | bytes, start: Start) -> None:
    assert resume(after, OLDEST, TOP) == start


@pytest.mark.parametrize(
    "asked", [{}, {"after": b"x"}, {"last": 0}, {"last": LAST_MAX}, {"since": -1e9}, {"after": "e-1", "last": 1}]
)
def test_what_says_where_to_start_is_taken(asked: dict[str, Any]) -> None:
    StartRequest(**asked)


@pytest.mark.parametrize(
    "asked",
    [
        *({"after": 5}, {"last": -1}, {"last": LAST_MAX + 1}, {"last": "1"}, {"last": 1, "since": 1.0}),
        *({"since": "x"}, {"since": float("nan")}, {"since": 1e300}),
    ],
)
def test_what_says_nothing_about_where_to_start_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(InvalidSince):
        StartRequest(**asked)
