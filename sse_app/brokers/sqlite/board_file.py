"""The board in a SQLite file beside the log's, over one connection. Everything in here waits for the disk: call it in a
thread.

    entries    a row for each entry, with the Unix time at which it ends
    messages   the newest messages, with consecutive numbers

Ends are compared with the time of the wall clock, which all processes of a machine share.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

from sse_app.brokers.board import MESSAGES, kind_of
from sse_app.brokers.sqlite.files import BOARD, make_database_beside
from sse_app.brokers.sqlite.log import connect
from sse_app.brokers.sqlite.opening import CHECK_PATIENCE, LogFile, is_damage, patiently, set_aside
from sse_app.brokers.sqlite.schema import is_empty, version_of
from sse_app.brokers.sqlite.watermark import WatermarkFile
from sse_app.errors import BrokerError, ConfigError, LogFull, LogUnavailable

LOCK_PATIENCE = 2.0  # seconds to wait for other processes that write
MESSAGE_LIFE = 10.0  # seconds
PAGE = 64  # messages in one read
SWEPT_AT_ONCE = 100  # entries that have ended, by each write
APPLICATION_ID = 0x53534562  # "SSEb", in the file's header
VERSION = 1

CREATED = f"""
    CREATE TABLE entries (
        kind TEXT NOT NULL, key TEXT NOT NULL PRIMARY KEY, value BLOB NOT NULL, ends REAL NOT NULL
    ) STRICT;
    CREATE INDEX kinds ON entries (kind);
    CREATE INDEX entry_ends ON entries (ends);
    CREATE TABLE messages (
        number INTEGER PRIMARY KEY AUTOINCREMENT, node TEXT NOT NULL, content BLOB NOT NULL, ends REAL NOT NULL
    ) STRICT;
    CREATE INDEX message_ends ON messages (ends);
    PRAGMA application_id = {APPLICATION_ID};
    PRAGMA user_version = {VERSION}
