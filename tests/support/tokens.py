"""Issuers of tokens for tests: their keys, as a hub gets them, and tokens that they sign."""

import json
import time
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

SECRET = b"s3cret-of-64-bytes-" + b"x" * 45
ISSUER, AUDIENCE = "https://login.example/", "https://hub.example"


@dataclass(frozen=True)
class Pair:
    """A key that signs, with the algorithms that it may be used with."""

    private: Any
    algorithms: tuple[str, ...]

    @property
    def public_pem(self) -> str:
        pem: bytes = self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return pem.decode()

    @property
    def private_pem(self) -> str:
        pem: bytes = self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return pem.decode()

    def jwk(self, kid: str | None = "k1", **more: Any) -> dict[str, Any]:
        """The public key as a JSON Web Key, or the secret."""
        algorithm = jwt.get_algorithm_by_name(self.algorithms[0])
        key = self.private if isinstance(self.private, bytes) else self.private.public_key()
        found = {**algorithm.to_jwk(key, as_dict=True), **more}
        found.pop("key_ops", None)
        return found if kid is None else {**found, "kid": kid}


@cache
def pair(kind: str) -> Pair:
    """The key of a kind, the same in all tests: RSA keys take long to make."""
    match kind:
        case "secret":
            return Pair(SECRET, ("HS256", "HS384", "HS512"))
        case "rsa" | "rsa other":
            return Pair(rsa.generate_private_key(65537, 2048), ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"))
        case "p-256" | "p-256 other":
            return Pair(ec.generate_private_key(ec.SECP256R1()), ("ES256",))
        case "p-384":
            return Pair(ec.generate_private_key(ec.SECP384R1()), ("ES384",))
        case "p-521":
            return Pair(ec.generate_private_key(ec.SECP521R1()), ("ES512",))
        case "ed25519":
            return Pair(ed25519.Ed25519PrivateKey.generate(), ("EdDSA",))
        case "ed448":
            return Pair(ed448.Ed448PrivateKey.generate(), ("EdDSA",))
    raise KeyError(kind)


KINDS = ("secret", "rsa", "p-256", "p-384", "p-521", "ed25519", "ed448")


def jwks(*keys: dict[str, Any]) -> str:
    return json.dumps({"keys": keys})


def claims(**changed: Any) -> dict[str, Any]:
    """The claims of a token that counts; those that are None are left out."""
    now = time.time()
    usual = {"iss": ISSUER, "aud": AUDIENCE, "sub": "42", "iat": now, "exp": now + 600}
    return {name: value for name, value in {**usual, **changed}.items() if value is not None}


def sign(
    payload: dict[str, Any] | bytes,
    by: Pair,
    algorithm: str | None = None,
    header: dict[str, Any] | bytes | None = None,
) -> str:
    """A token, whatever its header says. ``algorithm`` is that of the signature."""
    algorithm = algorithm or by.algorithms[0]
    head = {"alg": algorithm, "typ": "JWT", **header} if isinstance(header, dict) else header
    head = head or {"alg": algorithm, "typ": "JWT"}
    signed = f"{encoded(head)}.{encoded(payload)}"
    signature = jwt.get_algorithm_by_name(algorithm).sign(signed.encode(), by.private)
    return f"{signed}.{encoded(signature)}"


def encoded(part: dict[str, Any] | bytes) -> str:
    """A part of a token in base64url."""
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return urlsafe_b64encode(raw).rstrip(b"=").decode()
