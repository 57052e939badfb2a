"""An issuer of tokens: its settings, whether they come from the hub's own or from ``auth_file``, and its keys."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol
from urllib.parse import urlsplit

from sse_app.auth.algorithms import ALGORITHMS
from sse_app.auth.claims import SOURCES
from sse_app.config import SECRET_MIN, is_loopback
from sse_app.errors import ConfigError

if TYPE_CHECKING:
    from sse_app.auth.signatures import VerifyingKey  # needs PyJWT, which a hub without tokens does without

KEYS_EXPECTS = "PEM, the path of a PEM or JWKS file, or an https URL of a JWKS (http on loopback)"
UNAVAILABLE = "The keys of the issuer of this token cannot be fetched just now; try again later."
CLAIMS_DEFAULT = ("sse", "scope")


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuerSettings:
    """An issuer: who signs tokens, for whom, with which keys. Raises ConfigError for what cannot be honoured.

    ``place`` is what stands before the name of a setting in an error. ``issuer`` is the ``iss`` of its tokens,
    ``audience`` are the ``aud`` of which one has to be there; None and none: not compared. ``keys`` are PEM, paths
    below ``folder`` or one URL; ``secrets`` stand in their place. Without ``algorithms`` each key takes those that fit
    it. ``claims`` are the sources of what a token grants, in their order.
    """

    place: str
    name: str
    issuer: str | None = None
    audience: tuple[str, ...] = ()
    keys: tuple[str, ...] = field(default=(), repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    algorithms: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    folder: Path = Path()

    def __post_init__(self) -> None:
        if bool(self.keys) == bool(self.secrets):
            raise self.error("keys", f"needed, or {self.place}secret, and not both: the one checks what others sign")
        if any(len(secret.encode()) < SECRET_MIN for secret in self.secrets):
            raise self.error("secret", f"at least {SECRET_MIN} bytes (try: openssl rand -hex 32)")
        self._check_listed("algorithms", self.algorithms, ALGORITHMS)
        self._check_listed("claims", self.claims, tuple(SOURCES))
        if not self.claims:
            object.__setattr__(self, "claims", CLAIMS_DEFAULT)
        if self.url is not None:
            self._check_url(self.url)
            self.check_bound_to_issuer()

    @property
    def url(self) -> str | None:
        """The URL of its keys; None when they are at hand."""
        return next((key for key in self.keys if "://" in key), None)

    @property
    def rules(self) -> tuple[object, ...]:
        """The settings that decide, beside the keys, which tokens count and what they grant."""
        return self.issuer, self.audience, self.algorithms, self.claims

    def check_bound_to_issuer(self) -> None:
        """Raises ConfigError without an issuer and an audience, which keys of others need: such an issuer signs tokens
        for other services too.
        """
        if not self.issuer:
            raise self.error("issuer", "needed with public keys: the iss of the tokens that count here")
        if not self.audience:
            raise self.error("audience", "needed with public keys: the aud of the tokens that are for this hub")

    def error(self, member: str, expects: str) -> ConfigError:
        return ConfigError(f"{self.place}{member} is {expects}.")

    def _check_listed(self, member: str, given: Sequence[str], known: Sequence[str]) -> None:
        if not set(given) <= set(known):
            raise self.error(member, f"a list of {', '.join(known)}")

    def _check_url(self, url: str) -> None:
        if len(self.keys) > 1:
            raise self.error("keys", "one URL alone, or files and PEM")
        try:
            parts = urlsplit(url)
            safe = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
            fits = safe and bool(parts.hostname) and parts.port != 0 and not parts.username and not parts.fragment
        except ValueError:
            fits = False
        if not fits:
            raise self.error("keys", KEYS_EXPECTS)
        if any(name.startswith("HS") for name in self.algorithms):
            raise self.error("algorithms", "without HS256, HS384, HS512 for keys of a URL, which are no secrets")


class KeySource(Protocol):
    """The keys of an issuer."""

    on_gone: Callable[[frozenset[str]], object]  # gets the ids of keys that the issuer has taken back
    failures: int  # fetches that failed

    @property
    def age(self) -> float | None:
        """Seconds since they were fetched; None for keys that are at hand, or were never fetched."""

    @property
    def stale(self) -> bool:
        """True when it is not known, or no longer, which keys count."""

    def __iter__(self) -> "Iterator[VerifyingKey]":
        """All of them."""

    def find(self, kid: str | None) -> "Sequence[VerifyingKey]":
        """Return the keys that a token which names this id may be signed with."""

    async def refresh(self) -> None:
        """Look for new keys, if it is time for that. Raises KeysUnavailable while it is not known which keys count."""

    async def run(self) -> None:
        """Keep the keys up to date until cancelled; return when they are for good."""


class Issuer(NamedTuple):
    """An issuer that is ready. ``files`` are those that its keys were read from."""

    settings: IssuerSettings
    keys: KeySource
    files: tuple[Path, ...] = ()


def check_together(issuers: Sequence[IssuerSettings]) -> None:
    """Raises ConfigError for issuers that cannot be told apart."""
    named = [issuer.issuer for issuer in issuers]
    if len(issuers) > 1 and (None in named or len(set(named)) < len(named)):
        raise ConfigError("auth_file: with several issuers each has an issuer of its own, the iss of its tokens.")
