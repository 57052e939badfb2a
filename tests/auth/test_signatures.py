import hmac
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sse_app.auth.algorithms import ALGORITHMS
from sse_app.auth.signatures import KEYS_MAX, SAME_ID_MAX, InvalidKey, KeySet, VerifyingKey, jwk_set, pem_keys
from tests.support.tokens import KINDS, SECRET, Pair, jwks, pair

PUBLIC = KINDS[1:]


def read(found: Pair, form: str) -> VerifyingKey:
    """The key of a pair, as a hub reads it."""
    if form == "jwk":
        (key,) = jwk_set(jwks(found.jwk()).encode(), secrets=True)
    elif isinstance(found.private, bytes):
        key = VerifyingKey.of_secret(found.private)
    else:
        (key,) = pem_keys(found.public_pem)
    return key


@pytest.mark.parametrize("form", ["jwk", "pem"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_key_checks_signatures_of_its_own_algorithms_and_no_others(kind: str, form: str) -> None:
    found = pair(kind)
    key = read(found, form)
    assert key.algorithms == set(found.algorithms)
    for algorithm in ALGORITHMS:
        if algorithm in found.algorithms:
            signature = jwt.get_algorithm_by_name(algorithm).sign(b"signed", found.private)
            assert key.verify(algorithm, b"signed", signature)
            assert not key.verify(algorithm, b"other", signature)
            assert not key.verify(algorithm, b"signed", signature[:-1])
            assert not key.verify(algorithm, b"signed", b"")
        else:
            assert not key.verify(algorithm, b"signed", b"x" * 64)
    assert not key.verify("none", b"signed", b"")
    assert key.is_secret == (kind == "secret")


def test_the_public_key_is_not_the_secret_of_an_hmac() -> None:
    key = read(pair("rsa"), "pem")
    for text in (pair("rsa").public_pem, pair("rsa").public_pem.strip()):
        assert not key.verify("HS256", b"signed", hmac.digest(text.encode(), b"signed", "sha256"))
    with pytest.raises(InvalidKey, match="no public key"):
        VerifyingKey.of_secret(pair("rsa").public_pem.encode())
    with pytest.raises(InvalidKey, match="no public key"):
        VerifyingKey.of_secret(json.dumps(pair("rsa").jwk()).encode())


@pytest.mark.parametrize(("size", "algorithms"), [(32, 1), (47, 1), (48, 2), (63, 2), (64, 3), (200, 3)])
def test_a_secret_is_as_long_as_the_hash(size: int, algorithms: int) -> None:
    assert VerifyingKey.of_secret(b"x" * size).algorithms == set(ALGORITHMS[:algorithms])


def test_a_short_secret_is_none() -> None:
    with pytest.raises(InvalidKey, match="at least 32 bytes"):
        VerifyingKey.of_secret(b"x" * 31)


def test_pem_may_hold_several_keys_and_text_between() -> None:
    text = f"# of 2026\n{pair('rsa').public_pem}\n# the next\n{pair('p-256').public_pem}"
    assert [key.algorithms for key in pem_keys(text)] == [set(pair("rsa").algorithms), {"ES256"}]
    assert pem_keys(text.replace("\n", "\r\n"))
    assert pem_keys("") == pem_keys("no key") == []


def der_pem(key: Any) -> str:
    pem: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem.decode()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: pair("rsa").private_pem, "private key"),
        (lambda: pair("rsa").public_pem + pair("p-256").private_pem, "private key"),
        (lambda: pair("rsa").public_pem.replace("PUBLIC KEY", "CERTIFICATE"), "something else"),
        (lambda: pair("rsa").public_pem.replace("M", "N", 3), "damaged"),
        (lambda: "-----BEGIN PUBLIC KEY-----\n!!\n-----END PUBLIC KEY-----", "damaged"),
        (lambda: der_pem(rsa.generate_private_key(65537, 1024)), "2,048 bits"),
        (lambda: der_pem(ec.generate_private_key(ec.SECP256K1())), "a public key is"),
        (lambda: der_pem(dsa.generate_private_key(1024)), "a public key is"),
    ],
)
def test_what_is_no_public_key_for_signatures_is_refused(make: Any, why: str) -> None:
    with pytest.raises(InvalidKey, match=why) as caught:
        pem_keys(make())
    assert "MII" not in str(caught.value)


