"""An event loop on which time passes only when no task can go on: ``asyncio.sleep(15)`` takes microseconds.

    @pytest.mark.virtual_time
    async def test_an_idle_stream_gets_a_comment_after_15_seconds() -> None: ...

The clock starts at 0.0 and stands still while callbacks run. When no callback is ready it jumps to the next timer: at
once where nothing but this loop could wake a task, else (a socket is watched, another thread lives) after ``patience``
real seconds. While a thread works for this loop (run_in_executor, to_thread) the clock goes at its real pace.

Waiting for what cannot come fails loudly: a loop without timers and without other wakers raises Deadlock at once, with
them after ``deadlock`` real seconds, and names what each task waits for. A peer on a real socket that takes longer than
``patience`` to answer meets every timeout that the test has. Code that polls the clock without waiting hangs.
"""

import asyncio
import selectors
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, Unpack

from anyio.to_thread import current_default_thread_limiter

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

Ready = list[tuple[selectors.SelectorKey, int]]
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Deadlock(RuntimeError):
    """Every task waits, and nothing is left that could wake one."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop of virtual time. ``time()`` is the virtual seconds since it was made.

    patience: real seconds for which sockets and other threads may wake the loop before the clock jumps. An answer over
        loopback takes about 1 ms.
    deadlock: real seconds for which a loop without timers waits for sockets and threads.

    Both may be set while the loop runs: ``asyncio.get_running_loop().patience = 0.2``.
    """

    def __init__(self) -> None:
        self.patience = 0.02
        self.deadlock = 20.0
        self._virtual_selector = _VirtualTimeSelector(self)
        super().__init__(self._virtual_selector)
        self._working_threads = 0
        # asyncio fires a timer when it is due before ``time() + _clock_resolution``. With the 1 ns of the real clock
        # that sum is ``time()`` itself from half a year on (float), and a timer due exactly now would never fire.
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return self._virtual_selector.now

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], Any], *args: *Ts
    ) -> asyncio.Future[Any]:
        future = super().run_in_executor(executor, func, *args)
        self._working_threads += 1
        future.add_done_callback(self._thread_done)
        return future

    def _thread_done(self, _: object) -> None:
        self._working_threads -= 1

    def has_working_threads(self) -> bool:
        return self._working_threads > 0 or current_default_thread_limiter().borrowed_tokens > 0

    def describe_tasks(self) -> str:
        return "\n".join(f"  {task.get_name()}: {_where(task)}" for task in asyncio.all_tasks(self))


class _VirtualTimeSelector(selectors.BaseSelector):
    """A selector that moves the clock ``now`` instead of waiting."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        self.now = 0.0
        self._loop = loop
        self._real = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> Ready:
        ready = self._real.select(0)
        if ready or timeout == 0:
            return ready
        if self._loop.has_working_threads():
            return self._wait_for_real(timeout)
        patience = self._loop.deadlock if timeout is None else self._loop.patience
        # Selected again in any case: a thread may have woken the loop just before it ended.
        if ready := self._real.select(patience if self._others_may_wake() else 0):
            return ready
        if timeout is None:
            raise Deadlock(f"nothing can wake the loop; its tasks:\n{self._loop.describe_tasks()}")
        self.now += timeout
        return []

    def _wait_for_real(self, timeout: float | None) -> Ready:
        begun = time.monotonic()
        ready = self._real.select(timeout)
        self.now += time.monotonic() - begun
        return ready

    def _others_may_wake(self) -> bool:
        own = 1  # the socket pair by which threads wake the loop
        return len(self._real.get_map()) > own or threading.active_count() > 1

    def register(self, fileobj: "FileDescriptorLike", events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: "FileDescriptorLike") -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: "FileDescriptorLike", events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Mapping["FileDescriptorLike", selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()


def _where(task: asyncio.Task[Any]) -> str:
    stack = task.get_stack(limit=1)
    place = f"{stack[-1].f_code.co_filename}:{stack[-1].f_lineno}" if stack else "not started"
    return f"{getattr(task.get_coro(), '__qualname__', task.get_coro())} at {place}"


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine as asyncio.run does, on virtual time. For tests that are not async, as under hypothesis."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
