"""Real NATS servers of our own, on loopback, with their data in directories of the tests."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path

import pytest

from tests.worlds import World

HOST = "127.0.0.1"
LOOKS = 1_000  # at a server that starts, 20 ms apart
PROGRAM = shutil.which("nats-server", path=f"{os.environ['PATH']}:/usr/sbin")
_names = (f"test-{number}" for number in count())

StartNats = Callable[..., "NatsServer"]


class NatsServer:
    """A server on a port that it keeps over restarts; ``settings`` are lines of its configuration."""

    def __init__(self, directory: Path, *settings: str, jetstream: bool = True) -> None:
        self.port = _free_port()
        self.directory = directory
        self._log = directory / "nats.log"
        lines = [f'listen: "{HOST}:{self.port}"', *settings]
        if jetstream:
            lines.append(f'jetstream: {{store_dir: "{directory}"}}')
        (directory / "nats.conf").write_text("\n".join(lines))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once it answers, with its streams restored."""
        assert PROGRAM is not None
        command = [PROGRAM, "--config", str(self.directory / "nats.conf"), "--log", str(self._log)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        for _ in range(LOOKS):
            with suppress(OSError), socket.create_connection((HOST, self.port)) as connection:
                if connection.recv(4).startswith(b"INFO"):
                    return
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0.02)
                break
        raise AssertionError(f"nats-server does not start: {self._log.read_text()}")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """It keeps its connections and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def url(self, name: str = "", port: int = 0) -> str:
        """For a broker; without a name a log that nobody has used."""
        return f"nats://{HOST}:{port or self.port}/{name or next(_names)}"


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def start_nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartNats]:
    """Starts servers with settings; all are ended."""
    if PROGRAM is None:
        pytest.skip("nats-server is not installed")
    with ExitStack() as stack:

        def start(*settings: str, jetstream: bool = True) -> NatsServer:
            server = NatsServer(tmp_path_factory.mktemp("nats"), *settings, jetstream=jetstream)
            stack.callback(server.kill)
            server.start()
            return server

        yield start


@pytest.fixture(scope="session")
def nats_server(start_nats: StartNats) -> NatsServer:
    """One for all that do it no harm."""
    return start_nats()


@pytest.fixture
def impatient_nats(monkeypatch: pytest.MonkeyPatch) -> None:
    """What brokers do once a second, they do ten times. With their real patience they are tested in tests/chaos."""
    for name, seconds in (("BEAT", 0.1), ("SILENCE", 0.5), ("BACKOFF", (0.02, 0.1)), ("log.HEARTBEAT", 0.1)):
        monkeypatch.setattr(f"sse_app.brokers.nats.{name}", seconds)


@pytest.fixture
def nats_world(nats_server: NatsServer, impatient_nats: None) -> World:
    return World(nats_server.url(), clocked=False)
