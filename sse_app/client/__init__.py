"""A client of a hub, for programs: listen without losing anything in silence, publish without publishing twice.

    async with Client("http://127.0.0.1:8000") as client:
        async for event in client.listen("orders/*"):
            print(event.type, event.data)

It needs httpx and nothing of the hub. ``SyncClient`` is the same for programs without an event loop.
"""

import math
import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import lru_cache
from itertools import count
from types import TracebackType
from typing import Any, NamedTuple, Self
from weakref import WeakSet

import anyio
import httpx

from sse_app.client.answers import TIMEOUT, TRANSIENT, backoff, fields, reason, refused, retry_after
from sse_app.client.stream import State as State
from sse_app.client.stream import Stream as Stream
from sse_app.errors import Gap, InvalidClient, InvalidTopic, InvalidURL, Refused, Unreachable
from sse_app.events import check_type
from sse_app.payload import encode_data
from sse_app.publication import Names, check_key, names, recipients

HEARTBEAT = 15.0  # seconds, the hub's own default
RETRY_FOR = 60.0  # seconds; well within the 5 min for which a hub remembers an Idempotency-Key
# Overloaded, stopping, or what proxies answer while the hub restarts. With the key it is safe to send again.
NOT_NOW = (429, 502, 503, 504)


class Published(NamedTuple):
    """The hub's acknowledgement: ``id`` is the position in its log, ``subscribers`` how many it was queued for or is
    replayable by, ``durable`` what the log promises.
    """

    id: str
    subscribers: int
    durable: str


class Client:
    """A client of the hub at ``url``, with the path where it is mounted if there is one.

    name: its name to the hub, for ``to`` and ``exclude``, kept over reconnects; one is made when none is given.
    publish_key: what the hub asks publishers for.
    heartbeat: seconds, that of the hub. A stream that is silent for three of them is dead, and resumed.
    http: an httpx.AsyncClient to use instead of one of its own, for TLS, proxies, other headers; it is not closed.

    Leaving the ``async with``, or ``aclose``, ends its streams. Raises InvalidURL.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        publish_key: str | None = None,
        heartbeat: float = HEARTBEAT,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self.url = _checked(url)
        self.name = name or f"c-{secrets.token_hex(6)}"
        self._heartbeat = heartbeat
        self._headers = {"Authorization": f"Bearer {publish_key}"} if publish_key else {}
        self._own_http = http is None
        # As many streams as are asked for: a limit would make the next one wait for ever.
        self._http = http or httpx.AsyncClient(limits=httpx.Limits(max_connections=None))
        self._streams: WeakSet[Stream] = WeakSet()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        for stream in list(self._streams):
            await stream.aclose()
        if self._own_http:
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
        another attempt would not change, and ends on a 204.
        """
        parameters = [("topic", topic) for topic in names("topic", topics, InvalidTopic)] + [("client", self.name)]
        if last is not None:
            parameters.append(("last", str(last)))
        if since is not None:
            moment = since if isinstance(since, str) else since.astimezone(UTC).isoformat()
            parameters.append(("since", moment))
        stream = Stream(
            self._http,
            httpx.URL(f"{self.url}/events", params=tuple(parameters)),
            last_event_id=last_event_id,
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
        key: str | None = None,
        retry_for: float = RETRY_FOR,
    ) -> Published:
        """Publish to every subscriber, or on one or several topics to those whose filter matches.

        ``data`` goes out as it is when it is a str, else as JSON (``sse_app.payload``). ``to`` and ``exclude`` name
        clients.
        A hub that cannot be reached, or says that it cannot now, is tried again for ``retry_for`` seconds. Each attempt
        has the same Idempotency-Key, ``key`` or one that is made, so that an answer which was lost doubles nothing.
        Returns when the log has it. Raises BadInput, Refused, and Unreachable, after which it may have been published
        or not.
        """
        key = secrets.token_hex(16) if key is None else check_key(key)
        url = _target(
            f"{self.url}/broadcast",
            recipients("topic", topic, InvalidTopic),
            check_type(event),
            recipients("to", to, InvalidClient),
            names("exclude", exclude, InvalidClient),
        )
        request = self._http.build_request("POST", url, timeout=TIMEOUT, **_body(data))
        request.headers.update({"Idempotency-Key": key, **self._headers})
        failure: Exception = TimeoutError("no answer came")
        with anyio.move_on_after(retry_for) as allowed:
            for failures in count():
                wait = backoff(failures)
                try:
                    response = await self._http.send(request)
                    return _published(response)
                except TRANSIENT as error:
                    failure = error
                except Refused as error:
                    if error.status not in NOT_NOW:
                        raise
                    failure, wait = error, max(wait, retry_after(response.headers))
                if anyio.current_time() + wait > allowed.deadline:
                    break
                await anyio.sleep(wait)
        text = f"Not acknowledged within {retry_for:g} s: {reason(failure)}. It may have been published."
        raise Unreachable(text, key) from failure

    async def stats(self) -> dict[str, Any]:
        """What the hub counts; the fields are in ``docs/http-api.md``. Raises Refused, Unreachable."""
        try:
            response = await self._http.get(f"{self.url}/stats", timeout=TIMEOUT)
        except TRANSIENT as error:
            raise Unreachable(f"No answer: {reason(error)}.") from error
        return _answer(response)


def _checked(text: str) -> str:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise InvalidURL(f"This is no URL: {error}.") from None
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise InvalidURL("The URL of a hub begins with http:// or https:// and has a host, and no ? or #.")
    return str(url).rstrip("/")


@lru_cache(maxsize=1024)  # httpx takes 0.1 ms to parse one, and who publishes much publishes to few
def _target(url: str, topics: tuple[str, ...], event: str, to: tuple[str, ...], exclude: tuple[str, ...]) -> httpx.URL:
    parameters = [("topic", topic) for topic in topics]
    parameters += [("event", event)] if event != "message" else []
    parameters += [("to", name) for name in to] + [("exclude", name) for name in exclude]
    return httpx.URL(url, params=tuple(parameters))


def _body(data: object) -> dict[str, Any]:
    """The data of a publication, as httpx takes it."""
    kind = "text/plain; charset=utf-8" if isinstance(data, str) else "application/json"
    return {"content": encode_data(data).encode(), "headers": {"Content-Type": kind}}


def _answer(response: httpx.Response) -> dict[str, Any]:
    if response.status_code != 200:
        raise refused(response, response.content)
    if said := fields(response.content):
        return said
    raise Refused(200, "http_error", "What is at this address is no hub.")


def _published(response: httpx.Response) -> Published:
    said = _answer(response)
    if not isinstance(said.get("id"), str):
        raise Refused(200, "http_error", "What is at this address is no hub.")
    return Published(said["id"], said.get("subscribers", 0), said.get("durable", "none"))
