"""The dialects: how publications become the blocks of a stream."""

import json

import pytest

from sse_app.dialects import NATIVE, write
from sse_app.events import EventDecoder
from sse_app.publication import Position, Publication


def publication(offset: int, *, lost: bool = False) -> Publication:
    return Publication(Position("e", offset), "message", (), b"" if lost else b"data: x\n\n", 0.0, lost=lost)


def test_the_native_frame_is_the_body_behind_its_position() -> None:
    assert NATIVE.frame(publication(7)) == b"id: e-7\ndata: x\n\n"


def test_a_frame_is_read_as_the_event_of_its_publication() -> None:
    assert EventDecoder().feed(NATIVE.frame(publication(7))) == [publication(7).event]


@pytest.mark.parametrize(
    ("lost", "shown", "events"),
    [
        ("", "3 4 5 6 7", 5),
        ("3", "2>3 4 5 6 7", 4),
        ("45", "3 3>5 6 7", 3),
        ("357", "2>3 4 4>5 6 6>7", 2),
        ("34567", "2>7", 0),
    ],
)
def test_lost_publications_in_a_row_are_one_gap_with_the_position_of_the_last(
    lost: str, shown: str, events: int
) -> None:
    written = write([publication(offset, lost=str(offset) in lost) for offset in range(3, 8)], NATIVE)
    found = []
    for event in EventDecoder().feed(written.data):
        position = Position.parse((event.id or "").encode())
        assert position
        if event.type == "gap":
            gap = json.loads(event.data)
            found.append(f"{gap['requested'][2:]}>{position.offset}")
            assert (gap["reason"], gap["top"], gap["oldest"]) == ("lost", str(position), str(position.next()))
        else:
            found.append(str(position.offset))
    assert " ".join(found) == shown
    assert (written.events, written.gaps) == (events, shown.count(">"))
