"""The hub as a user of the library has it: publish, subscribe, and an ASGI app to mount.

hub = Hub()
app = FastAPI(lifespan=hub.lifespan)
app.mount("/hub", hub.app)
await hub.publish({"number": 42}, topic="orders/42")
"""

import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import cached_property
from types import TracebackType
from typing import Any, Self, Unpack

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Lifespan

from sse_app.auth.credentials import Credentials
from sse_app.auth.withdrawal import Withdrawal
from sse_app.brokers import Broker, open_broker
from sse_app.brokers.limits import BrokerSettings
from sse_app.brokers.memory import MemoryBroker
from sse_app.config import Config, HubOptions, LogOptions, check_names
from sse_app.connections import LIMIT, ConnectedStreams, Kicked, Wanted
from sse_app.drafts import Drafts
from sse_app.errors import ConfigError, InsufficientScope, InvalidTopic, SSEAppError
from sse_app.grants import OPEN, Grant
from sse_app.joining import StreamRequest, parse_cursor
from sse_app.limits import Failures
from sse_app.node import Node
from sse_app.publication import Draft, Names, Position, PublishOptions, Receipt, names
from sse_app.revocations import Revocation
from sse_app.revoking import Revoked
from sse_app.subscriber import CloseReason
from sse_app.subscription import Subscription
from sse_app.tickets import LIFETIME, LIFETIME_MAX, TTL, TTL_MAX, Ticket
from sse_app.vetting import BeforePublish, Vetting
from sse_app.web.app import build_app
from sse_app.web.callers import Access, Authorize, Callers, client_address
from sse_app.web.door import Door, drain_after, signs_of_a_stop
from sse_app.web.endpoints.events import stream_request
from sse_app.web.siblings import warn_of_siblings
from sse_app.web.stream import EventStream, refusal

UNNAMED = replace(OPEN, client=None)  # of a route that says which topics, and not who: any client may take any name
OPERATOR = replace(OPEN, admin=True)  # of everyone who reaches an open server on this machine's loopback


