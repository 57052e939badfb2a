"""Config: every setting with its default, its range and its meaning. No other module reads the environment.

A setting has one name, as a keyword, a ``--flag`` and an ``SSE_APP_`` variable. Durations are in seconds or have a unit
(``15``, ``15s``, ``500ms``, ``5m``, ``24h``), sizes are in bytes or have a unit (``65536``, ``64KiB``, ``1MiB``). A
keyword takes such a text, or the value that the text stands for.
"""

import difflib
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from ipaddress import IPv6Address, ip_address
from typing import Any, TypedDict, get_args
from urllib.parse import urlsplit

from sse_app import address, descriptors, limits
from sse_app.errors import ConfigError, InvalidTopic
from sse_app.grants import Reconnect
from sse_app.quantities import duration, size, truth, whole
from sse_app.topics import TopicFilter

ENV_PREFIX = "SSE_APP_"
SECRET_MIN = 32  # bytes of a secret for tokens: as many as the shortest hash has (RFC 7518, 3.2)
LOOPBACK_NAMES = ("localhost", "*.localhost", "127.0.0.1", "[::1]")  # RFC 6761, 6.3


@dataclass(frozen=True)
class Setting:
    """The way to read and show a setting. ``low`` and ``high`` bound a number; a secret's value is never shown."""

    meaning: str
    read: Callable[[str], Any]
    low: float = -math.inf
    high: float = math.inf
    expects: str = ""
    secret: bool = False

    @property
    def range(self) -> str:
        bounds = "" if self.low == -math.inf else f" from {self.low:,.15g} to {self.high:,.15g}"
        return self.expects + bounds


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _header_of_proxies(text: str) -> str:
    if text.lower() not in address.HEADERS:
        raise ValueError(text)
    return text.lower()


def _setting(
    default: Any, meaning: str, read: Callable[[str], Any], expects: str, *bounds: float, secret: bool = False
) -> Any:
    low, high = bounds or (-math.inf, math.inf)
    setting = Setting(meaning, read, low, high, expects, secret)
    return field(default=default, repr=not secret, metadata={"setting": setting})


def _count(default: int | None, meaning: str, low: float, high: float) -> Any:
    return _setting(default, meaning, whole, "a whole number", low, high)


def _seconds(default: float, meaning: str, low: float, high: float) -> Any:
    return _setting(default, meaning, duration, "a duration in seconds (or 500ms, 15s, 5m, 24h)", low, high)


def _size(default: int, meaning: str, low: float, high: float) -> Any:
    return _setting(default, meaning, size, "a size in bytes (or 64KiB, 1MiB)", low, high)


def _text(default: str | None, meaning: str, expects: str, *, secret: bool = False) -> Any:
    return _setting(default, meaning, str, expects, secret=secret)


def _rate(default: str, meaning: str) -> Any:
    return _setting(limits.Rate.parse(default), meaning, limits.Rate.parse, limits.EXPECTED)


def _one_of(names: Sequence[str], meaning: str) -> Any:
    """A setting that is one of these names, the first by default."""

    def read(text: str) -> str:
        if text not in names:
            raise ValueError(text)
        return text

    return _setting(names[0], meaning, read, f"{', '.join(names[:-1])} or {names[-1]}")


