"""``POST /broadcast``: publish the body."""

import asyncio
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from sse_app.content_type import is_json
from sse_app.errors import EmptyBody, InvalidEvent, InvalidUTF8, UnsupportedEncoding
from sse_app.node import Node
from sse_app.payload import check_json, too_large
from sse_app.publication import Draft
from sse_app.web.callers import Callers
from sse_app.web.endpoints.body import read_body
from sse_app.web.endpoints.json_answer import json_answer
from sse_app.web.endpoints.parameters import Parameters, only, parse, refuse_unknown

BROADCAST_PARAMETERS = ("topic", "event", "to", "exclude")
LARGE = 256 * 1024  # bytes: a larger body is checked and encoded in a thread, since it would hold up the loop


class Broadcast:
    """The endpoint of one hub. ``body_max`` is in bytes, ``body_deadline`` in seconds."""

    def __init__(self, node: Node, callers: Callers, *, body_max: int, body_deadline: float) -> None:
        self._node, self._callers = node, callers
        self._body_max, self._body_deadline = body_max, body_deadline

    async def broadcast(self, request: Request) -> Response:
        """POST /broadcast: publish the body."""
        grant = self._callers.everyone or await self._callers.find(request)
        with self._node.admitted():
            given = parse(request)
            refuse_unknown(given, BROADCAST_PARAMETERS)
            event = only(given, "event", InvalidEvent)
            must_be_json = _is_declared_json(request)
            with self._callers.scope_counted():
                grant.check_publish(tuple(given.get("topic", ())))
            key = grant.scope_key(request.headers.get("idempotency-key"))
            body = await read_body(request, self._body_max, self._body_deadline, too_large(self._body_max))
            compose = partial(_compose, body, must_be_json, given, event, key)
            if len(body) > LARGE:
                draft = await asyncio.to_thread(lambda: compose().encoded())
            else:
                draft = compose()
            receipt = await self._node.publish(draft, grant)
        return json_answer({"id": receipt.id, "subscribers": receipt.subscribers, "durable": receipt.durable})


def _is_declared_json(request: Request) -> bool:
    """Return True when the Content-Type of a body is JSON. Raises BadInput for one that cannot be taken."""
    must_be_json = is_json(request.headers.get("content-type") or "text/plain")
    if (request.headers.get("content-encoding") or "identity").lower() != "identity":
        raise UnsupportedEncoding("The body is the data as it is; send it without Content-Encoding.")
    return must_be_json


def _compose(
    body: bytes, must_be_json: bool, given: Parameters, event: str | None, idempotency_key: str | None
) -> Draft:
    """Return the draft of a body and its parameters. Raises BadInput, also for a body that its headers describe
    wrongly.
    """
    if not body:
        raise EmptyBody("The body is the data to publish, and it is empty.")
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise InvalidUTF8("The body is not valid UTF-8 text.") from None
    if must_be_json:
        check_json(body)
    return Draft.compose(
        text,
        is_json=must_be_json,
        topic=given.get("topic"),
        event="message" if event is None else event,
        to=given.get("to"),
        exclude=given.get("exclude"),
        idempotency_key=idempotency_key,
    )
