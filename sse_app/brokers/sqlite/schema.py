"""The tables of a log in a SQLite file, and the migrations of a file of an older version.

``user_version`` in the file's header says which version its tables are of. Each migration leads from one version to the
next. It only adds (tables, indexes, nullable columns), so that a process of an older version can still read. It must
not write any more, which ``check_version`` tells it in every transaction.
"""

import sqlite3
from pathlib import Path

from sse_app.errors import ConfigError, LogUnavailable

APPLICATION_ID = 0x53534561  # "SSEa", in the file's header

CREATED = f"""
    CREATE TABLE state (
        one INTEGER PRIMARY KEY CHECK (one = 1), epoch TEXT NOT NULL, top INTEGER NOT NULL, oldest INTEGER NOT NULL,
        bytes INTEGER NOT NULL, time REAL NOT NULL, stamp REAL NOT NULL, trimmed_time REAL NOT NULL
    ) STRICT;
    CREATE TABLE limits (
        one INTEGER PRIMARY KEY CHECK (one = 1), publications INTEGER NOT NULL, bytes INTEGER NOT NULL,
        age REAL NOT NULL, window REAL NOT NULL
    ) STRICT;
    CREATE TABLE log (
        offset INTEGER PRIMARY KEY, time REAL NOT NULL, stamp REAL NOT NULL, type TEXT NOT NULL, topics TEXT NOT NULL,
        "to" TEXT NOT NULL, exclude TEXT NOT NULL, body BLOB NOT NULL
    ) STRICT;
    CREATE INDEX named ON log (offset) WHERE "to" <> '' OR exclude <> '';
    CREATE TABLE topics (topic TEXT, offset INTEGER, PRIMARY KEY (topic, offset)) STRICT, WITHOUT ROWID;
    CREATE TABLE keys (
        key TEXT PRIMARY KEY, digest BLOB NOT NULL, offset INTEGER NOT NULL, expires REAL NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX expiry ON keys (expires);
    PRAGMA application_id = {APPLICATION_ID};
    PRAGMA user_version = 1
"""

# From the version that is the key to the next one. A statement stands on lines of its own; none holds a semicolon.
# 2: `json` is 1 if the data is known to be JSON. A newer version writes `crit`, the names of fields that must not be
# ignored, each on a line, and `version` if a row means something else than in version 2: such rows are uncommon.
MIGRATIONS = {
    1: """
    ALTER TABLE log ADD COLUMN json INTEGER;
    ALTER TABLE log ADD COLUMN version INTEGER;
    ALTER TABLE log ADD COLUMN crit TEXT;
    CREATE INDEX uncommon ON log (offset) WHERE crit IS NOT NULL OR version IS NOT NULL;
    PRAGMA user_version = 2
""",
}
SCHEMA_VERSION = 1 + len(MIGRATIONS)

OUTDATED = "A newer version of sse-app has taken over the log; nothing was published. Restart this hub with that one."


def version_of(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def is_empty(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_schema").fetchone() is None


def check_schema(connection: sqlite3.Connection, path: Path) -> None:
    """Raises ConfigError for a database of something else, or of a version that this one cannot read."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    version = version_of(connection)
    if application != APPLICATION_ID:
        raise ConfigError(f"{path} is a SQLite database of something else; give the log a file of its own.")
    if version > SCHEMA_VERSION:
        raise ConfigError(
            f"{path} is a log of format {version}, of a newer version of sse-app; this one knows {SCHEMA_VERSION} at "
            "most. Start the newer one, or give the log a new file."
        )
    if version < 1:
        raise ConfigError(f"{path} is a log of no version that there was; give the log a new file.")


def check_version(connection: sqlite3.Connection) -> None:
    """Raises LogUnavailable when a newer version has migrated the file while this process has it open."""
    if version_of(connection) > SCHEMA_VERSION:
        raise LogUnavailable(OUTDATED)


def create(connection: sqlite3.Connection) -> None:
    """Make the tables of version 1, which ``migrate`` brings to this one. In the caller's transaction."""
    _execute(connection, CREATED)


def migrate(connection: sqlite3.Connection) -> bool:
    """Bring the tables to this version; True if they were of an older one.

    In the caller's transaction: a process that is killed in the middle leaves the tables as they were.
    """
    before = version_of(connection)
    for version in range(before, SCHEMA_VERSION):
        _execute(connection, MIGRATIONS[version])
    return before < SCHEMA_VERSION


def _execute(connection: sqlite3.Connection, statements: str) -> None:
    for statement in statements.split(";"):
        connection.execute(statement)
