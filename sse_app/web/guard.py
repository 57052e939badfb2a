"""The check of every request, before anything else: the Host that it names, the page that it comes from, its upgrade.

A page of another site can make a visitor's browser send requests to a hub. DNS rebinding, where the page's own name
later resolves to 127.0.0.1, makes such requests look same-origin.

To such requests browsers add the visitor's cookies, and the names and passwords of HTTP's own authentication. Where the
hub takes a caller for whom they say, a request that changes something has to say more than others do.

An upgrade with a body is refused, and so is CONNECT: uvicorn's own httptools protocol loses the bytes that follow such
a head, or runs them as the next request (Kludex/uvicorn#2722). An app can only refuse. Our own server declines these
upgrades before the app.
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

# The headers that are used here and may come once: of two, a proxy could use one and the hub the other. Not
# Last-Event-ID: two of them make an invalid cursor, which is never an HTTP error.
ONCE: Mapping[bytes, type[BadInput]] = {
    b"host": BadHost,
    b"origin": RepeatedHeader,
    b"sec-fetch-site": RepeatedHeader,
    b"sec-fetch-mode": RepeatedHeader,
    b"access-control-request-method": RepeatedHeader,
    b"authorization": RepeatedHeader,
    b"content-type": RepeatedHeader,
    b"content-length": RepeatedHeader,
    b"content-encoding": RepeatedHeader,  # may be a list, but only a single `identity` is accepted here
    b"idempotency-key": InvalidIdempotencyKey,
}

_HOST = re.compile(r"(?P<name>[A-Za-z0-9._-]+|\[[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*\])(:(?P<port>[0-9]{0,5}))?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_WHITE = b" \t"
_SAFE = ("GET", "HEAD", "OPTIONS")  # methods that change nothing (RFC 9110, 9.2.1)
_CONNECTION = (b"connection", b"proxy-connection")
KNOWN_HOSTS = 128  # Hosts that are looked at once, of
KNOWN_HOST = 255  # characters at most

_HeldTo = tuple[bytes, tuple[object, ...], object]  # a Host, with the server and the scheme that it is compared with


class Rules:
    """The rules for requests. ``hosts`` are the names this server answers to (``*.example.com`` for all below), None or
    ``*`` for any; ``origins`` are the foreign origins whose pages may ask, ``*`` for any. ``any_host`` are paths whose
    answers reveal nothing, so that every Host may ask for them.

    ``ambient``: the hub takes credentials that browsers add by themselves. Then a request with one that changes
    something has to come from a page of this server; with ``credentials``, also from one of ``origins`` that is named.
    """

    def __init__(
        self,
        *,
        hosts: Collection[str] | None,
        origins: Collection[str],
        any_host: Collection[str] = (),
        ambient: bool = False,
        credentials: bool = False,
    ) -> None:
        self._hosts = None if hosts is None or "*" in hosts else frozenset(map(_canonical, hosts))
        self._origins = frozenset(origins)
        self._any_host = frozenset(any_host)
        self._ambient, self._credentials = ambient, credentials
        self._known: dict[_HeldTo, str] = {}  # Hosts that were let in

    def check(self, scope: Scope) -> Scope:
        """Return a request that keeps the rules, as it is to be passed on: header values have no white space around
        them, and no header of ONCE is repeated. Raises BadInput.
        """
        scope = _trimmed(scope)
        headers, upgrades = _once(scope)
        if scope["method"] == "CONNECT":
            raise UnsafeUpgrade("This is no proxy, and opens no tunnel.")
        if upgrades and _offers_upgrade_with_body(scope["headers"]):
            raise UnsafeUpgrade("A request that offers an upgrade has no body here: leave the Upgrade header out.")
        host = self._checked_host(headers.get(b"host"), scope)
        origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
        if origin is None:
            foreign = site == b"cross-site" and headers.get(b"sec-fetch-mode") != b"navigate"
        else:
            foreign = not self._may_ask(origin.decode("latin-1"), host, site)
        if foreign:
            raise BadOrigin("This page's origin may not use this hub; its operator can allow it with cors_origins.")
        if self._ambient and scope["method"] not in _SAFE and not self._may_be_as_the_visitor(scope, headers, host):
            raise BadOrigin(
                "With a cookie only pages of this hub, and of origins that may send credentials (cors_origins,"
                " cors_credentials), change something here. Other callers send `Authorization: Bearer ...`."
            )
        return scope

    def _may_be_as_the_visitor(self, scope: Scope, headers: Mapping[bytes, bytes], host: str) -> bool:
        """Return True unless a foreign page may have made a visitor's browser send this, with a credential of his."""
        sent, origin, site = headers.get(b"authorization"), headers.get(b"origin"), headers.get(b"sec-fetch-site")
        if sent is None:
            if not any(name == b"cookie" for name, _ in scope["headers"]):
                return True
        elif sent[:7].lower() == b"bearer " or (origin is None and site is None):
            return True  # no browser adds a Bearer; those that add others send an Origin with every POST
        if origin is None:
            return site in (b"same-origin", b"none")
        named = origin.decode("latin-1")
        return (self._credentials and named in self._origins) or _same_origin(named, host, site)

    def _may_ask(self, origin: str, host: str, site: bytes | None) -> bool:
        return "*" in self._origins or origin in self._origins or _same_origin(origin, host, site)

    def _checked_host(self, raw: bytes | None, scope: Scope) -> str:
        if raw is None and scope["http_version"] == "1.0":
            return ""  # HTTP/1.0 has no Host; browsers, whose pages this check is about, do not use it
        held_to = raw or b"", tuple(scope.get("server") or ()), scope.get("scheme")
        if (known := self._known.get(held_to)) is not None:
            return known
        given = "" if raw is None else raw.decode("latin-1")
        match = _HOST.fullmatch(given)
        if match is None or (given.startswith("[") and _address(match["name"]) is None):
            raise BadHost("A request has exactly one Host header, a name or address with or without a port.")
        if self._answers_to(_canonical(match["name"])) or _is_local_address(match["name"], match["port"], scope):
            self._note(held_to, given)
        elif route_path(scope) not in self._any_host:
            raise UnknownHost("This server does not answer to that Host; its operator can add it with allowed_hosts.")
        return given

    def _note(self, held_to: _HeldTo, host: str) -> None:
        if len(host) <= KNOWN_HOST:
            if len(self._known) >= KNOWN_HOSTS:
                self._known.clear()
            self._known[held_to] = host

    def _answers_to(self, name: str) -> bool:
        if self._hosts is None or name in self._hosts:
            return True
        parents = (name[index:] for index, char in enumerate(name) if char == ".")
        return any(f"*{parent}" in self._hosts for parent in parents)


