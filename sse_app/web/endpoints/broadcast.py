"""``POST /broadcast``: publish the body."""

import asyncio
from functools import lru_cache, partial

import msgspec
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from sse_app.errors import EmptyBody, InvalidUTF8, SSEAppError, TooLarge
from sse_app.node import Node
from sse_app.payload import check_json, too_large
from sse_app.publication import Draft, Envelope, Receipt
from sse_app.web.callers import Callers
from sse_app.web.endpoints.batches import Batches, batch_of
from sse_app.web.endpoints.body import LARGE, described, read_body
from sse_app.web.endpoints.parameters import parse_envelope, parse_query, refuse_unknown
from sse_app.web.problems import method_not_allowed, mistake, problem

BROADCAST_PARAMETERS = ("topic", "event", "to", "exclude")
ENVELOPES = 512  # queries whose envelopes are kept
QUERY_KEPT = 512  # bytes of such a query at most
HEADERS = ((b"cache-control", b"no-store"), (b"content-type", b"application/json"))  # of the answer


class Broadcast:
    """The endpoint of one hub as an ASGI app, since it is called outside Starlette's routing (``app.py``). It answers
    its errors itself. A batch is for ``batches``. ``body_max`` is in bytes, ``body_deadline`` in seconds.
    """

    def __init__(self, node: Node, callers: Callers, batches: Batches, *, body_max: int, body_deadline: float) -> None:
        self._node, self._callers, self._batches = node, callers, batches
        self._body_max, self._body_deadline = body_max, body_deadline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await method_not_allowed({"Allow": "POST"})(scope, receive, send)
            return
        try:
            if (batch := batch_of(scope)) is None:
                body = answer(await self._publish(scope, receive))
            else:
                body = await self._batches.publish(batch, scope, receive)
        except SSEAppError as error:
            await problem(error)(scope, receive, send)
            return
        except Exception:
            await mistake()(scope, receive, send)
            raise  # for the server's log, as from an endpoint in Starlette's routing
        headers = [*HEADERS, (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _publish(self, scope: Scope, receive: Receive) -> Receipt:
        grant = self._callers.everyone or await self._callers.find(Request(scope))
        with self._node.admitted():
            envelope = envelope_of(scope["query_string"])
            must_be_json, key = described(scope)
            with self._callers.scope_counted():
                grant.check_publish(envelope.topics)
            key = grant.scope_key(key)
            body = await read_body(scope, receive, self._body_max, self._body_deadline, self._too_large)
            compose = partial(draft_of, body, envelope, is_json=must_be_json, idempotency_key=key)
            if len(body) > LARGE:
                draft = await asyncio.to_thread(lambda: compose().encoded())
            else:
                draft = compose()
            return await self._node.publish(draft, grant)

    def _too_large(self) -> TooLarge:
        return too_large(self._body_max)


def answer(receipt: Receipt) -> bytes:
    """Return the body of the answer to a publication."""
    return msgspec.json.encode({"id": receipt.id, "subscribers": receipt.subscribers, "durable": receipt.durable})


def envelope_of(query: bytes) -> Envelope:
    """Return the envelope that a query describes. Raises BadInput."""
    return _kept_envelope(query) if len(query) <= QUERY_KEPT else _envelope(query)


def _envelope(query: bytes) -> Envelope:
    given = parse_query(query)
    refuse_unknown(given, BROADCAST_PARAMETERS)
    return parse_envelope(given)


_kept_envelope = lru_cache(ENVELOPES)(_envelope)


def draft_of(body: bytes, envelope: Envelope, *, is_json: bool, idempotency_key: str | None) -> Draft:
    """Return the draft of a body in its envelope. Raises BadInput for a body that is not as it is described."""
    if not body:
        raise EmptyBody("The body is the data to publish, and it is empty.")
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise InvalidUTF8("The body is not valid UTF-8 text.") from None
    if is_json:
        check_json(body)
    return Draft.enclose(text, envelope, is_json=is_json, idempotency_key=idempotency_key)
