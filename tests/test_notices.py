"""The hub's own notices on a stream, as a browser reads them."""

import json
from typing import Any

import pytest

from sse_app import notices
from sse_app.events import RESERVED_TYPES, Event, encode
from sse_app.notices import GapReason, Welcome
from sse_app.publication import Position, Publication
from sse_app.topics import TopicFilter
from tests.support import whatwg

TOP = Position("e", 9)
LAST = Publication(TOP, "tick", ("t",), encode(Event("secret", "tick")), 0.0)


def welcome(id: Position | None = TOP, last: Publication | None = None) -> bytes:
    return notices.welcome(
        Welcome(
            id=id,
            client="c",
            subscribers=2,
            topics=("t",),
            recovered=True,
            last=last.summary() if last else None,
            top=TOP,
            retry=3_000,
            heartbeat=7.5,
        )
    )


def gap(requested: str | None = "e-3") -> bytes:
    start = Position("e", 5)
    return notices.gap(GapReason.TRIMMED, requested, start=start, oldest=start.next(), top=TOP)


def read(frame: bytes) -> tuple[whatwg.Dispatched, dict[str, Any]]:
    """The one event of a frame, and its data as JSON."""
    (event,) = whatwg.parse(frame).events
    return event, json.loads(event.data)


@pytest.mark.parametrize("frame", [welcome(), welcome(None, LAST), gap(), gap(None), notices.bye("drain", 3_000)])
def test_a_notice_is_one_event_of_a_reserved_type_with_json_in_one_line(frame: bytes) -> None:
    event, data = read(frame)
    assert event.type in RESERVED_TYPES
    assert "\n" not in event.data
    assert isinstance(data, dict)
    assert frame.endswith(b"\n\n")


def test_the_welcome_says_who_is_there_and_where_the_log_ends() -> None:
    event, data = read(welcome(Position("e", 4)))
    assert event == whatwg.Dispatched("welcome", event.data, "e-4")
    assert data == {
        "message": "Welcome!",
        "client": "c",
        "subscribers": 2,
        "topics": ["t"],
        "recovered": True,
        "last": None,
        "top": "e-9",
        "retry": 3_000,
        "heartbeat": 7.5,
    }
    assert whatwg.parse(welcome()).reconnection_time == 3_000


def test_the_welcome_names_the_last_publication_without_its_data() -> None:
    _, data = read(welcome(last=LAST))
    assert data["last"] == LAST.summary()
    assert b"secret" not in welcome(last=LAST)


def test_a_welcome_without_id_has_no_id_field() -> None:
    fields = dict(whatwg.parse(welcome(None)).fields)
    assert "id" not in fields
    assert fields["event"] == "welcome"


def test_the_gap_names_its_range_and_its_id_is_the_new_cursor() -> None:
    event, data = read(gap())
    assert (event.type, event.last_event_id) == ("gap", "e-5")
    assert data == {"requested": "e-3", "oldest": "e-6", "top": "e-9", "reason": "trimmed"}
    assert read(gap(None))[1]["requested"] is None


def test_the_gap_reasons_are_those_of_the_contract() -> None:
    assert {str(reason) for reason in GapReason} == {"trimmed", "epoch", "ahead", "malformed", "lost"}


def test_the_cursor_moves_the_last_event_id_and_dispatches_nothing() -> None:
    parsed = whatwg.parse(notices.cursor(TOP))
    assert (parsed.events, parsed.last_event_id) == ([], "e-9")
    assert parsed.fields == [("id", "e-9"), ("event", "cursor")]


def test_the_heartbeat_is_a_comment_and_touches_nothing() -> None:
    parsed = whatwg.parse(welcome() + notices.HEARTBEAT)
    assert parsed.last_event_id == "e-9"
    assert len(parsed.events) == 1
    assert whatwg.parse(notices.HEARTBEAT).fields == []


def test_the_bye_has_a_reason_and_a_retry_and_keeps_the_cursor() -> None:
    parsed = whatwg.parse(welcome() + notices.bye("drain", 3_000))
    bye = parsed.events[-1]
    assert (bye.type, bye.last_event_id) == ("bye", "e-9")
    assert json.loads(bye.data) == {"reason": "drain", "retry": 3_000}
    assert parsed.reconnection_time == 3_000


def test_who_is_sent_away_gets_only_a_later_time_to_come_back() -> None:
    parsed = whatwg.parse(notices.come_back_later(7_000))
    assert parsed.events == []
    assert parsed.reconnection_time == 7_000


@pytest.mark.parametrize(("length", "cut"), [(0, False), (notices.LAST_DATA_MAX, False), (10_000, True)])
def test_a_described_publication_shows_at_most_1024_characters(length: int, cut: bool) -> None:
    body = encode(Event("é" * length))
    described = notices.describe(Publication(TOP, "message", (), body, 0.0), TopicFilter())
    assert described["data"] == "é" * min(length, 1_024)
    assert described.get("truncated", False) is cut
    assert described["id"] == "e-9"
