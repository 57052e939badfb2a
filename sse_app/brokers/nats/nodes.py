"""The nodes of a hub and their numbers of subscribers, which each node announces once a second."""

import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

ABSENT = 5.0  # seconds without an announcement after which a node is gone


class _Announcement(msgspec.Struct):
    """The message in which a node says how many subscribers it has."""

    node: str
    subscribers: int


class _Node(NamedTuple):
    subscribers: int
    expires: float


class Nodes:
    """The other nodes of a hub. They announce themselves on a core NATS subject, which keeps nothing."""

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self._subject, self._clock = f"sse-app.{name}.nodes", clock
        self._name = secrets.token_hex(6)
        self._others: dict[str, _Node] = {}

    async def subscribe(self, client: Client) -> None:
        await client.subscribe(self._subject, cb=self._on_message)

    async def announce(self, client: Client, subscribers: int) -> None:
        await client.publish(self._subject, msgspec.json.encode(_Announcement(self._name, subscribers)))

    async def _on_message(self, message: Msg) -> None:
        with suppress(msgspec.MsgspecError, UnicodeDecodeError):
            announcement = msgspec.json.decode(message.data, type=_Announcement)
            if announcement.node != self._name:
                self._others[announcement.node] = _Node(announcement.subscribers, self._clock() + ABSENT)

    def subscribers(self) -> int:
        """Return the number of subscribers of all other nodes."""
        now = self._clock()
        self._others = {node: other for node, other in self._others.items() if other.expires > now}
        return sum(other.subscribers for other in self._others.values())
