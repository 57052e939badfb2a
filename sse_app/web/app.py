"""The web face of a node: its endpoints and the console, as an ASGI app."""

from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Lifespan, Receive, Scope, Send

from sse_app.config import Config
from sse_app.node import Node
from sse_app.web.callers import Callers
from sse_app.web.cors import Cors
from sse_app.web.desk import Desk
from sse_app.web.door import Door
from sse_app.web.endpoints.administration import Administration
from sse_app.web.endpoints.batches import Batches
from sse_app.web.endpoints.broadcast import Broadcast
from sse_app.web.endpoints.events import Events
from sse_app.web.endpoints.operations import HEALTH, Operations
from sse_app.web.endpoints.pages import Pages
from sse_app.web.endpoints.tickets import TicketOffice
from sse_app.web.guard import Guard, Rules
from sse_app.web.prefix import route_path, with_prefix
from sse_app.web.problems import HANDLERS, problem


class _App(Starlette):
    """Starlette, with the paths that are called all the time outside its routing and error handling, whose wrappers
    around every ``send`` cost more than the sending. The middleware ``ours`` is made once, and is in front of both.
    When the app's user adds middleware, it comes before ``ours``, and these paths go through Starlette like all others.
    """

    def __init__(self, direct: Mapping[str, ASGIApp], ours: list[Middleware], **options: Any) -> None:
        super().__init__(**options)
        self._direct, self._ours = direct, ours

    def build_middleware_stack(self) -> ASGIApp:
        if added := [item for item in self.user_middleware if item not in self._ours]:
            self.user_middleware = [*added, *self._ours]
            return _prefixed(super().build_middleware_stack())
        app = self._split(super().build_middleware_stack())
        for cls, args, kwargs in reversed(self._ours):
            app = cls(app, *args, **kwargs)
        return _prefixed(app)

    def _split(self, rest: ASGIApp) -> ASGIApp:
        direct = self._direct

        def dispatch(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
            app = direct.get(route_path(scope), rest) if scope["type"] == "http" else rest
            return app(scope, receive, send)

        return dispatch


def _prefixed(app: ASGIApp) -> ASGIApp:
    def restore_path(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        return app(with_prefix(scope) if scope["type"] == "http" else scope, receive, send)

    return restore_path


def build_app(
    node: Node,
    config: Config,
    door: Door,
    callers: Callers,
    *,
    hosts: Sequence[str] | None,
    lifespan: Lifespan[Any] | None = None,
) -> Starlette:
    """Return the endpoints of a node and the console. ``door`` is told of the servers that streams come through;
    ``callers`` finds what a request may do; ``hosts`` are the host names that requests may ask for, None when that is
    the concern of an app around this one.
    """
    office = TicketOffice(node, callers, body_deadline=config.head_deadline)
    events = Events(node, door, callers, office)
    batches = Batches(
        node,
        callers,
        body_max=config.body_max,
        batch_bytes=config.batch_bytes,
        body_deadline=config.head_deadline,
    )
    broadcast = Broadcast(node, callers, batches, body_max=config.body_max, body_deadline=config.head_deadline)
    rules = Rules(
        hosts=hosts,
        origins=config.cors_origins,
        any_host=HEALTH,
        ambient=callers.ambient,
        credentials=config.cors_credentials,
    )
    app = _App(
        {"/events": events, "/broadcast": broadcast},
        _middleware(config, rules),
        routes=[
            Route("/events", events, methods=["GET"]),
            Route("/broadcast", broadcast, methods=["POST"]),
            *_routes(node, config, callers, office),
        ],
        exception_handlers=dict(HANDLERS),
        lifespan=lifespan,
    )
    app.state.desk = Desk(node, callers, rules, body_max=config.body_max, cors=bool(config.cors_origins))
    app.router.redirect_slashes = False  # a redirect would repeat the query
    return app


def _middleware(config: Config, rules: Rules) -> list[Middleware]:
    origins, credentials = config.cors_origins, config.cors_credentials
    guard = Middleware(Guard, rules=rules, refuse=problem)
    if not origins:
        return [guard]
    cors = Middleware(Cors, origins=origins, headers=config.cors_headers, refuse=problem, credentials=credentials)
    return [guard, cors]


def _routes(node: Node, config: Config, callers: Callers, office: TicketOffice) -> list[BaseRoute]:
    static = static_directory()
    operations, pages = Operations(node, callers), Pages(static)
    administration = Administration(
        node, callers, body_deadline=config.head_deadline, token_max_age=config.token_max_age
    )
    return [
        Route("/", pages.console),
        Route("/tickets", office.mint, methods=["POST"]),
        Route("/connections", administration.connections, methods=["GET", "DELETE"]),
        Route("/connections/{client}", administration.kick, methods=["DELETE"]),
        Route("/revoke", administration.revoke, methods=["POST"]),
        Route("/stats", operations.stats),
        Route("/metrics", operations.metrics),
        Route("/grant", operations.grant),
        Route("/healthz", operations.healthz),
        Route("/readyz", operations.readyz),
        Route("/openapi.json", pages.openapi),
        Mount("/static", StaticFiles(directory=static)),
    ]


def static_directory() -> Path:
    """Return the directory of the console's files: in an installed package, beside it in a source checkout."""
    package = Path(__file__).parent.parent
    inside = package / "static"
    return inside if inside.is_dir() else package.parent / "static"
