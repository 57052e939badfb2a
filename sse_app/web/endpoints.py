"""The HTTP endpoints: parse, authorize, call the hub, answer. The contract is in ``docs/http-api.md``."""

import asyncio
import difflib
import hmac
import re
import time
from collections.abc import Collection
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from urllib.parse import parse_qsl

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response

from sse_app import metrics
from sse_app.content_type import is_json
from sse_app.errors import (
    Draining,
    EmptyBody,
    InvalidBody,
    InvalidClient,
    InvalidEvent,
    InvalidSince,
    InvalidUTF8,
    TooSlow,
    Unauthorized,
    UnknownParameter,
    UnsupportedEncoding,
)
from sse_app.hub import LAST_MAX, Hub
from sse_app.payload import check_json, too_large
from sse_app.publication import Draft, check_client
from sse_app.topics import TopicFilter
from sse_app.web.stream import EventStream

EVENTS_PARAMETERS = ("topic", "last_event_id", "lastEventId", "last", "since", "client")
BROADCAST_PARAMETERS = ("topic", "event", "to", "exclude")
VERSIONS = {name: version(name) for name in ("sse-app", "starlette", "sse-starlette", "uvicorn")}

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)

PAGE_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+ -]\d{2}:\d{2})")  # RFC 3339

Parameters = dict[str, list[str]]


