"""``sse-app serve``: one process, or several that share the port and the log.

The parent opens the sockets and keeps them, starts the workers, replaces a worker that dies, and passes signals on.
Once a second each worker sends the parent its totals, and gets the sum of the other workers' totals: so any worker can
answer for the whole server.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.context import SpawnProcess
from types import FrameType

from sse_app.config import Config
from sse_app.hub import Hub, broker_of
from sse_app.metrics import Totals
from sse_app.node import Node
from sse_app.server.server import NOT_STARTED, stop_signals
from sse_app.server.server import serve as serve_alone
from sse_app.server.sockets import listen, url_of

logger = logging.getLogger("sse_app")

REPORT = 1.0  # seconds between two reports of a worker
RESTART = 1.0  # seconds at least from one start of a worker to the next


def serve(config: Config, on_ready: Callable[[Sequence[str]], None] = lambda urls: None) -> None:
    """Run the server until a signal ends it. ``on_ready`` gets the URLs that it listens on.

    Raises ConfigError and BrokerError when it cannot start.
    """
    Hub(config=config)  # refuses what it cannot honour, here rather than in each worker
    asyncio.run(_check_log(config))
    config = replace(config, recover=False)  # _check_log has set a damaged file aside
    each = listen(config)
    urls = [url_of(listening) for listening in each[0]]
    if config.workers == 1:
        serve_alone(config, each[0], lambda hub: on_ready(urls))
    else:
        sys.exit(Workers(config, each, lambda: on_ready(urls)).run())


async def _check_log(config: Config) -> None:
    """Open and close the log, so that one that cannot be opened is reported once, and not by every worker."""
    async with broker_of(config):
        pass


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    started: float
    ready: bool = False
    totals: Totals = field(default_factory=Totals)


class Workers:
    """The parent of the workers: ``run`` returns its exit status."""

    def __init__(self, config: Config, each: Sequence[Sequence[socket.socket]], on_ready: Callable[[], None]) -> None:
        self._config, self._each, self._on_ready = config, each, on_ready
        self._workers: list[_Worker] = []
        self._ended = Totals()  # of the workers that have ended
        self._announced = self._ending = False
        self._status = 0
        self._signalled, self._signals = Pipe(duplex=False)

    def run(self) -> int:
        for number in stop_signals():
            signal.signal(number, self._on_signal)
        self._workers = [self._start(index) for index in range(len(self._each))]
        while any(worker.process.is_alive() for worker in self._workers):
            self._wait([*(worker.process.sentinel for worker in self._workers), self._signalled, *self._pipes()])
        return self._status

    def _start(self, index: int) -> _Worker:
        ours, theirs = Pipe()
        process = get_context("spawn").Process(target=_work, args=(self._config, self._each[index], theirs))
        with _interrupts_held():
            process.start()
        theirs.close()
        return _Worker(process, ours, time.monotonic())

    def _pipes(self) -> list[Connection]:
        return [worker.pipe for worker in self._workers if not worker.pipe.closed]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals.send(number)  # to `run`: a signal may interrupt any line, even a half-made change

    def _wait(self, sources: list[Connection | int]) -> None:
        ready = wait(sources, timeout=REPORT)
        if self._signalled in ready:
            self._send_signal(self._signalled.recv())
        for index, worker in enumerate(self._workers):
            if worker.pipe in ready:
                self._on_report(worker)
            if not worker.process.is_alive():
                self._replace(index, worker)

    def _send_signal(self, number: int) -> None:
        self._ending = True
        for worker in self._workers:
            if worker.process.pid is not None and worker.process.is_alive():
                with suppress(ProcessLookupError):
                    os.kill(worker.process.pid, number)

    def _on_report(self, worker: _Worker) -> None:
        try:
            worker.totals = worker.pipe.recv()
            others = sum((other.totals for other in self._workers if other is not worker), start=self._ended)
            worker.pipe.send(others)
        except (EOFError, OSError):
            worker.pipe.close()
            return
        worker.ready = True
        if not self._announced and all(worker.ready for worker in self._workers):
            self._announced = True
            self._on_ready()

    def _replace(self, index: int, worker: _Worker) -> None:
        if self._ending:
            return
        if not self._announced:
            logger.error("a worker could not start; the server stops")
            self._status = NOT_STARTED
            self._send_signal(signal.SIGTERM)
            return
        logger.error("a worker ended with status %s; another one takes its place", worker.process.exitcode)
        self._ended += replace(worker.totals, subscribers=0, lagging=0)
        worker.pipe.close()
        time.sleep(max(0.0, worker.started + RESTART - time.monotonic()))
        self._workers[index] = self._start(index)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Block SIGINT while a child is started, which inherits the mask: Ctrl+C during the child's imports would end it
    with a traceback.
    """
    resource_tracker.ensure_running()  # starting this process of multiprocessing unblocks SIGINT in Python 3.11
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# In a worker


def _work(config: Config, sockets: Sequence[socket.socket], pipe: Connection) -> None:
    os.setpgid(0, 0)  # Ctrl+C in a terminal goes to the parent alone, which passes it on
    with suppress(KeyboardInterrupt):  # raised by a SIGINT that was blocked until the next line
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        serve_alone(config, sockets, lambda node: node.spawn(_report(node, pipe)))


async def _report(node: Node, pipe: Connection) -> None:
    """Exchange totals with the parent once a second. Ends the process when the parent is gone."""
    answered = asyncio.Event()

    def on_answer() -> None:
        try:
            node.siblings = pipe.recv()
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(pipe.fileno())
            signal.raise_signal(signal.SIGTERM)
        answered.set()

    asyncio.get_running_loop().add_reader(pipe.fileno(), on_answer)
    while True:
        pipe.send(node.totals)
        await answered.wait()  # while the parent is suspended: a full pipe would block this event loop
        answered.clear()
        await asyncio.sleep(REPORT)
