"""Revocations: what each takes back, how it is stored, and when it ends. Pure."""

from contextlib import suppress
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_app import revocations
from sse_app.brokers.board import TTL, VALUE_BYTES, check_key
from sse_app.errors import BadInput, InsufficientScope, InvalidRevocation, InvalidToken, InvalidTopic, TooManyTopics
from sse_app.events import check_type
from sse_app.grants import OPEN, Grant
from sse_app.publication import check_recipient
from sse_app.revocations import (
    LASTS_MAX,
    NOBODY,
    RECORD,
    SIZE_MAX,
    Revocation,
    Revocations,
    deny,
    is_revocable,
    record_of,
)
from sse_app.topics import TopicFilter
from tests.support.peers import Clock

NOW = 1_700_000_000.25  # Unix time
DAY = 86_400.0

GRANT = Grant(
    publish=TopicFilter.parse(["a/*"]),
    subscribe=TopicFilter.parse(["a/*", "b"]),
    user="42",
    source="till",
    token="t1",
    session="s1",
    key="k1",
    issued=NOW - 60,
)


def made(*, lasts: float = DAY, now: float = NOW, **what: Any) -> Revocation:
    return Revocation.of(lasts=lasts, now=now, **what)


def standing(*those: Revocation, now: float = NOW) -> Revocations:
    found = Revocations(Clock(now))
    for revocation in those:
        found.add(revocation)
    return found


def is_refused(grant: Grant, *those: Revocation, now: float = NOW) -> bool:
    try:
        standing(*those, now=now).check(grant)
    except InvalidToken as error:
        return error.reason == "revoked"
    return False


# What each takes back


@pytest.mark.parametrize(
    ("what", "grant", "refused"),
    [
        ({"token": "t1"}, GRANT, True),
        ({"token": "t2"}, GRANT, False),
        ({"session": "s1"}, GRANT, True),
        ({"session": "t1"}, GRANT, False),
        ({"user": "42"}, GRANT, True),
        ({"user": "43"}, GRANT, False),
        ({"kid": "k1"}, GRANT, True),
        ({"kid": "till"}, GRANT, False),
        ({"key": "till"}, Grant(source="till"), True),
        ({"key": "till"}, GRANT, False),  # the issuer of a token, which has the name of a key
        ({"token": "t1"}, OPEN, False),
        ({"key": "anonymous"}, Grant(source="anonymous"), True),
    ],
)
def test_a_revocation_takes_back_what_it_names_and_nothing_else(
    what: dict[str, Any], grant: Grant, refused: bool
) -> None:
    assert is_refused(grant, made(**what)) is refused


@pytest.mark.parametrize(
    ("issued", "refused", "ended"),
    [
        (None, True, True),
        (NOW - 1, True, True),
        (NOW, True, True),
        (NOW + 0.1, False, False),
        (NOW + 5, False, False),
        (int(NOW) - 1, True, True),
        (int(NOW), False, True),  # a token that says the second only: it may be a new one
        (int(NOW) + 1, False, False),
    ],
)
def test_of_a_user_all_is_taken_back_that_was_issued_before(issued: float | None, refused: bool, ended: bool) -> None:
    grant, revocation = replace(GRANT, issued=issued), made(user="42")
    assert is_refused(grant, revocation) is refused
    assert revocation.ends(grant) is ended


@pytest.mark.parametrize("what", ["token", "session", "kid"])
def test_a_token_is_taken_back_whenever_it_says_that_it_was_issued(what: str) -> None:
    names: dict[str, Any] = {"token": "t1", "session": "s1", "kid": "k1"}
    late, revocation = replace(GRANT, issued=NOW + 100), made(**{what: names[what]})
    assert is_refused(late, revocation)
    assert revocation.ends(late)


def test_a_revocation_ends() -> None:
    revocation = made(token="t1", lasts=10)
    assert is_refused(GRANT, revocation, now=NOW + 9.9)
    assert not is_refused(GRANT, revocation, now=NOW + 10)


def test_a_grant_with_nothing_taken_from_it_is_the_same_object() -> None:
    assert standing().check(GRANT) is GRANT
    assert standing(made(token="other"), made(user="43", topics="a/1")).check(GRANT) is GRANT


def test_topics_that_were_taken_back_are_denied_for_both_ways() -> None:
    those = standing(made(user="42", topics=["a/1"]), made(token="t1", topics=["a/2", "a/1"], lasts=5))
    checked = those.check(GRANT)
    assert checked.subscribe is not None
    assert checked.publish is not None
    assert set(checked.subscribe.denied) == set(checked.publish.denied) == {"a/1", "a/2"}
    assert those.check(checked) == checked
    assert replace(checked, subscribe=GRANT.subscribe, publish=GRANT.publish) == GRANT


def test_topics_stay_denied_for_a_new_login() -> None:
    late = replace(GRANT, issued=NOW + 100)
    assert standing(made(user="42", topics=["a/1"])).check(late) != late


def test_a_grant_without_a_right_has_none_to_be_denied() -> None:
    grant = replace(GRANT, publish=None)
    assert standing(made(user="42", topics=["a/1"])).check(grant).publish is None


def test_a_grant_from_which_too_much_was_taken_grants_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> TopicFilter:
        raise TooManyTopics("too many")

    monkeypatch.setattr(revocations, "denied_in", refuse)
    with pytest.raises(InsufficientScope):
        deny(GRANT, ["a/1"])


@pytest.mark.parametrize(
    ("grant", "revocable"),
    [(OPEN, False), (replace(OPEN, publish=None), False), (Grant(), False), (GRANT, True), (Grant(user="1"), True)],
)
def test_an_open_hub_has_nothing_that_can_be_taken_back(grant: Grant, revocable: bool) -> None:
    assert is_revocable(grant) is revocable


