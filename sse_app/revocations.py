"""Revocations: grants that are taken back before they expire, wholly or on some topics.

A revocation names what it takes back by one of five things that a grant has: the id of its token, its session, its
user, the key of ``auth_file`` that it came from, or the id of the key that signed its token. It lasts for a time, after
which nothing that it names can be good any more. It is stored in the log, as a record that no stream shows, and on the
board, where a node that was away finds it.
"""

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import msgspec

from sse_app.brokers.board import hashed
from sse_app.errors import (
    INVALID,
    BadInput,
    InsufficientScope,
    InvalidRevocation,
    InvalidToken,
    InvalidTopic,
    TooManyTopics,
)
from sse_app.events import RESERVED_PREFIX, Event
from sse_app.grants import Grant
from sse_app.publication import Draft, Names, Publication, check_user, names
from sse_app.topics import TopicFilter

KIND = "revoked"  # of the entries on the board
RECORD = f"{RESERVED_PREFIX}revoke"  # the event type of the records in the log, which no publisher may use
NOBODY = frozenset({"/"})  # a name that no client and no user can have, so that records are shown to nobody
VERSION = 1
LASTS_MAX = 31 * 86_400.0  # seconds, the longest lifetime on the board
NAME_MAX = 1_024  # characters
SIZE_MAX = 16 * 1024  # bytes of a record, as large as an entry on the board may be
STANDING_MAX = 100_000  # revocations at a time
SLOT = 600.0  # seconds: those that end in the same ones are removed together

