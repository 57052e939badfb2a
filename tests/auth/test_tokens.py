import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from sse_app.auth import tokens as module
from sse_app.auth.algorithms import ALGORITHMS
from sse_app.auth.claims import SOURCES
from sse_app.auth.compact import parse
from sse_app.auth.issuer import Issuer, IssuerSettings, KeySource
from sse_app.auth.issuers import open_issuer
from sse_app.auth.tokens import KEPT_MAX, Tokens
from sse_app.auth.waiting import Waiting
from sse_app.auth.withdrawal import Withdrawal
from sse_app.errors import INVALID, InvalidToken, KeysUnavailable, Overloaded, Unauthorized
from sse_app.grants import Grant
from sse_app.topics import TopicFilter
from tests.support.tokens import AUDIENCE, ISSUER, KINDS, SECRET, Pair, claims, encoded, jwks, pair, sign

RSA, EC, HMAC = pair("rsa"), pair("p-256"), pair("secret")
OTHER = "https://other.example/"


def settings(**changed: Any) -> IssuerSettings:
    usual = {"place": "", "name": "main", "issuer": ISSUER, "audience": (AUDIENCE,), "claims": tuple(SOURCES)}
    return IssuerSettings(**{**usual, **changed})


def issuer_of(*pairs: Pair, **changed: Any) -> Issuer:
    """An issuer with these keys, in PEM; secrets as secrets."""
    secrets = tuple(found.private.decode() for found in pairs if isinstance(found.private, bytes))
    keys = tuple(found.public_pem for found in pairs if not isinstance(found.private, bytes))
    return open_issuer(settings(keys=keys, secrets=secrets, **changed), {}, 60.0)


@pytest.fixture
def set_of_keys(tmp_path: Any) -> Issuer:
    """An issuer with a JWK set: an RSA key `k1` and an EC key `k2`."""
    (tmp_path / "keys.json").write_text(jwks(RSA.jwk(), EC.jwk("k2")))
    return open_issuer(settings(keys=("keys.json",), folder=tmp_path), {}, 60.0)


async def refusal(tokens: Tokens, token: str) -> str:
    """The reason for which a token does not count; the text of the error is always the same."""
    with pytest.raises(InvalidToken) as caught:
        await tokens.verify(token)
    assert str(caught.value) == INVALID
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert tokens.kept(token) is None
    return caught.value.reason


# What counts


@pytest.mark.parametrize("form", ["pem", "jwk"])
@pytest.mark.parametrize("kind", KINDS)
async def test_every_algorithm_of_a_key_counts_and_no_other(kind: str, form: str, tmp_path: Any) -> None:
    by = pair(kind)
    if form == "pem":
        issuer = issuer_of(by)
    else:
        (tmp_path / "keys.json").write_text(jwks(by.jwk()))
        (tmp_path / "keys.json").chmod(0o600)
        issuer = open_issuer(settings(keys=("keys.json",), folder=tmp_path), {}, 60.0)
    tokens = Tokens([issuer])
    for algorithm in by.algorithms:
        assert (await tokens.verify(sign(claims(), by, algorithm, {"kid": "k1"}))).user == "42"
    for algorithm in set(ALGORITHMS) - set(by.algorithms):
        token = sign(claims(), by, by.algorithms[0], {"alg": algorithm, "kid": "k1"})
        assert await refusal(tokens, token) == "algorithm"


async def test_a_grant_is_of_the_claims() -> None:
    ends = int(time.time()) + 600
    made = claims(
        exp=ends,
        iat=ends - 900,
        jti="t1",
        sid="s1",
        sse={"subscribe": ["users/42/**"], "publish": ["a"], "stats": "own"},
    )
    issuer = issuer_of(RSA)
    (key,) = issuer.keys
    assert await Tokens([issuer]).verify(sign(made, RSA)) == Grant(
        publish=TopicFilter(("a",)),
        subscribe=TopicFilter(("users/42/**",)),
        stats="own",
        user="42",
        expires=ends,
        source="main",
        token="t1",
        session="s1",
        issued=ends - 900,
        key=key.id,
    )


