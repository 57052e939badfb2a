"""The publications of an app, with their topics and recipients: a list that a test compares."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from sse_app.payload import encode_data

if TYPE_CHECKING:
    from sse_app.hub import Hub


@dataclass(frozen=True, slots=True)
class PublishedEvent:
    """One call of ``Hub.publish`` that the log has acknowledged. ``data`` is its text, as subscribers get it."""

    data: str
    type: str
    id: str
    topics: tuple[str, ...]
    to: frozenset[str]
    exclude: frozenset[str]


@contextmanager
def published(hub: "Hub") -> Iterator[list[PublishedEvent]]:
    """List what ``hub.publish`` publishes in this block, in the order of the acknowledgements.

        with published(hub) as sent:
            await client.post("/orders/42/pay")
        assert_events(sent, [Expected({"state": "paid"}, type="order", topic="orders/42")])

    It goes to the log and to subscribers all the same. A publication that was refused is not listed, nor is one that an
    idempotency key makes a repetition. For what clients POST to the hub's own endpoints, subscribe.
    """
    publish, sent = hub.publish, list[PublishedEvent]()

    async def listed(data: Any, *, topic: Any = None, to: Any = None, exclude: Any = None, **options: Any) -> Any:
        topic, to, exclude = _reread(topic), _reread(to), _reread(exclude)
        receipt = await publish(data, topic=topic, to=to, exclude=exclude, **options)
        if all(receipt.id != event.id for event in sent):
            kept = _names(topic), frozenset(_names(to)), frozenset(_names(exclude))
            sent.append(PublishedEvent(encode_data(data), options.get("event", "message"), receipt.id, *kept))
        return receipt

    with patch.object(hub, "publish", listed):
        yield sent


def _reread(given: Any) -> Any:
    """The names given, in what can be read twice: an iterator can be read once."""
    return tuple(given) if isinstance(given, Iterator) else given


def _names(given: str | Iterable[str] | None) -> tuple[str, ...]:
    return () if given is None else (given,) if isinstance(given, str) else tuple(given)
