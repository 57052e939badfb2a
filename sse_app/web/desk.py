"""The desk: decides from the bytes of a request's head whether the request takes the short way.

The short way is for our own server (``server/front.py``), which answers there without a scope, a task and Starlette.
It takes POST /broadcast and GET /events when everything about them is in order: framing that has one meaning, headers
that the rules accept, parameters that are right, a caller who is known. All else is None here, and goes to the ASGI app
with the same bytes: so each refusal has one place, and whatever the short way takes is answered as the app would.
"""

import re
from collections.abc import Callable, Coroutine
from hashlib import sha256
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.types import Scope

from sse_app.errors import BadInput, SSEAppError
from sse_app.grants import OPEN, Grant
from sse_app.joining import StreamRequest
from sse_app.node import Node
from sse_app.publication import Draft, Envelope, Receipt
from sse_app.subscriber import Subscriber
from sse_app.web.callers import Callers, bearer
from sse_app.web.endpoints.batches import batch_of
from sse_app.web.endpoints.body import LARGE, described
from sse_app.web.endpoints.broadcast import draft_of, envelope_of
from sse_app.web.endpoints.events import stream_request
from sse_app.web.guard import Rules
from sse_app.web.stream import EventStream

HEADS = 1_024  # heads that are decided once: a publisher sends the same again and again
HEAD_KEPT = 1_024  # bytes of such a head at most
HEAD_MAX = 4_096  # bytes; a larger one is left to the app, since it would be taken apart each time that it comes

# What is in doubt does not match: a line without CR, white space before a colon, a folded line, bytes beyond ASCII.
_HEAD = re.compile(
    rb"(?P<method>POST|GET) (?P<path>/broadcast|/events)(?:\?(?P<query>[!\"$-~]*))? HTTP/1\.1\r\n"
    rb"(?P<fields>(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t -~]*\r\n)+)\r\n"
)
_LENGTH = re.compile(rb"[1-9][0-9]{0,8}")
# The fields that change how a request is framed or answered: of them only the short way's own values are taken.
_LEFT_TO_THE_APP = frozenset(
    (b"upgrade", b"http2-settings", b"expect", b"te", b"trailer", b"transfer-encoding", b"proxy-connection")
)


Field = tuple[bytes, bytes]
Server = tuple[str, int | None]  # our end of a connection, as ASGI has it


class Posting(NamedTuple):
    """A POST that is in order as far as its head tells, with a body of ``length`` bytes. ``bearer`` is where its
    credential stands in the head, None without one: what is kept of a head has no secret.
    """

    length: int
    envelope: Envelope
    is_json: bool
    key: str | None
    bearer: slice | None
    scope: Scope


class Opening(NamedTuple):
    """A GET of a stream that is in order. The grant is still to be put into ``asked``."""

    asked: StreamRequest
    bearer: slice | None
    scope: Scope