class Hub:
    """A hub: start it with ``async with hub:``, or with ``lifespan=hub.lifespan`` in a Starlette or FastAPI app.

    ``broker`` is a URL (``memory://`` when none is given) or a Broker, which the hub opens and closes; ``settings`` are
    those of Config that concern a hub or its endpoints. Or all of them are in a ``config``. Host names are checked only
    with ``allowed_hosts`` or a config: else they are the concern of the app around the hub. Raises ConfigError, also
    for a setting without effect; and RuntimeError when it is started while it runs.

    ``authorize`` says what a request may do: it gets the request, and returns a Grant, or None for a caller that it
    does not know. It is a coroutine function, or a function that is called in a thread. With it, nobody subscribes or
    publishes unasked.

    ``before_publish`` has the last word on what is published here, by ``publish`` as over HTTP: an async function of a
    Draft and the Grant of its publisher, which returns the Draft to publish, or raises Vetoed.

    ``node`` is what this process does for the hub: servers that are to drain it work with that.
    """

    def __init__(
        self,
        broker: str | Broker | None = None,
        *,
        config: Config | None = None,
        authorize: Authorize | None = None,
        before_publish: BeforePublish | None = None,
        **settings: Unpack[HubOptions],
    ) -> None:
        own_hosts = config is not None or bool(settings.get("allowed_hosts"))
        config = _config(broker, settings) if config is None else _sole_config(config, broker, settings)
        assert config.max_subscribers is not None  # Config works out the default
        self.config = config
        self._hosts = config.hosts if own_hosts else None
        self._door = Door()
        self._authorize = authorize
        self._credentials = Credentials(config) if config.takes_credentials else None
        closed = self._credentials is not None or authorize is not None
        if config.anonymous_subscribe and not closed:
            raise ConfigError(
                "anonymous_subscribe is for a hub that asks for credentials; without an auth_file, token_keys,"
                " token_secret or authorize everyone may subscribe to everything."
            )
        self.node = Node(
            broker_of(config) if broker is None or isinstance(broker, str) else broker,
            queue_size=config.queue,
            queue_bytes=config.queue_bytes,
            heartbeat=config.heartbeat,
            retry=(config.retry_min, config.retry_max),
            max_subscribers=config.max_subscribers,
            drain=config.drain,
            ticket_reconnect=config.ticket_reconnect,
            require_topic=config.require_topic,
            vetting=_vetting(before_publish, config),
            auth_max_age=config.auth_max_age if closed else None,
        )

    # Life

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.node)
            self._door.reset()
            for sign in signs_of_a_stop(self._door):
                self.node.spawn(drain_after(sign, self.node))
            if self._credentials is not None:
                self._credentials.on_withdrawal = self._on_withdrawal
                self.node.spawn(self._credentials.run())
            if isinstance(self.broker, MemoryBroker):
                self.node.spawn(warn_of_siblings(self.node))
            stack.pop_all()  # __aexit__ leaves the node
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.node.__aexit__(kind, error, trace)

    def _on_withdrawal(self, withdrawal: Withdrawal) -> None:
        reason = CloseReason.CHANGED if withdrawal.changed else CloseReason.REVOKED
        self.node.spawn(self.node.end_all(withdrawal.covers, reason))

    @property
    def lifespan(self) -> Callable[[object], AbstractAsyncContextManager[None]]:
        """For ``Starlette(lifespan=hub.lifespan)``: the hub runs as long as the app."""
        # A server that sends no lifespan events gets a message of its own, not that the lifespan was forgotten.
        self.node.life.lifespan_awaited = True
        return self._live

    @asynccontextmanager
    async def _live(self, app: object) -> AsyncIterator[None]:
        async with self:
            yield

    @property
    def started(self) -> bool:
        """True while the hub runs."""
        return self.node.life.started

    @property
    def draining(self) -> bool:
        """True from the begin of a planned stop on."""
        return self.node.draining

    async def drain(self, window: float | None = None) -> None:
        """End all streams in order, within ``window`` seconds (default: the setting ``drain``), before a planned stop.

        From now on publishers and new subscribers are sent elsewhere. What was published is delivered first; then each
        stream ends with a ``bye``, one after the other, so that the clients do not all come back at once.
        """
        await self.node.drain(window)

    # Publishing

    async def publish(self, data: object, **options: Unpack[PublishOptions]) -> Receipt:
        """Publish to every subscriber, or on one or several topics to those whose filter matches.

        ``data`` goes out as it is when it is a str, else as JSON (``sse_app.payload``). ``to`` and ``exclude`` name
        clients; an empty list of topics, or of clients in ``to``, is refused, since it is not everyone. With the same
        ``idempotency_key`` and publication again within the idempotency window nothing is published, and the answer is
        the same. Returns when the log has it. Raises BadInput, Unavailable, and RuntimeError when ``before_publish``
        fails; then nobody sees it.
        """
        self.node.life.check_here()
        return await self.node.publish(Draft.compose(data, body_max=self.config.body_max, **options))

    def publish_threadsafe(
        self, data: object, *, timeout: float | None = 10.0, **options: Unpack[PublishOptions]
    ) -> Receipt:
        """``publish`` for code in another thread (a sync view, a worker): blocks until the log has it.

        Takes what ``publish`` takes. Raises what it raises, TimeoutError after ``timeout`` seconds, and RuntimeError
        when called from the hub's own thread, which it would block for ever, or in a forked child, where no hub runs.
        """
        return self.node.life.run_from_thread(lambda: self.publish(data, **options), timeout)

    async def publish_many(self, events: Iterable[object], **options: Unpack[PublishOptions]) -> list[Receipt]:
        """Publish several events together, all or none, and return a receipt for each, in their order.

        An event is data, as of ``publish``, and the options hold for each of these; or it is a ``Draft``, made with
        ``Draft.compose``, which has options and a key of its own. ``idempotency_key`` is one for the whole batch: with
        the same events again nothing is published, and the answer is the same; with any other events it is refused.

        At most 1,000 events and ``batch_bytes`` of data. Raises as ``publish`` does, with a text that names the event,
        and TypeError for options beside a Draft, which would ignore them.
        """
        self.node.life.check_here()
        return await self._publish_batch(self._batch(events, options))

    def publish_many_threadsafe(
        self, events: Iterable[object], *, timeout: float | None = 10.0, **options: Unpack[PublishOptions]
    ) -> list[Receipt]:
        """``publish_many`` for code in another thread, as ``publish_threadsafe`` is ``publish``. In that thread the
        events are iterated over, so that they may come from what blocks.
        """
        self.node.life.check_started()
        batch = self._batch(events, options)
        return self.node.life.run_from_thread(lambda: self._publish_batch(batch), timeout)

    def _batch(self, events: Iterable[object], options: PublishOptions) -> Drafts:
        config = self.config
        return Drafts.compose(events, body_max=config.body_max, batch_bytes=config.batch_bytes, **options)

    async def _publish_batch(self, batch: Drafts) -> list[Receipt]:
        return await self.node.publish_many(batch)

    # Subscribing

    @asynccontextmanager
    async def subscribe(
        self,
        *topics: str,
        after: Position | str | bytes | None = None,
        last: int | None = None,
        since: float | None = None,
        client: str | None = None,
        grant: Grant = OPEN,
    ) -> AsyncIterator[Subscription]:
        """Open a stream of the publications that match any of these topic filters, of all without one.

        ``after`` resumes behind an SSE id; without it, ``last`` first gives the newest that many, ``since`` what was
        published since that Unix time. ``client`` is the subscriber's stable name, else one is made. ``grant`` bounds
        what it gets. Raises InvalidTopic, InvalidClient, InvalidSince, InvalidToken for a grant that has expired,
        InsufficientScope, Draining, Overloaded.
        """
        self.node.life.check_here()
        request = StreamRequest.parse(
            topics, after=after, last=last, since=since, client=client, grant=grant.dated(time.time())
        )
        async with self.node.subscribe(request) as subscriber:
            yield Subscription(subscriber, parse_cursor(after))

    async def ticket(self, grant: Grant, *, ttl: float = TTL) -> Ticket:
        """Return a ticket for one client's stream: an ``EventSource`` opens it with ``/events?ticket=...`` within
        ``ttl`` seconds (1 to 300), and comes back with it until the grant expires (within a day; an hour from now when
        it does not say). Raises InsufficientScope for a grant that does not subscribe, TooManyRequests, Unavailable.
        """
        if not 1 <= ttl <= TTL_MAX:
            raise ValueError(f"ttl is a number of seconds from 1 to {TTL_MAX:.0f}.")
        self.node.life.check_here()
        lifetime = LIFETIME if grant.expires is None else LIFETIME_MAX
        now = time.time()
        granted = grant.dated(now).ticket(now=now, lifetime=lifetime)
        assert granted.expires is not None
        return Ticket(await self.node.leases.mint(granted, ttl), ttl, granted.expires)

    # Administration

    async def connections(
        self, *, user: str | None = None, client: str | None = None, topic: str | None = None, limit: int = LIMIT
    ) -> ConnectedStreams:
        """Return the streams that are open on all nodes, newest first: those of a user, of a client's name, those that
        get what is published on a topic; ``limit`` of them at most (1 to 1,000). Other nodes have a second to answer.
        Raises InvalidClient, InvalidTopic, InvalidParameter.
        """
        self.node.life.check_here()
        return await self.node.connections.find(Wanted(user, client, topic, limit))

    async def kick(self, *, client: str | None = None, user: str | None = None, block: float = 0.0) -> Kicked:
        """End the streams of a client's name, or of a user, on all nodes, and keep it out for ``block`` seconds, a day
        at most.

        Raises NoSuchClient when no node has any and nobody is to be kept out, InvalidClient, InvalidParameter, and
        Unavailable when other nodes cannot be told: it is to be repeated.
        """
        self.node.life.check_here()
        if client is not None and user is None:
            return await self.node.connections.kick("client", client, block)
        if user is not None and client is None:
            return await self.node.connections.kick("user", user, block)
        raise TypeError("kick is given a client's name or a user: one of them.")

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
    ) -> Revoked:
        """Take back, on all nodes, what was granted to exactly one of these: a token (its id, ``jti``), a session, a
        user (what was issued before now), a key of ``auth_file``, the key that tokens are signed with. Of ``topics``
        alone if there are any, for ``lasts`` seconds (default: as long as a token may last, 31 days at most).

        No publication that is published from then on is sent to a stream whose grant this takes back. Raises
        InvalidRevocation, InvalidTopic, and Unavailable when other nodes may not have heard of it: it is to be
        repeated.
        """
        self.node.life.check_here()
        return await self.node.revoke(
            Revocation.of(
                token=token,
                session=session,
                user=user,
                key=key,
                kid=kid,
                topics=topics,
                lasts=lasts,
                token_max_age=self.config.token_max_age,
            )
        )

    # Looking in

    @property
    def broker(self) -> Broker:
        """The log, as it was given or as its URL names it."""
        return self.node.broker

    def __len__(self) -> int:
        """Return the number of subscribers that are connected here."""
        return self.node.totals.subscribers

    def __bool__(self) -> bool:
        return True  # without subscribers it is a hub all the same

    async def stats(self) -> dict[str, object]:
        """Return what ``GET /stats`` answers, as JSON types. Publications to named clients are left out of ``last``,
        ``recent``.
        """
        return await self.node.stats()

    # Serving

    @cached_property
    def app(self) -> Starlette:
        """The endpoints and the console as an ASGI app, to mount in another. It does not start the hub."""
        return self._build_app()

    def stream(self, request: Request, *, topics: Iterable[str] | None = None, grant: Grant | None = None) -> Response:
        """Return the stream that answers a request to a route of your own, which has found out who asks.

        It is of these ``topics``, or of those that the request asks for and ``grant`` allows, or both. From the request
        come its cursor and the parameters of ``GET /events``; ``to`` of a publication reaches its client name only with
        a grant for that. With an empty list of topics the answer is a 403. Raises TypeError without topics and grant,
        since that would be everything for everyone.
        """
        if topics is None and grant is None:
            raise TypeError("stream needs topics, or a grant: without them it is open to everyone who asks.")
        try:
            asked = self._stream_request(request, None if topics is None else _some(topics), grant)
        except SSEAppError as error:
            return refusal(error, request.scope, self.node.retry())
        return EventStream(self.node, asked, door=self._door)

    def _stream_request(self, request: Request, topics: Iterable[str] | None, grant: Grant | None) -> StreamRequest:
        if grant is None:
            return stream_request(request, UNNAMED, topics)
        address = client_address(request.scope, self.config.proxies)
        return stream_request(request, grant.dated(time.time()), topics, address=address)

    def _build_app(self, lifespan: Lifespan[Any] | None = None, everyone: Grant = OPEN) -> Starlette:
        config, proxies = self.config, self.config.proxies
        access = Access(
            publish_key=config.publish_key,
            credentials=self._credentials,
            cookies=config.auth_cookies,
            authorize=self._authorize,
            anonymous=_anonymous(config),
            everyone=everyone,
        )
        failures = Failures(config.failed_credentials, proxies=bool(proxies))
        callers = Callers(access, self.node, proxies=proxies, failures=failures)
        app = build_app(self.node, self.config, self._door, callers, hosts=self._hosts, lifespan=lifespan)
        app.state.hub = self
        return app