"""

FULL = "The disk of the board is full; nothing was kept. Make room and try again."
LOCKED = "Another process keeps the board's file locked; nothing was kept. Try again soon."
GONE = "The board's file is gone or was replaced. Restart the hub once it is settled."
FAILED = "The board's file cannot be read or written. The server's log says why."
OUTDATED = "A newer version of sse-app has taken over the board. Restart this hub with that one."


class Messages(NamedTuple):
    """Messages of other nodes, and the number of the newest one that was read."""

    contents: Sequence[bytes]
    newest: int
    is_all: bool


def board_error(error: sqlite3.Error) -> BrokerError:
    """Return the error that a caller gets for one of SQLite, which is its cause."""
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_FULL:
            meaning: BrokerError = LogFull(FULL)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            meaning = LogUnavailable(LOCKED)
        case _:
            meaning = LogUnavailable(FAILED)
    meaning.__cause__ = error
    return meaning


def open_board(log: LogFile, wall: Callable[[], float], *, recover: bool) -> "BoardFile":
    """Open the board beside a log, or make it. With ``recover`` a damaged one is set aside, and a new one begins:
    by one process at a time, which would else set aside the new ones of each other.

    Raises sqlite3.Error, OSError and BrokerError.
    """
    if not recover:
        return BoardFile(log, wall)
    # A descriptor of its own: the one of the log is unlocked by each publication of this process.
    with closing(WatermarkFile(log.path)) as lock, lock.locked(CHECK_PATIENCE):
        try:
            return BoardFile(log, wall)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            set_aside(path_of(log), "board")
            return BoardFile(log, wall)


def path_of(log: LogFile) -> Path:
    return Path(f"{log.path}{BOARD}")


class BoardFile:
    """The open file. Its methods raise sqlite3.Error and BrokerError."""

    def __init__(self, log: LogFile, wall: Callable[[], float]) -> None:
        self._path, self._wall = path_of(log), wall
        make_database_beside(log.path, self._path)
        self._connection = connect(self._path, patience=LOCK_PATIENCE)
        try:
            patiently(self._prepare)
            if not log.nodes.others():  # else another process may have it open, and has checked it
                self._check()
            self._inode = self._path.stat().st_ino
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._connection.close()

    def _prepare(self) -> None:
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA fullfsync = ON")  # without it macOS leaves the data in the drive's cache
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            if is_empty(self._connection):
                for statement in CREATED.split(";"):
                    self._connection.execute(statement)
            self._check_schema()
            self._connection.execute("COMMIT")
        except BaseException:
            self._rollback()
            raise
        self._connection.execute("PRAGMA synchronous = NORMAL")  # from here on: the file itself is on the disk

    def _check_schema(self) -> None:
        (application,) = self._connection.execute("PRAGMA application_id").fetchone()
        if application != APPLICATION_ID:
            wrong = ConfigError(f"{self._path} is a SQLite database of something else; move it away.")
            raise LogUnavailable(FAILED) from wrong
        self._check_version()

    def _check_version(self) -> None:
        if version_of(self._connection) > VERSION:
            raise LogUnavailable(OUTDATED)

    def _check(self) -> None:
        """Raises sqlite3.DatabaseError if the file is damaged."""
        (found,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(found.splitlines()[-1])  # the first line only names the database

    def _check_there(self) -> None:
        try:
            inode = self._path.stat().st_ino
        except OSError:
            inode = 0
        if inode != self._inode:
            raise LogUnavailable(GONE)

    @contextmanager
    def _reading(self) -> Iterator[float]:
        """Yield the time."""
        self._check_there()
        yield self._wall()

    @contextmanager
    def _writing(self, *, durable: bool = False) -> Iterator[float]:
        """A transaction that writes, and the time in it. It is on the disk at its end if it is ``durable``."""
        self._check_there()
        with self._synced() if durable else nullcontext():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._check_version()
                now = self._wall()
                self._sweep(now)
                yield now
                self._connection.execute("COMMIT")
            except BaseException:
                self._rollback()
                raise
        self._check_there()  # else the commit went into a file that the path no longer leads to

    @contextmanager
    def _synced(self) -> Iterator[None]:
        """Let each commit wait until the disk has it, with all commits before it."""
        self._connection.execute("PRAGMA synchronous = FULL")
        try:
            yield
        finally:
            self._connection.execute("PRAGMA synchronous = NORMAL")

    def _rollback(self) -> None:
        with suppress(sqlite3.Error):  # after some errors SQLite has rolled back itself
            self._connection.execute("ROLLBACK")

    def _sweep(self, now: float) -> None:
        self._connection.execute(
            "DELETE FROM entries WHERE rowid IN (SELECT rowid FROM entries WHERE ends <= ? LIMIT ?)",
            (now, SWEPT_AT_ONCE),
        )
        self._connection.execute("DELETE FROM messages WHERE ends <= ?", (now,))

    # Entries

    def claim(self, key: str, value: bytes, ttl: float) -> bytes | None:
        with self._writing() as now:
            standing = self._standing(key, now)
            if standing is None:
                self._write(key, value, now + ttl)
        return standing

    def put(self, key: str, value: bytes, ttl: float, *, durable: bool) -> None:
        with self._writing(durable=durable) as now:
            self._write(key, value, now + ttl)

    def replace(self, key: str, old: bytes, new: bytes, ttl: float) -> bool:
        with self._writing() as now:
            fits = self._standing(key, now) == old
            if fits:
                self._write(key, new, now + ttl)
        return fits

    def get(self, key: str) -> bytes | None:
        with self._reading() as now:
            return self._standing(key, now)

    def delete(self, key: str) -> None:
        with self._writing():
            self._connection.execute("DELETE FROM entries WHERE key = ?", (key,))

    def list(self, kind: str) -> dict[str, bytes]:
        with self._reading() as now:
            rows = self._connection.execute("SELECT key, value FROM entries WHERE kind = ? AND ends > ?", (kind, now))
            return dict(rows.fetchall())

    def _standing(self, key: str, now: float) -> bytes | None:
        row: tuple[bytes] | None = self._connection.execute(
            "SELECT value FROM entries WHERE key = ? AND ends > ?", (key, now)
        ).fetchone()
        return row and row[0]

    def _write(self, key: str, value: bytes, ends: float) -> None:
        row = kind_of(key), key, value, ends
        self._connection.execute("REPLACE INTO entries VALUES (?, ?, ?, ?)", row)

    # Messages

    def send(self, node: str, content: bytes) -> None:
        with self._writing() as now:
            row = self._connection.execute(
                "INSERT INTO messages (node, content, ends) VALUES (?, ?, ?)", (node, content, now + MESSAGE_LIFE)
            )
            self._connection.execute("DELETE FROM messages WHERE number <= ?", ((row.lastrowid or 0) - MESSAGES,))

    def newest_message(self) -> int:
        """Return the number of the newest message there has been, or 0."""
        with self._reading():
            (number,) = self._connection.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence").fetchone()
            return int(number)

    def messages(self, node: str, after: int) -> Messages:
        """Return the next messages behind that number, without those of the node itself."""
        with self._reading():
            rows = self._connection.execute(
                "SELECT number, node, content FROM messages WHERE number > ? ORDER BY number LIMIT ?", (after, PAGE)
            ).fetchall()
        newest = rows[-1][0] if rows else after
        return Messages([content for _, sender, content in rows if sender != node], newest, len(rows) < PAGE)