class Guard:
    """ASGI middleware that passes on what keeps the rules. ``refuse`` makes an error a response."""

    def __init__(self, app: ASGIApp, *, rules: Rules, refuse: Callable[[BadInput], ASGIApp]) -> None:
        self._app, self._rules, self._refuse = app, rules, refuse

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        app = self._app
        if scope["type"] == "http":
            try:
                scope = self._rules.check(scope)
            except BadInput as error:
                app = self._refuse(error)
        return app(scope, receive, send)


def _trimmed(scope: Scope) -> Scope:
    """Return the request without white space around its header values, which is no part of them (RFC 9110, 5.5).
    httptools, and so uvicorn, keeps the white space behind a value.
    """
    for _, value in scope["headers"]:
        if value and (value[-1] in _WHITE or value[0] in _WHITE):
            return {**scope, "headers": [(name, value.strip(_WHITE)) for name, value in scope["headers"]]}
    return scope


def _once(scope: Scope) -> tuple[dict[bytes, bytes], bool]:
    """Return the headers of ONCE, and True with an Upgrade header. Raises BadInput for one of ONCE that comes twice."""
    found: dict[bytes, bytes] = {}
    upgrades = False
    for name, value in scope["headers"]:
        if name in ONCE:
            if name in found:
                raise ONCE[name](f"A request has at most one {name.decode().title()} header.")
            found[name] = value
        elif name == b"upgrade":
            upgrades = True
    return found, upgrades


def _offers_upgrade_with_body(headers: Collection[tuple[bytes, bytes]]) -> bool:
    """Return True for an upgrade offered with a body, in headers that have an Upgrade field. With another field it
    offers an upgrade (RFC 9110, 7.8): Connection, for which httptools also takes Proxy-Connection, which proxies pass
    on.
    """
    names = {name for name, _ in headers}
    has_body = any(name == b"content-length" and value != b"0" for name, value in headers)
    offered = any(name in _CONNECTION and b"upgrade" in value.lower() for name, value in headers)
    return offered and (has_body or b"transfer-encoding" in names)


def _canonical(name: str) -> str:
    """Return the one spelling of a host: in lower case, without the root's dot, with IPv6 in its shortest form."""
    address = _address(name) if name.startswith("[") else None
    return name.lower().removesuffix(".") if address is None else f"[{address}]"


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address of a Host (IPv6 in brackets) or of a server, None for a name."""
    try:
        return ipaddress.ip_address(text.removeprefix("[").removesuffix("]").partition("%")[0])
    except ValueError:
        return None


def _is_local_address(name: str, port: str | None, scope: Scope) -> bool:
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
    """Return IPv4 for an IPv4-mapped address, which an IPv6 socket gives IPv4 peers (RFC 4291, 2.5.5.2)."""
    return getattr(address, "ipv4_mapped", None) or address


def _same_origin(origin: str, host: str, site: bytes | None) -> bool:
    """Return True when the page came from this server. Browsers say so in Sec-Fetch-Site, which stays right when a
    proxy changes the Host. For older browsers the Origin is compared with the Host, but for its scheme: a proxy that
    ends TLS changes that.
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
