"""Revoking: grants that are taken back end their streams on every node, in the order of the log.

No publication that is published after a revocation was acknowledged is sent to a stream whose grant that took back, by
any node:

    the node that is asked   writes an entry on the board, then a record to the log, then acknowledges
    each node, of its tail   first ends the streams that the records of a batch name, then lets the batch be read
                             (``Delivery.reached``), then offers it
    after a break            takes over the entries on the board before anything behind the break may be read: of each
                             record that the tail has left out, or that another log lost, the entry was there before
    a stream that joins      has its grant compared with what the node knows, and is registered in the same step
"""

import asyncio
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import NamedTuple

from sse_app.backoff import Backoff
from sse_app.brokers import Broker
from sse_app.delivery import END, OFFER, SLICE, Delivery
from sse_app.errors import BrokerError, LogFull, TooManyTopics
from sse_app.grants import Grant
from sse_app.publication import Position, Publication
from sse_app.revocations import (
    KIND,
    LASTS_MAX,
    RECORD,
    Revocation,
    Revocations,
    denied_in,
    is_record,
    is_revocable,
    record_of,
)
from sse_app.steps import Budget, outside_tasks, slices
from sse_app.subscriber import CloseReason, Subscriber
from sse_app.topics import TopicFilter

logger = logging.getLogger("sse_app")

INTERVAL = 10.0  # seconds between two looks at the board
RETRY = (0.2, 2.0)  # seconds: the first and the longest pause between attempts at a board that gives no answer
LOOKED_AT = 50  # streams or entries in a step, when none of them ends

End = Callable[[Subscriber, CloseReason], None]


class Revoked(NamedTuple):
    """The position of a revocation's record in the log, and how many streams ended on this node at once."""

    position: Position
    closed: int


