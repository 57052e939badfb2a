"""A request within a body never runs, behind a real proxy that passes upgrades on and denies publishing."""

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from urllib.parse import urlsplit

import pytest
from starlette.types import Receive, Scope, Send

from sse_app import Config, Hub, create_app
from sse_app.server import Protocol
from sse_app.server.server import Server
from sse_app.testing import UvicornOptions, live
from tests.chaos.conftest import count
from tests.server.test_upgrade import FRAMINGS, OFFERS
from tests.support.peers import PATIENCE
from tests.support.proxies import caddy, haproxy, nginx
from tests.support.web import read_until

NGINX = """
    location = /broadcast {{ return 403; }}
    location / {{
        proxy_pass http://{hub};
        proxy_http_version 1.1;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection {connection};
        proxy_request_buffering {buffering};
    }}
"""
CONNECTION = "map $http_upgrade $connection_upgrade { default upgrade; '' close; }"


def nginx_with_a_map(hub: str) -> AbstractContextManager[str]:
    return nginx(NGINX.format(hub=hub, connection="$connection_upgrade", buffering="off"), http=CONNECTION)


def nginx_that_collects_bodies(hub: str) -> AbstractContextManager[str]:
    return nginx(NGINX.format(hub=hub, connection='"upgrade"', buffering="on"))


def nginx_that_keeps_connections(hub: str) -> AbstractContextManager[str]:
    upstream = f"upstream hub {{ server {hub}; keepalive 4; }}"
    return nginx(NGINX.format(hub="hub", connection='"upgrade"', buffering="off"), http=upstream)


def plain_caddy(hub: str) -> AbstractContextManager[str]:
    return caddy(f"respond /broadcast 403\nreverse_proxy {hub}")


def plain_haproxy(hub: str) -> AbstractContextManager[str]:
    deny = "  http-request deny if { path /broadcast }\n  default_backend hub"
    return haproxy(deny, rest=f"backend hub\n  server hub {hub}")


@dataclass(frozen=True)
class Watched:
    """A hub that records the requests that run, and has an event for the one to /healthz."""

    hub: Hub
    address: str
    ran: list[tuple[str, str]] = field(default_factory=list)
    asked: SimpleQueue[None] = field(default_factory=SimpleQueue)


@contextmanager
def watched() -> Iterator[Watched]:
    app = create_app(Config(drain=0, allowed_hosts=("*",)))

    async def watching(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            found.ran.append((scope["method"], scope["path"]))
            if scope["path"] == "/healthz":
                found.asked.put(None)
        await app(scope, receive, send)

    options: UvicornOptions = {"http": Protocol, "ws": "none", "proxy_headers": False, "access_log": False}
    with live(watching, server_class=partial(Server, node=app.state.hub.node), **options) as server:
        found = Watched(app.state.hub, f"127.0.0.1:{server.port}")
        yield found


@pytest.mark.parametrize(
    "proxy",
    [nginx_with_a_map, nginx_that_collects_bodies, nginx_that_keeps_connections, plain_caddy, plain_haproxy],
)
def test_a_request_in_a_body_does_not_get_past_a_proxy(proxy: Callable[[str], AbstractContextManager[str]]) -> None:
    tries = count(ci=40, full=200)
    with watched() as hub, proxy(hub.address) as url:
        assert b" 403 " in ask(url, b"POST /broadcast HTTP/1.1\r\nHost: hub\r\nContent-Length: 0\r\n", b"")
        for number in range(tries):
            offer = list(OFFERS.values())[number % len(OFFERS)]
            fields, body = list(FRAMINGS.values())[number % 3]
            head = b"POST /healthz HTTP/1.1\r\nHost: hub\r\n" + offer + fields
            wait = partial(hub.asked.get, timeout=PATIENCE)
            patient = number % 2 == 0 and proxy is not nginx_that_collects_bodies
            ask(url, head, body, wait if patient else None)
            if not patient:
                wait()
        print(f"of {tries} tries {hub.ran.count(('POST', '/broadcast'))} ran a second request")
        assert set(hub.ran) <= {("POST", "/healthz"), ("GET", "/readyz")}
        assert hub.ran.count(("POST", "/healthz")) == tries
        assert hub.hub.node.totals.published == 0


def ask(url: str, head: bytes, body: bytes, wait: Callable[[], object] | None = None) -> bytes:
    """Send a request, after a wait its body, and an honest request. Return all that arrives."""
    parts = urlsplit(url)
    honest = b"GET /readyz HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n\r\n"
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=PATIENCE) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(head + b"\r\n")
        if wait is not None:
            wait()
        try:
            connection.sendall(body)
            connection.sendall(honest)
            return read_until(connection, b"")
        except ConnectionError:
            return b""  # a proxy may close a connection that gets a body after the answer