@pytest.mark.parametrize(
    "entry",
    [
        pair("rsa").jwk(use="enc"), {**pair("rsa").jwk(), "key_ops": ["encrypt"]}, {**pair("rsa").jwk(), "key_ops": 1},
        {**pair("rsa").jwk(), "kty": "XYZ"}, {**pair("rsa").jwk(), "kty": None}, {**pair("rsa").jwk(), "kid": 7},
        {**pair("rsa").jwk(), "n": "AQAB"}, {**pair("rsa").jwk(), "n": 5}, {**pair("rsa").jwk(), "n": "%"},
        {**pair("p-256").jwk(), "crv": "P-384"}, {**pair("p-256").jwk(), "crv": "secp256k1"},
        {**pair("p-256").jwk(), "x": "AA"}, {**pair("ed25519").jwk(), "crv": "X25519"}, {"kty": "RSA"}, {"kty": "oct"},
        {}, {"kty": "oct", "k": "c2hvcnQ", "kid": "k1"},
    ],
    ids=lambda entry: str(entry)[:60],
)  # fmt: skip
def test_keys_of_a_set_for_other_things_are_left_out(entry: dict[str, Any]) -> None:
    keys = jwk_set(jwks(entry, pair("p-384").jwk("k2")).encode(), secrets=True)
    assert [key.kid for key in keys] == ["k2"]


def test_secrets_of_a_set_count_only_where_they_are_wanted() -> None:
    document = jwks(pair("secret").jwk(), pair("rsa").jwk("k2")).encode()
    assert [key.kid for key in jwk_set(document, secrets=False)] == ["k2"]
    assert [key.kid for key in jwk_set(document, secrets=True)] == ["k1", "k2"]


def test_of_a_private_key_in_a_set_the_public_half_is_read() -> None:
    found = pair("p-256")
    private = {**jwt.get_algorithm_by_name("ES256").to_jwk(found.private, as_dict=True), "kid": "k1"}
    private.pop("key_ops", None)
    (key,) = jwk_set(jwks(private).encode(), secrets=False)
    assert key.fingerprint == read(found, "pem").fingerprint


def test_the_alg_of_a_key_limits_it() -> None:
    keys = jwk_set(jwks(pair("rsa").jwk(alg="PS256"), pair("p-256").jwk("k2", alg="RS256")).encode(), secrets=False)
    assert [key.algorithms for key in keys] == [{"PS256"}, set()]
    assert [key.kid for key in KeySet(keys)] == ["k1"]


@pytest.mark.parametrize(
    "document",
    [b"", b"{", b"[]", b"{}", b'"keys"', b'{"keys": 1}', b'{"keys": {"a": 1}}', b'{"keys": [1]}', b'{"keys": ["ab"]}',
     b"<html>", b"\xff", b"[" * 5_000, jwks(*[{}] * (KEYS_MAX + 1)).encode(),
     jwks(*[pair("rsa").jwk(None)] * (SAME_ID_MAX + 1)).encode(),
     jwks(*[pair("rsa").jwk()] * (SAME_ID_MAX + 1)).encode()],
    ids=lambda document: str(document)[:40],
)  # fmt: skip
def test_what_is_no_set_is_refused_as_a_whole(document: bytes) -> None:
    with pytest.raises(InvalidKey):
        jwk_set(document, secrets=False)


# Looking up


def keys_of(*kids: str | None) -> list[VerifyingKey]:
    return [VerifyingKey(kid, f"{number}", frozenset({"RS256"}), b"") for number, kid in enumerate(kids)]


@pytest.mark.parametrize(
    ("kids", "kid", "found"),
    [
        (("a", "b"), "b", "1"),
        (("a", "a"), "a", "01"),
        (("a", "b"), "c", ""),
        (("a", "b"), None, ""),
        (("a",), None, "0"),
        (("a",), "", ""),
        ((None,), "whatever", "0"),
        ((None, None), None, "01"),
        (("a", None), "a", "0"),
        (("a", None), "b", "1"),
        (("a", None), None, "1"),
        ((), "a", ""),
        ((), None, ""),
    ],
)
def test_a_key_is_looked_up_by_its_id(kids: tuple[str | None, ...], kid: str | None, found: str) -> None:
    assert "".join(key.fingerprint for key in KeySet(keys_of(*kids)).find(kid)) == found


def test_a_set_is_limited_to_the_algorithms_that_are_wanted() -> None:
    keys = [read(pair("rsa"), "pem"), read(pair("p-256"), "pem")]
    assert len(KeySet(keys)) == 2
    limited = KeySet(keys, ("RS256", "EdDSA"))
    assert [key.algorithms for key in limited] == [{"RS256"}]


def test_a_key_has_an_id_that_shows_nothing_of_a_secret() -> None:
    key = VerifyingKey.of_secret(SECRET)
    assert key.id == key.fingerprint == VerifyingKey.of_secret(SECRET).id
    assert key.id != VerifyingKey.of_secret(SECRET + b"x").id
    assert len(key.id) == 16
    assert "s3cret" not in repr(key)
    assert read(pair("rsa"), "jwk").id == "k1"
