"""What a grant allows, by itself."""

import time

import pytest

from sse_app.errors import InsufficientScope, InvalidClient, InvalidIdempotencyKey, InvalidTopic
from sse_app.grants import OPEN, Grant
from sse_app.publication import Audience
from sse_app.topics import TopicFilter


def test_without_arguments_it_grants_nothing() -> None:
    grant = Grant.of()
    with pytest.raises(InsufficientScope):
        grant.narrow(TopicFilter())
    with pytest.raises(InsufficientScope):
        grant.check_publish(("a",))
    with pytest.raises(InsufficientScope):
        grant.check_stats()
    assert (grant.mint, grant.admin, grant.expires, grant.user) == (False, False, None, None)


def test_an_open_hub_grants_everything_but_administration() -> None:
    asked = TopicFilter.parse(["a/*"])
    assert OPEN.narrow(asked) is asked
    assert OPEN.narrow(TopicFilter()) == TopicFilter()
    OPEN.check_publish(())
    OPEN.check_publish(("a", "b"))
    OPEN.check_stats(all_of_it=True)
    assert not OPEN.admin
    assert OPEN.check_name("till-3") == "till-3"
    assert OPEN.audience("till-3") == Audience(("till-3",))


@pytest.mark.parametrize(
    ("granted", "topics", "allowed"),
    [
        (["**"], (), True),
        (["**"], ("a", "b/c"), True),
        (["a", "**"], (), True),
        (["a/*"], ("a/1",), True),
        (["a/*"], ("a/1", "a/2"), True),
        (["a/*"], ("a/1", "b"), False),
        (["a/*"], ("a/1/x",), False),
        (["a/*"], ("a/%31",), True),  # a topic is compared as it is: this is another one of a/*, and is not a/1
        (["a/1"], ("a/%31",), False),
        (["a/1"], ("A/1",), False),
        (["a/1"], ("a/1/",), False),
        (["a/1"], ("a//1",), False),
        (["a/**"], ("a",), True),
        (["é"], ("e\u0301",), False),
        (["a/*"], (), False),
        ([], ("a",), False),
        ([], (), False),
    ],
)
def test_every_topic_of_a_publication_has_to_be_granted(
    granted: list[str], topics: tuple[str, ...], allowed: bool
) -> None:
    grant = Grant.of(publish=granted)
    if allowed:
        grant.check_publish(topics)
    else:
        with pytest.raises(InsufficientScope):
            grant.check_publish(topics)


@pytest.mark.parametrize(
    ("asked", "granted", "found"),
    [
        ([], ["a/*"], ["a/*"]),
        (["**"], ["a/*"], ["a/*"]),
        (["a/1"], ["a/*"], ["a/1"]),
        (["a/**"], ["a/*"], ["a/*"]),
        (["a/1", "a/2"], ["a/1", "a/2", "b"], ["a/1", "a/2"]),
        (["a/1"], ["**"], ["a/1"]),
        (["b"], ["a/*"], None),
        (["a/1", "b"], ["a/*"], None),
    ],
)
def test_a_stream_gets_what_is_asked_for_and_granted(
    asked: list[str], granted: list[str], found: list[str] | None
) -> None:
    grant = Grant.of(subscribe=granted)
    if found is None:
        with pytest.raises(InsufficientScope):
            grant.narrow(TopicFilter.parse(asked))
    else:
        assert list(grant.narrow(TopicFilter.parse(asked)).shown) == found


@pytest.mark.parametrize(
    ("allowed", "asked", "name"),
    [
        (None, "any", "any"),
        ("till-3", None, "till-3"),
        ("till-3", "till-3", "till-3"),
        ("till-3", "till-4", None),
        ("tab-*", "tab-9", "tab-9"),
        ("tab-*", "tabs", None),
        ("*", "any", "any"),
    ],
)
def test_a_client_takes_a_name_that_is_granted(allowed: str | None, asked: str | None, name: str | None) -> None:
    grant = Grant.of(subscribe=["**"], client=allowed)
    if name is None:
        with pytest.raises(InsufficientScope):
            grant.check_name(asked)
    else:
        assert grant.check_name(asked) == name


def test_a_name_that_nobody_asked_for_is_made_within_what_is_granted() -> None:
    assert Grant.of(client="tab-*").check_name(None).startswith("tab-")
    assert Grant.of().check_name(None).startswith("c-")
    assert Grant.of().check_name(None) != Grant.of().check_name(None)


@pytest.mark.parametrize(
    ("user", "client", "names"),
    [
        (None, None, ()),
        (None, "*", ("tab-7",)),
        ("42", None, ("@42", "tab-7@42")),
        ("42", "tab-*", ("tab-7", "@42", "tab-7@42")),
        ("a@b/c", None, ("@a@b/c", "tab-7@a@b/c")),
    ],
)
def test_only_names_that_are_vouched_for_are_reached(
    user: str | None, client: str | None, names: tuple[str, ...]
) -> None:
    audience = Grant.of(user=user, client=client).audience("tab-7")
    assert audience.names == names
    assert not audience.sees(frozenset(), frozenset({"tab-7"})), "whoever named itself so may be left out"


def test_idempotency_keys_of_different_callers_are_different() -> None:
    ann, bob, till = Grant.of(user="ann"), Grant.of(user="bob"), Grant(source="ann")
    keys = {grant.scope_key("k") for grant in (ann, bob, till, OPEN)}
    assert len(keys) == 4
    assert OPEN.scope_key("k") == "k"
    assert ann.scope_key("k") == Grant.of(user="ann").scope_key("k")
    assert ann.scope_key(None) is None
    with pytest.raises(InvalidIdempotencyKey):
        ann.scope_key("with space")


@pytest.mark.parametrize("user", ["", "a b", "a\u3000b", "x" * 256, "a\nb", "\u202e"])
def test_a_user_has_a_printable_name(user: str) -> None:
    with pytest.raises(InvalidClient):
        Grant.of(user=user)


def test_what_cannot_be_granted_is_refused_at_once() -> None:
    with pytest.raises(InvalidTopic):
        Grant.of(subscribe=["a/**/b"])
    with pytest.raises(InvalidClient):
        Grant.of(client="not a name")
    for lifetime in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="seconds"):
            Grant.of(expires_in=lifetime)


@pytest.mark.parametrize("expires", [float("nan"), float("inf")])
def test_a_grant_ends_at_a_time_or_never(expires: float) -> None:
    with pytest.raises(ValueError, match="Unix time"):
        Grant(expires=expires)


def test_there_are_three_kinds_of_statistics() -> None:
    with pytest.raises(ValueError, match="none, own or all"):
        Grant.of(stats="everything")  # type: ignore[arg-type]


def test_a_lifetime_is_shortened_and_never_made_longer() -> None:
    now = time.time()
    assert Grant.of(expires_in=60).within(now + 10).expires == now + 10
    short = Grant.of(expires_in=5)
    assert short.within(now + 100) is short
    assert Grant.of().within(now).expires == now
