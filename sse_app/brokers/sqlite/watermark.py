"""How far the log in a file has been, kept beside it in ``<file>-top``.

A database that is less far than that was restored from a backup or has lost something; its next offsets would be given
out a second time, so it gets a new epoch. The same when it is another file than it was (another inode), and after a
crash of the machine with ``sync=normal``, which may have cost it its last commits.

It is also where the processes that share a log see that one of them has written.
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

SYNCED = "synced"  # in place of the boot: everything is on the disk
LOCK_PATIENCE = 0.1  # seconds; it is locked for microseconds, unless its owner is suspended or reads a whole log
LOCK_RETRY = 0.001  # seconds
SIZE = 128  # bytes, always written whole: padded, so that it never has to grow on a full disk


class Watermark(NamedTuple):
    epoch: str
    top: int
    inode: int  # of the database
    boot: str  # of the machine, whose end may cost what was committed during it


class WatermarkFile:
    """Small reads and writes that stay in the page cache; they outlive the process, which is all they are for."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._file = open_beside(database, Path(f"{database}{MARK}"))

    def close(self) -> None:
        os.close(self._file)

    @contextmanager
    def locked(self, patience: float = LOCK_PATIENCE) -> Iterator[None]:
        """Alone among all processes that have the log open. Raises BlockingIOError after so many seconds."""
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
        """None when there is none, or it is of another file than the database there is now."""
        mark = self._stored()
        return mark if mark is not None and self.is_of(mark.inode) else None

    def position(self) -> Position | None:
        """Where the log ends, as whoever wrote last has said."""
        mark = self._stored()
        return mark and Position(mark.epoch, mark.top)

    def _stored(self) -> Watermark | None:
        with suppress(ValueError):
            epoch, top, inode, boot = os.pread(self._file, SIZE, 0).decode("ascii", "replace").split()
            return Watermark(epoch, int(top), int(inode), boot)
        return None

    def begin(self, position: Position, boot: str) -> None:
        """The log is open at this position. ``boot`` is SYNCED when each commit is. Only while ``locked``."""
        self._write(Watermark(*position, self._inode(), boot))
        os.fsync(self._file)

    def rise(self, position: Position, boot: str) -> None:
        """The log has come so far."""
        with self.locked():
            known = self._stored()
            if known is not None and known.epoch == position.epoch and known.top >= position.offset:
                return
            if known is not None and known.boot != SYNCED:
                boot = known.boot  # others commit without waiting for the disk, until one of them has closed it
            self._write(Watermark(*position, self._inode(), boot))
            if boot != SYNCED and (known is None or known.boot == SYNCED):
                os.fsync(self._file)  # what the disk says must not hold for commits that a crash undoes

    def close_at(self, inode: int) -> None:
        """Everything is on the disk. Only while ``locked``."""
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
        """Whether the database is still the file that it was."""
        return self._inode() == inode


def boot_id() -> str:
    """A name for the time since the machine was started."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    if sys.platform == "darwin":
        return subprocess.check_output(["sysctl", "-n", "kern.bootsessionuuid"], text=True).strip()
    return "unknown"
