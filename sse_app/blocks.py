"""Blocks: who was kicked out, and is kept out for a while.

A kick is an entry on the board, where a node finds it that missed the message: it lasts as long as the block, and long
enough for every node to read it.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Literal, Self

import msgspec

from sse_app.brokers.board import Board, hashed
from sse_app.errors import BadInput, Blocked, BrokerError, LogFull
from sse_app.grants import Grant
from sse_app.publication import check_client, check_user

KIND = "block"  # of the entries on the board
VERSION = 1
LASTS_MAX = 86_400.0  # seconds
KEPT = 60.0  # seconds that an entry stays on the board at least: several times as long as between two looks at it
STANDING_MAX = 100_000  # blocks at a time
ATTEMPTS = 10  # to write an entry that other nodes write too

Who = Literal["client", "user", "lease"]


class Block(msgspec.Struct, frozen=True):
    """Streams of this client, user or ticket that began before ``made`` are to end, and until ``until`` (Unix time) it
    gets no others. ``until`` is ``made`` for a kick that keeps nobody out.
    """

    who: Who
    name: str
    made: float
    until: float
    v: int = VERSION

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return a block that was stored. Raises ValueError for what is none, or none of this version."""
        try:
            return cls.check(msgspec.json.decode(data))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise ValueError("This is no block.") from None

    @classmethod
    def check(cls, fields: object) -> Self:
        """Return a block of fields that another node gave. Raises ValueError."""
        try:
            block = msgspec.convert(fields, cls)
            block.check_name()
        except (msgspec.MsgspecError, BadInput):
            raise ValueError("This is no block.") from None
        if block.v > VERSION or not (0 <= block.made <= block.until <= block.made + LASTS_MAX < math.inf):
            raise ValueError("A block of a newer version, or one that never ends.")
        return block

    def check_name(self) -> None:
        """Raises InvalidClient for what is no name of its kind."""
        if self.who == "user":
            check_user(self.name)
        else:
            check_client(self.name)  # the hash that names a ticket is of the same characters

    @property
    def entry(self) -> str:
        """The key of its entry on the board: one for each name."""
        return f"{KIND}.{hashed(f'{self.who} {self.name}'.encode())}"

    def joined(self, other: "Block") -> "Block":
        """Return the block that does what both do: no kick shortens an earlier block."""
        return msgspec.structs.replace(self, made=max(self.made, other.made), until=max(self.until, other.until))


class Blocks:
    """The kicks and blocks that this node knows. ``wall`` is the clock by which they end."""

    def __init__(self, board: Board, wall: Callable[[], float] = time.time) -> None:
        self.bad_records = 0  # entries that are no blocks
        self._board, self._wall = board, wall
        self._known: dict[tuple[Who, str], Block] = {}
        self._seen: dict[str, bytes] = {}  # what was on the board when it was last read

    def __len__(self) -> int:
        """Return how many keep somebody out."""
        now = self._wall()
        return sum(block.until > now for block in self._known.values())

    def check(self, grant: Grant, client: str) -> None:
        """Raises Blocked for a stream that is kept out."""
        if not self._known:
            return
        until = max(self._end_of("client", client), self._end_of("user", grant.user))
        if grant.lease is not None:
            until = max(until, self._end_of("lease", grant.lease.name))
        if (rest := until - self._wall()) > 0:
            raise Blocked("An administrator has ended this stream, and keeps it out until Retry-After is over.", rest)

    def _end_of(self, who: Who, name: str | None) -> float:
        block = None if name is None else self._known.get((who, name))
        return 0.0 if block is None else block.until

    def add(self, block: Block) -> bool:
        """Keep out whom this block names, as long as it says. Return False when all of that was known."""
        name = block.who, block.name
        known = self._known.get(name)
        self._known[name] = block if known is None else block.joined(known)
        return self._known[name] != known

    def sweep(self) -> None:
        """Free the memory of those that are no longer on the board."""
        now = self._wall()
        self._known = {name: block for name, block in self._known.items() if max(block.until, block.made + KEPT) > now}

    async def put(self, block: Block) -> None:
        """Write a block on the board, where it may make an older one longer. Raises BrokerError."""
        if len(self._known) >= STANDING_MAX:
            raise LogFull("As many blocks stand as a node keeps; wait until some have ended.")
        for _ in range(ATTEMPTS):
            stands = await self._board.claim(block.entry, msgspec.json.encode(block), self._lifetime(block))
            if stands is None:
                return
            longer = self._joined(block, stands)
            if await self._board.replace(block.entry, stands, msgspec.json.encode(longer), self._lifetime(longer)):
                return
        raise BrokerError("Other nodes write the same block just now; repeat it.")

    def _joined(self, block: Block, stands: bytes) -> Block:
        try:
            return block.joined(Block.decode(stands))
        except ValueError:
            return block

    def _lifetime(self, block: Block) -> float:
        return max(block.until - self._wall(), KEPT)

    async def read(self) -> Sequence[Block]:
        """Return the blocks on the board that were not there, or not so long, when it was last read. Raises
        BrokerError.
        """
        entries = await self._board.list(KIND)
        new = [value for key, value in entries.items() if self._seen.get(key) != value]
        self._seen = entries
        return [block for block in map(self._decoded, new) if block is not None]

    def _decoded(self, value: bytes) -> Block | None:
        try:
            return Block.decode(value)
        except ValueError:
            self.bad_records += 1
            return None
