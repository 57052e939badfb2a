"""A thread that runs an event loop, for code that has none and calls what lives in one."""

import asyncio
import os
import threading
import weakref
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from enum import Enum
from typing import Any, Generic, TypeVar

from sse_app.errors import Closed

LOOK = 1.0  # seconds; how often a thread that waits for another looks whether that one still runs
CLOSING = 5.0  # seconds that the end of the interpreter waits

Resource = TypeVar("Resource", bound=AbstractAsyncContextManager[Any])
Result = TypeVar("Result")


class Call(Generic[Result]):
    """Work in a loop for another thread, which may wait for it, and its outcome, which is there until it is taken.

    It is waited for on a plain lock. A Future is one of Python's Conditions, which a signal's exception at the wrong
    moment leaves locked: then the loop could not give it a result, and would stand for ever.
    """

    def __init__(self, work: Callable[[Any], Awaitable[Result]]) -> None:
        self._work = work
        self._result: Result
        self._error: BaseException | None = Closed("It was closed before there was an answer.")
        self._at_work = threading.Lock()
        self._at_work.acquire()
        self.task: asyncio.Task[None] | None = None

    async def run(self, resource: Any) -> None:
        """In the loop."""
        try:
            self._result = await self._work(resource)
            self._error = None
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._error = error
        finally:
            self._at_work.release()

    def result(self, running: "Running[Any]") -> Result:
        """Wait for it. Raises what the work raised, and Closed when its loop has ended before."""
        while not self._at_work.acquire(timeout=LOOK):
            if running.state is State.ENDED:
                break
        if self._error is not None:
            raise self._error
        return self._result


class State(Enum):
    """Of a thread: each comes after the one before, and OPEN may be left out."""

    OPENING = 1
    OPEN = 2
    ENDED = 3


