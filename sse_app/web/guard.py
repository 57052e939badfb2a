"""Who may ask: the Host that a request names, and the page that it comes from.

A page of another site can make a visitor's browser send requests here, and a name that its owner points at 127.0.0.1
after the fact (DNS rebinding) makes them look same-origin. So every request is looked at before anything else,
streams included.

And no upgrade comes with a body, and no CONNECT at all: uvicorn's own httptools protocol loses what follows such a
head, or runs it as the next request (Kludex/uvicorn#2722). An app cannot mend that, but refuse; what our own server
declines does not get here.
"""

import ipaddress
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from sse_app.errors import (
    BadHost,
    BadInput,
    BadOrigin,
    InvalidIdempotencyKey,
    RepeatedHeader,
    UnknownHost,
    UnsafeUpgrade,
)
from sse_app.web.prefix import route_path

# The headers that mean something here and may come once. Of two, servers and proxies would take one or the other.
# Last-Event-ID is none of them: two make a bad cursor, which is never an HTTP error.
ONCE: Mapping[bytes, type[BadInput]] = {
    b"host": BadHost,
    b"origin": RepeatedHeader,
    b"sec-fetch-site": RepeatedHeader,
    b"sec-fetch-mode": RepeatedHeader,
    b"access-control-request-method": RepeatedHeader,
    b"authorization": RepeatedHeader,
    b"content-type": RepeatedHeader,
    b"content-length": RepeatedHeader,
    b"content-encoding": RepeatedHeader,  # a list, of which nothing but one `identity` is taken
    b"idempotency-key": InvalidIdempotencyKey,
}

