"""A batch as a client sends it: a JSON array, in which a string is text as it is, and the keys that a retry repeats."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Self

from sse_app.client.answers import not_a_hub, receipt_of
from sse_app.client.asking import answer_in
from sse_app.drafts import Drafts
from sse_app.publication import Draft, Envelope, Receipt

if TYPE_CHECKING:
    from sse_app.client.http import Response

_quoted = json.JSONEncoder(ensure_ascii=False).encode


class Batch(NamedTuple):
    """The body of a request with so many events, its key, without which each event has one of its own, and what its
    query says: where the events go, if that is the same for all.
    """

    body: bytes
    number: int
    key: str | None
    envelope: Envelope

    @classmethod
    def of(cls, drafts: Drafts) -> Self:
        """Return the batch of these drafts, of which there is at least one."""
        key, items = drafts.idempotency_key, drafts.items
        if key is None and all(draft.idempotency_key is None for draft in items):
            key = secrets.token_hex(16)
        elif key is None:
            items = tuple(map(_with_key, items))
        envelope = _envelope(items[0])
        envelope = envelope if all(_envelope(draft) == envelope for draft in items) else Envelope.of()
        made = ",".join([_item(draft, envelope) for draft in items])
        return cls(f"[{made}]".encode(), len(items), key, envelope)

    @property
    def headers(self) -> Mapping[str, str]:
        return {} if self.key is None else {"Idempotency-Key": self.key}

    def receipts(self, response: "Response") -> list[Receipt]:
        """Return the receipts in an answer. Raises Refused."""
        answer = answer_in(response)
        ids, subscribers = answer.get("ids"), answer.get("subscribers")
        if not (
            isinstance(ids, list) and isinstance(subscribers, list) and len(ids) == len(subscribers) == self.number
        ):
            raise not_a_hub()
        durable = answer.get("durable")
        return [receipt_of(id, count, durable) for id, count in zip(ids, subscribers, strict=True)]


def _with_key(draft: Draft) -> Draft:
    return draft if draft.idempotency_key is not None else replace(draft, idempotency_key=secrets.token_hex(16))


def _envelope(draft: Draft) -> Envelope:
    return Envelope(draft.event.type, draft.topics, draft.to, draft.exclude)


def _item(draft: Draft, envelope: Envelope) -> str:
    """Return a draft as an item of the array: its data, its key, and what the envelope of the batch does not say."""
    event = draft.event
    item = f'{{"data":{event.data if draft.is_json else _quoted(event.data)}'
    if event.type != envelope.event:
        item += f',"event":{_quoted(event.type)}'
    if draft.topics != envelope.topics:
        item += f',"topic":{_quoted(draft.topics)}'
    if draft.to != envelope.to:
        item += f',"to":{_quoted(sorted(draft.to))}'
    if draft.exclude != envelope.exclude:
        item += f',"exclude":{_quoted(sorted(draft.exclude))}'
    if draft.idempotency_key is not None:
        item += f',"key":{_quoted(draft.idempotency_key)}'
    return f"{item}}}"
