"""Who may ask: the Host that a request names, and the page that it comes from.

A page of another site can make a visitor's browser send requests here, and a name that its owner points at 127.0.0.1
after the fact (DNS rebinding) makes them look same-origin. So every request is looked at before anything else,
streams included.
"""

import re
from collections.abc import Awaitable, Callable, Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from sse_app.errors import BadHost, BadInput, BadOrigin, UnknownHost

_HOST = re.compile(r"(?P<name>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:(?P<port>[0-9]{1,5}))?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


class Guard:
    """ASGI middleware. ``hosts`` are the names this server answers to (``*.example.com`` for all below), None or
    ``*`` for any; ``origins`` are the foreign origins whose pages may ask, ``*`` for any. ``refuse`` makes an error a
    response.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Collection[str] | None,
        origins: Collection[str],
        refuse: Callable[[BadInput], ASGIApp],
    ) -> None:
        self._app, self._refuse = app, refuse
        self._hosts = None if hosts is None or "*" in hosts else frozenset(host.lower() for host in hosts)
        self._origins = frozenset(origins)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        app = self._app
        if scope["type"] == "http":
            try:
                self._check(scope)
            except BadInput as error:
                app = self._refuse(error)
        return app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = self._checked_host(headers, scope["http_version"])
        origin = headers.get("origin")
        if origin is None:
            foreign = headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate"
        else:
            foreign = not ("*" in self._origins or origin in self._origins or _same_origin(origin, host, headers))
        if foreign:
            raise BadOrigin("This page's origin may not use this hub; its operator can allow it with cors_origins.")

    def _checked_host(self, headers: Headers, http_version: str) -> str:
        given = headers.getlist("host")
        if not given and http_version == "1.0":
            return ""  # HTTP/1.0 knows no Host, and no browser speaks it
        match = _HOST.fullmatch(given[0]) if len(given) == 1 else None
        if match is None:
            raise BadHost("A request has exactly one Host header, a name or address with or without a port.")
        if self._hosts is not None and not self._answers_to(match["name"].lower()):
            raise UnknownHost("This server does not answer to that Host; its operator can add it with allowed_hosts.")
        return given[0]

    def _answers_to(self, name: str) -> bool:
        assert self._hosts is not None
        parents = (name[index:] for index, char in enumerate(name) if char == ".")
        return name in self._hosts or any(f"*{parent}" in self._hosts for parent in parents)


def _same_origin(origin: str, host: str, headers: Headers) -> bool:
    """Whether the page came from this server. Browsers say it themselves in Sec-Fetch-Site, also when a proxy has
    changed the Host; older ones are taken by the Origin, whose scheme a proxy may have changed.
    """
    if "sec-fetch-site" in headers:
        return headers["sec-fetch-site"] == "same-origin"
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    default = _DEFAULT_PORTS.get(parts.scheme)
    return default is not None and host != "" and _with_port(parts.netloc, default) == _with_port(host, default)


def _with_port(netloc: str, default: str) -> str:
    match = _HOST.fullmatch(netloc)
    return f"{match['name'].lower()}:{match['port'] or default}" if match else ""
