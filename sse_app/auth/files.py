"""Files with keys: read in one piece, and looked at for changes."""

import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from stat import S_IMODE, S_ISREG

from sse_app.errors import ConfigError

SIZE_MAX = 1024 * 1024  # bytes
OTHERS = 0o007  # the mode's bits of who is neither the owner nor in the group
SETTLED = 2.0  # seconds; a file that is younger may change again without another time of change

Stamp = tuple[float, ...]


def read_text(path: Path, setting: str) -> tuple[str, int]:
    """Return the text of a file, and its mode. Raises ConfigError, which names the setting and not the path."""
    try:
        state = path.stat()
        if S_ISREG(state.st_mode) and state.st_size <= SIZE_MAX:
            return path.read_text("utf-8"), S_IMODE(state.st_mode)
    except OSError as error:
        raise ConfigError(f"{setting} names a file that cannot be read: {os.strerror(error.errno or 0)}.") from None
    except ValueError:  # also for a path with a zero byte
        raise ConfigError(f"{setting} names a file that is not UTF-8 text.") from None
    raise ConfigError(f"{setting} names a regular file of at most 1 MiB.")


def check_private(mode: int, setting: str) -> None:
    """Raises ConfigError for the mode of a file that others can read or write. Windows has no such modes."""
    if sys.platform != "win32" and mode & OTHERS:
        raise ConfigError(f"{setting} names a file that others can read or write; make it private: chmod o-rwx.")


def stamp(paths: Iterable[Path]) -> Stamp:
    """Return numbers that are others once one of these files has changed, or might have since."""
    found: list[float] = []
    now = time.time()
    for path in paths:
        try:
            state = path.stat()
        except (OSError, ValueError):
            found.append(0)
            continue
        found += (state.st_mtime_ns, state.st_size, state.st_ino, state.st_mode)
        if abs(now - state.st_mtime) < SETTLED:
            found.append(now)
    return tuple(found)
