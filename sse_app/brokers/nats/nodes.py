"""The nodes of a hub and their numbers of subscribers, which each node announces once a second."""

import secrets
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import NamedTuple

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

from sse_app.brokers.board import ABSENT


class _Announcement(msgspec.Struct, omit_defaults=True):
    """The message in which a node says how many subscribers it has, and if it hears what is sent over the board."""

    node: str
    subscribers: int
    hears: bool = False


class _Node(NamedTuple):
    subscribers: int
    hears: bool
    expires: float


class Nodes:
    """The other nodes of a hub. They announce themselves on a core NATS subject, which keeps nothing."""

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self._subject, self._clock = f"sse-app.{name}.nodes", clock
        self.name = secrets.token_hex(6)
        self.hears = False  # what is sent over the board
        self._others: dict[str, _Node] = {}

    async def subscribe(self, client: Client) -> None:
        await client.subscribe(self._subject, cb=self._on_message)

    async def announce(self, client: Client, subscribers: int) -> None:
        await client.publish(self._subject, msgspec.json.encode(_Announcement(self.name, subscribers, self.hears)))

    async def leave(self, client: Client) -> None:
        """Tell the other nodes that this one is gone."""
        await client.publish(self._subject, msgspec.json.encode(_Announcement(self.name, 0)))

    async def _on_message(self, message: Msg) -> None:
        with suppress(msgspec.MsgspecError, UnicodeDecodeError):
            said = msgspec.json.decode(message.data, type=_Announcement)
            if said.node != self.name:
                self._others[said.node] = _Node(said.subscribers, said.hears, self._clock() + ABSENT)

    def subscribers(self) -> int:
        """Return the number of subscribers of all other nodes."""
        return sum(other.subscribers for other in self._known().values())

    def names(self) -> Collection[str]:
        """Return the names of the other nodes that hear the board, or have subscribers: a program that only publishes
        does neither, a node of an older version only the latter."""
        return [name for name, other in self._known().items() if other.hears or other.subscribers]

    def _known(self) -> dict[str, _Node]:
        now = self._clock()
        self._others = {name: other for name, other in self._others.items() if other.expires > now}
        return self._others
