"""The web face of a hub: routes and lifespan."""

from collections.abc import Awaitable
from functools import cached_property
from pathlib import Path
from typing import Any, Self, Unpack

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from sse_app import errors, hub
from sse_app.brokers import Broker, open_broker
from sse_app.brokers.limits import BrokerSettings
from sse_app.brokers.memory import MemoryBroker
from sse_app.config import Config, HubOptions, LogOptions, check_names
from sse_app.web.cors import Cors
from sse_app.web.door import Door, drain_after, signs_of_a_stop
from sse_app.web.endpoints.broadcast import Broadcast
from sse_app.web.endpoints.events import Events
from sse_app.web.endpoints.operations import HEALTH, Operations
from sse_app.web.endpoints.pages import Pages
from sse_app.web.guard import Guard
from sse_app.web.prefix import route_path, with_prefix
from sse_app.web.problems import HANDLERS, problem
from sse_app.web.siblings import warn_of_siblings


class _App(Starlette):
    """Starlette, with ``GET /events`` outside its routing and error handling, whose wrappers around every ``send`` cost
    more than the sending. The middleware ``ours`` is made once, and is in front of both. When the app's user adds
    middleware, it comes before ``ours``, and /events goes through Starlette like all other endpoints.
    """

    def __init__(self, events: Events, ours: list[Middleware], **options: Any) -> None:
        super().__init__(**options)
        self._events, self._ours = events, ours

    def build_middleware_stack(self) -> ASGIApp:
        if added := [item for item in self.user_middleware if item not in self._ours]:
            self.user_middleware = [*added, *self._ours]
            return _prefixed(super().build_middleware_stack())
        app = self._split(super().build_middleware_stack())
        for cls, args, kwargs in reversed(self._ours):
            app = cls(app, *args, **kwargs)
        return _prefixed(app)

    def _split(self, rest: ASGIApp) -> ASGIApp:
        def dispatch(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
            of_streams = scope["type"] == "http" and route_path(scope) == "/events"
            return (self._events if of_streams else rest)(scope, receive, send)

        return dispatch


def _prefixed(app: ASGIApp) -> ASGIApp:
    def restore_path(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        return app(with_prefix(scope) if scope["type"] == "http" else scope, receive, send)

    return restore_path


class Hub(hub.Hub):
    """A hub with its web face: what ``from sse_app import Hub`` gives.

        hub = Hub()
        app = FastAPI(lifespan=hub.lifespan)
        app.mount("/hub", hub.app)

    ``broker`` is a URL (``memory://`` when none is given) or a Broker; ``settings`` are those of Config that concern a
    hub or its endpoints. Or all of them are in a ``config``. Host names are checked only with ``allowed_hosts`` or a
    config: else they are the concern of the app around the hub. Raises ConfigError, also for a setting without effect.
    """

    def __init__(
        self, broker: str | Broker | None = None, *, config: Config | None = None, **settings: Unpack[HubOptions]
    ) -> None:
        own_hosts = config is not None or bool(settings.get("allowed_hosts"))
        config = _config(broker, settings) if config is None else _sole_config(config, broker, settings)
        self._hosts = config.hosts if own_hosts else None
        assert config.max_subscribers is not None  # Config works out the default
        super().__init__(
            broker_of(config) if broker is None or isinstance(broker, str) else broker,
            queue_size=config.queue,
            queue_bytes=config.queue_bytes,
            heartbeat=config.heartbeat,
            retry=(config.retry_min, config.retry_max),
            max_subscribers=config.max_subscribers,
            drain=config.drain,
            body_max=config.body_max,
        )
        self.config = config
        self._door = Door()

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._door.reset()
        for sign in signs_of_a_stop(self._door):
            self.spawn(drain_after(sign, self))
        if isinstance(self.broker, MemoryBroker):
            self.spawn(warn_of_siblings(self))
        return self

    @cached_property
    def app(self) -> Starlette:
        """The endpoints and the console as an ASGI app, to mount in another. It does not start the hub."""
        return self._build()

    def _build(self, **options: Any) -> Starlette:
        config, static = self.config, static_directory()
        events, operations, pages = Events(self, self._door), Operations(self), Pages(static)
        broadcast = Broadcast(
            self, body_max=config.body_max, body_deadline=config.head_deadline, publish_key=config.publish_key
        )
        ours = [
            Middleware(Guard, hosts=self._hosts, origins=config.cors_origins, refuse=problem, any_host=HEALTH),
        ]
        if config.cors_origins:
            ours.append(Middleware(Cors, origins=config.cors_origins, headers=config.cors_headers, refuse=problem))
        app = _App(
            events,
            ours,
            routes=[
                Route("/", pages.console),
                Route("/events", events, methods=["GET"]),
                Route("/broadcast", broadcast.broadcast, methods=["POST"]),
                Route("/stats", operations.stats),
                Route("/metrics", operations.metrics),
                Route("/healthz", operations.healthz),
                Route("/readyz", operations.readyz),
                Route("/openapi.json", pages.openapi),
                Mount("/static", StaticFiles(directory=static)),
            ],
            exception_handlers=dict(HANDLERS),
            **options,
        )
        app.router.redirect_slashes = False  # a redirect would repeat the query
        app.state.hub = self
        return app


def _config(broker: str | Broker | None, settings: HubOptions) -> Config:
    """Return the configuration that a hub's arguments make. Raises ConfigError."""
    check_names("hub", settings, HubOptions.__annotations__)
    given: dict[str, Any] = dict(settings)
    if broker is None or isinstance(broker, str):
        return Config(**given) if broker is None else Config(broker=broker, **given)
    if not hasattr(broker, "tail"):
        raise errors.ConfigError("broker is a URL such as sqlite:///hub.db, or a Broker.")
    if of_log := [name for name in settings if name in (*LogOptions.__annotations__, "recover")]:
        raise errors.ConfigError(f"{of_log[0]} is a setting of the log; give it to the broker when you make it.")
    return Config(**given)


def _sole_config(config: Config, broker: str | Broker | None, settings: HubOptions) -> Config:
    """Return the configuration. Raises ConfigError when other arguments contradict it."""
    if not isinstance(config, Config):
        raise errors.ConfigError("config is a Config.")
    if broker is not None:
        raise errors.ConfigError(
            "broker and config: a Config names its broker, as in Config(broker='sqlite:///hub.db'); "
            "a Broker goes with the settings as keywords."
        )
    if settings:
        raise errors.ConfigError(
            f"{next(iter(settings))} and config: a Config holds all settings, so put it in there, "
            "as with dataclasses.replace()."
        )
    return config


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


def create_app(config: Config | None = None) -> Starlette:
    """Return the whole server as an ASGI app, which starts and stops its hub (``app.state.hub``) with itself."""
    hub = Hub(config=config or Config())
    return hub._build(lifespan=hub.lifespan)


def static_directory() -> Path:
    """Return the directory of the console's files: in an installed package, beside it in a source checkout."""
    package = Path(__file__).parent.parent
    inside = package / "static"
    return inside if inside.is_dir() else package.parent / "static"