class Running(Generic[Resource]):
    """A thread with an event loop in which a resource is open. A daemon: it holds up no interpreter's end."""

    def __init__(self, resource: Resource, name: str) -> None:
        self.resource = resource
        self.state = State.OPENING
        self._error: Exception | None = None  # of opening or closing it
        self._calls = set[asyncio.Task[None]]()
        self._opening = threading.Lock()
        self._opening.acquire()
        self._thread = threading.Thread(target=self._run, name=f"sse-app {name}", daemon=True)
        self._thread.start()

    def wait_until_open(self) -> None:
        """Raises what opening raised."""
        while self.state is State.OPENING:
            if self._opening.acquire(timeout=LOOK):
                self._opening.release()
        if self.state is State.ENDED:
            self._thread.join()
            raise self._error or Closed("It was closed before it was open.")

    def begin(self, call: Call[Any]) -> None:
        """Raises Closed after the end. Takes no lock, see Call."""
        if threading.current_thread() is self._thread:
            raise RuntimeError("This is called from its own event loop, which would wait for itself: from a callback.")
        try:
            self._loop.call_soon_threadsafe(self._start, call)
        except RuntimeError:  # the loop is closed
            raise Closed("It is closed.") from None

    def give_up(self, call: Call[Any]) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(lambda: call.task and call.task.cancel())

    def end(self) -> None:
        """Ask it to end, from any thread: of its own, when that collects garbage."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._ending.set)

    def close(self, patience: float | None = None) -> None:
        """End it, and wait so many seconds, or for as long as it takes. Raises what closing raised."""
        try:
            self.wait_until_open()
        except Exception:  # who opened it was told
            return
        self.end()
        self._thread.join(patience)
        if self._error is not None:
            raise self._error

    # In the thread

    def _run(self) -> None:
        try:
            asyncio.run(self._live())
        except Exception as error:  # a loop ends in a thread, and the interpreter's end has no new ones
            self._error = self._error or error
        finally:
            opened, self.state = self.state is State.OPEN, State.ENDED
            if not opened:
                self._opening.release()

    async def _live(self) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with self.resource:
                self.state = State.OPEN
                self._opening.release()
                await self._ending.wait()
        except Exception as error:
            self._error = error
        for task in self._calls:
            task.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    def _start(self, call: Call[Any]) -> None:
        call.task = self._loop.create_task(call.run(self.resource))
        self._calls.add(call.task)
        call.task.add_done_callback(self._calls.discard)


class LoopThread(Generic[Resource]):
    """Calls what ``make`` makes, a context that is entered in an event loop of its own. Any thread may call.

    The first call opens it. It is closed by ``close``, when it is collected, and at the end of the interpreter. What
    needs a thread to close no longer gets one there, and ends as in a crash.

    A forked child has its parent's memory and none of its threads: there it is made anew. With ``reopens`` False a
    child refuses to where the parent had it open, because what is below (SQLite, a client of the user's) is not safe to
    have twice in one memory.

    name: for errors. Raises Closed after its end, until it is opened again.
    """

    def __init__(self, name: str, make: Callable[[], Resource], *, reopens: bool) -> None:
        self._name, self._make, self._reopens = name, make, reopens
        self._closed = False
        self._processes: dict[int, _Process[Resource]] = {}  # by process id; the parent's are kept, and left alone
        self._here()  # raises what a wrong argument does
        weakref.finalize(self, _end, self._processes)

    @property
    def resource(self) -> Resource:
        """The resource that is called, opened or not yet."""
        return self._here().resource

    def opened(self) -> Running[Resource]:
        """The thread of this process, begun now if need be. Raises what opening does."""
        if self._closed:
            raise Closed(f"This {self._name} is closed: make another one.")
        here = self._here()
        with here.lock:
            if here.opening:
                raise RuntimeError(f"This {self._name} is being opened, by what the handler that calls it interrupts.")
            if here.running is None or here.running.state is State.ENDED:
                self._open(here)
            running = here.running
        assert running is not None
        running.wait_until_open()  # left by a signal it goes on opening, and the next call waits for it
        return running

    def _open(self, here: "_Process[Resource]") -> None:
        self._check_fork()
        here.opening = True
        try:
            if here.used:
                here.resource = self._make()
            here.used = True
            here.running = Running(here.resource, self._name)
        finally:
            here.opening = False

    def open(self) -> None:
        """Open it, also after ``close``."""
        self._closed = False
        self.opened()

    def call(self, work: Callable[[Resource], Awaitable[Result]]) -> Result:
        """The result of a coroutine function of the resource. An exception of a signal cancels it."""
        running, call = self.opened(), Call(work)
        try:
            running.begin(call)  # a signal's exception may come when it is half begun, too
            return call.result(running)
        except BaseException:
            running.give_up(call)
            raise

    def close(self) -> None:
        """Close it, once. In a forked child this leaves alone what the parent opened."""
        self._closed = True
        if (here := self._processes.get(os.getpid())) is None:
            return
        with here.lock:
            running, here.running = here.running, None
        if running is not None:
            running.close()

    def _here(self) -> "_Process[Resource]":
        found = self._processes.get(os.getpid())
        # Of two threads that come at once, setdefault has both use the same.
        return found or self._processes.setdefault(os.getpid(), _Process(self._make()))

    def _check_fork(self) -> None:
        running = [process.running for id, process in self._processes.items() if id != os.getpid()]
        if not self._reopens and any(one is not None and one.state is not State.ENDED for one in running):
            raise Closed(
                f"This {self._name} was opened before a fork, and what it has open is the parent's. Open it after the "
                f"fork, in each process its own; close() before the fork what has been used."
            )


class _Process(Generic[Resource]):
    """The resource of one process, and its thread."""

    def __init__(self, resource: Resource) -> None:
        self.resource, self.used = resource, False
        self.running: Running[Resource] | None = None
        self.opening = False
        self.lock = threading.RLock()  # a signal's handler in the thread that has it must not wait for that


def _end(processes: dict[int, _Process[Any]]) -> None:
    """Close what this process has running; at the end of the interpreter, wait for it."""
    here = processes.get(os.getpid())
    if here is None or here.running is None or here.running.state is not State.OPEN:
        return
    if threading.main_thread().is_alive():
        here.running.end()
    else:
        with suppress(Exception):
            here.running.close(CLOSING)
