"""``auth_file``: the keys and issuers of a hub, in TOML.

    [keys.till]
    hash = "sha256:..."
    publish = ["orders/**"]

    [[issuers]]
    name = "main"
    issuer = "https://login.example.com/"
    audience = "https://hub.example.com"
    keys = "https://login.example.com/jwks.json"

Nothing in it is guessed at: an unknown name or a value of another form is a ConfigError that names the place. What the
file says is repeated in no error, but for names of keys and issuers that are well formed.
"""

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sse_app.auth.files import check_private, read_text
from sse_app.auth.issuer import IssuerSettings
from sse_app.auth.keys import NAME, Key
from sse_app.errors import BadInput, ConfigError
from sse_app.grants import STATS, Grant
from sse_app.topics import TopicFilter

# Grant.source where no key and no issuer stands behind it; no key and no issuer may be called so.
OWN_ISSUER = "default"  # the issuer that the hub's own settings describe
RESERVED = frozenset({"open", "anonymous", "authorize", "ticket", "publish_key", OWN_ISSUER})

_HASH = re.compile("sha256:([0-9a-f]{64})")
_LINE = re.compile(r"\(at (line \d+)")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AuthFile:
    """The keys by name and the issuers of a file."""

    keys: Mapping[str, Key]
    issuers: Sequence[IssuerSettings]

    @classmethod
    def read(cls, path: Path) -> "AuthFile":
        """Return what the file at this path says. Raises ConfigError."""
        text, mode = read_text(path, "auth_file")
        check_private(mode, "auth_file")
        return cls.parse(text, path.parent)

    @classmethod
    def parse(cls, text: str, folder: Path) -> "AuthFile":
        """Return what a text says. Relative paths in it begin at ``folder``. Raises ConfigError."""
        try:
            content = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            line = _LINE.search(str(error))
            raise ConfigError(f"auth_file is not valid TOML{f' in {line[1]}' if line else ''}.") from None
        except RecursionError:
            raise ConfigError("auth_file is nested too deep.") from None
        file = _Table("auth_file", content, ("keys", "issuers"))
        tables: dict[str, Any] = file.get("keys", {}, "a table for each key, [keys.NAME]", _is(dict))
        keys = {name: _key(name, table) for name, table in tables.items()}
        listed: list[Any] = file.get("issuers", [], "tables, [[issuers]]", _is(list))
        issuers = [_issuer(table, folder) for table in listed]
        names = [*keys, *(issuer.name for issuer in issuers)]
        if len(set(names)) < len(names) or RESERVED & set(names):
            raise ConfigError(
                f"auth_file: keys and issuers have names of their own, and not {', '.join(sorted(RESERVED))}."
            )
        return cls(keys, issuers)


class _Table:
    """A table of the file. Its members are taken one by one, by name; there are no others than ``known``."""

    def __init__(self, place: str, content: object, known: Sequence[str]) -> None:
        self._place = place
        if not isinstance(content, dict):
            raise ConfigError(f"{place} is a table.")
        if not content.keys() <= set(known):
            raise ConfigError(f"{place} has a member that is none of {', '.join(known)}.")
        self._content = content

    def get(self, name: str, default: T, expects: str, fits: Callable[[Any], bool]) -> T:
        value: T = self._content.get(name, default)
        if not (value is default or fits(value)):
            raise self.error(name, expects)
        return value

    def error(self, name: str, expects: str) -> ConfigError:
        separator = ": " if self._place == "auth_file" else "."
        return ConfigError(f"{self._place}{separator}{name} is {expects}.")


def _is(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _key(name: str, content: object) -> Key:
    if not NAME.fullmatch(name):
        raise ConfigError("auth_file: the name of a key has 1 to 64 characters of A-Z a-z 0-9 _ -, first no _ or -.")
    known = ("hash", "publish", "subscribe", "broadcasts", "stats", "mint", "admin", "client", "user")
    table = _Table(f"auth_file: keys.{name}", content, known)
    digest = _HASH.fullmatch(table.get("hash", "", "a text", _is_text))
    if digest is None:
        raise table.error("hash", "sha256: and 64 digits of 0-9 a-f (`sse-app keys add` makes one)")
    filters = "a list of at most 100 topic filters"
    grant = Grant(
        publish=_filter(table, "publish", filters),
        subscribe=_filter(table, "subscribe", filters, table.get("broadcasts", True, "true or false", _is(bool))),
        stats=table.get("stats", "none", "none, own or all", lambda value: value in STATS),
        mint=table.get("mint", False, "true or false", _is(bool)),
        admin=table.get("admin", False, "true or false", _is(bool)),
        user=table.get("user", None, "the name of a user", _makes(lambda user: Grant(user=user))),
        client=table.get("client", None, "a client name, or the begin of one and *", _makes(lambda c: Grant(client=c))),
        source=name,
    )
    return Key(bytes.fromhex(digest[1]), grant)


def _makes(build: Callable[[Any], object]) -> Callable[[Any], bool]:
    def fits(value: object) -> bool:
        try:
            return isinstance(value, str) and build(value) is not None
        except BadInput:
            return False

    return fits


def _filter(table: _Table, name: str, expects: str, broadcasts: bool = True) -> TopicFilter | None:
    patterns: list[str] = table.get(name, [], expects, _are_texts)
    try:
        parsed = TopicFilter.parse(patterns).patterns
    except BadInput:
        raise table.error(name, expects) from None
    if not patterns:
        return None
    return TopicFilter(() if "**" in patterns else parsed, broadcasts)


def _issuer(content: object, folder: Path) -> IssuerSettings:
    name = content.get("name") if isinstance(content, dict) else None
    if not (isinstance(name, str) and NAME.fullmatch(name)):
        raise ConfigError("auth_file: each of the issuers has a name, 1 to 64 characters of A-Z a-z 0-9 _ -.")
    known = ("name", "issuer", "audience", "keys", "secret", "algorithms", "claims")
    table = _Table(f"auth_file: issuers.{name}", content, known)

    def texts(member: str, expects: str) -> tuple[str, ...]:
        # An empty list is refused: as an audience it would mean everyone.
        given: Any = table.get(
            member, (), expects, lambda value: _is_text(value) or (_are_texts(value) and value != [])
        )
        return (given,) if isinstance(given, str) else tuple(given)

    return IssuerSettings(
        place=f"auth_file: issuers.{name}.",
        name=name,
        issuer=table.get("issuer", None, "the iss of its tokens, a text", _is_text),
        audience=texts("audience", "the aud of tokens for this hub, a text or a list of texts"),
        keys=texts("keys", "PEM, a JWKS file or an https URL, or a list of these"),
        secrets=texts("secret", "a text or a list of texts"),
        algorithms=texts("algorithms", "a list of algorithms"),
        claims=texts("claims", "a list of claims"),
        folder=folder,
    )
