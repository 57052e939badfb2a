import json
from base64 import urlsafe_b64encode
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_app.auth.compact import KID_MAX, SIZE_MAX, CompactToken, NotValid, parse
from tests.support.tokens import encoded

CLAIMS = encoded({"sub": "42"})


def header(**changed: Any) -> str:
    return encoded({"alg": "HS256", **changed})


def reason(token: str) -> str:
    with pytest.raises(NotValid) as caught:
        parse(token)
    assert caught.value.__cause__ is None
    return caught.value.reason


def test_a_token_is_taken_apart() -> None:
    head = header(kid="k1", typ="JWT", x5t="ignored", cty="x")
    assert parse(f"{head}.{CLAIMS}.{encoded(b'signature')}") == CompactToken(
        "HS256", "k1", {"sub": "42"}, f"{head}.{CLAIMS}".encode(), b"signature"
    )


@pytest.mark.parametrize("kind", ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt"])
def test_types_of_tokens(kind: str) -> None:
    assert parse(f"{header(typ=kind)}.{CLAIMS}.AAAA").kid is None


@pytest.mark.parametrize(
    ("head", "why"),
    [
        *((header(typ=kind), "type") for kind in ("JWE", "", "logout+jwt", "dpop+jwt", None, 1, ["JWT"])),
        *((header(alg=name), "algorithm") for name in ("none", "None", "nOnE", "", "hs256", "ES256K", "RSA1_5", None)),
        *((header(alg=name), "algorithm") for name in (1, ["HS256"], {"a": 1}, True)),
        (encoded({}), "algorithm"),
        *((header(**{name: "x"}), "header") for name in ("jku", "jwk", "x5u", "x5c", "b64")),
        *((header(crit=crit), "header") for crit in ([], ["exp"], None, "b64")),
        *((header(kid=kid), "key") for kid in (1, ["a"], {"a": 1}, True, "x" * (KID_MAX + 1))),
        *((encoded(text), "malformed") for text in (b"[]", b"1", b"null", b'"{}"', b"{", b"", b"\xff", b'{"alg":NaN}')),
        (encoded(b"\xef\xbb\xbf{}"), "malformed"),
        (encoded(b'{"alg":"HS256","a":' + b"[" * 65 + b"]" * 65 + b"}"), "malformed"),
    ],
)
def test_a_header_that_is_refused(head: str, why: str) -> None:
    assert reason(f"{head}.{CLAIMS}.AAAA") == ("malformed" if head == "" else why)


@pytest.mark.parametrize(
    "payload",
    [b"[]", b"1", b"{", b"{} {}", b'{"a":\xff}', b"[" * 4_000, b'{"a":' * 65 + b"1" + b"}" * 65, b'{"exp":1e999}',
     b'{"exp":-Infinity}', b"{'a':1}", b'{"a":1,}', b'{"a":"\\ud800"}'],
    ids=lambda payload: str(payload[:20]),
)  # fmt: skip
def test_claims_that_are_no_object_of_json(payload: bytes) -> None:
    assert reason(f"{header()}.{encoded(payload)}.AAAA") == "malformed"


@pytest.mark.parametrize(
    "token",
    ["", ".", "..", "...", "a.b", "a.b.c.d", f"{header()}.{CLAIMS}", f"{header()}.{CLAIMS}.", f".{CLAIMS}.AAAA",
     f"{header()}..AAAA", f" {header()}.{CLAIMS}.AAAA", f"{header()}.{CLAIMS}.AAAA\n", f"{header()}.{CLAIMS}.AAAA=",
     f"{header()}.{CLAIMS}.AA+A", f"{header()}.{CLAIMS}.AA/A", f"{header()}.{CLAIMS}.ÀÁÂÃ", f"{header()}.{CLAIMS}.А",
     f"{header()}.{CLAIMS}.A", f"{header()}.{CLAIMS}.AAAAA", f"{header()}.{CLAIMS}.AB", f"{header()}.{CLAIMS}.AAB",
     f"{header()}.{CLAIMS}.AA\0A", "\ud800.\ud800.\ud800"],
    ids=ascii,
)  # fmt: skip
def test_what_has_not_the_form_of_a_token(token: str) -> None:
    assert reason(token) == "malformed"


def test_a_token_is_at_most_8_kib() -> None:
    start = f"{header()}.{CLAIMS}."
    rest = SIZE_MAX - len(start)
    assert len(parse(start + "A" * (rest - rest % 4)).signature) > 0
    assert reason(start + "A" * (rest + 1)) == "too large"


@given(st.binary(min_size=1, max_size=20), st.data())
def test_only_one_text_stands_for_a_signature(signature: bytes, data: st.DataObject) -> None:
    """Else one token had many texts, and each would be another one for who compares texts."""
    text = encoded(signature)
    other = data.draw(st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1))
    try:
        parsed = parse(f"{header()}.{CLAIMS}.{other}")
    except NotValid:
        return
    assert (parsed.signature == signature) == (other == text)


@given(st.text(max_size=200) | st.binary(max_size=100).map(lambda raw: urlsafe_b64encode(raw).decode()))
def test_whatever_comes_it_is_a_token_or_not_valid(text: str) -> None:
    for token in (text, f"{text}.{CLAIMS}.AAAA", f"{header()}.{text}.AAAA"):
        with suppress(NotValid):
            parse(token)


@given(st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(), st.lists, max_leaves=5))
def test_whatever_a_header_holds_it_is_refused_or_read(value: Any) -> None:
    head = json.dumps({"alg": value, "kid": value, "typ": value}).encode()
    with pytest.raises(NotValid):
        parse(f"{encoded(head)}.{CLAIMS}.AAAA")
