"""Grants: what a caller may do. Each request gets one, of its credential; a stream keeps it until its end.

A stream's filter is what was asked for and is granted, worked out once when it begins. It is a filter like any other,
so live delivery, replay and all that is told of the log are bounded by it, and need no second check.
"""

import math
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Literal, NamedTuple, Self

from sse_app.errors import INVALID, InsufficientScope, InvalidToken
from sse_app.narrowing import NothingInCommon, narrow
from sse_app.publication import Audience, check_client, check_idempotency_key, check_user
from sse_app.topics import TopicFilter

MADE = 12  # characters that a client's name has behind its prefix when the hub makes it
LEFT_MIN = 1.0  # seconds; a stream that ends as soon as it opens helps nobody

UNSCOPED = ("open", "publish_key")  # sources whose callers are one publisher, as they were before there were grants

Reconnect = Literal["bound", "never", "bearer"]  # what a ticket that was used opens again (tickets.py)

Stats = Literal["none", "own", "all"]
STATS: tuple[Stats, ...] = ("none", "own", "all")  # each shows more than the one before


class Lease(NamedTuple):
    """The ticket that a stream was opened with: its hash, and how many streams it had opened by then."""

    name: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a caller may do. Without arguments: nothing. ``Grant.of`` makes one of texts.

    ``publish`` and ``subscribe`` are the topics on which it may, None for none; that of ``subscribe`` says whether it
    receives publications without a topic. ``stats``: what it sees of the hub itself: nothing, counts and what its
    filter shows (``own``), or all. With ``mint`` it may make tickets for others, within its own filters; with ``admin``
    it may list and end connections, and revoke.

    ``user`` is who it is. ``client`` is the name that its streams may take, or a prefix of it that ends in ``*``: such
    a name is vouched for, so that ``to`` reaches it. None: any name, for which nobody vouches. ``expires`` is Unix
    time.

    ``source`` is where it came from: the name of a key or an issuer, ``open``, ``publish_key``, ``anonymous``,
    ``authorize``, ``ticket`` when it was made for another user; empty for what a route of the app grants. ``token`` and
    ``session`` are the ids of a token and of its session, ``issued`` is when it was made (Unix time), ``key`` the id of
    the key that signed it: all by which it can be revoked. ``lease`` is the ticket of a stream.
    """

    publish: TopicFilter | None = None
    subscribe: TopicFilter | None = None
    stats: Stats = "none"
    mint: bool = False
    admin: bool = False
    user: str | None = None
    client: str | None = None
    expires: float | None = None
    source: str = ""
    token: str | None = None
    session: str | None = None
    issued: float | None = None
    key: str | None = None
    lease: Lease | None = None

    @classmethod
    def of(
        cls,
        *,
        publish: Iterable[str] = (),
        subscribe: Iterable[str] = (),
        broadcasts: bool = True,
        stats: Stats = "none",
        mint: bool = False,
        admin: bool = False,
        user: str | None = None,
        client: str | None = None,
        expires_in: float | None = None,
    ) -> Self:
        """Return the grant of these topic filters; ``("**",)`` is everything. ``broadcasts``: a subscriber receives
        publications without a topic. ``expires_in`` is in seconds. Raises InvalidTopic, TooManyTopics, InvalidClient,
        ValueError for what is no lifetime or kind of statistics.
        """
        if expires_in is not None and not (math.isfinite(expires_in) and expires_in > 0):
            raise ValueError("expires_in is a number of seconds above 0.")
        return cls(
            publish=_filter(publish),
            subscribe=_filter(subscribe, broadcasts),
            stats=stats,
            mint=mint,
            admin=admin,
            user=user,
            client=client,
            expires=None if expires_in is None else time.time() + expires_in,
        )

    def __post_init__(self) -> None:
        if self.stats not in STATS:
            raise ValueError("stats is none, own or all.")
        if self.expires is not None and not math.isfinite(self.expires):
            raise ValueError("expires is Unix time, or None for never.")
        if self.user is not None:
            check_user(self.user)
        if self.client is not None:
            check_client(self.client[:-1] + "0" * MADE if self.client.endswith("*") else self.client)

    def check_publish(self, topics: tuple[str, ...]) -> None:
        """Raises InsufficientScope unless every one of a publication's topics is granted. One without a topic, which
        is for everyone, needs everything.
        """
        granted = self.publish
        if granted is None:
            raise InsufficientScope("This credential does not grant publishing.")
        if granted.unrestricted:
            return
        if not topics:
            raise InsufficientScope(
                "This credential grants publishing on some topics only; without a topic a publication is for everyone."
                " Give a topic."
            )
        if len(granted.matched(topics)) < len(topics):
            raise InsufficientScope("This credential does not grant publishing on every one of these topics.")

    @property
    def owner(self) -> str:
        """The name under which what this caller makes is counted and remembered: its user, else where it came from."""
        return f"@{self.user}" if self.user else self.source

    def scope_key(self, idempotency_key: str | None) -> str | None:
        """Return the key under which a publication of this caller is remembered, so that no caller meets another's
        receipt. Callers whom nobody tells apart share the keys that they give.
        """
        owner = self.owner
        if idempotency_key is None or owner in UNSCOPED:
            return idempotency_key
        check_idempotency_key(idempotency_key)
        return sha256(f"{owner}\0{idempotency_key}".encode()).hexdigest()

    def describe(self) -> dict[str, object]:
        """Return what it grants, as JSON types, for its holder. Filters are lists of patterns, None for nothing."""
        subscribe = self.subscribe
        return {
            "user": self.user,
            "client": self.client,
            "publish": _shown(self.publish),
            "subscribe": _shown(subscribe),
            "broadcasts": subscribe is not None and subscribe.broadcasts,
            "denied": [] if subscribe is None else list(subscribe.denied),
            "stats": self.stats,
            "mint": self.mint,
            "admin": self.admin,
            "expires": self.expires,
        }

    def narrow(self, asked: TopicFilter) -> TopicFilter:
        """Return the filter of what is asked for and granted. Raises InsufficientScope for what lies wholly outside,
        TooManyTopics.
        """
        if self.subscribe is None:
            raise InsufficientScope("This credential does not grant subscribing.")
        if self.subscribe.unrestricted:
            return asked
        try:
            return narrow(asked, self.subscribe)
        except NothingInCommon:
            raise InsufficientScope(
                "A topic filter that is asked for lies outside of what this credential grants; ask for other topics, or"
                " for none to have all that is granted."
            ) from None

    def check_stats(self, *, all_of_it: bool = False) -> None:
        """Raises InsufficientScope for a caller that may not see the hub's statistics, or not all of them."""
        if self.stats == "none" or (all_of_it and self.stats != "all"):
            raise InsufficientScope("This credential does not grant to see these statistics.")

    def check_admin(self) -> None:
        """Raises InsufficientScope for a caller that may not list and end connections, and revoke."""
        if not self.admin:
            raise InsufficientScope("This credential does not grant administration.")

    def check_name(self, asked: str | None) -> str:
        """Return the client name of a stream: the one asked for, else a new one. Raises InsufficientScope."""
        allowed = self.client
        if allowed is None or allowed == "*":
            return f"c-{_random()}" if asked is None else asked
        if not allowed.endswith("*"):
            if asked not in (None, allowed):
                raise InsufficientScope("This credential is for another client name.")
            return allowed
        prefix = allowed[:-1]
        if asked is None:
            return f"{prefix}{_random()}"
        if not asked.startswith(prefix):
            raise InsufficientScope("This credential is for client names with another beginning.")
        return asked

    def audience(self, client: str) -> Audience:
        """Return the names under which ``to`` and ``exclude`` of a publication may name a stream of this client."""
        if self.user is None:
            return Audience((client,)) if self.client is not None else Audience((), client)
        vouched = () if self.client is None else (client,)
        return Audience((*vouched, f"@{self.user}", f"{client}@{self.user}"), client)

    def ticket(
        self,
        *,
        now: float,
        lifetime: float,
        user: str | None = None,
        topics: Iterable[str] | None = None,
        client: str | None = None,
        stats: Stats | None = None,
    ) -> Self:
        """Return the grant of a ticket that this caller asks for, which ends after ``lifetime`` seconds or earlier: no
        more than it has, for itself, or with ``mint`` for any ``user``. Raises InsufficientScope, InvalidTopic,
        InvalidClient, TooManyTopics.
        """
        ticket = replace(
            self,
            publish=None,
            mint=False,
            admin=False,
            subscribe=self._covering(TopicFilter() if topics is None else TopicFilter.parse(topics)),
            stats=self.stats if stats is None else self._covered_stats(stats),
            client=self.client if client is None else self._covered_client(client),
        )
        if user is not None and user != self.user:
            if not self.mint:
                raise InsufficientScope("This credential makes tickets for its own user only.")
            made = replace(ticket, user=user, source="ticket", token=None, session=None, key=None, issued=now)
            ticket = made if stats else replace(made, stats="none")  # what its maker sees is not for everyone
        return ticket.within(now + lifetime)

    def _covering(self, asked: TopicFilter) -> TopicFilter:
        """Return what is asked for, all of which is granted; everything granted for nothing."""
        found = self.narrow(asked)
        if asked.patterns and found.patterns != narrow(asked, asked).patterns:
            raise InsufficientScope("A ticket grants no topics that its maker may not subscribe to.")
        return found

    def _covered_stats(self, asked: Stats) -> Stats:
        if STATS.index(asked) > STATS.index(self.stats):
            raise InsufficientScope("A ticket grants no statistics that its maker may not see.")
        return asked

    def _covered_client(self, asked: str) -> str:
        """Return a client name, or the beginning of one, which this caller may vouch for."""
        allowed = "*" if self.client is None and self.mint else self.client or ""
        if asked != allowed and not (allowed.endswith("*") and asked.startswith(allowed[:-1])):
            raise InsufficientScope("A ticket is for a client name that its maker may take, or for a part of those.")
        return asked

    def dated(self, now: float) -> Self:
        """Return this grant with the time at which it was made, which is now if it does not say. So what is granted
        after its user was revoked counts again. Raises InvalidToken for one that has expired.
        """
        if self.expires is not None and self.expires - now < LEFT_MIN:
            raise InvalidToken(INVALID, "expired")
        return self if self.issued is not None or self.user is None else replace(self, issued=now)

    def within(self, ends: float) -> Self:
        """Return this grant, which expires at this Unix time or earlier."""
        return self if self.expires is not None and self.expires <= ends else replace(self, expires=ends)


def _random() -> str:
    """Return the characters by which a client's name is its own."""
    return secrets.token_hex(MADE // 2)


def _shown(granted: TopicFilter | None) -> list[str] | None:
    return None if granted is None else list(granted.shown) or ["**"]


def _filter(patterns: Iterable[str], broadcasts: bool = True) -> TopicFilter | None:
    found = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    if not found:
        return None
    return TopicFilter((), broadcasts) if "**" in found else TopicFilter(TopicFilter.parse(found).patterns, broadcasts)


OPEN = Grant(publish=TopicFilter(), subscribe=TopicFilter(), stats="all", client="*", source="open")
