"""Connections: who is connected, on this node and on the others; and kicks, which end streams on all of them."""

import asyncio
import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import msgspec

from sse_app.asking import Asking
from sse_app.blocks import LASTS_MAX, Block, Blocks, Who
from sse_app.brokers.board import Board
from sse_app.delivery import END, OFFER, SLICE, Delivery, in_steps
from sse_app.errors import BrokerError, InvalidParameter, NoSuchClient
from sse_app.exchange import Exchange, Fields
from sse_app.grants import Grant
from sse_app.publication import check_client, check_user
from sse_app.steps import Budget, outside_tasks, slices
from sse_app.subscriber import CloseReason, Subscriber
from sse_app.topics import check_topics

LIMIT = 100  # connections that are listed, unless more or fewer are asked for
LIMIT_MAX = 1_000
TOPICS_CHARACTERS = 4_096  # of the topic filters that are listed of one stream: a message has to hold it
INTERVAL = 10.0  # seconds between two looks at the board
LOOKED_AT = 50  # streams that are listed between two looks at the budget
BACK = (200, 1_000)  # milliseconds after its block in which a client comes back: not all at once, and none too early

End = Callable[[Subscriber, CloseReason, int | None], None]


class ConnectedStream(msgspec.Struct, frozen=True, kw_only=True):
    """A stream that is open. ``topics`` are its filters in force, none for everything; of long ones only the first,
    and then ``topics_cut`` is True.

    ``address`` is where it came from, None on an open hub. ``since`` is when it began, and ``expires`` when it ends by
    itself, in whole seconds of Unix time. ``source`` is where its grant came from, ``node`` the name of the node that
    has it. Everything up to ``position`` was read or is not for it; ``behind``: it reads from the log just now, to
    catch up. ``queued_bytes`` wait for its socket.
    """

    client: str
    user: str | None
    topics: tuple[str, ...]
    topics_cut: bool
    address: str | None
    since: int
    expires: int | None
    source: str
    node: str
    position: str
    behind: bool
    queued_bytes: int


class ConnectedStreams(NamedTuple):
    """The streams that are open, newest first. ``more``: there are others, beyond the limit. ``partial`` has the names
    of the nodes that did not answer in time, so that theirs are missing.
    """

    connections: list[ConnectedStream]
    more: bool
    partial: list[str]


class Kicked(NamedTuple):
    """The outcome of a kick: ``closed`` streams were ended, on this node and those that answered, of ``nodes`` others.
    Those in ``partial`` did not answer in time: they read of the kick within some seconds.
    """

    closed: int
    nodes: int
    partial: list[str]


class Wanted(msgspec.Struct, frozen=True):
    """The streams to be listed: those of a user, of a client, whose filter matches a topic; ``limit`` of them. What is
    None is not asked for.
    """

    user: str | None = None
    client: str | None = None
    topic: str | None = None
    limit: int = LIMIT

    def check(self) -> None:
        """Raises InvalidClient, InvalidTopic, InvalidParameter."""
        if self.user is not None:
            check_user(self.user)
        if self.client is not None:
            check_client(self.client)
        if self.topic is not None:
            check_topics((self.topic,))
        if not (isinstance(self.limit, int) and 1 <= self.limit <= LIMIT_MAX):
            raise InvalidParameter(f"limit is a whole number from 1 to {LIMIT_MAX:,}.")