class Revoking:
    """Takes grants back on a node. ``end`` ends one stream; ``wall`` is the clock by which revocations end.

    A node that has met no grant that can be taken back never uses the board.
    """

    def __init__(self, broker: Broker, delivery: Delivery, end: End, *, wall: Callable[[], float] = time.time) -> None:
        self.revocations = Revocations(wall)
        self.bad_records = 0  # records and entries that are no revocations
        self.board_failures = 0
        self._broker, self._delivery, self._end, self._wall = broker, delivery, end, wall
        self.reset()

    def reset(self) -> None:
        """Be ready for another run of the node, perhaps in another event loop."""
        self._uses_board = False  # from the begin of the first check on, so that nothing is missed from then on
        self._has_read_board = False  # once: before that no grant can be compared
        self._beginning = asyncio.Lock()
        self._seen: set[str] = set()  # the entries that were on the board when it was last read

    # Requests

    @property
    def settled(self) -> bool:
        """True while it is known that nothing is taken back: then no grant needs a check. Each connect asks twice."""
        return self._has_read_board and not self.revocations

    async def check(self, grant: Grant) -> Grant:
        """Return what is left of a grant, as far as this node knows; the caller uses it in the same step. Raises
        InvalidToken, InsufficientScope, and a BrokerError when that cannot be told.
        """
        if (left := self.check_now(grant)) is not None:
            return left
        self._uses_board = True
        async with self._beginning:
            if not self._has_read_board:
                await self._read_board()
                self._has_read_board = True
        return self.revocations.check(grant)

    def check_now(self, grant: Grant) -> Grant | None:
        """Return what ``check`` does, None when that has to read the board first. Raises InvalidToken,
        InsufficientScope.
        """
        if self.settled or not is_revocable(grant):
            return grant
        return self.revocations.check(grant) if self._has_read_board else None

    async def revoke(self, revocation: Revocation) -> Revoked:
        """Take grants back on all nodes.

        Raises Unavailable when other nodes may not have heard of it: then it is to be repeated.
        """
        if self.revocations.is_full:
            raise LogFull(
                "As many revocations stand as a node keeps; make them shorter, or wait until some have ended."
            )
        lifetime = min(revocation.until - self._wall(), LASTS_MAX)
        self._seen.add(revocation.entry)  # else who reads the board meanwhile ends the streams, and they go uncounted
        try:
            await self._broker.board.put(revocation.entry, revocation.encode(), lifetime, durable=True)
        except BaseException:
            self._seen.discard(revocation.entry)  # it may stand there all the same
            raise
        covered, ended = self.revocations.add(revocation), list[Subscriber]()
        await outside_tasks(self._end_named([revocation], ended))
        position = await self._broker.publish(record_of(revocation))
        await self._remove(covered)
        return Revoked(position, len(ended))

    async def _remove(self, covered: Iterable[Revocation]) -> None:
        """Remove entries that another one covers. They end by themselves, if that fails."""
        try:
            for revocation in covered:
                await self._broker.board.delete(revocation.entry)
        except BrokerError:
            self.board_failures += 1

    # The log

    def apply(self, publications: Sequence[Publication]) -> Generator[None, None, Sequence[Publication]]:
        """Take back what the records among these publications name, in steps. Return the others."""
        if RECORD not in [publication.type for publication in publications]:  # the least that can be done for each
            return publications
        found = [self._decoded(item) for item in publications if is_record(item)]
        yield from self._take_over([revocation for revocation in found if revocation is not None])
        return [item for item in publications if not is_record(item)]

    def _decoded(self, stored: Publication | bytes) -> Revocation | None:
        try:
            return Revocation.decode(stored if isinstance(stored, bytes) else stored.event.data)
        except ValueError:
            self.bad_records += 1
            if self.bad_records.bit_count() == 1:  # 1, 2, 4, ...: few lines for many of them
                logger.warning("bad_envelope: revocations cannot be read, and are ignored, %d so far", self.bad_records)
            return None

    def _take_over(self, found: Sequence[Revocation]) -> Iterator[None]:
        """Add revocations, and end the streams that they name, in steps."""
        now = self._wall()
        standing = [revocation for revocation in found if revocation.until > now]
        for revocation in standing:
            self.revocations.add(revocation)
        # A stream that joins from here on has its grant compared with all that were just added.
        yield from self._end_named(standing, [])

    def _end_named(self, revocations: Sequence[Revocation], ended: list[Subscriber]) -> Iterator[None]:
        """End the streams that these revocations name, in steps, and add them to ``ended``."""
        named = Revocations(self._wall)
        for revocation in revocations:
            named.add(revocation)
        if revocations:
            concerned = self._concerned(revocations)
            yield from self._end_steps(lambda one: _reason_of(one, named.find(one.grant)), concerned, ended)

    def _concerned(self, revocations: Sequence[Revocation]) -> Iterable[Subscriber]:
        """Return the streams among which those are that revocations name: of users found by name, else all."""
        if all(revocation.kind == "user" for revocation in revocations):
            return set[Subscriber]().union(*(self._delivery.find_user(revocation.name) for revocation in revocations))
        return list(self._delivery)

    async def end_all(self, covers: Callable[[Grant], bool], reason: CloseReason) -> int:
        """End the streams whose grants are covered, in steps. Return how many there were."""
        ended = list[Subscriber]()
        streams = list(self._delivery)
        await outside_tasks(self._end_steps(lambda one: reason if covers(one.grant) else None, streams, ended))
        return len(ended)

    def _end_steps(
        self,
        reason_of: Callable[[Subscriber], CloseReason | None],
        subscribers: Iterable[Subscriber],
        ended: list[Subscriber],
    ) -> Iterator[None]:
        budget = Budget(SLICE * OFFER)
        for part in slices(subscribers, LOOKED_AT):
            before = len(ended)
            for subscriber in part:
                if not subscriber.is_over and (reason := reason_of(subscriber)) is not None:
                    self._end(subscriber, reason)
                    ended.append(subscriber)
            if budget.spend(len(part) + END * (len(ended) - before)):
                yield

    # The board

    async def read_again(self) -> None:
        """Take over what is on the board, however long that takes: nothing more may be read before."""
        backoff = Backoff(*RETRY)
        while self._uses_board:
            try:
                await self._read_board()
                break
            except BrokerError:
                self.board_failures += 1
            await asyncio.sleep(backoff.next())

    async def run(self) -> None:
        """Look at the board from time to time, for ever: what its node has missed, a new one finds there too."""
        while True:
            await asyncio.sleep(INTERVAL)
            self.revocations.sweep()
            if self._uses_board:
                try:
                    await self._read_board()
                except BrokerError:
                    self.board_failures += 1

    async def _read_board(self) -> None:
        entries = await self._broker.board.list(KIND)
        new = [value for key, value in entries.items() if key not in self._seen]
        await outside_tasks(self._take_entries(new))
        self._seen = set(entries)

    def _take_entries(self, values: Sequence[bytes]) -> Iterator[None]:
        for part in slices(values, SLICE):
            found = map(self._decoded, part)
            yield from self._take_over([revocation for revocation in found if revocation is not None])
            yield


def _reason_of(subscriber: Subscriber, revocations: Iterable[Revocation]) -> CloseReason | None:
    """Return why a stream is to end for revocations that name its grant, None when it is not."""
    changed = None
    for revocation in revocations:
        if revocation.ends(subscriber.grant):
            return CloseReason.REVOKED
        if revocation.topics and _is_changed(subscriber.filter, revocation.topics):
            changed = CloseReason.CHANGED
    return changed


def _is_changed(topic_filter: TopicFilter, topics: Iterable[str]) -> bool:
    try:
        return denied_in(topic_filter, topics) != topic_filter
    except TooManyTopics:
        return True  # its client comes back, and is told so
