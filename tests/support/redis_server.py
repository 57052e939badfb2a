"""Real Redis servers of our own, on loopback, with their data in directories of the tests."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from tests.support.broker_process import HOST, BrokerProcess
from tests.support.peers import PATIENCE
from tests.support.worlds import World

_prefixes = (f"test-{number}" for number in count())

StartRedis = Callable[..., "RedisServer"]


class RedisServer(BrokerProcess):
    """A Redis server. ``settings`` are added to its command line, after a ``file``."""

    def __init__(self, directory: Path, *settings: str, file: Path | None = None) -> None:
        super().__init__(directory / "redis.log")
        self.command = ["redis-server", *([str(file)] if file else [])]
        self.command += ["--port", str(self.port), "--bind", HOST, "--dir", str(directory)]
        self.command += ["--logfile", str(self._log), "--save", "", *settings]

    def answers(self) -> bool:
        with suppress(RedisError), self.client() as client:
            return bool(client.ping())
        return False

    def url(self, prefix: str = "", port: int = 0) -> str:
        """The URL for a broker; without a prefix, of a log that no test has used."""
        return f"redis://{HOST}:{port or self.port}?prefix={prefix or next(_prefixes)}"

    def client(self) -> Redis:
        return Redis(HOST, self.port, socket_timeout=10, retry=Retry(NoBackoff(), 0))


@pytest.fixture(scope="session")
def start_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartRedis]:
    """A function that starts a server with settings; all servers end with the session."""
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
    """One server for all tests that neither stop nor fill it."""
    return start_redis("--appendonly", "yes", "--appendfsync", "no")


@pytest.fixture
def patient_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brokers wait longer for answers, as of a busy machine. tests/chaos tests them with their real times."""
    for name in ("DEADLINE", "board.DEADLINE", "connection.CONNECT", "connection.SILENCE"):
        monkeypatch.setattr(f"sse_app.brokers.redis.{name}", PATIENCE)


@pytest.fixture
def redis_world(redis_server: RedisServer, patient_redis: None) -> World:
    return World(redis_server.url(), distant=True)
