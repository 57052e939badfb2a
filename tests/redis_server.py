"""Real Redis servers of our own, on loopback, with their data in directories of the tests."""

import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from tests.worlds import World

HOST = "127.0.0.1"
LOOKS = 1_000  # at a server that starts, 20 ms apart
_prefixes = (f"test-{number}" for number in count())

StartRedis = Callable[..., "RedisServer"]


class RedisServer:
    """A server on a port that it keeps over restarts; ``settings`` are added to its command line, after a ``file``."""

    def __init__(self, directory: Path, *settings: str, file: Path | None = None) -> None:
        self.port = free_port()
        self._log = directory / "redis.log"
        self._command = ["redis-server", *([str(file)] if file else [])]
        self._command += ["--port", str(self.port), "--bind", HOST, "--dir", str(directory)]
        self._command += ["--logfile", str(self._log), "--save", "", *settings]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        with self.client() as client:
            for _ in range(LOOKS):
                with suppress(RedisError):
                    client.ping()
                    return
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(0.02)
                    break
        raise AssertionError(f"redis-server does not start: {self._log.read_text()}")

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

    def url(self, prefix: str = "", port: int = 0) -> str:
        """For a broker; without a prefix a log that nobody has used."""
        return f"redis://{HOST}:{port or self.port}?prefix={prefix or next(_prefixes)}"

    def client(self) -> Redis:
        return Redis(HOST, self.port, socket_timeout=10, retry=Retry(NoBackoff(), 0))


def free_port() -> int:
    with socket.create_server((HOST, 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def start_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartRedis]:
    """Starts servers with settings; all are ended."""
    if not shutil.which("redis-server"):
        pytest.skip("redis-server is not installed")
    with ExitStack() as stack:

        def start(*settings: str, file: Path | None = None) -> RedisServer:
            server = RedisServer(tmp_path_factory.mktemp("redis"), *settings, file=file)
            stack.callback(server.kill)
            server.start()
            return server

        yield start


@pytest.fixture(scope="session")
def redis_server(start_redis: StartRedis) -> RedisServer:
    """One for all that do it no harm."""
    return start_redis("--appendonly", "yes", "--appendfsync", "no")


@pytest.fixture
def redis_world(redis_server: RedisServer) -> World:
    return World(redis_server.url(), distant=True)
