"""A client of a hub, for programs: listen without losing anything in silence, publish without publishing twice.

    async with Client("http://127.0.0.1:8000") as client:
        async for event in client.listen("orders/*"):
            print(event.type, event.data)

It needs httpx2, or httpx, and nothing of the hub. ``SyncClient`` is the same for programs without an event loop.
"""

import math
import re
import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from weakref import WeakSet

import anyio

from sse_app.client.answers import backoff, fields, reason, refused, retry_after
from sse_app.client.http import TIMEOUT, Http
from sse_app.client.stream import State as State
from sse_app.client.stream import Stream as Stream
from sse_app.errors import (
    Closed,
    Gap,
    InvalidClient,
    InvalidSince,
    InvalidTopic,
    InvalidURL,
    Refused,
    Unreachable,
)
from sse_app.events import check_type
from sse_app.payload import encode_data
from sse_app.publication import Names, check_idempotency_key, check_publish_key, names, recipients

if TYPE_CHECKING:
    from sse_app.client.http import AsyncClient, Response

RETRY_FOR = 60.0  # seconds; well within the 5 min for which a hub remembers an Idempotency-Key
# Overloaded, stopping, or what proxies answer while the hub restarts. With the key it is safe to send again.
NOT_NOW = (429, 502, 503, 504)
# The fates of a publication, from certain to uncertain: with each attempt it can only get worse.
FATES = ("It was not sent.", "It was not published.", "It may have been published.")


class Published(NamedTuple):
    """The hub's acknowledgement: ``id`` is the position in its log, ``subscribers`` how many it was queued for or is
    replayable by, ``durable`` what the log promises.
    """

    id: str
    subscribers: int
    durable: str


