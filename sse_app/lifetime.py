"""The lifetime of a hub: whether it runs, and in which process, thread and event loop."""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from sse_app.errors import HubNotStarted

T = TypeVar("T")

NOT_STARTED = (
    "The hub was never started. Give it to your app as Starlette(lifespan=hub.lifespan) or "
    "FastAPI(lifespan=hub.lifespan) (a mounted app gets no lifespan events of its own), "
    "or run it inside `async with hub:`."
)

NO_LIFESPAN = (
    "The hub was given to an app as its lifespan, and no lifespan event came. Either the server sends none: daphne "
    "never does, others can be told not to (uvicorn --lifespan off, granian's asginl). Then use uvicorn, gunicorn, "
    "hypercorn or granian with it. Or that app is mounted in another, which alone gets them: give hub.lifespan to the "
    "outermost app."
)

STOPPED = "The hub has stopped: its app has shut down, or its `async with` has ended. It can be started again."

OTHER_LOOP = (
    "The hub runs in another event loop. From another thread use publish_threadsafe(), "
    "from another loop `await asyncio.to_thread(hub.publish_threadsafe, ...)`."
)

FORKED = (
    "The hub runs in the process that this one was forked from, and nothing of it runs here. Publish with a Publisher, "
    "which opens the log of its URL, or over HTTP with a SyncClient."
)

OWN_THREAD = "publish_threadsafe() was called in the hub's own event loop; use `await hub.publish(...)`."


class Lifetime:
    """From ``begin`` to ``end`` the hub runs, in the process, thread and event loop that called ``begin``.

    ``lifespan_awaited``: the hub was given to an app as its lifespan, and nothing has started it since.
    """

    def __init__(self) -> None:
        self.lifespan_awaited = False
        self._begun_at: float | None = None
        self._has_stopped = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = self._thread = 0

    def begin(self) -> None:
        """The hub runs from now on, here."""
        self._loop, self._process, self._thread = asyncio.get_running_loop(), os.getpid(), threading.get_ident()
        self._begun_at = time.monotonic()
        self.lifespan_awaited = False

    def end(self) -> None:
        """The hub runs no longer. It can begin again, also elsewhere."""
        self._begun_at = self._loop = None
        self._has_stopped = True

    @property
    def started(self) -> bool:
        """True from ``begin`` to ``end``."""
        return self._begun_at is not None

    @property
    def uptime(self) -> float:
        """Seconds since the hub was started; 0 when it does not run."""
        return 0.0 if self._begun_at is None else time.monotonic() - self._begun_at

    def check_started(self) -> None:
        """Check that the hub runs. Raises HubNotStarted, which names the line that the app lacks, or the server that
        does not start the hub, or says that the hub has stopped.
        """
        if self._begun_at is None:
            raise self._not_started()

    def check_here(self) -> None:
        """Check that the hub runs in this event loop: the futures of another loop would not wake the hub's. Raises
        HubNotStarted, RuntimeError.
        """
        if asyncio.get_running_loop() is not self._loop:
            self.check_started()
            raise RuntimeError(OTHER_LOOP if os.getpid() == self._process else FORKED)

    def run_from_thread(self, work: Callable[[], Coroutine[Any, Any, T]], timeout: float | None) -> T:
        """Run what ``work`` makes in the hub's loop, and block this thread for its result, ``timeout`` seconds at most.

        Raises what the coroutine raises, TimeoutError, HubNotStarted, and RuntimeError in the hub's own thread, which
        would wait for itself, and in a forked child.
        """
        loop = self._loop
        if loop is None:
            raise self._not_started()
        if os.getpid() != self._process:
            raise RuntimeError(FORKED)
        if self._thread == threading.get_ident():
            raise RuntimeError(OWN_THREAD)
        return asyncio.run_coroutine_threadsafe(work(), loop).result(timeout)

    def _not_started(self) -> HubNotStarted:
        if self._has_stopped:
            return HubNotStarted(STOPPED)
        return HubNotStarted(NO_LIFESPAN if self.lifespan_awaited else NOT_STARTED)
