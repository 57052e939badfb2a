from typing import Any

import pytest

from sse_app.auth.claims import PATTERNS_MAX, SOURCES, InvalidClaims, grant_of
from sse_app.grants import Grant

ALL = tuple(SOURCES)
MERCURE = ("mercure",)


def detail(*topics: Any, actions: Any = ("subscribe",), **more: Any) -> dict[str, Any]:
    return {"type": "mercure", "actions": list(actions), "topics": list(topics), **more}


def exact(text: str, **more: Any) -> dict[str, Any]:
    return {"match": text, **more}


# Claims, and the arguments of Grant.of for what they grant.
GRANTED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"name": "Ann", "roles": ["admin"]}, {}),
    ({"sse": {}}, {}),
    ({"sse": {"subscribe": ["users/42/**"]}}, {"subscribe": ("users/42/**",)}),
    ({"sse": {"publish": ["a"], "subscribe": ["b/*", "c"]}}, {"publish": ("a",), "subscribe": ("b/*", "c")}),
    ({"sse": {"subscribe": ["**"]}}, {"subscribe": ("**",)}),
    ({"sse": {"subscribe": ["a", "**"], "broadcasts": False}}, {"subscribe": ("**",), "broadcasts": False}),
    ({"sse": {"stats": "own", "mint": True, "admin": True}}, {"stats": "own", "mint": True, "admin": True}),
    ({"sse": {"client": "tab-*"}}, {"client": "tab-*"}),
    ({"sse": {"client": None}}, {}),
    ({"sse": {"client": "*"}}, {"client": "*"}),
    ({"sse": {"present": ["rooms/7"], "presence": 1, "info": {"a": 1}, "new": "x"}}, {}),
    ({"sse": {"subscribe": ["a"] * PATTERNS_MAX}}, {"subscribe": ("a",)}),
    ({"scope": "openid profile email"}, {}),
    ({"scope": ""}, {}),
    ({"scope": "sse:subscribe:news/*"}, {"subscribe": ("news/*",)}),
    ({"scope": "openid sse:publish:a sse:subscribe:b sse:subscribe:c/**"},
     {"publish": ("a",), "subscribe": ("b", "c/**")}),
    ({"scope": "sse:subscribe:https%3A%2F%2Fa.example%2F1 sse:subscribe:a%20b"},
     {"subscribe": ("https://a.example/1", "a b")}),
    ({"scope": "sse:subscribe:https://a.example/1"}, {"subscribe": ("https://a.example/1",)}),
    ({"scope": "sse:subscribe:%D0%BA"}, {"subscribe": ("к",)}),
    ({"scope": "sse:stats:own sse:stats:none sse:mint sse:admin"}, {"stats": "own", "mint": True, "admin": True}),
    ({"scope": "sse:presence:rooms/7 sse: sse sse:other SSE:subscribe:a ssesubscribe:a"}, {}),
    ({"scp": "sse:subscribe:a"}, {"subscribe": ("a",)}),
    ({"scp": ["openid", "sse:subscribe:a", "sse:publish:b"]}, {"publish": ("b",), "subscribe": ("a",)}),
    ({"mercure": {}}, {}),
    ({"mercure": {"publish": ["*"], "subscribe": ["https://a.example/books/1", "x"]}},
     {"publish": ("**",), "subscribe": ("https://a.example/books/1", "x")}),
    ({"mercure": {"subscribe": ["a*b"], "payload": {"user": 1}}}, {"subscribe": ("a*b",)}),
    ({"authorization_details": []}, {}),
    ({"authorization_details": [{"type": "payment", "topics": "x"}, "y"]}, {}),
    ({"authorization_details": [detail(exact("a"), exact("b", match_type="exact"))]}, {"subscribe": ("a", "b")}),
    ({"authorization_details": [detail(exact("a"), actions=["publish", "subscribe"]), detail(exact("*"))]},
     {"publish": ("a",), "subscribe": ("a", "**")}),
    ({"authorization_details": [detail(exact("a", match_type="Exact"), payload={"user": 1})]}, {"subscribe": ("a",)}),
]  # fmt: skip

