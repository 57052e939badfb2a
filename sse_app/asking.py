"""Asking: a question to all other nodes of a hub, and their answers, over the board.

    ask      who asks, what, and the id of the question            to all
    answer   the same id, in as many messages as the items need    from each

A message arrives at most once. So who asks waits for a second, and is told whose answer is missing, or a part of it.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from sse_app.brokers.board import Board
from sse_app.errors import BrokerError, SSEAppError
from sse_app.exchange import Exchange, Fields

logger = logging.getLogger("sse_app")

WINDOW = 1.0  # seconds that the other nodes have to answer
PART_BYTES = 32 * 1024  # of items in a message, which is as long as one of them more; it may have 64 KiB
WAITING_MAX = 100  # questions of other nodes that wait for their answer; more are not answered

T = TypeVar("T")

Answering = Callable[[Fields], Awaitable[Sequence[object]]]


class Answers(NamedTuple, Generic[T]):
    """The items that other nodes answered. Of ``asked`` nodes those in ``silent`` have not answered, or not wholly."""

    items: list[T]
    asked: int
    silent: list[str]


class _Question(Generic[T]):
    """A question that waits for the answers of these nodes, whose items are of this kind."""

    def __init__(self, nodes: Iterable[str], kind: type[T]) -> None:
        self.items: list[T] = []
        self.missing = set(nodes)
        self.answered = asyncio.Event()
        self._kind = kind
        self._parts: dict[str, int] = {}  # that have come, by node
        self._note_missing()

    def take(self, node: str, parts: int, items: list[Any]) -> None:
        """Take a part of a node's answer, which has so many. Raises msgspec.ValidationError for items of another
        kind.
        """
        self.items += [msgspec.convert(item, self._kind) for item in items]
        self._parts[node] = self._parts.get(node, 0) + 1
        if self._parts[node] == parts:
            self.missing.discard(node)
            self._note_missing()

    def _note_missing(self) -> None:
        if not self.missing:
            self.answered.set()


class Asking:
    """Asks the other nodes, and answers them."""

    def __init__(self, board: Board, exchange: Exchange) -> None:
        self._board, self._exchange = board, exchange
        self._answering: dict[str, Answering] = {}  # by subject
        self._open: dict[str, _Question[Any]] = {}  # by id
        self._asked: asyncio.Queue[Fields] = asyncio.Queue(WAITING_MAX)
        exchange.handle("ask", self._on_question)
        exchange.handle("answer", self._on_answer)

    def answer(self, subject: str, answering: Answering) -> None:
        """Answer questions on a subject with the items that ``answering`` returns. It gets fields of whatever types
        their sender gave them: a TypeError, KeyError or ValueError that it raises leaves the question unanswered. An
        item has at most 20 KiB of JSON.
        """
        self._answering[subject] = answering

    async def ask(self, subject: str, about: object, kind: type[T]) -> Answers[T]:
        """Ask all other nodes, and wait until all of whom this node has heard have answered with items of this kind,
        for a second at most.
        """
        nodes = self._board.nodes()
        question, asked = _Question(nodes, kind), len(nodes)
        identity = secrets.token_hex(8)
        self._open[identity] = question
        try:
            async with asyncio.timeout(WINDOW):
                await self._exchange.send(
                    "ask", {"id": identity, "node": self._board.name, "subject": subject, "about": about}
                )
                await question.answered.wait()
        except (TimeoutError, BrokerError):
            pass  # who has not answered is in `missing`
        finally:
            del self._open[identity]
        return Answers(question.items, asked, sorted(question.missing))

    def _on_answer(self, fields: Fields) -> None:
        if question := self._open.get(fields["id"]):
            question.take(str(fields["node"]), int(fields["parts"]), fields["items"])

    def _on_question(self, fields: Fields) -> None:
        if fields["subject"] in self._answering and not self._asked.full():
            self._asked.put_nowait(fields)

    async def run(self) -> None:
        """Answer the questions of other nodes, one after the other, for ever."""
        self._asked = asyncio.Queue(WAITING_MAX)  # the one before may be of an event loop that has ended
        while True:
            fields = await self._asked.get()
            try:
                await self._answer(fields)
            except (SSEAppError, msgspec.MsgspecError, TypeError, KeyError, ValueError) as error:
                logger.warning("a question of another node was not answered: %s", type(error).__name__)

    async def _answer(self, fields: Fields) -> None:
        items = await self._answering[fields["subject"]](fields["about"])
        parts = _in_parts(items)
        for part in parts:
            await self._exchange.send(
                "answer", {"id": fields["id"], "node": self._board.name, "parts": len(parts), "items": part}
            )


def _in_parts(items: Iterable[object]) -> list[list[msgspec.Raw]]:
    """Return these items in parts, each for one message; one part without any for no items."""
    parts: list[list[msgspec.Raw]] = [[]]
    size = 0
    for encoded in map(msgspec.json.encode, items):
        if size > PART_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(msgspec.Raw(encoded))
        size += len(encoded) + 1  # and a comma
    return parts
