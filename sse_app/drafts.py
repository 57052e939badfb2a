"""Drafts that are published together: all of them, or none.

events -> Drafts.compose -> Broker.publish_many(drafts) -> a Position for each
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Self

from sse_app.errors import BadInput, InvalidData, InvalidIdempotencyKey, TooLarge, TopicRequired
from sse_app.payload import encode_data
from sse_app.publication import Draft, Envelope, Names, check_idempotency_key

BATCH_MAX = 1_000  # publications
BATCH_BYTES = 4 * 1024 * 1024  # of the data of all of them, by default


@dataclass(frozen=True, slots=True)
class Drafts:
    """A batch: at most BATCH_MAX drafts, in their order.

    ``idempotency_key`` is one for all of them; without it each draft may have its own. Raises TooLarge,
    InvalidIdempotencyKey.
    """

    items: tuple[Draft, ...]
    idempotency_key: str | None = None

    def __post_init__(self) -> None:
        if len(self.items) > BATCH_MAX:
            raise too_many()
        if self.idempotency_key is None:
            return
        check_idempotency_key(self.idempotency_key)
        if any(draft.idempotency_key is not None for draft in self.items):
            raise InvalidIdempotencyKey("A batch has one idempotency key, or each of its events has one: not both.")

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Draft]:
        return iter(self.items)

    def check_topics(self) -> None:
        """Raises TopicRequired unless each has a topic."""
        for place, draft in enumerate(self.items):
            try:
                draft.check_topic()
            except TopicRequired as error:
                raise at(f"events[{place}]", error) from None

    @classmethod
    def compose(
        cls,
        events: Iterable[object],
        *,
        body_max: int | None = None,
        batch_bytes: int | None = None,
        topic: Names = None,
        event: str = "message",
        to: Names = None,
        exclude: Names = None,
        idempotency_key: str | None = None,
    ) -> Self:
        """Return the batch of what a publisher gave, checked. An event is its data, to which the other arguments
        belong, or a Draft, which says all that itself. Data has ``body_max`` bytes at most, all of it ``batch_bytes``.

        Raises BadInput, whose text names the event, and TypeError for a Draft beside arguments that it would ignore.
        """
        envelope = Envelope.of(topic=topic, event=event, to=to, exclude=exclude)
        given = several(events)
        if envelope != Envelope.of() and any(isinstance(item, Draft) for item in given):
            raise TypeError("A Draft has its own topic, event, to and exclude; give these for events that are data.")
        items, known = list[Draft](), set[Envelope]()
        try:
            for item in given:
                if isinstance(item, Draft):
                    items.append(_checked(item, known, body_max))
                else:
                    items.append(_composed(item, envelope, body_max))
        except BadInput as error:
            raise at(f"events[{len(items)}]", error) from error.__cause__
        check_size(items, batch_bytes)
        return cls(tuple(items), idempotency_key)


def several(events: Iterable[object]) -> list[object]:
    """Return the events that are given. Raises TooLarge, InvalidData for what is one event."""
    if isinstance(events, str | bytes | bytearray | Mapping) or not isinstance(events, Iterable):
        raise InvalidData("A batch is several events: give a list of them.")
    given = list(islice(events, BATCH_MAX + 1))
    if len(given) > BATCH_MAX:
        raise too_many()
    return given


def _composed(data: object, envelope: Envelope, body_max: int | None) -> Draft:
    return Draft.enclose(encode_data(data, body_max), envelope, is_json=not isinstance(data, str))


def _checked(draft: Draft, known: set[Envelope], body_max: int | None) -> Draft:
    """Return a draft, checked. ``known`` are the envelopes that were checked before; this one's is added."""
    if not draft.is_json and isinstance(draft.event.data, str) and _is_in(_envelope(draft), known):
        encode_data(draft.event.data, body_max)
        return draft
    checked = draft.checked(body_max)
    known.add(_envelope(checked))
    return checked


def _envelope(draft: Draft) -> Envelope:
    return Envelope(draft.event.type, draft.topics, draft.to, draft.exclude)


def _is_in(envelope: Envelope, known: set[Envelope]) -> bool:
    try:
        return envelope in known
    except TypeError:  # its topics are in a list, say
        return False


def at(place: str, error: BadInput) -> BadInput:
    """Return an error whose text begins with the place in the batch that it is about."""
    error.args = (f"{place}: {error}",)
    return error


def check_size(drafts: Iterable[Draft], batch_bytes: int | None) -> None:
    """Raises TooLarge for drafts with more data than that together; None is no limit."""
    if batch_bytes is None:
        return
    texts = (draft.event.data for draft in drafts)
    if sum(len(text) if text.isascii() else len(text.encode()) for text in texts) > batch_bytes:
        raise too_large(batch_bytes)


def too_large(batch_bytes: int) -> TooLarge:
    return TooLarge(
        f"The events of a batch have at most {batch_bytes} bytes together (batch_bytes); nothing was published."
    )


def too_many() -> TooLarge:
    return TooLarge(f"A batch has at most {BATCH_MAX:,} events; nothing was published. Publish them in several.")
