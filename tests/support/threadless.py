"""The log in a SQLite file on virtual time: the work of its threads is done on the loop itself.

Virtual time jumps when the loop is idle, even while a thread works; so there are no threads here. Work for a thread is
done some turns of the loop later, and its outcome delivered some turns after that: other tasks run in between, as they
do with threads, and every run can be repeated. The work takes no virtual time.
"""

import asyncio
import concurrent.futures
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from itertools import cycle
from typing import Any, Self, TypeVar, TypeVarTuple, Unpack, cast
from unittest.mock import patch

from sse_app.brokers.sqlite import SQLiteBroker
from sse_app.brokers.sqlite.log import Appended, Entries
from sse_app.brokers.sqlite.writer import Writer
from sse_app.publication import Position
from sse_app.testing import VirtualTimeLoop

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class ThreadlessLoop(VirtualTimeLoop):
    """A loop that does the work for threads itself. ``delay`` sets after how many turns: those before the first work,
    before its outcome, before the next work and so on, in a cycle.
    """

    def __init__(self) -> None:
        super().__init__()
        self._delays: Iterator[int] = cycle([0])

    def delay(self, delays: Iterable[int]) -> None:
        self._delays = cycle(delays)

    def some_turns_later(self, work: Callable[[], object]) -> None:
        self._later(next(self._delays), work)

    def _later(self, turns: int, work: Callable[[], object]) -> None:
        self.call_soon(*((self._later, turns - 1, work) if turns else (work,)))

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        answer: asyncio.Future[T] = self.create_future()
        done: concurrent.futures.Future[T] = concurrent.futures.Future()

        def work() -> None:
            try:
                done.set_result(func(*args))
            except Exception as error:
                done.set_exception(error)
            self.some_turns_later(deliver)

        def deliver() -> None:
            if answer.done():
                return
            if error := done.exception():
                answer.set_exception(error)
            else:
                answer.set_result(done.result())

        self.some_turns_later(work)
        return answer


class ThreadlessWriter(Writer):
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        append: Callable[[list[Entries]], Appended],
        on_commit: Callable[[Appended], None],
    ) -> None:
        self._loop, self._append, self._on_commit = loop, append, on_commit
        self._queue = queue.SimpleQueue()
        self._ending, self._ended = threading.Lock(), False
        self._untold: deque[Callable[[], None]] = deque()  # in order, as a thread's calls of call_soon_threadsafe

    def submit(self, entries: Entries | None) -> asyncio.Future[Sequence[Position]]:
        answer = super().submit(entries)
        cast(ThreadlessLoop, self._loop).some_turns_later(self._work)
        return answer

    def stop(self) -> None:
        self._work()

    def _work(self) -> None:
        """Commit the waiting entries."""
        if not self._queue.empty() and (first := self._queue.get_nowait()) is not None:
            group = [first]
            self._join(group)
            self._commit(group, going=True)

    def _call_on_loop(self, what: Callable[..., None], *arguments: object) -> None:
        self._untold.append(partial(what, *arguments))
        cast(ThreadlessLoop, self._loop).some_turns_later(lambda: self._untold.popleft()())


class ThreadlessSQLiteBroker(SQLiteBroker):
    """A SQLite log without threads. It does not listen for other processes, since waiting for a selector takes real
    time.
    """

    async def __aenter__(self) -> Self:
        with patch("sse_app.brokers.sqlite.Writer", ThreadlessWriter):
            return await super().__aenter__()

    def _listen(self) -> Any:
        return 1
