"""The messages of a board at the node that receives them: who sent one, and a bounded queue for each reader.

    v1 <name of the sender> <message>

A message of another form is one of a newer version, or of a stranger, and is dropped.
"""

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator

from sse_app.brokers.board import MESSAGES

_FRAME = re.compile(rb"v1 ([0-9a-f]{12}) (.*)", re.DOTALL)


class _Queue:
    def __init__(self) -> None:
        self.messages: deque[bytes] = deque(maxlen=MESSAGES)  # which drops the oldest
        self.more = asyncio.Event()


class Messages:
    """The messages that a node sends and receives. ``name`` is the node's own: it does not receive what it sent."""

    def __init__(self, name: str) -> None:
        self._name = name.encode()
        self._queues: list[_Queue] = []

    def frame(self, message: bytes) -> bytes:
        """Return a message with the name of this node, as it is sent."""
        return b"v1 %s %s" % (self._name, message)

    def on_frame(self, frame: bytes) -> None:
        """Give a message that arrived to all who read."""
        if (match := _FRAME.fullmatch(frame)) is None or match[1] == self._name:
            return
        for queue in self._queues:
            queue.messages.append(match[2])
            queue.more.set()

    async def read(self) -> AsyncIterator[bytes]:
        """Return the messages that arrive from the first step on."""
        queue = _Queue()
        self._queues.append(queue)
        try:
            while True:
                await queue.more.wait()
                while queue.messages:
                    yield queue.messages.popleft()
                queue.more.clear()
        finally:
            self._queues.remove(queue)
