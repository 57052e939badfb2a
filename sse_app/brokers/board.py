"""The board: what the nodes of a hub tell one another beside the log. Entries that end by themselves, and messages.

Each broker has one (``broker.board``), kept where its log is kept. An implementation inherits nothing: see
``memory_board.py``. It opens itself when it is first used, so that it costs nothing to who only publishes.
"""

import math
import re
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Collection
from hashlib import sha256
from typing import Protocol

VALUE_BYTES = 16 * 1024
MESSAGE_BYTES = 64 * 1024
TTL = 31 * 24 * 3600.0  # seconds, the longest lifetime of an entry
MESSAGES = 1_000  # that wait for a reader; beyond them the oldest are dropped
ABSENT = 5.0  # seconds without a sign of life after which a node is gone

_KIND = re.compile(r"[a-z]+")
_KEY = re.compile(r"[a-z]+\.[A-Za-z0-9_-]{1,128}")


class Board(Protocol):
    """Entries and messages that all nodes of a hub share. It lives as long as its broker is open.

    The key of an entry is ``kind.name``: the kind of ``a-z``, the name of 1 to 128 of ``A-Z a-z 0-9 _ -``. Hash what is
    longer, or secret. A value has at most 16 KiB. An entry ends ``ttl`` seconds after it was written (more than 0, at
    most 31 days), exact to a second; from then on it is as if it had never been there, and its space becomes free.

    ``claim``, ``put``, ``replace`` and ``delete`` are atomic, and every node sees what they did once they have
    returned. Each raises ValueError for what is against these bounds, and a BrokerError when there is no answer: then
    it was done or not. It works again by itself when the broker does.
    """

    @property
    def name(self) -> str:
        """The name of this node: 12 hexadecimal digits, random, the same as long as the broker is open."""
        ...

    async def claim(self, key: str, value: bytes, ttl: float) -> bytes | None:
        """Write an entry if none is there. Return None if that was done, else the value that stands there.

        Of all who claim a key at once, on whichever nodes, exactly one gets None.
        """
        ...

    async def put(self, key: str, value: bytes, ttl: float, *, durable: bool = False) -> None:
        """Write an entry, in place of one that is there.

        ``durable`` returns only when the entry is as safe as this broker can make it: in a file it is on the disk.
        Without it a machine that loses its power may forget the entry.
        """
        ...

    async def replace(self, key: str, old: bytes, new: bytes, ttl: float) -> bool:
        """Write ``new`` in place of ``old``. Return False, and change nothing, if something else is there, or nothing.

        Of all who replace the same value at once exactly one gets True, if each has a new value of its own.
        """
        ...

    async def get(self, key: str) -> bytes | None:
        """Return the value of an entry; None without one."""
        ...

    async def delete(self, key: str) -> None:
        """Remove an entry, if it is there."""
        ...

    async def list(self, kind: str) -> dict[str, bytes]:
        """Return the entries of a kind, by their keys; with or without those that are written or removed meanwhile."""
        ...

    async def send(self, message: bytes) -> None:
        """Send a message of at most 64 KiB to all other nodes.

        It arrives at most once, and not at a node that is cut off or too slow: what must not be missed is an entry too.
        """
        ...

    def messages(self) -> AsyncIterator[bytes]:
        """Return what the other nodes send from the first step on; the messages of one node in their order.

        Each iterator gets all of them. It outlasts an outage. At most 1,000 messages wait for it, then the oldest are
        dropped. Whoever iterates ends it (by a cancellation, or ``aclose``) before the broker is closed.
        """
        ...

    def nodes(self) -> Collection[str]:
        """Return the names of the other nodes that were heard of in the last 5 seconds. It may be a moment old; this
        never fails. A node of an older version has a name too, and gets no messages."""
        ...


def hashed(text: bytes) -> str:
    """Return the name of an entry for what is too long for a name, or secret: its SHA-256, in 43 characters."""
    return urlsafe_b64encode(sha256(text).digest()).rstrip(b"=").decode()


def check_entry(key: str, value: bytes, ttl: float) -> None:
    """Raises ValueError for an entry that no board takes."""
    check_key(key)
    check_value(value)
    if not (math.isfinite(ttl) and 0 < ttl <= TTL):
        raise ValueError("An entry of the board lives for more than 0 seconds, and for 31 days at most.")


def check_key(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise ValueError("A key of the board is kind.name: a-z, a dot, 1 to 128 of A-Z a-z 0-9 _ - (hash longer ones).")


def check_kind(kind: str) -> None:
    if not _KIND.fullmatch(kind):
        raise ValueError("A kind of the board's entries has only the characters a-z.")


def kind_of(key: str) -> str:
    return key.partition(".")[0]


def check_value(value: bytes) -> None:
    if len(value) > VALUE_BYTES:
        raise ValueError("A value on the board has at most 16 KiB.")


def check_message(message: bytes) -> None:
    if len(message) > MESSAGE_BYTES:
        raise ValueError("A message over the board has at most 64 KiB; send a shorter one, or several.")
