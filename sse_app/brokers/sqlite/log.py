"""The log in a SQLite file, over one connection. Everything in here waits for the disk: call it in a thread.

    state    one row: the epoch, the offsets with which the log ends and begins, its bytes, and times
    limits   one row: how much the log may hold
    log      a row for each publication, with consecutive offsets
    topics   a row for each topic of a publication, with the topic "" for none
    keys     the idempotency keys of the window

``pages.py`` reads the log; ``watermark.py`` keeps the newest position beside the file.
"""

import logging
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from sse_app.brokers.limits import DEFAULTS, Limits
from sse_app.brokers.sqlite.schema import check_schema, check_version, create, is_empty, migrate
from sse_app.brokers.sqlite.watermark import Watermark
from sse_app.errors import KEY_REUSED, BrokerError, ConfigError, KeyReused, LogFull, LogUnavailable, OutcomeUnknown
from sse_app.publication import Position, Publication
from sse_app.steps import slices

logger = logging.getLogger("sse_app")

KEYS_AT_ONCE = 500  # looked up in one query
TRIM_SPARE = 256  # publications more than were appended that one commit may trim: some 2 ms
OVERHEAD = 100  # bytes of a publication in the file beside its body

WHOLE = """
    SELECT top - oldest = (SELECT count(*) FROM log)
        AND top - oldest = (SELECT count(*) FROM log WHERE offset > oldest AND offset <= top) FROM state
"""
FULL = "The log's disk is full; nothing was published. Make room and publish again."
LOCKED = "Another process keeps the log's file locked; nothing was published. Try again soon."
GONE = "The log's file is gone or was replaced; nothing was published. Restart the hub once it is settled."
FAILED = "The log's file cannot be read or written; nothing was published. The server's log says why."
HOLES = "publications are missing from it"
UNKNOWN = "The disk failed while the publication was written; publish again with the same Idempotency-Key."


class Entry(NamedTuple):
    """A publication that is to be appended, with its encoded event."""

    event_type: str
    body: bytes
    topics: tuple[str, ...]
    to: frozenset[str]
    exclude: frozenset[str]
    key: str | None
    digest: bytes
    is_json: bool = False


class Entries(NamedTuple):
    """The entries of one publisher, all of which are appended, or none. ``key`` is for all; else each may have one."""

    items: tuple[Entry, ...]
    key: str | None = None
    digest: bytes = b""

    @property
    def size(self) -> int:
        """The bytes of the events."""
        return sum([len(entry.body) for entry in self.items])


class State(NamedTuple):
    epoch: str
    top: int
    oldest: int  # the offset before the oldest publication that is held
    size: int  # bytes
    time: float  # of the newest publication
    stamp: float
    trimmed_time: float  # of the newest publication that was trimmed

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.top)


_Placed = tuple[Position, Entry]  # an entry that is new, and where it goes
_Keys = dict[str, tuple[bytes, int]]  # idempotency keys, with the digest and the offset of the publication of each

Outcome = Sequence[Position] | KeyReused  # the positions of what one publisher appended


class Appended(NamedTuple):
    """The result of a commit: the log before and after it, its publications, and the outcome for each publisher."""

    before: Position
    state: State
    publications: Sequence[Publication]
    outcomes: Sequence[Outcome]


def broker_error(error: sqlite3.Error, *, committing: bool = False) -> BrokerError:
    """Return the error that a publisher or reader gets for one of SQLite, which is its cause."""
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_FULL:
            meaning: BrokerError = LogFull(FULL)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            meaning = LogUnavailable(LOCKED)
        case sqlite3.SQLITE_IOERR if committing:
            meaning = OutcomeUnknown(UNKNOWN)
        case _:
            meaning = LogUnavailable(FAILED)
    meaning.__cause__ = error
    return meaning


def connect(path: Path, *, create: bool = False, patience: float = 0.0) -> sqlite3.Connection:
    """Return a connection that any thread may use, one at a time. It waits ``patience`` seconds for a lock."""
    mode = "rwc" if create else "rw"
    uri = f"{path.as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=patience, isolation_level=None, check_same_thread=False)


def read_state(connection: sqlite3.Connection) -> State:
    rows = connection.execute("SELECT epoch, top, oldest, bytes, time, stamp, trimmed_time FROM state")
    return State(*only_row(rows))


def only_row(rows: sqlite3.Cursor) -> tuple[Any, ...]:
    """Return the row of a table that has one. Raises sqlite3.DatabaseError without it, as for any other damage."""
    row: tuple[Any, ...] | None = rows.fetchone()
    if row is None:
        raise sqlite3.DatabaseError(HOLES)
    return row


