"""Keys that check the signatures of tokens: secrets, PEM and JSON Web Keys (RFC 7517).

A key says itself which algorithms fit it (RFC 7518, 3.1; RFC 8037), so that nothing in a token can make it be used with
another: a public key is never the secret of an HMAC. The signatures are PyJWT's work.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Self

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from sse_app.auth.algorithms import ALGORITHMS
from sse_app.config import SECRET_MIN

RSA_MIN = 2_048  # bits (RFC 7518, 3.3)
KEYS_MAX = 100  # in a set
SAME_ID_MAX = 8  # keys of one id, or without one: a token is checked with each of them

_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_READERS = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA", "oct": "HS256"}  # algorithms whose from_jwk reads this kind
_PUBLIC = frozenset({"kty", "n", "e", "crv", "x", "y", "k"})  # members; of a private key only the public half is read
_HASHES = {"HS256": 32, "HS384": 48, "HS512": 64}  # bytes; a secret is as long as its hash at least (RFC 7518, 3.2)
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


class InvalidKey(ValueError):
    """A key that cannot be used. The text says why, and shows nothing of it."""


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """A key of an issuer. ``kid`` is the id that tokens name it by, None without one; ``fingerprint`` is derived from
    the key itself. ``algorithms`` are those that it may be used with.
    """

    kid: str | None
    fingerprint: str
    algorithms: frozenset[str]
    _material: Any = field(repr=False)

    @property
    def id(self) -> str:
        """The name that grants and revocations have for it: the ``kid``, else the fingerprint."""
        return self.fingerprint if self.kid is None else self.kid

    @property
    def is_secret(self) -> bool:
        """True for the secret of an HMAC, False for a public key."""
        return isinstance(self._material, bytes)

    def verify(self, algorithm: str, signed: bytes, signature: bytes) -> bool:
        """Return True when the signature is by this key, with an algorithm that is one of its own."""
        if algorithm not in self.algorithms:
            return False
        return bool(jwt.get_algorithm_by_name(algorithm).verify(signed, self._material, signature))

    @classmethod
    def of_secret(cls, secret: bytes, kid: str | None = None) -> Self:
        """Return the key of a secret. Raises InvalidKey for one that is short, or that looks like a public key."""
        if len(secret) < SECRET_MIN:
            raise InvalidKey(f"a secret has at least {SECRET_MIN} bytes")
        try:
            jwt.get_algorithm_by_name("HS256").prepare_key(secret)
        except jwt.InvalidKeyError:
            raise InvalidKey("a secret is no public key, certificate or JSON Web Key") from None
        algorithms = frozenset(name for name, size in _HASHES.items() if len(secret) >= size)
        return cls(kid, _fingerprint(b"secret:" + secret), algorithms, secret)

    @classmethod
    def of_public(cls, key: object, kid: str | None = None) -> Self:
        """Return the key of a public key object of cryptography. Raises InvalidKey."""
        match key:
            case RSAPublicKey():
                if key.key_size < RSA_MIN:
                    raise InvalidKey(f"an RSA key has at least {RSA_MIN:,} bits")
                algorithms = [name for name in ALGORITHMS if name.startswith(("RS", "PS"))]
            case EllipticCurvePublicKey() if key.curve.name in _CURVES:
                algorithms = [_CURVES[key.curve.name]]
            case Ed25519PublicKey() | Ed448PublicKey():
                algorithms = ["EdDSA"]
            case _:
                raise InvalidKey("a public key is RSA, EC (P-256, P-384, P-521) or Ed25519, Ed448")
        der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return cls(kid, _fingerprint(der), frozenset(algorithms), key)

    def limited(self, algorithms: Collection[str]) -> Self:
        """Return this key for these algorithms alone."""
        return type(self)(self.kid, self.fingerprint, self.algorithms & frozenset(algorithms), self._material)


def pem_keys(text: str) -> list[VerifyingKey]:
    """Return the public keys of a PEM text. Raises InvalidKey, also for what is not public, or no key."""
    found = []
    for block in _PEM.finditer(text):
        if "PRIVATE" in block[1]:
            raise InvalidKey(
                "it holds a private key, which a hub does not need (openssl pkey -pubout makes the public)"
            )
        if not block[1].endswith("PUBLIC KEY"):
            raise InvalidKey("it holds something else than public keys (openssl x509 -pubkey takes one out)")
        try:
            found.append(VerifyingKey.of_public(load_pem_public_key(block[0].encode())))
        except (ValueError, UnsupportedAlgorithm) as error:
            raise error if isinstance(error, InvalidKey) else InvalidKey("its public key is damaged") from None
    return found


def jwk_set(document: bytes, *, secrets: bool) -> list[VerifyingKey]:
    """Return the keys of a JWK set for signatures. Keys of other kinds and uses are left out, as RFC 7517, 5 wants it,
    and so are secrets unless they are wanted. Raises InvalidKey for what is no such set.
    """
    try:
        listed = msgspec.json.decode(document)["keys"]
        entries = [dict(entry) for entry in listed]
    except (msgspec.DecodeError, RecursionError, TypeError, KeyError, ValueError):
        raise InvalidKey("it is no JWK set") from None
    if len(entries) > KEYS_MAX:
        raise InvalidKey(f"it has more than {KEYS_MAX} keys")
    found = [key for entry in entries if (key := _of_jwk(entry, secrets)) is not None]
    if found and max(Counter(key.kid for key in found).values()) > SAME_ID_MAX:
        raise InvalidKey(f"it has more than {SAME_ID_MAX} keys of one id, or without one")
    return found


def _of_jwk(entry: Mapping[str, object], secrets: bool) -> VerifyingKey | None:
    """Return a key of a set; None for one that is not for the signatures of tokens."""
    kid, kind, operations = entry.get("kid"), str(entry.get("kty")), entry.get("key_ops", ["verify"])
    if entry.get("use", "sig") != "sig" or not (isinstance(operations, list) and "verify" in operations):
        return None
    if not (kid is None or isinstance(kid, str)) or kind not in _READERS or (kind == "oct" and not secrets):
        return None
    public = {member: value for member, value in entry.items() if member in _PUBLIC}
    try:
        material = jwt.get_algorithm_by_name(_READERS[kind]).from_jwk(public)
        key = VerifyingKey.of_secret(material, kid) if kind == "oct" else VerifyingKey.of_public(material, kid)
    except (jwt.InvalidKeyError, ValueError, TypeError, LookupError, AttributeError, UnsupportedAlgorithm):
        return None  # PyJWT raises what a member that is missing or of another type leads to
    return key.limited([str(entry["alg"])]) if "alg" in entry else key


def _fingerprint(material: bytes) -> str:
    return hashlib.sha256(material).hexdigest()[:16]


class KeySet:
    """The keys of an issuer, looked up by the id that a token names. ``algorithms`` limits their use; without any each
    takes those that fit it.
    """

    def __init__(self, keys: Iterable[VerifyingKey] = (), algorithms: Collection[str] = ()) -> None:
        self._by_id: dict[str | None, list[VerifyingKey]] = {}
        for key in keys:
            usable = key.limited(algorithms) if algorithms else key
            if usable.algorithms:
                self._by_id.setdefault(usable.kid, []).append(usable)

    def __iter__(self) -> Iterator[VerifyingKey]:
        return chain.from_iterable(self._by_id.values())

    def __len__(self) -> int:
        return sum(map(len, self._by_id.values()))

    def find(self, kid: str | None) -> Sequence[VerifyingKey]:
        """Return the keys of this id; where there are none, those without an id. A token without one is for the only
        key that there is (OpenID Connect Core, 10.1), or for those without an id.
        """
        found = self._by_id.get(kid) or self._by_id.get(None)
        if found is None:
            return list(self) if kid is None and len(self) == 1 else ()
        return found
