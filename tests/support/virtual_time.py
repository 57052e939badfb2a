"""An event loop on which time passes only when nobody has anything to do: ``asyncio.sleep(15)`` takes microseconds.

    @virtual_time
    async def test_idle_stream_gets_a_comment_after_15_seconds() -> None: ...

The clock starts at 0.0 and stands still while callbacks run. When nothing is ready it jumps to the next timer, at once
if only this loop can make something happen. If sockets or threads might (a fd is watched, a thread lives), they first
get ``PATIENCE``; while a thread works for this loop (run_in_executor, to_thread) time goes at its real pace. A loop
that waits for nothing at all raises ``Deadlock`` instead of hanging. Code that polls the clock without waiting hangs.
"""

import asyncio
import selectors
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, Unpack

import pytest
from anyio.to_thread import current_default_thread_limiter

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

PATIENCE = 0.02  # real seconds; an answer over loopback takes about 1 ms
DEADLOCK = 20.0  # real seconds until a loop without timers gives up on peers and threads

Ready = list[tuple[selectors.SelectorKey, int]]
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Deadlock(RuntimeError):
    """Every task waits and nothing is left that could wake one."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """See the module. ``time()`` is in virtual seconds since the loop was made."""

    def __init__(self) -> None:
        self._virtual_selector = _VirtualTimeSelector(self)
        super().__init__(self._virtual_selector)
        self._threads_at_work = 0
        # asyncio fires a timer when it is due before ``time() + _clock_resolution``. With the 1 ns of the real clock
        # that sum is ``time()`` itself from half a year on (float), and a timer due exactly now would never fire.
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return self._virtual_selector.now

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], Any], *args: *Ts
    ) -> asyncio.Future[Any]:
        future = super().run_in_executor(executor, func, *args)
        self._threads_at_work += 1
        future.add_done_callback(self._thread_done)
        return future

    def _thread_done(self, _: object) -> None:
        self._threads_at_work -= 1

    def threads_work(self) -> bool:
        return self._threads_at_work > 0 or current_default_thread_limiter().borrowed_tokens > 0

    def waiting(self) -> str:
        return "\n".join(f"  {task.get_name()}: {_where(task)}" for task in asyncio.all_tasks(self))


class _VirtualTimeSelector(selectors.BaseSelector):
    """A selector that moves ``now`` instead of waiting."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        self.now = 0.0
        self._loop = loop
        self._real = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> Ready:
        ready = self._real.select(0)
        if ready or timeout == 0:
            return ready
        if self._loop.threads_work():
            return self._wait_for_real(timeout)
        patience = DEADLOCK if timeout is None else PATIENCE
        # Looked at again in any case: a thread that has just ended may have woken the loop before it did.
        if ready := self._real.select(patience if self._others_may_wake() else 0):
            return ready
        if timeout is None:
            raise Deadlock(f"the loop would wait for ever; its tasks:\n{self._loop.waiting()}")
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
    """asyncio.run on virtual time. For tests that are not async themselves, as under hypothesis."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


# Marks an async test, a class, or with ``pytestmark`` a module. The async fixtures it uses must have function scope:
# anyio has one loop at a time, and one that a session's fixture holds open would be used instead.
virtual_time = pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {"loop_factory": VirtualTimeLoop})], ids=["virtual"]
)
