"""The URL of a log in NATS."""

import re
import ssl
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from sse_app.errors import ConfigError
from sse_app.quantities import whole

FORM = (
    "broker: a URL of NATS is nats://host:4222/name, with a name of 1 to 64 characters of A-Z a-z 0-9 _ - and the "
    "options creds, ca and replicas (1 to 5)."
)
OPTIONS = {"creds", "ca", "replicas"}


class Address(NamedTuple):
    """The parts of a URL: servers, credentials, TLS, the hub's ``name`` and the copies that its streams have."""

    servers: list[str]
    name: str
    user: str | None
    password: str | None
    token: str | None
    creds: str | None  # a file
    tls: ssl.SSLContext | None  # None: TLS if the server asks for it, with the system's authorities
    demands_tls: bool
    replicas: int


def parse(url: str) -> Address:
    """Return the parts of a URL. Raises ConfigError, whose text does not repeat secrets of the URL."""
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        userinfo, _, hosts = parts.netloc.rpartition("@")
        servers = [_server(host) for host in hosts.split(",")]
        name = parts.path.removeprefix("/") or "hub"
        replicas = whole(options.get("replicas", "1"))
    except ValueError:
        raise ConfigError(FORM) from None
    if options.keys() - OPTIONS or not 1 <= replicas <= 5 or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise ConfigError(FORM)
    user, colon, password = (unquote(part) for part in userinfo.partition(":"))
    return Address(
        servers,
        name,
        user if colon else None,
        password if colon else None,
        None if colon else user or None,
        _readable(options.get("creds")),
        _trusting(parts, options.get("ca")),
        parts.scheme == "tls",
        replicas,
    )


def _server(host: str) -> str:
    parts = urlsplit(f"nats://{host}")
    if not parts.hostname or parts.username is not None or parts.path:
        raise ValueError(host)
    address = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"nats://{address}:{parts.port or 4222}"


def _readable(path: str | None) -> str | None:
    if path is not None and find_spec("nkeys") is None:
        raise ConfigError("broker: creds needs a package that is not installed: pip install 'sse-app[nats]'")
    try:
        if path is not None:
            Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"broker: the file that creds names cannot be read: {error.strerror}.") from None
    return path


def _trusting(parts: SplitResult, ca: str | None) -> ssl.SSLContext | None:
    if ca is None and parts.scheme != "tls":
        return None
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:  # ssl.SSLError, of a file without certificates, is one
        raise ConfigError(f"broker: the file that ca names cannot be used: {error.strerror}.") from None