class Connections:
    """Lists and ends the streams of all nodes, and keeps out whom an administrator has blocked.

    ``end`` ends a stream of this node, whose client comes back after so many ms, or after the usual time for None. A
    node of an open hub that has heard of no kick never uses the board.
    """

    def __init__(
        self,
        board: Board,
        exchange: Exchange,
        delivery: Delivery,
        end: End,
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.blocks = Blocks(board, wall)
        self.asking = Asking(board, exchange)
        self.board_failures = 0
        self._board, self._delivery, self._end, self._wall = board, delivery, end, wall
        self._exchange = exchange
        self.asking.answer("streams", self._answer_streams)
        self.asking.answer("kick", self._answer_kick)
        exchange.handle("block", self._on_block)
        self.reset()

    def reset(self) -> None:
        """Be ready for another run of the node, perhaps in another event loop."""
        self._uses_board = asyncio.Event()
        # By block: the streams that its entry on the board has ended. The kick, of which a message tells, counts them.
        self._caught_up: dict[tuple[Who, str, float], list[Subscriber]] = {}

    def check(self, grant: Grant, client: str) -> None:
        """Raises Blocked for a stream that is kept out; the caller adds it in the same step."""
        if grant.source != "open" and not self._uses_board.is_set():
            self._uses_board.set()
        self.blocks.check(grant, client)

    # Listing

    async def find(self, wanted: Wanted) -> ConnectedStreams:
        """Return the streams that are open on all nodes. Raises BadInput for names and topics that are none."""
        wanted.check()
        found = await self._find_here(wanted)
        answers = await self.asking.ask("streams", wanted, ConnectedStream)
        found = sorted((*found, *answers.items), key=lambda stream: (-stream.since, stream.client))
        return ConnectedStreams(found[: wanted.limit], len(found) > wanted.limit, answers.silent)

    async def _answer_streams(self, fields: Fields) -> list[ConnectedStream]:
        wanted = msgspec.convert(fields, Wanted)
        wanted.check()
        return await self._find_here(wanted)

    async def _find_here(self, wanted: Wanted) -> list[ConnectedStream]:
        """Return the streams of this node, one more than the limit if there are as many."""
        found: list[ConnectedStream] = []
        await outside_tasks(self._list(wanted, found))
        return found

    def _list(self, wanted: Wanted, found: list[ConnectedStream]) -> Iterator[None]:
        """Add to ``found`` what is wanted, in steps."""
        budget = Budget(SLICE * OFFER)
        for part in slices((yield from self._candidates(wanted, budget)), LOOKED_AT):
            for subscriber in part:
                if not subscriber.is_over:
                    found.append(self._describe(subscriber))
                if len(found) > wanted.limit:
                    return
            if budget.spend(END * len(part)):
                yield

    def _candidates(self, wanted: Wanted, budget: Budget) -> Generator[None, None, Iterable[Subscriber]]:
        groups = None if wanted.topic is None else (yield from self._delivery.find_groups(wanted.topic, budget))
        sets = []
        if wanted.client is not None:
            sets.append(self._delivery.find_clients(wanted.client))
        if wanted.user is not None:
            sets.append(self._delivery.find_user(wanted.user))
        if not sets:
            members = self._delivery if groups is None else chain.from_iterable(group.members for group in groups)
            return list(members)
        named = set.intersection(*sets)
        if groups is None:
            return named
        return [subscriber for subscriber in named if self._delivery.group_of(subscriber) in groups]

    def _describe(self, subscriber: Subscriber) -> ConnectedStream:
        topics = _first(subscriber.filter.shown)
        return ConnectedStream(
            client=subscriber.client,
            user=subscriber.grant.user,
            topics=topics,
            topics_cut=len(topics) < len(subscriber.filter.shown),
            address=subscriber.address,
            since=subscriber.since,
            expires=subscriber.ends_at,
            source=subscriber.grant.source,
            node=self._board.name,
            position=str(subscriber.position),
            behind=subscriber.is_behind,
            queued_bytes=subscriber.queued_bytes,
        )

    # Kicking

    async def kick(self, who: Who, name: str, lasts: float = 0.0) -> Kicked:
        """End the streams of a client or user on all nodes, and keep it out for so many seconds.

        Raises NoSuchClient when no node has any and nobody is to be kept out, InvalidClient, InvalidParameter,
        BrokerError.
        """
        if not 0 <= lasts <= LASTS_MAX:
            raise InvalidParameter(f"block is a number of seconds from 0 to {LASTS_MAX:,.0f}.")
        now = self._wall()
        block = Block(who, name, now, now + lasts)
        block.check_name()
        await self.blocks.put(block)
        closed = await self._kick_here(block)
        answers = await self.asking.ask("kick", block, int)
        closed += sum(answers.items)
        if not (closed or lasts or answers.silent):
            raise NoSuchClient("No open stream has that name; GET /connections lists those there are.")
        return Kicked(closed, answers.asked, answers.silent)

    async def _answer_kick(self, fields: Fields) -> list[int]:
        return [await self._kick_here(Block.check(fields))]

    async def _kick_here(self, block: Block) -> int:
        """End the streams of this node that a kick names. Return how many that were, also before it was told."""
        ended = list[Subscriber]()
        await self._apply(block, self._streams_of(block), ended)
        return len(ended) + len(self._caught_up.pop((block.who, block.name, block.made), ()))

    def _streams_of(self, block: Block) -> list[Subscriber]:
        """Return the streams of the client or user that a block names."""
        found = self._delivery.find_user(block.name) if block.who == "user" else set[Subscriber]()
        if block.who == "client":
            found = self._delivery.find_clients(block.name)
        return [subscriber for subscriber in found if not subscriber.is_over]

    async def _apply(self, block: Block, named: Sequence[Subscriber], ended: list[Subscriber]) -> None:
        """Keep out whom a block names, and end these streams. Those that nobody ended before are added to ``ended``."""
        self._uses_board.set()
        self.blocks.add(block)  # in the same step as the search for the streams: who joins from here on is kept out
        tickets = list(self._tickets_of(named, block))
        for ticket in tickets:
            self.blocks.add(ticket)
        await outside_tasks(in_steps(lambda subscriber: self._end_for(subscriber, block, ended), named, END))
        for ticket in tickets:
            await self.blocks.put(ticket)
            await self._exchange.send("block", {"block": ticket})

    def _end_for(self, subscriber: Subscriber, block: Block, ended: list[Subscriber]) -> None:
        if subscriber.is_over:
            return  # the board may tell of a block while the streams that its kick names are being ended
        rest = round((block.until - self._wall()) * 1_000)
        self._end(subscriber, CloseReason.KICKED, rest + random.randint(*BACK) if rest > 0 else None)
        ended.append(subscriber)

    def _tickets_of(self, named: Iterable[Subscriber], block: Block) -> Iterator[Block]:
        """Yield the blocks of the tickets of a client's streams, which could come back under another name. Those of a
        user have its name.
        """
        if block.who == "client" and block.until > self._wall():
            leases = {subscriber.grant.lease for subscriber in named if subscriber.grant.lease}
            for name in {lease.name for lease in leases}:
                yield Block("lease", name, block.made, block.until)

    def _on_block(self, fields: Fields) -> None:
        self.blocks.add(Block.check(fields["block"]))

    async def run(self) -> None:
        """Look at the board from time to time, for ever: what this node has missed stands there."""
        await self._uses_board.wait()
        while True:
            self.blocks.sweep()
            self._caught_up.clear()
            try:
                for block in await self.blocks.read():
                    await self._catch_up(block)
            except BrokerError:
                self.board_failures += 1
            await asyncio.sleep(INTERVAL)

    async def _catch_up(self, block: Block) -> None:
        """Do what a block on the board says, if this node has missed it. Who came back after a kick is not kicked once
        more.
        """
        if self.blocks.add(block):
            stands = block.until > self._wall()
            named = [one for one in self._streams_of(block) if stands or one.since <= block.made]
            ended = self._caught_up[block.who, block.name, block.made] = []
            await self._apply(block, named, ended)


def _first(topics: tuple[str, ...]) -> tuple[str, ...]:
    """Return as many of the first topic filters as are listed of one stream."""
    shown, left = 0, TOPICS_CHARACTERS
    for topic in topics:
        left -= len(topic)
        if left < 0:
            break
        shown += 1
    return topics[:shown]