async def test_a_token_without_an_id_has_that_of_what_is_signed() -> None:
    """ECDSA signs the same with other bytes each time; it is one token all the same."""
    made = claims()
    one, other = sign(made, EC), sign(made, EC)
    assert one != other
    tokens = Tokens([issuer_of(EC)])
    found = {(await tokens.verify(token)).token for token in (one, other)}
    assert found == {f"sha256:{hashlib.sha256(one.rpartition('.')[0].encode()).hexdigest()}"}


async def test_a_token_without_claims_of_ours_grants_nothing() -> None:
    grant = await Tokens([issuer_of(RSA)]).verify(sign(claims(sub=None), RSA))
    assert (grant.publish, grant.subscribe, grant.stats, grant.user) == (None, None, "none", None)


async def test_issuer_and_audience_of_a_secret_are_compared_only_when_they_are_set() -> None:
    free = Tokens([issuer_of(HMAC, issuer=None, audience=())])
    assert (await free.verify(sign(claims(iss=None, aud=None), HMAC))).user == "42"
    assert (await free.verify(sign(claims(iss="anyone", aud=None), HMAC))).user == "42"
    assert await refusal(free, sign(claims(iss=None), HMAC)) == "audience"  # it is for somebody, and we are nobody
    strict = Tokens([issuer_of(HMAC)])
    assert await refusal(strict, sign(claims(iss=None), HMAC)) == "issuer"
    assert await refusal(strict, sign(claims(aud=None), HMAC)) == "audience"


async def test_a_key_is_found_by_its_id(set_of_keys: Issuer) -> None:
    tokens = Tokens([set_of_keys])
    for by, kid in ((RSA, "k1"), (EC, "k2")):
        assert (await tokens.verify(sign(claims(), by, header={"kid": kid}))).key == kid
    assert await refusal(tokens, sign(claims(), RSA, header={"kid": "k2"})) == "algorithm"
    assert await refusal(tokens, sign(claims(), pair("rsa other"), header={"kid": "k1"})) == "signature"
    assert await refusal(tokens, sign(claims(), RSA)) == "key"


async def test_keys_side_by_side_count_both() -> None:
    tokens = Tokens([issuer_of(RSA, pair("rsa other"))])
    one, other = [await tokens.verify(sign(claims(), by)) for by in (RSA, pair("rsa other"))]
    assert one.key != other.key


# What does not

NOW = 1_800_000_000.0
HASH = hashlib.sha256(b"x").hexdigest()


def at_now(**changed: Any) -> dict[str, Any]:
    return claims(**{"iat": NOW, "exp": NOW + 600, **changed})


def good(payload: dict[str, Any] | bytes | None = None, header: dict[str, Any] | None = None, **changed: Any) -> str:
    """A token that `k1` has signed."""
    return sign(at_now(**changed) if payload is None else payload, RSA, header={"kid": "k1", **(header or {})})


def unsigned(alg: Any) -> str:
    return f"{encoded({'alg': alg, 'kid': 'k1'})}.{encoded(at_now())}."


def confused(secret: str, kid: str = "k1") -> str:
    """A token that is signed with HMAC and a public key as its secret."""
    return forged(secret.encode(), {"alg": "HS256", "kid": kid})


def forged(secret: bytes, header: dict[str, Any]) -> str:
    signed = f"{encoded({'typ': 'JWT', **header})}.{encoded(at_now())}"
    return f"{signed}.{encoded(hmac.digest(secret, signed.encode(), 'sha256'))}"


def changed_part(number: int, part: dict[str, Any] | bytes) -> str:
    """A good token with another part in place of one of its own."""
    parts = good().split(".")
    parts[number] = encoded(part)
    return ".".join(parts)