class Log:
    """The connection that writes. Its methods raise sqlite3.Error, and BrokerError from a commit."""

    def __init__(self, path: Path, synchronous: str, *, create: bool = True) -> None:
        """Raises ConfigError for a database of something else."""
        self._path = path
        self.outdated = False  # another process has migrated the file to a newer version
        self.limits: Limits | None = None  # as they were read last
        self._connection = connect(path, create=create)
        try:
            if not is_empty(self._connection):
                check_schema(self._connection, path)  # before anything is changed in a database of something else
            (mode,) = self._connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise ConfigError(f"{path}: its file system has no shared memory for the log; use a local disk.")
            self._connection.execute(f"PRAGMA synchronous = {synchronous}")
            self._connection.execute("PRAGMA fullfsync = ON")  # without it macOS leaves the data in the drive's cache
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """A transaction that writes. If a newer version has migrated the file it raises LogUnavailable, and the log is
        ``outdated`` from then on."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._check_version()
            yield
        except BaseException:
            self._rollback()
            raise
        self._commit()

    def _check_version(self) -> None:
        try:
            check_version(self._connection)
        except LogUnavailable:
            self.outdated = True
            raise

    def _commit(self) -> None:
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._rollback()
            raise broker_error(error, committing=True) from error

    def _rollback(self) -> None:
        with suppress(sqlite3.Error):  # after some errors SQLite has rolled back itself
            self._connection.execute("ROLLBACK")

    # Appending

    def append(self, waiting: Sequence[Entries], wall: float, stamp: float, *, touch: bool = False) -> Appended:
        """Append what publishers gave in one commit, and trim the log to its limits.

        ``stamp`` is a time that does not jump. ``touch`` writes in any case, to find out if the file can be written.
        """
        with self._transaction():
            before, limits = read_state(self._connection), self._limits()
            time, stamp = max(before.time, wall), max(before.stamp, stamp)
            outcomes, fresh = self._assign_offsets(waiting, before, limits, stamp)
            self._insert(fresh, time, stamp)
            size = before.size + sum([len(entry.body) + OVERHEAD for _, entry in fresh])
            state = before._replace(top=before.top + len(fresh), size=size, time=time, stamp=stamp)
            state = self._trim(state, limits, stamp, len(fresh) + TRIM_SPARE)
            if touch or (state.top, state.oldest) != (before.top, before.oldest):
                self._connection.execute(
                    "UPDATE state SET top = ?, oldest = ?, bytes = ?, time = ?, stamp = ?, trimmed_time = ?", state[1:]
                )
        return Appended(before.position, state, _publications(fresh, time), outcomes)

    def _assign_offsets(
        self, waiting: Sequence[Entries], before: State, limits: Limits, stamp: float
    ) -> tuple[list[Outcome], list[_Placed]]:
        """Return the outcome for each publisher, and the entries that are new, in the order of their offsets."""
        outcomes: list[Outcome] = []
        fresh: list[_Placed] = []
        known = self._stored_keys(waiting, stamp)
        new: _Keys = {}
        for entries in waiting:
            try:
                positions, appended, keys = _place(entries, before.epoch, before.top + len(fresh), known)
            except KeyReused as error:
                outcomes.append(error)
                continue
            fresh += appended
            outcomes.append(positions)
            if keys:
                known |= keys
                new |= keys
        self._store_keys(new, stamp + limits.window)
        return outcomes, fresh

    def _stored_keys(self, waiting: Sequence[Entries], stamp: float) -> _Keys:
        """Return those keys of what waits that are known, and forget all that are too old."""
        keys = [entries.key for entries in waiting if entries.key is not None]
        keys += [entry.key for entries in waiting for entry in entries.items if entry.key is not None]
        if not keys:
            return {}
        self._connection.execute("DELETE FROM keys WHERE expires <= ?", (stamp,))
        found: _Keys = {}
        for part in slices(keys, KEYS_AT_ONCE):
            marks = ",".join("?" * len(part))
            rows = self._connection.execute(f"SELECT key, digest, offset FROM keys WHERE key IN ({marks})", part)
            found.update((key, (digest, offset)) for key, digest, offset in rows)
        return found

    def _store_keys(self, keys: _Keys, expires: float) -> None:
        rows = [(key, digest, offset, expires) for key, (digest, offset) in keys.items()]
        self._connection.executemany("INSERT INTO keys VALUES (?, ?, ?, ?)", rows)

    def _insert(self, fresh: Sequence[_Placed], time: float, stamp: float) -> None:
        self._connection.executemany(
            'INSERT INTO log (offset, time, stamp, type, topics, "to", exclude, body, json)'
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    *(offset, time, stamp, event_type),
                    *("\n".join(topics), _joined(to), _joined(exclude), body, int(is_json) or None),
                )
                for (_, offset), (event_type, body, topics, to, exclude, _, _, is_json) in fresh
            ],
        )
        self._connection.executemany(
            "INSERT INTO topics VALUES (?, ?)",
            [(topic, position.offset) for position, entry in fresh for topic in entry.topics or ("",)],
        )

    # Trimming

    def _limits(self) -> Limits:
        (row,) = self._connection.execute("SELECT publications, bytes, age, window FROM limits").fetchall()
        self.limits = Limits(*row)
        return self.limits

    def _trim(self, state: State, limits: Limits, now: float, at_most: int) -> State:
        """Delete the oldest publications that are too many, too large or too old, and return the state without them.

        With more than ``at_most`` of them the rest waits for the next commit. The newest is kept whatever its size.
        """
        rows = self._connection.execute(
            "SELECT offset, time, stamp, length(body), topics FROM log WHERE offset > ? ORDER BY offset LIMIT ?",
            (state.oldest, at_most),
        )
        oldest, held, trimmed_time, gone = state.oldest, state.size, state.trimmed_time, set[str]()
        for offset, time, stamp, size, topics in rows:
            too_many = state.top - oldest > limits.publications or (held > limits.size and offset < state.top)
            if not too_many and stamp >= now - limits.age:
                break
            oldest, held, trimmed_time = offset, held - size - OVERHEAD, time
            gone.add(topics)
        if oldest == state.oldest:
            return state
        self._connection.executemany(
            "DELETE FROM topics WHERE topic = ? AND offset <= ?",
            [(topic, oldest) for topic in {topic for joined in gone for topic in joined.split("\n")}],
        )
        self._connection.execute("DELETE FROM log WHERE offset <= ?", (oldest,))
        return state._replace(oldest=oldest, size=held, trimmed_time=trimmed_time)

    # Opening

    def prepare(self, watermark: Watermark | None, limits: Limits | None) -> State:
        """Make the tables or migrate them, and begin a new epoch if the log ends before ``watermark``, or has none.

        ``limits`` are those of all processes from now on; None leaves them.
        """
        with self._transaction():
            if is_empty(self._connection):
                create(self._connection)
                migrate(self._connection)
                state = State(secrets.token_hex(6), 0, 0, 0, 0.0, 0.0, float("-inf"))
                self._connection.execute("INSERT INTO state VALUES (1, ?, ?, ?, ?, ?, ?, ?)", state)
                self._connection.execute("INSERT INTO limits VALUES (1, ?, ?, ?, ?)", limits or DEFAULTS)
                self._limits()
                return state
            if migrate(self._connection):
                logger.warning("%s is now a log of this version; older ones of sse-app cannot open it", self._path)
            if limits != self._limits() and limits is not None:
                self._connection.execute("UPDATE limits SET publications = ?, bytes = ?, age = ?, window = ?", limits)
                self.limits = limits
            state = read_state(self._connection)
            if watermark is None or watermark.epoch != state.epoch or watermark.top > state.top:
                state = state._replace(epoch=secrets.token_hex(6))
                self._connection.execute("UPDATE state SET epoch = ?", (state.epoch,))
            return state

    def checkpoint(self) -> bool:
        """Move the WAL into the database, and onto the disk. False while another process uses it."""
        (busy, _, _) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy

    def check(self) -> None:
        """Read all of the database. Raises sqlite3.DatabaseError if it is damaged."""
        (found,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(found.splitlines()[-1])  # the first line only names the database
        if not is_empty(self._connection) and not only_row(self._connection.execute(WHOLE))[0]:
            raise sqlite3.DatabaseError(HOLES)


def _place(entries: Entries, epoch: str, top: int, known: _Keys) -> tuple[list[Position], Sequence[_Placed], _Keys]:
    """Return the position of each entry in a log that ends at ``top``, those that are new, and the keys that are used
    for the first time. Raises KeyReused.
    """
    keys: _Keys = {}
    if entries.key is not None:
        first = _offset_of(entries.key, entries.digest, top + 1, known, keys)
        positions = [Position(epoch, offset) for offset in range(first, first + len(entries.items))]
        return positions, list(zip(positions, entries.items, strict=True)) if keys else (), keys
    positions, fresh = [], list[_Placed]()
    for entry in entries.items:
        following = top + len(fresh) + 1
        offset = following if entry.key is None else _offset_of(entry.key, entry.digest, following, known, keys)
        position = Position(epoch, offset)
        positions.append(position)
        if offset == following:
            fresh.append((position, entry))
    return positions, fresh, keys


def _offset_of(key: str, digest: bytes, following: int, known: _Keys, keys: _Keys) -> int:
    """Return the offset that a key got before, else the one that it gets now, and add it to ``keys``. Raises
    KeyReused.
    """
    found = keys.get(key) or known.get(key) or keys.setdefault(key, (digest, following))
    if found[0] != digest:
        raise KeyReused(KEY_REUSED)
    return found[1]


def _publications(fresh: Sequence[_Placed], time: float) -> list[Publication]:
    return [
        Publication(position, event_type, topics, body, time, to, exclude, is_json)
        for position, (event_type, body, topics, to, exclude, _, _, is_json) in fresh
    ]


def _joined(names: frozenset[str]) -> str:
    return "\n".join(sorted(names)) if names else ""