_HOST = re.compile(r"(?P<name>[A-Za-z0-9._-]+|\[[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*\])(:(?P<port>[0-9]{0,5}))?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_WHITE = b" \t"
_CONNECTION = (b"connection", b"proxy-connection")


class Guard:
    """ASGI middleware. ``hosts`` are the names this server answers to (``*.example.com`` for all below), None or
    ``*`` for any; ``origins`` are the foreign origins whose pages may ask, ``*`` for any. ``refuse`` makes an error a
    response. ``any_host`` are paths that tell nothing, and answer whatever the Host is.

    What it passes on has no white space around a header's value, and none twice that may come once.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Collection[str] | None,
        origins: Collection[str],
        refuse: Callable[[BadInput], ASGIApp],
        any_host: Collection[str] = (),
    ) -> None:
        self._app, self._refuse = app, refuse
        self._hosts = None if hosts is None or "*" in hosts else frozenset(map(_canonical, hosts))
        self._origins = frozenset(origins)
        self._any_host = frozenset(any_host)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        app = self._app
        if scope["type"] == "http":
            try:
                scope = _trimmed(scope)
                self._check(scope, _once(scope))
            except BadInput as error:
                app = self._refuse(error)
        return app(scope, receive, send)

    def _check(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        if scope["method"] == "CONNECT":
            raise UnsafeUpgrade("This is no proxy, and opens no tunnel.")
        if _offers_upgrade_with_body(scope["headers"]):
            raise UnsafeUpgrade("A request that offers an upgrade has no body here: leave the Upgrade header out.")
        host = self._checked_host(headers.get(b"host"), scope)
        origin = headers.get(b"origin")
        if origin is None:
            foreign = headers.get(b"sec-fetch-site") == b"cross-site" and headers.get(b"sec-fetch-mode") != b"navigate"
        else:
            foreign = not self._may_ask(origin.decode("latin-1"), host, headers.get(b"sec-fetch-site"))
        if foreign:
            raise BadOrigin("This page's origin may not use this hub; its operator can allow it with cors_origins.")

    def _may_ask(self, origin: str, host: str, site: bytes | None) -> bool:
        return "*" in self._origins or origin in self._origins or _same_origin(origin, host, site)

    def _checked_host(self, raw: bytes | None, scope: Scope) -> str:
        if raw is None and scope["http_version"] == "1.0":
            return ""  # HTTP/1.0 knows no Host, and no browser speaks it
        given = "" if raw is None else raw.decode("latin-1")
        match = _HOST.fullmatch(given)
        if match is None or (given.startswith("[") and _address(match["name"]) is None):
            raise BadHost("A request has exactly one Host header, a name or address with or without a port.")
        if not (
            self._answers_to(_canonical(match["name"]))
            or _is_where_it_came_in(match["name"], match["port"], scope)
            or route_path(scope) in self._any_host
        ):
            raise UnknownHost("This server does not answer to that Host; its operator can add it with allowed_hosts.")
        return given

    def _answers_to(self, name: str) -> bool:
        if self._hosts is None or name in self._hosts:
            return True
        parents = (name[index:] for index, char in enumerate(name) if char == ".")
        return any(f"*{parent}" in self._hosts for parent in parents)


def _trimmed(scope: Scope) -> Scope:
    """The request without the white space around its headers' values, which is not theirs (RFC 9110, 5.5). httptools,
    and with it uvicorn, leaves what follows them.
    """
    for _, value in scope["headers"]:
        if value and (value[-1] in _WHITE or value[0] in _WHITE):
            return {**scope, "headers": [(name, value.strip(_WHITE)) for name, value in scope["headers"]]}
    return scope


def _once(scope: Scope) -> dict[bytes, bytes]:
    """The headers that may come once. Raises BadInput for one that comes twice."""
    found: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name in ONCE:
            if name in found:
                raise ONCE[name](f"A request has at most one {name.decode().title()} header.")
            found[name] = value
    return found


def _offers_upgrade_with_body(headers: Collection[tuple[bytes, bytes]]) -> bool:
    """An upgrade is offered by two fields (RFC 9110, 7.8): one alone does nothing. httptools takes Proxy-Connection,
    which proxies pass on, for Connection.
    """
    names = {name for name, _ in headers}
    if b"upgrade" not in names:
        return False
    has_body = any(name == b"content-length" and value != b"0" for name, value in headers)
    offered = any(name in _CONNECTION and b"upgrade" in value.lower() for name, value in headers)
    return offered and (has_body or b"transfer-encoding" in names)


def _canonical(name: str) -> str:
    """One spelling for each host: lower case, without the dot of the root, IPv6 as short as it gets."""
    address = _address(name) if name.startswith("[") else None
    return name.lower().removesuffix(".") if address is None else f"[{address}]"


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that a Host (in brackets if it has colons) or a server says it is, None for anything else."""
    try:
        return ipaddress.ip_address(text.removeprefix("[").removesuffix("]").partition("%")[0])
    except ValueError:
        return None


def _is_where_it_came_in(name: str, port: str | None, scope: Scope) -> bool:
    """Return True for a Host that is the address and port of our end of the connection, as it is for probes of a server
    that listens on all addresses. A page that uses DNS rebinding cannot send one: its Host is its own name.
    """
    server = scope.get("server")
    if not server or server[1] is None or (asked := _address(name)) is None:
        return False
    default = _DEFAULT_PORTS.get(scope.get("scheme", "http"))
    return _unmapped(asked) == _unmapped(_address(str(server[0]))) and (port or default) == str(server[1])


def _unmapped(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address | None,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """IPv4 that came in on a socket for IPv6, as IPv4 (RFC 4291, 2.5.5.2)."""
    return getattr(address, "ipv4_mapped", None) or address


def _same_origin(origin: str, host: str, site: bytes | None) -> bool:
    """Whether the page came from this server. Browsers say it themselves in Sec-Fetch-Site, also when a proxy has
    changed the Host; older ones are taken by the Origin, whose scheme a proxy may have changed.
    """
    if site is not None:
        return site == b"same-origin"
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    default = _DEFAULT_PORTS.get(parts.scheme)
    return default is not None and host != "" and _with_port(parts.netloc, default) == _with_port(host, default)


def _with_port(netloc: str, default: str) -> str:
    match = _HOST.fullmatch(netloc)
    return f"{match['name'].lower()}:{match['port'] or default}" if match else ""
