"""The board in Redis: its entries in a hash and two sorted sets, its messages on a channel.

claim, put, replace, get, delete, list -> a queue of commands -> board.lua
send -> the same queue -> PUBLISH -> the channel, which each node reads on a connection of its own -> messages()
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import ResponseError

from sse_app.backoff import Backoff
from sse_app.brokers.board import check_entry, check_key, check_kind, check_message, check_value
from sse_app.brokers.messages import Messages
from sse_app.brokers.redis.connection import FAILURES, Argument, CommandQueue, connected, execute, in_time
from sse_app.brokers.redis.entries import microseconds
from sse_app.errors import BrokerError, BrokerUnavailable, LogFull

logger = logging.getLogger("sse_app")

DEADLINE = (
    1.5  # seconds for a command, from the call to its answer: a stream begins, or is told to come back, within 2 s
)
COMMANDS_AT_ONCE = 64  # in one write; with the largest values Redis answers them in some 5 ms
PAGE_COUNT, PAGE_BYTES = 256, 256 * 1024  # of entries that are listed at once, in less than 1 ms
PING = 1.0  # seconds between two signs of life that a quiet channel is asked for
BACKOFF = (0.2, 2.0)  # seconds after the first failure to read the channel, and at most

UNREACHABLE = (
    "The broker, a Redis server, cannot be reached, or does not answer: what was asked may be done or not. Try again "
    "in a few seconds."
)
FULL = "The broker, a Redis server, has no memory left; nothing was kept. Give it more, or keep less history."

SCRIPT = Path(__file__).with_name("board.lua").read_bytes()
SCRIPT_SHA = hashlib.sha1(SCRIPT, usedforsecurity=False).hexdigest()


class RedisBoard:
    """The board in Redis. An entry is as durable as a publication, ``durable`` or not.

    ``clock`` is the server's own unless it is given; ``nodes`` returns the other nodes.
    """

    def __init__(
        self,
        prefix: str,
        pool: ConnectionPool,
        name: str,
        nodes: Callable[[], Collection[str]],
        clock: Callable[[], float] | None,
    ) -> None:
        self.name, self.nodes = name, nodes
        self.is_open = False  # as its broker is
        self.has_listened = False  # it was subscribed to the channel, and is again when it can be
        # In braces, so that a Redis Cluster keeps all of them in one slot.
        self._keys = tuple(f"{{{prefix}}}:board:{part}" for part in ("values", "ends", "names"))
        # Channels know no databases.
        self._channel = f"{{{prefix}}}:board:{pool.connection_kwargs.get('db') or 0}"
        self._pool, self._clock = pool, clock
        self._queue = CommandQueue(pool, BrokerUnavailable(UNREACHABLE), at_once=COMMANDS_AT_ONCE, deadline=DEADLINE)
        self._messages = Messages(name)
        self._is_loaded = False
        self._last_refusal = ""

    async def run(self) -> NoReturn:
        """Send the commands that are called, as long as the broker is open."""
        await self._queue.run()

    async def load(self, connection: AbstractConnection) -> None:
        """Load the script on a new connection, whose server may be another one than before."""
        await execute(connection, "SCRIPT", "LOAD", SCRIPT)

    # Entries

    async def claim(self, key: str, value: bytes, ttl: float) -> bytes | None:
        check_entry(key, value, ttl)
        there: bytes | None = await self._call("claim", key, value, microseconds(ttl))
        return there

    async def put(self, key: str, value: bytes, ttl: float, *, durable: bool = False) -> None:
        check_entry(key, value, ttl)
        await self._call("put", key, value, microseconds(ttl))

    async def replace(self, key: str, old: bytes, new: bytes, ttl: float) -> bool:
        check_entry(key, new, ttl)
        check_value(old)
        return bool(await self._call("replace", key, old, new, microseconds(ttl)))

    async def get(self, key: str) -> bytes | None:
        check_key(key)
        there: bytes | None = await self._call("get", key)
        return there

    async def delete(self, key: str) -> None:
        check_key(key)
        await self._call("delete", key)

    async def list(self, kind: str) -> dict[str, bytes]:
        check_kind(kind)
        found, after = dict[str, bytes](), f"{kind}."
        while after:
            behind, *page = await self._call("list", kind, after, PAGE_COUNT, PAGE_BYTES)
            found |= zip((key.decode() for key in page[::2]), page[1::2], strict=True)
            after = behind.decode()
        return found

    async def _call(self, operation: str, *arguments: Argument) -> Any:
        if not self._is_loaded:  # connections that were there before this board have not loaded its script
            await self._command("SCRIPT", "LOAD", SCRIPT)
            self._is_loaded = True
        clock = "" if self._clock is None else microseconds(self._clock())
        return await self._command("EVALSHA", SCRIPT_SHA, 3, *self._keys, operation, clock, *arguments)

    async def _command(self, *arguments: Argument) -> Any:
        if not self.is_open:
            raise BrokerUnavailable(UNREACHABLE)
        try:
            return await self._queue.call(*arguments)
        except LogFull:
            raise LogFull(FULL) from None
        except BrokerError:
            raise BrokerUnavailable(UNREACHABLE) from None

    # Messages

    async def send(self, message: bytes) -> None:
        check_message(message)
        await self._command("PUBLISH", self._channel, self._messages.frame(message))

    def messages(self) -> AsyncIterator[bytes]:
        return self._messages.read()

    async def listen(self) -> NoReturn:
        """Receive the messages of the other nodes, as long as the broker is open."""
        backoff = Backoff(*BACKOFF)
        while True:
            try:
                async with connected(self._pool) as connection:
                    await execute(connection, "SUBSCRIBE", self._channel)
                    self.has_listened = True
                    backoff.reset()
                    await self._receive(connection)
            except ResponseError as error:
                self._on_refusal(str(error))
            except FAILURES:  # the task that reads the tail logs the reason
                pass
            await asyncio.sleep(backoff.next())

    def _on_refusal(self, text: str) -> None:
        if text != self._last_refusal:
            self._last_refusal = text
            logger.warning("Redis does not let us hear the other nodes: %s", text)

    async def _receive(self, connection: AbstractConnection) -> None:
        async with _pinged(connection), in_time() as answered:
            while True:
                kind, *rest = await connection.read_response()
                answered()
                if kind == b"message":
                    self._messages.on_frame(rest[1])


@asynccontextmanager
async def _pinged(connection: AbstractConnection) -> AsyncIterator[None]:
    """Ask for a sign of life every PING seconds: without messages a silent connection would look like a quiet one."""

    async def ping() -> None:
        while True:
            await asyncio.sleep(PING)
            # Without redis-py's own health check, which would read the answer.
            await connection.send_packed_command(connection.pack_command("PING"), check_health=False)

    pinging = asyncio.create_task(ping())
    try:
        yield
    finally:
        pinging.cancel()
        await asyncio.gather(pinging, return_exceptions=True)
