import hashlib
import hmac
import re
from types import SimpleNamespace
from typing import Any

import pytest

from sse_app.auth import keys as module
from sse_app.auth.keys import NAME, Key, Keys, new_key
from sse_app.auth.withdrawal import Withdrawal
from sse_app.grants import Grant

TILL, WEB = Grant.of(publish=("orders/**",)), Grant.of(subscribe=("news",))


def key_of(secret: str, grant: Grant) -> Key:
    return Key(hashlib.sha256(secret.encode()).digest(), grant)


@pytest.fixture
def till() -> str:
    return new_key("till")[0]


def test_a_new_key_has_the_form_of_keys_and_its_hash() -> None:
    key, digest = new_key("till-3")
    assert re.fullmatch("ssk_till-3_[A-Za-z0-9_-]{43}", key)
    assert digest == f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    assert new_key("till-3") != (key, digest)


def test_a_key_is_found_by_its_name_and_its_hash(till: str) -> None:
    keys = Keys({"till": key_of(till, TILL)})
    assert keys.find(till) is TILL
    assert len(keys) == 1


@pytest.mark.parametrize("name", ["a", "till", "till_3", "a_b_c", "x-y", "A9", "9", "a" * 64])
def test_a_name_may_hold_what_separates_it(name: str) -> None:
    """The characters at the end may be _ and - too: where the name ends is counted from there."""
    assert NAME.fullmatch(name)
    for _ in range(20):
        key, _ = new_key(name)
        assert Keys({name: key_of(key, WEB)}).find(key) is WEB


def test_what_is_no_key_is_not_found(till: str) -> None:
    keys = Keys({"till": key_of(till, TILL)})
    last = "A" if till[-1] != "A" else "B"
    wrong = [till[:-1] + last, till[:-1], till + "A", till.replace("till", "tilt"), till.upper(), f" {till}",
             f"{till}\n", new_key("till")[0], new_key("web")[0], "", "ssk_", "ssk_till_", "ssk__" + "a" * 43, "a.b.c",
             till.replace("ssk_", "ssk-"), till[:-1] + "é", till[:-1] + "\udc80", "ssk_tıll_" + "a" * 43,
             hashlib.sha256(till.encode()).hexdigest(), "ssk_till_" + "１" * 43]  # fmt: skip
    for secret in wrong:
        assert keys.find(secret) is None


def test_the_hash_of_nothing_is_the_key_of_nobody(till: str) -> None:
    assert Keys().find(till) is None
    assert Keys({}).find("") is None


def other_than(character: str) -> str:
    return "A" if character != "A" else "B"


def test_a_guess_costs_the_same_however_near_it_is(till: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One hash and one comparison in constant time, of as many bytes, also where there is no key of that name."""
    steps = list[tuple[str, int, int]]()

    def sha256(data: bytes) -> Any:
        steps.append(("hash", len(data), 0))
        return hashlib.sha256(data)

    def compare_digest(one: bytes, other: bytes) -> bool:
        steps.append(("compare", len(one), len(other)))
        return hmac.compare_digest(one, other)

    keys = Keys({"till": key_of(till, TILL), "web": key_of(new_key("web")[0], WEB)})
    monkeypatch.setattr(module, "hashlib", SimpleNamespace(sha256=sha256))
    monkeypatch.setattr(module, "hmac", SimpleNamespace(compare_digest=compare_digest))
    begin = len("ssk_till_")
    guesses = {
        "right": till,
        "first byte wrong": till[:begin] + other_than(till[begin]) + till[begin + 1 :],
        "last byte wrong": till[:-1] + other_than(till[-1]),
        "all bytes wrong": new_key("till")[0],
        "unknown name": new_key("shop")[0],
        "nearly a name": new_key("tilt")[0],
    }
    for name, guess in guesses.items():
        steps.clear()
        assert keys.find(guess) is (TILL if name == "right" else None), name
        assert steps == [("hash", len(till), 0), ("compare", 32, 32)], name


def test_a_key_stands_in_no_picture(till: str) -> None:
    key = key_of(till, TILL)
    assert key.digest.hex() not in repr(key)
    assert repr(key.digest) not in repr(key)


def test_replaced_keys_count_at_once_and_those_that_are_gone_are_told() -> None:
    (a, _), (b, _), (c, _), (d, _) = (new_key(name) for name in "abcd")
    keys = Keys({"a": key_of(a, TILL), "b": key_of(b, TILL), "c": key_of(c, TILL), "d": key_of(d, TILL)})
    new_b, _ = new_key("b")
    told = keys.replace({"b": key_of(new_b, TILL), "c": key_of(c, WEB), "d": key_of(d, TILL)})
    assert told == [
        Withdrawal(sources=frozenset({"a", "b"})),
        Withdrawal(sources=frozenset({"c"}), changed=True),
    ]
    assert keys.find(a) is keys.find(b) is None
    assert keys.find(new_b) is TILL
    assert keys.find(c) is WEB
    assert keys.replace({"b": key_of(new_b, TILL), "c": key_of(c, WEB), "d": key_of(d, TILL)}) == []


def test_a_withdrawal_covers_grants_of_its_sources_and_of_tokens_that_its_keys_signed() -> None:
    sources = Withdrawal(sources=frozenset({"till"}))
    assert sources.covers(Grant(source="till"))
    assert sources.covers(Grant(source="till", key="k1"))
    assert not sources.covers(Grant(source="main"))
    keys = Withdrawal(keys=frozenset({("main", "k1")}))
    assert keys.covers(Grant(source="main", key="k1"))
    assert not keys.covers(Grant(source="main", key="k2"))
    assert not keys.covers(Grant(source="other", key="k1"))
    assert not keys.covers(Grant(source="main"))
    assert keys
    assert not Withdrawal()
