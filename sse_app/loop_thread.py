"""A thread that runs an event loop, for synchronous code that calls an asynchronous resource."""

import asyncio
import os
import threading
import weakref
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from enum import Enum
from typing import Any, Generic, TypeVar

from sse_app.errors import Closed

POLL = 1.0  # seconds; how often a waiting thread checks that the thread it waits for still runs
CLOSING = 5.0  # seconds that the end of the interpreter waits

Resource = TypeVar("Resource", bound=AbstractAsyncContextManager[Any])
Result = TypeVar("Result")


class Call(Generic[Result]):
    """A call of a coroutine function in the loop, for another thread that may wait for its result.

    The caller waits on a plain lock. concurrent.futures.Future uses a Condition, which stays locked when a signal
    handler raises at the wrong moment: the loop could then not set the result, and would block for ever.
    """

    def __init__(self, work: Callable[[Any], Awaitable[Result]]) -> None:
        self._work = work
        self._result: Result
        self._error: BaseException | None = Closed("It was closed before there was an answer.")
        self._unfinished = threading.Lock()
        self._unfinished.acquire()
        self.task: asyncio.Task[None] | None = None

    async def run(self, resource: Any) -> None:
        """Run the call. Called in the loop."""
        try:
            self._result = await self._work(resource)
            self._error = None
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._error = error
        finally:
            self._unfinished.release()

    def result(self, running: "Running[Any]") -> Result:
        """Wait for the call and return its result. Raises what the call raised; Closed when the loop ended before."""
        while not self._unfinished.acquire(timeout=POLL):
            if running.state is State.ENDED:
                break
        if self._error is not None:
            raise self._error
        return self._result


class State(Enum):
    """The state of a thread: OPENING, then OPEN unless opening failed, then ENDED."""

    OPENING = 1
    OPEN = 2
    ENDED = 3


class Running(Generic[Resource]):
    """A thread with an event loop in which a resource is open. It is a daemon, so the interpreter can end before it."""

    def __init__(self, resource: Resource, name: str) -> None:
        self.resource = resource
        self.state = State.OPENING
        self._error: Exception | None = None  # of opening or closing the resource
        self._calls = set[asyncio.Task[None]]()
        self._opening = threading.Lock()
        self._opening.acquire()
        self._thread = threading.Thread(target=self._run, name=f"sse-app {name}", daemon=True)
        self._thread.start()

    def wait_until_open(self) -> None:
        """Wait until the resource is open. Raises what opening raised."""
        while self.state is State.OPENING:
            if self._opening.acquire(timeout=POLL):
                self._opening.release()
        if self.state is State.ENDED:
            self._thread.join()
            raise self._error or Closed("It was closed before it was open.")

    def begin(self, call: Call[Any]) -> None:
        """Start a call in the loop. Takes no lock, for the reason that Call gives. Raises Closed after the end."""
        if threading.current_thread() is self._thread:
            raise RuntimeError("This is called from its own event loop, which would wait for itself: from a callback.")
        try:
            self._loop.call_soon_threadsafe(self._start, call)
        except RuntimeError:  # the loop is closed
            raise Closed("It is closed.") from None

    def cancel(self, call: Call[Any]) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(lambda: call.task and call.task.cancel())

    def end(self) -> None:
        """Ask the thread to end. Any thread may call this, also this one, when its garbage collector runs _end."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._ending.set)

    def close(self, patience: float | None = None) -> None:
        """End the thread, and wait ``patience`` seconds, or without a limit. Raises what closing raised."""
        try:
            self.wait_until_open()
        except Exception:  # raised also in the thread that opened the resource
            return
        self.end()
        self._thread.join(patience)
        if self._error is not None:
            raise self._error

    # In the thread

    def _run(self) -> None:
        try:
            asyncio.run(self._run_loop())
        except Exception as error:  # asyncio.run starts a thread to close, which the interpreter refuses at its end
            self._error = self._error or error
        finally:
            opened, self.state = self.state is State.OPEN, State.ENDED
            if not opened:
                self._opening.release()

    async def _run_loop(self) -> None:
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
    """A resource in an event loop of its own, which any thread may call. ``make`` makes the resource, a context.

    The first call opens the resource. ``close`` closes it; so does garbage collection, and the end of the interpreter.
    At the interpreter's end no thread can be started, so a resource that needs one to close ends as in a crash.

    A forked child has its parent's memory and none of its threads, so it makes a new resource. With ``reopens`` False,
    a child whose parent had the resource open refuses to make one: what is below (SQLite, a client of the user's) is
    not safe to have twice in one memory.

    name: for errors. Calls raise Closed after the end, until it is opened again.
    """

    def __init__(self, name: str, make: Callable[[], Resource], *, reopens: bool) -> None:
        self._name, self._make, self._reopens = name, make, reopens
        self._closed = False
        self._processes: dict[int, _Process[Resource]] = {}  # by process id; a parent's are kept and never used
        self._here()  # makes the resource now, so that wrong arguments raise here
        weakref.finalize(self, _end, self._processes)

    @property
    def resource(self) -> Resource:
        """The resource of this process, opened or not yet."""
        return self._here().resource

    def opened(self) -> Running[Resource]:
        """Return the thread of this process, started now when there is none. Raises what opening raises."""
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
        running.wait_until_open()  # when a signal interrupts this, the thread goes on opening for the next call
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
        """Open the resource, also after ``close``."""
        self._closed = False
        self.opened()

    def call(self, work: Callable[[Resource], Awaitable[Result]]) -> Result:
        """Return the result of ``work(resource)``. An exception that a signal handler raises meanwhile cancels it."""
        running, call = self.opened(), Call(work)
        try:
            running.begin(call)  # inside the try: a signal handler may raise when the call is half begun
            return call.result(running)
        except BaseException:
            running.cancel(call)
            raise

    def close(self) -> None:
        """Close the resource of this process. The parent's stays open when a forked child calls this."""
        self._closed = True
        if (here := self._processes.get(os.getpid())) is None:
            return
        with here.lock:
            running, here.running = here.running, None
        if running is not None:
            running.close()

    def _here(self) -> "_Process[Resource]":
        found = self._processes.get(os.getpid())
        # With two threads here at once, setdefault gives both the same resource.
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
        self.lock = threading.RLock()  # re-entrant: a signal handler may interrupt the thread that holds the lock


def _end(processes: dict[int, _Process[Any]]) -> None:
    """Close the resource of this process. At the end of the interpreter, wait until it is closed."""
    here = processes.get(os.getpid())
    if here is None or here.running is None or here.running.state is not State.OPEN:
        return
    if threading.main_thread().is_alive():
        here.running.end()
    else:
        with suppress(Exception):
            here.running.close(CLOSING)
