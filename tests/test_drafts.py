from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from sse_app.drafts import BATCH_MAX, Drafts
from sse_app.errors import (
    BadInput,
    InvalidClient,
    InvalidData,
    InvalidIdempotencyKey,
    InvalidJSON,
    InvalidTopic,
    ReservedEvent,
    TooLarge,
)
from sse_app.events import Event
from sse_app.publication import Draft


def test_each_event_is_the_draft_that_it_would_be_alone() -> None:
    options: dict[str, Any] = {"topic": ["a", "b"], "event": "tick", "to": ["me", "@42"], "exclude": "you"}
    events = ["text", {"a": 1}, 5, None, "", ["é"]]
    assert Drafts.compose(events, **options) == Drafts(tuple(Draft.compose(data, **options) for data in events))
    assert Drafts.compose(events) == Drafts(tuple(map(Draft.compose, events)))


def test_a_draft_says_itself_where_it_goes() -> None:
    drafts = [Draft.compose("a", topic="t", idempotency_key="k"), Draft.compose({"b": 1}, to="me")]
    assert Drafts.compose([drafts[0], "between", drafts[1]]).items == (drafts[0], Draft.compose("between"), drafts[1])
    for options in ({"topic": "t"}, {"event": "tick"}, {"to": "me"}, {"exclude": "me"}):
        with pytest.raises(TypeError, match="A Draft has its own topic"):
            Drafts.compose(["text", drafts[0]], **options)  # type: ignore[arg-type]


def test_each_draft_is_checked_whatever_came_before_it() -> None:
    good = Draft.compose("x", topic="t")
    for wrong, error in (
        (replace(good, topics=("*",)), InvalidTopic),
        (replace(good, to=frozenset(["a b"])), InvalidClient),
        (replace(good, event=Event("x", "welcome")), ReservedEvent),
        (replace(good, event=Event("long")), TooLarge),
        (replace(good, event=Event(5)), InvalidData),  # type: ignore[arg-type]
        (replace(good, event=Event("{"), is_json=True), InvalidJSON),
    ):
        with pytest.raises(error, match=r"^events\[2\]: "):
            Drafts.compose([good, replace(good, event=Event("y")), wrong], body_max=3)
    listed = replace(good, topics=["t", "t"])  # type: ignore[arg-type]
    assert Drafts.compose([good, listed]).items == (good, good)


def test_events_come_from_anything_that_can_be_iterated_over() -> None:
    expected = Drafts(tuple(map(Draft.compose, (1, 2, 3))))
    for events in ([1, 2, 3], (1, 2, 3), {1: 0, 2: 0, 3: 0}.keys(), iter([1, 2, 3]), range(1, 4)):
        assert Drafts.compose(events) == expected
    assert len(Drafts.compose([])) == 0


@pytest.mark.parametrize("events", ["text", b"bytes", {"data": 1}, None, 5])
def test_what_is_one_event_is_refused(events: Any) -> None:
    with pytest.raises(InvalidData, match="A batch is several events"):
        Drafts.compose(events)


@pytest.mark.parametrize(
    ("events", "options", "error", "text"),
    [
        (["a", b"b"], {}, InvalidData, "events[1]: Data of type bytes"),
        (["a", "b", "long"], {"body_max": 3}, TooLarge, "events[2]: The data of a publication has at most 3 bytes"),
        (["a", "\ud800"], {}, InvalidData, "events[1]: The data holds a lone surrogate"),
        (["a"], {"topic": "a/*"}, InvalidTopic, "A topic to publish on"),
        (["a"], {"to": ["a b"]}, InvalidClient, "A client name"),
        (["a"], {"to": []}, InvalidClient, "to is empty"),
        (["a"], {"event": "welcome"}, ReservedEvent, "This event type"),
        (["a"], {"idempotency_key": "a b"}, InvalidIdempotencyKey, "An idempotency key"),
        (["é", "ab"], {"batch_bytes": 3}, TooLarge, "The events of a batch have at most 3 bytes together"),
    ],
    ids=["bytes", "too large", "surrogate", "topic", "to", "nobody", "type", "key", "together"],
)
def test_what_is_wrong_with_one_is_said_with_its_place(
    events: list[object], options: dict[str, Any], error: type[BadInput], text: str
) -> None:
    with pytest.raises(error) as raised:
        Drafts.compose(events, **options)
    assert str(raised.value).startswith(text)


def test_as_many_bytes_as_allowed_are_allowed() -> None:
    assert len(Drafts.compose(["é", "ab"], batch_bytes=4, body_max=2)) == 2


def test_a_batch_has_a_bound_and_an_endless_one_is_refused_in_time() -> None:
    given = count()
    with pytest.raises(TooLarge, match="at most 1,000 events"):
        Drafts.compose(given)
    assert next(given) == BATCH_MAX + 1
    with pytest.raises(TooLarge):
        Drafts((Draft(Event("a")),) * (BATCH_MAX + 1))
    assert len(Drafts.compose(range(BATCH_MAX))) == BATCH_MAX


def test_what_raises_while_it_is_iterated_over_raises() -> None:
    def events() -> Iterator[str]:
        yield "a"
        raise OSError("the file is gone")

    with pytest.raises(OSError, match="the file is gone"):
        Drafts.compose(events())


def test_a_key_is_for_the_whole_or_for_each() -> None:
    mine = Draft.compose("a", idempotency_key="k")
    with pytest.raises(InvalidIdempotencyKey, match="not both"):
        Drafts.compose([mine, "b"], idempotency_key="l")
    assert Drafts.compose(["a"], idempotency_key="l").idempotency_key == "l"
