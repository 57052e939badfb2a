"""Tokens: JSON Web Tokens (RFC 7519) of issuers that the operator trusts.

Who may have signed a token is decided by the hub alone: its ``iss`` names one of the issuers, whose keys are looked up
by ``kid``, and the algorithm has to be one of the key that is found. Whatever is wrong, the text of the error is the
same; its reason is for the log.
"""

import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from sse_app.auth.claims import InvalidClaims, grant_of
from sse_app.auth.compact import SIZE_MAX, CompactToken, NotValid, parse
from sse_app.auth.issuer import UNAVAILABLE, Issuer, IssuerSettings, KeySource
from sse_app.auth.waiting import Turns, Waiting
from sse_app.auth.withdrawal import Withdrawal
from sse_app.errors import INVALID, InvalidToken, KeysUnavailable
from sse_app.grants import LEFT_MIN, Grant

if TYPE_CHECKING:
    from sse_app.auth.signatures import VerifyingKey

KEPT_MAX = 10_000  # verified tokens
AHEAD = 5.0  # seconds by which an issuer's clock may be ahead of ours
LIFETIME_MAX = 30 * 86_400.0  # seconds


class _Kept(NamedTuple):
    grant: Grant
    keys: KeySource


class Tokens:
    """The tokens of these issuers. ``max_age`` is how many seconds ahead a token may expire; ``clock`` gives Unix time.

    Tokens that were verified are kept, by their SHA-256: a reconnect costs a look-up.
    """

    def __init__(
        self,
        issuers: Sequence[Issuer] = (),
        *,
        max_age: float = LIFETIME_MAX,
        waiting: Waiting | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.on_withdrawal: Callable[[Withdrawal], object] = lambda withdrawal: None
        self._max_age, self._clock = max_age, clock
        self._waiting, self._turns = waiting or Waiting(), Turns()
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._issuers: Mapping[str, Issuer] = {}
        self._by_iss: Mapping[str | None, Issuer] = {}
        self.replace(issuers)

    @property
    def issuers(self) -> Mapping[str, Issuer]:
        """The issuers by name."""
        return self._issuers

    def kept(self, token: str) -> Grant | None:
        """Return what a token grants that was verified before; None when ``verify`` has to look."""
        if len(token) > SIZE_MAX or not token.isascii():
            return None
        digest = _digest(token)
        found = self._kept.get(digest)
        if found is None:
            return None
        expires = found.grant.expires
        if found.keys.stale or expires is None or expires - self._clock() < LEFT_MIN:
            del self._kept[digest]
            return None
        self._kept.move_to_end(digest)
        return found.grant

    async def verify(self, token: str) -> Grant:
        """Return what a token grants. Raises InvalidToken, KeysUnavailable, Overloaded."""
        grant = self.kept(token)
        if grant is not None:
            return grant
        try:
            async with self._waiting.place():
                await self._turns.take()
                parsed = parse(token)
                keys = self._issuer(parsed).keys
                if keys.stale or not keys.find(parsed.kid):
                    await keys.refresh()
                    await self._turns.take()
                return self.kept(token) or self._verify_now(token, parsed)  # another request may have brought it
        except NotValid as error:
            raise InvalidToken(INVALID, error.reason) from None

    def forget(self, predicate: Callable[[Grant], bool]) -> None:
        """Keep no longer the tokens whose grants are such."""
        for digest in [digest for digest, kept in self._kept.items() if predicate(kept.grant)]:
            del self._kept[digest]

    def replace(self, issuers: Sequence[Issuer]) -> None:
        """Take the tokens of these issuers from now on. What no longer counts is told to ``on_withdrawal``."""
        before, self._issuers = self._issuers, {issuer.settings.name: issuer for issuer in issuers}
        self._by_iss = {issuer.settings.issuer: issuer for issuer in issuers}
        self._kept.clear()
        for issuer in issuers:
            self._listen_to(issuer)
        for withdrawal in _withdrawals(before, self._issuers):
            self.on_withdrawal(withdrawal)

    def _listen_to(self, issuer: Issuer) -> None:
        name = issuer.settings.name
        issuer.keys.on_gone = lambda ids: self._withdraw(Withdrawal(keys=frozenset((name, key) for key in ids)))

    def _withdraw(self, withdrawal: Withdrawal) -> None:
        self.forget(withdrawal.covers)
        self.on_withdrawal(withdrawal)

    def _issuer(self, token: CompactToken) -> Issuer:
        """Return the issuer of a token, which is for this hub and at this time. Raises NotValid."""
        claims = token.claims
        iss = claims.get("iss")
        issuer = (self._by_iss.get(iss) if isinstance(iss, str) else None) or self._by_iss.get(None)
        if issuer is None:
            raise NotValid("issuer")
        if not _is_for(claims.get("aud"), issuer.settings):
            raise NotValid("audience")
        self._check_times(claims)
        return issuer

    def _check_times(self, claims: Mapping[str, object]) -> None:
        now = self._clock()
        expires = _number(claims, "exp")
        if expires is None or expires - now > self._max_age:
            raise NotValid("lifetime")
        if expires - now < LEFT_MIN:
            raise NotValid("expired")
        for name in ("nbf", "iat"):
            begins = _number(claims, name)
            if begins is not None and begins - now > AHEAD:
                raise NotValid("not yet valid")

    def _verify_now(self, token: str, parsed: CompactToken) -> Grant:
        """Verify a token without waiting: its issuer is looked up again, since that may have changed meanwhile."""
        issuer = self._issuer(parsed)
        if issuer.keys.stale:
            raise KeysUnavailable(UNAVAILABLE)
        key = _signed_by(issuer, parsed)
        grant = self._grant(issuer.settings, parsed, key)
        self._kept[_digest(token)] = _Kept(grant, issuer.keys)
        if len(self._kept) > KEPT_MAX:
            self._kept.popitem(last=False)
        return grant

    def _grant(self, issuer: IssuerSettings, token: CompactToken, key: "VerifyingKey") -> Grant:
        claims = token.claims
        subject = _text(claims, "sub")
        user = subject if subject is None or len(self._issuers) == 1 else f"{issuer.name}:{subject}"
        try:
            granted = grant_of(claims, issuer.claims, user)
        except InvalidClaims:
            raise NotValid("claims") from None
        return replace(
            granted,
            expires=_number(claims, "exp"),
            source=issuer.name,
            # Of what is signed, not of the whole: other bytes of an ECDSA signature may be valid for the same token.
            token=_text(claims, "jti") or f"sha256:{hashlib.sha256(token.signed).hexdigest()}",
            session=_text(claims, "sid"),
            issued=_number(claims, "iat"),
            key=key.id,
        )


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _is_for(audience: object, issuer: IssuerSettings) -> bool:
    """Return True for the ``aud`` of a token that is for this hub. A hub without an audience is none of those that a
    token names (RFC 7519, 4.1.3).
    """
    if audience is None:
        return not issuer.audience
    named = audience if isinstance(audience, list) else [audience]
    return all(isinstance(name, str) for name in named) and not set(issuer.audience).isdisjoint(named)


def _signed_by(issuer: Issuer, token: CompactToken) -> "VerifyingKey":
    """Return the key that a token was signed with. Raises NotValid."""
    keys = issuer.keys.find(token.kid)
    if not keys:
        raise NotValid("key")
    fitting = [key for key in keys if token.algorithm in key.algorithms]
    if not fitting:
        raise NotValid("algorithm")
    for key in fitting:
        if key.verify(token.algorithm, token.signed, token.signature):
            return key
    raise NotValid("signature")


def _number(claims: Mapping[str, object], name: str) -> float | None:
    """Return a time of the claims, in Unix seconds. Raises NotValid for what is no finite number."""
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e15 or not math.isfinite(value):
        raise NotValid("lifetime")
    return float(value)


def _text(claims: Mapping[str, object], name: str) -> str | None:
    value = claims.get(name)
    if not (value is None or (isinstance(value, str) and value)):
        raise NotValid("claims")
    return value


def _withdrawals(before: Mapping[str, Issuer], now: Mapping[str, Issuer]) -> list[Withdrawal]:
    """Return what counts no longer, or grants something else, since issuers were replaced."""
    gone = before.keys() - now.keys()
    both = before.keys() & now.keys()
    changed = {name for name in both if before[name].settings.rules != now[name].settings.rules}
    if (len(before) > 1) != (len(now) > 1):
        changed |= both  # the names of their users begin with the issuer's, or no longer do
    keys = {
        (name, key.id)
        for name in both
        for key in before[name].keys
        if not now[name].keys.stale and key.fingerprint not in {other.fingerprint for other in now[name].keys}
    }
    found = (
        Withdrawal(sources=frozenset(gone), keys=frozenset(keys)),
        Withdrawal(sources=frozenset(changed), changed=True),
    )
    return list(filter(None, found))
