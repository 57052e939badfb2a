"""Several processes of one server, each with a hub in memory: one of them warns, and no other case warns."""

import asyncio
import logging
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sse_app import Hub
from sse_app.listening import listeners
from sse_app.web.siblings import FIRST_CHECKS, OVERLAP, SEPARATE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")

# A process of a server, whose hub looks for siblings at once. It prints its name, and runs until its stdin ends.
PROCESS = """
import asyncio, sys
from sse_app.web import siblings
from sse_app.brokers.memory import MemoryBroker
from sse_app.hub import Hub
from sse_app.listening import listeners

siblings.FIRST_CHECKS, siblings.OVERLAP = (0,), 0

async def main():
    looking = asyncio.create_task(siblings.warn_of_siblings(Hub(MemoryBroker())))
    names = []
    while not names and not looking.done():
        await asyncio.sleep(0)
        names = [listener.name.decode() for listener in listeners() if isinstance(listener.name, bytes)]
    print(names[0].rpartition("/")[2] if names else "none", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    looking.cancel()

asyncio.run(main())
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process that inherits this listening socket, by way of the command ``within``."""
    with ExitStack() as stack:

        def started(listening: socket.socket, *within: str) -> "subprocess.Popen[str]":
            process = subprocess.Popen(
                [*within, sys.executable, "-c", PROCESS],
                pass_fds=[listening.fileno()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield started


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.setblocking(False)
        yield made


def taken(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def logged(process: "subprocess.Popen[str]") -> str:
    """End a process, and return all that it has logged."""
    return process.communicate("")[1].strip()


def test_one_of_three_workers_says_that_their_logs_are_apart(start: Start, listening: socket.socket) -> None:
    workers = [start(listening)]
    assert taken(workers[0]) == "first"
    workers += [start(listening)]
    assert taken(workers[1]) == "second"
    workers += [start(listening)]
    assert taken(workers[2]) == "none"
    assert [logged(worker) for worker in workers] == ["", SEPARATE, ""]


def test_a_worker_in_the_place_of_another_says_nothing(start: Start, listening: socket.socket) -> None:
    for _ in range(2):
        worker = start(listening)
        assert taken(worker) == "first"
        assert logged(worker) == ""


def test_apps_with_another_address_or_parent_say_nothing(start: Start, listening: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.setblocking(False)
        processes = [start(listening), start(elsewhere), start(listening, "sh", "-c", '"$@"; :', "sh")]
        assert [taken(process) for process in processes] == ["first"] * 3
        assert [logged(process) for process in processes] == [""] * 3


def names() -> list[object]:
    return [listener.name for listener in listeners() if isinstance(listener.name, bytes)]


@pytest.mark.virtual_time
async def test_two_hubs_of_one_process_say_nothing(listening: socket.socket, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        async with Hub() as hub, Hub():
            await asyncio.sleep(FIRST_CHECKS[0] + OVERLAP + 1)
            assert len(names()) == 1
            hub.node.begin_drain()
            await asyncio.sleep(1)
            assert names() == []
    assert not caplog.records


@pytest.mark.virtual_time
async def test_a_log_that_is_shared_and_a_process_that_serves_nobody_are_left_alone(
    listening: socket.socket, tmp_path: Path
) -> None:
    async with Hub(f"sqlite:///{tmp_path}/hub.db"):
        await asyncio.sleep(sum(FIRST_CHECKS) + 1)
        assert names() == []
    listening.close()
    async with Hub():
        await asyncio.sleep(sum(FIRST_CHECKS) + 1)
        assert names() == []