# How it is made and stored

GOOD: list[dict[str, Any]] = [
    {"token": "t" * 1_024},
    {"session": "with a space, é"},
    {"user": "users/42@example.com"},
    {"key": "till"},
    {"kid": "k1", "topics": ["a/*", "b/**", "c"]},
    {"user": "42", "topics": "a/1"},
]


@pytest.mark.parametrize("what", GOOD)
def test_a_revocation_is_read_as_it_was_stored(what: dict[str, Any]) -> None:
    revocation = made(**what)
    assert Revocation.decode(revocation.encode()) == revocation
    assert Revocation.decode(revocation.encode().decode()) == revocation
    check_key(revocation.entry)
    assert revocation.entry.startswith("revoked.")


def test_what_is_stored_says_its_version_and_what_must_be_understood() -> None:
    assert msgspec.json.decode(made(user="42", topics=["b", "a"]).encode()) == {
        "v": 1,
        "crit": [],
        "kind": "user",
        "name": "42",
        "topics": ["a", "b"],
        "made": NOW,
        "until": NOW + DAY,
    }


def test_each_revocation_has_an_entry_of_its_own() -> None:
    those = [made(**what) for what in GOOD] + [made(user="42", now=NOW + 1), made(user="42", lasts=5)]
    assert len({one.entry for one in those}) == len(those)
    assert made(user="42").entry == made(user="42").entry


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ({}, InvalidRevocation),
        ({"token": "t", "user": "42"}, InvalidRevocation),
        ({"token": ""}, InvalidRevocation),
        ({"token": "t" * 1_025}, InvalidRevocation),
        ({"token": 42}, InvalidRevocation),
        ({"session": "line\nbreak"}, InvalidRevocation),
        ({"user": "4 2"}, BadInput),
        ({"user": "42", "topics": []}, InvalidRevocation),
        ({"user": "42", "topics": ["a/**/b"]}, InvalidTopic),
        ({"user": "42", "topics": 42}, InvalidTopic),
        ({"user": "42", "topics": [f"{'x' * 1_000}{number}" for number in range(20)]}, InvalidRevocation),
        *[
            ({"user": "42", "lasts": lasts}, InvalidRevocation)
            for lasts in (0, 0.5, -1, True, LASTS_MAX + 1, float("nan"), float("inf"), "60")
        ],
    ],
)
def test_what_is_no_revocation_is_refused(what: dict[str, Any], error: type[BadInput]) -> None:
    with pytest.raises(error):
        made(**what)


def test_the_bounds_are_those_of_the_board() -> None:
    assert (SIZE_MAX, LASTS_MAX) == (VALUE_BYTES, TTL)


def changed(**members: Any) -> bytes:
    return msgspec.json.encode(msgspec.json.decode(made(user="42").encode()) | members)


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 10_000,
        changed(v=2),
        changed(v=0),
        changed(crit=["only"]),
        changed(kind="issuer"),
        changed(name="4 2"),
        changed(name=""),
        changed(topics=["a/**/b"]),
        changed(topics=[str(number) for number in range(101)]),
        changed(made="now"),
        changed(made=-1),
        changed(until=NOW),
        changed(until=NOW + 10 * LASTS_MAX),
    ],
)
def test_junk_is_no_revocation(junk: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Revocation.decode(junk)


def test_fields_of_a_newer_version_that_may_be_ignored_are() -> None:
    assert Revocation.decode(changed(why="logout")) == made(user="42")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_revocation_or_none(data: bytes) -> None:
    with suppress(ValueError):
        assert isinstance(Revocation.decode(data), Revocation)


def test_a_record_is_for_nobody_and_no_publisher_can_write_one() -> None:
    record = record_of(made(user="42"))
    assert (record.event.type, record.to, record.topics) == (RECORD, NOBODY, ())
    with pytest.raises(BadInput):
        check_type(RECORD)
    for name in NOBODY:
        with pytest.raises(BadInput):
            check_recipient(name)


# Those that stand


def test_a_revocation_that_covers_others_takes_their_place() -> None:
    those = Revocations(Clock(NOW))
    first, second = made(user="42"), made(user="42", now=NOW + 1)
    assert list(those.add(first)) == []
    assert list(those.add(second)) == [first]
    assert list(those.add(second)) == []
    assert list(those.add(first)) == []
    assert len(those) == 1


@pytest.mark.parametrize(
    "other",
    [
        made(user="43"),
        made(token="42"),
        made(user="42", topics=["a"]),
        made(user="42", now=NOW + 1, lasts=5),
    ],
)
def test_a_revocation_that_takes_something_else_back_stands_beside_the_first(other: Revocation) -> None:
    those = standing(made(user="42"))
    assert list(those.add(other)) == []
    assert len(those) == 2


def test_what_has_ended_takes_no_memory() -> None:
    clock = Clock(NOW)
    those = Revocations(clock)
    for number in range(100):
        those.add(made(user=str(number), lasts=1 + number * 60))
        those.add(made(user=str(number), topics=["a"], lasts=10_000))
    clock.now = NOW + 6_700
    those.sweep()
    assert len(those) == 100
    clock.now = NOW + 11_000
    those.sweep()
    assert (len(those), those._standing, those._ending) == (0, {}, {})


def test_a_node_keeps_so_many_and_says_when_it_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revocations, "STANDING_MAX", 3)
    those = standing(*[made(user=str(number)) for number in range(2)])
    assert not those.is_full
    those.add(made(user="2"))
    assert those.is_full
