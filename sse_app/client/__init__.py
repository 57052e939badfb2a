"""A client of a hub, for programs: listen without losing anything in silence, publish without publishing twice.

    async with Client("http://127.0.0.1:8000") as client:
        async for event in client.listen("orders/*"):
            print(event.type, event.data)

It needs httpx2 or httpx, and nothing of the hub. ``SyncClient`` is the same for programs without an event loop.
"""

import math
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypedDict, TypeVar
from weakref import WeakSet

import anyio

from sse_app.backoff import Backoff
from sse_app.client.answers import BACKOFF, UNAUTHORIZED, reason, receipt_of, retry_after
from sse_app.client.answers import Ticket as Ticket
from sse_app.client.asking import Asking, answer_in
from sse_app.client.batch import Batch
from sse_app.client.credentials import Authorization, Credentials, Permit
from sse_app.client.credentials import TokenFunction as TokenFunction
from sse_app.client.http import TIMEOUT, Http
from sse_app.client.stream import State as State
from sse_app.client.stream import Stream as Stream
from sse_app.drafts import Drafts
from sse_app.errors import (
    Closed,
    ConfigError,
    Gap,
    InvalidClient,
    InvalidRevocation,
    InvalidSince,
    InvalidTopic,
    InvalidURL,
    Refused,
    Unreachable,
)
from sse_app.events import check_type
from sse_app.payload import encode_data
from sse_app.publication import (
    Names,
    Receipt,
    check_client,
    check_idempotency_key,
    check_publish_key,
    names,
    recipients,
)

if TYPE_CHECKING:
    from sse_app.client.http import AsyncClient, Response

T = TypeVar("T")

RETRY_FOR = 60.0  # seconds; well within the 5 min for which a hub remembers an Idempotency-Key
# A hub that is overloaded or stopping answers these, and so do proxies while it restarts. Sending again is safe, since
# every attempt has the same key.
RETRIED = (429, 502, 503, 504)
# What is known of a publication without an acknowledgement, from certain to uncertain. Of several attempts the least
# certain one counts.
FATES = ("It was not sent.", "It was not published.", "It may have been published.")


class ClientOptions(TypedDict, total=False):
    """The keywords of ``Client`` and ``SyncClient``, beside ``token``: that one may be a coroutine function in
    ``Client`` alone.
    """

    name: str | None
    publish_key: str | None
    heartbeat: float | None
    http: "AsyncClient | None"


class ListenOptions(TypedDict, total=False):
    """The keywords of ``listen``, beside ``on_gap``: that one may be a coroutine function in ``Client`` alone."""

    last: int | None
    since: str | datetime | None
    last_event_id: str
    retry_for: float | None
    on_state: Callable[[Stream], None] | None


class TicketOptions(TypedDict, total=False):
    """The keywords of ``ticket``."""

    user: str | None
    client: str | None
    stats: str | None
    ttl: float | None
    expires_in: float | None


class RevokeOptions(TypedDict, total=False):
    """The keywords of ``revoke``."""

    token: str | None
    session: str | None
    user: str | None
    key: str | None
    kid: str | None
    topics: Names
    lasts: float | None


