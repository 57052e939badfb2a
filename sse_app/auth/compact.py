"""The compact form of a token (RFC 7515, 7.1), taken apart. Nothing in it is trusted yet."""

import binascii
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import NamedTuple

import msgspec

from sse_app.auth.algorithms import ALGORITHMS
from sse_app.errors import BadInput
from sse_app.payload import check_json

SIZE_MAX = 8 * 1024  # characters
KID_MAX = 256  # characters

_FORM = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)", re.ASCII)

# Headers that would let a token bring its own key, or that change what the others mean (RFC 7515, 4.1; RFC 7797).
_REFUSED = frozenset({"jku", "jwk", "x5u", "x5c", "crit", "b64"})
_TYPES = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})


class NotValid(Exception):
    """A token that does not count. ``reason`` says why; it is for the log and the counters."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class CompactToken(NamedTuple):
    """The parts of a token. ``signed`` is what the signature is of."""

    algorithm: str
    kid: str | None
    claims: dict[str, object]
    signed: bytes
    signature: bytes


def parse(token: str) -> CompactToken:
    """Take a token apart. Raises NotValid for one that is malformed, or whose header asks for what is refused."""
    if len(token) > SIZE_MAX:
        raise NotValid("too large")
    form = _FORM.fullmatch(token)
    if form is None:
        raise NotValid("malformed")
    head, payload, signature = map(_decoded, form.groups())
    header = _object(head)
    if not _REFUSED.isdisjoint(header):
        raise NotValid("header")
    algorithm, kid, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise NotValid("type")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise NotValid("algorithm")
    if not (kid is None or (isinstance(kid, str) and len(kid) <= KID_MAX)):
        raise NotValid("key")
    return CompactToken(algorithm, kid, _object(payload), token[: form.end(2)].encode(), signature)


def _decoded(part: str) -> bytes:
    """Return the bytes of a part. Only one text stands for them: else a token could be changed, and count as another
    one, without its signature.
    """
    try:
        decoded = urlsafe_b64decode(part + "==")
    except binascii.Error:
        raise NotValid("malformed") from None
    if urlsafe_b64encode(decoded).rstrip(b"=") != part.encode():
        raise NotValid("malformed")
    return decoded


def _object(text: bytes) -> dict[str, object]:
    try:
        check_json(text)
        value = msgspec.json.decode(text)
    except (BadInput, msgspec.DecodeError):
        raise NotValid("malformed") from None
    if not isinstance(value, dict):
        raise NotValid("malformed")
    return value
