"""Claims: what a verified token says that its bearer may do.

There are three sources of it, of which the first that is enabled and present counts, alone:

- ``sse``: ``{"publish": [], "subscribe": ["users/42/**"], "stats": "own", "client": "tab-*"}``
- ``scope`` or ``scp`` (RFC 9068, RFC 8693): ``sse:subscribe:users/42/** sse:publish:rooms/7``, percent-encoded
- ``mercure``, or ``authorization_details`` of its type (RFC 9396): what tokens for a Mercure hub have

One malformed entry makes the token invalid as a whole: a token that is accepted in part grants what nobody has written.
What is unknown grants nothing: other claims, other scopes, and other members of ``sse``, which a newer hub may know.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypedDict, cast
from urllib.parse import unquote

from sse_app.errors import BadInput
from sse_app.grants import STATS, Grant, Stats
from sse_app.topics import TopicFilter, check_topics

Claims = Mapping[str, object]

PATTERNS_MAX = 50  # topic filters in one list

_PERCENT = re.compile("%(?![0-9A-Fa-f]{2})")  # a percent sign that encodes nothing


class InvalidClaims(ValueError):
    """A claim of ours that is malformed. The text says which; it is for the log."""


class _Granted(TypedDict, total=False):
    """The arguments of Grant.of that a source may give."""

    publish: Iterable[str]
    subscribe: Iterable[str]
    broadcasts: bool
    stats: Stats
    mint: bool
    admin: bool
    client: str | None


def grant_of(claims: Claims, sources: Sequence[str], user: str | None) -> Grant:
    """Return the grant of a token's claims; ``sources`` are the enabled ones, in their order. Raises InvalidClaims."""
    granted = next(filter(lambda found: found is not None, (SOURCES[name](claims) for name in sources)), None)
    try:
        return Grant.of(user=user, **(granted or {}))
    except BadInput:
        raise InvalidClaims("the name of its user or client is none") from None


def _of_sse(claims: Claims) -> _Granted | None:
    if "sse" not in claims:
        return None
    claim = claims["sse"]
    if not isinstance(claim, dict):
        raise InvalidClaims("sse is no object")
    return {
        "publish": _patterns(claim.get("publish", [])),
        "subscribe": _patterns(claim.get("subscribe", [])),
        "broadcasts": _truth(claim.get("broadcasts", True)),
        "stats": _stats(claim.get("stats", "none")),
        "mint": _truth(claim.get("mint", False)),
        "admin": _truth(claim.get("admin", False)),
        "client": _client(claim.get("client")),
    }


def _of_scope(claims: Claims) -> _Granted | None:
    name = next((name for name in ("scope", "scp") if name in claims), None)
    if name is None:
        return None
    given = claims[name]
    scopes = given.split(" ") if isinstance(given, str) else given
    if not (isinstance(scopes, list) and all(isinstance(scope, str) for scope in scopes)):
        raise InvalidClaims("scope is neither a text nor a list of texts")
    found: dict[str, list[str]] = {"publish": [], "subscribe": [], "stats": [], "mint": [], "admin": []}
    for scope in scopes:
        ours, _, rest = scope.partition(":")
        what, _, value = rest.partition(":")
        if ours == "sse" and what in found:
            found[what].append(_decoded(value))
    if any(found["mint"]) or any(found["admin"]):
        raise InvalidClaims("a scope to mint or administer has something behind it")
    return {
        "publish": _patterns(found["publish"]),
        "subscribe": _patterns(found["subscribe"]),
        "stats": _widest(map(_stats, found["stats"])),
        "mint": bool(found["mint"]),
        "admin": bool(found["admin"]),
    }


def _of_mercure(claims: Claims) -> _Granted | None:
    """Return what Mercure's older claim grants, else what its authorization details do. A topic there is exact, and
    ``*`` alone is every topic; URI templates and URL patterns have no equal here.
    """
    if "mercure" in claims:
        claim = claims["mercure"]
        if not isinstance(claim, dict):
            raise InvalidClaims("mercure is no object")
        return {"publish": _exact(claim.get("publish", [])), "subscribe": _exact(claim.get("subscribe", []))}
    if "authorization_details" not in claims:
        return None
    details = claims["authorization_details"]
    if not isinstance(details, list):
        raise InvalidClaims("authorization_details is no list")
    ours = [detail for detail in details if isinstance(detail, dict) and detail.get("type") == "mercure"]
    if not ours:
        return None
    return {"publish": _exact(_detailed(ours, "publish")), "subscribe": _exact(_detailed(ours, "subscribe"))}


SOURCES: Mapping[str, Callable[[Claims], _Granted | None]] = {
    "sse": _of_sse,
    "scope": _of_scope,
    "mercure": _of_mercure,
}


def _detailed(details: Iterable[dict[str, object]], action: str) -> list[str]:
    """Return the topics for which authorization details of Mercure's type grant this action."""
    return [topic for detail in details for topic in _topics_of(detail) if action in cast(list[str], detail["actions"])]


def _topics_of(detail: dict[str, object]) -> Iterator[str]:
    actions, topics = detail.get("actions"), detail.get("topics")
    if not (isinstance(actions, list) and actions and all(action in ("publish", "subscribe") for action in actions)):
        raise InvalidClaims("the actions of an authorization detail are publish and subscribe")
    if not (isinstance(topics, list) and topics):
        raise InvalidClaims("an authorization detail has topics")
    for topic in topics:
        match topic:
            case {"match": str(text), **rest} if str(rest.get("match_type", "exact")).lower() == "exact":
                yield text
            case _:
                raise InvalidClaims("a topic of an authorization detail is not exact")


def _exact(given: object) -> tuple[str, ...]:
    """Return Mercure's topics as patterns: texts without wildcards, and ``*``."""
    return tuple("**" if topic == "*" else _exact_topic(topic) for topic in _texts(given))


def _exact_topic(topic: str) -> str:
    if "{" in topic:
        raise InvalidClaims("a topic for Mercure is a template")
    try:
        check_topics((topic,))  # which refuses wildcards: there an asterisk is a character like any other
    except BadInput:
        raise InvalidClaims("a topic for Mercure is none here") from None
    return topic


def _patterns(given: object) -> tuple[str, ...]:
    patterns = _texts(given)
    try:
        TopicFilter.parse(patterns)  # also beside ``**``, where Grant.of looks at no other
    except BadInput:
        raise InvalidClaims("a topic filter is none") from None
    return patterns


def _texts(given: object) -> tuple[str, ...]:
    if not (isinstance(given, list) and all(isinstance(text, str) for text in given)):
        raise InvalidClaims("topic filters are no list of texts")
    if len(given) > PATTERNS_MAX:
        raise InvalidClaims(f"there are more than {PATTERNS_MAX} topic filters")
    return tuple(given)


def _decoded(pattern: str) -> str:
    if _PERCENT.search(pattern):
        raise InvalidClaims("a scope is not percent-encoded")
    try:
        return unquote(pattern, errors="strict")
    except UnicodeDecodeError:
        raise InvalidClaims("a scope is not UTF-8") from None


def _stats(given: object) -> Stats:
    if given not in STATS:
        raise InvalidClaims("stats is neither none, own nor all")
    return given


def _widest(given: Iterable[Stats]) -> Stats:
    return max(given, key=STATS.index, default="none")


def _truth(given: object) -> bool:
    if not isinstance(given, bool):
        raise InvalidClaims("broadcasts, mint or admin is neither true nor false")
    return given


def _client(given: object) -> str | None:
    if not (given is None or isinstance(given, str)):
        raise InvalidClaims("client is no text")
    return given
