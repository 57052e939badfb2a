"""Servers in processes of their own, which tests stop and kill."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from sse_app.config import ENV_PREFIX

FULL = os.environ.get("SSE_APP_TEST_FULL") == "1"  # the counts that PROMISES names; else fewer, for two cores in CI


def count(ci: int, full: int) -> int:
    return full if FULL else ci


def assert_in_time(what: str, seconds: float, promised: float) -> None:
    """Print a time that is promised. In a full run, for which the machine has to be quiet, assert it."""
    print(f"{what}: {seconds:.2f} s of {promised:g} s")
    assert not FULL or seconds <= promised


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.chaos)
            item.add_marker(pytest.mark.timeout(count(ci=120, full=600)))  # seconds


@pytest.fixture(scope="session", autouse=True)
def descriptors() -> None:
    """Raise the limit of descriptors: thousands of clients are in this process."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[str]
    port: int

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    async def exit_code(self) -> int:
        return await asyncio.to_thread(self.process.wait)

    @property
    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    @property
    def memory(self) -> int:
        """The resident memory in bytes."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


Spawn = Callable[..., subprocess.Popen[str]]
Serve = Callable[..., Server]


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    """A function that starts `sse-app serve` with flags and does not wait for it. All servers end with the test, which
    fails when one has logged anything.
    """
    log = tmp_path / "log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    with ExitStack() as stack:

        def start(*flags: str, port: int = 0) -> subprocess.Popen[str]:
            command = [sys.executable, "-m", "sse_app", "serve", "--port", str(port), *flags]
            with log.open("a") as file:
                process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True, env=environment)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start
    assert log.read_text() == ""


@pytest.fixture
def serve(spawn: Spawn) -> Serve:
    """A function that starts a server with flags, and returns when the server listens."""

    def start(*flags: str, port: int = 0) -> Server:
        process = spawn(*flags, port=port)
        return Server(process, listening_port(process))

    return start


def listening_port(process: subprocess.Popen[str]) -> int:
    """Wait for the line with the server's address, and return the port."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "listening on" in line, f"the server did not start: {line!r}"
    return urlsplit(line.split()[-1]).port or 0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a log, which does not exist yet."""
    return tmp_path / "hub.db"


@pytest.fixture
def server(serve: Serve) -> Server:
    """A server with its default settings."""
    return serve()
