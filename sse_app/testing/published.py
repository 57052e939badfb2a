"""The publications of an app, with their topics and recipients: a list that a test compares."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from sse_app.payload import encode_data

if TYPE_CHECKING:
    from sse_app.drafts import Drafts
    from sse_app.hub import Hub
    from sse_app.publication import Receipt


@dataclass(frozen=True, slots=True)
class PublishedEvent:
    """One event of ``Hub.publish`` or ``publish_many`` that the log has acknowledged. ``data`` is its text, as
    subscribers get it.
    """

    data: str
    type: str
    id: str
    topics: tuple[str, ...]
    to: frozenset[str]
    exclude: frozenset[str]


@contextmanager
def published(hub: "Hub") -> Iterator[list[PublishedEvent]]:
    """List what ``hub.publish`` and ``hub.publish_many`` publish in this block, in the order of the acknowledgements.

        with published(hub) as sent:
            await client.post("/orders/42/pay")
        assert_events(sent, [Expected({"state": "paid"}, type="order", topic="orders/42")])

    It goes to the log and to subscribers all the same. A publication that was refused is not listed, nor is one that an
    idempotency key makes a repetition. For what clients POST to the hub's own endpoints, subscribe.
    """
    publish, publish_batch, sent = hub.publish, hub._publish_batch, list[PublishedEvent]()

    async def listed(data: Any, *, topic: Any = None, to: Any = None, exclude: Any = None, **options: Any) -> Any:
        topic, to, exclude = _reread(topic), _reread(to), _reread(exclude)
        receipt = await publish(data, topic=topic, to=to, exclude=exclude, **options)
        kept = _names(topic), frozenset(_names(to)), frozenset(_names(exclude))
        note(PublishedEvent(encode_data(data), options.get("event", "message"), receipt.id, *kept))
        return receipt

    async def listed_batch(batch: "Drafts") -> list["Receipt"]:
        receipts = await publish_batch(batch)
        for draft, receipt in zip(batch, receipts, strict=True):
            event, kept = draft.event, (draft.topics, draft.to, draft.exclude)
            note(PublishedEvent(event.data, event.type, receipt.id, *kept))
        return receipts

    def note(published: PublishedEvent) -> None:
        if all(published.id != event.id for event in sent):
            sent.append(published)

    with patch.object(hub, "publish", listed), patch.object(hub, "_publish_batch", listed_batch):
        yield sent


def _reread(given: Any) -> Any:
    """The names given, in what can be read twice: an iterator can be read once."""
    return tuple(given) if isinstance(given, Iterator) else given


def _names(given: str | Iterable[str] | None) -> tuple[str, ...]:
    return () if given is None else (given,) if isinstance(given, str) else tuple(given)
