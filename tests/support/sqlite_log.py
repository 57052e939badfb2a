"""A log in a SQLite file, for tests: with its broker, or without it in the thread of the test."""

import asyncio
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sse_app.brokers import Tail
from sse_app.brokers.limits import Limits
from sse_app.brokers.sqlite import SQLiteBroker
from sse_app.brokers.sqlite.log import Entries, Entry, connect
from sse_app.brokers.sqlite.opening import LogFile, OpenOptions, open_file
from sse_app.brokers.sqlite.pages import Reader
from sse_app.events import Event, encode
from sse_app.publication import Draft, Position, Publication
from sse_app.topics import TopicFilter
from tests.support.peers import PATIENCE
from tests.support.worlds import World

LIMITS = Limits(1_000_000, 2**30, 86_400.0, 300.0)
END = Position("", 2**62)
EVERYTHING = TopicFilter()
NOBODY = frozenset[str]()


def open_log(path: Path, sync: str = "full", boot: str = "boot-1", *, recover: bool = False) -> LogFile:
    return open_file(OpenOptions(path, sync, LIMITS, recover, boot))


def entry(
    text: str, topics: tuple[str, ...] = (), to: frozenset[str] = NOBODY, exclude: frozenset[str] = NOBODY
) -> Entry:
    return Entry("message", encode(Event(text)), topics, to, exclude, None, b"")


def append(file: LogFile, *entries: Entry | str, limits: Limits = LIMITS, now: float = 0.0) -> list[Position]:
    """Append to a log as the writer of a broker does."""
    made = [entry(item) if isinstance(item, str) else item for item in entries]
    file.log._connection.execute("UPDATE limits SET publications = ?, bytes = ?, age = ?, window = ?", limits)
    appended = file.log.append([Entries((item,)) for item in made], now, now)
    file.advance(appended.state.position)
    return [position for outcome in appended.outcomes if isinstance(outcome, Sequence) for position in outcome]


@contextmanager
def reading(path: Path) -> Iterator[Reader]:
    reader = Reader(connect(path))
    yield reader
    reader.close()


def broker_on(world: World, **settings: Any) -> SQLiteBroker:
    broker = world.open(**settings)
    assert isinstance(broker, SQLiteBroker)
    return broker


async def publish(broker: SQLiteBroker, *texts: str) -> list[Position]:
    return [await broker.publish(Draft(Event(text))) for text in texts]


async def held(broker: SQLiteBroker) -> list[str | None]:
    return [item.event.data for item in await broker.newest(1_000, EVERYTHING, None)]


async def take(tail: Tail, count: int) -> list[str | None]:
    found: list[Publication] = []
    async with asyncio.timeout(PATIENCE):
        while len(found) < count:
            found += await anext(tail)
    return [item.event.data for item in found]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """The file is locked by another process as long as the block lasts."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
