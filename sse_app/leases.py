"""Leases: the open streams of each ticket, on this node and, by messages, on the others."""

import random
import sys
from collections.abc import Callable
from contextlib import suppress

from sse_app.brokers.board import Board
from sse_app.errors import BrokerError, InvalidTicket
from sse_app.exchange import Exchange, Fields
from sse_app.grants import Grant, Lease, Reconnect
from sse_app.metrics import Totals
from sse_app.subscriber import CloseReason, Subscriber
from sse_app.tickets import Admitted, Tickets

STREAMS_MAX = 4  # of one ticket on one node, such as those of a page that is open in several tabs
# Milliseconds after which the client of one too many comes back, if it is still there: more tabs than that take turns.
TURN = (10_000, 30_000)
KIND = "lease"  # of messages

End = Callable[[Subscriber, CloseReason, int], None]


class Leases:
    """Lets in who brings a ticket, and ends the streams that a newer one of the same ticket replaces.

    ``end`` ends a stream, whose client comes back after so many ms. ``shortest`` are the seconds after which a client
    comes back at the earliest: who was replaced, and is not gone, comes back in half of that. So two parties that use
    one ticket, and replace each other, show by coming back more often than one client can.
    """

    def __init__(
        self, board: Board, exchange: Exchange, totals: Totals, end: End, *, shortest: float, reconnect: Reconnect
    ) -> None:
        self.tickets = Tickets(board, shortest=shortest, reconnect=reconnect)
        self._exchange, self._outcomes, self._end = exchange, totals.tickets, end
        self._retry = round(shortest * 1000 / 2)
        self._open: dict[str, list[Subscriber]] = {}  # by ticket, in the order in which they began
        exchange.handle(KIND, self._on_message)

    async def mint(self, grant: Grant, ttl: float, owner: str | None = None) -> str:
        """Return a new ticket (``Tickets.mint``)."""
        ticket = await self.tickets.mint(grant, ttl, owner)
        self._outcomes["minted"] += 1
        return ticket

    async def use(self, ticket: str, *, cookie: str | None, agent: str) -> Admitted:
        """Let in who brings a ticket (``Tickets.use``), and end the older streams that it replaces, on all nodes."""
        try:
            admitted = await self.tickets.use(ticket, cookie=cookie, agent=agent)
        except InvalidTicket as refused:
            self._outcomes["contested" if refused.contested else "refused"] += 1
            if refused.contested:
                await self._end_everywhere(Lease(refused.contested, sys.maxsize), CloseReason.CONTESTED)
            raise
        lease = admitted.grant.lease
        assert lease is not None
        self._outcomes["used" if lease.generation == 1 else "resumed"] += 1
        if admitted.replaces:
            await self._end_everywhere(lease, CloseReason.REPLACED)
        return admitted

    def add(self, subscriber: Subscriber) -> None:
        """Note a stream that a ticket has opened. One too many ends the oldest."""
        if (lease := subscriber.grant.lease) is not None:
            streams = self._open.setdefault(lease.name, [])
            streams.append(subscriber)
            still_open = [stream for stream in streams if not stream.is_over]  # its client may be slow to go
            if len(still_open) > STREAMS_MAX:
                self._end(still_open[0], CloseReason.REPLACED, random.randint(*TURN))

    def remove(self, subscriber: Subscriber) -> None:
        """Forget a stream that was added and has ended, or that no ticket has opened."""
        if (lease := subscriber.grant.lease) is not None:
            streams = self._open[lease.name]
            streams.remove(subscriber)
            if not streams:
                del self._open[lease.name]

    async def _end_everywhere(self, lease: Lease, reason: CloseReason) -> None:
        """End the streams that are older than this one of their ticket."""
        self._end_here(lease, reason)
        # An older stream elsewhere is most often one whose connection is dead, which its node finds out by itself.
        with suppress(BrokerError):
            await self._exchange.send(KIND, {"name": lease.name, "generation": lease.generation, "reason": reason})

    def _on_message(self, fields: Fields) -> None:
        lease = Lease(str(fields["name"]), int(fields["generation"]))
        self._end_here(lease, CloseReason(fields["reason"]))

    def _end_here(self, lease: Lease, reason: CloseReason) -> None:
        for subscriber in list(self._open.get(lease.name, ())):
            older = subscriber.grant.lease
            if older is not None and older.generation < lease.generation:
                self._end(subscriber, reason, self._retry)