ATTACKER = pair("rsa other")
BAD: dict[str, Callable[[], str]] = {
    **{f"alg {alg}": lambda alg=alg: unsigned(alg) for alg in ("none", "None", "nOnE", "NONE", "", None, ["RS256"])},  # type: ignore[misc]
    "alg none, with a signature": lambda: good().replace(good().split(".")[0], encoded({"alg": "none", "kid": "k1"})),
    "HS256 by the public key": lambda: confused(RSA.public_pem),
    "HS256 by the public key, stripped": lambda: confused(RSA.public_pem.strip()),
    "HS256 by the EC key": lambda: confused(EC.public_pem, "k2"),
    "HS256 by nothing": lambda: forged(b"", {"alg": "HS256", "kid": "k1"}),
    "alg swapped in the family": lambda: sign(at_now(), RSA, "RS256", {"alg": "RS384", "kid": "k1"}),
    "alg of another key": lambda: sign(at_now(), EC, "ES256", {"alg": "ES256", "kid": "k1"}),
    "jwk inside": lambda: sign(at_now(), ATTACKER, header={"kid": "k1", "jwk": ATTACKER.jwk()}),
    "jwk inside, no kid": lambda: sign(at_now(), ATTACKER, header={"jwk": ATTACKER.jwk()}),
    "jku": lambda: sign(at_now(), ATTACKER, header={"kid": "k1", "jku": "https://evil.example/jwks.json"}),
    "jku, well signed": lambda: good(header={"jku": "https://evil.example/jwks.json"}),
    "x5u": lambda: sign(at_now(), ATTACKER, header={"kid": "k1", "x5u": "https://evil.example/x.pem"}),
    "x5c": lambda: good(header={"x5c": ["MII"]}),
    "kid unknown": lambda: good(header={"kid": "k3"}),
    "kid as path": lambda: good(header={"kid": "../../../dev/null"}),
    "kid as SQL": lambda: good(header={"kid": "' UNION SELECT 'x' --"}),
    "kid as command": lambda: good(header={"kid": "k1|sleep 5"}),
    "kid as list": lambda: good(header={"kid": ["k1"]}),
    "kid as number": lambda: good(header={"kid": 1}),
    "kid large": lambda: good(header={"kid": "k" * 5_000}),
    "crit": lambda: good(header={"crit": ["exp"]}),
    "crit empty": lambda: good(header={"crit": []}),
    "b64": lambda: good(header={"b64": False, "crit": ["b64"]}),
    "typ": lambda: good(header={"typ": "logout+jwt"}),
    "typ null": lambda: good(header={"typ": None}),
    "signed by another": lambda: sign(at_now(), ATTACKER, header={"kid": "k1"}),
    "no signature": lambda: good().rpartition(".")[0] + ".",
    "half a signature": lambda: good()[:-100],
    "header changed": lambda: changed_part(0, {"alg": "RS256", "kid": "k1"}),
    "claims changed": lambda: changed_part(1, at_now(sub="1")),
    "claims no JSON": lambda: good(b"{"),
    "claims a list": lambda: good(b"[]"),
    "deep JSON": lambda: good(b'{"a":' * 1_000 + b"1" + b"}" * 1_000),
    "deep header": lambda: sign(at_now(), RSA, header=b'{"alg":"RS256","a":' + b"[" * 500 + b"]" * 500 + b"}"),
    "two parts": lambda: good().rpartition(".")[0],
    "five parts": lambda: f"{good()}.a.b",
    "spaces": lambda: good().replace(".", ". "),
    "padding": lambda: good() + "=",
    "empty parts": lambda: "..",
    "exp missing": lambda: good(exp=None),
    "exp null": lambda: good(json.dumps({**at_now(), "exp": None}).encode()),
    "exp past": lambda: good(exp=NOW - 1),
    "exp now": lambda: good(exp=NOW),
    "exp in half a second": lambda: good(exp=NOW + 0.5),
    "exp a text": lambda: good(exp=str(NOW + 600)),
    "exp a bool": lambda: good(exp=True),
    "exp NaN": lambda: good(json.dumps({**at_now(), "exp": float("nan")}).encode()),
    "exp infinite": lambda: good(json.dumps({**at_now(), "exp": float("inf")}).encode()),
    "exp 1e308": lambda: good(exp=1e308),
    "exp 1e999": lambda: good(json.dumps(at_now(exp=7)).replace('"exp": 7', '"exp": 1e999').encode()),
    "exp of 400 digits": lambda: good(json.dumps(at_now(exp=7)).replace('"exp": 7', f'"exp": {"9" * 400}').encode()),
    "exp a list": lambda: good(exp=[NOW + 600]),
    "exp negative": lambda: good(exp=-1),
    "exp in 31 days": lambda: good(exp=NOW + 31 * 86_400),
    "exp in milliseconds": lambda: good(exp=(NOW + 600) * 1000),
    "nbf ahead": lambda: good(nbf=NOW + 6),
    "nbf a text": lambda: good(nbf="now"),
    "iat ahead": lambda: good(iat=NOW + 6),
    "iat a bool": lambda: good(iat=False),
    "iss missing": lambda: good(iss=None),
    "iss other": lambda: good(iss=OTHER),
    "iss prefix": lambda: good(iss=ISSUER[:-1]),
    "iss longer": lambda: good(iss=ISSUER + "evil"),
    "iss in another case": lambda: good(iss=ISSUER.upper()),
    "iss a list": lambda: good(iss=[ISSUER]),
    "aud missing": lambda: good(aud=None),
    "aud other": lambda: good(aud="https://other.example"),
    "aud prefix": lambda: good(aud=AUDIENCE[:-1]),
    "aud longer": lambda: good(aud=AUDIENCE + ".evil"),
    "aud without it": lambda: good(aud=["a", "b"]),
    "aud empty": lambda: good(aud=[]),
    "aud with a number": lambda: good(aud=[AUDIENCE, 1]),
    "aud an object": lambda: good(aud={AUDIENCE: 1}),
    "sub a number": lambda: good(sub=42),
    "sub empty": lambda: good(sub=""),
    "sub with a space": lambda: good(sub="a b"),
    "sub of 256": lambda: good(sub="x" * 256),
    "jti a number": lambda: good(jti=1),
    "sid a list": lambda: good(sid=["s"]),
    "51 patterns": lambda: good(sse={"subscribe": [str(number) for number in range(51)]}),
    "one bad pattern": lambda: good(sse={"subscribe": ["a", "**/b"]}),
    "sse a text": lambda: good(sse="admin"),
    "admin a number": lambda: good(sse={"admin": 1}),
    "8 KiB + 1": lambda: good(sse={"subscribe": []}, x="x" * 8_192),
    "1 MB": lambda: good() + "A" * 1_000_000,
    "no token": lambda: HASH,
    "nothing": lambda: "",
    "no ASCII": lambda: good()[:-1] + "é",
    "half a surrogate": lambda: good()[:-1] + "\udc80",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
async def test_a_token_that_does_not_count(name: str, set_of_keys: Issuer) -> None:
    tokens = Tokens([set_of_keys], clock=lambda: NOW)
    assert (await tokens.verify(good())).user == "42"  # whatever makes the difference, it is not the rest
    assert await refusal(tokens, BAD[name]())


def test_there_are_at_least_60_of_them_and_one_error_for_all() -> None:
    assert len(BAD) >= 60
    assert issubclass(InvalidToken, Unauthorized)


@pytest.mark.parametrize(
    "changed",
    [{"exp": NOW + 1}, {"exp": NOW + 30 * 86_400}, {"exp": NOW + 1.5}, {"nbf": NOW + 5}, {"iat": NOW + 5}, {"iat": 1},
     {"nbf": NOW - 1e9}, {"iat": None}, {"aud": [AUDIENCE]}, {"aud": ["other", AUDIENCE]}, {"sub": "auth0|x@y.example"},
     {"sse": {"subscribe": [str(number) for number in range(50)]}}],
    ids=lambda changed: str(changed)[:40],
)  # fmt: skip
async def test_a_token_at_its_bounds_counts(changed: dict[str, Any], set_of_keys: Issuer) -> None:
    assert await Tokens([set_of_keys], clock=lambda: NOW).verify(good(**changed))


async def test_how_far_ahead_a_token_may_expire_is_a_setting(set_of_keys: Issuer) -> None:
    tokens = Tokens([set_of_keys], max_age=60.0, clock=lambda: NOW)
    assert await tokens.verify(good(exp=NOW + 60))
    assert await refusal(tokens, good(exp=NOW + 61)) == "lifetime"


async def test_without_issuers_no_token_counts() -> None:
    assert await refusal(Tokens(), good()) == "issuer"


async def test_reasons_come_from_a_small_set(set_of_keys: Issuer) -> None:
    tokens = Tokens([set_of_keys], clock=lambda: NOW)
    reasons = {await refusal(tokens, make()) for make in BAD.values()}
    assert reasons == {
        "algorithm", "audience", "claims", "expired", "header", "issuer", "key", "lifetime", "malformed",
        "not yet valid", "signature", "too large", "type",
    }  # fmt: skip


# Several issuers


@pytest.mark.parametrize("audience", [AUDIENCE, ["x", AUDIENCE], "https://x.example", AUDIENCE + "/"], ids=str)
@pytest.mark.parametrize("signer", ["own", "other"])
@pytest.mark.parametrize("iss", [ISSUER, OTHER])
async def test_a_key_is_bound_to_its_issuer(iss: str, signer: str, audience: Any) -> None:
    tokens = Tokens([issuer_of(RSA), issuer_of(ATTACKER, name="other", issuer=OTHER)])
    own, foreign = (RSA, ATTACKER) if iss == ISSUER else (ATTACKER, RSA)
    token = sign(claims(iss=iss, aud=audience), own if signer == "own" else foreign)
    if signer == "own" and audience in (AUDIENCE, ["x", AUDIENCE]):
        assert (await tokens.verify(token)).user == ("main:42" if iss == ISSUER else "other:42")
    else:
        assert await refusal(tokens, token) in ("signature", "audience")


async def test_an_algorithm_that_is_not_named_does_not_count() -> None:
    tokens = Tokens([issuer_of(RSA, algorithms=("PS256",))])
    assert await tokens.verify(sign(claims(), RSA, "PS256"))
    assert await refusal(tokens, sign(claims(), RSA, "RS256")) == "algorithm"


# Tokens that are kept


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


async def test_a_verified_token_is_kept_until_it_expires() -> None:
    clock = Clock()
    tokens = Tokens([issuer_of(HMAC)], clock=clock)
    token = sign(claims(exp=clock.now + 100), HMAC)
    assert tokens.kept(token) is None
    grant = await tokens.verify(token)
    assert tokens.kept(token) is grant
    assert await tokens.verify(token) is grant
    assert tokens.kept(token[:-1]) is None
    clock.now += 98
    assert tokens.kept(token) is grant
    clock.now += 1.5
    assert tokens.kept(token) is None
    assert await refusal(tokens, token) == "expired"


async def test_a_kept_token_costs_no_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens([issuer_of(HMAC)])
    token = sign(claims(), HMAC)
    grant = await tokens.verify(token)
    monkeypatch.setattr(module, "_signed_by", None)
    assert await tokens.verify(token) is grant


async def test_so_many_are_kept_and_the_least_used_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    assert KEPT_MAX == 10_000
    monkeypatch.setattr(module, "KEPT_MAX", 3)
    tokens = Tokens([issuer_of(HMAC)])
    made = [sign(claims(jti=str(number)), HMAC) for number in range(4)]
    for token in made[:3]:
        await tokens.verify(token)
    assert tokens.kept(made[0])
    await tokens.verify(made[3])
    assert [tokens.kept(token) is not None for token in made] == [True, False, True, True]


async def test_the_token_itself_is_not_kept() -> None:
    tokens = Tokens([issuer_of(HMAC)])
    token = sign(claims(), HMAC)
    await tokens.verify(token)
    assert token not in repr(vars(tokens))
    assert token.rpartition(".")[2] not in repr(vars(tokens))


async def test_tokens_can_be_forgotten() -> None:
    tokens = Tokens([issuer_of(HMAC)])
    made = {user: sign(claims(sub=user), HMAC) for user in ("ann", "bob")}
    for token in made.values():
        await tokens.verify(token)
    tokens.forget(lambda grant: grant.user == "ann")
    assert tokens.kept(made["ann"]) is None
    assert tokens.kept(made["bob"])


# Other keys


async def replaced(before: list[Issuer], after: list[Issuer]) -> list[Withdrawal]:
    tokens, told = Tokens(before), list[Withdrawal]()
    tokens.on_withdrawal = told.append
    token = sign(claims(), RSA)
    await tokens.verify(token)
    tokens.replace(after)
    assert tokens.kept(token) is None
    return told


async def test_a_key_that_is_gone_and_an_issuer_that_is_gone_are_told() -> None:
    main, other = issuer_of(RSA), issuer_of(EC, name="other", issuer=OTHER)
    (key,) = main.keys
    assert await replaced([main], [issuer_of(RSA)]) == []
    assert await replaced([main], [issuer_of(RSA, pair("rsa other"))]) == []
    assert await replaced([main], [issuer_of(EC)]) == [Withdrawal(keys=frozenset({("main", key.id)}))]
    assert await replaced([main], []) == [Withdrawal(sources=frozenset({"main"}))]
    assert await replaced([main], [issuer_of(RSA, audience=("x",))]) == [
        Withdrawal(sources=frozenset({"main"}), changed=True)
    ]
    assert await replaced([main], [main, other]) == [Withdrawal(sources=frozenset({"main"}), changed=True)]
    both = Tokens([main, other])
    told = list[Withdrawal]()
    both.on_withdrawal = told.append
    both.replace([main])
    assert told == [Withdrawal(sources=frozenset({"other"})), Withdrawal(sources=frozenset({"main"}), changed=True)]


class Changing:
    """Keys of an issuer that can be made stale, and that take ``wait`` seconds to look for, or until ``go``."""

    age: float | None = None
    failures = 0

    def __init__(self, of: KeySource) -> None:
        self.on_gone: Callable[[frozenset[str]], object] = lambda ids: None
        self.keys, self.stale, self.wait, self.looks = of, False, 0.0, 0
        self.go: asyncio.Event | None = None

    def __iter__(self) -> Any:
        return iter(self.keys)

    def find(self, kid: str | None) -> Any:
        return self.keys.find(kid)

    async def refresh(self) -> None:
        self.looks += 1
        await (asyncio.sleep(self.wait) if self.go is None else self.go.wait())
        if self.stale:
            raise KeysUnavailable("stale")

    async def run(self) -> None: ...


async def test_a_key_that_its_issuer_takes_back_counts_no_more(set_of_keys: Issuer) -> None:
    keys = Changing(set_of_keys.keys)
    tokens, told = Tokens([set_of_keys._replace(keys=keys)]), list[Withdrawal]()
    tokens.on_withdrawal = told.append
    made = {kid: sign(claims(), by, header={"kid": kid}) for by, kid in ((RSA, "k1"), (EC, "k2"))}
    for token in made.values():
        await tokens.verify(token)
    keys.on_gone(frozenset({"k1"}))
    assert told == [Withdrawal(keys=frozenset({("main", "k1")}))]
    assert tokens.kept(made["k1"]) is None
    assert tokens.kept(made["k2"])


async def test_while_it_is_not_known_which_keys_count_no_token_does(set_of_keys: Issuer) -> None:
    keys = Changing(set_of_keys.keys)
    tokens = Tokens([set_of_keys._replace(keys=keys)])
    token = sign(claims(), RSA, header={"kid": "k1"})
    await tokens.verify(token)
    keys.stale = True
    assert tokens.kept(token) is None
    with pytest.raises(KeysUnavailable):
        await tokens.verify(token)
    keys.stale = False
    assert await tokens.verify(token)


async def test_an_unknown_key_is_looked_for_and_a_known_one_is_not(set_of_keys: Issuer) -> None:
    keys = Changing(set_of_keys.keys)
    tokens = Tokens([set_of_keys._replace(keys=keys)])
    await tokens.verify(sign(claims(), RSA, header={"kid": "k1"}))
    assert keys.looks == 0
    assert await refusal(tokens, sign(claims(), RSA, header={"kid": "k3"})) == "key"
    assert keys.looks == 1
    for wrong in (sign(claims(exp=1), RSA, header={"kid": "k4"}), sign(claims(aud="x"), RSA, header={"kid": "k4"})):
        await refusal(tokens, wrong)
    assert keys.looks == 1


@pytest.mark.virtual_time
async def test_callers_that_wait_for_keys_are_bounded(set_of_keys: Issuer) -> None:
    keys = Changing(set_of_keys.keys)
    keys.wait = 3_600.0
    tokens = Tokens([set_of_keys._replace(keys=keys)], waiting=Waiting(limit=10, patience=5.0))
    token = sign(claims(), RSA, header={"kid": "k3"})
    made = await asyncio.gather(*(tokens.verify(token) for _ in range(12)), return_exceptions=True)
    assert all(isinstance(answer, Overloaded) for answer in made)
    assert asyncio.get_running_loop().time() == pytest.approx(5.0)
    assert keys.looks == 10
    assert await tokens.verify(sign(claims(), RSA, header={"kid": "k1"}))


async def test_an_issuer_that_was_replaced_meanwhile_does_not_count(set_of_keys: Issuer) -> None:
    keys = Changing(set_of_keys.keys)
    tokens = Tokens([set_of_keys._replace(keys=keys)])
    keys.stale = True
    waiting = asyncio.ensure_future(tokens.verify(sign(claims(), RSA, header={"kid": "k1"})))
    await asyncio.sleep(0)
    assert keys.looks == 1
    keys.stale = False
    tokens.replace([issuer_of(EC)])
    with pytest.raises(InvalidToken):
        await waiting


async def test_keys_that_are_stale_since_it_waited_do_not_count(set_of_keys: Issuer) -> None:
    before, after = Changing(set_of_keys.keys), Changing(set_of_keys.keys)
    before.stale = after.stale = True
    tokens = Tokens([set_of_keys._replace(keys=before)])
    waiting = asyncio.ensure_future(tokens.verify(sign(claims(), RSA, header={"kid": "k1"})))
    await asyncio.sleep(0)
    assert before.looks == 1
    before.stale = False
    tokens.replace([set_of_keys._replace(keys=after)])
    with pytest.raises(KeysUnavailable):
        await waiting


# Many at once


async def test_a_storm_of_new_tokens_leaves_the_loop_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 8 tokens are looked at between two turns of another task, however many come; the others not at all."""
    parsed = 0

    def counted(token: str) -> Any:
        nonlocal parsed
        parsed += 1
        return parse(token)

    monkeypatch.setattr(module, "parse", counted)
    tokens = Tokens([issuer_of(RSA)], waiting=Waiting(limit=150, patience=40.0))
    made = [sign(claims(jti=str(number)), RSA) for number in range(200)]
    tasks = [asyncio.ensure_future(tokens.verify(token)) for token in made]
    seen = [0]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        seen.append(parsed)
    assert max(later - earlier for earlier, later in pairwise(seen)) <= 16
    errors = [task.exception() for task in tasks]
    assert all(error is None or isinstance(error, Overloaded) for error in errors)
    assert 150 <= parsed == errors.count(None) < 200


async def test_tokens_that_waited_for_keys_take_turns_too(set_of_keys: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = 0
    signed_by = module._signed_by

    def counted(*arguments: Any) -> Any:
        nonlocal checked
        checked += 1
        return signed_by(*arguments)

    monkeypatch.setattr(module, "_signed_by", counted)
    keys = Changing(set_of_keys.keys)
    keys.stale, keys.go = True, asyncio.Event()
    tokens = Tokens([set_of_keys._replace(keys=keys)])
    made = [sign(claims(jti=str(number)), RSA, header={"kid": "k1"}) for number in range(60)]
    tasks = [asyncio.ensure_future(tokens.verify(token)) for token in made]
    while keys.looks < len(made):
        await asyncio.sleep(0)
        assert checked == 0
    keys.stale = False
    keys.go.set()
    seen = [0]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        seen.append(checked)
    assert max(later - earlier for earlier, later in pairwise(seen)) <= 16
    assert len([task.result() for task in tasks]) == checked == 60


async def test_a_token_that_many_bring_at_once_is_kept_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens([issuer_of(RSA)])
    token = sign(claims(), RSA)
    grants = await asyncio.gather(*(tokens.verify(token) for _ in range(100)))
    assert len({id(grant) for grant in grants}) == 1


def test_the_secret_stands_in_no_picture() -> None:
    assert SECRET.decode() not in repr(Tokens([issuer_of(HMAC)]).issuers)