INVALID: list[dict[str, Any]] = [
    {"sse": None}, {"sse": "subscribe"}, {"sse": []}, {"sse": {"subscribe": "a"}}, {"sse": {"subscribe": None}},
    {"sse": {"subscribe": [1]}}, {"sse": {"subscribe": {"a": 1}}}, {"sse": {"subscribe": ["a", ""]}},
    {"sse": {"subscribe": ["a", "**/b"]}}, {"sse": {"subscribe": ["**", "a\nb"]}}, {"sse": {"publish": ["\ud800"]}},
    {"sse": {"subscribe": ["x" * 2_049]}}, {"sse": {"subscribe": ["a"] * (PATTERNS_MAX + 1)}},
    {"sse": {"publish": [str(n) for n in range(PATTERNS_MAX + 1)]}},
    {"sse": {"stats": "everything"}}, {"sse": {"stats": True}}, {"sse": {"stats": ["own"]}}, {"sse": {"mint": 1}},
    {"sse": {"admin": "true"}}, {"sse": {"broadcasts": None}}, {"sse": {"client": 7}}, {"sse": {"client": ""}},
    {"sse": {"client": "a b"}}, {"sse": {"client": "**"}}, {"sse": {"client": "@42"}},
    {"scope": None}, {"scope": 1}, {"scope": [1]}, {"scope": {"sse:admin": True}}, {"scp": [["sse:admin"]]},
    {"scope": "sse:subscribe:"}, {"scope": "sse:subscribe"}, {"scope": "openid sse:publish:a/**/b"},
    {"scope": "sse:subscribe:%"}, {"scope": "sse:subscribe:%zz"}, {"scope": "sse:subscribe:%ff"},
    {"scope": "sse:subscribe:a%0Ab"}, {"scope": "sse:stats:x"}, {"scope": "sse:stats"}, {"scope": "sse:mint:1"},
    {"scope": "sse:admin:false"}, {"scope": " ".join(f"sse:subscribe:{n}" for n in range(PATTERNS_MAX + 1))},
    {"mercure": None}, {"mercure": []}, {"mercure": {"subscribe": "*"}}, {"mercure": {"subscribe": [{}]}},
    {"mercure": {"subscribe": ["https://a.example/{id}"]}}, {"mercure": {"publish": ["a/*"]}},
    {"mercure": {"subscribe": ["**"]}}, {"mercure": {"subscribe": [""]}}, {"mercure": {"subscribe": ["a", 1]}},
    {"authorization_details": {}}, {"authorization_details": [detail()]}, {"authorization_details": [detail("a")]},
    {"authorization_details": [detail(exact("a"), actions=[])]},
    {"authorization_details": [detail(exact("a"), actions=["subscribe", "admin"])]},
    {"authorization_details": [detail(exact("a", match_type="urlpattern"))]},
    {"authorization_details": [detail(exact("a", match_type="uritemplate"))]},
    {"authorization_details": [detail(exact("a", match_type=None))]},
    {"authorization_details": [detail({"match": 1})]}, {"authorization_details": [detail(exact("a/**"))]},
    {"authorization_details": [detail(exact("a/{b}"))]}, {"authorization_details": [{"type": "mercure"}]},
    {"authorization_details": [detail(*(exact(str(n)) for n in range(PATTERNS_MAX + 1)))]},
]  # fmt: skip


@pytest.mark.parametrize(("claims", "granted"), GRANTED, ids=lambda value: str(value)[:60])
def test_claims_grant_what_they_say(claims: dict[str, Any], granted: dict[str, Any]) -> None:
    assert grant_of(claims, ALL, None) == Grant.of(**granted)


@pytest.mark.parametrize("claims", INVALID, ids=lambda value: ascii(value)[:80])
def test_one_malformed_entry_and_nothing_is_granted(claims: dict[str, Any]) -> None:
    with pytest.raises(InvalidClaims) as caught:
        grant_of(claims, ALL, None)
    assert caught.value.__cause__ is None


SEVERAL = {"mercure": {"subscribe": ["m"]}, "scope": "sse:subscribe:s", "sse": {"publish": ["p"]}, "scp": ["sse:admin"]}


@pytest.mark.parametrize(
    ("sources", "granted"),
    [
        (("sse", "scope", "mercure"), {"publish": ("p",)}),
        (("scope", "sse"), {"subscribe": ("s",)}),
        (("mercure", "sse"), {"subscribe": ("m",)}),
        (("mercure",), {"subscribe": ("m",)}),
        (("scope",), {"subscribe": ("s",)}),
        ((), {}),
    ],
)
def test_of_several_sources_the_first_counts_alone(sources: tuple[str, ...], granted: dict[str, Any]) -> None:
    assert grant_of(SEVERAL, sources, None) == Grant.of(**granted)


def test_a_source_that_is_not_enabled_is_another_claim() -> None:
    assert grant_of({"mercure": {"subscribe": ["*"]}}, ("sse", "scope"), None) == Grant()
    assert grant_of({"mercure": 7, "sse": {"stats": "all"}}, ("sse",), None) == Grant(stats="all")


def test_a_source_that_grants_nothing_is_there_all_the_same() -> None:
    assert grant_of({"sse": {}, "scope": "sse:admin"}, ALL, None) == Grant()
    assert grant_of({"scope": "openid", "mercure": {"subscribe": ["*"]}}, ALL, None) == Grant()


def test_the_user_is_given_and_has_to_be_a_name() -> None:
    assert grant_of({}, ALL, "42").user == "42"
    assert grant_of({}, ALL, "main:auth0|42").user == "main:auth0|42"
    for user in ("", "a b", "a\n", "x" * 256, "\u202e"):
        with pytest.raises(InvalidClaims):
            grant_of({}, ALL, user)