def _list(meaning: str, expects: str, *default: str) -> Any:
    return _setting(default, meaning, _names, expects)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of one server, checked. Raises ConfigError, which names the setting and what it may be."""

    host: str | tuple[str, ...] = _list(
        "Addresses to listen on.",
        "addresses or host names separated by commas, :: for any of IPv6 and IPv4",
        "127.0.0.1",
    )  # a text with commas is accepted, and made a tuple
    port: int = _count(8000, "Port to listen on; 0 takes a free one.", 0, 65535)
    broker: str = _text(
        "memory://", "Who keeps the log.", "a URL: memory://, sqlite:///hub.db, redis://host, nats://host", secret=True
    )
    recover: bool = _setting(False, "Set a damaged log file aside and begin a new log.", truth, "true or false")
    workers: int = _count(1, "Processes; more than 1 needs a log that processes can share.", 1, 1024)
    allowed_hosts: tuple[str, ...] = _list(
        "Host names that requests may ask for, beside the loopback names and the address listened on.",
        "names separated by commas, *.example.com for all below, * for any",
    )
    cors_origins: tuple[str, ...] = _list(
        "Origins whose pages may subscribe and publish.",
        "origins such as https://example.com separated by commas, or *",
    )
    cors_headers: tuple[str, ...] = _list(
        "Headers that those pages may send, beside the hub's own and those of tracing.",
        "header names separated by commas, or * for any",
    )
    cors_credentials: bool = _setting(False, "Those pages may send cookies.", truth, "true or false")
    trusted_proxies: tuple[str, ...] = _list(
        "Proxies before the server, who are believed when they say which address a request came from.",
        "networks such as 10.0.0.0/8 separated by commas, unix for who connects by a Unix socket",
    )
    forwarded_header: str | None = _setting(
        None, "Header in which those proxies say so.", _header_of_proxies, " or ".join(address.HEADERS)
    )
    ticket_reconnect: Reconnect = _one_of(  # noqa: RUF009  # a field()
        get_args(Reconnect), "Who may come back with a ticket: the browser it is bound to, nobody, or its bearer."
    )
    failed_credentials: limits.Rate = _rate("30/m", "Credentials from one address that may fail.")  # noqa: RUF009  # a field()
    publish_key: str | None = _text(
        None,
        "Secret that publishers send as `Authorization: Bearer ...`.",
        "16 to 256 visible ASCII characters",
        secret=True,
    )
    auth_file: str | None = _text(
        None, "File with keys and issuers of tokens; read again when it changes.", "a path of a TOML file"
    )
    token_keys: str | None = _text(
        None, "Public keys that tokens are checked with.", "PEM, or a path of PEM or a JWKS, or an https URL of a JWKS"
    )
    token_secret: str | None = _text(
        None, "Secret that tokens are signed with, in place of keys.", "at least 32 bytes", secret=True
    )
    token_issuer: str | None = _text(None, "Who signs them, their `iss`; needed with keys.", "a text")
    token_audience: str | None = _text(
        None, "This hub as they name it, in their `aud`; needed with keys.", "a text, often the URL of the hub"
    )
    token_algorithms: tuple[str, ...] = _list(
        "Algorithms that they may be signed with; without any those that fit the keys.",
        "names such as ES256 separated by commas",
    )
    token_claims: tuple[str, ...] = _list(
        "Claims that say what they grant; the first that is there counts.",
        "names separated by commas: sse, scope, mercure",
        "sse",
        "scope",
    )
    token_max_age: float = _seconds(30 * 86400.0, "They expire within so long.", 1, 10 * 365 * 86400)
    jwks_stale: float = _seconds(
        86400.0, "Keys of a URL count so long after the last that could be fetched.", 60, 365 * 86400
    )
    auth_cookies: tuple[str, ...] = _list(
        "Cookies that may hold a token or a key, from pages of the hub's own origin.", "names separated by commas"
    )
    auth_max_age: float = _seconds(
        86400.0, "A stream ends after so long, so that its client shows its credential again.", 1, 365 * 86400
    )
    anonymous_subscribe: tuple[str, ...] = _list(
        "What everyone may subscribe to without a credential.", "topic filters separated by commas, ** for everything"
    )
    require_topic: bool = _setting(
        False, "Refuse a publication without a topic, which is for everyone.", truth, "true or false"
    )
    allow_open_publish: bool = _setting(
        False, "Listen beyond loopback though anyone may publish.", truth, "true or false"
    )
    heartbeat: float = _seconds(15.0, "Between two comments on an idle stream.", 0.1, 3600)
    retry_min: float = _seconds(2.0, "After a stream's end clients wait at least so long.", 0.001, 3600)
    retry_max: float = _seconds(5.0, "And at most so long, each a random time.", 0.001, 3600)
    history: int = _count(10_000, "Publications that the log holds.", 1, 100_000_000)
    history_age: float = _seconds(86400.0, "How long it holds them.", 1, 10 * 365 * 86400)
    history_bytes: int = _size(64 * 1024**2, "How many bytes of them.", 1024, 2**40)
    queue: int = _count(1000, "Publications that may wait for one subscriber.", 1, 1_000_000)
    queue_bytes: int = _size(1024**2, "Bytes that may wait for one subscriber.", 1024, 2**30)
    so_sndbuf: int = _size(64 * 1024, "Kernel send buffer of a connection.", 4096, 2**30)
    # The next heartbeat is what a vanished peer fails to acknowledge: with both, its stream ends within 35 s.
    tcp_user_timeout: float = _seconds(18.0, "A peer that acknowledges nothing for so long is gone.", 1, 3600)
    body_max: int = _size(256 * 1024, "Size of a publication's data.", 1, 64 * 1024**2)
    batch_bytes: int = _size(4 * 1024**2, "Size of the data of all events of a batch.", 1, 64 * 1024**2)
    head_max: int = _size(16 * 1024, "Size of a request's head.", 1024, 1024**2)
    head_deadline: float = _seconds(
        10.0, "How long a request's head, and then its body, may take to arrive.", 0.1, 3600
    )
    drain: float = _seconds(10.0, "How long a planned stop may take.", 0, 3600)
    max_subscribers: int | None = _count(
        None, "Streams open at a time (default: the file-descriptor limit - 64).", 1, 10**9
    )
    idempotency_window: float = _seconds(300.0, "How long an Idempotency-Key is remembered.", 1, 7 * 86400)
    access_log: bool = _setting(False, "Log every request, without its query.", truth, "true or false")

    def __post_init__(self) -> None:
        for item in fields(self):
            value = _read(item.name, item.metadata["setting"], getattr(self, item.name))
            _check(item.name, item.metadata["setting"], value, item.default)
            object.__setattr__(self, item.name, value)
        if self.max_subscribers is None:
            object.__setattr__(self, "max_subscribers", max(1, descriptors.limit() - descriptors.ROOM))
        self._check_together()

    def _check_together(self) -> None:
        if self.workers > 1 and self.broker.startswith("memory:"):
            raise ConfigError(
                "workers is 1 with broker memory://, whose log lives in one process; "
                "more need one they can share, such as sqlite:///hub.db or redis://localhost."
            )
        if self.recover and not self.broker.startswith("sqlite:"):
            raise ConfigError("recover is for a log in a file, such as broker sqlite:///hub.db.")
        if self.retry_min > self.retry_max:
            raise ConfigError("retry_min is at most retry_max; in between, each client's reconnection time is random.")
        if self.publish_key is not None and not re.fullmatch(r"[\x21-\x7e]{16,256}", self.publish_key):
            raise ConfigError("publish_key is 16 to 256 visible ASCII characters (try: openssl rand -hex 16).")
        if not (self.publish_key or self.takes_credentials or self.allow_open_publish or self.loopback_only):
            raise ConfigError(
                "host beyond loopback needs a publish_key, keys or tokens, or allow_open_publish to let anyone who"
                " reaches it publish."
            )
        self._check_tokens()
        self._check_cors()
        self._check_proxies()
        for host in self.allowed_hosts:
            if not re.fullmatch(r"\*|(\*\.)?[A-Za-z0-9._-]+", host) and not _is_ipv6_in_brackets(host):
                raise ConfigError(
                    "allowed_hosts holds names without a port: example.com, *.example.com, [2001:db8::1] or *."
                )

    def _check_cors(self) -> None:
        for origin in self.cors_origins:
            if origin != "*" and not _is_origin(origin):
                raise ConfigError(
                    "cors_origins holds origins such as https://example.com: scheme and host, no path, or *."
                )
        for header in self.cors_headers:
            if not re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", header):
                raise ConfigError("cors_headers holds names of headers such as X-Request-ID, or *.")
        if self.cors_headers and not self.cors_origins:
            raise ConfigError("cors_headers is for pages of other origins, and cors_origins names none.")
        if self.cors_credentials and not self.cors_origins:
            raise ConfigError("cors_credentials is for pages of other origins, and cors_origins names none.")
        if self.cors_credentials and "*" in self.cors_origins:
            raise ConfigError(
                "cors_credentials lets pages act as their visitors: name them in cors_origins, without *, which is any."
            )

    def _check_proxies(self) -> None:
        if self.trusted_proxies and not self.forwarded_header:
            raise ConfigError("trusted_proxies needs a forwarded_header, in which they say where a request came from.")
        if self.forwarded_header and not self.trusted_proxies:
            raise ConfigError("forwarded_header needs trusted_proxies: anyone may send that header.")
        try:
            address.Proxies.parse(self.trusted_proxies, self.forwarded_header)
        except ValueError:
            raise ConfigError(
                "trusted_proxies holds networks such as 10.0.0.0/8 and 2001:db8::/32, addresses, and unix; not the"
                " network of all addresses, since then clients would choose theirs."
            ) from None

    @property
    def proxies(self) -> address.Proxies:
        """The proxies that are trusted, and their header."""
        return address.Proxies.parse(self.trusted_proxies, self.forwarded_header)

    def _check_tokens(self) -> None:
        if self.auth_cookies and not self.takes_credentials:
            raise ConfigError(
                "auth_cookies hold tokens or keys, and there is no auth_file, token_keys or token_secret."
            )
        for name in self.auth_cookies:
            if not re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", name):
                raise ConfigError("auth_cookies holds names of cookies such as session.")
        try:
            TopicFilter.parse(self.anonymous_subscribe)
        except InvalidTopic as error:
            raise ConfigError(f"anonymous_subscribe holds topic filters such as news/*. {error}") from None
        if self.token_keys is not None and self.token_secret is not None:
            raise ConfigError("token_secret is for tokens signed with it, and token_keys for others; give one of them.")
        for name in ("token_issuer", "token_audience", "token_algorithms"):
            if getattr(self, name) and self.token_keys is None and self.token_secret is None:
                raise ConfigError(f"{name} is of tokens, and there is neither token_keys nor token_secret.")
        if self.token_secret is not None and len(self.token_secret.encode()) < SECRET_MIN:
            raise ConfigError(f"token_secret is at least {SECRET_MIN} bytes (try: openssl rand -hex 32).")

    @property
    def takes_credentials(self) -> bool:
        """True when keys or tokens say what a request may do."""
        return any(setting is not None for setting in (self.auth_file, self.token_keys, self.token_secret))

    @property
    def hosts(self) -> tuple[str, ...]:
        """The Hosts that requests may name."""
        own = (f"[{address}]" if ":" in address else address for address in self.addresses)
        return tuple(dict.fromkeys([*LOOPBACK_NAMES, *own, *self.allowed_hosts]))

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses and names to listen on. ``::`` is listened on for IPv6 alone, so ``0.0.0.0`` is added to it."""
        return tuple(address for host in self.host for address in ((host, "0.0.0.0") if _is_any(host) else (host,)))

    @property
    def loopback_only(self) -> bool:
        """True when only this machine reaches the server."""
        return all(is_loopback(host) for host in self.host)

    @classmethod
    def load(cls, flags: Mapping[str, Any], environment: Mapping[str, str]) -> "Config":
        """Return the Config of flags, else of ``SSE_APP_`` variables, else of defaults. A flag is a text, a list of
        texts or a bool; None when it is not given.
        """
        values: dict[str, Any] = {}
        unknown = {name for name in environment if name.startswith(ENV_PREFIX)} - {
            ENV_PREFIX + name.upper() for name in (*cls.settings(), "url", "token", "no_bootstrap")
        }
        if unknown:
            raise ConfigError(f"{min(unknown)} is not a setting; `sse-app serve --help` lists them.")
        for name in cls.settings():
            given = flags.get(name)
            if given is None or given == ():
                given = environment.get(ENV_PREFIX + name.upper())
            if given is not None:
                values[name] = given if isinstance(given, str | bool) else ",".join(given)
        return cls(**values)

    @classmethod
    def settings(cls) -> dict[str, Setting]:
        return {item.name: item.metadata["setting"] for item in fields(cls)}


