"""Positions as ids on the wire, client names, and who a publication is for."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_app.errors import (
    BadInput,
    InvalidClient,
    InvalidData,
    InvalidIdempotencyKey,
    InvalidJSON,
    InvalidTopic,
    ReservedEvent,
    TooDeep,
    TooLarge,
)
from sse_app.events import Event, encode
from sse_app.publication import Audience, Draft, Position, Publication, check_client, check_recipients
from sse_app.topics import TopicFilter

EPOCH_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz"
positions = st.builds(Position, st.text(EPOCH_LETTERS, min_size=1, max_size=32), st.integers(0, 10**18 - 1))


def publication(*, topics: tuple[str, ...] = (), to: str = "", exclude: str = "", time: float = 0.0) -> Publication:
    body = encode(Event("a\nb", "tick"))
    return Publication(Position("e", 7), "tick", topics, body, time, frozenset(to), frozenset(exclude))


# --- positions ---


@given(positions)
def test_a_position_comes_back_from_its_id(position: Position) -> None:
    assert Position.parse(str(position).encode()) == position


@given(positions)
def test_an_id_is_safe_in_a_request_header_across_origins(position: Position) -> None:
    """Fetch: a CORS-safelisted value of at most 128 bytes; Last-Event-ID with any other would cost a preflight."""
    assert set(str(position)) <= {*EPOCH_LETTERS, "-"}
    assert len(str(position)) <= 128


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"-1",
        b"e-",
        b"e",
        b"e--1",
        b"e-01",
        b"e-+1",
        b"e-1 ",
        b" e-1",
        b"e-1\n",
        b"E-1",
        b"e-1.0",
        b"1.2.3",
        b"e-1e5",
        b"e-1-2",
        b"1' OR 1=1--",
        b"../..",
        b"%00",
        b"\0",
        b"e-\xd9\xa3",
        "e-٣".encode(),
        "é-1".encode(),
        "é-1".encode("latin-1"),
        b"e-1" + b"0" * 18,
        str(10**40).encode(),
        b"e" * 33 + b"-1",
        b"x" * 257,
    ],
)
def test_what_is_no_position_of_ours_is_none(raw: bytes) -> None:
    assert Position.parse(raw) is None


@given(st.binary(max_size=300) | st.text("0123456789abc-", max_size=8).map(str.encode))
def test_any_bytes_are_a_position_that_writes_itself_the_same_or_none(raw: bytes) -> None:
    position = Position.parse(raw)
    assert position is None or str(position).encode() == raw


def test_the_next_position_follows_in_the_same_epoch() -> None:
    assert Position("e", 0).next() == Position("e", 1)
    assert Position("e", 9) < Position("e", 9).next() == Position("e", 10)


# --- clients ---


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "x" * 64])
def test_a_plain_client_name_is_allowed(name: str) -> None:
    assert check_client(name) == name


@pytest.mark.parametrize("name", ["", "x" * 65, "a b", "a/b", "a\n", "é", "٣", "a\0", "*"])
def test_another_client_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidClient):
        check_client(name)
    with pytest.raises(InvalidClient):
        check_recipients(["fine", name])


def test_at_most_a_thousand_clients_are_named_each_once() -> None:
    names = [f"c{number}" for number in range(1_001)]
    assert check_recipients(names[:1_000] * 2) == set(names[:1_000])
    with pytest.raises(InvalidClient, match="1,000"):
        check_recipients(names)


# --- drafts ---


def test_one_name_is_as_good_as_several() -> None:
    one = Draft.compose("x", topic="t", event="tick", to="ann", exclude="bob")
    assert one == Draft(Event("x", "tick"), ("t",), frozenset(["ann"]), frozenset(["bob"]))
    several = Draft.compose("x", topic=["t", "u", "t"], to=iter(["ann", "bob"]), exclude={"cid"})
    assert several == Draft(Event("x"), ("t", "u"), frozenset(["ann", "bob"]), frozenset(["cid"]))


@pytest.mark.parametrize(
    ("data", "told", "is_json"),
    [("x", None, False), ('{"a":1}', None, False), ('{"a":1}', True, True), ({"a": 1}, None, True), (None, None, True)],
)
def test_a_draft_knows_whether_its_data_is_json(data: object, told: bool | None, is_json: bool) -> None:
    assert Draft.compose(data, is_json=told).is_json == is_json


@pytest.mark.parametrize("key", ["", "two words", "\ud800", "é", "k\n", "k" * 129])
def test_a_draft_with_a_key_that_cannot_be_sent_cannot_be_made(key: str) -> None:
    with pytest.raises(InvalidIdempotencyKey):
        Draft(Event("x"), idempotency_key=key)


def test_a_draft_is_encoded_without_an_id() -> None:
    assert Draft(Event("a\nb", "tick", "e-7", 3)).encode() == b"event: tick\ndata: a\ndata: b\n\n"
    assert Draft(Event("a", retry=3)).encode() == Draft(Event("a", id="e-7")).encode() == b"data: a\n\n"


def test_a_draft_that_was_encoded_before_is_changed_with_what_is_sent() -> None:
    draft = Draft(Event("a", "tick"), ("t",)).encoded()
    assert draft.encode() is draft.encode() == b"event: tick\ndata: a\n\n"
    assert replace(draft, event=Event("b")).encode() == b"data: b\n\n"
    assert draft == Draft(Event("a", "tick"), ("t",))


def test_other_data_of_a_draft_is_encoded_as_that_of_a_publication() -> None:
    draft = Draft.compose("a", topic="t", event="tick", to="ann", idempotency_key="k")
    assert draft.with_data({"n": 1}) == replace(draft, event=Event('{"n":1}', "tick"), is_json=True)
    assert draft.with_data({"n": 1}).with_data("b") == replace(draft, event=Event("b", "tick"))
    with pytest.raises(InvalidData):
        draft.with_data(b"a")


def test_a_draft_of_which_something_was_replaced_is_checked_as_one_that_is_composed() -> None:
    draft = Draft.compose({"n": 1}, topic=["t", "u"], event="tick", to="ann", exclude="bob", idempotency_key="k")
    assert draft.checked() == draft
    assert replace(draft, event=Event("{}", id="dropped", retry=3), topics=("v", "v"), to=frozenset()).checked() == (
        Draft.compose("{}", is_json=True, topic="v", exclude="bob", idempotency_key="k")
    )


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"event": Event("{}", "welcome")}, ReservedEvent),
        ({"event": Event("{")}, InvalidJSON),
        ({"event": Event("[" * 65 + "]" * 65)}, TooDeep),
        ({"event": Event('"' + "x" * 99 + '"')}, TooLarge),
        ({"event": Event({})}, InvalidData),  # type: ignore[arg-type]
        ({"topics": ("*",)}, InvalidTopic),
        ({"to": frozenset(["/"])}, InvalidClient),
        ({"exclude": frozenset(["two words"])}, InvalidClient),
    ],
    ids=str,
)
def test_what_cannot_be_composed_passes_no_check(changed: dict[str, Any], error: type[BadInput]) -> None:
    with pytest.raises(error):
        replace(Draft.compose({}), **changed).checked(body_max=100)


# --- publications ---


def test_the_event_of_a_publication_is_what_its_frame_says() -> None:
    assert publication().event == Event("a\nb", "tick", "e-7")


@pytest.mark.parametrize(
    ("to", "exclude", "seen_by"), [("", "", "abc"), ("ab", "", "ab"), ("", "a", "bc"), ("ab", "a", "b"), ("a", "a", "")]
)
def test_to_and_exclude_decide_who_sees_it(to: str, exclude: str, seen_by: str) -> None:
    item = publication(to=to, exclude=exclude)
    assert "".join(name for name in "abc" if item.visible_to(Audience((name,)))) == seen_by


@pytest.mark.parametrize(
    ("to", "exclude", "names", "seen"),
    [
        ("", "", (), True),
        ("a", "", (), False),
        ("", "a", (), True),
        ("a", "", ("x", "a"), True),
        ("", "a", ("x", "a"), False),
        ("a", "x", ("x", "a"), False),
    ],
)
def test_readers_with_several_names_or_none(to: str, exclude: str, names: tuple[str, ...], seen: bool) -> None:
    item = publication(to=to, exclude=exclude)
    assert item.visible_to(Audience(names)) == seen
    assert item.visible_to(None)


def test_it_reaches_a_client_that_may_see_it_and_whose_filter_matches() -> None:
    item = publication(topics=("t",), exclude="x")
    matching, other = TopicFilter.parse(["t"]), TopicFilter.parse(["u"])
    assert item.reaches(matching, Audience(("a",)))
    assert not item.reaches(matching, Audience(("x",)))
    assert not item.reaches(other, Audience(("a",)))


def test_the_summary_has_no_data_and_a_time_in_utc() -> None:
    assert publication(topics=("t", "u"), time=1_767_225_600.5).summary() == {
        "id": "e-7",
        "topics": ["t", "u"],
        "event": "tick",
        "time": "2026-01-01T00:00:00.500Z",
    }
