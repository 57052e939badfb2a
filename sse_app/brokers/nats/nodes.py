"""The nodes of a hub, and how many subscribers each has: what they tell one another once a second."""

import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

FORGET = 5.0  # seconds after which a node that says nothing is gone


class _Word(msgspec.Struct):
    """What a node tells of itself."""

    node: str
    subscribers: int


class _Told(NamedTuple):
    subscribers: int
    expires: float


class Nodes:
    """The others, as far as they said. Not kept anywhere: a core NATS subject of the hub's."""

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self._subject, self._clock = f"sse-app.{name}.nodes", clock
        self._name = secrets.token_hex(6)
        self._others: dict[str, _Told] = {}

    async def listen(self, client: Client) -> None:
        await client.subscribe(self._subject, cb=self._hear)

    async def tell(self, client: Client, subscribers: int) -> None:
        await client.publish(self._subject, msgspec.json.encode(_Word(self._name, subscribers)))

    async def _hear(self, message: Msg) -> None:
        with suppress(msgspec.MsgspecError, UnicodeDecodeError):
            word = msgspec.json.decode(message.data, type=_Word)
            if word.node != self._name:
                self._others[word.node] = _Told(word.subscribers, self._clock() + FORGET)

    def subscribers(self) -> int:
        """Of all others together."""
        now = self._clock()
        self._others = {node: told for node, told in self._others.items() if told.expires > now}
        return sum(told.subscribers for told in self._others.values())
