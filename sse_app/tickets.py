"""Tickets: a URL for one stream of one client, for an EventSource, which cannot send a header.

A ticket is random and says nothing; its grant lies on the board. EventSource reconnects to the same URL, so the first
use makes the ticket a *lease*, which lasts as long as the grant. A reconnect is let in when it brings the cookie that
the stream's head has set, or, until one did, when it comes from the same browser and address: so a connection that was
cut before its head arrived, and a page of another site, whose cookies stay at home, come back too. A URL that was
copied from a log does not.

    unused:  ticket.<hash>   a grant, for some seconds
    used:    lease.<hash>    a Lease, until the grant ends; claimed by exactly one of all who use the ticket at once
"""

import re
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import msgspec

from sse_app.brokers.board import VALUE_BYTES, Board, hashed
from sse_app.errors import BrokerUnavailable, InvalidTicket, InvalidTicketRequest, TooManyRequests
from sse_app.grants import Grant, Lease, Reconnect, Stats
from sse_app.topics import TopicFilter

TTL = 30.0  # seconds in which a ticket has to be used
TTL_MAX = 300.0
LIFETIME = 3_600.0  # seconds that the grant of a ticket lasts
LIFETIME_MAX = 86_400.0
GRANT_BYTES = VALUE_BYTES - 1_024  # of a ticket, beside which a lease has some hashes
UNUSED_MAX = 100_000  # tickets that wait for their use, of this node's making
UNUSED_OF_ONE = 1_000  # of them, that a user, or all who have no name, made for themselves
AS_THEY_ARE = ("stats", "user", "client", "expires", "source", "token", "session", "issued", "key")  # fields of a grant
WINDOW = 60.0  # seconds in which reconnects without a cookie are counted
# Of what is stored. It rises with any change: a node that did not know a field would write a lease without it.
VERSION = 1
ATTEMPTS = 10  # to write a lease that other nodes write too

REFUSED = "This ticket does not count here: get a new one."

T = TypeVar("T")

_TICKET = re.compile(r"[A-Za-z0-9_-]{22}")  # 128 random bits


class Ticket(NamedTuple):
    """A ticket: its text, the seconds within which it has to be used, and when its streams end (Unix time)."""

    ticket: str
    ttl: float
    expires: float


class _Granted(msgspec.Struct, frozen=True):
    """A grant as it lies on the board: what a ticket can carry."""

    v: int
    topics: tuple[str, ...]
    broadcasts: bool
    denied: tuple[str, ...]
    stats: Stats
    user: str | None
    client: str | None
    expires: float
    source: str
    token: str | None
    session: str | None
    issued: float | None
    key: str | None

    @classmethod
    def of(cls, grant: Grant) -> "_Granted":
        subscribe = grant.subscribe
        assert subscribe is not None
        same: dict[str, Any] = {name: getattr(grant, name) for name in AS_THEY_ARE}
        topics, broadcasts, denied = subscribe.patterns, subscribe.broadcasts, subscribe.denied
        return cls(v=VERSION, topics=topics, broadcasts=broadcasts, denied=denied, **same)

    def grant(self, lease: Lease | None = None) -> Grant:
        same: dict[str, Any] = {name: getattr(self, name) for name in AS_THEY_ARE}
        return Grant(subscribe=TopicFilter(self.topics, self.broadcasts, self.denied), lease=lease, **same)


class _Lease(msgspec.Struct, frozen=True):
    """A ticket that was used. ``agent`` and ``secret`` are hashes: of the browser and address that used it, and of the
    cookie that its head has set. ``proven``: the cookie came back once, so that from then on nothing else is let in.

    ``generation`` counts the streams. ``unproven`` of them began without the cookie since ``since`` (Unix time).
    """

    v: int
    granted: _Granted
    agent: str
    secret: str
    proven: bool = False
    generation: int = 1
    unproven: int = 0
    since: float = 0.0


class Admitted(NamedTuple):
    """The stream that a ticket opens: with this grant; its head sets the cookie ``secret``. ``replaces``: older streams
    of the ticket end.
    """

    grant: Grant
    secret: str
    replaces: bool = False


class _Unused(NamedTuple):
    """A ticket that may wait for its use: until when, and of whom."""

    until: float
    owner: str | None


