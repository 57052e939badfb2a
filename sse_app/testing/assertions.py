"""Events compared with those that a test expects, and the difference as text."""

import json
from collections.abc import AsyncIterable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TypeAlias

import anyio

from sse_app.errors import Gap
from sse_app.events import RESERVED_TYPES, Event
from sse_app.payload import encode_data
from sse_app.testing.published import PublishedEvent

NOTICES = RESERVED_TYPES - {"gap"}  # of the hub: a test that expects events does not care how often it was welcomed
SHOWN = 200  # characters of an event's data in a difference

Received: TypeAlias = Event | PublishedEvent


@dataclass(frozen=True, slots=True)
class Expected:
    """An event that a test expects.

    data: a str is the data as it is; any other value is compared as JSON, as ``hub.publish`` would send it; ``...`` is
        any data.
    type: the event type.
    topic: one of the topics, which ``published`` knows; a stream does not say them, but who subscribes to one topic
        gets nothing else.
    id: compared only when it is given.
    """

    data: object
    type: str = "message"
    topic: str | None = None
    id: str | None = None

    def matches(self, event: Received) -> bool:
        """Return True for an event that is as expected. Raises TypeError when its topic cannot be known."""
        if self.topic is not None and self.topic not in _topics_of(event):
            return False
        return self.type == event.type and self.id in (None, event.id) and self._matches_data(event.data)

    def _matches_data(self, data: str) -> bool:
        if self.data is ... or isinstance(self.data, str):
            return self.data in (..., data)
        try:
            found = json.loads(data)
        except ValueError:
            return False
        return bool(found == json.loads(encode_data(self.data)))

    def __str__(self) -> str:
        data = "..." if self.data is ... else encode_data(self.data)
        return _line(self.type, data, self.id, () if self.topic is None else (self.topic,))


async def assert_received(stream: AsyncIterable[Event], expected: Iterable[object], *, timeout: float = 5.0) -> None:
    """Read as many events from a stream as are expected, and raise AssertionError with the difference if they differ.

        await assert_received(events(response), [{"number": 42}, Expected("paid", type="order")])

    stream: events to iterate over: ``events(response)``, ``client.listen(...)``, a ``SlowReader``, a subscriber of
        ``hub.subscribe(...)``. An iterator can be read on behind those expected; give ``aiter(subscriber)`` for that.
    expected: of each event an Expected, an Event (whose id is compared if it has one), or its data, of type message.
    timeout: seconds for all of them.

    The notices of the hub (welcome, bye) are passed over unless their type is expected. A gap is told as soon as it
    comes, unless it is expected: what is behind it is not what was published.
    """
    wanted, arriving = [_expected(item) for item in expected], aiter(stream)
    received, end = list[Received](), ""
    with anyio.move_on_after(timeout) as limit:
        try:
            while len(received) < len(wanted) and not end:
                event = await anext(arriving, None)
                end = "the stream has ended" if event is None else _unexpected_gap(event, wanted)
                if event is not None and _counts(event, wanted):
                    received.append(event)
        except Gap as gap:
            end = f"a gap: {gap}"
    if limit.cancelled_caught:
        end = f"nothing more within {timeout:g} s"
    _compare(received, wanted, end)


def assert_events(received: Iterable[Received], expected: Iterable[object]) -> None:
    """Raise AssertionError with the difference unless these events are the expected ones, all of them and in order.

    received: the events of a list, such as ``recording.events`` or those of ``published(hub)``. The notices of the hub
        are passed over unless their type is expected.
    expected: as for ``assert_received``.
    """
    wanted = [_expected(item) for item in expected]
    _compare([event for event in received if _counts(event, wanted)], wanted, "")


def _expected(item: object) -> Expected:
    match item:
        case Expected():
            return item
        case Event():
            return Expected(item.data, item.type, id=item.id)
        case _:
            return Expected(item)


def _counts(event: Received, wanted: Sequence[Expected]) -> bool:
    return event.type not in NOTICES or any(event.type == item.type for item in wanted)


def _unexpected_gap(event: Event, wanted: Sequence[Expected]) -> str:
    if event.type != "gap" or any(item.type == "gap" for item in wanted):
        return ""
    return f"a gap: events before {event.id} are lost"


def _topics_of(event: Received) -> tuple[str, ...]:
    if isinstance(event, PublishedEvent):
        return event.topics
    raise TypeError(
        "An event of a stream does not say its topics: subscribe to one topic alone, or compare published(hub)."
    )


def _compare(received: Sequence[Received], wanted: Sequence[Expected], end: str) -> None:
    pairs = zip(wanted, received, strict=False)
    if end or len(wanted) != len(received) or not all(item.matches(event) for item, event in pairs):
        heading = f"received {len(received)} of {len(wanted)} expected events (- expected, + received)"
        raise AssertionError("\n".join([f"{heading}{end and ', then '}{end}", *_difference(received, wanted)]))


def _difference(received: Sequence[Received], wanted: Sequence[Expected]) -> Iterator[str]:
    """The lines of both, in order, those that match once."""
    keys = _keys(received, wanted)
    matcher = SequenceMatcher(None, range(len(wanted)), keys, autojunk=False)
    for tag, first, last, start, stop in matcher.get_opcodes():
        if tag == "equal":
            yield from (f"    {_shown(event)}" for event in received[start:stop])
        else:
            yield from (f"  - {item}" for item in wanted[first:last])
            yield from (f"  + {_shown(event)}" for event in received[start:stop])


def _keys(received: Sequence[Received], wanted: Sequence[Expected]) -> list[int]:
    """For each event the index of the expected one that it matches, each taken once; negative if there is none."""
    free, keys = list(range(len(wanted))), list[int]()
    for event in received:
        key = next((index for index in free if wanted[index].matches(event)), -1)
        keys.append(key)
        if key >= 0:
            free.remove(key)
    return keys


def _shown(event: Received) -> str:
    topics = event.topics if isinstance(event, PublishedEvent) else ()
    return _line(event.type, event.data, event.id, topics)


def _line(event_type: str, data: str, event_id: str | None, topics: Sequence[str]) -> str:
    text = data.replace("\n", "\\n")
    text = text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(data):,} characters)"
    facts = [f"topic={topic}" for topic in topics] + ([f"id={event_id}"] if event_id else [])
    return " ".join([event_type, text, *facts])
