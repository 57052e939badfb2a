"""``POST /broadcast`` of several events: a line each, or the items of a JSON array.

    Content-Type: application/x-ndjson      each line is the data of an event, and the query holds for all of them
    ?batch=1                                each item says its data and, if need be, where it goes; else the query does

All are published, or none.
"""

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from functools import partial
from itertools import islice
from typing import NamedTuple

import msgspec
from starlette.requests import Request
from starlette.types import Receive, Scope

from sse_app.drafts import BATCH_MAX, Drafts, at, too_large, too_many
from sse_app.errors import (
    BadInput,
    EmptyBody,
    InvalidBatch,
    InvalidJSON,
    InvalidParameter,
    InvalidUTF8,
    TooLarge,
)
from sse_app.grants import Grant
from sse_app.node import Node
from sse_app.payload import check_json
from sse_app.payload import too_large as too_large_alone
from sse_app.publication import Draft, Envelope, Receipt
from sse_app.web.callers import Callers
from sse_app.web.endpoints.body import LARGE, described, read_body
from sse_app.web.endpoints.parameters import Parameters, parse_envelope, parse_query, refuse_unknown

BATCH_PARAMETERS = ("topic", "event", "to", "exclude", "batch")
NDJSON = ("application/x-ndjson", "application/ndjson")
AT_ONCE = 256  # events, without a turn of the loop between checking them and publishing them
BLANK = b" \t\r"  # of a line that is skipped

WHAT_IT_IS = (
    "With batch=1 the body is a JSON array of objects, each with data and, if need be, topic, event, to, exclude, key,"
    " and with no other member."
)

ScopeKey = Callable[[str], str | None]
Read = Callable[[bytes, Envelope, int], Sequence[Draft]]

_ENCODED_NAME = re.compile(rb"(?:^|&)[^=&]*%")  # of a parameter in a query
_INDEX = re.compile(r"\$\[(\d+)\]")


class Kind(Enum):
    """The two forms of a batch."""

    LINES = 1
    ARRAY = 2


class _Item(msgspec.Struct, forbid_unknown_fields=True):
    """An event of an array. What it does not say is as the query says it."""

    data: msgspec.Raw
    topic: str | list[str] | None = None
    event: str | None = None
    to: str | list[str] | None = None
    exclude: str | list[str] | None = None
    key: str | None = None


_items = msgspec.json.Decoder(list[_Item]).decode
_text = msgspec.json.Decoder(str).decode


class Described(NamedTuple):
    """A batch as the head of its request describes it. ``given`` are the parameters of the query."""

    kind: Kind
    given: Parameters
    key: str | None


def batch_of(scope: Scope) -> Described | None:
    """Return what a request says of its batch; None for one that publishes its body as it is. Raises BadInput."""
    query, content_type = scope["query_string"], b""
    for name, value in scope["headers"]:
        if name == b"content-type":
            content_type = value
    lines = b"ndjson" in content_type.lower() and _media_type(content_type) in NDJSON
    if not lines and b"batch" not in query and not _ENCODED_NAME.search(query):
        return None
    given = parse_query(query)
    if not lines and "batch" not in given:
        return None
    _, key = described(scope)
    refuse_unknown(given, BATCH_PARAMETERS)
    if "batch" in given and (lines or given["batch"] != ["1"]):
        raise InvalidParameter("batch=1 says that the body is a JSON array of events; lines of JSON go without it.")
    return Described(Kind.LINES if lines else Kind.ARRAY, given, key)


def _media_type(content_type: bytes) -> str:
    return content_type.partition(b";")[0].strip().lower().decode("latin-1")


class Batches:
    """The endpoint of one hub for batches. ``body_max`` bytes are for the data of an event, ``batch_bytes`` for a body;
    ``body_deadline`` is in seconds.
    """

    def __init__(self, node: Node, callers: Callers, *, body_max: int, batch_bytes: int, body_deadline: float) -> None:
        self._node, self._callers = node, callers
        self._body_max, self._batch_bytes, self._body_deadline = body_max, batch_bytes, body_deadline

    async def publish(self, batch: Described, scope: Scope, receive: Receive) -> bytes:
        """Publish the batch of a request, and return the body of the answer. Raises SSEAppError."""
        grant = self._callers.everyone or await self._callers.find(Request(scope))
        with self._node.admitted():
            envelope = parse_envelope(batch.given)
            if batch.kind is Kind.LINES:
                self._check_publish(grant, (envelope.topics,))
            body = await read_body(scope, receive, self._batch_bytes, self._body_deadline, self._too_large)
            read = _lines if batch.kind is Kind.LINES else partial(_array, scope_key=grant.scope_key)
            compose = partial(self._compose, read, body, envelope, grant.scope_key(batch.key))
            if len(body) > LARGE:
                drafts = await asyncio.to_thread(lambda: _encoded(compose()))
            else:
                drafts = compose()
            if batch.kind is Kind.ARRAY:
                self._check_publish(grant, [draft.topics for draft in drafts])
            if len(drafts) > AT_ONCE:
                await asyncio.sleep(0)
            return answer(await self._node.publish_many(drafts, grant))

    def _compose(self, read: Read, body: bytes, envelope: Envelope, key: str | None) -> Drafts:
        drafts = read(body, envelope, self._body_max)
        if not drafts:
            raise EmptyBody("The body is the events to publish, and there are none.")
        return Drafts(tuple(drafts), key)

    def _check_publish(self, grant: Grant, topics: Sequence[tuple[str, ...]]) -> None:
        """Raises InsufficientScope unless the topics of each event are granted."""
        with self._callers.scope_counted():
            known = set[tuple[str, ...]]()
            for index, each in enumerate(topics):
                if each not in known:
                    known.add(each)
                    try:
                        grant.check_publish(each)
                    except BadInput as error:
                        raise (at(f"events[{index}]", error) if len(topics) > 1 else error) from None

    def _too_large(self) -> TooLarge:
        return too_large(self._batch_bytes)


