"""Real NATS servers of our own, on loopback, with their data in directories of the tests."""

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from sse_app.brokers.nats.board import NatsBoard
from tests.support.broker_process import HOST, BrokerProcess
from tests.support.peers import PATIENCE
from tests.support.worlds import World

PROGRAM = shutil.which("nats-server", path=f"{os.environ['PATH']}:/usr/sbin")
_names = (f"test-{number}" for number in count())

StartNats = Callable[..., "NatsServer"]


class NatsServer(BrokerProcess):
    """A NATS server. ``settings`` are lines of its configuration."""

    def __init__(self, directory: Path, *settings: str, jetstream: bool = True) -> None:
        super().__init__(directory / "nats.log")
        assert PROGRAM is not None
        self.directory = directory
        lines = [f'listen: "{HOST}:{self.port}"', *settings]
        if jetstream:
            lines.append(f'jetstream: {{store_dir: "{directory}"}}')
        (directory / "nats.conf").write_text("\n".join(lines))
        self.command = [PROGRAM, "--config", str(directory / "nats.conf"), "--log", str(self._log)]

    def answers(self) -> bool:
        """Return True once the server answers; by then it has restored its streams."""
        with suppress(OSError), socket.create_connection((HOST, self.port)) as connection:
            return connection.recv(4).startswith(b"INFO")
        return False

    def url(self, name: str = "", port: int = 0) -> str:
        """The URL for a broker; without a name, of a log that no test has used."""
        return f"nats://{HOST}:{port or self.port}/{name or next(_names)}"


@pytest.fixture(scope="session")
def start_nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartNats]:
    """A function that starts a server with settings; all servers end with the session."""
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
    """One server for all tests that neither stop nor fill it."""
    return start_nats()


@pytest.fixture
def impatient_nats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brokers do ten times a second what they do once a second, and wait longer for answers, as of a busy machine.
    tests/chaos tests them with their real times.
    """
    for name, seconds in (("REFRESH", 0.1), ("SILENCE", 0.5), ("BACKOFF", (0.02, 0.1)), ("consumers.HEARTBEAT", 0.1)):
        monkeypatch.setattr(f"sse_app.brokers.nats.{name}", seconds)
    for name in ("COMMAND", "board.DEADLINE", "log.ANSWER", "connection.CONNECT"):
        monkeypatch.setattr(f"sse_app.brokers.nats.{name}", PATIENCE)


@pytest.fixture
def nats_world(nats_server: NatsServer, impatient_nats: None, monkeypatch: pytest.MonkeyPatch) -> World:
    """The log is measured by the server; the board by the wall clock of its node, which is the world's."""
    world = World(nats_server.url(), clocked=False)
    monkeypatch.setattr("sse_app.brokers.nats.NatsBoard", partial(NatsBoard, wall=world.wall))
    return world