class Client:
    """A client of the hub at ``url``, including the path where the hub is mounted, if there is one.

    url: its user and password, if any, are sent as Basic authentication and shown nowhere.
    name: the client's name to the hub, for ``to`` and ``exclude``, kept over reconnects; a random one by default.
    token: what the hub asks its clients for, sent with every request: a token or key, or a function that returns one
        and is called before each connection and publication, as ``token(refresh=False)``. It is called once more with
        ``refresh=True`` when the hub does not take what it returned, or no longer. A coroutine function is awaited, any
        other one called in a thread. White space around a token, as of a file's last line, is cut.
    publish_key: the secret that the hub asks publishers for, sent with publications alone.
    heartbeat: seconds between two heartbeats of the hub; by default what its welcome says. A stream without a byte for
        three heartbeats counts as lost, and is resumed.
    http: an AsyncClient of httpx2 or httpx to use instead of an own one, for TLS, proxies, other headers. The caller
        closes it.

    A client belongs to the event loop where it is first used. Leaving the ``async with``, or ``aclose``, ends its
    streams. Raises InvalidURL, and ConfigError for a token or key that cannot be sent or proxies that cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        token: str | TokenFunction | None = None,
        publish_key: str | None = None,
        heartbeat: float | None = None,
        http: "AsyncClient | None" = None,
    ) -> None:
        self._http = Http(http)
        self.url, basic = self._http.address(url)
        self.name = name or f"c-{secrets.token_hex(6)}"
        self._heartbeat = heartbeat
        self._credentials, self._publisher = _credentials(basic, Credentials(token), publish_key)
        if http is not None and http.auth is not None and (self._credentials or self._publisher):
            raise ConfigError(
                "http has an auth of its own, which would go out instead of the token, key or user given."
            )
        self._asking = Asking(self._http, self.url, self._credentials)
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
        """Return the stream of the publications that match any of these topic filters, or of all without a filter.

        Iterating connects, reconnects after a failure, and resumes behind the last event that was returned.
        Publications that are lost all the same are told: iterating raises Gap once and can be continued, or ``on_gap``
        is called with the Gap at its place among the events.

        last: first the newest so many that match.
        since: first what was published since a time, or so long ago (``15m`` is 15 minutes).
        last_event_id: resume behind this stored position.
        retry_for: seconds without a connection until iterating raises Unreachable; None is for ever.
        on_state: called with the stream when its ``state`` changes.

        Iterating raises Refused for an answer that another attempt would not change, and ends on a 204. Raises BadInput
        for parameters that no request can carry.
        """
        self._check_open()
        parameters = [("topic", topic) for topic in names("topic", topics, InvalidTopic)] + [("client", self.name)]
        if last is not None:
            parameters.append(("last", str(last)))
        if since is not None:
            time = since if isinstance(since, str) else since.astimezone(UTC).isoformat()
            parameters.append(("since", time))
        stream = Stream(
            self._http,
            self._http.target(f"{self.url}/events", tuple(parameters)),
            Permit(self._credentials),
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
    ) -> Receipt:
        """Publish to every subscriber, or on one or several topics to those whose filter matches.

        Return when the log holds the publication.

        data: a str goes out as it is, anything else as JSON (``sse_app.payload``).
        to, exclude: names of clients.
        idempotency_key: sent with every attempt, so that a lost answer publishes nothing twice; by default random.
        retry_for: seconds in which to try again while the hub cannot be reached or says that it cannot now; 0 is one
            attempt.

        Raises BadInput and Refused, after which nothing is published, and Unreachable, whose text says whether it may
        have been. What a token function raises comes out as it is.
        """
        self._check_open()
        key = secrets.token_hex(16) if idempotency_key is None else check_idempotency_key(idempotency_key)
        target = self._http.target(f"{self.url}/broadcast", _parameters(topic, event, to, exclude))
        media_type, content = _body(data)
        request = self._http.request(
            "POST",
            target,
            {"Content-Type": media_type, "Idempotency-Key": key},
            timeout=TIMEOUT,
            content=content,
        )
        return await self._acknowledged(request, key, retry_for, _receipt)

    async def publish_many(
        self,
        events: Iterable[object],
        *,
        topic: Names = None,
        event: str = "message",
        to: Names = None,
        exclude: Names = None,
        idempotency_key: str | None = None,
        retry_for: float = RETRY_FOR,
    ) -> list[Receipt]:
        """Publish several events together, all or none, and return a receipt for each, in their order.

        events: data, as of ``publish``, to which the other arguments belong; or each a ``Draft``, made with
            ``Draft.compose``, which has arguments and a key of its own. At most 1,000, and 4 MiB as a JSON array.
        idempotency_key: one for all of them, by default random, so that a lost answer publishes nothing twice; the same
            key with any other events is refused. Of drafts with keys of their own those that are known keep their
            positions.
        retry_for: as of ``publish``.

        Raises as ``publish``, with a text that names the event, and TypeError for arguments that a Draft would ignore.
        """
        self._check_open()
        drafts = Drafts.compose(
            events, topic=topic, event=event, to=to, exclude=exclude, idempotency_key=idempotency_key
        )
        return await self.publish_batch(Batch.of(drafts), retry_for=retry_for) if drafts.items else []

    async def publish_batch(self, batch: Batch, *, retry_for: float = RETRY_FOR) -> list[Receipt]:
        """Publish a batch that is made already, for who makes the next one while it is published. Raises as
        ``publish_many``.
        """
        self._check_open()
        shared = batch.envelope
        parameters = _parameters(shared.topics or None, shared.event, shared.to or None, shared.exclude)
        request = self._http.request(
            "POST",
            self._http.target(f"{self.url}/broadcast", (*parameters, ("batch", "1"))),
            {"Content-Type": "application/json", **batch.headers},
            timeout=TIMEOUT,
            content=batch.body,
        )
        return await self._acknowledged(request, batch.key, retry_for, batch.receipts)

    async def _acknowledged(
        self, request: Any, key: str | None, retry_for: float, read: "Callable[[Response], T]"
    ) -> T:
        """Send publications until they are acknowledged or refused, or the time is over. Return what ``read`` makes of
        the answer.
        """
        permit, backoff = Permit(self._publisher), Backoff(*BACKOFF)
        failure: Exception = TimeoutError("no answer came")
        fate, over, is_sent = 0, anyio.current_time() + retry_for, False
        with anyio.move_on_after(retry_for or TIMEOUT) as allowed:
            while True:
                is_sent = False
                if not await permit.authorize(request):
                    raise failure
                wait, is_sent = backoff.next(), True
                try:
                    response = await self._http.attempt(request, allowed.deadline - anyio.current_time())
                    return read(response)
                except self._http.transient as error:
                    failure = error
                except Refused as error:
                    failure = error
                    if error.status == UNAUTHORIZED and permit.renew(refused=True):
                        continue
                    if error.status not in RETRIED:
                        raise
                    wait = max(wait, retry_after(response.headers))
                fate = max(fate, self._fate(failure))
                if anyio.current_time() + wait > over:
                    break
                await anyio.sleep(wait)
        if allowed.cancelled_caught and is_sent:
            fate = len(FATES) - 1
        elif allowed.cancelled_caught:
            failure = TimeoutError("the token function did not return")
        why = f"Not acknowledged within {retry_for:g} s: {reason(failure)}."
        raise Unreachable(f"{why} {FATES[fate]}", key) from failure

    async def stats(self) -> dict[str, Any]:
        """Return the hub's statistics, with the fields of ``docs/http-api.md``. Raises Refused, Unreachable."""
        self._check_open()
        return await self._asking.ask("GET", "stats")

    async def ticket(
        self,
        *topics: str,
        user: str | None = None,
        client: str | None = None,
        stats: str | None = None,
        ttl: float | None = None,
        expires_in: float | None = None,
    ) -> Ticket:
        """Return a ticket for the stream of one client, with the topics that it may subscribe to: all those that this
        client may, without any.

        user: for whom; another one than this client's own needs a token or key with ``mint``
        client: the name that its stream takes, or the beginning of one and ``*``
        stats: ``none``, ``own`` or ``all``
        ttl: seconds within which it has to be used; 30 by default
        expires_in: seconds after which its streams end; an hour by default

        Raises BadInput, Refused, Unreachable.
        """
        self._check_open()
        asked = {
            "user": user,
            "topics": list(names("topic", topics, InvalidTopic)) or None,
            "client": client,
            "stats": stats,
            "ttl": ttl,
            "expires_in": expires_in,
        }
        return Ticket.of(await self._asking.ask("POST", "tickets", body=asked, expects=201), self.url)

    async def connections(
        self,
        *,
        user: str | None = None,
        client: str | None = None,
        topic: str | None = None,
        limit: int | None = None,
    ) -> dict[str, Any]:
        """Return the open streams of a hub on all its nodes, with the fields of ``docs/http-api.md``: those of a user,
        of a client's name, those that get what is published on a topic; ``limit`` of them at most. It needs a token or
        key with ``admin``. Raises BadInput, Refused, Unreachable.
        """
        self._check_open()
        parameters = _given(user=user, client=client, topic=topic, limit=limit)
        return await self._asking.ask("GET", "connections", parameters)

    async def kick(
        self, client: str | None = None, *, user: str | None = None, block: float | None = None
    ) -> dict[str, Any]:
        """End the streams of a client's name, or of a user, on all nodes. It needs a token or key with ``admin``.

        block: seconds for which they stay out; without, they may come back at once

        Returns how many were ``closed``, how many other ``nodes`` were told, and in ``partial`` those that did not
        answer in time. Raises BadInput, Refused, Unreachable.
        """
        self._check_open()
        if (client is None) == (user is None):
            raise InvalidClient("kick is given a client's name or a user: one of them.")
        if client in (".", ".."):
            raise InvalidClient("A URL cannot carry the client names . and .. in its path: kick their user.")
        path = "connections" if client is None else f"connections/{check_client(client)}"
        return await self._asking.ask("DELETE", path, _given(user=user, block=block))

    async def revoke(
        self,
        *,
        token: str | None = None,
        session: str | None = None,
        user: str | None = None,
        key: str | None = None,
        kid: str | None = None,
        topics: Names = None,
        lasts: float | None = None,
    ) -> dict[str, Any]:
        """Take back, on all nodes, what a token (by its id, ``jti``), a session (``sid``), a user, a key (by its name)
        or all tokens of a signing key (``kid``) grant: exactly one of these. It needs a token or key with ``admin``.

        topics: only on these; without, everything, and their streams end
        lasts: seconds; without, as long as a token may last

        Returns its ``id``, and how many streams were ``closed`` on the node that was asked. Raises BadInput, Refused,
        also while not all nodes can be told (503): repeat it then; Unreachable.
        """
        self._check_open()
        named = {"token": token, "session": session, "user": user, "key": key, "kid": kid}
        if sum(name is not None for name in named.values()) != 1:
            raise InvalidRevocation("A revocation names exactly one of token, session, user, key and kid.")
        patterns = None if topics is None else list(names("topics", topics, InvalidTopic))
        return await self._asking.ask("POST", "revoke", body={**named, "topics": patterns, "for": lasts})

    def _fate(self, failure: Exception) -> int:
        """Return what is known after an attempt that failed, as an index of FATES."""
        if isinstance(failure, Refused):
            # The hub's own refusal has a code. A proxy's does not tell whether the hub has the publication.
            return 2 if failure.code in ("http_error", "outcome_unknown") else 1
        return 2 if self._http.is_sent(failure) else 0

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("This client is closed: make another one.")


def _credentials(basic: Authorization, token: Credentials, publish_key: str | None) -> tuple[Credentials, Credentials]:
    """Return the credentials of a client, and those with which it publishes."""
    key = Credentials(check_publish_key(publish_key))
    if basic and (token or key):
        raise InvalidURL("A user in the URL and a token or key cannot go together: a request has one Authorization.")
    if token and key:
        raise ConfigError("token and publish_key cannot go together: the token is for publishing too.")
    own = Credentials(basic) if basic else token
    return own, key or own


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


def _given(**values: str | float | None) -> tuple[tuple[str, str], ...]:
    """Return the parameters of a request that are not None."""
    given = ((name, value) for name, value in values.items() if value is not None)
    return tuple((name, value if isinstance(value, str) else f"{value:.15g}") for name, value in given)


def _body(data: object) -> tuple[str, bytes]:
    """Return the media type and the body that carry the data of a publication."""
    media_type = "text/plain; charset=utf-8" if isinstance(data, str) else "application/json"
    return media_type, encode_data(data).encode()


def _receipt(response: "Response") -> Receipt:
    answer = answer_in(response)
    return receipt_of(answer.get("id"), answer.get("subscribers"), answer.get("durable"))
