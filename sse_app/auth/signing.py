"""Tokens that a hub's operator signs: for scripts, tests and services that have no issuer of their own."""

import secrets
import time
from collections.abc import Mapping
from typing import NamedTuple

from sse_app.auth.auth_file import OWN_ISSUER
from sse_app.auth.credentials import Credentials
from sse_app.config import Config
from sse_app.errors import ConfigError, InvalidToken

_WRONG = {
    "lifetime": "it would expire later than token_max_age allows",
    "too large": "it is too large: grant fewer or shorter topic filters",
    "claims": "one of its names or topic filters is none, or a list has more than 50",
}


class SignedToken(NamedTuple):
    """A token, its id (``jti``) by which it can be revoked, and when it expires (Unix time)."""

    token: str
    jti: str
    expires: int


async def sign(config: Config, granted: Mapping[str, object], *, user: str | None, lifetime: float) -> SignedToken:
    """Return a token that a hub with these settings takes, for ``lifetime`` seconds. ``granted`` is its claim ``sse``.
    Raises ConfigError for settings without a ``token_secret``, or under which such a token would not count.
    """
    if config.token_secret is None:
        raise ConfigError(
            "A token is signed with the hub's token_secret: give it in SSE_APP_TOKEN_SECRET, or in a file."
        )
    credentials = Credentials(config)
    import jwt  # now that it is known to be there

    issuer = credentials.tokens.issuers[OWN_ISSUER]
    if "sse" not in issuer.settings.claims:
        raise ConfigError("token_claims is without sse, the claim that says what this token grants.")
    now, own_id = int(time.time()), secrets.token_urlsafe(12)
    expires = now + int(lifetime)
    named = {"iss": config.token_issuer, "aud": config.token_audience, "sub": user}
    claims = {name: value for name, value in named.items() if value is not None}
    [algorithm, *_] = sorted(next(iter(issuer.keys)).algorithms)
    token = jwt.encode(
        {**claims, "jti": own_id, "iat": now, "exp": expires, "sse": granted}, config.token_secret, algorithm
    )
    try:
        await credentials.tokens.verify(token)
    except InvalidToken as error:
        raise ConfigError(f"A hub would not take this token: {_WRONG.get(error.reason, error.reason)}.") from None
    return SignedToken(token, own_id, expires)
