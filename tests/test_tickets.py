"""Tickets and their leases, on a board in memory with a clock of the test's own."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pytest

from sse_app import tickets
from sse_app.brokers.memory_board import MemoryBoard
from sse_app.errors import BrokerUnavailable, InsufficientScope, InvalidTicket, InvalidTicketRequest, TooManyRequests
from sse_app.grants import Grant, Lease
from sse_app.tickets import Admitted, Tickets
from tests.support.peers import turns

BEGIN = 1_000_000.0
ANN = Grant.of(user="ann", subscribe=["a/*"], client="tab-*", stats="own").within(BEGIN + 3_600)
FIREFOX, CURL = "10.0.0.1 Firefox", "10.0.0.9 curl"
COOKIE = "c" * 22


class DistantBoard(MemoryBoard):
    """A board that answers as late as one on another machine: others use it before each answer arrives."""

    async def get(self, key: str) -> bytes | None:
        found = await super().get(key)
        await turns()
        return found

    async def claim(self, key: str, value: bytes, ttl: float) -> bytes | None:
        found = await super().claim(key, value, ttl)
        await turns()
        return found


@dataclass
class Office:
    """Tickets, and the time."""

    options: dict[str, Any] = field(default_factory=dict)
    now: float = BEGIN

    def __post_init__(self) -> None:
        self.board = DistantBoard(lambda: self.now)
        self.tickets = Tickets(self.board, shortest=2.0, clock=lambda: self.now, **self.options)

    async def mint(self, grant: Grant = ANN, ttl: float = 30.0) -> str:
        return await self.tickets.mint(grant, ttl)

    async def use(self, ticket: str, cookie: str | None = None, agent: str = FIREFOX) -> Admitted:
        return await self.tickets.use(ticket, cookie=cookie, agent=agent)

    async def look_at(self, ticket: str, cookie: str | None = None, agent: str = FIREFOX) -> Grant:
        return await self.tickets.look_at(ticket, cookie=cookie, agent=agent)

    async def refused(self, ticket: str, cookie: str | None = None, agent: str = FIREFOX) -> bool:
        try:
            await self.use(ticket, cookie, agent)
        except InvalidTicket:
            return True
        return False


async def test_a_ticket_says_nothing_and_carries_the_grant() -> None:
    office = Office()
    ticket = await office.mint()
    assert len(ticket) == 22
    assert ticket != await office.mint()
    admitted = await office.use(ticket)
    assert admitted.grant.lease == Lease(tickets._hash(ticket), 1)
    assert (admitted.grant.user, admitted.grant.client, admitted.grant.stats) == ("ann", "tab-*", "own")
    assert (admitted.grant.subscribe, admitted.grant.expires) == (ANN.subscribe, ANN.expires)
    assert not admitted.replaces
    kept = await office.board.list("lease") | await office.board.list("ticket")
    assert ticket not in repr(kept)


async def test_a_ticket_is_used_in_time_or_never() -> None:
    office = Office()
    ticket = await office.mint(ttl=30)
    office.now += 31
    assert await office.refused(ticket)


async def test_its_first_browser_comes_back_by_its_cookie_from_anywhere() -> None:
    office = Office()
    ticket = await office.mint()
    first = await office.use(ticket)
    for generation in range(2, 23):
        again = await office.use(ticket, first.secret, agent="10.9.9.9 Firefox on a train")
        assert (again.secret, again.replaces) == (first.secret, False)
        assert again.grant.lease == Lease(tickets._hash(ticket), generation)
    assert await office.refused(ticket, None), "the cookie was seen, so nothing else opens it"
    assert await office.refused(ticket, COOKIE)


async def test_who_was_cut_before_the_head_comes_back_without_a_cookie() -> None:
    office = Office()
    ticket = await office.mint()
    await office.use(ticket)
    again = await office.use(ticket)
    assert again.replaces
    third = await office.use(ticket, again.secret)
    assert not third.replaces


async def test_a_browser_that_has_a_cookie_keeps_it_for_all_its_tickets() -> None:
    office = Office()
    first, second = await office.mint(), await office.mint()
    assert (await office.use(first, COOKIE)).secret == COOKIE
    assert (await office.use(second, COOKIE)).secret == COOKIE
    assert not (await office.use(first, COOKIE, CURL)).replaces


@pytest.mark.parametrize("cookie", ["", "x", "x" * 23, "ä" * 22, "a b" * 7])
async def test_what_is_no_cookie_of_ours_is_none(cookie: str) -> None:
    office = Office()
    assert (await office.use(await office.mint(), cookie)).secret != cookie


async def test_a_copied_url_opens_nothing_and_disturbs_nobody() -> None:
    office = Office()
    ticket = await office.mint()
    first = await office.use(ticket)
    for cookie, agent in ((None, CURL), (COOKIE, CURL), (None, "10.0.0.9 Firefox"), (None, "10.0.0.1 curl")):
        assert await office.refused(ticket, cookie, agent)
    assert not (await office.use(ticket, first.secret)).replaces


async def test_of_all_who_use_a_ticket_at_once_only_one_begins_it() -> None:
    office = Office()
    ticket = await office.mint()
    agents = [f"10.0.0.{number} agent" for number in range(100)]
    refused = await asyncio.gather(*(office.refused(ticket, agent=agent) for agent in agents))
    assert refused.count(False) == 1


async def test_a_lease_ends_with_its_grant() -> None:
    office = Office()
    ticket = await office.mint()
    first = await office.use(ticket)
    office.now += 3_599
    await office.use(ticket, first.secret)
    office.now += 2
    assert await office.refused(ticket, first.secret)


@pytest.mark.parametrize("ticket", ["", "x", "x" * 22, "../../etc/passwd", "x" * 23, "é" * 22])
async def test_what_is_no_ticket_is_refused_with_the_same_words(ticket: str) -> None:
    with pytest.raises(InvalidTicket) as refused:
        await Office().use(ticket)
    assert str(refused.value) == "This ticket does not count here: get a new one."


async def test_looking_uses_nothing_up() -> None:
    office = Office()
    ticket = await office.mint()
    assert (await office.look_at(ticket, agent=CURL)).user == "ann"
    first = await office.use(ticket)
    assert (await office.look_at(ticket)).user == "ann"
    again = await office.use(ticket)
    assert (again.grant.lease, again.replaces) == (Lease(tickets._hash(ticket), 2), True), "it was not used meanwhile"
    with pytest.raises(InvalidTicket):
        await office.look_at("x" * 22)
    assert (await office.look_at(ticket, again.secret, CURL)).user == "ann"
    for cookie in (None, first.secret):
        with pytest.raises(InvalidTicket):
            await office.look_at(ticket, cookie, CURL)


async def _come_back(office: Office, ticket: str, every: float, times: int) -> int | None:
    """The number of the reconnect that was taken for a contest, None for none."""
    for number in range(times):
        office.now += every
        try:
            await office.use(ticket)
        except InvalidTicket as refused:
            return number if refused.contested == tickets._hash(ticket) else -1
    return None


async def test_a_client_that_comes_back_as_often_as_it_can_is_one_party() -> None:
    office = Office()
    ticket = await office.mint()
    await office.use(ticket)
    assert await _come_back(office, ticket, every=2.0, times=150) is None


async def test_two_parties_that_replace_each_other_lose_the_ticket_within_a_minute() -> None:
    office = Office()
    ticket = await office.mint()
    await office.use(ticket)
    number = await _come_back(office, ticket, every=1.0, times=60)
    assert number is not None
    assert number > 0
    assert await office.refused(ticket)


async def test_a_client_is_one_party_also_when_the_clock_is_set_back() -> None:
    office = Office()
    ticket = await office.mint()
    await office.use(ticket)
    for _ in range(3):
        assert await _come_back(office, ticket, every=2.0, times=25) is None
        office.now -= 600


async def test_a_ticket_that_is_never_to_come_back_opens_one_stream() -> None:
    office = Office({"reconnect": "never"})
    ticket = await office.mint()
    first = await office.use(ticket)
    assert await office.refused(ticket, first.secret)


async def test_a_bearer_ticket_opens_streams_for_whoever_has_it() -> None:
    office = Office({"reconnect": "bearer"})
    ticket = await office.mint()
    await office.use(ticket)
    for _ in range(100):
        assert not (await office.use(ticket, agent=CURL)).replaces


async def test_tickets_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets, "UNUSED_MAX", 3)
    office = Office()
    for _ in range(3):
        await office.mint(ttl=30)
    office.now += 10
    with pytest.raises(TooManyRequests) as refused:
        await office.mint()
    assert refused.value.wait == 20
    office.now += 20
    await office.mint()


async def test_a_clock_that_is_set_back_does_not_keep_tickets_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets, "UNUSED_MAX", 3)
    office = Office()
    for _ in range(3):
        await office.mint()
    office.now -= 3_600
    await office.mint()


async def test_one_who_makes_tickets_for_oneself_leaves_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets, "UNUSED_OF_ONE", 2)
    office = Office()
    for _ in range(2):
        await office.tickets.mint(ANN, 30, "@ann")
    with pytest.raises(TooManyRequests):
        await office.tickets.mint(ANN, 30, "@ann")
    await office.tickets.mint(ANN, 30, "@bob")
    for _ in range(5):
        await office.tickets.mint(ANN, 30)
    office.now += 31
    await office.tickets.mint(ANN, 30, "@ann")
    assert office.tickets._owned == {"@ann": 1}


async def test_a_grant_that_does_not_fit_on_the_board_makes_no_ticket() -> None:
    long = [f"{'x' * 2_000}/{number}" for number in range(10)]
    with pytest.raises(InvalidTicketRequest, match="too long"):
        await Office().mint(Grant.of(subscribe=long).within(BEGIN + 60))


async def test_what_a_newer_version_wrote_is_not_read_and_stays_as_it_is() -> None:
    office = Office()
    ticket = await office.mint()
    for kind, opens in (("ticket", office.look_at), ("lease", office.use)):
        key = f"{kind}.{tickets._hash(ticket)}"
        newer = msgspec.json.decode(await office.board.get(key) or b"") | {"v": 2, "only": ["a/1"]}
        await office.board.put(key, msgspec.json.encode(newer), 60)
        for work in (office.look_at, office.use):
            with pytest.raises(BrokerUnavailable, match="newer version"):
                await work(ticket)
        assert await office.board.get(key) == msgspec.json.encode(newer)
        await office.board.put(key, msgspec.json.encode(newer | {"v": 1}), 60)
        await opens(ticket)
        await office.use(ticket)


@pytest.mark.parametrize("junk", [b"", b"{}", b'{"v": 1}', b'{"v": 1, "x": ' + b"[" * 15_000, b"\xff", b'{"v": "1"}'])
async def test_junk_on_the_board_opens_nothing(junk: bytes) -> None:
    office = Office()
    for kind in ("ticket", "lease"):
        await office.board.put(f"{kind}.{tickets._hash('x' * 22)}", junk, 60)
        assert await office.refused("x" * 22)


# What a caller may put into a ticket


MINT = Grant.of(subscribe=["a/**"], mint=True, stats="own", publish=["a/**"], admin=True)
USER = Grant.of(user="ann", subscribe=["a/*", "b"], client="tab-*")


def made(grant: Grant, **asked: Any) -> Grant:
    return grant.ticket(now=BEGIN, lifetime=3_600, **asked)


@pytest.mark.parametrize(
    ("grant", "asked"),
    [
        (USER, {"topics": ["c"]}),
        (USER, {"topics": ["a/**"]}),
        (USER, {"topics": ["**"]}),
        (USER, {"topics": ["a/1", "c"]}),
        (USER, {"user": "bob"}),
        (USER, {"stats": "own"}),
        (USER, {"client": "till-3"}),
        (USER, {"client": "*"}),
        (MINT, {"topics": ["b"]}),
        (MINT, {"stats": "all"}),
        (Grant.of(user="ann", subscribe=["a"]), {"client": "till-3"}),
        (Grant.of(publish=["a"]), {}),
    ],
)
def test_nobody_makes_a_ticket_for_more_than_it_has(grant: Grant, asked: dict[str, Any]) -> None:
    with pytest.raises(InsufficientScope):
        made(grant, **asked)


@pytest.mark.parametrize(
    ("grant", "asked", "check"),
    [
        (USER, {}, lambda ticket: ticket.subscribe == USER.subscribe and ticket.user == "ann"),
        (USER, {"topics": ["a/1"]}, lambda ticket: ticket.subscribe.shown == ("a/1",)),
        (USER, {"user": "ann"}, lambda ticket: ticket.user == "ann"),
        (USER, {"client": "tab-7"}, lambda ticket: ticket.client == "tab-7"),
        (USER, {"client": "tab-7*"}, lambda ticket: ticket.client == "tab-7*"),
        (MINT, {"user": "bob", "client": "till-3"}, lambda ticket: (ticket.user, ticket.client) == ("bob", "till-3")),
        (MINT, {"topics": ["a/1/**"]}, lambda ticket: ticket.subscribe.shown == ("a/1/**",)),
        (MINT, {"stats": "none"}, lambda ticket: ticket.stats == "none"),
        (MINT, {"user": "bob"}, lambda ticket: ticket.stats == "none"),
        (MINT, {"user": "bob", "stats": "own"}, lambda ticket: ticket.stats == "own"),
    ],
)
def test_a_ticket_is_for_a_part_of_what_its_maker_has(
    grant: Grant, asked: dict[str, Any], check: Callable[[Grant], bool]
) -> None:
    ticket = made(grant, **asked)
    assert check(ticket)
    assert (ticket.publish, ticket.mint, ticket.admin) == (None, False, False)
    assert ticket.expires == BEGIN + 3_600


def test_a_ticket_for_another_is_not_withdrawn_with_its_makers_credential_and_one_for_oneself_is() -> None:
    server = replace(MINT, source="till", token="t-1", session="s-1", key="k-1")
    other = made(server, user="bob")
    assert (other.source, other.token, other.session, other.key, other.issued) == ("ticket", None, None, None, BEGIN)
    ann = replace(USER, source="issuer", token="t-2", session="s-2", issued=5.0)
    own = made(ann)
    assert (own.source, own.token, own.session, own.issued) == ("issuer", "t-2", "s-2", 5.0)


def test_a_ticket_outlives_no_grant_of_its_maker() -> None:
    assert made(USER.within(BEGIN + 60)).expires == BEGIN + 60