class LogOptions(TypedDict, total=False):
    """The settings of a log, as keywords; a text stands for what it does as a flag (``"24h"``, ``"64MiB"``)."""

    history: int | str
    history_age: float | str
    history_bytes: int | str
    idempotency_window: float | str


class PublisherOptions(LogOptions, total=False):
    """The settings of a publisher without a hub, as keywords."""

    body_max: int | str
    batch_bytes: int | str
    require_topic: bool


class HubOptions(LogOptions, total=False):
    """The settings of a hub and its endpoints, as keywords."""

    recover: bool
    queue: int | str
    queue_bytes: int | str
    heartbeat: float | str
    retry_min: float | str
    retry_max: float | str
    max_subscribers: int | str | None
    drain: float | str
    body_max: int | str
    batch_bytes: int | str
    head_deadline: float | str
    publish_key: str | None
    require_topic: bool
    auth_file: str | None
    token_keys: str | None
    token_secret: str | None
    token_issuer: str | None
    token_audience: str | None
    token_algorithms: Sequence[str]
    token_claims: Sequence[str]
    token_max_age: float | str
    auth_cookies: Sequence[str]
    auth_max_age: float | str
    anonymous_subscribe: Sequence[str]
    jwks_stale: float | str
    allowed_hosts: Sequence[str]
    cors_origins: Sequence[str]
    cors_headers: Sequence[str]
    cors_credentials: bool
    trusted_proxies: Sequence[str]
    forwarded_header: str | None
    ticket_reconnect: Reconnect
    failed_credentials: limits.Rate | str