class Tickets:
    """Makes tickets and lets in who has one. ``shortest`` are the seconds after which a client comes back at the
    earliest, by which two parties are told from one that comes back often. ``reconnect`` says what a second use of a
    ticket may do: resume if it is ``bound`` to the first one, ``never``, or always (``bearer``).
    """

    def __init__(
        self,
        board: Board,
        *,
        shortest: float,
        reconnect: Reconnect = "bound",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._board, self._clock = board, clock
        self._reconnect = reconnect
        self._unproven_max = WINDOW / shortest + 1
        self._unused: deque[_Unused] = deque()  # those made here, in the order in which they were
        self._owned: Counter[str | None] = Counter()  # how many of them each owner has

    async def mint(self, grant: Grant, ttl: float = TTL, owner: str | None = None) -> str:
        """Return a new ticket for this grant, which expires, to be used within ``ttl`` seconds. Of one ``owner`` only
        UNUSED_OF_ONE may wait for their use; None: who makes tickets for others. Raises TooManyRequests,
        InvalidTicketRequest for a grant that is too large, Unavailable.
        """
        now = self._clock()
        self._forget_unused(now)
        if len(self._unused) >= UNUSED_MAX or (owner is not None and self._owned[owner] >= UNUSED_OF_ONE):
            raise TooManyRequests("Too many tickets wait for their use; try again later.", self._unused[0].until - now)
        granted = msgspec.json.encode(_Granted.of(grant))
        if len(granted) > GRANT_BYTES:
            raise InvalidTicketRequest(
                "The topic filters of a ticket are too long; ask for fewer topics, or shorter ones."
            )
        ticket = secrets.token_urlsafe(16)
        await self._board.put(f"ticket.{_hash(ticket)}", granted, ttl)
        self._unused.append(_Unused(now + ttl, owner))
        self._owned[owner] += 1
        return ticket

    def _forget_unused(self, now: float) -> None:
        while self._unused and not now < self._unused[0].until <= now + TTL_MAX:  # passed, or the clock was set back
            owner = self._unused.popleft().owner
            self._owned[owner] -= 1
            if not self._owned[owner]:
                del self._owned[owner]

    async def look_at(self, ticket: str, *, cookie: str | None, agent: str) -> Grant:
        """Return the grant with which ``use`` would let this one in, and use nothing up. Raises as it does."""
        hashed = _hash(_checked(ticket))
        raw = await self._board.get(f"lease.{hashed}")
        if raw is None:
            return (await self._unused_grant(hashed)).grant()
        lease = _decode(raw, _Lease)
        if not self._may_resume(lease, _proves(lease, _secret_in(cookie)), _hash(agent)):
            raise _refused()
        return lease.granted.grant()

    async def use(self, ticket: str, *, cookie: str | None, agent: str) -> Admitted:
        """Let in who brings a ticket. ``cookie`` is what an earlier head has set in the same browser, ``agent`` the
        browser and the address. Raises InvalidTicket, Unavailable; then nothing is used up.
        """
        hashed = _hash(_checked(ticket))
        secret = _secret_in(cookie)
        raw = await self._board.get(f"lease.{hashed}")
        if raw is None:
            granted = await self._unused_grant(hashed)
            fresh = secret or secrets.token_urlsafe(16)
            lease = _Lease(VERSION, granted, _hash(agent), _hash(fresh), since=self._clock())
            raw = await self._board.claim(f"lease.{hashed}", msgspec.json.encode(lease), self._rest(granted))
            if raw is None:
                await self._board.delete(f"ticket.{hashed}")
                return Admitted(granted.grant(Lease(hashed, 1)), fresh)
        return await self._resume(hashed, raw, secret, _hash(agent))

    async def _unused_grant(self, hashed: str) -> _Granted:
        raw = await self._board.get(f"ticket.{hashed}")
        if raw is None:
            raise _refused()
        return _decode(raw, _Granted)

    async def _resume(self, hashed: str, raw: bytes, secret: str | None, agent: str) -> Admitted:
        """Let in who comes back to a lease, as it stands on the board."""
        for _ in range(ATTEMPTS):
            lease = _decode(raw, _Lease)
            proves = _proves(lease, secret)
            if not self._may_resume(lease, proves, agent):
                raise _refused()
            fresh, replaces = secret or secrets.token_urlsafe(16), not proves and self._reconnect == "bound"
            after = self._used_again(lease, proves, _hash(fresh))
            if after.unproven > self._unproven_max:
                await self._board.delete(f"lease.{hashed}")
                raise InvalidTicket(REFUSED, contested=hashed)
            if await self._board.replace(f"lease.{hashed}", raw, msgspec.json.encode(after), self._rest(lease.granted)):
                return Admitted(lease.granted.grant(Lease(hashed, after.generation)), fresh, replaces=replaces)
            again = await self._board.get(f"lease.{hashed}")
            if again is None:
                break
            raw = again
        raise _refused()

    def _may_resume(self, lease: _Lease, proves: bool, agent: str) -> bool:
        if self._reconnect != "bound":
            return self._reconnect == "bearer"
        return proves or (not lease.proven and secrets.compare_digest(agent, lease.agent))

    def _used_again(self, lease: _Lease, proves: bool, secret: str) -> _Lease:
        """Return a lease after one more stream. Without its cookie it is bound to the one that this stream's head
        sets, which may be the one that came.
        """
        now, generation = self._clock(), lease.generation + 1
        if proves or self._reconnect == "bearer":
            return msgspec.structs.replace(lease, proven=proves or lease.proven, generation=generation)
        is_new = not 0 <= now - lease.since <= WINDOW  # also when a clock was set back
        return msgspec.structs.replace(
            lease,
            secret=secret,
            generation=generation,
            unproven=1 if is_new else lease.unproven + 1,
            since=now if is_new else lease.since,
        )

    def _rest(self, granted: _Granted) -> float:
        """Return the seconds that a grant still lasts. Raises InvalidTicket for one that has ended."""
        rest = granted.expires - self._clock()
        if rest <= 0:
            raise _refused()
        return rest


def _secret_in(cookie: str | None) -> str | None:
    return cookie if cookie and _TICKET.fullmatch(cookie) else None


def _proves(lease: _Lease, secret: str | None) -> bool:
    return secret is not None and secrets.compare_digest(_hash(secret), lease.secret)


def _refused() -> InvalidTicket:
    return InvalidTicket(REFUSED)


def _checked(ticket: str) -> str:
    if not _TICKET.fullmatch(ticket):
        raise _refused()
    return ticket


def _hash(text: str) -> str:
    return hashed(text.encode(errors="surrogateescape"))


class _Version(msgspec.Struct):
    v: int


def _decode(raw: bytes, kind: type[T]) -> T:
    """Return what lies on the board. Raises BrokerUnavailable for what a newer version wrote, of which it is not known
    here what it grants: its client comes back, to another node or to this one when it was upgraded.
    """
    try:
        if msgspec.json.decode(raw, type=_Version).v <= VERSION:
            return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, RecursionError):
        raise _refused() from None
    raise BrokerUnavailable(
        "A newer version of the hub made this ticket; connect again in a few seconds, or to another node."
    )
