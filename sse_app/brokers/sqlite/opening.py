"""Opening the file of a log: new, as it was left, damaged, or somebody else's."""

import logging
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from sse_app.brokers.limits import Limits
from sse_app.brokers.sqlite.files import check, make_database
from sse_app.brokers.sqlite.log import GONE, Log, State
from sse_app.brokers.sqlite.nodes import Nodes
from sse_app.brokers.sqlite.watermark import SYNCED, WatermarkFile, boot_id
from sse_app.errors import LogUnavailable
from sse_app.publication import Position

logger = logging.getLogger("sse_app")

T = TypeVar("T")

PATIENCE = 5.0  # seconds for other processes that keep the file locked
CHECK_PATIENCE = 60.0  # seconds for one that opens it too: it may be reading all of it, some 0.5 GB a second
CLOSE_PATIENCE = 1.0  # seconds for others that close it too
PLACE = "It has to be a file in a directory, and this user has to be allowed to write to both."
ABSENT = (
    "A hub makes its log when it starts: start it first, and give the path that it has. sqlite:///hub.db is relative "
    "to the directory of this process, sqlite:////var/lib/hub.db is not. Or say create=True."
)
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@dataclass(frozen=True)
class Asked:
    """Which file, and how."""

    path: Path
    sync: str
    limits: Limits | None
    recover: bool
    boot: str = field(default_factory=boot_id)
    create: bool = True


@dataclass(frozen=True)
class LogFile:
    """An open log, and what lies beside its file."""

    path: Path
    log: Log
    state: State
    watermark: WatermarkFile
    nodes: Nodes
    inode: int
    boot: str  # of the machine, or SYNCED when its commits are there at once

    def check_there(self) -> None:
        """Raises LogUnavailable when the path leads to another file or to none."""
        if not self.watermark.is_of(self.inode):
            raise LogUnavailable(GONE)

    def rise(self, position: Position) -> None:
        with suppress(OSError):  # it only makes it harder to tell a restored log from one that was left like this
            self.watermark.rise(position, self.boot)

    def close(self) -> None:
        with suppress(sqlite3.Error, OSError), self.watermark.locked(CLOSE_PATIENCE):
            if self.log.checkpoint():
                self.watermark.close_at(self.inode)
        self.log.close()
        self.nodes.close()
        self.watermark.close()


def opened(asked: Asked) -> LogFile:
    """Waits for the disk. Raises LogUnavailable, which names the file and what to do, and ConfigError."""
    path = asked.path
    if not (asked.create or _holds_something(path)):
        raise LogUnavailable(f"{path} is no log. {ABSENT}")
    try:
        with ExitStack() as stack:
            check(path)
            if asked.create:
                make_database(path)  # before what lies beside it: an error names the database
            watermark = stack.enter_context(closing(WatermarkFile(path)))
            nodes = stack.enter_context(closing(Nodes(path)))
            with watermark.locked(CHECK_PATIENCE):
                file = _open_or_recover(asked, watermark, nodes)
            stack.pop_all()
            return file
    except sqlite3.Error as error:
        raise LogUnavailable(f"{path} cannot be opened: {error}. {_advice(error)}") from None
    except BlockingIOError as error:
        raise LogUnavailable(f"{path} cannot be opened: {error.strerror}.") from None
    except OSError as error:
        raise LogUnavailable(f"{error.filename or path} cannot be opened: {error.strerror}. {PLACE}") from None


def _holds_something(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def _open_or_recover(asked: Asked, watermark: WatermarkFile, nodes: Nodes) -> LogFile:
    try:
        return _open(asked, watermark, nodes)
    except sqlite3.DatabaseError as error:
        if not (asked.recover and _is_damage(error)):
            raise
        _set_aside(asked.path)
        return _open(asked, watermark, nodes)


def _open(asked: Asked, watermark: WatermarkFile, nodes: Nodes) -> LogFile:
    if asked.create:
        make_database(asked.path)  # it may have been set aside, here or by another process
    log = _patiently(lambda: Log(asked.path, asked.sync, create=asked.create))
    try:
        if not nodes.others():  # else somebody has it open already and has looked
            _patiently(log.check)
        was = watermark.read()
        if was is not None and was.boot not in (asked.boot, SYNCED):
            was = None  # the machine may have crashed, and what was committed last with it
        state = _patiently(lambda: log.prepare(was, asked.limits))
        ours = asked.boot if asked.sync == "normal" else SYNCED
        watermark.begin(state.position, ours if was is None or was.boot == SYNCED else was.boot)
        return LogFile(asked.path, log, state, watermark, nodes, os.stat(asked.path).st_ino, ours)
    except BaseException:
        log.close()
        raise


def _patiently(work: Callable[[], T]) -> T:
    """Once no other process keeps the file locked."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return work()
        except sqlite3.OperationalError as error:
            if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(0.01)


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF  # ours, of a failed check, has none


def _is_damage(error: sqlite3.Error) -> bool:
    return _code(error) in DAMAGED


def _set_aside(path: Path) -> None:
    """Its name begins like the log's own, so that it is found, and SQLite opens it with what belongs to it."""
    aside = f"{path}.corrupt-{time.strftime('%Y%m%dT%H%M%S')}"
    for suffix in ("", "-wal"):
        with suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{aside}{suffix}")
    with suppress(FileNotFoundError):
        os.unlink(f"{path}-shm")
    logger.warning("%s is damaged; it is now %s, and a new log begins", path, aside)


def _advice(error: sqlite3.Error) -> str:
    if _is_damage(error):
        return "Restore it from a backup, or start with --recover to set it aside and begin a new log."
    if _code(error) == sqlite3.SQLITE_BUSY:
        return "Another process keeps it locked."
    return PLACE
