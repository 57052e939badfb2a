"""Opening the file of a log: a new one, an old one, a damaged one, or a file of something else."""

import logging
import os
import secrets
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

PATIENCE = 5.0  # seconds to wait for other processes that keep the file locked
CHECK_PATIENCE = 60.0  # seconds for one that opens the log too: it may check all of it, some 0.5 GB a second
CLOSE_PATIENCE = 1.0  # seconds for others that close the log too
PLACE = "It has to be a file in a directory, and this user has to be allowed to write to both."
ABSENT = (
    "A hub makes its log when it starts: start it first, and give the path that it has. sqlite:///hub.db is relative "
    "to the directory of this process, sqlite:////var/lib/hub.db is not. Or say create=True."
)
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@dataclass(frozen=True)
class OpenOptions:
    """The file to open, and how. ``limits`` None leaves those in the file."""

    path: Path
    sync: str
    limits: Limits | None
    recover: bool
    boot: str = field(default_factory=boot_id)
    create: bool = True
    node: str = field(
        default_factory=lambda: secrets.token_hex(6)
    )  # the name of this process among those that share it


@dataclass(frozen=True)
class LogFile:
    """An open log, and what lies beside its file."""

    path: Path
    log: Log
    state: State
    watermark: WatermarkFile
    nodes: Nodes
    inode: int
    boot: str  # of the machine, or SYNCED if each commit waits for the disk

    def check_there(self) -> None:
        """Raises LogUnavailable if the path leads to another file, or to none."""
        if not self.watermark.is_of(self.inode):
            raise LogUnavailable(GONE)

    def advance(self, position: Position) -> None:
        """Note the newest position in the watermark."""
        with suppress(OSError):  # without it a log that was restored from a backup may not be noticed
            self.watermark.advance(position, self.boot)

    def close(self) -> None:
        with suppress(sqlite3.Error, OSError), self.watermark.locked(CLOSE_PATIENCE):
            if self.log.checkpoint():
                self.watermark.close_at(self.inode)
        self.log.close()
        self.nodes.close()
        self.watermark.close()


def open_file(options: OpenOptions) -> LogFile:
    """Open the file of a log. Waits for the disk.

    Raises LogUnavailable, whose text names the file and what to do, and ConfigError.
    """
    path = options.path
    if not (options.create or _holds_something(path)):
        raise LogUnavailable(f"{path} is no log. {ABSENT}")
    try:
        with ExitStack() as stack:
            check(path)
            if options.create:
                make_database(path)  # before the files beside it, so that an error names the database
            watermark = stack.enter_context(closing(WatermarkFile(path)))
            nodes = stack.enter_context(closing(Nodes(path, options.node)))
            with watermark.locked(CHECK_PATIENCE):
                file = _open_or_recover(options, watermark, nodes)
            stack.pop_all()
            return file
    except sqlite3.Error as error:
        raise LogUnavailable(f"{path} cannot be opened: {error}. {advice(error)}") from None
    except BlockingIOError as error:
        raise LogUnavailable(f"{path} cannot be opened: {error.strerror}.") from None
    except OSError as error:
        raise LogUnavailable(f"{error.filename or path} cannot be opened: {error.strerror}. {PLACE}") from None


def _holds_something(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def _open_or_recover(options: OpenOptions, watermark: WatermarkFile, nodes: Nodes) -> LogFile:
    try:
        return _open(options, watermark, nodes)
    except sqlite3.DatabaseError as error:
        if not (options.recover and is_damage(error)):
            raise
        set_aside(options.path, "log")
        return _open(options, watermark, nodes)


def _open(options: OpenOptions, watermark: WatermarkFile, nodes: Nodes) -> LogFile:
    if options.create:
        make_database(options.path)  # a damaged one may have been set aside, here or by another process
    log = patiently(lambda: Log(options.path, options.sync, create=options.create))
    try:
        if not nodes.others():  # else another process has it open, and has checked it
            patiently(log.check)
        was = watermark.read()
        if was is not None and was.boot not in (options.boot, SYNCED):
            was = None  # the machine was started anew, and a crash may have cost it its last commits
        state = patiently(lambda: log.prepare(was, options.limits))
        ours = options.boot if options.sync == "normal" else SYNCED
        watermark.start_at(state.position, ours if was is None or was.boot == SYNCED else was.boot)
        return LogFile(options.path, log, state, watermark, nodes, os.stat(options.path).st_ino, ours)
    except BaseException:
        log.close()
        raise


def patiently(work: Callable[[], T]) -> T:
    """Do it once no other process keeps the file locked."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return work()
        except sqlite3.OperationalError as error:
            if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(0.01)


def _code(error: sqlite3.Error) -> int:
    # The error of a check of ours that failed has no code.
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF


def is_damage(error: sqlite3.Error) -> bool:
    return _code(error) in DAMAGED


def set_aside(path: Path, what: str) -> None:
    """Rename a damaged database and its WAL. Their new names begin like the old ones, so that people find them, and end
    alike, so that SQLite opens both as one database."""
    aside = f"{path}.corrupt-{time.strftime('%Y%m%dT%H%M%S')}"
    for suffix in ("", "-wal"):
        with suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{aside}{suffix}")
    with suppress(FileNotFoundError):
        os.unlink(f"{path}-shm")
    logger.warning("%s is damaged; it is now %s, and a new %s begins", path, aside, what)


def advice(error: sqlite3.Error) -> str:
    """Return what to do about it."""
    if is_damage(error):
        return "Restore it from a backup, or start with --recover to set it aside and begin a new one."
    if _code(error) == sqlite3.SQLITE_BUSY:
        return "Another process keeps it locked."
    return PLACE