def check_names(whose: str, given: Collection[str], known: Collection[str]) -> None:
    """Raise ConfigError for a keyword that is not in ``known``. ``whose`` names the thing that takes the keywords."""
    for name in given:
        if name in known:
            continue
        if name in Config.settings():
            raise ConfigError(f"{name} is a setting of a whole server, as `sse-app serve` is; a {whose} has none.")
        meant = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {meant[0]}?" if meant else f"there are {', '.join(known)}."
        raise ConfigError(f"{name} is not a setting of a {whose}; {hint}")


def _read(name: str, setting: Setting, given: Any) -> Any:
    """Return the value that a text stands for; any other type is the value itself."""
    if isinstance(given, list):
        return tuple(given)
    if not isinstance(given, str):
        return given
    try:
        return setting.read(given)
    except ValueError:
        raise ConfigError(f"{name} is {setting.range}.") from None


def _check(name: str, setting: Setting, value: Any, default: Any) -> None:
    if value is None and default is None:
        return
    wrong_type = isinstance(value, bool) != isinstance(default, bool)
    if setting.low != -math.inf:
        kinds = int if setting.read in (whole, size) else (int, float)
        in_range = isinstance(value, kinds) and not wrong_type and setting.low <= value <= setting.high
    elif isinstance(default, tuple):
        in_range = isinstance(value, tuple) and all(isinstance(item, str) and item for item in value)
        in_range = in_range and (bool(value) or not default)
    else:
        in_range = isinstance(value, str if default is None else type(default)) and value != ""
    if not in_range:
        raise ConfigError(f"{name} is {setting.range}.")


def is_loopback(host: str) -> bool:
    """Return True when only this machine reaches a server that listens there."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_any(host: str) -> bool:
    """Return True for ``::``, however it is written."""
    try:
        return ip_address(host) == ip_address("::")
    except ValueError:
        return False


def _is_ipv6_in_brackets(text: str) -> bool:
    try:
        return text == f"[{text[1:-1]}]" and IPv6Address(text[1:-1]).scope_id is None
    except ValueError:
        return False


def _is_origin(text: str) -> bool:
    try:
        parts = urlsplit(text)
        default = {"http": 80, "https": 443}.get(parts.scheme, -1)
        return (
            bool(parts.hostname)
            and f"{parts.scheme}://{parts.netloc}" == text == text.lower()
            and parts.port != default
            and "@" not in text
        )
    except ValueError:
        return False
