"""The thread of a process that appends. Publishers that wait at the same time share a commit and its fsync."""

import asyncio
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sse_app.brokers.sqlite.log import FAILED, Appended, Entries, broker_error
from sse_app.errors import BrokerError, LogUnavailable
from sse_app.publication import Position

logger = logging.getLogger("sse_app")

GROUP_MAX = 1_000  # publications in one commit; the last publisher's may be more
GROUP_BYTES = 4 * 1024 * 1024
LOCK_PATIENCE = 2.0  # seconds that a publisher waits for other processes
TRIM_PATIENCE = 0.1  # seconds that a trim waits: heartbeats and replays wait for it
CLOSED = "The log is closed; nothing was published."
LOCK_RETRY = 0.001  # seconds; SQLite's own waiting sleeps up to 100 ms between two tries


class _Waiting(NamedTuple):
    entries: Entries | None  # None only trims what is too old
    answer: asyncio.Future[Sequence[Position]]
    deadline: float

    @property
    def publications(self) -> int:
        """The number of publications that it adds to a commit."""
        return len(self.entries.items) if self.entries else 1

    @property
    def size(self) -> int:
        """The bytes of their events."""
        return self.entries.size if self.entries else 0


class Writer:
    """The thread and its queue.

    ``append`` is called in the thread with what goes into a commit, ``on_commit`` on the loop with its result,
    before the publishers get their positions.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        append: Callable[[list[Entries]], Appended],
        on_commit: Callable[[Appended], None],
    ) -> None:
        self._loop, self._append, self._on_commit = loop, append, on_commit
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()  # bounded by the open requests
        self._ending, self._ended = threading.Lock(), False
        self._thread = threading.Thread(target=self._run, name="sse-app log writer", daemon=True)
        self._thread.start()

    def submit(self, entries: Entries | None) -> asyncio.Future[Sequence[Position]]:
        """Append entries together; the future has their positions once they are in the log, or the error with which
        none of them is. None only trims."""
        answer: asyncio.Future[Sequence[Position]] = self._loop.create_future()
        patience = LOCK_PATIENCE if entries else TRIM_PATIENCE
        with self._ending:
            if self._ended:
                raise LogUnavailable(CLOSED)
            self._queue.put(_Waiting(entries, answer, time.monotonic() + patience))
        return answer

    def stop(self) -> None:
        """Commit what was submitted, and end the thread. Waits for the disk."""
        with self._ending:
            self._ended = True
            self._queue.put(None)
        self._thread.join()

    # In the thread

    def _run(self) -> None:
        going = True
        while going and (first := self._queue.get()) is not None:
            going = self._commit(group := [first], self._join(group))

    def _join(self, group: list[_Waiting]) -> bool:
        """Add what waits to the group; False once the thread has to end."""
        count, size = sum(item.publications for item in group), sum(item.size for item in group)
        while count < GROUP_MAX and size < GROUP_BYTES:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return True
            if item is None:
                return False
            group.append(item)
            count += item.publications
            size += item.size
        return True

    def _commit(self, group: list[_Waiting], going: bool) -> bool:
        while group:
            try:
                appended = self._append([item.entries for item in group if item.entries])
            except sqlite3.OperationalError as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY:
                    self._call_on_loop(self._refuse, group, broker_error(error))
                    return going
                now = time.monotonic()
                if late := [item for item in group if item.deadline <= now]:
                    self._call_on_loop(self._refuse, late, broker_error(error))
                    group[:] = [item for item in group if item.deadline > now]
                time.sleep(LOCK_RETRY)
                going = going and self._join(group)
            except sqlite3.Error as error:
                self._call_on_loop(self._refuse, group, broker_error(error))
                return going
            except BrokerError as error:
                self._call_on_loop(self._refuse, group, error)
                return going
            except Exception as error:  # our mistake: if it ended the thread, no publisher would get an answer again
                logger.error("the log's writer failed: %s", type(error).__name__)
                self._call_on_loop(self._refuse, group, LogUnavailable(FAILED))
                return going
            else:
                self._call_on_loop(self._accept, group, appended)
                return going
        return going

    def _call_on_loop(self, what: Callable[..., None], *arguments: object) -> None:
        self._loop.call_soon_threadsafe(what, *arguments)

    # On the loop

    def _accept(self, group: list[_Waiting], appended: Appended) -> None:
        self._on_commit(appended)
        outcomes = iter(appended.outcomes)
        for item in group:
            outcome = next(outcomes) if item.entries else ()
            if item.answer.done():
                continue
            if isinstance(outcome, Exception):
                item.answer.set_exception(outcome)
            else:
                item.answer.set_result(outcome)

    def _refuse(self, group: list[_Waiting], error: BrokerError) -> None:
        for item in group:
            if not item.answer.done():
                refusal = type(error)(str(error))  # one for each publisher: it gets the traceback of the raise
                refusal.__cause__ = error.__cause__
                item.answer.set_exception(refusal)
