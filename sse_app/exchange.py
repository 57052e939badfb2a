"""The messages between the nodes of a hub: what one asks or tells all others, over the board.

A message is a JSON object with its ``kind``. It arrives at most once, so nothing depends on it alone: what must not be
missed lies on the board too. Of a kind that a node does not know it takes no notice: that is one of a newer version.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from sse_app.brokers.board import Board

logger = logging.getLogger("sse_app")

Fields = Mapping[str, Any]
Handler = Callable[[Fields], None]

_FIELDS = msgspec.json.Decoder(dict[str, Any])


class Exchange:
    """Sends this node's messages, and hands those of the others to the handlers of their kinds."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._handlers: dict[str, Handler] = {}

    def handle(self, kind: str, handler: Handler) -> None:
        """Call ``handler`` for each message of a kind. It gets fields of whatever types their sender gave them: a
        TypeError, KeyError or ValueError that it raises drops the message.
        """
        self._handlers[kind] = handler

    async def send(self, kind: str, fields: Mapping[str, object]) -> None:
        """Send a message to all other nodes. Raises ValueError for one of more than 64 KiB, BrokerError."""
        await self._board.send(msgspec.json.encode({**fields, "kind": kind}))

    async def run(self) -> None:
        """Receive messages, for ever."""
        async for message in self._board.messages():
            self._receive(message)

    def _receive(self, message: bytes) -> None:
        try:
            fields = _FIELDS.decode(message)
            if handler := self._handlers.get(fields["kind"]):
                handler(fields)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError, KeyError, ValueError) as error:
            logger.warning("a message of another node was dropped: %s", type(error).__name__)
