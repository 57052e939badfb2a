"""The board in a SQLite file beside the log's: shared by the processes of one machine, and kept when they end.

    a call -> one thread -> board_file, one commit each
    send -> a row, and a datagram to the other processes -> their readers of messages

It begins with the first use: a process that only publishes has neither the thread nor the file.
"""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from sse_app.backoff import Backoff
from sse_app.brokers.board import check_entry, check_key, check_kind, check_message, check_value
from sse_app.brokers.sqlite.board_file import FAILED, BoardFile, Messages, board_error, open_board, path_of
from sse_app.brokers.sqlite.nodes import TOLD
from sse_app.brokers.sqlite.opening import LogFile, advice
from sse_app.errors import BrokerError, LogUnavailable

logger = logging.getLogger("sse_app")

T = TypeVar("T")

POLL = 0.5  # seconds between two reads of the messages, in case the datagram of another process is lost
BACKOFF = (0.2, 1.0)  # seconds after the first failure to read messages, and at most
CLOSED = "The log is closed, and its board with it; nothing was kept."


class SQLiteBoard:
    """The board of one process. ``join`` lets the other processes wake this one; lifetimes are those of ``wall``."""

    def __init__(self, name: str, join: Callable[[], None], wall: Callable[[], float], *, recover: bool) -> None:
        self.name = name
        self._join, self._wall, self._recover = join, wall, recover
        self._others: Collection[str] = ()
        self._log: LogFile | None = None
        self._file: BoardFile | None = None  # used in the thread alone
        self._is_troubled = False
        self._readers = set[asyncio.Event]()  # of messages

    # Life

    def open(self, log: LogFile) -> None:
        """Begin to take calls. The file is opened by the first one."""
        self._log = log
        self._thread = ThreadPoolExecutor(1, "sse-app board")

    async def close(self) -> None:
        self._log, self._others = None, ()
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._thread.shutdown()
        if self._file is not None:
            self._file.close()
            self._file = None

    async def _in_thread(self, work: Callable[[BoardFile], T]) -> T:
        if (log := self._log) is None:
            raise LogUnavailable(CLOSED)
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._thread, self._with_file, log, work)
        except BrokerError as error:
            if not self._is_troubled:
                logger.warning("%s: %s", path_of(log), _reason(error))
            self._is_troubled = True
            raise
        self._is_troubled = False
        return found

    def _with_file(self, log: LogFile, work: Callable[[BoardFile], T]) -> T:
        try:
            if self._file is None:
                self._file = open_board(log, self._wall, recover=self._recover)
            return work(self._file)
        except sqlite3.Error as error:
            raise board_error(error) from error
        except OSError as error:
            raise LogUnavailable(FAILED) from error

    # Entries

    async def claim(self, key: str, value: bytes, ttl: float) -> bytes | None:
        check_entry(key, value, ttl)
        return await self._in_thread(lambda file: file.claim(key, value, ttl))

    async def put(self, key: str, value: bytes, ttl: float, *, durable: bool = False) -> None:
        check_entry(key, value, ttl)
        await self._in_thread(lambda file: file.put(key, value, ttl, durable=durable))

    async def replace(self, key: str, old: bytes, new: bytes, ttl: float) -> bool:
        check_entry(key, new, ttl)
        check_value(old)
        return await self._in_thread(lambda file: file.replace(key, old, new, ttl))

    async def get(self, key: str) -> bytes | None:
        check_key(key)
        return await self._in_thread(lambda file: file.get(key))

    async def delete(self, key: str) -> None:
        check_key(key)
        await self._in_thread(lambda file: file.delete(key))

    async def list(self, kind: str) -> dict[str, bytes]:
        check_kind(kind)
        return await self._in_thread(lambda file: file.list(kind))

    # Messages

    async def send(self, message: bytes) -> None:
        check_message(message)
        if (log := self._log) is None:
            raise LogUnavailable(CLOSED)

        def send(file: BoardFile) -> None:
            file.send(self.name, message)
            log.nodes.wake(TOLD)

        await self._in_thread(send)

    async def messages(self) -> AsyncIterator[bytes]:
        # The rows are the buffer of every reader: who is slow finds the oldest gone.
        if self._log is None:
            raise LogUnavailable(CLOSED)
        self._join()
        more = asyncio.Event()
        self._readers.add(more)
        try:
            newest = await self._outlast_trouble(BoardFile.newest_message)
            while True:
                more.clear()
                found = await self._messages_behind(newest)
                newest = found.newest
                for content in found.contents:
                    yield content
                if found.is_all:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(POLL):
                            await more.wait()
        finally:
            self._readers.discard(more)

    async def _messages_behind(self, number: int) -> Messages:
        return await self._outlast_trouble(lambda file: file.messages(self.name, number))

    async def _outlast_trouble(self, work: Callable[[BoardFile], T]) -> T:
        """Do it once the file can be read."""
        backoff = Backoff(*BACKOFF)
        while True:
            try:
                return await self._in_thread(work)
            except BrokerError:
                if self._log is None:
                    raise
            await asyncio.sleep(backoff.next())

    def on_message(self) -> None:
        """Another process has sent one."""
        for more in self._readers:
            more.set()

    # Nodes

    def on_nodes(self, names: Collection[str]) -> None:
        """These are the other nodes that are alive."""
        self._others = names

    def nodes(self) -> Collection[str]:
        return self._others


def _reason(error: BrokerError) -> str:
    """Return what the server's log says of an error. Its own text goes to callers, and names no file."""
    cause = error.__cause__
    return f"{cause}. {advice(cause)}" if isinstance(cause, sqlite3.Error) else str(cause or error)
