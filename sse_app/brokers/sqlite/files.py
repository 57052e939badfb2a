"""The files of a log: made for this user alone, and checked before they are opened.

To share a log with a group, make the database first, as an empty file with the permissions that it is to have. The
files that SQLite and this module make beside it get the same ones.
"""

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sse_app.errors import LogUnavailable

MARK, NODES, BOARD = "-top", "-nodes", "-board"
OF_SQLITE = "", "-wal", "-shm", "-journal"  # of one database
FILES = (*OF_SQLITE, MARK, *(f"{BOARD}{suffix}" for suffix in OF_SQLITE))  # by what stands behind the database's name
PRIVATE = 0o600

_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISREG, "a file"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check(database: Path) -> None:
    """Raises LogUnavailable for a path that is in use and cannot be the log's, and names it. Opening a named pipe would
    wait for ever, and opening a link to nothing would make a file somewhere else."""
    for suffix, needed in (*((suffix, "a file") for suffix in FILES), (NODES, "a directory")):
        path = f"{database}{suffix}"
        if os.path.lexists(path) and (found := _kind(path)) != needed:
            raise LogUnavailable(f"{path} is {found}. It has to be {needed}, or not there; or name another database.")


def _kind(path: str) -> str:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "a link to nothing"
    return next((name for is_one, name in _KINDS if is_one(mode)), "nothing that is known")


def make_database(database: Path) -> None:
    """Make the database, empty and private, if it is not there: SQLite would follow the umask."""
    with suppress(FileExistsError):
        os.close(os.open(database, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE))


def open_beside(database: Path, path: Path) -> int:
    """Open a file beside the database and return its descriptor. A new file gets the permissions of the database.

    Raises OSError for a link: it may lead to a file of another user, which would be written to.
    """
    try:
        return _make_beside(database, path)
    except FileExistsError:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)


def make_database_beside(database: Path, path: Path) -> None:
    """Make another database beside the database, empty and with its permissions, if it is not there.

    Raises OSError for a link. One that is there is not opened: to close it would unlock it for SQLite in this process.
    """
    try:
        os.close(_make_beside(database, path))
    except FileExistsError:
        if path.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None


def _make_beside(database: Path, path: Path) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE)
    if mode := _shared(database):
        os.fchmod(file, mode)
    return file


def make_directory_beside(database: Path, path: Path) -> None:
    """Make a directory beside the database, with its permissions; who may read it may also search it."""
    try:
        path.mkdir(0o700)
    except FileExistsError:
        return
    if mode := _shared(database):
        path.chmod(mode | (mode & 0o444) >> 2)


def _shared(database: Path) -> int:
    """Return the permissions of a database that is shared with other users, else 0."""
    try:
        mode = os.stat(database).st_mode & 0o666
    except FileNotFoundError:
        return 0
    return mode if mode & 0o077 else 0