def _some(topics: Iterable[str]) -> tuple[str, ...]:
    """Return the topics of a route. Raises InsufficientScope for none: a stream without a filter gets everything."""
    found = names("topics", topics, InvalidTopic)
    if not found:
        raise InsufficientScope("There are no topics here that this caller may subscribe to.")
    return found


def _anonymous(config: Config) -> Grant | None:
    """Return what a caller without a credential may do: broadcasts are only for who may see everything."""
    if not config.anonymous_subscribe:
        return None
    grant = Grant.of(subscribe=config.anonymous_subscribe, broadcasts="**" in config.anonymous_subscribe)
    return replace(grant, source="anonymous")


def create_app(config: Config | None = None) -> Starlette:
    """Return the whole server as an ASGI app, which starts and stops its hub (``app.state.hub``) with itself."""
    config = config or Config()
    hub = Hub(config=config)
    return hub._build_app(hub.lifespan, OPERATOR if config.loopback_only else OPEN)


def broker_of(config: Config) -> Broker:
    """Return the broker that a configuration names, not yet open. Raises ConfigError."""
    settings: BrokerSettings = {
        "history": config.history,
        "history_bytes": config.history_bytes,
        "history_age": config.history_age,
        "idempotency_window": config.idempotency_window,
    }
    if config.recover:
        settings["recover"] = True  # given only when set, since only SQLite accepts it
    return open_broker(config.broker, **settings)