# The field of a grant by which each kind of revocation finds it.
FIELDS = {"token": "token", "session": "session", "user": "user", "key": "source", "kid": "key"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """The grants whose ``kind`` is ``name`` are taken back: wholly, or on ``topics``. ``made`` and ``until`` are Unix
    time; at ``until`` it ends. ``Revocation.of`` makes one of what an administrator gave.
    """

    kind: str
    name: str
    topics: tuple[str, ...] = ()
    made: float
    until: float

    @classmethod
    def of(
        cls,
        *,
        token: str | None = None,
        session: str | None = None,
        user: str | None = None,
        key: str | None = None,
        kid: str | None = None,
        topics: Names = None,
        lasts: float | None = None,
        token_max_age: float = LASTS_MAX,
        now: float | None = None,
    ) -> Self:
        """Return the revocation of exactly one of these, from now on and for ``lasts`` seconds; without, as long as a
        token may last, LASTS_MAX at most. Raises InvalidRevocation, InvalidTopic, TooManyTopics.
        """
        if lasts is None:
            lasts = min(token_max_age, LASTS_MAX)
        given = {"token": token, "session": session, "user": user, "key": key, "kid": kid}
        found = [(kind, name) for kind, name in given.items() if name is not None]
        if len(found) != 1:
            raise InvalidRevocation("A revocation names exactly one of token, session, user, key and kid.")
        if isinstance(lasts, bool) or not isinstance(lasts, int | float) or not 1 <= lasts <= LASTS_MAX:
            raise InvalidRevocation("A revocation lasts from 1 second to 31 days.")
        ((kind, name),) = found
        patterns = names("topics", topics, InvalidTopic)
        if topics is not None and not patterns:
            raise InvalidRevocation("topics is empty, which takes nothing back; leave it out to take everything back.")
        made = time.time() if now is None else now
        revocation = cls(
            kind=kind,
            name=_check_name(kind, name),
            topics=TopicFilter.parse(patterns).patterns,
            made=made,
            until=made + lasts,
        )
        if len(revocation.encode()) > SIZE_MAX:
            raise InvalidRevocation("A revocation has at most 16 KiB; name fewer or shorter topics.")
        return revocation

    def encode(self) -> bytes:
        """Return it as it is stored: the same bytes for the same revocation."""
        stored = _Stored(VERSION, (), self.kind, self.name, self.topics, self.made, self.until)
        return msgspec.json.encode(stored, order="sorted")

    @classmethod
    def decode(cls, data: bytes | str) -> Self:
        """Return a revocation that was stored. Raises ValueError for what is none, or none of this version."""
        try:
            stored = msgspec.json.decode(data, type=_Stored)
            if not 1 <= stored.v <= VERSION or stored.crit or stored.kind not in FIELDS:
                raise ValueError("A revocation of a newer version.")
            if not (0 <= stored.made < stored.until <= stored.made + LASTS_MAX < math.inf):
                raise ValueError("A revocation lasts for 31 days at most.")
            name, topics = _check_name(stored.kind, stored.name), TopicFilter.parse(stored.topics).patterns
        except (BadInput, RecursionError):
            raise ValueError("The name or the topics of a revocation are none.") from None
        return cls(kind=stored.kind, name=name, topics=topics, made=stored.made, until=stored.until)

    @property
    def entry(self) -> str:
        """The key of its entry on the board."""
        return f"{KIND}.{hashed(self.encode())}"

    def refuses(self, grant: Grant) -> bool:
        """Return True when a request with a grant that it names is to be refused.

        Of a user, what was issued before it is taken back, so that a new login works at once. A token says in whole
        seconds when it was issued: one of the second in which the revocation was made counts as a new one.
        """
        if self.topics:
            return False
        if self.kind != "user" or grant.issued is None:
            return True
        return grant.issued + (1 if grant.issued == int(grant.issued) else 0) <= self.made

    def ends(self, grant: Grant) -> bool:
        """Return True when an open stream with a grant that it names is to end, since that is taken back wholly.

        A stream whose token is of the second of the revocation ends too; if it counts as new, its client comes back.
        """
        if self.topics:
            return False
        return self.kind != "user" or grant.issued is None or grant.issued <= self.made

    def covers(self, other: "Revocation") -> bool:
        """Return True when the other one takes nothing back that this one does not, now and later."""
        return (
            (self.kind, self.name) == (other.kind, other.name)
            and self.topics == other.topics
            and other.made <= self.made
            and other.until <= self.until
        )


class _Stored(msgspec.Struct, frozen=True):
    """A revocation as it is stored. ``crit`` names the fields that a reader must know, as in an entry of the log."""

    v: int
    crit: tuple[str, ...]
    kind: str
    name: str
    topics: tuple[str, ...]
    made: float
    until: float


def _check_name(kind: str, name: Any) -> str:
    if kind == "user":
        return check_user(name)
    if not (isinstance(name, str) and 1 <= len(name) <= NAME_MAX and name.isprintable()):
        raise InvalidRevocation(f"What a revocation names has 1 to {NAME_MAX:,} printable characters.")
    return str.__str__(name)


def _names(grant: Grant) -> Iterator[tuple[str, str]]:
    """Yield the kinds and names by which a grant can be taken back."""
    for kind, field in FIELDS.items():
        name = getattr(grant, field)
        # The source of a token's grant is its issuer, which may have the name of a key.
        if name and not (kind == "key" and grant.token is not None):
            yield kind, name


def is_revocable(grant: Grant) -> bool:
    """Return True for a grant that a revocation can name."""
    return grant.source != "open" and any(_names(grant))


# Records in the log


def record_of(revocation: Revocation) -> Draft:
    """Return the record of a revocation, as it is appended to the log."""
    return Draft(Event(revocation.encode().decode(), RECORD), to=NOBODY, is_json=True)


def is_record(publication: Publication) -> bool:
    """Return True for a record, which is shown to nobody."""
    return publication.type == RECORD and publication.to == NOBODY


# Those that stand


class Revocations:
    """The revocations that stand, as far as this node knows them. ``wall`` is the clock by which they end."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._standing: dict[tuple[str, str], list[Revocation]] = {}  # by kind and name
        self._ending: dict[int, set[tuple[str, str]]] = {}  # the kinds and names of those that end in each slot of time
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def is_full(self) -> bool:
        """True when there are as many as a node keeps."""
        return self._count >= STANDING_MAX

    def add(self, revocation: Revocation) -> Collection[Revocation]:
        """Add a revocation. Return those that it covers, which are removed: they are needed nowhere any more."""
        name = revocation.kind, revocation.name
        of_name = self._standing.setdefault(name, [])
        if any(one.covers(revocation) for one in of_name):
            return ()
        covered = [one for one in of_name if revocation.covers(one)]
        of_name[:] = [*(one for one in of_name if one not in covered), revocation]
        self._count += 1 - len(covered)
        self._ending.setdefault(_slot(revocation.until), set()).add(name)
        return covered

    def find(self, grant: Grant) -> Iterator[Revocation]:
        """Yield those that name a grant and have not ended."""
        if self._standing:
            now = self._wall()
            for name in _names(grant):
                yield from (one for one in self._standing.get(name, ()) if one.until > now)

    def check(self, grant: Grant) -> Grant:
        """Return what is left of the grant of a request. Raises InvalidToken if it was taken back wholly.

        Topics that were taken back are denied for subscribing and for publishing.
        """
        topics = list[str]()
        for revocation in self.find(grant):
            if revocation.refuses(grant):
                raise InvalidToken(INVALID, "revoked")
            topics += revocation.topics
        return deny(grant, topics) if topics else grant

    def sweep(self) -> None:
        """Free the memory of those that have ended."""
        now = self._wall()
        for slot in [slot for slot in self._ending if slot < _slot(now)]:
            for name in self._ending.pop(slot):
                of_name = self._standing.pop(name, [])
                left = [one for one in of_name if one.until > now]
                self._count -= len(of_name) - len(left)
                if left:
                    self._standing[name] = left


def _slot(time: float) -> int:
    return int(time / SLOT)


def deny(grant: Grant, topics: Iterable[str]) -> Grant:
    """Return a grant without these topics. Denied once more, it is equal. Raises InsufficientScope when too many topics
    were taken from it.
    """
    denied = tuple(topics)
    try:
        subscribe, publish = denied_in(grant.subscribe, denied), denied_in(grant.publish, denied)
    except TooManyTopics:
        raise InsufficientScope("More topics than can be told apart were taken from this credential.") from None
    return replace(grant, subscribe=subscribe, publish=publish)


def denied_in(topic_filter: TopicFilter | None, topics: Iterable[str]) -> TopicFilter | None:
    """Return a filter without these topics. Raises TooManyTopics."""
    if topic_filter is None:
        return None
    denied = tuple(sorted({*topic_filter.denied, *topics}))
    return replace(topic_filter, denied=denied)
