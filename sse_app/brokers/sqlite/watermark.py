"""The watermark: the newest position that a log in a file has had, kept beside the file in ``<file>-top``.

A database that ends before its watermark was restored from a backup, or has lost something. It would use offsets a
second time, so it gets a new epoch. It gets one too when it is another file (another inode) than the watermark was
written for, and after a crash of the machine with ``sync=normal``, which may have cost it its last commits.

The watermark also shows the processes that share a log that one of them has written.
"""

import errno
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from sse_app.brokers.sqlite.files import MARK, open_beside
from sse_app.publication import Position

SYNCED = "synced"  # in place of the boot: all commits are on the disk
LOCK_PATIENCE = 0.1  # seconds; a lock is kept for microseconds, unless its owner is suspended or checks a whole log
LOCK_RETRY = 0.001  # seconds
SIZE = 128  # bytes, padded, so that the file never has to grow on a full disk


class Watermark(NamedTuple):
    epoch: str
    top: int
    inode: int  # of the database
    boot: str  # of the machine; its commits may be lost when it ends, or SYNCED


class WatermarkFile:
    """The file of the watermark. Its reads and writes stay in the page cache, which outlives the process."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._file = open_beside(database, Path(f"{database}{MARK}"))

    def close(self) -> None:
        os.close(self._file)

    @contextmanager
    def locked(self, patience: float = LOCK_PATIENCE) -> Iterator[None]:
        """Lock the watermark against all other processes. Raises BlockingIOError after ``patience`` seconds."""
        end = time.monotonic() + patience
        while not self._lock():
            if time.monotonic() > end:
                raise BlockingIOError(errno.EAGAIN, "another process keeps its watermark locked")
            time.sleep(LOCK_RETRY)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _lock(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def read(self) -> Watermark | None:
        """Return the watermark; None without one, or if it was written for another file than the database."""
        mark = self._stored()
        return mark if mark is not None and self.is_of(mark.inode) else None

    def position(self) -> Position | None:
        """Return the position that was written last; None without one."""
        mark = self._stored()
        return mark and Position(mark.epoch, mark.top)

    def _stored(self) -> Watermark | None:
        with suppress(ValueError):
            epoch, top, inode, boot = os.pread(self._file, SIZE, 0).decode("ascii", "replace").split()
            return Watermark(epoch, int(top), int(inode), boot)
        return None

    def start_at(self, position: Position, boot: str) -> None:
        """Write the position at which the log was opened. ``boot`` is SYNCED if each commit waits for the disk. Only
        while ``locked``."""
        self._write(Watermark(*position, self._inode(), boot))
        os.fsync(self._file)

    def advance(self, position: Position, boot: str) -> None:
        """Write a newer position."""
        with self.locked():
            known = self._stored()
            if known is not None and known.epoch == position.epoch and known.top >= position.offset:
                return
            if known is not None and known.boot != SYNCED:
                boot = known.boot  # a process commits without waiting for the disk, until the log was closed
            self._write(Watermark(*position, self._inode(), boot))
            if boot != SYNCED and (known is None or known.boot == SYNCED):
                os.fsync(self._file)  # the disk must not say SYNCED of commits that a crash undoes

    def close_at(self, inode: int) -> None:
        """Write that all commits are on the disk, if the database is this file. Only while ``locked``."""
        position = self.position()
        if position is not None and self.is_of(inode):
            self._write(Watermark(*position, inode, SYNCED))
            os.fsync(self._file)

    def _write(self, mark: Watermark) -> None:
        os.pwrite(self._file, " ".join(map(str, mark)).ljust(SIZE - 1).encode() + b"\n", 0)

    def _inode(self) -> int:
        try:
            return os.stat(self._database).st_ino
        except OSError:
            return 0

    def is_of(self, inode: int) -> bool:
        """Return True if the database is still the file with this inode."""
        return self._inode() == inode


def boot_id() -> str:
    """Return the name of the machine's boot: another one after each start."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    if sys.platform == "darwin":
        return subprocess.check_output(["sysctl", "-n", "kern.bootsessionuuid"], text=True).strip()
    return "unknown"