class Desk:
    """The desk of one hub; ``body_max`` is in bytes. With ``cors`` an Origin is answered, which is left to the app."""

    def __init__(self, node: Node, callers: Callers, rules: Rules, *, body_max: int, cors: bool) -> None:
        self.node, self._callers, self._rules = node, callers, rules
        self._body_max, self._cors = min(body_max, LARGE), cors
        self._kept = dict[object, Posting | Opening | None]()  # in the order in which they were first decided
        self.stream_fields = EventStream(node, StreamRequest.parse()).raw_headers

    def read(self, head: bytes, server: Server | None, scheme: str) -> Posting | Opening | None:
        """Return what a head asks for, None when that is left to the app. ``server`` is our end of the connection."""
        if len(head) > HEAD_KEPT:
            return self._read(head, server, scheme) if len(head) <= HEAD_MAX else None
        key = head if self._callers.everyone else sha256(head).digest(), server, scheme
        try:
            return self._kept[key]
        except KeyError:
            if len(self._kept) >= HEADS:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = asked = self._read(head, server, scheme)
            return asked

    def _read(self, head: bytes, server: Server | None, scheme: str) -> Posting | Opening | None:
        match = _HEAD.fullmatch(head)
        if match is None:
            return None
        scope: Scope = {
            "type": "http",
            "http_version": "1.1",
            "scheme": scheme,
            "server": server,
            "client": None,
            "method": match["method"].decode(),
            "path": match["path"].decode(),
            "root_path": "",
            "query_string": match["query"] or b"",
            "headers": _fields(match["fields"]),
        }
        if any(map(self._is_of_the_app, scope["headers"])):
            return None
        try:
            scope = self._rules.check(scope)
            place, scope = _place_of(bearer(Request(scope)), head), _without_secrets(scope)
            return _opening(scope, place) if scope["path"] == "/events" else self._posting(scope, place)
        except BadInput:
            return None

    def _is_of_the_app(self, field: Field) -> bool:
        name, value = field
        if name == b"connection":
            return value.lower() != b"keep-alive"
        return name in _LEFT_TO_THE_APP or (self._cors and name == b"origin")

    def _posting(self, scope: Scope, place: slice | None) -> Posting | None:
        length = _length_of(scope)
        if scope["method"] != "POST" or length is None or length > self._body_max or batch_of(scope) is not None:
            return None
        is_json, key = described(scope)
        return Posting(length, envelope_of(scope["query_string"]), is_json, key, place, scope)

    def may_publish(self, asked: Posting, head: bytes) -> tuple[Grant, Grant] | None:
        """Return the grant of a request to publish, as it was found and what is left of it; None when the request is
        left to the app, whatever its body is.
        """
        known = self._callers.known(asked.scope, _credential(asked, head))
        if known is None or self.node.draining or not self.node.life.started:
            return None
        try:
            known[1].check_publish(asked.envelope.topics)
        except SSEAppError:
            return None
        return known

    def publish(
        self, asked: Posting, head: bytes, body: bytes
    ) -> Receipt | Exception | Coroutine[Any, Any, Receipt] | None:
        """Publish a body at once, or return its publishing where that takes waiting. Return None when it is left to the
        app, and an exception that is a mistake of ours.
        """
        known = self.may_publish(asked, head)
        if known is None:
            return None
        found, grant = known
        try:
            key = grant.scope_key(asked.key)
            draft = draft_of(body, asked.envelope, is_json=asked.is_json, idempotency_key=key)
            receipt = self.node.publish_at_once(draft)
        except SSEAppError:
            return None
        except Exception as mistake:
            return mistake
        self._callers.count(found)
        return self._publish(draft, grant) if receipt is None else receipt

    def abandon(self, asked: Posting, head: bytes) -> None:
        """Count the caller of a request whose body never came, as the app does with the head."""
        if (known := self.may_publish(asked, head)) is not None:
            self._callers.count(known[0])

    async def _publish(self, draft: Draft, grant: Grant) -> Receipt:
        with self.node.admitted():
            return await self.node.publish(draft, grant)

    def join(
        self, asked: Opening, head: bytes, client: Callable[[], tuple[str, int] | None]
    ) -> Coroutine[Any, Any, Subscriber] | None:
        """Return the joining of a stream, None when it is left to the app. What it raises is answered as by the
        app, with ``refused`` of ``stream.py``. ``client`` finds the peer's address.
        """
        known = self._callers.known(asked.scope, _credential(asked, head))
        if known is None or not self.node.life.started:
            return None
        found, grant = known
        topic_filter, start, name, *_ = asked.asked
        address = None if grant.source == "open" else self._callers.address({**asked.scope, "client": client()})
        self._callers.count(found)
        return self.node.join(StreamRequest(topic_filter, start, name, grant, address))


def _fields(lines: bytes) -> list[Field]:
    """Return the fields of a head as an ASGI server gives them."""
    pairs = (line.split(b":", 1) for line in lines.split(b"\r\n")[:-1])
    return [(name.lower(), value.strip(b" \t")) for name, value in pairs]


def _length_of(scope: Scope) -> int | None:
    """Return the length of a body, None without one."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if _LENGTH.fullmatch(value) else None
    return None


def _opening(scope: Scope, place: slice | None) -> Opening | None:
    has_body = any(name == b"content-length" for name, _ in scope["headers"])
    if scope["method"] != "GET" or has_body or b"ticket=" in scope["query_string"]:
        return None
    asked = stream_request(Request(scope), OPEN)
    return Opening(asked, place, scope) if asked.start.since is None else None  # `15m` ago is another time each time


def _place_of(given: str | None, head: bytes) -> slice | None:
    """Return where a credential stands in the head that it was sent with."""
    if given is None:
        return None
    secret = given.encode("latin-1")
    start = head.index(secret, head.lower().index(b"\r\nauthorization:"))
    return slice(start, start + len(secret))


def _credential(asked: Posting | Opening, head: bytes) -> str | None:
    return None if asked.bearer is None else head[asked.bearer].decode("latin-1")


def _without_secrets(scope: Scope) -> Scope:
    """Return a request without the values of the headers that hold secrets."""
    headers = [(name, b"" if name in (b"authorization", b"cookie") else value) for name, value in scope["headers"]]
    return {**scope, "headers": headers}