class Endpoints:
    """The endpoints of one hub. ``body_max`` is in bytes, ``body_deadline`` in seconds."""

    def __init__(
        self, hub: Hub, static: Path, *, body_max: int, body_deadline: float, publish_key: str | None = None
    ) -> None:
        self._hub, self._static = hub, static
        self._body_max, self._body_deadline = body_max, body_deadline
        self._publish_key = None if publish_key is None else publish_key.encode()

    async def events(self, request: Request) -> Response:
        """GET /events: the stream of one subscriber."""
        given = _parameters(request)
        _refuse_near_misses(given, EVENTS_PARAMETERS)
        last, since = _only(given, "last", InvalidSince), _only(given, "since", InvalidSince)
        if last is not None and since is not None:
            raise InvalidSince("Give last or since, not both.")
        topics, client = given.get("topic", ()), _only(given, "client", InvalidClient)
        if request.method == "HEAD":  # subscribes to nothing, but is told what GET would be
            TopicFilter.parse(topics)
            if client is not None:
                check_client(client)
        return EventStream(
            self._hub,
            topics,
            after=_cursor(request, given),
            last=None if last is None else _count(last),
            since=None if since is None else _moment(since),
            client=client,
        )

    async def broadcast(self, request: Request) -> Response:
        """POST /broadcast: publish the body."""
        self._authorize(request)
        with self._hub.admitted():
            given = _parameters(request)
            _refuse_unknown(given, BROADCAST_PARAMETERS)
            event = _only(given, "event", InvalidEvent)
            data, is_json = await self._data(request)
            draft = Draft.compose(
                data,
                is_json=is_json,
                topic=given.get("topic"),
                event="message" if event is None else event,
                to=given.get("to"),
                exclude=given.get("exclude"),
                idempotency_key=request.headers.get("idempotency-key"),
            )
            receipt = await self._hub.publish_draft(draft)
        return _json({"id": receipt.id, "subscribers": receipt.subscribers, "durable": receipt.durable})

    def _authorize(self, request: Request) -> None:
        if self._publish_key is None:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(key.strip().encode(), self._publish_key)  # in constant time
        if scheme.lower() != "bearer" or not right:
            raise Unauthorized("Publishing here needs the publish key: send `Authorization: Bearer <key>`.")

    async def _data(self, request: Request) -> tuple[str, bool]:
        """The body as it is, once it is what its headers say, and whether they say that it is JSON."""
        must_be_json = is_json(request.headers.get("content-type") or "text/plain")
        if (request.headers.get("content-encoding") or "identity").lower() != "identity":
            raise UnsupportedEncoding("The body is the data as it is; send it without Content-Encoding.")
        body = await self._body(request)
        if not body:
            raise EmptyBody("The body is the data to publish, and it is empty.")
        try:
            text = body.decode()
        except UnicodeDecodeError:
            raise InvalidUTF8("The body is not valid UTF-8 text.") from None
        if must_be_json:
            check_json(body)
        return text, must_be_json

    async def _body(self, request: Request) -> bytes:
        declared = request.headers.get("content-length", "0")
        if not re.fullmatch("[0-9]{1,18}", declared):
            raise InvalidBody("Content-Length is not a number of bytes.")
        if int(declared) > self._body_max:
            raise too_large(self._body_max)
        body = bytearray()
        try:
            async with asyncio.timeout(self._body_deadline):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > self._body_max:
                        raise too_large(self._body_max)
        except TimeoutError:
            raise TooSlow("The body did not arrive in time (head_deadline).") from None
        except ClientDisconnect:
            raise InvalidBody("The connection ended before the body did.") from None
        return bytes(body)

    async def stats(self, request: Request) -> Response:
        return _json({**await self._hub.stats(), "versions": VERSIONS})

    async def metrics(self, request: Request) -> Response:
        totals = self._hub.totals + self._hub.siblings
        return Response(metrics.exposition(totals, self._hub.gauges()), media_type=CONTENT_TYPE_LATEST)

    async def healthz(self, request: Request) -> Response:
        """The process answers."""
        return _json({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """It takes publishers and subscribers."""
        self._hub.check_started()
        if self._hub.draining:
            raise Draining("The hub is stopping.")
        self._hub.broker.check()
        return _json({"status": "ready"})

    async def console(self, request: Request) -> Response:
        return FileResponse(self._static / "index.html", headers=PAGE_HEADERS)

    async def openapi(self, request: Request) -> Response:
        return FileResponse(Path(__file__).with_name("openapi.json"), media_type="application/json")


def _json(data: object) -> Response:
    return Response(msgspec.json.encode(data), media_type="application/json", headers={"Cache-Control": "no-store"})


def _parameters(request: Request) -> Parameters:
    """The query's parameters, each with its values. Not Starlette's: it puts U+FFFD for what is not UTF-8, and a
    topic that was silently changed is another topic.
    """
    given: Parameters = {}
    try:
        for name, value in parse_qsl(
            request.scope["query_string"].decode("ascii"), keep_blank_values=True, errors="strict"
        ):
            given.setdefault(name, []).append(value)
    except UnicodeDecodeError:
        raise InvalidUTF8("The query is not valid percent-encoded UTF-8.") from None
    return given


def _near_miss(name: str, known: Collection[str]) -> str | None:
    matches = difflib.get_close_matches(name.lower(), known, 1, 0.75)
    return matches[0] if matches else None


def _refuse_near_misses(given: Parameters, known: Collection[str]) -> None:
    for name in given.keys() - set(known):
        if meant := _near_miss(name, known):
            raise UnknownParameter(f"There is a parameter that is not known here; did you mean {meant}?")


def _refuse_unknown(given: Parameters, known: Collection[str]) -> None:
    """A misspelt topic must not broadcast to everyone."""
    for name in given.keys() - set(known):
        meant = _near_miss(name, known)
        hint = f"did you mean {meant}?" if meant else f"known are {', '.join(known)}."
        raise UnknownParameter(f"There is a parameter that is not known here; {hint}")


def _only(given: Parameters, name: str, error: type[Exception]) -> str | None:
    values = given.get(name, [])
    if len(values) > 1:
        raise error(f"The parameter {name} is given more than once.")
    return values[0] if values else None


def _cursor(request: Request, given: Parameters) -> bytes | None:
    """The cursor to resume behind, as it came: of the strongest kind that is there. An empty one is none; two of a kind
    are no cursor at all.
    """
    # Raw bytes: Starlette decodes headers as latin-1.
    header = [value for name, value in request.scope["headers"] if name == b"last-event-id"]
    # A polyfill adds lastEventId, of its newest event, to the URL it was given, which may hold an old last_event_id.
    kinds = (header, *([value.encode() for value in given.get(name, ())] for name in ("lastEventId", "last_event_id")))
    for kind in kinds:
        if sent := [value for value in kind if value]:
            return sent[0] if len(sent) == 1 else b"more than one"
    return None


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 7 and int(text) <= LAST_MAX):
        raise InvalidSince(f"last is a whole number from 0 to {LAST_MAX}.")
    return int(text)


def _moment(text: str) -> float:
    """Unix time of an RFC 3339 time, or of so long ago (``15m``, ``2h``)."""
    if match := re.fullmatch(r"([0-9]{1,9})([smhd])", text):
        return time.time() - int(match[1]) * _UNITS[match[2]]
    if _TIME.fullmatch(text):
        try:
            return datetime.fromisoformat(text.upper().replace(" ", "+")).timestamp()  # a bare + in a query is a space
        except (ValueError, OverflowError):
            pass
    raise InvalidSince("since is an RFC 3339 time such as 2026-01-31T08:00:00Z, or 30s, 15m, 2h, 1d.")