def answer(receipts: Sequence[Receipt]) -> bytes:
    """Return the body of the answer to a batch: the ids and the numbers of subscribers, each in the order of events."""
    return msgspec.json.encode(
        {
            "ids": [receipt.id for receipt in receipts],
            "subscribers": [receipt.subscribers for receipt in receipts],
            "durable": receipts[0].durable,
        }
    )


def _encoded(drafts: Drafts) -> Drafts:
    return Drafts(tuple(draft.encoded() for draft in drafts), drafts.idempotency_key)


def _lines(body: bytes, envelope: Envelope, body_max: int) -> Sequence[Draft]:
    """Return the drafts of lines of JSON. Raises BadInput, whose text names the line."""
    numbered = list(islice(_numbered(body), BATCH_MAX + 1))
    if len(numbered) > BATCH_MAX:
        raise too_many()
    drafts: list[Draft] = []
    try:
        for _, line in numbered:
            drafts.append(Draft.enclose(_checked(line, body_max), envelope, is_json=True))
    except BadInput as error:
        raise at(f"line {numbered[len(drafts)][0]}", error) from None
    return drafts


def _numbered(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, without their line ends, numbered from 1 with the blank ones."""
    for number, line in enumerate(body.split(b"\n"), 1):
        if line.strip(BLANK):
            yield number, line.removesuffix(b"\r")


def _checked(line: bytes, body_max: int) -> str:
    """Return the text of a line that is JSON. Raises BadInput."""
    if len(line) > body_max:
        raise too_large_alone(body_max)
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise InvalidUTF8("It is not valid UTF-8 text.") from None
    check_json(line)
    return text


def _array(body: bytes, envelope: Envelope, body_max: int, *, scope_key: ScopeKey) -> Sequence[Draft]:
    """Return the drafts of a JSON array. Raises BadInput, whose text names the item by its index."""
    items = _parse(body)
    if len(items) > BATCH_MAX:
        raise too_many()
    drafts: list[Draft] = []
    try:
        for item in items:
            text, as_json = _data(bytes(item.data), body_max)
            key = None if item.key is None else scope_key(item.key)
            drafts.append(Draft.enclose(text, _envelope_of(item, envelope), is_json=as_json, idempotency_key=key))
    except BadInput as error:
        raise at(f"events[{len(drafts)}]", error) from None
    return drafts


def _parse(body: bytes) -> Sequence[_Item]:
    try:
        body.decode()
        return _items(body)
    except UnicodeDecodeError:
        raise InvalidUTF8("The body is not valid UTF-8 text.") from None
    except msgspec.ValidationError as error:
        index = _INDEX.search(str(error))
        refusal = InvalidBatch(WHAT_IT_IS)
        raise (refusal if index is None else at(f"events[{index[1]}]", refusal)) from None
    except (msgspec.DecodeError, RecursionError):
        raise InvalidJSON("The body is not valid JSON, or text in it holds half a surrogate pair.") from None


def _data(raw: bytes, body_max: int) -> tuple[str, bool]:
    """Return the text of an item's data, and True when it is JSON: a string is the text itself. Raises BadInput."""
    if raw.startswith(b'"'):
        text = _text(raw)
        size = len(text) if text.isascii() else len(text.encode())
    else:
        check_json(raw)
        text, size = raw.decode(), len(raw)
    if size > body_max:
        raise too_large_alone(body_max)
    return text, not raw.startswith(b'"')


def _envelope_of(item: _Item, envelope: Envelope) -> Envelope:
    """Return the envelope of an item: what it says itself, for the rest that of the query."""
    if item.topic is None and item.event is None and item.to is None and item.exclude is None:
        return envelope
    return Envelope.of(
        topic=envelope.topics or None if item.topic is None else item.topic,
        event=envelope.event if item.event is None else item.event,
        to=envelope.to or None if item.to is None else item.to,
        exclude=envelope.exclude if item.exclude is None else item.exclude,
    )