class Client:
    """A client of the hub at ``url``, with the path where it is mounted if there is one.

    url: its user and password, if any, are sent as Basic authentication and shown nowhere.
    name: its name to the hub, for ``to`` and ``exclude``, kept over reconnects; one is made when none is given.
    publish_key: what the hub asks publishers for; white space around it, as of a file's last line, is left out.
    heartbeat: seconds, that of the hub, which says it itself when it lets a stream in. A stream that is silent for
        three of them is dead, and resumed.
    http: an AsyncClient of httpx2 or httpx to use instead of one of its own, for TLS, proxies, other headers; it is
        not closed.

    It belongs to the event loop where it is first used. Leaving the ``async with``, or ``aclose``, ends its streams.
    Raises InvalidURL, and ConfigError for a key that cannot be sent and proxies that cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        publish_key: str | None = None,
        heartbeat: float | None = None,
        http: "AsyncClient | None" = None,
    ) -> None:
        self._http = Http(http)
        self.url, self._headers = self._http.address(url)
        self.name = name or f"c-{secrets.token_hex(6)}"
        self._heartbeat = heartbeat
        self._publisher = _bearer(publish_key) or self._headers
        if self._headers and self._publisher is not self._headers:
            raise InvalidURL("A user in the URL and a publish key cannot go together: a request has one Authorization.")
        self._streams: WeakSet[Stream] = WeakSet()
        self._closed = False

    def __repr__(self) -> str:
        return f"<Client {self.name} of {self.url}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        self._closed = True
        for stream in list(self._streams):
            await stream.aclose()
        await self._http.aclose()

    def listen(
        self,
        *topics: str,
        last: int | None = None,
        since: str | datetime | None = None,
        last_event_id: str = "",
        retry_for: float | None = None,
        on_gap: Callable[[Gap], Awaitable[None] | None] | None = None,
        on_state: Callable[[Stream], None] | None = None,
    ) -> Stream:
        """The publications that match any of these topic filters, all without one: iterate over what it returns.

        It connects with the first step, reconnects by itself and resumes behind what it gave. What is lost in spite of
        that is never passed over: iterating raises Gap, once, and can go on; or ``on_gap`` is called with it, at its
        place among the events, and it goes on by itself. ``on_state`` is called with the stream when its state changes.

        ``last`` first gives the newest that many, ``since`` what was published since a time (``15m`` is 15 minutes
        ago); ``last_event_id`` goes on behind a position that was stored. ``retry_for`` is how many seconds to try
        without success until iterating raises Unreachable; None is for ever. It raises Refused for an answer that
        another attempt would not change, and ends on a 204. Raises BadInput for what cannot be asked.
        """
        self._check_open()
        parameters = [("topic", topic) for topic in names("topic", topics, InvalidTopic)] + [("client", self.name)]
        if last is not None:
            parameters.append(("last", str(last)))
        if since is not None:
            moment = since if isinstance(since, str) else since.astimezone(UTC).isoformat()
            parameters.append(("since", moment))
        stream = Stream(
            self._http,
            self._http.target(f"{self.url}/events", tuple(parameters)),
            self._headers,
            last_event_id=_position(last_event_id),
            heartbeat=self._heartbeat,
            retry_for=math.inf if retry_for is None else retry_for,
            on_gap=on_gap,
            on_state=on_state,
        )
        self._streams.add(stream)
        return stream

    async def publish(
        self,
        data: object,
        *,
        topic: Names = None,
        event: str = "message",
        to: Names = None,
        exclude: Names = None,
        idempotency_key: str | None = None,
        retry_for: float = RETRY_FOR,
    ) -> Published:
        """Publish to every subscriber, or on one or several topics to those whose filter matches.

        ``data`` goes out as it is when it is a str, else as JSON (``sse_app.payload``). ``to`` and ``exclude`` name
        clients.
        A hub that cannot be reached, or says that it cannot now, is tried again for ``retry_for`` seconds. Each attempt
        has the same Idempotency-Key, ``idempotency_key`` or one that is made, so that a lost answer doubles nothing.
        0 is one attempt. Returns when the log has it. Raises BadInput and Refused, after which it is not published, and
        Unreachable, which says whether it may be.
        """
        self._check_open()
        key = secrets.token_hex(16) if idempotency_key is None else check_idempotency_key(idempotency_key)
        target = self._http.target(f"{self.url}/broadcast", _parameters(topic, event, to, exclude))
        request = self._http.request(
            "POST", target, {"Idempotency-Key": key, **self._publisher}, timeout=TIMEOUT, **_body(data)
        )
        failure: Exception = TimeoutError("no answer came")
        fate, over = 0, anyio.current_time() + retry_for
        with anyio.move_on_after(retry_for or TIMEOUT) as allowed:
            for failures in count():
                wait = backoff(failures)
                try:
                    response = await self._http.attempt(request, allowed.deadline - anyio.current_time())
                    return _published(response)
                except self._http.transient as error:
                    failure = error
                except Refused as error:
                    if error.status not in NOT_NOW:
                        raise
                    failure, wait = error, max(wait, retry_after(response.headers))
                fate = max(fate, self._fate(failure))
                if anyio.current_time() + wait > over:
                    break
                await anyio.sleep(wait)
        if allowed.cancelled_caught:
            fate = len(FATES) - 1
        why = f"Not acknowledged within {retry_for:g} s: {reason(failure)}."
        raise Unreachable(f"{why} {FATES[fate]}", key) from failure

    async def stats(self) -> dict[str, Any]:
        """What the hub counts; the fields are in ``docs/http-api.md``. Raises Refused, Unreachable."""
        self._check_open()
        target = self._http.target(f"{self.url}/stats", ())
        request = self._http.request("GET", target, self._headers, timeout=TIMEOUT)
        try:
            response = await self._http.send(request)
        except self._http.transient as error:
            raise Unreachable(f"No answer: {reason(error)}.") from error
        return _answer(response)

    def _fate(self, failure: Exception) -> int:
        """The worst that may have become of an attempt that failed so; an index of FATES."""
        if isinstance(failure, Refused):
            # A proxy's no says nothing of what is behind it.
            return 2 if failure.code in ("http_error", "outcome_unknown") else 1
        return 2 if self._http.is_sent(failure) else 0

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("This client is closed: make another one.")


def _bearer(publish_key: str | None) -> dict[str, str]:
    key = check_publish_key(publish_key)
    return {"Authorization": f"Bearer {key}"} if key else {}


def _position(last_event_id: str) -> str:
    position = last_event_id.strip()
    if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", position):
        raise InvalidSince("last_event_id is the id of an event: no control characters, no lone surrogates.")
    return position


def _parameters(topic: Names, event: str, to: Names, exclude: Names) -> tuple[tuple[str, str], ...]:
    event = check_type(event)
    return (
        *(("topic", name) for name in recipients("topic", topic, InvalidTopic)),
        *((("event", event),) if event != "message" else ()),
        *(("to", name) for name in recipients("to", to, InvalidClient)),
        *(("exclude", name) for name in names("exclude", exclude, InvalidClient)),
    )


def _body(data: object) -> dict[str, Any]:
    """The data of a publication, as httpx takes it."""
    kind = "text/plain; charset=utf-8" if isinstance(data, str) else "application/json"
    return {"content": encode_data(data).encode(), "headers": {"Content-Type": kind}}


def _answer(response: "Response") -> dict[str, Any]:
    if response.status_code != 200:
        raise refused(response, response.content)
    if said := fields(response.content):
        return said
    raise Refused(200, "http_error", "What is at this address is no hub.")


def _published(response: "Response") -> Published:
    said = _answer(response)
    if not isinstance(said.get("id"), str):
        raise Refused(200, "http_error", "What is at this address is no hub.")
    return Published(said["id"], said.get("subscribers", 0), said.get("durable", "none"))
