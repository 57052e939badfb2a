"""The worlds of brokers in tests: each kind of log with both its clocks. The suite over all brokers runs in each."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

from sse_app.brokers import Broker, open_broker
from sse_app.brokers.limits import LogSettings
from sse_app.brokers.sqlite import SQLiteBroker
from tests.support.peers import Clock, until


@dataclass
class World:
    """A log that brokers can be opened on. ``kept``: it outlives them, and several may be open on it at once.
    ``distant``: a broker's tail reads it from another process, and may come after the trimming.
    ``clocked``: ages, times and windows are measured on its clocks; else on those of its server, which nobody can set.
    """

    url: str
    kept: bool = True
    distant: bool = False
    clocked: bool = True
    clock: Clock = field(default_factory=lambda: Clock(1_000.0))  # seconds, monotonic
    wall: Clock = field(default_factory=lambda: Clock(1_700_000_000.0))  # Unix time, which may jump

    def open(self, **settings: Any) -> Broker:
        clocks: LogSettings = {"clock": self.clock, "wall": self.wall} if self.clocked else {}
        return open_broker(self.url, **clocks, **settings)


@pytest.fixture
def memory_world() -> World:
    return World("memory://", kept=False)


@pytest.fixture
def sqlite_world(tmp_path: Path) -> World:
    return World(f"sqlite:///{tmp_path}/hub.db")


class FollowedSQLiteBroker(SQLiteBroker):
    """A log whose newest publications are in memory from the start, as they are soon when a hub reads the tail."""

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._join()
        await until(lambda: self._unkept is None, "all is in memory")
        return self


class FollowedWorld(World):
    def open(self, **settings: Any) -> Broker:
        path = Path(self.url.removeprefix("sqlite:///"))
        return FollowedSQLiteBroker(path, clock=self.clock, wall=self.wall, **settings)


@pytest.fixture
def sqlite_followed_world(tmp_path: Path) -> World:
    return FollowedWorld(f"sqlite:///{tmp_path}/hub.db")