def _vetting(before_publish: BeforePublish | None, config: Config) -> Vetting | None:
    if before_publish is None:
        return None
    if not callable(before_publish):
        raise ConfigError("before_publish is an async function of a Draft and a Grant, which returns a Draft.")
    return Vetting(before_publish, body_max=config.body_max)


def _config(broker: str | Broker | None, settings: HubOptions) -> Config:
    """Return the configuration that a hub's arguments make. Raises ConfigError."""
    check_names("hub", settings, HubOptions.__annotations__)
    given: dict[str, Any] = dict(settings)
    if broker is None or isinstance(broker, str):
        return Config(**given) if broker is None else Config(broker=broker, **given)
    if not hasattr(broker, "tail"):
        raise ConfigError("broker is a URL such as sqlite:///hub.db, or a Broker.")
    if of_log := [name for name in settings if name in (*LogOptions.__annotations__, "recover")]:
        raise ConfigError(f"{of_log[0]} is a setting of the log; give it to the broker when you make it.")
    return Config(**given)


def _sole_config(config: Config, broker: str | Broker | None, settings: HubOptions) -> Config:
    """Return the configuration. Raises ConfigError when other arguments contradict it."""
    if not isinstance(config, Config):
        raise ConfigError("config is a Config.")
    if broker is not None:
        raise ConfigError(
            "broker and config: a Config names its broker, as in Config(broker='sqlite:///hub.db'); "
            "a Broker goes with the settings as keywords."
        )
    if settings:
        raise ConfigError(
            f"{next(iter(settings))} and config: a Config holds all settings, so put it in there, "
            "as with dataclasses.replace()."
        )
    return config
